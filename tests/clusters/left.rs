//! What was set or left behind before a start keeps no region from its work.

use replicator_tests::{Cluster, text, until};
use sqlx::Executor;

use crate::row;

/// Settings that must be ours win while they are ours to set, and are told; at the next start they are gone.
#[tokio::test(flavor = "multi_thread")]
async fn what_alter_system_sets_of_ours_keeps_no_region_from_starting() {
    let cluster = Cluster::up(1);
    let mut writer = cluster.connect("us-east").await;
    writer.execute("CREATE TABLE t (n int)").await.unwrap();
    for set in [
        "listen_addresses = '127.0.0.9'",
        "synchronous_commit = on",
        "max_slot_wal_keep_size = '1MB'",
        "recovery_min_apply_delay = '1h'",
        "work_mem = '5MB'",
    ] {
        writer.execute(sqlx::AssertSqlSafe(format!("ALTER SYSTEM SET {set}"))).await.unwrap();
    }
    writer.execute("SELECT pg_reload_conf()").await.unwrap();
    until("it is told", || async {
        let told = row(&cluster, "us-east").1;
        told.contains("ALTER SYSTEM has set")
            && told.contains("listen_addresses")
            && !told.contains("work_mem")
    })
    .await;
    cluster.kill("us-east", true).await;
    cluster.start_region("us-east");
    cluster.until_streams("us-east").await;
    let mut writer = cluster.connect("us-east").await;
    writer.execute("INSERT INTO t VALUES (1)").await.unwrap();
    let shown = async |name: &str, connection: &mut sqlx::PgConnection| {
        sqlx::query_scalar::<_, String>(sqlx::AssertSqlSafe(format!("SHOW {name}")))
            .fetch_one(connection)
            .await
            .unwrap()
    };
    assert_eq!(shown("max_slot_wal_keep_size", &mut writer).await, "-1");
    assert_eq!(shown("work_mem", &mut writer).await, "5MB", "what is the user's stays");
    // A standby takes it as well, and what a seed carries.
    cluster.until_level().await;
    let mut standby = cluster.connect("eu-west").await;
    standby.execute("ALTER SYSTEM SET hot_standby = off").await.unwrap();
    // A voter that was killed is not heard over the connection of before.
    until("eu-west leads", || async { cluster.run(&["promote", "--region", "eu-west"]).status.success() })
        .await;
    cluster.until_streams("us-east").await;
    let _ = cluster.printed(&["promote", "--region", "us-east"]);
    cluster.until_streams("eu-west").await;
    cluster.assert_identical().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_cannot_be_started_is_started_once_it_can() {
    let cluster = Cluster::up(1);
    cluster.expect(&["the walsender's socket"]);
    cluster.connect("us-east").await.execute("CREATE TABLE t AS SELECT 1 AS n").await.unwrap();
    cluster.until_level().await;
    let socket = cluster.region("eu-west").join("run/.s.PGSQL.5433");
    std::fs::remove_file(&socket).unwrap();
    std::fs::create_dir(&socket).unwrap();
    let _ = cluster.printed(&["reseed", "--region", "eu-west", "--yes"]);
    until("it is told", || async {
        row(&cluster, "eu-west").1.contains("not started yet: the walsender's socket")
    })
    .await;
    std::fs::remove_dir(&socket).unwrap();
    cluster.until_streams("eu-west").await;
    cluster.assert_identical().await;
}

/// A secondary whose data directory somebody moves away while it runs is seeded, without a word to anybody.
#[tokio::test(flavor = "multi_thread")]
async fn a_secondary_whose_data_directory_is_moved_away_is_seeded_while_it_runs() {
    let cluster = Cluster::up(1);
    cluster.expect(&["its data directory is gone", "its data directory was moved away"]);
    cluster.connect("us-east").await.execute("CREATE TABLE t AS SELECT 1 AS n").await.unwrap();
    cluster.until_level().await;
    let (data, daemon) = (cluster.region("eu-west").join("pgdata"), cluster.daemon("eu-west"));
    std::fs::rename(&data, data.with_file_name("elsewhere")).unwrap();
    until("it has data again", || async { data.join("global/pg_control").exists() }).await;
    cluster.until_streams("eu-west").await;
    cluster.assert_identical().await;
    assert_eq!(cluster.daemon("eu-west"), daemon, "nobody has started it again");
}

/// A daemon that is killed while its data are being replaced leaves a standby behind that nobody keeps.
#[tokio::test(flavor = "multi_thread")]
async fn a_seed_ends_the_standby_that_a_killed_daemon_left_running() {
    let cluster = Cluster::up(1);
    cluster.connect("us-east").await.execute("CREATE TABLE t AS SELECT 1 AS n").await.unwrap();
    cluster.until_level().await;
    let left = cluster.postmaster("eu-west");
    cluster.kill("eu-west", false).await;
    let file = cluster.region("eu-west").join("region.json");
    let mut state: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    state["system_id"] = serde_json::Value::Null;
    std::fs::write(&file, state.to_string()).unwrap();
    cluster.start_region("eu-west");
    let postmaster = cluster.region("eu-west").join("pgdata/postmaster.pid");
    until("another PostgreSQL runs", || async {
        let content = std::fs::read_to_string(&postmaster).unwrap_or_default();
        content.lines().next().is_some_and(|process| process != left.to_string())
    })
    .await;
    // One that has ended may wait for its parent's word; it works nowhere any more.
    assert!(std::fs::read_link(format!("/proc/{left}/cwd")).is_err(), "{left} runs still");
    cluster.until_streams("eu-west").await;
    cluster.assert_identical().await;
}

/// Somebody promotes a secondary's PostgreSQL behind the daemon's back: the region is a secondary again, by
/// itself, with nothing that it wrote as a writer.
#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_somebody_else_promotes_is_a_standby_again() {
    let cluster = Cluster::up(1);
    cluster.expect(&["promoted by somebody else", "not rewound", "this region does not lead any more"]);
    let mut primary = cluster.connect("us-east").await;
    primary.execute("CREATE TABLE t AS SELECT 1 AS n").await.unwrap();
    cluster.until_level().await;
    let mut standby = cluster.connect("eu-west").await;
    standby.execute("SELECT pg_promote(wait => false)").await.unwrap();
    until("it is brought back", || async {
        let said = text(&cluster.run(&["events", "--region", "eu-west"]).stdout);
        said.contains("rewind-begun")
    })
    .await;
    primary.execute("INSERT INTO t VALUES (2)").await.unwrap();
    cluster.until_streams("eu-west").await;
    cluster.until_level().await;
    cluster.assert_identical().await;
}
