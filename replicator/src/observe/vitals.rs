//! PostgreSQL's own vital signs: asked every few seconds, each time on a new connection. An old one goes on
//! answering when PostgreSQL takes no more.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use postgres::instance::Instance;
use postgres::protocol::session::{DATABASES, is_of_database};
use postgres::sockets::{SUPERUSER, TELEMETRY};
use runtime::clock::now;
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, PgConnection};
use tokio::time::Instant;

/// How often PostgreSQL is asked.
pub const EVERY: Duration = Duration::from_secs(2);

/// How long it may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// An answer older than this says nothing of now.
const FRESH: Duration = Duration::from_secs(6);

/// What PostgreSQL says of itself.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Vitals {
    /// Client connections by `state` of `pg_stat_activity`, without this one.
    pub connections: Vec<(String, f64)>,
    /// `max_connections`.
    pub connections_max: f64,
    /// Transactions that were committed, in all databases.
    pub commits: f64,
    /// Transactions that were rolled back.
    pub rollbacks: f64,
    /// Deadlocks.
    pub deadlocks: f64,
    /// Blocks found in PostgreSQL's buffers.
    pub blocks_hit: f64,
    /// Blocks that the system was asked for.
    pub blocks_read: f64,
    /// The age of the oldest open transaction, seconds; zero without one.
    pub oldest_s: f64,
    /// Replication slots, and the redo that the server keeps for each, bytes.
    pub slots: Vec<(String, f64)>,
}

/// The newest answer, shared by who asks and who tells.
#[derive(Debug, Clone)]
pub struct Newest(Arc<Mutex<(Instant, Result<Vitals, String>)>>);

impl Default for Newest {
    fn default() -> Newest {
        Newest(Arc::new(Mutex::new((now(), Err("it was not asked yet".into())))))
    }
}

impl Newest {
    /// The newest answer, or why there is none that speaks of now.
    pub fn get(&self) -> Result<Vitals, String> {
        let newest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match newest.0.elapsed() {
            age if age > FRESH => Err(format!("it has not answered for {} s", age.as_secs())),
            _ => newest.1.clone(),
        }
    }

    fn put(&self, answer: Result<Vitals, String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = (now(), answer);
    }
}

/// Asks `instance` again and again.
pub async fn ask(instance: Instance, newest: Newest) {
    loop {
        let asked = tokio::time::timeout(PATIENCE, ask_once(&instance)).await;
        let answer = match asked {
            Ok(Ok(vitals)) => Ok(vitals),
            Ok(Err(e)) => Err(e.to_string()),
            Err(_) => Err(format!("it did not answer within {} s", PATIENCE.as_secs())),
        };
        newest.put(answer);
        tokio::time::sleep(EVERY).await;
    }
}

async fn ask_once(instance: &Instance) -> Result<Vitals, sqlx::Error> {
    let mut connection = connect(instance).await?;
    let sums = "SELECT coalesce(sum(xact_commit), 0)::float8, coalesce(sum(xact_rollback), 0)::float8,
                       coalesce(sum(deadlocks), 0)::float8, coalesce(sum(blks_hit), 0)::float8,
                       coalesce(sum(blks_read), 0)::float8, current_setting('max_connections')::float8
                FROM pg_catalog.pg_stat_database";
    let (commits, rollbacks, deadlocks, blocks_hit, blocks_read, connections_max) =
        sqlx::query_as(sums).fetch_one(&mut connection).await?;
    let sessions = "SELECT coalesce(state, 'unknown'), count(*)::float8,
                           coalesce(extract(epoch FROM clock_timestamp() - min(xact_start)), 0)::float8
                    FROM pg_catalog.pg_stat_activity
                    WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() GROUP BY 1 ORDER BY 1";
    let sessions: Vec<(String, f64, f64)> = sqlx::query_as(sessions).fetch_all(&mut connection).await?;
    let slots = "SELECT slot_name::text, greatest(pg_wal_lsn_diff(
                        CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn() ELSE pg_current_wal_lsn() END,
                        restart_lsn), 0)::float8
                 FROM pg_catalog.pg_replication_slots WHERE restart_lsn IS NOT NULL ORDER BY 1";
    let slots: Vec<(String, Option<f64>)> = sqlx::query_as(slots).fetch_all(&mut connection).await?;
    connection.close().await?;
    Ok(Vitals {
        oldest_s: sessions.iter().map(|(.., oldest_s)| *oldest_s).fold(0.0, f64::max),
        connections: by_state(&sessions),
        connections_max,
        commits,
        rollbacks,
        deadlocks,
        blocks_hit,
        blocks_read,
        slots: slots.into_iter().filter_map(|(name, bytes)| Some((name, bytes?))).collect(),
    })
}

/// The usual states, 0 of each where there is none, so that their series do not come and go; and whatever
/// else there is.
fn by_state(sessions: &[(String, f64, f64)]) -> Vec<(String, f64)> {
    let usual = ["active", "idle", "idle in transaction", "idle in transaction (aborted)"];
    let mut counts: BTreeMap<&str, f64> = usual.into_iter().map(|state| (state, 0.0)).collect();
    counts.extend(sessions.iter().map(|(state, count, _)| (state.as_str(), *count)));
    counts.into_iter().map(|(state, count)| (state.to_owned(), count)).collect()
}

async fn connect(instance: &Instance) -> Result<PgConnection, sqlx::Error> {
    let options = instance.options();
    let place = PgConnectOptions::new_without_pgpass()
        .socket(&options.socket_dir)
        .port(options.listen.port())
        .username(SUPERUSER)
        .application_name(TELEMETRY)
        .options(instance.installation().major.session_settings().iter().copied())
        .disable_statement_logging();
    let mut connection = match PgConnection::connect_with(&place.clone().database(DATABASES[0])).await {
        Err(sqlx::Error::Database(e)) if e.code().is_some_and(|code| is_of_database(&code)) => {
            PgConnection::connect_with(&place.database(DATABASES[1])).await?
        }
        connected => connected?,
    };
    // A server that is busy must not pile these up, and its log has no use for them.
    let settings = "SET ROLE NONE; SET search_path = pg_catalog; SET statement_timeout = '1500ms'; SET lock_timeout = '500ms'; SET log_min_duration_statement = -1";
    sqlx::raw_sql(settings).execute(&mut connection).await?;
    Ok(connection)
}
