//! The primary region's part: read the writer's redo once, cut and compress it once, make it durable, and ship it to
//! every secondary region.
//!
//! ```text
//! writer ─► reader ─► batcher ─► volume ─┬─► shipper ══► secondary
//!    ▲                                   ├─► shipper ══► secondary
//!    └────── acknowledged ◄── durable ───┘
//! ```
//!
//! [`reader`] follows the writer and owns the only way into the volume. [`shipper`] has one task for each secondary, which
//! reads the volume at its own pace. Neither waits for the other, and no secondary waits for another.

pub mod batcher;
pub mod gate;
pub mod lag;
pub mod reader;
pub mod records;
pub mod shipper;

mod clock;
mod view;

use std::net::SocketAddr;
use std::sync::Arc;

use postgres::instance::Instance;
use proto::messages::RegionStatus;
use proto::{ClusterId, Epoch, Lsn, RegionName, SystemId};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use transport::{EgressCap, Endpoint};
use volume::Volume;

pub use view::ReaderState;

/// One secondary region to ship to.
#[derive(Debug, Clone)]
pub struct Target {
    /// Its name, which its certificate must bear.
    pub name: RegionName,
    /// Its QUIC address, `host:port`; a host name is looked up at each attempt.
    pub address: String,
    /// The most to send it, bits per second.
    pub bandwidth_bits_per_second: Option<u64>,
    /// Its connection string for status, without a password.
    pub url: String,
}

/// What a primary region works with.
#[derive(Debug, Clone)]
pub struct PrimaryOptions {
    /// The cluster.
    pub cluster_id: ClusterId,
    /// The epoch it leads.
    pub epoch: Epoch,
    /// Its PostgreSQL.
    pub system_id: SystemId,
    /// The writer, which is reached by a local socket.
    pub writer: Instance,
    /// The name of the replication slot that keeps the writer's redo until the volume has it.
    pub slot: String,
    /// The region's redo log.
    pub volume: Volume,
    /// The region's QUIC endpoint.
    pub endpoint: Endpoint,
    /// What is promised of commits.
    pub commit: gate::CommitPolicy,
    /// How long the others' answers let commits go on.
    pub lease: std::time::Duration,
    /// The secondaries.
    pub targets: Vec<Target>,
    /// Daemons without data whose answers let commits go on as well.
    pub witnesses: Vec<RegionName>,
    /// The superuser's password, sent with a seed so that every region can print a connection string.
    pub superuser_password: String,
}

/// A running primary. Dropping it does not stop it; [`Primary::stop`] does.
#[derive(Debug)]
pub struct Primary {
    views: Arc<view::Views>,
    stop_reader: CancellationToken,
    stop_shippers: CancellationToken,
    reader: tokio::sync::Mutex<Option<JoinHandle<()>>>,
    shippers: tokio::sync::Mutex<Vec<JoinHandle<()>>>,
}

impl Primary {
    /// Starts reading and shipping.
    #[must_use]
    pub fn start(options: PrimaryOptions) -> Primary {
        let options = Arc::new(options);
        let views = Arc::new(view::Views::new(&options.targets, &options.witnesses));
        let (stop_reader, stop_shippers) = (CancellationToken::new(), CancellationToken::new());
        let reader = tokio::spawn(reader::run(options.clone(), views.clone(), stop_reader.clone()));
        let shippers = options.targets.iter().map(|target| {
            let egress = EgressCap::new(target.bandwidth_bits_per_second);
            tokio::spawn(shipper::run(
                options.clone(),
                views.clone(),
                target.clone(),
                egress,
                stop_shippers.clone(),
            ))
        });
        let (reader, shippers) =
            (tokio::sync::Mutex::new(Some(reader)), tokio::sync::Mutex::new(shippers.collect()));
        Primary { views, stop_reader, stop_shippers, reader, shippers }
    }

    /// How reading the writer goes: whether it streams, what hinders it, and how much redo was read.
    #[must_use]
    pub fn reader(&self) -> ReaderState {
        self.views.reader()
    }

    /// A row for each secondary, as this primary knows it.
    #[must_use]
    pub fn secondaries(&self) -> Vec<RegionStatus> {
        self.views.rows(clock::now_us())
    }

    /// Forgets that; a region may say so again.
    pub fn forget_fenced(&self) {
        self.views.fence(false);
    }

    /// Whether a region has said that this primary's epoch is over: it is to be found out.
    #[must_use]
    pub fn is_fenced(&self) -> bool {
        self.views.is_fenced()
    }

    /// The writer stops: its last redo is taken without waiting for anyone else, as no commit waits for it.
    pub fn drain(&self) {
        self.views.drain();
    }

    /// Whether every secondary that is streaming has all redo that is durable here.
    #[must_use]
    pub fn all_shipped(&self) -> bool {
        self.views.all_shipped()
    }

    /// Whether a secondary has applied all redo up to `lsn`.
    #[must_use]
    pub fn has_applied(&self, region: &RegionName, lsn: Lsn) -> bool {
        self.views.has_applied(region, lsn)
    }

    /// Whether commits may return at all; they may not before this is called with `true`.
    pub fn acknowledge(&self, allowed: bool) {
        self.views.acknowledge(allowed);
    }

    /// A witness has answered what left at `left_us` of [`Primary::steady_us`].
    pub fn witness_answered(&self, name: &RegionName, left_us: i64) {
        self.views.witness_answered(name, left_us);
    }

    /// Microseconds on the clock by which leases are kept, which never steps.
    #[must_use]
    pub fn steady_us() -> i64 {
        clock::steady_us()
    }

    /// Stops reading the writer. To be called once the writer has stopped, which it cannot do while its last redo is
    /// not acknowledged.
    pub async fn stop_reading(&self) {
        self.stop_reader.cancel();
        if let Some(reader) = self.reader.lock().await.take() {
            // A task that panicked has nothing left to stop; the panic was reported.
            let _ = reader.await;
        }
    }

    /// Stops everything.
    pub async fn stop(&self) {
        self.stop_reading().await;
        self.stop_shippers.cancel();
        for shipper in self.shippers.lock().await.drain(..) {
            let _ = shipper.await;
        }
    }
}

/// The addresses of `host:port`.
async fn resolve(address: &str) -> std::io::Result<SocketAddr> {
    let mut found = tokio::net::lookup_host(address).await?;
    found.next().ok_or_else(|| std::io::Error::other(format!("{address} has no address")))
}
