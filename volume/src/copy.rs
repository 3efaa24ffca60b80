//! One copy of the redo log on one disk: its directory, its recovery, its appends. Used by one thread, the writer.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use bytes::{Bytes, BytesMut};
use proto::{Epoch, Lsn, Redo, Timeline, TimelineHistory};

use crate::segment::{self, Found, HEADER_BYTES, Header, Record};
use crate::{Durable, VolumeError, VolumeOptions};

/// How much of a segment is read at once.
const READ_BYTES: usize = 256 * 1024;

/// The version of `volume.meta`.
const META_FORMAT: &str = "replicator volume 1";

/// A segment as the volume knows it.
#[derive(Debug, Clone)]
pub(crate) struct SegmentEntry {
    pub(crate) begin_lsn: Lsn,
    pub(crate) end_lsn: Lsn,
    pub(crate) file: Arc<File>,
    pub(crate) path: PathBuf,
    /// How far the file holds durable records.
    pub(crate) stored_bytes: u64,
    pub(crate) newest_commit_us: i64,
}

/// A copy as it was found on disk.
pub(crate) struct Recovered {
    pub(crate) copy: Copy,
    pub(crate) segments: Vec<SegmentEntry>,
    pub(crate) histories: BTreeMap<Timeline, TimelineHistory>,
    pub(crate) durable: Durable,
}

/// The copy's directory and what is being written.
#[derive(Debug)]
pub(crate) struct Copy {
    options: VolumeOptions,
    meta: Meta,
    durable: Durable,
    /// A zero-filled file that becomes the next segment, once it is ready.
    spare: Option<std::thread::JoinHandle<io::Result<PathBuf>>>,
    buffer: Vec<u8>,
}

/// `volume.meta`: which generation of the log is valid, and where it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Meta {
    /// Each reset starts a new directory, so that a crash in the middle of one leaves either the old log or the new.
    generation: u64,
    begin: Durable,
}

impl Copy {
    pub(crate) fn open(options: &VolumeOptions) -> Result<Recovered, VolumeError> {
        let directory = &options.directory;
        std::fs::create_dir_all(directory).map_err(at(directory))?;
        let meta = match std::fs::read_to_string(directory.join("volume.meta")) {
            Ok(text) => Meta::parse(&text, options)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Meta::default(),
            Err(e) => return Err(at(directory)(e)),
        };
        let options = options.clone();
        let mut copy = Copy { options, meta, durable: meta.begin, spare: None, buffer: Vec::new() };
        copy.write_meta()?;
        copy.remove_leftovers()?;
        let (segments, durable) = copy.recover()?;
        copy.durable = durable;
        let histories = copy.read_histories()?;
        copy.prepare_spare();
        Ok(Recovered { copy, segments, histories, durable })
    }

    /// Appends `group` durably. On an error nothing of it counts as durable.
    pub(crate) fn append(
        &mut self,
        group: &[Redo],
        segments: &mut Vec<SegmentEntry>,
    ) -> Result<Durable, VolumeError> {
        let mut rest = group;
        while let Some(first) = rest.first() {
            if needs_new_segment(segments.last(), first, self.options.segment_bytes) {
                self.roll(first, segments)?;
            }
            let Some(segment) = segments.last_mut() else { return Err(VolumeError::Closed) };
            self.buffer.clear();
            let mut taken = 0;
            for redo in rest {
                let full = segment.stored_bytes + self.buffer.len() as u64 >= self.options.segment_bytes;
                if taken > 0 && full && redo.batch.begins_context() {
                    break;
                }
                segment::put_record(&mut self.buffer, &redo.batch, self.durable.lsn);
                taken += 1;
            }
            let io = at(&segment.path);
            segment.file.write_all_at(&self.buffer, segment.stored_bytes).map_err(&io)?;
            segment.file.sync_data().map_err(&io)?;
            segment.stored_bytes += self.buffer.len() as u64;
            let (written, more) = rest.split_at(taken);
            rest = more;
            if let Some(Redo { batch, .. }) = written.last() {
                segment.end_lsn = batch.end_lsn;
                segment.newest_commit_us = segment.newest_commit_us.max(batch.newest_commit_us);
                self.durable = Durable { lsn: batch.end_lsn, timeline: batch.timeline, epoch: batch.epoch };
            }
        }
        Ok(self.durable)
    }

    /// Empties the log. The old one is valid until the new one is on disk.
    pub(crate) fn reset(&mut self, begin_lsn: Lsn, timeline: Timeline) -> Result<Durable, VolumeError> {
        let epoch = Epoch(0);
        let begin = Durable { lsn: begin_lsn, timeline, epoch };
        let spare = self.take_spare();
        self.meta = Meta { generation: self.meta.generation + 1, begin };
        std::fs::create_dir_all(self.log_directory()).map_err(at(&self.options.directory))?;
        self.write_meta()?;
        drop(spare);
        self.remove_leftovers()?;
        self.prepare_spare();
        self.durable = begin;
        Ok(begin)
    }

    pub(crate) fn put_history(&self, history: &TimelineHistory) -> Result<(), VolumeError> {
        let path = self.log_directory().join(TimelineHistory::file_name(history.timeline));
        write_durably(&path, &history.content)
    }

    /// Seals the last segment and begins the one whose first batch is `first`.
    fn roll(&mut self, first: &Redo, segments: &mut Vec<SegmentEntry>) -> Result<(), VolumeError> {
        if let Some(last) = segments.last() {
            // What was filled with zeroes and not used.
            last.file
                .set_len(last.stored_bytes)
                .and_then(|()| last.file.sync_all())
                .map_err(at(&last.path))?;
        }
        let begin_lsn = first.batch.begin_lsn;
        let path = self.log_directory().join(segment::file_name(begin_lsn));
        let io = at(&path);
        match self.take_spare() {
            Some(spare) => std::fs::rename(spare, &path).map_err(&io)?,
            None => drop(File::create(&path).map_err(&io)?),
        }
        let file = OpenOptions::new().read(true).write(true).open(&path).map_err(&io)?;
        let header =
            Header { cluster_id: self.options.cluster_id, begin_lsn, timeline: first.batch.timeline };
        file.write_all_at(&header.encode(), 0).and_then(|()| file.sync_all()).map_err(&io)?;
        sync_directory(&self.log_directory())?;
        segments.push(SegmentEntry {
            begin_lsn,
            end_lsn: begin_lsn,
            file: Arc::new(file),
            path,
            stored_bytes: HEADER_BYTES as u64,
            newest_commit_us: 0,
        });
        self.prepare_spare();
        Ok(())
    }

    /// Fills the next segment's file with zeroes while this one is written, so that a commit's `fdatasync` has no file
    /// to grow.
    fn prepare_spare(&mut self) {
        let (path, bytes) = (self.log_directory().join("spare"), self.options.segment_bytes);
        self.spare = Some(std::thread::spawn(move || {
            let mut file = File::create(&path)?;
            let zeroes = vec![0; 1 << 20];
            let mut left = bytes;
            while left > 0 {
                let now = left.min(1 << 20);
                file.write_all(&zeroes[..usize::try_from(now).unwrap_or(1 << 20)])?;
                left -= now;
            }
            file.sync_all()?;
            Ok(path)
        }));
    }

    /// The spare file, if it could be made. Without one a segment begins empty and grows: slower, and as safe.
    fn take_spare(&mut self) -> Option<PathBuf> {
        match self.spare.take()?.join() {
            Ok(Ok(path)) => Some(path),
            Ok(Err(e)) => {
                tracing::warn!("preparing the next segment: {e}");
                None
            }
            Err(_) => None,
        }
    }

    fn log_directory(&self) -> PathBuf {
        self.options.directory.join(format!("log.{}", self.meta.generation))
    }

    fn write_meta(&self) -> Result<(), VolumeError> {
        std::fs::create_dir_all(self.log_directory()).map_err(at(&self.options.directory))?;
        write_durably(&self.options.directory.join("volume.meta"), self.meta.text(&self.options).as_bytes())
    }

    /// Removes the logs of other generations, and what a crash left half-made.
    fn remove_leftovers(&self) -> Result<(), VolumeError> {
        let keep = self.log_directory();
        for path in list(&self.options.directory)? {
            let is_log = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("log."));
            if is_log && path != keep {
                std::fs::remove_dir_all(&path).map_err(at(&path))?;
            }
        }
        Ok(())
    }

    fn read_histories(&self) -> Result<BTreeMap<Timeline, TimelineHistory>, VolumeError> {
        let mut histories = BTreeMap::new();
        for path in list(&self.log_directory())? {
            let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            let timeline = name.strip_suffix(".history").and_then(|n| u32::from_str_radix(n, 16).ok());
            if let Some(timeline) = timeline.map(Timeline) {
                let content = std::fs::read(&path).map_err(at(&path))?;
                histories.insert(timeline, TimelineHistory::parse(timeline, &content)?);
            }
        }
        Ok(histories)
    }

    /// Finds the segments, and the end of the newest. The sealed ones are not read.
    fn recover(&self) -> Result<(Vec<SegmentEntry>, Durable), VolumeError> {
        let mut found: Vec<(Lsn, PathBuf)> = list(&self.log_directory())?
            .into_iter()
            .filter_map(|path| Some((segment::parse_file_name(path.file_name()?.to_str()?)?, path)))
            .collect();
        found.sort();
        let mut segments: Vec<SegmentEntry> = Vec::new();
        let mut durable = self.meta.begin;
        let count = found.len();
        for (index, (begin_lsn, path)) in found.into_iter().enumerate() {
            let io = at(&path);
            let file = OpenOptions::new().read(true).write(true).open(&path).map_err(&io)?;
            let metadata = file.metadata().map_err(&io)?;
            let newest = index + 1 == count;
            match read_header(&file).map_err(&io)? {
                Some(header) if header.cluster_id != self.options.cluster_id => {
                    return Err(VolumeError::OtherCluster {
                        path: path.display().to_string(),
                        found: header.cluster_id,
                        expected: self.options.cluster_id,
                    });
                }
                Some(header) if header.begin_lsn == begin_lsn => {}
                // The newest segment's header is the last thing written to it before its first record.
                _ if newest && !holds_records(&file).map_err(&io)? => {
                    std::fs::remove_file(&path).map_err(&io)?;
                    break;
                }
                _ => return Err(damaged(&path, 0, "its header is not that of this segment")),
            }
            let mtime = metadata.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok());
            let newest_commit_us = mtime.map_or(0, |t| i64::try_from(t.as_micros()).unwrap_or(i64::MAX));
            if let Some(last) = segments.last_mut() {
                last.end_lsn = begin_lsn;
            }
            segments.push(SegmentEntry {
                begin_lsn,
                end_lsn: begin_lsn,
                file: Arc::new(file),
                path,
                stored_bytes: metadata.len(),
                newest_commit_us,
            });
        }
        if let Some(newest) = segments.last_mut() {
            durable = recover_newest(newest)?;
            if durable == Durable::default() {
                // Nothing was written to it: the one before it, if any, ends where it begins.
                durable = match segments.len() {
                    1 => self.meta.begin,
                    count => end_of(&segments[count - 2])?,
                };
                if let Some(empty) = segments.pop() {
                    std::fs::remove_file(&empty.path).map_err(at(&empty.path))?;
                }
            }
        }
        Ok((segments, durable))
    }
}

/// Whether `first` must begin a segment of its own.
fn needs_new_segment(last: Option<&SegmentEntry>, first: &Redo, segment_bytes: u64) -> bool {
    last.is_none_or(|last| last.stored_bytes >= segment_bytes && first.batch.begins_context())
}

/// Finds where the records of the newest segment end, and cuts off a torn write behind them.
fn recover_newest(segment: &mut SegmentEntry) -> Result<Durable, VolumeError> {
    let mut reader = SegmentReader::new(segment.clone());
    let mut durable = Durable::default();
    loop {
        let offset = reader.offset;
        match reader.next_found()? {
            Found::Record(record) => {
                let batch = &record.batch;
                let expected_lsn =
                    if durable == Durable::default() { segment.begin_lsn } else { durable.lsn };
                if batch.begin_lsn != expected_lsn {
                    return Err(damaged(
                        &segment.path,
                        offset,
                        "a record that does not continue the one before it",
                    ));
                }
                durable = Durable { lsn: batch.end_lsn, timeline: batch.timeline, epoch: batch.epoch };
                segment.newest_commit_us = batch.newest_commit_us;
            }
            Found::End | Found::More(_) | Found::Damaged(_) => {
                let end_lsn = durable.lsn.max(segment.begin_lsn);
                if let Some(proof_lsn) = reader.later_proof(offset, end_lsn)? {
                    let what =
                        format!("redo from {end_lsn} is unreadable, and was durable up to {proof_lsn}");
                    return Err(damaged(&segment.path, offset, &what));
                }
                cut(segment, offset)?;
                segment.stored_bytes = offset;
                segment.end_lsn = end_lsn;
                return Ok(durable);
            }
        }
    }
}

/// Overwrites what stands behind `offset` with zeroes, so that no later recovery finds the remains of a torn write.
fn cut(segment: &SegmentEntry, offset: u64) -> Result<(), VolumeError> {
    let io = at(&segment.path);
    let length = segment.file.metadata().map_err(&io)?.len();
    segment.file.set_len(offset).and_then(|()| segment.file.set_len(length.max(offset))).map_err(&io)?;
    segment.file.sync_all().map_err(&io)
}

fn end_of(segment: &SegmentEntry) -> Result<Durable, VolumeError> {
    let mut reader = SegmentReader::new(segment.clone());
    let mut durable = Durable::default();
    while let Some(record) = reader.next_record()? {
        durable =
            Durable { lsn: record.batch.end_lsn, timeline: record.batch.timeline, epoch: record.batch.epoch };
    }
    Ok(durable)
}

/// Reads a segment's records in order, up to where it is durable.
#[derive(Debug)]
pub(crate) struct SegmentReader {
    pub(crate) segment: SegmentEntry,
    pub(crate) offset: u64,
    buffer: BytesMut,
}

impl SegmentReader {
    pub(crate) fn new(segment: SegmentEntry) -> SegmentReader {
        SegmentReader { segment, offset: HEADER_BYTES as u64, buffer: BytesMut::new() }
    }

    /// The next record; none at the durable end.
    pub(crate) fn next_record(&mut self) -> Result<Option<Record>, VolumeError> {
        if self.offset >= self.segment.stored_bytes {
            return Ok(None);
        }
        match self.next_found()? {
            Found::Record(record) => Ok(Some(record)),
            Found::Damaged(what) => Err(damaged(&self.segment.path, self.offset, &what)),
            Found::End | Found::More(_) => {
                Err(damaged(&self.segment.path, self.offset, "it ends before its durable redo does"))
            }
        }
    }

    fn next_found(&mut self) -> Result<Found, VolumeError> {
        let mut wanted = segment::RECORD_HEADER_BYTES;
        loop {
            if self.buffer.len() < wanted && !self.fill(wanted)? {
                return Ok(Found::More(wanted));
            }
            // The length alone tells how much to read; the record is then looked at whole.
            let header = Bytes::copy_from_slice(&self.buffer[..wanted.min(self.buffer.len())]);
            match segment::read_record(&header) {
                Found::More(more) => wanted = more,
                Found::Record(record) => {
                    let _ = self.buffer.split_to(record.stored_bytes);
                    self.offset += record.stored_bytes as u64;
                    return Ok(Found::Record(record));
                }
                other => return Ok(other),
            }
        }
    }

    /// Reads until the buffer holds `wanted` bytes; false when the file has no more.
    fn fill(&mut self, wanted: usize) -> Result<bool, VolumeError> {
        let mut chunk = vec![0; READ_BYTES.max(wanted)];
        while self.buffer.len() < wanted {
            let position = self.offset + self.buffer.len() as u64;
            match self.segment.file.read_at(&mut chunk, position).map_err(at(&self.segment.path))? {
                0 => return Ok(false),
                read => self.buffer.extend_from_slice(&chunk[..read]),
            }
        }
        Ok(true)
    }

    /// Looks behind an unreadable place for a record that was written after redo beyond `end_lsn` was durable.
    fn later_proof(&self, offset: u64, end_lsn: Lsn) -> Result<Option<Lsn>, VolumeError> {
        let io = at(&self.segment.path);
        let length = self.segment.file.metadata().map_err(&io)?.len();
        let rest = usize::try_from(length.saturating_sub(offset)).unwrap_or(0);
        let mut bytes = vec![0; rest];
        self.segment.file.read_exact_at(&mut bytes, offset).map_err(&io)?;
        let bytes = Bytes::from(bytes);
        for start in 0..bytes.len().saturating_sub(segment::RECORD_HEADER_BYTES) {
            if bytes[start..start + 4] == [0; 4] {
                continue;
            }
            if let Found::Record(record) = segment::read_record(&bytes.slice(start..))
                && record.durable_lsn > end_lsn
            {
                return Ok(Some(record.durable_lsn));
            }
        }
        Ok(None)
    }
}

impl Meta {
    fn text(&self, options: &VolumeOptions) -> String {
        let Meta { generation, begin } = self;
        let line = format!(
            "{META_FORMAT}\ncluster {}\ngeneration {generation}\nbegin {} {} {}\n",
            options.cluster_id, begin.lsn, begin.timeline, begin.epoch
        );
        let crc = crc32c::crc32c(line.as_bytes());
        format!("{line}crc {crc:08x}\n")
    }

    fn parse(text: &str, options: &VolumeOptions) -> Result<Meta, VolumeError> {
        let path = options.directory.join("volume.meta");
        let bad = |what: &str| damaged(&path, 0, what);
        let (lines, crc) = text.rsplit_once("crc ").ok_or_else(|| bad("it has no checksum"))?;
        if format!("{:08x}", crc32c::crc32c(lines.as_bytes())) != crc.trim() {
            return Err(bad("it does not match its checksum"));
        }
        let mut lines = lines.lines();
        if lines.next() != Some(META_FORMAT) {
            return Err(bad(&format!("it is not of the format '{META_FORMAT}'")));
        }
        let mut field = |name: &str| {
            let value = lines.next().and_then(|line| line.strip_prefix(name)).map(str::trim);
            value.ok_or_else(|| bad(&format!("it lacks '{name}'")))
        };
        let found = field("cluster")?.parse().map_err(|_| bad("its cluster is no cluster id"))?;
        if found != options.cluster_id {
            let path = path.display().to_string();
            return Err(VolumeError::OtherCluster { path, found, expected: options.cluster_id });
        }
        let generation = field("generation")?.parse().map_err(|_| bad("its generation is no number"))?;
        let begin: Vec<&str> = field("begin")?.split(' ').collect();
        let [lsn, timeline, epoch] = begin[..] else { return Err(bad("its beginning is not three fields")) };
        let begin = lsn.parse().ok().zip(timeline.parse().ok()).zip(epoch.parse().ok());
        let ((lsn, timeline), epoch) = begin.ok_or_else(|| bad("its beginning is no position"))?;
        let begin = Durable { lsn, timeline: Timeline(timeline), epoch: Epoch(epoch) };
        Ok(Meta { generation, begin })
    }
}

fn read_header(file: &File) -> io::Result<Option<Header>> {
    let mut bytes = [0; HEADER_BYTES];
    match file.read_exact_at(&mut bytes, 0) {
        Ok(()) => Ok(Header::decode(&bytes)),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(e) => Err(e),
    }
}

/// Whether anything was ever written behind the header.
fn holds_records(file: &File) -> io::Result<bool> {
    let mut bytes = [0; segment::RECORD_HEADER_BYTES];
    let read = file.read_at(&mut bytes, HEADER_BYTES as u64)?;
    Ok(bytes[..read].iter().any(|b| *b != 0))
}

fn list(directory: &Path) -> Result<Vec<PathBuf>, VolumeError> {
    let entries = std::fs::read_dir(directory).and_then(|entries| entries.map(|e| Ok(e?.path())).collect());
    entries.map_err(at(directory))
}

fn write_durably(path: &Path, content: &[u8]) -> Result<(), VolumeError> {
    let temporary = path.with_extension("new");
    let written = File::create(&temporary).and_then(|mut file| {
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    });
    written.map_err(at(path))?;
    path.parent().map_or(Ok(()), sync_directory)
}

fn sync_directory(directory: &Path) -> Result<(), VolumeError> {
    File::open(directory).and_then(|d| d.sync_all()).map_err(at(directory))
}

pub(crate) fn at(path: &Path) -> impl Fn(io::Error) -> VolumeError + use<> {
    let path = path.display().to_string();
    move |e| VolumeError::Io { path: path.clone(), what: e.to_string() }
}

fn damaged(path: &Path, offset: u64, what: &str) -> VolumeError {
    VolumeError::Damaged { path: path.display().to_string(), offset, what: what.into() }
}
