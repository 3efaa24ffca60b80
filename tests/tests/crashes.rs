//! Daemons and PostgreSQL are killed at random moments under load: streaming goes on by itself, and every commit that was
//! acknowledged is in every region.

#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

use std::time::Duration;

use replicator_tests::Cluster;
use replicator_tests::ledger::Ledger;
use sqlx::Executor;

#[tokio::test(flavor = "multi_thread")]
async fn ten_kills_at_random_moments_lose_nothing() {
    let cluster = Cluster::up(2);
    let ledger = Ledger::start(&cluster.printed(&["url", "--region", "us-east"]), 4).await;
    // Some moments, other ones in each round; the rounds take each victim with and without its PostgreSQL.
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
        let moment = Duration::from_millis(100 + u64::try_from(round).unwrap() * 7919 % 400);
        tokio::time::sleep(moment).await;
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
    let died = cluster.postmaster("us-east");
    nix::sys::signal::kill(died, nix::sys::signal::Signal::SIGKILL).unwrap();
    replicator_tests::until("another postmaster runs", || async {
        let pid = std::fs::read_to_string(cluster.region("us-east").join("pgdata/postmaster.pid"))
            .unwrap_or_default();
        let pid = pid.lines().next().unwrap_or_default().trim();
        pid != died.to_string() && std::path::Path::new("/proc").join(pid).join("cwd").exists()
    })
    .await;
    let mut primary = cluster.connect("us-east").await;
    primary.execute("INSERT INTO t VALUES (2)").await.unwrap();
    cluster.assert_identical().await;
}

#[tokio::test]
async fn a_lock_left_by_a_killed_postgresql_whose_number_another_process_has_now_is_stale() {
    let cluster = Cluster::up(1);
    cluster.kill("us-east", true).await;
    // As in a container that was killed and started again: the number is that of a process of the same account.
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

#[tokio::test]
async fn without_the_primary_the_others_speak_for_themselves() {
    let cluster = Cluster::up(2);
    cluster.kill("us-east", true).await;
    let output = cluster.run(&["status", "--json"]);
    assert!(output.status.success(), "{}", replicator_tests::text(&output.stderr));
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(status["regions"][0]["state"], "unreachable");
    for region in &status["regions"].as_array().unwrap()[1..] {
        assert!(region["durable_lsn"].is_string() && region["visibility_lag_ms"].is_null(), "{region}");
    }
    assert!(cluster.printed(&["status"]).contains("us-east is not reached"));
}
