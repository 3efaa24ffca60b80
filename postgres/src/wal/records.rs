//! Where the writer's records end: so that a batch ends where a record does, and what a region has durable is
//! whole records.
//!
//! A standby applies whole records only. Were the newest redo of a region half a record, as the writer
//! flushes whole pages under a bulk load, then a failover could not say that everything is applied, and
//! regions that hold different parts of the same record would not agree on where the new timeline begins.
//!
//! Source: `xlogrecord.h` and `xlog_internal.h` of PostgreSQL. A record begins with its length, at a multiple
//! of 8; it goes on over pages, each of which has a header that says how much of it is still to come.

use proto::Lsn;

/// PostgreSQL's WAL page, bytes.
pub const PAGE_BYTES: u64 = 8192;

/// A page's header, bytes; the first page of a segment has a longer one.
const HEADER_BYTES: u64 = 24;
const LONG_HEADER_BYTES: u64 = 40;

/// A record's header, bytes: no record is shorter.
const RECORD_HEADER_BYTES: u64 = 24;

/// No record is longer.
const RECORD_BYTES_MAX: u64 = 1 << 30;

/// `xlp_info`: the page begins with the rest of a record.
const CONTINUES: u16 = 0x0001;
const LONG_HEADER: u16 = 0x0002;
/// `xlp_info`: the record before was never completed, and another one begins.
const OVERWRITES: u16 = 0x0008;

/// Follows the writer's redo from record to record.
#[derive(Debug)]
pub struct Records {
    at: Lsn,
    place: Place,
    complete_lsn: Lsn,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// A record begins here.
    Start,
    /// So many bytes of a record are still to come, its padding included.
    Within(u64),
    /// Not known before the next page.
    Lost,
}

impl Records {
    /// Redo from `begin_lsn` on, where a record or a page begins. What does not look like that is followed
    /// from the next page on.
    #[must_use]
    pub fn new(begin_lsn: Lsn) -> Records {
        Records { at: begin_lsn, place: Place::Start, complete_lsn: begin_lsn }
    }

    /// The end of the last whole record; as long as records are not found, the end of what was read.
    #[must_use]
    pub fn complete_lsn(&self) -> Lsn {
        self.complete_lsn
    }

    /// How far records were followed.
    #[must_use]
    pub fn read_lsn(&self) -> Lsn {
        self.at
    }

    /// Reads on in `redo`, which begins at `begin_lsn`, at or before the end of what was read before.
    pub fn read(&mut self, begin_lsn: Lsn, redo: &[u8]) {
        let end_lsn = begin_lsn + redo.len() as u64;
        while self.at < end_lsn {
            let rest =
                redo.get(usize::try_from(self.at - begin_lsn).unwrap_or(usize::MAX)..).unwrap_or_default();
            let into_page = self.at.0 % PAGE_BYTES;
            let step = match (into_page, self.place) {
                (0, _) => self.read_page_header(rest),
                (_, Place::Start) => self.read_length(rest),
                (_, Place::Within(left)) => Some(left.min(PAGE_BYTES - into_page)),
                (_, Place::Lost) => Some(PAGE_BYTES - into_page),
            };
            let Some(step) = step else { break };
            let step = step.min(rest.len() as u64);
            self.at = self.at + step;
            match &mut self.place {
                // A page's header belongs to the record behind it.
                Place::Within(left) if into_page > 0 => {
                    *left -= step;
                    if *left == 0 {
                        (self.place, self.complete_lsn) = (Place::Start, self.at);
                    }
                }
                Place::Within(_) | Place::Start => {}
                Place::Lost => self.complete_lsn = self.at,
            }
        }
    }

    /// The length of the header at hand; none when it is not there yet.
    fn read_page_header(&mut self, rest: &[u8]) -> Option<u64> {
        let is_there = |bytes: u64| rest.len() as u64 >= bytes;
        if !is_there(HEADER_BYTES) {
            return None;
        }
        let two = |at: usize| u16::from_le_bytes([rest[at], rest[at + 1]]);
        let four = |at: usize| u64::from(two(at)) | u64::from(two(at + 2)) << 16;
        let (magic, info, address, left) = (two(0), two(2), four(8) | four(12) << 32, four(16));
        let header = if info & LONG_HEADER != 0 { LONG_HEADER_BYTES } else { HEADER_BYTES };
        if !is_there(header) {
            return None;
        }
        self.place = match () {
            () if magic >> 8 != 0xD1 || address != self.at.0 => Place::Lost,
            () if info & CONTINUES != 0 && info & OVERWRITES == 0 && left > 0 => {
                Place::Within(left.next_multiple_of(8))
            }
            () => Place::Start,
        };
        Some(header)
    }

    /// Begins a record; nothing is stepped over yet. None when its length is not there yet.
    fn read_length(&mut self, rest: &[u8]) -> Option<u64> {
        let length = u64::from(u32::from_le_bytes(*rest.first_chunk()?));
        let whole = RECORD_HEADER_BYTES..RECORD_BYTES_MAX;
        self.place = match whole.contains(&length) && self.at.0.is_multiple_of(8) && self.follows(rest) {
            true => Place::Within(length.next_multiple_of(8)),
            // Zeroes behind the last record of a segment that was ended early, or no record at all.
            false => Place::Lost,
        };
        Some(0)
    }

    /// Whether the record's pointer to the one before it can be right, as far as it is there.
    fn follows(&self, rest: &[u8]) -> bool {
        let on_this_page = PAGE_BYTES - self.at.0 % PAGE_BYTES;
        match rest.get(8..16).and_then(|bytes| bytes.first_chunk()) {
            Some(previous) if on_this_page >= 16 => {
                let previous = u64::from_le_bytes(*previous);
                previous < self.at.0 && self.at.0 - previous <= 2 * RECORD_BYTES_MAX
            }
            _ => true,
        }
    }
}

/// Redo as PostgreSQL lays it out from `begin` on: records of these lengths; returns the bytes and where each
/// record ends.
#[must_use]
#[cfg(any(test, feature = "testing"))]
#[allow(clippy::missing_panics_doc, clippy::unwrap_used, reason = "for tests")]
pub fn laid_out(begin: u64, lengths: &[usize]) -> (Vec<u8>, Vec<u64>) {
    let (mut bytes, mut ends) = (Vec::new(), Vec::new());
    for length in lengths {
        let mut record = vec![7_u8; length.next_multiple_of(8)];
        record[..4].copy_from_slice(&u32::try_from(*length).unwrap().to_le_bytes());
        let mut left = record.as_slice();
        let mut told = *length;
        while !left.is_empty() {
            let at = begin + bytes.len() as u64;
            if at.is_multiple_of(PAGE_BYTES) {
                let continues = left.len() < record.len();
                bytes.extend(0xD110_u16.to_le_bytes());
                bytes.extend(u16::from(continues).to_le_bytes());
                bytes.extend([0; 4]);
                bytes.extend(at.to_le_bytes());
                bytes.extend(if continues { u32::try_from(told).unwrap() } else { 0 }.to_le_bytes());
                bytes.extend([0; 4]);
                continue;
            }
            if left.len() == record.len() {
                record[8..16].copy_from_slice(&(at - 8).to_le_bytes());
                left = record.as_slice();
            }
            let room = usize::try_from(PAGE_BYTES - at % PAGE_BYTES).unwrap();
            let (now, later) = left.split_at(room.min(left.len()));
            bytes.extend(now);
            told -= now.len().min(told);
            left = later;
        }
        ends.push(begin + bytes.len() as u64);
    }
    (bytes, ends)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Read in whatever pieces: what is complete is always where a record ends, and the newest of those
        /// that are there.
        #[test]
        fn what_is_complete_ends_where_a_record_does(
            begin in (1u64..3000).prop_map(|n| n * 8),
            lengths in proptest::collection::vec(24usize..30_000, 1..20),
            pieces in proptest::collection::vec(1usize..20_000, 1..60),
        ) {
            let (bytes, ends) = laid_out(begin, &lengths);
            let mut records = Records::new(Lsn(begin));
            let mut there = 0;
            for piece in pieces.into_iter().chain([usize::MAX]) {
                there = piece.saturating_add(there).min(bytes.len());
                records.read(Lsn(begin), &bytes[..there]);
                let newest = ends.iter().rfind(|end| **end <= begin + there as u64);
                prop_assert_eq!(records.complete_lsn().0, newest.copied().unwrap_or(begin));
            }
        }

        #[test]
        fn what_is_no_redo_counts_as_complete(bytes in proptest::collection::vec(any::<u8>(), 64..20_000)) {
            let mut records = Records::new(Lsn(8192 * 3 + 4));
            records.read(Lsn(8192 * 3 + 4), &bytes);
            let missing = bytes.len() as u64 - (records.complete_lsn() - Lsn(8192 * 3 + 4));
            prop_assert!(missing < LONG_HEADER_BYTES, "{missing} bytes wait");
        }
    }

    proptest! {
        /// Redo in which anything is changed, in whatever pieces: it is followed to its end, and what is
        /// complete only grows.
        #[test]
        fn any_redo_is_followed_to_its_end(
            begin in (0u64..3000).prop_map(|n| n * 8),
            lengths in proptest::collection::vec(24usize..20_000, 1..8),
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..40),
            piece in 1usize..9000,
        ) {
            let (mut bytes, _) = laid_out(begin, &lengths);
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            let mut records = Records::new(Lsn(begin));
            let mut complete_lsn = records.complete_lsn();
            for end in (1..=bytes.len()).step_by(piece).chain([bytes.len()]) {
                records.read(Lsn(begin), &bytes[..end]);
                prop_assert!(records.complete_lsn() >= complete_lsn && records.complete_lsn() <= records.read_lsn());
                complete_lsn = records.complete_lsn();
                // Only a header, or a length, may wait for the rest of it.
                let waiting = begin + end as u64 - records.read_lsn().0;
                prop_assert!(waiting < LONG_HEADER_BYTES, "{waiting} bytes wait");
            }
        }
    }

    #[test]
    fn a_record_that_was_never_completed_is_given_up_at_the_next_page() {
        let (mut bytes, _) = laid_out(8000, &[1000]);
        let page = 192;
        bytes[page + 2] = 0x08;
        let mut records = Records::new(Lsn(8000));
        records.read(Lsn(8000), &bytes[..page]);
        assert_eq!(records.complete_lsn(), Lsn(8000));
        let (next, _) = laid_out(8192 + 24, &[64]);
        bytes.truncate(page + 24);
        bytes.extend(next);
        records.read(Lsn(8000), &bytes);
        assert_eq!(records.complete_lsn(), Lsn(8192 + 24 + 64));
    }
}
