//! What it costs to look each second at what PostgreSQL is busy with.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use replicator_tests::{Cluster, free_port, now};
use runtime::task::Task;
use sqlx::{Connection, PgConnection};

/// Ticks of processor time in a second, as the kernel tells them to every program.
const TICKS: f64 = 100.0;

/// One region with `sessions` that are active all the time, each with a statement of its own, for `seconds`:
/// first not looked at, then looked at.
pub async fn run(sessions: u64, seconds: u64) {
    println!(
        "{sessions} active sessions with a statement each, {seconds} s; the region's daemon with http and one other region.\n"
    );
    let without = measure(false, sessions, seconds).await;
    let with = measure(true, sessions, seconds).await;
    println!("{:52} {:>10} {:>10}", "", "off", "on");
    let row = |what: &str, off: String, on: String| println!("{what:52} {off:>10} {on:>10}");
    row("PostgreSQL's answer to one look, mean", "-".into(), format!("{:.2} ms", with.answer_ms));
    row("looks that were missed", "-".into(), format!("{}", with.missed));
    let share = |share: f64| format!("{:.2} %", share * 100.0);
    row("the daemon, of a processor", share(without.daemon), share(with.daemon));
    row("the session that looks, of a processor", "-".into(), share(with.session));
    row("kept on the disk, a second", "-".into(), format!("{:.0} B", with.bytes));
}

#[derive(Default)]
struct Cost {
    answer_ms: f64,
    missed: f64,
    daemon: f64,
    session: f64,
    bytes: f64,
}

async fn measure(looks: bool, sessions: u64, seconds: u64) -> Cost {
    let cluster = Cluster::for_bench(1);
    let port = free_port();
    cluster.configure(&format!(
        "telemetry.load = {looks}\npostgresql.settings = {{ max_connections = \"{}\" }}\n",
        sessions + 50
    ));
    cluster.configure_region("us-east", &format!("http = \"127.0.0.1:{port}\""));
    cluster.start();
    let url = cluster.clear_url("us-east");
    let mut busy = Vec::new();
    for n in 0..sessions {
        let mut session = PgConnection::connect(&url).await.unwrap();
        busy.push(Task::spawn("a busy session", async move {
            let statement = format!("SELECT pg_sleep(3600) AS c{n}");
            let _ = sqlx::raw_sql(sqlx::AssertSqlSafe(statement)).execute(&mut session).await;
        }));
    }
    // What a start leaves to be done is not counted.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let mut session = PgConnection::connect(&url).await.unwrap();
    let looker = "SELECT pid FROM pg_stat_activity WHERE application_name = 'replicator_watch' AND query LIKE '%fastpath%'";
    let looker: Option<i32> = sqlx::query_scalar(looker).fetch_optional(&mut session).await.unwrap();
    let daemon = cluster.daemon("us-east").as_raw();
    let spent = || (ticks(daemon), looker.map_or(0.0, ticks), now());
    let (before, kept, counted) = (spent(), kept(&cluster), metrics(port));
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let (after, kept_after, counted_after) = (spent(), self::kept(&cluster), metrics(port));
    let elapsed = after.2.duration_since(before.2).as_secs_f64();
    drop(busy);
    if !looks {
        return Cost { daemon: (after.0 - before.0) / TICKS / elapsed, ..Cost::default() };
    }
    let grew = |name: &str| series(&counted_after, name) - series(&counted, name);
    let answered = grew("replicator_load_looks_total{region=\"us-east\",outcome=\"answered\"}");
    Cost {
        answer_ms: grew("replicator_load_looking_seconds_total{region=\"us-east\"}") * 1e3 / answered,
        missed: grew("replicator_load_looks_total{region=\"us-east\",outcome=\"missed\"}"),
        daemon: (after.0 - before.0) / TICKS / elapsed,
        session: (after.1 - before.1) / TICKS / elapsed,
        bytes: (kept_after - kept) / elapsed,
    }
}

/// The processor time of a process so far, ticks.
fn ticks(process: i32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let (_, after) = stat.rsplit_once(") ").unwrap();
    after.split(' ').skip(11).take(2).map(|ticks| ticks.parse::<f64>().unwrap()).sum()
}

/// What is kept on the disk, bytes.
fn kept(cluster: &Cluster) -> f64 {
    let files = std::fs::read_dir(cluster.region("us-east").join("load")).into_iter().flatten();
    let bytes: u64 = files.map(|file| file.unwrap().metadata().unwrap().len()).sum();
    f64::from(u32::try_from(bytes).unwrap())
}

fn metrics(port: u16) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn series(metrics: &str, name: &str) -> f64 {
    let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap().parse().unwrap()
}
