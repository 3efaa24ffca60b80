//! The harness of the end-to-end tests: real daemons, real PostgreSQL, real QUIC, on loopback.
//!
//! A [`Cluster`] is brought up by the program itself, in a directory of its own, on ports of its own, and is
//! taken down when it is dropped. Conditions are polled with a deadline; nothing sleeps to wait for one. What
//! is left to chance comes from a seed that is printed.

#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

pub mod bench;
pub mod browser;
pub mod collector;
pub mod flood;
pub mod lags;
pub mod ledger;
pub mod seeding;
pub mod simulation;
pub mod wan;

use std::ffi::OsString;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use postgres::installation::Installation;
use replicator::config::Config;
use replicator::layout::Layout;
use replicator::operator::Operator;
use sqlx::{Connection, Executor, PgConnection};
use tempfile::TempDir;
use tokio::time::Instant;

/// The longest that anything is waited for: generous, as two processors may be busy with other tests.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// The names of the regions, the primary first.
pub const REGIONS: [&str; 6] = ["us-east", "eu-west", "ap-northeast", "sa-east", "af-south", "eu-north"];

/// What no test may find in a log, whatever it breaks: redo that a standby could not read, a bug, an answer
/// that nobody waits for.
const TROUBLE: [&str; 3] =
    ["incorrect resource manager data checksum", "panicked at", "no correct daemon asks this"];

/// A cluster on this machine. When it is dropped it is taken down, and its logs are looked through: an ERROR
/// of a daemon that the test did not announce with [`Cluster::expect`] fails it, and so does any [`TROUBLE`].
pub struct Cluster {
    directory: TempDir,
    /// Its regions; the first is the primary.
    pub regions: Vec<&'static str>,
    expected: Mutex<Vec<&'static str>>,
}

impl Cluster {
    /// Configures a cluster of one primary and `secondaries`, which is not up yet.
    #[must_use]
    pub fn new(secondaries: usize) -> Cluster {
        let directory = tempfile::Builder::new().prefix("rpl-").tempdir().unwrap();
        open_to_all(directory.path());
        let regions = REGIONS[..=secondaries].to_vec();
        // Tests ask PostgreSQL for what only the superuser sees; that others come in is tested by itself.
        let mut text = String::from("cluster = \"test\"\nowner = \"postgres\"\n");
        for (index, region) in regions.iter().enumerate() {
            let role = if index == 0 { "primary" } else { "secondary" };
            let (udp, tcp) = (free_port(), free_port());
            text += &format!("[region.{region}]\nrole = \"{role}\"\n");
            text += &format!("listen = \"127.0.0.1:{udp}\"\npostgres = \"127.0.0.1:{tcp}\"\n");
            if let Some(bin_dir) = bin_dir() {
                text += &format!("bin_dir = \"{}\"\n", bin_dir.display());
            }
        }
        std::fs::write(directory.path().join("regions.toml"), text).unwrap();
        Cluster { directory, regions, expected: Mutex::default() }
    }

    /// Announces that daemons will log errors with these words, since the test breaks something.
    pub fn expect(&self, words: &[&'static str]) {
        self.expected.lock().unwrap().extend(words);
    }

    /// An operator of this cluster, for questions that are asked again and again.
    #[must_use]
    pub fn operator(&self) -> Operator {
        operator(&self.file(), &self.data())
    }

    /// Puts lines before everything else in the cluster's `regions.toml`.
    pub fn configure(&self, lines: &str) {
        let text = std::fs::read_to_string(self.file()).unwrap();
        std::fs::write(self.file(), format!("{lines}{text}")).unwrap();
    }

    /// A cluster for a benchmark: a client of this machine may connect without encryption, as it does to
    /// the stock PostgreSQL beside it.
    #[must_use]
    pub fn for_bench(secondaries: usize) -> Cluster {
        let cluster = Cluster::new(secondaries);
        cluster.configure("postgresql.hba = [\"host all all 127.0.0.1/32 scram-sha-256\"]\n");
        cluster
    }

    /// The connection string of a region's PostgreSQL without encryption.
    #[must_use]
    pub fn clear_url(&self, region: &str) -> String {
        self.printed(&["url", "--region", region]).replace("sslmode=verify-full", "sslmode=disable")
    }

    /// Adds a witness to a cluster that is not up yet.
    pub fn add_witness(&self, name: &str) {
        let text = std::fs::read_to_string(self.file()).unwrap();
        let table = format!("[witness.{name}]\nlisten = \"127.0.0.1:{}\"\n", free_port());
        std::fs::write(self.file(), text + &table).unwrap();
    }

    /// A cluster that is up and streaming.
    #[must_use]
    pub fn up(secondaries: usize) -> Cluster {
        let cluster = Cluster::new(secondaries);
        cluster.start();
        cluster
    }

    /// Makes these zones of a region processes of their own.
    pub fn zones_apart(&self, region: &str, zones: &str) {
        self.configure_region(region, &format!("own_process = {zones}"));
    }

    /// Puts a line into the table of a region in the cluster's `regions.toml`.
    pub fn configure_region(&self, region: &str, line: &str) {
        let text = std::fs::read_to_string(self.file()).unwrap();
        let head = format!("[region.{region}]\n");
        assert!(text.contains(&head));
        std::fs::write(self.file(), text.replace(&head, &format!("{head}{line}\n"))).unwrap();
    }

    /// Adds a node with a replica to a region.
    pub fn add_node(&self, region: &str, node: &str) {
        self.write_node(region, node, &format!("postgres = \"127.0.0.1:{}\"", free_port()));
    }

    /// Adds a node that holds the copies of `zone` to a region of a cluster that is not up yet, and has a
    /// replica if it is to.
    pub fn add_node_of_zone(&self, region: &str, node: &str, zone: char, replica: bool) {
        let lines = format!("zone = \"{zone}\"");
        let postgres = format!("\npostgres = \"127.0.0.1:{}\"", free_port());
        self.write_node(region, node, &(lines + if replica { &postgres } else { "" }));
    }

    /// Adds a node that holds the copies of `zone`, may take over as the head of its region, and takes in
    /// clients of the writer.
    pub fn add_candidate(&self, region: &str, node: &str, zone: char) {
        let [postgres, listen, endpoint] = [(); 3].map(|()| free_port());
        let lines = format!(
            "zone = \"{zone}\"\npostgres = \"127.0.0.1:{postgres}\"\nlisten = \"127.0.0.1:{listen}\"\n\
             writer_endpoint = \"127.0.0.1:{endpoint}\""
        );
        self.write_node(region, node, &lines);
    }

    /// The connection string of the writer's endpoint of a node.
    #[must_use]
    pub fn node_endpoint(&self, region: &str, node: &str) -> String {
        let config = Config::load(&self.file()).unwrap();
        let found = config.region(&region.parse().unwrap()).unwrap();
        let port = found.node(&node.parse().unwrap()).unwrap().writer_endpoint.unwrap().port();
        self.url_at(region, port)
    }

    /// The connection string of a region, with another port.
    fn url_at(&self, region: &str, port: u16) -> String {
        let url = self.printed(&["url", "--region", region]);
        let (before, rest) = url.split_once('@').unwrap();
        let (_, after) = rest.split_once('/').unwrap();
        format!("{before}@127.0.0.1:{port}/{after}")
    }

    /// The process of a node.
    #[must_use]
    pub fn node_process(&self, region: &str, node: &str) -> Pid {
        let content = std::fs::read_to_string(self.node(region, node).join("node.lock")).unwrap();
        Pid::from_raw(content.trim().parse().unwrap())
    }

    /// Adds a node of which the file says these `lines`.
    pub fn write_node(&self, region: &str, node: &str, lines: &str) {
        let text = std::fs::read_to_string(self.file()).unwrap();
        std::fs::write(self.file(), text + &format!("[region.{region}.node.{node}]\n{lines}\n")).unwrap();
    }

    /// The directory of a region's node.
    #[must_use]
    pub fn node(&self, region: &str, node: &str) -> PathBuf {
        self.region(region).join("nodes").join(node)
    }

    /// What the process of a node has said.
    #[must_use]
    pub fn node_said(&self, region: &str, node: &str) -> String {
        std::fs::read_to_string(self.node(region, node).join("node.log")).unwrap_or_default()
    }

    /// The connection string of a node's PostgreSQL.
    #[must_use]
    pub fn node_url(&self, region: &str, node: &str) -> String {
        let config = Config::load(&self.file()).unwrap();
        let found = config.region(&region.parse().unwrap()).unwrap();
        let port = found.node(&node.parse().unwrap()).unwrap().postgres.unwrap().port();
        self.url_at(region, port)
    }

    /// The row that `status --json` has for a node; null where it has none.
    #[must_use]
    pub fn node_row(&self, region: &str, node: &str) -> serde_json::Value {
        let status = self.status();
        let rows = status["regions"].as_array().unwrap();
        let of_region = rows.iter().find(|row| row["name"] == region).unwrap();
        let nodes = of_region["nodes"].as_array().cloned().unwrap_or_default();
        nodes.into_iter().find(|row| row["name"] == node).unwrap_or_default()
    }

    /// Waits until a node's PostgreSQL streams.
    pub async fn until_node_streams(&self, region: &str, node: &str) {
        until("the node streams", || async { self.node_row(region, node)["state"] == "streaming" }).await;
    }

    /// Kills the process of a node and, `with_postgresql`, its PostgreSQL, as kill -9 does.
    pub async fn kill_node(&self, region: &str, node: &str, with_postgresql: bool) {
        let place = self.node(region, node);
        kill_holder(&place.join("node.lock"), &place, with_postgresql).await;
    }

    /// Where a region listens to others.
    #[must_use]
    pub fn address(&self, region: &str) -> SocketAddr {
        let config = Config::load(&self.file()).unwrap();
        config.region(&region.parse().unwrap()).unwrap().listen
    }

    /// `volume status --json` of a region, parsed.
    #[must_use]
    pub fn volume(&self, region: &str) -> serde_json::Value {
        serde_json::from_str(&self.printed(&["volume", "status", "--region", region, "--json"])).unwrap()
    }

    /// Waits until all copies of a region's volume are whole.
    pub async fn until_whole(&self, region: &str) {
        until("all copies are whole", || async {
            let volume = self.volume(region);
            let live =
                |c: &serde_json::Value| c["state"] == "live" && c["damage"].as_array().unwrap().is_empty();
            volume["copies"].as_array().unwrap().iter().all(live)
        })
        .await;
    }

    /// Kills the process of a zone, as kill -9 does.
    pub async fn kill_zone(&self, region: &str, zone: char) {
        let lock = self.region(region).join(format!("az-{zone}.lock"));
        let pid = Pid::from_raw(std::fs::read_to_string(lock).unwrap().trim().parse().unwrap());
        kill(pid, Signal::SIGKILL).unwrap();
        let lock = self.region(region).join(format!("az-{zone}.lock"));
        until("the zone is gone", || async { is_free(&lock) }).await;
    }

    /// The lines of the logs that no test may find, or that this one did not announce.
    fn trouble(&self) -> Vec<String> {
        let expected = self.expected.lock().unwrap();
        let is_trouble = |line: &str| {
            let says_so = line.contains(" ERROR ") || line.contains("\"level\":\"ERROR\"");
            let error = says_so && !expected.iter().any(|words| line.contains(words));
            error || TROUBLE.iter().any(|words| line.contains(words))
        };
        let mut found = Vec::new();
        let below = |place: PathBuf| -> Vec<PathBuf> {
            std::fs::read_dir(place).into_iter().flatten().map(|entry| entry.unwrap().path()).collect()
        };
        for region in below(self.data().join("regions")) {
            let nodes = below(region.join("nodes")).into_iter().flat_map(below);
            for path in below(region).into_iter().chain(nodes) {
                if path.extension().is_some_and(|extension| extension == "log") {
                    let content = text(&std::fs::read(&path).unwrap());
                    let place = path.strip_prefix(self.data()).unwrap().display().to_string();
                    let lines = content.lines().filter(|line| is_trouble(line));
                    found.extend(lines.map(|line| format!("{place}: {line}")));
                }
            }
        }
        found
    }

    /// Brings up what does not run.
    pub fn start(&self) {
        let output = self.run(&["up", "--detach", "--timeout", "90s"]);
        assert!(output.status.success(), "up: {}\n{}", text(&output.stderr), self.logs());
    }

    /// Runs the program with this cluster's file and data.
    #[must_use]
    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// The program with this cluster's file and data, to be run.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program());
        command.args(arguments).arg("--config").arg(self.file()).arg("--data").arg(self.data());
        command
    }

    /// What a command prints; it must succeed. `status` succeeds when a daemon answers, however well the
    /// regions are.
    #[must_use]
    pub fn printed(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let answered = arguments.first() == Some(&"status") && !output.stdout.is_empty();
        assert!(
            answered || output.status.success(),
            "{arguments:?}: {}\n{}",
            text(&output.stderr),
            self.logs()
        );
        text(&output.stdout).trim().to_owned()
    }

    /// The cluster's `regions.toml`.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        self.directory.path().join("regions.toml")
    }

    /// Its data directory.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// A region's own directory.
    #[must_use]
    pub fn region(&self, region: &str) -> PathBuf {
        self.data().join("regions").join(region)
    }

    /// `status --json`, parsed.
    #[must_use]
    pub fn status(&self) -> serde_json::Value {
        serde_json::from_str(&self.printed(&["status", "--json"])).unwrap()
    }

    /// Connects to a region's PostgreSQL as an application does.
    pub async fn connect(&self, region: &str) -> PgConnection {
        let url = self.printed(&["url", "--region", region]);
        let begin = now();
        loop {
            match PgConnection::connect(&url).await {
                Ok(connection) => return connection,
                Err(e) => assert!(begin.elapsed() < PATIENCE, "{region}: {e}\n{}", self.logs()),
            }
            pause().await;
        }
    }

    /// The process of a region's daemon.
    #[must_use]
    pub fn daemon(&self, region: &str) -> Pid {
        let content = std::fs::read_to_string(self.region(region).join("daemon.lock")).unwrap();
        Pid::from_raw(content.trim().parse().unwrap())
    }

    /// The process of a region's PostgreSQL.
    #[must_use]
    pub fn postmaster(&self, region: &str) -> Pid {
        postmaster_in(&self.region(region))
    }

    /// The same while it may be starting.
    #[must_use]
    pub fn try_postmaster(&self, region: &str) -> Option<Pid> {
        try_postmaster_in(&self.region(region))
    }

    /// The process of a node's PostgreSQL.
    #[must_use]
    pub fn node_postmaster(&self, region: &str, node: &str) -> Pid {
        postmaster_in(&self.node(region, node))
    }

    /// Kills a region's daemon and, `with_postgresql`, its PostgreSQL, as kill -9 does.
    pub async fn kill(&self, region: &str, with_postgresql: bool) {
        let place = self.region(region);
        kill_holder(&place.join("daemon.lock"), &place, with_postgresql).await;
    }

    /// Waits until a secondary streams and is near.
    pub async fn until_level_enough(&self, region: &str) {
        until("the region can be promoted", || async {
            self.run(&["promote", "--region", region, "--dry-run"]).status.success()
        })
        .await;
    }

    /// Brings up one region alone, and does not wait for it.
    pub fn start_region(&self, region: &str) {
        self.start_region_with(region, &[]);
    }

    /// The same, with these variables in its environment.
    pub fn start_region_with(&self, region: &str, variables: &[(&str, OsString)]) {
        self.start_process(&["--region", region], &self.region(region).join("daemon.log"), variables);
    }

    /// Brings up one node alone, and does not wait for it.
    pub fn start_node(&self, region: &str, node: &str) {
        let log = self.node(region, node).join("node.log");
        self.start_process(&["--region", region, "--node", node], &log, &[]);
    }

    fn start_process(&self, which: &[&str], log: &Path, variables: &[(&str, OsString)]) {
        let log = runtime::private::options().create(true).append(true).open(log).unwrap();
        let mut command = Command::new(program());
        command.envs(variables.iter().map(|(name, value)| (name, value)));
        command.arg("run").args(which).arg("--config").arg(self.file()).arg("--data").arg(self.data());
        command.stdout(log.try_clone().unwrap()).stderr(log);
        let mut child = command.spawn().unwrap();
        // Reaped when it ends, which it does when the cluster is taken down.
        drop(runtime::task::Thread::spawn("reap a daemon", move || drop(child.wait())).unwrap());
    }

    /// Brings up what does not run; it may take a while until it streams, or need a command first.
    pub fn start_without_waiting(&self) {
        let _ = self.run(&["up", "--detach", "--timeout", "1s"]);
    }

    /// Waits until a region streams, as the primary or as a secondary.
    pub async fn until_streams(&self, region: &str) {
        until("the region streams", || async {
            let status = self.status();
            let rows = status["regions"].as_array().unwrap();
            rows.iter().any(|row| row["name"] == region && row["state"] == "streaming")
        })
        .await;
    }

    /// Waits until every secondary has applied all that the primary has durable.
    pub async fn until_level(&self) {
        until("all regions are level", || async {
            let status = self.status();
            let regions = status["regions"].as_array().unwrap();
            regions.iter().all(|r| {
                let nodes = r["nodes"].as_array().cloned().unwrap_or_default();
                let level = |node: &serde_json::Value| {
                    node["url"].is_null() || node["applied_lsn"] == r["durable_lsn"]
                };
                r["state"] == "streaming" && r["behind_bytes"] == 0 && nodes.iter().all(level)
            })
        })
        .await;
    }

    /// Checks that every table of every region holds the same rows, and that pg_amcheck finds nothing wrong.
    pub async fn assert_identical(&self) {
        // The extension that pg_amcheck needs is made on the primary, and reaches the others as redo.
        let primary = self.status()["primary"].as_str().unwrap().to_owned();
        amcheck(&self.printed(&["url", "--region", &primary]), true);
        self.until_level().await;
        let mut expected: Option<Vec<(String, String)>> = None;
        let config = Config::load(&self.file()).unwrap();
        let urls = self
            .regions
            .iter()
            .map(|region| (region.to_string(), self.printed(&["url", "--region", region])));
        let nodes = config.regions.iter().flat_map(|region| {
            let of_region = region.nodes.iter().filter(|node| node.postgres.is_some());
            of_region.map(|node| {
                let (region, node) = (region.name.as_str(), node.name.as_str());
                (format!("{region}, node {node}"), self.node_url(region, node))
            })
        });
        for (region, url) in urls.chain(nodes) {
            let mut connection = connect_to(&url).await;
            let tables: Vec<String> = sqlx::query_scalar(
                "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables
                 WHERE schemaname NOT IN ('pg_catalog', 'information_schema') ORDER BY 1",
            )
            .fetch_all(&mut connection)
            .await
            .unwrap();
            let mut contents = Vec::new();
            for table in tables {
                let query = format!(
                    "SELECT md5(coalesce(string_agg(t::text, '|' ORDER BY t::text), '')) FROM {table} t"
                );
                let sum: String =
                    sqlx::query_scalar(sqlx::AssertSqlSafe(query)).fetch_one(&mut connection).await.unwrap();
                contents.push((table, sum));
            }
            amcheck(&url, false);
            match &expected {
                None => expected = Some(contents),
                Some(expected) => {
                    assert_eq!(expected, &contents, "{region} differs from {}", self.regions[0])
                }
            }
        }
        assert!(expected.is_some_and(|tables| !tables.is_empty()), "there was something to compare");
    }

    /// The end of every log, for a failing test.
    #[must_use]
    pub fn logs(&self) -> String {
        let logs = self.regions.iter().flat_map(|region| {
            ["daemon.log", "postgresql.log"].map(|name| {
                let content = std::fs::read(self.region(region).join(name)).unwrap_or_default();
                let content = text(&content);
                let last: Vec<&str> = content.lines().rev().take(15).collect();
                let last: Vec<&str> = last.into_iter().rev().collect();
                format!("--- {region} {name}\n{}\n", last.join("\n"))
            })
        });
        logs.collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let output = self.run(&["down"]);
        if !output.status.success() {
            eprintln!("down: {}", text(&output.stderr));
        }
        if std::thread::panicking() && std::env::var_os("REPLICATOR_TEST_KEEP").is_some() {
            self.directory.disable_cleanup(true);
            eprintln!("what is left of the cluster: {}", self.directory.path().display());
        }
        // A test that fails has said why.
        if !std::thread::panicking() {
            let trouble = self.trouble();
            assert!(trouble.is_empty(), "the daemons' logs have what this test did not expect: {trouble:#?}");
        }
    }
}

/// Runs pg_amcheck on a database; it must find nothing. The extension it needs is made on the primary.
fn amcheck(url: &str, make: bool) {
    if !has_amcheck() {
        eprintln!("pg_amcheck was not run: this PostgreSQL comes without its contrib module amcheck");
        return;
    }
    let mut command = Command::new(postgresql("pg_amcheck"));
    if make {
        command.arg("--install-missing");
    }
    let (_, rest) = url.split_once("://").unwrap();
    let parts: Vec<&str> = rest.split([':', '@', '/', '?']).collect();
    let [user, password, host, port, database, ..] = parts[..] else { panic!("{url}") };
    command.env("PGPASSWORD", password).args(["-h", host, "-p", port, "-U", user, database]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{url}: {}{}", text(&output.stdout), text(&output.stderr));
}

/// Connects to a PostgreSQL as an application does.
pub async fn connect_to(url: &str) -> PgConnection {
    let begin = now();
    loop {
        match PgConnection::connect(url).await {
            Ok(connection) => return connection,
            Err(e) => assert!(begin.elapsed() < PATIENCE, "{url}: {e}"),
        }
        pause().await;
    }
}

/// The process of the PostgreSQL in `place`.
fn postmaster_in(place: &Path) -> Pid {
    try_postmaster_in(place).unwrap()
}

/// The same while it may be starting.
fn try_postmaster_in(place: &Path) -> Option<Pid> {
    let content = std::fs::read_to_string(place.join("pgdata/postmaster.pid")).ok()?;
    content.lines().next()?.trim().parse().ok().map(Pid::from_raw)
}

/// Makes a table for [`fill_bulk`]. A vacuum would write it all once more, at a moment of its own: none does.
pub async fn make_bulk(connection: &mut PgConnection) {
    let table = "CREATE TABLE bulk (filler bytea) WITH (autovacuum_enabled = off)";
    connection.execute(table).await.unwrap();
}

/// Writes some 6 MiB of redo that does not compress.
pub async fn fill_bulk(connection: &mut PgConnection) {
    let rows = "INSERT INTO bulk SELECT string_agg(decode(md5(random()::text), 'hex'), '') \
                FROM generate_series(1, 400000) AS g GROUP BY g / 100";
    connection.execute(rows).await.unwrap();
}

/// Kills the process that holds `lock` and, `with_postgresql`, the PostgreSQL in `place`.
async fn kill_holder(lock: &Path, place: &Path, with_postgresql: bool) {
    let holder = std::fs::read_to_string(lock).unwrap();
    // The daemon first, or it would start PostgreSQL again.
    kill(Pid::from_raw(holder.trim().parse().unwrap()), Signal::SIGKILL).unwrap();
    if with_postgresql {
        // It may be between two lives just now.
        let content = std::fs::read_to_string(place.join("pgdata/postmaster.pid")).unwrap_or_default();
        if let Some(postmaster) = content.lines().next().and_then(|line| line.trim().parse().ok()) {
            let _ = kill(Pid::from_raw(postmaster), Signal::SIGKILL);
        }
    }
    until("the daemon is gone", || async { is_free(lock) }).await;
}

/// Whether no process holds a lock: a process that is ending holds it to the last.
#[must_use]
pub fn is_free(lock: &Path) -> bool {
    use nix::fcntl::{Flock, FlockArg};
    let file = std::fs::File::open(lock).unwrap();
    Flock::lock(file, FlockArg::LockSharedNonblock).is_ok()
}

/// The built program.
#[must_use]
pub fn program() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let target =
        own.ancestors().find(|d| d.join("replicator").is_file()).expect("replicator is built: `make build`");
    target.join("replicator")
}

/// The directory of PostgreSQL's programs that the tests are to run with, if it is said: `scripts/majors.sh`
/// has some of other majors.
#[must_use]
pub fn bin_dir() -> Option<PathBuf> {
    std::env::var_os("REPLICATOR_TEST_POSTGRES").filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// The PostgreSQL that the tests run with: that of `REPLICATOR_TEST_POSTGRES`, or the newest that is
/// installed.
#[must_use]
pub fn installation() -> Installation {
    Installation::find(bin_dir().as_deref()).unwrap()
}

/// Whether the PostgreSQL that the tests run with has the extension that pg_amcheck needs: one of the wheels
/// comes without.
#[must_use]
pub fn has_amcheck() -> bool {
    has_extension("amcheck")
}

/// Whether the PostgreSQL that the tests run with has an extension.
#[must_use]
pub fn has_extension(name: &str) -> bool {
    let said = Command::new(postgresql("pg_config")).arg("--sharedir").output().unwrap();
    Path::new(text(&said.stdout).trim()).join(format!("extension/{name}.control")).exists()
}

/// PostgreSQL's programs.
#[must_use]
pub fn postgresql(name: &str) -> PathBuf {
    installation().program(name)
}

/// A process, and those that it has begun: a postmaster's are all of its PostgreSQL.
#[must_use]
pub fn with_children(process: Pid) -> Vec<Pid> {
    let listed = std::fs::read_to_string(format!("/proc/{process}/task/{process}/children"));
    let listed = listed.unwrap_or_default();
    let children = listed.split_whitespace().map(|pid| Pid::from_raw(pid.parse().unwrap()));
    std::iter::once(process).chain(children).collect()
}

/// Polls until `condition` holds; the test fails when it does not in time.
pub async fn until<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let begin = now();
    while !condition().await {
        assert!(begin.elapsed() < PATIENCE, "not in time: {what}");
        pause().await;
    }
}

/// Looks at `condition` again and again for `period`: for what must stay as it is. The test fails as soon as
/// it does not.
pub async fn stays<F: Future<Output = bool>>(what: &str, period: Duration, mut condition: impl FnMut() -> F) {
    let begin = now();
    while begin.elapsed() < period {
        assert!(condition().await, "it did not stay so: {what}, after {:?}", begin.elapsed());
        pause().await;
    }
}

/// An operator of the cluster with this file and data.
#[must_use]
pub fn operator(file: &Path, data: &Path) -> Operator {
    Operator::new(Config::load(file).unwrap(), &Layout::new(data.to_owned())).unwrap()
}

/// How far promotions are: which epoch it is, how many are over, and the steps that the one in progress has
/// done.
async fn progress(operator: &Operator) -> Option<(u64, usize, Option<usize>)> {
    let record = operator.record().await.ok()?;
    Some((record.epoch.0, record.history.len(), record.promotion.map(|promotion| promotion.steps.len())))
}

/// A promotion that was just ordered, as its record tells.
pub struct Ordered {
    operator: Operator,
    before: (u64, usize),
}

impl Ordered {
    /// Looks at the record before a promotion is ordered.
    pub async fn before(operator: Operator) -> Ordered {
        let before = Mutex::new((0, 0));
        until("somebody knows who leads", || async {
            let found = progress(&operator).await;
            let idle = found.filter(|(_, _, steps)| steps.is_none());
            idle.inspect(|(epoch, over, _)| *before.lock().unwrap() = (*epoch, *over)).is_some()
        })
        .await;
        Ordered { operator, before: before.into_inner().unwrap() }
    }

    /// Waits until it is over and `region` leads by it.
    pub async fn until_led_by(&self, region: &str) {
        until("the promotion has led to that region", || async {
            let Ok(record) = self.operator.record().await else { return false };
            let over = record.promotion.is_none() && (record.epoch.0, record.history.len()) != self.before;
            over && record.primary.as_str() == region
        })
        .await;
    }

    /// Waits until voters have agreed that it is in progress and it has done `steps`, or until it is over.
    pub async fn until_done(&self, steps: usize) {
        until("the promotion is that far", || async {
            let Some((epoch, over, done)) = progress(&self.operator).await else { return false };
            done.is_some_and(|done| done >= steps) || (done.is_none() && (epoch, over) != self.before)
        })
        .await;
    }
}

/// What decides all that a test leaves to chance: `TEST_SEED`, or drawn. It is printed.
#[must_use]
pub fn seed() -> u64 {
    let given = std::env::var("TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or_else(|| runtime::random::below(1_000_000));
    println!("TEST_SEED={seed} draws the same again");
    seed
}

/// A moment between two looks at a condition.
pub async fn pause() {
    tokio::time::sleep(Duration::from_millis(10)).await;
}

/// Now, for deadlines.
#[must_use]
pub fn now() -> Instant {
    runtime::clock::now()
}

/// Bytes as text.
#[must_use]
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Lets PostgreSQL's account pass through a directory that was made for us alone.
fn open_to_all(directory: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// A port that nothing uses, UDP or TCP. Below the range from which the system gives ports to connections,
/// and apart from what other test processes take.
#[must_use]
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 20_000 + (std::process::id().wrapping_mul(64) + step) % 10_000;
        let address = SocketAddr::from(([127, 0, 0, 1], u16::try_from(port).unwrap()));
        if UdpSocket::bind(address).is_ok() && TcpListener::bind(address).is_ok() {
            return address.port();
        }
    }
}
