//! A session of the daemon's own with its PostgreSQL: questions in SQL, with a deadline each.
//!
//! It takes one of the connections that are kept for replication, which are the product's: so it is let in
//! also when clients have taken all others, the superuser's reserved ones too. Whatever the server, the
//! database or the role sets for sessions is set aside.

use std::time::Duration;

use tokio::time::timeout;

use super::client::{ClientError, ConnectOptions, ReplicationClient, Row};

/// Databases to ask in, in turn: one of them may have been dropped.
pub const DATABASES: [&str; 2] = ["postgres", "template1"];

/// What the session sets for itself, against what production sets for everybody. All of it is known to the
/// oldest PostgreSQL that works.
const OPTIONS: &str = "-c role=none -c statement_timeout=0 -c lock_timeout=5s -c idle_session_timeout=0 \
     -c idle_in_transaction_session_timeout=0 -c default_transaction_read_only=off -c search_path=pg_catalog \
     -c session_preload_libraries= -c log_statement=none -c log_min_duration_statement=-1 -c jit=off";

/// Whether an error's code says that the database is not there, or takes no connections.
#[must_use]
pub fn is_of_database(code: &str) -> bool {
    matches!(code, "3D000" | "55000")
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// See [`ClientError`].
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The server does not answer.
    #[error("no answer within {} s", .0.as_secs_f32())]
    Late(Duration),
    /// The answer lacks a field or has one that is not what it should be.
    #[error("PostgreSQL's answer to '{0}' is not understood")]
    Answer(String),
}

impl SessionError {
    /// The code of what the server says is wrong.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        match self {
            SessionError::Client(ClientError::Server(error)) => Some(&error.code),
            _ => None,
        }
    }
}

/// A session.
#[derive(Debug)]
pub struct Session {
    client: ReplicationClient,
}

impl Session {
    /// Opens a session with the server of `options`, in whichever database there is.
    ///
    /// # Errors
    /// When that takes longer than `deadline`, or the server does not let us in.
    pub async fn open(options: &ConnectOptions, deadline: Duration) -> Result<Session, SessionError> {
        let opening = timeout(deadline, async {
            let mut opened = Session::open_in(options, DATABASES[0]).await;
            if let Err(ClientError::Server(error)) = &opened
                && is_of_database(&error.code)
            {
                opened = Session::open_in(options, DATABASES[1]).await;
            }
            opened
        });
        Ok(opening.await.map_err(|_| SessionError::Late(deadline))??)
    }

    /// The same in this database.
    ///
    /// # Errors
    /// When that takes longer than `deadline`, or the server does not let us in.
    pub async fn open_database(
        options: &ConnectOptions,
        database: &str,
        deadline: Duration,
    ) -> Result<Session, SessionError> {
        let opening = timeout(deadline, Session::open_in(options, database));
        Ok(opening.await.map_err(|_| SessionError::Late(deadline))??)
    }

    async fn open_in(options: &ConnectOptions, database: &str) -> Result<Session, ClientError> {
        let of_major =
            options.major.session_settings().iter().map(|(name, value)| format!(" -c {name}={value}"));
        let own = OPTIONS.to_owned() + &of_major.collect::<String>();
        let parameters = [
            ("user", options.user.as_str()),
            ("database", database),
            ("replication", "database"),
            ("application_name", options.application_name.as_str()),
            ("client_encoding", "UTF8"),
            ("options", &own),
        ];
        ReplicationClient::log_in(options, &parameters).await.map(|client| Session { client })
    }

    async fn ask(&mut self, statement: &str) -> Result<Vec<Row>, ClientError> {
        const COMMAND: &str = "a statement";
        self.client.send_query(statement).await?;
        let answer = self.client.rows(COMMAND, true).await;
        if let Err(ClientError::Server(_)) = &answer {
            // What follows an error says that the session takes the next statement.
            self.client.rows(COMMAND, true).await?;
        }
        answer
    }

    /// Runs one statement; its rows, each field as text or NULL.
    ///
    /// # Errors
    /// When the server refuses; or does not answer within `deadline`: then the session is of no use any more.
    pub async fn rows(&mut self, statement: &str, deadline: Duration) -> Result<Vec<Row>, SessionError> {
        Ok(timeout(deadline, self.ask(statement)).await.map_err(|_| SessionError::Late(deadline))??)
    }
}
