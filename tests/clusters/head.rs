//! Another host of a region takes over as its head.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use replicator_tests::ledger::Ledger;
use replicator_tests::{Cluster, connect_to, now, until, with_children};
use sqlx::PgConnection;

/// A region of three hosts in three zones, each of which may be its head, and two other voters.
fn three_hosts(after: &str) -> Cluster {
    let cluster = Cluster::new(1);
    cluster.configure("lease = \"2s\"\n");
    cluster.configure_region("us-east", &format!("take_over_after = \"{after}\""));
    cluster.add_candidate("us-east", "n1", 'b');
    cluster.add_candidate("us-east", "n2", 'c');
    cluster.add_witness("third");
    cluster
}

/// How often a host has been given a copy of its region's data.
fn copies(said: &str) -> usize {
    said.matches("the copy is in place").count()
}

/// What the host of the region's daemon has said.
fn home_said(cluster: &Cluster) -> String {
    std::fs::read_to_string(cluster.region("us-east").join("daemon.log")).unwrap()
}

/// Waits until commits return again, and tells how long that took.
async fn until_taken(urls: &[String]) -> String {
    let begin = now();
    loop {
        for url in urls {
            let tried = async {
                let mut connection = <PgConnection as sqlx::Connection>::connect(url).await.ok()?;
                sqlx::query("INSERT INTO ledger VALUES (0)").execute(&mut connection).await.ok()
            };
            if let Ok(Some(_)) = tokio::time::timeout(Duration::from_millis(500), tried).await {
                return url.clone();
            }
        }
        assert!(begin.elapsed() < Duration::from_secs(60), "nobody takes writes");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_is_gone_is_replaced_and_nothing_acknowledged_is_lost() {
    let cluster = three_hosts("2s");
    cluster.expect(&["another host of this region has taken its volume", "another daemon has taken over"]);
    cluster.start();
    cluster.until_level().await;
    let own = cluster.printed(&["url", "--region", "us-east"]);
    let [n1, n2] = ["n1", "n2"].map(|node| cluster.node_url("us-east", node));
    let urls = vec![own.clone(), n1.clone(), n2.clone()];
    // Clients know two endpoints, and not where the writer is.
    let endpoints = ["n1", "n2"].map(|node| cluster.node_endpoint("us-east", node));
    let ledger = Ledger::start_at(endpoints.to_vec(), 4).await;
    ledger.until_written(500).await;
    let seeds = |cluster: &Cluster| {
        let said = std::fs::read_to_string(cluster.region("eu-west").join("daemon.log")).unwrap();
        said.matches("seed").count()
    };
    let seeded = seeds(&cluster);

    // The host of the daemon, with its PostgreSQL.
    let killed = now();
    cluster.kill("us-east", true).await;
    let head = until_taken(&urls).await;
    println!("killed: writes were taken after {:?}", killed.elapsed());
    assert_eq!(head, n1, "the first in the file takes over");
    ledger.until_written(500).await;
    cluster.start_region("us-east");
    until("the old head is a node", || async { cluster.node_row("us-east", "home")["state"] == "streaming" })
        .await;
    cluster.until_level().await;
    cluster.until_whole("us-east").await;
    assert_eq!(copies(&cluster.node_said("us-east", "n2")), 1, "the other node goes on with what it has");
    assert_eq!(copies(&cluster.node_said("us-east", "n1")), 1);
    assert_eq!(copies(&home_said(&cluster)), 1, "what the old head had alone is nobody's");
    assert_eq!(seeds(&cluster), seeded, "the other region goes on with what it has");

    // The new head is frozen, daemon and PostgreSQL: nothing of it says that it is gone. Then it goes on.
    let mut frozen = with_children(cluster.node_postmaster("us-east", "n1"));
    frozen.insert(0, cluster.node_process("us-east", "n1"));
    for process in &frozen {
        kill(*process, Signal::SIGSTOP).unwrap();
    }
    let paused = now();
    let head = until_taken(&urls).await;
    println!("frozen: writes were taken after {:?}", paused.elapsed());
    assert_ne!(head, n1);
    ledger.until_written(500).await;
    for process in frozen {
        let _ = kill(process, Signal::SIGCONT);
    }
    until("the frozen head is a node", || async {
        cluster.node_row("us-east", "n1")["state"] == "streaming"
    })
    .await;
    ledger.until_written(200).await;
    cluster.until_level().await;
    let acknowledged = ledger.acknowledged().await;
    let gap = |from| acknowledged.longest_gap(from, from + Duration::from_secs(30));
    println!("{} commits; the longest gaps: {:?}, {:?}", acknowledged.count(), gap(killed), gap(paused));
    cluster.assert_identical().await;
    acknowledged.assert_in_all(&cluster).await;
    for url in &urls {
        let missing = acknowledged.missing_in(&mut connect_to(url).await).await;
        assert_eq!(missing, Vec::<i64>::new(), "acknowledged, and not on the host of {url}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_that_are_started_again_find_their_head_or_another_one() {
    let cluster = three_hosts("5s");
    cluster.expect(&["another host of this region has taken its volume", "another daemon has taken over"]);
    cluster.start();
    cluster.until_level().await;
    let endpoint = cluster.node_endpoint("us-east", "n2");
    let ledger = Ledger::start_at(vec![endpoint.clone()], 2).await;
    ledger.until_written(200).await;

    // A daemon that is only started again goes on as the head, and its writer runs through.
    let writer = cluster.postmaster("us-east");
    cluster.kill("us-east", false).await;
    cluster.start_region("us-east");
    ledger.until_written(200).await;
    assert_eq!(cluster.postmaster("us-east"), writer);
    assert!(!cluster.region("us-east").join("daemon.node.json").exists(), "it was never a node");
    for node in ["n1", "n2"] {
        assert!(!cluster.node_said("us-east", node).contains("this host stands for it"), "{node}");
        cluster.until_node_streams("us-east", node).await;
    }

    // The power goes everywhere, and the head's host does not come back: the others know whose data they
    // have.
    cluster.until_level().await;
    for node in ["n1", "n2"] {
        cluster.kill_node("us-east", node, true).await;
    }
    cluster.kill("us-east", true).await;
    let began = now();
    for node in ["n1", "n2"] {
        cluster.start_node("us-east", node);
    }
    let urls = [cluster.node_url("us-east", "n1"), cluster.node_url("us-east", "n2")];
    let head = until_taken(&urls).await;
    println!("all hosts lost power, one stays away: writes were taken after {:?}", began.elapsed());
    assert_eq!(head, urls[0]);
    ledger.until_written(100).await;
    cluster.start_region("us-east");
    until("the old head is a node", || async { cluster.node_row("us-east", "home")["state"] == "streaming" })
        .await;
    cluster.until_level().await;
    let acknowledged = ledger.acknowledged().await;
    cluster.assert_identical().await;
    acknowledged.assert_in_all(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_that_were_the_head_the_last_one_goes_on() {
    let cluster = three_hosts("2s");
    cluster.expect(&["another host of this region has taken its volume", "another daemon has taken over"]);
    cluster.start();
    cluster.until_level().await;
    let urls = [cluster.node_url("us-east", "n1"), cluster.printed(&["url", "--region", "us-east"])];
    let ledger = Ledger::start_at(vec![cluster.node_endpoint("us-east", "n1")], 2).await;
    ledger.until_written(100).await;
    // The first head is gone, and does not hear that another one takes over.
    cluster.kill("us-east", true).await;
    assert_eq!(until_taken(&urls).await, urls[0]);
    ledger.until_written(100).await;
    // The power goes; the third host stays away. Both remember that they were the head.
    cluster.kill_node("us-east", "n1", true).await;
    cluster.kill_node("us-east", "n2", true).await;
    let began = now();
    cluster.start_region("us-east");
    cluster.start_node("us-east", "n1");
    assert_eq!(until_taken(&urls).await, urls[0], "the one that was it last");
    println!("two that were the head: writes were taken after {:?}", began.elapsed());
    cluster.start_node("us-east", "n2");
    ledger.until_written(100).await;
    until("the first head is a node", || async {
        cluster.node_row("us-east", "home")["state"] == "streaming"
    })
    .await;
    cluster.until_level().await;
    let acknowledged = ledger.acknowledged().await;
    cluster.assert_identical().await;
    acknowledged.assert_in_all(&cluster).await;
}
