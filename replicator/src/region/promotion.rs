//! Switchover: a secondary becomes the primary by agreement with the one that is, and nothing is lost.
//!
//! The region that shall lead asks the primary to hand over. The primary checks that this can succeed, stops its writer, sees the
//! last record applied over there, writes down the new epoch and its primary, and only then answers: from here on it is a
//! secondary, and will not lead the old epoch again whatever happens. The asking region writes down that it leads, promotes its
//! PostgreSQL and ships. What is interrupted in between goes on when the command is given again, or at the next start.

use std::time::Duration;

use postgres::client::ReplicationClient;
use postgres::instance::{Instance, InstanceError};
use proto::messages::refusal::Kind;
use proto::messages::{
    HandOverRequest, HandedOver, Promotion, PromotionStep, Refusal, control_request, control_response,
};
use proto::{Epoch, Lsn, RegionName};
use tokio::time::Instant;

use super::follower::Follower;
use super::leader::Leader;
use super::{Part, Region};
use crate::client;
use crate::config::Role;

/// How long the primary may take to hand over; it rolls back by itself before.
const HAND_OVER: Duration = Duration::from_secs(40);

/// How long this region's standby may take to have everything, and to take writes.
const TAKE_OVER: Duration = Duration::from_secs(20);

/// The steps of a promotion and their times.
#[derive(Debug)]
pub struct Steps {
    since: Instant,
    done: Vec<(&'static str, Duration)>,
}

impl Steps {
    /// None yet.
    #[must_use]
    #[allow(clippy::disallowed_methods, reason = "a driver that times what it does")]
    pub fn start() -> Steps {
        Steps { since: Instant::now(), done: Vec::new() }
    }

    /// The step `name` is done, which began when the one before it ended.
    #[allow(clippy::disallowed_methods, reason = "a driver that times what it does")]
    pub fn done(&mut self, name: &'static str) {
        let now = Instant::now();
        tracing::info!("promotion: {name}, {} ms", (now - self.since).as_millis());
        self.done.push((name, now - self.since));
        self.since = now;
    }

    /// As they are told.
    #[must_use]
    pub fn into_messages(self) -> Vec<PromotionStep> {
        let us = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.done.into_iter().map(|(name, time)| PromotionStep { name: name.into(), us: us(time) }).collect()
    }
}

/// Promotes a running standby, and waits until it is a writer.
///
/// # Errors
/// When it cannot be told.
pub async fn promote(instance: &Instance) -> Result<(), InstanceError> {
    let telling = instance.clone();
    let told = tokio::task::spawn_blocking(move || telling.promote()).await;
    told.map_err(|e| InstanceError::Program { program: "pg_ctl", output: e.to_string() })??;
    let connection = instance.local_connection();
    // A promoted PostgreSQL has removed its signal, and is on a timeline of its own.
    while instance.is_standby() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    while ReplicationClient::connect(&connection).await.is_err() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}

impl Region {
    /// The primary's part: hands over to `to`, which will lead `request.epoch`.
    pub(super) async fn hand_over(
        &self,
        to: &RegionName,
        request: HandOverRequest,
    ) -> Result<HandedOver, Refusal> {
        let busy = |reason: String| Refusal::new(Kind::Busy, reason);
        let epoch = Epoch(request.epoch);
        let mut part = self.part.write().await;
        let state = self.state();
        if let Part::Follower(_) = &*part
            && state.epoch == epoch
            && state.primary.as_ref() == Some(to)
        {
            // It was handed over, and the answer was lost.
            let bounds = self.volume.bounds();
            return Ok(HandedOver {
                end_lsn: bounds.durable_lsn.0,
                timeline: bounds.timeline.0,
                ..HandedOver::default()
            });
        }
        let Part::Leader(leader) = &mut *part else {
            return Err(busy(format!("region {} is not the primary", self.own.name)));
        };
        if epoch <= state.epoch {
            let reason = format!("epoch {epoch} is over; this primary leads {}", state.epoch);
            return Err(Refusal::new(Kind::StaleEpoch, reason));
        }
        if let Some(why) = leader.hinders(to) {
            return Err(busy(why));
        }
        if request.dry_run {
            return Ok(HandedOver::default());
        }
        tracing::info!("handing over to region {to}, which will lead epoch {epoch}");
        let handed_over = match leader.hand_over(to, &self.volume).await {
            Ok(handed_over) => handed_over,
            Err(why) => {
                tracing::error!("not handed over: {why}; leading on");
                leader.stop().await;
                *part = Part::Leader(Box::new(self.lead(None).await.map_err(|e| busy(e.to_string()))?));
                return Err(busy(format!("{why}; region {} leads on", self.own.name)));
            }
        };
        // From here on this region never leads the old epoch again.
        let recorded = self.record(|state| {
            (state.role, state.epoch, state.primary) = (Role::Secondary, epoch, Some(to.clone()));
        });
        if let Err(e) = recorded {
            leader.stop().await;
            *part = Part::Leader(Box::new(self.lead(None).await.map_err(|e| busy(e.to_string()))?));
            return Err(busy(format!("{e}; region {} leads on", self.own.name)));
        }
        leader.stop().await;
        *part = Part::Follower(self.follow().await.map_err(|e| busy(e.to_string()))?);
        Ok(handed_over)
    }

    /// The part of the region that shall lead.
    pub(super) async fn promote(&self, dry_run: bool) -> Result<Promotion, Refusal> {
        let no = |reason: String| Refusal::new(Kind::Busy, reason);
        let follower = match &*self.part.read().await {
            Part::Follower(follower) => follower.clone(),
            Part::Leader(_) => return Err(no(format!("region {} is the primary already", self.own.name))),
            Part::Starting => return Err(no("this region is starting; try again in a moment".into())),
        };
        let state = self.state();
        let from = self.present_primary(&state.primary).ok_or_else(|| no("no primary is known".into()))?;
        let mut promotion = Promotion {
            from: from.name.to_string(),
            to: self.own.name.to_string(),
            mode: "switchover".into(),
            epoch: state.epoch.0 + 1,
            dry_run,
            ..Promotion::default()
        };
        if state.primary.as_ref() == Some(&self.own.name) {
            // Interrupted between the record and the promotion.
            promotion.epoch = state.epoch.0;
        }
        let mut steps = Steps::start();
        let ask = |dry_run| {
            let request = HandOverRequest { epoch: promotion.epoch, dry_run };
            let body = control_request::Body::HandOver(request);
            client::request(&self.endpoint, self.cluster_id, &from, body, HAND_OVER)
        };
        let unwilling = |e: client::AskError| {
            no(format!("{}: {e}. Nothing was changed by region {}", from.name, self.own.name))
        };
        ask(true).await.map_err(unwilling)?;
        steps.done("check that it can succeed");
        if dry_run {
            promotion.steps = steps.into_messages();
            return Ok(promotion);
        }
        let handed_over = match ask(false).await.map_err(unwilling)? {
            control_response::Body::HandedOver(handed_over) => handed_over,
            _ => return Err(no(format!("{} gave another answer", from.name))),
        };
        steps.done("hand over");
        let end_lsn = Lsn(handed_over.end_lsn);
        let applied = follower.until_applied(end_lsn);
        if tokio::time::timeout(TAKE_OVER, applied).await.is_err() {
            let reason =
                format!("this region's standby has not applied {end_lsn} yet; give the command again");
            return Err(no(reason));
        }
        let epoch = Epoch(promotion.epoch);
        let recorded = self.record(|state| {
            (state.role, state.epoch, state.primary) = (Role::Primary, epoch, Some(self.own.name.clone()));
        });
        recorded.map_err(|e| no(e.to_string()))?;
        steps.done("record the new epoch");
        let mut part = self.part.write().await;
        let taken = self.take_over(&follower, &mut part);
        match tokio::time::timeout(TAKE_OVER, taken).await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => return Err(no(e)),
            Err(_) => return Err(no("PostgreSQL was told to promote and does not take writes yet".into())),
        }
        drop(part);
        steps.done("promote PostgreSQL");
        self.until_writable().await;
        steps.done("read the new writer");
        promotion.fork_lsn = end_lsn.0;
        if handed_over.stopped_us > 0 {
            promotion.write_gap_us = (volume::now_us() - handed_over.stopped_us).max(0).unsigned_abs();
        }
        let mine = steps.into_messages();
        let handing = mine.iter().position(|step| step.name == "hand over").unwrap_or(0);
        promotion.steps.extend_from_slice(&mine[..handing]);
        promotion.steps.extend(handed_over.steps);
        promotion.steps.extend_from_slice(&mine[handing + 1..]);
        tracing::info!("region {} leads epoch {epoch} from {end_lsn} on", self.own.name);
        Ok(promotion)
    }

    async fn take_over(&self, follower: &Follower, part: &mut Part) -> Result<(), String> {
        let engine = follower.give_engine().await.ok_or("this region's standby does not run")?;
        promote(&self.instance).await.map_err(|e| e.to_string())?;
        follower.stop().await;
        *part = Part::Leader(Box::new(self.lead(Some(engine)).await.map_err(|e| e.to_string())?));
        Ok(())
    }

    /// Waits until the new writer's commits can return.
    async fn until_writable(&self) {
        let reading = async {
            loop {
                if let Part::Leader(leader) = &*self.part.read().await
                    && leader.reads()
                {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        // The writer takes writes; that its reader is slow to connect shows in `status`.
        let _ = tokio::time::timeout(TAKE_OVER, reading).await;
    }

    fn present_primary(&self, known: &Option<RegionName>) -> Option<crate::config::RegionConfig> {
        let regions = &self.config.regions;
        let others = || regions.iter().filter(|region| region.name != self.own.name);
        let recorded = known.as_ref().and_then(|name| others().find(|region| region.name == *name));
        recorded.or_else(|| others().find(|region| region.role == Role::Primary)).cloned()
    }
}

impl Leader {
    /// Whether the writer's redo is being read: then commits return.
    fn reads(&self) -> bool {
        self.rows("", String::new()).0.state == "streaming"
    }
}
