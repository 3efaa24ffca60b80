//! The format of a segment, as bytes: a header, then records, each a checksummed batch; then zeroes.
//!
//! docs/VOLUME.md has the tables. Everything here is pure and safe on any bytes.

use bytes::Bytes;
use proto::batch::MAX_PAYLOAD_BYTES;
use proto::sealed::{SEAL_BYTES, WRAPPED_BYTES_MAX};
use proto::{Batch, ClusterId, Lsn, SealedHead, Timeline};

use crate::key::KeyId;

/// What a segment begins with, before its version.
const MAGIC: &[u8; 7] = b"RPLREDO";

/// The version of a segment in the clear.
const CLEAR: u8 = 1;

/// The version of a segment whose records are sealed.
const SEALED: u8 = 2;

/// The bit of a record's length that says that the record is sealed.
const SEALED_BIT: u32 = 1 << 31;

/// The bytes of a segment's header.
pub const HEADER_BYTES: usize = 64;

/// The bytes before each record's batch: its length, its checksum, and how far the copy was durable when it
/// was written.
pub const RECORD_HEADER_BYTES: usize = 16;

/// The longest batch in a record.
pub const BATCH_BYTES_MAX: usize = MAX_PAYLOAD_BYTES + 256;

/// The longest sealed batch in a record, with its head.
pub const SEALED_BYTES_MAX: usize = BATCH_BYTES_MAX + SEAL_BYTES + WRAPPED_BYTES_MAX + 256;

/// The longest segment: its size is looked at where a context begins, so one context may lie beyond it.
pub const SEGMENT_BYTES_MAX: usize = 64 << 20;

/// What a segment's header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The cluster whose redo it is.
    pub cluster_id: ClusterId,
    /// Where its redo begins.
    pub begin_lsn: Lsn,
    /// The timeline at its beginning.
    pub timeline: Timeline,
    /// The region's key that all of its records are sealed with; none where all are in the clear.
    pub key: Option<KeyId>,
}

impl Header {
    /// The header as bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..7].copy_from_slice(MAGIC);
        bytes[7] = if self.key.is_some() { SEALED } else { CLEAR };
        bytes[8..24].copy_from_slice(&self.cluster_id.0);
        bytes[24..32].copy_from_slice(&self.begin_lsn.0.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.timeline.0.to_le_bytes());
        if let Some(KeyId(key)) = self.key {
            bytes[36..44].copy_from_slice(&key.to_le_bytes());
        }
        let crc = crc32c::crc32c(&bytes[..HEADER_BYTES - 4]);
        bytes[HEADER_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// The header in `bytes`; `None` when it is not one.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Header> {
        let bytes = bytes.first_chunk::<HEADER_BYTES>()?;
        let key = match Header::version(bytes)? {
            CLEAR => None,
            SEALED => Some(KeyId(u64::from_le_bytes(*bytes[36..].first_chunk()?))),
            _ => return None,
        };
        Some(Header {
            key,
            cluster_id: ClusterId(*bytes[8..].first_chunk()?),
            begin_lsn: Lsn(u64::from_le_bytes(*bytes[24..].first_chunk()?)),
            timeline: Timeline(u32::from_le_bytes(*bytes[32..].first_chunk()?)),
        })
    }

    /// The version of the segment whose header is in `bytes`; `None` when they are no header.
    fn version(bytes: &[u8]) -> Option<u8> {
        let bytes = bytes.first_chunk::<HEADER_BYTES>()?;
        let crc = u32::from_le_bytes(*bytes.last_chunk()?);
        let whole = bytes.starts_with(MAGIC) && crc == crc32c::crc32c(&bytes[..HEADER_BYTES - 4]);
        whole.then_some(bytes[7])
    }

    /// The version of a segment that a later version of this program wrote, and this one cannot read.
    #[must_use]
    pub fn later_version(bytes: &[u8]) -> Option<u8> {
        Header::version(bytes).filter(|version| *version > SEALED)
    }

    /// Whether a record may lie in the segment that begins with this: it is sealed for it, or both are in the
    /// clear.
    #[must_use]
    pub fn fits(&self, record: &Record) -> bool {
        match (&self.key, &record.sealed) {
            (None, None) => true,
            (Some(key), Some(sealed)) => sealed.key == *key && sealed.segment_lsn == self.begin_lsn,
            _ => false,
        }
    }
}

/// How a record is sealed, as far as that stands in the clear.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// The region's key that its data key is derived from.
    pub key: KeyId,
    /// Who sealed it.
    pub run: [u8; 16],
    /// Counts what that run has sealed.
    pub count: u64,
    /// Where the segment begins that it lies in.
    pub segment_lsn: Lsn,
    /// The region's key as its provider wrapped it, in the first record of a segment.
    pub wrapped_key: Bytes,
}

/// A batch as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The batch; its payload is sealed where the record is, and its checksum is zero then.
    pub batch: Batch,
    /// How it is sealed.
    pub sealed: Option<Sealed>,
    /// How far the volume was durable when this was written: what lies before that and cannot be read was
    /// lost after it was durable, and is no torn write.
    pub durable_lsn: Lsn,
    /// The record as it is stored.
    pub bytes: Bytes,
}

impl Record {
    /// Where the segment begins that it was sealed for; zero where it is in the clear.
    #[must_use]
    pub fn segment_lsn(&self) -> Lsn {
        self.sealed.as_ref().map_or(Lsn::ZERO, |sealed| sealed.segment_lsn)
    }
}

/// A record with `batch`, in the clear, written while the volume was durable up to `durable_lsn`.
#[must_use]
pub fn record(batch: &Batch, durable_lsn: Lsn) -> Bytes {
    let body = batch.encode();
    let mut out = Vec::with_capacity(RECORD_HEADER_BYTES + body.len());
    // A batch is at most BATCH_BYTES_MAX long.
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes();
    let durable = durable_lsn.0.to_le_bytes();
    out.extend_from_slice(&length);
    out.extend_from_slice(&record_crc(length, durable, &body).to_le_bytes());
    out.extend_from_slice(&durable);
    out.extend_from_slice(&body);
    out.into()
}

/// The parts of a sealed record.
pub(crate) struct SealedParts {
    pub(crate) durable_lsn: Lsn,
    /// What stands in the clear.
    pub(crate) head: Bytes,
    /// What is sealed, and its tag.
    pub(crate) payload: Bytes,
}

/// Makes a record of `out`, which has room for a record's header, and then a sealed batch with its head.
pub(crate) fn finish_sealed(mut out: Vec<u8>, durable_lsn: Lsn) -> Bytes {
    let body_bytes = out.len().saturating_sub(RECORD_HEADER_BYTES);
    // A sealed batch is at most SEALED_BYTES_MAX long.
    let length = (u32::try_from(body_bytes).unwrap_or(u32::MAX) | SEALED_BIT).to_le_bytes();
    let durable = durable_lsn.0.to_le_bytes();
    let crc = record_crc(length, durable, &out[RECORD_HEADER_BYTES..]).to_le_bytes();
    out[..4].copy_from_slice(&length);
    out[4..8].copy_from_slice(&crc);
    out[8..RECORD_HEADER_BYTES].copy_from_slice(&durable);
    out.into()
}

/// The parts of a record that was checked; none where it is in the clear.
pub(crate) fn sealed_parts(record: &Bytes) -> Option<SealedParts> {
    let [l0, l1, l2, l3, _, _, _, _, durable @ ..] = *record.first_chunk::<RECORD_HEADER_BYTES>()?;
    if u32::from_le_bytes([l0, l1, l2, l3]) & SEALED_BIT == 0 {
        return None;
    }
    let (head, payload) = split_sealed(&record.slice(RECORD_HEADER_BYTES..))?;
    Some(SealedParts { durable_lsn: Lsn(u64::from_le_bytes(durable)), head, payload })
}

fn split_sealed(body: &Bytes) -> Option<(Bytes, Bytes)> {
    let head_bytes = usize::from(u16::from_le_bytes(*body.first_chunk()?));
    let rest = body.slice(2..);
    (rest.len() >= head_bytes + SEAL_BYTES).then(|| (rest.slice(..head_bytes), rest.slice(head_bytes..)))
}

/// The key that a record is sealed with; none where it is in the clear.
pub(crate) fn key_of(record: &Bytes) -> Option<KeyId> {
    let SealedParts { head, payload, .. } = sealed_parts(record)?;
    SealedHead::decode(head, payload).ok().map(|head| KeyId(head.key))
}

/// The records of a whole segment that was checked.
pub(crate) fn records(bytes: &Bytes) -> impl Iterator<Item = Record> + '_ {
    let mut offset = HEADER_BYTES.min(bytes.len());
    std::iter::from_fn(move || match read_record(&bytes.slice(offset..)) {
        Found::Record(record) => {
            offset += record.bytes.len();
            Some(record)
        }
        _ => None,
    })
}

/// Checks a whole segment: its header, every record, and that they follow each other from `begin_lsn` to
/// `end_lsn`.
///
/// # Errors
/// Where it is wrong, and how.
pub fn verify(
    bytes: &Bytes,
    cluster_id: ClusterId,
    begin_lsn: Lsn,
    end_lsn: Lsn,
) -> Result<(), (u64, String)> {
    let header = match Header::decode(bytes) {
        Some(header) if header.cluster_id == cluster_id && header.begin_lsn == begin_lsn => header,
        _ => return Err((0, "its header is not that of this segment".into())),
    };
    let mut offset = HEADER_BYTES;
    let mut expected_lsn = begin_lsn;
    while offset < bytes.len() {
        match read_record(&bytes.slice(offset..)) {
            Found::Record(record) if !header.fits(&record) => {
                return Err((offset as u64, NOT_OF_THIS_SEGMENT.into()));
            }
            Found::Record(record) if record.batch.begin_lsn == expected_lsn => {
                expected_lsn = record.batch.end_lsn;
                offset += record.bytes.len();
            }
            Found::Record(record) => {
                let what = format!("redo from {} where {expected_lsn} should be", record.batch.begin_lsn);
                return Err((offset as u64, what));
            }
            Found::Damaged(what) => return Err((offset as u64, what)),
            Found::End | Found::More(_) => break,
        }
    }
    if expected_lsn == end_lsn {
        Ok(())
    } else {
        Err((offset as u64, format!("its redo ends at {expected_lsn}, and should end at {end_lsn}")))
    }
}

/// What is wrong with a record that does not fit the header of the segment it lies in.
pub(crate) const NOT_OF_THIS_SEGMENT: &str = "a record that was not sealed as this segment is";

/// What stands where a record may begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// A record.
    Record(Record),
    /// Zeroes: nothing was written here.
    End,
    /// More bytes than are given are needed: this many in all.
    More(usize),
    /// Neither: a torn write, or damage.
    Damaged(String),
}

/// Reads the record at the beginning of `bytes`.
#[must_use]
pub fn read_record(bytes: &Bytes) -> Found {
    let Some(header) = bytes.first_chunk::<RECORD_HEADER_BYTES>() else {
        return Found::More(RECORD_HEADER_BYTES);
    };
    let [l0, l1, l2, l3, c0, c1, c2, c3, durable @ ..] = *header;
    let (length, crc) = ([l0, l1, l2, l3], u32::from_le_bytes([c0, c1, c2, c3]));
    let is_sealed = u32::from_le_bytes(length) & SEALED_BIT != 0;
    let body_bytes = (u32::from_le_bytes(length) & !SEALED_BIT) as usize;
    if header == &[0; RECORD_HEADER_BYTES] {
        return Found::End;
    }
    if body_bytes == 0 || body_bytes > if is_sealed { SEALED_BYTES_MAX } else { BATCH_BYTES_MAX } {
        return Found::Damaged(format!("a record of {body_bytes} bytes"));
    }
    let total = RECORD_HEADER_BYTES + body_bytes;
    if bytes.len() < total {
        return Found::More(total);
    }
    let body = bytes.slice(RECORD_HEADER_BYTES..total);
    if record_crc(length, durable, &body) != crc {
        return Found::Damaged("a record that does not match its checksum".into());
    }
    let decoded = match is_sealed {
        true => decode_sealed(&body),
        false => Batch::decode(body).map(|batch| (batch, None)).map_err(|e| e.to_string()),
    };
    match decoded {
        Ok((batch, sealed)) => Found::Record(Record {
            batch,
            sealed,
            durable_lsn: Lsn(u64::from_le_bytes(durable)),
            bytes: bytes.slice(..total),
        }),
        Err(what) => Found::Damaged(what),
    }
}

fn decode_sealed(body: &Bytes) -> Result<(Batch, Option<Sealed>), String> {
    let (head, payload) = split_sealed(body).ok_or("a sealed record that is too short")?;
    let head = SealedHead::decode(head, payload).map_err(|e| e.to_string())?;
    let SealedHead { batch, key, run, count, segment_lsn, wrapped_key } = head;
    Ok((batch, Some(Sealed { key: KeyId(key), run, count, segment_lsn, wrapped_key })))
}

fn record_crc(length: [u8; 4], durable: [u8; 8], body: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(&length), &durable), body)
}

/// A segment's file name: where its redo begins, so that names sort as their redo does.
#[must_use]
pub fn file_name(begin_lsn: Lsn) -> String {
    format!("{:016X}.redo", begin_lsn.0)
}

/// Where the redo of the segment named `name` begins; `None` when it is not a segment's name.
#[must_use]
pub fn parse_file_name(name: &str) -> Option<Lsn> {
    let digits =
        name.strip_suffix(".redo").filter(|d| d.len() == 16 && d.bytes().all(|b| b.is_ascii_hexdigit()))?;
    u64::from_str_radix(digits, 16).ok().map(Lsn)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proto::Epoch;

    fn batch(payload: &[u8]) -> Batch {
        Batch {
            epoch: Epoch(1),
            timeline: Timeline(1),
            begin_lsn: Lsn(0x100),
            end_lsn: Lsn(0x200),
            context_lsn: Lsn(0x100),
            newest_commit_us: 5,
            redo_crc32c: 6,
            payload: Bytes::copy_from_slice(payload),
            ends_in_record: false,
        }
    }

    #[test]
    fn headers_and_names_round_trip() {
        let header = Header {
            cluster_id: ClusterId([3; 16]),
            begin_lsn: Lsn(0x1_0000_0002),
            timeline: Timeline(7),
            key: None,
        };
        assert_eq!(Header::decode(&header.encode()), Some(header));
        for at in 0..HEADER_BYTES {
            let mut damaged = header.encode();
            damaged[at] ^= 1;
            assert_eq!(Header::decode(&damaged), None, "byte {at}");
        }
        assert_eq!(parse_file_name(&file_name(Lsn(77))), Some(Lsn(77)));
        assert_eq!(parse_file_name("x.redo"), None);
    }

    #[test]
    fn every_flipped_bit_of_a_record_is_noticed() {
        let bytes = record(&batch(b"payload"), Lsn(9));
        let read =
            Record { batch: batch(b"payload"), sealed: None, durable_lsn: Lsn(9), bytes: bytes.clone() };
        assert_eq!(read_record(&bytes), Found::Record(read));
        let out = bytes.to_vec();
        for bit in 0..out.len() * 8 {
            let mut damaged = out.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(!matches!(read_record(&damaged.into()), Found::Record(..) | Found::End), "bit {bit}");
        }
    }

    #[test]
    fn every_flipped_bit_of_a_segment_is_noticed() {
        let cluster_id = ClusterId([3; 16]);
        let header = Header { cluster_id, begin_lsn: Lsn(0x100), timeline: Timeline(1), key: None };
        let mut segment = header.encode().to_vec();
        segment.extend_from_slice(&record(&batch(b"payload"), Lsn(9)));
        let check = |bytes: Vec<u8>, end| verify(&bytes.into(), cluster_id, Lsn(0x100), Lsn(end));
        assert_eq!(check(segment.clone(), 0x200), Ok(()));
        assert!(check(segment.clone(), 0x300).is_err(), "it ends too early");
        assert!(check(segment[..segment.len() - 1].to_vec(), 0x200).is_err(), "cut short");
        for bit in 0..segment.len() * 8 {
            let mut damaged = segment.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(check(damaged, 0x200).is_err(), "bit {bit}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = (Header::decode(&bytes), read_record(&bytes.into()));
        }
    }
}
