//! What redo may go: one pure function of what regions need, age and size.

use proto::Lsn;

/// What retention knows of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// The end of its redo.
    pub end_lsn: Lsn,
    /// Its bytes on disk.
    pub stored_bytes: u64,
    /// The time of its newest commit, microseconds since 1970.
    pub newest_commit_us: i64,
}

/// How long redo is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Redo younger than this stays, microseconds.
    pub retain_us: i64,
    /// The most all segments may take, bytes. Nothing is above this limit.
    pub max_size_bytes: u64,
}

/// How many of the oldest `segments` may go at `now_us`.
///
/// A segment goes when it is older than the policy's age and below every one of `needs`; and, needed or not, while all
/// together are larger than the policy's size. The newest segment, which is being written, never goes.
#[must_use]
pub fn droppable(
    segments: &[Held],
    needs: impl IntoIterator<Item = Lsn>,
    policy: Policy,
    now_us: i64,
) -> usize {
    let needed_lsn = needs.into_iter().min().unwrap_or(Lsn(u64::MAX));
    let sealed = segments.len().saturating_sub(1);
    let mut total: u64 = segments.iter().map(|s| s.stored_bytes).sum();
    let mut count = 0;
    for segment in &segments[..sealed] {
        let old = now_us.saturating_sub(segment.newest_commit_us) > policy.retain_us;
        let unneeded = segment.end_lsn <= needed_lsn;
        if !(total > policy.max_size_bytes || old && unneeded) {
            break;
        }
        total -= segment.stored_bytes;
        count += 1;
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn age_need_and_size() {
        let segments: Vec<Held> = (1..=5)
            .map(|i| Held {
                end_lsn: Lsn(i * 100),
                stored_bytes: 10,
                newest_commit_us: i64::try_from(i).unwrap() * 10,
            })
            .collect();
        let drop = |needs: &[u64], retain_us, max_size_bytes, now_us| {
            let needs = needs.iter().map(|n| Lsn(*n));
            droppable(&segments, needs, Policy { retain_us, max_size_bytes }, now_us)
        };
        assert_eq!(drop(&[], 1000, 1000, 60), 0, "all young");
        assert_eq!(drop(&[], 25, 1000, 60), 3, "10, 20 and 30 are older than 60 - 25");
        assert_eq!(drop(&[], 0, 1000, 1000), 4, "the newest stays");
        assert_eq!(drop(&[200, 900], 0, 1000, 1000), 2, "a region needs what is beyond 200");
        assert_eq!(drop(&[0], 1000, 25, 60), 3, "the size limit is above every need");
        assert_eq!(drop(&[0], 1000, 0, 60), 4, "even then the newest stays");
        assert_eq!(droppable(&[], [], Policy { retain_us: 0, max_size_bytes: 0 }, 0), 0);
    }
}
