//! A base backup as a primary sends it: one zstd stream, and the tar archive in it; and as the writer gives
//! it, in several archives.
#![no_main]

use std::collections::VecDeque;
use std::path::Component;

use bytes::Bytes;
use postgres::backup::archive::{Part, Reader};
use postgres::backup::merge::Merge;
use secondary::seed::Decoder;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let unpack = |archive: &[u8]| {
        let (mut reader, mut bytes) = (Reader::default(), Bytes::copy_from_slice(archive));
        while let Ok(Some(part)) = reader.next(&mut bytes) {
            if let Part::Directory(name) | Part::File(name, _) = part {
                assert!(name.components().all(|part| matches!(part, Component::Normal(_))));
            }
        }
    };
    unpack(data);
    // The writer's archives, of which one is made: a tablespace's, and the data directory's.
    let (mut merge, mut merged) = (Merge::default(), VecDeque::new());
    let (tablespace, own) = data.split_at(data.len() / 2);
    let whole = [(Some(16384), tablespace), (None, own)].into_iter().all(|(of, archive)| {
        let begun = merge.begin(of, &mut merged).is_ok();
        archive.chunks(100).for_each(|chunk| merge.take(Bytes::copy_from_slice(chunk), &mut merged));
        begun
    });
    if whole {
        unpack(&merged.iter().flatten().copied().collect::<Vec<u8>>());
    }
    let Ok(mut decoder) = Decoder::new() else { return };
    let mut archive = Vec::new();
    for chunk in data.chunks(512) {
        if decoder.feed(chunk).is_err() {
            return;
        }
        for piece in decoder.take() {
            // What is decompressed goes to a disk; here the beginning is enough.
            if archive.len() < 1 << 20 {
                archive.extend_from_slice(&piece);
            }
        }
    }
    unpack(&archive);
});
