//! A base backup as it crosses a network: its tar archive as one zstd stream, in chunks.

use std::collections::VecDeque;
use std::io::{self, Write};

use bytes::Bytes;
use postgres::backup::base_backup::{BackupEvent, BaseBackup};
use postgres::protocol::client::ClientError;
use proto::messages::{SeedChunk, SeedEnd, seed_chunk};

/// zstd's level: the link, not the processor, should be what limits a backup.
pub(crate) const COMPRESSION_LEVEL: i32 = 3;

/// A chunk leaves when it holds this much compressed backup.
const CHUNK_BYTES: usize = 256 * 1024;

/// Why there is no next chunk.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// PostgreSQL does not go on with the backup.
    #[error("base backup: {0}")]
    Backup(#[from] ClientError),
    /// It cannot be compressed.
    #[error("compressing a base backup: {0}")]
    Io(#[from] io::Error),
}

/// A base backup on its way.
pub struct Archive {
    backup: BaseBackup,
    /// None once the backup has ended.
    encoder: Option<zstd::stream::write::Encoder<'static, Vec<u8>>>,
    ready: VecDeque<Bytes>,
    end: Option<SeedEnd>,
    bytes: u64,
}

impl std::fmt::Debug for Archive {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Archive").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

impl Archive {
    /// The archive of `backup`, which has only begun.
    ///
    /// # Errors
    /// When zstd cannot be set up.
    pub fn of(backup: BaseBackup) -> io::Result<Archive> {
        let encoder = zstd::stream::write::Encoder::new(Vec::new(), COMPRESSION_LEVEL)?;
        Ok(Archive { backup, encoder: Some(encoder), ready: VecDeque::new(), end: None, bytes: 0 })
    }

    /// How much of the backup was taken, before compression, bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The next chunk; none after the one that says that the backup is complete.
    ///
    /// # Errors
    /// When PostgreSQL does not go on with it.
    pub async fn next(&mut self) -> Result<Option<SeedChunk>, ArchiveError> {
        loop {
            if let Some(piece) = self.ready.pop_front() {
                return Ok(Some(SeedChunk { body: Some(seed_chunk::Body::Data(piece)) }));
            }
            let Some(encoder) = &mut self.encoder else {
                return Ok(self.end.take().map(|end| SeedChunk { body: Some(seed_chunk::Body::End(end)) }));
            };
            let compressed = match self.backup.next().await? {
                BackupEvent::Data(bytes) => {
                    self.bytes += bytes.len() as u64;
                    encoder.write_all(&bytes)?;
                    match encoder.get_ref().len() >= CHUNK_BYTES {
                        true => std::mem::take(encoder.get_mut()),
                        false => continue,
                    }
                }
                BackupEvent::End { end_lsn } => {
                    self.end = Some(SeedEnd { end_lsn: end_lsn.0, total_bytes: self.bytes });
                    self.encoder.take().map_or(Ok(Vec::new()), zstd::stream::write::Encoder::finish)?
                }
            };
            let whole = Bytes::from(compressed);
            let pieces = (0..whole.len()).step_by(CHUNK_BYTES);
            self.ready.extend(pieces.map(|at| whole.slice(at..whole.len().min(at + CHUNK_BYTES))));
        }
    }
}
