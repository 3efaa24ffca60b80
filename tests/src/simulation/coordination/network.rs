//! The network between daemons: late, lossy, doubled, and cut in every shape.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::time::Duration;

use proto::messages::{control_request, control_response, voted};
use replicator::client::AskError;
use replicator::config::Place;
use replicator::voter::Network;
use transport::TransportError;

use super::node::Node;
use super::{World, lock};
use crate::simulation::Dice;

/// After so long a daemon knows that a connection is gone; see `transport`.
const IDLE: Duration = Duration::from_secs(5);

/// Which daemons reach which.
#[derive(Debug)]
pub(super) struct Links {
    count: usize,
    cut: BTreeSet<(usize, usize)>,
    /// One message in so many is lost.
    pub(super) loss: u64,
    /// The longest way, microseconds.
    pub(super) delay_us: u64,
}

impl Links {
    pub(super) fn new(count: usize, dice: &mut Dice) -> Links {
        let delay_us = [2_000, 20_000, 150_000][usize::try_from(dice.below(3)).unwrap_or(0)];
        Links { count, cut: BTreeSet::new(), loss: 20 + dice.below(500), delay_us }
    }

    pub(super) fn heal(&mut self) {
        self.cut.clear();
    }

    pub(super) fn isolate(&mut self, victim: usize) -> String {
        for other in (0..self.count).filter(|other| *other != victim) {
            self.cut.extend([(victim, other), (other, victim)]);
        }
        format!("{victim} is cut off")
    }

    /// Those in `side` reach each other, and so do the others; nobody else does.
    pub(super) fn part(&mut self, side: &BTreeSet<usize>) -> String {
        self.cut.clear();
        for (a, b) in (0..self.count).flat_map(|a| (0..self.count).map(move |b| (a, b))) {
            if side.contains(&a) != side.contains(&b) {
                self.cut.insert((a, b));
            }
        }
        format!("{side:?} on one side")
    }

    /// Cuts something: one daemon off, one link in one or both ways, or everybody into two halves.
    pub(super) fn split(&mut self, victim: usize, dice: &mut Dice) -> String {
        let other = usize::try_from(dice.below(self.count as u64)).unwrap_or(0);
        match dice.below(5) {
            0 => self.isolate(victim),
            1 => {
                self.cut.insert((victim, other));
                format!("{victim} does not reach {other}")
            }
            2 => {
                self.cut.extend((0..self.count).map(|other| (victim, other)));
                format!("{victim} hears and is not heard")
            }
            3 => {
                self.cut.extend([(victim, other), (other, victim)]);
                format!("no way between {victim} and {other}")
            }
            _ => {
                let side: Vec<bool> = (0..self.count).map(|_| dice.one_in(2)).collect();
                for (a, b) in (0..self.count).flat_map(|a| (0..self.count).map(move |b| (a, b))) {
                    if side[a] != side[b] {
                        self.cut.insert((a, b));
                    }
                }
                format!("halves {side:?}")
            }
        }
    }
}

impl World {
    /// One way from `from` to `to`: whether it arrives, after its time.
    pub(super) async fn way(&self, from: usize, to: usize) -> bool {
        let (loss, delay_us) = {
            let links = lock(&self.links);
            (links.loss, links.delay_us)
        };
        let (lost, took_us) = self.dice(|dice| (dice.one_in(loss), 100 + dice.below(delay_us)));
        tokio::time::sleep(Duration::from_micros(took_us)).await;
        let cut = lock(&self.links).cut.contains(&(from, to));
        from == to || !(lost || cut)
    }
}

/// How one daemon's life reaches the others.
#[derive(Debug)]
pub(super) struct Wire {
    pub(super) world: Weak<World>,
    pub(super) from: usize,
    pub(super) life: u64,
}

impl Wire {
    async fn carry(&self, to: usize, body: control_request::Body) -> Option<control_response::Body> {
        let world = self.world.upgrade()?;
        if !world.way(self.from, to).await || !world.lives(self.from, self.life) {
            return None;
        }
        let node = world.node(to)?;
        let from = world.places[self.from].name.clone();
        if world.dice(|dice| dice.one_in(40)) {
            let (again, body, from) = (node.clone(), body.clone(), from.clone());
            node.spawn(async move { drop(again.reply(from, body).await) });
        }
        // What a daemon does for another goes on when that does not wait any more, and ends with it.
        let (answer, answered) = tokio::sync::oneshot::channel();
        let asked = node.clone();
        node.spawn(async move { drop(answer.send(asked.reply(from, body).await)) });
        let answer = answered.await.ok()?;
        let mine = world.node(self.from)?;
        let answer = match answer {
            control_response::Body::Voted(mut voted) => {
                if let Some(voted::Body::Accepted(granted)) = &mut voted.body {
                    granted.silent_us = mine.seen_us(granted.silent_us);
                }
                control_response::Body::Voted(voted)
            }
            answer => answer,
        };
        (world.way(to, self.from).await && world.lives(self.from, self.life)).then_some(answer)
    }
}

impl World {
    fn lives(&self, index: usize, life: u64) -> bool {
        let nodes = lock(&self.nodes);
        nodes[index].node.is_some() && nodes[index].life == life
    }
}

impl Network for Wire {
    fn ask<'a>(
        &'a self,
        place: &'a Place,
        body: control_request::Body,
        patience: Duration,
    ) -> Pin<Box<dyn Future<Output = Result<control_response::Body, AskError>> + Send + 'a>> {
        Box::pin(async move {
            let slow = AskError::Slow(patience.as_millis());
            let to = self.world.upgrade().and_then(|world| world.places.iter().position(|p| p == place));
            let Some(to) = to else { return Err(slow) };
            let asked = async {
                match self.carry(to, body).await {
                    Some(answer) => Ok(answer),
                    // QUIC sends again what the network loses; what never comes is a connection that is gone,
                    // and that is noticed.
                    None => {
                        tokio::time::sleep(IDLE).await;
                        Err(AskError::Transport(TransportError::Lost("the connection is gone".into())))
                    }
                }
            };
            match tokio::time::timeout(patience, asked).await {
                Ok(Ok(control_response::Body::Refusal(refusal))) => Err(AskError::Refused(refusal.reason)),
                Ok(answer) => answer,
                Err(_) => Err(slow),
            }
        })
    }
}

/// A redo stream's message from a primary to a region, and the answer.
pub(super) async fn ship<T>(
    world: &Arc<World>,
    from: &Node,
    to: usize,
    deliver: impl AsyncFnOnce(&Arc<Node>) -> T,
) -> Option<T> {
    if !world.way(from.index, to).await || !world.lives(from.index, from.life) {
        return None;
    }
    let node = world.node(to)?;
    let dies = node.dies();
    let answer = tokio::select! {
        biased;
        () = dies.cancelled() => return None,
        answer = deliver(&node) => answer,
    };
    (world.way(to, from.index).await && world.lives(to, node.life) && world.lives(from.index, from.life))
        .then_some(answer)
}
