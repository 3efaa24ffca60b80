//! Framing of PostgreSQL's protocol 3.0: a tag, four bytes of length that count themselves, and a body.
//!
//! Source: PostgreSQL's manual, "Message Formats". Parsing is pure; [`Channel`] moves the bytes. A length
//! beyond the channel's limit ends the connection before anything is allocated for it.

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};

/// How much is read from the socket at once.
const READ_BYTES: usize = 128 * 1024;

/// One message: its tag and body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// What kind it is.
    pub tag: u8,
    /// What follows the length.
    pub body: Bytes,
}

/// Bytes that are not PostgreSQL's protocol.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The socket failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The peer closed the connection.
    #[error("the connection was closed")]
    Closed,
    /// A length that no message here has.
    #[error("a message of {announced} bytes was announced; at most {max} are taken here")]
    Length {
        /// What was announced.
        announced: u64,
        /// The limit.
        max: usize,
    },
    /// A body that is not what its tag says.
    #[error("a malformed '{}' message", tag.escape_ascii())]
    Malformed {
        /// The message's tag.
        tag: u8,
    },
}

/// Takes one message off the front of `buffer`, if it is there whole.
///
/// # Errors
/// When its length is below four or its body would be beyond `max_bytes`.
pub fn take_message(buffer: &mut BytesMut, max_bytes: usize) -> Result<Option<Message>, WireError> {
    let Some(header) = buffer.first_chunk::<5>() else { return Ok(None) };
    let [tag, length @ ..] = *header;
    let body = body_bytes(u32::from_be_bytes(length), max_bytes)?;
    if buffer.len() < 5 + body {
        return Ok(None);
    }
    buffer.advance(5);
    Ok(Some(Message { tag, body: buffer.split_to(body).freeze() }))
}

/// Takes the untagged first packet of a client off the front of `buffer`, if it is there whole.
///
/// # Errors
/// As [`take_message`].
pub fn take_startup(buffer: &mut BytesMut, max_bytes: usize) -> Result<Option<Bytes>, WireError> {
    let Some(length) = buffer.first_chunk::<4>() else { return Ok(None) };
    let body = body_bytes(u32::from_be_bytes(*length), max_bytes)?;
    if buffer.len() < 4 + body {
        return Ok(None);
    }
    buffer.advance(4);
    Ok(Some(buffer.split_to(body).freeze()))
}

fn body_bytes(length: u32, max: usize) -> Result<usize, WireError> {
    match (length as usize).checked_sub(4) {
        Some(body) if body <= max => Ok(body),
        _ => Err(WireError::Length { announced: length.into(), max }),
    }
}

/// Appends a message whose body `fill` writes.
pub fn put_message(out: &mut BytesMut, tag: u8, fill: impl FnOnce(&mut BytesMut)) {
    out.put_u8(tag);
    let at = out.len();
    out.put_u32(0);
    fill(out);
    // Every message made here is far below 4 GiB.
    let length = u32::try_from(out.len() - at).unwrap_or(u32::MAX);
    out[at..at + 4].copy_from_slice(&length.to_be_bytes());
}

/// An error as the server says it: `severity` and the SQLSTATE `code` as PostgreSQL's manual lists them.
#[must_use]
pub fn error_response(severity: &str, code: &str, message: &str) -> Bytes {
    let mut out = BytesMut::new();
    put_message(&mut out, b'E', |body| {
        for (field, text) in [(b'S', severity), (b'V', severity), (b'C', code), (b'M', message)] {
            body.put_u8(field);
            put_text(body, text);
        }
        body.put_u8(0);
    });
    out.freeze()
}

/// Appends `text` and the zero byte that ends it.
pub fn put_text(out: &mut BytesMut, text: &str) {
    out.put_slice(text.as_bytes());
    out.put_u8(0);
}

/// Takes a zero-ended text off the front of `body`.
#[must_use]
pub fn take_text(body: &mut Bytes) -> Option<String> {
    let end = body.iter().position(|b| *b == 0)?;
    let text = String::from_utf8_lossy(&body.split_to(end)).into_owned();
    body.advance(1);
    Some(text)
}

/// Microseconds between PostgreSQL's epoch, 2000-01-01, and 1970-01-01.
const POSTGRES_EPOCH_US: i64 = 946_684_800_000_000;

/// PostgreSQL's time as microseconds since 1970.
#[must_use]
pub fn from_postgres_us(us: i64) -> i64 {
    us.saturating_add(POSTGRES_EPOCH_US)
}

/// Microseconds since 1970 as PostgreSQL's time.
#[must_use]
pub fn to_postgres_us(us: i64) -> i64 {
    us.saturating_sub(POSTGRES_EPOCH_US)
}

/// The reading half of a connection.
#[derive(Debug)]
pub struct Incoming<R> {
    socket: R,
    buffer: BytesMut,
    max_bytes: usize,
}

/// The writing half of a connection.
#[derive(Debug)]
pub struct Outgoing<W> {
    socket: W,
}

/// Both halves of `stream`, taking messages of at most `max_bytes`.
pub fn channel<S: AsyncRead + AsyncWrite>(
    stream: S,
    max_bytes: usize,
) -> (Incoming<ReadHalf<S>>, Outgoing<WriteHalf<S>>) {
    let (reader, writer) = tokio::io::split(stream);
    (Incoming { socket: reader, buffer: BytesMut::new(), max_bytes }, Outgoing { socket: writer })
}

impl<R: AsyncRead + Unpin> Incoming<R> {
    /// Waits for the next message. Cancel safe.
    ///
    /// # Errors
    /// When the connection fails or ends, or a message is beyond the limit.
    pub async fn next(&mut self) -> Result<Message, WireError> {
        loop {
            if let Some(message) = self.ready()? {
                return Ok(message);
            }
            self.fill().await?;
        }
    }

    /// The next message if it has been received already; does not touch the socket.
    ///
    /// # Errors
    /// When a message is beyond the limit.
    pub fn ready(&mut self) -> Result<Option<Message>, WireError> {
        take_message(&mut self.buffer, self.max_bytes)
    }

    /// The next message if it is here or in the socket; never waits.
    ///
    /// # Errors
    /// As [`Incoming::next`].
    pub fn poll_now(&mut self) -> Result<Option<Message>, WireError> {
        if let Some(message) = self.ready()? {
            return Ok(Some(message));
        }
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let filled = std::pin::pin!(self.fill()).as_mut().poll(&mut context);
        match filled {
            std::task::Poll::Ready(result) => result.and_then(|()| self.ready()),
            std::task::Poll::Pending => Ok(None),
        }
    }

    /// Waits for a client's first, untagged packet. Cancel safe.
    ///
    /// # Errors
    /// As [`Incoming::next`].
    pub async fn startup(&mut self, max_bytes: usize) -> Result<Bytes, WireError> {
        loop {
            if let Some(packet) = take_startup(&mut self.buffer, max_bytes)? {
                return Ok(packet);
            }
            self.fill().await?;
        }
    }

    async fn fill(&mut self) -> Result<(), WireError> {
        self.buffer.reserve(READ_BYTES);
        match self.socket.read_buf(&mut self.buffer).await? {
            0 => Err(WireError::Closed),
            _ => Ok(()),
        }
    }
}

impl<W: AsyncWrite + Unpin> Outgoing<W> {
    /// Writes `bytes` and leaves it empty.
    ///
    /// # Errors
    /// When the connection fails.
    pub async fn write(&mut self, bytes: &mut BytesMut) -> Result<(), WireError> {
        self.socket.write_all_buf(bytes).await?;
        Ok(self.socket.flush().await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn messages_round_trip_and_wait_for_their_end() {
        let mut wire = BytesMut::new();
        put_message(&mut wire, b'Q', |out| put_text(out, "IDENTIFY_SYSTEM"));
        let whole = wire.clone();
        let mut part = BytesMut::from(&whole[..whole.len() - 1]);
        assert!(take_message(&mut part, 100).unwrap().is_none());
        let message = take_message(&mut wire, 100).unwrap().unwrap();
        assert_eq!(
            (message.tag, take_text(&mut message.body.clone()).as_deref()),
            (b'Q', Some("IDENTIFY_SYSTEM"))
        );
        assert!(wire.is_empty());
    }

    #[test]
    fn lengths_are_checked_before_anything_is_allocated() {
        for length in [0, 3, 105, u32::MAX] {
            let mut wire = BytesMut::from(&b"d"[..]);
            wire.put_u32(length);
            assert!(matches!(take_message(&mut wire, 100), Err(WireError::Length { .. })), "{length}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut buffer = BytesMut::from(&bytes[..]);
            while let Ok(Some(message)) = take_message(&mut buffer, 200) {
                let _ = take_text(&mut message.body.clone());
            }
            let _ = take_startup(&mut BytesMut::from(&bytes[..]), 200);
        }
    }
}
