//! A copy.meta as found on a disk, also one whose checksum is right.
#![no_main]

use proto::ClusterId;
use volume::ballot::Ballot;
use volume::copy::meta::Meta;
use volume::quorum::CopyId;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (cluster, copy) = (ClusterId([5; 16]), CopyId(2));
    let _ = Meta::parse(text, cluster, copy);
    let body = format!("replicator copy 2\ncluster {cluster}\ncopy {copy}\n{text}");
    for body in [text.to_owned(), body] {
        let sealed = format!("{body}crc {:08x}\n", crc32c::crc32c(body.as_bytes()));
        let _ = Meta::parse(&sealed, cluster, copy);
    }
    let _ = text.parse::<Ballot>();
});
