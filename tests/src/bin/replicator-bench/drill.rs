//! What a rehearsal costs: the primary's throughput and the region's lag with drills going on, and without,
//! in turn.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use replicator_tests::Cluster;
use replicator_tests::bench::{pgbench, pgbench_init};
use runtime::task::Task;

/// `rounds` pairs of runs of `seconds` each, on one primary and one secondary.
pub async fn run(rounds: u64, seconds: u64) {
    println!(
        "pgbench: TPC-B, -c 8 -s 20, {rounds} pairs of {seconds} s runs; one secondary, drilled again and again in every other run."
    );
    println!(
        "Everything shares this machine's processors and one disk: a region of its own would share neither with the primary.\n"
    );
    let cluster = Arc::new(Cluster::for_bench(1));
    cluster.start();
    let url = cluster.clear_url("us-east");
    pgbench_init(&url);
    let (mut tps, mut lags) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    let drills = Arc::new(AtomicUsize::new(0));
    for round in 0..rounds * 2 {
        let with = usize::try_from(round % 2).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let drilling = (with == 1).then(|| {
            let (cluster, stop, drills) = (cluster.clone(), stop.clone(), drills.clone());
            let drill_on = move || {
                while !stop.load(Ordering::Relaxed) {
                    let report = cluster.printed(&["drill", "--region", "eu-west", "--json"]);
                    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
                    assert_eq!(report["passed"], true, "{report:#}");
                    drills.fetch_add(1, Ordering::Relaxed);
                }
            };
            Task::spawn("drill again and again", runtime::task::blocking("drill again and again", drill_on))
        });
        let (run_tps, _) = pgbench(&url, seconds, async || {
            let status = cluster.status();
            lags[with].push(status["regions"][1]["visibility_lag_ms"].as_u64().unwrap_or(u64::MAX));
        })
        .await;
        tps[with].push(run_tps);
        stop.store(true, Ordering::Relaxed);
        if let Some(drilling) = drilling {
            drilling.await.unwrap().unwrap();
        }
    }
    println!("{:34} {:>16} {:>16} {:>8}", "", "without", "with drills", "ratio");
    let middle = |values: &mut Vec<f64>| {
        values.sort_by(f64::total_cmp);
        (values[values.len() / 2], values[0], values[values.len() - 1])
    };
    let [without, with] = tps.each_mut().map(middle);
    println!(
        "{:34} {:>16.0} {:>16.0} {:>7.2}x",
        "transactions a second, median",
        without.0,
        with.0,
        with.0 / without.0
    );
    let span = |(_, least, most): (f64, f64, f64)| format!("{least:.0} to {most:.0}");
    println!("{:34} {:>16} {:>16}", "  the runs", span(without), span(with));
    for (what, percent) in [
        ("visibility lag, median", 50),
        ("visibility lag, 95th percentile", 95),
        ("visibility lag, worst", 100),
    ] {
        let [without, with] = lags.each_mut().map(|lags| {
            lags.sort_unstable();
            lags[(lags.len() * percent / 100).min(lags.len() - 1)]
        });
        println!("{what:34} {without:>13} ms {with:>13} ms");
    }
    println!("{} drills, all passed", drills.load(Ordering::Relaxed));
}
