//! Every region of `regions.toml` on this machine: `up`, `down`, and the certificates they need.

mod bars;
pub mod certificates;
mod down;
mod installations;
mod process;
pub mod renewing;
pub mod replica;
pub mod requests;

use std::io::IsTerminal;
use std::path::Path;
use std::time::Duration;

use postgres::instance::account::Account;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, RegionConfig};
use crate::layout::{Apart, Layout, make_passable};
use crate::operator::Operator;
use crate::render;
use bars::Bars;
use process::Daemon;

pub use down::down;
pub use installations::installations;

/// How often the regions are looked at.
const LOOK: Duration = Duration::from_millis(200);

/// Anything that can go wrong here is said in words.
pub type LocalResult = Result<(), Box<dyn std::error::Error>>;

/// Starts every region that does not run yet; returns once all stream when `detach`, and shows them until
/// `stop` otherwise.
///
/// # Errors
/// When a region cannot be started, or does not stream in time.
pub async fn up(
    config: &Config,
    file: &Path,
    layout: &Layout,
    detach: bool,
    timeout: Duration,
    stop: CancellationToken,
) -> LocalResult {
    // What would fail in every daemon is said once, here.
    let account = Account::resolve(config.os_user.as_deref())?;
    for (_, installation) in installations(config, layout)? {
        account.check_programs(&installation?.program("postgres"))?;
    }
    certificates::make(config, layout, certificates::Renew::None, None)?;
    for region in &config.regions {
        let directory = layout.region(&region.name);
        make_passable(directory.directory())?;
        account.check_reach(&directory.pgdata())?;
    }
    for region in &config.regions {
        crate::keys::make_first(region, &layout.region(&region.name)).await?;
    }
    let mut daemons = Vec::new();
    for region in &config.regions {
        let zones = region.own_process.iter().copied().map(Apart::Zone);
        let nodes = region.nodes.iter().map(|node| Apart::Node(node.name.clone()));
        for apart in zones.chain(nodes).map(Some).chain([None]) {
            daemons.push(Daemon::new(&region.name, apart, &region.own_process));
        }
    }
    daemons.extend(config.witnesses.iter().map(|witness| Daemon::new(&witness.name, None, &[])));
    for daemon in &mut daemons {
        make_passable(layout.region(&daemon.name).directory())?;
        daemon.start(file, layout)?;
    }
    let operator = Operator::new(config.clone(), layout)?;
    let coming_up = until_all_stream(&operator, config, layout, &mut daemons);
    let came = tokio::select! {
        () = stop.cancelled() => Err("stopped before every region streamed".into()),
        came = tokio::time::timeout(timeout, coming_up) => match came {
            Ok(came) => came,
            Err(_) if detach => Err(format!(
                "not every region streams after {} s; they go on trying: see `replicator status`", timeout.as_secs()).into()),
            Err(_) => Ok(()),
        },
    };
    if detach {
        if stop.is_cancelled() {
            // Those that ran before are nobody's to stop who gives up on the others.
            for daemon in daemons.iter_mut().rev() {
                daemon.stop(layout).await?;
            }
        }
        came?;
        print!("{}", render::table(&operator.status(None).await?));
        return Ok(());
    }
    if let Err(e) = came {
        if !stop.is_cancelled() {
            eprintln!("{e}");
        }
    } else {
        watch(&operator, file, layout, &mut daemons, &stop).await?;
    }
    eprintln!("stopping every region");
    down(config, layout, Duration::from_secs(90)).await
}

/// Waits until all regions stream, showing seeds as they go.
async fn until_all_stream(
    operator: &Operator,
    config: &Config,
    layout: &Layout,
    daemons: &mut [Daemon],
) -> LocalResult {
    let bars = Bars::new(config, daemons);
    loop {
        if let Some(ended) = daemons.iter_mut().find_map(|d| d.ended(layout)) {
            bars.clear();
            return Err(ended.into());
        }
        // Until the first daemon answers there is nothing to show.
        if let Ok(status) = operator.status(None).await {
            bars.show(&status);
            // A secondary's nodes are known once it has told the others.
            let told = |region: &RegionConfig| {
                let row = status.regions.iter().find(|row| row.name == region.name.as_str());
                row.is_some_and(|row| row.nodes.len() == region.nodes.len())
            };
            if render::all_stream(&status) && config.regions.iter().all(told) {
                bars.clear();
                return Ok(());
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Shows the table until `stop`, or until all were stopped, and starts again what died.
async fn watch(
    operator: &Operator,
    file: &Path,
    layout: &Layout,
    daemons: &mut [Daemon],
    stop: &CancellationToken,
) -> LocalResult {
    let terminal = std::io::stdout().is_terminal();
    let mut shown = String::new();
    while !stop.is_cancelled() {
        if daemons.iter_mut().all(Daemon::was_stopped) {
            eprintln!("every region was stopped");
            break;
        }
        for daemon in daemons.iter_mut().filter_map(|daemon| (!daemon.was_stopped()).then_some(daemon)) {
            if let Some(ended) = daemon.ended(layout) {
                eprintln!("{ended}\nstarting it again");
                daemon.start(file, layout)?;
            }
        }
        let text = match operator.status(None).await {
            Ok(status) => render::table(&status),
            Err(e) => format!("{e}\n"),
        };
        if terminal {
            print!("\x1b[H{}\n\x1b[K\nCtrl-C stops every region.\x1b[J", text.replace('\n', "\x1b[K\n"));
            std::io::Write::flush(&mut std::io::stdout())?;
        } else if shown.is_empty() {
            // For a file or a pipe: once is enough; `status --watch` tells more.
            print!("{text}");
            shown = text;
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
    }
    println!();
    Ok(())
}
