//! One replication stream from the primary region: batches in, progress back.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use postgres::installation::Installations;
use postgres::major::Major;
use postgres::protocol::walsender::StandbyProgress;
use proto::compression::{CompressionError, Decompressor};
use proto::messages::refusal::Kind;
use proto::messages::{
    Downstream, MAX_STREAM_MESSAGE_BYTES, Progress, Refusal, ReplicateOpen, ReplicateReady, TraceContext,
    Upstream, downstream, upstream,
};
use proto::{Batch, Epoch, Lsn, Redo, SystemId, Timeline, TimelineHistory};
use runtime::clock::wall_us;
use telemetry::otlp::SpanKind;
use telemetry::trace::{Context, Step, TraceId, Tracer, Way};
use tokio::sync::{Notify, watch};
use transport::{Receiver as StreamReceiver, Sender as StreamSender, Stream, TransportError};
use volume::{Start, Volume, VolumeError};

use crate::heard::Heard;
use crate::receiver::{Receiver, Verdict};
use crate::turn::Turns;

/// Positions are reported at most this often: enough for a lag in milliseconds, and one packet where a busy
/// region would send hundreds.
const REPORT_INTERVAL_MIN: Duration = Duration::from_millis(5);

/// Positions are reported at least this often, also when nothing moves.
const REPORT_INTERVAL_MAX: Duration = Duration::from_millis(100);

/// How long a volume may take to settle before the primary is told to come again. Less than the primary
/// waits.
const READY: Duration = Duration::from_secs(3);

const SHUT_OUT: &str = "this region does not know that region as the primary of that epoch any more";

/// How receiving goes, for `status`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InboundState {
    /// A primary is connected and its redo flows.
    pub streaming: bool,
    /// What hinders it, in words; empty while streaming.
    pub detail: String,
    /// Redo received since this daemon started, bytes.
    pub redo_bytes: u64,
    /// Batches that came earlier by repairs than by the stream, since this daemon started.
    pub repaired_batches: u64,
    /// How far the primary was durable, as it said last.
    pub primary_lsn: Lsn,
    /// When the primary was heard, and how far it was, on [`runtime::clock::steady_us`].
    pub heard: Heard,
}

/// What is wrong with the region's own standby, as the primary is told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StandbyHealth {
    /// In words; empty when nothing is.
    pub trouble: String,
    /// It does not answer.
    pub silent: bool,
}

/// The most of such words that the primary is told, bytes.
const TROUBLE_BYTES_MAX: usize = 400;

/// What data a region has, to take a primary's redo with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data {
    /// None that it could go on with: a seed is needed.
    None {
        /// Why, in words; empty where it just has none.
        why: String,
        /// Of which major versions it could run some.
        runs: Installations,
    },
    /// Those of an epoch that it led, which is over: what they have may not be what the primary has.
    Led {
        /// Its PostgreSQL.
        system_id: SystemId,
        /// They can be tried to rewind.
        can_rewind: bool,
    },
    /// A standby's.
    Whole {
        /// Its PostgreSQL.
        system_id: SystemId,
        /// They can be tried to rewind, should they have redo that was cut off.
        can_rewind: bool,
    },
}

/// The receiving side of a secondary region. One stream is served at a time; a newer one ends the older,
/// whose connection may be dead without anyone having noticed yet.
#[derive(Debug)]
pub struct Inbound {
    volume: Volume,
    applied: watch::Receiver<StandbyProgress>,
    standby: Mutex<StandbyHealth>,
    epoch: Mutex<Epoch>,
    state: Mutex<InboundState>,
    turns: Turns,
    tracer: Tracer,
    /// A sampled batch was received.
    sampled: Notify,
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum SessionEnd {
    #[error("the connection to the primary: {0}")]
    Transport(#[from] TransportError),
    #[error("storing redo: {0}")]
    Volume(#[from] VolumeError),
    #[error("redo from the primary: {0}")]
    Damaged(#[from] CompressionError),
    #[error("{1}")]
    Refused(Kind, String),
    #[error("a newer connection from the primary took over, or the primary was shut out")]
    Displaced,
}

impl Inbound {
    /// The receiving side of a region that stores into `volume`, has seen `epoch`, and whose standby's
    /// progress is `applied`. Batches that the primary sampled are followed by `tracer`.
    #[must_use]
    pub fn new(
        volume: Volume,
        epoch: Epoch,
        applied: watch::Receiver<StandbyProgress>,
        tracer: Tracer,
    ) -> Arc<Inbound> {
        Arc::new(Inbound {
            volume,
            applied,
            standby: Mutex::default(),
            epoch: Mutex::new(epoch),
            state: Mutex::default(),
            turns: Turns::default(),
            tracer,
            sampled: Notify::new(),
        })
    }

    /// How receiving goes.
    #[must_use]
    pub fn state(&self) -> InboundState {
        lock(&self.state).clone()
    }

    /// Has the primary told what is wrong with the standby.
    pub fn note_standby(&self, mut health: StandbyHealth) {
        let end = (0..=TROUBLE_BYTES_MAX).rev().find(|end| health.trouble.is_char_boundary(*end));
        health.trouble.truncate(end.unwrap_or_default());
        *lock(&self.standby) = health;
    }

    /// Ends the present stream: when this returns, nothing more of it is reported or stored, though what it
    /// has stored may not be durable yet. A stream that comes later is served if it is wanted. Do not hold
    /// here what `wanted` of [`Inbound::serve`] looks at.
    pub fn shut_out(&self) {
        self.turns.end();
    }

    /// As [`Inbound::shut_out`], and waits until its turn is over.
    pub async fn interrupt(&self) {
        self.turns.end();
        self.turns.over().await;
    }

    /// Takes what another survivor sends on `stream`, up to its end; an epoch that is over is not looked at,
    /// as redo that was durable under it is what is gathered. It ends as a stream does when another comes, or
    /// at [`Inbound::interrupt`]; it does not begin unless it is `wanted` then.
    ///
    /// # Errors
    /// Why not all of it was taken.
    pub async fn gather(&self, stream: Stream, wanted: impl Fn() -> bool) -> Result<(), String> {
        let turn = self.turns.next().await;
        if !wanted() {
            return Err("the promotion has gone on".into());
        }
        let bounds = self.volume.bounds();
        let (_sender, receiver) = stream.split();
        let mut session = Session {
            inbound: self,
            receiver: Receiver::new(
                self.volume.watch_durable().borrow().epoch,
                bounds.timeline,
                bounds.durable_lsn,
            ),
            decoder: None,
            held: Held::default(),
            received: watch::Sender::new((bounds.durable_lsn, 0)),
        };
        match turn.run(session.take_redo(receiver)).await.unwrap_or(SessionEnd::Displaced) {
            SessionEnd::Transport(TransportError::Finished) => {
                self.volume.settle().await.map_err(|e| e.to_string())
            }
            other => Err(other.to_string()),
        }
    }

    /// Serves a stream that a primary opened, until it ends, with the `data` that this region has.
    ///
    /// The stream is served only while it is `wanted`, which is asked once no other stream is served any more
    /// and the answer is ready, and again before every report: whoever was shut out meanwhile gets no answer.
    pub async fn serve(
        &self,
        open: ReplicateOpen,
        mut stream: Stream,
        data: Data,
        wanted: impl Fn() -> bool,
    ) {
        let turn = self.turns.next().await;
        let making = tokio::time::timeout(READY, self.ready(&open, &data));
        let Some(made) = turn.run(making).await else { return };
        let ready = match made {
            Ok(Ok(ready)) => ready,
            Ok(Err(e)) => ReplicateReady {
                refusal: Some(Refusal::new(Kind::Failed, e.to_string())),
                ..Default::default()
            },
            Err(_) => {
                let reason = "this region's volume does not take redo: it needs four of its six copies";
                ReplicateReady { refusal: Some(Refusal::new(Kind::Busy, reason)), ..Default::default() }
            }
        };
        let ready = if wanted() { ready } else { shut_out() };
        let goes_on = ready.refusal.is_none() && !ready.needs_seed && !ready.led;
        if let Some(refusal) = &ready.refusal {
            tracing::warn!("refused the primary's redo: {}", refusal.reason);
        }
        if stream.send(&ready).await.is_err() || !goes_on {
            stream.finish().await;
            return;
        }
        let (sender, mut receiver) = stream.split();
        if ready.repairs {
            receiver.take_repairs();
        }
        let session = Session {
            inbound: self,
            // Redo of an earlier epoch may be caught up under this one; it never goes back.
            receiver: Receiver::new(
                self.volume.watch_durable().borrow().epoch,
                Timeline(ready.timeline),
                Lsn(ready.durable_lsn),
            ),
            decoder: None,
            held: Held::default(),
            received: watch::Sender::new((Lsn(ready.durable_lsn), 0)),
        };
        self.set_state(true, String::new());
        let end = turn.run(session.run(sender, receiver, &wanted)).await.unwrap_or(SessionEnd::Displaced);
        tracing::warn!("no longer receiving redo: {end}");
        self.set_state(false, end.to_string());
    }

    /// What to answer a primary that wants to send redo.
    async fn ready(&self, open: &ReplicateOpen, data: &Data) -> Result<ReplicateReady, VolumeError> {
        let refuse = |kind, reason: String| {
            Ok(ReplicateReady { refusal: Some(Refusal::new(kind, reason)), ..Default::default() })
        };
        let epoch = *lock(&self.epoch);
        if Epoch(open.epoch) < epoch {
            return refuse(
                Kind::StaleEpoch,
                format!("epoch {} is over; epoch {epoch} was seen here", open.epoch),
            );
        }
        let (system_id, can_rewind, led) = match data {
            Data::None { why, runs } => {
                if let Some(reason) = runs.lacks(Major(open.major)) {
                    return refuse(Kind::Failed, reason);
                }
                let why = why.clone();
                return Ok(ReplicateReady { needs_seed: true, why, ..Default::default() });
            }
            Data::Led { system_id, can_rewind } => (system_id, *can_rewind, true),
            Data::Whole { system_id, can_rewind } => (system_id, *can_rewind, false),
        };
        if SystemId(open.system_id) != *system_id {
            let reason = format!(
                "the primary's PostgreSQL has system identifier {}, and the data here is of {system_id}: another \
                 cluster's data. To have this region seeded anew, with what it has set aside: replicator reseed --region R",
                open.system_id
            );
            return refuse(Kind::OtherSystem, reason);
        }
        let theirs = match TimelineHistory::parse(Timeline(open.timeline), &open.history) {
            Ok(history) => history,
            Err(e) => return refuse(Kind::Failed, format!("the primary's timeline history: {e}")),
        };
        // Redo of an earlier stream may still be on its way to the disk.
        self.volume.settle().await?;
        if !led {
            *lock(&self.epoch) = Epoch(open.epoch);
        }
        let bounds = self.volume.bounds();
        let common = newest_common(&self.volume, &theirs).await?.map(|batch| batch.id().to_message());
        let (timeline, durable_lsn) = (bounds.timeline.0, bounds.durable_lsn.0);
        let repairs = open.repairs;
        Ok(ReplicateReady {
            timeline,
            durable_lsn,
            common,
            can_rewind,
            led,
            repairs,
            carries_tablespaces: true,
            ..ReplicateReady::default()
        })
    }

    /// The way through this region of a batch that the primary says is sampled.
    fn sampled_way(&self, batch: &Batch, trace: &TraceContext) -> Option<Way> {
        let (trace, span) = trace.sampled().filter(|_| self.tracer.is_on())?;
        let (trace_id, lsn) = (TraceId(trace), batch.end_lsn);
        tracing::debug!(%trace_id, %lsn, "a batch that the primary follows was received");
        Some(Way {
            context: Context { trace, span },
            begin: batch.begin_lsn.0,
            end: batch.end_lsn.0,
            at_us: wall_us(),
            next: 1,
            ahead: &[Step::Append, Step::Quorum, Step::Feed, Step::Apply],
            attributes: self.tracer.attributes(batch.epoch.0, &batch.begin_lsn, &batch.end_lsn),
            whole: None,
        })
    }

    /// Tells when sampled batches are durable here, and applied. Between them it waits for the next.
    async fn follow_sampled(&self) -> Infallible {
        let (mut durable, mut applied) = (self.volume.watch_durable(), self.applied.clone());
        loop {
            self.sampled.notified().await;
            loop {
                self.tracer.reached(Step::Quorum, durable.borrow_and_update().lsn.0, wall_us);
                self.tracer.reached(Step::Apply, applied.borrow_and_update().applied_lsn.0, wall_us);
                if !self.tracer.follows() {
                    break;
                }
                let moved = tokio::select! {
                    moved = durable.changed() => moved,
                    moved = applied.changed() => moved,
                };
                if moved.is_err() {
                    return std::future::pending().await;
                }
            }
        }
    }

    fn set_state(&self, streaming: bool, detail: String) {
        let state = &mut *lock(&self.state);
        (state.streaming, state.detail) = (streaming, detail);
    }
}

/// The newest batch that ends at or before where the volume's redo parts from the history of the primary.
async fn newest_common(volume: &Volume, theirs: &TimelineHistory) -> Result<Option<Batch>, VolumeError> {
    let bounds = volume.bounds();
    let mine = volume.history(bounds.timeline);
    let mine = mine.unwrap_or(TimelineHistory { timeline: bounds.timeline, ..TimelineHistory::first() });
    let end_lsn = mine.common_end(theirs).min(bounds.durable_lsn);
    let before = |lsn: Lsn| Lsn(lsn.0.saturating_sub(1));
    match volume.batch_at(before(end_lsn)).await? {
        // The fork lies within it.
        Some(batch) if batch.end_lsn > end_lsn => volume.batch_at(before(batch.begin_lsn)).await,
        found => Ok(found),
    }
}

/// The answer to a primary that was shut out while it was being answered.
fn shut_out() -> ReplicateReady {
    ReplicateReady { refusal: Some(Refusal::new(Kind::StaleEpoch, SHUT_OUT)), ..Default::default() }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Plain values, assigned whole: a panic elsewhere leaves nothing half-done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One stream being served.
struct Session<'a> {
    inbound: &'a Inbound,
    receiver: Receiver,
    /// Positioned at the end of the redo taken; none until the first batch.
    decoder: Option<Decompressor>,
    /// What was received of a record that is larger than a batch.
    held: Held,
    /// The end of the redo received, and the newest heartbeat's number.
    received: watch::Sender<(Lsn, u64)>,
}

/// Batches of a record that is larger than a batch. They are stored once all of it is here: what a region has
/// durable is whole records, as nobody could finish one whose writer is lost. They are held in memory, as
/// PostgreSQL holds a record that it reads.
#[derive(Debug, Default)]
struct Held {
    batches: Vec<Redo>,
    bytes: u64,
}

impl Held {
    /// The most that is held, bytes. Of a larger record the pieces are stored as they come.
    const BYTES_MAX: u64 = 128 << 20;

    /// Takes a batch; returns what is to be stored now.
    fn take(&mut self, redo: Redo) -> Vec<Redo> {
        let in_record = redo.batch.ends_in_record;
        self.bytes += redo.batch.redo_bytes();
        self.batches.push(redo);
        if in_record && self.bytes <= Held::BYTES_MAX {
            return Vec::new();
        }
        self.bytes = 0;
        std::mem::take(&mut self.batches)
    }
}

impl Session<'_> {
    async fn run(
        mut self,
        mut sender: StreamSender,
        receiver: StreamReceiver,
        wanted: &impl Fn() -> bool,
    ) -> SessionEnd {
        let (received, inbound) = (self.received.subscribe(), self.inbound);
        let end = tokio::select! {
            end = self.take_redo(receiver) => end,
            end = report_progress(inbound, received, &mut sender, wanted) => end,
            never = inbound.follow_sampled() => match never {},
        };
        let refusal = match &end {
            SessionEnd::Refused(kind, reason) => Some(Refusal::new(*kind, reason.clone())),
            // The volume's own trouble: the primary may try again, and its operator should read why.
            SessionEnd::Volume(_) | SessionEnd::Damaged(_) => {
                Some(Refusal::new(Kind::Failed, end.to_string()))
            }
            SessionEnd::Transport(_) | SessionEnd::Displaced => None,
        };
        if let Some(refusal) = refusal {
            let _ = sender.send(&Upstream { body: Some(upstream::Body::Refusal(refusal)) }).await;
            sender.finish().await;
        }
        end
    }

    async fn take_redo(&mut self, mut receiver: StreamReceiver) -> SessionEnd {
        loop {
            let before = receiver.repaired_messages();
            let (body, trace) = match receiver.receive::<Downstream>(MAX_STREAM_MESSAGE_BYTES).await {
                Ok(Some(message)) => (message.body, message.trace),
                Ok(None) => return TransportError::Finished.into(),
                Err(e) => return e.into(),
            };
            let taken = match body {
                Some(downstream::Body::Batch(batch)) => {
                    let repaired = receiver.repaired_messages() - before;
                    lock(&self.inbound.state).repaired_batches += repaired;
                    self.take_batch(batch, trace).await
                }
                Some(downstream::Body::Timeline(file)) => {
                    self.take_history(file.timeline, &file.content).await
                }
                Some(downstream::Body::Heartbeat(heartbeat)) => {
                    let durable_lsn = Lsn(heartbeat.durable_lsn);
                    let state = &mut *lock(&self.inbound.state);
                    state.primary_lsn = durable_lsn;
                    state.heard.heard(runtime::clock::steady_us(), durable_lsn);
                    self.received.send_modify(|(_, number)| *number = heartbeat.number);
                    Ok(())
                }
                Some(downstream::Body::Refusal(refusal)) => {
                    let kind = Kind::try_from(refusal.kind).unwrap_or_default();
                    Err(SessionEnd::Refused(kind, refusal.reason))
                }
                // A newer primary's message: nothing this version waits for.
                None => Ok(()),
            };
            if let Err(end) = taken {
                return end;
            }
        }
    }

    async fn take_history(&mut self, timeline: u32, content: &[u8]) -> Result<(), SessionEnd> {
        let history = TimelineHistory::parse(Timeline(timeline), content)
            .map_err(|e| SessionEnd::Refused(Kind::Failed, e.to_string()))?;
        self.receiver.history(history.clone()).map_err(|(kind, reason)| SessionEnd::Refused(kind, reason))?;
        Ok(self.inbound.volume.append_history(history).await?)
    }

    async fn take_batch(
        &mut self,
        message: proto::messages::Batch,
        trace: Option<TraceContext>,
    ) -> Result<(), SessionEnd> {
        let batch =
            Batch::from_message(message).map_err(|e| SessionEnd::Refused(Kind::Failed, e.to_string()))?;
        match self.receiver.batch(&batch) {
            Verdict::Take => {}
            Verdict::Duplicate => return Ok(()),
            Verdict::Refuse(kind, reason) => return Err(SessionEnd::Refused(kind, reason)),
        }
        let sampled = trace.and_then(|trace| self.inbound.sampled_way(&batch, &trace));
        let decoder = match &mut self.decoder {
            Some(decoder) => decoder,
            none => none.insert(decoder_at(&self.inbound.volume, &batch).await?),
        };
        let redo = decoder.open(batch)?;
        if let Some(mut way) = sampled {
            self.inbound.tracer.put([way.step("receive", SpanKind::Consumer, wall_us())]);
            self.inbound.tracer.follow(way);
            self.inbound.sampled.notify_one();
        }
        {
            let state = &mut *lock(&self.inbound.state);
            state.redo_bytes += redo.batch.redo_bytes();
            state.heard.heard(runtime::clock::steady_us(), redo.batch.end_lsn);
        }
        for redo in self.held.take(redo) {
            let end_lsn = redo.batch.end_lsn;
            self.inbound.volume.append(redo).await?;
            self.inbound.tracer.reached(Step::Append, end_lsn.0, wall_us);
            self.received.send_modify(|(received_lsn, _)| *received_lsn = end_lsn);
        }
        Ok(())
    }
}

/// A decoder that accepts `batch`: fresh, or fed with the batches of its context before it, which are in the
/// volume.
async fn decoder_at(volume: &Volume, batch: &Batch) -> Result<Decompressor, SessionEnd> {
    let mut decoder = Decompressor::new()?;
    if !batch.begins_context() {
        let mut cursor = volume.cursor(batch.context_lsn, Start::Batch)?;
        while !decoder.accepts(batch) && volume.watch_durable().borrow().lsn > cursor.next_lsn() {
            decoder.decompress(&cursor.next_batch().await?)?;
        }
    }
    Ok(decoder)
}

/// Reports positions as they move. Ends only when the connection or the volume does.
async fn report_progress(
    inbound: &Inbound,
    mut received: watch::Receiver<(Lsn, u64)>,
    sender: &mut StreamSender,
    wanted: &impl Fn() -> bool,
) -> SessionEnd {
    let mut durable = inbound.volume.watch_durable();
    let mut applied = inbound.applied.clone();
    loop {
        let (received_lsn, heartbeat_number) = *received.borrow_and_update();
        let durable_now = *durable.borrow_and_update();
        let StandbyHealth { trouble, silent } = lock(&inbound.standby).clone();
        let progress = Progress {
            timeline: durable_now.timeline.0,
            received_lsn: received_lsn.0,
            durable_lsn: durable_now.lsn.0,
            // A standby may have applied redo in an earlier life of the volume; never report more than is
            // durable.
            applied_lsn: applied.borrow_and_update().applied_lsn.min(durable_now.lsn).0,
            heartbeat_number,
            trouble,
            silent,
        };
        let message = Upstream { body: Some(upstream::Body::Progress(progress)) };
        // Asked last: what was reported after this region has shut the primary out could release commits over
        // there.
        if !wanted() {
            return SessionEnd::Refused(Kind::StaleEpoch, SHUT_OUT.into());
        }
        if let Err(e) = sender.send(&message).await {
            return e.into();
        }
        tokio::time::sleep(REPORT_INTERVAL_MIN).await;
        let moved = async {
            tokio::select! {
                changed = durable.changed() => changed,
                changed = applied.changed() => changed,
                changed = received.changed() => changed,
            }
        };
        match tokio::time::timeout(REPORT_INTERVAL_MAX, moved).await {
            Ok(Ok(())) | Err(_) => {}
            Ok(Err(_)) => return VolumeError::Closed.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_a_record_are_held_until_it_is_whole() {
        let batch = |begin: u64, bytes: u64, ends_in_record| Redo {
            batch: Batch {
                epoch: Epoch(1),
                timeline: Timeline(1),
                begin_lsn: Lsn(begin),
                end_lsn: Lsn(begin + bytes),
                context_lsn: Lsn(begin),
                newest_commit_us: 0,
                redo_crc32c: 0,
                payload: b"x".as_slice().into(),
                ends_in_record,
            },
            bytes: bytes::Bytes::new(),
        };
        let begins = |stored: Vec<Redo>| stored.iter().map(|redo| redo.batch.begin_lsn.0).collect::<Vec<_>>();
        let mut held = Held::default();
        assert_eq!(begins(held.take(batch(10, 10, false))), [10]);
        assert_eq!(begins(held.take(batch(20, 10, true))), [0_u64; 0]);
        assert_eq!(begins(held.take(batch(30, 10, true))), [0_u64; 0]);
        assert_eq!(begins(held.take(batch(40, 10, false))), [20, 30, 40]);
        assert_eq!(begins(held.take(batch(50, Held::BYTES_MAX, true))), [0_u64; 0]);
        assert_eq!(begins(held.take(batch(1 << 30, 1, true))), [50, 1 << 30], "it is too large to be held");
    }
}
