//! A node of a region beside the host of its daemon: `replicator run --region R --node N`.
//!
//! It holds the copies of its zone, as a zone's process does, and a PostgreSQL that follows the region's
//! redo: a [`replica`]. It says how it is, and hears what it needs, over one stream to the region's daemon
//! ([`link`]; over there it is `region/nodes.rs`). What it does with its PostgreSQL is decided in [`plan`].

mod feed;
pub mod file;
mod guide;
mod link;
pub mod plan;
mod replica;
mod said;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use coordination::succession::{Claim, Facts, stands};
use postgres::installation::InstallationError;
use postgres::instance::account::AccountError;
use proto::messages::NodeReport;
use proto::{Lsn, NodeName, RegionName};
use runtime::task::{Task, Tasks};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use transport::{Endpoint, TransportError};

use crate::config::{Config, NodeConfig};
use crate::daemon::enter::{EnterError, enter_node};
use crate::daemon::{manager, renewal};
use crate::endpoint::Kind;
use crate::endpoint::door::Doors;
use crate::layout::{Layout, make_passable};
use crate::logs::DaemonLog;
use crate::region_file::forget_a_stand;
use crate::zone::hearing::{Hearing, LastHead};
use crate::zone::{self, ZoneError};
use file::NodeFileError;
use guide::ThroughHead;
use link::{KeepsPassword, Link};
use plan::Origin;
use replica::Replica;

/// How often the node says how it is, and the region's daemon what the node has to know.
pub const REPORT: Duration = Duration::from_millis(250);

/// Why a node cannot run.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// `regions.toml` has no such region.
    #[error("there is no region '{name}' in regions.toml; there are: {known}")]
    UnknownRegion {
        /// The name asked for.
        name: RegionName,
        /// The regions there are.
        known: String,
    },
    /// `regions.toml` has no such node.
    #[error("region {region} has no node '{name}' in regions.toml; there are: {known}")]
    Unknown {
        /// The region.
        region: RegionName,
        /// The name asked for.
        name: NodeName,
        /// The nodes there are.
        known: String,
    },
    /// See [`EnterError`].
    #[error(transparent)]
    Enter(#[from] EnterError),
    /// See [`NodeFileError`].
    #[error(transparent)]
    File(#[from] NodeFileError),
    /// See [`ZoneError`].
    #[error(transparent)]
    Zone(#[from] ZoneError),
    /// See [`InstallationError`].
    #[error(transparent)]
    Installation(#[from] InstallationError),
    /// See [`AccountError`].
    #[error(transparent)]
    Account(#[from] AccountError),
    /// See [`TransportError`].
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The directory or the journal of events cannot be used.
    #[error("the node's directory: {0}")]
    Io(#[from] std::io::Error),
}

/// Where a node's configuration is from, to be read again.
#[derive(Debug, Clone)]
pub struct Source {
    /// The file.
    pub file: PathBuf,
    /// Told when it is to be read again.
    pub again: Arc<Notify>,
    /// What this process says, whose limits the file has.
    pub log: DaemonLog,
    /// For how long this host had heard no head of its region when the process began.
    pub silent: Duration,
}

/// How often it is looked whether this host is to take over.
const LOOK: Duration = Duration::from_millis(50);

/// How a node ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It was told to stop.
    Stopped,
    /// It stands for the region's head. PostgreSQL goes on, or is ending where the head has handed over; all
    /// else is to end with the process.
    Stands(Stands),
}

/// How a host comes to stand for the region's head.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stands {
    /// For how long it had heard no head.
    pub silent: Duration,
    /// Where the head has handed over to it: when the writer was stopped for that, as
    /// [`runtime::clock::boottime_us`] tells it on this host.
    pub stopped_at_us: Option<u64>,
    /// Where that writer's redo ends, all of which the replica here has applied; none where there was none.
    pub ended_lsn: Option<Lsn>,
}

/// A host that may take over as the region's head.
struct Candidate {
    hearing: Arc<Hearing>,
    /// What it was as the head, if it was.
    record: PathBuf,
    own: NodeName,
    /// Those that may, in the order of the file.
    all: Vec<NodeName>,
}

impl Candidate {
    /// Returns once this host stands.
    async fn until_it_stands(&self, replica: &Replica) -> Stands {
        loop {
            self.hearing.until_handed_over(LOOK).await;
            let last = self.hearing.last();
            if self.hearing.in_this_process() && self.record.exists() {
                // Another host is the head: what this one remembers is old from now on.
                tracing::info!("another host is the region's head: this one follows");
                if let Err(e) = std::fs::remove_file(&self.record) {
                    tracing::error!("{}: {e}; trying again", self.record.display());
                }
            }
            let follows = |last: &LastHead| {
                let same = |origin: Origin| !last.origin.is_empty() && origin.0 == last.origin;
                last.may_be_followed && replica.could_lead().is_some_and(same)
            };
            let claim = match &last {
                _ if self.record.exists() => Claim::Resumes,
                Some(last) if follows(last) => Claim::Replica,
                _ => Claim::None,
            };
            let last = last.map(|last| last.name).unwrap_or_default();
            let before = self.all.iter().take_while(|name| **name != self.own);
            let rank = u32::try_from(before.filter(|name| name.as_str() != last).count()).unwrap_or(u32::MAX);
            let (silent, after) = (self.hearing.silent_here(), self.hearing.after);
            let another_stands = self.hearing.another_stands();
            let before = self.hearing.before();
            let told = self.hearing.handed_over().filter(|told| told.to == self.own.as_str());
            let handed_over = told.is_some();
            if stands(&Facts { claim, silent, before, another_stands, handed_over, after, rank }) {
                let silent = self.hearing.silent();
                match &told {
                    Some(_) => tracing::warn!("the region's head has handed over: this host stands for it"),
                    None => tracing::warn!(
                        "the region's head was not heard for {} ms: this host stands for it",
                        silent.as_millis()
                    ),
                }
                let (stopped_at_us, ended_lsn) = match told {
                    Some(told) => (Some(told.stopped_at_us), told.ended_lsn),
                    None => (None, None),
                };
                return Stands { silent, stopped_at_us, ended_lsn };
            }
        }
    }
}

/// Runs node `node` of region `name` until `stop`, or until it stands for the region's head.
///
/// # Errors
/// When it cannot start; what to do is in the error's words.
pub async fn run(
    config: Config,
    source: Source,
    layout: Layout,
    name: RegionName,
    node: NodeName,
    stop: CancellationToken,
) -> Result<Ended, NodeError> {
    let region = config
        .region(&name)
        .cloned()
        .ok_or_else(|| NodeError::UnknownRegion { name: name.clone(), known: config.region_names() })?;
    let home = region.home().filter(|home| home.name == node && region.take_over_after.is_some());
    let own = region.node(&node).cloned().or(home).ok_or_else(|| {
        let known: Vec<&str> = region.nodes.iter().map(|node| node.name.as_str()).collect();
        NodeError::Unknown { region: name.clone(), name: node.clone(), known: known.join(", ") }
    })?;
    let places = layout.region(&name);
    make_passable(places.node(&node).directory())?;
    let (_lock, identity, shown) = enter_node(&places, &places.node(&node).lock(), &name, &node)?;
    tracing::info!("node {node} of region {name}");
    let endpoint = Endpoint::bind(None, &identity)?;
    config.restrict(&endpoint);
    let heard = places.node(&node).heard();
    let hearing = region.take_over_after.map(|after| Arc::new(Hearing::new(after, heard, source.silent)));
    let candidates = region.candidates();
    let as_head = places.headed_by(&node);
    let may_lead = candidates.iter().any(|candidate| candidate.name == node);
    forget_a_stand(&as_head.state());
    if region.take_over_after.is_none() {
        // Whom this host heard before that was taken out says nothing by the time it is put in again.
        let _ = std::fs::remove_file(places.node(&node).heard());
    }
    let keeps_password = own.postgres.filter(|_| may_lead).map(|listen| KeepsPassword {
        layout: as_head.clone(),
        owner: config.owner.clone(),
        listen,
    });
    let link = Link {
        hearing: hearing.clone(),
        keeps_password,
        place: region.place(),
        node: node.clone(),
        process: runtime::random::draw(),
        cluster_id: identity.cluster_id,
        endpoint,
        word: watch::Sender::default(),
        moves_to: watch::Sender::default(),
        way: watch::Sender::default(),
    };
    let link = Arc::new(link);
    let replica = match own.postgres {
        Some(listen) => Some(Arc::new(Replica::new(&config, &layout, &region, &own, listen, link.clone())?)),
        None => None,
    };
    let candidate = hearing.clone().filter(|_| may_lead).map(|hearing| Candidate {
        hearing,
        record: as_head.state(),
        own: node.clone(),
        all: candidates.into_iter().map(|candidate| candidate.name).collect(),
    });
    if let Some(replica) = replica.as_ref().filter(|_| may_lead) {
        replica.note()?;
    }
    let doors = Doors::new(
        format!("node {node} of region {name}"),
        places.node(&node).server_identity(),
        config.endpoints,
        ThroughHead::new(link.clone()),
    );
    let clients = serve_clients(Arc::new(doors), own.clone(), stop.clone());
    // The copies are served whatever PostgreSQL's disk does: in a task of their own.
    let serving = own.zone.map(|zone| {
        let holder = zone::Holder { zone, node: Some(node.clone()) };
        let running = zone::run(config, layout, name.clone(), holder, hearing, stop.clone());
        Task::spawn("hold a zone's copies", running)
    });
    let copies = async {
        match serving {
            Some(serving) => serving.await.map_err(|e| NodeError::Io(std::io::Error::other(e)))??,
            None => stop.cancelled().await,
        }
        Ok::<(), NodeError>(())
    };
    let in_words = || {
        let way = if link.way.borrow().is_some() { "" } else { "; the region's daemon is not reached" };
        let how = replica.as_ref().map_or_else(|| "holds copies".to_owned(), |replica| replica.in_words());
        format!("node {node} of {name}: {how}{way}")
    };
    let follows = async {
        match &replica {
            Some(replica) => replica.run(&source, &stop).await,
            // There is nothing to be said but that it is there.
            None => tokio::select! {
                () = link.talk(NodeReport::default) => {}
                () = stop.cancelled() => {}
            },
        }
        link.endpoint.close().await;
        Ok(())
    };
    let stops = async {
        stop.cancelled().await;
        manager::stopping("PostgreSQL is stopped");
        Ok::<(), NodeError>(())
    };
    let works = Box::pin(async { tokio::try_join!(copies, follows, stops) });
    let standing = async {
        match (&candidate, &replica) {
            (Some(candidate), Some(replica)) => candidate.until_it_stands(replica).await,
            _ => std::future::pending().await,
        }
    };
    let renewing = Box::pin(renewal::watch(&link.endpoint, shown, &identity, |_| {}));
    tokio::select! {
        done = works => drop(done?),
        never = clients => match never {},
        // Nobody is waited for who may be gone.
        stands = standing => {
            if let Some(replica) = replica.as_ref().filter(|_| stands.ended_lsn.is_some()) {
                replica.begin_to_stop();
            }
            return Ok(Ended::Stands(stands));
        }
        never = renewing => match never {},
        never = manager::tell(in_words) => match never {},
    }
    tracing::info!("node {node} of region {name} has stopped");
    Ok(Ended::Stopped)
}

/// Takes clients in where the file says so; those that are there when it is dropped are let go.
async fn serve_clients(
    doors: Arc<Doors<ThroughHead>>,
    own: NodeConfig,
    stop: CancellationToken,
) -> std::convert::Infallible {
    let open = Tasks::new();
    let given = [(Kind::Writer, own.writer_endpoint), (Kind::Reader, own.reader_endpoint)];
    for (kind, address) in given.into_iter().filter_map(|(kind, address)| Some((kind, address?))) {
        open.spawn(doors.clone().open(kind, address, stop.clone()));
    }
    doors.guide().watch().await;
    std::future::pending().await
}
