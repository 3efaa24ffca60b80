//! The messages of `replicator.proto`, and the limits on them.

#![allow(missing_docs, reason = "generated; replicator.proto documents every message and field")]

include!(concat!(env!("OUT_DIR"), "/replicator.v1.rs"));

pub use crate::limits::{MAX_CONTROL_MESSAGE_BYTES, MAX_STREAM_MESSAGE_BYTES};

/// The version of the protocol that this build speaks. Both sides must agree.
pub const PROTOCOL_VERSION: u32 = 2;

impl Refusal {
    /// A refusal of `kind` with its reason in words.
    pub fn new(kind: refusal::Kind, reason: impl Into<String>) -> Refusal {
        Refusal { kind: kind.into(), reason: reason.into() }
    }
}
