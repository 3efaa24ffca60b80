//! PostgreSQL's log. Its own collector writes it, as that can be told to begin a new file while everything
//! goes on: what another process holds open nobody else can change.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::time::Duration;

use runtime::private;

use super::{Instance, InstanceError, at, run};

/// Where one of these is the user's, PostgreSQL's log is, too.
const THEIRS: [&str; 8] = [
    "log_destination",
    "log_directory",
    "log_file_mode",
    "log_filename",
    "log_rotation_age",
    "log_rotation_size",
    "log_truncate_on_rotation",
    "logging_collector",
];

/// How long `pg_ctl` may take to tell the collector, which it does not wait for.
const TELL: Duration = Duration::from_secs(10);

/// What the collector is told, unless the user has it otherwise: one file at `log_file`, which it opens anew
/// when it is told to, and at no other time.
pub(super) fn settings(own: &BTreeMap<String, String>, log_file: &Path) -> Vec<(&'static str, String)> {
    if THEIRS.iter().any(|name| own.contains_key(*name)) {
        return Vec::new();
    }
    let part = |part: Option<&std::ffi::OsStr>| part.unwrap_or_default().to_string_lossy().into_owned();
    vec![
        ("logging_collector", "on".into()),
        ("log_directory", part(log_file.parent().map(Path::as_os_str))),
        // A `%` begins a part of the time there.
        ("log_filename", part(log_file.file_name()).replace('%', "%%")),
        ("log_rotation_age", "0".into()),
        ("log_rotation_size", "0".into()),
    ]
}

impl Instance {
    /// Whether the collector of the running instance writes the log at the place of `log_file`, so that it
    /// can be put aside.
    #[must_use]
    pub fn collects_log(&self) -> bool {
        // The collector keeps this file; without one PostgreSQL removes it when it starts.
        let says = self.read("current_logfiles");
        let log = self.options.log_file.display().to_string();
        let is_log = |line: &str| line.strip_prefix("stderr ").is_some_and(|path| path == log);
        self.process().is_some() && says.is_ok_and(|says| says.lines().any(is_log))
    }

    /// Renames the log, if there is one, to `older` and puts an empty one in its place. Until the collector
    /// is told ([`Instance::reopen_log`]) it goes on in the one that was put aside: no line is lost.
    ///
    /// # Errors
    /// When files cannot be made or renamed.
    pub fn put_log_aside(&self, older: &Path) -> Result<(), InstanceError> {
        let log_file = &self.options.log_file;
        let fresh = log_file.with_extension("fresh");
        let file = private::options().create(true).append(true).open(&fresh).map_err(at(&fresh))?;
        self.options.account.own(&file).map_err(at(&fresh))?;
        match std::fs::rename(log_file, older) {
            // That is how an earlier time was interrupted, or somebody took it away.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            renamed => renamed.map_err(at(log_file))?,
        }
        std::fs::rename(&fresh, log_file).map_err(at(log_file))
    }

    /// Has the collector open the log anew.
    ///
    /// # Errors
    /// When it cannot be told.
    pub fn reopen_log(&self) -> Result<(), InstanceError> {
        let mut command = self.options.account.command(&self.installation().program("pg_ctl"));
        command.args(["logrotate", "--silent", "--pgdata"]).arg(&self.options.data_dir);
        run("pg_ctl", &mut command, TELL).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_ours_unless_the_user_says_something_of_it() {
        let log = Path::new("/regions/a/post%.log");
        let ours = settings(&BTreeMap::from([("work_mem".into(), "1MB".into())]), log);
        assert!(ours.contains(&("log_directory", "/regions/a".into())));
        assert!(ours.contains(&("log_filename", "post%%.log".into())));
        assert!(settings(&BTreeMap::from([("log_destination".into(), "syslog".into())]), log).is_empty());
    }
}
