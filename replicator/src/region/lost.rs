//! Redo that a failover cut off: kept aside in the region that had it, until an operator discards it.
//!
//! It is kept as PostgreSQL's own WAL segments, so that `pg_waldump` reads it.

use std::io::Write;
use std::path::{Path, PathBuf};

use proto::{Lsn, TimelineHistory};
use serde::{Deserialize, Serialize};
use volume::{Start, Volume};

use crate::layout::{RegionLayout, write_durably};

/// The size of PostgreSQL's WAL segments, as `initdb` makes them.
const WAL_SEGMENT_BYTES: u64 = 16 << 20;

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
}

/// Keeps what the volume has beyond the fork that leads to `history`'s timeline. On disk when this returns.
///
/// # Errors
/// When it cannot be read or written; nothing may be overwritten then.
pub async fn keep(
    layout: &RegionLayout,
    volume: &Volume,
    history: &TimelineHistory,
    epoch: u64,
) -> Result<(), LostError> {
    let bounds = volume.bounds();
    let Some(fork_lsn) = history.fork_of(bounds.timeline).filter(|fork| *fork < bounds.durable_lsn) else {
        return Ok(());
    };
    let io = |path: &Path| {
        let path = path.display().to_string();
        move |source| LostError::Io { path: path.clone(), source }
    };
    let name = format!("epoch-{epoch}-{:X}-{:X}", fork_lsn.0, bounds.durable_lsn.0);
    let directory = layout.lost().join(name);
    std::fs::create_dir_all(&directory).map_err(io(&directory))?;
    // From the beginning of the WAL segment, so that it has its header; the zeroes behind the end end it.
    let begin_lsn = fork_lsn.segment_begin(WAL_SEGMENT_BYTES).max(bounds.horizon_lsn);
    let mut cursor = volume.cursor(begin_lsn, Start::Batch)?;
    let mut next_lsn = begin_lsn;
    let mut open: Option<(u64, std::fs::File, PathBuf)> = None;
    while next_lsn < bounds.durable_lsn {
        let redo = cursor.next().await?;
        let skip = usize::try_from(next_lsn.bytes_since(redo.batch.begin_lsn)).unwrap_or(usize::MAX);
        let mut bytes = &redo.bytes[skip.min(redo.bytes.len())..];
        while !bytes.is_empty() {
            let number = next_lsn.0 / WAL_SEGMENT_BYTES;
            if open.as_ref().is_none_or(|(of, ..)| *of != number) {
                let per_id = (1 << 32) / WAL_SEGMENT_BYTES;
                let file = format!("{:08X}{:08X}{:08X}", bounds.timeline.0, number / per_id, number % per_id);
                let path = directory.join(file);
                let file = std::fs::File::create(&path).map_err(io(&path))?;
                file.set_len(WAL_SEGMENT_BYTES).map_err(io(&path))?;
                open = Some((number, file, path));
            }
            let Some((_, file, path)) = &mut open else { break };
            let offset = next_lsn.0 % WAL_SEGMENT_BYTES;
            let room = usize::try_from(WAL_SEGMENT_BYTES - offset).unwrap_or(usize::MAX);
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            std::os::unix::fs::FileExt::write_all_at(file, now, offset)
                .and_then(|()| file.flush())
                .and_then(|()| file.sync_all())
                .map_err(io(path))?;
            next_lsn = next_lsn + now.len() as u64;
            bytes = later;
        }
    }
    let lost = Lost {
        epoch,
        timeline: bounds.timeline.0,
        from_lsn: fork_lsn.to_string(),
        to_lsn: bounds.durable_lsn.to_string(),
        bytes: bounds.durable_lsn - fork_lsn,
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
        let content = std::fs::read(path.join("lost.json")).unwrap_or_default();
        if let Ok(lost) = serde_json::from_slice(&content) {
            found.push((path, lost));
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
