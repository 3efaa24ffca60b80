//! A region's part in promotions: what it does when the record of who leads changes, and what coordinators ask of it.
//!
//! The record is agreed on by the voters ([`crate::voter`]); [`Region::reconcile`] makes the region's part what the record says, and is
//! the only place where a region begins to lead. What the record forbids is obeyed before it is accepted ([`Region::vote`]): so when a
//! majority has accepted that a primary is shut out, none of them answers it any more, and its lease ends.

use std::time::Duration;

use coordination::promotion::Grant;
use coordination::record::{Change, Order, Past};
use coordination::{Mode, Promotion, Record, Standing, Step};
use postgres::client::ReplicationClient;
use postgres::instance::{Instance, InstanceError};
use proto::messages::refusal::Kind;
use proto::messages::{
    self as m, GatherOpen, HandOverRequest, HandedOver, Open, PROTOCOL_VERSION, Refusal, open,
};
use proto::{Epoch, Lsn, RegionName, Timeline};
use tokio::time::Instant;

use super::follower::Follower;
use super::{Part, Region, RegionError};
use crate::client;
use crate::config::{RegionConfig, Role};
use crate::voter::wire;

/// How long another region may take to take a connection.
const CONNECT: Duration = Duration::from_millis(900);

/// How long the primary may take to say whether it could hand over.
const ASK: Duration = Duration::from_secs(3);

/// How long this region's standby may take to have everything, and to take writes.
const TAKE_OVER: Duration = Duration::from_secs(20);

/// How long an operator's command waits for the promotion that it began.
const ORDERED: Duration = Duration::from_secs(80);

/// The steps of handing over, and their times.
#[derive(Debug)]
pub struct Steps {
    since: Instant,
    done: Vec<m::PromotionStep>,
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
    pub fn done(&mut self, name: &str) {
        let now = Instant::now();
        tracing::info!("promotion: {name}, {} ms", (now - self.since).as_millis());
        self.done.push(m::PromotionStep { name: name.into(), us: us(now - self.since) });
        self.since = now;
    }

    /// As they are told.
    #[must_use]
    pub fn into_messages(self) -> Vec<m::PromotionStep> {
        self.done
    }
}

fn us(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn busy(reason: impl Into<String>) -> Refusal {
    Refusal::new(Kind::Busy, reason)
}

/// The timeline that an epoch begins: so no two regions ever begin one with the same number.
pub(super) fn timeline_of(epoch: Epoch) -> Timeline {
    Timeline(u32::try_from(epoch.0).unwrap_or(u32::MAX))
}

/// Promotes a running standby to the writer of `epoch`, and waits until it is one.
///
/// # Errors
/// When it cannot be told.
pub async fn promote(instance: &Instance, epoch: Epoch) -> Result<(), InstanceError> {
    let telling = instance.clone();
    let timeline = timeline_of(epoch);
    let told = tokio::task::spawn_blocking(move || telling.promote(timeline)).await;
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
    /// Makes the region's part what the record says.
    pub(super) async fn reconcile(&self) -> Result<(), RegionError> {
        let Some(standing) = self.voter.standing() else { return Ok(()) };
        let mut part = self.part.write().await;
        match (standing, &mut *part) {
            (Standing::Leads, Part::Leader(leader)) if leader.has_handed_over() => {
                if !self.is_handing_over() {
                    tracing::warn!("the switchover was rolled back: this region leads on");
                    leader.stop().await;
                    self.lead_again(&mut part).await?;
                }
            }
            (Standing::Leads | Standing::TakesOver, Part::Leader(leader)) => {
                leader.acknowledge(standing == Standing::Leads);
            }
            // A writer that was stopped for a switchover stays so until that is decided.
            (Standing::Leads, Part::Follower(_)) if self.is_handing_over() => {}
            (Standing::Leads | Standing::TakesOver, Part::Follower(follower)) => {
                let follower = follower.clone();
                let crashed_primary = self.state().rejoining && !self.instance.is_standby();
                if crashed_primary || self.instance.has_begun(timeline_of(self.state().epoch())) {
                    // It had stopped, or followed, for a promotion that was not agreed on, or rolled back.
                    follower.stop().await;
                    self.lead_again(&mut part).await?;
                } else {
                    self.take_over(&follower, &mut part).await?;
                }
            }
            (Standing::Leads | Standing::TakesOver, Part::Starting) => {
                // A writer that was stopped for a switchover stays so until that is decided.
                let stopped = self.state().role == Role::Secondary && self.is_handing_over();
                if !stopped {
                    self.lead_again(&mut part).await?;
                }
            }
            (Standing::Follows | Standing::Fenced, Part::Leader(leader)) => {
                if leader.has_handed_over() {
                    leader.stop().await;
                    *part = Part::Follower(self.follow().await?);
                } else {
                    self.step_down(&mut part).await?;
                }
            }
            (Standing::Follows | Standing::Fenced, Part::Starting) => {
                let state = self.state();
                if state.role == Role::Primary && state.system_id.is_some() {
                    let epoch = state.epoch();
                    tracing::error!("epoch {epoch} has another primary: this region does not lead any more");
                    self.record(|state| (state.role, state.rejoining) = (Role::Secondary, true))?;
                }
                *part = Part::Follower(self.follow().await?);
            }
            (Standing::Follows | Standing::Fenced, Part::Follower(_)) => {}
        }
        Ok(())
    }

    /// Whether the record says that this region's writer is to be stopped for a switchover.
    fn is_handing_over(&self) -> bool {
        let handing = |promotion: Promotion| promotion.step == Step::HandOver;
        self.voter.accepted().promotion.is_some_and(handing)
    }

    async fn lead_again(&self, part: &mut Part) -> Result<(), RegionError> {
        self.record(|state| (state.role, state.rejoining) = (Role::Primary, false))?;
        *part = Part::Leader(Box::new(self.lead(None).await?));
        Ok(())
    }

    /// The standby becomes the writer.
    async fn take_over(&self, follower: &Follower, part: &mut Part) -> Result<(), RegionError> {
        let taking = async {
            // A coordinator that was overtaken may still have it gather.
            follower.interrupt().await;
            self.record(|state| state.role = Role::Primary)?;
            if follower.runs().await {
                // What is in the volume and not in PostgreSQL would be cut off.
                follower.until_applied(self.volume.bounds().durable_lsn).await;
            }
            let Some(engine) = follower.give_engine().await else {
                // An earlier attempt was not finished, or the standby does not run.
                follower.stop().await;
                return self.lead_again(part).await;
            };
            promote(&self.instance, self.state().epoch()).await?;
            follower.stop().await;
            *part = Part::Leader(Box::new(self.lead(Some(engine)).await?));
            Ok::<(), RegionError>(())
        };
        match tokio::time::timeout(TAKE_OVER, taking).await {
            Ok(taken) => taken,
            Err(_) => {
                tracing::error!("PostgreSQL was told to promote and does not take writes yet");
                Ok(())
            }
        }
    }

    /// A primary whose epoch is over, or about to be, stops at once, and waits to be brought back.
    async fn step_down(&self, part: &mut Part) -> Result<(), RegionError> {
        let Part::Leader(leader) = part else { return Ok(()) };
        tracing::error!("this region does not lead any more: its writer stops");
        leader.stop_now().await;
        self.record(|state| (state.role, state.rejoining) = (Role::Secondary, true))?;
        *part = Part::Follower(self.follow().await?);
        Ok(())
    }

    /// Answers the second round of a change of the record.
    pub(super) async fn vote(&self, accept: m::Accept) -> Result<m::Voted, Refusal> {
        let failed = |e: String| Refusal::new(Kind::Failed, e);
        let proposal = wire::to_accepted(&accept.proposal.unwrap_or_default()).map_err(failed)?;
        let next = wire::to_number(accept.next.unwrap_or_default());
        let mut part = self.part.write().await;
        let state = self.state();
        let accepts = state.acceptor.would_accept(proposal.number);
        if accepts && !proposal.record.supports(state.primary(), state.epoch()) {
            match &mut *part {
                Part::Leader(leader) if !leader.has_handed_over() => {
                    let standing = proposal.record.standing(&self.own.name);
                    if matches!(standing, Standing::Follows | Standing::Fenced) {
                        self.step_down(&mut part).await.map_err(|e| failed(e.to_string()))?;
                    }
                }
                Part::Follower(follower) => {
                    follower.interrupt().await;
                    let _ = self.volume.settle().await;
                }
                Part::Leader(_) | Part::Starting => {}
            }
        }
        let answer = self.voter.accept(&proposal, next).map_err(|e| failed(e.to_string()))?;
        Ok(wire::answer(&answer, wire::grant(&self.grant(&part, &proposal.record))))
    }

    /// How far this region is, and what it knows.
    pub(super) async fn survey(&self) -> m::Granted {
        let grant = self.grant(&*self.part.read().await, &self.voter.accepted());
        m::Granted {
            coordinates: self.voter.coordinates(),
            agreed: self.voter.agreed().as_ref().map(wire::accepted),
            ..wire::grant(&grant)
        }
    }

    fn grant(&self, part: &Part, record: &Record) -> Grant {
        let (bounds, state) = (self.volume.bounds(), self.state());
        let leads = matches!(part, Part::Leader(leader) if !leader.has_handed_over());
        let heard = match part {
            Part::Follower(follower) => Some(follower.heard()),
            Part::Leader(_) | Part::Starting => None,
        };
        // What it answered before it was started is not known: it may have been just then.
        let silent = heard.and_then(|(_, answered)| answered).unwrap_or(self.started).elapsed();
        Grant {
            has_data: state.system_id.is_some() && !state.rejoining,
            has_redo: state.system_id.is_some() && !self.volume.is_empty(),
            timeline: bounds.timeline,
            durable_lsn: bounds.durable_lsn,
            silent_us: us(silent),
            primary_lsn: heard.map_or(bounds.durable_lsn, |(lsn, _)| lsn.max(bounds.durable_lsn)),
            stopped: !leads && record.promotion.as_ref().is_some_and(|p| p.from == self.own.name),
        }
    }

    /// The primary's part of a switchover: stops the writer, and sees the last record applied over there. It stays stopped until the
    /// record says how it goes on.
    pub(super) async fn hand_over(&self, request: HandOverRequest) -> Result<HandedOver, Refusal> {
        let epoch = Epoch(request.epoch);
        let to: RegionName = request.to.parse().map_err(|e: proto::ids::ParseIdError| busy(e.to_string()))?;
        let recorded = || self.voter.accepted().hands_over(&to, epoch);
        if !request.dry_run && !recorded() {
            self.voter.change(&Change::Read).await?;
        }
        let mut part = self.part.write().await;
        let Part::Leader(leader) = &mut *part else {
            return Err(busy(format!("region {} does not lead", self.own.name)));
        };
        if let Some(handed_over) = leader.handed_over() {
            return Ok(handed_over);
        }
        if let Some(why) = leader.hinders(&to) {
            return Err(busy(why));
        }
        if request.dry_run {
            return Ok(HandedOver::default());
        }
        if !recorded() {
            return Err(busy(format!("no switchover to {to} is recorded")));
        }
        tracing::info!("handing over to region {to}, which will lead epoch {epoch}");
        let handed_over = match leader.hand_over(&to, &self.volume).await {
            Ok(()) => self.record(|state| state.role = Role::Secondary).map_err(|e| e.to_string()),
            Err(why) => Err(why),
        };
        match (handed_over, leader.handed_over()) {
            (Ok(()), Some(handed_over)) => Ok(handed_over),
            (handed_over, _) => {
                let why = handed_over.err().unwrap_or_default();
                tracing::error!("not handed over: {why}; leading on");
                leader.stop().await;
                self.lead_again(&mut part).await.map_err(|e| busy(e.to_string()))?;
                Err(busy(format!("{why}; region {} leads on", self.own.name)))
            }
        }
    }

    /// Takes what a survivor has beyond this region, and applies everything; returns the end of it.
    pub(super) async fn get_ready(&self, request: m::GetReadyRequest) -> Result<Lsn, Refusal> {
        let follower = self.able_follower().await?;
        let epoch = Epoch(request.epoch);
        if !request.gather_from.is_empty() {
            let from = self.config.regions.iter().find(|region| region.name.as_str() == request.gather_from);
            let from =
                from.ok_or_else(|| busy(format!("no region '{}' in the file", request.gather_from)))?;
            follower.interrupt().await;
            let gathered =
                tokio::time::timeout(TAKE_OVER, self.gather(&follower, from, epoch, request.gather_to_lsn))
                    .await;
            gathered
                .unwrap_or_else(|_| Err("not in time".into()))
                .map_err(|e| busy(format!("gathering the redo that {} has: {e}", from.name)))?;
        }
        let end_lsn = self.volume.bounds().durable_lsn;
        match tokio::time::timeout(TAKE_OVER, follower.until_applied(end_lsn)).await {
            Ok(()) => Ok(end_lsn),
            Err(_) => Err(busy(format!("this region's standby has not applied {end_lsn} yet"))),
        }
    }

    async fn gather(
        &self,
        follower: &Follower,
        from: &RegionConfig,
        epoch: Epoch,
        to_lsn: u64,
    ) -> Result<(), String> {
        let connection =
            client::connect(&self.endpoint, &from.place(), CONNECT).await.map_err(|e| e.to_string())?;
        let from_lsn = self.volume.bounds().durable_lsn.0;
        let purpose = Some(open::Purpose::Gather(GatherOpen { epoch: epoch.0, from_lsn, to_lsn }));
        let cluster_id = self.cluster_id.0.to_vec().into();
        let open = Open { protocol: PROTOCOL_VERSION, cluster_id, purpose };
        let stream = connection.open_stream(&open).await.map_err(|e| e.to_string())?;
        let wanted = || self.voter.accepted().gathers(&self.own.name, epoch);
        follower.gather(stream, wanted).await
    }

    /// Begins to lead the epoch that the record says; returns once the writer's redo is read, so that commits can return as soon
    /// as the promotion is over.
    pub(super) async fn lead_epoch(&self, request: m::LeadRequest) -> Result<(), Refusal> {
        let epoch = Epoch(request.epoch);
        let leads = || {
            let record = self.voter.agreed().map(|agreed| agreed.record);
            record.is_some_and(|record| record.epoch == epoch && record.primary == self.own.name)
        };
        if !leads() {
            self.voter.change(&Change::Read).await?;
        }
        if !leads() {
            return Err(busy(format!("region {} does not lead epoch {epoch}", self.own.name)));
        }
        self.reconcile().await.map_err(|e| Refusal::new(Kind::Failed, e.to_string()))?;
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
        match tokio::time::timeout(TAKE_OVER, reading).await {
            Ok(()) => Ok(()),
            Err(_) => Err(busy("the new writer's redo is not read yet")),
        }
    }

    async fn able_follower(&self) -> Result<std::sync::Arc<Follower>, Refusal> {
        let state = self.state();
        match &*self.part.read().await {
            Part::Follower(follower) if state.system_id.is_some() && !state.rejoining => Ok(follower.clone()),
            Part::Follower(_) => Err(busy("this region has no data to lead with")),
            Part::Leader(_) => Err(busy(format!("region {} is the primary already", self.own.name))),
            Part::Starting => Err(busy("this region is starting; try again in a moment")),
        }
    }

    /// Does what an operator orders, with this region as the one that shall lead: begins a promotion, or goes on with the same
    /// one, and waits for its end.
    pub(super) async fn order(&self, request: m::PromoteRequest) -> Result<m::Promotion, Refusal> {
        let me = &self.own.name;
        let mode = if request.failover { Mode::Failover } else { Mode::Switchover };
        let follower = self.able_follower().await;
        let record = match self.voter.change(&Change::Read).await {
            Ok(record) => record,
            Err(_) if request.old_primary_is_down => self.voter.accepted(),
            Err(e) if request.failover && self.config.voters().len() == 2 => {
                let reason = format!(
                    "with two voters there is no majority without the old primary ({e}). If you know that it does not run, \
                     and will not while this region is promoted, say --old-primary-is-down"
                );
                return Err(busy(reason));
            }
            Err(e) => return Err(busy(format!("{e}. Nothing was changed"))),
        };
        let begun = record.promotion.as_ref().filter(|p| p.to == *me && p.mode == mode).map(|p| p.id);
        let id = match begun {
            Some(id) => id,
            None => {
                let follower = follower?;
                let bounds = self.volume.bounds();
                if record.reach(bounds.timeline, bounds.durable_lsn).is_none() {
                    let reason = format!(
                        "{me}'s redo on timeline {} was cut off by a later epoch: it is to be seeded by the primary first. Nothing \
                         was changed",
                        bounds.timeline
                    );
                    return Err(busy(reason));
                }
                if mode == Mode::Switchover {
                    let request =
                        HandOverRequest { epoch: record.epoch.0 + 1, dry_run: true, to: me.to_string() };
                    let body = m::control_request::Body::HandOver(request);
                    let asked = self.voter.ask(&record.primary, body, ASK).await;
                    asked.map_err(|e| busy(format!("{}: {e}. Nothing was changed", record.primary)))?;
                }
                if request.dry_run {
                    return Ok(self.plan(&record, mode, &follower));
                }
                let order = Order {
                    id: draw(),
                    mode,
                    to: me.clone(),
                    by: me.clone(),
                    forced: request.old_primary_is_down,
                    at_us: volume::now_us(),
                };
                let id = order.id;
                self.voter.change(&Change::Begin(order)).await?;
                id
            }
        };
        self.voter.coordinate(id);
        let mut agreed = self.voter.watch_agreed();
        let over =
            agreed.wait_for(|agreed| agreed.as_ref().is_some_and(|agreed| agreed.record.ended(id).is_some()));
        let past = match tokio::time::timeout(ORDERED, over).await {
            Ok(Ok(agreed)) => agreed.as_ref().and_then(|agreed| agreed.record.ended(id).cloned()),
            _ => None,
        };
        match past {
            Some(Past { rolled_back: Some(why), .. }) => Err(busy(why)),
            Some(past) if past.promotion.to == *me => Ok(told(&past)),
            Some(past) => {
                Err(busy(format!("region {} leads instead: {me} could not be reached", past.promotion.to)))
            }
            None => {
                Err(busy("the promotion goes on by itself: see `replicator status` and `replicator history`"))
            }
        }
    }

    /// What a promotion would do.
    fn plan(&self, record: &Record, mode: Mode, follower: &Follower) -> m::Promotion {
        let (primary_lsn, _) = follower.heard();
        let fork_lsn = self.volume.bounds().durable_lsn;
        let failover = mode == Mode::Failover;
        m::Promotion {
            from: record.primary.to_string(),
            to: self.own.name.to_string(),
            mode: mode.to_string(),
            epoch: record.epoch.0 + 1,
            dry_run: true,
            fork_lsn: if failover { fork_lsn.0 } else { 0 },
            lost_to_lsn: if failover { primary_lsn.max(fork_lsn).0 } else { 0 },
            lost_us: if failover { us(self.config.lease) } else { 0 },
            ..m::Promotion::default()
        }
    }
}

/// The end of promotion `id`; none while it is in progress.
#[allow(clippy::disallowed_methods, reason = "promotions are told apart by a number that is drawn")]
fn draw() -> u64 {
    rand::random_range(1..u64::MAX)
}

/// A promotion that is over, as a message.
#[must_use]
pub fn told(past: &Past) -> m::Promotion {
    let Promotion { from, to, mode, epoch, fork_lsn, loss, steps, .. } = &past.promotion;
    m::Promotion {
        from: from.to_string(),
        to: to.to_string(),
        mode: mode.to_string(),
        epoch: epoch.0,
        fork_lsn: fork_lsn.0,
        write_gap_us: past.write_gap_us,
        steps: steps.iter().map(|step| m::PromotionStep { name: step.name.clone(), us: step.us }).collect(),
        dry_run: false,
        lost_to_lsn: loss.to_lsn.0,
        lost_us: loss.us,
    }
}
