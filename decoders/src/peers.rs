//! What comes over a network, from a peer or from whoever asks.

use std::cell::RefCell;
use std::fmt::Debug;
use std::sync::OnceLock;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::{Bytes, BytesMut};
use postgres::backup::pieces::{Inventory, PIECES_MAX};
use prost::Message;
use proto::batch::{MAX_CONTEXT_BYTES, MAX_PAYLOAD_BYTES, MAX_REDO_BYTES};
use proto::compression::Decompressor;
use proto::frame::{self, FrameError, HEADER_BYTES};
use proto::messages::{self as m, MAX_STREAM_MESSAGE_BYTES, downstream};
use proto::{Batch, BatchId, ClusterId, Epoch, Lsn, Timeline, TimelineHistory};
use secondary::receiver::{Receiver, Verdict};
use transport::redundancy::{Assembly, CELL_BYTES_MAX, Repair, Ring, WINDOW_CELLS};
use transport::{Certificate, Peer, peer, signing};

/// The message in `body`, which is the same once it was written and read again.
pub(crate) fn message_of<M: Message + Default + PartialEq + Debug>(body: Bytes) -> Option<M> {
    let message = frame::decode::<M>(body).ok()?;
    let mut out = BytesMut::new();
    frame::encode(&message, &mut out);
    let header = *out.first_chunk::<HEADER_BYTES>().unwrap();
    let again = out.split_off(HEADER_BYTES).freeze();
    assert_eq!(frame::length(header, usize::MAX), Ok(again.len()));
    assert_eq!(frame::decode::<M>(again).as_ref(), Ok(&message));
    Some(message)
}

/// Messages from a peer over QUIC, and the length before each. The first byte says which message it is.
pub fn messages(data: &[u8]) {
    if let Some(header) = data.first_chunk() {
        let announced = u32::from_be_bytes(*header) as usize;
        match frame::length(*header, MAX_STREAM_MESSAGE_BYTES) {
            Ok(length) => assert!(length == announced && length <= MAX_STREAM_MESSAGE_BYTES),
            Err(error) => {
                assert_eq!(error, FrameError::TooLarge { announced, max: MAX_STREAM_MESSAGE_BYTES })
            }
        }
    }
    let Some((kind, body)) = data.split_first() else { return };
    let body = Bytes::copy_from_slice(body);
    match kind % 16 {
        0 => drop(message_of::<m::Open>(body)),
        1 => drop(message_of::<m::Downstream>(body)),
        2 => drop(message_of::<m::Upstream>(body)),
        3 => drop(message_of::<m::SeedChunk>(body)),
        4 => drop(message_of::<m::ControlResponse>(body)),
        5 => drop(message_of::<m::NodeReport>(body)),
        6 => drop(message_of::<m::NodeWord>(body)),
        7 => drop(message_of::<m::SeedInventory>(body)),
        8 => drop(message_of::<m::SessionReady>(body)),
        9 => drop(message_of::<m::ReplicateReady>(body)),
        10 => drop(message_of::<m::FeedReady>(body)),
        11 => drop(message_of::<m::BackupReady>(body)),
        12 => drop(message_of::<m::ClusterStatus>(body)),
        13 => drop(message_of::<m::Promotion>(body)),
        14 => drop(message_of::<m::Accepted>(body)),
        _ => drop(message_of::<m::Recalled>(body)),
    }
}

thread_local! {
    static DECOMPRESSOR: RefCell<Decompressor> = RefCell::new(Decompressor::new().unwrap());
}

/// A batch that begins at a mebibyte.
fn batch_of(redo_bytes: u64, payload: Bytes) -> Batch {
    Batch {
        epoch: Epoch(1),
        timeline: Timeline(1),
        begin_lsn: Lsn(1 << 20),
        end_lsn: Lsn((1 << 20) + redo_bytes),
        context_lsn: Lsn(1 << 20),
        newest_commit_us: 0,
        redo_crc32c: 0,
        payload,
        ends_in_record: false,
    }
}

/// The redo of these batches, one after the other, as far as they have any.
fn decompressed(batches: &[Batch]) {
    DECOMPRESSOR.with_borrow_mut(|decompressor| {
        // Whatever was decompressed before is forgotten.
        assert!(decompressor.decompress(&batch_of(1, Bytes::from_static(b"\0"))).is_err());
        for batch in batches {
            let continues = decompressor.accepts(batch);
            let redo = decompressor.decompress(batch);
            assert!(continues || redo.is_err());
            if let Ok(redo) = redo {
                assert_eq!(redo.len() as u64, batch.redo_bytes());
                assert_eq!(crc32c::crc32c(&redo), batch.redo_crc32c);
            }
        }
    });
}

/// A batch from a peer or a disk, decoded and decompressed; and any payload in a batch that is in order.
pub fn batch(data: &[u8]) {
    let mut found = Vec::new();
    let mut rest = data;
    // Several of them, each with its length before it: they may be of one context.
    while let Some((length, body)) = rest.split_first_chunk::<2>() {
        let length = usize::from(u16::from_le_bytes(*length)).min(body.len());
        let (body, behind) = body.split_at(length);
        rest = behind;
        let Ok(batch) = Batch::decode(Bytes::copy_from_slice(body)) else { break };
        assert_eq!(Batch::decode(batch.encode().into()).as_ref(), Ok(&batch));
        assert_eq!(BatchId::from_message(&batch.id().to_message()), batch.id());
        assert!((1..=MAX_REDO_BYTES as u64).contains(&batch.redo_bytes()));
        assert!((1..=MAX_PAYLOAD_BYTES).contains(&batch.payload.len()));
        assert!(batch.context_lsn <= batch.begin_lsn && batch.timeline.0 > 0 && batch.epoch.0 > 0);
        assert!(batch.begin_lsn - batch.context_lsn <= MAX_CONTEXT_BYTES);
        found.push(batch);
        if found.len() == 8 {
            break;
        }
    }
    if !found.is_empty() {
        decompressed(&found);
    }
    let Some((length, payload)) = data.split_first_chunk::<2>() else { return };
    let payload = Bytes::copy_from_slice(payload);
    decompressed(&[batch_of(u64::from(u16::from_le_bytes(*length)) + 1, payload)]);
}

/// What a primary sends, judged by whoever takes it: redo is never taken that does not continue what is here.
pub fn receiver(data: &[u8]) {
    let mut receiver = Receiver::new(Epoch(3), Timeline(1), Lsn(0x100));
    let mut rest = data;
    while let Some((length, body)) = rest.split_first() {
        let (body, behind) = body.split_at(usize::from(*length).min(body.len()));
        rest = behind;
        let Ok(message) = frame::decode::<m::Downstream>(Bytes::copy_from_slice(body)) else { continue };
        match message.body {
            Some(downstream::Body::Batch(batch)) => {
                let Ok(batch) = Batch::from_message(batch) else { continue };
                let (end_lsn, epoch) = (receiver.end_lsn(), receiver.epoch());
                if receiver.batch(&batch) == Verdict::Take {
                    assert!(batch.begin_lsn == end_lsn && batch.epoch >= epoch);
                    assert_eq!((receiver.end_lsn(), receiver.epoch()), (batch.end_lsn, batch.epoch));
                    assert_eq!(receiver.batch(&batch), Verdict::Duplicate);
                } else {
                    assert_eq!((receiver.end_lsn(), receiver.epoch()), (end_lsn, epoch));
                }
            }
            Some(downstream::Body::Timeline(file)) => {
                if let Ok(history) = TimelineHistory::parse(Timeline(file.timeline), &file.content) {
                    let _ = receiver.history(history);
                }
            }
            _ => {}
        }
    }
}

/// What whoever takes a seed says that it has: messages of a peer, one after the other.
pub fn inventory(data: &[u8]) {
    let mut inventory = Inventory::default();
    for message in data.split(|byte| *byte == 0xff) {
        let Ok(message) = frame::decode::<m::SeedInventory>(Bytes::copy_from_slice(message)) else { return };
        match inventory.take(&message) {
            Ok(false) => {}
            Ok(true) | Err(_) => break,
        }
    }
    let pieces = inventory.messages().flat_map(|message| message.files).map(|file| file.pieces.len() / 32);
    assert!(pieces.sum::<usize>() <= PIECES_MAX);
    // Whoever is told of it has the same.
    let (mut told, mut over) = (Inventory::default(), false);
    for message in inventory.messages() {
        assert!(!over);
        over = told.take(&message).unwrap();
        for file in &message.files {
            let bytes = file.length.min(file.pieces.len() as u64 / 32 * u64::from(message.piece_bytes));
            assert!(inventory.digest(file.name.as_ref(), 0, bytes).is_some());
        }
    }
    assert!(over && (told == inventory || inventory.is_empty()));
    assert_eq!(told.bytes(), inventory.bytes());
}

/// A stream whose bytes are known.
fn stream() -> &'static [u8] {
    static STREAM: OnceLock<Vec<u8>> = OnceLock::new();
    STREAM.get_or_init(|| {
        (0..1_u64 << 14).map(|n| n.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes()[0]).collect()
    })
}

/// Who sends it has all of it.
fn ring() -> &'static Ring {
    static RING: OnceLock<Ring> = OnceLock::new();
    RING.get_or_init(|| {
        let mut ring = Ring::new(0);
        ring.put(0, stream());
        ring
    })
}

/// Repairs of a stream, as datagrams: as they come, and as correct ones of which some came and some did not,
/// which bring back what the stream holds and nothing else.
pub fn repair(data: &[u8]) {
    if let Some(repair) = Repair::decode(Bytes::copy_from_slice(data)) {
        assert_eq!(repair.encode(), data);
        assert!(repair.cell <= CELL_BYTES_MAX && repair.column + repair.bytes.len() as u64 <= repair.cell);
        assert!(repair.window.end - repair.window.start <= WINDOW_CELLS * repair.cell);
        // With what a peer makes of it, no more comes out than went in.
        let mut assembly = Assembly::new(repair.window.start);
        let end = repair.window.end;
        assembly.repair(repair);
        assembly.chunk(end, Bytes::from_static(b"behind"));
        let out: usize = std::iter::from_fn(|| assembly.take()).map(|(bytes, _)| bytes.len()).sum();
        assert!(out + assembly.beyond_bytes() <= usize::try_from(WINDOW_CELLS * CELL_BYTES_MAX).unwrap() + 6);
    }
    // What happens: a piece of the stream comes, or a repair of some of it.
    let stream = stream();
    let (mut assembly, mut out) = (Assembly::new(0), 0);
    for deed in data.chunks_exact(6).take(16) {
        let [kind, key, a, b, c, d] = *deed else { break };
        let (begin, length) = (u16::from_le_bytes([a, b]) % (1 << 14), u16::from_le_bytes([c, d]) % 1500);
        let begin = usize::from(begin);
        let end = (begin + usize::from(length)).min(stream.len());
        if kind % 2 == 0 {
            assembly.chunk(begin as u64, Bytes::from_static(&stream[begin..end]));
        } else if begin < end {
            let cell = [356, 712, CELL_BYTES_MAX][usize::from(kind / 2) % 3];
            for repair in Repair::compute(ring(), key, cell, begin as u64..end as u64, 1200) {
                assert_eq!(Repair::decode(repair.encode()).as_ref(), Some(&repair));
                assembly.repair(repair);
            }
        }
        while let Some((bytes, _)) = assembly.take() {
            assert_eq!(bytes, stream[out..out + bytes.len()], "what came out is not what the stream holds");
            out += bytes.len();
        }
        assert!(out + assembly.beyond_bytes() <= stream.len());
    }
    assert_eq!(assembly.refuted(), 0);
}

/// Whose a certificate is, what a signing request asks for, and marks of certificates. The first byte says
/// which.
pub fn identity(data: &[u8]) {
    let Some((kind, body)) = data.split_first() else { return };
    match kind % 4 {
        0 => {
            if let Some(certificate) = Certificate::of(&body.into()) {
                assert_eq!(certificate.fingerprint.len(), 64);
                assert!(
                    certificate.has_role() || matches!(certificate.peer, Peer::Voter(_) | Peer::Operator(_))
                );
                uri_of(&certificate.peer);
            }
        }
        1 => {
            let body = BASE64_STANDARD.encode(body);
            asked_to_sign(&format!(
                "-----BEGIN CERTIFICATE REQUEST-----\n{body}\n-----END CERTIFICATE REQUEST-----\n"
            ));
        }
        2 => {
            let text = String::from_utf8_lossy(body);
            if let Ok(Some((_, peer))) = Peer::of_uri(&text) {
                uri_of(&peer);
                assert!(text.contains(peer.role()) && text.ends_with(&peer.name()));
            }
            if let Some(mark) = peer::mark(&text) {
                assert_eq!(peer::mark(&mark).as_ref(), Some(&mark));
            }
        }
        _ => asked_to_sign(&String::from_utf8_lossy(body)),
    }
}

fn uri_of(peer: &Peer) {
    let cluster = ClusterId([7; 16]);
    let uri = peer.uri(cluster);
    assert_eq!(uri.is_none(), matches!(peer, Peer::Voter(_)));
    if let Some(uri) = uri {
        assert_eq!(Peer::of_uri(&uri), Ok(Some((cluster, peer.clone()))));
    }
}

fn asked_to_sign(pem: &str) {
    for request in signing::Request::read_all(pem).into_iter().flatten() {
        match request.whose {
            signing::Whose::Peer(_, peer) => uri_of(&peer),
            signing::Whose::Server(names) => assert!(!names.is_empty()),
        }
    }
}
