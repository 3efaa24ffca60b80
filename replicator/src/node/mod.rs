//! A node of a region beside the host of its daemon: `replicator run --region R --node N`.
//!
//! It holds the copies of its zone, as a zone's process does, and a PostgreSQL that follows the region's
//! redo: a [`replica`]. It says how it is, and hears what it needs, over one stream to the region's daemon
//! ([`link`]; over there it is `region/nodes.rs`). What it does with its PostgreSQL is decided in [`plan`].

mod feed;
mod file;
mod link;
pub mod plan;
mod replica;
mod said;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use postgres::installation::InstallationError;
use postgres::instance::account::AccountError;
use proto::messages::NodeReport;
use proto::{NodeName, RegionName};
use runtime::task::Task;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use transport::{Endpoint, TransportError};

use crate::config::Config;
use crate::daemon::enter::{EnterError, enter_node};
use crate::daemon::{manager, renewal};
use crate::layout::{Layout, make_passable};
use crate::logs::DaemonLog;
use crate::zone::{self, ZoneError};
use file::NodeFileError;
use link::Link;
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

/// Runs node `node` of region `name` until `stop`.
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
) -> Result<(), NodeError> {
    let region = config
        .region(&name)
        .cloned()
        .ok_or_else(|| NodeError::UnknownRegion { name: name.clone(), known: config.region_names() })?;
    let own = region.node(&node).cloned().ok_or_else(|| {
        let known: Vec<&str> = region.nodes.iter().map(|node| node.name.as_str()).collect();
        NodeError::Unknown { region: name.clone(), name: node.clone(), known: known.join(", ") }
    })?;
    let places = layout.region(&name);
    make_passable(places.node(&node).directory())?;
    let (_lock, identity, shown) = enter_node(&places, &places.node(&node).lock(), &name, &node)?;
    tracing::info!("node {node} of region {name}");
    let endpoint = Endpoint::bind(None, &identity)?;
    endpoint.deny(config.denied.clone());
    let link = Link {
        place: region.place(),
        node: node.clone(),
        process: runtime::random::draw(),
        cluster_id: identity.cluster_id,
        endpoint,
        word: watch::Sender::default(),
        way: watch::Sender::default(),
    };
    let link = Arc::new(link);
    let replica = match own.postgres {
        Some(listen) => Some(Arc::new(Replica::new(&config, &layout, &region, &own, listen, link.clone())?)),
        None => None,
    };
    // The copies are served whatever PostgreSQL's disk does: in a task of their own.
    let serving = own.zone.map(|zone| {
        let holder = zone::Holder { zone, node: Some(node.clone()) };
        Task::spawn("hold a zone's copies", zone::run(config, layout, name.clone(), holder, stop.clone()))
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
    let renewing = Box::pin(renewal::watch(&link.endpoint, shown, &identity, |_| {}));
    tokio::select! {
        done = works => drop(done?),
        never = renewing => match never {},
        never = manager::tell(in_words) => match never {},
    }
    tracing::info!("node {node} of region {name} has stopped");
    Ok(())
}
