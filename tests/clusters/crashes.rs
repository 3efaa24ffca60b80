//! Daemons and PostgreSQL are killed at random moments under load: streaming goes on by itself, and every
//! commit that was acknowledged is in every region.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use replicator_tests::ledger::Ledger;
use replicator_tests::{Cluster, now, pause, seed, text, until};
use sqlx::{Connection, Executor, PgConnection};

/// How long something is watched: long enough for a pause to show.
const SHOWS: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread")]
async fn ten_kills_at_random_moments_lose_nothing() {
    let cluster = Cluster::up(2);
    let ledger = Ledger::start(&cluster.printed(&["url", "--region", "us-east"]), 4).await;
    // Any moment: so many commits after the last time. The rounds take each victim with and without its
    // PostgreSQL.
    let mut dice = SmallRng::seed_from_u64(seed());
    let victims = [
        "us-east",
        "eu-west",
        "us-east",
        "ap-northeast",
        "us-east",
        "eu-west",
        "us-east",
        "ap-northeast",
        "us-east",
        "eu-west",
    ];
    for (round, victim) in victims.into_iter().enumerate() {
        ledger.until_written(dice.random_range(1..400)).await;
        cluster.kill(victim, round % 4 >= 2).await;
        cluster.start();
    }
    let acknowledged = ledger.acknowledged().await;
    assert!(acknowledged.count() > 100, "there was load: {}", acknowledged.count());
    cluster.assert_identical().await;
    acknowledged.assert_in_all(&cluster).await;
}

#[tokio::test]
async fn a_writer_that_dies_alone_is_started_again_and_read_on() {
    let cluster = Cluster::up(1);
    let mut primary = cluster.connect("us-east").await;
    primary.execute("CREATE TABLE t (id int); INSERT INTO t VALUES (1)").await.unwrap();
    restart_writer(&cluster).await;
    let mut primary = cluster.connect("us-east").await;
    primary.execute("INSERT INTO t VALUES (2)").await.unwrap();
    cluster.assert_identical().await;
}

/// Kills the writer alone, and waits until another one runs.
async fn restart_writer(cluster: &Cluster) {
    let died = cluster.postmaster("us-east");
    kill(died, Signal::SIGKILL).unwrap();
    until("another postmaster runs", || async {
        let pid = std::fs::read_to_string(cluster.region("us-east").join("pgdata/postmaster.pid"));
        let pid = pid.unwrap_or_default().lines().next().unwrap_or_default().trim().to_owned();
        pid != died.to_string() && std::path::Path::new("/proc").join(pid).join("cwd").exists()
    })
    .await;
}

/// A client that tries again and again for `period` is refused, or else sees no more than `rows` rows.
async fn assert_sees_only(cluster: &Cluster, rows: i64, period: Duration) {
    let url = cluster.printed(&["url", "--region", "us-east"]);
    let (begin, mut refused) = (now(), 0);
    while begin.elapsed() < period {
        match PgConnection::connect(&url).await {
            Ok(mut client) => {
                let seen: i64 =
                    sqlx::query_scalar("SELECT count(*) FROM t").fetch_one(&mut client).await.unwrap();
                assert_eq!(seen, rows, "a row is shown that may not be acknowledged");
            }
            Err(_) => refused += 1,
        }
        pause().await;
    }
    assert!(refused > 0, "clients were let in all the time");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_is_started_shows_nobody_what_no_quorum_has() {
    let cluster = Cluster::new(1);
    cluster.zones_apart("us-east", "[\"b\", \"c\"]");
    cluster.start();
    cluster.until_whole("us-east").await;
    let mut client = cluster.connect("us-east").await;
    client.execute("CREATE TABLE t (id int); INSERT INTO t VALUES (1)").await.unwrap();
    for zone in ['b', 'c'] {
        cluster.kill_zone("us-east", zone).await;
    }
    let waits = tokio::time::timeout(SHOWS, client.execute("INSERT INTO t VALUES (2)")).await;
    assert!(waits.is_err(), "two copies acknowledge nothing");
    restart_writer(&cluster).await;
    // Once the writer has recovered, the row is there for all that it lets in.
    let shut = |status: serde_json::Value| status["notes"].to_string().contains("clients are let in once");
    until("the writer waits", || async { shut(cluster.status()) }).await;
    let row = || cluster.status()["regions"][0].clone();
    assert_eq!(row()["state"], "starting");
    assert_sees_only(&cluster, 1, SHOWS).await;
    let refused = cluster.run(&["promote", "--region", "eu-west", "--dry-run"]);
    let said = text(&refused.stdout) + &text(&refused.stderr);
    assert!(!refused.status.success() && said.contains("lets no client in yet"), "{said}");
    // Neither another daemon, which waits for its volume, nor a reload by somebody else lets them in.
    cluster.kill("us-east", false).await;
    cluster.start_region("us-east");
    until("the next daemon answers", || async { row()["state"] == "starting" }).await;
    kill(cluster.postmaster("us-east"), Signal::SIGHUP).unwrap();
    assert_sees_only(&cluster, 1, SHOWS).await;
    cluster.start();
    let mut client = cluster.connect("us-east").await;
    let seen: i64 = sqlx::query_scalar("SELECT count(*) FROM t").fetch_one(&mut client).await.unwrap();
    assert_eq!(seen, 2, "what is durable is shown");
    cluster.assert_identical().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_is_started_shows_nobody_what_too_few_regions_have() {
    let cluster = Cluster::new(2);
    cluster.configure("commit = { regions = 2 }\n");
    cluster.start();
    let mut client = cluster.connect("us-east").await;
    client.execute("CREATE TABLE t (id int); INSERT INTO t VALUES (1)").await.unwrap();
    cluster.kill("ap-northeast", true).await;
    let waits = tokio::time::timeout(SHOWS, client.execute("INSERT INTO t VALUES (2)")).await;
    assert!(waits.is_err(), "one region is too few");
    cluster.kill("us-east", true).await;
    cluster.start_region("us-east");
    let notes = || cluster.status()["notes"].to_string();
    until("it says why", || async { notes().contains("once it may: commits wait for 2 secondary") }).await;
    assert_sees_only(&cluster, 1, SHOWS).await;
    cluster.start();
    let mut client = cluster.connect("us-east").await;
    let seen: i64 = sqlx::query_scalar("SELECT count(*) FROM t").fetch_one(&mut client).await.unwrap();
    assert_eq!(seen, 2, "what they all have is shown");
    // A writer that others cover is open again in a moment.
    let begin = now();
    restart_writer(&cluster).await;
    let mut client = cluster.connect("us-east").await;
    client.execute("INSERT INTO t VALUES (3)").await.unwrap();
    println!("the writer was killed, and a commit returned after {:?}", begin.elapsed());
    cluster.assert_identical().await;
}

#[tokio::test]
async fn a_lock_left_by_a_killed_postgresql_whose_number_another_process_has_now_is_stale() {
    let cluster = Cluster::up(1);
    cluster.kill("us-east", true).await;
    // As in a container that was killed and started again: the number is that of a process of the same
    // account.
    let other = cluster.postmaster("eu-west").to_string();
    let home = cluster.region("us-east");
    let sockets = std::fs::read_dir(home.join("run")).unwrap().map(|entry| entry.unwrap().path());
    let socket_lock = sockets.into_iter().find(|path| path.extension().is_some_and(|e| e == "lock")).unwrap();
    for path in [home.join("pgdata/postmaster.pid"), socket_lock] {
        let content = std::fs::read_to_string(&path).unwrap();
        let (_, rest) = content.split_once('\n').unwrap();
        std::fs::write(&path, format!("{other}\n{rest}")).unwrap();
    }
    cluster.start();
    let mut primary = cluster.connect("us-east").await;
    primary.execute("CREATE TABLE t (id int); INSERT INTO t VALUES (1)").await.unwrap();
    cluster.assert_identical().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_whose_log_is_on_a_full_disk_does_its_work() {
    let cluster = Cluster::up(1);
    cluster.kill("eu-west", true).await;
    let full = || std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut command = cluster.command(&["run", "--region", "eu-west"]);
    let mut daemon = command.stdout(full()).stderr(full()).spawn().unwrap();
    let mut primary = cluster.connect("us-east").await;
    primary.execute("CREATE TABLE t (id int); INSERT INTO t VALUES (1)").await.unwrap();
    cluster.until_streams("eu-west").await;
    cluster.until_level().await;
    // It ended with the first line that it could not write.
    assert!(daemon.try_wait().unwrap().is_none());
    kill(Pid::from_raw(i32::try_from(daemon.id()).unwrap()), Signal::SIGTERM).unwrap();
    let ended = runtime::task::blocking("wait", move || daemon.wait().unwrap()).await.unwrap();
    assert!(ended.success(), "{ended}");
}

#[tokio::test]
async fn without_the_primary_the_others_speak_for_themselves() {
    let cluster = Cluster::up(2);
    cluster.kill("us-east", true).await;
    let output = cluster.run(&["status", "--json"]);
    assert_eq!(output.status.code(), Some(2), "{}", replicator_tests::text(&output.stderr));
    let check = cluster.run(&["status", "--check", "--max-lag", "5s"]);
    assert!(check.status.code() == Some(2) && check.stdout.starts_with(b"CRITICAL - the primary us-east"));
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(status["regions"][0]["state"], "unreachable");
    for region in &status["regions"].as_array().unwrap()[1..] {
        assert!(region["durable_lsn"].is_string() && region["visibility_lag_ms"].is_null(), "{region}");
    }
    assert!(cluster.printed(&["status"]).contains("us-east is not reached"));
}
