//! A region.json, and the manifest of redo that was kept aside.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = replicator::region_file::RegionState::parse(data);
    let _ = replicator::region::lost::Lost::parse(data);
    let _ = replicator::region::lost::transactions(&String::from_utf8_lossy(data));
});
