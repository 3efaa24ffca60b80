//! The passwords of the superuser, and of the role that applications use, as the running instance has them.

use std::time::Duration;

use aws_lc_rs::digest;

use super::Instance;
use crate::protocol::session::{Session, SessionError};
use crate::scram;
use crate::sockets::SUPERUSER;

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(3);

/// What PostgreSQL is to say in no log, and what is not to be durable anywhere but where commits are.
const QUIETLY: [&str; 2] = ["SET log_min_error_statement = panic", "SET synchronous_commit = on"];

/// The role that applications use, which owns the database of its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// Its name: an identifier that needs no quotes.
    pub name: String,
    /// Its password, of ASCII.
    pub password: String,
}

/// What the instance knows of the owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnerIs {
    /// There is no such role.
    Absent,
    /// Its password is one that was set here.
    Ours,
    /// Somebody else has given it its password, or none.
    Theirs,
}

impl Owner {
    /// The salt by which a password that was set here is known again. It is the same for a name always: the
    /// password is drawn at random, and is nobody's to guess.
    fn salt(name: &str) -> [u8; 16] {
        let of_name = digest::digest(&digest::SHA256, format!("replicator role {name}").as_bytes());
        let mut salt = [0; 16];
        salt.copy_from_slice(&of_name.as_ref()[..16]);
        salt
    }

    /// The statements that make it, one a line.
    pub(super) fn made(&self) -> String {
        let Owner { name, password } = self;
        let verifier = scram::verifier(password, &Owner::salt(name));
        format!(
            "CREATE ROLE \"{name}\" LOGIN PASSWORD '{verifier}'\nCREATE DATABASE \"{name}\" OWNER \"{name}\"\n"
        )
    }
}

fn is_of(verifier: Option<&str>, name: &str) -> OwnerIs {
    match verifier.is_some_and(|verifier| scram::has_salt(verifier, &Owner::salt(name))) {
        true => OwnerIs::Ours,
        false => OwnerIs::Theirs,
    }
}

impl Instance {
    /// What the instance keeps of the superuser's password; none where it has none.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub async fn superuser_verifier(&self) -> Result<Option<String>, SessionError> {
        let mut session = self.session(ANSWER).await?;
        Ok(verifier_of(&mut session, SUPERUSER).await?.flatten())
    }

    /// What the instance knows of the role `name`, which is not the superuser.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub async fn owner_is(&self, name: &str) -> Result<OwnerIs, SessionError> {
        let mut session = self.session(ANSWER).await?;
        let found = verifier_of(&mut session, name).await?;
        Ok(found.map_or(OwnerIs::Absent, |verifier| is_of(verifier.as_deref(), name)))
    }

    /// Gives the superuser another password, of ASCII, and the owner its own in the same moment; durable,
    /// wherever commits are, when this returns. An owner that is not there is made; one that somebody
    /// else has given a password keeps that.
    ///
    /// # Errors
    /// When the instance takes no writes, or does not answer within `deadline`: then it is not known whether
    /// it has it.
    pub async fn set_passwords(
        &self,
        password: &str,
        owner: Option<&Owner>,
        deadline: Duration,
    ) -> Result<(), SessionError> {
        let verifier = scram::verifier(password, &runtime::random::draw());
        let mut session = self.session(ANSWER).await?;
        for quietly in QUIETLY {
            session.rows(quietly, ANSWER).await?;
        }
        // Statements of one message are one transaction.
        let mut set = format!("ALTER ROLE {SUPERUSER} PASSWORD '{verifier}'");
        let mut makes = None;
        if let Some(owner @ Owner { name, password }) = owner {
            match verifier_of(&mut session, name).await? {
                None => makes = Some(owner.made()),
                Some(found) if is_of(found.as_deref(), name) == OwnerIs::Ours => {
                    let verifier = scram::verifier(password, &Owner::salt(name));
                    set += &format!("; ALTER ROLE \"{name}\" PASSWORD '{verifier}'");
                }
                Some(_) => {}
            }
        }
        session.rows(&set, deadline).await?;
        let Some(makes) = makes else { return Ok(()) };
        for statement in makes.lines() {
            match session.rows(statement, deadline).await {
                // A database of that name is somebody's: it stays theirs.
                Err(e) if e.code() == Some(DUPLICATE_DATABASE) => {}
                made => drop(made?),
            }
        }
        Ok(())
    }
}

/// What PostgreSQL calls a database that there is already.
const DUPLICATE_DATABASE: &str = "42P04";

/// What is kept of the password of `role`; none where there is no such role.
async fn verifier_of(session: &mut Session, role: &str) -> Result<Option<Option<String>>, SessionError> {
    let question = format!("SELECT rolpassword FROM pg_authid WHERE rolname = '{role}'");
    let rows = session.rows(&question, ANSWER).await?;
    Ok(rows.into_iter().next().map(|row| row.into_iter().next().flatten()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_that_was_set_here_is_told_from_others() {
        let owner = Owner { name: "app".into(), password: "secret".into() };
        let made = owner.made();
        let verifier = made.split('\'').nth(1).unwrap();
        assert_eq!(is_of(Some(verifier), "app"), OwnerIs::Ours);
        assert_eq!(is_of(Some(verifier), "web"), OwnerIs::Theirs);
        assert_eq!(is_of(Some(&scram::verifier("secret", &[7; 16])), "app"), OwnerIs::Theirs);
        assert_eq!(is_of(None, "app"), OwnerIs::Theirs);
        assert_eq!(scram::fits("secret", verifier), Some(true));
        assert!(!made.contains("secret"), "the password itself is in no statement");
    }
}
