//! What a shipper does next, decided without I/O: probe, stream, seed, rewind, wait.
//!
//! Redo is compared before it is continued: the region names the batch that its redo ends with, and unless
//! this volume has the very same batch there, nothing is sent. LSNs alone do not tell, once a log that lost
//! redo has passed its old end.

use proto::messages::refusal;
use proto::{BatchId, Lsn, Timeline, TimelineHistory};

/// The first wait after a failed attempt, and the longest; each failure doubles it.
pub const RETRY_MIN_US: u64 = 50_000;
/// See [`RETRY_MIN_US`]. A region that comes back is streaming again at most this much later.
pub const RETRY_MAX_US: u64 = 1_000_000;
/// The wait after a seed or a rewind that failed, and the longest; each one in a row doubles it. Each costs
/// the writer a WAL segment.
pub const AGAIN_MIN_US: u64 = 1_000_000;
/// See [`AGAIN_MIN_US`].
pub const AGAIN_MAX_US: u64 = 60_000_000;
/// The wait after a refusal that only an operator can resolve.
pub const RETRY_REFUSED_US: u64 = 5_000_000;

/// What the primary's volume holds when a secondary answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// The oldest redo kept.
    pub horizon_lsn: Lsn,
    /// The end of the redo durable in this region.
    pub durable_lsn: Lsn,
    /// The newest timeline, with its ancestors.
    pub history: TimelineHistory,
    /// The batch that is here where the region's newest common one begins; none when it is not durable here,
    /// or not kept any more.
    pub there: Option<BatchId>,
}

/// What a secondary says it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Position {
    /// No data that it could go on with.
    NoData {
        /// Why, in words.
        why: String,
    },
    /// Data, and this redo.
    Data {
        /// It led an epoch that is over: it is not gone on with before it is brought back to the line.
        led: bool,
        /// It can be tried to rewind.
        can_rewind: bool,
        /// The redo that it has.
        redo: Redo,
    },
}

/// The redo that a region has, as far as it can be told from other redo.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Redo {
    /// The timeline of its newest redo.
    pub timeline: Timeline,
    /// The end of its durable redo.
    pub durable_lsn: Lsn,
    /// The newest batch before it parts from the primary's history; none when nothing before that is kept.
    pub common: Option<BatchId>,
}

/// What can be done for a secondary at a position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    /// Send the redo from here on.
    Stream {
        /// Where the next batch begins.
        from_lsn: Lsn,
    },
    /// Send a base backup first.
    Seed {
        /// Why, in words.
        why: String,
    },
    /// Have it rewind its data first, to before the redo that was cut off.
    Rewind {
        /// Why, in words.
        why: String,
    },
    /// It has redo of this very timeline that the primary does not have: an operator decides what is right.
    Diverged {
        /// What differs, in words.
        why: String,
    },
}

/// The plan for a secondary at `position`, given the primary's `log`.
#[must_use]
pub fn plan(log: &Log, position: &Position) -> Plan {
    let (led, can_rewind, redo) = match position {
        Position::NoData { why } => return Plan::Seed { why: why.clone() },
        Position::Data { led, can_rewind, redo } => (*led, *can_rewind, *redo),
    };
    let Redo { timeline, durable_lsn, common } = redo;
    let (newest, horizon_lsn) = (log.history.timeline, log.horizon_lsn);
    let fork = log.history.fork_of(timeline);
    if timeline == newest && durable_lsn > log.durable_lsn {
        let ends_at = log.durable_lsn;
        return Plan::Diverged {
            why: format!(
                "its redo at {durable_lsn} on timeline {timeline} is not this primary's, which ends at {ends_at}: one of the two \
                 has lost redo, as after a restored directory"
            ),
        };
    }
    // A region keeps aside what it has beyond the common end before it is rewound or takes a seed.
    let cut_off = match fork {
        None if timeline != newest => {
            Some(format!("its timeline {timeline} is no ancestor of this primary's, {newest}"))
        }
        Some(fork_lsn) if durable_lsn > fork_lsn => {
            Some(format!("timeline {timeline} ends at {fork_lsn} in this primary's history"))
        }
        _ => None,
    };
    let cut_off = cut_off.map(|what| format!("it has redo up to {durable_lsn} that was cut off: {what}"));
    let rejoins = cut_off.or_else(|| led.then(|| "it led an epoch that is over".to_owned()));
    match (common, log.there, rejoins) {
        (Some(common), Some(there), _) if common != there => other_redo(common),
        (Some(common), None, _) if common.begin_lsn >= horizon_lsn => other_redo(common),
        (Some(_), Some(_), Some(why)) if can_rewind => Plan::Rewind { why },
        // What cannot be compared any more is not rewound: pages that differ since before the fork would
        // stay.
        (_, _, Some(why)) => Plan::Seed { why },
        _ if durable_lsn < horizon_lsn => Plan::Seed {
            why: format!("it has redo up to {durable_lsn}, and the oldest kept here is {horizon_lsn}"),
        },
        (Some(common), None, None) => Plan::Seed {
            why: format!(
                "its newest redo, from {}, cannot be compared any more: the oldest kept here is {horizon_lsn}",
                common.begin_lsn
            ),
        },
        // Without a batch its volume has only begun: it was seeded, or rewound.
        (Some(_) | None, _, None) => Plan::Stream { from_lsn: durable_lsn },
    }
}

fn other_redo(theirs: BatchId) -> Plan {
    let BatchId { begin_lsn, end_lsn, timeline, .. } = theirs;
    Plan::Diverged {
        why: format!(
            "its redo from {begin_lsn} to {end_lsn} on timeline {timeline} is not this primary's: one of the two has lost redo and \
             written other redo in its place, as after a restored directory"
        ),
    }
}

/// Where a shipper stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Connecting, or waiting for the answer.
    Probing,
    /// Sending batches; `caught_up` once everything durable when the stream began is applied there.
    Streaming {
        /// What was durable here when the stream began.
        goal_lsn: Lsn,
        /// Whether the region's standby has applied it.
        caught_up: bool,
    },
    /// Sending a base backup.
    Seeding,
    /// Having the region rewind its data.
    Rewinding,
    /// Nothing is done until the time comes to try again.
    Waiting {
        /// When to try again, microseconds.
        until_us: u64,
        /// What for.
        reason: Wait,
    },
}

/// Why a shipper waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// The last attempt failed.
    Failed,
    /// The region answered and said no.
    Refused,
    /// The region has redo that is not this primary's, and keeps it until an operator has decided. Nothing is
    /// sent.
    Diverged,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Time has passed.
    Timer,
    /// The region answered the probe.
    Answered(Log, Position),
    /// The region could not be reached, or the connection was lost.
    Lost(String),
    /// The region said no.
    Refused(refusal::Kind, String),
    /// The region's standby has applied redo up to here.
    Applied(Lsn),
    /// The base backup is in place, or the data are rewound.
    InPlace,
}

/// What to do now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Connect and ask for the region's position.
    Probe,
    /// Send batches from here on.
    Stream {
        /// Where the first batch begins.
        from_lsn: Lsn,
    },
    /// Send a base backup.
    Seed,
    /// Have the region rewind its data.
    Rewind,
    /// Close the connection.
    Disconnect,
    /// Call again with [`Input::Timer`] at this time.
    WakeAt(u64),
}

/// One region's shipper.
#[derive(Debug)]
pub struct Shipper {
    state: State,
    detail: String,
    failures: u32,
    /// Seeds and rewinds that failed in a row.
    failed_again: u32,
    /// The redo of the region that was found to be another's, and what differs. It stays so: once this log
    /// has passed the place, and has dropped it, nothing could be compared any more.
    diverged: Option<(Redo, String)>,
}

impl Shipper {
    /// A shipper and its first command.
    #[must_use]
    pub fn start() -> (Shipper, Vec<Command>) {
        let shipper = Shipper {
            state: State::Probing,
            detail: String::new(),
            failures: 0,
            failed_again: 0,
            diverged: None,
        };
        (shipper, vec![Command::Probe])
    }

    /// Where it stands.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// What an operator should know about that, in words; often empty.
    #[must_use]
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// Whether the region has redo of `epoch` that this primary, which leads it, has not.
    #[must_use]
    pub fn contradicts(&self, epoch: proto::Epoch) -> bool {
        let newest = self.diverged.as_ref().and_then(|(redo, _)| redo.common);
        newest.is_some_and(|newest| newest.epoch == epoch)
    }

    /// Takes what happened at `now_us`, of a clock that never steps, and says what to do.
    pub fn handle(&mut self, now_us: u64, input: Input) -> Vec<Command> {
        match (&mut self.state, input) {
            (State::Waiting { until_us, .. }, Input::Timer) if now_us >= *until_us => {
                self.state = State::Probing;
                vec![Command::Probe]
            }
            (State::Waiting { until_us, .. }, Input::Timer) => vec![Command::WakeAt(*until_us)],
            (State::Probing, Input::Answered(log, position)) => self.answered(now_us, &log, &position),
            (State::Streaming { goal_lsn, caught_up }, Input::Applied(lsn)) => {
                *caught_up |= lsn >= *goal_lsn;
                (self.failures, self.failed_again) = (0, 0);
                vec![]
            }
            (State::Seeding | State::Rewinding, Input::InPlace) => {
                // Whether what was brought is of any use is known once some redo is applied.
                self.failures = 0;
                self.state = State::Probing;
                vec![Command::Disconnect, Command::Probe]
            }
            (State::Waiting { .. }, Input::Lost(_) | Input::Refused(..)) => vec![],
            (State::Seeding | State::Rewinding, Input::Lost(why)) => self.failed_bringing(now_us, why),
            (State::Seeding | State::Rewinding, Input::Refused(refusal::Kind::Busy, why)) => {
                self.failed_bringing(now_us, why)
            }
            (State::Seeding | State::Rewinding, Input::Refused(_, why)) => {
                // It failed over there: for want of room, mostly.
                let wait_us = doubled(RETRY_REFUSED_US, self.failed_again, AGAIN_MAX_US);
                self.failed_again = self.failed_again.saturating_add(1);
                self.wait(now_us + wait_us, Wait::Refused, why)
            }
            (_, Input::Lost(why)) => self.failed(now_us, why),
            (_, Input::Refused(refusal::Kind::Busy, why)) => self.failed(now_us, why),
            (_, Input::Refused(_, why)) => self.wait(now_us + RETRY_REFUSED_US, Wait::Refused, why),
            // What belongs to a state already left says nothing about the present one.
            (_, Input::Timer | Input::Answered(..) | Input::Applied(_) | Input::InPlace) => vec![],
        }
    }

    fn answered(&mut self, now_us: u64, log: &Log, position: &Position) -> Vec<Command> {
        let redo = match position {
            Position::NoData { .. } => None,
            Position::Data { redo, .. } => Some(*redo),
        };
        // Not looked at anew, as long as it has that redo.
        let found = self.diverged.take().filter(|(found, _)| redo == Some(*found));
        let plan = found.map_or_else(|| plan(log, position), |(_, why)| Plan::Diverged { why });
        match plan {
            Plan::Stream { from_lsn } => {
                let caught_up = from_lsn == log.durable_lsn;
                self.state = State::Streaming { goal_lsn: log.durable_lsn, caught_up };
                self.detail.clear();
                vec![Command::Stream { from_lsn }]
            }
            Plan::Seed { why } => {
                (self.state, self.detail) = (State::Seeding, why);
                vec![Command::Seed]
            }
            Plan::Rewind { why } => {
                (self.state, self.detail) = (State::Rewinding, why);
                vec![Command::Rewind]
            }
            Plan::Diverged { why } => {
                self.diverged = redo.map(|redo| (redo, why.clone()));
                self.wait(now_us + RETRY_REFUSED_US, Wait::Diverged, why)
            }
        }
    }

    fn failed(&mut self, now_us: u64, why: String) -> Vec<Command> {
        let wait_us = doubled(RETRY_MIN_US, self.failures, RETRY_MAX_US);
        self.failures = self.failures.saturating_add(1);
        self.wait(now_us + wait_us, Wait::Failed, why)
    }

    fn failed_bringing(&mut self, now_us: u64, why: String) -> Vec<Command> {
        let wait_us = doubled(AGAIN_MIN_US, self.failed_again, AGAIN_MAX_US);
        self.failed_again = self.failed_again.saturating_add(1);
        self.wait(now_us + wait_us, Wait::Failed, why)
    }

    fn wait(&mut self, until_us: u64, reason: Wait, why: String) -> Vec<Command> {
        self.state = State::Waiting { until_us, reason };
        self.detail = why;
        vec![Command::Disconnect, Command::WakeAt(until_us)]
    }
}

fn doubled(first_us: u64, times: u32, most_us: u64) -> u64 {
    (first_us << times.min(10)).min(most_us)
}

#[cfg(test)]
mod tests {
    use proto::Epoch;

    use super::*;
    use proptest::prelude::*;

    fn log(horizon_lsn: u64, durable_lsn: u64) -> Log {
        let history = TimelineHistory::parse(Timeline(2), b"1\t0/500\tpromoted\n").unwrap();
        Log { horizon_lsn: Lsn(horizon_lsn), durable_lsn: Lsn(durable_lsn), history, there: None }
    }

    /// A batch of 16 bytes; `written` says in which history of the cluster.
    fn batch(timeline: u32, end_lsn: u64, written: i64) -> BatchId {
        BatchId {
            epoch: Epoch(timeline.into()),
            timeline: Timeline(timeline),
            begin_lsn: Lsn(end_lsn.saturating_sub(16)),
            end_lsn: Lsn(end_lsn),
            newest_commit_us: written,
            redo_crc32c: 7,
        }
    }

    /// What the plan is where both have the same redo up to there.
    fn planned(log: &Log, position: Position) -> Plan {
        let kept = redo(&position)
            .common
            .filter(|common| common.begin_lsn >= log.horizon_lsn && common.end_lsn <= log.durable_lsn);
        plan(&Log { there: kept, ..log.clone() }, &position)
    }

    fn redo(position: &Position) -> Redo {
        let Position::Data { redo, .. } = position else { panic!("it has no data") };
        *redo
    }

    /// A region whose newest batch is on the line, up to the fork at 0x500.
    fn at(timeline: u32, durable_lsn: u64) -> Position {
        let common_end = if timeline == 2 { durable_lsn } else { durable_lsn.min(0x500) };
        let common = Some(batch(timeline.min(2), common_end, 1));
        let redo = Redo { timeline: Timeline(timeline), durable_lsn: Lsn(durable_lsn), common };
        Position::Data { led: false, can_rewind: false, redo }
    }

    fn intact(position: &Position) -> Position {
        Position::Data { led: false, can_rewind: true, redo: redo(position) }
    }

    fn led(position: &Position) -> Position {
        Position::Data { led: true, can_rewind: true, redo: redo(position) }
    }

    /// A primary that has what is at `position`.
    fn same(position: &Position) -> Log {
        Log { there: redo(position).common, ..log(0, 0x900) }
    }

    fn empty() -> Position {
        Position::NoData { why: "no data".into() }
    }

    #[test]
    fn plans() {
        let log = log(0x300, 0x900);
        assert!(matches!(plan(&log, &empty()), Plan::Seed { .. }), "nothing there");
        let plan = |log: &Log, position: Position| planned(log, position);
        assert_eq!(plan(&log, at(2, 0x800)), Plan::Stream { from_lsn: Lsn(0x800) });
        assert_eq!(plan(&log, at(2, 0x900)), Plan::Stream { from_lsn: Lsn(0x900) });
        assert_eq!(plan(&log, at(1, 0x500)), Plan::Stream { from_lsn: Lsn(0x500) });
        assert!(matches!(plan(&log, at(1, 0x501)), Plan::Seed { .. }), "beyond the fork");
        assert!(matches!(plan(&log, at(2, 0x901)), Plan::Diverged { .. }), "ahead of its primary");
        assert!(matches!(plan(&log, at(3, 0x600)), Plan::Seed { .. }), "a timeline of its own");
        assert!(matches!(plan(&log, at(1, 0x2FF)), Plan::Seed { .. }), "below the horizon");
        assert!(matches!(plan(&log, led(&at(1, 0x500))), Plan::Rewind { .. }), "it led before");
        assert!(matches!(plan(&log, intact(&at(1, 0x501))), Plan::Rewind { .. }), "beyond the fork");
        assert!(matches!(plan(&log, intact(&at(1, 0x2FF))), Plan::Seed { .. }), "nothing to rewind");
        assert_eq!(plan(&log, intact(&at(2, 0x800))), Plan::Stream { from_lsn: Lsn(0x800) });
    }

    #[test]
    fn only_the_same_batch_is_continued() {
        let log = |there| Log { there, ..log(0x300, 0x900) };
        let says = |common| Position::Data {
            led: false,
            can_rewind: true,
            redo: Redo { timeline: Timeline(2), durable_lsn: Lsn(0x800), common },
        };
        let theirs = batch(2, 0x800, 1);
        let streams = Plan::Stream { from_lsn: Lsn(0x800) };
        assert_eq!(plan(&log(Some(theirs)), &says(Some(theirs))), streams);
        assert_eq!(plan(&log(Some(theirs)), &says(None)), streams, "its volume has only begun");
        let others = [
            BatchId { redo_crc32c: 8, ..theirs },
            // Zeroes that fill a segment, twice.
            BatchId { newest_commit_us: 2, ..theirs },
            BatchId { end_lsn: Lsn(0x801), ..theirs },
            BatchId { begin_lsn: Lsn(0x7EF), ..theirs },
            BatchId { epoch: Epoch(3), ..theirs },
            BatchId { timeline: Timeline(1), ..theirs },
        ];
        for other in others {
            let planned = plan(&log(Some(other)), &says(Some(theirs)));
            assert!(matches!(planned, Plan::Diverged { .. }), "{other:?} is not {theirs:?}");
        }
        let gone = Some(BatchId { begin_lsn: Lsn(0x2F0), ..theirs });
        assert!(matches!(plan(&log(None), &says(gone)), Plan::Seed { .. }), "nothing left to compare with");
        assert!(
            matches!(plan(&log(None), &says(Some(theirs))), Plan::Diverged { .. }),
            "none where one must be"
        );
    }

    #[test]
    fn only_what_has_the_same_redo_before_the_fork_is_rewound() {
        for position in [intact(&at(1, 0x700)), led(&at(1, 0x700)), led(&at(1, 0x400))] {
            assert!(matches!(plan(&same(&position), &position), Plan::Rewind { .. }), "{position:?}");
            let common = redo(&position).common.unwrap();
            // It was restored from an old copy before the fork, and went on with other redo.
            let other = BatchId { newest_commit_us: 2, ..common };
            let log = Log { there: Some(other), ..log(0, 0x900) };
            assert!(matches!(plan(&log, &position), Plan::Diverged { .. }), "{position:?}");
            let gone = Log { there: None, horizon_lsn: Lsn(0x600), ..log };
            assert!(matches!(plan(&gone, &position), Plan::Seed { .. }), "{position:?}");
        }
    }

    #[test]
    fn what_was_found_to_be_another_s_stays_so_until_it_is_gone() {
        let (mut shipper, _) = Shipper::start();
        let (mut now_us, wait_us) = (0, RETRY_REFUSED_US);
        let mut ask = |shipper: &mut Shipper, log: Log, position: &Position| {
            let commands = shipper.handle(now_us, Input::Answered(log, position.clone()));
            now_us += wait_us;
            shipper.handle(now_us, Input::Timer);
            commands
        };
        let waits = |commands: &[Command]| matches!(commands, [Command::Disconnect, Command::WakeAt(_)]);
        // The primary lost what it had beyond 0x700.
        let beyond = at(2, 0x800);
        assert!(waits(&ask(&mut shipper, log(0x300, 0x700), &beyond)));
        // It has passed that, and then dropped it; and even if the same batch were found, this was another's.
        let passed = Log { there: Some(batch(2, 0x800, 2)), ..log(0x300, 0x900) };
        assert!(waits(&ask(&mut shipper, passed, &beyond)));
        assert!(waits(&ask(&mut shipper, log(0x880, 0x900), &beyond)));
        let same = Log { there: redo(&beyond).common, ..log(0x300, 0x900) };
        assert!(waits(&ask(&mut shipper, same.clone(), &beyond)));
        assert!(shipper.detail().contains("0/800"), "{}", shipper.detail());
        assert!(
            shipper.contradicts(Epoch(2)),
            "also while it is asked again: its redo is of the epoch that this primary leads"
        );
        assert!(!shipper.contradicts(Epoch(3)), "what an earlier primary cut says nothing of this one");
        shipper.handle(0, Input::Lost("no route".into()));
        assert!(shipper.contradicts(Epoch(2)), "also while it is not reached");
        shipper.handle(99 * wait_us, Input::Timer);
        // An operator has put other data there, or has it seeded.
        let (mut other, _) = Shipper::start();
        assert!(waits(&ask(&mut other, log(0x300, 0x700), &beyond)));
        let put_back = Log { there: redo(&at(2, 0x600)).common, ..log(0x300, 0x900) };
        assert_eq!(ask(&mut other, put_back, &at(2, 0x600)), [Command::Stream { from_lsn: Lsn(0x600) }]);
        assert_eq!(shipper.handle(100 * wait_us, Input::Answered(same, empty())), [Command::Seed]);
        assert!(!shipper.contradicts(Epoch(2)) && !other.contradicts(Epoch(2)));
    }

    #[test]
    fn a_seed_that_fails_again_and_again_is_tried_ever_more_seldom() {
        let waits = |failure: Input| {
            let (mut shipper, _) = Shipper::start();
            let (mut now_us, mut waits) = (0, Vec::new());
            for _ in 0..8 {
                assert_eq!(shipper.handle(now_us, Input::Answered(log(0, 0x900), empty())), [Command::Seed]);
                shipper.handle(now_us, failure.clone());
                let State::Waiting { until_us, .. } = shipper.state().clone() else { panic!("not waiting") };
                waits.push((until_us - now_us) / 1_000_000);
                now_us = until_us;
                shipper.handle(now_us, Input::Timer);
            }
            waits
        };
        assert_eq!(waits(Input::Lost("the link is cut".into())), [1, 2, 4, 8, 16, 32, 60, 60]);
        let refused = Input::Refused(refusal::Kind::Failed, "the disk is full".into());
        assert_eq!(waits(refused), [5, 10, 20, 40, 60, 60, 60, 60]);
    }

    #[test]
    fn from_an_empty_region_to_streaming() {
        let (mut shipper, first) = Shipper::start();
        assert_eq!(first, [Command::Probe]);
        assert_eq!(shipper.handle(0, Input::Answered(log(0, 0x900), empty())), [Command::Seed]);
        assert_eq!(shipper.handle(1, Input::InPlace), [Command::Disconnect, Command::Probe]);
        let stream = shipper.handle(2, Input::Answered(same(&at(2, 0x800)), at(2, 0x800)));
        assert_eq!(stream, [Command::Stream { from_lsn: Lsn(0x800) }]);
        assert_eq!(shipper.state(), &State::Streaming { goal_lsn: Lsn(0x900), caught_up: false });
        shipper.handle(3, Input::Applied(Lsn(0x900)));
        assert_eq!(shipper.state(), &State::Streaming { goal_lsn: Lsn(0x900), caught_up: true });
    }

    #[test]
    fn waits_longer_after_each_failure_and_is_quick_again_after_success() {
        let (mut shipper, _) = Shipper::start();
        let mut now_us = 0;
        let mut waits = Vec::new();
        for _ in 0..8 {
            shipper.handle(now_us, Input::Lost("no route".into()));
            let State::Waiting { until_us, .. } = shipper.state().clone() else { panic!("not waiting") };
            waits.push((until_us - now_us) / 1000);
            assert_eq!(shipper.handle(until_us - 1, Input::Timer), [Command::WakeAt(until_us)]);
            now_us = until_us;
            assert_eq!(shipper.handle(now_us, Input::Timer), [Command::Probe]);
        }
        assert_eq!(waits, [50, 100, 200, 400, 800, 1000, 1000, 1000]);
        shipper.handle(now_us, Input::Answered(same(&at(2, 0x900)), at(2, 0x900)));
        shipper.handle(now_us, Input::Applied(Lsn(0x900)));
        let commands = shipper.handle(now_us, Input::Lost("reset".into()));
        assert_eq!(commands, [Command::Disconnect, Command::WakeAt(now_us + RETRY_MIN_US)]);
    }

    fn any_input() -> impl Strategy<Value = Input> {
        prop_oneof![
            Just(Input::Timer),
            (0u64..0xA00, 0u32..4, 0u64..0xA00, any::<bool>(), any::<bool>(), 0i64..2).prop_map(
                |(horizon, timeline, durable, led, can_rewind, written)| {
                    let redo = redo(&at(timeline, durable));
                    let position = Position::Data { led, can_rewind, redo };
                    let kept = redo.common.filter(|common| common.begin_lsn.0 >= horizon);
                    let there = kept.map(|common| BatchId { newest_commit_us: written, ..common });
                    Input::Answered(Log { there, ..log(horizon, 0x900) }, position)
                }
            ),
            Just(Input::Lost("x".into())),
            Just(Input::Refused(refusal::Kind::StaleEpoch, "x".into())),
            (0u64..0xA00).prop_map(|lsn| Input::Applied(Lsn(lsn))),
            Just(Input::InPlace),
        ]
    }

    proptest! {
        /// Whatever happens in whatever order: a shipper never streams on top of other redo than its own, and
        /// never comes to rest without a command that will wake it.
        #[test]
        fn never_ships_what_it_must_not_and_never_sleeps_for_good(inputs in proptest::collection::vec(any_input(), 1..60)) {
            let (mut shipper, _) = Shipper::start();
            let mut now_us = 0;
            for input in inputs {
                now_us += 300_000;
                let before = shipper.state().clone();
                for command in shipper.handle(now_us, input.clone()) {
                    if let Command::Stream { from_lsn } = command {
                        let Input::Answered(log, position) = &input else { panic!("streams without an answer") };
                        prop_assert!(from_lsn >= log.horizon_lsn && from_lsn <= log.durable_lsn);
                        prop_assert_eq!(log.there, redo(position).common);
                    }
                }
                if let (State::Waiting { until_us, .. }, false) = (shipper.state(), before == *shipper.state()) {
                    prop_assert!(*until_us > now_us && *until_us <= now_us + AGAIN_MAX_US);
                }
            }
        }
    }
}
