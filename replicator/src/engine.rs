//! Keeps a PostgreSQL running, a region's or a node's: starts it, takes over one that runs already, starts it
//! again when it dies.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use postgres::instance::{Instance, InstanceError, Stop};
use proto::Lsn;
use runtime::task::Task;
use tokio_util::sync::CancellationToken;

use crate::events::{Journal, Kind};

/// How long a PostgreSQL may take to stop that a process which was killed has left running.
pub(crate) const LEFT_RUNNING: Duration = Duration::from_secs(30);

/// How often a running PostgreSQL is looked at.
const WATCH: Duration = Duration::from_millis(250);

/// The wait before PostgreSQL is started again.
const RESTART: Duration = Duration::from_secs(1);

/// A standby accepts connections once it has all the redo it needs, which may take as long as catching up
/// does.
const PATIENCE: Duration = Duration::from_secs(365 * 24 * 3600);

/// How long a clean shutdown may take before the instance is stopped at once.
const SHUTDOWN: Duration = Duration::from_secs(30);

/// The same where it is only to start again.
const RESTARTING: Duration = Duration::from_secs(5);

/// A PostgreSQL that is being kept running. Where this is dropped PostgreSQL goes on, and nothing starts it
/// again.
#[derive(Debug)]
pub struct Engine {
    instance: Instance,
    hindered: Arc<Mutex<Option<Hindered>>>,
    stop: CancellationToken,
    keeper: Task<()>,
}

/// Why clients cannot connect.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Hindered {
    /// PostgreSQL does not accept connections, or cannot be told to; in words.
    Trouble(String),
    /// It is a writer that has redo up to here, which may not be acknowledged yet.
    Shut(Lsn),
}

fn trouble(words: impl Into<String>) -> Option<Hindered> {
    Some(Hindered::Trouble(words.into()))
}

impl Engine {
    /// Starts `instance`, which is configured, and keeps it running.
    #[must_use]
    pub fn start(instance: Instance, journal: Journal) -> Engine {
        let (stop, hindered) = (CancellationToken::new(), Arc::new(Mutex::new(trouble("starting"))));
        let keeper = Task::spawn(
            "keep PostgreSQL running",
            keep(instance.clone(), hindered.clone(), stop.clone(), journal),
        );
        Engine { instance, hindered, stop, keeper }
    }

    /// Why PostgreSQL does not accept connections, in words; none while it does, be it only ours.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        match self.hindered() {
            Some(Hindered::Trouble(words)) => Some(words),
            Some(Hindered::Shut(_)) | None => None,
        }
    }

    /// Up to where a writer has redo that may not be acknowledged yet, while it lets no client in for that.
    #[must_use]
    pub fn shut_until(&self) -> Option<Lsn> {
        match self.hindered() {
            Some(Hindered::Shut(lsn)) => Some(lsn),
            Some(Hindered::Trouble(_)) | None => None,
        }
    }

    fn hindered(&self) -> Option<Hindered> {
        self.hindered.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Stops PostgreSQL at once: no client gets an answer any more.
    ///
    /// # Errors
    /// When it cannot be stopped.
    pub async fn stop_now(self) -> Result<(), InstanceError> {
        self.stop.cancel();
        let _ = self.keeper.await;
        self.instance.stop(Stop::Immediate, SHUTDOWN).await
    }

    /// Stops PostgreSQL cleanly, or at once if that takes too long.
    ///
    /// # Errors
    /// When it cannot be stopped at all.
    pub async fn stop(self) -> Result<(), InstanceError> {
        self.stop.cancel();
        // A keeper that panicked keeps nothing running any more.
        let _ = self.keeper.await;
        match self.instance.stop(Stop::Fast, SHUTDOWN).await {
            Err(InstanceError::NotStopped(_)) => {
                tracing::warn!(
                    "PostgreSQL did not shut down within {} s; stopping it at once",
                    SHUTDOWN.as_secs()
                );
                self.instance.stop(Stop::Immediate, SHUTDOWN).await
            }
            other => other,
        }
    }
}

/// Stops a PostgreSQL that is kept running: it is started again, with the configuration that it has by then.
///
/// # Errors
/// When it cannot be stopped.
pub(crate) async fn restart(instance: &Instance) -> Result<(), InstanceError> {
    match instance.stop(Stop::Fast, RESTARTING).await {
        Err(InstanceError::NotStopped(_)) => instance.stop(Stop::Immediate, SHUTDOWN).await,
        other => other,
    }
}

/// Lets clients into a writer that was started, once they see only what may be acknowledged; returns whether
/// they are in. They are not when it has ended.
async fn open_door(instance: &Instance, set: &(impl Fn(Option<Hindered>) + Sync)) -> bool {
    let mut failed = String::new();
    while instance.is_shut() {
        let waits = |end_lsn| {
            tracing::info!(
                "PostgreSQL has redo up to {end_lsn}; clients are let in once that may be acknowledged"
            );
            set(Some(Hindered::Shut(end_lsn)));
        };
        let Err(e) = instance.open_door(waits).await else { break };
        if instance.process().is_none() {
            return false;
        }
        if failed != e.to_string() {
            failed = e.to_string();
            tracing::error!("clients are not let in: {failed}; trying again");
        }
        set(trouble(&failed));
        tokio::time::sleep(RESTART).await;
    }
    true
}

async fn keep(
    instance: Instance,
    hindered: Arc<Mutex<Option<Hindered>>>,
    stop: CancellationToken,
    journal: Journal,
) {
    let name = instance.options().name.clone();
    // The same failure again and again is one event.
    let mut failed = String::new();
    let set = |what: Option<Hindered>| *hindered.lock().unwrap_or_else(PoisonError::into_inner) = what;
    let keeping = async {
        loop {
            match instance.start(PATIENCE).await {
                Ok(()) => {
                    if !open_door(&instance, &set).await {
                        continue;
                    }
                    tracing::info!("PostgreSQL accepts connections at {}", instance.options().listen);
                    set(None);
                    failed.clear();
                    let at = instance.options().listen;
                    journal.note(
                        Kind::PostgresStarted,
                        format!("PostgreSQL of {name}: it accepts connections at {at}; clients can connect"),
                    );
                    while instance.process().is_some() {
                        tokio::time::sleep(WATCH).await;
                    }
                    tracing::warn!("PostgreSQL ended; starting it again");
                    journal.note(
                        Kind::PostgresEnded,
                        format!(
                            "PostgreSQL of {name}: it ended, and nobody told it to; it is being started again"
                        ),
                    );
                    set(trouble("PostgreSQL ended and is being started again"));
                }
                Err(e) => {
                    if failed != e.to_string() {
                        failed = e.to_string();
                        tracing::error!("{failed}; its start is tried again each second");
                        let text =
                            format!("PostgreSQL of {name}: {failed}; its start is tried again each second");
                        journal.note(Kind::PostgresFailed, text);
                    }
                    set(trouble(e.to_string()));
                    tokio::time::sleep(RESTART).await;
                }
            }
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = keeping => {}
    }
}
