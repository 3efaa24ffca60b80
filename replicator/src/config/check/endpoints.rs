//! `[endpoints]`.

use std::time::Duration;

use toml::de::DeTable;
use transport::SESSIONS_MAX;

use crate::config::model::Config;
use crate::config::read::Reader;
use crate::units;

/// The longest that a client is held: an hour.
const HOLD_MAX: Duration = Duration::from_secs(3600);

impl Reader {
    pub(super) fn endpoints(&mut self, table: &DeTable<'_>, config: &mut Config) {
        let Some((_, table)) = self.section(table, "endpoints") else { return };
        self.known_keys(table, &["hold", "max_lag", "sessions"]);
        let given = &mut config.endpoints;
        let hold = self.optional(table, "hold", "a duration of at most \"1h\", such as \"30s\"", |text| {
            units::parse_duration(text).filter(|hold| *hold <= HOLD_MAX)
        });
        given.hold = hold.unwrap_or(given.hold);
        let wanted = "a duration of at least \"1ms\", such as \"1s\"";
        let lag = self.optional(table, "max_lag", wanted, |text| {
            units::parse_duration(text).filter(|lag| *lag >= Duration::from_millis(1))
        });
        given.max_lag = lag.unwrap_or(given.max_lag);
        let most = i64::from(SESSIONS_MAX);
        given.sessions = self.number(table, "sessions", 1..=most).unwrap_or(given.sessions);
    }
}
