//! Redundancy: what is lost of a stream is put together again from what came, without waiting for its
//! retransmission.
//!
//! The stream is cut into *cells* of so many bytes, counted from its beginning. A *repair* is a sum of the
//! cells of a window of the stream, each multiplied by a factor of its own, and travels in datagrams beside
//! the stream. A lost packet holds at most as many bytes as a cell, so each column of the cells lacks one
//! byte at most for each lost packet, and as many repairs as packets were lost bring them back. The factors
//! are of a Cauchy matrix, of which every square part can be solved.
//!
//! The stream stays the truth: it alone is acknowledged, and whatever it brings is taken at once, whether a
//! repair is waited with or not. What repairs bring is taken only as whole gaps, and only where the window
//! that a gap lies in has the check that its repair says: so what is lost, late, doubled or damaged of the
//! repairs leaves the stream as it would be without them.
//!
//! [`Budget`] decides when a repair is sent and what it covers, [`Ring`] has the bytes, and [`Assembly`] puts
//! the stream together on the other side. None of them does I/O or knows the time.

mod assembly;
mod budget;
mod field;
mod ring;
mod solution;

use std::ops::Range;

use bytes::{Buf, BufMut, Bytes, BytesMut};

pub use assembly::Assembly;
pub use budget::{Budget, Due};
pub use ring::Ring;

/// The variable that has a primary offer repairs, unless it says `off`.
pub const VARIABLE: &str = "REPLICATOR_REPAIRS";

/// Whether a primary offers repairs: where [`VARIABLE`] is set to anything but `off`.
#[must_use]
pub fn is_offered() -> bool {
    std::env::var_os(VARIABLE).is_some_and(|said| said != "off")
}

/// The largest cell, bytes: what one packet holds of a stream on an Ethernet, and a little more.
pub const CELL_BYTES_MAX: u64 = 1424;

/// The smaller cells, for streams of small packets.
const CELLS: [u64; 3] = [356, 712, CELL_BYTES_MAX];

/// Cells of one window at most. The factors tell twice as many apart.
pub const WINDOW_CELLS: u64 = 64;

/// What a repair begins with, bytes.
const HEADER_BYTES: usize = 22;

/// The kind of datagram that a repair is. Others are passed over.
const KIND: u8 = 2;

/// What a packet with a repair takes beside the repair's own bytes: IP, UDP, QUIC's header, seal and frame,
/// and the repair's header.
const COST_BYTES: u64 = 28 + 40 + HEADER_BYTES as u64;

/// A repair, or some columns of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repair {
    /// Tells it from other repairs of the same cells.
    pub key: u8,
    /// The bytes of a cell.
    pub cell: u64,
    /// The bytes of the stream that it covers, as offsets.
    pub window: Range<u64>,
    /// CRC-32C of the window's bytes.
    pub check: u32,
    /// The first column that it holds.
    pub column: u64,
    /// The sum, one byte for each column.
    pub bytes: Bytes,
}

impl Repair {
    /// The columns that it holds.
    fn columns(&self) -> Range<u64> {
        self.column..self.column + self.bytes.len() as u64
    }

    /// The repair of a datagram; none where it is not one within its limits.
    #[must_use]
    pub fn decode(mut datagram: Bytes) -> Option<Repair> {
        if datagram.len() <= HEADER_BYTES || datagram.get_u8() != KIND {
            return None;
        }
        let key = datagram.get_u8();
        let (cell, column) = (u64::from(datagram.get_u16()), u64::from(datagram.get_u16()));
        let (length, begin) = (u64::from(datagram.get_u32()), datagram.get_u64());
        let check = datagram.get_u32();
        let fits = CELLS.contains(&cell) && column + datagram.len() as u64 <= cell;
        // Offsets of a stream are of 62 bits.
        let window = (1..=WINDOW_CELLS * cell).contains(&length) && begin < 1 << 62;
        let window = window.then(|| begin..begin + length).filter(|_| fits)?;
        Some(Repair { key, cell, window, check, column, bytes: datagram })
    }

    /// It as a datagram.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let small = |number: u64| u16::try_from(number).unwrap_or(u16::MAX);
        let length = self.window.end - self.window.start;
        let mut datagram = BytesMut::with_capacity(HEADER_BYTES + self.bytes.len());
        datagram.put_u8(KIND);
        datagram.put_u8(self.key);
        datagram.put_u16(small(self.cell));
        datagram.put_u16(small(self.column));
        datagram.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
        datagram.put_u64(self.window.start);
        datagram.put_u32(self.check);
        datagram.put_slice(&self.bytes);
        datagram.freeze()
    }

    /// The repair of `window`, which `ring` holds, cut into parts of at most `part_bytes` with their headers.
    #[must_use]
    pub fn compute(ring: &Ring, key: u8, cell: u64, window: Range<u64>, part_bytes: usize) -> Vec<Repair> {
        let mut sum = vec![0; usize::try_from(cell).unwrap_or_default()];
        for index in cells(&window, cell) {
            let offset = index * cell;
            let here = place(index, cell, &(0..cell), &window);
            let column = usize::try_from(here.start - offset).unwrap_or_default();
            ring.add_to(&mut sum[column..], here, factor(key, index));
        }
        // A window within few cells touches few columns.
        let columns = columns(&window, cell);
        let most = part_bytes.saturating_sub(HEADER_BYTES).max(1) as u64;
        let (sum, check) = (Bytes::from(sum), ring.check(0, window.clone()));
        let cut = |column: u64| {
            let at = |column: u64| usize::try_from(column).unwrap_or_default();
            let bytes = sum.slice(at(column)..at((column + most).min(columns.end)));
            Repair { key, cell, window: window.clone(), check, column, bytes }
        };
        columns.clone().step_by(usize::try_from(most).unwrap_or(1)).map(cut).collect()
    }
}

/// The factor of a cell in a repair: one over the sum of two elements of different halves of the field.
fn factor(key: u8, index: u64) -> u8 {
    let low = u8::try_from(index % 128).unwrap_or_default();
    field::inverse((key | 0x80) ^ low)
}

/// The cells that a window touches.
fn cells(window: &Range<u64>, cell: u64) -> Range<u64> {
    window.start / cell..window.end.div_ceil(cell)
}

/// The columns that a window touches, in one range.
fn columns(window: &Range<u64>, cell: u64) -> Range<u64> {
    let within_one = window.start / cell == window.end.saturating_sub(1) / cell;
    if within_one { window.start % cell..(window.end - 1) % cell + 1 } else { 0..cell }
}

/// Which bytes of a cell lie in these columns and in the window, as offsets. Empty where none do.
fn place(index: u64, cell: u64, columns: &Range<u64>, window: &Range<u64>) -> Range<u64> {
    let offset = index * cell;
    let begin = (offset + columns.start).max(window.start);
    begin..(offset + columns.end).min(window.end).max(begin)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips() {
        let bytes = Bytes::from_static(b"abc");
        let repair = Repair { key: 130, cell: 356, window: 1000..9000, check: 1 << 31, column: 7, bytes };
        assert_eq!(Repair::decode(repair.encode()), Some(repair));
    }

    #[test]
    fn what_is_outside_the_limits_is_no_repair() {
        let bytes = Bytes::from_static(b"x");
        let good = Repair { key: 0, cell: 356, window: 5..15, check: 0, column: 0, bytes };
        for wrong in [
            Repair { cell: 0, ..good.clone() },
            Repair { cell: CELL_BYTES_MAX + 1, ..good.clone() },
            Repair { cell: 357, ..good.clone() },
            Repair { column: 356, ..good.clone() },
            Repair { window: 5..5, ..good.clone() },
            Repair { window: 5..6 + 356 * WINDOW_CELLS, ..good.clone() },
            Repair { window: 1 << 62..(1 << 62) + 1, ..good.clone() },
            Repair { bytes: Bytes::new(), ..good.clone() },
        ] {
            assert_eq!(Repair::decode(wrong.encode()), None, "{wrong:?}");
        }
        assert_eq!(Repair::decode(Bytes::from_static(&[2; 40])), None, "another kind");
        assert!(Repair::decode(good.encode()).is_some());
    }
}
