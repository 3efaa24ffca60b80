//! The truth about a lag, by an observer who knows nothing of the daemons: rows with the clock's time are
//! written at the primary and looked for at a secondary; and what the primary's daemon says of it meanwhile.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use runtime::clock::wall_us;
use runtime::task::{Task, Tasks};
use sqlx::PgConnection;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use crate::now;

/// How often a row is written.
const BEAT: Duration = Duration::from_millis(40);

/// What is carried in one piece, bytes.
const DATAGRAM_BYTES_MAX: usize = 1 << 16;

/// Datagrams to a region, by way of here: a link that can be cut. It goes when it is dropped.
pub struct Relay {
    cut: Arc<AtomicBool>,
    _carrying: Task<()>,
}

impl Relay {
    /// Carries what comes to `port` on to `to`, and what comes back to whoever had sent.
    pub async fn open(port: u16, to: SocketAddr) -> Relay {
        let cut = Arc::new(AtomicBool::new(false));
        let front = Arc::new(UdpSocket::bind(("127.0.0.1", port)).await.unwrap());
        let carrying = carry(front, to, cut.clone());
        Relay { cut, _carrying: Task::spawn("a relay", carrying) }
    }

    /// Nothing passes, or everything does again.
    pub fn cut(&self, cut: bool) {
        self.cut.store(cut, Ordering::Relaxed);
    }
}

async fn carry(front: Arc<UdpSocket>, to: SocketAddr, cut: Arc<AtomicBool>) {
    let backwards = Tasks::new();
    let mut backs: Vec<(SocketAddr, Arc<UdpSocket>)> = Vec::new();
    let mut datagram = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        // A peer that has gone is said to be unreachable here.
        let Ok((length, from)) = front.recv_from(&mut datagram).await else { continue };
        let known = backs.iter().find(|(known, _)| *known == from).map(|(_, back)| back.clone());
        let back = match known {
            Some(back) => back,
            None => {
                let back = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
                back.connect(to).await.unwrap();
                backs.push((from, back.clone()));
                let (front, hears, cut) = (front.clone(), back.clone(), cut.clone());
                backwards.spawn(async move {
                    let mut datagram = vec![0; DATAGRAM_BYTES_MAX];
                    loop {
                        let Ok(length) = hears.recv(&mut datagram).await else { continue };
                        if !cut.load(Ordering::Relaxed) {
                            let _ = front.send_to(&datagram[..length], from).await;
                        }
                    }
                });
                back
            }
        };
        if !cut.load(Ordering::Relaxed) {
            let _ = back.send(&datagram[..length]).await;
        }
    }
}

/// Rows with the clock's time, one every 40 ms, in a table `beat`, until this is dropped.
pub struct Beats {
    /// When each was written, microseconds since 1970, once its commit had returned; its place is its number.
    written_us: Arc<Mutex<Vec<i64>>>,
    _writing: Task<()>,
}

impl Beats {
    /// Writes by `session`, which is one of the primary.
    pub async fn begin(mut session: PgConnection) -> Beats {
        let table = "DROP TABLE IF EXISTS beat; CREATE TABLE beat (number bigint PRIMARY KEY, at_us bigint)";
        sqlx::raw_sql(table).execute(&mut session).await.unwrap();
        let written_us = Arc::new(Mutex::new(Vec::new()));
        let written = written_us.clone();
        let writing = async move {
            let mut ticks = tokio::time::interval(BEAT);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            for number in 0_i64.. {
                ticks.tick().await;
                let at_us = wall_us();
                let row = sqlx::query("INSERT INTO beat VALUES ($1, $2)").bind(number).bind(at_us);
                // The primary is another one by now.
                if row.execute(&mut session).await.is_err() {
                    return;
                }
                written.lock().unwrap().push(at_us);
            }
        };
        Beats { written_us, _writing: Task::spawn("beats", writing) }
    }

    /// None at all: nothing is behind.
    #[must_use]
    pub fn none() -> Beats {
        Beats { written_us: Arc::default(), _writing: Task::spawn("no beats", async {}) }
    }

    /// How far who has `seen` so many rows is behind at `now_us`, microseconds.
    fn behind_us(&self, seen: usize, now_us: i64) -> i64 {
        self.written_us.lock().unwrap().get(seen).map_or(0, |at_us| now_us - at_us)
    }
}

/// A moment: how far a secondary was behind, and what its primary's daemon said, milliseconds.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    /// The truth, at least and at most: what was asked took a moment.
    pub truth_ms: [f64; 2],
    /// What the daemon said.
    pub said_ms: f64,
}

impl Seen {
    /// How far what was said is from the truth; negative where too little was said.
    #[must_use]
    pub fn off_ms(&self) -> f64 {
        let [least, most] = self.truth_ms;
        (self.said_ms - most).max(0.0) + (self.said_ms - least).min(0.0)
    }
}

/// The value of a series at `http` of a daemon; none when it is not there, or nobody answers.
pub async fn series(port: u16, series: &str) -> Option<f64> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: x\r\n\r\n").await.ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await.ok()?;
    text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))?.parse().ok()
}

/// The name of the visible lag of `region`, with its label.
#[must_use]
pub fn visible(region: &str) -> String {
    format!("replicator_visible_lag_seconds{{region=\"{region}\"}}")
}

/// Compares for `period`: `secondary` is a session there, and the primary's daemon answers at `port`.
pub async fn compare(
    beats: &Beats,
    secondary: &mut PgConnection,
    port: u16,
    region: &str,
    period: Duration,
) -> Vec<Seen> {
    let (begin, name, mut all) = (now(), visible(region), Vec::new());
    while begin.elapsed() < period {
        let before_us = wall_us();
        let rows = sqlx::query_scalar::<_, i64>("SELECT coalesce(max(number) + 1, 0) FROM beat");
        let (rows, said) = tokio::join!(rows.fetch_one(&mut *secondary), series(port, &name));
        let (seen, after_us) = (usize::try_from(rows.unwrap()).unwrap(), wall_us());
        let said = said.unwrap_or_else(|| panic!("there is no {name}"));
        #[allow(clippy::cast_precision_loss, reason = "microseconds of a test")]
        let ms = |at_us: i64| beats.behind_us(seen, at_us).max(0) as f64 / 1e3;
        all.push(Seen { truth_ms: [ms(before_us), ms(after_us)], said_ms: said * 1e3 });
        tokio::time::sleep(Duration::from_millis(7)).await;
    }
    all
}
