//! What a node does with its PostgreSQL: facts in, a deed out.

use serde::{Deserialize, Serialize};

/// Which data of its region a node's data are a copy of: a number that the region draws when it comes to have
/// data, by making, a seed or a rewind, and keeps through promotions. Data of one number continue with the
/// redo of no other: what they have may have been cut off there.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Origin(pub String);

impl Origin {
    /// The data of this number.
    #[must_use]
    pub fn new(data: u64) -> Origin {
        Origin(format!("{data:016x}"))
    }

    /// The number; none where it is none.
    #[must_use]
    pub fn number(&self) -> Option<u64> {
        u64::from_str_radix(&self.0, 16).ok().filter(|number| *number != 0)
    }
}

/// Data of a node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// Drawn when they were copied.
    pub id: u64,
    /// What they are a copy of.
    pub origin: Origin,
}

/// What the region's daemon said last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word {
    /// What a copy of the region's data is a copy of; none while the region has no data, or does not know
    /// what its volume holds.
    pub origin: Option<Origin>,
    /// The data that need redo which the region does not keep any more.
    pub missing: Option<u64>,
}

/// What a node knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Its data; none where it has none, or not all of them.
    pub data: Option<Data>,
    /// Its PostgreSQL is kept running.
    pub runs: bool,
    /// What the region's daemon said last, since this process began.
    pub word: Option<Word>,
    /// It was waited for long enough for the first word.
    pub waited: bool,
}

/// What it does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deed {
    /// Nothing; why it has no PostgreSQL running, if it has none.
    Rest(Option<&'static str>),
    /// Start PostgreSQL on what it has.
    Start,
    /// Replace what it has by a copy of the region's data.
    Copy {
        /// Why, in words.
        why: &'static str,
        /// What it has is old and was never cut off: it serves until the copy is there.
        serves: bool,
    },
}

/// What a node does next.
#[must_use]
pub fn next(facts: &Facts) -> Deed {
    let Facts { data, runs, word, waited } = facts;
    let Some(data) = data else {
        return match word {
            Some(Word { origin: Some(_), .. }) => Deed::Copy { why: "it has no data", serves: false },
            Some(_) => Deed::Rest(Some("the region has no data to copy yet")),
            None => Deed::Rest(Some("it has no data, and the region's daemon does not answer")),
        };
    };
    match word {
        Some(Word { origin: Some(origin), .. }) if *origin != data.origin => {
            let why = "the region's redo has begun anew, and what is here may be on no line with it";
            Deed::Copy { why, serves: false }
        }
        // What it was told of other data, which it had before, says nothing of these.
        Some(Word { missing: Some(id), origin: Some(_) }) if *id == data.id => {
            Deed::Copy { why: "it needs redo that the region does not keep any more", serves: true }
        }
        // It shows what it has, whether or not anybody brings more.
        _ if *runs => Deed::Rest(None),
        None if !*waited => Deed::Rest(Some("it waits for the word of the region's daemon")),
        _ => Deed::Start,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(data: u64) -> Origin {
        Origin::new(data)
    }

    fn data(of: u64) -> Option<Data> {
        Some(Data { id: 5, origin: origin(of) })
    }

    fn word(origin: Option<Origin>, missing: Option<u64>) -> Option<Word> {
        Some(Word { origin, missing })
    }

    fn facts(data: Option<Data>, runs: bool, word: Option<Word>) -> Facts {
        Facts { data, runs, word, waited: true }
    }

    #[test]
    fn data_are_copied_when_they_cannot_be_gone_on_with_and_only_then() {
        // Whether they are copied, and whether what is there serves meanwhile.
        let copies = |data: Option<Data>, word: Option<Word>| {
            let deeds = [false, true].map(|runs| match next(&facts(data.clone(), runs, word.clone())) {
                Deed::Copy { serves, .. } => Some(serves),
                Deed::Rest(_) | Deed::Start => None,
            });
            assert_eq!(deeds[0], deeds[1]);
            deeds[0]
        };
        for (data, word, expected) in [
            (None, word(Some(origin(1)), None), Some(false)),
            (None, word(None, None), None),
            (None, None, None),
            (data(1), word(Some(origin(1)), None), None),
            (data(1), word(Some(origin(1)), Some(5)), Some(true)),
            // Of what was here before.
            (data(1), word(Some(origin(1)), Some(4)), None),
            // It may show what was cut off.
            (data(1), word(Some(origin(2)), None), Some(false)),
            (data(1), word(Some(origin(2)), Some(5)), Some(false)),
            // A region that is being seeded may come to have either.
            (data(1), word(None, Some(5)), None),
            (data(1), None, None),
        ] {
            assert_eq!(copies(data.clone(), word.clone()), expected, "{data:?} {word:?}");
        }
    }

    #[test]
    fn what_is_there_runs_also_while_the_region_does_not_answer() {
        assert_eq!(next(&facts(data(1), false, None)), Deed::Start);
        assert_eq!(next(&facts(data(1), true, None)), Deed::Rest(None));
        assert_eq!(next(&facts(data(1), false, word(Some(origin(1)), None))), Deed::Start);
        assert!(matches!(next(&facts(None, false, None)), Deed::Rest(Some(_))));
        let at_once = Facts { waited: false, ..facts(data(1), false, None) };
        assert!(matches!(next(&at_once), Deed::Rest(Some(_))), "its region's data may be others by now");
        let told = Facts { waited: false, ..facts(data(1), false, word(None, None)) };
        assert_eq!(next(&told), Deed::Start);
    }
}
