//! Settings that a standby may not have lower than the writer whose redo it applies had them: PostgreSQL
//! pauses at a record that raises one of them, does not start again, and cannot be promoted. Its control file
//! says what it needs, so a standby gets at least that; a writer gets what its own configuration says, and so
//! a value can be lowered again: on the primary first, and with each standby's next start there.

use std::time::Duration;

use super::{Instance, InstanceError, run};

/// What the control file calls it, and the setting's name.
pub(super) const NEEDED: [(&str, &str); 5] = [
    ("max_connections setting", "max_connections"),
    ("max_worker_processes setting", "max_worker_processes"),
    ("max_wal_senders setting", "max_wal_senders"),
    ("max_prepared_xacts setting", "max_prepared_transactions"),
    ("max_locks_per_xact setting", "max_locks_per_transaction"),
];

/// A setting of a standby, and the least that it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    /// The setting.
    pub setting: &'static str,
    /// What the control file asks for.
    pub least: u64,
}

/// Whether a standby may not have `setting` lower than the writer whose redo it applies.
#[must_use]
pub fn is_floor(setting: &str) -> bool {
    NEEDED.iter().any(|(_, name)| *name == setting)
}

/// How long PostgreSQL may take to say what a setting would be.
const SAY: Duration = Duration::from_secs(10);

impl Instance {
    /// What a standby needs by its control file as it is now. A standby raises these as it applies redo.
    ///
    /// # Errors
    /// When there is no control file.
    pub fn needs(&self) -> Result<Vec<Need>, InstanceError> {
        Ok(self.control_data()?.needs.into())
    }

    /// Arguments for a start as a standby: those of the needed settings that its configuration has lower.
    pub(super) fn floors(&self) -> Result<Vec<String>, InstanceError> {
        if !self.is_standby() || !self.exists() {
            return Ok(Vec::new());
        }
        let mut arguments = Vec::new();
        for Need { setting, least } in self.needs()? {
            if self.configured(setting).is_some_and(|value| value < least) {
                tracing::info!("{setting} is raised to {least}, as the redo of the writer asks for it");
                arguments.extend(["-c".to_owned(), format!("{setting}={least}")]);
            }
        }
        Ok(arguments)
    }

    /// What a setting would be by all configuration files; none when they cannot be read, which the start
    /// itself tells better.
    fn configured(&self, setting: &str) -> Option<u64> {
        let options = &self.options;
        let mut command = options.account.command(&self.installation().program("postgres"));
        let said =
            run("postgres -C", command.arg("-C").arg(setting).arg("-D").arg(&options.data_dir), SAY).ok()?;
        said.trim().parse().ok()
    }
}
