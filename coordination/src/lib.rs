//! Who leads: the cluster's [`record`], how a majority of voters agrees on it ([`register`]), and what comes next in a
//! promotion ([`promotion`]).
//!
//! Everything here is a pure function of its arguments. The daemon's drivers (`replicator/src/voter/`) and the seeded simulation
//! (`tests/src/simulation/coordination/`) run the same code.
//!
//! ```text
//!   operator ─► coordinator ── change ──► register: a majority of voters has it on disk
//!                   ▲                          │
//!                   └── what the step asks ◄── record: epoch, primary, promotion in progress, history
//! ```

pub mod promotion;
pub mod record;
pub mod register;

pub use record::{Change, Mode, Promotion, Record, Standing, Step};
pub use register::{Acceptor, Number};
