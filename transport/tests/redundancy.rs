//! What redundancy is for, on a simulated path: the same lines that regions run decide what is repaired and
//! put the stream together; the path loses packets by a seed, and the stream's own retransmission comes a
//! round trip later, as quinn's does.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test ends where it fails")]

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use bytes::Bytes;
use replicator_transport::redundancy::{Assembly, Budget, Repair, Ring};

/// A linear congruential generator: nothing here depends on its quality.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// How the path and the writer are.
#[derive(Clone, Copy)]
struct Run {
    loss_ppm: u64,
    /// Packets lost in a row, once one is.
    burst: u64,
    /// A batch comes every so many microseconds, up to twice.
    every_us: u64,
    /// And has so many bytes, up to twice.
    bytes: u64,
    repairs: bool,
}

/// Each way.
const DELAY_US: u64 = 40_000;
const PACKET: u64 = 1412;
const HEADERS: u64 = 75;
const SECONDS: u64 = 20;

enum What {
    Chunk(u64, Bytes),
    Repair(Bytes),
}

/// What came of a run.
#[derive(Debug)]
struct Outcome {
    /// From a batch's departure until all of it is there in order, milliseconds.
    p50: u64,
    p99: u64,
    longest: u64,
    /// What repairs took of what the stream took, in thousandths, headers included.
    share: u64,
}

struct Path {
    run: Run,
    dice: Dice,
    bursting: u64,
    sent: u64,
    lost: u64,
    arrivals: BinaryHeap<Reverse<(u64, u64)>>,
    carried: Vec<What>,
}

impl Path {
    /// When a packet that leaves at `at_us` arrives, as when it does not it is noticed and, if it is the
    /// stream's, sent again: after a round trip and the three packets by which a loss is known.
    fn send(&mut self, at_us: u64, what: What) {
        let (mut at_us, again) = (at_us, matches!(what, What::Chunk(..)));
        loop {
            self.sent += 1;
            let lost = if self.bursting > 0 {
                self.bursting -= 1;
                true
            } else {
                let lost = self.dice.below(1_000_000) < self.run.loss_ppm;
                self.bursting = if lost { self.run.burst - 1 } else { 0 };
                lost
            };
            if !lost {
                break;
            }
            self.lost += 1;
            if !again {
                return;
            }
            at_us += 2 * DELAY_US + 3000;
        }
        self.arrivals.push(Reverse((at_us + DELAY_US, self.carried.len() as u64)));
        self.carried.push(what);
    }
}

fn content(begin: u64, bytes: u64) -> Bytes {
    (begin..begin + bytes).map(|n| (n.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect()
}

fn simulate(run: Run) -> Outcome {
    let dice = Dice(run.loss_ppm * 31 + run.bytes * 7 + run.every_us);
    let mut path =
        Path { run, dice, bursting: 0, sent: 0, lost: 0, arrivals: BinaryHeap::new(), carried: Vec::new() };
    let (mut budget, mut ring, mut assembly) = (Budget::new(0), Ring::new(0), Assembly::new(0));
    let (mut now_us, mut written, mut spent, mut wire, mut told_us) = (0, 0_u64, 0, 0, 0);
    let mut batches: Vec<(u64, u64)> = Vec::new();
    let mut repair = |budget: &mut Budget, ring: &Ring, path: &mut Path, at_us: u64| {
        while let Some(due) = budget.due(at_us).filter(|_| run.repairs) {
            for part in Repair::compute(ring, due.key, due.cell, due.window, PACKET as usize) {
                let datagram = part.encode();
                spent += datagram.len() as u64 + HEADERS;
                path.send(at_us, What::Repair(datagram));
            }
        }
    };
    while now_us < SECONDS * 1_000_000 {
        let next_us = now_us + run.every_us + path.dice.below(run.every_us);
        if let Some(at_us) = budget.wake_us().filter(|at_us| *at_us < next_us) {
            repair(&mut budget, &ring, &mut path, at_us.max(now_us));
        }
        now_us = next_us;
        if now_us - told_us > 100_000 {
            told_us = now_us;
            budget.path(now_us, path.sent, path.lost);
        }
        repair(&mut budget, &ring, &mut path, now_us);
        let bytes = run.bytes + path.dice.below(run.bytes);
        let batch = content(written, bytes);
        ring.put(written, &batch);
        budget.written(now_us, bytes);
        for (number, packet) in batch.chunks(PACKET as usize).enumerate() {
            let offset = written + number as u64 * PACKET;
            wire += packet.len() as u64 + HEADERS;
            path.send(now_us, What::Chunk(offset, batch.slice_ref(packet)));
        }
        written += bytes;
        batches.push((written, now_us));
    }
    // The other side, once all has left: it tells nothing that the path model does not know.
    let (mut delays, mut batches, mut got) = (Vec::new(), batches.into_iter().peekable(), 0);
    while let Some(Reverse((at_us, number))) = path.arrivals.pop() {
        match std::mem::replace(&mut path.carried[number as usize], What::Repair(Bytes::new())) {
            What::Chunk(offset, bytes) => assembly.chunk(offset, bytes),
            What::Repair(datagram) => assembly.repair(Repair::decode(datagram).unwrap()),
        }
        while let Some((bytes, _)) = assembly.take() {
            assert!(bytes == content(got, bytes.len() as u64), "other bytes at {got}");
            got += bytes.len() as u64;
        }
        while let Some((_, sent_us)) = batches.next_if(|(end, _)| *end <= got) {
            delays.push((at_us - sent_us) / 1000);
        }
    }
    assert_eq!(got, written, "all of it came");
    delays.sort_unstable();
    let rank = |share: usize| delays[(delays.len() - 1) * share / 100];
    Outcome { p50: rank(50), p99: rank(99), longest: rank(100), share: spent * 1000 / wire }
}

/// Of pgbench: 1.8 MB/s in batches of 2 to 4 kB.
const LOAD: Run = Run { loss_ppm: 0, burst: 1, every_us: 1100, bytes: 2000, repairs: true };

#[test]
fn nothing_is_sent_on_a_clean_path() {
    let outcome = simulate(LOAD);
    assert_eq!((outcome.share, outcome.longest), (0, 40), "{outcome:?}");
}

#[test]
fn what_is_lost_is_there_before_its_retransmission() {
    for (loss_ppm, most_ms) in [(100, 60), (1000, 60), (10_000, 70)] {
        let without = simulate(Run { loss_ppm, repairs: false, ..LOAD });
        let with = simulate(Run { loss_ppm, ..LOAD });
        println!("{loss_ppm} ppm: {with:?}, without {without:?}");
        assert!(with.p99 <= most_ms && with.share <= 100, "{loss_ppm} ppm: {with:?}, without {without:?}");
        assert!(with.p99 <= without.p99 && with.p50 <= without.p50, "{loss_ppm} ppm: {with:?}, {without:?}");
        assert!(loss_ppm < 1000 || without.p99 > 100, "{loss_ppm} ppm without: {without:?}");
    }
}

#[test]
fn little_and_bursty_streams_gain_or_lose_nothing() {
    for (name, run) in [
        ("small batches", Run { every_us: 5000, bytes: 150, ..LOAD }),
        ("seldom", Run { every_us: 40_000, bytes: 1000, ..LOAD }),
        ("large batches", Run { every_us: 10_000, bytes: 30_000, ..LOAD }),
        ("bursts of four", Run { burst: 4, ..LOAD }),
        ("bursts of thirty", Run { burst: 30, ..LOAD }),
    ] {
        let run = Run { loss_ppm: 10_000 / run.burst, ..run };
        let (with, without) = (simulate(run), simulate(Run { repairs: false, ..run }));
        println!("{name}: {with:?}, without {without:?}");
        assert!(with.share <= 100, "{name}: {with:?}");
        assert!(with.p99 <= without.p99 && with.p50 <= without.p50, "{name}: {with:?}, without {without:?}");
    }
}
