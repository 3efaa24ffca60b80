//! One primary and five secondaries under load for two minutes: no region's lag reaches a second.

use std::time::Duration;

use replicator_tests::now;

use crate::harness::{Plan, drill, gap_ms};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs docker: make drills"]
async fn six_regions_under_load() {
    drill(Plan { name: "six", secondaries: 5, ..Plan::default() }, async |site, score| {
        let ledger = site.load().await;
        let begin = now();
        let (mut worst_ms, mut looks) = (0, 0);
        while begin.elapsed() < Duration::from_secs(120) {
            let status = site.try_status().unwrap();
            for row in status["regions"].as_array().unwrap() {
                let lag_ms = row["visibility_lag_ms"].as_u64().expect("every lag is known");
                assert!(lag_ms < 1000, "{} lags by {lag_ms} ms", row["name"]);
                worst_ms = worst_ms.max(lag_ms);
            }
            looks += 1;
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
        let end = now();
        println!("the worst of {looks} looks at five regions' lags: {worst_ms} ms");
        let acknowledged = ledger.acknowledged().await;
        let lost = site.settle("us-east", &acknowledged).await;
        assert_eq!(lost, Vec::<i64>::new());
        score.rto_ms = Some(gap_ms(&acknowledged, begin, end));
        score.lost = Some(lost.len());
        score.commits = acknowledged.count();
    })
    .await;
}
