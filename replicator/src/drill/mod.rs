//! Rehearsals: would this region take over? `replicator drill --region R`, on the region's own machine.
//!
//! A clone of the standby's data is brought to a moment of the primary, promoted by itself where nobody sees
//! it, checked, timed, and removed, while replication goes on. What a rehearsal shows is what a promotion
//! would find: the same data, the same redo out of the same volume, the same promotion of PostgreSQL.
//! `--full` promotes the region for real, and then the old primary again.
//!
//! Read in this order: [`clone`] the data, find the [`moment`] through a `tunnel` to the primary, and
//! [`compare`] what is there, as a [`role`] that can do nothing else; [`report`] tells it.

pub mod clone;
pub mod compare;
pub mod moment;
pub mod report;
pub mod role;
mod tunnel;

use std::path::{Path, PathBuf};
use std::time::Duration;

use postgres::installation::{Installation, InstallationError, major_of_data};
use postgres::instance::account::{Account, AccountError};
use postgres::instance::{Instance, InstanceError, InstanceOptions, Stop};
use postgres::major::Major;
use postgres::sockets::{SUPERUSER, socket_dir_for};
use proto::messages::{ClusterStatus, PromoteRequest, RegionStatus};
use proto::{Lsn, RegionName};
use runtime::clock::now;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection};
use tokio_util::sync::CancellationToken;

use crate::config::{Config, RegionConfig};
use crate::daemon::lock::{DaemonLock, LockError};
use crate::layout::{Layout, RegionLayout, make_passable};
use crate::operator::{Operator, OperatorError};
use crate::units;
use report::{Kind, Outcome, Report, Watch};
use tunnel::Tunnel;

/// How long the clone may take until it accepts connections: it replays what a crashed PostgreSQL would.
const START: Duration = Duration::from_secs(1800);

/// How long the redo up to the moment may take to arrive and be applied once it does.
const REPLAY: Duration = Duration::from_secs(300);

/// How long it may take to be promoted.
const PROMOTE: Duration = Duration::from_secs(60);

/// How long the regions may take to follow a new primary, in a full drill.
const LEVEL: Duration = Duration::from_secs(300);

/// How often it is looked whether something is so.
const LOOK: Duration = Duration::from_millis(5);

/// Why a drill cannot be done. What a drill finds is in its [`Report`].
#[derive(Debug, thiserror::Error)]
pub enum DrillError {
    /// The region's data are not here.
    #[error(
        "region {region} has no data in {path}: run the drill on the region's own machine, or name its data directory with --data"
    )]
    NotHere {
        /// The region.
        region: RegionName,
        /// Where its PostgreSQL's data should be.
        path: PathBuf,
    },
    /// The region is in no state to be rehearsed.
    #[error("{0}")]
    NotNow(String),
    /// Another drill.
    #[error("a drill of this region is under way already (process {0})")]
    UnderWay(nix::unistd::Pid),
    /// The user said stop.
    #[error("interrupted: the clone was removed, nothing else was touched")]
    Interrupted,
    /// Another region leads than when it began.
    #[error(
        "{primary} has become the primary meanwhile, and what was rehearsed is past: the clone was removed, nothing else was touched. Run it \
         again once `replicator status` shows that the region streams"
    )]
    Moved {
        /// The region that leads now.
        primary: String,
    },
    /// No room for a clone.
    #[error(
        "{path} is not on a file system that clones files, and a copy needs {} of room: there are {}",
        units::show_bytes(*needed), units::show_bytes(*available)
    )]
    Room {
        /// Where the clone would be.
        path: PathBuf,
        /// Bytes.
        needed: u64,
        /// Bytes.
        available: u64,
    },
    /// Writers never paused.
    #[error(
        "in {tries} tries the primary had no moment without a long writing transaction; the last said: {last}"
    )]
    NoMoment {
        /// How often it was tried.
        tries: u32,
        /// What the last try failed with.
        last: String,
    },
    /// The clone does not come up, or does not get to the moment.
    #[error("{0}")]
    Replay(String),
    /// PostgreSQL's answer to a query.
    #[error(transparent)]
    Sql(#[from] sqlx::Error),
    /// Something else than what was asked for.
    #[error("an unexpected answer: {0}")]
    Answer(String),
    /// A file cannot be used.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// See [`InstanceError`].
    #[error(transparent)]
    Instance(#[from] InstanceError),
    /// See [`InstallationError`].
    #[error(transparent)]
    Installation(#[from] InstallationError),
    /// See [`AccountError`].
    #[error(transparent)]
    Account(#[from] AccountError),
    /// See [`LockError`].
    #[error(transparent)]
    Lock(LockError),
    /// A daemon does not answer, or refuses.
    #[error("{0}")]
    Daemon(String),
}

impl DrillError {
    fn at(path: &Path) -> impl Fn(std::io::Error) -> DrillError + use<> {
        let path = path.to_owned();
        move |source| DrillError::Io { path: path.clone(), source }
    }

    fn daemon(e: OperatorError) -> DrillError {
        DrillError::Daemon(e.to_string())
    }
}

impl From<LockError> for DrillError {
    fn from(e: LockError) -> DrillError {
        match e {
            LockError::Held(process) => DrillError::UnderWay(process),
            e @ LockError::Io { .. } => DrillError::Lock(e),
        }
    }
}

/// A drill of a region.
#[derive(Debug)]
pub struct Drill {
    config: Config,
    layout: Layout,
    own: RegionConfig,
    places: RegionLayout,
    operator: Operator,
    copy_bytes_per_second: u64,
}

impl Drill {
    /// A drill of `region`, whose clone is copied at up to `copy_bytes_per_second` where it must be copied.
    ///
    /// # Errors
    /// When there is no such region, or no operator's certificate.
    pub fn new(
        config: Config,
        layout: &Layout,
        region: &RegionName,
        copy_bytes_per_second: u64,
    ) -> Result<Drill, DrillError> {
        let own = config.region(region).cloned();
        let own =
            own.ok_or_else(|| DrillError::NotNow(format!("there is no region '{region}' in the file")))?;
        let operator = Operator::new(config.clone(), layout).map_err(DrillError::daemon)?;
        let places = layout.region(region);
        Ok(Drill { config, layout: layout.clone(), own, places, operator, copy_bytes_per_second })
    }

    /// Rehearses the region's promotion on a clone of its data. `tell` is told what is being done.
    ///
    /// # Errors
    /// When it cannot be rehearsed; what is found is in the report.
    pub async fn rehearse(&self, tell: &dyn Fn(&str), stop: CancellationToken) -> Result<Report, DrillError> {
        let status = self.status().await?;
        let row = self.row(&status)?;
        if major_of_data(&self.places.pgdata()).is_none() {
            return Err(DrillError::NotHere { region: self.own.name.clone(), path: self.places.pgdata() });
        }
        if row.role != "secondary" || row.state != "streaming" {
            return Err(not_now(row));
        }
        let lock = DaemonLock::take(&self.places.drill_lock())?;
        let clone = self.clone()?;
        remove(&clone, &self.places.drill()).await?;
        make_passable(&self.places.drill()).map_err(DrillError::at(&self.places.drill()))?;
        let watch = self.watch()?;
        let mut report = Report::new(Kind::Rehearsal, &status, &self.own.name, self.config.lease);
        let drilled = tokio::select! {
            drilled = self.steps(&clone, &status, &mut report, tell) => drilled,
            () = stop.cancelled() => Err(DrillError::Interrupted),
        };
        report.lag = watch.end().await;
        let removed = remove(&clone, &self.places.drill()).await;
        // The lock's file stays: another drill may just have opened it.
        drop(lock);
        let report = report.finished();
        let has_failed = match &drilled {
            Err(DrillError::Interrupted) => false,
            Err(_) => true,
            Ok(()) => !report.passed,
        };
        if has_failed && let Some(moved) = self.moved_since(&status).await {
            return Err(moved);
        }
        drilled?;
        removed?;
        Ok(report)
    }

    /// Whether another region leads than by this status, which then is why a drill failed.
    async fn moved_since(&self, status: &ClusterStatus) -> Option<DrillError> {
        let ClusterStatus { epoch, primary, .. } = self.status().await.ok()?;
        (epoch != status.epoch).then_some(DrillError::Moved { primary })
    }

    async fn steps(
        &self,
        clone: &Instance,
        status: &ClusterStatus,
        report: &mut Report,
        tell: &dyn Fn(&str),
    ) -> Result<(), DrillError> {
        let (options, major) = (clone.options(), clone.installation().major);
        let feed = socket_dir_for(self.places.directory());
        let mut standby = PgConnection::connect_with(&local(&feed, self.own.postgres.port(), major)).await?;
        tell("cloning the standby's data");
        let account = &options.account;
        let rate = self.copy_bytes_per_second;
        let cloned =
            clone::clone(&mut standby, &self.places.pgdata(), &options.data_dir, account, rate).await?;
        let how = if cloned.shared { "shared with the standby's, nothing copied" } else { "copied" };
        report
            .step("clone", &format!("{} in {} files, {how}", units::show_bytes(cloned.bytes), cloned.files));
        let preload: String =
            sqlx::query_scalar("SHOW shared_preload_libraries").fetch_one(&mut standby).await?;
        drop(standby);

        tell("finding a moment of the primary");
        let primary: RegionName =
            status.primary.parse().map_err(|_| DrillError::Answer("the primary's name".into()))?;
        let tunnels = self.operator.tunnels();
        let way = Tunnel::open(tunnels, primary, &self.places.drill().join("way"))?;
        let primarys = local(way.directory(), tunnel::PORT, major);
        let moment = match moment::find(&primarys, &self.own.name, major).await {
            Ok(moment) => Some(moment),
            Err(e @ DrillError::NoMoment { .. }) => {
                report.check(COMPARES, Outcome::NotDone, e.to_string());
                None
            }
            Err(e) => return Err(e),
        };
        let lsn = match &moment {
            Some(moment) => {
                report.writers_held_ms = ms(moment.held);
                let held = format!("writers waited for {} ms at most; try {}", ms(moment.held), moment.tries);
                report.step("moment", &held);
                moment.lsn
            }
            None => self.present(&primarys).await?,
        };
        report.lsn = lsn.to_string();
        let row = self.status().await?;
        let row = self.row(&row)?;
        report.rpo.bytes = lsn.0.saturating_sub(row.durable_lsn.unwrap_or(0));
        report.rpo.ms = row.durability_lag_ms.unwrap_or(0);

        tell("replaying redo out of the region's volume");
        clone.configure_rehearsal(&feed, lsn, &without_jobs(&preload))?;
        let connection = local(&options.socket_dir, options.listen.port(), major);
        match self.take_over(clone, &connection, report, tell).await {
            Ok(()) => report.check("comes up, and takes writes", Outcome::Passed, String::new()),
            // The clone is to blame, so the region's data are.
            Err(e @ (DrillError::Replay(_) | DrillError::Instance(_) | DrillError::Sql(_))) => {
                report.check("comes up, and takes writes", Outcome::Failed, e.to_string());
                return Ok(());
            }
            Err(e) => return Err(e),
        }
        tell("pg_amcheck: every table and index");
        let (outcome, detail) = amcheck(clone).await?;
        report.check("tables and indexes are sound (pg_amcheck)", outcome, detail);
        report.step("amcheck", "every table and index of every database");
        if let Some(moment) = moment {
            tell("comparing rows with the primary's");
            let compared = compare::compare(moment, &connection, |_| ()).await?;
            let rows = format!(
                "{} rows in {} tables of {} databases",
                compared.rows, compared.tables, compared.databases
            );
            report.step("compare", &rows);
            let (outcome, detail) = if !compared.differences.is_empty() {
                (Outcome::Failed, compared.differences.join("\n"))
            } else if compared.left_out > 0 {
                (Outcome::NotDone, format!("{rows}; {} more tables are too many", compared.left_out))
            } else if compared.databases_left_out > 0 {
                let left_out = compared.databases_left_out;
                (Outcome::NotDone, format!("{rows}; {left_out} more databases are too many"))
            } else if !compared.gone.is_empty() {
                let gone = compared.gone.join("; ");
                (Outcome::NotDone, format!("{rows}; dropped, renamed or replaced meanwhile: {gone}"))
            } else {
                (Outcome::Passed, rows)
            };
            report.check(COMPARES, outcome, detail);
        }
        tell("removing the clone");
        Ok(())
    }

    /// What a promotion does with PostgreSQL, on the clone.
    async fn take_over(
        &self,
        clone: &Instance,
        connection: &PgConnectOptions,
        report: &mut Report,
        tell: &dyn Fn(&str),
    ) -> Result<(), DrillError> {
        clone.start(START).await?;
        let mut own = PgConnection::connect_with(connection).await?;
        let paused = async {
            loop {
                let state: String =
                    sqlx::query_scalar("SELECT pg_get_wal_replay_pause_state()").fetch_one(&mut own).await?;
                if state == "paused" {
                    return Ok::<_, sqlx::Error>(());
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        match tokio::time::timeout(REPLAY, paused).await {
            Ok(paused) => paused?,
            Err(_) => {
                return Err(DrillError::Replay(format!(
                    "the redo up to the primary's moment was not there and applied within {} s",
                    REPLAY.as_secs()
                )));
            }
        }
        report.step("replay", "from the standby's last restart point to that moment");
        tell("promoting the clone");
        // Its commits shall cost what commits cost.
        set_fsync(&mut own, "on").await?;
        let order = clone.options().data_dir.join("promote");
        sqlx::query("SELECT pg_promote(false)").execute(&mut own).await?;
        // In a pause it is looked for once a second, and taken away then: that is when a promotion begins.
        let seen = async {
            while order.exists() {
                tokio::time::sleep(LOOK / 4).await;
            }
        };
        // One that is never seen is never promoted either.
        let _ = tokio::time::timeout(PROMOTE, seen).await;
        report.settle();
        let promoted = async {
            while sqlx::query_scalar("SELECT pg_is_in_recovery()").fetch_one(&mut own).await? {
                tokio::time::sleep(LOOK).await;
            }
            write(&mut own).await
        };
        match tokio::time::timeout(PROMOTE, promoted).await {
            Ok(promoted) => promoted?,
            Err(_) => {
                let seconds = PROMOTE.as_secs();
                return Err(DrillError::Replay(format!("PostgreSQL was not promoted within {seconds} s")));
            }
        }
        report.rto.promotion_ms = report.step("promote", "to the first commit on disk");
        // What comes now is thrown away, and its flushes would be in the way of others on the disk.
        set_fsync(&mut own, "off").await?;
        let databases: Vec<String> =
            sqlx::query_scalar("SELECT datname::text FROM pg_database WHERE datallowconn")
                .fetch_all(&mut own)
                .await?;
        for database in &databases {
            let mut connection = PgConnection::connect_with(&connection.clone().database(database)).await?;
            write(&mut connection).await?;
        }
        report.step("open", &format!("{} databases take writes", databases.len()));
        Ok(())
    }

    /// Promotes the region for real, and then the old primary again.
    ///
    /// # Errors
    /// When a promotion is refused or not done; the error says which, and the report up to there is lost.
    pub async fn full(&self, tell: &dyn Fn(&str)) -> Result<Report, DrillError> {
        let status = self.status().await?;
        let (region, primary) = (&self.own.name, status.primary.clone());
        let row = self.row(&status)?;
        if row.role != "secondary" || row.state != "streaming" {
            return Err(not_now(row));
        }
        let back: RegionName =
            primary.parse().map_err(|_| DrillError::Answer("the primary's name".into()))?;
        let mut report = Report::new(Kind::Full, &status, region, self.config.lease);
        let watch = self.watch()?;
        for to in [region, &back] {
            tell(&format!("switchover to {to}"));
            let promoted =
                self.operator.promote(to, PromoteRequest::default(), &|what| eprintln!("{what}")).await;
            let promoted = promoted.map_err(|e| {
                DrillError::Daemon(format!(
                    "the switchover to {to} was not done: {e}. `replicator status` says who leads"
                ))
            })?;
            let steps: Vec<String> =
                promoted.steps.iter().map(|step| format!("{} {} ms", step.name, step.us / 1000)).collect();
            let gap_ms = promoted.write_gap_us / 1000;
            report.rto.promotion_ms = report.rto.promotion_ms.max(gap_ms);
            report.step(
                &format!("switchover to {to}"),
                &format!("writes stopped for {gap_ms} ms: {}", steps.join(", ")),
            );
            report.lsn = Lsn(promoted.fork_lsn).to_string();
            self.until_level(to.as_str()).await?;
            report.step("follow", &format!("every region follows {to}"));
            report.check(&format!("{to} led, and every region followed"), Outcome::Passed, String::new());
        }
        report.lag = watch.end().await;
        Ok(report.finished())
    }

    async fn until_level(&self, primary: &str) -> Result<(), DrillError> {
        let level = async {
            loop {
                if let Ok(status) = self.status().await
                    && status.primary == primary
                    && status.regions.iter().all(|row| row.state == "streaming")
                    && status.regions.iter().all(|row| row.behind_bytes.unwrap_or(0) < 1 << 20)
                {
                    return;
                }
                tokio::time::sleep(LOOK * 20).await;
            }
        };
        tokio::time::timeout(LEVEL, level).await.map_err(|_| {
            let seconds = LEVEL.as_secs();
            DrillError::NotNow(format!("{primary} leads, and not every region followed within {seconds} s"))
        })
    }

    async fn status(&self) -> Result<ClusterStatus, DrillError> {
        self.operator.status(None).await.map_err(DrillError::daemon)
    }

    fn row<'a>(&self, status: &'a ClusterStatus) -> Result<&'a RegionStatus, DrillError> {
        let row = status.regions.iter().find(|row| row.name == self.own.name.as_str());
        row.ok_or_else(|| DrillError::Answer("a status without the region".into()))
    }

    fn watch(&self) -> Result<Watch, DrillError> {
        let operator = Operator::new(self.config.clone(), &self.layout).map_err(DrillError::daemon)?;
        Ok(Watch::begin(operator, self.own.name.to_string()))
    }

    /// Where the primary is, when no better moment is found.
    async fn present(&self, primarys: &PgConnectOptions) -> Result<Lsn, DrillError> {
        let mut connection = PgConnection::connect_with(primarys).await?;
        let lsn: String =
            sqlx::query_scalar("SELECT pg_current_wal_insert_lsn()::text").fetch_one(&mut connection).await?;
        let message = "SELECT pg_logical_emit_message(true, 'replicator_drill', '')";
        sqlx::query(message).execute(&mut connection).await?;
        lsn.parse().map_err(|_| DrillError::Answer(format!("'{lsn}' is no LSN")))
    }

    fn clone(&self) -> Result<Instance, DrillError> {
        let installations =
            Installation::for_data(self.config.bin_dir_of(&self.own), &self.places.pgdata())?.into();
        let account = Account::resolve(self.config.os_user.as_deref())?.gently();
        let directory = self.places.drill();
        Ok(Instance::new(InstanceOptions {
            installations,
            account,
            data_dir: directory.join("pgdata"),
            socket_dir: socket_dir_for(&directory),
            listen: self.own.postgres,
            log_file: directory.join("postgresql.log"),
            name: postgres::sockets::REHEARSAL.into(),
            settings: self.config.settings_of(&self.own),
            hba: Vec::new(),
            ident: Vec::new(),
            authorities: None,
            certificate: None,
        }))
    }
}

/// Has the clone flush what it writes, or not.
async fn set_fsync(own: &mut PgConnection, to: &'static str) -> Result<(), sqlx::Error> {
    sqlx::query(AssertSqlSafe(format!("ALTER SYSTEM SET fsync = {to}"))).execute(&mut *own).await?;
    sqlx::query("SELECT pg_reload_conf()").execute(own).await?;
    Ok(())
}

/// The check that compares rows.
const COMPARES: &str = "holds the same rows as the primary";

fn not_now(row: &RegionStatus) -> DrillError {
    let RegionStatus { name, role, state, detail, .. } = row;
    let more = if detail.is_empty() { String::new() } else { format!(": {detail}") };
    DrillError::NotNow(format!(
        "{name} is {role} and {state}{more}: a drill needs a secondary that streams; see `replicator status`"
    ))
}

/// Libraries that run jobs by themselves would do in the clone what the primary does already.
fn without_jobs(preload: &str) -> String {
    let libraries = preload.split(',').map(str::trim);
    libraries.filter(|name| !name.is_empty() && *name != "pg_cron").collect::<Vec<_>>().join(", ")
}

fn local(socket_dir: &Path, port: u16, major: Major) -> PgConnectOptions {
    let options = PgConnectOptions::new_without_pgpass()
        .socket(socket_dir)
        .port(port)
        .username(SUPERUSER)
        .database("postgres")
        .application_name(postgres::sockets::REHEARSAL)
        .disable_statement_logging();
    moment::own(options, major)
}

/// Commits a row, and takes it back.
async fn write(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    // An event trigger of the user's may forbid it, and is not what is rehearsed.
    sqlx::raw_sql("SET session_replication_role = replica").execute(&mut *connection).await?;
    let write = "CREATE TABLE public.replicator_drill AS SELECT now() AS at";
    sqlx::raw_sql(write).execute(&mut *connection).await?;
    sqlx::raw_sql("DROP TABLE public.replicator_drill").execute(connection).await?;
    Ok(())
}

async fn amcheck(clone: &Instance) -> Result<(Outcome, String), DrillError> {
    let InstanceOptions { account, socket_dir, listen, .. } = clone.options();
    let program = clone.installation().program("pg_amcheck");
    let mut command = account.command(&program);
    command.args([
        "--all",
        "--install-missing",
        "--heapallindexed",
        "--no-password",
        "--username",
        SUPERUSER,
    ]);
    command.arg("--host").arg(socket_dir).arg("--port").arg(listen.port().to_string());
    let mut command = tokio::process::Command::from(command);
    // Its process ends with the drill.
    let output = command.kill_on_drop(true).output().await;
    let output = output.map_err(DrillError::at(&program))?;
    let said =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    let lines: Vec<&str> = said.lines().take(20).collect();
    let outcome = match output.status.code() {
        Some(0) => return Ok((Outcome::Passed, String::new())),
        // It has found something.
        Some(2) => Outcome::Failed,
        _ => Outcome::NotDone,
    };
    Ok((outcome, lines.join("\n")))
}

/// Stops a clone, and removes all of it.
async fn remove(clone: &Instance, directory: &Path) -> Result<(), DrillError> {
    clone.stop(Stop::Immediate, Duration::from_secs(30)).await?;
    for path in [directory, &clone.options().socket_dir] {
        match std::fs::remove_dir_all(path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(DrillError::at(path)(e)),
            _ => {}
        }
    }
    Ok(())
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clone_runs_no_jobs() {
        assert_eq!(
            without_jobs("pg_stat_statements, pg_cron,timescaledb"),
            "pg_stat_statements, timescaledb"
        );
        assert_eq!(without_jobs(""), "");
    }
}
