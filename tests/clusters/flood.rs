//! A flood of handshakes from foreign addresses: regions reach each other meanwhile, and the daemon's memory
//! stays within its bound.

use std::time::Duration;

use replicator_tests::flood::{Flood, connections, memory};
use replicator_tests::{Cluster, PATIENCE, until};
use sqlx::{AssertSqlSafe, Executor};

/// Handshakes begun in a second, and for how long.
const RATE: u32 = 300;
const PERIOD: Duration = Duration::from_secs(10);

/// The most that a region's connection may take meanwhile: an eternity beside what it takes, and less than a
/// handshake that holds a place for nobody.
const CONNECTED: Duration = Duration::from_secs(4);

/// The most that a daemon may hold for strangers: 256 handshakes, what their connections may have sent
/// (4 MiB), and the socket's buffers, with as much again for the allocator.
const MEMORY_BYTES_MAX: u64 = 48 << 20;

/// A handshake that is never gone on with holds a place for five seconds: 300 a second would hold 1500.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_handshakes_from_foreign_addresses_keeps_no_region_out() {
    let cluster = Cluster::up(1);
    let mut primary = cluster.connect("us-east").await;
    primary.execute("CREATE TABLE t (n int)").await.unwrap();
    cluster.until_level().await;
    let daemon = cluster.daemon("eu-west");
    let (before, _) = memory(daemon);
    let flood = Flood::start(cluster.address("eu-west"), RATE);
    until("the flood has come", || async { flood.sent() > 1500 }).await;
    let times = connections(&cluster, ["us-east", "eu-west"], PERIOD, CONNECTED).await;
    assert!(
        times.len() > 10 && flood.sent() > 3000,
        "{} connections, {} strangers",
        times.len(),
        flood.sent()
    );
    // The region's own: its daemon is killed, and the next one has to come in beside all those strangers.
    cluster.kill("us-east", false).await;
    cluster.start_region("us-east");
    let row = "INSERT INTO t VALUES (1)";
    let mut primary = cluster.connect("us-east").await;
    tokio::time::timeout(PATIENCE, primary.execute(AssertSqlSafe(row.to_owned()))).await.unwrap().unwrap();
    cluster.until_level().await;
    let (_, most) = memory(daemon);
    assert!(most < before + MEMORY_BYTES_MAX, "{before} bytes before, {most} at most");
}
