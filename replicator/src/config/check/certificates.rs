//! `denied`, `require_roles` and `require_signed_orders`: what is not let in.

use std::collections::BTreeSet;

use toml::de::DeTable;
use transport::peer::mark;

use super::super::read::Reader;

/// The most certificates that may be denied: those of an authority that was lost are not listed, it is
/// replaced.
const DENIED_MAX: usize = 1000;

impl Reader {
    /// Whether certificates without a role are refused.
    pub(super) fn require_roles(&mut self, table: &DeTable<'_>) -> Option<bool> {
        self.yes_or_no(table, "require_roles")
    }

    /// Whether promotions without a signed order are refused.
    pub(super) fn require_signed_orders(&mut self, table: &DeTable<'_>) -> Option<bool> {
        self.yes_or_no(table, "require_signed_orders")
    }

    fn yes_or_no(&mut self, table: &DeTable<'_>, key: &str) -> Option<bool> {
        let value = table.get(key)?;
        match value.get_ref().as_bool() {
            Some(required) => Some(required),
            None => self.mistake(value.span(), format!("`{key}` is true or false")),
        }
    }

    /// Serial numbers or fingerprints, as programs print them.
    pub(super) fn denied(&mut self, table: &DeTable<'_>) -> BTreeSet<String> {
        const WANTED: &str = "`denied` is a list of certificates' serial numbers or SHA-256 fingerprints, such as [\"4a:1f:09\"]: \
                              see replicator certs --list";
        let Some(value) = table.get("denied") else { return BTreeSet::new() };
        let Some(marks) = value.get_ref().as_array() else {
            let _: Option<()> = self.mistake(value.span(), WANTED);
            return BTreeSet::new();
        };
        if marks.len() > DENIED_MAX {
            let what = format!(
                "`denied` has {} certificates, {DENIED_MAX} are the most: make another authority instead",
                marks.len()
            );
            let _: Option<()> = self.mistake(value.span(), what);
        }
        let mut kept = BTreeSet::new();
        for one in marks {
            match one.get_ref().as_str().and_then(mark) {
                Some(mark) => drop(kept.insert(mark)),
                None => {
                    let _: Option<()> = self.mistake(one.span(), WANTED);
                }
            }
        }
        kept
    }
}
