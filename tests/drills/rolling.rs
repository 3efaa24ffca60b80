//! Every region is restarted, one after the other, the primary's after a switchover: clients see one short
//! gap.

use replicator_tests::now;

use crate::harness::{Plan, drill, gap_ms};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs docker: make drills"]
async fn rolling_restart() {
    drill(Plan { name: "rolling", secondaries: 2, ..Plan::default() }, async |site, score| {
        let ledger = site.load().await;
        let begin = now();
        for region in ["eu-west", "ap-northeast"] {
            site.stop(region).await;
            site.start(region).await;
            site.until_near("us-east").await;
        }
        let promoted = site.promote("eu-west", "switchover").await;
        site.until_near("eu-west").await;
        site.stop("us-east").await;
        site.start("us-east").await;
        site.until_near("eu-west").await;
        let end = now();
        let acknowledged = ledger.acknowledged().await;
        let lost = site.settle("eu-west", &acknowledged).await;
        assert_eq!(lost, Vec::<i64>::new());
        score.rto_ms = Some(gap_ms(&acknowledged, begin, end));
        score.lost = Some(lost.len());
        score.told(&promoted);
        score.commits = acknowledged.count();
    })
    .await;
}
