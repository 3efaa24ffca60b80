//! The primary's region is lost at once, with all its processes; its commits were in another region too.

use replicator_tests::now;

use crate::harness::{Plan, drill, gap_ms};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs docker: make drills"]
async fn primary_killed() {
    let plan = Plan { name: "killed", secondaries: 2, lines: "commit = { regions = 1 }", ..Plan::default() };
    drill(plan, async |site, score| {
        let ledger = site.load().await;
        let killed = now();
        site.kill("us-east").await;
        let promoted = site.promote("eu-west", "failover").await;
        ledger.until_written(200).await;
        let end = now();
        // It comes back as it was, and follows.
        site.start("us-east").await;
        let acknowledged = ledger.acknowledged().await;
        let lost = site.settle("eu-west", &acknowledged).await;
        assert_eq!(lost, Vec::<i64>::new(), "another region had every acknowledged commit");
        score.rto_ms = Some(gap_ms(&acknowledged, killed, end));
        score.lost = Some(lost.len());
        score.told(&promoted);
        score.commits = acknowledged.count();
    })
    .await;
}
