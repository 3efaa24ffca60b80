//! What a shipper does next, decided without I/O: probe, stream, seed, wait, give up.

use proto::messages::refusal;
use proto::{Lsn, Timeline, TimelineHistory};

/// The first wait after a failed attempt, and the longest; each failure doubles it.
pub const RETRY_MIN_US: i64 = 50_000;
/// See [`RETRY_MIN_US`]. A region that comes back is streaming again at most this much later.
pub const RETRY_MAX_US: i64 = 1_000_000;
/// The wait after a refusal that only an operator can resolve.
pub const RETRY_REFUSED_US: i64 = 5_000_000;

/// What the primary's volume holds when a secondary answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// The oldest redo kept.
    pub horizon_lsn: Lsn,
    /// The end of the redo durable in this region.
    pub durable_lsn: Lsn,
    /// The newest timeline, with its ancestors.
    pub history: TimelineHistory,
}

/// What a secondary says it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// It has no data and asks for a base backup.
    pub needs_seed: bool,
    /// It has data that can be tried to rewind.
    pub can_rewind: bool,
    /// The timeline of its newest redo.
    pub timeline: Timeline,
    /// The end of its durable redo.
    pub durable_lsn: Lsn,
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
pub fn plan(log: &Log, position: Position) -> Plan {
    let Position { needs_seed, can_rewind, timeline, durable_lsn } = position;
    if needs_seed && can_rewind {
        return Plan::Rewind { why: "it led an epoch that is over: its data are rewound".into() };
    }
    if needs_seed {
        return Plan::Seed { why: "it has no data that it could go on with".into() };
    }
    let newest = log.history.timeline;
    let horizon_lsn = log.horizon_lsn;
    // A region keeps aside what it has beyond the common end before it is rewound or takes a seed.
    let cut_off = |what: String| {
        let why = format!("it has redo up to {durable_lsn} that was cut off: {what}");
        if can_rewind { Plan::Rewind { why } } else { Plan::Seed { why } }
    };
    match log.history.fork_of(timeline) {
        None if timeline != newest => {
            cut_off(format!("its timeline {timeline} is no ancestor of this primary's, {newest}"))
        }
        None if durable_lsn > log.durable_lsn => Plan::Diverged {
            why: format!(
                "it has redo of this timeline up to {durable_lsn}, and this primary only up to {}: the primary has lost redo. \
                 Order a failover to that region, or have it seeded by removing its directory",
                log.durable_lsn
            ),
        },
        Some(fork_lsn) if durable_lsn > fork_lsn => {
            cut_off(format!("timeline {timeline} ends at {fork_lsn} in this primary's history"))
        }
        _ if durable_lsn < horizon_lsn => Plan::Seed {
            why: format!("it has redo up to {durable_lsn}, and the oldest kept here is {horizon_lsn}"),
        },
        _ => Plan::Stream { from_lsn: durable_lsn },
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
    /// Sending a base backup, or having the region rewind its data.
    Seeding,
    /// The last attempt failed; the next begins at `until_us`.
    Waiting {
        /// When to try again, microseconds.
        until_us: i64,
        /// Whether the region answered and said no.
        refused: bool,
    },
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
    Seeded,
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
    WakeAt(i64),
}

/// One region's shipper.
#[derive(Debug)]
pub struct Shipper {
    state: State,
    detail: String,
    failures: u32,
}

impl Shipper {
    /// A shipper and its first command.
    #[must_use]
    pub fn start() -> (Shipper, Vec<Command>) {
        let shipper = Shipper { state: State::Probing, detail: String::new(), failures: 0 };
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

    /// Takes what happened at `now_us` and says what to do.
    pub fn handle(&mut self, now_us: i64, input: Input) -> Vec<Command> {
        match (&mut self.state, input) {
            (State::Waiting { until_us, .. }, Input::Timer) if now_us >= *until_us => {
                self.state = State::Probing;
                vec![Command::Probe]
            }
            (State::Waiting { until_us, .. }, Input::Timer) => vec![Command::WakeAt(*until_us)],
            (State::Probing, Input::Answered(log, position)) => match plan(&log, position) {
                Plan::Stream { from_lsn } => {
                    let caught_up = from_lsn == log.durable_lsn;
                    self.state = State::Streaming { goal_lsn: log.durable_lsn, caught_up };
                    self.detail.clear();
                    vec![Command::Stream { from_lsn }]
                }
                Plan::Seed { why } => {
                    self.state = State::Seeding;
                    self.detail = why;
                    vec![Command::Seed]
                }
                Plan::Rewind { why } => {
                    self.state = State::Seeding;
                    self.detail = why;
                    vec![Command::Rewind]
                }
                Plan::Diverged { why } => self.refused(now_us, why),
            },
            (State::Streaming { goal_lsn, caught_up }, Input::Applied(lsn)) => {
                *caught_up |= lsn >= *goal_lsn;
                self.failures = 0;
                vec![]
            }
            (State::Seeding, Input::Seeded) => {
                self.failures = 0;
                self.state = State::Probing;
                vec![Command::Disconnect, Command::Probe]
            }
            (State::Waiting { .. }, Input::Lost(_) | Input::Refused(..)) => vec![],
            (_, Input::Lost(why)) => self.failed(now_us, why),
            (_, Input::Refused(refusal::Kind::Busy, why)) => self.failed(now_us, why),
            (_, Input::Refused(_, why)) => self.refused(now_us, why),
            // What belongs to a state already left says nothing about the present one.
            (_, Input::Timer | Input::Answered(..) | Input::Applied(_) | Input::Seeded) => vec![],
        }
    }

    fn failed(&mut self, now_us: i64, why: String) -> Vec<Command> {
        let wait_us = (RETRY_MIN_US << self.failures.min(10)).min(RETRY_MAX_US);
        self.failures = self.failures.saturating_add(1);
        self.wait(now_us + wait_us, false, why)
    }

    fn refused(&mut self, now_us: i64, why: String) -> Vec<Command> {
        self.wait(now_us + RETRY_REFUSED_US, true, why)
    }

    fn wait(&mut self, until_us: i64, refused: bool, why: String) -> Vec<Command> {
        self.state = State::Waiting { until_us, refused };
        self.detail = why;
        vec![Command::Disconnect, Command::WakeAt(until_us)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn log(horizon_lsn: u64, durable_lsn: u64) -> Log {
        let history = TimelineHistory::parse(Timeline(2), b"1\t0/500\tpromoted\n").unwrap();
        Log { horizon_lsn: Lsn(horizon_lsn), durable_lsn: Lsn(durable_lsn), history }
    }

    fn at(timeline: u32, durable_lsn: u64) -> Position {
        Position {
            needs_seed: false,
            can_rewind: false,
            timeline: Timeline(timeline),
            durable_lsn: Lsn(durable_lsn),
        }
    }

    #[test]
    fn plans() {
        let log = log(0x300, 0x900);
        let empty = Position { needs_seed: true, ..at(0, 0) };
        assert!(matches!(plan(&log, empty), Plan::Seed { .. }), "nothing there");
        assert_eq!(plan(&log, at(2, 0x800)), Plan::Stream { from_lsn: Lsn(0x800) });
        assert_eq!(plan(&log, at(2, 0x900)), Plan::Stream { from_lsn: Lsn(0x900) });
        assert_eq!(plan(&log, at(1, 0x500)), Plan::Stream { from_lsn: Lsn(0x500) });
        assert!(matches!(plan(&log, at(1, 0x501)), Plan::Seed { .. }), "beyond the fork");
        assert!(matches!(plan(&log, at(2, 0x901)), Plan::Diverged { .. }), "ahead of its primary");
        assert!(matches!(plan(&log, at(3, 0x600)), Plan::Seed { .. }), "a timeline of its own");
        assert!(matches!(plan(&log, at(1, 0x2FF)), Plan::Seed { .. }), "below the horizon");
        let intact = |position| Position { can_rewind: true, ..position };
        assert!(matches!(plan(&log, intact(empty)), Plan::Rewind { .. }), "it led before");
        assert!(matches!(plan(&log, intact(at(1, 0x501))), Plan::Rewind { .. }), "beyond the fork");
        assert!(matches!(plan(&log, intact(at(1, 0x2FF))), Plan::Seed { .. }), "nothing to rewind");
        assert_eq!(plan(&log, intact(at(2, 0x800))), Plan::Stream { from_lsn: Lsn(0x800) });
    }

    #[test]
    fn from_an_empty_region_to_streaming() {
        let (mut shipper, first) = Shipper::start();
        assert_eq!(first, [Command::Probe]);
        let empty = Position { needs_seed: true, ..at(0, 0) };
        assert_eq!(shipper.handle(0, Input::Answered(log(0, 0x900), empty)), [Command::Seed]);
        assert_eq!(shipper.handle(1, Input::Seeded), [Command::Disconnect, Command::Probe]);
        let stream = shipper.handle(2, Input::Answered(log(0, 0x900), at(2, 0x800)));
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
        shipper.handle(now_us, Input::Answered(log(0, 0x900), at(2, 0x900)));
        shipper.handle(now_us, Input::Applied(Lsn(0x900)));
        let commands = shipper.handle(now_us, Input::Lost("reset".into()));
        assert_eq!(commands, [Command::Disconnect, Command::WakeAt(now_us + RETRY_MIN_US)]);
    }

    fn any_input() -> impl Strategy<Value = Input> {
        prop_oneof![
            Just(Input::Timer),
            (0u64..0xA00, 0u32..4, 0u64..0xA00, any::<bool>(), any::<bool>()).prop_map(
                |(horizon, timeline, durable, needs_seed, can_rewind)| {
                    let position = Position { needs_seed, can_rewind, ..at(timeline, durable) };
                    Input::Answered(log(horizon, 0x900), position)
                }
            ),
            Just(Input::Lost("x".into())),
            Just(Input::Refused(refusal::Kind::StaleEpoch, "x".into())),
            (0u64..0xA00).prop_map(|lsn| Input::Applied(Lsn(lsn))),
            Just(Input::Seeded),
        ]
    }

    proptest! {
        /// Whatever happens in whatever order: a shipper never streams redo that was cut off or is beyond its own, and
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
                        let Input::Answered(log, _) = &input else { panic!("streams without an answer") };
                        prop_assert!(from_lsn >= log.horizon_lsn && from_lsn <= log.durable_lsn);
                    }
                }
                if let (State::Waiting { until_us, .. }, false) = (shipper.state(), before == *shipper.state()) {
                    prop_assert!(*until_us > now_us && *until_us <= now_us + RETRY_REFUSED_US);
                }
            }
        }
    }
}
