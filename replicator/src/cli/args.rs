//! What may be typed: commands, their arguments, and their help. Nothing is done here.

use std::error::Error;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use proto::{NodeName, RegionName};
use volume::quorum::CopyId;

use super::help;
use crate::config::Config;
use crate::endpoint::Kind as Endpoint;
use crate::layout::Layout;
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
    /// The file that names the regions
    #[arg(
        long,
        global = true,
        env = "REPLICATOR_CONFIG",
        default_value = "regions.toml",
        value_name = "FILE"
    )]
    pub(super) config: PathBuf,
    /// Where regions keep their data on this machine
    #[arg(long, global = true, env = "REPLICATOR_DATA", value_name = "DIR")]
    pub(super) data: Option<PathBuf>,
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
        #[arg(long)]
        region: RegionName,
        /// Only this zone of it: its two copies join the region's daemon
        #[arg(long, value_name = "ZONE", value_parser = ["a", "b", "c"])]
        az: Option<String>,
        /// Only this node of it: the copies of its zone, and its replica
        #[arg(long, value_name = "NODE", conflicts_with = "az")]
        node: Option<NodeName>,
        /// Zones that run by themselves, besides those of the file
        #[arg(long, value_name = "ZONES", value_delimiter = ',', value_parser = ["a", "b", "c"])]
        own_process: Vec<String>,
        /// What this host becomes in a region where another one may be the head; it starts itself again so
        #[arg(long, hide = true, value_parser = ["head", "node"])]
        part: Option<String>,
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
    /// Make a secondary the primary
    #[command(
        after_help = help::PROMOTE
    )]
    Promote {
        /// The region that shall be the primary
        #[arg(long)]
        region: RegionName,
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
    /// Make the cluster's certificate authority and the certificates of its regions and operator
    #[command(
        after_help = help::CERTS
    )]
    Certs {
        /// Make new certificates also where there are some; by the new authority, if one was made
        #[arg(long)]
        renew: bool,
        /// Make a new authority, which is trusted beside the one that there is: the first of three steps
        #[arg(long, conflicts_with_all = ["renew", "drop_old_authority"])]
        new_authority: bool,
        /// Trust the old authority no more, once every certificate is the new one's: the last step
        #[arg(long, conflicts_with = "renew")]
        drop_old_authority: bool,
    },
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

fn endpoint(text: &str) -> Result<Endpoint, String> {
    Endpoint::ALL.into_iter().find(|kind| kind.as_str() == text).ok_or_else(|| "writer or reader".into())
}

fn cut(text: &str) -> Result<Cut, String> {
    Cut::named(text).ok_or_else(|| format!("one of {}", Cut::ALL.map(Cut::name).join(", ")))
}

fn bytes(text: &str) -> Result<u64, String> {
    units::parse_bytes(text).filter(|bytes| *bytes > 0).ok_or_else(|| "a size, such as 64MiB".into())
}

impl Places {
    /// Where everything lies: where `--data` says, or in the user's own place for such data.
    pub(super) fn layout(&self, config: &Config) -> Result<Layout, Box<dyn Error>> {
        let data = match &self.data {
            Some(data) => std::path::absolute(data)?,
            None => default_data()?.join(&config.cluster),
        };
        Ok(Layout::new(data))
    }
}

fn default_data() -> Result<PathBuf, Box<dyn Error>> {
    if nix::unistd::Uid::effective().is_root() {
        return Ok("/var/lib/replicator".into());
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
    fn what_belongs_together_is_asked_for_together() {
        let typed = |line: &str| Cli::try_parse_from(line.split(' ')).is_ok();
        assert!(typed("replicator status --check --max-lag 5s"));
        assert!(!typed("replicator status --check --watch") && !typed("replicator status --max-lag soon"));
        assert!(typed("replicator url --writer") && typed("replicator url --region a"));
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
        assert!(!typed("replicator run --region a --az d"));
    }
}
