//! The program: the command line, the region's daemon, and what starts daemons on this machine.
//!
//! [`cli`] says what there is to do. [`region`] is the daemon: it holds both parts a region may play.
//! [`local`] runs every region of `regions.toml` on this machine; [`zone`] is a zone of a region as a process
//! of its own, [`node`] a further host of a region, with its zone's copies and a replica. [`voter`] is how
//! the daemons agree on who leads; [`witness`] is a daemon that does nothing else. [`drill`] rehearses a
//! promotion on a clone of a region. [`events`] is what happened, kept by each daemon, [`verdict`] whether
//! all is well, [`load`] what PostgreSQL was busy with, and [`page`] what a browser is shown. [`endpoint`]
//! brings clients to the writer, wherever it is, and to readers; [`pooler`] has those of PgBouncer wait while
//! it moves.

pub mod audit;
pub mod cli;
pub mod client;
pub mod config;
pub mod daemon;
pub mod drill;
pub mod endpoint;
pub mod events;
pub mod facts;
pub mod inspect;
pub mod keys;
pub mod layout;
pub mod load;
pub mod local;
pub mod logs;
pub mod node;
pub mod observe;
pub mod operator;
pub mod orders;
pub mod page;
pub mod part;
pub mod pooler;
pub mod preflight;
pub mod region;
pub mod region_file;
pub mod render;
pub mod secrets;
pub mod units;
pub mod verdict;
pub mod voter;
pub mod witness;
pub mod zone;

mod engine;
