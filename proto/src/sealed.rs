//! The head of a sealed record: what stands in the clear beside a batch whose redo is sealed.

use bytes::Bytes;
use prost::Message;

use crate::batch::BatchError;
use crate::{Batch, Lsn, messages};

/// The longest key that a provider may have wrapped, bytes.
pub const WRAPPED_BYTES_MAX: usize = 1024;

/// The bytes by which sealing makes a payload longer: the redo's checksum before it, and the tag behind it.
pub const SEAL_BYTES: usize = 4 + 16;

/// What is to be known of a sealed batch without its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedHead {
    /// The batch. Its checksum is zero, and its payload is sealed.
    pub batch: Batch,
    /// Which of the region's keys its data key is derived from.
    pub key: u64,
    /// Who sealed it.
    pub run: [u8; 16],
    /// Counts what that run has sealed.
    pub count: u64,
    /// Where the segment begins that it lies in.
    pub segment_lsn: Lsn,
    /// The region's key as its provider wrapped it, at most [`WRAPPED_BYTES_MAX`]; empty where it is not, or
    /// in the head before.
    pub wrapped_key: Bytes,
}

impl SealedHead {
    /// The head as bytes, without the payload.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut batch = self.batch.to_message();
        (batch.payload, batch.redo_crc32c) = (Bytes::new(), 0);
        let message = messages::SealedBatch {
            batch: Some(batch),
            key: self.key,
            run: Bytes::copy_from_slice(&self.run),
            count: self.count,
            segment_lsn: self.segment_lsn.0,
            wrapped_key: self.wrapped_key.clone(),
        };
        message.encode_to_vec()
    }

    /// The head that [`SealedHead::encode`] made, of a batch whose sealed payload is `payload`.
    ///
    /// # Errors
    /// When the bytes are no head, or one outside its limits.
    pub fn decode(head: Bytes, payload: Bytes) -> Result<SealedHead, BatchError> {
        let message = messages::SealedBatch::decode(head).map_err(|e| BatchError::Envelope(e.to_string()))?;
        let mut batch = message.batch.ok_or_else(|| BatchError::Envelope("no batch".into()))?;
        let begin_lsn = Lsn(batch.begin_lsn);
        let run = message.run.as_ref().try_into();
        let run = run.map_err(|_| BatchError::Missing { begin_lsn, field: "run" })?;
        if message.wrapped_key.len() > WRAPPED_BYTES_MAX {
            let (value, max) = (message.wrapped_key.len() as u64, WRAPPED_BYTES_MAX as u64);
            return Err(BatchError::Limit { begin_lsn, field: "wrapped_key", value, max });
        }
        // The limits are those of the payload before it was sealed.
        let bytes = payload.len().saturating_sub(SEAL_BYTES);
        (batch.payload, batch.redo_crc32c) = (payload.slice(..bytes), 0);
        let mut batch = Batch::from_message(batch)?;
        batch.payload = payload;
        Ok(SealedHead {
            batch,
            key: message.key,
            run,
            count: message.count,
            segment_lsn: Lsn(message.segment_lsn),
            wrapped_key: message.wrapped_key,
        })
    }
}
