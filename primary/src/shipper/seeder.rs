//! Seeds a secondary: a base backup of the writer, compressed, on a QUIC connection of its own.

use std::io::Write;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use postgres::base_backup::{BackupEvent, BaseBackup};
use postgres::client::{ClientError, ReplicationClient};
use proto::messages::{
    MAX_CONTROL_MESSAGE_BYTES, SeedAnswer, SeedChunk, SeedEnd, SeedOpen, open, seed_chunk,
};
use proto::{Lsn, Timeline};
use transport::{Stream, TransportError};
use volume::{Start, VolumeError};

use super::machine::Input;
use super::{Shipping, refused};

/// zstd's level for base backups: the link, not the processor, should be what limits a seed.
pub(super) const COMPRESSION_LEVEL: i32 = 3;

/// A chunk leaves when it holds this much compressed backup.
const CHUNK_BYTES: usize = 256 * 1024;

/// Why a seed failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum SeedError {
    #[error("base backup of the writer: {0}")]
    Backup(#[from] ClientError),
    #[error("sending the base backup: {0}")]
    Transport(#[from] TransportError),
    #[error("reading redo for the seed: {0}")]
    Volume(#[from] VolumeError),
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("{}", .0.reason)]
    Refused(proto::messages::Refusal),
    #[error("the writer, for a region to rewind: {0}")]
    Writer(#[from] postgres::instance::InstanceError),
    #[error("{0}")]
    Useless(String),
}

impl Shipping {
    /// Sends a base backup; says what came of it.
    pub(super) async fn seed(&mut self) -> Input {
        self.keep_redo();
        let sent = self.send_backup().await;
        self.in_place(sent)
    }

    /// Redo is kept from now on, until the region reports that it has it.
    pub(super) fn keep_redo(&self) {
        self.brought_bytes.store(0, Ordering::Relaxed);
        let horizon_lsn = self.options.volume.bounds().horizon_lsn;
        self.options.volume.set_need(self.target.name.as_str(), Some(horizon_lsn));
    }

    /// What came of bringing the region's data up.
    pub(super) fn in_place(&self, brought: Result<(), SeedError>) -> Input {
        let Err(e) = brought else {
            let bytes = self.brought_bytes.load(Ordering::Relaxed);
            tracing::info!(region = %self.target.name, "bytes sent to bring its data up: {bytes}");
            return Input::Seeded;
        };
        self.options.volume.set_need(self.target.name.as_str(), None);
        match e {
            SeedError::Refused(refusal) => refused(&refusal),
            other => Input::Lost(other.to_string()),
        }
    }

    async fn send_backup(&self) -> Result<(), SeedError> {
        let client = ReplicationClient::connect(&self.options.writer.local_connection()).await?;
        let label = format!("replicator seed of {}", self.target.name);
        let mut backup = client.base_backup(&label).await?;
        let (start_lsn, timeline, total_bytes) = (backup.start_lsn, backup.timeline, backup.total_bytes);
        let (volume_begin_lsn, _) = self.volume_begin(start_lsn).await?;
        self.options.volume.set_need(self.target.name.as_str(), Some(volume_begin_lsn));
        let open = SeedOpen {
            system_id: self.options.system_id.0,
            epoch: self.options.epoch.0,
            timeline: timeline.0,
            start_lsn: start_lsn.0,
            volume_begin_lsn: volume_begin_lsn.0,
            total_bytes,
            superuser_password: self.options.superuser_password.clone(),
            history: self.options.volume.history(timeline).map(|h| h.content.into()).unwrap_or_default(),
        };
        let connection = self.connect().await?;
        let mut stream = connection.open_stream(&self.open(open::Purpose::Seed(open))).await?;
        expect_consent(&mut stream).await?;
        self.note_seeding(0, total_bytes);
        let end = self.send_archive(&mut backup, &mut stream, total_bytes).await?;
        stream.send(&SeedChunk { body: Some(seed_chunk::Body::End(end)) }).await?;
        expect_consent(&mut stream).await?;
        connection.close("the seed is in place");
        Ok(())
    }

    async fn send_archive(
        &self,
        backup: &mut BaseBackup,
        stream: &mut Stream,
        total_bytes: u64,
    ) -> Result<SeedEnd, SeedError> {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), COMPRESSION_LEVEL)?;
        let mut sent_bytes = 0;
        loop {
            match backup.next().await? {
                BackupEvent::Data(bytes) => {
                    sent_bytes += bytes.len() as u64;
                    encoder.write_all(&bytes)?;
                    if encoder.get_ref().len() >= CHUNK_BYTES {
                        self.send_chunk(stream, std::mem::take(encoder.get_mut())).await?;
                        self.note_seeding(sent_bytes, total_bytes);
                    }
                }
                BackupEvent::End { end_lsn } => {
                    self.send_chunk(stream, encoder.finish()?).await?;
                    self.note_seeding(sent_bytes, total_bytes);
                    return Ok(SeedEnd { end_lsn: end_lsn.0, total_bytes: sent_bytes });
                }
            }
        }
    }

    async fn send_chunk(&self, stream: &mut Stream, compressed: Vec<u8>) -> Result<(), SeedError> {
        for piece in Bytes::from(compressed).chunks(CHUNK_BYTES) {
            self.take_way(piece.len()).await;
            let data = Bytes::copy_from_slice(piece);
            stream.send(&SeedChunk { body: Some(seed_chunk::Body::Data(data)) }).await?;
        }
        Ok(())
    }

    /// Where the region's volume shall begin: at a batch that starts a context, at or before the WAL segment in which
    /// the backup's redo begins, because that is where a walreceiver asks to start. And the batch's timeline.
    pub(super) async fn volume_begin(&self, start_lsn: Lsn) -> Result<(Lsn, Timeline), SeedError> {
        let volume = &self.options.volume;
        let segment_lsn = start_lsn.segment_begin(self.views.reader().wal_segment_bytes.max(1));
        // The writer's redo may still be on its way here.
        let mut durable = volume.watch_durable();
        durable.wait_for(|durable| durable.lsn > segment_lsn).await.map_err(|_| VolumeError::Closed)?;
        let from_lsn = segment_lsn.max(volume.bounds().horizon_lsn);
        let mut cursor = volume.cursor(from_lsn, Start::Context)?;
        let batch = cursor.next_batch().await?;
        Ok((batch.begin_lsn, batch.timeline))
    }

    /// Waits until so much may be sent, and counts it.
    pub(super) async fn take_way(&self, bytes: usize) {
        self.egress.take(bytes).await;
        self.brought_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn note_seeding(&self, bytes: u64, total_bytes: u64) {
        self.views.update_region(&self.target.name, |region, _| {
            (region.seed_bytes, region.seed_total_bytes) = (bytes, total_bytes.max(bytes));
        });
    }
}

/// Waits for the region's word to go on.
async fn expect_consent(stream: &mut Stream) -> Result<(), SeedError> {
    let answer: Option<SeedAnswer> = stream.receive(MAX_CONTROL_MESSAGE_BYTES).await?;
    match answer.ok_or(TransportError::Finished)?.refusal {
        Some(refusal) => Err(SeedError::Refused(refusal)),
        None => Ok(()),
    }
}
