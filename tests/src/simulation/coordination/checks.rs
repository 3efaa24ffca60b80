//! What must hold, each in a place of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use coordination::automatic::LATELY_MAX;
use coordination::leadership::{HISTORY_MAX, Order, Past};
use coordination::register::Accepted;
use coordination::{Leadership, Mode, Number, Promotion, Step};
use proto::{Epoch, RegionName};
use tokio::time::Instant;

use super::disk::Row;
use super::{Report, lock};

/// For how long a commit counts as acknowledged lately, microseconds.
const LATELY_US: u64 = 1_000_000;

#[derive(Debug)]
pub(super) struct Checks {
    begin: Instant,
    /// Commits wait for one other region.
    remote: bool,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    report: Report,
    failed: Option<String>,
    gentle: bool,
    acknowledged: BTreeMap<u64, Acknowledged>,
    newest_epoch: Epoch,
    last_us: u64,
    primaries: BTreeMap<Epoch, RegionName>,
    agreed: BTreeMap<Number, Leadership>,
    /// Promotions that nobody has ordered.
    forged: BTreeSet<u64>,
}

#[derive(Debug, Clone, Copy)]
struct Acknowledged {
    row: Row,
    at: usize,
    lost: bool,
    /// The disks that had it are gone.
    gone: bool,
}

impl Checks {
    pub(super) fn new(remote: bool) -> Checks {
        Checks { begin: crate::now(), remote, inner: Mutex::default() }
    }

    pub(super) fn now_us(&self) -> u64 {
        u64::try_from(self.begin.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    pub(super) fn fault(&self) {
        lock(&self.inner).report.faults += 1;
    }

    pub(super) fn set_gentle(&self) {
        lock(&self.inner).gentle = true;
    }

    pub(super) fn is_gentle(&self) -> bool {
        lock(&self.inner).gentle
    }

    pub(super) fn has_failed(&self) -> bool {
        lock(&self.inner).failed.is_some()
    }

    pub(super) fn fail(&self, what: String) {
        let at_us = self.now_us();
        let inner = &mut *lock(&self.inner);
        inner.failed.get_or_insert_with(|| format!("at {:.3} s: {what}", at_us as f64 / 1e6));
    }

    pub(super) fn verdict(&self) -> Result<(), String> {
        lock(&self.inner).failed.clone().map_or(Ok(()), Err)
    }

    pub(super) fn report(&self) -> Report {
        lock(&self.inner).report
    }

    pub(super) fn acknowledged_lately(&self) -> bool {
        self.now_us() < lock(&self.inner).last_us + LATELY_US
    }

    /// No two regions acknowledge: none in an epoch once one was acknowledged in a later one.
    pub(super) fn acknowledged(&self, region: usize, row: Row, at: usize) {
        let now_us = self.now_us();
        let inner = &mut *lock(&self.inner);
        let newest = inner.newest_epoch;
        if row.epoch < newest {
            let what =
                format!("region {region} acknowledges in epoch {}, and epoch {newest} did before", row.epoch);
            inner.failed.get_or_insert(format!("at {:.3} s: {what}", now_us as f64 / 1e6));
        }
        inner.newest_epoch = newest.max(row.epoch);
        inner.last_us = now_us;
        inner.report.acknowledged += 1;
        inner.acknowledged.insert(row.id, Acknowledged { row, at, lost: false, gone: false });
    }

    /// An epoch has one primary, a number one record, and what is agreed on later never has a lower epoch.
    pub(super) fn agreed(&self, agreed: &Accepted) {
        let Accepted { number, record } = agreed;
        let mut what = None;
        {
            let inner = &mut *lock(&self.inner);
            let past = record.history.iter().map(|past| &past.promotion);
            if let Some(made_up) = past.chain(&record.promotion).find(|p| inner.forged.contains(&p.id)) {
                what = Some(format!(
                    "a {} to {} is agreed on, and nobody has ordered it",
                    made_up.mode, made_up.to
                ));
            }
            let primary = inner.primaries.entry(record.epoch).or_insert_with(|| record.primary.clone());
            if *primary != record.primary {
                what = Some(format!(
                    "epoch {} has the primaries {primary} and {}",
                    record.epoch, record.primary
                ));
            }
            let known = inner.agreed.entry(*number).or_insert_with(|| record.clone());
            if known != record {
                what = Some(format!("two records are agreed on under number {number}"));
            }
            let before = inner.agreed.range(..*number).next_back().map(|(_, r)| r);
            let after = inner.agreed.range(*number..).nth(1).map(|(_, r)| r);
            let falls = |older: &Leadership, newer: &Leadership| {
                let steps = |record: &Leadership| record.voters.as_ref().map_or(0, |voters| voters.steps);
                newer.epoch < older.epoch
                    || newer.history.len() < older.history.len()
                    || steps(newer) < steps(older)
            };
            if before.is_some_and(|before| falls(before, record))
                || after.is_some_and(|after| falls(record, after))
            {
                what = Some(format!(
                    "what is agreed on under number {number} forgets what was agreed on before"
                ));
            }
        }
        if let Some(what) = what {
            self.fail(what);
        }
    }

    /// Promotion `id` is proposed, and no operator has signed it.
    pub(super) fn forged(&self, id: u64) {
        lock(&self.inner).forged.insert(id);
    }

    /// A promotion that was ordered has begun, with what was agreed then: it is about the epoch that it was
    /// ordered in. Those that nobody ordered are few, where they are `limited`.
    pub(super) fn begun(&self, order: &Order, limited: bool, record: &Leadership) {
        let fresh = |p: &&Promotion| p.id == order.id && p.attempt == 0 && p.step != Step::Promote;
        let Some(promotion) = record.promotion.as_ref().filter(fresh) else { return };
        let replaced = record.history.iter().any(|past| past.promotion.id == order.id);
        if record.epoch != order.epoch && !replaced {
            self.fail(format!("what was ordered in epoch {} begins in epoch {}", order.epoch, record.epoch));
        }
        // None that began an epoch can have come between the look and the order; others may have been rolled
        // back.
        let began = |past: &&Past| past.promotion.mode == Mode::Failover && past.began();
        let failovers = record.history.iter().filter(began).count();
        if limited && !replaced && failovers >= LATELY_MAX {
            self.fail(format!("{} orders a failover by itself after {failovers}", promotion.to));
        }
    }

    /// What is lost when an epoch begins to acknowledge was at risk, as the promotion says that cut it off.
    pub(super) fn promoted(&self, record: &Leadership, log: &[Row]) {
        let mut what = None;
        {
            let inner = &mut *lock(&self.inner);
            for Past { promotion, .. } in record.history.iter().filter(|past| past.began()) {
                let Promotion { fork_lsn, loss, loss_max_bytes, to, epoch, .. } = promotion;
                let bytes = loss.to_lsn.0.saturating_sub(fork_lsn.0);
                if loss_max_bytes.is_some_and(|most| bytes > most) {
                    what = Some(format!(
                        "{to} leads epoch {epoch}, and {bytes} rows are lost that nobody allowed"
                    ));
                }
            }
            let earlier = |found: &&mut Acknowledged| found.row.epoch < record.epoch && !found.lost;
            for found in inner.acknowledged.values_mut().filter(earlier) {
                if log.get(found.at).is_some_and(|row| row.id == found.row.id) {
                    continue;
                }
                let Row { id, epoch } = found.row;
                let at = found.at as u64;
                let cuts = |past: &&Past| past.began() && past.promotion.epoch > epoch;
                let told = |past: &&Past| {
                    let Promotion { fork_lsn, loss, mode, .. } = &past.promotion;
                    *mode == Mode::Failover && at >= fork_lsn.0 && (at < loss.to_lsn.0 || loss.us > 0)
                };
                let mut cut_off = record.history.iter().filter(cuts);
                let (said, count) = (cut_off.clone().find(told), cut_off.clone().count());
                let lost = format!("commit {id} of epoch {epoch} at {at} is lost in epoch {}", record.epoch);
                if said.is_none() && count < HISTORY_MAX {
                    let cut_off: Vec<String> =
                        cut_off.by_ref().map(|past| format!("{:?}", past.promotion)).collect();
                    what = Some(format!("{lost}, and no failover says so: {cut_off:#?}"));
                } else if self.remote && inner.gentle && count == 1 {
                    // With two epochs two primaries were lost in a row, each of which may have been the only
                    // one that was left to have it.
                    what = Some(format!("{lost}, though another region had it"));
                }
                found.lost = true;
                inner.report.lost += 1;
            }
        }
        if let Some(what) = what {
            self.fail(what);
        }
    }

    /// A database is made only before anything was ever acknowledged.
    pub(super) fn creates(&self, region: usize) {
        if !lock(&self.inner).acknowledged.is_empty() {
            self.fail(format!("{region} makes an empty database, and commits were acknowledged"));
        }
    }

    /// A disk is lost, and with it what only it had; `disks` are those that are left.
    pub(super) fn disk_lost(&self, disks: &[(Vec<Row>, Vec<Row>)]) {
        let inner = &mut *lock(&self.inner);
        for found in inner.acknowledged.values_mut() {
            let is = |row: &Row| row.id == found.row.id;
            let there =
                disks.iter().any(|(log, aside)| log.get(found.at).is_some_and(is) || aside.iter().any(is));
            found.gone |= !there;
        }
    }

    /// Counts promotions that are over.
    pub(super) fn history(&self, record: &Leadership) {
        let inner = &mut *lock(&self.inner);
        let rolled_back = record.history.iter().filter(|past| past.rolled_back.is_some()).count() as u64;
        inner.report.promotions = inner.report.promotions.max(record.history.len() as u64);
        inner.report.rolled_back = inner.report.rolled_back.max(rolled_back);
        let steps = record.voters.as_ref().map_or(0, |voters| voters.steps);
        inner.report.changes = inner.report.changes.max(steps / 2);
    }

    /// At the end: every acknowledged commit is in all logs, or kept aside where it was lost.
    pub(super) fn final_log(&self, disks: &[(Vec<Row>, Vec<Row>)]) -> Result<(), String> {
        let inner = lock(&self.inner);
        for (index, (log, _)) in disks.iter().enumerate() {
            let differ = log.iter().zip(&disks[0].0).position(|(a, b)| a != b);
            if let Some(at) = differ {
                let (mine, first) = (log[at], disks[0].0[at]);
                return Err(format!(
                    "regions 0 and {index} hold different redo at {at}: {first:?}, {mine:?}"
                ));
            }
        }
        for Acknowledged { row, at, lost, gone } in inner.acknowledged.values() {
            let there = disks.iter().any(|(log, _)| log.get(*at).is_some_and(|found| found.id == row.id));
            let kept = disks.iter().any(|(_, kept)| kept.iter().any(|found| found.id == row.id));
            if !(there || *lost && (kept || *gone)) {
                return Err(format!(
                    "commit {} was acknowledged, and is neither in the log nor kept aside",
                    row.id
                ));
            }
        }
        Ok(())
    }
}
