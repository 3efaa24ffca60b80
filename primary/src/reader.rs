//! Reads the writer's redo once, as its only synchronous standby, and makes it durable in the region's volume.
//!
//! PostgreSQL holds each commit until its redo is reported as flushed. The only thing ever reported as flushed is what
//! the volume says is durable, and no more than [`gate`](crate::gate) lets through. A physical slot keeps redo on the writer until then.

use std::sync::Arc;
use std::time::Duration;

use postgres::client::{
    ClientError, ReplicationClient, ReplicationStream, StandbyStatus, Started, StreamEvent,
};
use proto::compression::Compressor;
use proto::{Batch, Lsn, Redo, SystemId, Timeline};
use tokio_util::sync::CancellationToken;
use volume::VolumeError;

use crate::batcher::{Batcher, Cut, Gap};
use crate::gate::{CommitPolicy, Held, Lease, releasable};
use crate::view::Views;
use crate::{PrimaryOptions, clock};

/// zstd's level for redo: measured on pgbench, higher levels cost the writer more than they save the WAN.
const COMPRESSION_LEVEL: i32 = 1;

/// The wait before connecting to the writer again. Short: no commit returns meanwhile.
const RECONNECT: Duration = Duration::from_millis(100);

/// How long redo gathers when no commit waits for it: each batch costs, and the writer needs the processor.
const GATHER: Duration = Duration::from_millis(20);

/// How often commits that are held are looked at again.
const HELD_CHECK: Duration = Duration::from_millis(50);

/// Why reading stopped.
#[derive(Debug, thiserror::Error)]
pub enum ReaderError {
    /// The replication connection failed.
    #[error("reading the writer's redo: {0}")]
    Client(#[from] ClientError),
    /// The volume would not take it.
    #[error("storing the writer's redo: {0}")]
    Volume(#[from] VolumeError),
    /// The writer skipped redo.
    #[error(transparent)]
    Gap(#[from] Gap),
    /// Compression failed.
    #[error("compressing redo: {0}")]
    Compression(#[from] proto::compression::CompressionError),
    /// The writer is another PostgreSQL than this region's.
    #[error(
        "the writer's system identifier is {found}, and this region's is {expected}: another cluster's data directory"
    )]
    OtherSystem {
        /// What the writer says.
        found: SystemId,
        /// What the region's record says.
        expected: SystemId,
    },
    /// The writer lost redo that the volume has.
    #[error(
        "the writer's redo ends at {writer_lsn}, and this region's volume has it up to {volume_lsn}: the writer lost \
         durable redo, as after a restored or damaged disk. Fail over to a secondary, or restore the writer"
    )]
    WriterBehind {
        /// The writer's end.
        writer_lsn: Lsn,
        /// The volume's end.
        volume_lsn: Lsn,
    },
    /// The writer does not say how large its WAL segments are.
    #[error("the writer's wal_segment_size '{0}' is not a size")]
    SegmentSize(String),
}

/// Reads until `stop`; connects again whenever the connection is lost.
pub(crate) async fn run(options: Arc<PrimaryOptions>, views: Arc<Views>, stop: CancellationToken) {
    let reader = Reader { options, views };
    let mut last_reason = String::new();
    loop {
        let reason = tokio::select! {
            () = stop.cancelled() => return,
            ended = reader.connect_and_stream() => match ended {
                Ok(never) => match never {},
                Err(e) => e.to_string(),
            },
        };
        if reason != last_reason {
            tracing::warn!("{reason}; trying again");
            last_reason = reason.clone();
        }
        reader.views.update_reader(|state| (state.streaming, state.detail) = (false, reason));
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(RECONNECT) => {}
        }
    }
}

struct Reader {
    options: Arc<PrimaryOptions>,
    views: Arc<Views>,
}

/// Reading has no end but an error.
enum Never {}

impl Reader {
    async fn connect_and_stream(&self) -> Result<Never, ReaderError> {
        let PrimaryOptions { volume, slot, system_id, .. } = &*self.options;
        let mut client = ReplicationClient::connect(&self.options.writer.local_connection()).await?;
        let identity = client.identify_system().await?;
        if identity.system_id != *system_id {
            return Err(ReaderError::OtherSystem { found: identity.system_id, expected: *system_id });
        }
        if client.read_slot(slot).await?.is_none() {
            client.create_physical_slot(slot).await?;
        }
        let segment_bytes = wal_segment_bytes(&client.show("wal_segment_size").await?)?;
        self.views.update_reader(|state| state.wal_segment_bytes = segment_bytes);
        if volume.is_empty() {
            // From the beginning of the segment, which is where a standby will ask for it.
            let slot_lsn = client.read_slot(slot).await?.unwrap_or(identity.flush_lsn);
            volume.reset(slot_lsn.segment_begin(segment_bytes), identity.timeline).await?;
            if identity.timeline.0 > 1 {
                volume.append_history(client.timeline_history(identity.timeline).await?).await?;
            }
        }
        // What an earlier connection read may still be on its way to the disk.
        volume.settle().await?;
        let bounds = volume.bounds();
        // Whatever a secondary lacks of what is here already is at least as old as this moment.
        self.views.note_redo(clock::now_us(), bounds.durable_lsn);
        let (mut from_lsn, mut timeline) = (bounds.durable_lsn, bounds.timeline);
        if identity.timeline == timeline && identity.flush_lsn < from_lsn {
            return Err(ReaderError::WriterBehind { writer_lsn: identity.flush_lsn, volume_lsn: from_lsn });
        }
        loop {
            (client, timeline, from_lsn) = match client.start_replication(slot, from_lsn, timeline).await? {
                Started::Streaming(stream) => {
                    tracing::info!("reading the writer's redo from {from_lsn} on timeline {timeline}");
                    self.stream(stream, timeline, from_lsn).await?
                }
                Started::TimelineEnded { next, begin_lsn, client } => (client, next, begin_lsn),
            };
            tracing::info!("the writer's timeline {timeline} begins at {from_lsn}");
            volume.append_history(client.timeline_history(timeline).await?).await?;
        }
    }

    /// Waits until a secondary has reported, or a while.
    async fn moved(&self) {
        let _ = tokio::time::timeout(HELD_CHECK, self.views.reported.notified()).await;
    }

    /// Follows one timeline to its end: returns the client, the next timeline and where it begins.
    async fn stream(
        &self,
        mut stream: ReplicationStream,
        timeline: Timeline,
        from_lsn: Lsn,
    ) -> Result<(ReplicationClient, Timeline, Lsn), ReaderError> {
        let mut durable = self.options.volume.watch_durable();
        let mut storing = Storing {
            reader: self,
            batcher: Batcher::new(timeline, from_lsn),
            compressor: Compressor::new(COMPRESSION_LEVEL)?,
            ended: false,
            reply_requested: false,
            released_lsn: Lsn::ZERO,
        };
        self.views.update_reader(|state| {
            (state.streaming, state.durable_lsn, state.timeline) = (true, from_lsn, timeline);
            state.detail.clear();
        });
        stream.report(storing.status(from_lsn), clock::now_us()).await?;
        let waits = self.options.commit.waits();
        loop {
            let paused = loop {
                if !storing.batcher.has_room() || storing.ended {
                    break storing.ended;
                }
                match stream.try_next()? {
                    Some(event) => storing.take(event)?,
                    None => break true,
                }
            };
            while let Some(cut) = storing.batcher.cut(paused, storing.ended) {
                storing.store(cut).await?;
                if !waits {
                    tokio::time::sleep(GATHER).await;
                }
            }
            let durable_lsn = durable.borrow().lsn;
            if storing.ended && durable_lsn >= storing.batcher.end_lsn() {
                stream.report(storing.status(durable_lsn), clock::now_us()).await?;
                return Ok(stream.finish().await?);
            }
            if std::mem::take(&mut storing.reply_requested) {
                stream.report(storing.status(durable_lsn), clock::now_us()).await?;
            }
            tokio::select! {
                changed = durable.changed() => {
                    if changed.is_err() {
                        return Err(VolumeError::Closed.into());
                    }
                    let durable_lsn = durable.borrow_and_update().lsn;
                    storing.batcher.durable(durable_lsn);
                    // Only now may commits return, and secondaries be told.
                    stream.report(storing.status(durable_lsn), clock::now_us()).await?;
                    self.views.update_reader(|state| state.durable_lsn = durable_lsn);
                }
                () = self.moved(), if storing.released_lsn < durable_lsn => {
                    stream.report(storing.status(durable_lsn), clock::now_us()).await?;
                }
                event = stream.next(), if storing.batcher.has_room() && !storing.ended => storing.take(event?)?,
            }
        }
    }
}

/// The way of redo from the writer into the volume, on one timeline.
struct Storing<'a> {
    reader: &'a Reader,
    batcher: Batcher,
    compressor: Compressor,
    /// The writer's timeline is over.
    ended: bool,
    reply_requested: bool,
    /// Up to where commits were let through.
    released_lsn: Lsn,
}

impl Storing<'_> {
    fn take(&mut self, event: StreamEvent) -> Result<(), Gap> {
        match event {
            StreamEvent::Redo { begin_lsn, bytes, sent_at_us } => {
                self.batcher.push(begin_lsn, &bytes, sent_at_us)?
            }
            StreamEvent::Keepalive { reply_requested, .. } => self.reply_requested |= reply_requested,
            StreamEvent::TimelineEnded => self.ended = true,
        }
        Ok(())
    }

    async fn store(&mut self, cut: Cut) -> Result<(), ReaderError> {
        let Cut { timeline, begin_lsn, redo, ends_in_record, newest_commit_us } = cut;
        let compressed = self.compressor.compress(begin_lsn, &redo)?;
        let batch = Batch {
            epoch: self.reader.options.epoch,
            timeline,
            begin_lsn,
            end_lsn: begin_lsn + redo.len() as u64,
            context_lsn: compressed.context_lsn,
            newest_commit_us,
            redo_crc32c: compressed.redo_crc32c,
            payload: compressed.payload,
            ends_in_record,
        };
        self.reader.views.note_redo(newest_commit_us.min(clock::now_us()), batch.end_lsn);
        self.reader.views.update_reader(|state| state.redo_bytes += batch.redo_bytes());
        Ok(self.reader.options.volume.append(Redo { batch, bytes: redo.into() }).await?)
    }

    /// What the writer is told when the volume is durable up to `durable_lsn`: this releases commits.
    fn status(&mut self, durable_lsn: Lsn) -> StandbyStatus {
        let Reader { options, views } = self.reader;
        let secondaries = match options.commit.asks_secondaries() {
            true => views.secondaries(clock::now_us()),
            false => Vec::new(),
        };
        // A writer that stops has no commits to hold, and waits for its last redo to be taken.
        let policy = if views.is_draining() { CommitPolicy::default() } else { options.commit };
        let voters = options.targets.len() + options.witnesses.len() + 1;
        let lease = Lease { voters, length: options.lease };
        let hinders = match () {
            () if views.is_draining() => None,
            () if !views.acknowledges() => Some(Held::Promotion),
            () if !lease.holds(clock::steady_us(), &views.answered_us()) => Some(Held::Lease),
            () => None,
        };
        let (released_lsn, held) = match hinders {
            None => releasable(policy, durable_lsn, self.released_lsn, &secondaries),
            held => (self.released_lsn, held),
        };
        self.released_lsn = released_lsn;
        views.note_held(held);
        StandbyStatus {
            written_lsn: self.batcher.end_lsn(),
            flushed_lsn: released_lsn,
            // Nothing is applied here; a commit that asks for `remote_apply` waits as it would for `on`.
            applied_lsn: released_lsn,
        }
    }
}

/// The bytes of `wal_segment_size` as `SHOW` prints it: `16MB`, `1GB`.
fn wal_segment_bytes(text: &str) -> Result<u64, ReaderError> {
    let sizes = [("kB", 1 << 10), ("MB", 1 << 20), ("GB", 1 << 30), ("B", 1)];
    sizes
        .iter()
        .find_map(|(unit, bytes)| {
            text.strip_suffix(unit).and_then(|n| n.trim().parse::<u64>().ok())?.checked_mul(*bytes)
        })
        .filter(|bytes| *bytes > 0)
        .ok_or_else(|| ReaderError::SegmentSize(text.chars().take(40).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segment_sizes_as_postgresql_shows_them() {
        assert_eq!(wal_segment_bytes("16MB").unwrap(), 16 << 20);
        assert_eq!(wal_segment_bytes("1GB").unwrap(), 1 << 30);
        assert!(wal_segment_bytes("0MB").is_err() && wal_segment_bytes("").is_err());
    }
}
