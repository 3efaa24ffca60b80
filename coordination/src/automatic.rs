//! Whether a region orders a failover by itself: the primary's region is gone as a whole, and no operator is
//! asked.
//!
//! It decides *when*, and nothing else. The failover that follows is the same as one that an operator orders:
//! voted on, fenced, and reported. So a wrong guess here costs a promotion, and never an acknowledged commit
//! that the ordered one would not cost. What it must not do is to promote back and forth, or a region that
//! lacks too much.

use std::collections::BTreeMap;
use std::fmt;

use proto::{Epoch, Lsn, RegionName};

use crate::leadership::{Leadership, Mode};
use crate::lineage::Lineage;
use crate::planted::{self, Bug};
use crate::promotion::Grant;
use crate::voters::Electorate;

/// How much longer each region waits than the one that is better, microseconds: the best leads, and another
/// one only where the best does not come to it.
pub const RANK_US: u64 = 5_000_000;

/// How far back failovers count, microseconds.
pub const LATELY_US: u64 = 3_600_000_000;

/// So many failovers lately are enough: what goes on then is an operator's to find out.
pub const LATELY_MAX: usize = 2;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// How long nobody must have heard the primary, microseconds.
    pub after_us: u64,
    /// How much redo may be missing that the primary is known to have had, bytes.
    pub loss_max_bytes: u64,
}

/// Why a region orders none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Waits {
    /// It leads itself, may not lead, or a promotion is in progress.
    NotItsTurn,
    /// Too few voters say that the primary was not heard for so long.
    Heard {
        /// How many say so.
        silent: usize,
        /// How many voters there are.
        voters: usize,
    },
    /// It has nothing to lead with.
    NoData,
    /// Another region has more, and is waited for.
    Better(RegionName),
    /// More would be lost than is allowed.
    Loss {
        /// What nobody has who was heard, bytes.
        bytes: u64,
    },
    /// There were as many failovers lately as are done without an operator.
    Often,
}

impl fmt::Display for Waits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Waits::NotItsTurn => f.write_str("no failover is wanted of this region"),
            Waits::Heard { silent, voters } => {
                write!(f, "{silent} of {voters} voters have not heard the primary for so long")
            }
            Waits::NoData => f.write_str("this region has no data that it could lead with"),
            Waits::Better(name) => write!(f, "region {name} is to lead sooner"),
            Waits::Loss { bytes } => write!(
                f,
                "{bytes} bytes of redo would be lost that the primary is known to have had, and `max_loss` allows less: an \
                 operator has to order it"
            ),
            Waits::Often => write!(
                f,
                "there were {LATELY_MAX} failovers within the hour, and no more are done without an operator: replicator history"
            ),
        }
    }
}

impl Waits {
    /// Whether it stays so until somebody does something.
    #[must_use]
    pub fn needs_operator(&self) -> bool {
        matches!(self, Waits::Loss { .. } | Waits::Often)
    }
}

/// Whether the region `me` orders a failover to itself, and in which epoch: the order is for no other.
/// `record` is what it has accepted, and `heard` what each voter said a moment ago who answered, `me`
/// included; `file` says who votes where the record does not, and `now_us` is the time since 1970.
///
/// # Errors
/// Why it does not.
pub fn decide(
    me: &RegionName,
    record: &Leadership,
    file: &Electorate,
    heard: &BTreeMap<RegionName, Grant>,
    rules: Rules,
    now_us: i64,
) -> Result<Epoch, Waits> {
    let voters = record.electorate(file);
    if record.promotion.is_some() || record.primary == *me || !voters.may_lead(me) {
        return Err(Waits::NotItsTurn);
    }
    let silent = |us: u64| {
        move |name: &RegionName| *name != record.primary && heard.get(name).is_some_and(|g| g.silent_us >= us)
    };
    if !voters.decide(silent(rules.after_us)) {
        let names = voters.names();
        let count = names.iter().filter(|name| silent(rules.after_us)(name)).count();
        return Err(Waits::Heard { silent: count, voters: names.len() });
    }
    let lineage = Lineage::of(record);
    // Who could lead, the best first. Of two that have as much, the first by name.
    let able = |name: &RegionName| *name != record.primary && voters.may_lead(name);
    let mut candidates: Vec<(Lsn, &RegionName)> = heard
        .iter()
        .filter(|(name, grant)| able(name) && grant.has_data && grant.open)
        .filter_map(|(name, grant)| Some((lineage.on_line(grant.redo())?, name)))
        .collect();
    candidates.sort_by(|(one, a), (other, b)| other.cmp(one).then(a.cmp(b)));
    let Some(rank) = candidates.iter().position(|(_, name)| *name == me) else { return Err(Waits::NoData) };
    let patience_us = rules.after_us + RANK_US * rank as u64;
    if !voters.decide(silent(patience_us)) {
        return Err(Waits::Better(candidates[0].1.clone()));
    }
    // A failover gathers what survivors have: what is lost is what none of them has.
    let had_lsn = heard.values().map(|grant| grant.primary_lsn).max().unwrap_or(Lsn::ZERO);
    let bytes = had_lsn.0.saturating_sub(candidates[0].0.0);
    if bytes > rules.loss_max_bytes && !planted::is(Bug::LosesMore) {
        return Err(Waits::Loss { bytes });
    }
    if are_used_up(record, now_us) && !planted::is(Bug::FailsOverOften) {
        return Err(Waits::Often);
    }
    Ok(record.epoch)
}

/// Whether there were so many failovers lately that none is ordered without an operator. `now_us` is the time
/// since 1970.
#[must_use]
pub fn are_used_up(record: &Leadership, now_us: i64) -> bool {
    let since_us = now_us.saturating_sub(i64::try_from(LATELY_US).unwrap_or(i64::MAX));
    let failovers = record.history.iter().filter(|past| past.promotion.mode == Mode::Failover);
    failovers.filter(|past| past.at_us >= since_us).count() >= LATELY_MAX
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::leadership::{Loss, Past, Promotion, Step};
    use crate::voters::Voters;
    use proto::Timeline;

    const RULES: Rules = Rules { after_us: 10_000_000, loss_max_bytes: 1000 };

    fn name(text: &str) -> RegionName {
        text.parse().unwrap()
    }

    fn voters(regions: &[&str], witnesses: &[&str]) -> Electorate {
        let names = |names: &[&str]| names.iter().map(|text| name(text)).collect();
        Electorate::of(Voters { regions: names(regions), witnesses: names(witnesses) })
    }

    /// One that was silent for so many seconds, with redo up to `lsn`.
    fn grant(silent_s: u64, lsn: u64) -> Grant {
        Grant {
            has_data: lsn > 0,
            has_redo: lsn > 0,
            open: lsn > 0,
            timeline: Timeline(1),
            durable_lsn: Lsn(lsn),
            silent_us: silent_s * 1_000_000,
            primary_lsn: Lsn(5000),
            stopped: false,
        }
    }

    fn promotion(mode: Mode) -> Promotion {
        Promotion {
            id: 1,
            mode,
            from: name("b"),
            to: name("a"),
            epoch: Epoch(3),
            step: Step::Promote,
            coordinator: name("a"),
            attempt: 0,
            forced: false,
            lost: [].into(),
            loss_max_bytes: None,
            order: None,
            fork_lsn: Lsn(10),
            parent: 1,
            loss: Loss::default(),
            steps: Vec::new(),
        }
    }

    fn decided(me: &str, file: &Electorate, heard: &[(&str, Grant)]) -> Result<(), Waits> {
        let heard = heard.iter().map(|(who, grant)| (name(who), grant.clone())).collect();
        decide(&name(me), &Leadership::first(Epoch(1), name("a")), file, &heard, RULES, 0).map(drop)
    }

    /// What it is, who decides, what it heard, and what it decides.
    type Case<'a> = (&'a str, &'a str, &'a [(&'a str, Grant)], Result<(), Waits>);

    #[test]
    fn the_best_region_orders_it_once_a_majority_has_heard_nothing_for_long_enough() {
        let three = voters(&["a", "b", "c"], &[]);
        let long = |lsn| grant(10, lsn);
        let cases: [Case<'_>; 12] = [
            ("gone", "b", &[("b", long(4500)), ("c", long(4400))], Ok(())),
            ("another has more", "c", &[("b", long(4500)), ("c", long(4400))], Err(Waits::Better(name("b")))),
            ("… and does not come to it", "c", &[("b", grant(15, 4500)), ("c", grant(15, 4400))], Ok(())),
            ("as much: by name", "c", &[("b", long(4500)), ("c", long(4500))], Err(Waits::Better(name("b")))),
            ("another has no data", "c", &[("b", long(0)), ("c", long(4400))], Ok(())),
            (
                "not for long",
                "b",
                &[("b", grant(9, 4500)), ("c", grant(30, 4400))],
                Err(Waits::Heard { silent: 1, voters: 3 }),
            ),
            (
                "heard on one side",
                "b",
                &[("b", long(4500)), ("c", grant(0, 4500))],
                Err(Waits::Heard { silent: 1, voters: 3 }),
            ),
            ("alone", "b", &[("b", long(4500))], Err(Waits::Heard { silent: 1, voters: 3 })),
            (
                "what the primary says of itself",
                "b",
                &[("a", long(4500)), ("b", long(4500))],
                Err(Waits::Heard { silent: 1, voters: 3 }),
            ),
            ("the primary", "a", &[("a", long(4500)), ("b", long(4500))], Err(Waits::NotItsTurn)),
            (
                "too much is lost",
                "b",
                &[("b", long(3999)), ("c", long(3000))],
                Err(Waits::Loss { bytes: 1001 }),
            ),
            ("nothing to lead with", "b", &[("b", long(0)), ("c", long(4400))], Err(Waits::NoData)),
        ];
        for (what, me, heard, expected) in cases {
            assert_eq!(decided(me, &three, heard), expected, "{what}");
        }
        let witness = voters(&["a", "b"], &["w"]);
        assert_eq!(decided("b", &witness, &[("b", long(4500)), ("w", grant(11, 0))]), Ok(()));
        assert_eq!(decided("w", &witness, &[("b", long(4500)), ("w", long(0))]), Err(Waits::NotItsTurn));
        // With two voters there is no majority without the primary.
        let two = voters(&["a", "b"], &[]);
        assert_eq!(decided("b", &two, &[("b", long(4500))]), Err(Waits::Heard { silent: 1, voters: 2 }));
    }

    #[test]
    fn it_is_not_done_back_and_forth_nor_beside_another_promotion() {
        let file = voters(&["a", "b", "c"], &[]);
        let long = Grant { timeline: Timeline(3), ..grant(10, 4500) };
        let heard: BTreeMap<RegionName, Grant> = [(name("b"), long.clone()), (name("c"), long)].into();
        let mut record = Leadership::first(Epoch(3), name("a"));
        let past =
            |mode, at_us| Past { promotion: promotion(mode), at_us, write_gap_us: 0, rolled_back: None };
        let now_us = 10 * i64::try_from(LATELY_US).unwrap();
        let asked = |record: &Leadership| decide(&name("b"), record, &file, &heard, RULES, now_us).map(drop);
        record.history = vec![past(Mode::Failover, 0), past(Mode::Failover, now_us - 1)];
        assert_eq!(asked(&record), Ok(()), "one of them was long ago");
        record.history.push(past(Mode::Switchover, now_us));
        assert_eq!(asked(&record), Ok(()));
        record.history.push(past(Mode::Failover, now_us - 2));
        assert_eq!(asked(&record), Err(Waits::Often));
        record.history.clear();
        record.promotion = Some(promotion(Mode::Switchover));
        assert_eq!(asked(&record), Err(Waits::NotItsTurn));
    }
}
