//! What a region's daemon tells monitoring: metrics, health, traces.
//!
//! [`facts`] is all that is told from, taken at one moment. [`health`] and [`metrics`] are pure functions of
//! it; [`http`] answers, [`export`] sends, [`vitals`] asks PostgreSQL, and [`watch`] looks once a second.

mod connections;
pub mod export;
pub mod facts;
pub mod health;
pub mod http;
pub mod metrics;
pub mod vitals;
pub mod watch;

pub use watch::Observer;
