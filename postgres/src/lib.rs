//! PostgreSQL as found: its replication protocol from both sides, its write-ahead log, its backups, and its
//! instances.
//!
//! Nothing here knows of regions. The primary region reads a writer through [`protocol::client`]; a secondary
//! region answers its standbys through [`protocol::walsender`]; both run PostgreSQL itself through
//! [`instance`], and reaches files where PostgreSQL's account could put links only by [`below`].

pub mod backup;
pub mod below;
mod environment;
pub mod installation;
pub mod instance;
pub mod inventory;
pub mod major;
pub mod protocol;
pub mod scram;
pub mod slots;
pub mod sockets;
pub mod tablespaces;
pub mod vitals;
pub mod wal;
