//! One real PostgreSQL alone, promoted and killed.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use postgres::instance::account::Account;
use postgres::instance::control::ClusterState;
use postgres::instance::{Instance, InstanceOptions, Part, Stop};
use postgres::protocol::client::ReplicationClient;
use proto::Timeline;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use replicator_tests::{free_port, installation, now, pause, seed, with_children};

const PATIENCE: Duration = Duration::from_secs(60);

/// A PostgreSQL in a directory of its own; what still runs at the end is killed.
struct Alone {
    instance: Instance,
    _directory: tempfile::TempDir,
}

impl Alone {
    /// A standby that runs, and whose walsender never answers.
    async fn standby() -> Alone {
        let directory = tempfile::Builder::new().prefix("rpl-").tempdir_in("/tmp").unwrap();
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
        let account = Account::resolve(None).unwrap();
        let home = directory.path().join("home");
        account.make_private(&home).unwrap();
        let instance = Instance::new(InstanceOptions {
            installations: installation().into(),
            account,
            data_dir: home.join("pgdata"),
            socket_dir: home.join("run"),
            listen: format!("127.0.0.1:{}", free_port()).parse().unwrap(),
            log_file: home.join("postgresql.log"),
            name: "alone".into(),
            settings: BTreeMap::new(),
            hba: Vec::new(),
            ident: Vec::new(),
            authorities: None,
            certificate: None,
        });
        instance.create("secret", None).unwrap();
        let alone = Alone { instance, _directory: directory };
        alone.instance.configure(Part::Standby).unwrap();
        alone.instance.start(PATIENCE).await.unwrap();
        alone
    }

    fn path(&self, name: &str) -> PathBuf {
        self.instance.options().data_dir.join(name)
    }

    fn history(&self, timeline: Timeline) -> PathBuf {
        self.path("pg_wal").join(format!("{:08X}.history", timeline.0))
    }

    /// The processes of the instance, the postmaster first.
    fn processes(&self) -> Vec<Pid> {
        self.instance.process().map(with_children).unwrap_or_default()
    }

    async fn kill(&self) {
        let processes = self.processes();
        for process in &processes {
            let _ = kill(*process, Signal::SIGKILL);
        }
        for process in processes {
            let deadline = now() + PATIENCE;
            while std::path::Path::new(&format!("/proc/{process}/cwd")).exists() {
                assert!(now() < deadline, "process {process} is still there");
                pause().await;
            }
        }
    }

    /// The timeline that it says; none while it cannot be asked.
    async fn timeline(&self) -> Option<Timeline> {
        let mut client = ReplicationClient::connect(&self.instance.local_connection()).await.ok()?;
        Some(client.identify_system().await.ok()?.timeline)
    }

    async fn until_on(&self, timeline: Timeline) {
        let deadline = now() + PATIENCE;
        while self.timeline().await != Some(timeline) {
            assert!(now() < deadline, "not on timeline {} in time", timeline.0);
            pause().await;
        }
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        for process in self.processes() {
            let _ = kill(process, Signal::SIGKILL);
        }
    }
}

/// What PostgreSQL leaves that is killed after it has removed its signal, and before its control file names
/// the new timeline. Started like that it would go on writing on the old one.
#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_that_did_not_get_to_the_control_file_is_taken_back() {
    for with_history in [false, true] {
        let alone = Alone::standby().await;
        let instance = &alone.instance;
        instance.stop(Stop::Fast, PATIENCE).await.unwrap();
        assert_eq!(instance.control_data().unwrap().state, ClusterState::ShutDownInRecovery);
        // Nobody is there to be told, but that it was to be told is written down first.
        instance.promote(Timeline(5)).unwrap_err();
        let segments: Vec<PathBuf> =
            std::fs::read_dir(alone.path("pg_wal")).unwrap().map(|entry| entry.unwrap().path()).collect();
        let first =
            segments.iter().find(|path| path.to_string_lossy().ends_with("/000000010000000000000001"));
        let copy = alone.path("pg_wal/000000050000000000000001");
        std::fs::copy(first.unwrap(), &copy).unwrap();
        if with_history {
            std::fs::write(alone.history(Timeline(5)), "1\t0/1500000\tno recovery target specified\n")
                .unwrap();
        }
        std::fs::remove_file(alone.path("standby.signal")).unwrap();
        assert!(!instance.has_begun(Timeline(5)).unwrap());

        instance.start(PATIENCE).await.unwrap();

        assert!(instance.is_standby());
        assert_eq!(alone.timeline().await, Some(Timeline(1)));
        assert_eq!(instance.control_data().unwrap().state, ClusterState::InArchiveRecovery);
        assert!(!copy.exists() && !alone.history(Timeline(5)).exists());
        assert_eq!(instance.promoting().unwrap(), None);
        instance.promote(Timeline(5)).unwrap();
        alone.until_on(Timeline(5)).await;
        assert!(instance.has_begun(Timeline(5)).unwrap());
    }
}

/// Killed at any moment of a promotion it is afterwards either the standby that it was, or a writer on the
/// new timeline.
#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_that_is_killed_at_any_moment_leads_to_one_of_two_states() {
    let alone = Alone::standby().await;
    let instance = &alone.instance;
    let mut dice = SmallRng::seed_from_u64(seed());
    let mut on = Timeline(1);
    let (mut undone, mut over) = (0, 0);
    for round in 2..10 {
        let wanted = Timeline(round);
        instance.promote(wanted).unwrap();
        // Every other round from the moment on from which only the mend keeps it from going on on the old
        // timeline. How long after is what is drawn; nothing is waited for with it.
        let deadline = now() + PATIENCE;
        while round % 2 == 0 && instance.is_standby() {
            assert!(now() < deadline, "not promoted in time");
            std::hint::spin_loop();
        }
        tokio::time::sleep(Duration::from_micros(dice.random_range(0..20_000))).await;
        alone.kill().await;
        let interrupted = !instance.is_standby();
        instance.start(PATIENCE).await.unwrap();
        if instance.is_standby() {
            undone += usize::from(interrupted);
            assert_eq!(alone.timeline().await, Some(on), "round {round}");
            instance.promote(wanted).unwrap();
        } else {
            over += 1;
            assert!(instance.has_begun(wanted).unwrap(), "round {round}");
        }
        alone.until_on(wanted).await;
        instance.promoted().unwrap();
        on = wanted;
        instance.stop(Stop::Fast, PATIENCE).await.unwrap();
        instance.configure(Part::Standby).unwrap();
        instance.start(PATIENCE).await.unwrap();
    }
    println!("{undone} promotions were taken back after the signal had gone, {over} were over");
}

/// pg_rewind refuses what a killed standby leaves: it is brought to a clean end first.
#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_was_killed_ends_its_recovery_before_it_is_rewound() {
    let alone = Alone::standby().await;
    alone.kill().await;
    assert_eq!(alone.instance.control_data().unwrap().state, ClusterState::InArchiveRecovery);
    alone.instance.settle_standby(PATIENCE).await.unwrap();
    assert_eq!(alone.instance.control_data().unwrap().state, ClusterState::ShutDownInRecovery);
    assert!(alone.instance.is_standby() && alone.instance.process().is_none());
}

/// What durability stands on cannot be changed by a superuser's `ALTER SYSTEM` and a reload.
#[tokio::test(flavor = "multi_thread")]
async fn settings_that_durability_stands_on_are_on_the_command_line() {
    let alone = Alone::standby().await;
    let postmaster = alone.instance.process().unwrap();
    let line = std::fs::read_to_string(format!("/proc/{postmaster}/cmdline")).unwrap();
    for set in [
        "fsync=on",
        "full_page_writes=on",
        "restart_after_crash=off",
        "synchronous_standby_names=\"replicator\"",
    ] {
        assert!(line.split('\0').any(|argument| argument == set), "{set}: {line:?}");
    }
}
