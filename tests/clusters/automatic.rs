//! Failovers without an operator: the primary's region is gone, and another one leads by itself.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use replicator_tests::ledger::Ledger;
use replicator_tests::{Cluster, free_port, now, stays, until, with_children};

fn primary(cluster: &Cluster) -> String {
    cluster.status()["primary"].as_str().unwrap_or_default().to_owned()
}

async fn until_another_leads(cluster: &Cluster, than: &str) -> String {
    until("another region leads", || async {
        let status = cluster.status();
        let leads = status["primary"].as_str().is_some_and(|name| !name.is_empty() && name != than);
        leads && !status["notes"].to_string().contains("in progress")
    })
    .await;
    primary(cluster)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_that_is_gone_is_replaced_twice_and_then_an_operator_is_asked() {
    let cluster = Cluster::new(2);
    cluster.configure(
        "lease = \"2s\"\nfailover = \"auto\"\nfailover_after = \"3s\"\ncommit = { regions = 1 }\n",
    );
    for region in &cluster.regions {
        cluster.configure_region(region, &format!("writer_endpoint = \"127.0.0.1:{}\"", free_port()));
    }
    cluster.start();
    cluster.expect(&[
        "does not lead any more",
        "rolled back",
        "an operator has to",
        "are done without an operator",
    ]);
    let urls = ["eu-west", "ap-northeast"];
    let urls = urls.map(|region| cluster.printed(&["url", "--region", region, "--endpoint", "writer"]));
    let ledger = Ledger::start_at(urls.to_vec(), 4).await;
    ledger.until_written(200).await;

    // Killed, all of it.
    let begin = now();
    cluster.kill("us-east", true).await;
    let second = until_another_leads(&cluster, "us-east").await;
    ledger.until_written(100).await;
    println!("killed: {second} leads by itself, and writes went on after {:?}", begin.elapsed());
    cluster.start_region("us-east");
    cluster.until_level().await;

    // Frozen, daemon and PostgreSQL: nothing of it says that it is gone. Then it goes on.
    let mut frozen = with_children(cluster.postmaster(&second));
    frozen.insert(0, cluster.daemon(&second));
    for pid in &frozen {
        let _ = kill(*pid, Signal::SIGSTOP);
    }
    let begin = now();
    let third = until_another_leads(&cluster, &second).await;
    println!("frozen: {third} leads by itself after {:?}", begin.elapsed());
    for pid in &frozen {
        let _ = kill(*pid, Signal::SIGCONT);
    }
    ledger.until_written(100).await;
    cluster.until_level().await;
    assert_eq!(primary(&cluster), third, "it is not done back and forth");

    // A third time within the hour is an operator's to judge.
    cluster.kill(&third, true).await;
    until("an operator is asked", || async {
        cluster.printed(&["events", "--json"]).contains("operator-needed")
    })
    .await;
    let nobody = || async { primary(&cluster) == third || primary(&cluster).is_empty() };
    stays("nobody leads by himself", Duration::from_secs(3), nobody).await;
    let to = if third == "ap-northeast" { "eu-west" } else { "ap-northeast" };
    let _ = cluster.printed(&["promote", "--region", to, "--mode", "failover"]);
    ledger.until_written(100).await;
    cluster.start_region(&third);
    cluster.until_level().await;
    let acknowledged = ledger.acknowledged().await;
    cluster.assert_identical().await;
    acknowledged.assert_in_all(&cluster).await;
}
