//! One sender: quinn-proto's rules of when a packet may leave and when one is lost, a controller, and an
//! application.

use std::collections::{BTreeMap, BTreeSet};

use replicator_pacing::{Controller, Cubic, Event, Remembered};

use super::PACKET;

/// What an application wants to send.
#[derive(Debug, Clone, Copy)]
pub enum Application {
    /// All that is let through.
    Bulk,
    /// `packets` every `every_us`.
    Bursts { packets: u64, every_us: u64 },
    /// In bursts, and then, from a time on, all that is let through.
    BurstsThenBulk { packets: u64, every_us: u64, from_us: u64 },
    /// All that is let through, but for a while in bursts.
    BulkBut { packets: u64, every_us: u64, from_us: u64, to_us: u64 },
}

impl Application {
    /// The bursts that it is in at `now`, their interval, and when they end.
    fn bursts(&self, now: u64) -> Option<(u64, u64, u64)> {
        match *self {
            Application::Bulk => None,
            Application::Bursts { packets, every_us } => Some((packets, every_us, u64::MAX)),
            Application::BurstsThenBulk { packets, every_us, from_us } => {
                (now < from_us).then_some((packets, every_us, from_us))
            }
            Application::BulkBut { packets, every_us, from_us, to_us } => {
                (from_us..to_us).contains(&now).then_some((packets, every_us, to_us))
            }
        }
    }
}

/// Who says how much may be in flight.
pub enum Control {
    Pacing(Box<Controller>),
    Cubic(Cubic),
    Fixed(u64),
}

impl Control {
    pub fn pacing() -> Control {
        Control::Pacing(Box::new(Controller::new(0, PACKET, None)))
    }

    pub fn resumed(known: Remembered) -> Control {
        Control::Pacing(Box::new(Controller::new(0, PACKET, Some(known))))
    }

    pub fn cubic() -> Control {
        Control::Cubic(Cubic::new(12_000, u64::MAX, PACKET))
    }

    pub fn window(&self) -> u64 {
        match self {
            Control::Pacing(controller) => controller.decision().window,
            Control::Cubic(cubic) => cubic.window(),
            Control::Fixed(window) => *window,
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Sent {
    at_us: u64,
    /// When its bytes were handed over by the application.
    handed_us: u64,
}

/// A sender, and what is measured of it.
pub struct Flow {
    pub control: Control,
    pub application: Application,
    pub begins_us: u64,
    pub ends_us: u64,
    /// Packets that have arrived.
    pub arrived: u64,
    pub sent: u64,
    pub lost: u64,
    /// How long packets waited at the sender: window, pacer, and the discovery of losses included.
    pub held_us: Vec<u64>,
    next: u64,
    in_flight: BTreeMap<u64, Sent>,
    bytes_in_flight: u64,
    /// Packets that wait to be sent again, or for the first time: when they were handed over.
    waiting: std::collections::VecDeque<u64>,
    /// The last interval whose burst was handed over.
    handed: Option<u64>,
    largest_acked: Option<u64>,
    application_limited: bool,
    srtt_us: Option<u64>,
    var_us: u64,
    latest_us: u64,
    tokens: u64,
    tokens_us: u64,
    blocked_until_us: Option<u64>,
    probes: u64,
    probe_count: u32,
    last_sent_us: u64,
    wakes: BTreeSet<u64>,
}

impl Flow {
    pub fn new(control: Control, application: Application) -> Flow {
        Flow {
            control,
            application,
            begins_us: 0,
            ends_us: u64::MAX,
            arrived: 0,
            sent: 0,
            lost: 0,
            held_us: Vec::new(),
            next: 0,
            in_flight: BTreeMap::new(),
            bytes_in_flight: 0,
            waiting: std::collections::VecDeque::new(),
            handed: None,
            largest_acked: None,
            application_limited: true,
            srtt_us: None,
            var_us: 0,
            latest_us: 333_000,
            tokens: 10 * PACKET,
            tokens_us: 0,
            blocked_until_us: None,
            probes: 0,
            probe_count: 0,
            last_sent_us: 0,
            wakes: BTreeSet::new(),
        }
    }

    pub fn between(self, begins_us: u64, ends_us: u64) -> Flow {
        Flow { begins_us, ends_us, ..self }
    }

    pub fn controller(&self) -> &Controller {
        match &self.control {
            Control::Pacing(controller) => controller,
            _ => panic!("it has another one"),
        }
    }

    pub(super) fn received(&mut self, _now: u64, _number: u64) {
        self.arrived += 1;
    }

    pub(super) fn wakes(&mut self, now: u64) -> bool {
        self.wakes.remove(&now);
        let blocked = self.loss_time(now);
        if blocked.is_some_and(|at| at <= now) {
            self.detect(now);
        }
        if self.probe_time().is_some_and(|at| at <= now) {
            self.probes = 2;
            self.probe_count = (self.probe_count + 1).min(6);
            self.last_sent_us = now;
        }
        true
    }

    pub(super) fn next_wake(&mut self, now: u64) -> Option<u64> {
        let times = [self.blocked_until_us, self.loss_time(now), self.probe_time(), self.hands_over(now)];
        let at = times.into_iter().flatten().map(|at| at.max(now + 1)).min()?;
        // One event for one time.
        if self.wakes.first().is_some_and(|first| *first <= at) {
            return None;
        }
        self.wakes.insert(at).then_some(at)
    }

    fn hands_over(&self, now: u64) -> Option<u64> {
        let (_, every_us, end_us) = self.application.bursts(now)?;
        Some(((now / every_us + 1) * every_us).min(end_us))
    }

    fn hand_over(&mut self, now: u64) {
        let Some((packets, every_us, _)) = self.application.bursts(now) else { return };
        let tick = now / every_us;
        if now >= self.ends_us || self.handed.is_some_and(|last| last >= tick) {
            return;
        }
        self.handed = Some(tick);
        self.waiting.extend(std::iter::repeat_n(tick * every_us, usize::try_from(packets).unwrap()));
    }

    fn unlimited(&self, now: u64) -> bool {
        now < self.ends_us && self.application.bursts(now).is_none()
    }

    pub(super) fn transmit(&mut self, now: u64) -> Vec<u64> {
        self.hand_over(now);
        self.blocked_until_us = None;
        let mut numbers = Vec::new();
        let mut limited = true;
        loop {
            let unlimited = self.unlimited(now);
            if self.waiting.is_empty() && !unlimited && self.probes == 0 {
                break;
            }
            if self.probes == 0 {
                if self.bytes_in_flight + PACKET >= self.control.window() {
                    limited = false;
                    break;
                }
                if let Some(at) = self.pacer(now) {
                    self.blocked_until_us = Some(at);
                    limited = false;
                    break;
                }
            }
            self.probes = self.probes.saturating_sub(1);
            self.tokens = self.tokens.saturating_sub(PACKET);
            let handed = self.waiting.pop_front().unwrap_or(now);
            self.held_us.push(now.saturating_sub(handed));
            self.in_flight.insert(self.next, Sent { at_us: now, handed_us: handed });
            self.bytes_in_flight += PACKET;
            self.last_sent_us = now;
            self.sent += 1;
            numbers.push(self.next);
            self.next += 1;
        }
        self.application_limited = limited;
        // One call for each burst of the segmentation offload.
        for burst in numbers.chunks(10) {
            self.event(now, Event::Sent { bytes: burst.len() as u64 * PACKET });
        }
        numbers
    }

    fn event(&mut self, now: u64, event: Event) {
        if let Control::Pacing(controller) = &mut self.control {
            controller.handle(now, event);
        }
    }

    fn pacer(&mut self, now: u64) -> Option<u64> {
        let (srtt, window) = (self.srtt_us.unwrap_or(self.latest_us).max(1), self.control.window());
        let capacity = (window * 2000 / srtt).clamp(10 * PACKET, 256 * PACKET);
        self.tokens = self.tokens.min(capacity);
        if self.tokens >= PACKET {
            return None;
        }
        let new = window * 5 / 4 * (now - self.tokens_us) / srtt;
        self.tokens = (self.tokens + new).min(capacity);
        self.tokens_us = now;
        (self.tokens < PACKET).then(|| now + ((capacity - self.tokens) * srtt / window * 4 / 5).max(1))
    }

    pub(super) fn acknowledged(&mut self, now: u64, numbers: &[u64]) {
        let Some(largest) = numbers.iter().copied().max() else { return };
        let new_largest = self.largest_acked.is_none_or(|l| l < largest);
        self.largest_acked = self.largest_acked.max(Some(largest));
        let (mut any, mut largest_sent) = (false, None);
        for number in numbers {
            let Some(sent) = self.in_flight.remove(number) else { continue };
            any = true;
            self.bytes_in_flight -= PACKET;
            if *number == largest {
                largest_sent = Some(sent.at_us);
            }
            let rtt = self.srtt_us.unwrap_or(self.latest_us);
            let limited = self.application_limited;
            match &mut self.control {
                Control::Pacing(controller) => {
                    let event =
                        Event::Acked { sent_us: sent.at_us, bytes: PACKET, application_limited: limited };
                    controller.handle(now, event);
                }
                Control::Cubic(cubic) if !limited => cubic.acked(now, sent.at_us, PACKET, rtt),
                _ => {}
            }
        }
        if !any {
            return;
        }
        self.probe_count = 0;
        let (in_flight, limited) = (self.bytes_in_flight, self.application_limited);
        self.event(now, Event::AcksEnd { in_flight, application_limited: limited });
        if let Some(sent) = largest_sent.filter(|_| new_largest) {
            let rtt = now - sent;
            self.latest_us = rtt;
            match self.srtt_us {
                None => (self.srtt_us, self.var_us) = (Some(rtt), rtt / 2),
                Some(srtt) => {
                    self.var_us = (3 * self.var_us + srtt.abs_diff(rtt)) / 4;
                    self.srtt_us = Some((7 * srtt + rtt) / 8);
                }
            }
        }
        self.detect(now);
    }

    fn loss_delay(&self) -> u64 {
        (self.srtt_us.unwrap_or(0).max(self.latest_us) * 9 / 8).max(1000)
    }

    fn loss_time(&self, _now: u64) -> Option<u64> {
        let largest = self.largest_acked?;
        let (_, sent) = self.in_flight.range(..largest).next()?;
        Some(sent.at_us + self.loss_delay())
    }

    fn probe_time(&self) -> Option<u64> {
        self.in_flight.first_key_value()?;
        let srtt = self.srtt_us.unwrap_or(self.latest_us);
        Some(self.last_sent_us + ((srtt + (4 * self.var_us).max(1000) + 25_000) << self.probe_count))
    }

    fn detect(&mut self, now: u64) {
        let Some(largest) = self.largest_acked else { return };
        let delay = self.loss_delay();
        let lost: Vec<(u64, Sent)> = self
            .in_flight
            .range(..largest)
            .filter(|(number, sent)| **number + 3 <= largest || sent.at_us + delay <= now)
            .map(|(number, sent)| (*number, *sent))
            .collect();
        let Some((_, newest)) = lost.last().copied() else { return };
        for (number, sent) in &lost {
            self.in_flight.remove(number);
            self.waiting.push_front(sent.handed_us);
        }
        let bytes = lost.len() as u64 * PACKET;
        self.lost += lost.len() as u64;
        self.bytes_in_flight -= bytes;
        let span = newest.at_us - lost[0].1.at_us;
        let srtt = self.srtt_us.unwrap_or(self.latest_us);
        let persistent =
            span > 3 * (srtt + 4 * self.var_us + 25_000) && lost.len() as u64 == newest_run(&lost);
        match &mut self.control {
            Control::Pacing(controller) => {
                controller.handle(now, Event::Lost { sent_us: newest.at_us, bytes, persistent });
            }
            Control::Cubic(cubic) => cubic.lost(now, newest.at_us),
            Control::Fixed(_) => {}
        }
    }
}

/// How many of the lost packets are a run without a gap.
fn newest_run(lost: &[(u64, Sent)]) -> u64 {
    lost.windows(2).rev().take_while(|pair| pair[0].0 + 1 == pair[1].0).count() as u64 + 1
}
