//! What the daemon answers to operators and other regions.

use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::time::Duration;

use coordination::automatic;
use postgres::instance::OWN_ENCRYPTION;
use primary::SecondaryFacts;
use proto::messages::refusal::Kind;
use proto::messages::{
    Ballot, ClusterStatus, ControlRequest, ControlResponse, CopyView, EventsRequest, KeyUse, Refusal,
    RegionStatus, RegionStatusRequest, RegionView, TokenRequest, VolumeView, control_request,
    control_response,
};
use proto::{ClusterId, RegionName, RegionState};
use runtime::clock::wall_us;
use runtime::task::blocking;
use tokio::task::JoinSet;
use transport::{Endpoint, Stream, TransportError};
use volume::VolumeStatus;
use volume::quorum::{CopyId, CopyState, READ_QUORUM, WRITE_QUORUM};

use super::Region;
use crate::audit;
use crate::audit::chain::Deed;
use crate::client;
use crate::config::{Config, RegionConfig, Role};
use crate::facts::PartFacts;
use crate::secrets;
use crate::voter::{Difference, Seat};

/// How long another region may take to answer before it is said to be unreachable.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);

type Ask = control_request::Body;
type Answer = control_response::Body;

fn refused(refusal: Refusal) -> Answer {
    Answer::Refusal(refusal)
}

impl Seat for Region {
    fn answer(&self, _: RegionName, body: Ask) -> Pin<Box<dyn Future<Output = Answer> + Send + '_>> {
        Box::pin(async move { self.answer(body).await })
    }
}

/// For how long it is told that redo gave way to room, microseconds.
const GAVE_WAY_US: i64 = 3_600_000_000;

impl Region {
    /// Answers one request.
    pub(super) async fn control(
        &self,
        request: ControlRequest,
        deed: Option<Deed>,
        mut stream: Stream,
    ) -> Result<(), TransportError> {
        // It takes long, and may end with this daemon.
        if let (Some(Ask::Promote(_) | Ask::MoveHead(_)), Some(deed)) = (&request.body, &deed) {
            self.audit.keep(deed.clone()).await;
        }
        let grants = matches!(&request.body, Some(control_request::Body::Token(_)));
        let mut body = match request.body {
            Some(body) => self.answer(body).await,
            None => refused(Refusal::new(Kind::Protocol, "this daemon does not know that request")),
        };
        if let Some(deed) = deed {
            let is_kept = self.audit.keep(Deed { outcome: audit::outcome(&body), ..deed }).await;
            if grants && !is_kept {
                body = refused(Refusal::new(
                    Kind::Failed,
                    "the audit cannot be written, and so grants no token",
                ));
            }
        }
        stream.send(&ControlResponse { body: Some(body) }).await?;
        stream.finish().await;
        Ok(())
    }

    /// Answers what was let in (see [`crate::daemon::authority`]), or what this daemon asks itself.
    async fn answer(&self, body: Ask) -> Answer {
        let votes = matches!(
            body,
            Ask::Accept(_)
                | Ask::Prepare(_)
                | Ask::Survey(_)
                | Ask::HandOver(_)
                | Ask::GetReady(_)
                | Ask::Lead(_)
        );
        let answer = self.answer_any(body).await;
        // What is answered in the region's name is on disk by now.
        match if votes { self.is_head().await } else { Ok(()) } {
            Err(refusal) => refused(refusal),
            Ok(()) => answer,
        }
    }

    async fn answer_any(&self, body: Ask) -> Answer {
        let answered = match body {
            Ask::RegionStatus(_) => Ok(Answer::RegionStatus(self.view().await)),
            Ask::ClusterStatus(_) => Ok(Answer::ClusterStatus(self.cluster_status().await)),
            Ask::Events(request) => self.events(request).await,
            Ask::Load(request) => self.answer_load(request).await.map(|load| Answer::Load(load.into())),
            Ask::Record(request) => Ok(Answer::Record(self.voter.record_json(request).into())),
            Ask::Volume(request) if request.recover => self.recover_volume(),
            Ask::Volume(request) => {
                match (request.scrub, request.copy.parse::<CopyId>()) {
                    (false, _) => {}
                    (true, Ok(copy)) => self.volume.scrub(Some(copy)).await,
                    (true, Err(_)) => self.volume.scrub(None).await,
                }
                Ok(Answer::Volume(self.volume_view()))
            }
            Ask::Url(request) => self.url(&request.region).await,
            Ask::Promote(request) => self.order(request, None).await.map(Answer::Promotion),
            Ask::Accept(accept) => self.owner.vote(accept).await.map(Answer::Voted),
            Ask::Survey(_) => Ok(Answer::Granted(self.owner.survey())),
            Ask::HandOver(request) => self.owner.ask_hand_over(request).await.map(Answer::HandedOver),
            Ask::GetReady(request) => {
                self.owner.ask_get_ready(request).await.map(|lsn| Answer::ReadyLsn(lsn.0))
            }
            Ask::Lead(request) => self.owner.ask_lead(request).await.map(|()| Answer::Done(true)),
            Ask::Prepare(number) => self.owner.promise(number).await,
            Ask::Revote(_) => match self.has_headed() {
                Ok(()) => self.voter.answer_revote().await,
                Err(refusal) => Err(refusal),
            },
            // Answered where the asker is known.
            Ask::Support(_) | Ask::Recall(_) | Ask::Learn(_) => {
                Err(Refusal::new(Kind::Protocol, "a voter does not ask itself that"))
            }
            Ask::Reseed(_) => self.reseed().map(Answer::SetAside),
            Ask::Audit(request) => {
                let failed = |why| Refusal::new(Kind::Failed, format!("the audit: {why}"));
                self.audit.page(request.skip).await.map(Answer::Audit).map_err(failed)
            }
            Ask::MoveHead(request) => self.answer_move(request).await.map(Answer::HeadMove),
            Ask::Token(request) => self.grant(&request),
            Ask::Slots(request) => self.answer_slots(request).await.map(Answer::Slots),
            Ask::Password(request) => self.step_password(request).await,
            Ask::FetchPassword(_) => self.tell_password(),
            Ask::Reload(_) => Ok(Answer::Reloaded(self.reload().await)),
            Ask::Voters(request) => self.voters(request).await.map(Answer::Voters),
        };
        answered.unwrap_or_else(refused)
    }

    /// Whether a token may be granted, which the audit keeps then.
    fn grant(&self, request: &TokenRequest) -> Result<Answer, Refusal> {
        if self.in_force().token_roles.contains(&request.role) {
            return Ok(Answer::Done(true));
        }
        let reason = format!("'{}' is none of `token_roles` in this daemon's regions.toml", request.role);
        Err(Refusal::new(Kind::NotAllowed, reason))
    }

    async fn events(&self, request: EventsRequest) -> Result<Answer, Refusal> {
        let journal = self.journal.clone();
        let answered = blocking("read the journal", move || journal.answer(request)).await;
        let failed = |e: String| Refusal::new(Kind::Failed, format!("the journal of events: {e}"));
        answered.map_err(|e| failed(e.to_string()))?.map(Answer::Events).map_err(|e| failed(e.to_string()))
    }

    async fn url(&self, region: &str) -> Result<Answer, Refusal> {
        let region = self.config.regions.iter().find(|r| r.name.as_str() == region);
        let region = region.ok_or_else(|| {
            Refusal::new(Kind::Failed, "there is no such region in this daemon's regions.toml")
        })?;
        // One that PostgreSQL does not take is not handed out; what it takes cannot always be told.
        if let Ok(Err(why)) = tokio::time::timeout(ASK_TIMEOUT, self.settle_password()).await {
            return Err(Refusal::new(Kind::Failed, format!("the superuser's password: {why}")));
        }
        let (role, password) = self.client_role().await?;
        let url = secrets::url(region.postgres, role, password.as_deref());
        // Of another region it is known what its file says.
        let settings = self.config.settings_of(region);
        let theirs = OWN_ENCRYPTION.iter().any(|key| settings.contains_key(*key));
        let instance = self.instance.clone();
        let encrypts = blocking("look at PostgreSQL's certificate", move || instance.encrypts()).await;
        let verified = !theirs && encrypts.unwrap_or(false);
        Ok(Answer::Url(if verified { format!("{url}?{}", secrets::VERIFIES) } else { url }))
    }

    /// What this daemon knows by itself.
    pub(super) async fn view(&self) -> RegionView {
        let part = self.part_facts().await;
        let (name, url) = (self.own.name.as_str(), secrets::url(self.own.postgres, &self.config.owner, None));
        let mut own = part.row(name, url, &self.state().role.to_string());
        let (epoch, mut own, secondaries) = match part {
            PartFacts::Leads(leader) => {
                let held = leader.reader.released.held;
                let held = held.filter(|held| !held.is_momentary() || self.chronicle.holds());
                if let Some(held) = held.filter(|_| self.config.commit.waits()) {
                    own.held = held.to_string();
                }
                let secondaries = leader.secondaries.iter().map(SecondaryFacts::row).collect();
                (leader.epoch.0, self.with_volume(own), secondaries)
            }
            PartFacts::Follows(follower) => (follower.epoch.0, self.with_volume(own), Vec::new()),
            PartFacts::Neither => {
                let detail = volume_trouble(&self.volume.status());
                (self.state().epoch().0, RegionStatus { detail, ..own }, Vec::new())
            }
        };
        if self.health.is_silent() && own.state == RegionState::Streaming.as_str() {
            own.state = RegionState::Silent.to_string();
        }
        let health = self.health.words();
        if !health.is_empty() {
            own.detail = if own.detail.is_empty() { health } else { format!("{}; {health}", own.detail) };
        }
        let trouble = self.owner.trouble();
        if !trouble.is_empty() {
            own.detail = if own.detail.is_empty() { trouble } else { format!("{trouble}; {}", own.detail) };
        }
        own.warnings = self.warnings();
        own.nodes = self.node_rows();
        RegionView { epoch, own: Some(own), secondaries }
    }

    /// What needs somebody soon, though the region serves.
    fn warnings(&self) -> Vec<String> {
        let mut warnings = self.health.alarms();
        warnings.extend(self.logged.warnings());
        let gave_way_us = self.volume.gave_way_us().filter(|at_us| wall_us() - at_us < GAVE_WAY_US);
        if let Some(at_us) = gave_way_us {
            let minutes = (wall_us() - at_us) / 60_000_000;
            warnings.push(format!(
                "its volume keeps redo for less than `retain` asks, the last time {minutes} min ago: a disk of its copies is nearly \
                 full, and redo that nobody needs gave way; make room, or give [volume] max_size less"
            ));
        }
        if let Some(why) = self.audit.failing() {
            warnings.push(format!(
                "its audit cannot be written, as the last deed that it should keep showed: {why}; orders are carried out all the same, and no token is granted"
            ));
        }
        let now_s = wall_us() / 1_000_000;
        if self.tells_end(now_s) {
            let ends = match self.certificates_end_s() - now_s {
                ..0 => "has ended".to_owned(),
                left_s @ 0..86_400 => format!("ends in {} minutes", left_s / 60),
                left_s => format!("ends in {} days", left_s / 86_400),
            };
            let words = "then no region lets this one in, or no client trusts its PostgreSQL; see replicator certs --renew";
            warnings.push(format!("a certificate of it {ends}: {words}"));
        }
        let record = self.voter.accepted();
        let leads = record.primary == self.own.name && self.in_force().failover.automatic;
        if leads && automatic::are_used_up(&record, wall_us()) {
            let words = "it is not replaced by itself when it is lost: there were two failovers within the hour; order one then: \
                         replicator promote --region R --mode failover";
            warnings.push(words.into());
        }
        warnings
    }

    /// Who is let in by a certificate without a role, as far as this daemon sees it.
    fn without_roles(&self) -> Option<String> {
        let mut names = self.endpoint.without_roles();
        if self.has_no_role.load(Ordering::Relaxed) {
            names.insert(self.own.name.to_string());
        }
        let names: Vec<String> = names.into_iter().collect();
        (!names.is_empty()).then(|| {
            format!(
                "certificates of before there were roles are let in: {}; `replicator certs --renew` gives them roles, and then \
                 `require_roles = true` in regions.toml lets in no such any more",
                names.join(", ")
            )
        })
    }

    /// The part that the region plays now.
    pub(super) async fn part_facts(&self) -> PartFacts {
        let cluster = self.owner.cluster();
        match (cluster.leader(), cluster.follower()) {
            (Some(leader), _) => PartFacts::Leads(leader.facts()),
            (None, Some(follower)) => PartFacts::Follows(follower.facts().await),
            (None, None) => PartFacts::Neither,
        }
    }

    /// What is wrong with the volume comes before everything else.
    fn with_volume(&self, mut own: RegionStatus) -> RegionStatus {
        own.copies = self.copies();
        let status = self.volume.status();
        if !status.writable || status.copies.iter().any(|copy| copy.state != CopyState::Live) {
            let trouble = volume_trouble(&status);
            if !status.writable && own.role == "primary" && self.config.commit.waits() {
                own.held.clone_from(&trouble);
            }
            own.detail = if own.detail.is_empty() { trouble } else { format!("{trouble}; {}", own.detail) };
        }
        own
    }

    fn recover_volume(&self) -> Result<Answer, Refusal> {
        // Redo may be lost that replicas have: they are copied anew. That is written before, as a copy that
        // need not be does no harm.
        let renumbered = self.file.change(|state| state.data_number = 0);
        renumbered.map_err(|e| Refusal::new(Kind::Failed, e.to_string()))?;
        let recovered = self.volume.recover();
        recovered.map_err(|e| Refusal::new(Kind::NotAllowed, e.to_string()))?;
        tracing::warn!(
            "the volume is opened with three of its copies, on an operator's word that the others are lost for good"
        );
        Ok(Answer::Volume(self.volume_view()))
    }

    fn volume_view(&self) -> VolumeView {
        let status = self.volume.status();
        let copies = status.copies.iter().map(|copy| {
            let (state, detail) = copy_state(&copy.state);
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
            detail: volume_trouble(&status),
            stored_bytes: self.volume.stored_bytes(),
            copies: copies.collect(),
            keys: status.keys.iter().map(key_use).collect(),
            active_key: status.active_key.map(|key| key.to_string()).unwrap_or_default(),
        }
    }

    /// What this daemon can find out: the primary knows all; without it, every region speaks for itself.
    async fn cluster_status(&self) -> ClusterStatus {
        let own = self.view().await;
        let mut views = vec![own];
        let mut notes = Vec::new();
        // By its part: a region that was given up as it took over is noted as a primary still.
        if !is_primary(&views[0]) {
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
        notes.extend(self.without_roles());
        let differences = self.voter.differences().into_iter();
        notes.extend(differences.map(|found| format!("{}; {}", found.fact(), Difference::ACTION)));
        notes.extend(self.voter.unlike_the_file());
        let recorded = self.voter.accepted().primary;
        let mut status = merge(&self.config, &recorded, &views, notes);
        self.chronicle.add_heard(&mut status);
        add_notes_of_regions(&mut status);
        status
    }
}

fn key_use(of: &volume::KeyUse) -> KeyUse {
    let key = of.key.map(|key| key.to_string()).unwrap_or_default();
    KeyUse { key, segments: of.segments, bytes: of.bytes }
}

/// The state of a copy in a word, and what is to be known of it.
pub(super) fn copy_state(standing: &CopyState) -> (&'static str, &str) {
    match standing {
        CopyState::Live => ("live", ""),
        CopyState::Filling => ("filling", ""),
        CopyState::Absent => ("absent", ""),
        CopyState::Asked | CopyState::Promised | CopyState::Adopting => ("opening", ""),
        CopyState::PromisedElsewhere(_) => ("failed", "it has promised a higher ballot to another writer"),
        CopyState::Failed(why) => ("failed", why.as_str()),
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

/// Puts into `row` what only the region itself knows: its copies, its nodes, and what needs somebody.
pub(super) fn tell_of_itself(row: &mut RegionStatus, by_itself: &RegionStatus) {
    row.copies.clone_from(&by_itself.copies);
    row.nodes.clone_from(&by_itself.nodes);
    row.warnings.clone_from(&by_itself.warnings);
}

/// A primary knows how far a region's volume is; whether its PostgreSQL runs and answers, only itself.
fn tell_of_postgresql(row: &mut RegionStatus, by_itself: &RegionStatus) {
    let is =
        |row: &RegionStatus, states: [RegionState; 2]| states.iter().any(|state| row.state == state.as_str());
    if is(row, [RegionState::Streaming, RegionState::CatchingUp])
        && is(by_itself, [RegionState::Starting, RegionState::Silent])
    {
        row.state.clone_from(&by_itself.state);
        row.detail.clone_from(&by_itself.detail);
    }
}

/// One table of what several daemons said, in the order of the file. What the primary says of a secondary
/// counts before what that says of itself, except that a region which answers is not unreachable.
pub(super) fn merge(
    config: &Config,
    recorded: &RegionName,
    views: &[RegionView],
    notes: Vec<String>,
) -> ClusterStatus {
    // What the primary of an epoch that is over says counts for nothing.
    let epoch = views.iter().map(|view| view.epoch).max().unwrap_or(0);
    let leading = views.iter().find(|view| view.epoch == epoch && is_primary(view));
    let rows = config.regions.iter().map(|region| {
        let name = region.name.as_str();
        let by_primary = leading.into_iter().flat_map(|v| &v.secondaries).find(|row| row.name == name);
        let by_itself = views.iter().filter_map(|v| v.own.as_ref()).find(|row| row.name == name);
        let said = by_primary.or(by_itself).cloned().map(|mut row| {
            if let Some(by_itself) = by_itself {
                tell_of_itself(&mut row, by_itself);
                tell_of_postgresql(&mut row, by_itself);
            }
            row
        });
        said.unwrap_or_else(|| RegionStatus {
            name: name.into(),
            // A primary is known by itself; where none says that it leads, by the record of who does.
            role: match leading.is_none() && region.name == *recorded {
                true => Role::Primary.to_string(),
                false => Role::Secondary.to_string(),
            },
            state: RegionState::Unreachable.to_string(),
            url: secrets::url(region.postgres, &config.owner, None),
            ..RegionStatus::default()
        })
    });
    let rows: Vec<RegionStatus> = rows.collect();
    let primary = leading.and_then(|view| Some(view.own.as_ref()?.name.clone()));
    ClusterStatus {
        cluster: config.cluster.clone(),
        epoch,
        primary: primary.unwrap_or_else(|| recorded.to_string()),
        regions: rows,
        notes,
    }
}

/// What is known of each region and node besides its row, for people.
pub(super) fn add_notes_of_regions(status: &mut ClusterStatus) {
    for row in &status.regions {
        let words = row.warnings.iter().chain([&row.detail]).filter(|words| !words.is_empty());
        status.notes.extend(words.map(|words| format!("{}: {words}", row.name)));
        let nodes = row.nodes.iter().filter(|node| !node.detail.is_empty());
        status.notes.extend(nodes.map(|node| format!("{}, node {}: {}", row.name, node.name, node.detail)));
    }
}

/// What hinders a volume, in words; empty where nothing does.
pub(super) fn volume_trouble(status: &VolumeStatus) -> String {
    if let Some(closed) = &status.closed {
        return closed.clone();
    }
    let of = |what: &str, has: fn(&CopyState) -> bool| {
        let names: Vec<String> =
            status.copies.iter().filter(|copy| has(&copy.state)).map(|copy| copy.id.to_string()).collect();
        (!names.is_empty()).then(|| format!("{what}: {}", names.join(", ")))
    };
    let parts = [
        of("absent", |state| *state == CopyState::Absent),
        of("failed", |s| matches!(s, CopyState::Failed(_) | CopyState::PromisedElsewhere(_))),
        of("being filled", |state| *state == CopyState::Filling),
        of("opening", |s| matches!(s, CopyState::Asked | CopyState::Promised | CopyState::Adopting)),
    ];
    let copies = parts.into_iter().flatten().collect::<Vec<_>>().join("; ");
    if status.writable && copies.is_empty() {
        String::new()
    } else if status.writable {
        format!("copies of the volume {copies}")
    } else {
        let promised = status.copies.iter().filter(|copy| copy.state == CopyState::Promised).count();
        let recover = match promised >= WRITE_QUORUM && status.members == READ_QUORUM {
            true => {
                "; three of them have its redo, and the others forgot theirs: bring back one more, or, where the others are lost \
                 for good, replicator volume recover --region R"
            }
            false => "",
        };
        format!("commits wait: the volume needs four of its six copies; {copies}{recover}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_postgresql_that_does_not_run_or_answer_is_told_by_its_region_and_nothing_else_is() {
        let row = |state: RegionState, detail: &str| RegionStatus {
            state: state.to_string(),
            detail: detail.into(),
            ..RegionStatus::default()
        };
        let told = |by_primary, by_itself| {
            let mut row = row(by_primary, "");
            tell_of_postgresql(&mut row, &by_itself);
            (row.state, row.detail)
        };
        use RegionState::{CatchingUp, Disconnected, Seeding, Silent, Starting, Streaming};
        for by_primary in [Streaming, CatchingUp] {
            for by_itself in [Starting, Silent] {
                let wanted = (by_itself.to_string(), "FATAL: no".to_owned());
                assert_eq!(told(by_primary, row(by_itself, "FATAL: no")), wanted);
            }
            let unchanged = (by_primary.to_string(), String::new());
            assert_eq!(told(by_primary, row(Disconnected, "cut")), unchanged, "the primary knows better");
        }
        assert_eq!(told(Seeding, row(Starting, "old")).0, Seeding.to_string());
    }
}
