//! Promotions under load: nothing acknowledged is lost, and every region follows.

#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

use std::time::Duration;

use replicator_tests::ledger::Ledger;
use replicator_tests::{Cluster, now, text, until};
use sqlx::Executor;

async fn load(cluster: &Cluster) -> Ledger {
    let urls = cluster.regions.iter().map(|region| cluster.printed(&["url", "--region", region])).collect();
    Ledger::start_at(urls, 4).await
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_switchovers_back_and_forth_lose_nothing() {
    let cluster = Cluster::up(2);
    let ledger = load(&cluster).await;
    let (mut gaps, begin) = (Vec::new(), now());
    for round in 1..=20_u64 {
        let to = ["us-east", "eu-west"][usize::try_from(round % 2).unwrap()];
        cluster.until_level_enough(to).await;
        let promotion = cluster.printed(&["promote", "--region", to, "--json"]);
        let promotion: serde_json::Value = serde_json::from_str(&promotion).unwrap();
        assert_eq!(
            (&promotion["to"], promotion["epoch"].as_u64()),
            (&to.into(), Some(round + 1)),
            "{promotion}"
        );
        assert_eq!(promotion["loss"]["bytes"], 0);
        gaps.push(promotion["write_gap_ms"].as_u64().unwrap());
    }
    let end = now();
    let acknowledged = ledger.acknowledged().await;
    gaps.sort_unstable();
    let seen = acknowledged.longest_gap(begin, end);
    println!("write gaps: median {} ms, longest {} ms; seen by clients at most {seen:?}", gaps[10], gaps[19]);
    assert!(acknowledged.count() > 500, "there was load: {}", acknowledged.count());
    cluster.assert_identical().await;
    acknowledged.assert_in_all(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_that_is_killed_goes_on_when_it_is_asked_again() {
    let cluster = Cluster::up(2);
    let ledger = load(&cluster).await;
    for (round, victim) in ["eu-west", "us-east", "eu-west", "us-east"].into_iter().enumerate() {
        cluster.until_level_enough("eu-west").await;
        let moment = Duration::from_millis(40 + 60 * u64::try_from(round).unwrap());
        let promoting = async {
            let (file, data) = (cluster.file(), cluster.data());
            tokio::process::Command::new(replicator_tests::program())
                .args(["promote", "--region", "eu-west", "--config"])
                .arg(file)
                .arg("--data")
                .arg(data)
                .output()
                .await
                .unwrap()
        };
        let killing = async {
            tokio::time::sleep(moment).await;
            cluster.kill(victim, true).await;
        };
        let (output, ()) = tokio::join!(promoting, killing);
        cluster.start_without_waiting();
        if !output.status.success() {
            until("it is promoted in the end", || async {
                let again = cluster.run(&["promote", "--region", "eu-west"]);
                again.status.success() || text(&again.stderr).contains("is the primary already")
            })
            .await;
        }
        cluster.start();
        // And back, for the next round.
        cluster.until_level_enough("us-east").await;
        let back = cluster.run(&["promote", "--region", "us-east"]);
        assert!(back.status.success(), "{}", text(&back.stderr));
    }
    let acknowledged = ledger.acknowledged().await;
    assert!(acknowledged.count() > 100, "there was load: {}", acknowledged.count());
    cluster.assert_identical().await;
    acknowledged.assert_in_all(&cluster).await;
}

#[tokio::test]
async fn what_cannot_succeed_is_refused_before_anything_is_touched() {
    let cluster = Cluster::up(1);
    let refused = cluster.run(&["promote", "--region", "us-east"]);
    assert!(text(&refused.stderr).contains("is the primary already"), "{}", text(&refused.stderr));
    let dry = cluster.printed(&["promote", "--region", "eu-west", "--dry-run"]);
    assert!(dry.contains("can take over from us-east now"), "{dry}");
    cluster.kill("us-east", false).await;
    let refused = cluster.run(&["promote", "--region", "eu-west"]);
    assert!(
        !refused.status.success() && text(&refused.stderr).contains("Nothing was changed"),
        "{}",
        text(&refused.stderr)
    );
    cluster.start();
    cluster.connect("us-east").await.execute("CREATE TABLE t (id int)").await.unwrap();
    assert_eq!(cluster.status()["primary"], "us-east");
}
