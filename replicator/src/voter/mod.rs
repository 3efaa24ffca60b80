//! A voter: one of the daemons that agree on who leads. Regions vote, and so do witnesses, which have no
//! data.
//!
//! What it has promised and accepted lies in `region.json` before it answers. [`Voter::change`] proposes a
//! change of the record to all voters; [`coordinate`] drives the promotion in progress; [`watch`] goes on
//! with one whose coordinator is gone, and keeps the voter's own knowledge fresh. The decisions are in the
//! `coordination` crate.

mod coordinate;
mod differences;
mod hints;
mod peers;
mod recall;
mod voters;
mod watch;
pub mod wire;

pub use hints::of_a_voter;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::pin::Pin;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use coordination::lawful;
use coordination::leadership::{Change, Conflict};
use coordination::promotion::{Fence, Grant};
use coordination::region::View;
use coordination::register::{Accepted, Answer, Tally, Verdict};
use coordination::{Electorate, Leadership, Number, Standing, Voters};
use primary::gate::CommitLevel;
use proto::messages::{self as m, Refusal, control_request, control_response};
use proto::{ClusterId, Epoch, RegionName};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use runtime::clock::{micros, now};
use runtime::random;
use runtime::task::Tasks;
use tokio::sync::{Notify, watch as latest};
use tokio::task::JoinSet;
use tokio::time::Instant;
use transport::Endpoint;

use crate::client::AskError;
use crate::config::{Config, Place};
use crate::region_file::{RegionFile, StateError};
use differences::Differences;
pub(crate) use peers::Peers;

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
    /// Everybody whom the file names, itself included, in its order.
    pub voters: Vec<Place>,
    /// Those of them that have data, and can lead.
    pub regions: BTreeSet<RegionName>,
    /// What must be the same in every daemon's file.
    pub agreement: m::Agreement,
    /// The primary's lease.
    pub lease: Duration,
    /// A commit waits until another region has it.
    pub commits_elsewhere: bool,
    /// Where it keeps what it promises.
    pub kept: Arc<RegionFile>,
    /// How it reaches the others.
    pub network: Box<dyn Network>,
    /// Drawn at each start, so that no two proposals have one number; also the seed of its waits.
    pub proposer: u64,
}

/// One voter at work. What it does in the background ends with [`Voter::stop`].
#[derive(Debug)]
pub struct Voter {
    me: RegionName,
    /// Everybody whom the file names: these are asked, and the record says whose answers count.
    voters: Vec<Place>,
    regions: BTreeSet<RegionName>,
    /// Who votes where the record does not say.
    file: Electorate,
    /// The sets of voters that keep the lease; see [`View::counted`].
    counted: latest::Sender<Vec<BTreeSet<RegionName>>>,
    /// How the others' files differ from this one's.
    differences: Differences,
    lease: Duration,
    commits_elsewhere: bool,
    kept: Arc<RegionFile>,
    network: Box<dyn Network>,
    seat: OnceLock<Weak<dyn Seat>>,
    proposer: u64,
    dice: Mutex<SmallRng>,
    tasks: Tasks,
    agreed: latest::Sender<Option<Accepted>>,
    /// What this voter's next proposal begins with, when the others have promised its number already.
    lead: tokio::sync::Mutex<Option<Accepted>>,
    /// The promotion that this voter coordinates; zero when none.
    coordinating: Mutex<u64>,
    /// The highest number that this voter has proposed under, whether or not its own promise of that could be
    /// kept on disk: two records must never go out under one number.
    proposed: Mutex<Number>,
    /// Proposals that are being voted on here, each with a number of its own.
    pending: Mutex<(u64, Vec<(u64, Leadership)>)>,
    /// When this voter last answered a primary; before that, when it was started, as it may have answered
    /// just before.
    answered: Mutex<Instant>,
    /// Told whenever what this voter knows of the record has changed.
    changed: Notify,
    /// When it began: what it waits for is reckoned from here.
    began: Instant,
    /// Why it has no memory yet; empty while that was not tried, and once it has one.
    forgot: Mutex<String>,
    /// The newest record that this voter was told is agreed, and is finding out.
    hinted: Mutex<Number>,
    /// A voter that is far behind the others is catching up.
    catching_up: AtomicBool,
    /// A voter that was counted as lost is being added again.
    finding: AtomicBool,
}

/// A proposal that is being voted on: while this lives, what the proposal forbids counts as forbidden here.
#[derive(Debug)]
pub struct Pending<'a> {
    voter: &'a Voter,
    id: u64,
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        lock(&self.voter.pending).1.retain(|(id, _)| *id != self.id);
        self.voter.has_changed();
    }
}

/// Why a change was not made.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// It does not apply to the record as it is.
    #[error(transparent)]
    Conflict(#[from] Conflict),
    /// This voter has no memory, and so no say.
    #[error("{0}")]
    Forgot(String),
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

impl Voter {
    /// The voter of `me`, which keeps what it promises in `kept`.
    #[must_use]
    pub fn new(
        me: RegionName,
        config: &Config,
        kept: Arc<RegionFile>,
        endpoint: Endpoint,
        cluster_id: ClusterId,
    ) -> Arc<Voter> {
        let network = Box::new(Peers::new(endpoint, cluster_id));
        let (voters, lease, proposer) = (config.voters(), config.lease, random::draw());
        let commits_elsewhere = matches!(config.commit.level, CommitLevel::Regions(_));
        let regions = config.regions.iter().map(|region| region.name.clone()).collect();
        let agreement = config.agreement();
        Voter::with(VoterOptions {
            me,
            voters,
            regions,
            agreement,
            lease,
            commits_elsewhere,
            kept,
            network,
            proposer,
        })
    }

    /// A voter of these parts.
    #[must_use]
    pub fn with(options: VoterOptions) -> Arc<Voter> {
        let VoterOptions {
            me,
            voters,
            regions,
            agreement,
            lease,
            commits_elsewhere,
            kept,
            network,
            proposer,
        } = options;
        let is_region = |name: &RegionName| regions.contains(name);
        let names = || voters.iter().map(|place| place.name.clone());
        let file = Electorate::of(Voters {
            regions: names().filter(is_region).collect(),
            witnesses: names().filter(|name| !is_region(name)).collect(),
        });
        let voter = Voter {
            me,
            voters,
            regions,
            file,
            counted: latest::Sender::new(Vec::new()),
            differences: Differences::new(agreement),
            lease,
            commits_elsewhere,
            kept,
            network,
            seat: OnceLock::new(),
            proposer,
            dice: Mutex::new(SmallRng::seed_from_u64(proposer)),
            tasks: Tasks::new(),
            agreed: latest::Sender::new(None),
            lead: tokio::sync::Mutex::new(None),
            coordinating: Mutex::new(0),
            proposed: Mutex::default(),
            pending: Mutex::default(),
            answered: Mutex::new(now()),
            changed: Notify::new(),
            began: now(),
            forgot: Mutex::default(),
            hinted: Mutex::default(),
            catching_up: AtomicBool::new(false),
            finding: AtomicBool::new(false),
        };
        voter.has_changed();
        Arc::new(voter)
    }

    /// What this voter knows of the record has changed.
    fn has_changed(&self) {
        // Looked at within, so that of two changes the later one counts.
        self.counted.send_if_modified(|counted| {
            let now = self.view().counted(&self.file);
            let differs = *counted != now;
            *counted = now;
            differs
        });
        self.changed.notify_waiters();
    }

    /// The sets of voters of each of which a majority keeps the lease of a primary here.
    #[must_use]
    pub fn counted(&self) -> latest::Receiver<Vec<BTreeSet<RegionName>>> {
        self.counted.subscribe()
    }

    /// Who votes, as far as this voter knows.
    #[must_use]
    pub fn electorate(&self) -> Electorate {
        self.accepted().electorate(&self.file).clone()
    }

    /// Microseconds since this voter began, on a clock that never steps. It is the voter's own, as each
    /// simulated one has a time of its own.
    fn clock_us(&self) -> u64 {
        micros(self.began.elapsed())
    }

    /// Ends everything that it does in the background.
    pub fn stop(&self) {
        self.tasks.stop();
    }

    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(work);
    }

    /// Requests to itself are answered by `seat`.
    pub fn sit(&self, seat: Weak<dyn Seat>) {
        let _ = self.seat.set(seat);
    }

    /// What this voter has accepted: what that forbids is obeyed, whether it is agreed or not.
    #[must_use]
    pub fn accepted(&self) -> Leadership {
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

    /// What this voter knows of the record.
    #[must_use]
    pub fn view(&self) -> View {
        let pending = lock(&self.pending).1.iter().map(|(_, record)| record.clone()).collect();
        let accepted = self.kept.get().acceptor.accepted().clone();
        View { accepted, agreed: self.agreed(), pending, remembers: self.remembers() }
    }

    /// Told when [`Voter::view`] has changed: enable it before looking.
    pub fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.changed.notified()
    }

    /// What this voter's region may do; none while that is not known.
    #[must_use]
    pub fn standing(&self) -> Option<Standing> {
        self.view().standing(&self.me)
    }

    /// From here on, until the returned value is dropped, nothing is done here that `record` forbids.
    #[must_use]
    pub fn pend(&self, record: &Leadership) -> Pending<'_> {
        let id = {
            let pending = &mut *lock(&self.pending);
            pending.0 += 1;
            pending.1.push((pending.0, record.clone()));
            pending.0
        };
        self.has_changed();
        Pending { voter: self, id }
    }

    /// Whether `region` is the primary of `epoch`, as far as this voter knows. The answer keeps the lease of
    /// that primary.
    ///
    /// # Errors
    /// When it is not, or being replaced.
    pub fn support(self: &Arc<Self>, region: &RegionName, epoch: Epoch) -> Result<(), Refusal> {
        self.able()?;
        {
            // A vote on shutting the primary out reads this only after the primary is not answered any more.
            let mut answered = lock(&self.answered);
            if self.view().supports(region, epoch) {
                *answered = now();
                return Ok(());
            }
        }
        if epoch > self.accepted().epoch {
            // It was agreed on without this voter: the next time it is known.
            let this = self.clone();
            self.spawn(async move { drop(this.change(&Change::Read).await) });
        }
        let reason = format!("region {region} is not known to lead epoch {epoch}");
        Err(Refusal::new(m::refusal::Kind::StaleEpoch, reason))
    }

    /// How long ago this voter last answered a primary, or was started.
    #[must_use]
    pub fn silent(&self) -> Duration {
        lock(&self.answered).elapsed()
    }

    /// Whether `name` is one of the voters.
    #[must_use]
    pub fn knows(&self, name: &RegionName) -> bool {
        self.voters.iter().any(|voter| voter.name == *name)
    }

    /// Whether a proposal under `number` would be accepted now.
    #[must_use]
    pub fn would_accept(&self, number: Number) -> bool {
        self.kept.get().acceptor.would_accept(number)
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
        self.has_changed();
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
        self.has_changed();
        Ok(())
    }

    /// Answers the first round, as a message.
    ///
    /// # Errors
    /// When no correct voter proposes under that number, or the promise cannot be kept on disk.
    pub fn answer_prepare(self: &Arc<Self>, number: m::Number) -> Result<control_response::Body, Refusal> {
        self.able()?;
        let number = wire::to_number(number);
        self.judge_number(number)?;
        let answer = self.prepare(number).map_err(|e| failed(e.to_string()))?;
        Ok(control_response::Body::Voted(wire::answer(&answer, m::Granted::default())))
    }

    /// Answers the second round as a witness, which has nothing to stop: it only answers the primary no more.
    ///
    /// # Errors
    /// When the proposal is none, or cannot be kept on disk.
    pub fn witness_vote(self: &Arc<Self>, accept: m::Accept) -> Result<m::Voted, Refusal> {
        let (proposal, next) = self.judge_proposal(accept)?;
        let pending = self.would_accept(proposal.number).then(|| self.pend(&proposal.record));
        let answer = self.accept(&proposal, next).map_err(|e| failed(e.to_string()))?;
        drop(pending);
        Ok(wire::answer(&answer, wire::grant(&self.witness_grant())))
    }

    /// What a witness knows.
    #[must_use]
    pub fn witness_survey(&self) -> m::Granted {
        m::Granted {
            coordinates: self.coordinates(),
            agreed: self.agreed().as_ref().map(wire::accepted),
            ..wire::grant(&self.witness_grant())
        }
    }

    /// A witness has no redo, and says so: it is heard.
    fn witness_grant(&self) -> Grant {
        Grant { silent_us: micros(self.silent()), open: true, ..Grant::default() }
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
    pub async fn change(self: &Arc<Self>, change: &Change) -> Result<Leadership, ChangeError> {
        self.propose(change).await.map(|(record, _, _)| record)
    }

    /// Has the record agreed on once more, and takes what the voters grant who have answered; returns those
    /// who will, and whether one granted nothing, as it had promised somebody else meanwhile.
    async fn grants(self: &Arc<Self>, fence: &mut Fence) -> Result<(Asked, bool), ChangeError> {
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
                let judged =
                    answer.and_then(|(answer, grant)| Ok((this.judge_answer(answer, number)?, grant)));
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
    fn highest(&self) -> Number {
        self.kept.get().acceptor.promised().max(*lock(&self.proposed))
    }

    fn note_proposed(&self, number: Number) {
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

/// The voters that an operator's word counts as lost.
fn lost(change: &Change) -> BTreeSet<RegionName> {
    match change {
        Change::Begin(order) if order.forced => order.lost.clone(),
        _ => BTreeSet::new(),
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing here is left half changed by a panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
