//! Streaming: batches out, progress back, on one QUIC stream.

use std::time::Duration;

use bytes::BytesMut;
use proto::messages::{
    Downstream, Heartbeat, MAX_CONTROL_MESSAGE_BYTES, Progress, TimelineFile, TraceContext, Upstream,
    downstream, refusal, upstream,
};
use proto::{Batch, Lsn, Timeline, frame};
use telemetry::otlp::Span;
use telemetry::trace::Tracer;
use tokio::sync::watch;
use transport::{Connection, Receiver, Sender, TransportError};
use volume::{Cursor, Start, VolumeError};

use super::machine::Input;
use super::{Shipping, refused};
use crate::{clock, trace};

/// A region hears from its primary at least this often, and answers.
const HEARTBEAT: Duration = Duration::from_millis(100);
const HEARTBEAT_US: u64 = 100_000;

/// Batches that are ready together leave in one write of up to about this size.
const WRITE_BYTES: usize = 256 * 1024;

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum StreamEnd {
    #[error(transparent)]
    Transport(#[from] TransportError),
    #[error("reading redo to ship: {0}")]
    Volume(#[from] VolumeError),
    #[error("the region refuses: {1}")]
    Refused(refusal::Kind, String),
}

impl Shipping {
    /// Streams from `from_lsn` until something ends it; says what. How far the region's standby is goes to
    /// `applied`.
    pub(super) async fn stream(&mut self, from_lsn: Lsn, applied: watch::Sender<Lsn>) -> Input {
        let Some((connection, stream)) = self.link.take() else {
            return Input::Lost("the connection was closed".into());
        };
        let (sender, receiver) = stream.split();
        let ended = match self.options.volume.cursor(from_lsn, Start::Batch) {
            Ok(cursor) => {
                // Whichever ends first ends the stream.
                let out = Outgoing {
                    volume: &self.options.volume,
                    views: &self.views,
                    tracer: &self.options.tracer,
                    target: &self.target.name,
                    egress: &self.egress,
                    connection: &connection,
                };
                tokio::select! {
                    end = out.send_batches(sender, cursor) => end,
                    end = out.receive_progress(receiver, &applied) => end,
                }
            }
            Err(e) => e.into(),
        };
        self.views.update_region(&self.target.name, |region, _| {
            region.link_ended(&connection.wire());
        });
        connection.close("the stream ended");
        match ended {
            StreamEnd::Refused(kind, reason) => refused(&proto::messages::Refusal::new(kind, reason)),
            // The redo went below the horizon while it was being read: the next probe finds that a seed is
            // needed.
            other => Input::Lost(other.to_string()),
        }
    }
}

/// The most that a region may say of what is wrong with its standby, letters.
const TROUBLE_LETTERS_MAX: usize = 400;

/// What one stream works with.
struct Outgoing<'a> {
    volume: &'a volume::Volume,
    views: &'a crate::view::Views,
    tracer: &'a Tracer,
    target: &'a proto::RegionName,
    egress: &'a transport::EgressCap,
    connection: &'a Connection,
}

/// What leaves in the next write.
#[derive(Debug, Default)]
struct Next {
    frames: BytesMut,
    /// Of the newest batch.
    timeline: Timeline,
    /// The spans of those batches of it that are sampled; they end once it was written.
    sampled: Vec<Span>,
}

impl Outgoing<'_> {
    /// Sends until something fails, and says what.
    async fn send_batches(&self, mut sender: Sender, mut cursor: Cursor) -> StreamEnd {
        let (mut next, mut heartbeat_us) = (Next::default(), 0);
        loop {
            if let Err(end) = self.fill(&mut next, &mut cursor, &mut heartbeat_us, &mut sender).await {
                return end;
            }
            // Before what is new: a repair is of use only if it does not get lost with what it covers.
            let repairs = sender.send_repairs();
            if repairs > 0 {
                self.views.update_region(self.target, |region, _| region.note_repairs(repairs));
            }
            self.egress.take(next.frames.len() + usize::try_from(repairs).unwrap_or_default()).await;
            if next.frames.is_empty() {
                continue;
            }
            if let Err(e) = sender.write_frames(next.frames.split().freeze()).await {
                return e.into();
            }
            if !next.sampled.is_empty() {
                let to_us = clock::now_us();
                let sent = |span: Span| Span { to_us: to_us.max(span.from_us), ..span };
                self.tracer.put(next.sampled.drain(..).map(sent));
            }
        }
    }

    /// Waits for something to send: the batches that are there, a heartbeat when none comes, or nothing when
    /// the sender has a repair to send.
    async fn fill(
        &self,
        next: &mut Next,
        cursor: &mut Cursor,
        heartbeat_us: &mut u64,
        sender: &mut Sender,
    ) -> Result<(), StreamEnd> {
        let now_us = clock::steady_us();
        let wake = sender.repairs_wake_us().map(|at_us| Duration::from_micros(at_us.saturating_sub(now_us)));
        let wait = HEARTBEAT.min(wake.unwrap_or(HEARTBEAT));
        let Ok(first) = tokio::time::timeout(wait, cursor.next_batch()).await else {
            let now_us = clock::steady_us();
            if wait == HEARTBEAT || now_us.saturating_sub(*heartbeat_us) > HEARTBEAT_US {
                *heartbeat_us = now_us;
                self.put_heartbeat(&mut next.frames, sender);
            }
            return Ok(());
        };
        let (mut redo_bytes, mut batches) = (self.put_batch(next, first?), 1);
        while next.frames.len() < WRITE_BYTES {
            let Some(batch) = cursor.try_next_batch() else { break };
            redo_bytes += self.put_batch(next, batch);
            batches += 1;
        }
        self.views.update_region(self.target, |region, _| {
            region.redo_bytes += redo_bytes;
            region.batches += batches;
        });
        // Under load too: answers to them say how far behind the region is.
        if clock::steady_us().saturating_sub(*heartbeat_us) > HEARTBEAT_US {
            *heartbeat_us = clock::steady_us();
            self.put_heartbeat(&mut next.frames, sender);
        }
        Ok(())
    }

    /// Adds `batch` to what will be sent, after the history of its timeline where that is new.
    fn put_batch(&self, next: &mut Next, batch: Batch) -> u64 {
        if batch.timeline != next.timeline {
            next.timeline = batch.timeline;
            if let Some(history) = self.volume.history(batch.timeline) {
                let file = TimelineFile { timeline: history.timeline.0, content: history.content.into() };
                put(&mut next.frames, downstream::Body::Timeline(file), None);
            }
        }
        let redo_bytes = batch.redo_bytes();
        let sampled = trace::shipped(self.tracer, &batch, self.target.as_str(), clock::now_us);
        let context = sampled.map(|(span, context)| {
            next.sampled.push(span);
            context
        });
        put(&mut next.frames, downstream::Body::Batch(batch.to_message()), context);
        redo_bytes
    }

    fn put_heartbeat(&self, frames: &mut BytesMut, sender: &mut Sender) {
        let (mut number, durable_lsn) = (0, self.volume.bounds().durable_lsn);
        let wire = self.connection.wire();
        sender.note_path(wire.sent_packets, wire.lost_packets);
        self.views.update_region(self.target, |region, _| {
            region.note_link(&wire);
            number = region.heartbeat_sent(clock::now_us(), durable_lsn);
        });
        put(frames, downstream::Body::Heartbeat(Heartbeat { number, durable_lsn: durable_lsn.0 }), None);
    }

    /// Takes what the region says until that ends, and says why.
    async fn receive_progress(&self, mut receiver: Receiver, applied: &watch::Sender<Lsn>) -> StreamEnd {
        loop {
            let body = match receiver.receive::<Upstream>(MAX_CONTROL_MESSAGE_BYTES).await {
                Ok(Some(message)) => message.body,
                Ok(None) => return TransportError::Finished.into(),
                Err(e) => return e.into(),
            };
            match body {
                Some(upstream::Body::Progress(progress)) => {
                    applied.send_replace(Lsn(progress.applied_lsn));
                    self.note_progress(progress);
                }
                Some(upstream::Body::Refusal(refusal)) => {
                    let kind = refusal::Kind::try_from(refusal.kind).unwrap_or_default();
                    return StreamEnd::Refused(kind, refusal.reason);
                }
                // A newer region's message: nothing this version waits for.
                None => {}
            }
        }
    }

    fn note_progress(&self, progress: Progress) {
        let (durable_lsn, applied_lsn) = (Lsn(progress.durable_lsn), Lsn(progress.applied_lsn));
        // What the region has durable, it will never ask for again; but the last of it, to compare.
        self.volume.set_need(self.target.as_str(), Some(Lsn(durable_lsn.0.saturating_sub(1))));
        let wire = self.connection.wire();
        self.views.update_region(self.target, |region, clock| {
            region.timeline = Timeline(progress.timeline);
            region.durable_lsn = Some(durable_lsn);
            region.applied_lsn = Some(applied_lsn);
            region.lag.reported(clock::now_us(), clock, durable_lsn, applied_lsn, progress.heartbeat_number);
            region.note_link(&wire);
            region.silent = progress.silent;
            // A peer's words, for an operator's terminal.
            let letters = progress.trouble.chars().filter(|letter| !letter.is_control());
            region.trouble = letters.take(TROUBLE_LETTERS_MAX).collect();
        });
        self.views.reported.notify_one();
    }
}

fn put(frames: &mut BytesMut, body: downstream::Body, trace: Option<TraceContext>) {
    frame::encode(&Downstream { body: Some(body), trace }, frames);
}
