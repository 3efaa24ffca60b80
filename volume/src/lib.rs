//! A region's redo log: durable before anything is acknowledged, shipped or fed on; read by many at their own pace.
//!
//! [`Volume`] is what the rest of the region sees. Below it lies a copy: one log on one disk ([`copy`], [`segment`]).
//! Today a volume has one copy. What it says is durable is durable on that copy; the interface already speaks only of what
//! the *volume* has durable, so that a quorum over six copies takes its place without anyone above noticing.
//!
//! docs/VOLUME.md describes the format on disk.

pub mod retention;
pub mod segment;

mod copy;
mod cursor;
mod tail;
mod writer;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use proto::batch::BatchError;
use proto::timeline::TimelineError;
use proto::{ClusterId, Epoch, Lsn, Redo, Timeline, TimelineHistory};
use tokio::sync::{mpsc, oneshot, watch};

pub use cursor::{Cursor, Start};
use tail::Tail;
use writer::Task;

/// Appends that may wait for the disk. The reader keeps two in flight; a receiver catching up fills it.
const QUEUE_BATCHES: usize = 64;

/// What a volume is made of.
#[derive(Debug, Clone)]
pub struct VolumeOptions {
    /// Where the copy lies.
    pub directory: PathBuf,
    /// The cluster it belongs to; another cluster's copy is refused.
    pub cluster_id: ClusterId,
    /// A segment ends at the first context that begins beyond this, bytes.
    pub segment_bytes: u64,
    /// Redo older than this goes when nobody needs it.
    pub retain: Duration,
    /// The most the volume may take on disk, bytes; beyond it the oldest redo goes, needed or not.
    pub max_size_bytes: u64,
    /// How much recent redo is kept in memory for live readers, bytes.
    pub tail_bytes: usize,
}

impl VolumeOptions {
    /// The defaults: 16 MiB segments, a day, 10 GiB, and 32 MiB in memory.
    #[must_use]
    pub fn new(directory: PathBuf, cluster_id: ClusterId) -> VolumeOptions {
        VolumeOptions {
            directory,
            cluster_id,
            segment_bytes: 16 << 20,
            retain: Duration::from_secs(24 * 3600),
            max_size_bytes: 10 << 30,
            tail_bytes: 32 << 20,
        }
    }
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
    /// A write failed earlier; nothing is written since.
    #[error(
        "this copy takes no more redo since a write failed: {0}. Mend the disk, then start the region again"
    )]
    ReadOnly(String),
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
    shared: Arc<Shared>,
    tasks: mpsc::Sender<Task>,
}

/// What handle, cursors and writer share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) options: VolumeOptions,
    pub(crate) durable: watch::Sender<Durable>,
    pub(crate) state: Mutex<State>,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    /// The segments on disk, oldest first, and how far the newest is durable.
    pub(crate) segments: Vec<copy::SegmentEntry>,
    pub(crate) tail: Tail,
    pub(crate) histories: BTreeMap<Timeline, TimelineHistory>,
    pub(crate) needs: BTreeMap<String, Lsn>,
    /// The end of what was queued: durable or on its way.
    pub(crate) queued: Durable,
    pub(crate) read_only: Option<String>,
}

impl Volume {
    /// Opens the volume, or makes an empty one; recovers from a torn tail.
    ///
    /// # Errors
    /// When the directory cannot be used, belongs to another cluster, or is damaged anywhere but at its torn end.
    pub async fn open(options: VolumeOptions) -> Result<Volume, VolumeError> {
        let (tasks, queue) = mpsc::channel(QUEUE_BATCHES);
        let opened = tokio::task::spawn_blocking(move || -> Result<Arc<Shared>, VolumeError> {
            let recovered = copy::Copy::open(&options)?;
            let durable = recovered.durable;
            let tail = Tail::new(options.tail_bytes);
            let state = State {
                segments: recovered.segments,
                tail,
                histories: recovered.histories,
                queued: durable,
                ..State::default()
            };
            let shared =
                Arc::new(Shared { options, durable: watch::Sender::new(durable), state: Mutex::new(state) });
            writer::spawn(recovered.copy, shared.clone(), queue)?;
            Ok(shared)
        });
        let shared = opened.await.map_err(|_| VolumeError::Closed)??;
        Ok(Volume { shared, tasks })
    }

    /// Whether nothing was ever put here since it was made or reset.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.shared.durable.borrow().lsn == Lsn::ZERO
    }

    /// What redo is here.
    #[must_use]
    pub fn bounds(&self) -> Bounds {
        self.shared.bounds()
    }

    /// Follows how far the redo is durable.
    #[must_use]
    pub fn watch_durable(&self) -> watch::Receiver<Durable> {
        self.shared.durable.subscribe()
    }

    /// Queues a batch; it is durable once [`Volume::watch_durable`] says so. Waits while the queue is full. When this is
    /// cancelled, the batch was not queued.
    ///
    /// # Errors
    /// When the batch does not continue the log, or the volume takes no more redo.
    pub async fn append(&self, redo: Redo) -> Result<(), VolumeError> {
        let place = self.tasks.reserve().await.map_err(|_| VolumeError::Closed)?;
        {
            let mut state = self.shared.lock();
            if let Some(why) = &state.read_only {
                return Err(VolumeError::ReadOnly(why.clone()));
            }
            state.queued = continues(state.queued, &redo, &state.histories)?;
            place.send(Task::Append(redo));
        }
        Ok(())
    }

    /// Waits until nothing queued is on its way to the disk any more.
    ///
    /// # Errors
    /// When the disk failed meanwhile.
    pub async fn settle(&self) -> Result<(), VolumeError> {
        self.ask(Task::Settle).await
    }

    /// Empties the volume; its redo will begin at `begin_lsn` on `timeline`. Done on disk when this returns.
    ///
    /// # Errors
    /// When the disk fails.
    pub async fn reset(&self, begin_lsn: Lsn, timeline: Timeline) -> Result<(), VolumeError> {
        self.ask(|done| Task::Reset { begin_lsn, timeline, done }).await
    }

    /// Keeps a timeline's history. On disk when this returns.
    ///
    /// # Errors
    /// When the disk fails.
    pub async fn append_history(&self, history: TimelineHistory) -> Result<(), VolumeError> {
        if self.history(history.timeline).as_ref() == Some(&history) {
            return Ok(());
        }
        self.ask(|done| Task::History { history, done }).await
    }

    /// A timeline's history, if the volume has it. The first timeline's is always known.
    #[must_use]
    pub fn history(&self, timeline: Timeline) -> Option<TimelineHistory> {
        if timeline.0 == 1 {
            return Some(TimelineHistory::first());
        }
        self.shared.lock().histories.get(&timeline).cloned()
    }

    /// Reads from `from_lsn`, or from where its context begins.
    ///
    /// # Errors
    /// When that redo is gone or not there yet.
    pub fn cursor(&self, from_lsn: Lsn, start: Start) -> Result<Cursor, VolumeError> {
        Cursor::open(self.shared.clone(), from_lsn, start)
    }

    /// Keeps redo from `from_lsn` on for `who`, up to the hard size limit; `None` ends the claim.
    pub fn set_need(&self, who: &str, from_lsn: Option<Lsn>) {
        let needs = &mut self.shared.lock().needs;
        match from_lsn {
            Some(lsn) => drop(needs.insert(who.to_owned(), lsn)),
            None => drop(needs.remove(who)),
        }
    }

    /// Bytes on disk.
    #[must_use]
    pub fn stored_bytes(&self) -> u64 {
        self.shared.lock().segments.iter().map(|s| s.stored_bytes).sum()
    }

    async fn ask(
        &self,
        task: impl FnOnce(oneshot::Sender<Result<(), VolumeError>>) -> Task,
    ) -> Result<(), VolumeError> {
        let (done, answer) = oneshot::channel();
        self.tasks.send(task(done)).await.map_err(|_| VolumeError::Closed)?;
        answer.await.map_err(|_| VolumeError::Closed)?
    }
}

impl Shared {
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        // Each change under the lock is whole before anything in it can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

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
