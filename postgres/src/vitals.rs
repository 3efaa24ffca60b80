//! How a running PostgreSQL is, as it says itself: what could hinder a promotion, and what undoes what a
//! region depends on.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proto::Lsn;

use crate::protocol::client::Row;
use crate::protocol::session::{Session, SessionError};

/// Settings that are looked at. All but the last five are the product's to set.
const SETTINGS: &str = "'synchronous_standby_names', 'synchronous_commit', 'fsync', 'full_page_writes', 'wal_level', 'hot_standby', \
     'max_slot_wal_keep_size', 'max_connections', 'max_worker_processes', 'max_wal_senders', \
     'max_prepared_transactions', 'max_locks_per_transaction'";

const STATE: &str = "SELECT pg_is_in_recovery(), current_setting('archive_mode'), \
     (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'), \
     (SELECT setting FROM pg_file_settings WHERE name = 'default_transaction_read_only' AND applied LIMIT 1), \
     current_setting('ssl') = 'off' AND EXISTS (SELECT FROM pg_hba_file_rules WHERE type = 'hostssl') \
     AND NOT EXISTS (SELECT FROM pg_hba_file_rules WHERE type IN ('host', 'hostnossl') AND auth_method <> 'reject')";

/// What the files set and PostgreSQL has not taken: it takes it when it starts, or cannot read it. What its
/// command line sets is never taken from them; of what is not in them any more they do not say where.
const NOT_TAKEN: &str = "SELECT coalesce(f.name, ''), coalesce(f.setting, ''), f.sourcefile, f.sourceline, f.error \
     FROM pg_file_settings f LEFT JOIN pg_settings s ON s.name = f.name \
     WHERE f.error IS NOT NULL AND f.sourcefile IS NOT NULL AND s.source IS DISTINCT FROM 'command line' \
     AND coalesce(f.name, '') NOT IN ('data_directory', 'hba_file', 'ident_file', 'external_pid_file', 'listen_addresses', \
     'port', 'unix_socket_directories') ORDER BY f.seqno LIMIT 200";

const REPLAY: &str = "SELECT pg_get_wal_replay_pause_state(), pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn(), \
     (SELECT wait_event_type || '/' || wait_event FROM pg_stat_activity WHERE backend_type = 'startup' LIMIT 1)";

/// Sessions that replay may have to wait for: those in a transaction, the oldest first.
const HOLDERS: &str = "SELECT pid, extract(epoch FROM clock_timestamp() - xact_start)::bigint, usename, left(query, 60) \
     FROM pg_stat_activity WHERE backend_type = 'client backend' AND xact_start IS NOT NULL \
     AND pid <> pg_backend_pid() ORDER BY xact_start LIMIT 100";

const ARCHIVE: &str = "SELECT (SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'), \
     (SELECT extract(epoch FROM clock_timestamp() - min(modification))::bigint FROM pg_ls_archive_statusdir() \
      WHERE name LIKE '%.ready'), \
     (SELECT last_failed_time > coalesce(last_archived_time, '-infinity') FROM pg_stat_archiver)";

const SLOTS: &str = "SELECT slot_name, slot_type, active, wal_status, pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() \
     THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END, restart_lsn)::bigint, plugin, database, confirmed_flush_lsn \
     FROM pg_replication_slots WHERE NOT temporary ORDER BY slot_name LIMIT 200";

const OF_ROLES: &str = "SELECT coalesce(r.rolname, ''), coalesce(d.datname, ''), c FROM pg_db_role_setting s \
     LEFT JOIN pg_roles r ON r.oid = s.setrole LEFT JOIN pg_database d ON d.oid = s.setdatabase, \
     unnest(s.setconfig) AS c ORDER BY 1, 2, 3 LIMIT 500";

const TABLESPACES: &str = "SELECT oid FROM pg_tablespace WHERE spcname NOT IN ('pg_default', 'pg_global')";

/// How a PostgreSQL is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Vitals {
    /// How it applies redo; none of a writer.
    pub replay: Option<Replay>,
    /// How it archives its segments; none when it does not.
    pub archive: Option<Archive>,
    /// The connections of clients.
    pub clients: u64,
    /// `default_transaction_read_only` by the files that configure it, if one says so.
    pub read_only: bool,
    /// It encrypts nothing, though it lets clients in over the network only encrypted.
    pub turns_away: bool,
    /// What settings are now, and where that comes from, as `pg_settings` names it.
    pub settings: BTreeMap<String, (String, String)>,
    /// What the files set, by name, and it takes only when it starts, or not at all.
    pub not_taken: BTreeMap<String, String>,
    /// Why it cannot read its files.
    pub unreadable: Option<String>,
    /// Its replication slots, but temporary ones.
    pub slots: Vec<Slot>,
    /// What is set for roles and databases.
    pub of_roles: Vec<OfRole>,
    /// The tablespaces that there are besides the default ones, by their object ids.
    pub tablespaces: BTreeSet<u32>,
}

/// How a standby applies redo.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Replay {
    /// It is paused, or will be at the next record.
    pub paused: bool,
    /// The end of what its walreceiver has.
    pub received_lsn: Lsn,
    /// The end of what is applied.
    pub applied_lsn: Lsn,
    /// It waits for a session.
    pub held: bool,
    /// The sessions that it may wait for.
    pub holders: Vec<Holder>,
}

/// A session in a transaction.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Holder {
    /// Its process.
    pub pid: i32,
    /// How long its transaction lasts, seconds.
    pub seconds: u64,
    /// The role.
    pub role: String,
    /// The begin of its statement.
    pub statement: String,
}

/// How segments are archived.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Archive {
    /// How many wait.
    pub waiting: u64,
    /// How long the oldest of them waits, seconds.
    pub oldest_seconds: u64,
    /// The last attempt failed.
    pub failing: bool,
}

/// A replication slot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Slot {
    /// Its name.
    pub name: String,
    /// Its kind: physical or logical.
    pub kind: String,
    /// Somebody reads from it.
    pub active: bool,
    /// It has lost what it needs.
    pub lost: bool,
    /// The redo that it holds back, bytes.
    pub held_bytes: u64,
    /// What is decoded by it; none of a physical one.
    pub decodes: Option<Decodes>,
}

/// What a logical slot is for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decodes {
    /// The output plugin.
    pub plugin: String,
    /// The database.
    pub database: String,
    /// Up to where the consumer has confirmed.
    pub confirmed_lsn: Lsn,
}

/// A setting of a role, a database, or of one in the other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OfRole {
    /// The role; empty for all.
    pub role: String,
    /// The database; empty for all.
    pub database: String,
    /// The setting's name.
    pub name: String,
    /// Its value.
    pub value: String,
}

impl OfRole {
    /// For whom it is set, in words.
    #[must_use]
    pub fn whose(&self) -> String {
        match (self.role.as_str(), self.database.as_str()) {
            ("", "") => "all roles".into(),
            (role, "") => format!("role {role}"),
            ("", database) => format!("database {database}"),
            (role, database) => format!("role {role} in database {database}"),
        }
    }
}

impl Vitals {
    /// Asks how the PostgreSQL of `session` is; each answer may take `deadline`.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn ask(session: &mut Session, deadline: Duration) -> Result<Vitals, SessionError> {
        let state = one(session, STATE, deadline).await?;
        let standby = is(&state, 0);
        let archives = text(&state, 1) == "always" || (text(&state, 1) == "on" && !standby);
        let mut vitals = Vitals {
            clients: number(&state, 2),
            turns_away: is(&state, 4),
            read_only: matches!(text(&state, 3).to_lowercase().as_str(), "on" | "true" | "yes" | "1"),
            ..Vitals::default()
        };
        if standby {
            vitals.replay = Some(Replay::ask(session, deadline).await?);
        }
        if archives {
            let row = one(session, ARCHIVE, deadline).await?;
            let (waiting, oldest_seconds, failing) = (number(&row, 0), number(&row, 1), is(&row, 2));
            vitals.archive = Some(Archive { waiting, oldest_seconds, failing });
        }
        let settings = format!("SELECT name, setting, source FROM pg_settings WHERE name IN ({SETTINGS})");
        for row in session.rows(&settings, deadline).await? {
            vitals.settings.insert(text(&row, 0), (text(&row, 1), text(&row, 2)));
        }
        for row in session.rows(NOT_TAKEN, deadline).await? {
            match text(&row, 0).as_str() {
                "" => {
                    vitals.unreadable =
                        Some(format!("{}, line {}: {}", text(&row, 2), text(&row, 3), text(&row, 4)));
                }
                name => _ = vitals.not_taken.insert(name.to_owned(), text(&row, 1)),
            }
        }
        vitals.slots = session.rows(SLOTS, deadline).await?.iter().map(Slot::of).collect();
        vitals.of_roles = session.rows(OF_ROLES, deadline).await?.iter().filter_map(OfRole::of).collect();
        let tablespaces = session.rows(TABLESPACES, deadline).await?;
        vitals.tablespaces = tablespaces.iter().filter_map(|row| text(row, 0).parse().ok()).collect();
        Ok(vitals)
    }

    /// What a setting is now; empty when it was not asked for.
    #[must_use]
    pub fn setting(&self, name: &str) -> &str {
        self.settings.get(name).map_or("", |(value, _)| value)
    }
}

impl Replay {
    /// Asks a standby how it applies redo.
    ///
    /// # Errors
    /// When it does not answer, or is none.
    pub async fn ask(session: &mut Session, deadline: Duration) -> Result<Replay, SessionError> {
        let row = one(session, REPLAY, deadline).await?;
        let lsn = |index| text(&row, index).parse().unwrap_or(Lsn::ZERO);
        let mut replay = Replay {
            paused: text(&row, 0).starts_with("pause"),
            received_lsn: lsn(1),
            applied_lsn: lsn(2),
            held: waits_for_a_session(&text(&row, 3)),
            holders: Vec::new(),
        };
        if replay.held {
            replay.holders = session.rows(HOLDERS, deadline).await?.iter().map(Holder::of).collect();
        }
        Ok(replay)
    }

    /// Goes on with a replay that an operator has paused.
    ///
    /// # Errors
    /// When the standby does not answer.
    pub async fn resume(session: &mut Session, deadline: Duration) -> Result<(), SessionError> {
        session.rows("SELECT pg_wal_replay_resume()", deadline).await.map(drop)
    }

    /// Ends the sessions that replay may wait for.
    ///
    /// # Errors
    /// When the standby does not answer.
    pub async fn end_holders(&self, session: &mut Session, deadline: Duration) -> Result<(), SessionError> {
        for Holder { pid, .. } in &self.holders {
            session.rows(&format!("SELECT pg_terminate_backend({pid})"), deadline).await?;
        }
        Ok(())
    }
}

/// Whether the startup process' `type/event` says that it waits for a session: for its snapshot, its lock,
/// its page, its temporary files.
fn waits_for_a_session(event: &str) -> bool {
    ["IPC/RecoveryConflict", "Lock/", "BufferPin/"].iter().any(|wait| event.starts_with(wait))
}

impl Holder {
    fn of(row: &Row) -> Holder {
        let pid = text(row, 0).parse().unwrap_or_default();
        Holder { pid, seconds: number(row, 1), role: text(row, 2), statement: text(row, 3) }
    }
}

impl Slot {
    fn of(row: &Row) -> Slot {
        let lost = matches!(text(row, 3).as_str(), "lost" | "unreserved");
        let kind = text(row, 1);
        let decodes = (kind == "logical").then(|| Decodes {
            plugin: text(row, 5),
            database: text(row, 6),
            confirmed_lsn: text(row, 7).parse().unwrap_or(Lsn::ZERO),
        });
        Slot { name: text(row, 0), kind, active: is(row, 2), lost, held_bytes: number(row, 4), decodes }
    }
}

impl OfRole {
    fn of(row: &Row) -> Option<OfRole> {
        let setting = text(row, 2);
        let (name, value) = setting.split_once('=')?;
        Some(OfRole { role: text(row, 0), database: text(row, 1), name: name.into(), value: value.into() })
    }
}

async fn one(session: &mut Session, statement: &str, deadline: Duration) -> Result<Row, SessionError> {
    let row = session.rows(statement, deadline).await?.into_iter().next();
    row.ok_or_else(|| SessionError::Answer(statement.chars().take(60).collect()))
}

fn text(row: &Row, index: usize) -> String {
    row.get(index).cloned().flatten().unwrap_or_default()
}

fn number(row: &Row, index: usize) -> u64 {
    text(row, index).parse().unwrap_or_default()
}

fn is(row: &Row, index: usize) -> bool {
    text(row, index) == "t"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_for_redo_is_none_for_a_session() {
        for event in ["IPC/RecoveryConflictSnapshot", "Lock/relation", "BufferPin/BufferPin"] {
            assert!(waits_for_a_session(event), "{event}");
        }
        for event in ["Activity/RecoveryWalStream", "IPC/RecoveryPause", ""] {
            assert!(!waits_for_a_session(event), "{event}");
        }
    }

    #[test]
    fn a_setting_is_told_with_its_owner() {
        let row = ["app", "shop", "search_path=a=b"].map(|field| Some(field.to_owned())).to_vec();
        let setting = OfRole::of(&row).unwrap();
        assert_eq!((setting.name.as_str(), setting.value.as_str()), ("search_path", "a=b"));
        assert_eq!(setting.whose(), "role app in database shop");
    }
}
