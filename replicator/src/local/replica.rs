//! A node that has a replica, added to the file and removed from it while everything goes on.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use proto::messages::NodeStatus;
use proto::{NodeName, RegionName};
use runtime::private;

use super::process::Daemon;
use super::{LOOK, LocalResult, certificates, down};
use crate::config::edit::{node_section, with_node, without_node};
use crate::config::{Config, NodeConfig};
use crate::daemon::lock::DaemonLock;
use crate::layout::{Apart, Layout};
use crate::operator::Operator;
use crate::render::node_state;

/// What a node is to be.
#[derive(Debug)]
pub struct Wanted {
    /// Its region.
    pub region: RegionName,
    /// Its name there.
    pub node: NodeName,
    /// Where applications reach its PostgreSQL.
    pub postgres: SocketAddr,
    /// Where it takes in clients that read.
    pub reader_endpoint: Option<SocketAddr>,
}

/// Adds a node with a replica to `file`, and starts it if its region runs on this machine; returns once it
/// streams. `tell` is told what is being done.
///
/// # Errors
/// When the file would have a mistake: nothing was changed then. When a daemon does not take it, or the
/// replica does not stream in time; it goes on trying.
pub async fn add(
    layout: &Layout,
    file: &Path,
    wanted: Wanted,
    timeout: Duration,
    tell: &(dyn Fn(&str) + Sync),
) -> LocalResult {
    let Wanted { region, node, postgres, reader_endpoint } = wanted;
    let text = std::fs::read_to_string(file)?;
    let mut lines = format!("postgres = \"{postgres}\"\n");
    if let Some(endpoint) = reader_endpoint {
        lines += &format!("reader_endpoint = \"{endpoint}\"\n");
    }
    let before = Config::parse_of(file, &text)?;
    let own = before.region(&region).ok_or_else(|| no_such(&before, &region))?;
    if own.nodes.iter().any(|own| own.name == node) {
        return Err(format!("{region} has a node {node} already: see `replicator replica list`").into());
    }
    let section = node_section(&region, &node, &lines);
    let changed = with_node(&text, &region, &section);
    let config = Config::parse_of(file, &changed)?;
    private::replace_content(file, changed.as_bytes())?;
    tell(&format!("{}: has {region}.{node} now", file.display()));
    certificates::make(&config, layout, certificates::Renew::None, None)?;
    reload(&config, layout, &region, tell).await?;
    let places = layout.region(&region);
    if DaemonLock::holder(&places.lock())?.is_none() {
        tell(&format!(
            "the daemon of {region} does not run on this machine: give the host of {node} the file and {}, and start it there: \
             replicator run --region {region} --node {node}",
            places.node(&node).identity().display()
        ));
        return Ok(());
    }
    let mut daemon = Daemon::new(&region, Some(Apart::Node(node.clone())), &[]);
    daemon.start(file, layout)?;
    let operator = Operator::new(config, layout)?;
    let mut told = String::new();
    let streams = async {
        loop {
            if let Some(ended) = daemon.ended(layout) {
                return Err(ended);
            }
            let status = operator.status(None).await.ok();
            let rows = status.iter().flat_map(|status| &status.regions);
            let nodes = rows.filter(|row| row.name == region.as_str()).flat_map(|row| &row.nodes);
            if let Some(row) = nodes.clone().find(|row| row.name == node.as_str()) {
                let now = progress(row);
                if now != told {
                    tell(&format!("{region}.{node}: {now}"));
                    told = now;
                }
                if row.state == "streaming" {
                    return Ok(());
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    match tokio::time::timeout(timeout, streams).await {
        Ok(streams) => Ok(streams?),
        Err(_) => {
            let seconds = timeout.as_secs();
            Err(format!("{region}.{node} does not stream after {seconds} s; it goes on trying: see `replicator status`").into())
        }
    }
}

/// How far a replica is.
fn progress(row: &NodeStatus) -> String {
    let how = node_state(row);
    if row.detail.is_empty() { how } else { format!("{how}: {}", row.detail) }
}

/// Stops a node that runs on this machine, and removes it from `file`; its data stay where they are.
///
/// # Errors
/// When there is no such node, it is not only a replica, it does not stop, or a daemon does not take the
/// file.
pub async fn remove(
    layout: &Layout,
    file: &Path,
    region: &RegionName,
    node: &NodeName,
    timeout: Duration,
    tell: &(dyn Fn(&str) + Sync),
) -> LocalResult {
    let text = std::fs::read_to_string(file)?;
    let before = Config::parse_of(file, &text)?;
    let own = before.region(region).ok_or_else(|| no_such(&before, region))?;
    let Some(removed) = own.nodes.iter().find(|own| own.name == *node) else {
        let nodes: Vec<&str> = own.nodes.iter().map(|node| node.name.as_str()).collect();
        return Err(format!("{region} has no node {node}; it has: {}", nodes.join(", ")).into());
    };
    may_go(region, removed)?;
    let changed = without_node(&text, region, node).ok_or_else(|| {
        format!("{}: {region}.{node} is not a section of its own: take it out by hand, and then `replicator reload`", file.display())
    })?;
    let config = Config::parse_of(file, &changed)?;
    let places = layout.region(region).node(node);
    // The file first: nobody starts it again.
    private::replace_content(file, changed.as_bytes())?;
    tell(&format!("{}: has {region}.{node} no more", file.display()));
    if let Some(holder) = DaemonLock::holder(&places.lock())? {
        tell(&format!("{region}.{node}: stopping process {holder}"));
        let _ = kill(holder, Signal::SIGTERM);
        let stopped = tokio::time::timeout(timeout, down::until_free(region, &places.lock())).await;
        stopped.map_err(|_| {
            format!(
                "{region}.{node}: process {holder} did not stop within {} s; see its log",
                timeout.as_secs()
            )
        })??;
    }
    reload(&config, layout, region, tell).await?;
    if places.directory().exists() {
        tell(&format!(
            "{}: its data stay there; delete them when nobody needs them",
            places.directory().display()
        ));
    }
    Ok(())
}

/// Whether it is a replica and nothing more.
fn may_go(region: &RegionName, node: &NodeConfig) -> LocalResult {
    let name = &node.name;
    match node.zone {
        Some(zone) => Err(format!(
            "{region}.{name} holds the copies of zone {zone}, and who holds those is settled when the region's daemon starts: see \
             docs/NODES.md, and take it out of the file by hand"
        )
        .into()),
        None => Ok(()),
    }
}

/// Has the daemons read the file again: the region's own must take it, others hear of it sooner or later.
async fn reload(
    config: &Config,
    layout: &Layout,
    region: &RegionName,
    tell: &(dyn Fn(&str) + Sync),
) -> LocalResult {
    for (name, answer) in Operator::new(config.clone(), layout)?.reload(None).await? {
        let why = match answer {
            Ok(reloaded) if reloaded.refused.is_empty() => continue,
            Ok(reloaded) => reloaded.refused,
            Err(e) => e,
        };
        if name == region.as_str() {
            return Err(
                format!("{name} did not take the file: {why}; once it does: replicator reload").into()
            );
        }
        tell(&format!("{name} did not take the file: {why}; once it is there: replicator reload"));
    }
    Ok(())
}

fn no_such(config: &Config, region: &RegionName) -> String {
    format!("there is no region {region}; there are {}", config.region_names())
}
