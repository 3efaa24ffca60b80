//! How a voter has a change of the record agreed on: a round of promises, a round of acceptances, and what is
//! done when others propose as well.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use coordination::lawful;
use coordination::leadership::Change;
use coordination::promotion::{Fence, Grant};
use coordination::register::{Accepted, Answer, Tally, Verdict};
use coordination::{Electorate, Leadership, Number, Standing};
use proto::RegionName;
use proto::messages::{self as m, control_request};
use rand::RngExt;
use runtime::clock::now;
use tokio::task::JoinSet;

use super::{ChangeError, Voter, lock, wire};

/// How long a voter may take to answer a round.
pub(super) const ROUND: Duration = Duration::from_millis(900);

/// The same where one voter decides alone, and the others may well be gone.
const GLANCE: Duration = Duration::from_millis(250);

/// How long a change is tried before it is given up.
const PATIENCE: Duration = Duration::from_secs(8);

/// The wait after another proposer was faster, at most; it is drawn, and doubles.
const OUTBID_MS: u64 = 20;

/// One answer to a round.
pub(super) struct Said {
    pub(super) voter: RegionName,
    pub(super) answer: Result<Answer, String>,
    pub(super) grant: Option<Grant>,
}

pub(super) type Asked = JoinSet<Said>;

/// What a round of questions brought.
struct Heard {
    verdict: Verdict,
    /// How many are for the proposal.
    answered: usize,
    /// Who votes.
    voters: Electorate,
    /// Who answered, with the lease they granted.
    granted: Vec<(RegionName, Option<Grant>)>,
    /// Why the others did not, by name.
    silent: BTreeMap<RegionName, String>,
    /// Those whose answer was not waited for.
    asked: Asked,
}

/// A round that was agreed on: the record, the number promised for the next change, and the answers.
type Round = (Accepted, Number, Vec<(RegionName, Option<Grant>)>, Asked);

/// Why a proposal did not succeed.
enum Tried {
    Failed(ChangeError),
    /// Another proposer was faster.
    Again(ChangeError),
}

impl Voter {
    /// Changes the record; it is agreed when this returns.
    ///
    /// # Errors
    /// When the change does not apply, or too few voters answer.
    pub async fn change(self: &Arc<Self>, change: &Change) -> Result<Leadership, ChangeError> {
        self.propose(change).await.map(|(record, _, _)| record)
    }

    /// Has the record agreed on once more, and takes what the voters grant who have answered; returns those
    /// who will, and whether one granted nothing, as it had promised somebody else meanwhile.
    pub(super) async fn grants(self: &Arc<Self>, fence: &mut Fence) -> Result<(Asked, bool), ChangeError> {
        let (_, granted, asked) = self.propose(&Change::Read).await?;
        let mut outbid = false;
        for (voter, grant) in granted {
            match grant {
                Some(grant) => fence.granted(self.clock_us(), voter, grant),
                None => outbid = true,
            }
        }
        Ok((asked, outbid))
    }

    async fn propose(
        self: &Arc<Self>,
        change: &Change,
    ) -> Result<(Leadership, Vec<(RegionName, Option<Grant>)>, Asked), ChangeError> {
        self.able().map_err(|refusal| ChangeError::Forgot(refusal.reason))?;
        let mut lead = self.lead.lock().await;
        let begin = now();
        let mut wait_ms = OUTBID_MS;
        let upon_agreed = change.needs_agreed();
        let mut has_read = false;
        loop {
            // An operator's word has to outrank what those may have promised meanwhile that are not asked.
            let promised = lead.take().filter(|_| !self.forced(change));
            // What this voter has had agreed just now is what it begins with.
            let reads = upon_agreed && promised.is_none();
            let tried = match promised.map(|p| (p.number, p.record.apply_with(change, &self.file))) {
                Some((number, Ok(record))) => self.second_round(number, record, change).await,
                Some((_, Err(conflict))) if has_read => Err(Tried::Failed(conflict.into())),
                // Somebody may have changed it meanwhile.
                Some(_) if upon_agreed => continue,
                None if reads => self.both_rounds(&Change::Read).await,
                Some(_) | None => self.both_rounds(change).await,
            };
            match tried {
                Ok((agreed, next, granted, asked)) => {
                    *lead = Some(Accepted { number: next, record: agreed.record.clone() });
                    match self.learn(&agreed) {
                        // Who tells others has accepted it.
                        Ok(()) => self.tell(&agreed),
                        Err(e) => tracing::error!("{e}"),
                    }
                    if reads {
                        has_read = true;
                        continue;
                    }
                    return Ok((agreed.record, granted, asked));
                }
                Err(Tried::Failed(error)) => return Err(error),
                Err(Tried::Again(error)) => {
                    if begin.elapsed() > PATIENCE {
                        return Err(error);
                    }
                    tokio::time::sleep(Duration::from_millis(self.draw_below(wait_ms) + 1)).await;
                    wait_ms = (wait_ms * 2).min(1000);
                }
            }
        }
    }

    async fn both_rounds(self: &Arc<Self>, change: &Change) -> Result<Round, Tried> {
        let state = self.kept.get();
        let number = {
            let mut proposed = lock(&self.proposed);
            *proposed = state.acceptor.promised().max(*proposed).next(self.proposer, self.forced(change));
            *proposed
        };
        let body = control_request::Body::Prepare(wire::number(number));
        let tally = Tally::promises(self.electorate(), self.file.clone());
        let heard = self.round(body, number, tally, change).await;
        match &heard.verdict {
            Verdict::Promised(newest) => match newest.record.apply_with(change, &self.file) {
                Ok(record) => self.second_round(number, record, change).await,
                Err(conflict) => Err(Tried::Failed(conflict.into())),
            },
            _ => Err(self.undecided(&heard)),
        }
    }

    async fn second_round(
        self: &Arc<Self>,
        number: Number,
        record: Leadership,
        change: &Change,
    ) -> Result<Round, Tried> {
        let proposal = Accepted { number, record };
        let next = number.next(self.proposer, false);
        self.note_proposed(next);
        let body = control_request::Body::Accept(m::Accept {
            proposal: Some(wire::accepted(&proposal)),
            next: Some(wire::number(next)),
        });
        let tally = Tally::acceptances(proposal.record.electorate(&self.file).clone());
        let heard = self.round(body, number, tally, change).await;
        match heard.verdict {
            Verdict::Agreed => Ok((proposal, next, heard.granted, heard.asked)),
            _ => Err(self.undecided(&heard)),
        }
    }

    /// Asks everybody whom the file names, until the answers decide.
    async fn round(
        self: &Arc<Self>,
        body: control_request::Body,
        number: Number,
        tally: Tally,
        change: &Change,
    ) -> Heard {
        // Where one voter decides alone, or an operator's word says that others are lost, these are heard all
        // the same, if they can be.
        let (alone, lost) = (self.alone(change), lost(change));
        // Before this life has heard what is agreed, the other one may well know of another primary.
        let hasty = (alone || !lost.is_empty()) && self.agreed.borrow().is_some();
        let patience = if hasty { GLANCE } else { ROUND };
        let mut tally = tally.alone(alone).without(lost);
        for name in self.electorate().names().iter().filter(|name| !self.knows(name)) {
            // The record names it, and this daemon's file does not.
            tally.add(name, None);
        }
        let mut asked = Asked::new();
        for voter in &self.voters {
            let (this, voter, body) = (self.clone(), voter.clone(), body.clone());
            asked.spawn(async move {
                let answer = this.ask(&voter.name, body, patience).await;
                let answer = answer.map_err(|e| e.to_string()).and_then(wire::voted);
                let judged = answer
                    .and_then(|(answer, grant)| Ok((this.judge_answer(&voter.name, answer, number)?, grant)));
                let (answer, grant) = match judged {
                    Ok((answer, grant)) => (Ok(answer), grant),
                    Err(e) => (Err(e), None),
                };
                Said { voter: voter.name, answer, grant }
            });
        }
        let (mut granted, mut silent) = (Vec::new(), BTreeMap::new());
        while tally.verdict() == Verdict::Open {
            let Some(Ok(Said { voter, answer, grant })) = asked.join_next().await else { break };
            match &answer {
                Ok(_) => granted.push((voter.clone(), grant)),
                Err(e) => drop(silent.insert(voter.clone(), e.clone())),
            }
            tally.add(&voter, answer.ok());
        }
        let voters = tally.voters().clone();
        Heard { verdict: tally.verdict(), answered: tally.for_it(), voters, granted, silent, asked }
    }

    /// Whether one of two voters decides alone on a change if the other does not answer: when it is the
    /// primary and goes on being it, as there is no majority without the other.
    fn alone(&self, change: &Change) -> bool {
        let record = self.accepted();
        let keeps = match change {
            Change::Read | Change::TakeCharge { .. } => true,
            Change::Advance { next, .. } => matches!(next, coordination::leadership::Next::RollBack { .. }),
            // Only another voter tells a primary that loses all it has that there was a database.
            Change::Begin(_) | Change::Name(_) | Change::Voters { .. } | Change::Settle { .. } => false,
        };
        let leads = record.primary == self.me && record.standing(&self.me) == Standing::Leads;
        let voters = record.electorate(&self.file);
        leads && keeps && voters.is_pair() && voters.has(&self.me)
    }

    /// Whether a proposal is to outrank what voters that are not asked may have promised.
    fn forced(&self, change: &Change) -> bool {
        let ongoing = || self.accepted().promotion.is_some_and(|promotion| promotion.forced);
        matches!(change, Change::Begin(order) if order.forced) || ongoing()
    }

    /// The highest number that this voter has promised or proposed.
    pub(super) fn highest(&self) -> Number {
        self.kept.get().acceptor.promised().max(*lock(&self.proposed))
    }

    pub(super) fn note_proposed(&self, number: Number) {
        let mut proposed = lock(&self.proposed);
        *proposed = number.max(*proposed);
    }

    fn undecided(&self, heard: &Heard) -> Tried {
        let error = ChangeError::NoMajority {
            answered: heard.answered,
            voters: heard.voters.names().len(),
            needed: heard.voters.needed(),
            why: heard
                .silent
                .iter()
                .filter(|(voter, _)| heard.voters.has(voter))
                .map(|(voter, why)| format!("; {voter}: {why}"))
                .collect(),
        };
        if let Verdict::Outbid(number) = heard.verdict {
            // The next proposal is above it.
            self.note_proposed(lawful::believed(number, self.highest()));
            return Tried::Again(error);
        }
        Tried::Failed(error)
    }

    /// Tells the others what is agreed; those who do not hear it, or cannot see that it is, find out by
    /// themselves.
    fn tell(self: &Arc<Self>, agreed: &Accepted) {
        for voter in self.voters.iter().filter(|voter| voter.name != self.me) {
            let (this, name) = (self.clone(), voter.name.clone());
            let body = control_request::Body::Learn(wire::accepted(agreed));
            self.spawn(async move { drop(this.ask(&name, body, ROUND).await) });
        }
    }

    /// Proposers that meet must not meet again.
    pub(super) fn draw_below(&self, end: u64) -> u64 {
        self.dice.lock().unwrap_or_else(PoisonError::into_inner).random_range(0..end.max(1))
    }
}

/// The voters that an operator's word counts as lost.
fn lost(change: &Change) -> BTreeSet<RegionName> {
    match change {
        Change::Begin(order) if order.forced => order.lost.clone(),
        _ => BTreeSet::new(),
    }
}
