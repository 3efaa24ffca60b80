//! Endpoints of real regions: one address for the writer, wherever it is, and one for readers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use replicator_tests::ledger::Ledger;
use replicator_tests::{Cluster, PATIENCE, free_port, now, pause, postgresql, text, until, with_children};
use runtime::task::Task;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

/// A cluster all of whose regions have both endpoints.
fn with_endpoints(secondaries: usize) -> Cluster {
    let cluster = Cluster::new(secondaries);
    for region in &cluster.regions {
        let (writer, reader) = (free_port(), free_port());
        let lines =
            format!("writer_endpoint = \"127.0.0.1:{writer}\"\nreader_endpoint = \"127.0.0.1:{reader}\"");
        cluster.configure_region(region, &lines);
    }
    cluster
}

fn endpoint(cluster: &Cluster, region: &str, kind: &str) -> String {
    cluster.printed(&["url", "--region", region, "--endpoint", kind])
}

async fn value(connection: &mut PgConnection, sql: &'static str) -> String {
    sqlx::query_scalar::<_, String>(sql).fetch_one(connection).await.unwrap()
}

/// The port of the PostgreSQL that a session has come to.
const PORT: &str = "SELECT current_setting('port')";

fn port(cluster: &Cluster, region: &str) -> String {
    let url = cluster.printed(&["url", "--region", region]);
    let options: PgConnectOptions = url.parse().unwrap();
    options.get_port().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_statement_works_from_any_region_and_readers_stay_near() {
    let cluster = with_endpoints(2);
    cluster.start();
    let primary = port(&cluster, "us-east");
    for region in ["us-east", "eu-west", "ap-northeast"] {
        let mut session = PgConnection::connect(&endpoint(&cluster, region, "writer")).await.unwrap();
        assert_eq!(value(&mut session, PORT).await, primary, "{region}");
        let name = region.replace('-', "_");
        session
            .execute(AssertSqlSafe(format!(
                "CREATE TABLE {name} (id serial PRIMARY KEY, body text); CREATE SEQUENCE {name}_s; \
                 INSERT INTO {name} (body) VALUES ('a'); SELECT nextval('{name}_s')"
            )))
            .await
            .unwrap();
        // What Aurora's forwarding refuses: cursors, savepoints, locks, COPY.
        session
            .execute(AssertSqlSafe(format!(
                "BEGIN; LOCK TABLE {name}; SAVEPOINT s; DECLARE c CURSOR FOR SELECT * FROM {name}; FETCH c; \
                 ROLLBACK TO s; COMMIT"
            )))
            .await
            .unwrap();
        let mut copy = session.copy_in_raw(&format!("COPY {name} (body) FROM STDIN")).await.unwrap();
        // More than a stream may have unread, both ways.
        let row = "x".repeat(1 << 16) + "\n";
        for _ in 0..64 {
            copy.send(row.as_bytes()).await.unwrap();
        }
        assert_eq!(copy.finish().await.unwrap(), 64);
        let rows =
            sqlx::query_scalar::<_, String>(AssertSqlSafe(format!("SELECT body FROM {name} ORDER BY id")));
        let rows = rows.fetch_all(&mut session).await.unwrap();
        assert_eq!((rows.len(), rows.iter().map(String::len).sum::<usize>()), (65, 1 + (64 << 16)));
        session.close().await.unwrap();
        let mut near = PgConnection::connect(&endpoint(&cluster, region, "reader")).await.unwrap();
        assert_eq!(value(&mut near, PORT).await, port(&cluster, region), "a reader in {region}");
    }
    // A reader whose standby does not go on is brought elsewhere, and to no standby that is behind.
    let standby = cluster.postmaster("eu-west");
    kill(standby, Signal::SIGSTOP).unwrap();
    let url = endpoint(&cluster, "eu-west", "reader");
    until("readers of a region whose PostgreSQL is frozen are served", || async {
        let connecting = tokio::time::timeout(Duration::from_secs(2), PgConnection::connect(&url)).await;
        let Ok(Ok(mut session)) = connecting else { return false };
        value(&mut session, PORT).await != port(&cluster, "eu-west")
    })
    .await;
    kill(standby, Signal::SIGCONT).unwrap();
    cluster.until_level().await;
}

/// What psql says of a session by `url`.
fn psql(url: &str, sql: &str) -> std::process::Output {
    std::process::Command::new(postgresql("psql")).args(["-wXAtqc", sql, url]).output().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_of_the_reader_begins_no_older_than_the_position_that_it_names() {
    let cluster = with_endpoints(1);
    cluster.configure("endpoints.max_lag = \"60s\"\nendpoints.hold = \"2s\"\n");
    let [replica, node] = [(); 2].map(|()| free_port());
    let lines = format!("postgres = \"127.0.0.1:{replica}\"\nreader_endpoint = \"127.0.0.1:{node}\"");
    cluster.write_node("eu-west", "n1", &lines);
    cluster.start();
    let mut writer = PgConnection::connect(&endpoint(&cluster, "eu-west", "writer")).await.unwrap();
    writer.execute("CREATE TABLE t (id int)").await.unwrap();
    let position = "SELECT pg_current_wal_insert_lsn()::text";
    let [primary, secondary] = ["us-east", "eu-west"].map(|region| port(&cluster, region));
    // Of a URL for the region's endpoint and the node's: that for each alone.
    let after = |lsn: &str| {
        let url = cluster.printed(&["url", "--endpoint", "reader", "--region", "eu-west", "--after", lsn]);
        let (begin, rest) = url.split_once("://").unwrap();
        let (whole, attributes) = rest.split_once('?').unwrap();
        let ((user, hosts), database) =
            whole.rsplit_once('/').map(|(hosts, db)| (hosts.split_once('@').unwrap(), db)).unwrap();
        let attributes = attributes.replacen("127.0.0.1,127.0.0.1", "127.0.0.1", 1);
        let one = |host: &str| format!("{begin}://{user}@{host}/{database}?{attributes}");
        hosts.split(',').map(one).collect::<Vec<String>>()
    };
    // The port that each comes to, and the newest row there.
    let seen = |lsn: &str| -> Vec<(String, i32)> {
        let one = |url: &String| {
            let said = psql(url, "SELECT current_setting('port'), (SELECT max(id) FROM t)");
            assert!(said.status.success(), "{}", text(&said.stderr));
            let said = text(&said.stdout);
            let (port, id) = said.trim().split_once('|').unwrap();
            (port.to_owned(), id.parse().unwrap())
        };
        let urls = after(lsn);
        assert_eq!(urls.len(), 2);
        urls.iter().map(one).collect()
    };
    cluster.until_node_streams("eu-west", "n1").await;
    let mut near = 0;
    for id in 1..=20 {
        writer.execute(AssertSqlSafe(format!("INSERT INTO t VALUES ({id})"))).await.unwrap();
        let lsn = value(&mut writer, position).await;
        let seen = seen(&lsn);
        assert!(seen.iter().all(|(_, newest)| *newest == id), "{id} by {lsn}: {seen:?}");
        near += seen.iter().filter(|(port, _)| *port != primary).count();
    }
    assert!(near >= 20, "of 40 sessions right after a commit {near} were served in the region");

    // Where all that is near stands still, it is brought to the writer, however short that is behind.
    let mut paused = Vec::new();
    for url in [cluster.printed(&["url", "--region", "eu-west"]), cluster.node_url("eu-west", "n1")] {
        let mut session = PgConnection::connect(&url).await.unwrap();
        session.execute("SELECT pg_wal_replay_pause()").await.unwrap();
        let begin = now();
        while value(&mut session, "SELECT pg_get_wal_replay_pause_state()").await != "paused" {
            assert!(begin.elapsed() < PATIENCE);
            pause().await;
        }
        paused.push(session);
    }
    writer.execute("INSERT INTO t VALUES (21)").await.unwrap();
    let lsn = value(&mut writer, position).await;
    assert_eq!(seen(&lsn), [(primary.clone(), 21), (primary.clone(), 21)]);
    let older = seen("0/1");
    assert!(older.iter().all(|(port, newest)| *port != primary && *newest == 20), "{older:?}");
    for session in &mut paused {
        session.execute("SELECT pg_wal_replay_resume()").await.unwrap();
    }
    let near = [secondary, replica.to_string()];
    until("readers come to what is near again", || async {
        seen(&lsn).iter().all(|(port, newest)| near.contains(port) && *newest == 21)
    })
    .await;

    // What is no position is said to be none.
    let wrong = after("0/7").swap_remove(0).replacen("@0-7.", "@0-x.", 1);
    let said = text(&psql(&wrong, "SELECT 1").stderr);
    assert!(said.contains("asks for a position") && said.contains("0-x"), "{said}");
}

/// What clients saw that connect anew for each statement, at the endpoints of these regions in turn.
struct Anew {
    done: Arc<AtomicU64>,
    failed: Arc<std::sync::Mutex<Vec<String>>>,
    slowest_ms: Arc<AtomicU64>,
    _working: Task<()>,
}

impl Anew {
    fn start(urls: Vec<String>) -> Anew {
        let (done, failed, slowest_ms) =
            <(Arc<AtomicU64>, Arc<std::sync::Mutex<Vec<String>>>, Arc<AtomicU64>)>::default();
        let (counting, noting, slowest) = (done.clone(), failed.clone(), slowest_ms.clone());
        let working = Task::spawn("connect anew", async move {
            for url in urls.iter().cycle() {
                let begin = now();
                match PgConnection::connect(url).await {
                    Ok(mut session) => {
                        let standby = session.fetch_one("SELECT pg_is_in_recovery()::text").await;
                        let took = u64::try_from(begin.elapsed().as_millis()).unwrap();
                        slowest.fetch_max(took, Ordering::Relaxed);
                        // A session that was there when its writer stopped ends with it; a new one does not.
                        if let Ok(row) = standby {
                            let standby: String = sqlx::Row::get(&row, 0);
                            assert_eq!(standby, "false");
                            counting.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                    Err(e) if is_ending(&e) => {}
                    Err(e) => noting.lock().unwrap().push(e.to_string()),
                }
                pause().await;
            }
        });
        Anew { done, failed, slowest_ms, _working: working }
    }
}

/// Whether a client met a writer at the very moment at which that was stopped.
fn is_ending(e: &sqlx::Error) -> bool {
    let words = e.to_string();
    [
        "shutting down",
        "administrator command",
        "unexpectedly",
        "early eof",
        "reset by peer",
        "EOF",
        "close_notify",
        "end of file",
        // A client that asks for encryption, where PostgreSQL has none to offer, words an end so.
        "unexpected response from SSLRequest: 0x00",
    ]
    .iter()
    .any(|known| words.contains(known))
}

#[tokio::test(flavor = "multi_thread")]
async fn one_address_takes_clients_to_the_writer_whatever_becomes_of_the_regions() {
    let cluster = with_endpoints(2);
    cluster.configure("lease = \"2s\"\n");
    cluster.start();
    let regions = ["eu-west", "ap-northeast"];
    let urls: Vec<String> = regions.iter().map(|region| endpoint(&cluster, region, "writer")).collect();
    let ledger = Ledger::start_at(urls.clone(), 4).await;
    let anew = Anew::start(urls.clone());
    ledger.until_written(200).await;
    // By agreement, there and back: clients that come meanwhile wait a moment, and none is refused.
    for to in ["eu-west", "us-east", "ap-northeast", "us-east"] {
        cluster.until_level_enough(to).await;
        let _ = cluster.printed(&["promote", "--region", to]);
        ledger.until_written(100).await;
        let mut session = PgConnection::connect(&urls[0]).await.unwrap();
        assert_eq!(value(&mut session, PORT).await, port(&cluster, to));
    }
    let longest = anew.slowest_ms.swap(0, Ordering::Relaxed);
    println!("four switchovers: a new client waited at most {longest} ms");
    assert!(longest < 10_000, "a client was held for {longest} ms");
    // A disaster: the primary's region is gone as a whole.
    cluster.expect(&["does not lead any more", "rolled back"]);
    cluster.until_level_enough("eu-west").await;
    let killed = now();
    cluster.kill("us-east", true).await;
    let _ = cluster.printed(&["promote", "--region", "eu-west", "--mode", "failover"]);
    println!("killed: promoted after {:?}", killed.elapsed());
    ledger.until_written(8).await;
    println!("killed: writes went on after {:?}, all by the same addresses", killed.elapsed());
    ledger.until_written(100).await;
    assert!(anew.done.load(Ordering::Relaxed) > 20, "clients came anew");
    assert_eq!(*anew.failed.lock().unwrap(), Vec::<String>::new(), "no client was refused");
    cluster.start_region("us-east");
    cluster.until_level().await;
    let acknowledged = ledger.acknowledged().await;
    cluster.assert_identical().await;
    acknowledged.assert_in_all(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_of_a_frozen_primary_are_cut_off_once_it_is_shut_out() {
    let cluster = with_endpoints(2);
    cluster.configure("lease = \"2s\"\n");
    cluster.start();
    cluster.expect(&["does not lead any more", "rolled back"]);
    let mut session = PgConnection::connect(&endpoint(&cluster, "eu-west", "writer")).await.unwrap();
    session.execute("CREATE TABLE t (v int)").await.unwrap();
    // A client of the primary's own endpoint, too.
    let mut own = PgConnection::connect(&endpoint(&cluster, "us-east", "writer")).await.unwrap();
    own.execute("INSERT INTO t VALUES (1)").await.unwrap();
    cluster.until_level_enough("eu-west").await;
    // Only PostgreSQL stands still: nothing of it ends a session.
    for process in with_children(cluster.postmaster("us-east")) {
        kill(process, Signal::SIGSTOP).unwrap();
    }
    let output = cluster.run(&["promote", "--region", "eu-west", "--mode", "failover"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    for (of, session) in [("another region", &mut session), ("its own region", &mut own)] {
        let said = tokio::time::timeout(Duration::from_secs(10), session.execute("INSERT INTO t VALUES (2)"));
        let said = said.await.unwrap_or_else(|_| panic!("a session of {of} hangs"));
        assert!(said.is_err(), "{of}: a writer that was shut out answered {said:?}");
    }
    let mut session = PgConnection::connect(&endpoint(&cluster, "ap-northeast", "writer")).await.unwrap();
    assert_eq!(value(&mut session, PORT).await, port(&cluster, "eu-west"));
    assert_eq!(value(&mut session, "SELECT count(*)::text FROM t").await, "1");
    cluster.until_level().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_are_held_only_so_long_and_only_so_many() {
    let cluster = with_endpoints(1);
    cluster.configure("endpoints.hold = \"1s\"\nendpoints.sessions = 3\n");
    cluster.start();
    let url = endpoint(&cluster, "eu-west", "writer");
    let mut sessions = Vec::new();
    for _ in 0..3 {
        sessions.push(PgConnection::connect(&url).await.unwrap());
    }
    // Whoever insists on encryption hears why by the certificate of the region's PostgreSQL.
    for url in [url.clone(), url.replace("verify-full", "disable")] {
        let refused = PgConnection::connect(&url).await.unwrap_err();
        let code = refused.as_database_error().and_then(|e| e.code().map(|code| code.to_string()));
        assert_eq!(code.as_deref(), Some("53300"), "{refused}");
    }
    drop(sessions.pop());
    until("a place is free again", || async { PgConnection::connect(&url).await.is_ok() }).await;
    // More is allowed from now on.
    let file = std::fs::read_to_string(cluster.file()).unwrap();
    std::fs::write(cluster.file(), file.replace("sessions = 3", "sessions = 4")).unwrap();
    let _ = cluster.printed(&["reload"]);
    sessions.push(PgConnection::connect(&url).await.unwrap());
    sessions.push(PgConnection::connect(&url).await.unwrap());
    drop(sessions);
    // Nobody leads: with two regions, that takes a word of an operator.
    cluster.kill("us-east", true).await;
    let begin = now();
    // Sessions of those who have gone keep their places until the region is known to have gone, too.
    until("a client is turned away as nobody leads", || async {
        let refused = PgConnection::connect(&url).await.unwrap_err();
        let error = refused.as_database_error().unwrap();
        let held = error.code().as_deref() == Some("57P03");
        assert!(!held || error.message().contains("us-east"), "it says why: {refused}");
        held
    })
    .await;
    assert!(begin.elapsed() >= Duration::from_secs(1), "it was held");
    cluster.start_region("us-east");
    cluster.until_streams("eu-west").await;
}
