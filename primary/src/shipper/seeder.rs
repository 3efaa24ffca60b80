//! Seeds a secondary: a base backup of the writer, compressed, on a QUIC connection of its own.

use postgres::backup::pieces::Inventory;
use postgres::protocol::client::ReplicationClient;
use postgres::tablespaces::Place;
use proto::Lsn;
use proto::messages::{MAX_CONTROL_MESSAGE_BYTES, SeedAnswer, SeedOpen, Tablespace, open, seed_chunk};
use transport::{Stream, TransportError};

use super::Shipping;
use super::bring::{BringError, may_be_sent};
use super::machine::Input;
use crate::archive::{Archive, receive_inventory};

impl Shipping {
    /// Sends a base backup; says what came of it.
    pub(super) async fn seed(&mut self) -> Input {
        self.keep_redo();
        let sent = self.send_backup().await;
        self.in_place(sent)
    }

    async fn send_backup(&self) -> Result<(), BringError> {
        let client = ReplicationClient::connect(&self.options.writer.local_connection()).await?;
        let label = format!("replicator seed of {}", self.target.name);
        let backup = client.base_backup(&label).await?;
        let (start_lsn, timeline, total_bytes) = (backup.start_lsn, backup.timeline, backup.total_bytes);
        let tablespaces = backup.tablespaces.iter().map(|of| Tablespace {
            oid: of.oid,
            path: self.options.writer.told(&Place { oid: of.oid, path: of.path.clone() }),
            bytes: of.bytes,
        });
        let tablespaces = may_be_sent(tablespaces.collect())?;
        let has_tablespaces = !tablespaces.is_empty();
        let (volume_begin_lsn, _) = self.volume_begin(start_lsn).await?;
        self.options.volume.set_need(self.target.name.as_str(), Some(volume_begin_lsn));
        let open = SeedOpen {
            system_id: self.options.system_id.0,
            epoch: self.options.epoch.0,
            timeline: timeline.0,
            start_lsn: start_lsn.0,
            volume_begin_lsn: volume_begin_lsn.0,
            total_bytes,
            superuser_password: self.options.superuser_password()?,
            history: self.options.volume.history(timeline).map(|h| h.content.into()).unwrap_or_default(),
            takes_inventory: true,
            tablespaces,
        };
        let connection = self.connect().await?;
        let mut stream = connection.open_stream(&self.open(open::Purpose::Seed(open))).await?;
        self.note_seeding(0, 0, total_bytes);
        let consent = expect_consent(&mut stream).await?;
        if has_tablespaces && !consent.carries_tablespaces {
            return Err(BringError::Useless(
                "the writer has tablespaces, and the region's daemon is of an earlier version, which does not carry those: update it"
                    .into(),
            ));
        }
        let inventory = match consent.tells_inventory {
            true => receive_inventory(&mut stream).await?,
            false => Inventory::default(),
        };
        let there = inventory.bytes();
        if there > 0 {
            tracing::info!(peer = %self.target.name, "of a seed of about {total_bytes} bytes it has {there} to compare with");
        }
        let mut archive = Archive::of(backup, inventory)?;
        while let Some(chunk) = archive.next().await? {
            // The rest would be brought for nothing.
            self.still_reached(volume_begin_lsn)?;
            if let Some(seed_chunk::Body::Data(data)) = &chunk.body {
                self.pace(data.len()).await;
            }
            self.note_seeding(archive.bytes(), archive.kept_bytes(), total_bytes);
            stream.send(&chunk).await?;
        }
        expect_consent(&mut stream).await?;
        if archive.kept_bytes() > 0 {
            let (bytes, kept) = (archive.bytes(), archive.kept_bytes());
            tracing::info!(peer = %self.target.name, "of the seed of {bytes} bytes, {kept} were there already");
        }
        connection.close("the seed is in place");
        Ok(())
    }

    /// The redo that the seed needs is kept still: no need of it keeps more than `max_size`.
    fn still_reached(&self, volume_begin_lsn: Lsn) -> Result<(), BringError> {
        let horizon_lsn = self.options.volume.bounds().horizon_lsn;
        if horizon_lsn <= volume_begin_lsn {
            return Ok(());
        }
        Err(BringError::Useless(format!(
            "the seed takes longer than the volume keeps redo: it needs that from {volume_begin_lsn} on, and the oldest that is \
             kept is {horizon_lsn}. Give [volume] max_size more (`replicator reload` is enough), or the region more bandwidth"
        )))
    }

    fn note_seeding(&self, bytes: u64, kept_bytes: u64, total_bytes: u64) {
        self.views.update_region(&self.target.name, |region, _| {
            (region.seed_bytes, region.seed_total_bytes) = (bytes, total_bytes.max(bytes));
            region.seed_kept_bytes = kept_bytes;
        });
    }
}

/// Waits for the region's word to go on.
async fn expect_consent(stream: &mut Stream) -> Result<SeedAnswer, BringError> {
    let answer: Option<SeedAnswer> = stream.receive(MAX_CONTROL_MESSAGE_BYTES).await?;
    let answer = answer.ok_or(TransportError::Finished)?;
    match answer.refusal {
        Some(refusal) => Err(BringError::Refused(refusal)),
        None => Ok(answer),
    }
}
