//! A voter: one of the daemons that agree on who leads. Regions vote, and so do witnesses, which have no data.
//!
//! What it has promised and accepted lies in `region.json` before it answers. [`Voter::change`] proposes a change of the record to all
//! voters; [`coordinate`] drives the promotion in progress; [`watch`] goes on with one whose coordinator is gone, and keeps the
//! voter's own knowledge fresh. The decisions are in the `coordination` crate.

mod coordinate;
mod peers;
mod watch;
pub mod wire;

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use coordination::promotion::{Fence, Grant};
use coordination::record::{Change, Conflict};
use coordination::register::{Accepted, Answer, Tally, Verdict, majority};
use coordination::{Number, Record, Standing};
use primary::gate::CommitLevel;
use proto::messages::{self as m, Refusal, control_request, control_response};
use proto::{ClusterId, RegionName};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::watch as latest;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use transport::Endpoint;

use crate::client::AskError;
use crate::config::{Config, Place};
use crate::region::state::{Record as Kept, StateError};
use peers::Peers;

/// How long a voter may take to answer a round.
const ROUND: Duration = Duration::from_millis(900);

/// The same where one voter decides alone, and the others may well be gone.
const GLANCE: Duration = Duration::from_millis(250);

/// How long a change is tried before it is given up.
const PATIENCE: Duration = Duration::from_secs(8);

/// The wait after another proposer was faster, at most; it is drawn, and doubles.
const OUTBID_MS: u64 = 20;

/// Answers requests as the daemon that this voter is part of.
pub trait Seat: fmt::Debug + Send + Sync {
    /// Answers what `from` asks.
    fn answer(
        &self,
        from: RegionName,
        body: control_request::Body,
    ) -> Pin<Box<dyn Future<Output = control_response::Body> + Send + '_>>;
}

/// Carries requests to the other voters: QUIC, or a simulated network.
pub trait Network: fmt::Debug + Send + Sync {
    /// Asks the daemon at `place`.
    fn ask<'a>(
        &'a self,
        place: &'a Place,
        body: control_request::Body,
        patience: Duration,
    ) -> Pin<Box<dyn Future<Output = Result<control_response::Body, AskError>> + Send + 'a>>;
}

/// What a voter is made of.
#[derive(Debug)]
pub struct VoterOptions {
    /// Its name.
    pub me: RegionName,
    /// Everybody who votes, itself included, in the order of the file.
    pub voters: Vec<Place>,
    /// The primary's lease.
    pub lease: Duration,
    /// A commit waits until another region has it.
    pub commits_elsewhere: bool,
    /// Where it keeps what it promises.
    pub kept: Arc<Kept>,
    /// How it reaches the others.
    pub network: Box<dyn Network>,
    /// Drawn at each start, so that no two proposals have one number; also the seed of its waits.
    pub proposer: u64,
}

/// One voter at work. What it does in the background ends with [`Voter::stop`].
#[derive(Debug)]
pub struct Voter {
    me: RegionName,
    voters: Vec<Place>,
    lease: Duration,
    commits_elsewhere: bool,
    kept: Arc<Kept>,
    network: Box<dyn Network>,
    seat: OnceLock<Weak<dyn Seat>>,
    proposer: u64,
    dice: Mutex<SmallRng>,
    stop: CancellationToken,
    agreed: latest::Sender<Option<Accepted>>,
    /// What this voter's next proposal begins with, when the others have promised its number already.
    lead: tokio::sync::Mutex<Option<Accepted>>,
    /// The promotion that this voter coordinates; zero when none.
    coordinating: Mutex<u64>,
}

/// Why a change was not made.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// It does not apply to the record as it is.
    #[error(transparent)]
    Conflict(#[from] Conflict),
    /// Too few voters answer.
    #[error("{answered} of {voters} voters answered, and {needed} are needed{why}")]
    NoMajority {
        /// How many promised or accepted.
        answered: usize,
        /// How many there are.
        voters: usize,
        /// How many must.
        needed: usize,
        /// What the others said.
        why: String,
    },
}

impl ChangeError {
    fn refusal(&self) -> Refusal {
        Refusal::new(m::refusal::Kind::Busy, self.to_string())
    }
}

impl From<ChangeError> for Refusal {
    fn from(error: ChangeError) -> Refusal {
        error.refusal()
    }
}

/// One answer to a round.
struct Said {
    voter: RegionName,
    answer: Result<Answer, String>,
    grant: Option<Grant>,
}

type Asked = JoinSet<Said>;

impl Voter {
    /// The voter of `me`, which keeps what it promises in `kept`.
    #[must_use]
    #[allow(clippy::disallowed_methods, reason = "a proposer is told from others by a number that is drawn")]
    pub fn new(
        me: RegionName,
        config: &Config,
        kept: Arc<Kept>,
        endpoint: Endpoint,
        cluster_id: ClusterId,
    ) -> Arc<Voter> {
        let network = Box::new(Peers::new(endpoint, cluster_id));
        let (voters, lease, proposer) = (config.voters(), config.lease, rand::random());
        let commits_elsewhere = matches!(config.commit.level, CommitLevel::Regions(_));
        Voter::with(VoterOptions { me, voters, lease, commits_elsewhere, kept, network, proposer })
    }

    /// A voter of these parts.
    #[must_use]
    pub fn with(options: VoterOptions) -> Arc<Voter> {
        let VoterOptions { me, voters, lease, commits_elsewhere, kept, network, proposer } = options;
        Arc::new(Voter {
            me,
            voters,
            lease,
            commits_elsewhere,
            kept,
            network,
            seat: OnceLock::new(),
            proposer,
            dice: Mutex::new(SmallRng::seed_from_u64(proposer)),
            stop: CancellationToken::new(),
            agreed: latest::Sender::new(None),
            lead: tokio::sync::Mutex::new(None),
            coordinating: Mutex::new(0),
        })
    }

    /// Ends everything that it does in the background.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        tokio::spawn(self.stop.clone().run_until_cancelled_owned(work));
    }

    /// Requests to itself are answered by `seat`.
    pub fn sit(&self, seat: Weak<dyn Seat>) {
        let _ = self.seat.set(seat);
    }

    /// What this voter has accepted: what that forbids is obeyed, whether it is agreed or not.
    #[must_use]
    pub fn accepted(&self) -> Record {
        self.kept.get().acceptor.record().clone()
    }

    /// The newest record that this voter knows to be agreed: only that allows anything.
    #[must_use]
    pub fn agreed(&self) -> Option<Accepted> {
        self.agreed.borrow().clone()
    }

    /// Told when a newer record is known to be agreed.
    #[must_use]
    pub fn watch_agreed(&self) -> latest::Receiver<Option<Accepted>> {
        self.agreed.subscribe()
    }

    /// What this voter's region may do: what is forbidden counts at once, what is allowed once it is agreed. None while that is not
    /// known.
    #[must_use]
    pub fn standing(&self) -> Option<Standing> {
        let state = self.kept.get();
        let accepted = state.acceptor.record().standing(&self.me);
        if matches!(accepted, Standing::Follows | Standing::Fenced) {
            return Some(accepted);
        }
        match &*self.agreed.borrow() {
            Some(agreed) if agreed.number >= state.acceptor.accepted().number => {
                Some(agreed.record.standing(&self.me))
            }
            // Of two voters nobody agrees on anything without this one.
            _ if self.voters.len() < 3 => Some(accepted),
            _ => None,
        }
    }

    /// Whether `name` is one of the voters.
    #[must_use]
    pub fn knows(&self, name: &RegionName) -> bool {
        self.voters.iter().any(|voter| voter.name == *name)
    }

    /// How many voters decide.
    #[must_use]
    pub fn majority(&self) -> usize {
        majority(self.voters.len())
    }

    /// Answers the first round.
    ///
    /// # Errors
    /// When the promise cannot be kept on disk.
    pub fn prepare(&self, number: Number) -> Result<Answer, StateError> {
        let mut answer = None;
        self.kept.change(|state| answer = Some(state.acceptor.prepare(number)))?;
        Ok(answer.unwrap_or(Answer::Outbid(number)))
    }

    /// Answers the second round, once what the record forbids is not done any more.
    ///
    /// # Errors
    /// When it cannot be kept on disk.
    pub fn accept(&self, proposal: &Accepted, next: Number) -> Result<Answer, StateError> {
        let mut answer = None;
        self.kept.change(|state| answer = Some(state.acceptor.accept(proposal, next)))?;
        Ok(answer.unwrap_or(Answer::Outbid(next)))
    }

    /// Takes a record that is agreed.
    ///
    /// # Errors
    /// When it cannot be kept on disk.
    pub fn learn(&self, agreed: &Accepted) -> Result<(), StateError> {
        self.kept.change(|state| state.acceptor.learn(agreed))?;
        self.agreed.send_if_modified(|known| {
            let newer = known.as_ref().is_none_or(|known| known.number < agreed.number);
            if newer {
                *known = Some(agreed.clone());
            }
            newer
        });
        Ok(())
    }

    /// Answers the first round, as a message.
    ///
    /// # Errors
    /// When the promise cannot be kept on disk.
    pub fn answer_prepare(&self, number: m::Number) -> Result<control_response::Body, Refusal> {
        let answer = self.prepare(wire::to_number(number)).map_err(|e| failed(e.to_string()))?;
        Ok(control_response::Body::Voted(wire::answer(&answer, m::Granted::default())))
    }

    /// Takes what is agreed, from a message.
    ///
    /// # Errors
    /// When it is no record, or cannot be kept on disk.
    pub fn answer_learn(&self, agreed: &m::Accepted) -> Result<control_response::Body, Refusal> {
        let agreed = wire::to_accepted(agreed).map_err(failed)?;
        self.learn(&agreed).map_err(|e| failed(e.to_string()))?;
        Ok(control_response::Body::Done(true))
    }

    /// The record as it is known to be agreed, or else as it was accepted here, as JSON.
    #[must_use]
    pub fn record_json(&self) -> Vec<u8> {
        let record = self.agreed().map_or_else(|| self.accepted(), |agreed| agreed.record);
        serde_json::to_vec(&record).unwrap_or_default()
    }

    /// The promotion that this voter coordinates; zero when none.
    #[must_use]
    pub fn coordinates(&self) -> u64 {
        *self.coordinating.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the record; it is agreed when this returns.
    ///
    /// # Errors
    /// When the change does not apply, or too few voters answer.
    pub async fn change(self: &Arc<Self>, change: &Change) -> Result<Record, ChangeError> {
        self.propose(change).await.map(|(record, _, _)| record)
    }

    /// Has the record agreed on once more, and takes what the voters grant who have answered; returns those who will, and whether one
    /// granted nothing, as it had promised somebody else meanwhile.
    async fn grants(self: &Arc<Self>, fence: &mut Fence) -> Result<(Asked, bool), ChangeError> {
        let (_, granted, asked) = self.propose(&Change::Read).await?;
        let mut outbid = false;
        for (voter, grant) in granted {
            match grant {
                Some(grant) => fence.granted(steady_us(), voter, grant),
                None => outbid = true,
            }
        }
        Ok((asked, outbid))
    }

    async fn propose(
        self: &Arc<Self>,
        change: &Change,
    ) -> Result<(Record, Vec<(RegionName, Option<Grant>)>, Asked), ChangeError> {
        let mut lead = self.lead.lock().await;
        let begin = now();
        let mut wait_ms = OUTBID_MS;
        loop {
            let tried = match lead.take() {
                Some(promised) => match promised.record.apply(change) {
                    Ok(record) => self.second_round(promised.number, record, change).await,
                    // Somebody may have changed it meanwhile.
                    Err(_) => self.both_rounds(change).await,
                },
                None => self.both_rounds(change).await,
            };
            match tried {
                Ok((agreed, next, granted, asked)) => {
                    *lead = Some(Accepted { number: next, record: agreed.record.clone() });
                    if let Err(e) = self.learn(&agreed) {
                        tracing::error!("{e}");
                    }
                    self.tell(&agreed);
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
        let number = state.acceptor.promised().next(self.proposer, self.forced(change));
        let body = control_request::Body::Prepare(wire::number(number));
        let (verdict, _, _, why) = self.round(body, self.needed(change)).await;
        match verdict {
            Verdict::Promised(newest) => match newest.record.apply(change) {
                Ok(record) => self.second_round(number, record, change).await,
                Err(conflict) => Err(Tried::Failed(conflict.into())),
            },
            verdict => Err(self.undecided(&verdict, change, why)),
        }
    }

    async fn second_round(
        self: &Arc<Self>,
        number: Number,
        record: Record,
        change: &Change,
    ) -> Result<Round, Tried> {
        let proposal = Accepted { number, record };
        let next = number.next(self.proposer, false);
        let body = control_request::Body::Accept(m::Accept {
            proposal: Some(wire::accepted(&proposal)),
            next: Some(wire::number(next)),
        });
        let (verdict, granted, asked, why) = self.round(body, self.needed(change)).await;
        match verdict {
            Verdict::Agreed => Ok((proposal, next, granted, asked)),
            verdict => Err(self.undecided(&verdict, change, why)),
        }
    }

    /// Asks all voters, until the answers decide.
    async fn round(
        self: &Arc<Self>,
        body: control_request::Body,
        needed: usize,
    ) -> (Verdict, Vec<(RegionName, Option<Grant>)>, Asked, String) {
        // Where one voter decides alone, the others are heard all the same, if they can be.
        let wanted = needed.max(self.majority());
        let patience = if needed < wanted { GLANCE } else { ROUND };
        let mut asked = Asked::new();
        for voter in &self.voters {
            let (this, voter, body) = (self.clone(), voter.clone(), body.clone());
            asked.spawn(async move {
                let answer = this.ask(&voter.name, body, patience).await;
                let (answer, grant) = match answer.map_err(|e| e.to_string()).and_then(wire::voted) {
                    Ok((answer, grant)) => (Ok(answer), grant),
                    Err(e) => (Err(e), None),
                };
                Said { voter: voter.name, answer, grant }
            });
        }
        let mut tally = Tally::new(self.voters.len(), wanted);
        let (mut granted, mut why) = (Vec::new(), String::new());
        while tally.verdict() == Verdict::Open {
            let Some(Ok(Said { voter, answer, grant })) = asked.join_next().await else { break };
            if let Err(e) = &answer {
                why.push_str(&format!("; {voter}: {e}"));
            }
            if answer.is_ok() {
                granted.push((voter.clone(), grant));
            }
            tally.add(&voter, answer.ok());
        }
        let mut verdict = tally.verdict();
        if verdict == Verdict::NoMajority && needed < wanted {
            tally = tally.with_majority(needed);
            verdict = tally.verdict();
        }
        if verdict == Verdict::NoMajority {
            why = format!("{}{why}", tally.for_it());
        }
        (verdict, granted, asked, why)
    }

    /// How many voters decide on a change: a majority; one on the operator's word; and one of two voters alone if it is the
    /// primary and goes on being it, as there is no majority without it.
    fn needed(&self, change: &Change) -> usize {
        let record = self.accepted();
        let keeps = match change {
            Change::Read | Change::TakeCharge { .. } => true,
            Change::Advance { next, .. } => matches!(next, coordination::record::Next::RollBack { .. }),
            Change::Begin(_) => false,
        };
        let leads = record.primary == self.me && record.standing(&self.me) == Standing::Leads;
        if self.forced(change) || self.voters.len() < 3 && leads && keeps { 1 } else { self.majority() }
    }

    fn forced(&self, change: &Change) -> bool {
        let ongoing = || self.accepted().promotion.is_some_and(|promotion| promotion.forced);
        matches!(change, Change::Begin(order) if order.forced) || ongoing()
    }

    fn undecided(&self, verdict: &Verdict, change: &Change, why: String) -> Tried {
        let digits: String = why.chars().take_while(char::is_ascii_digit).collect();
        let error = ChangeError::NoMajority {
            answered: digits.parse().unwrap_or(0),
            voters: self.voters.len(),
            needed: self.needed(change),
            why: why[digits.len()..].to_owned(),
        };
        if let Verdict::Outbid(number) = verdict {
            // The next proposal is above it.
            let _ = self.prepare(*number);
            return Tried::Again(error);
        }
        Tried::Failed(error)
    }

    /// Tells the others what is agreed; those who do not hear it find out by themselves.
    fn tell(self: &Arc<Self>, agreed: &Accepted) {
        for voter in self.voters.iter().filter(|voter| voter.name != self.me) {
            let (this, name) = (self.clone(), voter.name.clone());
            let body = control_request::Body::Learn(wire::accepted(agreed));
            self.spawn(async move { drop(this.ask(&name, body, ROUND).await) });
        }
    }

    /// Proposers that meet must not meet again.
    fn draw_below(&self, end: u64) -> u64 {
        self.dice.lock().unwrap_or_else(PoisonError::into_inner).random_range(0..end.max(1))
    }

    /// Asks a voter, which may be this one.
    ///
    /// # Errors
    /// When it cannot be reached, refuses, or is too slow.
    pub async fn ask(
        &self,
        name: &RegionName,
        body: control_request::Body,
        patience: Duration,
    ) -> Result<control_response::Body, AskError> {
        if *name == self.me {
            let Some(seat) = self.seat.get().and_then(Weak::upgrade) else {
                return Err(AskError::Refused("this daemon is stopping".into()));
            };
            return match tokio::time::timeout(patience, seat.answer(self.me.clone(), body)).await {
                Ok(control_response::Body::Refusal(refusal)) => Err(AskError::Refused(refusal.reason)),
                Ok(answer) => Ok(answer),
                Err(_) => Err(AskError::Slow(patience.as_millis())),
            };
        }
        let Some(place) = self.voters.iter().find(|voter| voter.name == *name) else {
            return Err(AskError::Refused(format!("there is no voter '{name}' in the file")));
        };
        self.network.ask(place, body, patience).await
    }
}

fn failed(reason: String) -> Refusal {
    Refusal::new(m::refusal::Kind::Failed, reason)
}

/// A round that was agreed on: the record, the number promised for the next change, and the answers.
type Round = (Accepted, Number, Vec<(RegionName, Option<Grant>)>, Asked);

/// Why a proposal did not succeed.
enum Tried {
    Failed(ChangeError),
    /// Another proposer was faster.
    Again(ChangeError),
}

#[allow(clippy::disallowed_methods, reason = "drivers read the clock here and pass it on")]
fn now() -> Instant {
    Instant::now()
}

/// Microseconds on a clock that never steps, since this process first asked.
fn steady_us() -> u64 {
    static BEGIN: OnceLock<Instant> = OnceLock::new();
    u64::try_from(BEGIN.get_or_init(now).elapsed().as_micros()).unwrap_or(u64::MAX)
}
