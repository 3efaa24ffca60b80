//! What goes wrong in the field: paused and held replay, settings that differ, archives that hang, processes
//! that are frozen.

use std::os::unix::fs::MetadataExt;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use replicator_tests::{Cluster, text, until};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use crate::row;

/// What a dry run found: kind, region and outcome of each, and whether it would begin.
fn found(cluster: &Cluster, to: &str, mode: &str) -> (Vec<String>, bool) {
    let output = cluster.run(&["promote", "--region", to, "--mode", mode, "--dry-run", "--json"]);
    let said: serde_json::Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {} {}", text(&output.stdout), text(&output.stderr)));
    let of = |found: &serde_json::Value| {
        let word = |key: &str| found[key].as_str().unwrap().to_owned();
        format!("{} {} {}", word("kind"), word("region"), word("outcome"))
    };
    (said["findings"].as_array().unwrap().iter().map(of).collect(), output.status.success())
}

async fn count(connection: &mut PgConnection) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM t").fetch_one(connection).await.unwrap()
}

/// A child of a region's postmaster whose title has `word`.
fn child(cluster: &Cluster, region: &str, word: &str) -> Pid {
    let output = std::process::Command::new("ps")
        .args(["-o", "pid=,args=", "--ppid", &cluster.postmaster(region).to_string()])
        .output()
        .unwrap();
    let listed = text(&output.stdout);
    let line = listed.lines().find(|line| line.contains(word)).unwrap();
    Pid::from_raw(line.split_whitespace().next().unwrap().parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn replay_that_is_paused_or_held_by_a_query_is_told_and_mended() {
    let cluster = Cluster::new(2);
    let text = std::fs::read_to_string(cluster.file()).unwrap();
    let settings =
        "[postgresql.settings]\nmax_standby_streaming_delay = \"-1\"\nstatement_timeout = \"100ms\"\n";
    std::fs::write(cluster.file(), text + settings).unwrap();
    cluster.start();
    let mut writer = cluster.connect("us-east").await;
    writer.execute("CREATE TABLE t (n int)").await.unwrap();
    writer.execute("INSERT INTO t SELECT generate_series(1, 1000)").await.unwrap();
    cluster.until_level().await;
    // Redo that takes away what a transaction on the standby still sees.
    let mut reader = cluster.connect("eu-west").await;
    let mut transaction = reader.begin().await.unwrap();
    transaction.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ").await.unwrap();
    assert_eq!(count(&mut transaction).await, 1000);
    writer.execute("DELETE FROM t").await.unwrap();
    writer.execute("VACUUM t").await.unwrap();
    until("it is seen that replay is held", || async {
        row(&cluster, "eu-west").1.contains("replay waits for a session: process")
    })
    .await;
    let (findings, begins) = found(&cluster, "eu-west", "switchover");
    assert!(begins && findings.contains(&"replay_held eu-west mended".to_owned()), "{findings:?}");
    let _ = cluster.printed(&["promote", "--region", "eu-west"]);
    assert!(transaction.execute("SELECT 1").await.is_err(), "the session was ended");
    // A pause, and a failover: the region that is lost cannot be asked.
    cluster.until_level().await;
    cluster.connect("ap-northeast").await.execute("SELECT pg_wal_replay_pause()").await.unwrap();
    cluster.connect("eu-west").await.execute("INSERT INTO t VALUES (7)").await.unwrap();
    let (findings, begins) = found(&cluster, "ap-northeast", "failover");
    assert!(begins && findings.contains(&"replay_paused ap-northeast mended".to_owned()), "{findings:?}");
    cluster.kill("eu-west", true).await;
    let _ = cluster.printed(&["promote", "--region", "ap-northeast", "--mode", "failover"]);
    assert_eq!(count(&mut cluster.connect("ap-northeast").await).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_gets_the_settings_that_the_writers_redo_asks_for() {
    let cluster = Cluster::up(2);
    cluster.connect("us-east").await.execute("CREATE TABLE t (n int)").await.unwrap();
    cluster.connect("us-east").await.execute("ALTER SYSTEM SET max_connections = 150").await.unwrap();
    kill(cluster.postmaster("us-east"), Signal::SIGINT).unwrap();
    // Each standby pauses at the record that says so, and is started again with it.
    for region in ["us-east", "eu-west", "ap-northeast"] {
        until("the setting has arrived", || async {
            let mut connection = cluster.connect(region).await;
            let shown =
                sqlx::query_scalar::<_, String>("SHOW max_connections").fetch_one(&mut connection).await;
            shown.is_ok_and(|value| value == "150")
        })
        .await;
    }
    cluster.connect("us-east").await.execute("INSERT INTO t SELECT generate_series(1, 10)").await.unwrap();
    cluster.kill("us-east", true).await;
    let _ = cluster.printed(&["promote", "--region", "eu-west", "--mode", "failover"]);
    assert_eq!(count(&mut cluster.connect("eu-west").await).await, 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archiver_that_hangs_neither_stops_a_switchover_nor_is_waited_for() {
    let cluster = Cluster::new(1);
    cluster.add_witness("w");
    let hang = cluster.file().with_file_name("hang");
    let command = format!("test ! -e {} || sleep 300", hang.display());
    let settings = format!("[postgresql.settings]\narchive_mode = \"on\"\narchive_command = \"{command}\"\n");
    let text = std::fs::read_to_string(cluster.file()).unwrap();
    std::fs::write(cluster.file(), text + &settings).unwrap();
    cluster.start();
    cluster.connect("us-east").await.execute("CREATE TABLE t (n int)").await.unwrap();
    cluster.until_level().await;
    std::fs::write(&hang, "").unwrap();
    let switch = "SELECT pg_switch_wal()";
    cluster.connect("us-east").await.execute("INSERT INTO t VALUES (1)").await.unwrap();
    cluster.connect("us-east").await.execute(switch).await.unwrap();
    // The queue is young: its last record is what a hand-over waits for, and not the archiver.
    cluster.until_level_enough("eu-west").await;
    let _ = cluster.printed(&["promote", "--region", "eu-west"]);
    // One that does not move is told before anything is touched.
    let mut writer = cluster.connect("eu-west").await;
    writer.execute("INSERT INTO t VALUES (2)").await.unwrap();
    writer.execute(switch).await.unwrap();
    cluster.until_streams("us-east").await;
    until("the queue is seen", || async {
        found(&cluster, "us-east", "switchover").0.contains(&"archive_queue eu-west refused".to_owned())
    })
    .await;
    let before = cluster.postmaster("eu-west");
    let refused = cluster.run(&["promote", "--region", "us-east"]);
    assert!(
        !refused.status.success() && replicator_tests::text(&refused.stderr).contains("Nothing was changed")
    );
    assert_eq!((cluster.postmaster("eu-west"), count(&mut writer).await), (before, 2));
    std::fs::remove_file(&hang).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_frozen_is_not_taken_for_alive() {
    let cluster = Cluster::up(2);
    cluster.expect(&["this region does not lead any more"]);
    cluster.connect("us-east").await.execute("CREATE TABLE t (n int)").await.unwrap();
    cluster.until_level().await;
    // A standby's replay alone.
    let startup = child(&cluster, "ap-northeast", "startup");
    kill(startup, Signal::SIGSTOP).unwrap();
    cluster.connect("us-east").await.execute("INSERT INTO t VALUES (1)").await.unwrap();
    until("the standby's replay is told", || async {
        let told = row(&cluster, "ap-northeast").1;
        told.contains("has applied nothing for")
            && told.contains("stopped by a signal: postgres: ap-northeast: startup")
    })
    .await;
    let (findings, begins) = found(&cluster, "ap-northeast", "failover");
    assert!(!begins && findings.contains(&"process_frozen ap-northeast refused".to_owned()), "{findings:?}");
    kill(startup, Signal::SIGCONT).unwrap();
    cluster.until_level().await;
    // The primary's postmaster: clients get no answer, while everything else goes on.
    let postmaster = cluster.postmaster("us-east");
    kill(postmaster, Signal::SIGSTOP).unwrap();
    until("the primary's silence is told", || async {
        let (state, told) = row(&cluster, "us-east");
        state == "silent" && told.contains("PostgreSQL does not answer for")
    })
    .await;
    let (findings, begins) = found(&cluster, "eu-west", "switchover");
    assert!(!begins && findings.contains(&"postgresql_silent us-east refused".to_owned()), "{findings:?}");
    // It obeys no signal but one.
    let _ = cluster.printed(&["promote", "--region", "eu-west", "--mode", "failover"]);
    assert_eq!(count(&mut cluster.connect("eu-west").await).await, 1);
    cluster.until_level().await;
    assert_ne!(cluster.postmaster("us-east"), postmaster);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_users_set_is_honoured_and_what_undoes_promises_is_told() {
    let cluster = Cluster::new(1);
    cluster.add_witness("w");
    cluster.configure_region("eu-west", "settings = { work_mem = \"3MB\" }");
    let text = std::fs::read_to_string(cluster.file()).unwrap();
    let settings = "[postgresql]\nhba = [\"host all stranger all reject\"]\n\
         settings = { wal_level = \"logical\", max_wal_senders = 30, max_connections = 12, work_mem = \"2MB\" }\n";
    std::fs::write(cluster.file(), text + settings).unwrap();
    let _ = cluster.printed(&["check"]);
    cluster.start();
    let mut writer = cluster.connect("us-east").await;
    for (region, work_mem) in [("us-east", "2MB"), ("eu-west", "3MB")] {
        let asked = "SELECT current_setting('wal_level') || ' ' || current_setting('max_wal_senders') || ' ' \
             || current_setting('work_mem')";
        let shown: String =
            sqlx::query_scalar(asked).fetch_one(&mut cluster.connect(region).await).await.unwrap();
        assert_eq!(shown, format!("logical 30 {work_mem}"));
        let url = cluster.printed(&["url", "--region", region]).replace("postgres:", "stranger:");
        let refused = PgConnection::connect(&url).await.unwrap_err().to_string();
        assert!(refused.contains("pg_hba.conf rejects connection"), "{refused}");
    }
    writer.execute("CREATE TABLE t (n int)").await.unwrap();
    writer.execute("SELECT pg_create_physical_replication_slot('backup', true)").await.unwrap();
    writer.execute("CREATE ROLE hasty").await.unwrap();
    writer.execute("ALTER ROLE hasty SET synchronous_commit = off").await.unwrap();
    until("both are told", || async {
        let told = row(&cluster, "us-east").1;
        told.contains("slot backup (physical, nobody reads from it) holds back")
            && told.contains("commits do not wait for role hasty")
    })
    .await;
    // Every connection that clients may have is taken: Replicator's own sessions do not need one.
    cluster.until_level().await;
    let url = cluster.printed(&["url", "--region", "us-east"]);
    let mut taken = Vec::new();
    while let Ok(connection) = PgConnection::connect(&url).await {
        taken.push(connection);
    }
    let (findings, begins) = found(&cluster, "eu-west", "switchover");
    assert!(begins && findings.contains(&"connections us-east told".to_owned()), "{findings:?}");
    let _ = cluster.printed(&["promote", "--region", "eu-west"]);
    for (whose, standby) in [("--writer", "f"), ("--reader", "t")] {
        let url = cluster.printed(&["url", whose]);
        assert!(url.contains("connect_timeout=3&tcp_user_timeout="), "{url}");
        // As long as the standby does not let anybody in yet, readers come to the writer.
        until("a client is brought where it wants to be", || async {
            let mut psql = std::process::Command::new(replicator_tests::postgresql("psql"));
            let asked = psql.args(["-XAtqc", "SELECT pg_is_in_recovery()", "-d", &url]).output().unwrap();
            replicator_tests::text(&asked.stdout).trim() == standby
        })
        .await;
    }
    let wrong =
        std::fs::read_to_string(cluster.file()).unwrap().replace("work_mem = \"2MB\"", "wrok_mem = \"2MB\"");
    let file = cluster.file().with_file_name("wrong.toml");
    std::fs::write(&file, wrong).unwrap();
    let mut check = std::process::Command::new(replicator_tests::program());
    let check = check.args(["check", "--config"]).arg(&file).output().unwrap();
    let said = replicator_tests::text(&check.stderr);
    assert!(
        !check.status.success() && said.contains("unrecognized configuration parameter \"wrok_mem\""),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_targets_machine_lacks_is_found_before_the_failover() {
    let cluster = Cluster::up(1);
    let mut writer = cluster.connect("us-east").await;
    let libraries: String = sqlx::query_scalar("SELECT setting FROM pg_config WHERE name = 'PKGLIBDIR'")
        .fetch_one(&mut writer)
        .await
        .unwrap();
    // A library that is on the writer's machine when the function is made, and on the target's no more.
    let library = cluster.file().with_file_name("handler.so");
    std::fs::copy(format!("{libraries}/plpgsql.so"), &library).unwrap();
    std::fs::set_permissions(&library, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let made = format!(
        "CREATE DATABASE other; CREATE FUNCTION f() RETURNS language_handler LANGUAGE c AS '{}', 'plpgsql_call_handler'",
        library.display()
    );
    for statement in made.split("; ") {
        writer.execute(AssertSqlSafe(statement.to_owned())).await.unwrap();
    }
    writer.execute("CREATE UNLOGGED TABLE u (n int)").await.unwrap();
    let icu = "SELECT EXISTS (SELECT FROM pg_collation WHERE collname = 'und-x-icu')";
    let has_icu: bool = sqlx::query_scalar(icu).fetch_one(&mut writer).await.unwrap();
    let mut told = vec!["unlogged eu-west told"];
    if has_icu {
        writer.execute("CREATE TABLE sorted (word text COLLATE \"und-x-icu\" PRIMARY KEY)").await.unwrap();
        // As where the machines have other versions of ICU.
        writer
            .execute("UPDATE pg_collation SET collversion = '1' WHERE collname = 'und-x-icu'")
            .await
            .unwrap();
        told.push("collation eu-west told");
    }
    cluster.until_level().await;
    let (findings, can) = found(&cluster, "eu-west", "switchover");
    assert!(can && told.iter().all(|one| findings.iter().any(|found| found == one)), "{findings:?}");
    std::fs::remove_file(&library).unwrap();
    let (findings, can) = found(&cluster, "eu-west", "switchover");
    assert!(!can && findings.contains(&"library eu-west refused".to_owned()), "{findings:?}");
    let (findings, can) = found(&cluster, "eu-west", "failover");
    assert!(can && findings.contains(&"library eu-west told".to_owned()), "{findings:?}");
    writer.execute("DROP FUNCTION f()").await.unwrap();
    cluster.until_level().await;
    assert!(found(&cluster, "eu-west", "switchover").1);
}

/// What would keep PostgreSQL down is found while it runs: a switchover stops one of the two, and clients
/// would wait for a writer that does not come up, or nobody would follow the new one.
#[tokio::test(flavor = "multi_thread")]
async fn what_would_keep_postgresql_down_is_found_while_it_runs() {
    let cluster = Cluster::up(2);
    cluster.expect(&["28000", "Is a directory"]);
    let find = |kind: &str, wanted: bool| {
        let (findings, begins) = found(&cluster, "eu-west", "switchover");
        assert_eq!(findings.contains(&kind.to_owned()), wanted, "{findings:?}");
        assert_eq!(begins, !wanted, "{findings:?}");
    };
    // A library that is not there, which the next start would look for.
    let mut writer = cluster.connect("us-east").await;
    writer.execute("ALTER SYSTEM SET shared_preload_libraries = 'no_such_library'").await.unwrap();
    find("start_fails us-east refused", true);
    until("status tells of it", || async {
        row(&cluster, "us-east").1.contains("could not access file \"no_such_library\"")
    })
    .await;
    writer.execute("ALTER SYSTEM RESET shared_preload_libraries").await.unwrap();
    // One that can be had waits for the next start as well.
    writer.execute("ALTER SYSTEM SET max_connections = 130").await.unwrap();
    find("start_fails us-east refused", false);
    writer.execute("ALTER SYSTEM RESET max_connections").await.unwrap();
    // Files of the target that are another's, or cannot be written.
    let control = cluster.region("eu-west").join("pgdata/global/pg_control");
    let owner = std::fs::metadata(&control).unwrap();
    let (user, group) = (owner.uid(), owner.gid());
    if nix::unistd::Uid::effective().is_root() {
        std::os::unix::fs::chown(&control, Some(0), Some(0)).unwrap();
        find("not_writable eu-west refused", true);
        std::os::unix::fs::chown(&control, Some(user), Some(group)).unwrap();
    }
    let record = cluster.region("eu-west").join("region.json");
    let aside = record.with_extension("aside");
    std::fs::rename(&record, &aside).unwrap();
    std::fs::create_dir(&record).unwrap();
    find("not_writable eu-west refused", true);
    std::fs::remove_dir(&record).unwrap();
    std::fs::rename(&aside, &record).unwrap();
    find("not_writable eu-west refused", false);
    // The role by which the daemon looks after PostgreSQL.
    let roles = "CREATE ROLE other SUPERUSER LOGIN PASSWORD 'other'; ALTER ROLE postgres NOLOGIN";
    writer.execute(roles).await.unwrap();
    until("what to do is told", || async {
        row(&cluster, "us-east").1.contains("SET synchronous_commit = local; ALTER ROLE postgres LOGIN")
    })
    .await;
    find("postgresql_silent us-east refused", true);
    writer.execute("ALTER ROLE postgres LOGIN").await.unwrap();
    until("it is let in again", || async { row(&cluster, "us-east").0 == "streaming" }).await;
    let _ = cluster.printed(&["promote", "--region", "eu-west"]);
}

/// Data in a path with a space and a quote, and addresses of IPv6 alone: whatever is put together of them is
/// quoted, and commands reach it.
#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_on_ipv6_in_a_directory_with_a_space_is_one_as_any_other() {
    let cluster = Cluster::new(1);
    let file = std::fs::read_to_string(cluster.file()).unwrap();
    std::fs::write(cluster.file(), file.replace("127.0.0.1", "[::1]")).unwrap();
    let data = cluster.data().with_file_name("da ta's");
    let run = |arguments: &[&str]| {
        let mut command = std::process::Command::new(replicator_tests::program());
        command.args(arguments).arg("--config").arg(cluster.file()).arg("--data").arg(&data);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}{}", text(&output.stdout), text(&output.stderr));
        text(&output.stdout)
    };
    run(&["up", "--detach", "--timeout", "60s"]);
    // By the strings that are given to people.
    let ask = |url: &str, statement: &str| {
        let mut psql = std::process::Command::new(replicator_tests::postgresql("psql"));
        let output = psql.args(["-Atq", url.trim(), "-c", statement]).output().unwrap();
        (text(&output.stdout).trim().to_owned(), text(&output.stderr))
    };
    let made = ask(&run(&["url", "--writer"]), "CREATE TABLE t AS SELECT generate_series(1, 10) AS n");
    let promoted = run(&["promote", "--region", "eu-west"]);
    let counted = ask(&run(&["url", "--region", "eu-west"]), "SELECT count(*) FROM t");
    run(&["down"]);
    assert_eq!(counted.0, "10", "{made:?} {promoted} {counted:?}");
}

/// What a user takes away, or leaves lying open: told in `status`, and not well for `--check`.
#[tokio::test(flavor = "multi_thread")]
async fn what_keeps_clients_out_or_lets_anybody_in_is_told_and_no_command_holds_a_promotion_up() {
    let cluster = Cluster::up(1);
    let told = |words: &'static str| {
        let cluster = &cluster;
        async move {
            until(words, || async { row(cluster, "us-east").1.contains(words) }).await;
            let check = cluster.run(&["status", "--check"]);
            assert_eq!(check.status.code(), Some(1), "{}", text(&check.stdout));
        }
    };
    let mut writer = cluster.connect("us-east").await;
    // A build without OpenSSL encrypts nothing anyway.
    if cluster.printed(&["url", "--region", "us-east"]).contains("verify-full") {
        writer.execute("ALTER SYSTEM SET ssl = off").await.unwrap();
        writer.execute("SELECT pg_reload_conf()").await.unwrap();
        told("nobody is let in over the network: ssl is off").await;
        writer.execute("ALTER SYSTEM RESET ssl").await.unwrap();
        writer.execute("SELECT pg_reload_conf()").await.unwrap();
        until("it is well again", || async { cluster.run(&["status", "--check"]).status.success() }).await;
    }
    // Who is let in by hand. The reload writes what is ours.
    let rules = cluster.region("us-east").join("pgdata/pg_hba.conf");
    let ours = std::fs::read_to_string(&rules).unwrap();
    std::fs::write(&rules, format!("host all all 127.0.0.1/32 trust\n{ours}")).unwrap();
    told("pg_hba.conf was changed by hand").await;
    let _ = cluster.printed(&["reload"]);
    assert_eq!(std::fs::read_to_string(&rules).unwrap(), ours);
    // All sessions' commits.
    writer.execute("ALTER ROLE ALL SET synchronous_commit = local").await.unwrap();
    told("commits do not wait for all roles").await;
    writer.execute("ALTER ROLE ALL RESET synchronous_commit").await.unwrap();
    // What PostgreSQL would do at the end of recovery, and does not; where nobody may connect to `postgres`.
    writer.execute("CREATE DATABASE other").await.unwrap();
    let url = cluster.printed(&["url", "--region", "us-east"]).replace("/postgres?", "/other?");
    let mut other = PgConnection::connect(&url).await.unwrap();
    other.execute("ALTER DATABASE postgres ALLOW_CONNECTIONS false").await.unwrap();
    cluster.until_level().await;
    let data_dir = cluster.region("eu-west").join("pgdata/postgresql.auto.conf");
    let altered = std::fs::read_to_string(&data_dir).unwrap() + "recovery_end_command = 'sleep 300'\n";
    std::fs::write(&data_dir, altered).unwrap();
    kill(cluster.postmaster("eu-west"), Signal::SIGHUP).unwrap();
    let promoted = cluster.printed(&["promote", "--region", "eu-west", "--json"]);
    let promoted: serde_json::Value = serde_json::from_str(&promoted).unwrap();
    assert!(promoted["write_gap_ms"].as_f64().is_none_or(|gap| gap < 10_000.0), "{promoted:#}");
}
