//! What tests of seeds share: data that take a while to send and stay as they are, and how far a seed is.

use sqlx::{AssertSqlSafe, Executor, PgConnection};

use crate::Cluster;

/// Makes the table `noise` of `rows` rows of a MiB that does not compress, in `tablespace`. No vacuum has
/// anything to do in it any more, so its pages stay as they are until somebody writes.
///
/// # Panics
/// When the writer does not do it.
pub async fn fill_with_noise(writer: &mut PgConnection, tablespace: &str, rows: i64) {
    let make = format!("CREATE TABLE noise (id bigint PRIMARY KEY, pad bytea) TABLESPACE {tablespace}");
    writer.execute(AssertSqlSafe(make)).await.unwrap();
    writer.execute("ALTER TABLE noise ALTER pad SET STORAGE EXTERNAL").await.unwrap();
    let insert = "INSERT INTO noise SELECT g, pg_read_binary_file('/dev/urandom', 0 * g, 1048576) FROM generate_series(1, $1) g";
    sqlx::query(insert).bind(rows).execute(&mut *writer).await.unwrap();
    writer.execute("VACUUM (FREEZE) noise").await.unwrap();
    writer.execute("CHECKPOINT").await.unwrap();
}

/// How far a seed is, as the primary says, bytes.
#[derive(Clone, Copy, Debug)]
pub struct Seed {
    /// In place, or on its way.
    pub bytes: u64,
    /// All of it.
    pub total_bytes: u64,
    /// Was there already.
    pub not_sent_bytes: u64,
}

impl Seed {
    /// That of `region`; none while it is not seeded.
    #[must_use]
    pub fn of(cluster: &Cluster, region: &str) -> Option<Seed> {
        let output = cluster.run(&["status", "--json"]);
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
        let row = status["regions"].as_array()?.iter().find(|row| row["name"] == region)?;
        let bytes = |what: &str| row["seed"][what].as_u64();
        Some(Seed {
            bytes: bytes("bytes")?,
            total_bytes: bytes("total_bytes")?,
            not_sent_bytes: bytes("not_sent_bytes")?,
        })
    }

    /// Whether this many tenths are in place or on their way. What is on its way, a few seconds of the link
    /// where both processors are busy, is lost with the process that receives it.
    #[must_use]
    pub fn has_tenths(self, tenths: u64) -> bool {
        self.bytes > self.total_bytes * tenths / 10
    }
}
