//! Row counts and checksums of every table, on the primary and on the clone at the same moment.
//!
//! A physical copy has its rows in the same blocks: so they are compared some blocks at a time, what differs
//! is named by its blocks, and the primary rests between two of them.

use std::time::Duration;

use runtime::clock::now;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use super::DrillError;
use super::moment::{Moment, is_there, same_formats};

/// Blocks compared at a time: 8 MiB.
const BLOCKS: i64 = 1024;

/// The primary rests for so many times as long as it worked.
const REST: u32 = 3;

/// Differences that are told, at most.
const TOLD_MAX: usize = 20;

/// What was compared.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Compared {
    /// Databases.
    pub databases: usize,
    /// Tables.
    pub tables: usize,
    /// Rows that are the same on both sides.
    pub rows: u64,
    /// Tables that were left out as there are too many.
    pub left_out: i64,
    /// Databases that were left out likewise.
    pub databases_left_out: usize,
    /// Tables that were dropped, renamed or replaced since the moment, with their databases.
    pub gone: Vec<String>,
    /// What differs, in words.
    pub differences: Vec<String>,
}

/// Compares the clone, which `clone` leads to, with the primary at `moment`; the moment's reader reads both.
/// Tells each table's name before it begins.
///
/// # Errors
/// When the primary does not answer.
pub async fn compare(
    mut moment: Moment,
    clone: &PgConnectOptions,
    mut tell: impl FnMut(&str),
) -> Result<Compared, DrillError> {
    let mut compared = Compared { databases_left_out: moment.left_out, ..Compared::default() };
    let clone = moment.reader.connects(clone);
    for frozen in &mut moment.databases {
        compared.databases += 1;
        compared.left_out += frozen.left_out;
        let clone = clone.clone().database(&frozen.database);
        let mut connection = PgConnection::connect_with(&clone).await?;
        same_formats(&mut connection).await?;
        for table in &frozen.tables {
            tell(&format!("{}, {}", frozen.database, table.name));
            let there = is_there(&mut frozen.snapshot, table, true).await?;
            // A clone that cannot say so is not readable either, which is told below.
            if !there || matches!(is_there(&mut connection, table, false).await, Ok(false)) {
                compared.gone.push(format!("{}, {}", frozen.database, table.name));
                continue;
            }
            compared.tables += 1;
            let size =
                format!("SELECT pg_relation_size({}::oid) / current_setting('block_size')::int8", table.oid);
            let blocks: Result<i64, _> =
                sqlx::query_scalar(AssertSqlSafe(size)).fetch_one(&mut connection).await;
            let blocks = blocks.unwrap_or(0);
            let mut begin = 0;
            while begin == 0 || begin < blocks {
                // The last part has no end: what the primary has beyond the clone's blocks is seen as well.
                let end = (begin + BLOCKS < blocks).then_some(begin + BLOCKS);
                let query = sum_of(&table.name, begin, end);
                let (theirs, work) = timed(sum(&mut frozen.snapshot, &query)).await;
                let theirs = theirs?;
                let differs = match sum(&mut connection, &query).await {
                    Ok(ours) if ours == theirs => {
                        compared.rows += u64::try_from(ours.0).unwrap_or(0);
                        None
                    }
                    Ok((count, _)) if count != theirs.0 => {
                        Some(format!("{count} rows, and the primary has {}", theirs.0))
                    }
                    Ok(_) => Some("rows that differ from the primary's".into()),
                    Err(e) => {
                        // An error may have ended the connection.
                        connection = PgConnection::connect_with(&clone).await?;
                        same_formats(&mut connection).await?;
                        Some(format!("not readable: {e}"))
                    }
                };
                if let Some(what) = differs {
                    compared.differs(&frozen.database, &table.name, begin, end, &what);
                }
                tokio::time::sleep(work * REST).await;
                begin += BLOCKS;
            }
        }
    }
    Ok(compared)
}

impl Compared {
    fn differs(&mut self, database: &str, table: &str, begin: i64, end: Option<i64>, what: &str) {
        if self.differences.len() < TOLD_MAX {
            let to = end.map_or_else(|| "the end".to_owned(), |end| format!("block {}", end - 1));
            self.differences
                .push(format!("database {database}, table {table}, block {begin} to {to}: {what}"));
        }
    }
}

fn sum_of(table: &str, begin: i64, end: Option<i64>) -> String {
    let end = end.map(|end| format!(" AND ctid < '({end},0)'::tid")).unwrap_or_default();
    format!(
        "SELECT count(*), coalesce(sum(hashtextextended(ROW(drilled.*)::text, 0)), 0)::text \
         FROM ONLY {table} AS drilled WHERE ctid >= '({begin},0)'::tid{end}"
    )
}

async fn sum(connection: &mut PgConnection, query: &str) -> Result<(i64, String), sqlx::Error> {
    sqlx::query_as(AssertSqlSafe(query.to_owned())).fetch_one(connection).await
}

async fn timed<T>(work: impl Future<Output = T>) -> (T, Duration) {
    let since = now();
    (work.await, since.elapsed())
}
