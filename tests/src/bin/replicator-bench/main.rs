//! `make bench`: one primary and two secondaries beside stock streaming replication, in the same run on the
//! same disk.
//!
//! Prints how long after its commit a row is visible on a secondary, what that costs the writer, and what
//! crosses the network. Every figure stands beside its baseline.

#![allow(clippy::unwrap_used, reason = "a benchmark ends where it fails")]

mod bring;
mod commit;
mod cost;
mod drill;
mod endpoint;
mod flood;
mod growth;
mod heads;
mod lag;
mod links;
mod load;
mod moves;
mod rejoin;
mod replicas;
mod roads;
mod sealed;
mod telemetry;

use replicator_tests::bench::{Stock, pgbench, pgbench_init};
use replicator_tests::{Cluster, now, pause};
use sqlx::{Connection, Executor, PgConnection};

/// Rows whose way is timed, and how many are not counted first.
const ROWS: usize = 400;
const WARM_UP: usize = 50;

/// What to measure, from the command line: `replicator-bench regions [SECONDARIES [PGBENCH-SECONDS]]` or
/// `replicator-bench commit [RUNS [PGBENCH-SECONDS]]` or `replicator-bench growth [GIB [GIB]]` or
/// `replicator-bench drill [ROUNDS [PGBENCH-SECONDS]]` or `replicator-bench rejoin [GIB [ONE-ROW-IN]]` or
/// `replicator-bench load [SESSIONS [SECONDS]]` or `replicator-bench cost [SECONDARIES [TRANSACTIONS]]` or
/// `replicator-bench endpoint [ROUNDS [PGBENCH-SECONDS]]` or `replicator-bench replicas [REPLICAS]` or
/// `replicator-bench telemetry [ROUNDS [PGBENCH-SECONDS]]` or
/// `replicator-bench sealed [ROUNDS [PGBENCH-SECONDS]]` or
/// `replicator-bench heads [ROUNDS [TAKE-OVER-AFTER-MS]]` or `replicator-bench moves [MOVES]` or
/// `replicator-bench flood [SECONDS [HANDSHAKES-A-SECOND]]` or
/// `replicator-bench links [PGBENCH-SECONDS [ONE-SYSTEM]]` or
/// `replicator-bench controllers [PGBENCH-SECONDS [ONE-CONTROLLER]]` or
/// `replicator-bench repairs [PGBENCH-SECONDS [0 WITHOUT OR 1 WITH]]` or `replicator-bench bring [MIB]`.
fn main() {
    match std::env::args().nth(1).as_deref() {
        // The ends of a bulk transfer, which `links` runs in places of their own.
        Some(end @ ("bulk-sender" | "bulk-receiver")) => links::bulk_end(end == "bulk-sender"),
        _ => measure(),
    }
}

#[tokio::main]
async fn measure() {
    let mut arguments = std::env::args().skip(1);
    let what = arguments.next().unwrap_or_else(|| "regions".into());
    let mut numbers = arguments.map(|a| a.parse::<u64>().expect("a number"));
    let (first, second) = (numbers.next(), numbers.next());
    match what.as_str() {
        "regions" => {
            let secondaries = usize::try_from(first.unwrap_or(2)).expect("at most five");
            regions(secondaries, second.unwrap_or(20)).await;
        }
        "cost" => {
            let secondaries = usize::try_from(first.unwrap_or(2)).expect("at most five");
            cost::run(secondaries, second.unwrap_or(8_000)).await;
        }
        "commit" => commit::run(first.unwrap_or(5), second.unwrap_or(12)).await,
        "growth" => growth::run([first.unwrap_or(1), second.unwrap_or(20)]).await,
        "drill" => drill::run(first.unwrap_or(3), second.unwrap_or(40)).await,
        "heads" => heads::run(first.unwrap_or(20), second.unwrap_or(1_000)).await,
        "moves" => moves::run(first.unwrap_or(20)).await,
        "replicas" => replicas::run(first.unwrap_or(15)).await,
        "rejoin" => rejoin::run(first.unwrap_or(1), second.unwrap_or(10_000)).await,
        "load" => load::run(first.unwrap_or(50), second.unwrap_or(60)).await,
        "endpoint" => endpoint::run(first.unwrap_or(3), second.unwrap_or(8)).await,
        "flood" => flood::run(first.unwrap_or(60), second.unwrap_or(300)).await,
        "sealed" => sealed::run(first.unwrap_or(5), second.unwrap_or(12)).await,
        "telemetry" => telemetry::run(first.unwrap_or(5), second.unwrap_or(12)).await,
        "lag" => lag::run(first.unwrap_or(10)).await,
        "bring" => {
            let work = move || bring::run(first.unwrap_or(1024), "pacing");
            runtime::task::blocking("bring", work).await.expect("it runs to its end");
        }
        "links" => {
            let work = move || roads::run(first.unwrap_or(20), second);
            runtime::task::blocking("links", work).await.expect("it runs to its end");
        }
        "repairs" => {
            let work = move || links::repairs(first.unwrap_or(20), second);
            runtime::task::blocking("repairs", work).await.expect("it runs to its end");
        }
        "controllers" => {
            let work = move || links::run(first.unwrap_or(25), second);
            runtime::task::blocking("controllers", work).await.expect("it runs to its end");
        }
        other => {
            panic!(
                "there is no '{other}': regions, commit, cost, growth, drill, endpoint, flood, heads, moves, rejoin, replicas, load, sealed, telemetry, lag, links, \
                 controllers, repairs, bring"
            )
        }
    }
}

/// Lag, throughput and WAN bytes of several regions.
async fn regions(secondaries: usize, seconds: u64) {
    println!(
        "stock: one writer and {secondaries} asynchronous standbys; ours: one primary and {secondaries} secondary regions."
    );
    println!("pgbench: TPC-B, -c 8 -s 20, {seconds} s, on this machine's processors and one disk.\n");
    let stock = Stock::start(secondaries).await;
    let stock_visible = visible_after(&stock.url(0), &stock.url(1)).await;
    pgbench_init(&stock.url(0));
    let (stock_tps, _) = pgbench(&stock.url(0), seconds, async || {}).await;
    drop(stock);

    let cluster = Cluster::for_bench(secondaries);
    cluster.start();
    let (primary, secondary) = (cluster.clear_url("us-east"), cluster.clear_url("eu-west"));
    let ours_visible = visible_after(&primary, &secondary).await;
    let mut worst_ms = 0;
    let before = counters(&cluster);
    pgbench_init(&primary);
    let (ours_tps, p95_ms) = pgbench(&primary, seconds, async || {
        let status = cluster.status();
        let lags = status["regions"]
            .as_array()
            .unwrap()
            .iter()
            .map(|r| r["visibility_lag_ms"].as_u64().unwrap_or(u64::MAX));
        worst_ms = worst_ms.max(lags.max().unwrap_or(0));
    })
    .await;
    cluster.until_level().await;
    cluster.assert_identical().await;
    let after = counters(&cluster);
    let (redo, wan) = (after.0 - before.0, after.1 - before.1);

    let ratio = |ours: f64, stock: f64| format!("{:.2}x", ours / stock);
    println!("{:44} {:>10} {:>10} {:>8}", "", "stock", "ours", "ratio");
    for (index, what) in ["median", "95th percentile"].into_iter().enumerate() {
        let (stock, ours) = (stock_visible[index], ours_visible[index]);
        println!("commit to visible, {what:25} {stock:>7.2} ms {ours:>7.2} ms {:>8}", ratio(ours, stock));
    }
    println!(
        "{:44} {stock_tps:>10.0} {ours_tps:>10.0} {:>8}",
        "pgbench, transactions a second",
        ratio(ours_tps, stock_tps)
    );
    println!("{:44} {:>10} {p95_ms:>7.1} ms", "pgbench, 95th percentile latency", "");
    println!("{:44} {:>10} {worst_ms:>7} ms", "worst visibility lag seen under pgbench", "");
    println!(
        "{:44} {redo:>10} {wan:>10} {:>8}",
        "redo bytes, WAN bytes to one region",
        format!("1/{:.1}", redo / wan)
    );
}

/// Redo sent to the first secondary, and the bytes it took.
fn counters(cluster: &Cluster) -> (f64, f64) {
    let status = cluster.status();
    let of = |key: &str| status["regions"][1][key].as_f64().unwrap();
    (of("redo_bytes"), of("wan_bytes"))
}

/// Milliseconds from the return of a commit until its row is seen on the other side: median and 95th
/// percentile.
async fn visible_after(primary: &str, secondary: &str) -> [f64; 2] {
    let mut writer = PgConnection::connect(primary).await.unwrap();
    let mut reader = PgConnection::connect(secondary).await.unwrap();
    writer.execute("DROP TABLE IF EXISTS timed; CREATE TABLE timed (id bigint PRIMARY KEY)").await.unwrap();
    while reader.execute("SELECT FROM timed").await.is_err() {
        pause().await;
    }
    let mut times = Vec::new();
    for id in 0..i64::try_from(ROWS + WARM_UP).unwrap() {
        sqlx::query("INSERT INTO timed VALUES ($1)").bind(id).execute(&mut writer).await.unwrap();
        let committed = now();
        let seen = "SELECT count(*) FROM timed WHERE id = $1";
        while sqlx::query_scalar::<_, i64>(seen).bind(id).fetch_one(&mut reader).await.unwrap() == 0 {}
        times.push(committed.elapsed().as_secs_f64() * 1000.0);
    }
    let mut times = times.split_off(WARM_UP);
    times.sort_by(f64::total_cmp);
    [times[times.len() / 2], times[times.len() * 95 / 100]]
}
