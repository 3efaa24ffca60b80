//! What lies in a volume's files, and a timeline's history.

use std::sync::OnceLock;

use bytes::Bytes;
use proto::sealed::{SEAL_BYTES, WRAPPED_BYTES_MAX};
use proto::{Batch, ClusterId, Epoch, Lsn, SealedHead, Timeline, TimelineHistory};
use volume::ballot::Ballot;
use volume::copy::meta::Meta;
use volume::quorum::CopyId;
use volume::seal::{FileSealer, KeyId, Keys, RegionKey, Sealer};
use volume::segment::{self, Found, HEADER_BYTES, Header, RECORD_HEADER_BYTES, SEALED_BYTES_MAX};
use zeroize::Zeroizing;

/// The bit of a record's length that says that it is sealed.
const SEALED_BIT: u32 = 1 << 31;

/// A record whose length and checksum are right: how far the volume was durable, and what is in it.
pub(crate) fn framed(durable: [u8; 8], body: &[u8], is_sealed: bool) -> Bytes {
    let length = u32::try_from(body.len()).unwrap() | if is_sealed { SEALED_BIT } else { 0 };
    let length = length.to_le_bytes();
    let crc = crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(&length), &durable), body);
    [&length[..], &crc.to_le_bytes(), &durable, body].concat().into()
}

fn framed_of(data: &[u8], is_sealed: bool) -> Bytes {
    match data.split_first_chunk::<8>() {
        Some((durable, body)) => framed(*durable, body, is_sealed),
        None => Bytes::new(),
    }
}

fn found(record: &Bytes) -> Option<segment::Record> {
    match segment::read_record(record) {
        Found::Record(found) => {
            assert_eq!(found.bytes, record[..found.bytes.len()]);
            Some(found)
        }
        Found::More(total) => {
            assert!(total > record.len() && total <= RECORD_HEADER_BYTES + SEALED_BYTES_MAX);
            None
        }
        Found::End => {
            assert!(record[..RECORD_HEADER_BYTES].iter().all(|byte| *byte == 0));
            None
        }
        Found::Damaged(_) => None,
    }
}

/// A segment as found on a disk: its header, its records, and whether all of it is whole.
pub fn segment(data: &[u8]) {
    let header = match data.first_chunk::<{ HEADER_BYTES - 4 }>() {
        Some(header) => [&header[..], &crc32c::crc32c(header).to_le_bytes()].concat(),
        None => Vec::new(),
    };
    for header in [data, &header] {
        if let Some(header) = Header::decode(header) {
            assert_eq!(Header::decode(&header.encode()), Some(header));
        }
    }
    for record in [Bytes::copy_from_slice(data), framed_of(data, false)] {
        let Some(found) = found(&record) else { continue };
        if found.sealed.is_none() {
            let again = segment::record(&found.batch, found.durable_lsn);
            let Found::Record(again) = segment::read_record(&again) else {
                panic!("it was written just now")
            };
            assert_eq!((again.batch, again.durable_lsn), (found.batch, found.durable_lsn));
        }
    }
    whole_segment(data);
    if let Some(lsn) = std::str::from_utf8(data).ok().and_then(segment::parse_file_name) {
        assert_eq!(segment::parse_file_name(&segment::file_name(lsn)), Some(lsn));
    }
}

/// Records, each with two bytes of length before it, behind a header that is right.
fn whole_segment(data: &[u8]) {
    let cluster_id = ClusterId([7; 16]);
    let Some(([sealed, begin], mut rest)) = data.split_first_chunk::<2>() else { return };
    let is_sealed = sealed % 2 == 1;
    let begin_lsn = Lsn(u64::from(*begin) * 0x100);
    let key = is_sealed.then_some(KeyId(7));
    let header = Header { cluster_id, begin_lsn, timeline: Timeline(1), key };
    let mut whole = header.encode().to_vec();
    while let Some((length, body)) = rest.split_first_chunk::<2>() {
        let (body, behind) = body.split_at(usize::from(u16::from_le_bytes(*length)).min(body.len()));
        whole.extend_from_slice(&framed_of(body, is_sealed));
        rest = behind;
    }
    let whole = Bytes::from(whole);
    // Where its redo ends: found as a reader does.
    let (mut offset, mut end_lsn) = (HEADER_BYTES, begin_lsn);
    while let Found::Record(record) = segment::read_record(&whole.slice(offset..)) {
        offset += record.bytes.len();
        end_lsn = record.batch.end_lsn;
    }
    if segment::verify(&whole, cluster_id, begin_lsn, end_lsn).is_ok() {
        assert!(end_lsn >= begin_lsn);
        assert!(segment::verify(&whole, ClusterId([8; 16]), begin_lsn, end_lsn).is_err());
        assert!(segment::verify(&whole, cluster_id, begin_lsn, end_lsn + 1).is_err());
    }
}

/// What seals, and what it has sealed: two records, and two parts of a file.
struct Seals {
    sealer: Sealer,
    records: Vec<Bytes>,
    file: FileSealer,
    parts: Vec<Vec<u8>>,
}

fn seals() -> &'static Seals {
    static SEALS: OnceLock<Seals> = OnceLock::new();
    SEALS.get_or_init(|| {
        let key = RegionKey::new(Zeroizing::new([3; 32]), Bytes::from_static(b"wrapped"));
        let id = key.id();
        let file = FileSealer::new(&key, [4; 16], "lost/1").unwrap();
        let sealer = Sealer::new(ClusterId([7; 16]), Keys::new([key], Some(id)), [5; 16]);
        let batch = |begin: u64| Batch {
            epoch: Epoch(1),
            timeline: Timeline(1),
            begin_lsn: Lsn(begin),
            end_lsn: Lsn(begin + 0x40),
            context_lsn: Lsn(0x100),
            newest_commit_us: 5,
            redo_crc32c: 6,
            payload: Bytes::from_static(b"payload"),
            ends_in_record: false,
        };
        let seal = |begin| sealer.seal(id, &batch(begin), Lsn(0x80), Lsn(0x100)).unwrap();
        let records = vec![seal(0x100), seal(0x140)];
        let part = |number: u8| {
            let mut part = vec![number; 20];
            file.seal(number.into(), number == 1, &mut part).unwrap();
            part
        };
        let parts = vec![part(0), part(1)];
        Seals { sealer, records, file, parts }
    })
}

/// The records and the parts of a file that [`sealed`] knows.
pub(crate) fn sealed_records() -> (Vec<Bytes>, Vec<Vec<u8>>) {
    (seals().records.clone(), seals().parts.clone())
}

/// A sealed record, and a part of a sealed file: opened is what was sealed, where it was sealed, and nothing
/// else.
pub fn sealed(data: &[u8]) {
    let Seals { sealer, records, file, parts } = seals();
    for record in [Bytes::copy_from_slice(data), framed_of(data, true)] {
        let Some(found) = found(&record) else { continue };
        for begins in [true, false] {
            if let Ok(Some(batch)) = sealer.open(&found.bytes, begins) {
                let of = records.iter().position(|sealed| *sealed == found.bytes);
                assert_eq!(of, Some(usize::from(!begins)), "another record was opened");
                assert_eq!((&batch.payload[..], batch.redo_crc32c), (&b"payload"[..], 6));
            }
        }
    }
    if let Some((length, rest)) = data.split_first() {
        let (head, payload) = rest.split_at(usize::from(*length).min(rest.len()));
        let [head, payload] = [head, payload].map(Bytes::copy_from_slice);
        if let Ok(head) = SealedHead::decode(head, payload.clone()) {
            assert!(head.wrapped_key.len() <= WRAPPED_BYTES_MAX && payload.len() >= SEAL_BYTES);
            assert_eq!(SealedHead::decode(head.encode().into(), payload), Ok(head));
        }
        let (number, last) = (usize::from(length / 2), length % 2 == 1);
        let mut part = rest.to_vec();
        if file.open(number as u64, last, &mut part).is_ok() {
            assert!(parts.get(number).is_some_and(|sealed| sealed == rest), "another part was opened");
            assert_eq!((part, last), (vec![u8::try_from(number).unwrap(); 20], number == 1));
        }
    }
}

/// A copy.meta as found on a disk, also one whose checksum is right.
pub fn meta(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (cluster, copy) = (ClusterId([5; 16]), CopyId(2));
    let sealed = |body: &str| format!("{body}crc {:08x}\n", crc32c::crc32c(body.as_bytes()));
    let with_head = format!("replicator copy 2\ncluster {cluster}\ncopy {copy}\n{text}");
    for text in [text.to_owned(), sealed(text), sealed(&with_head)] {
        if let Ok(meta) = Meta::parse(&text, cluster, copy) {
            assert_eq!(Meta::parse(&meta.text(cluster, copy), cluster, copy).as_ref(), Ok(&meta));
            assert!(Meta::parse(&text, ClusterId([6; 16]), copy).is_err());
        }
    }
    if let Ok(ballot) = text.parse::<Ballot>() {
        assert_eq!(ballot.to_string().parse(), Ok(ballot));
    }
}

/// A timeline history file from PostgreSQL or a peer.
pub fn timeline(data: &[u8]) {
    let Ok(history) = TimelineHistory::parse(Timeline(9), data) else { return };
    assert_eq!((&history.content[..], history.common_end(&history)), (data, Lsn(u64::MAX)));
    let first = TimelineHistory::first();
    assert_eq!(history.common_end(&first), first.common_end(&history));
    let mut at = Lsn::ZERO;
    for ancestor in &history.ancestors {
        assert!(ancestor.timeline < history.timeline && ancestor.fork_lsn >= at);
        assert_eq!(history.fork_of(ancestor.timeline), Some(ancestor.fork_lsn));
        let next = history.successor_of(ancestor.timeline).unwrap();
        assert!(next > ancestor.timeline && next <= history.timeline);
        if ancestor.fork_lsn > at {
            assert_eq!(history.timeline_at(at), ancestor.timeline);
        }
        at = ancestor.fork_lsn;
    }
    assert_eq!((history.begin_lsn(), history.timeline_at(at)), (at, history.timeline));
}
