//! What a region's daemon knows of itself, as facts. `status`, metrics, health checks, and what hinders a
//! switchover are made of these.

use primary::gate::Held;
use primary::{ReaderState, SecondaryFacts};
use proto::messages::RegionStatus;
use proto::{Epoch, Lsn, RegionName, RegionState, Timeline};
use secondary::InboundState;

use crate::units::show_bytes;

/// How far a region may be behind when the writer is stopped for it.
const HAND_OVER_BEHIND_BYTES: u64 = 16 << 20;

/// A region that leads, or is to.
#[derive(Debug, Clone)]
pub struct LeaderFacts {
    /// The epoch that it leads.
    pub epoch: Epoch,
    /// Whether its writer is kept running: not once it was told to stop.
    pub runs: bool,
    /// Why PostgreSQL does not accept connections, in words; none while it does, or is not to run.
    pub postgres_trouble: Option<String>,
    /// Up to where its writer has redo that may not be acknowledged yet, while that lets no client in for it.
    pub shut_until: Option<Lsn>,
    /// How reading the writer goes, and what holds commits.
    pub reader: ReaderState,
    /// How long commits may go on returning if no voter answers any more, microseconds; none where there is
    /// no lease.
    pub lease_left_us: Option<u64>,
    /// The secondaries, in the order of the file.
    pub secondaries: Vec<SecondaryFacts>,
}

impl LeaderFacts {
    /// What it does.
    #[must_use]
    pub fn state(&self) -> RegionState {
        if self.postgres_trouble.is_none() && self.shut_until.is_none() && self.reader.streaming {
            RegionState::Streaming
        } else {
            RegionState::Starting
        }
    }

    /// What holds its commits.
    #[must_use]
    pub fn held(&self) -> Option<Held> {
        self.reader.released.held
    }

    /// Whether it knows that nobody else leads: then what it has is the newest.
    #[must_use]
    pub fn leads_surely(&self) -> bool {
        let leads = match self.held() {
            None | Some(Held::TooFewRegions { .. } | Held::Rpo) => true,
            Some(
                Held::Lease | Held::Promotion | Held::GivenUp | Held::Contradicted { .. } | Held::Unasked,
            ) => false,
        };
        // What holds its commits is as old as the last word with its writer; its lease is known now.
        leads && self.lease_left_us.map_or(self.reader.streaming, |left_us| left_us > 0)
    }

    /// Whether clients that come now are let in, and their commits can return.
    #[must_use]
    pub fn takes_writes(&self) -> bool {
        self.runs && self.postgres_trouble.is_none() && self.shut_until.is_none() && self.leads_surely()
    }

    /// What hinders it, in words; often empty.
    #[must_use]
    pub fn detail(&self) -> String {
        let reading = &self.reader;
        let unread = (!reading.streaming && !reading.detail.is_empty()).then(|| reading.detail.clone());
        let held = || self.held().map(|held| held.to_string());
        let Some(end_lsn) = self.shut_until else {
            return self.postgres_trouble.clone().or(unread).or_else(held).unwrap_or_default();
        };
        let mut words = format!(
            "its writer has redo up to {end_lsn} that may not be acknowledged yet; clients are let in once it may"
        );
        if let Some(why) = unread.or_else(held) {
            words += &format!(": {why}");
        }
        words
    }

    /// What it does not do yet, in words, while it is [`RegionState::Starting`].
    #[must_use]
    pub fn lacks(&self) -> &'static str {
        match self.shut_until {
            Some(_) => "lets no client in yet",
            None => "does not read its writer",
        }
    }

    /// Why `region` cannot take over now; none when it can.
    #[must_use]
    pub fn hinders(&self, region: &RegionName) -> Option<String> {
        if self.state() != RegionState::Streaming {
            return Some(format!("this primary {}: {}", self.lacks(), self.detail()));
        }
        let Some(facts) = self.secondaries.iter().find(|facts| facts.name == *region) else {
            return Some(format!("{region} is no region of this primary's file"));
        };
        match (facts.state, facts.behind_bytes) {
            (RegionState::Streaming, Some(behind)) if behind <= HAND_OVER_BEHIND_BYTES => None,
            (RegionState::Streaming, behind) => Some(format!(
                "{region} is {} behind; writes would be held until it has applied that. Try again when it is nearer",
                behind.map_or_else(|| "an unknown amount".into(), show_bytes)
            )),
            (state, behind) if facts.detail.is_empty() => Some(format!(
                "{region} is '{state}' to this primary, {} behind",
                behind.map_or_else(|| "an unknown amount".into(), show_bytes)
            )),
            (state, _) => Some(format!("{region} is '{state}' to this primary: {}", facts.detail)),
        }
    }

    fn lsn(&self) -> Option<Lsn> {
        (self.reader.timeline.0 > 0).then_some(self.reader.durable_lsn)
    }

    fn row(&self) -> RegionStatus {
        let lsn = self.lsn().map(|lsn| lsn.0);
        RegionStatus {
            role: "primary".into(),
            state: self.state().to_string(),
            timeline: self.reader.timeline.0,
            durable_lsn: lsn,
            applied_lsn: lsn,
            behind_bytes: lsn.map(|_| 0),
            durability_lag_ms: lsn.map(|_| 0),
            visibility_lag_ms: lsn.map(|_| 0),
            redo_bytes: self.reader.redo_bytes,
            detail: self.detail(),
            ..RegionStatus::default()
        }
    }
}

/// A region that follows.
#[derive(Debug, Clone)]
pub struct FollowerFacts {
    /// The highest epoch seen.
    pub epoch: Epoch,
    /// Whether it has data that it can go on with.
    pub seeded: bool,
    /// Why it cannot go on with those that it has; empty where it has none, or nothing is wrong with them.
    pub lacks: String,
    /// How much a seed brings that is being taken, bytes; zero when none is.
    pub seed_total_bytes: u64,
    /// Why PostgreSQL does not accept connections, in words; none while it does, or is not to run.
    pub postgres_trouble: Option<String>,
    /// How receiving goes.
    pub inbound: InboundState,
    /// The timeline of its newest redo.
    pub timeline: Timeline,
    /// The end of its durable redo.
    pub durable_lsn: Lsn,
    /// What its PostgreSQL has applied of it.
    pub applied_lsn: Lsn,
    /// What queries see of it at least; zero while that is not known.
    pub shown_lsn: Lsn,
    /// How long the primary was not heard, microseconds; none when it never was.
    pub silent_us: Option<u64>,
    /// See [`secondary::heard::Heard::lag_us`].
    pub heard_lag_us: Option<u64>,
}

impl FollowerFacts {
    /// What it does.
    #[must_use]
    pub fn state(&self) -> RegionState {
        if self.seed_total_bytes > 0 {
            RegionState::Seeding
        } else if !self.seeded {
            RegionState::Waiting
        } else if self.postgres_trouble.is_some() {
            RegionState::Starting
        } else if self.inbound.streaming {
            RegionState::Streaming
        } else {
            RegionState::Disconnected
        }
    }

    /// What hinders it, in words; often empty.
    #[must_use]
    pub fn detail(&self) -> String {
        match self.state() {
            RegionState::Waiting if !self.lacks.is_empty() => {
                format!("{}: waiting for the primary to send a seed", self.lacks)
            }
            RegionState::Waiting => "no data yet: waiting for the primary to send a seed".into(),
            RegionState::Starting => self.postgres_trouble.clone().unwrap_or_default(),
            RegionState::Disconnected => self.inbound.detail.clone(),
            _ => String::new(),
        }
    }

    fn row(&self) -> RegionStatus {
        RegionStatus {
            role: "secondary".into(),
            state: self.state().to_string(),
            timeline: self.timeline.0,
            durable_lsn: self.seeded.then_some(self.durable_lsn.0),
            applied_lsn: self.seeded.then_some(self.applied_lsn.0),
            redo_bytes: self.inbound.redo_bytes,
            seed_total_bytes: self.seed_total_bytes,
            detail: self.detail(),
            ..RegionStatus::default()
        }
    }
}

/// The part that a region plays.
#[derive(Debug, Clone)]
pub enum PartFacts {
    /// It leads, or is to.
    Leads(LeaderFacts),
    /// It follows.
    Follows(FollowerFacts),
    /// Neither yet.
    Neither,
}

impl PartFacts {
    /// The name of the part.
    #[must_use]
    pub fn role(&self) -> &'static str {
        match self {
            PartFacts::Leads(_) => "primary",
            PartFacts::Follows(_) => "secondary",
            PartFacts::Neither => "none",
        }
    }

    /// What the region does.
    #[must_use]
    pub fn state(&self) -> RegionState {
        match self {
            PartFacts::Leads(leader) => leader.state(),
            PartFacts::Follows(follower) => follower.state(),
            PartFacts::Neither => RegionState::Starting,
        }
    }

    /// The region's own row of `status`; `role` is what it was last when it plays no part yet.
    #[must_use]
    pub fn row(&self, name: &str, url: String, role: &str) -> RegionStatus {
        let row = match self {
            PartFacts::Leads(leader) => leader.row(),
            PartFacts::Follows(follower) => follower.row(),
            PartFacts::Neither => RegionStatus {
                role: role.into(),
                state: RegionState::Starting.to_string(),
                ..RegionStatus::default()
            },
        };
        RegionStatus { name: name.to_owned(), url, ..row }
    }
}
