//! `[witness.…]`: daemons that only vote.

use toml::de::DeTable;

use crate::config::model::{Config, WITNESSES_MAX, WitnessConfig};
use crate::config::read::{Key, Reader, Value};

impl Reader {
    pub(super) fn witnesses(&mut self, table: &DeTable<'_>, config: &mut Config) {
        let Some((_, table)) = self.section(table, "witness") else { return };
        let named = Reader::in_order(table);
        let surplus = named.get(WITNESSES_MAX).map(|(name, _)| name.span());
        if let Some(span) = surplus {
            let what = format!("a cluster has at most {WITNESSES_MAX} witnesses");
            let _: Option<()> = self.mistake(span, what);
        }
        let witness = |(key, value): (&Key<'_>, &Value<'_>)| {
            let name = self.name(key);
            let Some(table) = value.get_ref().as_table() else {
                return self.mistake(value.span(), "a witness is a table: listen, advertise");
            };
            self.known_keys(table, &["listen", "advertise"]);
            let (listen, advertise) = self.places(key, table);
            let (name, listen) = (name?, listen?);
            if config.regions.iter().any(|region| region.name == name) {
                return self
                    .mistake(key.span(), format!("{name} is a region: a witness has a name of its own"));
            }
            let advertise = advertise.unwrap_or_else(|| listen.to_string());
            Some(WitnessConfig { name, listen, advertise })
        };
        config.witnesses = named.into_iter().filter_map(witness).collect();
    }
}
