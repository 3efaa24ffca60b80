//! Writes and flushes of a copy's segments. Tests make them fail here as a disk does: what a failed flush
//! left behind can be read, later flushes succeed, and yet it is on no disk.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Writes all of `bytes` at `offset`.
pub(super) fn write_at(file: &File, path: &Path, bytes: &[u8], offset: u64) -> io::Result<()> {
    file.write_all_at(bytes, offset)?;
    #[cfg(test)]
    faults::written(path, offset, bytes.len() as u64);
    let _ = path;
    Ok(())
}

/// Makes what was written durable.
pub(super) fn sync_data(file: &File, path: &Path) -> io::Result<()> {
    #[cfg(test)]
    faults::flushed(path)?;
    let _ = path;
    file.sync_data()
}

#[cfg(test)]
pub(super) mod faults {
    use std::collections::BTreeMap;
    use std::io;
    use std::path::{Path, PathBuf};
    use std::sync::Mutex;

    #[derive(Default)]
    struct Pages {
        /// Written since the last flush.
        dirty: Vec<(u64, u64)>,
        /// Written before a flush that failed, and not again since.
        lost: Vec<(u64, u64)>,
        failing: bool,
    }

    static FILES: Mutex<BTreeMap<PathBuf, Pages>> = Mutex::new(BTreeMap::new());

    fn of<T>(path: &Path, work: impl FnOnce(&mut Pages) -> T) -> T {
        work(FILES.lock().unwrap().entry(path.to_owned()).or_default())
    }

    /// The next flush of the file fails.
    pub fn fail_next_flush(path: &Path) {
        of(path, |pages| pages.failing = true);
    }

    /// Where the first byte is that can be read and is on no disk.
    pub fn first_lost(path: &Path) -> Option<u64> {
        of(path, |pages| pages.lost.iter().map(|(begin, _)| *begin).min())
    }

    pub fn written(path: &Path, offset: u64, length: u64) {
        of(path, |pages| {
            let (begin, end) = (offset, offset + length);
            pages.lost.retain(|lost| lost.0 < begin || lost.1 > end);
            pages.dirty.push((begin, end));
        });
    }

    pub fn flushed(path: &Path) -> io::Result<()> {
        of(path, |pages| {
            let dirty = std::mem::take(&mut pages.dirty);
            if !std::mem::take(&mut pages.failing) {
                return Ok(());
            }
            pages.lost.extend(dirty);
            Err(io::Error::other("a flush that fails on purpose"))
        })
    }
}
