//! Sealed volumes on a real disk: nothing shows, everything comes back, and what was changed is noticed.

use std::collections::BTreeMap;

use replicator_volume::seal::{KEY_BYTES, Keys, RegionKey, Sealer};
use replicator_volume::segment::{Found, HEADER_BYTES, Header, read_record};

use super::*;

const TEXT: &[u8] = b"a row that nobody else may read ";

fn key(byte: u8) -> RegionKey {
    RegionKey::new([byte; KEY_BYTES].into(), Bytes::new())
}

/// The keys 1 to `count`; the last of them is used.
fn keys(count: u8) -> Keys {
    Keys::new((1..=count).map(key), Some(key(count).id()))
}

fn sealer(keys: Keys) -> Arc<Sealer> {
    Arc::new(Sealer::new(ClusterId([5; 16]), keys, runtime::random::draw()))
}

fn sealed_options(directory: &Path, sealer: &Arc<Sealer>) -> VolumeOptions {
    VolumeOptions { sealer: Some(sealer.clone()), ..options(directory) }
}

/// A batch of known text, in whole or between noise.
fn text(writer: &mut Writer, size: usize) -> Redo {
    let begin_lsn = writer.end_lsn;
    let mut redo = writer.batch(size);
    // What was compressed for this place is given up, and the context with it.
    writer.compressor = Compressor::new(1).unwrap();
    let mut bytes = redo.bytes.to_vec();
    for place in bytes.chunks_exact_mut(TEXT.len()).step_by(3) {
        place.copy_from_slice(TEXT);
    }
    let compressed = writer.compressor.compress(begin_lsn, &bytes).unwrap();
    writer.compressor = Compressor::new(1).unwrap();
    redo.batch = Batch {
        context_lsn: compressed.context_lsn,
        redo_crc32c: compressed.redo_crc32c,
        payload: compressed.payload,
        ..redo.batch
    };
    redo.bytes = bytes.into();
    redo
}

async fn append(volume: &Volume, writer: &mut Writer, count: usize) -> Vec<Redo> {
    let mut written = Vec::new();
    for _ in 0..count {
        let redo = text(writer, 30_000);
        volume.append(redo.clone()).await.unwrap();
        written.push(redo);
    }
    until_durable(volume, writer.end_lsn).await;
    written
}

/// All files below a directory.
fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => found.push(path),
        }
    }
    found
}

fn holds(bytes: &[u8], text: &[u8]) -> bool {
    bytes.windows(text.len()).any(|window| window == text)
}

/// Whether the text lies there, or what was compressed of it.
fn shows(bytes: &[u8], written: &[Redo]) -> bool {
    holds(bytes, TEXT) || written.iter().any(|redo| holds(bytes, &redo.batch.payload[..32]))
}

/// Lets go of a volume, and waits until its copies have.
async fn close(volume: Volume, directory: &Path) {
    drop(volume);
    for copy in CopyId::all() {
        let lock = directory_of(directory, copy).join("copy.lock");
        until("the copy is let go of", || {
            std::fs::OpenOptions::new().write(true).open(&lock).unwrap().try_lock().is_ok()
        })
        .await;
    }
}

/// The nonces of all sealed records of a copy, and where each was used.
fn nonces(directory: &Path, copy: CopyId) -> BTreeMap<([u8; 16], u64), Bytes> {
    let mut found = BTreeMap::new();
    for path in segments_of(directory, copy) {
        let bytes = Bytes::from(std::fs::read(&path).unwrap());
        let mut offset = HEADER_BYTES;
        while let Found::Record(record) = read_record(&bytes.slice(offset..)) {
            offset += record.bytes.len();
            if let Some(sealed) = record.sealed {
                found.insert((sealed.run, sealed.count), record.bytes);
            }
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_shows_on_disk_and_with_the_keys_all_comes_back_also_from_a_zone_that_was_lost() {
    let directory = tempfile::tempdir().unwrap();
    let clear = tempfile::tempdir().unwrap();
    let ours = sealer(keys(1));
    let volume = Volume::open(sealed_options(directory.path(), &ours)).await.unwrap();
    volume.reset(BEGIN, Timeline(1)).await.unwrap();
    let mut writer = Writer::new(BEGIN);
    let mut written = append(&volume, &mut writer, 40).await;
    until_whole(&volume, writer.end_lsn).await;
    same_everywhere(directory.path());
    assert!(segments(directory.path()).len() > 2);
    // A zone's copies are lost and filled again, without a key: that a key is not here hinders no repair.
    close(volume, directory.path()).await;
    std::fs::remove_dir_all(directory.path().join("az-b")).unwrap();
    let keyless = Volume::open(options(directory.path())).await.unwrap();
    until_whole(&keyless, writer.end_lsn).await;
    same_everywhere(directory.path());
    let refused = read_all(&keyless, BEGIN).await.unwrap_err();
    assert!(matches!(refused, VolumeError::NoKey { .. }), "{refused}");
    assert!(matches!(keyless.check_keys(), Err(VolumeError::NoKey { .. })));
    close(keyless, directory.path()).await;
    // A process of its own, with the same keys, reads all of it, and goes on.
    let volume = Volume::open(sealed_options(directory.path(), &sealer(keys(1)))).await.unwrap();
    volume.check_keys().unwrap();
    assert_eq!(read_all(&volume, BEGIN).await.unwrap(), written);
    written.extend(append(&volume, &mut writer, 3).await);
    until_whole(&volume, writer.end_lsn).await;
    assert_eq!(read_all(&volume, BEGIN).await.unwrap(), written);
    close(volume, directory.path()).await;
    for path in files(directory.path()) {
        assert!(!shows(&std::fs::read(&path).unwrap(), &written), "{}", path.display());
    }
    // The search finds what is in the clear.
    let volume = Volume::open(options(clear.path())).await.unwrap();
    volume.reset(BEGIN, Timeline(1)).await.unwrap();
    let mut writer = Writer::new(BEGIN);
    let written = append(&volume, &mut writer, 2).await;
    until_whole(&volume, writer.end_lsn).await;
    close(volume, clear.path()).await;
    let found =
        files(clear.path()).iter().filter(|path| shows(&std::fs::read(path).unwrap(), &written)).count();
    assert_eq!(found, 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_torn_end_is_written_over_with_other_redo_under_other_nonces() {
    let directory = tempfile::tempdir().unwrap();
    let volume = Volume::open(sealed_options(directory.path(), &sealer(keys(1)))).await.unwrap();
    volume.reset(BEGIN, Timeline(1)).await.unwrap();
    let mut writer = Writer::new(BEGIN);
    let mut written = append(&volume, &mut writer, 3).await;
    until_whole(&volume, writer.end_lsn).await;
    close(volume, directory.path()).await;
    let before = nonces(directory.path(), CopyId(0));
    // The power goes in the middle of the last record, in all copies: its beginning is there, its end is not.
    let last = written.pop().unwrap();
    for copy in CopyId::all() {
        let path = segments_of(directory.path(), copy).pop().unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let length = bytes.iter().rposition(|byte| *byte != 0).unwrap();
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(length as u64 - 9_000).unwrap();
    }
    let volume = Volume::open(sealed_options(directory.path(), &sealer(keys(1)))).await.unwrap();
    assert_eq!(volume.bounds().durable_lsn, last.batch.begin_lsn);
    let mut writer = Writer::new(last.batch.begin_lsn);
    let other = writer.batch(30_000);
    volume.append(other.clone()).await.unwrap();
    until_durable(&volume, writer.end_lsn).await;
    until_whole(&volume, writer.end_lsn).await;
    written.push(other);
    written.extend(append(&volume, &mut writer, 2).await);
    assert_eq!(read_all(&volume, BEGIN).await.unwrap(), written);
    until_whole(&volume, writer.end_lsn).await;
    close(volume, directory.path()).await;
    let after = nonces(directory.path(), CopyId(0));
    let kept = before.iter().filter(|(nonce, _)| after.contains_key(nonce)).count();
    assert_eq!((before.len(), kept), (3, 2));
    for (nonce, record) in &before {
        assert!(after.get(nonce).is_none_or(|now| now == record), "{nonce:?} was used for two records");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_was_changed_with_a_right_checksum_is_read_elsewhere_and_mended() {
    let directory = tempfile::tempdir().unwrap();
    let volume = Volume::open(sealed_options(directory.path(), &sealer(keys(1)))).await.unwrap();
    volume.reset(BEGIN, Timeline(1)).await.unwrap();
    let mut writer = Writer::new(BEGIN);
    let written = append(&volume, &mut writer, 30).await;
    until_whole(&volume, writer.end_lsn).await;
    close(volume, directory.path()).await;
    // In the first copy, which is read first: one byte of the redo in a sealed segment, and the checksum.
    let path = segments(directory.path()).remove(1);
    let mut bytes = std::fs::read(&path).unwrap();
    let Found::Record(record) = read_record(&Bytes::copy_from_slice(&bytes[HEADER_BYTES..])) else {
        panic!()
    };
    let end = HEADER_BYTES + record.bytes.len();
    bytes[end - 100] ^= 1;
    let crc = crc32c::crc32c_append(
        crc32c::crc32c(&bytes[HEADER_BYTES..HEADER_BYTES + 4]),
        &bytes[HEADER_BYTES + 8..end],
    );
    bytes[HEADER_BYTES + 4..HEADER_BYTES + 8].copy_from_slice(&crc.to_le_bytes());
    std::fs::write(&path, &bytes).unwrap();
    let volume = Volume::open(sealed_options(directory.path(), &sealer(keys(1)))).await.unwrap();
    // Its checksum is right: to read it back tells nothing.
    volume.scrub(None).await;
    let mended = |volume: &Volume| -> u64 {
        volume.status().copies.iter().map(|copy| copy.repair.repaired_segments).sum()
    };
    assert_eq!(mended(&volume), 0);
    assert_eq!(read_all(&volume, BEGIN).await.unwrap(), written);
    until("the copy is mended from a peer", || mended(&volume) == 1).await;
    until_whole(&volume, writer.end_lsn).await;
    same_everywhere(directory.path());
}

#[tokio::test(flavor = "multi_thread")]
async fn rot_in_a_sealed_copy_is_found_and_mended_without_a_key() {
    let directory = tempfile::tempdir().unwrap();
    let volume = Volume::open(sealed_options(directory.path(), &sealer(keys(1)))).await.unwrap();
    volume.reset(BEGIN, Timeline(1)).await.unwrap();
    let mut writer = Writer::new(BEGIN);
    let written = append(&volume, &mut writer, 30).await;
    until_whole(&volume, writer.end_lsn).await;
    close(volume, directory.path()).await;
    let path = segments(directory.path()).remove(1);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[5_000] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let keyless = Volume::open(options(directory.path())).await.unwrap();
    until_whole(&keyless, writer.end_lsn).await;
    keyless.scrub(None).await;
    same_everywhere(directory.path());
    close(keyless, directory.path()).await;
    let volume = Volume::open(sealed_options(directory.path(), &sealer(keys(1)))).await.unwrap();
    assert_eq!(read_all(&volume, BEGIN).await.unwrap(), written);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_in_the_clear_is_sealed_from_its_next_segment_on_and_keys_turn_over() {
    let directory = tempfile::tempdir().unwrap();
    let volume = Volume::open(options(directory.path())).await.unwrap();
    volume.reset(BEGIN, Timeline(1)).await.unwrap();
    let mut writer = Writer::new(BEGIN);
    let mut written = append(&volume, &mut writer, 2).await;
    let first = writer.batch(1_000);
    volume.append(first.clone()).await.unwrap();
    until_durable(&volume, writer.end_lsn).await;
    close(volume, directory.path()).await;
    let ours = sealer(keys(1));
    let volume = Volume::open(sealed_options(directory.path(), &ours)).await.unwrap();
    // Within a context the segment goes on as it is.
    let second = writer.batch(1_000);
    assert!(!second.batch.begins_context());
    volume.append(second.clone()).await.unwrap();
    written.extend([first, second]);
    assert_eq!(volume.status().keys.iter().map(|of| of.key).collect::<Vec<_>>(), [None]);
    let uses = |volume: &Volume| -> Vec<(Option<_>, u64)> {
        volume.status().keys.iter().map(|of| (of.key, of.segments)).collect()
    };
    written.extend(append(&volume, &mut writer, 2).await);
    assert_eq!(uses(&volume), [(None, 1), (Some(key(1).id()), 1)]);
    ours.renew(keys(2));
    written.extend(append(&volume, &mut writer, 2).await);
    let mut expected = [(Some(key(1).id()), 1), (Some(key(2).id()), 1)];
    expected.sort();
    assert_eq!(uses(&volume)[0], (None, 1));
    assert_eq!(uses(&volume)[1..], expected);
    assert_eq!(read_all(&volume, BEGIN).await.unwrap(), written);
    until_whole(&volume, writer.end_lsn).await;
    close(volume, directory.path()).await;
    let header = |path: &PathBuf| Header::decode(&std::fs::read(path).unwrap()).unwrap().key;
    let found: Vec<_> = segments(directory.path()).iter().map(header).collect();
    assert_eq!(found, [None, Some(key(1).id()), Some(key(2).id())]);
    // Started anew with the first key as the one that is used, the segment goes on with its own.
    let both = Keys::new([key(1), key(2)], Some(key(1).id()));
    let volume = Volume::open(sealed_options(directory.path(), &sealer(both))).await.unwrap();
    written.extend(append(&volume, &mut writer, 1).await);
    assert_eq!(read_all(&volume, BEGIN).await.unwrap(), written);
    close(volume, directory.path()).await;
    // Without the key of one segment that is said, with the key's id.
    let only = Keys::new([key(1)], Some(key(1).id()));
    let volume = Volume::open(sealed_options(directory.path(), &sealer(only))).await.unwrap();
    let refused = volume.check_keys().unwrap_err();
    assert!(matches!(refused, VolumeError::NoKey { key: id, .. } if id == key(2).id()), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_segment_of_a_later_version_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let (volume, ..) = filled(directory.path(), 3, 500).await;
    close(volume, directory.path()).await;
    let path = segments(directory.path()).remove(0);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[7] = 9;
    let crc = crc32c::crc32c(&bytes[..HEADER_BYTES - 4]);
    bytes[HEADER_BYTES - 4..HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
    std::fs::write(&path, &bytes).unwrap();
    let refused = Volume::open(options(directory.path())).await.unwrap_err();
    assert!(matches!(refused, VolumeError::LaterVersion { .. }), "{refused}");
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
}
