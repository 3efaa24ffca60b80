//! The newest redo, kept in memory: for readers that are up to date, and for copies that are about to be.

use std::collections::VecDeque;
use std::sync::Arc;

use proto::{Lsn, Redo};

use crate::copy::Stored;

/// A batch as readers and as copies want it.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) redo: Redo,
    pub(crate) stored: Stored,
}

/// A run of consecutive batches, the newest ones. What is not durable yet always stays; of the rest, a
/// bounded size.
#[derive(Debug, Default)]
pub(crate) struct Tail {
    entries: VecDeque<Arc<Entry>>,
    bytes: usize,
    max_bytes: usize,
}

impl Tail {
    pub(crate) fn new(max_bytes: usize) -> Tail {
        Tail { max_bytes, ..Tail::default() }
    }

    pub(crate) fn push(&mut self, entry: Arc<Entry>, durable_lsn: Lsn) {
        self.bytes += weight(&entry);
        self.entries.push_back(entry);
        while self.bytes > self.max_bytes
            && self.entries.front().is_some_and(|oldest| oldest.redo.batch.end_lsn <= durable_lsn)
        {
            if let Some(oldest) = self.entries.pop_front() {
                self.bytes -= weight(&oldest);
            }
        }
    }

    /// The batch that holds `lsn`, if it is here.
    pub(crate) fn find(&self, lsn: Lsn) -> Option<Arc<Entry>> {
        let entry = self.entries.get(self.index_of(lsn)?)?;
        (lsn < entry.redo.batch.end_lsn).then(|| entry.clone())
    }

    /// The batches from the one that begins at `lsn` to the newest; none when they are not all here.
    pub(crate) fn since(&self, lsn: Lsn) -> Option<impl Iterator<Item = &Arc<Entry>>> {
        let index = self.index_of(lsn)?;
        (self.entries.get(index)?.redo.batch.begin_lsn == lsn).then(|| self.entries.range(index..))
    }

    /// How many batches end beyond `lsn`.
    pub(crate) fn count_beyond(&self, lsn: Lsn) -> usize {
        self.entries.len() - self.entries.partition_point(|entry| entry.redo.batch.end_lsn <= lsn)
    }

    pub(crate) fn clear(&mut self) {
        self.entries.clear();
        self.bytes = 0;
    }

    fn index_of(&self, lsn: Lsn) -> Option<usize> {
        self.entries.partition_point(|entry| entry.redo.batch.begin_lsn <= lsn).checked_sub(1)
    }
}

fn weight(entry: &Entry) -> usize {
    entry.redo.bytes.len() + entry.stored.record.len() + entry.redo.batch.payload.len() + size_of::<Entry>()
}
