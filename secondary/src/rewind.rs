//! Carries the connection of this region's pg_rewind to the primary's writer, over QUIC.

use bytes::BytesMut;
use proto::messages::{MAX_STREAM_MESSAGE_BYTES, Rewind, RewindVolume, rewind};
use proto::{Lsn, Timeline};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use transport::{Receiver, Sender, Stream, TransportError};

use crate::seed::{COMPRESSED_BYTES, Decoder, SeedError};

/// How much of pg_rewind's questions is sent at once.
const PIECE_BYTES: usize = 64 * 1024;

/// The way to the primary's writer.
#[derive(Debug)]
pub struct Tunnel {
    sender: Sender,
    receiver: Receiver,
}

impl Tunnel {
    /// Over `stream`, which a primary has opened for this.
    #[must_use]
    pub fn new(stream: Stream) -> Tunnel {
        let (sender, receiver) = stream.split();
        Tunnel { sender, receiver }
    }

    /// Carries the one connection that comes to `listener`, until it ends.
    ///
    /// # Errors
    /// When the primary is lost or does not go on, or the socket fails. The connection is closed in any case.
    pub async fn carry(&mut self, listener: UnixListener) -> Result<(), SeedError> {
        let (socket, _) = listener.accept().await?;
        drop(listener);
        let (mut from_rewind, mut to_rewind) = socket.into_split();
        let asks = async {
            loop {
                let mut asked = BytesMut::with_capacity(PIECE_BYTES);
                if from_rewind.read_buf(&mut asked).await? == 0 {
                    return Ok(());
                }
                self.sender.send(&Rewind { body: Some(rewind::Body::Data(asked.freeze())) }).await?;
            }
        };
        let answers = async {
            let mut decoder = Decoder::new()?;
            loop {
                if let rewind::Body::Data(answer) = next(&mut self.receiver).await? {
                    for compressed in answer.chunks(COMPRESSED_BYTES) {
                        decoder.feed(compressed)?;
                        for piece in decoder.take() {
                            to_rewind.write_all(&piece).await?;
                        }
                    }
                }
            }
        };
        tokio::select! {
            ended = asks => ended,
            ended = answers => ended,
        }
    }

    /// Says where the rewound data need redo from; returns where the region's volume begins, and on which
    /// timeline.
    ///
    /// # Errors
    /// When the primary is lost or does not go on.
    pub async fn rewound(&mut self, lsn: Lsn) -> Result<(Lsn, Timeline), SeedError> {
        self.sender.send(&Rewind { body: Some(rewind::Body::RewoundLsn(lsn.0)) }).await?;
        loop {
            // The last words of the writer's connection may still come.
            if let rewind::Body::Volume(RewindVolume { begin_lsn, timeline }) =
                next(&mut self.receiver).await?
            {
                return Ok((Lsn(begin_lsn), Timeline(timeline)));
            }
        }
    }

    /// The end: the data are in place, or why not.
    pub async fn finish(mut self, refusal: Option<proto::messages::Refusal>) {
        if let Some(refusal) = refusal {
            let _ = self.sender.send(&Rewind { body: Some(rewind::Body::Refusal(refusal)) }).await;
        }
        self.sender.finish().await;
    }
}

async fn next(receiver: &mut Receiver) -> Result<rewind::Body, SeedError> {
    loop {
        let message: Option<Rewind> = receiver.receive(MAX_STREAM_MESSAGE_BYTES).await?;
        match message.ok_or(TransportError::Finished)?.body {
            Some(rewind::Body::Refusal(refusal)) => return Err(SeedError::Refused(refusal.reason)),
            Some(body) => return Ok(body),
            // A newer version's message: nothing this one waits for.
            None => {}
        }
    }
}
