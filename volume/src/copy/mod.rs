//! One copy: a thread that writes, a directory it writes to, and the [`Link`] by which the volume reaches it.
//!
//! The volume does not know whether a copy lies in this process or in another: it gives orders over a link, and hears what
//! came of them as events, in order.

pub mod disk;
pub mod meta;
mod reader;

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use proto::{Batch, ClusterId, Lsn, TimelineHistory};
use tokio::sync::oneshot;

use crate::VolumeError;
use crate::ballot::Ballot;
use crate::quorum::{Adoption, CopyId, Vote};
use crate::segment::{self, Found, Record};
use disk::{Disk, Segments};
use reader::SegmentReader;

/// How long an append that nobody waits for may lie before it is written with those that came meanwhile.
const UNHURRIED: Duration = Duration::from_millis(20);

/// The most records that one read returns, bytes.
pub const READ_BYTES_MAX: usize = 2 << 20;

/// A segment of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SegmentInfo {
    /// Where its redo begins.
    pub begin_lsn: Lsn,
    /// Where its redo ends, as far as it is on disk.
    pub end_lsn: Lsn,
    /// The bytes of the file up to there.
    pub stored_bytes: u64,
    /// The time of its newest commit, microseconds since 1970.
    pub newest_commit_us: i64,
}

/// A batch as every copy stores it.
#[derive(Debug, Clone)]
pub struct Stored {
    /// The batch.
    pub batch: Batch,
    /// Its record; the same bytes in every copy.
    pub record: Bytes,
    /// Whether a segment begins with it; the same in every copy.
    pub begins_segment: bool,
}

impl Stored {
    /// The batch in a record.
    ///
    /// # Errors
    /// When the bytes are no record.
    pub fn decode(record: &Bytes, begins_segment: bool) -> Result<Stored, String> {
        match segment::read_record(record) {
            Found::Record(Record { batch, bytes, .. }) => Ok(Stored { batch, record: bytes, begins_segment }),
            Found::Damaged(what) => Err(what),
            Found::End | Found::More(_) => Err("it is cut short".into()),
        }
    }
}

/// What a copy is told. Carried out in order; what comes of it is an [`Event`].
#[derive(Debug, Clone)]
pub enum Order {
    /// Promise to take nothing below this ballot.
    Promise(Ballot),
    /// Adopt the chosen log.
    Adopt(Adoption),
    /// Append; hurried when somebody waits for it.
    Append {
        /// The ballot that writes it.
        ballot: Ballot,
        /// What to append.
        stored: Stored,
        /// Whether a commit waits for this copy.
        hurried: bool,
    },
    /// Keep a timeline's history.
    History(TimelineHistory),
    /// Drop segments that end at or before this.
    DropBefore(Lsn),
    /// The newest segment was found damaged: cut the log where it begins.
    DistrustNewest,
    /// See whether the files are still there.
    Check,
}

/// What a copy says.
#[derive(Debug, Clone)]
pub enum Event {
    /// It promised this ballot.
    Promised(Ballot, Vote),
    /// It has promised a higher ballot.
    Refused(Ballot),
    /// It adopted the log of this ballot and generation, and holds it up to here.
    Adopted(Ballot, u64, Lsn),
    /// It holds everything up to here on its disk.
    Flushed(Lsn),
    /// Its disk failed.
    Failed(String),
}

/// Who hears a copy's events.
pub type Listener = Arc<dyn Fn(Event) + Send + Sync>;

/// A future of a link's answer.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, VolumeError>> + Send + 'a>>;

/// What a copy tells of its directory.
#[derive(Debug, Clone, Default)]
pub struct Contents {
    /// Its segments, oldest first.
    pub segments: Vec<SegmentInfo>,
    /// The timelines' histories.
    pub histories: Vec<TimelineHistory>,
}

/// What is wrong with a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// Where the segment begins.
    pub begin_lsn: Lsn,
    /// What is wrong, with file and byte.
    pub what: String,
}

/// What a look at everything a copy holds found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scrubbed {
    /// Segments read.
    pub segments: u64,
    /// Bytes read.
    pub bytes: u64,
    /// What is wrong.
    pub damage: Vec<Damage>,
}

/// How the volume reaches a copy.
pub trait Link: Send + Sync + fmt::Debug {
    /// Gives an order; never blocks. What comes of it is heard by the listener.
    fn order(&self, order: Order);
    /// Where the copy lies, for people.
    fn place(&self) -> String;
    /// What the copy holds.
    fn contents(&self) -> Answer<'_, Contents>;
    /// Records that follow each other, from the one that holds `lsn` on; some, and at least one. Each with whether a segment
    /// begins with it.
    fn read(&self, lsn: Lsn) -> Answer<'_, Vec<Stored>>;
    /// A whole sealed segment.
    fn fetch(&self, segment: SegmentInfo) -> Answer<'_, Bytes>;
    /// Puts a whole segment in place: the next one, or instead of a damaged one.
    fn put(&self, segment: SegmentInfo, bytes: Bytes) -> Answer<'_, ()>;
    /// Reads everything back.
    fn scrub(&self) -> Answer<'_, Scrubbed>;
}

/// A copy in this process: a directory and its thread. Whoever writes to it does so by a [`LocalLink`]; when there are two,
/// the one with the higher ballot does.
pub struct LocalCopy {
    id: CopyId,
    directory: PathBuf,
    cluster_id: ClusterId,
    promised: Ballot,
    queue: Arc<Queue>,
    reading: Arc<Mutex<Reading>>,
}

/// What readers share with the copy's thread.
struct Reading {
    segments: Segments,
    log_directory: PathBuf,
    /// The reader that was used last: a catch-up goes on where it was.
    last: Option<(Lsn, SegmentReader)>,
}

/// A way to a copy in this process.
pub struct LocalLink {
    copy: Arc<LocalCopy>,
    listener: Listener,
}

/// A task for the copy's thread, and who hears what comes of it.
struct Task {
    work: Work,
    listener: Listener,
}

enum Work {
    Order(Order),
    Install { info: SegmentInfo, prepared: PathBuf, done: oneshot::Sender<Result<(), VolumeError>> },
}

#[derive(Default)]
struct Queue {
    state: Mutex<QueueState>,
    changed: Condvar,
}

#[derive(Default)]
struct QueueState {
    tasks: VecDeque<Task>,
    /// Somebody waits for one of the tasks.
    hurried: bool,
    /// The thread sleeps until something comes.
    idle: bool,
    closed: bool,
}

impl fmt::Debug for LocalCopy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "copy {} in {}", self.id, self.directory.display())
    }
}

impl LocalCopy {
    /// Opens the copy in `directory` and starts its thread.
    ///
    /// # Errors
    /// When the directory cannot be used, or is another cluster's or copy's.
    pub fn start(
        directory: PathBuf,
        cluster_id: ClusterId,
        id: CopyId,
    ) -> Result<Arc<LocalCopy>, VolumeError> {
        let disk = Disk::open(&directory, cluster_id, id)?;
        let promised = disk.promised();
        let reading = Reading { segments: disk.segments(), log_directory: disk.log_directory(), last: None };
        let reading = Arc::new(Mutex::new(reading));
        let queue = Arc::new(Queue::default());
        let worker = Worker { id, disk, queue: queue.clone(), reading: reading.clone(), failed: None };
        let thread = std::thread::Builder::new().name(format!("copy-{id}"));
        thread.spawn(move || worker.run()).map_err(disk::at(&directory))?;
        Ok(Arc::new(LocalCopy { id, directory, cluster_id, promised, queue, reading }))
    }

    /// A way to the copy; `listener` hears what comes of the orders that go this way.
    #[must_use]
    pub fn link(self: &Arc<LocalCopy>, listener: Listener) -> LocalLink {
        LocalLink { copy: self.clone(), listener }
    }

    /// The ballot it had promised when it was opened.
    #[must_use]
    pub fn promised(&self) -> Ballot {
        self.promised
    }

    fn place_of(&self, segment: SegmentInfo) -> PathBuf {
        guard(&self.reading).log_directory.join(segment::file_name(segment.begin_lsn))
    }

    /// Runs something that reads files where it holds up no other task.
    fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Mutex<Reading>) -> Result<T, VolumeError> + Send + 'static,
    ) -> Answer<'_, T> {
        let reading = self.reading.clone();
        Box::pin(async move {
            let done = tokio::task::spawn_blocking(move || work(&reading)).await;
            done.map_err(|_| VolumeError::Closed)?
        })
    }
}

impl Drop for LocalCopy {
    fn drop(&mut self) {
        guard(&self.queue.state).closed = true;
        self.queue.changed.notify_one();
    }
}

impl fmt::Debug for LocalLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.copy.fmt(f)
    }
}

impl LocalLink {
    fn task(&self, work: Work) -> Task {
        Task { work, listener: self.listener.clone() }
    }
}

impl Link for LocalLink {
    fn order(&self, order: Order) {
        let hurried = !matches!(&order, Order::Append { hurried: false, .. } | Order::Check);
        self.copy.queue.push(self.task(Work::Order(order)), hurried);
    }

    fn place(&self) -> String {
        self.copy.directory.display().to_string()
    }

    fn contents(&self) -> Answer<'_, Contents> {
        self.copy.blocking(|reading| {
            let (segments, directory) = {
                let reading = guard(reading);
                (disk::lock(&reading.segments).clone(), reading.log_directory.clone())
            };
            Ok(Contents { segments, histories: disk::read_histories(&directory)? })
        })
    }

    fn read(&self, lsn: Lsn) -> Answer<'_, Vec<Stored>> {
        self.copy.blocking(move |reading| read_from(&mut guard(reading), lsn))
    }

    fn fetch(&self, segment: SegmentInfo) -> Answer<'_, Bytes> {
        let (path, cluster_id) = (self.copy.place_of(segment), self.copy.cluster_id);
        self.copy.blocking(move |_| reader::read_whole(&path, cluster_id, segment))
    }

    fn put(&self, segment: SegmentInfo, bytes: Bytes) -> Answer<'_, ()> {
        let cluster_id = self.copy.cluster_id;
        let prepared = self.copy.blocking(move |reading| {
            let directory = guard(reading).log_directory.clone();
            disk::prepare(&directory, cluster_id, segment, &bytes)
        });
        Box::pin(async move {
            let (done, installed) = oneshot::channel();
            let work = Work::Install { info: segment, prepared: prepared.await?, done };
            self.copy.queue.push(self.task(work), true);
            installed.await.map_err(|_| VolumeError::Closed)?
        })
    }

    fn scrub(&self) -> Answer<'_, Scrubbed> {
        let cluster_id = self.copy.cluster_id;
        Box::pin(async move {
            let mut scrubbed = Scrubbed::default();
            let segments = { disk::lock(&guard(&self.copy.reading).segments).clone() };
            for segment in segments {
                let path = self.copy.place_of(segment);
                let read = self.copy.blocking(move |_| reader::read_whole(&path, cluster_id, segment)).await;
                scrubbed.segments += 1;
                scrubbed.bytes += segment.stored_bytes;
                // Dropped meanwhile is not damaged.
                let still = || {
                    disk::lock(&guard(&self.copy.reading).segments)
                        .iter()
                        .any(|s| s.begin_lsn == segment.begin_lsn)
                };
                if let Err(e) = read
                    && still()
                {
                    scrubbed.damage.push(Damage { begin_lsn: segment.begin_lsn, what: e.to_string() });
                }
            }
            Ok(scrubbed)
        })
    }
}

/// Records from `lsn` on, up to what is on disk.
fn read_from(reading: &mut Reading, lsn: Lsn) -> Result<Vec<Stored>, VolumeError> {
    let mut found: Vec<Stored> = Vec::new();
    let mut bytes = 0;
    let mut next_lsn = lsn;
    while bytes < READ_BYTES_MAX {
        let info = {
            let segments = disk::lock(&reading.segments);
            let after = segments.partition_point(|segment| segment.begin_lsn <= next_lsn);
            match after.checked_sub(1).map(|index| segments[index]) {
                Some(info) => info,
                None => {
                    let horizon_lsn = segments.first().map_or(Lsn(u64::MAX), |s| s.begin_lsn);
                    return Err(VolumeError::HorizonPassed { asked_lsn: lsn, horizon_lsn });
                }
            }
        };
        if next_lsn >= info.end_lsn {
            break;
        }
        let mut reader = match reading.last.take() {
            Some((at_lsn, mut reader)) if at_lsn == next_lsn && reader.info().begin_lsn == info.begin_lsn => {
                reader.extend(info);
                reader
            }
            _ => SegmentReader::open(&reading.log_directory.join(segment::file_name(info.begin_lsn)), info)?,
        };
        while bytes < READ_BYTES_MAX {
            let Some(record) = reader.next_record()? else { break };
            if record.batch.end_lsn <= next_lsn {
                continue;
            }
            // The first may begin before what was asked for; after it each continues the one before.
            if record.batch.begin_lsn > next_lsn || !found.is_empty() && record.batch.begin_lsn != next_lsn {
                let path = reading.log_directory.join(segment::file_name(info.begin_lsn));
                return Err(disk::damaged(
                    &path,
                    reader.offset(),
                    &format!("redo from {next_lsn} is missing"),
                ));
            }
            bytes += record.bytes.len();
            next_lsn = record.batch.end_lsn;
            let begins_segment = record.batch.begin_lsn == info.begin_lsn;
            found.push(Stored { batch: record.batch, record: record.bytes, begins_segment });
        }
        if next_lsn < info.end_lsn && bytes < READ_BYTES_MAX {
            let path = reading.log_directory.join(segment::file_name(info.begin_lsn));
            return Err(disk::damaged(&path, reader.offset(), &format!("redo from {next_lsn} is missing")));
        }
        reading.last = Some((next_lsn, reader));
    }
    match found.is_empty() {
        true => Err(VolumeError::Ahead { asked_lsn: lsn, durable_lsn: next_lsn }),
        false => Ok(found),
    }
}

fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change under these locks is whole before anything in it can panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Queue {
    fn push(&self, task: Task, hurried: bool) {
        let mut state = guard(&self.state);
        state.tasks.push_back(task);
        // A thread that sleeps over unhurried tasks is woken by hurried ones only; an idle one by any.
        let wake = state.idle || hurried && !state.hurried;
        state.hurried |= hurried;
        drop(state);
        if wake {
            self.changed.notify_one();
        }
    }

    /// Waits for tasks; none once the copy is closed. Unhurried ones gather for a while.
    fn take(&self, into: &mut Vec<Task>) -> Option<()> {
        let mut state = guard(&self.state);
        while state.tasks.is_empty() {
            if state.closed {
                return None;
            }
            state.idle = true;
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle = false;
        }
        if !state.hurried && !state.closed {
            let gathered =
                self.changed.wait_timeout_while(state, UNHURRIED, |state| !state.hurried && !state.closed);
            state = gathered.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.hurried = false;
        into.extend(state.tasks.drain(..));
        Some(())
    }
}

/// The copy's thread.
struct Worker {
    id: CopyId,
    disk: Disk,
    queue: Arc<Queue>,
    reading: Arc<Mutex<Reading>>,
    /// A write failed: what is on disk behind the last flush is unknown, and asking again would not tell. Nothing more is
    /// written, so nothing more is called durable, until the copy is opened again.
    failed: Option<String>,
}

impl Worker {
    fn run(mut self) {
        let (mut tasks, mut group) = (Vec::new(), Vec::new());
        while self.queue.take(&mut tasks).is_some() {
            let mut appender = None;
            for Task { work, listener } in tasks.drain(..) {
                match work {
                    Work::Order(Order::Append { ballot, stored, .. }) if ballot == self.disk.promised() => {
                        group.push(stored);
                        appender = Some(listener);
                    }
                    other => {
                        self.append(&mut group, appender.as_ref());
                        self.carry_out(other, &listener);
                    }
                }
            }
            self.append(&mut group, appender.as_ref());
        }
    }

    fn append(&mut self, group: &mut Vec<Stored>, listener: Option<&Listener>) {
        let Some(listener) = listener.filter(|_| !group.is_empty()) else { return };
        let appended = match &self.failed {
            None => self.disk.append(group).map_err(|e| e.to_string()),
            Some(why) => Err(why.clone()),
        };
        group.clear();
        match appended {
            Ok(end) => listener(Event::Flushed(end.lsn)),
            Err(e) => self.fail(e, listener),
        }
    }

    fn carry_out(&mut self, work: Work, listener: &Listener) {
        if let Some(why) = &self.failed {
            return listener(Event::Failed(why.clone()));
        }
        let result = match work {
            Work::Install { info, prepared, done } => {
                let installed = self.disk.install(info, &prepared);
                if let Ok(end) = &installed {
                    listener(Event::Flushed(end.lsn));
                }
                // Whoever asked and went away needs no answer.
                let _ = done.send(installed.map(drop));
                Ok(None)
            }
            Work::Order(order) => self.obey(order),
        };
        match result {
            Ok(Some(event)) => listener(event),
            Ok(None) => {}
            Err(e) => self.fail(e.to_string(), listener),
        }
    }

    fn obey(&mut self, order: Order) -> Result<Option<Event>, VolumeError> {
        match order {
            Order::Promise(ballot) => {
                return Ok(Some(match self.disk.promise(ballot)? {
                    Ok(vote) => Event::Promised(ballot, vote),
                    Err(higher) => Event::Refused(higher),
                }));
            }
            Order::Adopt(adoption) => {
                let adopted = self.disk.adopt(&adoption)?;
                let mut reading = guard(&self.reading);
                (reading.log_directory, reading.last) = (self.disk.log_directory(), None);
                return Ok(Some(match adopted {
                    Ok(end) => Event::Adopted(adoption.ballot, adoption.generation, end.lsn),
                    Err(higher) => Event::Refused(higher),
                }));
            }
            // Those of the promised ballot were taken before they came here.
            Order::Append { .. } => return Ok(Some(Event::Refused(self.disk.promised()))),
            Order::History(history) => self.disk.put_history(&history)?,
            Order::DropBefore(lsn) => self.disk.drop_before(lsn),
            Order::DistrustNewest => {
                self.disk.distrust_newest()?;
                guard(&self.reading).last = None;
            }
            Order::Check => self.disk.check()?,
        }
        Ok(None)
    }

    fn fail(&mut self, why: String, listener: &Listener) {
        if self.failed.is_none() {
            tracing::error!("copy {} takes no more redo: {why}", self.id);
            self.failed = Some(why.clone());
        }
        listener(Event::Failed(why));
    }
}

/// The directory of a copy below its volume's.
#[must_use]
pub fn directory_of(volume: &Path, copy: CopyId) -> PathBuf {
    volume.join(format!("az-{}", copy.zone())).join(copy.to_string())
}
