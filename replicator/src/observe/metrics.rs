//! Makes the table's metrics of facts.

use std::collections::BTreeMap;

use primary::SecondaryFacts;
use primary::gate::Held;
use proto::RegionState;
use telemetry::table::{self, Metric};
use telemetry::{Distribution, Snapshot};
use volume::quorum::CopyState;

use super::facts::Facts;
use super::health;
use crate::facts::{FollowerFacts, LeaderFacts, PartFacts};

/// The reasons for which commits are held, as `replicator_commits_held` names them.
const REASONS: [&str; 7] =
    ["too_few_regions", "rpo", "lease", "promotion", "given_up", "contradicted", "unasked"];

fn reason(held: Held) -> &'static str {
    match held {
        Held::TooFewRegions { .. } => "too_few_regions",
        Held::Rpo => "rpo",
        Held::Lease => "lease",
        Held::Promotion => "promotion",
        Held::GivenUp => "given_up",
        Held::Contradicted { .. } => "contradicted",
        Held::Unasked => "unasked",
    }
}

/// The states of copies, as `replicator volume status` names them.
const COPY_STATES: [&str; 5] = ["live", "filling", "opening", "absent", "failed"];

fn copy_state(standing: &CopyState) -> &'static str {
    match standing {
        CopyState::Live => "live",
        CopyState::Filling => "filling",
        CopyState::Absent => "absent",
        CopyState::Asked | CopyState::Promised | CopyState::Adopting => "opening",
        CopyState::PromisedElsewhere(_) | CopyState::Failed(_) => "failed",
    }
}

/// What is kept between looks: how lags fell, by metric and region.
#[derive(Debug, Default)]
pub struct Lags(BTreeMap<(&'static str, String), (Metric, Distribution)>);

impl Lags {
    /// Notes the lags of one look.
    pub fn note(&mut self, facts: &Facts) {
        match &facts.part {
            PartFacts::Leads(leader) => {
                // The primary itself is never behind.
                self.note_one(facts.region.as_str(), [Some(0), Some(0), Some(0)]);
                for region in &leader.secondaries {
                    let lags = [region.durable_lag_us, region.visible_lag_us, region.rpo_lag_us];
                    self.note_one(region.name.as_str(), lags);
                }
            }
            PartFacts::Follows(_) | PartFacts::Neither => {}
        }
    }

    fn note_one(&mut self, region: &str, lags_us: [Option<i64>; 3]) {
        let metrics = [table::DURABLE_LAG_OBSERVED, table::VISIBLE_LAG_OBSERVED, table::RPO_LAG_OBSERVED];
        for (metric, lag_us) in metrics.into_iter().zip(lags_us) {
            let Some(lag_us) = lag_us else { continue };
            let key = (metric.name, region.to_owned());
            let (_, fell) = self.0.entry(key).or_insert_with(|| (metric, Distribution::of(&metric)));
            fell.note(seconds(lag_us));
        }
    }
}

/// Microseconds in seconds.
#[allow(clippy::cast_precision_loss, reason = "microseconds of years")]
fn seconds(us: i64) -> f64 {
    us as f64 / 1e6
}

/// A number of bytes or things.
#[allow(clippy::cast_precision_loss, reason = "a position is exact up to 8 PiB of redo")]
fn number(count: u64) -> f64 {
    count as f64
}

fn us(us: u64) -> f64 {
    number(us) / 1e6
}

fn flag(yes: bool) -> f64 {
    f64::from(u8::from(yes))
}

/// Every series of the region at the moment of `facts`.
#[must_use]
pub fn of(facts: &Facts, lags: &Lags) -> Snapshot {
    let mut all = Snapshot::default();
    let region = facts.region.as_str();
    all.put(table::REGION_INFO, &[region, facts.part.role(), env!("CARGO_PKG_VERSION")], 1.0);
    all.put(table::REGION_READY, &[region], flag(health::ready(facts).ok));
    all.put(table::EPOCH, &[region], number(facts.epoch.0));
    all.put(table::TIMELINE, &[region], f64::from(facts.volume.bounds.timeline.0));
    put_state(&mut all, region, facts.part.state());
    all.put(table::DURABLE_POSITION, &[region], number(facts.volume.bounds.durable_lsn.0));
    match &facts.part {
        PartFacts::Leads(leader) => put_leader(&mut all, region, leader),
        PartFacts::Follows(follower) => put_follower(&mut all, region, follower),
        PartFacts::Neither => {}
    }
    for ((_, of), (metric, fell)) in &lags.0 {
        all.put_distribution(*metric, &[of], fell.clone());
    }
    put_volume(&mut all, facts);
    put_promotions(&mut all, facts);
    put_postgres(&mut all, facts);
    put_load(&mut all, facts);
    put_endpoints(&mut all, facts);
    put_nodes(&mut all, facts);
    #[allow(clippy::cast_precision_loss, reason = "seconds of years")]
    all.put(table::CERTIFICATE_LEFT, &[region], facts.certificate_left_s as f64);
    all
}

fn put_state(all: &mut Snapshot, region: &str, state: RegionState) {
    for each in RegionState::ALL {
        all.put(table::REGION_STATE, &[region, each.as_str()], flag(each == state));
    }
}

fn put_leader(all: &mut Snapshot, region: &str, leader: &LeaderFacts) {
    for metric in [table::DURABLE_LAG, table::VISIBLE_LAG, table::RPO_LAG] {
        all.put(metric, &[region], 0.0);
    }
    for metric in [table::DURABLE_BEHIND, table::VISIBLE_BEHIND] {
        all.put(metric, &[region], 0.0);
    }
    all.put(table::APPLIED_POSITION, &[region], number(leader.reader.durable_lsn.0));
    all.put(table::RELEASED_POSITION, &[region], number(leader.reader.released.lsn.0));
    let held = leader.held().map(reason);
    for each in REASONS {
        all.put(table::COMMITS_HELD, &[region, each], flag(held == Some(each)));
    }
    if let Some(left_us) = leader.lease_left_us {
        all.put(table::LEASE_LEFT, &[region], us(left_us));
    }
    all.put(table::REDO_READ, &[region], number(leader.reader.redo_bytes));
    all.put(table::BATCHES, &[region], number(leader.reader.batches));
    all.put(table::BATCH_COMPRESSED, &[region], number(leader.reader.compressed_bytes));
    for secondary in &leader.secondaries {
        put_secondary(all, region, secondary);
    }
}

fn put_secondary(all: &mut Snapshot, region: &str, secondary: &SecondaryFacts) {
    let peer = secondary.name.as_str();
    let lags = [
        (table::DURABLE_LAG, secondary.durable_lag_us),
        (table::VISIBLE_LAG, secondary.visible_lag_us),
        (table::RPO_LAG, secondary.rpo_lag_us),
    ];
    for (metric, lag_us) in lags {
        if let Some(lag_us) = lag_us {
            all.put(metric, &[peer], seconds(lag_us));
        }
    }
    let behind = [
        (table::DURABLE_BEHIND, secondary.durable_behind_bytes),
        (table::VISIBLE_BEHIND, secondary.behind_bytes),
    ];
    for (metric, bytes) in behind {
        if let Some(bytes) = bytes {
            all.put(metric, &[peer], number(bytes));
        }
    }
    let link = [region, peer];
    all.put(table::LINK_UP, &link, flag(secondary.link.is_some()));
    all.put(table::LINK_PACKETS, &link, number(secondary.sent.sent_packets));
    all.put(table::LINK_LOST, &link, number(secondary.sent.lost_packets));
    all.put(table::LINK_WAN, &link, number(secondary.sent.sent_bytes));
    all.put(table::LINK_REDO, &link, number(secondary.redo_bytes));
    all.put(table::LINK_BATCHES, &link, number(secondary.batches));
    all.put(table::LINK_REPAIRS, &link, number(secondary.repair_bytes));
    if let Some(silent_us) = secondary.silent_us {
        all.put(table::LINK_SILENCE, &link, seconds(silent_us));
    }
    if let Some(now) = secondary.link {
        all.put(table::LINK_ROUND_TRIP, &link, us(now.round_trip_us));
        all.put(table::LINK_WINDOW, &link, number(now.window_bytes));
    }
    let seeding = secondary.state == RegionState::Seeding;
    let of_seed = |bytes| if seeding { number(bytes) } else { 0.0 };
    all.put(table::LINK_SEED_SENT, &link, of_seed(secondary.seed_bytes));
    all.put(table::LINK_SEED_SIZE, &link, of_seed(secondary.seed_total_bytes));
}

fn put_follower(all: &mut Snapshot, region: &str, follower: &FollowerFacts) {
    all.put(table::APPLIED_POSITION, &[region], number(follower.applied_lsn.0));
    all.put(table::REDO_RECEIVED, &[region], number(follower.inbound.redo_bytes));
    all.put(table::BATCHES_REPAIRED, &[region], number(follower.inbound.repaired_batches));
    if let Some(lag_us) = follower.heard_lag_us {
        all.put(table::HEARD_LAG, &[region], us(lag_us));
    }
}

fn put_volume(all: &mut Snapshot, facts: &Facts) {
    let region = facts.region.as_str();
    let volume = &facts.volume;
    for state in COPY_STATES {
        let count = volume.copies.iter().filter(|copy| copy_state(&copy.state) == state).count();
        all.put(table::COPIES, &[region, state], number(count as u64));
    }
    all.put(table::VOLUME_WRITABLE, &[region], flag(volume.writable));
    all.put(table::VOLUME_STORED, &[region], number(facts.stored_bytes));
    all.put(table::VOLUME_HORIZON, &[region], number(volume.bounds.horizon_lsn.0));
    for copy in &volume.copies {
        let name = copy.id.to_string();
        let labels = [region, name.as_str()];
        let behind = volume.bounds.durable_lsn.bytes_since(copy.flushed_lsn);
        all.put(table::COPY_BEHIND, &labels, number(behind));
        all.put(table::COPY_FILLED, &labels, number(copy.repair.filled_bytes));
        all.put(table::COPY_REPAIRED, &labels, number(copy.repair.repaired_segments));
        all.put(table::COPY_DAMAGE, &labels, number(copy.repair.damage.len() as u64));
        if copy.repair.scrubbed_us > 0 {
            let age_us = facts.now_us.saturating_sub(copy.repair.scrubbed_us).max(0);
            all.put(table::COPY_SCRUB_AGE, &labels, seconds(age_us));
        }
    }
}

fn put_promotions(all: &mut Snapshot, facts: &Facts) {
    let region = facts.region.as_str();
    all.put(table::PROMOTION_RUNNING, &[region], flag(facts.promoting));
    all.put(table::PROMOTIONS, &[region], number(facts.past.len() as u64));
    let Some(newest) = facts.past.last() else { return };
    all.put(table::PROMOTION_WRITE_GAP, &[region], us(newest.write_gap_us));
    // A step that was tried again is one step that took longer.
    let mut steps: BTreeMap<&str, u64> = BTreeMap::new();
    for step in &newest.promotion.steps {
        *steps.entry(&step.name).or_default() += step.us;
    }
    for (step, took_us) in steps {
        all.put(table::PROMOTION_STEP, &[region, step], us(took_us));
    }
}

fn put_load(all: &mut Snapshot, facts: &Facts) {
    let region = facts.region.as_str();
    let Some(told) = &facts.load else { return };
    for (wait, sessions) in &told.sessions {
        all.put(table::LOAD_SESSIONS, &[region, wait], number(*sessions));
    }
    all.put(table::LOAD_CORES, &[region], f64::from(told.cores));
    all.put(table::LOAD_LOOKS, &[region, "answered"], number(told.looks));
    all.put(table::LOAD_LOOKS, &[region, "missed"], number(told.missed));
    all.put(table::LOAD_TOOK, &[region], us(told.all_us));
}

fn put_nodes(all: &mut Snapshot, facts: &Facts) {
    for node in &facts.nodes {
        let labels = [facts.region.as_str(), &node.name];
        // One that holds copies alone has no state while it is connected.
        let up = matches!(node.state.as_str(), "streaming" | "");
        all.put(table::NODE_UP, &labels, flag(up));
        if let Some(lag_ms) = node.lag_ms {
            all.put(table::NODE_LAG, &labels, number(lag_ms) / 1e3);
        }
    }
}

fn put_endpoints(all: &mut Snapshot, facts: &Facts) {
    let region = facts.region.as_str();
    for (endpoint, counts) in &facts.endpoints {
        let labels = &[region, *endpoint];
        all.put(table::ENDPOINT_CLIENTS, labels, number(counts.clients));
        all.put(table::ENDPOINT_WAITING, labels, number(counts.waiting));
        all.put(table::ENDPOINT_SESSIONS, labels, number(counts.opened));
        all.put(table::ENDPOINT_REFUSED, labels, number(counts.refused));
        all.put(table::ENDPOINT_CUT, labels, number(counts.cut));
    }
}

fn put_postgres(all: &mut Snapshot, facts: &Facts) {
    let region = facts.region.as_str();
    all.put(table::POSTGRES_UP, &[region], flag(facts.postgres.is_ok()));
    let Ok(vitals) = &facts.postgres else { return };
    for (state, count) in &vitals.connections {
        all.put(table::POSTGRES_CONNECTIONS, &[region, state], *count);
    }
    all.put(table::POSTGRES_CONNECTIONS_MAX, &[region], vitals.connections_max);
    all.put(table::POSTGRES_TRANSACTIONS, &[region, "commit"], vitals.commits);
    all.put(table::POSTGRES_TRANSACTIONS, &[region, "rollback"], vitals.rollbacks);
    all.put(table::POSTGRES_DEADLOCKS, &[region], vitals.deadlocks);
    all.put(table::POSTGRES_BLOCKS, &[region, "hit"], vitals.blocks_hit);
    all.put(table::POSTGRES_BLOCKS, &[region, "read"], vitals.blocks_read);
    all.put(table::POSTGRES_OLDEST, &[region], vitals.oldest_s);
    for (slot, bytes) in &vitals.slots {
        all.put(table::SLOT_RETAINED, &[region, slot], *bytes);
    }
}
