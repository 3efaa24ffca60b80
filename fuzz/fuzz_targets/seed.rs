//! A base backup as a primary sends it: one zstd stream, and the tar archive in it.
#![no_main]

use std::io::{copy, sink};
use std::path::Component;

use postgres::backup::archive::{Entry, read};
use secondary::seed::Decoder;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let unpack = |archive: &[u8]| {
        let _ = read(archive, |name, entry| {
            assert!(name.components().all(|part| matches!(part, Component::Normal(_))));
            match entry {
                Entry::Directory => Ok(()),
                Entry::File(content) => copy(content, &mut sink()).map(drop),
            }
        });
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
