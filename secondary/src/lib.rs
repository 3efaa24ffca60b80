//! A secondary region's part: receive redo and verify it, make it durable, feed the region's own standbys,
//! and report how far they have come.
//!
//! ```text
//! primary ══► session ─► receiver (verify) ─► volume ─► feed ─► standby
//!    ▲                                          │                 │
//!    └──────────────── progress ◄── durable ────┴──── applied ────┘
//! ```

pub mod feed;
pub mod gather;
pub mod heard;
pub mod receiver;
pub mod rewind;
pub mod seed;
pub mod session;

mod turn;

pub use session::{Data, Inbound, InboundState, StandbyHealth};
