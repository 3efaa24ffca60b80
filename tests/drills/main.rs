//! Drills: regions as containers, a wide-area network between them, load, a disaster, and what is left of it.
//!
//! One scenario a file; `docs/DRILLS.md` says what each shows. They need docker and the image `replicator`
//! (`make image`): `make test` runs the essential ones, `make drills` runs all, and prints the table of
//! recovery times and points.

#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

mod harness;

mod away;
mod clients;
mod disk_full;
mod interrupted;
mod killed;
mod lagging;
mod leader_killed;
mod partitioned;
mod rolling;
mod six;
mod switchover;
mod zones;
