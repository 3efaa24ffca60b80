//! The writer's redo, followed from record to record in pieces.
#![no_main]

use postgres::wal::records::Records;
use proto::Lsn;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let [begin, piece, redo @ ..] = data else { return };
    let begin_lsn = Lsn(8192 * 3 + u64::from(*begin) * 32);
    let mut records = Records::new(begin_lsn);
    for end in (0..=redo.len()).step_by(usize::from(*piece) * 16 + 1).chain([redo.len()]) {
        records.read(begin_lsn, &redo[..end]);
        assert!(records.complete_lsn() <= records.read_lsn());
        assert!(records.read_lsn().bytes_since(begin_lsn) <= end as u64);
    }
});
