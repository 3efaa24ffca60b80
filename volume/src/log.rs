//! The volume's log: what is queued, chosen, durable, filled, kept and begun anew. Pure: events go in,
//! [`Effect`]s come out; no files, sockets, tasks or clocks. The daemon drives it (`head.rs`), and so does
//! the simulation, with the same lines.
//!
//! ```text
//!  append, reset, keep_history ─►┐                     ┌─► orders to the copies
//!  reached, lost, hear ─────────►│  Log ── Quorum      ├─► inspect the copy whose log was chosen
//!  inspected, tick, fill ───────►┘                     └─► fill a copy, open a copy again
//! ```
//!
//! An opening goes on like this: copies are reached and asked for their promises; the quorum chooses a log;
//! the copy that has it is inspected, which tells the segments and the timelines' histories; every copy is
//! told what to adopt, and the histories; what a copy lacks is filled. Once a write quorum holds the chosen
//! log, appends are taken.
//!
//! Every effect is to be carried out in order, and before the next event is given: the copies hear orders in
//! the order in which they were decided.

mod fill;
mod sealing;
mod tenure;

pub use fill::{FillStep, sealed_from};
pub use tenure::Tenure;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proto::{Epoch, Lsn, Redo, Timeline, TimelineHistory};

use crate::ballot::Ballot;
use crate::copy::{Contents, Event, Order, SegmentInfo, Stored};
use crate::key::KeyId;
use crate::planted::{self, Bug};
use crate::quorum::{
    Adoption, COPIES, CopyId, CopyState, Input, Keep, Output, Quorum, READ_QUORUM, WRITE_QUORUM, Writer,
};
use crate::retention::{Held, Needs, Policy, Room, droppable};
use crate::seal::Sealer;
use crate::segment;
use crate::tail::{Entry, Tail};
use crate::{Bounds, Durable, VolumeError};

/// Appends that may wait for a quorum. The reader has one under way; a receiver that catches up fills it.
const QUEUE_BATCHES: usize = 64;

/// A live copy that is this far behind is filled from its peers instead of being sent more, bytes of redo.
const BEHIND_MAX_BYTES: u64 = 64 << 20;

/// A copy that commits wait for, and that is this many batches behind, changes places with one that nobody
/// waits for.
const SLOW_BATCHES: usize = 32;

/// For how many ticks another writer may try to take over before its promises are outbid.
const OUTBID_TICKS: u32 = 5;

/// For how many ticks a live copy of this process may have written nothing, while another one has more,
/// before its disk is taken to hang.
const HUNG_TICKS: u32 = 10;

/// What a log needs to know of its surroundings.
#[derive(Debug, Clone)]
pub struct LogOptions {
    /// The cluster's epoch as the region knows it.
    pub epoch: Epoch,
    /// Who opens the volume: a number drawn at random for each opening.
    pub writer: u64,
    /// A segment ends at the first context that begins beyond this, bytes.
    pub segment_bytes: u64,
    /// How long redo is kept.
    pub policy: Policy,
    /// How much recent redo is kept in memory, bytes.
    pub tail_bytes: usize,
    /// The copies of this process: it opens them again where their disks hang.
    pub own: BTreeSet<CopyId>,
    /// Seals what is appended; none where it is in the clear.
    pub sealer: Option<Arc<Sealer>>,
    /// Set where other hosts may open the volume as well.
    pub tenure: Option<Tenure>,
}

/// What is to be done, in the order in which it was decided.
#[derive(Debug, Clone)]
pub enum Effect {
    /// Give the copy an order.
    Order(CopyId, Order),
    /// Ask the copy, whose log this ballot's opening chose, what it holds; the answer goes to
    /// [`Log::inspected`].
    Inspect(CopyId, Ballot),
    /// Fill the copy by [`Log::fill`] until that says it is over. An earlier filling of it ends now.
    Fill(CopyId, Lsn),
    /// The copy is told anew what to hold: a filling of it ends now.
    EndFill(CopyId),
    /// The copy failed: open it again after a while, if it is this process's.
    Reopen(CopyId),
    /// Tell people.
    Tell(Told),
}

/// What people are told.
#[derive(Debug, Clone)]
pub enum Told {
    /// Appends are taken again; the redo ends here.
    Open(Lsn, Ballot),
    /// This live copy is too far behind, and is filled from its peers.
    Behind(CopyId),
    /// This live copy has written nothing for so many ticks, and others have.
    Hung(CopyId, u32),
    /// The copy whose log was chosen does not tell what it holds.
    Uninspected(CopyId, String),
    /// The volume is opened anew, above the ballot of a writer that did not take over.
    Outbidding(Ballot),
    /// Another writer has taken over.
    Deposed(VolumeError),
    /// Redo that is younger than it is to be kept has gone, so many bytes of each copy: a file system is
    /// nearly full.
    GaveWay(u64, Room),
}

/// How far the opening of a volume is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// A write quorum does not hold the chosen log yet.
    Opening,
    /// Appends are taken.
    Open,
    /// Another writer has taken over.
    Closed,
}

/// What became of a batch.
#[derive(Debug)]
#[must_use = "a batch that found no room is to be offered again"]
pub enum Appended {
    /// It is on its way to the copies.
    Queued {
        /// Whether a segment begins with it: the moment to look at what need not be kept.
        begins_segment: bool,
    },
    /// There is no room, or the volume is being opened: here it is back.
    NoRoom(Redo),
}

/// What repair did for one copy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Bytes brought from peers since the daemon started.
    pub filled_bytes: u64,
    /// Damaged segments put right since the daemon started.
    pub repaired_segments: u64,
    /// When it was last read back, microseconds since 1970; zero when it was not.
    pub scrubbed_us: i64,
    /// What the last reading found and could not be put right yet.
    pub damage: Vec<String>,
}

/// What is known of one copy besides its state in the quorum.
#[derive(Debug, Default)]
struct Member {
    /// There is a way to it.
    reached: bool,
    /// What it had promised when it was reached.
    promised: Ballot,
    /// Whether commits wait for it. Four are asked first; the others write what has come together since.
    hurried: bool,
    /// How far it was at the last tick, and for how many it has been there while another one had more.
    stands: (Lsn, u32),
    tally: Tally,
}

/// The log of a volume, over all of its openings by one daemon.
#[derive(Debug)]
pub struct Log {
    options: LogOptions,
    quorum: Quorum,
    members: Vec<Member>,
    tail: Tail,
    /// The volume's segments, oldest first; the last one is written.
    segments: Vec<SegmentInfo>,
    histories: BTreeMap<Timeline, TimelineHistory>,
    needs: Needs,
    /// The end of what was queued: durable or on its way.
    queued: Durable,
    durable: Durable,
    phase: Phase,
    closed: Option<VolumeError>,
    /// The end of the chosen log, until its copy was inspected. The adoptions wait for that.
    inspecting: Option<Durable>,
    waiting: BTreeMap<CopyId, Adoption>,
    outbid_ticks: u32,
    /// Copies whose log was chosen, and which did not say then what they hold, or not all of it.
    uninspected: BTreeSet<CopyId>,
    /// On an operator's word, until the volume is open; see [`Quorum::recover`].
    word: bool,
    /// The least room that there is for copies, since it was last looked at; none where that is not known.
    room: Option<Room>,
    /// When redo gave way to room last, microseconds since 1970.
    gave_way_us: Option<i64>,
    /// No copy is asked for anything yet; see [`Tenure`].
    gathering: bool,
    /// Where a tenure has begun: another host's ballot above this one ends it.
    since: Option<Ballot>,
    effects: Vec<Effect>,
}

impl Log {
    /// A log of which nothing is known yet.
    #[must_use]
    pub fn new(options: LogOptions) -> Log {
        Log {
            quorum: Quorum::new(Ballot::default().next(options.epoch, options.writer)),
            members: (0..COPIES).map(|_| Member::default()).collect(),
            tail: Tail::new(options.tail_bytes),
            segments: Vec::new(),
            histories: BTreeMap::new(),
            needs: Needs::default(),
            queued: Durable::default(),
            durable: Durable::default(),
            phase: Phase::Opening,
            closed: None,
            inspecting: None,
            waiting: BTreeMap::new(),
            outbid_ticks: 0,
            uninspected: BTreeSet::new(),
            word: false,
            room: None,
            gave_way_us: None,
            gathering: options.tenure.is_some(),
            since: options.tenure.as_ref().and_then(|tenure| tenure.since),
            effects: Vec::new(),
            options,
        }
    }

    /// Takes what is to be done out, in order.
    pub fn effects(&mut self) -> std::vec::Drain<'_, Effect> {
        self.effects.drain(..)
    }

    // What is known.

    /// Who may write, and where each copy stands.
    #[must_use]
    pub fn quorum(&self) -> &Quorum {
        &self.quorum
    }

    /// How far all redo is durable. It stays while the volume is opened anew, and falls to nothing at a
    /// reset.
    #[must_use]
    pub fn durable(&self) -> Durable {
        self.durable
    }

    /// The end of what was queued: durable or on its way.
    #[must_use]
    pub fn queued(&self) -> Durable {
        self.queued
    }

    /// How far the opening is.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Why nothing is taken any more.
    #[must_use]
    pub fn closed(&self) -> Option<&VolumeError> {
        self.closed.as_ref()
    }

    /// What redo is kept.
    #[must_use]
    pub fn bounds(&self) -> Bounds {
        let Durable { lsn, timeline, .. } = self.durable;
        let horizon_lsn = self.segments.first().map_or(lsn, |segment| segment.begin_lsn);
        Bounds { horizon_lsn, durable_lsn: lsn, timeline }
    }

    /// Bytes of redo in each copy.
    #[must_use]
    pub fn stored_bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.stored_bytes).sum()
    }

    /// The volume's segments, oldest first; the last one is written.
    #[must_use]
    pub fn segments(&self) -> &[SegmentInfo] {
        &self.segments
    }

    /// A timeline's history, if it is kept here.
    #[must_use]
    pub fn history(&self, timeline: Timeline) -> Option<&TimelineHistory> {
        self.histories.get(&timeline)
    }

    /// The redo in memory that holds `lsn`.
    pub(crate) fn find(&self, lsn: Lsn) -> Option<Arc<Entry>> {
        self.tail.find(lsn)
    }

    /// What repair did for a copy.
    #[must_use]
    pub fn tally(&self, copy: CopyId) -> &Tally {
        &self.members[copy.index()].tally
    }

    /// What repair did for a copy, to be added to.
    pub fn tally_mut(&mut self, copy: CopyId) -> &mut Tally {
        &mut self.members[copy.index()].tally
    }

    /// What is needed of the redo, to be changed.
    pub fn needs_mut(&mut self) -> &mut Needs {
        &mut self.needs
    }

    /// The copies that are reached and hold the redo at `lsn`.
    pub fn holders(&self, lsn: Lsn) -> impl Iterator<Item = CopyId> {
        CopyId::all().filter(move |copy| self.members[copy.index()].reached && self.quorum.holds(*copy, lsn))
    }

    // The copies.

    /// A copy can be reached, and has promised this ballot.
    pub fn reached(&mut self, copy: CopyId, promised: Ballot) {
        let member = &mut self.members[copy.index()];
        (member.reached, member.promised) = (true, promised);
        if self.is_overtaken(promised) {
            self.overtaken(promised);
        } else if self.gathering {
            self.gather();
        } else if promised >= self.quorum.ballot() && self.quorum.donor().is_none() {
            self.open_above(promised);
        } else {
            self.handle(Input::Reached(copy));
        }
    }

    /// A copy's way is given up for another one, over which it is reached next.
    pub fn let_go(&mut self, copy: CopyId) {
        self.members[copy.index()].reached = false;
    }

    /// A copy cannot be reached any more.
    pub fn lost(&mut self, copy: CopyId) {
        self.members[copy.index()].reached = false;
        self.handle(Input::Lost(copy));
    }

    /// A copy said something over the way by which it was reached last.
    pub fn hear(&mut self, copy: CopyId, event: Event) {
        match event {
            Event::Promised(_, vote) if self.is_overtaken(vote.ballots.newest()) => {
                self.overtaken(vote.ballots.newest());
            }
            Event::Promised(ballot, vote) => self.handle(Input::Promised(copy, ballot, vote)),
            Event::Refused(ballot) if self.is_overtaken(ballot) => self.overtaken(ballot),
            Event::Refused(ballot) => self.handle(Input::Refused(copy, ballot)),
            Event::Adopted(ballot, generation, lsn) => {
                self.handle(Input::Adopted(copy, ballot, generation, lsn));
            }
            Event::Flushed(lsn) => self.handle(Input::Flushed(copy, lsn)),
            Event::Failed(why) => {
                self.handle(Input::Failed(copy, why));
                self.effects.push(Effect::Reopen(copy));
            }
        }
    }

    /// What the copy holds whose log the opening of `ballot` chose.
    pub fn inspected(&mut self, copy: CopyId, ballot: Ballot, found: Result<Contents, VolumeError>) {
        if self.quorum.donor() != Some(copy) || ballot != self.quorum.ballot() {
            return;
        }
        let Some(end) = self.inspecting else { return };
        // One that began anew and was told no history yet ends as others do that have it. Chosen again all
        // the same, it is the only one.
        let knows = |contents: &Contents| {
            let mut histories = contents.histories.iter();
            end.timeline <= Timeline(1) || histories.any(|history| history.timeline == end.timeline)
        };
        let found = match found {
            Ok(contents) if !knows(&contents) && !self.uninspected.contains(&copy) => {
                return self.uninspected(copy, format!("it lacks the history of timeline {}", end.timeline));
            }
            Ok(contents) if contents.segments.last().is_none_or(|last| last.end_lsn == end.lsn) => contents,
            Ok(_) => {
                return self.uninspected(copy, "it does not hold the log any more that it promised".into());
            }
            Err(e) => return self.uninspected(copy, e.to_string()),
        };
        self.inspecting = None;
        self.queued = end;
        self.histories = found.histories.into_iter().map(|history| (history.timeline, history)).collect();
        self.segments = found.segments;
        self.tail.clear();
        for (copy, adoption) in std::mem::take(&mut self.waiting) {
            // One that was lost meanwhile is asked again when it is back.
            if *self.quorum.state(copy) == CopyState::Adopting {
                self.tell(copy, adoption);
            }
        }
    }

    /// An operator's word, that the copies which are missing are lost for good: three that are left are
    /// enough to open the volume.
    ///
    /// # Errors
    /// When it is open, when fewer than three have answered, or another writer has taken over.
    pub fn recover(&mut self) -> Result<(), VolumeError> {
        if let Some(why) = &self.closed {
            return Err(why.clone());
        }
        if self.phase != Phase::Opening || self.quorum.donor().is_some() {
            return Err(VolumeError::NothingToRecover);
        }
        if self.gathering {
            // They are asked now, and may be enough when the word is given again.
            self.begin();
        }
        let members = self.quorum.members();
        if members < READ_QUORUM {
            return Err(VolumeError::TooFewToRecover { members });
        }
        self.word = true;
        let outputs = self.quorum.recover();
        self.pass_on(outputs);
        Ok(())
    }

    fn uninspected(&mut self, copy: CopyId, why: String) {
        self.effects.push(Effect::Tell(Told::Uninspected(copy, why.clone())));
        self.uninspected.insert(copy);
        self.hear(copy, Event::Failed(why));
    }

    /// Tells a copy what to hold, and the histories.
    fn tell(&mut self, copy: CopyId, mut adoption: Adoption) {
        if let Keep::Nothing { begin, .. } = &mut adoption.keep
            && begin.timeline == Timeline::default()
        {
            // Where redo is dropped up to is known by its LSN alone. A copy that begins there with nothing
            // may be the one whose log is chosen next, and has to know how that may go on.
            begin.timeline = self.timeline_before(begin.lsn);
        }
        self.effects.push(Effect::EndFill(copy));
        let writer = Writer { ballot: adoption.ballot, generation: adoption.generation };
        self.effects.push(Effect::Order(copy, Order::Adopt(adoption)));
        for history in self.histories.values() {
            self.effects.push(Effect::Order(copy, Order::History(writer, history.clone())));
        }
    }

    /// The timeline of the redo that ends at `lsn`.
    fn timeline_before(&self, lsn: Lsn) -> Timeline {
        let newest = self.queued.timeline;
        let history = self.histories.get(&newest);
        history.map_or(newest, |history| history.timeline_at(Lsn(lsn.0.saturating_sub(1))))
    }

    /// Lets the quorum take in what happened, and passes on what is to be done.
    fn handle(&mut self, input: Input) {
        let outputs = self.quorum.handle(input);
        self.pass_on(outputs);
    }

    fn pass_on(&mut self, outputs: Vec<Output>) {
        for output in outputs {
            match output {
                Output::Ask(copy, ballot) => {
                    self.effects.push(Effect::Order(copy, Order::Promise(ballot)));
                }
                Output::Chosen(donor, end) => {
                    self.inspecting = Some(end);
                    self.effects.push(Effect::Inspect(donor, self.quorum.ballot()));
                }
                Output::Adopt(copy, adoption) if self.inspecting.is_some() => {
                    self.waiting.insert(copy, adoption);
                }
                Output::Adopt(copy, adoption) => self.tell(copy, adoption),
                Output::Fill(copy, from_lsn) => self.effects.push(Effect::Fill(copy, from_lsn)),
                Output::Durable(lsn) => self.publish(lsn),
                Output::Outbid(higher) => self.open_above(higher),
                Output::LostDonor(_) => self.open_above(self.quorum.ballot()),
                Output::Deposed(ballot) => {
                    let error = VolumeError::Deposed { ballot, own: self.quorum.ballot() };
                    self.effects.push(Effect::Tell(Told::Deposed(error.clone())));
                    (self.closed, self.phase) = (Some(error), Phase::Closed);
                }
            }
        }
    }

    fn publish(&mut self, lsn: Lsn) {
        self.durable = match self.tail.find(Lsn(lsn.0.saturating_sub(1))) {
            Some(entry) if entry.redo.batch.end_lsn == lsn => {
                let batch = &entry.redo.batch;
                Durable { lsn, timeline: batch.timeline, epoch: batch.epoch }
            }
            // The end of what an opening found.
            _ => Durable { lsn, ..self.queued },
        };
        if self.phase == Phase::Opening {
            (self.phase, self.word) = (Phase::Open, false);
            self.effects.push(Effect::Tell(Told::Open(lsn, self.quorum.ballot())));
        }
    }

    /// Opens the volume anew, above `ballot` and this opening's.
    fn open_above(&mut self, ballot: Ballot) {
        // One of an earlier opening, or a volume that another writer has.
        if ballot < self.quorum.ballot() || self.closed.is_some() {
            return;
        }
        if self.phase == Phase::Open {
            self.phase = Phase::Opening;
        }
        self.quorum = Quorum::new(ballot.next(self.options.epoch, self.options.writer));
        self.quorum.avoid(self.uninspected.clone());
        self.inspecting = None;
        self.waiting.clear();
        if self.word {
            let outputs = self.quorum.recover();
            self.pass_on(outputs);
        }
        for copy in CopyId::all() {
            if self.members[copy.index()].reached {
                self.handle(Input::Reached(copy));
            }
        }
    }

    // The log.

    /// Queues a batch when there is room; gives it back when there is none.
    ///
    /// # Errors
    /// When the batch does not continue the log, or another writer has taken over.
    pub fn append(&mut self, redo: Redo) -> Result<Appended, VolumeError> {
        if let Some(why) = &self.closed {
            return Err(why.clone());
        }
        if !self.quorum.is_open() || self.tail.count_beyond(self.durable.lsn) >= QUEUE_BATCHES {
            return Ok(Appended::NoRoom(redo));
        }
        let queued = continues(self.queued, &redo, &self.histories)?;
        let begins_segment = self.begins_segment(&redo);
        let key = self.key(begins_segment);
        let record = self.record(&redo, begins_segment, key)?;
        self.queued = queued;
        let stored = Stored { batch: redo.batch.clone(), record, begins_segment };
        self.grow(&stored, key);
        self.tail.push(Arc::new(Entry { redo, stored: stored.clone() }), self.durable.lsn);
        let end_lsn = self.queued.lsn;
        self.quorum.append(end_lsn);
        for copy in CopyId::all() {
            let behind_bytes = end_lsn.bytes_since(self.quorum.flushed_lsn(copy));
            if *self.quorum.state(copy) == CopyState::Live && behind_bytes > BEHIND_MAX_BYTES {
                self.effects.push(Effect::Tell(Told::Behind(copy)));
                self.detach(copy);
            }
        }
        self.choose_hurried();
        let writer = self.quorum.writer();
        for copy in CopyId::all().filter(|copy| *self.quorum.state(*copy) == CopyState::Live) {
            let hurried = self.members[copy.index()].hurried;
            let order = Order::Append { writer, stored: stored.clone(), hurried };
            self.effects.push(Effect::Order(copy, order));
        }
        Ok(Appended::Queued { begins_segment })
    }

    /// A live copy that cannot keep up is filled from its peers instead of being waited for.
    pub fn detach(&mut self, copy: CopyId) {
        let outputs = self.quorum.detach(copy);
        self.pass_on(outputs);
    }

    fn grow(&mut self, stored: &Stored, key: Option<KeyId>) {
        let batch = &stored.batch;
        if stored.begins_segment {
            let header = segment::HEADER_BYTES as u64;
            let begin_lsn = batch.begin_lsn;
            self.segments.push(SegmentInfo {
                begin_lsn,
                stored_bytes: header,
                key,
                ..SegmentInfo::default()
            });
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
            CopyId::all().filter(|copy| *self.quorum.state(*copy) == CopyState::Live).collect();
        let slow = |copy: &CopyId| self.tail.count_beyond(self.quorum.flushed_lsn(*copy)) > SLOW_BATCHES;
        // The ones that were asked first stay first, unless they fall behind.
        order.sort_by_key(|copy| (slow(copy), !self.members[copy.index()].hurried));
        order.truncate(WRITE_QUORUM);
        for copy in CopyId::all() {
            self.members[copy.index()].hurried = order.contains(&copy);
        }
    }

    /// The log begins anew at `begin`; the number of that log. None while the volume is being opened: ask
    /// again then.
    ///
    /// It is done once the volume is open with that log or a later one. Opened anew in between, it may have
    /// the old log again.
    ///
    /// # Errors
    /// When another writer has taken over.
    pub fn reset(&mut self, begin: Durable) -> Result<Option<u64>, VolumeError> {
        if let Some(why) = &self.closed {
            return Err(why.clone());
        }
        if !self.quorum.is_open() {
            return Ok(None);
        }
        self.tail.clear();
        self.segments.clear();
        self.histories.clear();
        self.needs.forget_named();
        self.queued = begin;
        (self.durable, self.phase) = (Durable::default(), Phase::Opening);
        let outputs = self.quorum.reset(begin);
        self.pass_on(outputs);
        Ok(Some(self.quorum.generation()))
    }

    /// Keeps a timeline's history: every copy has it on disk before any redo that is appended after this.
    /// False while the volume is being opened: ask again then.
    ///
    /// # Errors
    /// When another writer has taken over.
    pub fn keep_history(&mut self, history: &TimelineHistory) -> Result<bool, VolumeError> {
        if let Some(why) = &self.closed {
            return Err(why.clone());
        }
        if !self.quorum.is_open() {
            return Ok(false);
        }
        if self.histories.get(&history.timeline) == Some(history) {
            return Ok(true);
        }
        let writer = self.quorum.writer();
        for copy in CopyId::all() {
            // One that is adopting was told the histories before this one.
            let adopting =
                *self.quorum.state(copy) == CopyState::Adopting && !planted::is(Bug::ForgetsHistory);
            if adopting || self.quorum.is_adopted(copy) {
                self.effects.push(Effect::Order(copy, Order::History(writer, history.clone())));
            }
        }
        self.histories.insert(history.timeline, history.clone());
        Ok(true)
    }

    /// Looks at what is to be looked at from time to time: what need not be kept at `now_us` (microseconds
    /// since 1970), copies that promised to a writer who did not take over, disks that hang, and whether the
    /// copies' files are still there.
    pub fn tick(&mut self, now_us: i64) {
        if self.gathering {
            return;
        }
        self.retain(now_us);
        self.mind_outbid();
        self.mind_hung();
        let writer = self.quorum.writer();
        for copy in CopyId::all().filter(|copy| self.members[copy.index()].reached) {
            self.effects.push(Effect::Order(copy, Order::Check(Some(writer))));
        }
    }

    /// A copy that was promised to a writer who did not take over is had back after a while.
    fn mind_outbid(&mut self) {
        self.outbid_ticks = self.quorum.outbid().map_or(0, |_| self.outbid_ticks + 1);
        if let Some(higher) = self.quorum.outbid().filter(|_| self.outbid_ticks >= OUTBID_TICKS) {
            self.effects.push(Effect::Tell(Told::Outbidding(higher)));
            self.outbid_ticks = 0;
            self.open_above(higher);
        }
    }

    /// A live copy whose disk does not answer has failed: it is opened again, which works once the disk is
    /// back.
    fn mind_hung(&mut self) {
        let most_lsn = CopyId::all().map(|copy| self.quorum.flushed_lsn(copy)).max().unwrap_or_default();
        for copy in self.options.own.clone() {
            let flushed_lsn = self.quorum.flushed_lsn(copy);
            let owes = *self.quorum.state(copy) == CopyState::Live && flushed_lsn < most_lsn;
            let stands = &mut self.members[copy.index()].stands;
            let ticks = if owes && stands.0 == flushed_lsn { stands.1 + 1 } else { 0 };
            *stands = (flushed_lsn, ticks);
            if ticks >= HUNG_TICKS {
                stands.1 = 0;
                self.effects.push(Effect::Tell(Told::Hung(copy, ticks)));
                self.hear(copy, Event::Failed("its disk does not answer".into()));
            }
        }
    }

    /// Redo is kept by another policy from now on.
    pub fn set_policy(&mut self, policy: Policy) {
        self.options.policy = policy;
    }

    /// The least room that there is for copies now.
    pub fn set_room(&mut self, room: Option<Room>) {
        self.room = room;
    }

    /// When redo that is younger than it is to be kept was dropped last, as a file system was nearly full;
    /// microseconds since 1970.
    #[must_use]
    pub fn gave_way_us(&self) -> Option<i64> {
        self.gave_way_us
    }

    /// Drops the oldest segments that need not be kept at `now_us`, microseconds since 1970.
    pub fn retain(&mut self, now_us: i64) {
        if !self.quorum.is_open() {
            return;
        }
        let held: Vec<Held> = self.segments.iter().map(SegmentInfo::held).collect();
        let may_go = |room| droppable(&held, self.needs.lsns(), self.options.policy, room, now_us);
        // What is not durable yet is never dropped.
        let durable = |segment: &&Held| segment.end_lsn <= self.durable.lsn || planted::is(Bug::DropsQueued);
        let count = held[..may_go(self.room)].iter().take_while(durable).count();
        if count == 0 {
            return;
        }
        let bytes = |held: &[Held]| held.iter().map(|segment| segment.stored_bytes).sum();
        if let Some(room) = self.room {
            let anyhow = may_go(None);
            if count > anyhow {
                self.effects.push(Effect::Tell(Told::GaveWay(bytes(&held[anyhow..count]), room)));
                self.gave_way_us = Some(now_us);
            }
            // Until it is looked at again.
            self.room = Some(room.after(bytes(&held[..count])));
        }
        self.segments.drain(..count);
        let Some(horizon_lsn) = self.segments.first().map(|segment| segment.begin_lsn) else { return };
        self.quorum.retain(horizon_lsn);
        let writer = self.quorum.writer();
        for copy in CopyId::all().filter(|copy| self.members[copy.index()].reached) {
            self.effects.push(Effect::Order(copy, Order::DropBefore(writer, horizon_lsn)));
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
