//! What a checked `regions.toml` says.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use postgres::instance::CLIENTS_MAP;
use postgres::sockets::SUPERUSER;
use primary::gate::CommitPolicy;
use proto::messages::Agreement;
use proto::{ClusterId, NodeName, RegionName};
use transport::Endpoint;
use transport::token::subject_pattern;
use volume::quorum::CopyId;

/// The most secondaries a cluster may have.
pub const SECONDARIES_MAX: usize = 5;

/// The most nodes a region may have besides the host of its daemon.
pub const NODES_MAX: usize = 15;

/// The name of the host of a region's daemon among its hosts, where another one may take over.
pub const HOME: &str = "home";

/// The most witnesses a cluster may have: more voters than regions make nothing safer.
pub const WITNESSES_MAX: usize = 3;

/// The role that applications use, and its database, where the file does not say.
const OWNER: &str = "app";

/// The part a region plays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Takes writes.
    Primary,
    /// Follows the primary.
    Secondary,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Primary => "primary",
            Role::Secondary => "secondary",
        })
    }
}

/// A checked `regions.toml`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The cluster's name.
    pub cluster: String,
    /// The role that applications use, and the name of its database; the superuser's name where it is to be
    /// that one.
    pub owner: String,
    /// Where PostgreSQL's programs are, if not where packages put them.
    pub bin_dir: Option<PathBuf>,
    /// Who runs PostgreSQL.
    pub os_user: Option<String>,
    /// The user's own PostgreSQL settings.
    pub settings: BTreeMap<String, String>,
    /// The user's own lines of `pg_hba.conf`, the same in every region.
    pub hba: Vec<String>,
    /// The user's own lines of `pg_ident.conf`, the same in every region.
    pub ident: Vec<String>,
    /// The roles that come in over the network with a token alone.
    pub token_roles: BTreeSet<String>,
    /// What is promised of commits.
    pub commit: CommitPolicy,
    /// How long a primary that is cut off from the majority goes on acknowledging commits.
    pub lease: Duration,
    /// How long redo is kept.
    pub retain: Duration,
    /// The most redo kept, bytes.
    pub max_size_bytes: u64,
    /// The most that repair brings to one copy, bytes a second.
    pub repair_bytes_per_second: u64,
    /// How often every copy is read back.
    pub scrub_every: Duration,
    /// The regions, in the order of the file.
    pub regions: Vec<RegionConfig>,
    /// The witnesses, in the order of the file.
    pub witnesses: Vec<WitnessConfig>,
    /// What daemons say of themselves, and to whom.
    pub telemetry: TelemetryConfig,
    /// How large logs get.
    pub logs: LogsConfig,
    /// How endpoints treat clients.
    pub endpoints: EndpointsConfig,
    /// The PgBouncers in front of the writer.
    pub poolers: PoolersConfig,
    /// Who orders failovers.
    pub failover: FailoverConfig,
    /// The certificates that are not let in, by serial number or fingerprint as [`transport::peer::mark`] has
    /// them.
    pub denied: BTreeSet<String>,
    /// Whether a certificate without a role is refused; where this is none, as its authority has it.
    pub require_roles: Option<bool>,
    /// Whether a promotion that no operator has signed is refused; where this is none, as the authority of
    /// the daemon's own certificate has it.
    pub require_signed_orders: Option<bool>,
}

/// Who orders failovers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FailoverConfig {
    /// A secondary orders one to itself once the primary's region is gone; else an operator does.
    pub automatic: bool,
    /// How long nobody must have heard the primary.
    pub after: Duration,
    /// How much redo may be missing that the primary is known to have had, bytes.
    pub max_loss_bytes: u64,
}

impl Default for FailoverConfig {
    fn default() -> FailoverConfig {
        FailoverConfig { automatic: false, after: Duration::from_secs(10), max_loss_bytes: 16 << 20 }
    }
}

/// How endpoints treat clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndpointsConfig {
    /// How long a client is held while there is nothing to bring it to.
    pub hold: Duration,
    /// How far behind a region may be to which readers are brought.
    pub max_lag: Duration,
    /// The most clients that one endpoint has at once.
    pub sessions: u32,
}

impl Default for EndpointsConfig {
    fn default() -> EndpointsConfig {
        EndpointsConfig { hold: Duration::from_secs(30), max_lag: Duration::from_secs(1), sessions: 1000 }
    }
}

/// The PgBouncers in front of the writer: they are paused while it moves as planned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolersConfig {
    /// Where each listens: `host:port`, or `/directory:port` of its socket.
    pub consoles: Vec<String>,
    /// One of its `admin_users`.
    pub user: String,
    /// The file that has the user's password; none where it asks for none.
    pub password_file: Option<PathBuf>,
    /// How long it is waited for transactions of their clients to end.
    pub wait: Duration,
}

impl Default for PoolersConfig {
    fn default() -> PoolersConfig {
        let (user, wait) = ("replicator".into(), Duration::from_secs(2));
        PoolersConfig { consoles: Vec::new(), user, password_file: None, wait }
    }
}

/// How large logs get, and how they are written: each daemon's, where `up` started it, and each PostgreSQL's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogsConfig {
    /// The size at which a log is put aside, bytes.
    pub max_size_bytes: u64,
    /// How many that were put aside are kept of each.
    pub keep: u32,
    /// How a daemon's lines are written.
    pub format: LogFormat,
}

/// How a daemon's lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// Each a JSON object.
    Json,
}

impl LogFormat {
    /// The one of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<LogFormat> {
        match name {
            "text" => Some(LogFormat::Text),
            "json" => Some(LogFormat::Json),
            _ => None,
        }
    }
}

impl Default for LogsConfig {
    fn default() -> LogsConfig {
        LogsConfig { max_size_bytes: 64 << 20, keep: 4, format: LogFormat::Text }
    }
}

/// What daemons say of themselves, and to whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TelemetryConfig {
    /// Where metrics and traces are sent by OTLP over gRPC, a URL; the standard `OTEL_*` variables come
    /// before it.
    pub otlp: Option<String>,
    /// The most batches that are sampled, a second, where traces are sent; none when it is 0.
    pub traces_per_second: u32,
    /// Whether `http` of a region may be an address that other machines reach.
    pub http_beyond_loopback: bool,
    /// Whether it is looked each second at what PostgreSQL is busy with.
    pub load: bool,
}

impl Default for TelemetryConfig {
    fn default() -> TelemetryConfig {
        TelemetryConfig { otlp: None, traces_per_second: 1, http_beyond_loopback: false, load: true }
    }
}

/// A daemon without data, which votes on who leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WitnessConfig {
    /// Its name.
    pub name: RegionName,
    /// Its QUIC address.
    pub listen: SocketAddr,
    /// Where others reach it, `host:port`.
    pub advertise: String,
}

/// Where a daemon is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Its name, which its certificate must bear.
    pub name: RegionName,
    /// Its QUIC address, `host:port`.
    pub advertise: String,
}

/// One region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegionConfig {
    /// Its name.
    pub name: RegionName,
    /// Its part at first start.
    pub role: Role,
    /// Its QUIC address.
    pub listen: SocketAddr,
    /// Where others reach it, `host:port`.
    pub advertise: String,
    /// Where applications reach its PostgreSQL.
    pub postgres: SocketAddr,
    /// The zones that run as processes of their own, which join.
    pub own_process: Vec<char>,
    /// Where clients reach the writer, wherever in the world it is.
    pub writer_endpoint: Option<SocketAddr>,
    /// Where clients reach a PostgreSQL that can be read, near, and fresh enough.
    pub reader_endpoint: Option<SocketAddr>,
    /// Where its daemon answers health checks and Prometheus by HTTP.
    pub http: Option<SocketAddr>,
    /// The most that may be sent to it, bits per second.
    pub bandwidth_bits_per_second: Option<u64>,
    /// The user's own PostgreSQL settings for this region alone.
    pub settings: BTreeMap<String, String>,
    /// Where PostgreSQL's programs are on this region's machine, if not where they are everywhere.
    pub bin_dir: Option<PathBuf>,
    /// The nodes besides the host of its daemon, in the order of the file.
    pub nodes: Vec<NodeConfig>,
    /// How its redo is sealed: its own word, or that for all; in the clear without either.
    pub encryption: Option<EncryptionConfig>,
    /// How long the region's head must not have been heard before another host takes over; none does where
    /// this is none.
    pub take_over_after: Option<Duration>,
}

/// How a region's redo is sealed at rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncryptionConfig {
    /// Who keeps the region's keys.
    pub provider: KeyProvider,
    /// Where the file of keys is, if not in the region's directory.
    pub file: Option<PathBuf>,
}

/// Who keeps a region's keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyProvider {
    /// Nobody: new segments are in the clear, and those that are sealed are read.
    Off,
    /// The file has the keys themselves.
    File,
    /// Programs wrap and unwrap a key, from standard input to standard output; the file has it wrapped.
    Command {
        /// The program that wraps, and its arguments.
        wrap: Vec<String>,
        /// The program that unwraps, and its arguments.
        unwrap: Vec<String>,
    },
    /// Vault's transit engine wraps and unwraps a key; the file has it wrapped.
    Vault(VaultConfig),
    /// AWS KMS does.
    Kms(KmsConfig),
}

/// Where a server of keys is, and whom it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Over TLS.
    pub tls: bool,
    /// Its host.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// The authorities that its certificate may be of, in PEM.
    pub ca: Option<PathBuf>,
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// How Vault is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VaultConfig {
    /// Where it is.
    pub server: Server,
    /// Where the transit engine is mounted.
    pub mount: String,
    /// The transit engine's key.
    pub key: String,
    /// The file with the token, read for each question: whatever renews the token writes it.
    pub token: PathBuf,
}

/// How AWS KMS is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KmsConfig {
    /// Where it is.
    pub server: Server,
    /// AWS's name of the region that it is in.
    pub region: String,
    /// Its key: an id, an ARN or an alias.
    pub key: String,
    /// AWS's shared file of credentials, read for each question: whatever renews them writes it.
    pub credentials: PathBuf,
}

/// A node of a region besides the host of its daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeConfig {
    /// Its name, one within the region.
    pub name: NodeName,
    /// The zone whose copies it holds.
    pub zone: Option<char>,
    /// Where applications reach its PostgreSQL, which follows the region's redo; it runs none without this.
    pub postgres: Option<SocketAddr>,
    /// Its QUIC address when it is the region's head; it never is without.
    pub listen: Option<SocketAddr>,
    /// Where others reach it then, `host:port`; empty without an address.
    pub advertise: String,
    /// Where it takes in clients of the writer.
    pub writer_endpoint: Option<SocketAddr>,
    /// Where it takes in clients that read.
    pub reader_endpoint: Option<SocketAddr>,
}

impl NodeConfig {
    /// Whether it has all that the region's head needs.
    #[must_use]
    pub fn may_lead(&self) -> bool {
        self.listen.is_some() && self.zone.is_some() && self.postgres.is_some()
    }
}

impl RegionConfig {
    /// Where its daemon is reached: at one of these, with commas between, where other hosts may take over.
    #[must_use]
    pub fn place(&self) -> Place {
        let mut advertise = self.advertise.clone();
        if self.take_over_after.is_some() {
            for node in self.nodes.iter().filter(|node| node.listen.is_some()) {
                advertise = format!("{advertise},{}", node.advertise);
            }
        }
        Place { name: self.name.clone(), advertise }
    }

    /// The host of the region's daemon, as a node beside another head. Of the region as the file has it, and
    /// not as [`RegionConfig::headed_by`] gives it.
    #[must_use]
    pub fn home(&self) -> Option<NodeConfig> {
        let apart = self.zones_apart();
        Some(NodeConfig {
            name: HOME.parse().ok()?,
            zone: ['a', 'b', 'c'].into_iter().find(|zone| !apart.contains(zone)),
            postgres: Some(self.postgres),
            listen: Some(self.listen),
            advertise: self.advertise.clone(),
            writer_endpoint: self.writer_endpoint,
            reader_endpoint: self.reader_endpoint,
        })
    }

    /// The hosts that may be the region's head, in the order in which they take over: none where none may
    /// but that of its daemon. Of the region as the file has it.
    #[must_use]
    pub fn candidates(&self) -> Vec<NodeConfig> {
        let nodes = self.nodes.iter().filter(|node| node.listen.is_some()).cloned();
        let hosts = self.home().into_iter().chain(nodes);
        hosts.filter(|_| self.take_over_after.is_some()).collect()
    }

    /// Where clients find its endpoint of writers, or of readers: on each host that has one.
    #[must_use]
    pub fn endpoints(&self, of: impl Fn(&NodeConfig) -> Option<SocketAddr>) -> Vec<SocketAddr> {
        self.home().iter().chain(&self.nodes).filter_map(of).collect()
    }

    /// Where its writer can be, if it leads: on each host that may be its head.
    #[must_use]
    pub fn writers(&self) -> Vec<SocketAddr> {
        let others = self.candidates().into_iter().skip(1).filter_map(|host| host.postgres);
        [self.postgres].into_iter().chain(others).collect()
    }

    /// The region as its node `head` has it that is its head: it is where that is, and the host of its
    /// daemon is one of the others. The page stays with that host.
    #[must_use]
    pub fn headed_by(&self, head: &NodeName) -> Option<RegionConfig> {
        let node = self.node(head)?.clone();
        let others = self.nodes.iter().filter(|other| other.name != *head).cloned();
        Some(RegionConfig {
            listen: node.listen?,
            postgres: node.postgres?,
            nodes: self.home().into_iter().chain(others).collect(),
            advertise: node.advertise,
            own_process: Vec::new(),
            writer_endpoint: node.writer_endpoint,
            reader_endpoint: node.reader_endpoint,
            http: None,
            ..self.clone()
        })
    }

    /// The copies that the region's own daemon holds.
    #[must_use]
    pub fn local_copies(&self) -> Vec<CopyId> {
        let apart = self.zones_apart();
        CopyId::all().filter(|copy| !apart.contains(&copy.zone())).collect()
    }

    /// The zones that another process holds than the region's daemon: one of their own, or a node.
    #[must_use]
    pub fn zones_apart(&self) -> Vec<char> {
        self.own_process.iter().copied().chain(self.nodes.iter().filter_map(|node| node.zone)).collect()
    }

    /// A node by its name.
    #[must_use]
    pub fn node(&self, name: &NodeName) -> Option<&NodeConfig> {
        self.nodes.iter().find(|node| node.name == *name)
    }
}

impl Config {
    /// A cluster of this name, with nothing else said.
    pub(super) fn new(cluster: String) -> Config {
        Config {
            cluster,
            owner: OWNER.to_owned(),
            bin_dir: None,
            os_user: None,
            settings: BTreeMap::new(),
            hba: Vec::new(),
            ident: Vec::new(),
            token_roles: BTreeSet::new(),
            commit: CommitPolicy::default(),
            lease: Duration::from_secs(5),
            retain: Duration::from_secs(24 * 3600),
            max_size_bytes: 10 << 30,
            repair_bytes_per_second: 100 << 20,
            scrub_every: Duration::from_secs(24 * 3600),
            regions: Vec::new(),
            witnesses: Vec::new(),
            telemetry: TelemetryConfig::default(),
            logs: LogsConfig::default(),
            endpoints: EndpointsConfig::default(),
            poolers: PoolersConfig::default(),
            failover: FailoverConfig::default(),
            denied: BTreeSet::new(),
            require_roles: None,
            require_signed_orders: None,
        }
    }

    /// Everybody who votes on who leads: the regions, and the witnesses.
    #[must_use]
    pub fn voters(&self) -> Vec<Place> {
        let witness = |w: &WitnessConfig| Place { name: w.name.clone(), advertise: w.advertise.clone() };
        self.regions.iter().map(RegionConfig::place).chain(self.witnesses.iter().map(witness)).collect()
    }

    /// What must be the same in every daemon's file, as digests: who votes, who leads at first, the lease,
    /// and what is promised of commits.
    #[must_use]
    pub fn agreement(&self) -> Agreement {
        let regions = self.regions.iter().map(|region| format!("region {}\n", region.name));
        let witnesses = self.witnesses.iter().map(|witness| format!("witness {}\n", witness.name));
        let voters: String = regions.chain(witnesses).collect();
        Agreement {
            voters: digest(&voters),
            first_primary: digest(self.first_primary().map_or("", |name| name.as_str())),
            lease_us: u64::try_from(self.lease.as_micros()).unwrap_or(u64::MAX),
            commit: digest(&format!("{:?}", self.commit)),
        }
    }

    /// The region that leads the first epoch.
    #[must_use]
    pub fn first_primary(&self) -> Option<&RegionName> {
        self.regions.iter().find(|region| region.role == Role::Primary).map(|region| &region.name)
    }

    /// The user's own PostgreSQL settings in a region: those for all, and its own before them.
    #[must_use]
    pub fn settings_of(&self, region: &RegionConfig) -> BTreeMap<String, String> {
        let mut settings = self.settings.clone();
        settings.extend(region.settings.clone());
        settings
    }

    /// Has `endpoint` let in nobody whom the file denies, and none without a role where one is required; the
    /// connections of those that there are end.
    pub fn restrict(&self, endpoint: &Endpoint) {
        endpoint.deny(self.denied.clone());
        endpoint.require_roles(self.require_roles);
    }

    /// The lines of `pg_hba.conf` beside those that the daemon needs: nobody comes in over the network as the
    /// superuser where applications have a role of their own, and as a role of `token_roles` only who has a
    /// token of it; then the user's.
    #[must_use]
    pub fn rules(&self) -> Vec<String> {
        let shut = (self.owner != SUPERUSER).then(|| format!("host all {SUPERUSER} all reject"));
        let by_token = self.token_roles.iter().flat_map(|role| {
            let lets_in = format!("hostssl all \"{role}\" all cert clientname=DN {CLIENTS_MAP}");
            [lets_in, format!("host all \"{role}\" all reject")]
        });
        shut.into_iter().chain(by_token).chain(self.hba.iter().cloned()).collect()
    }

    /// The lines of `pg_ident.conf` beside those that the daemon needs: which certificates are tokens of
    /// `cluster`, for which role, but for those that are denied; then the user's.
    #[must_use]
    pub fn map_lines(&self, cluster: ClusterId) -> Vec<String> {
        let (_, map) = CLIENTS_MAP.split_once('=').unwrap_or_default();
        let tokens = self.token_roles.iter().filter_map(|role| {
            let subjects = subject_pattern(cluster, role, &self.denied)?;
            Some(format!("{map} \"/{subjects}\" \"{role}\""))
        });
        tokens.chain(self.ident.iter().cloned()).collect()
    }

    /// Where PostgreSQL's programs are in a region, if not where packages put them: its own word, or that for
    /// all.
    #[must_use]
    pub fn bin_dir_of<'a>(&'a self, region: &'a RegionConfig) -> Option<&'a Path> {
        region.bin_dir.as_deref().or(self.bin_dir.as_deref())
    }

    /// A region by its name.
    #[must_use]
    pub fn region(&self, name: &RegionName) -> Option<&RegionConfig> {
        self.regions.iter().find(|r| r.name == *name)
    }

    /// The names of the regions, for people.
    #[must_use]
    pub fn region_names(&self) -> String {
        let names: Vec<&str> = self.regions.iter().map(|region| region.name.as_str()).collect();
        names.join(", ")
    }
}

/// FNV-1a, 64 bits: equal texts have equal digests, and whoever wants to deceive gains nothing by a
/// collision.
fn digest(text: &str) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    text.bytes().fold(0xcbf2_9ce4_8422_2325, step)
}
