//! When a run of redo becomes a batch: as soon as the writer pauses and the volume can take one, or at a size
//! limit.
//!
//! A batch ends where a record ends ([`postgres::wal::records`]): what a region has durable is whole records.
//!
//! There is no timer. While the volume makes the last batches durable, redo gathers here; so batches grow
//! with the load, as a group commit does, and a lone commit leaves at once.

use proto::batch::MAX_REDO_BYTES;
use proto::{Lsn, Timeline};

use postgres::wal::records::{PAGE_BYTES, Records};

/// Batches handed to the volume and not yet durable, at most. Redo gathers meanwhile: each batch costs a
/// write and a flush on every copy, so fewer and larger ones leave more of the machine to the writer.
pub const IN_FLIGHT_MAX: usize = 1;

/// The most that the writer sends at once, bytes: sixteen pages, as `MAX_SEND_SIZE` in PostgreSQL's
/// `walsender.c` says.
const MESSAGE_BYTES_MAX: usize = 128 << 10;

/// Redo from the writer that is not yet in a batch. Holds at most [`MAX_REDO_BYTES`].
#[derive(Debug)]
pub struct Batcher {
    timeline: Timeline,
    begin_lsn: Lsn,
    redo: Vec<u8>,
    records: Records,
    newest_commit_us: i64,
    oldest_sent_us: i64,
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
    /// It ends within a record that is larger than a batch.
    pub ends_in_record: bool,
    /// The writer's clock when it sent the newest of it, microseconds since 1970.
    pub newest_commit_us: i64,
    /// The writer's clock when it sent the oldest of it, as far as that is known: of what a batch leaves,
    /// that of its newest.
    pub oldest_sent_us: i64,
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
        let records = Records::new(begin_lsn);
        let (redo, in_flight) = (Vec::new(), Vec::new());
        Batcher { timeline, begin_lsn, redo, records, newest_commit_us: 0, oldest_sent_us: 0, in_flight }
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
        if self.redo.is_empty() {
            self.oldest_sent_us = sent_at_us;
        }
        self.redo.extend_from_slice(redo);
        self.records.read(self.begin_lsn, &self.redo);
        self.newest_commit_us = self.newest_commit_us.max(sent_at_us);
        Ok(())
    }

    /// The end of the redo taken so far.
    #[must_use]
    pub fn end_lsn(&self) -> Lsn {
        self.begin_lsn + self.redo.len() as u64
    }

    /// Whether there is room for more redo. The writer is not read while there is none: it then waits in its
    /// socket.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.redo.len() + MESSAGE_BYTES_MAX <= MAX_REDO_BYTES
    }

    /// The volume is durable up to `lsn`.
    pub fn durable(&mut self, lsn: Lsn) {
        self.in_flight.retain(|end_lsn| *end_lsn > lsn);
    }

    /// The next batch, if it is time: there are whole records, the volume has a place for them, and the
    /// writer `paused` or a batch is full. A record that is larger than a batch is cut; and all leaves when
    /// the timeline has `ended`.
    pub fn cut(&mut self, paused: bool, ended: bool) -> Option<Cut> {
        let whole = usize::try_from(self.records.complete_lsn().max(self.begin_lsn) - self.begin_lsn)
            .unwrap_or(usize::MAX);
        let read = usize::try_from(self.records.read_lsn().max(self.begin_lsn) - self.begin_lsn)
            .unwrap_or(usize::MAX);
        let length = match () {
            () if ended => self.redo.len(),
            // At the end of a page: a standby must never see less of one.
            () if whole == 0 && !self.has_room() => to_page_end(self.begin_lsn, read),
            () => whole,
        };
        let length = length.min(self.redo.len()).min(MAX_REDO_BYTES);
        let due = length > 0 && (paused || !self.has_room());
        if !due || self.in_flight.len() >= IN_FLIGHT_MAX {
            return None;
        }
        let ends_in_record = length > whole && !ended;
        let rest = self.redo.split_off(length);
        let redo = std::mem::replace(&mut self.redo, rest);
        let cut = Cut {
            timeline: self.timeline,
            begin_lsn: self.begin_lsn,
            newest_commit_us: self.newest_commit_us,
            oldest_sent_us: std::mem::replace(&mut self.oldest_sent_us, self.newest_commit_us),
            redo,
            ends_in_record,
        };
        self.begin_lsn = cut.begin_lsn + cut.redo.len() as u64;
        self.in_flight.push(self.begin_lsn);
        Some(cut)
    }
}

/// So much of `length` bytes from `begin_lsn` on as ends with a page.
fn to_page_end(begin_lsn: Lsn, length: usize) -> usize {
    let beyond = usize::try_from((begin_lsn + length as u64).0 % PAGE_BYTES).unwrap_or(0);
    length.saturating_sub(beyond)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use postgres::wal::records::laid_out;

    const BEGIN_LSN: Lsn = Lsn(104);

    fn batcher() -> Batcher {
        Batcher::new(Timeline(1), BEGIN_LSN)
    }

    #[test]
    fn a_lone_commit_leaves_at_once_and_half_a_record_waits() {
        let mut batcher = batcher();
        let (redo, ends) = laid_out(BEGIN_LSN.0, &[40, 64]);
        batcher.push(BEGIN_LSN, &redo[..50], 7).unwrap();
        assert_eq!(batcher.cut(false, false), None, "more may be on its way");
        let cut = batcher.cut(true, false).unwrap();
        assert_eq!((cut.begin_lsn, cut.redo.as_slice(), cut.newest_commit_us), (BEGIN_LSN, &redo[..40], 7));
        batcher.durable(Lsn(ends[0]));
        assert_eq!(batcher.cut(true, false), None, "half a record");
        batcher.push(batcher.end_lsn(), &redo[50..], 8).unwrap();
        assert_eq!(batcher.cut(true, false).unwrap().redo, redo[40..]);
    }

    #[test]
    fn redo_gathers_while_the_volume_is_busy() {
        let mut batcher = batcher();
        let (redo, ends) = laid_out(BEGIN_LSN.0, &[24, 24, 24]);
        batcher.push(BEGIN_LSN, &redo[..24], 1).unwrap();
        assert!(batcher.cut(true, false).is_some());
        batcher.push(batcher.end_lsn(), &redo[24..48], 2).unwrap();
        batcher.push(batcher.end_lsn(), &redo[48..], 3).unwrap();
        assert_eq!(batcher.cut(true, false), None);
        batcher.durable(Lsn(ends[0]));
        assert_eq!(batcher.cut(true, false).unwrap().redo, redo[24..]);
    }

    #[test]
    fn a_gap_is_refused() {
        let mut batcher = batcher();
        assert_eq!(batcher.push(Lsn(101), b"x", 1), Err(Gap { expected_lsn: BEGIN_LSN, came_lsn: Lsn(101) }));
    }

    proptest! {
        #[test]
        fn every_whole_record_leaves_once_in_order_within_the_limits(
            lengths in proptest::collection::vec(24usize..3_000_000, 1..6),
            pieces in proptest::collection::vec((1usize..MESSAGE_BYTES_MAX, any::<bool>(), any::<bool>()), 1..200)
        ) {
            let (redo, ends) = laid_out(BEGIN_LSN.0, &lengths);
            let (mut batcher, mut left, mut next_lsn) = (batcher(), redo.as_slice(), BEGIN_LSN);
            for (length, paused, flushed) in pieces {
                if batcher.has_room() {
                    let (now, later) = left.split_at(length.min(left.len()));
                    batcher.push(batcher.end_lsn(), now, 1).unwrap();
                    left = later;
                }
                while let Some(cut) = batcher.cut(paused, false) {
                    prop_assert_eq!(cut.begin_lsn, next_lsn);
                    prop_assert!(!cut.redo.is_empty() && cut.redo.len() <= MAX_REDO_BYTES);
                    next_lsn = next_lsn + cut.redo.len() as u64;
                    let whole = ends.contains(&next_lsn.0);
                    prop_assert_eq!(cut.ends_in_record, !whole);
                    let full = cut.redo.len() + MESSAGE_BYTES_MAX + usize::try_from(PAGE_BYTES).unwrap() >= MAX_REDO_BYTES;
                    prop_assert!(whole || full && next_lsn.0 % PAGE_BYTES == 0);
                }
                prop_assert!(batcher.in_flight.len() <= IN_FLIGHT_MAX);
                if flushed {
                    batcher.durable(next_lsn);
                }
            }
        }
    }
}
