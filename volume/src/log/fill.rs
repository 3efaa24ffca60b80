//! What a copy that misses redo is brought next, and by whom.

use proto::{Lsn, Timeline};

use super::{Effect, Log, Phase};
use crate::copy::{Order, SegmentInfo, Stored};
use crate::quorum::{CopyId, CopyState, Input, Writer};

/// What a copy may be sent at once when it goes over from being filled to being live, bytes.
const ATTACH_BYTES: u64 = 32 << 20;

/// Segments brought at once to one copy.
const SEGMENTS_AT_ONCE: usize = 3;

/// What is to be done next for a copy that is being filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FillStep {
    /// Nothing: it is sent every append now.
    Live,
    /// Nothing: it was lost, failed, or is told anew what to hold.
    Over,
    /// No other copy that is reached has what it lacks from this LSN on: look again after a while.
    NoSource(Lsn),
    /// Bring it what `source` has from `from_lsn` on: [`sealed_from`] whole segments where they begin there,
    /// records otherwise. All in the name of `writer`.
    Bring {
        /// In whose name.
        writer: Writer,
        /// Where the copy's redo ends.
        from_lsn: Lsn,
        /// Who has what it lacks.
        source: CopyId,
        /// Which history the copy must hold before it takes a whole segment: [`Log::newest_history`].
        history: Timeline,
    },
}

impl Log {
    /// Goes on with filling a copy; says what is to be brought to it.
    pub fn fill(&mut self, copy: CopyId) -> FillStep {
        if *self.quorum.state(copy) != CopyState::Filling {
            return FillStep::Over;
        }
        // What is read below is this writer's log; after a reset, or another opening, it is no copy's.
        let writer = self.quorum.writer();
        let from_lsn = self.quorum.flushed_lsn(copy);
        let queued_lsn = self.queued.lsn;
        if queued_lsn.bytes_since(from_lsn) <= ATTACH_BYTES {
            let missing: Option<Vec<Stored>> = match from_lsn == queued_lsn {
                true => Some(Vec::new()),
                false => self.tail.since(from_lsn).map(|found| found.map(|e| e.stored.clone()).collect()),
            };
            if let Some(missing) = missing
                && self.quorum.attach(copy, queued_lsn)
            {
                for stored in missing {
                    let order = Order::Append { writer, stored, hurried: true };
                    self.effects.push(Effect::Order(copy, order));
                }
                return FillStep::Live;
            }
        }
        let horizon_lsn = self.segments.first().map_or(Lsn::ZERO, |segment| segment.begin_lsn);
        if from_lsn < horizon_lsn {
            // What it lacks is gone meanwhile: it begins anew.
            self.again(copy);
            return FillStep::Over;
        }
        let best = self.holders(from_lsn).filter(|holder| *holder != copy).max_by_key(|holder| {
            // One that is itself whole, and not suspected, before one that is not.
            (self.tally(*holder).damage.is_empty(), *self.quorum.state(*holder) == CopyState::Live)
        });
        match best {
            Some(source) => FillStep::Bring { writer, from_lsn, source, history: self.newest_history() },
            None => FillStep::NoSource(from_lsn),
        }
    }

    /// The newest timeline that a history is kept of; the first needs none.
    #[must_use]
    pub fn newest_history(&self) -> Timeline {
        self.histories.keys().next_back().copied().unwrap_or(Timeline(1))
    }

    /// Whether a copy that is being filled has said that it holds everything up to `end_lsn`; none when it is
    /// not being filled any more.
    #[must_use]
    pub fn is_filled(&self, copy: CopyId, end_lsn: Lsn) -> Option<bool> {
        let filling = *self.quorum.state(copy) == CopyState::Filling;
        filling.then(|| self.quorum.flushed_lsn(copy) >= end_lsn)
    }

    /// Has a copy say again what it holds, and be filled from there. Where an opening hangs on just that
    /// copy, a log is chosen again.
    pub fn again(&mut self, copy: CopyId) {
        if self.quorum.is_adopted(copy) {
            self.handle(Input::Reached(copy));
        }
    }

    /// Where the opening hangs on what one copy alone has: its log was chosen, is not durable, and nobody
    /// else has it from this LSN on.
    #[must_use]
    pub fn hangs_on(&self, copy: CopyId) -> Option<Lsn> {
        let chosen = self.phase == Phase::Opening && self.quorum.donor() == Some(copy);
        let others = CopyId::all().filter(|other| *other != copy && self.quorum.is_adopted(*other));
        let most_lsn = others.map(|other| self.quorum.flushed_lsn(other)).max().filter(|_| chosen)?;
        (most_lsn < self.queued.lsn).then_some(most_lsn)
    }

    /// Has a copy give up its newest segment, which rotted, or follows one that did and that only this copy
    /// has ([`Log::hangs_on`]), and be filled from where that begins. False where it is asked or told just
    /// now what it holds: what it says of that would count, and be true no more.
    pub fn distrust(&mut self, copy: CopyId) -> bool {
        let adopted = self.quorum.is_adopted(copy);
        if adopted {
            let writer = self.quorum.writer();
            self.effects.push(Effect::Order(copy, Order::DistrustNewest(writer)));
            self.again(copy);
        }
        adopted
    }
}

/// The sealed segments that follow each other from `from_lsn` on, as many as are brought at once.
#[must_use]
pub fn sealed_from(segments: &[SegmentInfo], from_lsn: Lsn) -> Vec<SegmentInfo> {
    let sealed = &segments[..segments.len().saturating_sub(1)];
    let first = sealed.partition_point(|segment| segment.begin_lsn < from_lsn);
    let mut next_lsn = from_lsn;
    let follows = |segment: &&SegmentInfo| {
        let follows = segment.begin_lsn == next_lsn;
        next_lsn = segment.end_lsn;
        follows
    };
    sealed[first..].iter().take_while(follows).take(SEGMENTS_AT_ONCE).copied().collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use bytes::Bytes;
    use proto::{Batch, Epoch, Redo};

    use super::*;
    use crate::Durable;
    use crate::ballot::{Ballot, Ballots};
    use crate::copy::{Contents, Event};
    use crate::log::Told;
    use crate::log::{Appended, LogOptions};
    use crate::quorum::{Held, Keep, Vote};
    use crate::retention::{Policy, Room};

    /// The ballot under which all redo here was written.
    const BEFORE: Ballot = Ballot { epoch: Epoch(1), opening: 1, writer: 7 };

    /// Of a copy that dropped its redo up to 40.
    fn vote(end_lsn: u64) -> Vote {
        let mut ballots = Ballots::default();
        ballots.begin(BEFORE, Lsn(0));
        let begin = Durable { lsn: Lsn(40), ..Durable::default() };
        let end = Durable { lsn: Lsn(end_lsn), timeline: Timeline(1), epoch: Epoch(1) };
        Vote { generation: 1, ballots, begin, end, proven_lsn: Lsn::ZERO, held: Held::default() }
    }

    fn options() -> LogOptions {
        LogOptions {
            epoch: Epoch(1),
            writer: 1,
            segment_bytes: 1 << 20,
            policy: Policy { retain_us: 1, max_size_bytes: 1 << 30 },
            tail_bytes: 1 << 20,
            own: CopyId::all().collect(),
            sealer: None,
            tenure: None,
        }
    }

    /// An opening to which four copies have promised; the first alone has the log's end.
    fn promised() -> (Log, Ballot) {
        let mut log = Log::new(options());
        (0..4).for_each(|copy| log.reached(CopyId(copy), BEFORE));
        let ballot = log.quorum().ballot();
        for copy in 0..4 {
            log.hear(CopyId(copy), Event::Promised(ballot, vote(if copy == 0 { 100 } else { 90 })));
        }
        let segment = SegmentInfo { begin_lsn: Lsn(40), end_lsn: Lsn(100), ..SegmentInfo::default() };
        let found = Contents { segments: vec![segment], histories: Vec::new() };
        log.inspected(CopyId(0), ballot, Ok(found));
        log.effects();
        (log, ballot)
    }

    fn orders(log: &mut Log) -> Vec<(CopyId, Order)> {
        let order = |effect| match effect {
            Effect::Order(copy, order) => Some((copy, order)),
            _ => None,
        };
        log.effects().filter_map(order).collect()
    }

    #[test]
    fn a_log_is_chosen_again_where_the_only_copy_of_its_end_gives_that_up() {
        let (mut log, ballot) = promised();
        for copy in 0..4 {
            let end_lsn = Lsn(if copy == 0 { 100 } else { 90 });
            log.hear(CopyId(copy), Event::Adopted(ballot, 1, end_lsn));
        }
        log.effects();
        assert!(log.distrust(CopyId(0)));
        let orders = orders(&mut log);
        let (copy, first) = &orders[0];
        assert!(*copy == CopyId(0) && matches!(first, Order::DistrustNewest(_)), "{orders:?}");
        let asked = |order: &Order| matches!(order, Order::Promise(higher) if *higher > ballot);
        let asked: Vec<u8> = orders[1..].iter().filter(|(_, o)| asked(o)).map(|(copy, _)| copy.0).collect();
        assert_eq!(asked, [0, 1, 2, 3], "all are asked anew: {orders:?}");
    }

    /// An open log whose copies hold redo up to 110, as far as each was told to have written.
    fn open(flushed: impl Fn(u8) -> u64) -> Log {
        let (mut log, ballot) = promised();
        for copy in 0..4 {
            let end_lsn = Lsn(if copy == 0 { 100 } else { 90 });
            log.hear(CopyId(copy), Event::Adopted(ballot, 1, end_lsn));
            log.hear(CopyId(copy), Event::Flushed(Lsn(100)));
        }
        (0..4).for_each(|copy| assert_eq!(log.fill(CopyId(copy)), FillStep::Live));
        let batch = Batch {
            epoch: Epoch(1),
            timeline: Timeline(1),
            begin_lsn: Lsn(100),
            end_lsn: Lsn(110),
            context_lsn: Lsn(100),
            newest_commit_us: 0,
            redo_crc32c: 0,
            payload: Bytes::new(),
            ends_in_record: false,
        };
        let queued = log.append(Redo { batch, bytes: Bytes::from_static(b"0123456789") });
        assert!(matches!(queued, Ok(Appended::Queued { .. })), "{queued:?}");
        (0..4).for_each(|copy| log.hear(CopyId(copy), Event::Flushed(Lsn(flushed(copy)))));
        log.effects();
        log
    }

    fn failed(log: &mut Log) -> Vec<CopyId> {
        let failed = |effect| match effect {
            Effect::Reopen(copy) => Some(copy),
            _ => None,
        };
        log.effects().filter_map(failed).collect()
    }

    #[test]
    fn a_live_copy_that_writes_nothing_while_others_do_has_failed_after_ten_seconds() {
        let mut log = open(|copy| if copy == 2 { 100 } else { 110 });
        for _ in 0..10 {
            log.tick(0);
            assert_eq!(failed(&mut log), []);
        }
        log.tick(0);
        assert_eq!(failed(&mut log), [CopyId(2)]);
        assert!(matches!(log.quorum().state(CopyId(2)), CopyState::Failed(_)));
        // One that goes on, however slowly, does not; nor all of them, when there is nothing to write.
        let mut slow = open(|copy| if copy == 2 { 100 } else { 110 });
        let mut idle = open(|_| 110);
        for tick in 0..40 {
            slow.hear(CopyId(2), Event::Flushed(Lsn(100 + tick / 8)));
            for log in [&mut slow, &mut idle] {
                log.tick(0);
                assert_eq!(failed(log), [], "tick {tick}");
            }
        }
    }

    #[test]
    fn redo_gives_way_to_room_as_far_as_nobody_needs_it_and_no_further_than_it_helps() {
        let mut log = open(|_| 110);
        let segment = |begin: u64| SegmentInfo {
            begin_lsn: Lsn(begin),
            end_lsn: Lsn(begin + 20),
            stored_bytes: 10,
            ..SegmentInfo::default()
        };
        log.segments = [40, 60, 80, 100].map(segment).into();
        log.needs_mut().set("a region", Some(Lsn(80)));
        let room = |free_bytes| Some(Room { free_bytes, total_bytes: 1000, copies: 1 });
        log.set_room(room(99));
        log.tick(0);
        assert_eq!((log.bounds().horizon_lsn, log.gave_way_us()), (Lsn(60), Some(0)));
        let told = |effect| matches!(effect, Effect::Tell(Told::GaveWay(10, _)));
        assert_eq!(log.effects().filter(|effect| told(effect.clone())).count(), 1);
        // What has gone is counted until it is looked again.
        log.tick(1);
        assert_eq!((log.bounds().horizon_lsn, log.gave_way_us()), (Lsn(60), Some(0)));
        log.set_room(room(0));
        log.tick(1);
        log.tick(1);
        assert_eq!(log.bounds().horizon_lsn, Lsn(80), "what is needed is kept, however full the disk is");
        log.set_room(None);
        log.needs_mut().set("a region", None);
        log.tick(1);
        assert_eq!(log.bounds().horizon_lsn, Lsn(80), "where the room is not known, redo goes by age");
    }

    #[test]
    fn an_opening_hangs_on_a_copy_that_alone_has_the_chosen_log() {
        let (mut log, ballot) = promised();
        assert_eq!(log.hangs_on(CopyId(0)), None, "nobody holds it yet");
        for copy in 0..4 {
            let end_lsn = Lsn(if copy == 0 { 100 } else { 90 });
            log.hear(CopyId(copy), Event::Adopted(ballot, 1, end_lsn));
        }
        assert_eq!((log.hangs_on(CopyId(0)), log.hangs_on(CopyId(1))), (Some(Lsn(90)), None));
        log.hear(CopyId(1), Event::Flushed(Lsn(95)));
        assert_eq!(log.hangs_on(CopyId(0)), Some(Lsn(95)));
        log.hear(CopyId(2), Event::Flushed(Lsn(100)));
        assert_eq!(log.hangs_on(CopyId(0)), None, "the third copy can give it to the others");
        assert_eq!(open(|_| 110).hangs_on(CopyId(0)), None);
    }

    #[test]
    fn a_log_is_chosen_again_where_the_copy_lacks_its_timelines_history_but_once() {
        let mut log = Log::new(options());
        (0..4).for_each(|copy| log.reached(CopyId(copy), BEFORE));
        // All end alike on timeline 2.
        let vote = || {
            let end = Durable { timeline: Timeline(2), ..vote(100).end };
            Vote { end, ..vote(100) }
        };
        let choose = |log: &mut Log| {
            let ballot = log.quorum().ballot();
            (0..4).for_each(|copy| log.hear(CopyId(copy), Event::Promised(ballot, vote())));
            (log.quorum().donor().unwrap(), ballot)
        };
        let found = || {
            let segment = SegmentInfo { begin_lsn: Lsn(40), end_lsn: Lsn(100), ..SegmentInfo::default() };
            Ok(Contents { segments: vec![segment], histories: Vec::new() })
        };
        let mut asked = BTreeSet::new();
        loop {
            let (donor, ballot) = choose(&mut log);
            log.inspected(donor, ballot, found());
            if !asked.insert(donor) {
                break;
            }
            assert_eq!(log.quorum().donor(), None, "all are asked anew after {donor}");
        }
        assert_eq!(asked.len(), 4, "each was asked before one is taken as it is");
        assert!(log.effects().any(|effect| matches!(effect, Effect::Order(_, Order::Adopt(_)))));
    }

    #[test]
    fn a_copy_that_is_told_what_to_hold_gives_nothing_up_meanwhile() {
        let (mut log, ballot) = promised();
        assert!(!log.distrust(CopyId(1)), "what it says next would be what it had before");
        assert_eq!(orders(&mut log).len(), 0);
        log.hear(CopyId(1), Event::Adopted(ballot, 1, Lsn(90)));
        assert!(log.distrust(CopyId(1)));
    }

    #[test]
    fn a_copy_that_begins_where_redo_was_dropped_up_to_knows_the_timeline() {
        let (mut log, ballot) = promised();
        log.reached(CopyId(4), Ballot::default());
        log.effects();
        log.hear(CopyId(4), Event::Promised(ballot, Vote::default()));
        let orders = orders(&mut log);
        let [(CopyId(4), Order::Adopt(adoption))] = &orders[..] else { panic!("{orders:?}") };
        let Keep::Nothing { begin, .. } = adoption.keep else { panic!("{adoption:?}") };
        assert_eq!((begin.lsn, begin.timeline), (Lsn(40), Timeline(1)));
    }
}
