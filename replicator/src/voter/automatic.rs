//! Asks all voters whether the primary is gone, for `coordination::automatic` to judge.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use coordination::automatic::{Rules, Waits, decide};
use coordination::promotion::Grant;
use proto::RegionName;
use proto::messages::{self as m, control_request, control_response};
use tokio::task::JoinSet;

use super::{Voter, wire};

/// How long a voter may take to say what it knows.
const SAY: Duration = Duration::from_millis(900);

impl Voter {
    /// Whether this voter's region, which would grant `own` now, orders a failover to itself. The others are
    /// asked only once this one has not heard the primary for so long. `now_us` is the time since 1970.
    ///
    /// # Errors
    /// Why it does not.
    pub async fn wants_failover(
        self: &Arc<Self>,
        own: Grant,
        rules: Rules,
        now_us: i64,
    ) -> Result<(), Waits> {
        let judge = |heard: &BTreeMap<RegionName, Grant>| {
            decide(&self.me, &self.accepted(), &self.file, heard, rules, now_us)
        };
        let silent_us = own.silent_us;
        let mut heard: BTreeMap<RegionName, Grant> = [(self.me.clone(), own)].into();
        if silent_us < rules.after_us || !self.remembers() {
            return Err(Waits::Heard { silent: 0, voters: self.electorate().names().len() });
        }
        if judge(&heard) == Err(Waits::NotItsTurn) {
            return Err(Waits::NotItsTurn);
        }
        let mut asked = JoinSet::new();
        for voter in self.voters.iter().filter(|voter| voter.name != self.me) {
            let (this, name) = (self.clone(), voter.name.clone());
            asked.spawn(async move {
                let survey = control_request::Body::Survey(m::SurveyRequest {});
                match this.ask(&name, survey, SAY).await {
                    Ok(control_response::Body::Granted(granted)) => Some((name, wire::to_grant(&granted))),
                    _ => None,
                }
            });
        }
        while let Some(said) = asked.join_next().await {
            heard.extend(said.ok().flatten());
        }
        judge(&heard)
    }
}
