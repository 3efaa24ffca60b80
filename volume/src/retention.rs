//! What redo may go: one pure function of what is needed, age and size.

use std::collections::BTreeMap;

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

/// Who needs redo, and from where on.
#[derive(Debug, Default)]
pub struct Needs {
    next: u64,
    /// Claims, which end with their owners.
    claims: BTreeMap<u64, (String, Lsn)>,
    /// What regions need. It is about one log: a reset forgets it.
    named: BTreeMap<String, Lsn>,
}

impl Needs {
    /// Adds a claim on the redo from `from_lsn` on; its number.
    pub fn claim(&mut self, name: &str, from_lsn: Lsn) -> u64 {
        self.next += 1;
        self.claims.insert(self.next, (name.to_owned(), from_lsn));
        self.next
    }

    /// Moves a claim on. It never goes back: what lies before it may be gone.
    pub fn advance(&mut self, number: u64, lsn: Lsn) {
        if let Some((_, from_lsn)) = self.claims.get_mut(&number) {
            *from_lsn = lsn.max(*from_lsn);
        }
    }

    /// Ends a claim.
    pub fn release(&mut self, number: u64) {
        self.claims.remove(&number);
    }

    /// Sets what `who` needs; none ends it.
    pub fn set(&mut self, who: &str, from_lsn: Option<Lsn>) {
        match from_lsn {
            Some(lsn) => drop(self.named.insert(who.to_owned(), lsn)),
            None => drop(self.named.remove(who)),
        }
    }

    /// Forgets what was set by [`Needs::set`]: another log begins.
    pub fn forget_named(&mut self) {
        self.named.clear();
    }

    /// Where the redo begins that each of them needs.
    pub fn lsns(&self) -> impl Iterator<Item = Lsn> {
        self.claims.values().map(|(_, lsn)| *lsn).chain(self.named.values().copied())
    }
}

/// How many of the oldest `segments` may go at `now_us`.
///
/// A segment goes when it is older than the policy's age and below every one of `needs`; and, needed or not,
/// while all together are larger than the policy's size. The newest segment, which is being written, never
/// goes.
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
