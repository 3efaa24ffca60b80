//! What differs between PostgreSQL's major versions, with those that are here: `scripts/majors.sh` brings
//! some, and `REPLICATOR_TEST_POSTGRES` says which one the tests run with. A test that needs another than
//! there is says so, and ends.

use std::process::Command;

use postgres::backup::archive::{Part, Reader};
use postgres::backup::base_backup::BackupEvent;
use postgres::installation::Installation;
use postgres::major::LogicalSlots;
use postgres::protocol::client::{ConnectOptions, ReplicationClient};
use postgres::protocol::logins::Logins;
use postgres::sockets::socket_dir_for;
use replicator::layout::make_passable;
use replicator_tests::{Cluster, bin_dir, installation, text, until};
use sqlx::{Connection, Executor, PgConnection};

use crate::row;

/// Data go on only with the major version that made them: a region that has another one only is refused, with
/// what to do, by `check`, by `up`, by the shipper and by a promotion. One that has both takes the one of the
/// data, not the newest.
#[tokio::test(flavor = "multi_thread")]
async fn a_region_with_another_major_is_told_what_to_do_and_one_with_both_takes_that_of_the_data() {
    let (other, usual) = (installation(), Installation::find(None).unwrap());
    if bin_dir().is_none() || other.major <= usual.major {
        eprintln!(
            "not run: two majors are needed, the one of REPLICATOR_TEST_POSTGRES newer than the one that is installed"
        );
        return;
    }
    let cluster = Cluster::new(1);
    let written = std::fs::read_to_string(cluster.file()).unwrap();
    let line = |directory: &std::path::Path| format!("bin_dir = \"{}\"\n", directory.display());
    let (theirs, ours) = (line(&other.bin_dir), line(&usual.bin_dir));
    // The primary's comes first in the file.
    let apart = written.replacen(&theirs, &ours, 1);
    std::fs::write(cluster.file(), &apart).unwrap();
    for command in [&["check"][..], &["up", "--detach"]] {
        let refused = cluster.run(command);
        let said = text(&refused.stderr);
        assert!(!refused.status.success(), "{command:?}");
        let (major, version) = (usual.major, &other.version);
        for wanted in [
            format!("region eu-west: only PostgreSQL {version} is there for it"),
            format!("us-east is of PostgreSQL {major}"),
            format!("Install PostgreSQL {major}, or name its directory as `bin_dir`"),
        ] {
            assert!(said.contains(&wanted), "{command:?}: {wanted} is not in {said}");
        }
    }
    // Each on a machine of its own, where nobody sees both.
    let _ = cluster.printed(&["certs"]);
    for region in ["us-east", "eu-west"] {
        make_passable(&cluster.region(region)).unwrap();
        cluster.start_region(region);
    }
    let wanted = format!("Install PostgreSQL {} there, or name its directory as `bin_dir`", usual.major);
    until("the region is refused with what to do", || async {
        let (state, notes) = row(&cluster, "eu-west");
        state == "refused" && notes.contains(&wanted)
    })
    .await;
    let refused = cluster.run(&["promote", "--region", "eu-west", "--dry-run"]);
    assert!(!refused.status.success(), "{}", text(&refused.stdout));
    cluster.connect("us-east").await.execute("CREATE TABLE t AS SELECT 1 AS n").await.unwrap();
    // Both majors are found there now, and the newest is not the one of the data.
    cluster.kill("eu-west", true).await;
    std::fs::write(cluster.file(), apart.replace(&theirs, "")).unwrap();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let both =
        std::env::join_paths(std::iter::once(other.bin_dir.clone()).chain(std::env::split_paths(&path)));
    cluster.start_region_with("eu-west", &[("PATH", both.unwrap())]);
    cluster.until_streams("eu-west").await;
    cluster.until_level().await;
    let counted = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM t");
    assert_eq!(counted.fetch_one(&mut cluster.connect("eu-west").await).await.unwrap(), 1);
    let version = std::fs::read_to_string(cluster.region("eu-west").join("pgdata/PG_VERSION")).unwrap();
    assert_eq!(version.trim(), usual.major.to_string());
}

/// What a base backup answers is understood to its end in every major, also that of a writer that has
/// tablespaces, linked ones and one in the data directory; and so is a seed of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_base_backup_of_a_writer_with_tablespaces_is_one_archive() {
    let cluster = Cluster::up(1);
    let account = postgres::instance::account::Account::resolve(None).unwrap();
    let place = cluster.file().with_file_name("elsewhere");
    account.make_private(&place).unwrap();
    let mut primary = cluster.connect("us-east").await;
    let make = format!("CREATE TABLESPACE elsewhere LOCATION '{}'", place.display());
    primary.execute(sqlx::AssertSqlSafe(make)).await.unwrap();
    primary.execute("CREATE TABLESPACE within LOCATION ''").await.unwrap();
    for (table, tablespace) in [("t", "elsewhere"), ("w", "within")] {
        let make =
            format!("CREATE TABLE {table} TABLESPACE {tablespace} AS SELECT generate_series(1, 1000) AS n");
        primary.execute(sqlx::AssertSqlSafe(make)).await.unwrap();
    }
    let oid = |name: &str| format!("SELECT oid::int4 FROM pg_tablespace WHERE spcname = '{name}'");
    let mut oids = Vec::new();
    for name in ["elsewhere", "within"] {
        let asked = sqlx::AssertSqlSafe(oid(name));
        oids.push(sqlx::query_scalar::<_, i32>(asked).fetch_one(&mut primary).await.unwrap());
    }
    let options = ConnectOptions {
        socket_dir: socket_dir_for(&cluster.region("us-east")),
        port: cluster
            .printed(&["url", "--region", "us-east"])
            .parse::<sqlx::postgres::PgConnectOptions>()
            .unwrap()
            .get_port(),
        user: "postgres".into(),
        application_name: "test".into(),
        major: installation().major,
        logins: Logins::default(),
    };
    let mut backup = ReplicationClient::connect(&options).await.unwrap().base_backup("test").await.unwrap();
    let outside: Vec<_> = backup.tablespaces.iter().map(|of| (of.oid, of.path.clone())).collect();
    assert_eq!(outside, [(u32::try_from(oids[0]).unwrap(), place)]);
    let (mut reader, mut names) = (Reader::default(), Vec::new());
    let end_lsn = loop {
        match backup.next().await.unwrap() {
            BackupEvent::Data(mut data) => {
                while let Some(part) = reader.next(&mut data).unwrap() {
                    if let Part::Directory(name) | Part::File(name, _) = part {
                        names.push(name.display().to_string());
                    }
                }
            }
            BackupEvent::End { end_lsn } => break end_lsn,
        }
    };
    reader.finish().unwrap();
    assert!(end_lsn > backup.start_lsn && names.last().unwrap() == "global/pg_control", "{end_lsn}");
    for oid in oids {
        let begins = format!("pg_tblspc/{oid}/PG_");
        let count = names.iter().filter(|name| name.starts_with(&begins)).count();
        assert!(count >= 3, "its directory, the database's, and a table: {count} of {begins}");
    }
    let _ = cluster.printed(&["reseed", "--region", "eu-west", "--yes"]);
    until("it is seeded anew", || async {
        let log = std::fs::read_to_string(cluster.region("eu-west").join("daemon.log")).unwrap();
        log.matches("the seed is in place").count() == 2
    })
    .await;
    cluster.until_streams("eu-west").await;
    cluster.assert_identical().await;
}

/// From 17 on a trigger of the user's may turn sessions away at login. The product's own are not meant:
/// status, a switchover and a rehearsal work.
#[tokio::test(flavor = "multi_thread")]
async fn a_login_trigger_does_not_shut_the_daemons_out() {
    if installation().major.0 < 17 {
        eprintln!("not run: there are no login triggers before PostgreSQL 17");
        return;
    }
    let cluster = Cluster::up(1);
    let mut primary = cluster.connect("us-east").await;
    let make = "CREATE FUNCTION turn_away() RETURNS event_trigger LANGUAGE plpgsql AS \
                $$ BEGIN IF current_setting('application_name') <> 'welcome' THEN RAISE 'not you'; END IF; END $$; \
                CREATE EVENT TRIGGER doorman ON login EXECUTE FUNCTION turn_away(); ALTER EVENT TRIGGER doorman ENABLE ALWAYS";
    primary.execute(make).await.unwrap();
    cluster.until_level().await;
    for region in ["us-east", "eu-west"] {
        let url = cluster.printed(&["url", "--region", region]);
        let away = PgConnection::connect(&url).await.unwrap_err().to_string();
        assert!(away.contains("not you"), "{away}");
        let welcome = format!("{url}{}application_name=welcome", if url.contains('?') { '&' } else { '?' });
        PgConnection::connect(&welcome).await.unwrap();
    }
    let drill = cluster.run(&["drill", "--region", "eu-west"]);
    assert!(drill.status.success(), "{}{}", text(&drill.stdout), text(&drill.stderr));
    let _ = cluster.printed(&["promote", "--region", "eu-west"]);
    cluster.until_streams("us-east").await;
    assert_eq!(cluster.status()["primary"], "eu-west");
}

/// The rows that the consumer of slot `cdc` is told of, and confirms.
async fn consumed(connection: &mut PgConnection) -> i64 {
    let asked = "SELECT count(*) FROM pg_logical_slot_get_binary_changes('cdc', NULL, NULL, 'proto_version', '1', 'publication_names', 'p') \
                 WHERE get_byte(data, 0) = ascii('I')";
    sqlx::query_scalar(asked).fetch_one(connection).await.unwrap()
}

/// What the dry run of a promotion to `region` says of logical slots.
fn told(cluster: &Cluster, region: &str) -> String {
    cluster.printed(&["promote", "--region", region, "--dry-run", "--json"])
}

async fn logical_slots(cluster: &Cluster, region: &str) -> i64 {
    let slots = "SELECT count(*) FROM pg_replication_slots WHERE slot_type = 'logical'";
    sqlx::query_scalar(slots).fetch_one(&mut cluster.connect(region).await).await.unwrap()
}

/// Up to where the consumer has confirmed, as the slot of this region says.
async fn confirmed(cluster: &Cluster, region: &str) -> String {
    let confirmed = "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = 'cdc'";
    sqlx::query_scalar(confirmed).fetch_one(&mut cluster.connect(region).await).await.unwrap()
}

async fn cluster_with_a_consumer(secondaries: usize) -> Cluster {
    let cluster = Cluster::new(secondaries);
    cluster.configure("postgresql.settings = { wal_level = \"logical\" }\n");
    cluster.start();
    let mut primary = cluster.connect("us-east").await;
    let make = "CREATE TABLE t (n int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE t";
    primary.execute(make).await.unwrap();
    primary.execute("SELECT pg_create_logical_replication_slot('cdc', 'pgoutput')").await.unwrap();
    cluster
}

/// In 15 a standby can have no logical slot: that is said before a promotion, and the old primary's is
/// dropped.
#[tokio::test(flavor = "multi_thread")]
async fn where_a_standby_can_have_no_logical_slot_that_is_told_and_the_old_primary_s_is_dropped() {
    if installation().major.logical_slots() != LogicalSlots::Lost {
        eprintln!("not run: from PostgreSQL 16 on a standby can have logical slots");
        return;
    }
    let cluster = cluster_with_a_consumer(1).await;
    cluster.until_level().await;
    let dry = told(&cluster, "eu-west");
    for wanted in [
        "logical slot cdc (pgoutput of database postgres, nobody reads from it)",
        "confirmed redo up to",
        "begins anew there",
    ] {
        assert!(dry.contains(wanted), "{wanted} is not in {dry}");
    }
    let _ = cluster.printed(&["promote", "--region", "eu-west"]);
    cluster.until_streams("us-east").await;
    for region in &cluster.regions {
        assert_eq!(logical_slots(&cluster, region).await, 0, "{region}");
    }
}

/// From 16 on each region carries the writer's logical slots: after a switchover and after a failover the
/// consumer goes on with nothing missing and nothing twice. A slot that would skip something is told, and is
/// not led with. One that the primary drops goes everywhere.
#[tokio::test(flavor = "multi_thread")]
async fn logical_slots_are_carried_and_their_consumers_go_on_after_promotions() {
    if installation().major.logical_slots() == LogicalSlots::Lost {
        eprintln!("not run: before PostgreSQL 16 a standby can have no logical slots");
        return;
    }
    let cluster = cluster_with_a_consumer(2).await;
    cluster.expect(&["this region does not lead any more"]);
    let mut primary = cluster.connect("us-east").await;
    primary.execute("INSERT INTO t SELECT generate_series(1, 3)").await.unwrap();
    // The consumer has confirmed nothing of this yet: a slot that is made now begins after it.
    until("the slot is made, and would skip rows", || async {
        told(&cluster, "eu-west").contains("after what its consumer has confirmed")
    })
    .await;
    assert_eq!(consumed(&mut primary).await, 3);
    primary.execute("INSERT INTO t VALUES (4)").await.unwrap();
    assert_eq!(consumed(&mut primary).await, 1);
    let ready = |dry: &str| dry.contains("goes on from there") && !dry.contains("has confirmed more");
    for region in ["eu-west", "ap-northeast"] {
        until("the consumer can go on there", || async { ready(&told(&cluster, region)) }).await;
    }
    // The writer keeps its catalogs as long as a region's slot decodes with them.
    let held = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'replicator' AND catalog_xmin IS NOT NULL";
    until("the writer keeps its catalogs", || async {
        let mut primary = cluster.connect("us-east").await;
        sqlx::query_scalar::<_, i64>(held).fetch_one(&mut primary).await.unwrap() == 1
    })
    .await;
    primary.execute("INSERT INTO t VALUES (5), (6)").await.unwrap();
    let _ = cluster.printed(&["promote", "--region", "eu-west"]);
    let mut primary = cluster.connect("eu-west").await;
    primary.execute("INSERT INTO t VALUES (7)").await.unwrap();
    assert_eq!(consumed(&mut primary).await, 3, "what was written after the consumer's last word");

    // And after a failover.
    primary.execute("INSERT INTO t VALUES (8)").await.unwrap();
    assert_eq!(consumed(&mut primary).await, 1);
    let told = confirmed(&cluster, "eu-west").await;
    until("its word is carried", || async { confirmed(&cluster, "ap-northeast").await == told }).await;
    primary.execute("INSERT INTO t VALUES (9)").await.unwrap();
    cluster.until_level().await;
    cluster.kill("eu-west", true).await;
    let _ = cluster.printed(&["promote", "--region", "ap-northeast", "--mode", "failover"]);
    let mut primary = cluster.connect("ap-northeast").await;
    assert_eq!(consumed(&mut primary).await, 1, "what was written after the consumer's last word");

    // What the primary drops is dropped everywhere.
    cluster.start_region("eu-west");
    cluster.until_streams("eu-west").await;
    until("the slot is there again", || async { logical_slots(&cluster, "eu-west").await == 1 }).await;
    primary.execute("SELECT pg_drop_replication_slot('cdc')").await.unwrap();
    for region in &cluster.regions {
        until("the slot is gone", || async { logical_slots(&cluster, region).await == 0 }).await;
    }
}

/// The directory of programs must be one that PostgreSQL's account can use; where it is not, that is said,
/// not what some program makes of it.
#[tokio::test(flavor = "multi_thread")]
async fn programs_that_the_account_may_not_run_are_told() {
    use std::os::unix::fs::PermissionsExt;
    if !nix::unistd::Uid::effective().is_root() {
        eprintln!("not run: only root runs PostgreSQL as another account");
        return;
    }
    let hidden = tempfile::tempdir().unwrap();
    std::fs::set_permissions(hidden.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
    let bin = hidden.path().join("bin");
    std::os::unix::fs::symlink(installation().bin_dir, &bin).unwrap();
    let cluster = Cluster::new(1);
    let written = std::fs::read_to_string(cluster.file()).unwrap();
    let kept = written.lines().filter(|line| !line.starts_with("bin_dir"));
    let kept: String = kept.map(|line| format!("{line}\n")).collect();
    let named = kept.replace("role =", &format!("bin_dir = \"{}\"\nrole =", bin.display()));
    std::fs::write(cluster.file(), named).unwrap();
    let mut check = Command::new(replicator_tests::program());
    let check = check.args(["check", "--config"]).arg(cluster.file()).output().unwrap();
    let said = text(&check.stderr);
    assert!(!check.status.success() && said.contains("may not run") && said.contains("bin_dir"), "{said}");
}
