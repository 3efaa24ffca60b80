//! Framed messages on one bidirectional QUIC stream.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use proto::frame::{self, HEADER_BYTES};
use quinn::{RecvStream, SendStream, VarInt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

use crate::TransportError;
use crate::redundancy::{Assembly, Budget, Repair, Ring};

/// How much is read at once: an announced message takes memory only as its bytes arrive.
const READ_BYTES: usize = 64 * 1024;

/// What is held beyond a gap of a stream that takes repairs. With more, so much is waited before each further
/// packet is read, so that the stream's own window comes to hold the peer back; with twice as much, the
/// stream ends.
const BEYOND_BYTES: usize = 32 << 20;
/// See [`BEYOND_BYTES`].
const BEYOND_WAIT: Duration = Duration::from_millis(1);

/// Pieces of one message, and of what comes with it, that repairs brought: more are not told apart.
const REPAIRED_PIECES_MAX: usize = 1024;

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
    connection: quinn::Connection,
    /// Bytes written so far.
    offset: u64,
    repairs: Option<Box<Repairs>>,
    /// Shows that the connection is used.
    _held: Arc<()>,
}

/// What a sender needs to send repairs.
#[derive(Debug)]
struct Repairs {
    budget: Budget,
    /// The newest bytes, while the path loses some.
    ring: Option<Ring>,
}

/// The receiving half.
#[derive(Debug)]
pub struct Receiver {
    stream: RecvStream,
    connection: quinn::Connection,
    /// What was read and not given out.
    buffer: BytesMut,
    /// Bytes of the stream before the end of `buffer`.
    offset: u64,
    repairs: Option<Box<Taking>>,
    /// See [`Sender`].
    _held: Arc<()>,
}

/// What a receiver needs to take repairs.
#[derive(Debug)]
struct Taking {
    assembly: Assembly,
    /// Where pieces that repairs brought end, of those that are in `buffer`.
    repaired: VecDeque<u64>,
    messages: u64,
}

impl Stream {
    pub(crate) fn new(
        connection: &quinn::Connection,
        held: Arc<()>,
        halves: (SendStream, RecvStream),
    ) -> Stream {
        let (connection, (sender, receiver)) = (connection.clone(), halves);
        Stream {
            sender: Sender {
                stream: sender,
                connection: connection.clone(),
                offset: 0,
                repairs: None,
                _held: held.clone(),
            },
            receiver: Receiver {
                stream: receiver,
                connection,
                buffer: BytesMut::new(),
                offset: 0,
                repairs: None,
                _held: held,
            },
        }
    }

    /// The two halves.
    #[must_use]
    pub fn split(self) -> (Sender, Receiver) {
        (self.sender, self.receiver)
    }

    /// What comes from here on as bytes that are no messages, both ways.
    pub fn into_bytes(self) -> impl AsyncRead + AsyncWrite + Send {
        let Receiver { stream, buffer, .. } = self.receiver;
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

    /// See [`Sender::begin_repairs`].
    pub fn begin_repairs(&mut self) {
        self.sender.begin_repairs();
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
        let (offset, bytes) = (self.offset, frames.clone());
        self.stream.write_chunk(frames).await.map_err(|e| TransportError::Lost(e.to_string()))?;
        self.offset += bytes.len() as u64;
        if let Some(repairs) = &mut self.repairs {
            match (&mut repairs.ring, repairs.budget.is_on()) {
                (Some(ring), true) => ring.put(offset, &bytes),
                (none @ None, true) => none.insert(Ring::new(offset)).put(offset, &bytes),
                (ring, false) => *ring = None,
            }
            repairs.budget.written(runtime::clock::steady_us(), bytes.len() as u64);
        }
        Ok(())
    }

    /// From here on repairs can be sent beside the stream, which the peer has said that it takes. No other
    /// stream of the connection may do so.
    pub fn begin_repairs(&mut self) {
        let offset = self.offset;
        self.repairs.get_or_insert_with(|| Box::new(Repairs { budget: Budget::new(offset), ring: None }));
    }

    /// When [`Sender::send_repairs`] will have something to send if nothing more is written, on
    /// [`runtime::clock::steady_us`].
    #[must_use]
    pub fn repairs_wake_us(&self) -> Option<u64> {
        self.repairs.as_ref()?.budget.wake_us()
    }

    /// Sends the repairs that are due; returns their bytes. To be called before each write, and when
    /// [`Sender::repairs_wake_us`] says.
    pub fn send_repairs(&mut self) -> u64 {
        let Some(Repairs { budget, ring: Some(ring) }) = self.repairs.as_deref_mut() else { return 0 };
        let (now_us, mut bytes) = (runtime::clock::steady_us(), 0);
        while let Some(due) = budget.due(now_us) {
            // A peer without datagrams would have said that it takes no repairs.
            let Some(most) = self.connection.max_datagram_size() else { continue };
            for repair in Repair::compute(ring, due.key, due.cell, due.window, most) {
                let datagram = repair.encode();
                bytes += datagram.len() as u64;
                // One that does not fit any more, as the path has changed, is a repair lost.
                let _ = self.connection.send_datagram(datagram);
            }
        }
        bytes
    }

    /// The connection has sent so many packets, and lost so many of them: by that it is known how much
    /// redundancy there is to be.
    pub fn note_path(&mut self, sent_packets: u64, lost_packets: u64) {
        if let Some(repairs) = &mut self.repairs {
            repairs.budget.path(runtime::clock::steady_us(), sent_packets, lost_packets);
        }
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
    /// From here on repairs are taken, which the peer was told. No other stream of the connection may do so.
    pub fn take_repairs(&mut self) {
        let offset = self.offset;
        let (assembly, repaired) = (Assembly::new(offset), VecDeque::new());
        self.repairs.get_or_insert_with(|| Box::new(Taking { assembly, repaired, messages: 0 }));
    }

    /// Messages that came earlier by repairs than by the stream.
    #[must_use]
    pub fn repaired_messages(&self) -> u64 {
        self.repairs.as_ref().map_or(0, |taking| taking.messages)
    }

    /// Repairs that did not fit together with the stream, and were passed over.
    #[must_use]
    pub fn refuted_repairs(&self) -> u64 {
        self.repairs.as_ref().map_or(0, |taking| taking.assembly.refuted())
    }

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
                    self.count_repaired();
                    return frame::decode(body).map(Some).map_err(|e| self.refuse(e.into()));
                }
            }
            match self.more().await? {
                true => {}
                false if self.buffer.is_empty() => return Ok(None),
                false => return Err(TransportError::Lost("it ended in the middle of a message".into())),
            }
        }
    }

    /// Waits for more of the stream, which comes into the buffer; false at its end. Cancel safe.
    async fn more(&mut self) -> Result<bool, TransportError> {
        let lost = |e: quinn::ReadError| TransportError::Lost(e.to_string());
        let Some(taking) = &mut self.repairs else {
            let chunk = self.stream.read_chunk(READ_BYTES, true).await.map_err(lost)?;
            let Some(chunk) = chunk else { return Ok(false) };
            self.offset = chunk.offset + chunk.bytes.len() as u64;
            self.buffer.extend_from_slice(&chunk.bytes);
            return Ok(true);
        };
        loop {
            let mut any = false;
            while let Some((bytes, repaired)) = taking.assembly.take() {
                any = true;
                self.offset += bytes.len() as u64;
                self.buffer.extend_from_slice(&bytes);
                if repaired && taking.repaired.len() < REPAIRED_PIECES_MAX {
                    taking.repaired.push_back(self.offset);
                }
            }
            if any {
                return Ok(true);
            }
            match taking.assembly.beyond_bytes() {
                beyond if beyond > 2 * BEYOND_BYTES => {
                    let reason = format!("{beyond} bytes came beyond a gap in the stream");
                    return Err(TransportError::Lost(reason));
                }
                beyond if beyond > BEYOND_BYTES => tokio::time::sleep(BEYOND_WAIT).await,
                _ => {}
            }
            tokio::select! {
                biased;
                chunk = self.stream.read_chunk(READ_BYTES, false) => match chunk.map_err(lost)? {
                    Some(chunk) => taking.assembly.chunk(chunk.offset, chunk.bytes),
                    None => return Ok(false),
                },
                datagram = self.connection.read_datagram() => {
                    let datagram = datagram.map_err(|e| TransportError::Lost(e.to_string()))?;
                    if let Some(repair) = Repair::decode(datagram) {
                        taking.assembly.repair(repair);
                    }
                }
            }
        }
    }

    /// A message was taken out of the buffer: counts it if repairs brought some of it.
    fn count_repaired(&mut self) {
        let Some(taking) = &mut self.repairs else { return };
        let end = self.offset - self.buffer.len() as u64;
        let (mut any, begins) = (false, |piece: &u64| *piece <= end);
        while taking.repaired.front().is_some_and(begins) {
            taking.repaired.pop_front();
            any = true;
        }
        taking.messages += u64::from(any);
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
        Ok(if self.more().await? { Some(self.buffer.split().freeze()) } else { None })
    }

    fn refuse(&mut self, error: TransportError) -> TransportError {
        // Nothing more is taken from a peer that breaks the protocol.
        let _ = self.stream.stop(VarInt::from_u32(1));
        error
    }
}
