//! A network of two hosts in memory, on tokio's paused clock: real endpoints, their real packets, and a path
//! that loses, delays and queues them by a seed. Seconds of it take milliseconds.

use std::collections::BTreeMap;
use std::fmt::{Debug, Formatter};
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use runtime::clock::now;
use tokio::time::{Instant, Sleep};

/// The largest UDP payload that passes.
const PAYLOAD_MAX: usize = 1472;

/// IPv4 and UDP headers.
const HEADERS: u64 = 28;

/// A linear congruential generator: nothing here depends on its quality.
#[derive(Debug, Clone)]
pub struct Dice(pub u64);

impl Dice {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound.max(1)
    }
}

/// How one direction is.
#[derive(Debug, Clone, Copy, Default)]
pub struct Weather {
    pub delay_us: u64,
    pub loss_ppm: u64,
    /// Packets lost in a row, once one is; one where it is zero.
    pub burst: u64,
    /// Up to so much later, so that packets overtake each other.
    pub jitter_us: u64,
    /// Bits a second; no bound without it. What would wait longer than `queue_us` is dropped.
    pub rate: Option<u64>,
    pub queue_us: u64,
    /// Each so many-th packet comes twice.
    pub twice: Option<u64>,
}

/// What a direction carried.
#[derive(Debug, Clone, Copy, Default)]
pub struct Carried {
    pub packets: u64,
    pub bytes: u64,
}

struct Direction {
    weather: Weather,
    dice: Dice,
    bursting: u64,
    free_at: Instant,
    carried: Carried,
    /// What is under way, by when it arrives.
    under_way: BTreeMap<(Instant, u64), Vec<u8>>,
    timer: Pin<Box<Sleep>>,
    reader: Option<Waker>,
}

/// One end: a socket for an endpoint.
pub struct Host {
    own: SocketAddr,
    other: SocketAddr,
    incoming: Arc<Mutex<Direction>>,
    outgoing: Arc<Mutex<Direction>>,
}

/// Two hosts, in a runtime whose time is paused.
pub fn hosts() -> [Arc<Host>; 2] {
    let direction = || {
        Arc::new(Mutex::new(Direction {
            weather: Weather::default(),
            dice: Dice(0),
            bursting: 0,
            free_at: now(),
            carried: Carried::default(),
            under_way: BTreeMap::new(),
            timer: Box::pin(tokio::time::sleep(Duration::ZERO)),
            reader: None,
        }))
    };
    let (there, back) = (direction(), direction());
    let [a, b] = [1, 2].map(|host| SocketAddr::from(([10, 0, 0, host], 7400)));
    let host = |own, other, incoming: &Arc<_>, outgoing: &Arc<_>| {
        Arc::new(Host { own, other, incoming: Arc::clone(incoming), outgoing: Arc::clone(outgoing) })
    };
    [host(a, b, &back, &there), host(b, a, &there, &back)]
}

impl Host {
    pub fn address(&self) -> SocketAddr {
        self.own
    }

    /// What leaves here meets this from now on, and its fate is drawn by `seed`.
    pub fn weather(&self, weather: Weather, seed: u64) {
        let direction = &mut *self.outgoing.lock().unwrap();
        (direction.weather, direction.dice) = (weather, Dice(seed));
    }

    /// What left here so far.
    pub fn carried(&self) -> Carried {
        self.outgoing.lock().unwrap().carried
    }
}

impl Direction {
    fn pass(&mut self, packet: &[u8]) {
        let (weather, at) = (self.weather, now());
        self.carried.packets += 1;
        self.carried.bytes += packet.len() as u64 + HEADERS;
        let mut due = at;
        if let Some(rate) = weather.rate {
            let free_at = self.free_at.max(at);
            let waits = free_at - at;
            if waits > Duration::from_micros(weather.queue_us) {
                return;
            }
            let bits = (packet.len() as u64 + HEADERS) * 8;
            self.free_at = free_at + Duration::from_nanos(bits * 1_000_000_000 / rate);
            due = self.free_at;
        }
        if self.loses() || packet.len() > PAYLOAD_MAX {
            return;
        }
        due += Duration::from_micros(weather.delay_us + self.dice.below(weather.jitter_us + 1));
        let number = self.carried.packets * 2;
        self.under_way.insert((due, number), packet.to_vec());
        if weather.twice.is_some_and(|each| self.carried.packets.is_multiple_of(each)) {
            self.under_way.insert((due, number + 1), packet.to_vec());
        }
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    fn loses(&mut self) -> bool {
        if self.bursting > 0 {
            self.bursting -= 1;
            return true;
        }
        let lost = self.weather.loss_ppm > 0 && self.dice.below(1_000_000) < self.weather.loss_ppm;
        self.bursting = if lost { self.weather.burst.saturating_sub(1) } else { 0 };
        lost
    }
}

impl Debug for Host {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.own)
    }
}

/// What is sent here never waits.
#[derive(Debug)]
struct Ready;

impl UdpPoller for Ready {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl AsyncUdpSocket for Host {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Ready)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let direction = &mut *self.outgoing.lock().unwrap();
        let segment = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        transmit.contents.chunks(segment).for_each(|packet| direction.pass(packet));
        Ok(())
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let direction = &mut *self.incoming.lock().unwrap();
        let mut filled = 0;
        while filled < buffers.len() {
            let Some(first) = direction.under_way.first_entry() else { break };
            if first.key().0 > now() {
                break;
            }
            let packet = first.remove();
            buffers[filled][..packet.len()].copy_from_slice(&packet);
            meta[filled] = RecvMeta {
                addr: self.other,
                len: packet.len(),
                stride: packet.len(),
                ecn: None,
                dst_ip: Some(self.own.ip()),
            };
            filled += 1;
        }
        if filled > 0 {
            return Poll::Ready(Ok(filled));
        }
        direction.reader = Some(context.waker().clone());
        if let Some(((due, _), _)) = direction.under_way.first_key_value() {
            direction.timer.as_mut().reset(*due);
            if direction.timer.as_mut().poll(context).is_ready() {
                context.waker().wake_by_ref();
            }
        }
        Poll::Pending
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.own)
    }

    fn max_transmit_segments(&self) -> usize {
        10
    }

    fn may_fragment(&self) -> bool {
        false
    }
}
