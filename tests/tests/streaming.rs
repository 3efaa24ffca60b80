//! Redo streams between regions: rows cross, status tells the truth, an absent region catches up, timelines are followed.

#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;

use replicator_tests::{Cluster, postgresql, text, until};
use sqlx::Executor;

#[tokio::test]
async fn rows_written_on_the_primary_are_read_on_both_secondaries() {
    let cluster = Cluster::up(2);
    let mut primary = cluster.connect("us-east").await;
    primary
        .execute("CREATE TABLE t AS SELECT g AS id, md5(g::text) AS value FROM generate_series(1, 1000) g")
        .await
        .unwrap();
    for region in ["eu-west", "ap-northeast"] {
        let mut secondary = cluster.connect(region).await;
        let mut seen = 0;
        while seen < 1000 {
            let count =
                sqlx::query_scalar::<_, i64>("SELECT count(*) FROM t").fetch_one(&mut secondary).await;
            seen = count.unwrap_or(0);
        }
        let refused = secondary.execute("INSERT INTO t VALUES (0, '')").await;
        assert!(refused.is_err_and(|e| e.to_string().contains("read-only")), "a secondary takes no writes");
    }
    cluster.assert_identical().await;

    let status = cluster.status();
    assert_eq!(
        (&status["cluster"], &status["primary"], &status["epoch"]),
        (&"test".into(), &"us-east".into(), &1.into())
    );
    let keys: Vec<&String> = status["regions"][1].as_object().unwrap().keys().collect();
    let mut wanted = vec![
        "name",
        "role",
        "state",
        "timeline",
        "durable_lsn",
        "applied_lsn",
        "behind_bytes",
        "durability_lag_ms",
        "visibility_lag_ms",
        "redo_bytes",
        "wan_bytes",
        "url",
    ];
    wanted.sort_unstable();
    assert_eq!(keys, wanted);
    // Any region's daemon answers for all, and an idle cluster's lag stays honest and small.
    let asked = cluster.printed(&["status", "--json", "--region", "ap-northeast"]);
    let asked: serde_json::Value = serde_json::from_str(&asked).unwrap();
    for region in asked["regions"].as_array().unwrap() {
        assert!(region["visibility_lag_ms"].as_u64().unwrap() < 1000, "{asked}");
    }
}

#[tokio::test]
async fn five_secondaries_hold_the_same_after_load() {
    let cluster = Cluster::up(5);
    let url = cluster.printed(&["url", "--region", "us-east"]);
    for arguments in [&["-i", "-q", "-s", "2"][..], &["-c", "8", "-T", "10"]] {
        let output = Command::new(postgresql("pgbench")).args(arguments).arg(&url).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
    }
    cluster.assert_identical().await;
    cluster.assert_no_trouble();
}

#[tokio::test]
async fn a_region_that_was_away_catches_up_from_the_log_and_the_writer_keeps_no_redo_for_it() {
    let cluster = Cluster::up(1);
    let mut primary = cluster.connect("us-east").await;
    primary.execute("CREATE TABLE big (id int, filler text)").await.unwrap();
    cluster.until_level().await;
    cluster.kill("eu-west", true).await;
    until("the primary says so", || async { cluster.status()["regions"][1]["state"] == "unreachable" }).await;
    primary
        .execute("INSERT INTO big SELECT g, repeat(md5(g::text), 20) FROM generate_series(1, 100000) g")
        .await
        .unwrap();
    primary.execute("CHECKPOINT").await.unwrap();
    let kept: i64 = sqlx::query_scalar(
        "SELECT (pg_current_wal_lsn() - restart_lsn)::bigint FROM pg_replication_slots WHERE slot_name = 'replicator'",
    )
    .fetch_one(&mut primary)
    .await
    .unwrap();
    assert!(kept < 1 << 20, "the slot holds {kept} bytes");
    let lag = cluster.status()["regions"][1]["visibility_lag_ms"].as_u64();
    assert!(lag.is_none_or(|ms| ms > 0), "a region that is away lags");
    cluster.start();
    cluster.assert_identical().await;
    let daemon_log = std::fs::read_to_string(cluster.region("eu-west").join("daemon.log")).unwrap();
    assert_eq!(daemon_log.matches("receiving a seed").count(), 1, "no second seed:\n{daemon_log}");
}

#[tokio::test]
async fn a_new_timeline_of_the_writer_is_followed_to_the_standby() {
    let cluster = Cluster::up(1);
    let mut primary = cluster.connect("us-east").await;
    primary.execute("CREATE TABLE t (id int); INSERT INTO t VALUES (1)").await.unwrap();
    drop(primary);
    cluster.until_level().await;
    assert!(cluster.run(&["down"]).status.success());
    // By hand, as an operator who restored the writer would: start it as a standby of nobody, and promote it.
    let pgdata = cluster.region("us-east").join("pgdata");
    std::fs::write(pgdata.join("standby.signal"), "").unwrap();
    let as_account = |arguments: &[&str]| {
        let account = postgres::account::Account::resolve(None).unwrap();
        let output =
            account.command(&postgresql("pg_ctl")).args(arguments).arg("-D").arg(&pgdata).output().unwrap();
        assert!(
            output.status.success(),
            "pg_ctl {arguments:?}: {}{}",
            text(&output.stdout),
            text(&output.stderr)
        );
    };
    as_account(&["start", "-w", "-l", "/dev/null", "-o", "-c primary_conninfo=''"]);
    as_account(&["promote", "-w"]);
    as_account(&["stop", "-w", "-m", "fast"]);
    cluster.start();
    let mut primary = cluster.connect("us-east").await;
    primary.execute("INSERT INTO t VALUES (2)").await.unwrap();
    cluster.assert_identical().await;
    assert_eq!(cluster.status()["regions"][1]["timeline"], 2);
    let mut secondary = cluster.connect("eu-west").await;
    let received = "SELECT received_tli FROM pg_stat_wal_receiver";
    while sqlx::query_scalar::<_, i32>(received).fetch_optional(&mut secondary).await.unwrap() != Some(2) {
        replicator_tests::pause().await;
    }
}

#[tokio::test]
async fn mistakes_are_answered_with_what_to_do() {
    let cluster = Cluster::up(1);
    assert!(cluster.printed(&["check"]).contains("2 regions, no mistakes"));
    let second = cluster.run(&["run", "--region", "us-east"]);
    assert!(text(&second.stderr).contains("already running"), "{}", text(&second.stderr));
    assert_eq!(cluster.run(&["frobnicate"]).status.code(), Some(2));
    let unknown = cluster.run(&["url", "--region", "mars"]);
    assert!(unknown.status.code() == Some(1) && text(&unknown.stderr).contains("no region 'mars'"));

    // Random bytes at the walsender: no panic, and the standby goes on.
    let socket = cluster.region("eu-west").join("run/.s.PGSQL.5433");
    for seed in 0..50_u64 {
        let mut stream = UnixStream::connect(&socket).unwrap();
        let bytes: Vec<u8> =
            (0..200).map(|i: u64| (i + 1).wrapping_mul(seed * 7_919 + 13).to_le_bytes()[1]).collect();
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
    }
    let mut primary = cluster.connect("us-east").await;
    primary.execute("CREATE TABLE after_noise (id int)").await.unwrap();
    cluster.assert_identical().await;
    let log = std::fs::read_to_string(cluster.region("eu-west").join("daemon.log")).unwrap();
    assert!(!log.contains("panicked"), "{log}");

    // Another cluster's identity on this data is refused.
    let other = Cluster::new(1);
    assert!(other.run(&["certs"]).status.success());
    assert!(cluster.run(&["down"]).status.success());
    let identity = cluster.region("eu-west").join("identity");
    std::fs::rename(&identity, identity.with_extension("own")).unwrap();
    let copied =
        Command::new("cp").arg("-a").arg(other.region("eu-west").join("identity")).arg(&identity).status();
    assert!(copied.unwrap().success());
    let refused = cluster.run(&["run", "--region", "eu-west"]);
    assert!(text(&refused.stderr).contains("belongs to cluster"), "{}", text(&refused.stderr));
}
