//! What is kept of the load, a daemon's answer about it, the statements in it, and the kernel's texts.
#![no_main]

use replicator::load::machine::{Reading, Texts};
use replicator::load::series::{Cut, Load, Question, Series};
use replicator::load::{file, statement};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    // As it is, and as the body of a record whose checksum is right.
    let length = u32::try_from(data.len()).unwrap_or(u32::MAX).to_le_bytes();
    let record = [file::MAGIC.as_slice(), &length, &crc32c::crc32c(data).to_le_bytes(), data].concat();
    for bytes in [data, &record] {
        for by in Cut::ALL {
            let mut series = Series::new(Question { from_s: i64::MIN, to_s: i64::MAX, by }, 0);
            assert!(file::read(bytes, |look| series.add(&look)).whole_bytes <= bytes.len());
            let _ = series.load("a", Vec::new());
        }
    }
    let _ = serde_json::from_slice::<Load>(data);
    let text = String::from_utf8_lossy(data);
    assert!(statement::normalise(&text).len() <= statement::BYTES_MAX);
    let texts = Texts { stat: &text, meminfo: &text, diskstats: &text, net_dev: &text };
    let reading = Reading::parse(texts, |_| true);
    let _ = reading.since(&Reading::default(), 1);
});
