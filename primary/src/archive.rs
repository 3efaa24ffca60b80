//! A base backup as it crosses a network: its tar archive as one zstd stream, in chunks. What the other side
//! has already is left out of it.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::time::Duration;

use bytes::Bytes;
use postgres::backup::base_backup::{BackupEvent, BaseBackup};
use postgres::backup::pieces::{Inventory, InventoryError, Leaner, Leaving};
use postgres::protocol::client::ClientError;
use proto::messages::{MAX_STREAM_MESSAGE_BYTES, SeedChunk, SeedEnd, SeedInventory, SeedSame, seed_chunk};
use transport::{Stream, TransportError};

/// zstd's level: the link, not the processor, should be what limits a backup.
pub(crate) const COMPRESSION_LEVEL: i32 = 3;

/// A chunk leaves when it holds this much compressed backup.
const CHUNK_BYTES: usize = 256 * 1024;

/// How long whoever takes a seed may say nothing while it tells what it has. It has read its disk by then.
const INVENTORY: Duration = Duration::from_secs(120);

/// Why it is not known what the other side has.
#[derive(Debug, thiserror::Error)]
pub enum UntoldError {
    /// The connection failed.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// No correct peer says such.
    #[error(transparent)]
    Inventory(#[from] InventoryError),
    /// It says nothing any more.
    #[error("it did not say within {} s what it has", INVENTORY.as_secs())]
    Silent,
}

/// Waits until the other side has told what it has already.
///
/// # Errors
/// When it does not, or the connection fails.
pub async fn receive_inventory(stream: &mut Stream) -> Result<Inventory, UntoldError> {
    let mut inventory = Inventory::default();
    loop {
        let told = stream.receive::<SeedInventory>(MAX_STREAM_MESSAGE_BYTES);
        let told = tokio::time::timeout(INVENTORY, told).await.map_err(|_| UntoldError::Silent)??;
        if inventory.take(&told.ok_or(TransportError::Finished)?)? {
            return Ok(inventory);
        }
    }
}

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
    leaving: Leaving,
    /// None once the backup has ended.
    encoder: Option<zstd::stream::write::Encoder<'static, Vec<u8>>>,
    /// The encoder has taken something since it was emptied.
    holds: bool,
    ready: VecDeque<seed_chunk::Body>,
    bytes: u64,
    kept_bytes: u64,
}

impl std::fmt::Debug for Archive {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Archive").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

impl Archive {
    /// The archive of `backup`, which has only begun, without what is in `inventory`.
    ///
    /// # Errors
    /// When zstd cannot be set up.
    pub fn of(backup: BaseBackup, inventory: Inventory) -> io::Result<Archive> {
        let encoder = zstd::stream::write::Encoder::new(Vec::new(), COMPRESSION_LEVEL)?;
        Ok(Archive {
            backup,
            leaving: Leaving::new(inventory),
            encoder: Some(encoder),
            holds: false,
            ready: VecDeque::new(),
            bytes: 0,
            kept_bytes: 0,
        })
    }

    /// How much of the backup was taken, before compression, bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How much of that the other side has already, bytes.
    #[must_use]
    pub fn kept_bytes(&self) -> u64 {
        self.kept_bytes
    }

    /// The next chunk; none after the one that says that the backup is complete.
    ///
    /// # Errors
    /// When PostgreSQL does not go on with it.
    pub async fn next(&mut self) -> Result<Option<SeedChunk>, ArchiveError> {
        loop {
            if let Some(body) = self.ready.pop_front() {
                return Ok(Some(SeedChunk { body: Some(body) }));
            }
            if self.encoder.is_none() {
                return Ok(None);
            }
            match self.backup.next().await? {
                BackupEvent::Data(bytes) => self.take(bytes)?,
                BackupEvent::End { end_lsn } => {
                    self.leaving.finish()?;
                    let encoder = self.encoder.take();
                    let rest = encoder.map_or(Ok(Vec::new()), zstd::stream::write::Encoder::finish)?;
                    self.put(rest);
                    let end = SeedEnd { end_lsn: end_lsn.0, total_bytes: self.bytes };
                    self.ready.push_back(seed_chunk::Body::End(end));
                }
            }
        }
    }

    /// Takes the backup's next bytes.
    fn take(&mut self, bytes: Bytes) -> io::Result<()> {
        self.bytes += bytes.len() as u64;
        let mut out = Vec::new();
        self.leaving.take(bytes, &mut out)?;
        for leaner in out {
            let Some(encoder) = &mut self.encoder else { return Ok(()) };
            let compressed = match &leaner {
                Leaner::Data(data) => {
                    encoder.write_all(data)?;
                    self.holds = true;
                    if encoder.get_ref().len() < CHUNK_BYTES {
                        continue;
                    }
                    std::mem::take(encoder.get_mut())
                }
                // All before it comes out of the decoder before it.
                Leaner::Same { .. } => {
                    if std::mem::take(&mut self.holds) {
                        encoder.flush()?;
                    }
                    std::mem::take(encoder.get_mut())
                }
            };
            self.put(compressed);
            if let Leaner::Same { bytes, digest } = leaner {
                self.kept_bytes += bytes;
                let digest = digest.to_vec().into();
                self.ready.push_back(seed_chunk::Body::Same(SeedSame { bytes, digest }));
            }
        }
        Ok(())
    }

    fn put(&mut self, compressed: Vec<u8>) {
        let whole = Bytes::from(compressed);
        let pieces = (0..whole.len()).step_by(CHUNK_BYTES);
        let pieces = pieces.map(|at| whole.slice(at..whole.len().min(at + CHUNK_BYTES)));
        self.ready.extend(pieces.map(seed_chunk::Body::Data));
    }
}
