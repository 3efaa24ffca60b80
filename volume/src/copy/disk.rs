//! One copy's directory: its recovery, its appends, its segments. Used by one thread, the copy's own.
//!
//! Nothing here decides what the copy should hold; that is [`crate::quorum`]'s part.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use proto::{ClusterId, Lsn, Timeline, TimelineHistory};
use ring::Blocks;
use runtime::private;
use tokio::time::Instant;

use super::errors::{at, damaged};
use super::files;
use super::meta::{Lost, Meta, MetaError};
use super::reader::{SegmentReader, end_of};
use super::{SegmentInfo, Stored};
use crate::ballot::Ballot;
use crate::key::KeyId;
use crate::quorum::{CopyId, Vote};
use crate::segment::{self, Found, HEADER_BYTES, Header};
use crate::{Durable, VolumeError};
use direct::Direct;

mod direct;
#[cfg(test)]
mod tests;

/// How much of a segment is filled with zeroes ahead of what is written, so that a commit's `fdatasync`
/// seldom has a file to grow.
const GROW_BYTES: u64 = 1 << 20;

/// How often it is seen that the file written to is still there.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The segments of a copy, oldest first, as readers see them: up to what is on disk.
pub type Segments = Arc<Mutex<Vec<SegmentInfo>>>;

/// The directory, and the segment that is being written.
#[derive(Debug)]
pub struct Disk {
    directory: PathBuf,
    cluster_id: ClusterId,
    copy: CopyId,
    meta: Meta,
    segments: Segments,
    /// The newest segment's file, once something is written to it.
    open: Option<Open>,
    end: Durable,
    buffer: Vec<u8>,
    /// Used for one direct write after the other.
    blocks: Blocks,
    /// When it was last seen that the file written to is still there.
    seen: Option<Instant>,
    /// Held while this is open: a directory has one writer.
    _lock: File,
}

#[derive(Debug)]
struct Open {
    file: File,
    path: PathBuf,
    /// How far the file is filled, with records or zeroes.
    filled_bytes: u64,
    direct: Option<Direct>,
    /// There are no direct writes to this file.
    no_direct: bool,
}

impl Disk {
    /// Opens the copy in `directory`, or makes an empty one. A torn end is cut off; so is damaged redo in the
    /// newest segment, and the copy then proves more than it has.
    ///
    /// # Errors
    /// When the directory cannot be used, or is another cluster's or copy's.
    pub fn open(directory: &Path, cluster_id: ClusterId, copy: CopyId) -> Result<Disk, VolumeError> {
        create_directory(directory)?;
        let lock = take_lock(&directory.join("copy.lock"))?;
        let path = directory.join("copy.meta");
        let shown = path.display().to_string();
        let meta = match std::fs::read_to_string(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Meta::default(),
            Err(e) => return Err(at(&path)(e)),
            Ok(text) => match Meta::parse(&text, cluster_id, copy) {
                Ok(meta) => meta,
                Err(MetaError::OtherCluster(found)) => {
                    return Err(VolumeError::OtherCluster { path: shown, found, expected: cluster_id });
                }
                Err(MetaError::OtherCopy(found)) => {
                    return Err(VolumeError::OtherCopy { path: shown, found, expected: copy });
                }
                // What it promised is forgotten, so it is as a copy that was lost: it is made anew from its
                // peers.
                Err(MetaError::Damaged(what)) => {
                    tracing::error!("{shown}: {what}; the copy is made anew");
                    Meta::default()
                }
            },
        };
        let mut disk = Disk {
            directory: directory.to_owned(),
            cluster_id,
            copy,
            end: meta.begin,
            meta,
            segments: Segments::default(),
            open: None,
            buffer: Vec::new(),
            blocks: Blocks::default(),
            seen: None,
            _lock: lock,
        };
        disk.remove_leftovers()?;
        if disk.meta.generation > 0 {
            create_directory(&disk.log_directory())?;
            disk.recover()?;
        }
        Ok(disk)
    }

    /// The list that readers use.
    #[must_use]
    pub fn segments(&self) -> Segments {
        self.segments.clone()
    }

    /// The highest ballot promised.
    #[must_use]
    pub fn promised(&self) -> Ballot {
        self.meta.promised
    }

    /// What `copy.meta` says.
    #[must_use]
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// Whether the log has no segment yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        lock(&self.segments).is_empty()
    }

    /// Where the redo ends.
    #[must_use]
    pub fn end(&self) -> Durable {
        self.end
    }

    /// The copy's description of itself.
    #[must_use]
    pub fn vote(&self) -> Vote {
        let first = lock(&self.segments).first().map(|segment| segment.begin_lsn);
        let begin = match first {
            Some(lsn) if lsn != self.meta.begin.lsn => Durable { lsn, ..Durable::default() },
            _ => self.meta.begin,
        };
        Vote {
            generation: self.meta.generation,
            ballots: self.meta.ballots.clone(),
            begin,
            end: self.end,
            proven_lsn: self.meta.proven_lsn,
            held: self.meta.held,
        }
    }

    /// Begins the log anew as `meta` says, with nothing in it. On disk when this returns.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn begin_anew(&mut self, meta: Meta) -> Result<(), VolumeError> {
        self.open = None;
        lock(&self.segments).clear();
        if meta.generation == self.meta.generation && self.log_directory().exists() {
            // The same log anew. A crash in here leaves a copy with less, which its vote will say.
            for path in list(&self.log_directory())?.into_iter().rev() {
                std::fs::remove_file(&path).map_err(at(&path))?;
            }
            // They must be gone before the ballots below speak of other redo.
            sync_directory(&self.log_directory())?;
        }
        create_directory(&self.directory.join(format!("log.{}", meta.generation)))?;
        let begin = meta.begin;
        self.write_meta(meta)?;
        self.end = begin;
        self.remove_leftovers()
    }

    /// Writes records that follow each other at the end of the newest segment, with one `fdatasync`.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn write(&mut self, records: &[Stored]) -> Result<(), VolumeError> {
        self.buffer.clear();
        for stored in records {
            self.buffer.extend_from_slice(&stored.record);
        }
        let offset = lock(&self.segments).last().map_or(0, |segment| segment.stored_bytes);
        if self.open.is_none() {
            self.open = Some(Open::new(self.newest_path()?)?);
        }
        let Some(open) = &mut self.open else { return Err(VolumeError::Closed) };
        let length = self.buffer.len() as u64;
        let io = at(&open.path);
        if offset + length > open.filled_bytes {
            let filled = offset + length + GROW_BYTES;
            let zeroes = usize::try_from(GROW_BYTES).unwrap_or_default();
            self.buffer.resize(self.buffer.len() + zeroes, 0);
            open.filled_bytes = filled;
        }
        // What a direct write would begin with has changed.
        open.direct = None;
        files::write_at(&open.file, &open.path, &self.buffer, offset).map_err(&io)?;
        files::sync_data(&open.file, &open.path).map_err(&io)?;
        self.grown(records, offset, length)
    }

    /// What was written at `offset` is on the disk: the log ends behind it, if the file is still there. A
    /// file that was deleted or cut short under us is no copy, whatever its disk says. To look costs as much
    /// as a small write, so it is done once in a while: a copy whose file is lost is one copy less, whether
    /// that is noticed at once or a moment later.
    fn grown(&mut self, records: &[Stored], offset: u64, length: u64) -> Result<(), VolumeError> {
        let Some(open) = &self.open else { return Err(VolumeError::Closed) };
        let now = runtime::clock::now();
        if self.seen.is_none_or(|seen| now.duration_since(seen) >= LOOK_EVERY) {
            let found = open.file.metadata().map_err(at(&open.path))?;
            if found.nlink() == 0 || found.len() < offset + length {
                let what = if found.nlink() == 0 { "it was deleted" } else { "it was cut short" };
                return Err(damaged(&open.path, offset, what));
            }
            self.seen = Some(now);
        }
        if let (Some(last), Some(segment)) = (records.last(), lock(&self.segments).last_mut()) {
            let batch = &last.batch;
            segment.stored_bytes = offset + length;
            segment.end_lsn = batch.end_lsn;
            segment.newest_commit_us = segment.newest_commit_us.max(batch.newest_commit_us);
            self.end = Durable { lsn: batch.end_lsn, timeline: batch.timeline, epoch: batch.epoch };
        }
        Ok(())
    }

    /// Seals the newest segment and begins the one whose first record is `first`.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn roll(&mut self, first: &Stored) -> Result<(), VolumeError> {
        self.seal()?;
        let begin_lsn = first.batch.begin_lsn;
        let path = self.log_directory().join(segment::file_name(begin_lsn));
        let io = at(&path);
        let file = private::create_new(&path).map_err(&io)?;
        let key = segment::key_of(&first.record);
        let header = Header { cluster_id: self.cluster_id, begin_lsn, timeline: first.batch.timeline, key };
        file.write_all_at(&header.encode(), 0).and_then(|()| file.sync_all()).map_err(&io)?;
        sync_directory(&self.log_directory())?;
        self.open =
            Some(Open { file, path, filled_bytes: HEADER_BYTES as u64, direct: None, no_direct: false });
        self.seen = None;
        lock(&self.segments).push(SegmentInfo {
            begin_lsn,
            end_lsn: begin_lsn,
            stored_bytes: HEADER_BYTES as u64,
            newest_commit_us: 0,
            key,
        });
        Ok(())
    }

    /// Cuts off what the newest segment was filled with beyond its records.
    fn seal(&mut self) -> Result<(), VolumeError> {
        let length = lock(&self.segments).last().map(|segment| segment.stored_bytes);
        if let (Some(open), Some(length)) = (self.open.take(), length) {
            open.file.set_len(length).and_then(|()| open.file.sync_all()).map_err(at(&open.path))?;
        }
        Ok(())
    }

    /// Puts a whole segment of a peer in place: the next one of this log, or in the place of a damaged one.
    ///
    /// # Errors
    /// When it fits neither way, or the disk fails.
    pub fn install(&mut self, info: SegmentInfo, prepared: &Path) -> Result<Durable, VolumeError> {
        let path = self.log_directory().join(segment::file_name(info.begin_lsn));
        let place = lock(&self.segments).binary_search_by_key(&info.begin_lsn, |segment| segment.begin_lsn);
        let next = info.begin_lsn == self.end.lsn;
        let count = lock(&self.segments).len();
        let sealed = match place {
            Ok(index) => index + 1 < count,
            Err(index) => index < count,
        };
        if !next && !sealed {
            return Err(damaged(&path, 0, "a peer's segment that does not belong here"));
        }
        if next {
            self.seal()?;
        }
        let info = SegmentInfo { key: key_in(prepared)?, ..info };
        std::fs::rename(prepared, &path).map_err(at(&path))?;
        sync_directory(&self.log_directory())?;
        let mut segments = lock(&self.segments);
        match place {
            Ok(index) => segments[index] = info,
            Err(index) => segments.insert(index, info),
        }
        drop(segments);
        if next {
            self.open = None;
            self.end = end_of(&path, info)?;
        }
        Ok(self.end)
    }

    /// Cuts the log at `lsn`, which is where a record ends; what is behind it goes.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn cut(&mut self, lsn: Lsn) -> Result<(), VolumeError> {
        if lsn >= self.end.lsn {
            return Ok(());
        }
        tracing::info!(lsn = %lsn, "copy {}: cutting off redo from {lsn} to {}", self.copy, self.end.lsn);
        self.open = None;
        while let Some(last) = { lock(&self.segments).last().copied() } {
            let path = self.path_of(last.begin_lsn);
            if last.begin_lsn >= lsn {
                std::fs::remove_file(&path).map_err(at(&path))?;
                lock(&self.segments).pop();
                continue;
            }
            let mut reader = SegmentReader::open(&path, last)?;
            let mut end = self.meta.begin;
            let mut offset = HEADER_BYTES as u64;
            while let Some(record) = reader.next_record()? {
                if record.batch.end_lsn > lsn {
                    break;
                }
                let batch = &record.batch;
                end = Durable { lsn: batch.end_lsn, timeline: batch.timeline, epoch: batch.epoch };
                offset = reader.offset();
            }
            truncate(&path, offset)?;
            if let Some(segment) = lock(&self.segments).last_mut() {
                (segment.stored_bytes, segment.end_lsn) = (offset, end.lsn);
            }
            self.end = end;
            return sync_directory(&self.log_directory());
        }
        self.end = self.meta.begin;
        sync_directory(&self.log_directory())
    }

    /// Cuts the log where the newest segment begins: what is in it cannot be trusted.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn distrust_newest(&mut self) -> Result<(), VolumeError> {
        let newest = { lock(&self.segments).last().copied() };
        if let Some(newest) = newest {
            self.open = None;
            let path = self.path_of(newest.begin_lsn);
            let reader = SegmentReader::open(&path, newest);
            let behind = reader.and_then(|reader| reader.behind(HEADER_BYTES as u64)).unwrap_or_default();
            let lost = Lost { proven_lsn: behind.proven_lsn, end_lsn: self.end.lsn };
            if let Some(meta) = self.meta.lose(newest.begin_lsn, lost) {
                self.write_meta(meta)?;
            }
            match std::fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(at(&path)(e)),
                _ => drop(lock(&self.segments).pop()),
            }
            let before = { lock(&self.segments).last().copied() };
            self.end = match before {
                Some(before) => end_of(&self.path_of(before.begin_lsn), before)?,
                None => self.meta.begin,
            };
        }
        Ok(())
    }

    /// Whether a timeline's history is here; the first timeline needs none.
    #[must_use]
    pub fn has_history(&self, timeline: Timeline) -> bool {
        timeline <= Timeline(1) || self.log_directory().join(TimelineHistory::file_name(timeline)).exists()
    }

    /// Keeps a timeline's history. On disk when this returns.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn put_history(&self, history: &TimelineHistory) -> Result<(), VolumeError> {
        let path = self.log_directory().join(TimelineHistory::file_name(history.timeline));
        if std::fs::read(&path).is_ok_and(|found| found == history.content) {
            return Ok(());
        }
        write_durably(&path, &history.content)
    }

    /// Drops segments that end at or before `lsn`. A reader that has one open reads on.
    pub fn drop_before(&mut self, lsn: Lsn) {
        let mut segments = lock(&self.segments);
        let sealed = segments.len().saturating_sub(1);
        let count = segments[..sealed].iter().take_while(|segment| segment.end_lsn <= lsn).count();
        let dropped: Vec<SegmentInfo> = segments.drain(..count).collect();
        drop(segments);
        for segment in dropped {
            let path = self.path_of(segment.begin_lsn);
            if let Err(e) = std::fs::remove_file(&path) {
                tracing::warn!("{}: {e}", path.display());
            }
        }
    }

    /// Sees whether the files are still there: a directory that was removed is noticed before the next
    /// append.
    ///
    /// # Errors
    /// When they are not.
    pub fn check(&self) -> Result<(), VolumeError> {
        if self.meta.generation == 0 {
            return Ok(());
        }
        let meta = self.directory.join("copy.meta");
        std::fs::metadata(&meta).map_err(at(&meta))?;
        let newest = { lock(&self.segments).last().copied() };
        let Some(newest) = newest else { return Ok(()) };
        let path = self.path_of(newest.begin_lsn);
        match std::fs::metadata(&path) {
            Ok(found) if found.len() >= newest.stored_bytes => Ok(()),
            Ok(found) => Err(damaged(&path, found.len(), "it was cut short")),
            Err(e) => Err(at(&path)(e)),
        }
    }

    /// Where the log's files lie.
    #[must_use]
    pub fn log_directory(&self) -> PathBuf {
        self.directory.join(format!("log.{}", self.meta.generation))
    }

    fn path_of(&self, begin_lsn: Lsn) -> PathBuf {
        self.log_directory().join(segment::file_name(begin_lsn))
    }

    fn newest_path(&self) -> Result<PathBuf, VolumeError> {
        let newest = lock(&self.segments).last().map(|segment| segment.begin_lsn);
        newest.map(|begin_lsn| self.path_of(begin_lsn)).ok_or(VolumeError::Closed)
    }

    /// Replaces `copy.meta`. On disk when this returns.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn write_meta(&mut self, meta: Meta) -> Result<(), VolumeError> {
        let text = meta.text(self.cluster_id, self.copy);
        write_durably(&self.directory.join("copy.meta"), text.as_bytes())?;
        self.meta = meta;
        Ok(())
    }

    /// Removes the logs of other generations, and what a crash left half-made.
    fn remove_leftovers(&self) -> Result<(), VolumeError> {
        let keep = self.log_directory();
        for path in list(&self.directory)? {
            let is_log = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("log."));
            if is_log && path != keep {
                std::fs::remove_dir_all(&path).map_err(at(&path))?;
            }
        }
        if keep.exists() {
            for path in list(&keep)?.iter().filter(|path| path.extension().is_some_and(|e| e == "put")) {
                std::fs::remove_file(path).map_err(at(path))?;
            }
        }
        Ok(())
    }

    /// Finds the segments by their names, their keys by their headers, and the end of the newest. Of the
    /// others nothing more is read.
    fn recover(&mut self) -> Result<(), VolumeError> {
        let mut found: Vec<(Lsn, PathBuf)> = list(&self.log_directory())?
            .into_iter()
            .filter_map(|path| Some((segment::parse_file_name(path.file_name()?.to_str()?)?, path)))
            .collect();
        found.sort();
        let mut segments: Vec<SegmentInfo> = Vec::new();
        for (begin_lsn, path) in &found {
            let metadata = std::fs::metadata(path).map_err(at(path))?;
            let mtime = metadata.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok());
            let newest_commit_us = mtime.map_or(0, |t| i64::try_from(t.as_micros()).unwrap_or(i64::MAX));
            if let Some(last) = segments.last_mut() {
                last.end_lsn = *begin_lsn;
            }
            let (begin_lsn, stored_bytes) = (*begin_lsn, metadata.len());
            let key = key_in(path)?;
            segments.push(SegmentInfo { begin_lsn, end_lsn: begin_lsn, stored_bytes, newest_commit_us, key });
        }
        // The newest that holds anything tells the end.
        while let Some(newest) = segments.last_mut() {
            let path = &self.path_of(newest.begin_lsn);
            match self.recover_newest(path, newest)? {
                Some(end) => {
                    self.end = end;
                    break;
                }
                None => {
                    std::fs::remove_file(path).map_err(at(path))?;
                    segments.pop();
                }
            }
        }
        *lock(&self.segments) = segments;
        Ok(())
    }

    /// Finds where the readable records of the newest segment end, and cuts off what is behind; none in one
    /// without any.
    fn recover_newest(
        &mut self,
        path: &Path,
        info: &mut SegmentInfo,
    ) -> Result<Option<Durable>, VolumeError> {
        let Ok(mut reader) = SegmentReader::open(path, *info) else { return Ok(None) };
        let mut end = None;
        let mut expected_lsn = info.begin_lsn;
        let mut proven_lsn = Lsn::ZERO;
        loop {
            let offset = reader.offset();
            match reader.next_found()? {
                Found::Record(record)
                    if record.batch.begin_lsn == expected_lsn && reader.header().fits(&record) =>
                {
                    let batch = &record.batch;
                    expected_lsn = batch.end_lsn;
                    end = Some(Durable { lsn: batch.end_lsn, timeline: batch.timeline, epoch: batch.epoch });
                    info.newest_commit_us = batch.newest_commit_us;
                    proven_lsn = proven_lsn.max(record.durable_lsn);
                }
                other => {
                    let behind = reader.behind(offset)?;
                    let proven_lsn = proven_lsn.max(behind.proven_lsn);
                    // A write that was torn was never called durable; damage was.
                    let damaged = proven_lsn > expected_lsn;
                    if damaged && !matches!(other, Found::End) {
                        tracing::error!(
                            "copy {}: {} is damaged at byte {offset}; redo from {expected_lsn} is taken from its peers",
                            self.copy,
                            path.display()
                        );
                    }
                    let lost = Lost { proven_lsn, end_lsn: behind.end_lsn.max(proven_lsn) };
                    if let Some(meta) = self.meta.lose(expected_lsn, lost).filter(|_| damaged) {
                        self.write_meta(meta)?;
                    }
                    truncate(path, offset)?;
                    // What can be read may lie in memory alone: after a flush that failed, the system takes
                    // it for written. So it is written again before this copy says that it has it.
                    write_again(path, offset)?;
                    (info.stored_bytes, info.end_lsn) = (offset, expected_lsn);
                    return Ok(end);
                }
            }
        }
    }
}

/// Takes the directory's lock; waits for a writer that is just ending.
fn take_lock(path: &Path) -> Result<File, VolumeError> {
    let file = private::options().write(true).create(true).truncate(false).open(path).map_err(at(path))?;
    if file.try_lock().is_err() {
        tracing::info!("{} is held by another writer; waiting for it to end", path.display());
        file.lock().map_err(at(path))?;
    }
    Ok(file)
}

impl Open {
    fn new(path: PathBuf) -> Result<Open, VolumeError> {
        let io = at(&path);
        let file = OpenOptions::new().write(true).open(&path).map_err(&io)?;
        let filled_bytes = file.metadata().map_err(&io)?.len();
        Ok(Open { file, path, filled_bytes, direct: None, no_direct: false })
    }
}

/// Writes a peer's whole segment beside the log, ready to be put in place; checks every record first.
pub(crate) fn prepare(
    log_directory: &Path,
    cluster_id: ClusterId,
    info: SegmentInfo,
    bytes: &Bytes,
) -> Result<PathBuf, VolumeError> {
    // Two may bring the same segment at once.
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let path = log_directory.join(format!("{:016X}-{number}.put", info.begin_lsn.0));
    segment::verify(bytes, cluster_id, info.begin_lsn, info.end_lsn)
        .map_err(|(offset, what)| damaged(&path, offset, &what))?;
    let written = private::create_new(&path).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    written.map_err(at(&path))?;
    Ok(path)
}

/// The key that the segment in `path` is sealed with, as its header says. One whose header cannot be read is
/// seen to by whoever reads it.
fn key_in(path: &Path) -> Result<Option<KeyId>, VolumeError> {
    let mut header = [0; HEADER_BYTES];
    let read = File::open(path).and_then(|file| file.read_exact_at(&mut header, 0));
    if let Err(e) = read {
        return if e.kind() == io::ErrorKind::UnexpectedEof { Ok(None) } else { Err(at(path)(e)) };
    }
    match Header::later_version(&header) {
        Some(version) => {
            Err(VolumeError::LaterVersion { path: path.display().to_string(), version: version.to_string() })
        }
        None => Ok(Header::decode(&header).and_then(|header| header.key)),
    }
}

/// The histories that a log directory holds.
pub(crate) fn read_histories(log_directory: &Path) -> Result<Vec<TimelineHistory>, VolumeError> {
    let mut histories = Vec::new();
    if !log_directory.exists() {
        return Ok(histories);
    }
    for path in list(log_directory)? {
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let timeline = name.strip_suffix(".history").and_then(|n| u32::from_str_radix(n, 16).ok());
        if let Some(timeline) = timeline.map(Timeline) {
            let content = std::fs::read(&path).map_err(at(&path))?;
            histories.push(TimelineHistory::parse(timeline, &content)?);
        }
    }
    Ok(histories)
}

pub(crate) fn lock(segments: &Segments) -> std::sync::MutexGuard<'_, Vec<SegmentInfo>> {
    // Each change under the lock is whole before anything in it can panic.
    segments.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Cuts a file at `length`, so that no later recovery finds the remains of what was behind.
fn truncate(path: &Path, length: u64) -> Result<(), VolumeError> {
    let cut = OpenOptions::new().write(true).open(path).and_then(|file| {
        file.set_len(length)?;
        file.sync_all()
    });
    cut.map_err(at(path))
}

/// Writes the first `length` bytes of a file again, the same ones, and makes them durable.
fn write_again(path: &Path, length: u64) -> Result<(), VolumeError> {
    let again = || {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let mut buffer = vec![0; usize::try_from(length.min(GROW_BYTES)).unwrap_or_default()];
        let mut offset = 0;
        while offset < length {
            let count = buffer.len().min(usize::try_from(length - offset).unwrap_or(usize::MAX));
            file.read_exact_at(&mut buffer[..count], offset)?;
            files::write_at(&file, path, &buffer[..count], offset)?;
            offset += count as u64;
        }
        files::sync_data(&file, path)
    };
    again().map_err(at(path))
}

/// Makes a directory, and those above it that are missing, so that a power loss leaves it.
fn create_directory(path: &Path) -> Result<(), VolumeError> {
    let missing: Vec<&Path> = path.ancestors().take_while(|above| !above.exists()).collect();
    for directory in missing.into_iter().rev() {
        private::make_directory(directory).map_err(at(directory))?;
        directory.parent().filter(|parent| parent.exists()).map_or(Ok(()), sync_directory)?;
    }
    Ok(())
}

fn list(directory: &Path) -> Result<Vec<PathBuf>, VolumeError> {
    let entries = std::fs::read_dir(directory).and_then(|entries| entries.map(|e| Ok(e?.path())).collect());
    entries.map_err(at(directory))
}

fn write_durably(path: &Path, content: &[u8]) -> Result<(), VolumeError> {
    private::replace(path, content).map_err(at(path))
}

fn sync_directory(directory: &Path) -> Result<(), VolumeError> {
    File::open(directory).and_then(|d| d.sync_all()).map_err(at(directory))
}
