//! Redo that a failover cut off: kept aside in the region that had it, until an operator discards it.
//!
//! It is kept as PostgreSQL's own WAL segments, so that `pg_waldump` reads it; sealed where the region's redo
//! is.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use postgres::wal::segment::SegmentSize;
use proto::{Lsn, TimelineHistory};
use runtime::private;
use serde::{Deserialize, Serialize};
use volume::seal::RegionKey;
use volume::{Start, Volume};

use crate::layout::{RegionLayout, write_durably};

pub mod sealed;

/// What is known of redo that was kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    /// The epoch that cut it off.
    pub epoch: u64,
    /// Its timeline.
    pub timeline: u32,
    /// Where it begins: the fork.
    pub from_lsn: String,
    /// Where it ends.
    pub to_lsn: String,
    /// How much it is.
    pub bytes: u64,
    /// The key that it is sealed with; not where it is in the clear.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed: Option<String>,
}

impl Lost {
    /// What a `lost.json` says.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(content: &[u8]) -> Result<Lost, String> {
        let lost: Lost = serde_json::from_slice(content).map_err(|e| e.to_string())?;
        // They become arguments of a program.
        for text in [&lost.from_lsn, &lost.to_lsn] {
            text.parse::<Lsn>().map_err(|e| format!("{text:?}: {e}"))?;
        }
        Ok(lost)
    }
}

/// Why redo cannot be kept, or read.
#[derive(Debug, thiserror::Error)]
pub enum LostError {
    /// A file cannot be written or read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// The volume cannot be read.
    #[error(transparent)]
    Volume(#[from] volume::VolumeError),
    /// It cannot be sealed, or opened.
    #[error("{path}: {what}")]
    Sealed {
        /// The file.
        path: String,
        /// What is wrong.
        what: String,
    },
}

/// Keeps what the volume has beyond what it has in common with `history`, if that is anything. On disk when
/// this returns.
///
/// # Errors
/// When it cannot be read or written; nothing may be overwritten then.
pub async fn keep(
    layout: &RegionLayout,
    volume: &Volume,
    history: &TimelineHistory,
    epoch: u64,
    segment_size: SegmentSize,
) -> Result<(), LostError> {
    let bounds = volume.bounds();
    let fork_lsn = fork(volume, history);
    if volume.is_empty() || fork_lsn >= bounds.durable_lsn {
        return Ok(());
    }
    let name = format!("epoch-{epoch}-{:X}-{:X}", fork_lsn.0, bounds.durable_lsn.0);
    let directory = layout.lost().join(name);
    private::make_directory(&directory).map_err(io(&directory))?;
    // One key for all of it: another one may be used meanwhile.
    let key = volume.sealer().and_then(|sealer| sealer.active_key());
    write(volume, fork_lsn, &directory, segment_size, key.as_ref()).await?;
    let lost = Lost {
        epoch,
        timeline: bounds.timeline.0,
        from_lsn: fork_lsn.to_string(),
        to_lsn: bounds.durable_lsn.to_string(),
        bytes: bounds.durable_lsn - fork_lsn,
        sealed: key.map(|key| key.id().to_string()),
    };
    let path = directory.join("lost.json");
    let content = serde_json::to_vec_pretty(&lost).unwrap_or_default();
    write_durably(&path, &content).map_err(io(&path))?;
    tracing::warn!(
        "redo from {fork_lsn} to {} was cut off by epoch {epoch}; it is kept in {}",
        bounds.durable_lsn,
        directory.display()
    );
    Ok(())
}

fn io(path: &Path) -> impl Fn(std::io::Error) -> LostError + use<> {
    let path = path.display().to_string();
    move |source| LostError::Io { path: path.clone(), source }
}

/// Where the volume's redo parts from `history`; its oldest redo at least.
pub fn fork(volume: &Volume, history: &TimelineHistory) -> Lsn {
    let bounds = volume.bounds();
    let mine = volume.history(bounds.timeline);
    let mine = mine.unwrap_or(TimelineHistory { timeline: bounds.timeline, ..TimelineHistory::first() });
    mine.common_end(history).max(bounds.horizon_lsn)
}

/// Writes the volume's redo from the WAL segment of `from_lsn` on to its end into `directory`, as WAL
/// segments of its newest timeline.
///
/// # Errors
/// When it cannot be read or written.
pub async fn write_segments(
    volume: &Volume,
    from_lsn: Lsn,
    directory: &Path,
    segment_size: SegmentSize,
) -> Result<(), LostError> {
    write(volume, from_lsn, directory, segment_size, None).await
}

/// A WAL segment that is being written.
enum Open {
    Clear(std::fs::File),
    /// All of it: none of it lies on the disk in the clear.
    Sealed(Vec<u8>),
}

async fn write(
    volume: &Volume,
    from_lsn: Lsn,
    directory: &Path,
    segment_size: SegmentSize,
    key: Option<&RegionKey>,
) -> Result<(), LostError> {
    let bounds = volume.bounds();
    // From the beginning of the WAL segment, so that it has its header; the zeroes behind the end end it.
    let begin_lsn = segment_size.begin(from_lsn).max(bounds.horizon_lsn);
    let mut cursor = volume.cursor(begin_lsn, Start::Batch)?;
    let mut next_lsn = begin_lsn;
    let mut open: Option<(Lsn, Open, PathBuf)> = None;
    while next_lsn < bounds.durable_lsn {
        let redo = cursor.next().await?;
        let skip = usize::try_from(next_lsn.bytes_since(redo.batch.begin_lsn)).unwrap_or(usize::MAX);
        let mut bytes = &redo.bytes[skip.min(redo.bytes.len())..];
        while !bytes.is_empty() {
            let segment_lsn = segment_size.begin(next_lsn);
            if open.as_ref().is_none_or(|(of, ..)| *of != segment_lsn) {
                let path = directory.join(segment_size.name(bounds.timeline, next_lsn));
                let new = match key {
                    Some(_) => {
                        Open::Sealed(vec![0; usize::try_from(segment_size.bytes()).unwrap_or_default()])
                    }
                    None => {
                        let file = private::create_new(&path).map_err(io(&path))?;
                        file.set_len(segment_size.bytes()).map_err(io(&path))?;
                        Open::Clear(file)
                    }
                };
                finish(open.replace((segment_lsn, new, path)), key)?;
            }
            let Some((_, file, path)) = &mut open else { break };
            let offset = next_lsn - segment_lsn;
            let room = usize::try_from(segment_size.bytes() - offset).unwrap_or(usize::MAX);
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            match file {
                Open::Clear(file) => {
                    std::os::unix::fs::FileExt::write_all_at(file, now, offset).map_err(io(path))?;
                }
                Open::Sealed(bytes) => {
                    let at = usize::try_from(offset).unwrap_or(usize::MAX);
                    bytes[at..at + now.len()].copy_from_slice(now);
                }
            }
            next_lsn = next_lsn + now.len() as u64;
            bytes = later;
        }
    }
    finish(open, key)
}

fn finish(written: Option<(Lsn, Open, PathBuf)>, key: Option<&RegionKey>) -> Result<(), LostError> {
    match (written, key) {
        (Some((_, Open::Clear(file), path)), _) => file.sync_all().map_err(io(&path)),
        (Some((_, Open::Sealed(bytes), path)), Some(key)) => sealed::write(&path, &bytes, key),
        _ => Ok(()),
    }
}

/// Everything that is kept in a region's directory, with where it lies.
///
/// # Errors
/// When the directory cannot be read.
pub fn list(layout: &RegionLayout) -> Result<Vec<(PathBuf, Lost)>, LostError> {
    let directory = layout.lost();
    let io = |source| LostError::Io { path: directory.display().to_string(), source };
    if !directory.exists() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&directory).map_err(io)? {
        let path = entry.map_err(io)?.path();
        let manifest = path.join("lost.json");
        match std::fs::read(&manifest) {
            Ok(content) => match Lost::parse(&content) {
                Ok(lost) => found.push((path, lost)),
                Err(what) => {
                    tracing::error!("{}: {what}; what is kept there is not shown", manifest.display())
                }
            },
            // It was being written when the daemon was killed: nothing was cut off yet.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(io(e)),
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(found)
}

/// The place of an LSN as printed; zero when it is none.
#[must_use]
pub fn lsn(text: &str) -> Lsn {
    text.parse().unwrap_or_default()
}

/// What a transaction did in redo that was cut off, as far as pg_waldump says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Transaction {
    /// Its number.
    pub id: u64,
    /// How it ended, and when: `COMMIT 2026-11-23 20:00:00.000000 UTC`; none when its end is not in there.
    pub end: Option<String>,
    /// Its records.
    pub records: u64,
    /// What they change: tablespace/database/file, as in `pg_filenode_relation`.
    pub relations: BTreeSet<String>,
}

/// The transactions in what pg_waldump prints, in the order in which they begin there. Lines without a
/// transaction, and any that are not understood, are left out.
#[must_use]
pub fn transactions(dump: &str) -> Vec<Transaction> {
    let mut found: Vec<Transaction> = Vec::new();
    for line in dump.lines() {
        let id = line.split("tx:").nth(1).and_then(|rest| rest.split(',').next()?.trim().parse().ok());
        let (Some(id), Some((_, what))) = (id.filter(|id| *id > 0), line.split_once("desc: ")) else {
            continue;
        };
        let at = found.iter().rposition(|transaction| transaction.id == id).unwrap_or_else(|| {
            found.push(Transaction { id, ..Transaction::default() });
            found.len() - 1
        });
        let transaction = &mut found[at];
        transaction.records += 1;
        if line.starts_with("rmgr: Transaction") && (what.starts_with("COMMIT") || what.starts_with("ABORT"))
        {
            transaction.end = Some(what.split(';').next().unwrap_or(what).trim().to_owned());
        }
        let relations = what.split("rel ").skip(1).filter_map(|rest| rest.split_whitespace().next());
        transaction.relations.extend(relations.filter(|name| name.contains('/')).map(str::to_owned));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transactions_of_a_dump() {
        let dump = "\
rmgr: Heap        len (rec/tot):     54/   150, tx:        735, lsn: 0/01500028, prev 0/014FFFB0, desc: INSERT off 3 flags 0x00, blkref #0: rel 1663/5/16388 blk 0
rmgr: Standby     len (rec/tot):     50/    50, tx:          0, lsn: 0/015000C0, prev 0/01500028, desc: RUNNING_XACTS nextXid 736
rmgr: Heap        len (rec/tot):     54/    54, tx:        736, lsn: 0/015000F8, prev 0/015000C0, desc: DELETE off 1, blkref #0: rel 1663/5/16390 blk 0
rmgr: Transaction len (rec/tot):     34/    34, tx:        735, lsn: 0/01500130, prev 0/015000F8, desc: COMMIT 2026-11-23 20:00:00.5 UTC; inval msgs: x
garbage tx: desc";
        let [first, second] = &transactions(dump)[..] else { panic!("two") };
        assert_eq!(
            (first.id, first.records, first.end.as_deref()),
            (735, 2, Some("COMMIT 2026-11-23 20:00:00.5 UTC"))
        );
        assert_eq!(first.relations, BTreeSet::from(["1663/5/16388".to_owned()]));
        assert_eq!((second.id, second.end.as_deref()), (736, None));
    }
}
