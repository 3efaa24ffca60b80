//! What is not ours of a region: PostgreSQL, the disks under it, and the streams between regions.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use coordination::planted::{self, Bug};
use coordination::region::Database;
use coordination::{Leadership, Redo as Reach, Standing, Step};
use primary::gate::{self, CommitLevel, CommitPolicy, Doubt, Lease, Secondary};
use primary::release::{Facts, Leadership as Confirmed, release};
use proto::{Epoch, Lsn, RegionName, SystemId, Timeline};
use replicator::part::{Cluster, Observed, Trouble, lease};
use replicator::voter::Voter;
use runtime::task::Tasks;
use secondary::receiver::Receiver;

use super::disk::{Disk, Row};
use super::network::ship;
use super::node::Node;
use super::{LEASE_US, World, lock};

/// A region's PostgreSQL, volume and streams.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) index: usize,
    pub(super) life: u64,
    pub(super) disk: Arc<Disk>,
    pub(super) voter: Arc<Voter>,
    pub(super) world: Weak<World>,
    pub(super) me: RegionName,
    pub(super) drift: u64,
    pub(super) state: Mutex<State>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    /// The volume is open.
    pub(super) open: bool,
    pub(super) leading: Option<Leading>,
    /// How far the primary was, as it said last.
    pub(super) primary_len: usize,
    pub(super) stream: Option<Taking>,
    /// A region has said that this primary's epoch is over.
    pub(super) refused: bool,
}

#[derive(Debug)]
pub(super) struct Leading {
    pub(super) epoch: Epoch,
    pub(super) running: bool,
    pub(super) leadership: Confirmed,
    pub(super) acknowledged: usize,
    /// When the newest question left that each voter has answered, microseconds on this daemon's clock.
    pub(super) answered: Vec<Option<u64>>,
    /// How far each region's redo is durable.
    pub(super) durable: Vec<usize>,
    /// The region knows that it is replaced, and PostgreSQL was told to stop.
    pub(super) stopping: bool,
    /// What ships, writes and asks for it; it ends with this.
    _tasks: Tasks,
}

/// A stream that is being taken.
#[derive(Debug)]
pub(super) struct Taking {
    pub(super) id: (usize, Epoch, u64),
    pub(super) receiver: Receiver,
}

impl Model {
    pub(super) fn world(&self) -> Result<Arc<World>, Trouble> {
        self.world.upgrade().ok_or_else(|| Trouble::new("it is over"))
    }

    pub(super) fn node(&self) -> Result<Arc<Node>, Trouble> {
        let node = self.world()?.node(self.index).filter(|node| node.life == self.life);
        node.ok_or_else(|| Trouble::new("it is over"))
    }

    /// A while of PostgreSQL's or a disk's, drawn below `most_us`.
    pub(super) async fn takes(&self, most_us: u64) {
        let Ok(world) = self.world() else { return };
        let took_us = world.dice(|dice| dice.below(most_us));
        tokio::time::sleep(Duration::from_micros(took_us)).await;
    }

    /// Microseconds on this daemon's clock.
    pub(super) fn clock_us(&self) -> u64 {
        self.world.upgrade().map_or(0, |world| world.checks.now_us() * self.drift / 100)
    }

    /// The clients' load.
    pub(super) async fn write(&self) {
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
    pub(super) fn release(&self, world: &Arc<World>) {
        let (log, state) = (&lock(&self.disk.redo).log, &mut *lock(&self.state));
        let Some(leading) = state.leading.as_mut().filter(|leading| leading.running) else { return };
        let answered = |name: &RegionName| {
            let at = world.places.iter().position(|place| place.name == *name);
            at.and_then(|at| leading.answered[at])
        };
        let supported_us = gate::others(&self.voter.counted().borrow(), &self.me, answered);
        let length_us = if planted::is(Bug::NoLease) { u64::MAX / 2 } else { LEASE_US };
        let secondary = |len: usize| Secondary { durable_lsn: Some(Lsn(len as u64)), rpo_lag_us: Some(0) };
        let others = (0..world.regions).filter(|index| *index != self.index);
        let secondaries: Vec<Secondary> = others.map(|index| secondary(leading.durable[index])).collect();
        let level = if world.remote { CommitLevel::Regions(1) } else { CommitLevel::Region };
        let facts = Facts {
            leadership: leading.leadership,
            doubt: Doubt::default(),
            lease: Lease { length: Duration::from_micros(length_us) },
            now_us: self.clock_us(),
            supported_us: &supported_us,
            policy: CommitPolicy { level, rpo: None },
            durable_lsn: Lsn(log.len() as u64),
            secondaries: &secondaries,
        };
        let released = release(&facts, Lsn(leading.acknowledged as u64));
        let upto = usize::try_from(released.lsn.0).unwrap_or(usize::MAX);
        if leading.acknowledged < upto && !world.has_begun(leading.epoch) {
            let (epoch, me) = (leading.epoch, self.index);
            world.checks.fail(format!("{me} acknowledges in epoch {epoch}, whose promotion is not over"));
        }
        if leading.acknowledged < upto && leading.stopping {
            world.checks.fail(format!("{} acknowledges while it stops, as it is replaced", self.index));
        }
        while leading.acknowledged < upto {
            let at = leading.acknowledged;
            leading.acknowledged += 1;
            world.checks.acknowledged(self.index, log[at], at);
        }
    }

    pub(super) fn begins_to_acknowledge(&self, epoch: Epoch) {
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

    fn was_promoted(&self) -> bool {
        self.disk.promoted.load(Ordering::Relaxed)
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
        self.disk.promoted.store(true, Ordering::Relaxed);
        world.tell(|| format!("{} makes the database", self.index));
        Ok(SystemId(1 + world.dice(|dice| dice.below(u64::MAX))))
    }

    fn hold(&self) {
        if let Some(leading) = &mut lock(&self.state).leading {
            leading.leadership = Confirmed::Held;
        }
    }

    fn acknowledge(&self, allowed: bool) {
        let begins = match &mut lock(&self.state).leading {
            Some(leading) => {
                let begins = allowed && leading.leadership != Confirmed::Confirmed;
                leading.leadership = leading.leadership.acknowledging(allowed);
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
        if self.disk.has_data() {
            self.disk.promoted.store(false, Ordering::Relaxed);
        }
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
            self.disk.promoted.store(true, Ordering::Relaxed);
            // It takes writes from here on, whether anybody waits for it or not.
            self.disk.writer_left.store(true, Ordering::Relaxed);
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
            leadership: Confirmed::default(),
            acknowledged: self.disk.len(),
            answered: vec![None; count],
            durable: vec![0; count],
            stopping: false,
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
        if let Some(leading) = &mut lock(&self.state).leading {
            leading.stopping = true;
        }
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
