//! `[telemetry]`.

use toml::de::DeTable;

use crate::config::model::Config;
use crate::config::read::Reader;

impl Reader {
    pub(super) fn telemetry(&mut self, table: &DeTable<'_>, config: &mut Config) {
        let Some((_, table)) = self.section(table, "telemetry") else { return };
        self.known_keys(table, &["http_beyond_loopback", "load", "otlp"]);
        config.telemetry.otlp =
            self.optional(table, "otlp", "a URL, such as \"http://127.0.0.1:4317\"", |text| {
                let (scheme, place) = text.split_once("://")?;
                (matches!(scheme, "http" | "https") && !place.is_empty()).then(|| text.to_owned())
            });
        self.flag(table, "http_beyond_loopback", &mut config.telemetry.http_beyond_loopback);
        self.flag(table, "load", &mut config.telemetry.load);
    }

    fn flag(&mut self, table: &DeTable<'_>, key: &str, flag: &mut bool) {
        let Some(value) = table.get(key) else { return };
        match value.get_ref().as_bool() {
            Some(says) => *flag = says,
            None => {
                let _: Option<()> = self.mistake(value.span(), format!("`{key}` is true or false"));
            }
        }
    }
}
