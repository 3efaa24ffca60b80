//! The leadership of the cluster, in short *the record*: which region leads which epoch, and the promotion in
//! progress.
//!
//! Every voter keeps one. It changes only by [`Leadership::apply`], and only through the register, so that a
//! majority agrees on each record before anything is done that it allows.

use std::collections::BTreeSet;
use std::fmt;

use proto::{Epoch, Lsn, RegionName, SystemId, Timeline};
use serde::{Deserialize, Serialize};

use crate::planted::{self, Bug};
use crate::signed::{KEPT, SignedOrder};
use crate::voters::{Electorate, Hindrance, Membership};

/// The promotions that the history keeps.
pub const HISTORY_MAX: usize = 32;

/// The steps that a promotion notes; each attempt adds a few.
const STEPS_MAX: usize = 32;

/// Who leads, and what is about to change that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Leadership {
    /// The epoch that `primary` leads.
    pub epoch: Epoch,
    /// The region that leads it: an epoch has one.
    pub primary: RegionName,
    /// The system identifier of the cluster's PostgreSQL, said once by the first primary, before it
    /// acknowledges anything. A cluster that has one has a database: nobody makes another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_id: Option<SystemId>,
    /// Who votes. None in a record of an earlier version: then all that the file names do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub voters: Option<Electorate>,
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
    /// Switchover: the primary stops its writer, and the other region applies its last record. The old epoch
    /// goes on: this can be rolled back.
    HandOver,
    /// Failover: voters that have this on disk answer the old primary no more; once its lease is over, the
    /// new one gathers what survivors have, and applies it.
    Fence,
    /// The new epoch has begun: its primary promotes PostgreSQL, and acknowledges nothing before the
    /// promotion is over.
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
    /// The voters that this word counts as lost.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub lost: BTreeSet<RegionName>,
    /// The most redo that may be lost, bytes: with more it is rolled back. None where an operator ordered it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_max_bytes: Option<u64>,
    /// The order that began it, where an operator has signed one. Those that are long over have none any
    /// more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<SignedOrder>,
    /// Where the new timeline begins, once that is known. Its number is the epoch's.
    pub fork_lsn: Lsn,
    /// The number of the timeline that it leaves there.
    pub parent: u32,
    /// What may be lost.
    pub loss: Loss,
    /// What was done so far.
    pub steps: Vec<Done>,
}

impl Promotion {
    /// The id of its trace: the same wherever it is told, and never zero.
    #[must_use]
    pub fn trace(&self) -> u128 {
        (u128::from(self.epoch.0) << 64) | u128::from(self.id)
    }
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

impl Standing {
    /// Whether the region may not be a primary.
    #[must_use]
    pub fn forbids(self) -> bool {
        matches!(self, Standing::Follows | Standing::Fenced)
    }
}

/// A change of the record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// None: the record is read, and agreed on.
    Read,
    /// The primary has made the cluster's database, or has had one since before the record named it.
    Name(SystemId),
    /// The primary adds a voter or removes one: the first step.
    Voters {
        /// The primary.
        by: RegionName,
        /// What changes.
        membership: Membership,
        /// The operator's order; none where a lost voter is found again.
        order: Option<SignedOrder>,
    },
    /// The primary ends a change of the voters: the second step.
    Settle {
        /// The primary.
        by: RegionName,
    },
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

/// What an operator orders, or a region by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// Drawn at random.
    pub id: u64,
    /// The epoch in which it was given: it is meant for the primary of that one, and begins in no later one.
    pub epoch: Epoch,
    /// How.
    pub mode: Mode,
    /// The region that shall lead.
    pub to: RegionName,
    /// The voter that coordinates.
    pub by: RegionName,
    /// The operator's word that the old primary does not run.
    pub forced: bool,
    /// The voters that this word counts as lost: the old primary, and those whom the operator names.
    pub lost: BTreeSet<RegionName>,
    /// See [`Promotion::loss_max_bytes`].
    pub loss_max_bytes: Option<u64>,
    /// What the operator has signed.
    pub signed: Option<SignedOrder>,
    /// When, microseconds since 1970, by the clock of the voter that coordinates.
    pub at_us: i64,
}

impl Order {
    /// One for the primary of `epoch`, coordinated by the region that shall lead, without anybody's word.
    #[must_use]
    pub fn new(id: u64, epoch: Epoch, mode: Mode, to: &RegionName) -> Order {
        let (to, by) = (to.clone(), to.clone());
        Order {
            id,
            epoch,
            mode,
            to,
            by,
            forced: false,
            lost: BTreeSet::new(),
            loss_max_bytes: None,
            signed: None,
            at_us: 0,
        }
    }
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
    /// The region that should lead is gone: another one does, without losing anything that was acknowledged,
    /// as nothing was acknowledged in the epoch it should lead.
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
    /// The cluster's database is another one.
    #[error("the cluster's database has system identifier {expected}, and {found} is another PostgreSQL's")]
    OtherSystem {
        /// The one that is asked to be recorded.
        found: SystemId,
        /// The record's.
        expected: SystemId,
    },
    /// Another epoch has begun since the order was given.
    #[error(
        "the order was given in epoch {given}, and region {primary} leads epoch {now} by now: order it again if it is still wanted"
    )]
    OtherEpoch {
        /// The order's.
        given: Epoch,
        /// The record's.
        now: Epoch,
        /// Who leads that.
        primary: RegionName,
    },
    /// The operator's word is not about the primary.
    #[error(
        "the word is that {0} does not run, and the primary is another region by now: see `replicator status`"
    )]
    OtherWord(String),
    /// The region has no vote.
    #[error("{0} is no voter: add it first (replicator voters add {0})")]
    NoVoter(RegionName),
    /// The voters cannot be changed so.
    #[error(transparent)]
    Voters(#[from] Hindrance),
}

impl Change {
    /// Whether it is proposed only upon a record that its proposer has just had agreed.
    #[must_use]
    pub fn needs_agreed(&self) -> bool {
        matches!(self, Change::Voters { .. } | Change::Settle { .. })
    }

    /// Whether it writes the voters into a record that has none.
    fn writes_voters(&self) -> bool {
        match self {
            Change::Voters { .. } | Change::Name(_) => true,
            Change::Begin(order) => !order.lost.is_empty(),
            Change::Read | Change::Settle { .. } | Change::TakeCharge { .. } | Change::Advance { .. } => {
                false
            }
        }
    }
}

impl Leadership {
    /// The record with which every voter begins.
    #[must_use]
    pub fn first(epoch: Epoch, primary: RegionName) -> Leadership {
        Leadership { epoch, primary, system_id: None, voters: None, promotion: None, history: Vec::new() }
    }

    /// Who votes: as the record says, or by the file where it says nothing.
    #[must_use]
    pub fn electorate<'a>(&'a self, file: &'a Electorate) -> &'a Electorate {
        self.voters.as_ref().unwrap_or(file)
    }

    /// The record after `change`, by a voter whose file names the voters `file`.
    ///
    /// # Errors
    /// When it does not apply any more.
    pub fn apply_with(&self, change: &Change, file: &Electorate) -> Result<Leadership, Conflict> {
        let electorate = self.electorate(file);
        match change {
            Change::Begin(order) if !electorate.may_lead(&order.to) => {
                return Err(Conflict::NoVoter(order.to.clone()));
            }
            Change::TakeCharge { by, .. } if !electorate.may_lead(by) => {
                return Err(Conflict::NoVoter(by.clone()));
            }
            _ => {}
        }
        if self.voters.is_some() || !change.writes_voters() {
            return self.apply(change);
        }
        Leadership { voters: Some(file.clone()), ..self.clone() }.apply(change)
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

    /// Whether a voter that has this record answers `region` as the primary of `epoch`. Its answers keep that
    /// one's lease.
    #[must_use]
    pub fn supports(&self, region: &RegionName, epoch: Epoch) -> bool {
        epoch == self.epoch && !self.standing(region).forbids()
    }

    /// Whether a switchover to `to`, which shall lead `epoch`, is at the step at which the primary stops its
    /// writer.
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

    /// The record after `change`. A change that was made already changes nothing, as its answer may have been
    /// lost.
    ///
    /// # Errors
    /// When it does not apply any more.
    pub fn apply(&self, change: &Change) -> Result<Leadership, Conflict> {
        let mut record = self.clone();
        match change {
            Change::Read => {}
            Change::Name(found) => match record.system_id {
                Some(expected) if expected != *found => {
                    return Err(Conflict::OtherSystem { found: *found, expected });
                }
                _ => record.system_id = Some(*found),
            },
            Change::Voters { by, membership, order } => {
                record.change_voters(by, |voters| voters.step(membership, order.as_ref()))?
            }
            Change::Settle { by } => record.change_voters(by, |voters| Ok(voters.settle()))?,
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

    fn change_voters(
        &mut self,
        by: &RegionName,
        change: impl FnOnce(&Electorate) -> Result<Electorate, Hindrance>,
    ) -> Result<(), Conflict> {
        if *by != self.primary {
            return Err(Hindrance::NotThePrimary(self.primary.clone()).into());
        }
        if self.promotion.is_some() {
            return Err(Hindrance::Promotion.into());
        }
        let Some(voters) = &self.voters else { return Ok(()) };
        let changed = change(voters)?;
        if !changed.now.has(&self.primary) {
            return Err(Hindrance::IsThePrimary(self.primary.clone()).into());
        }
        self.voters = Some(changed);
        Ok(())
    }

    fn begin(&mut self, order: &Order) -> Result<(), Conflict> {
        // Proposed again by one who has not heard that it was agreed.
        if self.promotion.as_ref().is_some_and(|p| p.id == order.id) || self.ended(order.id).is_some() {
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
        if order.epoch != self.epoch && !planted::is(Bug::BeginsLate) {
            let (given, now) = (order.epoch, self.epoch);
            return Err(Conflict::OtherEpoch { given, now, primary: self.primary.clone() });
        }
        if order.forced && !order.lost.contains(&self.primary) {
            let names: Vec<&str> = order.lost.iter().map(RegionName::as_str).collect();
            return Err(Conflict::OtherWord(names.join(", ")));
        }
        if order.lost.contains(&order.to) {
            return Err(Conflict::NoVoter(order.to.clone()));
        }
        self.end(order.at_us, 0, Some(format!("a failover to {} was ordered instead", order.to)));
        if let Some(voters) = self.voters.as_mut().filter(|_| !order.lost.is_empty()) {
            *voters = voters.without(&order.lost);
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
            lost: order.lost.clone(),
            loss_max_bytes: order.loss_max_bytes,
            order: order.signed.clone(),
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
                let (attempt, coordinator) = (promotion.attempt, promotion.coordinator.clone());
                self.end(*at_us, 0, Some(why.clone()));
                // Its own epoch was given up for this before anything was acknowledged in it, and maybe
                // before its timeline was begun: it goes on with that.
                let given_up = |past: &Past| {
                    past.began() && past.rolled_back.is_some() && past.promotion.epoch == self.epoch
                };
                if let Some(at) = self.history.iter().position(given_up) {
                    let past = self.history.remove(at);
                    self.promotion = Some(Promotion { attempt, coordinator, ..past.promotion });
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
    pub(crate) fn promotions_begun(&self) -> impl Iterator<Item = &Promotion> {
        let current = self.promotion.iter().filter(|p| p.step == Step::Promote);
        current.chain(self.history.iter().rev().filter(|past| past.began()).map(|past| &past.promotion))
    }

    /// The promotion in progress and those that are over, newest first.
    pub(crate) fn promotions_newest_first(&self) -> impl Iterator<Item = &Promotion> {
        self.promotion.iter().chain(self.history.iter().rev().map(|past| &past.promotion))
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
        let old = self.history.len().saturating_sub(KEPT);
        self.history.iter_mut().take(old).for_each(|past| past.promotion.order = None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> RegionName {
        text.parse().unwrap()
    }

    fn first() -> Leadership {
        Leadership::first(Epoch(1), name("a"))
    }

    fn begun_order(to: &str) -> Order {
        Order::new(7, Epoch(1), Mode::Failover, &name(to))
    }

    fn order(mode: Mode, to: &str) -> Change {
        Change::Begin(Order { mode, ..begun_order(to) })
    }

    fn advance(attempt: u32, next: Next) -> Change {
        Change::Advance { id: 7, attempt, next, done: vec![Done { name: "x".into(), us: 1 }] }
    }

    fn promote() -> Next {
        Next::Promote { fork_lsn: Lsn(9), parent: Timeline(1), loss: Loss::default() }
    }

    const FINISH: Next = Next::Finish { at_us: 1, write_gap_us: 2 };

    #[test]
    fn a_failover_that_nobody_can_end_gives_an_epoch_that_had_only_begun_back() {
        let (b, c) = (name("b"), name("c"));
        let promoting =
            first().apply(&order(Mode::Failover, "b")).unwrap().apply(&advance(0, promote())).unwrap();
        let replaced = Next::Replace { to: c.clone(), at_us: 1 };
        let fencing = promoting.apply(&advance(0, replaced)).unwrap();
        assert_eq!((fencing.standing(&b), fencing.standing(&c)), (Standing::Fenced, Standing::Follows));
        let taken = fencing.apply(&Change::TakeCharge { id: 7, attempt: 0, by: c.clone() }).unwrap();
        let back = advance(1, Next::RollBack { at_us: 2, why: "nobody".into() });
        let goes_on = taken.apply(&back).unwrap();
        // It may not have begun its timeline: it is promoted as if for the first time, and then acknowledges.
        assert_eq!((goes_on.standing(&b), goes_on.epoch), (Standing::TakesOver, Epoch(2)));
        let promotion = goes_on.promotion.as_ref().unwrap();
        assert_eq!((promotion.step, promotion.fork_lsn, promotion.epoch), (Step::Promote, Lsn(9), Epoch(2)));
        assert_eq!((promotion.attempt, &promotion.coordinator), (1, &c), "whoever coordinates goes on");
        let over = goes_on.apply(&advance(1, FINISH)).unwrap();
        assert_eq!(over.standing(&b), Standing::Leads);
        assert_eq!(over.history.iter().filter(|past| past.began()).count(), 1);
        // One that was over, and leads, simply goes on leading.
        let other = over.apply(&Change::Begin(Order { id: 8, epoch: Epoch(2), ..begun_order("c") })).unwrap();
        let change = Change::Advance {
            id: 8,
            attempt: 0,
            next: Next::RollBack { at_us: 3, why: "x".into() },
            done: vec![],
        };
        assert_eq!(other.apply(&change).unwrap().standing(&b), Standing::Leads);
    }

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
        let other = |mode| Change::Begin(Order::new(8, Epoch(1), mode, &name("c")));
        assert!(matches!(handing.apply(&other(Mode::Switchover)), Err(Conflict::InProgress { .. })));
        let failing = handing.apply(&other(Mode::Failover)).unwrap();
        assert_eq!(failing.promotion.as_ref().map(|p| p.epoch), Some(Epoch(3)), "an epoch is given once");
        assert!(failing.ended(7).is_some_and(|past| past.rolled_back.is_some() && !past.began()));
        assert!(matches!(first().apply(&order(Mode::Failover, "a")), Err(Conflict::LeadsAlready(_))));
    }

    #[test]
    fn an_order_is_for_one_epoch_and_begins_once() {
        let fencing = first().apply(&order(Mode::Failover, "b")).unwrap();
        let over = fencing.apply(&advance(0, promote())).unwrap().apply(&advance(0, FINISH)).unwrap();
        // It was decided on while `a` led, and comes when `b` leads.
        let late = Change::Begin(Order::new(8, Epoch(1), Mode::Failover, &name("c")));
        let refused = Conflict::OtherEpoch { given: Epoch(1), now: Epoch(2), primary: name("b") };
        assert_eq!(over.apply(&late), Err(refused));
        // It was rolled back, and is proposed again by one who heard neither.
        let back = fencing.apply(&advance(0, Next::RollBack { at_us: 1, why: "x".into() })).unwrap();
        assert_eq!(back.apply(&order(Mode::Failover, "b")).unwrap(), back);
    }
}
