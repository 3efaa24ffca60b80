//! The file read again while regions work: what is taken, what is not, and that nothing else is touched.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;

use nix::sys::signal::{Signal, kill};
use replicator_tests::ledger::Ledger;
use replicator_tests::{Cluster, PATIENCE, free_port, now, text, until};
use sqlx::{Connection, Executor, PgConnection};

use crate::row;

/// A cluster whose file ends with a section for PostgreSQL that tests change.
fn cluster(secondaries: usize, postgresql: &str) -> Cluster {
    let cluster = Cluster::new(secondaries);
    let file = std::fs::read_to_string(cluster.file()).unwrap();
    std::fs::write(cluster.file(), format!("{file}[postgresql]\n{postgresql}\n")).unwrap();
    cluster
}

/// Puts the file back when the test ends, however it does: a cluster whose file is wrong is not taken down.
struct PutBack(PathBuf, String);

impl PutBack {
    fn of(cluster: &Cluster) -> PutBack {
        PutBack(cluster.file(), std::fs::read_to_string(cluster.file()).unwrap())
    }
}

impl Drop for PutBack {
    fn drop(&mut self) {
        let _ = std::fs::write(&self.0, &self.1);
    }
}

fn replace(cluster: &Cluster, old: &str, new: &str) {
    let file = std::fs::read_to_string(cluster.file()).unwrap();
    assert!(file.contains(old), "{old}");
    std::fs::write(cluster.file(), file.replace(old, new)).unwrap();
}

/// The outcome and the detail of each key.
type Keys = BTreeMap<String, (String, String)>;

/// What `reload --json` says of each region: each key's outcome and detail, but for those that are unchanged;
/// and whether the command succeeded.
fn reload(cluster: &Cluster, arguments: &[&str]) -> (BTreeMap<String, Keys>, bool) {
    let output = cluster.run(&[&["reload", "--json"], arguments].concat());
    let said: serde_json::Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {} {}", text(&output.stdout), text(&output.stderr)));
    let word = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let regions = said["regions"].as_array().unwrap().iter().map(|region| {
        assert_eq!((word(&region["refused"]), word(&region["error"])), (String::new(), String::new()));
        let keys = region["keys"].as_array().unwrap().iter();
        let keys = keys.map(|key| (word(&key["key"]), (word(&key["outcome"]), word(&key["detail"]))));
        (word(&region["region"]), keys.filter(|(_, (outcome, _))| outcome != "unchanged").collect())
    });
    (regions.collect(), output.status.success())
}

fn outcome(keys: &Keys, key: &str) -> String {
    keys.get(key).map(|(outcome, _)| outcome.clone()).unwrap_or_else(|| panic!("{key} is not in {keys:?}"))
}

async fn show(connection: &mut PgConnection, setting: &str) -> String {
    let asked = format!("SHOW {setting}");
    sqlx::query_scalar(sqlx::AssertSqlSafe(asked)).fetch_one(connection).await.unwrap()
}

/// Whether the daemon answers by HTTP at this port.
async fn answers(port: u16) -> bool {
    tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok()
}

/// Whether a client of this name is turned away by `hba`.
async fn is_rejected(cluster: &Cluster, region: &str, user: &str) -> bool {
    let url = cluster.printed(&["url", "--region", region]).replace("postgres:", &format!("{user}:"));
    PgConnection::connect(&url).await.unwrap_err().to_string().contains("pg_hba.conf rejects connection")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_under_load_takes_what_it_can_and_cuts_nobody_off() {
    let settings = "settings = { work_mem = \"2MB\", max_connections = 100 }\nhba = []";
    let cluster = cluster(1, settings);
    // Until each was restarted, they say that their files differ.
    cluster.expect(&["differs from that of"]);
    let ports = [free_port(), free_port()];
    cluster.configure_region("us-east", &format!("http = \"127.0.0.1:{}\"", ports[0]));
    cluster.start();
    let regions = ["us-east", "eu-west"];
    let ledger = Ledger::start(&cluster.printed(&["url", "--region", "us-east"]), 4).await;
    ledger.until_written(100).await;
    // Sessions that were there before, one with a transaction, and everything that runs.
    let mut before = Vec::new();
    for region in regions {
        let mut session = cluster.connect(region).await;
        session
            .execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pg_class")
            .await
            .unwrap();
        before.push((session, cluster.daemon(region), cluster.postmaster(region)));
    }
    replace(
        &cluster,
        settings,
        "settings = { work_mem = \"3MB\", max_connections = 110 }\n\
        hba = [\"host all stranger all reject\"]\n[volume]\nretain = \"25h\"\n[telemetry]\nload = false",
    );
    replace(&cluster, &format!("127.0.0.1:{}", ports[0]), &format!("127.0.0.1:{}", ports[1]));
    cluster.configure("lease = \"6s\"\n");
    let (told, well) = reload(&cluster, &[]);
    assert!(well, "{told:?}");
    for region in regions {
        let keys = &told[region];
        for key in ["postgresql.settings.work_mem", "postgresql.hba", "volume.retain", "telemetry.load"] {
            assert_eq!(outcome(keys, key), "applied", "{region}");
        }
        for key in ["postgresql.settings.max_connections", "lease"] {
            assert_eq!(outcome(keys, key), "needs_restart", "{region}");
        }
        assert!(keys["postgresql.settings.max_connections"].1.contains("secondaries' daemons first"));
        assert_eq!(keys.contains_key("region.us-east.http"), region == "us-east");
    }
    for (region, (session, daemon, postmaster)) in regions.into_iter().zip(&mut before) {
        assert_eq!((cluster.daemon(region), cluster.postmaster(region)), (*daemon, *postmaster));
        // PostgreSQL reads its files between two statements of a session.
        until("a session has the setting", || async {
            show(&mut cluster.connect(region).await, "work_mem").await == "3MB"
        })
        .await;
        assert_eq!(
            show(session, "transaction_isolation").await,
            "repeatable read",
            "its transaction goes on"
        );
        assert_eq!(show(session, "max_connections").await, "100");
        assert!(is_rejected(&cluster, region, "stranger").await);
        let said = cluster.run(&["load", "--region", region]);
        assert!(text(&said.stderr).contains("load = false"), "{said:?}");
    }
    until("the page has moved", || async { answers(ports[1]).await && !answers(ports[0]).await }).await;
    let events = cluster.printed(&["events", "--region", "us-east"]);
    assert!(events.contains("retain was 86400s, and is 90000s"), "{events}");
    // What waits is told again, and nothing else.
    let (again, well) = reload(&cluster, &["--region", "eu-west"]);
    let waits: Vec<&String> = again["eu-west"].keys().collect();
    assert!(well && waits == ["lease", "postgresql.settings.max_connections"], "{again:?}");
    let acknowledged = ledger.acknowledged().await;
    acknowledged.assert_in_all(&cluster).await;
    // In the order that was told: the secondary's daemon first.
    for region in ["eu-west", "us-east"] {
        kill(cluster.daemon(region), Signal::SIGTERM).unwrap();
        let lock = cluster.region(region).join("daemon.lock");
        until("the daemon has ended", || async { replicator_tests::is_free(&lock) }).await;
        cluster.start();
        until("the setting holds", || async {
            show(&mut cluster.connect(region).await, "max_connections").await == "110"
        })
        .await;
        if region == "eu-west" {
            until("a dry run tells that their files differ", || async {
                let told = cluster.run(&["promote", "--region", "eu-west", "--dry-run"]);
                text(&told.stdout).contains("differs from that of us-east in `lease`")
            })
            .await;
        }
    }
    let (after, _) = reload(&cluster, &[]);
    assert!(after.values().all(BTreeMap::is_empty), "{after:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_file_changes_nothing_and_a_signal_does_what_the_command_does() {
    let settings = "settings = { work_mem = \"2MB\" }\nhba = [\"host all stranger all reject\"]";
    let cluster = cluster(1, settings);
    cluster.start();
    let put_back = PutBack::of(&cluster);
    let good = put_back.1.clone();
    let written =
        |name: &str| std::fs::read_to_string(cluster.region("us-east").join("pgdata").join(name)).unwrap();
    let files = ["replicator.conf", "pg_hba.conf"].map(written);
    let daemon = cluster.daemon("us-east");
    let log = || std::fs::read_to_string(cluster.region("us-east").join("daemon.log")).unwrap();
    let signalled = |file: &str| {
        let told = log().matches("nothing was changed").count() + log().matches(" is refused: ").count();
        std::fs::write(cluster.file(), file).unwrap();
        kill(daemon, Signal::SIGHUP).unwrap();
        told
    };
    // One that no daemon can read, by a signal: the command itself says what is wrong with it.
    let bad = good.replace("work_mem = \"2MB\"", "work_mem = \"4MB\"").replace("hba =", "bha =");
    let told = signalled(&bad);
    until("it is refused", || async { log().matches("nothing was changed").count() > told }).await;
    assert!(log().contains("unknown key `bha`"));
    let refused = cluster.run(&["reload"]);
    assert!(!refused.status.success() && text(&refused.stderr).contains("unknown key `bha`"), "{refused:?}");
    // What only PostgreSQL knows: a value that it does not take, and a line that is no rule.
    let unknown = good.replace("work_mem = \"2MB\"", "work_mem = \"4MB\", wrok_mem = \"1MB\"");
    let no_rule = good.replace("2MB", "4MB").replace("all reject", "10.0.0.0/99 reject");
    for (file, why) in [(unknown, "wrok_mem"), (no_rule, "line")] {
        std::fs::write(cluster.file(), file).unwrap();
        let (told, well) = reload(&cluster, &[]);
        assert!(!well);
        for region in ["us-east", "eu-west"] {
            let refused = &told[region];
            assert!(
                refused.values().all(|(outcome, _)| outcome == "refused") && !refused.is_empty(),
                "{told:?}"
            );
            assert!(refused.values().any(|(_, detail)| detail.contains(why)), "{told:?}");
            assert_eq!(show(&mut cluster.connect(region).await, "work_mem").await, "2MB");
        }
    }
    assert_eq!(files, ["replicator.conf", "pg_hba.conf"].map(written));
    assert!(is_rejected(&cluster, "us-east", "stranger").await);
    // The same file, but for what was wrong, by a signal.
    let told = signalled(&good.replace("2MB", "4MB").replace("stranger", "newcomer"));
    until("both hold", || async {
        show(&mut cluster.connect("us-east").await, "work_mem").await == "4MB"
            && written("pg_hba.conf").contains("newcomer")
    })
    .await;
    assert!(is_rejected(&cluster, "us-east", "newcomer").await);
    assert_eq!(log().matches("nothing was changed").count() + log().matches(" is refused: ").count(), told);
    assert_eq!(cluster.daemon("us-east"), daemon);
    // Each daemon was told by itself.
    assert_eq!(show(&mut cluster.connect("eu-west").await, "work_mem").await, "2MB");
    // A daemon that is not there is an answer that is missing.
    cluster.kill("eu-west", false).await;
    let output = cluster.run(&["reload"]);
    assert!(!output.status.success() && text(&output.stdout).contains("eu-west: no answer"), "{output:?}");
}

/// The log of `name` in a region's directory and those that were put aside, the oldest first, and the number
/// of the latter. Looked at again where one was put aside meanwhile.
fn logs(cluster: &Cluster, region: &str, name: &str) -> (String, usize) {
    let directory = cluster.region(region);
    let which = || -> Vec<(PathBuf, u64)> {
        let older = (1..100).map(|age| directory.join(format!("{name}.{age}.log")));
        let with_number = |path: PathBuf| Some((path.clone(), std::fs::metadata(&path).ok()?.ino()));
        let mut found: Vec<_> = older.map_while(with_number).collect();
        found.reverse();
        found.extend(with_number(directory.join(format!("{name}.log"))));
        found
    };
    let read = |path: &PathBuf| {
        let mode = std::fs::metadata(path).ok()?.permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{}", path.display());
        Some(text(&std::fs::read(path).ok()?))
    };
    let begin = now();
    loop {
        let found = which();
        let said: Option<String> = found.iter().map(|(path, _)| read(path)).collect();
        let is_whole = found.last().is_some_and(|(path, _)| path.ends_with(format!("{name}.log")));
        if let Some(said) = said
            && is_whole
            && which() == found
        {
            return (said, found.len() - 1);
        }
        assert!(begin.elapsed() < PATIENCE, "the logs of {name} change all the time: {found:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_are_put_aside_by_size_and_no_line_is_lost() {
    let cluster = Cluster::new(1);
    let file = std::fs::read_to_string(cluster.file()).unwrap();
    std::fs::write(cluster.file(), file + "[logs]\nmax_size = \"64KiB\"\nkeep = 50\n").unwrap();
    cluster.start();
    let mut writer = cluster.connect("us-east").await;
    // PostgreSQL's, from several sessions at once.
    let mut told = 0;
    let lines = |said: &str| -> Vec<i64> {
        let numbers = said.lines().filter_map(|line| line.split_once("LOG:  told ")?.1.split_once(' '));
        numbers.map(|(number, _)| number.parse().unwrap()).collect()
    };
    while logs(&cluster, "us-east", "postgresql").1 < 3 {
        let tell = format!(
            "DO $$ BEGIN FOR n IN {} .. {} LOOP RAISE LOG 'told % {}', n; END LOOP; END $$",
            told + 1,
            told + 50,
            "x".repeat(200)
        );
        writer.execute(sqlx::AssertSqlSafe(tell)).await.unwrap();
        told += 50;
        assert!(told < 100_000, "the log is not put aside");
        replicator_tests::pause().await;
    }
    until("all was written", || async {
        lines(&logs(&cluster, "us-east", "postgresql").0) == (1..=told).collect::<Vec<i64>>()
    })
    .await;
    // The daemon's: each file that is refused is told in a long line.
    let put_back = PutBack::of(&cluster);
    let good = put_back.1.clone();
    let daemon = cluster.daemon("us-east");
    let (mut asked, found) =
        (0, |said: &str, number: i64| said.contains(&format!("unknown key `wrong{number}x")));
    while logs(&cluster, "us-east", "daemon").1 < 3 {
        asked += 1;
        std::fs::write(cluster.file(), format!("wrong{asked}{} = 1\n{good}", "x".repeat(2000))).unwrap();
        kill(daemon, Signal::SIGHUP).unwrap();
        until("it is told", || async { found(&logs(&cluster, "us-east", "daemon").0, asked) }).await;
    }
    assert!((10..500).contains(&asked), "{asked}");
    let (said, _) = logs(&cluster, "us-east", "daemon");
    assert!((1..=asked).all(|number| found(&said, number)), "a line was lost");
    // Fewer are kept.
    std::fs::write(cluster.file(), good.replace("keep = 50", "keep = 1")).unwrap();
    let (told, well) = reload(&cluster, &[]);
    assert!(well && outcome(&told["us-east"], "logs.keep") == "applied", "{told:?}");
    let begin = now();
    while cluster.region("us-east").join("postgresql.2.log").exists() {
        assert!(begin.elapsed() < PATIENCE, "the oldest are not gone");
        let tell =
            format!("DO $$ BEGIN FOR n IN 1 .. 50 LOOP RAISE LOG '{}'; END LOOP; END $$", "y".repeat(200));
        writer.execute(sqlx::AssertSqlSafe(tell)).await.unwrap();
        replicator_tests::pause().await;
    }
    assert_eq!(cluster.daemon("us-east"), daemon);
}

/// Whether a client is let in with this connection string, or turned away for its password.
async fn lets_in(url: &str) -> bool {
    match PgConnection::connect(url).await {
        Ok(_) => true,
        Err(e) => {
            assert!(e.to_string().contains("password authentication failed"), "{e}");
            false
        }
    }
}

fn password_of(url: &str) -> String {
    url.split([':', '@']).nth(2).unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_password_is_rotated_in_every_region_also_in_one_that_was_away() {
    let cluster = Cluster::up(2);
    let url = |region: &str| cluster.printed(&["url", "--region", region]);
    let old: Vec<String> = cluster.regions.iter().map(|region| url(region)).collect();
    let ledger = Ledger::start(&old[0], 2).await;
    ledger.until_written(20).await;
    let mut session = cluster.connect("eu-west").await;
    cluster.kill("ap-northeast", true).await;
    let rotated = cluster.run(&["password", "rotate"]);
    let said = text(&rotated.stdout) + &text(&rotated.stderr);
    assert!(rotated.status.success(), "{said}");
    let outcome = |region: &str| {
        let line = said.lines().find(|line| line.starts_with(region)).unwrap();
        line.split_whitespace().nth(1).unwrap().to_owned()
    };
    assert_eq!(
        (outcome("us-east"), outcome("eu-west"), outcome("ap-northeast")),
        ("in_force".into(), "in_force".into(), "away".into())
    );
    // At once: the command has waited for it.
    for (index, region) in ["us-east", "eu-west"].into_iter().enumerate() {
        assert!(!lets_in(&old[index]).await && lets_in(&url(region)).await, "{region}");
        let files = ["superuser.password", "superuser.pgpass"]
            .map(|name| std::fs::read_to_string(cluster.region(region).join(name)).unwrap());
        assert!(files.iter().all(|file| file.contains(&password_of(&url(region)))));
        assert!(!cluster.region(region).join("superuser.next").exists());
    }
    // Who was there goes on, and so do those who ask anew.
    session.execute("SELECT 1").await.unwrap();
    let before = ledger.written();
    ledger.until_written(before + 20).await;
    let acknowledged = ledger.acknowledged().await;
    // The region that was away has what the others have, by itself, and leads with it.
    let new = password_of(&url("us-east"));
    assert_ne!(new, password_of(&old[0]));
    cluster.start_region("ap-northeast");
    let file = cluster.region("ap-northeast").join("superuser.password");
    until("the region has the password", || async { std::fs::read_to_string(&file).unwrap() == new }).await;
    cluster.until_level().await;
    acknowledged.assert_in_all(&cluster).await;
    assert!(!lets_in(&old[2]).await && lets_in(&url("ap-northeast")).await);
    let _ = cluster.printed(&["promote", "--region", "ap-northeast"]);
    let mut writer = cluster.connect("ap-northeast").await;
    writer.execute("CREATE TABLE t (n int)").await.unwrap();
    // Neither is anywhere but where it is kept.
    let secrets = [new, password_of(&old[0])];
    assert!(secrets.iter().all(|secret| !said.contains(secret)));
    for region in &cluster.regions {
        for entry in std::fs::read_dir(cluster.region(region)).unwrap() {
            let path = entry.unwrap().path();
            let kept = ["superuser.password", "superuser.pgpass"].iter().any(|name| path.ends_with(name));
            if path.is_file() && !kept {
                let content = text(&std::fs::read(&path).unwrap());
                assert!(secrets.iter().all(|secret| !content.contains(secret)), "{}", path.display());
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_that_is_interrupted_anywhere_locks_nobody_out_and_is_finished_by_the_next() {
    let cluster = Cluster::up(1);
    let begin = now();
    assert!(cluster.run(&["password", "rotate"]).status.success());
    let whole = begin.elapsed();
    for part in 1..8_u32 {
        let mut command = std::process::Command::new(replicator_tests::program());
        command
            .args(["password", "rotate", "--config"])
            .arg(cluster.file())
            .arg("--data")
            .arg(cluster.data());
        let mut rotating = command.spawn().unwrap();
        // Killed at a part of the time that it takes.
        tokio::time::sleep(whole * part / 8).await;
        let _ = rotating.kill();
        let _ = rotating.wait();
        for region in ["us-east", "eu-west"] {
            until("the region's own word lets a client in", || async {
                lets_in(&cluster.printed(&["url", "--region", region])).await
            })
            .await;
        }
    }
    // What one of them left for later.
    std::fs::write(cluster.region("eu-west").join("superuser.next"), "left").unwrap();
    let rotated = cluster.printed(&["password", "rotate", "--json"]);
    assert_eq!(rotated.matches("\"in_force\"").count(), 2, "{rotated}");
    let password =
        |region: &str| std::fs::read_to_string(cluster.region(region).join("superuser.password")).unwrap();
    assert_eq!(password("us-east"), password("eu-west"));
    assert!(lets_in(&cluster.printed(&["url", "--region", "eu-west"])).await);
    // Files that were put back as they were some time ago.
    std::fs::write(cluster.region("eu-west").join("superuser.password"), "stale").unwrap();
    until("what is stale is mended", || async { password("eu-west") == password("us-east") }).await;
}

/// Lines that PostgreSQL does not take are found by `check`. A writer that starts with them all the same lets
/// nobody in, and says why; corrected ones are taken while it runs.
#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_is_no_rule_is_found_before_and_can_be_corrected_after_a_start() {
    let cluster = cluster(0, "hba = [\"host all stranger all reject\"]");
    cluster.start();
    let good = std::fs::read_to_string(cluster.file()).unwrap();
    let bad = good.replace("all reject", "all rejekt");
    std::fs::write(cluster.file(), &bad).unwrap();
    let checked = cluster.run(&["check"]);
    let said = text(&checked.stderr);
    assert!(!checked.status.success() && said.contains("rejekt") && said.contains("`hba`"), "{said}");
    cluster.expect(&["clients are not let in"]);
    cluster.kill("us-east", true).await;
    cluster.start_region("us-east");
    until("it says why nobody comes in", || async {
        row(&cluster, "us-east").1.contains("replicator reload takes it")
    })
    .await;
    // As long as it is wrong, it is refused.
    let (told, well) = reload(&cluster, &[]);
    assert!(!well || told["us-east"].is_empty(), "{told:?}");
    std::fs::write(cluster.file(), &good).unwrap();
    let (told, well) = reload(&cluster, &[]);
    assert!(well, "{told:?}");
    until("clients are in", || async {
        PgConnection::connect(&cluster.printed(&["url", "--region", "us-east"])).await.is_ok()
    })
    .await;
    assert!(is_rejected(&cluster, "us-east", "stranger").await);
}
