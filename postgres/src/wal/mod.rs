//! PostgreSQL's write-ahead log: its records, its segments.

pub mod records;
pub mod segment;
pub mod tablespaces;
