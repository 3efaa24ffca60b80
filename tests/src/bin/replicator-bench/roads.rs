//! `replicator-bench links`: the same load over the same links, once replicated by this program and twice by
//! stock PostgreSQL; one table, and a plot of lag over time.
//!
//! What each system measures is kept in a directory until the table is made, so that the systems can be run
//! one at a time.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use replicator_tests::wan::{Wan, Weather};
use replicator_tests::{PATIENCE, now, postgresql, text};

use crate::links::{self, Site, in_place, link, wait};

/// What replicates, as the table names it.
pub const SYSTEMS: [&str; 3] = ["ours", "stock default", "stock tuned"];

/// What happens on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    Nothing,
    /// The rate is a tenth for ten seconds.
    Drop,
    /// Nothing passes for thirty seconds.
    Cut,
}

/// A link, and for how long it is measured.
pub struct Road {
    name: &'static str,
    weather: Weather,
    event: Event,
    /// Seconds more than the others.
    more: u64,
}

/// How long before something happens.
const BEFORE: Duration = Duration::from_secs(5);

/// What a run showed.
pub struct Measured {
    /// When a row was committed, seconds after the beginning; and how long it took until it was seen,
    /// milliseconds, if it was.
    pub lags: Vec<(f64, Option<f64>)>,
    pub transactions_per_second: f64,
    /// Of both directions, all headers included.
    pub wan_bytes_per_transaction: f64,
}

impl Measured {
    /// Lags of rows that were seen, sorted; and how many were not.
    pub fn sorted(&self) -> (Vec<f64>, usize) {
        let mut lags: Vec<f64> = self.lags.iter().filter_map(|(_, lag)| *lag).collect();
        lags.sort_by(f64::total_cmp);
        let unseen = self.lags.len() - lags.len();
        (lags, unseen)
    }

    /// The median, the 99th percentile and the longest.
    pub fn ranks(&self) -> [f64; 3] {
        let lags = self.sorted().0;
        [50, 99, 100].map(|share| {
            let rank = (lags.len() * share / 100).min(lags.len().saturating_sub(1));
            lags.get(rank).copied().unwrap_or(f64::NAN)
        })
    }

    fn store(&self, path: &Path) {
        let mut out = format!("{} {}\n", self.transactions_per_second, self.wan_bytes_per_transaction);
        for (at, lag) in &self.lags {
            let _ = writeln!(out, "{at:.3} {:.1}", lag.unwrap_or(-1.0));
        }
        std::fs::write(path, out).unwrap();
    }

    fn load(path: &Path) -> Option<Measured> {
        let content = std::fs::read_to_string(path).ok()?;
        let mut pairs = content.lines().filter_map(|line| {
            let (a, b) = line.split_once(' ')?;
            Some((a.parse::<f64>().ok()?, b.parse::<f64>().ok()?))
        });
        let (transactions_per_second, wan_bytes_per_transaction) = pairs.next()?;
        let lags = pairs.map(|(at, lag)| (at, Some(lag).filter(|lag| *lag >= 0.0))).collect();
        Some(Measured { lags, transactions_per_second, wan_bytes_per_transaction })
    }
}

impl Road {
    fn new(name: &'static str, weather: Weather) -> Road {
        Road { name, weather, event: Event::Nothing, more: 0 }
    }

    /// 40 ms one way, 1000 Mbit/s, 50 ms of queue, and so many packets of a million lost.
    pub fn lossy(name: &'static str, loss_ppm: u32) -> Road {
        Road::new(name, link(1000, 40_000, 50_000, loss_ppm))
    }

    fn all() -> Vec<Road> {
        let bursts = Weather { bursts: (200, 20), ..link(1000, 40_000, 50_000, 0) };
        vec![
            Road::lossy("no loss", 0),
            Road::lossy("0.01 %", 100),
            Road::lossy("0.1 %", 1000),
            Road::lossy("1 %", 10_000),
            Road::lossy("3 %", 30_000),
            Road::new("bursts of 20, 0.4 %", bursts),
            Road::new("200 ms one way", link(1000, 200_000, 50_000, 0)),
            Road::new("10 Mbit/s", link(10, 40_000, 100_000, 0)),
            Road {
                event: Event::Drop,
                ..Road::new("100 Mbit/s, a tenth for 10 s", link(100, 40_000, 100_000, 0))
            },
            Road { event: Event::Cut, more: 22, ..Road::lossy("cut for 30 s", 0) },
        ]
    }

    /// What the road does while it is measured.
    fn play(&self, wan: &Wan) {
        let sleep = |duration| in_place(tokio::time::sleep(duration));
        match self.event {
            Event::Nothing => {}
            Event::Drop => {
                sleep(BEFORE);
                wan.change_all(|weather| weather.rate = weather.rate.map(|rate| rate / 10));
                sleep(Duration::from_secs(10));
                wan.change_all(|weather| weather.rate = self.weather.rate);
            }
            Event::Cut => {
                sleep(BEFORE);
                wan.change_all(|weather| weather.cut = true);
                sleep(Duration::from_secs(30));
                wan.change_all(|weather| weather.cut = false);
            }
        }
    }
}

/// Two PostgreSQLs, the second of which has what the first has.
pub struct Ends<'a> {
    pub wan: &'a Wan,
    pub urls: &'a [String; 2],
    /// How the links are while nothing is measured.
    pub between: Weather,
}

impl Ends<'_> {
    fn sql(&self, place: usize, arguments: &[&str]) -> String {
        let mut psql = self.wan.command(place, &postgresql("psql"));
        psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", &self.urls[place]]).args(arguments);
        text(&psql.output().unwrap().stdout).trim().to_owned()
    }

    /// The tables that are written to.
    pub fn prepare(&self) {
        let mut pgbench = self.wan.command(0, &postgresql("pgbench"));
        let made = pgbench.args(["-i", "-q", "-s", "20", &self.urls[0]]).output().unwrap();
        assert!(made.status.success(), "{}", text(&made.stderr));
        self.sql(
            0,
            &["-c", "CREATE TABLE probe (id bigint PRIMARY KEY)", "-c", "CREATE TABLE level (n text)"],
        );
    }

    /// Waits until the second has all that the first has now.
    fn until_level(&self) {
        let mark = self.sql(0, &["-c", "INSERT INTO level VALUES (pg_current_wal_lsn()::text) RETURNING n"]);
        let find = format!("SELECT count(*) FROM level WHERE n = '{mark}'");
        let begin = now();
        while self.sql(1, &["-c", &find]) != "1" {
            assert!(begin.elapsed() < 4 * PATIENCE, "it does not come to have what there is");
            wait();
        }
    }

    /// Has pgbench and the prober run over `road`.
    pub fn measure(&self, road: &Road, seconds: u64) -> Measured {
        let seconds = seconds + road.more;
        self.sql(0, &["-c", "TRUNCATE probe", "-c", "CHECKPOINT"]);
        self.until_level();
        self.wan.change_all(|weather| *weather = road.weather.clone());
        let carried =
            || [(0, 1), (1, 0)].map(|(from, to)| self.wan.carried(from, to).bytes).iter().sum::<u64>();
        let before = carried();
        let begin = now();
        let [writer, reader] = self.urls.clone();
        let end = begin + Duration::from_secs(seconds);
        let mut pgbench = self.wan.command(0, &postgresql("pgbench"));
        pgbench.args(["-c", "8", "-j", "2", "-T", &seconds.to_string(), &self.urls[0]]);
        let (committed, seen, output) = std::thread::scope(|scope| {
            let work = move || in_place(links::write(writer, end));
            let committed = scope.spawn(|| self.wan.within(0, work).unwrap());
            // What is late by two seconds at the end counts as unseen.
            let work = move || in_place(links::read(reader, end + Duration::from_secs(2)));
            let seen = scope.spawn(|| self.wan.within(1, work).unwrap());
            scope.spawn(|| road.play(self.wan));
            let output = pgbench.output().unwrap();
            (committed.join().unwrap(), seen.join().unwrap(), output)
        });
        let bytes = carried() - before;
        self.wan.change_all(|weather| *weather = self.between.clone());
        let report = text(&output.stdout);
        let number = |what: &str| {
            let found = report
                .lines()
                .find_map(|l| l.strip_prefix(what)?.trim().split([' ', '/']).next()?.parse().ok());
            found.unwrap_or_else(|| panic!("{report}{}", text(&output.stderr)))
        };
        let transactions: f64 = number("number of transactions actually processed:");
        let mut lags = Vec::new();
        for (id, at) in committed.iter().enumerate() {
            let first = seen.iter().find(|(newest, _)| *newest >= i64::try_from(id).unwrap());
            let lag = first.map(|(_, first)| first.saturating_duration_since(*at).as_secs_f64() * 1000.0);
            lags.push((at.duration_since(begin).as_secs_f64(), lag));
        }
        let rows = u32::try_from(committed.len()).unwrap();
        Measured {
            lags,
            transactions_per_second: number("tps ="),
            wan_bytes_per_transaction: bytes as f64 / (transactions + f64::from(rows)),
        }
    }
}

/// A stock writer and its asynchronous standby, each in a place of its own.
struct Stock {
    wan: Wan,
    directory: tempfile::TempDir,
    urls: [String; 2],
}

impl Stock {
    fn up(congestion: &str, compression: &str) -> Stock {
        use std::os::unix::fs::PermissionsExt;
        let wan = Wan::new(2, 1).expect("root, and `ip`");
        let directory = tempfile::Builder::new().prefix("rpl-stock-").tempdir().unwrap();
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        let url =
            |place| format!("postgresql://postgres@{}:6401/postgres?sslmode=disable", Wan::address(place));
        let stock = Stock { wan, directory, urls: [url(0), url(1)] };
        (0..2).for_each(|place| links::set_tcp(&stock.wan, place, congestion));
        let settings =
            format!("wal_compression = {compression}\nunix_socket_directories = ''\nport = 6401\n");
        let (writer, standby) = (stock.data(0), stock.data(1));
        stock.run(0, "initdb", &["-k", "-A", "trust", "-U", "postgres", "--locale=C.UTF-8", "-D", &writer]);
        let append = |file: &str, more: &str| {
            let path = Path::new(&writer).join(file);
            let content = std::fs::read_to_string(&path).unwrap() + more;
            std::fs::write(path, content).unwrap();
        };
        append("postgresql.conf", &settings);
        append("pg_hba.conf", "host all all all trust\nhost replication all all trust\n");
        stock.start(0);
        stock.run(1, "pg_basebackup", &["-c", "fast", "-R", "-D", &standby, "-d", &stock.urls[0]]);
        stock.start(1);
        stock
    }

    fn data(&self, place: usize) -> String {
        self.directory.path().join(place.to_string()).to_str().unwrap().to_owned()
    }

    fn start(&self, place: usize) {
        let options = format!("-c listen_addresses={}", Wan::address(place));
        let log = self.data(place) + ".log";
        self.run(place, "pg_ctl", &["start", "-w", "-D", &self.data(place), "-l", &log, "-o", &options]);
    }

    fn run(&self, place: usize, program: &str, arguments: &[&str]) {
        let mut command = self.wan.command(place, &PathBuf::from("runuser"));
        command.args(["-u", "postgres", "--"]).arg(postgresql(program)).args(arguments);
        command.current_dir(self.directory.path()).stdout(Stdio::null());
        assert!(command.status().unwrap().success(), "{program} {arguments:?}");
    }
}

impl Drop for Stock {
    fn drop(&mut self) {
        for place in [1, 0] {
            self.run(place, "pg_ctl", &["stop", "-w", "-m", "immediate", "-D", &self.data(place)]);
        }
    }
}

/// Runs `only` one of [`SYSTEMS`], or all, over each road; and makes table and plot of what is known then.
pub fn run(seconds: u64, only: Option<u64>) {
    let kept = PathBuf::from("target/links");
    std::fs::create_dir_all(&kept).unwrap();
    let bbr = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_available_congestion_control")
        .is_ok_and(|has| has.split_whitespace().any(|name| name == "bbr"));
    if !bbr {
        println!("this kernel has no TCP BBR: stock tuned is with CUBIC");
    }
    for (number, system) in SYSTEMS.iter().enumerate() {
        if only.is_some_and(|only| usize::try_from(only) != Ok(number)) {
            continue;
        }
        let over = |ends: &Ends<'_>| {
            ends.prepare();
            for (place, road) in Road::all().iter().enumerate() {
                let measured = ends.measure(road, seconds);
                println!(
                    "{system}, {}: {:.0?} ms, {} unseen",
                    road.name,
                    measured.ranks(),
                    measured.sorted().1
                );
                measured.store(&kept.join(format!("{number}-{place}")));
            }
        };
        match number {
            0 => {
                let site = Site::up("pacing");
                over(&site.ends());
            }
            1 => {
                let stock = Stock::up("cubic", "off");
                over(&Ends { wan: &stock.wan, urls: &stock.urls, between: Weather::default() });
            }
            _ => {
                let stock = Stock::up(if bbr { "bbr" } else { "cubic" }, "zstd");
                over(&Ends { wan: &stock.wan, urls: &stock.urls, between: Weather::default() });
            }
        }
    }
    report(&kept);
}

/// Prints the table, and draws the plot beside it.
fn report(kept: &Path) {
    println!(
        "\n| link | system | transactions/s | lag p50 / p99 / longest, ms | unseen | WAN bytes/transaction |"
    );
    println!("|---|---|---|---|---|---|");
    let mut panels = Vec::new();
    for (place, road) in Road::all().iter().enumerate() {
        let of = |number| Measured::load(&kept.join(format!("{number}-{place}")));
        let all: Vec<Option<Measured>> = (0..SYSTEMS.len()).map(of).collect();
        for (system, measured) in SYSTEMS.iter().zip(&all) {
            let Some(measured) = measured else { continue };
            let ([p50, p99, longest], (seen, unseen)) = (measured.ranks(), measured.sorted());
            let rows = seen.len() + unseen;
            println!(
                "| {} | {system} | {:.0} | {p50:.0} / {p99:.0} / {longest:.0} | {unseen} of {rows} | {:.0} |",
                road.name, measured.transactions_per_second, measured.wan_bytes_per_transaction
            );
        }
        panels.push((road.name, all));
    }
    let path = kept.join("lag.svg");
    std::fs::write(&path, plot(&panels)).unwrap();
    println!(
        "\nlag over time: {}; for the documents: cp {} docs/pictures/links.svg",
        path.display(),
        path.display()
    );
}

const COLORS: [&str; 3] = ["#1a6fb4", "#c2452d", "#3a8f4c"];

/// A panel's size, and what is around its axes.
const WIDE: f64 = 460.0;
const HIGH: f64 = 190.0;
const LEFT: f64 = 50.0;
const TOP: f64 = 26.0;

/// A panel for each road: seconds across, milliseconds up, from 10 ms to 100 s by powers of ten. What was
/// never seen stands above.
fn plot(panels: &[(&str, Vec<Option<Measured>>)]) -> String {
    let (inner_wide, inner_high) = (WIDE - LEFT - 14.0, HIGH - TOP - 24.0);
    let rows = panels.len().div_ceil(2);
    let (all_wide, all_high) = (2.0 * WIDE, HIGH * rows as f64 + 30.0);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {all_wide} {all_high}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    for (number, (name, measured)) in panels.iter().enumerate() {
        let (x, y) = ((number % 2) as f64 * WIDE + LEFT, (number / 2) as f64 * HIGH + TOP);
        let times = measured.iter().flatten().flat_map(|m| m.lags.iter().map(|(at, _)| *at));
        let longest = times.fold(1.0, f64::max);
        let _ = writeln!(out, "<text x=\"{x}\" y=\"{}\" font-weight=\"bold\">{name}</text>", y - 8.0);
        for power in 1..=5_i32 {
            let at = y + inner_high * (1.0 - f64::from(power - 1) / 4.0);
            let label = ["10 ms", "100 ms", "1 s", "10 s", "100 s"][usize::try_from(power - 1).unwrap()];
            let _ = writeln!(
                out,
                "<path d=\"M{x} {at:.1}h{inner_wide}\" stroke=\"#ddd\"/><text x=\"{}\" y=\"{:.1}\" \
                 text-anchor=\"end\" fill=\"#555\">{label}</text>",
                x - 4.0,
                at + 4.0
            );
        }
        let _ = writeln!(
            out,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\" fill=\"#555\">{longest:.0} s</text>",
            x + inner_wide,
            y + inner_high + 14.0
        );
        for (color, measured) in COLORS.iter().zip(measured) {
            let Some(measured) = measured else { continue };
            let mut path = String::new();
            for (at, lag) in &measured.lags {
                let up = lag.map_or(1.0, |ms| (ms.max(10.0).log10() - 1.0) / 4.0).min(1.0);
                let step = if path.is_empty() { 'M' } else { 'L' };
                let _ = write!(
                    path,
                    "{step}{:.1} {:.1}",
                    x + at / longest * inner_wide,
                    y + inner_high * (1.0 - up)
                );
            }
            let _ =
                writeln!(out, "<path d=\"{path}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"1.2\"/>");
        }
    }
    for (number, (system, color)) in SYSTEMS.iter().zip(COLORS).enumerate() {
        let x = LEFT + number as f64 * 150.0;
        let _ = writeln!(out, "<text x=\"{x}\" y=\"{}\" fill=\"{color}\">{system}</text>", all_high - 10.0);
    }
    out + "</svg>\n"
}
