//! What PostgreSQL and its programs say, and what a base backup is on its way.

use std::collections::VecDeque;
use std::fmt::Display;
use std::path::{Component, PathBuf};
use std::str::FromStr;
use std::sync::OnceLock;

use bytes::{Bytes, BytesMut};
use postgres::backup::archive::{Part, Reader};
use postgres::backup::base_backup;
use postgres::backup::merge::Merge;
use postgres::backup::pieces::{self, Inventory, Leaner, Leaving};
use postgres::backup::rewind::Listing;
use postgres::instance::control::ControlData;
use postgres::protocol::client::{ServerError, StreamEvent, SystemIdentity, parse_copy, parse_row};
use postgres::protocol::walsender::{Output, Session, SourceView};
use postgres::protocol::wire::{take_message, take_startup};
use postgres::scram;
use postgres::wal::records::Records;
use postgres::wal::segment::{SegmentSize, is_segment, timeline_of_segment};
use postgres::wal::tablespaces;
use proto::{ClusterId, Lsn, NodeName, RegionName, SystemId, Timeline, TimelineHistory};
use secondary::seed::Decoder;
use volume::ballot::Ballot;
use volume::quorum::CopyId;
use volume::seal::KeyId;

/// The largest message that is taken from a standby.
const MESSAGE_BYTES_MAX: usize = 64 * 1024;

fn source() -> &'static SourceView {
    static SOURCE: OnceLock<SourceView> = OnceLock::new();
    SOURCE.get_or_init(|| SourceView {
        identity: SystemIdentity { system_id: SystemId(1), timeline: Timeline(3), flush_lsn: Lsn(0x1000) },
        horizon_lsn: Lsn(0x100),
        history: TimelineHistory::parse(Timeline(3), b"1\t0/400\tx\n2\t0/800\ty\n").unwrap(),
    })
}

/// What a standby sends to the walsender, and what it is answered with.
pub fn wire(data: &[u8]) {
    let source = source();
    let mut buffer = BytesMut::from(data);
    let mut session = Session::new("15.0", 0);
    match take_startup(&mut buffer, 10_000) {
        Ok(Some(packet)) => {
            answered(&mut session, source, 0, &packet.clone(), |session| session.startup(packet))
        }
        Ok(None) => assert_eq!(buffer.len(), data.len()),
        Err(_) => return,
    }
    for now_us in (1..).step_by(10_000) {
        let before = buffer.len();
        let Ok(Some(message)) = take_message(&mut buffer, MESSAGE_BYTES_MAX) else { break };
        assert_eq!(before, buffer.len() + 5 + message.body.len());
        let body = message.body.clone();
        answered(&mut session, source, now_us, &body, |session| session.handle(now_us, message, source));
        answered(&mut session, source, now_us, &[], |session| session.timer(now_us));
        assert!(session.wake_at_us() > now_us);
    }
}

/// What comes out is whole messages, not much more than was asked with, and redo that is here.
fn answered(
    session: &mut Session,
    source: &SourceView,
    now_us: i64,
    asked: &[u8],
    ask: impl FnOnce(&mut Session) -> Vec<Output>,
) {
    let outputs = ask(session);
    assert!(outputs.len() <= 3);
    for output in outputs {
        match output {
            Output::Send(bytes) if bytes[..] == b"N"[..] => {}
            Output::Send(bytes) => {
                assert!(bytes.len() <= 1024 + 6 * asked.len());
                let mut sent = BytesMut::from(&bytes[..]);
                while let Some(message) = take_message(&mut sent, MESSAGE_BYTES_MAX * 8).unwrap() {
                    if message.tag == b'E' {
                        assert!(!ServerError::parse(message.body).code.is_empty());
                    }
                }
                assert!(sent.is_empty());
            }
            Output::Stream { from_lsn, timeline, end_lsn } => {
                assert!(from_lsn >= source.horizon_lsn && from_lsn <= source.identity.flush_lsn);
                assert_eq!(source.history.fork_of(timeline), end_lsn);
                assert!(end_lsn.is_none_or(|end_lsn| from_lsn < end_lsn));
                session.sent(now_us, end_lsn.unwrap_or(source.identity.flush_lsn));
                if let Some((next, end_lsn)) = source.history.successor_of(timeline).zip(end_lsn) {
                    session.timeline_ended(next, end_lsn);
                }
            }
            Output::Missing(lsn) => assert!(lsn < source.horizon_lsn),
            Output::Progress(_) | Output::StopStreaming | Output::Close(_) => {}
        }
    }
}

/// What the writer's PostgreSQL sends: messages, rows, errors, redo, a base backup's copy, and what pg_rewind
/// is answered.
pub fn client(data: &[u8]) {
    let mut buffer = BytesMut::from(data);
    while let Ok(Some(message)) = take_message(&mut buffer, 4 << 20) {
        let body = message.body;
        if let Some(StreamEvent::Redo { begin_lsn, bytes, .. }) = parse_copy(body.clone()) {
            assert!(begin_lsn.checked_add(bytes.len() as u64).is_some() && bytes.len() < body.len());
        }
        if let Some(row) = parse_row(body.clone()) {
            assert!(row.len() <= body.len() / 4);
        }
        if let Some(base_backup::CopyPart::Data(bytes)) = base_backup::parse_copy(body.clone()) {
            assert_eq!(bytes[..], body[1..]);
        }
        let shown = ServerError::parse(body.clone()).to_string();
        assert!(shown.len() <= 40 + 3 * body.len());
    }
    let Some((piece, sent)) = data.split_first() else { return };
    // What is left out does not depend on how it comes.
    let passed = |piece: usize| {
        let (mut listing, mut passed) = (Listing::new([7].into()), Vec::new());
        sent.chunks(piece).for_each(|piece| listing.pass(piece, &mut passed));
        passed
    };
    let whole = passed(sent.len().max(1));
    assert!(whole.len() <= sent.len() && whole == passed(usize::from(*piece) + 1));
}

/// The writer's redo, followed from record to record in pieces.
pub fn records(data: &[u8]) {
    let [begin, piece, redo @ ..] = data else { return };
    let begin_lsn = Lsn(8192 * 3 + u64::from(*begin) * 32);
    let mut records = Records::new(begin_lsn);
    let (mut read_lsn, mut complete_lsn) = (begin_lsn, begin_lsn);
    for end in (0..=redo.len()).step_by(usize::from(*piece) * 16 + 1).chain([redo.len()]) {
        records.read(begin_lsn, &redo[..end]);
        assert!(records.complete_lsn() <= records.read_lsn());
        assert!(records.read_lsn().bytes_since(begin_lsn) <= end as u64);
        assert!(records.read_lsn() >= read_lsn && records.complete_lsn() >= complete_lsn);
        (read_lsn, complete_lsn) = (records.read_lsn(), records.complete_lsn());
    }
}

/// Where redo makes a tablespace, and redo without the paths; as it is, and with records whose checksums are
/// right. The first eight bytes say where it begins.
pub fn tablespaces(data: &[u8]) {
    let Some((begin, redo)) = data.split_first_chunk::<8>() else { return };
    let begin_lsn = Lsn(u64::from_le_bytes(*begin));
    if begin_lsn.checked_add(redo.len() as u64).is_none() {
        return;
    }
    let whole = [redo, &checked(redo)];
    for redo in whole {
        let made = tablespaces::created(begin_lsn, redo);
        assert!(made.len() <= redo.len() / 24 && made.iter().all(|created| created.lsn >= begin_lsn));
        let without = tablespaces::without_paths(begin_lsn, redo);
        assert_eq!(without.is_some(), made.iter().any(|created| !created.path.is_empty()));
        let Some(without) = without else { continue };
        assert_eq!(without.len(), redo.len());
        let left = tablespaces::created(begin_lsn, &without);
        // No PostgreSQL writes a record within another.
        if let [made] = &made[..] {
            assert_eq!(left, [tablespaces::Created { path: String::new(), ..made.clone() }]);
        }
        assert!(made.len() > 1 || tablespaces::without_paths(begin_lsn, &without).is_none());
    }
}

/// With the checksum put right of the record that `redo` begins with.
fn checked(redo: &[u8]) -> Vec<u8> {
    let mut redo = redo.to_vec();
    let length = redo.first_chunk().map_or(0, |length| u32::from_le_bytes(*length) as usize);
    if (24..=redo.len()).contains(&length) {
        let crc = crc32c::crc32c_append(crc32c::crc32c(&redo[24..length]), &redo[..20]);
        redo[20..24].copy_from_slice(&crc.to_le_bytes());
    }
    redo
}

/// The parts of an archive that comes in pieces of so many bytes, contents as their lengths; whether it was
/// read to its end.
fn parts(archive: &[u8], piece: usize) -> (Vec<(Option<PathBuf>, u64)>, bool) {
    let (mut reader, mut found) = (Reader::default(), Vec::<(Option<PathBuf>, u64)>::new());
    for piece in archive.chunks(piece.max(1)) {
        let mut bytes = Bytes::copy_from_slice(piece);
        loop {
            match reader.next(&mut bytes) {
                Ok(Some(Part::Directory(name) | Part::File(name, _))) => {
                    assert!(name.components().all(|part| matches!(part, Component::Normal(_))));
                    found.push((Some(name), 0));
                }
                Ok(Some(Part::Content(content))) => found.last_mut().unwrap().1 += content.len() as u64,
                Ok(Some(Part::Whole)) => found.push((None, 0)),
                Ok(None) => break,
                Err(_) => return (found, false),
            }
        }
    }
    assert!(found.iter().map(|(_, bytes)| bytes).sum::<u64>() <= archive.len() as u64);
    (found, reader.finish().is_ok())
}

/// With the checksums put right of what may be its headers.
fn summed(archive: &[u8]) -> Vec<u8> {
    let mut archive = archive.to_vec();
    for block in archive.chunks_exact_mut(512) {
        // A magic of tar's, or the content of a file.
        if block[257..262] == *b"ustar" {
            let sum: u32 = block
                .iter()
                .enumerate()
                .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) })
                .sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
    archive
}

/// The tar archives of a base backup, in pieces of any size; several that become one; and one of which is
/// left out what is there. Their headers' checksums are put right.
pub fn archive(data: &[u8]) {
    let Some((piece, data)) = data.split_first() else { return };
    let piece = usize::from(*piece) * 4 + 1;
    let archive = summed(data);
    let whole = parts(&archive, archive.len());
    assert_eq!(parts(&archive, piece), whole);
    // As it is, which is refused unless all checksums are right.
    if archive != data {
        let found = parts(data, data.len());
        assert!(found.0.len() <= whole.0.len() || !whole.1);
    }
    merged(&archive, piece);
    left_out(&archive, piece);
}

/// The writer's archives, of which one is made: a tablespace's, and the data directory's.
fn merged(archive: &[u8], piece: usize) {
    let (tablespace, own) = archive.split_at(archive.len() / 1024 * 512);
    let merged = |piece: usize| {
        let (mut merge, mut merged) = (Merge::default(), VecDeque::new());
        let whole = [(Some(16384), tablespace), (None, own)].into_iter().all(|(of, archive)| {
            let begun = merge.begin(of, &mut merged).is_ok();
            archive.chunks(piece).for_each(|chunk| merge.take(Bytes::copy_from_slice(chunk), &mut merged));
            begun
        });
        (merged.iter().flatten().copied().collect::<Vec<u8>>(), whole)
    };
    let (bytes, whole) = merged(archive.len().max(1));
    assert_eq!(merged(piece), (bytes.clone(), whole));
    assert!(bytes.len() <= archive.len() + 512);
    if whole {
        parts(&bytes, bytes.len());
    }
}

/// What is there of an archive's own files is left out of it, and is told so that the rest fits.
fn left_out(archive: &[u8], piece: usize) {
    let (mut inventory, mut contents) = (Inventory::default(), Vec::<(PathBuf, Vec<u8>)>::new());
    let (mut reader, mut bytes) = (Reader::default(), Bytes::copy_from_slice(archive));
    while let Ok(Some(part)) = reader.next(&mut bytes) {
        match part {
            Part::File(name, _) => contents.push((name, Vec::new())),
            Part::Content(content) => contents.last_mut().unwrap().1.extend_from_slice(&content),
            Part::Whole | Part::Directory(_) => {}
        }
    }
    for (name, content) in contents.iter().step_by(2).filter(|(_, content)| !content.is_empty()) {
        let _ = inventory.add(name, content.len() as u64, &[pieces::hash(content)]);
    }
    if inventory.is_empty() {
        // Then it goes as it is, whatever it is.
        return;
    }
    let mut leaving = Leaving::new(inventory.clone());
    let mut out = Vec::new();
    let taken =
        archive.chunks(piece).try_for_each(|piece| leaving.take(Bytes::copy_from_slice(piece), &mut out));
    if taken.is_err() || leaving.finish().is_err() {
        return;
    }
    // The other side.
    let (mut reader, mut file) = (Reader::default(), (PathBuf::new(), 0_u64));
    let (mut sent, mut kept) = (0, 0);
    for leaner in out {
        match leaner {
            Leaner::Data(mut bytes) => {
                sent += bytes.len();
                while let Some(part) = reader.next(&mut bytes).unwrap() {
                    match part {
                        Part::File(name, _) => file = (name, 0),
                        Part::Content(content) => file.1 += content.len() as u64,
                        Part::Whole | Part::Directory(_) => {}
                    }
                }
            }
            Leaner::Same { bytes, digest } => {
                assert_eq!(inventory.digest(&file.0, file.1, bytes), Some(digest));
                reader.skip(bytes).unwrap();
                file.1 += bytes;
                kept += usize::try_from(bytes).unwrap();
            }
        }
    }
    assert_eq!(sent + kept, archive.len());
    reader.finish().unwrap();
}

/// A base backup as a primary sends it: one zstd stream, decompressed within bounds, and the tar archive in
/// it.
pub fn seed(data: &[u8]) {
    let mut decoder = Decoder::new().unwrap();
    let mut reader = Reader::default();
    for chunk in data.chunks(512) {
        let fed = decoder.feed(chunk);
        let taken = decoder.take();
        assert!(taken.iter().map(Bytes::len).sum::<usize>() <= 17 << 20);
        if fed.is_err() {
            return;
        }
        for mut piece in taken {
            assert!(piece.len() <= 256 << 10);
            while let Some(part) = reader.next(&mut piece).unwrap_or_default() {
                if let Part::Directory(name) | Part::File(name, _) = part {
                    assert!(name.components().all(|part| matches!(part, Component::Normal(_))));
                }
            }
        }
    }
}

/// What PostgreSQL keeps of a password, compared with two of them.
pub fn scram(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let salted = scram::has_salt(&text, &[7; 16]);
    let rounds =
        text.strip_prefix("SCRAM-SHA-256$").and_then(|rest| rest.split_once(':')?.0.parse::<u32>().ok());
    // More take long.
    if rounds.is_some_and(|rounds| (65..=scram::ITERATIONS_MAX).contains(&rounds)) {
        return;
    }
    let [one, other] = ["pencil", "secret"].map(|password| scram::fits(password, &text));
    assert_eq!(one.is_some(), other.is_some());
    assert!(one != Some(true) || other != Some(true));
    assert!(rounds.is_some() || one.is_none());
    assert!(
        !salted || one.is_some() || rounds.is_none_or(|rounds| rounds == 0 || rounds > scram::ITERATIONS_MAX)
    );
}

fn same_text<T: FromStr + Display + PartialEq>(text: &str) {
    if let Ok(read) = text.parse::<T>() {
        assert!(read.to_string().parse::<T>().is_ok_and(|again| again == read), "{text}");
    }
}

/// Texts of a few words: what `pg_controldata` prints, and names and numbers that are read from files,
/// messages and arguments.
pub fn texts(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(control) = ControlData::parse(&text) {
        assert!(SegmentSize::new(control.segment_size.bytes()).is_some());
        assert!(control.timeline() >= control.checkpoint_timeline);
        let name = control.segment_size.name(control.checkpoint_timeline, control.checkpoint_lsn);
        assert_eq!(timeline_of_segment(&name), Some(control.checkpoint_timeline));
    }
    assert_eq!(is_segment(&text), timeline_of_segment(&text).is_some());
    same_text::<Lsn>(&text);
    same_text::<ClusterId>(&text);
    same_text::<RegionName>(&text);
    same_text::<NodeName>(&text);
    same_text::<Ballot>(&text);
    same_text::<CopyId>(&text);
    same_text::<KeyId>(&text);
    same_text::<transport::Holder>(&text);
}
