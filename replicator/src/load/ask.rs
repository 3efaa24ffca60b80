//! What PostgreSQL is asked each second, and what its answer means.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use postgres::instance::Instance;
use postgres::protocol::client::{ClientError, Row};
use postgres::protocol::session::{Session, SessionError};
use postgres::sockets::{READER, REHEARSAL, TELEMETRY, WATCHER};

use super::series::Called;
use super::statement::{ASKED_CHARS, normalise, shortened};
use super::{GROUPS_MAX, Group, Key, bounded};

/// How long one look may take, opening the session included: the next one is due after a second.
pub const DEADLINE: Duration = Duration::from_millis(900);

/// What PostgreSQL itself gives up after: before the deadline, so that a session that is dropped has nothing
/// to do.
const LIMITS: &str = "SET ROLE NONE; SET statement_timeout = '700ms'; SET lock_timeout = '300ms'";

/// The longest name of a role, an application or a host, bytes.
const NAME_BYTES_MAX: usize = 64;

/// The most groups that are asked for. So many sessions that differ are not active on any machine.
const ROWS_MAX: usize = 5_000;

/// The statements of pg_stat_statements that are told.
pub const CALLED_MAX: usize = 20;

/// The longest wait before a session is opened again, seconds.
const WAIT_MAX_S: u64 = 16;

/// A session that looks, and when the next one may be opened: a PostgreSQL that does not answer is asked ever
/// more seldom.
#[derive(Debug, Default)]
pub struct Asker {
    session: Option<Session>,
    patience: Patience,
}

/// When PostgreSQL may be asked again after it did not answer.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    silent: u32,
    not_before_us: u64,
}

impl Patience {
    /// Whether a session may be opened now.
    #[must_use]
    pub fn may_ask(&self, now_us: u64) -> bool {
        now_us >= self.not_before_us
    }

    /// It answered, were it to refuse.
    pub fn answered(&mut self) {
        *self = Patience::default();
    }

    /// It did not answer.
    pub fn silent(&mut self, now_us: u64) {
        let wait_s = 1_u64.checked_shl(self.silent).unwrap_or(WAIT_MAX_S).min(WAIT_MAX_S);
        self.silent = self.silent.saturating_add(1);
        self.not_before_us = now_us.saturating_add(wait_s * 1_000_000);
    }
}

impl Asker {
    /// Nobody is to be asked: what there was is forgotten.
    pub fn forget(&mut self) {
        *self = Asker::default();
    }

    /// The active sessions of `instance` now; none where it is not to be asked yet. There is never more than
    /// one session, and none is opened while PostgreSQL may still be busy with the last.
    ///
    /// # Errors
    /// When it does not answer within [`DEADLINE`], or refuses.
    pub async fn look(
        &mut self,
        instance: &Instance,
        now_us: u64,
    ) -> Result<Option<Vec<Group>>, SessionError> {
        if self.session.is_none() && !self.patience.may_ask(now_us) {
            return Ok(None);
        }
        let looking = tokio::time::timeout(DEADLINE, self.look_slowly(instance));
        let looked = looking.await.unwrap_or(Err(SessionError::Late(DEADLINE)));
        match looked {
            Ok(groups) => {
                self.patience.answered();
                Ok(Some(groups))
            }
            Err(e) => {
                self.session = None;
                match &e {
                    SessionError::Client(ClientError::Server(_)) => self.patience.answered(),
                    _ => self.patience.silent(now_us),
                }
                Err(e)
            }
        }
    }

    async fn look_slowly(&mut self, instance: &Instance) -> Result<Vec<Group>, SessionError> {
        // It is put back only once it has answered in whole.
        let mut session = match self.session.take() {
            Some(session) => session,
            None => {
                let mut session = instance.session(DEADLINE).await?;
                session.rows(LIMITS, DEADLINE).await?;
                session
            }
        };
        let rows = session.rows(&question(), DEADLINE).await?;
        self.session = Some(session);
        Ok(groups(&rows))
    }

    /// What pg_stat_statements has of the statements that took longest; nothing where it is not installed, or
    /// not loaded.
    pub async fn called(&mut self) -> Vec<Called> {
        let Some(mut session) = self.session.take() else { return Vec::new() };
        let asking = tokio::time::timeout(DEADLINE, async {
            match extension(&mut session).await? {
                Some(schema) => session.rows(&called_question(&schema), DEADLINE).await,
                None => Ok(Vec::new()),
            }
        });
        let asked = asking.await.unwrap_or(Err(SessionError::Late(DEADLINE)));
        // A session that was refused goes on; one that did not answer in time is of no use any more.
        if matches!(&asked, Ok(_) | Err(SessionError::Client(ClientError::Server(_)))) {
            self.session = Some(session);
        }
        asked.map(|rows| rows.iter().map(called).collect()).unwrap_or_default()
    }
}

async fn extension(session: &mut Session) -> Result<Option<String>, SessionError> {
    let asked = "SELECT quote_ident(n.nspname) FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace \
                 WHERE e.extname = 'pg_stat_statements'";
    let rows = session.rows(asked, DEADLINE).await?;
    Ok(rows.first().map(|row| text(row, 0).to_owned()))
}

/// The sessions that are active, without our own: those that ask as a walsender does, and those of these
/// names by the local socket.
fn question() -> String {
    let own = [READER, WATCHER, TELEMETRY, REHEARSAL].map(|name| format!("'{name}'")).join(", ");
    format!(
        "SELECT coalesce(wait_event_type || ':' || wait_event, 'CPU'), coalesce(query_id, 0), left(query, {ASKED_CHARS}), \
         coalesce(usename::text, backend_type), application_name, coalesce(host(client_addr), 'local'), count(*) \
         FROM pg_stat_activity WHERE state IN ('active', 'fastpath function call') AND backend_type <> 'walsender' \
         AND NOT (application_name IN ({own}) AND client_addr IS NULL) \
         GROUP BY 1, 2, 3, 4, 5, 6 ORDER BY 7 DESC LIMIT {ROWS_MAX}"
    )
}

fn called_question(schema: &str) -> String {
    format!(
        "SELECT s.queryid, sum(s.calls)::bigint, sum(s.total_exec_time)::bigint, sum(s.rows)::bigint, \
         left(min(s.query), {ASKED_CHARS}) FROM {schema}.pg_stat_statements s WHERE s.queryid IS NOT NULL \
         GROUP BY 1 ORDER BY 3 DESC LIMIT {CALLED_MAX}"
    )
}

/// The groups of an answer: statements without their values, and no more than [`GROUPS_MAX`] that are told.
#[must_use]
pub fn groups(rows: &[Row]) -> Vec<Group> {
    let mut counted: BTreeMap<Key, u32> = BTreeMap::new();
    for row in rows {
        let name = |index| -> Arc<str> { shortened(text(row, index), NAME_BYTES_MAX).into() };
        let key = Key {
            wait: name(0),
            query_id: text(row, 1).parse().unwrap_or(0),
            statement: normalise(text(row, 2)).into(),
            user: name(3),
            application: name(4),
            host: name(5),
        };
        let sum = counted.entry(key).or_default();
        *sum = sum.saturating_add(text(row, 6).parse().unwrap_or(0));
    }
    bounded(counted, GROUPS_MAX)
}

fn called(row: &Row) -> Called {
    let number = |index| text(row, index).parse().unwrap_or(0);
    Called {
        query_id: text(row, 0).parse().unwrap_or(0),
        calls: number(1),
        total_ms: number(2),
        rows: number(3),
        statement: normalise(text(row, 4)),
    }
}

fn text(row: &Row, index: usize) -> &str {
    row.get(index).and_then(Option::as_deref).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(fields: [&str; 7]) -> Row {
        fields.map(|field| Some(field.to_owned())).to_vec()
    }

    #[test]
    fn sessions_that_differ_in_values_alone_are_one_group() {
        let rows = [
            row(["CPU", "0", "SELECT 1", "app", "web", "10.0.0.7", "2"]),
            row(["CPU", "0", "SELECT 22", "app", "web", "10.0.0.7", "3"]),
            row(["Lock:transactionid", "-7", "UPDATE t SET a = 1", "app", "web", "local", "1"]),
            Vec::new(),
        ];
        let groups = groups(&rows);
        assert_eq!(groups.len(), 3);
        assert_eq!((groups[0].sum, &*groups[0].key.statement), (5, "SELECT ?"));
        let locked = groups.iter().find(|group| group.key.query_id == -7).unwrap();
        assert_eq!((locked.key.wait_type(), &*locked.key.statement), ("Lock", "UPDATE t SET a = ?"));
    }

    #[test]
    fn whoever_does_not_answer_is_asked_ever_more_seldom_and_one_answer_mends_that() {
        let mut patience = Patience::default();
        let (mut now_us, mut asked) = (0, Vec::new());
        for second in 0..100_u64 {
            now_us = second * 1_000_000;
            if patience.may_ask(now_us) {
                asked.push(second);
                patience.silent(now_us);
            }
        }
        assert_eq!(asked, [0, 1, 3, 7, 15, 31, 47, 63, 79, 95]);
        patience.answered();
        assert!(patience.may_ask(now_us));
    }
}
