//! The primary region's part: read the writer's redo once, cut and compress it once, make it durable, and
//! ship it to every secondary region.
//!
//! ```text
//! writer ─► reader ─► batcher ─► volume ─┬─► shipper ══► secondary
//!    ▲                                   ├─► shipper ══► secondary
//!    └────── acknowledged ◄── durable ───┘
//! ```
//!
//! [`reader`] follows the writer and owns the only way into the volume. [`shipper`] has one task for each
//! secondary, which reads the volume at its own pace. Neither waits for the other, and no secondary waits for
//! another.

pub mod archive;
pub mod batcher;
pub mod facts;
pub mod gate;
pub mod lag;
pub mod reader;
pub mod release;
pub mod shipper;

mod clock;
mod known;
mod trace;
mod view;

use std::collections::BTreeSet;
use std::sync::Arc;

use postgres::instance::Instance;
use proto::{ClusterId, Epoch, Lsn, RegionName, SystemId};
use runtime::task::{Task, Tasks};
use telemetry::trace::Tracer;
use tokio_util::sync::CancellationToken;
use transport::{EgressCap, Endpoint};
use volume::Volume;

pub use facts::SecondaryFacts;
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
    /// It may have led that epoch before: it was not promoted just now.
    pub led: bool,
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
    /// How long a voter's support lets commits go on.
    pub lease: std::time::Duration,
    /// The secondaries.
    pub targets: Vec<Target>,
    /// This region.
    pub own: RegionName,
    /// The sets of voters, regions and witnesses: the support of a majority of each lets commits go on.
    pub voters: tokio::sync::watch::Receiver<Vec<BTreeSet<RegionName>>>,
    /// The file that has the superuser's password, which is sent with a seed so that every region can print a
    /// connection string.
    pub superuser_password: std::path::PathBuf,
    /// Samples batches, and follows those.
    pub tracer: Tracer,
}

impl PrimaryOptions {
    fn superuser_password(&self) -> std::io::Result<String> {
        Ok(std::fs::read_to_string(&self.superuser_password)?.trim().to_owned())
    }
}

/// A running primary. [`Primary::stop`] stops it in order; dropping it ends it at once.
#[derive(Debug)]
pub struct Primary {
    views: Arc<view::Views>,
    stop_reader: CancellationToken,
    reader: tokio::sync::Mutex<Option<Task<()>>>,
    shippers: Tasks,
    stop_shippers: CancellationToken,
    lease: gate::Lease,
    /// The cap of each secondary.
    egress: Vec<(RegionName, Arc<EgressCap>)>,
}

impl Primary {
    /// Starts reading and shipping.
    #[must_use]
    pub fn start(options: PrimaryOptions) -> Primary {
        let options = Arc::new(options);
        let (own, voters) = (options.own.clone(), options.voters.clone());
        let views = view::Views::new(&options.targets, own, voters, options.led, clock::steady_us());
        let views = Arc::new(views);
        let (stop_reader, stop_shippers) = (CancellationToken::new(), CancellationToken::new());
        let reading = reader::run(options.clone(), views.clone(), stop_reader.clone());
        let reader = tokio::sync::Mutex::new(Some(Task::spawn("the reader of the writer's redo", reading)));
        let shippers = Tasks::new();
        let mut caps = Vec::new();
        for target in &options.targets {
            let egress = Arc::new(EgressCap::new(target.bandwidth_bits_per_second));
            caps.push((target.name.clone(), egress.clone()));
            let (target, stop) = (target.clone(), stop_shippers.clone());
            shippers.spawn(shipper::run(options.clone(), views.clone(), target, egress, stop));
        }
        let lease = gate::Lease { length: options.lease };
        Primary { views, stop_reader, reader, shippers, stop_shippers, lease, egress: caps }
    }

    /// The most that is sent to `region` from now on, bits per second; none for no limit.
    pub fn limit(&self, region: &RegionName, bits_per_second: Option<u64>) {
        for (_, egress) in self.egress.iter().filter(|(name, _)| name == region) {
            egress.set(bits_per_second);
        }
    }

    /// How reading the writer goes: whether it streams, what hinders it, and how much redo was read.
    #[must_use]
    pub fn reader(&self) -> ReaderState {
        self.views.reader()
    }

    /// Each secondary, as this primary knows it, in the order of the file.
    #[must_use]
    pub fn secondaries(&self) -> Vec<SecondaryFacts> {
        self.views.facts(clock::now_us())
    }

    /// How long commits may go on returning if no voter answers any more, microseconds; none where there is
    /// no lease.
    #[must_use]
    pub fn lease_left_us(&self) -> Option<u64> {
        self.lease.left_us(clock::boottime_us(), &self.views.supported_us())
    }

    /// Has the writer keep what its catalogs had when transaction `xid` began, counted through all epochs, as
    /// the logical slots of secondaries still decode with it; nothing when it is 0. None: that is not known
    /// yet.
    pub fn hold_catalogs(&self, xid: Option<u64>) {
        self.views.catalogs.send_if_modified(|held| std::mem::replace(held, xid) != xid);
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

    /// Whether the writer has durable redo that may not be acknowledged now: it cannot stop cleanly, as it
    /// waits until all its redo is. Where commits wait for regions a moment of this is the rule; when it
    /// lasts, stop the writer at once.
    #[must_use]
    pub fn holds_back(&self) -> bool {
        self.views.holds_back()
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

    /// Whether commits may return at all; they may not before this is called with `true`. That also ends a
    /// [`Primary::hold`].
    pub fn acknowledge(&self, allowed: bool) {
        self.views.acknowledge(allowed);
    }

    /// Holds commits. When this returns, nothing more is reported to the writer as written, flushed or
    /// applied than was before, until [`Primary::acknowledge`] is called with `true`.
    pub fn hold(&self) {
        self.views.hold();
    }

    /// A voter has said that it supports this primary in its epoch, in answer to what left at `asked_at_us`
    /// of [`runtime::clock::boottime_us`]. What is no voter's name counts for nothing.
    pub fn supported(&self, voter: &RegionName, asked_at_us: u64) {
        self.views.supported(voter, asked_at_us);
    }

    /// Stops reading the writer. To be called once the writer has stopped, which it cannot do while its last
    /// redo is not acknowledged.
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
        // Each tells its region why it ends.
        self.shippers.ended().await;
    }
}
