//! One direction of the emulated network: what becomes of each packet. Pure: the time and the dice are
//! arguments.

use std::collections::VecDeque;

use rand::RngExt;
use rand::rngs::SmallRng;

/// A second in nanoseconds.
const SECOND_NS: u64 = 1_000_000_000;

/// How one direction is. The default is a wire without length, loss or bound.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Weather {
    /// One way, microseconds.
    pub delay_us: u64,
    /// Up to so much more, evenly spread, microseconds.
    pub jitter_us: u64,
    /// Whether jitter lets a later packet overtake an earlier one.
    pub overtaking: bool,
    /// Packets lost by themselves, of a million.
    pub loss_ppm: u32,
    /// Bursts of loss: they begin at so many packets of a million, and each loses so many in a row.
    pub bursts: (u32, u32),
    /// Bits a second, IP headers included; no bound without it.
    pub rate: Option<u64>,
    /// Bytes that wait for the rate; what finds no room is dropped.
    pub queue_bytes: u64,
    /// Nothing passes.
    pub cut: bool,
}

/// What a direction has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Carried {
    /// Packets that came.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Packets lost by chance, or because the direction was cut.
    pub lost: u64,
    /// Packets for which the queue had no room.
    pub dropped: u64,
}

/// One direction.
#[derive(Debug, Default)]
pub(super) struct Link {
    pub weather: Weather,
    pub carried: Carried,
    /// How long packets waited in the queue, microseconds: the last of them.
    pub waited_us: VecDeque<u64>,
    busy_until_ns: u64,
    last_due_us: u64,
    bursting: u32,
}

/// How many waits are kept.
const WAITS_MAX: usize = 1 << 20;

impl Link {
    /// When a packet of `bytes` that comes at `now_us` arrives on the other side; never, if that is `None`.
    pub fn pass(&mut self, now_us: u64, bytes: u64, dice: &mut SmallRng) -> Option<u64> {
        self.carried.packets += 1;
        self.carried.bytes += bytes;
        let mut due_us = now_us;
        if let Some(rate) = self.weather.rate.filter(|rate| *rate > 0) {
            let now_ns = now_us * 1000;
            let waits_ns = self.busy_until_ns.saturating_sub(now_ns);
            let queued = u128::from(waits_ns) * u128::from(rate) / u128::from(8 * SECOND_NS);
            // An idle link takes any packet.
            if waits_ns > 0 && queued + u128::from(bytes) > u128::from(self.weather.queue_bytes) {
                self.carried.dropped += 1;
                return None;
            }
            if self.waited_us.len() == WAITS_MAX {
                self.waited_us.pop_front();
            }
            self.waited_us.push_back(waits_ns / 1000);
            self.busy_until_ns = self.busy_until_ns.max(now_ns) + bytes * 8 * SECOND_NS / rate;
            due_us = self.busy_until_ns / 1000;
        }
        if self.weather.cut || self.loses(dice) {
            self.carried.lost += 1;
            return None;
        }
        let jitter_us = match self.weather.jitter_us {
            0 => 0,
            jitter_us => dice.random_range(0..=jitter_us),
        };
        due_us += self.weather.delay_us + jitter_us;
        if !self.weather.overtaking {
            due_us = due_us.max(self.last_due_us);
        }
        self.last_due_us = due_us;
        Some(due_us)
    }

    fn loses(&mut self, dice: &mut SmallRng) -> bool {
        if self.bursting > 0 {
            self.bursting -= 1;
            return true;
        }
        let (begin, length) = self.weather.bursts;
        if begin > 0 && dice.random_range(0..1_000_000) < begin {
            self.bursting = length.saturating_sub(1);
            return true;
        }
        self.weather.loss_ppm > 0 && dice.random_range(0..1_000_000) < self.weather.loss_ppm
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    fn link(weather: Weather) -> (Link, SmallRng) {
        (Link { weather, ..Link::default() }, SmallRng::seed_from_u64(1))
    }

    #[test]
    fn a_rate_spaces_packets_and_its_queue_is_bounded() {
        let (mut link, mut dice) =
            link(Weather { delay_us: 1000, rate: Some(8_000_000), queue_bytes: 3000, ..Weather::default() });
        // 1,000 bytes take a millisecond; three packets wait at most.
        let due: Vec<Option<u64>> = (0..5).map(|_| link.pass(0, 1000, &mut dice)).collect();
        assert_eq!(due, [Some(2000), Some(3000), Some(4000), None, None]);
        assert_eq!(link.pass(1000, 1000, &mut dice), Some(5000));
        assert_eq!((link.carried.packets, link.carried.dropped, link.carried.lost), (6, 2, 0));
    }

    #[test]
    fn chance_loses_its_share() {
        let (mut link, mut dice) = link(Weather { loss_ppm: 10_000, ..Weather::default() });
        let passed = (0..100_000).filter(|_| link.pass(0, 100, &mut dice).is_some()).count();
        assert!((98_800..=99_200).contains(&passed), "{passed}");
    }

    #[test]
    fn bursts_lose_in_a_row() {
        let (mut link, mut dice) = link(Weather { bursts: (1000, 20), ..Weather::default() });
        let fates: Vec<bool> = (0..100_000).map(|_| link.pass(0, 100, &mut dice).is_none()).collect();
        let lost = fates.iter().filter(|lost| **lost).count();
        let bursts = fates.windows(2).filter(|pair| !pair[0] && pair[1]).count();
        assert!((1000..3500).contains(&lost) && lost / bursts >= 19, "{lost} in {bursts}");
    }

    #[test]
    fn only_overtaking_changes_the_order() {
        let due = |overtaking| {
            let (mut link, mut dice) = link(Weather { jitter_us: 5000, overtaking, ..Weather::default() });
            (0..1000).filter_map(|n| link.pass(n * 100, 100, &mut dice)).collect::<Vec<u64>>()
        };
        assert!(due(false).is_sorted() && !due(true).is_sorted());
    }

    #[test]
    fn nothing_passes_a_cut() {
        let (mut link, mut dice) = link(Weather { cut: true, ..Weather::default() });
        assert_eq!(link.pass(0, 100, &mut dice), None);
        link.weather.cut = false;
        assert_eq!(link.pass(1, 100, &mut dice), Some(1));
    }
}
