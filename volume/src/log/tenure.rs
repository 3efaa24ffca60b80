//! A volume that other hosts of the region may open as well, when the one that has it is gone.

use std::collections::BTreeSet;

use super::{Effect, Log, Phase, Told};
use crate::VolumeError;
use crate::ballot::Ballot;
use crate::planted::{self, Bug};
use crate::quorum::{COPIES, WRITE_QUORUM};

/// What whoever opens a volume goes by that other hosts may open as well, when it is gone. Nothing is asked
/// of a copy before so many are there that the volume can be opened: whoever is cut off shuts nobody out. And
/// it is given up for good once a copy turns out to have promised another host a higher ballot: what this one
/// remembers of being the region's head may be old then, whether or not the other has written anything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tenure {
    /// The writers of this host's openings since it became the region's head; none where it is about to.
    pub earlier: BTreeSet<u64>,
    /// The ballot with which it became that: whoever has taken over since has a higher one, as its four
    /// copies and the four of this one have two in common. None where it is about to.
    pub since: Option<Ballot>,
}

impl Log {
    /// Begins, once enough copies are there.
    pub(super) fn gather(&mut self) {
        let there = || self.members.iter().filter(|member| member.reached);
        let members = there().filter(|member| member.promised != Ballot::default()).count();
        if members >= WRITE_QUORUM || there().count() == usize::from(COPIES) {
            self.begin();
        }
    }

    /// Asks the copies for their promises, unless another host has had the volume since this one had.
    pub(super) fn begin(&mut self) {
        self.gathering = false;
        let reached = || self.members.iter().filter(|member| member.reached).map(|member| member.promised);
        if let Some(other) = reached().find(|promised| self.is_overtaken(*promised)) {
            return self.overtaken(other);
        }
        let highest = reached().max().unwrap_or_default();
        self.open_above(highest.max(self.quorum.ballot()));
        self.since.get_or_insert(self.quorum.ballot());
    }

    /// Whether a copy that has promised `ballot`, or holds a log that was opened with it, says that another
    /// host may have had the volume since this one had.
    pub(super) fn is_overtaken(&self, ballot: Ballot) -> bool {
        let Some(tenure) = &self.options.tenure else { return false };
        let own = ballot.writer == self.options.writer || tenure.earlier.contains(&ballot.writer);
        !own && self.since.is_some_and(|since| ballot > since) && !planted::is(Bug::ResumesOvertaken)
    }

    pub(super) fn overtaken(&mut self, ballot: Ballot) {
        if self.closed.is_none() {
            let error = VolumeError::Overtaken { ballot };
            self.effects.push(Effect::Tell(Told::Deposed(error.clone())));
            (self.closed, self.phase) = (Some(error), Phase::Closed);
        }
    }
}

#[cfg(test)]
mod tests {
    use proto::{Epoch, Lsn};

    use super::*;
    use crate::copy::{Event, Order};
    use crate::log::LogOptions;
    use crate::quorum::{CopyId, Vote};
    use crate::retention::Policy;

    const OWN: u64 = 7;
    const OTHER: u64 = 8;

    fn ballot(opening: u64, writer: u64) -> Ballot {
        Ballot { epoch: Epoch(1), opening, writer }
    }

    /// A log of a host that was the head under these writers since that ballot, and is `OWN` now.
    fn log(earlier: &[u64], since: Option<Ballot>, epoch: u64) -> Log {
        Log::new(LogOptions {
            epoch: Epoch(epoch),
            writer: OWN,
            segment_bytes: 1 << 20,
            policy: Policy { retain_us: 1, max_size_bytes: 1 << 30 },
            tail_bytes: 1 << 20,
            own: BTreeSet::new(),
            sealer: None,
            tenure: Some(Tenure { earlier: earlier.iter().copied().collect(), since }),
        })
    }

    /// The copies that are asked for their promise.
    fn asked(log: &mut Log) -> Vec<u8> {
        let asked = log.effects().filter_map(|effect| match effect {
            Effect::Order(copy, Order::Promise(_)) => Some(copy.0),
            _ => None,
        });
        asked.collect()
    }

    fn is_overtaken(log: &Log) -> bool {
        matches!(log.closed(), Some(VolumeError::Overtaken { .. }))
    }

    #[test]
    fn nobody_is_asked_before_a_write_quorum_is_there() {
        let mut log = log(&[], None, 1);
        for copy in 0..3 {
            log.reached(CopyId(copy), ballot(5, OTHER));
        }
        log.tick(0);
        assert!(asked(&mut log).is_empty(), "whoever is cut off shuts nobody out");
        // One whose disk is new remembers nothing, and one that is gone again is none.
        log.reached(CopyId(3), Ballot::default());
        log.lost(CopyId(2));
        log.reached(CopyId(4), ballot(5, OTHER));
        assert!(asked(&mut log).is_empty());
        log.reached(CopyId(2), ballot(5, OTHER));
        assert_eq!(asked(&mut log), [0, 1, 2, 3, 4]);
        assert!(log.quorum().ballot() > ballot(5, OTHER), "the head before it is followed");
        // At the first start no copy remembers anything.
        let mut first = self::log(&[], None, 1);
        (0..6).for_each(|copy| first.reached(CopyId(copy), Ballot::default()));
        assert_eq!(asked(&mut first).len(), 6);
    }

    #[test]
    fn a_head_that_was_overtaken_does_not_resume() {
        let (began, own) = (ballot(4, 3), ballot(5, 4));
        let resumed = |promised: [Ballot; 4], epoch| {
            let mut log = log(&[3, 4], Some(began), epoch);
            for (copy, promised) in (0..4).zip(promised) {
                log.reached(CopyId(copy), promised);
            }
            log
        };
        // One was away all the time.
        let mut goes_on = resumed([own, own, began, ballot(2, OTHER)], 1);
        assert!(!is_overtaken(&goes_on) && !asked(&mut goes_on).is_empty(), "{:?}", goes_on.closed());
        // The record may be of a later epoch by now than the ballot of whoever was the head meanwhile; and
        // this host may have asked for a higher one, of which that has not heard.
        for (epoch, asked_for) in [(1, 5), (9, 5), (1, 8)] {
            let own = ballot(asked_for, 4);
            let mut log = resumed([own, own, ballot(5, OTHER), own], epoch);
            assert!(is_overtaken(&log) && asked(&mut log).is_empty());
            // One that left, promised another, and is back.
            let mut log = resumed([own; 4], epoch);
            log.reached(CopyId(3), ballot(5, OTHER));
            assert!(is_overtaken(&log));
            // One that promises, and was told another's log meanwhile.
            let mut log = resumed([own; 4], epoch);
            let mut vote = Vote::default();
            vote.ballots.begin(ballot(5, OTHER), Lsn(8));
            let asked_for = log.quorum().ballot();
            log.hear(CopyId(3), Event::Promised(asked_for, vote));
            assert!(is_overtaken(&log));
        }
    }

    #[test]
    fn a_head_that_hears_of_another_gives_up() {
        let opened = || {
            let mut log = log(&[], None, 1);
            (0..4).for_each(|copy| log.reached(CopyId(copy), ballot(5, OTHER)));
            let own = log.quorum().ballot();
            log.hear(CopyId(0), Event::Promised(own, Vote { end: Default::default(), ..Vote::default() }));
            (log, own)
        };
        let (mut log, own) = opened();
        log.hear(CopyId(1), Event::Refused(ballot(own.opening + 1, OTHER)));
        assert!(is_overtaken(&log), "one that it asks has promised another");
        let (mut log, own) = opened();
        log.reached(CopyId(5), ballot(own.opening + 1, OTHER));
        assert!(is_overtaken(&log), "one that joins has");
        let (mut log, _) = opened();
        log.reached(CopyId(5), ballot(5, OTHER));
        assert!(!is_overtaken(&log), "what was promised before it began");
        assert_eq!(log.bounds().durable_lsn, Lsn::ZERO);
    }
}
