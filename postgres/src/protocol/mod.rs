//! PostgreSQL's replication protocol, from both sides.

pub mod client;
pub mod logins;
pub mod session;
pub mod walsender;
pub mod wire;
