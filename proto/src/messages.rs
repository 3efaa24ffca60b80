//! The messages of `replicator.proto`, and the limits on them.

#![allow(missing_docs, reason = "generated; replicator.proto documents every message and field")]

include!(concat!(env!("OUT_DIR"), "/replicator.v1.rs"));

pub use crate::limits::{MAX_CONTROL_MESSAGE_BYTES, MAX_STREAM_MESSAGE_BYTES};

/// The version of the protocol that this build speaks. Both sides must agree.
pub const PROTOCOL_VERSION: u32 = 2;

impl TraceContext {
    /// The bit of `flags` that says that it is sampled.
    pub const SAMPLED: u32 = 1;

    /// The trace and the parent span, if it is sampled and is one: what is not hinders nothing.
    #[must_use]
    pub fn sampled(&self) -> Option<(u128, u64)> {
        let trace = u128::from_be_bytes(self.trace_id.as_ref().try_into().ok()?);
        let said = self.flags & TraceContext::SAMPLED != 0 && trace != 0 && self.span_id != 0;
        said.then_some((trace, self.span_id))
    }
}

impl Refusal {
    /// A refusal of `kind` with its reason in words.
    pub fn new(kind: refusal::Kind, reason: impl Into<String>) -> Refusal {
        Refusal { kind: kind.into(), reason: reason.into() }
    }
}
