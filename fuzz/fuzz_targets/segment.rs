//! A segment as found on a disk.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = volume::segment::Header::decode(data);
    let _ = volume::segment::read_record(&bytes::Bytes::copy_from_slice(data));
});
