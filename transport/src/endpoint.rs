//! The region's one UDP socket: connections out and in, each with both certificates verified.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use proto::RegionName;
use quinn::VarInt;
use runtime::task::Tasks;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::TransportError;
use crate::admission::accept_all;
use crate::congestion::Congestion;
use crate::connection::{Connection, Traffic, classify, peer_of, transport_config};
use crate::credentials::Credentials;
use crate::identity::{Identity, Peer};

/// The most addresses of a name that are tried.
const ADDRESSES_MAX: usize = 8;

/// The wait before the next address of a name is tried beside those before it.
const NEXT_ADDRESS: Duration = Duration::from_millis(200);

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
    accepted: Arc<tokio::sync::Mutex<mpsc::Receiver<Connection>>>,
    /// Of places of several hosts the address that answered last; as many as there are regions.
    answered: Arc<Mutex<BTreeMap<String, SocketAddr>>>,
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
        let used = Credentials::of(identity).map_err(&failed)?;
        let socket = bind_socket(address).map_err(|e| failed(e.to_string()))?;
        let runtime = quinn::default_runtime().ok_or_else(|| failed("there is no async runtime".into()))?;
        let accepts = listen.map(|_| used.server());
        let endpoint = quinn::Endpoint::new(quinn::EndpointConfig::default(), accepts, socket, runtime);
        let endpoint = endpoint.map_err(|e| failed(e.to_string()))?;
        let tasks = Arc::new(Tasks::new());
        // One waiting connection is enough: whoever accepts is always quick to.
        let (accept, accepted) = mpsc::channel(1);
        if listen.is_some() {
            tasks.spawn(accept_all(endpoint.clone(), used.clone(), congestion.clone(), accept));
        }
        let accepted = Arc::new(tokio::sync::Mutex::new(accepted));
        Ok(Endpoint { endpoint, used, congestion, accepted, answered: Arc::default(), _tasks: tasks })
    }

    /// Uses another certificate for connections that begin from now on; those that there are go on.
    /// Nothing is changed unless its own authorities would let it in.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn renew(&self, identity: &Identity) -> Result<(), String> {
        identity.verify()?;
        self.used.replace(identity)
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
        match peer_of(&connection) {
            Some(Peer::Region(name)) if name == *expect => {
                Ok(Connection::new(connection, Peer::Region(name)))
            }
            _ => {
                connection.close(VarInt::from_u32(2), b"another region was expected");
                let reason = format!("it is not that of region {expect}");
                Err(TransportError::Certificate { address: address.to_string(), reason })
            }
        }
    }

    /// Connects to the region `expect` at `place`, a `host:port`, or several with commas between: at
    /// whichever of its addresses answers first. Of several hosts only the region's head listens: the one
    /// that answered last is tried first, and a moment later all others at once.
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
        let unreachable = |reason: String| TransportError::Unreachable { address: place.to_owned(), reason };
        if place.contains(',') {
            let mut addresses = Vec::new();
            for host in place.split(',') {
                // One that has no address now may not be the head.
                addresses.extend(tokio::net::lookup_host(host).await.into_iter().flatten());
            }
            addresses.truncate(HOSTS_ADDRESSES_MAX);
            let last = self.answered().get(place).copied();
            let known = last.is_some_and(|last| addresses.contains(&last));
            addresses.sort_by_key(|address| Some(*address) != last);
            let begin = Begin { first_alone: known, others_at_once: true };
            let connected = self.race(traffic, addresses, expect, patience, begin).await?;
            let connection = connected.ok_or_else(|| unreachable("no address".into()))?;
            self.answered().insert(place.to_owned(), connection.remote_address());
            return Ok(connection);
        }
        let found = tokio::net::lookup_host(place).await.map_err(|e| unreachable(e.to_string()))?;
        let addresses: Vec<SocketAddr> = found.take(ADDRESSES_MAX).collect();
        self.connect_any(traffic, addresses, expect, patience)
            .await?
            .ok_or_else(|| unreachable("no address".into()))
    }

    /// Whoever answered last at `place` is not the head: all hosts are tried at once the next time.
    pub fn forget(&self, place: &str) {
        self.answered().remove(place);
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
        let begin = Begin { first_alone: true, others_at_once: false };
        self.race(traffic, addresses, expect, patience, begin).await
    }

    async fn race(
        &self,
        traffic: Traffic,
        addresses: Vec<SocketAddr>,
        expect: &RegionName,
        patience: Duration,
        begin: Begin,
    ) -> Result<Option<Connection>, TransportError> {
        let (mut addresses, mut trying, mut failed) = (addresses.into_iter(), JoinSet::new(), None);
        let mut first = begin.first_alone;
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
            let wait = match addresses.len() {
                0 => patience,
                _ if begin.others_at_once && !first => Duration::ZERO,
                _ => NEXT_ADDRESS,
            };
            first = false;
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

/// How addresses are tried that one of is to be connected to.
#[derive(Debug, Clone, Copy)]
struct Begin {
    /// The first one is given a moment before the next.
    first_alone: bool,
    /// Those after it are tried together.
    others_at_once: bool,
}

fn bind_socket(address: SocketAddr) -> std::io::Result<std::net::UdpSocket> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::DGRAM, None)?;
    // As much as the system allows; it may be less.
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER_BYTES);
    socket.bind(&address.into())?;
    Ok(socket.into())
}
