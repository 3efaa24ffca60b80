//! PostgreSQL as found: its replication protocol from both sides, its base backups, and its instances.
//!
//! Nothing here knows of regions. The primary region reads a writer through [`client`]; a secondary region answers its
//! standbys through [`walsender`]; both run PostgreSQL itself through [`instance`].

pub mod account;
pub mod base_backup;
pub mod client;
pub mod installation;
pub mod instance;
pub mod rewind;
pub mod seed;
pub mod walsender;
pub mod wire;
