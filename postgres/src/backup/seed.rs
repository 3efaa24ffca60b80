//! Puts a base backup in place: unpacks its tar stream beside the data directory, and renames it there when
//! it is whole. What is a tablespace's in it (`pg_tblspc/<oid>/…`) goes to that one's place in the same way,
//! if it has one, and a link leads there; otherwise it stays below the data directory.
//!
//! What an interrupted one left is begun with. Files are written in place, so that the pieces which are the
//! same, and which the sender leaves out, stay where they are. The directory is locked meanwhile: whoever
//! still writes what an earlier connection brought ends first.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use proto::SystemId;
use runtime::task::{Ended, Task, Thread, blocking};
use tokio::sync::mpsc;

use crate::backup::archive::{Part, Reader};
use crate::backup::pieces::{Hash, Inventory};
use crate::backup::remains::{self, NOTE, SEEDING, SEEDING_PLACE};
use crate::below::{Below, Owner};
use crate::installation::major_in;
use crate::instance::account::Account;
use crate::instance::aside::Aside;
use crate::instance::{InstanceError, at};
use crate::major::Major;
use crate::tablespaces::{LINKS, Place, drop_content, link_of, places_in};

/// Chunks that may wait for the disk: at most some megabytes.
const CHUNKS: usize = 16;

/// So many files may wait until they are durable …
const SYNCS: usize = 8;

/// … and a large one is made so bit by bit, bytes: at its end it would hold everything up.
const SYNC_BYTES: u64 = 64 << 20;

/// A base backup has no more files and directories: a database of 2^23 relations.
const NAMES_MAX: usize = 1 << 23;

/// What is known of a seed before it comes.
#[derive(Debug, Clone)]
pub struct Coming {
    /// The database's.
    pub system_id: SystemId,
    /// About how large it is, bytes.
    pub total_bytes: u64,
    /// What is there already need not be sent, if the sender is told.
    pub takes_inventory: bool,
    /// Where its tablespaces go that are to lie outside of the data directory, and about how large each is,
    /// bytes. The directories are there.
    pub places: Vec<(Place, u64)>,
}

/// How far a seed is.
#[derive(Debug, Default)]
pub struct Progress {
    bytes: AtomicU64,
    kept_bytes: AtomicU64,
}

impl Progress {
    /// Bytes of the archive that are in place.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Bytes of those that were there already.
    #[must_use]
    pub fn kept_bytes(&self) -> u64 {
        self.kept_bytes.load(Ordering::Relaxed)
    }
}

/// What comes of a seed.
#[derive(Debug)]
enum Piece {
    Data(Bytes),
    Same(u64, Hash),
}

/// A seed being unpacked.
#[derive(Debug)]
pub struct Seed {
    aside: Aside,
    data_dir: PathBuf,
    account: Account,
    pieces: mpsc::Sender<Piece>,
    unpacking: Task<Result<io::Result<()>, Ended>>,
    progress: Arc<Progress>,
    inventory: Arc<Inventory>,
    places: Vec<Place>,
}

impl Seed {
    /// Begins a seed of `data_dir` that the account will own, with what an earlier one of the same database
    /// left, and what the data have that are there. What is of another one is removed. This reads all of it,
    /// and blocks.
    ///
    /// # Errors
    /// When the place cannot be made, or has no room.
    pub fn begin(data_dir: &Path, account: &Account, coming: Coming) -> Result<Seed, InstanceError> {
        let Coming { system_id, total_bytes, takes_inventory, places } = coming;
        let owner = account.owner();
        let left = remains::left_in_places(data_dir, system_id, &places);
        let aside = Aside::new(data_dir, SEEDING, account, |left| remains::are_of(left, system_id))?;
        let begin = || {
            let main = aside.open()?;
            if !main.lock()? {
                return Err(io::Error::other(
                    "what an earlier seed brought is still being written: try again",
                ));
            }
            remains::drop_in_places(&left, owner);
            remains::note(&main, system_id, &places, owner)?;
            let of_places = places.iter().map(|(place, _)| {
                let seeding =
                    Below::open_owned(&place.path, owner)?.make_below(Path::new(SEEDING_PLACE), owner)?;
                Ok((place.oid, seeding))
            });
            let to = To { main, places: of_places.collect::<io::Result<_>>()? };
            check_room(&to, total_bytes, &places)?;
            if !takes_inventory {
                return Ok((to, Inventory::default()));
            }
            if let Ok(old) = Below::open(data_dir)
                && let Err(e) = remains::take_over(&old, &to, system_id, &places, owner)
                && e.kind() != ErrorKind::NotFound
            {
                tracing::warn!("not all of the data that are there serve the seed: {e}");
            }
            let inventory = remains::inventory(&to)?;
            Ok((to, inventory))
        };
        let (to, inventory) = begin().map_err(at(&aside.path))?;
        let places: Vec<Place> = places.into_iter().map(|(place, _)| place).collect();
        let inventory = Arc::new(inventory);
        let (pieces, received) = mpsc::channel(CHUNKS);
        let progress = Arc::new(Progress::default());
        let (there, counted, linked) = (inventory.clone(), progress.clone(), places.clone());
        let unpacking = Task::spawn("unpack a seed", async move {
            blocking("unpack a seed", move || unpack(received, to, owner, &linked, &there, &counted)).await
        });
        let (data_dir, account) = (data_dir.to_owned(), account.clone());
        Ok(Seed { aside, data_dir, account, pieces, unpacking, progress, inventory, places })
    }

    /// What is there already.
    #[must_use]
    pub fn inventory(&self) -> Arc<Inventory> {
        self.inventory.clone()
    }

    /// Takes the next bytes of the archive.
    ///
    /// # Errors
    /// When unpacking has failed.
    pub async fn write(&mut self, chunk: Bytes) -> Result<(), InstanceError> {
        self.put(Piece::Data(chunk)).await
    }

    /// The next so many bytes of the archive are there, as the inventory says.
    ///
    /// # Errors
    /// When unpacking has failed.
    pub async fn keep(&mut self, bytes: u64, digest: Hash) -> Result<(), InstanceError> {
        self.put(Piece::Same(bytes, digest)).await
    }

    async fn put(&mut self, piece: Piece) -> Result<(), InstanceError> {
        if self.pieces.send(piece).await.is_ok() {
            return Ok(());
        }
        let why = match (&mut self.unpacking).await {
            Ok(Ok(Err(e))) => e,
            _ => io::Error::other("the archive went on after its end"),
        };
        Err(at(&self.aside.path)(why))
    }

    /// How far it is.
    #[must_use]
    pub fn progress(&self) -> Arc<Progress> {
        self.progress.clone()
    }

    /// The archive is complete: waits until all of it is durable beside the data directory.
    ///
    /// # Errors
    /// When unpacking failed.
    pub async fn finish(self) -> Result<Unpacked, InstanceError> {
        let Seed { aside, data_dir, account, pieces, unpacking, places, .. } = self;
        drop(pieces);
        let unpacked =
            unpacking.await.and_then(|unpacked| unpacked).unwrap_or_else(|e| Err(io::Error::other(e)));
        unpacked.map_err(at(&aside.path))?;
        Ok(Unpacked { aside, data_dir, account, places })
    }
}

/// Where a seed is unpacked to.
#[derive(Debug)]
pub(super) struct To {
    /// What is to become the data directory.
    pub(super) main: Below,
    /// What is to become the content of a tablespace's place, by its object id.
    pub(super) places: BTreeMap<u32, Below>,
}

impl To {
    /// Where what has this name lies, and its name there; the place itself has none.
    fn find(&self, name: &Path) -> (&Below, PathBuf) {
        let of_place = || {
            let mut parts = name.strip_prefix(LINKS).ok()?.iter();
            let place = self.places.get(&parts.next()?.to_str()?.parse().ok()?)?;
            Some((place, parts.collect()))
        };
        of_place().unwrap_or_else(|| (&self.main, name.to_owned()))
    }

    /// All of them, with what stands before the names of what is in them.
    pub(super) fn all(&self) -> impl Iterator<Item = (PathBuf, &Below)> {
        let places = self.places.iter().map(|(oid, place)| (link_of(*oid), place));
        std::iter::once((PathBuf::new(), &self.main)).chain(places)
    }

    fn empty(&self) -> io::Result<()> {
        self.all().try_for_each(|(_, below)| below.empty())
    }
}

/// Sees that there is room for a seed on each file system that it goes to.
fn check_room(to: &To, total_bytes: u64, places: &[(Place, u64)]) -> io::Result<()> {
    let elsewhere = places.iter().map(|(_, bytes)| *bytes).fold(0, u64::saturating_add);
    let of_places: BTreeMap<u32, u64> = places.iter().map(|(place, bytes)| (place.oid, *bytes)).collect();
    let coming = std::iter::once((&to.main, total_bytes.saturating_sub(elsewhere)));
    let coming = coming
        .chain(to.places.iter().map(|(oid, place)| (place, of_places.get(oid).copied().unwrap_or_default())));
    // What is needed, and what is there already.
    let mut disks: BTreeMap<u64, (&Below, u64, u64)> = BTreeMap::new();
    for (below, bytes) in coming {
        let (_, needed, there) = disks.entry(below.device()?).or_insert((below, 0, 0));
        (*needed, *there) = (needed.saturating_add(bytes), there.saturating_add(below.bytes()?));
    }
    for (below, needed, there) in disks.into_values() {
        let (free, _) = below.room()?;
        if free.saturating_add(there) < needed {
            let (needed, free) = (needed >> 20, free >> 20);
            let why = format!(
                "a seed of about {needed} MiB is to come, and {free} MiB are left on the disk of {}: make room",
                below.path().display()
            );
            return Err(io::Error::new(ErrorKind::StorageFull, why));
        }
    }
    Ok(())
}

/// A whole seed beside the data directory.
#[derive(Debug)]
pub struct Unpacked {
    aside: Aside,
    data_dir: PathBuf,
    account: Account,
    places: Vec<Place>,
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
        let owner = self.account.owner();
        for place in &self.places {
            install_place(&place.path, owner).map_err(at(&place.path))?;
        }
        // Of data that another seed left half there nothing is known.
        let before = places_in(&self.data_dir).unwrap_or_default();
        self.aside.install()?;
        let is_kept = |before: &Place| self.places.iter().any(|place| place.path == before.path);
        for Place { oid, path } in before.into_iter().filter(|before| !is_kept(before)) {
            match drop_content(&self.data_dir, &path, owner) {
                Ok(true) => {
                    tracing::info!("{}: tablespace {oid}, which is no more, is removed", path.display())
                }
                Ok(false) => tracing::warn!(
                    "{}: tablespace {oid} is no more, and its files stay, since nothing says whose they are: remove them if nobody needs them",
                    path.display()
                ),
                Err(e) => {
                    tracing::warn!("{}: tablespace {oid} is no more, and its files stay: {e}", path.display())
                }
            }
        }
        // Left here by a crash, it would be in the way of nobody.
        Below::open(&self.data_dir).and_then(|data| data.remove_file(NOTE)).map_err(at(&self.data_dir))
    }
}

/// Puts what was unpacked for a tablespace in the place of what is there.
fn install_place(path: &Path, owner: Owner) -> io::Result<()> {
    let (place, seeding) = (Below::open_owned(path, owner)?, Path::new(SEEDING_PLACE));
    for entry in place.directory(seeding)?.names()? {
        let name = Path::new(&entry.name);
        place.remove_any(name)?;
        place.rename(&seeding.join(name), name)?;
    }
    place.remove_any(seeding)?;
    place.sync()
}

/// Unpacks an archive that another machine sent into `to`, with links to `places`.
fn unpack(
    mut received: mpsc::Receiver<Piece>,
    to: To,
    owner: Owner,
    places: &[Place],
    inventory: &Inventory,
    progress: &Progress,
) -> io::Result<()> {
    let mut reader = Reader::default();
    let mut unpacking = Unpacking {
        to: &to,
        owner,
        seen: HashSet::new(),
        directories: Vec::new(),
        file: None,
        syncs: Syncs::start()?,
    };
    let mut take = || {
        while let Some(piece) = received.blocking_recv() {
            let (mut data, bytes) = match piece {
                Piece::Data(data) => {
                    let bytes = data.len() as u64;
                    (data, bytes)
                }
                Piece::Same(bytes, digest) => {
                    unpacking.keep(bytes, digest, inventory)?;
                    reader.skip(bytes)?;
                    progress.kept_bytes.fetch_add(bytes, Ordering::Relaxed);
                    (Bytes::new(), bytes)
                }
            };
            while let Some(part) = reader.next(&mut data)? {
                unpacking.take(part)?;
            }
            progress.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        reader.finish()
    };
    let unpacked = take().and_then(|()| unpacking.finish(places));
    if let Err(e) = &unpacked
        && e.kind() == ErrorKind::StorageFull
    {
        // The data that serve meanwhile need the room more.
        to.empty()?;
    }
    unpacked
}

/// What is unpacked, and where to.
struct Unpacking<'a> {
    to: &'a To,
    owner: Owner,
    /// What the archive has; what else is there is an earlier one's.
    seen: HashSet<PathBuf>,
    directories: Vec<PathBuf>,
    file: Option<Open>,
    syncs: Syncs,
}

/// The file that is being written.
struct Open {
    name: PathBuf,
    file: File,
    length: u64,
    at: u64,
    synced: u64,
}

impl Unpacking<'_> {
    fn take(&mut self, part: Part) -> io::Result<()> {
        match part {
            Part::Directory(name) if name == Path::new("") => Ok(()),
            Part::Directory(name) => {
                self.see(&name)?;
                let (to, own) = self.to.find(&name);
                // A place is there.
                if own != Path::new("") {
                    // PostgreSQL sends tablespaces before the directory that they are in.
                    if own.parent() == Some(Path::new(LINKS)) {
                        to.make_below(Path::new(LINKS), self.owner)?;
                    }
                    if to.directory(&own).is_err() {
                        to.remove_any(&own)?;
                    }
                    to.make_below(&own, self.owner)?;
                    self.directories.push(name);
                }
                Ok(())
            }
            // A crash may have left it in the data that were backed up.
            Part::File(name, _) if name == Path::new(NOTE) => Ok(()),
            Part::File(name, length) => {
                self.see(&name)?;
                let (to, own) = self.to.find(&name);
                let file = to.open_or_create(&own, self.owner)?;
                self.file = Some(Open { name, file, length, at: 0, synced: 0 });
                Ok(())
            }
            Part::Content(content) => {
                let Some(open) = &mut self.file else { return Ok(()) };
                open.file.write_all_at(&content, open.at)?;
                open.at += content.len() as u64;
                if open.at - open.synced >= SYNC_BYTES {
                    open.synced = open.at;
                    self.syncs.sync(open.file.try_clone()?)?;
                }
                Ok(())
            }
            Part::Whole => {
                let Some(Open { file, length, .. }) = self.file.take() else { return Ok(()) };
                if file.metadata()?.len() != length {
                    file.set_len(length)?;
                }
                self.syncs.sync(file)
            }
        }
    }

    /// The next bytes of the file are there.
    fn keep(&mut self, bytes: u64, digest: Hash, inventory: &Inventory) -> io::Result<()> {
        let there =
            self.file.as_mut().filter(|open| inventory.digest(&open.name, open.at, bytes) == Some(digest));
        let open = there
            .ok_or_else(|| io::Error::other("the sender says of something that it is here, and it is not"))?;
        open.at += bytes;
        Ok(())
    }

    fn see(&mut self, name: &Path) -> io::Result<()> {
        if self.seen.len() >= NAMES_MAX {
            return Err(io::Error::other("the archive has more files than any database"));
        }
        match self.seen.insert(name.to_owned()) {
            true => Ok(()),
            false => Err(io::Error::other(format!("the archive has {} twice", name.display()))),
        }
    }

    /// The archive is complete: what else is there goes, and all of it becomes durable.
    fn finish(self, places: &[Place]) -> io::Result<()> {
        if !self.seen.contains(Path::new("global/pg_control")) {
            return Err(io::Error::other("the base backup has no global/pg_control"));
        }
        for (name, below) in self.to.all() {
            self.tidy(below, &name)?;
        }
        for place in places {
            let link = link_of(place.oid);
            self.to.main.remove_any(&link)?;
            self.to.main.link(&link, &place.path)?;
        }
        self.syncs.finish()?;
        for name in &self.directories {
            let (to, own) = self.to.find(name);
            to.directory(&own)?.sync()?;
        }
        self.to.all().try_for_each(|(_, below)| below.sync())
    }

    fn tidy(&self, directory: &Below, name: &Path) -> io::Result<()> {
        for entry in directory.names()? {
            let below = name.join(&entry.name);
            if below == Path::new(NOTE) {
                continue;
            }
            match (self.seen.contains(&below), entry.is_directory) {
                (true, true) => self.tidy(&directory.directory(Path::new(&entry.name))?, &below)?,
                (true, false) => {}
                (false, _) => directory.remove_any(&entry.name)?,
            }
        }
        Ok(())
    }
}

/// Makes files durable, one after the other, while others are written.
struct Syncs {
    files: std::sync::mpsc::SyncSender<File>,
    failed: std::sync::mpsc::Receiver<io::Error>,
    thread: Thread,
}

impl Syncs {
    fn start() -> io::Result<Syncs> {
        let (files, coming) = std::sync::mpsc::sync_channel::<File>(SYNCS);
        let (fail, failed) = std::sync::mpsc::sync_channel(1);
        let work = move || {
            while let Ok(file) = coming.recv() {
                if let Err(e) = file.sync_all() {
                    // Nobody listens where the seed is given up.
                    let _ = fail.try_send(e);
                    return;
                }
            }
        };
        Ok(Syncs { files, failed, thread: Thread::spawn("sync a seed", work)? })
    }

    fn sync(&self, file: File) -> io::Result<()> {
        self.files.send(file).map_err(|_| self.why())
    }

    fn finish(self) -> io::Result<()> {
        let Syncs { files, failed, thread } = self;
        drop(files);
        thread.join();
        failed.try_recv().map_or(Ok(()), Err)
    }

    fn why(&self) -> io::Error {
        self.failed
            .try_recv()
            .unwrap_or_else(|_| io::Error::other("the thread that makes files durable has ended"))
    }
}

#[cfg(test)]
mod tests;
