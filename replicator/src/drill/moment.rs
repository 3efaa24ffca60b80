//! A moment of the primary that a clone can be brought to exactly: an LSN, and snapshots that see what is
//! committed there.
//!
//! A snapshot and an LSN do not fit each other by themselves: a commit is in the redo before others see it.
//! So all tables are locked against writers (`SHARE`) for as long as it takes to open the snapshots: about as
//! long as the writing transactions that just run. When those do not end soon, it lets go at once, and tries
//! again later.
//!
//! Whoever locks many tables must do so in the order in which the writers do, or waits for one that waits for
//! it. Locks are held to the end of a transaction: so what is locked first is seen locked most often.

use std::collections::HashMap;
use std::time::Duration;

use postgres::major::Major;
use proto::{Lsn, RegionName};
use runtime::clock::now;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use super::DrillError;
use super::role::Reader;

/// What sessions of a rehearsal set for themselves, against what production sets for everybody.
const OWN: [(&str, &str); 7] = [
    ("search_path", "pg_catalog"),
    ("role", "none"),
    ("statement_timeout", "0"),
    ("lock_timeout", "0"),
    ("idle_session_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    ("default_transaction_read_only", "off"),
];

/// How long writers may wait for the locks, in a try.
const HOLD_MS: u64 = 200;

/// Tries before it is given up.
const TRIES: u32 = 40;

/// Looks at what is locked, before a try.
const LOOKS: u32 = 20;

/// Between two of them.
const LOOK: Duration = Duration::from_millis(7);

/// Databases that are compared: each takes two connections of the primary's for a moment, and one until it is
/// compared.
pub const DATABASES_MAX: usize = 12;

/// Tables of a database that are compared; each takes a place in PostgreSQL's lock table for a moment.
const TABLES_MAX: i64 = 2000;

/// So that rows have the same text everywhere, and a view's or a foreign table's are not read for a table's.
const FORMATS: &str = "SET search_path = pg_catalog; SET restrict_nonsystem_relation_kind = 'view, foreign-table'; SET extra_float_digits = 3; SET datestyle = 'ISO'; SET intervalstyle = 'postgres'; \
     SET timezone = 'UTC'; SET bytea_output = 'hex'; SET xmlbinary = 'base64'; SET statement_timeout = 0; SET lock_timeout = 0; \
     SET idle_in_transaction_session_timeout = 0; SET enable_indexscan = off; SET jit = off; SET max_parallel_workers_per_gather = 0";

/// A table to be compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Its object id, the same in every region.
    pub oid: i64,
    /// Its name, quoted.
    pub name: String,
}

/// One database at the moment.
#[derive(Debug)]
pub struct Frozen {
    /// Its name.
    pub database: String,
    /// Its tables; what has one's name may be another by now.
    pub tables: Vec<Table>,
    /// Tables that are left out as there are too many.
    pub left_out: i64,
    /// A transaction that sees what was committed at the moment.
    pub snapshot: PgConnection,
}

/// The moment.
#[derive(Debug)]
pub struct Moment {
    /// Redo before this makes it.
    pub lsn: Lsn,
    /// The databases that take connections; the busiest, where there are too many.
    pub databases: Vec<Frozen>,
    /// How many databases are left out as there are too many.
    pub left_out: usize,
    /// For how long writers may have waited.
    pub held: Duration,
    /// How many tries it took.
    pub tries: u32,
    /// Who reads the tables.
    pub reader: Reader,
}

/// A session of a rehearsal's, with a PostgreSQL of `major`.
pub(super) fn own(options: PgConnectOptions, major: Major) -> PgConnectOptions {
    options.options(OWN).options(major.session_settings().iter().copied())
}

/// Finds a moment of the primary, where `options` lead a superuser, for a rehearsal of `region`.
///
/// # Errors
/// When the primary cannot be asked, or writers never pause for long enough.
pub async fn find(
    options: &PgConnectOptions,
    region: &RegionName,
    major: Major,
) -> Result<Moment, DrillError> {
    let mut own = PgConnection::connect_with(options).await?;
    let query = "SELECT d.datname::text FROM pg_database d LEFT JOIN pg_stat_database s ON s.datid = d.oid \
                 WHERE d.datallowconn ORDER BY s.xact_commit DESC NULLS LAST, 1";
    let mut databases: Vec<String> = sqlx::query_scalar(query).fetch_all(&mut own).await?;
    let left_out = databases.len().saturating_sub(DATABASES_MAX);
    databases.truncate(DATABASES_MAX);
    // In the order in which every rehearsal locks their tables.
    databases.sort();
    let reader = Reader::admit(&mut own, region, major).await?;
    let found = try_often(options, &databases, &reader, &mut own).await;
    // Its sessions are open, and nobody needs another.
    reader.shut_out(&mut own).await?;
    let (tries, (lsn, databases, held)) = found?;
    Ok(Moment { lsn, databases, left_out, held, tries, reader })
}

/// Returns also in which try it was found.
async fn try_often(
    options: &PgConnectOptions,
    databases: &[String],
    reader: &Reader,
    own: &mut PgConnection,
) -> Result<(u32, Held), DrillError> {
    let mut last = None;
    for tries in 1..=TRIES {
        let busy = busy(own).await?;
        match hold(options, databases, reader, &busy, tries % 3 == 0, own).await {
            Ok(held) => return Ok((tries, held)),
            Err(DrillError::Sql(e)) if e.as_database_error().is_some() => last = Some(e.to_string()),
            Err(e) => return Err(e),
        }
        tokio::time::sleep(Duration::from_millis(300 + 50 * u64::from(tries))).await;
    }
    Err(DrillError::NoMoment { tries: TRIES, last: last.unwrap_or_default() })
}

/// How often each table, of a database, was seen locked by a writer.
type Busy = HashMap<(String, i64), u64>;

async fn busy(own: &mut PgConnection) -> Result<Busy, DrillError> {
    let mut busy = Busy::new();
    for _ in 0..LOOKS {
        let query = "SELECT d.datname::text, l.relation::int8, count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database \
                     WHERE l.locktype = 'relation' AND l.mode = 'RowExclusiveLock' AND l.granted GROUP BY 1, 2";
        let seen: Vec<(String, i64, i64)> = sqlx::query_as(query).fetch_all(&mut *own).await?;
        for (database, table, count) in seen {
            *busy.entry((database, table)).or_default() += u64::try_from(count).unwrap_or(0);
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(busy)
}

/// The tables in the order in which they shall be locked: the busiest first, or, where that has not worked,
/// the busy ones by chance.
fn order<'a>(database: &str, tables: &'a [Table], busy: &Busy, by_chance: bool) -> Vec<&'a str> {
    let count = |table: &Table| busy.get(&(database.to_owned(), table.oid)).copied().unwrap_or(0);
    let mut tables: Vec<(u64, &Table)> = tables.iter().map(|table| (count(table), table)).collect();
    tables.sort_by_key(|(count, table)| (std::cmp::Reverse(*count), table.oid));
    let idle = tables.partition_point(|(count, _)| *count > 0);
    if by_chance {
        runtime::random::shuffle(&mut tables[..idle]);
    }
    tables.into_iter().map(|(_, table)| table.name.as_str()).collect()
}

/// A moment, every database at it, and for how long writers waited.
type Held = (Lsn, Vec<Frozen>, Duration);

async fn hold(
    options: &PgConnectOptions,
    databases: &[String],
    reader: &Reader,
    busy: &Busy,
    by_chance: bool,
    own: &mut PgConnection,
) -> Result<Held, DrillError> {
    let (mut frozen, mut locks) = (Vec::new(), Vec::new());
    for database in databases {
        let options = options.clone().database(database);
        let mut lock = PgConnection::connect_with(&options).await?;
        sqlx::raw_sql("SET search_path = pg_catalog; BEGIN").execute(&mut lock).await?;
        let mut snapshot = PgConnection::connect_with(&reader.connects(&options)).await?;
        sqlx::raw_sql(FORMATS).execute(&mut snapshot).await?;
        let (tables, left_out) = tables(&mut lock).await?;
        frozen.push(Frozen { database: database.clone(), tables, left_out, snapshot });
        locks.push(lock);
    }
    let since = now();
    for (lock, frozen) in locks.iter_mut().zip(&frozen).filter(|(_, frozen)| !frozen.tables.is_empty()) {
        let left =
            HOLD_MS.saturating_sub(u64::try_from(since.elapsed().as_millis()).unwrap_or(HOLD_MS)).max(1);
        let order = order(&frozen.database, &frozen.tables, busy, by_chance);
        let names: Vec<String> = order.iter().map(|name| format!("ONLY {name}")).collect();
        sqlx::raw_sql(AssertSqlSafe(format!("SET LOCAL statement_timeout = {left}")))
            .execute(&mut *lock)
            .await?;
        let all = format!("LOCK TABLE {} IN SHARE MODE", names.join(", "));
        sqlx::raw_sql(AssertSqlSafe(all)).execute(lock).await?;
    }
    for Frozen { snapshot, .. } in &mut frozen {
        let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SELECT pg_current_snapshot()";
        sqlx::raw_sql(begin).execute(snapshot).await?;
    }
    let lsn: String =
        sqlx::query_scalar("SELECT pg_current_wal_insert_lsn()::text").fetch_one(&mut *own).await?;
    for lock in &mut locks {
        sqlx::raw_sql("ROLLBACK").execute(lock).await?;
    }
    let held = since.elapsed();
    // A clone stops before the first record at or after the LSN: so there must be one.
    let message = "SELECT pg_logical_emit_message(true, 'replicator_drill', '')";
    sqlx::query(message).execute(own).await?;
    let lsn = lsn.parse().map_err(|_| DrillError::Answer(format!("'{lsn}' is no LSN")))?;
    Ok((lsn, frozen, held))
}

async fn tables(connection: &mut PgConnection) -> Result<(Vec<Table>, i64), DrillError> {
    let of = "FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
              WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND n.nspname NOT IN ('pg_catalog', 'information_schema')";
    let count: i64 = sqlx::query_scalar(AssertSqlSafe(format!("SELECT count(*) {of}")))
        .fetch_one(&mut *connection)
        .await?;
    // The largest ones, where there are too many; locked in the same order always.
    let query = format!(
        "SELECT oid, name FROM (SELECT c.oid::int8 AS oid, format('%I.%I', n.nspname, c.relname) AS name {of} \
         ORDER BY c.relpages DESC, c.oid LIMIT {TABLES_MAX}) AS t ORDER BY oid"
    );
    let rows: Vec<(i64, String)> = sqlx::query_as(AssertSqlSafe(query)).fetch_all(connection).await?;
    let tables: Vec<Table> = rows.into_iter().map(|(oid, name)| Table { oid, name }).collect();
    let left_out = count - i64::try_from(tables.len()).unwrap_or(count);
    Ok((tables, left_out))
}

/// Sees, with the table locked where `locks` against whoever would put something else in its place, that what
/// has its name is the very table. The lock is kept to the end of the transaction.
///
/// # Errors
/// When the connection fails.
pub async fn is_there(connection: &mut PgConnection, table: &Table, locks: bool) -> Result<bool, DrillError> {
    // A catalog's rows are seen as of the snapshot: these look at what is there now. A view has no file.
    let query = "SELECT to_regclass($1)::oid::int8 IS NOT DISTINCT FROM $2::int8 \
                 AND pg_relation_filenode($2::int8::oid) IS NOT NULL";
    let query = sqlx::query_scalar(query).bind(&table.name).bind(table.oid);
    if !locks {
        return Ok(query.fetch_one(connection).await?);
    }
    sqlx::raw_sql("SAVEPOINT drilled").execute(&mut *connection).await?;
    let lock = format!("LOCK TABLE ONLY {} IN ACCESS SHARE MODE", table.name);
    let locked = sqlx::raw_sql(AssertSqlSafe(lock)).execute(&mut *connection).await;
    let found = match locked {
        Ok(_) => query.fetch_one(&mut *connection).await,
        Err(e) if e.as_database_error().is_some() => Ok(false),
        Err(e) => return Err(e.into()),
    };
    if !matches!(found, Ok(true)) {
        sqlx::raw_sql("ROLLBACK TO SAVEPOINT drilled").execute(connection).await?;
    }
    Ok(found?)
}

/// Sets what a connection to the clone needs to give rows the same text.
///
/// # Errors
/// When it cannot.
pub async fn same_formats(connection: &mut PgConnection) -> Result<(), DrillError> {
    sqlx::raw_sql(FORMATS).execute(connection).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_busiest_table_is_locked_first() {
        let tables = ["a", "b", "c"]
            .into_iter()
            .zip(1..)
            .map(|(name, oid)| Table { oid, name: name.into() })
            .collect::<Vec<_>>();
        let busy =
            Busy::from([(("x".to_owned(), 2), 3), (("x".to_owned(), 3), 9), (("y".to_owned(), 1), 99)]);
        assert_eq!(order("x", &tables, &busy, false), ["c", "b", "a"]);
        assert_eq!(order("x", &tables, &busy, true)[2], "a", "what is idle comes last");
    }
}
