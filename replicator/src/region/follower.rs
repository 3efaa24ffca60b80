//! The part of a secondary: takes redo, and keeps the region's standby fed. How it gets data to begin with is
//! in `rejoin`.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use postgres::backup::remains;
use postgres::instance::{Instance, InstanceError, Part};
use postgres::protocol::walsender::StandbyProgress;
use postgres::sockets::WALSENDER_PORT;
use postgres::tablespaces::PlaceError;
use proto::messages::ReplicateOpen;
use proto::{Epoch, Lsn, SystemId};
use runtime::clock::{now, steady_us};
use runtime::task::{Task, blocking};
use secondary::feed::{self, Heard};
use secondary::{Data, Inbound};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use transport::Stream;
use volume::{Claim, Volume};

use super::tablespaces::OwnPlaces;
use super::{Parts, lost};
use crate::engine::{self, Engine};
use crate::events::Journal;
use crate::facts::FollowerFacts;
use crate::layout::RegionLayout;
use crate::region_file::{RegionFile, RegionState, StateError};

/// The size of PostgreSQL's WAL segments, as `initdb` makes them.
const WAL_SEGMENT_BYTES: u64 = 16 << 20;

/// How often it is looked whether what an interrupted seed left is of any use.
const LOOK_AT_REMAINS: Duration = Duration::from_secs(10);

/// It is of none once redo has streamed for so long without a seed.
const REMAINS_UNUSED: Duration = Duration::from_secs(60);

/// How often a standby that could not be started is tried again.
const START_AGAIN: Duration = Duration::from_secs(1);

/// How often is looked whether the data directory is there …
const LOOK_AT_DATA: Duration = Duration::from_secs(1);

/// … and how long it is not, before it is gone.
const GONE: Duration = Duration::from_secs(30);

/// A secondary region at work.
#[derive(Debug)]
pub struct Follower {
    pub(super) layout: RegionLayout,
    /// The role that applications use.
    pub(super) owner: String,
    pub(super) instance: Instance,
    pub(super) places: Arc<OwnPlaces>,
    pub(super) volume: Volume,
    pub(super) inbound: Arc<Inbound>,
    heard: Heard,
    /// When the standby said last how far it is.
    reported: Arc<Mutex<Option<Instant>>>,
    /// Why the data cannot be gone on with; empty where there are none, or nothing is wrong with them.
    lacks: Arc<Mutex<String>>,
    pub(super) record: Arc<RegionFile>,
    following: tokio::sync::Mutex<Option<Following>>,
    pub(super) seeding: tokio::sync::Mutex<()>,
    /// Keeps all redo of the volume, until it is known which of it this region still needs.
    pub(super) hold: Hold,
    pub(super) journal: Journal,
    pub(super) seed_total_bytes: AtomicU64,
    /// Nothing is started here any more.
    stopped: AtomicBool,
    /// Starts the standby where that failed; it ends with this.
    again: OnceLock<Task<()>>,
    /// Drops what a seed left that nobody goes on with; it ends with this.
    tidy: OnceLock<Task<()>>,
}

/// A claim to all redo of the volume, shared by whoever may end it.
#[derive(Debug, Clone)]
pub struct Hold(Arc<Mutex<Option<Claim>>>);

impl Hold {
    /// Keeps everything as long as `claim` is not released.
    #[must_use]
    pub fn new(claim: Claim) -> Hold {
        Hold(Arc::new(Mutex::new(Some(claim))))
    }

    /// The region's data are what they are to be: retention goes on by age.
    pub fn release(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Redo that only this region has is to be kept aside first.
    pub fn take(&self, volume: &Volume) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| volume.hold("rejoin"));
    }
}

/// A standby and what feeds it.
#[derive(Debug)]
struct Following {
    /// None once it was given away.
    engine: Option<Engine>,
    stop_feed: CancellationToken,
    feed: Task<()>,
    /// Its need of redo; it ends with this.
    _keeping: Task<()>,
    /// Finds out when that need cannot be met; it ends with this.
    _starving: Task<()>,
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
    /// A tablespace can have no place.
    #[error("a tablespace of the primary's can have no place: {0}")]
    Place(#[from] PlaceError),
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
    /// Work on files ended.
    #[error("{0}")]
    Blocking(String),
    /// No PostgreSQL here runs what came.
    #[error("{0}")]
    OtherMajor(String),
    /// It is stopped.
    #[error("the region's daemon stops, or the region begins to lead")]
    Stopped,
    /// The primary that sent the seed is shut out.
    #[error(
        "the primary of epoch {0} is being replaced: its data are not used, and the next primary brings some"
    )]
    Overtaken(Epoch),
    /// The data directory is another PostgreSQL's.
    #[error(
        "the data directory has system identifier {found}, and this region's record says {expected}: it is another \
         PostgreSQL's, and is not started. Put the right one back; or have this region seeded anew, which sets what it has aside: replicator \
         reseed --region R"
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
    pub(super) async fn start(parts: &Parts, hold: Hold) -> Result<Arc<Follower>, FollowError> {
        let Parts { layout, instance, volume, file, journal, tracer, config, places, .. } = parts;
        let fed: Arc<dyn feed::Places> = places.clone();
        let heard = Heard { tracer: tracer.clone(), places: Some(fed), ..Heard::default() };
        let applied = heard.progress.subscribe();
        let inbound = Inbound::new(volume.clone(), file.get().epoch(), applied, tracer.clone());
        let follower = Follower {
            layout: layout.clone(),
            owner: config.owner.clone(),
            instance: instance.clone(),
            places: places.clone(),
            volume: volume.clone(),
            inbound,
            heard,
            reported: Arc::default(),
            lacks: Arc::default(),
            record: file.clone(),
            following: tokio::sync::Mutex::new(None),
            seeding: tokio::sync::Mutex::new(()),
            hold,
            journal: journal.clone(),
            seed_total_bytes: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            again: OnceLock::new(),
            tidy: OnceLock::new(),
        };
        match follower.system_id() {
            _ if follower.record.get().rejoining => {
                follower.hold.take(&follower.volume);
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
                follower.record.change(RegionState::has_no_data)?;
                tracing::info!("no data yet: waiting for the primary to send a seed");
            }
        }
        let follower = Arc::new(follower);
        let again = Task::spawn("start the standby again", start_again(Arc::downgrade(&follower)));
        let _ = follower.again.set(again);
        let tidy = Task::spawn("drop what a seed left", drop_remains(Arc::downgrade(&follower)));
        let _ = follower.tidy.set(tidy);
        Ok(follower)
    }

    /// Whether the region has data that its standby is to follow with, and none runs: to start it failed.
    async fn is_left(&self) -> Option<SystemId> {
        let state = self.record.get();
        let left = !state.rejoining
            && !self.stopped.load(Ordering::Relaxed)
            && self.following.lock().await.is_none();
        state.system_id.filter(|_| left)
    }

    /// Why no standby runs that should, in words.
    pub(super) async fn not_started(&self) -> Option<String> {
        self.is_left().await.map(|_| format!("PostgreSQL is not started yet: {}", self.lacks()))
    }

    /// Serves a replication stream of the primary, while it is `wanted`.
    pub async fn replicate(&self, open: ReplicateOpen, stream: Stream, wanted: impl Fn() -> bool) {
        self.inbound.serve(open, stream, self.data(), wanted).await;
    }

    /// What a primary's redo can be taken with.
    fn data(&self) -> Data {
        let state = self.record.get();
        // Recorded, the data are whole; without, a seed or a rewind was not finished.
        let Some(system_id) = state.system_id else { return self.no_data() };
        let can_rewind = self.instance.exists();
        match state.rejoining {
            true => Data::Led { system_id, can_rewind },
            false => Data::Whole { system_id, can_rewind },
        }
    }

    fn no_data(&self) -> Data {
        Data::None { why: self.lacks(), runs: self.instance.options().installations.clone() }
    }

    fn lacks(&self) -> String {
        self.lacks.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Feeds and starts the standby.
    pub(super) async fn follow(&self, system_id: SystemId) -> Result<(), FollowError> {
        // Held to the end, so that whoever stops this stops all of it.
        let mut following = self.following.lock().await;
        if self.stopped.load(Ordering::Relaxed) {
            return Err(FollowError::Stopped);
        }
        self.instance.configure(Part::Standby)?;
        let options = self.instance.options();
        let listener = self.listen(WALSENDER_PORT)?;
        let stop_feed = CancellationToken::new();
        let feed = Task::spawn(
            "feed standbys",
            feed::serve_standbys(
                listener,
                self.volume.clone(),
                system_id,
                options.account.user_id,
                self.instance.installation().version.clone(),
                self.heard.clone(),
                stop_feed.clone(),
            ),
        );
        let engine = Engine::start(self.instance.clone(), self.journal.clone());
        self.heard.missing.send_replace(None);
        self.heard.waits.send_replace(None);
        self.lacks.lock().unwrap_or_else(PoisonError::into_inner).clear();
        let progress = self.heard.progress.subscribe();
        let keeping =
            Task::spawn("keep redo for the standby", keep(&self.volume, progress, self.reported.clone()));
        let starving = Task::spawn("see what the standby lacks", self.starve());
        self.hold.release();
        let (engine, _keeping, _starving) = (Some(engine), keeping, starving);
        *following = Some(Following { engine, stop_feed, feed, _keeping, _starving });
        Ok(())
    }

    /// Waits until the standby needs redo that the volume does not keep any more, or somebody has taken its
    /// data directory away. It never gets on then: the region has no data that it could lead with, and asks
    /// the primary for a seed. A standby goes on answering what it has until that comes.
    fn starve(&self) -> impl Future<Output = ()> + Send + 'static {
        let (mut missing, lacks) = (self.heard.missing.subscribe(), self.lacks.clone());
        let (record, inbound, volume) = (self.record.clone(), self.inbound.clone(), self.volume.clone());
        let (data_dir, file) = (self.instance.options().data_dir.clone(), self.layout.state());
        async move {
            let why = tokio::select! {
                // The sender lives as long as the follower.
                missing = missing.wait_for(Option::is_some) => {
                    let Ok(Some(lsn)) = missing.map(|lsn| *lsn) else { return };
                    let kept_from = volume.bounds().horizon_lsn;
                    format!("its standby needs redo from {lsn} on, and the oldest that the region keeps is {kept_from}")
                }
                () = until_gone(&data_dir, &file) => format!("its data directory is gone: {}", data_dir.display()),
            };
            tracing::error!("{why}; the primary is asked for a seed");
            *lacks.lock().unwrap_or_else(PoisonError::into_inner) = why;
            // Recorded first: the primary asks again at once, and is then answered so.
            if let Err(e) = record.change(RegionState::has_no_data) {
                tracing::error!("{e}");
            }
            inbound.interrupt().await;
        }
    }

    /// Makes the socket at which the region's PostgreSQL finds another server by its `port`.
    pub(super) fn listen(&self, port: u16) -> Result<UnixListener, FollowError> {
        let options = self.instance.options();
        let listener = feed::bind(&options.socket_dir, port).map_err(FollowError::Socket)?;
        self.instance.give_socket(port)?;
        Ok(listener)
    }

    pub(super) async fn unfollow(&self) -> Result<(), InstanceError> {
        let Some(following) = self.following.lock().await.take() else { return Ok(()) };
        let Following { engine, stop_feed, feed, _keeping, _starving } = following;
        let stopped = match engine {
            Some(engine) => engine.stop().await,
            None => Ok(()),
        };
        stop_feed.cancel();
        let _ = feed.await;
        self.heard.progress.send_replace(StandbyProgress::default());
        stopped
    }

    /// Stops the standby and takes no more redo.
    pub async fn stop(&self) {
        // A seed that comes to its end now starts nothing any more.
        self.stopped.store(true, Ordering::Relaxed);
        self.inbound.interrupt().await;
        if let Err(e) = self.unfollow().await {
            tracing::error!("{e}");
        }
    }

    /// Why its standby is not given the next redo; none while it is.
    pub(super) fn waits(&self) -> Option<String> {
        self.heard.waits.borrow().clone()
    }

    /// What is known of it.
    pub async fn facts(&self) -> FollowerFacts {
        let (inbound, bounds) = (self.inbound.state(), self.volume.bounds());
        let postgres_trouble = match self.not_started().await {
            Some(words) => Some(words),
            None => self.following.lock().await.as_ref().and_then(|f| f.engine.as_ref()?.trouble()),
        };
        let applied_lsn = self.heard.progress.borrow().applied_lsn.min(bounds.durable_lsn);
        let now_us = steady_us();
        FollowerFacts {
            epoch: self.epoch(),
            seeded: self.system_id().is_some(),
            lacks: self.lacks(),
            seed_total_bytes: self.seed_total_bytes.load(Ordering::Relaxed),
            postgres_trouble,
            timeline: bounds.timeline,
            durable_lsn: bounds.durable_lsn,
            applied_lsn,
            shown_lsn: self.heard.progress.borrow().shown_lsn().min(bounds.durable_lsn),
            silent_us: inbound.heard.silent_us(now_us),
            heard_lag_us: inbound.heard.lag_us(now_us, applied_lsn),
            inbound,
        }
    }

    /// The highest epoch seen.
    pub fn epoch(&self) -> Epoch {
        self.record.get().epoch()
    }

    fn system_id(&self) -> Option<SystemId> {
        self.record.get().system_id
    }

    /// How far the primary was durable, as it said last.
    pub fn heard(&self) -> Lsn {
        self.inbound.state().primary_lsn
    }

    /// Ends the present stream: from here on nothing that it brings is answered.
    pub fn shut_out(&self) {
        self.inbound.shut_out();
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
        let mut progress = self.heard.progress.subscribe();
        // The progress lives as long as this.
        let _ = progress.wait_for(|progress| progress.applied_lsn >= lsn).await;
    }

    /// How far the standby has applied redo; none while none runs.
    pub fn applied(&self) -> Option<Lsn> {
        self.reported().map(|_| self.heard.progress.borrow().applied_lsn)
    }

    /// How long ago the standby said how far it is; none when it has not since it was started.
    pub fn reported(&self) -> Option<Duration> {
        self.reported.lock().unwrap_or_else(PoisonError::into_inner).map(|at| at.elapsed())
    }

    /// Stops the standby; it is started again with what it needs by then.
    ///
    /// # Errors
    /// When it cannot be stopped.
    pub async fn restart_standby(&self) -> Result<(), InstanceError> {
        // Not held while it stops: `status` looks there.
        let kept = self.following.lock().await.as_ref().is_some_and(|following| following.engine.is_some());
        if kept { engine::restart(&self.instance).await } else { Ok(()) }
    }

    /// Gives the running standby to whoever promotes it. It is fed until this is stopped.
    pub async fn give_engine(&self) -> Option<Engine> {
        self.following.lock().await.as_mut()?.engine.take()
    }
}

/// Waits until nothing is where the data directory was, for longer than somebody takes who puts another in
/// its place, or this one back. An empty one is not gone, nor one whose region's record is not there either:
/// a disk may be missing, which comes back.
async fn until_gone(data_dir: &Path, record: &Path) {
    let mut since = None;
    loop {
        tokio::time::sleep(LOOK_AT_DATA).await;
        let (path, record) = (data_dir.to_owned(), record.to_owned());
        let looked = blocking("look whether the data are there", move || {
            let is_missing = |path: &Path| {
                std::fs::symlink_metadata(path).is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound)
            };
            is_missing(&path) && !is_missing(&record)
        });
        match looked.await {
            Ok(true) if since.get_or_insert_with(now).elapsed() >= GONE => return,
            Ok(true) => {}
            Ok(false) | Err(_) => since = None,
        }
    }
}

/// Starts the standby of a region that has data and could not start it: its disk was full, or a file of it
/// could not be written.
async fn start_again(follower: Weak<Follower>) {
    let mut last = String::new();
    loop {
        tokio::time::sleep(START_AGAIN).await;
        let Some(follower) = follower.upgrade() else { return };
        // Looked at first: a seed that comes while the turn is taken is refused.
        if follower.is_left().await.is_none() {
            continue;
        }
        // While data are replaced there is nothing to start.
        let Ok(_turn) = follower.seeding.try_lock() else { continue };
        let Some(system_id) = follower.is_left().await else { continue };
        match follower.follow(system_id).await {
            Ok(()) => last.clear(),
            Err(e) => {
                *follower.lacks.lock().unwrap_or_else(PoisonError::into_inner) = e.to_string();
                if last != e.to_string() {
                    last = e.to_string();
                    tracing::error!("the standby is not started: {last}; trying again");
                }
            }
        }
    }
}

/// Drops what an interrupted seed left: once redo streams for a while all the same, so that none is going to
/// come; and at once where the disk is nearly full.
async fn drop_remains(follower: Weak<Follower>) {
    let mut streams_since = None;
    loop {
        tokio::time::sleep(LOOK_AT_REMAINS).await;
        let Some(follower) = follower.upgrade() else { return };
        if !follower.inbound.state().streaming {
            streams_since = None;
        }
        // While a seed comes they are in use.
        let Ok(_turn) = follower.seeding.try_lock() else { continue };
        let options = follower.instance.options();
        let (data_dir, account) = (options.data_dir.clone(), options.account.clone());
        let looked = blocking("look at what a seed left", move || (remains::remains(&data_dir), data_dir));
        let Ok((Some(is_nearly_full), data_dir)) = looked.await else { continue };
        if follower.inbound.state().streaming && streams_since.is_none() {
            streams_since = Some(now());
        }
        let streams = streams_since.is_some_and(|since| since.elapsed() >= REMAINS_UNUSED);
        if !streams && !is_nearly_full {
            continue;
        }
        let why = if is_nearly_full { "the disk is nearly full" } else { "redo streams without it" };
        match blocking("drop what a seed left", move || remains::drop_remains(&data_dir, &account)).await {
            Ok(Ok(_)) => tracing::info!("what is here of an interrupted seed is removed: {why}"),
            Ok(Err(e)) => tracing::warn!("{e}"),
            Err(e) => tracing::warn!("{e}"),
        }
    }
}

/// Keeps the redo that the standby has not applied, however old it is.
fn keep(
    volume: &Volume,
    mut progress: watch::Receiver<StandbyProgress>,
    reported: Arc<Mutex<Option<Instant>>>,
) -> impl Future<Output = ()> + Send + 'static {
    let claim = volume.claim("standby", volume.bounds().horizon_lsn);
    *reported.lock().unwrap_or_else(PoisonError::into_inner) = None;
    async move {
        loop {
            let applied_lsn = progress.borrow_and_update().applied_lsn;
            // A standby that starts asks from where its WAL segment begins.
            claim.advance(applied_lsn.segment_begin(WAL_SEGMENT_BYTES));
            if progress.changed().await.is_err() {
                return;
            }
            *reported.lock().unwrap_or_else(PoisonError::into_inner) = Some(now());
        }
    }
}
