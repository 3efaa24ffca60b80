//! `replicator volume`.

use std::time::Duration;

use proto::RegionName;
use proto::messages::VolumeRequest;

use super::AnyResult;
use super::args::VolumeAction;
use crate::config::Config;
use crate::layout::Layout;
use crate::operator::Operator;
use crate::{inspect, render};

/// Does `action`.
pub(super) async fn run(config: Config, layout: &Layout, action: VolumeAction) -> AnyResult {
    match action {
        VolumeAction::Status { region, json } => {
            show(&Operator::new(config, layout)?, region, VolumeRequest::default(), json).await
        }
        VolumeAction::Scrub { region, copy, json } => {
            let copy = copy.map(|copy| copy.to_string()).unwrap_or_default();
            let spinner = indicatif::ProgressBar::new_spinner().with_message("reading every copy back");
            spinner.enable_steady_tick(Duration::from_millis(200));
            let request = VolumeRequest { scrub: true, copy, ..VolumeRequest::default() };
            let shown = show(&Operator::new(config, layout)?, region, request, json).await;
            spinner.finish_and_clear();
            shown
        }
        VolumeAction::Recover { region } => {
            let request = VolumeRequest { recover: true, ..VolumeRequest::default() };
            show(&Operator::new(config, layout)?, Some(region), request, false).await
        }
        VolumeAction::Inspect { directory, records, json } => inspect::show(&directory, records, json),
    }
}

async fn show(
    operator: &Operator,
    region: Option<RegionName>,
    request: VolumeRequest,
    json: bool,
) -> AnyResult {
    let view = operator.volume(region, request).await?;
    match json {
        true => println!("{}", render::volume_json(&view)),
        false => print!("{}", render::volume_table(&view)),
    }
    Ok(())
}
