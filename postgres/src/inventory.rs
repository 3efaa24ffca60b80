//! What the databases of a standby need of its machine, and what a promotion would take from them: found when
//! it can be found, and not at a failover.

use std::time::Duration;

use crate::protocol::client::ConnectOptions;
use crate::protocol::session::{Session, SessionError};

/// Databases that are looked at, the largest object ids last.
const DATABASES_MAX: usize = 50;

/// Names of one kind that are told of a database.
const NAMES_MAX: usize = 20;

const DATABASES: &str = "SELECT datname, datcollversion IS NOT NULL \
     AND datcollversion IS DISTINCT FROM pg_database_collation_actual_version(oid) \
     FROM pg_database WHERE datallowconn ORDER BY oid";

/// Libraries of functions, where they should be. One without a path is looked for along
/// `dynamic_library_path`, and is passed over.
const LIBRARIES: &str = "SELECT DISTINCT p.probin FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang AND l.lanname = 'c', \
     (SELECT setting FROM pg_config WHERE name = 'PKGLIBDIR') AS c (libdir), \
     LATERAL (SELECT replace(p.probin, '$libdir', c.libdir)) AS f (file) \
     WHERE f.file LIKE '/%' AND (pg_stat_file(f.file, true)).size IS NULL \
     AND (pg_stat_file(f.file || '.so', true)).size IS NULL ORDER BY 1";

/// Collations of indexes that order otherwise here than where the indexes were made.
const COLLATIONS: &str = "SELECT DISTINCT c.collname FROM pg_index i, unnest(i.indcollation) AS used (oid) \
     JOIN pg_collation c ON c.oid = used.oid WHERE c.collversion IS NOT NULL \
     AND c.collversion IS DISTINCT FROM pg_collation_actual_version(c.oid) ORDER BY 1";

const UNLOGGED: &str =
    "SELECT oid::regclass::text FROM pg_class WHERE relpersistence = 'u' AND relkind = 'r' ORDER BY 1";

/// What was found in one database.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OfDatabase {
    /// Its name.
    pub name: String,
    /// Libraries of its functions that this machine does not have.
    pub libraries: Vec<String>,
    /// Collations of its indexes, or its own, that order otherwise on this machine.
    pub collations: Vec<String>,
    /// Its unlogged tables, whose rows are where they were written and nowhere else.
    pub unlogged: Vec<String>,
}

impl OfDatabase {
    /// Whether there is nothing to tell.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.libraries.is_empty() && self.collations.is_empty() && self.unlogged.is_empty()
    }
}

/// Looks into the databases of the server of `options`, each answer within `deadline`; those with something
/// to tell.
///
/// # Errors
/// When the server does not answer. A database that lets nobody in just now is passed over.
pub async fn look(options: &ConnectOptions, deadline: Duration) -> Result<Vec<OfDatabase>, SessionError> {
    let databases = Session::open(options, deadline).await?.rows(DATABASES, deadline).await?;
    let mut found = Vec::new();
    for row in databases.into_iter().take(DATABASES_MAX) {
        let mut fields = row.into_iter();
        let name = fields.next().flatten().unwrap_or_default();
        let orders_otherwise = fields.next().flatten().as_deref() == Some("t");
        let mut session = match Session::open_database(options, &name, deadline).await {
            Ok(session) => session,
            Err(e) if e.code().is_some() => continue,
            Err(e) => return Err(e),
        };
        let mut of = OfDatabase {
            libraries: names(&mut session, LIBRARIES, deadline).await?,
            collations: names(&mut session, COLLATIONS, deadline).await?,
            unlogged: names(&mut session, UNLOGGED, deadline).await?,
            name,
        };
        if orders_otherwise {
            of.collations.insert(0, "that of the database".into());
        }
        if !of.is_plain() {
            found.push(of);
        }
    }
    Ok(found)
}

async fn names(session: &mut Session, query: &str, deadline: Duration) -> Result<Vec<String>, SessionError> {
    let rows = session.rows(query, deadline).await?;
    Ok(rows.into_iter().take(NAMES_MAX).filter_map(|row| row.into_iter().next().flatten()).collect())
}
