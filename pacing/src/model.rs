//! The model of a path: its bottleneck's bandwidth and its propagation delay, from what acknowledgements say.
//!
//! A delivery rate is what was acknowledged between a packet's departure and its acknowledgement, over the
//! longer of the two times that sending and acknowledging it took. The transport does not say which packet
//! was acknowledged, only when it was sent: so departures are kept here. A sample is marked when the
//! application was the limit. Such a sample can raise the bandwidth, and never lowers or ages it.

use std::collections::VecDeque;

use crate::arithmetic::{SECOND_US, mul_div};

/// Departures remembered: one for each burst, eight thousand in one round trip. Older ones give no sample.
const DEPARTURES_MAX: usize = 8192;

/// The bandwidth is the highest of the last one to two of so many rounds in which the window was the limit.
const BANDWIDTH_ROUNDS: u32 = 8;

/// What was known when a burst left.
#[derive(Debug, Clone, Copy)]
struct Departure {
    sent_us: u64,
    delivered: u64,
    delivered_us: u64,
    first_sent_us: u64,
    application_limited: bool,
}

/// A delivery rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RateSample {
    /// Bytes a second.
    pub rate: u64,
    /// Whether the application was the limit while it was taken.
    pub application_limited: bool,
}

/// Measures delivery rates.
#[derive(Debug, Clone, Default)]
pub(crate) struct Deliveries {
    departures: VecDeque<Departure>,
    delivered: u64,
    delivered_us: u64,
    first_sent_us: u64,
    /// The newest departure acknowledged in this batch of acknowledgements.
    newest: Option<Departure>,
}

impl Deliveries {
    /// A burst leaves; `idle` when nothing else is in flight.
    pub(crate) fn sent(&mut self, now_us: u64, idle: bool, application_limited: bool) {
        if idle || self.departures.is_empty() {
            (self.first_sent_us, self.delivered_us) = (now_us, now_us);
        }
        if self.departures.back().is_some_and(|last| last.sent_us >= now_us) {
            return;
        }
        if self.departures.len() == DEPARTURES_MAX {
            self.departures.pop_front();
        }
        self.departures.push_back(Departure {
            sent_us: now_us,
            delivered: self.delivered,
            delivered_us: self.delivered_us,
            first_sent_us: self.first_sent_us,
            application_limited,
        });
    }

    /// `bytes` of the burst that left at `sent_us` were acknowledged.
    pub(crate) fn acked(&mut self, now_us: u64, sent_us: u64, bytes: u64) {
        self.delivered = self.delivered.saturating_add(bytes);
        self.delivered_us = now_us;
        let index = self.departures.partition_point(|d| d.sent_us <= sent_us);
        let Some(departure) = index.checked_sub(1).and_then(|i| self.departures.get(i)) else { return };
        if self.newest.is_none_or(|newest| newest.sent_us < departure.sent_us) {
            self.newest = Some(*departure);
        }
    }

    /// The sample of one batch of acknowledgements; none when it is too short to mean anything.
    pub(crate) fn sample(&mut self, now_us: u64, shortest_us: u64) -> Option<RateSample> {
        let newest = self.newest.take()?;
        while self.departures.front().is_some_and(|d| d.sent_us < newest.sent_us) {
            self.departures.pop_front();
        }
        self.first_sent_us = newest.sent_us;
        let sending = newest.sent_us.saturating_sub(newest.first_sent_us);
        let acknowledging = now_us.saturating_sub(newest.delivered_us);
        let interval = sending.max(acknowledging);
        if interval == 0 || interval < shortest_us {
            return None;
        }
        let rate = mul_div(self.delivered - newest.delivered, SECOND_US, interval);
        Some(RateSample { rate, application_limited: newest.application_limited })
    }
}

/// The bottleneck's bandwidth: the highest rate of recent rounds in which the window was the limit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Bandwidth {
    current: u64,
    previous: u64,
    rounds: u32,
}

impl Bandwidth {
    /// Bytes a second; zero before the first sample.
    pub(crate) fn get(&self) -> u64 {
        self.current.max(self.previous)
    }

    pub(crate) fn update(&mut self, sample: RateSample) {
        if !sample.application_limited || sample.rate > self.get() {
            self.current = self.current.max(sample.rate);
        }
    }

    /// A round in which the window was the limit is over: only such rounds age what is known.
    pub(crate) fn round(&mut self) {
        self.rounds = self.rounds.saturating_add(1);
        if self.rounds >= BANDWIDTH_ROUNDS && self.current > 0 {
            (self.previous, self.current, self.rounds) = (self.current, 0, 0);
        }
    }

    /// The path has changed: only `rate` is known.
    pub(crate) fn reset(&mut self, rate: u64) {
        *self = Bandwidth { current: rate, previous: 0, rounds: 0 };
    }
}

/// The highest bandwidth of the last one to two spans: how large the link is, whatever share of it this flow
/// has now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Peak {
    current: u64,
    previous: u64,
    begin_us: u64,
}

impl Peak {
    /// Bytes a second; zero before the first sample.
    pub(crate) fn get(&self) -> u64 {
        self.current.max(self.previous)
    }

    /// The link has become smaller: only `bandwidth` is known of it.
    pub(crate) fn reset(&mut self, now_us: u64, bandwidth: u64) {
        *self = Peak { current: bandwidth, previous: 0, begin_us: now_us };
    }

    pub(crate) fn update(&mut self, now_us: u64, bandwidth: u64, span_us: u64) {
        if now_us.saturating_sub(self.begin_us) >= span_us {
            (self.previous, self.current, self.begin_us) = (self.current, 0, now_us);
        }
        self.current = self.current.max(bandwidth);
    }
}

/// The path's round trip without queues: the shortest of the last one to two spans.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Propagation {
    current_us: Option<u64>,
    previous_us: Option<u64>,
    begin_us: u64,
    met_us: u64,
}

impl Propagation {
    /// Microseconds; none before the first sample.
    pub(crate) fn get(&self) -> Option<u64> {
        match (self.current_us, self.previous_us) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// When a sample was last so near to it that there cannot have been a queue.
    pub(crate) fn met_us(&self) -> u64 {
        self.met_us
    }

    /// The path has become longer: what it was before does not count any more.
    pub(crate) fn lengthen(&mut self, now_us: u64, rtt_us: u64) {
        *self = Propagation { current_us: Some(rtt_us), previous_us: None, begin_us: now_us, met_us: now_us };
    }

    pub(crate) fn update(&mut self, now_us: u64, rtt_us: u64, span_us: u64) {
        if now_us.saturating_sub(self.begin_us) >= span_us && self.current_us.is_some() {
            (self.previous_us, self.current_us, self.begin_us) = (self.current_us, None, now_us);
        }
        self.current_us = Some(self.current_us.map_or(rtt_us, |least| least.min(rtt_us)));
        if self.get().is_some_and(|least| rtt_us <= least + (least / 64).max(500)) {
            self.met_us = now_us;
        }
    }
}

/// Rounds after the first with a long queue that show whether it follows what is in flight: one in which
/// less is sent, one in which that comes back, and one more.
const STANDING_ROUNDS: u32 = 3;

/// A path becomes longer from one round to the next, or to the second where one is a mixture.
const STANDING_BEGINS: u32 = 2;

/// A queue that came at once and stands still. One of this flow's making becomes shorter when less is in
/// flight, and a neighbour's grows before it stands: what does neither is no queue, but a longer path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    /// The queue of the last round that was not long, microseconds; and how many rounds ago that was.
    short_us: u64,
    ago: u32,
    rounds: u32,
    shortest_us: u64,
    /// In flight in the first of these rounds, bytes.
    in_flight: u64,
    /// The window before this flow gave way, bytes.
    window: u64,
    gave_way: bool,
}

impl Standing {
    /// A round is over, whose queue was not long.
    pub(crate) fn clear(&mut self, queue_us: u64) {
        *self = Standing { short_us: queue_us, ..Standing::default() };
    }

    /// A round is over, whose shortest round trip is by `queue_us` more than the propagation delay. When that
    /// is the path's length: its round trip, and the window that this flow had before it gave way.
    pub(crate) fn round(
        &mut self,
        rtt_us: u64,
        queue_us: u64,
        in_flight: u64,
        window: u64,
    ) -> Option<(u64, u64)> {
        self.ago = self.ago.saturating_add(1);
        let stands = self.shortest_us.abs_diff(rtt_us) <= (queue_us / 8).max(1000);
        if self.rounds == 0 || !stands {
            let begins = self.ago <= STANDING_BEGINS && self.short_us <= queue_us / 4;
            self.rounds = u32::from(begins);
            (self.shortest_us, self.in_flight, self.gave_way) = (rtt_us, in_flight, false);
            self.window = self.window.max(window);
            return None;
        }
        self.rounds = self.rounds.saturating_add(1);
        self.shortest_us = self.shortest_us.min(rtt_us);
        self.gave_way |= in_flight <= self.in_flight / 4 * 3;
        (self.gave_way && self.rounds > STANDING_ROUNDS).then_some((self.shortest_us, self.window))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_stream_has_its_rate() {
        let mut deliveries = Deliveries::default();
        let mut rates = Vec::new();
        // 1,200 bytes a millisecond, 40 ms there and back.
        for now in 0..200_u64 {
            deliveries.sent(now * 1000, now == 0, false);
            if let Some(sent) = now.checked_sub(40) {
                deliveries.acked(now * 1000, sent * 1000, 1200);
                rates.extend(deliveries.sample(now * 1000, 20_000).map(|s| s.rate));
            }
        }
        assert!(rates[60..].iter().all(|r| (1_190_000..=1_210_000).contains(r)), "{rates:?}");
    }

    #[test]
    fn acknowledgements_that_come_all_at_once_do_not_look_fast() {
        let mut deliveries = Deliveries::default();
        for now in 0..10_u64 {
            deliveries.sent(now * 10_000, now == 0, false);
        }
        for sent in 0..10_u64 {
            deliveries.acked(140_000, sent * 10_000, 1200);
        }
        let sample = deliveries.sample(140_000, 0).unwrap();
        assert!(sample.rate <= 12_000 * 10, "{sample:?}");
    }

    #[test]
    fn the_application_does_not_lower_the_bandwidth() {
        let mut bandwidth = Bandwidth::default();
        bandwidth.update(RateSample { rate: 1000, application_limited: false });
        for _ in 0..100 {
            bandwidth.update(RateSample { rate: 10, application_limited: true });
        }
        assert_eq!(bandwidth.get(), 1000);
        bandwidth.update(RateSample { rate: 2000, application_limited: true });
        assert_eq!(bandwidth.get(), 2000, "what was carried can be carried");
        for _ in 0..2 * BANDWIDTH_ROUNDS {
            bandwidth.update(RateSample { rate: 500, application_limited: false });
            bandwidth.round();
        }
        assert_eq!(bandwidth.get(), 500);
    }

    #[test]
    fn departures_are_bounded() {
        let mut deliveries = Deliveries::default();
        for now in 0..3 * DEPARTURES_MAX as u64 {
            deliveries.sent(now, false, false);
        }
        assert_eq!(deliveries.departures.len(), DEPARTURES_MAX);
    }

    #[test]
    fn a_longer_way_is_believed_after_two_spans() {
        let mut propagation = Propagation::default();
        propagation.update(0, 40_000, SECOND_US);
        for second in 1..4 {
            propagation.update(second * SECOND_US, 80_000, SECOND_US);
        }
        assert_eq!(propagation.get(), Some(80_000));
    }
}
