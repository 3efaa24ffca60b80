//! What an operator orders, or a region by itself: a promotion, with this region as the one that shall lead.

use std::collections::BTreeSet;
use std::time::Duration;

use coordination::leadership::{Change, Order, Past};
use coordination::orders::Content;
use coordination::{Leadership, Lineage, Mode, Promotion, SignedOrder};
use proto::messages::finding::Outcome;
use proto::messages::refusal;
use proto::messages::{self as m, HandOverRequest, Refusal};
use proto::{Epoch, RegionName};
use runtime::clock::{micros, now, wall_us};
use runtime::random;

use super::Region;
use crate::orders;
use crate::part::Cluster;
use crate::preflight::{Finding, Kind};
use crate::voter::{ChangeError, Difference};

/// How long the primary may take to say whether it could hand over.
const ASK: Duration = Duration::from_secs(10);

/// How long a region that was mended may take to be near the primary again.
const NEAR: Duration = Duration::from_secs(30);

/// The wait before the primary is asked again.
const AGAIN: Duration = Duration::from_millis(300);

/// How long an operator's command waits for the promotion that it began.
const ORDERED: Duration = Duration::from_secs(80);

/// What a failover that no operator ordered is bound to.
#[derive(Debug, Clone, Copy)]
pub(super) struct ByItself {
    /// The epoch in which it was decided.
    pub(super) epoch: Epoch,
    /// The most redo that may be lost, bytes.
    pub(super) loss_max_bytes: u64,
}

fn busy(reason: impl Into<String>) -> Refusal {
    Refusal::new(refusal::Kind::Busy, reason)
}

impl Region {
    /// Does what an operator orders, or this region `by_itself`, with it as the one that shall lead: begins a
    /// promotion, or goes on with the same one, and waits for its end.
    pub(super) async fn order(
        &self,
        request: m::PromoteRequest,
        by_itself: Option<ByItself>,
    ) -> Result<m::Promotion, Refusal> {
        let me = &self.own.name;
        let mode = if request.failover { Mode::Failover } else { Mode::Switchover };
        let able = self.owner.able_follower();
        let record = match self.voter.change(&Change::Read).await {
            Ok(record) => record,
            Err(_) if request.old_primary_is_down => self.voter.accepted(),
            Err(e) if request.failover && self.voter.electorate().is_pair() => {
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
                able?;
                let redo = self.owner.cluster().observe().durable;
                if Lineage::of(&record).on_line(redo).is_none() {
                    let reason = format!(
                        "{me}'s redo on timeline {} was cut off by a later epoch: it is to be seeded by the primary first. Nothing \
                         was changed",
                        redo.timeline
                    );
                    return Err(busy(reason));
                }
                let findings = self.findings(&record, mode, request.dry_run).await?;
                if request.dry_run {
                    return Ok(m::Promotion { findings, ..self.plan(&record, mode) });
                }
                for found in &findings {
                    tracing::info!(
                        "before the promotion: {}: {}; {}",
                        found.region,
                        found.fact,
                        found.action
                    );
                }
                if let Some(why) = refusal(&findings) {
                    return Err(busy(why));
                }
                let signed = orders::in_request(request.order.as_ref());
                let signed = signed.filter(|_| self.voter.orders().carried() && by_itself.is_none());
                let id = match by_itself {
                    Some(_) => 1 + random::below(u64::MAX - 1),
                    None => self.id_of(signed.as_ref(), &request, mode, record.epoch)?,
                };
                let order = Order {
                    signed,
                    forced: request.old_primary_is_down,
                    lost: self.lost(&request, &record)?,
                    loss_max_bytes: by_itself.map(|by_itself| by_itself.loss_max_bytes),
                    at_us: wall_us(),
                    ..Order::new(id, by_itself.map_or(record.epoch, |by_itself| by_itself.epoch), mode, me)
                };
                self.voter.change(&Change::Begin(order)).await.map_err(|e| match (&e, request.old_primary_is_down) {
                    (ChangeError::NoMajority { .. }, true) => busy(format!(
                        "{e}. If you know that more voters than the old primary do not run, and will not while this region is promoted, \
                         name each of them: --lost <voter>"
                    )),
                    _ => e.into(),
                })?;
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

    /// The number of the promotion that `request` orders in `epoch`: the one that was signed.
    fn id_of(
        &self,
        signed: Option<&SignedOrder>,
        request: &m::PromoteRequest,
        mode: Mode,
        epoch: Epoch,
    ) -> Result<u64, Refusal> {
        let refused =
            |why: String| Refusal::new(refusal::Kind::NotAllowed, format!("{why}. Nothing was changed"));
        let Some(signed) = signed else {
            return match self.voter.orders().required() {
                true => Err(refused(orders::UNSIGNED.into())),
                false => Ok(1 + random::below(u64::MAX - 1)),
            };
        };
        let verified = self.voter.orders().verify(signed).map_err(refused)?;
        let asked = |id| Content::Promotion {
            id,
            epoch,
            mode,
            to: self.own.name.clone(),
            forced: request.old_primary_is_down,
            lost: request.lost.iter().filter_map(|name| name.parse().ok()).collect(),
        };
        match &verified.content {
            Content::Promotion { epoch: given, .. } if *given != epoch => Err(busy(format!(
                "the order was signed in epoch {given}, and it is epoch {epoch} by now: order it again"
            ))),
            Content::Promotion { id, .. } if verified.content == asked(*id) => Ok(*id),
            _ => Err(refused("what was signed is not what is asked".into())),
        }
    }

    /// The voters that the operator's word counts as lost: the old primary, and those who are named.
    fn lost(
        &self,
        request: &m::PromoteRequest,
        record: &Leadership,
    ) -> Result<BTreeSet<RegionName>, Refusal> {
        if !request.old_primary_is_down {
            return Ok(BTreeSet::new());
        }
        let voters = record.electorate(&self.voter.electorate()).clone();
        let mut lost = BTreeSet::from([record.primary.clone()]);
        for name in &request.lost {
            let name: Result<RegionName, _> = name.parse();
            let known = name.ok().filter(|name| voters.has(name) && *name != self.own.name);
            lost.insert(
                known.ok_or_else(|| busy("--lost names one that is no other voter. Nothing was changed"))?,
            );
        }
        Ok(lost)
    }

    /// What is found in this region and, for a switchover, in the primary, before anything is touched. What
    /// can be mended here is, unless it is only to be told.
    async fn findings(
        &self,
        record: &Leadership,
        mode: Mode,
        only_tell: bool,
    ) -> Result<Vec<m::Finding>, Refusal> {
        let since = now();
        let before = self.prepare(mode, true).await;
        let mended = before.iter().any(|found| found.outcome == Outcome::Mended) && !only_tell;
        let own = if mended { self.prepare(mode, false).await } else { before };
        let mut own: Vec<m::Finding> = own.iter().map(Finding::told).collect();
        // What is promised of commits is by this region's file, once it leads.
        own.extend(self.voter.differences().iter().map(|found| {
            let (kind, region, outcome) = (Kind::Configuration, self.own.name.clone(), Outcome::Told);
            Finding { kind, region, fact: found.fact(), action: Difference::ACTION.into(), outcome }.told()
        }));
        if mode == Mode::Failover {
            return Ok(own);
        }
        loop {
            let request =
                HandOverRequest { epoch: record.epoch.0 + 1, dry_run: true, to: self.own.name.to_string() };
            let body = m::control_request::Body::HandOver(request);
            let asked = self.voter.ask(&record.primary, body, ASK).await;
            let nothing =
                |e: &dyn std::fmt::Display| busy(format!("{}: {e}. Nothing was changed", record.primary));
            let mut theirs = match asked.map_err(|e| nothing(&e))? {
                m::control_response::Body::HandedOver(answer) => answer.findings,
                _ => return Err(nothing(&"it gave another answer")),
            };
            // What was mended here may take a moment until the primary sees it near again.
            let only_distance = theirs
                .iter()
                .filter(|found| is_refused(found))
                .all(|found| found.kind == Kind::Primary.name());
            if mended && only_distance && theirs.iter().any(is_refused) && since.elapsed() < NEAR {
                tokio::time::sleep(AGAIN).await;
                continue;
            }
            let mends = only_tell && own.iter().any(|found| found.outcome() == Outcome::Mended);
            for found in theirs.iter_mut().filter(|found| mends && found.kind == Kind::Primary.name()) {
                // That it is behind is what mending it ends.
                found.set_outcome(Outcome::Told);
            }
            return Ok(own.into_iter().chain(theirs).collect());
        }
    }

    /// What a promotion would do.
    fn plan(&self, record: &Leadership, mode: Mode) -> m::Promotion {
        let observed = self.owner.cluster().observe();
        let (primary_lsn, fork_lsn) = (observed.primary_lsn, observed.durable.end_lsn);
        let failover = mode == Mode::Failover;
        m::Promotion {
            from: record.primary.to_string(),
            to: self.own.name.to_string(),
            mode: mode.to_string(),
            epoch: record.epoch.0 + 1,
            dry_run: true,
            fork_lsn: if failover { fork_lsn.0 } else { 0 },
            lost_to_lsn: if failover { primary_lsn.max(fork_lsn).0 } else { 0 },
            lost_us: if failover { micros(self.config.lease) } else { 0 },
            ..m::Promotion::default()
        }
    }
}

fn is_refused(found: &m::Finding) -> bool {
    found.outcome() == Outcome::Refused
}

/// Why a promotion does not begin, if one of these says so.
fn refusal(findings: &[m::Finding]) -> Option<String> {
    let refused = findings.iter().filter(|found| is_refused(found));
    let words: Vec<String> =
        refused.map(|found| format!("{}: {}; {}", found.region, found.fact, found.action)).collect();
    (!words.is_empty()).then(|| format!("{}. Nothing was changed", words.join(". ")))
}

/// A promotion that is over, as a message.
#[must_use]
pub fn told(past: &Past) -> m::Promotion {
    let Promotion { from, to, mode, epoch, fork_lsn, loss, steps, lost, order, .. } = &past.promotion;
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
        lost_voters: lost.iter().map(ToString::to_string).collect(),
        ordered_by: order.as_ref().and_then(orders::signer).unwrap_or_default(),
        findings: Vec::new(),
    }
}
