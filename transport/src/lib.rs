//! How regions and operators reach each other: QUIC with mutual TLS, framed messages on streams, an egress
//! cap.
//!
//! Who a peer is comes from its certificate and from nothing it says. See docs/PROTOCOL.md.

mod admission;
pub mod congestion;
pub mod connection;
mod credentials;
pub mod egress;
pub mod endpoint;
mod guard;
pub mod identity;
pub mod orders;
pub mod peer;
mod proof;
pub mod redundancy;
mod reset;
mod signature;
pub mod signing;
pub mod stream;
pub mod token;

pub use congestion::Congestion;
pub use connection::{Connection, SESSIONS_MAX, Traffic, WireCounters};
pub use credentials::Signs;
pub use egress::EgressCap;
pub use endpoint::Endpoint;
pub use guard::{GRACE, Refused};
pub use identity::{Authority, Identity, IdentityError};
pub use peer::{Certificate, Holder, Peer};
pub use stream::{Receiver, Sender, Stream};
pub use token::Token;

use proto::frame::FrameError;

/// Why a peer could not be reached, or a conversation ended.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TransportError {
    /// The socket cannot be bound.
    #[error("cannot listen on {address}: {reason}")]
    Bind {
        /// The address.
        address: String,
        /// What the system says.
        reason: String,
    },
    /// No answer, or no way there.
    #[error("{address} cannot be reached: {reason}")]
    Unreachable {
        /// The address.
        address: String,
        /// What is known.
        reason: String,
    },
    /// One side refused the other's certificate.
    #[error("{address}: a certificate was refused: {reason}")]
    Certificate {
        /// The address.
        address: String,
        /// Why.
        reason: String,
    },
    /// The connection is over.
    #[error("the connection ended: {0}")]
    Lost(String),
    /// The peer finished the stream where a message was to come.
    #[error("the peer ended the conversation")]
    Finished,
    /// The peer sent something that is no acceptable message.
    #[error(transparent)]
    Frame(#[from] FrameError),
}
