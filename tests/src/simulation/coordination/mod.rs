//! Who leads: the daemon's own voters (`replicator/src/voter/`: the register, the coordinator, the watch) on
//! a simulated network, with regions around them whose redo is a row of numbers.
//!
//! Time is virtual: each seed runs on a runtime of its own whose clock is paused and jumps to the next timer.
//! Voters crash at any moment, and above all just after the record changed; networks split in every shape,
//! one-way too; messages are lost, late and doubled; clocks run fast and slow up to the stated bound;
//! operators order switchovers and failovers, also two at once, add voters and remove them, and give their
//! word that a primary and others do not run, which is true. Every run is the cluster's first start; disks
//! are lost with all that is on them; and some witnesses say of records that they made up that they are
//! agreed. In a quarter of the seeds regions order failovers by themselves, too.
//!
//! Checked, each in [`checks`]: an epoch has one primary, and the record's changes form one row; no commit is
//! acknowledged in an epoch once one was in a later epoch; a switchover loses nothing; what a failover loses
//! was at risk as it reported, is kept aside, and is nothing where commits wait for another region and that
//! survives; and when faults stop, one region leads, takes commits, and all hold the same.
//!
//! The regions here do what `replicator/src/region/` does, in a model: their volumes are durable rows (the
//! volume has a simulation of its own), and the shipper's `plan` and the secondary's `Receiver` are the real
//! ones.

mod checks;
mod disk;
mod model;
mod network;
mod node;
mod operator;
mod orders;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use coordination::leadership::{Change, Order};
use coordination::promotion::CLOCK_DRIFT_MAX_PERCENT;
use coordination::{Electorate, Leadership, Mode, Promotion, Standing, Step, Voters};
use proto::{Epoch, RegionName};
use replicator::config::Place;
use runtime::task::Tasks;

use super::Dice;
use checks::Checks;
use disk::Disk;
use network::Links;
use node::{ByItself, Node};
use orders::sign;

/// How long faults go on.
const FAULTS: Duration = Duration::from_micros(FAULTS_US);
const FAULTS_US: u64 = 40_000_000;

/// How long the cluster may take to have a primary and be whole after them.
const CALM: Duration = Duration::from_secs(120);

/// The primary's lease.
const LEASE_US: u64 = 2_000_000;

/// How a run went.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// Commits acknowledged.
    pub acknowledged: u64,
    /// Promotions that were over.
    pub promotions: u64,
    /// Of these, rolled back.
    pub rolled_back: u64,
    /// Acknowledged commits that a failover lost, as it had said.
    pub lost: u64,
    /// Faults of all kinds.
    pub faults: u64,
    /// Changes of the voters, each of two steps.
    pub changes: u64,
}

impl Report {
    /// Adds another run's.
    pub fn add(&mut self, other: &Report) {
        self.acknowledged += other.acknowledged;
        self.promotions += other.promotions;
        self.rolled_back += other.rolled_back;
        self.lost += other.lost;
        self.faults += other.faults;
        self.changes += other.changes;
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Report { acknowledged, promotions, rolled_back, lost, faults, changes } = self;
        write!(
            f,
            "{acknowledged} commits acknowledged, {lost} of them lost in failovers that said so; {promotions} promotions, \
             {rolled_back} of them rolled back; {changes} changes of the voters; {faults} faults"
        )
    }
}

pub use coordination::planted::Bug;

/// What all of a run shares.
#[derive(Debug)]
struct World {
    dice: Mutex<Dice>,
    links: Mutex<Links>,
    nodes: Mutex<Vec<Slot>>,
    checks: Checks,
    places: Vec<Place>,
    regions: usize,
    /// Who votes where the record does not say.
    file: Electorate,
    /// Who votes by the first record; none where that does not say.
    first: Option<Electorate>,
    /// An operator gives his word just now: nothing else happens.
    word: AtomicBool,
    /// Epochs whose promotion is known to have been over.
    begun: Mutex<BTreeSet<Epoch>>,
    /// Commits wait for one other region.
    remote: bool,
    /// The witness says of records that it made up that they are agreed.
    lies: bool,
    /// Regions order failovers by themselves.
    automatic: bool,
    /// … and these are limited, in number and in what they lose.
    limited: bool,
    tells: bool,
    /// Faults and orders under way.
    tasks: Tasks,
}

/// A daemon's place: its disk stays, its processes come and go.
#[derive(Debug)]
struct Slot {
    disk: Arc<Disk>,
    life: u64,
    node: Option<Arc<Node>>,
    /// It is not started before the operator says so.
    held: bool,
}

impl World {
    fn dice<T>(&self, throw: impl FnOnce(&mut Dice) -> T) -> T {
        throw(&mut lock(&self.dice))
    }

    fn node(&self, index: usize) -> Option<Arc<Node>> {
        lock(&self.nodes)[index].node.clone()
    }

    /// Whether a majority's disks say that the promotion which began `epoch` is over.
    fn has_begun(&self, epoch: Epoch) -> bool {
        if lock(&self.begun).contains(&epoch) {
            return true;
        }
        let over = |record: &Leadership| {
            let begins = |p: &Promotion| p.step == Step::Promote && p.epoch == epoch;
            record.epoch >= epoch && !record.promotion.as_ref().is_some_and(begins)
        };
        let records: Vec<Leadership> =
            lock(&self.nodes).iter().map(|slot| slot.disk.kept.get().acceptor.record().clone()).collect();
        let is_over = |name: &RegionName| {
            let at = self.places.iter().position(|place| place.name == *name);
            at.is_some_and(|at| over(&records[at]))
        };
        let begun = records.iter().filter(|record| over(record)).any(|record| {
            let voters = record.electorate(&self.file);
            // While they change, either set may be the one by which that was agreed; and of two voters the
            // primary decides alone where the other one does not answer.
            let alone = |set: &Voters| set.len() < 3 && is_over(&record.primary);
            voters.sets().any(|set| set.decide(is_over) || alone(set))
        });
        if begun {
            // A disk that is lost later takes nothing of that away.
            lock(&self.begun).insert(epoch);
        }
        begun
    }

    fn tell(&self, what: impl FnOnce() -> String) {
        if self.tells {
            println!("{:9.3} s  {}", self.checks.now_us() as f64 / 1e6, what());
        }
    }

    fn start(self: &Arc<Self>, index: usize) {
        let percent = CLOCK_DRIFT_MAX_PERCENT;
        let drift = 100 - percent + self.dice(|dice| dice.below(2 * percent + 1));
        let proposer = self.dice(|dice| dice.below(u64::MAX));
        let mut nodes = lock(&self.nodes);
        let slot = &mut nodes[index];
        if slot.node.is_some() || slot.held {
            return;
        }
        slot.life += 1;
        if coordination::planted::is(Bug::ForgetsPromises) {
            slot.disk.forget(self.places[0].name.clone());
        }
        let node = Node::start(self, index, slot.life, slot.disk.clone(), drift, proposer);
        slot.node = Some(node);
        self.tell(|| format!("{index} starts, its clock at {drift} %"));
    }

    fn crash(self: &Arc<Self>, index: usize, for_us: u64) {
        let Some(node) = lock(&self.nodes)[index].node.take() else { return };
        self.tell(|| format!("{index} crashes"));
        node.kill();
        let world = self.clone();
        world.clone().tasks.spawn(async move {
            tokio::time::sleep(Duration::from_micros(for_us)).await;
            world.start(index);
        });
    }
}

impl World {
    /// Whether the disk of `index` can be lost without an operator's word: all other voters remember, and
    /// another region has data that it could lead with: one that led an epoch which is over, or has redo that
    /// a promotion cut off, needs a primary first.
    fn spares(&self, index: usize) -> bool {
        let newest = self.newest();
        let voters = newest.electorate(&self.file);
        let me = &self.places[index].name;
        // One of two voters decides alone while it is the primary, and nobody else knows what.
        let alone = voters.now.len() < 2 || voters.is_pair() && newest.primary == *me;
        // Whether a step of a change is agreed, this one may be the only one to know.
        if alone && voters.has(me) || !voters.lost.is_empty() || !voters.is_settled() {
            return false;
        }
        let nodes = lock(&self.nodes);
        let mut others = nodes.iter().enumerate().filter(|(other, _)| *other != index).map(|(_, slot)| slot);
        let has_data = nodes.iter().enumerate().any(|(other, slot)| {
            other != index && slot.disk.can_lead(&newest) && voters.may_lead(&self.places[other].name)
        });
        has_data && others.all(|slot| slot.disk.remembers())
    }

    /// The daemon of `index` ends, and its disk is lost.
    fn lose(self: &Arc<Self>, index: usize, for_us: u64, id: u64) {
        self.crash(index, for_us);
        let epochs: Vec<Epoch> =
            lock(&self.nodes).iter().map(|slot| slot.disk.kept.get().acceptor.record().epoch).collect();
        for epoch in epochs {
            let _ = self.has_begun(epoch);
        }
        let disk = lock(&self.nodes)[index].disk.clone();
        disk.lose(&self.places, index, id, self.first.clone());
        self.tell(|| format!("{index} loses its disk"));
        let left = self.logs();
        self.checks.disk_lost(&left);
    }

    /// The newest record that a disk has.
    fn newest(&self) -> Leadership {
        let nodes = lock(&self.nodes);
        let accepted = nodes.iter().map(|slot| slot.disk.kept.get().acceptor.accepted().clone());
        let newest = accepted.max_by_key(|accepted| accepted.number);
        newest
            .map_or_else(|| Leadership::first(Epoch(1), self.places[0].name.clone()), |newest| newest.record)
    }

    /// A region that has data.
    fn who_has_data(&self) -> Option<usize> {
        lock(&self.nodes).iter().position(|slot| slot.disk.kept.get().system_id.is_some())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // A panic in a task is a failed check, and ends the run.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs one seed; `tells` prints what happens.
///
/// # Errors
/// What was violated, in words.
pub fn run(seed: u64, bug: Bug, tells: bool) -> Result<Report, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.map_err(|e| e.to_string())?;
    let _planted = coordination::planted::plant(bug);
    runtime.block_on(scenario(seed, tells))
}

async fn scenario(seed: u64, tells: bool) -> Result<Report, String> {
    let mut dice = Dice::new(seed);
    let regions = 2 + usize::try_from(dice.below(4)).unwrap_or(0);
    let witnesses = if regions == 2 { usize::from(!dice.one_in(3)) } else { usize::from(dice.one_in(4)) };
    let remote = dice.one_in(3);
    let lies = dice.one_in(3);
    let name = |index: usize| format!("r{index}").parse().map_err(|_| "no name");
    let places: Result<Vec<Place>, &str> =
        (0..regions + witnesses).map(|i| Ok(Place { name: name(i)?, advertise: String::new() })).collect();
    let places = places?;
    let voters = |count: usize| {
        let name = |index: usize| places[index].name.clone();
        let region = |index: &usize| *index < regions;
        Electorate::of(Voters {
            regions: (0..count).filter(region).map(name).collect(),
            witnesses: (0..count).filter(|index| !region(index)).map(name).collect(),
        })
    };
    let file = voters(places.len());
    // In half of the seeds all vote at first; in the others some do not, or the record says so.
    let first = dice.one_in(2).then(|| {
        let count = 2 + usize::try_from(dice.below(places.len() as u64 - 1)).unwrap_or(0);
        voters(count.min(places.len()))
    });
    let slots = (0..places.len()).map(|index| Slot {
        disk: Arc::new(Disk::new(&places, index, index as u64, first.clone())),
        life: 0,
        node: None,
        held: false,
    });
    let world = Arc::new(World {
        nodes: Mutex::new(slots.collect()),
        links: Mutex::new(Links::new(places.len(), &mut dice)),
        dice: Mutex::new(dice),
        checks: Checks::new(remote),
        places,
        regions,
        file,
        first,
        word: AtomicBool::new(false),
        begun: Mutex::default(),
        remote,
        lies,
        automatic: seed % 4 == 1,
        limited: seed % 8 == 5,
        tells,
        tasks: Tasks::new(),
    });
    (0..world.places.len()).for_each(|index| world.start(index));
    let faults = tokio::time::timeout(FAULTS, trouble(&world)).await;
    debug_assert!(faults.is_err(), "it goes on until it is stopped");
    // Calm.
    lock(&world.links).heal();
    world.tell(|| "faults stop".into());
    let whole = async {
        let mut looked = 0;
        while !world.is_whole() && !world.checks.has_failed() {
            tokio::time::sleep(Duration::from_millis(100)).await;
            looked += 1;
            if looked % 50 == 0 {
                world.replace_lost();
            }
        }
    };
    let calm = tokio::time::timeout(CALM, whole).await;
    world.checks.verdict()?;
    if calm.is_err() {
        return Err(format!("not whole {} s after the faults: {}", CALM.as_secs(), world.describe()));
    }
    world.checks.final_log(&world.logs())?;
    Ok(world.checks.report())
}

impl World {
    /// What an operator does whose primary says that it has lost its data: a region that has most is ordered
    /// to lead.
    fn replace_lost(self: &Arc<Self>) {
        let voters = self.newest().electorate(&self.file).clone();
        let able = {
            let nodes = lock(&self.nodes);
            let led = nodes.iter().filter_map(|slot| slot.node.clone()).any(|node| node.has_lost());
            let able = nodes
                .iter()
                .enumerate()
                .filter(|(_, slot)| slot.node.as_ref().is_some_and(|node| node.is_able_follower()))
                .filter(|(index, _)| voters.may_lead(&self.places[*index].name));
            able.max_by_key(|(_, slot)| slot.disk.len()).map(|(index, _)| index).filter(|_| led)
        };
        if let Some(to) = able {
            order(self, to, Mode::Failover, None);
        }
    }
}

/// Faults, orders and their moments, for ever.
async fn trouble(world: &Arc<World>) {
    // In some seeds only the primary is hit, and all other regions are heard: then nothing is lost where
    // commits wait for another region.
    let only_primary = world.dice(|dice| dice.one_in(3));
    if only_primary {
        world.checks.set_gentle();
        lock(&world.links).loss = u64::MAX;
    }
    loop {
        let pause_us = 100_000 + world.dice(|dice| dice.below(2_500_000));
        tokio::time::sleep(Duration::from_micros(pause_us)).await;
        if world.checks.has_failed() || world.word.load(Ordering::Relaxed) {
            continue;
        }
        let any = usize::try_from(world.dice(|dice| dice.below(world.places.len() as u64))).unwrap_or(0);
        let what = world.dice(|dice| dice.below(16));
        let victim = match (only_primary, world.leader()) {
            (true, Some(leader)) => leader,
            (true, None) if what < 4 => continue,
            _ => any,
        };
        let for_us = 100_000 + world.dice(|dice| dice.below(8_000_000));
        match what {
            0 | 1 => {
                world.checks.fault();
                world.crash(victim, for_us);
            }
            // A disk is lost with all that is on it. That is survived once the one before is made good.
            8 if !only_primary => {
                let id = world.dice(|dice| dice.below(u64::MAX));
                if world.spares(any) {
                    world.checks.fault();
                    world.lose(any, for_us, id);
                }
            }
            2 | 3 => {
                world.checks.fault();
                let shape = if only_primary {
                    lock(&world.links).isolate(victim)
                } else {
                    let mut dice = lock(&world.dice);
                    lock(&world.links).split(victim, &mut dice)
                };
                world.tell(|| format!("network: {shape}"));
                let world = world.clone();
                world.clone().tasks.spawn(async move {
                    tokio::time::sleep(Duration::from_micros(for_us)).await;
                    lock(&world.links).heal();
                    world.tell(|| "network: healed".into());
                });
            }
            9..=11 => operator::change_voters(world, any),
            12 if !only_primary => operator::give_word(world),
            13..=15 if !only_primary => operator::part_with_the_removed(world),
            _ => {
                let to = usize::try_from(world.dice(|dice| dice.below(world.regions as u64))).unwrap_or(0);
                let mode = if what < 6 { Mode::Switchover } else { Mode::Failover };
                order(world, to, mode, None);
            }
        }
    }
}

/// An operator, or region `to` by itself, orders that to lead. The order may take long to be proposed.
fn order(world: &Arc<World>, to: usize, mode: Mode, by_itself: Option<ByItself>) {
    let Some(node) = world.node(to) else { return };
    let world = world.clone();
    world.clone().tasks.spawn(async move {
        if !node.is_able_follower() {
            return;
        }
        let id = 1 + world.dice(|dice| dice.below(u64::MAX - 1));
        let known = node.voter.accepted();
        let epoch = by_itself.map_or(known.epoch, |by_itself| by_itself.epoch);
        let loss_max_bytes = by_itself.and_then(|by_itself| by_itself.loss_max_bytes);
        let order = Order { loss_max_bytes, ..Order::new(id, epoch, mode, &world.places[to].name) };
        // Its key orders nothing that an operator has not, and has not to be one that the file lets it.
        let forged = by_itself.is_none() && world.dice(|dice| dice.one_in(8));
        let order = if by_itself.is_some() || forged { order } else { sign(order) };
        if forged {
            world.checks.forged(id);
        }
        world.tell(|| format!("{mode} to {to} is ordered, for epoch {epoch}"));
        if world.dice(|dice| dice.one_in(4)) {
            let late_us = world.dice(|dice| dice.below(6_000_000));
            tokio::time::sleep(Duration::from_micros(late_us)).await;
        }
        if let Ok(record) = node.voter.change(&Change::Begin(order.clone())).await {
            world.checks.begun(&order, by_itself.is_some() && world.limited, &record);
            node.voter.coordinate(id);
        }
    });
}

impl World {
    /// Sometimes kills one that takes part in a promotion, just when the record has changed.
    fn record_changed(self: &Arc<Self>) {
        if self.dice(|dice| !dice.one_in(24)) || self.checks.is_gentle() {
            return;
        }
        let after_us = self.dice(|dice| dice.below(60_000));
        let for_us = 100_000 + self.dice(|dice| dice.below(6_000_000));
        let victim = usize::try_from(self.dice(|dice| dice.below(self.places.len() as u64))).unwrap_or(0);
        let world = self.clone();
        world.clone().tasks.spawn(async move {
            tokio::time::sleep(Duration::from_micros(after_us)).await;
            if world.checks.now_us() < FAULTS_US && !world.word.load(Ordering::Relaxed) {
                world.checks.fault();
                world.crash(victim, for_us);
            }
        });
    }

    fn leader(&self) -> Option<usize> {
        let nodes = lock(&self.nodes);
        nodes.iter().position(|slot| slot.node.as_ref().is_some_and(|node| node.leads()))
    }

    fn logs(&self) -> Vec<(Vec<disk::Row>, Vec<disk::Row>)> {
        let nodes = lock(&self.nodes);
        nodes.iter().take(self.regions).map(|slot| slot.disk.contents()).collect()
    }

    /// One region leads and acknowledges, everybody knows, no other one's PostgreSQL takes writes, and all
    /// hold the same.
    fn is_whole(&self) -> bool {
        let nodes = lock(&self.nodes);
        let Some(nodes): Option<Vec<Arc<Node>>> = nodes.iter().map(|slot| slot.node.clone()).collect() else {
            return false;
        };
        let leading: Vec<_> = nodes.iter().filter(|node| node.acknowledges()).collect();
        let [leader] = leading[..] else { return false };
        let record = leader.voter.accepted();
        let agree = nodes.iter().all(|node| {
            let own = node.voter.accepted();
            (own.epoch, &own.primary, own.promotion.is_none()) == (record.epoch, &record.primary, true)
        });
        let voters = record.electorate(&self.file);
        let settled = voters.is_settled() && voters.lost.is_empty();
        let leads = leader.voter.standing() == Some(Standing::Leads) && settled;
        let (newest, _) = leader.disk.contents();
        let behind = |node: &Arc<Node>| {
            let (log, _) = node.disk.contents();
            !node.has_data() || newest.len() > log.len() + 60 || !newest.starts_with(&log)
        };
        let level = !nodes.iter().take(self.regions).any(behind);
        let stray = nodes.iter().any(|node| node.strays());
        agree && leads && level && !stray && self.checks.acknowledged_lately()
    }

    fn describe(&self) -> String {
        let nodes = lock(&self.nodes);
        let node = |slot: &Slot| match &slot.node {
            Some(node) => format!("\n  {}", node.describe()),
            None => "\n  down".into(),
        };
        nodes.iter().map(node).collect()
    }
}
