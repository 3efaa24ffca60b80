//! How long an old primary takes to come back after a failover: rewound, and seeded.

use std::time::Duration;

use replicator_tests::{Cluster, now, pause};
use sqlx::Executor;

/// Rows of this many bytes fill the database.
const ROW_BYTES: u64 = 1024;

/// One primary and two secondaries with `gib` GiB of incompressible rows, of which one in `one_in` is updated
/// at each turn. The primary is killed, another region led meanwhile, and it comes back: first with its data,
/// which are rewound, and then, after another failover, without, so that it is seeded.
pub async fn run(gib: u64, one_in: u64) {
    println!(
        "{gib} GiB of random rows, one in {one_in} of which is updated in each region alone; three regions on this machine's one disk; the network is loopback, which favours the seed.\n"
    );
    let cluster = Cluster::up(2);
    let rows = i64::try_from((gib << 30) / ROW_BYTES).unwrap();
    let mut primary = cluster.connect("us-east").await;
    primary.execute("CREATE TABLE t (id bigint, pad bytea)").await.unwrap();
    primary.execute("ALTER TABLE t ALTER pad SET STORAGE EXTERNAL").await.unwrap();
    for from in (0..rows).step_by(65_536) {
        let query = "INSERT INTO t SELECT g, pg_read_binary_file('/dev/urandom', 0 * g, 992) FROM generate_series($1, $2) g";
        sqlx::query(query).bind(from).bind((from + 65_535).min(rows)).execute(&mut primary).await.unwrap();
    }
    // As it is some time after a bulk load: nothing of it is left to be done.
    for finish in ["VACUUM FREEZE t", "CHECKPOINT"] {
        primary.execute(finish).await.unwrap();
    }
    cluster.until_level().await;
    println!("{:34} {:>10} {:>12}", "until it streams again", "seconds", "sent, MB");
    let rewound = comes_back(&cluster, ["us-east", "eu-west"], one_in, false).await;
    let seeded = comes_back(&cluster, ["eu-west", "us-east"], one_in, true).await;
    for (what, (seconds, bytes)) in [("rewound", rewound), ("seeded (baseline)", seeded)] {
        println!("{what:34} {seconds:>10.1} {:>12.1}", bytes / 1e6);
    }
    println!("{:34} {:>9.2}x {:>11.3}x", "ratio", rewound.0 / seeded.0, rewound.1 / seeded.1);
}

/// Kills `old` while it writes, has `new` lead, and starts the old one, without data if they are `lost`:
/// seconds until it streams, and bytes sent for it.
async fn comes_back(cluster: &Cluster, [old, new]: [&str; 2], one_in: u64, lost: bool) -> (f64, f64) {
    let update = |rest: u64| format!("UPDATE t SET id = id WHERE id % {one_in} = {rest}");
    cluster.until_level_enough(new).await;
    let mut primary = cluster.connect(old).await;
    // Some pages differ: those that only the old one changed.
    primary.execute(sqlx::AssertSqlSafe(update(0))).await.unwrap();
    primary.execute("SET synchronous_commit = local").await.unwrap();
    primary.execute(sqlx::AssertSqlSafe(update(1))).await.unwrap();
    cluster.kill(old, true).await;
    let promoted = cluster.run(&["promote", "--region", new, "--mode", "failover"]);
    assert!(promoted.status.success(), "{}", replicator_tests::text(&promoted.stderr));
    cluster.connect(new).await.execute(sqlx::AssertSqlSafe(update(2))).await.unwrap();
    if lost {
        std::fs::remove_dir_all(cluster.region(old).join("pgdata")).unwrap();
    }
    let begin = now();
    cluster.start_region(old);
    while cluster.status()["regions"]
        .as_array()
        .unwrap()
        .iter()
        .any(|row| row["name"] == old && (row["role"] != "secondary" || row["state"] != "streaming"))
    {
        assert!(begin.elapsed() < Duration::from_secs(1800), "it does not come back");
        pause().await;
    }
    let seconds = begin.elapsed().as_secs_f64();
    let log = std::fs::read_to_string(cluster.region(new).join("daemon.log")).unwrap();
    let said = log.lines().rev().find_map(|line| line.split_once("bytes sent to bring its data up: "));
    let bytes = said.and_then(|(_, bytes)| bytes.split_whitespace().next()?.parse().ok());
    (seconds, bytes.expect("the primary says what it sent"))
}
