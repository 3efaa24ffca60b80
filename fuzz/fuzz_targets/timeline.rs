//! A timeline history file from PostgreSQL or a peer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(history) = proto::TimelineHistory::parse(proto::Timeline(9), data) {
        let _ = history.timeline_at(proto::Lsn(1 << 30));
    }
});
