//! PostgreSQL's clients: encrypted, and at a server that proves who it is.

use std::ffi::OsString;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;
use std::time::Duration;

use replicator_tests::ledger::Ledger;
use replicator_tests::{Cluster, installation, postgresql, text, until};
use runtime::task::Task;
use sqlx::{Connection, PgConnection};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Whether the session of this connection string is encrypted, and where its server takes writes.
async fn session(url: &str) -> Result<(bool, bool), sqlx::Error> {
    let mut session = PgConnection::connect(url).await?;
    let asked = "SELECT ssl, NOT pg_is_in_recovery() FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    sqlx::query_as(asked).fetch_one(&mut session).await
}

/// Why a client is not let in, or does not want to be.
async fn refusal(url: &str) -> String {
    session(url).await.expect_err("nobody gets in").to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_are_let_in_encrypted_and_only_trust_a_server_of_the_cluster() {
    if !installation().encrypts() {
        println!("not tested: this PostgreSQL was built without encryption");
        return;
    }
    let cluster = Cluster::up(1);
    let url = cluster.printed(&["url", "--region", "us-east"]);
    assert!(url.contains("&sslmode=verify-full&sslrootcert=/"), "{url}");
    assert_eq!(session(&url).await.unwrap(), (true, true));
    let asked = Command::new(postgresql("psql")).args([&url, "-Atc", "SELECT 1"]).output().unwrap();
    assert_eq!(text(&asked.stdout).trim(), "1", "{}", text(&asked.stderr));
    let clear = refusal(&url.replace("verify-full", "disable")).await;
    assert!(clear.contains("no encryption"), "{clear}");

    // In its place: another cluster's server, and one that says it cannot encrypt.
    let other = Cluster::up(0);
    let port = |cluster: &Cluster, region: &str| {
        let url = cluster.printed(&["url", "--region", region]);
        url.split('/').nth(2).and_then(|host| host.rsplit_once(':')).unwrap().1.to_owned()
    };
    let in_its_place = |port: &str, own: &str| url.replace(&format!(":{own}/"), &format!(":{port}/"));
    let stranger = refusal(&in_its_place(&port(&other, "us-east"), &port(&cluster, "us-east"))).await;
    assert!(stranger.contains("certificate"), "{stranger}");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let between = listener.local_addr().unwrap().port().to_string();
    let _between = Task::spawn("a man in the middle", async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let mut asks = [0; 8];
            let _ = client.read_exact(&mut asks).await;
            let _ = client.write_all(b"N").await;
        }
    });
    let downgraded = refusal(&in_its_place(&between, &port(&cluster, "us-east"))).await;
    assert!(downgraded.to_lowercase().contains("tls"), "{downgraded}");

    // The key is PostgreSQL's account's alone, and in no data directory.
    let place = cluster.region("us-east");
    let key = std::fs::metadata(place.join("run/server.key")).unwrap();
    assert_eq!(
        (key.permissions().mode() & 0o777, key.uid()),
        (0o600, place.join("pgdata").metadata().unwrap().uid())
    );
    assert!(!place.join("pgdata/server.key").exists());
    // It makes nobody a peer: that account has it.
    let certificate = place.join("identity/postgresql/cert.pem");
    let stolen = tempfile::tempdir().unwrap();
    let identity = place.join("identity");
    for (from, to) in [
        (certificate.clone(), "cert.pem"),
        (place.join("run/server.key"), "key.pem"),
        (identity.join("ca.pem"), "ca.pem"),
        (identity.join("cluster.id"), "cluster.id"),
    ] {
        std::fs::copy(from, stolen.path().join(to)).unwrap();
    }
    let refused = transport::Identity::load(stolen.path()).map(|identity| identity.peer).unwrap_err();
    assert!(refused.to_string().contains("neither one region nor an operator"), "{refused}");

    // The same string leads to the writer wherever it is.
    let writer = cluster.printed(&["url", "--writer"]);
    let _ = cluster.printed(&["promote", "--region", "eu-west"]);
    let where_it_is = "SELECT ssl, inet_server_port() FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    let asked = Command::new(postgresql("psql")).args([&writer, "-Atc", where_it_is]).output().unwrap();
    let eu_west = cluster.printed(&["url", "--region", "eu-west"]);
    let expected = format!("t|{}", port(&cluster, "eu-west"));
    assert_eq!(text(&asked.stdout).trim(), expected, "{}", text(&asked.stderr));
    assert_eq!(session(&eu_west).await.unwrap(), (true, true));

    // Another certificate, and nothing restarts.
    let mut open = PgConnection::connect(&eu_west).await.unwrap();
    let loaded = "SELECT pg_conf_load_time()::text";
    let (postmaster, before): (_, String) =
        (cluster.postmaster("eu-west"), sqlx::query_scalar(loaded).fetch_one(&mut open).await.unwrap());
    let _ = cluster.printed(&["certs", "--renew"]);
    let said = cluster.printed(&["reload", "--region", "eu-west"]);
    assert!(said.contains("the certificate of PostgreSQL"), "{said}");
    let placed = std::fs::read(cluster.region("eu-west").join("run/server.crt")).unwrap();
    assert_eq!(
        placed,
        std::fs::read(cluster.region("eu-west").join("identity/postgresql/cert.pem")).unwrap()
    );
    assert_eq!(session(&eu_west).await.unwrap(), (true, true));
    let after: String = sqlx::query_scalar(loaded)
        .fetch_one(&mut PgConnection::connect(&eu_west).await.unwrap())
        .await
        .unwrap();
    assert!(cluster.postmaster("eu-west") == postmaster && after != before);
    let one: i32 = sqlx::query_scalar("SELECT 1").fetch_one(&mut open).await.unwrap();
    assert_eq!(one, 1);
}

/// Certificates are made anew again and again, and then the authority, while rows are written: no stream
/// between regions breaks, and no commit is held.
#[tokio::test(flavor = "multi_thread")]
async fn certificates_and_the_authority_turn_over_under_load() {
    if !installation().encrypts() {
        println!("not tested: this PostgreSQL was built without encryption");
        return;
    }
    let cluster = Cluster::new(2);
    cluster.configure("commit = { regions = 1 }\n");
    cluster.add_witness("third-site");
    cluster.add_node("us-east", "n2");
    cluster.start();
    let urls = ["us-east", "eu-west"].map(|region| cluster.printed(&["url", "--region", region]));
    let ledger = Ledger::start_at(urls.to_vec(), 4).await;
    ledger.until_written(100).await;
    let log = |name: &str| std::fs::read_to_string(cluster.region(name).join("daemon.log")).unwrap();
    let daemons = ["us-east", "eu-west", "ap-northeast", "third-site"];
    let said = |word: &str| daemons.map(log).concat().lines().filter(|line| line.contains(word)).count();
    let (breaks, uses) = ("no longer receiving redo", "the certificate is another");
    assert_eq!(said(breaks), 0);
    let held = || cluster.printed(&["events", "--json"]).matches("commits-held").count();
    let before = held();
    // What somebody writes into the file meanwhile waits until it is asked for.
    cluster.configure("postgresql.settings = { work_mem = \"7MB\" }\n");
    let early = cluster.run(&["certs", "--drop-old-authority"]);
    assert!(early.status.success(), "there is one authority: {}", text(&early.stderr));
    let steps = ["--renew", "--renew", "--new-authority", "--renew", "--drop-old-authority"];
    for (done, step) in steps.iter().enumerate() {
        let _ = cluster.printed(&["certs", step]);
        if *step == "--new-authority" {
            let early = cluster.run(&["certs", "--drop-old-authority"]);
            assert!(
                text(&early.stderr).contains("not of the new authority yet")
                    || text(&early.stderr).contains("has issued nothing yet"),
                "{}",
                text(&early.stderr)
            );
        }
        until("all daemons use it", || async { said(uses) == daemons.len() * (done + 1) }).await;
        let places = cluster.regions.iter().map(|region| (*region, cluster.region(region)));
        let places: Vec<_> = places.chain([("us-east", cluster.node("us-east", "n2"))]).collect();
        until("each PostgreSQL is given its own", || async {
            places.iter().all(|(region, place)| {
                // A node has one of its own.
                let own = place.join("identity/postgresql/cert.pem");
                let given = if own.exists() {
                    own
                } else {
                    cluster.region(region).join("identity/postgresql/cert.pem")
                };
                std::fs::read(place.join("run/server.crt")).unwrap() == std::fs::read(given).unwrap()
            })
        })
        .await;
        ledger.until_written(50).await;
        // Whoever comes anew is let in, and knows whom it speaks with.
        assert_eq!(cluster.status()["regions"].as_array().unwrap().len(), 3);
        // After the last step by the new authority alone.
        let urls = cluster.regions.iter().map(|region| cluster.printed(&["url", "--region", region]));
        for url in urls.chain([cluster.node_url("us-east", "n2")]) {
            until("its PostgreSQL is known", || async {
                session(&url).await.is_ok_and(|(encrypted, _)| encrypted)
            })
            .await;
        }
    }
    for url in [cluster.printed(&["url", "--region", "us-east"]), cluster.node_url("us-east", "n2")] {
        let mut open = PgConnection::connect(&url).await.unwrap();
        let work_mem: String = sqlx::query_scalar("SHOW work_mem").fetch_one(&mut open).await.unwrap();
        assert_eq!(work_mem, "4MB", "nobody has asked for what the file says");
    }
    // Also those connect anew that were connected all the time: a promotion asks every voter.
    assert_eq!(said(breaks), 0, "{}", cluster.logs());
    assert_eq!(held(), before, "{}", cluster.printed(&["events"]));
    let _ = cluster.printed(&["promote", "--region", "eu-west"]);
    ledger.until_written(50).await;
    let acknowledged = ledger.acknowledged().await;
    cluster.until_level().await;
    acknowledged.assert_in_all(&cluster).await;
}

/// A region that an earlier version made lets its clients in as before, and encrypts once it has a
/// certificate. What is no pair is not taken, whatever happens to PostgreSQL meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_comes_to_a_running_region_and_only_with_its_key() {
    if !installation().encrypts() {
        println!("not tested: this PostgreSQL was built without encryption");
        return;
    }
    let cluster = Cluster::new(0);
    cluster.start();
    let place = cluster.region("us-east").join("identity/postgresql");
    let _ = cluster.printed(&["down"]);
    std::fs::remove_dir_all(&place).unwrap();
    std::fs::remove_file(cluster.region("us-east").join("run/server.crt")).unwrap();
    cluster.start_region("us-east");
    cluster.until_streams("us-east").await;
    let url = || cluster.printed(&["url", "--region", "us-east"]);
    let clear = url();
    assert!(!clear.contains("sslmode"), "{clear}");
    let mut open = PgConnection::connect(&clear).await.unwrap();
    // A daemon that is killed leaves PostgreSQL running, which the next one finds.
    cluster.kill("us-east", false).await;
    let postmaster = cluster.postmaster("us-east");
    let _ = cluster.printed(&["certs"]);
    cluster.start_region("us-east");
    until("clients are encrypted", || async {
        let output = cluster.run(&["url", "--region", "us-east"]);
        let told = text(&output.stdout);
        told.contains("sslmode=verify-full")
            && session(told.trim()).await.is_ok_and(|(encrypted, _)| encrypted)
    })
    .await;
    assert_eq!(cluster.postmaster("us-east"), postmaster, "nothing was restarted");
    let one: i32 = sqlx::query_scalar("SELECT 1").fetch_one(&mut open).await.unwrap();
    assert_eq!(one, 1, "who was there goes on");

    // Another certificate comes before its key, and PostgreSQL dies meanwhile.
    let [old, new] = ["cert.pem", "key.pem"]
        .map(|file| place.join(file))
        .map(|file| (std::fs::read(&file).unwrap(), file));
    let _ = cluster.printed(&["certs", "--renew"]);
    let renewed = [&old, &new].map(|(_, file)| std::fs::read(file).unwrap());
    std::fs::write(&new.1, &new.0).unwrap();
    cluster.expect(&["PostgreSQL ended", "PostgreSQL is not running", "PostgreSQL has ended"]);
    nix::sys::signal::kill(cluster.postmaster("us-east"), nix::sys::signal::Signal::SIGKILL).unwrap();
    until("PostgreSQL is back", || async {
        let lock = std::fs::read_to_string(cluster.region("us-east").join("pgdata/postmaster.pid"));
        let runs = lock.is_ok_and(|lock| lock.lines().next() != Some(postmaster.to_string().as_str()));
        runs && session(&url()).await.is_ok()
    })
    .await;
    std::fs::write(&new.1, &renewed[1]).unwrap();
    until("the pair is taken", || async {
        std::fs::read(cluster.region("us-east").join("run/server.crt")).unwrap() == renewed[0]
            && session(&url()).await.is_ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_sets_encryption_himself_is_left_alone() {
    let cluster = Cluster::new(0);
    cluster.configure("postgresql.settings = { ssl = \"off\" }\n");
    cluster.start();
    let url = cluster.printed(&["url", "--region", "us-east"]);
    assert!(!url.contains("sslmode"), "{url}");
    assert_eq!(session(&format!("{url}&sslmode=disable")).await.unwrap(), (false, true));
}

/// Certificates of a minute, which daemons make anew by themselves, for six minutes under load: six hours of
/// certificates of an hour, sixty times as fast, with the time that a connection may go on after its
/// certificate as well. No stream breaks, and no commit is held.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "six minutes: make soak-certificates"]
async fn certificates_of_an_hour_turn_over_by_themselves_for_six_hours_in_six_minutes() {
    const HOURS: u64 = 6;
    let cluster = Cluster::new(2);
    cluster.configure("commit = { regions = 1 }\n");
    cluster.add_witness("third-site");
    cluster.add_node("us-east", "n2");
    let _ = cluster.printed(&["certs", "--for", "60s"]);
    let grace = [("REPLICATOR_CERTIFICATE_GRACE", OsString::from("60"))];
    for which in cluster.regions.iter().chain(&["third-site"]) {
        cluster.start_region_with(which, &grace);
    }
    cluster.start_node("us-east", "n2");
    cluster.until_streams("eu-west").await;
    cluster.until_streams("ap-northeast").await;
    cluster.until_node_streams("us-east", "n2").await;
    let urls = ["us-east", "eu-west"].map(|region| cluster.printed(&["url", "--region", region]));
    let ledger = Ledger::start_at(urls.to_vec(), 4).await;
    ledger.until_written(100).await;
    let daemons = ["us-east", "eu-west", "ap-northeast", "third-site"];
    let log = |name: &str| std::fs::read_to_string(cluster.region(name).join("daemon.log")).unwrap();
    let said = |word: &str| daemons.map(log).concat().lines().filter(|line| line.contains(word)).count();
    let breaks = "no longer receiving redo";
    let held = || cluster.printed(&["events", "--json"]).matches("commits-held").count();
    let (before, begun) = (held(), runtime::clock::now());
    let mut slowest = Duration::ZERO;
    while begun.elapsed() < Duration::from_secs(60 * HOURS) {
        let one = runtime::clock::now();
        ledger.until_written(20).await;
        slowest = slowest.max(one.elapsed());
        assert_eq!(said(breaks), 0, "{}", cluster.logs());
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert_eq!(held(), before, "{}", cluster.printed(&["events"]));
    let renewed = said("certificates had less than a third of their life left");
    assert!(renewed >= 6, "{renewed} times");
    // Whoever began with a certificate that is long over is heard as ever.
    let _ = cluster.printed(&["promote", "--region", "eu-west"]);
    ledger.until_written(50).await;
    let acknowledged = ledger.acknowledged().await;
    cluster.until_level().await;
    acknowledged.assert_in_all(&cluster).await;
    println!("certificates were made anew {renewed} times; the slowest twenty commits took {slowest:?}");
}
