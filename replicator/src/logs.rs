//! Logs that do not grow for ever: one that is large enough is put aside, the oldest of those goes, and a new
//! one begins at the same path. The log beside `daemon.log` is `daemon.1.log`, the one before that
//! `daemon.2.log`.
//!
//! [`DaemonLog`] is what a daemon says. PostgreSQL's log is put aside the same way, by
//! [`postgres::instance::Instance::put_log_aside`].

mod aside;
pub mod lines;

use std::fs::{File, Metadata};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use aside::put_postgres_aside;
use lines::{Said, line};
use runtime::clock::wall_us;
use runtime::private;
use tracing_subscriber::fmt::MakeWriter;

use crate::config::{LogFormat, LogsConfig};
use crate::layout::Apart;

/// The log that was put aside `age` times since.
#[must_use]
pub fn older(path: &Path, age: u32) -> PathBuf {
    path.with_extension(format!("{age}.log"))
}

/// How often the log at `older` was put aside, if it is one of `path`.
fn age_of(path: &Path, older: &Path) -> Option<u32> {
    let name = older.file_name()?.to_str()?.strip_prefix(path.file_stem()?.to_str()?)?;
    name.strip_prefix('.')?.strip_suffix(".log")?.parse().ok()
}

/// Makes room for the log at `path` among those that were put aside, of which `keep` are kept with it: each
/// is one older, and those beyond are removed. The log itself stays where it is.
///
/// # Errors
/// When files cannot be renamed or removed.
pub fn make_room(path: &Path, keep: u32) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let names = std::fs::read_dir(directory)?.collect::<io::Result<Vec<_>>>()?;
    let mut ages: Vec<u32> = names.iter().filter_map(|name| age_of(path, &name.path())).collect();
    ages.sort_unstable_by(|a, b| b.cmp(a));
    for age in ages {
        match age < keep.max(1) {
            true => std::fs::rename(older(path, age), older(path, age + 1))?,
            false => std::fs::remove_file(older(path, age))?,
        }
    }
    Ok(())
}

/// What a daemon says: on standard error, and so in the file that `up` has made that. Clones are one.
#[derive(Debug, Clone, Default)]
pub struct DaemonLog(Arc<Mutex<State>>);

/// The variable that says how the lines are written, before the file does: `json` or `text`.
pub const FORMAT_VARIABLE: &str = "REPLICATOR_LOG_FORMAT";

/// Who says what a log says.
#[derive(Debug, Clone, Default)]
pub struct Who {
    region: Option<String>,
    apart: Option<Apart>,
    epoch: Option<Arc<AtomicU64>>,
}

impl Who {
    /// The highest epoch that is known; none before one is.
    fn epoch(&self) -> Option<u64> {
        self.epoch.as_ref().map(|epoch| epoch.load(Ordering::Relaxed))
    }
}

#[derive(Debug, Default)]
struct State {
    who: Who,
    /// How the lines are written.
    format: LogFormat,
    /// By the environment's word: the file's does not count.
    fixed: bool,
    /// The file, while standard error is one that is to be put aside.
    kept: Option<Kept>,
}

#[derive(Debug)]
struct Kept {
    path: PathBuf,
    limits: LogsConfig,
    size_bytes: u64,
}

impl DaemonLog {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic of whoever writes leaves a line that is not whole, at worst.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A log as the environment says: `format` is the value of [`FORMAT_VARIABLE`], and anything else than
    /// what that may be counts for nothing.
    #[must_use]
    pub fn new(format: Option<&str>) -> DaemonLog {
        let log = DaemonLog::default();
        if let Some(format) = format.and_then(LogFormat::named) {
            let mut state = log.lock();
            (state.format, state.fixed) = (format, true);
        }
        log
    }

    /// From now on it is what this region's daemon says, or the process that is apart from it.
    pub fn is_of(&self, region: &str, apart: Option<&Apart>) {
        let mut state = self.lock();
        (state.who.region, state.who.apart) = (Some(region.to_owned()), apart.cloned());
    }

    /// From now on each line says what `epoch` is then.
    pub fn tell_epoch(&self, epoch: Arc<AtomicU64>) {
        self.lock().who.epoch = Some(epoch);
    }

    /// Who says it, where lines are written as JSON.
    pub(crate) fn json(&self) -> Option<Who> {
        let state = self.lock();
        (state.format == LogFormat::Json).then(|| state.who.clone())
    }

    /// A panic is a line like any other where lines are written as JSON.
    pub fn report_panics(&self) {
        let (log, before) = (self.clone(), std::panic::take_hook());
        std::panic::set_hook(Box::new(move |panic| match log.json() {
            Some(_) => tracing::error!("{panic}"),
            None => before(panic),
        }));
    }

    /// Puts the log at `path` aside by `limits` from now on, if that is where standard error goes: what an
    /// orchestrator or a person does with it is theirs.
    pub fn keep(&self, path: &Path, limits: LogsConfig) {
        let mut state = self.lock();
        state.obey(limits);
        let size_bytes = said_to(path).map(|metadata| metadata.size());
        state.kept = size_bytes.map(|size_bytes| Kept { path: path.to_owned(), limits, size_bytes });
    }

    /// Other limits from now on.
    pub fn limit(&self, limits: LogsConfig) {
        let mut state = self.lock();
        state.obey(limits);
        if let Some(kept) = &mut state.kept {
            kept.limits = limits;
        }
    }
}

impl State {
    fn obey(&mut self, limits: LogsConfig) {
        if !self.fixed {
            self.format = limits.format;
        }
    }

    /// A line of the log's own.
    fn complain(&self, message: String) {
        let said = Said { message, ..Said::default() };
        let _ = match self.format {
            LogFormat::Text => writeln!(io::stderr(), "{}", said.message),
            LogFormat::Json => {
                let line = line(wall_us(), "ERROR", module_path!(), &self.who, said);
                writeln!(io::stderr(), "{line}")
            }
        };
    }
}

/// The file at `path`, if standard error goes there.
fn said_to(path: &Path) -> Option<Metadata> {
    let error = File::from(rustix::io::dup(io::stderr()).ok()?).metadata().ok()?;
    let file = std::fs::metadata(path).ok()?;
    ((file.dev(), file.ino()) == (error.dev(), error.ino()) && file.is_file()).then_some(file)
}

impl Kept {
    /// Counts what was written, and begins a new file when there is enough.
    fn wrote(&mut self, bytes: usize) -> io::Result<()> {
        self.size_bytes += bytes as u64;
        if self.size_bytes < self.limits.max_size_bytes {
            return Ok(());
        }
        // What is not said by way of this counts as well.
        match said_to(&self.path).map(|metadata| metadata.size()) {
            Some(size_bytes) => self.size_bytes = size_bytes,
            // Somebody has put it aside already: what is said goes there until the daemon starts again.
            None => return Ok(()),
        }
        self.size_bytes = 0;
        // Where it fails, it is tried again once as much was written.
        self.begin_anew()
    }

    /// Until the last step whoever writes goes on in the file that is put aside: no line is lost.
    fn begin_anew(&self) -> io::Result<()> {
        let fresh = self.path.with_extension("fresh");
        let file = private::options().create(true).append(true).open(&fresh)?;
        make_room(&self.path, self.limits.keep)?;
        std::fs::rename(&self.path, older(&self.path, 1))?;
        std::fs::rename(&fresh, &self.path)?;
        rustix::stdio::dup2_stdout(&file)?;
        rustix::stdio::dup2_stderr(&file)?;
        Ok(())
    }
}

/// A line at a time.
impl Write for DaemonLog {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut state = self.lock();
        io::stderr().write_all(line)?;
        if let Some(kept) = &mut state.kept
            && let Err(e) = kept.wrote(line.len())
        {
            let what = format!("{}: it cannot be put aside: {e}", kept.path.display());
            state.complain(what);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

impl MakeWriter<'_> for DaemonLog {
    type Writer = DaemonLog;

    fn make_writer(&self) -> DaemonLog {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is in the directory, by name.
    fn files(directory: &Path) -> Vec<(String, String)> {
        let mut files: Vec<(String, String)> = std::fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|e| (e.file_name().into_string().unwrap(), std::fs::read_to_string(e.path()).unwrap()))
            .collect();
        files.sort();
        files
    }

    #[test]
    fn the_oldest_goes_and_what_is_not_a_log_of_ours_stays() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("daemon.log");
        std::fs::write(directory.path().join("daemon.old.log"), "mine").unwrap();
        std::fs::write(directory.path().join("postgresql.1.log"), "another").unwrap();
        for number in 1..=5 {
            std::fs::write(&log, number.to_string()).unwrap();
            make_room(&log, 2).unwrap();
            std::fs::rename(&log, older(&log, 1)).unwrap();
        }
        let expected = [
            ("daemon.1.log", "5"),
            ("daemon.2.log", "4"),
            ("daemon.old.log", "mine"),
            ("postgresql.1.log", "another"),
        ];
        assert_eq!(files(directory.path()), expected.map(|(name, text)| (name.to_owned(), text.to_owned())));
        // Fewer are to be kept.
        std::fs::write(&log, "6").unwrap();
        make_room(&log, 1).unwrap();
        std::fs::rename(&log, older(&log, 1)).unwrap();
        let left: Vec<String> = files(directory.path()).into_iter().map(|(name, _)| name).collect();
        assert_eq!(left, ["daemon.1.log", "daemon.old.log", "postgresql.1.log"]);
    }

    #[test]
    fn what_is_not_standard_error_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("daemon.log");
        std::fs::write(&path, "x").unwrap();
        let log = DaemonLog::default();
        log.keep(&path, LogsConfig { max_size_bytes: 1, keep: 1, format: LogFormat::Text });
        assert!(log.lock().kept.is_none());
    }

    #[test]
    fn the_file_says_how_lines_are_written_unless_the_environment_does() {
        let of = |format| LogsConfig { format, ..LogsConfig::default() };
        let log = DaemonLog::new(None);
        log.is_of("eu-west", Some(&Apart::Zone('b')));
        for (format, json) in [(LogFormat::Json, true), (LogFormat::Text, false), (LogFormat::Json, true)] {
            log.limit(of(format));
            assert_eq!(log.json().is_some(), json);
        }
        let who = log.json().unwrap();
        assert_eq!(
            (who.region.as_deref(), who.apart.clone(), who.epoch()),
            (Some("eu-west"), Some(Apart::Zone('b')), None)
        );
        let fixed = DaemonLog::new(Some("text"));
        fixed.limit(of(LogFormat::Json));
        assert!(fixed.json().is_none());
        assert!(
            DaemonLog::new(Some("json")).json().is_some() && DaemonLog::new(Some("xml")).json().is_none()
        );
    }
}
