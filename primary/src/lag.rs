//! How far behind a region is, in the primary's clock and honest when nothing is written.
//!
//! Two facts are known. A batch that ends at an LSN holds no commit younger than its time: a region that has that LSN
//! has every commit up to that time. And a heartbeat says "at this time all my redo ended here": a region that has
//! *answered* it and has that LSN had everything up to that time, even though no redo came. The lag is the age of the
//! newest such time. A dead link answers no heartbeats, so its lag grows although nothing is written.

use std::collections::VecDeque;

use proto::Lsn;

/// The most moments remembered. Older ones are thinned out, so a region days behind still has a lag, only coarser.
const MOMENTS_MAX: usize = 4096;

/// Moments closer together than this are kept as one.
const MOMENT_MIN_US: i64 = 1_000;

/// The most unanswered heartbeats remembered for a region; at ten a second, six seconds' worth.
const HEARTBEATS_MAX: usize = 64;

/// A report older than this no longer speaks for now: the lag then grows with the clock.
const REPORT_FRESH_US: i64 = 300_000;

/// When redo was written: (time, end of redo) moments of the primary, both growing.
#[derive(Debug, Default)]
pub struct RedoClock {
    moments: VecDeque<Moment>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Moment {
    at_us: i64,
    end_lsn: Lsn,
}

impl RedoClock {
    /// Notes that redo up to `end_lsn` holds no commit younger than `at_us` (microseconds, the primary's clock).
    ///
    /// Times that go back, as a stepped clock makes them, are taken as the newest time known.
    pub fn note(&mut self, at_us: i64, end_lsn: Lsn) {
        match self.moments.back_mut() {
            Some(last) if end_lsn <= last.end_lsn => {}
            Some(last) if at_us < last.at_us.saturating_add(MOMENT_MIN_US) => {
                // One moment for both: the later time needs the later end, so nothing looks fresher than it is.
                *last = Moment { at_us: at_us.max(last.at_us), end_lsn };
            }
            _ => self.moments.push_back(Moment { at_us, end_lsn }),
        }
        if self.moments.len() > MOMENTS_MAX {
            self.thin_out();
        }
    }

    /// The newest time up to which a region that has all redo before `lsn` has every commit.
    #[must_use]
    pub fn covered_us(&self, lsn: Lsn) -> Option<i64> {
        let after = self.moments.partition_point(|m| m.end_lsn <= lsn);
        after.checked_sub(1).map(|index| self.moments[index].at_us)
    }

    /// The oldest time at which redo beyond `lsn` was written; none when there is none.
    #[must_use]
    pub fn oldest_beyond_us(&self, lsn: Lsn) -> Option<i64> {
        let after = self.moments.partition_point(|m| m.end_lsn <= lsn);
        self.moments.get(after).map(|m| m.at_us)
    }

    /// The oldest time remembered.
    #[must_use]
    pub fn oldest_us(&self) -> Option<i64> {
        self.moments.front().map(|m| m.at_us)
    }

    /// Drops every second moment of the older half.
    fn thin_out(&mut self) {
        let half = self.moments.len() / 2;
        let mut index = 0;
        self.moments.retain(|_| {
            index += 1;
            index == 1 || index > half || index % 2 == 0
        });
    }
}

/// How one region keeps up.
#[derive(Debug, Default)]
pub struct RegionLag {
    heartbeats: VecDeque<Heartbeat>,
    durable: Coverage,
    applied: Coverage,
    reported_at_us: Option<i64>,
}

#[derive(Debug, Clone, Copy)]
struct Heartbeat {
    sent_us: i64,
    end_lsn: Lsn,
}

/// What is known of one of a region's positions.
#[derive(Debug, Default, Clone, Copy)]
struct Coverage {
    covered_us: Option<i64>,
    /// The lag as it was when the last report came in.
    lag_us: Option<i64>,
}

impl RegionLag {
    /// A heartbeat left for the region at `sent_us`, saying that all redo ended at `end_lsn`.
    pub fn heartbeat_sent(&mut self, sent_us: i64, end_lsn: Lsn) {
        if self.heartbeats.len() == HEARTBEATS_MAX {
            self.heartbeats.pop_front();
        }
        self.heartbeats.push_back(Heartbeat { sent_us, end_lsn });
    }

    /// The region reported its positions and the newest heartbeat it has seen.
    pub fn reported(
        &mut self,
        now_us: i64,
        clock: &RedoClock,
        durable_lsn: Lsn,
        applied_lsn: Lsn,
        heartbeat_us: i64,
    ) {
        for (coverage, lsn) in [(&mut self.durable, durable_lsn), (&mut self.applied, applied_lsn)] {
            let answered =
                self.heartbeats.iter().rev().find(|h| h.sent_us <= heartbeat_us && h.end_lsn <= lsn);
            let known = answered.map(|h| h.sent_us).max(clock.covered_us(lsn));
            coverage.covered_us = coverage.covered_us.max(known);
            // Redo older than anything remembered: at least as old as the oldest moment.
            let since_us = coverage.covered_us.or(clock.oldest_us());
            coverage.lag_us = since_us.map(|t| now_us.saturating_sub(t).max(0));
        }
        self.heartbeats.retain(|h| h.sent_us > heartbeat_us || h.end_lsn > applied_lsn);
        self.reported_at_us = Some(now_us);
    }

    /// How old the newest commit is that the region surely has durable, in microseconds; unknown before a report.
    #[must_use]
    pub fn durability_lag_us(&self, now_us: i64) -> Option<i64> {
        self.lag_us(now_us, self.durable)
    }

    /// How old the newest commit is that the region surely has applied, in microseconds; unknown before a report.
    #[must_use]
    pub fn visibility_lag_us(&self, now_us: i64) -> Option<i64> {
        self.lag_us(now_us, self.applied)
    }

    fn lag_us(&self, now_us: i64, coverage: Coverage) -> Option<i64> {
        let silent_us = now_us.saturating_sub(self.reported_at_us?);
        let grown_us = if silent_us > REPORT_FRESH_US { silent_us } else { 0 };
        coverage.lag_us.map(|lag_us| lag_us.saturating_add(grown_us))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: i64 = 1_000;

    #[test]
    fn a_region_lags_by_the_age_of_what_it_has() {
        let mut clock = RedoClock::default();
        clock.note(100 * MS, Lsn(1000));
        clock.note(200 * MS, Lsn(2000));
        let mut region = RegionLag::default();
        assert_eq!(region.durability_lag_us(0), None);
        region.reported(203 * MS, &clock, Lsn(2000), Lsn(1500), 0);
        assert_eq!(region.durability_lag_us(204 * MS), Some(3 * MS));
        assert_eq!(region.visibility_lag_us(204 * MS), Some(103 * MS));
    }

    #[test]
    fn an_idle_region_that_answers_stays_fresh_and_a_silent_one_ages() {
        let mut clock = RedoClock::default();
        clock.note(0, Lsn(1000));
        let mut region = RegionLag::default();
        for beat in 1..=100 {
            region.heartbeat_sent(beat * 100 * MS, Lsn(1000));
            region.reported((beat * 100 + 4) * MS, &clock, Lsn(1000), Lsn(1000), beat * 100 * MS);
        }
        assert_eq!(region.visibility_lag_us(10_050 * MS), Some(4 * MS));
        region.heartbeat_sent(10_100 * MS, Lsn(1000));
        assert_eq!(region.visibility_lag_us(20_004 * MS), Some(10_004 * MS));
    }

    #[test]
    fn an_answered_heartbeat_counts_only_once_its_redo_is_there() {
        let clock = RedoClock::default();
        let mut region = RegionLag::default();
        region.heartbeat_sent(100 * MS, Lsn(1000));
        region.heartbeat_sent(200 * MS, Lsn(2000));
        region.reported(210 * MS, &clock, Lsn(2000), Lsn(1000), 200 * MS);
        assert_eq!(region.durability_lag_us(210 * MS), Some(10 * MS));
        assert_eq!(region.visibility_lag_us(210 * MS), Some(110 * MS));
        region.reported(230 * MS, &clock, Lsn(2000), Lsn(2000), 200 * MS);
        assert_eq!(region.visibility_lag_us(230 * MS), Some(30 * MS));
    }

    #[test]
    fn memory_is_bounded_and_old_redo_still_has_an_age() {
        let mut clock = RedoClock::default();
        for i in 0..100_000_u32 {
            clock.note(i64::from(i) * 10 * MS, Lsn(u64::from(i) * 100));
        }
        assert!(clock.moments.len() <= MOMENTS_MAX);
        assert_eq!(clock.covered_us(Lsn(0)), Some(0));
        let middle = clock.covered_us(Lsn(50_000 * 100)).unwrap();
        assert!(middle <= 500_000 * MS, "never fresher than the truth");
    }

    proptest! {
        #[test]
        fn never_fresher_than_the_truth(steps in proptest::collection::vec((0i64..5000, 1u64..5000), 1..600), probe in 0u64..2_000_000) {
            let mut clock = RedoClock::default();
            let (mut at_us, mut end_lsn, mut truth) = (0, 0, None);
            for (wait_us, bytes) in steps {
                at_us += wait_us;
                end_lsn += bytes;
                clock.note(at_us, Lsn(end_lsn));
                if end_lsn <= probe {
                    truth = Some(at_us);
                }
            }
            prop_assert!(clock.covered_us(Lsn(probe)) <= truth);
        }
    }
}
