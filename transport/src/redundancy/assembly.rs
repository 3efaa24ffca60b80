//! The receiving side: what the stream brings in any order, and repairs, become the stream's bytes in order.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;

use bytes::{Buf, Bytes};

use super::{Repair, Ring, cells, factor, field, place};

/// Repairs that wait for what they cover at once. The oldest gives way.
const REPAIRS_MAX: usize = 16;

/// Cells that one solution brings back at most, and gaps that are looked at. With more, the stream's own
/// retransmission is waited for.
const UNKNOWN_MAX: usize = 12;
const GAPS_MAX: usize = 16;

/// Puts a stream together. What it holds beyond a gap is the caller's to bound, by
/// [`Assembly::beyond_bytes`].
#[derive(Debug, Default)]
pub struct Assembly {
    /// All before it is known.
    next: u64,
    /// What is known beyond it, in pieces that do not touch the known part.
    beyond: BTreeMap<u64, Bytes>,
    beyond_bytes: usize,
    /// What is next in order, and whether a repair brought it.
    ready: VecDeque<(Bytes, bool)>,
    /// Which of what is known beyond came by repairs: where such pieces begin.
    repaired: BTreeSet<u64>,
    /// The newest bytes, once the first repair came.
    ring: Option<Ring>,
    repairs: VecDeque<Repair>,
}

/// One unknown: a cell, of which a segment of columns is missing.
#[derive(Debug)]
struct Equation<'a> {
    repair: &'a Repair,
    /// The factors of the unknown cells.
    factors: Vec<u8>,
    /// Of which repairs it is the sum, and how much of each.
    parts: Vec<u8>,
}

impl Assembly {
    /// Begins at `offset` of a stream: what is before it is not asked for.
    #[must_use]
    pub fn new(offset: u64) -> Assembly {
        Assembly { next: offset, ..Assembly::default() }
    }

    /// What is held beyond a gap, bytes.
    #[must_use]
    pub fn beyond_bytes(&self) -> usize {
        self.beyond_bytes
    }

    /// The next bytes in order, and whether a repair brought them.
    pub fn take(&mut self) -> Option<(Bytes, bool)> {
        self.ready.pop_front()
    }

    /// The stream brought bytes. What is known already is passed over.
    pub fn chunk(&mut self, offset: u64, bytes: Bytes) {
        self.insert(offset, bytes, false);
        if !self.repairs.is_empty() {
            self.solve();
        }
    }

    /// A repair came.
    pub fn repair(&mut self, repair: Repair) {
        if self.ring.is_none() {
            let mut ring = Ring::new(self.next);
            self.beyond.iter().for_each(|(offset, piece)| ring.put(*offset, piece));
            self.ring = Some(ring);
        }
        if self.repairs.len() == REPAIRS_MAX {
            self.repairs.pop_front();
        }
        self.repairs.push_back(repair);
        self.solve();
    }

    fn insert(&mut self, offset: u64, bytes: Bytes, repaired: bool) {
        for gap in self.gaps(offset..offset + bytes.len() as u64) {
            let at = |place: u64| usize::try_from(place - offset).unwrap_or_default();
            let piece = bytes.slice(at(gap.start)..at(gap.end));
            if let Some(ring) = &mut self.ring {
                ring.put(gap.start, &piece);
            }
            self.beyond_bytes += piece.len();
            if repaired {
                self.repaired.insert(gap.start);
            }
            // A copy where it has to wait: the packet's own buffer may be much larger.
            let piece = if gap.start == self.next { piece } else { Bytes::copy_from_slice(&piece) };
            self.beyond.insert(gap.start, piece);
        }
        while let Some(piece) = self.beyond.remove(&self.next) {
            let repaired = self.repaired.remove(&self.next);
            self.beyond_bytes -= piece.len();
            self.next += piece.len() as u64;
            self.ready.push_back((piece, repaired));
        }
    }

    /// What is not known of these bytes.
    fn gaps(&self, of: Range<u64>) -> Vec<Range<u64>> {
        let (mut gaps, mut begin) = (Vec::new(), of.start.max(self.next));
        let before = self.beyond.range(..begin).next_back();
        if let Some((offset, piece)) = before {
            begin = begin.max(offset + piece.remaining() as u64);
        }
        for (offset, piece) in self.beyond.range(begin..of.end.max(begin)) {
            if *offset > begin {
                gaps.push(begin..*offset);
            }
            begin = begin.max(offset + piece.remaining() as u64);
        }
        if begin < of.end {
            gaps.push(begin..of.end);
        }
        gaps
    }

    /// Brings back what can be.
    fn solve(&mut self) {
        loop {
            let oldest = self.ring.as_ref().map_or(u64::MAX, Ring::begin);
            let next = self.next;
            self.repairs.retain(|repair| repair.window.start >= oldest && repair.window.end > next);
            let found = self.solutions();
            if found.is_empty() {
                return;
            }
            for (offset, bytes) in found {
                self.insert(offset, bytes, true);
            }
        }
    }

    fn solutions(&self) -> Vec<(u64, Bytes)> {
        let (Some(newest), Some(ring)) = (self.repairs.back(), &self.ring) else { return Vec::new() };
        let cell = newest.cell;
        let repairs: Vec<&Repair> = self.repairs.iter().filter(|repair| repair.cell == cell).collect();
        let begin = repairs.iter().map(|repair| repair.window.start).min().unwrap_or_default();
        let end = repairs.iter().map(|repair| repair.window.end).max().unwrap_or_default();
        let gaps = self.gaps(begin..end);
        if gaps.is_empty() || gaps.len() > GAPS_MAX {
            return Vec::new();
        }
        // Within a segment of columns, each cell is missing or known as a whole, and within a window or not.
        let bounds: BTreeSet<u64> = [0, cell]
            .into_iter()
            .chain(gaps.iter().flat_map(|gap| [gap.start % cell, gap.end % cell]))
            .chain(repairs.iter().flat_map(|repair| {
                let columns = repair.columns();
                let window = &repair.window;
                [columns.start, columns.end, window.start % cell, window.end % cell]
            }))
            .collect();
        let bounds: Vec<u64> = bounds.into_iter().collect();
        let segments = bounds.windows(2).map(|pair| pair[0]..pair[1]);
        segments.flat_map(|segment| solve_segment(ring, &repairs, &gaps, cell, &segment)).collect()
    }
}

/// What can be brought back of a segment of columns.
fn solve_segment(
    ring: &Ring,
    repairs: &[&Repair],
    gaps: &[Range<u64>],
    cell: u64,
    segment: &Range<u64>,
) -> Vec<(u64, Bytes)> {
    let missing = |index: u64| {
        let offset = index * cell + segment.start;
        gaps.iter().any(|gap| gap.contains(&offset))
    };
    let covers = |repair: &Repair, index: u64| repair.window.contains(&(index * cell + segment.start));
    let mut holds: Vec<&Repair> = repairs
        .iter()
        .copied()
        .filter(|repair| {
            let columns = repair.columns();
            columns.start <= segment.start && segment.end <= columns.end
        })
        .collect();
    let touched: BTreeSet<u64> =
        gaps.iter().flat_map(|gap| cells(gap, cell)).filter(|i| missing(*i)).collect();
    let unknown_of = |repair: &Repair| touched.iter().filter(|index| covers(repair, **index)).count();
    // One that lacks more than all of them could bring says nothing.
    let most = holds.len().min(UNKNOWN_MAX);
    holds.retain(|repair| (1..=most).contains(&unknown_of(repair)));
    let unknown: Vec<u64> =
        touched.iter().copied().filter(|index| holds.iter().any(|repair| covers(repair, *index))).collect();
    if holds.is_empty() || unknown.len() > UNKNOWN_MAX {
        return Vec::new();
    }
    let mut equations: Vec<Equation<'_>> = Vec::with_capacity(holds.len());
    for (number, repair) in holds.iter().enumerate() {
        let of = |index: &u64| if covers(repair, *index) { factor(repair.key, *index) } else { 0 };
        let mut parts = vec![0; holds.len()];
        parts[number] = 1;
        equations.push(Equation { repair, factors: unknown.iter().map(of).collect(), parts });
    }
    eliminate(&mut equations, unknown.len());
    let mut found = Vec::new();
    for equation in &equations {
        let mut others = equation.factors.iter().enumerate().filter(|(_, factor)| **factor != 0);
        let (Some((column, _)), None) = (others.next(), others.next()) else { continue };
        let mut bytes = vec![0; usize::try_from(segment.end - segment.start).unwrap_or_default()];
        for (part, other) in equation.parts.iter().zip(&equations) {
            if *part != 0 {
                let known = remainder(ring, other.repair, &missing, cell, segment);
                field::add_scaled(&mut bytes, &known, *part);
            }
        }
        found.push((unknown[column] * cell + segment.start, bytes.into()));
    }
    found
}

/// What a repair has of a segment beyond what is known: the sum of the unknown.
fn remainder(
    ring: &Ring,
    repair: &Repair,
    missing: &impl Fn(u64) -> bool,
    cell: u64,
    segment: &Range<u64>,
) -> Vec<u8> {
    let at = |column: u64| usize::try_from(column - repair.column).unwrap_or_default();
    let mut sum = repair.bytes[at(segment.start)..at(segment.end)].to_vec();
    for index in cells(&repair.window, cell).filter(|index| !missing(*index)) {
        let here = place(index, cell, segment, &repair.window);
        if !here.is_empty() {
            ring.add_to(&mut sum, here, factor(repair.key, index));
        }
    }
    sum
}

/// Brings the equations into the form in which each that determines an unknown has it alone, with factor one.
/// The order of the equations stays, so that `parts` go on meaning them.
fn eliminate(equations: &mut [Equation<'_>], unknown: usize) {
    let mut used = vec![false; equations.len()];
    for column in 0..unknown {
        let pivot = (0..equations.len()).find(|row| !used[*row] && equations[*row].factors[column] != 0);
        let Some(pivot) = pivot else { continue };
        used[pivot] = true;
        let inverse = field::inverse(equations[pivot].factors[column]);
        let scale = |bytes: &mut Vec<u8>| {
            for byte in bytes {
                *byte = field::multiply(*byte, inverse);
            }
        };
        scale(&mut equations[pivot].factors);
        scale(&mut equations[pivot].parts);
        let (factors, parts) = (equations[pivot].factors.clone(), equations[pivot].parts.clone());
        for (row, equation) in equations.iter_mut().enumerate() {
            let times = equation.factors[column];
            if row != pivot && times != 0 {
                field::add_scaled(&mut equation.factors, &factors, times);
                field::add_scaled(&mut equation.parts, &parts, times);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redundancy::{CELL_BYTES_MAX, WINDOW_CELLS};

    const PACKET: usize = 1412;

    fn stream(bytes: usize) -> Vec<u8> {
        (0..bytes as u64)
            .map(|n| u8::try_from((n.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) & 255).unwrap())
            .collect()
    }

    fn repair(stream: &[u8], key: u8, window: Range<u64>) -> Repair {
        let mut ring = Ring::new(0);
        ring.put(0, stream);
        let mut made = Repair::compute(&ring, key, CELL_BYTES_MAX, window, 1 << 16);
        assert_eq!(made.len(), 1);
        made.remove(0)
    }

    fn taken(assembly: &mut Assembly) -> Vec<u8> {
        std::iter::from_fn(|| assembly.take()).flat_map(|(bytes, _)| bytes).collect()
    }

    /// All packets but those `lost`.
    fn received(stream: &[u8], lost: &[usize]) -> Assembly {
        let mut assembly = Assembly::new(0);
        // So that it keeps from the beginning what repairs are computed with.
        assembly.repair(repair(&stream[..10], 99, 0..10));
        for (number, packet) in stream.chunks(PACKET).enumerate() {
            if !lost.contains(&number) {
                assembly.chunk((number * PACKET) as u64, Bytes::copy_from_slice(packet));
            }
        }
        assembly
    }

    #[test]
    fn bytes_come_out_in_order_and_once() {
        let stream = stream(10_000);
        let mut assembly = Assembly::new(100);
        let piece = |range: Range<usize>| (range.start as u64, Bytes::copy_from_slice(&stream[range]));
        for range in [3000..4000, 50..200, 3500..5000, 200..1000, 900..3600, 150..160, 5000..10_000, 0..9000]
        {
            let (offset, bytes) = piece(range);
            assembly.chunk(offset, bytes);
        }
        assert!(taken(&mut assembly) == stream[100..]);
        assert_eq!(assembly.beyond_bytes(), 0);
    }

    #[test]
    fn one_repair_brings_back_any_one_packet() {
        let stream = stream(40 * PACKET);
        for lost in 0..40 {
            let mut assembly = received(&stream, &[lost]);
            assembly.repair(repair(&stream, 1, 0..stream.len() as u64));
            assert!(taken(&mut assembly) == stream, "packet {lost}");
        }
    }

    #[test]
    fn as_many_repairs_as_losses_bring_all_back() {
        let stream = stream(60 * PACKET);
        for lost in [vec![3, 4], vec![1, 59], vec![10, 11, 12, 13, 14]] {
            let mut assembly = received(&stream, &lost);
            for key in 0..u8::try_from(lost.len()).unwrap() {
                assert!(assembly.next < stream.len() as u64, "fewer cannot be enough");
                assembly.repair(repair(&stream, 120 + key, 0..stream.len() as u64));
            }
            assert!(taken(&mut assembly) == stream, "{lost:?}");
        }
    }

    #[test]
    fn windows_that_overlap_are_solved_together() {
        let stream = stream(60 * PACKET);
        let cell = CELL_BYTES_MAX;
        let mut assembly = received(&stream, &[5, 30]);
        assembly.repair(repair(&stream, 7, 0..31 * cell));
        assert!(taken(&mut assembly).len() == 5 * PACKET, "two unknown");
        assembly.repair(repair(&stream, 8, 20 * cell..50 * cell));
        assert!(taken(&mut assembly) == stream[5 * PACKET..]);
    }

    #[test]
    fn a_repair_in_parts_and_before_the_stream() {
        let stream = stream(20 * PACKET);
        let mut ring = Ring::new(0);
        ring.put(0, &stream);
        let parts = Repair::compute(&ring, 1, CELL_BYTES_MAX, 1000..stream.len() as u64, 600);
        assert!(parts.len() == 3 && parts.iter().all(|part| part.encode().len() <= 600));
        let mut assembly = received(&stream[..1000], &[]);
        for part in parts {
            assembly.repair(Repair::decode(part.encode()).unwrap());
        }
        for number in (0..20).rev().filter(|number| *number != 9) {
            let packet = &stream[number * PACKET..(number + 1) * PACKET];
            assembly.chunk((number * PACKET) as u64, Bytes::copy_from_slice(packet));
        }
        assert!(taken(&mut assembly) == stream);
    }

    #[test]
    fn the_tail_alone_is_a_repetition() {
        let stream = stream(3 * PACKET);
        let mut assembly = received(&stream, &[2]);
        let tail = repair(&stream, 4, 2 * PACKET as u64..stream.len() as u64);
        assembly.repair(tail);
        assert!(taken(&mut assembly) == stream);
        assembly.chunk(2 * PACKET as u64, Bytes::copy_from_slice(&stream[2 * PACKET..]));
        assert_eq!(assembly.take(), None, "the stream's own comes too late");
    }

    #[test]
    fn what_any_peer_sends_is_bounded() {
        let mut assembly = Assembly::new(0);
        for n in 0..500_u64 {
            let begin = n * 7919 % 5_000_000;
            let length = (n * 31 % (WINDOW_CELLS * 40)).max(1);
            let column = n % 30;
            let bytes = Bytes::from(vec![1; 1 + size(n % (40 - column))]);
            assembly.repair(Repair { key: 3, cell: 40, window: begin..begin + length, column, bytes });
            if n % 3 == 0 {
                assembly.chunk(n * 500 % 100_000, Bytes::from(vec![7; 300]));
            }
            assert!(assembly.repairs.len() <= REPAIRS_MAX);
            assert!(assembly.repaired.len() <= assembly.beyond.len());
        }
    }

    fn size(bytes: u64) -> usize {
        usize::try_from(bytes).unwrap()
    }
}
