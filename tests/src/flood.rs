//! A flood of handshakes against a daemon, each begun from another address of loopback and never gone on
//! with, and what a region's connection takes meanwhile.

#![allow(clippy::disallowed_methods, reason = "packets are made as quinn makes them")]

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::unistd::Pid;
use quinn::crypto::rustls::QuicClientConfig;
use runtime::task::Task;
use transport::{Endpoint, Identity};

use crate::Cluster;

/// The first of the addresses from which handshakes are begun: 127.16.0.0, and those after it.
const FIRST_ADDRESS: u32 = 0x7f10_0000;

/// First packets of handshakes, each of another connection.
struct FirstPackets {
    endpoint: quinn_proto::Endpoint,
    config: quinn::ClientConfig,
}

impl FirstPackets {
    fn new() -> FirstPackets {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"replicator/1".to_vec()];
        let config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
        let options = Arc::new(quinn_proto::EndpointConfig::default());
        FirstPackets { endpoint: quinn_proto::Endpoint::new(options, None, true, None), config }
    }

    fn next(&mut self, to: SocketAddr) -> Vec<u8> {
        let now = Instant::now();
        let (_, mut connection) = self.endpoint.connect(now, self.config.clone(), to, "eu-west").unwrap();
        let mut packet = Vec::new();
        let transmit = connection.poll_transmit(now, 1, &mut packet).unwrap();
        assert_eq!(transmit.size, packet.len());
        packet
    }
}

/// Handshakes that are begun until this is dropped.
pub struct Flood {
    sent: Arc<AtomicUsize>,
    _sending: Task<()>,
}

impl Flood {
    /// Begins `rate` handshakes a second with the daemon at `to`.
    #[must_use]
    pub fn start(to: SocketAddr, rate: u32) -> Flood {
        let sent = Arc::new(AtomicUsize::new(0));
        let counted = sent.clone();
        let sending = Task::spawn("flood", async move {
            let mut packets = FirstPackets::new();
            let mut ticks = tokio::time::interval(Duration::from_secs(1) / rate);
            for n in 0..u32::MAX {
                ticks.tick().await;
                let from = Ipv4Addr::from_bits(FIRST_ADDRESS + n % 0x000f_ffff);
                let socket = UdpSocket::bind((from, 0)).unwrap();
                socket.send_to(&packets.next(to), to).unwrap();
                counted.fetch_add(1, Ordering::Relaxed);
            }
        });
        Flood { sent, _sending: sending }
    }

    /// The handshakes that were begun.
    #[must_use]
    pub fn sent(&self) -> usize {
        self.sent.load(Ordering::Relaxed)
    }
}

/// How long each connection of region `from` with region `to` takes, made with that region's certificate,
/// ten times a second for `period`; the test fails when one takes longer than `patience`.
pub async fn connections(
    cluster: &Cluster,
    [from, to]: [&str; 2],
    period: Duration,
    patience: Duration,
) -> Vec<Duration> {
    let identity = Identity::load(&cluster.region(from).join("identity")).unwrap();
    let (address, name) = (cluster.address(to), to.parse().unwrap());
    let (begin, mut times) = (Instant::now(), Vec::new());
    while begin.elapsed() < period {
        // A socket of its own: nothing is known of whoever comes.
        let endpoint = Endpoint::bind(None, &identity).unwrap();
        let asked = Instant::now();
        let connected = endpoint.connect(address, &name, patience).await;
        let failed = |e| panic!("connection {} of {from} with {to}: {e}", times.len());
        connected.unwrap_or_else(failed);
        times.push(asked.elapsed());
        endpoint.close().await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    times
}

/// What a process has in memory, and the most that it ever had, bytes.
#[must_use]
pub fn memory(process: Pid) -> (u64, u64) {
    let place = format!("/proc/{process}/status");
    let status = std::fs::read_to_string(Path::new(&place)).unwrap();
    let of = |name: &str| -> u64 {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap() << 10
    };
    (of("VmRSS:"), of("VmHWM:"))
}
