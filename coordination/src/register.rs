//! How the voters agree on the record: a register that is read and changed by majorities.
//!
//! It is the single-register form of Paxos that D. Rystsov describes as CASPaxos (arXiv:1802.07000). A change
//! takes two rounds. In the first a majority promises a [`Number`] and says what it has accepted; the newest
//! of that is the record. In the second a majority accepts the changed record under that number, and then it
//! is agreed. There is no log and no leader: any voter may propose, and one that fails in the middle leaves
//! either the old record or the new one, which the next proposal completes. The second round also asks for
//! the promise of a further number, so that the same proposer's next change takes one round.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use proto::RegionName;
use serde::{Deserialize, Serialize};

use crate::leadership::Leadership;
use crate::planted::{self, Bug};
use crate::voters::Electorate;

/// By how much a proposal on an operator's word outranks what the voters that are not asked may have
/// promised.
const FORCED_ROUNDS: u64 = 1 << 32;

/// By how much a voter that has lost its memory outranks what it may have promised, and nobody else has heard
/// of.
const RECALL_ROUNDS: u64 = 1 << 33;

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

    /// A number of `proposer` above this one, and above whatever a voter may have promised whose memory is
    /// lost.
    #[must_use]
    pub fn recalled(self, proposer: u64) -> Number {
        Number { round: self.round.saturating_add(RECALL_ROUNDS), proposer }
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
    pub record: Leadership,
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
    pub fn new(record: Leadership) -> Acceptor {
        Acceptor { promised: Number::default(), accepted: Accepted { number: Number::default(), record } }
    }

    /// A voter that takes up what others remember: it takes nothing below `promised`, as it may have promised
    /// that.
    #[must_use]
    pub fn recalled(promised: Number, accepted: Accepted) -> Acceptor {
        Acceptor { promised, accepted }
    }

    /// The record that it has accepted. The others may have agreed on a newer one.
    #[must_use]
    pub fn record(&self) -> &Leadership {
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
        if number < self.promised && !planted::is(Bug::PromisesTwice) {
            return Answer::Outbid(self.promised);
        }
        self.promised = number;
        Answer::Promised(self.accepted.clone())
    }

    /// Whether it would accept a record under `number` now.
    #[must_use]
    pub fn would_accept(&self, number: Number) -> bool {
        number >= self.promised || planted::is(Bug::AcceptsOutbid)
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

/// The answers to one round. Everybody is asked; those count who vote by the newest record that is promised,
/// or by the one that is proposed.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    /// Who votes, as far as the proposer knows.
    known: Electorate,
    /// Who votes where a record does not say.
    file: Electorate,
    /// The voters that an operator's word says are lost.
    lost: BTreeSet<RegionName>,
    alone: bool,
    answers: BTreeMap<RegionName, Answer>,
    silent: BTreeSet<RegionName>,
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
    /// No promises yet, to a proposer that knows of the voters `known`; a record that names none is of a
    /// cluster whose file names `file`.
    #[must_use]
    pub fn promises(known: Electorate, file: Electorate) -> Tally {
        Tally { known, file, ..Tally::default() }
    }

    /// Nobody has accepted yet a record by which `voters` vote.
    #[must_use]
    pub fn acceptances(voters: Electorate) -> Tally {
        Tally { known: voters.clone(), file: voters, ..Tally::default() }
    }

    /// The same, where an operator's word says that these are lost: a majority of the others decides, once
    /// all were asked.
    #[must_use]
    pub fn without(mut self, lost: BTreeSet<RegionName>) -> Tally {
        self.lost = lost;
        self
    }

    /// The same, where one of two voters decides if the other one does not answer.
    #[must_use]
    pub fn alone(mut self, alone: bool) -> Tally {
        self.alone = alone;
        self
    }

    /// `voter` has answered; none when it cannot be reached.
    pub fn add(&mut self, voter: &RegionName, answer: Option<Answer>) {
        match answer {
            Some(answer) => drop(self.answers.insert(voter.clone(), answer)),
            None => drop(self.silent.insert(voter.clone())),
        }
    }

    /// How many voters have promised or accepted.
    #[must_use]
    pub fn for_it(&self) -> usize {
        self.voters().names().iter().filter(|name| self.is_for_it(name)).count()
    }

    /// Who votes, by the newest record that was promised.
    #[must_use]
    pub fn voters(&self) -> &Electorate {
        match self.newest() {
            Some(Newest::Known(newest) | Newest::WitnessAlone(newest)) => self.voters_of(newest),
            None => &self.known,
        }
    }

    /// What the answers say.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        let newest = self.newest();
        if self.decide(self.voters(), |name| self.is_for_it(name)) {
            return match newest {
                Some(Newest::Known(newest)) => Verdict::Promised(newest.clone()),
                Some(Newest::WitnessAlone(_)) => Verdict::Open,
                None => Verdict::Agreed,
            };
        }
        match self.outbid() {
            Some(number) => Verdict::Outbid(number),
            None if self.all_answered(self.voters()) => Verdict::NoMajority,
            None => Verdict::Open,
        }
    }

    fn outbid(&self) -> Option<Number> {
        let outbid = self.answers.values().filter_map(|answer| match answer {
            Answer::Outbid(number) => Some(*number),
            Answer::Promised(_) | Answer::Accepted => None,
        });
        outbid.max()
    }

    fn is_for_it(&self, name: &RegionName) -> bool {
        self.answers.get(name).is_some_and(|answer| !matches!(answer, Answer::Outbid(_)))
    }

    fn voters_of<'a>(&'a self, accepted: &'a Accepted) -> &'a Electorate {
        accepted.record.electorate(&self.file)
    }

    /// Whether those that `are` something decide, where `voters` vote.
    fn decide(&self, voters: &Electorate, are: impl Fn(&RegionName) -> bool) -> bool {
        if voters.decide(&are) {
            return true;
        }
        let one = || self.alone && voters.is_pair() && voters.names().iter().any(&are);
        let left = || !self.lost.is_empty() && voters.without(&self.lost).decide(&are);
        // One that has promised somebody else is there, and is heard first.
        self.all_answered(voters) && self.outbid().is_none() && (one() || left())
    }

    fn all_answered(&self, voters: &Electorate) -> bool {
        voters.names().iter().all(|name| self.answers.contains_key(name) || self.silent.contains(name))
    }

    /// The newest record of those promised; none in a second round. Any majority that promises will do, also
    /// one of regions alone.
    fn newest(&self) -> Option<Newest<'_>> {
        let promised = self.answers.iter().filter_map(|(name, answer)| match answer {
            Answer::Promised(accepted) => Some((name, accepted)),
            Answer::Accepted | Answer::Outbid(_) => None,
        });
        let number = |accepted: &Accepted| match planted::is(Bug::TakesAnyRecord) {
            true => Number::default(),
            false => accepted.number,
        };
        let (_, newest) = promised.clone().max_by_key(|(_, accepted)| number(accepted))?;
        let is_region = |name: &RegionName| {
            !self.known.is_witness(name) && !self.file.is_witness(name) && self.is_for_it(name)
        };
        let regions = promised.filter(|(name, _)| is_region(name));
        match regions.map(|(_, accepted)| accepted).max_by_key(|accepted| number(accepted)) {
            Some(known) if known.number >= newest.number => Some(Newest::Known(known)),
            Some(known) if self.voters_of(known).decide(is_region) => Some(Newest::Known(known)),
            _ if self.all_answered(self.voters_of(newest)) => Some(Newest::Known(newest)),
            _ => Some(Newest::WitnessAlone(newest)),
        }
    }
}

/// The newest record that was promised.
#[derive(Clone, Copy)]
enum Newest<'a> {
    Known(&'a Accepted),
    /// No region that has answered has it, and one that has not may.
    WitnessAlone(&'a Accepted),
}

#[cfg(test)]
mod tests {
    use proto::Epoch;

    use super::*;
    use crate::voters::{Membership, Voters};

    fn record(epoch: u64) -> Leadership {
        Leadership::first(Epoch(epoch), "a".parse().unwrap())
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

    fn name(text: &str) -> RegionName {
        text.parse().unwrap()
    }

    fn voting(regions: &[&str], witnesses: &[&str]) -> Electorate {
        let names = |texts: &[&str]| texts.iter().map(|text| name(text)).collect();
        Electorate::of(Voters { regions: names(regions), witnesses: names(witnesses) })
    }

    fn promised(tally: &Tally) -> Option<Epoch> {
        match tally.verdict() {
            Verdict::Promised(accepted) => Some(accepted.record.epoch),
            _ => None,
        }
    }

    #[test]
    fn what_a_witness_alone_has_accepted_counts_only_where_no_majority_is_without_it() {
        let has =
            |round, epoch| Some(Answer::Promised(Accepted { number: number(round), record: record(epoch) }));
        let open = || {
            let voters = voting(&["a", "b"], &["w"]);
            let mut tally = Tally::promises(voters.clone(), voters);
            tally.add(&name("w"), has(9, 7));
            tally.add(&name("b"), has(2, 1));
            tally
        };
        let mut tally = open();
        assert_eq!(tally.verdict(), Verdict::Open, "a may have it too");
        tally.add(&name("a"), has(2, 1));
        assert_eq!(promised(&tally), Some(Epoch(1)), "the regions are a majority, and nobody has it");
        let mut tally = open();
        tally.add(&name("a"), None);
        assert_eq!(promised(&tally), Some(Epoch(7)), "a is gone, and may have accepted it");
        let mut tally = open();
        tally.add(&name("a"), has(9, 7));
        assert_eq!(promised(&tally), Some(Epoch(7)));
    }

    #[test]
    fn a_majority_decides_and_the_newest_record_counts() {
        let voters = || voting(&["a", "b", "c"], &[]);
        let first = || Tally::promises(voters(), voters());
        let has = |round, epoch| Accepted { number: number(round), record: record(epoch) };
        let mut tally = first();
        tally.add(&name("a"), Some(Answer::Promised(has(1, 1))));
        assert_eq!(tally.verdict(), Verdict::Open);
        tally.add(&name("b"), Some(Answer::Promised(has(2, 3))));
        assert_eq!(tally.verdict(), Verdict::Promised(has(2, 3)));
        let mut tally = Tally::acceptances(voters());
        tally.add(&name("a"), Some(Answer::Accepted));
        tally.add(&name("b"), None);
        assert_eq!(tally.verdict(), Verdict::Open);
        tally.add(&name("c"), None);
        assert_eq!(tally.verdict(), Verdict::NoMajority);
        assert_eq!(tally.clone().alone(true).verdict(), Verdict::NoMajority, "there are three");
        let without = |lost: &[&str]| tally.clone().without(lost.iter().map(|text| name(text)).collect());
        assert_eq!(without(&["b"]).verdict(), Verdict::NoMajority, "one of the two that are left");
        assert_eq!(without(&["b", "c"]).verdict(), Verdict::Agreed, "on an operator's word");
        let mut tally = first();
        tally.add(&name("a"), Some(Answer::Outbid(number(9))));
        assert_eq!(tally.verdict(), Verdict::Outbid(number(9)));
    }

    #[test]
    fn one_of_two_decides_alone_only_when_the_other_does_not_answer() {
        let mut tally = Tally::acceptances(voting(&["a", "b"], &[])).alone(true);
        tally.add(&name("a"), Some(Answer::Accepted));
        assert_eq!(tally.verdict(), Verdict::Open);
        let mut promised_another = tally.clone();
        promised_another.add(&name("b"), Some(Answer::Outbid(number(9))));
        assert_eq!(promised_another.verdict(), Verdict::Outbid(number(9)));
        tally.add(&name("b"), None);
        assert_eq!(tally.verdict(), Verdict::Agreed);
    }

    /// Two changes of the voters went by a proposer: whom it knew is no majority of those who vote by what it
    /// is told.
    #[test]
    fn a_proposer_goes_on_with_the_voters_of_the_newest_record() {
        let old = voting(&["a", "b", "c"], &[]);
        let add = |electorate: &Electorate, text: &str| {
            let membership = Membership::Add { name: name(text), witness: false };
            electorate.step(&membership, None).unwrap().settle()
        };
        let five = add(&add(&old, "d"), "e");
        let with = |voters: &Electorate, epoch| Leadership { voters: Some(voters.clone()), ..record(epoch) };
        let has = |round, record| Some(Answer::Promised(Accepted { number: number(round), record }));
        let mut tally = Tally::promises(old.clone(), old.clone());
        tally.add(&name("a"), has(1, with(&old, 1)));
        tally.add(&name("b"), has(9, with(&five, 2)));
        assert_eq!(tally.verdict(), Verdict::Open, "two of five");
        let mut told = tally.clone();
        told.add(&name("d"), has(9, with(&five, 2)));
        assert_eq!(promised(&told), Some(Epoch(2)));
        tally.add(&name("c"), None);
        tally.add(&name("d"), None);
        tally.add(&name("e"), None);
        assert_eq!((tally.verdict(), tally.for_it()), (Verdict::NoMajority, 2));
        // While they change, both sets are asked.
        let changing = old.step(&Membership::Add { name: name("d"), witness: false }, None).unwrap();
        let mut tally = Tally::acceptances(changing);
        tally.add(&name("a"), Some(Answer::Accepted));
        tally.add(&name("d"), Some(Answer::Accepted));
        assert_eq!(tally.verdict(), Verdict::Open, "two of four, and one of three");
        tally.add(&name("b"), Some(Answer::Accepted));
        assert_eq!(tally.verdict(), Verdict::Agreed);
    }
}
