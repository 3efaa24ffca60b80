//! What the controller promises, on simulated paths; CUBIC and a fixed window of 2 MiB on the same paths
//! stand beside it.

#![allow(
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    reason = "a test ends where it fails; shares are fractions"
)]

mod simulator;

use replicator_pacing::{Phase, Remembered};
use simulator::{Application, Control, Flow, PACKET, Path, Simulation};

const SECOND: u64 = 1_000_000;

fn bulk(path: Path) -> Simulation {
    Simulation::new(path, 1, vec![Flow::new(Control::pacing(), Application::Bulk)])
}

/// Shares of the path that flows get until `end_us`, in hundredths; the queue's record begins anew.
fn shares(simulation: &mut Simulation, end_us: u64) -> Vec<u64> {
    let (begin, begin_us) =
        (simulation.flows.iter().map(|f| f.arrived).collect::<Vec<_>>(), simulation.now_us);
    simulation.queued.clear();
    simulation.run(end_us);
    let all = simulation.path.rate / 1000 * (end_us - begin_us) / 8000;
    simulation
        .flows
        .iter()
        .zip(begin)
        .map(|(flow, begin)| (flow.arrived - begin) * PACKET * 100 / all)
        .collect()
}

#[test]
fn random_loss_does_not_slow_it() {
    // Loss of ten thousand packets, and the share of 400 Mbit/s at 80 ms.
    for (loss, least) in [(0, 97), (1, 97), (10, 97), (100, 95), (300, 90)] {
        let mut simulation = bulk(Path::new(400, 40_000, 50_000).loss(loss));
        simulation.run(4 * SECOND);
        let share = shares(&mut simulation, 12 * SECOND)[0];
        let queue_ms = simulation.queued.rank(990);
        assert!(share >= least && queue_ms < 20, "loss {loss}: {share} %, queue {queue_ms} ms");
    }
}

#[test]
fn the_baselines_do_worse() {
    let share = |control, loss| {
        let flow = Flow::new(control, Application::Bulk);
        let mut simulation = Simulation::new(Path::new(400, 40_000, 50_000).loss(loss), 1, vec![flow]);
        simulation.run(4 * SECOND);
        (shares(&mut simulation, 12 * SECOND)[0], simulation.queued.rank(990))
    };
    assert!(share(Control::cubic(), 0).1 > 20, "CUBIC fills the queue");
    assert!(share(Control::cubic(), 1).0 < 50 && share(Control::cubic(), 100).0 < 2);
    assert!((45..55).contains(&share(Control::Fixed(2 << 20), 100).0), "2 MiB are half of this path");
}

#[test]
fn its_own_queue_is_small() {
    let jitter = Path { jitter_us: 5000, ..Path::new(100, 40_000, 100_000) };
    // Further than that, three later packets make quinn take the overtaken one for lost, and it sends all
    // twice.
    let overtaking = Path { jitter_us: 200, reorder: true, ..Path::new(100, 40_000, 100_000) };
    let bursts = Path { burst: (2, 30), ..Path::new(100, 40_000, 100_000) };
    for (name, path, least, most_ms) in [
        ("10 Mbit/s", Path::new(10, 20_000, 100_000), 95, 20),
        ("200 ms, 1 %", Path::new(100, 100_000, 100_000).loss(100), 95, 20),
        ("local", Path::new(1000, 100, 10_000), 95, 5),
        ("jitter", jitter, 95, 20),
        ("overtaking", overtaking, 80, 20),
        ("bursts", bursts, 90, 20),
    ] {
        let mut simulation = bulk(path);
        simulation.run(6 * SECOND);
        let share = shares(&mut simulation, 16 * SECOND)[0];
        let queue_ms = simulation.queued.rank(990);
        assert!(share >= least && queue_ms <= most_ms, "{name}: {share} %, queue {queue_ms} ms");
    }
}

#[test]
fn a_queue_smaller_than_the_headroom_costs_little() {
    for queue_us in [2_000, 5_000, 10_000] {
        let mut simulation = bulk(Path::new(100, 20_000, queue_us));
        simulation.run(4 * SECOND);
        let (sent, lost) = (simulation.flows[0].sent, simulation.flows[0].lost);
        let share = shares(&mut simulation, 14 * SECOND)[0];
        let loss = (simulation.flows[0].lost - lost) * 1000 / (simulation.flows[0].sent - sent);
        assert!(share >= 95 && loss < 30, "queue {queue_us} us: {share} %, {loss} of 1000 lost");
    }
}

#[test]
fn a_cubic_flow_that_joins_gets_its_share_and_gives_the_link_back() {
    for (delay_us, queue_us) in
        [(20_000, 30_000), (20_000, 50_000), (20_000, 100_000), (5_000, 50_000), (40_000, 80_000)]
    {
        let ours = Flow::new(Control::pacing(), Application::Bulk);
        let other = Flow::new(Control::cubic(), Application::Bulk).between(3 * SECOND, 60 * SECOND);
        let mut simulation = Simulation::new(Path::new(100, delay_us, queue_us), 1, vec![ours, other]);
        simulation.run(10 * SECOND);
        let share = shares(&mut simulation, 60 * SECOND);
        assert!(
            (25..=75).contains(&share[0]) && (25..=75).contains(&share[1]),
            "{delay_us} {queue_us}: {share:?}"
        );
        simulation.run(78 * SECOND);
        let share = shares(&mut simulation, 88 * SECOND)[0];
        let queue_ms = simulation.queued.rank(500);
        assert!(share >= 95 && queue_ms < 10, "alone again: {share} %, queue {queue_ms} ms");
    }
}

#[test]
fn two_of_them_share_evenly() {
    for (delay_us, queue_us) in [(5_000, 50_000), (20_000, 50_000), (40_000, 100_000)] {
        let flows =
            [0, 3].map(|at| Flow::new(Control::pacing(), Application::Bulk).between(at * SECOND, u64::MAX));
        let mut simulation = Simulation::new(Path::new(100, delay_us, queue_us), 1, flows.into());
        simulation.run(20 * SECOND);
        let share = shares(&mut simulation, 60 * SECOND);
        let queue_ms = simulation.queued.rank(990);
        assert!(
            share.iter().all(|s| (40..=60).contains(s)) && queue_ms < 25,
            "{delay_us}: {share:?}, {queue_ms} ms"
        );
    }
}

#[test]
fn it_follows_a_rate_that_drops_to_a_tenth_and_comes_back() {
    let mut simulation = bulk(Path::new(1000, 40_000, 50_000));
    simulation.run(5 * SECOND);
    simulation.path.rate /= 10;
    // The queue that it holds in that moment is ten times as long.
    simulation.run(7 * SECOND);
    let share = shares(&mut simulation, 12 * SECOND)[0];
    let queue_ms = simulation.queued.rank(990);
    assert!(share >= 90 && queue_ms < 30, "at a tenth: {share} %, {queue_ms} ms");
    simulation.path.rate *= 10;
    simulation.run(15 * SECOND);
    let share = shares(&mut simulation, 20 * SECOND)[0];
    assert!(share >= 95, "at the full rate again: {share} %");
}

#[test]
fn a_link_that_becomes_smaller_is_not_taken_for_a_neighbour() {
    for (part, delay_us) in [(4, 20_000), (10, 5_000), (10, 20_000), (30, 5_000), (30, 20_000)] {
        let mut simulation = bulk(Path::new(300, delay_us, 100_000));
        simulation.run(5 * SECOND);
        simulation.path.rate /= part;
        simulation.run(8 * SECOND);
        let share = shares(&mut simulation, 17 * SECOND)[0];
        let queue_ms = simulation.queued.rank(990);
        assert!(share >= 90 && queue_ms < 25, "1/{part}, {delay_us} us: {share} %, {queue_ms} ms");
    }
}

#[test]
fn an_application_that_sends_little_is_not_held_up_and_poisons_nothing() {
    for loss in [0, 10, 100] {
        // 9.6 Mbit/s in bursts of ten packets; then all that is let through.
        let application = Application::BurstsThenBulk { packets: 10, every_us: 10_000, from_us: 20 * SECOND };
        let flow = Flow::new(Control::pacing(), application);
        let mut simulation = Simulation::new(Path::new(400, 40_000, 50_000).loss(loss), 1, vec![flow]);
        simulation.run(2 * SECOND);
        let from = simulation.flows[0].held_us.len();
        simulation.run(20 * SECOND);
        let mut held = simulation.flows[0].held_us.split_off(from);
        held.sort_unstable();
        let p99 = held[held.len() * 98 / 100];
        assert!(p99 < 1000, "loss {loss}: a packet waited {p99} us");
        simulation.run(21 * SECOND);
        let share = shares(&mut simulation, 25 * SECOND)[0];
        assert!(share >= 90, "loss {loss}: {share} % one second after");
        assert_ne!(simulation.flows[0].controller().phase(), Phase::Startup, "start-up has ended");
    }
}

#[test]
fn what_was_known_before_a_pause_still_holds() {
    let application =
        Application::BulkBut { packets: 1, every_us: 20_000, from_us: 5 * SECOND, to_us: 65 * SECOND };
    let mut simulation =
        Simulation::new(Path::new(400, 40_000, 50_000), 1, vec![Flow::new(Control::pacing(), application)]);
    simulation.run(65 * SECOND + SECOND / 5);
    let share = shares(&mut simulation, 66 * SECOND)[0];
    assert!(share >= 85, "{share} % from 200 ms to 1 s after a minute of little");
}

#[test]
fn a_known_path_is_resumed_and_a_changed_one_is_not_flooded() {
    let known = Remembered { bandwidth: 50_000_000, propagation_us: 80_000 };
    let begin = |control, path: Path| {
        let mut simulation = Simulation::new(path, 1, vec![Flow::new(control, Application::Bulk)]);
        let share = shares(&mut simulation, SECOND / 2)[0];
        (share, simulation)
    };
    let (fresh, _) = begin(Control::pacing(), Path::new(400, 40_000, 50_000));
    let (resumed, _) = begin(Control::resumed(known), Path::new(400, 40_000, 50_000));
    assert!(resumed >= 40 && resumed > 3 * fresh, "{resumed} % of the first half second, {fresh} % without");
    // The link has become a tenth, and longer, in that order.
    let (_, mut slow) = begin(Control::resumed(known), Path::new(40, 40_000, 50_000));
    slow.run(3 * SECOND);
    let share = shares(&mut slow, 8 * SECOND)[0];
    let queue_ms = slow.queued.rank(990);
    assert!(share >= 90 && queue_ms < 25, "{share} %, {queue_ms} ms");
    let (_, longer) = begin(Control::resumed(known), Path::new(400, 150_000, 50_000));
    let without = begin(Control::pacing(), Path::new(400, 150_000, 50_000)).1;
    assert_eq!(longer.flows[0].sent, without.flows[0].sent, "another path: nothing is resumed");
}

#[test]
fn the_same_seed_is_the_same_run() {
    let run = || {
        let flows = vec![
            Flow::new(Control::pacing(), Application::Bulk),
            Flow::new(Control::cubic(), Application::Bulk),
            Flow::new(Control::pacing(), Application::Bursts { packets: 3, every_us: 7000 }),
        ];
        let path =
            Path { jitter_us: 2000, reorder: true, burst: (5, 10), ..Path::new(50, 15_000, 40_000).loss(50) };
        let mut simulation = Simulation::new(path, 42, flows);
        simulation.run(10 * SECOND);
        simulation.flows.iter().map(|f| (f.arrived, f.sent, f.lost)).collect::<Vec<_>>()
    };
    assert_eq!(run(), run());
}

#[test]
fn a_thousand_drawn_paths() {
    use rand::rngs::SmallRng;
    use rand::{RngExt, SeedableRng};
    for seed in 0..1000 {
        let mut dice = SmallRng::seed_from_u64(seed);
        // Below, the pacer's bursts of ten packets are a queue of their own.
        let mbit = dice.random_range(10..60);
        let delay_us = dice.random_range(500..60_000);
        let queue_us = dice.random_range(20_000..150_000);
        let path = Path {
            jitter_us: dice.random_range(0..2_000),
            reorder: false,
            ..Path::new(mbit, delay_us, queue_us).loss(dice.random_range(0..100))
        };
        let mut simulation =
            Simulation::new(path.clone(), seed, vec![Flow::new(Control::pacing(), Application::Bulk)]);
        simulation.run(4 * SECOND);
        let share = shares(&mut simulation, 10 * SECOND)[0];
        let queue_ms = simulation.queued.rank(900);
        assert!(share >= 80 && queue_ms < 30, "seed {seed}: {share} %, queue {queue_ms} ms, {path:?}");
    }
}

/// An application of 1.8 MB/s, on a path that becomes longer after so many seconds: how long its packets
/// waited at the sender from then on, milliseconds: 99th percentile and longest.
fn held_when_longer(before_us: u64, after_us: u64, loss: u32, seconds: u64, seed: u64) -> (u64, u64) {
    let application = Application::Bursts { packets: 2, every_us: 1_300 };
    let path = Path::new(1000, before_us, 50_000);
    let flow = Flow::new(Control::pacing(), application);
    let mut simulation = Simulation::new(path, seed, vec![flow]);
    simulation.run(seconds * SECOND);
    simulation.path.delay_us = after_us;
    simulation.path.loss = loss;
    simulation.path.loss_back = loss;
    let from = simulation.flows[0].held_us.len();
    simulation.run((seconds + 20) * SECOND);
    let mut held = simulation.flows[0].held_us.split_off(from);
    held.sort_unstable();
    (held[(held.len() - 1) * 99 / 100] / 1000, held[held.len() - 1] / 1000)
}

#[test]
fn a_path_that_becomes_longer_is_soon_believed() {
    for (before_us, after_us) in [(50, 40_000), (50, 5_000), (5_000, 40_000), (20_000, 100_000)] {
        for loss in [0, 10, 100] {
            for seconds in [1, 5, 20] {
                // Four to six rounds: until it is seen, and until the window has grown.
                let most_ms = 200 + 2 * after_us * 6 / 1000;
                let (p99, longest) = held_when_longer(before_us, after_us, loss, seconds, seconds);
                assert!(
                    p99 <= most_ms && longest <= most_ms,
                    "{before_us} to {after_us} us, loss {loss}, after {seconds} s: {p99}, {longest} ms"
                );
            }
        }
    }
}
