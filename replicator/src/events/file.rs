//! The journal on disk: lines of JSON in two files that take turns.
//!
//! A line that a crash tore is skipped when it is read, and the next one begins on a line of its own. Nothing
//! is flushed to the disk: after a power failure the newest events may be missing.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use runtime::private;

use super::{Event, Kind, Note};

/// How large the newer file grows before it becomes the older one, bytes: both together take twice that.
pub const FILE_BYTES_MAX: u64 = 1 << 20;

/// The journal's two files.
#[derive(Debug)]
pub struct Files {
    path: PathBuf,
    older: PathBuf,
    newer: Option<File>,
    bytes: u64,
    bytes_max: u64,
    number: u64,
}

/// An event that was given its number, and whether it is in the file.
#[derive(Debug)]
pub struct Kept {
    /// The event.
    pub event: Event,
    /// What hindered its writing.
    pub written: std::io::Result<()>,
}

impl Files {
    /// The files at `path` and beside it; numbers go on after the highest that is in them.
    ///
    /// # Errors
    /// When they cannot be made or read.
    pub fn open(path: &Path) -> std::io::Result<Files> {
        Files::with_limit(path, FILE_BYTES_MAX)
    }

    fn with_limit(path: &Path, bytes_max: u64) -> std::io::Result<Files> {
        let older = path.with_extension("old.jsonl");
        let mut files = Files { path: path.to_owned(), older, newer: None, bytes: 0, bytes_max, number: 0 };
        files.begin()?;
        files.number = files.read()?.iter().map(|event| event.number).max().unwrap_or(0);
        Ok(files)
    }

    /// Opens the newer file, and ends a line that was torn.
    fn begin(&mut self) -> std::io::Result<()> {
        let mut file = private::options().read(true).append(true).create(true).open(&self.path)?;
        self.bytes = file.metadata()?.len();
        if self.bytes > 0 {
            let mut last = [0];
            file.seek(SeekFrom::End(-1))?;
            file.read_exact(&mut last)?;
            if last != *b"\n" {
                file.write_all(b"\n")?;
                self.bytes += 1;
            }
        }
        self.newer = Some(file);
        Ok(())
    }

    /// Writes an event that happened at `at_us`.
    pub fn append(&mut self, at_us: i64, note: Note) -> Kept {
        self.number += 1;
        let Note { kind, text, key } = note;
        let event = Event { number: self.number, at_us, kind, text, key };
        let written = self.write(&event);
        if written.is_err() {
            // Part of a line may be there: it is ended when the file is opened anew.
            self.newer = None;
        }
        Kept { event, written }
    }

    fn write(&mut self, event: &Event) -> std::io::Result<()> {
        let mut line = serde_json::to_vec(event)?;
        line.push(b'\n');
        let bytes = u64::try_from(line.len()).unwrap_or(u64::MAX);
        if self.bytes > 0 && self.bytes.saturating_add(bytes) > self.bytes_max {
            self.newer = None;
            std::fs::rename(&self.path, &self.older)?;
        }
        if self.newer.is_none() {
            self.begin()?;
        }
        if let Some(file) = &mut self.newer {
            file.write_all(&line)?;
            self.bytes += bytes;
        }
        Ok(())
    }

    /// Every event that is kept, oldest first. Lines that are none are skipped.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn read(&self) -> std::io::Result<Vec<Event>> {
        let mut events = Vec::new();
        for path in [&self.older, &self.path] {
            match runtime::private::read(path) {
                Ok(content) => events.extend(parse(&content)),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        Ok(events)
    }

    /// The newest events, oldest first, at most `count`.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn newest(&self, count: usize) -> std::io::Result<Vec<Event>> {
        let mut all = self.read()?;
        let beyond = all.len().saturating_sub(count);
        Ok(all.split_off(beyond))
    }
}

/// The events in the lines of `content`; what is none is skipped, as is one of a kind that a newer version
/// knows.
#[must_use]
pub fn parse(content: &[u8]) -> Vec<Event> {
    let lines = content.split(|byte| *byte == b'\n');
    lines.filter_map(|line| serde_json::from_slice(line).ok()).collect()
}

/// The weight of a kind by its name; a kind of a newer version weighs nothing special.
#[must_use]
pub fn weight(kind: &str) -> super::Weight {
    let known = Kind::ALL.iter().find(|known| known.name() == kind);
    known.map_or(super::Weight::Plain, |kind| kind.weight())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::PermissionsExt;

    fn note(text: &str) -> Note {
        Note::new(Kind::CopyLost, text)
    }

    #[test]
    fn the_files_take_turns_stay_within_their_bound_and_are_the_owners_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events.jsonl");
        let mut files = Files::with_limit(&path, 1_000).unwrap();
        for n in 0..100 {
            files.append(n, note("copy b1: absent; it is filled when it is back")).written.unwrap();
        }
        let mut total = 0;
        for entry in std::fs::read_dir(directory.path()).unwrap() {
            let about = entry.unwrap().metadata().unwrap();
            assert_eq!(about.permissions().mode() & 0o777, 0o600);
            assert!(about.len() <= 1_000);
            total += about.len();
        }
        assert!(total > 1_000, "both are used");
        let numbers: Vec<u64> = files.read().unwrap().iter().map(|event| event.number).collect();
        let last = *numbers.last().unwrap();
        assert_eq!(last, 100);
        assert!(numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{numbers:?}");
    }

    #[test]
    fn a_torn_line_costs_that_line_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events.jsonl");
        let mut files = Files::open(&path).unwrap();
        files.append(1, note("first")).written.unwrap();
        files.append(2, note("second")).written.unwrap();
        drop(files);
        let content = std::fs::read(&path).unwrap();
        std::fs::write(&path, &content[..content.len() - 9]).unwrap();
        let mut files = Files::open(&path).unwrap();
        files.append(3, note("third")).written.unwrap();
        let texts: Vec<String> = files.read().unwrap().into_iter().map(|event| event.text).collect();
        assert_eq!(texts, ["first", "third"]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(content: Vec<u8>, lines in proptest::collection::vec(".*", 0..8)) {
            let _ = parse(&content);
            let _ = parse(lines.join("\n").as_bytes());
        }

        /// Whatever a text holds, it takes one line and is read back as it was.
        #[test]
        fn every_text_is_read_back(texts in proptest::collection::vec(any::<String>(), 1..8)) {
            let directory = tempfile::tempdir().unwrap();
            let mut files = Files::open(&directory.path().join("events.jsonl")).unwrap();
            for text in &texts {
                files.append(0, note(text)).written.unwrap();
            }
            let read: Vec<String> = files.read().unwrap().into_iter().map(|event| event.text).collect();
            prop_assert_eq!(read, texts);
        }
    }
}
