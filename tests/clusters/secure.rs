//! What lies on a host, and who gets at it: another account, and a superuser of the database.

use std::ffi::OsString;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid, User};
use postgres::instance::account::Account;
use postgres::instance::{Instance, InstanceOptions};
use replicator_tests::{Cluster, free_port, installation, now, pause, program, text, until, with_children};
use sqlx::{AssertSqlSafe, Executor, PgConnection};

/// Everything below a directory, but what is gone by the time it is looked at.
fn all_below(directory: &Path) -> Vec<PathBuf> {
    let mut found = vec![directory.to_owned()];
    let mut at = 0;
    while let Some(path) = found.get(at).cloned() {
        at += 1;
        if std::fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_dir()) {
            let entries = std::fs::read_dir(&path).into_iter().flatten();
            found.extend(entries.filter_map(|entry| Some(entry.ok()?.path())));
        }
    }
    found
}

/// What is wrong with who owns what is at `path`, `below` the data directory, and who may do what there.
fn wrong(below: &Path, metadata: &std::fs::Metadata, account: &Account, own: u32) -> Option<String> {
    let parts: Vec<&str> = below.iter().map(|part| part.to_str().unwrap()).collect();
    let mode = metadata.mode() & 0o7777;
    // PostgreSQL's account passes through these where it is another.
    let passed = matches!(parts[..], [] | ["regions"] | ["regions", _] | ["regions", _, "drill"]);
    // PostgreSQL's collector writes its log itself.
    let is_log = below.extension().is_some_and(|end| end == "log")
        && parts.last().is_some_and(|name| name.starts_with("postgresql."));
    // A rehearsal's way to the primary is the superuser's there: nobody's but the daemon's account.
    let is_way = parts.contains(&"way");
    let of_postgres = !is_way
        && (is_log
            || parts.iter().any(|part| part.starts_with("pgdata") || matches!(*part, "run" | "rewind")));
    let owner = if of_postgres { account.user_id } else { own };
    let allowed = match (passed && metadata.is_dir(), metadata.is_dir()) {
        (true, _) => 0o711,
        (false, true) => 0o700,
        // A socket may be executed by its owner, for what that is worth.
        (false, false) => 0o700,
    };
    let shown = format!("{}: mode {mode:04o}, owner {}", below.display(), metadata.uid());
    (mode & !allowed != 0 || metadata.uid() != owner).then_some(shown)
}

/// Sees that nothing in the data directory is open to others; returns all that there is.
fn assert_private(cluster: &Cluster) -> Vec<PathBuf> {
    assert_private_of(cluster, Uid::effective())
}

/// The same where the daemons run as `own`.
fn assert_private_of(cluster: &Cluster, own: Uid) -> Vec<PathBuf> {
    let (data, account) = (cluster.data(), Account::resolve(None).unwrap());
    let paths = all_below(&data);
    let look = |path: &PathBuf| {
        let metadata = std::fs::symlink_metadata(path).ok()?;
        let below = path.strip_prefix(&data).unwrap();
        if metadata.is_symlink() { None } else { wrong(below, &metadata, &account, own.as_raw()) }
    };
    let wrong: Vec<String> = paths.iter().filter_map(look).collect();
    assert!(
        wrong.is_empty(),
        "{} are open to others or another's: {:#?}",
        wrong.len(),
        &wrong[..wrong.len().min(40)]
    );
    paths
}

/// A command as an account that has nothing to do with any of this; none where that cannot be had.
fn as_nobody(program: &str) -> Option<Command> {
    let nobody = User::from_name("nobody").unwrap().filter(|_| Uid::effective().is_root());
    let Some(nobody) = nobody else {
        eprintln!("not run: only root can be another account for a moment");
        return None;
    };
    let mut command = Command::new(program);
    command.uid(nobody.uid.as_raw()).gid(nobody.gid.as_raw()).current_dir("/");
    Some(command)
}

/// Which of these another account may read or write.
fn open_to_nobody(paths: &[PathBuf]) -> Vec<String> {
    const LOOK: &str = r#"while IFS= read -r path; do
        if [ -r "$path" ] || [ -w "$path" ]; then echo "$path"; fi
    done"#;
    let Some(mut command) = as_nobody("sh") else { return Vec::new() };
    let mut child = command.args(["-c", LOOK]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let lines: String = paths.iter().map(|path| format!("{}\n", path.display())).collect();
    let mut input = child.stdin.take().unwrap();
    let writing = runtime::task::Thread::spawn("tell the paths", move || {
        use std::io::Write;
        input.write_all(lines.as_bytes()).unwrap();
    });
    let output = child.wait_with_output().unwrap();
    drop(writing.unwrap());
    assert!(output.status.success());
    text(&output.stdout).lines().map(str::to_owned).collect()
}

fn drill(cluster: &Cluster, region: &str) -> Child {
    let mut command = Command::new(program());
    command.args(["drill", "--region", region, "--json", "--config"]).arg(cluster.file());
    command.arg("--data").arg(cluster.data()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// A promotion, a failover with a rewind, a seed with data set aside, a rehearsal: whatever is made meanwhile
/// is its owner's alone, also for a moment.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_in_the_data_directory_is_open_to_another_account() {
    let cluster = Cluster::up(2);
    cluster.expect(&["this region does not lead any more"]);
    let mut primary = cluster.connect("us-east").await;
    primary.execute("CREATE TABLE t AS SELECT generate_series(1, 20000) AS n").await.unwrap();
    cluster.until_level().await;
    let mut rehearsal = drill(&cluster, "eu-west");
    let clone = cluster.region("eu-west").join("drill/pgdata/global");
    until("the clone is being made", || async { clone.exists() }).await;
    while rehearsal.try_wait().unwrap().is_none() {
        assert_private(&cluster);
        pause().await;
    }
    cluster.kill("us-east", true).await;
    let _ = cluster.printed(&["promote", "--region", "eu-west", "--mode", "failover", "--json"]);
    let mut primary = cluster.connect("eu-west").await;
    primary.execute("INSERT INTO t VALUES (0)").await.unwrap();
    cluster.start_region("us-east");
    cluster.until_streams("us-east").await;
    let _ = cluster.printed(&["reseed", "--region", "ap-northeast", "--yes"]);
    until("the data are set aside", || async { cluster.region("ap-northeast").join("aside").exists() }).await;
    let begin = now();
    loop {
        assert_private(&cluster);
        let status = cluster.status();
        let rows = status["regions"].as_array().unwrap();
        if rows.iter().all(|row| row["state"] == "streaming") {
            break;
        }
        assert!(begin.elapsed() < replicator_tests::PATIENCE, "{status:#}");
        pause().await;
    }
    let paths = assert_private(&cluster);
    let has = |ending: &str| paths.iter().any(|path| path.to_string_lossy().ends_with(ending));
    for wanted in
        [".redo", "copy.meta", "region.json", "daemon.lock", "events.jsonl", "key.pem", "PG_VERSION"]
    {
        assert!(has(wanted), "there is a {wanted} to look at");
    }
    assert_eq!(open_to_nobody(&paths), Vec::<String>::new());
    // Nor can it hold a lock: that needs no more than a file that can be read.
    for lock in paths.iter().filter(|path| path.extension().is_some_and(|ending| ending == "lock")) {
        let Some(mut flock) = as_nobody("flock") else { break };
        let held = flock.arg("--nonblock").arg(lock).arg("true").stderr(Stdio::null()).status().unwrap();
        assert!(!held.success(), "{} can be held by anybody", lock.display());
    }
}

/// Has the operating system's account of a region's PostgreSQL run a command, as any superuser of the
/// database can.
async fn run_in(connection: &mut PgConnection, command: &str) {
    // What it is given is read first: PostgreSQL minds when nobody does.
    let copy = format!("COPY (SELECT 1) TO PROGRAM 'cat > /dev/null; {}'", command.replace('\'', "''"));
    connection.execute(AssertSqlSafe(copy)).await.unwrap();
}

/// What of ours lies in a directory that PostgreSQL's account can write to, and what we write on the way.
const OURS: [&str; 21] = [
    "pgdata/postgresql.replicator-new",
    "pgdata/postgresql.conf.replicator-new",
    "pgdata/replicator.replicator-new",
    "pgdata/replicator.conf.replicator-new",
    "pgdata/replicator.conf",
    "pgdata/pg_hba.replicator-new",
    "pgdata/pg_hba.conf.replicator-new",
    "pgdata/pg_hba.conf",
    "pgdata/pg_ident.replicator-new",
    "pgdata/pg_ident.conf.replicator-new",
    "pgdata/pg_ident.conf",
    "pgdata/standby.replicator-new",
    "pgdata/standby.signal.replicator-new",
    "pgdata/postmaster.replicator-new",
    "pgdata/postmaster.pid.replicator-new",
    "pgdata/replicator.promotion.replicator-new",
    "pgdata/pg_wal/00000009.replicator-new",
    "run/replicator.shut",
    "run/replicator.shut.replicator-new",
    "run/.s.replicator-new",
    "run/.s.PGSQL.5433",
];

/// A superuser of the database puts links in the place of all that the daemon writes where it can: nothing
/// that they lead to is read, written or given away, and the region works.
#[tokio::test(flavor = "multi_thread")]
async fn a_superuser_of_the_database_gets_no_file_of_the_host_by_links() {
    if !Uid::effective().is_root() {
        eprintln!("not run: for an ordinary user there is one account, and nothing to get");
        return;
    }
    let cluster = Cluster::up(1);
    cluster.expect(&["a link is there or on the way", "PostgreSQL ended while it was starting"]);
    let vault = cluster.file().with_file_name("vault");
    std::fs::create_dir(&vault).unwrap();
    std::fs::set_permissions(&vault, std::fs::Permissions::from_mode(0o711)).unwrap();
    let victim = vault.join("shadow");
    std::fs::write(&victim, "root:secret\n").unwrap();
    std::fs::set_permissions(&victim, std::fs::Permissions::from_mode(0o600)).unwrap();
    let assert_untouched = |when: &str| {
        let names: Vec<_> =
            std::fs::read_dir(&vault).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["shadow"], "{when}: nothing was made there");
        let found = std::fs::metadata(&victim).unwrap();
        assert_eq!((found.uid(), found.mode() & 0o7777), (0, 0o600), "{when}: it was not given away");
        assert_eq!(
            std::fs::read_to_string(&victim).unwrap(),
            "root:secret\n",
            "{when}: it was not written to"
        );
    };
    for region in ["us-east", "eu-west"] {
        let mut connection = cluster.connect(region).await;
        for name in OURS {
            let place = cluster.region(region).join(name);
            run_in(&mut connection, &format!("ln -sfn {} {}", victim.display(), place.display())).await;
        }
        drop(connection);
        // PostgreSQL is started again by the daemon that runs; then both are, which writes everything anew.
        kill(cluster.postmaster(region), Signal::SIGKILL).unwrap();
        let begin = now();
        while begin.elapsed().as_secs() < 2 {
            assert_untouched(&format!("{region}, PostgreSQL started again"));
            pause().await;
        }
        cluster.kill(region, true).await;
        cluster.start_region(region);
        cluster.until_streams(region).await;
        assert_untouched(&format!("{region}, the daemon started again"));
    }
    // And on a way that is another's altogether: nothing is removed over there.
    let mut connection = cluster.connect("eu-west").await;
    let keep = vault.join("replicator");
    let slots = cluster.region("eu-west").join("pgdata/pg_replslot");
    run_in(&mut connection, &format!("rmdir {0} && ln -s {1} {0}", slots.display(), vault.display())).await;
    drop(connection);
    std::fs::create_dir(&keep).unwrap();
    cluster.kill("eu-west", true).await;
    cluster.start_region("eu-west");
    let log = cluster.region("eu-west").join("postgresql.log");
    until("PostgreSQL says what it thinks of that", || async {
        text(&std::fs::read(&log).unwrap()).contains("could not open directory \"pg_replslot\"")
    })
    .await;
    assert!(keep.exists(), "a directory of another's was removed");
    std::fs::remove_dir(&keep).unwrap();
    assert_untouched("a link in the place of a directory");
    // What stands in its place is the operator's to mend.
    cluster.kill("eu-west", true).await;
    std::fs::remove_file(&slots).unwrap();
    Account::resolve(None).unwrap().make_private(&slots).unwrap();
    cluster.start_region("eu-west");
    cluster.until_streams("eu-west").await;
    let mut primary = cluster.connect("us-east").await;
    primary.execute("CREATE TABLE t AS SELECT 1 AS n").await.unwrap();
    cluster.until_level_enough("eu-west").await;
    let _ = cluster.printed(&["promote", "--region", "eu-west"]);
    cluster.assert_identical().await;
    assert_untouched("a switchover");
}

/// The number in `postmaster.pid` is whatever a superuser of the database wrote there: only a process of the
/// account, in the data directory, is taken for the postmaster, and ended.
#[test]
fn a_process_of_another_account_is_not_taken_for_the_postmaster() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
    let account = Account::resolve(None).unwrap();
    let data_dir = directory.path().join("pgdata");
    account.make_private(&data_dir).unwrap();
    let instance = Instance::new(InstanceOptions {
        installations: installation().into(),
        account: account.clone(),
        data_dir: data_dir.clone(),
        socket_dir: directory.path().join("run"),
        listen: format!("127.0.0.1:{}", free_port()).parse().unwrap(),
        log_file: directory.path().join("postgresql.log"),
        name: "alone".into(),
        settings: std::collections::BTreeMap::new(),
        hba: Vec::new(),
        ident: Vec::new(),
        authorities: None,
        certificate: None,
    });
    let process_of = |user: Option<u32>| {
        let mut command = Command::new("sleep");
        if let Some(user) = user {
            command.uid(user);
        }
        let mut child = command.arg("60").current_dir(&data_dir).spawn().unwrap();
        std::fs::write(data_dir.join("postmaster.pid"), format!("{}\n", child.id())).unwrap();
        let found = instance.process();
        child.kill().unwrap();
        child.wait().unwrap();
        found.is_some()
    };
    if Uid::effective().is_root() {
        assert!(!process_of(None), "root's own");
    }
    assert!(process_of(Uid::effective().is_root().then_some(account.user_id)), "the account's");
}

/// A daemon, and a zone's process, refuse a directory that others may use, and say what to do.
#[tokio::test(flavor = "multi_thread")]
async fn a_loosened_tree_is_refused_and_postgresql_does_not_get_the_daemons_environment() {
    let cluster = Cluster::up(1);
    cluster.kill("eu-west", true).await;
    let region = cluster.region("eu-west");
    let volume = region.join("volume");
    for (path, mode) in [(&volume, 0o755), (&region.join("region.json"), 0o644), (&region, 0o755)] {
        let before = std::fs::metadata(path).unwrap().permissions();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        let mut mend = String::new();
        for zone in [&[][..], &["--az", "a"]] {
            // One that is not refused runs until it is told to stop.
            let mut refused = Command::new("timeout");
            refused.arg("30").arg(program()).args(["run", "--region", "eu-west"]).args(zone);
            refused.arg("--config").arg(cluster.file()).arg("--data").arg(cluster.data());
            let refused = refused.output().unwrap();
            let said = text(&refused.stderr);
            assert!(!refused.status.success(), "{said}");
            let shown = format!("{}: other accounts may use it, its mode is {mode:04o}", path.display());
            assert!(said.contains(&shown), "{said}");
            mend = said.split_once("To mend it: ").unwrap().1.trim().to_owned();
        }
        let mended = Command::new("sh").args(["-c", &mend]).status().unwrap();
        assert!(mended.success(), "{mend}");
        assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o066, 0, "{mend}");
        std::fs::set_permissions(path, before).unwrap();
    }
    cluster.start_region_with("eu-west", &[("TOKEN_OF_THE_SERVICE", OsString::from("hunter2"))]);
    cluster.until_streams("eu-west").await;
    let of = |process| {
        let told = text(&std::fs::read(format!("/proc/{process}/environ")).unwrap_or_default());
        told.split('\0').filter(|set| !set.is_empty()).map(str::to_owned).collect::<Vec<_>>()
    };
    // The one that was killed has none.
    until("PostgreSQL runs again", || async {
        cluster.try_postmaster("eu-west").is_some_and(|postmaster| !of(postmaster).is_empty())
    })
    .await;
    assert!(of(cluster.daemon("eu-west")).iter().any(|set| set.starts_with("TOKEN_OF_THE_SERVICE=")));
    for set in of(cluster.postmaster("eu-west")) {
        let name = set.split('=').next().unwrap();
        let known = ["PATH", "HOME", "TZ", "LANG"].contains(&name) || name.starts_with("LC_");
        // PostgreSQL's own, for what it starts.
        assert!(known || name.starts_with("PG"), "{set}");
    }
}

/// A table's owner who wants a superuser to run a function.
const ATTACK: &str = "
CREATE ROLE mallory LOGIN;
CREATE SCHEMA app AUTHORIZATION mallory;
SET ROLE mallory;
CREATE TABLE app.a (id int); INSERT INTO app.a SELECT generate_series(1, 10000);
CREATE TABLE app.t (id int); INSERT INTO app.t VALUES (1), (2);
CREATE FUNCTION app.act() RETURNS bool LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE 'COPY (SELECT 1) TO PROGRAM ''echo >> PLACE''';
    RETURN true;
EXCEPTION WHEN OTHERS THEN RETURN true;
END $$;
CREATE FUNCTION app.evil(int) RETURNS bool LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN RETURN app.act(); END $$;
CREATE INDEX ON app.a (id) WHERE app.evil(1);
RESET ROLE;
";

/// The owner of a table has a function run when the table is read, by an index's condition or by a view in
/// the table's place: it does not run as a superuser, neither on the primary nor on the clone.
#[tokio::test(flavor = "multi_thread")]
async fn a_rehearsal_runs_no_code_of_a_tables_owner_as_superuser() {
    let cluster = Cluster::up(1);
    let mut primary = cluster.connect("us-east").await;
    let place = cluster.file().with_file_name("place");
    Account::resolve(None).unwrap().make_private(&place).unwrap();
    let ran = place.join("ran");
    primary.execute(AssertSqlSafe(ATTACK.replace("PLACE", &ran.display().to_string()))).await.unwrap();
    primary.execute("CREATE TABLE fine AS SELECT generate_series(1, 1000) AS n").await.unwrap();
    cluster.until_level().await;
    let _ = std::fs::remove_file(&ran);
    let rehearsal = drill(&cluster, "eu-west");
    let reads = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'replicator_drill' \
                 AND state = 'idle in transaction' AND backend_xmin IS NOT NULL";
    let locks = "SELECT count(*) FROM pg_locks WHERE mode = 'ShareLock' AND locktype = 'relation'";
    let begin = now();
    loop {
        let count: i64 = sqlx::query_scalar(reads).fetch_one(&mut primary).await.unwrap();
        let locked: i64 = sqlx::query_scalar(locks).fetch_one(&mut primary).await.unwrap();
        if count > 0 && locked == 0 {
            break;
        }
        assert!(begin.elapsed() < replicator_tests::PATIENCE, "the primary was never at its moment");
        pause().await;
    }
    let swap = "SET ROLE mallory; DROP TABLE app.t; \
                CREATE VIEW app.t AS SELECT '(0,0)'::tid AS ctid, app.evil(1) AS id; RESET ROLE";
    primary.execute(swap).await.unwrap();
    let output = rehearsal.wait_with_output().unwrap();
    let report: serde_json::Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", text(&output.stderr)));
    assert!(!ran.exists(), "a function of a table's owner ran as a superuser: {report:#}");
    // All others were compared, and the one that is gone is named.
    let compared = &report["checks"][2];
    assert_eq!(compared["outcome"], "not_done", "{report:#}");
    let detail = compared["detail"].as_str().unwrap();
    assert!(detail.contains("11000 rows") && detail.contains("app.t"), "{detail}");
    // Nobody can log in as the role that it read them as, and that has no more than it needs.
    let role: (bool, bool, String) = sqlx::query_as(
        "SELECT r.rolcanlogin, r.rolsuper OR r.rolcreaterole OR r.rolcreatedb OR r.rolreplication, \
         coalesce((SELECT string_agg(g.rolname::text, ',') FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid \
         WHERE m.member = r.oid), '') FROM pg_roles r WHERE r.rolname = 'replicator_drill_eu-west'",
    )
    .fetch_one(&mut primary)
    .await
    .unwrap();
    assert_eq!(role, (false, false, "pg_read_all_data".to_owned()));
}

/// What the system says of a process's user ids, groups and capabilities: what follows each name. None of
/// one that has ended.
fn rights(process: Pid) -> Option<impl Fn(&str) -> String> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    Some(move |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(&format!("{name}:")));
        line.unwrap().split_whitespace().collect::<Vec<_>>().join(" ")
    })
}

/// Whether the superuser of the database gets this done on the host.
async fn gets_done(connection: &mut PgConnection, command: &str) -> bool {
    // What it is given is read first: one that ended before would be an error of its own.
    let sql = format!("COPY (SELECT 1) TO PROGRAM 'cat >/dev/null; {command}'");
    connection.execute(AssertSqlSafe(sql)).await.is_ok()
}

/// The data directory is another account's than root's: root's commands work as that account, daemons are it,
/// and PostgreSQL is yet another one, which gets no right and no file of theirs.
#[tokio::test(flavor = "multi_thread")]
async fn daemons_of_an_account_of_their_own_run_postgresql_as_another_one() {
    let found = User::from_name("daemon").unwrap().filter(|_| Uid::effective().is_root());
    let Some(own) = found else {
        eprintln!(
            "not run: only root can have daemons of another account, and there must be one called daemon"
        );
        return;
    };
    let cluster = Cluster::new(2);
    std::fs::create_dir(cluster.data()).unwrap();
    std::fs::set_permissions(cluster.data(), std::fs::Permissions::from_mode(0o711)).unwrap();
    std::os::unix::fs::chown(cluster.data(), Some(own.uid.as_raw()), Some(own.gid.as_raw())).unwrap();
    cluster.start();
    let account = Account::resolve(None).unwrap();
    let mut primary = cluster.connect("us-east").await;
    primary.execute("CREATE TABLE t AS SELECT generate_series(1, 20000) AS n").await.unwrap();
    cluster.until_level().await;
    let all_of = |id: u32| format!("{id} {id} {id} {id}");
    let assert_apart = || {
        for region in ["us-east", "eu-west"] {
            let daemon = rights(cluster.daemon(region)).unwrap();
            assert_eq!(daemon("Uid"), all_of(own.uid.as_raw()), "{region}");
            let processes = with_children(cluster.postmaster(region));
            assert!(processes.len() > 3, "{region}: {processes:?}");
            for process in processes {
                let Some(rights) = rights(process) else { continue };
                assert_eq!(rights("Uid"), all_of(account.user_id), "{region}, {process}");
                assert_eq!(rights("Gid"), all_of(account.group_id));
                assert_eq!(rights("Groups"), "", "none of the daemon's groups");
                for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
                    assert_eq!(rights(set), "0000000000000000", "{region}, {process}: {set}");
                }
            }
        }
        assert_private_of(&cluster, own.uid);
    };
    assert_apart();
    // What a superuser of the database can run is PostgreSQL's account.
    assert!(gets_done(&mut primary, "true").await);
    for secret in ["identity/key.pem", "superuser.password", "region.json", "volume"] {
        let place = cluster.region("us-east").join(secret);
        assert!(place.exists(), "{}", place.display());
        let command = format!("cat {0} || ls {0}/", place.display());
        assert!(!gets_done(&mut primary, &command).await, "{command}");
    }
    let ended = format!("kill -0 {}", cluster.daemon("us-east"));
    for command in ["setpriv --reuid=0 true", "setpriv --reuid=daemon true", &ended] {
        assert!(!gets_done(&mut primary, command).await, "{command}");
    }
    // A daemon that was killed finds its PostgreSQL, one that was killed with it starts it anew.
    let postmaster = cluster.postmaster("us-east");
    cluster.kill("us-east", false).await;
    cluster.kill("eu-west", true).await;
    cluster.start();
    assert_eq!(cluster.postmaster("us-east"), postmaster, "it is taken over");
    // Whatever makes files: a switchover, a seed with data set aside, a rehearsal.
    cluster.until_level_enough("eu-west").await;
    let _ = cluster.printed(&["promote", "--region", "eu-west"]);
    cluster.until_streams("us-east").await;
    let _ = cluster.printed(&["reseed", "--region", "us-east", "--yes"]);
    until("the data are set aside", || async { cluster.region("us-east").join("aside").exists() }).await;
    cluster.until_streams("us-east").await;
    cluster.until_level().await;
    let rehearsed = cluster.run(&["drill", "--region", "ap-northeast", "--json"]);
    assert_eq!(rehearsed.status.success(), replicator_tests::has_amcheck(), "{}", text(&rehearsed.stderr));
    let url = cluster.printed(&["url", "--region", "us-east", "--superuser"]);
    let asked = Command::new(replicator_tests::postgresql("psql"))
        .args([&url, "-Atc", "SELECT count(*) FROM t"])
        .output();
    assert_eq!(text(&asked.unwrap().stdout).trim(), "20000", "root is superuser on the region's own machine");
    cluster.assert_identical().await;
    assert_apart();
}
