use proptest::prelude::*;
use proto::{Epoch, Timeline};

use super::*;
use crate::copy::Stored;
use crate::segment::{Found, HEADER_BYTES, Header, read_record, verify};

const CLUSTER: ClusterId = ClusterId([3; 16]);

fn key(byte: u8) -> RegionKey {
    RegionKey::new(Zeroizing::new([byte; KEY_BYTES]), Bytes::new())
}

fn sealer(run: u8) -> Sealer {
    Sealer::new(CLUSTER, Keys::new([key(1)], Some(key(1).id())), [run; 16])
}

fn batch(begin: u64, payload: &[u8]) -> Batch {
    Batch {
        epoch: Epoch(1),
        timeline: Timeline(1),
        begin_lsn: Lsn(begin),
        end_lsn: Lsn(begin + 0x100),
        context_lsn: Lsn(0x100),
        newest_commit_us: 5,
        redo_crc32c: 0x6060_6060,
        payload: Bytes::copy_from_slice(payload),
        ends_in_record: true,
    }
}

fn sealed(by: &Sealer, batch: &Batch) -> Bytes {
    by.seal(key(1).id(), batch, Lsn(9), Lsn(0x100)).unwrap()
}

/// As a reader gets it.
fn stored(record: &Bytes) -> Stored {
    let batch = match read_record(record) {
        Found::Record(record) => record.batch,
        other => panic!("{other:?}"),
    };
    let begins_segment = batch.begin_lsn == Lsn(0x100);
    Stored { batch, record: record.clone(), begins_segment }
}

fn open(by: &Sealer, stored: &Stored) -> Result<Batch, VolumeError> {
    Ok(by.open(&stored.record, stored.begins_segment)?.expect("it is sealed"))
}

/// The record with one bit changed, and a checksum that is right again.
fn tampered(record: &Bytes, bit: usize) -> Bytes {
    let mut out = record.to_vec();
    out[bit / 8] ^= 1 << (bit % 8);
    let crc = crc32c::crc32c_append(crc32c::crc32c(&out[..4]), &out[8..]);
    out[4..8].copy_from_slice(&crc.to_le_bytes());
    out.into()
}

#[test]
fn what_is_sealed_opens_and_shows_nothing() {
    let (by, batch) = (sealer(1), batch(0x100, b"a payload that is looked for"));
    let record = sealed(&by, &batch);
    let shown = |text: &[u8]| record.windows(text.len()).any(|window| window == text);
    assert!(!shown(b"payload") && !shown(&batch.redo_crc32c.to_le_bytes()));
    let read = stored(&record);
    assert_eq!((read.batch.begin_lsn, read.batch.end_lsn), (batch.begin_lsn, batch.end_lsn));
    assert_eq!(read.batch.ends_in_record, batch.ends_in_record);
    assert_eq!(open(&by, &read).unwrap(), batch);
    // Another process with the same keys opens it as well.
    assert_eq!(open(&sealer(2), &read).unwrap(), batch);
}

#[test]
fn every_bit_that_is_changed_is_noticed_also_with_the_right_checksum() {
    let by = sealer(1);
    let record = sealed(&by, &batch(0x100, b"payload"));
    for bit in (0..32).chain(64..record.len() * 8) {
        let changed = tampered(&record, bit);
        let Found::Record(read) = read_record(&changed) else { continue };
        let opened = by.open(&read.bytes, true);
        // In the clear, it is no record of a sealed segment.
        let refused = matches!(opened, Err(VolumeError::Forged { .. } | VolumeError::NoKey { .. }));
        assert!(refused || read.sealed.is_none(), "bit {bit}: {opened:?}");
    }
}

#[test]
fn a_record_opens_in_its_place_alone() {
    let by = sealer(1);
    let (first, second) = (sealed(&by, &batch(0x100, b"one")), sealed(&by, &batch(0x200, b"two")));
    // It is said to begin a segment, or not to.
    for record in [&first, &second] {
        let mut moved = stored(record);
        assert!(open(&by, &moved).is_ok());
        moved.begins_segment = !moved.begins_segment;
        assert!(matches!(open(&by, &moved), Err(VolumeError::Forged { .. })));
    }
    // Another segment that begins elsewhere, with a record of the same place that was sealed for this one.
    let header =
        Header { cluster_id: CLUSTER, begin_lsn: Lsn(0x200), timeline: Timeline(1), key: Some(key(1).id()) };
    let other = Bytes::from([&header.encode()[..], &second].concat());
    assert!(verify(&other, CLUSTER, Lsn(0x200), Lsn(0x300)).is_err(), "without any key");
    // Another cluster's keys may be the same by mistake: its redo is not taken for this one's.
    let stranger = Sealer::new(ClusterId([4; 16]), Keys::new([key(1)], None), [1; 16]);
    assert!(matches!(open(&stranger, &stored(&first)), Err(VolumeError::Forged { .. })));
}

#[test]
fn clear_and_sealed_records_do_not_mix() {
    let by = sealer(1);
    let (clear, sealed) =
        (segment::record(&batch(0x100, b"one"), Lsn(9)), sealed(&by, &batch(0x100, b"one")));
    let segment = |key, record: &Bytes| {
        let header = Header { cluster_id: CLUSTER, begin_lsn: Lsn(0x100), timeline: Timeline(1), key };
        Bytes::from([&header.encode()[..], record].concat())
    };
    let check = |bytes: Bytes| verify(&bytes, CLUSTER, Lsn(0x100), Lsn(0x200)).is_ok();
    let id = Some(key(1).id());
    assert!(check(segment(None, &clear)) && check(segment(id, &sealed)));
    assert!(!check(segment(id, &clear)) && !check(segment(None, &sealed)));
    assert!(!check(segment(Some(key(2).id()), &sealed)), "another key than the header says");
    assert!(by.verify(&segment(id, &sealed)).is_ok());
    let changed = tampered(&sealed, (sealed.len() - 1) * 8);
    assert!(check(segment(id, &changed)), "its checksum is right");
    assert!(matches!(by.verify(&segment(id, &changed)), Err(VolumeError::Forged { .. })));
}

#[test]
fn another_key_opens_nothing_and_says_which_is_wanted() {
    let record = stored(&sealed(&sealer(1), &batch(0x100, b"one")));
    let other = Sealer::new(CLUSTER, Keys::new([key(2)], Some(key(2).id())), [1; 16]);
    let refused = open(&other, &record).unwrap_err();
    assert!(matches!(refused, VolumeError::NoKey { key: id, .. } if id == key(1).id()), "{refused}");
    // With both it opens, and a key that is taken away again opens nothing more.
    other.renew(Keys::new([key(1), key(2)], Some(key(2).id())));
    assert!(open(&other, &record).is_ok());
    other.renew(Keys::new([key(2)], Some(key(2).id())));
    assert!(matches!(open(&other, &record), Err(VolumeError::NoKey { .. })));
}

#[test]
fn no_nonce_is_used_twice_also_where_the_same_is_sealed_again() {
    // The end of a segment is cut off, and other redo, or the same, is written in its place: by the same
    // process, and by one that was started anew.
    let (before, after) = (sealer(1), sealer(2));
    let mut used = std::collections::BTreeSet::new();
    for by in [&before, &before, &after, &after] {
        for begin in [0x100, 0x200, 0x200] {
            let Found::Record(record) = read_record(&sealed(by, &batch(begin, b"x"))) else { panic!() };
            let sealed = record.sealed.unwrap();
            assert!(used.insert((sealed.run, sealed.count)), "{sealed:?}");
        }
    }
}

#[test]
fn the_first_record_of_a_segment_has_the_wrapped_key() {
    let wrapped =
        RegionKey::new(Zeroizing::new([1; KEY_BYTES]), Bytes::from_static(b"wrapped by a provider"));
    let by = Sealer::new(CLUSTER, Keys::new([wrapped], None), [1; 16]);
    let found = |begin| match read_record(&sealed(&by, &batch(begin, b"x"))) {
        Found::Record(record) => record.sealed.unwrap().wrapped_key,
        other => panic!("{other:?}"),
    };
    assert_eq!((&found(0x100)[..], &found(0x200)[..]), (&b"wrapped by a provider"[..], &b""[..]));
}

#[test]
fn keys_and_sealers_show_no_byte_of_a_key() {
    let key = RegionKey::new(Zeroizing::new([0xab; KEY_BYTES]), Bytes::new());
    let keys = Keys::new([key.clone()], Some(key.id()));
    let sealer = Sealer::new(CLUSTER, keys.clone(), [1; 16]);
    let file = FileSealer::new(&key, [2; 16], "x").unwrap();
    let shown = format!("{key:?} {keys:?} {sealer:?} {file:?}");
    assert!(!shown.contains("ab, ") && !shown.contains("171"), "{shown}");
    assert_eq!(key.id().to_string().parse(), Ok(key.id()));
    assert!("12".parse::<KeyId>().is_err());
}

#[test]
fn parts_of_a_file_open_in_their_order_alone() {
    let sealer = |name| FileSealer::new(&key(1), [7; 16], name).unwrap();
    let mut part = b"some redo".to_vec();
    sealer("a").seal(0, false, &mut part).unwrap();
    let open = |name, number, last| {
        let mut bytes = part.clone();
        sealer(name).open(number, last, &mut bytes).map(|()| bytes)
    };
    assert_eq!(open("a", 0, false).unwrap(), b"some redo");
    assert!(open("a", 1, false).is_err(), "another place");
    assert!(open("a", 0, true).is_err(), "cut off behind it");
    assert!(open("b", 0, false).is_err(), "another file");
}

#[test]
fn a_header_of_a_later_version_is_known_as_one() {
    let header =
        Header { cluster_id: CLUSTER, begin_lsn: Lsn(1), timeline: Timeline(1), key: Some(KeyId(5)) };
    let mut bytes = header.encode();
    assert_eq!((Header::decode(&bytes), Header::later_version(&bytes)), (Some(header), None));
    bytes[7] = 3;
    assert_eq!(Header::later_version(&bytes), None, "damage is not a version");
    let crc = crc32c::crc32c(&bytes[..HEADER_BYTES - 4]);
    bytes[HEADER_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
    assert_eq!((Header::decode(&bytes), Header::later_version(&bytes)), (None, Some(3)));
}

proptest! {
    #[test]
    fn any_bytes_are_opened_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300), sealed: bool) {
        let mut out = vec![0; RECORD_HEADER_BYTES];
        out.extend_from_slice(&bytes);
        let record = match sealed {
            true => segment::finish_sealed(out, Lsn(1)),
            false => bytes.into(),
        };
        if let Found::Record(read) = read_record(&record) {
            let opened = sealer(1).open(&read.bytes, true);
            prop_assert!(!sealed || opened.is_err());
        }
    }
}
