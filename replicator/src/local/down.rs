//! `down`: stops every region on this machine.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use postgres::installation::Installation;
use postgres::instance::account::Account;
use postgres::instance::{Instance, InstanceOptions, Stop};
use postgres::sockets::socket_dir_for;
use proto::RegionName;
use runtime::clock::now;

use super::LocalResult;
use crate::config::{Config, NodeConfig, RegionConfig, Role};
use crate::daemon::lock::{DaemonLock, LockError};
use crate::layout::{Apart, Layout};
use crate::region_file::{RegionState, was_head};

/// How often is said that somebody takes long to stop.
const TELL: Duration = Duration::from_secs(5);

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
                for lock in heads(layout, region) {
                    if let Some(pid) = DaemonLock::holder(&lock)? {
                        // It may be ending by itself just now.
                        let _ = kill(pid, Signal::SIGTERM);
                    }
                }
            }
            for region in of_role {
                let places = layout.region(&region.name);
                for lock in heads(layout, region) {
                    until_free(&region.name, &lock).await?;
                }
                // The zones last: the region's last redo goes to them.
                let zones = ['a', 'b', 'c'].map(Apart::Zone).into_iter();
                let nodes = region.nodes.iter().map(|node| Apart::Node(node.name.clone()));
                let apart = zones.chain(nodes).map(|apart| places.lock_of(Some(&apart)));
                let locks: Vec<PathBuf> = [places.lock()].into_iter().chain(apart).collect();
                // A node has the lock of its zone as well, and ends at once when it is told twice.
                let holders = locks.iter().map(|lock| DaemonLock::holder(lock));
                let holders: Result<Vec<Option<Pid>>, LockError> = holders.collect();
                let holders: BTreeSet<i32> = holders?.into_iter().flatten().map(Pid::as_raw).collect();
                for holder in holders {
                    let _ = kill(Pid::from_raw(holder), Signal::SIGTERM);
                }
                for lock in &locks {
                    until_free(&region.name, lock).await?;
                }
                stop_orphan(&instance(config, layout, region, None)?).await?;
                for node in &region.nodes {
                    stop_orphan(&instance(config, layout, region, Some(node))?).await?;
                }
                eprintln!("{}: stopped", region.name);
            }
        }
        for witness in &config.witnesses {
            let lock = layout.region(&witness.name).lock();
            if let Some(pid) = DaemonLock::holder(&lock)? {
                let _ = kill(pid, Signal::SIGTERM);
            }
            until_free(&witness.name, &lock).await?;
            eprintln!("{}: stopped", witness.name);
        }
        Ok(())
    };
    match tokio::time::timeout(timeout, stopping).await {
        Ok(stopped) => stopped,
        Err(_) => Err(format!(
            "{} did not stop within {} s: see daemon.log in its directory; `down` again waits for it",
            still_running(config, layout).join(", "),
            timeout.as_secs()
        )
        .into()),
    }
}

/// Those of the file that still have a daemon here.
fn still_running(config: &Config, layout: &Layout) -> Vec<String> {
    let names = config.voters().into_iter().map(|voter| voter.name);
    let runs =
        |name: &RegionName| DaemonLock::holder(&layout.region(name).lock()).is_ok_and(|pid| pid.is_some());
    let running: Vec<String> = names.filter(runs).map(|name| format!("the daemon of {name}")).collect();
    if running.is_empty() { vec!["a region's PostgreSQL, node or zone".into()] } else { running }
}

/// The locks of the hosts here that are the region's head, or may be: one, but where it moved just now.
fn heads(layout: &Layout, region: &RegionConfig) -> Vec<PathBuf> {
    let places = layout.region(&region.name);
    let candidates = region.candidates().into_iter().map(|host| host.name);
    let heads = candidates.filter(|host| was_head(&places, host));
    let heads: Vec<PathBuf> = heads.map(|host| places.node(&host).lock()).collect();
    if heads.is_empty() { vec![places.lock()] } else { heads }
}

/// Waits until no process holds a lock; says each few seconds that it waits, and for whom.
pub(super) async fn until_free(name: &RegionName, lock: &Path) -> LocalResult {
    let since = now();
    let mut told = TELL;
    while let Some(holder) = DaemonLock::holder(lock)? {
        if since.elapsed() >= told {
            let log = lock.with_file_name("daemon.log");
            eprintln!(
                "{name}: process {holder} is still stopping after {} s: PostgreSQL ends its sessions, writes a checkpoint and waits for \
                 its archiver; see {}",
                told.as_secs(),
                log.display()
            );
            told += TELL;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// The PostgreSQL of a region, or of one of its nodes; none where it has no data.
fn instance(
    config: &Config,
    layout: &Layout,
    region: &RegionConfig,
    node: Option<&NodeConfig>,
) -> Result<Option<Instance>, Box<dyn std::error::Error>> {
    let places = layout.region(&region.name);
    let (directory, data_dir, log_file) = match node.map(|node| places.node(&node.name)) {
        Some(places) => (places.directory().to_owned(), places.pgdata(), places.postgresql_log()),
        None => (places.directory().to_owned(), places.pgdata(), places.postgresql_log()),
    };
    if !data_dir.exists() {
        return Ok(None);
    }
    Ok(Some(Instance::new(InstanceOptions {
        installations: Installation::for_data(config.bin_dir_of(region), &data_dir)?.into(),
        account: Account::resolve(config.os_user.as_deref())?,
        socket_dir: socket_dir_for(&directory),
        listen: node.and_then(|node| node.postgres).unwrap_or(region.postgres),
        log_file,
        name: region.name.to_string(),
        settings: config.settings_of(region),
        hba: config.rules(),
        ident: Vec::new(),
        authorities: None,
        certificate: None,
        data_dir,
    })))
}

/// Stops the PostgreSQL that a killed daemon left running.
async fn stop_orphan(instance: &Option<Instance>) -> LocalResult {
    let Some(instance) = instance else { return Ok(()) };
    // Nobody reads its redo any more, so a clean shutdown would wait for ever on a commit.
    match instance.stop(Stop::Fast, Duration::from_secs(10)).await {
        Ok(()) => Ok(()),
        Err(_) => Ok(instance.stop(Stop::Immediate, Duration::from_secs(30)).await?),
    }
}
