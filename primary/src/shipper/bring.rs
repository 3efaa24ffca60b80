//! What seeds and rewinds have in common: redo is kept for the region meanwhile, its volume begins where that
//! redo does, and its bytes are paced and counted.

use std::sync::atomic::Ordering;

use postgres::protocol::client::ClientError;
use proto::limits::MAX_TABLESPACES;
use proto::messages::Tablespace;
use proto::{Lsn, Timeline};
use transport::TransportError;
use volume::{Start, VolumeError};

use super::machine::Input;
use super::{Shipping, refused};
use crate::archive::{ArchiveError, UntoldError};

/// Why a region's data were not brought up.
#[derive(Debug, thiserror::Error)]
pub(super) enum BringError {
    #[error("base backup of the writer: {0}")]
    Backup(#[from] ClientError),
    #[error("of the writer, {0}")]
    Archive(#[from] ArchiveError),
    #[error("bringing its data up: {0}")]
    Untold(#[from] UntoldError),
    #[error("bringing its data up: {0}")]
    Transport(#[from] TransportError),
    #[error("reading redo for the region: {0}")]
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

/// These tablespaces, if they can be named in one message.
pub(super) fn may_be_sent(tablespaces: Vec<Tablespace>) -> Result<Vec<Tablespace>, BringError> {
    match tablespaces.len() {
        ..=MAX_TABLESPACES => Ok(tablespaces),
        many => Err(BringError::Useless(format!(
            "the writer has {many} tablespaces, and {MAX_TABLESPACES} at most are carried: drop some"
        ))),
    }
}

impl Shipping {
    /// Redo is kept from now on, until the region reports that it has it.
    pub(super) fn keep_redo(&self) {
        self.brought_bytes.store(0, Ordering::Relaxed);
        let horizon_lsn = self.options.volume.bounds().horizon_lsn;
        self.options.volume.set_need(self.target.name.as_str(), Some(horizon_lsn));
    }

    /// What came of bringing the region's data up.
    pub(super) fn in_place(&self, brought: Result<(), BringError>) -> Input {
        let Err(e) = brought else {
            let bytes = self.brought_bytes.load(Ordering::Relaxed);
            tracing::info!(peer = %self.target.name, "bytes sent to bring its data up: {bytes}");
            return Input::InPlace;
        };
        self.options.volume.set_need(self.target.name.as_str(), None);
        match e {
            BringError::Refused(refusal) => refused(&refusal),
            other => Input::Lost(other.to_string()),
        }
    }

    /// Where the region's volume shall begin: at a batch that starts a context, at or before the WAL segment
    /// in which the backup's redo begins, because that is where a walreceiver asks to start. And the batch's
    /// timeline.
    pub(super) async fn volume_begin(&self, start_lsn: Lsn) -> Result<(Lsn, Timeline), BringError> {
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

    /// Waits until the egress cap lets so much through, and counts it.
    pub(super) async fn pace(&self, bytes: usize) {
        self.egress.take(bytes).await;
        self.brought_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}
