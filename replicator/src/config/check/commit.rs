//! `commit` and `rpo`.

use std::time::Duration;

use primary::gate::{CommitLevel, CommitPolicy};
use toml::de::DeTable;

use crate::config::model::{RegionConfig, Role};
use crate::config::read::Reader;
use crate::units;

impl Reader {
    /// `commit = "local"`, `"region"` or `{ regions = n }`, and `rpo`.
    pub(super) fn commit(&mut self, table: &DeTable<'_>, regions: &[RegionConfig]) -> CommitPolicy {
        let mut policy = CommitPolicy::default();
        let secondaries = regions.iter().filter(|region| region.role == Role::Secondary).count();
        if let Some(value) = table.get("commit") {
            let wanted = "`commit` is \"local\", \"region\" or { regions = 1 }";
            let count = value.get_ref().as_table().and_then(|t| t.get("regions"));
            let count = count.and_then(|n| n.get_ref().as_integer()?.as_str().parse::<u8>().ok());
            let level = match (value.get_ref().as_str(), count) {
                (Some("local"), _) => Some(CommitLevel::Local),
                (Some("region"), _) => Some(CommitLevel::Region),
                (None, Some(count)) if count > 0 && usize::from(count) <= secondaries => {
                    Some(CommitLevel::Regions(count))
                }
                (None, Some(count)) => {
                    let what = format!(
                        "commits cannot wait for {count} secondary regions: the file has {secondaries}, \
                         and at least one is waited for"
                    );
                    self.mistake(value.span(), what)
                }
                _ => self.mistake(value.span(), wanted),
            };
            policy.level = level.unwrap_or_default();
        }
        policy.rpo = self.optional(table, "rpo", "a duration, such as \"30s\"", |text| {
            units::parse_duration(text).filter(|rpo| *rpo >= Duration::from_secs(1))
        });
        if let (Some(_), Some(value)) = (policy.rpo, table.get("rpo")) {
            let what = match policy.level {
                CommitLevel::Local => {
                    "`rpo` holds commits, and with `commit = \"local\"` none waits: use \"region\""
                }
                _ if secondaries == 0 => {
                    "`rpo` holds commits while no secondary is near enough, and the file has none"
                }
                _ => return policy,
            };
            let _: Option<()> = self.mistake(value.span(), what);
        }
        policy
    }
}
