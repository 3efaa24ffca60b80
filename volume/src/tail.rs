//! The newest durable redo, kept in memory for readers that are up to date.

use std::collections::VecDeque;
use std::sync::Arc;

use proto::{Lsn, Redo};

/// A run of consecutive durable batches, the newest ones, of a bounded size.
#[derive(Debug, Default)]
pub(crate) struct Tail {
    batches: VecDeque<Arc<Redo>>,
    bytes: usize,
    max_bytes: usize,
}

impl Tail {
    pub(crate) fn new(max_bytes: usize) -> Tail {
        Tail { max_bytes, ..Tail::default() }
    }

    pub(crate) fn push(&mut self, redo: Arc<Redo>) {
        self.bytes += weight(&redo);
        self.batches.push_back(redo);
        while self.bytes > self.max_bytes && self.batches.len() > 1 {
            if let Some(oldest) = self.batches.pop_front() {
                self.bytes -= weight(&oldest);
            }
        }
    }

    /// The batch that holds `lsn`, if it is here.
    pub(crate) fn find(&self, lsn: Lsn) -> Option<Arc<Redo>> {
        let after = self.batches.partition_point(|redo| redo.batch.begin_lsn <= lsn);
        let redo = self.batches.get(after.checked_sub(1)?)?;
        (lsn < redo.batch.end_lsn).then(|| redo.clone())
    }

    pub(crate) fn clear(&mut self) {
        self.batches.clear();
        self.bytes = 0;
    }
}

fn weight(redo: &Redo) -> usize {
    redo.bytes.len() + redo.batch.payload.len() + size_of::<Redo>()
}
