//! A PostgreSQL whose processes are frozen, by SIGSTOP or by storage that hangs, answers no signal but
//! SIGKILL.

use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::{sleep, timeout};

/// How long a postmaster that was told to stop at once may take. It kills its children itself after five
/// seconds.
const PATIENCE: Duration = Duration::from_secs(8);

/// A process that is stopped: its id, and what it calls itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stopped {
    /// Its id.
    pub pid: i32,
    /// Its title, such as `postgres: us-east: checkpointer`.
    pub title: String,
}

/// Kills the postmaster `process` and its children once it has not followed an order to stop at once. Returns
/// when it `runs` no more, or was killed.
pub(super) async fn kill_later(process: Pid, runs: impl Fn() -> bool) {
    let ended = timeout(PATIENCE, async {
        while runs() {
            sleep(Duration::from_millis(5)).await;
        }
    });
    if ended.await.is_ok() {
        return;
    }
    tracing::warn!("PostgreSQL (process {process}) does not even stop at once: it is killed");
    // Listed first: the children of a dead process are somebody else's.
    let children = children(process.as_raw());
    for pid in std::iter::once(process).chain(children.into_iter().map(Pid::from_raw)) {
        // It may end by itself just now.
        let _ = kill(pid, Signal::SIGKILL);
    }
}

/// Those of the postmaster and its children that are stopped by a signal.
pub(super) fn stopped(process: Pid) -> Vec<Stopped> {
    let all = std::iter::once(process.as_raw()).chain(children(process.as_raw()));
    all.filter(|pid| state(&stat(*pid)) == Some('T')).map(|pid| Stopped { pid, title: title(pid) }).collect()
}

fn children(parent: i32) -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| parent_of(&stat(*pid)) == Some(parent)).collect()
}

/// The user id that a process has.
pub(super) fn owner(pid: i32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    // Real, effective, saved, and the file system's.
    status.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_whitespace().nth(1)?.parse().ok()
}

fn stat(pid: i32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default()
}

/// The state's letter: what follows the name, which is in parentheses and may hold any character.
fn state(stat: &str) -> Option<char> {
    stat.rsplit_once(") ")?.1.chars().next()
}

fn parent_of(stat: &str) -> Option<i32> {
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

fn title(pid: i32) -> String {
    let line = std::fs::read(Path::new("/proc").join(pid.to_string()).join("cmdline")).unwrap_or_default();
    let text = String::from_utf8_lossy(&line).replace('\0', " ");
    text.trim().chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_read_whatever_its_name() {
        let stat = "17 (a) T 9 (b) c) T 4 17 17 0 -1 4194560";
        assert_eq!((state(stat), parent_of(stat)), (Some('T'), Some(4)));
        assert_eq!((state(""), parent_of("1 (x")), (None, None));
    }

    #[test]
    fn a_child_that_is_stopped_is_found_with_its_parent() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        let own = Pid::from_raw(i32::try_from(std::process::id()).unwrap());
        kill(pid, Signal::SIGSTOP).unwrap();
        let begin = runtime::clock::now();
        while !stopped(own).iter().any(|found| found.pid == pid.as_raw()) {
            assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", stopped(own));
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
