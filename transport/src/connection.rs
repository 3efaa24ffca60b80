//! A connection with a verified peer: what it carries, its limits, and what crossed the network on it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use proto::messages::Open;
use quinn::{ConnectionError, ConnectionId, IdleTimeout, TransportConfig, VarInt};
use rustls_pki_types::CertificateDer;

use crate::TransportError;
use crate::congestion::Congestion;
use crate::peer::{Certificate, Peer};
use crate::stream::Stream;

/// A peer that says nothing for this long is gone. A sign of life leaves every fifth of it.
const IDLE: Duration = Duration::from_secs(5);

/// How long a connection that is closed is waited for until the other side was told, and how often that is
/// looked at.
const TOLD_WITHIN: Duration = Duration::from_millis(50);
/// See [`TOLD_WITHIN`].
const TOLD: Duration = Duration::from_micros(100);

/// Streams that one peer may have open at once.
const STREAMS_MAX: u32 = 64;

/// Renewed certificates that a peer may be showing at once.
const PROOFS_MAX: u32 = 1;

/// Redo in flight on one stream: 1 Gbit/s over 130 ms, doubled. It bounds what a peer can make us hold.
const STREAM_WINDOW_BYTES: u32 = 32 << 20;

/// Clients' sessions that one peer may have open at once.
pub const SESSIONS_MAX: u32 = 1024;

/// What a client's session may have unread: 50 Mbit/s over 80 ms.
const SESSION_WINDOW_BYTES: u32 = 512 << 10;

/// What all sessions of a connection may have unread. A client that reads nothing holds up no other, unless a
/// hundred do so at once.
const SESSIONS_WINDOW_BYTES: u32 = 64 << 20;

/// Datagrams with repairs that wait to be sent, or to be taken: the oldest give way.
const DATAGRAMS_BYTES: usize = 64 << 10;

/// The length of a connection's first ID: the longest that QUIC allows.
const ID_BYTES: usize = 20;

/// What the first ID of a connection for sessions begins with.
const SESSIONS_MARK: [u8; 4] = *b"sess";

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
    pub(crate) fn draw_id(self) -> ConnectionId {
        let mut id: [u8; ID_BYTES] = runtime::random::draw();
        if self == Traffic::Sessions {
            id[..SESSIONS_MARK.len()].copy_from_slice(&SESSIONS_MARK);
        }
        ConnectionId::new(&id)
    }

    pub(crate) fn of(id: &ConnectionId) -> Traffic {
        if id.starts_with(&SESSIONS_MARK) { Traffic::Sessions } else { Traffic::Redo }
    }
}

/// A connection to a verified peer; clones share it.
#[derive(Debug, Clone)]
pub struct Connection {
    connection: quinn::Connection,
    certificate: Arc<Certificate>,
    /// Shows that somebody has a handle on it.
    held: Arc<()>,
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
    pub(crate) fn new(
        connection: quinn::Connection,
        certificate: Arc<Certificate>,
        held: Arc<()>,
    ) -> Connection {
        Connection { connection, certificate, held }
    }

    /// Who is at the other end.
    #[must_use]
    pub fn peer(&self) -> &Peer {
        &self.certificate.peer
    }

    /// By which certificate that is known.
    #[must_use]
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// From where it comes.
    #[must_use]
    pub fn remote_address(&self) -> SocketAddr {
        canonical(self.connection.remote_address())
    }

    /// Opens a stream with its first message.
    ///
    /// # Errors
    /// When the connection is lost.
    pub async fn open_stream(&self, open: &Open) -> Result<Stream, TransportError> {
        let opened = self.connection.open_bi().await.map_err(|e| classify(self.remote_address(), &e))?;
        let mut stream = Stream::new(&self.connection, self.held.clone(), opened);
        stream.send(open).await?;
        Ok(stream)
    }

    /// Waits for a stream that the peer opens; `None` once the connection is over.
    pub async fn accept_stream(&self) -> Option<Stream> {
        let accepted = self.connection.accept_bi().await.ok()?;
        Some(Stream::new(&self.connection, self.held.clone(), accepted))
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

    /// Closes it, and returns when that was sent: the process may end right after. The other side would keep
    /// the connection's place for as long as it may be idle.
    pub async fn close_and_tell(&self, why: &str) {
        self.close(why);
        let told = async {
            while self.connection.stats().frame_tx.connection_close == 0 {
                tokio::time::sleep(TOLD).await;
            }
        };
        let _ = tokio::time::timeout(TOLD_WITHIN, told).await;
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

pub(crate) fn certificate_of(connection: &quinn::Connection) -> Option<Certificate> {
    let identity = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    Certificate::of(identity.first()?)
}

pub(crate) fn classify(address: SocketAddr, error: &ConnectionError) -> TransportError {
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

/// A peer's address as people write it: a socket that reaches both kinds has one of IPv4 within one of IPv6.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// How connections with the peer at `address` are.
pub(crate) fn transport_config(
    congestion: &Congestion,
    address: IpAddr,
    traffic: Traffic,
) -> Result<Arc<TransportConfig>, String> {
    let (streams, stream_bytes, bytes, datagrams) = match traffic {
        Traffic::Redo => (STREAMS_MAX, STREAM_WINDOW_BYTES, STREAM_WINDOW_BYTES * 2, Some(DATAGRAMS_BYTES)),
        Traffic::Sessions => (SESSIONS_MAX, SESSION_WINDOW_BYTES, SESSIONS_WINDOW_BYTES, None),
    };
    let mut config = TransportConfig::default();
    config
        .max_idle_timeout(Some(IdleTimeout::try_from(IDLE).map_err(|e| e.to_string())?))
        .keep_alive_interval(Some(IDLE / 5))
        .max_concurrent_bidi_streams(VarInt::from_u32(streams))
        .max_concurrent_uni_streams(VarInt::from_u32(PROOFS_MAX))
        .datagram_receive_buffer_size(datagrams)
        .datagram_send_buffer_size(DATAGRAMS_BYTES)
        .stream_receive_window(VarInt::from_u32(stream_bytes))
        .receive_window(VarInt::from_u32(bytes))
        .send_window(u64::from(STREAM_WINDOW_BYTES))
        .congestion_controller_factory(congestion.factory(Some(address)));
    Ok(Arc::new(config))
}
