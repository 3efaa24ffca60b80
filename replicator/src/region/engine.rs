//! Keeps the region's PostgreSQL running: starts it, takes over one that runs already, starts it again when it dies.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use postgres::instance::{Instance, InstanceError};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// How often a running PostgreSQL is looked at.
const WATCH: Duration = Duration::from_millis(250);

/// The wait before PostgreSQL is started again.
const RESTART: Duration = Duration::from_secs(1);

/// A standby accepts connections once it has all the redo it needs, which may take as long as catching up does.
const PATIENCE: Duration = Duration::from_secs(365 * 24 * 3600);

/// How long a clean shutdown may take before the instance is stopped at once.
const SHUTDOWN: Duration = Duration::from_secs(30);

/// A PostgreSQL that is being kept running.
#[derive(Debug)]
pub struct Engine {
    instance: Instance,
    trouble: Arc<Mutex<Option<String>>>,
    stop: CancellationToken,
    keeper: JoinHandle<()>,
}

impl Engine {
    /// Starts `instance`, which is configured, and keeps it running.
    #[must_use]
    pub fn start(instance: Instance) -> Engine {
        let (stop, trouble) = (CancellationToken::new(), Arc::new(Mutex::new(Some("starting".to_owned()))));
        let keeper = tokio::spawn(keep(instance.clone(), trouble.clone(), stop.clone()));
        Engine { instance, trouble, stop, keeper }
    }

    /// Why PostgreSQL does not accept connections, in words; none while it does.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until PostgreSQL accepts connections.
    pub async fn accepts(&self) {
        while self.trouble().is_some() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Stops PostgreSQL at once: no client gets an answer any more.
    ///
    /// # Errors
    /// When it cannot be stopped.
    pub async fn stop_now(self) -> Result<(), InstanceError> {
        self.stop.cancel();
        let _ = self.keeper.await;
        self.instance.stop(true, SHUTDOWN).await
    }

    /// Stops PostgreSQL cleanly, or at once if that takes too long.
    ///
    /// # Errors
    /// When it cannot be stopped at all.
    pub async fn stop(self) -> Result<(), InstanceError> {
        self.stop.cancel();
        // A keeper that panicked keeps nothing running any more.
        let _ = self.keeper.await;
        match self.instance.stop(false, SHUTDOWN).await {
            Err(InstanceError::NotStopped(_)) => {
                tracing::warn!(
                    "PostgreSQL did not shut down within {} s; stopping it at once",
                    SHUTDOWN.as_secs()
                );
                self.instance.stop(true, SHUTDOWN).await
            }
            other => other,
        }
    }
}

async fn keep(instance: Instance, trouble: Arc<Mutex<Option<String>>>, stop: CancellationToken) {
    let set = |what: Option<String>| *trouble.lock().unwrap_or_else(PoisonError::into_inner) = what;
    let keeping = async {
        loop {
            match instance.start(PATIENCE).await {
                Ok(()) => {
                    tracing::info!("PostgreSQL accepts connections at {}", instance.options().listen);
                    set(None);
                    while instance.process().is_some() {
                        tokio::time::sleep(WATCH).await;
                    }
                    tracing::warn!("PostgreSQL ended; starting it again");
                    set(Some("PostgreSQL ended and is being started again".into()));
                }
                Err(e) => {
                    tracing::error!("{e}");
                    set(Some(e.to_string()));
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
