//! `replicator replica`: the nodes of regions, and one more or less.

use std::path::Path;

use super::AnyResult;
use super::args::ReplicaAction;
use crate::config::Config;
use crate::layout::Layout;
use crate::local::replica::{self, Wanted};
use crate::operator::Operator;
use crate::render;

/// Does what was typed.
pub(super) async fn run(config: Config, layout: &Layout, file: &Path, action: ReplicaAction) -> AnyResult {
    let tell = |what: &str| eprintln!("{what}");
    match action {
        ReplicaAction::List { region, json } => {
            let mut status = Operator::new(config, layout)?.status(None).await?;
            status.regions.retain(|row| region.as_ref().is_none_or(|region| row.name == region.as_str()));
            print!("{}", if json { render::replicas_json(&status) } else { render::replicas(&status) });
            Ok(())
        }
        ReplicaAction::Add { region, node, postgres, reader_endpoint, timeout } => {
            let wanted = Wanted { region, node, postgres, reader_endpoint };
            Ok(replica::add(layout, file, wanted, timeout, &tell).await?)
        }
        ReplicaAction::Remove { region, node, timeout } => {
            Ok(replica::remove(layout, file, &region, &node, timeout, &tell).await?)
        }
    }
}
