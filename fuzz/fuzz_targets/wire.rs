//! What a standby sends to the walsender.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    use postgres::protocol::walsender::Session;
    use postgres::protocol::wire::{take_message, take_startup};
    let mut buffer = bytes::BytesMut::from(data);
    let mut session = Session::new("15.0", 0);
    if let Ok(Some(packet)) = take_startup(&mut buffer, 10_000) {
        session.startup(packet);
    }
    let identity = postgres::protocol::client::SystemIdentity {
        system_id: proto::SystemId(1),
        timeline: proto::Timeline(1),
        flush_lsn: proto::Lsn(0x1000),
    };
    let history = proto::TimelineHistory::first();
    let view = postgres::protocol::walsender::SourceView { identity, horizon_lsn: proto::Lsn(0x100), history };
    while let Ok(Some(message)) = take_message(&mut buffer, 65_536) {
        session.handle(1, message, &view);
    }
});
