//! Commits whose clients would not wait. Cancelled while it waits for its redo to be durable, a commit of
//! PostgreSQL's returns, with a warning that most drivers drop. Nobody can keep it from that; so it is found
//! in PostgreSQL's log, and told: such a commit has no promise, and a failover may lose it.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use runtime::clock::wall_us;
use runtime::task::blocking;

use super::Region;
use crate::events::Kind as EventKind;
use crate::logs::older;

/// What PostgreSQL logs of each. Its messages are in English, as the data directory was made so.
const SAID: &str = "canceling wait for synchronous replication due to user request";

/// How often the log is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// The most that is read in a look, bytes; of a log that grows faster the older part is passed over.
const READ_BYTES_MAX: u64 = 4 << 20;

/// For how long it is a warning of `status`, microseconds.
const TOLD_US: i64 = 3600 * 1_000_000;

/// How many there were since the daemon's start, and when the last one.
#[derive(Debug, Default)]
pub(super) struct Cancelled(Mutex<(u64, i64)>);

impl Cancelled {
    /// What is told of them for an hour.
    pub(super) fn warning(&self) -> Option<String> {
        let (count, last_us) = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let ago_us = wall_us() - last_us;
        (count > 0 && ago_us < TOLD_US).then(|| {
            format!(
                "{count} commits returned before they were durable as promised, the last one {} min ago: their clients cancelled the wait; \
                 a failover may lose them",
                ago_us / 60_000_000
            )
        })
    }

    fn add(&self, count: u64) {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *told = (told.0 + count, wall_us());
    }
}

/// How far which file was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    inode: u64,
    at: u64,
}

impl Region {
    /// Finds commits whose clients cancelled the wait, for ever.
    pub(super) async fn find_cancelled(self: Arc<Self>) {
        let mut place = None;
        loop {
            tokio::time::sleep(LOOK).await;
            let log = self.layout.postgresql_log();
            // A log that cannot be read is told by whoever puts it aside.
            let Ok(Ok((count, now))) = blocking("read PostgreSQL's log", move || look(&log, place)).await
            else {
                continue;
            };
            place = now;
            if count > 0 {
                self.cancelled.add(count);
                let text = format!(
                    "{count} commits in {}: their clients cancelled the wait, and they returned before they were durable as promised; \
                     a failover may lose them",
                    self.own.name
                );
                tracing::warn!("{text}");
                self.journal.note(EventKind::CommitsCancelled, text);
            }
        }
    }
}

/// How many were logged behind `place`, and how far the log was read; what was there before the first look is
/// not counted.
fn look(log: &Path, place: Option<Place>) -> io::Result<(u64, Option<Place>)> {
    let mut file = match File::open(log) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok((0, place)),
        opened => opened?,
    };
    let metadata = file.metadata()?;
    let Some(before) = place else {
        return Ok((0, Some(Place { inode: metadata.ino(), at: metadata.len() })));
    };
    if before.inode == metadata.ino() {
        let (count, at) = read(&mut file, before.at)?;
        return Ok((count, Some(Place { at, ..before })));
    }
    // It was put aside: its end is read there.
    let mut rest = 0;
    if let Ok(mut aside) = File::open(older(log, 1))
        && aside.metadata()?.ino() == before.inode
    {
        rest = read(&mut aside, before.at)?.0;
    }
    let (count, at) = read(&mut file, 0)?;
    Ok((rest + count, Some(Place { inode: metadata.ino(), at })))
}

/// How many whole lines behind `at` say it, and where the last whole line ends.
fn read(file: &mut File, at: u64) -> io::Result<(u64, u64)> {
    let length = file.metadata()?.len();
    let begin = if length < at { 0 } else { at.max(length.saturating_sub(READ_BYTES_MAX)) };
    file.seek(SeekFrom::Start(begin))?;
    let mut bytes = Vec::new();
    file.take(READ_BYTES_MAX).read_to_end(&mut bytes)?;
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let count = String::from_utf8_lossy(&bytes[..whole]).matches(SAID).count();
    Ok((count as u64, begin + whole as u64))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn each_is_counted_once_also_when_the_log_is_put_aside_in_the_middle() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("postgresql.log");
        let say = |path: &Path, text: &str| {
            let mut file = File::options().create(true).append(true).open(path).unwrap();
            file.write_all(text.as_bytes()).unwrap();
        };
        let line = format!("2026 [7] WARNING:  {SAID}\n");
        let mut place = None;
        let mut looked = || {
            let (count, now) = look(&log, place).unwrap();
            place = now;
            count
        };
        assert_eq!(looked(), 0, "there is no log yet");
        say(&log, &line);
        assert_eq!(looked(), 0, "what was there before");
        say(&log, &format!("{line}other\n{line}"));
        assert_eq!((looked(), looked()), (2, 0));
        // Half a line is counted when the rest is there.
        say(&log, &line[..30]);
        assert_eq!(looked(), 0);
        say(&log, &line[30..]);
        assert_eq!(looked(), 1);
        say(&log, &line);
        std::fs::rename(&log, older(&log, 1)).unwrap();
        say(&log, &line);
        assert_eq!((looked(), looked()), (2, 0));
    }
}
