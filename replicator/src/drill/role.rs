//! The role as which a rehearsal reads users' tables, on the primary and on the clone.
//!
//! To read a table can be to run what its owner wrote: a view in the table's place, a condition of an index
//! that the planner looks at. So it is never read as a superuser, nor in a session that was one's: the role
//! may log in, read every table, and nothing else. It belongs to one region, gets a password that only this
//! rehearsal knows, and can log in no more once the primary's sessions are open. The clone still lets it in,
//! as it is at a moment before that.

use std::num::NonZeroU32;

use aws_lc_rs::{digest, hmac, pbkdf2};
use postgres::major::Major;
use proto::RegionName;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, PgConnection};

use super::DrillError;
use crate::units::show_hex as hex;

/// How often a password is hashed; PostgreSQL's usual number.
const ITERATIONS: NonZeroU32 = NonZeroU32::new(4096).expect("it is not zero");

/// The role of a rehearsal under way.
pub struct Reader {
    role: String,
    password: String,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("role", &self.role).finish_non_exhaustive()
    }
}

impl Reader {
    /// Has the primary, of `major`, whose superuser's session `own` is, let the role of `region` in.
    ///
    /// # Errors
    /// When the role has more rights than it needs, or the primary refuses.
    pub(super) async fn admit(
        own: &mut PgConnection,
        region: &RegionName,
        major: Major,
    ) -> Result<Reader, DrillError> {
        let [password, salt]: [[u8; 16]; 2] = runtime::random::draw();
        let reader = Reader { role: format!("replicator_drill_{region}"), password: hex(&password) };
        let quoted = reader.quoted();
        let exists: bool = sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)")
            .bind(&reader.role)
            .fetch_one(&mut *own)
            .await?;
        if !exists {
            run(own, format!("CREATE ROLE {quoted} NOLOGIN")).await?;
        }
        let more: Option<String> = sqlx::query_scalar(
            "SELECT string_agg(g.rolname::text, ', ') FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid \
             JOIN pg_roles r ON r.oid = m.member WHERE r.rolname = $1 AND g.rolname <> 'pg_read_all_data'",
        )
        .bind(&reader.role)
        .fetch_one(&mut *own)
        .await?;
        if let Some(more) = more {
            return Err(DrillError::NotNow(format!(
                "the role {quoted}, as which a drill reads tables, is a member of {more}; revoke that, or drop the role: it is made anew"
            )));
        }
        run(own, format!("GRANT pg_read_all_data TO {quoted}")).await?;
        // Databases that not everybody may connect to.
        let grants: Vec<String> = sqlx::query_scalar(
            "SELECT format('GRANT CONNECT ON DATABASE %I TO %I', datname, $1::text) FROM pg_database \
             WHERE datallowconn AND NOT has_database_privilege($1::text::name, datname::text, 'CONNECT')",
        )
        .bind(&reader.role)
        .fetch_all(&mut *own)
        .await?;
        for grant in grants {
            run(own, grant).await?;
        }
        for (name, _) in major.session_settings().iter().filter(|(name, _)| *name == "event_triggers") {
            run(own, format!("GRANT SET ON PARAMETER {name} TO {quoted}")).await?;
        }
        let verifier = verifier(own, &reader.password, &salt).await?;
        // Row security would hide rows, by conditions that are the table's owner's.
        run(
            own,
            format!(
                "ALTER ROLE {quoted} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION BYPASSRLS INHERIT PASSWORD '{verifier}'"
            ),
        )
        .await?;
        run(own, format!("ALTER ROLE {quoted} RESET ALL")).await?;
        Ok(reader)
    }

    /// Lets the role in no more.
    ///
    /// # Errors
    /// When the primary refuses.
    pub(super) async fn shut_out(&self, own: &mut PgConnection) -> Result<(), DrillError> {
        run(own, format!("ALTER ROLE {} NOLOGIN PASSWORD NULL", self.quoted())).await
    }

    /// How it connects where `options` lead.
    #[must_use]
    pub fn connects(&self, options: &PgConnectOptions) -> PgConnectOptions {
        options.clone().username(&self.role).password(&self.password)
    }

    /// Its name in SQL. A region's has letters, digits and hyphens.
    fn quoted(&self) -> String {
        format!("\"{}\"", self.role)
    }
}

async fn run(own: &mut PgConnection, statement: String) -> Result<(), DrillError> {
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(own).await?;
    Ok(())
}

/// What PostgreSQL keeps of a password: so the password itself is never sent.
async fn verifier(own: &mut PgConnection, password: &str, salt: &[u8]) -> Result<String, DrillError> {
    let [stored_key, server_key] = keys(password, salt);
    let query = "SELECT format('SCRAM-SHA-256$%s:%s$%s:%s', $1::int4, encode(decode($2, 'hex'), 'base64'), \
                 encode(decode($3, 'hex'), 'base64'), encode(decode($4, 'hex'), 'base64'))";
    let query = sqlx::query_scalar(query).bind(i32::try_from(ITERATIONS.get()).unwrap_or(i32::MAX));
    Ok(query.bind(hex(salt)).bind(hex(&stored_key)).bind(hex(&server_key)).fetch_one(own).await?)
}

/// The stored key and the server key of SCRAM-SHA-256. Source: RFC 5802, section 3.
fn keys(password: &str, salt: &[u8]) -> [Vec<u8>; 2] {
    let mut salted = [0; digest::SHA256_OUTPUT_LEN];
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, ITERATIONS, salt, password.as_bytes(), &mut salted);
    let key = hmac::Key::new(hmac::HMAC_SHA256, &salted);
    let client_key = hmac::sign(&key, b"Client Key");
    let stored_key = digest::digest(&digest::SHA256, client_key.as_ref());
    [stored_key.as_ref().to_vec(), hmac::sign(&key, b"Server Key").as_ref().to_vec()]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of RFC 7677: its server signs with the second key.
    #[test]
    fn keys_are_those_of_the_standard() {
        let salt = 0x5b6d_9968_9d12_358e_eca0_4b14_1236_fa81_u128.to_be_bytes();
        let [stored_key, server_key] = keys("pencil", &salt);
        assert_eq!(hex(&stored_key), "586e5df283e6dceb5c3e791d8b8528ec191e664045ce971792e2e6b5bb13e2a6");
        assert_eq!(hex(&server_key), "c1f3cbc1c13a9d35a14c0990eed97629ea225863e566a4314ab99f3f00e5d9d5");
        let nonce = "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
        let message = format!(
            "n=user,r=rOprNGfwEbeRWgbNEkqO,r={nonce},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,c=biws,r={nonce}"
        );
        let signed = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &server_key), message.as_bytes());
        // As the standard prints it, in base64.
        assert_eq!(hex(signed.as_ref())[..16], *"eabae24d1062db75");
    }

    #[test]
    fn the_password_is_not_shown() {
        let reader = Reader { role: "r".into(), password: "secret".into() };
        assert!(!format!("{reader:?}").contains("secret"));
    }
}
