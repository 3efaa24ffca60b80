//! Drives the log: hands its orders to the copies, tells it what they say, and publishes what is durable.
//!
//! The way of a commit is short: [`Head::append`] hands a batch to the copies' threads, and the thread whose
//! flush completes a write quorum publishes the new durable LSN itself. What takes longer than giving an
//! order, openings, fills and readings back, is the supervisor's (`supervisor.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use proto::{Lsn, Redo};
use tokio::sync::{Notify, watch};

use crate::ballot::Ballot;
use crate::copy::{Event, Lane, Link, Listener, LocalCopy, directory_of};
use crate::log::{Appended, Effect, Log, LogOptions, Phase, Told};
use crate::quorum::{COPIES, CopyId, CopyState};
use crate::retention::{Policy, Room};
use crate::{Bounds, Durable, Tuning, VolumeError, VolumeOptions};

/// What handles, cursors, copies' threads and the supervisor share.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) options: VolumeOptions,
    pub(crate) durable: watch::Sender<Durable>,
    /// How far the opening is.
    pub(crate) phase: watch::Sender<Phase>,
    /// Counts what copies that are being filled have on disk.
    pub(crate) filled: watch::Sender<u64>,
    /// What may be another while the volume works.
    pub(crate) tuning: watch::Sender<Tuning>,
    /// The supervisor has something to do.
    asked: Notify,
    state: Mutex<State>,
    /// Appends to the copies of this process.
    lane: OnceLock<Arc<Lane>>,
}

#[derive(Debug)]
struct State {
    log: Log,
    ways: Vec<Way>,
    jobs: Jobs,
}

/// The way to a copy.
#[derive(Debug, Default)]
struct Way {
    link: Option<Arc<dyn Link>>,
    /// Counts the links a copy had: what an earlier one still says is not heard.
    number: u64,
    /// It is being opened again, by one task.
    reopening: bool,
}

/// What the supervisor is asked to do: of each kind one for each copy at most, the latest.
#[derive(Debug, Default)]
pub(crate) struct Jobs {
    /// Ask the copy whose log was chosen what it holds.
    pub(crate) inspect: Option<(CopyId, Ballot)>,
    /// Fill the copy from here on, instead of an earlier filling; none ends that.
    pub(crate) fills: BTreeMap<CopyId, Option<Lsn>>,
    /// A reader found the copy damaged.
    pub(crate) damaged: BTreeSet<CopyId>,
    /// The copy failed.
    pub(crate) reopen: BTreeSet<CopyId>,
    /// The copy's segment that begins here was changed: of each copy one at a time.
    pub(crate) forged: BTreeMap<CopyId, Lsn>,
}

impl Head {
    pub(crate) fn new(options: VolumeOptions) -> Arc<Head> {
        let tuning = options.tuning();
        let log = Log::new(LogOptions {
            epoch: options.epoch,
            writer: options.writer,
            segment_bytes: options.segment_bytes,
            policy: policy_of(&tuning),
            tail_bytes: options.tail_bytes,
            own: options.copies.iter().copied().collect(),
            sealer: options.sealer.clone(),
            tenure: options.tenure.clone(),
        });
        let ways = (0..COPIES).map(|_| Way::default()).collect();
        Arc::new(Head {
            options,
            durable: watch::Sender::new(Durable::default()),
            phase: watch::Sender::new(Phase::Opening),
            filled: watch::Sender::new(0),
            tuning: watch::Sender::new(tuning),
            asked: Notify::new(),
            state: Mutex::new(State { log, ways, jobs: Jobs::default() }),
            lane: OnceLock::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change under the lock is whole before anything in it can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The least room on the file systems of the copies in this process. Blocks where a disk hangs.
    pub(crate) fn look_at_room(&self) -> Option<Room> {
        let mut rooms: BTreeMap<u64, Room> = BTreeMap::new();
        for copy in &self.options.copies {
            let directory = directory_of(&self.options.directory, *copy);
            let (Ok(place), Ok(room)) = (std::fs::metadata(&directory), rustix::fs::statvfs(&directory))
            else {
                continue;
            };
            let bytes = |blocks: u64| blocks.saturating_mul(room.f_frsize);
            let (free_bytes, total_bytes) = (bytes(room.f_bavail), bytes(room.f_blocks));
            let known = rooms.entry(place.dev()).or_insert(Room { free_bytes, total_bytes, copies: 0 });
            known.copies += 1;
        }
        rooms.into_values().max_by_key(|room| room.lacking_bytes())
    }

    /// Looks at the log.
    pub(crate) fn look<T>(&self, at: impl FnOnce(&Log) -> T) -> T {
        at(&self.lock().log)
    }

    /// Lets the log take in an event, and does what it says.
    pub(crate) fn change<T>(&self, by: impl FnOnce(&mut Log) -> T) -> T {
        let mut state = self.lock();
        let done = by(&mut state.log);
        self.carry_out(&mut state);
        done
    }

    /// Does what the log says, under the lock, so that the copies hear orders as they were decided. Giving
    /// one never blocks.
    fn carry_out(&self, state: &mut State) {
        let State { log, ways, jobs } = state;
        let mut asked = false;
        for effect in log.effects() {
            if let Effect::Order(copy, order) = effect {
                if let Some(link) = &ways[copy.index()].link {
                    link.order(order);
                }
                continue;
            }
            asked = true;
            match effect {
                Effect::Order(..) => {}
                Effect::Inspect(copy, ballot) => jobs.inspect = Some((copy, ballot)),
                Effect::Fill(copy, from_lsn) => drop(jobs.fills.insert(copy, Some(from_lsn))),
                Effect::EndFill(copy) => drop(jobs.fills.insert(copy, None)),
                Effect::Reopen(copy) => drop(jobs.reopen.insert(copy)),
                Effect::Tell(told) => tell(told),
            }
        }
        if asked {
            self.asked.notify_one();
        }
        let (durable, phase) = (log.durable(), log.phase());
        // Whoever sees the volume open sees its redo, too.
        if phase == Phase::Opening {
            self.set_phase(phase);
        }
        if *self.durable.borrow() != durable {
            self.durable.send_replace(durable);
        }
        self.set_phase(phase);
    }

    fn set_phase(&self, phase: Phase) {
        if *self.phase.borrow() != phase {
            self.phase.send_replace(phase);
        }
    }

    /// Works by `tuning` from now on.
    pub(crate) fn tune(&self, tuning: Tuning) {
        self.change(|log| log.set_policy(policy_of(&tuning)));
        self.tuning.send_replace(tuning);
    }

    /// Waits until there is something to do, and takes it.
    pub(crate) async fn jobs(&self) -> Jobs {
        self.asked.notified().await;
        std::mem::take(&mut self.lock().jobs)
    }

    /// A reader found the copy damaged.
    pub(crate) fn suspect(&self, copy: CopyId) {
        self.lock().jobs.damaged.insert(copy);
        self.asked.notify_one();
    }

    /// A segment of the copy was changed.
    pub(crate) fn forged(&self, copy: CopyId, begin_lsn: Lsn) {
        self.lock().jobs.forged.insert(copy, begin_lsn);
        self.asked.notify_one();
    }

    /// The copy is to be opened again.
    pub(crate) fn ask_reopen(&self, copy: CopyId) {
        self.lock().jobs.reopen.insert(copy);
        self.asked.notify_one();
    }

    /// Notes that a copy is being opened again, or is not any more; whether it was.
    pub(crate) fn set_reopening(&self, copy: CopyId, reopening: bool) -> bool {
        std::mem::replace(&mut self.lock().ways[copy.index()].reopening, reopening)
    }

    /// Counts the copies as failed that are still being opened after `waited`. Each joins when its disk
    /// answers.
    pub(crate) fn go_on_without_hung(&self, waited: Duration) {
        for copy in self.options.copies.clone() {
            if self.lock().ways[copy.index()].reopening {
                let hung = VolumeError::Hung { copy, seconds: waited.as_secs() };
                tracing::error!("copy {copy} is gone without: {hung}");
                self.change(|log| log.hear(copy, Event::Failed(hung.to_string())));
            }
        }
    }

    /// The way to a copy, while there is one.
    pub(crate) fn link(&self, copy: CopyId) -> Option<Arc<dyn Link>> {
        self.lock().ways[copy.index()].link.clone()
    }

    /// Lets go of the copies.
    pub(crate) fn close(&self) {
        let links: Vec<_> = self.lock().ways.iter_mut().map(|way| way.link.take()).collect();
        drop(links);
    }

    /// Opens a copy in this process.
    pub(crate) fn open_local(self: &Arc<Head>, copy: CopyId) -> Result<(), VolumeError> {
        let number = self.next_link(copy);
        let listener = self.listener(copy, number);
        let directory = directory_of(&self.options.directory, copy);
        let lane = self.options.share_thread.then(|| self.lane.get_or_init(Lane::start).clone());
        let local = LocalCopy::start_in(directory, self.options.cluster_id, copy, lane)?;
        self.reach(copy, number, Arc::new(local.link(listener)), local.promised());
        Ok(())
    }

    /// The number of a copy's next link; earlier ones are not heard any more.
    pub(crate) fn next_link(&self, copy: CopyId) -> u64 {
        let mut state = self.lock();
        state.log.let_go(copy);
        let way = &mut state.ways[copy.index()];
        way.number += 1;
        // A copy in this process lets go of its directory only when its link is gone.
        let (number, gone) = (way.number, way.link.take());
        drop(state);
        drop(gone);
        number
    }

    /// What hears a copy.
    pub(crate) fn listener(self: &Arc<Head>, copy: CopyId, number: u64) -> Listener {
        let head: Weak<Head> = Arc::downgrade(self);
        Arc::new(move |event| {
            if let Some(head) = head.upgrade() {
                head.hear(copy, number, event);
            }
        })
    }

    /// A copy can be reached by `link`.
    pub(crate) fn reach(&self, copy: CopyId, number: u64, link: Arc<dyn Link>, promised: Ballot) {
        let mut state = self.lock();
        if state.ways[copy.index()].number == number {
            state.ways[copy.index()].link = Some(link);
            state.log.reached(copy, promised);
            self.carry_out(&mut state);
        }
    }

    /// A copy's link is gone.
    pub(crate) fn lose(&self, copy: CopyId, number: u64) {
        let mut state = self.lock();
        if state.ways[copy.index()].number == number {
            let gone = state.ways[copy.index()].link.take();
            state.log.lost(copy);
            self.carry_out(&mut state);
            drop(state);
            drop(gone);
        }
    }

    fn hear(&self, copy: CopyId, number: u64, event: Event) {
        let mut state = self.lock();
        if state.ways[copy.index()].number != number {
            return;
        }
        state.log.hear(copy, event);
        self.carry_out(&mut state);
        if *state.log.quorum().state(copy) == CopyState::Filling {
            drop(state);
            self.filled.send_modify(|count| *count += 1);
        }
    }

    /// Queues a batch when there is room; gives it back when there is none.
    pub(crate) fn append(&self, redo: Redo) -> Result<Option<Redo>, VolumeError> {
        match self.change(|log| log.append(redo))? {
            Appended::NoRoom(redo) => return Ok(Some(redo)),
            Appended::Queued { begins_segment: true } => {
                self.change(|log| log.retain(runtime::clock::wall_us()));
            }
            Appended::Queued { begins_segment: false } => {}
        }
        Ok(None)
    }

    pub(crate) fn bounds(&self) -> Bounds {
        self.look(Log::bounds)
    }
}

fn policy_of(tuning: &Tuning) -> Policy {
    let retain_us = i64::try_from(tuning.retain.as_micros()).unwrap_or(i64::MAX);
    Policy { retain_us, max_size_bytes: tuning.max_size_bytes }
}

fn tell(told: Told) {
    match told {
        Told::Open(lsn, ballot) => {
            tracing::info!(%lsn, "the volume is open: redo up to {lsn}, ballot {ballot}")
        }
        Told::Behind(copy) => tracing::warn!("copy {copy} cannot keep up; it is filled from its peers"),
        Told::Hung(copy, seconds) => tracing::error!(
            "copy {copy}: its disk has not answered for {seconds} s; it is gone without, and opened again when the disk is back"
        ),
        Told::Uninspected(copy, why) => tracing::warn!("copy {copy}: {why}; choosing again"),
        Told::Outbidding(ballot) => tracing::info!(
            "opening the volume anew, above ballot {ballot} of a writer that did not take over"
        ),
        Told::Deposed(error) => tracing::error!("{error}"),
        Told::GaveWay(bytes, room) => {
            let [freed, free, all] =
                [bytes * room.copies, room.free_bytes, room.total_bytes].map(|b| b >> 20);
            tracing::warn!(
                "the volume: {freed} MiB of redo that nobody needs go earlier than `retain` asks, as {free} MiB of {all} are left on the disk"
            );
        }
    }
}

/// Microseconds since 1970, for retention by age and for people.
#[must_use]
pub fn now_us() -> i64 {
    runtime::clock::wall_us()
}
