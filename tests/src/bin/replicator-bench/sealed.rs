//! What it costs the writer that its redo is sealed at rest.

use std::hint::black_box;

use bytes::Bytes;
use proto::{Batch, ClusterId, Epoch, Lsn, Timeline};
use replicator_tests::{Cluster, now};
use volume::seal::{Keys, RegionKey, Sealer};
use volume::segment;

use super::telemetry;

/// Records of each size, which are sealed and opened one after the other.
const RECORDS: u32 = 20_000;

/// What sealing and opening a record takes by itself, and then two clusters of two regions side by side, one
/// of which seals; `rounds` times in turn, for `seconds` each, `pgbench` with eight clients.
pub async fn run(rounds: u64, seconds: u64) {
    records();
    println!(
        "\npgbench -s 20 -c 8, {rounds} rounds of {seconds} s in turn, two clusters of two regions on this machine.\n"
    );
    let clear = Cluster::for_bench(1);
    clear.start();
    let sealed = Cluster::for_bench(1);
    sealed.configure("encryption.provider = \"file\"\n");
    sealed.start();
    telemetry::in_turn([&clear, &sealed], ["in the clear", "sealed"], rounds, seconds).await;
    for (name, cluster) in [("in the clear", &clear), ("sealed", &sealed)] {
        println!("{name}: {}", cluster.volume("us-east")["keys"]);
    }
}

/// What a record costs that is made in the clear, that is sealed, and that is opened: each once for all
/// copies.
fn records() {
    println!("{:>16} {:>16} {:>16} {:>16}", "redo, compressed", "clear, ns", "sealed, ns", "opened, ns");
    let key = RegionKey::new([7; 32].into(), Bytes::new());
    let (cluster_id, id) = (ClusterId([7; 16]), key.id());
    let sealer = Sealer::new(cluster_id, Keys::new([key], Some(id)), runtime::random::draw());
    for size in [200, 2_000, 20_000, 200_000] {
        let batch = Batch {
            epoch: Epoch(1),
            timeline: Timeline(1),
            begin_lsn: Lsn(1 << 24),
            end_lsn: Lsn((1 << 24) + (1 << 20)),
            context_lsn: Lsn(1 << 24),
            newest_commit_us: 1,
            redo_crc32c: 1,
            payload: vec![7; size].into(),
            ends_in_record: false,
        };
        let seal = || sealer.seal(id, &batch, Lsn(1), Lsn(1 << 20)).expect("it has the key");
        let clear = each(|| drop(black_box(segment::record(&batch, Lsn(1)))));
        let sealed = each(|| drop(black_box(seal())));
        let record = seal();
        let opened = each(|| drop(black_box(sealer.open(&record, false).expect("it has the key"))));
        println!("{size:>16} {clear:>16.0} {sealed:>16.0} {opened:>16.0}");
    }
}

/// Nanoseconds that `work` takes.
fn each(work: impl Fn()) -> f64 {
    let begin = now();
    (0..RECORDS).for_each(|_| work());
    begin.elapsed().as_secs_f64() * 1e9 / f64::from(RECORDS)
}
