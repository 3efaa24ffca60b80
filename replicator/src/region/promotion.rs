//! Promotions: a secondary becomes the primary.
//!
//! **Switchover**, by agreement with the primary, and nothing is lost. The region that shall lead asks the primary to hand over. The primary checks that this can succeed, stops its writer, sees the
//! last record applied over there, writes down the new epoch and its primary, and only then answers: from here on it is a
//! secondary, and will not lead the old epoch again whatever happens. The asking region writes down that it leads, promotes its
//! PostgreSQL and ships. What is interrupted in between goes on when the command is given again, or at the next start.
//!
//! **Failover**, without the primary. An epoch has one primary because each region promises it to one region only, on disk, and a
//! majority must promise. Who has promised answers the old primary no more; that acknowledges commits only while a majority has
//! answered within its lease. So when the lease has run out since the promises, it acknowledges nothing any more.

use std::io::Write;
use std::time::Duration;

use postgres::client::ReplicationClient;
use postgres::instance::{Instance, InstanceError};
use proto::messages::refusal::Kind;
use proto::messages::{
    GatherOpen, Granted, HandOverRequest, HandedOver, Open, PROTOCOL_VERSION, PromiseRequest, PromoteRequest,
    Promotion, PromotionStep, Refusal, RegionStatusRequest, control_request, control_response, open,
};
use proto::{Epoch, Lsn, RegionName};
use tokio::time::Instant;

use super::follower::Follower;
use super::leader::Leader;
use super::{Part, Region};
use crate::client;
use crate::config::{RegionConfig, Role};

/// How long the primary may take to hand over; it rolls back by itself before.
const HAND_OVER: Duration = Duration::from_secs(40);

/// How long a region may take to promise.
const PROMISE: Duration = Duration::from_millis(900);

/// How long another region may take to say whether the epoch is over, before a primary starts its writer.
const GLANCE: Duration = Duration::from_millis(300);

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

/// What was promised for a failover, and how long the old primary may still acknowledge.
struct Fence {
    majority: usize,
    lease: Duration,
    operators_word: bool,
    grants: Vec<(Granted, Option<RegionConfig>)>,
    refusals: Vec<String>,
    heard: Vec<String>,
    /// By then nobody who has promised can have answered the old primary within its lease.
    lease_over: Instant,
}

impl Fence {
    fn new(majority: usize, lease: Duration, own: Granted, operators_word: bool) -> Fence {
        let lease_over = lease_over(&own, lease);
        let (refusals, heard) = (Vec::new(), Vec::new());
        Fence { majority, lease, operators_word, grants: vec![(own, None)], refusals, heard, lease_over }
    }

    fn granted(&mut self, grant: Granted, region: RegionConfig) {
        // Any one of them may have been in the majority that answered last.
        self.lease_over = self.lease_over.max(lease_over(&grant, self.lease));
        self.heard.push(region.name.to_string());
        self.grants.push((grant, Some(region)));
    }

    fn refused(&mut self, region: &RegionConfig, why: &str) {
        self.heard.push(region.name.to_string());
        self.refusals.push(format!("{}: {why}", region.name));
    }

    /// Whether a majority has promised, or the operator has given his word.
    fn holds(&self) -> bool {
        self.grants.len() >= self.majority || self.operators_word
    }

    /// The old primary itself has promised, and stopped.
    fn stopped(&self) -> bool {
        self.grants.iter().any(|(grant, _)| grant.was_primary)
    }

    /// Whether everybody but the old primary was heard.
    fn is_complete(&self, old: &str, regions: &[RegionConfig]) -> bool {
        let others = regions.len() - 1 - usize::from(!self.heard.iter().any(|name| name == old));
        self.holds() && self.heard.len() >= others
    }

    /// Until when to wait; none when nobody needs to be waited for.
    fn waits_until(&self) -> Option<Instant> {
        (!self.stopped() && !self.operators_word).then_some(self.lease_over)
    }
}

/// When a lease is over that this region may have been the last to support.
#[allow(clippy::disallowed_methods, reason = "a driver that waits for a lease to end")]
fn lease_over(grant: &Granted, lease: Duration) -> Instant {
    Instant::now() + lease.saturating_sub(Duration::from_micros(grant.silent_us))
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
    pub(super) async fn promote(&self, request: PromoteRequest) -> Result<Promotion, Refusal> {
        match request.failover {
            true => self.fail_over(request).await,
            false => self.switch_over(request.dry_run).await,
        }
    }

    async fn switch_over(&self, dry_run: bool) -> Result<Promotion, Refusal> {
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
        let mut part = self.part.write().await;
        self.record_leading(epoch)?;
        steps.done("record the new epoch");
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
        self.remember(&promotion);
        Ok(promotion)
    }

    /// Promises to take nothing below `epoch`, which `candidate` will lead; a primary stops its writer first.
    pub(super) async fn promise(&self, candidate: &RegionName, epoch: u64) -> Result<Granted, Refusal> {
        let epoch = Epoch(epoch);
        let mut part = self.part.write().await;
        let state = self.state();
        let again = epoch == state.epoch && state.primary.as_ref() == Some(candidate);
        if epoch <= state.epoch && !again {
            let of =
                state.primary.as_ref().map(|primary| format!(", which {primary} leads")).unwrap_or_default();
            let reason = format!("epoch {} was seen here{of}", state.epoch);
            return Err(Refusal::new(Kind::StaleEpoch, reason));
        }
        let promised = |state: &mut super::RegionState| {
            (state.epoch, state.primary) = (epoch, Some(candidate.clone()));
        };
        let was_primary = matches!(&*part, Part::Leader(_)) && *candidate != self.own.name;
        if was_primary {
            let stepped_down = self.step_down(&mut part, promised).await;
            stepped_down.map_err(|e| Refusal::new(Kind::Failed, e.to_string()))?;
        }
        // On disk before it is given.
        self.record(promised).map_err(|e| Refusal::new(Kind::Failed, e.to_string()))?;
        let bounds = self.volume.bounds();
        let mut granted = Granted {
            has_data: false,
            timeline: bounds.timeline.0,
            durable_lsn: bounds.durable_lsn.0,
            silent_us: u64::MAX,
            primary_lsn: bounds.durable_lsn.0,
            was_primary,
        };
        if let Part::Follower(follower) = &*part {
            follower.interrupt().await;
            let _ = self.volume.settle().await;
            let (primary_lsn, answered) = follower.heard();
            granted.has_data = self.state().system_id.is_some() && !self.state().rejoining;
            granted.durable_lsn = self.volume.bounds().durable_lsn.0;
            granted.primary_lsn = granted.durable_lsn.max(primary_lsn.0);
            let silent = answered.map(|at| u64::try_from(at.elapsed().as_micros()).unwrap_or(u64::MAX));
            granted.silent_us = if was_primary { u64::MAX } else { silent.unwrap_or(u64::MAX) };
        }
        Ok(granted)
    }

    /// A primary whose epoch is over stops at once and waits to be seeded; `also` changes its record besides.
    pub(super) async fn step_down(
        &self,
        part: &mut Part,
        also: impl Fn(&mut super::RegionState),
    ) -> Result<(), super::RegionError> {
        let Part::Leader(leader) = part else { return Ok(()) };
        tracing::error!("this region's epoch is over: it stops leading, and follows the new primary");
        leader.stop_now().await;
        self.record(|state| {
            (state.role, state.primary, state.rejoining) = (Role::Secondary, None, true);
            also(state);
        })?;
        *part = Part::Follower(self.follow().await?);
        Ok(())
    }

    /// Leads without the old primary: a majority promises to follow nobody else, the redo that any survivor has is gathered,
    /// and what the old primary may have had besides is told.
    async fn fail_over(&self, request: PromoteRequest) -> Result<Promotion, Refusal> {
        let no = |reason: String| Refusal::new(Kind::Busy, reason);
        let mut steps = Steps::start();
        let follower = match &*self.part.read().await {
            Part::Follower(follower) if self.state().system_id.is_some() && !self.state().rejoining => {
                follower.clone()
            }
            Part::Leader(_) => return Err(no(format!("region {} is the primary already", self.own.name))),
            _ => return Err(no("this region has no data to lead with".into())),
        };
        let regions = self.config.regions.len();
        let majority = regions / 2 + 1;
        if majority == regions && regions > 1 && !request.old_primary_is_down {
            let reason = "with two regions there is no majority without the old primary. If you know that it does not run, \
                          and will not while this region is promoted, say --old-primary-is-down";
            return Err(no(reason.into()));
        }
        let state = self.state();
        let from = self.present_primary(&state.primary).map(|own| own.name.to_string()).unwrap_or_default();
        let epoch = match state.primary.as_ref() == Some(&self.own.name) {
            // An earlier attempt got so far.
            true => state.epoch.0,
            false => state.epoch.0 + 1,
        };
        let mut promotion = Promotion {
            from,
            to: self.own.name.to_string(),
            mode: "failover".into(),
            epoch,
            dry_run: request.dry_run,
            ..Promotion::default()
        };
        if request.dry_run {
            let (primary_lsn, _) = follower.heard();
            promotion.fork_lsn = self.volume.bounds().durable_lsn.0;
            promotion.lost_to_lsn = primary_lsn.0.max(promotion.fork_lsn);
            return Ok(promotion);
        }
        // 1. Fence: nobody who promises answers the old primary any more.
        let own = self.promise(&self.own.name.clone(), epoch).await?;
        let mut asking = tokio::task::JoinSet::new();
        for region in self.config.regions.iter().filter(|region| region.name != self.own.name) {
            let (endpoint, cluster_id, region) = (self.endpoint.clone(), self.cluster_id, region.clone());
            let body = control_request::Body::Promise(PromiseRequest { epoch });
            asking.spawn(async move {
                let answer = client::request(&endpoint, cluster_id, &region, body, PROMISE).await;
                (answer, region)
            });
        }
        let lease = self.config.lease + self.config.lease / 10;
        let mut fence = Fence::new(majority, lease, own, request.old_primary_is_down);
        // Every survivor is heard, as it may have redo that nobody else has; the old primary is not waited for beyond its lease.
        while !fence.is_complete(&promotion.from, &self.config.regions) {
            match asking.join_next().await {
                Some(Ok((Ok(control_response::Body::Granted(grant)), region))) => {
                    fence.granted(grant, region)
                }
                Some(Ok((Ok(_), region))) => fence.refused(&region, "it gave another answer"),
                Some(Ok((Err(e), region))) => fence.refused(&region, &e.to_string()),
                Some(Err(_)) | None => break,
            }
        }
        if !fence.holds() {
            return Err(no(format!(
                "{} of {regions} regions promised to follow, and {majority} are needed. {}",
                fence.grants.len(),
                fence.refusals.join("; ")
            )));
        }
        steps.done("fence the old primary");
        // 2. Without its own word, the old primary may acknowledge until its lease is over.
        while let Some(until) = fence.waits_until() {
            tokio::select! {
                () = tokio::time::sleep_until(until) => {
                    steps.done("wait for its lease to end");
                    break;
                }
                Some(answer) = asking.join_next() => {
                    if let Ok((Ok(control_response::Body::Granted(grant)), region)) = answer {
                        fence.granted(grant, region);
                    }
                }
            }
        }
        let granted = &fence.grants;
        let stopped = fence.stopped();
        // 3. Gather what another survivor has and this region lacks.
        let mine = self.volume.bounds();
        let ahead = granted.iter().filter(|(grant, _)| grant.has_data && grant.timeline == mine.timeline.0);
        let best = ahead.max_by_key(|(grant, _)| grant.durable_lsn);
        if let Some((grant, Some(region))) = best
            && grant.durable_lsn > mine.durable_lsn.0
        {
            self.gather(&follower, region, epoch, mine.durable_lsn).await.map_err(no)?;
            steps.done("gather what another survivor has");
        }
        let end_lsn = self.volume.bounds().durable_lsn;
        if tokio::time::timeout(TAKE_OVER, follower.until_applied(end_lsn)).await.is_err() {
            return Err(no(format!(
                "this region's standby has not applied {end_lsn} yet; give the command again"
            )));
        }
        steps.done("apply everything");
        // 4. Lead.
        let mut part = self.part.write().await;
        self.record_leading(Epoch(epoch))?;
        match tokio::time::timeout(TAKE_OVER, self.take_over(&follower, &mut part)).await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => return Err(no(e)),
            Err(_) => return Err(no("PostgreSQL was told to promote and does not take writes yet".into())),
        }
        drop(part);
        steps.done("promote PostgreSQL");
        self.until_writable().await;
        steps.done("read the new writer");
        promotion.fork_lsn = end_lsn.0;
        promotion.lost_to_lsn =
            granted.iter().map(|(grant, _)| grant.primary_lsn).max().unwrap_or(0).max(end_lsn.0);
        // From the last word of the old primary until it could acknowledge no more.
        let silent_us = granted.iter().map(|(grant, _)| grant.silent_us).min().unwrap_or(u64::MAX);
        let lease_us = u64::try_from(self.config.lease.as_micros()).unwrap_or(u64::MAX);
        promotion.lost_us = if stopped { 0 } else { silent_us.min(lease_us) };
        promotion.steps = steps.into_messages();
        tracing::warn!("region {} leads epoch {epoch} from {end_lsn} on, after a failover", self.own.name);
        self.remember(&promotion);
        Ok(promotion)
    }

    async fn gather(
        &self,
        follower: &Follower,
        from: &RegionConfig,
        epoch: u64,
        from_lsn: Lsn,
    ) -> Result<(), String> {
        let gathering = async {
            let unreachable = |e: std::io::Error| e.to_string();
            let mut addresses = tokio::net::lookup_host(&from.advertise).await.map_err(unreachable)?;
            let address = addresses.next().ok_or("no address")?;
            let connection =
                self.endpoint.connect(address, &from.name, PROMISE).await.map_err(|e| e.to_string())?;
            let purpose = open::Purpose::Gather(GatherOpen { epoch, from_lsn: from_lsn.0 });
            let cluster_id = self.cluster_id.0.to_vec().into();
            let open = Open { protocol: PROTOCOL_VERSION, cluster_id, purpose: Some(purpose) };
            let stream = connection.open_stream(&open).await.map_err(|e| e.to_string())?;
            follower.gather(stream).await
        };
        let gathered = tokio::time::timeout(TAKE_OVER, gathering).await;
        let gathered = gathered.unwrap_or_else(|_| Err("not in time".into()));
        gathered
            .map_err(|e| format!("gathering the redo that {} has: {e}; give the command again", from.name))
    }

    /// Writes down that this region leads `epoch`, unless that was promised to another meanwhile. The part is held, so that no
    /// promise is given in between.
    fn record_leading(&self, epoch: Epoch) -> Result<(), Refusal> {
        let state = self.state();
        let mine = state.primary.as_ref() == Some(&self.own.name);
        if state.epoch > epoch || state.epoch == epoch && !mine {
            let other = state.primary.map(|name| name.to_string()).unwrap_or_default();
            let reason = format!("epoch {} was promised to {other} meanwhile", state.epoch);
            return Err(Refusal::new(Kind::StaleEpoch, reason));
        }
        let recorded = self.record(|state| {
            (state.role, state.epoch, state.primary) = (Role::Primary, epoch, Some(self.own.name.clone()));
        });
        recorded.map_err(|e| Refusal::new(Kind::Failed, e.to_string()))
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

    /// Adds a promotion to the region's history.
    fn remember(&self, promotion: &Promotion) {
        let line = format!("{} {}\n", volume::now_us(), crate::render::promotion_json(promotion));
        let path = self.layout.promotions();
        let written =
            std::fs::OpenOptions::new().create(true).append(true).open(&path).and_then(|mut file| {
                file.write_all(line.as_bytes())?;
                file.sync_all()
            });
        if let Err(e) = written {
            tracing::warn!("{}: {e}; the promotion is not in the history", path.display());
        }
    }

    /// The highest epoch above this region's own that another region has seen, of those that answer soon.
    pub(super) async fn newer_epoch(&self) -> Option<Epoch> {
        let mut asking = tokio::task::JoinSet::new();
        for region in self.config.regions.iter().filter(|region| region.name != self.own.name) {
            let (endpoint, cluster_id, region) = (self.endpoint.clone(), self.cluster_id, region.clone());
            let body = control_request::Body::RegionStatus(RegionStatusRequest {});
            asking.spawn(async move { client::request(&endpoint, cluster_id, &region, body, GLANCE).await });
        }
        let mut newest = None;
        while let Some(answer) = asking.join_next().await {
            if let Ok(Ok(control_response::Body::RegionStatus(view))) = answer {
                newest = newest.max(Some(Epoch(view.epoch)));
            }
        }
        newest.filter(|epoch| *epoch > self.state().epoch)
    }

    fn present_primary(&self, known: &Option<RegionName>) -> Option<RegionConfig> {
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
