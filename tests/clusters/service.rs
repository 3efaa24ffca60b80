//! What a daemon tells the service manager that has started it, and does as a unit of it.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use replicator_tests::{Cluster, until};

/// A service manager's end.
struct Manager(UnixDatagram);

impl Manager {
    fn at(place: &Path) -> Manager {
        let socket = UnixDatagram::bind(place).unwrap();
        socket.set_nonblocking(true).unwrap();
        Manager(socket)
    }

    /// The lines that were said since.
    fn heard(&self) -> Vec<String> {
        let (mut lines, mut said) = (Vec::new(), [0; 1024]);
        while let Ok(length) = self.0.recv(&mut said) {
            lines.extend(String::from_utf8_lossy(&said[..length]).lines().map(str::to_owned));
        }
        lines
    }

    /// Waits until lines that begin like these are said, one after the other; returns all that was.
    async fn until_says(&self, lines: &[&str]) -> Vec<String> {
        let all = std::sync::Mutex::new(Vec::new());
        until(&lines.join(", then "), || async {
            let mut all = all.lock().unwrap();
            all.extend(self.heard());
            let mut said = all.iter();
            lines.iter().all(|begins| said.any(|line: &String| line.starts_with(begins)))
        })
        .await;
        all.into_inner().unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_tells_the_service_manager_that_it_serves_how_it_is_and_that_it_lives() {
    let cluster = Cluster::new(1);
    cluster.add_witness("w");
    cluster.start();
    for (region, is) in
        [("eu-west", "STATUS=eu-west: secondary of us-east"), ("w", "STATUS=witness w: votes; us-east leads")]
    {
        kill(cluster.daemon(region), Signal::SIGTERM).unwrap();
        let lock = cluster.region(region).join("daemon.lock");
        until("the daemon is gone", || async { replicator_tests::is_free(&lock) }).await;
        let place = cluster.file().with_file_name(format!("notify-{region}"));
        let manager = Manager::at(&place);
        let within = Duration::from_secs(1).as_micros().to_string();
        cluster.start_region_with(
            region,
            &[("NOTIFY_SOCKET", place.clone().into()), ("WATCHDOG_USEC", within.into())],
        );
        let said = manager.until_says(&["READY=1", is]).await;
        assert!(said[0] == "READY=1" && said[1].starts_with("STATUS="), "{said:?}");
        let _ = manager.until_says(&["WATCHDOG=1"]).await;
        kill(cluster.daemon(region), Signal::SIGHUP).unwrap();
        let said = manager.until_says(&["RELOADING=1", "READY=1"]).await;
        assert!(said.iter().all(|line| !line.starts_with("STOPPING")), "{said:?}");
        kill(cluster.daemon(region), Signal::SIGTERM).unwrap();
        let _ = manager.until_says(&["STOPPING=1", "STATUS="]).await;
        until("the daemon is gone", || async { replicator_tests::is_free(&lock) }).await;
        assert!(!manager.heard().iter().any(|line| line == "READY=1" || line == "WATCHDOG=1"));
    }
}
