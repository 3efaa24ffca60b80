//! What a daemon says of itself in numbers: one [`table`] of metrics, their values at a moment
//! ([`snapshot`]), and how they leave; and the spans of sampled batches ([`trace`]).
//!
//! Where a value comes from is the daemon's matter; nothing here reads a clock or decides anything.

pub mod otlp;
pub mod snapshot;
pub mod table;
pub mod trace;

pub use snapshot::{Distribution, Snapshot};
pub use table::{METRICS, Metric};
