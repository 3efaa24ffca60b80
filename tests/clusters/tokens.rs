//! Tokens: who has one logs in as its role, in every region, for as long as it is good, and as nobody else.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use replicator_tests::{Cluster, installation, postgresql, text, until};
use sqlx::{Connection, Executor, PgConnection};
use transport::{Authority, Holder, Identity, Peer};

/// Has the file say that `app` comes in by tokens alone.
fn name_role(cluster: &Cluster) {
    let file = std::fs::read_to_string(cluster.file()).unwrap();
    let postgresql = "[postgresql]\ntoken_roles = [\"app\"]\nident = [\"people ann app\"]\n";
    std::fs::write(cluster.file(), format!("{file}{postgresql}")).unwrap();
}

/// What psql says with the certificate in `files` (certificate, key) as `role` at `port`.
fn psql(cluster: &Cluster, region: &str, role: &str, files: (&Path, &Path), query: &str) -> Output {
    psql_at(cluster, &cluster.printed(&["url", "--region", region]), role, files, query)
}

/// The same, at the PostgreSQL of `url`.
fn psql_at(cluster: &Cluster, url: &str, role: &str, files: (&Path, &Path), query: &str) -> Output {
    let port = url.split('/').nth(2).and_then(|host| host.rsplit_once(':')).unwrap().1.to_owned();
    let ca = cluster.data().join("operator/ca.pem");
    let (certificate, key) = files;
    let to = format!(
        "host=127.0.0.1 port={port} dbname=postgres user={role} sslmode=verify-full sslrootcert={} sslcert={} sslkey={}",
        ca.display(),
        certificate.display(),
        key.display()
    );
    Command::new(postgresql("psql")).args(["-wXAtqc", query]).arg(&to).output().unwrap()
}

/// Why nobody gets in with it.
fn refusal(cluster: &Cluster, region: &str, role: &str, place: &Path) -> String {
    let (certificate, key) = match place.join("token.crt") {
        token if token.exists() => (token, place.join("token.key")),
        _ => (place.join("cert.pem"), place.join("key.pem")),
    };
    let output = psql(cluster, region, role, (&certificate, &key), "SELECT 1");
    assert!(!output.status.success(), "{role} at {region} with {}", place.display());
    text(&output.stderr)
}

fn now() -> time::OffsetDateTime {
    time::OffsetDateTime::from_unix_timestamp(runtime::clock::wall_us() / 1_000_000).unwrap()
}

fn minutes(count: i64) -> time::Duration {
    time::Duration::minutes(count)
}

fn granted(cluster: &Cluster, out: &Path) -> serde_json::Value {
    let out = out.display().to_string();
    let line = cluster.printed(&["token", "--role", "app", "--for", "5m", "--out", &out, "--json"]);
    serde_json::from_str(&line).unwrap()
}

async fn logs_in(url: &str) -> Result<String, sqlx::Error> {
    let mut session = PgConnection::connect(url).await?;
    sqlx::query_scalar("SELECT current_user::text").fetch_one(&mut session).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_logs_in_as_its_role_in_every_region_and_nothing_else_does() {
    if !installation().encrypts() {
        println!("not tested: this PostgreSQL was built without encryption");
        return;
    }
    let cluster = Cluster::new(1);
    name_role(&cluster);
    cluster.add_node("us-east", "n2");
    cluster.start();
    let mut writer = cluster.connect("us-east").await;
    writer.execute("CREATE ROLE app LOGIN PASSWORD 'known'").await.unwrap();
    writer.execute("CREATE ROLE web LOGIN PASSWORD 'known'").await.unwrap();
    writer.execute("CREATE ROLE operator LOGIN").await.unwrap();
    cluster.until_level().await;

    let place = tempfile::tempdir().unwrap();
    let out = place.path().join("app");
    let token = granted(&cluster, &out);
    let (url, serial) = (token["url"].as_str().unwrap(), token["serial"].as_str().unwrap().to_owned());
    // sqlx takes no string with several hosts.
    let asked =
        Command::new(postgresql("psql")).args(["-wXAtqc", "SELECT current_user", url]).output().unwrap();
    assert_eq!(text(&asked.stdout).trim(), "app", "{}", text(&asked.stderr));
    for name in ["token.crt", "token.key", "root.crt"] {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(out.join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    let files = |place: &Path| (place.join("token.crt"), place.join("token.key"));
    let (certificate, key) = files(&out);
    let subject = "SELECT client_dn FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    for region in ["us-east", "eu-west"] {
        let output = psql(&cluster, region, "app", (&certificate, &key), subject);
        let said = text(&output.stdout);
        let shown = format!("/serialNumber={serial}/CN=app/OU=replicator-token");
        assert!(said.starts_with(&shown[..62]), "{said}{}", text(&output.stderr));
    }
    // At a node's replica as well, once that has the role.
    cluster.until_node_streams("us-east", "n2").await;
    let node = cluster.node_url("us-east", "n2");
    until("a token logs in at a node", || async {
        psql_at(&cluster, &node, "app", (&certificate, &key), "SELECT 1").status.success()
    })
    .await;
    let refused = psql_at(&cluster, &node, "web", (&certificate, &key), "SELECT 1");
    assert!(!refused.status.success(), "{}", text(&refused.stdout));
    // Who was given it is in an audit, and what a daemon does not know is not granted.
    let audit = cluster.printed(&["audit"]);
    assert!(
        audit.contains(&format!(
            "token (for app, until {}, serial {serial})",
            token["until"].as_str().unwrap()
        )),
        "{audit}"
    );
    let other = cluster.run(&["token", "--role", "web", "--for", "5m", "--out", "x"]);
    assert!(text(&other.stderr).contains("'web': it logs in with no token"), "{}", text(&other.stderr));

    // Not as another role, nor with another's certificate, whatever it is called.
    for role in ["web", "postgres", "operator"] {
        let refused = refusal(&cluster, "us-east", role, &out);
        assert!(
            refused.contains("no password") || refused.contains("authentication failed"),
            "{role}: {refused}"
        );
    }
    let authority = Authority::open(&cluster.data().join("authority")).unwrap();
    let issue = |peer: &Peer| {
        let place = place.path().join(format!("{}-{}", peer.role(), peer.name()));
        authority.issue(&place, peer, now(), minutes(5)).unwrap();
        place
    };
    let holder: Holder = "app".parse().unwrap();
    for peer in [
        Peer::Voter("app".parse().unwrap()),
        Peer::Region("app".parse().unwrap()),
        Peer::Operator(holder.clone()),
        Peer::Monitor(holder),
    ] {
        for region in ["us-east", "eu-west"] {
            let refused = refusal(&cluster, region, "app", &issue(&peer));
            assert!(refused.contains("certificate authentication failed"), "{peer}: {refused}");
        }
    }
    // One that is over, one that is not yet good, and one of another authority of the same cluster's id.
    let write = |name: &str, authority: &Authority, from, life| {
        let place = place.path().join(name);
        authority.grant_token("app", from, life).unwrap().write(&place).unwrap();
        place
    };
    let over = write("over", &authority, now() - minutes(10), minutes(5));
    let refused = refusal(&cluster, "us-east", "app", &over);
    assert!(refused.contains("expired"), "{refused}");
    let foreign = place.path().join("foreign-authority");
    let foreign = Authority::create(&foreign, "test", authority.cluster_id(), now()).unwrap();
    let foreign = write("foreign", &foreign, now(), minutes(5));
    let refused = refusal(&cluster, "us-east", "app", &foreign);
    assert!(refused.contains("unknown ca"), "{refused}");

    // By a password nobody is app over the network any more, and others are as before.
    let with = |role: &str| url_of(&cluster, role, "known");
    let refused = logs_in(&with("app")).await.unwrap_err().to_string();
    assert!(refused.contains("certificate"), "{refused}");
    assert_eq!(logs_in(&with("web")).await.unwrap(), "web");
    // It makes nobody a peer.
    for name in ["cert.pem", "key.pem"] {
        std::fs::copy(if name == "cert.pem" { &certificate } else { &key }, out.join(name)).unwrap();
    }
    for name in ["ca.pem", "cluster.id"] {
        std::fs::copy(cluster.data().join("operator").join(name), out.join(name)).unwrap();
    }
    let refused = Identity::load(&out).map(|identity| identity.peer).unwrap_err().to_string();
    assert!(refused.contains("neither one region nor an operator"), "{refused}");

    // A stolen one is denied, and no other.
    let second = place.path().join("second");
    let _ = granted(&cluster, &second);
    cluster.configure(&format!("denied = [\"{serial}\"]\n"));
    let _ = cluster.printed(&["reload"]);
    for region in ["us-east", "eu-west"] {
        let refused = refusal(&cluster, region, "app", &out);
        assert!(refused.contains("certificate authentication failed"), "{refused}");
        let (certificate, key) = files(&second);
        let output = psql(&cluster, region, "app", (&certificate, &key), "SELECT 1");
        assert_eq!(text(&output.stdout).trim(), "1", "{}", text(&output.stderr));
    }

    // The user's own map stands beside ours.
    let map = std::fs::read_to_string(cluster.region("us-east").join("pgdata/pg_ident.conf")).unwrap();
    assert!(map.contains("\npeople ann app\n") && map.starts_with("# Written"), "{map}");

    // No daemon, no token; but on one's word.
    let _ = cluster.printed(&["down"]);
    let unkept = place.path().join("unkept");
    let ask = |more: &[&str]| {
        let out = unkept.display().to_string();
        cluster.run(&[&["token", "--role", "app", "--for", "1m", "--out", &out], more].concat())
    };
    let refused = ask(&[]);
    assert!(!refused.status.success() && !unkept.exists());
    assert!(text(&refused.stderr).contains("--unrecorded"), "{}", text(&refused.stderr));
    assert!(ask(&["--unrecorded"]).status.success() && unkept.join("token.crt").exists());
}

/// The connection string of `role` with a password at the primary.
fn url_of(cluster: &Cluster, role: &str, password: &str) -> String {
    let url = cluster.printed(&["url", "--region", "us-east"]);
    let (_, rest) = url.split_once('@').unwrap();
    format!("postgresql://{role}:{password}@{rest}")
}

/// Tokens of both authorities are good while both are trusted, and those of the old one until it is dropped.
#[tokio::test(flavor = "multi_thread")]
async fn tokens_outlive_their_authority_for_as_long_as_it_is_trusted() {
    if !installation().encrypts() {
        println!("not tested: this PostgreSQL was built without encryption");
        return;
    }
    let cluster = Cluster::up(0);
    let mut writer = cluster.connect("us-east").await;
    writer.execute("CREATE ROLE app LOGIN PASSWORD 'known'").await.unwrap();
    assert_eq!(logs_in(&url_of(&cluster, "app", "known")).await.unwrap(), "app");
    // While everything goes on.
    name_role(&cluster);
    let said = cluster.printed(&["reload"]);
    assert!(said.contains("postgresql.token_roles"), "{said}");
    let refused = logs_in(&url_of(&cluster, "app", "known")).await.unwrap_err().to_string();
    assert!(refused.contains("certificate"), "{refused}");
    let place = tempfile::tempdir().unwrap();
    let token = |name: &str| {
        let out: PathBuf = place.path().join(name);
        granted(&cluster, &out)["url"].as_str().unwrap().to_owned()
    };
    let old = token("old");
    assert_eq!(logs_in(&old).await.unwrap(), "app");
    let _ = cluster.printed(&["certs", "--new-authority"]);
    let _ = cluster.printed(&["certs", "--renew"]);
    // The daemon looks at its files from time to time.
    until("the new authority's certificates are let in", || async {
        cluster.run(&["events", "--region", "us-east"]).status.success()
    })
    .await;
    let new = token("new");
    until("both are let in", || async {
        // The old one's file of authorities may be of before the new authority.
        let old = old.replace("/old/root.crt", "/new/root.crt");
        logs_in(&old).await.is_ok() && logs_in(&new).await.is_ok()
    })
    .await;
    let _ = cluster.printed(&["certs", "--drop-old-authority"]);
    until("the old one is not", || async {
        logs_in(&old.replace("/old/root.crt", "/new/root.crt")).await.is_err()
    })
    .await;
    assert_eq!(logs_in(&new).await.unwrap(), "app");
}
