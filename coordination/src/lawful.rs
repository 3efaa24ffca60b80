//! What no correct voter can say: a record that does not follow from the one that is known to be agreed, a
//! number far ahead of all others, an accepted record under a number above the promise that it comes with. It
//! is refused, whoever says it.
//!
//! A voter does not hear every record, and one that it has accepted may have been agreed away: so a record is
//! not compared with that, and not step by step. What counts is the newest record that is *known* to be
//! agreed: what comes after it has it in its past.

use std::collections::BTreeSet;

use proto::{Epoch, RegionName, SystemId};

use crate::leadership::{HISTORY_MAX, Leadership, Past, Promotion, Step};
use crate::orders::Unordered;
use crate::register::{Accepted, Number};
use crate::voters::Voters;

/// The rounds that a correct proposer can be ahead of a voter, at most: several voters that have lost their
/// memory, and several proposals on an operator's word, in a row.
pub const ROUNDS_AHEAD_MAX: u64 = 1 << 35;

/// The epochs that a voter can have slept through. PostgreSQL's timelines have their numbers, and end at
/// 2^32.
const EPOCHS_AHEAD_MAX: u64 = 1 << 16;

/// Why something can come from no correct voter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unlawful {
    /// The number is far ahead.
    #[error("number {found} is far ahead of {known}, the highest known here")]
    NumberAhead {
        /// What was said.
        found: Number,
        /// What is known.
        known: Number,
    },
    /// The number for the next change is not the one after the proposal's.
    #[error("after {proposal} its proposer's next number is not {next}")]
    OtherNext {
        /// The proposal's.
        proposal: Number,
        /// What was said.
        next: Number,
    },
    /// A voter that promises a number has accepted nothing above that.
    #[error("a record accepted under {accepted} is above the number {promised} that was promised")]
    AbovePromise {
        /// The record's.
        accepted: Number,
        /// The promise's.
        promised: Number,
    },
    /// It is led, or shall be led, by a name that is no region.
    #[error("'{0}' leads, or shall lead, and is no region of this daemon's regions.toml")]
    NoRegion(RegionName),
    /// It is coordinated by a name that is no voter.
    #[error("'{0}' coordinates, and is no voter of this daemon's regions.toml")]
    NoVoter(RegionName),
    /// A promotion to the region that leads, of an epoch that is over, or of another primary.
    #[error("the promotion to {to} in epoch {epoch} contradicts the record that it is in")]
    OddPromotion {
        /// The region that shall lead.
        to: RegionName,
        /// The epoch that it shall lead.
        epoch: Epoch,
    },
    /// More promotions are past than a record keeps.
    #[error("{0} promotions are past, and a record keeps {HISTORY_MAX}")]
    LongHistory(usize),
    /// The epoch is below one that is agreed.
    #[error("epoch {found} is below epoch {known}, which is agreed")]
    EpochFalls {
        /// The record's.
        found: Epoch,
        /// What is agreed.
        known: Epoch,
    },
    /// The epoch is far ahead.
    #[error("epoch {found} is far ahead of epoch {known}, which is agreed")]
    EpochAhead {
        /// The record's.
        found: Epoch,
        /// What is agreed.
        known: Epoch,
    },
    /// An epoch has one primary.
    #[error("epoch {epoch} is {known}'s, which is agreed, and not {found}'s")]
    OtherPrimary {
        /// The epoch.
        epoch: Epoch,
        /// The record's.
        found: RegionName,
        /// What is agreed.
        known: RegionName,
    },
    /// The database has another system identifier, or none any more.
    #[error("the database has system identifier {0}, which is agreed, and the record says otherwise")]
    OtherSystem(SystemId),
    /// The voters are none that a record can have, or the primary is none of them.
    #[error("the voters {0} are none that a record can have")]
    OddVoters(Voters),
    /// The voters do not follow from those that are agreed.
    #[error("the voters {found} do not follow from {known}, which are agreed")]
    OtherVoters {
        /// The record's.
        found: Voters,
        /// What is agreed.
        known: Voters,
    },
    /// Nobody has ordered it.
    #[error(transparent)]
    Unordered(#[from] Unordered),
    /// A promotion whose epoch began is forgotten.
    #[error("the promotion to {to}, which began epoch {epoch}, is not in the record's past")]
    Forgets {
        /// The region that led.
        to: RegionName,
        /// The epoch.
        epoch: Epoch,
    },
}

/// Whether `found` can be a correct proposer's, where `known` is the highest number known.
///
/// # Errors
/// When it is far ahead.
pub fn number(found: Number, known: Number) -> Result<(), Unlawful> {
    match found.round <= known.round.saturating_add(ROUNDS_AHEAD_MAX) {
        true => Ok(()),
        false => Err(Unlawful::NumberAhead { found, known }),
    }
}

/// The most of a number that another voter claims that is believed: so much that honest ones are reached in a
/// few steps, and a lie leads nowhere.
#[must_use]
pub fn believed(claimed: Number, known: Number) -> Number {
    // Half of it: what is proposed next must not be far ahead itself.
    Number { round: claimed.round.min(known.round.saturating_add(ROUNDS_AHEAD_MAX / 2)), ..claimed }
}

/// Whether a proposal's number goes with `next`, for which it asks a promise as well.
///
/// # Errors
/// When it does not.
pub fn next_number(proposal: Number, next: Number) -> Result<(), Unlawful> {
    let none = next == Number::default();
    match none || next == proposal.next(proposal.proposer, false) {
        true => Ok(()),
        false => Err(Unlawful::OtherNext { proposal, next }),
    }
}

/// Whether a voter that promises `number` can have accepted `accepted`.
///
/// # Errors
/// When it cannot.
pub fn promise(accepted: &Accepted, number: Number) -> Result<(), Unlawful> {
    match accepted.number <= number {
        true => Ok(()),
        false => Err(Unlawful::AbovePromise { accepted: accepted.number, promised: number }),
    }
}

/// Whether `record` is one at all, where `regions` can lead and `voters` can coordinate.
///
/// # Errors
/// What contradicts what.
pub fn form(
    record: &Leadership,
    regions: &BTreeSet<RegionName>,
    voters: &BTreeSet<RegionName>,
) -> Result<(), Unlawful> {
    let leads = [&record.primary].into_iter().chain(record.promotion.iter().map(|promotion| &promotion.to));
    if let Some(other) = leads.into_iter().find(|name| !regions.contains(*name)) {
        return Err(Unlawful::NoRegion(other.clone()));
    }
    if record.history.len() > HISTORY_MAX {
        return Err(Unlawful::LongHistory(record.history.len()));
    }
    if let Some(electorate) = &record.voters {
        // On an operator's word the old primary is lost while another region is promoted.
        let known =
            [&electorate.now, &electorate.lost].into_iter().any(|set| set.regions.contains(&record.primary));
        if !(electorate.is_one() && known) {
            return Err(Unlawful::OddVoters(electorate.now.clone()));
        }
    }
    let Some(promotion) = &record.promotion else { return Ok(()) };
    if !voters.contains(&promotion.coordinator) {
        return Err(Unlawful::NoVoter(promotion.coordinator.clone()));
    }
    let Promotion { step, from, to, epoch, .. } = promotion;
    let fits = match step {
        Step::HandOver | Step::Fence => *epoch > record.epoch && *from == record.primary,
        Step::Promote => *epoch == record.epoch && *to == record.primary,
    };
    // A failover whose target is gone may end with the old primary, in a new epoch.
    match fits && (from != to || *step != Step::HandOver) {
        true => Ok(()),
        false => Err(Unlawful::OddPromotion { to: to.clone(), epoch: *epoch }),
    }
}

/// Whether the voters of `record` can come after those of `agreed`. They do not change while a promotion is
/// in progress.
fn voters_follow(record: &Leadership, agreed: &Leadership) -> Result<(), Unlawful> {
    let Some(known) = &agreed.voters else { return Ok(()) };
    let found = record.voters.clone().unwrap_or_default();
    let id = |of: &Leadership| of.promotion.as_ref().map(|promotion| promotion.id);
    let in_progress = id(agreed).is_some() && id(agreed) == id(record);
    match found.follows(known) && (!in_progress || found == *known) {
        true => Ok(()),
        false => Err(Unlawful::OtherVoters { found: found.now, known: known.now.clone() }),
    }
}

/// Whether `record` can come after `agreed`, in any number of changes. An operator's word makes one voter
/// decide alone, and what the others have agreed on meanwhile is then overruled: a record that was begun on
/// such a word is compared in less.
///
/// # Errors
/// What of `agreed` it contradicts.
pub fn follows(record: &Leadership, agreed: &Leadership) -> Result<(), Unlawful> {
    let (found, known) = (record.epoch, agreed.epoch);
    let ahead = record.promotion.as_ref().map_or(found, |promotion| promotion.epoch.max(found));
    if ahead.0 > known.0.saturating_add(EPOCHS_AHEAD_MAX) {
        return Err(Unlawful::EpochAhead { found: ahead, known });
    }
    match agreed.system_id {
        Some(system_id) if record.system_id.is_some_and(|other| other != system_id) => {
            return Err(Unlawful::OtherSystem(system_id));
        }
        _ => {}
    }
    let known_here = |id: u64| {
        let past = agreed.history.iter().map(|past| &past.promotion);
        past.chain(&agreed.promotion).any(|promotion| promotion.id == id)
    };
    let by_word = |promotion: &Promotion| promotion.forced && !known_here(promotion.id);
    let promotions = record.history.iter().map(|past| &past.promotion).chain(&record.promotion);
    if promotions.into_iter().any(by_word) {
        return Ok(());
    }
    voters_follow(record, agreed)?;
    if found < known {
        return Err(Unlawful::EpochFalls { found, known });
    }
    if found == known && record.primary != agreed.primary {
        let (found, known) = (record.primary.clone(), agreed.primary.clone());
        return Err(Unlawful::OtherPrimary { epoch: record.epoch, found, known });
    }
    if let (Some(system_id), None) = (agreed.system_id, record.system_id) {
        return Err(Unlawful::OtherSystem(system_id));
    }
    // What is older than the oldest that a full history keeps may have fallen out.
    let oldest = match record.history.len() == HISTORY_MAX {
        true => record.history.first().map_or(Epoch(0), |past| past.promotion.epoch),
        false => Epoch(0),
    };
    let kept = |past: &Past| {
        let same = |p: &Promotion| p.id == past.promotion.id && p.epoch == past.promotion.epoch;
        record.history.iter().map(|other| &other.promotion).chain(&record.promotion).any(same)
    };
    let began = agreed.history.iter().filter(|past| past.began() && past.promotion.epoch > oldest);
    match began.clone().find(|past| !kept(past)) {
        None => Ok(()),
        Some(Past { promotion: Promotion { to, epoch, .. }, .. }) => {
            Err(Unlawful::Forgets { to: to.clone(), epoch: *epoch })
        }
    }
}

#[cfg(test)]
mod tests {
    use proto::{Lsn, Timeline};

    use super::*;
    use crate::leadership::{Change, Conflict, Loss, Mode, Next, Order};
    use crate::voters::{Electorate, Hindrance, Membership};

    fn name(text: &str) -> RegionName {
        text.parse().unwrap()
    }

    fn names(texts: &[&str]) -> BTreeSet<RegionName> {
        texts.iter().map(|text| name(text)).collect()
    }

    fn first() -> Leadership {
        Leadership { system_id: Some(SystemId(4)), ..Leadership::first(Epoch(1), name("a")) }
    }

    fn begun(mode: Mode, forced: bool) -> Leadership {
        let lost = if forced { names(&["a"]) } else { [].into() };
        let order = Order { forced, lost, ..Order::new(1, Epoch(1), mode, &name("b")) };
        first().apply(&Change::Begin(order)).unwrap()
    }

    fn advanced(record: &Leadership, next: Next) -> Leadership {
        record.apply(&Change::Advance { id: 1, attempt: 0, next, done: vec![] }).unwrap()
    }

    fn promoting() -> Leadership {
        let next = Next::Promote { fork_lsn: Lsn(50), parent: Timeline(1), loss: Loss::default() };
        advanced(&begun(Mode::Failover, false), next)
    }

    fn over() -> Leadership {
        advanced(&promoting(), Next::Finish { at_us: 0, write_gap_us: 0 })
    }

    fn formed(record: &Leadership) -> Result<(), Unlawful> {
        form(record, &names(&["a", "b"]), &names(&["a", "b", "w"]))
    }

    #[test]
    fn what_a_promotion_goes_through_is_lawful() {
        let back = Next::RollBack { at_us: 0, why: "late".into() };
        let rolled_back = advanced(&begun(Mode::Switchover, false), back);
        let all = [first(), begun(Mode::Switchover, false), rolled_back, promoting(), over()];
        for record in &all {
            assert_eq!(formed(record), Ok(()), "{record:?}");
            assert_eq!(follows(record, &first()), Ok(()), "{record:?}");
            assert_eq!(follows(record, record), Ok(()), "{record:?}");
        }
        assert_eq!(follows(&over(), &promoting()), Ok(()));
        let word = begun(Mode::Failover, true);
        assert_eq!(
            follows(&word, &over()),
            Err(Unlawful::EpochFalls { found: Epoch(1), known: Epoch(2) }),
            "it is known"
        );
        let mut other = word;
        other.promotion.as_mut().unwrap().id = 9;
        assert_eq!(follows(&other, &over()), Ok(()), "an operator's word overrules what others agreed on");
    }

    /// One of each kind that no correct voter sends.
    #[test]
    fn a_record_that_no_correct_voter_sends_is_refused() {
        let stranger = Leadership { primary: name("x"), ..first() };
        assert_eq!(formed(&stranger), Err(Unlawful::NoRegion(name("x"))));
        let witness = Leadership { primary: name("w"), ..first() };
        assert_eq!(formed(&witness), Err(Unlawful::NoRegion(name("w"))), "a witness leads nothing");
        let with = |change: &dyn Fn(&mut Promotion)| {
            let mut record = begun(Mode::Failover, false);
            change(record.promotion.as_mut().unwrap());
            record
        };
        let coordinated = with(&|p| p.coordinator = name("x"));
        assert_eq!(formed(&coordinated), Err(Unlawful::NoVoter(name("x"))));
        let odd = |record: &Leadership| matches!(formed(record), Err(Unlawful::OddPromotion { .. }));
        let mut handing = begun(Mode::Switchover, false);
        handing.promotion.as_mut().unwrap().to = name("a");
        assert!(odd(&handing), "to the primary itself");
        assert_eq!(formed(&with(&|p| p.to = name("a"))), Ok(()), "a failover may end with the old primary");
        assert!(odd(&with(&|p| p.epoch = Epoch(1))), "an epoch that has begun");
        assert!(odd(&with(&|p| p.from = name("b"))), "of another primary");
        assert!(odd(&with(&|p| p.step = Step::Promote)), "an epoch that has not begun");
        let mut long = over();
        long.history = vec![long.history[0].clone(); HISTORY_MAX + 1];
        assert_eq!(formed(&long), Err(Unlawful::LongHistory(HISTORY_MAX + 1)));

        let falls = Unlawful::EpochFalls { found: Epoch(1), known: Epoch(2) };
        assert_eq!(follows(&first(), &over()), Err(falls));
        let far = Leadership { epoch: Epoch(1 << 17), ..over() };
        assert!(matches!(follows(&far, &over()), Err(Unlawful::EpochAhead { .. })));
        let soon = with(&|p| p.epoch = Epoch(1 << 17));
        assert!(matches!(follows(&soon, &first()), Err(Unlawful::EpochAhead { .. })));
        let usurped = Leadership { primary: name("b"), ..first() };
        assert!(matches!(follows(&usurped, &first()), Err(Unlawful::OtherPrimary { .. })));
        for system_id in [None, Some(SystemId(5))] {
            let other = Leadership { system_id, ..first() };
            assert_eq!(follows(&other, &first()), Err(Unlawful::OtherSystem(SystemId(4))));
        }
        let forgets = Leadership { history: Vec::new(), ..over() };
        assert_eq!(follows(&forgets, &over()), Err(Unlawful::Forgets { to: name("b"), epoch: Epoch(2) }));
    }

    #[test]
    fn exactly_the_voters_that_a_change_leads_to_are_lawful() {
        let regions = |texts: &[&str]| Voters { regions: names(texts), ..Voters::default() };
        let file = Electorate::of(regions(&["a", "b"]));
        let by = name("a");
        let add = |text: &str| Change::Voters {
            by: by.clone(),
            membership: Membership::Add { name: name(text), witness: false },
            order: None,
        };
        let changing = first().apply_with(&add("c"), &file).unwrap();
        let settled = changing.apply_with(&Change::Settle { by: by.clone() }, &file).unwrap();
        for (record, agreed) in [(&changing, &first()), (&settled, &changing), (&settled, &first())] {
            assert_eq!((formed(record), follows(record, agreed)), (Ok(()), Ok(())));
        }
        let refused = |found: &Leadership, agreed: &Leadership| {
            matches!(follows(found, agreed), Err(Unlawful::OtherVoters { .. }))
        };
        assert!(refused(&changing, &settled) && refused(&first(), &changing));
        let other = first().apply_with(&add("d"), &file).unwrap();
        assert!(refused(&other, &changing));
        assert!(matches!(changing.apply_with(&add("d"), &file), Err(Conflict::Voters(Hindrance::Unsettled))));
        let gone = Change::Voters {
            by: by.clone(),
            membership: Membership::Remove { name: by.clone() },
            order: None,
        };
        let refusal = Conflict::Voters(Hindrance::IsThePrimary(by.clone()));
        assert_eq!(settled.apply_with(&gone, &file), Err(refusal));
        // The set does not change under a promotion.
        let order = |forced, lost: &[&str]| {
            let order = Order::new(1, Epoch(1), Mode::Failover, &name("b"));
            Change::Begin(Order { forced, lost: names(lost), ..order })
        };
        let promoting = settled.apply_with(&order(false, &[]), &file).unwrap();
        assert!(matches!(
            promoting.apply_with(&add("d"), &file),
            Err(Conflict::Voters(Hindrance::Promotion))
        ));
        let mut moved = promoting.clone();
        moved.voters = Some(settled.voters.clone().unwrap().without(&names(&["c"])));
        assert!(refused(&moved, &promoting));
        let mut headless = settled.clone();
        headless.voters = Some(Electorate::of(regions(&["b", "c"])));
        assert!(matches!(formed(&headless), Err(Unlawful::OddVoters(_))));
        // But on an operator's word, which says that the old primary is lost.
        let word = settled.apply_with(&order(true, &["a", "c"]), &file).unwrap();
        assert_eq!(word.voters.as_ref().map(|voters| &voters.now), Some(&regions(&["b"])));
        assert_eq!((formed(&word), follows(&word, &settled)), (Ok(()), Ok(())));
        let stranger = Change::Begin(Order::new(1, Epoch(1), Mode::Switchover, &name("x")));
        assert_eq!(settled.apply_with(&stranger, &file), Err(Conflict::NoVoter(name("x"))));
    }

    #[test]
    fn numbers_are_near_each_other() {
        let at = |round| Number { round, proposer: 3 };
        assert_eq!(number(at(5).recalled(1), at(5)), Ok(()), "a voter that had lost its memory");
        assert_eq!(number(at(5).next(1, true), at(5)), Ok(()), "an operator's word");
        assert!(matches!(number(at(u64::MAX), at(5)), Err(Unlawful::NumberAhead { .. })));
        assert_eq!(number(at(2), at(9)), Ok(()), "what is behind is outbid, not wrong");
        assert_eq!(
            (believed(at(7), at(5)), believed(at(u64::MAX), at(5))),
            (at(7), at(5 + ROUNDS_AHEAD_MAX / 2))
        );
        assert_eq!((next_number(at(5), at(6)), next_number(at(5), Number::default())), (Ok(()), Ok(())));
        for odd in [at(7), at(5), Number { round: 6, proposer: 4 }] {
            assert!(matches!(next_number(at(5), odd), Err(Unlawful::OtherNext { .. })));
        }
        let accepted = |round| Accepted { number: at(round), record: first() };
        assert_eq!(promise(&accepted(5), at(5)), Ok(()));
        assert!(matches!(promise(&accepted(6), at(5)), Err(Unlawful::AbovePromise { .. })));
    }
}
