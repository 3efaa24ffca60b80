//! A thousand seeds of every simulation, and bugs put in on purpose, which must be found.

use replicator_tests::simulation::volume::{Bug, run};

#[test]
fn a_thousand_seeds_of_the_volume() {
    for seed in 0..1000 {
        if let Err(what) = run(seed, Bug::None, false) {
            panic!("{what}\n\nagain: target/release/replicator-sim volume {seed}");
        }
    }
}

#[test]
fn bugs_put_in_on_purpose_are_found() {
    for bug in [Bug::IgnoresCut, Bug::FlushedEarly, Bug::TakesAnyBallot] {
        let found = (0..200).find(|seed| run(*seed, bug, false).is_err());
        println!("{bug:?} is found by seed {found:?}");
        assert!(found.is_some(), "{bug:?} goes unnoticed");
    }
}
