//! The region's one UDP socket: connections out and in, each with both certificates verified.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use proto::RegionName;
use proto::messages::SignedOrder;
use quinn::{AsyncUdpSocket, VarInt};
use runtime::clock::now;
use runtime::task::Tasks;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::TransportError;
use crate::admission::accept_all;
use crate::congestion::Congestion;
use crate::connection::{Connection, Traffic, certificate_of, classify, transport_config};
use crate::credentials::{Credentials, Signs};
use crate::guard::{Guard, Refused};
use crate::identity::Identity;
use crate::peer::Certificate;
use crate::{orders, proof, reset};

/// The most addresses of a name that are tried.
const ADDRESSES_MAX: usize = 8;

/// The wait before the next address of a name is tried beside those before it.
const NEXT_ADDRESS: Duration = Duration::from_millis(200);

/// The same where a host is known to be about to listen, for so long.
const NEXT_SOON: Duration = Duration::from_millis(15);
const SOON: Duration = Duration::from_millis(600);

/// The most addresses of a region whose head may be one of several hosts: sixteen, with two each.
const HOSTS_ADDRESSES_MAX: usize = 32;

/// The UDP socket's buffers: what may arrive while both processors are busy.
const SOCKET_BUFFER_BYTES: usize = 8 << 20;

/// A handle on the endpoint; clones share it.
#[derive(Debug, Clone)]
pub struct Endpoint {
    endpoint: quinn::Endpoint,
    used: Credentials,
    congestion: Congestion,
    guard: Guard,
    accepted: Arc<tokio::sync::Mutex<mpsc::Receiver<Connection>>>,
    /// Of places of several hosts the address that answered last; as many as there are regions.
    answered: Arc<Mutex<BTreeMap<String, SocketAddr>>>,
    /// The address that said last that it is not the head.
    avoided: Arc<Mutex<BTreeMap<String, SocketAddr>>>,
    /// Until when a host of a place is expected to begin to listen, and which one it is not.
    expected: Arc<Mutex<BTreeMap<String, (Instant, SocketAddr)>>>,
    /// What accepts, and looks after connections: it ends with the last handle.
    tasks: Arc<Tasks>,
}

impl Endpoint {
    /// Binds `listen` and accepts peers with certificates of the same authority; without an address, only
    /// connects.
    ///
    /// # Errors
    /// When the address is taken, or the identity cannot be used for TLS.
    pub fn bind(listen: Option<SocketAddr>, identity: &Identity) -> Result<Endpoint, TransportError> {
        let [any, any_v4] = [IpAddr::from(Ipv6Addr::UNSPECIFIED), IpAddr::from(Ipv4Addr::UNSPECIFIED)];
        let address = listen.unwrap_or_else(|| SocketAddr::from((any, 0)));
        let failed = |reason: String| TransportError::Bind { address: address.to_string(), reason };
        // One that only connects reaches both kinds of addresses, where the machine has both.
        let socket = bind_socket(address).or_else(|e| match listen {
            None => bind_socket(SocketAddr::from((any_v4, 0))),
            Some(_) => Err(e),
        });
        let socket = socket.map_err(|e| failed(e.to_string()))?;
        let runtime = quinn::default_runtime().ok_or_else(|| failed("there is no async runtime".into()))?;
        let socket = runtime.wrap_udp_socket(socket).map_err(|e| failed(e.to_string()))?;
        Endpoint::over(socket, listen, identity)
    }

    /// As [`Endpoint::bind`], over `socket`, which has the address `listen`. It need not be one of the
    /// system's: tests have paths of their own.
    ///
    /// # Errors
    /// When the identity cannot be used for TLS.
    pub fn over(
        socket: Arc<dyn AsyncUdpSocket>,
        listen: Option<SocketAddr>,
        identity: &Identity,
    ) -> Result<Endpoint, TransportError> {
        let address = listen.map_or_else(|| "no address".into(), |listen| listen.to_string());
        let failed = |reason: String| TransportError::Bind { address: address.clone(), reason };
        let congestion = Congestion::from_environment().map_err(&failed)?;
        let used = Credentials::of(identity).map_err(&failed)?;
        let runtime = quinn::default_runtime().ok_or_else(|| failed("there is no async runtime".into()))?;
        let accepts = listen.map(|_| used.server());
        let config = listen.map_or_else(quinn::EndpointConfig::default, |at| reset::config(identity, at));
        let endpoint = quinn::Endpoint::new_with_abstract_socket(config, accepts, socket, runtime);
        let endpoint = endpoint.map_err(|e| failed(e.to_string()))?;
        let tasks = Arc::new(Tasks::new());
        // One waiting connection is enough: whoever accepts is always quick to.
        let (accept, accepted) = mpsc::channel(1);
        let guard = Guard::new(identity.cluster_id, used.clone());
        tasks.spawn(guard.clone().watch());
        if listen.is_some() {
            let accepting =
                accept_all(endpoint.clone(), used.clone(), congestion.clone(), guard.clone(), accept);
            tasks.spawn(accepting);
        }
        let accepted = Arc::new(tokio::sync::Mutex::new(accepted));
        Ok(Endpoint {
            endpoint,
            used,
            congestion,
            guard,
            accepted,
            answered: Arc::default(),
            avoided: Arc::default(),
            expected: Arc::default(),
            tasks,
        })
    }

    /// Lets in no certificate of these any more, by serial number or fingerprint as [`crate::peer::mark`] has
    /// them, and all others again; closes the connections of those that there are, and says how many.
    pub fn deny(&self, denied: BTreeSet<String>) -> usize {
        self.guard.deny(denied)
    }

    /// Lets in no certificate without a role any more, or does again; where nothing is said, none whose
    /// authority issues no such. Closes the connections of those that there are, and says how many.
    pub fn require_roles(&self, required: Option<bool>) -> usize {
        self.guard.require_roles(required)
    }

    /// Whose certificate has no role, of those that are connected now.
    #[must_use]
    pub fn without_roles(&self) -> BTreeSet<String> {
        self.guard.without_roles()
    }

    /// How long a connection may go on once its certificate has ended; [`crate::GRACE`] at first.
    pub fn set_grace(&self, grace: Duration) {
        self.guard.set_grace(grace);
    }

    /// Waits for somebody who is not let in, or not any more. The same address is told once in ten seconds,
    /// and what nobody waits for is not kept for ever: this is for a record, not for counting.
    pub async fn refused(&self) -> Refused {
        self.guard.refused().await
    }

    /// Uses another certificate for connections that begin from now on, and shows it on those that there are,
    /// which go on by it.
    /// Nothing is changed unless its own authorities would let it in.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn renew(&self, identity: &Identity) -> Result<(), String> {
        identity.verify()?;
        self.used.replace(identity)?;
        for connection in self.guard.connections() {
            let identity = identity.clone();
            self.tasks.spawn(async move {
                // The connection goes on for a while without it.
                if let Err(why) = proof::show(&connection, &identity).await {
                    tracing::debug!("{}: the renewed certificate: {why}", connection.remote_address());
                }
            });
        }
        Ok(())
    }

    /// Whose order this is, if an operator has signed it who was let in at `at_us`, microseconds since 1970,
    /// and is not denied since.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn verify_order(&self, order: &SignedOrder, at_us: i64) -> Result<Certificate, String> {
        let certificate = orders::verify(&self.used.roots(), order, at_us)?;
        match self.guard.refusal_at(&certificate, at_us / 1_000_000) {
            Some(why) => Err(why),
            None => Ok(certificate),
        }
    }

    /// What the authorities of its certificate say of operators' orders.
    #[must_use]
    pub fn signs(&self) -> Signs {
        self.used.signs()
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
        let mut client = self.used.client();
        let transport = transport_config(&self.congestion, address.ip(), traffic).map_err(&unreachable)?;
        client.transport_config(transport).initial_dst_cid_provider(Arc::new(move || traffic.draw_id()));
        let connecting = self.endpoint.connect_with(client, address, expect.as_str());
        let connecting = connecting.map_err(|e| unreachable(e.to_string()))?;
        let connected = tokio::time::timeout(patience, connecting).await;
        let connection = connected
            .map_err(|_| unreachable(format!("no answer within {} ms", patience.as_millis())))?
            .map_err(|e| classify(address, &e))?;
        let certificate = certificate_of(&connection).filter(|its| its.peer.voter() == Some(expect));
        let refused = match &certificate {
            Some(certificate) => self.guard.refusal(certificate),
            None => Some(format!("it is not that of region {expect}")),
        };
        match (certificate, refused) {
            (Some(certificate), None) => {
                let (certificate, held) = (Arc::new(certificate), Arc::new(()));
                self.guard.keep(&connection, certificate.clone(), Some(Arc::downgrade(&held)));
                Ok(Connection::new(connection, certificate, held))
            }
            (_, refused) => {
                connection.close(VarInt::from_u32(2), b"another region was expected");
                let reason = refused.unwrap_or_default();
                Err(TransportError::Certificate { address: address.to_string(), reason })
            }
        }
    }

    /// Connects to the region `expect` at `place`, a `host:port`, or several with commas between: at
    /// whichever of its addresses answers first. Of several hosts only the region's head listens: the one
    /// that answered last is tried first, and from a moment later on all.
    ///
    /// # Errors
    /// As [`Endpoint::connect_for`], of the address that failed last.
    pub async fn connect_to(
        &self,
        traffic: Traffic,
        place: &str,
        expect: &RegionName,
        patience: Duration,
    ) -> Result<Connection, TransportError> {
        if place.contains(',') {
            return self.connect_head(traffic, place, expect, patience).await;
        }
        let unreachable = |reason: String| TransportError::Unreachable { address: place.to_owned(), reason };
        let found = tokio::net::lookup_host(place).await.map_err(|e| unreachable(e.to_string()))?;
        let addresses: Vec<SocketAddr> = found.take(ADDRESSES_MAX).collect();
        self.connect_any(traffic, addresses, expect, patience)
            .await?
            .ok_or_else(|| unreachable("no address".into()))
    }

    /// Connects to that of the hosts at `place` which listens, or comes to within `patience`: all are tried
    /// again and again, as one that begins to listen does not hear what was sent before.
    async fn connect_head(
        &self,
        traffic: Traffic,
        place: &str,
        expect: &RegionName,
        patience: Duration,
    ) -> Result<Connection, TransportError> {
        let mut addresses = Vec::new();
        for host in place.split(',') {
            // One that has no address now may not be the head.
            addresses.extend(tokio::net::lookup_host(host).await.into_iter().flatten());
        }
        addresses.truncate(HOSTS_ADDRESSES_MAX);
        let last = self.answered().get(place).copied().filter(|last| addresses.contains(last));
        let mut trying = JoinSet::new();
        let until = now() + patience;
        let mut refused = None;
        let avoided = self.avoided().get(place).copied();
        let mut next: Vec<SocketAddr> = match last {
            Some(last) => vec![last],
            None => addresses.iter().copied().filter(|address| Some(*address) != avoided).collect(),
        };
        loop {
            let left = self.expected().get(place).filter(|(until, _)| now() < *until).map(|(_, left)| *left);
            // The one that was left may listen still.
            let again = addresses.iter().copied().filter(|address| Some(*address) != left).collect();
            for address in std::mem::replace(&mut next, again) {
                let (endpoint, expect) = (self.clone(), expect.clone());
                trying.spawn(async move { endpoint.connect_for(traffic, address, &expect, patience).await });
            }
            let round = until.min(now() + if left.is_some() { NEXT_SOON } else { NEXT_ADDRESS });
            while let Ok(ended) = tokio::time::timeout_at(round, next_ended(&mut trying)).await {
                match ended {
                    Ok(connection) => {
                        self.answered().insert(place.to_owned(), connection.remote_address());
                        return Ok(connection);
                    }
                    Err(e) => refused = Some(e),
                }
            }
            if round == until {
                let none = || TransportError::Unreachable {
                    address: place.to_owned(),
                    reason: format!("none of these answered within {} ms", patience.as_millis()),
                };
                // Who does not listen is not worth telling of.
                let refused = refused.filter(|e| !matches!(e, TransportError::Unreachable { .. }));
                return Err(refused.unwrap_or_else(none));
            }
        }
    }

    /// The host at `address` is not the head of the region at `place`, though it listens: the others are
    /// tried before it the next time.
    pub fn avoid(&self, place: &str, address: SocketAddr) {
        self.answered().remove(place);
        if place.contains(',') {
            self.avoided().insert(place.to_owned(), address);
        }
    }

    /// The host at `left` is the head of the region at `place` no more, and another one is about to begin to
    /// listen: for a moment the others are tried more often, as what is sent to it before is lost.
    pub fn await_another(&self, place: &str, left: SocketAddr) {
        self.avoid(place, left);
        if place.contains(',') {
            self.expected().insert(place.to_owned(), (now() + SOON, left));
        }
    }

    fn expected(&self) -> MutexGuard<'_, BTreeMap<String, (Instant, SocketAddr)>> {
        // Each change is one insertion.
        self.expected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn avoided(&self) -> MutexGuard<'_, BTreeMap<String, SocketAddr>> {
        self.avoided.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answered(&self) -> MutexGuard<'_, BTreeMap<String, SocketAddr>> {
        // Each change is one insertion or removal.
        self.answered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connects to the region `expect` at whichever of `addresses` answers first. Each is tried a moment
    /// after the one before, as RFC 8305 has it: one that swallows everything holds nobody up. None where
    /// there is no address.
    ///
    /// # Errors
    /// As [`Endpoint::connect_for`], of the address that failed last.
    pub async fn connect_any(
        &self,
        traffic: Traffic,
        addresses: Vec<SocketAddr>,
        expect: &RegionName,
        patience: Duration,
    ) -> Result<Option<Connection>, TransportError> {
        let (mut addresses, mut trying, mut failed) = (addresses.into_iter(), JoinSet::new(), None);
        loop {
            match addresses.next() {
                Some(address) => {
                    let (endpoint, expect) = (self.clone(), expect.clone());
                    trying.spawn(
                        async move { endpoint.connect_for(traffic, address, &expect, patience).await },
                    );
                }
                None if trying.is_empty() => return failed.map_or(Ok(None), Err),
                None => {}
            }
            let wait = if addresses.len() > 0 { NEXT_ADDRESS } else { patience };
            match tokio::time::timeout(wait, trying.join_next()).await {
                Ok(Some(Ok(Ok(connection)))) => return Ok(Some(connection)),
                Ok(Some(Ok(Err(e)))) => failed = Some(e),
                // The next one is begun; or a task was lost, which says nothing.
                Ok(Some(Err(_)) | None) | Err(_) => {}
            }
        }
    }

    /// Closes every connection, and waits until the peers know or a second has passed.
    pub async fn close(&self) {
        self.endpoint.close(VarInt::from_u32(0), b"the daemon is stopping");
        let _ = tokio::time::timeout(Duration::from_secs(1), self.endpoint.wait_idle()).await;
    }
}

/// Waits for the next attempt that ends; for ever where there is none.
async fn next_ended(
    trying: &mut JoinSet<Result<Connection, TransportError>>,
) -> Result<Connection, TransportError> {
    loop {
        match trying.join_next().await {
            Some(Ok(ended)) => return ended,
            // A task was lost, which says nothing.
            Some(Err(_)) => {}
            None => std::future::pending().await,
        }
    }
}

fn bind_socket(address: SocketAddr) -> std::io::Result<std::net::UdpSocket> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::DGRAM, None)?;
    // As much as the system allows; it may be less.
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER_BYTES);
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    Ok(socket.into())
}
