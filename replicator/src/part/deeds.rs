//! The deeds, step by step. Each step that waits has a deadline, and each that cannot be undone looks at the
//! record first.

use std::time::Duration;

use coordination::Standing;
use coordination::planted::{self, Bug};
use coordination::region::{Database, Deed, Part, may_hand_over, next};
use proto::messages::{self as m, HandedOver, Refusal, refusal::Kind};
use proto::{Epoch, Lsn, RegionName};
use runtime::clock::{micros, now};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::cluster::Work;
use super::{Cluster, HandOverToHost, Order, Owner, Stopped, Trouble};
use crate::config::Role;

/// How long a standby may take to apply what it has before it is promoted, and PostgreSQL to be promoted.
const TAKE_OVER: Duration = Duration::from_secs(20);

/// How long making a database may take.
const CREATE: Duration = Duration::from_secs(120);

/// How long a writer may take to start.
const START: Duration = Duration::from_secs(60);

/// How long anything may take to stop at once.
const STOP: Duration = Duration::from_secs(60);

/// How long the checkpoint before a hand-over may take. When it takes longer, the writer would take long to
/// stop as well.
const CHECKPOINT: Duration = Duration::from_secs(10);

/// How long the writer may take to stop, and then its last record to be applied, before the old primary leads
/// on.
const HAND_OVER: Duration = Duration::from_secs(10);

/// How long a writer that is started again, as a hand-over has failed, may take until it takes writes.
const LEADS_ON: Duration = Duration::from_secs(30);

/// How long gathering may take.
const GATHER: Duration = Duration::from_secs(20);

/// The steps of a hand-over, and their times.
#[derive(Debug)]
struct Steps {
    since: Instant,
    done: Vec<m::PromotionStep>,
}

impl Steps {
    fn start() -> Steps {
        Steps { since: now(), done: Vec::new() }
    }

    fn done(&mut self, name: &str) {
        let at = now();
        tracing::info!("promotion: {name}, {} ms", (at - self.since).as_millis());
        self.done.push(m::PromotionStep { name: name.into(), us: micros(at - self.since) });
        self.since = at;
    }
}

/// `work`, or trouble when it takes longer than `deadline`.
async fn within<T>(deadline: Duration, what: &str, work: impl Work<T>) -> Result<T, Trouble> {
    match tokio::time::timeout(deadline, work).await {
        Ok(done) => done,
        Err(_) => Err(Trouble::new(format!("{what}: not done within {} s", deadline.as_secs()))),
    }
}

fn busy(reason: impl ToString) -> Refusal {
    Refusal::new(Kind::Busy, reason.to_string())
}

impl<C: Cluster> Owner<C> {
    /// Carries out `deed`, unless the record stops calling for it.
    pub(super) async fn carry_out(&self, deed: &Deed) -> Result<(), Trouble> {
        match deed {
            Deed::Create { .. } => self.create().await,
            Deed::Lead { epoch } => self.unless_over(deed, self.lead(*epoch)).await,
            Deed::TakeOver { epoch, fork_lsn } => {
                self.unless_over(deed, self.take_over(deed, *epoch, *fork_lsn)).await
            }
            Deed::LeadOn { epoch } => {
                tracing::warn!("nobody has taken over: this region leads on");
                within(STOP, "stop what is left of the writer", self.cluster.stop_leading()).await?;
                self.unless_over(deed, self.lead(*epoch)).await
            }
            Deed::StepDown => self.step_down().await,
            Deed::Follow { rejoin } => self.follow(*rejoin).await,
            Deed::Rest | Deed::AskWhoLeads | Deed::Acknowledge(_) | Deed::Refuse(_) => Ok(()),
        }
    }

    /// Does `work`, or gives it up where it waits once the record does not call for `deed` any more.
    async fn unless_over(&self, deed: &Deed, work: impl Work<()>) -> Result<(), Trouble> {
        tokio::select! {
            biased;
            done = work => done,
            () = self.over(deed) => {
                tracing::warn!("given up, as the record has changed: {deed:?}");
                Ok(())
            }
        }
    }

    /// Waits until the record does not call for `deed` any more.
    pub(super) async fn over(&self, deed: &Deed) {
        loop {
            let changed = self.voter.changed();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if !self.still(deed) {
                return;
            }
            changed.await;
        }
    }

    /// Whether the record calls for `deed`, as far as the record goes: the region itself is as it was when
    /// the deed was chosen.
    fn still(&self, deed: &Deed) -> bool {
        if planted::is(Bug::LooksOnce) {
            return true;
        }
        let epoch = match deed {
            Deed::Lead { epoch } | Deed::LeadOn { epoch } | Deed::TakeOver { epoch, .. } => Some(*epoch),
            Deed::Acknowledge(_) => None,
            _ => return true,
        };
        let view = self.voter.view();
        // A record that was accepted and is not known to be agreed yet forbids what it forbids, and ends
        // nothing else.
        let forbidden = view.standing(&self.me).is_some_and(Standing::forbids);
        !forbidden && epoch.is_none_or(|epoch| view.epoch() == epoch)
    }

    /// Makes the cluster's database. It is the primary's, and unnamed, until the record names it.
    async fn create(&self) -> Result<(), Trouble> {
        let system_id = within(CREATE, "make the database", self.cluster.create()).await?;
        self.keep(|state| {
            (state.system_id, state.unnamed) = (Some(system_id), true);
            state.memory.may_create = false;
        })
    }

    async fn lead(&self, epoch: Epoch) -> Result<(), Trouble> {
        self.keep(|state| (state.role, state.rejoining, state.forgot) = (Role::Primary, false, false))?;
        within(START, "start the writer", self.cluster.lead(epoch)).await?;
        self.set(Part::Leading { epoch });
        Ok(())
    }

    /// The standby becomes the writer.
    async fn take_over(&self, deed: &Deed, epoch: Epoch, fork_lsn: Lsn) -> Result<(), Trouble> {
        // A coordinator that was overtaken may still have it gather.
        self.cluster.shut_out();
        let applied = self.cluster.apply(fork_lsn);
        within(TAKE_OVER, "apply everything before promoting", applied).await?;
        if !self.still(deed) {
            return Ok(());
        }
        self.keep(|state| state.role = Role::Primary)?;
        within(TAKE_OVER, "promote PostgreSQL", self.cluster.promote(epoch)).await?;
        self.lead(epoch).await
    }

    /// A primary whose epoch is over, or about to be, stops at once, and waits to be brought back.
    async fn step_down(&self) -> Result<(), Trouble> {
        self.hold();
        within(STOP, "stop the writer at once", self.cluster.stop_leading()).await?;
        self.follow(true).await
    }

    async fn follow(&self, rejoin: bool) -> Result<(), Trouble> {
        if rejoin {
            let epoch = self.voter.view().epoch();
            tracing::error!("epoch {epoch} has another primary: this region does not lead any more");
        }
        self.keep(|state| {
            state.role = Role::Secondary;
            state.rejoining |= rejoin && state.system_id.is_some();
        })?;
        within(STOP, "begin to follow", self.cluster.follow()).await?;
        self.set(Part::Following);
        Ok(())
    }

    pub(super) fn keep(
        &self,
        change: impl FnOnce(&mut crate::region_file::RegionState),
    ) -> Result<(), Trouble> {
        self.file.change(change).map_err(Trouble::new)
    }

    /// Does what a coordinator orders, and answers.
    pub(super) async fn obey(&self, order: Order) {
        match order {
            Order::HandOver { to, next_epoch, answer } => {
                let done = self.hand_over(&to, next_epoch).await;
                if let Err(why) = &done {
                    tracing::error!("not handed over to {to}: {}", why.reason);
                }
                let _ = answer.send(done);
            }
            Order::HandOverToHost(HandOverToHost { stopped, ready, answer }) => {
                let done = self.hand_over_to_host(stopped, ready).await;
                let is_over = done.is_ok();
                if let Err(why) = &done {
                    tracing::error!("not handed over to another host: {}", why.reason);
                }
                let _ = answer.send(done);
                if is_over {
                    // The process ends: were the part looked at again, the writer would be started.
                    std::future::pending::<()>().await;
                }
            }
            Order::GetReady { epoch, from, answer } => {
                let _ = answer.send(self.get_ready(epoch, from).await);
            }
        }
    }

    fn may_hand_over(&self, to: &RegionName, next_epoch: Epoch) -> Result<(), Refusal> {
        let facts = self.facts(Database::Unknown);
        may_hand_over(&self.me, &self.voter.view(), &facts, to, next_epoch).map_err(busy)
    }

    /// The primary's part of a switchover: stops the writer, and sees its last record applied in `to`. Unless
    /// that succeeds, the writer runs again when this returns.
    async fn hand_over(&self, to: &RegionName, next_epoch: Epoch) -> Result<(), Refusal> {
        let asked = Part::HandedOver { epoch: self.voter.view().epoch(), to: to.clone(), next_epoch };
        if self.part() == asked {
            return Ok(());
        }
        self.may_hand_over(to, next_epoch)?;
        if let Some(why) = self.cluster.hinders(to) {
            return Err(busy(why));
        }
        let mut steps = Steps::start();
        within(CHECKPOINT, "checkpoint", self.cluster.checkpoint()).await.map_err(busy)?;
        steps.done("checkpoint");
        // From here on clients wait.
        let stopped_at = now();
        if self.cluster.pause_clients().await {
            steps.done("pause PgBouncer");
        }
        // The switchover may have been rolled back meanwhile: then the writer is not touched.
        if !planted::is(Bug::LooksOnce) {
            self.may_hand_over(to, next_epoch).inspect_err(|_| self.cluster.resume_clients())?;
        }
        let Part::Leading { epoch } = self.part() else { return Err(busy("this region does not lead")) };
        self.set(Part::Stopping { epoch });
        match self.stop_for(to, next_epoch, &mut steps).await {
            Ok(end) => {
                let told = HandedOver {
                    end_lsn: end.end_lsn.0,
                    timeline: end.timeline.0,
                    stopped_us: 0,
                    steps: steps.done,
                    findings: Vec::new(),
                };
                self.lock().stopped = Some(Stopped { at: stopped_at, told });
                self.set(Part::HandedOver { epoch, to: to.clone(), next_epoch });
                Ok(())
            }
            Err(why) => {
                let view = self.voter.view();
                let deed = next(&self.me, &view, &self.facts(Database::Unknown));
                if deed == (Deed::LeadOn { epoch: view.epoch() }) {
                    self.carry_out(&deed).await.map_err(busy)?;
                    return Err(busy(format!("{why}; {}", self.leads_on(epoch).await)));
                }
                Err(busy(why))
            }
        }
    }

    /// The head's part of a move to another host: stops the writer, and waits until that host has its last
    /// record. Unless that succeeds, the writer runs again when this returns.
    async fn hand_over_to_host(
        &self,
        stopped: oneshot::Sender<(coordination::Redo, Instant)>,
        ready: oneshot::Receiver<Result<(), String>>,
    ) -> Result<(), Refusal> {
        let Part::Leading { epoch } = self.part() else { return Err(busy("this region does not lead")) };
        within(CHECKPOINT, "checkpoint", self.cluster.checkpoint()).await.map_err(busy)?;
        let stopped_at = now();
        self.cluster.pause_clients().await;
        if self.voter.accepted().promotion.is_some() || !self.still(&Deed::Lead { epoch }) {
            self.cluster.resume_clients();
            return Err(busy("a promotion has begun"));
        }
        self.set(Part::Stopping { epoch });
        let handing = async {
            let end = within(HAND_OVER, "stop the writer", self.cluster.stop_writer()).await?;
            if stopped.send((end, stopped_at)).is_err() {
                return Err(Trouble::new("nobody waits for it any more"));
            }
            let late = format!("its last record is not applied within {} s", HAND_OVER.as_secs());
            let gone = |_| "nobody waits for it any more".to_owned();
            match tokio::time::timeout(HAND_OVER, ready).await {
                Ok(ready) => ready.map_err(gone).flatten().map_err(Trouble::new),
                Err(_) => Err(Trouble(late)),
            }
        };
        let why = match handing.await {
            Err(why) => why,
            Ok(()) if self.voter.accepted().promotion.is_none() && self.still(&Deed::Lead { epoch }) => {
                return Ok(());
            }
            Ok(()) => Trouble::new("a promotion has begun"),
        };
        Err(busy(format!("{why}; {}", self.leads_again(epoch).await?)))
    }

    /// Starts the writer again that was stopped for somebody who does not take over, if the record says that
    /// this region leads on; returns how that went, in words.
    async fn leads_again(&self, epoch: Epoch) -> Result<String, Refusal> {
        let view = self.voter.view();
        let deed = next(&self.me, &view, &self.facts(Database::Unknown));
        if deed != (Deed::LeadOn { epoch: view.epoch() }) {
            return Ok(format!("region {} does not lead any more", self.me));
        }
        self.carry_out(&deed).await.map_err(busy)?;
        Ok(self.leads_on(epoch).await)
    }

    /// Waits until the writer, which was started again, takes writes; says so, or what it waits for.
    async fn leads_on(&self, epoch: Epoch) -> String {
        let deed = Deed::Lead { epoch };
        // A record that forbids it to lead is not kept waiting.
        let settled = |owner: &Self| owner.cluster.reads() || !owner.still(&deed);
        let waited = tokio::time::timeout(LEADS_ON, self.until(settled)).await;
        match (waited, self.still(&deed)) {
            (Ok(()), true) => format!("region {} leads on", self.me),
            (Ok(()), false) => format!("region {} does not lead any more", self.me),
            (Err(_), _) => {
                format!("region {} is to lead on, and its writer takes no writes yet: see its log", self.me)
            }
        }
    }

    async fn stop_for(
        &self,
        to: &RegionName,
        next_epoch: Epoch,
        steps: &mut Steps,
    ) -> Result<coordination::Redo, Trouble> {
        let end = within(HAND_OVER, "stop the writer", self.cluster.stop_writer()).await?;
        steps.done("stop the writer");
        if !planted::is(Bug::HandsOverEarly) {
            let applied = self.cluster.applied_by(to, end.end_lsn);
            within(HAND_OVER, &format!("see the last record applied in {to}"), applied).await?;
        }
        steps.done("ship and apply the last record");
        self.may_hand_over(to, next_epoch).map_err(|refusal| Trouble(refusal.reason))?;
        // What it ended with is everywhere: it needs not be brought back.
        self.keep(|state| state.role = Role::Secondary)?;
        Ok(end)
    }

    /// Takes what a survivor has beyond this region, and applies everything; returns the end of it.
    async fn get_ready(&self, epoch: Epoch, from: Option<(RegionName, Lsn)>) -> Result<Lsn, Refusal> {
        self.able_follower()?;
        let wanted = || self.voter.view().accepted.record.gathers(&self.me, epoch);
        // The vote has done so; were anything stored after this answer, the fork would lie before it.
        self.cluster.shut_out();
        if let Some((from, to_lsn)) = from {
            let gathering = self.cluster.gather(&from, epoch, to_lsn, wanted);
            let what = format!("gather the redo that {from} has");
            within(GATHER, &what, gathering).await.map_err(busy)?;
        }
        let end_lsn = self.cluster.observe().durable.end_lsn;
        let applied = self.cluster.apply(end_lsn);
        within(TAKE_OVER, &format!("apply everything up to {end_lsn}"), applied).await.map_err(busy)?;
        Ok(end_lsn)
    }

    /// Whether this region follows with data that it could lead with.
    ///
    /// # Errors
    /// Why not.
    pub fn able_follower(&self) -> Result<(), Refusal> {
        let state = self.file.get();
        match self.part() {
            Part::Following if state.system_id.is_some() && !state.rejoining => Ok(()),
            Part::Following => Err(busy("this region has no data to lead with")),
            Part::Starting => Err(busy("this region is starting; try again in a moment")),
            Part::Leading { .. } | Part::Stopping { .. } | Part::HandedOver { .. } => {
                Err(busy(format!("region {} is the primary already", self.me)))
            }
        }
    }
}
