//! Finds events by comparing what a daemon is from one moment to the next. Pure: it is given what is seen,
//! and says what to note.
//!
//! What flickers is no event: a trouble counts once it has lasted for a while, and is over when it is gone.

use std::collections::BTreeMap;

use coordination::Leadership;
use coordination::leadership::Past;
use coordination::region::Part;
use proto::{Lsn, RegionName};

use super::{Kind, Note};

/// How long commits must be held to be news, microseconds.
const HELD_US: u64 = 1_000_000;

/// How long a copy must be away to be lost, microseconds.
const COPY_US: u64 = 2_000_000;

/// How long a secondary must not stream to be news, microseconds.
const SECONDARY_US: u64 = 2_000_000;

/// How long a region must be hindered to be news, microseconds.
const HINDERED_US: u64 = 2_000_000;

/// Redo that gives way to room again and again is news once in so long, microseconds.
const GAVE_WAY_US: i64 = 3_600_000_000;

/// What holds commits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// In words.
    pub why: String,
    /// It is the rule that commits wait so for a moment: they are held only when none returns.
    pub momentary: bool,
    /// Up to where they returned.
    pub released_lsn: Lsn,
}

/// How a copy of the volume is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopySeen {
    /// It has everything.
    Whole,
    /// It is being opened or filled.
    Coming,
    /// It takes nothing, and why.
    Away(String),
}

/// What is seen of a daemon at one moment.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Its region or witness.
    pub me: RegionName,
    /// The part that it plays; none for a witness.
    pub part: Option<Part>,
    /// The record of who leads, as it has accepted it.
    pub record: Leadership,
    /// What holds commits; none where they return, or where none are taken.
    pub held: Option<Held>,
    /// The copies of its volume.
    pub copies: Vec<(String, CopySeen)>,
    /// When its volume dropped redo earlier than it is to be kept, as a disk was nearly full, microseconds
    /// since 1970.
    pub gave_way_us: Option<i64>,
    /// The secondaries that it ships to, whether each streams (none while it is seeded: that is told by the
    /// region itself), and the state of each in words.
    pub secondaries: Vec<(String, Option<bool>, String)>,
    /// Why it cannot do what the record calls for; empty while it can.
    pub trouble: String,
}

/// A trouble that has begun, or is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Edge {
    Begun,
    Over,
}

#[derive(Debug, Default)]
struct Alarm {
    since_us: Option<u64>,
    raised: bool,
}

impl Alarm {
    fn look(&mut self, at_us: u64, bad: bool, after_us: u64) -> Option<Edge> {
        if !bad {
            self.since_us = None;
            return std::mem::take(&mut self.raised).then_some(Edge::Over);
        }
        let since_us = *self.since_us.get_or_insert(at_us);
        if self.raised || at_us.saturating_sub(since_us) < after_us {
            return None;
        }
        self.raised = true;
        Some(Edge::Begun)
    }
}

/// What was seen before, as far as it decides what is news.
#[derive(Debug, Default)]
pub struct Notice {
    part: Option<Part>,
    /// The promotion in progress: its number and its attempt.
    promotion: Option<(u64, u32)>,
    /// The promotions that are known to be over; none before the first look.
    past: Option<Vec<(u64, RegionName)>>,
    held: Alarm,
    released_lsn: Option<Lsn>,
    copies: BTreeMap<String, Alarm>,
    secondaries: BTreeMap<String, Alarm>,
    hindered: Alarm,
    gave_way_us: Option<i64>,
}

impl Notice {
    /// What is news in `seen`, at `at_us` of a clock that never steps.
    pub fn look(&mut self, at_us: u64, seen: &Seen) -> Vec<Note> {
        let mut notes = Vec::new();
        self.promotions(&seen.record, &mut notes);
        if let Some(part) = &seen.part {
            self.part(&seen.me, part, &seen.record, &mut notes);
        }
        self.commits(at_us, seen, &mut notes);
        if let Some(at_us) = seen.gave_way_us
            && self.gave_way_us.is_none_or(|told_us| at_us - told_us >= GAVE_WAY_US)
        {
            self.gave_way_us = Some(at_us);
            let me = &seen.me;
            notes.push(Note::new(
                Kind::RedoGaveWay,
                format!("volume of {me}: a disk is nearly full, so redo that nobody needs goes earlier than `retain` asks; what somebody needs is kept"),
            ));
        }
        for (name, copy) in &seen.copies {
            let why = match copy {
                CopySeen::Away(why) => Some(why.as_str()),
                // It is not repaired before it has everything.
                CopySeen::Coming => {
                    let alarm = self.copies.get(name);
                    alarm.is_some_and(|alarm| alarm.raised).then_some("being filled")
                }
                CopySeen::Whole => None,
            };
            match self.copies.entry(name.clone()).or_default().look(at_us, why.is_some(), COPY_US) {
                Some(Edge::Begun) => notes.push(Note::new(
                    Kind::CopyLost,
                    format!(
                        "copy {name} of {}: {}; the others hold the redo, and fill it when it is back",
                        seen.me,
                        why.unwrap_or_default()
                    ),
                )),
                Some(Edge::Over) => notes.push(Note::new(
                    Kind::CopyRepaired,
                    format!("copy {name} of {}: it has all redo again; nothing more is to be done", seen.me),
                )),
                None => {}
            }
        }
        self.secondaries(at_us, seen, &mut notes);
        match self.hindered.look(at_us, !seen.trouble.is_empty(), HINDERED_US) {
            Some(Edge::Begun) => notes.push(Note::new(
                Kind::Hindered,
                format!("region {}: {}; it is tried again", seen.me, seen.trouble),
            )),
            Some(Edge::Over) => notes.push(Note::new(
                Kind::Unhindered,
                format!("region {}: what hindered it is over; it goes on", seen.me),
            )),
            None => {}
        }
        notes
    }

    /// Whether commits are held, for so long that it is news.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.held.raised
    }

    fn promotions(&mut self, record: &Leadership, notes: &mut Vec<Note>) {
        let known = record.history.iter().map(|past| (past.promotion.id, past.promotion.to.clone()));
        let known: Vec<_> = known.collect();
        if let Some(before) = self.past.replace(known) {
            let is_new = |past: &&Past| {
                !before.iter().any(|(id, to)| *id == past.promotion.id && *to == past.promotion.to)
            };
            notes.extend(record.history.iter().filter(is_new).map(over));
        }
        let Some(promotion) = &record.promotion else {
            self.promotion = None;
            return;
        };
        let before = self.promotion.replace((promotion.id, promotion.attempt));
        let (mode, from, to, by) = (promotion.mode, &promotion.from, &promotion.to, &promotion.coordinator);
        match before {
            Some((id, attempt)) if id == promotion.id && attempt == promotion.attempt => {}
            Some((id, _)) if id == promotion.id => notes.push(Note {
                kind: Kind::PromotionTakenOver,
                text: format!(
                    "{mode} to {to}: {by} goes on with it, as its coordinator was gone; it ends by itself"
                ),
                key: format!("taken-{id}-{}", promotion.attempt),
            }),
            _ => {
                let next = match mode {
                    coordination::Mode::Switchover => format!("{from} stops its writer and hands over"),
                    coordination::Mode::Failover => {
                        format!("{from} is fenced, and {to} gathers what is left")
                    }
                };
                notes.push(Note {
                    kind: Kind::PromotionBegun,
                    text: format!("{mode} from {from} to {to}: begun, coordinated by {by}; {next}"),
                    key: format!("begun-{}", promotion.id),
                });
            }
        }
    }

    fn part(&mut self, me: &RegionName, part: &Part, record: &Leadership, notes: &mut Vec<Note>) {
        if self.part.as_ref() == Some(part) || *part == Part::Starting {
            return;
        }
        let text = match part {
            Part::Leading { epoch } => {
                format!("region {me}: it leads epoch {epoch}; its PostgreSQL takes writes")
            }
            Part::Stopping { epoch } => {
                format!(
                    "region {me}: its writer, of epoch {epoch}, was told to stop; another region takes over"
                )
            }
            Part::HandedOver { to, next_epoch, .. } => {
                format!(
                    "region {me}: its writer has stopped, and {to} has everything; {to} leads epoch {next_epoch}"
                )
            }
            Part::Following if record.primary == *me => return,
            Part::Following => {
                format!("region {me}: it follows {}; its PostgreSQL is read-only", record.primary)
            }
            Part::Starting => return,
        };
        self.part = Some(part.clone());
        notes.push(Note::new(Kind::RoleChanged, text));
    }

    fn commits(&mut self, at_us: u64, seen: &Seen, notes: &mut Vec<Note>) {
        let stands = match &seen.held {
            Some(held) => !held.momentary || self.released_lsn == Some(held.released_lsn),
            None => false,
        };
        self.released_lsn = seen.held.as_ref().map(|held| held.released_lsn);
        match self.held.look(at_us, stands, HELD_US) {
            Some(Edge::Begun) => {
                let why = seen.held.as_ref().map_or("", |held| held.why.as_str());
                notes.push(Note::new(
                    Kind::CommitsHeld,
                    format!("commits in {}: {why}; they return by themselves when that is over", seen.me),
                ));
            }
            Some(Edge::Over) => notes.push(Note::new(
                Kind::CommitsReturn,
                format!("commits in {}: nothing holds them any more; they return", seen.me),
            )),
            None => {}
        }
    }

    fn secondaries(&mut self, at_us: u64, seen: &Seen, notes: &mut Vec<Note>) {
        // A region that does not lead ships to nobody.
        self.secondaries.retain(|name, _| seen.secondaries.iter().any(|(known, ..)| known == name));
        for (name, streams, state) in &seen.secondaries {
            let Some(streams) = streams else { continue };
            let alarm = self.secondaries.entry(name.clone()).or_default();
            match alarm.look(at_us, !streams, SECONDARY_US) {
                Some(Edge::Begun) => notes.push(Note::new(
                    Kind::SecondaryAway,
                    format!("region {name}: {state}; redo is kept for it, and it catches up by itself"),
                )),
                Some(Edge::Over) => notes.push(Note::new(
                    Kind::SecondaryStreams,
                    format!("region {name}: it streams; its lag goes down by itself"),
                )),
                None => {}
            }
        }
    }
}

/// A promotion that is over.
fn over(past: &Past) -> Note {
    let promotion = &past.promotion;
    let (mode, from, to, epoch) = (promotion.mode, &promotion.from, &promotion.to, promotion.epoch);
    let key = format!("over-{}-{to}", promotion.id);
    if let Some(why) = &past.rolled_back {
        let next = match past.began() {
            true => "another region leads instead".to_owned(),
            false => format!("{from} goes on"),
        };
        let text = format!("{mode} from {from} to {to}: undone, as {why}; {next}");
        return Note { kind: Kind::PromotionUndone, text, key };
    }
    let lost = match promotion.loss.us {
        0 => "nothing is lost".to_owned(),
        _ => format!("what only {from} had beyond {} is at risk", promotion.fork_lsn),
    };
    let gap = match past.write_gap_us {
        0 => String::new(),
        us => format!(", no writes for {} ms", us / 1000),
    };
    let text = format!("{mode} from {from} to {to}: over, {to} leads epoch {epoch}{gap}; {lost}");
    Note { kind: Kind::PromotionOver, text, key }
}

#[cfg(test)]
mod tests {
    use super::*;
    use coordination::leadership::{Change, Next, Order};
    use coordination::{Mode, leadership::Loss};
    use proto::{Epoch, Timeline};

    fn name(text: &str) -> RegionName {
        text.parse().unwrap()
    }

    fn seen() -> Seen {
        Seen {
            me: name("a"),
            part: Some(Part::Starting),
            record: Leadership::first(Epoch(1), name("a")),
            held: None,
            copies: Vec::new(),
            gave_way_us: None,
            secondaries: Vec::new(),
            trouble: String::new(),
        }
    }

    fn kinds(notes: &[Note]) -> Vec<&'static str> {
        notes.iter().map(|note| note.kind.name()).collect()
    }

    #[test]
    fn each_promotion_is_told_once_by_whoever_sees_it() {
        let mut notice = Notice::default();
        let mut now = seen();
        assert!(notice.look(0, &now).is_empty());
        let order = Order::new(7, now.record.epoch, Mode::Switchover, &name("b"));
        now.record = now.record.apply(&Change::Begin(order)).unwrap();
        let notes = notice.look(1, &now);
        assert_eq!(kinds(&notes), ["promotion-begun"]);
        assert_eq!(notes[0].key, "begun-7");
        assert!(notice.look(2, &now).is_empty(), "it is known by now");
        now.record =
            now.record.apply(&Change::TakeCharge { id: 7, attempt: 1, by: name("c") }).unwrap_or_else(|_| {
                let attempt = now.record.promotion.as_ref().unwrap().attempt;
                now.record.apply(&Change::TakeCharge { id: 7, attempt, by: name("c") }).unwrap()
            });
        assert_eq!(kinds(&notice.look(3, &now)), ["promotion-taken-over"]);
        let attempt = now.record.promotion.as_ref().unwrap().attempt;
        let advance = |record: &Leadership, next| {
            record.apply(&Change::Advance { id: 7, attempt, next, done: Vec::new() }).unwrap()
        };
        let undone = Next::RollBack { at_us: 5, why: "the writer did not stop".into() };
        let mut other = Notice::default();
        other.look(3, &now);
        let rolled_back = Seen { record: advance(&now.record, undone), ..now.clone() };
        let notes = other.look(4, &rolled_back);
        assert_eq!(kinds(&notes), ["promotion-undone"]);
        assert!(notes[0].text.contains("the writer did not stop; a goes on"), "{notes:?}");
        let promote = Next::Promote { fork_lsn: Lsn(9), parent: Timeline(1), loss: Loss::default() };
        now.record = advance(&now.record, promote);
        assert!(notice.look(4, &now).is_empty());
        now.record = advance(&now.record, Next::Finish { at_us: 6, write_gap_us: 300_000 });
        let notes = notice.look(5, &now);
        assert_eq!(kinds(&notes), ["promotion-over"]);
        assert!(
            notes[0].text.contains("b leads epoch 2, no writes for 300 ms; nothing is lost"),
            "{notes:?}"
        );
        // A daemon that starts now tells nothing of it.
        assert!(Notice::default().look(6, &now).is_empty());
    }

    #[test]
    fn commits_are_held_once_none_returns_for_a_second() {
        let held = |momentary, lsn| Some(Held { why: "held".into(), momentary, released_lsn: Lsn(lsn) });
        // (what is seen every half second, what is noted)
        type Case<'a> = (&'a str, Vec<Option<Held>>, &'a [&'a str]);
        let cases: [Case<'_>; 4] = [
            ("a lease", vec![held(false, 1), held(false, 1), held(false, 1)], &["commits-held"]),
            ("for a moment", vec![held(false, 1), None, held(false, 1), None], &[]),
            ("each waits, and all return", (0..9).map(|lsn| held(true, lsn)).collect(), &[]),
            (
                "none returns, and then all do",
                vec![held(true, 1), held(true, 1), held(true, 1), held(true, 1), None],
                &["commits-held", "commits-return"],
            ),
        ];
        for (what, sights, expected) in cases {
            let mut notice = Notice::default();
            let mut notes = Vec::new();
            for (at, held) in sights.into_iter().enumerate() {
                notes.extend(notice.look(at as u64 * 500_000, &Seen { held, ..seen() }));
            }
            assert_eq!(kinds(&notes), expected, "{what}");
        }
    }

    #[test]
    fn redo_that_gives_way_to_room_is_news_once_an_hour() {
        let mut notice = Notice::default();
        let mut look = |gave_way_us| kinds(&notice.look(0, &Seen { gave_way_us, ..seen() }));
        assert!(look(None).is_empty());
        assert_eq!(look(Some(5)), ["redo-gave-way"]);
        assert!(look(Some(5)).is_empty() && look(Some(GAVE_WAY_US)).is_empty());
        assert_eq!(look(Some(GAVE_WAY_US + 5)), ["redo-gave-way"]);
    }

    #[test]
    fn a_copy_is_repaired_only_once_it_has_everything() {
        let mut notice = Notice::default();
        let mut look = |at_s: u64, copy: CopySeen| {
            let copies = vec![("b1".to_owned(), copy)];
            kinds(&notice.look(at_s * 1_000_000, &Seen { copies, ..seen() }))
        };
        assert!(look(0, CopySeen::Coming).is_empty(), "at a start copies are opened");
        assert!(look(10, CopySeen::Coming).is_empty());
        assert!(look(11, CopySeen::Whole).is_empty());
        assert!(look(12, CopySeen::Away("absent".into())).is_empty());
        assert_eq!(look(14, CopySeen::Away("absent".into())), ["copy-lost"]);
        assert!(look(15, CopySeen::Coming).is_empty());
        assert_eq!(look(16, CopySeen::Whole), ["copy-repaired"]);
    }

    #[test]
    fn a_secondary_that_is_away_and_comes_back() {
        let mut notice = Notice::default();
        let mut look = |at_s: u64, streams: Option<bool>| {
            let secondaries = vec![("b".to_owned(), streams, "disconnected".to_owned())];
            kinds(&notice.look(at_s * 1_000_000, &Seen { secondaries, ..seen() }))
        };
        assert!(look(0, Some(true)).is_empty());
        assert!(look(1, Some(false)).is_empty());
        assert_eq!(look(3, Some(false)), ["secondary-away"]);
        assert!(look(4, None).is_empty(), "it is seeded");
        assert_eq!(look(5, Some(true)), ["secondary-streams"]);
        assert!(look(6, Some(true)).is_empty());
    }

    #[test]
    fn a_region_says_what_part_it_plays() {
        let mut notice = Notice::default();
        let mut look = |part: Part, primary: &str| {
            let record = Leadership::first(Epoch(1), name(primary));
            kinds(&notice.look(0, &Seen { part: Some(part), record, ..seen() }))
        };
        assert!(look(Part::Starting, "a").is_empty());
        assert_eq!(look(Part::Leading { epoch: Epoch(1) }, "a"), ["role-changed"]);
        assert!(look(Part::Leading { epoch: Epoch(1) }, "a").is_empty());
        assert_eq!(look(Part::Following, "b"), ["role-changed"]);
    }
}
