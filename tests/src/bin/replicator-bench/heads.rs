//! How long a region of three hosts is without a writer when the host of its head is gone.

use std::time::Duration;

use replicator::config::Config;
use replicator_tests::bench::median;
use replicator_tests::ledger::Ledger;
use replicator_tests::{Cluster, free_port, now, until};
use sqlx::{Connection, Executor, PgConnection};
use tokio::time::Instant;

/// How long a client gives one try.
const TRY: Duration = Duration::from_millis(500);

/// Kills whichever host is the head, with its PostgreSQL, `rounds` times, under load; a client that knows the
/// writer's endpoints of the other two tries again and again to write a row. `after_ms`: `take_over_after`.
pub async fn run(rounds: u64, after_ms: u64) {
    println!(
        "Three hosts in three zones, one other region, one witness, on this machine; take_over_after = {after_ms} ms; two clients write.\n"
    );
    let cluster = Cluster::new(1);
    cluster.configure("lease = \"2s\"\n");
    cluster.configure_region("us-east", &format!("take_over_after = \"{after_ms}ms\""));
    cluster.configure_region("us-east", &format!("writer_endpoint = \"127.0.0.1:{}\"", free_port()));
    cluster.add_candidate("us-east", "n1", 'b');
    cluster.add_candidate("us-east", "n2", 'c');
    cluster.add_witness("third");
    cluster.expect(&["another host of this region has taken its volume", "another daemon has taken over"]);
    cluster.start();
    cluster.until_level().await;
    let config = Config::load(&cluster.file()).expect("it was read before");
    let region = config.region(&"us-east".parse().expect("a name")).expect("it is in the file").clone();
    let hosts: Vec<(String, u16, u16)> = region
        .candidates()
        .iter()
        .map(|host| {
            let port = |address: Option<std::net::SocketAddr>| address.expect("each has one").port();
            (host.name.to_string(), port(host.postgres), port(host.writer_endpoint))
        })
        .collect();
    let url = cluster.printed(&["url", "--region", "us-east"]);
    let at = |port: u16| {
        let (before, rest) = url.split_once('@').expect("a host");
        let (_, after) = rest.split_once('/').expect("a database");
        format!("{before}@127.0.0.1:{port}/{after}")
    };
    let endpoints = |but: &str| -> Vec<String> {
        let others = hosts.iter().filter(|(name, ..)| name != but);
        others.map(|(.., endpoint)| at(*endpoint)).collect()
    };
    let ledger = Ledger::start_at(endpoints(""), 2).await;
    let mut took = Vec::new();
    for round in 1..=rounds {
        let head = until_head(&cluster, &hosts).await;
        ledger.until_written(50).await;
        let killed = now();
        match head.as_str() {
            "home" => cluster.kill("us-east", true).await,
            node => cluster.kill_node("us-east", node, true).await,
        }
        until_written(&endpoints(&head), killed).await;
        let ms = killed.elapsed().as_secs_f64() * 1e3;
        println!("{round:>3}: the head was {head:5}  first write after {ms:>6.0} ms");
        took.push(ms);
        match head.as_str() {
            "home" => cluster.start_region("us-east"),
            node => cluster.start_node("us-east", node),
        }
        until("the old head follows", || async {
            cluster.node_row("us-east", &head)["state"] == "streaming"
        })
        .await;
        cluster.until_level_enough("eu-west").await;
    }
    let worst = took.iter().copied().fold(0.0, f64::max);
    println!("\nmedian {:.0} ms, worst {worst:.0} ms", median(took));
    let acknowledged = ledger.acknowledged().await;
    cluster.until_level().await;
    cluster.assert_identical().await;
    acknowledged.assert_in_all(&cluster).await;
}

/// The host whose PostgreSQL takes writes.
async fn until_head(cluster: &Cluster, hosts: &[(String, u16, u16)]) -> String {
    let mut found = String::new();
    until("all hosts are there, and one is the head", || {
        let url = cluster.printed(&["url", "--region", "us-east"]);
        let head = hosts.iter().find(|(_, postgres, _)| url.contains(&format!(":{postgres}/")));
        found = head.map(|(name, ..)| name.clone()).unwrap_or_default();
        let others = hosts.iter().filter(|(name, ..)| *name != found);
        let follow =
            |(name, ..): &(String, u16, u16)| cluster.node_row("us-east", name)["state"] == "streaming";
        let is_there = !found.is_empty() && others.into_iter().all(follow);
        async move { is_there }
    })
    .await;
    found
}

/// Waits until a row is written by one of `urls`.
async fn until_written(urls: &[String], killed: Instant) {
    loop {
        for url in urls {
            let tried = async {
                let mut session = PgConnection::connect(url).await.ok()?;
                session.execute("INSERT INTO ledger VALUES (0)").await.ok()
            };
            if let Ok(Some(_)) = tokio::time::timeout(TRY, tried).await {
                return;
            }
        }
        assert!(killed.elapsed() < Duration::from_secs(60), "nobody takes writes");
    }
}
