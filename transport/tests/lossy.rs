//! Repairs over real connections, on a path in memory whose time is virtual: what it loses is put together
//! before its retransmission, and on no path does the stream stand still for them.

#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]
#![allow(clippy::disallowed_methods, reason = "certificates are made for now")]

mod network;

use std::time::Duration;

use bytes::BytesMut;
use network::{Dice, Host, Weather, hosts};
use proto::messages::{Batch, Open, Progress};
use proto::{ClusterId, RegionName, frame};
use replicator_transport::{Authority, Connection, Endpoint, Identity, Peer, Receiver, Sender};
use runtime::clock::steady_us;
use tokio::sync::watch;

const PATIENCE: Duration = Duration::from_secs(20);

/// One way.
const DELAY_US: u64 = 40_000;

/// What a writer is like.
#[derive(Debug, Clone, Copy)]
struct Load {
    /// A batch comes every so many microseconds, up to twice; and has so many bytes, up to twice.
    every_us: u64,
    bytes: u64,
    /// Each so many-th is a burst of so many bytes.
    burst: Option<(u64, u64)>,
}

/// Of pgbench: 1.8 MB/s in batches of 2 to 4 kB.
const PGBENCH: Load = Load { every_us: 1100, bytes: 2000, burst: None };

#[derive(Debug, Clone, Copy)]
struct Run {
    /// Whether repairs are sent, and whether they are taken.
    sends: bool,
    takes: bool,
    load: Load,
    there: Weather,
    back: Weather,
    /// The delay each way from the middle of the run on, where it becomes another one.
    later_us: Option<u64>,
    seconds: u64,
    seed: u64,
}

/// What came of a run: milliseconds from a batch's writing until all of it was there.
#[derive(Debug)]
struct Outcome {
    p50: u64,
    p99: u64,
    longest: u64,
    repaired: u64,
    repair_bytes: u64,
    bytes: u64,
    refuted: u64,
}

fn identities() -> [Identity; 2] {
    let directory = tempfile::tempdir().unwrap();
    let at = time::OffsetDateTime::now_utc();
    let authority = Authority::create(&directory.path().join("ca"), "test", ClusterId([1; 16]), at).unwrap();
    ["us-east", "eu-west"].map(|name| {
        let (place, region) = (directory.path().join(name), name.parse::<RegionName>().unwrap());
        authority.issue(&place, &Peer::Region(region), at, time::Duration::days(1)).unwrap();
        Identity::load(&place).unwrap()
    })
}

fn simulate(identities: &[Identity; 2], run: Run) -> Outcome {
    // The clock's beginning lies before all virtual times.
    let _ = steady_us();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    runtime.unwrap().block_on(converse(identities, run))
}

async fn converse(identities: &[Identity; 2], run: Run) -> Outcome {
    let [here, there] = hosts();
    let [a, b] = identities;
    // The handshake meets the delay, and loses nothing.
    here.weather(Weather { loss_ppm: 0, ..run.there }, 1);
    there.weather(Weather { loss_ppm: 0, ..run.back }, 1);
    let client = Endpoint::over(here.clone(), None, a).unwrap();
    let server = Endpoint::over(there.clone(), Some(there.address()), b).unwrap();
    let region = "eu-west".parse().unwrap();
    let (connection, accepted) =
        tokio::join!(client.connect(there.address(), &region, PATIENCE), server.accept());
    let (connection, accepted) = (connection.unwrap(), accepted.unwrap());
    let (mut sender, answers) = connection.open_stream(&Open::default()).await.unwrap().split();
    let (answer, mut receiver) = accepted.accept_stream().await.unwrap().split();
    let _: Open = receiver.receive(1000).await.unwrap().unwrap();
    if run.sends {
        sender.begin_repairs();
    }
    if run.takes {
        receiver.take_repairs();
    }
    here.weather(run.there, run.seed);
    there.weather(run.back, !run.seed);
    let (before, received) = (here.carried(), watch::Sender::new(0));
    let work = async {
        tokio::select! {
            (written, outcome) = async { tokio::join!(
                send(&connection, sender, run),
                receive(receiver, &received, run),
            ) } => (written, outcome),
            () = change(run, &here, &there) => unreachable!("it stays as it is then"),
            () = report(answer, received.subscribe()) => panic!("the connection is lost"),
            () = hear(answers) => panic!("the connection is lost"),
        }
    };
    let (repair_bytes, (mut delays, repaired, refuted)) =
        tokio::time::timeout(8 * PATIENCE, work).await.unwrap();
    let carried = here.carried();
    // Without what start-up is about.
    delays.drain(..delays.len() * 2 / usize::try_from(run.seconds).unwrap());
    delays.sort_unstable();
    let rank = |share: usize| delays[(delays.len() - 1) * share / 100];
    Outcome {
        p50: rank(50),
        p99: rank(99),
        longest: rank(100),
        repaired,
        repair_bytes,
        bytes: carried.bytes - before.bytes,
        refuted,
    }
}

/// As a primary's shipper does: batches as they come, a look at the path each 100 ms, and repairs when they
/// are due. Returns the bytes of those.
async fn send(connection: &Connection, mut sender: Sender, run: Run) -> u64 {
    let (mut dice, mut number, mut looked_us, mut sent) = (Dice(run.seed ^ 77), 0, 0, 0);
    let begin_us = steady_us();
    let mut next_us = begin_us;
    while steady_us() < begin_us + run.seconds * 1_000_000 {
        let wake_us = sender.repairs_wake_us().unwrap_or(u64::MAX);
        let until_us = next_us.min(wake_us);
        tokio::time::sleep(Duration::from_micros(until_us.saturating_sub(steady_us()))).await;
        let mut frames = BytesMut::new();
        while next_us <= steady_us() {
            let burst = run.load.burst.filter(|(each, _)| number % each == each - 1);
            let bytes = burst.map_or(run.load.bytes + dice.below(run.load.bytes), |(_, bytes)| bytes);
            let payload = content(number, usize::try_from(bytes).unwrap()).into();
            let newest_commit_us = i64::try_from(steady_us()).unwrap();
            frame::encode(
                &Batch { begin_lsn: number, newest_commit_us, payload, ..Batch::default() },
                &mut frames,
            );
            number += 1;
            next_us += run.load.every_us + dice.below(run.load.every_us);
        }
        if steady_us() > looked_us + 100_000 {
            looked_us = steady_us();
            let wire = connection.wire();
            sender.note_path(wire.sent_packets, wire.lost_packets);
        }
        sent += sender.send_repairs();
        if !frames.is_empty() {
            sender.write_frames(frames.freeze()).await.unwrap();
        }
    }
    let end = Batch { begin_lsn: u64::MAX, ..Batch::default() };
    sender.send(&end).await.unwrap();
    sender.finish().await;
    sent
}

/// The path becomes another one in the middle of the run.
async fn change(run: Run, here: &Host, there: &Host) {
    tokio::time::sleep(Duration::from_millis(run.seconds * 500)).await;
    if let Some(delay_us) = run.later_us {
        here.weather(Weather { delay_us, ..run.there }, run.seed ^ 1);
        there.weather(Weather { delay_us, ..run.back }, !run.seed ^ 1);
    }
    std::future::pending().await
}

fn content(number: u64, bytes: usize) -> Vec<u8> {
    let mut dice = Dice(number);
    (0..bytes).map(|_| u8::try_from(dice.below(256)).unwrap()).collect()
}

async fn receive(mut receiver: Receiver, received: &watch::Sender<u64>, run: Run) -> (Vec<u64>, u64, u64) {
    let mut delays = Vec::new();
    loop {
        let batch: Batch = receiver.receive(10_000_000).await.unwrap().unwrap();
        if batch.begin_lsn == u64::MAX {
            return (delays, receiver.repaired_messages(), receiver.refuted_repairs());
        }
        let number = delays.len() as u64;
        assert_eq!(batch.begin_lsn, number, "in order, and once: {run:?}");
        assert!(batch.payload == content(number, batch.payload.len()), "other bytes: {run:?}");
        delays.push((steady_us() - u64::try_from(batch.newest_commit_us).unwrap()) / 1000);
        received.send_replace(number);
    }
}

/// As a secondary does: how far it is, each 5 ms at most.
async fn report(mut sender: Sender, mut received: watch::Receiver<u64>) {
    loop {
        let received_lsn = *received.borrow_and_update();
        let progress = Progress { received_lsn, ..Progress::default() };
        if sender.send(&progress).await.is_err() {
            return std::future::pending().await;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
        let _ = tokio::time::timeout(Duration::from_millis(100), received.changed()).await;
    }
}

async fn hear(mut receiver: Receiver) {
    while let Ok(Some(_)) = receiver.receive::<Progress>(1 << 20).await {}
    std::future::pending().await
}

/// The path of the measurements: 40 ms one way, 1000 Mbit/s, 50 ms of queue.
fn path(loss_ppm: u64) -> Weather {
    Weather {
        delay_us: DELAY_US,
        loss_ppm,
        rate: Some(1_000_000_000),
        queue_us: 50_000,
        ..Weather::default()
    }
}

fn run(loss_ppm: u64, seed: u64) -> Run {
    let (there, back) = (path(loss_ppm), path(loss_ppm));
    Run { sends: true, takes: true, load: PGBENCH, there, back, later_us: None, seconds: 10, seed }
}

fn without(run: Run) -> Run {
    Run { sends: false, takes: false, ..run }
}

/// A number from the environment, for longer runs.
fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|said| said.parse().ok()).unwrap_or(otherwise)
}

#[test]
fn a_clean_path_carries_nothing_more() {
    let identities = identities();
    let (with, without) = (simulate(&identities, run(0, 1)), simulate(&identities, without(run(0, 1))));
    assert_eq!((with.repair_bytes, with.repaired, with.longest), (0, 0, without.longest), "{with:?}");
    assert!(with.bytes <= without.bytes + without.bytes / 1000, "{with:?}, without {without:?}");
}

#[test]
fn what_a_path_loses_is_there_before_its_retransmission() {
    let identities = identities();
    for (loss_ppm, most_ms) in [(1000, 70), (10_000, 100)] {
        for seed in 0..3 {
            let run = run(loss_ppm, seed);
            let (with, without) = (simulate(&identities, run), simulate(&identities, without(run)));
            println!("{loss_ppm} ppm, seed {seed}: {with:?}, without {without:?}");
            assert!(with.p99 <= most_ms && with.longest < 300, "{loss_ppm} ppm, seed {seed}: {with:?}");
            assert!(with.p50 <= without.p50 && with.p99 < without.p99, "{with:?}, without {without:?}");
            assert!(with.bytes * 10 <= without.bytes * 11, "{with:?}, without {without:?}");
            assert!(with.repaired > 0 && with.refuted == 0, "{with:?}");
        }
    }
}

/// A route that changes while a connection lives: from a near region to a far one.
#[test]
fn a_path_that_becomes_longer_holds_redo_up_for_less_than_a_second() {
    let identities = identities();
    for (loss_ppm, before_us) in [(0, 100), (0, 5_000), (1000, 100), (10_000, 100)] {
        for seed in 0..2 {
            let longer = run(loss_ppm, seed);
            let delayed = |weather| Weather { delay_us: before_us, ..weather };
            let (there, back) = (delayed(longer.there), delayed(longer.back));
            let run = without(Run { there, back, later_us: Some(DELAY_US), ..longer });
            let outcome = simulate(&identities, run);
            println!("{loss_ppm} ppm, from {before_us} us, seed {seed}: {outcome:?}");
            assert!(outcome.longest < 1000, "{loss_ppm} ppm, from {before_us} us, seed {seed}: {outcome:?}");
        }
    }
}

/// Any path and any load, by a seed.
fn any(seed: u64) -> Run {
    let mut dice = Dice(seed * 31 + 7);
    let mut one = |of: &[u64]| of[usize::try_from(dice.below(of.len() as u64)).unwrap()];
    let burst = one(&[1, 1, 1, 4, 30]);
    let there = Weather {
        loss_ppm: one(&[100, 1000, 10_000, 30_000]) / burst,
        burst,
        // Packets that overtake more than two others are lost ones for quinn.
        jitter_us: one(&[0, 0, 300]),
        rate: Some(one(&[200, 1000]) * 1_000_000),
        delay_us: one(&[5000, 40_000, 100_000]),
        twice: Some(one(&[7, 100_000_000])),
        ..path(0)
    };
    let load = Load {
        every_us: one(&[1100, 1100, 5000, 30_000]),
        bytes: one(&[150, 2000, 2000]),
        burst: Some((one(&[50, 300]), one(&[20_000, 100_000]))),
    };
    let back = Weather { burst: 1, loss_ppm: one(&[0, 1000, 10_000]), ..there };
    Run { there, back, load, seconds: 4, ..run(0, seed) }
}

/// With repairs there are other packets, so others of them are lost, and start-up goes another way: what is
/// compared is whether anything stands still.
#[test]
fn on_no_path_does_the_stream_stand_still() {
    let identities = identities();
    let (first, seeds) = (number("REPAIRS_FIRST", 0), number("REPAIRS_SEEDS", 24));
    for seed in first..first + seeds {
        let run = any(seed);
        let (with, bare) = (simulate(&identities, run), simulate(&identities, without(run)));
        let untaken = simulate(&identities, Run { takes: false, ..run });
        let of = |o: &Outcome| [o.p50, o.p99, o.longest];
        println!("{seed}: {:?}, untaken {:?}, without {:?}", of(&with), of(&untaken), of(&bare));
        let rtt_ms = run.there.delay_us / 500;
        for outcome in [&with, &untaken] {
            let most = bare.longest + 3 * rtt_ms + 400;
            assert!(outcome.longest <= most, "seed {seed}, {run:?}: {outcome:?}, without {bare:?}");
            let most = bare.p50 + rtt_ms + 10;
            assert!(outcome.p50 <= most, "seed {seed}, {run:?}: {outcome:?}, without {bare:?}");
        }
        assert_eq!(with.refuted, 0, "seed {seed}: {run:?}");
    }
}
