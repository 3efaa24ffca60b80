//! The region's one UDP socket: connections out and in, each with both certificates verified.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use proto::RegionName;
use proto::messages::Open;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{
    ClientConfig, ConnectionError, ConnectionId, IdleTimeout, ServerConfig, TransportConfig, VarInt,
};
use runtime::clock::now;
use runtime::task::Tasks;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::CertificateDer;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;

use crate::TransportError;
use crate::congestion::Congestion;
use crate::identity::{Identity, Peer};
use crate::stream::Stream;

/// What both sides must agree to speak.
const ALPN: &[u8] = b"replicator/1";

/// A peer that says nothing for this long is gone. A sign of life leaves every fifth of it.
const IDLE: Duration = Duration::from_secs(5);

/// A handshake that takes longer is given up.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// Connections at once: six regions, their zones, and operators, with room.
const CONNECTIONS_MAX: usize = 256;

/// Streams that one peer may have open at once.
const STREAMS_MAX: u32 = 64;

/// Redo in flight on one stream: 1 Gbit/s over 130 ms, doubled. It bounds what a peer can make us hold.
const STREAM_WINDOW_BYTES: u32 = 32 << 20;

/// Clients' sessions that one peer may have open at once.
pub const SESSIONS_MAX: u32 = 1024;

/// What a client's session may have unread: 50 Mbit/s over 80 ms.
const SESSION_WINDOW_BYTES: u32 = 512 << 10;

/// What all sessions of a connection may have unread. A client that reads nothing holds up no other, unless a
/// hundred do so at once.
const SESSIONS_WINDOW_BYTES: u32 = 64 << 20;

/// The length of a connection's first ID: the longest that QUIC allows.
const ID_BYTES: usize = 20;

/// What the first ID of a connection for sessions begins with.
const SESSIONS_MARK: [u8; 4] = *b"sess";

/// The UDP socket's buffers: what may arrive while both processors are busy.
const SOCKET_BUFFER_BYTES: usize = 8 << 20;

/// Refusals of one address are logged this often.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// IPv4 and UDP headers, which quinn does not count.
const DATAGRAM_OVERHEAD_BYTES: u64 = 28;

/// What a connection carries: by that its streams are many or few, and may have little or much unread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Traffic {
    /// Redo, and what daemons ask each other.
    Redo,
    /// Sessions of PostgreSQL's clients.
    Sessions,
}

impl Traffic {
    /// A connection ID that says it to whoever accepts, before anything else is known. Anybody can draw such:
    /// it chooses limits, and gives no right.
    fn draw_id(self) -> ConnectionId {
        let mut id: [u8; ID_BYTES] = runtime::random::draw();
        if self == Traffic::Sessions {
            id[..SESSIONS_MARK.len()].copy_from_slice(&SESSIONS_MARK);
        }
        ConnectionId::new(&id)
    }

    fn of(id: &ConnectionId) -> Traffic {
        if id.starts_with(&SESSIONS_MARK) { Traffic::Sessions } else { Traffic::Redo }
    }
}

/// A handle on the endpoint; clones share it.
#[derive(Debug, Clone)]
pub struct Endpoint {
    endpoint: quinn::Endpoint,
    client: ClientConfig,
    congestion: Congestion,
    accepted: Arc<tokio::sync::Mutex<mpsc::Receiver<Connection>>>,
    /// What accepts: it ends with the last handle.
    _tasks: Arc<Tasks>,
}

impl Endpoint {
    /// Binds `listen` and accepts peers with certificates of the same authority; without an address, only
    /// connects.
    ///
    /// # Errors
    /// When the address is taken, or the identity cannot be used for TLS.
    pub fn bind(listen: Option<SocketAddr>, identity: &Identity) -> Result<Endpoint, TransportError> {
        let address = listen.unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], 0)));
        let failed = |reason: String| TransportError::Bind { address: address.to_string(), reason };
        let congestion = Congestion::from_environment().map_err(&failed)?;
        let (client, server) = configs(identity).map_err(&failed)?;
        let socket = bind_socket(address).map_err(|e| failed(e.to_string()))?;
        let runtime = quinn::default_runtime().ok_or_else(|| failed("there is no async runtime".into()))?;
        let accepts = listen.map(|_| server.clone());
        let endpoint = quinn::Endpoint::new(quinn::EndpointConfig::default(), accepts, socket, runtime);
        let endpoint = endpoint.map_err(|e| failed(e.to_string()))?;
        let tasks = Arc::new(Tasks::new());
        // One waiting connection is enough: whoever accepts is always quick to.
        let (accept, accepted) = mpsc::channel(1);
        if listen.is_some() {
            tasks.spawn(accept_all(endpoint.clone(), server, congestion.clone(), accept));
        }
        let accepted = Arc::new(tokio::sync::Mutex::new(accepted));
        Ok(Endpoint { endpoint, client, congestion, accepted, _tasks: tasks })
    }

    /// The bound address.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn local_address(&self) -> std::io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// Waits for a peer whose certificate was verified; `None` once the endpoint is closed.
    pub async fn accept(&self) -> Option<Connection> {
        self.accepted.lock().await.recv().await
    }

    /// Connects to the region `expect` at `address`, for redo and requests.
    ///
    /// # Errors
    /// As [`Endpoint::connect_for`].
    pub async fn connect(
        &self,
        address: SocketAddr,
        expect: &RegionName,
        patience: Duration,
    ) -> Result<Connection, TransportError> {
        self.connect_for(Traffic::Redo, address, expect, patience).await
    }

    /// Connects to the region `expect` at `address`.
    ///
    /// # Errors
    /// When it cannot be reached within `patience`, or one side refuses the other's certificate.
    pub async fn connect_for(
        &self,
        traffic: Traffic,
        address: SocketAddr,
        expect: &RegionName,
        patience: Duration,
    ) -> Result<Connection, TransportError> {
        let unreachable =
            |reason: String| TransportError::Unreachable { address: address.to_string(), reason };
        let mut client = self.client.clone();
        let transport = transport_config(&self.congestion, address.ip(), traffic).map_err(&unreachable)?;
        client.transport_config(transport).initial_dst_cid_provider(Arc::new(move || traffic.draw_id()));
        let connecting = self.endpoint.connect_with(client, address, expect.as_str());
        let connecting = connecting.map_err(|e| unreachable(e.to_string()))?;
        let connected = tokio::time::timeout(patience, connecting).await;
        let connection = connected
            .map_err(|_| unreachable(format!("no answer within {} ms", patience.as_millis())))?
            .map_err(|e| classify(address, &e))?;
        match peer_of(&connection) {
            Some(Peer::Region(name)) if name == *expect => {
                Ok(Connection { connection, peer: Peer::Region(name) })
            }
            _ => {
                connection.close(VarInt::from_u32(2), b"another region was expected");
                let reason = format!("it is not that of region {expect}");
                Err(TransportError::Certificate { address: address.to_string(), reason })
            }
        }
    }

    /// Closes every connection, and waits until the peers know or a second has passed.
    pub async fn close(&self) {
        self.endpoint.close(VarInt::from_u32(0), b"the daemon is stopping");
        let _ = tokio::time::timeout(Duration::from_secs(1), self.endpoint.wait_idle()).await;
    }
}

/// A connection to a verified peer; clones share it.
#[derive(Debug, Clone)]
pub struct Connection {
    connection: quinn::Connection,
    peer: Peer,
}

/// What crossed the network on one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WireCounters {
    /// Bytes sent, with UDP and IP headers, and whatever had to be sent again.
    pub sent_bytes: u64,
    /// The round trip as measured.
    pub rtt: Duration,
    /// How much may be in flight now, bytes.
    pub window_bytes: u64,
    /// Packets sent.
    pub sent_packets: u64,
    /// Packets of those that were lost.
    pub lost_packets: u64,
}

impl Connection {
    /// Who is at the other end.
    #[must_use]
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// From where it comes.
    #[must_use]
    pub fn remote_address(&self) -> SocketAddr {
        self.connection.remote_address()
    }

    /// Opens a stream with its first message.
    ///
    /// # Errors
    /// When the connection is lost.
    pub async fn open_stream(&self, open: &Open) -> Result<Stream, TransportError> {
        let opened = self.connection.open_bi().await.map_err(|e| classify(self.remote_address(), &e))?;
        let mut stream = Stream::new(opened);
        stream.send(open).await?;
        Ok(stream)
    }

    /// Waits for a stream that the peer opens; `None` once the connection is over.
    pub async fn accept_stream(&self) -> Option<Stream> {
        self.connection.accept_bi().await.ok().map(Stream::new)
    }

    /// Whether the connection is over.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.connection.close_reason().is_some()
    }

    /// Closes the connection; the peer is told why.
    pub fn close(&self, why: &str) {
        self.connection.close(VarInt::from_u32(0), why.as_bytes());
    }

    /// What crossed the network so far.
    #[must_use]
    pub fn wire(&self) -> WireCounters {
        let stats = self.connection.stats();
        let sent_bytes = stats.udp_tx.bytes + stats.udp_tx.datagrams * DATAGRAM_OVERHEAD_BYTES;
        WireCounters {
            sent_bytes,
            rtt: self.connection.rtt(),
            window_bytes: stats.path.cwnd,
            sent_packets: stats.path.sent_packets,
            lost_packets: stats.path.lost_packets,
        }
    }
}

/// Carries handshakes out side by side: a slow or hostile peer holds up nobody else.
async fn accept_all(
    endpoint: quinn::Endpoint,
    server: ServerConfig,
    congestion: Congestion,
    accept: mpsc::Sender<Connection>,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let log = Arc::new(RefusalLog::default());
    let handshakes = Tasks::new();
    while let Some(incoming) = endpoint.accept().await {
        let Ok(place) = places.clone().try_acquire_owned() else {
            incoming.refuse();
            continue;
        };
        let (accept, log) = (accept.clone(), log.clone());
        let mut server = server.clone();
        let (from, traffic) = (incoming.remote_address().ip(), Traffic::of(&incoming.orig_dst_cid()));
        let Ok(transport) = transport_config(&congestion, from, traffic) else { continue };
        server.transport_config(transport);
        handshakes.spawn(async move {
            let address = incoming.remote_address();
            let handshake = async { incoming.accept_with(Arc::new(server))?.await };
            let connection = match tokio::time::timeout(HANDSHAKE, handshake).await {
                Ok(Ok(connection)) => connection,
                Ok(Err(e)) => {
                    return match classify(address, &e) {
                        refused @ TransportError::Certificate { .. } => {
                            log.note(address, &refused.to_string())
                        }
                        // It went away by itself: nobody was refused.
                        gone => tracing::debug!("a handshake from {address} ended: {gone}"),
                    };
                }
                // A command asks all regions at once, and leaves when one has answered.
                Err(_) => return tracing::debug!("a handshake from {address} took too long"),
            };
            let Some(peer) = peer_of(&connection) else {
                log.note(address, "its certificate names neither one region nor an operator");
                return connection
                    .close(VarInt::from_u32(2), b"the certificate names neither one region nor an operator");
            };
            let closed = connection.clone();
            if accept.send(Connection { connection, peer }).await.is_ok() {
                closed.closed().await;
            }
            drop(place);
        });
    }
}

/// Refusals, logged without letting a peer fill the log.
#[derive(Debug, Default)]
struct RefusalLog {
    last: Mutex<HashMap<IpAddr, Instant>>,
}

impl RefusalLog {
    fn note(&self, address: SocketAddr, why: &str) {
        let now = now();
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.retain(|_, at| now.duration_since(*at) < LOG_INTERVAL);
        if last.len() < CONNECTIONS_MAX && !last.contains_key(&address.ip()) {
            last.insert(address.ip(), now);
            tracing::warn!("refused a connection from {address}: {why}");
        }
    }
}

fn peer_of(connection: &quinn::Connection) -> Option<Peer> {
    let identity = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    Peer::of_certificate(identity.first()?)
}

fn classify(address: SocketAddr, error: &ConnectionError) -> TransportError {
    let address = address.to_string();
    match error {
        // TLS alerts are 0x100 and above in QUIC: certificate trouble on one side or the other.
        ConnectionError::TransportError(e) if u64::from(e.code) >= 0x100 => {
            TransportError::Certificate { address, reason: e.to_string() }
        }
        ConnectionError::ConnectionClosed(close) if u64::from(close.error_code) >= 0x100 => {
            TransportError::Certificate { address, reason: format!("by the other side: {close}") }
        }
        ConnectionError::TimedOut => TransportError::Unreachable { address, reason: "no answer".into() },
        other => TransportError::Lost(other.to_string()),
    }
}

fn configs(identity: &Identity) -> Result<(ClientConfig, ServerConfig), String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let text = |e: rustls::Error| e.to_string();
    let mut client = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(text)?
        .with_root_certificates(identity.roots.clone())
        .with_client_auth_cert(identity.chain.clone(), identity.key.clone_key())
        .map_err(text)?;
    client.alpn_protocols = vec![ALPN.to_vec()];
    let verifier = WebPkiClientVerifier::builder_with_provider(identity.roots.clone(), provider.clone());
    let mut server = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(text)?
        .with_client_cert_verifier(verifier.build().map_err(|e| e.to_string())?)
        .with_single_cert(identity.chain.clone(), identity.key.clone_key())
        .map_err(text)?;
    server.alpn_protocols = vec![ALPN.to_vec()];
    let client = QuicClientConfig::try_from(client).map_err(|e| e.to_string())?;
    let client = ClientConfig::new(Arc::new(client));
    let server = QuicServerConfig::try_from(server).map_err(|e| e.to_string())?;
    let server = ServerConfig::with_crypto(Arc::new(server));
    Ok((client, server))
}

/// How connections with the peer at `address` are.
fn transport_config(
    congestion: &Congestion,
    address: IpAddr,
    traffic: Traffic,
) -> Result<Arc<TransportConfig>, String> {
    let (streams, stream_bytes, bytes) = match traffic {
        Traffic::Redo => (STREAMS_MAX, STREAM_WINDOW_BYTES, STREAM_WINDOW_BYTES * 2),
        Traffic::Sessions => (SESSIONS_MAX, SESSION_WINDOW_BYTES, SESSIONS_WINDOW_BYTES),
    };
    let mut config = TransportConfig::default();
    config
        .max_idle_timeout(Some(IdleTimeout::try_from(IDLE).map_err(|e| e.to_string())?))
        .keep_alive_interval(Some(IDLE / 5))
        .max_concurrent_bidi_streams(VarInt::from_u32(streams))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .stream_receive_window(VarInt::from_u32(stream_bytes))
        .receive_window(VarInt::from_u32(bytes))
        .send_window(u64::from(STREAM_WINDOW_BYTES))
        .congestion_controller_factory(congestion.factory(Some(address)));
    Ok(Arc::new(config))
}

fn bind_socket(address: SocketAddr) -> std::io::Result<std::net::UdpSocket> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::DGRAM, None)?;
    // As much as the system allows; it may be less.
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER_BYTES);
    socket.bind(&address.into())?;
    Ok(socket.into())
}
