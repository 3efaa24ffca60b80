//! Reads segments: record by record, whole, or only to see whether all is well.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use proto::Lsn;

use super::SegmentInfo;
use super::errors::{at, damaged};
use crate::key::KeyId;
use crate::segment::{self, Found, HEADER_BYTES, Header, Record};
use crate::{Durable, VolumeError};

/// How much of a segment is read at once.
const READ_BYTES: usize = 256 * 1024;

/// Reads a segment's records in order, up to where it is durable.
#[derive(Debug)]
pub(crate) struct SegmentReader {
    file: File,
    path: PathBuf,
    header: Header,
    info: SegmentInfo,
    offset: u64,
    buffer: BytesMut,
}

impl SegmentReader {
    /// Opens a segment and checks its header.
    pub(crate) fn open(path: &Path, info: SegmentInfo) -> Result<SegmentReader, VolumeError> {
        let file = File::open(path).map_err(at(path))?;
        let mut header = [0; HEADER_BYTES];
        let read = file.read_exact_at(&mut header, 0);
        let header = match Header::decode(&header) {
            Some(header) if read.is_ok() && header.begin_lsn == info.begin_lsn => header,
            _ => return Err(damaged(path, 0, "its header is not that of this segment")),
        };
        let (path, offset) = (path.to_owned(), HEADER_BYTES as u64);
        Ok(SegmentReader { file, path, header, info, offset, buffer: BytesMut::new() })
    }

    /// What its header says.
    pub(crate) fn header(&self) -> &Header {
        &self.header
    }

    /// Where in the file the next record begins.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// The segment that is read.
    pub(crate) fn info(&self) -> SegmentInfo {
        self.info
    }

    /// Reads on to what was written since.
    pub(crate) fn extend(&mut self, info: SegmentInfo) {
        // What was read beyond the end was not written yet.
        let known = self.info.stored_bytes.saturating_sub(self.offset);
        self.buffer.truncate(usize::try_from(known).unwrap_or(usize::MAX));
        self.info = info;
    }

    /// The next record; none at the durable end.
    pub(crate) fn next_record(&mut self) -> Result<Option<Record>, VolumeError> {
        if self.offset >= self.info.stored_bytes {
            return Ok(None);
        }
        match self.next_found()? {
            Found::Record(record) if self.header.fits(&record) => Ok(Some(record)),
            Found::Record(_) => Err(damaged(&self.path, self.offset, segment::NOT_OF_THIS_SEGMENT)),
            Found::Damaged(what) => Err(damaged(&self.path, self.offset, &what)),
            Found::End | Found::More(_) => {
                Err(damaged(&self.path, self.offset, "it ends before its durable redo does"))
            }
        }
    }

    pub(crate) fn next_found(&mut self) -> Result<Found, VolumeError> {
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
                    let _ = self.buffer.split_to(record.bytes.len());
                    self.offset += record.bytes.len() as u64;
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
            match self.file.read_at(&mut chunk, position).map_err(at(&self.path))? {
                0 => return Ok(false),
                read => self.buffer.extend_from_slice(&chunk[..read]),
            }
        }
        Ok(true)
    }

    /// Looks behind an unreadable place for what later records say was durable, and for where they end.
    pub(crate) fn behind(&self, offset: u64) -> Result<Behind, VolumeError> {
        let io = at(&self.path);
        let length = self.file.metadata().map_err(&io)?.len();
        let rest = usize::try_from(length.saturating_sub(offset)).unwrap_or(0);
        let mut bytes = vec![0; rest];
        self.file.read_exact_at(&mut bytes, offset).map_err(&io)?;
        let bytes = Bytes::from(bytes);
        let mut found = Behind::default();
        for start in 0..bytes.len().saturating_sub(segment::RECORD_HEADER_BYTES) {
            if bytes[start..start + 4] == [0; 4] {
                continue;
            }
            if let Found::Record(record) = segment::read_record(&bytes.slice(start..)) {
                found.proven_lsn = found.proven_lsn.max(record.durable_lsn);
                found.end_lsn = found.end_lsn.max(record.batch.end_lsn);
            }
        }
        Ok(found)
    }
}

/// What lies behind a place that cannot be read.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Behind {
    /// How far the volume was durable, as the records there say.
    pub(crate) proven_lsn: Lsn,
    /// Where the last of them ends.
    pub(crate) end_lsn: Lsn,
}

/// Where a segment's redo ends.
pub(crate) fn end_of(path: &Path, info: SegmentInfo) -> Result<Durable, VolumeError> {
    let mut reader = SegmentReader::open(path, info)?;
    let mut end = Durable::default();
    while let Some(record) = reader.next_record()? {
        let batch = &record.batch;
        end = Durable { lsn: batch.end_lsn, timeline: batch.timeline, epoch: batch.epoch };
    }
    Ok(end)
}

/// Reads a segment's durable bytes, and checks all of them.
pub(crate) fn read_whole(
    path: &Path,
    cluster_id: proto::ClusterId,
    info: SegmentInfo,
) -> Result<Bytes, VolumeError> {
    let io = at(path);
    let file = File::open(path).map_err(&io)?;
    let length = usize::try_from(info.stored_bytes).unwrap_or(usize::MAX).min(segment::SEGMENT_BYTES_MAX);
    let mut bytes = vec![0; length];
    let mut filled = 0;
    while filled < length {
        match file.read_at(&mut bytes[filled..], filled as u64).map_err(&io)? {
            0 => return Err(damaged(path, filled as u64, "it ends before its durable redo does")),
            read => filled += read,
        }
    }
    let bytes = Bytes::from(bytes);
    match segment::verify(&bytes, cluster_id, info.begin_lsn, info.end_lsn) {
        Ok(()) => Ok(bytes),
        Err((offset, what)) => Err(damaged(path, offset, &what)),
    }
}

/// The key that a segment is sealed with, and as it is wrapped in its first record, if it is there.
pub(crate) fn first_key(path: &Path) -> Option<(KeyId, Bytes)> {
    let file = File::open(path).ok()?;
    let mut header = [0; HEADER_BYTES];
    file.read_exact_at(&mut header, 0).ok()?;
    let header = Header::decode(&header)?;
    let key = header.key?;
    let info = SegmentInfo { begin_lsn: header.begin_lsn, ..SegmentInfo::default() };
    let first = SegmentReader::open(path, info).and_then(|mut reader| reader.next_found());
    let wrapped = match first {
        Ok(Found::Record(record)) => record.sealed.map(|sealed| sealed.wrapped_key),
        _ => None,
    };
    Some((key, wrapped.unwrap_or_default()))
}
