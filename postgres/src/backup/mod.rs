//! Copies of a data directory: taken, put in place, and brought back to before what was cut off.

pub mod archive;
pub mod base_backup;
pub mod merge;
pub mod pieces;
pub mod remains;
pub mod rewind;
pub mod seed;
