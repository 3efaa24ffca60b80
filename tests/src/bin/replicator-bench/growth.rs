//! Whether a volume gets slower as it grows: appending, reading and starting up with a little and with much
//! redo held.

use std::time::Duration;

use proto::compression::Compressor;
use proto::{Batch, ClusterId, Epoch, Lsn, Redo, Timeline};
use replicator_tests::now;
use replicator_tests::simulation::Dice;
use volume::{Start, Volume, VolumeOptions};

/// The redo in one batch while the volume is filled, and while appends are timed.
const FILL_BYTES: usize = 1 << 20;
const COMMIT_BYTES: usize = 8 << 10;

/// Appends that are timed one by one, and the redo that is read.
const APPENDS: usize = 400;
const READ_BYTES: u64 = 256 << 20;

/// Fills a volume with six copies to each of `sizes` (GiB of redo), and measures at each.
pub async fn run(sizes: [u64; 2]) {
    println!("A volume of six copies on one disk, with redo that compresses about tenfold.\n");
    println!(
        "{:>12} {:>12} {:>16} {:>16} {:>14} {:>12}",
        "redo held", "on disk", "append, median", "append, 95 %", "read", "start up"
    );
    let directory = tempfile::tempdir().unwrap();
    let options = || VolumeOptions {
        max_size_bytes: u64::MAX,
        ..VolumeOptions::new(directory.path().to_owned(), ClusterId([7; 16]))
    };
    let mut volume = Volume::open(options()).await.unwrap();
    volume.reset(Lsn(1 << 24), Timeline(1)).await.unwrap();
    let mut writer =
        Writer { compressor: Compressor::new(1).unwrap(), end_lsn: Lsn(1 << 24), dice: Dice::new(1) };
    for size in sizes {
        while writer.end_lsn.0 < size << 30 {
            volume.append(writer.batch(FILL_BYTES)).await.unwrap();
        }
        until_durable(&volume, writer.end_lsn).await;
        drop(volume);
        // The threads of the old volume let go of its directories first.
        let begin = now();
        volume = Volume::open(options()).await.unwrap();
        let start_up = begin.elapsed();
        writer.compressor.end_context();

        let mut appends = Vec::new();
        for _ in 0..APPENDS {
            let begin = now();
            volume.append(writer.batch(COMMIT_BYTES)).await.unwrap();
            until_durable(&volume, writer.end_lsn).await;
            appends.push(begin.elapsed());
        }
        appends.sort_unstable();

        let from_lsn = Lsn(volume.bounds().horizon_lsn.0.midpoint(writer.end_lsn.0));
        let mut cursor = volume.cursor(from_lsn, Start::Context).unwrap();
        let (begin, mut read) = (now(), 0);
        while read < READ_BYTES {
            read += cursor.next().await.unwrap().batch.redo_bytes();
        }
        let rate = f64::from(u32::try_from(read >> 20).unwrap()) / begin.elapsed().as_secs_f64();
        let ms = |time: Duration| format!("{:.2} ms", time.as_secs_f64() * 1e3);
        let gib = |bytes: u64| format!("{:.1} GiB", f64::from(u32::try_from(bytes >> 20).unwrap()) / 1024.0);
        println!(
            "{:>12} {:>12} {:>16} {:>16} {:>14} {:>12}",
            gib(writer.end_lsn.0),
            gib(volume.stored_bytes() * 6),
            ms(appends[APPENDS / 2]),
            ms(appends[APPENDS * 95 / 100]),
            format!("{rate:.0} MiB/s"),
            ms(start_up)
        );
    }
}

struct Writer {
    compressor: Compressor,
    end_lsn: Lsn,
    dice: Dice,
}

impl Writer {
    fn batch(&mut self, size: usize) -> Redo {
        let mut bytes = vec![0x5A; size];
        for at in (0..size).step_by(80) {
            let noise = self.dice.below(u64::MAX).to_le_bytes();
            let room = noise.len().min(size - at);
            bytes[at..at + room].copy_from_slice(&noise[..room]);
        }
        let begin_lsn = self.end_lsn;
        let compressed = self.compressor.compress(begin_lsn, &bytes).unwrap();
        self.end_lsn = begin_lsn + size as u64;
        let batch = Batch {
            epoch: Epoch(1),
            timeline: Timeline(1),
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

async fn until_durable(volume: &Volume, lsn: Lsn) {
    volume.watch_durable().wait_for(|durable| durable.lsn >= lsn).await.unwrap();
}
