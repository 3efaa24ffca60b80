//! This host as one of several that may be the region's head: what it begins with, whose copies it takes
//! while it stands, how it knows that it still is the head, and when it is not any more. The decisions are in
//! `coordination/src/succession.rs`; what shuts a head out is the volume ([`volume::Tenure`]).

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use coordination::Leadership;
use coordination::succession::{self, Claim, Head, Offer};
use proto::messages::refusal::Kind;
use proto::messages::{Ballot, Refusal, ZoneCopy, ZoneOpen};
use proto::{ClusterId, Epoch, NodeName, RegionName};
use runtime::clock::now;
use transport::{Endpoint, Traffic};
use volume::{Tenure, VolumeError};

use super::{Region, RegionError};
use crate::config::{Config, HOME, RegionConfig, Role};
use crate::layout::RegionLayout;
use crate::node::file::NodeFile;
use crate::region_file::{RegionState, StateError};
use postgres::instance::Instance;

/// How often it is looked whether this host is still of use as the head.
const LOOK: Duration = Duration::from_millis(100);

/// The wait before what could not be kept on disk is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// How long another host may take to answer.
const ANSWER: Duration = Duration::from_millis(500);

/// How long the copies may take to say what they have promised.
const PROMISED: Duration = Duration::from_millis(500);

/// The most openings of one tenure that are remembered. A host that was started so often without any of them
/// having come to something begins anew.
const WRITERS_MAX: usize = 16;

/// What a host begins with that may not be the only one of its region.
#[derive(Debug)]
pub(crate) struct Heading {
    /// Which host this is.
    pub(crate) host: NodeName,
    /// How long the region's head must not have been heard before another host takes over.
    after: Duration,
    claim: Claim,
    /// The volume was open since, and that is on disk.
    opened: AtomicBool,
}

impl Heading {
    /// What the host `host` begins with; none where its region has no other that may be the head. `stands`:
    /// it takes over from another one.
    pub(super) fn of(own: &RegionConfig, host: &NodeName, stands: bool, record: bool) -> Option<Heading> {
        let claim = if stands && !record { Claim::Replica } else { Claim::Resumes };
        let opened = AtomicBool::new(false);
        own.take_over_after.map(|after| Heading { host: host.clone(), after, claim, opened })
    }

    /// It takes over from another host, and remembers nothing of what the region has promised.
    pub(super) fn takes_over(&self) -> bool {
        self.claim == Claim::Replica
    }
}

/// The name of a region's host: that of its daemon, or a node.
#[must_use]
pub fn host_name(node: Option<&NodeName>) -> Option<NodeName> {
    node.cloned().or_else(|| HOME.parse().ok())
}

/// Whether a host begins as the region's head: it was that last, as far as it knows, or nothing was ever here
/// and it is the host of the region's daemon.
#[must_use]
pub fn was_head(shared: &RegionLayout, host: &NodeName) -> bool {
    let is_new = host.as_str() == HOME && !shared.node(host).state().exists();
    shared.headed_by(host).state().exists() || is_new
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
        Err(Refusal::new(Kind::Busy, reason))
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
            match self.file.change(|state| state.headed = state.headed.or(Some(ballot))) {
                Ok(()) => break,
                Err(e) => tracing::error!("{e}; trying again"),
            }
            tokio::time::sleep(AGAIN).await;
        }
        heading.opened.store(true, Ordering::Relaxed);
    }

    /// Whether a zone's copies are taken. A copy whose disk is new has forgotten what it had promised, perhaps
    /// to another head: only who has four others is given it.
    ///
    /// # Errors
    /// A refusal, where this host only stands and the zone may have another head, or may be the head no more.
    pub(super) async fn admits(&self, open: &ZoneOpen) -> Result<(), Refusal> {
        let Some(heading) = &self.heading else { return Ok(()) };
        if self.volume.is_open() {
            let is_new = |copy: &ZoneCopy| copy.promised == Some(Ballot::default());
            return if open.copies.iter().any(is_new) { self.is_head().await } else { Ok(()) };
        }
        let number = format!("{:016x}", self.state().data_number);
        let offer =
            Offer { silent: Duration::from_millis(open.silent_ms), same_origin: open.origin == number };
        let admitted = succession::admits(heading.claim, heading.after, offer);
        admitted.map_err(|why| Refusal::new(Kind::Busy, why.to_string()))
    }

    /// Whether this host has become the head since it was started.
    ///
    /// # Errors
    /// A refusal while it only stands.
    pub(super) fn has_headed(&self) -> Result<(), Refusal> {
        match self.heading.as_ref().is_some_and(|heading| !heading.opened.load(Ordering::Relaxed)) {
            true => Err(Refusal::new(Kind::Busy, "this host is not the region's head yet")),
            false => Ok(()),
        }
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
                opened: heading.opened.load(Ordering::Relaxed),
                since: begun.elapsed(),
                without_quorum: quorate.elapsed(),
                after: heading.after,
                another: false,
            };
            if succession::looks_around(&head) {
                head.another = self.another_answers().await;
            }
            if succession::steps_down(&head) {
                return match head.another {
                    true => "it has too few copies, and another host answers".into(),
                    false => "too few copies have come to it".into(),
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

    /// Whether another host of the region answers: only a head does, or one that stands.
    async fn another_answers(&self) -> bool {
        for node in self.own.nodes.iter().filter(|node| node.listen.is_some()) {
            if answers(&self.endpoint, &node.advertise, &self.own.name).await {
                return true;
            }
        }
        false
    }

    /// Lets go of what a host has that is the head no more: clients are cut off at once. What it remembers is
    /// of no use, unless it may go on with that where `keeps`.
    pub(super) async fn let_go(&self, keeps: bool) {
        if let Err(e) = self.owner.cluster().stop_at_once().await {
            tracing::error!("{e}");
        }
        let heading = self.heading.as_ref();
        let opened = heading
            .is_some_and(|heading| heading.opened.load(Ordering::Relaxed) || heading.claim == Claim::Resumes);
        let lost = self.lacks_data();
        if !keeps || !opened || lost {
            remove(&self.layout.state());
        }
        if let Some(heading) = heading.filter(|_| lost) {
            remove(&self.layout.node(&heading.host).state());
        }
    }
}

fn remove(path: &Path) {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            tracing::error!("{}: {e}; it is looked into again at the next start", path.display());
        }
        _ => {}
    }
}

async fn answers(endpoint: &Endpoint, place: &str, name: &RegionName) -> bool {
    match endpoint.connect_to(Traffic::Redo, place, name, ANSWER).await {
        Ok(connection) => {
            connection.close("it was only asked whether somebody answers");
            true
        }
        Err(_) => false,
    }
}

/// Whether the volume was closed as another host has it.
pub(super) fn is_overtaken(error: &VolumeError) -> bool {
    matches!(error, VolumeError::Overtaken { .. } | VolumeError::Deposed { .. })
}
