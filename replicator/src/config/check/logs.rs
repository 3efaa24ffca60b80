//! `[logs]`.

use toml::de::DeTable;

use crate::config::model::{Config, LogFormat};
use crate::config::read::Reader;
use crate::units;

/// The smallest size at which a log is put aside, bytes.
const SIZE_MIN: u64 = 64 << 10;

/// The most logs that are kept of each.
const KEEP_MAX: i64 = 1000;

impl Reader {
    pub(super) fn logs(&mut self, table: &DeTable<'_>, config: &mut Config) {
        let Some((_, table)) = self.section(table, "logs") else { return };
        self.known_keys(table, &["format", "keep", "max_size"]);
        let size = self.optional(table, "max_size", "a size of at least 64KiB, such as \"64MiB\"", |text| {
            units::parse_bytes(text).filter(|bytes| *bytes >= SIZE_MIN)
        });
        config.logs.max_size_bytes = size.unwrap_or(config.logs.max_size_bytes);
        let format = self.optional(table, "format", "\"text\" or \"json\"", LogFormat::named);
        config.logs.format = format.unwrap_or_default();
        config.logs.keep = self.number(table, "keep", 1..=KEEP_MAX).unwrap_or(config.logs.keep);
    }
}
