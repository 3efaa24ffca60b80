//! What whoever takes a seed says that it has: messages of a peer, one after the other.
#![no_main]

use bytes::Bytes;
use postgres::backup::pieces::{Inventory, PIECES_MAX};
use proto::frame;
use proto::messages::SeedInventory;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let mut inventory = Inventory::default();
    for message in data.split(|byte| *byte == 0xff) {
        let Ok(message) = frame::decode::<SeedInventory>(Bytes::copy_from_slice(message)) else { return };
        match inventory.take(&message) {
            Ok(false) => {}
            Ok(true) | Err(_) => break,
        }
    }
    let pieces = inventory.messages().flat_map(|message| message.files).map(|file| file.pieces.len() / 32);
    assert!(pieces.sum::<usize>() <= PIECES_MAX);
});
