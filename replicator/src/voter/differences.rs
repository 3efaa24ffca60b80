//! What other daemons' `regions.toml` say otherwise, of what must be the same everywhere. It comes with every
//! question about the lease and every answer to one, so a primary and each voter know it of each other.

use std::collections::BTreeMap;
use std::sync::Mutex;

use proto::RegionName;
use proto::messages::Agreement;

use super::{Voter, lock};

/// How the others' files differ from this daemon's.
#[derive(Debug)]
pub(super) struct Differences {
    own: Agreement,
    found: Mutex<BTreeMap<RegionName, String>>,
}

impl Differences {
    pub(super) fn new(own: Agreement) -> Differences {
        Differences { own, found: Mutex::default() }
    }
}

/// What differs between two files, in words; empty when nothing does.
fn between(own: &Agreement, theirs: &Agreement) -> String {
    let differs = [
        (own.voters != theirs.voters, "the names of regions and witnesses"),
        (own.first_primary != theirs.first_primary, "the first primary (`role`)"),
        (own.lease_us != theirs.lease_us, "`lease`"),
        (own.commit != theirs.commit, "`commit` or `rpo`"),
    ];
    let what: Vec<&str> = differs.into_iter().filter(|(differs, _)| *differs).map(|(_, what)| what).collect();
    what.join(", ")
}

impl Voter {
    /// What this daemon's file says that must be the same everywhere.
    #[must_use]
    pub fn agreement(&self) -> Agreement {
        self.differences.own
    }

    /// Compares the file of `name` with this daemon's.
    pub fn compare(&self, name: &RegionName, theirs: &Agreement) {
        let what = between(&self.differences.own, theirs);
        let mut found = lock(&self.differences.found);
        if found.get(name).map_or("", String::as_str) == what {
            return;
        }
        if what.is_empty() {
            tracing::info!("regions.toml: the same again as that of {name}");
            found.remove(name);
            return;
        }
        let difference = Difference { name: name.clone(), what: what.clone() };
        tracing::error!("{}; {}", difference.fact(), Difference::ACTION);
        found.insert(name.clone(), what);
    }

    /// How other daemons' files differ from this one's.
    #[must_use]
    pub fn differences(&self) -> Vec<Difference> {
        let found = lock(&self.differences.found);
        found.iter().map(|(name, what)| Difference { name: name.clone(), what: what.clone() }).collect()
    }
}

/// How another daemon's file differs from this one's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Whose.
    name: RegionName,
    /// In what, in words.
    what: String,
}

impl Difference {
    /// What to do about it.
    pub const ACTION: &str = "make the files equal, and restart these daemons";

    /// What is so, for people.
    #[must_use]
    pub fn fact(&self) -> String {
        format!("regions.toml: differs from that of {} in {}", self.name, self.what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn what_must_be_equal_is_compared_and_nothing_else() {
        let file = |head: &str, b: &str, port: u16| {
            let region = |name: &str, role: &str, port: u16| {
                format!(
                    "[region.{name}]\nrole = \"{role}\"\nlisten = \"127.0.0.1:{port}\"\npostgres = \"127.0.0.1:{}\"\n",
                    port + 1000
                )
            };
            let text = format!(
                "cluster = \"x\"\n{head}\n{}{}",
                region("a", "primary", 7000),
                region(b, "secondary", port)
            );
            Config::parse(&text).unwrap().agreement()
        };
        let own = file("", "b", 7001);
        assert_eq!(between(&own, &file("", "b", 7005)), "", "addresses may differ");
        assert_eq!(between(&own, &file("lease = \"9s\"", "b", 7001)), "`lease`");
        assert_eq!(between(&own, &file("commit = { regions = 1 }", "b", 7001)), "`commit` or `rpo`");
        assert_eq!(between(&own, &file("", "c", 7001)), "the names of regions and witnesses");
    }
}
