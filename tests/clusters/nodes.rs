//! Regions of several nodes: replicas on other hosts than the daemon's, in primary and secondary regions
//! alike.

use std::collections::BTreeSet;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use replicator_tests::ledger::Ledger;
use replicator_tests::{Cluster, connect_to, fill_bulk, free_port, make_bulk, text, until, with_children};
use sqlx::{Connection, Executor, PgConnection};

use crate::row;

async fn load(cluster: &Cluster) -> Ledger {
    let urls = cluster.regions.iter().map(|region| cluster.printed(&["url", "--region", region])).collect();
    Ledger::start_at(urls, 4).await
}

/// How often a node has been given a copy of its region's data.
fn copies(cluster: &Cluster, region: &str, node: &str) -> usize {
    cluster.node_said(region, node).matches("the copy is in place").count()
}

/// The port of the PostgreSQL that a session has come to.
const PORT: &str = "SELECT current_setting('port')";

async fn port(url: &str) -> String {
    sqlx::query_scalar::<_, String>(PORT).fetch_one(&mut connect_to(url).await).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_follow_through_promotions_and_none_is_made_anew_that_need_not_be() {
    let cluster = Cluster::new(1);
    cluster.add_node("us-east", "n1");
    cluster.add_node("us-east", "n2");
    cluster.add_node_of_zone("eu-west", "n1", 'b', true);
    cluster.start();
    let ledger = load(&cluster).await;
    // A switchover there and back: what is there follows on the next timeline.
    for to in ["eu-west", "us-east"] {
        ledger.until_written(50).await;
        cluster.until_level_enough(to).await;
        let _ = cluster.printed(&["promote", "--region", to]);
    }
    ledger.until_written(50).await;
    // The load goes on: nobody is level with it at any one moment for certain.
    for (region, node) in [("us-east", "n1"), ("us-east", "n2"), ("eu-west", "n1")] {
        cluster.until_node_streams(region, node).await;
        assert_eq!(
            copies(&cluster, region, node),
            1,
            "{region} {node}:\n{}",
            cluster.node_said(region, node)
        );
    }
    // A region is lost but for its nodes, and another one leads: when it is back it is rewound, and its nodes
    // follow what it has then.
    cluster.expect(&["this region does not lead any more"]);
    ledger.until_written(50).await;
    cluster.kill("us-east", true).await;
    let failover = ["promote", "--region", "eu-west", "--mode", "failover", "--old-primary-is-down"];
    let _ = cluster.printed(&failover);
    ledger.until_written(50).await;
    cluster.start_region("us-east");
    cluster.until_streams("us-east").await;
    let acknowledged = ledger.acknowledged().await;
    assert!(acknowledged.count() > 200, "there was load: {}", acknowledged.count());
    cluster.assert_identical().await;
    assert_eq!(copies(&cluster, "eu-west", "n1"), 1, "the region that took over goes on with what it has");
    // Its volume begins anew with the numbers that it began with at first: a replica is not deceived by that.
    let before = copies(&cluster, "us-east", "n1");
    let _ = cluster.printed(&["reseed", "--region", "us-east", "--yes"]);
    until("its replicas are copied anew", || async {
        ["n1", "n2"].iter().all(|node| copies(&cluster, "us-east", node) > before)
    })
    .await;
    cluster.assert_identical().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_comes_back_with_what_it_has_and_one_that_was_away_too_long_is_copied_anew() {
    let cluster = Cluster::new(0);
    let text = std::fs::read_to_string(cluster.file()).unwrap();
    std::fs::write(cluster.file(), text + "[volume]\nmax_size = \"128MiB\"\n").unwrap();
    cluster.add_node_of_zone("us-east", "n1", 'c', true);
    // It has nothing to say but that it is there.
    cluster.add_node_of_zone("us-east", "n2", 'b', false);
    cluster.start();
    assert_eq!(cluster.node_row("us-east", "n2")["zone"], "b");
    let mut primary = cluster.connect("us-east").await;
    primary.execute("CREATE TABLE t (id int); INSERT INTO t VALUES (1)").await.unwrap();
    cluster.until_level().await;

    // The node's process alone is killed: PostgreSQL goes on, and the next process takes it over.
    let before = cluster.node_postmaster("us-east", "n1");
    cluster.kill_node("us-east", "n1", false).await;
    until("that is told", || async { cluster.node_row("us-east", "n1")["state"] == "unreachable" }).await;
    until("its copies are away", || async {
        row(&cluster, "us-east").1.contains("copies of the volume absent: c1, c2")
    })
    .await;
    primary.execute("INSERT INTO t VALUES (2)").await.unwrap();
    cluster.start();
    cluster.until_level().await;
    cluster.until_whole("us-east").await;
    assert_eq!(cluster.node_postmaster("us-east", "n1"), before, "PostgreSQL was taken over");

    // All of the node, and the region's daemon: each comes back by itself.
    cluster.kill_node("us-east", "n1", true).await;
    cluster.kill("us-east", true).await;
    cluster.start();
    cluster.until_level().await;
    assert_eq!(copies(&cluster, "us-east", "n1"), 1);

    // Away for longer than redo is kept.
    cluster.kill_node("us-east", "n1", true).await;
    let mut primary = cluster.connect("us-east").await;
    make_bulk(&mut primary).await;
    for _ in 0..30 {
        fill_bulk(&mut primary).await;
    }
    cluster.start();
    cluster.until_level().await;
    assert_eq!(copies(&cluster, "us-east", "n1"), 2, "{}", cluster.node_said("us-east", "n1"));
    cluster.until_whole("us-east").await;
    cluster.assert_identical().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_are_spread_over_replicas_and_brought_to_none_that_does_not_go_on() {
    let cluster = Cluster::new(1);
    cluster.configure("lease = \"2s\"\n");
    cluster.add_witness("third");
    cluster.configure_region("us-east", &format!("reader_endpoint = \"127.0.0.1:{}\"", free_port()));
    cluster.configure_region("eu-west", &format!("reader_endpoint = \"127.0.0.1:{}\"", free_port()));
    cluster.add_node("us-east", "n1");
    cluster.add_node("us-east", "n2");
    cluster.add_node("eu-west", "n1");
    cluster.start();
    cluster.until_level().await;
    let url = |region: &str| cluster.printed(&["url", "--region", region, "--endpoint", "reader"]);
    let own = |region: &str| cluster.printed(&["url", "--region", region]);
    let node = |region: &str, node: &str| cluster.node_url(region, node);
    let mut seen: [BTreeSet<String>; 2] = Default::default();
    for _ in 0..6 {
        for (seen, region) in seen.iter_mut().zip(["us-east", "eu-west"]) {
            seen.insert(port(&url(region)).await);
        }
    }
    let (n1, n2) = (port(&node("us-east", "n1")).await, port(&node("us-east", "n2")).await);
    assert_eq!(seen[0], BTreeSet::from([n1, n2.clone()]), "the writer is spared");
    let both = [port(&own("eu-west")).await, port(&node("eu-west", "n1")).await];
    assert_eq!(seen[1], BTreeSet::from(both), "a secondary's standby and its replica");

    // One freezes: it does not go on, and no reader is brought to it.
    let frozen = with_children(cluster.node_postmaster("us-east", "n1"));
    for process in &frozen {
        kill(*process, Signal::SIGSTOP).unwrap();
    }
    // Nothing is written meanwhile: that it lacks nothing says nothing.
    until("nobody knows how old it is", || async { cluster.node_row("us-east", "n1")["lag_ms"].is_null() })
        .await;
    for _ in 0..4 {
        let connecting = tokio::time::timeout(Duration::from_secs(5), PgConnection::connect(&url("us-east")));
        let mut session = connecting.await.expect("a reader is not left hanging").unwrap();
        let found = sqlx::query_scalar::<_, String>(PORT).fetch_one(&mut session).await.unwrap();
        assert_eq!(found, n2);
    }
    for process in frozen {
        // Some may have ended.
        let _ = kill(process, Signal::SIGCONT);
    }
    cluster.until_level().await;

    // A primary that is cut off from the other voters does not know whether it is the newest any more.
    let others = ["eu-west", "third"].map(|voter| cluster.daemon(voter));
    for other in others {
        kill(other, Signal::SIGSTOP).unwrap();
    }
    until("nobody knows how old its replicas are", || async {
        ["n1", "n2"].iter().all(|node| cluster.node_row("us-east", node)["lag_ms"].is_null())
    })
    .await;
    for other in others {
        kill(other, Signal::SIGCONT).unwrap();
    }
    cluster.until_level().await;
}

/// A replica comes to a region under load and goes again by a command each; the file is afterwards what it
/// was.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_is_added_and_removed_by_a_command_while_rows_are_written() {
    let cluster = Cluster::up(1);
    let before = std::fs::read_to_string(cluster.file()).unwrap();
    let ledger = load(&cluster).await;
    ledger.until_written(50).await;
    let own = ["--region", "eu-west", "--node", "r1"];
    let at = format!("127.0.0.1:{}", free_port());
    // What the file would not take changes nothing.
    let refused = cluster.run(&[&["replica", "add"][..], &own, &["--postgres", "127.0.0.1:99999"]].concat());
    assert!(!refused.status.success());
    let unknown = cluster.run(&["replica", "add", "--region", "eu", "--node", "r1", "--postgres", &at]);
    assert!(
        text(&unknown.stderr).contains("there is no region eu; there are us-east"),
        "{}",
        text(&unknown.stderr)
    );
    assert_eq!(std::fs::read_to_string(cluster.file()).unwrap(), before);
    let added = cluster.run(&[&["replica", "add"][..], &own, &["--postgres", &at]].concat());
    assert!(added.status.success(), "{}", text(&added.stderr));
    let listed = cluster.printed(&["replica", "list", "--region", "eu-west"]);
    assert!(listed.contains("r1") && listed.contains("streaming"), "{listed}");
    let twice = cluster.run(&[&["replica", "add"][..], &own, &["--postgres", &at]].concat());
    assert!(text(&twice.stderr).contains("has a node r1 already"), "{}", text(&twice.stderr));
    let acknowledged = ledger.acknowledged().await;
    cluster.until_level().await;
    cluster.until_node_streams("eu-west", "r1").await;
    let rows = "SELECT count(*) FROM ledger";
    let there: i64 = sqlx::query_scalar(rows).fetch_one(&mut cluster.connect("us-east").await).await.unwrap();
    let url = cluster.node_url("eu-west", "r1");
    until("the replica has them all", || async {
        sqlx::query_scalar::<_, i64>(rows).fetch_one(&mut connect_to(&url).await).await.unwrap() == there
    })
    .await;
    acknowledged.assert_in_all(&cluster).await;
    let removed = cluster.run(&[&["replica", "remove"][..], &own].concat());
    let said = text(&removed.stderr);
    assert!(removed.status.success() && said.contains("its data stay there"), "{said}");
    assert_eq!(std::fs::read_to_string(cluster.file()).unwrap(), before);
    assert!(cluster.node("eu-west", "r1").join("pgdata").exists());
    assert!(PgConnection::connect(&url).await.is_err(), "its PostgreSQL is stopped");
    until("nobody speaks of it", || async { !cluster.printed(&["status"]).contains("r1") }).await;
    let twice = cluster.run(&[&["replica", "remove"][..], &own].concat());
    assert!(text(&twice.stderr).contains("eu-west has no node r1"), "{}", text(&twice.stderr));
}
