//! The lineage of redo: which redo the cluster's newest acknowledged commits stand on, and how far any other
//! redo shares it.
//!
//! Each epoch that began made a timeline with its own number, which leaves its parent's timeline at a fork.
//! So timelines are a tree, and redo up to an LSN on a timeline is a path in it from the root. The *current
//! line* is the path to the newest epoch in which commits were acknowledged. Redo off that line was cut off
//! by a promotion; to lead with such redo would lose commits.
//!
//! ```text
//!   timeline 1 ─────┬───────────╌╌  cut off at the fork of 2
//!                   └─ 2 ───┬───────┬────────▶  the current line, when 4 began in vain or not at all
//!                           │       └─ 4
//!                           └─ 3 ╌╌╌  began in vain: replaced before its promotion was over
//! ```
//!
//! Nothing here is stored: the history of [`Leadership`] says it all. The history is bounded, so redo older
//! than that is on no line.

use proto::{Lsn, Timeline};

use crate::leadership::{Leadership, Past, Promotion};

/// Redo from the beginning up to an LSN, seen from its newest timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Redo {
    /// The newest timeline.
    pub timeline: Timeline,
    /// The end, exclusive.
    pub end_lsn: Lsn,
}

impl Redo {
    /// Redo up to `end_lsn` on `timeline`.
    #[must_use]
    pub fn new(timeline: Timeline, end_lsn: Lsn) -> Redo {
        Redo { timeline, end_lsn }
    }
}

/// The timeline that an epoch begins: it has the epoch's number, so no two regions ever begin one with the
/// same number.
#[must_use]
pub fn timeline_of(epoch: proto::Epoch) -> Timeline {
    Timeline(u32::try_from(epoch.0).unwrap_or(u32::MAX))
}

/// The tree of timelines that a record's history tells of.
#[derive(Debug, Clone, Copy)]
pub struct Lineage<'a>(&'a Leadership);

impl<'a> Lineage<'a> {
    /// The lineage that `leadership` tells of.
    #[must_use]
    pub fn of(leadership: &'a Leadership) -> Lineage<'a> {
        Lineage(leadership)
    }

    /// The promotions whose epoch began, newest first.
    fn begun(self) -> impl Iterator<Item = &'a Promotion> {
        self.0.promotions_begun()
    }

    /// The newest epoch in which commits were acknowledged: its timeline, and the fork at which that begins.
    #[must_use]
    pub fn current_line(self) -> (Timeline, Lsn) {
        let acknowledged = |past: &&Past| past.began() && past.rolled_back.is_none();
        let newest = self.0.history.iter().rev().find(acknowledged);
        newest.map_or((Timeline(1), Lsn::ZERO), |Past { promotion, .. }| {
            (timeline_of(promotion.epoch), promotion.fork_lsn)
        })
    }

    /// Up to where the path to timeline `descendant` runs on `ancestor`: without an end where they are the
    /// same; none where the path does not touch `ancestor`, or where the history does not reach back so far.
    fn shared_end(self, ancestor: Timeline, descendant: Timeline) -> Option<Lsn> {
        let (mut at, mut end_lsn) = (descendant, Lsn(u64::MAX));
        for promotion in self.begun() {
            if at <= ancestor {
                break;
            }
            if timeline_of(promotion.epoch) == at {
                (at, end_lsn) = (Timeline(promotion.parent), end_lsn.min(promotion.fork_lsn));
            }
        }
        (at == ancestor).then_some(end_lsn)
    }

    /// The end of what `redo` has in common with the current line; none where it is on another line
    /// altogether.
    #[must_use]
    pub fn common_with_line(self, redo: Redo) -> Option<Lsn> {
        let (line, _) = self.current_line();
        let shared_end = match redo.timeline > line {
            // The timeline of an epoch that acknowledged nothing: it has what was there when the epoch began.
            true => self.shared_end(line, redo.timeline),
            false => self.shared_end(redo.timeline, line),
        };
        shared_end.map(|end_lsn| redo.end_lsn.min(end_lsn))
    }

    /// How far `redo` is on the current line, where none of it was cut off from the line; else none. To lead
    /// with redo that was cut off would lose what was acknowledged since.
    #[must_use]
    pub fn on_line(self, redo: Redo) -> Option<Lsn> {
        let whole = |common: &Lsn| *common == redo.end_lsn || redo.timeline > self.current_line().0;
        self.common_with_line(redo).filter(whole)
    }

    /// Whether the redo of `longer` begins with all of `shorter`.
    #[must_use]
    pub fn extends(self, shorter: Redo, longer: Redo) -> bool {
        let shared_end = self.shared_end(shorter.timeline, longer.timeline);
        shorter.end_lsn <= longer.end_lsn && shared_end.is_some_and(|end_lsn| shorter.end_lsn <= end_lsn)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proto::{Epoch, RegionName};

    use super::*;
    use crate::leadership::{Change, Loss, Mode, Next, Order};

    fn name(text: &str) -> RegionName {
        text.parse().unwrap()
    }

    fn begin(leadership: &Leadership, id: u64, to: &str, fork_lsn: u64, parent: u32) -> Leadership {
        let order = Order::new(id, leadership.epoch, Mode::Failover, &name(to));
        let begun = leadership.apply(&Change::Begin(order)).unwrap();
        let next = Next::Promote { fork_lsn: Lsn(fork_lsn), parent: Timeline(parent), loss: Loss::default() };
        begun.apply(&Change::Advance { id, attempt: 0, next, done: vec![] }).unwrap()
    }

    fn advance(leadership: &Leadership, id: u64, next: Next) -> Leadership {
        leadership.apply(&Change::Advance { id, attempt: 0, next, done: vec![] }).unwrap()
    }

    const FINISH: Next = Next::Finish { at_us: 1, write_gap_us: 2 };

    #[test]
    fn redo_that_was_cut_off_is_not_on_the_line() {
        let first = Leadership::first(Epoch(1), name("a"));
        let second = advance(&begin(&first, 1, "b", 50, 1), 1, FINISH);
        // Epoch 3 begins in vain, 4 instead of it from timeline 2, and 5 from that.
        let third = begin(&second, 2, "c", 70, 2);
        let on = |leadership: &Leadership, timeline, lsn| {
            Lineage::of(leadership).on_line(Redo::new(Timeline(timeline), Lsn(lsn)))
        };
        assert_eq!(on(&third, 3, 75), Some(Lsn(70)), "what it had when it began");
        assert_eq!(on(&third, 2, 75), Some(Lsn(75)), "nothing was acknowledged on 3");
        let fourth = advance(&begin(&third, 3, "a", 80, 2), 3, FINISH);
        assert_eq!((on(&fourth, 4, 99), on(&fourth, 2, 80)), (Some(Lsn(99)), Some(Lsn(80))));
        assert_eq!((on(&fourth, 2, 81), on(&fourth, 1, 50)), (None, Some(Lsn(50))));
        assert_eq!((on(&fourth, 1, 51), on(&fourth, 3, 75)), (None, None), "cut off");
        // The failover that 3 was given up for is rolled back: epoch 3 goes on, and acknowledges after all.
        let order = Order::new(4, third.epoch, Mode::Failover, &name("a"));
        let back = Next::RollBack { at_us: 1, why: "nobody".into() };
        let third_on = advance(&third.apply(&Change::Begin(order)).unwrap(), 4, back);
        assert_eq!((on(&third_on, 3, 75), on(&third_on, 2, 75)), (Some(Lsn(70)), Some(Lsn(75))));
        let third_on = advance(&third_on, 2, FINISH);
        assert_eq!((on(&third_on, 3, 75), on(&third_on, 2, 75)), (Some(Lsn(75)), None));
    }

    /// A history of promotions, and what redo really is in it: for each timeline its bytes from the
    /// beginning, each byte the number of the timeline on which it was written and its place there.
    #[derive(Debug)]
    struct Model {
        leadership: Leadership,
        timelines: Vec<(u32, Vec<(u32, usize)>)>,
    }

    impl Model {
        /// Each step: which timeline is left, where on it (both drawn), how much is written then, and whether
        /// it acknowledges.
        fn of(steps: &[(usize, usize, usize, bool)]) -> Model {
            let mut model = Model {
                leadership: Leadership::first(Epoch(1), name("a")),
                timelines: vec![(1, (0..20).map(|at| (1, at)).collect())],
            };
            for (index, &(parent, fork, length, acknowledges)) in steps.iter().enumerate() {
                let (parent, redo) = model.timelines[parent % model.timelines.len()].clone();
                let begins = redo.iter().position(|(on, _)| *on == parent).unwrap_or(redo.len());
                let fork = begins + fork % (redo.len() - begins + 1);
                let to = if index % 2 == 0 { "b" } else { "c" };
                let id = index as u64 + 1;
                model.leadership = begin(&model.leadership, id, to, fork as u64, parent);
                if acknowledges {
                    model.leadership = advance(&model.leadership, id, FINISH);
                }
                let timeline = timeline_of(model.leadership.epoch).0;
                let mut redo = redo[..fork].to_vec();
                redo.extend((0..length).map(|at| (timeline, at)));
                model.timelines.push((timeline, redo));
            }
            model
        }

        fn content(&self, timeline: Timeline) -> &[(u32, usize)] {
            let found = self.timelines.iter().find(|(number, _)| *number == timeline.0);
            &found.expect("a timeline of the model").1
        }

        /// All redo that a region can hold: a prefix, under the timeline on which its last byte was written.
        fn all_redo(&self) -> Vec<(Redo, Vec<(u32, usize)>)> {
            let prefixes = self.timelines.iter().flat_map(|(_, redo)| {
                (1..=redo.len()).map(|end| {
                    let on = Timeline(redo[end - 1].0);
                    (Redo::new(on, Lsn(end as u64)), redo[..end].to_vec())
                })
            });
            prefixes.collect()
        }
    }

    fn common(a: &[(u32, usize)], b: &[(u32, usize)]) -> usize {
        a.iter().zip(b).take_while(|(a, b)| a == b).count()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        #[test]
        fn the_lineage_is_what_comparing_all_redo_finds(
            steps in prop::collection::vec((0_usize..8, 0_usize..30, 0_usize..6, any::<bool>()), 0..7)
        ) {
            let model = Model::of(&steps);
            let lineage = Lineage::of(&model.leadership);
            let (line, _) = lineage.current_line();
            let line_content = model.content(line).to_vec();
            let all = model.all_redo();
            for (redo, content) in &all {
                let shared = common(content, &line_content);
                let is_prefix = shared == content.len();
                let continues_line = shared == line_content.len();
                match lineage.on_line(*redo) {
                    Some(end) if redo.timeline > line => {
                        prop_assert_eq!(end.0, shared as u64);
                    }
                    Some(end) => {
                        prop_assert!(is_prefix || continues_line, "{:?} is not on the line", redo);
                        prop_assert_eq!(end, redo.end_lsn);
                    }
                    None => prop_assert!(!is_prefix, "{:?} is on the line", redo),
                }
                if let Some(end) = lineage.common_with_line(*redo) {
                    prop_assert!(end.0 <= redo.end_lsn.0);
                    prop_assert!(redo.timeline == line || end.0 <= shared as u64);
                }
                for (other, longer) in &all {
                    let begins_with = longer.len() >= content.len() && longer[..content.len()] == content[..];
                    prop_assert_eq!(lineage.extends(*redo, *other), begins_with, "{:?} in {:?}", redo, other);
                }
            }
        }
    }
}
