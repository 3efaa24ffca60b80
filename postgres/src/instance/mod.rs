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
mod process;
mod program;
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
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use proto::Lsn;
use runtime::private;

use self::account::{Account, AccountError};
use self::aside::Aside;
use self::process::Spawned;
pub(crate) use self::program::run;
use self::program::run_with;
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
    /// The logins that it has not answered, of those who ask how it is.
    logins: Logins,
    /// See [`Instance::note_all_durable`].
    all_durable: Arc<AtomicBool>,
    spawned: Spawned,
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
            all_durable: Arc::default(),
            spawned: Spawned::default(),
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
        self.has(control::CONTROL)
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
            // What the region cannot do without waits behind no question.
            logins: Logins::default(),
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
                self.write_if_other(STANDBY, "")?;
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
            in_conninfo(&feed.display().to_string())
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
                let head = "# Written at each start; changes here are lost.";
                let synchronous = match part {
                    Part::Writer { synchronous: false } => String::new(),
                    Part::Writer { synchronous: true } | Part::Standby => format!("\"{READER}\""),
                };
                self.settings(&own, head, &synchronous)
            }
            None => {
                self.place_certificate(&own)?;
                let written = self.read(OURS)?;
                self.settings(&own, written.lines().next().unwrap_or("#"), &synchronous_in(&written))
            }
        };
        self.write_if_other(OURS, &text)
    }

    fn settings(&self, own: &Own, head: &str, synchronous: &str) -> String {
        let InstanceOptions { socket_dir, listen, name, .. } = &self.options;
        let settings = &own.settings;
        let socket_dir = socket_dir.display().to_string();
        let primary_conninfo = format!(
            "host={} port={WALSENDER_PORT} user={SUPERUSER} application_name={name}",
            in_conninfo(&socket_dir)
        );
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
    format!("{key} = '{}'\n", value.replace('\\', "\\\\").replace('\'', "''"))
}

/// A value in a connection string.
pub(crate) fn in_conninfo(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// Whom commits wait for by our settings as they are written; empty for nobody.
fn synchronous_in(written: &str) -> String {
    let set = written.lines().filter_map(|line| line.split_once(" = ")).rfind(|(key, _)| *key == SYNCHRONOUS);
    set.map_or_else(|| format!("\"{READER}\""), |(_, value)| value.trim_matches('\'').to_owned())
}

/// Whom commits wait for.
const SYNCHRONOUS: &str = "synchronous_standby_names";

/// What durability and promotions stand on, on PostgreSQL's command line. A writer that has crashed is
/// started again by us, not by itself: what is in its data directory is looked at first.
const ALWAYS: [(&str, &str); 8] = [
    ("fsync", "on"),
    ("full_page_writes", "on"),
    ("data_sync_retry", "off"),
    ("restart_after_crash", "off"),
    // What the reader has not read yet may be on this disk alone.
    ("max_slot_wal_keep_size", "-1"),
    // A promotion would wait for these, whatever they do.
    ("recovery_end_command", ""),
    ("recovery_min_apply_delay", "0"),
    ("restore_command", ""),
];

/// PostgreSQL's configuration file.
const MAIN: &str = "postgresql.conf";

/// Ours, which that brings in.
const OURS: &str = "replicator.conf";

/// What `ALTER SYSTEM` has set; read last.
const AUTO: &str = "postgresql.auto.conf";

/// What makes a standby of an instance.
const STANDBY: &str = "standby.signal";

/// The line of `postgresql.conf` that brings ours in.
const INCLUDE: &str = "include 'replicator.conf'";

/// How long `pg_controldata` may take.
const CONTROL_DATA: Duration = Duration::from_secs(10);

/// How long `pg_ctl` may take to tell an instance to promote itself, which it does not wait for.
const PROMOTE: Duration = Duration::from_secs(10);

/// How long `initdb` may take.
const CREATE: Duration = Duration::from_secs(300);

pub(crate) fn at(path: &Path) -> impl Fn(io::Error) -> InstanceError + use<> {
    let path = path.display().to_string();
    move |source| InstanceError::Io { path: path.clone(), source }
}
