//! Seeded simulations of what can lose data: the real state machines, under virtual time, network and disks.
//!
//! A seed decides everything that happens. `replicator-sim volume 17` runs seed 17 again, and says what
//! happened; so does `replicator-sim coordination 17`.

pub mod coordination;
pub mod volume;

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

/// Events in the order of their virtual times.
#[derive(Debug)]
pub struct Agenda<E> {
    /// Now, microseconds since the run began.
    pub now_us: u64,
    heap: BinaryHeap<Reverse<(u64, u64)>>,
    events: std::collections::HashMap<u64, E>,
    count: u64,
}

impl<E> Agenda<E> {
    /// Nothing to happen yet.
    #[must_use]
    pub fn new() -> Agenda<E> {
        Agenda { now_us: 0, heap: BinaryHeap::new(), events: std::collections::HashMap::new(), count: 0 }
    }

    /// `event` happens `after_us` from now.
    pub fn after(&mut self, after_us: u64, event: E) {
        self.at(self.now_us + after_us, event);
    }

    /// `event` happens at `at_us`.
    pub fn at(&mut self, at_us: u64, event: E) {
        self.count += 1;
        self.heap.push(Reverse((at_us.max(self.now_us), self.count)));
        self.events.insert(self.count, event);
    }
}

impl<E> Iterator for Agenda<E> {
    type Item = E;

    fn next(&mut self) -> Option<E> {
        let Reverse((at_us, number)) = self.heap.pop()?;
        self.now_us = at_us;
        self.events.remove(&number)
    }
}

impl<E> Default for Agenda<E> {
    fn default() -> Agenda<E> {
        Agenda::new()
    }
}

/// The dice of one run.
#[derive(Debug)]
pub struct Dice(SmallRng);

impl Dice {
    /// The dice of `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Dice {
        Dice(SmallRng::seed_from_u64(seed))
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0.random_range(0..end.max(1))
    }

    /// True once in `times`.
    pub fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }
}
