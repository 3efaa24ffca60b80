//! What comes next in a promotion: pure functions of what a step brought.
//!
//! The coordinator, any voter, does one thing at a time: what [`Step`] asks. What that brings is an
//! [`Outcome`], and [`after`] says how the record is to change. Whoever takes the coordination over begins
//! with the same step again; each can be done twice.

use std::collections::BTreeMap;

use proto::{Lsn, RegionName, Timeline};

use crate::leadership::{Leadership, Loss, Mode, Next, Promotion, Step};
use crate::lineage::{Lineage, Redo};
use crate::planted::{self, Bug};
use crate::voters::Electorate;

/// The clocks of daemons run within this many percent of the time: so that a lease, its end as others see it,
/// and their waiting, each off by so much, are covered by a tenth of the lease.
pub const CLOCK_DRIFT_MAX_PERCENT: u64 = 4;

/// What a voter says when it accepts a record, and when it is asked how it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Grant {
    /// It has data that it could lead with.
    pub has_data: bool,
    /// Its volume holds redo, whether or not it could lead: an old primary that has stopped can still give
    /// what it has.
    pub has_redo: bool,
    /// Its volume is open, so that what it says of its redo is known. One whose volume is not open votes, and
    /// is not heard.
    pub open: bool,
    /// The timeline of its newest redo.
    pub timeline: Timeline,
    /// The end of its durable redo.
    pub durable_lsn: Lsn,
    /// How long ago it last answered a primary, or was started, microseconds: it may have answered just
    /// before.
    pub silent_us: u64,
    /// How far the primary was durable, as that said last.
    pub primary_lsn: Lsn,
    /// It was the primary itself, and has stopped its writer.
    pub stopped: bool,
}

impl Grant {
    /// The redo that the region has durable.
    #[must_use]
    pub fn redo(&self) -> Redo {
        Redo::new(self.timeline, self.durable_lsn)
    }
}

/// A region that has redo which the one that shall lead has not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ahead {
    /// Its name.
    pub from: RegionName,
    /// The timeline of its newest redo.
    pub timeline: Timeline,
    /// How far it is wanted.
    pub to_lsn: Lsn,
}

/// Whether the region that shall lead can, as far as those say who were heard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fitness {
    /// It was not heard: what others have beyond it nobody knows, nor which timeline it would leave.
    Unheard,
    /// Its redo was cut off, or does not continue with the most that another has.
    Unfit,
    /// It can lead.
    Fit {
        /// Once it has gathered this.
        ahead: Option<Ahead>,
        /// All that it has then. Where it turns out to have more, it was given that meanwhile, and is to be
        /// heard again.
        whole: Redo,
    },
}

/// What is known while the old primary is shut out.
#[derive(Debug, Clone)]
pub struct Fence {
    voters: Electorate,
    lease_us: u64,
    record: Leadership,
    grants: BTreeMap<RegionName, Grant>,
    lease_over_us: u64,
}

impl Fence {
    /// Nobody has been heard. A majority of `voters` must accept that the old primary is shut out, as
    /// `record` says, whose lease is `lease_us`; none is waited for when the operator has given his word.
    #[must_use]
    pub fn new(voters: Electorate, lease_us: u64, record: Leadership) -> Fence {
        Fence { voters, lease_us, record, grants: BTreeMap::new(), lease_over_us: 0 }
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
        self.forced() || self.voters.decide(|name| self.grants.contains_key(name))
    }

    fn forced(&self) -> bool {
        self.record.promotion.as_ref().is_some_and(|promotion| promotion.forced)
    }

    /// How many voters have accepted it.
    #[must_use]
    pub fn count(&self) -> usize {
        self.voters.names().iter().filter(|name| self.grants.contains_key(*name)).count()
    }

    /// Whether one that has accepted it could not say yet what redo it has.
    #[must_use]
    pub fn has_unheard(&self) -> bool {
        self.grants.values().any(|grant| !grant.open)
    }

    /// Whether `voter` has accepted it, and has said what redo it has.
    #[must_use]
    pub fn hears(&self, voter: &RegionName) -> bool {
        self.grants.get(voter).is_some_and(|grant| grant.open)
    }

    /// Until when the old primary may acknowledge commits; none when it does not any more.
    #[must_use]
    pub fn waits_until(&self) -> Option<u64> {
        let stopped = self.grants.values().any(|grant| grant.stopped);
        let waits = !stopped && !self.forced() && !planted::is(Bug::WaitsForNoLease);
        waits.then_some(self.lease_over_us)
    }

    /// Whether `to` can lead, and with what. It has to be heard itself: a majority may hold without it, as
    /// whoever coordinates may be another region.
    #[must_use]
    pub fn fitness(&self, to: &RegionName) -> Fitness {
        let Some(own) = self.grants.get(to) else { return Fitness::Unheard };
        let Some(mine) = self.on_line(own).filter(|_| own.has_data) else { return Fitness::Unfit };
        let ahead = self.ahead_of(to, own, mine);
        let whole = ahead.as_ref().map_or(own.redo(), |ahead| Redo::new(ahead.timeline, ahead.to_lsn));
        match Lineage::of(&self.record).extends(own.redo(), whole) {
            true => Fitness::Fit { ahead, whole },
            false => Fitness::Unfit,
        }
    }

    /// The region that has the most redo, if it has more than `to`, whose `own` is on the line up to `mine`,
    /// and up to where; what was cut off is not meant.
    fn ahead_of(&self, to: &RegionName, own: &Grant, mine: Lsn) -> Option<Ahead> {
        if planted::is(Bug::GathersNothing) {
            return None;
        }
        let lineage = Lineage::of(&self.record);
        let others = self.grants.iter().filter(|(name, _)| *name != to);
        let able = others.filter(|(_, grant)| grant.has_redo);
        let able = able.filter_map(|(name, grant)| {
            let along = lineage.common_with_line(grant.redo())?;
            // One that has redo which was cut off still has what comes before.
            let to_lsn = self.on_line(grant).map_or(along, |_| grant.durable_lsn);
            // What `to` cannot go on with, and its owner cannot lead with, was cut off by an epoch that began
            // since, which said so.
            let useful = grant.has_data || lineage.extends(own.redo(), Redo::new(grant.timeline, to_lsn));
            useful.then(|| (along, Ahead { from: name.clone(), timeline: grant.timeline, to_lsn }))
        });
        let (most, ahead) = able.max_by_key(|(along, _)| *along)?;
        (most > mine).then_some(ahead)
    }

    fn on_line(&self, grant: &Grant) -> Option<Lsn> {
        Lineage::of(&self.record).on_line(grant.redo())
    }

    /// What may be lost when the new timeline begins at `fork_lsn`. `elsewhere`: every commit that the old
    /// primary has acknowledged is also durable in one of those who were heard.
    #[must_use]
    pub fn loss(&self, fork_lsn: Lsn, elsewhere: bool) -> Loss {
        let to_lsn = self.grants.values().map(|grant| grant.primary_lsn).max().unwrap_or_default();
        let stopped = self.grants.values().any(|grant| grant.stopped);
        let silent_us = self.grants.values().map(|grant| grant.silent_us).min().unwrap_or(0);
        let us = match () {
            () if stopped => 0,
            // Before it has acknowledged any, it alone may have those of earlier epochs.
            () if elsewhere && fork_lsn >= Lineage::of(&self.record).current_line().1 => 0,
            // Without a lease nothing ends what it does but the operator's word, which is about now.
            () if self.forced() => silent_us,
            // It may be alone, and have acknowledged to the end of its lease.
            () => self.lease_us + self.lease_us / 10,
        };
        Loss { to_lsn: to_lsn.max(fork_lsn), us }
    }

    /// Everybody who was heard.
    pub fn grants(&self) -> impl Iterator<Item = (&RegionName, &Grant)> {
        self.grants.iter()
    }
}

/// How long the region that shall lead may be unreachable before another one leads, or the old one again,
/// microseconds.
const TARGET_GONE_US: u64 = 5_000_000;

/// How long it may answer that it cannot, microseconds. Applying what it has may take that long; a standby
/// that is paused, or data that are being replaced, take for ever.
const TARGET_UNABLE_US: u64 = 30_000_000;

/// Why a step is to be tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setback {
    /// The region that shall lead was not reached, or did not answer in time.
    Unreached,
    /// It answered that it cannot.
    Unable,
    /// It is not that region's: too few voters answer, or another one does not.
    Elsewhere,
}

/// How long a coordinator puts up with the region that shall lead, on a clock that never steps.
#[derive(Debug, Clone, Default)]
pub struct Patience {
    /// Since when it is not reached.
    unreached_us: Option<u64>,
    /// Since when it does not do what it is asked, reached or not.
    unable_us: Option<u64>,
}

impl Patience {
    /// A step did not succeed, as is known at `now_us`. True when the region is given up; then it begins
    /// anew, for the next one.
    pub fn ends(&mut self, setback: Setback, now_us: u64) -> bool {
        let since = |counts: bool, since: Option<u64>| counts.then(|| since.unwrap_or(now_us));
        self.unreached_us = since(setback == Setback::Unreached, self.unreached_us);
        self.unable_us = since(setback != Setback::Elsewhere, self.unable_us);
        let lasts = |since: Option<u64>, most_us| since.is_some_and(|since| now_us - since >= most_us);
        let ends = lasts(self.unreached_us, TARGET_GONE_US) || lasts(self.unable_us, TARGET_UNABLE_US);
        if ends {
            *self = Patience::default();
        }
        ends
    }
}

/// What doing a step brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The old primary has stopped, and the new one has applied everything up to here.
    HandedOver {
        /// The end of all redo of the old epoch.
        end_lsn: Lsn,
        /// Its timeline.
        timeline: Timeline,
    },
    /// The old primary does not hand over, or not in time.
    NotHandedOver(String),
    /// The old primary is shut out, and the new one has everything that survives.
    Ready {
        /// The end of it.
        end_lsn: Lsn,
        /// The timeline of that.
        timeline: Timeline,
        /// What may be lost.
        loss: Loss,
    },
    /// The new primary takes writes.
    Leads {
        /// How long no writes were taken, microseconds.
        write_gap_us: u64,
    },
    /// The region that shall lead cannot be reached for so long that it is given up, or cannot lead with the
    /// redo it has.
    TargetGone {
        /// The other voters that can be reached.
        others: BTreeMap<RegionName, Grant>,
    },
}

/// What follows at `at_us`, microseconds since 1970; none when there is nothing but to do the step again.
#[must_use]
pub fn after(record: &Leadership, at_us: i64, outcome: Outcome) -> Option<Next> {
    let promotion = record.promotion.as_ref()?;
    match (promotion.step, outcome) {
        (Step::HandOver, Outcome::HandedOver { end_lsn, timeline }) => {
            let loss = Loss { to_lsn: end_lsn, us: 0 };
            Some(Next::Promote { fork_lsn: end_lsn, parent: timeline, loss })
        }
        (Step::HandOver, Outcome::NotHandedOver(why)) => Some(Next::RollBack { at_us, why }),
        (Step::HandOver, Outcome::TargetGone { .. }) => {
            Some(Next::RollBack { at_us, why: format!("{} cannot be reached any more", promotion.to) })
        }
        (Step::Fence, Outcome::Ready { end_lsn, timeline, loss }) => {
            let bytes = loss.to_lsn.0.saturating_sub(end_lsn.0);
            let too_much =
                promotion.loss_max_bytes.filter(|most| bytes > *most && !planted::is(Bug::LosesMore));
            Some(match too_much {
                Some(most) => Next::RollBack { at_us, why: beyond(bytes, most, &promotion.from) },
                None => Next::Promote { fork_lsn: end_lsn, parent: timeline, loss },
            })
        }
        (Step::Promote, Outcome::Leads { write_gap_us }) => Some(Next::Finish { at_us, write_gap_us }),
        (Step::Fence | Step::Promote, Outcome::TargetGone { others }) => {
            let back = promotion.step == Step::Fence && others.contains_key(&promotion.from);
            let why = || format!("no other region has redo to lead with: {} leads on", promotion.from);
            let back = back.then(|| Next::RollBack { at_us, why: why() });
            successor(record, promotion, &others).map(|to| Next::Replace { to, at_us }).or(back)
        }
        _ => None,
    }
}

/// Why a failover that a region ordered by itself is rolled back.
fn beyond(bytes: u64, most: u64, from: &RegionName) -> String {
    format!(
        "{bytes} bytes of redo would be lost that {from} is known to have had, and `max_loss` allows {most} without an operator's \
         order: {from} is given the leadership back"
    )
}

/// Who leads instead of a target that is gone: the one with the most redo; the old primary of a switchover
/// before another with as much, as it needs nothing to be fetched.
fn successor(
    record: &Leadership,
    promotion: &Promotion,
    others: &BTreeMap<RegionName, Grant>,
) -> Option<RegionName> {
    let able = others.iter().filter(|(name, _)| **name != promotion.to);
    let votes = |name: &RegionName| record.voters.as_ref().is_none_or(|voters| voters.may_lead(name));
    let able = able.filter(|(name, grant)| grant.has_data && votes(name));
    let lineage = Lineage::of(record);
    let able = able.filter_map(|(name, grant)| Some((lineage.on_line(grant.redo())?, grant, name)));
    let old = |name: &RegionName| promotion.mode == Mode::Switchover && *name == promotion.from;
    let best =
        able.max_by_key(|(on_line, grant, name)| (*on_line, grant.timeline, grant.durable_lsn, old(name)));
    best.map(|(.., name)| name.clone())
}

#[cfg(test)]
mod tests {
    use proto::Epoch;

    use super::*;
    use crate::leadership::{Change, Order, Past};
    use crate::voters::Voters;

    fn voters(texts: &[&str]) -> Electorate {
        let regions = texts.iter().map(|text| name(text)).collect();
        Electorate::of(Voters { regions, ..Voters::default() })
    }

    fn name(text: &str) -> RegionName {
        text.parse().unwrap()
    }

    fn grant(durable_lsn: u64, silent_us: u64) -> Grant {
        let (timeline, durable_lsn) = (Timeline(1), Lsn(durable_lsn));
        Grant {
            has_data: true,
            has_redo: true,
            open: true,
            timeline,
            durable_lsn,
            silent_us,
            primary_lsn: durable_lsn,
            stopped: false,
        }
    }

    fn has(timeline: u32, end_lsn: u64) -> Fitness {
        Fitness::Fit { ahead: None, whole: Redo::new(Timeline(timeline), Lsn(end_lsn)) }
    }

    fn gathers(from: &str, timeline: u32, to_lsn: u64) -> Fitness {
        let (timeline, to_lsn) = (Timeline(timeline), Lsn(to_lsn));
        let ahead = Some(Ahead { from: name(from), timeline, to_lsn });
        Fitness::Fit { ahead, whole: Redo::new(timeline, to_lsn) }
    }

    fn begun(mode: Mode) -> Leadership {
        let order = Order::new(1, Epoch(1), mode, &name("b"));
        Leadership::first(Epoch(1), name("a")).apply(&Change::Begin(order)).unwrap()
    }

    #[test]
    fn the_lease_is_waited_for_from_the_last_answer_of_anyone() {
        let mut fence = Fence::new(voters(&["a", "b", "c"]), 1000, begun(Mode::Failover));
        fence.granted(10_000, name("b"), grant(50, 900));
        assert!(!fence.holds());
        fence.granted(10_000, name("c"), grant(70, 100));
        assert!(fence.holds());
        assert_eq!(fence.waits_until(), Some(10_000 + 1100 - 100));
        assert_eq!(fence.fitness(&name("b")), gathers("c", 1, 70));
        assert_eq!(fence.fitness(&name("c")), has(1, 70));
        assert_eq!(fence.loss(Lsn(70), false), Loss { to_lsn: Lsn(70), us: 1100 });
        assert_eq!(fence.loss(Lsn(70), true).us, 0);
        fence.granted(10_000, name("a"), Grant { stopped: true, ..grant(80, 0) });
        assert_eq!((fence.waits_until(), fence.loss(Lsn(80), false).us), (None, 0));
        let mut forced = begun(Mode::Failover);
        forced.promotion.as_mut().unwrap().forced = true;
        assert_eq!(Fence::new(voters(&["b"]), 1000, forced).waits_until(), None);
    }

    #[test]
    fn who_was_not_heard_does_not_lead_whatever_a_majority_says() {
        let mut fence = Fence::new(voters(&["a", "b", "c", "d"]), 1000, begun(Mode::Failover));
        // The old primary coordinates, as whoever shall lead was silent for a while.
        fence.granted(0, name("a"), Grant { stopped: true, has_data: false, ..grant(105, 0) });
        fence.granted(0, name("c"), grant(103, 0));
        fence.granted(0, name("d"), Grant::default());
        assert!(fence.holds());
        assert_eq!(fence.fitness(&name("b")), Fitness::Unheard, "others may have more than it");
        fence.granted(0, name("b"), grant(97, 0));
        assert_eq!(fence.fitness(&name("b")), gathers("a", 1, 105));
        // One that cannot say what it has is not waited for.
        fence.granted(0, name("b"), Grant::default());
        assert_eq!(fence.fitness(&name("b")), Fitness::Unfit);
    }

    #[test]
    fn redo_that_was_cut_off_neither_leads_nor_is_gathered() {
        let mut record = begun(Mode::Failover);
        let mut past = record.promotion.clone().unwrap();
        (past.step, past.fork_lsn, past.parent) = (Step::Promote, Lsn(50), 1);
        record.history.push(Past { promotion: past, at_us: 0, write_gap_us: 0, rolled_back: None });
        record.promotion.as_mut().unwrap().epoch = Epoch(3);
        let mut fence = Fence::new(voters(&["a", "b", "c"]), 1000, record);
        fence.granted(0, name("b"), Grant { timeline: Timeline(1), ..grant(70, 0) });
        fence.granted(0, name("c"), Grant { timeline: Timeline(2), ..grant(60, 0) });
        fence.granted(0, name("d"), Grant { timeline: Timeline(1), ..grant(40, 0) });
        assert_eq!(fence.fitness(&name("b")), Fitness::Unfit, "beyond the fork");
        assert_eq!(fence.fitness(&name("c")), has(2, 60));
        assert_eq!(fence.fitness(&name("d")), gathers("c", 2, 60), "on the next timeline of its line");
        // Without it the one that was cut off has the most that counts, up to where it was.
        fence.grants.remove(&name("c"));
        assert_eq!(fence.fitness(&name("d")), gathers("b", 1, 50));
        assert_eq!((fence.loss(Lsn(50), true).us, fence.loss(Lsn(49), true).us), (0, 1100));
    }

    #[test]
    fn a_lease_is_covered_when_all_clocks_are_off_by_the_bound() {
        let (lease, drift) = (1_000_000.0, 0.01 * f64::from(u32::try_from(CLOCK_DRIFT_MAX_PERCENT).unwrap()));
        // The primary's clock is slow, the voter's and the coordinator's are fast.
        assert!(lease * 1.1 >= lease * (1.0 + drift) * (1.0 + drift));
    }

    #[test]
    fn each_step_leads_to_the_next_or_back() {
        let (switchover, failover) = (begun(Mode::Switchover), begun(Mode::Failover));
        let promote = |loss| Some(Next::Promote { fork_lsn: Lsn(9), parent: Timeline(1), loss });
        let handed_over = Outcome::HandedOver { end_lsn: Lsn(9), timeline: Timeline(1) };
        assert_eq!(after(&switchover, 0, handed_over), promote(Loss { to_lsn: Lsn(9), us: 0 }));
        let late = Outcome::NotHandedOver("late".into());
        assert_eq!(after(&switchover, 5, late), Some(Next::RollBack { at_us: 5, why: "late".into() }));
        let loss = Loss { to_lsn: Lsn(20), us: 3 };
        let ready = Outcome::Ready { end_lsn: Lsn(9), timeline: Timeline(1), loss };
        assert_eq!(after(&failover, 0, ready), promote(loss));
        let others = BTreeMap::from([(name("c"), grant(70, 0)), (name("d"), grant(60, 0))]);
        let gone = Outcome::TargetGone { others };
        assert_eq!(after(&failover, 0, gone), Some(Next::Replace { to: name("c"), at_us: 0 }));
        let nobody = Outcome::TargetGone { others: BTreeMap::new() };
        assert_eq!(after(&failover, 0, nobody), None);
        let alive = Outcome::TargetGone { others: BTreeMap::from([(name("a"), Grant::default())]) };
        assert!(matches!(after(&failover, 0, alive), Some(Next::RollBack { .. })), "the old one leads on");
    }

    #[test]
    fn a_region_that_does_not_come_to_lead_is_given_up_after_a_while() {
        use Setback::{Elsewhere, Unable, Unreached};
        // What failed at each second from the first on, and when the region is given up.
        let given_up = |setbacks: &[(Setback, u64)]| {
            let mut patience = Patience::default();
            let each = setbacks.iter().flat_map(|(setback, seconds)| (0..*seconds).map(move |_| *setback));
            each.zip(0_u64..)
                .find(|(setback, at_s)| patience.ends(*setback, at_s * 1_000_000))
                .map(|(_, at)| at)
        };
        assert_eq!(given_up(&[(Unreached, 100)]), Some(5));
        assert_eq!(given_up(&[(Unable, 100)]), Some(30));
        assert_eq!(given_up(&[(Unreached, 5), (Unable, 2), (Unreached, 100)]), Some(12), "it answered once");
        assert_eq!(given_up(&[(Unable, 28), (Unreached, 100)]), Some(30), "it does nothing for so long");
        assert_eq!(given_up(&[(Unable, 28), (Elsewhere, 1), (Unable, 28), (Elsewhere, 100)]), None);
    }

    #[test]
    fn a_failover_that_nobody_ordered_is_given_up_where_it_would_lose_too_much() {
        let ready = |lost: u64| Outcome::Ready {
            end_lsn: Lsn(100),
            timeline: Timeline(1),
            loss: Loss { to_lsn: Lsn(100 + lost), us: 0 },
        };
        let mut failover = begun(Mode::Failover);
        assert!(
            matches!(after(&failover, 0, ready(9)), Some(Next::Promote { .. })),
            "an operator ordered it"
        );
        failover.promotion.as_mut().unwrap().loss_max_bytes = Some(8);
        assert!(matches!(after(&failover, 0, ready(8)), Some(Next::Promote { .. })));
        assert!(matches!(after(&failover, 0, ready(9)), Some(Next::RollBack { .. })));
    }

    #[test]
    fn a_switchover_whose_target_dies_goes_back_to_the_old_primary() {
        let mut promoting = begun(Mode::Switchover);
        promoting.promotion.as_mut().unwrap().step = Step::Promote;
        let others = BTreeMap::from([(name("a"), grant(70, 0)), (name("c"), grant(70, 0))]);
        let gone = Outcome::TargetGone { others };
        assert_eq!(after(&promoting, 0, gone), Some(Next::Replace { to: name("a"), at_us: 0 }));
    }
}
