//! The role that applications use: it owns a database, is no superuser, and nobody comes in over the network
//! as one.

use std::process::Command;

use replicator_tests::{Cluster, has_amcheck, postgresql, text};
use sqlx::{Connection, Executor, PgConnection};

/// A cluster whose file says nothing of the role.
fn by_default(secondaries: usize) -> Cluster {
    let cluster = Cluster::new(secondaries);
    let file = std::fs::read_to_string(cluster.file()).unwrap();
    std::fs::write(cluster.file(), file.replace("owner = \"postgres\"\n", "")).unwrap();
    cluster
}

async fn refusal(url: &str) -> String {
    match PgConnection::connect(url).await {
        Ok(_) => String::new(),
        Err(e) => e.to_string(),
    }
}

/// What psql prints, as root on the region's machine.
fn as_superuser(cluster: &Cluster, region: &str, query: &str) -> String {
    let url = cluster.printed(&["url", "--region", region, "--superuser"]);
    let output = Command::new(postgresql("psql")).args(["-XAtqc", query]).arg(&url).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout).trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn applications_get_a_role_of_their_own_and_nobody_is_superuser_over_the_network() {
    let cluster = by_default(1);
    cluster.start();
    let url = |region: &str| cluster.printed(&["url", "--region", region]);
    assert!(url("us-east").contains("//app:") && url("us-east").contains("/app?"), "{}", url("us-east"));
    let mut own = PgConnection::connect(&url("us-east")).await.unwrap();
    own.execute("CREATE TABLE t AS SELECT 7 AS n").await.unwrap();
    let who: (String, String, bool) = sqlx::query_as(
        "SELECT current_user::text, current_database()::text, rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication \
         FROM pg_roles WHERE rolname = current_user",
    )
    .fetch_one(&mut own)
    .await
    .unwrap();
    assert_eq!(who, ("app".into(), "app".into(), false));
    let denied = own.execute("COPY t TO PROGRAM 'true'").await.unwrap_err().to_string();
    assert!(denied.contains("permission denied") || denied.contains("must be superuser"), "{denied}");
    cluster.until_level().await;
    let mut far = PgConnection::connect(&url("eu-west")).await.unwrap();
    let n: i32 = sqlx::query_scalar("SELECT n FROM t").fetch_one(&mut far).await.unwrap();
    assert_eq!(n, 7);
    // The superuser's password is right, and lets nobody in over the network.
    for region in ["us-east", "eu-west"] {
        let password = std::fs::read_to_string(cluster.region(region).join("superuser.password")).unwrap();
        let (_, rest) = url(region).split_once('@').map(|(_, rest)| ((), rest.to_owned())).unwrap();
        let supers = format!("postgresql://postgres:{password}@{}", rest.replacen("/app?", "/postgres?", 1));
        let refused = refusal(&supers).await;
        assert!(refused.contains("pg_hba.conf rejects"), "{region}: {refused}");
        assert_eq!(as_superuser(&cluster, region, "SELECT current_user"), "postgres");
        let passfile = std::fs::read_to_string(cluster.region(region).join("superuser.pgpass")).unwrap();
        assert!(passfile.contains(":app:"), "psql on this machine finds the role's password: {passfile}");
    }
    // A rehearsal needs no way over the network, and compares the role's rows too.
    let output = cluster.run(&["drill", "--region", "eu-west", "--json"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.success(), has_amcheck(), "{report:#} {}", text(&output.stderr));
    let checks = report["checks"].as_array().unwrap();
    assert!(checks.iter().any(|check| check["detail"].as_str().unwrap_or_default().contains("3 databases")));
    assert!(!cluster.region("eu-west").join("drill").exists());
    // Both passwords turn over at once.
    let old = url("us-east");
    assert!(cluster.run(&["password", "rotate"]).status.success());
    assert!(refusal(&old).await.contains("password authentication failed"));
    for region in ["us-east", "eu-west"] {
        assert_eq!(refusal(&url(region)).await, "", "{region}");
    }
    let events = cluster.printed(&["events", "--region", "us-east"]);
    assert!(events.contains("password-rotated"), "{events}");
    // One that is set by hand is nobody's to change, or to hand out.
    as_superuser(&cluster, "us-east", "ALTER ROLE app PASSWORD 'by hand'");
    assert!(cluster.run(&["password", "rotate"]).status.success());
    assert!(url("us-east").contains("//app@"), "{}", url("us-east"));
    let by_hand = url("us-east").replace("//app@", "//app:by%20hand@");
    assert_eq!(refusal(&by_hand).await, "");
    // One that is missing, as in a cluster of an earlier version, is said, and made.
    for statement in ["DROP DATABASE app WITH (FORCE)", "DROP ROLE app"] {
        as_superuser(&cluster, "us-east", statement);
    }
    // Any daemon may answer, by what its own PostgreSQL has.
    cluster.until_level().await;
    let output = cluster.run(&["url", "--region", "us-east"]);
    assert!(!output.status.success());
    assert!(text(&output.stderr).contains("password rotate"), "{}", text(&output.stderr));
    assert!(cluster.run(&["password", "rotate"]).status.success());
    assert_eq!(refusal(&url("us-east")).await, "");
}
