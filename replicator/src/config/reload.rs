//! What becomes of each key when the file is read again while a daemon works: one pure function of the
//! configuration in force and the file's. [`taken`] is the same decision carried out on a [`Config`].
//!
//! Every field of the configuration is taken apart here by its name, so that a new one cannot be forgotten.

use std::collections::BTreeSet;

use postgres::instance::is_floor;
use primary::gate::CommitPolicy;
use proto::RegionName;

use super::model::{
    Config, EndpointsConfig, FailoverConfig, LogsConfig, RegionConfig, TelemetryConfig, WitnessConfig,
};

/// What becomes of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It says what is in force.
    Same,
    /// It is another, and is nothing to this daemon.
    Elsewhere,
    /// This daemon takes it while everything goes on.
    Now,
    /// PostgreSQL is given it, and knows itself whether it takes it while it runs.
    Postgres,
    /// It holds once something is started again.
    Needs(Need),
    /// The file cannot be this daemon's.
    Refused(&'static str),
}

/// What a key needs to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// A restart of this region's daemon, and PostgreSQL with it.
    Daemon,
    /// The same of every region, one after another.
    EveryDaemon,
    /// The steps in which regions and witnesses come and go.
    Steps,
    /// PostgreSQL's start, which is its daemon's.
    PostgresStart,
    /// The same, and a standby may not have less than the primary.
    Raised,
    /// The same.
    Lowered,
    /// The same, and it is not known whether it is more or less: one of both is what PostgreSQL has by
    /// itself.
    Moved,
}

impl Need {
    /// What to do, in words.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Need::Daemon => "holds after a restart of this region's daemon, which restarts PostgreSQL",
            Need::EveryDaemon => {
                "must be the same in every daemon: restart the daemons one after the other, the primary's last"
            }
            Need::Steps => {
                "regions and witnesses come and go in steps: see \"Adding and removing regions\" in docs/OPERATIONS.md, and `replicator voters`"
            }
            Need::PostgresStart => {
                "PostgreSQL takes it when it starts: it holds after a restart of this region's daemon"
            }
            Need::Raised => {
                "PostgreSQL takes it when it starts, and a standby may not have less than the primary: restart the secondaries' daemons first, the \
                 primary's last"
            }
            Need::Lowered => {
                "PostgreSQL takes it when it starts, and a standby may not have less than the primary: restart the primary's daemon first, then the \
                 secondaries'"
            }
            Need::Moved => {
                "PostgreSQL takes it when it starts, and a standby may not have less than the primary: where it is raised, restart the secondaries' \
                 daemons first; where it is lowered, the primary's"
            }
        }
    }
}

/// A key of the file, such as `volume.retain`, and what becomes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// As the file has it.
    pub name: String,
    /// What becomes of it.
    pub fate: Fate,
}

/// What becomes of each key in the daemon of region `own`, in which `old` is in force, and whose file says
/// `new`. In the order of [`Config`].
#[must_use]
pub fn decide(own: &RegionName, old: &Config, new: &Config) -> Vec<Key> {
    let mut keys = Keys(Vec::new());
    let Config {
        cluster,
        owner,
        bin_dir,
        os_user,
        settings: _,
        hba,
        ident,
        token_roles,
        commit,
        lease,
        retain,
        max_size_bytes,
        repair_bytes_per_second,
        scrub_every,
        regions,
        witnesses,
        telemetry,
        logs,
        endpoints,
        poolers,
        failover,
        denied,
        require_roles,
        require_signed_orders,
    } = new;
    let daemon = Fate::Needs(Need::Daemon);
    let every = Fate::Needs(Need::EveryDaemon);
    let other = Fate::Refused("the file is another cluster's");
    keys.add("cluster", old.cluster == *cluster, other);
    keys.add("owner", old.owner == *owner, every);
    // A region's own word comes before it.
    let has_own = new.region(own).is_some_and(|region| region.bin_dir.is_some());
    keys.add("postgresql.bin_dir", old.bin_dir == *bin_dir, if has_own { Fate::Elsewhere } else { daemon });
    keys.add("postgresql.os_user", old.os_user == *os_user, daemon);
    keys.settings(own, old, new);
    keys.add("postgresql.hba", old.hba == *hba, Fate::Postgres);
    keys.add("postgresql.ident", old.ident == *ident, Fate::Postgres);
    keys.add("postgresql.token_roles", old.token_roles == *token_roles, Fate::Postgres);
    // Voters judge a failover by it, and PostgreSQL has it on its command line: both are read at the start.
    let CommitPolicy { level, rpo } = commit;
    keys.add("commit", old.commit.level == *level, every);
    keys.add("rpo", old.commit.rpo == *rpo, every);
    keys.add("lease", old.lease == *lease, every);
    keys.add("volume.retain", old.retain == *retain, Fate::Now);
    keys.add("volume.max_size", old.max_size_bytes == *max_size_bytes, Fate::Now);
    keys.add("volume.repair", old.repair_bytes_per_second == *repair_bytes_per_second, Fate::Now);
    keys.add("volume.scrub", old.scrub_every == *scrub_every, Fate::Now);
    for region in regions {
        match old.region(&region.name) {
            Some(before) => keys.region(own, before, region),
            None => keys.steps("region", &region.name),
        }
    }
    for gone in old.regions.iter().filter(|region| new.region(&region.name).is_none()) {
        match gone.name == *own {
            true => {
                keys.add(&format!("region.{own}"), false, Fate::Refused("the file does not have this region"))
            }
            false => keys.steps("region", &gone.name),
        }
    }
    for witness in witnesses {
        match old.witnesses.iter().find(|before| before.name == witness.name) {
            Some(before) => keys.witness(before, witness),
            None => keys.steps("witness", &witness.name),
        }
    }
    let there: BTreeSet<&RegionName> = witnesses.iter().map(|witness| &witness.name).collect();
    for gone in old.witnesses.iter().filter(|before| !there.contains(&before.name)) {
        keys.steps("witness", &gone.name);
    }
    let TelemetryConfig { otlp, traces_per_second, http_beyond_loopback, load } = telemetry;
    keys.add("telemetry.otlp", old.telemetry.otlp == *otlp, Fate::Now);
    let traces = old.telemetry.traces_per_second == *traces_per_second;
    keys.add("telemetry.traces_per_second", traces, Fate::Now);
    let beyond = old.telemetry.http_beyond_loopback == *http_beyond_loopback;
    keys.add("telemetry.http_beyond_loopback", beyond, Fate::Now);
    keys.add("telemetry.load", old.telemetry.load == *load, Fate::Now);
    let LogsConfig { max_size_bytes, keep, format } = logs;
    keys.add("logs.max_size", old.logs.max_size_bytes == *max_size_bytes, Fate::Now);
    keys.add("logs.keep", old.logs.keep == *keep, Fate::Now);
    keys.add("logs.format", old.logs.format == *format, Fate::Now);
    let EndpointsConfig { hold, max_lag, sessions } = endpoints;
    keys.add("endpoints.hold", old.endpoints.hold == *hold, Fate::Now);
    keys.add("endpoints.max_lag", old.endpoints.max_lag == *max_lag, Fate::Now);
    keys.add("endpoints.sessions", old.endpoints.sessions == *sessions, Fate::Now);
    keys.add("pgbouncer", old.poolers == *poolers, Fate::Now);
    let FailoverConfig { automatic, after, max_loss_bytes } = failover;
    keys.add("failover", old.failover.automatic == *automatic, Fate::Now);
    keys.add("failover_after", old.failover.after == *after, Fate::Now);
    keys.add("max_loss", old.failover.max_loss_bytes == *max_loss_bytes, Fate::Now);
    keys.add("denied", old.denied == *denied, Fate::Now);
    keys.add("require_roles", old.require_roles == *require_roles, Fate::Now);
    let orders = old.require_signed_orders == *require_signed_orders;
    keys.add("require_signed_orders", orders, Fate::Now);
    keys.0
}

struct Keys(Vec<Key>);

impl Keys {
    /// A key that is `the_same`, or has this fate.
    fn add(&mut self, name: &str, the_same: bool, fate: Fate) {
        self.0.push(Key { name: name.to_owned(), fate: if the_same { Fate::Same } else { fate } });
    }

    fn steps(&mut self, kind: &str, name: &RegionName) {
        self.add(&format!("{kind}.{name}"), false, Fate::Needs(Need::Steps));
    }

    /// The settings that hold in the region, each by the key that it is from.
    fn settings(&mut self, own: &RegionName, old: &Config, new: &Config) {
        let (Some(before), Some(after)) = (old.region(own), new.region(own)) else { return };
        let (then, now) = (old.settings_of(before), new.settings_of(after));
        let names: BTreeSet<&String> = then.keys().chain(now.keys()).collect();
        for name in names {
            let is_own = after.settings.contains_key(name) || before.settings.contains_key(name);
            let key = match is_own {
                true => format!("region.{own}.settings.{name}"),
                false => format!("postgresql.settings.{name}"),
            };
            self.add(&key, then.get(name) == now.get(name), Fate::Postgres);
        }
    }

    fn region(&mut self, own: &RegionName, old: &RegionConfig, new: &RegionConfig) {
        let RegionConfig {
            name,
            role,
            listen,
            advertise,
            postgres,
            own_process,
            writer_endpoint,
            reader_endpoint,
            http,
            bandwidth_bits_per_second,
            settings: _,
            bin_dir,
            nodes,
            encryption,
            take_over_after,
        } = new;
        let (here, daemon) = (name == own, Fate::Needs(Need::Daemon));
        let if_here = |fate: Fate| if here { fate } else { Fate::Elsewhere };
        let key = |key: &str| format!("region.{name}.{key}");
        // Who leads at first is compared between daemons.
        self.add(&key("role"), old.role == *role, Fate::Needs(Need::EveryDaemon));
        self.add(&key("listen"), old.listen == *listen, if_here(daemon));
        self.add(&key("advertise"), old.advertise == *advertise, Fate::Needs(Need::EveryDaemon));
        self.add(&key("postgres"), old.postgres == *postgres, daemon);
        self.add(&key("own_process"), old.own_process == *own_process, if_here(daemon));
        let same = old.writer_endpoint == *writer_endpoint;
        self.add(&key("writer_endpoint"), same, if_here(daemon));
        let same = old.reader_endpoint == *reader_endpoint;
        self.add(&key("reader_endpoint"), same, if_here(daemon));
        self.add(&key("http"), old.http == *http, if_here(Fate::Now));
        // It limits what others send there.
        let bandwidth = old.bandwidth_bits_per_second == *bandwidth_bits_per_second;
        self.add(&key("bandwidth"), bandwidth, if here { Fate::Elsewhere } else { Fate::Now });
        self.add(&key("bin_dir"), old.bin_dir == *bin_dir, if_here(daemon));
        self.add(&key("encryption"), old.encryption == *encryption, if_here(daemon));
        // Replicas come and go while everything goes on; who holds a copy is settled at the start.
        let same_copies = old.zones_apart() == new.zones_apart();
        let same_heads = old.candidates() == new.candidates();
        let fate = if same_copies && same_heads { Fate::Now } else { daemon };
        self.add(&key("node"), old.nodes == *nodes, if_here(fate));
        // All hosts of the region go by it, and others reach it where they are.
        let same = old.take_over_after == *take_over_after;
        self.add(&key("take_over_after"), same, Fate::Needs(Need::EveryDaemon));
    }

    fn witness(&mut self, old: &WitnessConfig, new: &WitnessConfig) {
        let WitnessConfig { name, listen, advertise } = new;
        self.add(&format!("witness.{name}.listen"), old.listen == *listen, Fate::Elsewhere);
        let every = Fate::Needs(Need::EveryDaemon);
        self.add(&format!("witness.{name}.advertise"), old.advertise == *advertise, every);
    }
}

/// What is in force once a daemon of region `own`, in which `old` is, has taken from `new` what is
/// [`Fate::Now`] and [`Fate::Postgres`].
#[must_use]
pub fn taken(own: &RegionName, old: &Config, new: &Config) -> Config {
    let mut force = Config {
        settings: new.settings.clone(),
        hba: new.hba.clone(),
        ident: new.ident.clone(),
        token_roles: new.token_roles.clone(),
        retain: new.retain,
        max_size_bytes: new.max_size_bytes,
        repair_bytes_per_second: new.repair_bytes_per_second,
        scrub_every: new.scrub_every,
        telemetry: new.telemetry.clone(),
        logs: new.logs,
        endpoints: new.endpoints,
        poolers: new.poolers.clone(),
        failover: new.failover,
        denied: new.denied.clone(),
        require_roles: new.require_roles,
        require_signed_orders: new.require_signed_orders,
        ..old.clone()
    };
    for region in &mut force.regions {
        let Some(now) = new.region(&region.name) else { continue };
        region.settings.clone_from(&now.settings);
        match region.name == *own {
            true => {
                region.http = now.http;
                if region.zones_apart() == now.zones_apart() {
                    region.nodes.clone_from(&now.nodes);
                }
            }
            false => region.bandwidth_bits_per_second = now.bandwidth_bits_per_second,
        }
    }
    force
}

/// What a setting of PostgreSQL needs that it takes only when it starts, when it is `running` now and is to
/// be `wanted`.
#[must_use]
pub fn start_need(setting: &str, running: &str, wanted: Option<&String>) -> Need {
    let wanted = wanted.and_then(|value| value.parse::<u64>().ok());
    match (is_floor(setting), running.parse::<u64>().ok(), wanted) {
        (false, ..) => Need::PostgresStart,
        (true, Some(running), Some(wanted)) if running < wanted => Need::Raised,
        (true, Some(_), Some(_)) => Need::Lowered,
        (true, ..) => Need::Moved,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "\
cluster = \"x\"
commit = \"region\"
lease = \"5s\"
rpo = \"30s\"
denied = [\"ab01\"]
require_roles = false
require_signed_orders = false
[region.a]
role = \"primary\"
listen = \"127.0.0.1:7000\"
advertise = \"a.example:7000\"
postgres = \"127.0.0.1:8000\"
http = \"127.0.0.1:9000\"
bandwidth = \"10Mbit/s\"
own_process = [\"b\"]
bin_dir = \"/a/bin\"
settings = { jit = false }
[region.b]
role = \"secondary\"
listen = \"127.0.0.1:7001\"
advertise = \"b.example:7001\"
postgres = \"127.0.0.1:8001\"
http = \"127.0.0.1:9001\"
bandwidth = \"11Mbit/s\"
own_process = [\"c\"]
settings = { jit = true }
encryption = { provider = \"file\" }
[witness.w]
listen = \"127.0.0.1:7002\"
advertise = \"w.example:7002\"
[volume]
retain = \"24h\"
max_size = \"10GiB\"
repair = \"100MiB\"
scrub = \"23h\"
[telemetry]
otlp = \"http://127.0.0.1:4317\"
traces_per_second = 3
load = true
http_beyond_loopback = false
[logs]
max_size = \"33MiB\"
keep = 7
format = \"text\"
[postgresql]
bin_dir = \"/all/bin\"
os_user = \"postgres\"
hba = [\"host all all 10.0.0.0/8 reject\"]
ident = [\"people ann app\"]
token_roles = [\"app\"]
settings = { work_mem = \"1MB\", max_connections = 100 }
";

    fn parsed(text: &str) -> Config {
        Config::parse(text).unwrap_or_else(|mistakes| panic!("{mistakes:?}\n{text}"))
    }

    fn name(text: &str) -> RegionName {
        text.parse().unwrap()
    }

    /// The fates, for the daemon of `own`, of the keys that are another once `line` is replaced by `by`.
    fn fates(own: &str, line: &str, by: &str) -> Vec<(String, Fate)> {
        assert_eq!(FILE.matches(line).count(), 1, "{line}");
        let (old, new) = (parsed(FILE), parsed(&FILE.replace(line, by)));
        let keys = decide(&name(own), &old, &new);
        // What is in force afterwards is the file, but for what is not taken.
        let force = taken(&name(own), &old, &new);
        let again = decide(&name(own), &force, &new);
        let is_taken = |fate: Fate| matches!(fate, Fate::Now | Fate::Postgres);
        let mut changed = Vec::new();
        for key in keys {
            let wanted = if is_taken(key.fate) { Fate::Same } else { key.fate };
            // A setting that is nowhere any more has no key.
            let after =
                again.iter().find(|after| after.name == key.name).map_or(Fate::Same, |after| after.fate);
            assert_eq!(after, wanted, "{line} -> {by}: {}", key.name);
            if key.fate != Fate::Same {
                changed.push((key.name, key.fate));
            }
        }
        changed
    }

    const DAEMON: Fate = Fate::Needs(Need::Daemon);
    const EVERY: Fate = Fate::Needs(Need::EveryDaemon);

    #[test]
    fn the_same_file_changes_nothing() {
        let config = parsed(FILE);
        assert!(decide(&name("a"), &config, &config).iter().all(|key| key.fate == Fate::Same));
        assert_eq!(taken(&name("a"), &config, &config), config);
    }

    #[test]
    fn each_key_has_its_fate_in_the_daemon_of_each_region() {
        // The key, its line, another one, and what becomes of it in a and in b.
        let elsewhere = Fate::Elsewhere;
        let table = [
            ("commit", "commit = \"region\"", "commit = { regions = 1 }", EVERY, EVERY),
            ("rpo", "rpo = \"30s\"", "rpo = \"31s\"", EVERY, EVERY),
            ("lease", "lease = \"5s\"", "lease = \"6s\"", EVERY, EVERY),
            (
                "region.a.listen",
                "listen = \"127.0.0.1:7000\"",
                "listen = \"127.0.0.1:7100\"",
                DAEMON,
                elsewhere,
            ),
            ("region.a.advertise", "\"a.example:7000\"", "\"c.example:7000\"", EVERY, EVERY),
            ("region.a.postgres", "\"127.0.0.1:8000\"", "\"127.0.0.1:8100\"", DAEMON, DAEMON),
            ("region.a.http", "\"127.0.0.1:9000\"", "\"127.0.0.1:9100\"", Fate::Now, elsewhere),
            ("region.a.bandwidth", "\"10Mbit/s\"", "\"20Mbit/s\"", elsewhere, Fate::Now),
            ("region.b.bandwidth", "bandwidth = \"11Mbit/s\"\n", "", Fate::Now, elsewhere),
            ("region.a.own_process", "[\"b\"]", "[\"a\"]", DAEMON, elsewhere),
            ("region.b.encryption", "provider = \"file\"", "provider = \"off\"", elsewhere, DAEMON),
            ("region.a.bin_dir", "\"/a/bin\"", "\"/b/bin\"", DAEMON, elsewhere),
            (
                "witness.w.listen",
                "listen = \"127.0.0.1:7002\"",
                "listen = \"127.0.0.1:7102\"",
                elsewhere,
                elsewhere,
            ),
            ("witness.w.advertise", "\"w.example:7002\"", "\"v.example:7002\"", EVERY, EVERY),
            ("volume.retain", "retain = \"24h\"", "retain = \"25h\"", Fate::Now, Fate::Now),
            ("volume.max_size", "\"10GiB\"", "\"11GiB\"", Fate::Now, Fate::Now),
            ("volume.repair", "\"100MiB\"", "\"101MiB\"", Fate::Now, Fate::Now),
            ("volume.scrub", "\"23h\"", "\"22h\"", Fate::Now, Fate::Now),
            ("telemetry.otlp", "otlp = \"http://127.0.0.1:4317\"\n", "", Fate::Now, Fate::Now),
            ("telemetry.traces_per_second", "second = 3", "second = 0", Fate::Now, Fate::Now),
            ("telemetry.load", "load = true", "load = false", Fate::Now, Fate::Now),
            ("telemetry.http_beyond_loopback", "loopback = false", "loopback = true", Fate::Now, Fate::Now),
            ("logs.max_size", "max_size = \"33MiB\"", "max_size = \"34MiB\"", Fate::Now, Fate::Now),
            ("logs.format", "format = \"text\"", "format = \"json\"", Fate::Now, Fate::Now),
            ("logs.keep", "keep = 7", "keep = 8", Fate::Now, Fate::Now),
            ("denied", "[\"ab01\"]", "[\"ab01\", \"ab02\"]", Fate::Now, Fate::Now),
            ("require_roles", "require_roles = false", "require_roles = true", Fate::Now, Fate::Now),
            ("require_signed_orders", "orders = false", "orders = true", Fate::Now, Fate::Now),
            ("postgresql.bin_dir", "\"/all/bin\"", "\"/any/bin\"", elsewhere, DAEMON),
            ("postgresql.os_user", "\"postgres\"", "\"pg\"", DAEMON, DAEMON),
            ("postgresql.hba", "reject", "trust", Fate::Postgres, Fate::Postgres),
            ("postgresql.ident", "ann app", "bob app", Fate::Postgres, Fate::Postgres),
            ("postgresql.token_roles", "[\"app\"]", "[\"web\"]", Fate::Postgres, Fate::Postgres),
            ("postgresql.settings.work_mem", "\"1MB\"", "\"2MB\"", Fate::Postgres, Fate::Postgres),
        ];
        for (key, line, by, in_a, in_b) in table {
            for (own, fate) in [("a", in_a), ("b", in_b)] {
                assert_eq!(fates(own, line, by), [(key.to_owned(), fate)], "in {own}: {line}");
            }
        }
    }

    #[test]
    fn a_file_of_another_cluster_or_without_the_region_is_refused() {
        let refused = |own: &str, line: &str, by: &str| {
            fates(own, line, by).into_iter().any(|(_, fate)| matches!(fate, Fate::Refused(_)))
        };
        assert!(refused("a", "cluster = \"x\"", "cluster = \"y\""));
        assert!(refused("b", "[region.b]", "[region.c]") && !refused("a", "[region.b]", "[region.c]"));
    }

    #[test]
    fn regions_and_witnesses_come_and_go_in_steps() {
        let steps = Fate::Needs(Need::Steps);
        let renamed = fates("a", "[region.b]", "[region.c]");
        assert_eq!(renamed, [("region.c".to_owned(), steps), ("region.b".to_owned(), steps)]);
        let renamed = fates("a", "[witness.w]", "[witness.v]");
        assert_eq!(renamed, [("witness.v".to_owned(), steps), ("witness.w".to_owned(), steps)]);
        let roles = FILE.replace("\"primary\"", "_").replace("\"secondary\"", "\"primary\"");
        let changed = decide(&name("a"), &parsed(FILE), &parsed(&roles.replace("= _", "= \"secondary\"")));
        let roles: Vec<&str> =
            changed.iter().filter(|key| key.fate == EVERY).map(|key| key.name.as_str()).collect();
        assert_eq!(roles, ["region.a.role", "region.b.role"]);
    }

    #[test]
    fn a_regions_own_settings_come_before_those_for_all() {
        let own = fates("a", "settings = { jit = false }", "settings = { jit = true }");
        assert_eq!(own, [("region.a.settings.jit".to_owned(), Fate::Postgres)]);
        assert_eq!(fates("b", "settings = { jit = false }", "settings = { jit = true }"), []);
        let gone = fates("a", "settings = { jit = false }", "settings = { work_mem = \"9MB\" }");
        let names: Vec<&str> = gone.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["region.a.settings.jit", "region.a.settings.work_mem"]);
    }

    #[test]
    fn what_a_standby_may_not_have_less_of_is_restarted_in_the_right_order() {
        let need = |setting: &str, running: &str, wanted: Option<&str>| {
            start_need(setting, running, wanted.map(str::to_owned).as_ref())
        };
        assert_eq!(need("shared_buffers", "16384", Some("1GB")), Need::PostgresStart);
        assert_eq!(need("max_connections", "100", Some("150")), Need::Raised);
        assert_eq!(need("max_connections", "150", Some("100")), Need::Lowered);
        assert_eq!(need("max_locks_per_transaction", "64", None), Need::Moved);
        assert!(Need::Raised.words().contains("secondaries' daemons first"));
        assert!(Need::Lowered.words().contains("primary's daemon first"));
    }
}
