//! Voters are added and removed while clients write, and a failover counts those who vote by then.

use replicator_tests::ledger::Ledger;
use replicator_tests::{Cluster, Ordered, bin_dir, free_port, text, until};

/// What the daemons of different files say of each other, and what an old primary says that comes back.
const EXPECTED: [&str; 2] = ["differs from that of", "does not lead any more"];

/// What `voters --json` says of one: whether it votes, and is in the file.
fn voter(cluster: &Cluster, name: &str) -> (bool, bool) {
    let shown: serde_json::Value = serde_json::from_str(&cluster.printed(&["voters", "--json"])).unwrap();
    let voters = shown["voters"].as_array().unwrap();
    let found = voters.iter().find(|voter| voter["name"] == name);
    found.map_or((false, false), |voter| (voter["votes"] == true, voter["in_file"] == true))
}

fn refused(cluster: &Cluster, arguments: &[&str], why: &str) {
    let output = cluster.run(arguments);
    let said = text(&output.stderr);
    assert!(!output.status.success() && said.contains(why), "{arguments:?}: '{why}' is not in: {said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_is_added_and_another_removed_and_the_new_majority_fails_over() {
    let mut cluster = Cluster::up(2);
    cluster.expect(&EXPECTED);
    let urls: Vec<String> =
        cluster.regions.iter().map(|region| cluster.printed(&["url", "--region", region])).collect();
    let ledger = Ledger::start_at(urls.clone(), 3).await;
    ledger.until_written(100).await;
    refused(&cluster, &["voters", "add", "sa-east"], "is not in this daemon's regions.toml");
    refused(&cluster, &["voters", "remove", "us-east"], "have another region lead first");

    // As docs/OPERATIONS.md says: the file, the daemons one after the other, the new one.
    let table = format!(
        "[region.sa-east]\nrole = \"secondary\"\nlisten = \"127.0.0.1:{}\"\npostgres = \"127.0.0.1:{}\"\n",
        free_port(),
        free_port()
    );
    let programs = bin_dir().map_or(String::new(), |at| format!("bin_dir = \"{}\"\n", at.display()));
    let file = std::fs::read_to_string(cluster.file()).unwrap();
    std::fs::write(cluster.file(), file + &table + &programs).unwrap();
    for region in ["eu-west", "ap-northeast", "us-east"] {
        cluster.kill(region, false).await;
        cluster.start_region(region);
        cluster.until_streams(region).await;
    }
    cluster.start();
    cluster.regions.push("sa-east");
    cluster.until_streams("sa-east").await;
    assert_eq!(voter(&cluster, "sa-east"), (false, true));
    assert!(cluster.printed(&["status"]).contains("voters add sa-east"), "the file and the record differ");

    ledger.until_written(50).await;
    for _ in 0..2 {
        assert!(cluster.printed(&["voters", "add", "sa-east"]).contains("sa-east"), "it can be repeated");
        assert_eq!(voter(&cluster, "sa-east"), (true, true));
    }
    refused(&cluster, &["voters", "remove", "ap-northest"], "Those are ap-northeast");
    let _ = cluster.printed(&["voters", "remove", "ap-northeast"]);
    assert_eq!(voter(&cluster, "ap-northeast"), (false, true));
    ledger.until_written(50).await;

    // Of the voters of before only one is left; of those of now, two of three. What only the two had that are
    // lost would be lost: there is none.
    let before = ledger.acknowledged().await;
    cluster.until_level().await;
    for region in ["us-east", "ap-northeast"] {
        cluster.kill(region, true).await;
    }
    let ordered = Ordered::before(cluster.operator()).await;
    until("eu-west leads", || async {
        cluster.run(&["promote", "--region", "eu-west", "--mode", "failover"]).status.success()
    })
    .await;
    ordered.until_led_by("eu-west").await;
    let ledger = Ledger::start_from(urls, 3, 1_000_000);
    ledger.until_written(100).await;
    cluster.start();
    for region in ["us-east", "ap-northeast", "sa-east"] {
        cluster.until_streams(region).await;
    }
    let acknowledged = ledger.acknowledged().await;
    cluster.assert_identical().await;
    before.assert_in_all(&cluster).await;
    acknowledged.assert_in_all(&cluster).await;
}
