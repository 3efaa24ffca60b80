//! `[region.….node.…]`: hosts of a region besides that of its daemon.

use std::collections::BTreeSet;

use proto::NodeName;
use toml::de::DeTable;

use super::regions::{ADDRESS, parse_address, parse_zone};
use crate::config::model::{HOME, NODES_MAX, NodeConfig};
use crate::config::read::{Key, Reader, Value};

impl Reader {
    /// The nodes of a region whose zones in `own_process` have processes of their own.
    pub(super) fn nodes(&mut self, region: &DeTable<'_>, own_process: &[char]) -> Vec<NodeConfig> {
        let Some((_, table)) = self.section(region, "node") else { return Vec::new() };
        let named = Reader::in_order(table);
        if let Some((name, _)) = named.get(NODES_MAX) {
            let what = format!("a region has at most {NODES_MAX} nodes besides the host of its daemon");
            let _: Option<()> = self.mistake(name.span(), what);
        }
        let mut taken: BTreeSet<char> = own_process.iter().copied().collect();
        named.into_iter().filter_map(|(key, value)| self.node(key, value, &mut taken)).collect()
    }

    fn node(&mut self, key: &Key<'_>, value: &Value<'_>, taken: &mut BTreeSet<char>) -> Option<NodeConfig> {
        let name = match key.get_ref().parse::<NodeName>() {
            Ok(name) if name.as_str() == HOME => {
                let what =
                    "'home' is what the host of the region's daemon is called; call the node otherwise";
                self.mistake(key.span(), what)
            }
            Ok(name) => Some(name),
            Err(e) => self.mistake(key.span(), e.to_string()),
        };
        let Some(table) = value.get_ref().as_table() else {
            return self.mistake(value.span(), "a node is a table: postgres, zone");
        };
        self.known_keys(
            table,
            &["postgres", "zone", "listen", "advertise", "writer_endpoint", "reader_endpoint"],
        );
        let listen = self.optional(table, "listen", ADDRESS, parse_address);
        let advertise = self.advertise(table).or(listen.map(|listen| listen.to_string()));
        let zone =
            self.optional(table, "zone", "one of the region's zones: \"a\", \"b\" or \"c\"", parse_zone);
        let postgres = self.optional(table, "postgres", ADDRESS, parse_address);
        self.port_of_a_socket(table, postgres);
        if let (Some(address), Some(given)) = (postgres, table.get("postgres"))
            && address.ip().is_unspecified()
        {
            let what = format!(
                "{address} is no address at which others reach a node's PostgreSQL: the region's daemon brings readers there"
            );
            let _: Option<()> = self.mistake(given.span(), what);
        }
        if let (Some(zone), Some(given)) = (zone, table.get("zone"))
            && !taken.insert(zone)
        {
            let what = format!(
                "the copies of zone {zone} are another process' already: a node's, or by `own_process`"
            );
            let _: Option<()> = self.mistake(given.span(), what);
        }
        let writer_endpoint = self.optional(table, "writer_endpoint", ADDRESS, parse_address);
        let reader_endpoint = self.optional(table, "reader_endpoint", ADDRESS, parse_address);
        if !["zone", "postgres", "writer_endpoint", "reader_endpoint"]
            .iter()
            .any(|key| table.contains_key(*key))
        {
            let what = format!(
                "node {} does nothing: give it `postgres`, where its PostgreSQL is reached, the `zone` whose copies it holds, or a \
                 `writer_endpoint` or `reader_endpoint` for clients",
                key.get_ref()
            );
            return self.mistake(key.span(), what);
        }
        Some(NodeConfig {
            name: name?,
            zone,
            postgres,
            listen,
            advertise: advertise.unwrap_or_default(),
            writer_endpoint,
            reader_endpoint,
        })
    }
}
