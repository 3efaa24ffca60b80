//! Database load: how many sessions were active each second, what they waited for, and what they ran.
//!
//! - [`ask`] turns what PostgreSQL says of its sessions into a [`Look`]; [`statement`] takes the values out
//!   of a statement, so that only its shape is kept.
//! - [`machine`] turns what `/proc` says into how busy the machine was.
//! - [`keep`] decides what is kept: looks for an hour, their sums by the minute for seven days. It is pure.
//! - [`file`] is the format of what is kept, and [`store`] the directory: the one place that writes and reads
//!   it.
//! - [`series`] makes of looks what is shown: averages over time, and who stands at the top; [`told`] is what
//!   monitoring is told. Both are pure.
//!
//! Who looks each second is `region/load.rs`.

pub mod ask;
pub mod file;
pub mod keep;
pub mod machine;
pub mod series;
pub mod statement;
pub mod store;
pub mod told;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use machine::Machine;

/// The most groups of one look. What is beyond is summed up as [`OTHERS`].
pub const GROUPS_MAX: usize = 64;

/// The most groups of the sum of a minute.
pub const MINUTE_GROUPS_MAX: usize = 200;

/// What the rest is called where there are too many to tell each.
pub const OTHERS: &str = "(others)";

/// What a session waits for that is active and waits for nothing.
pub const CPU: &str = "CPU";

/// What active sessions have in common that are counted together.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// `type:event` of what they wait for; [`CPU`] where that is nothing.
    pub wait: Arc<str>,
    /// PostgreSQL's number of the statement; 0 where it has none.
    pub query_id: i64,
    /// The statement without its values.
    pub statement: Arc<str>,
    /// The role.
    pub user: Arc<str>,
    /// `application_name`.
    pub application: Arc<str>,
    /// Where the client is.
    pub host: Arc<str>,
}

impl Key {
    /// The rest of those that wait for `wait`.
    fn others(wait: Arc<str>) -> Key {
        let others: Arc<str> = OTHERS.into();
        Key {
            wait,
            query_id: 0,
            statement: others.clone(),
            user: others.clone(),
            application: others.clone(),
            host: others,
        }
    }

    /// The type of what they wait for: few, so that it can be a metric's label.
    #[must_use]
    pub fn wait_type(&self) -> &str {
        self.wait.split(':').next().unwrap_or_default()
    }
}

/// Sessions that were active, counted together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// What they have in common.
    pub key: Key,
    /// How many; summed over [`Look::looks`].
    pub sum: u32,
}

/// What was seen at one second, or the sum of a minute.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Look {
    /// When it begins, seconds since 1970.
    pub at_s: i64,
    /// How often PostgreSQL answered: 0 or 1 for a second, up to 60 for a minute.
    pub looks: u32,
    /// The processors there were.
    pub cores: u32,
    /// The active sessions. None is there twice.
    pub groups: Vec<Group>,
    /// How busy the machine was on average; none where that is not known.
    pub machine: Option<Machine>,
}

/// Counts those with the same key together, and sums up what is beyond `max`, by what they wait for. At most
/// twice `max` and one are left.
#[must_use]
pub fn bounded(counted: BTreeMap<Key, u32>, max: usize) -> Vec<Group> {
    let mut groups: Vec<Group> = counted.into_iter().map(|(key, sum)| Group { key, sum }).collect();
    // The largest first; the order of keys decides between equals, so that the result depends on nothing
    // else.
    groups.sort_by(|a, b| b.sum.cmp(&a.sum).then_with(|| a.key.cmp(&b.key)));
    let mut rest: BTreeMap<Arc<str>, u32> = BTreeMap::new();
    for group in groups.drain(groups.len().min(max)..) {
        let wait = match rest.len() < max || rest.contains_key(&group.key.wait) {
            true => group.key.wait,
            false => OTHERS.into(),
        };
        let sum = rest.entry(wait).or_default();
        *sum = sum.saturating_add(group.sum);
    }
    for (wait, sum) in rest {
        let key = Key::others(wait);
        match groups.iter_mut().find(|group| group.key == key) {
            Some(group) => group.sum = group.sum.saturating_add(sum),
            None => groups.push(Group { key, sum }),
        }
    }
    groups
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A key of this wait and statement.
    pub(crate) fn key(wait: &str, statement: &str) -> Key {
        Key {
            wait: wait.into(),
            query_id: 0,
            statement: statement.into(),
            user: "app".into(),
            application: "web".into(),
            host: "10.0.0.7".into(),
        }
    }

    #[test]
    fn the_rest_is_summed_up_and_nothing_is_lost() {
        let mut counted = BTreeMap::new();
        for n in 0..1_000_u32 {
            counted.insert(key(&format!("Lock:{}", n % 300), &format!("SELECT {n}")), 1 + n % 7);
        }
        let all: u32 = counted.values().sum();
        let groups = bounded(counted, GROUPS_MAX);
        assert!(groups.len() <= 2 * GROUPS_MAX + 1, "{}", groups.len());
        assert_eq!(groups.iter().map(|group| group.sum).sum::<u32>(), all);
        assert!(groups[..GROUPS_MAX].iter().all(|group| group.sum == 7), "the largest are told");
        let few = BTreeMap::from([(key("CPU", "a"), 2), (key("CPU", "b"), 3)]);
        assert_eq!(bounded(few, 2).len(), 2);
    }
}
