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
    for bug in [Bug::IgnoresCut, Bug::FlushedEarly, Bug::TakesAnyBallot] {
        let found = (0..200).find(|seed| volume::run(*seed, bug, false).is_err());
        println!("{bug:?} is found by seed {found:?}");
        assert!(found.is_some(), "{bug:?} goes unnoticed");
    }
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
    (0..5).for_each(|seed| assert_eq!(run(seed), run(seed)));
}

#[test]
fn bugs_of_the_coordination_put_in_on_purpose_are_found() {
    use coordination::Bug;
    let bugs = [
        Bug::ForgetsAnswers,
        Bug::NoLease,
        Bug::AcknowledgesEarly,
        Bug::ForgetsPromises,
        Bug::GathersNothing,
    ];
    for bug in bugs {
        let found = (0..500).find(|seed| coordination::run(*seed, bug, false).is_err());
        println!("{bug:?} is found by seed {found:?}");
        assert!(found.is_some(), "{bug:?} goes unnoticed");
    }
}
