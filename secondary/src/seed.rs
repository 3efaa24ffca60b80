//! Receives a base backup from the primary region and unpacks it beside the data directory.

use std::io::Write;

use bytes::Bytes;
use postgres::backup::seed::{Seed, Unpacked};
use postgres::instance::InstanceError;
use proto::Lsn;
use proto::messages::{MAX_STREAM_MESSAGE_BYTES, SeedChunk, SeedSame, seed_chunk};
use transport::{Stream, TransportError};

/// How much decompressed backup goes to the disk at once.
const PIECE_BYTES: usize = 256 * 1024;

/// How much is decompressed at once. zstd makes at most 128 KiB of four bytes, so this is at most 16 MiB in
/// memory, however the chunk was made.
pub(crate) const COMPRESSED_BYTES: usize = 512;

/// The largest window a seed's compression may ask for, as a power of two: what the sender's level uses.
const WINDOW_LOG: u32 = 21;

/// Why a seed did not arrive.
#[derive(Debug, thiserror::Error)]
pub enum SeedError {
    /// The connection failed.
    #[error("receiving the seed: {0}")]
    Transport(#[from] TransportError),
    /// It cannot be unpacked.
    #[error("unpacking the seed: {0}")]
    Unpack(#[from] InstanceError),
    /// It is not what was sent.
    #[error("the seed is damaged: {0}")]
    Damaged(String),
    /// The primary does not go on.
    #[error("{0}")]
    Refused(String),
    /// A socket on this machine.
    #[error("pg_rewind's connection: {0}")]
    Socket(#[from] std::io::Error),
}

/// Tells the sender what is there already, which it then leaves out.
///
/// # Errors
/// When the connection fails.
pub async fn tell_inventory(stream: &mut Stream, seed: &Seed) -> Result<(), SeedError> {
    let inventory = seed.inventory();
    for message in inventory.messages() {
        stream.send(&message).await?;
    }
    Ok(())
}

/// Takes all chunks of a seed into `seed`; says where the backup becomes consistent.
///
/// # Errors
/// When the connection fails, the disk fails, or what came is not what was sent.
pub async fn receive(stream: &mut Stream, mut seed: Seed) -> Result<(Unpacked, Lsn), SeedError> {
    let mut decoder = Decoder::new()?;
    let mut kept_bytes = 0;
    loop {
        let chunk: Option<SeedChunk> = stream.receive(MAX_STREAM_MESSAGE_BYTES).await?;
        match chunk.ok_or(TransportError::Finished)?.body {
            Some(seed_chunk::Body::Data(data)) => {
                for compressed in data.chunks(COMPRESSED_BYTES) {
                    decoder.feed(compressed)?;
                    for piece in decoder.take() {
                        seed.write(piece).await?;
                    }
                }
            }
            Some(seed_chunk::Body::End(end)) => {
                let bytes = decoder.bytes.saturating_add(kept_bytes);
                if bytes != end.total_bytes {
                    let what = format!("{bytes} bytes came of {} that were sent", end.total_bytes);
                    return Err(SeedError::Damaged(what));
                }
                return Ok((seed.finish().await?, Lsn(end.end_lsn)));
            }
            Some(seed_chunk::Body::Same(SeedSame { bytes, digest })) => {
                let digest = digest[..].try_into();
                let digest = digest.map_err(|_| SeedError::Damaged("a digest of no such length".into()))?;
                kept_bytes = u64::saturating_add(kept_bytes, bytes);
                seed.keep(bytes, digest).await?;
            }
            Some(seed_chunk::Body::Refusal(refusal)) => return Err(SeedError::Refused(refusal.reason)),
            None => {}
        }
    }
}

/// Decompresses one zstd stream over many chunks.
pub struct Decoder {
    decoder: zstd::stream::write::Decoder<'static, Vec<u8>>,
    bytes: u64,
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decoder").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

impl Decoder {
    /// A decoder at the beginning of a stream.
    ///
    /// # Errors
    /// When zstd cannot be set up.
    pub fn new() -> Result<Decoder, SeedError> {
        let damaged = |e: std::io::Error| SeedError::Damaged(e.to_string());
        let mut decoder = zstd::stream::write::Decoder::new(Vec::new()).map_err(damaged)?;
        decoder.window_log_max(WINDOW_LOG).map_err(damaged)?;
        Ok(Decoder { decoder, bytes: 0 })
    }

    /// Decompresses what comes next. At most 512 bytes at once, so that what comes out of them stays in
    /// bounds.
    ///
    /// # Errors
    /// When it is no zstd stream, or asks for a larger window than any sender's.
    pub fn feed(&mut self, compressed: &[u8]) -> Result<(), SeedError> {
        let fed = self.decoder.write_all(compressed).and_then(|()| self.decoder.flush());
        fed.map_err(|e| SeedError::Damaged(e.to_string()))
    }

    /// What was decompressed since the last call, in pieces.
    #[must_use]
    pub fn take(&mut self) -> Vec<Bytes> {
        let whole = Bytes::from(std::mem::take(self.decoder.get_mut()));
        self.bytes += whole.len() as u64;
        (0..whole.len())
            .step_by(PIECE_BYTES)
            .map(|at| whole.slice(at..whole.len().min(at + PIECE_BYTES)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use proptest::prelude::*;

    fn decompressed(stream: &[u8]) -> Result<Vec<u8>, SeedError> {
        let (mut decoder, mut whole) = (Decoder::new()?, Vec::new());
        for compressed in stream.chunks(COMPRESSED_BYTES) {
            decoder.feed(compressed)?;
            for piece in decoder.take() {
                assert!(piece.len() <= PIECE_BYTES);
                whole.extend_from_slice(&piece);
            }
        }
        Ok(whole)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Any bytes, and a stream in which anything was changed.
        #[test]
        fn any_stream_is_decompressed_or_refused(
            bytes in proptest::collection::vec(any::<u8>(), 0..4000),
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        ) {
            let mut stream = zstd::stream::encode_all(&bytes[..], 3).unwrap();
            prop_assert_eq!(decompressed(&stream).unwrap(), bytes.clone());
            for (at, byte) in changes {
                let at = at.index(stream.len());
                stream[at] = byte;
            }
            let _ = (decompressed(&stream), decompressed(&bytes));
        }
    }

    #[test]
    fn a_bomb_is_decompressed_in_bounded_pieces() {
        let bomb = zstd::stream::encode_all(std::io::repeat(0).take(1 << 28), 3).unwrap();
        let (mut decoder, mut largest, mut bytes) = (Decoder::new().unwrap(), 0, 0);
        for compressed in bomb.chunks(COMPRESSED_BYTES) {
            decoder.feed(compressed).unwrap();
            let made: usize = decoder.take().iter().map(Bytes::len).sum();
            (largest, bytes) = (largest.max(made), bytes + made);
        }
        assert_eq!(bytes, 1 << 28);
        assert!(largest <= 17 << 20, "{largest} bytes at once");
    }
}
