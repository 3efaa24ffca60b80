//! Promotions under load: nothing acknowledged is lost, and every region follows.

use std::process::Command;
use std::time::Duration;

use postgres::protocol::logins::LOGINS_MAX;
use replicator_tests::ledger::Ledger;
use replicator_tests::{Cluster, Ordered, now, stays, text, until};
use runtime::task::Task;
use sqlx::{Connection, Executor, PgConnection};

use crate::row;

/// What an old primary says when it is back after a failover.
const DEPOSED: &str = "this region does not lead any more";

async fn load(cluster: &Cluster) -> Ledger {
    let urls = cluster.regions.iter().map(|region| cluster.printed(&["url", "--region", region])).collect();
    Ledger::start_at(urls, 4).await
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_switchovers_back_and_forth_lose_nothing() {
    let cluster = Cluster::up(2);
    let ledger = load(&cluster).await;
    let (mut gaps, begin) = (Vec::new(), now());
    for round in 1..=20_u64 {
        let to = ["us-east", "eu-west"][usize::try_from(round % 2).unwrap()];
        cluster.until_level_enough(to).await;
        let promotion = cluster.printed(&["promote", "--region", to, "--json"]);
        let promotion: serde_json::Value = serde_json::from_str(&promotion).unwrap();
        assert_eq!(
            (&promotion["to"], promotion["epoch"].as_u64()),
            (&to.into(), Some(round + 1)),
            "{promotion}"
        );
        assert_eq!(promotion["loss"]["bytes"], 0);
        gaps.push(promotion["write_gap_ms"].as_u64().unwrap());
    }
    let end = now();
    let acknowledged = ledger.acknowledged().await;
    gaps.sort_unstable();
    let seen = acknowledged.longest_gap(begin, end);
    println!("write gaps: median {} ms, longest {} ms; seen by clients at most {seen:?}", gaps[10], gaps[19]);
    assert!(acknowledged.count() > 500, "there was load: {}", acknowledged.count());
    cluster.assert_identical().await;
    acknowledged.assert_in_all(&cluster).await;
    // Each region has led; the reader's slot is left only where it is read.
    let mut slots = 0;
    for region in ["us-east", "eu-west", "ap-northeast"] {
        let counted = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM pg_replication_slots");
        slots += counted.fetch_one(&mut cluster.connect(region).await).await.unwrap();
    }
    assert_eq!(slots, 1, "slots of all regions together");
}

/// Kills what coordinates a switchover, or the primary, or the command, at ever later steps. Nobody asks
/// again: whoever is alive ends it, one way or the other.
#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_that_is_killed_ends_by_itself() {
    let cluster = Cluster::up(2);
    let ledger = load(&cluster).await;
    let mut ends = Vec::new();
    for (round, victim) in
        [Some("eu-west"), Some("us-east"), Some("eu-west"), Some("us-east"), None].into_iter().enumerate()
    {
        let from = cluster.status()["primary"].as_str().unwrap().to_owned();
        let to = if from == "us-east" { "eu-west" } else { "us-east" };
        cluster.until_level_enough(to).await;
        let ordered = Ordered::before(cluster.operator()).await;
        let mut promoting = tokio::process::Command::new(replicator_tests::program())
            .args(["promote", "--region", to, "--config"])
            .arg(cluster.file())
            .arg("--data")
            .arg(cluster.data())
            .spawn()
            .unwrap();
        ordered.until_done(round).await;
        promoting.kill().await.unwrap();
        if let Some(victim) = victim {
            cluster.kill(victim, true).await;
            cluster.start_region(victim);
        }
        ledger.until_written(20).await;
        until("the promotion is over", || async {
            let status = cluster.status();
            let notes = status["notes"].to_string();
            !notes.contains("in progress")
                && status["regions"].as_array().unwrap().iter().all(|r| r["state"] == "streaming")
        })
        .await;
        ends.push(format!("{victim:?} after {round} steps: {} leads", cluster.status()["primary"]));
    }
    println!("{}\n{}", ends.join("\n"), cluster.printed(&["history"]));
    let acknowledged = ledger.acknowledged().await;
    assert!(acknowledged.count() > 100, "there was load: {}", acknowledged.count());
    cluster.assert_identical().await;
    acknowledged.assert_in_all(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_regions_and_a_witness_have_a_majority_when_one_is_lost() {
    let cluster = Cluster::new(1);
    cluster.configure("lease = \"2s\"\n");
    cluster.add_witness("w");
    cluster.start();
    cluster.expect(&["rolled back", "not handed over"]);
    let ledger = load(&cluster).await;
    ledger.until_written(300).await;
    // The secondary alone is lost: the witness keeps the lease.
    cluster.kill("eu-west", true).await;
    let written = ledger.written();
    let held = || async { !cluster.printed(&["status"]).contains("commits are held") };
    // Twice as long as its lease.
    stays("commits return", Duration::from_secs(4), held).await;
    let still = ledger.written();
    assert!(still > written + 100, "commits went on: {written}, {still}");
    cluster.start();
    cluster.until_level_enough("eu-west").await;
    // The target of a switchover dies in the middle, and stays away: the primary leads on, whatever step it
    // was at.
    let promoting = async {
        tokio::process::Command::new(replicator_tests::program())
            .args(["promote", "--region", "eu-west", "--config"])
            .arg(cluster.file())
            .arg("--data")
            .arg(cluster.data())
            .output()
            .await
            .unwrap()
    };
    let killing = async {
        until("the writer stops", || async {
            let log = std::fs::read_to_string(cluster.region("us-east").join("daemon.log")).unwrap();
            log.contains("promotion: checkpoint")
        })
        .await;
        cluster.kill("eu-west", true).await;
    };
    let (output, ()) = tokio::join!(promoting, killing);
    assert!(!output.status.success());
    let written = ledger.written();
    // Before the target is back, or it would go on with it.
    until("it is rolled back, and commits go on in us-east", || async {
        if ledger.written() <= written + 100 {
            return false;
        }
        let status = cluster.status();
        status["primary"] == "us-east" && !status["notes"].to_string().contains("in progress")
    })
    .await;
    cluster.start();
    cluster.until_level_enough("eu-west").await;
    // The primary is lost: the witness and the secondary are a majority.
    let acknowledged = ledger.acknowledged().await;
    cluster.until_level().await;
    cluster.kill("us-east", true).await;
    fail_over(&cluster, "eu-west");
    cluster.connect("eu-west").await.execute("INSERT INTO ledger VALUES (-1)").await.unwrap();
    cluster.start();
    cluster.assert_identical().await;
    acknowledged.assert_in_all(&cluster).await;
}

#[tokio::test]
async fn what_cannot_succeed_is_refused_before_anything_is_touched() {
    let cluster = Cluster::up(1);
    let refused = cluster.run(&["promote", "--region", "us-east"]);
    assert!(text(&refused.stderr).contains("is the primary already"), "{}", text(&refused.stderr));
    let dry = cluster.printed(&["promote", "--region", "eu-west", "--dry-run"]);
    assert!(dry.contains("can take over from us-east now"), "{dry}");
    cluster.kill("us-east", false).await;
    let refused = cluster.run(&["promote", "--region", "eu-west"]);
    assert!(
        !refused.status.success() && text(&refused.stderr).contains("Nothing was changed"),
        "{}",
        text(&refused.stderr)
    );
    cluster.start();
    cluster.connect("us-east").await.execute("CREATE TABLE t (id int)").await.unwrap();
    assert_eq!(cluster.status()["primary"], "us-east");
}

/// Promotes a region without the old primary; returns what was said.
fn fail_over(cluster: &Cluster, to: &str) -> serde_json::Value {
    cluster.expect(&[DEPOSED]);
    let output = cluster.run(&["promote", "--region", to, "--mode", "failover", "--json"]);
    assert!(output.status.success(), "{}\n{}", text(&output.stderr), cluster.logs());
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The primary is lost while a transaction of it locks a catalog that each login reads: the standbys have
/// that lock by redo, and let nobody in until one of them is promoted. Nor does a role that the superuser is
/// made to take hinder anybody.
#[tokio::test(flavor = "multi_thread")]
async fn a_failover_goes_to_a_standby_that_lets_nobody_in_for_a_lock_of_the_lost_primary_s() {
    let cluster = Cluster::up(2);
    let mut writer = cluster.connect("us-east").await;
    writer.execute("CREATE ROLE weak; ALTER ROLE postgres SET role = 'weak'").await.unwrap();
    cluster.until_level().await;
    for mode in ["switchover", "failover"] {
        let dry = cluster.run(&["promote", "--region", "eu-west", "--mode", mode, "--dry-run"]);
        let said = text(&dry.stdout) + &text(&dry.stderr);
        assert!(!said.contains("does not answer"), "{said}");
    }
    writer.execute("ALTER ROLE postgres RESET role").await.unwrap();
    // What follows the lock has it written, and sent.
    let locks = "BEGIN; LOCK TABLE pg_authid IN ACCESS EXCLUSIVE MODE; CREATE TABLE undone (n int); SELECT pg_switch_wal()";
    writer.execute(locks).await.unwrap();
    let url = cluster.printed(&["url", "--region", "eu-west"]);
    until("nobody comes in there", || async {
        tokio::time::timeout(Duration::from_secs(2), PgConnection::connect(&url)).await.is_err()
    })
    .await;
    // The daemon's own questions do not pile up: the standby has few connections for them.
    until("it is silent for long", || async { row(&cluster, "eu-west").1.contains("does not answer for 1") })
        .await;
    let postmaster = cluster.postmaster("eu-west").to_string();
    let listed = Command::new("ps").args(["-o", "args=", "--ppid", &postmaster]).output().unwrap();
    let listed = text(&listed.stdout);
    let ours = listed.lines().filter(|line| line.contains("[local]")).count();
    assert!((1..=2 * LOGINS_MAX).contains(&ours), "{listed}");
    cluster.kill("us-east", true).await;
    let dry = cluster.run(&["promote", "--region", "eu-west", "--mode", "failover", "--dry-run", "--json"]);
    assert!(text(&dry.stdout).contains("postgresql_silent"), "{}{}", text(&dry.stdout), text(&dry.stderr));
    let _ = fail_over(&cluster, "eu-west");
    let mut writer = PgConnection::connect(&url).await.unwrap();
    writer.execute("CREATE TABLE t AS SELECT 1 AS n").await.unwrap();
    cluster.start();
    cluster.until_streams("us-east").await;
    cluster.until_streams("ap-northeast").await;
    cluster.until_level().await;
    cluster.assert_identical().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_region_that_is_killed_is_replaced_and_comes_back_as_a_secondary() {
    let cluster = Cluster::new(2);
    cluster.configure("commit = { regions = 1 }\n");
    cluster.start();
    let ledger = load(&cluster).await;
    ledger.until_written(300).await;
    cluster.kill("us-east", true).await;
    let killed = now();
    let promotion = fail_over(&cluster, "eu-west");
    let took = killed.elapsed();
    assert_eq!(
        (&promotion["to"], &promotion["mode"]),
        (&"eu-west".into(), &"failover".into()),
        "{promotion}"
    );
    assert!(
        took < Duration::from_secs(7),
        "the lease of 5 s, a tenth for clocks, and the rest: {took:?}\n{promotion}"
    );
    ledger.until_written(100).await;
    cluster.start();
    cluster.until_streams("us-east").await;
    let acknowledged = ledger.acknowledged().await;
    let log = std::fs::read_to_string(cluster.region("us-east").join("daemon.log")).unwrap();
    assert!(log.contains("does not lead any more") && log.contains("the data are rewound"), "{log}");
    cluster.assert_identical().await;
    // At this level nothing that was acknowledged is lost with the region.
    acknowledged.assert_in_all(&cluster).await;
    println!("failover took {} ms: {promotion}", took.as_millis());
    assert!(cluster.printed(&["history"]).contains("failover    us-east to eu-west"));
}

#[tokio::test(flavor = "multi_thread")]
async fn with_two_regions_a_failover_needs_the_operators_word() {
    let cluster = Cluster::up(1);
    let mut primary = cluster.connect("us-east").await;
    primary.execute("CREATE TABLE t (id int); INSERT INTO t VALUES (1)").await.unwrap();
    cluster.until_level().await;
    cluster.kill("us-east", true).await;
    cluster.expect(&[DEPOSED]);
    let failover = ["promote", "--region", "eu-west", "--mode", "failover", "--json"];
    let refused = cluster.run(&failover);
    assert!(text(&refused.stderr).contains("--old-primary-is-down"), "{}", text(&refused.stderr));
    let begin = now();
    let done = cluster.run(&[&failover[..], &["--old-primary-is-down"]].concat());
    assert!(done.status.success(), "{}", text(&done.stderr));
    println!("failover on the operator's word took {} ms", begin.elapsed().as_millis());
    cluster.connect("eu-west").await.execute("INSERT INTO t VALUES (2)").await.unwrap();
    cluster.start();
    cluster.until_streams("us-east").await;
    cluster.assert_identical().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_is_cut_off_acknowledges_nothing_after_its_lease() {
    let cluster = Cluster::new(2);
    cluster.configure("lease = \"2s\"\n");
    cluster.start();
    let url = cluster.printed(&["url", "--region", "us-east"]);
    let ledger = Ledger::start(&url, 4).await;
    ledger.until_written(300).await;
    // The others are stopped, as a cut network stops them for the primary, and hear nothing.
    for region in ["eu-west", "ap-northeast"] {
        nix::sys::signal::kill(cluster.daemon(region), nix::sys::signal::Signal::SIGSTOP).unwrap();
    }
    let cut = now();
    let status = ["status", "--region", "us-east"];
    let held = || async { cluster.printed(&status).contains("commits are held") };
    until("its lease is over", held).await;
    stays("commits are held", Duration::from_secs(2), held).await;
    let end = now();
    for region in ["eu-west", "ap-northeast"] {
        nix::sys::signal::kill(cluster.daemon(region), nix::sys::signal::Signal::SIGCONT).unwrap();
    }
    // Connected again, it goes on: nobody has taken over meanwhile.
    ledger.until_written(100).await;
    let acknowledged = ledger.acknowledged().await;
    assert!(acknowledged.between(cut, cut + Duration::from_secs(1)) > 0, "within the lease commits return");
    let late = acknowledged.between(cut + Duration::from_millis(2300), end);
    assert_eq!(late, 0, "acknowledged after the lease");
    cluster.assert_identical().await;
    acknowledged.assert_in_all(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_the_old_primary_had_is_kept_aside() {
    let cluster = Cluster::up(2);
    let mut primary = cluster.connect("us-east").await;
    primary.execute("CREATE TABLE t (id int); INSERT INTO t VALUES (1)").await.unwrap();
    cluster.until_level().await;
    // Redo that no other region gets: they are down when it is written, and the primary is when they are
    // back.
    for region in ["eu-west", "ap-northeast"] {
        cluster.kill(region, true).await;
    }
    primary.execute("INSERT INTO t VALUES (2)").await.unwrap();
    cluster.kill("us-east", true).await;
    for region in ["eu-west", "ap-northeast"] {
        cluster.start_region(region);
    }
    cluster.expect(&[DEPOSED]);
    until("a secondary leads", || async {
        cluster.run(&["promote", "--region", "eu-west", "--mode", "failover"]).status.success()
    })
    .await;
    cluster.start();
    cluster.until_streams("us-east").await;
    cluster.assert_identical().await;
    let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM t")
        .fetch_one(&mut cluster.connect("us-east").await)
        .await
        .unwrap();
    assert_eq!(rows, 1, "the commit that only the old primary had is not in the cluster");
    let listed = cluster.printed(&["lost", "list"]);
    let directory = listed.split_whitespace().last().unwrap().to_owned();
    assert!(listed.starts_with("us-east"), "{listed}");
    let shown = cluster.run(&["lost", "show", &directory]);
    assert!(text(&shown.stdout).contains("COMMIT"), "{}{}", text(&shown.stdout), text(&shown.stderr));
    assert_eq!(cluster.printed(&["lost", "discard", "--yes", &directory]), "");
    assert!(cluster.printed(&["lost", "list"]).contains("no redo was cut off"));
}

/// Some 60 MB of rows.
async fn fill(primary: &mut PgConnection, from: i32) {
    let query = "INSERT INTO t SELECT g, repeat('x', 500) FROM generate_series($1, $1 + 99999) g";
    sqlx::query(query).bind(from).execute(primary).await.unwrap();
}

/// A primary that goes on for long after the others parted from it: PostgreSQL has removed by then what
/// pg_rewind reads, and the volume has it.
#[tokio::test(flavor = "multi_thread")]
async fn an_old_primary_far_beyond_the_fork_is_rewound() {
    let cluster = Cluster::new(2);
    cluster.configure("postgresql.settings = { max_wal_size = \"32MB\", min_wal_size = \"32MB\" }\n");
    cluster.start();
    let mut primary = cluster.connect("us-east").await;
    primary.execute("CREATE TABLE t (id int, pad text)").await.unwrap();
    fill(&mut primary, 1).await;
    cluster.until_level().await;
    for region in ["eu-west", "ap-northeast"] {
        cluster.kill(region, true).await;
    }
    // Its lease runs out, and what waits for nobody is written all the same.
    primary.execute("SET synchronous_commit = local").await.unwrap();
    for round in 1..4 {
        fill(&mut primary, 100_000 * round).await;
        primary.execute("CHECKPOINT").await.unwrap();
    }
    primary.execute("UPDATE t SET pad = 'lost' WHERE id % 1000 = 0").await.unwrap();
    cluster.kill("us-east", true).await;
    for region in ["eu-west", "ap-northeast"] {
        cluster.start_region(region);
    }
    cluster.expect(&[DEPOSED]);
    until("a secondary leads", || async {
        cluster.run(&["promote", "--region", "eu-west", "--mode", "failover"]).status.success()
    })
    .await;
    cluster.connect("eu-west").await.execute("UPDATE t SET pad = 'kept' WHERE id % 999 = 0").await.unwrap();
    cluster.start();
    cluster.until_streams("us-east").await;
    cluster.assert_identical().await;
    let daemon_log =
        |region: &str| std::fs::read_to_string(cluster.region(region).join("daemon.log")).unwrap();
    assert!(daemon_log("us-east").contains("the data are rewound"), "{}", cluster.logs());
    // And it can lead again.
    cluster.until_level_enough("us-east").await;
    let _ = cluster.printed(&["promote", "--region", "us-east"]);
    cluster.connect("us-east").await.execute("INSERT INTO t VALUES (0, 'again')").await.unwrap();
    cluster.assert_identical().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_rewound_is_seeded() {
    let cluster = Cluster::up(2);
    cluster.expect(&[DEPOSED, "the data cannot be rewound"]);
    let mut primary = cluster.connect("us-east").await;
    primary.execute("CREATE TABLE t (id int); INSERT INTO t VALUES (1)").await.unwrap();
    cluster.until_level().await;
    cluster.kill("us-east", true).await;
    fail_over(&cluster, "eu-west");
    // PostgreSQL's own redo is lost: it cannot even recover from its crash.
    let wal = cluster.region("us-east").join("pgdata/pg_wal");
    for entry in std::fs::read_dir(wal).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            std::fs::remove_file(path).unwrap();
        }
    }
    cluster.start();
    cluster.until_streams("us-east").await;
    cluster.assert_identical().await;
    let log = std::fs::read_to_string(cluster.region("us-east").join("daemon.log")).unwrap();
    assert!(log.contains("cannot be rewound") && log.contains("the seed is in place"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lagging_region_first_gathers_what_a_survivor_has() {
    let cluster = Cluster::up(2);
    let mut primary = cluster.connect("us-east").await;
    primary.execute("CREATE TABLE t (id int); INSERT INTO t VALUES (1)").await.unwrap();
    cluster.until_level().await;
    cluster.kill("eu-west", true).await;
    primary.execute("INSERT INTO t SELECT generate_series(2, 20000)").await.unwrap();
    until("the other region has it", || async {
        let status = cluster.status();
        status["regions"][2]["durable_lsn"] == status["regions"][0]["durable_lsn"]
    })
    .await;
    cluster.kill("us-east", true).await;
    cluster.start_region("eu-west");
    cluster.expect(&[DEPOSED]);
    let mut promoted = String::new();
    until("the lagging region leads", || {
        let output = cluster.run(&["promote", "--region", "eu-west", "--mode", "failover"]);
        promoted = text(&output.stdout);
        std::future::ready(output.status.success())
    })
    .await;
    assert!(promoted.contains("gather what another survivor has"), "{promoted}");
    let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM t")
        .fetch_one(&mut cluster.connect("eu-west").await)
        .await
        .unwrap();
    assert_eq!(rows, 20_000, "nothing that a survivor had is lost");
    cluster.start();
    cluster.until_streams("us-east").await;
    cluster.assert_identical().await;
}

/// Under a bulk load the writer flushes whole pages, and so half records: what survives must be whole ones,
/// or the standby could not be said to have applied everything, and survivors would not agree on where the
/// new timeline begins.
#[tokio::test(flavor = "multi_thread")]
async fn a_failover_in_the_middle_of_a_bulk_load_does_not_wait_for_half_a_record() {
    let cluster = Cluster::new(2);
    cluster.configure("lease = \"1s\"\n");
    cluster.start();
    let primary = &mut cluster.connect("us-east").await;
    primary.execute("create table bulk (id int, filling text)").await.unwrap();
    for round in 0..3_usize {
        let (from, to) = [("us-east", "eu-west"), ("eu-west", "us-east")][round % 2];
        cluster.until_level_enough(to).await;
        let mut writer = cluster.connect(from).await;
        let loading = Task::spawn("load in bulk", async move {
            let bulk = "insert into bulk select n, repeat(md5(n::text), 60) from generate_series(1, 3000) n";
            while writer.execute(bulk).await.is_ok() {}
        });
        let read = || cluster.status()["regions"][0]["redo_bytes"].as_u64().unwrap_or(0);
        let begin = read();
        until("the load flows", || async { read() > begin + (30 << 20) }).await;
        cluster.kill(from, true).await;
        loading.await.unwrap();
        fail_over(&cluster, to);
        cluster.start_region(from);
        cluster.until_streams(from).await;
    }
    cluster.until_level().await;
    cluster.assert_identical().await;
}

/// A record that is larger than a batch reaches the others in pieces, over a link on which that takes
/// seconds.
#[tokio::test(flavor = "multi_thread")]
async fn a_failover_does_not_wait_for_the_rest_of_a_record_larger_than_a_batch() {
    let cluster = Cluster::new(2);
    cluster.configure("lease = \"1s\"\n");
    for region in ["eu-west", "ap-northeast"] {
        cluster.configure_region(region, "bandwidth = \"16Mbit/s\"");
    }
    cluster.start();
    let mut primary = cluster.connect("us-east").await;
    primary.execute("CREATE TABLE t (id int); INSERT INTO t VALUES (1)").await.unwrap();
    cluster.until_level().await;
    let received = |region: usize| cluster.status()["regions"][region]["redo_bytes"].as_u64().unwrap_or(0);
    let begin = [1, 2].map(received);
    let large = "SELECT pg_logical_emit_message(false, '', pg_read_binary_file('/dev/urandom', 0, 30000000))";
    primary.execute(large).await.unwrap();
    until("both have pieces of it", || async {
        [1, 2].iter().all(|i| received(*i) > begin[i - 1] + (3 << 20))
    })
    .await;
    cluster.kill("us-east", true).await;
    fail_over(&cluster, "eu-west");
    cluster.connect("eu-west").await.execute("INSERT INTO t VALUES (2)").await.unwrap();
    cluster.start();
    cluster.until_streams("us-east").await;
    cluster.assert_identical().await;
}

/// Removes everything of `region` but its certificate, as when its disk is lost.
fn lose_directory(cluster: &Cluster, region: &str) {
    for entry in std::fs::read_dir(cluster.region(region)).unwrap() {
        let path = entry.unwrap().path();
        match (path.file_name().unwrap() == "identity", path.is_dir()) {
            (true, _) => {}
            (false, true) => std::fs::remove_dir_all(path).unwrap(),
            (false, false) => std::fs::remove_file(path).unwrap(),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_lost_all_it_had_makes_no_empty_database() {
    let cluster = Cluster::up(2);
    cluster.expect(&["no empty one is made"]);
    let mut primary = cluster.connect("us-east").await;
    primary.execute("CREATE TABLE t (id int); INSERT INTO t VALUES (1)").await.unwrap();
    drop(primary);
    cluster.until_level().await;
    cluster.kill("us-east", true).await;
    lose_directory(&cluster, "us-east");
    cluster.start_region("us-east");
    until("it says that it waits, and for what", || async {
        let status = cluster.run(&["status", "--region", "us-east"]);
        text(&status.stdout).contains("no empty one is made")
    })
    .await;
    let log = std::fs::read_to_string(cluster.region("us-east").join("daemon.log")).unwrap();
    assert!(log.contains("has no memory of its votes") || log.contains("and votes again"), "{log}");
    assert!(!cluster.region("us-east").join("pgdata").exists(), "it made a database");
    let promotion = fail_over(&cluster, "eu-west");
    assert_eq!(promotion["to"], "eu-west", "{promotion}");
    cluster.connect("eu-west").await.execute("INSERT INTO t VALUES (2)").await.unwrap();
    cluster.until_streams("us-east").await;
    cluster.until_level().await;
    cluster.assert_identical().await;
    let count = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM t");
    assert_eq!(count.fetch_one(&mut cluster.connect("us-east").await).await.unwrap(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secondary_is_seeded_anew_on_an_operators_word_and_keeps_its_vote() {
    let cluster = Cluster::up(1);
    let mut primary = cluster.connect("us-east").await;
    primary.execute("CREATE TABLE t (id int); INSERT INTO t VALUES (1)").await.unwrap();
    cluster.until_level().await;
    let refused = cluster.run(&["reseed", "--region", "us-east", "--yes"]);
    assert!(text(&refused.stderr).contains("us-east is the primary"), "{}", text(&refused.stderr));
    let vote = || {
        let content = std::fs::read(cluster.region("eu-west").join("region.json")).unwrap();
        let state: serde_json::Value = serde_json::from_slice(&content).unwrap();
        state["acceptor"]["promised"]["round"].as_u64().unwrap()
    };
    let (promised, daemon) = (vote(), cluster.daemon("eu-west"));
    let place = std::path::PathBuf::from(cluster.printed(&["reseed", "--region", "eu-west", "--yes"]));
    primary.execute("INSERT INTO t VALUES (2)").await.unwrap();
    until("the data are set aside", || async { place.join("pgdata/PG_VERSION").exists() }).await;
    cluster.until_streams("eu-west").await;
    cluster.until_level().await;
    assert!(place.join("volume/az-a/a1").exists(), "{}", place.display());
    assert!(vote() >= promised && cluster.daemon("eu-west") == daemon, "one process, one vote");
    let log = std::fs::read_to_string(cluster.region("eu-west").join("daemon.log")).unwrap();
    assert!(log.contains("to be seeded anew") && log.contains("the seed is in place"), "{log}");
    let count = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM t");
    assert_eq!(count.fetch_one(&mut cluster.connect("eu-west").await).await.unwrap(), 2);
    cluster.assert_identical().await;
}
