//! What the primary knows of itself and its secondaries, for `status`: written by reader and shippers, read by anyone.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use proto::messages::RegionStatus;
use proto::{Lsn, RegionName, Timeline};

use crate::Target;
use crate::gate;
use crate::lag::{RedoClock, RegionLag};
use crate::shipper::machine::State;

/// A region whose newest applied commit is older than this is catching up, also when it once had caught up.
const CATCHING_UP_LAG_US: i64 = 5_000_000;

/// The most unanswered heartbeats remembered for a region.
const HEARTBEATS_MAX: usize = 256;

/// How reading the writer goes.
#[derive(Debug, Clone, Default)]
pub struct ReaderState {
    /// Redo flows from the writer.
    pub streaming: bool,
    /// What hinders it, in words; empty while streaming.
    pub detail: String,
    /// Redo read since this daemon started, bytes.
    pub redo_bytes: u64,
    /// The end of the redo that is durable in this region.
    pub durable_lsn: Lsn,
    /// The timeline being read.
    pub timeline: Timeline,
    /// Why commits do not return, in words; empty while they do.
    pub held: String,
    /// The size of the writer's WAL segments; zero before it was read.
    pub wal_segment_bytes: u64,
}

#[derive(Debug)]
pub(crate) struct Views {
    inner: Mutex<Inner>,
    /// Told when a region reports.
    pub(crate) reported: tokio::sync::Notify,
    draining: AtomicBool,
    /// A region says that this epoch is over.
    fenced: AtomicBool,
    /// The promotion that made this the primary is over.
    acknowledges: AtomicBool,
}

#[derive(Debug)]
struct Inner {
    reader: ReaderState,
    clock: RedoClock,
    regions: BTreeMap<RegionName, Region>,
    /// The order of `regions.toml`.
    order: Vec<RegionName>,
    /// When the newest request left that each witness has answered, on the steady clock.
    witnesses: BTreeMap<RegionName, Option<i64>>,
}

/// One secondary, as known here.
#[derive(Debug)]
pub(crate) struct Region {
    pub(crate) url: String,
    pub(crate) state: State,
    pub(crate) detail: String,
    pub(crate) timeline: Timeline,
    pub(crate) durable_lsn: Option<Lsn>,
    pub(crate) applied_lsn: Option<Lsn>,
    pub(crate) lag: RegionLag,
    /// Heartbeats that are on their way: their time as sent, and on the steady clock.
    pub(crate) heartbeats: VecDeque<(i64, i64)>,
    /// When the newest heartbeat left that the region has answered, on the steady clock.
    pub(crate) answered_us: Option<i64>,
    pub(crate) redo_bytes: u64,
    /// Bytes of connections that are over, and of the present one.
    pub(crate) wan_bytes_before: u64,
    pub(crate) wan_bytes_now: u64,
    pub(crate) seed_bytes: u64,
    pub(crate) seed_total_bytes: u64,
}

impl Views {
    pub(crate) fn new(targets: &[Target], witnesses: &[RegionName]) -> Views {
        let order = targets.iter().map(|t| t.name.clone()).collect();
        let regions = targets.iter().map(|t| (t.name.clone(), Region::new(t.url.clone()))).collect();
        let (reader, clock) = (ReaderState::default(), RedoClock::default());
        let witnesses = witnesses.iter().map(|name| (name.clone(), None)).collect();
        let inner = Mutex::new(Inner { reader, clock, regions, order, witnesses });
        Views {
            inner,
            reported: tokio::sync::Notify::new(),
            draining: AtomicBool::new(false),
            fenced: AtomicBool::new(false),
            acknowledges: AtomicBool::new(false),
        }
    }

    pub(crate) fn reader(&self) -> ReaderState {
        self.lock().reader.clone()
    }

    pub(crate) fn update_reader(&self, change: impl FnOnce(&mut ReaderState)) {
        change(&mut self.lock().reader);
    }

    /// Notes that redo up to `end_lsn` holds no commit younger than `at_us`.
    pub(crate) fn note_redo(&self, at_us: i64, end_lsn: Lsn) {
        self.lock().clock.note(at_us, end_lsn);
    }

    pub(crate) fn update_region(&self, name: &RegionName, change: impl FnOnce(&mut Region, &RedoClock)) {
        let inner = &mut *self.lock();
        if let Some(region) = inner.regions.get_mut(name) {
            change(region, &inner.clock);
        }
    }

    /// The writer stops: it has no commits to hold any more.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
        self.reported.notify_one();
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    pub(crate) fn fence(&self, fenced: bool) {
        self.fenced.store(fenced, Ordering::Relaxed);
    }

    pub(crate) fn is_fenced(&self) -> bool {
        self.fenced.load(Ordering::Relaxed)
    }

    pub(crate) fn acknowledge(&self, allowed: bool) {
        if self.acknowledges.swap(allowed, Ordering::Relaxed) != allowed {
            self.reported.notify_one();
        }
    }

    pub(crate) fn acknowledges(&self) -> bool {
        self.acknowledges.load(Ordering::Relaxed)
    }

    pub(crate) fn witness_answered(&self, name: &RegionName, left_us: i64) {
        if let Some(answered_us) = self.lock().witnesses.get_mut(name) {
            *answered_us = (*answered_us).max(Some(left_us));
        }
    }

    /// When the newest heartbeat left that each voter has answered.
    pub(crate) fn answered_us(&self) -> Vec<Option<i64>> {
        let inner = self.lock();
        let regions = inner.regions.values().map(|region| region.answered_us);
        regions.chain(inner.witnesses.values().copied()).collect()
    }

    /// Says so when commits begin to be held, and when they are let through again.
    pub(crate) fn note_held(&self, held: Option<gate::Held>) {
        // A moment of waiting for regions is the rule, not news.
        let now = held.map(|held| held.to_string()).unwrap_or_default();
        let mut inner = self.lock();
        if (now.is_empty()) != (inner.reader.held.is_empty())
            && now.contains("are held") | inner.reader.held.contains("are held")
        {
            match now.is_empty() {
                true => tracing::info!("commits are let through again"),
                false => tracing::warn!("{now}"),
            }
        }
        inner.reader.held = now;
    }

    /// How far the secondaries are, for the gate.
    pub(crate) fn secondaries(&self, now_us: i64) -> Vec<gate::Secondary> {
        let inner = self.lock();
        let secondary = |region: &Region| {
            let lag_us = |lsn: Lsn| {
                let oldest_us = inner.clock.oldest_beyond_us(lsn).unwrap_or(now_us);
                now_us.saturating_sub(oldest_us).max(0)
            };
            gate::Secondary { durable_lsn: region.durable_lsn, rpo_lag_us: region.durable_lsn.map(lag_us) }
        };
        inner.regions.values().map(secondary).collect()
    }

    pub(crate) fn all_shipped(&self) -> bool {
        let inner = self.lock();
        let streaming = |region: &&Region| matches!(region.state, State::Streaming { .. });
        inner.regions.values().filter(streaming).all(|r| r.durable_lsn >= Some(inner.reader.durable_lsn))
    }

    pub(crate) fn has_applied(&self, name: &RegionName, lsn: Lsn) -> bool {
        let inner = self.lock();
        inner.regions.get(name).is_some_and(|region| region.applied_lsn >= Some(lsn))
    }

    pub(crate) fn rows(&self, now_us: i64) -> Vec<RegionStatus> {
        let inner = self.lock();
        let row = |name: &RegionName| inner.regions[name].row(name, inner.reader.durable_lsn, now_us);
        inner.order.iter().map(row).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing is left half-written by a panic: each change is an assignment of plain values.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Region {
    /// A heartbeat leaves.
    pub(crate) fn heartbeat_sent(&mut self, sent_us: i64, steady_us: i64, end_lsn: Lsn) {
        self.lag.heartbeat_sent(sent_us, end_lsn);
        if self.heartbeats.len() == HEARTBEATS_MAX {
            self.heartbeats.pop_front();
        }
        self.heartbeats.push_back((sent_us, steady_us));
    }

    /// The region has answered the heartbeats up to the one of `sent_us`.
    pub(crate) fn heartbeat_answered(&mut self, sent_us: i64) {
        while let Some((_, steady_us)) = self.heartbeats.pop_front_if(|(at_us, _)| *at_us <= sent_us) {
            self.answered_us = self.answered_us.max(Some(steady_us));
        }
    }

    fn new(url: String) -> Region {
        Region {
            url,
            state: State::Probing,
            detail: String::new(),
            timeline: Timeline(0),
            durable_lsn: None,
            applied_lsn: None,
            lag: RegionLag::default(),
            heartbeats: VecDeque::new(),
            answered_us: None,
            redo_bytes: 0,
            wan_bytes_before: 0,
            wan_bytes_now: 0,
            seed_bytes: 0,
            seed_total_bytes: 0,
        }
    }

    fn row(&self, name: &RegionName, primary_durable_lsn: Lsn, now_us: i64) -> RegionStatus {
        let ms = |us: Option<i64>| us.and_then(|us| u64::try_from(us / 1000).ok());
        let visibility_lag_us = self.lag.visibility_lag_us(now_us);
        let fresh = visibility_lag_us.is_some_and(|us| us < CATCHING_UP_LAG_US);
        let state = match self.state {
            State::Probing if self.detail.is_empty() => "connecting",
            State::Probing => "unreachable",
            State::Streaming { caught_up: true, .. } if fresh => "streaming",
            State::Streaming { .. } => "catching_up",
            State::Seeding => "seeding",
            State::Waiting { refused: true, .. } => "refused",
            State::Waiting { refused: false, .. } => "unreachable",
        };
        RegionStatus {
            name: name.to_string(),
            role: "secondary".into(),
            state: state.into(),
            timeline: self.timeline.0,
            durable_lsn: self.durable_lsn.map(|l| l.0),
            applied_lsn: self.applied_lsn.map(|l| l.0),
            behind_bytes: self.applied_lsn.map(|applied_lsn| primary_durable_lsn.bytes_since(applied_lsn)),
            durability_lag_ms: ms(self.lag.durability_lag_us(now_us)),
            visibility_lag_ms: ms(visibility_lag_us),
            redo_bytes: self.redo_bytes,
            wan_bytes: self.wan_bytes_before + self.wan_bytes_now,
            url: self.url.clone(),
            seed_bytes: self.seed_bytes,
            seed_total_bytes: self.seed_total_bytes,
            detail: self.detail.clone(),
        }
    }
}
