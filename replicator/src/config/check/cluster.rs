//! `cluster` and `lease`.

use std::time::Duration;

use toml::de::DeTable;

use crate::config::model::Config;
use crate::config::read::Reader;
use crate::units;

impl Reader {
    pub(super) fn cluster(&mut self, table: &DeTable<'_>) -> Option<String> {
        let Some(value) = table.get("cluster") else {
            return self.mistake(0..0, "`cluster = \"…\"` is missing: the name of the cluster");
        };
        let name = self.text(value, "a name, such as \"demo\"")?;
        let good = !name.is_empty() && name.len() <= 32;
        if good && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') {
            return Some(name);
        }
        self.mistake(value.span(), "a cluster's name is 1 to 32 letters, digits, '-' and '_'")
    }

    pub(super) fn lease(&mut self, table: &DeTable<'_>, config: &mut Config) {
        let lease = self.optional(table, "lease", "a duration from \"1s\" to \"60s\"", |text| {
            units::parse_duration(text)
                .filter(|l| (Duration::from_secs(1)..=Duration::from_secs(60)).contains(l))
        });
        config.lease = lease.unwrap_or(config.lease);
    }
}
