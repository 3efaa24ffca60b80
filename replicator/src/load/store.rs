//! The directory of what is kept: the one place that writes and reads it.
//!
//! Nothing is flushed to the disk: after a power failure the newest looks may be missing, and a record that
//! was torn is cut off when the file is opened again. Whoever reads while it is written sees all whole
//! records.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use runtime::private;

use super::Look;
use super::file::{self, Encoder, MAGIC};
use super::keep::{About, Kind, Minute, minute_of, to_delete};

/// A file that is written.
#[derive(Debug)]
struct Open {
    about: About,
    file: File,
    encoder: Encoder,
}

/// What is kept of looks.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    open: [Option<Open>; 2],
    minute: Minute,
}

impl Store {
    /// The store in `directory`, which goes on where it was: minutes that a daemon which was killed had not
    /// summed up are.
    ///
    /// # Errors
    /// When the directory cannot be made, read or written.
    pub fn open(directory: &Path) -> std::io::Result<Store> {
        private::make_directory(directory)?;
        let mut store =
            Store { directory: directory.to_owned(), open: [None, None], minute: Minute::default() };
        let (mut summed_s, mut looks) = (i64::MIN, Vec::new());
        let files = list(directory)?;
        if let Some(newest) = files.iter().rfind(|file| file.kind == Kind::Minutes) {
            each(directory, *newest, |look| summed_s = summed_s.max(look.at_s))?;
        }
        for file in files.iter().filter(|file| file.kind == Kind::Seconds) {
            each(directory, *file, |look| {
                if minute_of(look.at_s) > summed_s {
                    looks.push(look);
                }
            })?;
        }
        for look in looks {
            if let Some(over) = store.minute.add(&look) {
                store.append(Kind::Minutes, &over)?;
            }
        }
        Ok(store)
    }

    /// Keeps a look, sums up the minute when that is over, and deletes what is too old or too much.
    ///
    /// # Errors
    /// When it cannot be written. What was half written is cut off the next time.
    pub fn note(&mut self, look: &Look) -> std::io::Result<()> {
        let over = self.minute.add(look);
        self.append(Kind::Seconds, look)?;
        if let Some(over) = over {
            self.append(Kind::Minutes, &over)?;
            for gone in to_delete(&list(&self.directory)?, look.at_s) {
                std::fs::remove_file(path(&self.directory, gone))?;
                for slot in &mut self.open {
                    let deleted = slot.as_ref().is_some_and(|open| {
                        (open.about.kind, open.about.begin_s) == (gone.kind, gone.begin_s)
                    });
                    if deleted {
                        *slot = None;
                    }
                }
            }
        }
        Ok(())
    }

    fn append(&mut self, kind: Kind, look: &Look) -> std::io::Result<()> {
        let slot = &mut self.open[usize::from(kind == Kind::Minutes)];
        // It is put back when all is well with it.
        let open = slot.take().filter(|open| open.about.takes(look.at_s));
        let mut open = match open {
            Some(open) => open,
            None => open_for(&self.directory, kind, look.at_s)?,
        };
        let record = open.encoder.encode(look);
        open.file.write_all(&record)?;
        open.about.bytes = open.about.bytes.saturating_add(u64::try_from(record.len()).unwrap_or(u64::MAX));
        *slot = Some(open);
        Ok(())
    }
}

/// The file that takes what is of `at_s`: the newest one of the kind with its torn tail cut off, or a new
/// one.
fn open_for(directory: &Path, kind: Kind, at_s: i64) -> std::io::Result<Open> {
    let newest = list(directory)?.into_iter().rfind(|file| file.kind == kind);
    let about = match newest.filter(|file| file.takes(at_s)) {
        Some(newest) => newest,
        // A clock that stepped back begins a file before others: it is as good.
        None => About { kind, begin_s: at_s, bytes: 0 },
    };
    let place = path(directory, about);
    let mut file = private::options().append(true).create(true).open(&place)?;
    let content = std::fs::read(&place)?;
    let read = file::read(&content, drop);
    let mut bytes = read.whole_bytes;
    if bytes < content.len() {
        file.set_len(u64::try_from(bytes).unwrap_or(0))?;
    }
    if bytes == 0 {
        file.write_all(MAGIC)?;
        bytes = MAGIC.len();
    }
    let about = About { bytes: u64::try_from(bytes).unwrap_or(u64::MAX), ..about };
    Ok(Open { about, file, encoder: Encoder::go_on(read.names) })
}

fn path(directory: &Path, about: About) -> PathBuf {
    directory.join(format!("{}-{}.load", about.kind.name(), about.begin_s))
}

/// The files in `directory`, by kind and time.
fn list(directory: &Path) -> std::io::Result<Vec<About>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(stem) = name.to_str().and_then(|name| name.strip_suffix(".load")) else { continue };
        for kind in Kind::ALL {
            let begin = stem.strip_prefix(kind.name()).and_then(|rest| rest.strip_prefix('-'));
            if let Some(begin_s) = begin.and_then(|begin| begin.parse().ok()) {
                files.push(About { kind, begin_s, bytes: entry.metadata()?.len() });
            }
        }
    }
    files.sort_unstable();
    Ok(files)
}

/// Hands every look of a file to `take`. One that was deleted meanwhile has none.
fn each(directory: &Path, about: About, take: impl FnMut(Look)) -> std::io::Result<()> {
    match std::fs::read(path(directory, about)) {
        Ok(content) => drop(file::read(&content, take)),
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    Ok(())
}

/// From when on there are looks, seconds since 1970: of what is older, only sums of minutes are left. The
/// smallest number where there is nothing older.
///
/// # Errors
/// When the directory cannot be read.
pub fn looks_from(directory: &Path) -> std::io::Result<i64> {
    let files = list_or_none(directory)?;
    let looks_s = looks_s(&files);
    let older = files.iter().any(|file| file.kind == Kind::Minutes && file.begin_s < looks_s);
    Ok(if older { looks_s } else { i64::MIN })
}

fn list_or_none(directory: &Path) -> std::io::Result<Vec<About>> {
    match list(directory) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        listed => listed,
    }
}

/// From the first minute on that looks have in whole: a file begins with the first look of its minute.
fn looks_s(files: &[About]) -> i64 {
    let oldest_s = files.iter().filter(|file| file.kind == Kind::Seconds).map(|file| file.begin_s).min();
    oldest_s.map_or(i64::MAX, minute_of)
}

/// Hands to `take` what is kept of `from_s` up to `to_s`: looks where there still are some, sums of minutes
/// of what is older. Nothing is there twice.
///
/// # Errors
/// When it cannot be read.
pub fn read(directory: &Path, from_s: i64, to_s: i64, mut take: impl FnMut(Look)) -> std::io::Result<()> {
    let files = list_or_none(directory)?;
    let looks_s = looks_s(&files);
    let within = |at_s: i64| (from_s..to_s).contains(&at_s);
    for (index, file) in files.iter().enumerate() {
        // What came after the next file of the kind began is not in this one, unless the clock stepped back.
        let next = files.get(index + 1).filter(|next| next.kind == file.kind);
        let before = next.is_some_and(|next| next.begin_s <= from_s.saturating_sub(60));
        if before || file.begin_s >= to_s {
            continue;
        }
        let seconds = file.kind == Kind::Seconds;
        each(directory, *file, |look| {
            if (look.at_s >= looks_s) == seconds && within(look.at_s) {
                take(look);
            }
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::Group;
    use crate::load::tests::key;
    use std::os::unix::fs::PermissionsExt;

    fn look(at_s: i64, sum: u32) -> Look {
        let groups = vec![Group { key: key("CPU", &format!("SELECT {}", at_s % 3)), sum }];
        Look { at_s, looks: 1, cores: 2, groups, machine: None }
    }

    fn sum(directory: &Path, from_s: i64, to_s: i64) -> (u32, u32) {
        let mut sums = (0, 0);
        read(directory, from_s, to_s, |look| {
            sums.0 += look.looks;
            sums.1 += look.groups.iter().map(|group| group.sum).sum::<u32>();
        })
        .unwrap();
        sums
    }

    #[test]
    fn what_was_noted_is_read_once_whether_looks_are_left_of_it_or_minutes() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("load");
        assert_eq!(sum(&place, 0, i64::MAX), (0, 0), "nothing is there yet");
        assert_eq!(looks_from(&place).unwrap(), i64::MIN);
        let begin_s = 1_700_000_040;
        let mut store = Store::open(&place).unwrap();
        let end_s = begin_s + 4 * 3_600;
        for at_s in begin_s..end_s {
            store.note(&look(at_s, 2)).unwrap();
        }
        assert_eq!(sum(&place, begin_s, end_s), (4 * 3_600, 8 * 3_600));
        assert_eq!(sum(&place, end_s - 10, end_s), (10, 20));
        let looks_s = looks_from(&place).unwrap();
        assert!((end_s - 7_200..=end_s - 3_600).contains(&looks_s), "{looks_s}");
        let kinds: Vec<Kind> = list(&place).unwrap().into_iter().map(|file| file.kind).collect();
        let looks = kinds.iter().filter(|kind| **kind == Kind::Seconds).count();
        assert!((1..=2).contains(&looks), "looks go after an hour: {kinds:?}");
        for entry in std::fs::read_dir(&place).unwrap() {
            assert_eq!(entry.unwrap().metadata().unwrap().permissions().mode() & 0o777, 0o600);
        }
        assert_eq!(std::fs::metadata(&place).unwrap().permissions().mode() & 0o777, 0o700);
    }

    /// A daemon is killed at any moment: what it had written in whole is there, the torn record is cut off,
    /// the minute under way is summed up by the next daemon, and nothing counts twice.
    #[test]
    fn a_killed_daemon_loses_at_most_the_record_that_was_torn() {
        let begin_s = 1_700_000_040;
        let whole = tempfile::tempdir().unwrap();
        let mut store = Store::open(whole.path()).unwrap();
        for at_s in begin_s..begin_s + 150 {
            store.note(&look(at_s, 1)).unwrap();
        }
        drop(store);
        for torn in [0_u64, 1, 7, 30, 200] {
            let copy = tempfile::tempdir().unwrap();
            for entry in std::fs::read_dir(whole.path()).unwrap() {
                let entry = entry.unwrap();
                std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
            }
            for file in list(copy.path()).unwrap() {
                let opened = File::options().write(true).open(path(copy.path(), file)).unwrap();
                opened.set_len(file.bytes.saturating_sub(torn)).unwrap();
            }
            let left = sum(copy.path(), 0, i64::MAX).0;
            let mut store = Store::open(copy.path()).unwrap();
            for at_s in begin_s + 150..begin_s + 8_000 {
                store.note(&look(at_s, 1)).unwrap();
            }
            // All in minutes or looks by now; what was torn is missing, and no more.
            let (looks, sessions) = sum(copy.path(), 0, i64::MAX);
            assert_eq!((looks, sessions), (left + 7_850, left + 7_850), "{torn} bytes torn");
            assert!(looks + 25 >= 8_000, "{torn} bytes torn: {looks}");
        }
    }

    #[test]
    fn whatever_else_lies_there_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("seconds-x.load"), "not ours").unwrap();
        std::fs::write(directory.path().join("seconds-1700000040.load"), "rotten").unwrap();
        let mut store = Store::open(directory.path()).unwrap();
        store.note(&look(1_700_000_041, 4)).unwrap();
        assert_eq!(sum(directory.path(), 0, i64::MAX), (1, 4));
        assert_eq!(std::fs::read(directory.path().join("seconds-x.load")).unwrap(), b"not ours");
    }
}
