//! Batches: runs of redo, compressed and checksummed, the unit that is stored and shipped.

use bytes::Bytes;
use prost::Message;

pub use crate::limits::{MAX_CONTEXT_BYTES, MAX_PAYLOAD_BYTES, MAX_REDO_BYTES};
use crate::{Epoch, Lsn, Timeline, messages};

/// A run of redo `[begin_lsn, end_lsn)` of one timeline and epoch, compressed and checksummed.
///
/// Batches of one context form one zstd frame: a batch decodes after the batches of its context before it,
/// and the batch with `context_lsn == begin_lsn` decodes alone. See [`crate::compression`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Batch {
    /// The epoch under which the redo was written.
    pub epoch: Epoch,
    /// The timeline on which it lies.
    pub timeline: Timeline,
    /// Where it begins.
    pub begin_lsn: Lsn,
    /// Where it ends, exclusive. Always beyond `begin_lsn`, by at most [`MAX_REDO_BYTES`].
    pub end_lsn: Lsn,
    /// Where the compression context begins: at or before `begin_lsn`, by less than [`MAX_CONTEXT_BYTES`].
    pub context_lsn: Lsn,
    /// The writer's clock when it sent the newest of this redo, microseconds since 1970. No commit in it is
    /// younger.
    pub newest_commit_us: i64,
    /// CRC-32C of the redo after decompression.
    pub redo_crc32c: u32,
    /// The compressed redo.
    pub payload: Bytes,
    /// It ends within a record, which is larger than a batch: that goes on in the next one.
    pub ends_in_record: bool,
}

/// What tells a batch from every other that was ever cut, also from one at the same LSNs: redo that was lost
/// and written anew.
///
/// The checksum tells other redo. The time tells redo that happens to be the same bytes, as the zeroes are
/// that fill a WAL segment after a switch: two writers do not send redo of the same LSNs in the same
/// microsecond.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BatchId {
    /// The epoch under which the redo was written.
    pub epoch: Epoch,
    /// The timeline on which it lies.
    pub timeline: Timeline,
    /// Where it begins.
    pub begin_lsn: Lsn,
    /// Where it ends, exclusive.
    pub end_lsn: Lsn,
    /// The writer's clock when it sent the newest of this redo, microseconds since 1970.
    pub newest_commit_us: i64,
    /// CRC-32C of the redo after decompression.
    pub redo_crc32c: u32,
}

impl BatchId {
    /// The identity as its message.
    #[must_use]
    pub fn to_message(&self) -> messages::BatchId {
        messages::BatchId {
            epoch: self.epoch.0,
            timeline: self.timeline.0,
            begin_lsn: self.begin_lsn.0,
            end_lsn: self.end_lsn.0,
            newest_commit_us: self.newest_commit_us,
            redo_crc32c: self.redo_crc32c,
        }
    }

    /// The identity of a message. Any is taken: it is only ever compared.
    #[must_use]
    pub fn from_message(message: &messages::BatchId) -> BatchId {
        BatchId {
            epoch: Epoch(message.epoch),
            timeline: Timeline(message.timeline),
            begin_lsn: Lsn(message.begin_lsn),
            end_lsn: Lsn(message.end_lsn),
            newest_commit_us: message.newest_commit_us,
            redo_crc32c: message.redo_crc32c,
        }
    }
}

/// A batch together with its redo, decompressed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Redo {
    /// The batch as stored and shipped.
    pub batch: Batch,
    /// Its redo: `batch.redo_bytes()` bytes.
    pub bytes: Bytes,
}

/// Bytes from a peer or a disk that are not a batch, or not an acceptable one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// The envelope does not decode.
    #[error("not a batch: {0}")]
    Envelope(String),
    /// A field outside its limits.
    #[error("batch at {begin_lsn}: {field} is {value}, at most {max} is taken")]
    Limit {
        /// The batch's beginning.
        begin_lsn: Lsn,
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
        /// The limit.
        max: u64,
    },
    /// A field that must not be empty or zero is.
    #[error("batch at {begin_lsn}: no {field}")]
    Missing {
        /// The batch's beginning.
        begin_lsn: Lsn,
        /// The field.
        field: &'static str,
    },
}

impl Batch {
    /// How much redo the batch holds, in bytes.
    #[must_use]
    pub fn redo_bytes(&self) -> u64 {
        self.end_lsn - self.begin_lsn
    }

    /// Whether the batch decodes alone.
    #[must_use]
    pub fn begins_context(&self) -> bool {
        self.context_lsn == self.begin_lsn
    }

    /// What tells it from every other batch.
    #[must_use]
    pub fn id(&self) -> BatchId {
        BatchId {
            epoch: self.epoch,
            timeline: self.timeline,
            begin_lsn: self.begin_lsn,
            end_lsn: self.end_lsn,
            newest_commit_us: self.newest_commit_us,
            redo_crc32c: self.redo_crc32c,
        }
    }

    /// The batch as its message.
    #[must_use]
    pub fn to_message(&self) -> messages::Batch {
        // Both differences are bounded far below 32 bits by the limits above.
        let small = |bytes: u64| u32::try_from(bytes).unwrap_or(u32::MAX);
        messages::Batch {
            epoch: self.epoch.0,
            timeline: self.timeline.0,
            begin_lsn: self.begin_lsn.0,
            redo_bytes: small(self.redo_bytes()),
            context_bytes: small(self.begin_lsn - self.context_lsn),
            newest_commit_us: self.newest_commit_us,
            redo_crc32c: self.redo_crc32c,
            payload: self.payload.clone(),
            ends_in_record: self.ends_in_record,
        }
    }

    /// The batch of a message, with every limit checked.
    ///
    /// # Errors
    /// When a field is missing or outside its limits.
    pub fn from_message(message: messages::Batch) -> Result<Batch, BatchError> {
        let begin_lsn = Lsn(message.begin_lsn);
        let at_most = |field, value: u64, max: u64| {
            if value > max { Err(BatchError::Limit { begin_lsn, field, value, max }) } else { Ok(()) }
        };
        let present = |field, given: bool| {
            if given { Ok(()) } else { Err(BatchError::Missing { begin_lsn, field }) }
        };
        present("redo", message.redo_bytes > 0)?;
        present("payload", !message.payload.is_empty())?;
        present("timeline", message.timeline > 0)?;
        present("epoch", message.epoch > 0)?;
        at_most("redo_bytes", message.redo_bytes.into(), MAX_REDO_BYTES as u64)?;
        at_most("payload", message.payload.len() as u64, MAX_PAYLOAD_BYTES as u64)?;
        at_most("context_bytes", message.context_bytes.into(), MAX_CONTEXT_BYTES.min(message.begin_lsn))?;
        let end_lsn = begin_lsn.checked_add(message.redo_bytes.into()).ok_or(BatchError::Limit {
            begin_lsn,
            field: "end_lsn",
            value: u64::MAX,
            max: u64::MAX - u64::from(message.redo_bytes),
        })?;
        Ok(Batch {
            epoch: Epoch(message.epoch),
            timeline: Timeline(message.timeline),
            begin_lsn,
            end_lsn,
            context_lsn: Lsn(message.begin_lsn - u64::from(message.context_bytes)),
            newest_commit_us: message.newest_commit_us,
            redo_crc32c: message.redo_crc32c,
            payload: message.payload,
            ends_in_record: message.ends_in_record,
        })
    }

    /// The batch as bytes, for a disk.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        self.to_message().encode_to_vec()
    }

    /// The batch that [`Batch::encode`] made.
    ///
    /// # Errors
    /// When the bytes are not a batch, or one outside its limits.
    pub fn decode(bytes: Bytes) -> Result<Batch, BatchError> {
        let message = messages::Batch::decode(bytes).map_err(|e| BatchError::Envelope(e.to_string()))?;
        Batch::from_message(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn batch() -> Batch {
        Batch {
            epoch: Epoch(1),
            timeline: Timeline(1),
            begin_lsn: Lsn(0x100_0000),
            end_lsn: Lsn(0x100_0100),
            context_lsn: Lsn(0x100_0000),
            newest_commit_us: 1,
            redo_crc32c: 2,
            payload: Bytes::from_static(b"x"),
            ends_in_record: true,
        }
    }

    #[test]
    fn round_trips() {
        assert_eq!(Batch::decode(batch().encode().into()).unwrap(), batch());
    }

    #[test]
    fn limits_hold() {
        let spoil = |change: fn(&mut messages::Batch)| {
            let mut message = batch().to_message();
            change(&mut message);
            Batch::from_message(message)
        };
        assert!(matches!(spoil(|m| m.redo_bytes = 0), Err(BatchError::Missing { field: "redo", .. })));
        assert!(matches!(spoil(|m| m.epoch = 0), Err(BatchError::Missing { field: "epoch", .. })));
        assert!(matches!(
            spoil(|m| m.redo_bytes = 1 << 21),
            Err(BatchError::Limit { field: "redo_bytes", .. })
        ));
        assert!(matches!(spoil(|m| m.context_bytes = 1 << 23), Err(BatchError::Limit { .. })));
        assert!(matches!(spoil(|m| m.begin_lsn = u64::MAX), Err(BatchError::Limit { field: "end_lsn", .. })));
        assert!(matches!(
            spoil(|m| m.payload = vec![0; MAX_PAYLOAD_BYTES + 1].into()),
            Err(BatchError::Limit { field: "payload", .. })
        ));
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Batch::decode(bytes.into());
        }
    }
}
