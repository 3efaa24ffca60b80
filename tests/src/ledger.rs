//! The oracle of every test that breaks something: unique rows, and the client's own record of which were
//! acknowledged.

#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use runtime::task::Task;
use sqlx::{Connection, Executor, PgConnection};
use tokio::time::Instant;

use crate::{Cluster, now, pause};

/// Clients that write unique rows and remember which were acknowledged.
pub struct Ledger {
    stop: Arc<AtomicBool>,
    next: Arc<AtomicI64>,
    writers: Vec<Task<Vec<(i64, Instant)>>>,
}

impl Ledger {
    /// Starts `writers` clients of a table `ledger (id bigint)`, which is made.
    pub async fn start(url: &str, writers: usize) -> Ledger {
        Ledger::start_at(vec![url.to_owned()], writers).await
    }

    /// The same with clients that write to whichever of `urls` takes writes, the first one to begin with.
    pub async fn start_at(urls: Vec<String>, writers: usize) -> Ledger {
        let mut connection = PgConnection::connect(&urls[0]).await.unwrap();
        connection.execute("CREATE TABLE IF NOT EXISTS ledger (id bigint)").await.unwrap();
        Ledger::start_from(urls, writers, 1)
    }

    /// The same where the table is there already; the first row is `first`.
    #[must_use]
    pub fn start_from(urls: Vec<String>, writers: usize, first: i64) -> Ledger {
        let (stop, next) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicI64::new(first)));
        let write = |_| Task::spawn("a client", write(urls.clone(), next.clone(), stop.clone()));
        let writers = (0..writers).map(write).collect();
        Ledger { stop, next, writers }
    }

    /// How many commits were tried so far.
    #[must_use]
    pub fn written(&self) -> i64 {
        self.next.load(Ordering::Relaxed)
    }

    /// Waits until `count` more commits were tried: each client has one before its next.
    pub async fn until_written(&self, count: i64) {
        let from = self.written();
        crate::until("commits go on", || async { self.written() > from + count }).await;
    }

    /// Ends the load; returns the rows whose commits were acknowledged.
    pub async fn acknowledged(self) -> Acknowledged {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        for writer in self.writers {
            all.extend(writer.await.unwrap());
        }
        assert!(self.next.load(Ordering::Relaxed) > 1);
        Acknowledged(all)
    }
}

/// A connection to one of `urls` that takes writes: the first that says so. One that is gone holds up nobody.
async fn writer_of(urls: &[String]) -> Option<PgConnection> {
    let mut looking = tokio::task::JoinSet::new();
    for url in urls {
        let url = url.clone();
        let looks = async move {
            let mut connection = PgConnection::connect(&url).await.ok()?;
            let read_only: String =
                sqlx::query_scalar("SHOW transaction_read_only").fetch_one(&mut connection).await.ok()?;
            (read_only == "off").then_some(connection)
        };
        looking.spawn(tokio::time::timeout(Duration::from_secs(1), looks));
    }
    while let Some(looked) = looking.join_next().await {
        if let Ok(Ok(Some(connection))) = looked {
            return Some(connection);
        }
    }
    None
}

async fn write(urls: Vec<String>, next: Arc<AtomicI64>, stop: Arc<AtomicBool>) -> Vec<(i64, Instant)> {
    let mut acknowledged = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let Some(mut connection) = writer_of(&urls).await else {
            pause().await;
            continue;
        };
        while !stop.load(Ordering::Relaxed) {
            let id = next.fetch_add(1, Ordering::Relaxed);
            let insert = sqlx::query("INSERT INTO ledger VALUES ($1)").bind(id).execute(&mut connection);
            // A commit may hang while nobody makes it durable: that is the promise, and not an
            // acknowledgement.
            match tokio::time::timeout(Duration::from_secs(5), insert).await {
                Ok(Ok(_)) => acknowledged.push((id, now())),
                Ok(Err(_)) | Err(_) => break,
            }
        }
    }
    acknowledged
}

/// The commits that clients saw return, each with its moment.
pub struct Acknowledged(Vec<(i64, Instant)>);

impl Acknowledged {
    /// How many.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// When the first was.
    #[must_use]
    pub fn first(&self) -> Option<Instant> {
        self.0.iter().map(|(_, at)| *at).min()
    }

    /// How many were acknowledged between two moments.
    #[must_use]
    pub fn between(&self, begin: Instant, end: Instant) -> usize {
        self.0.iter().filter(|(_, at)| (begin..end).contains(at)).count()
    }

    /// The longest time between two moments in which no client's commit returned.
    #[must_use]
    pub fn longest_gap(&self, begin: Instant, end: Instant) -> Duration {
        let mut moments: Vec<Instant> =
            self.0.iter().map(|(_, at)| *at).filter(|at| (begin..end).contains(at)).collect();
        moments.extend([begin, end]);
        moments.sort_unstable();
        moments.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
    }

    /// When the last of some rows was acknowledged.
    #[must_use]
    pub fn last_of(&self, rows: &[i64]) -> Option<Instant> {
        let rows: std::collections::HashSet<i64> = rows.iter().copied().collect();
        self.0.iter().filter(|(id, _)| rows.contains(id)).map(|(_, at)| *at).max()
    }

    /// Checks that every one of them is in every region.
    pub async fn assert_in_all(&self, cluster: &Cluster) {
        for region in &cluster.regions {
            let missing = self.missing(cluster, region).await;
            assert_eq!(missing, Vec::<i64>::new(), "acknowledged and not in {region}\n{}", cluster.logs());
        }
        println!("{} acknowledged commits, all in every region", self.count());
    }

    /// Those that a region does not have.
    pub async fn missing(&self, cluster: &Cluster, region: &str) -> Vec<i64> {
        self.missing_in(&mut cluster.connect(region).await).await
    }

    /// Those that are not where `connection` leads to.
    pub async fn missing_in(&self, connection: &mut PgConnection) -> Vec<i64> {
        let ids: Vec<i64> = self.0.iter().map(|(id, _)| *id).collect();
        let query = "SELECT id FROM unnest($1::bigint[]) AS id WHERE id NOT IN (SELECT id FROM ledger)";
        sqlx::query_scalar(query).bind(&ids).fetch_all(connection).await.unwrap()
    }
}
