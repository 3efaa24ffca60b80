//! All that a region's daemon knows of itself at one moment.

use std::pin::Pin;

use coordination::leadership::Past;
use proto::messages::NodeStatus;
use proto::{Epoch, RegionName};
use telemetry::trace::Tracer;
use volume::VolumeStatus;

use super::vitals::Vitals;
use crate::endpoint::tally::Counts;
use crate::facts::PartFacts;
use crate::load::told::Told;

/// What a region's daemon knows.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The region.
    pub region: RegionName,
    /// The highest epoch that it knows of.
    pub epoch: Epoch,
    /// The part that it plays.
    pub part: PartFacts,
    /// Why it cannot do what the record of who leads calls for, in words; empty while it can.
    pub trouble: String,
    /// Its redo log.
    pub volume: VolumeStatus,
    /// What each copy of that takes, bytes.
    pub stored_bytes: u64,
    /// What PostgreSQL said last of itself, or why it said nothing.
    pub postgres: Result<Vitals, String>,
    /// What PostgreSQL was busy with since the daemon began; none where nobody looks.
    pub load: Option<Told>,
    /// What each endpoint did, by its name.
    pub endpoints: Vec<(&'static str, Counts)>,
    /// The region's nodes, as `status` shows them.
    pub nodes: Vec<NodeStatus>,
    /// Whether a promotion is in progress.
    pub promoting: bool,
    /// The promotions that the record keeps, the newest last.
    pub past: Vec<Past>,
    /// How long the daemon's certificate is valid, seconds; negative once it is not.
    pub certificate_left_s: i64,
    /// Now, microseconds since 1970.
    pub now_us: i64,
}

/// Whoever knows a region's facts.
pub trait Source: Send + Sync + 'static {
    /// What follows sampled batches.
    fn tracer(&self) -> Tracer;

    /// What is known now, given what PostgreSQL said last.
    fn facts(&self, postgres: Result<Vitals, String>) -> Pin<Box<dyn Future<Output = Facts> + Send + '_>>;
}
