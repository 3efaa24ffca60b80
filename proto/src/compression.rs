//! Compression with context: batches of a few kilobytes, each compressed against the redo before it.
//!
//! The batches of one *context* are the consecutive flushes of one zstd frame. A small batch then compresses
//! as well as a large one, because the frame's window holds the redo before it; and nothing is indexed twice,
//! as it would be with a prefix loaded anew for each batch. A context spans at most [`MAX_CONTEXT_BYTES`], so
//! a reader that wants any LSN decodes at most that much before it.

use bytes::Bytes;
use zstd::stream::raw::{CParameter, DParameter, Decoder, Encoder, InBuffer, Operation, OutBuffer};

use crate::batch::{Batch, MAX_CONTEXT_BYTES, MAX_PAYLOAD_BYTES, MAX_REDO_BYTES};
use crate::{Lsn, Redo};

/// Base two logarithm of the window in bytes. A decoder refuses frames that ask for more.
const WINDOW_LOG: u32 = 21;

/// Why redo could not be compressed, or a batch not decompressed.
#[derive(Debug, thiserror::Error)]
pub enum CompressionError {
    /// The library failed; only lack of memory should.
    #[error("zstd: {0}")]
    Zstd(#[from] std::io::Error),
    /// The caller gave no redo, or more than a batch may hold.
    #[error("{0} bytes of redo do not make a batch: from 1 to {MAX_REDO_BYTES} do")]
    Size(usize),
    /// A batch came that does not continue the context that the decoder holds.
    #[error("batch at {begin_lsn} needs the redo from {context_lsn} before it; the decoder is at {at_lsn}")]
    Context {
        /// The batch's beginning.
        begin_lsn: Lsn,
        /// Its context's beginning.
        context_lsn: Lsn,
        /// Where the decoder is.
        at_lsn: Lsn,
    },
    /// The payload does not decode to the redo that the batch announces.
    #[error("batch at {begin_lsn} is damaged: {what}")]
    Damaged {
        /// The batch's beginning.
        begin_lsn: Lsn,
        /// What is wrong with it.
        what: String,
    },
}

/// Redo after compression, and where its context begins.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Compressed {
    /// Where the context begins; equal to the redo's own beginning when it begins one.
    pub context_lsn: Lsn,
    /// CRC-32C of the redo.
    pub redo_crc32c: u32,
    /// The compressed bytes.
    pub payload: Bytes,
}

/// Compresses consecutive redo, starting a new context whenever one is full or the redo does not follow.
pub struct Compressor {
    encoder: Encoder<'static>,
    context_lsn: Lsn,
    end_lsn: Lsn,
    buffer: Vec<u8>,
}

impl std::fmt::Debug for Compressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Compressor")
            .field("context_lsn", &self.context_lsn)
            .field("end_lsn", &self.end_lsn)
            .finish()
    }
}

impl Compressor {
    /// A compressor at zstd's `level`.
    ///
    /// # Errors
    /// When zstd cannot be set up.
    pub fn new(level: i32) -> Result<Compressor, CompressionError> {
        let mut encoder = Encoder::new(level)?;
        encoder.set_parameter(CParameter::WindowLog(WINDOW_LOG))?;
        encoder.set_parameter(CParameter::ChecksumFlag(false))?;
        Ok(Compressor { encoder, context_lsn: Lsn::ZERO, end_lsn: Lsn::ZERO, buffer: Vec::new() })
    }

    /// Makes the next redo begin a context: after a gap, or for a new timeline or epoch.
    pub fn end_context(&mut self) {
        self.end_lsn = Lsn::ZERO;
    }

    /// Compresses `redo`, which begins at `begin_lsn`.
    ///
    /// # Errors
    /// When `redo` is empty or larger than [`MAX_REDO_BYTES`], or zstd fails.
    pub fn compress(&mut self, begin_lsn: Lsn, redo: &[u8]) -> Result<Compressed, CompressionError> {
        if redo.is_empty() || redo.len() > MAX_REDO_BYTES {
            return Err(CompressionError::Size(redo.len()));
        }
        let end_lsn = begin_lsn + redo.len() as u64;
        let full = end_lsn.bytes_since(self.context_lsn) > MAX_CONTEXT_BYTES;
        if self.end_lsn == Lsn::ZERO || self.end_lsn != begin_lsn || full {
            self.encoder.reinit()?;
            self.context_lsn = begin_lsn;
        }
        // Should anything below fail, the next redo begins a context.
        self.end_lsn = Lsn::ZERO;
        self.buffer.resize(MAX_PAYLOAD_BYTES, 0);
        let mut output = OutBuffer::around(&mut self.buffer[..]);
        let mut input = InBuffer::around(redo);
        while input.pos < redo.len() {
            let before = (input.pos, output.pos());
            self.encoder.run(&mut input, &mut output)?;
            if before == (input.pos, output.pos()) {
                return Err(CompressionError::Size(redo.len()));
            }
        }
        while self.encoder.flush(&mut output)? > 0 {
            if output.pos() == MAX_PAYLOAD_BYTES {
                return Err(CompressionError::Size(redo.len()));
            }
        }
        let payload = Bytes::copy_from_slice(output.as_slice());
        self.end_lsn = end_lsn;
        Ok(Compressed { context_lsn: self.context_lsn, redo_crc32c: crc32c::crc32c(redo), payload })
    }
}

/// Decompresses batches in order, verifying each against its checksum.
pub struct Decompressor {
    decoder: Decoder<'static>,
    context_lsn: Lsn,
    end_lsn: Lsn,
}

impl std::fmt::Debug for Decompressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decompressor")
            .field("context_lsn", &self.context_lsn)
            .field("end_lsn", &self.end_lsn)
            .finish()
    }
}

impl Decompressor {
    /// A decoder that waits for a batch that begins a context.
    ///
    /// # Errors
    /// When zstd cannot be set up.
    pub fn new() -> Result<Decompressor, CompressionError> {
        let mut decoder = Decoder::new()?;
        decoder.set_parameter(DParameter::WindowLogMax(WINDOW_LOG))?;
        Ok(Decompressor { decoder, context_lsn: Lsn::ZERO, end_lsn: Lsn::ZERO })
    }

    /// Whether `batch` can be decompressed now: it begins a context, or continues the one at hand.
    #[must_use]
    pub fn accepts(&self, batch: &Batch) -> bool {
        batch.begins_context() || (batch.context_lsn == self.context_lsn && batch.begin_lsn == self.end_lsn)
    }

    /// The redo of `batch`, verified. Allocates no more than the batch's own, limited, size.
    ///
    /// # Errors
    /// When the batch does not continue the context at hand, or is damaged. After damage, only a batch that
    /// begins a context is accepted.
    pub fn decompress(&mut self, batch: &Batch) -> Result<Bytes, CompressionError> {
        let begin_lsn = batch.begin_lsn;
        if !self.accepts(batch) {
            let context_lsn = batch.context_lsn;
            return Err(CompressionError::Context { begin_lsn, context_lsn, at_lsn: self.end_lsn });
        }
        if batch.begins_context() {
            self.decoder.reinit()?;
            self.context_lsn = begin_lsn;
        }
        self.end_lsn = Lsn::ZERO;
        let damaged = |what: String| CompressionError::Damaged { begin_lsn, what };
        let expected = usize::try_from(batch.redo_bytes()).unwrap_or(usize::MAX);
        if expected > MAX_REDO_BYTES {
            return Err(CompressionError::Size(expected));
        }
        // One byte of room beyond what is announced tells a bomb from a batch.
        let mut redo = vec![0; expected + 1];
        let mut output = OutBuffer::around(&mut redo[..]);
        let mut input = InBuffer::around(&batch.payload);
        loop {
            let before = (input.pos, output.pos());
            self.decoder.run(&mut input, &mut output).map_err(|e| damaged(e.to_string()))?;
            if output.pos() > expected {
                return Err(damaged(format!("it holds more than the {expected} bytes it announces")));
            }
            if before == (input.pos, output.pos()) {
                break;
            }
        }
        let produced = output.pos();
        if input.pos < batch.payload.len() || produced < expected {
            return Err(damaged(format!("it holds {produced} of the {expected} bytes it announces")));
        }
        redo.truncate(expected);
        let crc = crc32c::crc32c(&redo);
        if crc != batch.redo_crc32c {
            return Err(damaged(format!("checksum {crc:08x} where {:08x} was announced", batch.redo_crc32c)));
        }
        self.end_lsn = batch.end_lsn;
        Ok(redo.into())
    }

    /// As [`Decompressor::decompress`], keeping the batch beside its redo.
    ///
    /// # Errors
    /// As [`Decompressor::decompress`].
    pub fn open(&mut self, batch: Batch) -> Result<Redo, CompressionError> {
        let bytes = self.decompress(&batch)?;
        Ok(Redo { batch, bytes })
    }
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "making noise from wide integers")]
mod tests {
    use super::*;
    use crate::{Epoch, Timeline};
    use proptest::prelude::*;

    /// Redo-like bytes: repetitive, with a little that changes.
    fn redo(length: usize, seed: u64) -> Vec<u8> {
        (0..length as u64)
            .map(|i| if i % 16 < 3 { ((i ^ seed).wrapping_mul(2_654_435_761) >> 7) as u8 } else { 7 })
            .collect()
    }

    fn batches(pieces: &[Vec<u8>]) -> Vec<Batch> {
        let mut compressor = Compressor::new(1).unwrap();
        let mut begin_lsn = Lsn(0x100_0000);
        let mut made = Vec::new();
        for piece in pieces {
            let Compressed { context_lsn, redo_crc32c, payload } =
                compressor.compress(begin_lsn, piece).unwrap();
            let end_lsn = begin_lsn + piece.len() as u64;
            made.push(Batch {
                epoch: Epoch(1),
                timeline: Timeline(1),
                begin_lsn,
                end_lsn,
                context_lsn,
                newest_commit_us: 0,
                redo_crc32c,
                payload,
                ends_in_record: false,
            });
            begin_lsn = end_lsn;
        }
        made
    }

    #[test]
    fn small_batches_compress_against_what_came_before() {
        let piece = redo(8192, 1);
        let made = batches(&[piece.clone(), piece]);
        assert!(made[1].payload.len() * 20 < made[0].payload.len(), "the second is a repetition");
        assert!(!made[1].begins_context());
    }

    #[test]
    fn a_context_ends_at_its_limit_and_the_next_decodes_alone() {
        let made = batches(&vec![redo(MAX_REDO_BYTES, 3); 6]);
        let begins: Vec<bool> = made.iter().map(Batch::begins_context).collect();
        assert_eq!(begins, [true, false, false, false, true, false]);
        let mut decoder = Decompressor::new().unwrap();
        assert!(matches!(decoder.decompress(&made[1]), Err(CompressionError::Context { .. })));
        assert_eq!(decoder.decompress(&made[4]).unwrap(), redo(MAX_REDO_BYTES, 3));
    }

    #[test]
    fn incompressible_redo_of_the_largest_size_fits() {
        let noise: Vec<u8> = (0..MAX_REDO_BYTES as u64)
            .map(|i| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 33).wrapping_mul(i | 1) as u8)
            .collect();
        let made = batches(std::slice::from_ref(&noise));
        assert_eq!(Decompressor::new().unwrap().decompress(&made[0]).unwrap(), noise);
    }

    #[test]
    fn a_bomb_is_refused_at_its_announced_size() {
        let mut bomb = batches(&[vec![0; MAX_REDO_BYTES]]).remove(0);
        bomb.end_lsn = bomb.begin_lsn + 10;
        let refused = Decompressor::new().unwrap().decompress(&bomb).unwrap_err();
        assert!(refused.to_string().contains("more than the 10 bytes"), "{refused}");
    }

    #[test]
    fn a_flipped_bit_is_noticed_and_the_decoder_recovers_at_the_next_context() {
        let mut made = batches(&[redo(5000, 1), redo(5000, 2)]);
        let good = made[0].clone();
        let mut bytes = made[0].payload.to_vec();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x40;
        made[0].payload = bytes.into();
        let mut decoder = Decompressor::new().unwrap();
        assert!(decoder.decompress(&made[0]).is_err());
        assert!(!decoder.accepts(&made[1]));
        decoder.decompress(&good).unwrap();
        decoder.decompress(&made[1]).unwrap();
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn whatever_is_compressed_comes_back(sizes in proptest::collection::vec(1usize..30_000, 1..30), seed: u64) {
            let pieces: Vec<Vec<u8>> = sizes.iter().enumerate().map(|(i, s)| redo(*s, seed ^ i as u64)).collect();
            let mut decoder = Decompressor::new().unwrap();
            for (batch, piece) in batches(&pieces).iter().zip(&pieces) {
                prop_assert_eq!(&decoder.decompress(batch).unwrap(), piece);
            }
        }

        #[test]
        fn any_payload_decodes_or_is_refused(payload in proptest::collection::vec(any::<u8>(), 1..2000), size in 1u64..100_000) {
            let mut batch = batches(&[redo(10, 1)]).remove(0);
            batch.payload = payload.into();
            batch.end_lsn = batch.begin_lsn + size;
            let _ = Decompressor::new().unwrap().decompress(&batch);
        }
    }
}
