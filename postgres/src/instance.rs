//! One PostgreSQL instance: made, configured, started, watched and stopped through PostgreSQL's own programs.
//!
//! The instance outlives the daemon: it is in a process group of its own, and a daemon that starts finds it running
//! and takes it over.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proto::{Lsn, SystemId, Timeline, TimelineHistory};

use crate::account::{Account, AccountError};
use crate::client::ConnectOptions;
use crate::installation::Installation;
use crate::walsender::REHEARSAL;

/// The superuser that every instance has.
pub const SUPERUSER: &str = "postgres";

/// The port in the name of a region's own walsender's socket.
pub const WALSENDER_PORT: u16 = 5433;

/// The name under which the region's reader is the writer's synchronous standby, and of its slot.
pub const READER: &str = "replicator";

/// Settings that the product depends on; `regions.toml` may not change them.
pub const RESERVED_SETTINGS: &[&str] = &[
    "cluster_name",
    "data_directory",
    "fsync",
    "hba_file",
    "hot_standby",
    "ident_file",
    "listen_addresses",
    "max_slot_wal_keep_size",
    "port",
    "primary_conninfo",
    "primary_slot_name",
    "recovery_target_timeline",
    "restore_command",
    "synchronous_standby_names",
    "unix_socket_directories",
    "unix_socket_permissions",
    "wal_level",
];

/// What an instance is made of.
#[derive(Debug, Clone)]
pub struct InstanceOptions {
    /// PostgreSQL's programs.
    pub installation: Installation,
    /// Who runs them.
    pub account: Account,
    /// PGDATA.
    pub data_dir: PathBuf,
    /// Where its sockets lie; see [`socket_dir_for`].
    pub socket_dir: PathBuf,
    /// Where applications reach it.
    pub listen: SocketAddr,
    /// Its log.
    pub log_file: PathBuf,
    /// Its `cluster_name`.
    pub name: String,
    /// The user's own settings.
    pub settings: BTreeMap<String, String>,
}

/// The part an instance plays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Takes writes.
    Writer {
        /// Its commits wait for the region's reader.
        synchronous: bool,
    },
    /// Follows the region's own walsender.
    Standby,
}

/// Why an instance cannot be managed.
#[derive(Debug, thiserror::Error)]
pub enum InstanceError {
    /// The account has no access.
    #[error(transparent)]
    Account(#[from] AccountError),
    /// A file cannot be used.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// What the system says.
        source: io::Error,
    },
    /// One of PostgreSQL's programs failed.
    #[error("{program} failed: {output}")]
    Program {
        /// The program.
        program: &'static str,
        /// What it said.
        output: String,
    },
    /// It did not come up.
    #[error("PostgreSQL did not accept connections within {0} s; its log, {1}, says why")]
    NotReady(u64, String),
    /// It ended while coming up.
    #[error("PostgreSQL ended while it was starting; its log, {log}, says why; last: {last}")]
    Ended {
        /// The log.
        log: String,
        /// Its last lines.
        last: String,
    },
    /// It did not stop.
    #[error("PostgreSQL (process {0}) did not stop in time")]
    NotStopped(i32),
    /// Something was set by `ALTER SYSTEM` that would undo our settings.
    #[error(
        "postgresql.auto.conf sets {0}, which replication depends on; take it out with `ALTER SYSTEM RESET {0}`, or by removing the line"
    )]
    Overridden(String),
    /// The control file is not understood.
    #[error("pg_controldata does not tell {0}")]
    ControlData(&'static str),
}

/// A PostgreSQL instance.
#[derive(Debug, Clone)]
pub struct Instance {
    options: InstanceOptions,
}

impl Instance {
    /// The instance of `options`, which need not exist yet.
    #[must_use]
    pub fn new(options: InstanceOptions) -> Instance {
        Instance { options }
    }

    /// What it is made of.
    #[must_use]
    pub fn options(&self) -> &InstanceOptions {
        &self.options
    }

    /// Whether there is a data directory.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.options.data_dir.join("global/pg_control").exists()
    }

    /// How the region's own daemon reaches it.
    #[must_use]
    pub fn local_connection(&self) -> ConnectOptions {
        ConnectOptions {
            socket_dir: self.options.socket_dir.clone(),
            port: self.options.listen.port(),
            user: SUPERUSER.into(),
            application_name: READER.into(),
        }
    }

    /// Makes a new PostgreSQL cluster with data checksums, whose superuser has `password`.
    ///
    /// # Errors
    /// When `initdb` fails.
    pub fn create(&self, password: &str) -> Result<(), InstanceError> {
        let InstanceOptions { installation, account, data_dir, .. } = &self.options;
        account.check_reach(data_dir)?;
        // Made aside and renamed: an initdb that was interrupted leaves nothing that looks like a cluster.
        let aside = data_dir.with_extension("creating");
        remove_tree(&aside)?;
        account.make_private(&aside)?;
        let pwfile = data_dir.with_extension("password");
        write_private(&pwfile, password)?;
        account.own(&pwfile)?;
        let made = run(
            "initdb",
            account
                .command(&installation.program("initdb"))
                .args(["--username", SUPERUSER, "--data-checksums", "--encoding=UTF8", "--locale=C.UTF-8"])
                .args(["--auth-local=peer", "--auth-host=scram-sha-256", "--pgdata"])
                .arg(&aside)
                .arg("--pwfile")
                .arg(&pwfile),
        );
        std::fs::remove_file(&pwfile).map_err(at(&pwfile))?;
        made?;
        std::fs::rename(&aside, data_dir).map_err(at(data_dir))
    }

    /// Writes the configuration for `part`. Takes effect when the instance next starts.
    ///
    /// # Errors
    /// When a file cannot be written, or `ALTER SYSTEM` has set what must be ours.
    pub fn configure(&self, part: Part) -> Result<(), InstanceError> {
        let data_dir = &self.options.data_dir;
        self.check_overrides()?;
        let main = data_dir.join("postgresql.conf");
        let content = std::fs::read_to_string(&main).map_err(at(&main))?;
        if !content.lines().any(|line| line.trim() == INCLUDE) {
            self.write(
                &main,
                &format!("{content}\n# Replicator's settings; rewritten at each start\n{INCLUDE}\n"),
            )?;
        }
        self.write(&data_dir.join("replicator.conf"), &self.settings(part))?;
        self.write(&data_dir.join("pg_hba.conf"), HBA)?;
        let users = [self.options.account.name.as_str(), self.options.account.own_name.as_str()];
        let map: String = users.iter().map(|user| format!("replicator {user} {SUPERUSER}\n")).collect();
        self.write(&data_dir.join("pg_ident.conf"), &map)?;
        let signal = data_dir.join("standby.signal");
        match part {
            Part::Standby => self.write(&signal, "")?,
            // A standby.signal beside a writer's data would be an operator's doing; the region's record decides.
            Part::Writer { .. } if signal.exists() => std::fs::remove_file(&signal).map_err(at(&signal))?,
            Part::Writer { .. } => {}
        }
        self.options.account.make_private(&self.options.socket_dir)?;
        Ok(())
    }

    /// Makes a copy of a standby's data an instance by itself: it reaches `target_lsn` with redo from the walsender in `feed`, waits
    /// there, and nobody reaches it but by its own socket. Whatever could reach out of it is off, `preload` is what is left of
    /// `shared_preload_libraries`, and its memory is small.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn configure_rehearsal(
        &self,
        feed: &Path,
        target_lsn: Lsn,
        preload: &str,
    ) -> Result<(), InstanceError> {
        let InstanceOptions { account, data_dir, socket_dir, listen, .. } = &self.options;
        let conninfo = format!(
            "host={} port={WALSENDER_PORT} user={SUPERUSER} application_name={REHEARSAL}",
            feed.display()
        );
        let ours = [
            ("cluster_name", REHEARSAL),
            ("listen_addresses", ""),
            ("port", &listen.port().to_string()),
            ("unix_socket_directories", &socket_dir.display().to_string()),
            ("primary_conninfo", &conninfo),
            ("primary_slot_name", ""),
            ("synchronous_standby_names", ""),
            ("recovery_target_lsn", &target_lsn.to_string()),
            ("recovery_target_inclusive", "off"),
            ("recovery_target_action", "pause"),
            ("archive_mode", "off"),
            ("archive_cleanup_command", ""),
            ("recovery_end_command", ""),
            ("restore_command", ""),
            ("logging_collector", "off"),
            ("max_logical_replication_workers", "0"),
            ("shared_preload_libraries", preload),
            ("shared_buffers", "128MB"),
            ("huge_pages", "off"),
            ("autovacuum", "off"),
            ("jit", "off"),
            // Made durable again before it is promoted.
            ("fsync", "off"),
        ];
        // Read last, whatever else is set: and the data are ours to throw away.
        let path = data_dir.join("postgresql.auto.conf");
        let mut text = std::fs::read_to_string(&path).map_err(at(&path))?;
        text += "\n# For a rehearsal\n";
        text.extend(ours.iter().map(|(key, value)| setting(key, value)));
        self.write(&path, &text)?;
        self.write(&data_dir.join("standby.signal"), "")?;
        account.make_private(socket_dir).map_err(InstanceError::from)
    }

    /// Starts the instance if it does not run, and waits until it accepts connections.
    ///
    /// # Errors
    /// When it does not come up before `patience` has passed.
    pub async fn start(&self, patience: Duration) -> Result<(), InstanceError> {
        let InstanceOptions { installation, account, data_dir, log_file, .. } = &self.options;
        if self.process().is_none() {
            account.check_reach(data_dir)?;
            self.remove_unused_histories()?;
            self.disown_stale_locks()?;
            let mut log = std::fs::OpenOptions::new();
            let log = log.create(true).append(true).mode(0o600).open(log_file).map_err(at(log_file))?;
            let errors = log.try_clone().map_err(at(log_file))?;
            let mut child = account
                .command(&installation.program("postgres"))
                .arg("-D")
                .arg(data_dir)
                .stdin(std::process::Stdio::null())
                .stdout(log)
                .stderr(errors)
                .spawn()
                .map_err(at(&installation.program("postgres")))?;
            // Reaped when it ends, whenever that is.
            std::thread::spawn(move || child.wait());
        }
        let started = tokio::time::timeout(patience, async {
            let mut seen = false;
            let mut waited = 0;
            while !self.accepts().await {
                let runs = self.process().is_some();
                // It may take a moment until the process has written its id.
                waited += 1;
                if !runs && (seen || waited > 100) {
                    let log = log_file.display().to_string();
                    return Err(InstanceError::Ended { log, last: last_lines(log_file) });
                }
                seen |= runs;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Ok(())
        });
        let not_ready = || InstanceError::NotReady(patience.as_secs(), log_file.display().to_string());
        started.await.unwrap_or_else(|_| Err(not_ready()))
    }

    /// A postmaster that was killed leaves its lock files, and where ids start anew with the container, its id is another process's by now:
    /// PostgreSQL would take that for itself. No postmaster works here: so they get an id that no process has, and PostgreSQL removes them.
    /// The rest of them stays, as it looks there for shared memory that is still used.
    pub(crate) fn disown_stale_locks(&self) -> Result<(), InstanceError> {
        for path in [self.options.data_dir.join("postmaster.pid"), self.socket().with_added_extension("lock")]
        {
            match std::fs::read_to_string(&path) {
                Ok(content) => self.write(&path, &disowned(&content))?,
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(at(&path)(e)),
            }
        }
        Ok(())
    }

    /// Whether it accepts connections.
    async fn accepts(&self) -> bool {
        let InstanceOptions { installation, account, socket_dir, listen, .. } = &self.options;
        let mut command = account.command(&installation.program("pg_isready"));
        command.arg("-q").arg("-h").arg(socket_dir).arg("-p").arg(listen.port().to_string());
        let asked = tokio::task::spawn_blocking(move || command.status());
        asked.await.is_ok_and(|status| status.is_ok_and(|s| s.success()))
    }

    /// Stops the instance: shuts it down cleanly, or at once when `immediate`.
    ///
    /// # Errors
    /// When it still runs after `patience`.
    pub async fn stop(&self, immediate: bool, patience: Duration) -> Result<(), InstanceError> {
        let Some(process) = self.process() else { return Ok(()) };
        let signal = if immediate { Signal::SIGQUIT } else { Signal::SIGINT };
        // It may end by itself just now.
        let _ = kill(process, signal);
        let stopped = tokio::time::timeout(patience, async {
            while self.process().is_some() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        stopped.await.map_err(|_| InstanceError::NotStopped(process.as_raw()))
    }

    /// Writes a checkpoint now, so that a shutdown soon after has little left to write.
    ///
    /// # Errors
    /// When the instance cannot be asked.
    pub fn checkpoint(&self) -> Result<(), InstanceError> {
        let InstanceOptions { installation, account, socket_dir, listen, .. } = &self.options;
        let mut command = account.command(&installation.program("psql"));
        command.args(["-X", "-q", "-w", "-U", SUPERUSER, "-d", "postgres", "-c", "CHECKPOINT", "-h"]);
        run("psql", command.arg(socket_dir).arg("-p").arg(listen.port().to_string())).map(drop)
    }

    fn history_path(&self, timeline: Timeline) -> PathBuf {
        self.options.data_dir.join("pg_wal").join(TimelineHistory::file_name(timeline))
    }

    /// Whether this PostgreSQL is on `timeline` by a promotion of its own or another's: it has that one's history.
    #[must_use]
    pub fn has_begun(&self, timeline: Timeline) -> bool {
        let history = std::fs::read(self.history_path(timeline));
        timeline == Timeline(1) || history.is_ok_and(|content| content != TimelineHistory::UNUSED.as_bytes())
    }

    /// Removes what [`Instance::promote`] and a walreceiver left when they were killed before the history came for which the unused
    /// numbers were marked: PostgreSQL would take the highest of them for the timeline to recover to.
    fn remove_unused_histories(&self) -> Result<(), InstanceError> {
        let wal = self.options.data_dir.join("pg_wal");
        let Ok(entries) = std::fs::read_dir(&wal) else { return Ok(()) };
        let (mut unused, mut newest) = (Vec::new(), 0);
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            let number = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".history"));
            let Some(number) = number.and_then(|number| u32::from_str_radix(number, 16).ok()) else {
                continue;
            };
            match std::fs::read(&path).map_err(at(&path))? == TimelineHistory::UNUSED.as_bytes() {
                true => unused.push((number, path)),
                false => newest = newest.max(number),
            }
        }
        for (_, path) in unused.into_iter().filter(|(number, _)| *number > newest) {
            std::fs::remove_file(&path).map_err(at(&path))?;
        }
        Ok(())
    }

    /// Whether this is a standby that was not promoted.
    #[must_use]
    pub fn is_standby(&self) -> bool {
        self.options.data_dir.join("standby.signal").exists()
    }

    /// Tells a standby to become a writer, on `timeline`. PostgreSQL takes the number after the highest one that it finds a history
    /// file of: so the numbers between are given files that say that they are unused.
    ///
    /// # Errors
    /// When it cannot be told.
    pub fn promote(&self, timeline: Timeline) -> Result<(), InstanceError> {
        for unused in (2..timeline.0).map(Timeline) {
            let path = self.history_path(unused);
            if !path.exists() {
                self.write(&path, TimelineHistory::UNUSED)?;
            }
        }
        let InstanceOptions { installation, account, data_dir, .. } = &self.options;
        let mut command = account.command(&installation.program("pg_ctl"));
        run("pg_ctl", command.args(["promote", "--no-wait", "--silent", "--pgdata"]).arg(data_dir)).map(drop)
    }

    /// The running postmaster of this data directory.
    #[must_use]
    pub fn process(&self) -> Option<Pid> {
        let content = std::fs::read_to_string(self.options.data_dir.join("postmaster.pid")).ok()?;
        let process = content.lines().next()?.trim().parse().ok()?;
        // A process id may have been given to another program since: the postmaster works in its data directory.
        let works_in = std::fs::read_link(format!("/proc/{process}/cwd")).ok()?;
        let data_dir = self.options.data_dir.canonicalize().ok()?;
        (works_in == data_dir).then_some(Pid::from_raw(process))
    }

    /// PostgreSQL's system identifier, from its control file.
    ///
    /// # Errors
    /// When there is no control file.
    pub fn system_id(&self) -> Result<SystemId, InstanceError> {
        let id = self.control_data("Database system identifier")?;
        id.parse().map(SystemId).map_err(|_| InstanceError::ControlData("the system identifier"))
    }

    /// What pg_controldata says of `name`; empty when it says nothing.
    pub(crate) fn control_data(&self, name: &str) -> Result<String, InstanceError> {
        let InstanceOptions { installation, account, data_dir, .. } = &self.options;
        let text =
            run("pg_controldata", account.command(&installation.program("pg_controldata")).arg(data_dir))?;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        Ok(value.unwrap_or_default().trim().to_owned())
    }

    /// One more of our settings, until the configuration is written anew.
    pub(crate) fn add_setting(&self, key: &str, value: &str) -> Result<(), InstanceError> {
        let path = self.options.data_dir.join("replicator.conf");
        let text = std::fs::read_to_string(&path).map_err(at(&path))?;
        self.write(&path, &format!("{text}{}", setting(key, value)))
    }

    fn settings(&self, part: Part) -> String {
        let InstanceOptions { socket_dir, listen, name, settings, .. } = &self.options;
        let socket_dir = socket_dir.display().to_string();
        let primary_conninfo =
            format!("host={socket_dir} port={WALSENDER_PORT} user={SUPERUSER} application_name={name}");
        let port = listen.port().to_string();
        let address = listen.ip().to_string();
        let synchronous = match part {
            Part::Writer { synchronous: false } => String::new(),
            Part::Writer { synchronous: true } | Part::Standby => format!("\"{READER}\""),
        };
        let ours = [
            ("cluster_name", name.as_str()),
            ("listen_addresses", &address),
            ("port", &port),
            ("unix_socket_directories", &socket_dir),
            ("unix_socket_permissions", "0700"),
            ("wal_level", "replica"),
            ("max_wal_senders", "20"),
            ("max_replication_slots", "20"),
            ("hot_standby", "on"),
            ("synchronous_standby_names", &synchronous),
            // Takes effect on a standby. The walsender is on this machine and comes back within milliseconds.
            ("primary_conninfo", &primary_conninfo),
            ("recovery_target_timeline", "latest"),
            ("wal_retrieve_retry_interval", "100ms"),
            ("wal_receiver_status_interval", "1s"),
        ];
        let mut text =
            format!("# Written at each start for the part of a {part:?}; changes here are lost.\n");
        text.extend(settings.iter().map(|(key, value)| setting(key, value)));
        text.extend(ours.iter().map(|(key, value)| setting(key, value)));
        text
    }

    /// `postgresql.auto.conf` is read after ours, and would win.
    fn check_overrides(&self) -> Result<(), InstanceError> {
        let path = self.options.data_dir.join("postgresql.auto.conf");
        let content = match std::fs::read_to_string(&path) {
            Ok(content) => content,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(at(&path)(e)),
        };
        let keys = content.lines().filter_map(|line| Some(line.split_once('=')?.0.trim()));
        match keys.into_iter().find(|key| RESERVED_SETTINGS.contains(key)) {
            Some(key) => Err(InstanceError::Overridden(key.to_owned())),
            None => Ok(()),
        }
    }

    fn write(&self, path: &Path, content: &str) -> Result<(), InstanceError> {
        let temporary = path.with_extension("replicator-new");
        write_private(&temporary, content)?;
        self.options.account.own(&temporary)?;
        std::fs::rename(&temporary, path).map_err(at(path))
    }
}

/// A line of a configuration file.
fn setting(key: &str, value: &str) -> String {
    format!("{key} = '{}'\n", value.replace('\'', "''"))
}

/// Linux gives no process an id as high as this.
const NO_PROCESS: &str = "4194304";

/// A lock file's content with the id of no process.
fn disowned(content: &str) -> String {
    let rest = content.split_once('\n').map_or("", |(_, rest)| rest);
    format!("{NO_PROCESS}\n{rest}")
}

/// The line of `postgresql.conf` that brings ours in.
const INCLUDE: &str = "include 'replicator.conf'";

/// Who may connect: the account and the daemon by the local socket, everyone else with a password.
const HBA: &str = "\
local all         postgres peer map=replicator
local replication postgres peer map=replicator
local all         all      scram-sha-256
host  all         all      all scram-sha-256
";

/// The socket of a server that listens at `port` in `socket_dir`, as clients look for it.
#[must_use]
pub fn socket_path(socket_dir: &Path, port: u16) -> PathBuf {
    socket_dir.join(format!(".s.PGSQL.{port}"))
}

/// Where the sockets of the instance below `directory` lie: there, or in `/tmp` when that path is too long for a socket.
#[must_use]
pub fn socket_dir_for(directory: &Path) -> PathBuf {
    /// The system allows 107 bytes for a socket's path.
    const NAME_BYTES_MAX: usize = "/.s.PGSQL.65535.lock".len();
    let wanted = directory.join("run");
    if wanted.as_os_str().len() + NAME_BYTES_MAX <= 107 {
        return wanted;
    }
    let hash =
        directory.as_os_str().as_encoded_bytes().iter().fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01B3)
        });
    PathBuf::from(format!("/tmp/replicator-{hash:016x}"))
}

fn run(program: &'static str, command: &mut std::process::Command) -> Result<String, InstanceError> {
    let output = command.output().map_err(|e| InstanceError::Program { program, output: e.to_string() })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(InstanceError::Program { program, output: String::from_utf8_lossy(&output.stderr).trim().to_owned() })
}

fn write_private(path: &Path, content: &str) -> Result<(), InstanceError> {
    use std::io::Write;
    let mut file = std::fs::OpenOptions::new();
    let file = file.write(true).create(true).truncate(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(content.as_bytes())).map_err(at(path))
}

pub(crate) fn remove_tree(path: &Path) -> Result<(), InstanceError> {
    match std::fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(at(path)(e)),
        _ => Ok(()),
    }
}

pub(crate) fn at(path: &Path) -> impl Fn(io::Error) -> InstanceError + use<> {
    let path = path.display().to_string();
    move |source| InstanceError::Io { path: path.clone(), source }
}

fn last_lines(path: &Path) -> String {
    let content = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&content[content.len().saturating_sub(2000)..]).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(4)..].join(" | ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_lock_keeps_all_but_its_owner() {
        assert_eq!(disowned("18\n/data\n1700000000\n5432\n"), "4194304\n/data\n1700000000\n5432\n");
        assert_eq!(disowned(""), "4194304\n");
    }
}
