//! The limits on what is stored and sent.

/// The most redo in one batch. Bounds what a receiver holds in memory for one batch, and a batch's time on a
/// slow link.
pub const MAX_REDO_BYTES: usize = 1 << 20;

/// The largest payload: incompressible redo with zstd's own overhead.
pub const MAX_PAYLOAD_BYTES: usize = MAX_REDO_BYTES + MAX_REDO_BYTES / 128 + 512;

/// The most redo that shares a compression context, so that a reader starts within this of any LSN.
pub const MAX_CONTEXT_BYTES: u64 = 4 << 20;

/// The largest message on a replication or seed stream: a batch of incompressible redo with its envelope.
pub const MAX_STREAM_MESSAGE_BYTES: usize = MAX_PAYLOAD_BYTES + 4096;

/// The most tablespaces that are named in one message: their paths have up to 1,023 bytes each.
pub const MAX_TABLESPACES: usize = 100;

/// The largest control message: a record with its history, or a status of six regions with generous details.
pub const MAX_CONTROL_MESSAGE_BYTES: usize = 128 * 1024;
