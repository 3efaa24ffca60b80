//! What a region answers coordinators and voters. None of it waits for a deed, but for those that a
//! coordinator orders.

use std::time::Duration;

use coordination::Leadership;
use coordination::leadership::Change;
use coordination::promotion::Grant;
use coordination::region::{self, Database, Heard, Part};
use proto::messages::{self as m, HandOverRequest, HandedOver, Refusal, control_response, refusal::Kind};
use proto::{Epoch, Lsn, RegionName};
use runtime::clock::micros;
use tokio::sync::oneshot;

use super::{Cluster, HandOverToHost, Order, Owner};
use crate::preflight;
use crate::voter::wire;

/// How long a vote waits until what the region has taken is durable: then it says so, or less.
const SETTLE: Duration = Duration::from_millis(100);

/// How long a vote waits until the region's own writer has stopped. Its commits are held meanwhile.
const STOPPED: Duration = Duration::from_millis(600);

/// How long a new writer's redo may take to be read.
const LEADS: Duration = Duration::from_secs(20);

fn busy(reason: impl Into<String>) -> Refusal {
    Refusal::new(Kind::Busy, reason)
}

impl<C: Cluster> Owner<C> {
    /// Answers the first round of a change of the record, once the votes are given that are under way.
    ///
    /// A vote on what stops this region's writer takes as long as that does. Whoever asked for a promise
    /// meanwhile would outbid it, and voters that find out one after another what is agreed would outbid each
    /// other for ever, where the majority needs this one.
    ///
    /// # Errors
    /// When no correct voter proposes under that number, or the promise cannot be kept on disk.
    pub async fn promise(&self, number: m::Number) -> Result<control_response::Body, Refusal> {
        let last = self.voter.last_pending();
        let voted = self.until(|owner| !owner.voter.is_pending(last));
        let _ = tokio::time::timeout(SETTLE + STOPPED, voted).await;
        self.voter.answer_prepare(number)
    }

    /// Answers the second round of a change of the record. What the record forbids has stopped when it is
    /// accepted.
    ///
    /// # Errors
    /// When no correct voter proposes that, or it cannot be kept on disk.
    pub async fn vote(&self, accept: m::Accept) -> Result<m::Voted, Refusal> {
        let failed = |e: String| Refusal::new(Kind::Failed, e);
        let (proposal, next) = self.voter.judge_proposal(accept)?;
        // A late proposal that is outbid forbids nothing.
        let pending = self.voter.would_accept(proposal.number).then(|| self.voter.pend(&proposal.record));
        if pending.is_some() {
            let accepted = self.voter.accepted();
            let obey = region::obey(&self.me, &accepted, &proposal.record, &self.facts(Database::Unknown));
            if obey.shut_out {
                self.cluster.shut_out();
                let _ = tokio::time::timeout(SETTLE, self.cluster.settle()).await;
            }
            if obey.stop_writer {
                self.hold();
                let _ = tokio::time::timeout(STOPPED, self.until(Owner::writer_has_stopped)).await;
            }
        }
        let answer = self.voter.accept(&proposal, next).map_err(|e| failed(e.to_string()))?;
        drop(pending);
        Ok(wire::answer(&answer, wire::grant(&self.grant(&proposal.record))))
    }

    fn writer_has_stopped(&self) -> bool {
        let leads = matches!(self.part(), Part::Leading { .. } | Part::Stopping { .. });
        !leads && !self.cluster.observe().writer_runs
    }

    /// What this region grants whoever has `record` agreed on.
    #[must_use]
    pub fn grant(&self, record: &Leadership) -> Grant {
        let heard =
            Heard { silent_us: micros(self.voter.silent()), primary_lsn: self.cluster.observe().primary_lsn };
        region::grant(&self.me, record, &self.facts(Database::Unknown), heard)
    }

    /// How far this region is, and what it knows.
    #[must_use]
    pub fn survey(&self) -> m::Granted {
        m::Granted {
            coordinates: self.voter.coordinates(),
            agreed: self.voter.agreed().as_ref().map(wire::accepted),
            ..wire::grant(&self.grant(&self.voter.accepted()))
        }
    }

    /// Has the writer stopped for a switchover; for a dry run says only what hinders that.
    ///
    /// # Errors
    /// What hinders it, or why it was not done; the writer runs then.
    pub async fn ask_hand_over(&self, request: HandOverRequest) -> Result<HandedOver, Refusal> {
        let next_epoch = Epoch(request.epoch);
        let to: RegionName = request.to.parse().map_err(|e: proto::ids::ParseIdError| busy(e.to_string()))?;
        if request.dry_run {
            if !matches!(self.part(), Part::Leading { .. }) {
                return Err(busy(format!("region {} does not lead", self.me)));
            }
            let mut findings = self.cluster.preflight().await;
            if let Some(why) = self.cluster.hinders(&to) {
                findings.push(m::Finding {
                    kind: preflight::Kind::Primary.name().into(),
                    region: self.me.to_string(),
                    fact: why,
                    action: "see `replicator status`, and try again when the region streams".into(),
                    outcome: m::finding::Outcome::Refused.into(),
                });
            }
            return Ok(HandedOver { findings, ..HandedOver::default() });
        }
        if !self.voter.view().hands_over(&to, next_epoch) {
            self.voter.change(&Change::Read).await?;
        }
        let (answer, answered) = oneshot::channel();
        self.give(Order::HandOver { to, next_epoch, answer }, answered).await?;
        self.stopped().ok_or_else(|| busy("the switchover is over"))
    }

    /// Takes what a survivor has beyond this region, and applies everything; returns the end of it.
    ///
    /// # Errors
    /// Why not.
    pub async fn ask_get_ready(&self, request: m::GetReadyRequest) -> Result<Lsn, Refusal> {
        self.able_follower()?;
        let from = match request.gather_from.as_str() {
            "" => None,
            from => {
                let from = from.parse().map_err(|e: proto::ids::ParseIdError| busy(e.to_string()))?;
                Some((from, Lsn(request.gather_to_lsn)))
            }
        };
        let (answer, answered) = oneshot::channel();
        self.give(Order::GetReady { epoch: Epoch(request.epoch), from, answer }, answered).await
    }

    /// Has the writer stopped for another host of the region, as [`HandOverToHost`] says.
    ///
    /// # Errors
    /// When the order cannot be taken; nothing was done then.
    pub(crate) fn order_to_hand_over_to_host(&self, order: HandOverToHost) -> Result<(), Refusal> {
        let full = |_| busy("other orders are being carried out");
        self.orders.try_send(Order::HandOverToHost(order)).map_err(full)
    }

    async fn give<T>(
        &self,
        order: Order,
        answered: oneshot::Receiver<Result<T, Refusal>>,
    ) -> Result<T, Refusal> {
        let full = |_| busy("other orders are being carried out");
        self.orders.try_send(order).map_err(full)?;
        answered.await.unwrap_or_else(|_| Err(busy("this daemon is stopping")))
    }

    /// Begins to lead the epoch that the record says; returns once the writer's redo is read, so that commits
    /// can return as soon as the promotion is over.
    ///
    /// # Errors
    /// When the record says otherwise, or it takes too long; the owner goes on.
    pub async fn ask_lead(&self, request: m::LeadRequest) -> Result<(), Refusal> {
        let epoch = Epoch(request.epoch);
        let leads = || {
            let record = self.voter.agreed().map(|agreed| agreed.record);
            record.is_some_and(|record| record.epoch == epoch && record.primary == self.me)
        };
        if !leads() {
            self.voter.change(&Change::Read).await?;
        }
        if !leads() {
            return Err(busy(format!("region {} does not lead epoch {epoch}", self.me)));
        }
        let reads = |owner: &Self| owner.part() == Part::Leading { epoch } && owner.cluster.reads();
        match tokio::time::timeout(LEADS, self.until(reads)).await {
            Ok(()) => Ok(()),
            Err(_) if !self.trouble().is_empty() => Err(busy(self.trouble())),
            Err(_) => Err(busy("the new writer's redo is not read yet")),
        }
    }

    /// Whether `name` is taken for the primary of `epoch` by this region, which then follows it.
    ///
    /// # Errors
    /// Why not.
    pub async fn admit(&self, name: &RegionName, epoch: Epoch) -> Result<(), Refusal> {
        if epoch > self.voter.accepted().epoch {
            // It was agreed on without this region.
            let _ = self.voter.change(&Change::Read).await;
        }
        let view = self.voter.view();
        match (view.supports(name, epoch), epoch > view.epoch()) {
            (true, _) if self.part() == Part::Following => Ok(()),
            (true, _) => {
                Err(Refusal::new(Kind::NotAllowed, format!("region {} does not follow yet", self.me)))
            }
            (false, true) => Err(busy(format!("epoch {epoch} is not known here, and too few voters answer"))),
            (false, false) => {
                let (epoch, primary) = (view.epoch(), &view.accepted.record.primary);
                let reason = format!("the primary of epoch {epoch} is {primary}, or being replaced");
                Err(Refusal::new(Kind::StaleEpoch, reason))
            }
        }
    }

    /// Whether this voter has not shut `name` out as the primary of `epoch`: asked again before each answer
    /// to its stream.
    #[must_use]
    pub fn still_admits(&self, name: &RegionName, epoch: Epoch) -> bool {
        self.voter.view().supports(name, epoch)
    }
}
