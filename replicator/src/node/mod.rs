//! A node of a region beside the host of its daemon: `replicator run --region R --node N`.
//!
//! It holds the copies of its zone, as a zone's process does, and a PostgreSQL that follows the region's
//! redo: a [`replica`]. It says how it is, and hears what it needs, over one stream to the region's daemon
//! ([`link`]; over there it is `region/nodes.rs`). What it does with its PostgreSQL is decided in [`plan`].

mod feed;
pub(crate) mod file;
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
use proto::{NodeName, RegionName};
use runtime::task::Task;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use transport::{Endpoint, TransportError};

use crate::config::Config;
use crate::daemon::enter::{EnterError, enter};
use crate::daemon::renewal;
use crate::layout::{Layout, make_passable};
use crate::logs::DaemonLog;
use crate::zone::hearing::{Hearing, LastHead};
use crate::zone::{self, ZoneError};
use file::NodeFileError;
use link::Link;
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
}

/// How often it is looked whether this host is to take over.
const LOOK: Duration = Duration::from_millis(50);

/// How a node ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It was told to stop.
    Stopped,
    /// It stands for the region's head. PostgreSQL goes on; all else is to end with the process.
    Stands,
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
    async fn until_it_stands(&self, replica: &Replica) {
        loop {
            tokio::time::sleep(LOOK).await;
            let last = self.hearing.last();
            if last.is_some() && self.record.exists() {
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
                None if self.record.exists() => Claim::Resumes,
                Some(last) if follows(last) => Claim::Replica,
                _ => Claim::None,
            };
            let last = last.map(|last| last.name).unwrap_or_default();
            let before = self.all.iter().take_while(|name| **name != self.own);
            let rank = u32::try_from(before.filter(|name| name.as_str() != last).count()).unwrap_or(u32::MAX);
            let (silent, after) = (self.hearing.silent(), self.hearing.after);
            if stands(&Facts { claim, silent, after, rank }) {
                tracing::warn!(
                    "the region's head was not heard for {} ms: this host stands for it",
                    silent.as_millis()
                );
                return;
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
    let (_lock, identity) = enter(&places, &places.node(&node).lock(), &name)?;
    tracing::info!("node {node} of region {name}");
    let hearing = region.take_over_after.map(|after| Arc::new(Hearing::new(after)));
    let candidates = region.candidates();
    let as_head = places.headed_by(&node);
    let may_lead = candidates.iter().any(|candidate| candidate.name == node);
    let keeps_password = own.postgres.filter(|_| may_lead).map(|address| (as_head.clone(), address));
    let link = Link {
        hearing: hearing.clone(),
        keeps_password,
        place: region.place(),
        node: node.clone(),
        process: runtime::random::draw(),
        cluster_id: identity.cluster_id,
        endpoint: Endpoint::bind(None, &identity)?,
        word: watch::Sender::default(),
        way: watch::Sender::default(),
    };
    let link = Arc::new(link);
    let replica = match own.postgres {
        Some(listen) => Some(Replica::new(&config, &layout, &region, &own, listen, link.clone())?),
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
    // The copies are served whatever PostgreSQL's disk does: in a task of their own.
    let serving = own.zone.map(|zone| {
        let running = zone::run(config, layout, name.clone(), zone, hearing, stop.clone());
        Task::spawn("hold a zone's copies", running)
    });
    let copies = async {
        match serving {
            Some(serving) => serving.await.map_err(|e| NodeError::Io(std::io::Error::other(e)))??,
            None => stop.cancelled().await,
        }
        Ok::<(), NodeError>(())
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
    let works = Box::pin(async { tokio::try_join!(copies, follows) });
    let standing = async {
        match (&candidate, &replica) {
            (Some(candidate), Some(replica)) => candidate.until_it_stands(replica).await,
            _ => std::future::pending().await,
        }
    };
    let renewing = Box::pin(renewal::watch(&link.endpoint, places.identity(), &identity, |_| {}));
    tokio::select! {
        done = works => drop(done?),
        // Nobody is waited for who may be gone.
        () = standing => return Ok(Ended::Stands),
        never = renewing => match never {},
    }
    tracing::info!("node {node} of region {name} has stopped");
    Ok(Ended::Stopped)
}
