//! `replicator-sim volume [SEED [COUNT]]`: runs seeds of the simulation; a single one tells everything that happens.

use std::process::ExitCode;

use replicator_tests::simulation::volume::{Bug, Report, run};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let numbers: Vec<u64> = arguments.iter().filter_map(|a| a.parse().ok()).collect();
    if arguments.first().is_none_or(|what| what != "volume") || numbers.len() + 1 != arguments.len() {
        eprintln!("usage: replicator-sim volume [SEED [COUNT]]");
        return ExitCode::from(2);
    }
    let first = numbers.first().copied().unwrap_or(0);
    let count = numbers.get(1).copied().unwrap_or(1);
    let mut all = Report::default();
    for seed in first..first + count {
        match run(seed, Bug::None, count == 1) {
            Ok(report) => {
                all.durable += report.durable;
                all.openings += report.openings;
                all.faults += report.faults;
            }
            Err(what) => {
                eprintln!("{what}\n\nagain: replicator-sim volume {seed}");
                return ExitCode::FAILURE;
            }
        }
        if (seed + 1) % 10_000 == 0 {
            eprintln!("{} seeds", seed + 1 - first);
        }
    }
    println!(
        "{count} seeds: {} batches durable, {} openings, {} faults; nothing lost",
        all.durable, all.openings, all.faults
    );
    ExitCode::SUCCESS
}
