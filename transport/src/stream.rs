//! Framed messages on one bidirectional QUIC stream.

use bytes::{Buf, Bytes, BytesMut};
use proto::frame::{self, HEADER_BYTES};
use quinn::{RecvStream, SendStream, VarInt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

use crate::TransportError;

/// How much is read at once: an announced message takes memory only as its bytes arrive.
const READ_BYTES: usize = 64 * 1024;

/// Both halves of a stream.
#[derive(Debug)]
pub struct Stream {
    sender: Sender,
    receiver: Receiver,
}

/// The sending half.
#[derive(Debug)]
pub struct Sender {
    stream: SendStream,
}

/// The receiving half.
#[derive(Debug)]
pub struct Receiver {
    stream: RecvStream,
    buffer: BytesMut,
}

impl Stream {
    pub(crate) fn new((sender, receiver): (SendStream, RecvStream)) -> Stream {
        Stream {
            sender: Sender { stream: sender },
            receiver: Receiver { stream: receiver, buffer: BytesMut::new() },
        }
    }

    /// The two halves.
    #[must_use]
    pub fn split(self) -> (Sender, Receiver) {
        (self.sender, self.receiver)
    }

    /// What comes from here on as bytes that are no messages, both ways.
    pub fn into_bytes(self) -> impl AsyncRead + AsyncWrite + Send {
        let Receiver { stream, buffer } = self.receiver;
        // What of them came with the last message.
        let incoming = AsyncReadExt::chain(std::io::Cursor::new(buffer.freeze()), stream);
        tokio::io::join(incoming, self.sender.stream)
    }

    /// See [`Sender::send`].
    ///
    /// # Errors
    /// When the connection is lost or the peer stopped the stream.
    pub async fn send<M: prost::Message>(&mut self, message: &M) -> Result<(), TransportError> {
        self.sender.send(message).await
    }

    /// See [`Sender::finish`].
    pub async fn finish(&mut self) {
        self.sender.finish().await;
    }

    /// See [`Receiver::receive`].
    ///
    /// # Errors
    /// As [`Receiver::receive`].
    pub async fn receive<M: prost::Message + Default>(
        &mut self,
        max_bytes: usize,
    ) -> Result<Option<M>, TransportError> {
        self.receiver.receive(max_bytes).await
    }
}

impl Sender {
    /// Sends one message.
    ///
    /// # Errors
    /// When the connection is lost or the peer stopped the stream.
    pub async fn send<M: prost::Message>(&mut self, message: &M) -> Result<(), TransportError> {
        let mut frames = BytesMut::new();
        frame::encode(message, &mut frames);
        self.write_frames(frames.freeze()).await
    }

    /// Sends messages that were encoded together.
    ///
    /// # Errors
    /// As [`Sender::send`].
    pub async fn write_frames(&mut self, frames: Bytes) -> Result<(), TransportError> {
        self.stream.write_chunk(frames).await.map_err(|e| TransportError::Lost(e.to_string()))
    }

    /// Sends bytes that are no message.
    ///
    /// # Errors
    /// As [`Sender::send`].
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), TransportError> {
        self.write_frames(bytes).await
    }

    /// Ends the stream with nothing that was sent being sure to arrive.
    pub fn reset(&mut self) {
        // It may have ended already.
        let _ = self.stream.reset(VarInt::from_u32(0));
    }

    /// Ends the stream, and waits until the peer has all of it or is gone.
    pub async fn finish(&mut self) {
        if self.stream.finish().is_ok() {
            let _ = self.stream.stopped().await;
        }
    }
}

impl Receiver {
    /// Waits for the next message; `None` once the peer has finished the stream. Cancel safe.
    ///
    /// # Errors
    /// When the connection is lost, or what came is no message of at most `max_bytes`; the stream is stopped
    /// then.
    pub async fn receive<M: prost::Message + Default>(
        &mut self,
        max_bytes: usize,
    ) -> Result<Option<M>, TransportError> {
        loop {
            if let Some(header) = self.buffer.first_chunk::<HEADER_BYTES>() {
                let length = match frame::length(*header, max_bytes) {
                    Ok(length) => length,
                    Err(e) => return Err(self.refuse(e.into())),
                };
                if self.buffer.len() >= HEADER_BYTES + length {
                    self.buffer.advance(HEADER_BYTES);
                    let body = self.buffer.split_to(length).freeze();
                    return frame::decode(body).map(Some).map_err(|e| self.refuse(e.into()));
                }
            }
            let chunk = self.stream.read_chunk(READ_BYTES, true).await;
            match chunk.map_err(|e| TransportError::Lost(e.to_string()))? {
                Some(chunk) => self.buffer.extend_from_slice(&chunk.bytes),
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(TransportError::Lost("it ended in the middle of a message".into())),
            }
        }
    }

    /// Waits for the next bytes, which are no message; `None` once the peer has finished the stream. Cancel
    /// safe.
    ///
    /// # Errors
    /// When the connection is lost, or the peer has ended the stream.
    pub async fn read(&mut self) -> Result<Option<Bytes>, TransportError> {
        if !self.buffer.is_empty() {
            return Ok(Some(self.buffer.split().freeze()));
        }
        let chunk = self.stream.read_chunk(READ_BYTES, true).await;
        Ok(chunk.map_err(|e| TransportError::Lost(e.to_string()))?.map(|chunk| chunk.bytes))
    }

    fn refuse(&mut self, error: TransportError) -> TransportError {
        // Nothing more is taken from a peer that breaks the protocol.
        let _ = self.stream.stop(VarInt::from_u32(1));
        error
    }
}
