//! When a run of redo becomes a batch: as soon as the writer pauses and the volume can take one, or at a size limit.
//!
//! There is no timer. While the volume makes the last batches durable, redo gathers here; so batches grow with the
//! load, as a group commit does, and a lone commit leaves at once.

use proto::batch::MAX_REDO_BYTES;
use proto::{Lsn, Timeline};

/// Batches handed to the volume and not yet durable, at most. Redo gathers meanwhile: each batch costs a write and a flush
/// on every copy, so fewer and larger ones leave more of the machine to the writer.
pub const IN_FLIGHT_MAX: usize = 1;

/// Redo from the writer that is not yet in a batch. Holds at most [`MAX_REDO_BYTES`] plus one message of the writer.
#[derive(Debug)]
pub struct Batcher {
    timeline: Timeline,
    begin_lsn: Lsn,
    redo: Vec<u8>,
    newest_commit_us: i64,
    in_flight: Vec<Lsn>,
}

/// A run of redo, ready to be compressed.
#[derive(Debug, PartialEq, Eq)]
pub struct Cut {
    /// The timeline on which it lies.
    pub timeline: Timeline,
    /// Where it begins.
    pub begin_lsn: Lsn,
    /// The redo.
    pub redo: Vec<u8>,
    /// The writer's clock when it sent the newest of it, microseconds since 1970.
    pub newest_commit_us: i64,
}

/// The writer sent redo that does not continue what it sent before.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the writer sent redo at {came_lsn} where {expected_lsn} was to come")]
pub struct Gap {
    /// Where the redo should have begun.
    pub expected_lsn: Lsn,
    /// Where it began.
    pub came_lsn: Lsn,
}

impl Batcher {
    /// A batcher for redo of `timeline` from `begin_lsn` on.
    #[must_use]
    pub fn new(timeline: Timeline, begin_lsn: Lsn) -> Batcher {
        Batcher { timeline, begin_lsn, redo: Vec::new(), newest_commit_us: 0, in_flight: Vec::new() }
    }

    /// Takes redo from the writer, sent at `sent_at_us`.
    ///
    /// # Errors
    /// When it does not continue what is here; nothing is taken then.
    pub fn push(&mut self, begin_lsn: Lsn, redo: &[u8], sent_at_us: i64) -> Result<(), Gap> {
        let expected_lsn = self.end_lsn();
        if begin_lsn != expected_lsn {
            return Err(Gap { expected_lsn, came_lsn: begin_lsn });
        }
        self.redo.extend_from_slice(redo);
        self.newest_commit_us = self.newest_commit_us.max(sent_at_us);
        Ok(())
    }

    /// The end of the redo taken so far.
    #[must_use]
    pub fn end_lsn(&self) -> Lsn {
        self.begin_lsn + self.redo.len() as u64
    }

    /// Whether there is room for more redo. The writer is not read while there is none: it then waits in its socket.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.redo.len() < MAX_REDO_BYTES
    }

    /// The volume is durable up to `lsn`.
    pub fn durable(&mut self, lsn: Lsn) {
        self.in_flight.retain(|end_lsn| *end_lsn > lsn);
    }

    /// The next batch, if it is time: there is redo, the volume has a place for it, and the writer `paused` or a batch
    /// is full.
    pub fn cut(&mut self, paused: bool) -> Option<Cut> {
        let due = !self.redo.is_empty() && (paused || !self.has_room());
        if !due || self.in_flight.len() >= IN_FLIGHT_MAX {
            return None;
        }
        let length = self.redo.len().min(MAX_REDO_BYTES);
        let rest = self.redo.split_off(length);
        let redo = std::mem::replace(&mut self.redo, rest);
        let cut = Cut {
            timeline: self.timeline,
            begin_lsn: self.begin_lsn,
            newest_commit_us: self.newest_commit_us,
            redo,
        };
        self.begin_lsn = cut.begin_lsn + cut.redo.len() as u64;
        self.in_flight.push(self.begin_lsn);
        Some(cut)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn batcher() -> Batcher {
        Batcher::new(Timeline(1), Lsn(100))
    }

    #[test]
    fn a_lone_commit_leaves_at_once() {
        let mut batcher = batcher();
        batcher.push(Lsn(100), b"commit", 7).unwrap();
        assert_eq!(batcher.cut(false), None, "more may be on its way");
        let cut = batcher.cut(true).unwrap();
        assert_eq!((cut.begin_lsn, cut.redo.as_slice(), cut.newest_commit_us), (Lsn(100), &b"commit"[..], 7));
    }

    #[test]
    fn redo_gathers_while_the_volume_is_busy() {
        let mut batcher = batcher();
        for at in 0..IN_FLIGHT_MAX as u64 {
            batcher.push(Lsn(100 + at), b"a", 1).unwrap();
            assert!(batcher.cut(true).is_some());
        }
        batcher.push(batcher.end_lsn(), b"b", 2).unwrap();
        batcher.push(batcher.end_lsn(), b"c", 3).unwrap();
        assert_eq!(batcher.cut(true), None);
        batcher.durable(Lsn(101));
        assert_eq!(batcher.cut(true).unwrap().redo, b"bc");
    }

    #[test]
    fn a_gap_is_refused() {
        let mut batcher = batcher();
        assert_eq!(batcher.push(Lsn(101), b"x", 1), Err(Gap { expected_lsn: Lsn(100), came_lsn: Lsn(101) }));
    }

    proptest! {
        #[test]
        fn every_byte_leaves_once_in_order_within_the_limits(
            pieces in proptest::collection::vec((1usize..200_000, any::<bool>(), any::<bool>()), 1..40)
        ) {
            let mut batcher = batcher();
            let mut next_lsn = Lsn(100);
            for (length, paused, flushed) in pieces {
                if batcher.has_room() {
                    batcher.push(batcher.end_lsn(), &vec![1; length], 1).unwrap();
                }
                while let Some(cut) = batcher.cut(paused) {
                    prop_assert_eq!(cut.begin_lsn, next_lsn);
                    prop_assert!(!cut.redo.is_empty() && cut.redo.len() <= MAX_REDO_BYTES);
                    next_lsn = next_lsn + cut.redo.len() as u64;
                }
                prop_assert!(batcher.in_flight.len() <= IN_FLIGHT_MAX);
                if flushed {
                    batcher.durable(next_lsn);
                }
            }
        }
    }
}
