//! What happened is told by every daemon's journal, and how it is by the exit status of `status` and by the
//! page.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;

use replicator_tests::{Cluster, free_port, text, until};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// The events that `replicator events --json` prints, oldest first.
fn events(cluster: &Cluster) -> Vec<Value> {
    let printed = cluster.printed(&["events", "--json", "--since", "1h"]);
    printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Those of one kind.
fn of(cluster: &Cluster, kind: &str) -> Vec<String> {
    let told = events(cluster).into_iter().filter(|event| event["kind"] == kind);
    told.map(|event| event["text"].as_str().unwrap().to_owned()).collect()
}

/// What `GET path` answers: head and body; none while nobody answers.
async fn get(address: SocketAddr, path: &str) -> Option<(String, String)> {
    let mut stream = tokio::net::TcpStream::connect(address).await.ok()?;
    let asked = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(asked.as_bytes()).await.ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.ok()?;
    let (head, body) =
        String::from_utf8(answer).ok()?.split_once("\r\n\r\n").map(|(h, b)| (h.into(), b.into()))?;
    Some((head, body))
}

#[tokio::test]
async fn what_happens_is_told_with_its_reason_and_survives_a_killed_daemon() {
    let cluster = Cluster::new(1);
    cluster.add_witness("referee");
    let page: SocketAddr = ([127, 0, 0, 1], free_port()).into();
    cluster.configure_region("us-east", &format!("http = \"{page}\""));
    cluster.start();
    // All is well, and every way to ask says so.
    until("all is well", || async { cluster.run(&["status"]).status.code() == Some(0) }).await;
    let check = cluster.run(&["status", "--check"]);
    assert!(
        text(&check.stdout).starts_with("OK - all regions are well | 'eu-west lag'="),
        "{}",
        text(&check.stdout)
    );
    let facts = || async { serde_json::from_str::<Value>(&get(page, "/page/facts.json").await?.1).ok() };
    until("the page has numbers", || async {
        facts().await.is_some_and(|facts| facts["verdict"]["level"] == "well")
    })
    .await;
    let (head, body) = get(page, "/").await.unwrap();
    assert!(
        head.starts_with("HTTP/1.1 200") && head.contains("default-src 'none'") && body.contains("<html")
    );
    // The page's numbers are those of status, once nothing moves.
    let same = || async {
        let (page, status) = (facts().await.unwrap_or_default(), cluster.status());
        ["name", "role", "state", "durable_lsn", "applied_lsn", "timeline"]
            .iter()
            .all(|field| page["regions"][1][field] == status["regions"][1][field])
    };
    until("the page agrees with status", same).await;

    // A standby's PostgreSQL that is killed is told, by the daemon that started it again.
    let ended = nix::sys::signal::Signal::SIGKILL;
    nix::sys::signal::kill(cluster.postmaster("eu-west"), ended).unwrap();
    until("it is told that PostgreSQL ended", || async { !of(&cluster, "postgresql-ended").is_empty() })
        .await;
    until("it runs again", || async { of(&cluster, "postgresql-started").len() >= 3 }).await;
    until("all is well again", || async { cluster.run(&["status"]).status.code() == Some(0) }).await;

    // A promotion is told once, though three voters noted it.
    let _ = cluster.printed(&["promote", "--region", "eu-west"]);
    until("its end is told", || async { !of(&cluster, "promotion-over").is_empty() }).await;
    assert_eq!((of(&cluster, "promotion-begun").len(), of(&cluster, "promotion-over").len()), (1, 1));
    let over = of(&cluster, "promotion-over").concat();
    assert!(over.contains("eu-west leads epoch 2") && over.contains("nothing is lost"), "{over}");
    let own = cluster.printed(&["events", "--json", "--region", "referee"]);
    assert!(own.contains("\"kind\":\"promotion-"), "a witness keeps a journal as well: {own}");

    // The primary is gone: that is the worst, and what was noted before is still told when it is back.
    cluster.kill("eu-west", true).await;
    until("it is down", || async { cluster.run(&["status", "--check"]).status.code() == Some(2) }).await;
    let before = of(&cluster, "promotion-begun");
    assert_eq!(before.len(), 1, "the others know of it");
    cluster.start();
    until("all is well", || async { cluster.run(&["status"]).status.code() == Some(0) }).await;
    let numbers: Vec<u64> = events(&cluster)
        .iter()
        .filter(|event| event["region"] == "eu-west")
        .map(|event| event["number"].as_u64().unwrap())
        .collect();
    assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]), "one journal, also after a kill: {numbers:?}");
    for name in ["events.jsonl", "configuration.seen"] {
        let mode = std::fs::metadata(cluster.region("us-east").join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
}
