//! What a region's connections take while strangers begin handshakes from foreign addresses.

use std::time::Duration;

use replicator_tests::flood::{Flood, connections, memory};
use replicator_tests::{Cluster, now};

/// A primary and a secondary. For `seconds`, once without and once with `rate` handshakes a second begun with
/// the secondary's daemon from as many addresses, connections of the primary's region are made and timed;
/// then the primary's daemon is killed and started again, until the secondary streams.
pub async fn run(seconds: u64, rate: u64) {
    let (period, rate) = (Duration::from_secs(seconds), u32::try_from(rate).expect("a rate"));
    println!(
        "one primary, one secondary, on this machine's loopback; {rate} handshakes a second from foreign addresses, for {seconds} s.\n"
    );
    let cluster = Cluster::up(1);
    cluster.until_level().await;
    println!(
        "{:16} {:>10} {:>9} {:>9} {:>9} {:>12} {:>12} {:>12}",
        "", "strangers", "median", "p99", "worst", "reconnected", "memory", "at most"
    );
    for flooded in [false, true] {
        let flood = flooded.then(|| Flood::start(cluster.address("eu-west"), rate));
        let mut times = connections(&cluster, ["us-east", "eu-west"], period, Duration::from_secs(30)).await;
        times.sort_unstable();
        let at = |part: usize| times[(times.len() - 1) * part / 100].as_secs_f64() * 1000.0;
        cluster.kill("us-east", false).await;
        cluster.start_region("us-east");
        let begin = now();
        cluster.until_streams("eu-west").await;
        let reconnected = begin.elapsed().as_secs_f64();
        let (holds, most) = memory(cluster.daemon("eu-west"));
        println!(
            "{:16} {:>10} {:>6.1} ms {:>6.1} ms {:>6.1} ms {reconnected:>10.2} s {:>8} MiB {:>8} MiB",
            if flooded { "flooded" } else { "in peace" },
            flood.as_ref().map_or(0, Flood::sent),
            at(50),
            at(99),
            at(100),
            holds >> 20,
            most >> 20,
        );
    }
    println!(
        "\nreconnected: from the start of the primary's daemon, which was killed, until the secondary streams."
    );
}
