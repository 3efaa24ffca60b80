//! `replicator-sim volume|coordination [SEED [COUNT [BUG]]]`: runs seeds of a simulation; a single one tells
//! everything that happens. With the name of a planted bug it is run with that, until it is found.

use std::process::ExitCode;

use replicator_tests::simulation::{coordination, volume};

fn main() -> ExitCode {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let named = arguments.get(3).cloned().unwrap_or_default();
    let bug = coordination::Bug::ALL.into_iter().find(|bug| named == format!("{bug:?}"));
    let volume_bug = volume::Bug::ALL.into_iter().find(|bug| named == format!("{bug:?}"));
    arguments.truncate(if bug.is_some() || volume_bug.is_some() { 3 } else { usize::MAX });
    let (bug, volume_bug) = (bug.unwrap_or_default(), volume_bug.unwrap_or(volume::Bug::None));
    let numbers: Vec<u64> = arguments.iter().filter_map(|a| a.parse().ok()).collect();
    let what = arguments.first().map_or("", String::as_str);
    if !["volume", "coordination"].contains(&what) || numbers.len() + 1 != arguments.len() {
        eprintln!("usage: replicator-sim volume|coordination [SEED [COUNT [BUG]]]");
        return ExitCode::from(2);
    }
    let first = numbers.first().copied().unwrap_or(0);
    let count = numbers.get(1).copied().unwrap_or(1);
    let (mut volumes, mut leaders) = (volume::Report::default(), coordination::Report::default());
    for seed in first..first + count {
        let ran = if what == "volume" {
            volume::run(seed, volume_bug, count == 1).map(|report| volumes.add(&report))
        } else {
            coordination::run(seed, bug, count == 1).map(|report| leaders.add(&report))
        };
        if let Err(violated) = ran {
            eprintln!("{violated}\n\nagain: replicator-sim {what} {seed}");
            return ExitCode::FAILURE;
        }
        if (seed + 1) % 10_000 == 0 {
            eprintln!("{} seeds", seed + 1 - first);
        }
    }
    match what {
        "volume" => println!("{count} seeds: {volumes}"),
        _ => println!("{count} seeds: {leaders}"),
    }
    ExitCode::SUCCESS
}
