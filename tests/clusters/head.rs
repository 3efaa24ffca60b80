//! Another host of a region takes over as its head.

use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use replicator_tests::ledger::{Acknowledged, Ledger};
use replicator_tests::{Cluster, connect_to, now, text, until, with_children};
use sqlx::PgConnection;

/// A region of three hosts in three zones, each of which may be its head, and two other voters.
pub fn three_hosts(after: &str) -> Cluster {
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

/// Nothing that was acknowledged is missing in any of these PostgreSQLs.
async fn assert_on_hosts(acknowledged: &Acknowledged, urls: &[String]) {
    for url in urls {
        let missing = acknowledged.missing_in(&mut connect_to(url).await).await;
        assert_eq!(missing, Vec::<i64>::new(), "acknowledged, and not on the host of {url}");
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
    assert_on_hosts(&acknowledged, &urls).await;
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

/// Orders a move of the head of `region` to `node`; what the command says of how it went.
fn move_head(cluster: &Cluster, region: &str, node: &str) -> serde_json::Value {
    let output = cluster.run(&["promote", "--region", region, "--node", node, "--json"]);
    let said = text(&output.stderr);
    assert!(output.status.success(), "{said}\n{}", cluster.logs());
    let moved: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    println!("{moved}\n{said}");
    assert_eq!((&moved["head"], &moved["moved"]), (&node.into(), &true.into()));
    moved
}

/// Of these PostgreSQLs the one that takes writes; they are all there.
async fn only_writer(urls: &[String]) -> String {
    let mut writers = Vec::new();
    for url in urls {
        let follows: bool = sqlx::query_scalar("SELECT pg_is_in_recovery()")
            .fetch_one(&mut connect_to(url).await)
            .await
            .unwrap();
        if !follows {
            writers.push(url.clone());
        }
    }
    assert_eq!(writers.len(), 1, "{writers:?}");
    writers.remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_moves_there_and_back_on_an_operators_word() {
    // Far longer than a move may take.
    let cluster = three_hosts("20s");
    cluster.expect(&["another host of this region has taken its volume", "another daemon has taken over"]);
    cluster.start();
    cluster.until_level().await;
    let home = cluster.printed(&["url", "--region", "us-east"]);
    let [n1, n2] = ["n1", "n2"].map(|node| cluster.node_url("us-east", node));
    let urls = [home.clone(), n1.clone(), n2.clone()];
    let endpoints = ["n1", "n2"].map(|node| cluster.node_endpoint("us-east", node));
    let ledger = Ledger::start_at(endpoints.to_vec(), 4).await;
    ledger.until_written(300).await;

    // What cannot be done is refused, and what is only looked at changes nothing.
    let writer = cluster.postmaster("us-east");
    for (region, node, words) in [
        ("us-east", "n9", "it has no host 'n9'; there are: home, n1, n2"),
        ("eu-west", "home", "take_over_after"),
    ] {
        for more in [&[][..], &["--dry-run"]] {
            let output = cluster.run(&[&["promote", "--region", region, "--node", node][..], more].concat());
            let said = text(&output.stderr) + &text(&output.stdout);
            assert!(!output.status.success() && said.contains(words), "{said}");
        }
    }
    assert!(
        cluster
            .printed(&["promote", "--region", "us-east", "--node", "n1", "--dry-run"])
            .contains("can move")
    );
    let already = cluster.printed(&["promote", "--region", "us-east", "--node", "home"]);
    assert!(already.contains("home is the head of us-east already"), "{already}");
    assert_eq!(cluster.postmaster("us-east"), writer);
    ledger.until_written(100).await;

    let mut moments = Vec::new();
    for (to, from, at) in [("n1", "home", &n1), ("home", "n1", &home)] {
        moments.push(now());
        let moved = move_head(&cluster, "us-east", to);
        assert!(moved["gap_ms"].as_u64().unwrap() < 5_000, "nobody waited for silence: {moved}");
        ledger.until_written(300).await;
        until("the old head is a node", || async {
            cluster.node_row("us-east", from)["state"] == "streaming"
        })
        .await;
        cluster.until_whole("us-east").await;
        cluster.until_level().await;
        assert_eq!(only_writer(&urls).await, *at);
    }
    for (node, said) in [("home", home_said(&cluster)), ("n1", cluster.node_said("us-east", "n1"))] {
        assert_eq!(copies(&said), usize::from(node != "home"), "{node} goes on with what it had");
    }
    assert_eq!(copies(&cluster.node_said("us-east", "n2")), 1);
    let acknowledged = ledger.acknowledged().await;
    let gaps = moments.iter().map(|at| acknowledged.longest_gap(*at, *at + Duration::from_secs(15)));
    println!("{} commits; no commit returned for {:?}", acknowledged.count(), gaps.collect::<Vec<_>>());
    cluster.until_level().await;
    cluster.assert_identical().await;
    acknowledged.assert_in_all(&cluster).await;
    assert_on_hosts(&acknowledged, &urls).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_dies_while_the_head_moves_to_it_costs_nothing() {
    let cluster = three_hosts("2s");
    cluster.expect(&[
        "another host of this region has taken its volume",
        "another daemon has taken over",
        "not handed over to another host",
    ]);
    cluster.start();
    cluster.until_level().await;
    let [n1, n2] = ["n1", "n2"].map(|node| cluster.node_url("us-east", node));
    let urls = [cluster.printed(&["url", "--region", "us-east"]), n1.clone(), n2];
    let ledger = Ledger::start_at(vec![cluster.node_endpoint("us-east", "n2")], 4).await;
    ledger.until_written(200).await;
    // One that is gone is no place to go to.
    cluster.kill_node("us-east", "n1", true).await;
    let order = ["promote", "--region", "us-east", "--node", "n1"];
    until("a host that is gone is refused", || async {
        let said = text(&cluster.run(&order).stderr);
        said.contains("n1 is not connected") && said.contains("Nothing was changed")
    })
    .await;
    cluster.start_node("us-east", "n1");
    let over = "the head has handed over to n1";
    // The last time the host's PostgreSQL goes on, as the writer that it was made or is being made.
    for (words, with_postgres) in [("the head moves: prepare n1", true), (over, true), (over, false)] {
        cluster.until_node_streams("us-east", "n1").await;
        cluster.until_whole("us-east").await;
        cluster.until_level().await;
        until_home_leads(&cluster).await;
        let before = home_said(&cluster).matches(words).count();
        let mut command = cluster.command(&order);
        let mut ordered = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        until("the head is on its way", || async { home_said(&cluster).matches(words).count() > before })
            .await;
        cluster.kill_node("us-east", "n1", with_postgres).await;
        let killed = now();
        let head = until_taken(&urls).await;
        println!("killed when {words:?} was said: {head} took writes after {:?}", killed.elapsed());
        assert_ne!(head, n1);
        let status = ordered.wait().unwrap();
        assert!(!status.success(), "it does not say that n1 is the head");
        ledger.until_written(200).await;
        cluster.start_node("us-east", "n1");
    }
    cluster.until_node_streams("us-east", "n1").await;
    cluster.until_level().await;
    let acknowledged = ledger.acknowledged().await;
    cluster.assert_identical().await;
    acknowledged.assert_in_all(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_told_to_stop_while_the_head_moves_to_it_leaves_no_writer() {
    let cluster = three_hosts("1s");
    cluster.expect(&["another host of this region has taken its volume", "another daemon has taken over"]);
    cluster.start();
    cluster.until_level().await;
    let [n1, n2] = ["n1", "n2"].map(|node| cluster.node_url("us-east", node));
    let urls = [cluster.printed(&["url", "--region", "us-east"]), n1.clone(), n2];
    let ledger = Ledger::start_at(vec![cluster.node_endpoint("us-east", "n2")], 4).await;
    let over = "the head has handed over to n1";
    let data = cluster.node("us-east", "n1").join("pgdata");
    // From where its replica is told to stop until it is the writer, and the host the head.
    for later in [0, 50, 100, 200, 450] {
        cluster.until_node_streams("us-east", "n1").await;
        cluster.until_whole("us-east").await;
        until_home_leads(&cluster).await;
        ledger.until_written(50).await;
        let process = cluster.node_process("us-east", "n1");
        let before = home_said(&cluster).matches(over).count();
        let order = ["promote", "--region", "us-east", "--node", "n1"];
        let mut ordered =
            cluster.command(&order).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        until("the head has handed over", || async { home_said(&cluster).matches(over).count() > before })
            .await;
        // How far the host is by then is what is tried, and nothing that is waited for.
        tokio::time::sleep(Duration::from_millis(later)).await;
        kill(process, Signal::SIGTERM).unwrap();
        until("the host's process has ended", || async { kill(process, None).is_err() }).await;
        let left = working_in(&data);
        assert!(left.is_empty(), "{later} ms after it was handed over to: {left:?}\n{}", cluster.logs());
        let _ = ordered.wait().unwrap();
        let head = until_taken(&urls).await;
        println!("stopped {later} ms after it was handed over to: {head} takes writes");
        assert_ne!(head, n1);
        ledger.until_written(100).await;
        cluster.start_node("us-east", "n1");
    }
    cluster.until_node_streams("us-east", "n1").await;
    cluster.until_level().await;
    let acknowledged = ledger.acknowledged().await;
    cluster.assert_identical().await;
    acknowledged.assert_in_all(&cluster).await;
}

/// Has the head go home, and waits until n1 could take over from there.
async fn until_home_leads(cluster: &Cluster) {
    let back = ["promote", "--region", "us-east", "--node", "home"];
    until("home is the head", || async { cluster.run(&back).status.success() }).await;
    cluster.until_node_streams("us-east", "n1").await;
    cluster.until_whole("us-east").await;
}

/// The processes that work in `directory`, by their command lines.
fn working_in(directory: &std::path::Path) -> Vec<String> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let works = |process: &std::fs::DirEntry| {
        std::fs::read_link(process.path().join("cwd")).is_ok_and(|cwd| cwd == directory)
    };
    let command =
        |process: std::fs::DirEntry| text(&std::fs::read(process.path().join("cmdline")).unwrap_or_default());
    processes.filter(works).map(command).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_head_of_a_secondary_region_moves_as_well() {
    let cluster = Cluster::new(1);
    cluster.configure("lease = \"2s\"\n");
    cluster.configure_region("eu-west", "take_over_after = \"20s\"");
    cluster.add_candidate("eu-west", "n1", 'b');
    cluster.add_candidate("eu-west", "n2", 'c');
    cluster.add_witness("third");
    cluster.expect(&["another host of this region has taken its volume", "another daemon has taken over"]);
    cluster.start();
    cluster.until_level().await;
    let ledger = Ledger::start(&cluster.printed(&["url", "--region", "us-east"]), 2).await;
    ledger.until_written(200).await;
    for (to, from) in [("n1", "home"), ("home", "n1")] {
        move_head(&cluster, "eu-west", to);
        ledger.until_written(100).await;
        until("the old head is a node", || async {
            cluster.node_row("eu-west", from)["state"] == "streaming"
        })
        .await;
        cluster.until_whole("eu-west").await;
    }
    let home = std::fs::read_to_string(cluster.region("eu-west").join("daemon.log")).unwrap();
    assert_eq!((copies(&home), copies(&cluster.node_said("eu-west", "n1"))), (0, 1), "nobody is copied anew");
    let acknowledged = ledger.acknowledged().await;
    cluster.until_level().await;
    cluster.assert_identical().await;
    acknowledged.assert_in_all(&cluster).await;
}
