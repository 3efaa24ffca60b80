//! Reads the writer's redo once, as its only synchronous standby, and makes it durable in the region's
//! volume.
//!
//! PostgreSQL holds each commit until its redo is reported as flushed. The only thing ever reported as
//! flushed is what the volume says is durable, and no more than [`release`](crate::release) lets through. A
//! physical slot keeps redo on the writer until then.

use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use postgres::protocol::client::{
    ClientError, ReplicationClient, ReplicationStream, StandbyStatus, Started, StreamEvent,
};
use proto::compression::Compressor;
use proto::{Batch, Lsn, Redo, SystemId, Timeline};
use runtime::clock::now;
use telemetry::otlp::SpanKind;
use telemetry::trace::{Step, TraceId};
use tokio_util::sync::CancellationToken;
use volume::{Start, VolumeError};

use crate::batcher::{Batcher, Cut, Gap};
use crate::gate::Lease;
use crate::known::{Known, OtherRedo};
use crate::release::{Facts, Leadership, Released, release};
use crate::view::Views;
use crate::{PrimaryOptions, clock, trace};

/// zstd's level for redo: measured on pgbench, higher levels cost the writer more than they save the WAN.
const COMPRESSION_LEVEL: i32 = 1;

/// How often it is looked whether the writer can be connected to again. Short: no commit returns meanwhile,
/// and clients of a writer that starts are not let in.
const RECONNECT: Duration = Duration::from_millis(5);

/// How long one that does not say that it accepts connections is left alone, at most. Each attempt makes a
/// process, for which a server that stops waits.
const LEFT_ALONE: Duration = Duration::from_secs(1);

/// The same where the writer answered, and its redo cannot be taken: what is looked at then costs more.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

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
    /// The writer has other redo than the volume.
    #[error(transparent)]
    OtherRedo(#[from] OtherRedo),
    /// The writer is on another timeline than its epoch.
    #[error(
        "the writer is on timeline {found}, and this region leads epoch {expected}, whose timeline has the same number: \
         its promotion is not over, or was interrupted. If this stays, fail over to another region"
    )]
    OtherTimeline {
        /// The writer's.
        found: Timeline,
        /// The epoch.
        expected: proto::Epoch,
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
        let (reason, wait) = tokio::select! {
            () = stop.cancelled() => return,
            ended = reader.connect_and_stream() => match ended {
                Ok(never) => match never {},
                Err(e @ ReaderError::Client(_)) => (e.to_string(), RECONNECT),
                Err(e) => (e.to_string(), LOOK_AGAIN),
            },
        };
        if reason != last_reason {
            tracing::warn!("{reason}; trying again");
            last_reason = reason.clone();
        }
        reader.views.update_reader(|state| (state.streaming, state.detail) = (false, reason));
        let waiting = async {
            tokio::time::sleep(wait).await;
            let since = now();
            while !reader.options.writer.says_ready() && since.elapsed() < LEFT_ALONE {
                tokio::time::sleep(RECONNECT).await;
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = waiting => {}
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
        let epoch = self.options.epoch;
        if epoch.0 > 1 && u64::from(identity.timeline.0) != epoch.0 {
            return Err(ReaderError::OtherTimeline { found: identity.timeline, expected: epoch });
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
        let mut known = self.known(segment_bytes).await?;
        loop {
            let begin_lsn = known.begin_lsn().unwrap_or(from_lsn);
            let known = std::mem::take(&mut known);
            (client, timeline, from_lsn) = match client.start_replication(slot, begin_lsn, timeline).await? {
                Started::Streaming(stream) => {
                    tracing::info!(lsn = %from_lsn, "reading the writer's redo from {from_lsn} on timeline {timeline}");
                    self.stream(stream, timeline, from_lsn, known).await?
                }
                Started::TimelineEnded { next, begin_lsn, client } => {
                    known.all_compared()?;
                    (client, next, begin_lsn)
                }
            };
            tracing::info!(lsn = %from_lsn, "the writer's timeline {timeline} begins at {from_lsn}");
            volume.append_history(client.timeline_history(timeline).await?).await?;
        }
    }

    /// The newest redo of the volume, which the writer must have.
    async fn known(&self, segment_bytes: u64) -> Result<Known, ReaderError> {
        let (volume, bounds) = (&self.options.volume, self.options.volume.bounds());
        if bounds.durable_lsn <= bounds.horizon_lsn {
            return Ok(Known::default());
        }
        let newest = volume.cursor(Lsn(bounds.durable_lsn.0 - 1), Start::Batch)?.next().await?;
        Ok(Known::new(&newest, segment_bytes))
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
        known: Known,
    ) -> Result<(ReplicationClient, Timeline, Lsn), ReaderError> {
        let mut durable = self.options.volume.watch_durable();
        let mut catalogs = self.views.catalogs.subscribe();
        catalogs.mark_changed();
        let mut storing = Storing {
            reader: self,
            batcher: Batcher::new(timeline, from_lsn),
            known,
            compressor: Compressor::new(COMPRESSION_LEVEL)?,
            ended: false,
            reply_requested: false,
            released_lsn: Lsn::ZERO,
        };
        let mut streaming = false;
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
            if !streaming && storing.known.begin_lsn().is_none() {
                streaming = true;
                self.views.update_reader(|state| {
                    (state.streaming, state.durable_lsn, state.timeline) = (true, durable_lsn, timeline);
                    state.detail.clear();
                });
                storing.report(&mut stream, durable_lsn).await?;
            }
            if storing.ended && durable_lsn >= storing.batcher.end_lsn() {
                storing.report(&mut stream, durable_lsn).await?;
                return Ok(stream.finish().await?);
            }
            if std::mem::take(&mut storing.reply_requested) {
                storing.report(&mut stream, durable_lsn).await?;
            }
            tokio::select! {
                changed = durable.changed() => {
                    if changed.is_err() {
                        return Err(VolumeError::Closed.into());
                    }
                    let durable_lsn = durable.borrow_and_update().lsn;
                    storing.batcher.durable(durable_lsn);
                    self.options.tracer.reached(Step::Quorum, durable_lsn.0, clock::now_us);
                    // Only now may commits return, and secondaries be told.
                    storing.report(&mut stream, durable_lsn).await?;
                    self.views.update_reader(|state| state.durable_lsn = durable_lsn);
                }
                Ok(()) = catalogs.changed() => {
                    let xid = *catalogs.borrow_and_update();
                    if let Some(xid) = xid {
                        stream.hold_catalogs(xid, clock::now_us()).await?;
                    }
                }
                () = self.moved(), if storing.released_lsn < durable_lsn => {
                    storing.report(&mut stream, durable_lsn).await?;
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
    /// What the writer has to show before it goes on.
    known: Known,
    compressor: Compressor,
    /// The writer's timeline is over.
    ended: bool,
    reply_requested: bool,
    /// Up to where commits were let through.
    released_lsn: Lsn,
}

impl Storing<'_> {
    fn take(&mut self, event: StreamEvent) -> Result<(), ReaderError> {
        match event {
            StreamEvent::Redo { begin_lsn, bytes, sent_at_us } => {
                if let Some((begin_lsn, bytes)) = self.known.compare(begin_lsn, bytes)? {
                    self.batcher.push(begin_lsn, &bytes, sent_at_us)?;
                }
            }
            StreamEvent::Keepalive { reply_requested, .. } => self.reply_requested |= reply_requested,
            StreamEvent::TimelineEnded => {
                self.known.all_compared()?;
                self.ended = true;
            }
        }
        Ok(())
    }

    async fn store(&mut self, cut: Cut) -> Result<(), ReaderError> {
        let (tracer, epoch) = (&self.reader.options.tracer, self.reader.options.epoch);
        let sampled = tracer.samples().then(|| {
            let (way, spans) = trace::begun(tracer, &cut, epoch, clock::now_us());
            let (trace_id, lsn) = (TraceId(way.context.trace), Lsn(way.end));
            tracing::debug!(%trace_id, %lsn, "a batch is followed through all regions");
            (way, spans)
        });
        let Cut { timeline, begin_lsn, redo, ends_in_record, newest_commit_us, oldest_sent_us: _ } = cut;
        let compressed = self.compressor.compress(begin_lsn, &redo)?;
        let batch = Batch {
            epoch,
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
        self.reader.views.update_reader(|state| {
            state.redo_bytes += batch.redo_bytes();
            state.batches += 1;
            state.compressed_bytes += batch.payload.len() as u64;
        });
        if let Some((mut way, mut spans)) = sampled {
            spans.push(way.step("compress", SpanKind::Internal, clock::now_us()));
            tracer.put(spans);
            tracer.follow(way);
        }
        let end_lsn = batch.end_lsn;
        self.reader.options.volume.append(Redo { batch, bytes: redo.into() }).await?;
        tracer.reached(Step::Append, end_lsn.0, clock::now_us);
        Ok(())
    }

    /// Tells the writer what may return when the volume is durable up to `durable_lsn`: this releases
    /// commits.
    async fn report(&mut self, stream: &mut ReplicationStream, durable_lsn: Lsn) -> Result<(), ReaderError> {
        // A writer that has not shown the volume's redo may have other commits at the same LSNs.
        let durable_lsn = if self.known.begin_lsn().is_some() { Lsn::ZERO } else { durable_lsn };
        loop {
            let leadership = *self.reader.views.leadership();
            let released = self.released(leadership, durable_lsn);
            let reporting = stream.report(standby_status(released.lsn), clock::now_us());
            if let Some(reported) = while_unchanged(&self.reader.views, leadership, reporting).await {
                reported?;
                self.released_lsn = released.lsn;
                self.reader.views.note_released(released);
                self.reader.options.tracer.reached(Step::Release, released.lsn.0, clock::now_us);
                return Ok(());
            }
        }
    }

    fn released(&self, leadership: Leadership, durable_lsn: Lsn) -> Released {
        let Reader { options, views } = self.reader;
        let secondaries = match options.commit.asks_secondaries() {
            true => views.secondaries(clock::now_us()),
            false => Vec::new(),
        };
        let facts = Facts {
            leadership,
            doubt: views.doubt(clock::steady_us()),
            lease: Lease { length: options.lease },
            now_us: clock::boottime_us(),
            supported_us: &views.supported_us(),
            policy: options.commit,
            durable_lsn,
            secondaries: &secondaries,
        };
        release(&facts, self.released_lsn)
    }
}

/// Drives `reporting` as long as the leadership is what the report was decided by; gives it up, and returns
/// none, when that has changed. A report is smaller than what a socket takes at once, so one that was given
/// up was not begun; were it cut in half, the writer would drop the connection and release nothing.
async fn while_unchanged<T>(
    views: &Views,
    decided_by: Leadership,
    reporting: impl Future<Output = T>,
) -> Option<T> {
    let mut reporting = std::pin::pin!(reporting);
    std::future::poll_fn(|context| {
        // The leadership cannot change while this is held: a hold waits until the socket has taken what it
        // takes now.
        let leadership = views.leadership();
        if *leadership != decided_by {
            return Poll::Ready(None);
        }
        reporting.as_mut().poll(context).map(Some)
    })
    .await
}

/// What the writer is told when commits up to `released_lsn` may return. A session may wait for
/// `remote_write`, `on` or `remote_apply`: each passes the same gate, so redo that is only in this daemon's
/// memory is not "written".
fn standby_status(released_lsn: Lsn) -> StandbyStatus {
    StandbyStatus { written_lsn: released_lsn, flushed_lsn: released_lsn, applied_lsn: released_lsn }
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
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn segment_sizes_as_postgresql_shows_them() {
        assert_eq!(wal_segment_bytes("16MB").unwrap(), 16 << 20);
        assert_eq!(wal_segment_bytes("1GB").unwrap(), 1 << 30);
        assert!(wal_segment_bytes("0MB").is_err() && wal_segment_bytes("").is_err());
    }

    #[tokio::test]
    async fn a_report_that_was_not_sent_before_a_hold_is_not_sent_after_it() {
        let (_, voters) = tokio::sync::watch::channel(Vec::new());
        let views = Arc::new(Views::new(&[], "a".parse().unwrap(), voters, false, 0));
        views.acknowledge(true);
        let (ready, mut polls) = (Arc::new(AtomicBool::new(false)), 0);
        let (seen, holding) = (ready.clone(), views.clone());
        // The socket is full at first; the hold comes; then there would be room.
        let reporting = std::future::poll_fn(move |context| {
            polls += 1;
            context.waker().wake_by_ref();
            if polls == 1 {
                return Poll::Pending;
            }
            seen.store(true, Ordering::Relaxed);
            Poll::Ready(())
        });
        let reported = while_unchanged(&views, Leadership::Confirmed, reporting);
        let hold = async move { holding.hold() };
        let (reported, ()) = tokio::join!(reported, hold);
        assert!(reported.is_none() && !ready.load(Ordering::Relaxed));
        let sent = while_unchanged(&views, Leadership::Held, async { 1 }).await;
        assert_eq!(sent, Some(1), "what was released before may be said again");
    }

    #[test]
    fn no_kind_of_commit_passes_by_the_gate() {
        let StandbyStatus { written_lsn, flushed_lsn, applied_lsn } = standby_status(Lsn(70));
        assert_eq!([written_lsn, flushed_lsn, applied_lsn], [Lsn(70); 3]);
    }
}
