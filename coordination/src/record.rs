//! The record: which region leads which epoch, and the promotion in progress.
//!
//! Every voter keeps one. It changes only by [`Record::apply`], and only through the register, so that a majority agrees on each
//! record before anything is done that it allows.

use std::fmt;

use proto::{Epoch, Lsn, RegionName};
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
    /// Where the new timeline begins, once that is known.
    pub fork_lsn: Lsn,
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
    /// Why it was rolled back, if it was.
    pub rolled_back: Option<String>,
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
}

/// What follows a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// The new epoch begins: the region has everything, and the old primary acknowledges nothing any more.
    Promote {
        /// Where the new timeline begins.
        fork_lsn: Lsn,
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
    /// A switchover is given up before the new epoch began; the old primary goes on.
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
            (Next::Promote { fork_lsn, loss }, Step::HandOver | Step::Fence) => {
                steps(promotion);
                (promotion.step, promotion.fork_lsn, promotion.loss) = (Step::Promote, *fork_lsn, *loss);
                (self.epoch, self.primary) = (promotion.epoch, promotion.to.clone());
            }
            (Next::Promote { fork_lsn, .. }, Step::Promote) if promotion.fork_lsn == *fork_lsn => {}
            (Next::Finish { at_us, write_gap_us }, Step::Promote) => {
                steps(promotion);
                self.end(*at_us, *write_gap_us, None);
            }
            (Next::RollBack { at_us, why }, Step::HandOver) => {
                steps(promotion);
                self.end(*at_us, 0, Some(why.clone()));
            }
            (Next::Replace { to }, Step::Fence) => {
                steps(promotion);
                promotion.to = to.clone();
            }
            (Next::Replace { to }, Step::Promote) => {
                steps(promotion);
                promotion.from = promotion.to.clone();
                promotion.to = to.clone();
                promotion.epoch = Epoch(promotion.epoch.0 + 1);
                (promotion.mode, promotion.step) = (Mode::Failover, Step::Fence);
            }
            _ => return Err(Conflict::OtherStep),
        }
        Ok(())
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
        Change::Begin(Order { id: 7, mode, to: name(to), by: name(to), forced: false })
    }

    fn advance(attempt: u32, next: Next) -> Change {
        Change::Advance { id: 7, attempt, next, done: vec![Done { name: "x".into(), us: 1 }] }
    }

    fn promote() -> Next {
        Next::Promote { fork_lsn: Lsn(9), loss: Loss::default() }
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
        let replaced = fenced.apply(&advance(0, Next::Replace { to: name("c") })).unwrap();
        assert_eq!(replaced.promotion.as_ref().map(|p| (p.to.as_str(), p.epoch)), Some(("c", Epoch(2))));
        let promoting = fenced.apply(&advance(0, promote())).unwrap();
        let replaced = promoting.apply(&advance(0, Next::Replace { to: name("c") })).unwrap();
        let p = replaced.promotion.as_ref().unwrap();
        assert_eq!((p.from.as_str(), p.to.as_str(), p.epoch, p.step), ("b", "c", Epoch(3), Step::Fence));
        assert_eq!(replaced.standing(&name("b")), Standing::Fenced);
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
        let other = |mode| Change::Begin(Order { id: 8, mode, to: name("c"), by: name("c"), forced: false });
        assert!(matches!(handing.apply(&other(Mode::Switchover)), Err(Conflict::InProgress { .. })));
        let failing = handing.apply(&other(Mode::Failover)).unwrap();
        assert_eq!(failing.promotion.as_ref().map(|p| p.epoch), Some(Epoch(3)), "an epoch is given once");
        assert!(matches!(first().apply(&order(Mode::Failover, "a")), Err(Conflict::LeadsAlready(_))));
    }
}
