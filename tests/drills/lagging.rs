//! The region that shall lead lags behind another survivor: it gathers what that has before it leads, and
//! nothing is lost.

use replicator_tests::{now, until};

use crate::harness::{Plan, drill, gap_ms};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs docker: make drills"]
async fn lagging_target() {
    let plan = Plan { name: "lagging", secondaries: 2, lines: "commit = { regions = 1 }", ..Plan::default() };
    drill(plan, async |site, score| {
        let ledger = site.load().await;
        // Commits go on with the other one.
        site.isolate("eu-west");
        ledger.until_written(500).await;
        let killed = now();
        site.kill("us-east").await;
        site.heal();
        let promoted = site.promote("eu-west", "failover").await;
        let gathered = promoted["steps"]
            .as_array()
            .unwrap()
            .iter()
            .any(|step| step["name"].as_str().unwrap().contains("gather"));
        assert!(gathered, "it had to gather: {promoted}");
        ledger.until_written(200).await;
        let end = now();
        site.start("us-east").await;
        let acknowledged = ledger.acknowledged().await;
        let lost = site.settle("eu-west", &acknowledged).await;
        assert_eq!(lost, Vec::<i64>::new(), "a survivor had every acknowledged commit");
        // The more advanced one followed without a new seed.
        until("its log is there", || async { !site.said("ap-northeast").await.is_empty() }).await;
        assert_eq!(site.said("ap-northeast").await.matches("receiving a seed").count(), 1);
        score.rto_ms = Some(gap_ms(&acknowledged, killed, end));
        score.lost = Some(lost.len());
        score.told(&promoted);
        score.commits = acknowledged.count();
    })
    .await;
}
