//! What is kept of looks, for how long, and in how many bytes. Pure: the time is in the looks.
//!
//! A look is kept for an hour or two, the sum of each minute for seven days. Both are bounded in bytes too:
//! where there are more, the oldest go first.

use std::collections::BTreeMap;

use super::machine::Average;
use super::{Key, Look, MINUTE_GROUPS_MAX, bounded};

/// What a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A look for each second.
    Seconds,
    /// The sum of each minute.
    Minutes,
}

impl Kind {
    /// Both.
    pub const ALL: [Kind; 2] = [Kind::Seconds, Kind::Minutes];

    /// How the names of its files begin.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Kind::Seconds => "seconds",
            Kind::Minutes => "minutes",
        }
    }

    /// A new file is begun with each of these, seconds.
    #[must_use]
    pub fn period_s(self) -> i64 {
        match self {
            Kind::Seconds => 3_600,
            Kind::Minutes => 86_400,
        }
    }

    /// How long a file is kept after its end, seconds.
    #[must_use]
    pub fn kept_s(self) -> i64 {
        match self {
            Kind::Seconds => 3_600,
            Kind::Minutes => 7 * 86_400,
        }
    }

    /// The most bytes of all its files.
    #[must_use]
    pub fn bytes_max(self) -> u64 {
        match self {
            Kind::Seconds => 16 << 20,
            Kind::Minutes => 48 << 20,
        }
    }
}

/// A new file is begun with the next minute when the last one has so many bytes.
pub const FILE_BYTES_MAX: u64 = 4 << 20;

/// A file of what is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct About {
    /// What it holds.
    pub kind: Kind,
    /// When it was begun, seconds since 1970.
    pub begin_s: i64,
    /// Its size.
    pub bytes: u64,
}

impl About {
    /// Whether what is of `at_s` goes into this file, the newest of its kind, or into a new one.
    #[must_use]
    pub fn takes(&self, at_s: i64) -> bool {
        let period_s = self.kind.period_s();
        // No minute is in two files: when the first goes, the sum of that minute takes its place.
        let has_room = self.bytes < FILE_BYTES_MAX || at_s.rem_euclid(60) != 0;
        has_room && self.begin_s.div_euclid(period_s) == at_s.div_euclid(period_s)
    }

    /// The end of what it may hold, seconds since 1970.
    fn end_s(&self) -> i64 {
        let period_s = self.kind.period_s();
        self.begin_s.div_euclid(period_s).saturating_add(1).saturating_mul(period_s)
    }
}

/// The files that go at `now_s`, by age and by size. What a clock that was wrong put far into the future goes
/// as well.
#[must_use]
pub fn to_delete(files: &[About], now_s: i64) -> Vec<About> {
    let mut gone = Vec::new();
    for kind in Kind::ALL {
        let mut own: Vec<About> = files.iter().filter(|file| file.kind == kind).copied().collect();
        // The newest first.
        own.sort_by_key(|file| std::cmp::Reverse(file.begin_s));
        let mut bytes = 0_u64;
        for (index, file) in own.into_iter().enumerate() {
            bytes = bytes.saturating_add(file.bytes);
            let old = file.end_s().saturating_add(kind.kept_s()) <= now_s;
            let ahead = file.begin_s > now_s.saturating_add(kind.kept_s());
            // The newest one is written; it alone is never too large.
            let much = index > 0 && bytes > kind.bytes_max();
            if old || ahead || much {
                gone.push(file);
            }
        }
    }
    gone
}

/// Sums up looks by the minute.
#[derive(Debug, Default)]
pub struct Minute {
    begin_s: Option<i64>,
    looks: u32,
    cores: u32,
    counted: BTreeMap<Key, u32>,
    machine: Average,
}

/// The beginning of the minute of `at_s`.
#[must_use]
pub fn minute_of(at_s: i64) -> i64 {
    at_s.div_euclid(60).saturating_mul(60)
}

impl Minute {
    /// Adds a look; the sum of the minute before, when this one begins another.
    pub fn add(&mut self, look: &Look) -> Option<Look> {
        let begin_s = minute_of(look.at_s);
        let over = match self.begin_s {
            Some(of) if of != begin_s => self.end(),
            _ => None,
        };
        self.begin_s = Some(begin_s);
        self.looks = self.looks.saturating_add(look.looks);
        self.cores = self.cores.max(look.cores);
        for group in &look.groups {
            let sum = self.counted.entry(group.key.clone()).or_default();
            *sum = sum.saturating_add(group.sum);
        }
        if let Some(machine) = look.machine {
            self.machine.add(machine, 1);
        }
        over
    }

    /// The sum of the minute so far, which is over.
    fn end(&mut self) -> Option<Look> {
        let Minute { begin_s, looks, cores, counted, machine } = std::mem::take(self);
        let groups = bounded(counted, MINUTE_GROUPS_MAX);
        Some(Look { at_s: begin_s?, looks, cores, groups, machine: machine.get() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::file::{Encoder, MAGIC};
    use crate::load::tests::key;
    use crate::load::{Group, Machine};

    fn look(at_s: i64, sum: u32) -> Look {
        let groups = vec![Group { key: key("Lock:tuple", "UPDATE t"), sum }];
        let machine = Some(Machine { cpu_user: u64::from(sum), ..Machine::default() });
        Look { at_s, looks: 1, cores: 2, groups, machine }
    }

    #[test]
    fn a_minute_is_the_sum_of_its_looks() {
        let mut minute = Minute::default();
        let mut over = Vec::new();
        for at_s in 90..250 {
            // PostgreSQL did not answer once; the clock stepped back once.
            let mut look = look(at_s, 2);
            if at_s == 130 {
                look = Look { looks: 0, groups: Vec::new(), ..look };
            }
            over.extend(minute.add(&look));
        }
        over.extend(minute.add(&look(125, 9)));
        let told: Vec<(i64, u32, u32)> =
            over.iter().map(|look| (look.at_s, look.looks, look.groups[0].sum)).collect();
        assert_eq!(told, [(60, 30, 60), (120, 59, 118), (180, 60, 120), (240, 10, 20)]);
        assert!(over.iter().all(|look| look.cores == 2 && look.machine.unwrap().cpu_user == 2));
    }

    /// Nine days on a virtual clock, as the store keeps them: bounded in bytes and age, and nothing younger
    /// is gone.
    #[test]
    fn seven_days_are_kept_within_the_bound() {
        let mut files: BTreeMap<(Kind, i64), (u64, Encoder)> = BTreeMap::new();
        let mut minute = Minute::default();
        let begin_s = 1_700_000_000;
        let mut most = 0;
        for at_s in (begin_s..begin_s + 9 * 86_400).filter(|at_s| at_s % 20 == 0) {
            let look = look(at_s, 1);
            let mut append = |kind: Kind, look: &Look| {
                let newest = files.keys().rev().find(|(of, _)| *of == kind).copied();
                let newest =
                    newest.filter(|key| About { kind, begin_s: key.1, bytes: files[key].0 }.takes(look.at_s));
                let key = newest.unwrap_or((kind, look.at_s));
                let (bytes, encoder) =
                    files.entry(key).or_insert_with(|| (MAGIC.len() as u64, Encoder::default()));
                *bytes += encoder.encode(look).len() as u64;
            };
            append(Kind::Seconds, &look);
            if let Some(over) = minute.add(&look) {
                append(Kind::Minutes, &over);
            }
            let about = |((kind, begin_s), (bytes, _)): (&(Kind, i64), &(u64, Encoder))| About {
                kind: *kind,
                begin_s: *begin_s,
                bytes: *bytes,
            };
            let all: Vec<About> = files.iter().map(about).collect();
            for gone in to_delete(&all, at_s) {
                assert!(gone.end_s() + gone.kind.kept_s() <= at_s, "too early: {gone:?} at {at_s}");
                files.remove(&(gone.kind, gone.begin_s));
            }
            most = most.max(files.values().map(|(bytes, _)| bytes).sum());
        }
        let begins = |kind: Kind| files.keys().filter(move |(of, _)| *of == kind).count();
        assert!((2..=3).contains(&begins(Kind::Seconds)) && (8..=9).contains(&begins(Kind::Minutes)));
        assert!(most < 2 << 20, "one statement takes little: {most}");
    }

    #[test]
    fn where_there_is_too_much_the_oldest_go_first() {
        let file = |begin_s, bytes| About { kind: Kind::Minutes, begin_s, bytes };
        let files: Vec<About> = (0..20).map(|n| file(1_000 + n, 4 << 20)).collect();
        let gone = to_delete(&files, 2_000);
        assert_eq!(gone.len(), 8);
        assert!(gone.iter().all(|file| file.begin_s < 1_008));
        assert!(to_delete(&[file(1_000, 100 << 20)], 2_000).is_empty(), "the one that is written stays");
        assert_eq!(to_delete(&[file(1_000_000_000, 1)], 2_000).len(), 1, "a clock was wrong");
        let full = file(1_000, FILE_BYTES_MAX);
        assert!(full.takes(1_001) && !full.takes(1_020), "with the next minute");
        assert!(!file(1_000, 0).takes(90_000), "with the next day");
    }
}
