//! What may be typed: commands, their arguments, and their help. Nothing is done here.

use std::error::Error;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use proto::{ClusterId, Lsn, NodeName, RegionName};
use transport::Holder;
use volume::quorum::CopyId;

use super::help;
use super::token::validity;
use crate::config::Config;
use crate::endpoint::Kind as Endpoint;
use crate::layout::{Apart, Layout};
use crate::load::series::Cut;
use crate::units;

#[derive(Parser)]
#[command(
    name = "replicator",
    version,
    about = "Multi-region replication for stock PostgreSQL",
    after_help = help::PROGRAM
)]
pub(super) struct Cli {
    #[command(flatten)]
    pub(super) places: Places,
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Args)]
pub(super) struct Places {
    /// The file that names the regions [default: regions.toml, and where that is not there
    /// /etc/replicator/regions.toml]
    #[arg(long, global = true, env = "REPLICATOR_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where regions keep their data on this machine
    #[arg(long, global = true, env = "REPLICATOR_DATA", value_name = "DIR")]
    pub(super) data: Option<PathBuf>,
    /// Whose certificate commands show to daemons: a directory that `certs` made. The operator's, if none is
    /// named
    #[arg(long, global = true, env = "REPLICATOR_IDENTITY", value_name = "DIR")]
    pub(super) identity: Option<PathBuf>,
}

#[derive(Subcommand)]
pub(super) enum Command {
    /// Start every region of the file on this machine, and show them
    #[command(after_help = help::UP)]
    Up {
        /// Return once every region streams, and leave them running
        #[arg(long)]
        detach: bool,
        /// Start every zone of every region as a process of its own
        #[arg(long)]
        zones: bool,
        /// How long they may take to stream, with --detach
        #[arg(long, default_value = "10m", value_parser = duration, value_name = "DURATION")]
        timeout: Duration,
    },
    /// Stop every region on this machine
    Down {
        /// How long they may take to stop
        #[arg(long, default_value = "90s", value_parser = duration, value_name = "DURATION")]
        timeout: Duration,
    },
    /// Run one region's or witness' daemon in the foreground: what a container or a unit runs
    #[command(
        after_help = help::RUN
    )]
    Run {
        /// The region or witness
        #[arg(long, required_unless_present_any = ["az", "node"])]
        region: Option<RegionName>,
        /// Only this zone of it: its two copies join the region's daemon. With its region: us-east.b
        #[arg(long, value_name = "ZONE", value_parser = zone)]
        az: Option<InRegion<char>>,
        /// Only this node of it: the copies of its zone, and its replica. With its region: us-east.n1
        #[arg(long, value_name = "NODE", value_parser = node, conflicts_with = "az")]
        node: Option<InRegion<NodeName>>,
        /// Zones that run by themselves, besides those of the file
        #[arg(long, value_name = "ZONES", value_delimiter = ',', value_parser = ["a", "b", "c"])]
        own_process: Vec<String>,
        /// What this host becomes in a region where another one may be the head; it starts itself again so
        #[arg(long, hide = true, value_parser = ["head", "node"])]
        part: Option<String>,
        /// For how long this host had heard no head of its region when it started itself again
        #[arg(long, hide = true, value_name = "MS", default_value_t = 0)]
        silent_ms: u64,
        /// When the last head stopped its writer to hand over to this host, by this host's clock since it was
        /// started
        #[arg(long, hide = true, value_name = "US")]
        stopped_at_us: Option<u64>,
        /// Where the redo of that writer ends
        #[arg(long, hide = true, value_name = "LSN")]
        ended_lsn: Option<Lsn>,
    },
    /// Show or check a region's volume: its six copies
    Volume {
        #[command(subcommand)]
        action: VolumeAction,
    },
    /// Show every region: role, state, positions, lag
    #[command(
        after_help = help::STATUS
    )]
    Status {
        /// Ask again every second: as a view on a terminal, as plain text elsewhere
        #[arg(long)]
        watch: bool,
        /// For programs
        #[arg(long)]
        json: bool,
        /// One line, as monitoring takes it
        #[arg(long, conflicts_with_all = ["watch", "json"])]
        check: bool,
        /// The lag above which a region is degraded
        #[arg(long, default_value = "10s", value_parser = duration, value_name = "DURATION")]
        max_lag: Duration,
        /// Ask this region's daemon instead of the first that answers
        #[arg(long)]
        region: Option<RegionName>,
    },
    /// What happened: each daemon's journal, merged by time
    #[command(after_help = help::EVENTS)]
    Events {
        /// Only what this region or witness noted
        #[arg(long)]
        region: Option<RegionName>,
        /// How far back
        #[arg(long, default_value = "24h", value_parser = duration, value_name = "DURATION")]
        since: Duration,
        /// Go on with what happens from now on
        #[arg(long)]
        follow: bool,
        /// For programs: a line of JSON for each
        #[arg(long)]
        json: bool,
    },
    /// Who did what, and was not let do: each daemon's audit, merged by time
    #[command(after_help = help::AUDIT)]
    Audit {
        /// Only that of this region or witness
        #[arg(long)]
        region: Option<RegionName>,
        /// Say whether all of it is as it was written, instead of showing it
        #[arg(long)]
        verify: bool,
        /// For programs: a line of JSON for each
        #[arg(long)]
        json: bool,
    },
    /// What a region's PostgreSQL was busy with: active sessions, by what they waited for or ran
    #[command(after_help = help::LOAD)]
    Load {
        /// The region; the primary if none is named
        #[arg(long)]
        region: Option<RegionName>,
        /// How far back, up to 7d
        #[arg(long, default_value = "1h", value_parser = duration, value_name = "DURATION")]
        since: Duration,
        /// What the load is cut by: wait, statement, user, application or host
        #[arg(long, default_value = "wait", value_parser = cut, value_name = "WHAT")]
        by: Cut,
        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// List past promotions, oldest first
    History {
        /// For programs: a line of JSON for each
        #[arg(long)]
        json: bool,
    },
    /// See redo that a failover cut off, in the region that had it
    Lost {
        #[command(subcommand)]
        action: LostAction,
    },
    /// The keys that a region's redo is sealed with at rest
    Keys {
        #[command(subcommand)]
        action: KeysAction,
    },
    /// Make a secondary the primary; or, with --node, another host of a region its head
    #[command(
        after_help = help::PROMOTE
    )]
    Promote {
        /// The region that shall be the primary; with --node, the region whose head moves
        #[arg(long)]
        region: RegionName,
        /// The host of the region that shall be its head: a node, or `home`, the host of the region's daemon
        #[arg(long, value_name = "NODE", conflicts_with_all = ["mode", "old_primary_is_down", "lost"])]
        node: Option<NodeName>,
        /// switchover: by agreement with the primary. failover: the primary is gone
        #[arg(long, default_value = "switchover", value_parser = ["switchover", "failover"])]
        mode: String,
        /// Your word that the old primary does not run: neither it nor the end of its lease is waited for. A
        /// majority of the other voters must still answer (see --lost). Needed with two voters
        #[arg(long, requires = "mode")]
        old_primary_is_down: bool,
        /// The same word for another voter, where a majority was lost with the primary. Those who are lost
        /// have no vote until the new primary hears them again
        #[arg(long, requires = "old_primary_is_down", value_name = "VOTER")]
        lost: Vec<RegionName>,
        /// Only say whether it can succeed; changes nothing
        #[arg(long)]
        dry_run: bool,
        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// The nodes of regions: list them, add a replica while everything goes on, remove one
    #[command(after_help = help::REPLICA)]
    Replica {
        #[command(subcommand)]
        action: ReplicaAction,
    },
    /// Have a secondary seeded anew by the primary; what it has is set aside, and its vote kept
    #[command(after_help = help::RESEED)]
    Reseed {
        /// The region, a secondary
        #[arg(long)]
        region: RegionName,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Your word for a region or witness that lost its directory, when too few others can tell it what it
    /// promised
    #[command(after_help = help::REVOTE)]
    Revote {
        /// The region or witness
        #[arg(long = "region", value_name = "VOTER")]
        voter: RegionName,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Show who votes on who leads, or add a voter, or remove one, while writes go on
    #[command(after_help = help::VOTERS)]
    Voters {
        #[command(subcommand)]
        action: Option<VotersAction>,
        /// For programs
        #[arg(long, global = true)]
        json: bool,
    },
    /// Rehearse a region's promotion: on a clone, while everything goes on; or for real, there and back
    #[command(
        after_help = help::DRILL
    )]
    Drill {
        /// The region, a secondary
        #[arg(long)]
        region: RegionName,
        /// A real switchover there and back, instead of a clone
        #[arg(long)]
        full: bool,
        /// With --full: do not ask
        #[arg(long, requires = "full")]
        yes: bool,
        /// How much of the clone is copied in a second, where the file system cannot share it
        #[arg(long, default_value = "64MiB", value_parser = bytes, value_name = "SIZE")]
        copy_rate: u64,
        /// The report for programs
        #[arg(long, conflicts_with = "markdown")]
        json: bool,
        /// The report for the audit file
        #[arg(long)]
        markdown: bool,
    },
    /// Print a connection string for a region's PostgreSQL
    #[command(
        after_help = help::URL
    )]
    Url {
        /// The region
        #[arg(long, required_unless_present_any = ["writer", "reader", "endpoint"])]
        region: Option<RegionName>,
        /// As the superuser, by the socket on the region's own machine: for root, and for PostgreSQL's
        /// account
        #[arg(long, requires = "region", conflicts_with = "endpoint")]
        superuser: bool,
        /// All regions in one string: clients find the one that takes writes
        #[arg(long, conflicts_with = "region")]
        writer: bool,
        /// All regions in one string: clients take one that follows, and the writer where there is no other
        #[arg(long, conflicts_with_all = ["region", "writer"])]
        reader: bool,
        /// Through the endpoints that the file gives: of the region alone, or of all regions in one string
        #[arg(
            long,
            conflicts_with_all = ["writer", "reader"],
            value_parser = endpoint,
            value_name = "writer|reader"
        )]
        endpoint: Option<Endpoint>,
        /// With --endpoint reader: a session that shows all redo up to there, which
        /// pg_current_wal_insert_lsn() says after a commit
        #[arg(long, requires = "endpoint", value_name = "LSN")]
        after: Option<Lsn>,
    },
    /// Give PostgreSQL's superuser another password
    Password {
        #[command(subcommand)]
        action: PasswordAction,
    },
    /// Check the file, and say everything that is wrong with it
    Check,
    /// Have daemons read the file again, and take what needs no restart
    #[command(after_help = help::RELOAD)]
    Reload {
        /// Only this region's daemon
        #[arg(long)]
        region: Option<RegionName>,
        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// Make the cluster's certificate authority and the certificates of all that speak with its daemons
    #[command(
        after_help = help::CERTS
    )]
    Certs(Certs),
    /// Make what a client logs in to PostgreSQL with, as one role and for a time
    #[command(after_help = help::TOKEN)]
    Token {
        /// The role of PostgreSQL: one of `token_roles` in the file
        #[arg(long)]
        role: String,
        /// For how long clients are let in with it: 1m to 24h
        #[arg(long = "for", value_name = "DURATION", value_parser = validity)]
        validity: Duration,
        /// The directory for its files; those of an earlier token there are replaced
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Make it also where no daemon is reached that keeps in its audit that it was made
        #[arg(long)]
        unrecorded: bool,
        /// For programs
        #[arg(long)]
        json: bool,
    },
}

#[derive(Args)]
pub(super) struct Certs {
    /// Make new certificates also where there are some; by the new authority, if one was made
    #[arg(long, group = "what")]
    pub(super) renew: bool,
    /// Make those anew that have less than a third of their life left; daemons on the machine that has the
    /// authority's key do so by themselves
    #[arg(long, group = "what")]
    pub(super) due: bool,
    /// How long those that are made are valid: 825 days, and for those made anew by themselves as long as
    /// the ones before
    #[arg(long = "for", value_parser = lifetime, value_name = "DURATION")]
    pub(super) valid_for: Option<Duration>,
    /// Make a new authority, which is trusted beside the one that there is: the first of three steps
    #[arg(long, group = "what")]
    pub(super) new_authority: bool,
    /// Trust the old authority no more, once every certificate is the new one's: the last step
    #[arg(long, group = "what")]
    pub(super) drop_old_authority: bool,
    /// Make a key here, and print the request for its certificate: for --region, --witness, --operator or
    /// --monitor
    #[arg(long, group = "what")]
    pub(super) request: bool,
    /// Sign a request with the cluster's authority, and print the certificate; - reads standard input
    #[arg(long, group = "what", value_name = "FILE")]
    pub(super) sign: Option<PathBuf>,
    /// Take the certificate for the key that waits here; - reads standard input
    #[arg(long, group = "what", value_name = "FILE")]
    pub(super) install: Option<PathBuf>,
    /// The region that --request or --install is for
    #[arg(long, group = "whom", value_name = "REGION")]
    pub(super) region: Option<RegionName>,
    /// The node of --region that it is for
    #[arg(long, requires = "region", value_name = "NODE")]
    pub(super) node: Option<NodeName>,
    /// The witness that it is for
    #[arg(long, group = "whom", value_name = "WITNESS")]
    pub(super) witness: Option<RegionName>,
    /// An operator, a person or a machine that orders things: alone, its certificate is made here
    #[arg(long, group = "whom", value_name = "NAME")]
    pub(super) operator: Option<Holder>,
    /// A monitor, which may see the status and nothing else: alone, its certificate is made here
    #[arg(long, group = "whom", value_name = "NAME")]
    pub(super) monitor: Option<Holder>,
    /// With --request, the cluster's id, where no cluster.id is here: 32 hexadecimal digits
    #[arg(long, requires = "request", value_name = "ID")]
    pub(super) cluster_id: Option<ClusterId>,
    /// With --install, the file of the authorities to trust from then on
    #[arg(long, requires = "install", value_name = "FILE")]
    pub(super) trust: Option<PathBuf>,
    /// Show the certificates that are here: whose, until when, and what to deny them by
    #[arg(long, group = "what")]
    pub(super) list: bool,
    /// With --list, for programs
    #[arg(long, requires = "list")]
    pub(super) json: bool,
}

#[derive(Subcommand)]
pub(super) enum PasswordAction {
    /// Make a new one, give it to the primary's PostgreSQL, and bring it to every region's files
    #[command(after_help = help::PASSWORD_ROTATE)]
    Rotate {
        /// For programs
        #[arg(long)]
        json: bool,
    },
}

#[derive(Subcommand)]
pub(super) enum KeysAction {
    /// Show the keys, and how many segments need each; on the host of the region's daemon
    List {
        /// The region
        #[arg(long)]
        region: RegionName,
        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// Make a key, the first or another one, and seal new segments with it; on the host of the region's
    /// daemon
    #[command(after_help = help::KEYS_ROTATE)]
    Rotate {
        /// The region
        #[arg(long)]
        region: RegionName,
    },
}

#[derive(Subcommand)]
pub(super) enum ReplicaAction {
    /// Show the nodes of every region: state, position, lag
    List {
        /// Only this region's
        #[arg(long)]
        region: Option<RegionName>,
        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// Add a node with a replica to a region: to the file, to its daemon, and on this machine its process
    Add {
        /// The region
        #[arg(long)]
        region: RegionName,
        /// The node, a name that the region does not have yet
        #[arg(long)]
        node: NodeName,
        /// Where applications reach its PostgreSQL
        #[arg(long, value_name = "ADDRESS:PORT")]
        postgres: SocketAddr,
        /// Where it takes in clients that read
        #[arg(long, value_name = "ADDRESS:PORT")]
        reader_endpoint: Option<SocketAddr>,
        /// How long it may take to stream
        #[arg(long, default_value = "10m", value_parser = duration, value_name = "DURATION")]
        timeout: Duration,
    },
    /// Stop a node that is a replica, and remove it from the file; its data stay where they are
    Remove {
        /// The region
        #[arg(long)]
        region: RegionName,
        /// The node
        #[arg(long)]
        node: NodeName,
        /// How long it may take to stop
        #[arg(long, default_value = "60s", value_parser = duration, value_name = "DURATION")]
        timeout: Duration,
    },
}

#[derive(Subcommand)]
pub(super) enum VotersAction {
    /// Give a region or witness of the file a vote
    Add {
        /// The region or witness
        name: RegionName,
    },
    /// Take its vote from a region or witness
    Remove {
        /// The region or witness
        name: RegionName,
    },
}

#[derive(Subcommand)]
pub(super) enum LostAction {
    /// What is kept, by region, on this machine
    List,
    /// The transactions in it: how and when each ended, and the relations it changed
    #[command(after_help = help::LOST_SHOW)]
    Show {
        /// The directory, as `list` prints it
        directory: PathBuf,
        /// Every record, as pg_waldump prints it
        #[arg(long)]
        records: bool,
    },
    /// Delete it
    Discard {
        /// The directory, as `list` prints it
        directory: PathBuf,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Subcommand)]
pub(super) enum VolumeAction {
    /// Show the copies: where they are, how far, what is wrong with them
    Status {
        /// The region; the primary's if none is named
        #[arg(long)]
        region: Option<RegionName>,
        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// Read every copy back against its checksums, and mend what rotted from the others
    Scrub {
        /// The region; the primary's if none is named
        #[arg(long)]
        region: Option<RegionName>,
        /// Only this copy, such as b1
        #[arg(long)]
        copy: Option<CopyId>,
        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// Open a volume of which three copies are left and the others are lost for good: on your word, that no
    /// fourth was lost since it was whole
    Recover {
        /// The region
        #[arg(long)]
        region: RegionName,
    },
    /// Show what one copy's directory on this machine holds; changes nothing, and asks no daemon
    Inspect {
        /// The directory, such as <data>/regions/us-east/volume/az-a/a1
        directory: PathBuf,
        /// Every record, not only the segments
        #[arg(long)]
        records: bool,
        /// For programs: a line of JSON for each segment or record
        #[arg(long)]
        json: bool,
    },
}

fn duration(text: &str) -> Result<Duration, String> {
    units::parse_duration(text).ok_or_else(|| "a duration, such as 30s or 10m".into())
}

/// How long a certificate is valid: shorter than a minute it would end before it is copied.
fn lifetime(text: &str) -> Result<Duration, String> {
    match units::parse_duration(text) {
        Some(long) if long >= Duration::from_secs(60) => Ok(long),
        _ => Err("a minute or more, such as 1h or 2160h".into()),
    }
}

fn endpoint(text: &str) -> Result<Endpoint, String> {
    Endpoint::ALL.into_iter().find(|kind| kind.as_str() == text).ok_or_else(|| "writer or reader".into())
}

fn cut(text: &str) -> Result<Cut, String> {
    Cut::named(text).ok_or_else(|| format!("one of {}", Cut::ALL.map(Cut::name).join(", ")))
}

fn bytes(text: &str) -> Result<u64, String> {
    units::parse_bytes(text).filter(|bytes| *bytes > 0).ok_or_else(|| "a size, such as 64MiB".into())
}

/// Where hosts keep what the service has there.
pub(super) const SHARED: &str = "/var/lib/replicator";

/// The file of a host's service.
const SHARED_FILE: &str = "/etc/replicator/regions.toml";

/// The file of whoever stands beside it.
const FILE: &str = "regions.toml";

/// Of a zone or a node: its region, where that was typed with it, and its name.
pub(super) type InRegion<T> = (Option<RegionName>, T);

/// `b`, or `us-east.b`.
fn zone(text: &str) -> Result<InRegion<char>, String> {
    let (region, name) = in_region(text)?;
    match name {
        "a" | "b" | "c" => Ok((region, name.chars().next().unwrap_or('a'))),
        _ => Err(format!("'{name}' is not a zone: a, b or c")),
    }
}

/// `n1`, or `us-east.n1`.
fn node(text: &str) -> Result<InRegion<NodeName>, String> {
    let (region, name) = in_region(text)?;
    Ok((region, name.parse::<NodeName>().map_err(|e| e.to_string())?))
}

fn in_region(text: &str) -> Result<InRegion<&str>, String> {
    match text.split_once('.') {
        Some((region, name)) => Ok((Some(region.parse::<RegionName>().map_err(|e| e.to_string())?), name)),
        None => Ok((None, text)),
    }
}

/// What `run` is to run: of which region, and what of it, where not its daemon.
///
/// # Errors
/// When a zone or node has no region, or two.
pub(super) fn what_to_run(
    region: Option<RegionName>,
    zone: Option<InRegion<char>>,
    node: Option<InRegion<NodeName>>,
) -> Result<(RegionName, Option<Apart>), String> {
    let zone = zone.map(|(of, zone)| (of, Apart::Zone(zone)));
    let (with, apart) = match zone.or(node.map(|(of, node)| (of, Apart::Node(node)))) {
        Some((with, apart)) => (with, Some(apart)),
        None => (None, None),
    };
    match (region, with) {
        (Some(region), None) | (None, Some(region)) => Ok((region, apart)),
        (Some(one), Some(other)) => {
            Err(format!("--region says {one}, and beside it stands {other}: say one"))
        }
        (None, None) => Err("of which region? --region us-east, or with the zone or node: us-east.b".into()),
    }
}

impl Places {
    /// The file that names the regions.
    pub(super) fn config(&self) -> &Path {
        match &self.config {
            Some(config) => config,
            None if !Path::new(FILE).exists() && Path::new(SHARED_FILE).exists() => Path::new(SHARED_FILE),
            None => Path::new(FILE),
        }
    }

    /// Where everything lies: where `--data` says, or in the user's own place for such data.
    pub(super) fn layout(&self, config: &Config) -> Result<Layout, Box<dyn Error>> {
        let data = match &self.data {
            Some(data) => std::path::absolute(data)?,
            None => default_data()?.join(&config.cluster),
        };
        Ok(Layout::new(data).showing(self.identity.clone()))
    }
}

fn default_data() -> Result<PathBuf, Box<dyn Error>> {
    let own = nix::unistd::Uid::effective();
    if own.is_root() || std::fs::metadata(SHARED).is_ok_and(|found| found.uid() == own.as_raw()) {
        return Ok(SHARED.into());
    }
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state"));
    let base = state.or_else(home).ok_or("there is no home directory; name a place with --data")?;
    Ok(base.join("replicator"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_arguments_contradict_each_other_nowhere() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_zone_or_node_is_run_by_one_word_with_its_region_or_by_two() {
        let run = |line: &str| {
            let typed = Cli::try_parse_from(format!("replicator run {line}").split(' '));
            let Command::Run { region, az, node, .. } = typed.map_err(|e| e.to_string())?.command else {
                return Err("another command".into());
            };
            what_to_run(region, az, node)
        };
        let east: RegionName = "us-east".parse().unwrap();
        let node = Some(Apart::Node("n1".parse().unwrap()));
        for (line, apart) in [
            ("--region us-east", None),
            ("--region us-east --az b", Some(Apart::Zone('b'))),
            ("--az us-east.b", Some(Apart::Zone('b'))),
            ("--region us-east --node n1", node.clone()),
            ("--node us-east.n1", node),
        ] {
            assert_eq!(run(line), Ok((east.clone(), apart)), "{line}");
        }
        for (line, words) in [
            ("--az b", "of which region?"),
            ("--region us-east --az eu-west.b", "say one"),
            ("--az us-east.d", "'d' is not a zone"),
            ("--az us-east.bb", "'bb' is not a zone"),
            ("--az US.b", "'US' is not a region name"),
            ("--node us-east.N", "is not a node name"),
            ("--node us-east.", "is not a node name"),
            ("--own-process a", "--region"),
        ] {
            let said = run(line).unwrap_err();
            assert!(said.contains(words), "{line}: {said}");
        }
    }

    #[test]
    fn what_belongs_together_is_asked_for_together() {
        let typed = |line: &str| Cli::try_parse_from(line.split(' ')).is_ok();
        assert!(typed("replicator status --check --max-lag 5s"));
        assert!(!typed("replicator status --check --watch") && !typed("replicator status --max-lag soon"));
        assert!(typed("replicator url --writer") && typed("replicator url --region a"));
        assert!(typed("replicator certs --operator ann") && typed("replicator certs --request --monitor m"));
        assert!(!typed("replicator certs --renew --sign x") && !typed("replicator certs --trust ca.pem"));
        assert!(!typed("replicator certs --request --region a --witness w"));
        assert!(typed("replicator certs --install - --region a --node n1 --trust ca.pem"));
        assert!(typed("replicator token --role app --for 15m --out t"));
        assert!(
            !typed("replicator token --role app --for 2d --out t")
                && !typed("replicator token --role app --for 15m")
        );
        assert!(typed("replicator url --reader") && !typed("replicator url --reader --writer"));
        assert!(
            typed("replicator url --region a --endpoint writer") && typed("replicator url --endpoint reader")
        );
        assert!(
            !typed("replicator url --endpoint both") && !typed("replicator url --writer --endpoint writer")
        );
        assert!(!typed("replicator url") && !typed("replicator url --writer --region a"));
        assert!(
            !typed("replicator drill --region a --yes") && typed("replicator drill --region a --full --yes")
        );
        assert!(typed("replicator load --since 7d --by statement") && !typed("replicator load --by color"));
        assert!(!typed("replicator promote --region a --mode sideways"));
        assert!(typed("replicator promote --region a --node n1 --dry-run"));
        assert!(typed("replicator promote --region a --node home") && !typed("replicator promote --node n1"));
        assert!(!typed("replicator promote --region a --node n1 --mode failover"));
        assert!(!typed("replicator run --region a --az d"));
    }
}
