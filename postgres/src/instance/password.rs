//! The superuser's password as the running instance has it.

use std::time::Duration;

use super::Instance;
use crate::protocol::session::SessionError;
use crate::scram;
use crate::sockets::SUPERUSER;

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(3);

/// What PostgreSQL is to say in no log, and what is not to be durable anywhere but where commits are.
const QUIETLY: [&str; 2] = ["SET log_min_error_statement = panic", "SET synchronous_commit = on"];

impl Instance {
    /// What the instance keeps of the superuser's password; none where it has none.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub async fn superuser_verifier(&self) -> Result<Option<String>, SessionError> {
        let question = format!("SELECT rolpassword FROM pg_authid WHERE rolname = '{SUPERUSER}'");
        let rows = self.session(ANSWER).await?.rows(&question, ANSWER).await?;
        Ok(rows.first().and_then(|row| row.first().cloned().flatten()))
    }

    /// Gives the superuser another password, of ASCII; durable, wherever commits are, when this returns.
    ///
    /// # Errors
    /// When the instance takes no writes, or does not answer within `deadline`: then it is not known whether
    /// it has it.
    pub async fn set_superuser_password(
        &self,
        password: &str,
        deadline: Duration,
    ) -> Result<(), SessionError> {
        let verifier = scram::verifier(password, &runtime::random::draw());
        let mut session = self.session(ANSWER).await?;
        for quietly in QUIETLY {
            session.rows(quietly, ANSWER).await?;
        }
        session.rows(&format!("ALTER ROLE {SUPERUSER} PASSWORD '{verifier}'"), deadline).await.map(drop)
    }
}
