//! A batch from a peer or a disk, decoded and decompressed.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(batch) = proto::Batch::decode(bytes::Bytes::copy_from_slice(data))
        && let Ok(mut decoder) = proto::compression::Decompressor::new()
    {
        let _ = decoder.decompress(&batch);
    }
});
