//! The primary is cut off from all other regions, and its clients still reach it: it acknowledges nothing
//! once its lease is over, another leads, and when the network is mended it follows. What only it had is
//! told, and kept aside.

use std::time::Duration;

use replicator_tests::ledger::Ledger;
use replicator_tests::{now, stays, until};

use crate::harness::{Plan, drill};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs docker: make drills"]
async fn primary_partitioned() {
    drill(Plan { name: "partitioned", secondaries: 2, ..Plan::default() }, async |site, score| {
        // Clients of this region alone: they reach it all the time, and have no other to turn to.
        let ledger = Ledger::start_at(vec![site.url("us-east")], 4).await;
        ledger.until_written(200).await;
        let cut = now();
        site.isolate("us-east");
        let promoted = site.promote("eu-west", "failover").await;
        let leads = now();
        let other = Ledger::start_from(vec![site.url("eu-west")], 4, 1_000_000_000);
        other.until_written(200).await;
        // The old primary has been alone for longer than its lease, and its clients still ask it.
        let held = || async { site.printed(&["status", "--region", "us-east"]).contains("commits are held") };
        until("its lease is over", held).await;
        stays("commits are held", Duration::from_secs(2), held).await;
        let alone = now();
        site.heal();
        let (old, new) = (ledger.acknowledged().await, other.acknowledged().await);
        assert_eq!(old.between(leads, alone), 0, "the cut-off primary acknowledged after another led");
        assert!(new.between(leads, alone) > 0, "the new primary acknowledged nothing");
        let lost = site.settle("eu-west", &old).await;
        assert_eq!(site.settle("eu-west", &new).await, Vec::<i64>::new());
        // Commits of the old primary alone were those of its last moments, and are in what the promotion said
        // and the region keeps.
        let loss = &promoted["loss"];
        let told = cut + Duration::from_secs(loss["seconds"].as_u64().unwrap());
        let late = old.last_of(&lost).is_some_and(|at| at > told);
        assert!(!late, "a commit was lost that was acknowledged later than the promotion said: {promoted}");
        assert!(lost.is_empty() || site.keeps("us-east").await, "what was cut off is kept aside");
        score.rto_ms = new.first().map(|first| (first - cut).as_millis());
        score.lost = Some(lost.len());
        score.told(&promoted);
        score.commits = old.count() + new.count();
    })
    .await;
}
