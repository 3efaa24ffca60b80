//! What the owner of a region's part works with: the region's PostgreSQL, its volume and its streams.
//!
//! The daemon has real ones (`replicator/src/region/`), the simulation a model. Nothing here decides
//! anything.

use std::fmt::Debug;

use coordination::Redo;
use coordination::region::Database;
use proto::messages::Finding;
use proto::{Epoch, Lsn, RegionName, SystemId, Timeline};

/// Why something could not be done, in words for an operator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Trouble(pub String);

impl Trouble {
    /// Trouble in these words.
    #[must_use]
    pub fn new(why: impl ToString) -> Trouble {
        Trouble(why.to_string())
    }
}

/// What is known of a region's own redo and writer at a moment. Looking never waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observed {
    /// The volume is open.
    pub open: bool,
    /// What is durable in the volume.
    pub durable: Redo,
    /// The volume holds redo.
    pub has_redo: bool,
    /// A PostgreSQL that takes writes runs, whoever started it.
    pub writer_runs: bool,
    /// How far the primary was durable, as it said last.
    pub primary_lsn: Lsn,
    /// Another region has said that the epoch which this one leads is over.
    pub refused: bool,
}

/// A future of the owner's.
pub trait Work<T>: Future<Output = Result<T, Trouble>> + Send {}

impl<T, F: Future<Output = Result<T, Trouble>> + Send> Work<T> for F {}

/// A region's PostgreSQL, volume and streams. Each action may be given up at any await: what it began is
/// taken up, or stopped, by the next one.
pub trait Cluster: Debug + Send + Sync + 'static {
    /// What is known at this moment.
    fn observe(&self) -> Observed;

    /// What the data directory is, asked for the timeline that an epoch begins.
    fn database(&self, timeline: Timeline) -> impl Work<Database>;

    /// Whether the data directory was ever a writer's since it last followed: what is a standby still was
    /// not.
    fn was_promoted(&self) -> bool;

    /// Makes the cluster's database in this region's empty place; returns its system identifier.
    fn create(&self) -> impl Work<SystemId>;

    /// Holds commits: from its return on none is acknowledged, until [`Cluster::acknowledge`] allows it.
    fn hold(&self);

    /// Lets commits return, as lease and level allow, or holds them.
    fn acknowledge(&self, allowed: bool);

    /// What a region said that refused this primary was looked into.
    fn forget_refusal(&self);

    /// Ends the primary's streams to this region: from its return on nothing that they brought is answered.
    fn shut_out(&self);

    /// Waits until what was taken is durable.
    fn settle(&self) -> impl Future<Output = ()> + Send;

    /// Stops whatever leads, and follows: takes streams, and feeds the standby. No standby is started where
    /// the region has no data, or has to bring them back to the line first.
    fn follow(&self) -> impl Work<()>;

    /// Waits until the standby has applied everything up to `lsn`.
    fn apply(&self, lsn: Lsn) -> impl Work<()>;

    /// Promotes the standby to the writer of `epoch`, on the timeline with that number.
    fn promote(&self, epoch: Epoch) -> impl Work<()>;

    /// Starts the writer on the data directory that there is, if it does not run, and reads and ships its
    /// redo as the primary of `epoch`. Commits are held.
    fn lead(&self, epoch: Epoch) -> impl Work<()>;

    /// Whether the writer's redo is read, so that commits could return.
    fn reads(&self) -> bool;

    /// Stops the writer at once, and with it everything that makes this region a primary.
    fn stop_leading(&self) -> impl Work<()>;

    /// What is found here, before anything is touched, that concerns a switchover.
    fn preflight(&self) -> impl Future<Output = Vec<Finding>> + Send {
        async { Vec::new() }
    }

    /// Why `to` could not take over now.
    fn hinders(&self, to: &RegionName) -> Option<String>;

    /// Writes a checkpoint, so that the writer stops quickly.
    fn checkpoint(&self) -> impl Work<()>;

    /// Has clients wait that would see the writer stop, as far as that can be; whether any do. It is over
    /// once this region, or another one, leads.
    fn pause_clients(&self) -> impl Future<Output = bool> + Send {
        async { false }
    }

    /// Has them go on: this region leads, and its writer was not stopped.
    fn resume_clients(&self) {}

    /// Stops the writer cleanly; returns where its redo ends, which is durable in the volume.
    fn stop_writer(&self) -> impl Work<Redo>;

    /// Waits until region `to` has applied everything up to `lsn`.
    fn applied_by(&self, to: &RegionName, lsn: Lsn) -> impl Work<()>;

    /// Takes the redo that `from` has beyond this region's, up to `to_lsn`, as long as it is `wanted`.
    fn gather(
        &self,
        from: &RegionName,
        epoch: Epoch,
        to_lsn: Lsn,
        wanted: impl Fn() -> bool + Send + Sync,
    ) -> impl Work<()>;
}
