//! A copy of a standby's data directory, taken while it runs: a base backup that nobody sends anywhere.
//!
//! Where the file system shares blocks between files (btrfs, XFS) nothing is copied; elsewhere it is copied
//! at a rate that leaves the disk to others. Source: PostgreSQL's manual, "Making a Base Backup Using the Low
//! Level API", of a standby.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use postgres::instance::account::Account;
use sqlx::{PgConnection, Row};

use super::DrillError;

/// Copied between two pauses, bytes.
const CHUNK_BYTES: usize = 1 << 20;

/// What a base backup leaves out, besides all below `pg_wal` that is no timeline's history.
const NAMES_LEFT_OUT: [&str; 9] = [
    "backup_label",
    "backup_manifest",
    "pg_internal.init",
    "postmaster.opts",
    "postmaster.pid",
    "recovery.signal",
    "standby.signal",
    "tablespace_map",
    "pg_control",
];

/// Directories that are made, and whose files are left out.
const EMPTY: [&str; 6] =
    ["pg_dynshmem", "pg_notify", "pg_replslot", "pg_serial", "pg_snapshots", "pg_stat_tmp"];

/// What was cloned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cloned {
    /// Files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Blocks are shared with the standby's: nothing was copied.
    pub shared: bool,
}

/// Clones the standby that `connection` leads to from `from` into `to`, at up to `bytes_per_second`.
///
/// # Errors
/// When PostgreSQL refuses a backup, a file cannot be copied, or there is no room.
pub async fn clone(
    connection: &mut PgConnection,
    from: &Path,
    to: &Path,
    account: &Account,
    bytes_per_second: u64,
) -> Result<Cloned, DrillError> {
    account.make_private(to)?;
    let shared = can_share(from, to);
    if !shared {
        check_room(from, to)?;
    }
    sqlx::query("SELECT pg_backup_start('replicator drill', true)").execute(&mut *connection).await?;
    let mut copier = Copier { account, bytes_per_second, cloned: Cloned { shared, ..Cloned::default() } };
    copier.directory(from, to).await?;
    // Last: the clone is consistent once it has the redo up to what this says.
    let control = Path::new("global/pg_control");
    copier.control(&from.join(control), &to.join(control)).await?;
    let stopped = sqlx::query("SELECT labelfile FROM pg_backup_stop(false)").fetch_one(connection).await?;
    let (label, path) = (stopped.try_get::<String, _>(0)?, to.join("backup_label"));
    std::fs::write(&path, label).map_err(DrillError::at(&path))?;
    account.own(&path)?;
    Ok(copier.cloned)
}

struct Copier<'a> {
    account: &'a Account,
    bytes_per_second: u64,
    cloned: Cloned,
}

impl Copier<'_> {
    async fn directory(&mut self, from: &Path, to: &Path) -> Result<(), DrillError> {
        let mut directories = vec![PathBuf::new()];
        while let Some(below) = directories.pop() {
            let directory = from.join(&below);
            for entry in std::fs::read_dir(&directory).map_err(DrillError::at(&directory))? {
                let entry = entry.map_err(DrillError::at(&directory))?;
                let (name, kind) = (entry.file_name(), entry.file_type());
                let Ok(kind) = kind else { continue };
                let path = below.join(&name);
                if kind.is_dir() {
                    self.account.make_private(&to.join(&path))?;
                    let empty = EMPTY.iter().any(|empty| path.as_path() == Path::new(empty));
                    if !empty && name != "pgsql_tmp" {
                        directories.push(path);
                    }
                } else if kind.is_file() && !is_left_out(&path) {
                    match self.file(&from.join(&path), &to.join(&path)).await {
                        // Dropped meanwhile: its redo says so.
                        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                        copied => copied.map_err(DrillError::at(&directory.join(&name)))?,
                    }
                }
            }
        }
        Ok(())
    }

    async fn file(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let mut source = File::open(from)?;
        let mut target = File::options().write(true).create(true).truncate(true).mode(0o600).open(to)?;
        self.account.own(to).map_err(io::Error::other)?;
        self.cloned.files += 1;
        if self.cloned.shared {
            self.cloned.bytes += source.metadata()?.len();
            return Ok(rustix::fs::ioctl_ficlone(&target, &source)?);
        }
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let count = tokio::task::block_in_place(|| {
                let count = source.read(&mut chunk)?;
                target.write_all(&chunk[..count]).map(|()| count)
            })?;
            if count == 0 {
                return Ok(());
            }
            self.cloned.bytes += count as u64;
            let nanoseconds = count as u64 * 1_000_000_000 / self.bytes_per_second.max(1);
            tokio::time::sleep(Duration::from_nanos(nanoseconds)).await;
        }
    }

    /// The control file is written in place: what was read twice was not half written.
    async fn control(&mut self, from: &Path, to: &Path) -> Result<(), DrillError> {
        let mut before = Vec::new();
        loop {
            let content = std::fs::read(from).map_err(DrillError::at(from))?;
            if content == before {
                break;
            }
            before = content;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        std::fs::write(to, before).map_err(DrillError::at(to))?;
        Ok(self.account.own(to)?)
    }
}

fn is_left_out(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default();
    let of_wal = path.starts_with("pg_wal") && path.extension().is_none_or(|ending| ending != "history");
    of_wal || NAMES_LEFT_OUT.iter().any(|left_out| name == *left_out)
}

/// Whether files of `from` can be cloned into `to` without copying.
fn can_share(from: &Path, to: &Path) -> bool {
    let (source, probe) = (from.join("PG_VERSION"), to.join("probe"));
    let tried = File::open(source).and_then(|source| Ok((source, File::create(&probe)?)));
    let shared = tried.is_ok_and(|(source, target)| rustix::fs::ioctl_ficlone(&target, &source).is_ok());
    // Made just now, and of no use any more.
    let _ = std::fs::remove_file(&probe);
    shared
}

fn check_room(from: &Path, to: &Path) -> Result<(), DrillError> {
    let needed = size_of_tree(from).map_err(DrillError::at(from))?;
    let room = rustix::fs::statvfs(to).map_err(|e| DrillError::at(to)(e.into()))?;
    let available = room.f_bavail * room.f_frsize;
    // What the clone replays and writes comes on top.
    let needed = needed + needed / 10 + (256 << 20);
    if available < needed {
        return Err(DrillError::Room { path: to.to_owned(), needed, available });
    }
    Ok(())
}

fn size_of_tree(directory: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        // What is gone by now needs no room.
        let Ok(metadata) = entry.metadata() else { continue };
        bytes += if metadata.is_dir() { size_of_tree(&entry.path())? } else { metadata.len() };
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redo_and_what_belongs_to_the_running_standby_is_left_out() {
        for path in
            ["pg_wal/000000010000000000000003", "postmaster.pid", "global/pg_control", "standby.signal"]
        {
            assert!(is_left_out(Path::new(path)), "{path}");
        }
        for path in ["pg_wal/00000002.history", "base/5/1259", "PG_VERSION", "global/1262"] {
            assert!(!is_left_out(Path::new(path)), "{path}");
        }
    }
}
