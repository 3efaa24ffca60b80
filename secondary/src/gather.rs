//! Gives another survivor the redo that it lacks, before it leads.

use std::ops::Range;

use proto::messages::refusal::Kind;
use proto::messages::{Downstream, Refusal, TimelineFile, downstream};
use proto::{BatchId, Lsn, Timeline};
use transport::{Stream, TransportError};
use volume::{Start, Volume};

/// Sends the `wanted` redo as far as it is durable, and finishes the stream. The asker's redo ends with the
/// batch `newest`, where it has any: unless the very same batch is here, its redo is another's, and it is
/// told so instead.
///
/// # Errors
/// When the connection is lost.
pub async fn serve(
    volume: &Volume,
    wanted: Range<Lsn>,
    newest: Option<BatchId>,
    mut stream: Stream,
) -> Result<(), TransportError> {
    let lost = |e: volume::VolumeError| TransportError::Lost(e.to_string());
    if let Some(newest) = newest {
        let here = volume.batch_at(newest.begin_lsn).await.map_err(lost)?.map(|batch| batch.id());
        if here != Some(newest) {
            let refusal = other_redo(newest, here, volume.bounds().horizon_lsn);
            tracing::warn!("gave no redo to a region that shall lead: {}", refusal.reason);
            stream.send(&Downstream { body: Some(downstream::Body::Refusal(refusal)), trace: None }).await?;
            stream.finish().await;
            return Ok(());
        }
    }
    let end_lsn = volume.bounds().durable_lsn.min(wanted.end);
    let mut cursor = volume.cursor(wanted.start, Start::Batch).map_err(lost)?;
    let mut timeline = Timeline(0);
    while cursor.next_lsn() < end_lsn {
        let batch = cursor.next_batch().await.map_err(lost)?;
        if batch.end_lsn > end_lsn {
            break;
        }
        if batch.timeline != timeline {
            timeline = batch.timeline;
            if let Some(history) = volume.history(timeline) {
                let file = TimelineFile { timeline: history.timeline.0, content: history.content.into() };
                stream
                    .send(&Downstream { body: Some(downstream::Body::Timeline(file)), trace: None })
                    .await?;
            }
        }
        stream
            .send(&Downstream { body: Some(downstream::Body::Batch(batch.to_message())), trace: None })
            .await?;
    }
    stream.finish().await;
    Ok(())
}

/// Why nothing is given to a region whose redo ends with `newest`.
fn other_redo(newest: BatchId, here: Option<BatchId>, horizon_lsn: Lsn) -> Refusal {
    let BatchId { begin_lsn, end_lsn, timeline, .. } = newest;
    if here.is_none() && begin_lsn < horizon_lsn {
        let reason = format!(
            "its redo from {begin_lsn} to {end_lsn} cannot be compared: the oldest kept here is {horizon_lsn}"
        );
        return Refusal::new(Kind::Failed, reason);
    }
    let reason = format!(
        "its redo from {begin_lsn} to {end_lsn} on timeline {timeline} is not this region's: one of the two has lost redo, as \
         after a restored directory"
    );
    Refusal::new(Kind::Diverged, reason)
}
