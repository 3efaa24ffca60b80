//! What comes next in a promotion: pure functions of what a step brought.
//!
//! The coordinator, any voter, does one thing at a time: what [`Step`] asks. What that brings is an [`Outcome`], and [`after`] says
//! how the record is to change. Whoever takes the coordination over begins with the same step again; each can be done twice.

use std::collections::BTreeMap;

use proto::{Lsn, RegionName, Timeline};

use crate::record::{Loss, Mode, Next, Promotion, Step};

/// The clocks of daemons run within this many percent of the time: so that a lease, its end as others see it, and their waiting, each
/// off by so much, are covered by a tenth of the lease.
pub const CLOCK_DRIFT_MAX_PERCENT: u64 = 4;

/// What a voter says when it accepts a record, and when it is asked how it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Grant {
    /// It has data that it could lead with.
    pub has_data: bool,
    /// The timeline of its newest redo.
    pub timeline: Timeline,
    /// The end of its durable redo.
    pub durable_lsn: Lsn,
    /// How long ago it last answered a primary, or was started, microseconds: it may have answered just before.
    pub silent_us: u64,
    /// How far the primary was durable, as that said last.
    pub primary_lsn: Lsn,
    /// It was the primary itself, and has stopped its writer.
    pub stopped: bool,
}

/// What is known while the old primary is shut out.
#[derive(Debug, Clone)]
pub struct Fence {
    needed: usize,
    lease_us: u64,
    forced: bool,
    grants: BTreeMap<RegionName, Grant>,
    lease_over_us: u64,
}

impl Fence {
    /// Nobody has been heard. `needed` voters must accept that the old primary is shut out, whose lease is `lease_us`; none is
    /// waited for when the operator has given his word.
    #[must_use]
    pub fn new(needed: usize, lease_us: u64, forced: bool) -> Fence {
        Fence { needed, lease_us, forced, grants: BTreeMap::new(), lease_over_us: 0 }
    }

    /// `voter` has accepted it, as is known at `now_us` of a clock that never steps.
    pub fn granted(&mut self, now_us: u64, voter: RegionName, grant: Grant) {
        // Any one of them may have been in the majority that answered last.
        let lease_us = self.lease_us + self.lease_us / 10;
        self.lease_over_us = self.lease_over_us.max(now_us + lease_us.saturating_sub(grant.silent_us));
        self.grants.insert(voter, grant);
    }

    /// Whether enough have accepted it, or the operator has given his word.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.forced || self.grants.len() >= self.needed
    }

    /// How many have accepted it.
    #[must_use]
    pub fn count(&self) -> usize {
        self.grants.len()
    }

    /// Whether `voter` has accepted it.
    #[must_use]
    pub fn has(&self, voter: &RegionName) -> bool {
        self.grants.contains_key(voter)
    }

    /// Until when the old primary may acknowledge commits; none when it does not any more.
    #[must_use]
    pub fn waits_until(&self) -> Option<u64> {
        let stopped = self.grants.values().any(|grant| grant.stopped);
        (!stopped && !self.forced).then_some(self.lease_over_us)
    }

    /// The region that has the most redo that `to` can continue with, if it has more than that.
    #[must_use]
    pub fn ahead_of(&self, to: &RegionName) -> Option<(RegionName, Lsn)> {
        let mine = self.grants.get(to)?;
        let others = self.grants.iter().filter(|(name, grant)| {
            *name != to
                && grant.has_data
                && grant.timeline == mine.timeline
                && grant.durable_lsn > mine.durable_lsn
        });
        others
            .max_by_key(|(_, grant)| grant.durable_lsn)
            .map(|(name, grant)| (name.clone(), grant.durable_lsn))
    }

    /// What may be lost when the new timeline begins at `fork_lsn`.
    #[must_use]
    pub fn loss(&self, fork_lsn: Lsn) -> Loss {
        let to_lsn = self.grants.values().map(|grant| grant.primary_lsn).max().unwrap_or_default();
        let stopped = self.grants.values().any(|grant| grant.stopped);
        let silent_us = self.grants.values().map(|grant| grant.silent_us).min().unwrap_or(0);
        let us = if stopped { 0 } else { silent_us.min(self.lease_us) };
        Loss { to_lsn: to_lsn.max(fork_lsn), us }
    }

    /// Everybody who was heard.
    pub fn grants(&self) -> impl Iterator<Item = (&RegionName, &Grant)> {
        self.grants.iter()
    }
}

/// What doing a step brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The old primary has stopped, and the new one has applied everything up to here.
    HandedOver {
        /// The end of all redo of the old epoch.
        end_lsn: Lsn,
    },
    /// The old primary does not hand over, or not in time.
    NotHandedOver(String),
    /// The old primary is shut out, and the new one has everything that survives.
    Ready {
        /// The end of it.
        end_lsn: Lsn,
        /// What may be lost.
        loss: Loss,
    },
    /// The new primary takes writes.
    Leads {
        /// How long no writes were taken, microseconds.
        write_gap_us: u64,
    },
    /// The region that shall lead cannot be reached for so long that it is given up.
    TargetGone {
        /// The other voters that can be reached.
        others: BTreeMap<RegionName, Grant>,
    },
}

/// What follows at `at_us`, microseconds since 1970; none when there is nothing but to do the step again.
#[must_use]
pub fn after(promotion: &Promotion, at_us: i64, outcome: Outcome) -> Option<Next> {
    match (promotion.step, outcome) {
        (Step::HandOver, Outcome::HandedOver { end_lsn }) => {
            Some(Next::Promote { fork_lsn: end_lsn, loss: Loss { to_lsn: end_lsn, us: 0 } })
        }
        (Step::HandOver, Outcome::NotHandedOver(why)) => Some(Next::RollBack { at_us, why }),
        (Step::HandOver, Outcome::TargetGone { .. }) => {
            Some(Next::RollBack { at_us, why: format!("{} cannot be reached any more", promotion.to) })
        }
        (Step::Fence, Outcome::Ready { end_lsn, loss }) => Some(Next::Promote { fork_lsn: end_lsn, loss }),
        (Step::Promote, Outcome::Leads { write_gap_us }) => Some(Next::Finish { at_us, write_gap_us }),
        (Step::Fence | Step::Promote, Outcome::TargetGone { others }) => {
            successor(promotion, &others).map(|to| Next::Replace { to })
        }
        _ => None,
    }
}

/// Who leads instead of a target that is gone: the one with the most redo; the old primary of a switchover before another with as
/// much, as it needs nothing to be fetched.
fn successor(promotion: &Promotion, others: &BTreeMap<RegionName, Grant>) -> Option<RegionName> {
    let able = others.iter().filter(|(name, grant)| **name != promotion.to && grant.has_data);
    let old = |name: &RegionName| promotion.mode == Mode::Switchover && *name == promotion.from;
    let best = able.max_by_key(|(name, grant)| (grant.timeline, grant.durable_lsn, old(name)));
    best.map(|(name, _)| name.clone())
}

#[cfg(test)]
mod tests {
    use proto::Epoch;

    use super::*;
    use crate::record::{Change, Order, Record};

    fn name(text: &str) -> RegionName {
        text.parse().unwrap()
    }

    fn grant(durable_lsn: u64, silent_us: u64) -> Grant {
        let (timeline, durable_lsn) = (Timeline(1), Lsn(durable_lsn));
        Grant { has_data: true, timeline, durable_lsn, silent_us, primary_lsn: durable_lsn, stopped: false }
    }

    fn promotion(mode: Mode) -> Promotion {
        let order = Order { id: 1, mode, to: name("b"), by: name("b"), forced: false };
        let record = Record::first(Epoch(1), name("a")).apply(&Change::Begin(order)).unwrap();
        record.promotion.unwrap()
    }

    #[test]
    fn the_lease_is_waited_for_from_the_last_answer_of_anyone() {
        let mut fence = Fence::new(2, 1000, false);
        fence.granted(10_000, name("b"), grant(50, 900));
        assert!(!fence.holds());
        fence.granted(10_000, name("c"), grant(70, 100));
        assert!(fence.holds());
        assert_eq!(fence.waits_until(), Some(10_000 + 1100 - 100));
        assert_eq!(fence.ahead_of(&name("b")), Some((name("c"), Lsn(70))));
        assert_eq!(fence.ahead_of(&name("c")), None);
        assert_eq!(fence.loss(Lsn(70)), Loss { to_lsn: Lsn(70), us: 100 });
        fence.granted(10_000, name("a"), Grant { stopped: true, ..grant(80, 0) });
        assert_eq!((fence.waits_until(), fence.loss(Lsn(80)).us), (None, 0));
        assert_eq!(Fence::new(2, 1000, true).waits_until(), None);
    }

    #[test]
    fn a_lease_is_covered_when_all_clocks_are_off_by_the_bound() {
        let (lease, drift) = (1_000_000.0, 0.01 * f64::from(u32::try_from(CLOCK_DRIFT_MAX_PERCENT).unwrap()));
        // The primary's clock is slow, the voter's and the coordinator's are fast.
        assert!(lease * 1.1 >= lease * (1.0 + drift) * (1.0 + drift));
    }

    #[test]
    fn each_step_leads_to_the_next_or_back() {
        let (switchover, failover) = (promotion(Mode::Switchover), promotion(Mode::Failover));
        let promote = |loss| Some(Next::Promote { fork_lsn: Lsn(9), loss });
        let handed_over = Outcome::HandedOver { end_lsn: Lsn(9) };
        assert_eq!(after(&switchover, 0, handed_over), promote(Loss { to_lsn: Lsn(9), us: 0 }));
        let late = Outcome::NotHandedOver("late".into());
        assert_eq!(after(&switchover, 5, late), Some(Next::RollBack { at_us: 5, why: "late".into() }));
        let loss = Loss { to_lsn: Lsn(20), us: 3 };
        assert_eq!(after(&failover, 0, Outcome::Ready { end_lsn: Lsn(9), loss }), promote(loss));
        let others = BTreeMap::from([(name("c"), grant(70, 0)), (name("d"), grant(60, 0))]);
        let gone = Outcome::TargetGone { others };
        assert_eq!(after(&failover, 0, gone), Some(Next::Replace { to: name("c") }));
        let nobody = Outcome::TargetGone { others: BTreeMap::new() };
        assert_eq!(after(&failover, 0, nobody), None);
    }

    #[test]
    fn a_switchover_whose_target_dies_goes_back_to_the_old_primary() {
        let promoting = Promotion { step: Step::Promote, ..promotion(Mode::Switchover) };
        let others = BTreeMap::from([(name("a"), grant(70, 0)), (name("c"), grant(70, 0))]);
        let gone = Outcome::TargetGone { others };
        assert_eq!(after(&promoting, 0, gone), Some(Next::Replace { to: name("a") }));
    }
}
