//! Finds a region's clients their PostgreSQL: the region's own, a node's, or another region's; and those that
//! other regions and the region's nodes bring.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use proto::messages::{ClientOpen, SessionOpen};
use proto::{Lsn, RegionName};
use runtime::clock::now;
use tokio::net::TcpStream;
use tokio::sync::watch as latest;
use tokio_util::sync::CancellationToken;
use transport::{Stream, TransportError};

use super::Kind;
use super::door::{Doors, Guide};
use super::relay::{Ended, Far, between, pass};
use super::tally::{Counts, Tally};
use super::tunnel::{self, Tunnels};
use super::way::{Freshness, Knows, Near, Term, Waits, Wanted, Way};

/// How long PostgreSQL may take to take a connection.
const CONNECT: Duration = Duration::from_secs(1);

/// The wait before a way that failed is tried again.
const AGAIN: Duration = Duration::from_millis(100);

/// How long a reader waits for what is near to show the position that it names, before it is brought far
/// away: what it has written is mostly on its way.
const NEAR_FIRST: Duration = Duration::from_millis(200);

/// How long a node's client is held here before its node is told why it waits; it asks again then.
const HELD: Duration = Duration::from_secs(1);

/// What a region's daemon finds its clients their PostgreSQL by.
#[derive(Debug)]
pub struct Regional {
    /// The region's own PostgreSQL.
    here: SocketAddr,
    regions: Vec<RegionName>,
    tunnels: Tunnels,
    knows: latest::Sender<Knows>,
    /// The terms whose writers have sessions here, each with what cuts them off.
    terms: Mutex<Vec<(Term, CancellationToken)>>,
    /// Sessions that other regions, and nodes, brought.
    brought: Tally,
    /// Counts readers, to spread them.
    turn: AtomicUsize,
}

impl Regional {
    /// Of the region that `knows` so much at first, whose PostgreSQL listens at `listen`.
    #[must_use]
    pub fn new(knows: Knows, listen: SocketAddr, regions: Vec<RegionName>, tunnels: Tunnels) -> Regional {
        Regional {
            here: reachable(listen),
            regions,
            tunnels,
            knows: latest::Sender::new(knows),
            terms: Mutex::default(),
            brought: Tally::default(),
            turn: AtomicUsize::new(0),
        }
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

    async fn find_writer(&self, knows: &Knows) -> Result<(Far, CancellationToken), Waits> {
        let (way, term) = knows.writer()?;
        let refused = |why: String| Waits::Refused(term.region.clone(), why);
        let far = self.go(&way, &Wanted::Writer(term.epoch)).await.map_err(refused)?;
        Ok((far, self.cut_of(&term)))
    }

    /// Finds a reader its PostgreSQL, in this region alone where it `waits_near`.
    async fn find_reader(
        &self,
        knows: &Knows,
        wanted: Freshness,
        waits_near: bool,
    ) -> Result<(Far, CancellationToken), Waits> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let mut why = knows.serves_reader(&wanted, turn).err().unwrap_or_default();
        let ways = knows.reader(&self.regions, &wanted, turn).into_iter();
        for way in ways.filter(|way| !waits_near || matches!(way, Way::Here(_))) {
            match self.go(&way, &Wanted::Reader(wanted)).await {
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
            Wanted::Reader(fresh) => {
                let mut why = String::new();
                for near in knows.serves_reader(fresh, self.turn.fetch_add(1, Ordering::Relaxed))? {
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

impl Guide for Regional {
    async fn find(&self, kind: Kind, wanted: Freshness) -> (Far, CancellationToken) {
        let (mut known, begun) = (self.knows.subscribe(), now());
        let at_all = Freshness { at_least: Lsn::ZERO, ..wanted };
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
                Kind::Reader => {
                    let waits_near = wanted.at_least > Lsn::ZERO
                        && begun.elapsed() < NEAR_FIRST
                        && knows.serves_reader(&at_all, 0).is_ok();
                    self.find_reader(&knows, wanted, waits_near).await
                }
            };
            match found {
                Ok(found) => return found,
                Err(why) => tracing::debug!("a client of the {kind} waits: {why}"),
            }
            // The sender lives as long as this.
            let _ = tokio::time::timeout(AGAIN, known.changed()).await;
        }
    }

    fn why(&self, kind: Kind, wanted: Freshness) -> String {
        let knows = self.knows.borrow();
        let why = match kind {
            Kind::Writer => knows.writer().map(|(way, _)| way),
            Kind::Reader => {
                knows.serves_reader(&wanted, 0).map(|_| Way::Here(Near::Own)).map_err(Waits::NobodyFresh)
            }
        };
        match why {
            Err(why) => why.to_string(),
            Ok(Way::Here(_)) => "the region's own PostgreSQL takes no connection".into(),
            Ok(Way::There(region)) => format!("region {region} leads, and takes no session of this one"),
        }
    }
}

impl Doors<Regional> {
    /// What each endpoint did, by its name, and what the sessions did that others brought.
    #[must_use]
    pub fn all_counts(&self) -> Vec<(&'static str, Counts)> {
        self.counts().into_iter().chain([("elsewhere", self.guide().brought.counts())]).collect()
    }

    /// Brings a client of another region to this region's PostgreSQL.
    ///
    /// # Errors
    /// When the connection is lost.
    pub async fn bring(&self, open: &SessionOpen, stream: Stream) -> Result<(), TransportError> {
        let (limits, guide) = (self.limits(), self.guide());
        let place = guide.brought.enter(limits.sessions.into());
        if place.is_none() {
            guide.brought.refused();
        }
        let begun = match (&place, tunnel::wanted(open)) {
            (None, _) => {
                Err(format!("it has {} sessions of other regions' clients already", limits.sessions))
            }
            (_, None) => Err("it does not know what is wanted".into()),
            (Some(_), Some(wanted)) => guide.begin(&wanted).await,
        };
        let (postgres, cut) = match begun {
            Ok(begun) => begun,
            Err(why) => {
                return tunnel::refuse(stream, why).await;
            }
        };
        let (sender, receiver) = tunnel::begin(stream, Lsn(open.at_least_lsn)).await?;
        guide.brought.opened();
        if pass(postgres, Far::Stream(sender, receiver), &cut).await == Ended::Cut {
            guide.brought.cut();
        }
        Ok(())
    }

    /// Brings a client of a node's endpoint to where one of this daemon's own would come.
    ///
    /// # Errors
    /// When the connection is lost.
    pub async fn bring_client(&self, open: &ClientOpen, stream: Stream) -> Result<(), TransportError> {
        let (limits, guide) = (self.limits(), self.guide());
        let kind = if open.reads { Kind::Reader } else { Kind::Writer };
        let wanted = Freshness { lag_max: limits.max_lag, at_least: Lsn(open.at_least_lsn) };
        let place = guide.brought.enter(limits.sessions.into());
        let found = match &place {
            None => Err(format!("it has {} sessions of others' clients already", limits.sessions)),
            Some(_) => {
                let found = tokio::time::timeout(HELD, guide.find(kind, wanted)).await;
                found.map_err(|_| guide.why(kind, wanted))
            }
        };
        let (far, cut) = match found {
            Ok(found) => found,
            Err(why) => {
                guide.brought.refused();
                return tunnel::refuse(stream, why).await;
            }
        };
        let near = tunnel::begin(stream, wanted.at_least).await?;
        guide.brought.opened();
        if between(near, far, &cut).await == Ended::Cut {
            guide.brought.cut();
        }
        Ok(())
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
