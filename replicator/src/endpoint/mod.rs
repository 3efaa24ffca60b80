//! Endpoints: one address for the writer, wherever in the world it is, and one for readers.
//!
//! A client connects to the endpoint of any region's daemon, and is brought to PostgreSQL: the region's own,
//! or another region's, through the daemons' QUIC. Bytes pass as they are: encryption and authentication are
//! PostgreSQL's. While nobody leads, new clients are held instead of refused; sessions with a writer that was
//! shut out are cut off at once.
//!
//! - [`way`]: where a client goes, and how long it stays. Pure: it decides by the record of who leads, and
//!   asks nobody.
//! - [`door`]: takes clients in at an address, and holds them, as many and as long as is allowed.
//! - [`first`]: what a client says first, in which a reader may name a position that it wants to see.
//! - [`regional`]: brings those of a region's daemon to a PostgreSQL. Those of a node go through that daemon
//!   (`node/guide.rs`).
//! - [`tunnel`]: the way to another region.
//! - [`relay`]: passes bytes to and fro.
//! - [`tally`]: what an endpoint did, as numbers.

pub mod door;
mod farewell;
pub mod first;
pub mod regional;
pub mod relay;
pub mod tally;
pub mod tunnel;
pub mod way;

use std::fmt;

/// What a client wants of PostgreSQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The writer.
    Writer,
    /// A PostgreSQL that can be read, near, and fresh enough.
    Reader,
}

impl Kind {
    /// Both.
    pub const ALL: [Kind; 2] = [Kind::Writer, Kind::Reader];

    /// Its name in metrics, and in `regions.toml`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Writer => "writer",
            Kind::Reader => "reader",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
