//! The wide-area network between regions: it forwards their datagrams, late, or not at all.
//!
//! Each region is on a network of its own. What it sends to another goes to an address of this process on
//! that network, one for each other region; from there it is sent on with the network's delay and loss, from
//! an address on the other's network; and what is answered goes back the same way.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use replicator_tests::now;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// The most datagrams on one way: 90 MB of full ones, more than a fast link has under way.
const UNDER_WAY_MAX: usize = 1 << 16;

/// What a datagram can be at most.
const DATAGRAM_BYTES_MAX: usize = 65_536;

/// What the kernel keeps for us while we are not on a processor.
const BUFFER_BYTES: usize = 4 << 20;

/// How the network is.
#[derive(Debug, Clone, Default)]
pub struct Weather {
    /// One way.
    pub delay: Duration,
    /// Up to so much more; nothing overtakes what was sent before it.
    pub jitter: Duration,
    /// Of a thousand datagrams.
    pub lost_of_1000: u32,
    /// From one region to another.
    cut: BTreeSet<(usize, usize)>,
}

/// The network.
pub struct Wan {
    shared: Arc<Shared>,
    /// Where region `a` finds region `b`.
    places: HashMap<(usize, usize), SocketAddr>,
    _tasks: JoinSet<()>,
}

struct Shared {
    weather: Mutex<Weather>,
    dice: Mutex<SmallRng>,
    regions: Mutex<Vec<SocketAddr>>,
    ways: HashMap<(usize, usize), mpsc::Sender<Late>>,
}

/// A datagram on its way.
struct Late {
    due: Instant,
    socket: Arc<UdpSocket>,
    target: SocketAddr,
    datagram: Vec<u8>,
}

impl Wan {
    /// A network between regions, each of which sees this process at its gateway.
    pub async fn new(gateways: &[IpAddr], seed: u64) -> Wan {
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 9));
        let (mut places, mut tasks, mut ways) = (HashMap::new(), JoinSet::new(), HashMap::new());
        for from in 0..gateways.len() {
            for to in (0..gateways.len()).filter(|to| *to != from) {
                let (sender, receiver) = mpsc::channel(UNDER_WAY_MAX);
                ways.insert((from, to), sender);
                tasks.spawn(deliver(receiver));
            }
        }
        let shared = Arc::new(Shared {
            weather: Mutex::default(),
            dice: Mutex::new(SmallRng::seed_from_u64(seed)),
            regions: Mutex::new(vec![nowhere; gateways.len()]),
            ways,
        });
        for (from, gateway) in gateways.iter().enumerate() {
            for (to, far) in gateways.iter().enumerate().filter(|(to, _)| *to != from) {
                let socket = bind(*gateway).await;
                places.insert((from, to), socket.local_addr().unwrap());
                tasks.spawn(shared.clone().carry(from, to, socket, *far));
            }
        }
        Wan { shared, places, _tasks: tasks }
    }

    /// Where region `from` finds region `to`.
    pub fn place(&self, from: usize, to: usize) -> SocketAddr {
        self.places[&(from, to)]
    }

    /// Where a region really is.
    pub fn set_region(&self, region: usize, address: SocketAddr) {
        lock(&self.shared.regions)[region] = address;
    }

    /// Changes how the network is.
    pub fn change(&self, change: impl FnOnce(&mut Weather)) {
        change(&mut lock(&self.shared.weather));
    }
}

impl Weather {
    /// Nothing passes from `from` to `to`.
    pub fn cut_one_way(&mut self, from: usize, to: usize) {
        self.cut.insert((from, to));
    }

    /// Nothing passes between a region and the others.
    pub fn isolate(&mut self, region: usize, regions: usize) {
        for other in (0..regions).filter(|other| *other != region) {
            self.cut_one_way(region, other);
            self.cut_one_way(other, region);
        }
    }

    /// Everything passes again.
    pub fn heal(&mut self) {
        self.cut.clear();
    }
}

impl Shared {
    /// Carries what region `from` sends to `to`, and what comes back for it.
    async fn carry(self: Arc<Self>, from: usize, to: usize, socket: Arc<UdpSocket>, far: IpAddr) {
        let mut flows: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
        let mut answers = JoinSet::new();
        let mut datagram = vec![0; DATAGRAM_BYTES_MAX];
        loop {
            // An error is about a datagram that was sent before.
            let Ok((length, sender)) = socket.recv_from(&mut datagram).await else { continue };
            let flow = match flows.get(&sender) {
                Some(flow) => flow.clone(),
                None => {
                    let flow = bind(far).await;
                    flows.insert(sender, flow.clone());
                    answers.spawn(self.clone().answer(to, from, flow.clone(), socket.clone(), sender));
                    flow
                }
            };
            let target = lock(&self.regions)[to];
            self.send((from, to), &flow, target, &datagram[..length]);
        }
    }

    async fn answer(
        self: Arc<Self>,
        from: usize,
        to: usize,
        flow: Arc<UdpSocket>,
        socket: Arc<UdpSocket>,
        asker: SocketAddr,
    ) {
        let mut datagram = vec![0; DATAGRAM_BYTES_MAX];
        loop {
            let Ok((length, _)) = flow.recv_from(&mut datagram).await else { continue };
            self.send((from, to), &socket, asker, &datagram[..length]);
        }
    }

    fn send(&self, way: (usize, usize), socket: &Arc<UdpSocket>, target: SocketAddr, datagram: &[u8]) {
        let weather = lock(&self.weather).clone();
        let mut dice = lock(&self.dice);
        if weather.cut.contains(&way) || dice.random_range(0..1000) < weather.lost_of_1000 {
            return;
        }
        let jitter_us = u64::try_from(weather.jitter.as_micros()).unwrap_or(0);
        let late = weather.delay + Duration::from_micros(dice.random_range(0..=jitter_us));
        drop(dice);
        let (socket, datagram) = (socket.clone(), datagram.to_vec());
        // What a way has no room for is lost, as in any network. At the end of a drill nobody delivers any
        // more.
        let _ = self.ways[&way].try_send(Late { due: now() + late, socket, target, datagram });
    }
}

/// Delivers what goes one way, in order.
async fn deliver(mut way: mpsc::Receiver<Late>) {
    while let Some(Late { due, socket, target, datagram }) = way.recv().await {
        tokio::time::sleep_until(due).await;
        // What the other side has no room for is lost.
        let _ = socket.try_send_to(&datagram, target);
    }
}

async fn bind(address: IpAddr) -> Arc<UdpSocket> {
    let socket = UdpSocket::bind((address, 0)).await.unwrap();
    // As much as the system allows.
    let _ = socket2::SockRef::from(&socket).set_recv_buffer_size(BUFFER_BYTES);
    Arc::new(socket)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
