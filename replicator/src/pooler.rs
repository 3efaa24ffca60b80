//! The PgBouncers in front of the writer: before a writer is stopped as planned they are paused, so that no
//! client is in the middle of anything, and once there is a writer again they go on. Their clients wait
//! meanwhile, and see no error.
//!
//! Nothing depends on it: a PgBouncer that cannot be paused is told of, and its clients see what clients
//! without one do.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use proto::RegionName;
use runtime::clock::now;
use runtime::task::{Task, Tasks};
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{ConnectOptions, Connection, PgConnection};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use crate::config::PoolersConfig;
use crate::preflight::{self, Finding};

/// How long a console may take to let us in, and to answer what it answers at once.
const ANSWER: Duration = Duration::from_secs(2);

/// A PgBouncer is told again to go on for so long: an order to pause may still be on its way to it.
const RESUMES: Duration = Duration::from_secs(10);

/// The wait before it is told again; and where it does not take that, at most.
const AGAIN: Duration = Duration::from_millis(500);
const SELDOM: Duration = Duration::from_secs(5);

/// How long one may go on waiting for its clients' transactions, which end with the writer.
const PAUSES: Duration = Duration::from_secs(60);

/// How a console answers that has nothing to resume.
const NOT_PAUSED: &str = "not paused";

/// A console's name for its database.
const CONSOLE: &str = "pgbouncer";

/// Why a console does not do what it is told.
#[derive(Debug, thiserror::Error)]
pub enum PoolerError {
    /// The password cannot be read.
    #[error("the password in {path}: {source}")]
    Password {
        /// Where it is looked for.
        path: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// It does not let us in, or says no.
    #[error(transparent)]
    Console(#[from] sqlx::Error),
    /// It does not answer.
    #[error("no answer within {} s", .0.as_secs())]
    Late(Duration),
}

/// The PgBouncers, as the region that leads works with them.
#[derive(Debug, Default)]
pub struct Poolers {
    /// Consoles that are being told to pause. One whose client leaves before the answer takes the pause back:
    /// so they are waited for until they are told to go on.
    pausing: Mutex<Tasks>,
    /// Consoles that are being told to go on.
    resuming: Mutex<Tasks>,
}

impl Poolers {
    /// Pauses all of them at once. Returns when each holds its clients, or after the configured wait:
    /// transactions that last longer are ended by the writer's stop.
    pub async fn pause(&self, config: &PoolersConfig) {
        *lock(&self.resuming) = Tasks::new();
        let (tasks, mut answers) = (Tasks::new(), Vec::new());
        for console in &config.consoles {
            let (answer, answered) = oneshot::channel();
            answers.push((console, answered));
            let (config, console) = (config.clone(), console.clone());
            tasks.spawn(async move {
                let _ = answer.send(tell(&config, &console, "PAUSE", PAUSES).await);
            });
        }
        *lock(&self.pausing) = tasks;
        let begin = now();
        for (console, answered) in answers {
            let left = config.wait.saturating_sub(begin.elapsed());
            match timeout(left, answered).await {
                Ok(Ok(Ok(()))) => {}
                Ok(Ok(Err(e))) => tracing::warn!("PgBouncer {console} is not paused: {e}"),
                Ok(Err(_)) | Err(_) => tracing::warn!(
                    "PgBouncer {console} still has transactions after {} s: they are ended with the writer",
                    config.wait.as_secs_f32()
                ),
            }
        }
    }

    /// Has all of them go on once `is_ready` says that there is a writer; unless it says that there is none
    /// here any more.
    pub fn resume_when(&self, config: &PoolersConfig, is_ready: impl Future<Output = bool> + Send + 'static) {
        // One that still waits for transactions takes its pause back.
        *lock(&self.pausing) = Tasks::new();
        let (tasks, go) = (Tasks::new(), CancellationToken::new());
        for console in &config.consoles {
            let (config, console, go) = (config.clone(), console.clone(), go.clone());
            tasks.spawn(async move {
                // It lets us in while the writer starts.
                let early = connect(&config, &console).await.ok();
                go.cancelled().await;
                resume(&config, &console, early).await;
            });
        }
        tasks.spawn(async move {
            if is_ready.await {
                go.cancel();
            }
        });
        *lock(&self.resuming) = tasks;
    }
}

fn lock(tasks: &Mutex<Tasks>) -> MutexGuard<'_, Tasks> {
    // It is replaced whole.
    tasks.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Has one go on, at first by the connection that there may be. A console that does not take that is told
/// again and again.
async fn resume(config: &PoolersConfig, console: &str, mut early: Option<PgConnection>) {
    let (mut since, mut wait, mut is_told) = (None, AGAIN, false);
    while since.is_none_or(|since: Instant| since.elapsed() < RESUMES) {
        let told = match early.take() {
            Some(connection) => match say(connection, "RESUME", ANSWER).await {
                // It has gone meanwhile.
                Err(PoolerError::Console(e)) if e.as_database_error().is_none() => continue,
                told => told,
            },
            None => tell(config, console, "RESUME", ANSWER).await,
        };
        match told {
            Ok(()) => {
                tracing::info!("PgBouncer {console} goes on");
                since.get_or_insert_with(now);
            }
            Err(PoolerError::Console(sqlx::Error::Database(e))) if e.message().contains(NOT_PAUSED) => {
                since.get_or_insert_with(now);
            }
            Err(e) => {
                if !is_told {
                    tracing::warn!(
                        "PgBouncer {console} is not told to go on yet: {e}; where it is paused, RESUME in its console does that"
                    );
                }
                (is_told, wait) = (true, SELDOM.min(wait * 2));
            }
        }
        sleep(wait).await;
    }
}

/// What `region` finds of consoles that it cannot tell anything, before that is needed.
pub async fn findings(config: &PoolersConfig, region: &RegionName) -> Vec<Finding> {
    let looks = config.consoles.iter().map(|console| {
        let (config, asked) = (config.clone(), console.clone());
        let look = async move { timeout(ANSWER, tell(&config, &asked, "SHOW VERSION", ANSWER)).await };
        (console, Task::spawn("ask PgBouncer", look))
    });
    let mut found = Vec::new();
    for (console, look) in looks.collect::<Vec<_>>() {
        let why = match look.await {
            Ok(Ok(Ok(()))) => continue,
            Ok(Ok(Err(e))) => e.to_string(),
            Ok(Err(_)) => PoolerError::Late(ANSWER).to_string(),
            Err(e) => e.to_string(),
        };
        found.push(preflight::of_pooler(region, console, &why));
    }
    found
}

async fn tell(
    config: &PoolersConfig,
    console: &str,
    command: &'static str,
    patience: Duration,
) -> Result<(), PoolerError> {
    say(connect(config, console).await?, command, patience).await
}

async fn connect(config: &PoolersConfig, console: &str) -> Result<PgConnection, PoolerError> {
    let options = options(config, console)?;
    let connecting = timeout(ANSWER, PgConnection::connect_with(&options)).await;
    Ok(connecting.map_err(|_| PoolerError::Late(ANSWER))??)
}

async fn say(
    mut connection: PgConnection,
    command: &'static str,
    patience: Duration,
) -> Result<(), PoolerError> {
    let said = timeout(patience, sqlx::raw_sql(command).execute(&mut connection)).await;
    said.map_err(|_| PoolerError::Late(patience))??;
    // It has done what it was told; that it sees us leave is for its log.
    let _ = timeout(ANSWER, connection.close()).await;
    Ok(())
}

fn options(config: &PoolersConfig, console: &str) -> Result<PgConnectOptions, PoolerError> {
    let (host, port) = console.rsplit_once(':').unwrap_or((console, ""));
    let port = port.parse().unwrap_or(6432);
    let options = PgConnectOptions::new_without_pgpass()
        .port(port)
        .username(&config.user)
        .database(CONSOLE)
        // It takes no other settings of a session than its own.
        .extra_float_digits(None)
        .disable_statement_logging();
    let options = match host.starts_with('/') {
        true => options.socket(Path::new(host)),
        false => options.host(host.trim_matches(['[', ']'])).ssl_mode(PgSslMode::Prefer),
    };
    let Some(path) = &config.password_file else { return Ok(options) };
    let read = std::fs::read_to_string(path).map(Zeroizing::new);
    let password =
        read.map_err(|source| PoolerError::Password { path: path.display().to_string(), source })?;
    Ok(options.password(password.trim()))
}
