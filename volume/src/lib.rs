//! A region's redo log: durable before anything is acknowledged, shipped or fed on; read by many at their own
//! pace.
//!
//! [`Volume`] is what the rest of the region sees. Below it lie six copies, two in each of three zones:
//!
//! ```text
//! Volume ── head ─┬─ log         what is queued, chosen, filled, kept (pure)
//!                 │   └─ quorum  who may write, what is durable (pure)
//!                 ├─ supervisor  opens copies again, asks, looks at the time
//!                 │   └─ repair  fills copies from their peers, reads back, mends
//!                 └─ six links ─► copy: a thread, and a directory of segments on a disk
//!                                 (or, in another process, the same at the end of a stream)
//! ```
//!
//! What the volume says is durable lies on four copies of six, with everything before it. docs/VOLUME.md
//! describes the protocol and the format on disk.

pub mod ballot;
pub mod copy;
pub mod log;
pub mod planted;
pub mod quorum;
pub mod retention;
pub mod seal;
pub mod segment;

mod claim;
mod cursor;
mod error;
mod head;
mod key;
mod repair;
mod supervisor;
mod tail;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use proto::{Batch, ClusterId, Epoch, Lsn, Redo, Timeline, TimelineHistory};
use runtime::task::{Task, Tasks};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use ballot::Ballot;
use copy::{Link, Listener, SegmentInfo};
use head::Head;
use log::{Log, Phase};
use quorum::{CopyId, CopyState};
use seal::{KeyId, Sealer};

pub use claim::Claim;
pub use cursor::{Cursor, Start};
pub use error::VolumeError;
pub use head::now_us;
pub use log::{Tally, Tenure};

/// What a volume is made of.
#[derive(Debug, Clone)]
pub struct VolumeOptions {
    /// Below it lie the copies of this process, `az-a/a1` to `az-c/c2`.
    pub directory: PathBuf,
    /// The copies of this process; the others join.
    pub copies: Vec<CopyId>,
    /// The cluster it belongs to; another cluster's copy is refused.
    pub cluster_id: ClusterId,
    /// The cluster's epoch as the region knows it.
    pub epoch: Epoch,
    /// Who opens it: a number drawn at random for each opening.
    pub writer: u64,
    /// A segment ends at the first context that begins beyond this, bytes.
    pub segment_bytes: u64,
    /// Redo older than this goes when nobody needs it.
    pub retain: Duration,
    /// The most redo each copy may take on disk, bytes; beyond it the oldest goes, needed or not.
    pub max_size_bytes: u64,
    /// How much recent redo is kept in memory for live readers, bytes.
    pub tail_bytes: usize,
    /// The most that repair brings to one copy, bytes a second.
    pub repair_bytes_per_second: u64,
    /// How often everything is read back.
    pub scrub_every: Duration,
    /// One thread appends to all copies of this process, where the kernel and the file system let it;
    /// otherwise each has one.
    pub share_thread: bool,
    /// Seals new segments, and opens those that are; none where all are in the clear.
    pub sealer: Option<Arc<Sealer>>,
    /// Set where other hosts may open the volume as well.
    pub tenure: Option<Tenure>,
}

/// What may be another while the volume works; see [`VolumeOptions`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuning {
    /// Redo older than this goes when nobody needs it.
    pub retain: Duration,
    /// The most redo each copy may take on disk, bytes.
    pub max_size_bytes: u64,
    /// The most that repair brings to one copy, bytes a second.
    pub repair_bytes_per_second: u64,
    /// How often everything is read back.
    pub scrub_every: Duration,
}

impl VolumeOptions {
    fn tuning(&self) -> Tuning {
        Tuning {
            retain: self.retain,
            max_size_bytes: self.max_size_bytes,
            repair_bytes_per_second: self.repair_bytes_per_second,
            scrub_every: self.scrub_every,
        }
    }

    /// The defaults: all six copies here, 16 MiB segments, a day, 10 GiB, 32 MiB in memory, repair at 100
    /// MiB/s, read back once a day.
    #[must_use]
    pub fn new(directory: PathBuf, cluster_id: ClusterId) -> VolumeOptions {
        VolumeOptions {
            directory,
            copies: CopyId::all().collect(),
            cluster_id,
            epoch: Epoch(1),
            writer: runtime::random::draw(),
            segment_bytes: 16 << 20,
            retain: Duration::from_secs(24 * 3600),
            max_size_bytes: 10 << 30,
            tail_bytes: 32 << 20,
            repair_bytes_per_second: 100 << 20,
            scrub_every: Duration::from_secs(24 * 3600),
            share_thread: true,
            sealer: None,
            tenure: None,
        }
    }
}

/// How far the volume's redo is durable, and under what leadership it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Durable {
    /// The end of the durable redo; zero in an empty volume.
    pub lsn: Lsn,
    /// Its timeline.
    pub timeline: Timeline,
    /// Its epoch.
    pub epoch: Epoch,
}

/// What redo a volume holds: `[horizon_lsn, durable_lsn)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// The oldest redo kept; always where a context begins.
    pub horizon_lsn: Lsn,
    /// The end of the durable redo.
    pub durable_lsn: Lsn,
    /// The timeline of the newest redo.
    pub timeline: Timeline,
}

/// How long the copies of this process may take to open before the volume goes on without those that have
/// not.
const OPENED: Duration = Duration::from_secs(10);

/// A handle on a region's volume; clones share it.
#[derive(Debug, Clone)]
pub struct Volume {
    head: Arc<Head>,
    _open: Arc<OpenGuard>,
}

/// Closes the volume when the last handle is gone.
#[derive(Debug)]
struct OpenGuard {
    head: Weak<Head>,
    /// It ends with this, and with it all that it began.
    _supervisor: Task<()>,
    /// Copies whose disks had not answered when the volume was started.
    _openings: Tasks,
}

impl Drop for OpenGuard {
    fn drop(&mut self) {
        // Readers may keep the head; the copies are let go of now.
        if let Some(head) = self.head.upgrade() {
            head.close();
        }
    }
}

/// A volume and its copies, as `replicator volume status` shows them.
#[derive(Debug, Clone)]
pub struct VolumeStatus {
    /// The ballot of this opening.
    pub ballot: Ballot,
    /// What redo is durable.
    pub bounds: Bounds,
    /// Whether appends can become durable.
    pub writable: bool,
    /// How many copies have promised and remember what they promised before, while the volume is being
    /// opened.
    pub members: usize,
    /// Why not, when it is for good.
    pub closed: Option<String>,
    /// Each copy.
    pub copies: Vec<CopyStatus>,
    /// What the segments are sealed with, those in the clear first.
    pub keys: Vec<KeyUse>,
    /// The key that new segments are sealed with; none where they are in the clear.
    pub active_key: Option<KeyId>,
}

/// The segments that are sealed with one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyUse {
    /// Which; none for those in the clear.
    pub key: Option<KeyId>,
    /// How many they are.
    pub segments: u64,
    /// What they take in each copy, bytes.
    pub bytes: u64,
}

/// One copy, as it is known.
#[derive(Debug, Clone)]
pub struct CopyStatus {
    /// Which.
    pub id: CopyId,
    /// Where it lies; empty while it is not reached.
    pub place: String,
    /// Where it stands.
    pub state: CopyState,
    /// How far it holds the log on its disk.
    pub flushed_lsn: Lsn,
    /// What repair did for it.
    pub repair: Tally,
}

impl Volume {
    /// Opens a volume with all of its copies in this process, and waits until it takes appends.
    ///
    /// # Errors
    /// When a copy's directory is another cluster's, or the volume cannot be opened.
    pub async fn open(options: VolumeOptions) -> Result<Volume, VolumeError> {
        let volume = Volume::start(options).await?;
        volume.opened().await?;
        Ok(volume)
    }

    /// Starts a volume: opens the copies of this process and waits for the others to join.
    ///
    /// # Errors
    /// When a copy's directory is another cluster's, or another copy's. A copy that fails otherwise is gone
    /// without.
    pub async fn start(options: VolumeOptions) -> Result<Volume, VolumeError> {
        Ok(Volume::start_held(options, "start").await?.0)
    }

    /// As [`Volume::start`], with a [`Volume::hold`] that was there before anything else: no redo is dropped,
    /// however old, before whoever starts the volume has seen what it needs of it.
    ///
    /// # Errors
    /// As [`Volume::start`].
    pub async fn start_held(options: VolumeOptions, name: &str) -> Result<(Volume, Claim), VolumeError> {
        let head = Head::new(options);
        let hold = Claim::new(&head, name, Lsn::ZERO);
        let openings = Tasks::new();
        let (refuse, mut refused) = mpsc::channel(head.options.copies.len().max(1));
        for copy in head.options.copies.clone() {
            openings.spawn(supervisor::open_first(head.clone(), copy, refuse.clone()));
        }
        drop(refuse);
        // It ends once all were opened, or could not be.
        match tokio::time::timeout(OPENED, refused.recv()).await {
            Ok(Some(e)) => return Err(e),
            Ok(None) => {}
            Err(_) => head.go_on_without_hung(OPENED),
        }
        let _supervisor = Task::spawn("volume", supervisor::supervise(head.clone()));
        let _open = Arc::new(OpenGuard { head: Arc::downgrade(&head), _supervisor, _openings: openings });
        Ok((Volume { head, _open }, hold))
    }

    /// Waits until the volume takes appends.
    ///
    /// # Errors
    /// When another writer has taken it over.
    pub async fn opened(&self) -> Result<(), VolumeError> {
        let mut phase = self.head.phase.subscribe();
        let reached =
            *phase.wait_for(|phase| *phase != Phase::Opening).await.map_err(|_| VolumeError::Closed)?;
        match reached {
            Phase::Closed => Err(self.closed()),
            _ => Ok(()),
        }
    }

    /// Opens a volume with three copies that remember its redo, on an operator's word that the others are
    /// lost for good. Copies that have forgotten all are filled, and once one of them is, [`Volume::opened`]
    /// returns.
    ///
    /// # Errors
    /// When it is open already, or too little is left; or another writer has taken over.
    pub fn recover(&self) -> Result<(), VolumeError> {
        self.head.change(Log::recover)
    }

    /// Waits until another writer has taken the volume over, and says so; otherwise for ever.
    pub async fn deposed(&self) -> VolumeError {
        let mut phase = self.head.phase.subscribe();
        let _ = phase.wait_for(|phase| *phase == Phase::Closed).await;
        self.closed()
    }

    fn closed(&self) -> VolumeError {
        self.head.look(|log| log.closed().cloned()).unwrap_or(VolumeError::Closed)
    }

    /// A copy in another process joins: `link` makes the way to it from what hears it, and tells the ballot
    /// it has promised. Returns what is to be dropped when the way is lost.
    pub fn join(
        &self,
        copy: CopyId,
        promised: Ballot,
        link: impl FnOnce(Listener) -> Arc<dyn Link>,
    ) -> Joined {
        let number = self.head.next_link(copy);
        let link = link(self.head.listener(copy, number));
        self.head.reach(copy, number, link, promised);
        Joined { head: self.head.clone(), copy, number }
    }

    /// Whether nothing was ever put here since it was made or reset.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.head.durable.borrow().lsn == Lsn::ZERO
    }

    /// What redo is here.
    #[must_use]
    pub fn bounds(&self) -> Bounds {
        self.head.bounds()
    }

    /// Follows how far the redo is durable.
    #[must_use]
    pub fn watch_durable(&self) -> watch::Receiver<Durable> {
        self.head.durable.subscribe()
    }

    /// Queues a batch; it is durable once [`Volume::watch_durable`] says so. Waits while the queue is full.
    /// When this is cancelled, the batch was not queued.
    ///
    /// # Errors
    /// When the batch does not continue the log, or another writer has taken over.
    pub async fn append(&self, redo: Redo) -> Result<(), VolumeError> {
        let (mut durable, mut phase) = (self.head.durable.subscribe(), self.head.phase.subscribe());
        let mut redo = redo;
        while let Some(back) = self.head.append(redo)? {
            redo = back;
            let changed = tokio::select! {
                changed = durable.changed() => changed,
                changed = phase.changed() => changed,
            };
            changed.map_err(|_| VolumeError::Closed)?;
        }
        Ok(())
    }

    /// Waits until everything queued is durable.
    ///
    /// # Errors
    /// When another writer has taken over.
    pub async fn settle(&self) -> Result<(), VolumeError> {
        self.opened().await?;
        let (mut durable, mut phase) = (self.head.durable.subscribe(), self.head.phase.subscribe());
        loop {
            let (closed, queued) = self.head.look(|log| (log.closed().cloned(), log.queued()));
            if let Some(why) = closed {
                return Err(why);
            }
            if durable.borrow_and_update().lsn >= queued.lsn {
                return Ok(());
            }
            let changed = tokio::select! {
                changed = durable.changed() => changed,
                changed = phase.changed() => changed,
            };
            changed.map_err(|_| VolumeError::Closed)?;
        }
    }

    /// Waits until everything queued is durable, for at most `patience`; whether it is. Where copies are
    /// missing, or another writer has taken over, it is not.
    pub async fn settle_within(&self, patience: Duration) -> bool {
        matches!(tokio::time::timeout(patience, self.settle()).await, Ok(Ok(())))
    }

    /// Whether it is known which redo is here: a write quorum of copies holds the log that this opening
    /// chose. Before that, [`Volume::bounds`] tell nothing. Whether appends become durable is another
    /// question: [`VolumeStatus::writable`].
    #[must_use]
    pub fn is_open(&self) -> bool {
        *self.head.phase.borrow() == Phase::Open
    }

    /// Whether this opening could still write after this was asked: a write quorum of copies, asked now, has
    /// promised nothing above its ballot. What was done before is then known to have been done before any
    /// later opening, by whoever, had its promises. False where too few copies answer within `patience`.
    pub async fn still_writes(&self, patience: Duration) -> bool {
        let Some(ballot) = self.open_ballot() else { return false };
        let mut asking = JoinSet::new();
        for link in CopyId::all().filter_map(|copy| self.head.link(copy)) {
            asking.spawn(async move { link.promised().await });
        }
        let counting = async {
            let mut promised = Vec::new();
            while let Some(answer) = asking.join_next().await {
                promised.extend(answer.ok().and_then(Result::ok));
                if quorum::still_writes(ballot, &promised) {
                    return true;
                }
            }
            false
        };
        tokio::time::timeout(patience, counting).await.unwrap_or(false)
    }

    /// Whether other hosts may open the volume as well, when this one is gone.
    #[must_use]
    pub fn may_move(&self) -> bool {
        self.head.options.tenure.is_some()
    }

    /// The ballot with which the volume is open, while it is.
    #[must_use]
    pub fn open_ballot(&self) -> Option<Ballot> {
        self.head.look(|log| (log.phase() == Phase::Open).then(|| log.quorum().ballot()))
    }

    /// Empties the volume; its redo will begin at `begin_lsn` on `timeline`. On a write quorum of disks when
    /// this returns.
    ///
    /// # Errors
    /// When another writer has taken over.
    pub async fn reset(&self, begin_lsn: Lsn, timeline: Timeline) -> Result<(), VolumeError> {
        loop {
            self.opened().await?;
            let begin = Durable { lsn: begin_lsn, timeline, epoch: Epoch(0) };
            let begun = self.head.change(|log| log.reset(begin))?;
            let Some(generation) = begun else { continue };
            self.opened().await?;
            // Opened anew meanwhile, the volume may have the old log again.
            if self.head.look(|log| log.quorum().generation()) >= generation {
                return Ok(());
            }
        }
    }

    /// Keeps a timeline's history: every copy has it on disk before any redo that is appended after this.
    ///
    /// # Errors
    /// When another writer has taken over.
    pub async fn append_history(&self, history: TimelineHistory) -> Result<(), VolumeError> {
        loop {
            self.opened().await?;
            // Opened anew meanwhile, it waits again.
            if self.head.change(|log| log.keep_history(&history))? {
                return Ok(());
            }
        }
    }

    /// A timeline's history, if the volume has it. The first timeline's is always known.
    #[must_use]
    pub fn history(&self, timeline: Timeline) -> Option<TimelineHistory> {
        if timeline.0 == 1 {
            return Some(TimelineHistory::first());
        }
        self.head.look(|log| log.history(timeline).cloned())
    }

    /// Reads from `from_lsn`, or from where its context begins.
    ///
    /// # Errors
    /// When that redo is gone or not there yet.
    pub fn cursor(&self, from_lsn: Lsn, start: Start) -> Result<Cursor, VolumeError> {
        Cursor::open(self.head.clone(), from_lsn, start)
    }

    /// The batch that holds `lsn`; none when it is not durable here, or not kept any more.
    ///
    /// # Errors
    /// When no copy has it whole, or the volume closed.
    pub async fn batch_at(&self, lsn: Lsn) -> Result<Option<Batch>, VolumeError> {
        let bounds = self.bounds();
        if lsn < bounds.horizon_lsn || lsn >= bounds.durable_lsn {
            return Ok(None);
        }
        match self.cursor(lsn, Start::Batch)?.next_batch().await {
            Ok(batch) => Ok(Some(batch)),
            // It went meanwhile.
            Err(_) if lsn < self.bounds().horizon_lsn => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The newest durable batch; none in a volume that has only begun.
    ///
    /// # Errors
    /// As [`Volume::batch_at`].
    pub async fn newest_batch(&self) -> Result<Option<Batch>, VolumeError> {
        self.batch_at(Lsn(self.bounds().durable_lsn.0.saturating_sub(1))).await
    }

    /// Keeps redo from `from_lsn` on for `who`, up to the hard size limit; `None` ends the claim.
    pub fn set_need(&self, who: &str, from_lsn: Option<Lsn>) {
        self.head.change(|log| log.needs_mut().set(who, from_lsn));
    }

    /// Keeps redo from `from_lsn` on, up to the hard size limit, for as long as the claim lives; `name` says
    /// for whom.
    pub fn claim(&self, name: &str, from_lsn: Lsn) -> Claim {
        Claim::new(&self.head, name, from_lsn)
    }

    /// Keeps all redo, up to the hard size limit, until the claim is dropped or advanced.
    pub fn hold(&self, name: &str) -> Claim {
        self.claim(name, Lsn::ZERO)
    }

    /// Works by `tuning` from now on. Redo that it lets go goes within a second.
    pub fn tune(&self, tuning: Tuning) {
        self.head.tune(tuning);
    }

    /// Bytes of redo in each copy.
    #[must_use]
    pub fn stored_bytes(&self) -> u64 {
        self.head.look(Log::stored_bytes)
    }

    /// When redo that nobody needs was dropped last, though it is younger than `retain`, as a disk was nearly
    /// full; microseconds since 1970.
    #[must_use]
    pub fn gave_way_us(&self) -> Option<i64> {
        self.head.look(Log::gave_way_us)
    }

    /// The volume and its copies.
    #[must_use]
    pub fn status(&self) -> VolumeStatus {
        let places =
            CopyId::all().map(|copy| self.head.link(copy).map(|link| link.place()).unwrap_or_default());
        let places: Vec<String> = places.collect();
        self.head.look(|log| {
            let quorum = log.quorum();
            let copies = CopyId::all().zip(places).map(|(id, place)| CopyStatus {
                id,
                place,
                state: quorum.state(id).clone(),
                flushed_lsn: quorum.flushed_lsn(id),
                repair: log.tally(id).clone(),
            });
            VolumeStatus {
                ballot: quorum.ballot(),
                bounds: log.bounds(),
                writable: quorum.is_open() && quorum.is_quorate(),
                members: quorum.members(),
                closed: log.closed().map(ToString::to_string),
                copies: copies.collect(),
                keys: key_uses(log.segments()),
                active_key: self.head.options.sealer.as_ref().and_then(|sealer| sealer.active()),
            }
        })
    }

    /// What seals its redo; none where nothing is sealed.
    #[must_use]
    pub fn sealer(&self) -> Option<&Arc<Sealer>> {
        self.head.options.sealer.as_ref()
    }

    /// The first of the volume's segments that is sealed with a key which is not here.
    ///
    /// # Errors
    /// That key, and where the segment begins.
    pub fn check_keys(&self) -> Result<(), VolumeError> {
        let sealer = self.head.options.sealer.as_ref();
        let missing = |segment: &SegmentInfo| {
            let key = segment.key.filter(|key| sealer.is_none_or(|sealer| !sealer.has(*key)))?;
            Some(VolumeError::NoKey { key, begin_lsn: segment.begin_lsn })
        };
        self.head.look(|log| log.segments().iter().find_map(missing).map_or(Ok(()), Err))
    }

    /// Reads copies back against their checksums and mends what rotted; all, or one.
    pub async fn scrub(&self, only: Option<CopyId>) {
        match only {
            Some(copy) => repair::scrub_one(self.head.clone(), copy).await,
            None => repair::scrub_all(self.head.clone()).await,
        }
    }
}

fn key_uses(segments: &[SegmentInfo]) -> Vec<KeyUse> {
    let mut uses: BTreeMap<Option<KeyId>, (u64, u64)> = BTreeMap::new();
    for segment in segments {
        let (count, bytes) = uses.entry(segment.key).or_default();
        *count += 1;
        *bytes += segment.stored_bytes;
    }
    uses.into_iter().map(|(key, (segments, bytes))| KeyUse { key, segments, bytes }).collect()
}

/// A copy of another process, while the way to it holds.
#[derive(Debug)]
pub struct Joined {
    head: Arc<Head>,
    copy: CopyId,
    number: u64,
}

impl Drop for Joined {
    fn drop(&mut self) {
        self.head.lose(self.copy, self.number);
    }
}
