//! `take_over_after`: whether another host of a region may take over as its head.

use std::time::Duration;

use toml::de::DeTable;

use crate::config::model::Config;
use crate::config::read::Reader;
use crate::units;

impl Reader {
    pub(super) fn take_over_after(&mut self, region: &DeTable<'_>) -> Option<Duration> {
        self.optional(region, "take_over_after", "a duration from \"1s\" to \"60s\"", |text| {
            let range = Duration::from_secs(1)..=Duration::from_secs(60);
            units::parse_duration(text).filter(|after| range.contains(after))
        })
    }

    /// What a region has to have where another host may take over. `config` is complete.
    pub(super) fn heads(&mut self, table: &DeTable<'_>, config: &Config) {
        let regions = table.get("region").and_then(|value| value.get_ref().as_table());
        for region in &config.regions {
            let found = regions.and_then(|regions| regions.get(region.name.as_str())?.get_ref().as_table());
            let Some(own) = found else { continue };
            let nodes = own.get("node").and_then(|value| value.get_ref().as_table());
            for node in region.nodes.iter().filter(|node| node.listen.is_some()) {
                let table = nodes.and_then(|nodes| nodes.get(node.name.as_str())?.get_ref().as_table());
                let Some(given) = table.and_then(|table| table.get("listen")) else { continue };
                let what = match region.take_over_after {
                    None => {
                        "a node listens only where it may take over: say take_over_after = \"3s\" in its region"
                    }
                    Some(_) if node.zone.is_none() || node.postgres.is_none() => {
                        "a node that may take over has the copies of a `zone`, and a PostgreSQL: `postgres`"
                    }
                    Some(_) => continue,
                };
                let _: Option<()> = self.mistake(given.span(), what);
            }
            let Some(given) = own.get("take_over_after").filter(|_| region.take_over_after.is_some()) else {
                continue;
            };
            let mut wrong = |is: bool, what: &str| {
                if is {
                    let _: Option<()> = self.mistake(given.span(), what);
                }
            };
            wrong(
                !region.nodes.iter().any(|node| node.listen.is_some()),
                "nobody could take over: give a node of the region `listen`, with its `zone` and `postgres`",
            );
            wrong(
                !region.own_process.is_empty(),
                "zones of `own_process` are on the host that would be gone: give them to nodes",
            );
            wrong(
                region.nodes.iter().filter(|node| node.zone.is_some()).count() < 2,
                "nobody could take over when the host of the daemon is gone, as four of six copies are needed then: give two zones to nodes",
            );
            wrong(
                config.voters().len() < 2,
                "a host that takes over asks the other voters what the region has promised, and there is none: add a region, or a witness such \
                 as [witness.third-site]",
            );
            wrong(
                !config.commit.waits(),
                "with `commit = \"local\"` commits return that no other host has: they would be lost when another one takes over",
            );
        }
    }
}
