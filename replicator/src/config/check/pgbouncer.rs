//! `[pgbouncer]`.

use std::path::PathBuf;
use std::time::Duration;

use toml::de::DeTable;

use crate::config::model::Config;
use crate::config::read::Reader;
use crate::units;

/// The longest that transactions are waited for: nobody writes meanwhile.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// The most PgBouncers.
const CONSOLES_MAX: usize = 100;

impl Reader {
    pub(super) fn pgbouncer(&mut self, table: &DeTable<'_>, config: &mut Config) {
        let Some((whole, table)) = self.section(table, "pgbouncer") else { return };
        self.known_keys(table, &["consoles", "password_file", "user", "wait"]);
        let poolers = &mut config.poolers;
        let wanted = "`consoles` is a list of where PgBouncers listen, such as [\"10.0.1.5:6432\", \"/var/run/postgresql:6432\"]";
        match table.get("consoles") {
            Some(consoles) => poolers.consoles = self.lines(consoles, wanted, is_console),
            None => {
                let _: Option<()> = self.mistake(whole.span(), wanted);
            }
        }
        if poolers.consoles.len() > CONSOLES_MAX {
            let what = format!("there are at most {CONSOLES_MAX} PgBouncers");
            let _: Option<()> = self.mistake(whole.span(), what);
        }
        let user = self.optional(table, "user", "one of PgBouncer's admin_users", |text| {
            Some(text.to_owned()).filter(|user| !user.is_empty())
        });
        poolers.user = user.unwrap_or_else(|| poolers.user.clone());
        let wanted = "an absolute path, that of a file with the user's password";
        poolers.password_file = self.optional(table, "password_file", wanted, |text| {
            Some(PathBuf::from(text)).filter(|path| path.is_absolute())
        });
        let wait = self.optional(table, "wait", "a duration of at most \"30s\", such as \"2s\"", |text| {
            units::parse_duration(text).filter(|wait| *wait <= WAIT_MAX)
        });
        poolers.wait = wait.unwrap_or(poolers.wait);
    }
}

/// A name or address with a port, or the directory of a socket with one.
fn is_console(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let is_host = !host.is_empty() && !host.contains(char::is_whitespace);
    is_host && port.parse::<u16>().is_ok_and(|port| port > 0)
}
