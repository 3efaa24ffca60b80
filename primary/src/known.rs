//! Redo that the volume has and the writer must have as well, compared byte by byte before more is taken.
//!
//! A writer whose data directory was replaced by an older one loses redo, and writes other redo in its place.
//! Its LSNs alone do not tell once it has passed the old end.

use bytes::{Buf, Bytes};
use postgres::wal::tablespaces::without_paths;
use proto::{Lsn, Redo};

/// The writer's redo differs from the volume's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the writer's redo differs from this region's volume at {at_lsn}: its data directory was replaced or damaged, and \
     redo that the volume has is lost in it. Fail over to a secondary, or restore the writer's data directory"
)]
pub struct OtherRedo {
    /// Where the first difference is, or what was not to be had.
    pub at_lsn: Lsn,
}

/// What is still to be compared.
#[derive(Debug, Clone, Default)]
pub struct Known {
    begin_lsn: Lsn,
    bytes: Bytes,
    /// The same as a standby is given it, as which the writer may have taken it: as long.
    given: Bytes,
}

impl Known {
    /// The end of `newest`, from its WAL segment's beginning on: older segments may be gone from the writer.
    #[must_use]
    pub fn new(newest: &Redo, segment_bytes: u64) -> Known {
        let end_lsn = newest.batch.end_lsn;
        let begin_lsn = newest.batch.begin_lsn.max(end_lsn.segment_begin(segment_bytes));
        let skip = usize::try_from(begin_lsn - newest.batch.begin_lsn).unwrap_or(usize::MAX);
        let given = without_paths(newest.batch.begin_lsn, &newest.bytes);
        let given = given.map_or_else(|| newest.bytes.clone(), Bytes::from);
        let rest = |bytes: &Bytes| bytes.slice(skip.min(bytes.len())..);
        Known { begin_lsn, bytes: rest(&newest.bytes), given: rest(&given) }
    }

    /// Where the writer is to be read from, if there is something to compare.
    #[must_use]
    pub fn begin_lsn(&self) -> Option<Lsn> {
        (!self.bytes.is_empty()).then_some(self.begin_lsn)
    }

    /// Compares what the writer sent; returns what of it is new.
    ///
    /// # Errors
    /// When it is not what the volume has.
    pub fn compare(&mut self, begin_lsn: Lsn, mut bytes: Bytes) -> Result<Option<(Lsn, Bytes)>, OtherRedo> {
        if self.bytes.is_empty() {
            return Ok(Some((begin_lsn, bytes)));
        }
        if begin_lsn != self.begin_lsn {
            return Err(OtherRedo { at_lsn: self.begin_lsn });
        }
        let ours = self.bytes.iter().zip(&self.given);
        let is_same = |((ours, given), theirs): &((&u8, &u8), &u8)| ours == theirs || given == theirs;
        let same = ours.zip(&bytes).take_while(is_same).count();
        self.bytes.advance(same);
        self.given.advance(same);
        bytes.advance(same);
        self.begin_lsn = self.begin_lsn + same as u64;
        match (self.bytes.is_empty(), bytes.is_empty()) {
            (_, true) => Ok(None),
            (true, false) => Ok(Some((self.begin_lsn, bytes))),
            (false, false) => Err(OtherRedo { at_lsn: self.begin_lsn }),
        }
    }

    /// To be asked when the writer's timeline is over.
    ///
    /// # Errors
    /// When it is over before the end of what the volume has.
    pub fn all_compared(&self) -> Result<(), OtherRedo> {
        self.begin_lsn().map_or(Ok(()), |at_lsn| Err(OtherRedo { at_lsn }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// In whatever pieces it comes: the same redo is taken from the volume's end on, and any other byte
        /// is found.
        #[test]
        fn only_a_writer_that_has_the_volume_s_redo_goes_on(
            known in proptest::collection::vec(any::<u8>(), 0..300),
            new in proptest::collection::vec(any::<u8>(), 0..100),
            pieces in proptest::collection::vec(1usize..80, 1..30),
            damage in proptest::option::of(any::<prop::sample::Index>()),
        ) {
            let volume_end = Lsn(1000 + known.len() as u64);
            let mut sent = [known.clone(), new.clone()].concat();
            let damaged = damage.filter(|_| !known.is_empty()).map(|index| index.index(known.len()));
            if let Some(at) = damaged {
                sent[at] ^= 1;
            }
            let mut compared =
                Known { begin_lsn: Lsn(1000), bytes: known.clone().into(), given: known.into() };
            let (mut taken, mut at) = (Vec::new(), 0);
            let mut found = None;
            for piece in pieces.into_iter().cycle() {
                if at == sent.len() {
                    break;
                }
                let end = (at + piece).min(sent.len());
                match compared.compare(Lsn(1000 + at as u64), Bytes::copy_from_slice(&sent[at..end])) {
                    Ok(Some((begin_lsn, bytes))) => {
                        prop_assert_eq!(begin_lsn, volume_end + taken.len() as u64);
                        taken.extend_from_slice(&bytes);
                    }
                    Ok(None) => {}
                    Err(other) => {
                        found = Some(other.at_lsn);
                        break;
                    }
                }
                at = end;
            }
            match damaged {
                Some(at) => {
                    prop_assert_eq!(found, Some(Lsn(1000 + at as u64)));
                    prop_assert!(taken.is_empty());
                }
                None => {
                    prop_assert_eq!(taken, new);
                    prop_assert_eq!(compared.all_compared(), Ok(()));
                }
            }
        }
    }

    #[test]
    fn a_timeline_that_ends_before_the_volume_does_is_another_s() {
        let bytes = Bytes::from_static(b"abc");
        let mut known = Known { begin_lsn: Lsn(10), given: bytes.clone(), bytes };
        assert_eq!(known.compare(Lsn(10), Bytes::from_static(b"ab")), Ok(None));
        assert_eq!(known.all_compared(), Err(OtherRedo { at_lsn: Lsn(12) }));
    }

    /// A standby that was promoted has taken its redo without the paths of tablespaces.
    #[test]
    fn redo_as_a_standby_is_given_it_is_the_volume_s() {
        let known = || Known {
            begin_lsn: Lsn(10),
            bytes: Bytes::from_static(b"a/pathz"),
            given: Bytes::from_static(b"a\0\0\0\0\0y"),
        };
        for (theirs, taken) in [(b"a/pathz!", true), (b"a\0\0\0\0\0y!", true), (b"a/other!", false)] {
            let compared = known().compare(Lsn(10), Bytes::from_static(theirs));
            assert_eq!(compared.is_ok(), taken, "{theirs:?}");
        }
    }
}
