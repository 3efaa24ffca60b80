//! What the daemon remembers for whoever looks: events of its own, and how far all regions were in the last
//! hour.
//!
//! Two tasks: one compares what the daemon is with what it was, and notes events; one asks all regions how
//! far they are, once a second. Nothing waits for either, and neither touches what it looks at.

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use coordination::register::Accepted;
use proto::messages::{
    ClusterStatus, CopyState, Event, EventsRequest, RegionStatus, RegionStatusRequest, RegionView,
    control_request, control_response,
};
use proto::{RegionName, RegionState};
use runtime::clock::{now, steady_us, wall_us};
use tokio::task::JoinSet;
use tokio::time::Instant;
use volume::quorum;

use super::Region;
use super::control::{add_notes_of_regions, copy_state, merge, tell_of_itself, volume_trouble};
use crate::audit::chain::Deed;
use crate::config::Config;
use crate::events::Kind;
use crate::events::notice::{CopySeen, Held, Notice, Seen};
use crate::layout::write_durably;
use crate::load::series::Question;
use crate::page::{self, Facts, Hour, Sample};
use crate::verdict;
use crate::voter::Peers;

/// How often the daemon is compared with what it was.
const LOOK: Duration = Duration::from_millis(250);

/// How often all regions are asked how far they are.
const SAMPLE: Duration = Duration::from_secs(1);

/// How long a region may take to answer that: the next question is not held up.
const ASK: Duration = Duration::from_millis(900);

/// How long a region's last answer counts for what it says of its copies.
const FRESH: Duration = Duration::from_secs(5);

/// The newest events that are kept of each region, for the page.
const EVENTS_MAX: usize = 100;

/// The last answer of another region.
#[derive(Debug)]
struct Heard {
    at: Instant,
    row: RegionStatus,
}

#[derive(Debug, Default)]
struct Inner {
    /// Commits are held, for so long that it is news.
    holds: bool,
    status: Option<ClusterStatus>,
    heard: BTreeMap<String, Heard>,
    hours: BTreeMap<String, Hour>,
    /// The newest events of the other regions, oldest first.
    events: BTreeMap<String, VecDeque<Event>>,
}

/// What the daemon remembers. Everything in it is bounded.
#[derive(Debug)]
pub(crate) struct Chronicle {
    /// Connections of its own: a question that nobody answers must not end one that votes are asked on.
    peers: Peers,
    inner: Mutex<Inner>,
}

impl Chronicle {
    pub(super) fn new(peers: Peers) -> Chronicle {
        Chronicle { peers, inner: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing here is left half changed by a panic.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether commits are held, for so long that it is news.
    pub(super) fn holds(&self) -> bool {
        self.lock().holds
    }

    /// Puts in what only the other regions themselves know, as they said it last.
    pub(super) fn add_heard(&self, status: &mut ClusterStatus) {
        let inner = self.lock();
        for row in status.regions.iter_mut().filter(|row| row.copies.is_empty()) {
            if let Some(heard) = inner.heard.get(&row.name).filter(|heard| heard.at.elapsed() < FRESH) {
                tell_of_itself(row, &heard.row);
            }
        }
    }

    /// The cluster at the last sample.
    fn status(&self) -> Option<ClusterStatus> {
        self.lock().status.clone()
    }

    /// How far `region` was after `after_us`.
    fn samples(&self, region: &str, after_us: i64) -> Vec<Sample> {
        self.lock().hours.get(region).map(|hour| hour.after(after_us)).unwrap_or_default()
    }

    /// The newest events of the other regions.
    fn others_events(&self) -> Vec<(String, Vec<Event>)> {
        let inner = self.lock();
        inner.events.iter().map(|(name, events)| (name.clone(), events.iter().cloned().collect())).collect()
    }

    fn last_event(&self, region: &str) -> u64 {
        self.lock().events.get(region).and_then(VecDeque::back).map_or(0, |event| event.number)
    }

    fn take(&self, status: ClusterStatus, views: &[RegionView], events: Vec<(String, Vec<Event>)>) {
        let at_us = wall_us();
        let mut inner = self.lock();
        for row in views.iter().filter_map(|view| view.own.as_ref()) {
            inner.heard.insert(row.name.clone(), Heard { at: now(), row: row.clone() });
        }
        for row in &status.regions {
            inner.hours.entry(row.name.clone()).or_default().push(at_us, row);
        }
        for (name, newer) in events {
            let kept = inner.events.entry(name).or_default();
            kept.extend(newer);
            let beyond = kept.len().saturating_sub(EVENTS_MAX);
            kept.drain(..beyond);
        }
        inner.status = Some(status);
    }
}

impl page::Source for Region {
    fn page(&self, after_ms: i64) -> Option<String> {
        self.page_facts(after_ms)
    }

    fn record_changed(&self, seen: String) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async move {
            loop {
                let changed = self.voter.changed();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if mark(&self.voter.view().accepted) != seen {
                    return;
                }
                changed.await;
            }
        })
    }

    fn load(&self, question: Question) -> Pin<Box<dyn Future<Output = Option<String>> + Send + '_>> {
        Box::pin(async move {
            match self.load_of(question).await {
                Ok(load) => serde_json::to_string(&load).ok(),
                Err(refusal) => {
                    tracing::debug!("load: {}", refusal.reason);
                    None
                }
            }
        })
    }

    fn now_s(&self) -> i64 {
        wall_us().div_euclid(1_000_000)
    }
}

/// What tells this record from others.
fn mark(accepted: &Accepted) -> String {
    accepted.number.to_string()
}

/// What happens at the daemon's start: it is noted, and so is what the file says now and did not at the last
/// start.
pub(super) async fn note_start(parts: &super::Parts) {
    let (name, journal) = (&parts.own.name, &parts.journal);
    let version = env!("CARGO_PKG_VERSION");
    journal.note(
        Kind::DaemonStarted,
        format!("region {name}: daemon {version} has started; it opens its volume"),
    );
    let path = parts.layout.configuration_seen();
    match std::fs::read_to_string(&path) {
        Ok(before) if before == tell(&parts.config) => return,
        Ok(before) => note_changes(parts, &before, &tell(&parts.config)).await,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => tracing::warn!("{}: {e}", path.display()),
    }
    keep_seen(parts, &parts.config);
}

/// The file was read again, and so `force` holds where `before` did.
pub(super) async fn note_reload(parts: &super::Parts, before: &Config, force: &Config) {
    if before == force {
        return;
    }
    note_changes(parts, &tell(before), &tell(force)).await;
    keep_seen(parts, force);
}

async fn note_changes(parts: &super::Parts, before: &str, after: &str) {
    let name = &parts.own.name;
    for change in changes(before, after) {
        // Whoever can write the file did it: that is known of the machine, and not here.
        let deed = Deed { role: "local".into(), name: "regions.toml".into(), ..Deed::default() };
        let (what, outcome) = ("configuration".into(), "in force".into());
        parts.audit.keep(Deed { what, detail: change.clone(), outcome, ..deed }).await;
        let text = format!("configuration of {name}: {change}; it holds from now on");
        parts.journal.note(Kind::ConfigurationChanged, text);
    }
}

fn keep_seen(parts: &super::Parts, config: &Config) {
    let path = parts.layout.configuration_seen();
    if let Err(e) = write_durably(&path, tell(config).as_bytes()) {
        tracing::warn!("{}: {e}", path.display());
    }
}

/// A configuration as lines of `what: value`, to be compared.
fn tell(config: &Config) -> String {
    let mut lines = vec![
        format!("cluster: {}", config.cluster),
        format!("commit: {:?}", config.commit),
        format!("lease: {:?}", config.lease),
        format!("retain: {:?}", config.retain),
        format!("max_size_bytes: {}", config.max_size_bytes),
        format!("repair_bytes_per_second: {}", config.repair_bytes_per_second),
        format!("scrub_every: {:?}", config.scrub_every),
        format!("os_user: {:?}", config.os_user),
        format!("bin_dir: {:?}", config.bin_dir),
        format!("telemetry: {:?}", config.telemetry),
        format!("logs: {:?}", config.logs),
        format!("denied certificates: {:?}", config.denied),
    ];
    // A setting may hold a secret: that it changed is told, and not what it is.
    lines.extend(config.settings.iter().map(|(name, value)| {
        let digest = fingerprint(value.as_bytes());
        format!("postgresql setting {name}: set, {digest:08x}")
    }));
    let hba = config.hba.join("\n");
    lines.push(format!(
        "postgresql setting hba: {} lines, {:08x}",
        config.hba.len(),
        fingerprint(hba.as_bytes())
    ));
    for region in &config.regions {
        let name = &region.name;
        lines.extend(region.settings.iter().map(|(setting, value)| {
            let digest = fingerprint(value.as_bytes());
            format!("postgresql setting {setting} of {name}: set, {digest:08x}")
        }));
        lines.push(format!("region {name} listen: {}", region.listen));
        lines.push(format!("region {name} advertise: {}", region.advertise));
        lines.push(format!("region {name} postgres: {}", region.postgres));
        lines.push(format!("region {name} bin_dir: {:?}", region.bin_dir));
        lines.push(format!("region {name} http: {:?}", region.http));
        lines.push(format!("region {name} own_process: {:?}", region.own_process));
        lines.push(format!("region {name} node: {:?}", region.nodes));
        lines.push(format!("region {name} bandwidth: {:?}", region.bandwidth_bits_per_second));
    }
    lines.extend(
        config.witnesses.iter().map(|witness| format!("witness {}: {}", witness.name, witness.advertise)),
    );
    lines.join("\n") + "\n"
}

/// What is another way in `after`, a sentence for each.
fn changes(before: &str, after: &str) -> Vec<String> {
    let lines = |text: &str| -> BTreeMap<String, String> {
        let line =
            |line: &str| line.split_once(": ").map(|(what, value)| (what.to_owned(), value.to_owned()));
        text.lines().filter_map(line).collect()
    };
    let (before, after) = (lines(before), lines(after));
    let gone = before.keys().filter(|what| !after.contains_key(*what)).map(|what| format!("{what} is gone"));
    let other = after.iter().filter_map(|(what, value)| match before.get(what) {
        Some(old) if old == value => None,
        _ if what.starts_with("postgresql setting") => Some(format!("{what} is another")),
        Some(old) => Some(format!("{what} was {old}, and is {value}")),
        None => Some(format!("{what} is new: {value}")),
    });
    other.chain(gone).collect()
}

impl Region {
    /// Notes events, for ever.
    pub(super) async fn note_events(self: Arc<Self>) {
        let mut notice = Notice::default();
        loop {
            // No change of the record is missed, however short a promotion is.
            let changed = self.voter.changed();
            tokio::pin!(changed);
            changed.as_mut().enable();
            for note in notice.look(steady_us(), &self.seen()) {
                self.journal.keep(note);
            }
            self.chronicle.lock().holds = notice.holds();
            self.audit.keep_record(&self.voter.accepted()).await;
            tokio::select! {
                () = changed => {}
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    pub(super) fn seen(&self) -> Seen {
        let status = self.volume.status();
        let leader = self.owner.cluster().leader();
        let copies = status.copies.iter().map(|copy| {
            let seen = match &copy.state {
                quorum::CopyState::Live => CopySeen::Whole,
                quorum::CopyState::Absent => CopySeen::Away("absent".into()),
                quorum::CopyState::Failed(why) => CopySeen::Away(format!("failed, {why}")),
                quorum::CopyState::PromisedElsewhere(_) => {
                    CopySeen::Away("it has promised a higher ballot to another writer".into())
                }
                quorum::CopyState::Filling
                | quorum::CopyState::Asked
                | quorum::CopyState::Promised
                | quorum::CopyState::Adopting => CopySeen::Coming,
            };
            (copy.id.to_string(), seen)
        });
        let held = leader.as_ref().and_then(|leader| {
            let released = leader.primary().reader().released;
            let lost = (!status.writable).then(|| (volume_trouble(&status), false));
            let held = released.held.map(|held| (held.to_string(), held.is_momentary()));
            let (why, momentary) = lost.or(held).filter(|_| self.config.commit.waits())?;
            Some(Held { why, momentary, released_lsn: released.lsn })
        });
        let secondaries = leader.map(|leader| leader.primary().secondaries()).unwrap_or_default();
        let secondaries = secondaries.into_iter().map(|secondary| {
            let state = match secondary.detail.is_empty() {
                true => secondary.state.to_string(),
                false => format!("{}, {}", secondary.state, secondary.detail),
            };
            let streams = match secondary.state {
                RegionState::Streaming | RegionState::CatchingUp => Some(true),
                RegionState::Seeding => None,
                _ => Some(false),
            };
            (secondary.name.to_string(), streams, state)
        });
        Seen {
            me: self.own.name.clone(),
            part: Some(self.owner.part()),
            record: self.voter.accepted(),
            held,
            copies: copies.collect(),
            gave_way_us: self.volume.gave_way_us(),
            secondaries: secondaries.collect(),
            trouble: self.owner.trouble(),
        }
    }

    /// What the page shows, with the samples after `after_ms` (milliseconds since 1970). Not known before the
    /// first sample was taken.
    fn page_facts(&self, after_ms: i64) -> Option<String> {
        let status = self.chronicle.status()?;
        let after_us = after_ms.saturating_mul(1000).saturating_add(999);
        let after_us = if after_ms > 0 { after_us } else { 0 };
        let samples = status.regions.iter().map(|row| self.chronicle.samples(&row.name, after_us)).collect();
        let own = self.journal.newest(EVENTS_MAX).into_iter().map(Event::from).collect();
        let mut journals = self.chronicle.others_events();
        journals.push((self.own.name.to_string(), own));
        let accepted = self.voter.view().accepted;
        Some(page::json(Facts {
            at_us: wall_us(),
            asked: self.own.name.as_str(),
            status: &status,
            mark: mark(&accepted),
            record: &accepted.record,
            samples,
            journals,
            max_lag: verdict::MAX_LAG,
        }))
    }

    /// Asks all regions how far they are and what happened there, each second, for ever.
    pub(super) async fn sample(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(SAMPLE);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        loop {
            ticks.tick().await;
            let mut asking = JoinSet::new();
            for region in self.config.regions.iter().filter(|region| region.name != self.own.name) {
                let (this, name) = (self.clone(), region.name.clone());
                asking.spawn(async move { this.ask_neighbour(&name).await });
            }
            let own = tokio::time::timeout(ASK, self.view()).await;
            let mut views: Vec<RegionView> = own.into_iter().collect();
            let mut events = Vec::new();
            while let Some(asked) = asking.join_next().await {
                let Ok(Some((view, newer))) = asked else { continue };
                if let Some(own) = &view.own {
                    events.push((own.name.clone(), newer));
                }
                views.push(view);
            }
            let mut status = merge(&self.config, &self.voter.accepted().primary, &views, Vec::new());
            add_notes_of_regions(&mut status);
            self.chronicle.take(status, &views, events);
        }
    }

    /// How far region `name` is, and what happened there since it was asked last.
    async fn ask_neighbour(&self, name: &RegionName) -> Option<(RegionView, Vec<Event>)> {
        let place = self.config.region(name)?.place();
        let asked = control_request::Body::RegionStatus(RegionStatusRequest {});
        let Ok(control_response::Body::RegionStatus(view)) =
            self.chronicle.peers.ask(&place, asked, ASK).await
        else {
            return None;
        };
        let after = self.chronicle.last_event(name.as_str());
        let asked = control_request::Body::Events(EventsRequest { since_us: 0, after });
        let events = match self.chronicle.peers.ask(&place, asked, ASK).await {
            Ok(control_response::Body::Events(events)) => events.events,
            _ => Vec::new(),
        };
        Some((view, events))
    }

    /// The states of this region's copies.
    pub(super) fn copies(&self) -> Vec<CopyState> {
        let copies = self.volume.status().copies;
        let state = |copy: &volume::CopyStatus| CopyState {
            name: copy.id.to_string(),
            state: copy_state(&copy.state).0.into(),
        };
        copies.iter().map(state).collect()
    }
}

fn fingerprint(bytes: &[u8]) -> u32 {
    // Only to see that it is another: a collision is a change that is not told.
    bytes.iter().fold(0x811C_9DC5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changed_in_the_file_is_told_and_no_settings_value_is() {
        let parse = |extra: &str| {
            let text = format!(
                "cluster = \"t\"\n{extra}\n[region.a]\nrole = \"primary\"\nlisten = \"127.0.0.1:1\"\npostgres = \"127.0.0.1:2\"\n\
                 [region.b]\nrole = \"secondary\"\nlisten = \"127.0.0.1:3\"\npostgres = \"127.0.0.1:4\"\n"
            );
            tell(&Config::parse(&text).unwrap())
        };
        let (plain, leased) = (parse(""), parse("lease = \"8s\""));
        assert!(changes(&plain, &plain).is_empty());
        assert_eq!(changes(&plain, &leased), ["lease was 5s, and is 8s"]);
        let secret = parse("[postgresql]\nsettings = { \"my.secret\" = \"hunter2\" }");
        assert!(secret.contains("my.secret") && !secret.contains("hunter2"));
        assert_eq!(changes(&secret, &plain), ["postgresql setting my.secret is gone"]);
    }
}
