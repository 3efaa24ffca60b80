//! What it costs the writer that everything is told: metrics and traces to a collector, metrics to a scraper,
//! the database's load, logs as JSON.

use std::time::Duration;

use replicator_tests::bench::{median, pgbench_init, pgbench_with, spent_seconds};
use replicator_tests::collector::Collector;
use replicator_tests::{Cluster, free_port, lags};
use runtime::task::Task;

/// How often the scraper asks.
const SCRAPE: Duration = Duration::from_secs(5);

/// Two clusters of three regions side by side, one of which tells everything; `rounds` times in turn, for
/// `seconds` each, `pgbench` with eight clients.
pub async fn run(rounds: u64, seconds: u64) {
    println!(
        "pgbench -s 20 -c 8, {rounds} rounds of {seconds} s in turn, two clusters of three regions on this machine.\n"
    );
    let silent = Cluster::for_bench(2);
    silent.configure("telemetry.load = false\n");
    silent.start();
    let (collector, otlp, http) = (Collector::default(), free_port(), free_port());
    let _collecting = collector.serve(otlp);
    let telling = Cluster::for_bench(2);
    telling.configure(&format!(
        "telemetry.otlp = \"http://127.0.0.1:{otlp}\"\ntelemetry.load = true\nlogs.format = \"json\"\n"
    ));
    for region in &telling.regions {
        let port = if *region == "us-east" { http } else { free_port() };
        telling.configure_region(region, &format!("http = \"127.0.0.1:{port}\""));
    }
    telling.start();
    let _scraping = Task::spawn("a scraper", async move {
        loop {
            let _ = lags::series(http, "replicator_epoch").await;
            tokio::time::sleep(SCRAPE).await;
        }
    });
    in_turn([&silent, &telling], ["telemetry off", "on"], rounds, seconds).await;
    let (metrics, spans) = (collector.names.lock().unwrap().len(), collector.spans.lock().unwrap().len());
    println!("\nthe collector was sent {metrics} metrics and {spans} spans meanwhile");
}

/// Measures two clusters in turn, and shows the ratios of each round.
pub async fn in_turn(clusters: [&Cluster; 2], names: [&str; 2], rounds: u64, seconds: u64) {
    let urls = clusters.map(|cluster| cluster.clear_url("us-east"));
    urls.iter().for_each(|url| pgbench_init(url));
    println!("{:34} {:>12} {:>12} {:>22}", "", names[0], names[1], "on / off, of each round");
    for (what, arguments) in [("select-only", &["-S", "-M", "prepared"][..]), ("TPC-B", &[])] {
        let (mut tps, mut spent) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
        for round in 0..rounds {
            let length = seconds.to_string();
            let arguments = [arguments, &["-T", &length]].concat();
            // Each is first as often as the other.
            for which in if round % 2 == 0 { [0, 1] } else { [1, 0] } {
                let (url, arguments) =
                    (urls[which].clone(), arguments.iter().map(ToString::to_string).collect::<Vec<_>>());
                let before = spent_seconds(clusters[which]);
                let measured = runtime::task::blocking("pgbench", move || {
                    pgbench_with(&url, 8, &arguments.iter().map(String::as_str).collect::<Vec<_>>())
                });
                let measured = measured.await.expect("it runs to its end");
                let transactions = measured * f64::from(u32::try_from(seconds).unwrap());
                spent[which].push((spent_seconds(clusters[which]) - before) * 1e6 / transactions);
                tps[which].push(measured);
            }
        }
        show(&format!("{what}, transactions a second"), tps);
        show(&format!("{what}, processor µs for one"), spent);
    }
}

/// The medians of both, and the ratio of each round.
fn show(what: &str, [off, on]: [Vec<f64>; 2]) {
    let mut ratios: Vec<f64> = on.iter().zip(&off).map(|(on, off)| on / off).collect();
    ratios.sort_by(f64::total_cmp);
    let (least, middle, most) = (ratios[0], ratios[ratios.len() / 2], ratios[ratios.len() - 1]);
    let [off, on] = [off, on].map(median);
    println!("{what:34} {off:>12.0} {on:>12.0}   {middle:.3}x ({least:.3} to {most:.3})");
}
