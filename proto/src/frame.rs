//! Messages on a stream: four bytes of length, most significant first, then the message.

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;

/// The bytes of the length before each message.
pub const HEADER_BYTES: usize = 4;

/// A frame that cannot be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The announced length is beyond the stream's limit; nothing was allocated for it.
    #[error("a message of {announced} bytes was announced; at most {max} are taken here")]
    TooLarge {
        /// What the header says.
        announced: usize,
        /// The limit.
        max: usize,
    },
    /// The bytes are not the expected message.
    #[error("a message does not decode: {0}")]
    Malformed(String),
}

/// Appends `message` to `out` as a frame.
pub fn encode<M: Message>(message: &M, out: &mut BytesMut) {
    let length = message.encoded_len();
    out.reserve(HEADER_BYTES + length);
    // Every message is built within the limits of `messages`, far below 32 bits.
    out.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    message.encode_raw(out);
}

/// The length that a header announces.
///
/// # Errors
/// When it is beyond `max_bytes`.
pub fn length(header: [u8; HEADER_BYTES], max_bytes: usize) -> Result<usize, FrameError> {
    let announced = u32::from_be_bytes(header) as usize;
    if announced > max_bytes {
        Err(FrameError::TooLarge { announced, max: max_bytes })
    } else {
        Ok(announced)
    }
}

/// The message in a frame's body.
///
/// # Errors
/// When the bytes are not such a message.
pub fn decode<M: Message + Default>(body: Bytes) -> Result<M, FrameError> {
    M::decode(body).map_err(|e| FrameError::Malformed(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::messages::{Downstream, Heartbeat, Open, Upstream, downstream};
    use proptest::prelude::*;

    #[test]
    fn round_trips() {
        let sent = Downstream {
            body: Some(downstream::Body::Heartbeat(Heartbeat { number: 5, durable_lsn: 7 })),
            trace: None,
        };
        let mut wire = BytesMut::new();
        encode(&sent, &mut wire);
        let header: [u8; 4] = wire[..4].try_into().unwrap();
        assert_eq!(length(header, 100).unwrap(), wire.len() - 4);
        assert_eq!(decode::<Downstream>(wire.freeze().slice(4..)).unwrap(), sent);
    }

    #[test]
    fn an_oversized_announcement_is_refused_before_anything_is_read() {
        assert_eq!(length([0xFF; 4], 10), Err(FrameError::TooLarge { announced: 0xFFFF_FFFF, max: 10 }));
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode::<Downstream>(bytes.clone().into());
            let _ = decode::<Upstream>(bytes.clone().into());
            let _ = decode::<Open>(bytes.into());
        }
    }
}
