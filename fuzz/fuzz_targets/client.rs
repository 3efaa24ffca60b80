//! What the writer's PostgreSQL sends: messages, rows, errors, redo, a base backup's copy, and what pg_rewind
//! is answered.
#![no_main]

use postgres::backup::base_backup;
use postgres::backup::rewind::Listing;
use postgres::protocol::client::{ServerError, parse_copy, parse_row};
use postgres::protocol::wire::take_message;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let mut buffer = bytes::BytesMut::from(data);
    while let Ok(Some(message)) = take_message(&mut buffer, 4 << 20) {
        let _ = (parse_copy(message.body.clone()), parse_row(message.body.clone()));
        let _ = base_backup::parse_copy(message.body.clone());
        let _ = ServerError::parse(message.body).to_string();
    }
    let Some((piece, sent)) = data.split_first() else { return };
    let (mut listing, mut passed) = (Listing::new([7].into()), Vec::new());
    for piece in sent.chunks(usize::from(*piece) + 1) {
        listing.pass(piece, &mut passed);
    }
    assert!(passed.len() <= sent.len());
});
