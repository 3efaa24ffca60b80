//! What a session costs that goes through an endpoint, beside one that goes to PostgreSQL directly.

use replicator_tests::bench::{median, pgbench_init, pgbench_with};
use replicator_tests::{Cluster, free_port, until};
use sqlx::{Connection, PgConnection};

/// Clients that are connected and say nothing.
const IDLE: usize = 900;

/// A region and its endpoint, `rounds` times in turn, for `seconds` each: statements that read, one client
/// and eight, and TPC-B. Then what idle clients take of the daemon's memory.
pub async fn run(rounds: u64, seconds: u64) {
    println!("pgbench -s 20, {rounds} rounds of {seconds} s in turn, all on this machine; medians.\n");
    let cluster = Cluster::for_bench(1);
    cluster.configure("postgresql.settings = { max_connections = \"1000\" }\n");
    cluster.configure_region("us-east", &format!("writer_endpoint = \"127.0.0.1:{}\"", free_port()));
    cluster.start();
    let direct = cluster.clear_url("us-east");
    let endpoint = cluster.printed(&["url", "--region", "us-east", "--endpoint", "writer"]);
    let endpoint = endpoint.replace("sslmode=verify-full", "sslmode=disable");
    pgbench_init(&direct);
    println!("{:34} {:>12} {:>12} {:>8} {:>22}", "", "directly", "endpoint", "ratio", "a transaction takes");
    let cases: [(&str, u64, &[&str]); 3] = [
        ("select-only, one client", 1, &["-S", "-M", "prepared"]),
        ("select-only, eight clients", 8, &["-S", "-M", "prepared"]),
        ("TPC-B, eight clients", 8, &[]),
    ];
    for (what, clients, arguments) in cases {
        let (mut at, mut through) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            let seconds = seconds.to_string();
            let arguments = [arguments, &["-T", &seconds]].concat();
            at.push(pgbench_with(&direct, clients, &arguments));
            through.push(pgbench_with(&endpoint, clients, &arguments));
        }
        let (at, through) = (median(at), median(through));
        let us = |tps: f64| 1e6 * f64::from(u32::try_from(clients).unwrap()) / tps;
        println!(
            "{what:34} {at:>8.0} tps {through:>8.0} tps {:>7.2}x {:>+19.0} us",
            through / at,
            us(through) - us(at)
        );
    }
    let before = resident_kib(&cluster);
    let mut idle = Vec::new();
    for _ in 0..IDLE {
        idle.push(PgConnection::connect(&endpoint).await.unwrap());
    }
    let grown = resident_kib(&cluster) - before;
    println!(
        "\n{IDLE} idle clients: {} KiB more of the daemon, {} KiB each",
        grown,
        grown / i64::try_from(IDLE).unwrap()
    );
    drop(idle);
    until("they are gone", || async {
        let mut session = PgConnection::connect(&direct).await.unwrap();
        let count = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'";
        let count: i64 = sqlx::query_scalar(count).fetch_one(&mut session).await.unwrap();
        count < 20
    })
    .await;
}

fn resident_kib(cluster: &Cluster) -> i64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", cluster.daemon("us-east"))).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse().unwrap()
}
