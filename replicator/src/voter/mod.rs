//! A voter: one of the daemons that agree on who leads. Regions vote, and so do witnesses, which have no
//! data.
//!
//! What it has promised and accepted lies in `region.json` before it answers. [`Voter::change`] proposes a
//! change of the record to all voters; [`coordinate`] drives the promotion in progress; [`watch`] goes on
//! with one whose coordinator is gone, and keeps the voter's own knowledge fresh. The decisions are in the
//! `coordination` crate.

mod automatic;
mod coordinate;
mod differences;
mod hints;
mod peers;
mod recall;
mod rounds;
mod voters;
mod watch;
pub mod wire;

pub use differences::Difference;
pub use hints::of_a_voter;

use std::collections::BTreeSet;
use std::fmt;
use std::pin::Pin;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use coordination::leadership::{Change, Conflict};
use coordination::orders::Orders;
use coordination::promotion::Grant;
use coordination::region::View;
use coordination::register::{Accepted, Answer};
use coordination::{Electorate, Leadership, Number, Standing, Voters};
use primary::gate::CommitLevel;
use proto::messages::{self as m, Refusal, control_request, control_response};
use proto::{ClusterId, Epoch, RegionName};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use runtime::clock::{micros, now};
use runtime::random;
use runtime::task::Tasks;
use tokio::sync::{Notify, watch as latest};
use tokio::time::Instant;
use transport::Endpoint;

use crate::client::AskError;
use crate::config::{Config, Place};
use crate::region_file::{RegionFile, StateError};
use differences::Differences;
pub(crate) use peers::Peers;

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
    /// How it tells orders from what was made up.
    pub orders: Arc<dyn Orders>,
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
    answered: Mutex<Answered>,
    orders: Arc<dyn Orders>,
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

/// When a voter last answered a primary.
#[derive(Debug, Clone, Copy)]
struct Answered {
    /// Before it has, when it was started: it may have answered just before.
    at: Instant,
    /// It has.
    in_this_life: bool,
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

impl Voter {
    /// The voter of `me`, which keeps what it promises in `kept`.
    #[must_use]
    pub fn new(
        me: RegionName,
        config: &Config,
        kept: Arc<RegionFile>,
        orders: Arc<dyn Orders>,
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
            orders,
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
            orders,
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
            answered: Mutex::new(Answered { at: now(), in_this_life: false }),
            orders,
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

    /// The number of the last proposal that was voted on here; see [`Voter::is_pending`].
    #[must_use]
    pub fn last_pending(&self) -> u64 {
        lock(&self.pending).0
    }

    /// Whether a proposal up to that of the number `last` is still being voted on here.
    #[must_use]
    pub fn is_pending(&self, last: u64) -> bool {
        lock(&self.pending).1.iter().any(|(id, _)| *id <= last)
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
                *answered = Answered { at: now(), in_this_life: true };
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
        lock(&self.answered).at.elapsed()
    }

    /// The same, microseconds; none where it has answered none since it was started.
    fn heard_us(&self) -> Option<u64> {
        let answered = *lock(&self.answered);
        answered.in_this_life.then(|| micros(answered.at.elapsed()))
    }

    /// How orders are told from what was made up.
    #[must_use]
    pub fn orders(&self) -> &dyn Orders {
        &*self.orders
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
        self.kept.change(|state| {
            state.acceptor.learn(agreed);
            let newer = state.agreed.as_ref().is_none_or(|known| *known != agreed.record);
            if newer && self.orders.required() {
                state.agreed = Some(agreed.record.clone());
            }
        })?;
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

    /// The record as it is known to be agreed, or else as it was accepted here, as JSON; as it was accepted
    /// in any case where `request` says so.
    #[must_use]
    pub fn record_json(&self, request: m::RecordRequest) -> Vec<u8> {
        let agreed = self.agreed().filter(|_| !request.accepted);
        let record = agreed.map_or_else(|| self.accepted(), |agreed| agreed.record);
        serde_json::to_vec(&record).unwrap_or_default()
    }

    /// The promotion that this voter coordinates; zero when none.
    #[must_use]
    pub fn coordinates(&self) -> u64 {
        *self.coordinating.lock().unwrap_or_else(PoisonError::into_inner)
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing here is left half changed by a panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
