//! `[volume]`.

use std::time::Duration;

use toml::Spanned;
use toml::de::DeTable;

use crate::config::model::Config;
use crate::config::read::Reader;
use crate::units;

impl Reader {
    pub(super) fn volume(&mut self, table: &DeTable<'_>, config: &mut Config) {
        let Some((value, table)) = self.section(table, "volume") else { return };
        self.known_keys(table, &["retain", "max_size", "repair", "scrub"]);
        let repair = self.optional(table, "repair", "a size a second, such as \"100MiB\"", |text| {
            units::parse_bytes(text).filter(|bytes| *bytes > 0)
        });
        config.repair_bytes_per_second = repair.unwrap_or(config.repair_bytes_per_second);
        let scrub = self.optional(table, "scrub", "a duration, such as \"24h\"", |text| {
            units::parse_duration(text).filter(|every| *every >= Duration::from_secs(1))
        });
        config.scrub_every = scrub.unwrap_or(config.scrub_every);
        let retain = self.optional(table, "retain", "a duration, such as \"24h\"", units::parse_duration);
        config.retain = retain.unwrap_or(config.retain);
        let max_size = self.optional(table, "max_size", "a size, such as \"10GiB\"", units::parse_bytes);
        config.max_size_bytes = max_size.unwrap_or(config.max_size_bytes);
        if config.max_size_bytes < 128 << 20 {
            let at = table.get("max_size").map_or(value.span(), Spanned::span);
            let _: Option<()> = self.mistake(at, "`max_size` is at least 128MiB: a few segments must fit");
        }
    }
}
