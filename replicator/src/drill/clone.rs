//! A copy of a standby's data directory, taken while it runs: a base backup that nobody sends anywhere.
//! Tablespaces are copied into it, and lie there as directories: the clone has no link to the standby's.
//!
//! Where the file system shares blocks between files (btrfs, XFS) nothing is copied; elsewhere it is copied
//! at a rate that leaves the disk to others. Source: PostgreSQL's manual, "Making a Base Backup Using the Low
//! Level API", of a standby.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use postgres::below::{Below, Name, Owner};
use postgres::instance::account::Account;
use postgres::tablespaces::{Place, link_of, places_in};
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
    let owner = account.owner();
    let standby = Below::open(from).map_err(DrillError::at(from))?;
    let clone = Below::make(to, owner).map_err(DrillError::at(to))?;
    let shared = can_share(&standby, &clone, owner);
    let mut tablespaces = Vec::new();
    for Place { oid, path } in places_in(from).map_err(DrillError::at(from))? {
        tablespaces.push((oid, Below::open_owned(&path, owner).map_err(DrillError::at(&path))?));
    }
    if !shared {
        let all = std::iter::once(&standby).chain(tablespaces.iter().map(|(_, place)| place));
        check_room(all, to)?;
    }
    sqlx::query("SELECT pg_backup_start('replicator drill', true)").execute(&mut *connection).await?;
    let cloned = Cloned { shared, ..Cloned::default() };
    let mut copier = Copier { standby: &standby, clone: &clone, owner, bytes_per_second, cloned };
    copier.all(&standby, Path::new("")).await?;
    for (oid, place) in &tablespaces {
        let link = link_of(*oid);
        clone.make_below(&link, owner).map_err(DrillError::at(&to.join(&link)))?;
        copier.all(place, &link).await?;
    }
    // Last: the clone is consistent once it has the redo up to what this says.
    copier.control(Path::new("global/pg_control")).await?;
    let stopped = sqlx::query("SELECT labelfile FROM pg_backup_stop(false)").fetch_one(connection).await?;
    let label = stopped.try_get::<String, _>(0)?;
    copier.write(Path::new("backup_label"), label.as_bytes())?;
    Ok(copier.cloned)
}

struct Copier<'a> {
    standby: &'a Below,
    clone: &'a Below,
    owner: Owner,
    bytes_per_second: u64,
    cloned: Cloned,
}

impl Copier<'_> {
    /// Copies all that is below `from` to `to` in the clone.
    async fn all(&mut self, from: &Below, to: &Path) -> Result<(), DrillError> {
        let mut directories = vec![PathBuf::new()];
        while let Some(below) = directories.pop() {
            let io = DrillError::at(&from.path().join(&below));
            let names = match below.as_os_str().is_empty() {
                true => from.names(),
                false => from.directory(&below).and_then(|directory| directory.names()),
            };
            let names = match names {
                // Dropped meanwhile: its redo says so.
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                names => names.map_err(&io)?,
            };
            for Name { name, is_directory, is_file } in names {
                let (source, path) = (below.join(&name), to.join(&below).join(&name));
                if is_directory {
                    self.clone.make_below(&path, self.owner).map_err(&io)?;
                    let empty = EMPTY.iter().any(|empty| path.as_path() == Path::new(empty));
                    if !empty && name != "pgsql_tmp" {
                        directories.push(source);
                    }
                } else if is_file && !is_left_out(&path) {
                    match self.file(from, &source, &path).await {
                        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                        copied => copied.map_err(DrillError::at(&from.path().join(&source)))?,
                    }
                }
            }
        }
        Ok(())
    }

    async fn file(&mut self, from: &Below, source: &Path, path: &Path) -> io::Result<()> {
        let mut source = from.open_file(source)?;
        let mut target = self.clone.create_new(path, self.owner)?;
        self.cloned.files += 1;
        // A tablespace may be on another file system.
        if self.cloned.shared && rustix::fs::ioctl_ficlone(&target, &source).is_ok() {
            self.cloned.bytes += source.metadata()?.len();
            return Ok(());
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
    async fn control(&mut self, path: &Path) -> Result<(), DrillError> {
        let mut before = Vec::new();
        loop {
            let content = self.standby.read(path).map_err(DrillError::at(&self.standby.path().join(path)))?;
            if content == before {
                break;
            }
            before = content;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.write(path, &before)
    }

    fn write(&self, path: &Path, content: &[u8]) -> Result<(), DrillError> {
        let written = self.clone.create_new(path, self.owner).and_then(|mut file| file.write_all(content));
        written.map_err(DrillError::at(&self.clone.path().join(path)))
    }
}

fn is_left_out(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default();
    let of_wal = path.starts_with("pg_wal") && path.extension().is_none_or(|ending| ending != "history");
    of_wal || NAMES_LEFT_OUT.iter().any(|left_out| name == *left_out)
}

/// Whether files of the standby can be cloned without copying.
fn can_share(standby: &Below, clone: &Below, owner: Owner) -> bool {
    let probe = Path::new("probe");
    let files = || Ok::<_, io::Error>((standby.open_file("PG_VERSION")?, clone.create_new(probe, owner)?));
    let shared = files().is_ok_and(|(source, target)| rustix::fs::ioctl_ficlone(&target, &source).is_ok());
    // Made just now, and of no use any more.
    let _ = clone.remove_file(probe);
    shared
}

fn check_room<'a>(all: impl Iterator<Item = &'a Below>, to: &Path) -> Result<(), DrillError> {
    let mut needed = 0;
    for below in all {
        needed += below.bytes().map_err(DrillError::at(below.path()))?;
    }
    let room = rustix::fs::statvfs(to).map_err(|e| DrillError::at(to)(e.into()))?;
    let available = room.f_bavail * room.f_frsize;
    // What the clone replays and writes comes on top.
    let needed = needed + needed / 10 + (256 << 20);
    if available < needed {
        return Err(DrillError::Room { path: to.to_owned(), needed, available });
    }
    Ok(())
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
