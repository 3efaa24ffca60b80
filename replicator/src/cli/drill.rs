//! `replicator drill`.

use proto::RegionName;

use super::{AnyResult, confirm, signal};
use crate::drill::Drill;
use crate::drill::report::Report;

/// How a drill is done and shown.
pub(super) struct Options {
    pub(super) full: bool,
    pub(super) yes: bool,
    pub(super) json: bool,
    pub(super) markdown: bool,
}

/// Rehearses the promotion of `region`, or promotes it for real and back.
pub(super) async fn run(drill: Drill, region: &RegionName, options: Options) -> AnyResult {
    let Options { full, yes, json, markdown } = options;
    let tell = |what: &str| eprintln!("{what}");
    let report = if full {
        if !yes {
            confirm(&format!("{region} will lead, and then the present primary again; writes stop twice."))?;
        }
        drill.full(&tell).await?
    } else {
        let (stop, _listening) = signal::on_signal()?;
        drill.rehearse(&tell, stop).await?
    };
    print_report(&report, json, markdown)
}

fn print_report(report: &Report, json: bool, markdown: bool) -> AnyResult {
    match (json, markdown) {
        (true, _) => println!("{}", report.json()),
        (_, true) => print!("{}", report.markdown()),
        _ => print!("{}", report.text()),
    }
    if report.passed { Ok(()) } else { Err("the drill has not passed: its checks say why".into()) }
}
