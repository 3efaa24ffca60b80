//! `regions.toml`: read, checked, and every mistake reported at once with its place and what would be right.
//!
//! [`model`] is what the file says, [`read`] takes values out of it, [`check`] has a file for each section,
//! and [`show`] shows mistakes in their places; [`edit`] changes the text for commands.

mod check;
pub mod edit;
mod model;
mod read;
pub mod reload;
mod show;

use std::path::Path;

use toml::de::DeTable;

pub use model::{
    Config, EncryptionConfig, EndpointsConfig, FailoverConfig, HOME, KeyProvider, KmsConfig, LogFormat,
    LogsConfig, NODES_MAX, NodeConfig, Place, PoolersConfig, RegionConfig, Role, SECONDARIES_MAX, Server,
    TelemetryConfig, VaultConfig, WITNESSES_MAX, WitnessConfig,
};
pub use show::{ConfigError, Mistake};

use read::Reader;

impl Config {
    /// Reads and checks the file.
    ///
    /// # Errors
    /// When it cannot be read, or with all its mistakes.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.display().to_string(), source })?;
        Config::parse_of(path, &text)
    }

    /// Checks what is to be the content of the file at `path`, or is.
    ///
    /// # Errors
    /// With all its mistakes.
    pub fn parse_of(path: &Path, text: &str) -> Result<Config, ConfigError> {
        Config::parse(text).map_err(|mistakes| ConfigError::Mistakes {
            path: path.display().to_string(),
            text: text.to_owned(),
            mistakes,
        })
    }

    /// Checks the content of the file.
    ///
    /// # Errors
    /// All mistakes, in the order of the file.
    pub fn parse(text: &str) -> Result<Config, Vec<Mistake>> {
        let table = DeTable::parse(text)
            .map_err(|e| vec![Mistake { span: e.span().unwrap_or(0..0), what: e.message().to_owned() }])?;
        let mut reader = Reader::default();
        let config = reader.config(&table);
        let Reader { mut mistakes } = reader;
        mistakes.sort_by_key(|m| m.span.start);
        match config {
            Some(config) if mistakes.is_empty() => Ok(config),
            _ => Err(mistakes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use primary::gate::CommitLevel;
    use proptest::prelude::*;
    use std::time::Duration;

    fn region(name: &str, role: &str, port: u16) -> String {
        format!(
            "[region.{name}]\nrole = \"{role}\"\nlisten = \"127.0.0.1:{port}\"\npostgres = \"127.0.0.1:{}\"\n",
            port + 1000
        )
    }

    fn mistakes(text: &str) -> Vec<String> {
        Config::parse(text).unwrap_err().into_iter().map(|m| m.what).collect()
    }

    #[test]
    fn the_default_file_is_good() {
        let config = Config::parse(include_str!("../../../regions.toml")).unwrap();
        let names: Vec<&str> = config.regions.iter().map(|r| r.name.as_str()).collect();
        assert_eq!(names, ["us-east", "eu-west", "ap-northeast"]);
        assert_eq!(config.regions[0].role, Role::Primary);
        assert_eq!(config.max_size_bytes, 10 << 30);
    }

    #[test]
    fn commit_levels_and_zones() {
        let with = |head: &str| {
            let regions = region("a", "primary", 7000) + &region("b", "secondary", 7001);
            format!("cluster = \"x\"\n{head}\n{regions}own_process = [\"c\", \"b\", \"c\"]\n")
        };
        let policy = |head: &str| Config::parse(&with(head)).unwrap().commit;
        assert_eq!(policy("").level, CommitLevel::Region);
        assert_eq!(policy("commit = \"local\"").level, CommitLevel::Local);
        assert_eq!(policy("commit = { regions = 1 }").level, CommitLevel::Regions(1));
        assert_eq!(policy("rpo = \"30s\"").rpo, Some(Duration::from_secs(30)));
        let mistake = |head: &str| mistakes(&with(head)).concat();
        assert!(mistake("commit = { regions = 2 }").contains("the file has 1"));
        assert!(mistake("commit = \"all\"").contains("`commit` is \"local\""));
        assert!(mistake("commit = \"local\"\nrpo = \"30s\"").contains("none waits"));
        let config = Config::parse(&with("")).unwrap();
        assert_eq!(config.regions[1].own_process, ['b', 'c']);
        let local: Vec<String> = config.regions[1].local_copies().iter().map(ToString::to_string).collect();
        assert_eq!(local, ["a1", "a2"]);
        assert!(
            mistakes(&with("").replace("\"b\", \"c\"]", "\"d\"]"))
                .concat()
                .contains("a region has a, b and c")
        );
    }

    #[test]
    fn a_regions_own_encryption_comes_before_that_for_all() {
        let with = |general: &str, own: &str| {
            let regions = region("a", "primary", 7000) + &region("b", "secondary", 7001);
            format!("cluster = \"x\"\n{general}\n{regions}{own}\n")
        };
        let providers = |general: &str, own: &str| {
            let regions = Config::parse(&with(general, own)).unwrap().regions;
            let provider = |region: &RegionConfig| region.encryption.clone().map(|of| of.provider);
            [provider(&regions[0]), provider(&regions[1])]
        };
        assert_eq!(providers("", ""), [None, None], "it is off by default");
        let file = "encryption.provider = \"file\"";
        assert_eq!(providers(file, ""), [Some(KeyProvider::File), Some(KeyProvider::File)]);
        let kms = "encryption = { provider = \"aws-kms\", aws_region = \"eu-west-1\", key = \"alias/redo\", credentials = \"/c\", ca = \"/ca\" }";
        let [found, _] = providers(kms, "");
        assert!(
            matches!(found, Some(KeyProvider::Kms(of)) if of.server.host == "kms.eu-west-1.amazonaws.com" && of.server.tls)
        );
        let vault = |address: &str, more: &str| {
            format!(
                "[encryption]\nprovider = \"vault\"\naddress = \"{address}\"\nkey = \"k\"\ntoken = \"/t\"\n{more}"
            )
        };
        for (address, more) in
            [("http://127.0.0.1:8200", ""), ("https://v.example:8200/", "ca = \"/ca.pem\"")]
        {
            let [found, _] = providers(&vault(address, more), "");
            assert!(
                matches!(found, Some(KeyProvider::Vault(of)) if of.server.port == 8200 && of.mount == "transit")
            );
        }
        let own =
            "encryption = { provider = \"command\", wrap = [\"/bin/w\"], unwrap = [\"/bin/u\", \"-d\"] }";
        let (wrap, unwrap) = (vec!["/bin/w".to_owned()], vec!["/bin/u".to_owned(), "-d".to_owned()]);
        let command = KeyProvider::Command { wrap, unwrap };
        assert_eq!(providers(file, own), [Some(KeyProvider::File), Some(command)]);
        for (general, own, wanted) in [
            ("encryption = true", "", "`encryption` is a table"),
            ("encryption.key = 1", "", "lacks `provider`"),
            ("encryption.provider = \"vaults\"", "", "`provider` is \"file\""),
            ("encryption.provider = \"vault\"", "", "wants `address`, `key`"),
            ("encryption.provider = \"aws-kms\"", "", "wants `aws_region`, `key`"),
            (&vault("http://vault.example:8200", ""), "", "`address` is a URL"),
            (&vault("https://vault.example:8200", ""), "", "wants `ca`"),
            (&vault("http://127.0.0.1:8200", "unwrap = [\"/u\"]"), "", "does not go with provider"),
            ("encryption.provider = \"command\"", "", "wants `wrap` and `unwrap`"),
            ("encryption = { provider = \"file\", wrap = [\"/bin/w\"] }", "", "does not go with provider"),
            (
                "",
                "encryption = { provider = \"command\", wrap = [\"w\"], unwrap = [\"/u\"] }",
                "by its absolute path",
            ),
            ("", "encryption = { provider = \"file\", file = \"keys\" }", "absolute"),
            ("encryption = { provider = \"file\", file = \"/keys\" }", "", "unknown key `file`"),
        ] {
            let found = mistakes(&with(general, own)).join("\n");
            assert!(found.contains(wanted), "{wanted} is not in:\n{found}");
        }
    }

    #[test]
    fn roles_come_in_by_tokens_before_any_line_of_the_users() {
        let with = |lines: &str, own: &str| {
            let regions = region("a", "primary", 7000) + own;
            format!("cluster = \"x\"\n{regions}[postgresql]\n{lines}\n")
        };
        let lines = "token_roles = [\"web\", \"app\"]\nhba = [\"host all all 10.0.0.0/8 trust\"]\nident = [\"people ann app\"]";
        let config = Config::parse(&with(lines, "")).unwrap();
        let rules: Vec<String> = config.rules();
        let by_token = |role: &str| {
            let lets_in = format!("hostssl all \"{role}\" all cert clientname=DN map=replicator_token");
            [lets_in, format!("host all \"{role}\" all reject")]
        };
        assert_eq!(rules[0], "host all postgres all reject");
        assert_eq!(rules[1..5], [by_token("app"), by_token("web")].concat());
        assert_eq!(rules[5], "host all all 10.0.0.0/8 trust");
        let cluster = proto::ClusterId([0xab; 16]);
        let map = config.map_lines(cluster);
        assert!(
            map[0].starts_with("replicator_token \"/^O=abab") && map[0].ends_with("{24}$\" \"app\""),
            "{map:?}"
        );
        assert_eq!((map.len(), map[2].as_str()), (3, "people ann app"));
        assert!(Config::parse(&with("", "")).unwrap().map_lines(cluster).is_empty());
        let serial = "4".repeat(24);
        let denied = format!("denied = [\"{serial}\", \"{}\"]\n", "5".repeat(32));
        let config = Config::parse(&(denied + &with("token_roles = [\"app\"]", ""))).unwrap();
        assert!(config.map_lines(cluster)[0].contains(&format!("(?!({serial})$)")));
        for (lines, own, wanted) in [
            ("token_roles = \"app\"", "", "`token_roles` is a list"),
            ("token_roles = [\"postgres\"]", "", "the superuser is none of them"),
            ("token_roles = [\"App\"]", "", "`token_roles` is a list"),
            ("token_roles = [\"a\\\" all\"]", "", "`token_roles` is a list"),
            ("token_roles = [\"app\"]\nsettings = { ssl_ca_file = \"/ca\" }", "", "ssl_ca_file of your own"),
            ("token_roles = [\"app\"]", "settings = { ssl = false }\n", "ssl of your own"),
            ("ident = [\"replicator mallory postgres\"]", "", "`ident` is a list"),
            ("ident = [\"\\\"replicator_token\\\" x app\"]", "", "`ident` is a list"),
            ("ident = [\"include /tmp/map app\"]", "", "`ident` is a list"),
            ("ident = [\"a b\"]", "", "`ident` is a list"),
            ("hba = [\"hostssl all all all cert map=replicator_token\"]", "", "`hba` is a list"),
            ("hba = [\"local all postgres peer \\\"map=replicator\\\"\"]", "", "`hba` is a list"),
        ] {
            let found = mistakes(&with(lines, own)).join("\n");
            assert!(found.contains(wanted), "{lines}: {wanted} is not in:\n{found}");
        }
    }

    #[test]
    fn every_mistake_is_reported_at_once() {
        let text = format!(
            "cluster = \"x\"\nclutser = 1\n{}{}{}[region.c]\nrole = \"primry\"\nlisten = \"localhost\"\n[volume]\nretain = \"soon\"\n",
            region("a", "primary", 7000),
            region("b", "primary", 7000),
            region("operator", "secondary", 7005),
        );
        let found = mistakes(&text).join("\n");
        for wanted in [
            "unknown key `clutser`; did you mean `cluster`?",
            "a second primary",
            "127.0.0.1:7000 is taken already, by listen of a",
            "127.0.0.1:8000 is taken already",
            "'operator' is the name",
            "`role` is \"primary\" or \"secondary\"",
            "`listen` is an address",
            "region c lacks `postgres`",
            "`retain` is a duration",
        ] {
            assert!(found.contains(wanted), "{wanted} is not in:\n{found}");
        }
        assert_eq!(found.lines().count(), 9, "{found}");
    }

    #[test]
    fn at_most_five_secondaries_and_one_primary_at_least() {
        let secondaries: String = (0..6).map(|i| region(&format!("s{i}"), "secondary", 7000 + i)).collect();
        let found = mistakes(&format!("cluster = \"x\"\n{secondaries}")).join("\n");
        assert!(
            found.contains("no region is the primary") && found.contains("more than 5 secondaries"),
            "{found}"
        );
    }

    #[test]
    fn witnesses_vote_and_have_names_and_addresses_of_their_own() {
        let regions = region("a", "primary", 7000) + &region("b", "secondary", 7001);
        let with = |witnesses: &str| format!("cluster = \"x\"\n{regions}{witnesses}");
        let good = Config::parse(&with("[witness.w]\nlisten = \"127.0.0.1:7009\"\n")).unwrap();
        let voters: Vec<String> = good.voters().iter().map(|voter| voter.name.to_string()).collect();
        assert_eq!(voters, ["a", "b", "w"]);
        let found =
            mistakes(&with("[witness.a]\nlisten = \"127.0.0.1:7001\"\nrole = \"primary\"\n")).concat();
        assert!(found.contains("a is a region") && found.contains("taken already"), "{found}");
        assert!(found.contains("unknown key `role`"), "{found}");
    }

    #[test]
    fn telemetry_stays_on_the_machine_unless_it_is_said_otherwise() {
        let with = |http: &str, telemetry: &str| {
            format!("cluster = \"x\"\n{}{http}\n{telemetry}\n", region("a", "primary", 7000))
        };
        let good = Config::parse(&with("http = \"127.0.0.1:9401\"", "")).unwrap();
        assert_eq!(good.regions[0].http, "127.0.0.1:9401".parse().ok());
        assert_eq!(Config::parse(&with("", "")).unwrap().regions[0].http, None);
        let beyond = "http = \"0.0.0.0:9401\"";
        let mistake = mistakes(&with(beyond, "")).concat();
        assert!(mistake.contains("http_beyond_loopback = true"), "{mistake}");
        assert!(Config::parse(&with(beyond, "[telemetry]\nhttp_beyond_loopback = true")).is_ok());
        let taken = mistakes(&with("http = \"127.0.0.1:8000\"", "")).concat();
        assert!(taken.contains("taken already"), "{taken}");
        let otlp = Config::parse(&with("", "[telemetry]\notlp = \"http://127.0.0.1:4317\"")).unwrap();
        assert_eq!(otlp.telemetry.otlp.as_deref(), Some("http://127.0.0.1:4317"));
        let traces = |line: &str| Config::parse(&with("", &format!("[telemetry]\n{line}")));
        assert_eq!(otlp.telemetry.traces_per_second, 1);
        assert_eq!(traces("traces_per_second = 0").unwrap().telemetry.traces_per_second, 0);
        for wrong in ["101", "-1", "0.5"] {
            assert!(traces(&format!("traces_per_second = {wrong}")).is_err(), "{wrong}");
        }
        let wrong = mistakes(&with("", "[telemetry]\notlp = \"collector:4317\"\nhttp_beyond_loopback = 1"));
        assert!(wrong.concat().contains("`otlp` is a URL") && wrong.len() == 2, "{wrong:?}");
    }

    #[test]
    fn a_failover_without_an_operator_needs_three_voters() {
        let regions = |count: u16| -> String {
            let role = |index| if index == 0 { "primary" } else { "secondary" };
            (0..count).map(|index| region(&format!("r{index}"), role(index), 7100 + index)).collect()
        };
        let auto = "cluster = \"c\"\nfailover = \"auto\"\nfailover_after = \"3s\"\nmax_loss = \"1MiB\"\n";
        let config = Config::parse(&(auto.to_owned() + &regions(3))).unwrap();
        let expected =
            FailoverConfig { automatic: true, after: Duration::from_secs(3), max_loss_bytes: 1 << 20 };
        assert_eq!(config.failover, expected);
        let two = auto.to_owned() + &regions(2);
        assert!(mistakes(&two).concat().contains("three voters"), "{:?}", mistakes(&two));
        let witness = two + "[witness.w]\nlisten = \"127.0.0.1:7199\"\n";
        assert!(Config::parse(&witness).unwrap().failover.automatic);
        let wrong = "cluster = \"c\"\nfailover = \"yes\"\nfailover_after = \"0s\"\n".to_owned() + &regions(3);
        assert_eq!(mistakes(&wrong).len(), 2, "{:?}", mistakes(&wrong));
        assert!(!Config::parse(&("cluster = \"c\"\n".to_owned() + &regions(3))).unwrap().failover.automatic);
    }

    #[test]
    fn pgbouncers_are_known_by_where_they_listen() {
        let file =
            |more: &str| format!("cluster = \"c\"\n{}[pgbouncer]\n{more}", region("a", "primary", 7001));
        let good = file("consoles = [\"10.0.0.1:6432\", \"/run/pg:6433\", \"[::1]:6432\"]\nwait = \"5s\"");
        let poolers = Config::parse(&good).unwrap().poolers;
        assert_eq!((poolers.consoles.len(), poolers.user.as_str()), (3, "replicator"));
        assert_eq!((poolers.wait, poolers.password_file), (Duration::from_secs(5), None));
        assert!(Config::parse(&file("")).is_err(), "without consoles it means nothing");
        let wrong = file("consoles = [\"here\", \":6432\", \"a:0\"]\nwait = \"1m\"\npassword_file = \"x\"");
        assert_eq!(mistakes(&wrong).len(), 5, "{:?}", mistakes(&wrong));
    }

    #[test]
    fn endpoints_have_addresses_of_their_own_and_limits() {
        let file = |more: &str, limits: &str| {
            format!("cluster = \"c\"\n{}{more}\n{limits}", region("a", "primary", 7001))
        };
        let good = file("writer_endpoint = \"127.0.0.1:5501\"", "[endpoints]\nhold = \"5s\"\nsessions = 10");
        let config = Config::parse(&good).unwrap();
        assert_eq!(config.regions[0].writer_endpoint, Some("127.0.0.1:5501".parse().unwrap()));
        assert_eq!((config.endpoints.hold, config.endpoints.sessions), (Duration::from_secs(5), 10));
        let taken =
            file("writer_endpoint = \"127.0.0.1:7001\"", "[endpoints]\nsessions = 5000\nmax_lag = \"0s\"");
        let found = mistakes(&taken).concat();
        assert!(found.contains("taken already") && found.contains("1 to 1024"), "{found}");
        assert_eq!(mistakes(&taken).len(), 3);
    }

    #[test]
    fn nodes_hold_zones_of_their_own_and_replicas_at_addresses_of_their_own() {
        let with = |own: &str, nodes: &str| {
            format!("cluster = \"x\"\n{}{own}\n{nodes}", region("a", "primary", 7000))
        };
        let node = |name: &str, lines: &str| format!("[region.a.node.{name}]\n{lines}\n");
        let good = node("n1", "zone = \"b\"\npostgres = \"127.0.0.1:7101\"") + &node("n2", "zone = \"c\"");
        let config = Config::parse(&with("", &good)).unwrap();
        let own = &config.regions[0];
        assert_eq!(own.zones_apart(), ['b', 'c']);
        let local: Vec<String> = own.local_copies().iter().map(ToString::to_string).collect();
        assert_eq!(local, ["a1", "a2"]);
        assert_eq!(own.node(&"n2".parse().unwrap()).unwrap().postgres, None);
        let mistake = |own: &str, nodes: &str| mistakes(&with(own, nodes)).concat();
        let zone = "zone = \"b\"";
        assert!(mistake("", &(node("n1", zone) + &node("n2", zone))).contains("another process' already"));
        assert!(mistake("own_process = [\"b\"]", &node("n1", zone)).contains("another process' already"));
        assert!(mistake("", &node("n1", "")).contains("does nothing"));
        assert!(mistake("", &node("N1", zone)).contains("is not a node name"));
        assert!(mistake("", &node("n1", "zone = \"d\"")).contains("one of the region's zones"));
        assert!(mistake("", &node("n1", "postgres = \"127.0.0.1:8000\"")).contains("taken already"));
        assert!(
            mistake("", &node("n1", "postgres = \"0.0.0.0:7101\"")).contains("no address at which others")
        );
        let many: String = (0..16)
            .map(|n| node(&format!("n{n}"), &format!("postgres = \"127.0.0.1:{}\"", 7200 + n)))
            .collect();
        assert!(mistake("", &many).contains("at most 15 nodes"));
    }

    #[test]
    fn logs_have_a_size_and_are_kept_in_number() {
        let with = |logs: &str| format!("cluster = \"x\"\n{}[logs]\n{logs}\n", region("a", "primary", 7000));
        let logs = |text: &str| Config::parse(&with(text)).unwrap().logs;
        assert_eq!(logs(""), LogsConfig::default());
        let json = LogsConfig { max_size_bytes: 1 << 20, keep: 9, format: LogFormat::Json };
        assert_eq!(logs("max_size = \"1MiB\"\nkeep = 9\nformat = \"json\""), json);
        assert_eq!(logs("format = \"text\""), LogsConfig::default());
        assert!(mistakes(&with("format = \"xml\"")).concat().contains("`format`"));
        let wrong = mistakes(&with("max_size = \"1KiB\"\nkeep = 0"));
        assert!(wrong.len() == 2 && wrong.concat().contains("`keep` is a number from 1"), "{wrong:?}");
        assert!(mistakes(&with("keep = \"2\"")).concat().contains("`keep`"));
    }

    #[test]
    fn certificates_are_denied_by_what_programs_print() {
        let with = |denied: &str| format!("cluster = \"x\"\n{denied}\n{}", region("a", "primary", 7000));
        let good = Config::parse(&with("denied = [\"0A:1f\", \"ABCD\"]")).unwrap();
        assert_eq!(good.denied.into_iter().collect::<Vec<_>>(), ["a1f", "abcd"]);
        for wrong in ["denied = \"ab\"", "denied = [17]", "denied = [\"operator\"]", "denied = [\"\"]"] {
            assert!(mistakes(&with(wrong)).concat().contains("certs --list"), "{wrong}");
        }
    }

    #[test]
    fn settings_that_replication_depends_on_are_refused() {
        let text = format!(
            "cluster = \"x\"\n{}[postgresql]\nsettings = {{ fsync = false, work_mem = \"1MB\" }}\n",
            region("a", "primary", 7000)
        );
        assert_eq!(mistakes(&text), ["fsync is Replicator's to set; take it out"]);
    }

    #[test]
    fn a_setting_without_effect_is_a_mistake_and_more_than_is_needed_is_not() {
        let with = |settings: &str| {
            let region = region("a", "primary", 7000);
            format!("cluster = \"x\"\n{region}[postgresql]\nsettings = {{ {settings} }}\n")
        };
        let good = Config::parse(&with("WAL_level = \"logical\", max_wal_senders = 40")).unwrap();
        assert_eq!(
            (good.settings["wal_level"].as_str(), good.settings["max_wal_senders"].as_str()),
            ("logical", "40")
        );
        for (settings, wanted) in [
            ("wal_level = \"minimal\"", "wal_level is one of replica, logical"),
            ("max_wal_senders = 5", "max_wal_senders is 20 or more"),
            ("wal_receiver_status_interval = \"10s\"", "Replicator's to set"),
        ] {
            assert!(mistakes(&with(settings)).concat().contains(wanted), "{settings}");
        }
    }

    #[test]
    fn a_region_s_own_programs_come_before_those_for_all() {
        let regions = |own: &str| {
            let all = "[postgresql]\nbin_dir = \"/all/bin\"\n";
            format!(
                "cluster = \"x\"\n{}{own}{}{all}",
                region("a", "primary", 7000),
                region("b", "secondary", 7001)
            )
        };
        let config = Config::parse(&regions("bin_dir = \"/own/bin\"\n")).unwrap();
        let of = |index: usize| config.bin_dir_of(&config.regions[index]).unwrap().display().to_string();
        assert_eq!((of(0), of(1)), ("/own/bin".into(), "/all/bin".into()));
        for wrong in ["bin_dir = \"pg/bin\"\n", "bin_dir = \"\"\n", "bin_dir = 17\n"] {
            let found = mistakes(&regions(wrong)).concat();
            assert!(found.contains("an absolute path"), "{wrong}: {found}");
        }
    }

    #[test]
    fn a_region_has_settings_of_its_own_and_all_have_the_same_lines_of_hba() {
        let text = format!(
            "cluster = \"x\"\n{}settings = {{ work_mem = \"2MB\" }}\n[postgresql]\nhba = [\"host all app 10.0.0.0/8 reject\"]\n\
             settings = {{ work_mem = \"1MB\", jit = false }}\n",
            region("a", "primary", 7000)
        );
        let config = Config::parse(&text).unwrap();
        let settings = config.settings_of(&config.regions[0]);
        assert_eq!((settings["work_mem"].as_str(), settings["jit"].as_str()), ("2MB", "off"));
        assert_eq!(config.hba, ["host all app 10.0.0.0/8 reject"]);
        let wrong = text.replace("host all app 10.0.0.0/8 reject", "allow everybody in");
        assert!(mistakes(&wrong).concat().contains("lines of pg_hba.conf"));
        let wrong = text.replace("2MB\" }", "2MB\", fsync = false }");
        assert!(mistakes(&wrong).concat().contains("fsync is Replicator's to set"));
    }

    #[test]
    fn a_port_that_names_a_socket_of_ours_is_refused() {
        let text = format!("cluster = \"x\"\n{}", region("a", "primary", 4433));
        assert!(mistakes(&text).concat().contains("port 5433"));
    }

    #[test]
    fn a_mistake_is_shown_in_its_place() {
        let text = "cluster = \"x\"\n[region.a]\nrole = \"chief\"\nlisten = \"127.0.0.1:1\"\npostgres = \"127.0.0.1:2\"\n";
        let mistakes = Config::parse(text).unwrap_err();
        let error = ConfigError::Mistakes { path: "regions.toml".into(), text: text.into(), mistakes };
        let shown = error.to_string();
        assert!(shown.contains("regions.toml:3:8: `role` is"), "{shown}");
        assert!(shown.contains(" 3 | role = \"chief\"\n   |        ^^^^^^^"), "{shown}");
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text in "(\\PC|[\n\\[\\]=\".]){0,200}") {
            if let Err(mistakes) = Config::parse(&text) {
                let _ = ConfigError::Mistakes { path: "x".into(), text, mistakes }.to_string();
            }
        }
    }
}
