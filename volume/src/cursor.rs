//! Reads durable redo in order: from memory while it is recent, from a copy otherwise.
//!
//! A cursor yields whole batches and waits at the durable end. Any number of cursors read at once; none holds
//! up an append.

use std::collections::VecDeque;
use std::sync::Arc;

use proto::compression::Decompressor;
use proto::{Batch, Lsn, Redo};
use runtime::task::Task;
use tokio::sync::watch;

use crate::head::Head;
use crate::tail::Entry;
use crate::{Durable, VolumeError, repair};

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
    head: Arc<Head>,
    durable: watch::Receiver<Durable>,
    /// The next batch holds this LSN, and begins with it except at the start.
    next_lsn: Lsn,
    to_context: bool,
    /// What was read from a copy and not yielded yet.
    read: VecDeque<Batch>,
    reading: Work<Vec<Batch>>,
    decoder: Option<Decompressor>,
    feeding: Work<Decompressor>,
}

/// Work for an LSN that goes on when whoever waits for it is cancelled: a walsender is, at every word of its
/// standby.
#[derive(Debug)]
struct Work<T>(Option<(Lsn, Task<Result<T, VolumeError>>)>);

impl<T: Send + 'static> Work<T> {
    /// Waits for the work for `lsn`, which is begun if it is not under way. Cancel safe.
    async fn done<F>(&mut self, lsn: Lsn, work: impl FnOnce() -> F) -> Result<T, VolumeError>
    where
        F: Future<Output = Result<T, VolumeError>> + Send + 'static,
    {
        self.0.take_if(|(of, _)| *of != lsn);
        let (_, under_way) = self.0.get_or_insert_with(|| (lsn, Task::spawn("reading ahead", work())));
        let done = under_way.await;
        self.0 = None;
        done.map_err(|_| VolumeError::Closed)?
    }
}

impl Cursor {
    pub(crate) fn open(head: Arc<Head>, from_lsn: Lsn, start: Start) -> Result<Cursor, VolumeError> {
        let bounds = head.bounds();
        if from_lsn < bounds.horizon_lsn {
            return Err(VolumeError::HorizonPassed { asked_lsn: from_lsn, horizon_lsn: bounds.horizon_lsn });
        }
        if from_lsn > bounds.durable_lsn {
            return Err(VolumeError::Ahead { asked_lsn: from_lsn, durable_lsn: bounds.durable_lsn });
        }
        let durable = head.durable.subscribe();
        let (to_context, read) = (start == Start::Context, VecDeque::new());
        let (reading, feeding) = (Work(None), Work(None));
        Ok(Cursor { head, durable, next_lsn: from_lsn, to_context, read, reading, decoder: None, feeding })
    }

    /// Where the next batch begins.
    #[must_use]
    pub fn next_lsn(&self) -> Lsn {
        self.next_lsn
    }

    /// Waits for the next batch, as stored. Cancel safe.
    ///
    /// # Errors
    /// When the redo is gone, no copy has it whole, or the volume closed.
    pub async fn next_batch(&mut self) -> Result<Batch, VolumeError> {
        Ok(match self.wait().await? {
            Step::Memory(entry) => entry.redo.batch.clone(),
            Step::Read(batch) => batch,
        })
    }

    /// The next batch if it is durable and in memory already; none does not mean that there is none.
    pub fn try_next_batch(&mut self) -> Option<Batch> {
        Some(match self.step()? {
            Step::Memory(entry) => entry.redo.batch.clone(),
            Step::Read(batch) => batch,
        })
    }

    /// Waits for the next batch, with its redo decompressed. Cancel safe.
    ///
    /// # Errors
    /// As [`Cursor::next_batch`].
    pub async fn next(&mut self) -> Result<Redo, VolumeError> {
        loop {
            // The place moves on only once there is something to yield: this may be cancelled anywhere.
            let (next_lsn, to_context) = (self.next_lsn, self.to_context);
            match self.wait().await? {
                Step::Memory(entry) => return Ok(entry.redo.clone()),
                Step::Read(batch) => {
                    if let Some(redo) = self.decompress(&batch)? {
                        return Ok(redo);
                    }
                    // The decoder is to be fed with what is before it in its context.
                    self.read.push_front(batch.clone());
                    (self.next_lsn, self.to_context) = (next_lsn, to_context);
                    let feed = || fed(self.head.clone(), batch.clone());
                    self.decoder = Some(self.feeding.done(batch.begin_lsn, feed).await?);
                }
            }
        }
    }

    /// The next batch with its redo decompressed, if it is durable and in memory already.
    ///
    /// # Errors
    /// As [`Cursor::next_batch`].
    pub fn try_next(&mut self) -> Result<Option<Redo>, VolumeError> {
        let next_lsn = self.next_lsn;
        match self.step() {
            None => Ok(None),
            Some(Step::Memory(entry)) => Ok(Some(entry.redo.clone())),
            Some(Step::Read(batch)) => {
                let redo = self.decompress(&batch)?;
                if redo.is_none() {
                    self.read.push_front(batch);
                    self.next_lsn = next_lsn;
                }
                Ok(redo)
            }
        }
    }

    /// Waits for what comes next.
    async fn wait(&mut self) -> Result<Step, VolumeError> {
        loop {
            self.durable.borrow_and_update();
            if let Some(step) = self.step() {
                return Ok(step);
            }
            if self.next_lsn < self.durable.borrow().lsn {
                self.read_more().await?;
            } else {
                self.durable.changed().await.map_err(|_| VolumeError::Closed)?;
            }
        }
    }

    /// What comes next, if it is durable and in memory.
    fn step(&mut self) -> Option<Step> {
        if self.next_lsn >= self.head.durable.borrow().lsn {
            return None;
        }
        loop {
            let step = match self.read.pop_front() {
                Some(batch) if batch.end_lsn <= self.next_lsn => continue,
                Some(batch) => Step::Read(batch),
                None => Step::Memory(self.head.look(|log| log.find(self.next_lsn))?),
            };
            let batch = step.batch();
            if std::mem::take(&mut self.to_context) && !batch.begins_context() {
                self.next_lsn = batch.context_lsn;
                self.read.clear();
                continue;
            }
            self.next_lsn = batch.end_lsn;
            return Some(step);
        }
    }

    async fn read_more(&mut self) -> Result<(), VolumeError> {
        let (head, lsn) = (self.head.clone(), self.next_lsn);
        let read = || async move { repair::read_any(&head, lsn).await };
        let batches = self.reading.done(lsn, read).await?;
        let durable_lsn = self.head.durable.borrow().lsn;
        let durable = batches.into_iter().filter(|batch| batch.end_lsn <= durable_lsn);
        self.read.extend(durable);
        Ok(())
    }

    /// Decompresses what was read from a copy; none when the decoder does not know its context.
    fn decompress(&mut self, batch: &Batch) -> Result<Option<Redo>, VolumeError> {
        if self.decoder.is_none() {
            self.decoder = Some(Decompressor::new().map_err(compression)?);
        }
        match &mut self.decoder {
            Some(decoder) if decoder.accepts(batch) => {
                decoder.open(batch.clone()).map(Some).map_err(compression)
            }
            _ => Ok(None),
        }
    }
}

/// A decoder that has decompressed what is before `batch` in its context.
async fn fed(head: Arc<Head>, batch: Batch) -> Result<Decompressor, VolumeError> {
    let mut decoder = Decompressor::new().map_err(compression)?;
    let mut earlier = Cursor::open(head, batch.context_lsn, Start::Batch)?;
    while earlier.next_lsn < batch.begin_lsn {
        let before = earlier.next_batch().await?;
        decoder.decompress(&before).map_err(compression)?;
    }
    Ok(decoder)
}

fn compression(e: proto::compression::CompressionError) -> VolumeError {
    VolumeError::Compression(e.to_string())
}

enum Step {
    Memory(Arc<Entry>),
    Read(Batch),
}

impl Step {
    fn batch(&self) -> &Batch {
        match self {
            Step::Memory(entry) => &entry.redo.batch,
            Step::Read(batch) => batch,
        }
    }
}
