//! Who is let in, and from when on.
//!
//! A writer that starts on data that there are may hold redo that only its own `pg_wal` has: written just
//! before it died, and durable on no quorum. Its recovery makes all of that visible. So it is started with
//! its door shut: by `pg_hba.conf` only the daemon's own account comes in. It is opened once the writer has
//! been told, by whoever reads its redo, that commits may return up to where its redo ended when it came up.
//! Then what clients see is what they could have been told.
//!
//! A standby applies only what is durable in its region, so its door is open. So is that of a writer that was
//! one until now and was shut down cleanly, if whoever looked at the region's redo has said that it has
//! nothing else ([`Instance::note_all_durable`]). And so is that of a writer whose commits wait for nobody.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use proto::Lsn;
use runtime::clock::now;
use tokio::time::sleep;

use super::{Instance, InstanceError, Own, Part, at};
use crate::below::Below;
use crate::protocol::session::{Session, SessionError};
use crate::sockets::{READER, REHEARSAL, SUPERUSER};

/// The account and the daemon may connect by the local socket.
const OURS: &str = "\
local all         postgres peer map=replicator
local replication postgres peer map=replicator
";

/// Who else may connect, where no line of the user's says otherwise.
const OTHERS: &str = "\
local all         all      scram-sha-256
host  all         all      all scram-sha-256
";

/// The same of a server that has a certificate: a password crosses no network in the clear.
const OTHERS_ENCRYPTED: &str = "\
local   all       all      scram-sha-256
hostssl all       all      all scram-sha-256
";

/// Who may connect.
pub(super) const RULES: &str = "pg_hba.conf";

/// Which name of a system's, or of a certificate, may be which role.
pub(super) const MAP: &str = "pg_ident.conf";

/// What is there as long as the door of the running writer is shut, beside its sockets: where nobody copies
/// it with the data.
const MARK: &str = "replicator.shut";

/// How long an answer to one question may take.
pub(super) const ANSWER: Duration = Duration::from_secs(5);

/// How often the writer is asked at first whether commits may return.
const SOON: Duration = Duration::from_millis(2);

/// The same when it takes longer.
const LATER: Duration = Duration::from_millis(50);

/// From when on it takes longer.
const LONG: Duration = Duration::from_secs(1);

/// How long the server may take to read its rules again.
pub(super) const RELOAD: Duration = Duration::from_secs(10);

/// The end of the writer's redo.
const HELD: &str = "SELECT pg_current_wal_flush_lsn()";

/// When the server read its rules.
const LOADED: &str = "SELECT pg_conf_load_time()";

/// Lines of the file that are no rules. One for encrypted clients is, though it matches nobody before the
/// server has read its certificate.
pub(super) const MISTAKES: &str = "SELECT line_number, error FROM pg_hba_file_rules \
     WHERE error <> 'hostssl record cannot match because SSL is disabled' LIMIT 1";

/// Lines of the map that are none.
pub(super) const MISTAKES_OF_MAP: &str =
    "SELECT line_number, error FROM pg_ident_file_mappings WHERE error IS NOT NULL LIMIT 1";

/// A line of a file that PostgreSQL does not take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{key}`: {file}, line {line}: {error}")]
pub struct Mistake {
    /// The user's lines of it, in regions.toml.
    pub key: &'static str,
    /// The file.
    pub file: &'static str,
    /// Which line.
    pub line: String,
    /// What PostgreSQL says of it.
    pub error: String,
}

/// Why the door of a writer is not opened.
#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    /// See [`InstanceError`].
    #[error(transparent)]
    Instance(#[from] InstanceError),
    /// See [`SessionError`].
    #[error(transparent)]
    Session(#[from] SessionError),
    /// A line of the user's is no rule.
    #[error("{0}; no client is let in. Correct it in regions.toml; replicator reload takes it")]
    Rules(Mistake),
    /// The server did not read its rules.
    #[error("PostgreSQL did not read pg_hba.conf within {} s; no client is let in yet", RELOAD.as_secs())]
    NotRead,
}

impl Instance {
    /// Whether its door is shut, though it runs.
    #[must_use]
    pub fn is_shut(&self) -> bool {
        Below::open(&self.options().socket_dir).is_ok_and(|sockets| sockets.exists(MARK))
    }

    /// Who is let in by `pg_hba.conf`. Ours first, so that nobody shuts the daemon out; then the user's; then
    /// a password for everybody else, encrypted where it can be.
    fn rules(&self, own: &Own, open: bool) -> String {
        if !open {
            return format!("# Others are let in once what is here may be acknowledged\n{OURS}");
        }
        open_rules(own, if self.encrypts_with(own) { OTHERS_ENCRYPTED } else { OTHERS })
    }

    fn write_rules(&self, open: bool) -> Result<(), InstanceError> {
        self.write_rules_of(&self.own(), open)
    }

    /// Writes the rules of an instance whose door is open; whether it is. One that starts just now shuts it
    /// before it writes its own.
    pub(super) fn write_open_rules(&self) -> Result<bool, InstanceError> {
        let own = self.own();
        if self.is_shut() {
            return Ok(false);
        }
        self.write_rules_of(&own, true).map(|()| true)
    }

    /// Writes which names may be which role: the account and the daemon's may be the superuser. Ours first,
    /// and for a map that no line of the user's may name.
    pub(super) fn write_map(&self, own: &Own) -> Result<(), InstanceError> {
        let account = &self.options().account;
        let users = [account.name.as_str(), account.own_name.as_str()];
        let users = users.into_iter().chain(account.also_let_in());
        let mut map = String::from("# Written at each start; lines of your own: `ident` in regions.toml\n");
        map.extend(users.map(|user| format!("replicator {user} {SUPERUSER}\n")));
        map.extend(own.ident.iter().map(|line| format!("{line}\n")));
        self.write_if_other(MAP, &map)
    }

    fn write_rules_of(&self, own: &Own, open: bool) -> Result<(), InstanceError> {
        self.write_map(own)?;
        self.write_if_other(RULES, &self.rules(own, open))
    }

    /// Writes the rules for the next start. Those of a server that runs are left as they are while its door
    /// is shut.
    pub(super) fn configure_door(&self, part: Part) -> Result<(), InstanceError> {
        match self.process() {
            Some(_) if self.is_shut() => Ok(()),
            Some(_) => self.write_rules(true),
            None => {
                let open = part != Part::Writer { synchronous: true } || self.is_all_durable();
                self.write_rules(open)
            }
        }
    }

    /// Notes that all redo here is durable in its region, as what a standby was given is: at its next start
    /// its door need not be shut.
    pub fn note_all_durable(&self) {
        self.all_durable.store(true, Ordering::Relaxed);
    }

    /// Whether that was noted since the last start, and what is here is still a standby's that ended cleanly.
    fn is_all_durable(&self) -> bool {
        self.all_durable.load(Ordering::Relaxed) && self.ended_as_a_standby()
    }

    /// Whether somebody has changed who is let in by hand: the running server has read that, or does when it
    /// reads its files next. One whose door is shut has other rules on purpose.
    #[must_use]
    pub fn rules_are_anothers(&self) -> bool {
        let own = self.own().clone();
        // Whether clients are encrypted may be another now than when they were written.
        let ours = [OTHERS, OTHERS_ENCRYPTED].map(|others| open_rules(&own, others));
        let is_ours = |written: String| ours.contains(&written);
        self.process().is_some() && !self.is_shut() && !self.read(RULES).is_ok_and(is_ours)
    }

    /// To be called right before each start: shuts the door of a writer for which commits wait, and of nobody
    /// else.
    pub(super) fn close_door(&self) -> Result<(), InstanceError> {
        let waits = self.options().name != REHEARSAL && !self.is_standby() && !self.synchronous()?.is_empty();
        let shut = waits && !self.is_all_durable();
        self.all_durable.store(false, Ordering::Relaxed);
        let (sockets, owner) = (self.sockets()?, self.options().account.owner());
        let marked = match shut {
            true => sockets.replace(Path::new(MARK), b"", owner),
            false => sockets.remove_file(MARK),
        };
        marked.map_err(at(&sockets.path().join(MARK)))?;
        if self.options().name == REHEARSAL { Ok(()) } else { self.write_rules(!shut) }
    }

    /// Waits until commits may return up to where the redo of the running writer ends now, which `waits` is
    /// told; then lets clients in.
    ///
    /// # Errors
    /// When the writer cannot be asked, as it has ended, or clients cannot be let in. To be tried again while
    /// it runs.
    pub async fn open_door(&self, waits: impl Fn(Lsn) + Send) -> Result<(), DoorError> {
        let mut session = self.session(ANSWER).await?;
        let end_lsn = one(&mut session, HELD).await?;
        let end_lsn: Lsn = end_lsn.parse().map_err(|_| SessionError::Answer(HELD.into()))?;
        waits(end_lsn);
        // What the reader has reported is what PostgreSQL lets commits return by.
        let covered = format!(
            "SELECT count(*) FROM pg_replication_slots r JOIN pg_stat_replication s ON s.pid = r.active_pid \
             WHERE r.slot_name = '{READER}' AND s.flush_lsn >= '{end_lsn}'"
        );
        let since = now();
        while one(&mut session, &covered).await? == "0" {
            sleep(if since.elapsed() < LONG { SOON } else { LATER }).await;
        }
        self.let_in(&mut session).await
    }

    async fn let_in(&self, session: &mut Session) -> Result<(), DoorError> {
        self.write_rules(true)?;
        if let Some(mistake) = mistake(session).await? {
            self.write_rules(false)?;
            return Err(DoorError::Rules(mistake));
        }
        if !self.read_again().await? {
            return Err(DoorError::NotRead);
        }
        let sockets = self.sockets()?;
        sockets.remove_file(MARK).map_err(at(&sockets.path().join(MARK)))?;
        Ok(())
    }

    /// Has the running server read its configuration and its rules again; whether it did in time.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub(super) async fn read_again(&self) -> Result<bool, SessionError> {
        let before = one(&mut self.session(ANSWER).await?, LOADED).await?;
        let Some(process) = self.process() else { return Ok(false) };
        // It may end by itself just now.
        let _ = kill(process, Signal::SIGHUP);
        let since = now();
        // Only a session that begins after the server has read them says so.
        while one(&mut self.session(ANSWER).await?, LOADED).await? == before {
            if since.elapsed() > RELOAD {
                return Ok(false);
            }
            sleep(SOON).await;
        }
        self.note_certificate_read();
        Ok(true)
    }
}

/// Ours, the user's, and then `others`.
fn open_rules(own: &Own, others: &str) -> String {
    let theirs: String = own.hba.iter().map(|line| format!("{line}\n")).collect();
    format!("# Written at each start; lines of your own: `hba` in regions.toml\n{OURS}{theirs}{others}")
}

/// The first line of the server's `pg_hba.conf` that is no rule, or of its `pg_ident.conf` that is no map, as
/// they lie there.
pub(super) async fn mistake(session: &mut Session) -> Result<Option<Mistake>, SessionError> {
    for (key, file, question) in [("hba", RULES, MISTAKES), ("ident", MAP, MISTAKES_OF_MAP)] {
        let rows = session.rows(question, ANSWER).await?;
        if let Some(row) = rows.first() {
            let [line, error] = [0, 1].map(|field| row.get(field).cloned().flatten().unwrap_or_default());
            return Ok(Some(Mistake { key, file, line, error }));
        }
    }
    Ok(None)
}

async fn one(session: &mut Session, question: &str) -> Result<String, SessionError> {
    let rows = session.rows(question, ANSWER).await?;
    let field = rows.first().and_then(|row| row.first().cloned().flatten());
    field.ok_or_else(|| SessionError::Answer(question.chars().take(60).collect()))
}
