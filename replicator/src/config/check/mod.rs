//! Checks `regions.toml`, a file for each of its sections. A section is a function that takes the file's
//! table, and fills in its part of the [`Config`]; all mistakes are collected.

mod addresses;
mod certificates;
mod cluster;
mod commit;
mod encryption;
mod endpoints;
mod failover;
mod heads;
mod logs;
mod nodes;
mod pgbouncer;
mod postgresql;
mod regions;
mod telemetry;
mod tokens;
mod volume;
mod witnesses;

use toml::Spanned;
use toml::de::DeTable;

use super::model::Config;
use super::read::Reader;

/// The sections and keys at the head of the file.
const KEYS: &[&str] = &[
    "cluster",
    "commit",
    "denied",
    "encryption",
    "endpoints",
    "failover",
    "failover_after",
    "lease",
    "logs",
    "max_loss",
    "owner",
    "pgbouncer",
    "postgresql",
    "region",
    "require_roles",
    "require_signed_orders",
    "rpo",
    "telemetry",
    "volume",
    "witness",
];

impl Reader {
    /// The whole file; none when no more can be said of it than the mistakes that were found.
    pub(super) fn config(&mut self, root: &Spanned<DeTable<'_>>) -> Option<Config> {
        let table = root.get_ref();
        self.known_keys(table, KEYS);
        let mut config = Config::new(self.cluster(table).unwrap_or_default());
        self.volume(table, &mut config);
        self.postgresql(table, &mut config);
        self.telemetry(table, &mut config);
        self.logs(table, &mut config);
        self.endpoints(table, &mut config);
        self.pgbouncer(table, &mut config);
        self.regions(table, &mut config)?;
        self.witnesses(table, &mut config);
        self.addresses(table);
        // What is promised of commits depends on how many regions there are.
        config.commit = self.commit(table, &config.regions);
        self.lease(table, &mut config);
        self.owner(table, &mut config);
        self.failover(table, &mut config);
        config.denied = self.denied(table);
        config.require_roles = self.require_roles(table);
        config.require_signed_orders = self.require_signed_orders(table);
        self.tokens(table, &config);
        self.heads(table, &config);
        Some(config)
    }
}
