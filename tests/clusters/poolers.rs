//! PgBouncer in front of the writer: its clients see no error while the writer moves as planned, from host to
//! host and from region to region.

use std::fs::Permissions;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;

use replicator_tests::{Cluster, free_port, postgresql, text, until};
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, Executor};

use crate::head::three_hosts;

/// Debian's.
const PROGRAM: &str = "/usr/sbin/pgbouncer";

/// How many connections the clients have, and how long they work. `REPLICATOR_TEST_SECONDS` has another time.
const CLIENTS: &str = "4";
const SECONDS: &str = "25";

/// A PgBouncer, which ends with this.
struct PgBouncer {
    process: Child,
    _directory: tempfile::TempDir,
    port: u16,
    password: PathBuf,
}

impl PgBouncer {
    /// One that listens at `port`, whose database is at `endpoint`.
    fn start(port: u16, endpoint: &str) -> PgBouncer {
        let options: PgConnectOptions = endpoint.parse().unwrap();
        let of_owner = password(endpoint);
        let directory = tempfile::tempdir().unwrap();
        std::fs::set_permissions(&directory, Permissions::from_mode(0o755)).unwrap();
        let at = |name: &str| directory.path().join(name);
        let write = |name: &str, content: &str| {
            std::fs::write(at(name), content).unwrap();
            std::fs::set_permissions(at(name), Permissions::from_mode(0o644)).unwrap();
        };
        // A build of PostgreSQL without OpenSSL encrypts nothing.
        let encryption = match parameter(endpoint, "sslrootcert") {
            Some(authority) => {
                write("ca.pem", &std::fs::read_to_string(authority).unwrap());
                format!("verify-full\nserver_tls_ca_file = {}", at("ca.pem").display())
            }
            None => "disable".to_owned(),
        };
        write("users", &format!("\"postgres\" \"{of_owner}\"\n\"replicator\" \"of the console\"\n"));
        write("password", "of the console\n");
        let ini = format!(
            "[databases]\n\
             postgres = host={} port={}\n\
             [pgbouncer]\n\
             listen_addr = 127.0.0.1\n\
             listen_port = {port}\n\
             unix_socket_dir =\n\
             auth_type = scram-sha-256\n\
             auth_file = {}\n\
             admin_users = replicator\n\
             pool_mode = transaction\n\
             server_tls_sslmode = {encryption}\n",
            options.get_host(),
            options.get_port(),
            at("users").display()
        );
        write("pgbouncer.ini", &ini);
        let mut command = Command::new(PROGRAM);
        if nix::unistd::Uid::effective().is_root() {
            command.args(["-u", "postgres"]);
        }
        let log = std::fs::File::create(at("log")).unwrap();
        let process = command.arg(at("pgbouncer.ini")).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let password = at("password");
        PgBouncer { process, _directory: directory, port, password }
    }

    /// What its console says to a command.
    fn console(&self, command: &str) -> Output {
        Command::new(postgresql("psql"))
            .args(["--no-psqlrc", "--host", "127.0.0.1", "--username", "replicator", "--port"])
            .args([&self.port.to_string(), "pgbouncer", "--command", command])
            .env("PGPASSWORD", "of the console")
            .output()
            .unwrap()
    }

    fn said(&self) -> String {
        std::fs::read_to_string(self.password.with_file_name("log")).unwrap()
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A parameter of a URL.
fn parameter(url: &str, name: &str) -> Option<String> {
    let (_, parameters) = url.split_once('?')?;
    let found = parameters.split('&').find_map(|pair| pair.strip_prefix(&format!("{name}=")));
    found.map(|value| value.replace("%2F", "/"))
}

/// The password in a URL.
fn password(url: &str) -> String {
    let (login, _) = url.split_once('@').unwrap();
    login.rsplit_once(':').unwrap().1.to_owned()
}

/// `pgbench` through the PgBouncer: a row for each transaction.
fn pgbench(bouncer: &PgBouncer, script: &Path, password: &str, seconds: &str) -> Child {
    Command::new(postgresql("pgbench"))
        .args(["--no-vacuum", "--protocol=simple", "--client", CLIENTS, "--time", seconds, "--file"])
        .arg(script)
        .args([
            "--host",
            "127.0.0.1",
            "--username",
            "postgres",
            "--port",
            &bouncer.port.to_string(),
            "postgres",
        ])
        .env("PGPASSWORD", password)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Moves the writer; whether it has moved. While its next place follows the last move, nothing is changed.
fn moves_to(cluster: &Cluster, to: &[&str]) -> bool {
    let output = cluster.run(&[&["promote"], to].concat());
    let (told, refused) = (text(&output.stdout), text(&output.stderr));
    println!("{told}");
    assert!(output.status.success() || refused.contains("Nothing was changed"), "{refused}");
    output.status.success()
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_pgbouncer_see_no_error_while_the_writer_moves_as_planned() {
    if !Path::new(PROGRAM).exists() {
        println!("{PROGRAM} is not installed: nothing was tested");
        return;
    }
    let cluster = three_hosts("5s");
    cluster.expect(&["another host of this region has taken its volume", "another daemon has taken over"]);
    let port = free_port();
    // Its endpoint is that of a host which does not become the head.
    cluster.configure(&format!(
        "pgbouncer.consoles = [\"127.0.0.1:{port}\"]\npgbouncer.password_file = \"{}\"\n",
        cluster.data().join("console").display()
    ));
    cluster.start();
    let endpoint = cluster.node_endpoint("us-east", "n2");
    let mut writer = cluster.connect("us-east").await;
    writer.execute("CREATE TABLE moves (n bigserial PRIMARY KEY)").await.unwrap();
    writer.close().await.unwrap();
    let bouncer = PgBouncer::start(port, &endpoint);
    // Before the daemons have its password, a dry run says so; a move goes on all the same.
    let told = || text(&cluster.run(&["promote", "--region", "eu-west", "--dry-run"]).stdout);
    assert!(told().contains("cannot be told to pause"), "{}", told());
    std::fs::copy(&bouncer.password, cluster.data().join("console")).unwrap();
    until("the console lets the daemon in", || async { !told().contains("cannot be told to pause") }).await;

    let mut script = tempfile::NamedTempFile::new().unwrap();
    writeln!(script, "INSERT INTO moves DEFAULT VALUES;").unwrap();
    let seconds = std::env::var("REPLICATOR_TEST_SECONDS").unwrap_or_else(|_| SECONDS.into());
    let mut clients = pgbench(&bouncer, script.path(), &password(&endpoint), &seconds);
    let mut moves = 0;
    while clients.try_wait().unwrap().is_none() {
        // There and back.
        for to in [
            ["--region", "eu-west"].as_slice(),
            &["--region", "us-east"],
            &["--region", "us-east", "--node", "n1"],
            &["--region", "us-east", "--node", "home"],
        ] {
            until("it has moved", || async { moves_to(&cluster, to) }).await;
            moves += usize::from(clients.try_wait().unwrap().is_none());
        }
    }
    let output = clients.wait_with_output().unwrap();
    let (told, errors) = (text(&output.stdout), text(&output.stderr));
    println!("{moves} moves: {told}");
    assert!(output.status.success() && !errors.contains("error"), "{errors}\n{}", bouncer.said());
    assert!(moves >= 4, "{moves} moves");
    let done = told.lines().find_map(|line| line.strip_prefix("number of transactions actually processed: "));
    let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM moves")
        .fetch_one(&mut sqlx::PgConnection::connect(&endpoint).await.unwrap())
        .await
        .unwrap();
    assert_eq!(done.unwrap().trim().parse::<i64>().unwrap(), rows, "each once");

    // A daemon that was killed after the pause: the one that leads next has its clients go on.
    assert!(bouncer.console("PAUSE").status.success(), "{}", bouncer.said());
    let waiting = Mutex::new(pgbench(&bouncer, script.path(), &password(&endpoint), "1"));
    let is_over = || waiting.lock().unwrap().try_wait().unwrap().is_some();
    cluster.kill("us-east", true).await;
    assert!(!is_over(), "it waits");
    cluster.start();
    until("it goes on", || async { is_over() }).await;
    let output = waiting.into_inner().unwrap().wait_with_output().unwrap();
    assert!(output.status.success(), "{}\n{}", text(&output.stderr), bouncer.said());
}
