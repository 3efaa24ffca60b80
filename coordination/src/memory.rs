//! What a voter must remember to be one, and how a voter that has lost its memory comes to vote again.
//!
//! A promise counts because whoever gave it keeps it. A voter whose directory is gone does not know what it
//! has promised: were it to answer like one that has promised nothing, a record that was agreed with its help
//! could be agreed away. So it answers nothing until it has asked a majority of the *others* to promise a
//! number that outranks whatever it may have promised itself, and has taken the newest record that they have
//! accepted. Every majority that it was part of has one of these in it; and none of them accepts afterwards
//! what was proposed before.
//!
//! At the cluster's first start nobody has a memory. That is told from a lost one by all of them: when every
//! other voter has none either, there is nothing to forget. Each directory has an id that was drawn with it,
//! and whoever was at the first start notes everybody's: so one that looks a moment later is known to have
//! been there, and one that comes back with another directory is known to have not.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use proto::{Epoch, RegionName};
use serde::{Deserialize, Serialize};

use crate::planted::{self, Bug};
use crate::register::{Accepted, Acceptor, Number};
use crate::voters::Electorate;

/// What a voter knows of its own memory. It is in `region.json`, and gone with that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// Drawn with the voter's directory.
    pub id: u64,
    /// It knows what it has promised and accepted: it may answer.
    pub remembers: bool,
    /// No database was ever made, as far as could be known when this memory began.
    pub may_create: bool,
    /// The voters of the cluster's first start and their ids, this one included; empty when it was not there.
    pub together: BTreeMap<RegionName, u64>,
}

impl Default for Memory {
    /// That of a file which an earlier version wrote: it was never lost.
    fn default() -> Memory {
        Memory { id: 0, remembers: true, may_create: true, together: BTreeMap::new() }
    }
}

impl Memory {
    /// That of a directory which was just made.
    #[must_use]
    pub fn none(id: u64) -> Memory {
        Memory { id, remembers: false, may_create: false, together: BTreeMap::new() }
    }
}

/// What another voter says of its memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// The id of its directory.
    pub id: u64,
    /// It remembers what it has promised and accepted.
    pub remembers: bool,
    /// The voters of its first start, if the asker was there with the id that it has; else empty.
    pub together: BTreeMap<RegionName, u64>,
    /// The highest number that it has promised.
    pub promised: Number,
    /// It has, or had, a database.
    pub has_data: bool,
    /// The number of the record that it has accepted, and who votes by that; none where the record does not
    /// say.
    pub voters: Option<(Number, Electorate)>,
}

/// What a voter without a memory does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recall {
    /// It goes on asking.
    Wait(Lacking),
    /// This is the cluster's first start: there is nothing to remember.
    FirstStart {
        /// Who starts with it, each with its id.
        together: BTreeMap<RegionName, u64>,
    },
    /// It asks the others to promise `number`, as so many of them must that [`take_up`] goes on.
    Ask {
        /// Above whatever it may have promised.
        number: Number,
    },
}

/// Who has to answer before a voter without a memory can vote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lacking {
    /// How many of the others must remember.
    pub needed: usize,
    /// Those that do.
    pub remember: usize,
    /// Those that do not answer.
    pub silent: BTreeSet<RegionName>,
    /// Those that have no memory either.
    pub forgot: BTreeSet<RegionName>,
}

impl fmt::Display for Lacking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = |names: &BTreeSet<RegionName>| {
            let names: Vec<&str> = names.iter().map(RegionName::as_str).collect();
            if names.is_empty() { "nobody".to_owned() } else { names.join(", ") }
        };
        write!(
            f,
            "this voter has no memory of its votes (its region.json is new), and answers nothing before {} of the other voters have told it \
             theirs, or all have none either: {} told it; {} did not answer; {} have no memory either. Start those; or, where they are lost for \
             good, give your word with `replicator revote`",
            self.needed,
            self.remember,
            names(&self.silent),
            names(&self.forgot),
        )
    }
}

/// What the voter `me` without a memory does next, having heard of the others whom its file names what `said`
/// has. `file`: who votes where no record says so. `word`: an operator's, that what those say who answer is
/// all that there is to know.
#[must_use]
pub fn next(
    me: &RegionName,
    memory: &Memory,
    file: &Electorate,
    said: &BTreeMap<RegionName, Said>,
    proposer: u64,
    word: bool,
) -> Recall {
    let others = &others(me, file);
    let said: BTreeMap<&RegionName, &Said> = said.iter().filter(|(name, _)| others.contains(name)).collect();
    if planted::is(Bug::AnswersForgotten) {
        return Recall::FirstStart { together: BTreeMap::new() };
    }
    // It was at the first start, and has answered nothing since: it still has the id that it had then.
    let there = said.values().find(|s| s.remembers && s.together.get(me) == Some(&memory.id));
    if let Some(there) = there {
        return Recall::FirstStart { together: there.together.clone() };
    }
    let remember: Vec<&&Said> = said.values().filter(|s| s.remembers).collect();
    if remember.is_empty() && (word || said.len() == others.len()) {
        let mut together: BTreeMap<RegionName, u64> =
            said.iter().map(|(name, s)| ((*name).clone(), s.id)).collect();
        together.insert(me.clone(), memory.id);
        return Recall::FirstStart { together };
    }
    // Who votes by the newest record that the others have; what they promise says once more.
    let newest = remember.iter().filter_map(|said| said.voters.as_ref()).max_by_key(|(number, _)| *number);
    let voters = newest.map_or(file, |(_, voters)| voters);
    let remembers = |name: &RegionName| said.get(name).is_some_and(|said| said.remembers);
    if !(word || voters.recalls(me, remembers)) {
        let silent = others.iter().filter(|name| !said.contains_key(name)).cloned().collect();
        let forgot = said.iter().filter(|(_, s)| !s.remembers).map(|(name, _)| (*name).clone()).collect();
        let (needed, remember) = (voters.recall_needed(me), remember.len());
        return Recall::Wait(Lacking { needed, remember, silent, forgot });
    }
    let highest = remember.iter().map(|s| s.promised).max().unwrap_or_default();
    Recall::Ask { number: highest.recalled(proposer) }
}

fn others(me: &RegionName, file: &Electorate) -> BTreeSet<RegionName> {
    file.names().into_iter().filter(|name| name != me).collect()
}

/// The memory that the voter `me` takes up, once the others have promised `number` and said what they have
/// `accepted`: none while that are too few of those who vote by the newest of it, unless an operator has
/// given his word.
#[must_use]
pub fn take_up(
    me: &RegionName,
    memory: &Memory,
    number: Number,
    accepted: &BTreeMap<RegionName, Accepted>,
    file: &Electorate,
    said: &BTreeMap<RegionName, Said>,
    word: bool,
) -> Option<(Memory, Acceptor)> {
    let newest = accepted.values().max_by_key(|accepted| accepted.number)?.clone();
    let remembers = |name: &RegionName| said.get(name).is_some_and(|said| said.remembers);
    let told = |name: &RegionName| accepted.contains_key(name);
    let enough = match word {
        true => said.keys().all(|name| told(name) || !remembers(name)),
        false => newest.record.electorate(file).recalls(me, told),
    };
    if !enough {
        return None;
    }
    let nobody_has_data = others(me, file).iter().all(|name| said.get(name).is_some_and(|s| !s.has_data));
    let may_create = nobody_has_data && newest.record.system_id.is_none() && newest.record.epoch == Epoch(1);
    let memory = Memory { remembers: true, may_create, ..memory.clone() };
    Some((memory, Acceptor::recalled(number, newest)))
}

#[cfg(test)]
mod tests {
    use proto::SystemId;

    use super::*;
    use crate::leadership::Leadership;
    use crate::voters::{Membership, Voters};

    fn name(text: &str) -> RegionName {
        text.parse().unwrap()
    }

    /// The file that names `a` and these.
    fn file(others: &[&str]) -> Electorate {
        let regions = others.iter().chain(&["a"]).map(|text| name(text)).collect();
        Electorate::of(Voters { regions, ..Voters::default() })
    }

    fn said(id: u64, remembers: bool) -> Said {
        let promised = Number { round: id, proposer: 9 };
        Said { id, remembers, together: BTreeMap::new(), promised, has_data: false, voters: None }
    }

    fn asked(others: &[&str], answers: &[(&str, Said)], word: bool) -> Recall {
        let answers = answers.iter().map(|(text, said)| (name(text), said.clone())).collect();
        next(&name("a"), &Memory::none(1), &file(others), &answers, 7, word)
    }

    #[test]
    fn a_lost_memory_is_told_from_a_first_start() {
        let together =
            |ids: &[(&str, u64)]| -> BTreeMap<_, _> { ids.iter().map(|(n, i)| (name(n), *i)).collect() };
        let first = |ids: &[(&str, u64)]| Recall::FirstStart { together: together(ids) };
        let (fresh, old) = (|id| said(id, false), |id| said(id, true));
        let waits = |recall: &Recall| matches!(recall, Recall::Wait(_));
        assert_eq!(asked(&[], &[], false), first(&[("a", 1)]), "it is the only voter");
        let both = &["b", "c"];
        assert_eq!(
            asked(both, &[("b", fresh(2)), ("c", fresh(3))], false),
            first(&[("a", 1), ("b", 2), ("c", 3)])
        );
        assert!(waits(&asked(both, &[("b", fresh(2))], false)), "c may remember");
        assert!(waits(&asked(both, &[], false)));
        assert!(waits(&asked(both, &[("b", old(2))], false)), "c may have been in a majority with it");
        assert!(waits(&asked(both, &[("b", old(2)), ("c", fresh(3))], false)));
        // It looked a moment later than b.
        let ids = [("a", 1), ("b", 2), ("c", 3)];
        let there = Said { together: together(&ids), ..old(2) };
        assert_eq!(asked(both, &[("b", there.clone())], false), first(&ids));
        let other = Said { together: together(&[("a", 5), ("b", 2), ("c", 3)]), ..old(2) };
        assert!(waits(&asked(both, &[("b", other)], false)), "it was there with another directory");
        let fresh_there = Said { remembers: false, ..there };
        assert!(waits(&asked(both, &[("b", fresh_there)], false)));
    }

    #[test]
    fn it_asks_for_a_number_that_nobody_else_may_have_heard_of() {
        let old = |id| said(id, true);
        let Recall::Ask { number } = asked(&["b", "c"], &[("b", old(2)), ("c", old(8))], false) else {
            panic!("two of two remember")
        };
        assert!(
            number > Number { round: 8, proposer: 9 }.next(1, true),
            "a forced one may have reached it alone"
        );
        let asks = |recall: &Recall| matches!(recall, Recall::Ask { .. });
        assert!(asks(&asked(&["b"], &[("b", old(2))], false)), "two voters: it needs the other");
        assert!(!asks(&asked(&["b"], &[], false)));
        assert!(asks(&asked(&["b", "c", "d"], &[("b", old(2)), ("c", old(2))], false)));
        assert!(asks(&asked(&["b", "c"], &[("b", old(2))], true)), "a word");
        // The record says that d votes, too, and the file does not yet.
        let membership = Membership::Add { name: name("d"), witness: false };
        let four = file(&["b", "c"])
            .step(&membership, None)
            .unwrap()
            .settle()
            .step(&Membership::Add { name: name("e"), witness: false }, None);
        let knows =
            |id| Said { voters: Some((Number { round: id, proposer: 9 }, four.clone().unwrap())), ..old(id) };
        assert!(
            !asks(&asked(&["b", "c"], &[("b", old(2)), ("c", knows(8))], false)),
            "two of the four others, of five"
        );
        assert!(matches!(asked(&["b"], &[], true), Recall::FirstStart { .. }), "on the operator's word");
    }

    #[test]
    fn it_takes_the_newest_and_makes_a_database_only_where_nobody_has_one() {
        let record = Leadership::first(Epoch(1), name("b"));
        let at = |round, record: &Leadership| Accepted {
            number: Number { round, proposer: 1 },
            record: record.clone(),
        };
        let (file, number) = (file(&["b", "c"]), Number { round: 99, proposer: 7 });
        let nobody: BTreeMap<_, _> =
            [("b", said(2, true)), ("c", said(3, true))].map(|(n, s)| (name(n), s)).into();
        let take = |accepted: &[Accepted], said: &BTreeMap<RegionName, Said>| {
            let told =
                ["b", "c"].into_iter().zip(accepted).map(|(text, one)| (name(text), one.clone())).collect();
            take_up(&name("a"), &Memory::none(1), number, &told, &file, said, false)
        };
        let newer = Leadership { epoch: Epoch(2), ..record.clone() };
        let (memory, acceptor) = take(&[at(5, &newer), at(3, &record)], &nobody).unwrap();
        assert_eq!((acceptor.record(), acceptor.promised()), (&newer, number));
        assert!(memory.remembers && !memory.may_create, "a later epoch has data");
        let may_create = |record: &Leadership, said: &BTreeMap<RegionName, Said>| {
            take(&[at(3, record), at(2, record)], said).unwrap().0.may_create
        };
        assert!(may_create(&record, &nobody));
        let named = Leadership { system_id: Some(SystemId(4)), ..record.clone() };
        assert!(!may_create(&named, &nobody));
        let mut one = nobody.clone();
        one.get_mut(&name("c")).unwrap().has_data = true;
        assert!(!may_create(&record, &one), "an earlier version recorded no system identifier");
        one.remove(&name("c"));
        assert!(!may_create(&record, &one), "c was not heard");
        assert!(take(&[], &nobody).is_none());
        assert!(take(&[at(3, &record)], &nobody).is_none(), "one of the two others");
    }
}
