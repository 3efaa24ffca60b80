//! Reads durable redo in order: from memory while it is recent, from the segments otherwise.
//!
//! A cursor yields whole batches and waits at the durable end. Any number of cursors read at once; none holds up an append.

use std::sync::Arc;

use proto::compression::Decompressor;
use proto::{Batch, Lsn, Redo};
use tokio::sync::watch;

use crate::copy::SegmentReader;
use crate::{Durable, Shared, VolumeError};

/// Where a cursor begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// At the batch that holds the LSN.
    Batch,
    /// At the beginning of that batch's context, for a reader whose own decoder is fresh.
    Context,
}

/// A place in the log.
#[derive(Debug)]
pub struct Cursor {
    shared: Arc<Shared>,
    durable: watch::Receiver<Durable>,
    /// The next batch holds this LSN, and begins with it except at the start.
    next_lsn: Lsn,
    to_context: bool,
    disk: Option<SegmentReader>,
    decoder: Option<Decompressor>,
}

impl Cursor {
    pub(crate) fn open(shared: Arc<Shared>, from_lsn: Lsn, start: Start) -> Result<Cursor, VolumeError> {
        let bounds = shared.bounds();
        if from_lsn < bounds.horizon_lsn {
            return Err(VolumeError::HorizonPassed { asked_lsn: from_lsn, horizon_lsn: bounds.horizon_lsn });
        }
        if from_lsn > bounds.durable_lsn {
            return Err(VolumeError::Ahead { asked_lsn: from_lsn, durable_lsn: bounds.durable_lsn });
        }
        let durable = shared.durable.subscribe();
        let to_context = start == Start::Context;
        Ok(Cursor { shared, durable, next_lsn: from_lsn, to_context, disk: None, decoder: None })
    }

    /// Waits for the next batch, as stored. Cancel safe.
    ///
    /// # Errors
    /// When the redo is gone, damaged, or the volume closed.
    pub async fn next_batch(&mut self) -> Result<Batch, VolumeError> {
        loop {
            self.durable.borrow_and_update();
            if let Some(batch) = self.try_next_batch()? {
                return Ok(batch);
            }
            self.durable.changed().await.map_err(|_| VolumeError::Closed)?;
        }
    }

    /// The next batch if it is durable already.
    ///
    /// # Errors
    /// As [`Cursor::next_batch`].
    pub fn try_next_batch(&mut self) -> Result<Option<Batch>, VolumeError> {
        Ok(self.advance()?.map(|step| match step {
            Step::Memory(redo) => redo.batch.clone(),
            Step::Disk(batch) => batch,
        }))
    }

    /// Waits for the next batch, with its redo decompressed. Cancel safe.
    ///
    /// # Errors
    /// As [`Cursor::next_batch`].
    pub async fn next(&mut self) -> Result<Redo, VolumeError> {
        loop {
            self.durable.borrow_and_update();
            if let Some(redo) = self.try_next()? {
                return Ok(redo);
            }
            self.durable.changed().await.map_err(|_| VolumeError::Closed)?;
        }
    }

    /// The next batch if it is durable already, with its redo decompressed.
    ///
    /// # Errors
    /// As [`Cursor::next_batch`].
    pub fn try_next(&mut self) -> Result<Option<Redo>, VolumeError> {
        match self.advance()? {
            None => Ok(None),
            Some(Step::Memory(redo)) => Ok(Some(Redo::clone(&redo))),
            Some(Step::Disk(batch)) => self.decompress(batch).map(Some),
        }
    }

    fn advance(&mut self) -> Result<Option<Step>, VolumeError> {
        if self.next_lsn >= self.shared.durable.borrow().lsn {
            return Ok(None);
        }
        let found = self.shared.lock().tail.find(self.next_lsn);
        let step = match found {
            Some(redo) => {
                self.disk = None;
                Step::Memory(redo)
            }
            None => Step::Disk(self.read_disk()?),
        };
        let batch = step.batch();
        if std::mem::take(&mut self.to_context) && !batch.begins_context() {
            self.next_lsn = batch.context_lsn;
            self.disk = None;
            return self.advance();
        }
        self.next_lsn = batch.end_lsn;
        Ok(Some(step))
    }

    fn read_disk(&mut self) -> Result<Batch, VolumeError> {
        loop {
            let reader = match &mut self.disk {
                Some(reader) => reader,
                none => none.insert(open_segment(&self.shared, self.next_lsn)?),
            };
            match reader.next_record()? {
                Some(record) if record.batch.end_lsn > self.next_lsn => return Ok(record.batch),
                Some(_) => {}
                // The end of this segment, or of what was durable when it was opened.
                None if reader.segment.end_lsn > self.next_lsn => {
                    return Err(VolumeError::Damaged {
                        path: reader.segment.path.display().to_string(),
                        offset: reader.offset,
                        what: format!("redo from {} is not where it should be", self.next_lsn),
                    });
                }
                None => self.disk = None,
            }
        }
    }

    fn decompress(&mut self, batch: Batch) -> Result<Redo, VolumeError> {
        let compression = |e: proto::compression::CompressionError| VolumeError::Compression(e.to_string());
        let decoder = match &mut self.decoder {
            Some(decoder) => decoder,
            none => none.insert(Decompressor::new().map_err(compression)?),
        };
        if !decoder.accepts(&batch) {
            let mut earlier = Cursor::open(self.shared.clone(), batch.context_lsn, Start::Batch)?;
            while earlier.next_lsn < batch.begin_lsn {
                let Some(before) = earlier.try_next_batch()? else { break };
                decoder.decompress(&before).map_err(compression)?;
            }
        }
        decoder.open(batch).map_err(compression)
    }
}

enum Step {
    Memory(Arc<Redo>),
    Disk(Batch),
}

impl Step {
    fn batch(&self) -> &Batch {
        match self {
            Step::Memory(redo) => &redo.batch,
            Step::Disk(batch) => batch,
        }
    }
}

/// A reader of the segment that holds `lsn`, at its beginning.
fn open_segment(shared: &Shared, lsn: Lsn) -> Result<SegmentReader, VolumeError> {
    let state = shared.lock();
    let after = state.segments.partition_point(|segment| segment.begin_lsn <= lsn);
    match after.checked_sub(1).and_then(|index| state.segments.get(index)) {
        Some(segment) => Ok(SegmentReader::new(segment.clone())),
        None => {
            let horizon_lsn = state.segments.first().map_or(Lsn(u64::MAX), |s| s.begin_lsn);
            Err(VolumeError::HorizonPassed { asked_lsn: lsn, horizon_lsn })
        }
    }
}
