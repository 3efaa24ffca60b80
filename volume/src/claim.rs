//! Claims on redo: what somebody still needs is kept, and no longer than its owner lives.

use std::sync::{Arc, Weak};

use proto::Lsn;

use crate::head::Head;

/// Keeps the redo of a volume from an LSN on, up to the hard size limit, until this is dropped. It outlives a
/// reset of the volume, and does not keep the volume open.
#[derive(Debug)]
#[must_use = "redo is kept only while this lives"]
pub struct Claim {
    head: Weak<Head>,
    number: u64,
}

impl Claim {
    pub(crate) fn new(head: &Arc<Head>, name: &str, from_lsn: Lsn) -> Claim {
        let number = head.change(|log| log.needs_mut().claim(name, from_lsn));
        Claim { head: Arc::downgrade(head), number }
    }

    /// Redo before `lsn` is not needed any more. A claim never goes back: what lies before it may be gone.
    pub fn advance(&self, lsn: Lsn) {
        if let Some(head) = self.head.upgrade() {
            head.change(|log| log.needs_mut().advance(self.number, lsn));
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Some(head) = self.head.upgrade() {
            head.change(|log| log.needs_mut().release(self.number));
        }
    }
}
