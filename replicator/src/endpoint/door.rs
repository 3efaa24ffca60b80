//! Takes clients in at an address, and holds them until they are brought to a PostgreSQL.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use postgres::protocol::wire::error_response;
use runtime::task::Tasks;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::Kind;
use super::farewell;
use super::relay::{Ended, Far, pass};
use super::tally::{Counts, Tally};
use crate::config::EndpointsConfig;
use crate::daemon::listen;

/// The wait before it is tried again to take a client in.
const AGAIN: Duration = Duration::from_millis(100);

/// Clients that may be told at once why they are turned away. Others are closed without a word.
const TOLD_MAX: u64 = 64;

/// When a client that says nothing is asked whether it lives, and how often.
const KEEPALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_secs(30))
    .with_interval(Duration::from_secs(10))
    .with_retries(3);

/// The SQLSTATE of a server that takes no connection now; clients try again.
const CANNOT_CONNECT_NOW: &str = "57P03";

/// The SQLSTATE of a server that has too many.
const TOO_MANY_CONNECTIONS: &str = "53300";

/// Finds clients their PostgreSQL.
pub trait Guide: Send + Sync + 'static {
    /// Brings a client of the endpoint of `kind` to a PostgreSQL, which shows readers what is at most
    /// `lag_max` old; however long that takes. With it comes what cuts the session off.
    fn find(&self, kind: Kind, lag_max: Duration) -> impl Future<Output = (Far, CancellationToken)> + Send;

    /// Why a client would wait now, in words.
    fn why(&self, kind: Kind, lag_max: Duration) -> String;
}

/// The endpoints of a region's daemon, or of a node.
#[derive(Debug)]
pub struct Doors<G> {
    /// Whose they are, in words.
    whose: String,
    /// The directory of the certificate by which clients know the PostgreSQL there.
    certificate: PathBuf,
    limits: Mutex<EndpointsConfig>,
    tallies: [Tally; Kind::ALL.len()],
    told: Tally,
    guide: G,
}

impl<G: Guide> Doors<G> {
    /// The endpoints of `whose` ("region us-east"), whose PostgreSQL has its certificate in the directory
    /// `certificate`.
    #[must_use]
    pub fn new(whose: String, certificate: PathBuf, limits: EndpointsConfig, guide: G) -> Doors<G> {
        Doors {
            whose,
            certificate,
            limits: Mutex::new(limits),
            tallies: Default::default(),
            told: Tally::default(),
            guide,
        }
    }

    /// What finds its clients their PostgreSQL.
    pub fn guide(&self) -> &G {
        &self.guide
    }

    /// What each endpoint did, by its name.
    #[must_use]
    pub fn counts(&self) -> [(&'static str, Counts); Kind::ALL.len()] {
        Kind::ALL.map(|kind| (kind.as_str(), self.tally(kind).counts()))
    }

    fn tally(&self, kind: Kind) -> &Tally {
        let [writer, reader] = &self.tallies;
        match kind {
            Kind::Writer => writer,
            Kind::Reader => reader,
        }
    }

    /// What holds of those who come.
    pub fn limits(&self) -> EndpointsConfig {
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Other limits hold from now on, for those who come.
    pub fn limit(&self, limits: EndpointsConfig) {
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner) = limits;
    }

    /// Takes clients in at `address` until `stop`; then all of them are let go.
    pub async fn open(self: Arc<Self>, kind: Kind, address: SocketAddr, stop: CancellationToken) {
        let Some(listener) = listen::bind(address, &format!("the endpoint of the {kind}"), &stop).await
        else {
            return;
        };
        tracing::info!("clients reach the {kind} at {address}");
        let clients = Tasks::new();
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((client, _)) => clients.spawn(self.clone().take_in(kind, client)),
                // Too many files are open, or the client has gone already.
                Err(e) => {
                    tracing::warn!("the endpoint of the {kind} at {address}: {e}; it goes on");
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }

    async fn take_in(self: Arc<Self>, kind: Kind, client: TcpStream) {
        let tally = self.tally(kind);
        let limits = self.limits();
        // What cannot be set is set by default.
        let _ = client.set_nodelay(true);
        let _ = SockRef::from(&client).set_tcp_keepalive(&KEEPALIVE);
        let Some(_place) = tally.enter(limits.sessions.into()) else {
            tally.refused();
            let why = format!(
                "the endpoint of the {kind} in {} has {} clients, and takes no more: `sessions` in [endpoints]",
                self.whose, limits.sessions
            );
            return self.turn_away(client, TOO_MANY_CONNECTIONS, &why).await;
        };
        let waiting = tally.wait();
        let found = tokio::select! {
            found = tokio::time::timeout(limits.hold, self.guide.find(kind, limits.max_lag)) => found,
            () = gone(&client) => return,
        };
        drop(waiting);
        let (far, cut) = match found {
            Ok(found) => found,
            Err(_) => {
                tally.refused();
                let why = format!(
                    "the endpoint of the {kind} in {} found none within {} s: {}. Try again",
                    self.whose,
                    limits.hold.as_secs(),
                    self.guide.why(kind, limits.max_lag)
                );
                return self.turn_away(client, CANNOT_CONNECT_NOW, &why).await;
            }
        };
        tally.opened();
        if pass(client, far, &cut).await == Ended::Cut {
            tally.cut();
        }
    }

    /// Tells a client why it is turned away, as PostgreSQL does.
    async fn turn_away(&self, client: TcpStream, code: &str, why: &str) {
        let Some(_place) = self.told.enter(TOLD_MAX) else { return };
        farewell::tell(client, &error_response("FATAL", code, why), &self.certificate).await;
    }
}

/// Returns once the client has gone.
async fn gone(client: &TcpStream) {
    loop {
        // What it has said stays unread, so that it is ready at once: then it is looked again later.
        match client.ready(Interest::READABLE).await {
            Ok(ready) if !ready.is_read_closed() => tokio::time::sleep(AGAIN * 5).await,
            _ => return,
        }
    }
}
