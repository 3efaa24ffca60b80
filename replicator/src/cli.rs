//! The command line. Data goes to standard output and everything else to standard error. Exit status: 0 done, 1 failed,
//! 2 usage.

use std::error::Error;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use proto::RegionName;
use proto::messages::{
    ClusterStatus, ClusterStatusRequest, PromoteRequest, RecordRequest, UrlRequest, VolumeRequest,
    control_request, control_response,
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use transport::{Endpoint, Identity};
use volume::quorum::CopyId;

use crate::config::{Config, RegionConfig};
use crate::drill::{Drill, report::Report};
use crate::layout::Layout;
use crate::{client, inspect, local, region, render, units, witness, zone};

/// How long a daemon may take to answer a command.
const PATIENCE: Duration = Duration::from_secs(3);

/// How long a promotion may take; each of its steps has a deadline of its own.
const PROMOTION_PATIENCE: Duration = Duration::from_secs(90);

/// How long reading a volume back may take.
const SCRUB_PATIENCE: Duration = Duration::from_secs(3600);

/// How often a command looks how far a promotion is.
const STEPS: Duration = Duration::from_millis(250);

/// How often `status --watch` asks.
const WATCH: Duration = Duration::from_secs(1);

#[derive(Parser)]
#[command(
    name = "replicator",
    version,
    about = "Multi-region replication for stock PostgreSQL",
    after_help = "Begin with:\n  replicator up                         every region of regions.toml, on this machine\n  \
                  replicator status --watch             how far each region is\n  \
                  psql \"$(replicator url --region us-east)\"\n\n\
                  The data directory is /var/lib/replicator/<cluster> for root, and ~/.local/state/replicator/<cluster>\n\
                  for others. Commands reach daemons over mutual TLS, with the operator's certificate in it."
)]
struct Cli {
    #[command(flatten)]
    places: Places,
    #[command(subcommand)]
    command: Command,
}

#[derive(Args)]
struct Places {
    /// The file that names the regions
    #[arg(
        long,
        global = true,
        env = "REPLICATOR_CONFIG",
        default_value = "regions.toml",
        value_name = "FILE"
    )]
    config: PathBuf,
    /// Where regions keep their data on this machine
    #[arg(long, global = true, env = "REPLICATOR_DATA", value_name = "DIR")]
    data: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Start every region of the file on this machine, and show them
    #[command(after_help = "Ctrl-C stops every region cleanly; the next `up` goes on where it was.")]
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
        after_help = "Alone, it holds the region's six copies, two in each of the zones a, b and c. Zones that regions.toml\n\
                            names in `own_process` run by themselves, anywhere: replicator run --region us-east --az b"
    )]
    Run {
        /// The region or witness
        #[arg(long)]
        region: RegionName,
        /// Only this zone of it: its two copies join the region's daemon
        #[arg(long, value_name = "ZONE", value_parser = ["a", "b", "c"])]
        az: Option<String>,
        /// Zones that run by themselves, besides those of the file
        #[arg(long, value_name = "ZONES", value_delimiter = ',', value_parser = ["a", "b", "c"])]
        own_process: Vec<String>,
    },
    /// Show or check a region's volume: its six copies
    Volume {
        #[command(subcommand)]
        action: VolumeAction,
    },
    /// Show every region: role, state, positions, lag
    #[command(
        after_help = "Works against any region's daemon, and says what it cannot reach. Lags are measured in the\n\
                            primary's clock. Behind: redo not yet applied. With --json, one line of JSON each time."
    )]
    Status {
        /// Ask again every second
        #[arg(long)]
        watch: bool,
        /// For programs
        #[arg(long)]
        json: bool,
        /// Ask this region's daemon instead of the first that answers
        #[arg(long)]
        region: Option<RegionName>,
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
        after_help = "A switchover loses nothing; the primary must be reachable. Before anything is touched it is checked that the region streams and is near.\n\
                            Then the writer stops, its last record is applied over there, and the region takes writes; the old primary\n\
                            follows as a secondary, without a rebuild. If a step cannot finish in time, the old primary goes on. Clients\n\
                            that connect with `replicator url --writer` find the new writer by themselves. Once it has begun, a\n\
                            promotion goes on, or is rolled back, without this command: whichever daemon is alive sees to that.\n\n\
                            A failover (--mode failover) needs a majority of the regions and witnesses, without the old primary. It waits\n\
                            until that can acknowledge nothing any more (`lease`), gathers the redo that any survivor has, and says what\n\
                            may be lost. The old primary, when it is back, keeps what only it had aside (`replicator lost`), and follows."
    )]
    Promote {
        /// The region that shall be the primary
        #[arg(long)]
        region: RegionName,
        /// switchover: by agreement with the primary. failover: the primary is gone
        #[arg(long, default_value = "switchover", value_parser = ["switchover", "failover"])]
        mode: String,
        /// Your word that the old primary does not run: nobody is asked or waited for. Needed with two regions
        #[arg(long, requires = "mode")]
        old_primary_is_down: bool,
        /// Only say whether it can succeed; changes nothing
        #[arg(long)]
        dry_run: bool,
        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// Rehearse a region's promotion: on a clone, while everything goes on; or for real, there and back
    #[command(
        after_help = "On the region's own machine. A clone of the standby's data gets redo out of the region's volume up to a moment of the\n\
                            primary, is promoted where nobody sees it, is checked (it takes writes, pg_amcheck, every row against the primary\n\
                            at that moment), timed and removed. Replication goes on; writers of the primary wait once, for as long as the\n\
                            transactions take that just write, at most 0.2 s. Exit status 1 when a check fails or could not be done.\n\n\
                            --full promotes the region for real, and then the old primary again: writes stop twice for a moment.\n\n\
                            For the audit file:  replicator drill --region eu-west --markdown > drill.md"
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
        after_help = "It holds the superuser's password. For example:\n  psql \"$(replicator url --region us-east)\""
    )]
    Url {
        /// The region
        #[arg(long, required_unless_present = "writer")]
        region: Option<RegionName>,
        /// All regions in one string: clients find the one that takes writes
        #[arg(long, conflicts_with = "region")]
        writer: bool,
    },
    /// Check the file, and say everything that is wrong with it
    Check,
    /// Make the cluster's certificate authority and the certificates of its regions and operator
    #[command(
        after_help = "`up` does this by itself. To run regions on other machines, copy <data>/regions/<region>/identity\n\
                            to each. The authority's key, <data>/authority/ca.key, belongs on none of them."
    )]
    Certs {
        /// Make new certificates also where there are some
        #[arg(long)]
        renew: bool,
    },
}

#[derive(Subcommand)]
enum LostAction {
    /// What is kept, by region, on this machine
    List,
    /// The transactions in it: how and when each ended, and the relations it changed
    #[command(after_help = "Relations are printed as tablespace/database/file. In that database, \
                            SELECT pg_filenode_relation(tablespace, file) says which one that is (0 for the default tablespace, 1663).")]
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
enum VolumeAction {
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

fn bytes(text: &str) -> Result<u64, String> {
    units::parse_bytes(text).filter(|bytes| *bytes > 0).ok_or_else(|| "a size, such as 64MiB".into())
}

type AnyResult = Result<(), Box<dyn Error>>;

/// Runs the program.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_env("REPLICATOR_LOG").unwrap_or_else(|_| {
        // A command's own words are its output; the daemon's are its log.
        tracing_subscriber::EnvFilter::new(if matches!(cli.command, Command::Run { .. }) {
            "info"
        } else {
            "error"
        })
    });
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => return fail(&e),
    };
    match runtime.block_on(cli.run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => fail(&*e),
    }
}

fn fail(error: &dyn Error) -> ExitCode {
    eprintln!("replicator: {error}");
    ExitCode::from(1)
}

impl Cli {
    async fn run(self) -> AnyResult {
        let config = Config::load(&self.places.config)?;
        let layout = self.places.layout(&config)?;
        match self.command {
            Command::Check => {
                println!("{}: {} regions, no mistakes", self.places.config.display(), config.regions.len());
                Ok(())
            }
            Command::Certs { renew } => {
                local::certificates(&config, &layout, renew)?;
                println!("{}", layout.data().display());
                Ok(())
            }
            Command::Run { region, az: Some(zone), .. } => {
                let zone = zone.chars().next().unwrap_or('a');
                Ok(zone::run(config, layout, region, zone, on_signal()?).await?)
            }
            Command::Run { region, az: None, own_process } => {
                if let Some(own) = config.witnesses.iter().find(|own| own.name == region).cloned() {
                    return Ok(witness::run(config, layout, own, on_signal()?).await?);
                }
                let mut config = config;
                for own in config.regions.iter_mut().filter(|own| own.name == region) {
                    own.own_process.extend(own_process.iter().filter_map(|zone| zone.chars().next()));
                }
                Ok(region::run(config, layout, region, on_signal()?).await?)
            }
            Command::Up { detach, zones, timeout } => {
                let mut config = config;
                if zones {
                    config.regions.iter_mut().for_each(|own| own.own_process = vec!['a', 'b', 'c']);
                }
                let stop = on_signal()?;
                let file = self.places.config.canonicalize()?;
                Ok(local::up(&config, &file, &layout, detach, timeout, stop).await?)
            }
            Command::Volume { action } => match action {
                VolumeAction::Status { region, json } => {
                    let asker = Asker::new(config, &layout)?;
                    asker.show_volume(region, VolumeRequest::default(), json).await
                }
                VolumeAction::Scrub { region, copy, json } => {
                    let copy = copy.map(|copy| copy.to_string()).unwrap_or_default();
                    let asker = Asker::new(config, &layout)?;
                    asker.show_volume(region, VolumeRequest { scrub: true, copy }, json).await
                }
                VolumeAction::Inspect { directory, records, json } => {
                    inspect::show(&directory, records, json)
                }
            },
            Command::Down { timeout } => Ok(local::down(&config, &layout, timeout).await?),
            Command::Status { watch, json, region } => {
                let asker = Asker::new(config, &layout)?;
                asker.show_status(watch, json, region).await
            }
            Command::Url { region, .. } => {
                println!("{}", Asker::new(config, &layout)?.url(region.as_ref()).await?);
                Ok(())
            }
            Command::Promote { region, mode, old_primary_is_down, dry_run, json } => {
                let request = PromoteRequest { dry_run, failover: mode == "failover", old_primary_is_down };
                Asker::new(config, &layout)?.promote(&region, request, json).await
            }
            Command::History { json } => show_history(&Asker::new(config, &layout)?.record().await?, json),
            Command::Drill { region, full, yes, copy_rate, json, markdown } => {
                let drill = Drill::new(config, &layout, &region, copy_rate)?;
                let report = if full {
                    if !yes {
                        confirm(&format!(
                            "{region} will lead, and then the present primary again; writes stop twice."
                        ))?;
                    }
                    drill.full(&|what| eprintln!("{what}")).await?
                } else {
                    drill.rehearse(&|what| eprintln!("{what}"), on_signal()?).await?
                };
                print_report(&report, json, markdown)
            }
            Command::Lost { action } => lost(&config, &layout, action),
        }
    }
}

fn confirm(what: &str) -> AnyResult {
    eprint!("{what} Go on? [y/N] ");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    if answer.trim() == "y" { Ok(()) } else { Err("nothing was done".into()) }
}

fn print_report(report: &Report, json: bool, markdown: bool) -> AnyResult {
    match (json, markdown) {
        (true, _) => println!("{}", report.json()),
        (_, true) => print!("{}", report.markdown()),
        _ => print!("{}", report.text()),
    }
    if report.passed { Ok(()) } else { Err("the drill has not passed: its checks say why".into()) }
}

/// The promotions that are over, oldest first.
fn show_history(record: &coordination::Record, json: bool) -> AnyResult {
    for past in &record.history {
        let told = region::promotion::told(past);
        if json {
            println!("{}", render::promotion_json(&told));
            continue;
        }
        let at = time::OffsetDateTime::from_unix_timestamp(past.at_us / 1_000_000)?;
        let at = at.format(&time::format_description::well_known::Rfc3339)?;
        let end = match &past.rolled_back {
            Some(why) if past.began() => format!("from {}  given up: {why}", past.promotion.fork_lsn),
            Some(why) => format!("not done: {why}"),
            None => {
                let lost = told.lost_to_lsn.saturating_sub(told.fork_lsn);
                format!("from {}  lost {}", past.promotion.fork_lsn, units::show_bytes(lost))
            }
        };
        println!("{at}  epoch {:<4} {:10}  {} to {}  {end}", told.epoch, told.mode, told.from, told.to);
    }
    Ok(())
}

fn show_transactions(transactions: &[region::lost::Transaction]) {
    for region::lost::Transaction { id, end, records, relations } in transactions {
        let end = end.as_deref().unwrap_or("its end is not in there");
        let relations: Vec<&str> = relations.iter().map(String::as_str).collect();
        println!("transaction {id}  {end}  {records} records  relations: {}", relations.join(", "));
    }
    println!("{} transactions; --records prints every record", transactions.len());
}

/// Redo that failovers cut off, in the regions whose directories are on this machine.
fn lost(config: &Config, layout: &Layout, action: LostAction) -> AnyResult {
    let mut kept = Vec::new();
    for own in &config.regions {
        kept.extend(
            region::lost::list(&layout.region(&own.name))?.into_iter().map(|found| (&own.name, found)),
        );
    }
    let find = |directory: &PathBuf| {
        let found = kept.iter().find(|(_, (path, _))| path == directory).map(|(_, (_, lost))| lost.clone());
        found.ok_or_else(|| {
            format!("{}: nothing is kept there; see `replicator lost list`", directory.display())
        })
    };
    match action {
        LostAction::List if kept.is_empty() => println!("no redo was cut off in the regions on this machine"),
        LostAction::List => {
            for (name, (path, lost)) in &kept {
                let size = units::show_bytes(lost.bytes);
                println!(
                    "{name}  epoch {}  {} to {}  {size}  {}",
                    lost.epoch,
                    lost.from_lsn,
                    lost.to_lsn,
                    path.display()
                );
            }
        }
        LostAction::Show { directory, records } => {
            let lost = find(&directory)?;
            let program =
                postgres::installation::Installation::find(config.bin_dir.as_deref())?.program("pg_waldump");
            let dump = std::process::Command::new(program)
                .arg("--path")
                .arg(&directory)
                .args([
                    "--timeline",
                    &lost.timeline.to_string(),
                    "--start",
                    &lost.from_lsn,
                    "--end",
                    &lost.to_lsn,
                ])
                .stderr(std::process::Stdio::inherit())
                .output()?;
            let printed = String::from_utf8_lossy(&dump.stdout);
            if records {
                print!("{printed}");
            } else {
                show_transactions(&region::lost::transactions(&printed));
            }
            if !dump.status.success() {
                return Err("pg_waldump could not read all of it: what it printed is what is whole".into());
            }
        }
        LostAction::Discard { directory, yes } => {
            let lost = find(&directory)?;
            if !yes {
                eprint!("delete redo from {} to {} for good? [y/N] ", lost.from_lsn, lost.to_lsn);
                let mut answer = String::new();
                std::io::stdin().read_line(&mut answer)?;
                if answer.trim() != "y" {
                    return Err("nothing was deleted".into());
                }
            }
            std::fs::remove_dir_all(&directory)?;
        }
    }
    Ok(())
}

impl Places {
    fn layout(&self, config: &Config) -> Result<Layout, Box<dyn Error>> {
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

/// Cancelled by the first SIGINT or SIGTERM. A second one ends the process at once.
fn on_signal() -> std::io::Result<CancellationToken> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let stop = CancellationToken::new();
    let stopping = stop.clone();
    tokio::spawn(async move {
        for second in [false, true] {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if second {
                std::process::exit(1);
            }
            stopping.cancel();
        }
    });
    Ok(stop)
}

/// An operator who asks daemons.
#[derive(Debug)]
pub struct Asker {
    config: Config,
    layout: Layout,
    endpoint: Endpoint,
    identity: Identity,
}

impl Asker {
    pub(crate) fn new(config: Config, layout: &Layout) -> Result<Asker, Box<dyn Error>> {
        let identity = Identity::load(&layout.operator())?;
        let endpoint = Endpoint::bind(None, &identity)?;
        Ok(Asker { config, layout: layout.clone(), endpoint, identity })
    }

    /// The status as the first daemon that answers knows it.
    pub(crate) async fn status(&self, region: Option<&RegionName>) -> Result<ClusterStatus, Box<dyn Error>> {
        let body = control_request::Body::ClusterStatus(ClusterStatusRequest {});
        match self.ask(region, body).await? {
            control_response::Body::ClusterStatus(mut status) => {
                for row in &mut status.regions {
                    self.add_passfile(row);
                }
                Ok(status)
            }
            _ => Err("the daemon gave another answer".into()),
        }
    }

    /// On the region's own machine, psql finds the password by itself.
    fn add_passfile(&self, row: &mut proto::messages::RegionStatus) {
        let passfile = row.name.parse().map(|name| self.layout.region(&name).passfile());
        if let Ok(passfile) = passfile
            && passfile.exists()
        {
            row.url = format!("{}?passfile={}", row.url, passfile.display());
        }
    }

    async fn ask(
        &self,
        region: Option<&RegionName>,
        body: control_request::Body,
    ) -> Result<control_response::Body, Box<dyn Error>> {
        let mut answers = Vec::new();
        let asked: Vec<&RegionConfig> =
            self.config.regions.iter().filter(|r| region.is_none_or(|name| *name == r.name)).collect();
        // All at once, and the first answer counts: a region that is down must not hold up the command.
        let mut asking = JoinSet::new();
        for region in asked {
            let (endpoint, cluster_id) = (self.endpoint.clone(), self.identity.cluster_id);
            let (region, body) = (region.clone(), body.clone());
            asking.spawn(async move {
                let answer = client::request(&endpoint, cluster_id, &region.place(), body, PATIENCE).await;
                answer.map_err(|e| format!("\n  {}: {e}", region.name))
            });
        }
        while let Some(asked) = asking.join_next().await {
            match asked? {
                Ok(answer) => return Ok(answer),
                Err(e) => answers.push(e),
            }
        }
        if answers.is_empty() {
            return Err("there is no such region in the file".into());
        }
        Err(format!("no daemon answered; are the regions up?{}", answers.concat()).into())
    }

    /// The connection string of a region, or of whichever takes writes.
    pub(crate) async fn url(&self, region: Option<&RegionName>) -> Result<String, Box<dyn Error>> {
        if let Some(region) = region.filter(|region| self.config.region(region).is_none()) {
            return Err(format!("there is no region '{region}' in the file").into());
        }
        let asked = region.map_or_else(|| self.config.regions[0].name.to_string(), ToString::to_string);
        let body = control_request::Body::Url(UrlRequest { region: asked });
        let control_response::Body::Url(url) = self.ask(None, body).await? else {
            return Err("the daemon gave another answer".into());
        };
        if region.is_some() {
            return Ok(url);
        }
        // The password is the same in every region.
        let (user, rest) = url.split_once('@').ok_or("the daemon gave a string without a host")?;
        let database = rest.split_once('/').map_or("postgres", |(_, database)| database);
        let hosts: Vec<String> = self.config.regions.iter().map(|own| own.postgres.to_string()).collect();
        Ok(format!("{user}@{}/{database}?target_session_attrs=read-write", hosts.join(",")))
    }

    async fn promote(&self, region: &RegionName, request: PromoteRequest, json: bool) -> AnyResult {
        let promotion =
            self.order(region, request).await.map_err(|e| format!("{region} was not promoted: {e}"))?;
        match json {
            true => println!("{}", render::promotion_json(&promotion)),
            false => print!("{}", render::promotion(&promotion)),
        }
        Ok(())
    }

    /// Orders a region to lead, and tells each step.
    pub(crate) async fn order(
        &self,
        region: &RegionName,
        request: PromoteRequest,
    ) -> Result<proto::messages::Promotion, Box<dyn Error>> {
        let own =
            self.config.region(region).ok_or_else(|| format!("there is no region '{region}' in the file"))?;
        let place = own.place();
        let body = control_request::Body::Promote(request);
        let asking =
            client::request(&self.endpoint, self.identity.cluster_id, &place, body, PROMOTION_PATIENCE);
        let asked = tokio::select! {
            asked = asking => asked,
            never = self.tell_steps(own) => never,
        };
        match asked? {
            control_response::Body::Promotion(promotion) => Ok(promotion),
            _ => Err("the daemon gave another answer".into()),
        }
    }

    /// Says each step of the promotion in progress as it is recorded, for ever.
    async fn tell_steps<T>(&self, own: &RegionConfig) -> T {
        let place = own.place();
        let (mut told, mut before) = (0, None);
        loop {
            tokio::time::sleep(STEPS).await;
            let body = control_request::Body::Record(RecordRequest {});
            let asked =
                client::request(&self.endpoint, self.identity.cluster_id, &place, body, PATIENCE).await;
            let Ok(control_response::Body::Record(record)) = asked else { continue };
            let Ok(record) = serde_json::from_slice::<coordination::Record>(&record) else { continue };
            let Some(promotion) = record.promotion else { continue };
            if before != Some(promotion.id) {
                (told, before) = (0, Some(promotion.id));
                eprintln!("{} to {}, coordinated by {}", promotion.mode, promotion.to, promotion.coordinator);
            }
            for step in promotion.steps.iter().skip(told) {
                eprintln!("  {:6} ms  {}", step.us / 1000, step.name);
            }
            told = promotion.steps.len();
        }
    }

    /// The record of who leads, as the first daemon that answers knows it.
    async fn record(&self) -> Result<coordination::Record, Box<dyn Error>> {
        match self.ask(None, control_request::Body::Record(RecordRequest {})).await? {
            control_response::Body::Record(record) => Ok(serde_json::from_slice(&record)?),
            _ => Err("the daemon gave another answer".into()),
        }
    }

    async fn show_volume(&self, region: Option<RegionName>, request: VolumeRequest, json: bool) -> AnyResult {
        let region = match region {
            Some(region) => region,
            None => self.status(None).await?.primary.parse()?,
        };
        let own = self
            .config
            .region(&region)
            .ok_or_else(|| format!("there is no region '{region}' in the file"))?;
        // A volume is read back as fast as its disks allow.
        let patience = if request.scrub { SCRUB_PATIENCE } else { PATIENCE };
        let spinner = request.scrub.then(|| {
            let spinner = indicatif::ProgressBar::new_spinner().with_message("reading every copy back");
            spinner.enable_steady_tick(Duration::from_millis(200));
            spinner
        });
        let body = control_request::Body::Volume(request);
        let asked =
            client::request(&self.endpoint, self.identity.cluster_id, &own.place(), body, patience).await;
        if let Some(spinner) = spinner {
            spinner.finish_and_clear();
        }
        match asked.map_err(|e| format!("{region}: {e}"))? {
            control_response::Body::Volume(view) if json => println!("{}", render::volume_json(&view)),
            control_response::Body::Volume(view) => print!("{}", render::volume_table(&view)),
            _ => return Err("the daemon gave another answer".into()),
        }
        Ok(())
    }

    async fn show_status(&self, watch: bool, json: bool, region: Option<RegionName>) -> AnyResult {
        let redraw = watch && !json && std::io::stdout().is_terminal();
        loop {
            let text = match self.status(region.as_ref()).await {
                Ok(status) if json => render::json(&status) + "\n",
                Ok(status) => render::table(&status),
                Err(e) if watch && !json => format!("{e}\n"),
                Err(e) => return Err(e),
            };
            let mut out = std::io::stdout().lock();
            if redraw {
                // Home, each line to its end, and what is below.
                out.write_all(format!("\x1b[H{}\x1b[J", text.replace('\n', "\x1b[K\n")).as_bytes())?;
            } else {
                out.write_all(text.as_bytes())?;
            }
            out.flush()?;
            drop(out);
            if !watch {
                return Ok(());
            }
            tokio::time::sleep(WATCH).await;
        }
    }
}
