//! A base backup as a primary sends it: one zstd stream, and the tar archive in it.
#![no_main]

use std::path::Component;

use bytes::Bytes;
use postgres::backup::archive::{Part, Reader};
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
