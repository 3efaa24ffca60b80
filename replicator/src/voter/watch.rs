//! Keeps a voter's knowledge fresh, and goes on with a promotion whose coordinator is gone.

use std::sync::Arc;
use std::time::Duration;

use coordination::Promotion;
use coordination::leadership::Change;
use proto::messages::{self as m, control_request, control_response};
use tokio::time::Instant;

use runtime::clock::now;

use super::Voter;

/// How often a voter looks.
const LOOK: Duration = Duration::from_millis(100);

/// How long a coordinator may take to say that it is at work.
const SAY: Duration = Duration::from_millis(500);

/// For how long a coordinator must not have said so before another voter goes on; each voter waits a second
/// longer than the one before it in the file, so that they do not all begin.
const GONE: Duration = Duration::from_secs(2);

/// How long something may be accepted here before it is found out whether it is agreed.
const UNSURE_MS: u64 = 700;

impl Voter {
    /// Watches for ever, and goes on with a promotion whose coordinator is gone.
    pub async fn watch(self: Arc<Self>) {
        self.look_after(true).await;
    }

    /// Watches for ever, and takes no promotion over: a witness keeps its knowledge fresh, and shapes
    /// nothing. A promotion that it took over would stand still: nobody carries out its steps.
    pub async fn watch_only(self: Arc<Self>) {
        self.look_after(false).await;
    }

    async fn look_after(self: Arc<Self>, promotions: bool) {
        let (mut unsure, mut silent) = (Since::default(), Since::default());
        while !self.remembers() {
            self.recall(false).await;
            if !self.remembers() {
                tokio::time::sleep(LOOK * 3).await;
            }
        }
        loop {
            let wait = Duration::from_millis(UNSURE_MS + self.draw_below(UNSURE_MS));
            if unsure.holds_for(self.is_unsure(), wait) {
                // A voter that was just started asks at once, and then again and again.
                let _ = self.change(&Change::Read).await;
                unsure = Since::default();
            }
            self.settle().await;
            if let Some(promotion) = self.accepted().promotion {
                let gone = if !promotions || !self.electorate().may_lead(&self.me) {
                    // It may be over without this voter having heard so: the coordinator tells.
                    self.is_at_work(&promotion).await;
                    false
                } else if promotion.coordinator == self.me {
                    // It was restarted, or is being told so just now.
                    self.coordinates() != promotion.id && self.knows_agreed(&promotion)
                } else {
                    silent.holds_for(!self.is_at_work(&promotion).await, GONE + self.rank())
                };
                if gone {
                    silent = Since::default();
                    self.take_charge(&promotion).await;
                }
            } else {
                silent = Since::default();
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn is_unsure(&self) -> bool {
        let accepted = self.kept.get().acceptor.accepted().number;
        self.agreed.borrow().as_ref().is_none_or(|agreed| agreed.number < accepted)
    }

    fn knows_agreed(&self, promotion: &Promotion) -> bool {
        let agreed = self.agreed.borrow();
        agreed.as_ref().and_then(|agreed| agreed.record.promotion.as_ref()) == Some(promotion)
    }

    fn rank(&self) -> Duration {
        let rank = self.voters.iter().position(|voter| voter.name == self.me).unwrap_or(0);
        Duration::from_secs(u64::try_from(rank).unwrap_or(0))
    }

    /// Whether the coordinator says that it coordinates this promotion. What it says is agreed is looked
    /// into.
    async fn is_at_work(self: &Arc<Self>, promotion: &Promotion) -> bool {
        let body = control_request::Body::Survey(m::SurveyRequest {});
        let Ok(control_response::Body::Granted(granted)) = self.ask(&promotion.coordinator, body, SAY).await
        else {
            return false;
        };
        if let Some(agreed) = &granted.agreed
            && let Err(refusal) = self.answer_learn(&promotion.coordinator, agreed)
        {
            tracing::warn!(
                "{} says that something is agreed that cannot be: {}",
                promotion.coordinator,
                refusal.reason
            );
        }
        granted.coordinates == promotion.id
    }

    async fn take_charge(self: &Arc<Self>, promotion: &Promotion) {
        let Promotion { id, attempt, .. } = *promotion;
        let change = if promotion.coordinator == self.me {
            Change::Read
        } else {
            Change::TakeCharge { id, attempt, by: self.me.clone() }
        };
        match self.change(&change).await {
            Ok(record)
                if record.promotion.as_ref().is_some_and(|p| p.id == id && p.coordinator == self.me) =>
            {
                tracing::warn!(
                    "going on with the {} to {}, which {} coordinated",
                    promotion.mode,
                    promotion.to,
                    promotion.coordinator
                );
                self.coordinate(id);
            }
            Ok(_) => {}
            // It is over, or another voter goes on with it: what that is, is read.
            Err(_) => drop(self.change(&Change::Read).await),
        }
    }
}

/// Since when something holds.
#[derive(Debug, Default)]
struct Since(Option<Instant>);

impl Since {
    fn holds_for(&mut self, holds: bool, wait: Duration) -> bool {
        if !holds {
            self.0 = None;
            return false;
        }
        self.0.get_or_insert_with(now).elapsed() >= wait
    }
}
