//! The program: the command line, the region's daemon, and what starts daemons on this machine.
//!
//! [`cli`] says what there is to do. [`region`] is the daemon: it holds both parts a region may play. [`local`] runs every
//! region of `regions.toml` on this machine; [`zone`] is a zone of a region as a process of its own. [`voter`] is how the daemons agree on
//! who leads; [`witness`] is a daemon that does nothing else. [`drill`] rehearses a promotion on a clone of a region.

pub mod cli;
pub mod client;
pub mod config;
pub mod drill;
pub mod inspect;
pub mod layout;
pub mod local;
pub mod region;
pub mod render;
pub mod units;
pub mod voter;
pub mod witness;
pub mod zone;
