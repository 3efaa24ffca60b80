//! When a repair is sent, and what it covers: by the loss that the path shows, and within a share of what the
//! stream itself takes.

use std::ops::Range;

use super::{CELL_BYTES_MAX, CELLS, COST_BYTES, WINDOW_CELLS, columns};

/// Of a thousand bytes of the stream: what repairs may take, headers included, at little loss and at much.
const SHARE: (u64, u64) = (40, 90);

/// The share grows by one for so much loss, packets of a million. The most is reached at 0.25 %.
const SHARE_GROWS_PPM: u64 = 50;

/// A path that lost nothing for so long is clean: nothing is spent on it.
const CLEAN_US: u64 = 60_000_000;

/// What is known of loss fades by a thirty-second of it in a second.
const FADES_US: u64 = 1_000_000;
const FADES_BY: u64 = 32;

/// Without anything new for so long, what no repair covers yet gets one of its own.
const TAIL_US: u64 = 4_000;

/// And not sooner after the newest write: it would leave in the same packet as what it covers.
const APART_US: u64 = 1_000;

/// What may be saved up: so many repairs of the largest cell.
const CREDIT_REPAIRS: u64 = 4;

/// Who writes so much at once is catching up: it is the bandwidth that counts then, and not the delay.
const BULK_BYTES: u64 = 128 << 10;

/// The largest of so many writes says how large a cell has to be.
const WRITES: usize = 16;

/// Decides when a repair is sent, and what it covers.
#[derive(Debug, Clone, Default)]
pub struct Budget {
    /// Packets sent and lost, as the path said last.
    seen: (u64, u64),
    /// The same, of late, in thousandths of packets.
    recent: (u64, u64),
    faded_us: u64,
    lost_us: Option<u64>,
    /// What may be spent, in thousandths of bytes.
    credit: u64,
    /// The end of the stream, of what repairs cover, and the beginning of what they can.
    written: u64,
    covered: u64,
    begin: u64,
    /// Since when there is something that no repair covers, and when the newest was written.
    uncovered_us: u64,
    written_us: u64,
    writes: [u64; WRITES],
    next_write: usize,
    key: u8,
}

/// What a repair is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Due {
    /// Tells it from others.
    pub key: u8,
    /// The bytes of a cell.
    pub cell: u64,
    /// What it covers, as offsets of the stream.
    pub window: Range<u64>,
}

impl Budget {
    /// Begins at `offset` of a stream.
    #[must_use]
    pub fn new(offset: u64) -> Budget {
        Budget { written: offset, covered: offset, begin: offset, ..Budget::default() }
    }

    /// Whether the path has lost something lately. The bytes of the stream are to be kept then.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.lost_us.is_some()
    }

    /// Packets that the connection has sent so far, and how many of them were lost.
    pub fn path(&mut self, now_us: u64, sent: u64, lost: u64) {
        let new = (sent.saturating_sub(self.seen.0), lost.saturating_sub(self.seen.1));
        self.seen = (sent, lost);
        if now_us.saturating_sub(self.faded_us) >= FADES_US {
            self.faded_us = now_us;
            self.recent = (fade(self.recent.0), fade(self.recent.1));
        }
        self.recent = (self.recent.0 + new.0 * 1000, self.recent.1 + new.1 * 1000);
        if new.1 > 0 {
            if self.lost_us.is_none() {
                // What was written so far was not kept.
                (self.begin, self.covered) = (self.written, self.written);
            }
            self.lost_us = Some(now_us);
        }
        let clean = self.lost_us.is_some_and(|at| now_us.saturating_sub(at) >= CLEAN_US);
        if clean {
            (self.lost_us, self.recent, self.credit) = (None, (0, 0), 0);
        }
    }

    /// The loss of late, packets of a million.
    #[must_use]
    pub fn loss_ppm(&self) -> u64 {
        let (sent, lost) = self.recent;
        (lost * 1000).checked_div(sent / 1000).unwrap_or_default().min(1_000_000)
    }

    /// So many bytes were written to the stream.
    pub fn written(&mut self, now_us: u64, bytes: u64) {
        if self.covered == self.written {
            self.uncovered_us = now_us;
        }
        self.written += bytes;
        self.written_us = now_us;
        if !self.is_on() || bytes >= BULK_BYTES {
            (self.begin, self.covered) = (self.written, self.written);
            return;
        }
        let share = (SHARE.0 + self.loss_ppm() / SHARE_GROWS_PPM).min(SHARE.1);
        let most = CREDIT_REPAIRS * (CELL_BYTES_MAX + COST_BYTES) * 1000;
        self.credit = (self.credit + bytes * share).min(most);
        self.writes[self.next_write] = bytes;
        self.next_write = (self.next_write + 1) % WRITES;
    }

    /// The repair to be sent now, if there is one: before more is written, and when [`Budget::wake_us`] says.
    pub fn due(&mut self, now_us: u64) -> Option<Due> {
        let (window, cost) = self.affordable()?;
        let cell = self.cell();
        if self.written - self.covered < cell && now_us < self.late_us() {
            return None;
        }
        self.credit -= cost;
        self.covered = self.written;
        self.key = self.key.wrapping_add(1);
        Some(Due { key: self.key, cell, window })
    }

    /// When a repair will be due, if nothing more is written until then.
    #[must_use]
    pub fn wake_us(&self) -> Option<u64> {
        self.affordable().map(|_| self.late_us())
    }

    /// What the next repair covers and costs, in thousandths of bytes, where there is something to cover and
    /// enough to pay with.
    fn affordable(&self) -> Option<(Range<u64>, u64)> {
        let (cell, uncovered) = (self.cell(), self.written - self.covered);
        if uncovered == 0 {
            return None;
        }
        // Little by itself is simply sent once more; of more, each cell is added to a sum.
        let begin = if uncovered < cell {
            self.covered
        } else {
            self.begin.max(self.written.saturating_sub((WINDOW_CELLS - 1) * cell))
        };
        let window = begin..self.written;
        let columns = columns(&window, cell);
        let cost = (columns.end - columns.start + COST_BYTES) * 1000;
        (self.credit >= cost).then_some((window, cost))
    }

    /// From when on what is not covered gets a repair of its own.
    fn late_us(&self) -> u64 {
        self.uncovered_us.saturating_add(TAIL_US).max(self.written_us.saturating_add(APART_US))
    }

    /// The smallest cell that holds each of the newest writes, as what is written at once leaves in one
    /// packet if it fits.
    fn cell(&self) -> u64 {
        let largest = self.writes.iter().copied().max().unwrap_or_default();
        CELLS.into_iter().find(|cell| largest <= *cell).unwrap_or(CELL_BYTES_MAX)
    }
}

fn fade(sum: u64) -> u64 {
    sum - sum / FADES_BY
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes `bytes` every millisecond for a second, and returns what was due.
    fn second(budget: &mut Budget, from_us: u64, bytes: u64) -> Vec<Due> {
        let mut all = Vec::new();
        for now_us in (from_us..from_us + 1_000_000).step_by(1000) {
            all.extend(budget.due(now_us));
            budget.written(now_us, bytes);
        }
        all
    }

    fn lossy(ppm: u64) -> Budget {
        let mut budget = Budget::new(100);
        budget.path(0, 1_000_000, ppm);
        budget
    }

    #[test]
    fn nothing_is_spent_on_a_clean_path() {
        let mut budget = Budget::new(0);
        budget.path(0, 1000, 0);
        assert_eq!(second(&mut budget, 0, 2000), []);
        assert_eq!(budget.wake_us(), None);
        assert!(!budget.is_on());
    }

    #[test]
    fn what_is_spent_grows_with_loss_and_stays_within_its_share() {
        let spent = |ppm| {
            let mut budget = lossy(ppm);
            let due = second(&mut budget, 0, 2000);
            let all: u64 = due.iter().map(|due| due.cell + COST_BYTES).sum();
            all * 1000 / (1000 * 2000)
        };
        let shares = [100, 1000, 10_000, 300_000].map(spent);
        assert!(shares.is_sorted() && shares[0] >= 38 && shares[3] <= SHARE.1, "{shares:?}");
        assert!(shares[2] >= 85, "{shares:?}");
    }

    #[test]
    fn a_path_is_clean_again_a_minute_after_the_last_loss() {
        let mut budget = lossy(1000);
        budget.path(CLEAN_US - 1, 2_000_000, 1000);
        assert!(budget.is_on());
        budget.path(CLEAN_US, 2_000_000, 1000);
        assert_eq!(second(&mut budget, CLEAN_US, 2000), []);
        budget.path(2 * CLEAN_US, 3_000_000, 1001);
        let first = second(&mut budget, 2 * CLEAN_US, 2000).remove(0);
        assert_eq!(first.window.start, 100 + 1000 * 2000, "what was not kept is in no window");
    }

    #[test]
    fn loss_of_long_ago_fades() {
        let mut budget = lossy(10_000);
        assert_eq!(budget.loss_ppm(), 10_000);
        for second in 1..60 {
            budget.path(second * 1_000_000, 1_000_000 + second * 100_000, 10_000);
        }
        assert!((100..5000).contains(&budget.loss_ppm()), "{}", budget.loss_ppm());
    }

    #[test]
    fn windows_overlap_and_reach_to_the_newest_byte() {
        let mut budget = lossy(10_000);
        let due = second(&mut budget, 0, 2000);
        for pair in due[8..].windows(2) {
            assert_eq!(pair[0].window.end - pair[0].window.start, (WINDOW_CELLS - 1) * CELL_BYTES_MAX);
            assert!(pair[1].window.start < pair[0].window.end && pair[1].window.end > pair[0].window.end);
        }
    }

    #[test]
    fn the_tail_of_a_stream_that_falls_idle_is_sent_once_more() {
        let mut budget = lossy(10_000);
        second(&mut budget, 0, 2000);
        for _ in 0..2 {
            budget.credit = 2_000_000;
            budget.due(1_000_000 + TAIL_US);
        }
        budget.written(2_000_000, 300);
        assert_eq!(budget.due(2_000_000), None, "more may come");
        assert_eq!(budget.wake_us(), Some(2_000_000 + TAIL_US));
        let end = budget.written;
        let due = budget.due(2_000_000 + TAIL_US).unwrap();
        assert_eq!(due.window, end - 300..end);
        assert_eq!((budget.due(3_000_000), budget.wake_us()), (None, None), "once");
    }

    #[test]
    fn small_writes_have_small_cells() {
        let mut budget = lossy(10_000);
        let cells = |due: Vec<Due>| due.iter().map(|due| due.cell).max();
        assert_eq!(cells(second(&mut budget, 0, 300)), Some(356));
        assert_eq!(cells(second(&mut budget, 1_000_000, 5000)), Some(CELL_BYTES_MAX));
    }

    #[test]
    fn who_catches_up_gets_none() {
        let mut budget = lossy(10_000);
        assert_eq!(second(&mut budget, 0, 256 << 10), []);
    }
}
