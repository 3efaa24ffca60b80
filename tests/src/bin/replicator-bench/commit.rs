//! What durable commits cost the writer: stock PostgreSQL with no receiver, one and six synchronous ones, and
//! a region whose volume has six copies, all on one disk, in one run.

use replicator_tests::Cluster;
use replicator_tests::bench::{Stock, median, pgbench, pgbench_init, sending_seconds};

/// What is compared, in the order of the rounds.
const VARIANTS: [&str; 5] = [
    "stock, no receiver",
    "stock, one synchronous receiver",
    "stock, six synchronous, ANY 4",
    "ours, six copies",
    "ours, commit = \"local\"",
];

/// One run of pgbench: transactions a second, 95th percentile in ms, microseconds of sending and receiving a
/// transaction.
type Run = [f64; 3];

/// Runs every variant `runs` times in turn, `seconds` each, and prints the medians.
pub async fn run(runs: u64, seconds: u64) {
    println!("pgbench: TPC-B, -c 8 -s 20, {seconds} s a run, medians of {runs} runs in turn, one disk.\n");
    // A database each, so that none ages faster than the others.
    let stocks = [Stock::start(0).await, Stock::start(0).await, Stock::start(0).await];
    for stock in &stocks {
        pgbench_init(&stock.url(0));
    }
    let (ours, local) = (Cluster::for_bench(0), Cluster::for_bench(0));
    local.configure("commit = \"local\"\n");
    for cluster in [&ours, &local] {
        cluster.start();
        pgbench_init(&cluster.clear_url("us-east"));
    }
    let mut results: [Vec<Run>; 5] = Default::default();
    for _ in 0..runs {
        for (index, receivers, rule) in [(0, 0, ""), (1, 1, "r0"), (2, 6, "ANY 4 (r0, r1, r2, r3, r4, r5)")] {
            let stock = &stocks[index];
            let receivers = stock.receivers(receivers, rule);
            let (postmaster, processes) = (stock.postmaster(), receivers.processes());
            results[index]
                .push(measure(&stock.url(0), seconds, || sending_seconds(postmaster, &processes)).await);
            stock.release(receivers);
        }
        for (index, cluster) in [(3, &ours), (4, &local)] {
            let url = cluster.clear_url("us-east");
            let number = |pid: nix::unistd::Pid| u32::try_from(pid.as_raw()).unwrap();
            let (postmaster, daemon) =
                (number(cluster.postmaster("us-east")), number(cluster.daemon("us-east")));
            results[index].push(measure(&url, seconds, || sending_seconds(postmaster, &[daemon])).await);
        }
    }
    let medians =
        results.map(|runs| [0, 1, 2].map(|field| median(runs.iter().map(|run| run[field]).collect())));
    println!("{:34} {:>8} {:>9} {:>22}", "", "tps", "p95, ms", "sending, us a commit");
    for (name, [tps, p95, cpu]) in VARIANTS.iter().zip(medians) {
        println!("{name:34} {tps:>8.0} {p95:>9.1} {cpu:>22.0}");
    }
    let [none, one, six, ours, local] = medians;
    println!("\n{:52} {:>7} {:>8}", "", "reached", "asked");
    let ratios = [
        ("tps, ours / stock's one receiver", ours[0] / one[0], "0.95"),
        ("tps, ours / stock's six", ours[0] / six[0], "1.6"),
        ("p95, ours / stock's one receiver", ours[1] / one[1], "1.1"),
        ("processor time of sending, ours / stock's six", ours[2] / six[2], "0.33"),
        ("tps, ours with commit = \"local\" / no receiver", local[0] / none[0], "0.97"),
    ];
    for (what, ratio, asked) in ratios {
        println!("{what:52} {ratio:>6.2}x {asked:>7}x");
    }
}

async fn measure(url: &str, seconds: u64, used: impl Fn() -> f64) -> Run {
    let before = used();
    let (tps, p95_ms) = pgbench(url, seconds, async || {}).await;
    let transactions = tps * f64::from(u32::try_from(seconds).unwrap());
    [tps, p95_ms, (used() - before) * 1e6 / transactions]
}
