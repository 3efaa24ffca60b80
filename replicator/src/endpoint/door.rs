//! Takes clients in at an address, and holds them until they are brought to a PostgreSQL.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use postgres::protocol::wire::error_response;
use proto::Lsn;
use runtime::task::Tasks;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio::time::error::Elapsed;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::Kind;
use super::farewell;
use super::first::{self, ASKS_FOR_TLS, Begins, ENCRYPTED, FIRST_WORDS, REFUSED};
use super::relay::{Ended, Far, pass};
use super::tally::{Counts, Tally};
use super::way::Freshness;
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

/// The SQLSTATE of something that was asked for and cannot be read.
const INVALID_PARAMETER: &str = "22023";

/// How long a PostgreSQL may take to say whether it encrypts.
const ANSWER: Duration = Duration::from_secs(3);

/// How many PostgreSQLs are asked for encryption, where some do not encrypt.
const TRIES: usize = 4;

/// The SQLSTATE of a server that has too many.
const TOO_MANY_CONNECTIONS: &str = "53300";

/// Finds clients their PostgreSQL.
pub trait Guide: Send + Sync + 'static {
    /// Brings a client of the endpoint of `kind` to a PostgreSQL, which is as fresh as is `wanted` where it
    /// reads; however long that takes. With it comes what cuts the session off.
    fn find(&self, kind: Kind, wanted: Freshness) -> impl Future<Output = (Far, CancellationToken)> + Send;

    /// Why a client would wait now, in words.
    fn why(&self, kind: Kind, wanted: Freshness) -> String;
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
    /// Whether the PostgreSQL that was asked last encrypts.
    encrypts: AtomicBool,
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
            encrypts: AtomicBool::new(false),
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
            let caller = Caller { client, said: Vec::new(), kind };
            return self.turn_away(caller, TOO_MANY_CONNECTIONS, &why).await;
        };
        let mut caller = Caller { client, said: Vec::new(), kind };
        let wanted = Freshness { lag_max: limits.max_lag, at_least: Lsn::ZERO };
        let introduced = match kind {
            // The writer shows whatever was acknowledged.
            Kind::Writer => self.find(&caller, &limits, wanted).await,
            Kind::Reader => self.introduce(&mut caller, &limits, wanted).await,
        };
        match introduced {
            Ok((far, cut)) => {
                tally.opened();
                if pass(caller.client, far, &cut).await == Ended::Cut {
                    tally.cut();
                }
            }
            Err(Turned::Gone) => {}
            Err(Turned::Away(code, why)) => {
                tally.refused();
                self.turn_away(caller, code, &why).await;
            }
        }
    }

    /// Finds a client of the reader a PostgreSQL that shows what it asks for in its first words, and passes
    /// those on.
    async fn introduce(
        &self,
        caller: &mut Caller,
        limits: &EndpointsConfig,
        wanted: Freshness,
    ) -> Result<(Far, CancellationToken), Turned> {
        let mut answered = None;
        let begins = loop {
            let begins = first::begins(&mut caller.client, &mut caller.said);
            let begins = timeout(FIRST_WORDS, begins).await??;
            let knows_answer = begins == Begins::AsksForTls && self.encrypts.load(Ordering::Relaxed);
            if !begins.waits_for_answer() || knows_answer {
                break begins;
            }
            // What PostgreSQL answers is not known before one was asked.
            let (mut far, cut) = self.find(caller, limits, wanted).await?;
            let answer = timeout(ANSWER, far.ask(std::mem::take(&mut caller.said))).await??;
            caller.client.write_all(&[answer]).await?;
            match (begins, answer) {
                // It asks for something else, or begins without.
                (Begins::AsksForGssapi, REFUSED) => {}
                (Begins::AsksForTls, ENCRYPTED) => {
                    self.encrypts.store(true, Ordering::Relaxed);
                    answered = Some((far, cut));
                    break begins;
                }
                _ => return Ok((far, cut)),
            }
        };
        if begins == Begins::AsksForTls && answered.is_none() {
            caller.said.clear();
            caller.client.write_all(&[ENCRYPTED]).await?;
        }
        let name = match begins {
            Begins::Otherwise | Begins::AsksForGssapi => None,
            Begins::AsksForTls | Begins::WithTls => {
                timeout(FIRST_WORDS, first::server_name(&mut caller.client, &mut caller.said)).await??
            }
        };
        let at_least = name.map_or(Ok(None), |name| first::position_in(&name));
        let at_least = at_least.map_err(|why| Turned::Away(INVALID_PARAMETER, why))?;
        let (mut far, cut) = match (at_least, answered) {
            (None, Some(answered)) => answered,
            (at_least, _) => {
                let wanted = Freshness { at_least: at_least.unwrap_or(wanted.at_least), ..wanted };
                self.find_prepared(caller, limits, wanted, begins).await?
            }
        };
        far.say(std::mem::take(&mut caller.said)).await?;
        Ok((far, cut))
    }

    /// Finds a client a PostgreSQL which has answered what the client was answered.
    async fn find_prepared(
        &self,
        caller: &Caller,
        limits: &EndpointsConfig,
        wanted: Freshness,
        begins: Begins,
    ) -> Result<(Far, CancellationToken), Turned> {
        for _ in 0..TRIES {
            let (mut far, cut) = self.find(caller, limits, wanted).await?;
            if begins != Begins::AsksForTls
                || timeout(ANSWER, far.ask(ASKS_FOR_TLS.to_vec())).await?? == ENCRYPTED
            {
                return Ok((far, cut));
            }
        }
        // The client was told otherwise, and comes again.
        self.encrypts.store(false, Ordering::Relaxed);
        Err(Turned::Gone)
    }

    /// Finds a client a PostgreSQL, unless that takes too long, or the client goes.
    async fn find(
        &self,
        caller: &Caller,
        limits: &EndpointsConfig,
        wanted: Freshness,
    ) -> Result<(Far, CancellationToken), Turned> {
        let kind = caller.kind;
        let _waiting = self.tally(kind).wait();
        let found = tokio::select! {
            found = timeout(limits.hold, self.guide.find(kind, wanted)) => found,
            () = gone(&caller.client) => return Err(Turned::Gone),
        };
        found.map_err(|_| {
            let why = format!(
                "the endpoint of the {kind} in {} found none within {} s: {}. Try again",
                self.whose,
                limits.hold.as_secs(),
                self.guide.why(kind, wanted)
            );
            Turned::Away(CANNOT_CONNECT_NOW, why)
        })
    }

    /// Tells a client why it is turned away, as PostgreSQL does.
    async fn turn_away(&self, caller: Caller, code: &str, why: &str) {
        let Some(_place) = self.told.enter(TOLD_MAX) else { return };
        let Caller { client, said, .. } = caller;
        farewell::tell(client, said, &error_response("FATAL", code, why), &self.certificate).await;
    }
}

/// A client that was taken in.
struct Caller {
    client: TcpStream,
    /// What it has said that nobody was told yet, and that it was not answered.
    said: Vec<u8>,
    kind: Kind,
}

/// Why a client is brought nowhere.
enum Turned {
    /// It has gone, or is to be let go without a word.
    Gone,
    /// It is told why, with a SQLSTATE.
    Away(&'static str, String),
}

impl From<std::io::Error> for Turned {
    fn from(_: std::io::Error) -> Turned {
        Turned::Gone
    }
}

impl From<Elapsed> for Turned {
    fn from(_: Elapsed) -> Turned {
        Turned::Gone
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
