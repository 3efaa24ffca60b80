//! What monitoring is told, by real regions: over HTTP, and to an OTLP server in this process.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use opentelemetry_proto::tonic::common::v1::any_value;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use replicator_tests::collector::Collector;
use replicator_tests::lags::{self, Beats, Relay, Seen};
use replicator_tests::{Cluster, free_port, now, until};
use telemetry::METRICS;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// An attribute of a span; empty where it has none.
fn said(span: &Span, key: &str) -> String {
    let found = span.attributes.iter().find(|attribute| attribute.key == format!("replicator.{key}"));
    match found.and_then(|attribute| attribute.value.as_ref()?.value.as_ref()) {
        Some(any_value::Value::StringValue(text)) => text.clone(),
        _ => String::new(),
    }
}

/// What a sampled batch's trace has of each region, in the order of the way.
const IN_PRIMARY: [&str; 7] = ["batch", "read", "cut", "compress", "append", "quorum", "release"];
const IN_SECONDARY: [&str; 5] = ["receive", "append", "quorum", "feed", "apply"];

/// The spans of each sampled batch, by trace.
fn batches(collector: &Collector) -> BTreeMap<Vec<u8>, Vec<Span>> {
    let mut traces: BTreeMap<Vec<u8>, Vec<Span>> = BTreeMap::new();
    for span in collector.spans.lock().unwrap().iter().filter(|span| !said(span, "end_lsn").is_empty()) {
        traces.entry(span.trace_id.clone()).or_default().push(span.clone());
    }
    traces
}

/// A trace that has all of a primary and of so many secondaries.
fn whole_batch(collector: &Collector, secondaries: usize) -> Option<Vec<Span>> {
    let spans = IN_PRIMARY.len() + secondaries * (1 + IN_SECONDARY.len());
    batches(collector).into_values().find(|trace| trace.len() == spans)
}

/// The regions of a cluster and the ports at which their daemons answer by HTTP.
struct Told {
    cluster: Cluster,
    ports: BTreeMap<&'static str, u16>,
}

impl Told {
    /// A cluster that answers by HTTP and is up; `lines` come first in its file.
    fn up(secondaries: usize, lines: &str) -> Told {
        let told = Told::configured(secondaries, lines, |_| {});
        told.cluster.start();
        told
    }

    /// The same, not up yet, once `configure` has had its way.
    fn configured(secondaries: usize, lines: &str, configure: impl Fn(&Cluster)) -> Told {
        let cluster = Cluster::new(secondaries);
        cluster.configure(lines);
        configure(&cluster);
        let ports: BTreeMap<&'static str, u16> =
            cluster.regions.iter().map(|region| (*region, free_port())).collect();
        for (region, port) in &ports {
            cluster.configure_region(region, &format!("http = \"127.0.0.1:{port}\""));
        }
        Told { cluster, ports }
    }

    /// The status and the body of an answer.
    async fn get(&self, region: &str, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.ports[region])).await.unwrap();
        let request = format!("GET {path} HTTP/1.0\r\nHost: x\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    async fn is(&self, region: &str, path: &str) -> u16 {
        self.get(region, path).await.0
    }

    /// The value of a series in `/metrics` of a region; none when it is not there.
    async fn metric(&self, region: &str, series: &str) -> Option<f64> {
        let (_, text) = self.get(region, "/metrics").await;
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map(|value| value.parse().unwrap())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn load_balancers_are_told_the_truth_and_lag_grows_while_nothing_is_heard() {
    let told = Told::up(2, "");
    let cluster = &told.cluster;
    cluster.until_level().await;
    until("everything is ready", || async {
        told.is("us-east", "/primary").await == 200 && told.is("eu-west", "/replica?lag=1").await == 200
    })
    .await;
    for (path, primary, secondary) in
        [("/livez", 200, 200), ("/readyz", 200, 200), ("/primary", 200, 503), ("/replica", 503, 200)]
    {
        let answers = (told.is("us-east", path).await, told.is("eu-west", path).await);
        assert_eq!(answers, (primary, secondary), "{path}");
    }
    assert_eq!(told.is("eu-west", "/replica?lag=soon").await, 400);
    let lag = "replicator_visible_lag_seconds{region=\"eu-west\"}";
    // Idle: nothing is behind.
    until("nothing is behind", || async { told.metric("us-east", lag).await == Some(0.0) }).await;

    // One region falls silent: its lag is the time since, though nothing is written.
    let (daemon, begin) = (cluster.daemon("eu-west"), now());
    kill(daemon, Signal::SIGSTOP).unwrap();
    let mut last = 0.0;
    while begin.elapsed() < Duration::from_secs(3) {
        let before = begin.elapsed().as_secs_f64();
        let seen = told.metric("us-east", lag).await.unwrap();
        let after = begin.elapsed().as_secs_f64();
        // What it said last may be a report's interval old, and silence counts after 0.3 s.
        let far = before > 0.5 && !(before - 0.2..=after + 0.2).contains(&seen);
        assert!(!far, "{seen} s, after {before} to {after} s of silence");
        if before > 0.5 {
            assert!(seen >= last, "it does not go back: {seen} after {last}");
            last = seen;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(last > 2.5, "{last}");
    assert_eq!(told.is("us-east", "/primary").await, 200, "a majority is left");

    // The other one too: commits are held, and the primary says so.
    let other = cluster.daemon("ap-northeast");
    kill(other, Signal::SIGSTOP).unwrap();
    until("a primary without a lease is none to write to", || async {
        let (status, body) = told.get("us-east", "/primary").await;
        status == 503 && body.contains("a majority of the voters")
    })
    .await;
    let held = "replicator_commits_held{region=\"us-east\",reason=\"lease\"}";
    assert_eq!(told.metric("us-east", held).await, Some(1.0));
    assert_eq!(told.is("us-east", "/livez").await, 200);
    kill(daemon, Signal::SIGCONT).unwrap();
    kill(other, Signal::SIGCONT).unwrap();
    until("all is well again", || async {
        told.is("us-east", "/primary").await == 200 && told.metric("us-east", lag).await == Some(0.0)
    })
    .await;

    // PostgreSQL that takes no connections is not ready, whatever else works.
    kill(cluster.postmaster("eu-west"), Signal::SIGSTOP).unwrap();
    until("a standby that does not answer is not ready", || async {
        told.is("eu-west", "/readyz").await == 503
    })
    .await;
    kill(cluster.postmaster("eu-west"), Signal::SIGCONT).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_is_sent_every_metric_of_the_table_and_a_promotion_as_one_trace() {
    let port = free_port();
    let variables = format!("telemetry.otlp = \"http://127.0.0.1:{port}\"\n");
    // The collector is not there yet: nothing waits for it.
    let told = Told::configured(2, &variables, |cluster| cluster.add_node("us-east", "n1"));
    told.cluster.start();
    let cluster = &told.cluster;
    let collector = Collector::default();
    let _serving = collector.serve(port);
    let mut session = cluster.connect("us-east").await;
    sqlx::raw_sql("CREATE TABLE t AS SELECT generate_series(1, 1000) AS n")
        .execute(&mut session)
        .await
        .unwrap();
    cluster.until_level().await;

    // Right against what PostgreSQL says itself.
    let commits = "SELECT sum(xact_commit)::float8 FROM pg_stat_database";
    let before: f64 = sqlx::query_scalar(commits).fetch_one(&mut session).await.unwrap();
    let series = "replicator_postgres_transactions_total{region=\"us-east\",outcome=\"commit\"}";
    until("the counter has come as far", || async {
        told.metric("us-east", series).await.is_some_and(|seen| seen >= before)
    })
    .await;
    until("positions are PostgreSQL's", || async {
        let flushed: i64 =
            sqlx::query_scalar("SELECT pg_wal_lsn_diff(pg_current_wal_flush_lsn(), '0/0')::int8")
                .fetch_one(&mut cluster.connect("us-east").await)
                .await
                .unwrap();
        #[allow(clippy::cast_precision_loss, reason = "a small cluster")]
        let flushed = flushed as f64;
        let series = ["replicator_durable_position_bytes", "replicator_applied_position_bytes"];
        told.metric("us-east", &format!("{}{{region=\"us-east\"}}", series[0])).await == Some(flushed)
            && told.metric("eu-west", &format!("{}{{region=\"eu-west\"}}", series[1])).await == Some(flushed)
    })
    .await;

    drop(cluster.printed(&["volume", "scrub", "--region", "us-east"]));
    cluster.until_level_enough("eu-west").await;
    drop(cluster.printed(&["promote", "--region", "eu-west", "--json"]));
    until("every metric of the table has come", || async {
        let names = collector.names.lock().unwrap();
        let missing: Vec<&str> =
            METRICS.iter().map(|metric| metric.name).filter(|name| !names.contains(*name)).collect();
        if !missing.is_empty() {
            println!("missing: {missing:?}");
        }
        missing.is_empty()
    })
    .await;
    // Batches have traces of their own.
    let is_root = |span: &&Span| span.name == "switchover to eu-west" && span.parent_span_id.is_empty();
    let steps = |spans: &[Span]| -> Option<(Span, Vec<Span>)> {
        let root = spans.iter().find(is_root)?;
        let others = spans.iter().filter(|span| span.span_id != root.span_id);
        let steps: Vec<Span> = others.filter(|span| span.trace_id == root.trace_id).cloned().collect();
        (steps.len() > 1).then(|| (root.clone(), steps))
    };
    until("the promotion has come as a trace", || async {
        steps(&collector.spans.lock().unwrap()).is_some()
    })
    .await;
    let (root, steps) = steps(&collector.spans.lock().unwrap()).unwrap();
    for step in &steps {
        assert_eq!(step.parent_span_id, root.span_id);
        assert!(step.start_time_unix_nano >= root.start_time_unix_nano, "{step:?}");
        assert!(step.end_time_unix_nano <= root.end_time_unix_nano, "{step:?}");
    }
    // The lags go on under the same names; the old primary measures none any more.
    until("the new primary measures", || async {
        told.metric("eu-west", "replicator_visible_lag_seconds{region=\"us-east\"}").await.is_some()
    })
    .await;
    assert_eq!(told.metric("us-east", "replicator_visible_lag_seconds{region=\"ap-northeast\"}").await, None);
    assert_eq!((told.is("us-east", "/primary").await, told.is("eu-west", "/primary").await), (503, 200));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sampled_batch_is_one_trace_of_all_regions_with_its_lsns_and_times_in_order() {
    let port = free_port();
    let began = now();
    let told = Told::up(2, &format!("telemetry.otlp = \"http://127.0.0.1:{port}\"\n"));
    let cluster = &told.cluster;
    let collector = Collector::default();
    let _serving = collector.serve(port);
    cluster.until_level().await;
    let mut session = cluster.connect("us-east").await;
    sqlx::raw_sql("CREATE TABLE t (n int)").execute(&mut session).await.unwrap();
    let session = tokio::sync::Mutex::new(session);
    until("a trace has all of three regions", || async {
        let mut session = session.lock().await;
        for _ in 0..20 {
            sqlx::raw_sql("INSERT INTO t VALUES (1)").execute(&mut *session).await.unwrap();
        }
        whole_batch(&collector, 2).is_some()
    })
    .await;
    let trace = whole_batch(&collector, 2).unwrap();
    let of = |region: &str, name: &str| {
        let found: Vec<&Span> =
            trace.iter().filter(|span| said(span, "region") == region && span.name == name).collect();
        assert_eq!(found.len(), 1, "{region}: {name}: {trace:#?}");
        found[0].clone()
    };
    let root = of("us-east", "batch");
    assert!(root.parent_span_id.is_empty(), "{root:?}");
    // Redo of PostgreSQL's, of one epoch, and the same in all spans.
    let lsns = (said(&root, "begin_lsn"), said(&root, "end_lsn"), said(&root, "epoch"));
    let (begin, end): (bool, bool) =
        sqlx::query_as("SELECT $1::pg_lsn < $2::pg_lsn, $2::pg_lsn <= pg_current_wal_flush_lsn()")
            .bind(&lsns.0)
            .bind(&lsns.1)
            .fetch_one(&mut *session.lock().await)
            .await
            .unwrap();
    assert!(begin && end, "{lsns:?}");
    for span in &trace {
        assert_eq!((said(span, "begin_lsn"), said(span, "end_lsn"), said(span, "epoch")), lsns);
        assert!(span.end_time_unix_nano >= span.start_time_unix_nano, "{span:?}");
    }
    for secondary in ["eu-west", "ap-northeast"] {
        let sent: Vec<&Span> = trace.iter().filter(|span| said(span, "to") == secondary).collect();
        let [ship] = sent[..] else { panic!("{trace:#?}") };
        assert_eq!((ship.name.as_str(), said(ship, "region")), ("ship", "us-east".into()));
        assert_eq!((ship.kind(), of(secondary, "receive").kind()), (SpanKind::Producer, SpanKind::Consumer));
        let here = IN_PRIMARY[1..6].iter().map(|name| of("us-east", name));
        let there = IN_SECONDARY.iter().map(|name| of(secondary, name));
        let way: Vec<Span> = here.chain([ship.clone()]).chain(there).collect();
        for (before, after) in way.iter().zip(&way[1..]) {
            assert!(before.start_time_unix_nano <= after.start_time_unix_nano, "{before:?} {after:?}");
        }
        for span in &way {
            let parent = if said(span, "region") == secondary { ship } else { &root };
            assert_eq!(span.parent_span_id, parent.span_id, "{span:?}");
        }
    }
    // Many batches were cut, of which at most one a second was sampled.
    let (sampled, seconds) = (batches(&collector).len(), began.elapsed().as_secs());
    assert!(sampled as u64 <= seconds + 1, "{sampled} in {seconds} s");
    let cut = told.metric("us-east", "replicator_batches_total{region=\"us-east\"}").await.unwrap();
    // How many are cut in that time is the machine's.
    let sampled = f64::from(u32::try_from(sampled).unwrap());
    assert!(cut > 4.0 * sampled, "{sampled} of {cut}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemons_log_is_json_where_the_file_says_so() {
    let cluster = Cluster::new(2);
    cluster.configure("logs.format = \"json\"\n");
    cluster.start();
    cluster.until_level().await;
    cluster.until_level_enough("eu-west").await;
    let began = chrono::DateTime::from_timestamp_micros(runtime::clock::wall_us()).unwrap();
    drop(cluster.printed(&["promote", "--region", "eu-west", "--json"]));
    until("the old primary streams", || async {
        cluster.status()["regions"].as_array().unwrap().iter().all(|region| region["state"] == "streaming")
    })
    .await;
    let mut all = Vec::new();
    for region in &cluster.regions {
        let log = std::fs::read_to_string(cluster.region(region).join("daemon.log")).unwrap();
        let mut last = None;
        for line in log.lines() {
            let parsed: serde_json::Value =
                serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
            let text = |key: &str| parsed[key].as_str().unwrap_or_else(|| panic!("{key}: {line}")).to_owned();
            assert_eq!(text("region"), *region, "{line}");
            let (time, level) = (text("time"), text("level"));
            assert!(["TRACE", "DEBUG", "INFO", "WARN", "ERROR"].contains(&level.as_str()), "{line}");
            assert!(!text("target").is_empty() && !text("message").is_empty(), "{line}");
            let at = chrono::DateTime::parse_from_rfc3339(&time).unwrap();
            assert!(time.len() == "2026-11-29T08:30:11.204518Z".len() && time.ends_with('Z'), "{line}");
            assert!(last.is_none_or(|last| at >= last - chrono::TimeDelta::seconds(1)), "{line}");
            last = Some(at);
            all.push((at, parsed));
        }
        assert!(last.is_some(), "{region}");
    }
    let has = |key: &str| all.iter().filter(|(_, line)| !line[key].is_null()).count();
    assert!(has("epoch") > 10 && has("lsn") > 2 && has("peer") > 2, "{all:#?}");
    assert!(all.iter().any(|(at, line)| *at > began && line["epoch"] == 2), "the promotion's epoch");
    // The coordinator's lines are of one trace, the one that the collector would be sent.
    let traces: BTreeSet<&str> = all.iter().filter_map(|(_, line)| line["trace_id"].as_str()).collect();
    let traces: Vec<&str> = traces.into_iter().filter(|id| !id.trim_matches('0').is_empty()).collect();
    assert!(
        traces.len() == 1 && traces[0].len() == 32 && traces[0].starts_with("0000000000000002"),
        "{traces:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_connections_that_say_nothing_keep_no_health_check_out() {
    let told = Told::up(1, "");
    told.cluster.until_level().await;
    until("it is ready", || async { told.is("us-east", "/primary").await == 200 }).await;
    let mut idle = Vec::new();
    for number in 0..1_000 {
        idle.push(TcpStream::connect(("127.0.0.1", told.ports["us-east"])).await.unwrap());
        if number % 50 == 49 {
            for path in ["/livez", "/primary"] {
                let asked = tokio::time::timeout(Duration::from_secs(5), told.is("us-east", path)).await;
                assert_eq!(asked, Ok(200), "{path} beside {number}");
            }
        }
    }
    // The daemon has kept few, and closes those as well when they go on saying nothing.
    let daemon = told.cluster.daemon("us-east");
    let sockets = || {
        let files = std::fs::read_dir(format!("/proc/{daemon}/fd")).unwrap();
        files
            .filter_map(|file| std::fs::read_link(file.ok()?.path()).ok())
            .filter(|target| target.to_string_lossy().starts_with("socket:"))
            .count()
    };
    let many = sockets();
    assert!(many < 300, "{many} sockets");
    for (number, stream) in idle.iter_mut().enumerate() {
        let closed = tokio::time::timeout(Duration::from_secs(60), stream.read(&mut [0; 512])).await;
        assert!(matches!(closed, Ok(Ok(0) | Err(_))), "{number}: {closed:?}");
    }
    assert_eq!(told.is("us-east", "/primary").await, 200);
}

/// How far what was said is from the truth, the 95th of a hundred, milliseconds.
fn off_ms(seen: &[Seen]) -> f64 {
    let mut off: Vec<f64> = seen.iter().map(|seen| seen.off_ms().abs()).collect();
    off.sort_by(f64::total_cmp);
    off[(off.len() - 1) * 95 / 100]
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lag_is_the_truth_in_each_state_and_a_promotion_makes_no_gap_in_it() {
    let relayed = free_port();
    let told = Told::configured(2, "", |cluster| {
        cluster.configure_region("eu-west", &format!("advertise = \"127.0.0.1:{relayed}\""));
    });
    let relay = Relay::open(relayed, told.cluster.address("eu-west")).await;
    told.cluster.start();
    let cluster = &told.cluster;
    cluster.until_level().await;
    let beats = Beats::begin(cluster.connect("us-east").await).await;
    let secondary = tokio::sync::Mutex::new(cluster.connect("eu-west").await);
    until("the table has come", || async {
        sqlx::query("SELECT FROM beat LIMIT 1").execute(&mut *secondary.lock().await).await.is_ok()
    })
    .await;
    let mut secondary = secondary.into_inner();
    let (port, period) = (told.ports["us-east"], Duration::from_secs(4));
    // Generous: other tests may have the processors. The benchmark says how near it is.
    let near_ms = 250.0;
    let seen = lags::compare(&beats, &mut secondary, port, "eu-west", period).await;
    assert!(off_ms(&seen) < near_ms, "while it is written: {} {seen:?}", off_ms(&seen));
    relay.cut(true);
    let seen = lags::compare(&beats, &mut secondary, port, "eu-west", period).await;
    let longest = seen.iter().map(|seen| seen.truth_ms[0]).fold(0.0, f64::max);
    assert!(off_ms(&seen) < near_ms && longest > 3_000.0, "cut: {} {seen:?}", off_ms(&seen));
    relay.cut(false);
    cluster.until_level().await;
    drop(beats);
    until("all rows are there", || async {
        told.metric("us-east", &lags::visible("eu-west")).await == Some(0.0)
    })
    .await;
    let seen = lags::compare(&Beats::none(), &mut secondary, port, "eu-west", period).await;
    assert!(off_ms(&seen) < near_ms, "idle: {} {seen:?}", off_ms(&seen));

    // Whoever leads, each region's lag is told by somebody.
    cluster.until_level_enough("eu-west").await;
    let ports: Vec<u16> = told.ports.values().copied().collect();
    let promoting = async {
        let promoted = runtime::task::blocking("promote", {
            let promote = cluster.command(&["promote", "--region", "eu-west"]);
            move || {
                let mut promote = promote;
                promote.output().unwrap().status.success()
            }
        });
        assert!(promoted.await.unwrap());
    };
    let mut gaps = BTreeMap::new();
    let mut promoting = std::pin::pin!(promoting);
    let mut over = None;
    let mut last: BTreeMap<&str, _> = cluster.regions.iter().map(|region| (*region, now())).collect();
    while over.is_none_or(|over: tokio::time::Instant| over.elapsed() < Duration::from_secs(5)) {
        for region in &cluster.regions {
            let name = lags::visible(region);
            for port in &ports {
                if lags::series(*port, &name).await.is_some() {
                    let gap = last.insert(region, now()).unwrap().elapsed();
                    let longest = gaps.entry(*region).or_insert(gap);
                    *longest = gap.max(*longest);
                    break;
                }
            }
        }
        tokio::select! {
            () = &mut promoting, if over.is_none() => over = Some(now()),
            () = tokio::time::sleep(Duration::from_millis(20)) => {}
        }
    }
    println!("the longest gaps: {gaps:?}");
    assert!(gaps.len() == 3 && gaps.values().all(|gap| *gap < Duration::from_secs(5)), "{gaps:?}");
    assert!(last.values().all(|last| last.elapsed() < Duration::from_secs(2)), "each goes on");
}
