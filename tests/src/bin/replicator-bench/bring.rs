//! `replicator-bench bring`: a seed and a catch-up over an emulated long and lossy link, and how much of the
//! link's rate they reach.

use std::time::Duration;

use replicator_tests::now;
use tokio::time::Instant;

use super::links::{PLACES, Site, in_place, link};

/// The link: 400 Mbit/s, 80 ms of round trip, 50 ms of queue, one packet in a hundred lost.
const MBIT: u64 = 400;
const DELAY_US: u64 = 40_000;
const QUEUE_US: u64 = 50_000;
const LOSS_PPM: u32 = 10_000;

/// How often it is looked how far it is.
const LOOK: Duration = Duration::from_millis(100);

/// Longer than this nothing takes.
const LONGEST: Duration = Duration::from_secs(400);

/// `mib` MiB of random rows: seeded, and as much again caught up with; with the controller of that name.
pub fn run(mib: u64, controller: &str) {
    println!(
        "{mib} MiB that do not compress; {MBIT} Mbit/s, {} ms of round trip, {} ms of queue, {} % of loss; {controller}; two regions \
         with six copies each on this machine's one disk\n",
        DELAY_US / 500,
        QUEUE_US / 1000,
        f64::from(LOSS_PPM) / 10_000.0
    );
    println!(
        "{:26} {:>9} {:>9} {:>9} {:>8} {:>9} {:>9}",
        "", "MB", "seconds", "Mbit/s", "of link", "sending s", "of link"
    );
    let mut site = Site::up(controller);
    site.sql("CREATE TABLE t (id bigint, pad bytea); ALTER TABLE t ALTER pad SET STORAGE EXTERNAL");
    site.sql(&fill(mib));
    site.sql("CHECKPOINT");
    site.until_streams();
    site.weather(link(MBIT, DELAY_US, QUEUE_US, LOSS_PPM));
    let seeded = site.timed(|site| site.reseed(1));
    show("seed", &seeded);
    site.still();
    site.until_streams();
    // It is away while as much is written, and comes back over the link.
    site.stop(1);
    site.sql(&fill(mib));
    site.weather(link(MBIT, DELAY_US, QUEUE_US, LOSS_PPM));
    let caught_up = site.timed(|site| site.start(1));
    show("catch-up", &caught_up);
    site.still();
    site.until_streams();
}

/// The statement that writes so many MiB.
fn fill(mib: u64) -> String {
    format!(
        "INSERT INTO t SELECT g, pg_read_binary_file('/dev/urandom', 0 * g, 1048576) FROM generate_series(1, {mib}) g"
    )
}

/// What one of them took.
pub(super) struct Took {
    /// What crossed the link, with all headers and what was sent again, bytes.
    wire_bytes: u64,
    all: Duration,
    /// From when a twentieth of that had crossed until nineteen twentieths had.
    sending: Duration,
}

fn show(what: &str, took: &Took) {
    let mbit = |bytes: f64, time: Duration| bytes * 8.0 / time.as_secs_f64() / 1e6;
    let (bytes, all, sending) = (took.wire_bytes as f64, took.all, took.sending);
    let (of_all, of_sending) = (mbit(bytes, all), mbit(bytes * 0.9, sending));
    println!(
        "{what:26} {:>9.0} {:>9.1} {of_all:>9.0} {:>6.0} % {:>9.1} {:>6.0} %",
        bytes / 1e6,
        all.as_secs_f64(),
        of_all * 100.0 / MBIT as f64,
        sending.as_secs_f64(),
        of_sending * 100.0 / MBIT as f64,
    );
}

impl Site {
    /// Does what sends the secondary a lot, and waits until it is level.
    fn timed(&mut self, begin: impl FnOnce(&mut Site)) -> Took {
        let (before, from) = (self.crossed(), now());
        begin(self);
        let mut seen: Vec<(Instant, u64)> = Vec::new();
        loop {
            seen.push((now(), self.crossed() - before));
            // Level before anything came is how it was.
            if seen.last().is_some_and(|(_, bytes)| *bytes > 16 << 20) && self.is_level() {
                break;
            }
            assert!(from.elapsed() < LONGEST, "{} in {}\n{}", seen.len(), PLACES[1], self.logs());
            in_place(tokio::time::sleep(LOOK));
        }
        let wire_bytes = seen.last().map_or(0, |(_, bytes)| *bytes);
        let when =
            |share: u64| seen.iter().find(|(_, bytes)| *bytes >= wire_bytes * share / 20).map(|(at, _)| *at);
        let sending = when(1).zip(when(19)).map_or(Duration::ZERO, |(first, last)| last - first);
        Took { wire_bytes, all: from.elapsed(), sending }
    }
}
