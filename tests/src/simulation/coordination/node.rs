//! A daemon: the real voter and, in a region, the real owner of its part; around them a [`Model`] of what is
//! not ours: PostgreSQL, the disks under it, and the streams between regions, whose redo is a row of numbers.

use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use bytes::Bytes;
use coordination::automatic::Rules;
use coordination::leadership::{Change, Loss, Next, Order};
use coordination::region::Part;
use coordination::register::Accepted;
use coordination::{Leadership, Lineage, Mode, Standing};
use primary::release::Leadership as Confirmed;
use primary::shipper::machine::{Log, Plan, Position, Redo as Has, plan};
use proto::messages::{self as m, Refusal, control_request, control_response, refusal::Kind};
use proto::{Batch, Epoch, Lsn, RegionName, SystemId, Timeline, TimelineHistory};
use replicator::part::{Cluster, Owner};
use replicator::region_file::RegionState;
use replicator::voter::{Seat, Voter, VoterOptions, of_a_voter, wire};
use runtime::clock::wall_us;
use runtime::task::Tasks;
use secondary::receiver::{Receiver, Verdict};
use tokio_util::sync::CancellationToken;

use super::disk::{Disk, Redo, Row};
use super::model::{Leading, Model, Taking};
use super::network::{Wire, ship};
use super::orders::Signatures;
use super::{FAULTS_US, LEASE_US, World, lock};

type Ask = control_request::Body;
type Answer = control_response::Body;

/// How often a primary ships, and beats when there is nothing.
const BEAT: Duration = Duration::from_millis(100);

/// The most commits in one batch on the way.
const BATCH: usize = 50;

/// One life of a daemon.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) index: usize,
    pub(super) life: u64,
    pub(super) disk: Arc<Disk>,
    pub(super) voter: Arc<Voter>,
    /// None for a witness.
    owner: Option<Arc<Owner<Model>>>,
    pub(super) world: Weak<World>,
    me: RegionName,
    /// How fast its clock runs, percent.
    drift: u64,
    /// Held while its data are being replaced.
    seeding: tokio::sync::Mutex<()>,
    tasks: Arc<Tasks>,
}

/// For how long nobody must have heard the primary, where regions order failovers by themselves.
pub(super) const GONE_US: u64 = 3_000_000;

/// The most rows that such a failover may lose, where they are limited.
const LOSS_MAX: u64 = 2;

/// A failover that a region orders by itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct ByItself {
    /// Where it was decided.
    pub(super) epoch: Epoch,
    /// The most that it may lose.
    pub(super) loss_max_bytes: Option<u64>,
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
            orders: Arc::new(Signatures { automatic: world.automatic }),
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
        let seeding = tokio::sync::Mutex::new(());
        let node = Arc::new(Node { index, life, disk, voter, owner, world: weak, me, drift, seeding, tasks });
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
            if world.automatic {
                let automatic = node.clone();
                node.spawn(async move { automatic.fail_over_when_gone().await });
            }
        }
        node
    }

    /// Orders a failover to this region whenever the primary is gone, as `replicator/src/region/automatic.rs`
    /// does.
    async fn fail_over_when_gone(self: Arc<Self>) {
        let limited = self.world.upgrade().is_some_and(|world| world.limited);
        let rules = Rules { after_us: GONE_US, loss_max_bytes: if limited { LOSS_MAX } else { u64::MAX } };
        loop {
            tokio::time::sleep(Duration::from_millis(250)).await;
            let Some(world) = self.world.upgrade() else { return };
            // Nothing else happens while an operator gives his word.
            if world.word.load(Ordering::Relaxed) {
                continue;
            }
            // Where failovers are not to be limited, none of the history is of the last hour.
            let now_us = if limited { wall_us() } else { i64::MAX };
            if let Ok(epoch) = self.voter.wants_failover(rules, now_us).await {
                let loss_max_bytes = Some(rules.loss_max_bytes);
                super::order(&world, self.index, Mode::Failover, Some(ByItself { epoch, loss_max_bytes }));
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
        }
    }

    pub(super) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(work);
    }

    pub(super) fn model(&self) -> Option<&Model> {
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

    /// A PostgreSQL that takes writes runs where none may.
    pub(super) fn strays(&self) -> bool {
        let forbidden = self.voter.standing().is_some_and(Standing::forbids);
        forbidden && self.model().is_some_and(|model| model.observe().writer_runs)
    }

    pub(super) fn acknowledges(&self) -> bool {
        let acknowledges = |leading: &Leading| leading.running && leading.leadership == Confirmed::Confirmed;
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
            "{}: {part:?}, rejoining {}, strays {}; {} rows; accepted {} {} {promotion:?}, standing {:?}, voters {:?}",
            self.index,
            kept.rejoining,
            self.strays(),
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
        let order = Order::new(id, acceptor.record().epoch, Mode::Failover, &to);
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
        if let (Ask::GetReady(request), Some(world)) = (&body, self.world.upgrade()) {
            let gathers = match request.gather_from.as_str() {
                "" => "gathers nothing".into(),
                other => format!("gathers up to {} from {other}", request.gather_to_lsn),
            };
            world.tell(|| format!("{} is to get ready for {from}: it {gathers}", self.index));
        }
        let answered = match (body, owner) {
            (Ask::Prepare(number), Ok(owner)) => owner.promise(number).await,
            (Ask::Prepare(number), Err(_)) => self.voter.answer_prepare(number),
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
    pub(super) async fn ship(self: Arc<Self>, to: usize, epoch: Epoch) {
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
            // Where failovers are limited in what they lose, a region may know of more than it has, as long
            // as there are any.
            let slow = world.limited && world.checks.now_us() < FAULTS_US;
            let most = match slow && world.dice(|dice| !dice.one_in(6)) {
                true => 1,
                false => BATCH,
            };
            let end = redo.log.len().min(at + most);
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
                let seeded = ship(world, self, to, async |node| node.seed(id, redo, system_id).await).await;
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
        // What was shut out is not stored any more; whoever is not supported gets no answer in any case.
        let answered = owner.still_admits(&world.places[id.0].name, id.1);
        if !answered {
            state.stream = None;
        }
        answered.then_some(mine.log.len())
    }

    /// Takes everything anew, as a follower does: what is here beyond what it has in common with that is kept
    /// aside, the data are given up, and the new ones taken. It may be shut out or killed between any two.
    async fn seed(&self, id: (usize, Epoch, u64), theirs: Redo, theirs_id: Option<SystemId>) -> bool {
        let (Some(world), Some(owner)) = (self.world.upgrade(), self.owner.as_ref()) else { return false };
        let Ok(_turn) = self.seeding.try_lock() else { return false };
        let kept = &self.disk.kept;
        let supported = owner.still_admits(&world.places[id.0].name, id.1);
        let Some(system_id) = theirs_id.filter(|_| supported && owner.part() == Part::Following) else {
            return false;
        };
        lock(&owner.cluster().state).stream = None;
        let surplus: Vec<Row> = {
            let mine = lock(&self.disk.redo);
            let common = mine.log.iter().zip(&theirs.log).take_while(|(a, b)| a == b).count();
            mine.log[common..].to_vec()
        };
        owner.cluster().takes(300_000).await;
        lock(&self.disk.redo).aside.extend(surplus);
        if !kept.change_while_led(id.1, RegionState::gives_data_up).unwrap_or(false) {
            return false;
        }
        lock(&owner.cluster().state).stream = None;
        owner.cluster().takes(100_000).await;
        {
            let mine = &mut *lock(&self.disk.redo);
            (mine.log, mine.forks, mine.timeline) = (theirs.log, theirs.forks, theirs.timeline);
        }
        self.disk.promoted.store(false, Ordering::Relaxed);
        owner.cluster().takes(100_000).await;
        kept.change_while_led(id.1, |state| state.was_given(system_id)).unwrap_or(false)
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
