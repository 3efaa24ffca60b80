//! A daemon: the real voter and, in a region, the real owner of its part; around them a [`Model`] of what is
//! not ours: PostgreSQL, the disks under it, and the streams between regions, whose redo is a row of numbers.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use bytes::Bytes;
use coordination::leadership::{Change, Loss, Next, Order};
use coordination::planted::{self, Bug};
use coordination::region::{Database, Part};
use coordination::register::Accepted;
use coordination::{Acceptor, Electorate, Leadership, Lineage, Mode, Redo as Reach, Standing, Step};
use primary::gate::Lease;
use primary::shipper::machine::{Log, Plan, Position, Redo as Has, plan};
use proto::messages::{self as m, Refusal, control_request, control_response, refusal::Kind};
use proto::{Batch, BatchId, ClusterId, Epoch, Lsn, RegionName, SystemId, Timeline, TimelineHistory};
use replicator::config::{Place, Role};
use replicator::part::{Cluster, Observed, Owner, Trouble, lease};
use replicator::region_file::{RegionFile, RegionState};
use replicator::voter::{Seat, Voter, VoterOptions, of_a_voter, wire};
use runtime::task::Tasks;
use secondary::receiver::{Receiver, Verdict};
use tokio_util::sync::CancellationToken;

use super::network::{Wire, ship};
use super::{LEASE_US, World, lock};

type Ask = control_request::Body;
type Answer = control_response::Body;

/// How often a primary ships, and beats when there is nothing.
const BEAT: Duration = Duration::from_millis(100);

/// The most commits in one batch on the way.
const BATCH: usize = 50;

/// One commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) id: u64,
    pub(super) epoch: Epoch,
}

/// What a crash leaves.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) kept: Arc<RegionFile>,
    redo: Mutex<Redo>,
    /// A writer goes on running that the daemon before left behind.
    writer_left: AtomicBool,
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

    /// What tells the row at this place from every other that was ever written.
    fn batch_id(&self, at: usize) -> Option<BatchId> {
        let row = self.log.get(at)?;
        Some(BatchId {
            epoch: row.epoch,
            timeline: Timeline(self.timeline_at(at)),
            begin_lsn: Lsn(at as u64),
            end_lsn: Lsn(at as u64 + 1),
            newest_commit_us: i64::from_le_bytes(row.id.to_le_bytes()),
            redo_crc32c: 0,
        })
    }

    fn timeline_at(&self, at: usize) -> u32 {
        self.forks.iter().find(|(_, end)| at < *end).map_or(self.timeline, |(timeline, _)| *timeline)
    }
}

/// What a directory that was just made says.
fn fresh(places: &[Place], index: usize, id: u64, voters: Option<Electorate>) -> RegionState {
    let role = if index == 0 { Role::Primary } else { Role::Secondary };
    let first = Leadership { voters, ..Leadership::first(Epoch(1), places[0].name.clone()) };
    RegionState::new(ClusterId([1; 16]), places[index].name.clone(), role, first, id)
}

impl Disk {
    pub(super) fn new(places: &[Place], index: usize, id: u64, voters: Option<Electorate>) -> Disk {
        let state = fresh(places, index, id, voters);
        Disk {
            kept: Arc::new(RegionFile::in_memory(state)),
            redo: Mutex::default(),
            writer_left: AtomicBool::new(false),
        }
    }

    /// Everything on it is gone; the directory that is made anew has `id`.
    pub(super) fn lose(&self, places: &[Place], index: usize, id: u64, voters: Option<Electorate>) {
        let _ = self.kept.change(|state| *state = fresh(places, index, id, voters));
        *lock(&self.redo) = Redo::default();
        self.writer_left.store(false, Ordering::Relaxed);
    }

    /// Whether its voter remembers what it has promised.
    pub(super) fn remembers(&self) -> bool {
        self.kept.get().memory.remembers
    }

    pub(super) fn has_data(&self) -> bool {
        let state = self.kept.get();
        state.system_id.is_some() && !state.rejoining
    }

    /// The bug of a voter that has not written down what it promised.
    pub(super) fn forget(&self, primary: RegionName) {
        let forgotten = Acceptor::new(Leadership::first(Epoch(1), primary));
        let _ = self.kept.change(|state| state.acceptor = forgotten);
    }

    /// It has data on the line of `record`, and did not lead last.
    pub(super) fn can_lead(&self, record: &Leadership) -> bool {
        let redo = {
            let redo = lock(&self.redo);
            Reach::new(Timeline(redo.timeline), Lsn(redo.log.len() as u64))
        };
        let follows = self.has_data() && self.kept.get().role == Role::Secondary;
        follows && Lineage::of(record).on_line(redo).is_some()
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
    /// None for a witness.
    owner: Option<Arc<Owner<Model>>>,
    world: Weak<World>,
    me: RegionName,
    /// How fast its clock runs, percent.
    drift: u64,
    tasks: Arc<Tasks>,
}

/// A region's PostgreSQL, volume and streams.
#[derive(Debug)]
pub(super) struct Model {
    index: usize,
    life: u64,
    disk: Arc<Disk>,
    voter: Arc<Voter>,
    world: Weak<World>,
    me: RegionName,
    drift: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The volume is open.
    open: bool,
    leading: Option<Leading>,
    /// How far the primary was, as it said last.
    primary_len: usize,
    stream: Option<Taking>,
    /// A region has said that this primary's epoch is over.
    refused: bool,
}

#[derive(Debug)]
struct Leading {
    epoch: Epoch,
    running: bool,
    acknowledges: bool,
    acknowledged: usize,
    /// When the newest question left that each voter has answered, microseconds on this daemon's clock.
    answered: Vec<Option<u64>>,
    /// How far each region's redo is durable.
    durable: Vec<usize>,
    /// What ships, writes and asks for it; it ends with this.
    _tasks: Tasks,
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
            regions: world.places.iter().take(world.regions).map(|place| place.name.clone()).collect(),
            agreement: m::Agreement::default(),
            // What it takes for a lease on its clock.
            lease: Duration::from_micros(LEASE_US * 100 / drift),
            commits_elsewhere: world.remote,
            kept: disk.kept.clone(),
            network: Box::new(Wire { world: Arc::downgrade(world), from: index, life }),
            proposer,
        });
        let tasks = Arc::new(Tasks::new());
        let (weak, is_region) = (Arc::downgrade(world), index < world.regions);
        let owner = is_region.then(|| {
            let model = Model {
                index,
                life,
                disk: disk.clone(),
                voter: voter.clone(),
                world: weak.clone(),
                me: me.clone(),
                drift,
                state: Mutex::default(),
            };
            Owner::new(me.clone(), voter.clone(), disk.kept.clone(), model)
        });
        let node = Arc::new(Node { index, life, disk, voter, owner, world: weak, me, drift, tasks });
        let seat: Arc<dyn Seat> = node.clone();
        node.voter.sit(Arc::downgrade(&seat));
        let (watching, observing) = (node.voter.clone(), node.clone());
        match is_region {
            true => node.spawn(async move { watching.watch().await }),
            false => node.spawn(async move { watching.watch_only().await }),
        }
        node.spawn(async move { observing.observe().await });
        if world.lies && !is_region {
            let liar = node.clone();
            node.spawn(async move { liar.tell_lies().await });
        }
        if let Some(owner) = node.owner.clone() {
            let slow = !world.checks.is_gentle();
            let opens_after_us = world.dice(|dice| match dice.one_in(6) && slow {
                true => dice.below(6_000_000),
                false => dice.below(100_000),
            });
            let opening = owner.clone();
            node.spawn(async move {
                tokio::time::sleep(Duration::from_micros(opens_after_us)).await;
                lock(&opening.cluster().state).open = true;
            });
            node.spawn(async move { owner.run().await });
        }
        node
    }

    pub(super) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(work);
    }

    fn model(&self) -> Option<&Model> {
        self.owner.as_ref().map(|owner| owner.cluster())
    }

    /// Told when the daemon is killed.
    pub(super) fn dies(&self) -> CancellationToken {
        self.tasks.token()
    }

    pub(super) fn kill(&self) {
        self.voter.stop();
        self.tasks.stop();
        let Some(model) = self.model() else { return };
        let leading = lock(&model.state).leading.take();
        // PostgreSQL may outlive the daemon.
        let outlives = leading.is_some_and(|leading| leading.running)
            && self.world.upgrade().is_some_and(|world| world.dice(|dice| dice.one_in(2)));
        if outlives {
            self.disk.writer_left.store(true, Ordering::Relaxed);
        }
    }

    pub(super) fn leads(&self) -> bool {
        self.model().is_some_and(|model| lock(&model.state).leading.as_ref().is_some_and(|l| l.running))
    }

    pub(super) fn acknowledges(&self) -> bool {
        let acknowledges = |leading: &Leading| leading.running && leading.acknowledges;
        self.model().is_some_and(|model| lock(&model.state).leading.as_ref().is_some_and(acknowledges))
    }

    pub(super) fn has_data(&self) -> bool {
        self.disk.has_data()
    }

    /// Its redo was not cut off by an epoch that began since: a region that is ordered to lead looks at this
    /// first.
    pub(super) fn is_on_line(&self, record: &Leadership) -> bool {
        let redo = self.model().map(|model| model.observe().durable);
        redo.is_some_and(|redo| Lineage::of(record).on_line(redo).is_some())
    }

    pub(super) fn is_able_follower(&self) -> bool {
        self.owner.as_ref().is_some_and(|owner| owner.able_follower().is_ok())
    }

    /// It should lead, and says that it has no data for that.
    pub(super) fn has_lost(&self) -> bool {
        let leads = self.voter.standing().is_some_and(|standing| !standing.forbids());
        leads && self.disk.kept.get().system_id.is_none()
    }

    pub(super) fn describe(&self) -> String {
        let kept = self.disk.kept.get();
        let record = kept.acceptor.record();
        let part = self.owner.as_ref().map(|owner| format!("{:?} {}", owner.part(), owner.trouble()));
        let promotion =
            record.promotion.as_ref().map(|p| (p.step, p.to.clone(), p.coordinator.clone(), p.attempt));
        format!(
            "{}: {part:?}, rejoining {}; {} rows; accepted {} {} {promotion:?}, standing {:?}, voters {:?}",
            self.index,
            kept.rejoining,
            self.disk.len(),
            record.epoch,
            record.primary,
            self.voter.standing(),
            record.voters
        )
    }

    /// Shows the checks every record that this voter knows to be agreed. It looks again and again, as the
    /// order in which a `watch` wakes several is drawn by the runtime, and a seed must decide everything.
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
                    let voters = known.record.voters.as_ref();
                    let voters =
                        voters.map(|v| (v.steps, v.now.to_string(), v.before.is_some(), v.lost.to_string()));
                    format!(
                        "{} knows {}: epoch {epoch} of {primary}, {p} {voters:?}",
                        self.index, known.number
                    )
                });
                world.record_changed();
            }
        }
    }

    /// A record that this witness has made up: a region leads a new epoch. Half of them follow from what is
    /// agreed.
    fn lie(&self) -> Option<m::Accepted> {
        let world = self.world.upgrade().filter(|world| world.lies && world.dice(|dice| dice.one_in(2)))?;
        let acceptor = self.disk.kept.get().acceptor.clone();
        let (to, id, follows) = world
            .dice(|dice| (dice.below(world.regions as u64), 1 + dice.below(u64::MAX - 1), dice.one_in(2)));
        let to = world.places[usize::try_from(to).unwrap_or(0)].name.clone();
        let order = Order {
            id,
            mode: Mode::Failover,
            to: to.clone(),
            by: to.clone(),
            forced: false,
            lost: [].into(),
            at_us: 0,
        };
        let next = Next::Promote { fork_lsn: Lsn::ZERO, parent: Timeline(1), loss: Loss::default() };
        let finish = Next::Finish { at_us: 0, write_gap_us: 0 };
        let advance = |next| Change::Advance { id, attempt: 0, next, done: Vec::new() };
        let mut record = acceptor.record().apply(&Change::Begin(order)).ok()?;
        for change in [advance(next), advance(finish)] {
            record = record.apply(&change).ok()?;
        }
        if !follows {
            record = Leadership { primary: to, ..Leadership::first(Epoch(1), self.me.clone()) };
        }
        let number = acceptor.promised().next(id, false);
        Some(wire::accepted(&Accepted { number, record }))
    }

    /// Says again and again that something is agreed which is not.
    async fn tell_lies(self: Arc<Self>) {
        loop {
            let Some(world) = self.world.upgrade() else { return };
            let (pause_us, to) = world.dice(|dice| (dice.below(4_000_000), dice.below(world.regions as u64)));
            tokio::time::sleep(Duration::from_micros(pause_us)).await;
            let to = &world.places[usize::try_from(to).unwrap_or(0)].name;
            if let Some(lie) = self.lie() {
                let _ = self.voter.ask(to, Ask::Learn(lie), Duration::from_secs(1)).await;
            }
        }
    }

    /// Answers what `from` asks.
    pub(super) async fn reply(self: Arc<Self>, from: RegionName, body: Ask) -> Answer {
        let not_here = || Refusal::new(Kind::NotAllowed, "a witness has no data");
        let owner = self.owner.as_ref().ok_or_else(not_here);
        let answered = match (body, owner) {
            (Ask::Prepare(number), _) => self.voter.answer_prepare(number),
            (body, _) if of_a_voter(&body) => self.voter.answer(&from, body),
            (Ask::Accept(accept), Ok(owner)) => owner.vote(accept).await.map(Answer::Voted),
            (Ask::Accept(accept), Err(_)) => self.voter.witness_vote(accept).map(Answer::Voted),
            (Ask::Survey(_), Ok(owner)) => Ok(Answer::Granted(owner.survey())),
            (Ask::Survey(_), Err(_)) => {
                let survey = self.voter.witness_survey();
                let lie = self.lie();
                Ok(Answer::Granted(m::Granted { agreed: lie.or(survey.agreed.clone()), ..survey }))
            }
            (Ask::HandOver(request), Ok(owner)) => owner.ask_hand_over(request).await.map(Answer::HandedOver),
            (Ask::GetReady(request), Ok(owner)) => {
                owner.ask_get_ready(request).await.map(|lsn| Answer::ReadyLsn(lsn.0))
            }
            (Ask::Lead(request), Ok(owner)) => owner.ask_lead(request).await.map(|()| Answer::Done(true)),
            (_, Err(refusal)) => Err(refusal),
            (_, Ok(_)) => Err(Refusal::new(Kind::Protocol, "not simulated")),
        };
        let mut answer = answered.unwrap_or_else(Answer::Refusal);
        // On its own clock; what goes elsewhere is seen by that one's clock.
        if let Answer::Voted(m::Voted { body: Some(m::voted::Body::Accepted(granted)) })
        | Answer::Granted(granted) = &mut answer
            && from != self.me
        {
            granted.silent_us = granted.silent_us.saturating_mul(self.drift) / 100;
        }
        if let (Answer::Voted(m::Voted { body: Some(m::voted::Body::Accepted(granted)) }), Some(world)) =
            (&answer, self.world.upgrade())
        {
            world.tell(|| {
                let m::Granted { has_data, open, stopped, durable_lsn, .. } = granted;
                format!(
                    "{} grants {from}: to {durable_lsn}, data {has_data}, open {open}, stopped {stopped}",
                    self.index
                )
            });
        }
        answer
    }

    /// How this daemon's clock shows a duration on another's.
    pub(super) fn seen_us(&self, us: u64) -> u64 {
        us.saturating_mul(100) / self.drift
    }

    /// Ships to one region for as long as this life leads.
    async fn ship(self: Arc<Self>, to: usize, epoch: Epoch) {
        let Some(world) = self.world.upgrade() else { return };
        let (mut stream, mut count) = (None, 0_u64);
        loop {
            tokio::time::sleep(BEAT).await;
            let Some(at) = stream else {
                count += 1;
                let id = (self.index, epoch, self.life << 32 | count);
                let history = lock(&self.disk.redo).history();
                let asked = ship(&world, &self, to, async |node| node.ready(id, &history).await).await;
                match asked {
                    Some(Ok(position)) => stream = self.begin(&world, to, id, position).await,
                    Some(Err(Kind::StaleEpoch)) => {
                        if let Some(model) = self.model() {
                            lock(&model.state).refused = true;
                        }
                    }
                    _ => {}
                }
                continue;
            };
            let redo = lock(&self.disk.redo).clone();
            let end = redo.log.len().min(at + BATCH);
            let id = (self.index, epoch, self.life << 32 | count);
            let taken = ship(&world, &self, to, async |node| node.take(&world, id, &redo, at, end)).await;
            stream = taken.flatten();
            if let (Some(len), Some(model)) = (stream, self.model()) {
                if let Some(leading) = &mut lock(&model.state).leading {
                    leading.durable[to] = len;
                }
                model.release(&world);
            }
        }
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
        let common = match &position {
            Position::Data { redo: theirs, .. } => theirs.common,
            Position::NoData { .. } => None,
        };
        let there = common.and_then(|common| redo.batch_id(usize::try_from(common.begin_lsn.0).ok()?));
        let log = Log { horizon_lsn: Lsn::ZERO, durable_lsn, history: redo.history(), there };
        let planned = plan(&log, &position);
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
                let system_id = self.disk.kept.get().system_id;
                let seeded = ship(world, self, to, async |node| node.seed(id, redo, system_id)).await;
                world.tell(|| format!("{} seeds {to}: {seeded:?}", self.index));
                None
            }
        }
    }

    /// A primary wants to stream.
    async fn ready(
        self: &Arc<Self>,
        id: (usize, Epoch, u64),
        theirs: &TimelineHistory,
    ) -> Result<Position, Kind> {
        let Some(world) = self.world.upgrade() else { return Err(Kind::Busy) };
        let name = &world.places[id.0].name;
        let owner = self.owner.as_ref().ok_or(Kind::NotAllowed)?;
        owner.admit(name, id.1).await.map_err(|refusal| refusal.kind())?;
        let state = &mut *lock(&owner.cluster().state);
        let redo = lock(&self.disk.redo);
        let (timeline, durable_lsn) = (Timeline(redo.timeline), Lsn(redo.log.len() as u64));
        let epoch = redo.log.last().map_or(Epoch(0), |row| row.epoch);
        state.stream = Some(Taking { id, receiver: Receiver::new(epoch, timeline, durable_lsn) });
        let (led, has) = (self.disk.kept.get().rejoining, self.has_data());
        if !led && !has {
            return Ok(Position::NoData { why: String::new() });
        }
        let common_end = redo.history().common_end(theirs).min(durable_lsn);
        let common = usize::try_from(common_end.0).unwrap_or(usize::MAX).checked_sub(1);
        let redo = Has { timeline, durable_lsn, common: common.and_then(|at| redo.batch_id(at)) };
        Ok(Position::Data { led, can_rewind: led, redo })
    }

    /// Takes rows `[at, end)` of the primary's log, and answers how far it has come; none when the stream is
    /// over.
    fn take(
        &self,
        world: &Arc<World>,
        id: (usize, Epoch, u64),
        theirs: &Redo,
        at: usize,
        end: usize,
    ) -> Option<usize> {
        let owner = self.owner.as_ref()?;
        let state = &mut *lock(&owner.cluster().state);
        if !owner.still_admits(&world.places[id.0].name, id.1) {
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
        state.primary_len = theirs.log.len();
        Some(mine.log.len())
    }

    /// Takes everything anew; what is here beyond what it has in common with that is kept aside first.
    fn seed(&self, id: (usize, Epoch, u64), theirs: Redo, theirs_id: Option<SystemId>) -> bool {
        let (Some(world), Some(owner)) = (self.world.upgrade(), self.owner.as_ref()) else { return false };
        let supported = owner.still_admits(&world.places[id.0].name, id.1);
        if !supported || owner.part() != Part::Following {
            return false;
        }
        let state = &mut *lock(&owner.cluster().state);
        let mine = &mut *lock(&self.disk.redo);
        let common = mine.log.iter().zip(&theirs.log).take_while(|(a, b)| a == b).count();
        let surplus: Vec<Row> = mine.log[common..].to_vec();
        mine.aside.extend(surplus);
        (mine.log, mine.forks, mine.timeline) = (theirs.log, theirs.forks, theirs.timeline);
        state.stream = None;
        let Some(system_id) = theirs_id else { return false };
        self.disk.kept.change(|kept| kept.was_given(system_id)).is_ok()
    }
}

impl Model {
    fn world(&self) -> Result<Arc<World>, Trouble> {
        self.world.upgrade().ok_or_else(|| Trouble::new("it is over"))
    }

    fn node(&self) -> Result<Arc<Node>, Trouble> {
        let node = self.world()?.node(self.index).filter(|node| node.life == self.life);
        node.ok_or_else(|| Trouble::new("it is over"))
    }

    /// A while of PostgreSQL's or a disk's, drawn below `most_us`.
    async fn takes(&self, most_us: u64) {
        let Ok(world) = self.world() else { return };
        let took_us = world.dice(|dice| dice.below(most_us));
        tokio::time::sleep(Duration::from_micros(took_us)).await;
    }

    /// Microseconds on this daemon's clock.
    fn clock_us(&self) -> u64 {
        self.world.upgrade().map_or(0, |world| world.checks.now_us() * self.drift / 100)
    }

    /// The clients' load.
    async fn write(&self) {
        let Some(world) = self.world.upgrade() else { return };
        loop {
            self.takes(60_000).await;
            tokio::time::sleep(Duration::from_millis(10)).await;
            let epoch = match &lock(&self.state).leading {
                Some(leading) if leading.running => leading.epoch,
                _ => continue,
            };
            let id = world.dice(|dice| dice.below(u64::MAX));
            lock(&self.disk.redo).log.push(Row { id, epoch });
            self.release(&world);
        }
    }

    /// Lets commits return that may.
    fn release(&self, world: &Arc<World>) {
        let (log, state) = (&lock(&self.disk.redo).log, &mut *lock(&self.state));
        let Some(leading) = state.leading.as_mut().filter(|leading| leading.running) else { return };
        if !leading.acknowledges {
            return;
        }
        let answered = |name: &RegionName| {
            let at = world.places.iter().position(|place| place.name == *name);
            at.and_then(|at| leading.answered[at])
        };
        let sets = self.voter.counted().borrow().clone();
        let others = sets.iter().map(|set| {
            let without_own = (!set.contains(&self.me)).then_some(None);
            set.iter().filter(|name| **name != self.me).map(answered).chain(without_own).collect()
        });
        let others: Vec<Vec<Option<u64>>> = others.collect();
        let lease = Lease { length: Duration::from_micros(LEASE_US) };
        if !lease.holds(self.clock_us(), &others) && !planted::is(Bug::NoLease) {
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

    fn begins_to_acknowledge(&self, epoch: Epoch) {
        let Some(world) = self.world.upgrade() else { return };
        let agreed = self.voter.agreed();
        if let Some(agreed) = agreed.filter(|agreed| agreed.record.epoch == epoch) {
            world.checks.promoted(&agreed.record, &self.disk.contents().0);
        }
    }
}

impl Cluster for Model {
    fn observe(&self) -> Observed {
        let state = lock(&self.state);
        let redo = lock(&self.disk.redo);
        let durable = match state.open {
            true => Reach::new(Timeline(redo.timeline), Lsn(redo.log.len() as u64)),
            false => Reach::new(Timeline(0), Lsn::ZERO),
        };
        let runs = state.leading.as_ref().is_some_and(|leading| leading.running);
        Observed {
            open: state.open,
            durable,
            has_redo: state.open && redo.timeline > 0,
            writer_runs: runs || self.disk.writer_left.load(Ordering::Relaxed),
            primary_lsn: Lsn(state.primary_len as u64),
            refused: state.refused,
        }
    }

    async fn database(&self, timeline: Timeline) -> Result<Database, Trouble> {
        self.takes(3000).await;
        Ok(match lock(&self.disk.redo).timeline {
            0 => Database::Absent,
            now if now == timeline.0 => Database::Begun,
            _ => Database::Standby,
        })
    }

    async fn create(&self) -> Result<SystemId, Trouble> {
        self.takes(300_000).await;
        let world = self.world()?;
        if let Some(other) = world.who_has_data() {
            world.checks.fail(format!("{} makes an empty database, and {other} has data", self.index));
        }
        world.checks.creates(self.index);
        let mut redo = lock(&self.disk.redo);
        redo.timeline = 1;
        world.tell(|| format!("{} makes the database", self.index));
        Ok(SystemId(1 + world.dice(|dice| dice.below(u64::MAX))))
    }

    fn hold(&self) {
        if let Some(leading) = &mut lock(&self.state).leading {
            leading.acknowledges = false;
        }
    }

    fn acknowledge(&self, allowed: bool) {
        let begins = match &mut lock(&self.state).leading {
            Some(leading) => {
                let begins = allowed && !leading.acknowledges;
                leading.acknowledges = allowed;
                begins.then_some(leading.epoch)
            }
            None => None,
        };
        if let Some(epoch) = begins {
            self.begins_to_acknowledge(epoch);
        }
    }

    fn forget_refusal(&self) {
        lock(&self.state).refused = false;
    }

    fn shut_out(&self) {
        lock(&self.state).stream = None;
    }

    async fn settle(&self) {
        self.takes(150_000).await;
    }

    async fn follow(&self) -> Result<(), Trouble> {
        self.takes(50_000).await;
        lock(&self.state).leading = None;
        Ok(())
    }

    async fn apply(&self, lsn: Lsn) -> Result<(), Trouble> {
        self.takes(50_000).await;
        while (self.disk.len() as u64) < lsn.0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    async fn promote(&self, epoch: Epoch) -> Result<(), Trouble> {
        if self.voter.standing().is_some_and(Standing::forbids) {
            self.world()?.checks.fail(format!("{} promotes for epoch {epoch}, and is shut out", self.index));
        }
        self.takes(150_000).await;
        {
            let redo = &mut *lock(&self.disk.redo);
            let (timeline, len) = (redo.timeline, redo.log.len());
            redo.forks.push((timeline, len));
            redo.timeline = u32::try_from(epoch.0).unwrap_or(u32::MAX);
        }
        self.takes(50_000).await;
        Ok(())
    }

    async fn lead(&self, epoch: Epoch) -> Result<(), Trouble> {
        self.takes(200_000).await;
        let (world, node) = (self.world()?, self.node()?);
        self.disk.writer_left.store(false, Ordering::Relaxed);
        let count = world.places.len();
        let tasks = Tasks::new();
        for to in (0..count).filter(|to| *to != self.index) {
            if to < world.regions {
                tasks.spawn(node.clone().ship(to, epoch));
            }
            let clock = node.clone();
            let clock_us = move || clock.model().map_or(0, Model::clock_us);
            let answered = node.clone();
            let answered = move |_: &RegionName, asked_at_us: u64| {
                let (Some(model), Some(world)) = (answered.model(), answered.world.upgrade()) else {
                    return false;
                };
                if let Some(leading) = &mut lock(&model.state).leading {
                    leading.answered[to] = leading.answered[to].max(Some(asked_at_us));
                }
                model.release(&world);
                true
            };
            let length = Duration::from_micros(LEASE_US * 100 / self.drift);
            let name = world.places[to].name.clone();
            tasks.spawn(lease::ask(self.voter.clone(), name, epoch, length, clock_us, answered));
        }
        let writer = node.clone();
        tasks.spawn(async move {
            if let Some(model) = writer.model() {
                model.write().await;
            }
        });
        let leading = Leading {
            epoch,
            running: true,
            acknowledges: false,
            acknowledged: self.disk.len(),
            answered: vec![None; count],
            durable: vec![0; count],
            _tasks: tasks,
        };
        world.tell(|| format!("{} leads epoch {epoch} from {}", self.index, leading.acknowledged));
        let state = &mut *lock(&self.state);
        (state.leading, state.stream) = (Some(leading), None);
        Ok(())
    }

    fn reads(&self) -> bool {
        lock(&self.state).leading.as_ref().is_some_and(|leading| leading.running)
    }

    async fn stop_leading(&self) -> Result<(), Trouble> {
        self.takes(60_000).await;
        self.disk.writer_left.store(false, Ordering::Relaxed);
        lock(&self.state).leading = None;
        Ok(())
    }

    fn hinders(&self, _: &RegionName) -> Option<String> {
        None
    }

    async fn checkpoint(&self) -> Result<(), Trouble> {
        let slow = self.world()?.dice(|dice| dice.one_in(20));
        self.takes(if slow { 14_000_000 } else { 100_000 }).await;
        Ok(())
    }

    async fn stop_writer(&self) -> Result<Reach, Trouble> {
        let record = self.voter.accepted();
        if !record.promotion.is_some_and(|promotion| promotion.step == Step::HandOver) {
            self.world()?.checks.fail(format!("{} stops its writer for no switchover", self.index));
        }
        self.takes(100_000).await;
        match &mut lock(&self.state).leading {
            Some(leading) => leading.running = false,
            None => return Err(Trouble::new("it does not lead")),
        }
        let redo = lock(&self.disk.redo);
        Ok(Reach::new(Timeline(redo.timeline), Lsn(redo.log.len() as u64)))
    }

    async fn applied_by(&self, to: &RegionName, lsn: Lsn) -> Result<(), Trouble> {
        let to = self.world()?.places.iter().position(|place| place.name == *to);
        let to = to.ok_or_else(|| Trouble::new("who?"))?;
        loop {
            match &lock(&self.state).leading {
                Some(leading) if leading.durable[to] as u64 >= lsn.0 => return Ok(()),
                _ => {}
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn gather(
        &self,
        from: &RegionName,
        epoch: Epoch,
        to_lsn: Lsn,
        wanted: impl Fn() -> bool + Send + Sync,
    ) -> Result<(), Trouble> {
        let (world, node) = (self.world()?, self.node()?);
        let from = world.places.iter().position(|place| place.name == *from);
        let from = from.ok_or_else(|| Trouble::new("who?"))?;
        let shall_lead =
            |record: Leadership| record.promotion.is_some_and(|p| p.to == self.me && p.epoch == epoch);
        let theirs = ship(&world, &node, from, async |node| {
            let open = node.model().is_some_and(|model| lock(&model.state).open);
            (open && shall_lead(node.voter.accepted())).then(|| lock(&node.disk.redo).clone())
        });
        let theirs = theirs.await.flatten().ok_or_else(|| Trouble::new("the survivor does not answer"))?;
        if !wanted() {
            return Err(Trouble::new("it is over"));
        }
        let theirs = theirs.up_to(usize::try_from(to_lsn.0).unwrap_or(usize::MAX));
        let mine = &mut *lock(&self.disk.redo);
        if !theirs.log.starts_with(&mine.log) {
            return Err(Trouble::new("the survivor's redo does not continue this"));
        }
        (mine.log, mine.timeline, mine.forks) = (theirs.log, theirs.timeline, theirs.forks);
        Ok(())
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
