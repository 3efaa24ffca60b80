//! `failover`, `failover_after` and `max_loss`.

use std::time::Duration;

use toml::de::DeTable;

use crate::config::model::Config;
use crate::config::read::Reader;
use crate::units;

/// So many voters have a majority without the primary.
const VOTERS_MIN: usize = 3;

impl Reader {
    /// Takes the voters from `config`: they come before it.
    pub(super) fn failover(&mut self, table: &DeTable<'_>, config: &mut Config) {
        let wanted = "\"auto\" or \"manual\"";
        let automatic = self.optional(table, "failover", wanted, |text| match text {
            "auto" => Some(true),
            "manual" => Some(false),
            _ => None,
        });
        let few = config.voters().len() < VOTERS_MIN;
        if let (Some(true), true, Some(value)) = (automatic, few, table.get("failover")) {
            let what = "`failover = \"auto\"` needs three voters, so that there is a majority without the primary: add a region, \
                        or a witness such as [witness.third-site]";
            let _: Option<()> = self.mistake(value.span(), what);
        }
        let given = &mut config.failover;
        given.automatic = automatic.unwrap_or(given.automatic);
        let after = self.optional(table, "failover_after", "a duration from \"1s\" to \"1h\"", |text| {
            let range = Duration::from_secs(1)..=Duration::from_secs(3600);
            units::parse_duration(text).filter(|after| range.contains(after))
        });
        given.after = after.unwrap_or(given.after);
        let loss = self.optional(table, "max_loss", "a size, such as \"16MiB\"", units::parse_bytes);
        given.max_loss_bytes = loss.unwrap_or(given.max_loss_bytes);
    }
}
