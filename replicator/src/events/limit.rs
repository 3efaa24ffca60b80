//! How many events of one kind are kept: a peer that asks for what it may not have a thousand times a second
//! must not push out what happened last night.

use std::collections::BTreeMap;

use super::{Kind, Note};

/// The events of one kind that are kept at once; then one for each [`REFILL_US`].
const BURST: u32 = 30;

/// How long it takes until one more is kept, microseconds.
const REFILL_US: i64 = 30_000_000;

#[derive(Debug)]
struct Budget {
    left: u32,
    refilled_us: i64,
    not_kept: u64,
}

/// What is left of each kind's share.
#[derive(Debug, Default)]
pub struct Limit(BTreeMap<Kind, Budget>);

impl Limit {
    /// What is kept of a note that comes at `at_us`: itself, perhaps after a note of how many were not; or
    /// nothing.
    pub fn admit(&mut self, at_us: i64, note: Note) -> Vec<Note> {
        let budget =
            self.0.entry(note.kind).or_insert(Budget { left: BURST, refilled_us: at_us, not_kept: 0 });
        // A clock that was set back refills nothing, and begins anew.
        if at_us < budget.refilled_us {
            budget.refilled_us = at_us;
        }
        let refills = (at_us - budget.refilled_us) / REFILL_US;
        if refills > 0 {
            budget.refilled_us += refills * REFILL_US;
            let refills = u32::try_from(refills).unwrap_or(BURST);
            budget.left = budget.left.saturating_add(refills).min(BURST);
        }
        if budget.left == 0 {
            budget.not_kept += 1;
            return Vec::new();
        }
        budget.left -= 1;
        let mut kept = Vec::new();
        let not_kept = std::mem::take(&mut budget.not_kept);
        if not_kept > 0 {
            let text = format!(
                "journal: {not_kept} more events '{}' were not kept; the log of the daemon has them",
                note.kind.name()
            );
            kept.push(Note::new(Kind::NotKept, text));
        }
        kept.push(note);
        kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_kind_is_bounded_and_the_others_are_not_touched() {
        let mut limit = Limit::default();
        let refused = || Note::new(Kind::PeerRefused, "x: refused");
        let kept: usize = (0..1_000).map(|at| limit.admit(at, refused()).len()).sum();
        assert_eq!(kept, 30);
        assert_eq!(limit.admit(1_000, Note::new(Kind::CopyLost, "b1: absent")).len(), 1);
        let later = limit.admit(REFILL_US + 1, refused());
        assert!(later[0].text.contains("970 more events 'peer-refused'"), "{later:?}");
        assert_eq!(later.len(), 2);
        assert_eq!(limit.admit(REFILL_US + 2, refused()).len(), 0);
        assert_eq!(limit.admit(-5, refused()).len(), 0, "a clock that goes back lets nothing through");
    }
}
