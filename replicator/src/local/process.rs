//! The process of a daemon that `up` starts, and its log.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proto::RegionName;
use runtime::private;

use super::LocalResult;
use super::down::until_free;
use crate::daemon::lock::DaemonLock;
use crate::layout::{Apart, Layout, make_passable};
use crate::logs::older;

/// A region's daemon, one of its zones or nodes, or a witness, and the process if this one started it.
pub(super) struct Daemon {
    pub(super) name: RegionName,
    pub(super) apart: Option<Apart>,
    own_process: Vec<char>,
    child: Option<Child>,
}

impl std::fmt::Display for Daemon {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.apart {
            Some(apart) => write!(f, "{}, {apart}", self.name),
            None => self.name.fmt(f),
        }
    }
}

impl Daemon {
    pub(super) fn new(name: &RegionName, apart: Option<Apart>, own_process: &[char]) -> Daemon {
        Daemon { name: name.clone(), apart, own_process: own_process.to_vec(), child: None }
    }

    /// Starts it in the background, unless it runs.
    pub(super) fn start(&mut self, file: &Path, layout: &Layout) -> LocalResult {
        let directory = layout.region(&self.name);
        let (lock, log) = (directory.lock_of(self.apart.as_ref()), directory.log_of(self.apart.as_ref()));
        if let Some(pid) = DaemonLock::holder(&lock)? {
            eprintln!("{self}: runs already (process {pid})");
            return Ok(());
        }
        if let Some(Apart::Node(node)) = &self.apart {
            make_passable(directory.node(node).directory())?;
        }
        let log = private::options().create(true).append(true).open(log)?;
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(["run", "--region", self.name.as_str(), "--config"])
            .arg(file)
            .arg("--data")
            .arg(layout.data());
        match &self.apart {
            Some(Apart::Zone(zone)) => drop(command.args(["--az", &zone.to_string()])),
            Some(Apart::Node(node)) => drop(command.args(["--node", node.as_str()])),
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

    /// Stops it, if this process has started it.
    pub(super) async fn stop(&mut self, layout: &Layout) -> LocalResult {
        let Some(child) = &self.child else { return Ok(()) };
        let process = i32::try_from(child.id()).map(Pid::from_raw)?;
        // It may have ended by itself.
        let _ = kill(process, Signal::SIGTERM);
        until_free(&self.name, &layout.region(&self.name).lock_of(self.apart.as_ref())).await?;
        eprintln!("{self}: stopped");
        Ok(())
    }

    /// Whether it was started here and has ended as it was told to, such as by `down`.
    pub(super) fn was_stopped(&mut self) -> bool {
        let status = self.child.as_mut().and_then(|child| child.try_wait().ok()?);
        status.is_some_and(|status| status.success())
    }

    /// The end of its log, if this daemon was started here and has ended.
    pub(super) fn ended(&mut self, layout: &Layout) -> Option<String> {
        let status = self.child.as_mut()?.try_wait().ok()??;
        let path = layout.region(&self.name).log_of(self.apart.as_ref());
        // It may have been put aside just now.
        let logs = [older(&path, 1), path.clone()];
        let log: String = logs.iter().filter_map(|log| std::fs::read_to_string(log).ok()).collect();
        let last: Vec<&str> = log.lines().rev().take(3).collect();
        let last: Vec<&str> = last.into_iter().rev().collect();
        Some(format!(
            "{self}: its process ended ({status}); {} says:\n  {}",
            path.display(),
            last.join("\n  ")
        ))
    }
}
