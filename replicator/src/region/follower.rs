//! The part of a secondary: takes redo, and keeps the region's standby fed. How it gets data to begin with is in `rejoin`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use postgres::instance::{Instance, InstanceError, Part, WALSENDER_PORT, socket_path};
use postgres::walsender::StandbyProgress;
use proto::messages::{RegionStatus, ReplicateOpen};
use proto::{Epoch, Lsn, SystemId};
use secondary::{Inbound, feed};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use transport::Stream;
use volume::Volume;

use super::engine::Engine;
use super::lost;
use super::state::{Record, StateError};
use crate::layout::RegionLayout;

/// A secondary region at work.
#[derive(Debug)]
pub struct Follower {
    pub(super) layout: RegionLayout,
    pub(super) instance: Instance,
    pub(super) volume: Volume,
    pub(super) inbound: Arc<Inbound>,
    progress: watch::Sender<StandbyProgress>,
    pub(super) record: Arc<Record>,
    following: tokio::sync::Mutex<Option<Following>>,
    pub(super) seeding: tokio::sync::Mutex<()>,
    pub(super) seed_total_bytes: AtomicU64,
}

/// A standby and what feeds it.
#[derive(Debug)]
struct Following {
    /// None once it was given away.
    engine: Option<Engine>,
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
    /// The primary's history cannot be used.
    #[error("the primary's timeline history: {0}")]
    History(String),
    /// What only this region has cannot be kept aside.
    #[error("keeping aside what only this region has: {0}")]
    Lost(#[from] lost::LostError),
    /// The password cannot be kept.
    #[error("keeping the superuser's password: {0}")]
    Secret(std::io::Error),
    /// The data cannot be rewound.
    #[error("the data cannot be rewound, and a seed is needed: {0}")]
    Rewind(String),
    /// The primary that sent the seed is shut out.
    #[error(
        "the primary of epoch {0} is being replaced: its data are not used, and the next primary brings some"
    )]
    Overtaken(Epoch),
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
        record: Arc<Record>,
    ) -> Result<Arc<Follower>, FollowError> {
        let progress = watch::Sender::new(StandbyProgress::default());
        let inbound = Inbound::new(volume.clone(), record.get().epoch(), progress.subscribe());
        let follower = Follower {
            layout,
            instance,
            volume,
            inbound,
            progress,
            record,
            following: tokio::sync::Mutex::new(None),
            seeding: tokio::sync::Mutex::new(()),
            seed_total_bytes: AtomicU64::new(0),
        };
        match follower.system_id() {
            _ if follower.record.get().rejoining => {
                tracing::warn!(
                    "this region led an epoch that is over: it waits for the primary to have it rewind"
                );
            }
            Some(expected) if follower.instance.exists() => {
                let found = follower.instance.system_id()?;
                if found != expected {
                    return Err(FollowError::OtherSystem { found, expected });
                }
                follower.follow(expected).await?;
            }
            _ => {
                follower.record.change(|state| state.system_id = None)?;
                tracing::info!("no data yet: waiting for the primary to send a seed");
            }
        }
        Ok(Arc::new(follower))
    }

    /// Serves a replication stream of the primary.
    pub async fn replicate(&self, open: ReplicateOpen, stream: Stream) {
        let state = self.record.get();
        // Recorded, the data are whole; without, a seed or a rewind was not finished.
        let recorded = state.system_id == Some(SystemId(open.system_id));
        let can_rewind = recorded && self.instance.exists() && !self.instance.has_tablespaces();
        // What a region that led before has may not be what the primary has.
        let system_id = if state.rejoining { None } else { state.system_id };
        self.inbound.serve(open, stream, system_id, can_rewind).await;
    }

    /// Feeds and starts the standby.
    pub(super) async fn follow(&self, system_id: SystemId) -> Result<(), FollowError> {
        self.instance.configure(Part::Standby)?;
        let options = self.instance.options();
        let listener = self.listen(WALSENDER_PORT)?;
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
        *self.following.lock().await = Some(Following { engine: Some(engine), stop_feed, feed });
        Ok(())
    }

    /// Makes the socket at which the region's PostgreSQL finds another server by its `port`.
    pub(super) fn listen(&self, port: u16) -> Result<UnixListener, FollowError> {
        let options = self.instance.options();
        let listener = feed::bind(&options.socket_dir, port).map_err(FollowError::Socket)?;
        options.account.own(&socket_path(&options.socket_dir, port)).map_err(InstanceError::from)?;
        Ok(listener)
    }

    pub(super) async fn unfollow(&self) -> Result<(), InstanceError> {
        let Some(Following { engine, stop_feed, feed }) = self.following.lock().await.take() else {
            return Ok(());
        };
        let stopped = match engine {
            Some(engine) => engine.stop().await,
            None => Ok(()),
        };
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
        let trouble = self.following.lock().await.as_ref().and_then(|f| f.engine.as_ref()?.trouble());
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
        self.record.get().epoch()
    }

    fn system_id(&self) -> Option<SystemId> {
        self.record.get().system_id
    }

    /// Takes no more of the present stream, and answers it no more.
    pub async fn interrupt(&self) {
        self.inbound.interrupt().await;
    }

    /// What is known of the old primary: how far it was durable, and how long ago it was answered.
    pub fn heard(&self) -> (Lsn, Option<tokio::time::Instant>) {
        let state = self.inbound.state();
        (state.primary_lsn, state.answered)
    }

    /// Takes the redo that another survivor has beyond this region's.
    ///
    /// # Errors
    /// Why not all of it was taken.
    pub async fn gather(&self, stream: Stream, wanted: impl Fn() -> bool) -> Result<(), String> {
        self.inbound.gather(stream, wanted).await
    }

    /// Waits until the standby has applied all redo up to `lsn`.
    pub async fn until_applied(&self, lsn: Lsn) {
        let mut progress = self.progress.subscribe();
        // The progress lives as long as this.
        let _ = progress.wait_for(|progress| progress.applied_lsn >= lsn).await;
    }

    /// Whether its standby runs.
    pub async fn runs(&self) -> bool {
        self.following.lock().await.as_ref().is_some_and(|following| following.engine.is_some())
    }

    /// Gives the running standby to whoever promotes it. It is fed until this is stopped.
    pub async fn give_engine(&self) -> Option<Engine> {
        self.following.lock().await.as_mut()?.engine.take()
    }
}
