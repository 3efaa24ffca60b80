//! A region's way to a copy that lies in a zone's own process.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use proto::messages as m;
use proto::messages::{CopyOpen, Open, PROTOCOL_VERSION, copy_open, open};
use proto::{ClusterId, Lsn, frame};
use runtime::task::Task;
use tokio::sync::mpsc::{self, error::TrySendError};
use transport::stream::{Receiver, Sender};
use transport::{Connection, Stream, TransportError};
use volume::VolumeError;
use volume::ballot::Ballot;
use volume::copy::{Answer, Contents, Link, Listener, Order, Put, Scrubbed, SegmentInfo, Stored};
use volume::quorum::CopyId;
use volume::segment::SEGMENT_BYTES_MAX;

use super::wire::{self, MAX_ANSWER_BYTES};

/// How long a copy may take to answer a question. A read-back takes as long as it takes.
const PATIENCE: Duration = Duration::from_secs(10);

/// How many bytes of orders are sent at once.
const WRITE_BYTES: usize = 64 * 1024;

/// The most orders on their way to one copy: with more it is too slow, is given up, and is filled from its
/// peers when it is back. The volume sends nothing more to a copy that is 64 MiB of redo behind, which is far
/// fewer orders unless batches are tiny.
const ORDERS_MAX: usize = 1 << 16;

/// The way to one copy, over the connection that its zone made.
#[derive(Debug)]
pub struct RemoteLink {
    copy: CopyId,
    place: String,
    connection: Connection,
    cluster_id: ClusterId,
    orders: mpsc::Sender<Order>,
    _carrying: Task<()>,
}

impl Drop for RemoteLink {
    fn drop(&mut self) {
        self.connection.close("the copy is not asked any more");
    }
}

impl RemoteLink {
    /// A link to `copy` over `connection`; `listener` hears it. When the stream of orders breaks, the
    /// connection is closed.
    pub fn start(
        copy: CopyId,
        place: String,
        connection: Connection,
        cluster_id: ClusterId,
        listener: Listener,
    ) -> Arc<RemoteLink> {
        let (orders, queue) = mpsc::channel(ORDERS_MAX);
        let open = open(copy, cluster_id, copy_open::Body::Orders(m::CopyNothing {}));
        let way = connection.clone();
        let carrying = Task::spawn("carry a copy's orders", async move {
            let result = async {
                let (sender, receiver) = way.open_stream(&open).await?.split();
                tokio::select! {
                    ended = send_orders(sender, queue) => ended,
                    ended = hear_events(receiver, &listener) => ended,
                }
            };
            if let Err(e) = result.await {
                tracing::warn!("copy {copy}: {e}");
            }
            way.close("the stream of orders ended");
        });
        Arc::new(RemoteLink { copy, place, connection, cluster_id, orders, _carrying: carrying })
    }

    fn failed(&self, e: impl ToString) -> VolumeError {
        // Not damage: the way is bad, not the copy.
        VolumeError::Unreached { copy: self.copy, what: e.to_string() }
    }

    async fn ask(&self, body: copy_open::Body) -> Result<Stream, VolumeError> {
        self.connection.open_stream(&open(self.copy, self.cluster_id, body)).await.map_err(|e| self.failed(e))
    }

    async fn receive<M: prost::Message + Default>(&self, stream: &mut Stream) -> Result<M, VolumeError> {
        let received = stream.receive::<M>(MAX_ANSWER_BYTES).await.map_err(|e| self.failed(e))?;
        received.ok_or_else(|| self.failed("it gave no answer"))
    }

    async fn in_time<T>(&self, work: impl Future<Output = Result<T, VolumeError>>) -> Result<T, VolumeError> {
        let answered = tokio::time::timeout(PATIENCE, work).await;
        answered.unwrap_or_else(|_| Err(self.failed("it gave no answer in time")))
    }

    fn check(&self, error: Option<m::CopyError>, asked_lsn: Lsn) -> Result<(), VolumeError> {
        error.map_or(Ok(()), |e| Err(wire::to_error(e, &self.place, asked_lsn)))
    }
}

impl Link for RemoteLink {
    fn order(&self, order: Order) {
        match self.orders.try_send(order) {
            // When the way is gone, so is the copy, and the volume is being told.
            Ok(()) | Err(TrySendError::Closed(_)) => {}
            Err(TrySendError::Full(_)) => {
                tracing::warn!(
                    "copy {}: it does not keep up, with {ORDERS_MAX} orders on their way; it is given up, and filled when it \
                     joins again",
                    self.copy
                );
                self.connection.close("too many orders are on their way");
            }
        }
    }

    fn place(&self) -> String {
        self.place.clone()
    }

    fn promised(&self) -> Answer<'_, Ballot> {
        Box::pin(self.in_time(async {
            let mut stream = self.ask(copy_open::Body::Promised(m::CopyNothing {})).await?;
            let found: m::CopyPromised = self.receive(&mut stream).await?;
            wire::to_ballot(found.ballot).map_err(|e| self.failed(e))
        }))
    }

    fn contents(&self) -> Answer<'_, Contents> {
        Box::pin(self.in_time(async {
            let mut stream = self.ask(copy_open::Body::Contents(m::CopyNothing {})).await?;
            let found: m::CopyContents = self.receive(&mut stream).await?;
            self.check(found.error.clone(), Lsn::ZERO)?;
            wire::to_contents(&found).map_err(|e| self.failed(e))
        }))
    }

    fn read(&self, lsn: Lsn) -> Answer<'_, Vec<Stored>> {
        Box::pin(self.in_time(async move {
            let mut stream = self.ask(copy_open::Body::Read(lsn.0)).await?;
            let mut found: m::CopyRecords = self.receive(&mut stream).await?;
            self.check(found.error.take(), lsn)?;
            wire::to_records(found).map_err(|e| self.failed(e))
        }))
    }

    fn fetch(&self, segment: SegmentInfo) -> Answer<'_, Bytes> {
        Box::pin(self.in_time(async move {
            let mut stream = self.ask(copy_open::Body::Fetch(wire::segment(segment))).await?;
            let mut bytes = BytesMut::new();
            loop {
                let chunk: m::CopyChunk = self.receive(&mut stream).await?;
                self.check(chunk.error, segment.begin_lsn)?;
                if bytes.len() + chunk.data.len() > SEGMENT_BYTES_MAX {
                    return Err(self.failed("a segment longer than any is"));
                }
                bytes.extend_from_slice(&chunk.data);
                if chunk.last {
                    return Ok(bytes.freeze());
                }
            }
        }))
    }

    fn put(&self, put: Put, bytes: Bytes) -> Answer<'_, ()> {
        Box::pin(self.in_time(async move {
            let mut stream = self.ask(copy_open::Body::Put(wire::put(put))).await?;
            for chunk in wire::chunks(&bytes) {
                stream.send(&chunk).await.map_err(|e| self.failed(e))?;
            }
            let done: m::CopyDone = self.receive(&mut stream).await?;
            self.check(done.error, put.segment.begin_lsn)
        }))
    }

    fn scrub(&self) -> Answer<'_, Scrubbed> {
        Box::pin(async {
            let mut stream = self.ask(copy_open::Body::Scrub(m::CopyNothing {})).await?;
            let mut found: m::CopyScrubbed = self.receive(&mut stream).await?;
            self.check(found.error.take(), Lsn::ZERO)?;
            Ok(wire::to_scrubbed(found))
        })
    }
}

fn open(copy: CopyId, cluster_id: ClusterId, body: copy_open::Body) -> Open {
    let copy = CopyOpen { copy: copy.to_string(), body: Some(body) };
    Open {
        protocol: PROTOCOL_VERSION,
        cluster_id: cluster_id.0.to_vec().into(),
        purpose: Some(open::Purpose::Copy(copy)),
    }
}

async fn send_orders(mut sender: Sender, mut orders: mpsc::Receiver<Order>) -> Result<(), TransportError> {
    let mut frames = BytesMut::new();
    while let Some(first) = orders.recv().await {
        frame::encode(&wire::order(first), &mut frames);
        while frames.len() < WRITE_BYTES
            && let Ok(next) = orders.try_recv()
        {
            frame::encode(&wire::order(next), &mut frames);
        }
        sender.write_frames(frames.split().freeze()).await?;
    }
    Ok(())
}

async fn hear_events(mut receiver: Receiver, listener: &Listener) -> Result<(), TransportError> {
    while let Some(message) = receiver.receive::<m::CopyEvent>(MAX_ANSWER_BYTES).await? {
        match wire::to_event(message) {
            Ok(event) => listener(event),
            Err(e) => return Err(TransportError::Lost(e)),
        }
    }
    Ok(())
}
