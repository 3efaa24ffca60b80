//! One region's daemon: what a container or a unit runs.
//!
//! It owns the region's volume, its PostgreSQL and its QUIC endpoint, plays the part that the region's record says, and
//! answers operators and other regions.

pub mod state;

mod control;
mod engine;
mod follower;
mod leader;
pub mod lost;
pub mod promotion;
mod rejoin;
pub(crate) mod secrets;

use std::path::PathBuf;
use std::sync::Arc;

use coordination::Acceptor;
use coordination::record::Change;
use postgres::account::{Account, AccountError};
use postgres::installation::{Installation, InstallationError};
use postgres::instance::{Instance, InstanceError, InstanceOptions, socket_dir_for};
use proto::messages::{
    MAX_CONTROL_MESSAGE_BYTES, Open, PROTOCOL_VERSION, Refusal, ReplicateOpen, RewindOpen, SeedOpen, open,
    refusal::Kind,
};
use proto::{ClusterId, Epoch, Lsn, RegionName};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use transport::{Connection, Endpoint, Identity, IdentityError, Peer, Stream, TransportError};
use volume::{Volume, VolumeError, VolumeOptions};

use crate::config::{Config, RegionConfig, Role};
use crate::layout::{Layout, RegionLayout, make_passable};
use crate::local::lock::{DaemonLock, LockError};
use crate::voter::{Seat, Voter};
use crate::zone;
use follower::{FollowError, Follower};
use leader::{Leader, LeaderError};
use state::{Record, RegionState, StateError};

/// How long a peer may take to say what it wants on a stream.
const OPEN_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);

/// How often a primary looks whether it was fenced.
const FENCE_LOOK: std::time::Duration = std::time::Duration::from_millis(50);

/// Why a region's daemon cannot run.
#[derive(Debug, thiserror::Error)]
pub enum RegionError {
    /// `regions.toml` has no such region.
    #[error("there is no region '{name}' in regions.toml; there are: {known}")]
    Unknown {
        /// The name asked for.
        name: RegionName,
        /// The regions there are.
        known: String,
    },
    /// The certificate is another's.
    #[error("the certificate in {path} is that of '{found}', not of region {expected}")]
    OtherCertificate {
        /// Where it is.
        path: PathBuf,
        /// Whose it is.
        found: Peer,
        /// Whose it should be.
        expected: RegionName,
    },
    /// A directory cannot be made.
    #[error("{path}: {source}")]
    Io {
        /// The directory.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// See [`LockError`].
    #[error(transparent)]
    Lock(#[from] LockError),
    /// See [`IdentityError`].
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// See [`StateError`].
    #[error(transparent)]
    State(#[from] StateError),
    /// See [`InstallationError`].
    #[error(transparent)]
    Installation(#[from] InstallationError),
    /// See [`AccountError`].
    #[error(transparent)]
    Account(#[from] AccountError),
    /// See [`VolumeError`].
    #[error("the volume: {0}")]
    Volume(#[from] VolumeError),
    /// See [`TransportError`].
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// See [`LeaderError`].
    #[error(transparent)]
    Leader(#[from] LeaderError),
    /// See [`FollowError`].
    #[error(transparent)]
    Follow(#[from] FollowError),
    /// See [`InstanceError`].
    #[error(transparent)]
    Instance(#[from] InstanceError),
}

impl RegionError {
    pub(crate) fn unknown(config: &Config, name: &RegionName) -> RegionError {
        let known: Vec<&str> = config.regions.iter().map(|r| r.name.as_str()).collect();
        RegionError::Unknown { name: name.clone(), known: known.join(", ") }
    }
}

/// What all parts of the daemon know.
#[derive(Debug)]
pub(crate) struct Region {
    pub(crate) config: Config,
    pub(crate) own: RegionConfig,
    pub(crate) cluster_id: ClusterId,
    pub(crate) endpoint: Endpoint,
    pub(crate) layout: crate::layout::RegionLayout,
    pub(crate) volume: Volume,
    pub(crate) instance: Instance,
    pub(crate) record: Arc<Record>,
    pub(crate) voter: Arc<Voter>,
    /// What this daemon answered before is not known to it.
    started: tokio::time::Instant,
    pub(crate) part: tokio::sync::RwLock<Part>,
}

/// The part the region plays.
#[derive(Debug)]
pub(crate) enum Part {
    /// None yet: the volume is being opened.
    Starting,
    Leader(Box<Leader>),
    Follower(Arc<Follower>),
}

/// Runs the daemon of `name` until `stop`.
///
/// # Errors
/// When it cannot start; what to do is in the error's words.
pub async fn run(
    config: Config,
    layout: Layout,
    name: RegionName,
    stop: CancellationToken,
) -> Result<(), RegionError> {
    let own = config.region(&name).cloned().ok_or_else(|| RegionError::unknown(&config, &name))?;
    let places = layout.region(&name);
    let (_lock, identity) = enter(&places, &places.lock(), &name)?;
    let state = load_state(&places, &identity, &config, &name)?;
    let installation = Installation::find(config.bin_dir.as_deref())?;
    let account = Account::resolve(config.os_user.as_deref())?;
    tracing::info!(
        "region {name}, {}, PostgreSQL {} as user {}",
        state.role,
        installation.version,
        account.name
    );
    let instance = Instance::new(InstanceOptions {
        installation,
        account,
        data_dir: places.pgdata(),
        socket_dir: socket_dir_for(places.directory()),
        listen: own.postgres,
        log_file: places.postgresql_log(),
        name: name.to_string(),
        settings: config.settings.clone(),
    });
    let volume = Volume::start(VolumeOptions {
        copies: own.local_copies(),
        retain: config.retain,
        max_size_bytes: config.max_size_bytes,
        epoch: state.epoch(),
        repair_bytes_per_second: config.repair_bytes_per_second,
        scrub_every: config.scrub_every,
        ..VolumeOptions::new(places.volume(), identity.cluster_id)
    })
    .await?;
    let endpoint = Endpoint::bind(Some(own.listen), &identity)?;
    let record = Arc::new(Record::new(places.state(), state));
    let voter = Voter::new(name.clone(), &config, record.clone(), endpoint.clone(), identity.cluster_id);
    let region = Arc::new(Region {
        config,
        own,
        cluster_id: identity.cluster_id,
        endpoint,
        layout: places,
        volume,
        instance,
        record,
        voter,
        started: now(),
        part: tokio::sync::RwLock::new(Part::Starting),
    });
    let seat: Arc<dyn Seat> = region.clone();
    region.voter.sit(Arc::downgrade(&seat));
    // Zones of their own join while the volume is being opened.
    let ending = CancellationToken::new();
    let serving = tokio::spawn(region.clone().serve(ending.clone()));
    let ended = tokio::select! {
        () = stop.cancelled() => Ok(()),
        deposed = region.volume.deposed() => Err(deposed.into()),
        failed = region.take_part() => failed,
        () = region.voter.clone().watch() => Ok(()),
    };
    region.voter.stop();
    ending.cancel();
    let _ = serving.await;
    tracing::info!("region {name} has stopped");
    ended
}

/// What every daemon and every zone's process begins with: its directory, alone in it, and with the right certificate.
///
/// # Errors
/// When another runs already, or the certificate is another's.
pub(crate) fn enter(
    places: &RegionLayout,
    lock: &std::path::Path,
    name: &RegionName,
) -> Result<(DaemonLock, Identity), RegionError> {
    make_passable(places.directory())
        .map_err(|source| RegionError::Io { path: places.directory().to_owned(), source })?;
    let lock = DaemonLock::take(lock)?;
    let identity = Identity::load(&places.identity())?;
    if identity.peer != Peer::Region(name.clone()) {
        let (path, found, expected) = (places.identity(), identity.peer, name.clone());
        return Err(RegionError::OtherCertificate { path, found, expected });
    }
    Ok((lock, identity))
}

/// The record in a daemon's directory, made at its first start.
///
/// # Errors
/// When it cannot be read or written, or is another's.
pub(crate) fn load_state(
    places: &RegionLayout,
    identity: &Identity,
    config: &Config,
    name: &RegionName,
) -> Result<RegionState, StateError> {
    let path = places.state();
    if let Some(state) = RegionState::load(&path)? {
        state.verify(&path, identity.cluster_id, name)?;
        return Ok(state);
    }
    // A checked file has a primary.
    let primary = config.first_primary().unwrap_or(name).clone();
    let state = RegionState {
        cluster_id: identity.cluster_id,
        region: name.clone(),
        role: config.region(name).map_or(Role::Secondary, |own| own.role),
        acceptor: Acceptor::new(coordination::Record::first(Epoch(1), primary)),
        rejoining: false,
        system_id: None,
    };
    state.save(&path)?;
    Ok(state)
}

#[allow(clippy::disallowed_methods, reason = "a daemon knows how long it runs")]
fn now() -> tokio::time::Instant {
    tokio::time::Instant::now()
}

impl Region {
    /// Takes up the region's part once the volume is open, and changes it as the record says. Returns only when that fails.
    async fn take_part(&self) -> Result<(), RegionError> {
        self.volume.opened().await?;
        let mut agreed = self.voter.watch_agreed();
        let mut trouble = String::new();
        loop {
            let starting = matches!(&*self.part.read().await, Part::Starting);
            let mut tried: Result<(), String> = Ok(());
            if starting && self.voter.standing().is_none() {
                // A primary that was away may have been replaced: the others are asked before its writer takes anything.
                let read = self.voter.change(&Change::Read).await;
                tried = read.map(drop).map_err(|e| format!("waiting to hear who leads: {e}"));
            }
            match self.reconcile().await {
                Err(e) if starting => return Err(e),
                Err(e) => tried = Err(e.to_string()),
                Ok(()) => {}
            }
            if let Err(e) = tried
                && e != trouble
            {
                tracing::error!("{e}");
                trouble = e;
            }
            let refused = matches!(&*self.part.read().await, Part::Leader(leader) if leader.is_fenced());
            if refused {
                // A region says that this epoch is over.
                let _ = self.voter.change(&Change::Read).await;
                if let Part::Leader(leader) = &*self.part.read().await {
                    leader.forget_fenced();
                }
            }
            tokio::select! {
                changed = agreed.changed() => if changed.is_err() { return Ok(()) },
                () = tokio::time::sleep(FENCE_LOOK) => {}
            }
        }
    }

    /// What the region is.
    pub(crate) fn state(&self) -> RegionState {
        self.record.get()
    }

    fn record(&self, change: impl FnOnce(&mut RegionState)) -> Result<(), StateError> {
        self.record.change(change)
    }

    /// Leads, with the PostgreSQL that runs already, if one does.
    async fn lead(&self, running: Option<engine::Engine>) -> Result<Leader, LeaderError> {
        Leader::start(self, running).await
    }

    async fn follow(&self) -> Result<Arc<Follower>, FollowError> {
        let (layout, volume) = (self.layout.clone(), self.volume.clone());
        Follower::start(layout, self.instance.clone(), volume, self.record.clone()).await
    }

    /// Answers peers until `stop`, then stops everything in order.
    async fn serve(self: Arc<Self>, stop: CancellationToken) {
        let tasks = TaskTracker::new();
        loop {
            let connection = tokio::select! {
                () = stop.cancelled() => break,
                accepted = self.endpoint.accept() => accepted,
            };
            let Some(connection) = connection else { break };
            tasks.spawn(self.clone().serve_connection(connection));
        }
        tracing::info!("stopping");
        match &mut *self.part.write().await {
            Part::Starting => {}
            Part::Leader(leader) => leader.stop().await,
            Part::Follower(follower) => follower.stop().await,
        }
        self.endpoint.close().await;
        tasks.close();
        tasks.wait().await;
    }

    async fn serve_connection(self: Arc<Self>, connection: Connection) {
        let tasks = TaskTracker::new();
        while let Some(stream) = connection.accept_stream().await {
            let (region, peer) = (self.clone(), connection.peer().clone());
            let connection = connection.clone();
            tasks.spawn(async move {
                match (region.serve_stream(&connection, stream).await, &peer) {
                    (Ok(()), _) => {}
                    // An operator's command goes as soon as it has an answer, be it another region's.
                    (Err(e), Peer::Operator) => tracing::debug!("a stream of {peer} ended: {e}"),
                    (Err(e), Peer::Region(_)) => tracing::warn!("a stream of {peer} ended: {e}"),
                }
            });
        }
        tasks.close();
        tasks.wait().await;
    }

    async fn serve_stream(&self, connection: &Connection, mut stream: Stream) -> Result<(), TransportError> {
        let peer = connection.peer();
        let first =
            tokio::time::timeout(OPEN_TIMEOUT, stream.receive::<Open>(MAX_CONTROL_MESSAGE_BYTES)).await;
        let first = first.unwrap_or(Err(TransportError::Lost("it never said what it wants".into())))?;
        let Some(open) = first else { return Ok(()) };
        let refusal = self.refuse(peer, &open).await;
        match (open.purpose, refusal) {
            (Some(purpose), Some(refusal)) => {
                tracing::warn!("refused {peer}: {}", refusal.reason);
                control::answer_refusal(&purpose, refusal, &mut stream).await
            }
            (Some(open::Purpose::Replicate(open)), None) => {
                if let Some(follower) = self.follower().await {
                    follower.replicate(open, stream).await;
                }
                Ok(())
            }
            (Some(open::Purpose::Seed(open)), None) => {
                if let Some(follower) = self.follower().await {
                    follower.seed(open, stream).await;
                }
                Ok(())
            }
            (Some(open::Purpose::Rewind(open)), None) => {
                if let Some(follower) = self.follower().await {
                    follower.rewind(open, stream).await;
                }
                Ok(())
            }
            (Some(open::Purpose::Control(request)), None) => self.control(peer, request, stream).await,
            (Some(open::Purpose::Gather(open)), None) => {
                secondary::gather::serve(&self.volume, Lsn(open.from_lsn)..Lsn(open.to_lsn), stream).await
            }
            (Some(open::Purpose::Zone(open)), None) => {
                let local = self.own.local_copies();
                zone::join(&self.volume, &local, self.cluster_id, connection, open, stream).await
            }
            // Only a zone's process is asked for copies.
            (Some(open::Purpose::Copy(_)) | None, None) | (None, _) => Ok(()),
        }
    }

    async fn follower(&self) -> Option<Arc<Follower>> {
        match &*self.part.read().await {
            Part::Follower(follower) => Some(follower.clone()),
            Part::Starting | Part::Leader(_) => None,
        }
    }

    /// Why `open` of `peer` is refused, if it is.
    async fn refuse(&self, peer: &Peer, open: &Open) -> Option<Refusal> {
        if open.protocol != PROTOCOL_VERSION {
            let reason = format!("protocol {} is not spoken here, {PROTOCOL_VERSION} is", open.protocol);
            return Some(Refusal::new(Kind::Protocol, reason));
        }
        if open.cluster_id[..] != self.cluster_id.0 {
            return Some(Refusal::new(Kind::OtherCluster, "this is a region of another cluster"));
        }
        let allowed = match (&open.purpose, peer) {
            (Some(open::Purpose::Replicate(ReplicateOpen { epoch, .. })), Peer::Region(name))
            | (Some(open::Purpose::Seed(SeedOpen { epoch, .. })), Peer::Region(name))
            | (Some(open::Purpose::Rewind(RewindOpen { epoch, .. })), Peer::Region(name)) => {
                if let Some(refusal) = self.refuse_primary(name, Epoch(*epoch)).await {
                    return Some(refusal);
                }
                self.config.region(name).is_some() && self.follower().await.is_some()
            }
            (
                Some(open::Purpose::Replicate(_) | open::Purpose::Seed(_) | open::Purpose::Rewind(_)),
                Peer::Operator,
            ) => false,
            // Only to the region that shall lead, when the old primary is shut out.
            (Some(open::Purpose::Gather(open)), Peer::Region(name)) => {
                let promotion = self.voter.accepted().promotion;
                promotion.is_some_and(|p| p.to == *name && p.epoch.0 == open.epoch)
            }
            (Some(open::Purpose::Gather(_)), Peer::Operator) => false,
            // A zone has its own region's certificate.
            (Some(open::Purpose::Zone(_)), Peer::Region(name)) => *name == self.own.name,
            (Some(open::Purpose::Zone(_) | open::Purpose::Copy(_)), _) => false,
            (Some(open::Purpose::Control(_)), Peer::Region(name)) => self.voter.knows(name),
            (Some(open::Purpose::Control(_)), Peer::Operator) | (None, _) => true,
        };
        let reason = || format!("'{peer}' may not do this with region {}", self.own.name);
        (!allowed).then(|| Refusal::new(Kind::NotAllowed, reason()))
    }

    /// Why `name` is not taken for the primary of `epoch`, if it is not.
    async fn refuse_primary(&self, name: &RegionName, epoch: Epoch) -> Option<Refusal> {
        if epoch > self.voter.accepted().epoch {
            // It was agreed on without this region.
            let _ = self.voter.change(&Change::Read).await;
        }
        let record = self.voter.accepted();
        let reason = match (record.supports(name, epoch), epoch > record.epoch) {
            (true, _) => return None,
            (false, true) => {
                let reason = format!("epoch {epoch} is not known here, and too few voters answer");
                return Some(Refusal::new(Kind::Busy, reason));
            }
            (false, false) => {
                format!("the primary of epoch {} is {}, or being replaced", record.epoch, record.primary)
            }
        };
        Some(Refusal::new(Kind::StaleEpoch, reason))
    }
}
