//! Messages from a peer over QUIC.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    use proto::{frame, messages};
    let body = bytes::Bytes::copy_from_slice(data);
    let _ = frame::decode::<messages::Open>(body.clone());
    let _ = frame::decode::<messages::Downstream>(body.clone());
    let _ = frame::decode::<messages::Upstream>(body.clone());
    let _ = frame::decode::<messages::SeedChunk>(body.clone());
    let _ = frame::decode::<messages::ControlResponse>(body);
});
