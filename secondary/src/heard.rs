//! How far a region is behind what it heard from its primary, by its own clock.
//!
//! The primary's reckoning is the one to go by; this one goes on when the primary is not heard any more, and
//! says then that it is not. It knows nothing of the way that the words took.

use std::collections::VecDeque;

use proto::Lsn;

/// The most words remembered; older ones are thinned out.
const WORDS_MAX: usize = 1024;

/// Silence longer than this makes the region lag, whatever it has: a primary speaks every 100 ms.
const SILENT_US: u64 = 300_000;

/// When the primary was heard to have redo up to an LSN; both grow.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Heard {
    words: VecDeque<(u64, Lsn)>,
    heard_us: Option<u64>,
}

impl Heard {
    /// The primary said at `now_us`, of a clock that never steps, that it has redo up to `lsn`.
    pub fn heard(&mut self, now_us: u64, lsn: Lsn) {
        self.heard_us = Some(now_us);
        if self.words.back().is_none_or(|(_, newest_lsn)| *newest_lsn < lsn) {
            self.words.push_back((now_us, lsn));
        }
        if self.words.len() > WORDS_MAX {
            let mut index = 0;
            // The one before a dropped one keeps its earlier time, and takes the later end.
            let mut thin: VecDeque<(u64, Lsn)> = VecDeque::with_capacity(WORDS_MAX);
            for (at_us, lsn) in self.words.drain(..) {
                index += 1;
                match thin.back_mut() {
                    Some(last) if index % 2 == 0 && index < WORDS_MAX / 2 => last.1 = lsn,
                    _ => thin.push_back((at_us, lsn)),
                }
            }
            self.words = thin;
        }
    }

    /// How long ago the primary was last heard, microseconds; none when it never was.
    #[must_use]
    pub fn silent_us(&self, now_us: u64) -> Option<u64> {
        self.heard_us.map(|heard_us| now_us.saturating_sub(heard_us))
    }

    /// Whether the oldest word that is remembered is of redo up to `applied_lsn` at most: how old what is
    /// before that is, nobody can tell.
    #[must_use]
    pub fn covers(&self, applied_lsn: Lsn) -> bool {
        self.words.front().is_some_and(|(_, lsn)| *lsn <= applied_lsn)
    }

    /// How far a region that has applied all redo up to `applied_lsn` is behind, microseconds; none when the
    /// primary was never heard.
    #[must_use]
    pub fn lag_us(&self, now_us: u64, applied_lsn: Lsn) -> Option<u64> {
        let silent_us = self.silent_us(now_us)?;
        let beyond = self.words.partition_point(|(_, lsn)| *lsn <= applied_lsn);
        let behind_us = self.words.get(beyond).map_or(0, |(at_us, _)| now_us.saturating_sub(*at_us));
        Some(if silent_us > SILENT_US { behind_us.max(silent_us) } else { behind_us })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000;

    #[test]
    fn idle_it_is_0_behind_it_is_the_age_of_the_oldest_word_and_in_silence_it_grows() {
        let mut heard = Heard::default();
        assert_eq!(heard.lag_us(5, Lsn(0)), None);
        for beat in 1..=20 {
            heard.heard(beat * 100 * MS, Lsn(1000));
        }
        assert_eq!(heard.lag_us(2_050 * MS, Lsn(1000)), Some(0));
        assert_eq!(heard.lag_us(2_050 * MS, Lsn(999)), Some(1_950 * MS));
        assert!(heard.covers(Lsn(1000)) && !heard.covers(Lsn(999)), "what is older was never heard of");
        heard.heard(2_100 * MS, Lsn(2000));
        assert_eq!(heard.lag_us(2_101 * MS, Lsn(1000)), Some(MS));
        assert_eq!(heard.lag_us(2_101 * MS, Lsn(2000)), Some(0));
        for ms in 2_401..3_000 {
            assert_eq!(heard.lag_us(ms * MS, Lsn(2000)), Some((ms - 2_100) * MS));
        }
    }

    #[test]
    fn memory_is_bounded_and_nothing_looks_fresher_than_it_is() {
        let mut heard = Heard::default();
        for at in 1..100_000_u64 {
            heard.heard(at, Lsn(at));
        }
        assert!(heard.words.len() <= WORDS_MAX);
        for applied in [0, 1, 17, 500, 50_000, 99_990] {
            assert!(heard.lag_us(100_000, Lsn(applied)).unwrap() >= 99_999 - applied, "{applied}");
        }
        assert_eq!(heard.lag_us(100_000, Lsn(99_999)), Some(0));
    }
}
