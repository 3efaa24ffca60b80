//! What the benchmarks share: pgbench, and stock PostgreSQL as the baseline.

#![allow(clippy::unwrap_used, reason = "a benchmark ends where it fails")]

use std::ops::Range;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use postgres::instance::account::Account;

use crate::{Cluster, free_port, postgresql, text, with_children};

/// The middle one of `values`, which are not none.
#[must_use]
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Makes pgbench's tables, scale 20.
pub fn pgbench_init(url: &str) {
    let made = Command::new(postgresql("pgbench")).args(["-i", "-q", "-s", "20", url]).output().unwrap();
    assert!(made.status.success(), "{}", text(&made.stderr));
}

/// Transactions a second and the 95th percentile of their latency; calls `meanwhile` again and again while it
/// runs.
pub async fn pgbench(url: &str, seconds: u64, mut meanwhile: impl AsyncFnMut()) -> (f64, f64) {
    let directory = tempfile::tempdir().unwrap();
    let program = postgresql("pgbench");
    let mut command = tokio::process::Command::new(&program);
    let seconds = seconds.to_string();
    command.args(["-c", "8", "-j", "2", "-T", &seconds, "-l", url]).current_dir(directory.path());
    let mut running = std::pin::pin!(command.output());
    let output = loop {
        tokio::select! {
            output = &mut running => break output.unwrap(),
            () = tokio::time::sleep(Duration::from_millis(500)) => meanwhile().await,
        }
    };
    let report = text(&output.stdout);
    let tps = report.lines().find_map(|l| l.strip_prefix("tps = ")?.split(' ').next()?.parse().ok());
    (tps.unwrap_or_else(|| panic!("{report}{}", text(&output.stderr))), percentile_95_ms(directory.path()))
}

/// Runs so many transactions of so many clients; transactions a second.
#[must_use]
pub fn pgbench_transactions(url: &str, clients: u64, transactions: u64) -> f64 {
    pgbench_with(url, clients, &["-t", &(transactions / clients).to_string()])
}

/// Runs so many clients with these arguments; transactions a second.
#[must_use]
pub fn pgbench_with(url: &str, clients: u64, arguments: &[&str]) -> f64 {
    let (clients, threads) = (clients.to_string(), clients.min(2).to_string());
    let mut command = Command::new(postgresql("pgbench"));
    let ran = command.args(["-c", &clients, "-j", &threads]).args(arguments).arg(url).output().unwrap();
    let report = text(&ran.stdout);
    let tps = report.lines().find_map(|l| l.strip_prefix("tps = ")?.split(' ').next()?.parse().ok());
    tps.unwrap_or_else(|| panic!("{report}{}", text(&ran.stderr)))
}

fn percentile_95_ms(directory: &Path) -> f64 {
    let logs =
        std::fs::read_dir(directory).unwrap().map(|e| std::fs::read_to_string(e.unwrap().path()).unwrap());
    let mut latencies: Vec<u32> = logs
        .flat_map(|log| log.lines().filter_map(|l| l.split(' ').nth(2)?.parse().ok()).collect::<Vec<u32>>())
        .collect();
    latencies.sort_unstable();
    f64::from(latencies[latencies.len() * 95 / 100]) / 1000.0
}

/// Stock PostgreSQL: a writer and standbys that stream from it.
pub struct Stock {
    directory: tempfile::TempDir,
    account: Account,
    ports: Vec<u16>,
}

impl Stock {
    /// Makes and starts a writer with asynchronous standbys.
    pub async fn start(standbys: usize) -> Stock {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let ports = (0..=standbys).map(|_| free_port()).collect();
        let stock = Stock { directory, account: Account::resolve(None).unwrap(), ports };
        for index in 0..=standbys {
            stock.account.make_private(&stock.data(index)).unwrap();
        }
        let writer = stock.data(0);
        stock.run(
            "initdb",
            &["-k", "-A", "trust", "-U", "postgres", "--locale=C.UTF-8", "-E", "UTF8", "-D", path(&writer)],
        );
        stock.start_instance(0);
        for index in 1..=standbys {
            let data = stock.data(index);
            let conninfo = format!("host=127.0.0.1 port={} user=postgres", stock.ports[0]);
            stock.run("pg_basebackup", &["-c", "fast", "-R", "-D", path(&data), "-d", &conninfo]);
            stock.start_instance(index);
        }
        stock
    }

    /// The connection string of the writer, 0, or of a standby.
    #[must_use]
    pub fn url(&self, index: usize) -> String {
        format!("postgresql://postgres@127.0.0.1:{}/postgres", self.ports[index])
    }

    fn data(&self, index: usize) -> std::path::PathBuf {
        self.directory.path().join(index.to_string())
    }

    /// Runs SQL on the writer, a statement an argument.
    pub fn sql(&self, statements: &[&str]) {
        let mut command = Command::new(postgresql("psql"));
        command.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", &self.url(0)]);
        for statement in statements {
            command.args(["-c", statement]);
        }
        assert!(command.stdout(Stdio::null()).status().unwrap().success(), "{statements:?}");
    }

    /// The process of the writer's postmaster.
    #[must_use]
    pub fn postmaster(&self) -> u32 {
        self.postmaster_of(0)
    }

    /// The process of the postmaster of the writer, 0, or of a standby.
    #[must_use]
    pub fn postmaster_of(&self, index: usize) -> u32 {
        let content = std::fs::read_to_string(self.data(index).join("postmaster.pid")).unwrap();
        content.lines().next().unwrap().trim().parse().unwrap()
    }

    /// Starts synchronous receivers of the writer's redo, and has commits wait for `rule` of them.
    #[must_use]
    pub fn receivers(&self, count: usize, rule: &str) -> Receivers {
        let mut children = Vec::new();
        for index in 0..count {
            let (name, directory) =
                (format!("r{index}"), self.directory.path().join(format!("receiver{index}")));
            let _ = std::fs::remove_dir_all(&directory);
            std::fs::create_dir(&directory).unwrap();
            let conninfo = format!("{}?application_name={name}", self.url(0));
            let mut command = Command::new(postgresql("pg_receivewal"));
            command.args([
                "--synchronous",
                "--if-not-exists",
                "-D",
                path(&directory),
                "-S",
                &name,
                "-d",
                &conninfo,
            ]);
            let made = Command::new(postgresql("pg_receivewal"))
                .args(["--create-slot", "--if-not-exists", "-S", &name, "-d", &conninfo])
                .status();
            assert!(made.unwrap().success());
            children.push(command.stderr(Stdio::null()).spawn().unwrap());
        }
        // They have nothing to catch up with: their slots are new. Nothing is timed before all of them
        // stream.
        let streaming = format!(
            "DO $$ BEGIN WHILE (SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming') < {count} LOOP \
             PERFORM pg_stat_clear_snapshot(), pg_sleep(0.02); END LOOP; END $$"
        );
        let set = format!("ALTER SYSTEM SET synchronous_standby_names = '{rule}'");
        self.sql(&[&streaming, &set, "SELECT pg_reload_conf()", "CHECKPOINT"]);
        Receivers { children }
    }

    /// Ends the receivers and drops their slots: commits wait for nobody.
    pub fn release(&self, receivers: Receivers) {
        self.sql(&["ALTER SYSTEM RESET synchronous_standby_names", "SELECT pg_reload_conf()"]);
        drop(receivers);
        let drop_slots = "DO $$ BEGIN WHILE EXISTS (SELECT FROM pg_replication_slots WHERE active) LOOP \
             PERFORM pg_sleep(0.02); END LOOP; PERFORM pg_drop_replication_slot(slot_name) FROM pg_replication_slots; END $$";
        self.sql(&[drop_slots]);
    }

    fn start_instance(&self, index: usize) {
        let options =
            format!("-p {} -c listen_addresses=127.0.0.1 -c unix_socket_directories=''", self.ports[index]);
        let data = self.data(index);
        self.run("pg_ctl", &["start", "-w", "-D", path(&data), "-l", "/dev/null", "-o", &options]);
    }

    fn run(&self, program: &str, arguments: &[&str]) {
        let mut command = self.account.command(&postgresql(program));
        // Not a pipe: PostgreSQL would hold it open.
        let status = command.args(arguments).stdout(Stdio::null()).status().unwrap();
        assert!(status.success(), "{program} {arguments:?}");
    }
}

impl Drop for Stock {
    fn drop(&mut self) {
        for index in (0..self.ports.len()).rev() {
            let data = self.data(index);
            self.run("pg_ctl", &["stop", "-w", "-m", "fast", "-D", path(&data)]);
        }
    }
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Running receivers of a stock writer.
pub struct Receivers {
    children: Vec<Child>,
}

impl Receivers {
    /// Their processes.
    #[must_use]
    pub fn processes(&self) -> Vec<u32> {
        self.children.iter().map(Child::id).collect()
    }
}

impl Drop for Receivers {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Seconds of processor time that `processes`, with the walsenders of `postmaster`, have used, ended children
/// left out.
#[must_use]
pub fn sending_seconds(postmaster: u32, processes: &[u32]) -> f64 {
    let children =
        std::fs::read_to_string(format!("/proc/{postmaster}/task/{postmaster}/children")).unwrap_or_default();
    let walsenders = children.split_whitespace().filter_map(|pid| pid.parse().ok()).filter(|pid: &u32| {
        let title = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        text(&title).contains("walsender")
    });
    walsenders.chain(processes.iter().copied()).map(processor_seconds).sum()
}

/// Seconds of processor time that the daemons and PostgreSQLs of `cluster` have used, those of ended sessions
/// among them.
#[must_use]
pub fn spent_seconds(cluster: &Cluster) -> f64 {
    let of_region = |region: &&str| {
        let postmaster = cluster.postmaster(region);
        let processes = with_children(postmaster).into_iter().chain([cluster.daemon(region)]);
        let own: f64 = processes.map(|pid| times(pid.as_raw().unsigned_abs(), 11..13)).sum();
        // What ended is counted by who began it.
        own + times(postmaster.as_raw().unsigned_abs(), 13..15)
    };
    cluster.regions.iter().map(of_region).sum()
}

/// Seconds of processor time a process has used.
fn processor_seconds(pid: u32) -> f64 {
    times(pid, 11..13)
}

/// These times of a process, from the third field on of what Linux says of it, seconds.
fn times(pid: u32, fields: Range<usize>) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let said: Vec<f64> =
        stat.rsplit(')').next().unwrap_or("").split_whitespace().map(|f| f.parse().unwrap_or(0.0)).collect();
    // Of hundredths of a second: a process' own are the 11th and 12th, those of its ended children the next.
    said.get(fields).map_or(0.0, |times| times.iter().sum::<f64>() / 100.0)
}
