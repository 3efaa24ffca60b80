//! What an operator can have daemons do and say: a client of every region of the file.
//!
//! The command line, rehearsals and `up` use it. It prints nothing, and reads no arguments.

mod order;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use postgres::sockets::{SUPERUSER, socket_dir_for, socket_path};
use proto::messages::{
    AuditPage, AuditRequest, ClusterStatus, ClusterStatusRequest, Event, Events, EventsRequest, LoadRequest,
    PasswordRequest, PasswordView, RecordRequest, RegionStatus, ReloadRequest, Reloaded, ReseedRequest,
    RevoteRequest, TokenRequest, UrlRequest, VolumeRequest, VolumeView, control_request, control_response,
};
use proto::{ClusterId, Lsn, RegionName};
use runtime::clock::now;
use tokio::task::JoinSet;
use transport::token::Placed;
use transport::{Endpoint, Identity, IdentityError, TransportError};

use crate::audit::chain::Head;
use crate::client::{self, AskError};
use crate::config::{Config, Place, RegionConfig};
use crate::endpoint::Kind as Of;
use crate::endpoint::first::name_after;
use crate::endpoint::tunnel::Tunnels;
use crate::layout::Layout;
use crate::load::series::{Cut, Load};
use crate::secrets;

/// How long a daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// How long reading a volume back may take: it goes as fast as the disks allow.
const SCRUB_PATIENCE: Duration = Duration::from_secs(3600);

/// How long reading seven days of load may take.
const LOAD_PATIENCE: Duration = Duration::from_secs(10);

/// How long a voter may take to ask the others twice.
const REVOTE_PATIENCE: Duration = Duration::from_secs(10);

/// How long a daemon and its PostgreSQL may take to read their configuration again.
const RELOAD_PATIENCE: Duration = Duration::from_secs(40);

/// How long is waited until every region's files have another password.
const ROTATED: Duration = Duration::from_secs(20);

/// How often it is looked how far a promotion is.
const STEPS: Duration = Duration::from_millis(250);

type Ask = control_request::Body;
type Answer = control_response::Body;

/// What each daemon noted, with its name.
pub type Journals = Vec<(String, Vec<Event>)>;

/// Why an operator has no answer.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    /// See [`IdentityError`].
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// There is no certificate to show.
    #[error(
        "{directory}: no operator's certificate is there, so there is nobody to ask as; `replicator up` makes it and starts the regions on \
         this machine. For regions of other machines, copy it from where it was made, or name where it is: --data, or REPLICATOR_IDENTITY"
    )]
    NoCertificate {
        /// Where it was looked for.
        directory: String,
    },
    /// See [`TransportError`].
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The file has no such region.
    #[error("there is no region '{name}' in the file; there are: {known}")]
    NoSuchRegion {
        /// The name asked for.
        name: RegionName,
        /// The names there are.
        known: String,
    },
    /// No daemon answered.
    #[error("no daemon answered; are the regions up?{0}")]
    Nobody(String),
    /// One did not answer, or said no.
    #[error("{region}: {source}")]
    Asked {
        /// Which.
        region: RegionName,
        /// Why.
        source: AskError,
    },
    /// The file gives no such endpoint.
    #[error("the file gives no endpoint of the {0}: `{0}_endpoint = \"127.0.0.1:5432\"` in a region's table")]
    NoEndpoint(Of),
    /// A promotion was refused, or did not end in time.
    #[error(transparent)]
    Promotion(AskError),
    /// An order cannot be signed.
    #[error("the order cannot be signed with the operator's key: {0}. Nothing was ordered")]
    Unsigned(String),
    /// Its head has handed over, and no host was seen to be the head since.
    #[error(
        "{0}: its head has handed over, and no host serves yet; whoever can takes over by itself: see `replicator status` and `replicator \
         events`"
    )]
    NoHead(RegionName),
    /// A region's PostgreSQL is not on this machine.
    #[error(
        "{region}: no PostgreSQL at {}; on the region's own machine, while it runs, name its data directory with --data",
        socket.display()
    )]
    NotHere {
        /// The region.
        region: RegionName,
        /// Where its socket should be.
        socket: PathBuf,
    },
    /// A daemon gave the answer to another question.
    #[error("the daemon answered another question ({0}): run the same version everywhere")]
    OtherAnswer(&'static str),
}

/// What a client is to find out by itself: a region that froze or vanished is given up within seconds, as
/// libpq is told by these.
const PATIENT: &str =
    "connect_timeout=3&tcp_user_timeout=10000&keepalives_idle=5&keepalives_interval=2&keepalives_count=3";

/// Whose connection string is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UrlOf {
    /// Through the endpoints of all regions, or of one; where it reads, perhaps no older than a position.
    Endpoint(Of, Option<RegionName>, Option<Lsn>),
    /// One region's.
    Region(RegionName),
    /// All regions': clients find the one that takes writes.
    Writer,
    /// All regions': clients take one that follows, and the writer's where there is no other.
    Reader,
}

/// How far a region is with another password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rotated {
    /// Its PostgreSQL takes it, and its files have it.
    InForce,
    /// Its daemon has it, and its PostgreSQL does not take it yet.
    Has,
    /// It was not reached, or could not keep it.
    Away(String),
}

/// An operator.
#[derive(Debug, Clone)]
pub struct Operator {
    config: Config,
    layout: Layout,
    endpoint: Endpoint,
    /// Orders are signed with its key.
    identity: Identity,
    cluster_id: ClusterId,
}

impl Operator {
    /// The operator of the regions of `config`, with the certificate in `layout`.
    ///
    /// # Errors
    /// When there is no certificate, or no socket.
    pub fn new(config: Config, layout: &Layout) -> Result<Operator, OperatorError> {
        let identity = Identity::load(&layout.shown()).map_err(|e| match e {
            IdentityError::Missing(directory) => OperatorError::NoCertificate { directory },
            e => OperatorError::Identity(e),
        })?;
        let endpoint = Endpoint::bind(None, &identity)?;
        config.restrict(&endpoint);
        let cluster_id = identity.cluster_id;
        Ok(Operator { config, layout: layout.clone(), endpoint, identity, cluster_id })
    }

    /// The status as `region`, or the first daemon that answers, knows it.
    ///
    /// # Errors
    /// When nobody answers.
    pub async fn status(&self, region: Option<&RegionName>) -> Result<ClusterStatus, OperatorError> {
        let Answer::ClusterStatus(mut status) =
            self.ask_any(region, Ask::ClusterStatus(ClusterStatusRequest {})).await?
        else {
            return Err(OperatorError::OtherAnswer("status"));
        };
        for row in &mut status.regions {
            self.add_passfile(row);
        }
        Ok(status)
    }

    /// On the region's own machine, psql finds the password by itself.
    fn add_passfile(&self, row: &mut RegionStatus) {
        let passfile = row.name.parse().map(|name| self.layout.region(&name).passfile());
        if let Ok(passfile) = passfile
            && passfile.exists()
        {
            row.url = format!("{}?passfile={}", row.url, in_a_url(&passfile));
        }
    }

    /// The connection string of a region, or of whichever takes writes, or only reads.
    ///
    /// # Errors
    /// When nobody answers, or the file has no such region.
    pub async fn url(&self, of: &UrlOf) -> Result<String, OperatorError> {
        let of_regions = |addresses: fn(&RegionConfig) -> Vec<SocketAddr>, only: Option<&RegionName>| {
            let regions = self.config.regions.iter();
            let regions = regions.filter(|own| only.is_none_or(|only| own.name == *only));
            let hosts: Vec<String> = regions.flat_map(addresses).map(|at| at.to_string()).collect();
            hosts.join(",")
        };
        let all = |attributes| {
            let hosts = of_regions(RegionConfig::writers, None);
            (None, hosts, format!("target_session_attrs={attributes}&"))
        };
        // Of a server that shows a position by its name, the address is said apart.
        let named = |hosts: &str, lsn: Lsn| {
            let (addresses, names): (Vec<_>, Vec<_>) = hosts
                .split(',')
                .filter_map(|host| host.rsplit_once(':'))
                .map(|(ip, port)| (ip.trim_matches(['[', ']']), format!("{}:{port}", name_after(lsn))))
                .unzip();
            (None, names.join(","), format!("hostaddr={}&gssencmode=disable&", addresses.join(",")))
        };
        let (region, hosts, attributes) = match of {
            UrlOf::Region(region) => (Some(region), String::new(), String::new()),
            UrlOf::Writer => all("read-write"),
            UrlOf::Reader => all("prefer-standby"),
            UrlOf::Endpoint(kind, only, after) => {
                let address: fn(&RegionConfig) -> Vec<SocketAddr> = match kind {
                    Of::Writer => |own| own.endpoints(|host| host.writer_endpoint),
                    Of::Reader => |own| own.endpoints(|host| host.reader_endpoint),
                };
                if let Some(only) = only {
                    self.region(only)?;
                }
                let hosts = of_regions(address, only.as_ref());
                if hosts.is_empty() {
                    return Err(OperatorError::NoEndpoint(*kind));
                }
                match after {
                    Some(lsn) => named(&hosts, *lsn),
                    None => (None, hosts, String::new()),
                }
            }
        };
        let asked = match region {
            Some(region) => self.region(region)?,
            None => self.config.regions.first().ok_or_else(|| OperatorError::Nobody(String::new()))?,
        };
        let body = Ask::Url(UrlRequest { region: asked.name.to_string() });
        // Of a region whose head moves the region itself knows where its PostgreSQL is.
        let itself = region.filter(|_| asked.take_over_after.is_some());
        let answer = match self.ask_any(itself, body.clone()).await {
            Err(_) if itself.is_some() => self.ask_any(None, body).await?,
            answer => answer?,
        };
        let Answer::Url(url) = answer else {
            return Err(OperatorError::OtherAnswer("url"));
        };
        let (url, asks) = url.split_once('?').unwrap_or((url.as_str(), ""));
        // By the authority whose certificates the daemons have.
        let verified = match asks {
            secrets::VERIFIES => {
                let authority = self.layout.shown().join("ca.pem");
                let authority = std::path::absolute(&authority).unwrap_or(authority);
                format!("&{}&sslrootcert={}", secrets::VERIFIES, in_a_url(&authority))
            }
            _ => String::new(),
        };
        if region.is_some() {
            return Ok(format!("{url}?{PATIENT}{verified}"));
        }
        // The password is the same in every region.
        let (user, rest) = url.split_once('@').ok_or(OperatorError::OtherAnswer("url without a host"))?;
        let database = rest.split_once('/').map_or("postgres", |(_, database)| database);
        Ok(format!("{user}@{hosts}/{database}?{attributes}{PATIENT}{verified}"))
    }

    /// Ways to the daemons of all regions, for sessions.
    #[must_use]
    pub fn tunnels(&self) -> Tunnels {
        let places = self.config.regions.iter().map(RegionConfig::place);
        Tunnels::new(self.endpoint.clone(), self.cluster_id, places)
    }

    /// The record of who leads, as the first daemon that answers knows it.
    ///
    /// # Errors
    /// When nobody answers, or with something else.
    pub async fn record(&self) -> Result<coordination::Leadership, OperatorError> {
        let Answer::Record(record) = self.ask_any(None, Ask::Record(RecordRequest::default())).await? else {
            return Err(OperatorError::OtherAnswer("record"));
        };
        serde_json::from_slice(&record).map_err(|_| OperatorError::OtherAnswer("record"))
    }

    /// The volume of `region`, or of the primary; read back first when `request` says so.
    ///
    /// # Errors
    /// When its daemon does not answer, or the file has no such region.
    pub async fn volume(
        &self,
        region: Option<RegionName>,
        request: VolumeRequest,
    ) -> Result<VolumeView, OperatorError> {
        let region = self.or_primary(region).await?;
        let own = self.region(&region)?;
        let patience = if request.scrub { SCRUB_PATIENCE } else { PATIENCE };
        let asked = self.ask(own, Ask::Volume(request), patience).await;
        match asked.map_err(|source| OperatorError::Asked { region, source })? {
            Answer::Volume(view) => Ok(view),
            _ => Err(OperatorError::OtherAnswer("volume")),
        }
    }

    /// `region`, or the primary.
    async fn or_primary(&self, region: Option<RegionName>) -> Result<RegionName, OperatorError> {
        if let Some(region) = region {
            return Ok(region);
        }
        let primary = self.status(None).await?.primary;
        primary.parse().map_err(|_| OperatorError::OtherAnswer("status without a primary"))
    }

    /// What the PostgreSQL of `region`, or of the primary, was busy with in the last `since`.
    ///
    /// # Errors
    /// When its daemon does not answer or does not look, or the file has no such region.
    pub async fn load(
        &self,
        region: Option<RegionName>,
        since: Duration,
        by: Cut,
    ) -> Result<Load, OperatorError> {
        let region = self.or_primary(region).await?;
        let own = self.region(&region)?;
        let body = Ask::Load(LoadRequest { since_s: since.as_secs().max(1), by: by.name().into() });
        let asked = self.ask(own, body, LOAD_PATIENCE).await;
        match asked.map_err(|source| OperatorError::Asked { region, source })? {
            Answer::Load(load) => {
                serde_json::from_slice(&load).map_err(|_| OperatorError::OtherAnswer("load"))
            }
            _ => Err(OperatorError::OtherAnswer("load")),
        }
    }

    /// Has `region` set its data aside and be seeded anew; returns where they are.
    ///
    /// # Errors
    /// When its daemon does not answer or refuses, or the file has no such region.
    pub async fn reseed(&self, region: &RegionName) -> Result<String, OperatorError> {
        let own = self.region(region)?;
        let asked = self.ask(own, Ask::Reseed(ReseedRequest {}), PATIENCE).await;
        match asked.map_err(|source| OperatorError::Asked { region: region.clone(), source })? {
            Answer::SetAside(place) => Ok(place),
            _ => Err(OperatorError::OtherAnswer("reseed")),
        }
    }

    /// Gives a voter that has lost its memory the word that what those say who answer is all that there is.
    ///
    /// # Errors
    /// When it does not answer or refuses, or the file has no such voter.
    pub async fn revote(&self, voter: &RegionName) -> Result<(), OperatorError> {
        let place = self.config.voters().into_iter().find(|place| place.name == *voter);
        let place = place.ok_or_else(|| OperatorError::NoSuchRegion {
            name: voter.clone(),
            known: self.config.region_names(),
        })?;
        let body = Ask::Revote(RevoteRequest {});
        let asked = client::request(&self.endpoint, self.cluster_id, &place, body, REVOTE_PATIENCE).await;
        asked.map(drop).map_err(|source| OperatorError::Asked { region: voter.clone(), source })
    }

    /// Has the daemon of `region`, or of every region and witness, read its regions.toml again; what became
    /// of it in each, in the order of the file, or why there is no answer.
    ///
    /// # Errors
    /// When the file has no such region.
    pub async fn reload(
        &self,
        region: Option<&RegionName>,
    ) -> Result<Vec<(String, Result<Reloaded, String>)>, OperatorError> {
        let mut asked = self.config.voters();
        if let Some(name) = region {
            asked.retain(|place| place.name == *name);
            if asked.is_empty() {
                self.region(name)?;
            }
        }
        let asking = asked.into_iter().map(|own| async move {
            let answer = match self.ask_at_length(&own, Ask::Reload(ReloadRequest {}), RELOAD_PATIENCE).await
            {
                Ok(Answer::Reloaded(reloaded)) => Ok(reloaded),
                Ok(_) => Err(OperatorError::OtherAnswer("reload").to_string()),
                Err(e) => Err(e.to_string()),
            };
            (own.name.to_string(), answer)
        });
        let mut answers = Vec::new();
        // One after the other: what is wrong is mostly wrong everywhere.
        for asked in asking {
            answers.push(asked.await);
        }
        Ok(answers)
    }

    /// Gives the superuser another password; how far each region is with it, in the order of the file.
    ///
    /// Every daemon that is reached has it as the next one before the primary's PostgreSQL is given it: then
    /// each region's files take it by themselves. So it may end anywhere, and be begun again.
    ///
    /// # Errors
    /// When the primary is not known, not reached, or did not say that it has done it.
    pub async fn rotate_password(&self) -> Result<Vec<(String, Rotated)>, OperatorError> {
        let primary = self.record().await?.primary;
        let own = self.region(&primary)?;
        let next = secrets::draw();
        let mut regions = Vec::new();
        // The primary first: without it nothing is begun.
        let asked = self.config.regions.iter().filter(|region| region.name != primary);
        for region in std::iter::once(own).chain(asked) {
            let keep = PasswordRequest { next: next.clone(), set: false };
            let rotated = match self.step_password(region, keep).await {
                Ok(_) => Rotated::Has,
                Err(source) if region.name == primary => {
                    return Err(OperatorError::Asked { region: primary, source });
                }
                Err(e) => Rotated::Away(e.to_string()),
            };
            regions.push((region, rotated));
        }
        let set = self.step_password(own, PasswordRequest { set: true, ..PasswordRequest::default() }).await;
        set.map_err(|source| OperatorError::Asked { region: primary, source })?;
        let since = now();
        loop {
            for (region, rotated) in &mut regions {
                if *rotated == Rotated::Has
                    && self
                        .step_password(region, PasswordRequest::default())
                        .await
                        .is_ok_and(|view| view.in_force)
                {
                    *rotated = Rotated::InForce;
                }
            }
            if regions.iter().all(|(_, rotated)| *rotated != Rotated::Has) || since.elapsed() >= ROTATED {
                break;
            }
            tokio::time::sleep(STEPS).await;
        }
        regions.sort_by_key(|(region, _)| self.config.regions.iter().position(|own| own.name == region.name));
        Ok(regions.into_iter().map(|(region, rotated)| (region.name.to_string(), rotated)).collect())
    }

    async fn step_password(
        &self,
        region: &RegionConfig,
        request: PasswordRequest,
    ) -> Result<PasswordView, AskError> {
        match self.ask_at_length(&region.place(), Ask::Password(request), RELOAD_PATIENCE).await? {
            Answer::Password(view) => Ok(view),
            _ => Err(AskError::Refused(
                "the daemon answered another question: run the same version everywhere".into(),
            )),
        }
    }

    /// Has a daemon keep in its audit that a token is granted: the first that does so; which one it is.
    ///
    /// # Errors
    /// When none does, with what each says.
    pub async fn record_token(&self, request: TokenRequest) -> Result<RegionName, OperatorError> {
        let mut answers = String::new();
        for region in &self.config.regions {
            match self.ask(region, Ask::Token(request.clone()), PATIENCE).await {
                Ok(Answer::Done(true)) => return Ok(region.name.clone()),
                Ok(_) => return Err(OperatorError::OtherAnswer("token")),
                Err(e) => answers += &format!("\n  {}: {e}", region.name),
            }
        }
        Err(OperatorError::Nobody(answers))
    }

    /// What the daemons that can be reached noted, each with its name: only `from`'s if one is named, and
    /// only what is newer than `since_us` (microseconds since 1970) and than the numbers in `after`. With it,
    /// why others cannot be reached.
    ///
    /// # Errors
    /// When the file has no such region or witness.
    pub async fn events(
        &self,
        from: Option<&RegionName>,
        since_us: i64,
        after: &BTreeMap<String, u64>,
    ) -> Result<(Journals, BTreeMap<String, String>), OperatorError> {
        let mut asked = self.config.voters();
        if let Some(name) = from {
            asked.retain(|place| place.name == *name);
            if asked.is_empty() {
                self.region(name)?;
            }
        }
        // They end with this function, which owns them.
        let mut asking = JoinSet::new();
        for place in asked {
            let (operator, after) = (self.clone(), after.get(place.name.as_str()).copied().unwrap_or(0));
            asking.spawn(async move {
                let noted = operator.journal(&place, since_us, after).await;
                (place.name.to_string(), noted)
            });
        }
        let (mut journals, mut silent) = (Vec::new(), BTreeMap::new());
        while let Some(asked) = asking.join_next().await {
            match asked {
                Ok((name, Ok(events))) => journals.push((name, events)),
                Ok((name, Err(e))) => drop(silent.insert(name, e.to_string())),
                Err(e) => drop(silent.insert("a daemon".into(), e.to_string())),
            }
        }
        Ok((journals, silent))
    }

    /// The audit of each daemon, or of `from`'s alone: its lines as they stand there, oldest first, and where
    /// its chain ends; or why there is no answer.
    ///
    /// # Errors
    /// When the file has no such region or witness.
    pub async fn audits(
        &self,
        from: Option<&RegionName>,
    ) -> Result<Vec<(String, Result<(Vec<String>, Head), String>)>, OperatorError> {
        let mut asked = self.config.voters();
        if let Some(name) = from {
            asked.retain(|place| place.name == *name);
            if asked.is_empty() {
                self.region(name)?;
            }
        }
        let mut answers = Vec::new();
        for place in asked {
            let audit = self.audit(&place).await.map_err(|e| e.to_string());
            answers.push((place.name.to_string(), audit));
        }
        Ok(answers)
    }

    /// One daemon's audit, page by page.
    async fn audit(&self, place: &Place) -> Result<(Vec<String>, Head), AskError> {
        let (mut lines, mut skip) = (Vec::new(), 0);
        loop {
            let body = Ask::Audit(AuditRequest { skip });
            let answer = client::request(&self.endpoint, self.cluster_id, place, body, PATIENCE).await?;
            let Answer::Audit(AuditPage { lines: more_lines, more, head_number, head_hash }) = answer else {
                return Err(AskError::Refused("it answered another question".into()));
            };
            skip += more_lines.len() as u64;
            let none = more_lines.is_empty();
            lines.extend(more_lines);
            if !more || none {
                return Ok((lines, Head { number: head_number, hash: head_hash }));
            }
        }
    }

    /// One daemon's journal, page by page.
    async fn journal(&self, place: &Place, since_us: i64, mut after: u64) -> Result<Vec<Event>, AskError> {
        let mut noted: Vec<Event> = Vec::new();
        loop {
            let body = Ask::Events(EventsRequest { since_us, after });
            let answer = client::request(&self.endpoint, self.cluster_id, place, body, PATIENCE).await?;
            let Answer::Events(Events { events, more }) = answer else {
                return Err(AskError::Refused("it answered another question".into()));
            };
            noted.extend(events);
            let last = noted.last().map_or(after, |event| event.number);
            if !more || last <= after {
                return Ok(noted);
            }
            after = last;
        }
    }

    fn region(&self, name: &RegionName) -> Result<&RegionConfig, OperatorError> {
        self.config.region(name).ok_or_else(|| OperatorError::NoSuchRegion {
            name: name.clone(),
            known: self.config.region_names(),
        })
    }

    async fn ask(&self, region: &RegionConfig, body: Ask, patience: Duration) -> Result<Answer, AskError> {
        client::request(&self.endpoint, self.cluster_id, &region.place(), body, patience).await
    }

    /// Asks what may take long of a daemon that is there.
    async fn ask_at_length(&self, place: &Place, body: Ask, patience: Duration) -> Result<Answer, AskError> {
        let connection = client::connect(&self.endpoint, place, PATIENCE).await?;
        let asking = client::request_on(&connection, self.cluster_id, body);
        let answer = tokio::time::timeout(patience, asking).await;
        connection.close("answered");
        answer.unwrap_or(Err(AskError::Slow(patience.as_millis())))
    }

    /// Asks `region`, or all at once, and the first answer counts: a region that is down must not hold up a
    /// command.
    async fn ask_any(&self, region: Option<&RegionName>, body: Ask) -> Result<Answer, OperatorError> {
        let asked: Vec<&RegionConfig> = match region {
            Some(region) => vec![self.region(region)?],
            None => self.config.regions.iter().collect(),
        };
        // They end with this function, which owns them.
        let mut asking = JoinSet::new();
        for region in asked {
            let (operator, region, body) = (self.clone(), region.clone(), body.clone());
            asking.spawn(async move {
                let answer = operator.ask(&region, body, PATIENCE).await;
                answer.map_err(|e| format!("\n  {}: {e}", region.name))
            });
        }
        let mut answers = Vec::new();
        while let Some(asked) = asking.join_next().await {
            match asked {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(e)) => answers.push(e),
                Err(e) => answers.push(format!("\n  {e}")),
            }
        }
        answers.sort();
        Err(OperatorError::Nobody(answers.concat()))
    }
}

/// The connection string of a region on this machine for the superuser, by the socket there.
///
/// # Errors
/// Where the file has no such region, or there is no socket.
pub fn superuser_url(config: &Config, layout: &Layout, region: &RegionName) -> Result<String, OperatorError> {
    let no_such = || OperatorError::NoSuchRegion { name: region.clone(), known: config.region_names() };
    let own = config.region(region).ok_or_else(no_such)?;
    let sockets = socket_dir_for(layout.region(region).directory());
    let sockets = std::path::absolute(&sockets).unwrap_or(sockets);
    let socket = socket_path(&sockets, own.postgres.port());
    if !socket.exists() {
        return Err(OperatorError::NotHere { region: region.clone(), socket });
    }
    Ok(format!(
        "postgresql://{SUPERUSER}@/{SUPERUSER}?host={}&port={}",
        in_a_url(&sockets),
        own.postgres.port()
    ))
}

/// The connection string of whoever has the token that lies at `placed`: clients find the PostgreSQL that
/// takes writes. Without a password, and no secret.
#[must_use]
pub fn token_url(config: &Config, role: &str, placed: &Placed) -> String {
    let hosts: Vec<String> =
        config.regions.iter().flat_map(RegionConfig::writers).map(|at| at.to_string()).collect();
    let Placed { certificate, key, authorities } = placed;
    let [certificate, key, authorities] = [certificate, key, authorities].map(|path| in_a_url(path));
    format!(
        "postgresql://{role}@{}/{}?target_session_attrs=read-write&{PATIENT}&{}&sslrootcert={authorities}&sslcert={certificate}&sslkey={key}",
        hosts.join(","),
        config.owner,
        secrets::VERIFIES
    )
}

/// A path as a part of a connection string.
fn in_a_url(path: &Path) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-~".contains(&byte);
    let bytes = path.as_os_str().as_encoded_bytes().iter();
    bytes
        .map(|byte| if plain(*byte) { char::from(*byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}
