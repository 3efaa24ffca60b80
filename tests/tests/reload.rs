//! The file read again while regions work: what is taken, what is not, and that nothing else is touched.

#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

use std::collections::BTreeMap;

use nix::sys::signal::{Signal, kill};
use replicator_tests::ledger::Ledger;
use replicator_tests::{Cluster, free_port, text, until};
use sqlx::{Executor, PgConnection};

/// A cluster whose file ends with a section for PostgreSQL that tests change.
fn cluster(secondaries: usize, postgresql: &str) -> Cluster {
    let cluster = Cluster::new(secondaries);
    let file = std::fs::read_to_string(cluster.file()).unwrap();
    std::fs::write(cluster.file(), format!("{file}[postgresql]\n{postgresql}\n")).unwrap();
    cluster
}

fn replace(cluster: &Cluster, old: &str, new: &str) {
    let file = std::fs::read_to_string(cluster.file()).unwrap();
    assert!(file.contains(old), "{old}");
    std::fs::write(cluster.file(), file.replace(old, new)).unwrap();
}

/// The outcome and the detail of each key.
type Keys = BTreeMap<String, (String, String)>;

/// What `reload --json` says of each region: each key's outcome and detail, but for those that are unchanged;
/// and whether the command succeeded.
fn reload(cluster: &Cluster, arguments: &[&str]) -> (BTreeMap<String, Keys>, bool) {
    let output = cluster.run(&[&["reload", "--json"], arguments].concat());
    let said: serde_json::Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {} {}", text(&output.stdout), text(&output.stderr)));
    let word = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let regions = said["regions"].as_array().unwrap().iter().map(|region| {
        assert_eq!((word(&region["refused"]), word(&region["error"])), (String::new(), String::new()));
        let keys = region["keys"].as_array().unwrap().iter();
        let keys = keys.map(|key| (word(&key["key"]), (word(&key["outcome"]), word(&key["detail"]))));
        (word(&region["region"]), keys.filter(|(_, (outcome, _))| outcome != "unchanged").collect())
    });
    (regions.collect(), output.status.success())
}

fn outcome(keys: &Keys, key: &str) -> String {
    keys.get(key).map(|(outcome, _)| outcome.clone()).unwrap_or_else(|| panic!("{key} is not in {keys:?}"))
}

async fn show(connection: &mut PgConnection, setting: &str) -> String {
    let asked = format!("SHOW {setting}");
    sqlx::query_scalar(sqlx::AssertSqlSafe(asked)).fetch_one(connection).await.unwrap()
}

/// Whether the daemon answers by HTTP at this port.
async fn answers(port: u16) -> bool {
    tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok()
}

/// Whether a client of this name is turned away by `hba`.
async fn is_rejected(cluster: &Cluster, region: &str, user: &str) -> bool {
    use sqlx::Connection;
    let url = cluster.printed(&["url", "--region", region]).replace("postgres:", &format!("{user}:"));
    PgConnection::connect(&url).await.unwrap_err().to_string().contains("pg_hba.conf rejects connection")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_under_load_takes_what_it_can_and_cuts_nobody_off() {
    let settings = "settings = { work_mem = \"2MB\", max_connections = 100 }\nhba = []";
    let cluster = cluster(1, settings);
    let ports = [free_port(), free_port()];
    cluster.configure_region("us-east", &format!("http = \"127.0.0.1:{}\"", ports[0]));
    cluster.start();
    let regions = ["us-east", "eu-west"];
    let ledger = Ledger::start(&cluster.printed(&["url", "--region", "us-east"]), 4).await;
    ledger.until_written(100).await;
    // Sessions that were there before, one with a transaction, and everything that runs.
    let mut before = Vec::new();
    for region in regions {
        let mut session = cluster.connect(region).await;
        session
            .execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pg_class")
            .await
            .unwrap();
        before.push((session, cluster.daemon(region), cluster.postmaster(region)));
    }
    replace(
        &cluster,
        settings,
        "settings = { work_mem = \"3MB\", max_connections = 110 }\n\
        hba = [\"host all stranger all reject\"]\n[volume]\nretain = \"25h\"\n[telemetry]\nload = false",
    );
    replace(&cluster, &format!("127.0.0.1:{}", ports[0]), &format!("127.0.0.1:{}", ports[1]));
    cluster.configure("lease = \"6s\"\n");
    let (told, well) = reload(&cluster, &[]);
    assert!(well, "{told:?}");
    for region in regions {
        let keys = &told[region];
        for key in ["postgresql.settings.work_mem", "postgresql.hba", "volume.retain", "telemetry.load"] {
            assert_eq!(outcome(keys, key), "applied", "{region}");
        }
        for key in ["postgresql.settings.max_connections", "lease"] {
            assert_eq!(outcome(keys, key), "needs_restart", "{region}");
        }
        assert!(keys["postgresql.settings.max_connections"].1.contains("secondaries' daemons first"));
        assert_eq!(keys.contains_key("region.us-east.http"), region == "us-east");
    }
    for (region, (session, daemon, postmaster)) in regions.into_iter().zip(&mut before) {
        assert_eq!((cluster.daemon(region), cluster.postmaster(region)), (*daemon, *postmaster));
        // PostgreSQL reads its files between two statements of a session.
        until("a session has the setting", || async {
            show(&mut cluster.connect(region).await, "work_mem").await == "3MB"
        })
        .await;
        assert_eq!(
            show(session, "transaction_isolation").await,
            "repeatable read",
            "its transaction goes on"
        );
        assert_eq!(show(session, "max_connections").await, "100");
        assert!(is_rejected(&cluster, region, "stranger").await);
        let said = cluster.run(&["load", "--region", region]);
        assert!(text(&said.stderr).contains("load = false"), "{said:?}");
    }
    until("the page has moved", || async { answers(ports[1]).await && !answers(ports[0]).await }).await;
    let events = cluster.printed(&["events", "--region", "us-east"]);
    assert!(events.contains("retain was 86400s, and is 90000s"), "{events}");
    // What waits is told again, and nothing else.
    let (again, well) = reload(&cluster, &["--region", "eu-west"]);
    let waits: Vec<&String> = again["eu-west"].keys().collect();
    assert!(well && waits == ["lease", "postgresql.settings.max_connections"], "{again:?}");
    let acknowledged = ledger.acknowledged().await;
    acknowledged.assert_in_all(&cluster).await;
    // In the order that was told: the secondary's daemon first.
    for region in ["eu-west", "us-east"] {
        kill(cluster.daemon(region), Signal::SIGTERM).unwrap();
        let lock = cluster.region(region).join("daemon.lock");
        until("the daemon has ended", || async { replicator_tests::is_free(&lock) }).await;
        cluster.start();
        until("the setting holds", || async {
            show(&mut cluster.connect(region).await, "max_connections").await == "110"
        })
        .await;
    }
    let (after, _) = reload(&cluster, &[]);
    assert!(after.values().all(BTreeMap::is_empty), "{after:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_file_changes_nothing_and_a_signal_does_what_the_command_does() {
    let settings = "settings = { work_mem = \"2MB\" }\nhba = [\"host all stranger all reject\"]";
    let cluster = cluster(1, settings);
    cluster.start();
    let good = std::fs::read_to_string(cluster.file()).unwrap();
    let written =
        |name: &str| std::fs::read_to_string(cluster.region("us-east").join("pgdata").join(name)).unwrap();
    let files = ["replicator.conf", "pg_hba.conf"].map(written);
    let daemon = cluster.daemon("us-east");
    let log = || std::fs::read_to_string(cluster.region("us-east").join("daemon.log")).unwrap();
    let signalled = |file: &str| {
        let told = log().matches("nothing was changed").count() + log().matches(" is refused: ").count();
        std::fs::write(cluster.file(), file).unwrap();
        kill(daemon, Signal::SIGHUP).unwrap();
        told
    };
    // One that no daemon can read, by a signal: the command itself says what is wrong with it.
    let bad = good.replace("work_mem = \"2MB\"", "work_mem = \"4MB\"").replace("hba =", "bha =");
    let told = signalled(&bad);
    until("it is refused", || async { log().matches("nothing was changed").count() > told }).await;
    assert!(log().contains("unknown key `bha`"));
    let refused = cluster.run(&["reload"]);
    assert!(!refused.status.success() && text(&refused.stderr).contains("unknown key `bha`"), "{refused:?}");
    // What only PostgreSQL knows: a value that it does not take, and a line that is no rule.
    let unknown = good.replace("work_mem = \"2MB\"", "work_mem = \"4MB\", wrok_mem = \"1MB\"");
    let no_rule = good.replace("2MB", "4MB").replace("all reject", "10.0.0.0/99 reject");
    for (file, why) in [(unknown, "wrok_mem"), (no_rule, "line")] {
        std::fs::write(cluster.file(), file).unwrap();
        let (told, well) = reload(&cluster, &[]);
        assert!(!well);
        for region in ["us-east", "eu-west"] {
            let refused = &told[region];
            assert!(
                refused.values().all(|(outcome, _)| outcome == "refused") && !refused.is_empty(),
                "{told:?}"
            );
            assert!(refused.values().any(|(_, detail)| detail.contains(why)), "{told:?}");
            assert_eq!(show(&mut cluster.connect(region).await, "work_mem").await, "2MB");
        }
    }
    assert_eq!(files, ["replicator.conf", "pg_hba.conf"].map(written));
    assert!(is_rejected(&cluster, "us-east", "stranger").await);
    // The same file, but for what was wrong, by a signal.
    let told = signalled(&good.replace("2MB", "4MB").replace("stranger", "newcomer"));
    until("both hold", || async {
        show(&mut cluster.connect("us-east").await, "work_mem").await == "4MB"
            && written("pg_hba.conf").contains("newcomer")
    })
    .await;
    assert!(is_rejected(&cluster, "us-east", "newcomer").await);
    assert_eq!(log().matches("nothing was changed").count() + log().matches(" is refused: ").count(), told);
    assert_eq!(cluster.daemon("us-east"), daemon);
    // Each daemon was told by itself.
    assert_eq!(show(&mut cluster.connect("eu-west").await, "work_mem").await, "2MB");
    // A daemon that is not there is an answer that is missing.
    cluster.kill("eu-west", false).await;
    let output = cluster.run(&["reload"]);
    assert!(!output.status.success() && text(&output.stdout).contains("eu-west: no answer"), "{output:?}");
}
