//! The command line. Data goes to standard output and everything else to standard error. Exit status: 0 done,
//! 1 failed, 2 usage; `status` has its own, see [`crate::verdict`].
//!
//! [`args`] is what may be typed; each command that does more than a line has a file. Daemons are asked
//! through [`crate::operator`].

mod args;
mod audit;
mod certs;
mod check;
mod drill;
mod events;
mod help;
mod keys;
mod load;
mod lost;
mod owner;
mod password;
mod promote;
mod reload;
mod replica;
mod signal;
mod status;
mod token;
mod volume;
mod voters;
mod watch;

use std::error::Error;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use proto::RegionName;
use proto::messages::PromoteRequest;
use runtime::task::Task;

use crate::config::Config;
use crate::drill::Drill;
use crate::endpoint::Kind as Endpoint;
use crate::layout::{Apart, Layout};
use crate::local::renewing;
use crate::logs::lines::Lines;
use crate::logs::{DaemonLog, FORMAT_VARIABLE};
use crate::node::Stands;
use crate::operator::{Operator, UrlOf, superuser_url};
use crate::verdict::Level;
use crate::{local, node, region, region_file, witness, zone};
use args::{Cli, Command, PasswordAction};

type AnyResult = Result<(), Box<dyn Error>>;

/// Runs the program.
#[must_use]
pub fn main() -> ExitCode {
    // Nothing that this makes is open to others, whatever its part.
    runtime::private::restrict_process();
    raise_open_files();
    let cli = Cli::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_env("REPLICATOR_LOG").unwrap_or_else(|_| {
        // A command's own words are its output; the daemon's are its log.
        tracing_subscriber::EnvFilter::new(if matches!(cli.command, Command::Run { .. }) {
            "info"
        } else {
            "error"
        })
    });
    let log = DaemonLog::new(std::env::var(FORMAT_VARIABLE).ok().as_deref());
    log.report_panics();
    let lines = Lines::of(log.clone());
    // That a line cannot be written is told to standard error, which is the log itself: on a full disk that
    // would panic whoever had something to say.
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(log.clone());
    let subscriber = subscriber.log_internal_errors(false);
    subscriber.with_ansi(false).event_format(lines).init();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => return fail(&log, &e),
    };
    // Whoever cannot ask does not know: for monitoring that is the worst.
    let unknown = matches!(cli.command, Command::Status { .. }).then(|| Level::Down.exit_status());
    let done = runtime.block_on(run(cli, log.clone()));
    // What is left are calls that block: one on a disk that does not answer would keep the process for ever.
    runtime.shutdown_timeout(LEFT);
    match done {
        Ok(status) => status,
        Err(e) => match (fail(&log, &*e), unknown) {
            (_, Some(status)) => ExitCode::from(status),
            (failed, None) => failed,
        },
    }
}

/// A daemon has two sockets for each client of an endpoint, and what PostgreSQL inherits it needs itself:
/// what systemd allows at first, 1024 files, is less than that. What may not be raised stays.
fn raise_open_files() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
    {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// How long calls that block may take to end once everything else has.
const LEFT: Duration = Duration::from_secs(2);

fn fail(log: &DaemonLog, error: &dyn Error) -> ExitCode {
    match log.json() {
        Some(_) => tracing::error!("{error}"),
        None => eprintln!("replicator: {error}"),
    }
    ExitCode::from(1)
}

/// Does what was typed; returns the exit status.
async fn run(cli: Cli, log: DaemonLog) -> Result<ExitCode, Box<dyn Error>> {
    let config = Config::load(cli.places.config())?;
    let layout = cli.places.layout(&config)?;
    owner::become_owner(layout.data())?;
    if let Command::Status { watch, json, check, max_lag, region } = cli.command {
        let shape = status::Shape { watch, json, check, max_lag };
        return status::show(&Operator::new(config, &layout)?, shape, region).await;
    }
    Box::pin(carry_out(cli, config, layout, log)).await.map(|()| ExitCode::SUCCESS)
}

async fn carry_out(cli: Cli, config: Config, layout: Layout, log: DaemonLog) -> AnyResult {
    match cli.command {
        Command::Check => {
            // What is tried is taken away, also by Ctrl-C.
            let (stop, _listening) = signal::on_signal()?;
            check::postgresql(&config, &layout, cli.places.config())?;
            if stop.is_cancelled() {
                return Err("interrupted".into());
            }
            check::roles(&config, &layout);
            println!("{}: {} regions, no mistakes", cli.places.config().display(), config.regions.len());
            Ok(())
        }
        Command::Certs(asked) => certs::run(&config, &layout, &asked),
        Command::Token { role, validity, out, unrecorded, json } => {
            let asked = token::Asked { role, validity, out, unrecorded, json };
            token::grant(config, &layout, asked).await
        }
        Command::Run { region, az, node, own_process, part, silent_ms, stopped_at_us, ended_lsn } => {
            let file = std::path::absolute(cli.places.config())?;
            let (region, apart) = args::what_to_run(region, az, node)?;
            log.is_of(region.as_str(), apart.as_ref());
            log.keep(&layout.region(&region).log_of(apart.as_ref()), config.logs);
            let own_process = own_process.iter().filter_map(|zone| zone.chars().next()).collect();
            let silent = Duration::from_millis(silent_ms);
            let began = Stands { silent, stopped_at_us, ended_lsn };
            let part = part.map(|part| (part, began));
            run_daemon(Daemon { config, file, log, layout, name: region, apart, own_process, part }).await
        }
        Command::Up { detach, zones, timeout } => {
            let mut config = config;
            if zones {
                for own in &mut config.regions {
                    // A node's zone is in a process of its own already.
                    let nodes: Vec<char> = own.nodes.iter().filter_map(|node| node.zone).collect();
                    own.own_process =
                        ['a', 'b', 'c'].into_iter().filter(|zone| !nodes.contains(zone)).collect();
                }
            }
            let (stop, _listening) = signal::on_signal()?;
            let file = cli.places.config().canonicalize()?;
            Ok(local::up(&config, &file, &layout, detach, timeout, stop).await?)
        }
        Command::Down { timeout } => Ok(local::down(&config, &layout, timeout).await?),
        Command::Volume { action } => volume::run(config, &layout, action).await,
        // It has exit statuses of its own.
        Command::Status { .. } => Ok(()),
        Command::Events { region, since, follow, json } => {
            events::show(&Operator::new(config, &layout)?, region, since, follow, json).await
        }
        Command::Audit { region, verify, json } => {
            audit::run(&Operator::new(config, &layout)?, region.as_ref(), verify, json).await
        }
        Command::Load { region, since, by, json } => {
            load::show(&Operator::new(config, &layout)?, region, since, by, json).await
        }
        Command::Url { region: Some(region), superuser: true, .. } => {
            println!("{}", superuser_url(&config, &layout, &region)?);
            Ok(())
        }
        Command::Url { endpoint: Some(Endpoint::Writer), after: Some(_), .. } => {
            Err("--after is for --endpoint reader: the writer shows whatever was acknowledged".into())
        }
        Command::Url { region, reader, endpoint, after, .. } => {
            let of = match (endpoint, region) {
                (Some(kind), region) => UrlOf::Endpoint(kind, region, after),
                (None, Some(region)) => UrlOf::Region(region),
                _ if reader => UrlOf::Reader,
                _ => UrlOf::Writer,
            };
            println!("{}", Operator::new(config, &layout)?.url(&of).await?);
            Ok(())
        }
        Command::Promote { region, node: Some(node), dry_run, json, .. } => {
            promote::move_head(&Operator::new(config, &layout)?, &region, &node, (dry_run, json)).await
        }
        Command::Promote { region, node: None, mode, old_primary_is_down, lost, dry_run, json } => {
            let lost = lost.iter().map(ToString::to_string).collect();
            let failover = mode == "failover";
            let request = PromoteRequest { dry_run, failover, old_primary_is_down, lost, order: None };
            promote::promote(&Operator::new(config, &layout)?, &region, request, json).await
        }
        Command::Replica { action } => {
            let file = cli.places.config().canonicalize()?;
            replica::run(config, &layout, &file, action).await
        }
        Command::Reseed { region, yes } => {
            if !yes {
                confirm(&format!("{region} is seeded anew by the primary; what it has is set aside."))?;
            }
            println!("{}", Operator::new(config, &layout)?.reseed(&region).await?);
            Ok(())
        }
        Command::Revote { voter, yes } => {
            if !yes {
                confirm(&format!(
                    "{voter} has lost what it promised as a voter. It votes again by what those voters say that answer now; if one \
                     that does not answer knows of a newer primary, two may take writes."
                ))?;
            }
            Ok(Operator::new(config, &layout)?.revote(&voter).await?)
        }
        Command::Password { action: PasswordAction::Rotate { json } } => {
            password::rotate(&Operator::new(config, &layout)?, json).await
        }
        Command::Reload { region, json } => {
            reload::reload(&Operator::new(config, &layout)?, region.as_ref(), json).await
        }
        Command::Voters { action, json } => voters::run(&Operator::new(config, &layout)?, action, json).await,
        Command::History { json } => {
            promote::show_history(&Operator::new(config, &layout)?.record().await?, json)
        }
        Command::Drill { region, full, yes, copy_rate, json, markdown } => {
            let drill = Drill::new(config, &layout, &region, copy_rate)?;
            drill::run(drill, &region, drill::Options { full, yes, json, markdown }).await
        }
        Command::Lost { action } => lost::run(&config, &layout, action).await,
        Command::Keys { action } => keys::run(config, &layout, action).await,
    }
}

/// A daemon to be run.
struct Daemon {
    config: Config,
    file: PathBuf,
    log: DaemonLog,
    layout: Layout,
    name: RegionName,
    apart: Option<Apart>,
    own_process: Vec<char>,
    /// What it is to be where it may be the region's head or a node, and what its host knew by then.
    part: Option<(String, Stands)>,
}

/// A region's daemon, a witness, a node, or a zone's process, until a signal.
async fn run_daemon(daemon: Daemon) -> AnyResult {
    let Daemon { config, file, log, layout, name, apart, own_process, part } = daemon;
    let (stop, _listening) = signal::on_signal()?;
    // Of a terminal that is closed, or an operator: only a region's daemon reads its file again.
    let (again, _hearing) = signal::on_hangup()?;
    let _renewing = Task::spawn("renew certificates", renewing::keep(config.clone(), layout.clone()));
    if let Some(Apart::Zone(zone)) = apart {
        let holder = zone::Holder { zone, node: None };
        return Ok(zone::run(config, layout, name, holder, None, stop).await?);
    }
    if let Some(own) = config.witnesses.iter().find(|own| own.name == name).cloned() {
        let source = node::Source { file, again, log, silent: Duration::ZERO };
        return Ok(witness::run(config, source, layout, own, stop).await?);
    }
    let node = match apart {
        Some(Apart::Node(node)) => Some(node),
        _ => None,
    };
    let host = region::head::host_name(node.as_ref()).ok_or("the host has no name")?;
    let is_head = match (config.region(&name).map(|own| own.candidates()), &part) {
        (Some(all), Some((part, _))) if all.iter().any(|host_of| host_of.name == host) => part == "head",
        (Some(all), None) if all.iter().any(|host_of| host_of.name == host) => {
            region_file::was_head(&layout.region(&name), &host)
        }
        _ => node.is_none(),
    };
    let began = part.as_ref().map(|(_, began)| *began).unwrap_or_default();
    if !is_head {
        let source = node::Source { file, again, log, silent: began.silent };
        return match Box::pin(node::run(config, source, layout, name, host, stop)).await? {
            node::Ended::Stopped => Ok(()),
            node::Ended::Stands(stands) => start_again(Some(("head", stands))),
        };
    }
    let stands = part.is_some();
    let source = region::reload::Source { file, own_process, again, host, stands, began };
    match Box::pin(region::run(config, source, log, layout, name, stop)).await? {
        region::Ended::Stopped => Ok(()),
        region::Ended::StartAgain => start_again(None),
        region::Ended::Follows(silent) => start_again(Some(("node", Stands { silent, ..Stands::default() }))),
    }
}

/// Starts this program again in place of this process, as what it is to be. Files, sockets and locks of this
/// one are closed with it.
fn start_again(part: Option<(&str, Stands)>) -> AnyResult {
    tracing::info!("starting again");
    let mut arguments: Vec<OsString> = Vec::new();
    let mut typed = std::env::args_os().skip(1);
    while let Some(argument) = typed.next() {
        match [PART, SILENT, STOPPED, ENDED].iter().any(|own| argument == *own) {
            true => drop(typed.next()),
            false => arguments.push(argument),
        }
    }
    if let Some((part, Stands { silent, stopped_at_us, ended_lsn })) = part {
        arguments.extend([PART.into(), part.into(), SILENT.into(), silent.as_millis().to_string().into()]);
        if let Some(at_us) = stopped_at_us {
            arguments.extend([STOPPED.into(), at_us.to_string().into()]);
        }
        if let Some(lsn) = ended_lsn {
            arguments.extend([ENDED.into(), lsn.to_string().into()]);
        }
    }
    // It returns only when that cannot be done.
    let (name, said) = postgres::installation::said_so_far();
    Err(std::process::Command::new(program()?).args(arguments).env(name, said).exec().into())
}

/// This program's file: the new one, where it was replaced since this one was started.
fn program() -> std::io::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let replaced = own.to_str().and_then(|path| path.strip_suffix(" (deleted)")).map(PathBuf::from);
    Ok(replaced.filter(|path| path.exists()).unwrap_or(own))
}

/// The option that says what a daemon that starts itself again becomes.
const PART: &str = "--part";

/// And the one that says for how long its host had heard no head of its region.
const SILENT: &str = "--silent-ms";

/// And the one that says when the last head stopped its writer for this one.
const STOPPED: &str = "--stopped-at-us";

/// And the one that says where that writer's redo ends.
const ENDED: &str = "--ended-lsn";

/// Asks on the terminal whether to go on with `what`. No answer is a no.
fn confirm(what: &str) -> AnyResult {
    eprint!("{what} Go on? [y/N] ");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    if answer.trim() == "y" { Ok(()) } else { Err("nothing was done".into()) }
}
