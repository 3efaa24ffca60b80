//! The operator's command is killed as soon as a daemon has taken its order: the promotion goes on by itself,
//! and can be asked for again.

use replicator_tests::{Ordered, now, until};

use crate::harness::{Plan, drill, gap_ms};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs docker: make drills"]
async fn command_killed() {
    let plan = Plan { name: "interrupted", secondaries: 2, ..Plan::default() };
    drill(plan, async |site, score| {
        let ledger = site.load().await;
        let begin = now();
        let promotion = Ordered::before(site.operator()).await;
        let mut ordered = site.begin(&["promote", "--region", "eu-west"]);
        promotion.until_done(0).await;
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
