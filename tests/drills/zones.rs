//! A zone of the primary's region is lost, then a zone and a copy: commits go on with four copies of six,
//! wait with three, and nothing is lost.

use std::time::Duration;

use replicator_tests::{now, stays, until};

use crate::harness::{Plan, drill};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs docker: make drills"]
async fn zone_lost_and_zone_and_copy_lost() {
    let plan = Plan { name: "zones", secondaries: 1, zones: true, ..Plan::default() };
    drill(plan, async |site, score| {
        let whole = || async {
            site.volume("us-east")["copies"].as_array().unwrap().iter().all(|c| c["state"] == "live")
        };
        until("all copies are live", whole).await;
        let ledger = site.load().await;
        let lost = now();
        site.kill_zone('b').await;
        ledger.until_written(200).await;
        let went_on = now();
        // A copy of another zone: its directory is gone, and cannot be made anew.
        let copies = "/var/lib/replicator/regions/us-east/volume/az-c";
        site.inside_zone('c', &format!("mv {copies}/c1 {copies}/aside && touch {copies}/c1")).await;
        until("commits wait", || async { site.volume("us-east")["writable"] == false }).await;
        let waiting = now();
        let wait = || async { site.volume("us-east")["writable"] == false };
        stays("commits wait", Duration::from_secs(2), wait).await;
        let waited = now();
        site.start_zone('b').await;
        until("commits go on", || async { site.volume("us-east")["writable"] == true }).await;
        ledger.until_written(100).await;
        let end = now();
        site.inside_zone('c', &format!("rm {copies}/c1 && mv {copies}/aside {copies}/c1")).await;
        until("all copies are filled again", whole).await;
        let acknowledged = ledger.acknowledged().await;
        assert_eq!(acknowledged.between(waiting, waited), 0, "three copies acknowledge nothing");
        let gap = acknowledged.longest_gap(lost, went_on);
        assert!(gap < Duration::from_secs(2), "a zone was lost, and no commit returned for {gap:?}");
        let missing = site.settle("us-east", &acknowledged).await;
        assert_eq!(missing, Vec::<i64>::new());
        score.rto_ms = Some(gap.as_millis());
        score.lost = Some(missing.len());
        score.commits = acknowledged.count();
        assert!(acknowledged.between(waited, end) > 0, "the fourth brings commits back");
    })
    .await;
}
