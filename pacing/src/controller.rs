//! The decisions: events of one path in, the window out.
//!
//! The window is what the path holds without a queue (bandwidth times propagation delay), and a little more:
//! the headroom, which stands in the bottleneck's queue and shows that the link is full. The headroom grows
//! with the square root of the bandwidth, so of two flows at one bottleneck the larger has less of it for its
//! size, and they come to share evenly. Loss by itself is not taken for congestion: only loss with delay is,
//! or loss that leaves no other explanation.

use crate::arithmetic::{SECOND_US, mul_div};
use crate::cubic::Cubic;
use crate::model::{Bandwidth, Deliveries, Peak, Propagation, Standing};

/// Packets in flight before anything is known, paced over a round trip.
const INITIAL_PACKETS: u64 = 32;

/// The least that may be in flight.
const MINIMUM_PACKETS: u64 = 4;

/// The most that may be in flight: the pacer of quinn-proto stands still above 4 GiB.
const WINDOW_MAX: u64 = 1 << 30;

/// What times and bytes are bounded by.
const TIME_MAX_US: u64 = 1 << 52;
const BYTES_MAX: u64 = 1 << 40;

/// A round is one round trip, and not shorter than this: clocks and timers of a busy machine are no better.
const ROUND_SHORTEST_US: u64 = 5_000;

/// Headroom: so many times the square root of the bandwidth, both in bytes. 3.4 ms at 100 Mbit/s, 10.7 ms at
/// 10 Mbit/s.
const HEADROOM: u64 = 12;

/// The headroom stands for at most so long in the queue, whatever this flow's share of the link is.
const HEADROOM_LONGEST_US: u64 = 8_000;

/// And holds at least so many bytes, within that time: a newcomer's is then not smaller than that of those
/// who are there.
const HEADROOM_LEAST: u64 = 40_000;

/// Start-up ends when the queue holds an eighth of the propagation delay, within these bounds.
const QUEUE_AT_START_US: (u64, u64) = (4_000, 16_000);

/// Start-up ends after so many rounds in a row in which a full window brought no quarter more.
const PLATEAU_ROUNDS: u32 = 3;

/// A round's loss, in thousandths, above which it is looked at, and above which nothing but congestion
/// explains it.
const LOSS_NOTED: u64 = 20;
const LOSS_CERTAIN: u64 = 120;

/// Giving way to loss without delay shows after so many rounds whether it helped. If it did not, loss without
/// delay is not given way to for so many rounds: it comes from packets that overtake each other, or the link
/// itself.
const CUT_SHOWS_AFTER: u32 = 3;
const CUT_HOLDS_ROUNDS: u32 = 200;

/// Packets more than that which chance may take in a round.
const LOSS_CHANCE: u64 = 6;

/// A window that was never filled may be so many times what was in flight: the pacer spreads a window over a
/// round trip, and what an application hands over at once is to leave sooner than that.
const UNTESTED: u64 = 8;

/// How long propagation delay is remembered, and after which time without an empty queue one is made.
const PROPAGATION_SPAN_US: u64 = 30 * SECOND_US;
const DRAIN_AFTER_US: u64 = 5 * SECOND_US;

/// Rounds with a queue that is not ours, after which the neighbour is taken for one that fills queues.
const FILLED_ROUNDS: u32 = 6;
const FILLED_US: (u64, u64) = (9_000, 30_000);

/// Beside a neighbour that fills queues, it is tried from time to time whether it is still there. After a
/// loss, when others try too; at least so far apart; without a loss after so long; for so many rounds.
const TRIAL_APART_US: u64 = 3 * SECOND_US;
const TRIAL_LATEST_US: u64 = 6 * SECOND_US;
const TRIAL_ROUNDS: u32 = 3;

/// Rounds after this flow has given way in which the queue shows whether it was its own.
const GAVE_WAY_ROUNDS: u32 = 4;

/// A link that had so many times as much has become smaller. What is less of a difference may be a
/// neighbour's share.
const SMALLER: u64 = 4;

/// A neighbour seen so lately is taken for the same one, after so many rounds.
const LATELY_US: u64 = 15 * SECOND_US;
const FILLED_AGAIN_ROUNDS: u32 = 4;

/// What is known of a path, for its next connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remembered {
    /// The bottleneck's bandwidth, bytes a second.
    pub bandwidth: u64,
    /// The round trip without queues, microseconds.
    pub propagation_us: u64,
}

/// What happened on the path. All times are microseconds on one clock that never steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Packets left.
    Sent {
        /// Their bytes.
        bytes: u64,
    },
    /// One packet was acknowledged.
    Acked {
        /// When it was sent.
        sent_us: u64,
        /// Its bytes.
        bytes: u64,
        /// Whether, when the connection last looked, the application had nothing more to send and the window
        /// had room.
        application_limited: bool,
    },
    /// One batch of acknowledgements is complete.
    AcksEnd {
        /// Bytes still in flight.
        in_flight: u64,
        /// As in [`Event::Acked`].
        application_limited: bool,
    },
    /// Packets were lost, or the network marked them.
    Lost {
        /// When the newest of them was sent.
        sent_us: u64,
        /// Their bytes; zero for marks.
        bytes: u64,
        /// Whether nothing came through for so long that the path may be another one now.
        persistent: bool,
    },
    /// The largest packet is another one.
    Mtu {
        /// Its bytes.
        bytes: u64,
    },
}

/// What the controller wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// Bytes that may be in flight.
    pub window: u64,
    /// The model's bandwidth, bytes a second; zero while unknown. Whoever can pace apart from the window
    /// paces a little above it.
    pub bandwidth: u64,
}

/// What the controller is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// It looks for the bandwidth: what was acknowledged doubles each round while the application wants more.
    Startup,
    /// It holds the bandwidth, the queue small, and looks for more.
    Steady,
    /// It lets the queue run empty, to see the propagation delay.
    Drain,
    /// A neighbour fills the queue: the window is CUBIC's where that is larger.
    Competing,
}

/// One round trip's sums.
#[derive(Debug, Clone, Default)]
struct Round {
    begin_us: u64,
    rtt_us: Option<u64>,
    acked: u64,
    wanted: u64,
    lost: u64,
    in_flight_max: u64,
    marked: bool,
    best: u64,
    late: u32,
}

/// A controller of one path.
#[derive(Debug, Clone)]
pub struct Controller {
    phase: Phase,
    phase_us: u64,
    window: u64,
    mtu: u64,
    in_flight: u64,
    application_limited: bool,
    deliveries: Deliveries,
    bandwidth: Bandwidth,
    peak: Peak,
    propagation: Propagation,
    standing: Standing,
    /// The queue that this flow gave way to, microseconds, and for how many rounds it is still watched.
    gave_way: Option<(u64, u32)>,
    round: Round,
    resume: Option<Remembered>,
    lost_at_start: bool,
    plateau: (u64, u32),
    velocity: u64,
    /// Rounds without loss worth noting.
    quiet: u32,
    /// Rounds in a row with a long queue.
    long_rounds: u32,
    /// Halvings of the headroom, for loss without delay; and rounds since the last.
    cautious: (u32, u32),
    filled: Filled,
    cubic: Option<Cubic>,
    cut: Option<Cut>,
}

/// What came of giving way to loss without delay.
#[derive(Debug, Clone)]
struct Cut {
    loss: u64,
    rounds: u32,
    least_after: u64,
}

impl Cut {
    fn was_vain(&self) -> bool {
        let shows = self.rounds > 2 * CUT_SHOWS_AFTER && self.rounds < CUT_HOLDS_ROUNDS;
        shows && self.least_after > self.loss / 2
    }
}

/// Signs of a neighbour that fills queues.
#[derive(Debug, Clone, Default)]
struct Filled {
    rounds: u32,
    window_before: u64,
    /// The window beside a neighbour that was last seen then.
    last: Option<(u64, u64)>,
    /// Rounds that a trial still takes.
    trial: u32,
}

impl Controller {
    /// Begins on a path of which nothing is known, or what an earlier connection has left.
    #[must_use]
    pub fn new(now_us: u64, mtu: u64, resume: Option<Remembered>) -> Controller {
        let (now_us, mtu) = (now_us.min(TIME_MAX_US), mtu.clamp(1, 1 << 16));
        Controller {
            phase: Phase::Startup,
            phase_us: now_us,
            window: INITIAL_PACKETS * mtu,
            mtu,
            in_flight: 0,
            application_limited: true,
            deliveries: Deliveries::default(),
            bandwidth: Bandwidth::default(),
            peak: Peak::default(),
            propagation: Propagation::default(),
            standing: Standing::default(),
            gave_way: None,
            round: Round { begin_us: now_us, ..Round::default() },
            resume: resume.filter(|r| {
                (1..BYTES_MAX).contains(&r.bandwidth) && (1..TIME_MAX_US).contains(&r.propagation_us)
            }),
            lost_at_start: false,
            plateau: (0, 0),
            velocity: 1,
            quiet: 0,
            long_rounds: 0,
            cautious: (0, 0),
            filled: Filled::default(),
            cubic: None,
            cut: None,
        }
    }

    /// Takes an event in.
    ///
    /// Times beyond a century and bytes beyond a terabyte are taken for these.
    pub fn handle(&mut self, now_us: u64, event: Event) -> Decision {
        let now_us = now_us.min(TIME_MAX_US);
        match event {
            Event::Sent { bytes } => self.sent(now_us, bytes.min(BYTES_MAX)),
            Event::Acked { sent_us, bytes, application_limited } => {
                self.acked(now_us, sent_us.min(now_us), bytes.min(BYTES_MAX), application_limited);
            }
            Event::AcksEnd { in_flight, application_limited } => {
                self.acks_end(now_us, in_flight.min(BYTES_MAX), application_limited);
            }
            Event::Lost { sent_us, bytes, persistent } => {
                self.lost(now_us, sent_us.min(now_us), bytes.min(BYTES_MAX), persistent);
            }
            Event::Mtu { bytes } => self.mtu = bytes.clamp(1, 1 << 16),
        }
        self.decision()
    }

    /// What it wants now.
    #[must_use]
    pub fn decision(&self) -> Decision {
        let cubic = self.cubic.as_ref().filter(|_| self.filled.trial == 0).map_or(0, Cubic::window);
        let window = self.window.max(cubic).clamp(MINIMUM_PACKETS * self.mtu, WINDOW_MAX);
        Decision { window, bandwidth: self.bandwidth.get() }
    }

    /// What it is doing.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The window that a new path begins with.
    #[must_use]
    pub fn initial_window(&self) -> u64 {
        INITIAL_PACKETS * self.mtu
    }

    /// What the next connection on this path may know.
    #[must_use]
    pub fn remember(&self) -> Option<Remembered> {
        let remembered =
            Remembered { bandwidth: self.bandwidth.get(), propagation_us: self.propagation.get()? };
        Some(remembered).filter(|r| r.bandwidth > 0 && r.propagation_us > 0)
    }

    fn sent(&mut self, now_us: u64, bytes: u64) {
        let idle = self.in_flight == 0;
        self.in_flight = self.in_flight.saturating_add(bytes);
        self.round.in_flight_max = self.round.in_flight_max.max(self.in_flight);
        let limited = self.in_flight < self.nearly_full();
        self.deliveries.sent(now_us, idle, limited);
    }

    fn acked(&mut self, now_us: u64, sent_us: u64, bytes: u64, application_limited: bool) {
        let rtt_us = now_us.saturating_sub(sent_us).max(1);
        self.in_flight = self.in_flight.saturating_sub(bytes);
        self.deliveries.acked(now_us, sent_us, bytes);
        self.propagation.update(now_us, rtt_us, PROPAGATION_SPAN_US);
        self.round.rtt_us = Some(self.round.rtt_us.map_or(rtt_us, |least| least.min(rtt_us)));
        self.round.acked = self.round.acked.saturating_add(bytes);
        if application_limited {
            return;
        }
        self.round.wanted = self.round.wanted.saturating_add(bytes);
        // The queue grows already: growing further until the round's end would only lose packets.
        let queue =
            self.propagation.get().map_or(u64::MAX, |least| least.saturating_add(queue_at_start_us(least)));
        self.round.late = if rtt_us > queue { self.round.late.saturating_add(1) } else { 0 };
        let grows = self.phase == Phase::Startup && self.round.late < LATE_IN_A_ROW;
        if grows && self.window < self.untested() {
            self.window = self.window.saturating_add(bytes).min(WINDOW_MAX);
        }
        if let Some(cubic) = self.cubic.as_mut().filter(|_| self.filled.trial == 0) {
            cubic.acked(now_us, sent_us, bytes, rtt_us);
        }
    }

    fn acks_end(&mut self, now_us: u64, in_flight: u64, application_limited: bool) {
        self.in_flight = in_flight;
        self.application_limited = application_limited;
        let shortest = self.propagation.get().unwrap_or(0) / 2;
        if let Some(sample) = self.deliveries.sample(now_us, shortest) {
            self.bandwidth.update(sample);
            self.round.best = self.round.best.max(sample.rate);
        }
        self.try_resume();
        let length = self.propagation.get().unwrap_or(0).max(ROUND_SHORTEST_US);
        let rtt = self.round.rtt_us.unwrap_or(0);
        if now_us.saturating_sub(self.round.begin_us) >= length.max(rtt) && self.round.acked > 0 {
            let fresh = Round { begin_us: now_us, in_flight_max: in_flight, ..Round::default() };
            let round = std::mem::replace(&mut self.round, fresh);
            self.round_end(now_us, &round);
        }
    }

    fn lost(&mut self, now_us: u64, sent_us: u64, bytes: u64, persistent: bool) {
        self.in_flight = self.in_flight.saturating_sub(bytes);
        self.round.lost = self.round.lost.saturating_add(bytes);
        self.round.marked |= bytes == 0;
        self.lost_at_start = true;
        if let Some(cubic) = &mut self.cubic {
            cubic.lost(now_us, sent_us);
        }
        if persistent {
            // As a new connection: what was known is tried again, carefully.
            let known = self.remember();
            *self = Controller { in_flight: self.in_flight, ..Controller::new(now_us, self.mtu, known) };
        }
    }

    /// Jumps to half of what an earlier connection had, once the path has shown to be as long as it was and
    /// nothing was lost.
    fn try_resume(&mut self) {
        let (Some(known), Some(least)) = (self.resume, self.propagation.get()) else { return };
        self.resume = None;
        let same = least >= known.propagation_us / 2 && least <= known.propagation_us.saturating_mul(2);
        if same && !self.lost_at_start && self.phase == Phase::Startup {
            let half = mul_div(known.bandwidth, known.propagation_us.min(least), 2 * SECOND_US);
            self.window = self.window.max(half).min(WINDOW_MAX);
        }
    }

    fn round_end(&mut self, now_us: u64, round: &Round) {
        let (Some(least), Some(rtt)) = (self.propagation.get(), round.rtt_us) else { return };
        let pushed = round.in_flight_max >= self.nearly_full();
        let wanted = round.wanted.saturating_mul(2) >= round.acked;
        self.peak.update(now_us, self.bandwidth.get(), PROPAGATION_SPAN_US);
        if pushed {
            self.bandwidth.round();
        }
        let seen = Seen {
            least,
            rtt,
            queue: rtt.saturating_sub(least),
            loss: mul_div(round.lost, 1000, round.lost.saturating_add(round.acked)),
            lost_packets: round.lost / self.mtu,
            lossy: round.lost
                > mul_div(round.lost.saturating_add(round.acked), LOSS_NOTED, 1000)
                    .saturating_add(LOSS_CHANCE * self.mtu),
            rate: mul_div(round.acked, SECOND_US, now_us.saturating_sub(round.begin_us).max(1)),
            pushed,
            wanted,
            marked: round.marked,
            in_flight: round.in_flight_max,
        };
        if self.watch_for_a_longer_path(now_us, &seen) {
            return;
        }
        match self.phase {
            Phase::Startup => self.startup(now_us, &seen),
            Phase::Steady => self.steady(now_us, &seen),
            Phase::Drain => {
                self.window = self.full(seen.least);
                self.enter(now_us, Phase::Steady);
            }
            Phase::Competing => self.competing(now_us, &seen),
        }
    }

    fn startup(&mut self, now_us: u64, seen: &Seen) {
        if !seen.pushed || !seen.wanted {
            return;
        }
        let queue = queue_at_start_us(seen.least);
        let lossy = seen.lossy && seen.queue > queue / 4;
        let bandwidth = self.bandwidth.get();
        let (before, rounds) = self.plateau;
        self.plateau = if bandwidth >= before + before / 4 {
            (bandwidth, 0)
        } else {
            (before, rounds.saturating_add(1))
        };
        let full = self.plateau.1 >= PLATEAU_ROUNDS;
        if seen.queue > queue || lossy || full || seen.marked || (seen.lossy && seen.loss > LOSS_CERTAIN) {
            let window = self.window;
            self.window = self.full(seen.least).min(self.window);
            self.velocity = 1;
            self.enter(now_us, Phase::Steady);
            if lossy && seen.queue <= queue {
                // Loss before delay: the queue was full when this flow came. Its propagation delay may not
                // have been seen yet.
                let window = mul_div(window, 7, 10);
                self.cubic = Some(Cubic::new(window, window, self.mtu));
                self.enter(now_us, Phase::Competing);
            }
        }
    }

    fn steady(&mut self, now_us: u64, seen: &Seen) {
        let headroom = self.headroom();
        self.watch_for_a_smaller_link(now_us, seen);
        self.watch_for_neighbours(now_us, seen);
        if self.phase != Phase::Steady {
            return;
        }
        if !seen.pushed || !seen.wanted {
            // The window was not the limit: it is no cause of anything. What the application wants faster, it
            // gets.
            if seen.wanted
                && seen.queue <= self.headroom_us()
                && self.window < seen.in_flight.saturating_mul(UNTESTED)
            {
                self.window = self.window.saturating_add(self.window / 4).min(WINDOW_MAX);
            }
            return;
        }
        if self.congested(now_us, seen) {
            return;
        }
        let kept = mul_div(self.window, seen.least, seen.rtt);
        let target = kept.saturating_add(headroom);
        if target < self.window {
            self.velocity = 1;
            self.window -= (self.window - target) / 2;
        } else if seen.wanted {
            // The longer there is no queue, the faster it grows: the link may have become another one.
            let empty = seen.queue < (self.headroom_us() / 2).max((seen.least / 16).min(5_000))
                && self.quiet >= QUIET_ROUNDS;
            self.velocity = if empty { (self.velocity * 2).min(1 << 16) } else { 1 };
            // Never far beyond what the model says: it follows when there is more.
            let full = self.full(seen.least);
            let ahead = mul_div(self.bandwidth.get(), AHEAD_LONGEST_US, SECOND_US).min(full / 4);
            let most = full.saturating_add(ahead).max(self.window);
            let growth = ((target - self.window) / 2).saturating_mul(self.velocity);
            self.window = self.window.saturating_add(growth).min(most).min(WINDOW_MAX);
        }
        let long_ago = now_us.saturating_sub(self.propagation.met_us()) > DRAIN_AFTER_US;
        if long_ago && now_us.saturating_sub(self.phase_us) > DRAIN_AFTER_US {
            self.enter(now_us, Phase::Drain);
        }
    }

    /// A queue that goes when this flow gives way was its own: the link has become smaller.
    fn watch_for_a_smaller_link(&mut self, now_us: u64, seen: &Seen) {
        let Some((queue, rounds)) = self.gave_way else { return };
        if seen.queue <= queue / 4 && self.bandwidth.get() < self.peak.get() / SMALLER {
            self.peak.reset(now_us, self.bandwidth.get());
            self.filled.rounds = 0;
            self.gave_way = None;
        } else {
            self.gave_way = rounds.checked_sub(1).map(|rounds| (queue, rounds));
        }
    }

    /// Gives way to congestion. Whether there was any.
    fn congested(&mut self, now_us: u64, seen: &Seen) -> bool {
        let headroom_us = self.headroom_us();
        let lossy = seen.lossy;
        let long = seen.queue > (seen.least / 2).max(4 * headroom_us).max(FILLED_US.0);
        // Beside a neighbour that fills queues, neither a long queue nor the loss at its end is this flow's
        // doing. One round may be a machine that stood still.
        self.long_rounds = if long { self.long_rounds.saturating_add(1) } else { 0 };
        let long = self.long_rounds >= 2 && self.lately(now_us).is_none();
        let lossy_queue =
            lossy && seen.queue > headroom_us + headroom_us / 2 && self.lately(now_us).is_none();
        let certain = self.certainly_lossy(if lossy { seen.loss } else { 0 });
        let lossy = lossy && !self.cut.as_ref().is_some_and(Cut::was_vain);
        self.quiet = if lossy { 0 } else { self.quiet.saturating_add(1) };
        if long || seen.marked || lossy_queue || certain {
            if long {
                self.gave_way = Some((seen.queue, GAVE_WAY_ROUNDS));
            }
            // What came through is what there is.
            self.bandwidth.reset(seen.rate);
            let there = mul_div(seen.rate, seen.least, SECOND_US).saturating_add(self.headroom() / 2);
            self.window = there.clamp(self.window / 8, self.window);
            self.velocity = 1;
            return true;
        }
        if lossy {
            // A queue too small for the headroom looks like this; so does a lossy link, which loses nothing
            // by it.
            self.cautious = ((self.cautious.0 + 1).min(3), 0);
        } else if self.cautious.0 > 0 {
            self.cautious.1 = self.cautious.1.saturating_add(1);
            if self.cautious.1 > BANDWIDTH_PATIENCE {
                self.cautious = (self.cautious.0 - 1, 0);
            }
        }
        false
    }

    /// Whether loss is so high that nothing but congestion explains it, and giving way to it has not been in
    /// vain.
    fn certainly_lossy(&mut self, loss: u64) -> bool {
        if let Some(cut) = &mut self.cut {
            cut.rounds = cut.rounds.saturating_add(1);
            if cut.rounds > CUT_SHOWS_AFTER {
                cut.least_after = cut.least_after.min(loss);
            }
            if cut.rounds <= 2 * CUT_SHOWS_AFTER || cut.was_vain() {
                return false;
            }
        }
        let certain = loss > LOSS_CERTAIN;
        if certain {
            self.cut = Some(Cut { loss, rounds: 0, least_after: loss });
        }
        certain
    }

    /// Whether what looked like a queue is the path, which has become longer. Its bandwidth is looked for
    /// anew, from what this flow had before it gave way.
    fn watch_for_a_longer_path(&mut self, now_us: u64, seen: &Seen) -> bool {
        if seen.queue <= (seen.least / 2).max(FILLED_US.0) {
            self.standing.clear(seen.queue);
            return false;
        }
        let standing = self.standing.round(seen.rtt, seen.queue, seen.in_flight, self.decision().window);
        let Some((rtt_us, window)) = standing else { return false };
        self.propagation.lengthen(now_us, rtt_us);
        self.standing.clear(0);
        self.filled = Filled::default();
        (self.cubic, self.cut, self.plateau, self.velocity, self.long_rounds) = (None, None, (0, 0), 1, 0);
        self.window = self.window.max(window);
        self.enter(now_us, Phase::Startup);
        true
    }

    /// A queue that stays although this flow gives way is a neighbour's.
    fn watch_for_neighbours(&mut self, now_us: u64, seen: &Seen) {
        if seen.queue <= self.filled_us(seen.least) || !(seen.pushed || seen.wanted) {
            self.filled.rounds = 0;
            return;
        }
        if self.filled.rounds == 0 {
            self.filled.window_before = self.window;
        }
        self.filled.rounds = self.filled.rounds.saturating_add(1);
        let last = self.lately(now_us);
        let rounds = if last.is_some() { FILLED_AGAIN_ROUNDS } else { FILLED_ROUNDS };
        if self.filled.rounds >= rounds {
            // Half of the link, as far as it was seen lately, is what two flows have.
            let half = mul_div(self.peak.get(), seen.least, 2 * SECOND_US);
            let window = self.filled.window_before.max(self.window).max(last.unwrap_or(half));
            self.cubic = Some(Cubic::new(window, window, self.mtu));
            self.filled.trial = 0;
            self.enter(now_us, Phase::Competing);
        }
    }

    /// The window that was held beside a neighbour that filled the queue, if that was lately.
    fn lately(&self, now_us: u64) -> Option<u64> {
        let (at, window) = self.filled.last?;
        (now_us.saturating_sub(at) < LATELY_US).then_some(window)
    }

    fn competing(&mut self, now_us: u64, seen: &Seen) {
        let Some(cubic) = &self.cubic else { return self.enter(now_us, Phase::Steady) };
        let fair = mul_div(seen.rate, seen.least, SECOND_US);
        let since = now_us.saturating_sub(self.phase_us);
        let met = seen.queue <= self.filled_us(seen.least) / 2;
        if met && (self.filled.trial > 0 || since > TRIAL_APART_US) {
            self.filled = Filled { last: Some((now_us, cubic.window())), ..Filled::default() };
            self.window = cubic.window().min(self.full(seen.least)).max(fair);
            self.cubic = None;
            return self.enter(now_us, Phase::Steady);
        }
        if self.filled.trial > 0 {
            self.filled.trial -= 1;
            if self.filled.trial == 0 {
                self.phase_us = now_us;
            }
            return;
        }
        // Not less than the share that its own rules would take.
        self.window = fair.saturating_add(self.headroom());
        if (since > TRIAL_APART_US && seen.lost_packets > 0) || since > TRIAL_LATEST_US {
            self.filled.trial = TRIAL_ROUNDS;
            self.window = fair / 4 * 3;
        }
    }

    fn enter(&mut self, now_us: u64, phase: Phase) {
        if phase == Phase::Drain {
            let there = mul_div(self.bandwidth.get(), self.propagation.get().unwrap_or(0), SECOND_US);
            self.window = (there / 4 * 3).min(self.window);
        }
        self.phase = phase;
        self.phase_us = now_us;
    }

    /// What fills the path, with the headroom.
    fn full(&self, least_us: u64) -> u64 {
        mul_div(self.bandwidth.get(), least_us, SECOND_US).saturating_add(self.headroom())
    }

    fn headroom(&self) -> u64 {
        let bandwidth = self.bandwidth.get();
        let most = mul_div(bandwidth, HEADROOM_LONGEST_US, SECOND_US);
        ((HEADROOM * self.peak.get().max(bandwidth).isqrt()).max(HEADROOM_LEAST).min(most) >> self.cautious.0)
            .max(2 * self.mtu)
    }

    fn headroom_us(&self) -> u64 {
        mul_div(self.headroom(), SECOND_US, self.bandwidth.get().max(1))
    }

    /// The headroom at the link's bandwidth, as far as it was seen lately.
    fn link_headroom_us(&self) -> u64 {
        let bandwidth = self.peak.get().max(self.bandwidth.get()).max(1);
        mul_div(HEADROOM * bandwidth.isqrt(), SECOND_US, bandwidth)
    }

    fn filled_us(&self, least_us: u64) -> u64 {
        // A starved flow's own headroom is long: it is no measure.
        (self.link_headroom_us().saturating_mul(5) / 2).max(least_us / 16).clamp(FILLED_US.0, FILLED_US.1)
    }

    fn nearly_full(&self) -> u64 {
        let window = self.decision().window;
        window - window / 4
    }

    fn untested(&self) -> u64 {
        let in_flight = self.round.in_flight_max.max(self.in_flight);
        in_flight.saturating_mul(UNTESTED).max(self.initial_window())
    }
}

/// Growth goes ahead of the model by at most this much queue, if there is no more room.
const AHEAD_LONGEST_US: u64 = 15_000;

/// Packets in a row that met a queue, after which start-up does not go on to grow.
const LATE_IN_A_ROW: u32 = 16;

fn queue_at_start_us(least_us: u64) -> u64 {
    (least_us / 8).clamp(QUEUE_AT_START_US.0, QUEUE_AT_START_US.1)
}

/// Rounds without loss after which growth may become faster and faster.
const QUIET_ROUNDS: u32 = 5;

/// Rounds without loss after which the headroom doubles again.
const BANDWIDTH_PATIENCE: u32 = 10;

/// What one round showed.
#[derive(Debug)]
struct Seen {
    least: u64,
    rtt: u64,
    queue: u64,
    loss: u64,
    lost_packets: u64,
    /// Whether that is more than 2 % and not by chance.
    lossy: bool,
    rate: u64,
    pushed: bool,
    wanted: bool,
    marked: bool,
    in_flight: u64,
}
