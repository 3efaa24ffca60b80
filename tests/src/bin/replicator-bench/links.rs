//! `replicator-bench controllers`: one primary and one secondary over an emulated link, under pgbench, with
//! each congestion controller; and bulk beside a TCP flow.
//!
//! `replicator-bench repairs`: the same without and with repairs, and no bulk.
//!
//! Each congestion controller gets the same links. Lag is what an independent prober sees: a row every 40 ms,
//! from its commit's return until it is first seen far away; one machine, so one clock.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use proto::messages::{Batch, Open};
use proto::{ClusterId, RegionName};
use replicator_tests::wan::{Wan, Weather};
use replicator_tests::{PATIENCE, now, postgresql, program, text};
use sqlx::{Connection, Executor, PgConnection};
use tokio::time::Instant;
use transport::{Authority, Endpoint, Identity, Peer};

use crate::roads::{Ends, Road};

/// The controllers, as [`transport::congestion::VARIABLE`] names them.
const CONTROLLERS: [&str; 3] = ["cubic", "fixed:2097152", "pacing"];

/// Losses, of a million packets.
const LOSSES_PPM: [u32; 4] = [0, 100, 1000, 10_000];

/// What stands above the rows.
const HEAD: &str = "                  loss %   p50 ms   p99 ms   max ms    seen  unseen       tps  WAN B/t";

pub(super) const PLACES: [&str; 2] = ["us-east", "eu-west"];
const PROBE_EVERY: Duration = Duration::from_millis(40);

/// Redo over 40 ms and 1000 Mbit/s, then bulk, for each controller; `only` one of them if its number is
/// given.
pub fn run(seconds: u64, only: Option<u64>) {
    let chosen: Vec<&str> = match only.and_then(|n| usize::try_from(n).ok()) {
        Some(number) => vec![CONTROLLERS[number.min(2)]],
        None => CONTROLLERS.to_vec(),
    };
    println!(
        "one primary, one secondary; 40 ms one way, 1000 Mbit/s, 50 ms of queue; \
         pgbench -c 8 -s 20, {seconds} s"
    );
    println!("{HEAD}");
    // Without seconds, there is only bulk.
    for controller in chosen.iter().filter(|_| seconds > 0) {
        let site = Site::up(controller);
        let ends = site.ends();
        ends.prepare();
        LOSSES_PPM.iter().for_each(|loss_ppm| row(&ends, controller, *loss_ppm, seconds));
    }
    bulk(&chosen);
}

/// One primary, one secondary, without repairs and with them; only one of the two if its number is given.
/// Between the measurements the link stays as long as it is in them, and loses nothing.
pub fn repairs(seconds: u64, only: Option<u64>) {
    println!(
        "one primary, one secondary; 40 ms one way, 1000 Mbit/s, 50 ms of queue; pgbench -c 8 -s 20, {seconds} s"
    );
    println!("{HEAD}");
    for (number, said) in ["off", "on"].into_iter().enumerate() {
        if only.is_some_and(|only| usize::try_from(only) != Ok(number)) {
            continue;
        }
        let calm = link(1000, 40_000, 50_000, 0);
        let site = Site::over("pacing", said, calm.clone());
        let ends = Ends { between: calm, ..site.ends() };
        ends.prepare();
        for loss_ppm in [0, 1000, 10_000] {
            row(&ends, &format!("repairs {said}"), loss_ppm, seconds);
        }
        // A stream that ended and began again says so.
        let logs = site.logs();
        let ends =
            logs.lines().filter(|line| line.contains("not shipping") || line.contains("no longer receiving"));
        ends.for_each(|line| println!("{line}"));
    }
}

/// Measures one link, and prints what it showed.
fn row(ends: &Ends<'_>, name: &str, loss_ppm: u32, seconds: u64) {
    let measured = ends.measure(&Road::lossy("", loss_ppm), seconds);
    let ([p50, p99, max], (seen, unseen)) = (measured.ranks(), measured.sorted());
    let loss = f64::from(loss_ppm) / 10_000.0;
    println!(
        "{name:16} {loss:>7} {p50:>8.0} {p99:>8.0} {max:>8.0} {:>7} {unseen:>7} {:>9.0} {:>8.0}",
        seen.len(),
        measured.transactions_per_second,
        measured.wan_bytes_per_transaction
    );
}

/// Two regions, each in a place of its own.
pub struct Site {
    wan: Wan,
    directory: tempfile::TempDir,
    daemons: [Option<Child>; 2],
    urls: [String; 2],
    controller: String,
    /// What [`transport::redundancy::VARIABLE`] says.
    repairs: &'static str,
}

impl Site {
    /// Two empty regions.
    pub fn up(controller: &str) -> Site {
        Site::over(controller, "off", Weather::default())
    }

    /// The same over links that are so from the beginning.
    fn over(controller: &str, repairs: &'static str, weather: Weather) -> Site {
        let wan = Wan::new(2, 1).expect("root, and `ip`");
        wan.change_all(|w| *w = weather.clone());
        let directory = tempfile::Builder::new().prefix("rpl-links-").tempdir().unwrap();
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        // Clients connect without encryption, as they do to the stock PostgreSQL.
        let mut file = String::from(
            "cluster = \"links\"\nowner = \"postgres\"\npostgresql.hba = [\"host all all all scram-sha-256\"]\n",
        );
        for (place, region) in PLACES.iter().enumerate() {
            let (role, address) = (["primary", "secondary"][place], Wan::address(place));
            file += &format!(
                "[region.{region}]\nrole = \"{role}\"\nlisten = \"{address}:7401\"\n\
                 postgres = \"{address}:6401\"\n"
            );
        }
        std::fs::write(directory.path().join("regions.toml"), file).unwrap();
        let (urls, controller) = (Default::default(), controller.to_owned());
        let mut site = Site { wan, directory, daemons: [None, None], urls, controller, repairs };
        assert!(site.replicator(0, &["certs"]).output().unwrap().status.success());
        (0..PLACES.len()).for_each(|place| site.start(place));
        for (place, region) in PLACES.iter().enumerate() {
            site.urls[place] = site.url(place, region);
        }
        site.until_streams();
        site
    }

    /// Starts the daemon of a place.
    pub fn start(&mut self, place: usize) {
        let log = self.directory.path().join(format!("{}.log", PLACES[place]));
        let log = std::fs::OpenOptions::new().create(true).append(true).open(log).unwrap();
        let mut command = self.replicator(place, &["run", "--region", PLACES[place]]);
        command.env(transport::congestion::VARIABLE, &self.controller);
        command.env(transport::redundancy::VARIABLE, self.repairs);
        command.stdout(log.try_clone().unwrap()).stderr(log);
        self.daemons[place] = Some(command.spawn().unwrap());
    }

    /// Tells the daemon of a place to stop, and waits until it has.
    pub fn stop(&mut self, place: usize) {
        use nix::sys::signal::{Signal, kill};
        if let Some(mut daemon) = self.daemons[place].take() {
            // `ip netns exec` becomes the program.
            let _ = kill(nix::unistd::Pid::from_raw(i32::try_from(daemon.id()).unwrap()), Signal::SIGTERM);
            let _ = daemon.wait();
        }
    }

    /// Has the region of a place seeded anew. Its daemon ends, and is started again.
    pub fn reseed(&mut self, place: usize) {
        let output =
            self.replicator(place, &["reseed", "--region", PLACES[place], "--yes"]).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
    }

    /// All directions are so from now on.
    pub fn weather(&self, weather: Weather) {
        self.wan.change_all(|w| *w = weather.clone());
    }

    /// Nothing is between the places.
    pub fn still(&self) {
        self.weather(Weather::default());
    }

    /// What has crossed from the first place to the other, bytes.
    pub fn crossed(&self) -> u64 {
        self.wan.carried(0, 1).bytes
    }

    pub fn ends(&self) -> Ends<'_> {
        Ends { wan: &self.wan, urls: &self.urls, between: Weather::default() }
    }

    fn replicator(&self, place: usize, arguments: &[&str]) -> Command {
        let mut command = self.wan.command(place, &program());
        command.args(arguments).arg("--config").arg(self.directory.path().join("regions.toml"));
        command.arg("--data").arg(self.directory.path().join("data"));
        command
    }

    fn url(&self, place: usize, region: &str) -> String {
        let begin = now();
        loop {
            let output = self.replicator(place, &["url", "--region", region]).output().unwrap();
            if output.status.success() {
                return text(&output.stdout).trim().replace("sslmode=verify-full", "sslmode=disable");
            }
            assert!(begin.elapsed() < PATIENCE, "{}", self.logs());
            wait();
        }
    }

    /// Waits until the secondary streams and has all there is.
    pub fn until_streams(&self) {
        let begin = now();
        while !self.is_level() {
            assert!(begin.elapsed() < 2 * PATIENCE, "{}", self.logs());
            wait();
        }
    }

    /// Whether the secondary streams and has all there is, as the primary says.
    pub fn is_level(&self) -> bool {
        let output = self.replicator(0, &["status", "--json"]).output().unwrap();
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let level = |r: &serde_json::Value| r["state"] == "streaming" && r["behind_bytes"] == 0;
        status["regions"].as_array().is_some_and(|regions| regions.len() == 2 && regions.iter().all(level))
    }

    pub fn sql(&self, statements: &str) {
        let mut psql = self.wan.command(0, &postgresql("psql"));
        psql.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", &self.urls[0]]);
        psql.args(statements.split(';').flat_map(|statement| ["-c", statement]));
        assert!(psql.stdout(Stdio::null()).status().unwrap().success());
    }

    pub fn logs(&self) -> String {
        PLACES
            .map(|region| {
                std::fs::read_to_string(self.directory.path().join(format!("{region}.log")))
                    .unwrap_or_default()
            })
            .join("\n---\n")
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        (0..PLACES.len()).for_each(|place| self.stop(place));
    }
}

pub fn link(mbit: u64, delay_us: u64, queue_us: u64, loss_ppm: u32) -> Weather {
    Weather {
        delay_us,
        loss_ppm,
        rate: Some(mbit * 1_000_000),
        queue_bytes: mbit * queue_us / 8,
        ..Weather::default()
    }
}

pub fn in_place<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

/// A row every 40 ms; when each commit returned.
pub async fn write(url: String, end: Instant) -> Vec<Instant> {
    let mut connection = PgConnection::connect(&url).await.unwrap();
    let mut committed = Vec::new();
    let mut ticks = tokio::time::interval(PROBE_EVERY);
    while now() < end {
        ticks.tick().await;
        let id = i64::try_from(committed.len()).unwrap();
        sqlx::query("INSERT INTO probe VALUES ($1)").bind(id).execute(&mut connection).await.unwrap();
        committed.push(now());
    }
    committed
}

/// The newest row each time it is another one, and when it was seen first.
pub async fn read(url: String, end: Instant) -> Vec<(i64, Instant)> {
    let mut connection = PgConnection::connect(&url).await.unwrap();
    connection.execute("SET statement_timeout = 0").await.unwrap();
    let mut seen: Vec<(i64, Instant)> = Vec::new();
    while now() < end {
        let newest: Option<i64> =
            sqlx::query_scalar("SELECT max(id) FROM probe").fetch_one(&mut connection).await.unwrap_or(None);
        if let Some(newest) = newest.filter(|n| seen.last().is_none_or(|(last, _)| last < n)) {
            seen.push((newest, now()));
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    seen
}

fn wall() -> time::OffsetDateTime {
    time::OffsetDateTime::now_utc()
}

pub fn wait() {
    in_place(tokio::time::sleep(Duration::from_millis(200)));
}

/// Bulk over 400 Mbit/s at 1 %, and beside one TCP CUBIC flow over a clean 100 Mbit/s.
fn bulk(controllers: &[&str]) {
    println!(
        "\nbulk, 40 ms one way, 50 ms of queue (beside TCP 100 ms); 20 s, the first 5 not counted in Mbit/s; \
         queue: what packets waited at the bottleneck"
    );
    println!(
        "{:16} {:24} {:>10} {:>8} {:>10} {:>10} {:>10}",
        "controller", "link", "Mbit/s", "TCP", "queue p50", "queue p99", "lost %"
    );
    for controller in controllers {
        for (name, weather, beside, from) in [
            ("loopback", Weather::default(), false, 1),
            ("400 Mbit/s, 1 %", link(400, 40_000, 50_000, 10_000), false, 0),
            ("100 Mbit/s, beside TCP", link(100, 40_000, 100_000, 0), true, 0),
        ] {
            let sent = Bulk::run(controller, &weather, beside, from);
            println!(
                "{controller:16} {name:24} {:>10.0} {:>8.0} {:>7} ms {:>7} ms {:>10.2}",
                sent.mbit, sent.tcp_mbit, sent.queue_ms[0], sent.queue_ms[1], sent.lost_percent
            );
        }
    }
}

struct Bulk {
    mbit: f64,
    tcp_mbit: f64,
    queue_ms: [u64; 2],
    lost_percent: f64,
}

impl Bulk {
    /// Runs this program again for each end: they have processes of their own, as regions do.
    fn run(controller: &str, weather: &Weather, beside: bool, from: usize) -> Bulk {
        let wan = Wan::new(2, 2).expect("root, and `ip`");
        let directory = tempfile::tempdir().unwrap();
        let ca = Authority::create(&directory.path().join("ca"), "bulk", ClusterId([2; 16]), wall()).unwrap();
        for region in PLACES {
            let peer = Peer::Region(region.parse::<RegionName>().unwrap());
            ca.issue(&directory.path().join(region), &peer, wall(), time::Duration::days(1)).unwrap();
        }
        wan.change_all(|w| *w = weather.clone());
        let own = std::env::current_exe().unwrap();
        let end = |place: usize, region: usize, what: &str| {
            let mut command = wan.command(place, &own);
            command.arg(what).env("BULK_IDENTITY", directory.path().join(PLACES[region]));
            command.env(transport::congestion::VARIABLE, controller).stdout(Stdio::piped()).spawn().unwrap()
        };
        let receiver = end(1, 1, "bulk-receiver");
        wait();
        let sender = end(from, 0, "bulk-sender");
        let tcp = beside.then(|| tcp(&wan));
        let output = receiver.wait_with_output().unwrap();
        let _ = sender.wait_with_output();
        let waits = wan.take_waits_us(0, 1);
        let carried = wan.carried(0, 1);
        let rank = |share: usize| waits.get(waits.len() * share / 100).map_or(0, |us| us / 1000);
        Bulk {
            mbit: text(&output.stdout).trim().parse().unwrap_or(0.0),
            tcp_mbit: tcp.map_or(0.0, |tcp| tcp.join().unwrap()),
            queue_ms: [rank(50), rank(99)],
            lost_percent: (carried.lost + carried.dropped) as f64 * 100.0 / carried.packets.max(1) as f64,
        }
    }
}

/// What a bulk end does: sends for 20 s, or receives and prints Mbit/s of all but the first 5 s.
pub fn bulk_end(sends: bool) {
    let identity = Identity::load(&PathBuf::from(std::env::var_os("BULK_IDENTITY").unwrap())).unwrap();
    let address = SocketAddr::from((Wan::address(1), 7500));
    in_place(async move {
        if sends {
            let endpoint = Endpoint::bind(None, &identity).unwrap();
            let region = PLACES[1].parse::<RegionName>().unwrap();
            let connection = endpoint.connect(address, &region, PATIENCE).await.unwrap();
            let mut stream = connection.open_stream(&Open::default()).await.unwrap();
            let batch = Batch { payload: vec![7; 256 << 10].into(), ..Batch::default() };
            let begin = now();
            while begin.elapsed() < Duration::from_secs(20) && stream.send(&batch).await.is_ok() {}
            endpoint.close().await;
        } else {
            let endpoint = Endpoint::bind(Some(address), &identity).unwrap();
            let connection = endpoint.accept().await.unwrap();
            let mut stream = connection.accept_stream().await.unwrap();
            let _: Option<Open> = stream.receive(1 << 20).await.unwrap();
            let (begin, mut bytes, mut last) = (now(), 0, now());
            while let Ok(Some(batch)) = stream.receive::<Batch>(1 << 20).await {
                last = now();
                if begin.elapsed() > Duration::from_secs(5) {
                    bytes += batch.payload.len();
                }
            }
            let seconds = last.duration_since(begin).as_secs_f64() - 5.0;
            println!("{:.1}", bytes as f64 * 8.0 / seconds / 1e6);
        }
    });
}

/// The TCP congestion controller of a place: the kernel's default may be another one.
pub fn set_tcp(wan: &Wan, place: usize, name: &str) {
    let name = name.to_owned();
    let set = move || std::fs::write("/proc/sys/net/ipv4/tcp_congestion_control", name);
    wan.within(place, set).unwrap().expect("the kernel has it");
}

/// One TCP flow with the kernel's CUBIC, for 20 s: Mbit/s of all but the first 5 s.
fn tcp(wan: &Wan) -> std::thread::JoinHandle<f64> {
    use std::io::{Read, Write};
    set_tcp(wan, 0, "cubic");
    let address = SocketAddr::from((Wan::address(1), 7600));
    let listener = wan.within(1, move || TcpListener::bind(address).unwrap()).unwrap();
    let mut sender = wan.within(0, move || TcpStream::connect(address).unwrap()).unwrap();
    let (mut receiver, _) = listener.accept().unwrap();
    let begin = now();
    let work = move || {
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let chunk = vec![7; 64 << 10];
                while begin.elapsed() < Duration::from_secs(20) && sender.write_all(&chunk).is_ok() {}
            });
            let (mut bytes, mut buffer) = (0, vec![0; 256 << 10]);
            while let Ok(length) = receiver.read(&mut buffer) {
                if length == 0 || begin.elapsed() > Duration::from_secs(20) {
                    break;
                }
                if begin.elapsed() > Duration::from_secs(5) {
                    bytes += length;
                }
            }
            bytes as f64 * 8.0 / 15.0 / 1e6
        })
    };
    #[allow(clippy::disallowed_methods, reason = "its owner joins it")]
    std::thread::spawn(work)
}
