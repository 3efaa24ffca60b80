//! The region's endpoints, and what they are told of the region.

use std::sync::Arc;
use std::time::Duration;

use coordination::region::Part;
use primary::gate::Held;
use runtime::clock::now;
use runtime::task::Tasks;
use tokio_util::sync::CancellationToken;

use super::{Parts, Region};
use crate::config::RegionConfig;
use crate::endpoint::Kind;
use crate::endpoint::door::Doors;
use crate::endpoint::regional::Regional;
use crate::endpoint::tunnel::Tunnels;
use crate::endpoint::way::{Knows, Own, Unfit};
use crate::facts::{FollowerFacts, LeaderFacts};

/// How often it is looked what changed that nobody tells of: whether PostgreSQL lets clients in, and how far
/// behind a standby is.
const LOOK: Duration = Duration::from_millis(20);

/// The same while PostgreSQL starts, for so long: clients wait for that.
const LOOK_SOON: Duration = Duration::from_millis(4);
const STARTS: Duration = Duration::from_secs(5);

impl Doors<Regional> {
    /// The endpoints of the daemon that is made of these.
    pub(super) fn of(parts: &Parts) -> Doors<Regional> {
        let knows = Knows {
            me: parts.own.name.clone(),
            view: parts.voter.view(),
            part: Part::Starting,
            own: Own::Closed(Unfit::Starts),
            replicas: Vec::new(),
        };
        let others = parts.config.regions.iter().filter(|region| region.name != parts.own.name);
        let places = others.map(RegionConfig::place);
        let regions = parts.config.regions.iter().map(|region| region.name.clone()).collect();
        let tunnels = Tunnels::new(parts.endpoint.clone(), parts.cluster_id, places);
        let guide = Regional::new(knows, parts.own.postgres, regions, tunnels);
        let whose = format!("region {}", parts.own.name);
        Doors::new(whose, parts.layout.server_identity(), parts.config.endpoints, guide)
    }
}

impl Region {
    /// Takes clients in, where the file says so, and tells the endpoints what the region knows, until `stop`.
    pub(super) async fn serve_clients(self: Arc<Self>, stop: CancellationToken) {
        let open = Tasks::new();
        let own = [(Kind::Writer, self.own.writer_endpoint), (Kind::Reader, self.own.reader_endpoint)];
        for (kind, address) in own {
            if let Some(address) = address {
                open.spawn(self.doors.clone().open(kind, address, stop.clone()));
            }
        }
        // Other regions may bring clients here whether or not this one has endpoints.
        let mut starts_since = None;
        loop {
            let (changed, part) = (self.voter.changed(), self.owner.changed());
            tokio::pin!(changed, part);
            changed.as_mut().enable();
            part.as_mut().enable();
            let knows = self.knows().await;
            starts_since = match knows.own {
                Own::Closed(Unfit::Starts) => starts_since.or_else(|| Some(now())),
                _ => None,
            };
            self.doors.guide().learn(knows);
            let soon = starts_since.is_some_and(|since| since.elapsed() < STARTS);
            tokio::select! {
                () = stop.cancelled() => return open.ended().await,
                () = &mut changed => {}
                // A writer that is about to stop is given nobody more, who would hold that up.
                () = &mut part => {}
                () = tokio::time::sleep(if soon { LOOK_SOON } else { LOOK }) => {}
            }
        }
    }

    async fn knows(&self) -> Knows {
        let cluster = self.owner.cluster();
        let silent = self.health.is_silent();
        let own = match (cluster.leader(), cluster.follower()) {
            (Some(_), _) if self.is_doubtful() => Own::WritesNot(Unfit::NoQuorum),
            (Some(leader), _) => writes(&leader.facts(), silent),
            (None, Some(follower)) => reads(&follower.facts().await, silent),
            (None, None) => Own::Closed(Unfit::Starts),
        };
        let replicas = self.readable_nodes();
        // The record last: what it forbids counts at once.
        let part = self.owner.part();
        let mut knows = Knows { me: self.own.name.clone(), view: self.voter.view(), part, own, replicas };
        knows.forget_other_line(self.volume.bounds().timeline);
        knows
    }
}

/// A region that leads, as a client finds its PostgreSQL.
fn writes(leader: &LeaderFacts, silent: bool) -> Own {
    if leader.postgres_trouble.is_some() || leader.shut_until.is_some() || !leader.runs {
        return Own::Closed(Unfit::Starts);
    }
    match leader.held() {
        Some(Held::Lease) => Own::WritesNot(Unfit::Lease),
        _ if silent => Own::Closed(Unfit::Silent),
        Some(Held::Promotion) => Own::WritesNot(Unfit::Promotion),
        Some(Held::GivenUp) => Own::WritesNot(Unfit::GivenUp),
        Some(Held::Contradicted { .. } | Held::Unasked) => Own::WritesNot(Unfit::Doubt),
        // Its commits wait, as they were asked to; what it has can be read.
        Some(Held::TooFewRegions { .. } | Held::Rpo) | None => Own::Writes,
    }
}

/// A region that follows, as a client finds its PostgreSQL.
fn reads(follower: &FollowerFacts, silent: bool) -> Own {
    if !follower.seeded || follower.seed_total_bytes > 0 {
        return Own::Closed(Unfit::NoData);
    }
    if follower.postgres_trouble.is_some() {
        return Own::Closed(Unfit::Starts);
    }
    match silent {
        true => Own::Closed(Unfit::Silent),
        false => Own::Reads {
            lag: follower.heard_lag_us.map(Duration::from_micros),
            shown_lsn: follower.shown_lsn,
        },
    }
}
