//! Who leads: the cluster's [`leadership`], who votes on it ([`voters`]), how a majority of them agrees
//! ([`register`]), what a voter needs to remember for that ([`memory`]), whether what is proposed was ordered
//! ([`orders`]), and what comes next in a promotion ([`promotion`]).
//!
//! Everything here is a pure function of its arguments. The daemon's drivers (`replicator/src/voter/`) and
//! the seeded simulation (`tests/src/simulation/coordination/`) run the same code.
//!
//! ```text
//!   operator ─► coordinator ── change ──► register: a majority of voters has it on disk
//!                   ▲                          │
//!                   └── what the step asks ◄── record: epoch, primary, promotion in progress, history
//! ```

pub mod automatic;
pub mod lawful;
pub mod leadership;
pub mod lineage;
pub mod memory;
pub mod orders;
pub mod planted;
pub mod promotion;
pub mod region;
pub mod register;
pub mod signed;
pub mod succession;
pub mod voters;

pub use leadership::{Change, Leadership, Mode, Promotion, Standing, Step};
pub use lineage::{Lineage, Redo};
pub use register::{Acceptor, Number};
pub use signed::SignedOrder;
pub use voters::{Electorate, Membership, Voters};
