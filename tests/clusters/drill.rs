//! Rehearsals: they pass, find what is wrong, disturb nothing, and leave nothing.

use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use replicator_tests::ledger::Ledger;
use replicator_tests::{Cluster, PATIENCE, has_amcheck, now, pause, program, text, until};
use sqlx::Executor;

fn rehearse(cluster: &Cluster, region: &str) -> (bool, serde_json::Value) {
    let output = cluster.run(&["drill", "--region", region, "--json"]);
    let report = serde_json::from_slice(&output.stdout);
    (output.status.success(), report.unwrap_or_else(|e| panic!("{e}: {}", text(&output.stderr))))
}

fn outcomes(report: &serde_json::Value) -> Vec<&str> {
    report["checks"].as_array().unwrap().iter().map(|check| check["outcome"].as_str().unwrap()).collect()
}

/// Nothing of a drill runs or lies about. A postmaster that was told to end may take a moment to be gone.
async fn assert_nothing_left(cluster: &Cluster, region: &str) {
    let directory = cluster.region(region).join("drill");
    assert!(!directory.exists(), "{} is left", directory.display());
    let wanted = directory.as_os_str().as_encoded_bytes();
    until("no process of the drill is left", || async {
        let mut commands = std::fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| std::fs::read(entry.ok()?.path().join("cmdline")).ok());
        !commands.any(|command| command.windows(wanted.len()).any(|part| part == wanted))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rehearsal_under_load_passes_and_leaves_nothing() {
    let cluster = Cluster::up(1);
    let url = cluster.printed(&["url", "--region", "us-east"]);
    let made = Command::new(replicator_tests::postgresql("pgbench"))
        .args(["-i", "-q", "-s", "2"])
        .arg(&url)
        .output();
    assert!(made.unwrap().status.success());
    let ledger = Ledger::start(&url, 4).await;
    ledger.until_written(50).await;
    let (passed, report) = rehearse(&cluster, "eu-west");
    assert_eq!(passed, has_amcheck(), "{report:#}");
    let sound = if has_amcheck() { "passed" } else { "not_done" };
    assert_eq!(outcomes(&report), ["passed", sound, "passed"], "{report:#}");
    assert!(
        report["checks"][2]["detail"].as_str().unwrap().starts_with("20"),
        "200,000 rows and more: {report:#}"
    );
    assert!(report["writers_held_ms"].as_u64().unwrap() <= 1000, "{report:#}");
    assert_nothing_left(&cluster, "eu-west").await;
    // The region follows as before: the clone's own timeline and rows are nowhere.
    ledger.until_written(50).await;
    let acknowledged = ledger.acknowledged().await;
    cluster.assert_identical().await;
    acknowledged.assert_in_all(&cluster).await;
    // Not on the primary, and not of what is not there.
    for (region, why) in [("us-east", "needs a secondary"), ("mars", "there is no region 'mars'")] {
        let refused = cluster.run(&["drill", "--region", region]);
        assert!(
            !refused.status.success() && text(&refused.stderr).contains(why),
            "{}",
            text(&refused.stderr)
        );
    }
}

/// The file of a table in a region's standby, after everything up to now was written to it.
async fn file_on_disk(cluster: &Cluster, region: &str, table: &str) -> PathBuf {
    let mut primary = cluster.connect("us-east").await;
    primary.execute("CHECKPOINT").await.unwrap();
    let end = sqlx::query_scalar::<_, String>("SELECT pg_current_wal_lsn()::text").fetch_one(&mut primary);
    let applied = format!("SELECT pg_last_wal_replay_lsn() >= '{}'", end.await.unwrap());
    let mut standby = cluster.connect(region).await;
    // A standby's checkpoint goes back to the last one of the primary's that it has applied.
    let start = now();
    while !sqlx::query_scalar::<_, bool>(sqlx::AssertSqlSafe(applied.clone()))
        .fetch_one(&mut standby)
        .await
        .unwrap()
    {
        assert!(start.elapsed() < PATIENCE, "the standby does not apply the primary's checkpoint");
        pause().await;
    }
    standby.execute("CHECKPOINT").await.unwrap();
    let query = format!("SELECT pg_relation_filepath('{table}')");
    let path: String = sqlx::query_scalar(sqlx::AssertSqlSafe(query)).fetch_one(&mut standby).await.unwrap();
    cluster.region(region).join("pgdata").join(path)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rehearsal_finds_what_rotted_and_what_was_never_written() {
    let cluster = Cluster::up(1);
    let mut primary = cluster.connect("us-east").await;
    let make = "CREATE TABLE fine (id int, filler text); CREATE TABLE torn (id int, filler text); CREATE TABLE stale (id int, filler text); \
                INSERT INTO fine SELECT g, repeat('x', 900) FROM generate_series(1, 100) g; \
                INSERT INTO torn TABLE fine; INSERT INTO stale TABLE fine;";
    primary.execute(make).await.unwrap();
    let (passed, report) = rehearse(&cluster, "eu-west");
    assert_eq!(passed, has_amcheck(), "{report:#}");
    // A block that was never written: it holds what it held before, with a right checksum.
    let stale = file_on_disk(&cluster, "eu-west", "stale").await;
    let before = std::fs::read(&stale).unwrap();
    primary.execute("UPDATE stale SET filler = repeat('y', 900) WHERE id = 1").await.unwrap();
    let again = file_on_disk(&cluster, "eu-west", "stale").await;
    assert_eq!(stale, again);
    std::fs::write(&stale, before).unwrap();
    let (passed, report) = rehearse(&cluster, "eu-west");
    assert!(!passed, "{report:#}");
    assert_eq!(outcomes(&report)[2], "failed", "{report:#}");
    let told = report["checks"][2]["detail"].as_str().unwrap();
    assert!(told.contains("public.stale") && !told.contains("fine"), "{told}");
    // Bytes that rotted: PostgreSQL's own checksum finds them, once somebody reads the block.
    let torn = file_on_disk(&cluster, "eu-west", "torn").await;
    std::fs::File::options().write(true).open(torn).unwrap().write_at(b"rot", 8192 * 3 + 5000).unwrap();
    let (passed, report) = rehearse(&cluster, "eu-west");
    assert!(!passed, "{report:#}");
    let sound = if has_amcheck() { "failed" } else { "not_done" };
    assert_eq!(outcomes(&report)[1..], [sound, "failed"], "{report:#}");
    let told = report["checks"][2]["detail"].as_str().unwrap();
    assert!(told.contains("public.torn") && told.contains("not readable"), "{told}");
    assert_nothing_left(&cluster, "eu-west").await;
}

fn begin(cluster: &Cluster, region: &str) -> Child {
    let mut command = Command::new(program());
    command.args(["drill", "--region", region, "--copy-rate", "8MiB", "--config"]).arg(cluster.file());
    command.arg("--data").arg(cluster.data()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rehearsal_that_is_interrupted_leaves_nothing_and_one_that_is_killed_is_cleared_away() {
    let cluster = Cluster::up(1);
    let directory = cluster.region("eu-west").join("drill");
    let drill = begin(&cluster, "eu-west");
    until("it has begun to copy", || async { directory.join("pgdata/base").exists() }).await;
    // One at a time.
    let refused = cluster.run(&["drill", "--region", "eu-west"]);
    assert!(text(&refused.stderr).contains("under way already"), "{}", text(&refused.stderr));
    // One wish that comes twice, as from `timeout`, which tells a process and then its group. Two of the same
    // signal could become one on the way.
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        kill(Pid::from_raw(i32::try_from(drill.id()).unwrap()), signal).unwrap();
    }
    let output = drill.wait_with_output().unwrap();
    assert!(text(&output.stderr).contains("interrupted: the clone was removed"), "{}", text(&output.stderr));
    assert_nothing_left(&cluster, "eu-west").await;
    // Killed while its PostgreSQL runs.
    let mut drill = begin(&cluster, "eu-west");
    until("its PostgreSQL runs", || async { directory.join("pgdata/postmaster.pid").exists() }).await;
    drill.kill().unwrap();
    drill.wait().unwrap();
    let (passed, report) = rehearse(&cluster, "eu-west");
    assert_eq!(passed, has_amcheck(), "{report:#}");
    assert_nothing_left(&cluster, "eu-west").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rehearsal_amid_a_switchover_says_so_and_leaves_nothing() {
    let cluster = Cluster::up(1);
    let drill = begin(&cluster, "eu-west");
    let copied = cluster.region("eu-west").join("drill/pgdata/base");
    until("it has begun to copy", || async { copied.exists() }).await;
    let _ = cluster.printed(&["promote", "--region", "eu-west"]);
    let output = drill.wait_with_output().unwrap();
    let said = text(&output.stderr);
    assert!(!output.status.success() && said.contains("eu-west has become the primary meanwhile"), "{said}");
    assert_nothing_left(&cluster, "eu-west").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_drill_goes_there_and_back() {
    let cluster = Cluster::up(2);
    let ledger = Ledger::start_at(
        cluster.regions.iter().map(|region| cluster.printed(&["url", "--region", region])).collect(),
        4,
    )
    .await;
    ledger.until_written(50).await;
    let unasked = cluster.run(&["drill", "--region", "eu-west", "--full"]);
    assert!(text(&unasked.stderr).contains("nothing was done"), "{}", text(&unasked.stderr));
    let report = cluster.printed(&["drill", "--region", "eu-west", "--full", "--yes", "--markdown"]);
    assert!(report.contains("Full drill, there and back, of eu-west: passed"), "{report}");
    assert_eq!(cluster.status()["primary"], "us-east");
    assert_eq!(cluster.status()["epoch"], 3);
    let acknowledged = ledger.acknowledged().await;
    cluster.assert_identical().await;
    acknowledged.assert_in_all(&cluster).await;
}
