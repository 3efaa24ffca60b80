//! What PostgreSQL's log says and nobody else tells, found there and told as events and warnings.
//!
//! - Commits whose clients would not wait. Cancelled while it waits for its redo to be durable, a commit of
//!   PostgreSQL's returns, with a warning that most drivers drop. Nobody can keep it from that; such a commit
//!   has no promise, and a failover may lose it.
//! - Pages that rotted, whoever met them: a query, replay, or a seed that read them. PostgreSQL sends a seed
//!   with them all the same, and so does this: the region would not get another one, and the page is no worse
//!   there.

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

/// What PostgreSQL logs of each commit whose wait was cancelled. Its messages are in English, as the data
/// directory was made so.
const CANCELLED: &str = "canceling wait for synchronous replication due to user request";

/// What it logs of each rotted page: where it is read, and where it is sent in a seed.
const ROTTED: [&str; 2] = ["invalid page in block ", "checksum verification failed in file "];

/// The longest text of a rotted page, characters.
const TEXT_CHARS_MAX: usize = 200;

/// How often the log is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// The most that is read in a look, bytes; of a log that grows faster the older part is passed over.
const READ_BYTES_MAX: u64 = 4 << 20;

/// For how long it is a warning of `status`, microseconds.
const TOLD_US: i64 = 3600 * 1_000_000;

/// What the log said of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Said {
    /// Commits whose wait was cancelled.
    cancelled: u64,
    /// Rotted pages, once for each time that one was met.
    rotted: u64,
    /// The last of those, in PostgreSQL's words.
    page: String,
}

impl Said {
    fn add(&mut self, other: Said) {
        self.cancelled += other.cancelled;
        self.rotted += other.rotted;
        if !other.page.is_empty() {
            self.page = other.page;
        }
    }

    fn of(text: &str) -> Said {
        let mut said = Said { cancelled: text.matches(CANCELLED).count() as u64, ..Said::default() };
        for line in text.lines() {
            if let Some(at) = ROTTED.iter().find_map(|words| line.find(words)) {
                said.rotted += 1;
                said.page = line[at..].chars().take(TEXT_CHARS_MAX).collect();
            }
        }
        said
    }
}

/// What was said since the daemon's start, and when each was said last, microseconds since 1970.
#[derive(Debug, Default)]
pub(super) struct Logged(Mutex<Told>);

#[derive(Debug, Default)]
struct Told {
    said: Said,
    cancelled_us: i64,
    rotted_us: i64,
}

impl Logged {
    /// What is told for an hour.
    pub(super) fn warnings(&self) -> Vec<String> {
        let told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let ago = |at_us: i64| Some(wall_us() - at_us).filter(|ago_us| *ago_us < TOLD_US);
        let mut warnings = Vec::new();
        if let (count @ 1.., Some(ago_us)) = (told.said.cancelled, ago(told.cancelled_us)) {
            warnings.push(format!(
                "{count} commits returned before they were durable as promised, the last one {} min ago: their clients cancelled the wait; \
                 a failover may lose them",
                ago_us / 60_000_000
            ));
        }
        if let (1.., Some(ago_us)) = (told.said.rotted, ago(told.rotted_us)) {
            warnings.push(format!(
                "a page of the data here is damaged, met {} min ago: {}; {WHOLE_ELSEWHERE}",
                ago_us / 60_000_000,
                told.said.page
            ));
        }
        warnings
    }

    fn add(&self, said: &Said) {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if said.cancelled > 0 {
            told.cancelled_us = wall_us();
        }
        if said.rotted > 0 {
            told.rotted_us = wall_us();
        }
        told.said.add(said.clone());
    }
}

/// What to do about a damaged page.
const WHOLE_ELSEWHERE: &str =
    "other regions may have it whole: promote one that has, and seed this one anew (`replicator reseed`)";

/// How far which file was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    inode: u64,
    at: u64,
}

impl Region {
    /// Reads PostgreSQL's log and tells what it says, for ever.
    pub(super) async fn read_postgresql_log(self: Arc<Self>) {
        let mut place = None;
        loop {
            tokio::time::sleep(LOOK).await;
            let log = self.layout.postgresql_log();
            // A log that cannot be read is told by whoever puts it aside.
            let Ok(Ok((said, now))) = blocking("read PostgreSQL's log", move || look(&log, place)).await
            else {
                continue;
            };
            place = now;
            self.logged.add(&said);
            if said.cancelled > 0 {
                let text = format!(
                    "{} commits in {}: their clients cancelled the wait, and they returned before they were durable as promised; \
                     a failover may lose them",
                    said.cancelled, self.own.name
                );
                tracing::warn!("{text}");
                self.journal.note(EventKind::CommitsCancelled, text);
            }
            if said.rotted > 0 {
                let text =
                    format!("data of {}: a page is damaged: {}; {WHOLE_ELSEWHERE}", self.own.name, said.page);
                tracing::warn!("{text}");
                self.journal.note(EventKind::PageDamaged, text);
            }
        }
    }
}

/// What was logged behind `place`, and how far the log was read; what was there before the first look is
/// passed over.
fn look(log: &Path, place: Option<Place>) -> io::Result<(Said, Option<Place>)> {
    let mut file = match File::open(log) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok((Said::default(), place)),
        opened => opened?,
    };
    let metadata = file.metadata()?;
    let Some(before) = place else {
        return Ok((Said::default(), Some(Place { inode: metadata.ino(), at: metadata.len() })));
    };
    if before.inode == metadata.ino() {
        let (said, at) = read(&mut file, before.at)?;
        return Ok((said, Some(Place { at, ..before })));
    }
    // It was put aside: its end is read there.
    let mut said = Said::default();
    if let Ok(mut aside) = File::open(older(log, 1))
        && aside.metadata()?.ino() == before.inode
    {
        said = read(&mut aside, before.at)?.0;
    }
    let (more, at) = read(&mut file, 0)?;
    said.add(more);
    Ok((said, Some(Place { inode: metadata.ino(), at })))
}

/// What the whole lines behind `at` say, and where the last whole line ends.
fn read(file: &mut File, at: u64) -> io::Result<(Said, u64)> {
    let length = file.metadata()?.len();
    let begin = if length < at { 0 } else { at.max(length.saturating_sub(READ_BYTES_MAX)) };
    file.seek(SeekFrom::Start(begin))?;
    let mut bytes = Vec::new();
    file.take(READ_BYTES_MAX).read_to_end(&mut bytes)?;
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    Ok((Said::of(&String::from_utf8_lossy(&bytes[..whole])), begin + whole as u64))
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
        let line = format!("2026 [7] WARNING:  {CANCELLED}\n");
        let mut place = None;
        let mut looked = || {
            let (said, now) = look(&log, place).unwrap();
            place = now;
            said.cancelled
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

    #[test]
    fn a_rotted_page_is_told_in_postgresqls_words() {
        let log = "2026 [7] WARNING:  checksum verification failed in file \"./base/5/1\", block 3: calculated 1 but expected 2\n\
                   2026 [7] ERROR:  checksum verification failure during base backup\n\
                   2026 [8] WARNING:  page verification failed, calculated checksum 1 but expected 2\n\
                   2026 [8] ERROR:  invalid page in block 3 of relation base/5/1\n";
        let said = Said::of(log);
        assert_eq!((said.cancelled, said.rotted), (0, 2));
        assert_eq!(said.page, "invalid page in block 3 of relation base/5/1");
        let logged = Logged::default();
        assert_eq!(logged.warnings(), Vec::<String>::new());
        logged.add(&said);
        let warnings = logged.warnings();
        assert!(warnings.len() == 1 && warnings[0].contains("invalid page in block 3"), "{warnings:?}");
    }
}
