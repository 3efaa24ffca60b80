//! Daemons and PostgreSQL are killed at random moments under load: streaming goes on by itself, and every commit that was
//! acknowledged is in every region.

#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use replicator_tests::{Cluster, pause};
use sqlx::{Connection, Executor, PgConnection};

/// Clients that write unique rows and remember which were acknowledged.
struct Ledger {
    stop: Arc<AtomicBool>,
    next: Arc<AtomicI64>,
    writers: Vec<tokio::task::JoinHandle<Vec<i64>>>,
}

impl Ledger {
    fn start(url: &str, writers: usize) -> Ledger {
        let (stop, next) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicI64::new(1)));
        let writers =
            (0..writers).map(|_| tokio::spawn(write(url.to_owned(), next.clone(), stop.clone()))).collect();
        Ledger { stop, next, writers }
    }

    /// Ends the load; returns the rows whose commits were acknowledged.
    async fn acknowledged(self) -> Vec<i64> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        for writer in self.writers {
            all.extend(writer.await.unwrap());
        }
        assert!(self.next.load(Ordering::Relaxed) > 1);
        all
    }
}

async fn write(url: String, next: Arc<AtomicI64>, stop: Arc<AtomicBool>) -> Vec<i64> {
    let mut acknowledged = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let Ok(mut connection) = PgConnection::connect(&url).await else {
            pause().await;
            continue;
        };
        while !stop.load(Ordering::Relaxed) {
            let id = next.fetch_add(1, Ordering::Relaxed);
            let insert = sqlx::query("INSERT INTO ledger VALUES ($1)").bind(id).execute(&mut connection);
            // A commit may hang while nobody makes it durable: that is the promise, and not an acknowledgement.
            match tokio::time::timeout(Duration::from_secs(5), insert).await {
                Ok(Ok(_)) => acknowledged.push(id),
                Ok(Err(_)) | Err(_) => break,
            }
        }
    }
    acknowledged
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_kills_at_random_moments_lose_nothing() {
    let cluster = Cluster::up(2);
    cluster.connect("us-east").await.execute("CREATE TABLE ledger (id bigint)").await.unwrap();
    let ledger = Ledger::start(&cluster.printed(&["url", "--region", "us-east"]), 4);
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
    assert!(acknowledged.len() > 100, "there was load: {}", acknowledged.len());
    cluster.assert_identical().await;
    for region in &cluster.regions {
        let mut connection = cluster.connect(region).await;
        let missing: Vec<i64> = sqlx::query_scalar(
            "SELECT id FROM unnest($1::bigint[]) AS id WHERE id NOT IN (SELECT id FROM ledger)",
        )
        .bind(&acknowledged)
        .fetch_all(&mut connection)
        .await
        .unwrap();
        assert_eq!(missing, Vec::<i64>::new(), "acknowledged and not in {region}\n{}", cluster.logs());
    }
    println!("{} acknowledged commits, all in every region", acknowledged.len());
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
        pid.lines().next().is_some_and(|line| line.trim() != died.to_string())
    })
    .await;
    let mut primary = cluster.connect("us-east").await;
    primary.execute("INSERT INTO t VALUES (2)").await.unwrap();
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
