//! Where segments begin, and the key that each record is sealed with.

use bytes::Bytes;
use proto::Redo;

use super::Log;
use crate::VolumeError;
use crate::key::KeyId;
use crate::segment;

impl Log {
    /// A segment begins at the first context beyond its size, and at the first one after another key than the
    /// segment's is to be used.
    pub(super) fn begins_segment(&self, redo: &Redo) -> bool {
        self.segments.last().is_none_or(|last| {
            let is_full = last.stored_bytes >= self.options.segment_bytes;
            (is_full || last.key != self.active_key()) && redo.batch.begins_context()
        })
    }

    fn active_key(&self) -> Option<KeyId> {
        self.options.sealer.as_ref().and_then(|sealer| sealer.active())
    }

    /// The key that a record is sealed with: all of a segment are with the same.
    pub(super) fn key(&self, begins_segment: bool) -> Option<KeyId> {
        match self.segments.last() {
            Some(last) if !begins_segment => last.key,
            _ => self.active_key(),
        }
    }

    pub(super) fn record(
        &self,
        redo: &Redo,
        begins_segment: bool,
        key: Option<KeyId>,
    ) -> Result<Bytes, VolumeError> {
        let (batch, durable_lsn) = (&redo.batch, self.durable.lsn);
        let Some(key) = key else { return Ok(segment::record(batch, durable_lsn)) };
        let begin_lsn = batch.begin_lsn;
        let segment_lsn = match self.segments.last() {
            Some(last) if !begins_segment => last.begin_lsn,
            _ => begin_lsn,
        };
        let sealer = self.options.sealer.as_ref().ok_or(VolumeError::NoKey { key, begin_lsn })?;
        sealer.seal(key, batch, durable_lsn, segment_lsn)
    }
}
