//! `make bench`: one primary and two secondaries beside stock streaming replication, in the same run on the same disk.
//!
//! Prints how long after its commit a row is visible on a secondary, what that costs the writer, and what crosses the
//! network. Every figure stands beside its baseline.

#![allow(clippy::unwrap_used, reason = "a benchmark ends where it fails")]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use postgres::account::Account;
use replicator_tests::{Cluster, now, pause, postgresql, text};
use sqlx::{Connection, Executor, PgConnection};

/// Rows whose way is timed, and how many are not counted first.
const ROWS: usize = 400;
const WARM_UP: usize = 50;

/// What to measure, from the command line: `replicator-bench [SECONDARIES [PGBENCH-SECONDS]]`.
fn arguments() -> (usize, u64) {
    let mut numbers = std::env::args().skip(1).map(|a| a.parse().expect("a number"));
    let secondaries = numbers.next().unwrap_or(2);
    (usize::try_from(secondaries).expect("at most five"), numbers.next().unwrap_or(20))
}

#[tokio::main]
async fn main() {
    let (secondaries, seconds) = arguments();
    println!(
        "stock: one writer and {secondaries} asynchronous standbys; ours: one primary and {secondaries} secondary regions."
    );
    println!("pgbench: TPC-B, -c 8 -s 20, {seconds} s, on this machine's processors and one disk.\n");
    let stock = Stock::start(secondaries).await;
    let stock_visible = visible_after(&stock.url(0), &stock.url(1)).await;
    let (stock_tps, _) = pgbench(&stock.url(0), seconds, async || {}).await;
    drop(stock);

    let cluster = Cluster::up(secondaries);
    let (primary, secondary) =
        (cluster.printed(&["url", "--region", "us-east"]), cluster.printed(&["url", "--region", "eu-west"]));
    let ours_visible = visible_after(&primary, &secondary).await;
    let mut worst_ms = 0;
    let before = counters(&cluster);
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

/// Milliseconds from the return of a commit until its row is seen on the other side: median and 95th percentile.
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

/// Transactions a second and the 95th percentile of their latency; calls `meanwhile` again and again while it runs.
async fn pgbench(url: &str, seconds: u64, mut meanwhile: impl AsyncFnMut()) -> (f64, f64) {
    let directory = tempfile::tempdir().unwrap();
    let program = postgresql("pgbench");
    let made = Command::new(&program).args(["-i", "-q", "-s", "20", url]).output().unwrap();
    assert!(made.status.success(), "{}", text(&made.stderr));
    let mut command = tokio::process::Command::new(&program);
    let seconds = seconds.to_string();
    command.args(["-c", "8", "-j", "2", "-T", &seconds, "-l", url]).current_dir(directory.path());
    let mut running = std::pin::pin!(command.output());
    let output = loop {
        tokio::select! {
            output = &mut running => break output.unwrap(),
            () = tokio::time::sleep(Duration::from_millis(500)) => meanwhile().await,
        }
    };
    let report = text(&output.stdout);
    let tps = report.lines().find_map(|l| l.strip_prefix("tps = ")?.split(' ').next()?.parse().ok());
    (tps.unwrap_or_else(|| panic!("{report}{}", text(&output.stderr))), percentile_95_ms(directory.path()))
}

fn percentile_95_ms(directory: &Path) -> f64 {
    let logs =
        std::fs::read_dir(directory).unwrap().map(|e| std::fs::read_to_string(e.unwrap().path()).unwrap());
    let mut latencies: Vec<u32> = logs
        .flat_map(|log| log.lines().filter_map(|l| l.split(' ').nth(2)?.parse().ok()).collect::<Vec<u32>>())
        .collect();
    latencies.sort_unstable();
    f64::from(latencies[latencies.len() * 95 / 100]) / 1000.0
}

/// Stock PostgreSQL: a writer and standbys that stream from it.
struct Stock {
    directory: tempfile::TempDir,
    account: Account,
    ports: Vec<u16>,
}

impl Stock {
    async fn start(standbys: usize) -> Stock {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let ports = (0..=standbys).map(|_| replicator_tests::free_port()).collect();
        let stock = Stock { directory, account: Account::resolve(None).unwrap(), ports };
        for index in 0..=standbys {
            stock.account.make_private(&stock.data(index)).unwrap();
        }
        let writer = stock.data(0);
        stock.run(
            "initdb",
            &["-k", "-A", "trust", "-U", "postgres", "--locale=C.UTF-8", "-E", "UTF8", "-D", path(&writer)],
        );
        stock.start_instance(0);
        for index in 1..=standbys {
            let data = stock.data(index);
            let conninfo = format!("host=127.0.0.1 port={} user=postgres", stock.ports[0]);
            stock.run("pg_basebackup", &["-c", "fast", "-R", "-D", path(&data), "-d", &conninfo]);
            stock.start_instance(index);
        }
        stock
    }

    fn url(&self, index: usize) -> String {
        format!("postgresql://postgres@127.0.0.1:{}/postgres", self.ports[index])
    }

    fn data(&self, index: usize) -> std::path::PathBuf {
        self.directory.path().join(index.to_string())
    }

    fn start_instance(&self, index: usize) {
        let options =
            format!("-p {} -c listen_addresses=127.0.0.1 -c unix_socket_directories=''", self.ports[index]);
        let data = self.data(index);
        self.run("pg_ctl", &["start", "-w", "-D", path(&data), "-l", "/dev/null", "-o", &options]);
    }

    fn run(&self, program: &str, arguments: &[&str]) {
        let mut command = self.account.command(&postgresql(program));
        // Not a pipe: PostgreSQL would hold it open.
        let status = command.args(arguments).stdout(std::process::Stdio::null()).status().unwrap();
        assert!(status.success(), "{program} {arguments:?}");
    }
}

impl Drop for Stock {
    fn drop(&mut self) {
        for index in (0..self.ports.len()).rev() {
            let data = self.data(index);
            self.run("pg_ctl", &["stop", "-w", "-m", "fast", "-D", path(&data)]);
        }
    }
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}
