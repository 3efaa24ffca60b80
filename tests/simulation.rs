//! A thousand seeds of every simulation, and bugs put in on purpose, which must be found.

use std::ops::Range;

use replicator_tests::simulation::{coordination, volume};

#[test]
fn a_thousand_seeds_of_the_volume() {
    for seed in 0..1000 {
        if let Err(what) = volume::run(seed, volume::Bug::None, false) {
            panic!("{what}\n\nagain: target/release/replicator-sim volume {seed}");
        }
    }
}

#[test]
fn bugs_of_the_volume_put_in_on_purpose_are_found() {
    use volume::Bug;
    let mut unnoticed = Vec::new();
    for bug in Bug::ALL {
        let begin = runtime::clock::now();
        let found = (0..PLANTED_SEEDS).find(|seed| volume::run(*seed, bug, false).is_err());
        let took_ms = begin.elapsed().as_millis();
        match found {
            Some(seed) => println!("{bug:?}: found by seed {seed}, after {took_ms} ms"),
            None => unnoticed.push(bug),
        }
    }
    assert!(unnoticed.is_empty(), "{unnoticed:?} went unnoticed in {PLANTED_SEEDS} seeds each");
}

fn seeds_of_the_coordination(seeds: Range<u64>) {
    for seed in seeds {
        if let Err(what) = coordination::run(seed, coordination::Bug::None, false) {
            panic!("{what}\n\nagain: target/release/replicator-sim coordination {seed}");
        }
    }
}

#[test]
fn a_thousand_seeds_of_the_coordination_first_half() {
    seeds_of_the_coordination(0..500);
}

#[test]
fn a_thousand_seeds_of_the_coordination_second_half() {
    seeds_of_the_coordination(500..1000);
}

#[test]
fn a_seed_decides_everything() {
    let run = |seed| coordination::run(seed, coordination::Bug::None, false);
    (0..40).for_each(|seed| assert_eq!(run(seed), run(seed)));
}

/// The most seeds that a planted bug may need.
const PLANTED_SEEDS: u64 = 1000;

#[test]
fn bugs_of_the_coordination_put_in_on_purpose_are_found() {
    use coordination::Bug;
    let mut unnoticed = Vec::new();
    for bug in Bug::ALL {
        let begin = runtime::clock::now();
        let found = (0..PLANTED_SEEDS).find(|seed| coordination::run(*seed, bug, false).is_err());
        let took_ms = begin.elapsed().as_millis();
        match found {
            Some(seed) => println!("{bug:?}: found by seed {seed}, after {took_ms} ms"),
            None => unnoticed.push(bug),
        }
    }
    assert!(unnoticed.is_empty(), "{unnoticed:?} went unnoticed in {PLANTED_SEEDS} seeds each");
}
