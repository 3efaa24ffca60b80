//! Every region of `regions.toml` on this machine: `up`, `down`, and the certificates they need.

pub mod lock;

use std::io::IsTerminal;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use nix::sys::signal::{Signal, kill};
use postgres::account::Account;
use postgres::installation::Installation;
use proto::messages::ClusterStatus;
use proto::{ClusterId, RegionName};
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;
use transport::identity::CERTIFICATE_DAYS;
use transport::{Authority, IdentityError, Peer};

use crate::cli::Asker;
use crate::config::{Config, RegionConfig, Role};
use crate::layout::{Layout, make_passable};
use crate::region::state::RegionState;
use crate::render;
use lock::DaemonLock;

/// How often the regions are looked at.
const LOOK: Duration = Duration::from_millis(200);

/// Anything that can go wrong here is said in words.
pub type LocalResult = Result<(), Box<dyn std::error::Error>>;

/// Makes the authority and the certificates that are missing; with `renew`, all certificates anew.
///
/// # Errors
/// When a file cannot be written, or the authority's key is elsewhere.
#[allow(clippy::disallowed_methods, reason = "certificates are valid from now on; a cluster's id is drawn")]
pub fn certificates(config: &Config, layout: &Layout, renew: bool) -> Result<(), IdentityError> {
    let io = |source| IdentityError::Io { path: layout.data().display().to_string(), source };
    make_passable(layout.data()).map_err(io)?;
    let now = OffsetDateTime::now_utc();
    let directories = config.voters().into_iter().map(|voter| {
        let identity = layout.region(&voter.name).identity();
        (Peer::Region(voter.name), identity)
    });
    let wanted: Vec<_> = directories
        .chain([(Peer::Operator, layout.operator())])
        .filter(|(_, directory)| renew || !directory.join("cert.pem").exists())
        .collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let authority = if layout.authority().join("ca.key").exists() {
        Authority::open(&layout.authority())?
    } else {
        Authority::create(&layout.authority(), &config.cluster, ClusterId(rand::random()), now)?
    };
    for (peer, directory) in wanted {
        if let Some(parent) = directory.parent() {
            make_passable(parent).map_err(io)?;
        }
        authority.issue(&directory, &peer, now, time::Duration::days(CERTIFICATE_DAYS))?;
    }
    Ok(())
}

/// Starts every region that does not run yet; returns once all stream when `detach`, and shows them until `stop` otherwise.
///
/// # Errors
/// When a region cannot be started, or does not stream in time.
pub async fn up(
    config: &Config,
    file: &Path,
    layout: &Layout,
    detach: bool,
    timeout: Duration,
    stop: CancellationToken,
) -> LocalResult {
    // What would fail in every daemon is said once, here.
    Installation::find(config.bin_dir.as_deref())?;
    let account = Account::resolve(config.os_user.as_deref())?;
    certificates(config, layout, false)?;
    for region in &config.regions {
        let directory = layout.region(&region.name);
        make_passable(directory.directory())?;
        account.check_reach(&directory.pgdata())?;
    }
    let mut daemons = Vec::new();
    for region in &config.regions {
        for zone in region.own_process.iter().copied().map(Some).chain([None]) {
            daemons.push(Daemon::new(&region.name, zone, &region.own_process));
        }
    }
    daemons.extend(config.witnesses.iter().map(|witness| Daemon::new(&witness.name, None, &[])));
    for daemon in &mut daemons {
        make_passable(layout.region(&daemon.name).directory())?;
        daemon.start(file, layout)?;
    }
    let asker = Asker::new(config.clone(), layout)?;
    let coming_up = until_all_stream(&asker, config, layout, &mut daemons);
    let came = tokio::select! {
        () = stop.cancelled() => Err("stopped before every region streamed".into()),
        came = tokio::time::timeout(timeout, coming_up) => match came {
            Ok(came) => came,
            Err(_) if detach => Err(format!(
                "not every region streams after {} s; they go on trying: see `replicator status`", timeout.as_secs()).into()),
            Err(_) => Ok(()),
        },
    };
    if detach {
        if stop.is_cancelled() {
            down(config, layout, Duration::from_secs(90)).await?;
        }
        came?;
        print!("{}", render::table(&asker.status(None).await?));
        return Ok(());
    }
    if let Err(e) = came {
        if !stop.is_cancelled() {
            eprintln!("{e}");
        }
    } else {
        watch(&asker, file, layout, &mut daemons, &stop).await?;
    }
    eprintln!("stopping every region");
    down(config, layout, Duration::from_secs(90)).await
}

/// A region's daemon, one of its zones, or a witness, and the process if this one started it.
struct Daemon {
    name: RegionName,
    zone: Option<char>,
    own_process: Vec<char>,
    child: Option<Child>,
}

fn of_zone(zone: Option<char>) -> String {
    zone.map(|zone| format!(", zone {zone}")).unwrap_or_default()
}

impl Daemon {
    fn new(name: &RegionName, zone: Option<char>, own_process: &[char]) -> Daemon {
        Daemon { name: name.clone(), zone, own_process: own_process.to_vec(), child: None }
    }

    /// Starts it in the background, unless it runs.
    fn start(&mut self, file: &Path, layout: &Layout) -> LocalResult {
        let directory = layout.region(&self.name);
        let (lock, log) = match self.zone {
            Some(zone) => (directory.zone_lock(zone), directory.zone_log(zone)),
            None => (directory.lock(), directory.daemon_log()),
        };
        if let Some(pid) = DaemonLock::holder(&lock)? {
            eprintln!("{}{}: runs already (process {pid})", self.name, of_zone(self.zone));
            return Ok(());
        }
        let log = std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(log)?;
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(["run", "--region", self.name.as_str(), "--config"])
            .arg(file)
            .arg("--data")
            .arg(layout.data());
        match self.zone {
            Some(zone) => drop(command.args(["--az", &zone.to_string()])),
            None if self.own_process.is_empty() => {}
            None => {
                let zones: Vec<String> = self.own_process.iter().map(char::to_string).collect();
                command.args(["--own-process", &zones.join(",")]);
            }
        }
        // A terminal's Ctrl-C is for `up`, which stops the daemons in order.
        let command = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        self.child = Some(command.spawn()?);
        Ok(())
    }

    /// Whether it was started here and has ended as it was told to, such as by `down`.
    fn was_stopped(&mut self) -> bool {
        let status = self.child.as_mut().and_then(|child| child.try_wait().ok()?);
        status.is_some_and(|status| status.success())
    }

    /// The end of its log, if this daemon was started here and has ended.
    fn ended(&mut self, layout: &Layout) -> Option<String> {
        let status = self.child.as_mut()?.try_wait().ok()??;
        let directory = layout.region(&self.name);
        let path = self.zone.map_or_else(|| directory.daemon_log(), |zone| directory.zone_log(zone));
        let log = std::fs::read_to_string(&path).unwrap_or_default();
        let last: Vec<&str> = log.lines().rev().take(3).collect();
        let last: Vec<&str> = last.into_iter().rev().collect();
        Some(format!(
            "{}{}: its process ended ({status}); {} says:\n  {}",
            self.name,
            of_zone(self.zone),
            path.display(),
            last.join("\n  ")
        ))
    }
}

/// Waits until all regions stream, showing seeds as they go.
async fn until_all_stream(
    asker: &Asker,
    config: &Config,
    layout: &Layout,
    daemons: &mut [Daemon],
) -> LocalResult {
    let bars = Bars::new(config, daemons);
    loop {
        if let Some(ended) = daemons.iter_mut().find_map(|d| d.ended(layout)) {
            bars.clear();
            return Err(ended.into());
        }
        // Until the first daemon answers there is nothing to show.
        if let Ok(status) = asker.status(None).await {
            bars.show(&status);
            if render::all_stream(&status) {
                bars.clear();
                return Ok(());
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Shows the table until `stop`, or until all were stopped, and starts again what died.
async fn watch(
    asker: &Asker,
    file: &Path,
    layout: &Layout,
    daemons: &mut [Daemon],
    stop: &CancellationToken,
) -> LocalResult {
    let terminal = std::io::stdout().is_terminal();
    let mut shown = String::new();
    while !stop.is_cancelled() {
        if daemons.iter_mut().all(Daemon::was_stopped) {
            eprintln!("every region was stopped");
            break;
        }
        for daemon in daemons.iter_mut().filter_map(|daemon| (!daemon.was_stopped()).then_some(daemon)) {
            if let Some(ended) = daemon.ended(layout) {
                eprintln!("{ended}\nstarting it again");
                daemon.start(file, layout)?;
            }
        }
        let text = match asker.status(None).await {
            Ok(status) => render::table(&status),
            Err(e) => format!("{e}\n"),
        };
        if terminal {
            print!("\x1b[H{}\n\x1b[K\nCtrl-C stops every region.\x1b[J", text.replace('\n', "\x1b[K\n"));
            std::io::Write::flush(&mut std::io::stdout())?;
        } else if shown.is_empty() {
            // For a file or a pipe: once is enough; `status --watch` tells more.
            print!("{text}");
            shown = text;
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
    }
    println!();
    Ok(())
}

/// A line for each region while it comes up; a bar while it is seeded.
struct Bars {
    all: MultiProgress,
    bars: Vec<(String, ProgressBar)>,
}

impl Bars {
    fn new(config: &Config, daemons: &[Daemon]) -> Bars {
        let all = MultiProgress::new();
        let style = ProgressStyle::with_template("{prefix:14} {msg:14} {wide_bar} {bytes}/{total_bytes}");
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = |daemon: &Daemon| {
            let bar = all.add(ProgressBar::new(1)).with_style(style.clone());
            bar.set_prefix(daemon.name.to_string());
            bar.set_message("starting");
            (daemon.name.to_string(), bar)
        };
        let regions =
            daemons.iter().filter(|daemon| daemon.zone.is_none() && config.region(&daemon.name).is_some());
        let bars = regions.map(bar).collect();
        Bars { all, bars }
    }

    fn show(&self, status: &ClusterStatus) {
        for (name, bar) in &self.bars {
            let Some(row) = status.regions.iter().find(|row| row.name == *name) else { continue };
            bar.set_message(row.state.clone());
            if row.seed_total_bytes > 0 {
                bar.set_length(row.seed_total_bytes);
                bar.set_position(row.seed_bytes);
            }
        }
    }

    fn clear(&self) {
        // A terminal that cannot be cleared shows the bars as they were.
        let _ = self.all.clear();
    }
}

/// Stops every region on this machine: the primary first, so that the secondaries get its last redo.
///
/// # Errors
/// When a daemon does not stop in time.
pub async fn down(config: &Config, layout: &Layout, timeout: Duration) -> LocalResult {
    let mut regions: Vec<&RegionConfig> = config.regions.iter().collect();
    // As their records say: a promotion may have changed the roles of the file.
    let role_of = |region: &RegionConfig| match RegionState::load(&layout.region(&region.name).state()) {
        Ok(Some(state)) => state.role,
        Ok(None) | Err(_) => region.role,
    };
    regions.sort_by_key(|r| role_of(r) == Role::Secondary);
    let stopping = async {
        for role in [Role::Primary, Role::Secondary] {
            let of_role: Vec<_> = regions.iter().filter(|r| role_of(r) == role).collect();
            for region in &of_role {
                if let Some(pid) = DaemonLock::holder(&layout.region(&region.name).lock())? {
                    // It may be ending by itself just now.
                    let _ = kill(pid, Signal::SIGTERM);
                }
            }
            for region in of_role {
                let places = layout.region(&region.name);
                until_free(&places.lock()).await?;
                // The zones last: the region's last redo goes to them.
                for zone in ['a', 'b', 'c'] {
                    if let Some(pid) = DaemonLock::holder(&places.zone_lock(zone))? {
                        let _ = kill(pid, Signal::SIGTERM);
                    }
                    until_free(&places.zone_lock(zone)).await?;
                }
                stop_orphan(config, layout, region).await?;
                eprintln!("{}: stopped", region.name);
            }
        }
        for witness in &config.witnesses {
            let lock = layout.region(&witness.name).lock();
            if let Some(pid) = DaemonLock::holder(&lock)? {
                let _ = kill(pid, Signal::SIGTERM);
            }
            until_free(&lock).await?;
            eprintln!("{}: stopped", witness.name);
        }
        Ok(())
    };
    match tokio::time::timeout(timeout, stopping).await {
        Ok(stopped) => stopped,
        Err(_) => Err(format!(
            "not every region stopped within {} s; see daemon.log in its directory",
            timeout.as_secs()
        )
        .into()),
    }
}

/// Waits until no process holds a lock.
async fn until_free(lock: &Path) -> LocalResult {
    while DaemonLock::holder(lock)?.is_some() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Stops the PostgreSQL that a killed daemon left running.
async fn stop_orphan(config: &Config, layout: &Layout, region: &RegionConfig) -> LocalResult {
    use postgres::instance::{Instance, InstanceOptions, socket_dir_for};
    let places = layout.region(&region.name);
    if !places.pgdata().exists() {
        return Ok(());
    }
    let instance = Instance::new(InstanceOptions {
        installation: Installation::find(config.bin_dir.as_deref())?,
        account: Account::resolve(config.os_user.as_deref())?,
        data_dir: places.pgdata(),
        socket_dir: socket_dir_for(places.directory()),
        listen: region.postgres,
        log_file: places.postgresql_log(),
        name: region.name.to_string(),
        settings: config.settings.clone(),
    });
    // Nobody reads its redo any more, so a clean shutdown would wait for ever on a commit.
    match instance.stop(false, Duration::from_secs(10)).await {
        Ok(()) => Ok(()),
        Err(_) => Ok(instance.stop(true, Duration::from_secs(30)).await?),
    }
}
