//! Takes clients in, holds them while nobody leads, and brings them to a PostgreSQL.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use postgres::protocol::wire::error_response;
use proto::RegionName;
use proto::messages::{Refusal, SessionOpen, SessionReady, refusal::Kind as Why};
use runtime::task::Tasks;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::sync::watch as latest;
use tokio_util::sync::CancellationToken;
use transport::{Stream, TransportError};

use super::Kind;
use super::farewell;
use super::relay::{Ended, Far, pass};
use super::tally::{Counts, Tally};
use super::tunnel::{self, Tunnels};
use super::way::{Knows, Near, Term, Waits, Wanted, Way};
use crate::config::EndpointsConfig;
use crate::daemon::listen;

/// How long PostgreSQL may take to take a connection.
const CONNECT: Duration = Duration::from_secs(1);

/// The wait before a way that failed is tried again.
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

/// What the endpoints of a region work with.
#[derive(Debug)]
pub struct Doors {
    me: RegionName,
    /// The region's own PostgreSQL.
    here: SocketAddr,
    /// The directory of the certificate by which clients know that.
    certificate: PathBuf,
    regions: Vec<RegionName>,
    tunnels: Tunnels,
    knows: latest::Sender<Knows>,
    limits: Mutex<EndpointsConfig>,
    /// The terms whose writers have sessions here, each with what cuts them off.
    terms: Mutex<Vec<(Term, CancellationToken)>>,
    tallies: [Tally; Kind::ALL.len()],
    /// Sessions that other regions brought.
    brought: Tally,
    told: Tally,
    /// Counts readers, to spread them.
    turn: AtomicUsize,
}

impl Doors {
    /// The endpoints of the region that `knows` so much at first, whose PostgreSQL listens at `listen`,
    /// and has its certificate in the directory `certificate`.
    #[must_use]
    pub fn new(
        knows: Knows,
        listen: SocketAddr,
        certificate: PathBuf,
        regions: Vec<RegionName>,
        tunnels: Tunnels,
        limits: EndpointsConfig,
    ) -> Doors {
        Doors {
            me: knows.me.clone(),
            here: reachable(listen),
            certificate,
            regions,
            tunnels,
            knows: latest::Sender::new(knows),
            limits: Mutex::new(limits),
            terms: Mutex::default(),
            tallies: Default::default(),
            brought: Tally::default(),
            told: Tally::default(),
            turn: AtomicUsize::new(0),
        }
    }

    /// What each endpoint did, by its name, and what the sessions did that other regions brought.
    #[must_use]
    pub fn counts(&self) -> Vec<(&'static str, Counts)> {
        let own = Kind::ALL.map(|kind| (kind.as_str(), self.tally(kind).counts()));
        own.into_iter().chain([("elsewhere", self.brought.counts())]).collect()
    }

    fn tally(&self, kind: Kind) -> &Tally {
        let [writer, reader] = &self.tallies;
        match kind {
            Kind::Writer => writer,
            Kind::Reader => reader,
        }
    }

    fn limits(&self) -> EndpointsConfig {
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Other limits hold from now on, for those who come.
    pub fn limit(&self, limits: EndpointsConfig) {
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner) = limits;
    }

    /// The region knows this now: those who wait look again, and those whose writer was shut out are cut off.
    pub fn learn(&self, knows: Knows) {
        let changed = self.knows.send_if_modified(|known| {
            let changed = *known != knows;
            *known = knows;
            changed
        });
        if !changed {
            return;
        }
        let knows = self.knows.borrow();
        let mut terms = self.terms.lock().unwrap_or_else(PoisonError::into_inner);
        terms.retain(|(term, cut)| {
            let stays = knows.stays(term);
            if !stays {
                cut.cancel();
            }
            stays
        });
    }

    /// What cuts off the sessions of `term`: cancelled already where they may not begin any more.
    fn cut_of(&self, term: &Term) -> CancellationToken {
        let knows = self.knows.borrow();
        let mut terms = self.terms.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, cut)) = terms.iter().find(|(known, _)| known == term) {
            return cut.clone();
        }
        let cut = CancellationToken::new();
        match knows.stays(term) {
            true => terms.push((term.clone(), cut.clone())),
            false => cut.cancel(),
        }
        cut
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
                "the endpoint of the {kind} in region {} has {} clients, and takes no more: `sessions` in [endpoints]",
                self.me, limits.sessions
            );
            return self.turn_away(client, TOO_MANY_CONNECTIONS, &why).await;
        };
        let waiting = tally.wait();
        let found = tokio::select! {
            found = tokio::time::timeout(limits.hold, self.find(kind, limits.max_lag)) => found,
            () = gone(&client) => return,
        };
        drop(waiting);
        let (far, cut) = match found {
            Ok(found) => found,
            Err(_) => {
                tally.refused();
                let why = format!(
                    "the endpoint of the {kind} in region {} found none within {} s: {}. Try again",
                    self.me,
                    limits.hold.as_secs(),
                    self.why(kind, limits.max_lag)
                );
                return self.turn_away(client, CANNOT_CONNECT_NOW, &why).await;
            }
        };
        tally.opened();
        if pass(client, far, &cut).await == Ended::Cut {
            tally.cut();
        }
    }

    /// Brings a client to a PostgreSQL, however long that takes.
    async fn find(&self, kind: Kind, lag_max: Duration) -> (Far, CancellationToken) {
        let mut known = self.knows.subscribe();
        loop {
            let knows = known.borrow_and_update().clone();
            let found = match kind {
                Kind::Writer => {
                    // A region that has gone is not waited for once another one leads.
                    let leads = knows.writer();
                    tokio::select! {
                        found = self.find_writer(&knows) => found,
                        _ = known.wait_for(|now| leads.is_ok() && now.writer() != leads) => continue,
                    }
                }
                Kind::Reader => self.find_reader(&knows, lag_max).await,
            };
            match found {
                Ok(found) => return found,
                Err(why) => tracing::debug!("a client of the {kind} waits: {why}"),
            }
            // The sender lives as long as this.
            let _ = tokio::time::timeout(AGAIN, known.changed()).await;
        }
    }

    async fn find_writer(&self, knows: &Knows) -> Result<(Far, CancellationToken), Waits> {
        let (way, term) = knows.writer()?;
        let refused = |why: String| Waits::Refused(term.region.clone(), why);
        let far = self.go(&way, &Wanted::Writer(term.epoch)).await.map_err(refused)?;
        Ok((far, self.cut_of(&term)))
    }

    async fn find_reader(&self, knows: &Knows, lag_max: Duration) -> Result<(Far, CancellationToken), Waits> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let mut why = knows.serves_reader(lag_max, turn).err().unwrap_or_default();
        for way in knows.reader(&self.regions, lag_max, turn) {
            match self.go(&way, &Wanted::Reader(lag_max)).await {
                // Whatever becomes of its region, a reader reads on.
                Ok(far) => return Ok((far, CancellationToken::new())),
                Err(refused) => why = refused,
            }
        }
        Err(Waits::NobodyFresh(why))
    }

    async fn go(&self, way: &Way, wanted: &Wanted) -> Result<Far, String> {
        match way {
            Way::Here(near) => self.connect(near).await.map(Far::Near),
            Way::There(region) => {
                let (sender, receiver) = self.tunnels.open(region, wanted).await?;
                Ok(Far::Stream(sender, receiver))
            }
        }
    }

    async fn connect(&self, near: &Near) -> Result<TcpStream, String> {
        let at = match near {
            Near::Own => self.here,
            Near::Node(_, at) => reachable(*at),
        };
        let late = |_| std::io::Error::from(std::io::ErrorKind::TimedOut);
        let connecting = tokio::time::timeout(CONNECT, TcpStream::connect(at)).await;
        let postgres = connecting.map_err(late).flatten();
        let postgres = postgres.map_err(|e| format!("PostgreSQL at {at}: {e}"))?;
        let _ = postgres.set_nodelay(true);
        Ok(postgres)
    }

    /// Why a client of `kind` would wait now, in words.
    fn why(&self, kind: Kind, lag_max: Duration) -> String {
        let knows = self.knows.borrow();
        let why = match kind {
            Kind::Writer => knows.writer().map(|(way, _)| way),
            Kind::Reader => {
                knows.serves_reader(lag_max, 0).map(|_| Way::Here(Near::Own)).map_err(Waits::NobodyFresh)
            }
        };
        match why {
            Err(why) => why.to_string(),
            Ok(Way::Here(_)) => "the region's own PostgreSQL takes no connection".into(),
            Ok(Way::There(region)) => format!("region {region} leads, and takes no session of this one"),
        }
    }

    /// Tells a client why it is turned away, as PostgreSQL does.
    async fn turn_away(&self, client: TcpStream, code: &str, why: &str) {
        let Some(_place) = self.told.enter(TOLD_MAX) else { return };
        farewell::tell(client, &error_response("FATAL", code, why), &self.certificate).await;
    }

    /// Brings a client of another region to this region's PostgreSQL.
    ///
    /// # Errors
    /// When the connection is lost.
    pub async fn bring(&self, open: &SessionOpen, mut stream: Stream) -> Result<(), TransportError> {
        let limits = self.limits();
        let place = self.brought.enter(limits.sessions.into());
        if place.is_none() {
            self.brought.refused();
        }
        let begun = match (&place, tunnel::wanted(open)) {
            (None, _) => {
                Err(format!("it has {} sessions of other regions' clients already", limits.sessions))
            }
            (_, None) => Err("it does not know what is wanted".into()),
            (Some(_), Some(wanted)) => self.begin(&wanted).await,
        };
        let (postgres, cut) = match begun {
            Ok(begun) => begun,
            Err(why) => {
                stream.send(&SessionReady { refusal: Some(Refusal::new(Why::Busy, why)) }).await?;
                stream.finish().await;
                return Ok(());
            }
        };
        let (sender, receiver) = tunnel::begin(stream).await?;
        self.brought.opened();
        if pass(postgres, Far::Stream(sender, receiver), &cut).await == Ended::Cut {
            self.brought.cut();
        }
        Ok(())
    }

    async fn begin(&self, wanted: &Wanted) -> Result<(TcpStream, CancellationToken), String> {
        let knows = self.knows.borrow().clone();
        let cut = match wanted {
            Wanted::Writer(epoch) => match knows.writer() {
                Ok((Way::Here(_), term)) if term.epoch == *epoch => self.cut_of(&term),
                Ok((_, term)) => {
                    return Err(format!("region {} leads, and its epoch is {}", term.region, term.epoch));
                }
                Err(why) => return Err(why.to_string()),
            },
            Wanted::Reader(lag_max) => {
                let mut why = String::new();
                for near in knows.serves_reader(*lag_max, self.turn.fetch_add(1, Ordering::Relaxed))? {
                    match self.connect(&near).await {
                        Ok(postgres) => return Ok((postgres, CancellationToken::new())),
                        Err(refused) => why = refused,
                    }
                }
                return Err(why);
            }
        };
        Ok((self.connect(&Near::Own).await?, cut))
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

/// The address at which a PostgreSQL on this machine is reached that listens at `listen`.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}
