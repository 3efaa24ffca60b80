//! A region's volume under load: zones and copies are killed, damaged and deleted, and commits go on as
//! promised.

use std::path::{Path, PathBuf};
use std::time::Duration;

use replicator_tests::ledger::Ledger;
use replicator_tests::{Cluster, now, stays, text, until};
use sqlx::Executor;

/// How long something is watched: long enough for a pause to show.
const WATCHED: Duration = Duration::from_secs(2);

fn writer(cluster: &Cluster) -> String {
    cluster.printed(&["url", "--region", "us-east"])
}

fn copy(cluster: &Cluster, name: &str) -> PathBuf {
    cluster.region("us-east").join(format!("volume/az-{}/{name}", &name[..1]))
}

fn state(cluster: &Cluster, name: &str) -> String {
    let volume = cluster.volume("us-east");
    let copies = volume["copies"].as_array().unwrap();
    copies.iter().find(|c| c["name"] == name).unwrap()["state"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zone_killed_does_not_stop_commits_and_a_zone_and_a_copy_make_them_wait() {
    let cluster = Cluster::new(1);
    cluster.zones_apart("us-east", "[\"b\", \"c\"]");
    cluster.start();
    cluster.expect(&["copy a2"]);
    cluster.until_whole("us-east").await;
    let ledger = Ledger::start(&writer(&cluster), 4).await;
    let mut gaps = Vec::new();
    for zone in ['b', 'c'] {
        let begin = now();
        cluster.kill_zone("us-east", zone).await;
        ledger.until_written(200).await;
        gaps.push((begin, now()));
        until("it is missed", || async { state(&cluster, &format!("{zone}1")) == "absent" }).await;
        cluster.start();
        cluster.until_whole("us-east").await;
    }
    // A zone, and a disk in another: three copies are left.
    cluster.kill_zone("us-east", 'b').await;
    let (lost, aside) = (copy(&cluster, "a2"), copy(&cluster, "aside"));
    std::fs::rename(&lost, &aside).unwrap();
    std::fs::write(&lost, "no directory").unwrap();
    until("commits wait", || async { cluster.volume("us-east")["writable"] == false }).await;
    let waiting = now();
    stays("commits wait", WATCHED, || async { cluster.volume("us-east")["writable"] == false }).await;
    let waited = now();
    assert!(cluster.printed(&["status"]).contains("commits wait"), "everyone is told");
    // Reads go on, here and in the secondary.
    for region in ["us-east", "eu-west"] {
        cluster.connect(region).await.execute("SELECT count(*) FROM ledger").await.unwrap();
    }
    std::fs::remove_file(&lost).unwrap();
    std::fs::rename(&aside, &lost).unwrap();
    let mended = now();
    until("commits go on", || async { cluster.volume("us-east")["writable"] == true }).await;
    ledger.until_written(50).await;
    let end = now();
    cluster.start();
    let acknowledged = ledger.acknowledged().await;
    for (begin, end) in gaps {
        let gap = acknowledged.longest_gap(begin, end);
        assert!(gap < Duration::from_secs(1), "a zone was killed, and no commit returned for {gap:?}");
    }
    assert_eq!(acknowledged.between(waiting, waited), 0, "three copies acknowledge nothing");
    assert!(acknowledged.between(mended, end) > 10, "the fourth brings commits back");
    cluster.until_whole("us-east").await;
    cluster.assert_identical().await;
    acknowledged.assert_in_all(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_found_reported_and_mended_under_load() {
    let cluster = Cluster::up(1);
    cluster.expect(&["copy a1", "copy b1", "copy c1"]);
    let ledger = Ledger::start(&writer(&cluster), 4).await;
    let segment = |name: &str| -> PathBuf {
        let log = copy(&cluster, name);
        let log = std::fs::read_dir(log).unwrap().map(|e| e.unwrap().path()).find(|p| p.is_dir()).unwrap();
        let mut found: Vec<PathBuf> = std::fs::read_dir(log).unwrap().map(|e| e.unwrap().path()).collect();
        found.retain(|p| p.extension().is_some_and(|e| e == "redo"));
        found.sort();
        found.pop().unwrap()
    };
    let size = |path: &Path| path.metadata().unwrap().len();
    until("there is redo to damage", || async { size(&segment("a1")) > 300_000 }).await;
    let file = std::fs::OpenOptions::new().write(true).open(segment("a1")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"rot", 100_000).unwrap();
    std::fs::OpenOptions::new().write(true).open(segment("b1")).unwrap().set_len(50_000).unwrap();
    std::fs::remove_dir_all(copy(&cluster, "c1")).unwrap();
    let scrubbed = cluster.printed(&["volume", "scrub", "--region", "us-east", "--json"]);
    let scrubbed: serde_json::Value = serde_json::from_str(&scrubbed).unwrap();
    assert_eq!(scrubbed["copies"][0]["repaired_segments"], 1, "{scrubbed}");
    cluster.until_whole("us-east").await;
    let acknowledged = ledger.acknowledged().await;
    assert!(acknowledged.count() > 100, "{}", acknowledged.count());
    let log = std::fs::read_to_string(cluster.region("us-east").join("daemon.log")).unwrap();
    assert!(log.contains("damaged at byte"), "the rot is reported");
    for copy in ["copy a1: ", "copy b1", "copy c1 takes no more redo"] {
        assert!(log.contains(copy), "{copy} is reported: {log}");
    }
    // Everything again, from what the copies hold: each of them is good.
    let again = cluster.printed(&["volume", "scrub", "--region", "us-east", "--json"]);
    let again: serde_json::Value = serde_json::from_str(&again).unwrap();
    for copy in again["copies"].as_array().unwrap() {
        assert_eq!(copy["damage"].as_array().unwrap().len(), 0, "{again}");
        assert_eq!(copy["state"], "live", "{again}");
    }
    let inspected = cluster.printed(&["volume", "inspect", copy(&cluster, "c1").to_str().unwrap()]);
    assert!(inspected.contains("copy c1") && !inspected.contains("damaged"), "{inspected}");
    cluster.assert_identical().await;
    acknowledged.assert_in_all(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_wait_for_as_many_regions_as_the_file_asks() {
    let cluster = Cluster::new(1);
    cluster.configure("commit = { regions = 1 }\n");
    cluster.start();
    let mut primary = cluster.connect("us-east").await;
    primary.execute("CREATE TABLE t (id int); INSERT INTO t VALUES (1)").await.unwrap();
    cluster.kill("eu-west", true).await;
    let insert = primary.execute("INSERT INTO t VALUES (2)");
    let waited = tokio::time::timeout(WATCHED, insert).await;
    assert!(waited.is_err(), "no region but this one has it");
    assert!(cluster.printed(&["status"]).contains("commits wait for 1 secondary regions"));
    cluster.start();
    let mut primary = cluster.connect("us-east").await;
    primary.execute("INSERT INTO t VALUES (3)").await.unwrap();
    cluster.assert_identical().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_are_held_beyond_the_rpo_and_let_through_within_it() {
    let cluster = Cluster::new(1);
    cluster.configure("rpo = \"2s\"\n");
    cluster.start();
    let ledger = Ledger::start(&writer(&cluster), 2).await;
    ledger.until_written(50).await;
    let killed = now();
    cluster.kill("eu-west", true).await;
    until("commits are held", || async { cluster.printed(&["status"]).contains("commits are held") }).await;
    let held = now();
    stays("commits are held", WATCHED, || async {
        cluster.printed(&["status"]).contains("commits are held")
    })
    .await;
    let end = now();
    cluster.start();
    ledger.until_written(50).await;
    let after = now();
    let acknowledged = ledger.acknowledged().await;
    assert!(
        acknowledged.between(killed, killed + Duration::from_millis(1500)) > 0,
        "within the rpo they go on"
    );
    assert_eq!(acknowledged.between(held + Duration::from_millis(100), end), 0, "beyond it they are held");
    assert!(acknowledged.between(end, after) > 0, "and let through again");
    acknowledged.assert_in_all(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zone_and_a_copy_lost_while_the_daemon_is_down_are_recovered_on_an_operator_s_word() {
    let cluster = Cluster::up(1);
    let mut primary = cluster.connect("us-east").await;
    primary.execute("CREATE TABLE t (id int); INSERT INTO t VALUES (1)").await.unwrap();
    cluster.until_whole("us-east").await;
    let refused = cluster.run(&["volume", "recover", "--region", "us-east"]);
    assert!(text(&refused.stderr).contains("nothing to recover"), "{}", text(&refused.stderr));
    assert!(cluster.run(&["down"]).status.success());
    for lost in ["a1", "a2", "b1"] {
        std::fs::remove_dir_all(copy(&cluster, lost)).unwrap();
    }
    cluster.start_without_waiting();
    let recover = "replicator volume recover";
    until("the way out is told", || async { cluster.printed(&["status"]).contains(recover) }).await;
    drop(cluster.printed(&["volume", "recover", "--region", "us-east"]));
    cluster.until_whole("us-east").await;
    let mut primary = cluster.connect("us-east").await;
    primary.execute("INSERT INTO t VALUES (2)").await.unwrap();
    cluster.assert_identical().await;
}
