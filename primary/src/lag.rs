//! How far behind a region is, in the primary's clock and honest when nothing is written.
//!
//! Two facts are known. A batch that ends at an LSN holds no commit younger than its time: a region that has
//! that LSN has every commit up to that time. And a heartbeat says "at this time all my redo ended here": a
//! region that has *answered* it and has that LSN had everything up to that time, even though no redo came. A
//! dead link answers no heartbeats, so its lag grows although nothing is written.
//!
//! | the region | its lag |
//! |---|---|
//! | has all redo that there is, and speaks | 0 |
//! | lacks some, and speaks | the age of the oldest redo that it is not known to have |
//! | is silent, and lacked some before that could be told | the age of the oldest redo that it is not known to have |
//! | is silent, and had all there was | the time since it last spoke, whether redo has come or not |

use std::collections::VecDeque;

use proto::Lsn;

/// The most moments remembered. Older ones are thinned out, so a region days behind still has a lag, only
/// coarser.
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
    /// When the oldest redo of it was written: after the moment before.
    first_us: i64,
    /// When the newest was.
    at_us: i64,
    end_lsn: Lsn,
}

impl RedoClock {
    /// Notes that redo up to `end_lsn` holds no commit younger than `at_us` (microseconds, the primary's
    /// clock).
    ///
    /// Times that go back, as a stepped clock makes them, are taken as the newest time known.
    pub fn note(&mut self, at_us: i64, end_lsn: Lsn) {
        match self.moments.back_mut() {
            Some(last) if end_lsn <= last.end_lsn => {}
            Some(last) if at_us < last.first_us.saturating_add(MOMENT_MIN_US) => {
                // One moment for both: the later time needs the later end, so nothing looks fresher than it
                // is.
                (last.at_us, last.end_lsn) = (at_us.max(last.at_us), end_lsn);
            }
            last => {
                let at_us = last.map_or(at_us, |last| at_us.max(last.at_us));
                self.moments.push_back(Moment { first_us: at_us, at_us, end_lsn });
            }
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
        self.moments.get(after).map(|m| m.first_us)
    }

    /// The oldest time remembered.
    #[must_use]
    pub fn oldest_us(&self) -> Option<i64> {
        self.moments.front().map(|m| m.at_us)
    }

    /// Drops every second moment of the older half; the one after it begins when the dropped one did.
    fn thin_out(&mut self) {
        let half = self.moments.len() / 2;
        let (mut index, mut dropped_us) = (0, None);
        self.moments.retain_mut(|moment| {
            index += 1;
            if let Some(first_us) = dropped_us.take() {
                moment.first_us = first_us;
            }
            let stays = index == 1 || index > half || index % 2 == 0;
            dropped_us = (!stays).then_some(moment.first_us);
            stays
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
    /// The end of all redo, as the newest heartbeat said.
    end_lsn: Lsn,
}

#[derive(Debug, Clone, Copy)]
struct Heartbeat {
    number: u64,
    sent_us: i64,
    end_lsn: Lsn,
}

/// What is known of one of a region's positions.
#[derive(Debug, Default, Clone, Copy)]
struct Coverage {
    lsn: Lsn,
    covered_us: Option<i64>,
    /// The age of what is covered, when the last report came in.
    lag_us: Option<i64>,
}

impl RegionLag {
    /// Heartbeat `number` left for the region at `sent_us`, saying that all redo ended at `end_lsn`.
    pub fn heartbeat_sent(&mut self, number: u64, sent_us: i64, end_lsn: Lsn) {
        if self.heartbeats.len() == HEARTBEATS_MAX {
            self.heartbeats.pop_front();
        }
        self.heartbeats.push_back(Heartbeat { number, sent_us, end_lsn });
        self.end_lsn = self.end_lsn.max(end_lsn);
    }

    /// The region reported its positions and the number of the newest heartbeat it has seen.
    pub fn reported(
        &mut self,
        now_us: i64,
        clock: &RedoClock,
        durable_lsn: Lsn,
        applied_lsn: Lsn,
        heartbeat: u64,
    ) {
        for (coverage, lsn) in [(&mut self.durable, durable_lsn), (&mut self.applied, applied_lsn)] {
            coverage.lsn = lsn;
            let answered = self.heartbeats.iter().rev().find(|h| h.number <= heartbeat && h.end_lsn <= lsn);
            let known = answered.map(|h| h.sent_us).max(clock.covered_us(lsn));
            coverage.covered_us = coverage.covered_us.max(known);
            // Redo older than anything remembered: at least as old as the oldest moment.
            let since_us = coverage.covered_us.or(clock.oldest_us());
            coverage.lag_us = since_us.map(|t| now_us.saturating_sub(t).max(0));
        }
        self.heartbeats.retain(|h| h.number > heartbeat || h.end_lsn > applied_lsn);
        self.reported_at_us = Some(now_us);
    }

    /// How far behind what the region surely has durable is, in microseconds; unknown before a report.
    #[must_use]
    pub fn durability_lag_us(&self, now_us: i64, clock: &RedoClock) -> Option<i64> {
        self.lag_us(now_us, clock, self.durable)
    }

    /// How far behind what the region surely has applied is, in microseconds; unknown before a report.
    #[must_use]
    pub fn visibility_lag_us(&self, now_us: i64, clock: &RedoClock) -> Option<i64> {
        self.lag_us(now_us, clock, self.applied)
    }

    /// How old the oldest redo is that the region is not known to have durable, in microseconds: what a
    /// disaster now would lose. Unknown before a report; 0 when it has all, also while it is silent.
    #[must_use]
    pub fn rpo_lag_us(&self, now_us: i64, clock: &RedoClock) -> Option<i64> {
        self.reported_at_us?;
        match self.age_beyond_us(now_us, clock, self.durable.lsn) {
            None if self.durable.lsn < self.end_lsn => self.lag_us(now_us, clock, self.durable),
            age_us => Some(age_us.unwrap_or(0)),
        }
    }

    /// How long ago the region last reported, in microseconds; unknown before a report.
    #[must_use]
    pub fn silent_us(&self, now_us: i64) -> Option<i64> {
        Some(now_us.saturating_sub(self.reported_at_us?).max(0))
    }

    fn lag_us(&self, now_us: i64, clock: &RedoClock, coverage: Coverage) -> Option<i64> {
        let silent_us = self.silent_us(now_us)?;
        match self.age_beyond_us(now_us, clock, coverage.lsn) {
            // Redo of before this primary began to lead.
            None if coverage.lsn < self.end_lsn => {
                coverage.lag_us.map(|lag_us| lag_us.saturating_add(silent_us))
            }
            None if silent_us <= REPORT_FRESH_US => Some(0),
            None => Some(silent_us),
            Some(beyond_us) if silent_us <= beyond_us.saturating_add(REPORT_FRESH_US) => Some(beyond_us),
            // The silence was told before this redo came, which makes the region no fresher.
            Some(_) => Some(silent_us),
        }
    }

    fn age_beyond_us(&self, now_us: i64, clock: &RedoClock, lsn: Lsn) -> Option<i64> {
        clock.oldest_beyond_us(lsn).map(|oldest_us| now_us.saturating_sub(oldest_us).max(0))
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
        assert_eq!(region.durability_lag_us(0, &clock), None);
        region.reported(203 * MS, &clock, Lsn(2000), Lsn(1500), 0);
        assert_eq!(region.durability_lag_us(204 * MS, &clock), Some(0), "it has all that there is");
        assert_eq!(region.visibility_lag_us(204 * MS, &clock), Some(4 * MS));
        clock.note(300 * MS, Lsn(3000));
        assert_eq!(region.durability_lag_us(450 * MS, &clock), Some(150 * MS), "no report is waited for");
        assert_eq!(region.visibility_lag_us(450 * MS, &clock), Some(250 * MS));
        assert_eq!(region.rpo_lag_us(450 * MS, &clock), Some(150 * MS));
    }

    #[test]
    fn an_idle_region_that_answers_stays_fresh_and_a_silent_one_ages() {
        let mut clock = RedoClock::default();
        clock.note(0, Lsn(1000));
        let mut region = RegionLag::default();
        for beat in 1..=100_i64 {
            region.heartbeat_sent(beat.unsigned_abs(), beat * 100 * MS, Lsn(1000));
            region.reported((beat * 100 + 4) * MS, &clock, Lsn(1000), Lsn(1000), beat.unsigned_abs());
        }
        assert_eq!(region.visibility_lag_us(10_050 * MS, &clock), Some(0));
        region.heartbeat_sent(101, 10_100 * MS, Lsn(1000));
        assert_eq!(region.visibility_lag_us(20_004 * MS, &clock), Some(10_000 * MS), "since it spoke");
        assert_eq!(region.rpo_lag_us(20_004 * MS, &clock), Some(0), "nothing would be lost");
    }

    #[test]
    fn while_a_link_is_cut_the_lag_grows_with_every_millisecond_whether_redo_comes_or_not() {
        let mut clock = RedoClock::default();
        clock.note(0, Lsn(1000));
        let mut region = RegionLag::default();
        region.heartbeat_sent(1, MS, Lsn(1000));
        region.reported(2 * MS, &clock, Lsn(1000), Lsn(1000), 1);
        let mut last_us = 0;
        for ms in 303..5_000 {
            if ms > 1_000 {
                clock.note(ms * MS, Lsn(1000 + ms.unsigned_abs()));
            }
            let lag_us = region.visibility_lag_us(ms * MS, &clock).unwrap();
            assert!(lag_us > last_us && (lag_us - ms * MS).abs() <= 2 * MS, "{ms} ms: {lag_us} us");
            last_us = lag_us;
        }
        assert_eq!(region.rpo_lag_us(5_000 * MS, &clock), Some(3_999 * MS), "redo since then would be lost");
        // It is heard again, and has caught up.
        region.heartbeat_sent(2, 5_000 * MS, Lsn(5999));
        region.reported(5_010 * MS, &clock, Lsn(5999), Lsn(5999), 2);
        assert_eq!(region.visibility_lag_us(5_010 * MS, &clock), Some(0));
    }

    #[test]
    fn a_region_that_falls_silent_under_load_lags_by_its_oldest_redo_and_never_jumps() {
        // Redo each 40 ms; the region answered what there was at 2 ms, 39 ms before the next.
        let mut clock = RedoClock::default();
        clock.note(0, Lsn(1000));
        let mut region = RegionLag::default();
        region.heartbeat_sent(1, MS, Lsn(1000));
        region.reported(2 * MS, &clock, Lsn(1000), Lsn(1000), 1);
        let mut last_us = 0;
        for ms in 3..2_000 {
            if ms % 40 == 0 {
                clock.note(ms * MS, Lsn(1000 + ms.unsigned_abs()));
            }
            let lag_us = region.visibility_lag_us(ms * MS, &clock).unwrap();
            assert_eq!(lag_us, (ms - 40).max(0) * MS, "{ms} ms");
            assert!(lag_us >= last_us);
            last_us = lag_us;
        }
    }

    #[test]
    fn a_region_that_lacks_redo_of_before_this_primary_led_is_not_taken_for_caught_up() {
        let clock = RedoClock::default();
        let mut region = RegionLag::default();
        region.heartbeat_sent(1, 100 * MS, Lsn(1000));
        region.heartbeat_sent(2, 200 * MS, Lsn(2000));
        region.reported(201 * MS, &clock, Lsn(1500), Lsn(900), 2);
        assert_eq!(region.durability_lag_us(250 * MS, &clock), Some(150 * MS));
        assert_eq!(region.rpo_lag_us(250 * MS, &clock), Some(150 * MS));
        assert_eq!(region.visibility_lag_us(250 * MS, &clock), None);
    }

    #[test]
    fn redo_that_comes_without_a_pause_has_the_age_of_its_oldest() {
        let mut clock = RedoClock::default();
        for i in 0..100_000_u32 {
            clock.note(i64::from(i) * 100, Lsn(u64::from(i) * 10));
        }
        let age_us = 10_000_000 - clock.oldest_beyond_us(Lsn(500_000)).unwrap();
        assert!((5_000_000..5_100_000).contains(&age_us), "half of it is missing: {age_us} us");
    }

    #[test]
    fn an_answered_heartbeat_counts_only_once_its_redo_is_there() {
        let clock = RedoClock::default();
        let mut region = RegionLag::default();
        region.heartbeat_sent(1, 100 * MS, Lsn(1000));
        region.heartbeat_sent(2, 200 * MS, Lsn(2000));
        region.reported(210 * MS, &clock, Lsn(2000), Lsn(1000), 2);
        assert_eq!(region.durability_lag_us(210 * MS, &clock), Some(0));
        assert_eq!(region.visibility_lag_us(210 * MS, &clock), Some(110 * MS));
        region.reported(230 * MS, &clock, Lsn(2000), Lsn(2000), 2);
        assert_eq!(region.visibility_lag_us(230 * MS, &clock), Some(0));
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
            let (mut at_us, mut end_lsn, mut truth, mut beyond_us) = (0, 0, None, None);
            for (wait_us, bytes) in steps {
                at_us += wait_us;
                end_lsn += bytes;
                clock.note(at_us, Lsn(end_lsn));
                if end_lsn <= probe {
                    truth = Some(at_us);
                } else {
                    beyond_us = beyond_us.or(Some(at_us));
                }
            }
            prop_assert!(clock.covered_us(Lsn(probe)) <= truth);
            let oldest_us = clock.oldest_beyond_us(Lsn(probe));
            prop_assert_eq!(oldest_us.is_some(), beyond_us.is_some());
            prop_assert!(oldest_us <= beyond_us && oldest_us.unwrap_or(0) + 2 * MOMENT_MIN_US >= beyond_us.unwrap_or(0));
        }
    }
}
