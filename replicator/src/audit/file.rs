//! An audit on disk: `audit.jsonl`, those that were put aside, and the head of the chain.
//!
//! Each line is on disk before it is said to be written. Several processes may append: a daemon, and commands
//! on its machine. What a crash has left of a line that was never finished is cut off.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use runtime::private;

use super::chain::{self, Deed, Head};

/// How large a file grows before it is put aside, bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// How many that were put aside are kept.
const KEEP: usize = 7;

/// What is read of a file's end to find its last line: lines are shorter.
const TAIL_BYTES: u64 = 64 * 1024;

/// The files of an audit in a directory.
#[derive(Debug, Clone)]
pub struct Files {
    directory: PathBuf,
    bytes_max: u64,
}

impl Files {
    /// Those in `directory`.
    #[must_use]
    pub fn new(directory: &Path) -> Files {
        Files { directory: directory.to_owned(), bytes_max: FILE_BYTES_MAX }
    }

    fn path(&self) -> PathBuf {
        self.directory.join("audit.jsonl")
    }

    fn aside(&self, age: usize) -> PathBuf {
        self.directory.join(format!("audit.{age}.jsonl"))
    }

    fn head_path(&self) -> PathBuf {
        self.directory.join("audit.head")
    }

    /// One at a time, of all processes, until the file is dropped.
    fn lock(&self) -> io::Result<File> {
        let path = self.directory.join("audit.lock");
        let file = private::options().read(true).write(true).create(true).open(path)?;
        file.lock()?;
        Ok(file)
    }

    /// Appends a line; it is on disk when this returns.
    ///
    /// # Errors
    /// When it cannot be written: then it is not there.
    pub fn append(&self, at_us: i64, deed: Deed) -> io::Result<()> {
        let _lock = self.lock()?;
        let path = self.path();
        if std::fs::metadata(&path).is_ok_and(|about| about.len() >= self.bytes_max) {
            self.put_aside()?;
        }
        let mut file = private::options().read(true).append(true).create(true).open(&path)?;
        let (end, last) = last_line(&mut file)?;
        file.set_len(end)?;
        let last = match last {
            Some(last) => Some(last),
            None => match File::open(self.aside(1)) {
                Ok(mut aside) => last_line(&mut aside)?.1,
                Err(e) if e.kind() == io::ErrorKind::NotFound => None,
                Err(e) => return Err(e),
            },
        };
        let last = last.and_then(|text| chain::parse(&text));
        let last =
            last.map_or_else(Head::default, |read| Head { number: read.entry.number, hash: read.hash });
        // Where lines are missing the chain goes on after them, so that they stay missing.
        let kept = self.head()?;
        let head = if kept.number > last.number { kept } else { last };
        let (text, next) = chain::line(&head, at_us, deed)?;
        file.write_all(format!("{text}\n").as_bytes())?;
        file.sync_data()?;
        private::replace(&self.head_path(), &serde_json::to_vec(&next)?)
    }

    fn put_aside(&self) -> io::Result<()> {
        for age in (1..KEEP).rev() {
            match std::fs::rename(self.aside(age), self.aside(age + 1)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        std::fs::rename(self.path(), self.aside(1))
    }

    /// Where the chain ends, as is kept beside it.
    fn head(&self) -> io::Result<Head> {
        match runtime::private::read(&self.head_path()) {
            // One that is none says nothing, and the lines do.
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).unwrap_or_default()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Head::default()),
            Err(e) => Err(e),
        }
    }

    /// Lines from the `skip`th on, oldest first, of at most `bytes_max` bytes together but at least one;
    /// whether there are more; and where the chain ends.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn page(&self, skip: u64, bytes_max: usize) -> io::Result<(Vec<String>, bool, Head)> {
        let _lock = self.lock()?;
        let (mut lines, mut seen, mut bytes) = (Vec::new(), 0_u64, 0);
        let aside = (1..=KEEP).rev().map(|age| self.aside(age));
        for path in aside.chain([self.path()]) {
            let content = match runtime::private::read(&path) {
                Ok(content) => content,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(e),
            };
            for line in String::from_utf8_lossy(&content).lines() {
                seen += 1;
                if seen <= skip {
                    continue;
                }
                let line: String = line.chars().take(LINE_CHARS_MAX).collect();
                bytes += line.len();
                if bytes > bytes_max && !lines.is_empty() {
                    return Ok((lines, true, self.head()?));
                }
                lines.push(line);
            }
        }
        Ok((lines, false, self.head()?))
    }
}

/// The longest line that is shown: none that was written here is longer.
const LINE_CHARS_MAX: usize = 16 * 1024;

/// Where the last whole line ends, and that line; none where there is none.
fn last_line(file: &mut File) -> io::Result<(u64, Option<String>)> {
    let length = file.metadata()?.len();
    let from = length.saturating_sub(TAIL_BYTES);
    file.seek(SeekFrom::Start(from))?;
    let mut tail = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut tail)?;
    let Some(end) = tail.iter().rposition(|byte| *byte == b'\n') else { return Ok((from, None)) };
    let whole = tail.get(..end).unwrap_or_default();
    let begin = whole.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let line = String::from_utf8_lossy(whole.get(begin..).unwrap_or_default()).into_owned();
    Ok((from + u64::try_from(end + 1).unwrap_or(u64::MAX), Some(line)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::chain::{Verified, Verifier};
    use std::os::unix::fs::PermissionsExt;

    fn deed(detail: &str) -> Deed {
        let deed =
            Deed { role: "operator".into(), name: "ann".into(), what: "promote".into(), ..Deed::default() };
        Deed { detail: detail.into(), outcome: "done".into(), ..deed }
    }

    fn verified(files: &Files) -> Verified {
        let (mut verifier, mut skip) = (Verifier::default(), 0);
        loop {
            let (lines, more, head) = files.page(skip, 1000).unwrap();
            skip += u64::try_from(lines.len()).unwrap();
            lines.iter().for_each(|line| verifier.take(line));
            if !more {
                return verifier.end(&head);
            }
        }
    }

    #[test]
    fn files_are_put_aside_bounded_and_the_chain_goes_on() {
        let directory = tempfile::tempdir().unwrap();
        let files = Files { directory: directory.path().to_owned(), bytes_max: 2000 };
        for n in 0..200 {
            files.append(n, deed(&format!("order {n}"))).unwrap();
        }
        let found = verified(&files);
        assert_eq!((found.faults, found.last.number), (Vec::<String>::new(), 200));
        assert!(
            found.first > 1 && found.lines == 201 - found.first,
            "what is older is gone: {}",
            found.first
        );
        let entries: Vec<_> = std::fs::read_dir(directory.path()).unwrap().map(Result::unwrap).collect();
        assert_eq!(entries.len(), KEEP + 3, "the files, the head, and the lock");
        for entry in entries {
            let about = entry.metadata().unwrap();
            assert_eq!(about.permissions().mode() & 0o777, 0o600);
            assert!(about.len() < 2000 + 1000, "{}", about.len());
        }
    }

    #[test]
    fn a_torn_line_is_cut_off_and_lines_that_were_taken_out_stay_missing() {
        let directory = tempfile::tempdir().unwrap();
        let files = Files::new(directory.path());
        (0..4).for_each(|n| files.append(n, deed("")).unwrap());
        let path = files.path();
        let whole = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("{whole}{{\"n\":5,\"at")).unwrap();
        files.append(5, deed("after a crash")).unwrap();
        let found = verified(&files);
        assert_eq!((found.faults, found.lines), (Vec::<String>::new(), 5));
        // The last two are taken out, and the daemon goes on.
        let kept: Vec<&str> = whole.lines().take(3).collect();
        std::fs::write(&path, kept.join("\n") + "\n").unwrap();
        assert_eq!(verified(&files).faults, ["lines 4 to 5 are missing"]);
        files.append(6, deed("goes on")).unwrap();
        assert_eq!(verified(&files).faults, ["lines 4 to 5 are missing"]);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(verified(&files).faults, ["lines 1 to 6 are missing"]);
    }
}
