//! `[telemetry]`.

use toml::de::DeTable;

use crate::config::model::Config;
use crate::config::read::Reader;

/// The most batches that are sampled, a second: a trace of one in six regions has some thirty spans.
const TRACES_MAX: u32 = 100;

impl Reader {
    pub(super) fn telemetry(&mut self, table: &DeTable<'_>, config: &mut Config) {
        let Some((_, table)) = self.section(table, "telemetry") else { return };
        self.known_keys(table, &["http_beyond_loopback", "load", "otlp", "traces_per_second"]);
        let what = "a URL without encryption, such as \"http://127.0.0.1:4317\": a collector on this machine passes on what it is sent";
        config.telemetry.otlp = self.optional(table, "otlp", what, |text| {
            text.strip_prefix("http://").filter(|place| !place.is_empty()).map(|_| text.to_owned())
        });
        self.flag(table, "http_beyond_loopback", &mut config.telemetry.http_beyond_loopback);
        self.flag(table, "load", &mut config.telemetry.load);
        let Some(traces) = table.get("traces_per_second") else { return };
        let number = traces.get_ref().as_integer();
        let number = number.and_then(|number| u32::from_str_radix(number.as_str(), number.radix()).ok());
        match number.filter(|number| *number <= TRACES_MAX) {
            Some(number) => config.telemetry.traces_per_second = number,
            None => {
                let what = format!("`traces_per_second` is a number from 0, for none, to {TRACES_MAX}");
                let _: Option<()> = self.mistake(traces.span(), what);
            }
        }
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
