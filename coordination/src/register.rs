//! How the voters agree on the record: a register that is read and changed by majorities.
//!
//! It is the single-register form of Paxos that D. Rystsov describes as CASPaxos (arXiv:1802.07000). A change takes two rounds. In
//! the first a majority promises a [`Number`] and says what it has accepted; the newest of that is the record. In the second a
//! majority accepts the changed record under that number, and then it is agreed. There is no log and no leader: any voter may
//! propose, and one that fails in the middle leaves either the old record or the new one, which the next proposal completes.
//! The second round also asks for the promise of a further number, so that the same proposer's next change takes one round.

use std::collections::BTreeMap;
use std::fmt;

use proto::RegionName;
use serde::{Deserialize, Serialize};

use crate::record::Record;

/// By how much a proposal on an operator's word outranks what the voters that are not asked may have promised.
const FORCED_ROUNDS: u64 = 1 << 32;

/// The number of a proposal: a higher one wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Number {
    /// Counted up above everything seen.
    pub round: u64,
    /// Who proposes: drawn at each start, so that two that count to the same round are told apart.
    pub proposer: u64,
}

impl Number {
    /// A number of `proposer` above this one.
    #[must_use]
    pub fn next(self, proposer: u64, forced: bool) -> Number {
        let rounds = if forced { FORCED_ROUNDS } else { 1 };
        Number { round: self.round.saturating_add(rounds), proposer }
    }
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:x}", self.round, self.proposer)
    }
}

/// A record, and under which number it was accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Accepted {
    /// The number.
    pub number: Number,
    /// The record.
    pub record: Record,
}

/// What one voter has promised and accepted. It is on disk before an answer leaves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Acceptor {
    promised: Number,
    accepted: Accepted,
}

/// A voter's answer to either round.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "made and taken apart at once, never stored")]
pub enum Answer {
    /// It takes nothing below the number any more; this it has accepted.
    Promised(Accepted),
    /// It has accepted the record.
    Accepted,
    /// It has promised a higher number.
    Outbid(Number),
}

impl Acceptor {
    /// A voter at its first start.
    #[must_use]
    pub fn new(record: Record) -> Acceptor {
        Acceptor { promised: Number::default(), accepted: Accepted { number: Number::default(), record } }
    }

    /// The record that it has accepted. The others may have agreed on a newer one.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.accepted.record
    }

    /// The same, with the number under which it was accepted.
    #[must_use]
    pub fn accepted(&self) -> &Accepted {
        &self.accepted
    }

    /// The highest number it has seen.
    #[must_use]
    pub fn promised(&self) -> Number {
        self.promised
    }

    /// Answers the first round.
    pub fn prepare(&mut self, number: Number) -> Answer {
        if number < self.promised {
            return Answer::Outbid(self.promised);
        }
        self.promised = number;
        Answer::Promised(self.accepted.clone())
    }

    /// Whether it would accept a record under `number` now.
    #[must_use]
    pub fn would_accept(&self, number: Number) -> bool {
        number >= self.promised
    }

    /// Answers the second round, and promises `next` for the proposer's next change.
    pub fn accept(&mut self, proposal: &Accepted, next: Number) -> Answer {
        if !self.would_accept(proposal.number) {
            return Answer::Outbid(self.promised);
        }
        self.promised = next.max(proposal.number);
        self.accepted = proposal.clone();
        Answer::Accepted
    }

    /// Takes a record that is known to be agreed. No promise is broken: it was agreed without this voter.
    pub fn learn(&mut self, agreed: &Accepted) {
        if agreed.number > self.accepted.number {
            self.accepted = agreed.clone();
            self.promised = self.promised.max(agreed.number);
        }
    }
}

/// The answers to one round.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    majority: usize,
    voters: usize,
    answers: BTreeMap<RegionName, Answer>,
    silent: usize,
}

/// What the answers so far say.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "made and taken apart at once, never stored")]
pub enum Verdict {
    /// More answers are needed.
    Open,
    /// A majority has promised; this is the record.
    Promised(Accepted),
    /// A majority has accepted: it is agreed.
    Agreed,
    /// Another proposer has a higher number.
    Outbid(Number),
    /// Too few voters answer.
    NoMajority,
}

impl Tally {
    /// No answers yet, of `voters` voters; `majority` of them decide.
    #[must_use]
    pub fn new(voters: usize, majority: usize) -> Tally {
        Tally { majority, voters, ..Tally::default() }
    }

    /// `voter` has answered; none when it cannot be reached.
    pub fn add(&mut self, voter: &RegionName, answer: Option<Answer>) {
        match answer {
            Some(answer) => drop(self.answers.insert(voter.clone(), answer)),
            None => self.silent += 1,
        }
    }

    /// The same answers, where `majority` voters decide.
    #[must_use]
    pub fn with_majority(mut self, majority: usize) -> Tally {
        self.majority = majority;
        self
    }

    /// How many have promised or accepted.
    #[must_use]
    pub fn for_it(&self) -> usize {
        self.answers.values().filter(|answer| !matches!(answer, Answer::Outbid(_))).count()
    }

    /// What the answers say.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        let outbid = self.answers.values().filter_map(|answer| match answer {
            Answer::Outbid(number) => Some(*number),
            Answer::Promised(_) | Answer::Accepted => None,
        });
        let outbid = outbid.max();
        let promised = self.answers.values().filter_map(|answer| match answer {
            Answer::Promised(accepted) => Some(accepted),
            Answer::Accepted | Answer::Outbid(_) => None,
        });
        if self.for_it() >= self.majority {
            return match promised.max_by_key(|accepted| accepted.number) {
                Some(newest) => Verdict::Promised(newest.clone()),
                None => Verdict::Agreed,
            };
        }
        match outbid {
            Some(number) => Verdict::Outbid(number),
            None if self.answers.len() + self.silent >= self.voters => Verdict::NoMajority,
            None => Verdict::Open,
        }
    }
}

/// How many of `voters` voters decide.
#[must_use]
pub fn majority(voters: usize) -> usize {
    voters / 2 + 1
}

#[cfg(test)]
mod tests {
    use proto::Epoch;

    use super::*;

    fn record(epoch: u64) -> Record {
        Record::first(Epoch(epoch), "a".parse().unwrap())
    }

    fn number(round: u64) -> Number {
        Number { round, proposer: 1 }
    }

    #[test]
    fn a_promise_is_kept() {
        let mut acceptor = Acceptor::new(record(1));
        assert!(matches!(acceptor.prepare(number(5)), Answer::Promised(_)));
        assert_eq!(acceptor.prepare(number(4)), Answer::Outbid(number(5)));
        let late = Accepted { number: number(4), record: record(2) };
        assert_eq!(acceptor.accept(&late, number(6)), Answer::Outbid(number(5)));
        let mine = Accepted { number: number(5), record: record(2) };
        assert_eq!(acceptor.accept(&mine, number(6)), Answer::Accepted);
        assert_eq!((acceptor.record().epoch, acceptor.promised()), (Epoch(2), number(6)));
    }

    #[test]
    fn a_majority_decides_and_the_newest_record_counts() {
        let names = ["a", "b", "c"].map(|name| name.parse::<RegionName>().unwrap());
        let mut tally = Tally::new(3, majority(3));
        let has = |round, epoch| Accepted { number: number(round), record: record(epoch) };
        tally.add(&names[0], Some(Answer::Promised(has(1, 1))));
        assert_eq!(tally.verdict(), Verdict::Open);
        tally.add(&names[1], Some(Answer::Promised(has(2, 3))));
        assert_eq!(tally.verdict(), Verdict::Promised(has(2, 3)));
        let mut tally = Tally::new(3, majority(3));
        tally.add(&names[0], Some(Answer::Accepted));
        tally.add(&names[1], None);
        assert_eq!(tally.verdict(), Verdict::Open);
        tally.add(&names[2], None);
        assert_eq!(tally.verdict(), Verdict::NoMajority);
        let mut tally = Tally::new(3, majority(3));
        tally.add(&names[0], Some(Answer::Outbid(number(9))));
        assert_eq!(tally.verdict(), Verdict::Outbid(number(9)));
    }
}
