//! This host as one of several that may be the region's head: what it begins with, whose copies it takes
//! while it stands, how it knows that it still is the head, and when it is not any more. The decisions are in
//! `coordination/src/succession.rs`; what shuts a head out is the volume ([`volume::Tenure`]).

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use coordination::Leadership;
use coordination::succession::{self, Claim, Head, NotAdmitted, Offer, Other};
use proto::messages::refusal::Kind;
use proto::messages::{
    Ballot, MAX_CONTROL_MESSAGE_BYTES, NodeOpen, NodeWord, Open, PROTOCOL_VERSION, Refusal, ZoneCopy,
    ZoneOpen, open,
};
use proto::{ClusterId, Epoch, Lsn, NodeName, RegionName};
use runtime::clock::now;
use runtime::task::blocking;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use transport::{Endpoint, Traffic};
use volume::{Tenure, VolumeError};

use super::reload::Source;
use super::{Region, RegionError};
use crate::config::{Config, HOME, RegionConfig, Role};
use crate::events::Kind as EventKind;
use crate::layout::RegionLayout;
use crate::node::Stands;
use crate::node::file::NodeFile;
use crate::region_file::{RegionState, StateError};
use postgres::instance::Instance;

/// How often it is looked whether this host is still of use as the head.
const LOOK: Duration = Duration::from_millis(100);

/// The wait before what could not be kept on disk is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// How long another host may take to answer.
const ANSWER: Duration = Duration::from_millis(500);

/// How long those wait who come to a host to which the head has handed over, before it is the head.
const BECOMES: Duration = Duration::from_millis(300);

/// How long the copies may take to say what they have promised.
const PROMISED: Duration = Duration::from_millis(500);

/// The most openings that are remembered since one came to something. A host that was started so often
/// without any of them having come to something begins anew.
const WRITERS_MAX: usize = 16;

/// What a host begins with that may not be the only one of its region.
#[derive(Debug)]
pub(crate) struct Heading {
    /// Which host this is.
    pub(crate) host: NodeName,
    /// How long the region's head must not have been heard before another host takes over.
    after: Duration,
    claim: Claim,
    /// The hosts that are before this one in the file.
    before: Vec<NodeName>,
    begun: Instant,
    /// What this host knew by then of the last head.
    pub(super) began: Stands,
    /// The volume was open since, and that is on disk.
    opened: watch::Sender<bool>,
    /// It has had too few copies for so long that another host may be the head by now.
    doubtful: AtomicBool,
    /// It has nothing of the region's data, and copies were offered that are in use.
    empty: AtomicBool,
}

impl Heading {
    /// What a host begins with; none where its region has no other that may be the head. `own` is the region
    /// as the file has it; `record` is that of what the region has promised.
    pub(super) fn of(own: &RegionConfig, source: &Source, record: Option<&RegionState>) -> Option<Heading> {
        let claim = match record {
            None if source.stands => Claim::Replica,
            Some(state) if state.headed.is_some() || state.system_id.is_some() => Claim::Resumes,
            // A region that is made, or a host that has lost all that it had.
            _ => Claim::None,
        };
        let hosts = own.candidates().into_iter().map(|host| host.name);
        let before = hosts.take_while(|host| *host != source.host).collect();
        own.take_over_after.map(|after| Heading {
            host: source.host.clone(),
            after,
            claim,
            before,
            begun: now(),
            began: source.began,
            opened: watch::Sender::new(false),
            doubtful: AtomicBool::new(false),
            empty: AtomicBool::new(false),
        })
    }

    fn is_open(&self) -> bool {
        *self.opened.borrow()
    }

    /// It takes over from another host, and remembers nothing of what the region has promised.
    pub(super) fn takes_over(&self) -> bool {
        self.claim == Claim::Replica
    }

    /// Where the redo ends of the writer that the last head has stopped to hand over to this host; none where
    /// it has not, or had none, or where commits do not wait for the volume.
    pub(super) fn was_handed(&self, config: &Config) -> Option<Lsn> {
        self.began.ended_lsn.filter(|_| self.takes_over() && config.commit.waits())
    }
}

/// The name of a region's host: that of its daemon, or a node.
#[must_use]
pub fn host_name(node: Option<&NodeName>) -> Option<NodeName> {
    node.cloned().or_else(|| HOME.parse().ok())
}

/// The record of a host that takes over: it has the region's data, and no memory of what the region's voter
/// has promised, as that is what the other host promised.
///
/// # Errors
/// When the host has no data, or they cannot be read.
pub(super) fn begin(
    places: &RegionLayout,
    config: &Config,
    name: &RegionName,
    cluster_id: ClusterId,
    (heading, instance): (&Heading, &Instance),
) -> Result<RegionState, RegionError> {
    let file = NodeFile::open(&places.node(&heading.host).state(), cluster_id, name, &heading.host)?;
    let origin = file.data().and_then(|data| data.origin.number());
    let data_number = origin.ok_or(RegionError::NothingToLeadWith)?;
    let primary = config.first_primary().unwrap_or(name).clone();
    let first = Leadership::first(Epoch(1), primary);
    let mut state =
        RegionState::new(cluster_id, name.clone(), Role::Secondary, first, runtime::random::draw());
    if heading.was_handed(config).is_some() {
        // A writer may be started before it is known whether the region still leads.
        state.role = Role::Primary;
    }
    (state.system_id, state.data_number) = (Some(instance.system_id()?), data_number);
    Ok(state)
}

/// Notes that `writer` is about to open the volume; returns what is to be gone by. Where this host has never
/// had the volume open in its tenure, nobody was told that he may take over from it, and it begins.
///
/// # Errors
/// When it cannot be kept on disk.
pub(super) fn note_writer(
    state: &mut RegionState,
    places: &RegionLayout,
    writer: u64,
) -> Result<Tenure, StateError> {
    let earlier = state.writers.iter().copied().filter(|_| state.headed.is_some()).collect();
    state.writers.push(writer);
    let beyond = state.writers.len().saturating_sub(WRITERS_MAX);
    state.writers.drain(..beyond);
    state.save(&places.state())?;
    Ok(Tenure { earlier, since: state.headed })
}

impl Region {
    /// Whether this host could still write to the volume after this was asked, where another one may have
    /// taken over. What is answered in the region's name is decided, and on disk, before this is asked: so it
    /// was before any other head began to find out what the region has promised.
    pub(super) async fn is_head(&self) -> Result<(), Refusal> {
        self.has_headed()?;
        if self.heading.is_none() || self.volume.still_writes(PROMISED).await {
            return Ok(());
        }
        let reason = format!("this host of region {} is not known to be its head", self.own.name);
        Err(Refusal::new(Kind::NotHead, reason))
    }

    /// Whether other regions, and clients, may be served by this host.
    ///
    /// # Errors
    /// A refusal where another host may be the region's head.
    pub(super) fn serves(&self) -> Result<(), Refusal> {
        self.has_headed()?;
        match self.is_doubtful() {
            true => {
                Err(Refusal::new(Kind::NotHead, "this host has too few copies, and may be the head no more"))
            }
            false => Ok(()),
        }
    }

    /// Whether another host may be the head by now.
    pub(super) fn is_doubtful(&self) -> bool {
        self.heading.as_ref().is_some_and(|heading| heading.doubtful.load(Ordering::Relaxed))
    }

    /// Waits until the volume is open, and keeps on disk that it was.
    pub(super) async fn become_head(&self) {
        let Some(heading) = &self.heading else { return };
        loop {
            if self.volume.opened().await.is_err() {
                return std::future::pending().await;
            }
            // It may be opened anew just now.
            let Some(ballot) = self.volume.open_ballot() else { continue };
            let file = self.file.clone();
            let keep = move || {
                let kept = file.change(|state| {
                    // Whoever takes over from now on has a higher ballot; what came before is settled.
                    state.headed = Some(ballot);
                    state.writers.retain(|writer| *writer == ballot.writer);
                });
                kept.map_err(|e| e.to_string())
            };
            let disown = self.disowns_replica(heading);
            // Both files become durable at once.
            let (kept, disowned) =
                tokio::join!(blocking("keep who is the head", keep), blocking("disown a replica", disown));
            match [kept, disowned].into_iter().try_for_each(|done| done.map_err(|e| e.to_string()).flatten())
            {
                Ok(()) => break,
                Err(e) => tracing::error!("{e}; trying again"),
            }
            tokio::time::sleep(AGAIN).await;
        }
        heading.opened.send_replace(true);
        if heading.takes_over() {
            let (host, name) = (&heading.host, &self.own.name);
            let silent = (heading.began.silent + heading.begun.elapsed()).as_millis();
            let text = match heading.began.stopped_at_us {
                Some(_) => format!("{name}: host {host} is the region's head; the last one has handed over"),
                None => {
                    format!("{name}: host {host} is the region's head; no other was heard for {silent} ms")
                }
            };
            self.journal.note(EventKind::HeadTaken, text);
        }
        // What this host has heard of another head is old from now on.
        remove(&self.layout.node(&heading.host).heard());
    }

    /// As a head it does with its data what a head does: as a node's they are nothing any more, and are
    /// copied anew when it is one again.
    fn disowns_replica(&self, heading: &Heading) -> impl FnOnce() -> Result<(), String> + use<> {
        let record = self.layout.node(&heading.host).state();
        disown_replica(&record, self.cluster_id, &self.own.name, &heading.host)
    }

    /// Whether a zone's copies are taken. A copy whose disk is new has forgotten what it had promised,
    /// perhaps to another head: only who has four others is given it.
    ///
    /// # Errors
    /// A refusal, where this host only stands and the zone may have another head, or may be the head no more.
    pub(super) async fn admits(&self, open: &ZoneOpen) -> Result<(), Refusal> {
        let Some(heading) = &self.heading else { return Ok(()) };
        if self.moving.is_said() {
            return Err(Refusal::new(Kind::NotHead, "this host has handed over"));
        }
        if self.volume.is_open() {
            let is_new = |copy: &ZoneCopy| copy.promised == Some(Ballot::default());
            return if open.copies.iter().any(is_new) { self.is_head().await } else { Ok(()) };
        }
        let state = self.state();
        let number = format!("{:016x}", state.data_number);
        let of_another = |copy: &ZoneCopy| {
            let promised = copy.promised.as_ref().filter(|promised| **promised != Ballot::default());
            promised.is_some_and(|promised| !state.writers.contains(&promised.writer))
        };
        let offer = Offer {
            silent: Duration::from_millis(open.silent_ms),
            same_origin: open.origin == number,
            has_promised: open.copies.iter().any(of_another),
            handed_over: open.handed_over_to == heading.host.as_str(),
        };
        let admitted = succession::admits(heading.claim, heading.after, offer);
        if admitted == Err(NotAdmitted::Empty) {
            heading.empty.store(true, Ordering::Relaxed);
        }
        admitted.map_err(|why| Refusal::new(Kind::NotHead, why.to_string()))
    }

    /// Whether this host has become the head since it was started.
    ///
    /// # Errors
    /// A refusal while it only stands.
    pub(super) fn has_headed(&self) -> Result<(), Refusal> {
        match self.heading.as_ref().is_some_and(|heading| !heading.is_open()) {
            true => Err(Refusal::new(Kind::NotHead, "this host is not the region's head yet")),
            false => Ok(()),
        }
    }

    /// Where the last head has handed over to this host, waits a moment until that has become the head: who
    /// asks is told so at once, and need not ask again.
    pub(super) async fn until_headed(&self) {
        let Some(heading) = self.heading.as_ref().filter(|heading| heading.began.stopped_at_us.is_some())
        else {
            return;
        };
        let mut opened = heading.opened.subscribe();
        let _ = tokio::time::timeout(BECOMES, opened.wait_for(|opened| *opened)).await;
    }

    /// Returns, in words, why this host is not the region's head any more, or does not become it.
    pub(super) async fn until_no_head(&self) -> String {
        let Some(heading) = &self.heading else { return std::future::pending().await };
        let begun = now();
        let mut quorate = begun;
        loop {
            tokio::time::sleep(LOOK).await;
            if self.volume.status().writable {
                quorate = now();
            }
            let mut head = Head {
                claim: heading.claim,
                opened: heading.is_open(),
                since: begun.elapsed(),
                without_quorum: quorate.elapsed(),
                after: heading.after,
                other: Other::Silent,
            };
            heading.doubtful.store(head.opened && head.without_quorum >= head.after, Ordering::Relaxed);
            if heading.empty.load(Ordering::Relaxed) {
                return "it has nothing of the region's data, whose copies are in use".into();
            }
            if succession::looks_around(&head) {
                head.other = self.other(heading).await;
            }
            if succession::steps_down(&head) {
                return match head.other {
                    Other::Leads => "it has too few copies, and another host is the head".into(),
                    Other::StandsBefore => "another host stands, which is before this one".into(),
                    Other::StandsAfter | Other::Silent => "too few copies have come to it".into(),
                };
            }
            if self.lacks_data() {
                return "its replica cannot be gone on with".into();
            }
        }
    }

    /// Whether this host has taken over in a primary region with a replica that needs redo which the volume
    /// does not keep any more. In a secondary region the primary seeds it.
    fn lacks_data(&self) -> bool {
        let leads = self.voter.standing().is_some_and(|standing| !standing.forbids());
        let takes_over = self.heading.as_ref().is_some_and(Heading::takes_over);
        takes_over && leads && self.state().system_id.is_none()
    }

    /// What the other hosts of the region answer: only a head does, or one that stands.
    async fn other(&self, heading: &Heading) -> Other {
        let mut asking = JoinSet::new();
        for node in self.own.nodes.iter().filter(|node| node.listen.is_some()) {
            let (endpoint, name, place) =
                (self.endpoint.clone(), self.own.name.clone(), node.advertise.clone());
            let (cluster_id, host) = (self.cluster_id, heading.host.clone());
            let is_before = heading.before.contains(&node.name);
            asking.spawn(async move {
                let asked = tokio::time::timeout(ANSWER, leads(&endpoint, &place, &name, (cluster_id, host)));
                match asked.await.unwrap_or(None) {
                    None => Other::Silent,
                    Some(true) => Other::Leads,
                    Some(false) if is_before => Other::StandsBefore,
                    Some(false) => Other::StandsAfter,
                }
            });
        }
        asking.join_all().await.into_iter().max().unwrap_or(Other::Silent)
    }

    /// For how long this host has heard no head: none where it has been that itself.
    pub(super) fn heard_none_for(&self) -> Duration {
        match &self.heading {
            Some(heading) if !heading.is_open() => heading.began.silent + heading.begun.elapsed(),
            _ => Duration::ZERO,
        }
    }

    /// Lets go of what a host has that is the head no more: clients are cut off at once. What it remembers is
    /// of no use, unless it may go on with that where `keeps`.
    pub(super) async fn let_go(&self, keeps: bool) {
        if let Err(e) = self.owner.cluster().stop_at_once().await {
            tracing::error!("{e}");
        }
        let heading = self.heading.as_ref();
        let opened = heading.is_some_and(|heading| heading.is_open() || heading.claim == Claim::Resumes);
        if let Some(heading) = heading.filter(|heading| heading.is_open()) {
            let text = format!("{}: host {} is the region's head no more", self.own.name, heading.host);
            self.journal.note(EventKind::HeadLeft, text);
        }
        let lost = self.lacks_data();
        if !keeps || !opened || lost {
            remove(&self.layout.state());
        }
        if let Some(heading) = heading.filter(|_| lost) {
            remove(&self.layout.node(&heading.host).state());
        }
    }
}

/// The record is written by one at a time.
static DISOWNING: Mutex<()> = Mutex::new(());

/// Notes in the record of `host` as a node that its data are no replica's any more.
pub(super) fn disown_replica(
    record: &Path,
    cluster_id: ClusterId,
    region: &RegionName,
    host: &NodeName,
) -> impl FnOnce() -> Result<(), String> + use<> {
    let (record, region, host) = (record.to_owned(), region.clone(), host.clone());
    move || {
        let _one = DISOWNING.lock().unwrap_or_else(PoisonError::into_inner);
        if !record.exists() {
            return Ok(());
        }
        let file = NodeFile::open(&record, cluster_id, &region, &host).map_err(|e| e.to_string())?;
        // It may be noted already, and to make it durable takes time.
        if file.data().is_some() { file.set(None).map_err(|e| e.to_string()) } else { Ok(()) }
    }
}

pub(super) fn remove(path: &Path) {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            tracing::error!("{}: {e}; it is looked into again at the next start", path.display());
        }
        _ => {}
    }
}

/// Whether the host at `place` is the head of region `name`, as it tells `host`, or only stands; none where
/// nobody answers.
async fn leads(
    endpoint: &Endpoint,
    place: &str,
    name: &RegionName,
    (cluster_id, host): (ClusterId, NodeName),
) -> Option<bool> {
    let connection = endpoint.connect_to(Traffic::Redo, place, name, ANSWER).await.ok()?;
    let node = NodeOpen { node: host.to_string(), process: 0 };
    let open = Open {
        protocol: PROTOCOL_VERSION,
        cluster_id: cluster_id.0.to_vec().into(),
        purpose: Some(open::Purpose::Node(node)),
    };
    let mut stream = connection.open_stream(&open).await.ok()?;
    let word = stream.receive::<NodeWord>(MAX_CONTROL_MESSAGE_BYTES).await.ok()??;
    connection.close("it was only asked who is the head");
    // One that has handed over is about to be gone.
    word.stopped_us.is_none().then_some(word.refusal.is_none())
}

/// Whether the volume was closed as another host has it.
pub(super) fn is_overtaken(error: &VolumeError) -> bool {
    matches!(error, VolumeError::Overtaken { .. } | VolumeError::Deposed { .. })
}
