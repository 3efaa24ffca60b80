//! The redo log on a real disk: what is durable comes back, what was torn is cut, what rotted is reported.

#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

mod hung;
mod sealed;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use proto::compression::Compressor;
use proto::{Batch, ClusterId, Epoch, Lsn, Redo, Timeline, TimelineHistory};
use replicator_volume::ballot::Ballot;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use replicator_volume::copy::{
    Answer, Contents, Event, Link, Listener, LocalCopy, LocalLink, Order, Put, Scrubbed, SegmentInfo, Stored,
    directory_of,
};
use replicator_volume::quorum::{CopyId, CopyState, Writer as By};
use replicator_volume::segment;
use replicator_volume::{CopyStatus, Start, Tuning, Volume, VolumeError, VolumeOptions};

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
    let whole = || volume.status().copies.iter().all(|c| c.state == CopyState::Live && c.flushed_lsn == lsn);
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
        // Three copies whose last write tore, all at the same place: the fourth has it, as a write quorum may
        // have.
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
        status.copies.iter().all(|c| c.state == CopyState::Live && c.repair.damage.is_empty())
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
async fn a_log_goes_on_alike_whether_one_thread_writes_all_copies_or_each_has_one() {
    let directory = tempfile::tempdir().unwrap();
    let mut dice = 17_usize;
    let (volume, mut written, mut writer) = filled(directory.path(), 3, 5_000).await;
    drop(volume);
    for share_thread in [true, false, true, true, false] {
        let mut options = options(directory.path());
        options.share_thread = share_thread;
        let volume = Volume::open(options).await.unwrap();
        until_whole(&volume, writer.end_lsn).await;
        assert_eq!(read_all(&volume, BEGIN).await.unwrap(), written);
        for index in 0..150 {
            // Of all sizes: records end anywhere in a block, at its end, and far beyond it.
            dice = dice * 1_103 % 10_007;
            written.push(writer.batch(1 + if index % 10 == 0 { dice * 7 } else { dice % 900 }));
            volume.append(written.last().unwrap().clone()).await.unwrap();
            if index % 7 == 0 {
                until_durable(&volume, writer.end_lsn).await;
            }
        }
        until_whole(&volume, writer.end_lsn).await;
        drop(volume);
        same_everywhere(directory.path());
    }
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
        let failed = |c: &&CopyStatus| matches!(c.state, CopyState::Failed(_));
        volume.status().copies.iter().filter(failed).count() == 3
    })
    .await;
    let next = writer.batch(60_000);
    volume.append(next.clone()).await.unwrap();
    let waited =
        tokio::time::timeout(Duration::from_millis(300), until_durable(&volume, writer.end_lsn)).await;
    assert!(waited.is_err(), "three copies make nothing durable");
    assert!(!volume.status().writable);
    assert!(!volume.settle_within(Duration::from_millis(100)).await, "whoever asks is not kept waiting");
    assert!(volume.is_open(), "which redo is here is known all the same");
    assert_eq!(volume.bounds().durable_lsn, durable_lsn);
    assert_eq!(read_all(&volume, BEGIN).await.unwrap(), written, "reads go on");
    // One disk is mended: the append is durable without being asked again.
    std::fs::remove_file(&gone[1]).unwrap();
    std::fs::rename(gone[1].with_extension("gone"), &gone[1]).unwrap();
    assert!(volume.settle_within(Duration::from_secs(20)).await);
    assert_eq!(volume.bounds().durable_lsn, writer.end_lsn);
    assert_eq!(cursor_to(&volume, next.batch.begin_lsn).await, next);
}

#[tokio::test]
async fn a_volume_whose_copies_have_not_joined_is_not_open() {
    let directory = tempfile::tempdir().unwrap();
    let mut three = options(directory.path());
    three.copies.truncate(3);
    let volume = Volume::start(three).await.unwrap();
    assert!(!volume.settle_within(Duration::from_millis(50)).await);
    assert!(!volume.is_open(), "nobody knows which redo is here");
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

    let patience = Duration::from_secs(20);
    assert!(first.still_writes(patience).await);
    let (second, _second_joined) = open().await;
    assert_eq!(second.bounds().durable_lsn, writer.end_lsn, "it found what was acknowledged");
    assert!(!first.still_writes(patience).await, "the copies say so before the first one hears of it");
    assert!(second.still_writes(patience).await);
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
    // A segment that is dropped just now is on no disk.
    let bytes = |path: &PathBuf| match path.metadata() {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => 0,
        found => found.unwrap().len(),
    };
    let on_disk: u64 = segments(directory.path()).iter().map(bytes).sum();
    // The newest segment ends with a context, so at most one context of incompressible redo lies above the
    // limit.
    assert!(on_disk <= (2 << 20) + (5 << 20), "{on_disk} bytes");
    let first = cursor_to(&volume, volume.bounds().horizon_lsn).await;
    assert!(first.batch.begins_context());
}

#[tokio::test]
async fn another_retention_and_another_scrub_hold_while_the_volume_works() {
    let directory = tempfile::tempdir().unwrap();
    let (volume, _, _) = filled(directory.path(), 60, 60_000).await;
    let scrubbed = || volume.status().copies.iter().map(|copy| copy.repair.scrubbed_us).collect::<Vec<_>>();
    let (before, options) = (scrubbed(), options(directory.path()));
    assert_eq!(volume.bounds().horizon_lsn, BEGIN);
    volume.tune(Tuning {
        retain: options.retain,
        max_size_bytes: 1 << 20,
        repair_bytes_per_second: options.repair_bytes_per_second,
        scrub_every: Duration::from_millis(100),
    });
    let held = async {
        while volume.bounds().horizon_lsn == BEGIN
            || scrubbed().iter().zip(&before).any(|(now, then)| now == then)
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), held).await.expect("in time");
}

#[tokio::test]
async fn another_clusters_volume_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    drop(filled(directory.path(), 1, 100).await);
    let mut other = options(directory.path());
    other.cluster_id = ClusterId([6; 16]);
    assert!(matches!(Volume::open(other).await, Err(VolumeError::OtherCluster { .. })));
}

/// A way to a copy as in a process of its own: questions go another way than orders, and nobody listens
/// there.
#[derive(Debug)]
struct Apart {
    orders: LocalLink,
    questions: LocalLink,
    /// While set, orders to adopt get lost.
    deaf: Arc<AtomicBool>,
}

impl Apart {
    fn new(copy: &Arc<LocalCopy>, listener: Listener, deaf: &Arc<AtomicBool>) -> Arc<Apart> {
        let questions = copy.link(Arc::new(|_| {}));
        Arc::new(Apart { orders: copy.link(listener), questions, deaf: deaf.clone() })
    }
}

impl Link for Apart {
    fn order(&self, order: Order) {
        if !(matches!(order, Order::Adopt(_)) && self.deaf.load(Ordering::SeqCst)) {
            self.orders.order(order);
        }
    }

    fn place(&self) -> String {
        self.orders.place()
    }

    fn promised(&self) -> Answer<'_, Ballot> {
        self.questions.promised()
    }

    fn contents(&self) -> Answer<'_, Contents> {
        self.questions.contents()
    }

    fn read(&self, lsn: Lsn) -> Answer<'_, Vec<Stored>> {
        self.questions.read(lsn)
    }

    fn fetch(&self, segment: SegmentInfo) -> Answer<'_, Bytes> {
        self.questions.fetch(segment)
    }

    fn put(&self, put: Put, bytes: Bytes) -> Answer<'_, ()> {
        self.questions.put(put, bytes)
    }

    fn scrub(&self) -> Answer<'_, Scrubbed> {
        self.questions.scrub()
    }
}

const JOINING: Ballot = Ballot { epoch: Epoch(1), opening: 0, writer: 1 };

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_copy_of_another_process_is_filled_and_each_segment_comes_once() {
    let directory = tempfile::tempdir().unwrap();
    let (volume, _, writer) = filled(directory.path(), 100, 60_000).await;
    until_whole(&volume, writer.end_lsn).await;
    drop(volume);
    let path = directory_of(directory.path(), CopyId(5));
    // The copy's thread may still be ending.
    until("the copy is lost", || std::fs::remove_dir_all(&path).is_ok()).await;
    let mut cold = options(directory.path());
    (cold.tail_bytes, cold.copies) = (1, CopyId::all().take(5).collect());
    let volume = Volume::open(cold).await.unwrap();
    let lost =
        LocalCopy::start(directory_of(directory.path(), CopyId(5)), ClusterId([5; 16]), CopyId(5)).unwrap();
    let deaf = Arc::new(AtomicBool::new(false));
    let _joined = volume.join(CopyId(5), JOINING, |listener| Apart::new(&lost, listener, &deaf));
    until_whole(&volume, volume.bounds().durable_lsn).await;
    let (brought, all) = (volume.status().copies[5].repair.filled_bytes, volume.stored_bytes());
    assert!(brought > 0 && brought <= all, "{brought} bytes were brought of {all}");
    drop(volume);
    same_everywhere(directory.path());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_that_meets_a_new_opening_is_done_all_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let (volume, _, writer) = filled(directory.path(), 2, 500).await;
    until_whole(&volume, writer.end_lsn).await;
    drop(volume);
    let mut remote = options(directory.path());
    remote.copies.clear();
    let volume = Volume::start(remote).await.unwrap();
    let deaf = Arc::new(AtomicBool::new(false));
    let join = |id: CopyId| {
        let copy = LocalCopy::start(directory_of(directory.path(), id), ClusterId([5; 16]), id).unwrap();
        volume.join(id, JOINING, |listener| Apart::new(&copy, listener, &deaf))
    };
    // Of four that promise alike, the first one's log is chosen.
    let mut joined: Vec<_> = CopyId::all().take(4).map(join).collect();
    volume.opened().await.unwrap();
    joined.extend(CopyId::all().skip(4).map(join));
    let ready = |c: &CopyStatus| matches!(c.state, CopyState::Filling | CopyState::Live);
    until("all copies have adopted the log", || volume.status().copies.iter().all(ready)).await;
    deaf.store(true, Ordering::SeqCst);
    let resetting = runtime::task::Task::spawn("reset", {
        let volume = volume.clone();
        async move { volume.reset(Lsn(0x500_0000), Timeline(3)).await }
    });
    until("the reset has begun", || !volume.is_open()).await;
    let adopting = |c: &CopyStatus| c.state == CopyState::Adopting;
    until("the copies are told", || volume.status().copies.iter().all(adopting)).await;
    // The copy whose log was chosen goes, before any has heard of the reset: the volume is opened anew.
    let ballot = volume.status().ballot;
    deaf.store(false, Ordering::SeqCst);
    drop(joined.remove(0));
    until("the volume is opened", || volume.is_open()).await;
    assert!(volume.status().ballot > ballot, "it was opened anew");
    tokio::time::timeout(Duration::from_secs(20), resetting).await.unwrap().unwrap().unwrap();
    assert_eq!(volume.bounds().durable_lsn, Lsn(0x500_0000), "not the log that was to go");
}

#[tokio::test]
async fn redo_is_kept_while_somebody_holds_it_and_dropped_after() {
    let directory = tempfile::tempdir().unwrap();
    let (volume, written, mut writer) = filled(directory.path(), 60, 60_000).await;
    until_whole(&volume, writer.end_lsn).await;
    drop(volume);
    let mut old = options(directory.path());
    old.retain = Duration::ZERO;
    let (volume, hold) = Volume::start_held(old, "starting").await.unwrap();
    volume.opened().await.unwrap();
    let wanted = written[30].batch.begin_lsn;
    // As many appends as begin another segment: then it is looked at what may go.
    let mut append_some = async || {
        writer.compressor.end_context();
        for _ in 0..10 {
            volume.append(writer.batch(60_000)).await.unwrap();
        }
        assert!(volume.settle_within(Duration::from_secs(20)).await);
    };
    append_some().await;
    assert_eq!(volume.bounds().horizon_lsn, BEGIN, "nothing goes while it is held");
    let claim = volume.claim("reader", wanted);
    drop(hold);
    append_some().await;
    let horizon_lsn = volume.bounds().horizon_lsn;
    assert!(BEGIN < horizon_lsn && horizon_lsn <= wanted, "{horizon_lsn} for {wanted}");
    claim.advance(written[50].batch.begin_lsn);
    claim.advance(wanted);
    append_some().await;
    assert!(volume.bounds().horizon_lsn > wanted, "a claim goes on, and never back");
    drop(claim);
    append_some().await;
    assert!(volume.bounds().horizon_lsn > written[50].batch.end_lsn);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_does_nothing_for_an_earlier_writer_or_about_an_earlier_log() {
    let directory = tempfile::tempdir().unwrap();
    let (volume, _, writer) = filled(directory.path(), 60, 60_000).await;
    until_whole(&volume, writer.end_lsn).await;
    let ballot = volume.status().ballot;
    drop(volume);
    let path = directory_of(directory.path(), CopyId(0));
    let copy = LocalCopy::start(path, ClusterId([5; 16]), CopyId(0)).unwrap();
    let (said, mut hear) = tokio::sync::mpsc::channel(100);
    let link = copy.link(Arc::new(move |event| drop(said.try_send(event))));
    let before = link.contents().await.unwrap().segments;
    let earlier = By { ballot: Ballot { opening: ballot.opening - 1, ..ballot }, generation: 2 };
    let earlier_log = By { ballot, generation: 1 };
    let bytes = link.fetch(before[0]).await.unwrap();
    for by in [earlier, earlier_log] {
        link.order(Order::DropBefore(by, writer.end_lsn));
        link.order(Order::DistrustNewest(by));
        let put = Put { writer: by, segment: before[0], history: Timeline(1) };
        assert!(link.put(put, bytes.clone()).await.is_err(), "{by:?}");
    }
    let refused = |event: &Event| matches!(event, Event::Refused(promised) if *promised == ballot);
    for _ in 0..2 {
        let said = tokio::time::timeout(Duration::from_secs(20), hear.recv()).await;
        assert!(refused(&said.expect("it says no").unwrap()));
    }
    assert!(hear.try_recv().is_err(), "about an earlier log there is nothing to say");
    assert_eq!(link.contents().await.unwrap().segments, before);
    let put = Put { writer: By { ballot, generation: 2 }, segment: before[0], history: Timeline(1) };
    let early = link.put(Put { history: Timeline(2), ..put }, bytes.clone()).await;
    assert!(matches!(early, Err(VolumeError::NoHistory { timeline: Timeline(2), .. })), "{early:?}");
    link.put(put, bytes).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn redo_that_comes_twice_is_written_once() {
    let directory = tempfile::tempdir().unwrap();
    let (volume, _, mut writer) = filled(directory.path(), 2, 500).await;
    until_whole(&volume, writer.end_lsn).await;
    let by = By { ballot: volume.status().ballot, generation: 2 };
    drop(volume);
    let path = directory_of(directory.path(), CopyId(0));
    let stored: Vec<Stored> = (0..3)
        .map(|_| {
            let batch = writer.batch(500).batch;
            let record = segment::record(&batch, batch.begin_lsn);
            Stored { batch, record, begins_segment: false }
        })
        .collect();
    let copy = LocalCopy::start(path.clone(), ClusterId([5; 16]), CopyId(0)).unwrap();
    let (said, mut hear) = tokio::sync::mpsc::channel(100);
    let link = copy.link(Arc::new(move |event| drop(said.try_send(event))));
    // What is on its way to a slow copy is brought to it once more: all of it lies before its thread at once.
    for (index, stored) in stored.iter().chain(&stored).enumerate() {
        let hurried = index + 1 == 2 * 3;
        link.order(Order::Append { writer: by, stored: stored.clone(), hurried });
    }
    while !matches!(hear.recv().await.unwrap(), Event::Flushed(lsn) if lsn == writer.end_lsn) {}
    drop(link);
    drop(copy);
    // The copy's thread may still be ending; the directory's lock waits for it.
    let copy = LocalCopy::start(path, ClusterId([5; 16]), CopyId(0)).unwrap();
    let link = copy.link(Arc::new(|_| {}));
    let found = link.contents().await.unwrap().segments;
    assert_eq!(found.last().unwrap().end_lsn, writer.end_lsn, "nothing was cut off as damage");
}

/// A zone and one more copy are lost for good while nobody runs: the three that are left have all that was
/// durable.
#[tokio::test]
async fn three_copies_are_enough_to_find_all_again_on_an_operator_s_word() {
    let directory = tempfile::tempdir().unwrap();
    let (volume, written, mut writer) = filled(directory.path(), 20, 30_000).await;
    assert!(matches!(volume.recover(), Err(VolumeError::NothingToRecover)));
    until_whole(&volume, writer.end_lsn).await;
    drop(volume);
    for copy in [0, 1, 2] {
        until("the copy is let go of", || {
            std::fs::remove_dir_all(directory_of(directory.path(), CopyId(copy))).is_ok()
        })
        .await;
    }
    let volume = Volume::start(options(directory.path())).await.unwrap();
    let promised = |volume: &Volume| {
        volume.status().copies.iter().filter(|copy| copy.state == CopyState::Promised).count()
    };
    until("all have promised", || promised(&volume) == 6).await;
    assert!(!volume.is_open(), "three do not choose by themselves");
    volume.recover().unwrap();
    tokio::time::timeout(Duration::from_secs(30), volume.opened()).await.expect("it opens").unwrap();
    assert_eq!(volume.bounds().durable_lsn, writer.end_lsn);
    assert_eq!(read_all(&volume, BEGIN).await.unwrap(), written);
    let more = writer.batch(5_000);
    volume.append(more).await.unwrap();
    until_whole(&volume, writer.end_lsn).await;
    drop(volume);
    // The fourth to be lost is one too many.
    for copy in [0, 1, 2, 3] {
        until("the copy is let go of", || {
            std::fs::remove_dir_all(directory_of(directory.path(), CopyId(copy))).is_ok()
        })
        .await;
    }
    let volume = Volume::start(options(directory.path())).await.unwrap();
    until("all have promised", || promised(&volume) == 6).await;
    let refused = volume.recover().unwrap_err();
    assert!(matches!(refused, VolumeError::TooFewToRecover { members: 2 }), "{refused}");
    assert!(!volume.is_open());
}
