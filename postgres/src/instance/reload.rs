//! Another configuration while PostgreSQL runs.
//!
//! The files are written, and PostgreSQL is asked what it would think of them, before it is told to read
//! them. Where it does not take them they are written back: then nothing was changed. PostgreSQL itself says
//! which settings it takes only when it starts.

use std::collections::BTreeMap;
use std::time::Duration;

use runtime::task::blocking;

use super::door::{ANSWER, Mistake, RELOAD, mistake};
use super::trial::TrialError;
use super::{Instance, InstanceError};
use crate::protocol::session::{Session, SessionError};

/// What of an instance's configuration is the user's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Own {
    /// Settings.
    pub settings: BTreeMap<String, String>,
    /// Lines of `pg_hba.conf`; what they do not match, a password lets in.
    pub hba: Vec<String>,
    /// Lines of `pg_ident.conf`.
    pub ident: Vec<String>,
}

impl Own {
    /// Whether there are clients that are to show a certificate, which the server verifies by the authorities
    /// that it is given.
    #[must_use]
    pub(super) fn asks_clients(&self) -> bool {
        self.hba.iter().any(|line| line.contains(CLIENTS_MAP))
    }

    /// The settings that are another in `new`, or there only, or here only.
    #[must_use]
    pub fn settings_changed(&self, new: &Own) -> Vec<String> {
        let names =
            self.settings.keys().chain(new.settings.keys().filter(|name| !self.settings.contains_key(*name)));
        names.filter(|name| self.settings.get(*name) != new.settings.get(*name)).cloned().collect()
    }
}

/// The option of lines of `hba` that ask clients for a certificate of the given authorities.
pub const CLIENTS_MAP: &str = "map=replicator_token";

/// When a setting holds that was changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Took {
    /// From now on.
    Now,
    /// In sessions that begin from now on.
    NewSessions,
    /// Once PostgreSQL starts again; until then it is as it is `running`.
    AtStart {
        /// Its value now, as PostgreSQL shows it without a unit.
        running: String,
    },
    /// Never, as long as another configuration file of PostgreSQL, which it reads later, sets it.
    Overridden,
}

/// Why another configuration was not taken. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// See [`InstanceError`].
    #[error(transparent)]
    Instance(#[from] InstanceError),
    /// PostgreSQL cannot be asked.
    #[error("PostgreSQL is not there to be asked what it thinks of its configuration: {0}")]
    Session(#[from] SessionError),
    /// A line of `hba` is no rule, or one of `ident` no map.
    #[error("{0}")]
    Rules(Mistake),
    /// The same, as another PostgreSQL says while this one lets no client in.
    #[error("{0}")]
    Trial(String),
    /// A setting is not taken.
    #[error("PostgreSQL does not take {0}")]
    Setting(String),
    /// PostgreSQL did not read its files.
    #[error("PostgreSQL did not read its configuration within {} s", RELOAD.as_secs())]
    NotRead,
}

/// What PostgreSQL would not take of the files as they lie there. What it takes only when it starts is no
/// mistake, nor is that something of the kind is not in them any more.
const WRONG: &str = "SELECT coalesce(f.name || ': ', '') || f.error FROM pg_file_settings f \
     WHERE f.error IS NOT NULL AND NOT f.applied AND (f.name IS NOT NULL OR f.sourcefile IS NOT NULL) AND NOT EXISTS \
     (SELECT FROM pg_settings s WHERE s.name = lower(f.name) AND s.context IN ('postmaster', 'internal')) LIMIT 1";

/// Of each setting: its name, when it is taken, whether another file than ours sets it, whether it is to be
/// another at the next start, and what it is now.
const KINDS: &str = "SELECT name, context, source = 'configuration file' AND sourcefile NOT LIKE '%/replicator.conf', \
     pending_restart, setting FROM pg_settings";

/// How long PostgreSQL may take where its answer is nice to have.
const BRIEFLY: Duration = Duration::from_secs(2);

impl Instance {
    /// What of its configuration is the user's now.
    #[must_use]
    pub fn own_configuration(&self) -> Own {
        self.own().clone()
    }

    /// Gives the running instance another configuration of the user's; says of each setting that is another
    /// when it holds.
    ///
    /// # Errors
    /// When PostgreSQL does not answer, or does not take it: nothing was changed then.
    pub async fn reload(&self, new: Own) -> Result<BTreeMap<String, Took>, ReloadError> {
        let mut session = self.session(ANSWER).await?;
        let before = std::mem::replace(&mut *self.own(), new.clone());
        let taken = self.take(&mut session, &before, &new).await;
        if taken.is_err() {
            *self.own() = before;
            // It may have read them, or be starting with them just now.
            let written = self.write_settings(None).and_then(|()| self.write_open_rules());
            if let Err(e) = written {
                tracing::error!("the configuration that was refused cannot be taken back: {e}");
            }
            let _ = self.read_again().await;
        }
        taken
    }

    /// Has the running instance read the certificate that lies there now; what is configured stays.
    ///
    /// # Errors
    /// As [`Instance::reload`].
    pub async fn take_certificate(&self) -> Result<(), ReloadError> {
        let own = self.own().clone();
        self.reload(own).await.map(drop)
    }

    async fn take(
        &self,
        session: &mut Session,
        before: &Own,
        new: &Own,
    ) -> Result<BTreeMap<String, Took>, ReloadError> {
        match self.write_open_rules()? {
            true => {
                if let Some(mistake) = mistake(session).await? {
                    return Err(ReloadError::Rules(mistake));
                }
            }
            // One that lets no client in yet, be it for a mistake in the lines so far, does so by these. It
            // must not be able to read them before: another is asked.
            false => self.try_rules(new).await.map_err(ReloadError::Trial)?,
        }
        self.write_settings(None)?;
        if let Some(wrong) = session.rows(WRONG, ANSWER).await?.first() {
            return Err(ReloadError::Setting(wrong.first().cloned().flatten().unwrap_or_default()));
        }
        if !self.read_again().await? {
            return Err(ReloadError::NotRead);
        }
        // A session has read what was read when it began.
        self.took(&before.settings_changed(new), ANSWER).await.map_err(ReloadError::from)
    }

    async fn try_rules(&self, new: &Own) -> Result<(), String> {
        let (installation, account) = (self.installation().clone(), self.options().account.clone());
        let (hba, ident) = (new.hba.clone(), new.ident.clone());
        let tried = blocking("try the rules", move || installation.check_rules(&account, &hba, &ident));
        match tried.await.map_err(|e| e.to_string())? {
            Err(TrialError::Mistake(why)) => Err(why),
            // Whoever lets clients in asks the server itself.
            Ok(()) | Err(TrialError::NotAsked(_)) => Ok(()),
        }
    }

    /// The settings that were changed and wait for PostgreSQL's next start; none where it does not say.
    pub async fn waiting(&self) -> BTreeMap<String, Took> {
        self.took(&[], BRIEFLY).await.unwrap_or_default()
    }

    /// When each of the settings holds that were `changed`, and those that wait for the next start since an
    /// earlier change.
    async fn took(
        &self,
        changed: &[String],
        deadline: Duration,
    ) -> Result<BTreeMap<String, Took>, SessionError> {
        let kinds = self.session(deadline).await?.rows(KINDS, deadline).await?;
        let own = self.own();
        // Of a module that is not loaded PostgreSQL shows nothing.
        let mut took: BTreeMap<String, Took> = changed.iter().map(|name| (name.clone(), Took::Now)).collect();
        for row in kinds {
            let field = |at: usize| row.get(at).and_then(Option::as_deref).unwrap_or_default();
            let (name, context) = (field(0), field(1));
            let is_changed = took.contains_key(name);
            let running = field(4).to_owned();
            match context {
                _ if field(3) == "t" => {
                    took.insert(name.to_owned(), Took::AtStart { running });
                }
                _ if !is_changed => {}
                "postmaster" | "internal"
                    if own.settings.get(name).is_none_or(|wanted| *wanted != running) =>
                {
                    took.insert(name.to_owned(), Took::AtStart { running });
                }
                _ if field(2) == "t" && own.settings.contains_key(name) => {
                    took.insert(name.to_owned(), Took::Overridden);
                }
                "backend" | "superuser-backend" => {
                    took.insert(name.to_owned(), Took::NewSessions);
                }
                _ => {}
            }
        }
        Ok(took)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_that_came_or_went_or_is_another_has_changed() {
        let of = |settings: &[(&str, &str)]| Own {
            settings: settings.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
            hba: Vec::new(),
            ident: Vec::new(),
        };
        let before = of(&[("a", "1"), ("b", "1"), ("c", "1")]);
        let after = of(&[("b", "2"), ("c", "1"), ("d", "1")]);
        assert_eq!(before.settings_changed(&after), ["a", "b", "d"]);
        assert!(before.settings_changed(&before).is_empty());
    }
}
