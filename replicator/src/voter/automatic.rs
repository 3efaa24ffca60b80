//! Asks all voters whether the primary is gone, for `coordination::automatic` to judge.

use std::collections::BTreeMap;
use std::sync::Arc;

use coordination::automatic::{Rules, Waits, decide};
use coordination::promotion::Grant;
use proto::{Epoch, RegionName};
use runtime::clock::micros;

use super::Voter;

impl Voter {
    /// Whether this voter's region orders a failover to itself, and in which epoch. The others are asked only
    /// once this one has not heard the primary for so long. `now_us` is the time since 1970.
    ///
    /// # Errors
    /// Why it does not.
    pub async fn wants_failover(self: &Arc<Self>, rules: Rules, now_us: i64) -> Result<Epoch, Waits> {
        let judge = |heard: &BTreeMap<RegionName, Grant>| {
            decide(&self.me, &self.accepted(), &self.file, heard, rules, now_us)
        };
        if micros(self.silent()) < rules.after_us || !self.remembers() {
            return Err(Waits::Heard { silent: 0, voters: self.electorate().names().len() });
        }
        if judge(&BTreeMap::new()) == Err(Waits::NotItsTurn) {
            return Err(Waits::NotItsTurn);
        }
        judge(&self.survey().await)
    }
}
