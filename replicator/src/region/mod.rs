//! One region's daemon: what a container or a unit runs.
//!
//! It builds the region's volume, PostgreSQL and QUIC endpoint, runs the owner of the region's part
//! ([`crate::part`]) on them, and answers operators and other regions.

mod automatic;
mod certificates;
mod chronicle;
mod cluster;
mod control;
mod early;
mod endpoints;
mod follower;
pub mod head;
mod health;
mod leader;
mod load;
mod logged;
mod logs;
mod look;
pub mod lost;
mod moving;
mod nodes;
pub mod order;
mod password;
mod rehearse;
mod rejoin;
pub mod reload;
mod reseed;
mod sealing;
mod serve;
mod slots;
mod tablespaces;
mod voters;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use coordination::Leadership;
use coordination::region::Part;
use postgres::installation::{InstallationError, Installations};
use postgres::instance::account::{Account, AccountError};
use postgres::instance::{Instance, InstanceError, InstanceOptions, Stop};
use postgres::sockets::socket_dir_for;
use proto::{ClusterId, Epoch, RegionName};
use tokio_util::sync::CancellationToken;
use transport::{Endpoint, Identity, TransportError};
use volume::{Volume, VolumeError, VolumeOptions};

use crate::audit::Audit;
use crate::config::{Config, RegionConfig, Role};
use crate::daemon::authority::{Asked, Names};
use crate::daemon::enter::{EnterError, enter};
use crate::daemon::manager;
use crate::daemon::serve::Door;
use crate::endpoint::door::Doors;
use crate::endpoint::regional::Regional;
use crate::engine::LEFT_RUNNING;
use crate::events::{Journal, Kind};
use crate::keys;
use crate::layout::{Layout, RegionLayout};
use crate::logs::DaemonLog;
use crate::node::file::NodeFileError;
use crate::observe;
use crate::orders::SignedOrders;
use crate::part::Owner;
use crate::region_file::{RegionFile, RegionState, StateError};
use crate::voter::{Peers, Seat, Voter};
use certificates::End;
use chronicle::Chronicle;
use cluster::RegionalCluster;
use early::Early;
use follower::{FollowError, Hold};
use head::Heading;
use health::Health;
use leader::LeaderError;
use reload::{InForce, Source};
use runtime::task::Task;
use tablespaces::OwnPlaces;
use telemetry::trace::Tracer;

/// How long a host that is the head no more takes to tell its peers.
const FAREWELL: Duration = Duration::from_millis(50);

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
    /// See [`EnterError`].
    #[error(transparent)]
    Enter(#[from] EnterError),
    /// See [`StateError`].
    #[error(transparent)]
    State(#[from] StateError),
    /// See [`InstallationError`].
    #[error(transparent)]
    Installation(#[from] InstallationError),
    /// See [`AccountError`].
    #[error(transparent)]
    Account(#[from] AccountError),
    /// See [`keys::KeysError`].
    #[error(transparent)]
    Keys(#[from] keys::KeysError),
    /// See [`VolumeError`].
    #[error("the volume: {0}")]
    Volume(#[from] VolumeError),
    /// The journal of events cannot be kept.
    #[error("the journal of events: {0}")]
    Journal(#[from] std::io::Error),
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
    /// See [`NodeFileError`].
    #[error(transparent)]
    NodeFile(#[from] NodeFileError),
    /// It was to take over.
    #[error("this host has no replica with which it could take over as the region's head")]
    NothingToLeadWith,
}

impl RegionError {
    pub(crate) fn unknown(config: &Config, name: &RegionName) -> RegionError {
        let known: Vec<&str> = config.regions.iter().map(|r| r.name.as_str()).collect();
        RegionError::Unknown { name: name.clone(), known: known.join(", ") }
    }
}

/// What the region's daemon is made of, apart from the part that the region plays.
#[derive(Debug)]
pub(crate) struct Parts {
    /// The configuration of the start. What may be another since is in `in_force`.
    pub(crate) config: Config,
    pub(crate) in_force: InForce,
    pub(crate) log: DaemonLog,
    pub(crate) own: RegionConfig,
    pub(crate) cluster_id: ClusterId,
    pub(crate) endpoint: Endpoint,
    /// How orders are told from what was made up.
    pub(crate) orders: Arc<SignedOrders>,
    pub(crate) layout: RegionLayout,
    pub(crate) volume: Volume,
    pub(crate) instance: Instance,
    /// Where its tablespaces lie.
    pub(crate) places: Arc<OwnPlaces>,
    pub(crate) file: Arc<RegionFile>,
    pub(crate) voter: Arc<Voter>,
    /// Cancelled when this daemon is to end and be started again.
    pub(crate) again: CancellationToken,
    /// When the daemon's certificate ends.
    pub(crate) certificate: End,
    /// Whether that is of before there were roles.
    pub(crate) has_no_role: AtomicBool,
    /// The same of the certificate of its PostgreSQL; never where there is none.
    pub(crate) server_certificate: End,
    /// Where another host may take over.
    pub(crate) heading: Option<Heading>,
    pub(crate) journal: Journal,
    pub(crate) audit: Audit,
    pub(crate) chronicle: Chronicle,
    /// Follows sampled batches.
    pub(crate) tracer: Tracer,
}

impl Parts {
    /// What the region is.
    pub(crate) fn state(&self) -> Arc<RegionState> {
        self.file.get()
    }
}

/// A region's daemon.
#[derive(Debug)]
pub(crate) struct Region {
    door: Door,
    parts: Arc<Parts>,
    owner: Arc<Owner<RegionalCluster>>,
    health: Health,
    load: load::Known,
    slots: slots::Known,
    nodes: nodes::Nodes,
    /// Its head on the way to another host.
    moving: moving::Moving,
    doors: Arc<Doors<Regional>>,
    /// What PostgreSQL's log says and nobody else tells.
    logged: logged::Logged,
    /// Places for sessions of rehearsals.
    rehearsing: tokio::sync::Semaphore,
}

impl std::ops::Deref for Region {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.parts
    }
}

/// How a daemon ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It was told to stop.
    Stopped,
    /// Its data are to be set aside, which nothing may use meanwhile: it is to be started again.
    StartAgain,
    /// Another host is the region's head, or is to be: this one follows, and has heard of none for so long.
    Follows(Duration),
}

/// Runs the daemon of `name` until `stop`, or until this host is not the region's head any more. Its
/// configuration is `config`, as it was read from `source`, and `log` is what it says.
///
/// # Errors
/// When it cannot start; what to do is in the error's words.
pub async fn run(
    config: Config,
    source: Source,
    log: DaemonLog,
    layout: Layout,
    name: RegionName,
    stop: CancellationToken,
) -> Result<Ended, RegionError> {
    let shared = layout.region(&name);
    let places = shared.headed_by(&source.host);
    let in_file = config.region(&name);
    // What is wrong with it is said where it is read next.
    let record = RegionState::load(&places.state()).ok().flatten();
    let heading = in_file.and_then(|own| Heading::of(own, &source, record.as_ref()));
    let config = source.complete(config, &name);
    let own = config.region(&name).cloned().ok_or_else(|| RegionError::unknown(&config, &name))?;
    let (_lock, identity) = enter(&shared, &places.lock(), &name)?;
    let journal = Journal::open(&places.events())?;
    let audit = Audit::new(places.directory());
    let installations = Installations::find(config.bin_dir_of(&own))?;
    let account = Account::resolve(config.os_user.as_deref())?;
    let instance = Instance::new(InstanceOptions {
        installations: installations.clone(),
        account: account.clone(),
        data_dir: places.pgdata(),
        socket_dir: socket_dir_for(places.directory()),
        listen: own.postgres,
        log_file: places.postgresql_log(),
        name: name.to_string(),
        settings: config.settings_of(&own),
        hba: config.rules(),
        ident: config.map_lines(identity.cluster_id),
        authorities: Some(places.identity().join("ca.pem")),
        certificate: Some(places.server_identity()),
    });
    let mut state = match heading.as_ref().filter(|heading| heading.takes_over()) {
        Some(heading) => head::begin(&places, &config, &name, identity.cluster_id, (heading, &instance))?,
        None => load_state(&places, &identity, &config, &name)?,
    };
    if state.aside.is_some() {
        // What an earlier daemon left running would go on in the directory that is moved.
        instance.stop(Stop::Immediate, LEFT_RUNNING).await?;
    }
    state = reseed::set_aside(&places, state, &own.zones_apart())?;
    let writer = runtime::random::draw();
    // What was a head's stays that, also where the file says no more that another host may take over: the
    // copies tell whether one has.
    let tenure = match heading.is_some() || state.headed.is_some() {
        true => Some(head::note_writer(&mut state, &places, writer)?),
        false => None,
    };
    let version = installations.for_data(&places.pgdata())?.version.clone();
    tracing::info!("region {name}, {}, PostgreSQL {version} as user {}", state.role, account.name);
    let Some(sealer) = keys::start(&own, &places, identity.cluster_id, &stop).await? else {
        return Ok(Ended::Stopped);
    };
    let early = Early::begin(
        heading.as_ref(),
        &config,
        &early::Replica {
            instance: &instance,
            journal: &journal,
            record: &places.node(&source.host).state(),
            cluster_id: identity.cluster_id,
            region: &name,
        },
    );
    let starting = Volume::start_held(
        VolumeOptions {
            sealer,
            copies: own.local_copies(),
            retain: config.retain,
            max_size_bytes: config.max_size_bytes,
            epoch: state.epoch(),
            repair_bytes_per_second: config.repair_bytes_per_second,
            scrub_every: config.scrub_every,
            writer,
            tenure,
            ..VolumeOptions::new(places.volume(), identity.cluster_id)
        },
        "start",
    );
    let begun = async { Ok((starting.await?, Endpoint::bind(Some(own.listen), &identity)?)) };
    let ((volume, hold), endpoint) = match begun.await {
        Ok(begun) => begun,
        Err(e) => {
            // What was begun has no other owner.
            if let Err(e) = early.end().await {
                tracing::error!("{e}");
            }
            return Err(e);
        }
    };
    config.restrict(&endpoint);
    let file = Arc::new(RegionFile::new(places.state(), state));
    log.tell_epoch(file.epoch());
    let orders = Arc::new(SignedOrders::new(endpoint.clone(), identity.cluster_id, &config));
    let (judging, cluster_id) = (orders.clone(), identity.cluster_id);
    let voter = Voter::new(name.clone(), &config, file.clone(), judging, endpoint.clone(), cluster_id);
    let names = Names::of(&config, &name);
    let door = Door { asked: Asked::Region, cluster_id: identity.cluster_id, names };
    let chronicle = Chronicle::new(Peers::new(endpoint.clone(), cluster_id));
    let in_force = InForce::new(source, config.clone());
    let parts = Arc::new(Parts {
        config,
        in_force,
        log,
        own,
        cluster_id,
        endpoint,
        orders,
        certificate: End::of(&places.identity()),
        server_certificate: End::of(&places.server_identity()),
        layout: places,
        volume,
        places: Arc::new(OwnPlaces::new(instance.clone())),
        instance,
        file: file.clone(),
        voter: voter.clone(),
        again: CancellationToken::new(),
        has_no_role: AtomicBool::new(!identity.certificate.has_role()),
        heading,
        journal,
        audit,
        chronicle,
        tracer: Tracer::of(name.as_str()),
    });
    chronicle::note_start(&parts).await;
    let doors = Arc::new(Doors::of(&parts));
    let owner =
        Owner::new(name.clone(), voter, file, RegionalCluster::new(parts.clone(), Hold::new(hold), early));
    let region = Arc::new(Region {
        door,
        parts,
        owner,
        health: Health::default(),
        load: load::Known::default(),
        slots: slots::Known::default(),
        nodes: nodes::Nodes::default(),
        moving: moving::Moving::default(),
        doors,
        logged: logged::Logged::default(),
        rehearsing: tokio::sync::Semaphore::new(rehearse::SESSIONS_MAX),
    });
    let seat: Arc<dyn Seat> = region.clone();
    region.voter.sit(Arc::downgrade(&seat));
    // Zones of their own join while the volume is being opened.
    let ending = CancellationToken::new();
    let mut serving = Task::spawn("answer peers", region.clone().answer_peers(ending.clone()));
    let asking = Task::spawn("ask PostgreSQL", region.clone().watch_postgresql());
    let mut telling = Task::spawn("tell monitoring", region.clone().tell_monitoring(ending.clone()));
    let mut clients = Task::spawn("serve clients", region.clone().serve_clients(ending.clone()));
    // They look on: they end with this function.
    let _noting = Task::spawn("note events", region.clone().note_events());
    let _sampling = Task::spawn("sample the cluster", region.clone().sample());
    let _carrying = Task::spawn("carry logical slots", region.clone().carry_slots());
    let _looking =
        Task::spawn("look at the load, if that is asked for", region.clone().watch_load_if_asked());
    let _finding = Task::spawn("read PostgreSQL's log", region.clone().read_postgresql_log());
    let _logging = Task::spawn("put PostgreSQL's log aside", region.clone().put_logs_aside());
    let _keeping = Task::spawn("keep the superuser's password", region.clone().keep_password());
    let _leading = Task::spawn("fail over when the primary is gone", region.clone().fail_over_when_gone());
    let _noting_redo = Task::spawn("note the redo that there is", region.clone().note_redo());
    let _reloading = Task::spawn("read the configuration again", region.clone().reload_when_told());
    let _telling = Task::spawn("note who is not let in", region.clone().note_refused());
    let _renewing = Task::spawn("use other certificates", region.clone().renew_certificates(identity));
    let _tidying = Task::spawn("tidy the places of tablespaces", region.clone().tidy_places());
    let _moving = Task::spawn("move the head when that is ordered", region.clone().move_when_ordered());
    let _moved = Task::spawn("note that the head has moved", region.clone().note_move());
    let _sealing = Task::spawn("use other keys", region.clone().renew_keys());
    let ended = tokio::select! {
        () = stop.cancelled() => Ok(Ended::Stopped),
        () = region.starts_again() => Ok(Ended::StartAgain),
        () = region.moving.over() => {
            region.leave(true).await;
            Ok(Ended::Follows(Duration::ZERO))
        }
        why = region.until_no_head() => {
            tracing::warn!("this host is the region's head no more: {why}; it follows");
            region.let_go(true).await;
            Ok(Ended::Follows(region.heard_none_for()))
        }
        deposed = region.volume.deposed() => region.overtaken(deposed).await,
        failed = region.volume_failed() => region.overtaken(failed).await,
        () = region.owner.clone().run() => Ok(Ended::Stopped),
        () = region.vote() => Ok(Ended::Stopped),
        // In one task with the owner and the voter: where that does not go on, no sign of life comes.
        never = manager::tell(|| region.in_words()) => match never {},
    };
    if let Ok(Ended::Follows(_)) = ended {
        // Nobody who waits for this host is to wait longer: the standby goes on, and all else ends with the
        // process.
        let _ = tokio::time::timeout(FAREWELL, region.endpoint.close()).await;
        return ended;
    }
    manager::stopping(match region.owner.part() {
        Part::Leading { .. } => "the secondaries are given the last redo, and PostgreSQL is stopped",
        _ => "PostgreSQL is stopped",
    });
    // The owner carries out nothing more: what runs is stopped here.
    drop(asking);
    region.voter.stop();
    ending.cancel();
    let _ = (&mut telling).await;
    let _ = (&mut clients).await;
    let _ = (&mut serving).await;
    let why = ended.as_ref().err().map_or_else(String::new, |e: &RegionError| format!(", as {e}"));
    region
        .journal
        .note(Kind::DaemonStopped, format!("region {name}: the daemon has stopped{why}; nothing runs here"));
    tracing::info!("region {name} has stopped");
    ended
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
    let role = config.region(name).map_or(Role::Secondary, |own| own.role);
    let first = Leadership::first(Epoch(1), primary);
    let id = runtime::random::draw();
    let state = RegionState::new(identity.cluster_id, name.clone(), role, first, id);
    state.save(&path)?;
    Ok(state)
}

impl observe::facts::Source for Region {
    fn tracer(&self) -> Tracer {
        self.parts.tracer.clone()
    }

    fn facts(
        &self,
        postgres: Result<observe::vitals::Vitals, String>,
    ) -> Pin<Box<dyn Future<Output = observe::facts::Facts> + Send + '_>> {
        Box::pin(async move {
            let record = self.voter.accepted();
            let now_us = runtime::clock::wall_us();
            observe::facts::Facts {
                region: self.own.name.clone(),
                epoch: record.epoch.max(self.state().epoch()),
                part: self.part_facts().await,
                trouble: self.owner.trouble(),
                volume: self.volume.status(),
                stored_bytes: self.volume.stored_bytes(),
                postgres,
                load: self.in_force().telemetry.load.then(|| self.load.told()),
                endpoints: self.doors.all_counts(),
                nodes: self.node_rows(),
                promoting: record.promotion.is_some(),
                past: record.history,
                certificate_left_s: self.certificates_end_s().saturating_sub(now_us / 1_000_000),
                now_us,
            }
        })
    }
}

impl Region {
    /// Ends this daemon as another one has the region's volume.
    async fn overtaken(&self, why: VolumeError) -> Result<Ended, RegionError> {
        if self.heading.is_none() || !head::is_overtaken(&why) {
            return Err(why.into());
        }
        if self.moving.is_said() {
            // The next head was faster than this one's end, for which nobody waits.
            let _ = tokio::time::timeout(moving::ENDS, self.moving.over()).await;
            self.leave(false).await;
            return Ok(Ended::Follows(Duration::ZERO));
        }
        tracing::warn!("{why}; it follows");
        self.let_go(false).await;
        Ok(Ended::Follows(self.heard_none_for()))
    }

    /// Votes for as long as it lives. Where another host may have been the head, it first shuts that out of
    /// the volume: what the region has promised is asked only then.
    async fn vote(&self) {
        if self.heading.as_ref().is_some_and(Heading::takes_over) {
            self.voter.greet();
        }
        self.become_head().await;
        self.voter.clone().watch().await;
    }

    /// How the region is, for whoever has started the daemon.
    fn in_words(&self) -> String {
        let seen = self.seen();
        let part = match self.owner.part() {
            Part::Starting if !self.volume.is_open() => "opens its volume".to_owned(),
            Part::Starting => "starting".to_owned(),
            Part::Following => format!("secondary of {}", seen.record.primary),
            Part::Leading { epoch } => format!("primary, epoch {epoch}"),
            Part::Stopping { .. } => "hands over: the writer is being stopped".to_owned(),
            Part::HandedOver { to, .. } => format!("has handed over to {to}"),
        };
        let mut words = format!("{}: {part}", self.own.name);
        let held = seen.held.map(|held| format!("commits are held: {}", held.why));
        for more in held.into_iter().chain(Some(seen.trouble).filter(|trouble| !trouble.is_empty())) {
            words = format!("{words}; {more}");
        }
        words
    }

    /// Returns when the volume cannot be opened.
    async fn volume_failed(&self) -> VolumeError {
        match self.volume.opened().await {
            Err(failed) => failed,
            // Segments may need a key that only other processes' copies told of.
            Ok(()) => match self.volume.check_keys() {
                Err(missing) => missing,
                Ok(()) => std::future::pending().await,
            },
        }
    }
}
