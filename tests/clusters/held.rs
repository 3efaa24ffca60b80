//! Commits that are held: nobody is told that one is there which is not, whoever stops, freezes, or will not
//! wait.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use replicator_tests::{Cluster, text, until};
use runtime::task::Task;
use sqlx::Executor;

/// A cluster whose commits wait for another region, with a table.
async fn careful(secondaries: usize) -> Cluster {
    let cluster = Cluster::new(secondaries);
    cluster.configure("commit = { regions = 1 }\n");
    cluster.start();
    cluster.connect("us-east").await.execute("CREATE TABLE t (n int)").await.unwrap();
    cluster.until_level().await;
    cluster
}

/// Inserts `n`, in a session of its own; what the client hears, and the process that serves it.
async fn insert(cluster: &Cluster, n: i32) -> (Task<Result<(), String>>, Pid) {
    let mut client = cluster.connect("us-east").await;
    let process: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut client).await.unwrap();
    let inserting = Task::spawn("insert a row", async move {
        let inserted = sqlx::query("INSERT INTO t VALUES ($1)").bind(n).execute(&mut client).await;
        inserted.map(drop).map_err(|e| e.to_string())
    });
    until("the commit waits", || async {
        let waits = "SELECT count(*) FROM pg_stat_activity WHERE pid = $1 AND wait_event = 'SyncRep'";
        let mut looks = cluster.connect("us-east").await;
        sqlx::query_scalar::<_, i64>(waits).bind(process).fetch_one(&mut looks).await.unwrap() == 1
    })
    .await;
    (inserting, Pid::from_raw(process))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_will_not_wait_is_told_of_and_so_is_what_a_failover_may_lose() {
    let cluster = careful(2).await;
    for region in ["eu-west", "ap-northeast"] {
        cluster.kill(region, true).await;
    }
    let (inserting, process) = insert(&cluster, 42).await;
    let mut other = cluster.connect("us-east").await;
    let cancel = sqlx::query_scalar::<_, bool>("SELECT pg_cancel_backend($1)").bind(process.as_raw());
    assert!(cancel.fetch_one(&mut other).await.unwrap());
    // PostgreSQL's word to the client, which nobody can change.
    assert_eq!(inserting.await.unwrap(), Ok(()));
    until("status and the journal tell it", || async {
        let status = text(&cluster.run(&["status", "--region", "us-east", "--json"]).stdout);
        let events = text(&cluster.run(&["events", "--region", "us-east"]).stdout);
        status.contains("clients cancelled the wait") && events.contains("commits-cancelled")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_stopped_lets_no_held_commit_through() {
    let cluster = careful(2).await;
    for region in ["eu-west", "ap-northeast"] {
        cluster.kill(region, true).await;
    }
    let (quick, _) = insert(&cluster, 1).await;
    let (slow, process) = insert(&cluster, 2).await;
    // A backend that the machine is slow to run when it is told to end.
    kill(process, Signal::SIGSTOP).unwrap();
    let lock = cluster.region("us-east").join("daemon.lock");
    let daemon = Pid::from_raw(std::fs::read_to_string(&lock).unwrap().trim().parse().unwrap());
    kill(daemon, Signal::SIGTERM).unwrap();
    let log = cluster.region("us-east").join("daemon.log");
    until("the daemon stops", || async { std::fs::read_to_string(&log).unwrap().contains("stopping") }).await;
    assert!(quick.await.unwrap().is_err(), "it is not known to be anywhere else");
    let _ = kill(process, Signal::SIGCONT);
    assert!(slow.await.unwrap().is_err(), "it is not known to be anywhere else");
    until("the daemon has ended", || async { kill(daemon, None).is_err() }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_that_does_not_end_stops_no_writer() {
    let cluster = careful(1).await;
    let mut writer = cluster.connect("us-east").await;
    writer.execute("INSERT INTO t SELECT generate_series(1, 1000)").await.unwrap();
    let postmaster = cluster.postmaster("us-east");
    let checkpointer = replicator_tests::with_children(postmaster)
        .into_iter()
        .find(|process| {
            let title = std::fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
            text(&title).contains("checkpointer")
        })
        .unwrap();
    kill(checkpointer, Signal::SIGSTOP).unwrap();
    let refused = cluster.run(&["promote", "--region", "eu-west"]);
    assert!(
        !refused.status.success() && text(&refused.stderr).contains("checkpointer"),
        "{}",
        text(&refused.stderr)
    );
    // It leads as it did, on the very sessions that it had.
    writer.execute("INSERT INTO t VALUES (1)").await.unwrap();
    kill(checkpointer, Signal::SIGCONT).unwrap();
    writer.execute("INSERT INTO t VALUES (2)").await.unwrap();
    assert_eq!(cluster.postmaster("us-east"), postmaster);
    cluster.until_level().await;
    let _ = cluster.printed(&["promote", "--region", "eu-west"]);
}
