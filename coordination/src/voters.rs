//! Who votes, and how that changes: the voters are part of the record, and are changed through it.
//!
//! An [`Electorate`] is a set of voters, and while it changes the set before, too: then a majority of *each*
//! is needed, in both rounds. A change takes two records, each of which is proposed only upon a record that
//! its proposer has just had agreed:
//!
//! ```text
//!   V  ──  add or remove one  ──►  V' and V before  ──  settle  ──►  V'
//! ```
//!
//! **A proposer with old voters meets one that knows.** Let *G* be a record that is agreed, and look at those
//! that follow from it before another is agreed. As a step is taken only upon what is agreed, there is at
//! most one step among them. So all of them need a majority of one set in common: of *V*, if *G* has *V*
//! alone; of *V'*, if *G* has both. Two majorities of one set meet. A proposer that has the promises of a
//! majority of every set of the newest record that it was told has therefore met one who has accepted what
//! was agreed last; and one whose newest record has other voters than it knew goes on with these, until it
//! has promises enough of them: [`Tally`](crate::register::Tally) counts so.
//!
//! **A lease is counted so as well.** Only the primary takes either step, and only upon a record that it
//! knows to be agreed. So what is agreed is at most one step ahead of what it knows, and a majority that
//! shuts it out meets the majority that keeps its lease, in the set that both have. It counts every record
//! that it knows, has accepted or is about to accept.

use std::collections::BTreeSet;
use std::fmt;

use proto::RegionName;
use serde::{Deserialize, Serialize};

use crate::planted::{self, Bug};
use crate::signed::SignedOrder;

/// The most voters that an electorate may have: more than any file may name.
pub const VOTERS_MAX: usize = 16;

/// A set of voters.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Voters {
    /// Those with data, which can lead.
    pub regions: BTreeSet<RegionName>,
    /// Those without.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub witnesses: BTreeSet<RegionName>,
}

impl Voters {
    /// All of them.
    pub fn names(&self) -> impl Iterator<Item = &RegionName> {
        self.regions.iter().chain(&self.witnesses)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.regions.len() + self.witnesses.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether `name` is one of them.
    #[must_use]
    pub fn has(&self, name: &RegionName) -> bool {
        self.regions.contains(name) || self.witnesses.contains(name)
    }

    /// Whether those that `are` something are a majority.
    #[must_use]
    pub fn decide(&self, are: impl Fn(&RegionName) -> bool) -> bool {
        self.names().filter(|name| are(name)).count() >= majority(self.len())
    }

    /// In how many names two sets differ, where a witness that became a region counts twice.
    #[must_use]
    pub fn distance(&self, other: &Voters) -> u64 {
        let differ = self.regions.symmetric_difference(&other.regions).count()
            + self.witnesses.symmetric_difference(&other.witnesses).count();
        differ as u64
    }

    /// Without these.
    #[must_use]
    pub fn without(&self, names: &BTreeSet<RegionName>) -> Voters {
        let kept = |from: &BTreeSet<RegionName>| from.difference(names).cloned().collect();
        Voters { regions: kept(&self.regions), witnesses: kept(&self.witnesses) }
    }

    /// With those of `others` as well.
    #[must_use]
    fn with(&self, others: &Voters) -> Voters {
        let all = |mine: &BTreeSet<RegionName>, theirs| mine.union(theirs).cloned().collect();
        Voters {
            regions: all(&self.regions, &others.regions),
            witnesses: all(&self.witnesses, &others.witnesses),
        }
    }

    fn insert(&mut self, name: RegionName, witness: bool) {
        if witness {
            self.witnesses.insert(name)
        } else {
            self.regions.insert(name)
        };
    }

    fn remove(&mut self, name: &RegionName) {
        self.regions.remove(name);
        self.witnesses.remove(name);
    }
}

impl fmt::Display for Voters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let regions = self.regions.iter().map(ToString::to_string);
        let names: Vec<String> =
            regions.chain(self.witnesses.iter().map(|name| format!("{name} (a witness)"))).collect();
        f.write_str(&names.join(", "))
    }
}

/// Who votes, as a record says.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Electorate {
    /// How many steps have led here: each changes it by one name at most.
    pub steps: u64,
    /// The voters.
    pub now: Voters,
    /// The voters before, while that is not settled: a majority of these is needed, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Voters>,
    /// Voters that an operator's word counts as lost: they have no vote until the primary hears them, and
    /// adds them again.
    #[serde(default, skip_serializing_if = "Voters::is_empty")]
    pub lost: Voters,
    /// The order by which these vote, where an operator has signed one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<SignedOrder>,
}

impl Electorate {
    /// That of a file which names `voters`.
    #[must_use]
    pub fn of(voters: Voters) -> Electorate {
        Electorate { now: voters, ..Electorate::default() }
    }

    /// The sets of which a majority is needed.
    pub fn sets(&self) -> impl Iterator<Item = &Voters> {
        let before = self.before.as_ref().filter(|_| !planted::is(Bug::CountsNewVotersOnly));
        [&self.now].into_iter().chain(before)
    }

    /// Everybody whose answer may count.
    #[must_use]
    pub fn names(&self) -> BTreeSet<RegionName> {
        self.sets().flat_map(Voters::names).cloned().collect()
    }

    /// Whether `name` votes.
    #[must_use]
    pub fn has(&self, name: &RegionName) -> bool {
        self.sets().any(|set| set.has(name))
    }

    /// Whether region `name` can lead.
    #[must_use]
    pub fn may_lead(&self, name: &RegionName) -> bool {
        self.now.regions.contains(name)
    }

    /// The witnesses.
    #[must_use]
    pub fn is_witness(&self, name: &RegionName) -> bool {
        self.sets().any(|set| set.witnesses.contains(name))
    }

    /// Whether those that `are` something decide: a majority of each set.
    #[must_use]
    pub fn decide(&self, are: impl Fn(&RegionName) -> bool) -> bool {
        self.sets().all(|set| set.decide(&are))
    }

    /// Whether the voters of which a majority is not needed any more, or not yet, differ from those of which
    /// it is.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.before.is_none()
    }

    /// Whether every set has fewer than three voters, so that there is no majority without the other one.
    #[must_use]
    pub fn is_pair(&self) -> bool {
        self.sets().all(|set| set.len() < 3)
    }

    /// How many of the smaller set decide, for people.
    #[must_use]
    pub fn needed(&self) -> usize {
        self.sets().map(|set| majority(set.len())).max().unwrap_or(1)
    }

    /// Whether the answers of those who `tell` make good the memory that voter `me` has lost: of each set so
    /// many others that every majority which `me` was part of has one of them.
    #[must_use]
    pub fn recalls(&self, me: &RegionName, tell: impl Fn(&RegionName) -> bool) -> bool {
        self.sets().all(|set| {
            let others = set.names().filter(|name| *name != me);
            others.filter(|name| tell(name)).count() >= recall_needed(set, me)
        })
    }

    /// How many others of the larger set must tell `me`, for people.
    #[must_use]
    pub fn recall_needed(&self, me: &RegionName) -> usize {
        self.sets().map(|set| recall_needed(set, me)).max().unwrap_or(0)
    }

    /// The electorate without these, which an operator's word says are lost.
    #[must_use]
    pub fn without(&self, lost: &BTreeSet<RegionName>) -> Electorate {
        let gone = |set: &Voters| -> Vec<(RegionName, bool)> {
            let named = set.names().filter(|name| lost.contains(*name));
            named.map(|name| (name.clone(), set.witnesses.contains(name))).collect()
        };
        let mut all = self.lost.clone();
        gone(&self.now).into_iter().for_each(|(name, witness)| all.insert(name, witness));
        let steps = self.steps + 1;
        let before = self.before.as_ref().map(|set| set.without(lost));
        Electorate { steps, now: self.now.without(lost), before, lost: all, order: self.order.clone() }
    }

    /// The voters, with those that are counted as lost.
    #[must_use]
    pub fn with_lost(&self) -> Voters {
        self.now.with(&self.lost)
    }

    /// The same, of those before.
    #[must_use]
    pub fn was(&self) -> Voters {
        self.before.as_ref().unwrap_or(&self.now).with(&self.lost)
    }

    /// The voters that a change brings, with those that are counted as lost: what an operator signs.
    #[must_use]
    pub fn after(&self, change: &Membership) -> Voters {
        let mut after = self.with_lost();
        match change {
            Membership::Add { name, witness } => after.insert(name.clone(), *witness),
            Membership::Remove { name } => after.remove(name),
        }
        after
    }

    /// The electorate after the first step of a change, on `order`; it is the same when it was made already.
    ///
    /// # Errors
    /// Why it cannot be made.
    pub fn step(&self, change: &Membership, order: Option<&SignedOrder>) -> Result<Electorate, Hindrance> {
        let mut next = self.clone();
        let done = match change {
            Membership::Add { name, witness } => {
                if self.now.has(name) && self.is_witness(name) != *witness {
                    return Err(Hindrance::OtherKind(name.clone()));
                }
                next.now.insert(name.clone(), *witness);
                next.lost.remove(name);
                self.now.has(name)
            }
            Membership::Remove { name } => {
                next.now.remove(name);
                next.lost.remove(name);
                !self.now.has(name)
            }
        };
        if done {
            // One that was counted as lost is not waited for any more.
            if next != *self {
                next.steps += 1;
                next.order = order.cloned().or(next.order);
            }
            return Ok(next);
        }
        if !self.is_settled() {
            return Err(Hindrance::Unsettled);
        }
        if next.now.regions.is_empty() {
            return Err(Hindrance::NoneLeft);
        }
        if next.now.len() > VOTERS_MAX {
            return Err(Hindrance::TooMany);
        }
        (next.before, next.steps) = (Some(self.now.clone()), self.steps + 1);
        next.order = order.cloned().or(next.order);
        Ok(next)
    }

    /// The electorate after the second step: the voters before count no more.
    #[must_use]
    pub fn settle(&self) -> Electorate {
        let steps = self.steps + u64::from(!self.is_settled());
        Electorate { before: None, steps, ..self.clone() }
    }

    /// Whether a correct proposer can have led from `agreed` here.
    #[must_use]
    pub fn follows(&self, agreed: &Electorate) -> bool {
        let Some(steps) = self.steps.checked_sub(agreed.steps) else { return false };
        match steps {
            0 => self == agreed,
            1 if agreed.is_settled() => {
                let changes =
                    self.before.as_ref() == Some(&agreed.now) && agreed.now.distance(&self.now) == 1;
                // The other one forgets a voter that was lost.
                changes || self.now == agreed.now && self.before.is_none()
            }
            1 => self.before.is_none() && self.now == agreed.now,
            _ => agreed.now.distance(&self.now) <= steps,
        }
    }

    /// Whether it is one at all.
    #[must_use]
    pub fn is_one(&self) -> bool {
        let apart = self.sets().all(|set| set.regions.is_disjoint(&set.witnesses));
        let one_step = self.before.as_ref().is_none_or(|before| before.distance(&self.now) <= 1);
        let lost = self.lost.names().all(|name| !self.now.has(name)) && self.lost.len() <= VOTERS_MAX;
        apart && one_step && lost && !self.now.regions.is_empty() && self.now.len() <= VOTERS_MAX
    }
}

/// How many of `voters` voters decide.
#[must_use]
pub fn majority(voters: usize) -> usize {
    voters / 2 + usize::from(!planted::is(Bug::SmallMajority))
}

/// How many others of `set` must tell `me` what they remember.
fn recall_needed(set: &Voters, me: &RegionName) -> usize {
    match set.has(me) {
        true => (set.len() - 1) / 2 + 1,
        false => majority(set.len()),
    }
}

/// A change of the voters by one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Membership {
    /// One more votes.
    Add {
        /// The voter.
        name: RegionName,
        /// It holds no data.
        witness: bool,
    },
    /// One votes no more.
    Remove {
        /// The voter.
        name: RegionName,
    },
}

/// Why the voters cannot be changed so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Hindrance {
    /// The change before is not settled.
    #[error("another change of the voters is not over; it goes on by itself: try again in a moment")]
    Unsettled,
    /// A promotion is in progress.
    #[error("a promotion is in progress: try again when it is over; see `replicator status`")]
    Promotion,
    /// Only the primary changes the voters.
    #[error("region {0} is the primary, and the voters are changed through it")]
    NotThePrimary(RegionName),
    /// The primary cannot be removed.
    #[error(
        "{0} is the primary: have another region lead first (replicator promote --region R), and then remove it"
    )]
    IsThePrimary(RegionName),
    /// A region votes as a region, and a witness as a witness.
    #[error("{0} votes already, and as the other kind: remove it first, or give it another name")]
    OtherKind(RegionName),
    /// No region would be left.
    #[error("no region would be left that votes: add another one first")]
    NoneLeft,
    /// There would be too many.
    #[error("there would be more than {VOTERS_MAX} voters: remove one first")]
    TooMany,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> RegionName {
        text.parse().unwrap()
    }

    fn voters(regions: &[&str], witnesses: &[&str]) -> Voters {
        let names = |texts: &[&str]| texts.iter().map(|text| name(text)).collect();
        Voters { regions: names(regions), witnesses: names(witnesses) }
    }

    fn add(text: &str) -> Membership {
        Membership::Add { name: name(text), witness: false }
    }

    fn remove(text: &str) -> Membership {
        Membership::Remove { name: name(text) }
    }

    #[test]
    fn a_change_takes_two_steps_and_a_majority_of_both_sets() {
        let three = Electorate::of(voters(&["a", "b"], &["w"]));
        let four = three.step(&add("c"), None).unwrap();
        assert_eq!((four.steps, four.now.len(), four.before.as_ref()), (1, 4, Some(&three.now)));
        let are = |names: &'static [&str]| move |who: &RegionName| names.contains(&who.as_str());
        assert!(four.decide(are(&["a", "b", "c"])));
        assert!(!four.decide(are(&["a", "b"])), "two of four");
        assert!(!four.decide(are(&["a", "c"])), "one of three");
        assert_eq!(four.step(&add("d"), None), Err(Hindrance::Unsettled));
        assert_eq!(four.step(&add("c"), None).unwrap(), four, "its answer may have been lost");
        let settled = four.settle();
        assert_eq!((settled.steps, settled.before.as_ref(), &settled.settle()), (2, None, &settled));
        let fewer = settled.step(&remove("w"), None).unwrap();
        assert_eq!(fewer.now, voters(&["a", "b", "c"], &[]));
        assert_eq!(settled.step(&remove("x"), None).unwrap(), settled);
        let wrong = Membership::Add { name: name("a"), witness: true };
        assert_eq!(settled.step(&wrong, None), Err(Hindrance::OtherKind(name("a"))));
        let one = Electorate::of(voters(&["a"], &["w"]));
        assert_eq!(one.step(&remove("a"), None), Err(Hindrance::NoneLeft));
    }

    #[test]
    fn those_that_are_lost_have_no_vote_until_they_are_added_again() {
        let three = Electorate::of(voters(&["a", "b"], &["w"]));
        let left = three.without(&[name("a"), name("w")].into());
        assert_eq!((&left.now, &left.lost), (&voters(&["b"], &[]), &voters(&["a"], &["w"])));
        assert!(left.decide(|who| *who == name("b")) && left.is_one());
        let again = left.step(&Membership::Add { name: name("w"), witness: true }, None).unwrap();
        assert_eq!((&again.now, &again.lost), (&voters(&["b"], &["w"]), &voters(&["a"], &[])));
        let forgotten = left.step(&remove("a"), None).unwrap();
        assert_eq!((&forgotten.lost, forgotten.is_settled()), (&voters(&[], &["w"]), true));
        assert!(forgotten.follows(&left));
    }

    /// What follows by the steps is believed, and nothing else that is near.
    #[test]
    fn exactly_what_the_steps_lead_to_follows() {
        let three = Electorate::of(voters(&["a", "b", "c"], &[]));
        let changing = three.step(&add("d"), None).unwrap();
        let settled = changing.settle();
        let fewer = settled.step(&remove("a"), None).unwrap();
        let row = [&three, &changing, &settled, &fewer];
        for (at, later) in row.iter().enumerate() {
            assert!(later.is_one());
            for (before, earlier) in row.iter().enumerate() {
                assert_eq!(later.follows(earlier), before <= at, "{before} to {at}");
            }
        }
        let other = three.step(&add("e"), None).unwrap();
        assert!(!other.follows(&changing) && !other.settle().follows(&changing));
        let two_at_once = Electorate { now: voters(&["a", "b", "c", "d", "e"], &[]), ..changing.clone() };
        assert!(!two_at_once.follows(&three) && !two_at_once.is_one());
        let unasked = Electorate { steps: 1, ..Electorate::of(voters(&["a", "b"], &[])) };
        assert!(!unasked.follows(&three), "the set before is needed, too");
        let both = Electorate::of(voters(&["a"], &["a"]));
        assert!(!both.is_one());
    }

    /// Every majority that a voter was part of has one that it asks when it has lost its memory.
    #[test]
    fn every_majority_with_it_has_one_that_it_asks() {
        let all = ["a", "b", "c", "d", "e", "f", "g", "h", "i"];
        for count in 1..=all.len() {
            let set = voters(&all[..count], &[]);
            let needed = recall_needed(&set, &name("a"));
            assert!(needed + majority(count) - 1 > count - 1 && needed <= count.max(1), "{count} voters");
            let not_one = recall_needed(&set, &name("x"));
            assert!(not_one + majority(count) > count, "{count} voters and one more");
        }
    }
}
