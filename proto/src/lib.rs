//! The language that regions speak: positions in the redo, leadership, batches of redo and the messages
//! between daemons.
//!
//! Everything here is a value or a pure function. There are no sockets, files or clocks in this crate, and
//! nothing in it panics or allocates without a stated bound on bytes that came from a peer or a disk.

pub mod batch;
pub mod compression;
pub mod frame;
pub mod ids;
pub mod limits;
pub mod lsn;
pub mod messages;
pub mod sealed;
pub mod status;
pub mod timeline;

pub use batch::{Batch, BatchId, Redo};
pub use ids::{ClusterId, Epoch, NodeName, RegionName, SystemId, Timeline};
pub use lsn::Lsn;
pub use sealed::SealedHead;
pub use status::RegionState;
pub use timeline::TimelineHistory;
