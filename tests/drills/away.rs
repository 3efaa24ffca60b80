//! A secondary is away for so long that its redo has left the primary's volume: it is seeded again by itself.

use replicator_tests::{fill_bulk, make_bulk, now};

use crate::harness::{Plan, drill, gap_ms};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs docker: make drills"]
async fn away_past_retention() {
    let plan = Plan {
        name: "away",
        secondaries: 1,
        lines: "[volume]\nmax_size = \"128MiB\"",
        clean: true,
        ..Plan::default()
    };
    drill(plan, async |site, score| {
        let ledger = site.load().await;
        site.kill("eu-west").await;
        let begin = now();
        // Redo that does not compress, more than the volume keeps.
        let mut primary = site.connect("us-east").await;
        make_bulk(&mut primary).await;
        for _ in 0..30 {
            fill_bulk(&mut primary).await;
        }
        let end = now();
        site.start("eu-west").await;
        let acknowledged = ledger.acknowledged().await;
        let lost = site.settle("us-east", &acknowledged).await;
        assert_eq!(lost, Vec::<i64>::new());
        assert_eq!(site.said("eu-west").await.matches("receiving a seed").count(), 2, "it was seeded again");
        score.rto_ms = Some(gap_ms(&acknowledged, begin, end));
        score.lost = Some(lost.len());
        score.commits = acknowledged.count();
    })
    .await;
}
