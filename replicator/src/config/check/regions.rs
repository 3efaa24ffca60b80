//! `[region.…]`: what each is, and that there is one primary and not too many secondaries.

use std::net::SocketAddr;
use std::ops::Range;

use postgres::sockets::{REWIND_PORT, WALSENDER_PORT};
use proto::RegionName;
use toml::de::DeTable;

use crate::config::model::{Config, RegionConfig, Role, SECONDARIES_MAX};
use crate::config::read::{Key, Reader, Value};
use crate::units;

/// The keys of a region's table.
const KEYS: [&str; 14] = [
    "role",
    "listen",
    "advertise",
    "postgres",
    "bandwidth",
    "bin_dir",
    "encryption",
    "node",
    "own_process",
    "settings",
    "http",
    "writer_endpoint",
    "reader_endpoint",
    "take_over_after",
];

impl Reader {
    /// All regions; none when the file has no place for them.
    pub(super) fn regions(&mut self, table: &DeTable<'_>, config: &mut Config) -> Option<()> {
        match self.section(table, "region") {
            Some((value, regions)) => {
                let beyond = config.telemetry.http_beyond_loopback;
                let encryption = self.encryption(table, false);
                let named = Reader::in_order(regions).into_iter();
                config.regions = named.filter_map(|(name, value)| self.region(name, value, beyond)).collect();
                for region in &mut config.regions {
                    region.encryption = region.encryption.take().or_else(|| encryption.clone());
                }
                self.roles(value.span(), regions);
            }
            // That it is no table was said.
            None if table.contains_key("region") => {}
            None => return self.mistake(0..0, "there are no regions: add a table such as [region.us-east]"),
        }
        Some(())
    }

    fn region(&mut self, key: &Key<'_>, value: &Value<'_>, beyond: bool) -> Option<RegionConfig> {
        let name = self.name(key);
        let Some(table) = value.get_ref().as_table() else {
            return self.mistake(value.span(), "a region is a table: role, listen, postgres");
        };
        self.known_keys(table, &KEYS);
        let role = self.required(key, table, "role", "\"primary\" or \"secondary\"", |text| match text {
            "primary" => Some(Role::Primary),
            "secondary" => Some(Role::Secondary),
            _ => None,
        });
        let (listen, advertise) = self.places(key, table);
        let postgres = self.required(key, table, "postgres", ADDRESS, parse_address);
        self.port_of_a_socket(table, postgres);
        let bandwidth_bits_per_second =
            self.optional(table, "bandwidth", "a rate, such as \"200Mbit/s\"", units::parse_rate);
        let settings =
            self.section(table, "settings").map(|(_, table)| self.settings(table)).unwrap_or_default();
        let bin_dir = self.bin_dir(table);
        let own_process = table.get("own_process").map(|value| self.zones(value)).unwrap_or_default();
        let http = self.http(table, beyond);
        let writer_endpoint = self.optional(table, "writer_endpoint", ADDRESS, parse_address);
        let reader_endpoint = self.optional(table, "reader_endpoint", ADDRESS, parse_address);
        let nodes = self.nodes(table, &own_process);
        let encryption = self.encryption(table, true);
        let take_over_after = self.take_over_after(table);
        let (name, role, listen, postgres) = (name?, role?, listen?, postgres?);
        let advertise = advertise.unwrap_or_else(|| listen.to_string());
        Some(RegionConfig {
            name,
            role,
            listen,
            advertise,
            postgres,
            own_process,
            writer_endpoint,
            reader_endpoint,
            http,
            bandwidth_bits_per_second,
            settings,
            bin_dir,
            nodes,
            encryption,
            take_over_after,
        })
    }

    /// `postgres` has no port that is in the name of a socket of ours.
    pub(super) fn port_of_a_socket(&mut self, table: &DeTable<'_>, postgres: Option<SocketAddr>) {
        if let (Some(address), Some(value)) = (postgres, table.get("postgres"))
            && [WALSENDER_PORT, REWIND_PORT].contains(&address.port())
        {
            let what = format!(
                "port {} is in the name of a socket of Replicator's own beside PostgreSQL's; choose another",
                address.port()
            );
            let _: Option<()> = self.mistake(value.span(), what);
        }
    }

    /// Health checks and metrics ask nobody who he is: they stay on the machine, unless the file says
    /// otherwise.
    fn http(&mut self, table: &DeTable<'_>, beyond: bool) -> Option<SocketAddr> {
        let http = self.optional(table, "http", ADDRESS, parse_address)?;
        if http.ip().is_loopback() || beyond {
            return Some(http);
        }
        let what = "`http` is an address that other machines reach, and health checks and metrics are answered whoever asks there: take one of \
                    127.0.0.1, or say http_beyond_loopback = true in [telemetry]";
        self.mistake(table.get("http")?.span(), what)
    }

    fn zones(&mut self, value: &Value<'_>) -> Vec<char> {
        let wanted = "`own_process` names zones that run by themselves, such as [\"b\", \"c\"]; a region has a, b and c";
        let zone = |zone: &Value<'_>| zone.get_ref().as_str().and_then(parse_zone);
        let zones = value
            .get_ref()
            .as_array()
            .and_then(|zones| zones.iter().map(zone).collect::<Option<Vec<char>>>());
        match zones {
            Some(mut zones) => {
                zones.sort_unstable();
                zones.dedup();
                zones
            }
            None => {
                let _: Option<()> = self.mistake(value.span(), wanted);
                Vec::new()
            }
        }
    }

    /// One primary, and at most five secondaries.
    fn roles(&mut self, span: Range<usize>, regions: &DeTable<'_>) {
        let mut with_role: Vec<(Range<usize>, &str)> = regions
            .iter()
            .filter_map(|(_, value)| {
                let role = value.get_ref().as_table()?.get("role")?;
                Some((role.span(), role.get_ref().as_str()?))
            })
            .collect();
        with_role.sort_by_key(|(span, _)| span.start);
        let of = |role: &str| -> Vec<Range<usize>> {
            with_role.iter().filter(|(_, r)| *r == role).map(|(span, _)| span.clone()).collect()
        };
        let (primaries, secondaries) = (of("primary"), of("secondary"));
        if primaries.is_empty() {
            let _: Option<()> = self.mistake(span, "no region is the primary: give one `role = \"primary\"`");
        }
        for span in primaries.into_iter().skip(1) {
            let _: Option<()> = self
                .mistake(span, "a second primary: one region is the primary, make this one \"secondary\"");
        }
        for span in secondaries.into_iter().skip(SECONDARIES_MAX) {
            let what =
                format!("more than {SECONDARIES_MAX} secondaries: a cluster has at most {SECONDARIES_MAX}");
            let _: Option<()> = self.mistake(span, what);
        }
    }

    pub(super) fn name(&mut self, key: &Key<'_>) -> Option<RegionName> {
        match key.get_ref().parse::<RegionName>() {
            Ok(name) if name.as_str() == transport::identity::OPERATOR => self.mistake(
                key.span(),
                "'operator' is the name in operators' certificates; call the region otherwise",
            ),
            Ok(name) => Some(name),
            Err(e) => self.mistake(key.span(), e.to_string()),
        }
    }

    /// `listen` and `advertise`.
    pub(super) fn places(
        &mut self,
        key: &Key<'_>,
        table: &DeTable<'_>,
    ) -> (Option<SocketAddr>, Option<String>) {
        let listen = self.required(key, table, "listen", ADDRESS, parse_address);
        (listen, self.advertise(table))
    }

    /// Where others reach it.
    pub(super) fn advertise(&mut self, table: &DeTable<'_>) -> Option<String> {
        self.optional(table, "advertise", "a host and a port, such as \"eu.example.org:7402\"", |text| {
            let (host, port) = text.rsplit_once(':')?;
            (!host.is_empty() && port.parse::<u16>().is_ok_and(|p| p > 0)).then(|| text.to_owned())
        })
    }
}

/// What an address looks like.
pub(super) const ADDRESS: &str = "an address with a port, such as \"127.0.0.1:7401\"";

pub(super) fn parse_address(text: &str) -> Option<SocketAddr> {
    text.parse::<SocketAddr>().ok().filter(|address| address.port() > 0)
}

/// A zone by its letter.
pub(super) fn parse_zone(text: &str) -> Option<char> {
    match text {
        "a" => Some('a'),
        "b" => Some('b'),
        "c" => Some('c'),
        _ => None,
    }
}
