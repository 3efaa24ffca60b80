//! One replication stream from the primary region: batches in, progress back.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use postgres::walsender::StandbyProgress;
use proto::compression::{CompressionError, Decompressor};
use proto::messages::refusal::Kind;
use proto::messages::{
    Downstream, MAX_STREAM_MESSAGE_BYTES, Progress, Refusal, ReplicateOpen, ReplicateReady, Upstream,
    downstream, upstream,
};
use proto::{Batch, Epoch, Lsn, Redo, SystemId, Timeline, TimelineHistory};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use transport::{Receiver as StreamReceiver, Sender as StreamSender, Stream, TransportError};
use volume::{Start, Volume, VolumeError};

use crate::receiver::{Receiver, Verdict};

/// Positions are reported at most this often: enough for a lag in milliseconds, and one packet where a busy region would
/// send hundreds.
const REPORT_INTERVAL_MIN: Duration = Duration::from_millis(5);

/// Positions are reported at least this often, also when nothing moves.
const REPORT_INTERVAL_MAX: Duration = Duration::from_millis(100);

/// How receiving goes, for `status`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InboundState {
    /// A primary is connected and its redo flows.
    pub streaming: bool,
    /// What hinders it, in words; empty while streaming.
    pub detail: String,
    /// Redo received since this daemon started, bytes.
    pub redo_bytes: u64,
    /// How far the primary was durable, as it said last.
    pub primary_lsn: Lsn,
    /// When this region last answered it.
    pub answered: Option<Instant>,
}

/// The receiving side of a secondary region. One stream is served at a time; a newer one ends the older, whose
/// connection may be dead without anyone having noticed yet.
#[derive(Debug)]
pub struct Inbound {
    volume: Volume,
    applied: watch::Receiver<StandbyProgress>,
    epoch: Mutex<Epoch>,
    state: Mutex<InboundState>,
    newest: Mutex<CancellationToken>,
    turn: tokio::sync::Mutex<()>,
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
    #[error("a newer connection from the primary took over")]
    Displaced,
}

impl Inbound {
    /// The receiving side of a region that stores into `volume`, has seen `epoch`, and whose standby's progress is `applied`.
    #[must_use]
    pub fn new(volume: Volume, epoch: Epoch, applied: watch::Receiver<StandbyProgress>) -> Arc<Inbound> {
        Arc::new(Inbound {
            volume,
            applied,
            epoch: Mutex::new(epoch),
            state: Mutex::default(),
            newest: Mutex::new(CancellationToken::new()),
            turn: tokio::sync::Mutex::new(()),
        })
    }

    /// How receiving goes.
    #[must_use]
    pub fn state(&self) -> InboundState {
        lock(&self.state).clone()
    }

    /// Ends the present stream, and waits until nothing of it writes any more. A stream that comes later is served.
    pub async fn interrupt(&self) {
        lock(&self.newest).cancel();
        drop(self.turn.lock().await);
    }

    /// Takes what another survivor sends on `stream`, up to its end; an epoch that is over is not looked at, as redo that
    /// was durable under it is what is gathered. It ends as a stream does when another comes, or at [`Inbound::interrupt`]; it does
    /// not begin unless it is `wanted` then.
    ///
    /// # Errors
    /// Why not all of it was taken.
    pub async fn gather(&self, stream: Stream, wanted: impl Fn() -> bool) -> Result<(), String> {
        let cancel = CancellationToken::new();
        std::mem::replace(&mut *lock(&self.newest), cancel.clone()).cancel();
        let _turn = self.turn.lock().await;
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
        let taken = tokio::select! {
            () = cancel.cancelled() => SessionEnd::Displaced,
            end = session.take_redo(receiver) => end,
        };
        match taken {
            SessionEnd::Transport(TransportError::Finished) => {
                self.volume.settle().await.map_err(|e| e.to_string())
            }
            other => Err(other.to_string()),
        }
    }

    /// Serves a stream that a primary opened, until it ends. `system_id` is this region's PostgreSQL; none when the
    /// region has none that it can go on with. It `can_rewind` what it has.
    pub async fn serve(
        &self,
        open: ReplicateOpen,
        mut stream: Stream,
        system_id: Option<SystemId>,
        can_rewind: bool,
    ) {
        let cancel = CancellationToken::new();
        std::mem::replace(&mut *lock(&self.newest), cancel.clone()).cancel();
        let _turn = self.turn.lock().await;
        let ready = match self.ready(&open, system_id).await {
            Ok(ready) => ReplicateReady { can_rewind, ..ready },
            Err(e) => ReplicateReady {
                refusal: Some(Refusal::new(Kind::Failed, e.to_string())),
                ..Default::default()
            },
        };
        let goes_on = ready.refusal.is_none() && !ready.needs_seed;
        if let Some(refusal) = &ready.refusal {
            tracing::warn!("refused the primary's redo: {}", refusal.reason);
        }
        if stream.send(&ready).await.is_err() || !goes_on {
            stream.finish().await;
            return;
        }
        self.set_state(true, String::new());
        tracing::info!("receiving redo from {}", Lsn(ready.durable_lsn));
        let (sender, receiver) = stream.split();
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
        let end = tokio::select! {
            () = cancel.cancelled() => SessionEnd::Displaced,
            end = session.run(sender, receiver) => end,
        };
        tracing::warn!("no longer receiving redo: {end}");
        self.set_state(false, end.to_string());
    }

    /// What to answer a primary that wants to send redo.
    async fn ready(
        &self,
        open: &ReplicateOpen,
        system_id: Option<SystemId>,
    ) -> Result<ReplicateReady, VolumeError> {
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
        let Some(system_id) = system_id else {
            return Ok(ReplicateReady { needs_seed: true, ..Default::default() });
        };
        if SystemId(open.system_id) != system_id {
            let reason = format!(
                "the primary's PostgreSQL has system identifier {}, and the data here is of {system_id}: another \
                 cluster's data. Remove this region's directory to have it seeded anew",
                open.system_id
            );
            return refuse(Kind::OtherSystem, reason);
        }
        // Redo of an earlier stream may still be on its way to the disk.
        self.volume.settle().await?;
        *lock(&self.epoch) = Epoch(open.epoch);
        let bounds = self.volume.bounds();
        let (timeline, durable_lsn) = (bounds.timeline.0, bounds.durable_lsn.0);
        Ok(ReplicateReady { timeline, durable_lsn, ..ReplicateReady::default() })
    }

    fn set_state(&self, streaming: bool, detail: String) {
        let state = &mut *lock(&self.state);
        (state.streaming, state.detail) = (streaming, detail);
    }
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
    /// The end of the redo received, and the newest heartbeat's time.
    received: watch::Sender<(Lsn, i64)>,
}

/// Batches of a record that is larger than a batch. They are stored once all of it is here: what a region has durable is whole records, as
/// nobody could finish one whose writer is lost. They are held in memory, as PostgreSQL holds a record that it reads.
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
    async fn run(mut self, mut sender: StreamSender, receiver: StreamReceiver) -> SessionEnd {
        let (received, inbound) = (self.received.subscribe(), self.inbound);
        let end = tokio::select! {
            end = self.take_redo(receiver) => end,
            end = report_progress(inbound, received, &mut sender) => end,
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
            let body = match receiver.receive::<Downstream>(MAX_STREAM_MESSAGE_BYTES).await {
                Ok(Some(message)) => message.body,
                Ok(None) => return TransportError::Finished.into(),
                Err(e) => return e.into(),
            };
            let taken = match body {
                Some(downstream::Body::Batch(batch)) => self.take_batch(batch).await,
                Some(downstream::Body::Timeline(file)) => {
                    self.take_history(file.timeline, &file.content).await
                }
                Some(downstream::Body::Heartbeat(heartbeat)) => {
                    lock(&self.inbound.state).primary_lsn = Lsn(heartbeat.durable_lsn);
                    self.received.send_modify(|(_, clock_us)| *clock_us = heartbeat.clock_us);
                    Ok(())
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

    async fn take_batch(&mut self, message: proto::messages::Batch) -> Result<(), SessionEnd> {
        let batch =
            Batch::from_message(message).map_err(|e| SessionEnd::Refused(Kind::Failed, e.to_string()))?;
        match self.receiver.batch(&batch) {
            Verdict::Take => {}
            Verdict::Duplicate => return Ok(()),
            Verdict::Refuse(kind, reason) => return Err(SessionEnd::Refused(kind, reason)),
        }
        let decoder = match &mut self.decoder {
            Some(decoder) => decoder,
            none => none.insert(decoder_at(&self.inbound.volume, &batch).await?),
        };
        let redo = decoder.open(batch)?;
        lock(&self.inbound.state).redo_bytes += redo.batch.redo_bytes();
        for redo in self.held.take(redo) {
            let end_lsn = redo.batch.end_lsn;
            self.inbound.volume.append(redo).await?;
            self.received.send_modify(|(received_lsn, _)| *received_lsn = end_lsn);
        }
        Ok(())
    }
}

#[allow(clippy::disallowed_methods, reason = "a driver that notes when it answered")]
fn note_answer(inbound: &Inbound) {
    lock(&inbound.state).answered = Some(Instant::now());
}

/// A decoder that accepts `batch`: fresh, or fed with the batches of its context before it, which are in the volume.
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
    mut received: watch::Receiver<(Lsn, i64)>,
    sender: &mut StreamSender,
) -> SessionEnd {
    let mut durable = inbound.volume.watch_durable();
    let mut applied = inbound.applied.clone();
    loop {
        let (received_lsn, heartbeat_clock_us) = *received.borrow_and_update();
        let durable_now = *durable.borrow_and_update();
        let progress = Progress {
            timeline: durable_now.timeline.0,
            received_lsn: received_lsn.0,
            durable_lsn: durable_now.lsn.0,
            // A standby may have applied redo in an earlier life of the volume; never report more than is durable.
            applied_lsn: applied.borrow_and_update().applied_lsn.min(durable_now.lsn).0,
            heartbeat_clock_us,
        };
        let message = Upstream { body: Some(upstream::Body::Progress(progress)) };
        note_answer(inbound);
        if let Err(e) = sender.send(&message).await {
            return e.into();
        }
        note_answer(inbound);
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
