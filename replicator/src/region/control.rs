//! What the daemon answers to operators and other regions.

use std::pin::Pin;
use std::time::Duration;

use proto::messages::refusal::Kind;
use proto::messages::{
    Ballot, ClusterStatus, ControlRequest, ControlResponse, CopyView, Refusal, RegionStatus,
    RegionStatusRequest, RegionView, ReplicateReady, Rewind, SeedAnswer, VolumeView, ZoneReady,
    control_request, control_response, open, rewind,
};
use proto::{ClusterId, RegionName};
use tokio::task::JoinSet;
use transport::{Endpoint, Peer, Stream, TransportError};
use volume::VolumeStatus;
use volume::quorum::{CopyId, Standing};

use super::{Part, Region, secrets};
use crate::client;
use crate::config::{RegionConfig, Role};
use crate::voter::Seat;

/// How long another region may take to answer before it is said to be unreachable.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);

type Ask = control_request::Body;
type Answer = control_response::Body;

fn refused(refusal: Refusal) -> Answer {
    Answer::Refusal(refusal)
}

impl Seat for Region {
    fn answer(&self, from: RegionName, body: Ask) -> Pin<Box<dyn Future<Output = Answer> + Send + '_>> {
        Box::pin(async move { self.answer(&Peer::Region(from), body).await })
    }
}

impl Region {
    /// Answers one request.
    pub(super) async fn control(
        &self,
        peer: &Peer,
        request: ControlRequest,
        mut stream: Stream,
    ) -> Result<(), TransportError> {
        let body = match request.body {
            Some(body) => self.answer(peer, body).await,
            None => refused(Refusal::new(Kind::Protocol, "this daemon does not know that request")),
        };
        stream.send(&ControlResponse { body: Some(body) }).await?;
        stream.finish().await;
        Ok(())
    }

    async fn answer(&self, peer: &Peer, body: Ask) -> Answer {
        let not_allowed = |who: &str| Refusal::new(Kind::NotAllowed, format!("only {who} may ask this"));
        let answered = match (body, peer) {
            (Ask::RegionStatus(_), _) => Ok(Answer::RegionStatus(self.view().await)),
            (Ask::ClusterStatus(_), _) => Ok(Answer::ClusterStatus(self.cluster_status().await)),
            (Ask::Record(_), _) => Ok(Answer::Record(self.voter.record_json().into())),
            (Ask::Volume(request), _) => {
                match (request.scrub, request.copy.parse::<CopyId>()) {
                    (false, _) => {}
                    (true, Ok(copy)) => self.volume.scrub(Some(copy)).await,
                    (true, Err(_)) => self.volume.scrub(None).await,
                }
                Ok(Answer::Volume(self.volume_view()))
            }
            (Ask::Url(request), Peer::Operator) => self.url(&request.region),
            (Ask::Promote(request), Peer::Operator) => self.order(request).await.map(Answer::Promotion),
            (Ask::Url(_) | Ask::Promote(_), Peer::Region(_)) => Err(not_allowed("operators")),
            (Ask::Prepare(_) | Ask::Accept(_) | Ask::Learn(_) | Ask::Survey(_), Peer::Operator)
            | (Ask::HandOver(_) | Ask::GetReady(_) | Ask::Lead(_) | Ask::Support(_), Peer::Operator) => {
                Err(not_allowed("voters"))
            }
            (Ask::Accept(accept), _) => self.vote(accept).await.map(Answer::Voted),
            (Ask::Survey(_), _) => Ok(Answer::Granted(self.survey().await)),
            (Ask::HandOver(request), _) => self.hand_over(request).await.map(Answer::HandedOver),
            (Ask::GetReady(request), _) => self.get_ready(request).await.map(|lsn| Answer::ReadyLsn(lsn.0)),
            (Ask::Lead(request), _) => self.lead_epoch(request).await.map(|()| Answer::Done(true)),
            (Ask::Prepare(number), _) => self.voter.answer_prepare(number),
            (Ask::Learn(agreed), _) => self.voter.answer_learn(&agreed),
            (Ask::Support(_), _) => Err(Refusal::new(Kind::NotAllowed, "this is no witness")),
        };
        answered.unwrap_or_else(refused)
    }

    fn url(&self, region: &str) -> Result<Answer, Refusal> {
        let region = self.config.regions.iter().find(|r| r.name.as_str() == region);
        let region = region.ok_or_else(|| {
            Refusal::new(Kind::Failed, "there is no such region in this daemon's regions.toml")
        })?;
        let password = secrets::load(&self.layout)
            .map_err(|_| Refusal::new(Kind::Busy, "this region has no data yet, and so no password"))?;
        Ok(Answer::Url(secrets::url(region.postgres, Some(&password))))
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
                RegionView { epoch: self.state().epoch().0, own: Some(own), secondaries: Vec::new() }
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
                        if *self.state().primary() == region.name {
                            notes.push(
                                "without the primary lags are unknown: they are measured in its clock".into(),
                            );
                        }
                    }
                    Err(e) => notes.push(format!("asking a region: {e}")),
                }
            }
        }
        if let Some(promotion) = self.voter.accepted().promotion {
            let coordination::Promotion { mode, to, coordinator, .. } = &promotion;
            notes.push(format!("a {mode} to {to} is in progress, coordinated by {coordinator}"));
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
    match client::request(endpoint, cluster_id, &region.place(), body, ASK_TIMEOUT)
        .await
        .map_err(|e| e.to_string())?
    {
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
        open::Purpose::Rewind(_) => {
            stream.send(&Rewind { body: Some(rewind::Body::Refusal(refusal)) }).await?;
        }
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
