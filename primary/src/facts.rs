//! What a primary knows of a secondary, as facts: `status`, metrics and decisions are made of these.

use proto::messages::RegionStatus;
use proto::{Lsn, RegionName, RegionState, Timeline};

/// What crossed the network to a region, over all connections since this primary began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LinkCounters {
    /// Bytes, with all headers, and whatever had to be sent again.
    pub sent_bytes: u64,
    /// Packets.
    pub sent_packets: u64,
    /// Packets of those that were lost.
    pub lost_packets: u64,
}

impl LinkCounters {
    /// These and those of another connection.
    #[must_use]
    pub fn plus(self, other: LinkCounters) -> LinkCounters {
        LinkCounters {
            sent_bytes: self.sent_bytes + other.sent_bytes,
            sent_packets: self.sent_packets + other.sent_packets,
            lost_packets: self.lost_packets + other.lost_packets,
        }
    }
}

/// The present connection that redo streams on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkFacts {
    /// The round trip, smoothed, microseconds.
    pub round_trip_us: u64,
    /// How much may be in flight, bytes.
    pub window_bytes: u64,
}

/// One secondary, as its primary knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecondaryFacts {
    /// Its name.
    pub name: RegionName,
    /// Its connection string, without a password.
    pub url: String,
    /// What it does.
    pub state: RegionState,
    /// What hinders it, in words; often empty.
    pub detail: String,
    /// The timeline of its newest redo; zero before it said so.
    pub timeline: Timeline,
    /// What it has durable; none before it said so.
    pub durable_lsn: Option<Lsn>,
    /// What its PostgreSQL has applied; none before it said so.
    pub applied_lsn: Option<Lsn>,
    /// Redo that is durable in the primary and not known to be durable there, bytes.
    pub durable_behind_bytes: Option<u64>,
    /// Redo that is durable in the primary and not known to be applied there, bytes.
    pub behind_bytes: Option<u64>,
    /// See [`RegionLag::durability_lag_us`](crate::lag::RegionLag::durability_lag_us).
    pub durable_lag_us: Option<i64>,
    /// See [`RegionLag::visibility_lag_us`](crate::lag::RegionLag::visibility_lag_us).
    pub visible_lag_us: Option<i64>,
    /// See [`RegionLag::rpo_lag_us`](crate::lag::RegionLag::rpo_lag_us).
    pub rpo_lag_us: Option<i64>,
    /// How long nothing was heard from it, microseconds; none before anything was.
    pub silent_us: Option<i64>,
    /// Redo that it was sent, bytes.
    pub redo_bytes: u64,
    /// Batches that it was sent.
    pub batches: u64,
    /// Bytes of repairs sent beside the redo.
    pub repair_bytes: u64,
    /// What crossed the network for it.
    pub sent: LinkCounters,
    /// The present connection, while redo streams.
    pub link: Option<LinkFacts>,
    /// How much of the newest seed it was sent, bytes.
    pub seed_bytes: u64,
    /// How large that is expected to be, bytes.
    pub seed_total_bytes: u64,
    /// How much of the first was there already, and was not sent, bytes.
    pub seed_kept_bytes: u64,
}

impl SecondaryFacts {
    /// Its row of `status`.
    #[must_use]
    pub fn row(&self) -> RegionStatus {
        let ms = |us: Option<i64>| us.and_then(|us| u64::try_from(us / 1000).ok());
        RegionStatus {
            name: self.name.to_string(),
            role: "secondary".into(),
            state: self.state.to_string(),
            timeline: self.timeline.0,
            durable_lsn: self.durable_lsn.map(|l| l.0),
            applied_lsn: self.applied_lsn.map(|l| l.0),
            behind_bytes: self.behind_bytes,
            durability_lag_ms: ms(self.durable_lag_us),
            visibility_lag_ms: ms(self.visible_lag_us),
            redo_bytes: self.redo_bytes,
            wan_bytes: self.sent.sent_bytes,
            url: self.url.clone(),
            seed_bytes: self.seed_bytes,
            seed_total_bytes: self.seed_total_bytes,
            seed_kept_bytes: self.seed_kept_bytes,
            detail: self.detail.clone(),
            ..RegionStatus::default()
        }
    }
}
