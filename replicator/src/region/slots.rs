//! Carries the writer's logical slots on a region's standby: [`postgres::slots`] decides.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use postgres::instance::Instance;
use postgres::major::LogicalSlots;
use postgres::protocol::session::{Session, SessionError};
use postgres::slots::{self, Carried, LogicalSlot, SLOTS_MAX, Step};
use proto::Lsn;
use proto::messages::refusal::Kind;
use proto::messages::{self as m, Refusal, control_request, control_response};
use runtime::clock::now;
use tokio::time::Instant;

use super::Region;
use super::look::ANSWER;
use crate::client::AskError;

/// How often the primary is asked while it has slots.
const EVERY: Duration = Duration::from_secs(2);

/// The same while it has none.
const SELDOM: Duration = Duration::from_secs(6);

/// How long the primary may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often the writer is asked for a list of running transactions while a slot waits for one.
const LIST_AGAIN: Duration = Duration::from_secs(1);

/// How long a step may take before the others are looked at again; PostgreSQL goes on with it.
const STEP: Duration = Duration::from_secs(30);

/// What is known of the slots.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// The session that the writer is asked in.
    session: tokio::sync::Mutex<Option<Session>>,
    /// What the standby has of each of the writer's slots.
    carried: Mutex<BTreeMap<String, Carried>>,
    /// Of a writer: the oldest transaction that each region's slots need, and when it said so.
    needs: Mutex<BTreeMap<String, (u64, Instant)>>,
    /// The oldest transaction that the standby's own slots need; 0 for none.
    needed: AtomicU64,
}

impl Known {
    /// What the standby has of each slot of the writer, by name; empty of a writer.
    pub(super) fn carried(&self) -> BTreeMap<String, Carried> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Carried>> {
        // It is assigned as a whole.
        self.carried.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Drops the slots of a standby that is about to be promoted which begin after what their consumer has
/// confirmed. A consumer that finds no slot begins anew; with one of these it would skip what is between, in
/// silence.
pub(super) async fn drop_those_that_skip(instance: &Instance, carried: &BTreeMap<String, bool>) {
    for (name, _) in carried.iter().filter(|(_, ready)| !**ready) {
        let dropped = async {
            let mut session = instance.session(ANSWER).await?;
            slots::drop_slot(&mut session, name, ANSWER).await
        };
        match dropped.await {
            Ok(()) => tracing::warn!(
                "logical slot {name}: it begins after what its consumer had confirmed, and is dropped; the consumer begins anew"
            ),
            Err(e) => tracing::error!(
                "logical slot {name}: it begins after what its consumer had confirmed, and could not be dropped: {e}; drop it before its \
                 consumer goes on"
            ),
        }
    }
}

impl Region {
    /// Answers a secondary which slots the writer here has.
    pub(super) async fn answer_slots(&self, request: m::SlotsRequest) -> Result<m::LogicalSlots, Refusal> {
        if self.owner.cluster().leader().is_none_or(|leader| !leader.runs()) {
            return Err(Refusal::new(Kind::NotAllowed, format!("region {} has no writer", self.own.name)));
        }
        if self.config.regions.iter().any(|region| region.name.as_str() == request.asker) {
            let mut needs = self.slots.needs.lock().unwrap_or_else(PoisonError::into_inner);
            needs.insert(request.asker.clone(), (request.catalog_xmin, now()));
        }
        self.hold_catalogs();
        let mut kept = self.slots.session.lock().await;
        let found = self.ask_writer(&mut kept, request.awaits_list).await;
        if found.is_err() {
            *kept = None;
        }
        let found = found.map_err(|e| Refusal::new(Kind::Failed, format!("the writer's slots: {e}")))?;
        // Once another region leads, these are carried here, and go when the new primary's go.
        let kept: BTreeMap<String, bool> = found.iter().map(|slot| (slot.name.clone(), true)).collect();
        if kept != self.state().carried {
            let noted = self.file.change(|state| state.carried = kept);
            noted.map_err(|e| Refusal::new(Kind::Failed, e.to_string()))?;
        }
        Ok(m::LogicalSlots { slots: found.into_iter().map(to_message).collect() })
    }

    async fn ask_writer(
        &self,
        kept: &mut Option<Session>,
        awaits_list: bool,
    ) -> Result<Vec<LogicalSlot>, SessionError> {
        let session = match kept {
            Some(session) => session,
            None => kept.insert(self.instance.session(ANSWER).await?),
        };
        let (found, _) = slots::list(session, ANSWER).await?;
        if awaits_list {
            slots::log_running(session, ANSWER).await?;
        }
        Ok(found)
    }

    /// Has the writer keep the catalogs that the secondaries' slots still decode with.
    fn hold_catalogs(&self) {
        let Some(leader) = self.owner.cluster().leader() else { return };
        let needs = self.slots.needs.lock().unwrap_or_else(PoisonError::into_inner);
        let asked: Vec<(u64, Duration)> = needs.values().map(|(xid, at)| (*xid, at.elapsed())).collect();
        drop(needs);
        leader.hold_catalogs(slots::catalogs_to_hold(&asked, leader.leads_for()));
    }

    /// Carries the writer's slots while this region follows, for ever; while it leads, keeps the writer's
    /// catalogs for the others.
    pub(super) async fn carry_slots(self: Arc<Self>) {
        let mut said = String::new();
        loop {
            let wait = if self.slots.lock().is_empty() { SELDOM } else { EVERY };
            tokio::time::sleep(wait).await;
            let follows =
                self.owner.cluster().follower().is_some_and(|follower| follower.applied().is_some());
            let can = self.instance.exists()
                && self.instance.installation().major.logical_slots() == LogicalSlots::OfTheStandby;
            if !follows || !can {
                self.slots.lock().clear();
                self.slots.needed.store(0, Ordering::Relaxed);
                self.hold_catalogs();
                continue;
            }
            self.slots.needs.lock().unwrap_or_else(PoisonError::into_inner).clear();
            let why = self.carry_once().await.err().unwrap_or_default();
            if !why.is_empty() && why != said {
                tracing::warn!("logical slots: {why}; trying again");
            }
            said = why;
        }
    }

    async fn carry_once(&self) -> Result<(), String> {
        // A primary that is being replaced, or does not answer, says nothing of its slots: they stay as they
        // are.
        let Ok(wanted) = self.ask_primary(false).await else { return Ok(()) };
        let ours: BTreeSet<String> = self.state().carried.keys().cloned().collect();
        if wanted.is_empty() && ours.is_empty() {
            self.slots.lock().clear();
            self.slots.needed.store(0, Ordering::Relaxed);
            return Ok(());
        }
        let mut session = self.instance.session(ANSWER).await.map_err(|e| e.to_string())?;
        let (there, applied_lsn) = slots::list(&mut session, ANSWER).await.map_err(|e| e.to_string())?;
        self.note(&wanted, &there)?;
        let mut failed = Vec::new();
        for step in slots::steps(&wanted, &there, &ours, applied_lsn) {
            if let Err(e) = self.step(&mut session, &step).await {
                failed.push(e);
            }
        }
        let (there, _) = slots::list(&mut session, ANSWER).await.map_err(|e| e.to_string())?;
        self.note(&wanted, &there)?;
        if failed.is_empty() { Ok(()) } else { Err(failed.join("; ")) }
    }

    async fn step(&self, session: &mut Session, step: &Step) -> Result<(), String> {
        let options = self.instance.local_connection();
        match step {
            Step::Make(slot) => {
                tracing::info!("logical slot {}: made here like the primary's", slot.name);
                let making = slots::make(&options, slot, STEP);
                tokio::pin!(making);
                let made = loop {
                    match tokio::time::timeout(LIST_AGAIN, &mut making).await {
                        Ok(made) => break made,
                        // A busy writer lists its transactions every 15 s by itself.
                        Err(_) => {
                            let told = self.ask_primary(true).await;
                            if told.is_ok_and(|told| !told.iter().any(|other| other.name == slot.name)) {
                                return Ok(());
                            }
                        }
                    }
                };
                made.map_err(|e| format!("{} cannot be made here: {e}", slot.name))
            }
            Step::Advance(slot, to_lsn) => slots::advance(&options, slot, *to_lsn, STEP)
                .await
                .map_err(|e| format!("{} cannot be advanced to {to_lsn}: {e}", slot.name)),
            Step::Drop(slot, why) => {
                tracing::warn!("logical slot {}: dropped here: {why}", slot.name);
                let dropped = slots::drop_slot(session, &slot.name, ANSWER).await;
                dropped.map_err(|e| format!("{} cannot be dropped: {e}", slot.name))
            }
        }
    }

    /// Notes what the standby has; what a promotion needs to know of it is kept on disk.
    fn note(&self, wanted: &[LogicalSlot], there: &[LogicalSlot]) -> Result<(), String> {
        let known: BTreeMap<String, Carried> =
            wanted.iter().map(|slot| (slot.name.clone(), slots::carried(slot, there))).collect();
        let mut kept: BTreeMap<String, bool> = known
            .iter()
            .filter(|(_, carried)| **carried != Carried::Another)
            .map(|(name, carried)| (name.clone(), *carried == Carried::Ready))
            .collect();
        // One that the primary has no more is carried until it is dropped.
        let before = self.state().carried.clone();
        let still = |name: &str| there.iter().any(|slot| slot.name == name);
        kept.extend(before.clone().into_iter().filter(|(name, _)| !known.contains_key(name) && still(name)));
        *self.slots.lock() = known;
        let needed = there.iter().filter(|slot| !slot.lost).map(|slot| slot.catalog_xmin);
        self.slots.needed.store(needed.filter(|xid| *xid != 0).min().unwrap_or(0), Ordering::Relaxed);
        if kept != before {
            self.file.change(|state| state.carried = kept).map_err(|e| e.to_string())?;
        }
        Ok(())
    }

    async fn ask_primary(&self, awaits_list: bool) -> Result<Vec<LogicalSlot>, AskError> {
        let primary = self.voter.accepted().primary;
        let (asker, catalog_xmin) = (self.own.name.to_string(), self.slots.needed.load(Ordering::Relaxed));
        let request = m::SlotsRequest { awaits_list, asker, catalog_xmin };
        let body = control_request::Body::Slots(request);
        match self.voter.ask(&primary, body, PATIENCE).await? {
            control_response::Body::Slots(told) => {
                let slots = told.slots.into_iter().take(SLOTS_MAX).map(of_message);
                Ok(slots.filter(LogicalSlot::is_valid).collect())
            }
            _ => Err(AskError::Refused("an answer to another question".into())),
        }
    }
}

fn to_message(slot: LogicalSlot) -> m::LogicalSlot {
    let LogicalSlot { name, plugin, database, two_phase, confirmed_lsn, .. } = slot;
    m::LogicalSlot { name, plugin, database, two_phase, confirmed_lsn: confirmed_lsn.0 }
}

fn of_message(slot: m::LogicalSlot) -> LogicalSlot {
    let m::LogicalSlot { name, plugin, database, two_phase, confirmed_lsn } = slot;
    LogicalSlot {
        name,
        plugin,
        database,
        two_phase,
        confirmed_lsn: Lsn(confirmed_lsn),
        ..LogicalSlot::default()
    }
}
