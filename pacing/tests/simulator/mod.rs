//! A path and its flows on a virtual clock, the same for the same seed.
//!
//! Flows share one bottleneck: a rate, a bounded first-in-first-out queue, a delay each way, random and burst
//! loss, jitter that may reorder. A sender does what quinn-proto's connection does: a window, a pacer of 1.25
//! windows a smoothed round trip in bursts, loss by packet and time threshold, probes; a receiver
//! acknowledges every second packet, and others after 25 ms.

#![allow(dead_code, reason = "each test file uses a part of it")]

mod flow;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

pub use flow::{Application, Control, Flow};

/// Bytes of a packet.
pub const PACKET: u64 = 1200;

/// Packet numbers that an acknowledgement covers behind its newest: what earlier, lost acknowledgements said.
const COVERED: usize = 96;

/// How the path is. Loss is in packets of ten thousand.
#[derive(Debug, Clone)]
pub struct Path {
    /// Bits a second.
    pub rate: u64,
    /// Bytes that fit into the bottleneck's queue.
    pub queue: u64,
    /// Each way.
    pub delay_us: u64,
    /// At most so much more.
    pub jitter_us: u64,
    /// Whether a later packet may overtake.
    pub reorder: bool,
    pub loss: u32,
    /// Of acknowledgements.
    pub loss_back: u32,
    /// A burst begins at so many packets of ten thousand, and then loses so many in a row.
    pub burst: (u32, u32),
}

impl Path {
    /// A path without loss, whose queue holds `queue_us` at its rate.
    pub fn new(mbit: u64, delay_us: u64, queue_us: u64) -> Path {
        let queue = mbit * queue_us / 8;
        Path {
            rate: mbit * 1_000_000,
            queue,
            delay_us,
            jitter_us: 0,
            reorder: false,
            loss: 0,
            loss_back: 0,
            burst: (0, 0),
        }
    }

    pub fn loss(self, loss: u32) -> Path {
        Path { loss, loss_back: loss, ..self }
    }
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Arrive { flow: usize, number: u64 },
    Ack { flow: usize, numbers: Vec<u64> },
    AckTimer { flow: usize },
    Wake { flow: usize },
}

/// A run.
pub struct Simulation {
    pub now_us: u64,
    pub path: Path,
    pub flows: Vec<Flow>,
    receivers: Vec<Receiver>,
    events: BinaryHeap<Reverse<(u64, u64, What)>>,
    sequence: u64,
    busy_until_ns: u64,
    last_arrival_us: u64,
    bursting: u32,
    dice: SmallRng,
    /// Sums of the bottleneck's queueing delay: of all packets, how many, and a histogram in milliseconds.
    pub queued: Queued,
}

/// Queueing delay at the bottleneck.
#[derive(Debug, Clone)]
pub struct Queued {
    histogram: Vec<u64>,
}

impl Queued {
    /// In milliseconds, rounded down: of a thousand packets, `rank` waited no longer.
    pub fn rank(&self, rank: u64) -> u64 {
        let all: u64 = self.histogram.iter().sum();
        let mut sum = 0;
        for (ms, count) in self.histogram.iter().enumerate() {
            sum += count;
            if sum * 1000 >= all * rank {
                return ms as u64;
            }
        }
        0
    }

    pub fn clear(&mut self) {
        self.histogram.fill(0);
    }
}

#[derive(Debug, Default)]
struct Receiver {
    recent: VecDeque<u64>,
    unacknowledged: u32,
    largest: Option<u64>,
    timer: bool,
}

impl Simulation {
    pub fn new(path: Path, seed: u64, flows: Vec<Flow>) -> Simulation {
        let receivers = flows.iter().map(|_| Receiver::default()).collect();
        let mut simulation = Simulation {
            now_us: 0,
            path,
            flows,
            receivers,
            events: BinaryHeap::new(),
            sequence: 0,
            busy_until_ns: 0,
            last_arrival_us: 0,
            bursting: 0,
            dice: SmallRng::seed_from_u64(seed),
            queued: Queued { histogram: vec![0; 10_000] },
        };
        for flow in 0..simulation.flows.len() {
            let at = simulation.flows[flow].begins_us;
            simulation.at(at, What::Wake { flow });
        }
        simulation
    }

    fn at(&mut self, at_us: u64, what: What) {
        self.sequence += 1;
        self.events.push(Reverse((at_us, self.sequence, what)));
    }

    /// Runs until `end_us`.
    pub fn run(&mut self, end_us: u64) {
        while self.events.peek().is_some_and(|Reverse((at, ..))| *at < end_us) {
            let Some(Reverse((at, _, what))) = self.events.pop() else { break };
            self.now_us = at;
            match what {
                What::Arrive { flow, number } => self.arrive(flow, number),
                What::Ack { flow, numbers } => {
                    self.flows[flow].acknowledged(at, &numbers);
                    self.send(flow);
                }
                What::AckTimer { flow } => {
                    self.receivers[flow].timer = false;
                    if self.receivers[flow].unacknowledged > 0 {
                        self.acknowledge(flow);
                    }
                }
                What::Wake { flow } => {
                    if self.flows[flow].wakes(at) {
                        self.send(flow);
                    }
                }
            }
        }
        self.now_us = end_us;
    }

    /// Lets a flow send what it may, and wakes it when it may send more.
    fn send(&mut self, flow: usize) {
        let now = self.now_us;
        for number in self.flows[flow].transmit(now) {
            self.forward(flow, number);
        }
        if let Some(at) = self.flows[flow].next_wake(now) {
            self.at(at, What::Wake { flow });
        }
    }

    /// A packet meets the bottleneck, and what comes after it.
    fn forward(&mut self, flow: usize, number: u64) {
        let now = self.now_us;
        let waiting_us = self.busy_until_ns.saturating_sub(now * 1000) / 1000;
        let waiting = waiting_us * (self.path.rate / 1000) / 8000;
        if waiting + PACKET > self.path.queue.max(2 * PACKET) {
            return;
        }
        self.queued.histogram[usize::try_from(waiting_us / 1000).unwrap().min(9999)] += 1;
        self.busy_until_ns =
            self.busy_until_ns.max(now * 1000) + PACKET * 8_000_000 / (self.path.rate / 1000);
        if self.lost() {
            return;
        }
        let jitter =
            if self.path.jitter_us > 0 { self.dice.random_range(0..=self.path.jitter_us) } else { 0 };
        let mut at = self.busy_until_ns / 1000 + self.path.delay_us + jitter;
        if !self.path.reorder {
            at = at.max(self.last_arrival_us);
            self.last_arrival_us = at;
        }
        self.at(at, What::Arrive { flow, number });
    }

    fn lost(&mut self) -> bool {
        if self.bursting > 0 {
            self.bursting -= 1;
            return true;
        }
        if self.path.burst.0 > 0 && self.dice.random_range(0..10_000) < self.path.burst.0 {
            self.bursting = self.path.burst.1.saturating_sub(1);
            return true;
        }
        self.path.loss > 0 && self.dice.random_range(0..10_000) < self.path.loss
    }

    fn arrive(&mut self, flow: usize, number: u64) {
        self.flows[flow].received(self.now_us, number);
        let receiver = &mut self.receivers[flow];
        receiver.recent.push_back(number);
        if receiver.recent.len() > COVERED {
            receiver.recent.pop_front();
        }
        receiver.unacknowledged += 1;
        let in_order = receiver.largest.is_none_or(|largest| number == largest + 1);
        receiver.largest = receiver.largest.max(Some(number));
        if receiver.unacknowledged >= 2 || !in_order {
            self.acknowledge(flow);
        } else if !receiver.timer {
            receiver.timer = true;
            self.at(self.now_us + 25_000, What::AckTimer { flow });
        }
    }

    fn acknowledge(&mut self, flow: usize) {
        self.receivers[flow].unacknowledged = 0;
        if self.path.loss_back > 0 && self.dice.random_range(0..10_000) < self.path.loss_back {
            return;
        }
        let numbers = self.receivers[flow].recent.iter().copied().collect();
        let at = self.now_us + self.path.delay_us;
        self.at(at, What::Ack { flow, numbers });
    }
}
