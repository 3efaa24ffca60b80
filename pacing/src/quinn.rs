//! The adapter to quinn-proto: its instants become microseconds, its calls become events. It decides nothing.

use std::any::Any;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use quinn_proto::RttEstimator;
use quinn_proto::congestion::{Controller as QuinnController, ControllerFactory, ControllerMetrics};

use crate::controller::{Controller, Event};
use crate::memory::Memory;

/// How often what is known of a path is put down, for its next connection.
const REMEMBER_EVERY_US: u64 = 1_000_000;

/// Makes controllers for quinn's `TransportConfig`, and remembers paths between connections. Clones share
/// what they remember.
#[derive(Debug, Clone, Default)]
pub struct Paths {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    begin: std::sync::OnceLock<Instant>,
    memory: Mutex<Memory<IpAddr>>,
}

impl Paths {
    /// Knows no path yet.
    #[must_use]
    pub fn new() -> Paths {
        Paths::default()
    }

    /// A factory for connections with the peer at `address`; without it, nothing is remembered.
    #[must_use]
    pub fn factory(&self, address: Option<IpAddr>) -> Arc<dyn ControllerFactory + Send + Sync> {
        Arc::new(Factory { shared: self.shared.clone(), address })
    }
}

impl Shared {
    fn us(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(*self.begin.get_or_init(|| at));
        // Not zero: a time before the first is then still told from it.
        u64::try_from(since.as_micros()).unwrap_or(u64::MAX).saturating_add(1)
    }
}

struct Factory {
    shared: Arc<Shared>,
    address: Option<IpAddr>,
}

impl ControllerFactory for Factory {
    fn build(self: Arc<Self>, now: Instant, mtu: u16) -> Box<dyn QuinnController> {
        let now_us = self.shared.us(now);
        let memory = self.shared.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let known = self.address.and_then(|address| memory.recall(now_us, &address));
        let controller = Controller::new(now_us, u64::from(mtu), known);
        drop(memory);
        Box::new(Adapter {
            shared: self.shared.clone(),
            address: self.address,
            controller,
            remembered_us: now_us,
        })
    }
}

#[derive(Clone)]
struct Adapter {
    shared: Arc<Shared>,
    address: Option<IpAddr>,
    controller: Controller,
    remembered_us: u64,
}

impl QuinnController for Adapter {
    fn on_sent(&mut self, now: Instant, bytes: u64, _last_packet_number: u64) {
        self.controller.handle(self.shared.us(now), Event::Sent { bytes });
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, _rtt: &RttEstimator) {
        let event = Event::Acked { sent_us: self.shared.us(sent), bytes, application_limited: app_limited };
        self.controller.handle(self.shared.us(now), event);
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, _largest: Option<u64>) {
        let now_us = self.shared.us(now);
        self.controller.handle(now_us, Event::AcksEnd { in_flight, application_limited: app_limited });
        let Some(address) = self.address else { return };
        if now_us.saturating_sub(self.remembered_us) >= REMEMBER_EVERY_US {
            self.remembered_us = now_us;
            if let Some(path) = self.controller.remember() {
                let mut memory = self.shared.memory.lock().unwrap_or_else(PoisonError::into_inner);
                memory.remember(now_us, &address, path);
            }
        }
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, persistent: bool, lost_bytes: u64) {
        let event = Event::Lost { sent_us: self.shared.us(sent), bytes: lost_bytes, persistent };
        self.controller.handle(self.shared.us(now), event);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        // The time is of no account for it.
        self.controller.handle(0, Event::Mtu { bytes: u64::from(new_mtu) });
    }

    fn window(&self) -> u64 {
        self.controller.decision().window
    }

    fn metrics(&self) -> ControllerMetrics {
        let decision = self.controller.decision();
        let mut metrics = ControllerMetrics::default();
        metrics.congestion_window = decision.window;
        metrics.pacing_rate = Some(decision.bandwidth.saturating_mul(8)).filter(|rate| *rate > 0);
        metrics
    }

    fn clone_box(&self) -> Box<dyn QuinnController> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        self.controller.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

/// A window that never changes, whatever the path does: a baseline for measurements, and no way to treat a
/// shared network.
#[derive(Debug, Clone, Copy)]
pub struct FixedWindow(
    /// Bytes that may be in flight.
    pub u64,
);

impl ControllerFactory for FixedWindow {
    fn build(self: Arc<Self>, _now: Instant, _mtu: u16) -> Box<dyn QuinnController> {
        Box::new(*self)
    }
}

impl QuinnController for FixedWindow {
    fn on_congestion_event(&mut self, _now: Instant, _sent: Instant, _persistent: bool, _lost_bytes: u64) {}

    fn on_mtu_update(&mut self, _new_mtu: u16) {}

    fn window(&self) -> u64 {
        self.0
    }

    fn clone_box(&self) -> Box<dyn QuinnController> {
        Box::new(*self)
    }

    fn initial_window(&self) -> u64 {
        self.0
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}
