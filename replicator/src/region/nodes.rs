//! The region's nodes besides the host of this daemon: what is known of each, and what each is given: a copy
//! of the region's data, and its redo. What a node does with that is its own (`node/`).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use postgres::backup::pieces::Inventory;
use postgres::protocol::client::ReplicationClient;
use postgres::protocol::walsender::StandbyProgress;
use postgres::wal::segment::SegmentSize;
use primary::archive::{Archive, receive_inventory};
use proto::messages::refusal::Kind;
use proto::messages::{
    BackupOpen, BackupReady, FeedOpen, FeedReady, MAX_CONTROL_MESSAGE_BYTES, NodeOpen, NodeReport,
    NodeStatus, NodeWord, Refusal, SeedChunk, seed_chunk,
};
use proto::{Lsn, NodeName, RegionState as State, SystemId};
use runtime::clock::{micros, now, steady_us};
use runtime::task::{Task, blocking};
use secondary::feed::{self, Heard};
use secondary::heard::Heard as Told;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use transport::{Stream, TransportError};
use volume::{Claim, Volume};

use super::Region;
use super::moving::Told as ToldOfMoves;
use super::tablespaces::{BelowData, NoPlaces};
use crate::config::NodeConfig;
use crate::endpoint::way::Replica;
use crate::node::REPORT;
use crate::node::plan::Origin;
use crate::region_file::RegionState;
use crate::secrets;

/// A node whose last word is older than this is not reached any more.
const SILENT: Duration = Duration::from_secs(2);

/// A standby that has not said for so long how far it is does not go on. It says so every second.
const FROZEN: Duration = Duration::from_secs(3);

/// How often it is looked whether the region has come to have nodes.
const NO_NODES: Duration = Duration::from_secs(1);

/// How often the end of the region's redo is noted, to tell how old what a node lacks is.
const NOTE: Duration = Duration::from_millis(5);

/// How long the redo that a backup begins with may take to be durable.
const BACKUP_BEGINS: Duration = Duration::from_secs(30);

/// So many nodes are sent a backup at once. Each takes one of the writer's `max_wal_senders`, and the network
/// and disk that commits go by.
const BACKUPS_MAX: usize = 2;

/// What is known of the region's nodes.
#[derive(Debug)]
pub(crate) struct Nodes {
    known: Mutex<BTreeMap<NodeName, Arc<Node>>>,
    /// Counts the connections of nodes.
    connections: AtomicU64,
    /// When the region's redo ended where.
    told: Mutex<Told>,
    backups: Semaphore,
}

impl Default for Nodes {
    fn default() -> Nodes {
        Nodes {
            known: Mutex::default(),
            connections: AtomicU64::new(0),
            told: Mutex::default(),
            backups: Semaphore::new(BACKUPS_MAX),
        }
    }
}

/// What is known of a node.
#[derive(Debug, Default)]
struct Node {
    /// The connection that serves it; none while none does.
    attended: Mutex<Option<Attended>>,
    /// How far its standby has come.
    progress: watch::Sender<StandbyProgress>,
    /// When it said so last, since it is fed.
    reported: Mutex<Option<Instant>>,
    /// The data of it whose standby has asked for redo that is not kept any more; 0 for none.
    missing: AtomicU64,
    /// What is kept for its standby while that is not fed.
    handed: Mutex<Option<Arc<Claim>>>,
    /// When it was said last that two processes say that they are it.
    warned: Mutex<Option<Instant>>,
}

/// How often it is said that two processes say that they are the same node.
const WARN_EVERY: Duration = Duration::from_secs(60);

#[derive(Debug)]
struct Attended {
    number: u64,
    process: u64,
    /// Ends it, where the node has come again.
    over: CancellationToken,
    report: NodeReport,
    at: Instant,
}

impl Nodes {
    fn node(&self, name: &NodeName) -> Arc<Node> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).entry(name.clone()).or_default().clone()
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Node {
    fn attended(&self) -> MutexGuard<'_, Option<Attended>> {
        self.attended.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reported(&self) -> MutexGuard<'_, Option<Instant>> {
        self.reported.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn handed(&self) -> MutexGuard<'_, Option<Arc<Claim>>> {
        self.handed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it is time to say that two processes say that they are it.
    fn warns(&self) -> bool {
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        let due = warned.is_none_or(|at| at.elapsed() >= WARN_EVERY);
        if due {
            *warned = Some(now());
        }
        due
    }

    /// Keeps this for its standby until that is fed again, while the node is there.
    fn hand(&self, claim: Arc<Claim>) {
        let attended = self.attended();
        if attended.is_some() {
            *self.handed() = Some(claim);
        }
    }

    /// Its report, if it is not too old.
    fn report(&self) -> Option<NodeReport> {
        let attended = self.attended();
        attended.as_ref().filter(|node| node.at.elapsed() < SILENT).map(|node| node.report.clone())
    }

    /// How far its standby has applied the region's redo; none while that is not known.
    fn applied(&self) -> Option<Lsn> {
        self.reported().filter(|at| at.elapsed() < FROZEN).map(|_| self.progress.borrow().applied_lsn)
    }
}

impl Region {
    /// The region's nodes, by the configuration in force.
    pub(super) fn its_nodes(&self) -> Vec<NodeConfig> {
        let force = self.in_force();
        force.region(&self.own.name).map(|own| own.nodes.clone()).unwrap_or_default()
    }

    pub(super) fn its_node(&self, name: &str) -> Result<NodeConfig, Refusal> {
        let found = self.its_nodes().into_iter().find(|node| node.name.as_str() == name);
        found.ok_or_else(|| {
            let reason = format!(
                "region {} has no node '{name}' in its daemon's regions.toml: add [region.{0}.node.{name}] to the file, and have it read again: replicator reload",
                self.own.name
            );
            Refusal::new(Kind::NotAllowed, reason)
        })
    }

    /// What a copy of the region's data is a copy of; none while it has none, or does not know what its
    /// volume holds.
    pub(super) fn origin(&self) -> Option<(Origin, SystemId)> {
        let state = self.state();
        let system_id = copyable(&state).filter(|_| self.volume.is_open() && !self.volume.is_empty())?;
        (state.data_number != 0).then(|| (Origin::new(state.data_number), system_id))
    }

    /// What a node has said last, if that is not too long ago, and how far its standby has applied the
    /// region's redo.
    pub(super) fn known_of(&self, name: &NodeName) -> (Option<NodeReport>, Option<Lsn>) {
        let node = self.nodes.node(name);
        (node.report(), node.applied())
    }

    /// The nodes that are connected.
    pub(super) fn attended(&self) -> Vec<NodeName> {
        let names = self.its_nodes().into_iter().map(|own| own.name);
        names.filter(|name| self.nodes.node(name).attended().is_some()).collect()
    }

    /// Draws a number for the region's data, if they have none yet.
    async fn number_data(&self) -> Result<(), String> {
        let state = self.state();
        if state.data_number != 0 || copyable(&state).is_none() || !self.volume.is_open() {
            return Ok(());
        }
        let (file, number) = (self.file.clone(), runtime::random::draw::<u64>().max(1));
        let draw = move || {
            file.change(|state| {
                if state.data_number == 0 && copyable(state).is_some() {
                    state.data_number = number;
                }
            })
        };
        let drawn = blocking("number the region's data", draw).await;
        drawn.map_err(|e| e.to_string())?.map_err(|e| e.to_string())
    }

    /// Notes when the region's redo ended where, for as long as it lives.
    pub(super) async fn note_redo(self: Arc<Self>) {
        let (mut durable, mut noted_lsn) = (self.volume.watch_durable(), Lsn::ZERO);
        loop {
            // Nobody asks for it without them; they may come while everything goes on.
            if self.its_nodes().is_empty() {
                tokio::time::sleep(NO_NODES).await;
                continue;
            }
            let lsn = durable.borrow_and_update().lsn;
            if lsn < noted_lsn {
                // It has begun anew: what was before is of another line.
                *self.nodes.told() = Told::default();
            }
            noted_lsn = lsn;
            // Before the volume is open it ends nowhere.
            if lsn > Lsn::ZERO {
                self.nodes.told().heard(steady_us(), lsn);
            }
            // The volume lives as long as this.
            let _ = tokio::time::timeout(Duration::from_millis(100), durable.changed()).await;
            tokio::time::sleep(NOTE).await;
        }
    }

    /// Hears how a node is, and tells it what it has to know, until it goes.
    pub(super) async fn attend(&self, open: NodeOpen, mut stream: Stream) -> Result<(), TransportError> {
        self.until_headed().await;
        let own = match self.has_headed().and_then(|()| self.its_node(&open.node)) {
            Ok(own) => own,
            Err(refusal) => {
                stream.send(&NodeWord { refusal: Some(refusal), ..NodeWord::default() }).await?;
                stream.finish().await;
                return Ok(());
            }
        };
        let (name, node) = (&own.name, self.nodes.node(&own.name));
        let number = self.nodes.connections.fetch_add(1, Ordering::Relaxed) + 1;
        let over = CancellationToken::new();
        let (mut sender, mut receiver) = stream.split();
        let hearing = async {
            while let Some(report) = receiver.receive::<NodeReport>(MAX_CONTROL_MESSAGE_BYTES).await? {
                let mut attended = node.attended();
                match attended.as_ref() {
                    // The one that came last is the node.
                    Some(other) if other.number > number => return Ok(()),
                    Some(other) if other.number < number => {
                        // One that was killed has not said anything for longer than this.
                        let lives = other.at.elapsed() < REPORT * 2;
                        if other.process != open.process && lives && node.warns() {
                            tracing::warn!(
                                "node {name}: two processes say that they are it, and the newer one is taken; stop one of them"
                            );
                        }
                        other.over.cancel();
                    }
                    Some(_) => {}
                    None => tracing::info!("node {name} is reached"),
                }
                let (over, process, at) = (over.clone(), open.process, now());
                *attended = Some(Attended { number, process, over, report, at });
            }
            Ok(())
        };
        let telling = async {
            // A node that was taken out of the file is told so.
            let mut failed = String::new();
            let mut moving = self.moving.watch_told();
            while self.its_node(&open.node).is_ok() {
                if let Err(why) = self.number_data().await
                    && failed != why
                {
                    tracing::error!("node {name} is given nothing: {why}");
                    failed = why;
                }
                let origin = self.origin().map(|(origin, _)| origin.0).unwrap_or_default();
                let missing = node.missing.load(Ordering::Relaxed);
                let (may_lead, password, head) = match &self.heading {
                    Some(heading) => {
                        // To those alone that may take over.
                        let password = match own.may_lead() {
                            true => secrets::load(&self.layout).unwrap_or_default(),
                            false => String::new(),
                        };
                        (true, password, heading.host.to_string())
                    }
                    None => Default::default(),
                };
                let ToldOfMoves { to: moves_to, stopped_at, ended_lsn } = moving.borrow_and_update().clone();
                let stopped_us = stopped_at.map(|at| micros(at.elapsed()));
                let word = NodeWord {
                    refusal: None,
                    origin,
                    missing,
                    may_lead,
                    password,
                    head,
                    moves_to,
                    stopped_us,
                    ended_lsn: ended_lsn.map(|lsn| lsn.0),
                };
                sender.send(&word).await?;
                if stopped_us.is_some() {
                    sender.finish().await;
                    return Ok(());
                }
                // The sender lives as long as the region.
                let _ = tokio::time::timeout(REPORT, moving.changed()).await;
            }
            let refusal = self.its_node(&open.node).err();
            sender.send(&NodeWord { refusal, ..NodeWord::default() }).await
        };
        let ended = tokio::select! {
            ended = hearing => ended,
            ended = telling => ended,
            () = over.cancelled() => Ok(()),
        };
        if self.moving.is_said() {
            // It has it, or is gone.
            self.moving.note_heard(own.name.clone());
        }
        let mut attended = node.attended();
        if attended.as_ref().is_some_and(|attended| attended.number == number) {
            *attended = None;
            // What it needs is kept by age now: it may be gone for good.
            *node.handed() = None;
            tracing::warn!("node {name} is gone");
        }
        ended
    }

    /// Feeds a node's standby from the region's volume.
    pub(super) async fn feed_node(&self, open: FeedOpen, mut stream: Stream) -> Result<(), TransportError> {
        let busy = |why: &str| Err(Refusal::new(Kind::Busy, why));
        let found = self.its_node(&open.node).and_then(|own| match self.origin() {
            Some((origin, system_id)) if origin.0 == open.origin => {
                match self.nodes.node(&own.name).missing.load(Ordering::Relaxed) == open.data {
                    true => busy("its standby needs redo that the region does not keep any more"),
                    false => Ok((own.name, system_id)),
                }
            }
            Some(_) => busy("the region's redo has begun anew, and the node's data go with what was before"),
            None => busy("the region has no data yet, or its volume is being opened"),
        });
        let (name, system_id) = match found {
            Ok(found) => found,
            Err(refusal) => {
                stream.send(&FeedReady { refusal: Some(refusal) }).await?;
                stream.finish().await;
                return Ok(());
            }
        };
        stream.send(&FeedReady::default()).await?;
        let node = self.nodes.node(&name);
        let claim = node.handed().take();
        let claim = claim.unwrap_or_else(|| self.claim(&name));
        *node.reported() = None;
        let missing = watch::Sender::default();
        let keeping = keep(node.clone(), self.volume.clone(), claim.clone(), missing.subscribe(), open.data);
        let _keeping = Task::spawn("keep redo for a node's standby", keeping);
        let version = self.instance.installation().version.clone();
        let places: Arc<dyn feed::Places> = match open.carries_tablespaces {
            true => Arc::new(BelowData),
            false => Arc::new(NoPlaces { missing: missing.clone() }),
        };
        let progress = node.progress.clone();
        let heard = Heard { progress, missing, places: Some(places), ..Heard::default() };
        tracing::info!("the standby of node {name} is fed");
        let feeding = feed::serve_standby(stream, self.volume.clone(), system_id, &version, heard);
        tokio::select! {
            fed = feeding => match fed {
                Ok(()) => tracing::info!("the standby of node {name} closed its connection"),
                Err(e) => tracing::warn!("the connection of node {name}'s standby ended: {e}"),
            },
            // What it has goes on with nothing that the region has from here on.
            () = self.until_other_data(&open) => tracing::info!("the standby of node {name} is fed no more"),
        }
        node.hand(claim);
        Ok(())
    }

    /// Returns once the region has other data than those that a standby is fed for.
    async fn until_other_data(&self, open: &FeedOpen) {
        let is_same =
            |state: &RegionState| Origin::new(state.data_number).0 == open.origin && !state.rejoining;
        while is_same(&self.state()) && self.its_node(&open.node).is_ok() {
            tokio::time::sleep(REPORT).await;
        }
    }

    /// Keeps the redo from the oldest on that there is.
    fn claim(&self, name: &NodeName) -> Arc<Claim> {
        Arc::new(self.volume.claim(&format!("node {name}"), self.volume.bounds().horizon_lsn))
    }

    /// Sends a node a base backup of the region's PostgreSQL.
    pub(super) async fn send_backup(
        &self,
        open: BackupOpen,
        mut stream: Stream,
    ) -> Result<(), TransportError> {
        let mut begun = false;
        let sent = match self.its_node(&open.node) {
            Ok(own) => self.back_up(&own.name, &mut stream, &open, &mut begun).await,
            Err(refusal) => Err(refusal),
        };
        let name = &open.node;
        match sent {
            Ok(()) => tracing::info!("node {name} was sent a copy of the region's data"),
            Err(refusal) => {
                if refusal.kind() != Kind::Busy {
                    tracing::warn!("node {name} is sent no copy of the region's data: {}", refusal.reason);
                }
                match begun {
                    true => {
                        stream.send(&SeedChunk { body: Some(seed_chunk::Body::Refusal(refusal)) }).await?
                    }
                    false => {
                        stream
                            .send(&BackupReady { refusal: Some(refusal), ..BackupReady::default() })
                            .await?;
                    }
                }
            }
        }
        stream.finish().await;
        Ok(())
    }

    /// `begun` once the first answer has left.
    async fn back_up(
        &self,
        name: &NodeName,
        stream: &mut Stream,
        open: &BackupOpen,
        begun: &mut bool,
    ) -> Result<(), Refusal> {
        let busy = |why: &str| Refusal::new(Kind::Busy, why);
        fn failed(why: impl ToString) -> Refusal {
            Refusal::new(Kind::Failed, why.to_string())
        }
        let (origin, system_id) =
            self.origin().ok_or_else(|| busy("the region has no data yet, or its volume is being opened"))?;
        let _turn =
            self.nodes.backups.try_acquire().map_err(|_| busy("other nodes are sent copies first"))?;
        let instance = self.instance.clone();
        let look = move || (instance.tablespaces(), instance.control_data());
        let (tablespaces, control) = blocking("look at the data directory", look).await.map_err(failed)?;
        if !open.carries_tablespaces && !tablespaces.map_err(failed)?.is_empty() {
            let why = "there are tablespaces besides the default ones, and the node is of an earlier version, which has none: update it";
            return Err(failed(why));
        }
        let segment_size = control.map_or(SegmentSize::USUAL, |control| control.segment_size);
        let claim = self.claim(name);
        let connection = self.instance.local_connection();
        let client = ReplicationClient::connect(&connection).await.map_err(failed)?;
        let backup = client.base_backup(&format!("replicator node {name}")).await.map_err(failed)?;
        // A walreceiver asks to start where a WAL segment begins.
        let begin_lsn = backup.start_lsn.segment_begin(segment_size.bytes());
        let mut durable = self.volume.watch_durable();
        let there = durable.wait_for(|durable| durable.lsn >= begin_lsn);
        let late = |_| failed(format!("its redo from {begin_lsn} on is not durable yet"));
        tokio::time::timeout(BACKUP_BEGINS, there).await.map_err(late)?.map_err(failed)?;
        claim.advance(begin_lsn);
        self.still_kept(begin_lsn)?;
        let ready = BackupReady {
            refusal: None,
            origin: origin.0,
            total_bytes: backup.total_bytes,
            major: self.instance.installation().major.0,
            takes_inventory: open.tells_inventory,
            system_id: system_id.0,
        };
        stream.send(&ready).await.map_err(failed)?;
        *begun = true;
        let inventory = match open.tells_inventory {
            true => receive_inventory(stream).await.map_err(failed)?,
            false => Inventory::default(),
        };
        let mut archive = Archive::of(backup, inventory).map_err(failed)?;
        while let Some(chunk) = archive.next().await.map_err(failed)? {
            // The rest would be sent for nothing.
            self.still_kept(begin_lsn)?;
            stream.send(&chunk).await.map_err(failed)?;
        }
        self.nodes.node(name).hand(claim);
        Ok(())
    }

    /// The redo that a backup needs is kept still: no claim keeps more than `max_size`.
    fn still_kept(&self, begin_lsn: Lsn) -> Result<(), Refusal> {
        let horizon_lsn = self.volume.bounds().horizon_lsn;
        if horizon_lsn <= begin_lsn {
            return Ok(());
        }
        let why = format!(
            "the copy needs redo from {begin_lsn} on, and the oldest that the volume keeps is {horizon_lsn}: give [volume] max_size \
             more (`replicator reload` is enough)"
        );
        Err(Refusal::new(Kind::Failed, why))
    }

    /// When the region's redo ended where, by which it is told how old what a replica lacks is; none where
    /// the region does not know whether it is the newest itself.
    fn newest(&self) -> Option<Told> {
        let cluster = self.owner.cluster();
        match (cluster.leader(), cluster.follower()) {
            (Some(leader), _) => leader.facts().leads_surely().then(|| self.nodes.told().clone()),
            (None, Some(follower)) => Some(follower.inbound.state().heard),
            (None, None) => None,
        }
    }

    /// The nodes whose PostgreSQL can be read.
    pub(super) fn readable_nodes(&self) -> Vec<Replica> {
        let nodes = self.its_nodes();
        let Some((origin, _)) = self.origin().filter(|_| !nodes.is_empty()) else { return Vec::new() };
        let newest = self.newest();
        let readable = nodes.into_iter().filter_map(|own| {
            let at = own.postgres?;
            let node = self.nodes.node(&own.name);
            let streams = |report: &NodeReport| report.state == State::Streaming.as_str();
            node.report().filter(|report| streams(report) && report.origin == origin.0)?;
            let lag = behind(newest.as_ref(), node.applied());
            Some(Replica { node: own.name, at, lag, shown_lsn: node.progress.borrow().shown_lsn() })
        });
        readable.collect()
    }

    /// The nodes' rows of `status`.
    pub(super) fn node_rows(&self) -> Vec<NodeStatus> {
        let nodes = self.its_nodes();
        let newest = if nodes.is_empty() { None } else { self.newest() };
        let rows = nodes.into_iter().map(|own| {
            let node = self.nodes.node(&own.name);
            let (report, reached) = match node.report() {
                Some(report) => (report, true),
                None => (NodeReport::default(), false),
            };
            let applied_lsn = node.applied().filter(|_| reached && own.postgres.is_some());
            let lag = behind(newest.as_ref(), applied_lsn);
            let state = match (own.postgres, reached) {
                (_, false) => State::Unreachable.as_str().to_owned(),
                (Some(_), true) => report.state,
                (None, true) => String::new(),
            };
            NodeStatus {
                name: own.name.to_string(),
                zone: own.zone.map(String::from).unwrap_or_default(),
                state,
                applied_lsn: applied_lsn.map(|lsn| lsn.0),
                lag_ms: lag.map(|lag| u64::try_from(lag.as_millis()).unwrap_or(u64::MAX)),
                url: own
                    .postgres
                    .map(|address| secrets::url(address, &self.config.owner, None))
                    .unwrap_or_default(),
                detail: report.detail,
                seed_bytes: report.seed_bytes,
                seed_total_bytes: report.seed_total_bytes,
                seed_kept_bytes: report.seed_kept_bytes,
            }
        });
        rows.collect()
    }
}

/// How far a PostgreSQL that has applied all redo up to `applied_lsn` is behind; none while that is not
/// known.
fn behind(newest: Option<&Told>, applied_lsn: Option<Lsn>) -> Option<Duration> {
    let (newest, applied_lsn) = newest.zip(applied_lsn)?;
    let lag_us = newest.lag_us(steady_us(), applied_lsn).filter(|_| newest.covers(applied_lsn));
    lag_us.map(Duration::from_micros)
}

/// The system of the data that a region has, if a copy of them can be made.
fn copyable(state: &RegionState) -> Option<SystemId> {
    state.system_id.filter(|_| !state.rejoining)
}

/// Keeps the redo that a node's standby has not applied, however old it is, and notes that `data` of it need
/// some that is gone.
async fn keep(
    node: Arc<Node>,
    volume: Volume,
    claim: Arc<Claim>,
    mut missing: watch::Receiver<Option<Lsn>>,
    data: u64,
) {
    // What an earlier connection said is seen already.
    let mut progress = node.progress.subscribe();
    loop {
        tokio::select! {
            Ok(()) = progress.changed() => {
                let (segment, bounds) = (SegmentSize::USUAL.bytes(), volume.bounds());
                let applied_lsn = progress.borrow_and_update().applied_lsn;
                // A standby that starts asks from where its WAL segment begins.
                claim.advance(applied_lsn.segment_begin(segment));
                *node.reported() = Some(now());
                // It was given nothing that was not durable: what it has is of another line. A record that
                // ends a WAL segment counts for all of that, though the rest is still to come.
                let most_lsn = Lsn(bounds.durable_lsn.segment_begin(segment).0 + segment);
                if volume.is_open()
                    && applied_lsn > most_lsn
                    && node.missing.swap(data, Ordering::Relaxed) != data
                {
                    tracing::error!(
                        "a node's standby has applied redo up to {applied_lsn}, and the region's ends at {}; its data are copied anew",
                        bounds.durable_lsn
                    );
                }
            }
            Ok(()) = missing.changed() => {
                if missing.borrow_and_update().is_some() {
                    node.missing.store(data, Ordering::Relaxed);
                }
            }
            else => return,
        }
    }
}
