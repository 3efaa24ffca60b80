//! What redo may go: one pure function of what is needed, age, size, and the room that is left.

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

/// A file system is nearly full when less than this is free of it, bytes, or than a tenth. PostgreSQL ends
/// when it cannot write, and copies fail: redo that nobody needs gives way long before.
const ROOM_BYTES: u64 = 8 << 30;

/// The room that is left on a file system with copies of the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// For others than root, bytes.
    pub free_bytes: u64,
    /// The size of the file system, bytes.
    pub total_bytes: u64,
    /// How many copies lie on it: what goes is gone from all of them.
    pub copies: u64,
}

impl Room {
    /// How much has to go from each copy for the file system not to be nearly full any more, bytes.
    #[must_use]
    pub fn lacking_bytes(self) -> u64 {
        let wanted = (self.total_bytes / 10).min(ROOM_BYTES);
        wanted.saturating_sub(self.free_bytes).div_ceil(self.copies.max(1))
    }

    /// So much has gone from each copy.
    #[must_use]
    pub fn after(self, bytes: u64) -> Room {
        let freed = bytes.saturating_mul(self.copies);
        Room { free_bytes: self.free_bytes.saturating_add(freed), ..self }
    }
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
/// A segment goes when it is older than the policy's age, or the file system is nearly full by `room`, and it
/// is below every one of `needs`; and, needed or not, while all together are larger than the policy's size.
/// The newest segment, which is being written, never goes.
#[must_use]
pub fn droppable(
    segments: &[Held],
    needs: impl IntoIterator<Item = Lsn>,
    policy: Policy,
    room: Option<Room>,
    now_us: i64,
) -> usize {
    let needed_lsn = needs.into_iter().min().unwrap_or(Lsn(u64::MAX));
    let sealed = segments.len().saturating_sub(1);
    let mut total: u64 = segments.iter().map(|s| s.stored_bytes).sum();
    let mut lacking = room.map_or(0, Room::lacking_bytes);
    let mut count = 0;
    for segment in &segments[..sealed] {
        let old = now_us.saturating_sub(segment.newest_commit_us) > policy.retain_us;
        let unneeded = segment.end_lsn <= needed_lsn;
        if !(total > policy.max_size_bytes || (old || lacking > 0) && unneeded) {
            break;
        }
        total -= segment.stored_bytes;
        lacking = lacking.saturating_sub(segment.stored_bytes);
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
            droppable(&segments, needs, Policy { retain_us, max_size_bytes }, None, now_us)
        };
        assert_eq!(drop(&[], 1000, 1000, 60), 0, "all young");
        assert_eq!(drop(&[], 25, 1000, 60), 3, "10, 20 and 30 are older than 60 - 25");
        assert_eq!(drop(&[], 0, 1000, 1000), 4, "the newest stays");
        assert_eq!(drop(&[200, 900], 0, 1000, 1000), 2, "a region needs what is beyond 200");
        assert_eq!(drop(&[0], 1000, 25, 60), 3, "the size limit is above every need");
        assert_eq!(drop(&[0], 1000, 0, 60), 4, "even then the newest stays");
        assert_eq!(droppable(&[], [], Policy { retain_us: 0, max_size_bytes: 0 }, None, 0), 0);
    }
    #[test]
    fn young_redo_gives_way_where_the_file_system_is_nearly_full_and_needed_redo_does_not() {
        let segments: Vec<Held> =
            (1..=5).map(|i| Held { end_lsn: Lsn(i * 100), stored_bytes: 10, newest_commit_us: 0 }).collect();
        let policy = Policy { retain_us: 1000, max_size_bytes: 1000 };
        let dropped = |needs: &[u64], free_bytes, copies| {
            let room = Some(Room { free_bytes, total_bytes: 1000, copies });
            droppable(&segments, needs.iter().map(|n| Lsn(*n)), policy, room, 1)
        };
        assert_eq!(dropped(&[], 100, 1), 0, "a tenth is free");
        assert_eq!(dropped(&[], 99, 1), 1, "one segment is enough");
        assert_eq!(dropped(&[], 75, 1), 3);
        assert_eq!(dropped(&[], 75, 6), 1, "each goes from six copies there");
        assert_eq!(dropped(&[], 0, 1), 4, "the newest stays");
        assert_eq!(dropped(&[200], 0, 1), 2, "what somebody needs stays, however full it is");
        assert_eq!(dropped(&[0], 0, 6), 0);
        let large = Room { free_bytes: (8 << 30) - 6, total_bytes: 1 << 50, copies: 6 };
        assert_eq!((large.lacking_bytes(), large.after(1).lacking_bytes()), (1, 0));
    }
}
