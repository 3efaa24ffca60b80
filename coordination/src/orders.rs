//! Whether what a record says was ordered: by an operator, whose order is in the record and signed, or by a
//! region by itself, where the file lets regions do that.
//!
//! A voter judges what is new to it. Of the promotions in a record the newest [`KEPT`] have their orders; one
//! that a voter has not heard of needs an order that fits it, and an epoch needs a promotion that began it.
//! The same of the voters: a set that a voter has not heard of is the one that an operator has signed.
//! So neither a region nor a witness can begin a promotion, or change who votes, however lawful the record
//! is that it makes up; and with the record goes who wanted it.

use std::collections::BTreeSet;
use std::fmt;

use proto::{Epoch, RegionName};

use crate::leadership::{Leadership, Mode, Past, Promotion, Step};
use crate::planted::{self, Bug};
use crate::signed::{KEPT, SignedOrder};
use crate::voters::{Electorate, Voters};

/// How far the clock of the machine on which an operator signs may be behind a voter's, microseconds.
const CLOCKS_APART_US: i64 = 3_600_000_000;

/// What was ordered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A promotion.
    Promotion {
        /// Drawn by whoever signed it: it begins once.
        id: u64,
        /// The epoch in which it was given.
        epoch: Epoch,
        /// How.
        mode: Mode,
        /// The region that shall lead.
        to: RegionName,
        /// The operator's word that the old primary does not run.
        forced: bool,
        /// The voters besides the old primary that this word counts as lost.
        lost: BTreeSet<RegionName>,
    },
    /// Who votes from now on, those that are counted as lost included.
    Voters {
        /// How many steps the electorate had taken by then.
        steps: u64,
        /// The voters.
        voters: Voters,
    },
}

/// An order whose signature is an operator's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// What was ordered.
    pub content: Content,
    /// When it was signed, microseconds since 1970, by the operator's clock.
    pub at_us: i64,
}

/// Failovers that regions order by themselves, where the file lets them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Automatic {
    /// How long nobody must have heard the primary, microseconds.
    pub after_us: u64,
    /// The most redo that may be lost, bytes.
    pub loss_max_bytes: u64,
}

/// How a voter tells orders from what was made up.
pub trait Orders: fmt::Debug + Send + Sync {
    /// Whether what nobody has signed is refused.
    fn required(&self) -> bool;

    /// Whether orders go into the record at all: an older voter does not read one that has some.
    fn carried(&self) -> bool;

    /// What regions may order by themselves.
    fn automatic(&self) -> Option<Automatic>;

    /// What an operator's order says.
    ///
    /// # Errors
    /// Why it is none.
    fn verify(&self, order: &SignedOrder) -> Result<Verified, String>;
}

/// What a voter knows by which it judges.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    /// The newest record that it knows to be agreed.
    pub agreed: Option<&'a Leadership>,
    /// The one that it has accepted.
    pub accepted: &'a Leadership,
    /// Who votes where a record does not say.
    pub file: &'a Electorate,
    /// How long ago it last answered a primary, microseconds; none where it has not since it was started.
    pub heard_us: Option<u64>,
    /// Its time, microseconds since 1970.
    pub now_us: i64,
}

/// Why something in a record was ordered by nobody.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unordered {
    /// There is no order.
    #[error("no operator has signed the {mode} to {to}")]
    Unsigned {
        /// How it began.
        mode: Mode,
        /// The region that shall lead.
        to: RegionName,
    },
    /// The order is none.
    #[error("the order to promote {to} is not an operator's: {why}")]
    NoOrder {
        /// The region that shall lead.
        to: RegionName,
        /// What is wrong with it.
        why: String,
    },
    /// The order is of something else.
    #[error("the order in the record is another one than the {mode} to {to}")]
    OtherOrder {
        /// How it began.
        mode: Mode,
        /// The region that shall lead.
        to: RegionName,
    },
    /// The order is old, and yet new to a voter that would have heard of it.
    #[error("the order to promote {to} was signed long ago, or by a machine whose clock is late")]
    OldOrder {
        /// The region that shall lead.
        to: RegionName,
    },
    /// Regions may order failovers, and the primary of this one is there.
    #[error("region {to} orders a failover to itself, and this voter hears the primary")]
    HearsThePrimary {
        /// The region that shall lead.
        to: RegionName,
    },
    /// A promotion stands before one that is known, and is not known itself.
    #[error("the promotion to {to} in epoch {epoch} was put in among those that are known")]
    PutIn {
        /// The region that led.
        to: RegionName,
        /// The epoch.
        epoch: Epoch,
    },
    /// An epoch that no promotion began.
    #[error("no promotion in the record began epoch {epoch} of {primary}")]
    NoPromotion {
        /// The epoch.
        epoch: Epoch,
        /// Who leads it.
        primary: RegionName,
    },
    /// The voters are others, and nobody has ordered that.
    #[error("no operator has ordered that these vote: {voters}{why}")]
    Voters {
        /// The record's.
        voters: Voters,
        /// What is wrong with the order; empty where there is none.
        why: String,
    },
    /// Voters are counted as lost on nobody's word.
    #[error("no operator has said that these are lost: {0}")]
    Lost(Voters),
}

/// Whether everything in `record` that is new to a voter was ordered.
///
/// # Errors
/// What was not.
pub fn judge(record: &Leadership, known: Known<'_>, orders: &dyn Orders) -> Result<(), Unordered> {
    if !orders.required() || planted::is(Bug::TakesUnsigned) {
        return Ok(());
    }
    let lost = promotions(record, known, orders)?;
    began(record, known)?;
    voters(record, known, &lost, orders)
}

/// Whether those who vote by `record` are what an operator has signed, or what they were: only then they are
/// asked what is agreed.
///
/// # Errors
/// Why not.
pub fn judge_voters(record: &Leadership, known: Known<'_>, orders: &dyn Orders) -> Result<(), Unordered> {
    if !orders.required() || planted::is(Bug::TakesUnsigned) {
        return Ok(());
    }
    // Who is counted as lost by a promotion that nobody has ordered is not lost.
    let lost = promotions(record, known, orders).unwrap_or_default();
    voters(record, known, &lost, orders)
}

/// Epoch and primary are those of the newest promotion that began, or what they were.
fn began(record: &Leadership, known: Known<'_>) -> Result<(), Unordered> {
    let begun = record.promotions_begun().next();
    let fits = match begun {
        Some(p) => p.epoch == record.epoch && p.to == record.primary,
        None => known.records().any(|r| r.epoch == record.epoch && r.primary == record.primary),
    };
    match fits {
        true => Ok(()),
        false => Err(Unordered::NoPromotion { epoch: record.epoch, primary: record.primary.clone() }),
    }
}

impl<'a> Known<'a> {
    fn records(self) -> impl Iterator<Item = &'a Leadership> {
        self.agreed.into_iter().chain([self.accepted])
    }

    /// Whether it has heard of just this, in progress or over as it is now.
    fn has(self, promotion: &Promotion, in_progress: bool) -> bool {
        let same = |other: &Promotion| {
            let Promotion { id, epoch, mode, from, to, forced, lost, loss_max_bytes, .. } = other;
            *id == promotion.id
                && *epoch == promotion.epoch
                && *mode == promotion.mode
                && (from, to) == (&promotion.from, &promotion.to)
                && (*forced, *loss_max_bytes) == (promotion.forced, promotion.loss_max_bytes)
                && *lost == promotion.lost
        };
        self.records().any(|record| {
            let current = record.promotion.as_ref().is_some_and(same);
            let over = record.history.iter().filter(|past| same(&past.promotion));
            // What was given up for another, and goes on, has begun: no other comes back.
            let comes_back = |past: &Past| past.began() && past.rolled_back.is_some();
            match in_progress {
                true => current || over.clone().any(comes_back),
                false => current || over.clone().next().is_some(),
            }
        })
    }

    /// Whether promotion `id` is over, as far as it knows: an order begins one once.
    fn is_over(self, id: u64) -> bool {
        self.agreed.unwrap_or(self.accepted).ended(id).is_some()
    }

    /// Whether a voter that has not heard of an order would have, had it been given when it says.
    fn would_have_heard(self, at_us: i64) -> bool {
        let heard_us = self.heard_us.and_then(|us| i64::try_from(us).ok());
        heard_us.is_some_and(|us| at_us < self.now_us.saturating_sub(us).saturating_sub(CLOCKS_APART_US))
    }
}

/// Those that are new: all before the newest that is known. Returns who is counted as lost by what was
/// ordered.
fn promotions(
    record: &Leadership,
    known: Known<'_>,
    orders: &dyn Orders,
) -> Result<BTreeSet<RegionName>, Unordered> {
    let (mut met_known, mut lost) = (false, BTreeSet::new());
    let mut ids: Vec<u64> = Vec::new();
    for (place, promotion) in record.promotions_newest_first().enumerate() {
        let in_progress = place == 0 && record.promotion.is_some();
        let Promotion { id, to, epoch, forced, .. } = promotion;
        if known.has(promotion, in_progress) {
            met_known = true;
            lost.extend(promotion.lost.iter().cloned());
            continue;
        }
        if met_known {
            return Err(Unordered::PutIn { to: to.clone(), epoch: *epoch });
        }
        // One whose target was gone has several places, side by side.
        match ids.last() == Some(id) {
            false if ids.contains(id) => return Err(Unordered::PutIn { to: to.clone(), epoch: *epoch }),
            false => ids.push(*id),
            true => {}
        }
        if ids.len() <= KEPT || *forced || !promotion.lost.is_empty() {
            was_ordered(promotion, record, known, orders)?;
            lost.extend(promotion.lost.iter().cloned());
        }
    }
    Ok(lost)
}

fn was_ordered(
    promotion: &Promotion,
    record: &Leadership,
    known: Known<'_>,
    orders: &dyn Orders,
) -> Result<(), Unordered> {
    let Promotion { to, mode, .. } = promotion;
    let other = || Unordered::OtherOrder { mode: *mode, to: to.clone() };
    if known.is_over(promotion.id) {
        return Err(other());
    }
    let Some(order) = &promotion.order else {
        return by_itself(promotion, known, orders);
    };
    let verified = orders.verify(order).map_err(|why| Unordered::NoOrder { to: to.clone(), why })?;
    if !fits(&verified.content, promotion, record) {
        return Err(other());
    }
    match verified.content {
        Content::Promotion { epoch, .. } if known.agreed.is_some_and(|agreed| epoch < agreed.epoch) => {
            Err(other())
        }
        _ if known.would_have_heard(verified.at_us) => Err(Unordered::OldOrder { to: to.clone() }),
        _ if verified.at_us > known.now_us.saturating_add(CLOCKS_APART_US) => {
            Err(Unordered::OldOrder { to: to.clone() })
        }
        _ => Ok(()),
    }
}

/// Whether this is what began with that promotion. Where its target was gone, another region may be promoted
/// in its place.
fn fits(content: &Content, promotion: &Promotion, record: &Leadership) -> bool {
    let Content::Promotion { id, epoch, mode, to, forced, lost } = content else { return false };
    let places = || record.promotions_newest_first().filter(|place| place.id == promotion.id);
    let replaced = *to != promotion.to && promotion.mode == Mode::Failover;
    // A switchover is given up for another target only once its own epoch had begun.
    let had_begun = || places().any(|place| place.to == *to && place.step == Step::Promote);
    let same = *to == promotion.to && *mode == promotion.mode;
    // The old primary is counted as lost besides those who are named.
    let old_primary = places().last().map(|first| &first.from);
    let counted = match forced {
        true => {
            let mut all = lost.clone();
            all.extend(old_primary.cloned());
            promotion.lost == all
        }
        false => promotion.lost.is_empty(),
    };
    (same || replaced && (*mode == Mode::Failover || had_begun()))
        && *id == promotion.id
        && *epoch < promotion.epoch
        && *forced == promotion.forced
        && promotion.loss_max_bytes.is_none()
        && counted
}

/// Nobody has signed it: it is a failover that a region has ordered, as the file lets it, or nothing.
fn by_itself(promotion: &Promotion, known: Known<'_>, orders: &dyn Orders) -> Result<(), Unordered> {
    let Promotion { to, mode, .. } = promotion;
    let allowed = orders.automatic().filter(|automatic| {
        let loss = promotion.loss_max_bytes;
        *mode == Mode::Failover
            && !promotion.forced
            && promotion.lost.is_empty()
            && loss.is_some_and(|bytes| bytes <= automatic.loss_max_bytes)
    });
    let Some(automatic) = allowed else {
        return Err(Unordered::Unsigned { mode: *mode, to: to.clone() });
    };
    // It was decided where a majority had not heard the primary for as long as that.
    match known.heard_us.is_some_and(|us| us < automatic.after_us / 2) {
        true => Err(Unordered::HearsThePrimary { to: to.clone() }),
        false => Ok(()),
    }
}

fn voters(
    record: &Leadership,
    known: Known<'_>,
    ordered: &BTreeSet<RegionName>,
    orders: &dyn Orders,
) -> Result<(), Unordered> {
    let Some(found) = &record.voters else { return Ok(()) };
    let mut lost: BTreeSet<&RegionName> = known
        .records()
        .filter_map(|record| record.voters.as_ref())
        .flat_map(|voters| voters.lost.names())
        .collect();
    lost.extend(ordered);
    if found.lost.names().any(|name| !lost.contains(name)) {
        return Err(Unordered::Lost(found.lost.clone()));
    }
    let all = found.with_lost();
    let heard = |record: &Leadership| record.electorate(known.file).with_lost() == all;
    // Before it knows what is agreed, what it has accepted may have been given up.
    let before = || known.agreed.is_none() && known.accepted.voters.as_ref().is_some_and(|v| v.was() == all);
    // The first primary writes down whom its file names.
    let none_yet = |record: &Leadership| record.voters.is_none() && record.system_id.is_none();
    let first = || found.steps == 0 && known.records().all(none_yet);
    if known.records().any(heard) || before() || first() {
        return Ok(());
    }
    let refused = |why: String| Unordered::Voters { voters: all.clone(), why };
    let order = found.order.as_ref().ok_or_else(|| refused(String::new()))?;
    let verified = orders.verify(order).map_err(|why| refused(format!(": {why}")))?;
    let Content::Voters { steps, voters } = &verified.content else {
        return Err(refused(": the order is another one".into()));
    };
    let agreed = known.agreed.and_then(|agreed| agreed.voters.as_ref()).map_or(0, |voters| voters.steps);
    match *voters == all && *steps < found.steps && *steps >= agreed {
        true if known.would_have_heard(verified.at_us) => Err(refused(": the order is an old one".into())),
        true => Ok(()),
        false => Err(refused(": the order is another one".into())),
    }
}

#[cfg(test)]
mod tests {
    use proto::{Lsn, SystemId, Timeline};

    use super::*;
    use crate::leadership::{Change, Loss, Next, Order};
    use crate::voters::Membership;

    /// An order is signed here when it is in the list, under the number that its bytes are.
    #[derive(Debug, Default)]
    struct Signed {
        orders: Vec<Verified>,
        automatic: Option<Automatic>,
    }

    impl Signed {
        fn sign(&mut self, content: Content) -> Option<SignedOrder> {
            self.orders.push(Verified { content, at_us: AT_US });
            SignedOrder::of(vec![u8::try_from(self.orders.len()).unwrap()])
        }
    }

    impl Orders for Signed {
        fn required(&self) -> bool {
            true
        }

        fn carried(&self) -> bool {
            true
        }

        fn automatic(&self) -> Option<Automatic> {
            self.automatic
        }

        fn verify(&self, order: &SignedOrder) -> Result<Verified, String> {
            let place = usize::from(order.bytes()[0]).checked_sub(1);
            let known = place.and_then(|place| self.orders.get(place));
            known.cloned().ok_or_else(|| "the signature is not an operator's".into())
        }
    }

    /// When all orders here were signed, and how long afterwards a voter judges them.
    const AT_US: i64 = 1_000_000_000_000;
    const NOW_US: i64 = AT_US + 1_000_000;

    fn name(text: &str) -> RegionName {
        text.parse().unwrap()
    }

    fn names(texts: &[&str]) -> BTreeSet<RegionName> {
        texts.iter().map(|text| name(text)).collect()
    }

    fn voting(regions: &[&str]) -> Electorate {
        Electorate::of(Voters { regions: names(regions), ..Voters::default() })
    }

    fn first() -> Leadership {
        let voters = Some(voting(&["a", "b", "c"]));
        Leadership { system_id: Some(SystemId(4)), voters, ..Leadership::first(Epoch(1), name("a")) }
    }

    fn content(id: u64, epoch: u64, mode: Mode, to: &str) -> Content {
        Content::Promotion { id, epoch: Epoch(epoch), mode, to: name(to), forced: false, lost: [].into() }
    }

    fn begin(record: &Leadership, id: u64, mode: Mode, to: &str, signed: Option<SignedOrder>) -> Leadership {
        let order = Order { signed, ..Order::new(id, record.epoch, mode, &name(to)) };
        record.apply(&Change::Begin(order)).unwrap()
    }

    fn advance(record: &Leadership, id: u64, next: Next) -> Leadership {
        record.apply(&Change::Advance { id, attempt: 0, next, done: vec![] }).unwrap()
    }

    fn finish(record: &Leadership, id: u64) -> Leadership {
        let next = Next::Promote { fork_lsn: Lsn(50), parent: Timeline(1), loss: Loss::default() };
        advance(&advance(record, id, next), id, Next::Finish { at_us: 0, write_gap_us: 0 })
    }

    fn back(record: &Leadership, id: u64) -> Leadership {
        advance(record, id, Next::RollBack { at_us: 0, why: "late".into() })
    }

    struct Voter {
        agreed: Option<Leadership>,
        accepted: Leadership,
        heard_us: Option<u64>,
    }

    impl Voter {
        fn judge(&self, record: &Leadership, signed: &Signed) -> Result<(), Unordered> {
            judge(record, known_of(self), signed)
        }
    }

    fn voter() -> Voter {
        Voter { agreed: Some(first()), accepted: first(), heard_us: Some(1000) }
    }

    #[test]
    fn what_an_operator_has_signed_is_taken_wherever_it_is_met() {
        let mut signed = Signed::default();
        let order = signed.sign(content(7, 1, Mode::Switchover, "b"));
        let begun = begin(&first(), 7, Mode::Switchover, "b", order);
        let over = finish(&begun, 7);
        let new = Voter { agreed: None, accepted: first(), heard_us: None };
        for voter in [voter(), new] {
            for record in [&first(), &begun, &over, &back(&begun, 7)] {
                assert_eq!(voter.judge(record, &signed), Ok(()), "{record:?}");
            }
        }
        // Whose target was gone: another one leads in its place.
        let order = signed.sign(content(8, 1, Mode::Failover, "b"));
        let fencing = begin(&first(), 8, Mode::Failover, "b", order);
        let replaced = advance(&fencing, 8, Next::Replace { to: name("c"), at_us: 0 });
        assert_eq!(voter().judge(&replaced, &signed), Ok(()));
    }

    #[test]
    fn what_nobody_has_signed_is_refused_each_kind() {
        let mut signed = Signed::default();
        let to = || name("b");
        let made_up = begin(&first(), 7, Mode::Failover, "b", None);
        let unsigned = Unordered::Unsigned { mode: Mode::Failover, to: to() };
        assert_eq!(voter().judge(&made_up, &signed), Err(unsigned.clone()));
        assert_eq!(voter().judge(&finish(&made_up, 7), &signed), Err(unsigned), "nor once it is over");
        let forged = begin(&first(), 7, Mode::Failover, "b", SignedOrder::of(vec![99]));
        assert!(matches!(voter().judge(&forged, &signed), Err(Unordered::NoOrder { .. })));
        let epoch = Leadership { epoch: Epoch(2), primary: to(), ..first() };
        let no_promotion = Unordered::NoPromotion { epoch: Epoch(2), primary: to() };
        assert_eq!(voter().judge(&epoch, &signed), Err(no_promotion), "an epoch without a promotion");

        let mut other = |content: Content, id: u64, mode: Mode, to: &str| {
            let order = signed.sign(content);
            let begun = begin(&first(), id, mode, to, order);
            voter().judge(&begun, &signed)
        };
        let refused = |mode, to| Err(Unordered::OtherOrder { mode, to });
        let (switchover, failover) = (Mode::Switchover, Mode::Failover);
        assert_eq!(other(content(7, 1, switchover, "c"), 7, switchover, "b"), refused(switchover, to()));
        assert_eq!(other(content(7, 1, switchover, "b"), 7, failover, "b"), refused(failover, to()));
        assert_eq!(other(content(6, 1, failover, "b"), 7, failover, "b"), refused(failover, to()));
        assert_eq!(
            other(content(7, 0, failover, "b"), 7, failover, "b"),
            refused(failover, to()),
            "an old epoch"
        );
        assert_eq!(other(content(7, 2, failover, "b"), 7, failover, "b"), refused(failover, to()), "its own");
        let voters = Content::Voters { steps: 0, voters: voting(&["a", "b"]).now };
        assert_eq!(other(voters, 7, failover, "b"), refused(failover, to()));
    }

    #[test]
    fn an_operators_word_is_signed_with_those_it_counts_as_lost() {
        let mut signed = Signed::default();
        let forced = |lost: &[&str]| match content(7, 1, Mode::Failover, "b") {
            Content::Promotion { id, epoch, mode, to, .. } => {
                Content::Promotion { id, epoch, mode, to, forced: true, lost: names(lost) }
            }
            voters => voters,
        };
        let begun = |lost: &[&str], order| {
            let order = Order {
                forced: true,
                lost: names(lost),
                signed: order,
                ..Order::new(7, Epoch(1), Mode::Failover, &name("b"))
            };
            first().apply(&Change::Begin(order)).unwrap()
        };
        let order = signed.sign(forced(&[]));
        assert_eq!(voter().judge(&begun(&["a"], order.clone()), &signed), Ok(()), "the old primary is meant");
        let more = voter().judge(&begun(&["a", "c"], order.clone()), &signed);
        assert!(matches!(more, Err(Unordered::OtherOrder { .. })), "{more:?}");
        let order = signed.sign(forced(&["c"]));
        assert_eq!(voter().judge(&begun(&["a", "c"], order), &signed), Ok(()));
        let word = signed.sign(content(7, 1, Mode::Failover, "b"));
        assert!(voter().judge(&begun(&["a"], word), &signed).is_err(), "no word was given");
        let lost = Leadership { voters: Some(voting(&["a", "b", "c"]).without(&names(&["c"]))), ..first() };
        assert!(matches!(voter().judge(&lost, &signed), Err(Unordered::Lost(_))));
    }

    #[test]
    fn an_order_is_not_used_long_after_it_was_given() {
        let mut signed = Signed::default();
        let order = signed.sign(content(7, 1, Mode::Failover, "b"));
        let begun = begin(&first(), 7, Mode::Failover, "b", order);
        let judge = |heard_us, late_us| {
            let (file, first) = (voting(&["a", "b", "c"]), first());
            let now_us = NOW_US + late_us;
            let known = Known { agreed: Some(&first), accepted: &first, file: &file, heard_us, now_us };
            super::judge(&begun, known, &signed)
        };
        assert_eq!(judge(Some(1000), CLOCKS_APART_US - 2_000_000), Ok(()));
        assert_eq!(judge(Some(1000), CLOCKS_APART_US), Err(Unordered::OldOrder { to: name("b") }));
        assert_eq!(judge(None, CLOCKS_APART_US * 99), Ok(()), "one that was away hears of it late");
        assert_eq!(judge(Some(99 * 3_600_000_000), CLOCKS_APART_US * 50), Ok(()), "and one that was cut off");
    }

    #[test]
    fn a_failover_by_itself_is_what_the_file_lets_a_region_order() {
        let order = |loss_max_bytes| {
            let order = Order { loss_max_bytes, ..Order::new(7, Epoch(1), Mode::Failover, &name("b")) };
            first().apply(&Change::Begin(order)).unwrap()
        };
        let signed = Signed {
            automatic: Some(Automatic { after_us: 10_000_000, loss_max_bytes: 100 }),
            ..Signed::default()
        };
        let hears = |heard_us| Voter { heard_us, ..voter() };
        assert_eq!(hears(Some(5_000_000)).judge(&order(Some(100)), &signed), Ok(()));
        assert_eq!(hears(None).judge(&order(Some(100)), &signed), Ok(()), "it was just started");
        let heard = hears(Some(4_999_999)).judge(&order(Some(100)), &signed);
        assert_eq!(heard, Err(Unordered::HearsThePrimary { to: name("b") }));
        for more in [None, Some(101)] {
            let refused = hears(None).judge(&order(more), &signed);
            assert!(matches!(refused, Err(Unordered::Unsigned { .. })), "{more:?}");
        }
        assert!(hears(None).judge(&order(Some(1)), &Signed::default()).is_err(), "the file does not let it");
    }

    #[test]
    fn of_many_promotions_the_newest_have_orders_and_none_is_put_in_among_them() {
        let mut signed = Signed::default();
        let mut record = first();
        let mut records = vec![record.clone()];
        for id in 1..=20 {
            let order = signed.sign(content(id, 1, Mode::Switchover, "b"));
            record = back(&begin(&record, id, Mode::Switchover, "b", order), id);
            records.push(record.clone());
        }
        let with_orders = record.history.iter().filter(|past| past.promotion.order.is_some());
        assert_eq!(with_orders.count(), KEPT);
        assert_eq!(voter().judge(&record, &signed), Ok(()), "one that has slept through all of them");
        let knows =
            Voter { agreed: Some(records[15].clone()), accepted: records[16].clone(), heard_us: None };
        assert_eq!(knows.judge(&record, &signed), Ok(()));
        let mut made_up = record.clone();
        let mut past = made_up.history[3].clone();
        (past.promotion.id, past.promotion.step, past.promotion.epoch) = (99, Step::Promote, Epoch(2));
        made_up.history.insert(3, past);
        (made_up.epoch, made_up.primary) = (Epoch(2), name("b"));
        let refused = knows.judge(&made_up, &signed);
        assert!(matches!(refused, Err(Unordered::PutIn { .. })), "{refused:?}");
    }

    /// What a voter knows it knows by all that was decided, and not by a number.
    #[test]
    fn what_is_over_does_not_come_back_and_no_known_number_covers_something_else() {
        let mut signed = Signed::default();
        let order = signed.sign(content(7, 1, Mode::Switchover, "b"));
        let rolled_back = back(&begin(&first(), 7, Mode::Switchover, "b", order.clone()), 7);
        let knows = Voter { agreed: Some(rolled_back.clone()), accepted: rolled_back.clone(), ..voter() };
        assert_eq!(knows.judge(&rolled_back, &signed), Ok(()));
        let again = |change: &dyn Fn(&mut Promotion)| {
            let mut promotion = rolled_back.history[0].promotion.clone();
            change(&mut promotion);
            let promotion = Some(promotion);
            knows.judge(&Leadership { promotion, ..rolled_back.clone() }, &signed)
        };
        assert!(again(&|_| {}).is_err(), "it was given up");
        assert!(again(&|p| (p.mode, p.step) = (Mode::Failover, Step::Fence)).is_err());
        assert!(again(&|p| p.order = None).is_err());
        let mut more = rolled_back.clone();
        more.history.push(more.history[0].clone());
        more.history[1].promotion.lost = names(&["c"]);
        assert!(knows.judge(&more, &signed).is_err(), "another entry under a known number");
        let mut lost = rolled_back.clone();
        lost.history[0].promotion.lost = names(&["a", "c"]);
        lost.voters = Some(voting(&["a", "b", "c"]).without(&names(&["a", "c"])));
        assert!(knows.judge(&lost, &signed).is_err(), "nobody has said that they are lost");
        assert!(judge_voters(&lost, known_of(&knows), &signed).is_err());

        // One that led once does not lead again because it did.
        let order = signed.sign(content(8, 1, Mode::Failover, "b"));
        let led = finish(&begin(&first(), 8, Mode::Failover, "b", order), 8);
        let order = signed.sign(content(9, 2, Mode::Failover, "a"));
        let now = finish(&begin(&led, 9, Mode::Failover, "a", order), 9);
        let restarted = Voter { agreed: None, accepted: now.clone(), heard_us: None };
        let old = Leadership { epoch: Epoch(2), primary: name("b"), ..now.clone() };
        assert!(matches!(restarted.judge(&old, &signed), Err(Unordered::NoPromotion { .. })));
        assert_eq!(restarted.judge(&now, &signed), Ok(()));
    }

    #[test]
    fn one_order_in_many_places_hides_none_behind_it() {
        let mut signed = Signed::default();
        let order = signed.sign(content(7, 1, Mode::Switchover, "b"));
        let rolled_back = back(&begin(&first(), 7, Mode::Switchover, "b", order), 7);
        let mut record = rolled_back.clone();
        let mut forged = record.history[0].clone();
        (forged.promotion.id, forged.promotion.order) = (99, None);
        record.history = std::iter::once(forged).chain(vec![rolled_back.history[0].clone(); KEPT]).collect();
        assert!(matches!(voter().judge(&record, &signed), Err(Unordered::Unsigned { .. })));
    }

    fn known_of(voter: &Voter) -> Known<'_> {
        static FILE: std::sync::OnceLock<Electorate> = std::sync::OnceLock::new();
        let file = FILE.get_or_init(|| voting(&["a", "b", "c", "d"]));
        let Voter { agreed, accepted, heard_us } = voter;
        Known { agreed: agreed.as_ref(), accepted, file, heard_us: *heard_us, now_us: NOW_US }
    }

    #[test]
    fn who_votes_is_what_an_operator_has_signed_or_what_it_was() {
        let mut signed = Signed::default();
        let change = |record: &Leadership, membership: &Membership, order: Option<SignedOrder>| {
            let (by, membership) = (record.primary.clone(), membership.clone());
            record.apply(&Change::Voters { by, membership, order }).unwrap()
        };
        let remove = Membership::Remove { name: name("c") };
        let made_up = change(&first(), &remove, None);
        assert!(matches!(voter().judge(&made_up, &signed), Err(Unordered::Voters { .. })));
        let after = first().voters.unwrap().after(&remove);
        let order = signed.sign(Content::Voters { steps: 0, voters: after.clone() });
        let changed = change(&first(), &remove, order.clone());
        let settled = changed.apply(&Change::Settle { by: name("a") }).unwrap();
        assert_eq!(voter().judge(&changed, &signed), Ok(()));
        assert_eq!(voter().judge(&settled, &signed), Ok(()), "also for one that has slept through it");
        let others = signed.sign(Content::Voters { steps: 0, voters: voting(&["a", "b"]).now });
        let add = Membership::Add { name: name("d"), witness: false };
        let added = voter().judge(&change(&first(), &add, others), &signed);
        assert!(added.is_err(), "also where the voter's own file names it");
        let other = Membership::Remove { name: name("b") };
        assert!(
            voter().judge(&change(&first(), &other, order.clone()), &signed).is_err(),
            "of another change"
        );
        // Once they vote again, the order to remove them is over.
        let back = Voter {
            agreed: Some(Leadership {
                voters: Some(Electorate { steps: 9, ..voting(&["a", "b", "c"]) }),
                ..first()
            }),
            ..voter()
        };
        let replayed =
            Leadership { voters: Some(Electorate { steps: 10, order, ..Electorate::of(after) }), ..first() };
        let refused = back.judge(&replayed, &signed);
        assert!(matches!(refused, Err(Unordered::Voters { .. })), "{refused:?}");
    }
}
