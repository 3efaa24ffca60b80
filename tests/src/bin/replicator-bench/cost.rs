//! What a transaction costs each process on the way of its redo, counted and not timed: processor time,
//! context switches and, where strace is installed, system calls. The counts hardly depend on how busy the
//! machine is.

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};

use replicator_tests::bench::{Stock, pgbench_init, pgbench_transactions};
use replicator_tests::{Cluster, text};

/// The clients of pgbench.
const CLIENTS: u64 = 8;

/// Transactions before anything is counted.
const WARM_UP: u64 = 2_000;

/// System calls that are not worth a line: fewer than one in so many transactions.
const RARE: f64 = 0.02;

/// Counts of a process and its threads.
#[derive(Debug, Clone, Copy, Default)]
struct Used {
    processor_us: f64,
    switches: f64,
}

/// A process that is looked at, and its name in the tables.
type Process = (String, u32);

/// Counts over `transactions`, for a cluster with `secondaries` and for stock PostgreSQL with as many
/// standbys.
pub async fn run(secondaries: usize, transactions: u64) {
    let transactions = transactions.div_ceil(CLIENTS) * CLIENTS;
    println!(
        "pgbench: TPC-B, -c {CLIENTS} -s 20, {transactions} transactions a count, one primary and {secondaries} others.\n"
    );
    let stock = Stock::start(secondaries).await;
    let url = stock.url(0);
    pgbench_init(&url);
    let _ = pgbench_transactions(&url, CLIENTS, WARM_UP);
    let mut processes = children(stock.postmaster_of(0), "walsender");
    for index in 1..=secondaries {
        processes.extend(children(stock.postmaster_of(index), "walreceiver"));
    }
    heading("stock");
    count(&processes, &url, transactions);
    drop(stock);

    let cluster = Cluster::for_bench(secondaries);
    cluster.start();
    let url = cluster.clear_url("us-east");
    pgbench_init(&url);
    let _ = pgbench_transactions(&url, CLIENTS, WARM_UP);
    cluster.until_level().await;
    let pid = |region: &str| u32::try_from(cluster.daemon(region).as_raw()).unwrap();
    let daemons: Vec<Process> =
        cluster.regions.iter().map(|region| (format!("daemon of {region}"), pid(region))).collect();
    let walsender = u32::try_from(cluster.postmaster("us-east").as_raw()).unwrap();
    let mut processes = daemons.clone();
    processes.extend(children(walsender, "walsender"));
    for region in &cluster.regions[1..] {
        let postmaster = u32::try_from(cluster.postmaster(region).as_raw()).unwrap();
        processes.extend(children(postmaster, "walreceiver"));
    }
    heading("ours");
    count(&processes, &url, transactions);
    cluster.until_level().await;
    println!("\nsystem calls a transaction, by strace; it slows what it counts");
    for (name, pid) in daemons.iter().take(2) {
        match trace(*pid) {
            Some(tracing) => {
                let tps = pgbench_transactions(&url, CLIENTS, transactions);
                let calls = calls(tracing);
                println!("\n{name}, at {tps:.0} transactions a second");
                let mut all = 0.0;
                for (call, number) in &calls {
                    let each = number / float(transactions);
                    all += each;
                    if each > RARE {
                        println!("  {call:24} {each:>10.2}");
                    }
                }
                println!("  {:24} {all:>10.2}", "all");
            }
            None => println!("strace is not there"),
        }
    }
}

fn heading(what: &str) {
    println!("{what:34} {:>12} {:>20}", "us of processor", "context switches");
}

/// Runs pgbench and prints what each process used of a transaction.
fn count(processes: &[Process], url: &str, transactions: u64) {
    let before: Vec<Used> = processes.iter().map(|(_, pid)| used(*pid)).collect();
    let tps = pgbench_transactions(url, CLIENTS, transactions);
    for ((name, pid), before) in processes.iter().zip(before) {
        let after = used(*pid);
        // The walsender of a seed may have ended meanwhile.
        if after.processor_us < before.processor_us {
            continue;
        }
        let each = |after: f64, before: f64| (after - before) / float(transactions);
        let (us, switches) =
            (each(after.processor_us, before.processor_us), each(after.switches, before.switches));
        println!("  {name:32} {us:>15.1} {switches:>20.2}");
    }
    println!("{tps:>46.0} transactions a second");
}

fn float(number: u64) -> f64 {
    f64::from(u32::try_from(number).unwrap_or(u32::MAX))
}

/// What the threads of a process have used since they began.
fn used(pid: u32) -> Used {
    let mut used = Used::default();
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let read = |file: &str| std::fs::read_to_string(task.path().join(file)).unwrap_or_default();
        let nanoseconds: f64 =
            read("schedstat").split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or_default();
        used.processor_us += nanoseconds / 1000.0;
        for line in read("status").lines().filter(|line| line.contains("_ctxt_switches:")) {
            used.switches += line.split_whitespace().last().and_then(|n| n.parse().ok()).unwrap_or(0.0);
        }
    }
    used
}

/// The processes of a postmaster that are of a kind.
fn children(postmaster: u32, kind: &str) -> Vec<Process> {
    let path = format!("/proc/{postmaster}/task/{postmaster}/children");
    let pids = std::fs::read_to_string(path).unwrap_or_default();
    let is_kind =
        |pid: &u32| text(&std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default()).contains(kind);
    let pids = pids.split_whitespace().filter_map(|pid| pid.parse().ok()).filter(is_kind);
    pids.map(|pid| (kind.to_owned(), pid)).collect()
}

/// A running strace of a process; none where there is no strace.
fn trace(pid: u32) -> Option<Child> {
    let mut command = Command::new("strace");
    command.args(["-f", "-c", "-q", "-p", &pid.to_string()]);
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().ok()?;
    // It has attached to all threads once each of them is traced.
    let traced = || {
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
        let status = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("status"));
        tasks.filter_map(|task| status(task).ok()).all(|status| !status.contains("TracerPid:\t0"))
    };
    while !traced() {
        std::thread::yield_now();
    }
    Some(child)
}

/// Ends a strace; what it counted, the most frequent first.
fn calls(tracing: Child) -> Vec<(String, f64)> {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(tracing.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    let output = tracing.wait_with_output().unwrap();
    let mut calls: BTreeMap<String, f64> = BTreeMap::new();
    for line in text(&output.stderr).lines() {
        // % time, seconds, microseconds a call, calls, errors where there were any, the name.
        let fields: Vec<&str> = line.split_whitespace().collect();
        if let [share, _, _, number, .., name] = fields[..]
            && share.parse::<f64>().is_ok()
            && name != "total"
            && let Ok(number) = number.parse::<f64>()
        {
            calls.insert(name.to_owned(), number);
        }
    }
    let mut calls: Vec<(String, f64)> = calls.into_iter().collect();
    calls.sort_by(|a, b| b.1.total_cmp(&a.1));
    calls
}
