//! What a zone's process and its region's daemon say to each other.
#![no_main]

use proto::{Lsn, frame, messages as m};
use replicator::zone::wire;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let body = bytes::Bytes::copy_from_slice(data);
    if let Ok(message) = frame::decode::<m::CopyOrder>(body.clone()) {
        let _ = wire::to_order(message);
    }
    if let Ok(message) = frame::decode::<m::CopyEvent>(body.clone()) {
        let _ = wire::to_event(message);
    }
    if let Ok(message) = frame::decode::<m::CopyContents>(body.clone()) {
        let _ = wire::to_contents(&message);
    }
    if let Ok(message) = frame::decode::<m::CopyRecords>(body.clone()) {
        let _ = wire::to_records(message);
    }
    if let Ok(message) = frame::decode::<m::CopyScrubbed>(body.clone()) {
        let _ = wire::to_scrubbed(message);
    }
    if let Ok(message) = frame::decode::<m::CopyError>(body.clone()) {
        let _ = wire::to_error(message, "b1", Lsn(1));
    }
    let _ = frame::decode::<m::CopyPut>(body.clone()).map(|put| wire::to_writer(put.by));
    let _ = frame::decode::<m::CopyChunk>(body);
});
