//! A disk is full: the primary's, and commits wait until there is room; a secondary's, and nobody else
//! notices.

use replicator_tests::{now, until};

use crate::harness::{Plan, drill, gap_ms};

const FILL: &str = "cat /dev/zero > /var/lib/replicator/regions/@/volume/fill 2>/dev/null; true";
const FREE: &str = "rm /var/lib/replicator/regions/@/volume/fill";

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs docker: make drills"]
async fn disk_of_the_primary_full() {
    let plan = Plan {
        name: "disk_full_primary",
        secondaries: 1,
        small_disk: Some(("us-east", 400 << 20)),
        ..Plan::default()
    };
    drill(plan, async |site, score| {
        let ledger = site.load().await;
        let full = now();
        site.inside("us-east", &FILL.replace('@', "us-east")).await;
        until("commits wait", || async { site.volume("us-east")["writable"] == false }).await;
        let status = site.printed(&["status"]);
        assert!(status.contains("commits wait"), "everyone is told: {status}");
        let freed = now();
        site.inside("us-east", &FREE.replace('@', "us-east")).await;
        until("commits go on", || async { site.volume("us-east")["writable"] == true }).await;
        ledger.until_written(200).await;
        let end = now();
        let acknowledged = ledger.acknowledged().await;
        let lost = site.settle("us-east", &acknowledged).await;
        assert_eq!(lost, Vec::<i64>::new());
        assert!(acknowledged.between(full, end) > 100, "it went on");
        score.rto_ms = Some(gap_ms(&acknowledged, freed, end));
        score.lost = Some(lost.len());
        score.commits = acknowledged.count();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs docker: make drills"]
async fn disk_of_a_secondary_full() {
    let plan = Plan {
        name: "disk_full_secondary",
        secondaries: 2,
        small_disk: Some(("eu-west", 400 << 20)),
        ..Plan::default()
    };
    drill(plan, async |site, score| {
        let ledger = site.load().await;
        let full = now();
        site.inside("eu-west", &FILL.replace('@', "eu-west")).await;
        until("its volume takes nothing", || async { site.volume("eu-west")["writable"] == false }).await;
        ledger.until_written(1000).await;
        let end = now();
        site.inside("eu-west", &FREE.replace('@', "eu-west")).await;
        let acknowledged = ledger.acknowledged().await;
        let lost = site.settle("us-east", &acknowledged).await;
        assert_eq!(lost, Vec::<i64>::new());
        let gap = gap_ms(&acknowledged, full, end);
        assert!(gap < 2000, "clients of the primary noticed: no commit for {gap} ms");
        score.rto_ms = Some(gap);
        score.lost = Some(lost.len());
        score.commits = acknowledged.count();
    })
    .await;
}
