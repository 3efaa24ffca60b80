//! The messages of `replicator.proto`, and the limits on them.

#![allow(missing_docs, reason = "generated; replicator.proto documents every message and field")]

include!(concat!(env!("OUT_DIR"), "/replicator.v1.rs"));

/// The version of the protocol that this build speaks. Both sides must agree.
pub const PROTOCOL_VERSION: u32 = 1;

/// The largest message on a replication or seed stream: a batch of incompressible redo with its envelope.
pub const MAX_STREAM_MESSAGE_BYTES: usize = crate::batch::MAX_PAYLOAD_BYTES + 4096;

/// The largest control message: a record with its history, or a status of six regions with generous details.
pub const MAX_CONTROL_MESSAGE_BYTES: usize = 128 * 1024;

impl Refusal {
    /// A refusal of `kind` with its reason in words.
    pub fn new(kind: refusal::Kind, reason: impl Into<String>) -> Refusal {
        Refusal { kind: kind.into(), reason: reason.into() }
    }
}
