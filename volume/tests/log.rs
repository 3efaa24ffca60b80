//! The redo log on a real disk: what is durable comes back, what was torn is cut, what rotted is reported.

#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use proto::compression::Compressor;
use proto::{Batch, ClusterId, Epoch, Lsn, Redo, Timeline, TimelineHistory};
use replicator_volume::ballot::Ballot;
use replicator_volume::copy::{LocalCopy, directory_of};
use replicator_volume::quorum::{CopyId, Standing};
use replicator_volume::{CopyStatus, Start, Volume, VolumeError, VolumeOptions};

const BEGIN: Lsn = Lsn(0x100_0000);

/// Makes consecutive batches of `sizes` bytes from `begin_lsn` on.
struct Writer {
    compressor: Compressor,
    end_lsn: Lsn,
    timeline: Timeline,
}

impl Writer {
    fn new(end_lsn: Lsn) -> Writer {
        Writer { compressor: Compressor::new(1).unwrap(), end_lsn, timeline: Timeline(1) }
    }

    fn batch(&mut self, size: usize) -> Redo {
        let begin_lsn = self.end_lsn;
        // Contexts of 300 kB, so that there are segments.
        if begin_lsn.0 / 300_000 != (begin_lsn.0 + size as u64) / 300_000 {
            self.compressor.end_context();
        }
        // Noise, so that what is stored is as large as the redo.
        let mix = |x: u64| (x ^ (x >> 31)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let bytes: Vec<u8> = (0..size as u64).map(|i| mix(mix(begin_lsn.0 + i)).to_be_bytes()[2]).collect();
        let compressed = self.compressor.compress(begin_lsn, &bytes).unwrap();
        self.end_lsn = begin_lsn + size as u64;
        let batch = Batch {
            epoch: Epoch(1),
            timeline: self.timeline,
            begin_lsn,
            end_lsn: self.end_lsn,
            context_lsn: compressed.context_lsn,
            newest_commit_us: i64::MAX,
            redo_crc32c: compressed.redo_crc32c,
            payload: compressed.payload,
            ends_in_record: false,
        };
        Redo { batch, bytes: bytes.into() }
    }
}

fn options(directory: &Path) -> VolumeOptions {
    let mut options = VolumeOptions::new(directory.to_owned(), ClusterId([5; 16]));
    options.segment_bytes = 256 * 1024;
    options
}

async fn until_durable(volume: &Volume, lsn: Lsn) {
    let mut durable = volume.watch_durable();
    let reached = durable.wait_for(|d| d.lsn >= lsn);
    tokio::time::timeout(Duration::from_secs(20), reached).await.expect("durable in time").unwrap();
}

async fn filled(directory: &Path, count: usize, size: usize) -> (Volume, Vec<Redo>, Writer) {
    let volume = Volume::open(options(directory)).await.unwrap();
    volume.reset(BEGIN, Timeline(1)).await.unwrap();
    let mut writer = Writer::new(BEGIN);
    let mut written = Vec::new();
    for _ in 0..count {
        let redo = writer.batch(size);
        volume.append(redo.clone()).await.unwrap();
        written.push(redo);
    }
    until_durable(&volume, writer.end_lsn).await;
    (volume, written, writer)
}

async fn read_all(volume: &Volume, from_lsn: Lsn) -> Result<Vec<Redo>, VolumeError> {
    let mut cursor = volume.cursor(from_lsn, Start::Batch)?;
    let mut read = Vec::new();
    while cursor.next_lsn() < volume.bounds().durable_lsn {
        read.push(cursor.next().await?);
    }
    Ok(read)
}

fn segments_of(directory: &Path, copy: CopyId) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(directory_of(directory, copy).join("log.2"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "redo"))
        .collect();
    found.sort();
    found
}

fn segments(directory: &Path) -> Vec<PathBuf> {
    segments_of(directory, CopyId(0))
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waiting)
        .await
        .unwrap_or_else(|_| panic!("not in time: {what}"));
}

/// All six hold everything, and are sent every append.
async fn until_whole(volume: &Volume, lsn: Lsn) {
    let whole =
        || volume.status().copies.iter().all(|c| c.standing == Standing::Live && c.flushed_lsn == lsn);
    let waiting = async {
        while !whole() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(30), waiting).await;
    assert!(waited.is_ok(), "not whole up to {lsn}: {:#?}", volume.status());
}

fn same_everywhere(directory: &Path) {
    let contents = |copy| -> Vec<(String, Vec<u8>)> {
        let read = |path: &PathBuf| {
            let mut bytes = std::fs::read(path).unwrap();
            bytes.truncate(bytes.iter().rposition(|b| *b != 0).map_or(0, |last| last + 1));
            (path.file_name().unwrap().to_string_lossy().into_owned(), bytes)
        };
        segments_of(directory, copy).iter().map(read).collect()
    };
    let first = contents(CopyId(0));
    assert!(!first.is_empty());
    for copy in CopyId::all() {
        let (here, names) = (contents(copy), |of: &[(String, Vec<u8>)]| {
            of.iter().map(|(n, b)| (n.clone(), b.len())).collect::<Vec<_>>()
        });
        assert_eq!(names(&here), names(&first), "copy {copy}");
        assert!(here == first, "copy {copy} differs");
    }
}

#[tokio::test]
async fn what_is_durable_comes_back_from_memory_and_from_disk() {
    let directory = tempfile::tempdir().unwrap();
    let (volume, written, mut writer) = filled(directory.path(), 300, 60_000).await;
    assert_eq!(read_all(&volume, BEGIN).await.unwrap(), written);
    until_whole(&volume, writer.end_lsn).await;
    assert!(segments(directory.path()).len() > 3, "several segments");
    drop(volume);

    let volume = Volume::open(options(directory.path())).await.unwrap();
    assert_eq!(volume.bounds().durable_lsn, writer.end_lsn);
    assert_eq!(read_all(&volume, BEGIN).await.unwrap(), written);
    // From the middle of a batch in the middle of a context: that batch is the first.
    let middle = &written[150];
    assert_eq!(read_all(&volume, middle.batch.begin_lsn + 7).await.unwrap(), written[150..]);
    let mut cursor = volume.cursor(middle.batch.begin_lsn, Start::Context).unwrap();
    assert_eq!(cursor.next_batch().await.unwrap().begin_lsn, middle.batch.context_lsn);

    // It goes on where it was, with a new context.
    writer.compressor.end_context();
    let next = writer.batch(100);
    volume.append(next.clone()).await.unwrap();
    assert_eq!(cursor_to(&volume, next.batch.begin_lsn).await, next);
}

async fn cursor_to(volume: &Volume, lsn: Lsn) -> Redo {
    let mut cursor = volume.cursor(lsn, Start::Batch).unwrap();
    tokio::time::timeout(Duration::from_secs(20), cursor.next()).await.expect("in time").unwrap()
}

#[tokio::test]
async fn a_torn_tail_is_cut_wherever_it_tore() {
    let directory = tempfile::tempdir().unwrap();
    let (volume, written, writer) = filled(directory.path(), 4, 500).await;
    until_whole(&volume, writer.end_lsn).await;
    drop(volume);
    let whole = std::fs::read(segments(directory.path()).pop().unwrap()).unwrap();
    let used = whole.iter().rposition(|b| *b != 0).unwrap() + 1;
    for keep in (70..used).step_by(61) {
        // Three copies whose last write tore, all at the same place: the fourth has it, as a write quorum may have.
        for copy in [0, 1, 2] {
            std::fs::write(segments_of(directory.path(), CopyId(copy)).pop().unwrap(), &whole[..keep])
                .unwrap();
        }
        let volume = Volume::open(options(directory.path())).await.unwrap();
        assert_eq!(read_all(&volume, BEGIN).await.unwrap(), written, "cut at {keep}");
        until_whole(&volume, writer.end_lsn).await;
        drop(volume);
        // Each opening has rewritten the copies; what they hold is the same.
        let mut now = std::fs::read(segments(directory.path()).pop().unwrap()).unwrap();
        now.truncate(used);
        assert_eq!(now, whole[..used], "cut at {keep}");
    }
}

#[tokio::test]
async fn redo_that_was_never_acknowledged_is_cut_off_everywhere() {
    let directory = tempfile::tempdir().unwrap();
    let (volume, written, writer) = filled(directory.path(), 4, 500).await;
    until_whole(&volume, writer.end_lsn).await;
    drop(volume);
    let whole = std::fs::read(segments(directory.path()).pop().unwrap()).unwrap();
    let used = whole.iter().rposition(|b| *b != 0).unwrap() + 1;
    // The last batch is on no copy whole.
    for copy in CopyId::all() {
        std::fs::write(segments_of(directory.path(), copy).pop().unwrap(), &whole[..used - 3]).unwrap();
    }
    let volume = Volume::open(options(directory.path())).await.unwrap();
    assert_eq!(volume.bounds().durable_lsn, written[2].batch.end_lsn);
    assert_eq!(read_all(&volume, BEGIN).await.unwrap(), written[..3]);
}

#[tokio::test]
async fn rot_is_found_and_mended_and_a_wrong_byte_is_never_read() {
    let directory = tempfile::tempdir().unwrap();
    let (volume, written, writer) = filled(directory.path(), 100, 60_000).await;
    until_whole(&volume, writer.end_lsn).await;
    drop(volume);
    // A flipped bit in a sealed segment, another cut short, a third gone, and a flipped bit in the newest.
    let flip = |path: &Path, at: usize| {
        let mut bytes = std::fs::read(path).unwrap();
        bytes[at] ^= 4;
        std::fs::write(path, bytes).unwrap();
    };
    let of = |copy: u8| segments_of(directory.path(), CopyId(copy));
    flip(&of(0)[1], 40_000);
    std::fs::OpenOptions::new().write(true).open(&of(1)[2]).unwrap().set_len(1000).unwrap();
    std::fs::remove_file(&of(2)[3]).unwrap();
    let mut cold = options(directory.path());
    cold.tail_bytes = 1;
    let volume = Volume::open(cold).await.unwrap();
    assert_eq!(read_all(&volume, BEGIN).await.unwrap(), written, "read from copies that are whole");
    flip(&of(3).pop().unwrap(), 3_000);
    volume.scrub(None).await;
    until("all mended", || {
        let status = volume.status();
        status.copies.iter().all(|c| c.standing == Standing::Live && c.repair.damage.is_empty())
    })
    .await;
    let repaired: Vec<u64> = volume.status().copies.iter().map(|c| c.repair.repaired_segments).collect();
    assert!(repaired[..4].iter().all(|count| *count > 0), "each was reported: {repaired:?}");
    until_whole(&volume, writer.end_lsn).await;
    drop(volume);
    same_everywhere(directory.path());
}

#[tokio::test]
async fn a_copy_that_vanishes_is_made_anew_while_appends_go_on() {
    let directory = tempfile::tempdir().unwrap();
    let (volume, _, mut writer) = filled(directory.path(), 60, 60_000).await;
    drop(volume);
    let mut cold = options(directory.path());
    cold.tail_bytes = 1;
    let volume = Volume::open(cold).await.unwrap();
    until_whole(&volume, writer.end_lsn).await;
    for copy in [1, 4] {
        std::fs::remove_dir_all(directory_of(directory.path(), CopyId(copy))).unwrap();
    }
    for _ in 0..60 {
        volume.append(writer.batch(60_000)).await.unwrap();
    }
    until_durable(&volume, writer.end_lsn).await;
    until_whole(&volume, writer.end_lsn).await;
    let filled: Vec<u64> = volume.status().copies.iter().map(|c| c.repair.filled_bytes).collect();
    assert!(filled[1] > 0 && filled[4] > 0, "{filled:?}");
    drop(volume);
    same_everywhere(directory.path());
}

#[tokio::test]
async fn below_a_quorum_appends_wait_and_reads_go_on() {
    let directory = tempfile::tempdir().unwrap();
    let (volume, written, mut writer) = filled(directory.path(), 10, 60_000).await;
    until_whole(&volume, writer.end_lsn).await;
    let durable_lsn = writer.end_lsn;
    // Three disks fail: their directories cannot be written any more.
    let gone: Vec<PathBuf> = [0, 1, 2].map(|copy| directory_of(directory.path(), CopyId(copy))).to_vec();
    for path in &gone {
        std::fs::rename(path, path.with_extension("gone")).unwrap();
        std::fs::write(path, "not a directory").unwrap();
    }
    until("three copies failed", || {
        let failed = |c: &&CopyStatus| matches!(c.standing, Standing::Failed(_));
        volume.status().copies.iter().filter(failed).count() == 3
    })
    .await;
    let next = writer.batch(60_000);
    volume.append(next.clone()).await.unwrap();
    let waited =
        tokio::time::timeout(Duration::from_millis(300), until_durable(&volume, writer.end_lsn)).await;
    assert!(waited.is_err(), "three copies make nothing durable");
    assert!(!volume.status().writable);
    assert_eq!(volume.bounds().durable_lsn, durable_lsn);
    assert_eq!(read_all(&volume, BEGIN).await.unwrap(), written, "reads go on");
    // One disk is mended: the append is durable without being asked again.
    std::fs::remove_file(&gone[1]).unwrap();
    std::fs::rename(gone[1].with_extension("gone"), &gone[1]).unwrap();
    until_durable(&volume, writer.end_lsn).await;
    assert_eq!(cursor_to(&volume, next.batch.begin_lsn).await, next);
}

#[tokio::test]
async fn a_second_opening_fences_the_first() {
    let directory = tempfile::tempdir().unwrap();
    let copies: Vec<Arc<LocalCopy>> = CopyId::all()
        .map(|id| LocalCopy::start(directory_of(directory.path(), id), ClusterId([5; 16]), id).unwrap())
        .collect();
    // Two daemons that reach the same copies, as over a network.
    let open = async || {
        let mut remote = options(directory.path());
        remote.copies.clear();
        let volume = Volume::start(remote).await.unwrap();
        let join = |(id, copy): (CopyId, &Arc<LocalCopy>)| {
            let promised = Ballot { epoch: Epoch(1), opening: 5, writer: 1 };
            volume.join(id, promised, |listener| Arc::new(copy.link(listener)))
        };
        let joined: Vec<_> = CopyId::all().zip(&copies).map(join).collect();
        volume.opened().await.unwrap();
        (volume, joined)
    };
    let (first, _first_joined) = open().await;
    first.reset(BEGIN, Timeline(1)).await.unwrap();
    let mut writer = Writer::new(BEGIN);
    first.append(writer.batch(500)).await.unwrap();
    until_durable(&first, writer.end_lsn).await;

    let (second, _second_joined) = open().await;
    assert_eq!(second.bounds().durable_lsn, writer.end_lsn, "it found what was acknowledged");
    let mut fenced = Writer::new(writer.end_lsn);
    first.append(fenced.batch(700)).await.unwrap();
    writer.compressor.end_context();
    second.append(writer.batch(500)).await.unwrap();
    until_durable(&second, writer.end_lsn).await;
    until("the first is told", || first.status().closed.is_some()).await;
    assert!(first.bounds().durable_lsn < fenced.end_lsn, "a fenced writer makes nothing durable");
    assert!(matches!(first.append(fenced.batch(1)).await, Err(VolumeError::Deposed { .. })));
}

#[tokio::test]
async fn only_what_continues_the_log_is_taken() {
    let directory = tempfile::tempdir().unwrap();
    let (volume, _, mut writer) = filled(directory.path(), 1, 100).await;
    let mut gap = Writer::new(writer.end_lsn + 1);
    assert!(matches!(volume.append(gap.batch(10)).await, Err(VolumeError::Discontinuous { .. })));
    let fork = writer.end_lsn;
    writer.timeline = Timeline(2);
    writer.compressor.end_context();
    let on_two = writer.batch(10);
    assert!(
        matches!(volume.append(on_two.clone()).await, Err(VolumeError::Discontinuous { .. })),
        "no history"
    );
    let history = TimelineHistory::parse(Timeline(2), format!("1\t{fork}\tx\n").as_bytes()).unwrap();
    volume.append_history(history.clone()).await.unwrap();
    volume.append(on_two).await.unwrap();
    until_durable(&volume, writer.end_lsn).await;
    drop(volume);
    let volume = Volume::open(options(directory.path())).await.unwrap();
    assert_eq!(volume.history(Timeline(2)), Some(history));
    assert_eq!(volume.bounds().timeline, Timeline(2));
}

#[tokio::test]
async fn the_size_limit_is_hard_and_a_cursor_below_the_horizon_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let mut small = options(directory.path());
    small.max_size_bytes = 2 << 20;
    small.tail_bytes = 1 << 20;
    let volume = Volume::open(small).await.unwrap();
    volume.reset(BEGIN, Timeline(1)).await.unwrap();
    volume.set_need("somebody", Some(BEGIN));
    let mut writer = Writer::new(BEGIN);
    for _ in 0..400 {
        volume.append(writer.batch(60_000)).await.unwrap();
    }
    until_durable(&volume, writer.end_lsn).await;
    assert!(volume.bounds().horizon_lsn > BEGIN);
    assert!(matches!(volume.cursor(BEGIN, Start::Batch), Err(VolumeError::HorizonPassed { .. })));
    let on_disk: u64 = segments(directory.path()).iter().map(|p| p.metadata().unwrap().len()).sum();
    // The newest segment ends with a context, so at most one context of incompressible redo lies above the limit.
    assert!(on_disk <= (2 << 20) + (5 << 20), "{on_disk} bytes");
    let first = cursor_to(&volume, volume.bounds().horizon_lsn).await;
    assert!(first.batch.begins_context());
}

#[tokio::test]
async fn another_clusters_volume_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    drop(filled(directory.path(), 1, 100).await);
    let mut other = options(directory.path());
    other.cluster_id = ClusterId([6; 16]);
    assert!(matches!(Volume::open(other).await, Err(VolumeError::OtherCluster { .. })));
}
