//! What PostgreSQL is busy with stands at the top of `replicator load`, under its right name, within seconds.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use replicator_tests::{Cluster, free_port, has_extension, now, pause, text, until};
use runtime::task::Task;
use serde_json::Value;
use sqlx::{Connection, PgConnection};

/// How long after its begin something stands at the top.
const SOON: Duration = Duration::from_secs(5);

/// `load --json` of a region over the last seconds, cut by `by`.
fn load(cluster: &Cluster, region: &str, since: &str, by: &str) -> Value {
    let printed = cluster.printed(&["load", "--region", region, "--since", since, "--by", by, "--json"]);
    serde_json::from_str(&printed).unwrap()
}

/// A session that runs `statement`, which does not end by itself, under this name, until it is dropped.
async fn busy(cluster: &Cluster, region: &str, application: &str, statement: &'static str) -> Task<()> {
    let url = cluster.printed(&["url", "--region", region]);
    let mut session = PgConnection::connect(&format!("{url}&application_name={application}")).await.unwrap();
    Task::spawn("a busy session", async move {
        let _ = sqlx::raw_sql(statement).execute(&mut session).await;
    })
}

/// Waits until `name` is at the top of the region's last seconds, cut by each of `cuts`; it must be there
/// soon.
async fn stands_at_the_top(cluster: &Cluster, region: &str, cuts: &[(&str, &str)]) {
    let begin = now();
    loop {
        let tops: Vec<Value> =
            cuts.iter().map(|(by, _)| load(cluster, region, "2s", by)["top"][0].clone()).collect();
        let named = |(top, (_, name)): (&Value, &(&str, &str))| top["name"] == *name;
        if tops.iter().zip(cuts).all(named) {
            println!("{cuts:?}: after {:.1} s", begin.elapsed().as_secs_f64());
            return;
        }
        assert!(
            begin.elapsed() < SOON,
            "{cuts:?} after {:?}: {tops:#?}\n{}",
            begin.elapsed(),
            cluster.logs()
        );
        pause().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_waited_for_and_what_runs_stand_at_the_top_under_their_names() {
    if !has_extension("pg_stat_statements") {
        println!("not tested: this PostgreSQL comes without pg_stat_statements");
        return;
    }
    let cluster = Cluster::new(1);
    let port = free_port();
    cluster.configure("postgresql.settings = { shared_preload_libraries = \"pg_stat_statements\" }\n");
    cluster.configure_region("us-east", &format!("http = \"127.0.0.1:{port}\""));
    cluster.start();
    let mut writer = cluster.connect("us-east").await;
    let made = "CREATE TABLE t (n int PRIMARY KEY, m int); INSERT INTO t VALUES (1, 0); CREATE EXTENSION pg_stat_statements";
    sqlx::raw_sql(made).execute(&mut writer).await.unwrap();
    cluster.until_level().await;

    // One session holds a row; three want it.
    let mut holder = cluster.connect("us-east").await;
    sqlx::raw_sql("BEGIN; UPDATE t SET m = 1 WHERE n = 1").execute(&mut holder).await.unwrap();
    let wanted = "UPDATE t SET m = 42 WHERE n = 1";
    let mut waiting = Vec::new();
    for _ in 0..3 {
        waiting.push(busy(&cluster, "us-east", "shop", wanted).await);
    }
    let shape = "UPDATE t SET m = ? WHERE n = ?";
    let cuts = [("statement", shape), ("application", "shop"), ("user", "postgres"), ("host", "127.0.0.1")];
    stands_at_the_top(&cluster, "us-east", &cuts).await;
    let waits = load(&cluster, "us-east", "3s", "wait");
    let name = waits["top"][0]["name"].as_str().unwrap();
    assert!(name.starts_with("Lock:"), "{waits:#}");
    assert_eq!(waits["top"][0]["with"][0]["name"], shape, "{waits:#}");
    sqlx::raw_sql("ROLLBACK").execute(&mut holder).await.unwrap();
    drop(waiting);

    // Slow, but it needs nothing: two sessions, so that they are more than what another test may leave over.
    let sleeping = [
        busy(&cluster, "us-east", "report", "SELECT pg_sleep(3600)").await,
        busy(&cluster, "us-east", "report", "SELECT pg_sleep(1800)").await,
    ];
    let cuts = [("statement", "SELECT pg_sleep(?)"), ("wait", "Timeout:PgSleep"), ("application", "report")];
    stands_at_the_top(&cluster, "us-east", &cuts).await;
    end(&cluster, "us-east").await;
    drop(sleeping);

    // On a standby: it needs a processor, and nothing else.
    let counting = busy(
        &cluster,
        "eu-west",
        "count",
        "SELECT sum(n) FROM (SELECT generate_series(1::bigint, 100000000000) AS n) s",
    )
    .await;
    let shape = "SELECT sum(n) FROM (SELECT generate_series(?::bigint, ?) AS n) s";
    stands_at_the_top(
        &cluster,
        "eu-west",
        &[("statement", shape), ("wait", "CPU"), ("application", "count")],
    )
    .await;
    end(&cluster, "eu-west").await;
    drop(counting);

    // The daemon's own sessions are none of the load: the newest seconds of a region at rest have none.
    let begin = now();
    while load(&cluster, "us-east", "1s", "application")["average"] != 0.0 {
        assert!(
            begin.elapsed() < Duration::from_secs(30),
            "{:#}",
            load(&cluster, "us-east", "2s", "application")
        );
        pause().await;
    }
    // Five looks take five seconds: everything above may have taken less.
    let begin = now();
    let hour = loop {
        let hour = load(&cluster, "us-east", "1h", "statement");
        if hour["looks"].as_u64().unwrap() >= 5 {
            break hour;
        }
        assert!(begin.elapsed() < Duration::from_secs(30), "{hour:#}");
        pause().await;
    };
    assert!(hour["machine"]["memory_bytes"].as_u64().unwrap() > 0 && hour["cores"].as_u64().unwrap() > 0);
    assert!(hour["points"].as_array().unwrap().len() <= 240, "{hour:#}");
    let table = cluster.printed(&["load", "--by", "statement"]);
    assert!(table.contains("sessions active on average") && table.contains("pg_sleep(?)"), "{table}");
    println!("{table}");

    // Statements have PostgreSQL's own number here, and what it counts of them is told.
    assert!(hour["top"][0]["query_id"].is_string(), "{hour:#}");
    let begin = now();
    while load(&cluster, "us-east", "1m", "statement")["statements"].as_array().unwrap().is_empty() {
        assert!(begin.elapsed() < Duration::from_secs(60), "{}", cluster.logs());
        pause().await;
    }

    // The page is told the same; a minute of it by two moments.
    let (status, page) = get(port, "by=statement&since=3600");
    let page: Value = serde_json::from_str(&page).unwrap();
    assert_eq!((status, &page["region"], &page["by"]), (200, &hour["region"], &hour["by"]));
    assert!(page["looks"].as_u64() >= hour["looks"].as_u64(), "{page:#}");
    let to_s = page["to_s"].as_i64().unwrap();
    let (_, minute) = get(port, &format!("from={}&to={to_s}", to_s - 60));
    let minute: Value = serde_json::from_str(&minute).unwrap();
    assert_eq!((minute["step_s"].as_i64(), minute["to_s"].as_i64()), (Some(1), Some(to_s)));
    assert_eq!((get(port, "by=color").0, get(port, "since=-1").0), (400, 400));

    // What is kept is the owner's alone.
    let kept = cluster.region("us-east").join("load");
    for file in std::fs::read_dir(&kept).unwrap() {
        assert_eq!(file.unwrap().metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }
    // A daemon that is killed goes on with what it had.
    let before = hour["looks"].as_u64().unwrap();
    cluster.kill("us-east", false).await;
    cluster.start();
    let begin = now();
    while load(&cluster, "us-east", "1h", "wait")["looks"].as_u64().unwrap() <= before {
        assert!(begin.elapsed() < Duration::from_secs(30), "{:#}", load(&cluster, "us-east", "1h", "wait"));
        pause().await;
    }
}

/// What the page is answered: the status and the body.
fn get(port: u16, query: &str) -> (u16, String) {
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    let request = format!("GET /page/load.json?{query} HTTP/1.0\r\nHost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// Ends the busy sessions of a region.
async fn end(cluster: &Cluster, region: &str) {
    let all = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'client backend' \
               AND application_name IN ('shop', 'report', 'count')";
    sqlx::raw_sql(all).execute(&mut cluster.connect(region).await).await.unwrap();
}

/// A session that froze is given up and another one takes its place; where looking is turned off, nothing is
/// kept, and a question is refused with the reason.
#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_session_is_replaced_by_one_and_nobody_looks_where_that_is_turned_off() {
    let cluster = Cluster::up(1);
    let looks = || load(&cluster, "eu-west", "1h", "wait")["looks"].as_u64().unwrap();
    let more = async |count: u64| {
        let (before, begin) = (looks(), now());
        while looks() < before + count {
            assert!(begin.elapsed() < Duration::from_secs(30), "{}", cluster.logs());
            pause().await;
        }
    };
    more(3).await;
    let lookers = "SELECT pid FROM pg_stat_activity WHERE application_name = 'replicator_watch' \
                   AND query LIKE '%fastpath%'";
    let mut session = cluster.connect("eu-west").await;
    let frozen: Vec<i32> = sqlx::query_scalar(lookers).fetch_all(&mut session).await.unwrap();
    assert_eq!(frozen.len(), 1);
    let process = nix::unistd::Pid::from_raw(frozen[0]);
    kill(process, Signal::SIGSTOP).unwrap();
    more(3).await;
    let both: Vec<i32> = sqlx::query_scalar(lookers).fetch_all(&mut session).await.unwrap();
    assert_eq!(both.len(), 2, "the one that froze, and one in its place");
    kill(process, Signal::SIGCONT).unwrap();
    until("the one that froze is gone", || async {
        let url = cluster.printed(&["url", "--region", "eu-west"]);
        let mut session = PgConnection::connect(&url).await.unwrap();
        sqlx::query_scalar::<_, i32>(lookers).fetch_all(&mut session).await.unwrap().len() == 1
    })
    .await;
    drop(session);
    drop(cluster);

    let cluster = Cluster::new(1);
    cluster.configure("telemetry.load = false\n");
    cluster.start();
    let refused = cluster.run(&["load", "--region", "us-east"]);
    assert!(
        !refused.status.success() && text(&refused.stderr).contains("load = false"),
        "{}",
        text(&refused.stderr)
    );
    assert!(!cluster.region("us-east").join("load").exists());
}
