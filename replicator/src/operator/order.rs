//! What an operator orders: a promotion, a move of a region's head, other voters. What the voters are to
//! agree on is signed with the operator's key ([`crate::orders`]), and each step is told as it is done.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use coordination::{Electorate, Membership, Voters};
use proto::messages::{
    HeadMove, MoveHeadRequest, PromoteRequest, Promotion, RecordRequest, VotersRequest, VotersView,
};
use proto::{Epoch, NodeName, RegionName};
use runtime::clock::now;

use super::{Answer, Ask, Operator, OperatorError, PATIENCE, STEPS};
use crate::client::AskError;
use crate::config::RegionConfig;
use crate::orders;

/// How long a promotion may take; each of its steps has a deadline of its own.
const PROMOTION_PATIENCE: Duration = Duration::from_secs(90);

/// How long a change of the voters may take.
const VOTERS_PATIENCE: Duration = Duration::from_secs(45);

/// How long a host that serves may take to tell how long nobody took writes.
const TELLS_GAP: Duration = Duration::from_secs(2);

/// How long a host to which the head has moved may take until it takes writes: another one may have to.
const MOVED: Duration = Duration::from_secs(90);

/// How often it is looked whether it does.
const LOOK: Duration = Duration::from_millis(50);

impl Operator {
    /// Orders a region to lead; each step is told as it is recorded.
    ///
    /// # Errors
    /// When it is refused, cannot be done, or does not end in time.
    pub async fn promote(
        &self,
        region: &RegionName,
        request: PromoteRequest,
        tell: &(dyn Fn(&str) + Sync),
    ) -> Result<Promotion, OperatorError> {
        let own = self.region(region)?;
        let order = match request.dry_run {
            true => None,
            false => {
                let epoch = self.epoch_at(own).await.map_err(OperatorError::Promotion)?;
                let signed = orders::sign_promotion(&self.identity, region, &request, epoch);
                Some(signed.map_err(OperatorError::Unsigned)?)
            }
        };
        let asked = tokio::select! {
            asked = self.ask(own, Ask::Promote(PromoteRequest { order, ..request }), PROMOTION_PATIENCE) => asked,
            never = self.tell_steps(own, tell) => never,
        };
        match asked.map_err(OperatorError::Promotion)? {
            Answer::Promotion(promotion) => Ok(promotion),
            _ => Err(OperatorError::OtherAnswer("promote")),
        }
    }

    /// The epoch that region `own` has heard of.
    async fn epoch_at(&self, own: &RegionConfig) -> Result<Epoch, AskError> {
        let body = Ask::Record(RecordRequest { accepted: true });
        match self.ask(own, body, PATIENCE).await? {
            Answer::Record(record) => {
                let record = serde_json::from_slice::<coordination::Leadership>(&record);
                record.map(|record| record.epoch).map_err(|e| AskError::Refused(format!("its record: {e}")))
            }
            _ => Err(AskError::Refused("the daemon answered another question (record)".into())),
        }
    }

    /// Has the head of `region` move to its host `node`, or only looks whether it could; each step is told as
    /// it is done. Returns what the host answers that is the head at the end.
    ///
    /// # Errors
    /// When it is refused, comes to nothing, or nobody answers at the end.
    pub async fn move_head(
        &self,
        region: &RegionName,
        node: &NodeName,
        dry_run: bool,
        tell: &(dyn Fn(&str) + Sync),
    ) -> Result<HeadMove, OperatorError> {
        let own = self.region(region)?;
        let told = AtomicUsize::new(0);
        let order = MoveHeadRequest { node: node.to_string(), dry_run, watch: false };
        let asked = |source| OperatorError::Asked { region: region.clone(), source };
        let begun = tokio::select! {
            asked = self.ask(own, Ask::MoveHead(order.clone()), PROMOTION_PATIENCE) => asked,
            never = self.tell_move(own, &order, &told, tell) => never,
        };
        let Answer::HeadMove(begun) = begun.map_err(asked)? else {
            return Err(OperatorError::OtherAnswer("promote --node"));
        };
        tell_steps_of(&begun, &told, tell);
        if !begun.handed_over {
            return Ok(begun);
        }
        let since = now();
        let mut served = None;
        loop {
            let watch = Ask::MoveHead(MoveHeadRequest { watch: true, ..order.clone() });
            let ended = match self.ask(own, watch, PATIENCE).await {
                Ok(Answer::HeadMove(next)) if next.serves && !next.handed_over => Some(Ok(next)),
                Ok(_) | Err(AskError::NotHead(_)) => None,
                Err(e) => Some(Err(asked(e))),
            };
            match ended {
                // It tells how long nobody took writes a moment after it does; where it did not hear when
                // they ended, it does not.
                Some(Ok(next))
                    if next.head != begun.to
                        || next.gap_us > 0
                        || served.get_or_insert_with(now).elapsed() >= TELLS_GAP =>
                {
                    return Ok(HeadMove { from: begun.head, steps: begun.steps, ..next });
                }
                Some(Err(e)) if since.elapsed() >= MOVED => return Err(e),
                _ if since.elapsed() >= MOVED => return Err(OperatorError::NoHead(region.clone())),
                _ => tokio::time::sleep(LOOK).await,
            }
        }
    }

    /// Tells each step of a move of a region's head as it is done, for ever.
    async fn tell_move<T>(
        &self,
        own: &RegionConfig,
        order: &MoveHeadRequest,
        told: &AtomicUsize,
        tell: &(dyn Fn(&str) + Sync),
    ) -> T {
        loop {
            tokio::time::sleep(STEPS).await;
            let watch = Ask::MoveHead(MoveHeadRequest { watch: true, ..order.clone() });
            if let Ok(Answer::HeadMove(so_far)) = self.ask(own, watch, PATIENCE).await
                && so_far.to == order.node
                && !order.dry_run
            {
                tell_steps_of(&so_far, told, tell);
            }
        }
    }

    /// Tells each step of the promotion in progress as it is recorded, for ever.
    async fn tell_steps<T>(&self, own: &RegionConfig, tell: &(dyn Fn(&str) + Sync)) -> T {
        let (mut told, mut before) = (0, None);
        loop {
            tokio::time::sleep(STEPS).await;
            let asked = self.ask(own, Ask::Record(RecordRequest::default()), PATIENCE).await;
            let Ok(Answer::Record(record)) = asked else { continue };
            let Ok(record) = serde_json::from_slice::<coordination::Leadership>(&record) else { continue };
            let Some(promotion) = record.promotion else { continue };
            if before != Some(promotion.id) {
                (told, before) = (0, Some(promotion.id));
                tell(&format!(
                    "{} to {}, coordinated by {}",
                    promotion.mode, promotion.to, promotion.coordinator
                ));
            }
            for step in promotion.steps.iter().skip(told) {
                tell(&format!("  {:6} ms  {}", step.us / 1000, step.name));
            }
            told = promotion.steps.len();
        }
    }

    /// The voters, after one was added or removed if there is a `change`: the primary does that.
    ///
    /// # Errors
    /// When nobody answers, or the primary refuses.
    pub async fn voters(&self, change: Option<Membership>) -> Result<VotersView, OperatorError> {
        let record = self.record().await?;
        let request = match &change {
            None => VotersRequest::default(),
            Some(membership) => self.voters_request(&record, membership)?,
        };
        let region = record.primary;
        let asked = match self.config.region(&region) {
            Some(own) => self.ask(own, Ask::Voters(request), VOTERS_PATIENCE).await,
            None => return Err(self.region(&region).err().unwrap_or(OperatorError::OtherAnswer("voters"))),
        };
        match asked.map_err(|source| OperatorError::Asked { region, source })? {
            Answer::Voters(view) => Ok(view),
            _ => Err(OperatorError::OtherAnswer("voters")),
        }
    }

    /// The addition of `name`, which is a witness where the file says so.
    #[must_use]
    pub fn addition(&self, name: RegionName) -> Membership {
        let witness = self.config.witnesses.iter().any(|witness| witness.name == name);
        Membership::Add { name, witness }
    }

    fn voters_request(
        &self,
        record: &coordination::Leadership,
        membership: &Membership,
    ) -> Result<VotersRequest, OperatorError> {
        let places = self.config.voters().into_iter().map(|place| place.name);
        let (regions, witnesses) = places.partition(|name| self.config.region(name).is_some());
        let file = Electorate::of(Voters { regions, witnesses });
        let order = orders::sign_voters(&self.identity, record.electorate(&file), membership);
        let order = Some(order.map_err(OperatorError::Unsigned)?);
        Ok(match membership {
            Membership::Add { name, .. } => {
                VotersRequest { add: name.to_string(), order, ..VotersRequest::default() }
            }
            Membership::Remove { name } => {
                VotersRequest { remove: name.to_string(), order, ..VotersRequest::default() }
            }
        })
    }
}

/// Tells the steps of a move that were not told yet; `told` is how many were.
fn tell_steps_of(so_far: &HeadMove, told: &AtomicUsize, tell: &(dyn Fn(&str) + Sync)) {
    let steps = so_far.steps.iter();
    for step in steps.skip(told.fetch_max(so_far.steps.len(), Ordering::Relaxed)) {
        tell(&format!("  {:6} ms  {}", step.us / 1000, step.name));
    }
}
