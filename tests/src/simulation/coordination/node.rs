//! A daemon: a real voter, and a region around it whose redo is a row of numbers. See `replicator/src/region/promotion.rs` for what
//! this is a model of.

use std::pin::Pin;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use bytes::Bytes;
use coordination::promotion::Grant;
use coordination::record::Change;
use coordination::{Acceptor, Record, Standing, Step};
use primary::gate::Lease;
use primary::shipper::machine::{Log, Plan, Position, plan};
use proto::messages::{self as m, Refusal, control_request, control_response, refusal::Kind};
use proto::{Batch, ClusterId, Epoch, Lsn, RegionName, SystemId, Timeline, TimelineHistory};
use replicator::config::{Place, Role};
use replicator::region::state::{Record as Kept, RegionState};
use replicator::voter::{Seat, Voter, VoterOptions, wire};
use secondary::receiver::{Receiver, Verdict};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::network::{Wire, ship};
use super::{Bug, LEASE, LEASE_US, World, lock};
use crate::now;

type Ask = control_request::Body;
type Answer = control_response::Body;

/// How often a primary ships, and beats when there is nothing.
const BEAT: Duration = Duration::from_millis(100);

/// The most commits in one batch on the way.
const BATCH: usize = 50;

/// How long a primary may take to hand over.
const HAND_OVER: Duration = Duration::from_secs(3);

/// One commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) id: u64,
    pub(super) epoch: Epoch,
}

/// What a crash leaves.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) kept: Arc<Kept>,
    redo: Mutex<Redo>,
}

#[derive(Debug, Clone, Default)]
struct Redo {
    log: Vec<Row>,
    /// Timelines before the newest, each with where it ends.
    forks: Vec<(u32, usize)>,
    timeline: u32,
    /// What was cut off, kept aside.
    aside: Vec<Row>,
}

impl Redo {
    fn history(&self) -> TimelineHistory {
        let lines = self.forks.iter().map(|(timeline, end)| format!("{timeline}\t{}\tx\n", Lsn(*end as u64)));
        let content: String = lines.collect();
        let parsed = TimelineHistory::parse(Timeline(self.timeline), content.as_bytes());
        parsed.unwrap_or_else(|e| unreachable!("timeline {} of {content}: {e}", self.timeline))
    }

    /// Its first `len` rows.
    fn up_to(mut self, len: usize) -> Redo {
        if len < self.log.len() {
            self.timeline = self.timeline_at(len.saturating_sub(1));
            self.forks.retain(|(timeline, _)| *timeline < self.timeline);
            self.log.truncate(len);
        }
        self
    }

    fn timeline_at(&self, at: usize) -> u32 {
        self.forks.iter().find(|(_, end)| at < *end).map_or(self.timeline, |(timeline, _)| *timeline)
    }
}

impl Disk {
    pub(super) fn new(places: &[Place], index: usize) -> Disk {
        let state = RegionState {
            cluster_id: ClusterId([1; 16]),
            region: places[index].name.clone(),
            role: if index == 0 { Role::Primary } else { Role::Secondary },
            acceptor: Acceptor::new(Record::first(Epoch(1), places[0].name.clone())),
            rejoining: false,
            system_id: Some(SystemId(1)),
        };
        let redo = Redo { timeline: 1, ..Redo::default() };
        Disk { kept: Arc::new(Kept::in_memory(state)), redo: Mutex::new(redo) }
    }

    /// The bug of a voter that has not written down what it promised.
    pub(super) fn forget(&self, primary: RegionName) {
        let forgotten = Acceptor::new(Record::first(Epoch(1), primary));
        let _ = self.kept.change(|state| state.acceptor = forgotten);
    }

    pub(super) fn len(&self) -> usize {
        lock(&self.redo).log.len()
    }

    /// The log, and what was kept aside.
    pub(super) fn contents(&self) -> (Vec<Row>, Vec<Row>) {
        let redo = lock(&self.redo);
        (redo.log.clone(), redo.aside.clone())
    }
}

/// One life of a daemon.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) index: usize,
    pub(super) life: u64,
    pub(super) disk: Arc<Disk>,
    pub(super) voter: Arc<Voter>,
    world: Weak<World>,
    me: RegionName,
    /// How fast its clock runs, percent.
    drift: u64,
    stop: CancellationToken,
    started: Instant,
    turn: tokio::sync::Mutex<()>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    part: Part,
    /// When it last answered a primary.
    answered: Option<Instant>,
    /// How far the primary was, as it said last.
    primary_len: usize,
    stream: Option<Taking>,
}

#[derive(Debug, Default)]
enum Part {
    #[default]
    Starting,
    Follower,
    Leader(Leading),
}

#[derive(Debug)]
struct Leading {
    epoch: Epoch,
    running: bool,
    acknowledges: bool,
    handed_over: Option<usize>,
    acknowledged: usize,
    /// When the newest beat left that each voter answered, and how far its redo is durable.
    answered: Vec<Option<Instant>>,
    durable: Vec<usize>,
    stop: CancellationToken,
}

/// A stream that is being taken.
#[derive(Debug)]
struct Taking {
    id: (usize, Epoch, u64),
    receiver: Receiver,
}

impl Node {
    pub(super) fn start(
        world: &Arc<World>,
        index: usize,
        life: u64,
        disk: Arc<Disk>,
        drift: u64,
        proposer: u64,
    ) -> Arc<Node> {
        let me = world.places[index].name.clone();
        let voter = Voter::with(VoterOptions {
            me: me.clone(),
            voters: world.places.clone(),
            // What it takes for a lease on its clock.
            lease: Duration::from_micros(LEASE_US * 100 / drift),
            commits_elsewhere: world.remote,
            kept: disk.kept.clone(),
            network: Box::new(Wire { world: Arc::downgrade(world), from: index, life }),
            proposer,
        });
        let node = Arc::new(Node {
            index,
            life,
            disk,
            voter,
            world: Arc::downgrade(world),
            me,
            drift,
            stop: CancellationToken::new(),
            started: now(),
            turn: tokio::sync::Mutex::new(()),
            state: Mutex::default(),
        });
        let seat: Arc<dyn Seat> = node.clone();
        node.voter.sit(Arc::downgrade(&seat));
        let (watching, observing) = (node.voter.clone(), node.clone());
        node.spawn(async move { watching.watch().await });
        node.spawn(async move { observing.observe().await });
        if index < world.regions {
            let taking = node.clone();
            node.spawn(async move { taking.take_part().await });
        }
        node
    }

    pub(super) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        tokio::spawn(self.stop.clone().run_until_cancelled_owned(work));
    }

    pub(super) fn kill(&self) {
        self.voter.stop();
        self.stop.cancel();
        if let Part::Leader(leading) = &lock(&self.state).part {
            leading.stop.cancel();
        }
    }

    pub(super) fn leads(&self) -> bool {
        matches!(&lock(&self.state).part, Part::Leader(leading) if leading.running)
    }

    pub(super) fn acknowledges(&self) -> bool {
        matches!(&lock(&self.state).part, Part::Leader(leading) if leading.running && leading.acknowledges)
    }

    pub(super) fn has_data(&self) -> bool {
        let state = self.disk.kept.get();
        state.system_id.is_some() && !state.rejoining
    }

    pub(super) fn is_able_follower(&self) -> bool {
        self.has_data() && matches!(lock(&self.state).part, Part::Follower)
    }

    pub(super) fn describe(&self) -> String {
        let kept = self.disk.kept.get();
        let record = kept.acceptor.record();
        let part = match &lock(&self.state).part {
            Part::Starting => "starting".into(),
            Part::Follower => format!("follows, rejoining {}", kept.rejoining),
            Part::Leader(l) => {
                format!("leads {}, runs {}, acknowledges {}", l.epoch, l.running, l.acknowledges)
            }
        };
        let promotion =
            record.promotion.as_ref().map(|p| (p.step, p.to.clone(), p.coordinator.clone(), p.attempt));
        format!(
            "{}: {part}; {} rows; accepted {} {} {promotion:?}, standing {:?}",
            self.index,
            self.disk.len(),
            record.epoch,
            record.primary,
            self.voter.standing()
        )
    }

    /// Shows the checks every record that this voter knows to be agreed. It looks again and again, as the order in which a
    /// `watch` wakes several is drawn by the runtime, and a seed must decide everything.
    async fn observe(self: Arc<Self>) {
        let mut last = None;
        loop {
            tokio::time::sleep(Duration::from_millis(7)).await;
            let agreed = self.voter.agreed().filter(|agreed| last != Some(agreed.number));
            if let (Some(known), Some(world)) = (agreed, self.world.upgrade()) {
                last = Some(known.number);
                world.checks.agreed(&known);
                world.checks.history(&known.record);
                world.tell(|| {
                    let p = known.record.promotion.as_ref();
                    let p = p.map(|p| format!("{} to {} at {:?} by {}", p.mode, p.to, p.step, p.coordinator));
                    let (epoch, primary) = (known.record.epoch, &known.record.primary);
                    let p = p.unwrap_or_default();
                    format!("{} knows {}: epoch {epoch} of {primary}, {p}", self.index, known.number)
                });
                world.record_changed();
            }
        }
    }

    async fn take_part(self: Arc<Self>) {
        loop {
            let starting = matches!(lock(&self.state).part, Part::Starting);
            if starting && self.voter.standing().is_none() {
                let _ = self.voter.change(&Change::Read).await;
            }
            self.reconcile().await;
            tokio::time::sleep(Duration::from_millis(11)).await;
        }
    }

    async fn reconcile(self: &Arc<Self>) {
        let Some(standing) = self.voter.standing() else { return };
        let _turn = self.turn.lock().await;
        // What is known may have changed while the turn was waited for.
        let standing = self.voter.standing().unwrap_or(standing);
        let handing = self.voter.accepted().promotion.is_some_and(|p| p.step == Step::HandOver);
        let kept = self.disk.kept.get();
        enum Do {
            Nothing,
            Lead,
            TakeOver,
            StepDown,
            Follow,
        }
        let what = match (standing, &mut lock(&self.state).part) {
            (Standing::Leads, Part::Leader(leading)) if leading.handed_over.is_some() && !handing => Do::Lead,
            (Standing::Leads | Standing::TakesOver, Part::Leader(leading)) => {
                let allowed = standing == Standing::Leads && leading.handed_over.is_none();
                if allowed && !leading.acknowledges {
                    self.begins_to_acknowledge(leading.epoch);
                }
                leading.acknowledges = allowed;
                Do::Nothing
            }
            (Standing::Leads, Part::Follower) if handing => Do::Nothing,
            (Standing::Leads | Standing::TakesOver, Part::Follower) => {
                if kept.rejoining || self.has_begun(kept.epoch()) { Do::Lead } else { Do::TakeOver }
            }
            (Standing::Leads | Standing::TakesOver, Part::Starting) => {
                let stopped = kept.role == Role::Secondary && handing;
                match stopped {
                    true => Do::Nothing,
                    false if self.has_begun(kept.epoch()) => Do::Lead,
                    false => Do::TakeOver,
                }
            }
            (Standing::Follows | Standing::Fenced, Part::Leader(leading)) => {
                if leading.handed_over.is_some() { Do::Follow } else { Do::StepDown }
            }
            (Standing::Follows | Standing::Fenced, Part::Starting) => {
                if kept.role == Role::Primary {
                    let _ =
                        self.disk.kept.change(|kept| (kept.role, kept.rejoining) = (Role::Secondary, true));
                }
                Do::Follow
            }
            (Standing::Follows | Standing::Fenced, Part::Follower) => Do::Nothing,
        };
        match what {
            Do::Nothing => {}
            Do::Follow => self.follow(),
            Do::StepDown => self.step_down(),
            Do::Lead => self.lead(false).await,
            Do::TakeOver => self.lead(true).await,
        }
    }

    fn has_begun(&self, epoch: Epoch) -> bool {
        u64::from(lock(&self.disk.redo).timeline) == epoch.0
    }

    fn begins_to_acknowledge(&self, epoch: Epoch) {
        let Some(world) = self.world.upgrade() else { return };
        let agreed = self.voter.agreed();
        if let Some(agreed) = agreed.filter(|agreed| agreed.record.epoch == epoch) {
            world.checks.promoted(&agreed.record, &self.disk.contents().0);
        }
    }

    fn follow(&self) {
        let state = &mut *lock(&self.state);
        if let Part::Leader(leading) = &state.part {
            leading.stop.cancel();
        }
        state.part = Part::Follower;
    }

    fn step_down(&self) {
        let _ = self.disk.kept.change(|kept| (kept.role, kept.rejoining) = (Role::Secondary, true));
        self.follow();
    }

    /// Starts the writer, `promoted` from a standby: on a timeline that has the number of the epoch.
    async fn lead(self: &Arc<Self>, promoted: bool) {
        let Some(world) = self.world.upgrade() else { return };
        let _ = self.disk.kept.change(|kept| (kept.role, kept.rejoining) = (Role::Primary, false));
        let start_us = 20_000 + world.dice(|dice| dice.below(200_000));
        tokio::time::sleep(Duration::from_micros(start_us)).await;
        let epoch = self.disk.kept.get().epoch();
        if promoted {
            let redo = &mut *lock(&self.disk.redo);
            let (timeline, len) = (redo.timeline, redo.log.len());
            redo.forks.push((timeline, len));
            redo.timeline = u32::try_from(epoch.0).unwrap_or(u32::MAX);
        }
        let count = world.places.len();
        let stop = CancellationToken::new();
        let leading = Leading {
            epoch,
            running: true,
            acknowledges: false,
            handed_over: None,
            acknowledged: self.disk.len(),
            answered: vec![None; count],
            durable: vec![0; count],
            stop: stop.clone(),
        };
        world.tell(|| format!("{} leads epoch {epoch} from {}", self.index, leading.acknowledged));
        {
            let state = &mut *lock(&self.state);
            if let Part::Leader(before) = &state.part {
                before.stop.cancel();
            }
            (state.part, state.stream) = (Part::Leader(leading), None);
        }
        let (node, of) = (self.clone(), stop.clone());
        self.spawn(async move { of.run_until_cancelled_owned(node.write()).await.unwrap_or_default() });
        for to in (0..count).filter(|to| *to != self.index) {
            let (node, of) = (self.clone(), stop.clone());
            let shipping = async move { node.ship(to, epoch).await };
            self.spawn(async move { of.run_until_cancelled_owned(shipping).await.unwrap_or_default() });
        }
    }

    /// The clients' load.
    async fn write(self: Arc<Self>) {
        let Some(world) = self.world.upgrade() else { return };
        loop {
            let pause_us = 10_000 + world.dice(|dice| dice.below(60_000));
            tokio::time::sleep(Duration::from_micros(pause_us)).await;
            let epoch = match &lock(&self.state).part {
                Part::Leader(leading) if leading.running => leading.epoch,
                _ => continue,
            };
            let id = world.dice(|dice| dice.below(u64::MAX));
            lock(&self.disk.redo).log.push(Row { id, epoch });
            self.acknowledge(&world);
        }
    }

    /// Lets commits return that may.
    fn acknowledge(&self, world: &Arc<World>) {
        let (log, state) = (&lock(&self.disk.redo).log, &mut *lock(&self.state));
        let Part::Leader(leading) = &mut state.part else { return };
        let allowed = leading.acknowledges || world.bug == Bug::AcknowledgesEarly;
        if !allowed || !leading.running {
            return;
        }
        let age_us =
            |at: &Option<Instant>| at.map(|at| -i64::try_from(at.elapsed().as_micros()).unwrap_or(i64::MAX));
        let others = leading.answered.iter().enumerate().filter(|(index, _)| *index != self.index);
        let answered: Vec<Option<i64>> = others.map(|(_, at)| age_us(at)).collect();
        let length = Duration::from_micros(LEASE_US * 100 / self.drift);
        let lease = Lease { voters: world.places.len(), length };
        if !lease.holds(0, &answered) && world.bug != Bug::NoLease {
            return;
        }
        let remote = leading.durable.iter().copied().max().unwrap_or(0);
        let upto = if world.remote { remote.min(log.len()) } else { log.len() };
        if leading.acknowledged < upto && !world.has_begun(leading.epoch) {
            let (epoch, me) = (leading.epoch, self.index);
            world.checks.fail(format!("{me} acknowledges in epoch {epoch}, whose promotion is not over"));
        }
        while leading.acknowledged < upto {
            let at = leading.acknowledged;
            leading.acknowledged += 1;
            world.checks.acknowledged(self.index, log[at], at);
        }
    }

    /// Ships to one region, or asks one witness, for as long as this life leads.
    async fn ship(self: Arc<Self>, to: usize, epoch: Epoch) {
        let Some(world) = self.world.upgrade() else { return };
        let (mut stream, mut count) = (None, 0_u64);
        loop {
            tokio::time::sleep(BEAT).await;
            let left = now();
            if to >= world.regions {
                let body = Ask::Support(m::SupportRequest { epoch: epoch.0 });
                if self.voter.ask(&world.places[to].name, body, LEASE / 4).await.is_ok() {
                    self.answered(&world, to, left, 0);
                }
                continue;
            }
            let Some(at) = stream else {
                count += 1;
                let id = (self.index, epoch, self.life << 32 | count);
                let asked = ship(&world, &self, to, async |node| node.ready(id).await).await;
                match asked {
                    Some(Ok(position)) => stream = self.begin(&world, to, id, position).await,
                    // It knows of a later epoch, or of none: what is so is found out.
                    Some(Err(Kind::StaleEpoch)) => drop(self.voter.change(&Change::Read).await),
                    _ => {}
                }
                continue;
            };
            let redo = lock(&self.disk.redo).clone();
            let end = redo.log.len().min(at + BATCH);
            let id = (self.index, epoch, self.life << 32 | count);
            let taken = ship(&world, &self, to, async |node| node.take(&world, id, &redo, at, end)).await;
            match taken {
                Some(Some(len)) => {
                    stream = Some(len);
                    self.answered(&world, to, left, len);
                }
                _ => stream = None,
            }
        }
    }

    fn answered(&self, world: &Arc<World>, voter: usize, left: Instant, len: usize) {
        if let Part::Leader(leading) = &mut lock(&self.state).part {
            leading.answered[voter] = leading.answered[voter].max(Some(left));
            leading.durable[voter] = len;
        }
        self.acknowledge(world);
    }

    /// What a region's answer to the probe leads to: a stream from somewhere, or a seed first.
    async fn begin(
        self: &Arc<Self>,
        world: &Arc<World>,
        to: usize,
        id: (usize, Epoch, u64),
        position: Position,
    ) -> Option<usize> {
        let redo = lock(&self.disk.redo).clone();
        let durable_lsn = Lsn(redo.log.len() as u64);
        let log = Log { horizon_lsn: Lsn::ZERO, durable_lsn, history: redo.history() };
        let planned = plan(&log, position);
        world.tell(|| {
            let (forks, timeline, len) = (&redo.forks, redo.timeline, redo.log.len());
            format!("{} at {timeline}/{len} after {forks:?}, {to} at {position:?}: {planned:?}", self.index)
        });
        match planned {
            Plan::Stream { from_lsn } => Some(usize::try_from(from_lsn.0).unwrap_or(usize::MAX)),
            Plan::Diverged { why } => {
                world.checks.fail(format!("{to} is ahead of its primary {}: {why}", self.index));
                None
            }
            // Either brings all rows of the primary.
            Plan::Seed { .. } | Plan::Rewind { .. } => {
                let took_us = 200_000 + world.dice(|dice| dice.below(600_000));
                tokio::time::sleep(Duration::from_micros(took_us)).await;
                let redo = lock(&self.disk.redo).clone();
                let seeded = ship(world, self, to, async |node| node.seed(id, redo).await).await;
                world.tell(|| format!("{} seeds {to}: {seeded:?}", self.index));
                None
            }
        }
    }

    /// A primary wants to stream.
    async fn ready(self: &Arc<Self>, id: (usize, Epoch, u64)) -> Result<Position, Kind> {
        let Some(world) = self.world.upgrade() else { return Err(Kind::Busy) };
        let name = &world.places[id.0].name;
        if id.1 > self.voter.accepted().epoch {
            let _ = self.voter.change(&Change::Read).await;
        }
        let record = self.voter.accepted();
        if !record.supports(name, id.1) {
            return Err(if id.1 > record.epoch { Kind::Busy } else { Kind::StaleEpoch });
        }
        let state = &mut *lock(&self.state);
        if !matches!(state.part, Part::Follower) {
            return Err(Kind::NotAllowed);
        }
        let redo = lock(&self.disk.redo);
        let (timeline, durable_lsn) = (Timeline(redo.timeline), Lsn(redo.log.len() as u64));
        let epoch = redo.log.last().map_or(Epoch(0), |row| row.epoch);
        state.stream = Some(Taking { id, receiver: Receiver::new(epoch, timeline, durable_lsn) });
        let rejoining = self.disk.kept.get().rejoining;
        Ok(Position { needs_seed: rejoining, can_rewind: rejoining, timeline, durable_lsn })
    }

    /// Takes rows `[at, end)` of the primary's log, and answers how far it has come; none when the stream is over.
    fn take(
        &self,
        world: &Arc<World>,
        id: (usize, Epoch, u64),
        theirs: &Redo,
        at: usize,
        end: usize,
    ) -> Option<usize> {
        let state = &mut *lock(&self.state);
        let supported = self.voter.accepted().supports(&world.places[id.0].name, id.1);
        if !supported {
            state.stream = None;
        }
        let taking = state.stream.as_mut().filter(|taking| taking.id == id)?;
        let mine = &mut *lock(&self.disk.redo);
        let history = theirs.history();
        if taking.receiver.history(history).is_err() {
            state.stream = None;
            return None;
        }
        for index in at..end {
            let timeline = theirs.timeline_at(index);
            let (begin_lsn, end_lsn) = (Lsn(index as u64), Lsn(index as u64 + 1));
            let batch = Batch {
                epoch: theirs.log[index].epoch,
                timeline: Timeline(timeline),
                begin_lsn,
                end_lsn,
                context_lsn: begin_lsn,
                newest_commit_us: 0,
                redo_crc32c: 0,
                payload: Bytes::new(),
                ends_in_record: false,
            };
            match taking.receiver.batch(&batch) {
                Verdict::Take => {
                    mine.log.push(theirs.log[index]);
                    mine.timeline = timeline;
                    mine.forks = theirs.forks.iter().copied().filter(|(t, _)| *t < timeline).collect();
                }
                Verdict::Duplicate => {}
                Verdict::Refuse(kind, why) => {
                    world.tell(|| format!("{} refuses redo: {kind:?} {why}", self.index));
                    state.stream = None;
                    return None;
                }
            }
        }
        state.answered = Some(now());
        state.primary_len = theirs.log.len();
        Some(mine.log.len())
    }

    /// Takes everything anew; what is here beyond what it has in common with that is kept aside first.
    async fn seed(self: &Arc<Self>, id: (usize, Epoch, u64), theirs: Redo) -> bool {
        let _turn = self.turn.lock().await;
        let Some(world) = self.world.upgrade() else { return false };
        let supported = self.voter.accepted().supports(&world.places[id.0].name, id.1);
        let state = &mut *lock(&self.state);
        if !supported || !matches!(state.part, Part::Follower) {
            return false;
        }
        let mine = &mut *lock(&self.disk.redo);
        let common = mine.log.iter().zip(&theirs.log).take_while(|(a, b)| a == b).count();
        let surplus: Vec<Row> = mine.log[common..].to_vec();
        mine.aside.extend(surplus);
        (mine.log, mine.forks, mine.timeline) = (theirs.log, theirs.forks, theirs.timeline);
        state.stream = None;
        self.disk.kept.change(|kept| kept.rejoining = false).is_ok()
    }

    async fn vote(self: &Arc<Self>, accept: m::Accept, from: &RegionName) -> Result<m::Voted, Refusal> {
        let failed = |e: String| Refusal::new(Kind::Failed, e);
        let proposal = wire::to_accepted(&accept.proposal.unwrap_or_default()).map_err(failed)?;
        let next = wire::to_number(accept.next.unwrap_or_default());
        let _turn = self.turn.lock().await;
        let kept = self.disk.kept.get();
        let over = !proposal.record.supports(kept.primary(), kept.epoch());
        if kept.acceptor.would_accept(proposal.number) && over {
            let forbidden =
                matches!(proposal.record.standing(&self.me), Standing::Follows | Standing::Fenced);
            let runs =
                matches!(&lock(&self.state).part, Part::Leader(leading) if leading.handed_over.is_none());
            if runs && forbidden {
                self.step_down();
            }
            lock(&self.state).stream = None;
        }
        let answer = self.voter.accept(&proposal, next).map_err(|e| failed(e.to_string()))?;
        Ok(wire::answer(&answer, wire::grant(&self.grant(&proposal.record, from))))
    }

    fn grant(&self, record: &Record, from: &RegionName) -> Grant {
        let state = lock(&self.state);
        let redo = lock(&self.disk.redo);
        let runs = matches!(&state.part, Part::Leader(leading) if leading.handed_over.is_none());
        let forgets = self.world.upgrade().is_some_and(|world| world.bug == Bug::ForgetsAnswers);
        let silent = match state.answered {
            _ if forgets => Duration::from_secs(1000),
            Some(at) => at.elapsed(),
            None => self.started.elapsed(),
        };
        let silent_us = u64::try_from(silent.as_micros()).unwrap_or(u64::MAX);
        let len = redo.log.len();
        let region = self.world.upgrade().is_some_and(|world| self.index < world.regions);
        Grant {
            has_data: region && self.has_data(),
            has_redo: region,
            timeline: Timeline(redo.timeline),
            durable_lsn: Lsn(len as u64),
            // On its own clock; what goes elsewhere is seen by that one's clock.
            silent_us: if *from == self.me { silent_us } else { silent_us * self.drift / 100 },
            primary_lsn: Lsn(len.max(state.primary_len) as u64),
            stopped: !runs && record.promotion.as_ref().is_some_and(|p| p.from == self.me),
        }
    }

    /// How this daemon's clock shows a duration on another's.
    pub(super) fn seen_us(&self, us: u64) -> u64 {
        us * 100 / self.drift
    }

    async fn hand_over(self: &Arc<Self>, request: m::HandOverRequest) -> Result<m::HandedOver, Refusal> {
        let busy = |reason: &str| Refusal::new(Kind::Busy, reason);
        let to: RegionName = request.to.parse().map_err(|_| busy("no name"))?;
        let world = self.world.upgrade().ok_or_else(|| busy("it is over"))?;
        let to_index = world.places.iter().position(|place| place.name == to).ok_or_else(|| busy("who?"))?;
        let recorded = || self.voter.accepted().hands_over(&to, Epoch(request.epoch));
        if !recorded() {
            self.voter.change(&Change::Read).await?;
        }
        let _turn = self.turn.lock().await;
        let reach = |len: Option<usize>| m::HandedOver {
            end_lsn: len.unwrap_or(0) as u64,
            timeline: lock(&self.disk.redo).timeline,
            ..m::HandedOver::default()
        };
        match &mut lock(&self.state).part {
            Part::Leader(Leading { handed_over: Some(end), .. }) => return Ok(reach(Some(*end))),
            Part::Leader(leading) if recorded() => leading.running = false,
            _ => return Err(busy("it does not lead, or no such switchover is recorded")),
        }
        let stop_us = 10_000 + world.dice(|dice| dice.below(100_000));
        tokio::time::sleep(Duration::from_micros(stop_us)).await;
        let end = self.disk.len();
        let applied = async {
            loop {
                match &lock(&self.state).part {
                    Part::Leader(leading) if leading.durable[to_index] >= end => return,
                    _ => {}
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let done = tokio::time::timeout(HAND_OVER, applied).await.is_ok();
        if done {
            let kept = self.disk.kept.change(|kept| kept.role = Role::Secondary);
            kept.map_err(|e| busy(&e.to_string()))?;
        }
        let Part::Leader(leading) = &mut lock(&self.state).part else { return Err(busy("it does not lead")) };
        if done {
            leading.handed_over = Some(end);
            return Ok(reach(Some(end)));
        }
        leading.running = true;
        Err(busy("not applied in time"))
    }

    async fn get_ready(self: &Arc<Self>, request: m::GetReadyRequest) -> Result<Answer, Refusal> {
        let busy = |reason: &str| Refusal::new(Kind::Busy, reason);
        let world = self.world.upgrade().ok_or_else(|| busy("it is over"))?;
        if !self.is_able_follower() {
            return Err(busy("no data to lead with"));
        }
        if !request.gather_from.is_empty() && world.bug != Bug::GathersNothing {
            let from = world.places.iter().position(|p| p.name.as_str() == request.gather_from);
            let from = from.ok_or_else(|| busy("who?"))?;
            let shall_lead = |record: Record| {
                record.promotion.is_some_and(|p| p.to == self.me && p.epoch.0 == request.epoch)
            };
            let theirs = ship(&world, self, from, async |node| {
                shall_lead(node.voter.accepted()).then(|| lock(&node.disk.redo).clone())
            });
            let theirs = theirs.await.flatten().ok_or_else(|| busy("the survivor does not answer"))?;
            let _turn = self.turn.lock().await;
            let gathers = self.voter.accepted().gathers(&self.me, Epoch(request.epoch));
            if !gathers || !self.is_able_follower() {
                return Err(busy("it is over"));
            }
            let theirs = theirs.up_to(usize::try_from(request.gather_to_lsn).unwrap_or(usize::MAX));
            let mine = &mut *lock(&self.disk.redo);
            let continues = theirs.log.starts_with(&mine.log);
            if !continues {
                return Err(busy("the survivor's redo does not continue this"));
            }
            (mine.log, mine.timeline, mine.forks) = (theirs.log, theirs.timeline, theirs.forks);
        }
        let apply_us = world.dice(|dice| dice.below(50_000));
        tokio::time::sleep(Duration::from_micros(apply_us)).await;
        Ok(Answer::ReadyLsn(self.disk.len() as u64))
    }

    async fn lead_epoch(self: &Arc<Self>, epoch: Epoch) -> Result<Answer, Refusal> {
        let agreed =
            || self.voter.agreed().is_some_and(|a| (a.record.epoch, &a.record.primary) == (epoch, &self.me));
        if !agreed() {
            self.voter.change(&Change::Read).await?;
        }
        if !agreed() {
            return Err(Refusal::new(Kind::Busy, "it does not lead that"));
        }
        self.reconcile().await;
        let leads = matches!(&lock(&self.state).part, Part::Leader(leading) if leading.epoch == epoch);
        if leads { Ok(Answer::Done(true)) } else { Err(Refusal::new(Kind::Busy, "not yet")) }
    }

    fn support(self: &Arc<Self>, name: &RegionName, epoch: Epoch) -> Result<Answer, Refusal> {
        let record = self.voter.accepted();
        if record.supports(name, epoch) {
            lock(&self.state).answered = Some(now());
            return Ok(Answer::Done(true));
        }
        if epoch > record.epoch {
            let voter = self.voter.clone();
            self.spawn(async move { drop(voter.change(&Change::Read).await) });
        }
        Err(Refusal::new(Kind::StaleEpoch, "another leads"))
    }

    /// Answers what `from` asks.
    pub(super) async fn reply(self: Arc<Self>, from: RegionName, body: Ask) -> Answer {
        let answered = match body {
            Ask::Prepare(number) => self.voter.answer_prepare(number),
            Ask::Accept(accept) => self.vote(accept, &from).await.map(Answer::Voted),
            Ask::Learn(agreed) => self.voter.answer_learn(&agreed),
            Ask::Survey(_) => Ok(Answer::Granted(m::Granted {
                coordinates: self.voter.coordinates(),
                agreed: self.voter.agreed().as_ref().map(wire::accepted),
                ..wire::grant(&self.grant(&self.voter.accepted(), &from))
            })),
            Ask::HandOver(request) => self.hand_over(request).await.map(Answer::HandedOver),
            Ask::GetReady(request) => self.get_ready(request).await,
            Ask::Lead(request) => self.lead_epoch(Epoch(request.epoch)).await,
            Ask::Support(request) => self.support(&from, Epoch(request.epoch)),
            _ => Err(Refusal::new(Kind::Protocol, "not simulated")),
        };
        answered.unwrap_or_else(Answer::Refusal)
    }
}

impl Seat for Node {
    fn answer(&self, from: RegionName, body: Ask) -> Pin<Box<dyn Future<Output = Answer> + Send + '_>> {
        let node =
            self.world.upgrade().and_then(|world| world.node(self.index)).filter(|n| n.life == self.life);
        Box::pin(async move {
            match node {
                Some(node) => node.reply(from, body).await,
                None => Answer::Refusal(Refusal::new(Kind::Busy, "it is over")),
            }
        })
    }
}
