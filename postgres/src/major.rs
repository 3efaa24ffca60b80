//! What differs between PostgreSQL's major versions, as far as it matters here. Each difference is decided in
//! this file, by a question to a [`Major`]; everything else is the same from [`Major::MIN`] on.

use std::fmt;

/// A major version of PostgreSQL: the data directory of one is of no use to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Major(pub u32);

/// What becomes of the logical slots of a writer when another region takes its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogicalSlots {
    /// A standby can have none: they are lost.
    Lost,
    /// A standby can have slots of its own, and keeps them when it is promoted: see [`crate::slots`].
    OfTheStandby,
}

impl fmt::Display for Major {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Major {
    /// The oldest that works.
    pub const MIN: Major = Major(15);

    /// The major of a version as PostgreSQL or its `PG_VERSION` says it: `15.18`, `18beta1`, `17`.
    #[must_use]
    pub fn of(version: &str) -> Option<Major> {
        let version = version.trim();
        let digits = version.bytes().take_while(u8::is_ascii_digit).count();
        version[..digits].parse().ok().map(Major)
    }

    /// The first minor release whose commits wait for their standbys right after a start: before it a session
    /// that comes before the checkpointer has run is not held (PostgreSQL's release notes of May 2025: a race
    /// with `synchronous_standby_names` at startup).
    #[must_use]
    pub fn least_minor(self) -> u32 {
        match self.0 {
            15 => 13,
            16 => 9,
            17 => 5,
            _ => 0,
        }
    }

    /// What the product's own sessions set aside that is set for everybody, besides what every major has: a
    /// login trigger of the user's may fail or write, and is not meant for them.
    #[must_use]
    pub fn session_settings(self) -> &'static [(&'static str, &'static str)] {
        match self.0 {
            ..17 => &[],
            _ => &[("transaction_timeout", "0"), ("event_triggers", "off")],
        }
    }

    /// What a rehearsal's clone gets besides what it gets in every major: it reaches out to nobody, no login
    /// trigger turns programs away that look at it, and its settings can be changed.
    #[must_use]
    pub fn rehearsal_settings(self) -> &'static [(&'static str, &'static str)] {
        match self.0 {
            ..17 => &[],
            _ => &[
                ("event_triggers", "off"),
                ("sync_replication_slots", "off"),
                ("synchronized_standby_slots", ""),
                ("summarize_wal", "off"),
                ("allow_alter_system", "on"),
            ],
        }
    }

    /// What becomes of logical slots.
    #[must_use]
    pub fn logical_slots(self) -> LogicalSlots {
        match self.0 {
            ..16 => LogicalSlots::Lost,
            _ => LogicalSlots::OfTheStandby,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_major_is_read_from_every_way_to_say_a_version() {
        for (version, major) in [
            ("15.18", Some(15)),
            ("17\n", Some(17)),
            ("18beta1", Some(18)),
            ("16.14 (Debian)", Some(16)),
            ("", None),
            ("devel", None),
        ] {
            assert_eq!(Major::of(version), major.map(Major), "{version}");
        }
    }

    #[test]
    fn what_differs_between_majors() {
        type Row = (u32, u32, bool, bool, LogicalSlots);
        const TABLE: [Row; 5] = [
            // major, least minor, has event_triggers and transaction_timeout, has sync_replication_slots,
            // logical slots
            (15, 13, false, false, LogicalSlots::Lost),
            (16, 9, false, false, LogicalSlots::OfTheStandby),
            (17, 5, true, true, LogicalSlots::OfTheStandby),
            (18, 0, true, true, LogicalSlots::OfTheStandby),
            (19, 0, true, true, LogicalSlots::OfTheStandby),
        ];
        let has = |settings: &[(&str, &str)], name| settings.iter().any(|(setting, _)| *setting == name);
        for (number, minor, session, synced, slots) in TABLE {
            let major = Major(number);
            assert_eq!(major.least_minor(), minor, "{number}");
            for name in ["event_triggers", "transaction_timeout"] {
                assert_eq!(has(major.session_settings(), name), session, "{number} {name}");
            }
            for name in ["sync_replication_slots", "allow_alter_system"] {
                assert_eq!(has(major.rehearsal_settings(), name), synced, "{number} {name}");
            }
            assert_eq!(major.logical_slots(), slots, "{number}");
        }
    }
}
