//! Seeds that are interrupted go on where they were: what has arrived, and is still right, is not sent again.

use std::os::unix::fs::FileExt;

use replicator_tests::seeding::{Seed, fill_with_noise};
use replicator_tests::{Cluster, text, until};
use sqlx::Executor;

/// Rows of a MiB that does not compress.
const ROWS: i64 = 200;

/// How fast the seed may be sent: some 16 s for all of it.
const BANDWIDTH: &str = "120Mbit/s";

/// What a region's daemon says was sent to bring the other one's data up, the last time, bytes.
fn sent(cluster: &Cluster) -> u64 {
    let log = std::fs::read_to_string(cluster.region("us-east").join("daemon.log")).unwrap();
    let said = log.lines().rev().find_map(|line| line.split_once("bytes sent to bring its data up: "));
    said.and_then(|(_, bytes)| bytes.split_whitespace().next()?.parse().ok()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seed_that_is_cut_twice_sends_what_is_there_only_once() {
    let cluster = Cluster::up(1);
    cluster.expect(&["the seed failed"]);
    let mut writer = cluster.connect("us-east").await;
    fill_with_noise(&mut writer, "pg_default", ROWS).await;
    cluster.until_level().await;
    cluster.configure_region("eu-west", &format!("bandwidth = \"{BANDWIDTH}\""));
    let _ = cluster.printed(&["reload"]);
    let _ = cluster.printed(&["reseed", "--region", "eu-west", "--yes"]);
    until("a good part has arrived", || async {
        Seed::of(&cluster, "eu-west").is_some_and(|seed| seed.total_bytes > 100 << 20 && seed.has_tenths(6))
    })
    .await;
    cluster.kill("eu-west", false).await;
    // What was sent changes: it is compared, and sent again.
    let mut writer = cluster.connect("us-east").await;
    writer.execute("UPDATE noise SET id = id + 1000 WHERE id <= 3").await.unwrap();
    cluster.start_region("eu-west");
    until("it goes on, with what was there", || async {
        Seed::of(&cluster, "eu-west")
            .is_some_and(|seed| seed.not_sent_bytes > seed.total_bytes * 3 / 10 && seed.has_tenths(8))
    })
    .await;
    cluster.kill("us-east", false).await;
    cluster.start_region("us-east");
    cluster.until_streams("eu-west").await;
    let (sent, all) = (sent(&cluster), u64::try_from(ROWS).unwrap() << 20);
    assert!(sent < all / 2, "{sent} of {all} bytes were sent again");
    let events = cluster.run(&["events", "--json"]);
    assert!(text(&events.stdout).contains("were there already"), "{}", text(&events.stdout));
    cluster.until_level().await;
    cluster.assert_identical().await;
    assert!(!cluster.region("eu-west").join("pgdata.seeding").exists(), "nothing is left");
    assert!(!cluster.region("eu-west").join("pgdata/replicator.seed").exists());
}

/// A region that is seeded from data with a page that rotted gets them as they are, and the file and what to
/// do are told; it is not seeded again and again.
#[tokio::test(flavor = "multi_thread")]
async fn a_seed_of_data_with_a_rotted_page_arrives_and_the_page_is_told() {
    let cluster = Cluster::up(1);
    let mut writer = cluster.connect("us-east").await;
    writer
        .execute("CREATE TABLE t AS SELECT g, repeat('x', 900) AS pad FROM generate_series(1, 100) g")
        .await
        .unwrap();
    writer.execute("CHECKPOINT").await.unwrap();
    let path: String =
        sqlx::query_scalar("SELECT pg_relation_filepath('t')").fetch_one(&mut writer).await.unwrap();
    let file = cluster.region("us-east").join("pgdata").join(&path);
    std::fs::File::options().write(true).open(file).unwrap().write_at(b"rot", 8192 * 3 + 5000).unwrap();
    cluster.until_level().await;
    let _ = cluster.printed(&["reseed", "--region", "eu-west", "--yes"]);
    until("the page is told of, by its file", || async {
        let status = text(&cluster.run(&["status", "--region", "us-east", "--json"]).stdout);
        let events = text(&cluster.run(&["events", "--region", "us-east"]).stdout);
        let told = format!("{path}\\\", block 3");
        status.contains(&told) && events.contains("page-damaged")
    })
    .await;
    cluster.until_streams("eu-west").await;
    writer.execute("INSERT INTO t VALUES (101, '')").await.unwrap();
    cluster.until_level().await;
    let log = std::fs::read_to_string(cluster.region("eu-west").join("daemon.log")).unwrap();
    assert_eq!(log.matches("the seed is in place").count(), 2, "its first one, and this one");
}
