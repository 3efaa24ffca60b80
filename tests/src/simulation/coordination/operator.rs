//! What else an operator does: adds voters and removes them, and gives his word. It is true: those of whom he
//! says that they do not run have crashed, and are started again one after the other, once the failover is
//! over and the network whole.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use coordination::leadership::{Change, Order};
use coordination::{Membership, Mode};
use proto::RegionName;

use super::orders::{sign, sign_voters};
use super::{World, lock};

/// How often it is looked whether something is over.
const LOOK: Duration = Duration::from_millis(50);

/// How long one change of the voters is waited for.
const PATIENCE: Duration = Duration::from_secs(3);

/// How often the word is given again, and it is looked, at most.
const LOOKS: usize = 400;

/// `index` is added to the voters or removed from them, by whoever leads.
pub(super) fn change_voters(world: &Arc<World>, index: usize) {
    let Some(node) = world.leader().and_then(|leader| world.node(leader)) else { return };
    let name = world.places[index].name.clone();
    let voters = node.voter.electorate();
    let membership = match voters.now.has(&name) {
        // The only one that is left has nobody who could tell it what it has forgotten.
        true if voters.now.len() < 3 => return,
        true => Membership::Remove { name },
        false => Membership::Add { name, witness: index >= world.regions },
    };
    let world = world.clone();
    world.clone().tasks.spawn(async move {
        world.tell(|| format!("the voters are to change: {membership:?}"));
        let order = sign_voters(&node.voter.electorate(), &membership);
        let changed = node.voter.change_voters(membership, order).await;
        world.tell(|| match changed {
            Ok(record) => format!("the voters have changed: {:?}", record.voters.map(|voters| voters.now)),
            Err(e) => format!("the voters did not change: {e}"),
        });
    });
}

/// Half of the voters are removed; then those who have a vote no more are on one side of the network, with
/// the primary or with a region that has slept through their removal, and a region on the side without the
/// primary is ordered to lead. The votes of those who have none must keep no lease, and decide on nothing.
pub(super) fn part_with_the_removed(world: &Arc<World>) {
    // Nobody gives his word meanwhile: he would say what is not true of the network.
    let Some(leader) = world.leader().filter(|_| !world.word.swap(true, Ordering::Relaxed)) else { return };
    let world = world.clone();
    world.clone().tasks.spawn(async move {
        part(&world, leader).await;
        world.word.store(false, Ordering::Relaxed);
    });
}

async fn part(world: &Arc<World>, leader: usize) {
    let record = world.newest();
    let voters = record.electorate(&world.file).clone();
    let leads = record.primary == world.places[leader].name && record.promotion.is_none();
    let has_vote = |index: &usize| voters.now.has(&world.places[*index].name);
    let regions: Vec<usize> = (0..world.regions).filter(|index| *index != leader).filter(has_vote).collect();
    if !leads || voters.now.len() < 3 || regions.is_empty() {
        return;
    }
    let drawn = world.dice(|dice| dice.below(regions.len() as u64));
    let sleeper = regions[usize::try_from(drawn).unwrap_or(0)];
    let with_leader = world.dice(|dice| dice.one_in(2));
    if !with_leader {
        let shape = lock(&world.links).isolate(sleeper);
        world.tell(|| format!("network: {shape}, and sleeps through a change of the voters"));
    }
    let others = (0..world.places.len()).filter(|index| ![leader, sleeper].contains(index));
    let removed: BTreeSet<usize> = others.filter(has_vote).take(voters.now.len() / 2).collect();
    for index in &removed {
        let membership = Membership::Remove { name: world.places[*index].name.clone() };
        let Some(node) = world.node(leader) else { return };
        let order = sign_voters(&node.voter.electorate(), &membership);
        let _ = tokio::time::timeout(PATIENCE, node.voter.change_voters(membership, order)).await;
    }
    world.checks.fault();
    let mut side = removed;
    side.insert(if with_leader { leader } else { sleeper });
    let shape = lock(&world.links).part(&side);
    world.tell(|| format!("network: {shape}, with those whose vote was taken"));
    super::order(world, sleeper, Mode::Failover, None);
    tokio::time::sleep(Duration::from_secs(6)).await;
    lock(&world.links).heal();
    world.tell(|| "network: healed".into());
}

/// How long an operator tries to have a word taken.
const REFUSED: Duration = Duration::from_secs(20);

/// The primary and some of the other voters crash, and an operator says so to one that is left.
pub(super) fn give_word(world: &Arc<World>) {
    let Some(leader) = world.leader().filter(|_| !world.word.swap(true, Ordering::Relaxed)) else { return };
    let world = world.clone();
    world.clone().tasks.spawn(async move {
        if let Some((to, lost)) = choose(&world, leader) {
            world.checks.fault();
            carry_out(&world, to, &lost).await;
        }
        world.word.store(false, Ordering::Relaxed);
    });
}

/// Who shall lead, and who is lost.
fn choose(world: &Arc<World>, leader: usize) -> Option<(usize, BTreeSet<usize>)> {
    let record = world.newest();
    let voters = record.electorate(&world.file).clone();
    // He looks at `status` first: who is not said to be lost is there.
    let there = |index| world.node(index).is_some_and(|node| node.voter.remembers());
    let whole = (0..world.places.len()).all(there)
        && record.promotion.is_none()
        && voters.is_settled()
        && voters.lost.is_empty();
    if !whole || record.primary != world.places[leader].name {
        return None;
    }
    let able = |index: &usize| {
        let node = world.node(*index);
        *index != leader
            && voters.may_lead(&world.places[*index].name)
            && node.is_some_and(|node| {
                // What only those that are lost have agreed on is overruled by the word: he gives it to one
                // that has heard the newest.
                node.is_able_follower() && node.is_on_line(&record) && node.voter.accepted() == record
            })
    };
    let able: Vec<usize> = (0..world.regions).filter(able).collect();
    let drawn = world.dice(|dice| dice.below(able.len() as u64));
    let to = *able.get(usize::try_from(drawn).unwrap_or(0))?;
    let others = (0..world.places.len()).filter(|index| *index != to && *index != leader);
    let others = others.filter(|index| voters.now.has(&world.places[*index].name));
    let mut lost: BTreeSet<usize> = others.filter(|_| world.dice(|dice| dice.one_in(2))).collect();
    lost.insert(leader);
    Some((to, lost))
}

async fn carry_out(world: &Arc<World>, to: usize, lost: &BTreeSet<usize>) {
    let names: BTreeSet<RegionName> = lost.iter().map(|index| world.places[*index].name.clone()).collect();
    world.tell(|| format!("{names:?} are gone, and {to} is to lead on an operator's word"));
    let loss = {
        let mut links = lock(&world.links);
        links.heal();
        std::mem::replace(&mut links.loss, u64::MAX)
    };
    for index in lost {
        world.crash(*index, 0);
        lock(&world.nodes)[*index].held = true;
    }
    let id = 1 + world.dice(|dice| dice.below(u64::MAX - 1));
    let me = world.places[to].name.clone();
    let (mut begun, since) = (false, crate::now());
    for _ in 0..LOOKS {
        // Its vote may just be taken away: then it is refused, and they are started again.
        if !begun && since.elapsed() > REFUSED {
            break;
        }
        let Some(node) = world.node(to) else {
            tokio::time::sleep(LOOK).await;
            continue;
        };
        let order = Order::new(id, node.voter.accepted().epoch, Mode::Failover, &me);
        let order = sign(Order { forced: true, lost: names.clone(), ..order });
        if !begun && node.voter.change(&Change::Begin(order)).await.is_ok() {
            (begun, _) = (true, node.voter.coordinate(id));
        }
        let record = node.voter.agreed().map(|agreed| agreed.record);
        if begun && record.is_some_and(|record| record.promotion.is_none()) {
            break;
        }
        if world.checks.has_failed() {
            break;
        }
        tokio::time::sleep(LOOK).await;
    }
    for index in lost {
        lock(&world.nodes)[*index].held = false;
        world.start(*index);
        let knows = || {
            let epoch = world.newest().epoch;
            world.node(*index).is_some_and(|node| node.voter.accepted().epoch >= epoch)
        };
        for _ in 0..LOOKS {
            if knows() || world.checks.has_failed() {
                break;
            }
            tokio::time::sleep(LOOK).await;
        }
    }
    lock(&world.links).loss = loss;
}
