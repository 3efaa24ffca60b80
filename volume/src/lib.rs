//! A region's redo log: durable before anything is acknowledged, shipped or fed on; read by many at their own pace.
//!
//! [`Volume`] is what the rest of the region sees. Below it lie six copies, two in each of three zones:
//!
//! ```text
//! Volume ── head ─┬─ quorum      who may write, what is durable (pure)
//!                 ├─ repair      fills copies from their peers, reads back, mends
//!                 └─ six links ─► copy: a thread, and a directory of segments on a disk
//!                                 (or, in another process, the same at the end of a stream)
//! ```
//!
//! What the volume says is durable lies on four copies of six, with everything before it. docs/VOLUME.md describes the
//! protocol and the format on disk.

pub mod ballot;
pub mod copy;
pub mod quorum;
pub mod retention;
pub mod segment;

mod cursor;
mod head;
mod repair;
mod tail;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use proto::batch::BatchError;
use proto::timeline::TimelineError;
use proto::{ClusterId, Epoch, Lsn, Redo, Timeline, TimelineHistory};
use tokio::sync::watch;

use ballot::Ballot;
use copy::{Link, Listener, Order};
use head::{Head, Phase, Task};
use quorum::{CopyId, Input, Standing};

pub use cursor::{Cursor, Start};
pub use head::now_us;
pub use repair::Tally;

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
}

impl VolumeOptions {
    /// The defaults: all six copies here, 16 MiB segments, a day, 10 GiB, 32 MiB in memory, repair at 100 MiB/s, read back
    /// once a day.
    #[must_use]
    pub fn new(directory: PathBuf, cluster_id: ClusterId) -> VolumeOptions {
        VolumeOptions {
            directory,
            copies: CopyId::all().collect(),
            cluster_id,
            epoch: Epoch(1),
            writer: draw(),
            segment_bytes: 16 << 20,
            retain: Duration::from_secs(24 * 3600),
            max_size_bytes: 10 << 30,
            tail_bytes: 32 << 20,
            repair_bytes_per_second: 100 << 20,
            scrub_every: Duration::from_secs(24 * 3600),
        }
    }
}

#[allow(clippy::disallowed_methods, reason = "a driver's draw; the machine takes it as an argument")]
fn draw() -> u64 {
    rand::random()
}

/// Why the volume cannot do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum VolumeError {
    /// The disk failed.
    #[error("{path}: {what}")]
    Io {
        /// The file.
        path: String,
        /// What the system says.
        what: String,
    },
    /// Another opening of this volume has taken over.
    #[error(
        "another daemon has taken over this region's volume with ballot {ballot}, above this one's {own}: nothing written \
         here becomes durable any more. Only one daemon may run for a region; stop the other, then start this one again"
    )]
    Deposed {
        /// The ballot that the copies have promised.
        ballot: Ballot,
        /// The ballot of this opening.
        own: Ballot,
    },
    /// The directory belongs to another cluster.
    #[error("{path} is of cluster {found}, not of {expected}; give each cluster a data directory of its own")]
    OtherCluster {
        /// The file.
        path: String,
        /// The cluster found.
        found: ClusterId,
        /// The cluster expected.
        expected: ClusterId,
    },
    /// The directory holds another copy.
    #[error("{path} is of copy {found}, not of {expected}: a disk in another's place. Put each where it was")]
    OtherCopy {
        /// The file.
        path: String,
        /// The copy found.
        found: String,
        /// The copy expected.
        expected: CopyId,
    },
    /// A copy of another process does not answer.
    #[error("copy {copy} does not answer: {what}")]
    Unreached {
        /// Which.
        copy: CopyId,
        /// What went wrong.
        what: String,
    },
    /// No copy that is reached has the redo.
    #[error("no copy that can be reached has redo from {lsn}; `replicator volume status` shows them")]
    NoCopy {
        /// What was asked for.
        lsn: Lsn,
    },
    /// What is on disk is not what was written.
    #[error("{path} is damaged at byte {offset}: {what}")]
    Damaged {
        /// The file.
        path: String,
        /// Where.
        offset: u64,
        /// What is wrong.
        what: String,
    },
    /// A batch does not continue the log.
    #[error(
        "batch {begin_lsn} on timeline {timeline}, epoch {epoch}, does not continue the log, which ends at {end_lsn}: {why}"
    )]
    Discontinuous {
        /// The batch's beginning.
        begin_lsn: Lsn,
        /// The batch's timeline.
        timeline: Timeline,
        /// The batch's epoch.
        epoch: Epoch,
        /// The log's end.
        end_lsn: Lsn,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The redo asked for is gone.
    #[error("redo from {asked_lsn} was asked for, and the oldest kept is {horizon_lsn}")]
    HorizonPassed {
        /// What was asked for.
        asked_lsn: Lsn,
        /// The oldest kept.
        horizon_lsn: Lsn,
    },
    /// The redo asked for is not there yet.
    #[error("redo from {asked_lsn} was asked for, and the durable redo ends at {durable_lsn}")]
    Ahead {
        /// What was asked for.
        asked_lsn: Lsn,
        /// The end.
        durable_lsn: Lsn,
    },
    /// A stored batch is not one.
    #[error("stored redo: {0}")]
    Batch(#[from] BatchError),
    /// Stored redo does not decompress.
    #[error("stored redo: {0}")]
    Compression(String),
    /// A history file that cannot be used.
    #[error("timeline history: {0}")]
    History(#[from] TimelineError),
    /// The volume is closed.
    #[error("the volume is closed")]
    Closed,
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

/// A handle on a region's volume; clones share it.
#[derive(Debug, Clone)]
pub struct Volume {
    head: Arc<Head>,
    _open: Arc<OpenGuard>,
}

/// Closes the volume when the last handle is gone.
#[derive(Debug)]
struct OpenGuard(Weak<Head>);

impl Drop for OpenGuard {
    fn drop(&mut self) {
        if let Some(head) = self.0.upgrade() {
            head.ask(Task::Close);
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
    /// Why not, when it is for good.
    pub closed: Option<String>,
    /// Each copy.
    pub copies: Vec<CopyStatus>,
}

/// One copy, as it is known.
#[derive(Debug, Clone)]
pub struct CopyStatus {
    /// Which.
    pub id: CopyId,
    /// Where it lies; empty while it is not reached.
    pub place: String,
    /// Where it stands.
    pub standing: Standing,
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
    /// When a copy's directory is another cluster's, or another copy's. A copy that fails otherwise is gone without.
    pub async fn start(options: VolumeOptions) -> Result<Volume, VolumeError> {
        let (head, queue) = Head::start(options);
        let opening = head.clone();
        let opened = tokio::task::spawn_blocking(move || -> Result<(), VolumeError> {
            for copy in opening.options.copies.clone() {
                match opening.open_local(copy) {
                    Err(e @ (VolumeError::OtherCluster { .. } | VolumeError::OtherCopy { .. })) => {
                        return Err(e);
                    }
                    Err(e) => {
                        tracing::error!("copy {copy} is gone without: {e}");
                        let mut state = opening.lock();
                        opening.handle(&mut state, Input::Failed(copy, e.to_string()));
                        drop(state);
                        opening.ask(Task::Reopen(copy));
                    }
                    Ok(()) => {}
                }
            }
            Ok(())
        });
        opened.await.map_err(|_| VolumeError::Closed)??;
        tokio::spawn(head::supervise(head.clone(), queue));
        let _open = Arc::new(OpenGuard(Arc::downgrade(&head)));
        Ok(Volume { head, _open })
    }

    /// Waits until the volume takes appends.
    ///
    /// # Errors
    /// When another writer has taken it over.
    pub async fn opened(&self) -> Result<(), VolumeError> {
        let mut phase = self.head.phase.subscribe();
        let reached =
            *phase.wait_for(|phase| *phase != Phase::Opening).await.map_err(|_| VolumeError::Closed)?;
        match (reached, &self.head.lock().closed) {
            (Phase::Closed, why) => Err(why.clone().unwrap_or(VolumeError::Closed)),
            _ => Ok(()),
        }
    }

    /// Waits until another writer has taken the volume over, and says so; otherwise for ever.
    pub async fn deposed(&self) -> VolumeError {
        let mut phase = self.head.phase.subscribe();
        let _ = phase.wait_for(|phase| *phase == Phase::Closed).await;
        self.head.lock().closed.clone().unwrap_or(VolumeError::Closed)
    }

    /// A copy in another process joins: `link` makes the way to it from what hears it, and tells the ballot it has promised.
    /// Returns what is to be dropped when the way is lost.
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

    /// Queues a batch; it is durable once [`Volume::watch_durable`] says so. Waits while the queue is full. When this is
    /// cancelled, the batch was not queued.
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
            {
                let state = self.head.lock();
                if let Some(why) = &state.closed {
                    return Err(why.clone());
                }
                if durable.borrow_and_update().lsn >= state.queued.lsn {
                    return Ok(());
                }
            }
            let changed = tokio::select! {
                changed = durable.changed() => changed,
                changed = phase.changed() => changed,
            };
            changed.map_err(|_| VolumeError::Closed)?;
        }
    }

    /// Empties the volume; its redo will begin at `begin_lsn` on `timeline`. On a write quorum of disks when this returns.
    ///
    /// # Errors
    /// When another writer has taken over.
    pub async fn reset(&self, begin_lsn: Lsn, timeline: Timeline) -> Result<(), VolumeError> {
        self.opened().await?;
        {
            let mut state = self.head.lock();
            if let Some(why) = &state.closed {
                return Err(why.clone());
            }
            let begin = Durable { lsn: begin_lsn, timeline, epoch: Epoch(0) };
            state.tail.clear();
            state.segments.clear();
            state.histories.clear();
            state.needs.clear();
            state.queued = begin;
            self.head.phase.send_replace(Phase::Opening);
            self.head.durable.send_replace(Durable::default());
            let outputs = state.quorum.reset(begin);
            self.head.pass_on(&mut state, outputs);
        }
        self.opened().await
    }

    /// Keeps a timeline's history: every copy has it on disk before any redo that is appended after this.
    ///
    /// # Errors
    /// When another writer has taken over.
    pub async fn append_history(&self, history: TimelineHistory) -> Result<(), VolumeError> {
        self.opened().await?;
        let mut state = self.head.lock();
        if state.histories.get(&history.timeline) == Some(&history) {
            return Ok(());
        }
        for copy in CopyId::all().filter(|copy| state.quorum.is_adopted(*copy)).collect::<Vec<_>>() {
            if let Some(link) = &state.entry(copy).link {
                link.order(Order::History(history.clone()));
            }
        }
        state.histories.insert(history.timeline, history);
        Ok(())
    }

    /// A timeline's history, if the volume has it. The first timeline's is always known.
    #[must_use]
    pub fn history(&self, timeline: Timeline) -> Option<TimelineHistory> {
        if timeline.0 == 1 {
            return Some(TimelineHistory::first());
        }
        self.head.lock().histories.get(&timeline).cloned()
    }

    /// Reads from `from_lsn`, or from where its context begins.
    ///
    /// # Errors
    /// When that redo is gone or not there yet.
    pub fn cursor(&self, from_lsn: Lsn, start: Start) -> Result<Cursor, VolumeError> {
        Cursor::open(self.head.clone(), from_lsn, start)
    }

    /// Keeps redo from `from_lsn` on for `who`, up to the hard size limit; `None` ends the claim.
    pub fn set_need(&self, who: &str, from_lsn: Option<Lsn>) {
        let needs = &mut self.head.lock().needs;
        match from_lsn {
            Some(lsn) => drop(needs.insert(who.to_owned(), lsn)),
            None => drop(needs.remove(who)),
        }
    }

    /// Bytes of redo in each copy.
    #[must_use]
    pub fn stored_bytes(&self) -> u64 {
        self.head.lock().segments.iter().map(|s| s.stored_bytes).sum()
    }

    /// The volume and its copies.
    #[must_use]
    pub fn status(&self) -> VolumeStatus {
        let bounds = self.head.bounds();
        let state = self.head.lock();
        let copies = CopyId::all().zip(&state.copies).map(|(id, entry)| CopyStatus {
            id,
            place: entry.link.as_ref().map(|link| link.place()).unwrap_or_default(),
            standing: state.quorum.standing(id).clone(),
            flushed_lsn: state.quorum.flushed_lsn(id),
            repair: entry.repair.clone(),
        });
        VolumeStatus {
            ballot: state.quorum.ballot(),
            bounds,
            writable: state.quorum.is_open() && state.quorum.is_quorate(),
            closed: state.closed.as_ref().map(ToString::to_string),
            copies: copies.collect(),
        }
    }

    /// Reads copies back against their checksums and mends what rotted; all, or one.
    pub async fn scrub(&self, only: Option<CopyId>) {
        match only {
            Some(copy) => repair::scrub_one(self.head.clone(), copy).await,
            None => repair::scrub_all(self.head.clone()).await,
        }
    }
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

impl Head {
    pub(crate) fn bounds(&self) -> Bounds {
        let durable = *self.durable.borrow();
        let horizon_lsn = self.lock().segments.first().map_or(durable.lsn, |s| s.begin_lsn);
        Bounds { horizon_lsn, durable_lsn: durable.lsn, timeline: durable.timeline }
    }
}

/// The end of the log after `redo`, if it continues one that ends at `end`.
fn continues(
    end: Durable,
    redo: &Redo,
    histories: &BTreeMap<Timeline, TimelineHistory>,
) -> Result<Durable, VolumeError> {
    let batch = &redo.batch;
    let wrong = |why| {
        let (begin_lsn, timeline, epoch) = (batch.begin_lsn, batch.timeline, batch.epoch);
        Err(VolumeError::Discontinuous { begin_lsn, timeline, epoch, end_lsn: end.lsn, why })
    };
    if batch.begin_lsn != end.lsn {
        return wrong("it begins elsewhere");
    }
    if batch.epoch < end.epoch {
        return wrong("its epoch is over");
    }
    if batch.timeline < end.timeline {
        return wrong("its timeline is over");
    }
    if batch.timeline > end.timeline {
        let fork = histories.get(&batch.timeline).and_then(|h| h.fork_of(end.timeline));
        if fork != Some(batch.begin_lsn) {
            return wrong("its timeline does not fork off here");
        }
    }
    if redo.bytes.len() as u64 != batch.redo_bytes() {
        return wrong("its redo is not as long as it says");
    }
    Ok(Durable { lsn: batch.end_lsn, timeline: batch.timeline, epoch: batch.epoch })
}
