//! One copy: a thread that writes, a directory it writes to, and the [`Link`] by which the volume reaches it.
//!
//! The volume does not know whether a copy lies in this process or in another: it gives orders over a link,
//! and hears what came of them as events, in order.

pub mod disk;
mod errors;
mod files;
pub mod keeper;
mod keys;
mod lane;
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
use proto::{Batch, ClusterId, Lsn, Timeline, TimelineHistory};
use runtime::task::Thread;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::ballot::Ballot;
use crate::key::KeyId;
use crate::quorum::{Adoption, CopyId, Vote, Writer};
use crate::segment::{self, Found, Record};
use crate::{Durable, VolumeError};
use disk::{Disk, Segments};
use keeper::{Keeper, Store, Work};
pub use keys::keys_in;
pub use lane::Lane;
use lane::{Handed, Later};
use meta::Meta;
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
    /// The key that its records are sealed with; none where they are in the clear.
    pub key: Option<KeyId>,
}

/// A batch as every copy stores it.
#[derive(Debug, Clone)]
pub struct Stored {
    /// The batch. Of a sealed record that was read, its redo is sealed: [`crate::seal::Sealer::open`].
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
        /// Who writes it, and to which log.
        writer: Writer,
        /// What to append.
        stored: Stored,
        /// Whether a commit waits for this copy.
        hurried: bool,
    },
    /// Keep a timeline's history.
    History(Writer, TimelineHistory),
    /// Drop segments that end at or before this.
    DropBefore(Writer, Lsn),
    /// The newest segment was found damaged: cut the log where it begins.
    DistrustNewest(Writer),
    /// See whether the files are still there, and whether this writer may still write: one that has nothing
    /// to write hears so of another that took over. None where an earlier version asks.
    Check(Option<Writer>),
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

/// A peer's whole segment that is put in place. It may come by another way than the orders, and overtake
/// them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Put {
    /// In whose name, and in which log.
    pub writer: Writer,
    /// Which segment.
    pub segment: SegmentInfo,
    /// The newest timeline that the log has a history of: a copy that does not hold it refuses the segment,
    /// which may be redo of that timeline. Redo without its history is no log that can be chosen.
    pub history: Timeline,
}

/// How the volume reaches a copy.
pub trait Link: Send + Sync + fmt::Debug {
    /// Gives an order; never blocks. What comes of it is heard by the listener.
    fn order(&self, order: Order);
    /// Where the copy lies, for people.
    fn place(&self) -> String;
    /// The ballot that the copy has promised by now: whoever is answered a ballot could still write under it
    /// after asking.
    fn promised(&self) -> Answer<'_, Ballot>;
    /// What the copy holds.
    fn contents(&self) -> Answer<'_, Contents>;
    /// Records that follow each other, from the one that holds `lsn` on; some, and at least one. Each with
    /// whether a segment begins with it.
    fn read(&self, lsn: Lsn) -> Answer<'_, Vec<Stored>>;
    /// A whole sealed segment.
    fn fetch(&self, segment: SegmentInfo) -> Answer<'_, Bytes>;
    /// Puts a whole segment of the writer's log in place: the next one, or in place of a damaged one. How far
    /// the copy then holds the log is heard by the listener of the link that asked for its promise, among all
    /// else that the copy says.
    fn put(&self, put: Put, bytes: Bytes) -> Answer<'_, ()>;
    /// Reads everything back.
    fn scrub(&self) -> Answer<'_, Scrubbed>;
}

/// A copy in this process: a directory and its thread. Whoever writes to it does so by a [`LocalLink`]; when
/// there are two, the one with the higher ballot does.
pub struct LocalCopy {
    id: CopyId,
    directory: PathBuf,
    cluster_id: ClusterId,
    queue: Arc<Queue>,
    reading: Arc<Mutex<Reading>>,
    /// Ends when the queue is closed, as it is when this is dropped.
    _thread: Thread,
    /// Ends with its last copy.
    _lane: Option<Arc<Lane>>,
}

/// What readers share with the copy's thread.
struct Reading {
    /// What the copy has promised, set before anybody hears of the promise.
    promised: Ballot,
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

/// A task for the copy's thread.
type Task = keeper::Task<PathBuf>;

#[derive(Default)]
struct Queue {
    state: Mutex<QueueState>,
    changed: Condvar,
    lane: Option<Arc<lane::Shared>>,
}

#[derive(Default)]
struct QueueState {
    tasks: VecDeque<Task>,
    /// Somebody waits for one of the tasks.
    hurried: bool,
    /// The thread sleeps until something comes.
    idle: bool,
    /// When unhurried tasks have gathered for long enough.
    due: Option<Instant>,
    /// The lane has the copy, and not its thread.
    at_lane: bool,
    /// The copy on its way back.
    handed: Option<Box<Handed>>,
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
        LocalCopy::start_in(directory, cluster_id, id, None)
    }

    /// As [`LocalCopy::start`]; a lane that it shares with other copies does the appends where that can be.
    ///
    /// # Errors
    /// As [`LocalCopy::start`].
    pub fn start_in(
        directory: PathBuf,
        cluster_id: ClusterId,
        id: CopyId,
        lane: Option<Arc<Lane>>,
    ) -> Result<Arc<LocalCopy>, VolumeError> {
        let disk = Disk::open(&directory, cluster_id, id)?;
        let (promised, segments) = (disk.promised(), disk.segments());
        let reading = Reading { promised, segments, log_directory: disk.log_directory(), last: None };
        let reading = Arc::new(Mutex::new(reading));
        let queue = Arc::new(Queue { lane: lane.as_ref().map(|lane| lane.shared()), ..Queue::default() });
        let keeper = Keeper::new(id, Files { disk, reading: reading.clone() });
        let tasks = queue.clone();
        let thread = Thread::spawn(&format!("copy-{id}"), move || keep(keeper, &tasks));
        let _thread = thread.map_err(errors::at(&directory))?;
        Ok(Arc::new(LocalCopy { id, directory, cluster_id, queue, reading, _thread, _lane: lane }))
    }

    /// A way to the copy; `listener` hears what comes of the orders that go this way.
    #[must_use]
    pub fn link(self: &Arc<LocalCopy>, listener: Listener) -> LocalLink {
        LocalLink { copy: self.clone(), listener }
    }

    /// The ballot that it has promised by now.
    #[must_use]
    pub fn promised(&self) -> Ballot {
        guard(&self.reading).promised
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
            let done = runtime::task::blocking("files of a copy", move || work(&reading)).await;
            done.map_err(|_| VolumeError::Closed)?
        })
    }
}

impl Drop for LocalCopy {
    fn drop(&mut self) {
        let mut state = guard(&self.queue.state);
        state.closed = true;
        let at_lane = state.at_lane;
        drop(state);
        match &self.queue.lane {
            Some(lane) if at_lane => lane.wake(),
            _ => self.queue.changed.notify_one(),
        }
    }
}

impl fmt::Debug for LocalLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.copy.fmt(f)
    }
}

impl LocalLink {
    fn task(&self, work: Work<PathBuf>) -> Task {
        Task { work, listener: self.listener.clone() }
    }
}

impl Link for LocalLink {
    fn order(&self, order: Order) {
        let hurried = !matches!(&order, Order::Append { hurried: false, .. } | Order::Check(_));
        self.copy.queue.push(self.task(Work::Order(order)), hurried);
    }

    fn place(&self) -> String {
        self.copy.directory.display().to_string()
    }

    fn promised(&self) -> Answer<'_, Ballot> {
        Box::pin(std::future::ready(Ok(self.copy.promised())))
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

    fn put(&self, put: Put, bytes: Bytes) -> Answer<'_, ()> {
        let cluster_id = self.copy.cluster_id;
        let prepared = self.copy.blocking(move |reading| {
            let directory = guard(reading).log_directory.clone();
            disk::prepare(&directory, cluster_id, put.segment, &bytes)
        });
        Box::pin(async move {
            let (done, installed) = oneshot::channel();
            let work = Work::Install { put, prepared: prepared.await?, done };
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
                return Err(errors::damaged(
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
            return Err(errors::damaged(&path, reader.offset(), &format!("redo from {next_lsn} is missing")));
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
        if state.at_lane && !hurried && state.tasks.is_empty() {
            state.due = Some(runtime::clock::now() + UNHURRIED);
        }
        let first = state.tasks.is_empty();
        state.tasks.push_back(task);
        if state.at_lane {
            // It is to know when what is not hurried has gathered.
            let wake = first || hurried && !state.hurried;
            state.hurried |= hurried;
            drop(state);
            if let Some(lane) = self.lane.as_ref().filter(|_| wake) {
                lane.wake();
            }
            return;
        }
        // A thread that sleeps over unhurried tasks is woken by hurried ones only; an idle one by any.
        let wake = state.idle || hurried && !state.hurried;
        state.hurried |= hurried;
        drop(state);
        if wake {
            self.changed.notify_one();
        }
    }

    /// The lane takes the copy.
    fn go_to_lane(&self) {
        let mut state = guard(&self.state);
        state.at_lane = true;
        state.due = None;
    }

    /// The lane gives the copy back to its thread.
    fn hand(&self, handed: Handed) {
        let mut state = guard(&self.state);
        state.at_lane = false;
        state.handed = Some(Box::new(handed));
        drop(state);
        self.changed.notify_one();
    }

    /// Waits until the lane gives the copy back.
    fn handed(&self) -> Handed {
        let mut state = guard(&self.state);
        loop {
            if let Some(handed) = state.handed.take() {
                return *handed;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Takes the tasks that are due, for the lane.
    fn take_now(&self, into: &mut VecDeque<Task>, now: Instant) -> Result<(), Later> {
        let mut state = guard(&self.state);
        if state.tasks.is_empty() {
            return Err(if state.closed { Later::Closed } else { Later::Idle });
        }
        match state.due {
            Some(due) if due > now && !state.hurried && !state.closed => return Err(Later::At(due)),
            _ => {}
        }
        (state.hurried, state.due) = (false, None);
        into.extend(state.tasks.drain(..));
        Ok(())
    }

    /// Whether the copy is closed, and everything is done.
    fn is_over(&self) -> bool {
        let state = guard(&self.state);
        state.closed && state.tasks.is_empty()
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

/// Does what comes, until the copy is closed. Where there is a lane, it has the copy while there are only
/// appends.
fn keep(mut keeper: Keeper<Files>, queue: &Arc<Queue>) {
    let mut tasks = Vec::new();
    loop {
        keeper = match &queue.lane {
            Some(lane) if !keeper.has_failed() && keeper.store_mut().disk.make_direct() => {
                match lane.give(keeper, queue) {
                    None => {
                        let Handed { mut keeper, group, tasks } = queue.handed();
                        if let Some(group) = group {
                            keeper.write(group);
                        }
                        keeper.work(tasks.into_iter());
                        if queue.is_over() {
                            return;
                        }
                        keeper
                    }
                    Some(keeper) => return keep_alone(keeper, queue),
                }
            }
            _ => keeper,
        };
        if queue.lane.is_none() || keeper.has_failed() || !keeper.store_mut().disk.make_direct() {
            if queue.take(&mut tasks).is_none() {
                return;
            }
            keeper.work(tasks.drain(..));
        }
    }
}

/// Does what comes, until the copy is closed.
fn keep_alone(mut keeper: Keeper<Files>, queue: &Queue) {
    let mut tasks = Vec::new();
    while queue.take(&mut tasks).is_some() {
        keeper.work(tasks.drain(..));
    }
}

/// The directory as the copy's thread changes it, and what its readers know of it.
struct Files {
    disk: Disk,
    reading: Arc<Mutex<Reading>>,
}

impl Files {
    /// What was read before may be gone, and other redo in its place.
    fn renew(&self) {
        let mut reading = guard(&self.reading);
        (reading.log_directory, reading.last) = (self.disk.log_directory(), None);
    }
}

impl Store for Files {
    type Prepared = PathBuf;

    fn meta(&self) -> &Meta {
        self.disk.meta()
    }

    fn vote(&self) -> Vote {
        self.disk.vote()
    }

    fn end(&self) -> Durable {
        self.disk.end()
    }

    fn is_empty(&self) -> bool {
        self.disk.is_empty()
    }

    fn write_meta(&mut self, meta: Meta) -> Result<(), VolumeError> {
        let written = self.disk.write_meta(meta);
        guard(&self.reading).promised = self.disk.meta().promised;
        written
    }

    fn cut(&mut self, lsn: Lsn) -> Result<(), VolumeError> {
        let cut = self.disk.cut(lsn);
        self.renew();
        cut
    }

    fn begin_anew(&mut self, meta: Meta) -> Result<(), VolumeError> {
        let begun = self.disk.begin_anew(meta);
        guard(&self.reading).promised = self.disk.meta().promised;
        self.renew();
        begun
    }

    fn roll(&mut self, first: &Stored) -> Result<(), VolumeError> {
        self.disk.roll(first)
    }

    fn write(&mut self, records: &[Stored]) -> Result<(), VolumeError> {
        self.disk.write(records)
    }

    fn install(&mut self, info: SegmentInfo, prepared: PathBuf) -> Result<Durable, VolumeError> {
        self.disk.install(info, &prepared)
    }

    fn has_history(&self, timeline: Timeline) -> bool {
        self.disk.has_history(timeline)
    }

    fn put_history(&mut self, history: &TimelineHistory) -> Result<(), VolumeError> {
        self.disk.put_history(history)
    }

    fn drop_before(&mut self, lsn: Lsn) {
        self.disk.drop_before(lsn);
    }

    fn distrust_newest(&mut self) -> Result<(), VolumeError> {
        let distrusted = self.disk.distrust_newest();
        self.renew();
        distrusted
    }

    fn check(&self) -> Result<(), VolumeError> {
        self.disk.check()
    }
}

/// The directory of a copy below its volume's.
#[must_use]
pub fn directory_of(volume: &Path, copy: CopyId) -> PathBuf {
    volume.join(format!("az-{}", copy.zone())).join(copy.to_string())
}
