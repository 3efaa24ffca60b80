//! Tablespaces: they are made in each region, in places of their own where regions share a machine, and come
//! along with seeds, rewinds, replicas of nodes and rehearsals.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::User;
use replicator_tests::ledger::Ledger;
use replicator_tests::seeding::{Seed, fill_with_noise};
use replicator_tests::{Cluster, connect_to, has_amcheck, text, until};
use sqlx::{AssertSqlSafe, Executor, PgConnection};

use super::row;

/// What a daemon that was replaced says.
const DEPOSED: &str = "this region does not lead any more";

/// Gives a directory to PostgreSQL's account.
fn give(place: &Path) {
    if nix::unistd::Uid::effective().is_root() {
        let owner = User::from_name("postgres").unwrap().unwrap();
        chown(place, Some(owner.uid.as_raw()), Some(owner.gid.as_raw())).unwrap();
    }
}

/// A directory of PostgreSQL's account below the cluster's own.
fn place(cluster: &Cluster, name: &str) -> PathBuf {
    let place = cluster.file().with_file_name(name);
    std::fs::create_dir(&place).unwrap();
    give(&place);
    place
}

async fn make(writer: &mut PgConnection, name: &str, place: &Path) {
    let create = format!("CREATE TABLESPACE {name} LOCATION '{}'", place.display());
    writer.execute(AssertSqlSafe(create)).await.unwrap();
}

/// Makes a table of `rows` rows with an index, both in a tablespace.
async fn fill(writer: &mut PgConnection, table: &str, tablespace: &str, rows: u32) {
    let create = format!(
        "CREATE TABLE {table} TABLESPACE {tablespace} AS SELECT g AS n, repeat('x', 200) AS pad FROM generate_series(1, {rows}) g"
    );
    writer.execute(AssertSqlSafe(create)).await.unwrap();
    let index = format!("CREATE INDEX ON {table} (n) TABLESPACE {tablespace}");
    writer.execute(AssertSqlSafe(index)).await.unwrap();
}

async fn sum(connection: &mut PgConnection, table: &str) -> i64 {
    let query = format!("SELECT sum(n) FROM {table}");
    sqlx::query_scalar(AssertSqlSafe(query)).fetch_one(connection).await.unwrap()
}

/// A tablespace's link below the data of a region.
async fn link(cluster: &Cluster, region: &str, name: &str) -> PathBuf {
    let query = format!("SELECT oid::int4 FROM pg_tablespace WHERE spcname = '{name}'");
    let mut connection = cluster.connect(region).await;
    let oid: i32 = sqlx::query_scalar(AssertSqlSafe(query)).fetch_one(&mut connection).await.unwrap();
    cluster.region(region).join(format!("pgdata/pg_tblspc/{oid}"))
}

fn log(cluster: &Cluster, region: &str) -> String {
    std::fs::read_to_string(cluster.region(region).join("daemon.log")).unwrap()
}

/// What is in a directory; nothing where it is not there.
fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn regions_on_one_machine_have_places_of_their_own_and_follow_in_both_directions() {
    let cluster = Cluster::up(1);
    let (aside, later) = (place(&cluster, "aside"), place(&cluster, "later"));
    let mut writer = cluster.connect("us-east").await;
    make(&mut writer, "aside", &aside).await;
    fill(&mut writer, "t", "aside", 1000).await;
    cluster.until_level().await;
    let mut standby = cluster.connect("eu-west").await;
    assert_eq!(sum(&mut standby, "t").await, 500_500);
    let own = cluster.region("eu-west").join("tablespaces");
    let mapped = std::fs::read_link(link(&cluster, "eu-west", "aside").await).unwrap();
    assert!(mapped.starts_with(&own), "{}", mapped.display());
    assert_eq!(std::fs::read_link(link(&cluster, "us-east", "aside").await).unwrap(), aside);
    // Each writes its own files.
    standby.execute("CHECKPOINT").await.unwrap();
    writer.execute("UPDATE t SET n = n + 1").await.unwrap();
    writer.execute("CHECKPOINT").await.unwrap();
    // Killed, the standby applies the same redo again, from its own and out of the volume.
    cluster.kill("eu-west", true).await;
    cluster.start_region("eu-west");
    cluster.until_level().await;
    cluster.assert_identical().await;
    assert_eq!(std::fs::read_link(link(&cluster, "eu-west", "aside").await).unwrap(), mapped);
    // The other way round, and one that is made there.
    drop((writer, standby));
    let _ = cluster.printed(&["promote", "--region", "eu-west"]);
    let mut writer = cluster.connect("eu-west").await;
    make(&mut writer, "later", &later).await;
    fill(&mut writer, "u", "later", 1000).await;
    writer.execute("UPDATE t SET n = n + 1").await.unwrap();
    cluster.until_level().await;
    cluster.assert_identical().await;
    let theirs = std::fs::read_link(link(&cluster, "us-east", "later").await).unwrap();
    assert!(theirs.starts_with(cluster.region("us-east").join("tablespaces")));
    assert!(!log(&cluster, "us-east").contains("the data are rewound"), "a switchover needs none");
    // Dropped, nothing of it stays but the directory that the user has made.
    for (table, name) in [("t", "aside"), ("u", "later")] {
        writer.execute(AssertSqlSafe(format!("DROP TABLE {table}"))).await.unwrap();
        writer.execute(AssertSqlSafe(format!("DROP TABLESPACE {name}"))).await.unwrap();
    }
    writer.execute("CREATE TABLE v AS SELECT 1 AS n").await.unwrap();
    for region in ["us-east", "eu-west"] {
        let (links, mapped) =
            (cluster.region(region).join("pgdata/pg_tblspc"), cluster.region(region).join("tablespaces"));
        until("nothing is left", || async { names(&links).is_empty() && names(&mapped).is_empty() }).await;
    }
    assert_eq!((names(&aside), names(&later)), (Vec::new(), Vec::new()));
    // A promotion right after one was made: the newest redo is as the standby was given it.
    make(&mut writer, "again", &aside).await;
    let _ = cluster.printed(&["promote", "--region", "us-east"]);
    let mut writer = cluster.connect("us-east").await;
    fill(&mut writer, "w", "again", 1000).await;
    cluster.assert_identical().await;
}

/// What `command` does where a region has another disk at `places` than the others: a machine of its own, as
/// far as this goes.
fn on_a_disk_of_its_own(places: &Path) -> Command {
    let of_its_own = "mount -t tmpfs -o mode=0777 tmpfs \"$1\" && shift && exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", of_its_own, "sh"]).arg(places);
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_machine_of_its_own_a_tablespace_has_the_writer_s_path_and_a_rehearsal_writes_another() {
    if !nix::unistd::Uid::effective().is_root() {
        eprintln!("SKIPPED: to give a region a file system of its own needs root");
        return;
    }
    let cluster = Cluster::up(1);
    let places = place(&cluster, "places");
    cluster.kill("eu-west", true).await;
    let mut command = on_a_disk_of_its_own(&places);
    command.arg(replicator_tests::program()).args(["run", "--region", "eu-west", "--config"]);
    command.arg(cluster.file()).arg("--data").arg(cluster.data());
    let said =
        std::fs::File::options().append(true).open(cluster.region("eu-west").join("daemon.log")).unwrap();
    let mut daemon = command.stdout(said.try_clone().unwrap()).stderr(said).spawn().unwrap();
    cluster.until_streams("eu-west").await;
    let aside = places.join("deep/aside");
    std::fs::create_dir_all(&aside).unwrap();
    for made in [&places.join("deep"), &aside] {
        give(made);
        std::fs::set_permissions(made, PermissionsExt::from_mode(0o700)).unwrap();
    }
    let mut writer = cluster.connect("us-east").await;
    make(&mut writer, "aside", &aside).await;
    fill(&mut writer, "t", "aside", 1000).await;
    cluster.until_level().await;
    let mut standby = cluster.connect("eu-west").await;
    assert_eq!(sum(&mut standby, "t").await, 500_500);
    assert_eq!(std::fs::read_link(link(&cluster, "eu-west", "aside").await).unwrap(), aside);
    // It goes on with it: the link is its own now.
    writer.execute("INSERT INTO t VALUES (500)").await.unwrap();
    cluster.until_level().await;
    assert_eq!(sum(&mut standby, "t").await, 501_000);
    // Rehearsed where the region sees its own disk; what comes after the copy is made in the clone alone.
    let there =
        Path::new("/proc").join(daemon.id().to_string()).join("root").join(aside.strip_prefix("/").unwrap());
    let before = contents(&there);
    let mut drill = Command::new("nsenter");
    drill.arg(format!("--mount=/proc/{}/ns/mnt", daemon.id())).arg(replicator_tests::program());
    drill.args(["drill", "--region", "eu-west", "--json", "--config"]).arg(cluster.file());
    let drill = drill.arg("--data").arg(cluster.data()).output().unwrap();
    let report: serde_json::Value = serde_json::from_slice(&drill.stdout).unwrap_or_default();
    assert_eq!(drill.status.success(), has_amcheck(), "{report:#} {}", text(&drill.stderr));
    let compared = report["checks"][2].clone();
    assert_eq!(compared["outcome"], "passed", "{report:#}");
    assert_eq!(contents(&there), before, "the standby's own files");
    assert!(!cluster.region("eu-west").join("drill").exists());
    drop((writer, standby));
    cluster.kill("eu-west", true).await;
    let _ = daemon.wait();
}

/// All files below a directory, with what they hold.
fn contents(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let (mut found, mut directories) = (Vec::new(), vec![directory.to_owned()]);
    while let Some(directory) = directories.pop() {
        for name in names(&directory) {
            let path = directory.join(name);
            match path.is_dir() {
                true => directories.push(path),
                false => found.push((path.clone(), std::fs::read(&path).unwrap())),
            }
        }
    }
    assert!(!found.is_empty(), "{}", directory.display());
    found.sort();
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seed_carries_tablespaces_under_load_and_goes_on_where_it_was_cut() {
    let cluster = Cluster::up(1);
    cluster.expect(&["the seed failed"]);
    let (one, two) = (place(&cluster, "one"), place(&cluster, "two"));
    let mut writer = cluster.connect("us-east").await;
    make(&mut writer, "one", &one).await;
    make(&mut writer, "two", &two).await;
    fill_with_noise(&mut writer, "one", 100).await;
    fill(&mut writer, "t", "two", 1000).await;
    writer.execute("CREATE TABLE gone TABLESPACE two AS SELECT 1 AS n").await.unwrap();
    cluster.until_level().await;
    let ledger = Ledger::start(&cluster.printed(&["url", "--region", "us-east"]), 2).await;
    cluster.configure_region("eu-west", "bandwidth = \"80Mbit/s\"");
    let _ = cluster.printed(&["reload"]);
    let _ = cluster.printed(&["reseed", "--region", "eu-west", "--yes"]);
    until("a good part has arrived", || async {
        Seed::of(&cluster, "eu-west").is_some_and(|seed| seed.total_bytes > 100 << 20 && seed.has_tenths(6))
    })
    .await;
    cluster.kill("eu-west", false).await;
    // What was sent changes, and a tablespace comes, while it is away.
    writer.execute("UPDATE noise SET id = id + 1000 WHERE id <= 3").await.unwrap();
    writer.execute("DROP TABLE gone").await.unwrap();
    let three = place(&cluster, "three");
    make(&mut writer, "three", &three).await;
    fill(&mut writer, "u", "three", 1000).await;
    cluster.start_region("eu-west");
    until("it goes on, with what was there", || async {
        Seed::of(&cluster, "eu-west")
            .is_some_and(|seed| seed.not_sent_bytes > seed.total_bytes * 2 / 10 && seed.has_tenths(7))
    })
    .await;
    // One that is made while the backup is under way comes by redo.
    let four = place(&cluster, "four");
    make(&mut writer, "four", &four).await;
    fill(&mut writer, "v", "four", 1000).await;
    cluster.until_streams("eu-west").await;
    ledger.until_written(50).await;
    let acknowledged = ledger.acknowledged().await;
    cluster.assert_identical().await;
    acknowledged.assert_in_all(&cluster).await;
    assert_eq!(sum(&mut cluster.connect("eu-west").await, "v").await, 500_500);
    let places = cluster.region("eu-west").join("tablespaces");
    for name in ["one", "two", "three", "four"] {
        let leads_to = std::fs::read_link(link(&cluster, "eu-west", name).await).unwrap();
        assert!(leads_to.starts_with(&places), "{}", leads_to.display());
        assert!(names(&leads_to).iter().all(|name| name.starts_with("PG_")), "nothing of the seed is left");
    }
    assert!(!cluster.region("eu-west").join("pgdata/tablespace_map").exists());
    // What was set aside has its tablespaces, and what is new can lead.
    assert!(!names(&cluster.region("eu-west").join("aside")).is_empty());
    cluster.until_level().await;
    let _ = cluster.printed(&["promote", "--region", "eu-west"]);
    fill(&mut cluster.connect("eu-west").await, "w", "two", 1000).await;
    cluster.assert_identical().await;
}

/// A primary is killed, and comes back by itself: what only it had is taken back in its tablespaces too,
/// one that only it has made is removed, and one that was made meanwhile, with the same number, is its own.
#[tokio::test(flavor = "multi_thread")]
async fn an_old_primary_with_tablespaces_comes_back_by_itself_rewound() {
    let cluster = Cluster::up(2);
    let [kept, dropped, lost, new] = ["kept", "dropped", "lost", "new"].map(|name| place(&cluster, name));
    let mut writer = cluster.connect("us-east").await;
    make(&mut writer, "kept", &kept).await;
    make(&mut writer, "dropped", &dropped).await;
    fill(&mut writer, "t", "kept", 20_000).await;
    fill(&mut writer, "u", "dropped", 1000).await;
    cluster.until_level().await;
    for region in ["eu-west", "ap-northeast"] {
        cluster.kill(region, true).await;
    }
    writer.execute("SET synchronous_commit = local").await.unwrap();
    writer.execute("UPDATE t SET pad = 'lost' WHERE n % 100 = 0").await.unwrap();
    // Numbers are drawn ahead: a promoted standby goes on after those that the old primary may have used.
    let until_the_next = "DO $$ BEGIN WHILE lo_create(0)::bigint < 24575 LOOP END LOOP; END $$";
    writer.execute(until_the_next).await.unwrap();
    make(&mut writer, "only_here", &lost).await;
    fill(&mut writer, "v", "only_here", 1000).await;
    writer.execute("CHECKPOINT").await.unwrap();
    let theirs = link(&cluster, "us-east", "only_here").await;
    drop(writer);
    cluster.kill("us-east", true).await;
    for region in ["eu-west", "ap-northeast"] {
        cluster.start_region(region);
    }
    cluster.expect(&[DEPOSED]);
    until("a secondary leads", || async {
        cluster.run(&["promote", "--region", "eu-west", "--mode", "failover"]).status.success()
    })
    .await;
    let mut writer = cluster.connect("eu-west").await;
    make(&mut writer, "new", &new).await;
    fill(&mut writer, "w", "new", 1000).await;
    writer.execute("UPDATE t SET pad = 'kept' WHERE n % 99 = 0").await.unwrap();
    writer.execute("DROP TABLE u").await.unwrap();
    writer.execute("DROP TABLESPACE dropped").await.unwrap();
    let ledger = Ledger::start(&cluster.printed(&["url", "--region", "eu-west"]), 2).await;
    cluster.start();
    cluster.until_streams("us-east").await;
    ledger.until_written(50).await;
    let acknowledged = ledger.acknowledged().await;
    cluster.assert_identical().await;
    acknowledged.assert_in_all(&cluster).await;
    let said = log(&cluster, "us-east");
    assert!(said.contains("the data are rewound") && !said.contains("receiving a seed"), "{said}");
    assert_eq!(std::fs::read_link(link(&cluster, "us-east", "kept").await).unwrap(), kept);
    // What was made meanwhile has the number of the one that was lost.
    assert_eq!(link(&cluster, "us-east", "new").await, theirs);
    assert_eq!(std::fs::read_link(&theirs).unwrap(), lost);
    for region in &cluster.regions {
        assert_eq!(names(&cluster.region(region).join("pgdata/pg_tblspc")).len(), 2, "{region}");
        assert_eq!(sum(&mut cluster.connect(region).await, "w").await, 500_500, "{region}");
    }
    // It was made again from before the fork, and dropped.
    until("nothing of it is left", || async { names(&dropped).is_empty() }).await;
    // It can lead again, and the other follow.
    cluster.until_level_enough("us-east").await;
    let _ = cluster.printed(&["promote", "--region", "us-east"]);
    let mut writer = cluster.connect("us-east").await;
    writer.execute("UPDATE t SET pad = 'again' WHERE n % 98 = 0").await.unwrap();
    cluster.assert_identical().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_of_nodes_have_tablespaces_by_redo_and_by_a_copy() {
    let cluster = Cluster::new(1);
    cluster.add_node("us-east", "n1");
    cluster.start();
    cluster.until_node_streams("us-east", "n1").await;
    let (by_redo, dropped) = (place(&cluster, "by_redo"), place(&cluster, "dropped"));
    let mut writer = cluster.connect("us-east").await;
    make(&mut writer, "by_redo", &by_redo).await;
    make(&mut writer, "dropped", &dropped).await;
    fill(&mut writer, "t", "by_redo", 1000).await;
    fill(&mut writer, "u", "dropped", 1000).await;
    cluster.until_level().await;
    writer.execute("DROP TABLE u").await.unwrap();
    writer.execute("DROP TABLESPACE dropped").await.unwrap();
    let replica = |node: &str| cluster.node("us-east", node).join("pgdata/pg_tblspc");
    until("only one is there", || async { names(&replica("n1")).len() == 1 }).await;
    // It starts with what it has, and what another node is given is a copy.
    cluster.kill_node("us-east", "n1", true).await;
    cluster.add_node("us-east", "n2");
    let _ = cluster.printed(&["reload"]);
    cluster.start();
    for node in ["n1", "n2"] {
        cluster.until_node_streams("us-east", node).await;
        let said = cluster.node_said("us-east", node);
        assert_eq!(said.matches("the copy is in place").count(), 1, "{node}: {said}");
    }
    writer.execute("UPDATE t SET n = n + 1").await.unwrap();
    cluster.assert_identical().await;
    for node in ["n1", "n2"] {
        let mut connection = connect_to(&cluster.node_url("us-east", node)).await;
        assert_eq!(sum(&mut connection, "t").await, 501_500, "{node}");
        let own = std::fs::read_dir(replica(node)).unwrap().next().unwrap().unwrap();
        assert!(own.file_type().unwrap().is_dir(), "{node}: it lies in its data directory");
    }
    // And so it is for nodes of a region whose own tablespaces are mapped.
    cluster.add_node("eu-west", "n1");
    let _ = cluster.printed(&["reload"]);
    cluster.start();
    cluster.until_node_streams("eu-west", "n1").await;
    cluster.assert_identical().await;
}

/// A region that can have no place for a tablespace says so, is not given the redo, and goes on once it can.
#[tokio::test(flavor = "multi_thread")]
async fn a_place_that_cannot_be_made_is_told_before_anything_breaks() {
    if !nix::unistd::Uid::effective().is_root() {
        eprintln!("SKIPPED: to make a directory of another account needs root");
        return;
    }
    let cluster = Cluster::up(1);
    cluster.expect(&["the standby waits: the redo makes tablespace"]);
    let places = place(&cluster, "places");
    cluster.kill("eu-west", true).await;
    // There the same path leads to a directory that is not PostgreSQL's.
    let mut command = on_a_disk_of_its_own(&places);
    command.args(["sh", "-c", "mkdir \"$1\" && shift && exec \"$@\"", "sh"]).arg(places.join("aside"));
    command.arg(replicator_tests::program()).args(["run", "--region", "eu-west", "--config"]);
    command.arg(cluster.file()).arg("--data").arg(cluster.data());
    let said =
        std::fs::File::options().append(true).open(cluster.region("eu-west").join("daemon.log")).unwrap();
    let mut daemon = command.stdout(said.try_clone().unwrap()).stderr(said).spawn().unwrap();
    cluster.until_streams("eu-west").await;
    let aside = places.join("aside");
    std::fs::create_dir(&aside).unwrap();
    give(&aside);
    let mut writer = cluster.connect("us-east").await;
    make(&mut writer, "aside", &aside).await;
    fill(&mut writer, "t", "aside", 1000).await;
    until("status says why eu-west waits", || async {
        let (_, notes) = row(&cluster, "eu-west");
        notes.contains("the redo makes tablespace") && notes.contains("chown")
    })
    .await;
    let dry = cluster.run(&["promote", "--region", "eu-west", "--dry-run", "--json"]);
    let found: serde_json::Value = serde_json::from_slice(&dry.stdout).unwrap();
    let refused = |finding: &serde_json::Value| {
        finding["kind"] == "tablespace" && finding["region"] == "eu-west" && finding["outcome"] == "refused"
    };
    assert!(!dry.status.success() && found["findings"].as_array().unwrap().iter().any(refused), "{found:#}");
    let there = Path::new("/proc").join(daemon.id().to_string()).join("root");
    give(&there.join(aside.strip_prefix("/").unwrap()));
    cluster.until_level().await;
    assert_eq!(sum(&mut cluster.connect("eu-west").await, "t").await, 500_500);
    drop(writer);
    cluster.kill("eu-west", true).await;
    let _ = daemon.wait();
}
