//! Whoever coordinates a promotion is killed in the middle of it, after ever more of its steps: it goes on,
//! or is rolled back, and one region leads.

use replicator_tests::{Ordered, now, until};

use crate::harness::{Plan, drill, gap_ms};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs docker: make drills"]
async fn coordinator_killed_at_every_step() {
    let plan = Plan { name: "leader_killed", secondaries: 2, ..Plan::default() };
    drill(plan, async |site, score| {
        // What the record tells: nothing done, or the checkpoint, the stop and the last record; and beyond
        // that it is over.
        let ledger = site.load().await;
        let begin = now();
        let mut led_by = Vec::new();
        for steps in 0..5 {
            let primary = site.primary().await;
            let to = if primary == "us-east" { "eu-west" } else { "us-east" };
            site.until_near(&primary).await;
            let promotion = Ordered::before(site.operator()).await;
            let mut ordered = site.begin(&["promote", "--region", to]);
            promotion.until_done(steps).await;
            site.kill(to).await;
            // Another voter goes on with it, or the old primary leads on: clients see commits either way.
            // Where it was over just before, the new primary was killed, and comes back.
            let is_back = tokio::select! {
                biased;
                () = ledger.until_written(50) => false,
                () = promotion.until_led_by(to) => true,
            };
            if is_back {
                site.start(to).await;
                ledger.until_written(50).await;
            }
            ordered.wait().await.unwrap();
            if !is_back {
                site.start(to).await;
            }
            until("the promotion is over", || async {
                site.try_status().is_some_and(|status| {
                    let streams =
                        status["regions"].as_array().unwrap().iter().all(|row| row["state"] == "streaming");
                    streams && !status["notes"].to_string().contains("in progress")
                })
            })
            .await;
            led_by.push(format!("killed after {steps} steps: {} leads", site.primary().await));
        }
        let end = now();
        println!("{led_by:#?}\n{}", site.printed(&["history"]));
        let acknowledged = ledger.acknowledged().await;
        let primary = site.primary().await;
        let lost = site.settle(&primary, &acknowledged).await;
        assert_eq!(lost, Vec::<i64>::new(), "a switchover loses nothing, whoever dies");
        score.rto_ms = Some(gap_ms(&acknowledged, begin, end));
        score.lost = Some(lost.len());
        score.commits = acknowledged.count();
    })
    .await;
}
