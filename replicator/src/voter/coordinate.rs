//! Drives the promotion that this voter coordinates, one recorded step after the other, to its end.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use coordination::leadership::{Change, Done, Next};
use coordination::promotion::{Fence, Fitness, Grant, Outcome, Patience, Setback, after};
use coordination::{Leadership, Promotion, Step};
use proto::messages::{self as m, control_request, control_response};
use proto::{Lsn, RegionName, Timeline};
use telemetry::trace::TraceId;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::field::{DisplayValue, display};

use runtime::clock::now;

use super::rounds::{Asked, ROUND, Said};
use super::{ChangeError, Voter, wire};
use crate::client::AskError;

/// How long the primary may take to hand over; it rolls back by itself before.
const HAND_OVER: Duration = Duration::from_secs(75);

/// How long the new primary may take to gather and apply what survives, before it is asked again.
const GET_READY: Duration = Duration::from_secs(60);

/// How long the new primary may take to take writes, before it is asked again.
const LEAD: Duration = Duration::from_secs(30);

/// How long a region is waited for that has accepted that the old primary is shut out, and whose volume is
/// not open yet.
const OPENING: Duration = Duration::from_secs(2);

/// The wait before a step is tried again.
const AGAIN: Duration = Duration::from_millis(200);

/// How long the rest of the voters are waited for, once a majority has accepted that the old primary is shut
/// out: one of them may have redo that nobody else has.
const STRAGGLERS: Duration = Duration::from_millis(600);

impl Voter {
    /// What the voters that can be reached have, this one included.
    pub(super) async fn survey(self: &Arc<Self>) -> BTreeMap<RegionName, Grant> {
        let mut asking = JoinSet::new();
        for place in &self.voters {
            let (voter, name) = (self.clone(), place.name.clone());
            asking.spawn(async move {
                let body = control_request::Body::Survey(m::SurveyRequest {});
                (voter.ask(&name, body, ROUND).await, name)
            });
        }
        let mut found = BTreeMap::new();
        while let Some(Ok((answer, name))) = asking.join_next().await {
            if let Ok(control_response::Body::Granted(granted)) = answer {
                found.insert(name, wire::to_grant(&granted));
            }
        }
        found
    }

    /// Coordinates promotion `id` in the background, unless this voter does already.
    pub fn coordinate(self: &Arc<Self>, id: u64) {
        let mut coordinating = self.coordinating.lock().unwrap_or_else(PoisonError::into_inner);
        if *coordinating == id {
            return;
        }
        *coordinating = id;
        drop(coordinating);
        let this = self.clone();
        self.spawn(async move {
            let mut coordinator =
                Coordinator { voter: this.clone(), id, times: Times::start(), stopped: None };
            coordinator.run().await;
            let mut coordinating = this.coordinating.lock().unwrap_or_else(PoisonError::into_inner);
            if *coordinating == id {
                *coordinating = 0;
            }
        });
    }
}

/// What was done since the last change of the record, and how long it took.
#[derive(Debug)]
struct Times {
    /// Of the promotion, once that was read.
    trace_id: Option<DisplayValue<TraceId>>,
    since: Instant,
    done: Vec<Done>,
}

impl Times {
    fn start() -> Times {
        Times { trace_id: None, since: now(), done: Vec::new() }
    }

    fn done(&mut self, name: &str) {
        let at = now();
        let us = u64::try_from((at - self.since).as_micros()).unwrap_or(u64::MAX);
        tracing::info!(trace_id = self.trace_id, "promotion: {name}, {} ms", us / 1000);
        self.done.push(Done { name: name.into(), us });
        self.since = at;
    }
}

struct Coordinator {
    voter: Arc<Voter>,
    id: u64,
    times: Times,
    /// When the old writer stopped, as far as this coordinator knows.
    stopped: Option<Instant>,
}

impl Coordinator {
    async fn run(&mut self) {
        let mut patience = Patience::default();
        let mut last = String::new();
        loop {
            let record = match self.voter.change(&Change::Read).await {
                Ok(record) => record,
                Err(e) => {
                    self.say(&mut last, e.to_string());
                    tokio::time::sleep(AGAIN).await;
                    continue;
                }
            };
            let mine = |p: &Promotion| p.id == self.id && p.coordinator == self.voter.me;
            let Some(promotion) = record.promotion.clone().filter(mine) else { return };
            self.times.trace_id = Some(display(TraceId(promotion.trace())));
            let tried = match promotion.step {
                Step::HandOver => Ok(self.hand_over(&promotion).await),
                Step::Fence => self.shut_out(&record, &promotion).await,
                Step::Promote => self.lead(&promotion).await,
            };
            let outcome = match tried {
                Ok(outcome) => {
                    patience = Patience::default();
                    outcome
                }
                Err(trouble) => {
                    self.say(&mut last, trouble.to_string());
                    if !patience.ends(trouble.setback(), self.voter.clock_us()) {
                        tokio::time::sleep(AGAIN).await;
                        continue;
                    }
                    Outcome::TargetGone { others: self.voter.survey().await }
                }
            };
            let Some(next) = after(&record, runtime::clock::wall_us(), outcome) else {
                self.say(&mut last, "no region that can be reached has redo to lead with".into());
                tokio::time::sleep(AGAIN).await;
                continue;
            };
            if let Next::RollBack { why, .. } = &next {
                tracing::error!(trace_id = self.times.trace_id, "rolled back: {why}");
            }
            let done = std::mem::take(&mut self.times.done);
            let change = Change::Advance { id: self.id, attempt: promotion.attempt, next, done };
            match self.voter.change(&change).await {
                Ok(record) if record.promotion.is_none() => return,
                Ok(_) => self.times.done("record it"),
                Err(ChangeError::Conflict(e)) => {
                    return tracing::warn!("this promotion is not coordinated here any more: {e}");
                }
                Err(e) => self.say(&mut last, e.to_string()),
            }
        }
    }

    fn say(&self, last: &mut String, what: String) {
        if *last != what {
            tracing::warn!(trace_id = self.times.trace_id, "the promotion waits: {what}");
            *last = what;
        }
    }

    async fn hand_over(&mut self, promotion: &Promotion) -> Outcome {
        let request =
            m::HandOverRequest { epoch: promotion.epoch.0, dry_run: false, to: promotion.to.to_string() };
        let body = control_request::Body::HandOver(request);
        match self.voter.ask(&promotion.from, body, HAND_OVER).await {
            Ok(control_response::Body::HandedOver(handed_over)) => {
                // Up to here the old primary can simply go on.
                let survey = control_request::Body::Survey(m::SurveyRequest {});
                if let Err(e) = self.voter.ask(&promotion.to, survey, ROUND).await {
                    return Outcome::NotHandedOver(format!("{}: {e}", promotion.to));
                }
                let held = Duration::from_micros(handed_over.stopped_us);
                self.stopped = now().checked_sub(held);
                self.times.since = now();
                self.times
                    .done
                    .extend(handed_over.steps.into_iter().map(|step| Done { name: step.name, us: step.us }));
                Outcome::HandedOver {
                    end_lsn: Lsn(handed_over.end_lsn),
                    timeline: Timeline(handed_over.timeline),
                }
            }
            Ok(_) => Outcome::NotHandedOver(format!("{} gave another answer", promotion.from)),
            Err(e) => Outcome::NotHandedOver(format!("{}: {e}", promotion.from)),
        }
    }

    async fn shut_out(&mut self, record: &Leadership, promotion: &Promotion) -> Result<Outcome, Trouble> {
        let voter = self.voter.clone();
        let lease_us = u64::try_from(voter.lease.as_micros()).unwrap_or(u64::MAX);
        let mut fence = Fence::new(record.electorate(&voter.file).clone(), lease_us, record.clone());
        // The old primary is not waited for beyond its lease, nor are voters that an operator's word says are
        // lost.
        let others = || voter.voters.iter().filter(|other| other.name != promotion.from);
        let waited = || others().filter(|other| !promotion.lost.contains(&other.name));
        let all = |fence: &Fence| fence.holds() && waited().all(|other| fence.hears(&other.name));
        let mut asked;
        let mut asked_twice = false;
        loop {
            let outbid;
            (asked, outbid) = voter.grants(&mut fence).await.map_err(|e| Trouble::Other(e.to_string()))?;
            let late = self.hear_stragglers(&mut fence, &mut asked, all).await;
            // One that had promised somebody else is there, and may be the one that has most.
            if all(&fence) || asked_twice || !(outbid || late) {
                break;
            }
            asked_twice = true;
        }
        if !fence.holds() {
            let (count, voters) = (fence.count(), record.electorate(&voter.file).names().len());
            return Err(Trouble::Other(format!("{count} of {voters} voters have shut the old primary out")));
        }
        self.times.done("fence the old primary");
        while let Some(until_us) = fence.waits_until() {
            let wait = Duration::from_micros(until_us.saturating_sub(voter.clock_us()));
            tokio::select! {
                biased;
                () = tokio::time::sleep(wait) => {
                    self.times.done("wait for its lease to end");
                    break;
                }
                Some(Ok(said)) = asked.join_next() => {
                    self.heard(&mut fence, said);
                }
            }
        }
        // One whose volume is being opened may have what nobody else has.
        let begin = now();
        while fence.has_unheard() && begin.elapsed() < OPENING {
            tokio::time::sleep(AGAIN).await;
            voter.grants(&mut fence).await.map_err(|e| Trouble::Other(e.to_string()))?;
        }
        let (ahead, whole) = match fence.fitness(&promotion.to) {
            Fitness::Fit { ahead, whole } => (ahead, whole),
            Fitness::Unheard => return Err(self.unheard(&promotion.to).await),
            Fitness::Unfit => {
                tracing::warn!("{} has no redo that it could lead with: another region leads", promotion.to);
                let others = fence.grants().map(|(name, grant)| (name.clone(), grant.clone())).collect();
                return Ok(Outcome::TargetGone { others });
            }
        };
        let elsewhere = voter.commits_elsewhere && others().all(|other| fence.hears(&other.name));
        let gathers = ahead.is_some();
        let request = m::GetReadyRequest {
            epoch: promotion.epoch.0,
            gather_from: ahead.as_ref().map(|ahead| ahead.from.to_string()).unwrap_or_default(),
            gather_to_lsn: ahead.map_or(0, |ahead| ahead.to_lsn.0),
        };
        let body = control_request::Body::GetReady(request);
        match self.voter.ask(&promotion.to, body, GET_READY).await {
            Ok(control_response::Body::ReadyLsn(end_lsn)) => {
                self.times.done(if gathers {
                    "gather what another survivor has, and apply everything"
                } else {
                    "apply everything"
                });
                let end_lsn = Lsn(end_lsn);
                if end_lsn > whole.end_lsn {
                    // It was on its way to the disk, or another coordinator has had it gather: on which
                    // timeline that ends, and who has more now, it is asked again.
                    let (to, known) = (&promotion.to, whole.end_lsn);
                    return Err(Trouble::Other(format!("{to} has redo up to {end_lsn}, and said {known}")));
                }
                Ok(Outcome::Ready { end_lsn, timeline: whole.timeline, loss: fence.loss(end_lsn, elsewhere) })
            }
            Ok(_) => Err(Trouble::Other(format!("{} gave another answer", promotion.to))),
            Err(e) => Err(Trouble::Target(promotion.to.clone(), e)),
        }
    }

    /// Why the region that shall lead has not said what redo it has: it is not reached, or it has promised
    /// somebody else and is asked again.
    async fn unheard(&self, to: &RegionName) -> Trouble {
        let survey = control_request::Body::Survey(m::SurveyRequest {});
        let why = match self.voter.ask(to, survey, ROUND).await {
            Ok(_) => AskError::Refused("it has not accepted yet that the old primary is shut out".into()),
            Err(e) => e,
        };
        Trouble::Target(to.clone(), why)
    }

    /// Takes what comes for a moment, or until `all` are heard; says whether one of them granted nothing.
    async fn hear_stragglers(
        &self,
        fence: &mut Fence,
        asked: &mut Asked,
        all: impl Fn(&Fence) -> bool,
    ) -> bool {
        let patience = tokio::time::sleep(STRAGGLERS);
        tokio::pin!(patience);
        let mut outbid = false;
        while !all(fence) {
            tokio::select! {
                biased;
                said = asked.join_next() => match said {
                    Some(Ok(said)) => outbid |= self.heard(fence, said),
                    _ => break,
                },
                () = &mut patience => break,
            }
        }
        outbid
    }

    /// Takes what a voter grants; says whether it answered and granted nothing.
    fn heard(&self, fence: &mut Fence, said: Said) -> bool {
        match (said.answer, said.grant) {
            (Ok(coordination::register::Answer::Accepted), Some(grant)) => {
                fence.granted(self.voter.clock_us(), said.voter, grant);
                false
            }
            (answer, _) => answer.is_ok(),
        }
    }

    async fn lead(&mut self, promotion: &Promotion) -> Result<Outcome, Trouble> {
        let body = control_request::Body::Lead(m::LeadRequest { epoch: promotion.epoch.0 });
        match self.voter.ask(&promotion.to, body, LEAD).await {
            Ok(_) => {
                self.times.done("promote PostgreSQL");
                let us = |since: Instant| u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX);
                Ok(Outcome::Leads { write_gap_us: self.stopped.map_or(0, us) })
            }
            Err(e) => Err(Trouble::Target(promotion.to.clone(), e)),
        }
    }
}

/// Why a step is to be tried again.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("{0}: {1}")]
    Target(RegionName, AskError),
    #[error("{0}")]
    Other(String),
}

impl Trouble {
    fn setback(&self) -> Setback {
        match self {
            Trouble::Target(_, AskError::Transport(_) | AskError::Slow(_)) => Setback::Unreached,
            Trouble::Target(..) => Setback::Unable,
            Trouble::Other(_) => Setback::Elsewhere,
        }
    }
}
