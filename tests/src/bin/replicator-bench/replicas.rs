//! A region with fifteen replicas: how long after its commit a row is seen on each, what they cost the
//! writer, and how long it takes to add one.

use std::time::Duration;

use replicator_tests::bench::{pgbench_init, pgbench_with};
use replicator_tests::{Cluster, connect_to, fill_bulk, make_bulk, now};
use runtime::task::Task;
use sqlx::{Executor, PgConnection};

/// Rows whose way is timed.
const ROWS: usize = 200;

/// What the writer is given meanwhile, transactions a second.
const RATE: &str = "200";

/// The size of what a further replica is given, MiB.
const SIZE_MIB: u64 = 1024;

/// One region with `replicas`, the last of which is added once there is 1 GiB to copy.
pub async fn run(replicas: u64) {
    let cluster = Cluster::for_bench(0);
    let names: Vec<String> = (1..=replicas).map(|number| format!("n{number}")).collect();
    let (last, first) = names.split_last().expect("at least one");
    for node in first {
        cluster.add_node("us-east", node);
    }
    cluster.start();
    let url = cluster.clear_url("us-east");
    pgbench_init(&url);
    let alone = pgbench_with(&url, 8, &["-T", "10"]);
    println!("TPC-B, 8 clients, with {} replicas: {alone:.0} tps", first.len());

    let mut writer = connect_to(&url).await;
    make_bulk(&mut writer).await;
    while size_mib(&mut writer).await < SIZE_MIB {
        fill_bulk(&mut writer).await;
    }
    cluster.until_level().await;
    let size = size_mib(&mut writer).await;
    cluster.add_node("us-east", last);
    let begin = now();
    assert!(cluster.run(&["reload"]).status.success());
    cluster.start();
    cluster.until_node_streams("us-east", last).await;
    println!("one more replica of {size} MiB: {:.1} s until it streams", begin.elapsed().as_secs_f64());

    // Each is asked by a session of its own, again and again; the writer has a steady load.
    let mut readers = Vec::new();
    for node in &names {
        readers.push(connect_to(&cluster.node_url("us-east", node)).await);
    }
    writer.execute("CREATE TABLE seen (id bigint PRIMARY KEY)").await.unwrap();
    cluster.until_level().await;
    let busy = Task::spawn("a steady load", {
        let url = url.clone();
        async move {
            let load = move || pgbench_with(&url, 4, &["-T", "30", "-R", RATE]);
            runtime::task::blocking("pgbench", load).await
        }
    });
    let mut delays: Vec<Duration> = Vec::new();
    for id in 0..i64::try_from(ROWS).unwrap() {
        sqlx::query("INSERT INTO seen VALUES ($1)").bind(id).execute(&mut writer).await.unwrap();
        let committed = now();
        let looking = readers.iter_mut().map(|reader| async move {
            let sql = "SELECT count(*) FROM seen WHERE id = $1";
            while sqlx::query_scalar::<_, i64>(sql).bind(id).fetch_one(&mut *reader).await.unwrap() == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            committed.elapsed()
        });
        delays.extend(futures_util::future::join_all(looking).await);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let reached = busy.await.unwrap().unwrap();
    delays.sort_unstable();
    let at = |share: usize| delays[(delays.len() - 1) * share / 100].as_secs_f64() * 1e3;
    println!(
        "commit to visible on each of {replicas} replicas at {RATE} transactions a second ({reached:.0} reached): p50 {:.1}, p99 {:.1}, \
         worst {:.1} ms",
        at(50),
        at(99),
        at(100)
    );
}

async fn size_mib(writer: &mut PgConnection) -> u64 {
    let size = "SELECT sum(pg_database_size(oid))::bigint / 1048576 FROM pg_database";
    sqlx::query_scalar::<_, i64>(size).fetch_one(writer).await.unwrap().unsigned_abs()
}
