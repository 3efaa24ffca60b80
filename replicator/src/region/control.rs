//! What the daemon answers to operators and other regions.

use std::time::Duration;

use proto::ClusterId;
use proto::messages::refusal::Kind;
use proto::messages::{
    Ballot, ClusterStatus, ControlRequest, ControlResponse, CopyView, Refusal, RegionStatus,
    RegionStatusRequest, RegionView, ReplicateReady, SeedAnswer, VolumeView, ZoneReady, control_request,
    control_response, open,
};
use tokio::task::JoinSet;
use transport::{Endpoint, Peer, Stream, TransportError};
use volume::VolumeStatus;
use volume::quorum::{CopyId, Standing};

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
            (Some(control_request::Body::Volume(request)), _) => {
                match (request.scrub, request.copy.parse::<CopyId>()) {
                    (false, _) => {}
                    (true, Ok(copy)) => self.volume.scrub(Some(copy)).await,
                    (true, Err(_)) => self.volume.scrub(None).await,
                }
                control_response::Body::Volume(self.volume_view())
            }
            (Some(control_request::Body::Promote(request)), Peer::Operator) => {
                match self.promote(request).await {
                    Ok(promotion) => control_response::Body::Promotion(promotion),
                    Err(refusal) => control_response::Body::Refusal(refusal),
                }
            }
            (Some(control_request::Body::Promote(_)), Peer::Region(_)) => {
                refuse(Kind::NotAllowed, "only operators promote")
            }
            (Some(control_request::Body::HandOver(request)), Peer::Region(name)) => {
                match self.hand_over(name, request).await {
                    Ok(handed_over) => control_response::Body::HandedOver(handed_over),
                    Err(refusal) => control_response::Body::Refusal(refusal),
                }
            }
            (Some(control_request::Body::Promise(request)), Peer::Region(name)) => {
                match self.promise(name, request.epoch).await {
                    Ok(granted) => control_response::Body::Granted(granted),
                    Err(refusal) => control_response::Body::Refusal(refusal),
                }
            }
            (Some(control_request::Body::Promise(_)), Peer::Operator) => {
                refuse(Kind::NotAllowed, "only the region that shall lead asks this")
            }
            (Some(control_request::Body::HandOver(_)), Peer::Operator) => {
                refuse(Kind::NotAllowed, "only the region that shall lead asks this")
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
        match &*self.part.read().await {
            Part::Starting => {
                let own = RegionStatus {
                    name: name.to_owned(),
                    role: self.state().role.to_string(),
                    state: "starting".into(),
                    url,
                    detail: volume_trouble(&self.volume.status()),
                    ..RegionStatus::default()
                };
                RegionView { epoch: self.state().epoch.0, own: Some(own), secondaries: Vec::new() }
            }
            Part::Leader(leader) => {
                let (own, secondaries) = leader.rows(name, url);
                RegionView { epoch: leader.epoch().0, own: Some(self.with_volume(own)), secondaries }
            }
            Part::Follower(follower) => {
                let own = follower.row(name, url).await;
                RegionView {
                    epoch: follower.epoch().0,
                    own: Some(self.with_volume(own)),
                    secondaries: Vec::new(),
                }
            }
        }
    }

    /// What is wrong with the volume comes before everything else.
    fn with_volume(&self, mut own: RegionStatus) -> RegionStatus {
        let status = self.volume.status();
        if !status.writable || status.copies.iter().any(|copy| copy.standing != Standing::Live) {
            let trouble = volume_trouble(&status);
            own.detail = if own.detail.is_empty() { trouble } else { format!("{trouble}; {}", own.detail) };
        }
        own
    }

    fn volume_view(&self) -> VolumeView {
        let status = self.volume.status();
        let copies = status.copies.iter().map(|copy| {
            let (state, detail) = match &copy.standing {
                Standing::Live => ("live", ""),
                Standing::Filling => ("filling", ""),
                Standing::Absent => ("absent", ""),
                Standing::Asked | Standing::Promised | Standing::Adopting => ("opening", ""),
                Standing::Failed(why) => ("failed", why.as_str()),
            };
            CopyView {
                name: copy.id.to_string(),
                zone: copy.id.zone().to_string(),
                state: state.into(),
                flushed_lsn: copy.flushed_lsn.0,
                place: copy.place.clone(),
                detail: detail.into(),
                filled_bytes: copy.repair.filled_bytes,
                repaired_segments: copy.repair.repaired_segments,
                scrubbed_us: copy.repair.scrubbed_us,
                damage: copy.repair.damage.clone(),
            }
        });
        let whole = status.copies.iter().all(|copy| copy.standing == Standing::Live);
        VolumeView {
            region: self.own.name.to_string(),
            ballot: Some(Ballot {
                epoch: status.ballot.epoch.0,
                opening: status.ballot.opening,
                writer: status.ballot.writer,
            }),
            horizon_lsn: status.bounds.horizon_lsn.0,
            durable_lsn: status.bounds.durable_lsn.0,
            timeline: status.bounds.timeline.0,
            writable: status.writable,
            detail: if whole && status.writable { String::new() } else { volume_trouble(&status) },
            stored_bytes: self.volume.stored_bytes(),
            copies: copies.collect(),
        }
    }

    /// What this daemon can find out: the primary knows all; without it, every region speaks for itself.
    async fn cluster_status(&self) -> ClusterStatus {
        let own = self.view().await;
        let mut views = vec![own];
        let mut notes = Vec::new();
        if self.state().role == Role::Secondary {
            // All at once: one that does not answer must not hold up the others.
            let mut asking = JoinSet::new();
            for region in self.config.regions.iter().filter(|r| r.name != self.own.name) {
                let (endpoint, cluster_id, region) = (self.endpoint.clone(), self.cluster_id, region.clone());
                asking.spawn(async move { (ask(&endpoint, cluster_id, &region).await, region) });
            }
            while let Some(asked) = asking.join_next().await {
                match asked {
                    Ok((Ok(view), _)) if is_primary(&view) => views.insert(0, view),
                    Ok((Ok(view), _)) => views.push(view),
                    Ok((Err(e), region)) => {
                        notes.push(format!("{} is not reached from {}: {e}", region.name, self.own.name));
                        if self.state().primary.as_ref() == Some(&region.name) {
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

fn is_primary(view: &RegionView) -> bool {
    view.own.as_ref().is_some_and(|row| row.role == "primary")
}

/// One table of what several daemons said, in the order of the file. What the primary says of a secondary counts before
/// what that says of itself, except that a region which answers is not unreachable.
fn merge(
    cluster: &str,
    regions: &[RegionConfig],
    views: &[RegionView],
    mut notes: Vec<String>,
) -> ClusterStatus {
    // What the primary of an epoch that is over says counts for nothing.
    let epoch = views.iter().map(|view| view.epoch).max().unwrap_or(0);
    let leading = views.iter().find(|view| view.epoch == epoch && is_primary(view));
    let rows = regions.iter().map(|region| {
        let name = region.name.as_str();
        let by_primary = leading.into_iter().flat_map(|v| &v.secondaries).find(|row| row.name == name);
        let by_itself = views.iter().filter_map(|v| v.own.as_ref()).find(|row| row.name == name);
        by_primary.or(by_itself).cloned().unwrap_or_else(|| RegionStatus {
            name: name.into(),
            // What it was when it was last heard is not known; a primary is known by itself.
            role: if leading.is_some() { "secondary".into() } else { region.role.to_string() },
            state: "unreachable".into(),
            url: secrets::url(region.postgres, None),
            ..RegionStatus::default()
        })
    });
    let rows: Vec<RegionStatus> = rows.collect();
    let details = rows.iter().filter(|row| !row.detail.is_empty());
    notes.extend(details.map(|row| format!("{}: {}", row.name, row.detail)));
    let configured = || regions.iter().find(|r| r.role == Role::Primary).map(|r| r.name.to_string());
    let primary = leading.and_then(|view| Some(view.own.as_ref()?.name.clone()));
    ClusterStatus {
        cluster: cluster.into(),
        epoch,
        primary: primary.or_else(configured).unwrap_or_default(),
        regions: rows,
        notes,
    }
}

/// What hinders a volume, in words.
fn volume_trouble(status: &VolumeStatus) -> String {
    if let Some(closed) = &status.closed {
        return closed.clone();
    }
    let of = |what: &str, has: fn(&Standing) -> bool| {
        let names: Vec<String> =
            status.copies.iter().filter(|copy| has(&copy.standing)).map(|copy| copy.id.to_string()).collect();
        (!names.is_empty()).then(|| format!("{what}: {}", names.join(", ")))
    };
    let parts = [
        of("absent", |standing| *standing == Standing::Absent),
        of("failed", |standing| matches!(standing, Standing::Failed(_))),
        of("being filled", |standing| *standing == Standing::Filling),
        of("opening", |s| matches!(s, Standing::Asked | Standing::Promised | Standing::Adopting)),
    ];
    let copies = parts.into_iter().flatten().collect::<Vec<_>>().join("; ");
    if status.writable {
        format!("copies of the volume {copies}")
    } else {
        format!("commits wait: the volume needs four of its six copies; {copies}")
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
        open::Purpose::Zone(_) => stream.send(&ZoneReady { refusal: Some(refusal) }).await?,
        // Nobody may ask this of a region's daemon, and nothing would be understood.
        open::Purpose::Copy(_) | open::Purpose::Gather(_) => {}
        open::Purpose::Control(_) => {
            stream.send(&ControlResponse { body: Some(control_response::Body::Refusal(refusal)) }).await?;
        }
    }
    stream.finish().await;
    Ok(())
}
