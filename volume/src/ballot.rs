//! Who may write to the copies: ballots, and what each copy's redo was written under.
//!
//! Each opening of a volume takes a [`Ballot`] of its own, above every one before it. A copy that has
//! promised a ballot takes nothing from a lower one. [`Ballots`] is a copy's record of which redo came under
//! which ballot; from two of them it is known how far two copies hold the same redo, without reading it.

use std::fmt;

use proto::{Epoch, Lsn};

/// A right to write to the copies: the cluster's epoch, and within it the number of the volume's opening.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Ballot {
    /// The leadership of the global cluster that the region knew.
    pub epoch: Epoch,
    /// Which opening of the volume, counted over all epochs.
    pub opening: u64,
    /// Who opens: drawn at random, so that two that count to the same number at once are told apart.
    pub writer: u64,
}

impl Ballot {
    /// The ballot of the next opening, by `writer`, at `epoch` or a later one.
    #[must_use]
    pub fn next(self, epoch: Epoch, writer: u64) -> Ballot {
        Ballot { epoch: self.epoch.max(epoch), opening: self.opening + 1, writer }
    }
}

impl fmt::Display for Ballot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}-{:x}", self.epoch, self.opening, self.writer)
    }
}

impl std::str::FromStr for Ballot {
    type Err = String;

    fn from_str(text: &str) -> Result<Ballot, String> {
        let parsed = text.split_once('.').and_then(|(epoch, rest)| {
            let (opening, writer) = rest.split_once('-')?;
            let writer = u64::from_str_radix(writer, 16).ok()?;
            Some(Ballot { epoch: Epoch(epoch.parse().ok()?), opening: opening.parse().ok()?, writer })
        });
        parsed.ok_or_else(|| format!("'{text}' is no ballot; one looks like 1.4-9f3a"))
    }
}

/// Which redo was written under which ballot: each ballot with the LSN where its redo begins, both ascending.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ballots(Vec<(Ballot, Lsn)>);

impl Ballots {
    /// From entries as stored; `None` when they do not ascend.
    #[must_use]
    pub fn new(entries: Vec<(Ballot, Lsn)>) -> Option<Ballots> {
        let ascends = entries.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 < pair[1].1);
        ascends.then_some(Ballots(entries))
    }

    /// The entries, oldest first.
    #[must_use]
    pub fn entries(&self) -> &[(Ballot, Lsn)] {
        &self.0
    }

    /// The newest ballot; the least of all where there is none.
    #[must_use]
    pub fn newest(&self) -> Ballot {
        self.0.last().map_or(Ballot::default(), |(ballot, _)| *ballot)
    }

    /// The ballot under which a log that ends at `end_lsn` was last written. An entry that begins at the end
    /// counts: its writer knew all of this log.
    #[must_use]
    pub fn last_at(&self, end_lsn: Lsn) -> Ballot {
        self.0
            .iter()
            .rev()
            .find(|(_, begin)| *begin <= end_lsn)
            .map_or(Ballot::default(), |(ballot, _)| *ballot)
    }

    /// The ballot under which the redo just before `end_lsn` was written.
    #[must_use]
    pub fn written_at(&self, end_lsn: Lsn) -> Ballot {
        let written = self.0.iter().rev().find(|(_, begin)| *begin < end_lsn);
        written.map_or(Ballot::default(), |(ballot, _)| *ballot)
    }

    /// Notes that `ballot` writes from `from_lsn` on. What was noted from there on is no more.
    pub fn begin(&mut self, ballot: Ballot, from_lsn: Lsn) {
        self.0.retain(|(_, begin)| *begin < from_lsn);
        self.0.push((ballot, from_lsn));
    }

    /// How far a log with these ballots that ends at `end_lsn`, and `other` that ends at `other_end_lsn`,
    /// hold the same redo for certain; [`Lsn::ZERO`] when nothing is certain.
    ///
    /// Under one ballot there is one writer, which writes an LSN once: where both logs have redo of the same
    /// ballot, it is the same redo, and so is everything before it.
    #[must_use]
    pub fn common(&self, end_lsn: Lsn, other: &Ballots, other_end_lsn: Lsn) -> Lsn {
        let mut common = Lsn::ZERO;
        for (index, (ballot, begin)) in self.0.iter().enumerate() {
            let Some(there) = other.0.iter().position(|entry| entry == &(*ballot, *begin)) else { continue };
            let until = |entries: &[(Ballot, Lsn)], next: usize, end: Lsn| {
                entries.get(next).map_or(end, |(_, begin)| (*begin).min(end))
            };
            let (here, there) =
                (until(&self.0, index + 1, end_lsn), until(&other.0, there + 1, other_end_lsn));
            if here >= *begin && there >= *begin {
                common = common.max(here.min(there));
            }
        }
        common
    }

    /// Forgets what lies wholly before `horizon_lsn`, so that the record stays short.
    pub fn forget_before(&mut self, horizon_lsn: Lsn) {
        let after = self.0.partition_point(|(_, begin)| *begin <= horizon_lsn);
        self.0.drain(..after.saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ballot(opening: u64) -> Ballot {
        Ballot { epoch: Epoch(1), opening, writer: 0xAB }
    }

    fn ballots(entries: &[(u64, u64)]) -> Ballots {
        Ballots::new(entries.iter().map(|(b, lsn)| (ballot(*b), Lsn(*lsn))).collect()).unwrap()
    }

    #[test]
    fn what_two_logs_share() {
        let (one, two) = (ballots(&[(1, 0), (2, 50)]), ballots(&[(1, 0), (3, 70)]));
        assert_eq!(
            one.common(Lsn(90), &two, Lsn(100)),
            Lsn(50),
            "the first ballot's redo, as far as both have it"
        );
        assert_eq!(one.common(Lsn(40), &two, Lsn(100)), Lsn(40), "one log is shorter");
        let three = ballots(&[(1, 0), (3, 70), (4, 80)]);
        assert_eq!(two.common(Lsn(100), &three, Lsn(200)), Lsn(80));
        assert_eq!(
            three.common(Lsn(60), &two, Lsn(100)),
            Lsn(60),
            "entries beyond a log's end say nothing of it"
        );
        assert_eq!(ballots(&[(1, 0)]).common(Lsn(10), &ballots(&[(2, 0)]), Lsn(10)), Lsn::ZERO);
    }

    #[test]
    fn a_record_of_ballots_is_kept() {
        let mut record = ballots(&[(1, 0), (2, 50)]);
        assert_eq!(record.last_at(Lsn(49)), ballot(1));
        assert_eq!((record.last_at(Lsn(50)), record.written_at(Lsn(50))), (ballot(2), ballot(1)));
        record.begin(ballot(3), Lsn(50));
        assert_eq!(record, ballots(&[(1, 0), (3, 50)]), "an opening that wrote nothing leaves no trace");
        record.begin(ballot(4), Lsn(60));
        record.forget_before(Lsn(55));
        assert_eq!(record, ballots(&[(3, 50), (4, 60)]));
        assert_eq!(Ballots::new(vec![(ballot(2), Lsn(1)), (ballot(1), Lsn(2))]), None);
        assert_eq!("1.7-ab".parse::<Ballot>().unwrap(), ballot(7));
        assert!("1.7".parse::<Ballot>().is_err());
    }
}
