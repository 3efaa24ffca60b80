//! Who may begin a handshake, and who may stay.
//!
//! A handshake costs work and memory before anything is known of whoever begins it, and the address that it
//! comes from can be anybody's. So strangers have places of their own, apart from those of peers whose
//! certificates were verified, and once many handshakes are under way, whoever begins one has to show first
//! that it receives what is sent to its address: it is answered with a token (QUIC's Retry), and nothing of
//! it is kept until the token comes back. Who sends from addresses that are not its own never gets further.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quinn::{Incoming, ServerConfig, VarInt};
use runtime::clock::now;
use runtime::task::Tasks;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::TransportError;
use crate::congestion::Congestion;
use crate::connection::{Connection, Traffic, canonical, certificate_of, classify, transport_config};
use crate::credentials::Credentials;
use crate::guard::Guard;
use crate::peer::{Certificate, Peer};

/// A handshake that takes longer is given up.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// With so many handshakes under way, an address has to be shown before one more begins.
const HANDSHAKES_UNSHOWN_MAX: usize = 32;

/// Handshakes at once of one address.
const HANDSHAKES_OF_ADDRESS_MAX: usize = 32;

/// Handshakes at once: addresses that were shown, with room for those whose handshakes never end.
const HANDSHAKES_MAX: usize = 256;

/// Connections of one peer at once: those of its daemons, or of an operator's commands.
const CONNECTIONS_OF_PEER_MAX: usize = 64;

/// Of one address, and of handshakes that pile up, so often is logged.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// The most addresses whose last line in the log is remembered.
const LOGGED_MAX: usize = 256;

/// What is said to somebody who would begin a handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    Begin,
    /// It has to show that its address is its own, and comes again.
    ShowAddress,
    Refuse,
}

/// Who is at it, and who is there: decisions alone.
#[derive(Debug, Default)]
struct Places {
    handshakes: HashMap<IpAddr, usize>,
    peers: HashMap<Peer, usize>,
}

impl Places {
    /// Somebody at `address`, who has `shown` it or not, would begin a handshake; it counts from now on if it
    /// may.
    fn begin(&mut self, address: IpAddr, shown: bool) -> Word {
        let under_way: usize = self.handshakes.values().sum();
        if !shown && under_way >= HANDSHAKES_UNSHOWN_MAX {
            return Word::ShowAddress;
        }
        if under_way >= HANDSHAKES_MAX || !take(&mut self.handshakes, address, HANDSHAKES_OF_ADDRESS_MAX) {
            return Word::Refuse;
        }
        Word::Begin
    }

    fn end(&mut self, address: IpAddr) {
        give_back(&mut self.handshakes, &address);
    }

    /// Whether one more connection of `peer` may stay; it counts from now on.
    fn enter(&mut self, peer: &Peer) -> bool {
        take(&mut self.peers, peer.clone(), CONNECTIONS_OF_PEER_MAX)
    }

    fn leave(&mut self, peer: &Peer) {
        give_back(&mut self.peers, peer);
    }
}

fn take<K: std::hash::Hash + Eq>(places: &mut HashMap<K, usize>, whose: K, most: usize) -> bool {
    let taken = places.entry(whose).or_default();
    let free = *taken < most;
    *taken += usize::from(free);
    free
}

fn give_back<K: std::hash::Hash + Eq>(places: &mut HashMap<K, usize>, whose: &K) {
    if let Some(taken) = places.get_mut(whose) {
        *taken -= 1;
        if *taken == 0 {
            places.remove(whose);
        }
    }
}

/// The places, shared by all handshakes, and what is logged of them.
#[derive(Debug)]
struct Admission {
    places: Mutex<Places>,
    log: RefusalLog,
}

impl Admission {
    fn places(&self) -> std::sync::MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A handshake's place, while it lasts.
struct HandshakePlace<'a>(&'a Admission, IpAddr);

impl Drop for HandshakePlace<'_> {
    fn drop(&mut self) {
        self.0.places().end(self.1);
    }
}

/// A verified peer's place, while its connection lasts.
struct PeerPlace<'a>(&'a Admission, Peer);

impl Drop for PeerPlace<'_> {
    fn drop(&mut self) {
        self.0.places().leave(&self.1);
    }
}

/// Carries handshakes out side by side: a slow or hostile peer holds up nobody else.
pub(crate) async fn accept_all(
    endpoint: quinn::Endpoint,
    used: Credentials,
    congestion: Congestion,
    guard: Guard,
    accept: mpsc::Sender<Connection>,
) {
    let log = RefusalLog::new(guard.clone());
    let admission = Arc::new(Admission { places: Mutex::default(), log });
    let connections = Tasks::new();
    while let Some(incoming) = endpoint.accept().await {
        let address = canonical(incoming.remote_address());
        let word = admission.places().begin(address.ip(), incoming.remote_address_validated());
        match word {
            Word::Begin => {}
            Word::ShowAddress => {
                admission.log.note_pressure();
                // It fails only where a token came, and then nothing has to be shown.
                let _ = incoming.retry();
                continue;
            }
            Word::Refuse => {
                admission.log.note(address, None, "too many handshakes are under way");
                incoming.refuse();
                continue;
            }
        }
        let (admission, guard, accept) = (admission.clone(), guard.clone(), accept.clone());
        let traffic = Traffic::of(&incoming.orig_dst_cid());
        let transport = transport_config(&congestion, address.ip(), traffic);
        let mut server = used.server();
        connections.spawn(async move {
            let place = HandshakePlace(&admission, address.ip());
            let Ok(transport) = transport else { return };
            server.transport_config(transport);
            let Some(connection) = shake_hands(incoming, server, address, &admission.log).await else {
                return;
            };
            drop(place);
            let Some(certificate) = certificate_of(&connection) else {
                let why = "the certificate names neither one region nor an operator, nor any other role";
                admission.log.note(address, None, why);
                return connection.close(VarInt::from_u32(2), why.as_bytes());
            };
            if let Some(why) = guard.refusal(&certificate) {
                admission.log.note(address, Some(&certificate), &why);
                return connection.close(VarInt::from_u32(2), why.as_bytes());
            }
            let peer = certificate.peer.clone();
            if !admission.places().enter(&peer) {
                let why = "too many connections of this peer are open";
                admission.log.note(address, Some(&certificate), why);
                return connection.close(VarInt::from_u32(3), why.as_bytes());
            }
            let _place = PeerPlace(&admission, peer);
            let (closed, certificate) = (connection.clone(), Arc::new(certificate));
            // It goes on until one side closes it.
            guard.keep(&connection, certificate.clone(), None);
            if accept.send(Connection::new(connection, certificate, Arc::new(()))).await.is_ok() {
                closed.closed().await;
            }
        });
    }
}

/// The connection, once both certificates are verified.
async fn shake_hands(
    incoming: Incoming,
    server: ServerConfig,
    address: SocketAddr,
    log: &RefusalLog,
) -> Option<quinn::Connection> {
    let handshake = async { incoming.accept_with(Arc::new(server))?.await };
    match tokio::time::timeout(HANDSHAKE, handshake).await {
        Ok(Ok(connection)) => return Some(connection),
        Ok(Err(e)) => match classify(address, &e) {
            refused @ TransportError::Certificate { .. } => log.note(address, None, &refused.to_string()),
            // It went away by itself: nobody was refused.
            gone => tracing::debug!("a handshake from {address} ended: {gone}"),
        },
        // A command asks all regions at once, and leaves when one has answered.
        Err(_) => tracing::debug!("a handshake from {address} took too long"),
    }
    None
}

/// Refusals, logged without letting a peer fill the log.
#[derive(Debug)]
struct RefusalLog {
    last: Mutex<HashMap<IpAddr, Instant>>,
    pressed: Mutex<Option<Instant>>,
    guard: Guard,
}

impl RefusalLog {
    fn new(guard: Guard) -> RefusalLog {
        RefusalLog { last: Mutex::default(), pressed: Mutex::default(), guard }
    }

    fn note(&self, address: SocketAddr, certificate: Option<&Certificate>, why: &str) {
        let now = now();
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.retain(|_, at| now.duration_since(*at) < LOG_INTERVAL);
        if last.len() < LOGGED_MAX && !last.contains_key(&address.ip()) {
            last.insert(address.ip(), now);
            tracing::warn!("refused a connection from {address}: {why}");
            self.guard.tell(address, certificate.cloned(), why);
        }
    }

    fn note_pressure(&self) {
        let now = now();
        let mut pressed = self.pressed.lock().unwrap_or_else(PoisonError::into_inner);
        if pressed.is_none_or(|at| now.duration_since(at) >= LOG_INTERVAL) {
            *pressed = Some(now);
            tracing::warn!(
                "handshakes: {HANDSHAKES_UNSHOWN_MAX} and more are under way; whoever begins one shows first that \
                 its address is its own"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn address(n: usize) -> IpAddr {
        Ipv4Addr::from_bits(0x7f01_0000 + u32::try_from(n).unwrap()).into()
    }

    #[test]
    fn strangers_show_their_addresses_once_handshakes_pile_up_and_never_take_all_places() {
        let mut places = Places::default();
        for n in 0..HANDSHAKES_UNSHOWN_MAX {
            assert_eq!(places.begin(address(n), false), Word::Begin);
        }
        for n in 0..10_000 {
            assert_eq!(places.begin(address(n), false), Word::ShowAddress);
        }
        let own = address(20_000);
        for _ in 0..HANDSHAKES_OF_ADDRESS_MAX {
            assert_eq!(places.begin(own, true), Word::Begin);
        }
        assert_eq!(places.begin(own, true), Word::Refuse, "one address does not take all places");
        assert_eq!(places.begin(address(20_001), true), Word::Begin);
        for n in 0..HANDSHAKES_UNSHOWN_MAX {
            places.end(address(n));
        }
        (0..HANDSHAKES_OF_ADDRESS_MAX).for_each(|_| places.end(own));
        places.end(address(20_001));
        assert!(places.handshakes.is_empty(), "nothing is remembered of whoever has gone");
        assert_eq!(places.begin(own, false), Word::Begin, "nothing to be shown any more");
    }

    #[test]
    fn a_peer_with_many_connections_leaves_the_places_of_others_alone() {
        let mut places = Places::default();
        let peer = Peer::Region("eu-west".parse().unwrap());
        for _ in 0..CONNECTIONS_OF_PEER_MAX {
            assert!(places.enter(&peer));
        }
        assert!(!places.enter(&peer));
        assert!(places.enter(&Peer::Operator(crate::peer::Holder::operator())));
        places.leave(&peer);
        assert!(places.enter(&peer));
    }
}
