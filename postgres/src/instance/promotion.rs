//! How a standby becomes a writer on a timeline of a given number, and what is left when that is interrupted.
//!
//! PostgreSQL ends recovery in steps: it makes the first segment of the new timeline, removes
//! `standby.signal`, writes the timeline's history, writes and flushes the record that ends recovery, and
//! only then names the new timeline in its control file. Killed between the second step and the last, and
//! started again, it would take itself for a writer that crashed, and go on writing on the *old* timeline. So
//! the number is written down before it is told ([`INTENT`]), and what a promotion left that did not get to
//! the control file is taken back before PostgreSQL starts again: then it is the standby that it was.
//!
//! Source: `StartupXLOG` in `xlog.c` of PostgreSQL 15 to 18.

use std::io;
use std::path::{Path, PathBuf};

use proto::{Timeline, TimelineHistory};

use super::{Instance, InstanceError, PROMOTE, STANDBY, at, files, run};
use crate::wal::segment::timeline_of_segment;

/// The file that has the number of the timeline to which this data directory is being promoted.
const INTENT: &str = "replicator.promotion";

/// Where PostgreSQL keeps its redo, below the data directory.
const WAL: &str = "pg_wal";

impl Instance {
    /// Whether a writer has begun `timeline` in this data directory: from here on it goes on there, whatever
    /// happens. The first epoch goes on on whatever timeline its data are on, as an operator may have
    /// restored them before.
    ///
    /// # Errors
    /// When the control file cannot be read.
    pub fn has_begun(&self, timeline: Timeline) -> Result<bool, InstanceError> {
        let begun = || Ok(timeline == Timeline(1) || self.control_data()?.timeline() == timeline);
        if self.is_standby() { Ok(false) } else { begun() }
    }

    /// Whether this is a standby that was not promoted.
    #[must_use]
    pub fn is_standby(&self) -> bool {
        self.has(STANDBY)
    }

    /// Tells a standby to become a writer, on `timeline`. PostgreSQL takes the number after the highest one
    /// that it finds a history file of: so the numbers between are given files that say that they are unused.
    ///
    /// # Errors
    /// When it cannot be told.
    pub fn promote(&self, timeline: Timeline) -> Result<(), InstanceError> {
        for unused in (2..timeline.0).map(Timeline) {
            let name = history(unused);
            if !self.data()?.exists(&name) {
                self.write(&name, TimelineHistory::UNUSED)?;
            }
        }
        self.write(INTENT, &format!("{}\n", timeline.0))?;
        let options = self.options();
        let mut command = options.account.command(&self.installation().program("pg_ctl"));
        command.args(["promote", "--no-wait", "--silent", "--pgdata"]).arg(&options.data_dir);
        run("pg_ctl", &mut command, PROMOTE).map(drop)
    }

    /// Notes that the promotion is over: its timeline is in the control file.
    ///
    /// # Errors
    /// When the note cannot be written. It is looked at again at the next start.
    pub fn promoted(&self) -> Result<(), InstanceError> {
        self.remove(INTENT)?;
        self.data()?.sync().map_err(at(&self.options().data_dir))
    }

    /// The timeline to which it was told to promote itself, as long as nothing took that back.
    ///
    /// # Errors
    /// When the file cannot be read or understood.
    pub fn promoting(&self) -> Result<Option<Timeline>, InstanceError> {
        let path = self.options().data_dir.join(INTENT);
        let number = self.read_if_any(INTENT)?.map(|content| content.trim().parse().map(Timeline));
        number.transpose().map_err(|e| at(&path)(io::Error::new(io::ErrorKind::InvalidData, e)))
    }

    /// Takes back what a promotion left that was interrupted before its timeline was in the control file: the
    /// instance, which must not run, is the standby again that it was. Does nothing where none was, or where
    /// it is over.
    ///
    /// # Errors
    /// When files cannot be read, written or removed. PostgreSQL must not be started then.
    pub(crate) fn undo_interrupted_promotion(&self) -> Result<(), InstanceError> {
        let Some(timeline) = self.promoting()? else { return Ok(()) };
        if !self.is_standby() && self.control_data()?.timeline() < timeline {
            tracing::warn!(
                "PostgreSQL: its promotion to timeline {} was interrupted; it is made a standby again",
                timeline.0
            );
            let history = TimelineHistory::file_name(timeline);
            for place in ["pg_wal/archive_status", WAL] {
                let io = at(&self.options().data_dir.join(place));
                let found = files::if_any(self.data()?.directory(Path::new(place))).map_err(&io)?;
                let Some(directory) = found else { continue };
                for entry in directory.names().map_err(&io)? {
                    let name = entry.name.to_string_lossy();
                    let name = name.trim_end_matches(".ready").trim_end_matches(".done");
                    if name == history || timeline_of_segment(name) == Some(timeline) {
                        directory.remove_file(&entry.name).map_err(&io)?;
                    }
                }
                directory.sync().map_err(&io)?;
            }
            self.write(STANDBY, "")?;
        }
        self.promoted()
    }

    /// Removes what [`Instance::promote`] and a walreceiver left when they were killed before the history
    /// came for which the unused numbers were marked: PostgreSQL would take the highest of them for the
    /// timeline to recover to.
    pub(crate) fn remove_unused_histories(&self) -> Result<(), InstanceError> {
        let io = at(&self.options().data_dir.join(WAL));
        let found = files::if_any(self.data()?.directory(Path::new(WAL))).map_err(&io)?;
        let Some(wal) = found else { return Ok(()) };
        let (mut unused, mut newest) = (Vec::new(), 0);
        for name in wal.names().map_err(&io)?.into_iter().map(|entry| entry.name) {
            let number = name.to_str().and_then(|name| name.strip_suffix(".history"));
            let Some(number) = number.and_then(|number| u32::from_str_radix(number, 16).ok()) else {
                continue;
            };
            match wal.read(&name).map_err(&io)? == TimelineHistory::UNUSED.as_bytes() {
                true => unused.push((number, name)),
                false => newest = newest.max(number),
            }
        }
        for (_, name) in unused.into_iter().filter(|(number, _)| *number > newest) {
            wal.remove_file(&name).map_err(&io)?;
        }
        Ok(())
    }
}

/// A timeline's history, below the data directory.
fn history(timeline: Timeline) -> PathBuf {
    Path::new(WAL).join(TimelineHistory::file_name(timeline))
}
