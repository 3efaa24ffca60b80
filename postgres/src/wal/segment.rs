//! WAL segments: their size, their names, and which place of the redo is in which.
//!
//! Source: `xlog_internal.h` of PostgreSQL.

use proto::{Lsn, Timeline};

/// The size of the WAL segments of a cluster, bytes: a power of two between 1 MiB and 1 GiB, as `initdb` was
/// told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentSize(u64);

impl SegmentSize {
    /// What `initdb` takes where it is told nothing: 16 MiB.
    pub const USUAL: SegmentSize = SegmentSize(16 << 20);

    /// A size of so many bytes; none when PostgreSQL allows no such size.
    #[must_use]
    pub fn new(bytes: u64) -> Option<SegmentSize> {
        (bytes.is_power_of_two() && (1 << 20..=1 << 30).contains(&bytes)).then_some(SegmentSize(bytes))
    }

    /// In bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        self.0
    }

    /// Where the segment begins that has `lsn`.
    #[must_use]
    pub fn begin(self, lsn: Lsn) -> Lsn {
        lsn.segment_begin(self.0)
    }

    /// The name of the segment of `timeline` that has `lsn`: 24 hexadecimal digits.
    #[must_use]
    pub fn name(self, timeline: Timeline, lsn: Lsn) -> String {
        let (number, per_id) = (lsn.0 / self.0, (1 << 32) / self.0);
        format!("{:08X}{:08X}{:08X}", timeline.0, number / per_id, number % per_id)
    }
}

/// Whether a file in `pg_wal` is a WAL segment, whole or not.
#[must_use]
pub fn is_segment(name: &str) -> bool {
    timeline_of_segment(name).is_some()
}

/// The timeline of the WAL segment of this name, whole or not; none when it is no segment's.
#[must_use]
pub fn timeline_of_segment(name: &str) -> Option<Timeline> {
    let name = name.strip_suffix(".partial").unwrap_or(name);
    let is = name.len() == 24 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    u32::from_str_radix(name.get(..8).filter(|_| is)?, 16).ok().map(Timeline)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_as_postgresql_gives_them() {
        let (usual, large) = (SegmentSize::new(16 << 20).unwrap(), SegmentSize::new(1 << 30).unwrap());
        // select pg_walfile_name('1/02000028') of a cluster on timeline 10, and of one made with
        // --wal-segsize=1024.
        assert_eq!(usual.name(Timeline(10), Lsn(0x1_0200_0028)), "0000000A0000000100000002");
        assert_eq!(large.name(Timeline(10), Lsn(0x1_C200_0028)), "0000000A0000000100000003");
        for bytes in [0, 1, 1 << 19, (16 << 20) + 1, 1 << 31] {
            assert_eq!(SegmentSize::new(bytes), None, "{bytes}");
        }
    }

    #[test]
    fn what_is_a_segment() {
        for (name, segment) in [
            ("000000010000000000000002", true),
            ("000000010000000000000002.partial", true),
            ("00000002.history", false),
            ("archive_status", false),
        ] {
            assert_eq!(is_segment(name), segment, "{name}");
        }
        assert_eq!(timeline_of_segment("0000000A0000000000000002.partial"), Some(Timeline(10)));
    }
}
