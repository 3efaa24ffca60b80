use super::*;
use crate::ballot::Ballots;
use proto::{Batch, Epoch};

const BALLOT: Ballot = Ballot { epoch: Epoch(1), opening: 1, writer: 1 };

fn stored(begin: u64) -> Stored {
    let batch = Batch {
        epoch: Epoch(1),
        timeline: Timeline(1),
        begin_lsn: Lsn(begin),
        end_lsn: Lsn(begin + 100),
        context_lsn: Lsn(begin),
        newest_commit_us: 1,
        redo_crc32c: 0,
        payload: Bytes::from(vec![7; 300]),
        ends_in_record: false,
    };
    let record = segment::record(&batch, Lsn(begin));
    Stored { batch, record, begins_segment: begin == 100 }
}

fn open(directory: &Path) -> Disk {
    Disk::open(directory, ClusterId([1; 16]), CopyId(0)).unwrap()
}

#[test]
fn what_a_failed_flush_left_readable_is_written_again_before_it_counts() {
    let directory = tempfile::tempdir().unwrap();
    let mut disk = open(directory.path());
    let begin = Durable { lsn: Lsn(100), timeline: Timeline(1), epoch: Epoch(1) };
    let mut ballots = Ballots::default();
    ballots.begin(BALLOT, Lsn(100));
    disk.begin_anew(Meta { generation: 1, begin, promised: BALLOT, ballots, ..Meta::default() }).unwrap();
    disk.roll(&stored(100)).unwrap();
    disk.write(&[stored(100)]).unwrap();
    let path = disk.path_of(Lsn(100));
    files::faults::fail_next_flush(&path);
    disk.write(&[stored(200)]).unwrap_err();
    assert!(files::faults::first_lost(&path).is_some(), "it can be read, and is on no disk");
    drop(disk);
    let disk = open(directory.path());
    assert_eq!(files::faults::first_lost(&path), None, "a power loss now would take what it says it has");
    assert_eq!(disk.vote().end.lsn, Lsn(300), "nothing that is readable was given up");
    // While flushes go on failing, it does not open.
    drop(disk);
    files::faults::fail_next_flush(&path);
    assert!(Disk::open(directory.path(), ClusterId([1; 16]), CopyId(0)).is_err());
}
