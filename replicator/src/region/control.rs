//! What the daemon answers to operators and other regions.

use std::time::Duration;

use proto::ClusterId;
use proto::messages::refusal::Kind;
use proto::messages::{
    ClusterStatus, ControlRequest, ControlResponse, Refusal, RegionStatus, RegionStatusRequest, RegionView,
    ReplicateReady, SeedAnswer, control_request, control_response, open,
};
use tokio::task::JoinSet;
use transport::{Endpoint, Peer, Stream, TransportError};

use super::{Part, Region, secrets};
use crate::client;
use crate::config::{RegionConfig, Role};

/// How long another region may take to answer before it is said to be unreachable.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);

impl Region {
    /// Answers one request.
    pub(super) async fn control(
        &self,
        peer: &Peer,
        request: ControlRequest,
        mut stream: Stream,
    ) -> Result<(), TransportError> {
        let refuse = |kind, reason: &str| control_response::Body::Refusal(Refusal::new(kind, reason));
        let body = match (request.body, peer) {
            (Some(control_request::Body::RegionStatus(_)), _) => {
                control_response::Body::RegionStatus(self.view().await)
            }
            (Some(control_request::Body::ClusterStatus(_)), _) => {
                control_response::Body::ClusterStatus(self.cluster_status().await)
            }
            (Some(control_request::Body::Url(request)), Peer::Operator) => {
                let asked = self.config.regions.iter().find(|r| r.name.as_str() == request.region);
                match (asked, secrets::load(&self.layout)) {
                    (Some(region), Ok(password)) => {
                        control_response::Body::Url(secrets::url(region.postgres, Some(&password)))
                    }
                    (Some(_), Err(_)) => {
                        refuse(Kind::Busy, "this region has no data yet, and so no password")
                    }
                    (None, _) => {
                        refuse(Kind::Failed, "there is no such region in this daemon's regions.toml")
                    }
                }
            }
            (Some(control_request::Body::Url(_)), Peer::Region(_)) => {
                refuse(Kind::NotAllowed, "only operators are told passwords")
            }
            (None, _) => refuse(Kind::Protocol, "this daemon does not know that request"),
        };
        stream.send(&ControlResponse { body: Some(body) }).await?;
        stream.finish().await;
        Ok(())
    }

    /// What this daemon knows by itself.
    async fn view(&self) -> RegionView {
        let (name, url) = (self.own.name.as_str(), secrets::url(self.own.postgres, None));
        match &self.part {
            Part::Leader(leader) => {
                let leader = leader.lock().await;
                let (own, secondaries) = leader.rows(name, url);
                RegionView { epoch: leader.epoch().0, own: Some(own), secondaries }
            }
            Part::Follower(follower) => {
                let own = follower.row(name, url).await;
                RegionView { epoch: follower.epoch().0, own: Some(own), secondaries: Vec::new() }
            }
        }
    }

    /// What this daemon can find out: the primary knows all; without it, every region speaks for itself.
    async fn cluster_status(&self) -> ClusterStatus {
        let own = self.view().await;
        let mut views = vec![own];
        let mut notes = Vec::new();
        if self.own.role == Role::Secondary {
            // All at once: one that does not answer must not hold up the others.
            let mut asking = JoinSet::new();
            for region in self.config.regions.iter().filter(|r| r.name != self.own.name) {
                let (endpoint, cluster_id, region) = (self.endpoint.clone(), self.cluster_id, region.clone());
                asking.spawn(async move { (ask(&endpoint, cluster_id, &region).await, region) });
            }
            while let Some(asked) = asking.join_next().await {
                match asked {
                    Ok((Ok(view), region)) if region.role == Role::Primary => views.insert(0, view),
                    Ok((Ok(view), _)) => views.push(view),
                    Ok((Err(e), region)) => {
                        notes.push(format!("{} is not reached from {}: {e}", region.name, self.own.name));
                        if region.role == Role::Primary {
                            notes.push(
                                "without the primary lags are unknown: they are measured in its clock".into(),
                            );
                        }
                    }
                    Err(e) => notes.push(format!("asking a region: {e}")),
                }
            }
        }
        merge(&self.config.cluster, &self.config.regions, &views, notes)
    }
}

async fn ask(
    endpoint: &Endpoint,
    cluster_id: ClusterId,
    region: &RegionConfig,
) -> Result<RegionView, String> {
    let body = control_request::Body::RegionStatus(RegionStatusRequest {});
    match client::request(endpoint, cluster_id, region, body, ASK_TIMEOUT).await.map_err(|e| e.to_string())? {
        control_response::Body::RegionStatus(view) => Ok(view),
        _ => Err("it gave another answer".into()),
    }
}

/// One table of what several daemons said, in the order of the file. What the primary says of a secondary counts before
/// what that says of itself, except that a region which answers is not unreachable.
fn merge(
    cluster: &str,
    regions: &[RegionConfig],
    views: &[RegionView],
    mut notes: Vec<String>,
) -> ClusterStatus {
    let rows = regions.iter().map(|region| {
        let name = region.name.as_str();
        let by_primary = views.iter().flat_map(|v| &v.secondaries).find(|row| row.name == name);
        let by_itself = views.iter().filter_map(|v| v.own.as_ref()).find(|row| row.name == name);
        by_primary.or(by_itself).cloned().unwrap_or_else(|| RegionStatus {
            name: name.into(),
            role: region.role.to_string(),
            state: "unreachable".into(),
            url: secrets::url(region.postgres, None),
            ..RegionStatus::default()
        })
    });
    let rows: Vec<RegionStatus> = rows.collect();
    let details = rows.iter().filter(|row| !row.detail.is_empty());
    notes.extend(details.map(|row| format!("{}: {}", row.name, row.detail)));
    let primary = regions.iter().find(|r| r.role == Role::Primary);
    ClusterStatus {
        cluster: cluster.into(),
        epoch: views.iter().map(|v| v.epoch).max().unwrap_or(0),
        primary: primary.map(|r| r.name.to_string()).unwrap_or_default(),
        regions: rows,
        notes,
    }
}

/// Says no in the message that the peer waits for.
pub(super) async fn answer_refusal(
    purpose: &open::Purpose,
    refusal: Refusal,
    stream: &mut Stream,
) -> Result<(), TransportError> {
    match purpose {
        open::Purpose::Replicate(_) => {
            stream.send(&ReplicateReady { refusal: Some(refusal), ..ReplicateReady::default() }).await?;
        }
        open::Purpose::Seed(_) => stream.send(&SeedAnswer { refusal: Some(refusal) }).await?,
        open::Purpose::Control(_) => {
            stream.send(&ControlResponse { body: Some(control_response::Body::Refusal(refusal)) }).await?;
        }
    }
    stream.finish().await;
    Ok(())
}
