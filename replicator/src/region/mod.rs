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
mod promotion;
pub(crate) mod secrets;

use std::path::PathBuf;
use std::sync::Arc;

use postgres::account::{Account, AccountError};
use postgres::installation::{Installation, InstallationError};
use postgres::instance::{Instance, InstanceError, InstanceOptions, socket_dir_for};
use proto::messages::{MAX_CONTROL_MESSAGE_BYTES, Open, PROTOCOL_VERSION, Refusal, open, refusal::Kind};
use proto::{ClusterId, Epoch, Lsn, RegionName};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use transport::{Connection, Endpoint, Identity, IdentityError, Peer, Stream, TransportError};
use volume::{Volume, VolumeError, VolumeOptions};

use crate::config::{Config, RegionConfig, Role};
use crate::layout::{Layout, make_passable};
use crate::local::lock::{DaemonLock, LockError};
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
    make_passable(places.directory())
        .map_err(|source| RegionError::Io { path: places.directory().to_owned(), source })?;
    let _lock = DaemonLock::take(&places.lock())?;
    let identity = Identity::load(&places.identity())?;
    if identity.peer != Peer::Region(name.clone()) {
        return Err(RegionError::OtherCertificate {
            path: places.identity(),
            found: identity.peer,
            expected: name,
        });
    }
    let state = load_state(&places, &identity, &own)?;
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
        epoch: state.epoch,
        repair_bytes_per_second: config.repair_bytes_per_second,
        scrub_every: config.scrub_every,
        ..VolumeOptions::new(places.volume(), identity.cluster_id)
    })
    .await?;
    let endpoint = Endpoint::bind(Some(own.listen), &identity)?;
    let record = Arc::new(Record::new(places.state(), state));
    let region = Arc::new(Region {
        config,
        own,
        cluster_id: identity.cluster_id,
        endpoint,
        layout: places,
        volume,
        instance,
        record,
        part: tokio::sync::RwLock::new(Part::Starting),
    });
    // Zones of their own join while the volume is being opened.
    let ending = CancellationToken::new();
    let serving = tokio::spawn(region.clone().serve(ending.clone()));
    let ended = tokio::select! {
        () = stop.cancelled() => Ok(()),
        deposed = region.volume.deposed() => Err(deposed.into()),
        failed = region.take_part() => failed,
    };
    ending.cancel();
    let _ = serving.await;
    tracing::info!("region {name} has stopped");
    ended
}

fn load_state(
    places: &crate::layout::RegionLayout,
    identity: &Identity,
    own: &RegionConfig,
) -> Result<RegionState, StateError> {
    let path = places.state();
    if let Some(state) = RegionState::load(&path)? {
        state.verify(&path, identity.cluster_id, &own.name)?;
        return Ok(state);
    }
    let (region, cluster_id) = (own.name.clone(), identity.cluster_id);
    let (role, epoch) = (own.role, Epoch(1));
    let state =
        RegionState { cluster_id, region, role, epoch, primary: None, rejoining: false, system_id: None };
    state.save(&path)?;
    Ok(state)
}

impl Region {
    /// Takes up the region's part once the volume is open. Returns only when that fails.
    async fn take_part(&self) -> Result<(), RegionError> {
        self.volume.opened().await?;
        // A primary that was away may have been replaced: it asks before its writer takes anything.
        if self.state().role == Role::Primary
            && self.state().system_id.is_some()
            && let Some(epoch) = self.newer_epoch().await
        {
            tracing::error!("epoch {epoch} was seen elsewhere: this region does not lead any more");
            self.record(|state| {
                (state.role, state.primary, state.rejoining) = (Role::Secondary, None, true)
            })?;
        }
        let part = match self.state().role {
            Role::Primary => Part::Leader(Box::new(self.lead(None).await?)),
            Role::Secondary => Part::Follower(self.follow().await?),
        };
        *self.part.write().await = part;
        // A primary that is told that its epoch is over stops leading.
        loop {
            tokio::time::sleep(FENCE_LOOK).await;
            let fenced = matches!(&*self.part.read().await, Part::Leader(leader) if leader.is_fenced());
            if fenced {
                let mut part = self.part.write().await;
                self.step_down(&mut part, |_| {}).await?;
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
                if let (Some(follower), Peer::Region(name)) = (self.follower().await, peer) {
                    follower.replicate(name, open, stream).await;
                }
                Ok(())
            }
            (Some(open::Purpose::Seed(open)), None) => {
                if let (Some(follower), Peer::Region(name)) = (self.follower().await, peer) {
                    follower.seed(name, open, stream).await;
                }
                Ok(())
            }
            (Some(open::Purpose::Control(request)), None) => self.control(peer, request, stream).await,
            (Some(open::Purpose::Gather(open)), None) => {
                secondary::gather::serve(&self.volume, Lsn(open.from_lsn), stream).await
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
            (Some(open::Purpose::Replicate(_) | open::Purpose::Seed(_)), Peer::Region(name)) => {
                // Whether it is the primary, the follower sees.
                self.config.region(name).is_some() && self.follower().await.is_some()
            }
            (Some(open::Purpose::Replicate(_) | open::Purpose::Seed(_)), Peer::Operator) => false,
            // Only to the region that this one has promised to follow.
            (Some(open::Purpose::Gather(open)), Peer::Region(name)) => {
                let state = self.state();
                state.primary.as_ref() == Some(name) && state.epoch.0 == open.epoch
            }
            (Some(open::Purpose::Gather(_)), Peer::Operator) => false,
            // A zone has its own region's certificate.
            (Some(open::Purpose::Zone(_)), Peer::Region(name)) => *name == self.own.name,
            (Some(open::Purpose::Zone(_) | open::Purpose::Copy(_)), _) => false,
            (Some(open::Purpose::Control(_)), Peer::Region(name)) => self.config.region(name).is_some(),
            (Some(open::Purpose::Control(_)), Peer::Operator) | (None, _) => true,
        };
        let reason = || format!("'{peer}' may not do this with region {}", self.own.name);
        (!allowed).then(|| Refusal::new(Kind::NotAllowed, reason()))
    }
}
