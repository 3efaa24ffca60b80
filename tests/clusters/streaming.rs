//! Redo streams between regions: rows cross, status tells the truth, an absent region catches up, timelines
//! are followed.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

use replicator_tests::{Cluster, postgresql, stays, text, until};
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
        let account = postgres::instance::account::Account::resolve(None).unwrap();
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
async fn a_writer_that_lost_redo_writes_none_in_its_place() {
    let cluster = Cluster::up(1);
    let copy = |from: &std::path::Path, to: &std::path::Path| {
        assert!(Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
    };
    let (data, old) = (cluster.region("us-east").join("pgdata"), cluster.region("us-east").join("old"));
    cluster.connect("us-east").await.execute("CREATE TABLE t (id int)").await.unwrap();
    assert!(cluster.run(&["down"]).status.success());
    copy(&data, &old);
    cluster.start();
    let mut primary = cluster.connect("us-east").await;
    primary.execute("INSERT INTO t SELECT generate_series(1, 2000)").await.unwrap();
    drop(primary);
    cluster.assert_identical().await;
    assert!(cluster.run(&["down"]).status.success());
    std::fs::remove_dir_all(&data).unwrap();
    std::fs::rename(&old, &data).unwrap();
    cluster.start_without_waiting();

    // The old data's writer goes beyond where the volume ends.
    until("it runs", || async { inside(&cluster, &["SELECT 1"]).status.success() }).await;
    assert!(outgrow(&cluster).status.success());
    let notes = || cluster.status()["notes"].to_string();
    until("the other redo is found", || async { notes().contains("differs from this region's volume") })
        .await;
    assert_ne!(cluster.status()["regions"][0]["state"], "streaming");
    let mut secondary = cluster.connect("eu-west").await;
    let rows =
        sqlx::query_scalar::<_, i64>("SELECT count(*) FROM t").fetch_one(&mut secondary).await.unwrap();
    assert_eq!(rows, 2000);
    let log = std::fs::read_to_string(cluster.region("eu-west").join("daemon.log")).unwrap();
    assert!(!log.contains("invalid record"), "{log}");
}

/// Runs statements in us-east's PostgreSQL as the daemon's own account does, which is let in when clients are
/// not; for three seconds at most.
fn inside(cluster: &Cluster, statements: &[&str]) -> std::process::Output {
    let url = cluster.printed(&["url", "--region", "us-east"]);
    let port = url.rsplit(':').next().unwrap().split('/').next().unwrap().to_owned();
    let mut command = Command::new("timeout");
    command.arg("3").arg(postgresql("psql")).args(["-XqAt", "-U", "postgres", "-p", &port, "-h"]);
    command.arg(cluster.region("us-east").join("run")).arg("postgres");
    for statement in statements {
        command.args(["-c", statement]);
    }
    command.output().unwrap()
}

/// Has us-east's PostgreSQL write redo beyond what others have, whatever commits wait for.
fn outgrow(cluster: &Cluster) -> std::process::Output {
    inside(
        cluster,
        &["SET synchronous_commit = local", "CREATE TABLE z AS SELECT generate_series(1, 100000)"],
    )
}

/// A cluster of which the primary's whole directory is put back as it was before 2000 rows of a table `t`.
async fn with_an_old_primary(secondaries: usize) -> Cluster {
    let cluster = Cluster::up(secondaries);
    let directory = cluster.region("us-east");
    let (old, aside) = (directory.with_extension("old"), directory.with_extension("aside"));
    cluster.connect("us-east").await.execute("CREATE TABLE t (id int)").await.unwrap();
    cluster.until_level().await;
    assert!(cluster.run(&["down"]).status.success());
    assert!(Command::new("cp").arg("-a").args([&directory, &old]).status().unwrap().success());
    cluster.start();
    let mut primary = cluster.connect("us-east").await;
    primary.execute("INSERT INTO t SELECT generate_series(1, 2000)").await.unwrap();
    drop(primary);
    cluster.until_level().await;
    assert!(cluster.run(&["down"]).status.success());
    std::fs::rename(&directory, &aside).unwrap();
    std::fs::rename(&old, &directory).unwrap();
    std::fs::remove_dir_all(&aside).unwrap();
    cluster.expect(&["nothing is sent"]);
    cluster.start_without_waiting();
    cluster
}

#[tokio::test]
async fn a_primary_restored_from_an_old_copy_acknowledges_nothing_and_says_who_has_more() {
    let cluster = with_an_old_primary(2).await;
    let notes = || cluster.status()["notes"].to_string();
    let words = "2 of 2 secondaries have redo of this epoch that this primary has lost";
    until("the primary finds that it has lost redo", || async { notes().contains(words) }).await;
    let insert = inside(&cluster, &["INSERT INTO t VALUES (0)"]);
    assert_eq!(insert.status.code(), Some(124), "nothing returns: {}", text(&insert.stderr));
    let told = || async {
        let events = cluster.printed(&["events", "--json", "--region", "us-east"]);
        events.lines().any(|line| line.contains("commits-held") && line.contains("promote one of them"))
    };
    until("what to do is an event", told).await;
    // Nor does one that was started again, whatever it has written meanwhile.
    cluster.kill("us-east", true).await;
    cluster.start_region("us-east");
    until("it runs again", || async { inside(&cluster, &["SELECT 1"]).status.success() }).await;
    assert_eq!(inside(&cluster, &["INSERT INTO t VALUES (0)"]).status.code(), Some(124));
    // Those that have more lead on.
    cluster.kill("us-east", true).await;
    let output = cluster.run(&["promote", "--region", "eu-west", "--mode", "failover"]);
    assert!(output.status.success(), "{}\n{}", text(&output.stderr), cluster.logs());
    let mut primary = cluster.connect("eu-west").await;
    let rows = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM t").fetch_one(&mut primary).await.unwrap();
    assert_eq!(rows, 2000, "the secondary has what the primary lost");
    primary.execute("INSERT INTO t VALUES (0)").await.unwrap();
}

/// A whole region put back as it was: its volume, its data and its record agree with each other, and all are
/// old.
#[tokio::test]
async fn a_primary_region_restored_from_an_old_copy_is_found_and_never_spliced() {
    let cluster = with_an_old_primary(1).await;
    let diverged = || async {
        let status = cluster.status();
        status["regions"][1]["state"] == "diverged"
            && status.to_string().contains("replicator reseed --region eu-west")
    };
    until("the primary finds that it has lost redo", diverged).await;
    let end_lsn = cluster.volume("eu-west")["durable_lsn"].as_str().unwrap().to_owned();

    // It goes on with other redo, beyond where the secondary's ends; also a new daemon, which has not seen
    // the redo that is missing, finds it.
    let written = outgrow(&cluster);
    assert!(written.status.success(), "{}", text(&written.stderr));
    let beyond = format!("SELECT pg_current_wal_flush_lsn() > '{end_lsn}'::pg_lsn");
    let beyond = text(&inside(&cluster, &[&beyond]).stdout);
    assert_eq!(beyond.trim(), "t", "the primary's redo goes beyond {end_lsn}");
    stays("it is not spliced", Duration::from_secs(2), diverged).await;
    cluster.kill("us-east", true).await;
    cluster.start_region("us-east");
    until("a new daemon finds it too", || async {
        let status = cluster.run(&["status", "--json", "--region", "us-east"]);
        let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap_or_default();
        status["regions"].as_array().is_some_and(|rows| rows.iter().any(|row| row["state"] == "diverged"))
    })
    .await;
    let mut secondary = cluster.connect("eu-west").await;
    let rows =
        sqlx::query_scalar::<_, i64>("SELECT count(*) FROM t").fetch_one(&mut secondary).await.unwrap();
    assert_eq!(rows, 2000, "the secondary has what the primary lost");
    assert_eq!(cluster.volume("eu-west")["durable_lsn"], end_lsn.as_str(), "nothing was added to it");
    drop(secondary);

    // It may lead instead: its commits are whole. The old primary then has redo that no fork explains: it is
    // not rewound.
    cluster.kill("us-east", true).await;
    cluster.expect(&["does not lead any more"]);
    let failover = ["promote", "--region", "eu-west", "--mode", "failover", "--old-primary-is-down"];
    let output = cluster.run(&failover);
    assert!(output.status.success(), "{}\n{}", text(&output.stderr), cluster.logs());
    cluster.start_region("us-east");
    let found = || async {
        let status = cluster.run(&["status", "--json", "--region", "eu-west"]);
        let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap_or_default();
        status["regions"]
            .as_array()
            .is_some_and(|rows| rows.iter().any(|row| row["name"] == "us-east" && row["state"] == "diverged"))
    };
    until("what the old primary has is found to be other redo", found).await;
    let rows = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM t");
    assert_eq!(rows.fetch_one(&mut cluster.connect("eu-west").await).await.unwrap(), 2000);
    let log = std::fs::read_to_string(cluster.region("us-east").join("daemon.log")).unwrap();
    assert!(!log.contains("rewinding the data"), "{log}");
}

#[tokio::test]
async fn a_standby_behind_its_own_region_is_seeded_by_itself() {
    let cluster = Cluster::new(1);
    cluster.configure("volume.retain = \"1s\"\nvolume.max_size = \"128MiB\"\n");
    cluster.start();
    let mut primary = cluster.connect("us-east").await;
    primary.execute("CREATE TABLE t (id int); INSERT INTO t VALUES (1)").await.unwrap();
    cluster.until_level().await;
    cluster.expect(&["the primary is asked for a seed", "PostgreSQL ended while it was starting"]);
    // PostgreSQL does not start again; the region goes on taking redo, and cannot keep all of it.
    let conf = cluster.region("eu-west").join("pgdata/postgresql.conf");
    let good = std::fs::read(&conf).unwrap();
    std::fs::write(&conf, [&good[..], b"\nno_such_setting = 1\n"].concat()).unwrap();
    nix::sys::signal::kill(cluster.postmaster("eu-west"), nix::sys::signal::Signal::SIGKILL).unwrap();
    let noise =
        "SELECT pg_logical_emit_message(true, 'noise', pg_read_binary_file('/dev/urandom', 0, 900000))
                 FROM generate_series(1, 20)";
    let lsn = |field: &str| cluster.volume("eu-west")[field].as_str().unwrap().parse::<proto::Lsn>().unwrap();
    let applied_lsn = lsn("durable_lsn");
    for _ in 0..100 {
        if lsn("horizon_lsn") > applied_lsn {
            break;
        }
        primary.execute(noise).await.unwrap();
    }
    assert!(lsn("horizon_lsn") > applied_lsn, "nothing was dropped");
    std::fs::write(&conf, good).unwrap();
    primary.execute("INSERT INTO t VALUES (2)").await.unwrap();
    let log = || std::fs::read_to_string(cluster.region("eu-west").join("daemon.log")).unwrap();
    until("it is seeded again", || async { log().matches("the seed is in place").count() == 2 }).await;
    cluster.assert_identical().await;
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
