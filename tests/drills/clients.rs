//! A stock client, psql with what `replicator url --writer` prints, reaches the writer whatever became of the
//! regions that come before it in the string: frozen, gone from the network, or refusing; and the next writer
//! when its own is frozen.

use std::time::Duration;

use replicator_tests::ledger::Ledger;
use replicator_tests::{now, postgresql, text, until};
use sqlx::Executor;
use tokio::process::Command;

use crate::harness::{Plan, drill, gap_ms};

/// A region is given up after three seconds, and at most two come before the writer.
const REACHED: Duration = Duration::from_secs(9);

/// Writes a row as a client does that connects anew by `url`; whether it was told that the row is there.
async fn writes(url: &str) -> bool {
    let asked = Command::new(postgresql("psql"))
        .args(["-XAtqc", "INSERT INTO reached VALUES (1) RETURNING 'written'", "-d", url])
        .kill_on_drop(true)
        .output()
        .await;
    text(&asked.unwrap().stdout).trim() == "written"
}

/// How long such a client takes; it is to need no second try.
async fn reaches(url: &str, what: &str) -> Duration {
    let begin = now();
    let written = tokio::time::timeout(REACHED, writes(url)).await;
    assert_eq!(written, Ok(true), "{what}: psql reached no writer in {:?}", begin.elapsed());
    println!("{what}: written after {:?}", begin.elapsed());
    begin.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs docker: make drills"]
async fn a_stock_client_reaches_the_writer() {
    let plan = Plan { name: "clients", secondaries: 2, lines: "commit = { regions = 1 }", ..Plan::default() };
    drill(plan, async |site, score| {
        let _ = site.promote("ap-northeast", "switchover").await;
        site.until_near("ap-northeast").await;
        site.connect("ap-northeast").await.execute("CREATE TABLE reached (n int)").await.unwrap();
        // As an application has it: asked for once. The containers' addresses are in no certificate; that the
        // cluster's authority signed it is asked.
        let url = site.printed(&["url", "--writer"]).replace("sslmode=verify-full", "sslmode=verify-ca");
        let mut longest = reaches(&url, "all regions answer").await;
        site.freeze("us-east").await;
        longest = longest.max(reaches(&url, "us-east is frozen").await);
        site.thaw("us-east").await;
        // Its PostgreSQL's port is closed, and its daemon does not see to that yet.
        let postgres = "kill -STOP $(cat /var/lib/replicator/regions/us-east/daemon.lock) && \
                        kill -QUIT $(head -n 1 /var/lib/replicator/regions/us-east/pgdata/postmaster.pid)";
        site.inside("us-east", postgres).await;
        longest = longest.max(reaches(&url, "us-east refuses").await);
        site.inside("us-east", "kill -CONT $(cat /var/lib/replicator/regions/us-east/daemon.lock)").await;
        site.until_near("ap-northeast").await;
        site.kill("us-east").await;
        longest = longest.max(reaches(&url, "us-east has vanished").await);
        site.start("us-east").await;
        site.until_near("ap-northeast").await;
        // Now the writer itself, with load on it.
        let urls = ["ap-northeast", "us-east", "eu-west"].map(|region| site.url(region));
        let ledger = Ledger::start_at(urls.into(), 4).await;
        ledger.until_written(200).await;
        let frozen = now();
        site.freeze("ap-northeast").await;
        let promoted = site.promote("eu-west", "failover").await;
        longest = longest.max(reaches(&url, "the writer is frozen, and another region leads").await);
        ledger.until_written(200).await;
        let end = now();
        site.thaw("ap-northeast").await;
        let acknowledged = ledger.acknowledged().await;
        let lost = site.settle("eu-west", &acknowledged).await;
        assert_eq!(lost, Vec::<i64>::new(), "another region had every acknowledged commit");
        until("the frozen region follows", || async { site.primary().await == "eu-west" }).await;
        println!("a client that connects anew: {longest:?} at most");
        score.rto_ms = Some(gap_ms(&acknowledged, frozen, end));
        score.lost = Some(lost.len());
        score.told(&promoted);
        score.commits = acknowledged.count();
    })
    .await;
}
