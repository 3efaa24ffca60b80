//! Clusters: real daemons, PostgreSQL and QUIC on loopback; things are killed, frozen, cut off, rot and fill
//! up.
//!
//! One area a file, and one program for all of them: it is linked once, and each test is a process of its own
//! anyway where cargo-nextest runs it. `cargo nextest run --release --workspace -E 'test(/^endpoints::/)'`
//! runs one file's.

#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

mod automatic;
mod crashes;
mod drill;
mod endpoints;
mod events;
mod field;
mod instance;
mod load;
mod majors;
mod observe;
mod promotion;
mod reload;
mod secure;
mod streaming;
mod volume;
mod voters;
mod wan;
