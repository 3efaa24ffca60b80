//! `down`: stops every region on this machine.

use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use postgres::installation::Installation;
use postgres::instance::account::Account;
use postgres::instance::{Instance, InstanceOptions, Stop};
use postgres::sockets::socket_dir_for;

use super::LocalResult;
use crate::config::{Config, RegionConfig, Role};
use crate::daemon::lock::DaemonLock;
use crate::layout::Layout;
use crate::region_file::RegionState;

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
    let places = layout.region(&region.name);
    if !places.pgdata().exists() {
        return Ok(());
    }
    let instance = Instance::new(InstanceOptions {
        installations: Installation::for_data(config.bin_dir_of(region), &places.pgdata())?.into(),
        account: Account::resolve(config.os_user.as_deref())?,
        data_dir: places.pgdata(),
        socket_dir: socket_dir_for(places.directory()),
        listen: region.postgres,
        log_file: places.postgresql_log(),
        name: region.name.to_string(),
        settings: config.settings_of(region),
        hba: config.hba.clone(),
    });
    // Nobody reads its redo any more, so a clean shutdown would wait for ever on a commit.
    match instance.stop(Stop::Fast, Duration::from_secs(10)).await {
        Ok(()) => Ok(()),
        Err(_) => Ok(instance.stop(Stop::Immediate, Duration::from_secs(30)).await?),
    }
}
