//! How long nobody takes writes while the head of a region moves to another of its hosts, and back.

use std::time::Duration;

use replicator_tests::bench::median;
use replicator_tests::ledger::Ledger;
use replicator_tests::{Cluster, free_port, now, text, until};
use sqlx::{Connection, Executor, PgConnection};

/// For how long after an order it is looked when no commit returned.
const AROUND: Duration = Duration::from_secs(4);

/// Moves the head there and back, `moves` times in all, while two clients write who come by the endpoint of
/// a third host.
pub async fn run(moves: u64) {
    println!(
        "Three hosts in three zones, one other region, one witness, on this machine; two clients write, by the endpoint of a host that \
         does not become the head.\n"
    );
    let cluster = Cluster::new(1);
    cluster.configure("lease = \"2s\"\n");
    cluster.configure_region("us-east", "take_over_after = \"5s\"");
    cluster.configure_region("us-east", &format!("writer_endpoint = \"127.0.0.1:{}\"", free_port()));
    cluster.add_candidate("us-east", "n1", 'b');
    cluster.add_candidate("us-east", "n2", 'c');
    cluster.add_witness("third");
    cluster.expect(&["another host of this region has taken its volume", "another daemon has taken over"]);
    cluster.start();
    cluster.until_level().await;
    let ledger = Ledger::start_at(vec![cluster.node_endpoint("us-east", "n2")], 2).await;
    let comes = until_committed(&cluster.node_endpoint("us-east", "n2")).await;
    let (mut ordered, mut told) = (Vec::new(), Vec::new());
    for turn in 0..moves {
        let (from, to) = if turn % 2 == 0 { ("home", "n1") } else { ("n1", "home") };
        ledger.until_written(50).await;
        until("it may move", || async {
            let dry = cluster.run(&["promote", "--region", "us-east", "--node", to, "--dry-run"]);
            dry.status.success()
        })
        .await;
        ordered.push(now());
        let output = cluster.run(&["promote", "--region", "us-east", "--node", to, "--json"]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let moved: serde_json::Value = serde_json::from_slice(&output.stdout).expect("it is JSON");
        let gap_ms = moved["gap_ms"].as_f64().expect("it is told");
        println!("{:>3}: from {from:4} to {to:4}  {gap_ms:>5.0} ms  {}", turn + 1, moved["steps"]);
        told.push(gap_ms);
        until("the old head follows", || async { cluster.node_row("us-east", from)["state"] == "streaming" })
            .await;
        cluster.until_whole("us-east").await;
        cluster.until_level_enough("eu-west").await;
    }
    tokio::time::sleep_until(ordered.last().copied().unwrap_or_else(now) + AROUND).await;
    let acknowledged = ledger.acknowledged().await;
    let seen = ordered.iter().map(|at| acknowledged.longest_gap(*at, *at + AROUND).as_secs_f64() * 1e3);
    let seen: Vec<f64> = seen.collect();
    for (what, gaps) in [("as the new head tells it", told), ("without a commit, as clients see it", seen)] {
        let worst = gaps.iter().copied().fold(0.0, f64::max);
        println!("{what:40} median {:>5.0} ms, worst {worst:>5.0} ms", median(gaps));
    }
    println!("a client that comes when all is well has its first commit after {comes:.0} ms (median)");
    cluster.until_level().await;
    cluster.assert_identical().await;
    acknowledged.assert_in_all(&cluster).await;
}

/// How long a client that comes by `url` takes to its first commit, milliseconds.
async fn until_committed(url: &str) -> f64 {
    let mut took = Vec::new();
    for _ in 0..9 {
        let begin = now();
        let mut session = PgConnection::connect(url).await.expect("it takes clients");
        session.execute("INSERT INTO ledger VALUES (0)").await.expect("it takes writes");
        took.push(begin.elapsed().as_secs_f64() * 1e3);
    }
    median(took)
}
