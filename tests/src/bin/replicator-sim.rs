//! `replicator-sim volume|coordination [SEED [COUNT]]`: runs seeds of a simulation; a single one tells everything that happens.

use std::process::ExitCode;

use replicator_tests::simulation::{coordination, volume};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let numbers: Vec<u64> = arguments.iter().filter_map(|a| a.parse().ok()).collect();
    let what = arguments.first().map_or("", String::as_str);
    if !["volume", "coordination"].contains(&what) || numbers.len() + 1 != arguments.len() {
        eprintln!("usage: replicator-sim volume|coordination [SEED [COUNT]]");
        return ExitCode::from(2);
    }
    let first = numbers.first().copied().unwrap_or(0);
    let count = numbers.get(1).copied().unwrap_or(1);
    let (mut volumes, mut leaders) = (volume::Report::default(), coordination::Report::default());
    for seed in first..first + count {
        let ran = if what == "volume" {
            volume::run(seed, volume::Bug::None, count == 1).map(|report| volumes.add(&report))
        } else {
            coordination::run(seed, coordination::Bug::None, count == 1).map(|report| leaders.add(&report))
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
