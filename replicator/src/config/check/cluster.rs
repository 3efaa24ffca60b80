//! `cluster`, `lease` and `owner`.

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

    pub(super) fn owner(&mut self, table: &DeTable<'_>, config: &mut Config) {
        const WANTED: &str = "the name of a role: 1 to 63 lower-case letters, digits and '_', no digit first, and not \"pg_…\"";
        let owner = self.optional(table, "owner", WANTED, |text| is_role(text).then(|| text.to_owned()));
        config.owner = owner.unwrap_or_else(|| std::mem::take(&mut config.owner));
    }
}

/// Whether it is a role's name that needs no quotes anywhere, and is nobody else's.
pub(super) fn is_role(text: &str) -> bool {
    let good = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    let begins = text.bytes().next().is_some_and(|b| !b.is_ascii_digit());
    // PostgreSQL keeps the first for itself, and the others are databases that there are.
    let taken = text.starts_with("pg_") || text.starts_with("template") || text.starts_with("replicator");
    good && begins && text.len() <= 63 && !taken
}
