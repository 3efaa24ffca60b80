//! Drives the quorum: gives the copies their orders, hears what they say, and publishes what is durable.
//!
//! The way of a commit is short: [`Head::append`] hands a batch to the copies' threads, and the thread whose flush completes
//! a write quorum publishes the new durable LSN itself. Everything else, openings, repairs and retention, is the
//! supervisor's, a task of its own.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use proto::{Lsn, Redo, Timeline, TimelineHistory};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::ballot::Ballot;
use crate::copy::{Event, Link, LocalCopy, Order, SegmentInfo, Stored, directory_of};
use crate::quorum::{COPIES, CopyId, Input, Output, Quorum, Standing, WRITE_QUORUM};
use crate::repair;
use crate::retention::{Held, Policy, droppable};
use crate::segment;
use crate::tail::{Entry, Tail};
use crate::{Durable, VolumeError, VolumeOptions, continues};

/// Appends that may wait for a quorum. The reader keeps two in flight; a receiver catching up fills it.
const QUEUE_BATCHES: usize = 64;

/// A live copy that is this far behind is filled from its peers instead of being sent more, bytes of redo.
const BEHIND_MAX_BYTES: u64 = 64 << 20;

/// A copy that commits wait for, and that is this many batches behind, changes places with one that nobody waits for.
const SLOW_BATCHES: usize = 32;

/// How often copies are looked at, and retention by age is.
const TICK: Duration = Duration::from_secs(1);

/// For how many ticks another writer may try to take over before its promises are outbid.
const OUTBID_TICKS: u32 = 5;

/// How long after a copy failed it is opened again.
const REOPEN_AFTER: Duration = Duration::from_secs(2);

/// What handles, cursors, copies' threads and the supervisor share.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) options: VolumeOptions,
    pub(crate) durable: watch::Sender<Durable>,
    /// How far the opening is.
    pub(crate) phase: watch::Sender<Phase>,
    /// Counts what copies that are being filled have on disk.
    pub(crate) filled: watch::Sender<u64>,
    tasks: mpsc::UnboundedSender<Task>,
    state: Mutex<State>,
}

/// How far the opening of a volume is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// A write quorum does not hold the chosen log yet.
    Opening,
    /// Appends are taken.
    Open,
    /// Another writer has taken over.
    Closed,
}

/// What the supervisor is asked to do.
#[derive(Debug)]
pub(crate) enum Task {
    Output(Output),
    /// A reader found a copy damaged.
    Damaged(CopyId),
    /// A copy in this process failed.
    Reopen(CopyId),
    /// The volume is closed.
    Close,
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) quorum: Quorum,
    pub(crate) copies: Vec<CopyEntry>,
    pub(crate) tail: Tail,
    /// The volume's segments, oldest first; the last one is written.
    pub(crate) segments: Vec<SegmentInfo>,
    pub(crate) histories: BTreeMap<Timeline, TimelineHistory>,
    pub(crate) needs: BTreeMap<String, Lsn>,
    /// The end of what was queued: durable or on its way.
    pub(crate) queued: Durable,
    pub(crate) closed: Option<VolumeError>,
    /// Whose log was chosen; until it is durable, the opening hangs on it.
    donor: Option<CopyId>,
}

/// What is known of one copy besides its standing.
#[derive(Debug, Default, Clone)]
pub(crate) struct CopyEntry {
    pub(crate) link: Option<Arc<dyn Link>>,
    /// Counts the links a copy had: what an earlier one still says is not heard.
    number: u64,
    /// Whether commits wait for it. Four are asked first; the others write what has come together since.
    hurried: bool,
    /// It is being opened again, by one task.
    reopening: bool,
    pub(crate) repair: repair::Tally,
}

impl Head {
    pub(crate) fn start(options: VolumeOptions) -> (Arc<Head>, mpsc::UnboundedReceiver<Task>) {
        let (tasks, queue) = mpsc::unbounded_channel();
        let state = State {
            quorum: Quorum::new(Ballot::default().next(options.epoch, options.writer)),
            copies: vec![CopyEntry::default(); usize::from(COPIES)],
            tail: Tail::new(options.tail_bytes),
            segments: Vec::new(),
            histories: BTreeMap::new(),
            needs: BTreeMap::new(),
            queued: Durable::default(),
            closed: None,
            donor: None,
        };
        let head = Head {
            options,
            durable: watch::Sender::new(Durable::default()),
            phase: watch::Sender::new(Phase::Opening),
            filled: watch::Sender::new(0),
            tasks,
            state: Mutex::new(state),
        };
        (Arc::new(head), queue)
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        // Each change under the lock is whole before anything in it can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn ask(&self, task: Task) {
        // Without a supervisor the volume is closed, and nothing is to be done.
        let _ = self.tasks.send(task);
    }

    /// Opens a copy in this process.
    pub(crate) fn open_local(self: &Arc<Head>, copy: CopyId) -> Result<(), VolumeError> {
        let number = self.next_link(copy);
        let listener = self.listener(copy, number);
        let directory = directory_of(&self.options.directory, copy);
        let local = LocalCopy::start(directory, self.options.cluster_id, copy)?;
        self.reach(copy, number, Arc::new(local.link(listener)), local.promised());
        Ok(())
    }

    /// The number of a copy's next link; earlier ones are not heard any more.
    pub(crate) fn next_link(&self, copy: CopyId) -> u64 {
        let mut state = self.lock();
        let entry = state.entry(copy);
        entry.number += 1;
        // A copy in this process lets go of its directory only when its link is gone.
        entry.link = None;
        entry.number
    }

    /// What hears a copy.
    pub(crate) fn listener(self: &Arc<Head>, copy: CopyId, number: u64) -> crate::copy::Listener {
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
        if state.entry(copy).number != number {
            return;
        }
        state.entry(copy).link = Some(link);
        if promised >= state.quorum.ballot() && state.donor.is_none() {
            let ballot = promised.next(self.options.epoch, self.options.writer);
            self.begin_opening(&mut state, ballot);
        } else {
            self.handle(&mut state, Input::Reached(copy));
        }
    }

    /// A copy's link is gone.
    pub(crate) fn lose(&self, copy: CopyId, number: u64) {
        let mut state = self.lock();
        if state.entry(copy).number == number {
            state.entry(copy).link = None;
            self.handle(&mut state, Input::Lost(copy));
            self.mind_donor(&mut state, copy);
        }
    }

    fn hear(&self, copy: CopyId, number: u64, event: Event) {
        let mut state = self.lock();
        if state.entry(copy).number != number {
            return;
        }
        let input = match event {
            Event::Promised(ballot, vote) => Input::Promised(copy, ballot, vote),
            Event::Refused(ballot) => Input::Refused(copy, ballot),
            Event::Adopted(ballot, generation, lsn) => Input::Adopted(copy, ballot, generation, lsn),
            Event::Flushed(lsn) => Input::Flushed(copy, lsn),
            Event::Failed(why) => Input::Failed(copy, why),
        };
        let failed = matches!(input, Input::Failed(..));
        self.handle(&mut state, input);
        if *state.quorum.standing(copy) == Standing::Filling {
            drop(state);
            self.filled.send_modify(|count| *count += 1);
        } else if failed {
            self.mind_donor(&mut state, copy);
            drop(state);
            self.ask(Task::Reopen(copy));
        }
    }

    /// Lets the machine take in what happened, and passes on what is to be done.
    pub(crate) fn handle(&self, state: &mut State, input: Input) {
        let outputs = state.quorum.handle(input);
        self.pass_on(state, outputs);
    }

    pub(crate) fn pass_on(&self, state: &mut State, outputs: Vec<Output>) {
        for output in outputs {
            match output {
                Output::Durable(lsn) => self.publish(state, lsn),
                other => {
                    if let Output::Chosen(donor, _) = &other {
                        state.donor = Some(*donor);
                    }
                    self.ask(Task::Output(other));
                }
            }
        }
    }

    fn publish(&self, state: &State, lsn: Lsn) {
        let durable = match state.tail.find(Lsn(lsn.0.saturating_sub(1))) {
            Some(entry) if entry.redo.batch.end_lsn == lsn => {
                let batch = &entry.redo.batch;
                Durable { lsn, timeline: batch.timeline, epoch: batch.epoch }
            }
            // The end of what an opening found.
            _ => Durable { lsn, ..state.queued },
        };
        self.durable.send_replace(durable);
        if *self.phase.borrow() == Phase::Opening {
            tracing::info!("the volume is open: redo up to {lsn}, ballot {}", state.quorum.ballot());
            self.phase.send_replace(Phase::Open);
        }
    }

    /// Until the chosen log is durable, losing the copy it came from means choosing again.
    fn mind_donor(&self, state: &mut State, lost: CopyId) {
        if state.donor == Some(lost) && !state.quorum.is_open() {
            let ballot = state.quorum.ballot().next(self.options.epoch, self.options.writer);
            self.begin_opening(state, ballot);
        }
    }

    /// A copy that was promised to a writer who did not take over is had back after a while.
    fn mind_outbid(&self, ticks: &mut u32) {
        let mut state = self.lock();
        *ticks = state.quorum.outbid().map_or(0, |_| *ticks + 1);
        if let Some(higher) = state.quorum.outbid().filter(|_| *ticks >= OUTBID_TICKS) {
            tracing::info!(
                "opening the volume anew, above ballot {higher} of a writer that did not take over"
            );
            *ticks = 0;
            let ballot = higher.next(self.options.epoch, self.options.writer);
            self.begin_opening(&mut state, ballot);
        }
    }

    fn begin_opening(&self, state: &mut State, ballot: Ballot) {
        self.phase.send_if_modified(|phase| {
            let was_open = *phase == Phase::Open;
            if was_open {
                *phase = Phase::Opening;
            }
            was_open
        });
        state.quorum = Quorum::new(ballot);
        state.donor = None;
        let reached: Vec<CopyId> = CopyId::all().filter(|copy| state.entry(*copy).link.is_some()).collect();
        for copy in reached {
            self.handle(state, Input::Reached(copy));
        }
    }

    /// Queues a batch when there is room; gives it back when there is none.
    pub(crate) fn append(&self, redo: Redo) -> Result<Option<Redo>, VolumeError> {
        let mut state = self.lock();
        if let Some(why) = &state.closed {
            return Err(why.clone());
        }
        let durable_lsn = self.durable.borrow().lsn;
        if !state.quorum.is_open() || state.tail.count_beyond(durable_lsn) >= QUEUE_BATCHES {
            return Ok(Some(redo));
        }
        state.queued = continues(state.queued, &redo, &state.histories)?;
        let record = segment::record(&redo.batch, durable_lsn);
        let begins_segment = state.begins_segment(&redo, self.options.segment_bytes);
        let stored = Stored { batch: redo.batch.clone(), record, begins_segment };
        state.grow(&stored);
        state.tail.push(Arc::new(Entry { redo, stored: stored.clone() }), durable_lsn);
        let end_lsn = state.queued.lsn;
        state.quorum.append(end_lsn);
        let behind = |copy: &CopyId| {
            *state.quorum.standing(*copy) == Standing::Live
                && end_lsn.bytes_since(state.quorum.flushed_lsn(*copy)) > BEHIND_MAX_BYTES
        };
        for copy in CopyId::all().filter(behind).collect::<Vec<_>>() {
            tracing::warn!("copy {copy} cannot keep up; it is filled from its peers");
            let outputs = state.quorum.detach(copy);
            self.pass_on(&mut state, outputs);
        }
        state.choose_hurried();
        let ballot = state.quorum.ballot();
        let orders: Vec<(Arc<dyn Link>, bool)> = CopyId::all()
            .filter(|copy| *state.quorum.standing(*copy) == Standing::Live)
            .filter_map(|copy| {
                let entry = &state.copies[usize::from(copy.0)];
                Some((entry.link.clone()?, entry.hurried))
            })
            .collect();
        drop(state);
        for (link, hurried) in orders {
            link.order(Order::Append { ballot, stored: stored.clone(), hurried });
        }
        if begins_segment {
            self.retain();
        }
        Ok(None)
    }

    /// Drops the oldest segments that need not be kept.
    fn retain(&self) {
        let options = &self.options;
        let retain_us = i64::try_from(options.retain.as_micros()).unwrap_or(i64::MAX);
        let policy = Policy { retain_us, max_size_bytes: options.max_size_bytes };
        let mut state = self.lock();
        let held: Vec<Held> = state.segments.iter().map(SegmentInfo::held).collect();
        let needs: Vec<Lsn> = state.needs.values().copied().collect();
        let count = droppable(&held, needs, policy, now_us());
        // What is not durable yet is never dropped.
        let durable_lsn = self.durable.borrow().lsn;
        let count = held[..count].iter().take_while(|segment| segment.end_lsn <= durable_lsn).count();
        if count == 0 {
            return;
        }
        state.segments.drain(..count);
        let Some(horizon_lsn) = state.segments.first().map(|segment| segment.begin_lsn) else { return };
        state.quorum.retain(horizon_lsn);
        for link in state.copies.iter().filter_map(|entry| entry.link.as_ref()) {
            link.order(Order::DropBefore(horizon_lsn));
        }
    }
}

impl State {
    pub(crate) fn entry(&mut self, copy: CopyId) -> &mut CopyEntry {
        &mut self.copies[usize::from(copy.0)]
    }

    /// A segment begins at the first context beyond its size.
    fn begins_segment(&self, redo: &Redo, segment_bytes: u64) -> bool {
        self.segments
            .last()
            .is_none_or(|last| last.stored_bytes >= segment_bytes && redo.batch.begins_context())
    }

    fn grow(&mut self, stored: &Stored) {
        let batch = &stored.batch;
        if stored.begins_segment {
            let header = segment::HEADER_BYTES as u64;
            let begin_lsn = batch.begin_lsn;
            self.segments.push(SegmentInfo { begin_lsn, stored_bytes: header, ..SegmentInfo::default() });
        }
        if let Some(last) = self.segments.last_mut() {
            last.end_lsn = batch.end_lsn;
            last.stored_bytes += stored.record.len() as u64;
            last.newest_commit_us = last.newest_commit_us.max(batch.newest_commit_us);
        }
    }

    /// Four live copies are asked first. One of them that falls behind another changes places with it.
    fn choose_hurried(&mut self) {
        let mut order: Vec<CopyId> =
            CopyId::all().filter(|copy| *self.quorum.standing(*copy) == Standing::Live).collect();
        let slow = |copy: &CopyId| self.tail.count_beyond(self.quorum.flushed_lsn(*copy)) > SLOW_BATCHES;
        let hurried = |copy: &CopyId| self.copies[usize::from(copy.0)].hurried;
        // The ones that were asked first stay first, unless they fall behind.
        order.sort_by_key(|copy| (slow(copy), !hurried(copy)));
        let first: Vec<CopyId> = order.into_iter().take(WRITE_QUORUM).collect();
        for copy in CopyId::all() {
            self.entry(copy).hurried = first.contains(&copy);
        }
    }
}

impl SegmentInfo {
    fn held(&self) -> Held {
        Held {
            end_lsn: self.end_lsn,
            stored_bytes: self.stored_bytes,
            newest_commit_us: self.newest_commit_us,
        }
    }
}

/// Carries out what the machine asks for, until the volume is closed.
pub(crate) async fn supervise(head: Arc<Head>, mut queue: mpsc::UnboundedReceiver<Task>) {
    let mut fills: BTreeMap<CopyId, JoinHandle<()>> = BTreeMap::new();
    let mut tick = tokio::time::interval(TICK);
    let mut scrub = tokio::time::interval(head.options.scrub_every);
    // The first tick is now.
    scrub.tick().await;
    let mut outbid_ticks = 0;
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        let task = tokio::select! {
            task = queue.recv() => task,
            _ = tick.tick() => {
                head.retain();
                head.mind_outbid(&mut outbid_ticks);
                for link in head.lock().copies.iter().filter_map(|entry| entry.link.as_ref()) {
                    link.order(Order::Check);
                }
                continue;
            }
            _ = scrub.tick() => {
                tokio::spawn(repair::scrub_all(head.clone()));
                continue;
            }
        };
        match task {
            None | Some(Task::Close) => break,
            Some(Task::Output(output)) => carry_out(&head, output, &mut fills).await,
            Some(Task::Damaged(copy)) => drop(tokio::spawn(repair::scrub_one(head.clone(), copy))),
            Some(Task::Reopen(copy)) => {
                // A copy may say more than once that it failed.
                if std::mem::replace(&mut head.lock().entry(copy).reopening, true) {
                    continue;
                }
                let head = head.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(REOPEN_AFTER).await;
                    let failed_again = reopen(&head, copy).await;
                    head.lock().entry(copy).reopening = false;
                    if failed_again {
                        head.ask(Task::Reopen(copy));
                    }
                });
            }
        }
    }
    for fill in fills.into_values() {
        fill.abort();
    }
    let links: Vec<_> = head.lock().copies.iter_mut().map(|entry| entry.link.take()).collect();
    drop(links);
}

/// Opens a copy of this process again; true when that failed.
async fn reopen(head: &Arc<Head>, copy: CopyId) -> bool {
    if !head.options.copies.contains(&copy) {
        return false;
    }
    {
        let state = head.lock();
        let still_failed = matches!(state.quorum.standing(copy), Standing::Failed(_));
        if state.closed.is_some() || !still_failed {
            return false;
        }
    }
    let opening = head.clone();
    match tokio::task::spawn_blocking(move || opening.open_local(copy)).await {
        Ok(Err(e)) => {
            let mut state = head.lock();
            head.handle(&mut state, Input::Failed(copy, e.to_string()));
            true
        }
        // A copy that failed anew while it was opened has said so.
        Ok(Ok(())) => matches!(head.lock().quorum.standing(copy), Standing::Failed(_)),
        Err(_) => false,
    }
}

async fn carry_out(head: &Arc<Head>, output: Output, fills: &mut BTreeMap<CopyId, JoinHandle<()>>) {
    let link_of = |copy: CopyId| head.lock().entry(copy).link.clone();
    match output {
        Output::Ask(copy, ballot) => {
            if let Some(link) = link_of(copy) {
                link.order(Order::Promise(ballot));
            }
        }
        Output::Chosen(donor, end) => {
            let contents = match link_of(donor) {
                Some(link) => link.contents().await,
                None => Err(VolumeError::Closed),
            };
            match contents {
                Ok(contents) => {
                    let mut state = head.lock();
                    state.queued = end;
                    state.histories = contents.histories.into_iter().map(|h| (h.timeline, h)).collect();
                    state.segments = contents.segments;
                    state.tail.clear();
                }
                Err(e) => {
                    tracing::warn!("copy {donor}: {e}; choosing again");
                    let number = head.lock().entry(donor).number;
                    head.hear(donor, number, Event::Failed(e.to_string()));
                }
            }
        }
        Output::Adopt(copy, adoption) => {
            if let Some(fill) = fills.remove(&copy) {
                fill.abort();
            }
            let histories: Vec<TimelineHistory> = head.lock().histories.values().cloned().collect();
            if let Some(link) = link_of(copy) {
                link.order(Order::Adopt(adoption));
                for history in histories {
                    link.order(Order::History(history));
                }
            }
        }
        Output::Fill(copy, from_lsn) => {
            if let Some(fill) = fills.insert(copy, tokio::spawn(repair::fill(head.clone(), copy, from_lsn))) {
                fill.abort();
            }
        }
        Output::Outbid(higher) => {
            let mut state = head.lock();
            if higher >= state.quorum.ballot() {
                let ballot = higher.next(head.options.epoch, head.options.writer);
                head.begin_opening(&mut state, ballot);
            }
        }
        Output::Deposed(ballot) => {
            let mut state = head.lock();
            let error = VolumeError::Deposed { ballot, own: state.quorum.ballot() };
            tracing::error!("{error}");
            state.closed = Some(error);
            drop(state);
            head.phase.send_replace(Phase::Closed);
        }
        Output::Durable(_) => {}
    }
}

/// Microseconds since 1970.
#[allow(
    clippy::disallowed_methods,
    reason = "retention's driver; the decision takes the time as an argument"
)]
pub fn now_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}
