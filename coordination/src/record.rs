//! The record: which region leads which epoch, and the promotion in progress.
//!
//! Every voter keeps one. It changes only by [`Record::apply`], and only through the register, so that a majority agrees on each
//! record before anything is done that it allows.

use std::fmt;

use proto::{Epoch, Lsn, RegionName, Timeline};
use serde::{Deserialize, Serialize};

/// The promotions that the history keeps.
pub const HISTORY_MAX: usize = 32;

/// The steps that a promotion notes; each attempt adds a few.
const STEPS_MAX: usize = 32;

/// Who leads, and what is about to change that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The epoch that `primary` leads.
    pub epoch: Epoch,
    /// The region that leads it: an epoch has one.
    pub primary: RegionName,
    /// The promotion in progress.
    pub promotion: Option<Promotion>,
    /// Promotions that are over, oldest first; the newest [`HISTORY_MAX`].
    pub history: Vec<Past>,
}

/// How a promotion begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// By agreement with the primary: nothing is lost.
    Switchover,
    /// Without it.
    Failover,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Mode::Switchover => "switchover",
            Mode::Failover => "failover",
        })
    }
}

/// What is to be done next. Recorded before it is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// Switchover: the primary stops its writer, and the other region applies its last record. The old epoch goes on: this
    /// can be rolled back.
    HandOver,
    /// Failover: voters that have this on disk answer the old primary no more; once its lease is over, the new one gathers
    /// what survivors have, and applies it.
    Fence,
    /// The new epoch has begun: its primary promotes PostgreSQL, and acknowledges nothing before the promotion is over.
    Promote,
}

/// A promotion in progress.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Promotion {
    /// Drawn by whoever began it.
    pub id: u64,
    /// How it began.
    pub mode: Mode,
    /// The primary that is replaced.
    pub from: RegionName,
    /// The region that shall lead.
    pub to: RegionName,
    /// The epoch that it shall lead.
    pub epoch: Epoch,
    /// What is to be done next.
    pub step: Step,
    /// The voter that does it.
    pub coordinator: RegionName,
    /// Grows each time another voter takes the coordination over: only the newest attempt changes the record.
    pub attempt: u32,
    /// The operator's word that the old primary does not run: nobody is waited for.
    pub forced: bool,
    /// Where the new timeline begins, once that is known. Its number is the epoch's.
    pub fork_lsn: Lsn,
    /// The number of the timeline that it leaves there.
    pub parent: u32,
    /// What may be lost.
    pub loss: Loss,
    /// What was done so far.
    pub steps: Vec<Done>,
}

/// Redo that the old primary had and no survivor has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Loss {
    /// It is known that the old primary was durable up to here; zero when nothing is lost.
    pub to_lsn: Lsn,
    /// For how long it may have acknowledged commits that nobody else has, microseconds.
    pub us: u64,
}

/// A step that was done, and how long it took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Done {
    /// What was done.
    pub name: String,
    /// How long it took, microseconds.
    pub us: u64,
}

/// A promotion that is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Past {
    /// The promotion as it was at its end.
    pub promotion: Promotion,
    /// When it was over, microseconds since 1970, by the coordinator's clock.
    pub at_us: i64,
    /// How long no writes were taken, microseconds, as far as that is known.
    pub write_gap_us: u64,
    /// Why it did not end as it should: a switchover was rolled back, or another region was to lead instead.
    pub rolled_back: Option<String>,
}

impl Past {
    /// Whether its epoch began: then redo beyond its fork was cut off, whatever came after it.
    #[must_use]
    pub fn began(&self) -> bool {
        self.promotion.step == Step::Promote
    }
}

/// What a region may do by the record that it knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It is the primary.
    Leads,
    /// It leads the new epoch, and acknowledges nothing yet: its promotion is not over.
    TakesOver,
    /// It was the primary and is being replaced without being asked: it stops.
    Fenced,
    /// It follows.
    Follows,
}

/// A change of the record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// None: the record is read, and agreed on.
    Read,
    /// A promotion begins.
    Begin(Order),
    /// Another voter goes on with a promotion whose coordinator is gone.
    TakeCharge {
        /// The promotion.
        id: u64,
        /// The attempt that is over.
        attempt: u32,
        /// Who goes on.
        by: RegionName,
    },
    /// The coordinator has done what the step asked.
    Advance {
        /// The promotion.
        id: u64,
        /// The coordinator's attempt.
        attempt: u32,
        /// What comes now.
        next: Next,
        /// What was done, for the report.
        done: Vec<Done>,
    },
}

/// What an operator orders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// Drawn at random.
    pub id: u64,
    /// How.
    pub mode: Mode,
    /// The region that shall lead.
    pub to: RegionName,
    /// The voter that coordinates.
    pub by: RegionName,
    /// The operator's word that the old primary does not run.
    pub forced: bool,
    /// When, microseconds since 1970, by the clock of the voter that coordinates.
    pub at_us: i64,
}

/// What follows a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// The new epoch begins: the region has everything, and the old primary acknowledges nothing any more.
    Promote {
        /// Where the new timeline begins.
        fork_lsn: Lsn,
        /// The timeline that it leaves.
        parent: Timeline,
        /// What may be lost.
        loss: Loss,
    },
    /// The new primary takes writes: the promotion is over.
    Finish {
        /// When, microseconds since 1970.
        at_us: i64,
        /// How long no writes were taken, microseconds.
        write_gap_us: u64,
    },
    /// It is given up before the new epoch began; the old primary goes on.
    RollBack {
        /// When, microseconds since 1970.
        at_us: i64,
        /// Why.
        why: String,
    },
    /// The region that should lead is gone: another one does, without losing anything that was acknowledged, as nothing was
    /// acknowledged in the epoch it should lead.
    Replace {
        /// The other one.
        to: RegionName,
        /// When, microseconds since 1970.
        at_us: i64,
    },
}

/// Why a change does not apply to the record as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// The region leads already.
    #[error("region {0} is the primary already")]
    LeadsAlready(RegionName),
    /// Another promotion is in progress.
    #[error(
        "a {mode} to {to} is in progress, coordinated by {coordinator}; see `replicator status`, or order a failover if it cannot end"
    )]
    InProgress {
        /// How that began.
        mode: Mode,
        /// The region that shall lead.
        to: RegionName,
        /// Who coordinates it.
        coordinator: RegionName,
    },
    /// The promotion is over, or another voter goes on with it.
    #[error("the promotion is over, or another voter goes on with it")]
    NotInCharge,
    /// The step is another one.
    #[error("the promotion is at another step")]
    OtherStep,
}

impl Record {
    /// The record with which every voter begins.
    #[must_use]
    pub fn first(epoch: Epoch, primary: RegionName) -> Record {
        Record { epoch, primary, promotion: None, history: Vec::new() }
    }

    /// What `region` may do.
    #[must_use]
    pub fn standing(&self, region: &RegionName) -> Standing {
        if *region != self.primary {
            return Standing::Follows;
        }
        match &self.promotion {
            Some(Promotion { step: Step::Fence, .. }) => Standing::Fenced,
            Some(Promotion { step: Step::Promote, .. }) => Standing::TakesOver,
            Some(Promotion { step: Step::HandOver, .. }) | None => Standing::Leads,
        }
    }

    /// Whether a voter that has this record answers `region` as the primary of `epoch`. Its answers keep that one's lease.
    #[must_use]
    pub fn supports(&self, region: &RegionName, epoch: Epoch) -> bool {
        epoch == self.epoch && !matches!(self.standing(region), Standing::Follows | Standing::Fenced)
    }

    /// Whether a switchover to `to`, which shall lead `epoch`, is at the step at which the primary stops its writer.
    #[must_use]
    pub fn hands_over(&self, to: &RegionName, epoch: Epoch) -> bool {
        let asked = |p: &Promotion| p.step == Step::HandOver && p.to == *to && p.epoch == epoch;
        self.promotion.as_ref().is_some_and(asked)
    }

    /// Whether `region`, which shall lead `epoch`, is at the step at which it gathers what survivors have.
    #[must_use]
    pub fn gathers(&self, region: &RegionName, epoch: Epoch) -> bool {
        let asked = |p: &Promotion| p.step == Step::Fence && p.to == *region && p.epoch == epoch;
        self.promotion.as_ref().is_some_and(asked)
    }

    /// The record after `change`. A change that was made already changes nothing, as its answer may have been lost.
    ///
    /// # Errors
    /// When it does not apply any more.
    pub fn apply(&self, change: &Change) -> Result<Record, Conflict> {
        let mut record = self.clone();
        match change {
            Change::Read => {}
            Change::Begin(order) => record.begin(order)?,
            Change::TakeCharge { id, attempt, by } => {
                let promotion = record.promotion.as_mut().filter(|p| p.id == *id);
                let promotion = promotion.ok_or(Conflict::NotInCharge)?;
                let taken = promotion.attempt == attempt + 1 && promotion.coordinator == *by;
                if !taken && promotion.attempt != *attempt {
                    return Err(Conflict::NotInCharge);
                }
                (promotion.attempt, promotion.coordinator) = (attempt + 1, by.clone());
            }
            Change::Advance { id, attempt, next, done } => record.advance(*id, *attempt, next, done)?,
        }
        Ok(record)
    }

    fn begin(&mut self, order: &Order) -> Result<(), Conflict> {
        if self.promotion.as_ref().is_some_and(|p| p.id == order.id) {
            return Ok(());
        }
        let last = match (&self.promotion, order.mode) {
            (Some(p), Mode::Switchover) => {
                let Promotion { mode, to, coordinator, .. } = p.clone();
                return Err(Conflict::InProgress { mode, to, coordinator });
            }
            // An operator who orders a failover does not wait for what cannot end.
            (Some(p), Mode::Failover) => p.epoch,
            (None, _) => self.epoch,
        };
        if order.to == self.primary {
            return Err(Conflict::LeadsAlready(self.primary.clone()));
        }
        self.end(order.at_us, 0, Some(format!("a failover to {} was ordered instead", order.to)));
        self.promotion = Some(Promotion {
            id: order.id,
            mode: order.mode,
            from: self.primary.clone(),
            to: order.to.clone(),
            epoch: Epoch(last.max(self.epoch).0 + 1),
            step: match order.mode {
                Mode::Switchover => Step::HandOver,
                Mode::Failover => Step::Fence,
            },
            coordinator: order.by.clone(),
            attempt: 0,
            forced: order.forced,
            fork_lsn: Lsn::ZERO,
            parent: 0,
            loss: Loss::default(),
            steps: Vec::new(),
        });
        Ok(())
    }

    fn advance(&mut self, id: u64, attempt: u32, next: &Next, done: &[Done]) -> Result<(), Conflict> {
        let over = |past: &Past| past.promotion.id == id && past.promotion.attempt == attempt;
        let finished = matches!(next, Next::Finish { .. } | Next::RollBack { .. });
        if self.promotion.is_none() && finished && self.history.last().is_some_and(over) {
            return Ok(());
        }
        let mine = |p: &&mut Promotion| p.id == id && p.attempt == attempt;
        let promotion = self.promotion.as_mut().filter(mine).ok_or(Conflict::NotInCharge)?;
        let steps = |promotion: &mut Promotion| {
            promotion.steps.extend_from_slice(done);
            promotion.steps.truncate(STEPS_MAX);
        };
        match (next, promotion.step) {
            (Next::Promote { fork_lsn, parent, loss }, Step::HandOver | Step::Fence) => {
                steps(promotion);
                (promotion.step, promotion.fork_lsn, promotion.loss) = (Step::Promote, *fork_lsn, *loss);
                promotion.parent = parent.0;
                (self.epoch, self.primary) = (promotion.epoch, promotion.to.clone());
            }
            (Next::Promote { fork_lsn, .. }, Step::Promote) if promotion.fork_lsn == *fork_lsn => {}
            (Next::Finish { at_us, write_gap_us }, Step::Promote) => {
                steps(promotion);
                self.end(*at_us, *write_gap_us, None);
            }
            (Next::RollBack { at_us, why }, Step::HandOver | Step::Fence) => {
                steps(promotion);
                self.end(*at_us, 0, Some(why.clone()));
                // One that was given up for this leads after all, and will acknowledge.
                let leads = |past: &&mut Past| past.began() && past.promotion.epoch == self.epoch;
                if let Some(past) = self.history.iter_mut().find(leads) {
                    past.rolled_back = None;
                }
            }
            (Next::Replace { to, .. }, Step::Fence) => {
                steps(promotion);
                promotion.to = to.clone();
            }
            (Next::Replace { to, at_us }, Step::Promote) => {
                steps(promotion);
                let goes_on = Promotion {
                    from: promotion.to.clone(),
                    to: to.clone(),
                    epoch: Epoch(promotion.epoch.0 + 1),
                    mode: Mode::Failover,
                    step: Step::Fence,
                    ..promotion.clone()
                };
                let why =
                    format!("{} could not be reached, and took no writes: {to} leads instead", promotion.to);
                self.end(*at_us, 0, Some(why));
                self.promotion = Some(goes_on);
            }
            _ => return Err(Conflict::OtherStep),
        }
        Ok(())
    }

    /// The promotions whose epoch began, newest first.
    fn begun(&self) -> impl Iterator<Item = &Promotion> {
        let current = self.promotion.iter().filter(|p| p.step == Step::Promote);
        current.chain(self.history.iter().rev().filter(|past| past.began()).map(|past| &past.promotion))
    }

    /// How much of `timeline` is on the way to `on`: all of it when that is the same, none when it is another line, or one so old
    /// that the history does not tell.
    fn share(&self, timeline: Timeline, on: Timeline) -> Option<Lsn> {
        let (mut at, mut end_lsn) = (on, Lsn(u64::MAX));
        for promotion in self.begun() {
            if at <= timeline {
                break;
            }
            if promotion.epoch.0 == u64::from(at.0) {
                (at, end_lsn) = (Timeline(promotion.parent), end_lsn.min(promotion.fork_lsn));
            }
        }
        (at == timeline).then_some(end_lsn)
    }

    /// The newest epoch in which commits were acknowledged: its timeline, and where that began.
    #[must_use]
    pub fn line(&self) -> (Timeline, Lsn) {
        let finished = self.history.iter().rev().find(|past| past.began() && past.rolled_back.is_none());
        finished.map_or((Timeline(1), Lsn::ZERO), |Past { promotion, .. }| {
            let number = u32::try_from(promotion.epoch.0).unwrap_or(u32::MAX);
            (Timeline(number), promotion.fork_lsn)
        })
    }

    /// How far redo up to `lsn` on `timeline` is on the [line](Record::line) of that epoch; what it has beyond was cut off. None when it is on
    /// another one.
    #[must_use]
    pub fn along(&self, timeline: Timeline, lsn: Lsn) -> Option<Lsn> {
        let (line, _) = self.line();
        let fork_lsn = match timeline > line {
            // An epoch that began in vain: it has acknowledged nothing, and has what was there when it began.
            true => self.share(line, timeline),
            false => self.share(timeline, line),
        };
        fork_lsn.map(|fork_lsn| lsn.min(fork_lsn))
    }

    /// How far redo up to `lsn` on `timeline` follows that line; none when some of it was cut off from that. To lead with such redo would
    /// lose what was acknowledged since.
    #[must_use]
    pub fn reach(&self, timeline: Timeline, lsn: Lsn) -> Option<Lsn> {
        self.along(timeline, lsn).filter(|along| *along == lsn || timeline > self.line().0)
    }

    /// Whether redo up to `more` continues the redo up to `less`: each a timeline and an end.
    #[must_use]
    pub fn continues(&self, less: (Timeline, Lsn), more: (Timeline, Lsn)) -> bool {
        less.1 <= more.1 && self.share(less.0, more.0).is_some_and(|fork_lsn| less.1 <= fork_lsn)
    }

    /// How promotion `id` ended; none when it has not.
    #[must_use]
    pub fn ended(&self, id: u64) -> Option<&Past> {
        if self.promotion.as_ref().is_some_and(|p| p.id == id) {
            return None;
        }
        self.history.iter().rev().find(|past| past.promotion.id == id)
    }

    fn end(&mut self, at_us: i64, write_gap_us: u64, rolled_back: Option<String>) {
        let Some(promotion) = self.promotion.take() else { return };
        self.history.push(Past { promotion, at_us, write_gap_us, rolled_back });
        let surplus = self.history.len().saturating_sub(HISTORY_MAX);
        self.history.drain(..surplus);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> RegionName {
        text.parse().unwrap()
    }

    fn first() -> Record {
        Record::first(Epoch(1), name("a"))
    }

    fn order(mode: Mode, to: &str) -> Change {
        Change::Begin(Order { id: 7, mode, to: name(to), by: name(to), forced: false, at_us: 0 })
    }

    fn advance(attempt: u32, next: Next) -> Change {
        Change::Advance { id: 7, attempt, next, done: vec![Done { name: "x".into(), us: 1 }] }
    }

    fn promote() -> Next {
        Next::Promote { fork_lsn: Lsn(9), parent: Timeline(1), loss: Loss::default() }
    }

    const FINISH: Next = Next::Finish { at_us: 1, write_gap_us: 2 };

    #[test]
    fn a_switchover_keeps_the_old_epoch_until_everything_is_over_there() {
        let (a, b) = (name("a"), name("b"));
        let handing = first().apply(&order(Mode::Switchover, "b")).unwrap();
        assert_eq!((handing.standing(&a), handing.standing(&b)), (Standing::Leads, Standing::Follows));
        assert!(handing.hands_over(&b, Epoch(2)) && handing.supports(&a, Epoch(1)));
        let promoting = handing.apply(&advance(0, promote())).unwrap();
        assert_eq!(
            (promoting.standing(&a), promoting.standing(&b)),
            (Standing::Follows, Standing::TakesOver)
        );
        assert!(!promoting.supports(&a, Epoch(1)) && promoting.supports(&b, Epoch(2)));
        let over = promoting.apply(&advance(0, FINISH)).unwrap();
        assert_eq!(
            (over.standing(&b), over.epoch, over.promotion.as_ref()),
            (Standing::Leads, Epoch(2), None)
        );
        assert_eq!(over.history[0].promotion.steps.len(), 2);
        assert_eq!(over.apply(&advance(0, FINISH)).unwrap(), over, "its answer may have been lost");
        let back = handing.apply(&advance(0, Next::RollBack { at_us: 1, why: "late".into() })).unwrap();
        assert_eq!((back.standing(&a), back.epoch), (Standing::Leads, Epoch(1)));
        assert_eq!(back.history[0].rolled_back.as_deref(), Some("late"));
    }

    #[test]
    fn a_failover_fences_before_anything_else() {
        let a = name("a");
        let fenced = first().apply(&order(Mode::Failover, "b")).unwrap();
        assert_eq!(fenced.standing(&a), Standing::Fenced);
        assert!(!fenced.supports(&a, Epoch(1)), "its lease ends");
        assert_eq!(fenced.apply(&advance(0, FINISH)).unwrap_err(), Conflict::OtherStep);
        let replaced = fenced.apply(&advance(0, Next::Replace { to: name("c"), at_us: 5 })).unwrap();
        assert_eq!(replaced.promotion.as_ref().map(|p| (p.to.as_str(), p.epoch)), Some(("c", Epoch(2))));
        let promoting = fenced.apply(&advance(0, promote())).unwrap();
        let replaced = promoting.apply(&advance(0, Next::Replace { to: name("c"), at_us: 5 })).unwrap();
        let given_up = &replaced.history[0];
        assert_eq!((given_up.promotion.epoch, given_up.began(), given_up.at_us), (Epoch(2), true, 5));
        assert_eq!(replaced.ended(7), None, "it goes on, to another region");
        let p = replaced.promotion.as_ref().unwrap();
        assert_eq!((p.from.as_str(), p.to.as_str(), p.epoch, p.step), ("b", "c", Epoch(3), Step::Fence));
        assert_eq!(replaced.standing(&name("b")), Standing::Fenced);
    }

    #[test]
    fn redo_that_was_cut_off_does_not_reach() {
        let begin = |record: &Record, id, to: &str, fork_lsn, parent| {
            let order =
                Order { id, mode: Mode::Failover, to: name(to), by: name(to), forced: false, at_us: 0 };
            let begun = record.apply(&Change::Begin(order)).unwrap();
            let next =
                Next::Promote { fork_lsn: Lsn(fork_lsn), parent: Timeline(parent), loss: Loss::default() };
            begun.apply(&Change::Advance { id, attempt: 0, next, done: vec![] }).unwrap()
        };
        let over = |record: &Record, id| {
            record.apply(&Change::Advance { id, attempt: 0, next: FINISH, done: vec![] }).unwrap()
        };
        let second = over(&begin(&first(), 1, "b", 50, 1), 1);
        // Epoch 3 begins in vain, 4 instead of it from timeline 2, and 5 from that.
        let third = begin(&second, 2, "c", 70, 2);
        assert_eq!(third.reach(Timeline(3), Lsn(75)), Some(Lsn(70)), "what it had when it began");
        assert_eq!(third.reach(Timeline(2), Lsn(75)), Some(Lsn(75)), "nothing was acknowledged on 3");
        let fourth = over(&begin(&third, 3, "a", 80, 2), 3);
        let at = |timeline, lsn| fourth.reach(Timeline(timeline), Lsn(lsn));
        assert_eq!(
            (at(4, 99), at(2, 80), at(2, 81), at(1, 50)),
            (Some(Lsn(99)), Some(Lsn(80)), None, Some(Lsn(50)))
        );
        assert_eq!((at(1, 51), at(3, 75)), (None, None), "cut off");
        // The failover that 3 was given up for is rolled back: it acknowledges on.
        let order =
            Order { id: 4, mode: Mode::Failover, to: name("a"), by: name("a"), forced: false, at_us: 0 };
        let back = Next::RollBack { at_us: 1, why: "nobody".into() };
        let back = Change::Advance { id: 4, attempt: 0, next: back, done: vec![] };
        let third_on = third.apply(&Change::Begin(order)).unwrap().apply(&back).unwrap();
        assert_eq!(third_on.reach(Timeline(3), Lsn(75)), Some(Lsn(75)));
        assert_eq!(third_on.reach(Timeline(2), Lsn(75)), None);
        let continues = |less: (u32, u64), more: (u32, u64)| {
            fourth.continues((Timeline(less.0), Lsn(less.1)), (Timeline(more.0), Lsn(more.1)))
        };
        assert!(continues((1, 50), (4, 90)) && continues((2, 80), (4, 90)) && continues((2, 70), (2, 75)));
        assert!(!continues((1, 51), (4, 90)) && !continues((3, 75), (4, 90)) && !continues((4, 90), (2, 80)));
    }

    #[test]
    fn only_the_newest_attempt_goes_on() {
        let handing = first().apply(&order(Mode::Switchover, "b")).unwrap();
        let charge = Change::TakeCharge { id: 7, attempt: 0, by: name("c") };
        let taken = handing.apply(&charge).unwrap();
        assert_eq!(taken.apply(&charge).unwrap(), taken);
        let other = Change::TakeCharge { id: 7, attempt: 0, by: name("a") };
        assert_eq!(taken.apply(&other).unwrap_err(), Conflict::NotInCharge);
        assert_eq!(taken.apply(&advance(0, promote())).unwrap_err(), Conflict::NotInCharge);
        taken.apply(&advance(1, promote())).unwrap();
    }

    #[test]
    fn one_promotion_at_a_time_unless_a_failover_is_ordered() {
        let handing = first().apply(&order(Mode::Switchover, "b")).unwrap();
        let other = |mode| {
            Change::Begin(Order { id: 8, mode, to: name("c"), by: name("c"), forced: false, at_us: 5 })
        };
        assert!(matches!(handing.apply(&other(Mode::Switchover)), Err(Conflict::InProgress { .. })));
        let failing = handing.apply(&other(Mode::Failover)).unwrap();
        assert_eq!(failing.promotion.as_ref().map(|p| p.epoch), Some(Epoch(3)), "an epoch is given once");
        assert!(failing.ended(7).is_some_and(|past| past.rolled_back.is_some() && !past.began()));
        assert!(matches!(first().apply(&order(Mode::Failover, "a")), Err(Conflict::LeadsAlready(_))));
    }
}
