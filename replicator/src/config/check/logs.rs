//! `[logs]`.

use toml::de::DeTable;

use crate::config::model::Config;
use crate::config::read::Reader;
use crate::units;

/// The smallest size at which a log is put aside, bytes.
const SIZE_MIN: u64 = 64 << 10;

/// The most logs that are kept of each.
const KEEP_MAX: i64 = 1000;

impl Reader {
    pub(super) fn logs(&mut self, table: &DeTable<'_>, config: &mut Config) {
        let Some((_, table)) = self.section(table, "logs") else { return };
        self.known_keys(table, &["keep", "max_size"]);
        let size = self.optional(table, "max_size", "a size of at least 64KiB, such as \"64MiB\"", |text| {
            units::parse_bytes(text).filter(|bytes| *bytes >= SIZE_MIN)
        });
        config.logs.max_size_bytes = size.unwrap_or(config.logs.max_size_bytes);
        config.logs.keep = self.number(table, "keep", 1..=KEEP_MAX).unwrap_or(config.logs.keep);
    }
}
