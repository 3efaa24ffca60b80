//! Tablespaces: their places are made where a region has a machine of its own, and never shared where regions
//! share one.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;
use std::process::Command;

use nix::unistd::User;
use replicator_tests::{Cluster, text, until};
use sqlx::{AssertSqlSafe, Executor, PgConnection};

use super::row;

/// A directory of PostgreSQL's account below the cluster's own.
fn place(cluster: &Cluster, name: &str) -> PathBuf {
    let place = cluster.file().with_file_name(name);
    std::fs::create_dir(&place).unwrap();
    if nix::unistd::Uid::effective().is_root() {
        let owner = User::from_name("postgres").unwrap().unwrap();
        chown(&place, Some(owner.uid.as_raw()), Some(owner.gid.as_raw())).unwrap();
    }
    place
}

/// Makes a tablespace in `place`, and a table of a thousand rows in it.
async fn fill(writer: &mut PgConnection, place: &str) {
    let create = format!("CREATE TABLESPACE aside LOCATION '{place}'");
    writer.execute(AssertSqlSafe(create)).await.unwrap();
    writer.execute("CREATE TABLE t TABLESPACE aside AS SELECT generate_series(1, 1000) AS n").await.unwrap();
}

async fn sum(connection: &mut PgConnection) -> i64 {
    sqlx::query_scalar("SELECT sum(n) FROM t").fetch_one(connection).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn regions_on_one_machine_never_write_each_others_tablespaces() {
    let cluster = Cluster::up(1);
    cluster.expect(&["the standby waits: the redo makes tablespace"]);
    let place = place(&cluster, "aside");
    let mut writer = cluster.connect("us-east").await;
    fill(&mut writer, &place.display().to_string()).await;
    // Said where people look, and before anything else is touched.
    until("status says why eu-west waits", || async {
        let (_, notes) = row(&cluster, "eu-west");
        notes.contains("the redo makes tablespace") && notes.contains("Drop the tablespace")
    })
    .await;
    let dry = cluster.run(&["promote", "--region", "eu-west", "--dry-run", "--json"]);
    let said: serde_json::Value = serde_json::from_slice(&dry.stdout).unwrap();
    let refused = |finding: &serde_json::Value| {
        finding["kind"] == "tablespace" && finding["region"] == "eu-west" && finding["outcome"] == "refused"
    };
    assert!(!dry.status.success() && said["findings"].as_array().unwrap().iter().any(refused), "{said:#}");
    // The standby has not touched it: it has no link there, and the writer's rows are the writer's.
    let links = std::fs::read_dir(cluster.region("eu-west").join("pgdata/pg_tblspc")).unwrap().count();
    assert_eq!(links, 0);
    let mut standby = cluster.connect("eu-west").await;
    standby.execute("CHECKPOINT").await.unwrap();
    writer.execute("UPDATE t SET n = n + 1").await.unwrap();
    writer.execute("CHECKPOINT").await.unwrap();
    assert_eq!(sum(&mut writer).await, 501_500);
    // Also a daemon and a standby that start anew stop before it.
    cluster.kill("eu-west", true).await;
    cluster.start_region("eu-west");
    until("status says it again", || async {
        row(&cluster, "eu-west").1.contains("the redo makes tablespace")
    })
    .await;
    // Dropped, it hinders nobody any more.
    writer.execute("ALTER TABLE t SET TABLESPACE pg_default").await.unwrap();
    writer.execute("DROP TABLESPACE aside").await.unwrap();
    cluster.until_level().await;
    let mut standby = cluster.connect("eu-west").await;
    assert_eq!(sum(&mut standby).await, 501_500);
    let _ = cluster.printed(&["promote", "--region", "eu-west"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_place_of_a_tablespace_is_made_before_the_standby_needs_it() {
    if !nix::unistd::Uid::effective().is_root() {
        eprintln!("SKIPPED: to give a region a file system of its own needs root");
        return;
    }
    let cluster = Cluster::up(1);
    let places = place(&cluster, "places");
    // A machine of its own, as far as this goes: what is below `places` there is another disk.
    cluster.kill("eu-west", true).await;
    let of_its_own = "mount -t tmpfs -o mode=0777 tmpfs \"$1\" && shift && exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", of_its_own, "sh"]).arg(&places).arg(replicator_tests::program());
    command
        .args(["run", "--region", "eu-west", "--config"])
        .arg(cluster.file())
        .arg("--data")
        .arg(cluster.data());
    let log =
        std::fs::File::options().append(true).open(cluster.region("eu-west").join("daemon.log")).unwrap();
    let mut daemon = command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
    cluster.until_streams("eu-west").await;
    let aside = places.join("deep/aside");
    std::fs::create_dir_all(&aside).unwrap();
    for made in [&places.join("deep"), &aside] {
        let owner = User::from_name("postgres").unwrap().unwrap();
        chown(made, Some(owner.uid.as_raw()), Some(owner.gid.as_raw())).unwrap();
        std::fs::set_permissions(made, PermissionsExt::from_mode(0o700)).unwrap();
    }
    let mut writer = cluster.connect("us-east").await;
    fill(&mut writer, &aside.display().to_string()).await;
    cluster.until_level().await;
    let mut standby = cluster.connect("eu-west").await;
    assert_eq!(sum(&mut standby).await, 500_500);
    // It goes on with it: the link is its own now.
    writer.execute("INSERT INTO t VALUES (500)").await.unwrap();
    cluster.until_level().await;
    assert_eq!(sum(&mut standby).await, 501_000);
    // A clone would write the running standby's files.
    let drill = cluster.run(&["drill", "--region", "eu-west"]);
    assert!(
        !drill.status.success() && text(&drill.stderr).contains("tablespaces"),
        "{}",
        text(&drill.stderr)
    );
    drop((writer, standby));
    cluster.kill("eu-west", true).await;
    let _ = daemon.wait();
}
