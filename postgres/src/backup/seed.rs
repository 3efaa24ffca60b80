//! Puts a base backup in place: unpacks its tar stream beside the data directory, and renames it there when
//! it is whole.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Buf, Bytes};
use runtime::task::{Ended, Task, blocking};
use tokio::sync::mpsc;

use crate::backup::archive::{self, Entry};
use crate::below::Below;
use crate::installation::major_in;
use crate::instance::account::Account;
use crate::instance::aside::Aside;
use crate::instance::{InstanceError, at};
use crate::major::Major;

/// Chunks that may wait for the disk: at most some megabytes.
const CHUNKS: usize = 16;

/// A seed being unpacked.
#[derive(Debug)]
pub struct Seed {
    aside: Aside,
    data_dir: PathBuf,
    account: Account,
    chunks: mpsc::Sender<Bytes>,
    unpacking: Task<Result<io::Result<()>, Ended>>,
    bytes: Arc<AtomicU64>,
}

impl Seed {
    /// Begins a seed of `data_dir` that the account will own. What an earlier, interrupted one left is
    /// removed.
    ///
    /// # Errors
    /// When the place cannot be made.
    pub fn begin(data_dir: &Path, account: &Account) -> Result<Seed, InstanceError> {
        let aside = Aside::new(data_dir, "seeding", account)?;
        let (chunks, received) = mpsc::channel(CHUNKS);
        let bytes = Arc::new(AtomicU64::new(0));
        let source = ChunkReader { received, current: Bytes::new(), bytes: bytes.clone() };
        let (to, owner) = (aside.open().map_err(at(&aside.path))?, account.clone());
        let unpacking = Task::spawn("unpack a seed", async move {
            blocking("unpack a seed", move || unpack(source, &to, &owner)).await
        });
        Ok(Seed { aside, data_dir: data_dir.to_owned(), account: account.clone(), chunks, unpacking, bytes })
    }

    /// Takes the next bytes of the archive.
    ///
    /// # Errors
    /// When unpacking has failed.
    pub async fn write(&mut self, chunk: Bytes) -> Result<(), InstanceError> {
        if self.chunks.send(chunk).await.is_ok() {
            return Ok(());
        }
        let why = match (&mut self.unpacking).await {
            Ok(Ok(Err(e))) => e,
            _ => io::Error::other("the archive went on after its end"),
        };
        Err(at(&self.aside.path)(why))
    }

    /// Counts the bytes of the archive that were unpacked so far.
    #[must_use]
    pub fn counter(&self) -> Arc<AtomicU64> {
        self.bytes.clone()
    }

    /// The archive is complete: waits until all of it is durable beside the data directory.
    ///
    /// # Errors
    /// When unpacking failed.
    pub async fn finish(self) -> Result<Unpacked, InstanceError> {
        let Seed { aside, data_dir, account, chunks, unpacking, .. } = self;
        drop(chunks);
        let unpacked =
            unpacking.await.and_then(|unpacked| unpacked).unwrap_or_else(|e| Err(io::Error::other(e)));
        unpacked.map_err(at(&aside.path))?;
        if !aside.open().is_ok_and(|place| place.exists("global/pg_control")) {
            return Err(at(&aside.path)(io::Error::other("the base backup has no global/pg_control")));
        }
        Ok(Unpacked { aside, data_dir, account })
    }
}

/// A whole seed beside the data directory.
#[derive(Debug)]
pub struct Unpacked {
    aside: Aside,
    data_dir: PathBuf,
    account: Account,
}

impl Unpacked {
    /// The major version of PostgreSQL that it needs.
    #[must_use]
    pub fn major(&self) -> Option<Major> {
        major_in(&self.aside.open().ok()?)
    }

    /// Replaces the data directory. PostgreSQL must not be running on it.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn install(self) -> Result<(), InstanceError> {
        self.account.check_reach(&self.data_dir)?;
        self.aside.install()
    }
}

/// Unpacks an archive that another machine sent into `to`.
fn unpack(source: impl Read, to: &Below, account: &Account) -> io::Result<()> {
    let mut directories = Vec::new();
    archive::read(source, |name, entry| match entry {
        Entry::Directory if name == Path::new("") => Ok(()),
        Entry::Directory => {
            directories.push(name.to_owned());
            to.make_below(name, account.owner()).map(drop)
        }
        Entry::File(content) => {
            let mut file = to.create_new(name, account.owner())?;
            io::copy(content, &mut file)?;
            file.sync_all()
        }
    })?;
    directories.iter().try_for_each(|name| to.directory(name)?.sync())?;
    to.sync()
}

/// The chunks of a channel as a blocking reader.
struct ChunkReader {
    received: mpsc::Receiver<Bytes>,
    current: Bytes,
    bytes: Arc<AtomicU64>,
}

impl Read for ChunkReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.received.blocking_recv() {
                Some(chunk) => self.current = chunk,
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.current.len());
        self.current.copy_to_slice(&mut buffer[..count]);
        self.bytes.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(name: &str, kind: tar::EntryType) -> Bytes {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(kind);
        header.set_size(0);
        header.set_cksum();
        builder.append(&header, io::empty()).unwrap();
        builder.into_inner().unwrap().into()
    }

    #[tokio::test]
    async fn only_plain_files_inside_are_unpacked() {
        let account = Account::resolve(None).unwrap();
        for (name, kind, good) in [
            ("global", tar::EntryType::Directory, true),
            ("PG_VERSION", tar::EntryType::Regular, true),
            ("../escaped", tar::EntryType::Regular, false),
            ("/escaped", tar::EntryType::Regular, false),
            ("pg_tblspc/1", tar::EntryType::Symlink, false),
        ] {
            let directory = tempfile::tempdir().unwrap();
            let data_dir = directory.path().join("pgdata");
            let mut seed = Seed::begin(&data_dir, &account).unwrap();
            seed.write(archive(name, kind)).await.unwrap();
            let error = seed.finish().await.unwrap_err().to_string();
            assert_eq!(error.contains("pg_control"), good, "{name}: {error}");
            assert!(!directory.path().join("escaped").exists());
        }
    }
}
