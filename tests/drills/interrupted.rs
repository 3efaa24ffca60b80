//! The operator's command is killed in the middle of a promotion: the promotion goes on by itself, and can be asked for again.

use std::time::Duration;

use replicator_tests::{now, until};

use crate::harness::{Plan, drill, gap_ms};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs docker: make drills"]
async fn command_killed() {
    let plan = Plan { name: "interrupted", secondaries: 2, ..Plan::default() };
    drill(plan, async |site, score| {
        let ledger = site.load().await;
        let begin = now();
        let mut ordered = site.begin(&["promote", "--region", "eu-west"]);
        tokio::time::sleep(Duration::from_millis(150)).await;
        ordered.kill().await.unwrap();
        until("it went on by itself", || async { site.primary().await == "eu-west" }).await;
        ledger.until_written(200).await;
        let end = now();
        // To ask again for what is so is refused in words, and breaks nothing.
        let again = site.run(&["promote", "--region", "eu-west"]);
        assert!(!again.status.success());
        let acknowledged = ledger.acknowledged().await;
        let lost = site.settle("eu-west", &acknowledged).await;
        assert_eq!(lost, Vec::<i64>::new());
        score.rto_ms = Some(gap_ms(&acknowledged, begin, end));
        score.lost = Some(lost.len());
        score.commits = acknowledged.count();
    })
    .await;
}
