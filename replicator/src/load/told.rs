//! What monitoring is told of the load: sums since the daemon began, by what sessions wait for.

use std::collections::BTreeMap;

use super::{CPU, Group};

/// The types of waits that PostgreSQL has, and [`CPU`]. Any other, as a newer one may have, is `other`.
pub const WAIT_TYPES: [&str; 11] =
    [CPU, "Activity", "BufferPin", "Client", "Extension", "IO", "IPC", "Lock", "LWLock", "Timeout", "other"];

/// Sums since the daemon began.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Told {
    /// Sessions that were active at each look, by the type of what they waited for.
    pub sessions: BTreeMap<&'static str, u64>,
    /// The looks that PostgreSQL answered.
    pub looks: u64,
    /// Those that it did not answer in time, or refused.
    pub missed: u64,
    /// How long the newest answer took, microseconds.
    pub took_us: u64,
    /// How long all answers took, microseconds.
    pub all_us: u64,
    /// The processors there are.
    pub cores: u32,
}

impl Told {
    /// Nothing was seen yet.
    #[must_use]
    pub fn new(cores: u32) -> Told {
        Told { cores, sessions: WAIT_TYPES.map(|wait| (wait, 0)).into(), ..Told::default() }
    }

    /// PostgreSQL answered, after so long.
    pub fn answered(&mut self, groups: &[Group], took_us: u64) {
        self.looks = self.looks.saturating_add(1);
        self.took_us = took_us;
        self.all_us = self.all_us.saturating_add(took_us);
        for group in groups {
            let wait = WAIT_TYPES.into_iter().find(|wait| *wait == group.key.wait_type()).unwrap_or("other");
            let sum = self.sessions.entry(wait).or_default();
            *sum = sum.saturating_add(u64::from(group.sum));
        }
    }

    /// PostgreSQL did not answer in time, or refused.
    pub fn missed(&mut self) {
        self.missed = self.missed.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::tests::key;

    #[test]
    fn sessions_are_summed_by_the_type_of_their_wait() {
        let mut told = Told::new(4);
        let group = |wait: &str, sum| Group { key: key(wait, "SELECT"), sum };
        told.answered(&[group("Lock:tuple", 2), group("Lock:relation", 1), group("CPU", 5)], 700);
        told.answered(&[group("NewKind:x", 1)], 300);
        told.missed();
        assert_eq!((told.sessions["Lock"], told.sessions["CPU"], told.sessions["other"]), (3, 5, 1));
        assert_eq!((told.looks, told.missed, told.took_us, told.all_us), (2, 1, 300, 1_000));
        assert_eq!(told.sessions.len(), WAIT_TYPES.len());
    }
}
