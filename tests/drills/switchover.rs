//! A switchover under load: nothing is lost, and writes stop for a moment.

use replicator_tests::now;

use crate::harness::{Plan, drill, gap_ms};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs docker: make drills"]
async fn switchover_under_load() {
    drill(Plan { name: "switchover", secondaries: 2, ..Plan::default() }, async |site, score| {
        let ledger = site.load().await;
        let ordered = now();
        let promoted = site.promote("eu-west", "switchover").await;
        ledger.until_written(200).await;
        let end = now();
        let acknowledged = ledger.acknowledged().await;
        let lost = site.settle("eu-west", &acknowledged).await;
        assert_eq!(lost, Vec::<i64>::new(), "a switchover loses nothing");
        assert_eq!(promoted["loss"]["bytes"], 0);
        score.rto_ms = Some(gap_ms(&acknowledged, ordered, end));
        score.lost = Some(lost.len());
        score.told(&promoted);
        score.commits = acknowledged.count();
    })
    .await;
}
