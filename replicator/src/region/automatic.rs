//! Orders a failover to this region when the primary's region is gone, where the file asks for that.

use std::sync::Arc;
use std::time::Duration;

use coordination::automatic::Rules;
use proto::Epoch;
use proto::messages::PromoteRequest;
use runtime::clock::{micros, wall_us};

use super::Region;
use super::order::ByItself;
use crate::audit::chain::Deed;
use crate::events::Kind;

/// How often it is looked.
const LOOK: Duration = Duration::from_millis(250);

/// The wait after an order that did not succeed, at first and at most: it doubles.
const AGAIN: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(60)];

impl Region {
    /// Looks for ever whether the primary's region is gone.
    pub(super) async fn fail_over_when_gone(self: Arc<Self>) {
        let (mut again, mut told) = (AGAIN[0], String::new());
        loop {
            tokio::time::sleep(LOOK).await;
            let failover = self.in_force().failover;
            if !failover.automatic {
                continue;
            }
            let rules = Rules { after_us: micros(failover.after), loss_max_bytes: failover.max_loss_bytes };
            match self.voter.wants_failover(rules, wall_us()).await {
                Ok(epoch) => {
                    again = if self.fail_over(epoch, rules).await { AGAIN[0] } else { again };
                    tokio::time::sleep(again).await;
                    again = (again * 2).min(AGAIN[1]);
                }
                Err(why) if why.needs_operator() => {
                    if told != why.to_string() {
                        told = why.to_string();
                        let text =
                            format!("region {}: the primary's region is gone, and {told}", self.own.name);
                        tracing::error!("{text}");
                        self.journal.note(Kind::OperatorNeeded, text);
                    }
                }
                Err(why) => {
                    tracing::debug!("no failover is ordered: {why}");
                    (again, told) = (AGAIN[0], String::new());
                }
            }
        }
    }

    /// Orders it in `epoch`, and waits for its end; says whether it succeeded.
    async fn fail_over(&self, epoch: Epoch, rules: Rules) -> bool {
        let (me, primary) = (&self.own.name, self.voter.accepted().primary);
        let text = format!(
            "region {primary}: a majority of the voters has not heard it for {} s; region {me} orders a failover to itself",
            rules.after_us / 1_000_000
        );
        tracing::warn!("{text}");
        self.journal.note(Kind::FailoverOrdered, text);
        let request = PromoteRequest { failover: true, ..PromoteRequest::default() };
        let deed = Deed { role: "region".into(), name: me.to_string(), ..Deed::default() };
        let (what, detail) = ("promote".to_owned(), "failover, by itself".to_owned());
        self.audit.keep(Deed { what, detail, outcome: "begun".into(), ..deed }).await;
        match self.order(request, Some(ByItself { epoch, loss_max_bytes: rules.loss_max_bytes })).await {
            Ok(_) => true,
            Err(refusal) => {
                tracing::warn!("the failover to region {me}: {}; it is looked again", refusal.reason);
                false
            }
        }
    }
}
