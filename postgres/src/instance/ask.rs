//! Asking a running instance, in sessions of the daemon's own.

use std::time::Duration;

use super::Instance;
use crate::protocol::client::ConnectOptions;
use crate::protocol::session::{Session, SessionError};
use crate::sockets::WATCHER;

/// How long a checkpoint may take that a rewind waits for. A hand-over waits for less.
const CHECKPOINT: Duration = Duration::from_secs(1800);

/// How long a session may take to be opened.
const OPEN: Duration = Duration::from_secs(10);

impl Instance {
    /// How the daemon reaches it to ask how it is.
    #[must_use]
    pub fn watching_connection(&self) -> ConnectOptions {
        let logins = self.logins.clone();
        ConnectOptions { application_name: WATCHER.into(), logins, ..self.local_connection() }
    }

    /// A session with it.
    ///
    /// # Errors
    /// When it does not let us in within `deadline`.
    pub async fn session(&self, deadline: Duration) -> Result<Session, SessionError> {
        Session::open(&self.watching_connection(), deadline).await
    }

    /// Writes a checkpoint now, so that a shutdown soon after has little left to write.
    ///
    /// # Errors
    /// When the instance cannot be asked.
    pub async fn checkpoint(&self) -> Result<(), SessionError> {
        self.session(OPEN).await?.rows("CHECKPOINT", CHECKPOINT).await.map(drop)
    }
}
