//! Replication slots as they lie in `pg_replslot`, of an instance that does not run.
//!
//! Source: `ReplicationSlotOnDisk` in PostgreSQL's `slot.c`, the same from 15 to 18 as far as it is read:
//! four numbers of 4 bytes (magic, checksum, version, length), the slot's name of 64 bytes, and the object id
//! of the database that it decodes: 0 of a physical slot.

use std::path::Path;

use crate::below::Below;

/// Where the id of the database lies in a slot's file.
const DATABASE_AT: usize = 4 * 4 + 64;

/// What such a file begins with.
const MAGIC: u32 = 0x0105_1CA1;

/// Whether the slot of this name is a logical one. One that is not understood is none: PostgreSQL says
/// what it thinks of it.
pub(super) fn is_logical(slots: &Below, slot: &Path) -> bool {
    slots.read(slot.join("state")).is_ok_and(|state| database(&state).is_some_and(|database| database > 0))
}

fn database(state: &[u8]) -> Option<u32> {
    let number = |at: usize| Some(u32::from_ne_bytes(*state.get(at..)?.first_chunk()?));
    number(0).filter(|magic| *magic == MAGIC).and_then(|_| number(DATABASE_AT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_with_a_database_is_logical_and_what_is_no_slot_is_not() {
        let state = |magic: u32, database: u32| {
            let mut state = [0; 200];
            state[..4].copy_from_slice(&magic.to_ne_bytes());
            state[DATABASE_AT..DATABASE_AT + 4].copy_from_slice(&database.to_ne_bytes());
            state
        };
        assert_eq!(database(&state(MAGIC, 16384)), Some(16384));
        assert_eq!(database(&state(MAGIC, 0)), Some(0));
        assert_eq!(database(&state(1, 16384)), None);
        for short in 0..DATABASE_AT + 4 {
            assert_eq!(database(&state(MAGIC, 5)[..short]), None);
        }
    }
}
