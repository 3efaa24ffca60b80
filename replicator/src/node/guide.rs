//! Finds the clients of a node's endpoints their PostgreSQL: through the region's daemon, which brings
//! them to where it would bring one of its own.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use proto::messages::{ClientOpen, MAX_CONTROL_MESSAGE_BYTES, SessionReady, open};
use tokio_util::sync::CancellationToken;
use transport::{Connection, Traffic, TransportError};

use super::link::Link;
use crate::endpoint::Kind;
use crate::endpoint::door::Guide;
use crate::endpoint::relay::Far;
use crate::endpoint::tunnel;
use crate::endpoint::way::Freshness;

/// The wait before a way that failed is tried again.
const AGAIN: Duration = Duration::from_millis(100);

/// How long the region's daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// The way of clients through the region's daemon.
pub(super) struct ThroughHead {
    link: Arc<Link>,
    /// A connection for sessions, to the host to which the node's own goes. Made when it is wanted first.
    sessions: tokio::sync::Mutex<Option<Connection>>,
    /// Cuts off the sessions of the head that is heard now.
    cut: Mutex<CancellationToken>,
    /// Why the daemon brought a client nowhere, last.
    why: Mutex<String>,
}

impl ThroughHead {
    pub(super) fn new(link: Arc<Link>) -> ThroughHead {
        ThroughHead { link, sessions: <_>::default(), cut: Mutex::default(), why: Mutex::default() }
    }

    fn cut(&self) -> MutexGuard<'_, CancellationToken> {
        // Each change is one assignment.
        self.cut.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Cuts off the sessions of a head that is heard no more, where another may take its place, for ever.
    pub(super) async fn watch(&self) {
        let mut way = self.link.way.subscribe();
        // The sender lives as long as the node.
        while way.changed().await.is_ok() {
            let is_gone = way.borrow_and_update().is_none();
            if is_gone && self.link.hearing.is_some() {
                std::mem::take(&mut *self.cut()).cancel();
            }
        }
    }

    /// The connection for sessions to the host at the other end of `way`.
    async fn connection(&self, way: &Connection) -> Result<Connection, TransportError> {
        // Those who come while it is being made wait for it.
        let mut kept = self.sessions.lock().await;
        let address = way.remote_address();
        let fits = |kept: &&Connection| kept.remote_address() == address && !kept.is_over();
        if let Some(connection) = kept.as_ref().filter(fits) {
            return Ok(connection.clone());
        }
        let (endpoint, name) = (&self.link.endpoint, &self.link.place.name);
        let made = endpoint.connect_for(Traffic::Sessions, address, name, PATIENCE).await?;
        Ok(kept.insert(made).clone())
    }

    async fn open(&self, kind: Kind, wanted: Freshness, way: &Connection) -> Result<Far, String> {
        let words = |e: TransportError| e.to_string();
        let connection = self.connection(way).await.map_err(words)?;
        let purpose = open::Purpose::Client(ClientOpen {
            reads: kind == Kind::Reader,
            at_least_lsn: wanted.at_least.0,
        });
        let mut stream = connection.open_stream(&self.link.open(purpose)).await.map_err(words)?;
        let ready: Option<SessionReady> = stream.receive(MAX_CONTROL_MESSAGE_BYTES).await.map_err(words)?;
        match ready {
            Some(SessionReady { refusal: Some(refusal), .. }) => Err(refusal.reason),
            Some(ready) => {
                tunnel::shows(&ready, wanted.at_least)?;
                let (sender, receiver) = stream.split();
                Ok(Far::Stream(sender, receiver))
            }
            None => Err("it ended the session before it began".into()),
        }
    }
}

impl Guide for ThroughHead {
    async fn find(&self, kind: Kind, wanted: Freshness) -> (Far, CancellationToken) {
        let mut way = self.link.way.subscribe();
        loop {
            let heard = way.borrow_and_update().clone();
            let cut = self.cut().clone();
            let Some(heard) = heard else {
                let _ = way.changed().await;
                continue;
            };
            let opened = tokio::select! {
                opened = tokio::time::timeout(PATIENCE, self.open(kind, wanted, &heard)) => opened,
                // A head that is gone is not waited for.
                _ = way.changed() => continue,
            };
            let late = |_| Err(format!("no answer within {} s", PATIENCE.as_secs()));
            match opened.unwrap_or_else(late) {
                Ok(far) => return (far, cut),
                Err(why) => *self.why.lock().unwrap_or_else(PoisonError::into_inner) = why,
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    fn why(&self, _: Kind, _: Freshness) -> String {
        if self.link.way.borrow().is_none() {
            return format!("no daemon of region {} answers this node", self.link.place.name);
        }
        self.why.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
