//! One daemon for each region's directory: a lock file, held as long as the daemon lives, that holds its
//! process id.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::Path;

use nix::fcntl::{Flock, FlockArg};
use nix::unistd::Pid;
use runtime::private;

/// The lock of the running daemon; released when dropped or when the process ends, however it ends.
#[derive(Debug)]
pub struct DaemonLock {
    _file: Flock<File>,
}

/// Why the lock is not ours.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another daemon runs on this directory.
    #[error("a daemon is already running on this directory (process {0}); stop it with `replicator down`")]
    Held(Pid),
    /// The file cannot be used.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// What the system says.
        source: std::io::Error,
    },
}

impl DaemonLock {
    /// Takes the lock for this process.
    ///
    /// # Errors
    /// When another process holds it, or the file cannot be written.
    pub fn take(path: &Path) -> Result<DaemonLock, LockError> {
        let io = |source| LockError::Io { path: path.display().to_string(), source };
        let file = open(path).map_err(io)?;
        let mut file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => file,
            Err((mut file, _)) => return Err(LockError::Held(read_pid(&mut file).map_err(io)?)),
        };
        // In one write, over what was there: whoever looks meanwhile finds a number.
        let line = format!("{:<10}\n", std::process::id());
        let written = file.rewind().and_then(|()| file.write_all(line.as_bytes()));
        written.and_then(|()| file.set_len(line.len() as u64)).map_err(io)?;
        Ok(DaemonLock { _file: file })
    }

    /// The daemon that holds the lock, if any does.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn holder(path: &Path) -> Result<Option<Pid>, LockError> {
        let io = |source| LockError::Io { path: path.display().to_string(), source };
        if !path.exists() {
            return Ok(None);
        }
        // A shared lock: two who only look do not take each other for a daemon.
        match Flock::lock(open(path).map_err(io)?, FlockArg::LockSharedNonblock) {
            Ok(_) => Ok(None),
            Err((mut file, _)) => read_pid(&mut file).map(Some).map_err(io),
        }
    }
}

fn open(path: &Path) -> std::io::Result<File> {
    // Nobody else may hold it: `flock` needs no more than a file that can be read.
    private::options().read(true).write(true).create(true).truncate(false).open(path)
}

fn read_pid(file: &mut File) -> std::io::Result<Pid> {
    let mut text = String::new();
    file.take(32).read_to_string(&mut text)?;
    text.trim().parse().map(Pid::from_raw).map_err(|_| std::io::Error::other("it holds no process id"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_and_the_other_is_told_who() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("daemon.lock");
        assert_eq!(DaemonLock::holder(&path).unwrap(), None);
        let lock = DaemonLock::take(&path).unwrap();
        let own = Pid::this();
        assert_eq!(DaemonLock::holder(&path).unwrap(), Some(own));
        assert!(matches!(DaemonLock::take(&path), Err(LockError::Held(pid)) if pid == own));
        drop(lock);
        assert_eq!(DaemonLock::holder(&path).unwrap(), None);
        DaemonLock::take(&path).unwrap();
    }
}
