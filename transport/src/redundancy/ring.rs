//! The newest bytes of a stream.

use std::ops::Range;

use super::{CELL_BYTES_MAX, WINDOW_CELLS, field};

/// Bytes that a ring holds: twice the largest window, so that one which lags behind the newest byte is there.
const RING_BYTES: u64 = (2 * WINDOW_CELLS * CELL_BYTES_MAX).next_power_of_two();

/// The newest bytes of a stream, by their offsets. Which of them are known is the caller's to know.
#[derive(Debug, Clone)]
pub struct Ring {
    bytes: Vec<u8>,
    begin: u64,
    end: u64,
}

impl Ring {
    /// Holds nothing before `begin`.
    #[must_use]
    pub fn new(begin: u64) -> Ring {
        Ring { bytes: vec![0; size(RING_BYTES)], begin, end: begin }
    }

    /// Where the oldest byte lies that it may hold.
    #[must_use]
    pub fn begin(&self) -> u64 {
        self.begin.max(self.end.saturating_sub(RING_BYTES))
    }

    /// Takes bytes. What is older than the ring is long is not kept.
    pub fn put(&mut self, offset: u64, bytes: &[u8]) {
        self.end = self.end.max(offset + bytes.len() as u64);
        let skip = size(self.begin().saturating_sub(offset)).min(bytes.len());
        let mut left = &bytes[skip..];
        let mut offset = offset + skip as u64;
        while !left.is_empty() {
            let at = size(offset % RING_BYTES);
            let length = left.len().min(self.bytes.len() - at);
            self.bytes[at..at + length].copy_from_slice(&left[..length]);
            (left, offset) = (&left[length..], offset + length as u64);
        }
    }

    /// The check of what comes before, which is `check`, and of the bytes at `place`: CRC-32C.
    pub(super) fn check(&self, check: u32, place: Range<u64>) -> u32 {
        let (mut offset, mut check) = (place.start, check);
        while offset < place.end {
            let at = size(offset % RING_BYTES);
            let length = size(place.end - offset).min(self.bytes.len() - at);
            check = crc32c::crc32c_append(check, &self.bytes[at..at + length]);
            offset += length as u64;
        }
        check
    }

    /// Adds the bytes at `place` times `factor` to the beginning of `sum`.
    pub(super) fn add_to(&self, sum: &mut [u8], place: Range<u64>, factor: u8) {
        let (mut offset, mut done) = (place.start, 0);
        while offset < place.end {
            let at = size(offset % RING_BYTES);
            let length = size(place.end - offset).min(self.bytes.len() - at);
            field::add_scaled(&mut sum[done..], &self.bytes[at..at + length], factor);
            (offset, done) = (offset + length as u64, done + length);
        }
    }
}

fn size(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_the_newest_bytes() {
        let stream: Vec<u8> = (0..3 * RING_BYTES).map(|n| u8::try_from(n % 251).unwrap()).collect();
        let mut ring = Ring::new(0);
        let mut offset = 0;
        for length in [1, 1000, size(RING_BYTES) - 7, 3, 100_000, size(RING_BYTES) + 5] {
            ring.put(offset, &stream[size(offset)..size(offset) + length]);
            offset += length as u64;
            let place = ring.begin()..offset;
            let mut held = vec![0; size(place.end - place.start)];
            ring.add_to(&mut held, place.clone(), 1);
            assert!(held == stream[size(place.start)..size(place.end)], "up to {offset}");
        }
    }
}
