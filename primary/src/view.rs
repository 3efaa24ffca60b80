//! What the primary knows of itself and its secondaries: written by reader and shippers; read by what decides
//! which commits may return, and by whoever shows it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use proto::{Lsn, RegionName, RegionState, Timeline};

use crate::Target;
use crate::facts::{LinkCounters, LinkFacts, SecondaryFacts};
use crate::gate;
use crate::lag::{RedoClock, RegionLag};
use crate::release::{Leadership, Released};
use transport::WireCounters;

/// A region whose newest applied commit is older than this is catching up, also when it once had caught up.
const CATCHING_UP_LAG_US: i64 = 5_000_000;

/// How long a primary that was started again asks its secondaries before the first commit returns: those that
/// do not answer are not waited for.
const ASK_FIRST_US: u64 = 1_000_000;

/// How a secondary is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It is asked for the first time.
    Connecting,
    /// It did not answer, or the connection was lost.
    Unreachable,
    /// Redo flows.
    Streaming {
        /// What was durable here when the stream began is applied there.
        caught_up: bool,
    },
    /// It is sent a base backup.
    Seeding,
    /// It rewinds its data.
    Rewinding,
    /// It answered and said no.
    Refused,
    /// It has redo that is not this primary's.
    Diverged,
}

/// How reading the writer goes.
#[derive(Debug, Clone, Default)]
pub struct ReaderState {
    /// Redo flows from the writer.
    pub streaming: bool,
    /// What hinders it, in words; empty while streaming.
    pub detail: String,
    /// Redo read since this daemon started, bytes.
    pub redo_bytes: u64,
    /// Batches that it was cut into.
    pub batches: u64,
    /// What they take, compressed, bytes.
    pub compressed_bytes: u64,
    /// The end of the redo that is durable in this region.
    pub durable_lsn: Lsn,
    /// The timeline being read.
    pub timeline: Timeline,
    /// Up to where commits may return, and what holds the others.
    pub released: Released,
    /// The size of the writer's WAL segments; zero before it was read.
    pub wal_segment_bytes: u64,
}

#[derive(Debug)]
pub(crate) struct Views {
    inner: Mutex<Inner>,
    /// Told when a region reports.
    pub(crate) reported: tokio::sync::Notify,
    /// A region says that this epoch is over.
    fenced: AtomicBool,
    /// Until when the secondaries are asked first whether they have redo that this primary has lost, on a
    /// clock that never steps, microseconds.
    ask_until_us: u64,
    own: RegionName,
    /// The sets of voters.
    voters: tokio::sync::watch::Receiver<Vec<BTreeSet<RegionName>>>,
    /// Held while a report is handed to the writer's socket, so that a hold comes before or after one, never
    /// within.
    leadership: Mutex<Leadership>,
    /// The oldest transaction whose catalogs the writer is to keep; none while that is not known.
    pub(crate) catalogs: tokio::sync::watch::Sender<Option<u64>>,
}

#[derive(Debug)]
struct Inner {
    reader: ReaderState,
    clock: RedoClock,
    regions: BTreeMap<RegionName, Region>,
    /// The order of `regions.toml`.
    order: Vec<RegionName>,
    /// For each other voter, when the newest request left that it supported, on the clock of leases.
    supported_us: BTreeMap<RegionName, u64>,
}

/// One secondary, as known here.
#[derive(Debug)]
pub(crate) struct Region {
    pub(crate) url: String,
    pub(crate) standing: Standing,
    /// It has redo of this epoch that this primary has not. That stays known while the region is not reached.
    pub(crate) contradicts: bool,
    pub(crate) detail: String,
    /// What is wrong with the region's standby, as it says; empty when nothing is.
    pub(crate) trouble: String,
    /// The standby does not answer.
    pub(crate) silent: bool,
    pub(crate) timeline: Timeline,
    pub(crate) durable_lsn: Option<Lsn>,
    pub(crate) applied_lsn: Option<Lsn>,
    pub(crate) lag: RegionLag,
    /// The number of the newest heartbeat.
    heartbeat: u64,
    pub(crate) redo_bytes: u64,
    pub(crate) batches: u64,
    pub(crate) repair_bytes: u64,
    /// What connections sent that are over, and what the present one did.
    sent_before: LinkCounters,
    sent_now: LinkCounters,
    link: Option<LinkFacts>,
    pub(crate) seed_bytes: u64,
    pub(crate) seed_total_bytes: u64,
    pub(crate) seed_kept_bytes: u64,
}

impl Views {
    /// What is known by a primary which, where it `led` this epoch before, was started again at `now_us`.
    pub(crate) fn new(
        targets: &[Target],
        own: RegionName,
        voters: tokio::sync::watch::Receiver<Vec<BTreeSet<RegionName>>>,
        led: bool,
        now_us: u64,
    ) -> Views {
        let order = targets.iter().map(|t| t.name.clone()).collect();
        let regions = targets.iter().map(|t| (t.name.clone(), Region::new(t.url.clone()))).collect();
        let (reader, clock) = (ReaderState::default(), RedoClock::default());
        let supported_us = BTreeMap::new();
        let inner = Mutex::new(Inner { reader, clock, regions, order, supported_us });
        Views {
            inner,
            own,
            voters,
            reported: tokio::sync::Notify::new(),
            fenced: AtomicBool::new(false),
            ask_until_us: if led { now_us.saturating_add(ASK_FIRST_US) } else { now_us },
            leadership: Mutex::default(),
            catalogs: tokio::sync::watch::Sender::new(None),
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

    pub(crate) fn fence(&self, fenced: bool) {
        self.fenced.store(fenced, Ordering::Relaxed);
    }

    pub(crate) fn is_fenced(&self) -> bool {
        self.fenced.load(Ordering::Relaxed)
    }

    pub(crate) fn acknowledge(&self, allowed: bool) {
        let mut leadership = self.leadership();
        *leadership = leadership.acknowledging(allowed);
        drop(leadership);
        self.reported.notify_one();
    }

    pub(crate) fn hold(&self) {
        *self.leadership() = Leadership::Held;
    }

    /// What the region was told of its leadership. It does not change while this is held, and nothing may be
    /// waited for.
    pub(crate) fn leadership(&self) -> MutexGuard<'_, Leadership> {
        // A plain value, assigned whole.
        self.leadership.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn supported(&self, voter: &RegionName, asked_at_us: u64) {
        let mut inner = self.lock();
        let supported_us = inner.supported_us.entry(voter.clone()).or_default();
        // Answers may overtake each other.
        *supported_us = (*supported_us).max(asked_at_us);
        drop(inner);
        self.reported.notify_one();
    }

    /// For each set of voters, what is known of the others in it.
    pub(crate) fn supported_us(&self) -> Vec<Vec<Option<u64>>> {
        let inner = self.lock();
        gate::others(&self.voters.borrow(), &self.own, |name| inner.supported_us.get(name).copied())
    }

    /// Notes what commits may return, and says so when they begin to be held, and when they are let through
    /// again.
    pub(crate) fn note_released(&self, released: Released) {
        let mut inner = self.lock();
        let before = std::mem::replace(&mut inner.reader.released, released).held;
        match (before.filter(|held| held.is_news()), released.held.filter(|held| held.is_news())) {
            (None, Some(held)) => tracing::warn!("{held}"),
            (Some(_), None) if released.held.is_none() => tracing::info!("commits are let through again"),
            _ => {}
        }
    }

    pub(crate) fn holds_back(&self) -> bool {
        let reader = &self.lock().reader;
        reader.streaming && reader.released.held.is_some() && reader.released.lsn < reader.durable_lsn
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

    /// What the secondaries say against this primary.
    pub(crate) fn doubt(&self, now_us: u64) -> gate::Doubt {
        let inner = self.lock();
        let count = |of: fn(&&Region) -> bool| inner.regions.values().filter(of).count();
        let asks = now_us < self.ask_until_us;
        gate::Doubt {
            secondaries: inner.regions.len(),
            contradict: count(|region| region.contradicts),
            unasked: if asks { count(|region| region.standing == Standing::Connecting) } else { 0 },
        }
    }

    pub(crate) fn all_shipped(&self) -> bool {
        let inner = self.lock();
        let streaming = |region: &&Region| matches!(region.standing, Standing::Streaming { .. });
        inner.regions.values().filter(streaming).all(|r| r.durable_lsn >= Some(inner.reader.durable_lsn))
    }

    pub(crate) fn has_applied(&self, name: &RegionName, lsn: Lsn) -> bool {
        let inner = self.lock();
        inner.regions.get(name).is_some_and(|region| region.applied_lsn >= Some(lsn))
    }

    pub(crate) fn facts(&self, now_us: i64) -> Vec<SecondaryFacts> {
        let inner = self.lock();
        let facts = |name: &RegionName| {
            inner.regions[name].facts(name, inner.reader.durable_lsn, &inner.clock, now_us)
        };
        inner.order.iter().map(facts).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing is left half-written by a panic: each change is an assignment of plain values.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Region {
    /// A heartbeat leaves: its number, which says on the way back which one was answered. Times cannot:
    /// clocks step.
    pub(crate) fn heartbeat_sent(&mut self, sent_us: i64, end_lsn: Lsn) -> u64 {
        self.heartbeat += 1;
        self.lag.heartbeat_sent(self.heartbeat, sent_us, end_lsn);
        self.heartbeat
    }

    fn new(url: String) -> Region {
        Region {
            url,
            standing: Standing::Connecting,
            contradicts: false,
            detail: String::new(),
            trouble: String::new(),
            silent: false,
            timeline: Timeline(0),
            durable_lsn: None,
            applied_lsn: None,
            lag: RegionLag::default(),
            heartbeat: 0,
            redo_bytes: 0,
            batches: 0,
            repair_bytes: 0,
            sent_before: LinkCounters::default(),
            sent_now: LinkCounters::default(),
            link: None,
            seed_bytes: 0,
            seed_total_bytes: 0,
            seed_kept_bytes: 0,
        }
    }

    /// What the present connection has sent so far, and how it is.
    pub(crate) fn note_link(&mut self, wire: &WireCounters) {
        let WireCounters { sent_bytes, sent_packets, lost_packets, .. } = *wire;
        self.sent_now = LinkCounters { sent_bytes, sent_packets, lost_packets };
        let round_trip_us = runtime::clock::micros(wire.rtt);
        self.link = Some(LinkFacts { round_trip_us, window_bytes: wire.window_bytes });
    }

    /// Repairs of so many bytes were sent.
    pub(crate) fn note_repairs(&mut self, bytes: u64) {
        self.repair_bytes += bytes;
    }

    /// The present connection is over, having sent so much.
    pub(crate) fn link_ended(&mut self, wire: &WireCounters) {
        self.note_link(wire);
        self.sent_before = self.sent_before.plus(std::mem::take(&mut self.sent_now));
        self.link = None;
    }

    fn facts(&self, name: &RegionName, primary_lsn: Lsn, clock: &RedoClock, now_us: i64) -> SecondaryFacts {
        let visible_lag_us = self.lag.visibility_lag_us(now_us, clock);
        let fresh = visible_lag_us.is_some_and(|us| us < CATCHING_UP_LAG_US);
        let state = match self.standing {
            Standing::Connecting => RegionState::Connecting,
            Standing::Unreachable => RegionState::Unreachable,
            Standing::Streaming { .. } if self.silent => RegionState::Silent,
            Standing::Streaming { caught_up: true } if fresh => RegionState::Streaming,
            Standing::Streaming { .. } => RegionState::CatchingUp,
            Standing::Seeding => RegionState::Seeding,
            Standing::Rewinding => RegionState::Rewinding,
            Standing::Refused => RegionState::Refused,
            Standing::Diverged => RegionState::Diverged,
        };
        let behind = |lsn: Option<Lsn>| lsn.map(|lsn| primary_lsn.bytes_since(lsn));
        SecondaryFacts {
            name: name.clone(),
            url: self.url.clone(),
            state,
            detail: match self.standing {
                Standing::Streaming { .. } if self.detail.is_empty() => self.trouble.clone(),
                _ => self.detail.clone(),
            },
            timeline: self.timeline,
            durable_lsn: self.durable_lsn,
            applied_lsn: self.applied_lsn,
            durable_behind_bytes: behind(self.durable_lsn),
            behind_bytes: behind(self.applied_lsn),
            durable_lag_us: self.lag.durability_lag_us(now_us, clock),
            visible_lag_us,
            rpo_lag_us: self.lag.rpo_lag_us(now_us, clock),
            silent_us: self.lag.silent_us(now_us),
            redo_bytes: self.redo_bytes,
            batches: self.batches,
            repair_bytes: self.repair_bytes,
            sent: self.sent_before.plus(self.sent_now),
            link: self.link,
            seed_bytes: self.seed_bytes,
            seed_total_bytes: self.seed_total_bytes,
            seed_kept_bytes: self.seed_kept_bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn views(voters: &[&str]) -> Views {
        let set = voters.iter().map(|name| name.parse().unwrap()).collect();
        let (_, voters) = tokio::sync::watch::channel(vec![set]);
        Views::new(&[], "a".parse().unwrap(), voters, false, 0)
    }

    #[test]
    fn support_that_arrives_late_takes_nothing_back_and_a_stranger_s_counts_for_nothing() {
        let (views, b) = (views(&["a", "b", "c"]), "b".parse().unwrap());
        views.supported(&b, 20);
        views.supported(&b, 10);
        views.supported(&"d".parse().unwrap(), 30);
        assert_eq!(views.supported_us(), [vec![Some(20), None]]);
        let views = self::views(&["b", "c"]);
        assert_eq!(views.supported_us(), [vec![None; 3]], "two of two, as it is none of them");
    }

    #[test]
    fn a_primary_that_is_started_again_asks_first_and_not_for_ever() {
        let target = |name: &str| Target {
            name: name.parse().unwrap(),
            address: String::new(),
            bandwidth_bits_per_second: None,
            url: String::new(),
        };
        let targets = [target("b"), target("c")];
        let doubt = |views: &Views, now_us| {
            let gate::Doubt { contradict, unasked, .. } = views.doubt(now_us);
            (contradict, unasked)
        };
        let views = |led| {
            let (_, voters) = tokio::sync::watch::channel(Vec::new());
            Views::new(&targets, "a".parse().unwrap(), voters, led, 100)
        };
        let new = views(false);
        let views = views(true);
        assert_eq!(doubt(&views, 100), (0, 2));
        assert_eq!(doubt(&views, 100 + ASK_FIRST_US), (0, 0));
        views.update_region(&targets[0].name, |region, _| {
            (region.standing, region.contradicts) = (Standing::Diverged, true);
        });
        assert_eq!(doubt(&views, 100), (1, 1));
        assert_eq!(doubt(&new, 100), (0, 0), "nobody has redo of a new epoch");
    }

    #[test]
    fn what_a_region_says_of_its_standby_is_shown_while_it_streams() {
        let mut region = Region::new(String::new());
        (region.trouble, region.silent) = ("it does not answer".into(), true);
        region.standing = Standing::Streaming { caught_up: true };
        let facts = |region: &Region| region.facts(&"b".parse().unwrap(), Lsn(1), &RedoClock::default(), 0);
        let told = facts(&region);
        assert_eq!((told.state, told.detail.as_str()), (RegionState::Silent, "it does not answer"));
        region.standing = Standing::Connecting;
        assert_eq!(facts(&region).state, RegionState::Connecting);
    }

    #[test]
    fn a_writer_that_waits_for_what_may_not_be_released_is_held_back() {
        let views = views(&[]);
        let held = |lsn, held| Released { lsn: Lsn(lsn), held };
        views.update_reader(|reader| (reader.streaming, reader.durable_lsn) = (true, Lsn(100)));
        views.note_released(held(90, Some(gate::Held::Lease)));
        assert!(views.holds_back());
        views.note_released(held(100, Some(gate::Held::Lease)));
        assert!(!views.holds_back(), "nothing waits");
        views.note_released(held(90, Some(gate::Held::GivenUp)));
        views.update_reader(|reader| reader.streaming = false);
        assert!(!views.holds_back(), "the writer waits for nobody who reads");
    }
}
