//! Gives another survivor the redo that it lacks, before it leads.

use std::ops::Range;

use proto::messages::{Downstream, TimelineFile, downstream};
use proto::{Lsn, Timeline};
use transport::{Stream, TransportError};
use volume::{Start, Volume};

/// Sends the `wanted` redo as far as it is durable, and finishes the stream.
///
/// # Errors
/// When the connection is lost.
pub async fn serve(volume: &Volume, wanted: Range<Lsn>, mut stream: Stream) -> Result<(), TransportError> {
    let end_lsn = volume.bounds().durable_lsn.min(wanted.end);
    let lost = |e: volume::VolumeError| TransportError::Lost(e.to_string());
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
                stream.send(&Downstream { body: Some(downstream::Body::Timeline(file)) }).await?;
            }
        }
        stream.send(&Downstream { body: Some(downstream::Body::Batch(batch.to_message())) }).await?;
    }
    stream.finish().await;
    Ok(())
}
