//! The receiving side: what the stream brings in any order, and repairs, become the stream's bytes in order.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;

use bytes::{Buf, Bytes};

use super::solution::{Solution, solve};
use super::{Repair, Ring};

/// Repairs that wait for what they cover at once. The oldest gives way.
const REPAIRS_MAX: usize = 16;

/// Gaps that are looked at, the oldest.
const GAPS_MAX: usize = 24;

/// Puts a stream together. What it holds beyond a gap is the caller's to bound, by
/// [`Assembly::beyond_bytes`].
///
/// What the stream brings comes out as if there were no repairs, at the same call or an earlier one.
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
    refuted: u64,
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

    /// Repairs that did not fit together with the stream.
    #[must_use]
    pub fn refuted(&self) -> u64 {
        self.refuted
    }

    /// The next bytes in order, and whether a repair brought them.
    pub fn take(&mut self) -> Option<(Bytes, bool)> {
        self.ready.pop_front()
    }

    /// The stream brought bytes. What is known already is passed over.
    pub fn chunk(&mut self, offset: u64, bytes: Bytes) {
        let end = offset + bytes.len() as u64;
        // What is new at the stream's end tells nothing of gaps before it.
        let tells = |repair: &Repair| offset < repair.window.end && repair.window.start < end;
        let tells = self.repairs.iter().any(tells);
        if self.insert(offset, bytes, false) && tells {
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

    /// Takes what is not known of these bytes; whether there was any.
    fn insert(&mut self, offset: u64, bytes: Bytes, repaired: bool) -> bool {
        let gaps = self.gaps(offset..offset + bytes.len() as u64);
        let any = !gaps.is_empty();
        for gap in gaps {
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
        any
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
            let mut repairs = std::mem::take(&mut self.repairs);
            repairs.retain(|repair| {
                repair.window.start >= oldest && !self.gaps(repair.window.clone()).is_empty()
            });
            self.repairs = repairs;
            let Solution { pieces, mut refuted } = self.solution();
            self.refuted += refuted.len() as u64;
            while let Some(number) = refuted.pop() {
                self.repairs.remove(number);
            }
            if pieces.is_empty() {
                return;
            }
            for (offset, bytes) in pieces {
                self.insert(offset, bytes, true);
            }
        }
    }

    /// What the repairs cover: their windows in order, those together that overlap.
    fn windows(&self) -> Vec<Range<u64>> {
        let mut windows: Vec<Range<u64>> = self.repairs.iter().map(|repair| repair.window.clone()).collect();
        windows.sort_unstable_by_key(|window| window.start);
        windows.dedup_by(|next, last| {
            let together = next.start <= last.end;
            if together {
                last.end = last.end.max(next.end);
            }
            together
        });
        windows
    }

    fn solution(&self) -> Solution {
        let (Some(newest), Some(ring)) = (self.repairs.back(), &self.ring) else {
            return Solution::default();
        };
        let alike = |repair: &&Repair| repair.cell == newest.cell;
        let mut gaps: Vec<Range<u64>> = Vec::new();
        for windows in self.windows() {
            gaps.extend(self.gaps(windows));
        }
        // What lies beyond those that are looked at, nothing can be said of.
        let horizon = gaps.get(GAPS_MAX).map_or(u64::MAX, |gap| gap.start);
        gaps.truncate(GAPS_MAX);
        let within = |repair: &&Repair| repair.window.end <= horizon;
        let (numbers, repairs): (Vec<usize>, Vec<&Repair>) =
            self.repairs.iter().enumerate().filter(|(_, repair)| alike(repair) && within(repair)).unzip();
        let Solution { pieces, refuted } = solve(ring, &repairs, &gaps);
        Solution { pieces, refuted: refuted.into_iter().map(|number| numbers[number]).collect() }
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
        for lost in [vec![3, 4], vec![1, 59], vec![10, 11, 12, 13, 14], vec![1, 7, 20, 21, 40, 58]] {
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
            let window = begin..begin + length;
            assembly.repair(Repair { key: 3, cell: 356, window, check: 7, column, bytes });
            if n % 3 == 0 {
                assembly.chunk(n * 500 % 100_000, Bytes::from(vec![7; 300]));
            }
            assert!(assembly.repairs.len() <= REPAIRS_MAX);
            assert!(assembly.repaired.len() <= assembly.beyond.len());
        }
    }

    /// A linear congruential generator: nothing here depends on its quality.
    struct Dice(u64);

    impl Dice {
        fn below(&mut self, bound: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % bound.max(1)
        }
    }

    /// What happens on the way, in order.
    enum Event {
        Chunk(u64, Bytes),
        Datagram(Bytes),
    }

    /// A stream in packets, some of which come later, with repairs of it that are lost, late, doubled, or
    /// damaged.
    fn way(dice: &mut Dice, stream: &[u8]) -> Vec<Event> {
        let (damaged, lost) = ([0, 5, 40][size(dice.below(3))], [10, 60, 200][size(dice.below(3))]);
        let mut events: Vec<(u64, Event)> = Vec::new();
        let (mut at, mut begin, mut ring) = (0, 0, Ring::new(0));
        while begin < stream.len() {
            let end = (begin + 1 + size(dice.below(PACKET as u64))).min(stream.len());
            ring.put(begin as u64, &stream[begin..end]);
            let late = if dice.below(1000) < lost { 10 + dice.below(300) } else { dice.below(2) * 3 };
            events.push((at + late, Event::Chunk(begin as u64, Bytes::copy_from_slice(&stream[begin..end]))));
            (begin, at) = (end, at + 2);
            if dice.below(8) > 0 {
                continue;
            }
            let cell = super::super::CELLS[size(dice.below(3))];
            let from = (end as u64).saturating_sub(dice.below(WINDOW_CELLS - 1) * cell + 1).max(ring.begin());
            let key = u8::try_from(dice.below(256)).unwrap();
            for part in Repair::compute(&ring, key, cell, from..end as u64, 1400) {
                let mut datagram = part.encode().to_vec();
                if dice.below(100) < damaged {
                    let within = [22, datagram.len() as u64][size(dice.below(2))];
                    datagram[size(dice.below(within))] ^= 1 << dice.below(8);
                }
                let late = [1, 1, 1, 50, 400][size(dice.below(5))];
                for _ in 0..[0, 1, 1, 1, 2][size(dice.below(5))] {
                    events.push((at + late, Event::Datagram(Bytes::from(datagram.clone()))));
                }
            }
        }
        events.sort_by_key(|(at, _)| *at);
        events.into_iter().map(|(_, event)| event).collect()
    }

    #[test]
    fn whatever_happens_to_repairs_no_byte_comes_later_or_otherwise_than_without() {
        let (mut earlier, mut refuted) = (0, 0);
        for seed in 0..1000 {
            let mut dice = Dice(seed);
            let stream = stream(size(10_000 + dice.below(150_000)));
            let (mut with, mut without) = (Assembly::new(0), Assembly::new(0));
            let (mut got, mut due) = (0, 0);
            for event in way(&mut dice, &stream) {
                match event {
                    Event::Chunk(offset, bytes) => {
                        with.chunk(offset, bytes.clone());
                        without.chunk(offset, bytes);
                    }
                    Event::Datagram(datagram) => {
                        if let Some(repair) = Repair::decode(datagram) {
                            with.repair(repair);
                        }
                    }
                }
                due += taken(&mut without).len();
                let bytes = taken(&mut with);
                assert!(bytes == stream[got..got + bytes.len()], "seed {seed}: other bytes at {got}");
                got += bytes.len();
                assert!(got >= due, "seed {seed}: {got} came with repairs, and {due} without");
                earlier += u64::from(got > due);
            }
            assert_eq!((got, with.beyond_bytes()), (stream.len(), 0), "seed {seed}: all of it came");
            refuted += with.refuted();
        }
        assert!(earlier > 1000 && refuted > 30, "{earlier} times earlier, {refuted} refuted");
    }

    #[test]
    fn any_losses_that_are_no_more_than_repairs_are_brought_back() {
        let stream = stream(60 * PACKET);
        for seed in 0..500 {
            let mut dice = Dice(seed);
            let lost: BTreeSet<usize> = (0..1 + dice.below(UNKNOWN)).map(|_| size(dice.below(60))).collect();
            let lost: Vec<usize> = lost.into_iter().collect();
            let mut assembly = received(&stream, &lost);
            for key in 0..lost.len() {
                let key = u8::try_from((size(seed) + key) % 256).unwrap();
                assembly.repair(repair(&stream, key, 0..stream.len() as u64));
            }
            assert!(taken(&mut assembly) == stream && assembly.refuted() == 0, "seed {seed}: {lost:?}");
        }
    }

    /// Cells that one solution brings back.
    const UNKNOWN: u64 = 12;

    fn size(bytes: u64) -> usize {
        usize::try_from(bytes).unwrap()
    }
}
