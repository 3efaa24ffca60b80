//! The part of a secondary: takes seeds and redo, and keeps the region's standby fed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use postgres::instance::{Instance, InstanceError, Part, WALSENDER_PORT};
use postgres::seed::Seed;
use postgres::walsender::StandbyProgress;
use proto::messages::refusal::Kind;
use proto::messages::{Refusal, RegionStatus, ReplicateOpen, SeedAnswer, SeedOpen};
use proto::{Epoch, Lsn, SystemId, Timeline};
use secondary::{Inbound, feed};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use transport::Stream;
use volume::Volume;

use super::engine::Engine;
use super::secrets;
use super::state::{RegionState, StateError};
use crate::layout::RegionLayout;

/// A secondary region at work.
#[derive(Debug)]
pub struct Follower {
    layout: RegionLayout,
    instance: Instance,
    volume: Volume,
    inbound: Arc<Inbound>,
    progress: watch::Sender<StandbyProgress>,
    state: Mutex<RegionState>,
    following: tokio::sync::Mutex<Option<Following>>,
    seeding: tokio::sync::Mutex<()>,
    seed_total_bytes: AtomicU64,
}

/// A standby and what feeds it.
#[derive(Debug)]
struct Following {
    engine: Engine,
    stop_feed: CancellationToken,
    feed: JoinHandle<()>,
}

/// Why the standby does not follow, or a seed was not taken.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// PostgreSQL cannot be managed.
    #[error(transparent)]
    Instance(#[from] InstanceError),
    /// The region's record cannot be written.
    #[error(transparent)]
    State(#[from] StateError),
    /// The volume cannot begin anew.
    #[error(transparent)]
    Volume(#[from] volume::VolumeError),
    /// The seed did not arrive.
    #[error(transparent)]
    Seed(#[from] secondary::seed::SeedError),
    /// The walsender's socket cannot be made.
    #[error("the walsender's socket: {0}")]
    Socket(std::io::Error),
    /// The password cannot be kept.
    #[error("keeping the superuser's password: {0}")]
    Secret(std::io::Error),
    /// The data directory is another PostgreSQL's.
    #[error(
        "the data directory has system identifier {found}, and this region's record says {expected}: it is another PostgreSQL's. Put the right one back, or remove the region's directory to have it seeded anew"
    )]
    OtherSystem {
        /// The data directory's.
        found: SystemId,
        /// The record's.
        expected: SystemId,
    },
}

impl Follower {
    /// A follower of the region whose record is `state`; if it has data, its standby is started.
    ///
    /// # Errors
    /// When the data is another PostgreSQL's, or cannot be configured.
    pub async fn start(
        layout: RegionLayout,
        instance: Instance,
        volume: Volume,
        state: RegionState,
    ) -> Result<Arc<Follower>, FollowError> {
        let progress = watch::Sender::new(StandbyProgress::default());
        let inbound = Inbound::new(volume.clone(), state.epoch, progress.subscribe());
        let follower = Follower {
            layout,
            instance,
            volume,
            inbound,
            progress,
            state: Mutex::new(state),
            following: tokio::sync::Mutex::new(None),
            seeding: tokio::sync::Mutex::new(()),
            seed_total_bytes: AtomicU64::new(0),
        };
        match follower.system_id() {
            Some(expected) if follower.instance.exists() => {
                let found = follower.instance.system_id()?;
                if found != expected {
                    return Err(FollowError::OtherSystem { found, expected });
                }
                follower.follow(expected).await?;
            }
            _ => {
                follower.record(|state| state.system_id = None)?;
                tracing::info!("no data yet: waiting for the primary to send a seed");
            }
        }
        Ok(Arc::new(follower))
    }

    /// Serves a replication stream of the primary.
    pub async fn replicate(&self, open: ReplicateOpen, stream: Stream) {
        if Epoch(open.epoch) > self.epoch()
            && let Err(e) = self.record(|state| state.epoch = Epoch(open.epoch))
        {
            tracing::error!("not receiving redo: {e}");
            return;
        }
        self.inbound.serve(open, stream, self.system_id()).await;
    }

    /// Takes a seed.
    pub async fn seed(&self, open: SeedOpen, mut stream: Stream) {
        let Ok(_turn) = self.seeding.try_lock() else {
            let refusal = Refusal::new(Kind::Busy, "a seed is being received already");
            let _ = stream.send(&SeedAnswer { refusal: Some(refusal) }).await;
            return stream.finish().await;
        };
        self.seed_total_bytes.store(open.total_bytes, Ordering::Relaxed);
        tracing::info!("receiving a seed of about {}", crate::units::show_bytes(open.total_bytes));
        let answer = match self.take_seed(open, &mut stream).await {
            Ok(consistent_lsn) => {
                tracing::info!("the seed is in place; it is consistent from {consistent_lsn} on");
                SeedAnswer::default()
            }
            Err(e) => {
                tracing::error!("the seed failed: {e}");
                SeedAnswer { refusal: Some(Refusal::new(Kind::Failed, e.to_string())) }
            }
        };
        self.seed_total_bytes.store(0, Ordering::Relaxed);
        let _ = stream.send(&answer).await;
        stream.finish().await;
    }

    async fn take_seed(&self, open: SeedOpen, stream: &mut Stream) -> Result<Lsn, FollowError> {
        let options = self.instance.options();
        let seed = Seed::begin(&options.data_dir, &options.account)?;
        stream.send(&SeedAnswer::default()).await.map_err(secondary::seed::SeedError::from)?;
        let (unpacked, consistent_lsn) = secondary::seed::receive(stream, seed).await?;
        // From here to the end the region has no data: a crash in between has it seeded anew. Recorded first, so that a
        // stream that comes now is answered so, and then what still comes from an older one is ended.
        self.record(|state| state.system_id = None)?;
        self.inbound.interrupt().await;
        self.unfollow().await?;
        self.volume.reset(Lsn(open.volume_begin_lsn), Timeline(open.timeline)).await?;
        unpacked.install()?;
        secrets::keep(&self.layout, &open.superuser_password, options.listen).map_err(FollowError::Secret)?;
        let system_id = SystemId(open.system_id);
        self.record(|state| {
            state.system_id = Some(system_id);
            state.epoch = state.epoch.max(Epoch(open.epoch));
        })?;
        self.follow(system_id).await?;
        Ok(consistent_lsn)
    }

    /// Feeds and starts the standby.
    async fn follow(&self, system_id: SystemId) -> Result<(), FollowError> {
        self.instance.configure(Part::Standby)?;
        let options = self.instance.options();
        let listener = feed::bind(&options.socket_dir, WALSENDER_PORT).map_err(FollowError::Socket)?;
        let socket = options.socket_dir.join(format!(".s.PGSQL.{WALSENDER_PORT}"));
        options.account.own(&socket).map_err(InstanceError::from)?;
        let stop_feed = CancellationToken::new();
        let feed = tokio::spawn(feed::serve_standbys(
            listener,
            self.volume.clone(),
            system_id,
            options.account.user_id,
            options.installation.version.clone(),
            self.progress.clone(),
            stop_feed.clone(),
        ));
        let engine = Engine::start(self.instance.clone());
        *self.following.lock().await = Some(Following { engine, stop_feed, feed });
        Ok(())
    }

    async fn unfollow(&self) -> Result<(), InstanceError> {
        let Some(Following { engine, stop_feed, feed }) = self.following.lock().await.take() else {
            return Ok(());
        };
        let stopped = engine.stop().await;
        stop_feed.cancel();
        let _ = feed.await;
        self.progress.send_replace(StandbyProgress::default());
        stopped
    }

    /// Stops the standby and takes no more redo.
    pub async fn stop(&self) {
        self.inbound.interrupt().await;
        if let Err(e) = self.unfollow().await {
            tracing::error!("{e}");
        }
    }

    /// The region's own row.
    pub async fn row(&self, name: &str, url: String) -> RegionStatus {
        let inbound = self.inbound.state();
        let bounds = self.volume.bounds();
        let trouble = self.following.lock().await.as_ref().and_then(|f| f.engine.trouble());
        let seed_total_bytes = self.seed_total_bytes.load(Ordering::Relaxed);
        let seeded = self.system_id().is_some();
        let (state, detail) = if seed_total_bytes > 0 {
            ("seeding", String::new())
        } else if !seeded {
            ("waiting", "no data yet: waiting for the primary to send a seed".into())
        } else if let Some(trouble) = trouble {
            ("starting", trouble)
        } else if inbound.streaming {
            ("streaming", String::new())
        } else {
            ("disconnected", inbound.detail)
        };
        RegionStatus {
            name: name.to_owned(),
            role: "secondary".into(),
            state: state.into(),
            timeline: bounds.timeline.0,
            durable_lsn: seeded.then_some(bounds.durable_lsn.0),
            applied_lsn: seeded.then(|| self.progress.borrow().applied_lsn.min(bounds.durable_lsn).0),
            redo_bytes: inbound.redo_bytes,
            url,
            seed_total_bytes,
            detail,
            ..RegionStatus::default()
        }
    }

    /// The highest epoch seen.
    pub fn epoch(&self) -> Epoch {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).epoch
    }

    fn system_id(&self) -> Option<SystemId> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).system_id
    }

    /// Changes the region's record; on disk when this returns.
    fn record(&self, change: impl FnOnce(&mut RegionState)) -> Result<(), StateError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changed = state.clone();
        change(&mut changed);
        if changed != *state {
            changed.save(&self.layout.state())?;
            *state = changed;
        }
        Ok(())
    }
}
