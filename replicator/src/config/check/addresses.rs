//! No address is given twice.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use toml::de::DeTable;

use crate::config::read::Reader;

/// The keys whose values are addresses.
const KEYS: [&str; 5] = ["listen", "postgres", "writer_endpoint", "reader_endpoint", "http"];

impl Reader {
    /// No address twice.
    pub(super) fn addresses(&mut self, table: &DeTable<'_>) {
        let voters = ["region", "witness"].into_iter().flat_map(|key| named(table, key));
        let nodes = named(table, "region").flat_map(|(region, table)| {
            named(table, "node").map(move |(node, table)| (format!("node {node} of {region}"), table))
        });
        let mut seen: Vec<(SocketAddr, String)> = Vec::new();
        let mut given: Vec<(Range<usize>, SocketAddr, String)> = voters
            .chain(nodes)
            .flat_map(|(name, table)| KEYS.map(|key| (name.clone(), key, table.get(key))))
            .filter_map(|(name, key, value)| {
                let value = value?;
                Some((value.span(), value.get_ref().as_str()?.parse().ok()?, format!("{key} of {name}")))
            })
            .collect();
        given.sort_by_key(|(span, ..)| span.start);
        for (span, address, whose) in given {
            let same =
                |other: &SocketAddr| other.port() == address.port() && overlap(other.ip(), address.ip());
            if let Some((_, taken)) = seen.iter().find(|(other, _)| same(other)) {
                let what = format!("{address} is taken already, by {taken}: give each its own port");
                let _: Option<()> = self.mistake(span, what);
            } else {
                seen.push((address, whose));
            }
        }
    }
}

/// The tables in the table `key`, by name.
fn named<'t>(table: &'t DeTable<'_>, key: &str) -> impl Iterator<Item = (String, &'t DeTable<'t>)> {
    let tables = table.get(key).and_then(|value| value.get_ref().as_table());
    let named = tables.into_iter().flat_map(|table| table.iter());
    named.filter_map(|(name, value)| Some((name.get_ref().to_string(), value.get_ref().as_table()?)))
}

fn overlap(one: IpAddr, other: IpAddr) -> bool {
    one == other || one.is_unspecified() || other.is_unspecified()
}
