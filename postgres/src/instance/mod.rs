//! One PostgreSQL instance: made, configured, started, watched and stopped through PostgreSQL's own programs.
//!
//! The instance outlives the daemon: it is in a process group of its own, and a daemon that starts finds it
//! running and takes it over.

pub mod account;
pub(crate) mod aside;
mod ask;
pub mod control;
mod door;
mod files;
mod floors;
mod frozen;
mod log;
mod password;
mod promotion;
mod reload;
mod settings;
mod slot;
mod tls;
mod trial;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use proto::Lsn;
use runtime::private;
use runtime::task::{Thread, blocking};

use self::account::{Account, AccountError};
use self::aside::Aside;
use crate::below::Below;
use crate::installation::{Installation, Installations};
use crate::major::LogicalSlots;
use crate::protocol::client::ConnectOptions;
use crate::protocol::logins::Logins;
use crate::sockets::{READER, REHEARSAL, SUPERUSER, WALSENDER_PORT};

pub use floors::{Need, is_floor};
pub use frozen::Stopped;
pub use password::{Owner, OwnerIs};
pub use reload::{CLIENTS_MAP, Own, ReloadError, Took};
pub use settings::{GIVEN_SETTINGS, LEAST_SETTINGS, RESERVED_SETTINGS, WAL_LEVELS};
pub use tls::{OWN_ENCRYPTION, is_pair};
pub use trial::TrialError;

/// What an instance is made of.
#[derive(Debug, Clone)]
pub struct InstanceOptions {
    /// PostgreSQL's programs: of which major version they are to be, the data say.
    pub installations: Installations,
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
    /// The user's own settings, to begin with: see [`Instance::reload`].
    pub settings: BTreeMap<String, String>,
    /// The lines of `pg_hba.conf` beside the daemon's, to begin with; what they do not match, a password lets
    /// in.
    pub hba: Vec<String>,
    /// The lines of `pg_ident.conf` beside the daemon's, to begin with.
    pub ident: Vec<String>,
    /// The authorities by which clients' certificates are verified, where lines of `hba` ask for one; a file
    /// in PEM. None: the server verifies none.
    pub authorities: Option<PathBuf>,
    /// Where the certificate lies by which clients know it (`cert.pem`, `key.pem`): they are let in over the
    /// network only encrypted. None, or nothing there: without encryption.
    pub certificate: Option<PathBuf>,
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

/// How an instance is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Cleanly: its sessions are ended, and a checkpoint is written.
    Fast,
    /// At once: nobody gets an answer any more, and it recovers when it starts again.
    Immediate,
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
    /// It runs where nobody looks for it.
    #[error(
        "its data directory was moved away or replaced while PostgreSQL (process {0}) runs in it: put it back, or end that process"
    )]
    Moved(i32),
    /// The control file is not understood.
    #[error("pg_controldata does not tell {0}")]
    ControlData(&'static str),
}

/// A PostgreSQL instance.
#[derive(Debug, Clone)]
pub struct Instance {
    options: InstanceOptions,
    /// What of the configuration is the user's. Held while a file is written with it.
    own: Arc<Mutex<Own>>,
    /// What the running server is known to have read for encryption; none of one that was found running.
    loaded: Arc<Mutex<Option<tls::Read>>>,
    /// The logins of ours that it has not answered.
    logins: Logins,
}

impl Instance {
    /// The instance of `options`, which need not exist yet.
    #[must_use]
    pub fn new(mut options: InstanceOptions) -> Instance {
        let (settings, hba) = (std::mem::take(&mut options.settings), std::mem::take(&mut options.hba));
        let own = Own { settings, hba, ident: std::mem::take(&mut options.ident) };
        Instance {
            options,
            own: Arc::new(Mutex::new(own)),
            loaded: Arc::default(),
            logins: Logins::default(),
        }
    }

    fn own(&self) -> MutexGuard<'_, Own> {
        // It is replaced whole.
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it is made of.
    #[must_use]
    pub fn options(&self) -> &InstanceOptions {
        &self.options
    }

    /// The PostgreSQL that its data are for. Where none is here for them, the newest one, which says so.
    #[must_use]
    pub fn installation(&self) -> &Installation {
        let InstanceOptions { installations, data_dir, .. } = &self.options;
        installations.for_data(data_dir).unwrap_or_else(|_| installations.newest())
    }

    /// Whether there is a data directory.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.has("global/pg_control")
    }

    /// How the region's own daemon reaches it.
    #[must_use]
    pub fn local_connection(&self) -> ConnectOptions {
        ConnectOptions {
            socket_dir: self.options.socket_dir.clone(),
            port: self.options.listen.port(),
            user: SUPERUSER.into(),
            application_name: READER.into(),
            major: self.installation().major,
            logins: self.logins.clone(),
        }
    }

    /// Makes a new PostgreSQL cluster with data checksums, whose superuser has `password`.
    ///
    /// # Errors
    /// When `initdb` fails.
    pub fn create(&self, password: &str, owner: Option<&Owner>) -> Result<(), InstanceError> {
        let InstanceOptions { account, data_dir, .. } = &self.options;
        let initdb = self.installation().program("initdb");
        account.check_reach(data_dir)?;
        account.check_programs(&initdb)?;
        // Made aside and renamed: an initdb that was interrupted leaves nothing that looks like a cluster.
        let aside = Aside::new(data_dir, "creating", account, |_| false)?;
        let pwfile = data_dir.with_extension("password");
        let written = private::create_new(&pwfile).and_then(|mut file| {
            file.write_all(password.as_bytes())?;
            account.own(&file)
        });
        written.map_err(at(&pwfile))?;
        let made = run(
            "initdb",
            account
                .command(&initdb)
                .args(["--username", SUPERUSER, "--data-checksums", "--encoding=UTF8", "--locale=C.UTF-8"])
                .args(["--auth-local=peer", "--auth-host=scram-sha-256", "--pgdata"])
                .arg(&aside.path)
                .arg("--pwfile")
                .arg(&pwfile),
            CREATE,
        );
        std::fs::remove_file(&pwfile).map_err(at(&pwfile))?;
        made?;
        if let Some(owner) = owner {
            self.make_owner(owner, &aside.path)?;
        }
        aside.install()
    }

    /// Makes the role that applications use, and its database, in data that nobody runs.
    fn make_owner(&self, owner: &Owner, data_dir: &Path) -> Result<(), InstanceError> {
        let statements = data_dir.with_extension("owner");
        let written = private::create_new(&statements).and_then(|mut file| {
            file.write_all(owner.made().as_bytes())?;
            File::open(&statements)
        });
        let input = written.map_err(at(&statements))?;
        std::fs::remove_file(&statements).map_err(at(&statements))?;
        let mut command = self.options.account.command(&self.installation().program("postgres"));
        // Without the last it would go on after an error, and end as if all were well.
        command.args(["--single", "-c", "exit_on_error=on", "-D"]).arg(data_dir).arg("postgres");
        run_with("postgres --single", &mut command, input.into(), CREATE).map(drop)
    }

    /// Writes the configuration for `part`. Takes effect when the instance next starts.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn configure(&self, part: Part) -> Result<(), InstanceError> {
        self.take_overrides_out()?;
        if self.process().is_none() {
            self.undo_interrupted_promotion()?;
        }
        let content = self.read(MAIN)?;
        if !content.lines().any(|line| line.trim() == INCLUDE) {
            let content = format!("{content}\n# Replicator's settings; rewritten at each start\n{INCLUDE}\n");
            self.write(MAIN, &content)?;
        }
        self.write_settings(Some(part))?;
        self.configure_door(part)?;
        self.write_map(&self.own())?;
        match part {
            Part::Standby => {
                self.write(STANDBY, "")?;
                self.drop_slots_of_a_writer()?;
            }
            // A standby.signal beside a writer's data would be an operator's doing; the region's record
            // decides.
            Part::Writer { .. } => self.remove(STANDBY)?,
        }
        self.options.account.make_private(&self.options.socket_dir)?;
        self.place_certificate(&self.own())
    }

    /// The reader's slot of an instance that was a writer would keep redo on a standby that nobody reads
    /// there, without an end. A logical one is of no use to a standby of a major that does not look after it:
    /// redo removes the catalog rows that it decodes with, and were it a writer again its consumer would be
    /// told what never was. They can be removed only while PostgreSQL does not run.
    fn drop_slots_of_a_writer(&self) -> Result<(), InstanceError> {
        let logical_too = self.installation().major.logical_slots() == LogicalSlots::Lost;
        self.drop_slots_that(|slots, slot| {
            slot == READER || (logical_too && slot::is_logical(slots, Path::new(slot)))
        })
    }

    /// Drops every slot of an instance that does not run; of one that runs, none.
    ///
    /// # Errors
    /// When a file cannot be read or removed.
    pub fn drop_slots(&self) -> Result<(), InstanceError> {
        self.drop_slots_that(|_, _| true)
    }

    fn drop_slots_that(&self, go: impl Fn(&Below, &OsStr) -> bool) -> Result<(), InstanceError> {
        let place = self.options.data_dir.join("pg_replslot");
        let Ok(slots) = self.data()?.directory(Path::new("pg_replslot")) else { return Ok(()) };
        if self.process().is_some() {
            return Ok(());
        }
        let mut dropped = false;
        for slot in slots.names().map_err(at(&place))?.into_iter().map(|slot| slot.name) {
            if go(&slots, &slot) {
                let slot_place = place.join(&slot);
                tracing::info!("{}: this slot of the time as a writer is dropped", slot_place.display());
                slots.remove_any(&slot).map_err(at(&slot_place))?;
                dropped = true;
            }
        }
        if dropped { slots.sync().map_err(at(&place)) } else { Ok(()) }
    }

    /// Makes a copy of a standby's data an instance by itself: it reaches `target_lsn` with redo from the
    /// walsender in `feed`, waits there, and nobody reaches it but by its own socket. Whatever could reach
    /// out of it is off, `preload` is what is left of `shared_preload_libraries`, and its memory is small.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn configure_rehearsal(
        &self,
        feed: &Path,
        target_lsn: Lsn,
        preload: &str,
    ) -> Result<(), InstanceError> {
        let InstanceOptions { account, socket_dir, listen, .. } = &self.options;
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
            // The clone has none of the standby's links.
            ("allow_in_place_tablespaces", "on"),
            // Made durable again before it is promoted.
            ("fsync", "off"),
        ];
        // Read last, whatever else is set: and the data are ours to throw away.
        let mut text = self.read(AUTO)?;
        text += "\n# For a rehearsal\n";
        let of_major = self.installation().major.rehearsal_settings();
        text.extend(ours.iter().chain(of_major).map(|(key, value)| setting(key, value)));
        self.write(AUTO, &text)?;
        self.write(STANDBY, "")?;
        account.make_private(socket_dir).map_err(InstanceError::from)
    }

    /// Starts the instance if it does not run, and waits until it accepts connections.
    ///
    /// # Errors
    /// When it does not come up before `patience` has passed.
    pub async fn start(&self, patience: Duration) -> Result<(), InstanceError> {
        let InstanceOptions { account, data_dir, log_file, .. } = &self.options;
        if self.process().is_none() {
            match self.moved_process() {
                // What it has is a standby's: nothing is lost with it.
                Some(_) if self.is_standby() => self.stop(Stop::Immediate, MOVED).await?,
                Some(process) => return Err(InstanceError::Moved(process.as_raw())),
                None => {}
            }
            let postgres = self.installation().program("postgres");
            account.check_reach(data_dir)?;
            account.check_programs(&postgres)?;
            self.undo_interrupted_promotion()?;
            self.remove_unused_histories()?;
            self.disown_stale_locks()?;
            self.place_certificate(&self.own())?;
            self.close_door()?;
            let log = private::options().create(true).append(true).open(log_file).map_err(at(log_file))?;
            // Its collector opens it by itself.
            account.own(&log).map_err(at(log_file))?;
            let errors = log.try_clone().map_err(at(log_file))?;
            let mut child = account
                .command(&postgres)
                .arg("-D")
                .arg(data_dir)
                .args(self.floors()?)
                .args(self.command_line()?)
                .stdin(Stdio::null())
                .stdout(log)
                .stderr(errors)
                .spawn()
                .map_err(at(&postgres))?;
            // Reaped when it ends, whenever that is.
            let reaping = Thread::spawn("reap postgres", move || drop(child.wait()));
            drop(reaping.map_err(at(&postgres))?);
            self.note_certificate_read();
        }
        let started = tokio::time::timeout(patience, async {
            let mut seen = false;
            let mut waited = 0;
            while !self.accepts().await {
                let runs = self.process().is_some();
                // It may take a moment until the process has written its id.
                waited += 1;
                if !runs && (seen || waited > 100) {
                    // Its collector may have its last words still.
                    tokio::time::sleep(LAST_WORDS).await;
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

    /// The settings that nobody can change while it runs: those that durability stands on. A rehearsal's data
    /// are thrown away.
    fn command_line(&self) -> Result<Vec<String>, InstanceError> {
        if self.options.name == REHEARSAL {
            return Ok(Vec::new());
        }
        let synchronous = self.synchronous()?;
        let fixed = ALWAYS.iter().map(|(key, value)| format!("{key}={value}"));
        Ok(fixed.chain([format!("{SYNCHRONOUS}={synchronous}")]).flat_map(|set| ["-c".into(), set]).collect())
    }

    /// Whom commits wait for by the configuration; empty for nobody.
    fn synchronous(&self) -> Result<String, InstanceError> {
        Ok(synchronous_in(&self.read(OURS)?))
    }

    /// A postmaster that was killed leaves its lock files, and where ids start anew with the container, its
    /// id is another process's by now: PostgreSQL would take that for itself. No postmaster works here: so
    /// they get an id that no process has, and PostgreSQL removes them. The rest of them stays, as it looks
    /// there for shared memory that is still used.
    pub(crate) fn disown_stale_locks(&self) -> Result<(), InstanceError> {
        let places = [(self.data()?, PathBuf::from(POSTMASTER)), (self.sockets()?, self.socket_lock())];
        for (directory, name) in places {
            let io = at(&directory.path().join(&name));
            if let Some(content) = files::if_any(directory.read_to_string(&name)).map_err(&io)? {
                let content = disowned(&content);
                directory.replace(&name, content.as_bytes(), self.options.account.owner()).map_err(io)?;
            }
        }
        Ok(())
    }

    /// Whether it accepts connections.
    async fn accepts(&self) -> bool {
        let InstanceOptions { account, socket_dir, listen, .. } = &self.options;
        let mut command = account.command(&self.installation().program("pg_isready"));
        command.arg("-q").arg("-h").arg(socket_dir).arg("-p").arg(listen.port().to_string());
        let asked = blocking("pg_isready", move || command.status()).await;
        asked.is_ok_and(|status| status.is_ok_and(|s| s.success()))
    }

    /// Stops the instance. One that is frozen and does not even stop at once is killed.
    ///
    /// # Errors
    /// When it still runs after `patience`.
    pub async fn stop(&self, how: Stop, patience: Duration) -> Result<(), InstanceError> {
        let runs = || self.process().or_else(|| self.moved_process());
        let Some(process) = runs() else { return Ok(()) };
        let signal = match how {
            Stop::Fast => Signal::SIGINT,
            Stop::Immediate => Signal::SIGQUIT,
        };
        // It may end by itself just now.
        let _ = kill(process, signal);
        if how == Stop::Immediate {
            frozen::kill_later(process, || runs() == Some(process)).await;
        }
        let stopped = tokio::time::timeout(patience, async {
            while runs().is_some() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        stopped.await.map_err(|_| InstanceError::NotStopped(process.as_raw()))
    }

    /// The running postmaster of this data directory.
    #[must_use]
    pub fn process(&self) -> Option<Pid> {
        let content = self.read(POSTMASTER).ok()?;
        let process = content.lines().next()?.trim().parse().ok()?;
        // A process id may have been given to another program since, or put there by somebody who wants that
        // one ended: the postmaster is the account's, and works in its data directory.
        let works_in = || std::fs::read_link(format!("/proc/{process}/cwd"));
        let works_in = self.options.account.seeing(works_in).ok()?;
        let data_dir = self.options.data_dir.canonicalize().ok()?;
        let is_ours = works_in == data_dir && frozen::owner(process) == Some(self.options.account.user_id);
        is_ours.then_some(Pid::from_raw(process))
    }

    /// The one that was started here and whose data directory somebody has moved away since: its socket's
    /// lock names it, and it was started by this command.
    #[must_use]
    pub fn moved_process(&self) -> Option<Pid> {
        if self.process().is_some() {
            return None;
        }
        let content = self.sockets().ok()?.read_to_string(self.socket_lock()).ok()?;
        let process = content.lines().next()?.trim().parse().ok()?;
        let command = std::fs::read(format!("/proc/{process}/cmdline")).ok()?;
        let mut words = command.split(|byte| *byte == 0).skip_while(|word| *word != b"-D").skip(1);
        let is_ours = words.next() == Some(self.options.data_dir.as_os_str().as_encoded_bytes())
            && frozen::owner(process) == Some(self.options.account.user_id);
        is_ours.then_some(Pid::from_raw(process))
    }

    fn socket_lock(&self) -> PathBuf {
        let lock = self.socket().with_added_extension("lock");
        PathBuf::from(lock.file_name().unwrap_or_default())
    }

    /// Those of its processes that are stopped by a signal: they exist, and do nothing.
    #[must_use]
    pub fn stopped_processes(&self) -> Vec<Stopped> {
        self.process().map(frozen::stopped).unwrap_or_default()
    }

    /// One more of our settings, until the configuration is written anew.
    pub(crate) fn add_setting(&self, key: &str, value: &str) -> Result<(), InstanceError> {
        let text = self.read(OURS)?;
        self.write(OURS, &format!("{text}{}", setting(key, value)))
    }

    /// Writes our settings and the user's, for `part`, or for the part that they are written for.
    fn write_settings(&self, part: Option<Part>) -> Result<(), InstanceError> {
        let own = self.own();
        let text = match part {
            Some(part) => {
                let head =
                    format!("# Written at each start for the part of a {part:?}; changes here are lost.");
                let synchronous = match part {
                    Part::Writer { synchronous: false } => String::new(),
                    Part::Writer { synchronous: true } | Part::Standby => format!("\"{READER}\""),
                };
                self.settings(&own, &head, &synchronous)
            }
            None => {
                self.place_certificate(&own)?;
                let written = self.read(OURS)?;
                self.settings(&own, written.lines().next().unwrap_or("#"), &synchronous_in(&written))
            }
        };
        self.write(OURS, &text)
    }

    fn settings(&self, own: &Own, head: &str, synchronous: &str) -> String {
        let InstanceOptions { socket_dir, listen, name, .. } = &self.options;
        let settings = &own.settings;
        let socket_dir = socket_dir.display().to_string();
        let primary_conninfo =
            format!("host={socket_dir} port={WALSENDER_PORT} user={SUPERUSER} application_name={name}");
        let port = listen.port().to_string();
        let address = listen.ip().to_string();
        let least = |key: &str| {
            let needed = LEAST_SETTINGS.iter().find(|(name, _)| *name == key).map_or(0, |(_, least)| *least);
            settings::at_least(settings.get(key), needed)
        };
        let ours = [
            ("cluster_name", name.as_str()),
            ("listen_addresses", &address),
            ("port", &port),
            ("unix_socket_directories", &socket_dir),
            ("unix_socket_permissions", "0700"),
            ("wal_level", settings::wal_level(settings.get("wal_level"))),
            ("max_wal_senders", &least("max_wal_senders")),
            ("max_replication_slots", &least("max_replication_slots")),
            ("hot_standby", "on"),
            // Redo names no path: a tablespace that has no link lies below the data directory.
            ("allow_in_place_tablespaces", "on"),
            (SYNCHRONOUS, synchronous),
            // Takes effect on a standby. The walsender is on this machine and comes back within milliseconds.
            ("primary_conninfo", &primary_conninfo),
            ("recovery_target_timeline", "latest"),
            ("wal_retrieve_retry_interval", "100ms"),
            ("wal_receiver_status_interval", "1s"),
        ];
        let mut text = format!("{head}\n");
        text.extend(settings.iter().map(|(key, value)| setting(key, value)));
        text.extend(ours.iter().map(|(key, value)| setting(key, value)));
        text.extend(self.tls_settings(own).iter().map(|(key, value)| setting(key, value)));
        text.extend(
            log::settings(settings, &self.options.log_file).iter().map(|(key, value)| setting(key, value)),
        );
        text
    }

    /// The settings that must be ours, and that `ALTER SYSTEM` has set here: `postgresql.auto.conf` is read
    /// after ours, and would win at the next start, were they not taken out before it.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn overrides(&self) -> Result<Vec<String>, InstanceError> {
        let content = self.read_if_any(AUTO)?.unwrap_or_default();
        Ok(content.lines().filter_map(reserved_in).map(str::to_owned).collect())
    }

    fn take_overrides_out(&self) -> Result<(), InstanceError> {
        let overrides = self.overrides()?;
        if overrides.is_empty() {
            return Ok(());
        }
        let content = self.read(AUTO)?;
        let kept = content.lines().filter(|line| reserved_in(line).is_none());
        self.write(AUTO, &kept.map(|line| format!("{line}\n")).collect::<String>())?;
        tracing::warn!(
            "postgresql.auto.conf: ALTER SYSTEM had set {}, which must be this service's own; it is taken out",
            overrides.join(", ")
        );
        Ok(())
    }
}

/// The setting that must be ours, and that a line of a configuration file sets.
fn reserved_in(line: &str) -> Option<&str> {
    let key = line.split_once('=')?.0.trim();
    RESERVED_SETTINGS.iter().any(|reserved| reserved.eq_ignore_ascii_case(key)).then_some(key)
}

/// A line of a configuration file.
fn setting(key: &str, value: &str) -> String {
    format!("{key} = '{}'\n", value.replace('\'', "''"))
}

/// Whom commits wait for by our settings as they are written; empty for nobody.
fn synchronous_in(written: &str) -> String {
    let set = written.lines().filter_map(|line| line.split_once(" = ")).rfind(|(key, _)| *key == SYNCHRONOUS);
    set.map_or_else(|| format!("\"{READER}\""), |(_, value)| value.trim_matches('\'').to_owned())
}

/// Linux gives no process an id as high as this.
const NO_PROCESS: &str = "4194304";

/// A lock file's content with the id of no process.
fn disowned(content: &str) -> String {
    let rest = content.split_once('\n').map_or("", |(_, rest)| rest);
    format!("{NO_PROCESS}\n{rest}")
}

/// Whom commits wait for.
const SYNCHRONOUS: &str = "synchronous_standby_names";

/// What durability stands on, on PostgreSQL's command line. A writer that has crashed is started again by us,
/// not by itself: what is in its data directory is looked at first.
const ALWAYS: [(&str, &str); 5] = [
    ("fsync", "on"),
    ("full_page_writes", "on"),
    ("data_sync_retry", "off"),
    ("restart_after_crash", "off"),
    // What the reader has not read yet may be on this disk alone.
    ("max_slot_wal_keep_size", "-1"),
];

/// PostgreSQL's configuration file.
const MAIN: &str = "postgresql.conf";

/// Ours, which that brings in.
const OURS: &str = "replicator.conf";

/// What `ALTER SYSTEM` has set; read last.
const AUTO: &str = "postgresql.auto.conf";

/// What makes a standby of an instance.
const STANDBY: &str = "standby.signal";

/// The postmaster's lock, with its process id.
const POSTMASTER: &str = "postmaster.pid";

/// The line of `postgresql.conf` that brings ours in.
const INCLUDE: &str = "include 'replicator.conf'";

/// How long `pg_controldata` may take.
const CONTROL_DATA: Duration = Duration::from_secs(10);

/// How long `pg_ctl` may take to tell an instance to promote itself, which it does not wait for.
const PROMOTE: Duration = Duration::from_secs(10);

/// How long the collector of a server that has ended may take to write what that said last.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// How long a standby may take to stop whose data directory was moved away.
const MOVED: Duration = Duration::from_secs(20);

/// How long `initdb` may take.
const CREATE: Duration = Duration::from_secs(300);

/// Runs a program to its end, at most for `patience`; returns what it printed. It is killed when it takes
/// longer.
pub(crate) fn run(
    program: &'static str,
    command: &mut std::process::Command,
    patience: Duration,
) -> Result<String, InstanceError> {
    run_with(program, command, Stdio::null(), patience)
}

fn run_with(
    program: &'static str,
    command: &mut std::process::Command,
    input: Stdio,
    patience: Duration,
) -> Result<String, InstanceError> {
    let failed = |output: String| InstanceError::Program { program, output };
    let child = command.stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let child = child.map_err(|e| failed(e.to_string()))?;
    let process = Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX));
    let (done, ended) = std::sync::mpsc::sync_channel(1);
    let waiting = Thread::spawn("wait for a program", move || drop(done.send(child.wait_with_output())));
    let _waiting = waiting.map_err(|e| failed(e.to_string()))?;
    let output = ended.recv_timeout(patience).map_err(|_| {
        // Its process group is its own; it may end by itself just now.
        let _ = killpg(process, Signal::SIGKILL);
        failed(format!("it did not end within {} s", patience.as_secs()))
    })?;
    let output = output.map_err(|e| failed(e.to_string()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

pub(crate) fn at(path: &Path) -> impl Fn(io::Error) -> InstanceError + use<> {
    let path = path.display().to_string();
    move |source| InstanceError::Io { path: path.clone(), source }
}

/// Why a server ended, by its log: its last fatal words, or its last lines if it had none.
fn last_lines(path: &Path) -> String {
    let content = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&content[content.len().saturating_sub(6000)..]).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    let is_fatal = |line: &&str| line.contains("FATAL:") || line.contains("PANIC:");
    let begin = match lines.iter().rposition(is_fatal) {
        Some(fatal) => fatal,
        None => lines.len().saturating_sub(4),
    };
    lines[begin..].iter().take(4).copied().collect::<Vec<_>>().join(" | ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fatal_words_are_quoted_before_those_that_follow() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let end = "LOG:  shutting down\n".repeat(9);
        std::fs::write(file.path(), format!("LOG:  a\nFATAL:  no such directory\nHINT:  make it\n{end}"))
            .unwrap();
        assert!(last_lines(file.path()).starts_with("FATAL:  no such directory | HINT:  make it | LOG"));
        std::fs::write(file.path(), "a\nb\nc\nd\ne\n").unwrap();
        assert_eq!(last_lines(file.path()), "b | c | d | e");
    }

    #[test]
    fn a_stale_lock_keeps_all_but_its_owner() {
        assert_eq!(disowned("18\n/data\n1700000000\n5432\n"), "4194304\n/data\n1700000000\n5432\n");
        assert_eq!(disowned(""), "4194304\n");
    }
}
