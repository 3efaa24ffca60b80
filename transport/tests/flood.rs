//! A flood of handshakes from addresses that are not the sender's own: regions reach each other meanwhile.

#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]
#![allow(
    clippy::disallowed_methods,
    reason = "certificates are made for now, and packets as quinn makes them"
)]

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use proto::ClusterId;
use quinn::crypto::rustls::QuicClientConfig;
use replicator_transport::{Authority, Endpoint, Identity, Peer};
use runtime::task::Task;

/// Handshakes begun in a second, and for how long.
const RATE: usize = 300;
const PERIOD: Duration = Duration::from_secs(6);

/// The most that a region's connection may take meanwhile.
const PATIENCE: Duration = Duration::from_secs(1);

fn identities() -> (tempfile::TempDir, Identity, Identity) {
    let directory = tempfile::tempdir().unwrap();
    let now = time::OffsetDateTime::now_utc();
    let authority = Authority::create(&directory.path().join("ca"), "test", ClusterId([1; 16]), now).unwrap();
    let identity = |name: &str| {
        let place = directory.path().join(name);
        authority.issue(&place, &Peer::Region(name.parse().unwrap()), now, time::Duration::days(1)).unwrap();
        Identity::load(&place).unwrap()
    };
    let (server, client) = (identity("eu-west"), identity("us-east"));
    (directory, server, client)
}

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

/// Begins handshakes, each from another address of loopback, and answers nothing.
async fn flood(to: SocketAddr, sent: Arc<AtomicUsize>) {
    let mut packets = FirstPackets::new();
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / u32::try_from(RATE).unwrap());
    for n in 0..u32::MAX {
        ticks.tick().await;
        let from = Ipv4Addr::from_bits(0x7f10_0000 + n);
        let socket = UdpSocket::bind((from, 0)).unwrap();
        socket.send_to(&packets.next(to), to).unwrap();
        sent.fetch_add(1, Ordering::Relaxed);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_handshakes_from_foreign_addresses_keeps_no_region_out() {
    let (_directory, server, client) = identities();
    let server = Endpoint::bind(Some("127.0.0.1:0".parse().unwrap()), &server).unwrap();
    let address = server.local_address().unwrap();
    let accepting = server.clone();
    let _accepting = Task::spawn("accept", async move {
        let mut held = Vec::new();
        while let Some(connection) = accepting.accept().await {
            held.push(connection);
        }
    });
    let sent = Arc::new(AtomicUsize::new(0));
    let _flood = Task::spawn("flood", flood(address, sent.clone()));
    let (begin, expect) = (Instant::now(), "eu-west".parse().unwrap());
    let mut connected = 0;
    while begin.elapsed() < PERIOD {
        let client = Endpoint::bind(Some("127.0.0.1:0".parse().unwrap()), &client).unwrap();
        let tried = client.connect(address, &expect, PATIENCE).await;
        let after = sent.load(Ordering::Relaxed);
        tried.unwrap_or_else(|e| panic!("connection {connected}, after {after} foreign handshakes: {e}"));
        client.close().await;
        connected += 1;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let sent = sent.load(Ordering::Relaxed);
    assert!(sent > RATE && connected > 5, "{sent} foreign handshakes, {connected} connections");
}
