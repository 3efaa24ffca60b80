//! The postmaster of an instance: started, found, and stopped. It may be one that an earlier daemon started,
//! one that is frozen, and one whose data directory was moved away.

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use runtime::private;
use runtime::task::{Thread, blocking};

use super::{Instance, InstanceError, InstanceOptions, Stop, Stopped, at, files, frozen};

/// The postmaster's lock, with its process id.
const POSTMASTER: &str = "postmaster.pid";

/// How long the collector of a server that has ended may take to write what that said last.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// How often it is looked whether a server that was started accepts connections.
const STARTS: Duration = Duration::from_millis(4);

/// How often it is looked whether one that was told to stop has ended.
const STOPS: Duration = Duration::from_millis(2);

/// The line of its lock in which a server says how far it is, and how it says that it accepts connections.
const STATUS_LINE: usize = 7;
const READY: &str = "ready";

/// How long a standby may take to stop whose data directory was moved away.
const MOVED: Duration = Duration::from_secs(20);

impl Instance {
    /// Starts the instance if it does not run, and waits until it accepts connections.
    ///
    /// # Errors
    /// When it does not come up before `patience` has passed.
    pub async fn start(&self, patience: Duration) -> Result<(), InstanceError> {
        let InstanceOptions { account, data_dir, log_file, .. } = &self.options;
        let begins = self.process().is_none();
        if begins {
            match self.moved_process() {
                // What it has is a standby's: nothing is lost with it.
                Some(_) if self.is_standby() => self.stop(Stop::Immediate, MOVED).await?,
                Some(process) => return Err(InstanceError::Moved(process.as_raw())),
                None => {}
            }
            let postgres = self.installation().program("postgres");
            self.undo_interrupted_promotion()?;
            self.remove_unused_histories()?;
            self.disown_stale_locks()?;
            self.place_certificate(&self.own())?;
            self.close_door()?;
            let log = private::options().create(true).append(true).open(log_file).map_err(at(log_file))?;
            // Its collector opens it by itself.
            account.own(&log).map_err(at(log_file))?;
            let errors = log.try_clone().map_err(at(log_file))?;
            let child = account
                .command(&postgres)
                .arg("-D")
                .arg(data_dir)
                .args(self.floors()?)
                .args(self.command_line()?)
                .stdin(Stdio::null())
                .stdout(log)
                .stderr(errors)
                .spawn()
                .map_err(|e| self.hindered().err().unwrap_or_else(|| at(&postgres)(e)))?;
            self.spawned.reap(child).map_err(at(&postgres))?;
            self.note_certificate_read();
        }
        let started = tokio::time::timeout(patience, async {
            // One that was found running may be frozen, whatever it has written.
            while !(if begins { self.says_ready() } else { self.accepts().await }) {
                if self.process().is_none() {
                    self.hindered()?;
                    // Its collector may have its last words still.
                    tokio::time::sleep(LAST_WORDS).await;
                    let log = log_file.display().to_string();
                    return Err(InstanceError::Ended { log, last: last_lines(log_file) });
                }
                tokio::time::sleep(STARTS).await;
            }
            Ok(())
        });
        let not_ready = || InstanceError::NotReady(patience.as_secs(), log_file.display().to_string());
        started.await.unwrap_or_else(|_| Err(not_ready()))
    }

    /// A postmaster that was killed leaves its lock files, and where ids start anew with the container, its
    /// id is another process's by now: PostgreSQL would take that for itself. No postmaster works here: so
    /// they get an id that no process has, and PostgreSQL removes them. The rest of them stays, as it looks
    /// there for shared memory that is still used.
    pub(crate) fn disown_stale_locks(&self) -> Result<(), InstanceError> {
        let places = [(self.data()?, PathBuf::from(POSTMASTER)), (self.sockets()?, self.socket_lock())];
        for (directory, name) in places {
            let io = at(&directory.path().join(&name));
            if let Some(content) = files::if_any(directory.read_to_string(&name)).map_err(&io)? {
                let content = disowned(&content);
                directory.replace(&name, content.as_bytes(), self.options.account.owner()).map_err(io)?;
            }
        }
        Ok(())
    }

    /// Looks what the account lacks to run it, as it did not start: each question is a process of its own.
    fn hindered(&self) -> Result<(), InstanceError> {
        let InstanceOptions { account, data_dir, .. } = &self.options;
        account.check_reach(data_dir)?;
        Ok(account.check_programs(&self.installation().program("postgres"))?)
    }

    /// Whether the server says that it accepts connections, as `pg_ctl` looks at it: not while it starts or
    /// stops.
    #[must_use]
    pub fn says_ready(&self) -> bool {
        let is_ready = |content: String| content.lines().nth(STATUS_LINE).map(str::trim) == Some(READY);
        // One that has not written its id has not written that either.
        self.process_by_lock().is_some() && self.read(POSTMASTER).is_ok_and(is_ready)
    }

    /// Whether it accepts connections.
    async fn accepts(&self) -> bool {
        let InstanceOptions { account, socket_dir, listen, .. } = &self.options;
        let mut command = account.command(&self.installation().program("pg_isready"));
        command.arg("-q").arg("-h").arg(socket_dir).arg("-p").arg(listen.port().to_string());
        let asked = blocking("pg_isready", move || command.status()).await;
        asked.is_ok_and(|status| status.is_ok_and(|s| s.success()))
    }

    /// Stops the instance. One that is frozen and does not even stop at once is killed.
    ///
    /// # Errors
    /// When it still runs after `patience`.
    pub async fn stop(&self, how: Stop, patience: Duration) -> Result<(), InstanceError> {
        let runs = || self.process().or_else(|| self.moved_process());
        let Some(process) = runs() else { return Ok(()) };
        tell(process, how);
        if how == Stop::Immediate {
            frozen::kill_later(process, || runs() == Some(process)).await;
        }
        let stopped = tokio::time::timeout(patience, async {
            while runs().is_some() {
                tokio::time::sleep(STOPS).await;
            }
        });
        stopped.await.map_err(|_| InstanceError::NotStopped(process.as_raw()))
    }

    /// Has the instance stop, and does not wait for that.
    pub fn begin_to_stop(&self, how: Stop) {
        if let Some(process) = self.process() {
            tell(process, how);
        }
    }

    /// The running postmaster of this data directory, also one that has just been started.
    #[must_use]
    pub fn process(&self) -> Option<Pid> {
        // In this order: whoever sees meanwhile that it has written its id forgets it as one that has not.
        let silent = self.spawned.silent();
        let written = self.process_by_lock();
        if let Some(process) = written {
            self.spawned.has_written(process);
        }
        written.or(silent)
    }

    fn process_by_lock(&self) -> Option<Pid> {
        let content = self.read(POSTMASTER).ok()?;
        let process = content.lines().next()?.trim().parse().ok()?;
        // A process id may have been given to another program since, or put there by somebody who wants that
        // one ended: the postmaster is the account's, and works in its data directory.
        let works_in = || std::fs::read_link(format!("/proc/{process}/cwd"));
        let works_in = self.options.account.seeing(works_in).ok()?;
        let data_dir = self.options.data_dir.canonicalize().ok()?;
        let is_ours = works_in == data_dir && frozen::owner(process) == Some(self.options.account.user_id);
        is_ours.then_some(Pid::from_raw(process))
    }

    /// The one that was started here and whose data directory somebody has moved away since: its socket's
    /// lock names it, and it was started by this command.
    #[must_use]
    pub fn moved_process(&self) -> Option<Pid> {
        if self.process().is_some() {
            return None;
        }
        let content = self.sockets().ok()?.read_to_string(self.socket_lock()).ok()?;
        let process = content.lines().next()?.trim().parse().ok()?;
        let command = std::fs::read(format!("/proc/{process}/cmdline")).ok()?;
        let mut words = command.split(|byte| *byte == 0).skip_while(|word| *word != b"-D").skip(1);
        let is_ours = words.next() == Some(self.options.data_dir.as_os_str().as_encoded_bytes())
            && frozen::owner(process) == Some(self.options.account.user_id);
        is_ours.then_some(Pid::from_raw(process))
    }

    fn socket_lock(&self) -> PathBuf {
        let lock = self.socket().with_added_extension("lock");
        PathBuf::from(lock.file_name().unwrap_or_default())
    }

    /// Those of its processes that are stopped by a signal: they exist, and do nothing.
    #[must_use]
    pub fn stopped_processes(&self) -> Vec<Stopped> {
        self.process().map(frozen::stopped).unwrap_or_default()
    }
}

/// The postmaster that was started here last, until it has written its id: its lock does not name it yet, and
/// who stops it then must know it all the same.
#[derive(Debug, Default, Clone)]
pub(super) struct Spawned(Arc<AtomicI32>);

impl Spawned {
    const NONE: i32 = 0;

    /// Knows `child`, and reaps it when it ends, whenever that is.
    fn reap(&self, mut child: Child) -> std::io::Result<()> {
        let (id, slot) = (i32::try_from(child.id()).unwrap_or(Spawned::NONE), self.clone());
        self.0.store(id, Ordering::SeqCst);
        let reaping = Thread::spawn("reap postgres", move || {
            drop(child.wait());
            slot.forget(id);
        });
        reaping.map(drop).inspect_err(|_| {
            if let Some(process) = self.silent() {
                tell(process, Stop::Immediate);
            }
            self.forget(id);
        })
    }

    /// From here on its lock tells where it is, also where that is moved away.
    fn has_written(&self, process: Pid) {
        self.forget(process.as_raw());
    }

    fn forget(&self, id: i32) {
        let _ = self.0.compare_exchange(id, Spawned::NONE, Ordering::SeqCst, Ordering::SeqCst);
    }

    fn silent(&self) -> Option<Pid> {
        Some(self.0.load(Ordering::SeqCst)).filter(|id| *id != Spawned::NONE).map(Pid::from_raw)
    }
}

/// Tells a postmaster to stop. It may end by itself just now.
fn tell(process: Pid, how: Stop) {
    let signal = match how {
        Stop::Fast => Signal::SIGINT,
        Stop::Immediate => Signal::SIGQUIT,
    };
    let _ = kill(process, signal);
}

/// Linux gives no process an id as high as this.
const NO_PROCESS: &str = "4194304";

/// A lock file's content with the id of no process.
fn disowned(content: &str) -> String {
    let rest = content.split_once('\n').map_or("", |(_, rest)| rest);
    format!("{NO_PROCESS}\n{rest}")
}

/// Why a server ended, by its log: its last fatal words, or its last lines if it had none.
fn last_lines(path: &Path) -> String {
    let content = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&content[content.len().saturating_sub(6000)..]).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    let is_fatal = |line: &&str| line.contains("FATAL:") || line.contains("PANIC:");
    let begin = match lines.iter().rposition(is_fatal) {
        Some(fatal) => fatal,
        None => lines.len().saturating_sub(4),
    };
    lines[begin..].iter().take(4).copied().collect::<Vec<_>>().join(" | ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fatal_words_are_quoted_before_those_that_follow() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let end = "LOG:  shutting down\n".repeat(9);
        std::fs::write(file.path(), format!("LOG:  a\nFATAL:  no such directory\nHINT:  make it\n{end}"))
            .unwrap();
        assert!(last_lines(file.path()).starts_with("FATAL:  no such directory | HINT:  make it | LOG"));
        std::fs::write(file.path(), "a\nb\nc\nd\ne\n").unwrap();
        assert_eq!(last_lines(file.path()), "b | c | d | e");
    }

    #[test]
    fn a_stale_lock_keeps_all_but_its_owner() {
        assert_eq!(disowned("18\n/data\n1700000000\n5432\n"), "4194304\n/data\n1700000000\n5432\n");
        assert_eq!(disowned(""), "4194304\n");
    }
}
