//! A node's PostgreSQL, and what keeps it following.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use postgres::backup::remains::drop_remains;
use postgres::backup::seed::{Coming, Seed};
use postgres::installation::Installations;
use postgres::instance::account::Account;
use postgres::instance::{Instance, InstanceError, InstanceOptions, Need, Own, Part, Stop};
use postgres::major::Major;
use postgres::protocol::client::ReplicationClient;
use postgres::sockets::socket_dir_for;
use postgres::vitals::Vitals;
use proto::SystemId;
use proto::messages::refusal::Kind as Refused;
use proto::messages::{BackupOpen, BackupReady, MAX_CONTROL_MESSAGE_BYTES, open};
use runtime::clock::now;
use runtime::task::{Task, blocking};
use secondary::seed::SeedError;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use transport::TransportError;

use super::feed::Feed;
use super::file::{NodeFile, NodeFileError};
use super::link::Link;
use super::plan::{Data, Deed, Facts, Origin, next};
use super::said::Said;
use super::{NodeError, REPORT, Source};
use crate::config::{Config, LogsConfig, NodeConfig, RegionConfig};
use crate::daemon::manager;
use crate::engine::{self, Engine, LEFT_RUNNING};
use crate::events::{Journal, Kind};
use crate::layout::Layout;
use crate::logs::put_postgres_aside;
use crate::preflight::low_settings;

/// How often it is looked what is to be done, besides at each word of the region's daemon.
const LOOK: Duration = Duration::from_millis(500);

/// How often it is looked whether PostgreSQL runs with less than the writer's redo asks for.
const LOOK_AT_NEEDS: Duration = Duration::from_secs(10);

/// How often PostgreSQL is asked whether it answers.
const ASK: Duration = Duration::from_secs(1);

/// How long PostgreSQL may take to answer.
const ANSWER: Duration = Duration::from_secs(2);

/// The wait before what failed is tried again, at first; it doubles with each …
const AGAIN: Duration = Duration::from_secs(1);

/// … up to this.
const AGAIN_MAX: Duration = Duration::from_secs(60);

/// How long a restartpoint may take before a head moves here.
const PREPARES: Duration = Duration::from_secs(10);

/// How long the region's daemon is waited for before PostgreSQL is started without its word.
const FIRST_WORD: Duration = Duration::from_secs(10);

/// Why a copy of the region's data was not made.
#[derive(Debug, thiserror::Error)]
enum CopyError {
    #[error("the region's daemon is not reached")]
    NoWay,
    #[error("{0}")]
    Busy(String),
    #[error("{0}")]
    Refused(String),
    #[error(transparent)]
    Transport(#[from] TransportError),
    #[error(transparent)]
    Seed(#[from] SeedError),
    #[error(transparent)]
    Instance(#[from] InstanceError),
    #[error(transparent)]
    File(#[from] NodeFileError),
    #[error("the walsender's socket: {0}")]
    Socket(std::io::Error),
    #[error("{0}")]
    Blocking(String),
}

/// A node's PostgreSQL, and what keeps it following.
pub(super) struct Replica {
    region: RegionConfig,
    node: NodeConfig,
    link: Arc<Link>,
    instance: Instance,
    file: NodeFile,
    journal: Journal,
    said: Arc<Said>,
    /// How large logs get.
    logs: Mutex<LogsConfig>,
}

/// The wait before PostgreSQL is given again what it did not take.
const RELOAD_AGAIN: Duration = Duration::from_secs(5);

/// What a standby was last seen to need.
struct Looked {
    at: Instant,
    needs: Vec<Need>,
}

/// A PostgreSQL that runs, and what feeds it.
struct Following {
    engine: Engine,
    _feed: Task<()>,
}

impl Replica {
    pub(super) fn new(
        config: &Config,
        layout: &Layout,
        region: &RegionConfig,
        node: &NodeConfig,
        listen: SocketAddr,
        link: Arc<Link>,
    ) -> Result<Replica, NodeError> {
        let places = layout.region(&region.name).node(&node.name);
        // One of before nodes had any of their own has its region's.
        let of_region = layout.region(&region.name).server_identity();
        let own = places.server_identity();
        let has_own = own.join("cert.pem").exists() || !of_region.join("cert.pem").exists();
        let certificate = if has_own { own } else { of_region };
        let authorities =
            [places.identity(), layout.region(&region.name).identity()].map(|own| own.join("ca.pem"));
        let [own, of_region] = authorities;
        let authorities = if own.exists() { own } else { of_region };
        let instance = Instance::new(InstanceOptions {
            installations: Installations::find(config.bin_dir_of(region))?,
            account: Account::resolve(config.os_user.as_deref())?,
            data_dir: places.pgdata(),
            socket_dir: socket_dir_for(places.directory()),
            listen,
            log_file: places.postgresql_log(),
            name: format!("{}-{}", region.name, node.name),
            settings: config.settings_of(region),
            hba: config.rules(),
            ident: config.map_lines(link.cluster_id),
            authorities: Some(authorities),
            certificate: Some(certificate),
        });
        Ok(Replica {
            file: NodeFile::open(&places.state(), link.cluster_id, &region.name, &node.name)?,
            journal: Journal::open(&places.events())?,
            region: region.clone(),
            node: node.clone(),
            link,
            instance,
            said: Arc::default(),
            logs: Mutex::new(config.logs),
        })
    }

    /// Keeps PostgreSQL following until `stop`, and stops it then. Where this is dropped PostgreSQL goes on.
    pub(super) async fn run(&self, source: &Source, stop: &CancellationToken) {
        let mut following = None;
        if !self.instance.is_standby()
            && let Err(e) = self.instance.stop(Stop::Immediate, LEFT_RUNNING).await
        {
            tracing::error!("the writer of the time as the head: {e}");
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.link.talk(|| self.said.report(self.data())) => {}
            () = self.keep(&mut following) => {}
            () = self.reload_when_told(source) => {}
            () = put_postgres_aside(&self.instance, || self.logs()) => {}
            () = self.ask_postgres() => {}
            () = self.prepare_for_moves() => {}
        }
        if let Err(e) = self.stop(&mut following, Stop::Fast).await {
            tracing::error!("{e}");
        }
    }

    /// Has PostgreSQL stop, and does not wait for that: it has applied all that the head had, which has
    /// handed over to this host, and is to be started as the writer (`region/early.rs`).
    pub(super) fn begin_to_stop(&self) {
        self.instance.begin_to_stop(Stop::Fast);
    }

    /// How the replica is, for whoever has started the node.
    pub(super) fn in_words(&self) -> String {
        let report = self.said.report(self.data());
        match report.detail.is_empty() {
            true => format!("its replica is {}", report.state),
            false => format!("its replica is {}: {}", report.state, report.detail),
        }
    }

    fn logs(&self) -> LogsConfig {
        *self.logs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The data that are here, whole. Those that a writer had here may have what nobody else has.
    fn data(&self) -> Option<Data> {
        self.file.data().filter(|_| self.instance.exists() && self.instance.is_standby())
    }

    /// What the data are a copy of with which this host could take over.
    pub(super) fn could_lead(&self) -> Option<Origin> {
        let data = self.data().filter(|_| !self.said.copying.load(Ordering::Relaxed))?;
        let missing = self.link.word.borrow().as_ref().and_then(|word| word.missing);
        (missing != Some(data.id)).then_some(data.origin)
    }

    /// Notes that this host has a record of its own as a node, whatever is in it.
    pub(super) fn note(&self) -> Result<(), NodeFileError> {
        self.file.set(self.file.data())
    }

    /// Does what is to be done, for ever.
    async fn keep(&self, following: &mut Option<Following>) {
        let mut word = self.link.word.subscribe();
        let (begun, mut pause, mut failed) = (now(), AGAIN, String::new());
        let mut looked = Looked { at: begun, needs: Vec::new() };
        loop {
            let facts = Facts {
                data: self.data(),
                runs: following.is_some(),
                word: word.borrow_and_update().clone(),
                waited: begun.elapsed() >= FIRST_WORD,
            };
            let tried = match next(&facts) {
                Deed::Rest(why) => {
                    let trouble = following.as_ref().and_then(|following| following.engine.trouble());
                    self.said.runs.store(following.is_some() && trouble.is_none(), Ordering::Relaxed);
                    self.said.say(trouble.or(why.map(str::to_owned)).unwrap_or_default());
                    if self.said.fed.load(Ordering::Relaxed) > 0 {
                        pause = AGAIN;
                        // It goes on with what it has: what a copy that was given up left serves nothing.
                        let options = self.instance.options();
                        let (data_dir, account) = (options.data_dir.clone(), options.account.clone());
                        let drop = move || drop_remains(&data_dir, &account);
                        if let Ok(Err(e)) = blocking("drop a copy's remains", drop).await {
                            tracing::warn!("{e}");
                        }
                    }
                    if following.is_some() {
                        self.mend(&mut looked).await;
                    }
                    // The sender lives as long as this.
                    let _ = tokio::time::timeout(LOOK, word.changed()).await;
                    continue;
                }
                Deed::Start => self.start().await.map(|started| *following = Some(started)),
                Deed::Copy { why, serves } => self.copy_data(following, why, serves).await,
            };
            let Err(e) = tried else { continue };
            if failed != e.to_string() {
                failed = e.to_string();
                tracing::warn!("{failed}; it is tried again");
            }
            self.said.say(&failed);
            // Others are sent theirs first, or the region's daemon is away: that is no failure of this node.
            let soon = matches!(e, CopyError::Busy(_) | CopyError::NoWay);
            tokio::time::sleep(if soon { AGAIN } else { pause }).await;
            if !soon {
                pause = (pause * 2).min(AGAIN_MAX);
            }
        }
    }

    /// Asks PostgreSQL each second as a client would, for ever: a process that exists may answer nobody.
    async fn ask_postgres(&self) {
        let mut missed = 0;
        loop {
            tokio::time::sleep(ASK).await;
            let asked = async {
                let mut client = ReplicationClient::connect(&self.instance.watching_connection()).await?;
                client.show("server_version").await
            };
            let runs = || self.said.runs.load(Ordering::Relaxed);
            let why = match tokio::time::timeout(ANSWER, asked).await {
                _ if !runs() => None,
                Ok(Ok(_)) => None,
                Ok(Err(e)) => Some(e.to_string()),
                Err(_) => Some(format!("no answer within {} s", ANSWER.as_secs())),
            };
            missed = if why.is_some() { missed + 1 } else { 0 };
            // One miss may be a restart that is not known yet.
            let words = why.filter(|_| missed > 1).map(|why| format!("PostgreSQL does not answer: {why}"));
            self.said.is_silent(words.unwrap_or_default());
        }
    }

    /// Answers each move of the head that it has heard of it, for ever. Where it moves here, PostgreSQL first
    /// writes what it would write when it is stopped: as the head has just made a checkpoint, it is
    /// stopped, and started as the writer, within moments.
    async fn prepare_for_moves(&self) {
        let mut moves_to = self.link.moves_to.subscribe();
        loop {
            let to = moves_to.borrow_and_update().clone();
            if to == self.node.name.as_str() {
                let writing = Box::pin(self.instance.checkpoint());
                let written = tokio::time::timeout(PREPARES, writing).await;
                let failed = match written {
                    Ok(Ok(())) => None,
                    Ok(Err(e)) => Some(e.to_string()),
                    Err(_) => Some(format!("not done within {} s", PREPARES.as_secs())),
                };
                if let Some(why) = failed {
                    tracing::warn!(
                        "a restartpoint before this host becomes the head: {why}; it goes on without"
                    );
                }
            }
            self.said.is_ready_for(&to);
            // The sender lives as long as this.
            let _ = moves_to.changed().await;
        }
    }

    /// A standby stops replay where the writer's settings were raised above its own: it is started again with
    /// what it needs.
    async fn mend(&self, looked: &mut Looked) {
        if looked.at.elapsed() < LOOK_AT_NEEDS {
            return;
        }
        looked.at = now();
        let instance = self.instance.clone();
        let needs = blocking("look at what the standby needs", move || instance.needs().unwrap_or_default());
        let needs = needs.await.unwrap_or_default();
        if needs == looked.needs {
            return;
        }
        let asked = async {
            let mut session = self.instance.session(ANSWER).await.map_err(|e| e.to_string())?;
            Vitals::ask(&mut session, ANSWER).await.map_err(|e| e.to_string())
        };
        // One that does not answer is asked again.
        let Ok(vitals) = asked.await else { return };
        let low = low_settings(&vitals, &needs);
        looked.needs = needs;
        if low.is_empty() {
            return;
        }
        tracing::warn!("{}: PostgreSQL is started again with that", low.join("; "));
        if let Err(e) = engine::restart(&self.instance).await {
            tracing::error!("{e}");
        }
    }

    /// Stops PostgreSQL: the one that is kept running, if one is, and else `how` one whose stop was given up,
    /// or that a process which was killed has left running.
    async fn stop(&self, following: &mut Option<Following>, how: Stop) -> Result<(), InstanceError> {
        if let Some(Following { engine, .. }) = following.take()
            && let Err(e) = engine.stop().await
        {
            tracing::error!("{e}");
        }
        self.instance.stop(how, LEFT_RUNNING).await
    }

    /// Starts PostgreSQL on the data that are here, and feeds it.
    async fn start(&self) -> Result<Following, CopyError> {
        self.instance.configure(Part::Standby)?;
        let feed = Feed {
            link: self.link.clone(),
            data: self.data().unwrap_or_default(),
            user_id: self.instance.options().account.user_id,
            said: self.said.clone(),
        };
        let feed = feed.listen(&self.instance).map_err(CopyError::Socket)?;
        let engine = Engine::start(self.instance.clone(), self.journal.clone());
        Ok(Following { engine, _feed: feed })
    }

    /// Replaces the data that are here by a copy of the region's. Where PostgreSQL runs on them, they serve
    /// until that is whole.
    async fn copy_data(
        &self,
        following: &mut Option<Following>,
        why: &str,
        serves: bool,
    ) -> Result<(), CopyError> {
        if !serves {
            self.stop(following, Stop::Immediate).await?;
        }
        let copied = self.take_copy(following, why).await;
        self.said.copying.store(false, Ordering::Relaxed);
        self.said.copying_bytes.store(0, Ordering::Relaxed);
        self.said.kept_bytes.store(0, Ordering::Relaxed);
        let (name, node) = (&self.region.name, &self.node.name);
        match &copied {
            Ok(()) => self.journal.note(
                Kind::SeedOver,
                format!("node {node} of {name}: its copy of the region's data is in place; it follows"),
            ),
            Err(CopyError::Busy(_) | CopyError::NoWay) => {}
            Err(e) => self.journal.note(
                Kind::SeedFailed,
                format!("node {node} of {name}: the region's data were not copied, {e}; it is tried again"),
            ),
        }
        copied
    }

    async fn take_copy(&self, following: &mut Option<Following>, why: &str) -> Result<(), CopyError> {
        let connection = self.link.way.borrow().clone().ok_or(CopyError::NoWay)?;
        let options = self.instance.options();
        let node = self.node.name.to_string();
        let purpose =
            open::Purpose::Backup(BackupOpen { node, tells_inventory: true, carries_tablespaces: true });
        let mut stream = connection.open_stream(&self.link.open(purpose)).await?;
        let ready: Option<BackupReady> = stream.receive(MAX_CONTROL_MESSAGE_BYTES).await?;
        let ready = ready.ok_or(TransportError::Finished)?;
        match ready.refusal {
            Some(refusal) if refusal.kind() == Refused::Busy => return Err(CopyError::Busy(refusal.reason)),
            Some(refusal) => return Err(CopyError::Refused(refusal.reason)),
            None => {}
        }
        if let Some(why) = options.installations.lacks(Major(ready.major)) {
            return Err(CopyError::Refused(why));
        }
        tracing::info!("the data of region {} are copied, as {why}", self.region.name);
        self.said.copying.store(true, Ordering::Relaxed);
        self.said.copying_bytes.store(ready.total_bytes, Ordering::Relaxed);
        let (data_dir, account) = (options.data_dir.clone(), options.account.clone());
        let coming = Coming {
            system_id: SystemId(ready.system_id),
            total_bytes: ready.total_bytes,
            takes_inventory: ready.takes_inventory,
            // All of them lie below the data directory, as its redo has them.
            places: Vec::new(),
        };
        let begin = move || Seed::begin(&data_dir, &account, coming);
        let seed =
            blocking("begin a copy", begin).await.map_err(|e| CopyError::Blocking(e.to_string()))??;
        let progress = seed.progress();
        let receiving = async {
            if ready.takes_inventory {
                secondary::seed::tell_inventory(&mut stream, &seed).await?;
            }
            secondary::seed::receive(&mut stream, seed).await
        };
        let counting = async {
            loop {
                self.said.copied_bytes.store(progress.bytes(), Ordering::Relaxed);
                self.said.kept_bytes.store(progress.kept_bytes(), Ordering::Relaxed);
                tokio::time::sleep(REPORT).await;
            }
        };
        let (unpacked, consistent_lsn) = tokio::select! {
            received = receiving => received?,
            () = counting => return Err(CopyError::NoWay),
        };
        // From here to the end there are none, should this be interrupted.
        self.file.set(None)?;
        self.stop(following, Stop::Immediate).await?;
        let installed = blocking("put a copy in place", move || unpacked.install()).await;
        installed.map_err(|e| CopyError::Blocking(e.to_string()))??;
        // Zero is none's.
        self.instance.configure(Part::Standby)?;
        let id = runtime::random::draw::<u64>().max(1);
        self.file.set(Some(Data { id, origin: Origin(ready.origin) }))?;
        tracing::info!(lsn = %consistent_lsn, "the copy is in place; it is consistent from {consistent_lsn} on");
        Ok(())
    }

    /// Reads the file again each time that is asked for by a signal, and gives PostgreSQL what is its own;
    /// and has it take another certificate once that lies there.
    async fn reload_when_told(&self, source: &Source) {
        loop {
            let taken = tokio::select! {
                () = source.again.notified() => {
                    manager::reloading();
                    let reloaded = self.reload(source).await;
                    manager::serving();
                    reloaded.inspect(|()| tracing::info!("regions.toml was read again")).inspect_err(|why| {
                        tracing::warn!("regions.toml was read again and is not taken: {why}");
                    })
                }
                () = self.instance.until_another_certificate() => {
                    self.instance.take_certificate().await.map_err(|e| e.to_string()).inspect_err(|why| {
                        tracing::warn!("PostgreSQL does not take its other certificate: {why}");
                    })
                }
            };
            if taken.is_err() {
                tokio::time::sleep(RELOAD_AGAIN).await;
            }
        }
    }

    async fn reload(&self, source: &Source) -> Result<(), String> {
        let file = source.file.clone();
        let read = blocking("read regions.toml", move || Config::load(&file).map_err(|e| e.to_string()));
        let config = read.await.map_err(|e| e.to_string())??;
        let region = config.region(&self.region.name).ok_or("the file does not have this region")?;
        source.log.limit(config.logs);
        config.restrict(&self.link.endpoint);
        *self.logs.lock().unwrap_or_else(PoisonError::into_inner) = config.logs;
        let (settings, hba) = (config.settings_of(region), config.rules());
        let own = Own { settings, hba, ident: config.map_lines(self.link.cluster_id) };
        let took = self.instance.reload(own).await.map_err(|e| e.to_string())?;
        for (setting, took) in took {
            tracing::info!("{setting}: {took:?}");
        }
        Ok(())
    }
}
