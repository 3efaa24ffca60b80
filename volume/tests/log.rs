//! The redo log on a real disk: what is durable comes back, what was torn is cut, what rotted is reported.

#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use proto::compression::Compressor;
use proto::{Batch, ClusterId, Epoch, Lsn, Redo, Timeline, TimelineHistory};
use replicator_volume::{Start, Volume, VolumeError, VolumeOptions};

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
    while let Some(redo) = cursor.try_next()? {
        read.push(redo);
    }
    Ok(read)
}

fn segments(directory: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(directory.join("log.1"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "redo"))
        .collect();
    found.sort();
    found
}

#[tokio::test]
async fn what_is_durable_comes_back_from_memory_and_from_disk() {
    let directory = tempfile::tempdir().unwrap();
    let (volume, written, mut writer) = filled(directory.path(), 300, 60_000).await;
    assert_eq!(read_all(&volume, BEGIN).await.unwrap(), written);
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
    let (volume, written, _) = filled(directory.path(), 4, 500).await;
    drop(volume);
    let path = segments(directory.path()).pop().unwrap();
    let whole = std::fs::read(&path).unwrap();
    let used = whole.iter().rposition(|b| *b != 0).unwrap() + 1;
    for keep in (70..used).step_by(37) {
        std::fs::write(&path, &whole[..keep]).unwrap();
        let volume = Volume::open(options(directory.path())).await.unwrap();
        let read = if volume.bounds().durable_lsn > BEGIN {
            read_all(&volume, BEGIN).await.unwrap()
        } else {
            vec![]
        };
        assert_eq!(read, written[..read.len()], "cut at {keep}");
        assert!(read.len() < written.len());
        drop(volume);
        std::fs::write(&path, &whole).unwrap();
    }
}

#[tokio::test]
async fn damage_before_the_end_is_reported_and_never_cut() {
    let directory = tempfile::tempdir().unwrap();
    let volume = Volume::open(options(directory.path())).await.unwrap();
    volume.reset(BEGIN, Timeline(1)).await.unwrap();
    let mut writer = Writer::new(BEGIN);
    for _ in 0..3 {
        volume.append(writer.batch(500)).await.unwrap();
        until_durable(&volume, writer.end_lsn).await;
    }
    drop(volume);
    let path = segments(directory.path()).pop().unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[64 + 16 + 40] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let error = Volume::open(options(directory.path())).await.unwrap_err();
    assert!(error.to_string().contains("damaged at byte 64"), "{error}");
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

#[tokio::test]
async fn a_failing_disk_latches_the_copy_and_reads_go_on() {
    let directory = tempfile::tempdir().unwrap();
    let (volume, written, mut writer) = filled(directory.path(), 10, 60_000).await;
    // No new segment can be made where the directory is gone.
    std::fs::rename(directory.path().join("log.1"), directory.path().join("gone")).unwrap();
    let mut refused = None;
    for _ in 0..400 {
        if let Err(e) = volume.append(writer.batch(60_000)).await {
            refused = Some(e);
            break;
        }
    }
    let refused = refused.expect("the copy takes no more");
    assert!(refused.to_string().contains("Mend the disk"), "{refused}");
    let durable_lsn = volume.bounds().durable_lsn;
    assert!(durable_lsn < writer.end_lsn);
    assert_eq!(read_all(&volume, BEGIN).await.unwrap()[..10], written[..]);
}
