//! What could hinder a promotion, judged before anything is touched: the target and the old primary are
//! looked at, what can be mended is, and what cannot refuses the promotion before the record says anything of
//! it. The same facts, looked at all the time, are notes in `status`.
//!
//! Nothing here asks anybody: [`Facts`] come in, [`Finding`]s go out.

use std::collections::BTreeMap;
use std::time::Duration;

use coordination::Mode;
use postgres::instance::{Need, Stopped};
use postgres::major::{LogicalSlots, Major};
use postgres::slots::Carried;
use postgres::vitals::{Decodes, OfRole, Slot, Vitals};
use proto::RegionName;
use proto::messages::finding::Outcome;
use proto::messages::{self as m};

use crate::units::show_bytes;

/// Less room than this on a disk refuses a switchover: PostgreSQL ends when it cannot write a segment of
/// redo.
const ROOM_NEEDED_BYTES: u64 = 96 << 20;

/// Less room than this is told.
const ROOM_TOLD_BYTES: u64 = 1 << 30;

/// An archive queue whose oldest segment waits longer than this does not move: a stopping writer would wait
/// for it.
const ARCHIVE_SECONDS: u64 = 10;

/// A longer archive queue keeps a stopping writer waiting too long.
const ARCHIVE_SEGMENTS: u64 = 64;

/// A standby says every second how far it is. When it has not for this long, its walreceiver does nothing.
const REPORTS: Duration = Duration::from_secs(5);

/// A slot that holds back less redo than this is no news.
const HELD_TOLD_BYTES: u64 = 1 << 30;

/// The end of a note on settings that are mended by themselves.
pub const RESTARTS: &str = "; the standby is started again with that";

/// A disk that a PostgreSQL writes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// A directory on it.
    pub place: String,
    /// The room left, bytes.
    pub free_bytes: u64,
    /// How large it is, bytes.
    pub total_bytes: u64,
}

impl Disk {
    fn words(&self) -> String {
        format!("{} left on the disk of {}", show_bytes(self.free_bytes), self.place)
    }
}

/// What is known of a region's PostgreSQL.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// How it is; none when it does not say so, and [`Facts::silent`] has why.
    pub vitals: Option<Vitals>,
    /// Why it does not answer; empty when it does.
    pub silent: String,
    /// Its processes that are stopped by a signal.
    pub stopped: Vec<Stopped>,
    /// What a standby needs by its control file.
    pub needs: Vec<Need>,
    /// The disks that it writes to.
    pub disks: Vec<Disk>,
    /// The settings that must be ours, and that `ALTER SYSTEM` has set.
    pub overrides: Vec<String>,
    /// How long ago a standby said last how far it is; none when it does not run yet, or is none.
    pub reported: Option<Duration>,
    /// Commits are to wait for the region's reader.
    pub commits_wait: bool,
    /// Of which major version it is.
    pub major: Major,
    /// What a standby has of the writer's logical slots, by name.
    pub carried: BTreeMap<String, Carried>,
}

/// Something that concerns a promotion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What it is.
    pub kind: Kind,
    /// Where.
    pub region: RegionName,
    /// What is so, in words.
    pub fact: String,
    /// What is done about it, or is to be done.
    pub action: String,
    /// What comes of it.
    pub outcome: Outcome,
}

/// What a finding is of. The names are a contract: see `docs/PROMOTION.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// PostgreSQL does not answer.
    Silent,
    /// Processes of PostgreSQL are stopped by a signal.
    Frozen,
    /// The standby does not say how far it is.
    Receiver,
    /// The standby has a setting lower than the redo asks for.
    Settings,
    /// Replay is paused.
    Paused,
    /// Replay waits for a session.
    Held,
    /// A disk has little room left.
    Room,
    /// Segments wait to be archived.
    Archive,
    /// Sessions are read-only by configuration.
    ReadOnly,
    /// Clients have nearly all connections.
    Connections,
    /// A setting of a role, a database or the server takes away what is promised of commits.
    Durability,
    /// A replication slot that is not the product's.
    Slot,
    /// A tablespace.
    Tablespace,
    /// The primary's own word: the region is not near, or cannot be seen.
    Primary,
}

impl Kind {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Kind::Silent => "postgresql_silent",
            Kind::Frozen => "process_frozen",
            Kind::Receiver => "receiver_silent",
            Kind::Settings => "settings_low",
            Kind::Paused => "replay_paused",
            Kind::Held => "replay_held",
            Kind::Room => "disk_room",
            Kind::Archive => "archive_queue",
            Kind::ReadOnly => "read_only",
            Kind::Connections => "connections",
            Kind::Durability => "durability",
            Kind::Slot => "slot",
            Kind::Tablespace => "tablespace",
            Kind::Primary => "primary",
        }
    }
}

impl Finding {
    /// As a message.
    #[must_use]
    pub fn told(&self) -> m::Finding {
        m::Finding {
            kind: self.kind.name().into(),
            region: self.region.to_string(),
            fact: self.fact.clone(),
            action: self.action.clone(),
            outcome: self.outcome.into(),
        }
    }
}

/// Collects what is found in one region.
struct Findings<'a> {
    region: &'a RegionName,
    found: Vec<Finding>,
}

impl Findings<'_> {
    fn add(&mut self, kind: Kind, outcome: Outcome, fact: impl Into<String>, action: impl Into<String>) {
        let (region, fact, action) = (self.region.clone(), fact.into(), action.into());
        self.found.push(Finding { kind, region, fact, action, outcome });
    }

    /// What is looked at in both regions.
    fn common(&mut self, facts: &Facts, refuses: bool) {
        let grave = if refuses { Outcome::Refused } else { Outcome::Told };
        if !facts.stopped.is_empty() {
            let titles: Vec<String> =
                facts.stopped.iter().map(|stopped| format!("{} ({})", stopped.title, stopped.pid)).collect();
            let fact = format!("stopped by a signal: {}", titles.join(", "));
            self.add(
                Kind::Frozen,
                Outcome::Refused,
                fact,
                "let them go on (SIGCONT), or end PostgreSQL there",
            );
        }
        if !facts.silent.is_empty() {
            let action = "see postgresql.log there, and what its disks do";
            self.add(
                Kind::Silent,
                Outcome::Refused,
                format!("PostgreSQL does not answer: {}", facts.silent),
                action,
            );
        }
        if !facts.overrides.is_empty() {
            let fact = format!(
                "ALTER SYSTEM has set {}, which must be this service's own",
                facts.overrides.join(", ")
            );
            self.add(Kind::Settings, Outcome::Told, fact, "it is taken out when PostgreSQL starts next");
        }
        for disk in &facts.disks {
            match disk.free_bytes {
                free if free < ROOM_NEEDED_BYTES => {
                    self.add(Kind::Room, grave, disk.words(), "make room first");
                }
                free if free < ROOM_TOLD_BYTES => {
                    self.add(Kind::Room, Outcome::Told, disk.words(), "make room soon");
                }
                _ => {}
            }
        }
    }

    fn standby(&mut self, vitals: &Vitals, facts: &Facts) {
        let low = low_settings(vitals, &facts.needs);
        let Some(replay) = &vitals.replay else { return };
        if !low.is_empty() {
            let action = "the standby is started again with what is asked for";
            self.add(Kind::Settings, Outcome::Mended, low.join("; "), action);
        } else if replay.paused {
            let fact = format!("replay is paused at {}", replay.applied_lsn);
            self.add(Kind::Paused, Outcome::Mended, fact, "replay is resumed");
        }
        if replay.held {
            self.add(Kind::Held, Outcome::Mended, held_by(vitals), "these sessions are ended");
        }
        self.slots_of_the_standby(vitals, facts);
        if facts.reported.is_some_and(|ago| ago > REPORTS) && low.is_empty() {
            let fact = format!(
                "the standby's walreceiver has not said for {} s how far it is",
                facts.reported.unwrap_or_default().as_secs()
            );
            self.add(
                Kind::Receiver,
                Outcome::Refused,
                fact,
                "see postgresql.log there; a frozen process is to go on",
            );
        }
    }

    fn slots_of_the_standby(&mut self, vitals: &Vitals, facts: &Facts) {
        for (slot, decodes) in logical(vitals) {
            let fact =
                format!("logical slot {} is there, confirmed up to {}", slot.name, decodes.confirmed_lsn);
            let (more, action) = match facts.carried.get(&slot.name) {
                _ if slot.lost => (
                    ", and has lost what it needs",
                    "one that the primary has too is made anew by itself; until then its consumer would begin anew. Drop any other",
                ),
                Some(Carried::Ahead) => (
                    ", which is after what its consumer has confirmed",
                    "wait until the consumer has confirmed more: led before, this region drops it, and the consumer begins anew",
                ),
                Some(Carried::Another) => (
                    ", and is of another plugin or database than the primary's",
                    "drop it here: then the primary's is carried",
                ),
                _ => ("", "its consumer goes on from there once this region leads"),
            };
            self.add(Kind::Slot, Outcome::Told, fact + more, action);
        }
        let missing = |carried: &Carried| matches!(carried, Carried::Missing | Carried::Lost);
        let there = |name: &String| vitals.slots.iter().any(|slot| slot.name == *name);
        for (name, _) in facts.carried.iter().filter(|(name, carried)| missing(carried) && !there(name)) {
            let fact = format!("logical slot {name} of the primary is not there yet");
            let action = "it is being made; led before, this region has none, and its consumer begins anew";
            self.add(Kind::Slot, Outcome::Told, fact, action);
        }
    }

    fn writer(&mut self, vitals: &Vitals, facts: &Facts) {
        if let Some(archive) = &vitals.archive
            && archive.waiting > 0
        {
            let stuck = archive.failing
                || archive.oldest_seconds >= ARCHIVE_SECONDS
                || archive.waiting >= ARCHIVE_SEGMENTS;
            let fact = format!(
                "{} segments wait to be archived, the oldest for {} s{}; a writer that stops waits for them",
                archive.waiting,
                archive.oldest_seconds,
                if archive.failing { ", and the last attempt failed" } else { "" }
            );
            let action = "mend archive_command, or let the queue become empty";
            self.add(Kind::Archive, if stuck { Outcome::Refused } else { Outcome::Told }, fact, action);
        }
        for (slot, decodes) in logical(vitals) {
            let fact = format!(
                "logical slot {} ({} of database {}, {}): its consumer has confirmed redo up to {}",
                slot.name,
                decodes.plugin,
                decodes.database,
                if slot.active { "read now" } else { "nobody reads from it" },
                decodes.confirmed_lsn
            );
            let action = match facts.major.logical_slots() {
                LogicalSlots::Lost => {
                    "it is not carried to the new primary: its consumer begins anew there: a new slot, and a new copy of the data. To have it go on, stop the writing, let it \
                     confirm everything, and give it a new slot there before anybody writes"
                }
                LogicalSlots::OfTheStandby => {
                    "the other regions carry it: its consumer goes on with the one of the region that shall lead, where that says so \
                     (docs/PROMOTION.md, Logical slots)"
                }
            };
            self.add(Kind::Slot, Outcome::Told, fact, action);
        }
    }

    fn both(&mut self, vitals: &Vitals, facts: &Facts, writes: bool) {
        if vitals.read_only {
            let fact =
                "default_transaction_read_only is on: sessions take no writes unless they say otherwise";
            self.add(Kind::ReadOnly, Outcome::Told, fact, "take it out before clients are to write there");
        }
        let connections = vitals.setting("max_connections").parse().unwrap_or(u64::MAX);
        if vitals.clients >= connections.saturating_sub(3) {
            let fact = format!("clients have {} of {connections} connections", vitals.clients);
            self.add(
                Kind::Connections,
                Outcome::Told,
                fact,
                "Replicator's own sessions have connections of their own",
            );
        }
        for (fact, action) in undone(vitals, facts.commits_wait && writes) {
            self.add(Kind::Durability, Outcome::Told, fact, action);
        }
        for (name, place) in &vitals.tablespaces {
            let fact = format!("tablespace {name} lies in {place}");
            let action =
                "move its tables to pg_default: a region that needs a seed or a rewind gets none with it";
            self.add(Kind::Tablespace, Outcome::Told, fact, action);
        }
    }
}

/// The logical slots, with what they decode.
fn logical(vitals: &Vitals) -> impl Iterator<Item = (&Slot, &Decodes)> {
    vitals.slots.iter().filter_map(|slot| Some((slot, slot.decodes.as_ref()?)))
}

/// What is found in `region`, which shall lead.
#[must_use]
pub fn of_target(region: &RegionName, facts: &Facts, mode: Mode) -> Vec<Finding> {
    let mut findings = Findings { region, found: Vec::new() };
    findings.common(facts, mode == Mode::Switchover);
    if let Some(vitals) = &facts.vitals {
        findings.standby(vitals, facts);
        findings.both(vitals, facts, false);
    }
    findings.found
}

/// What is found in `region`, which leads and shall hand over.
#[must_use]
pub fn of_primary(region: &RegionName, facts: &Facts) -> Vec<Finding> {
    let mut findings = Findings { region, found: Vec::new() };
    // Its disk may well be why another shall lead.
    findings.common(facts, false);
    if let Some(vitals) = &facts.vitals {
        findings.writer(vitals, facts);
        findings.both(vitals, facts, true);
    }
    findings.found
}

/// What an operator should know of a region's PostgreSQL at any time, in words, the gravest first.
#[must_use]
pub fn notes(vitals: &Vitals, needs: &[Need], commits_wait: bool) -> Vec<String> {
    let mut notes = Vec::new();
    let low = low_settings(vitals, needs);
    match &vitals.replay {
        Some(_) if !low.is_empty() => {
            notes.push(format!("{}{RESTARTS}", low.join("; ")));
        }
        Some(replay) if replay.paused => {
            notes.push(format!(
                "replay is paused at {}; SELECT pg_wal_replay_resume() goes on",
                replay.applied_lsn
            ));
        }
        Some(replay) if replay.held => notes.push(held_by(vitals)),
        _ => {}
    }
    let undone = undone(vitals, commits_wait && vitals.replay.is_none());
    notes.extend(undone.into_iter().map(|(fact, action)| format!("{fact}; {action}")));
    if let Some(archive) = &vitals.archive
        && (archive.failing || archive.oldest_seconds >= 60)
        && archive.waiting > 0
    {
        notes.push(format!(
            "{} segments wait to be archived, the oldest for {} s; mend archive_command",
            archive.waiting, archive.oldest_seconds
        ));
    }
    for slot in vitals.slots.iter().filter(|slot| slot.name != postgres::sockets::READER) {
        let news = slot.lost || !slot.active || slot.held_bytes >= HELD_TOLD_BYTES;
        if news {
            notes.push(format!(
                "slot {} ({}, {}) holds back {} of redo; drop it if nobody needs it",
                slot.name,
                slot.kind,
                if slot.active { "active" } else { "nobody reads from it" },
                show_bytes(slot.held_bytes)
            ));
        }
    }
    for (name, place) in &vitals.tablespaces {
        notes.push(format!(
            "tablespace {name} in {place} is not carried by seeds and rewinds; use pg_default"
        ));
    }
    notes
}

/// Which of a region's disks have little room, in words: less than a twentieth, or 1 GiB of a large one; and
/// never less than what a switchover is refused for.
#[must_use]
pub fn low_disks(disks: &[Disk]) -> Vec<String> {
    let needed = |disk: &Disk| (disk.total_bytes / 20).clamp(ROOM_NEEDED_BYTES, ROOM_TOLD_BYTES);
    let low = disks.iter().filter(|disk| disk.free_bytes < needed(disk));
    low.map(|disk| format!("{}; make room: without any commits wait, and PostgreSQL ends", disk.words()))
        .collect()
}

/// What an operator should know of settings that `ALTER SYSTEM` has set, and that must be ours.
#[must_use]
pub fn overridden(overrides: &[String]) -> Option<String> {
    let list = overrides.join(", ");
    let note = "which must be this service's own, and is taken out when PostgreSQL starts next; ALTER SYSTEM RESET takes it \
                back now";
    (!overrides.is_empty()).then(|| format!("ALTER SYSTEM has set {list}, {note}"))
}

/// The settings of a standby that are lower than it needs, each in words.
#[must_use]
pub fn low_settings(vitals: &Vitals, needs: &[Need]) -> Vec<String> {
    let low = needs.iter().filter_map(|Need { setting, least }| {
        let value: u64 = vitals.setting(setting).parse().ok()?;
        (value < *least).then(|| format!("{setting} is {value}, and the writer's redo asks for {least}"))
    });
    low.collect()
}

fn held_by(vitals: &Vitals) -> String {
    let holders = vitals.replay.as_ref().map(|replay| replay.holders.as_slice()).unwrap_or_default();
    let Some(oldest) = holders.first() else { return "replay waits for a session".into() };
    let more = if holders.len() > 1 { format!(", and {} more", holders.len() - 1) } else { String::new() };
    format!(
        "replay waits for a session: process {} of {}, for {} s in a transaction: {}{more}",
        oldest.pid, oldest.role, oldest.seconds, oldest.statement
    )
}

/// What takes away what is promised of commits: the fact, and what to do. On a writer whose `commits_wait`
/// they must.
fn undone(vitals: &Vitals, commits_wait: bool) -> Vec<(String, String)> {
    let mut undone = Vec::new();
    let reader = format!("\"{}\"", postgres::sockets::READER);
    let names = vitals.setting("synchronous_standby_names");
    if commits_wait && !vitals.settings.is_empty() && names != reader {
        undone.push((
            format!("commits do not wait: synchronous_standby_names is '{names}'"),
            "ALTER SYSTEM RESET synchronous_standby_names, and reload".to_owned(),
        ));
    }
    for setting in ["fsync", "full_page_writes"].into_iter().filter(|name| vitals.setting(name) == "off") {
        undone.push((
            format!("a crash damages the data: {setting} is off"),
            format!("ALTER SYSTEM RESET {setting}, and reload"),
        ));
    }
    let weak = |value: &str| matches!(value.to_lowercase().as_str(), "off" | "local" | "false" | "no" | "0");
    let server = vitals.settings.get("synchronous_commit");
    if let Some((value, source)) = server
        && weak(value)
        && !matches!(source.as_str(), "user" | "database" | "database user")
        && commits_wait
    {
        undone.push((
            format!("commits do not wait: synchronous_commit is {value}"),
            "ALTER SYSTEM RESET synchronous_commit, and reload".to_owned(),
        ));
    }
    // A standby has what the writer has, and nobody commits there.
    let of_roles = vitals.of_roles.iter().filter(|_| vitals.replay.is_none());
    let of_roles = of_roles.filter(|set| match set.name.as_str() {
        "synchronous_commit" => weak(&set.value),
        "default_transaction_read_only" => !weak(&set.value),
        _ => false,
    });
    for set in of_roles {
        let what = if set.name == "synchronous_commit" { "commits do not wait" } else { "no writes" };
        let OfRole { name, value, .. } = set;
        undone.push((
            format!("{what} for {}: {name} is {value}", set.whose()),
            format!("ALTER … RESET {name}, if that is not meant"),
        ));
    }
    undone
}

#[cfg(test)]
mod tests {
    use super::*;
    use postgres::vitals::{Archive, Holder, Replay};
    use proto::Lsn;

    fn region() -> RegionName {
        "b".parse().unwrap()
    }

    fn vitals(settings: &[(&str, &str)]) -> Vitals {
        let setting = |(name, value): &(&str, &str)| ((*name).into(), ((*value).into(), "default".into()));
        Vitals { settings: settings.iter().map(setting).collect(), ..Vitals::default() }
    }

    fn outcomes(findings: &[Finding]) -> Vec<(Kind, Outcome)> {
        findings.iter().map(|finding| (finding.kind, finding.outcome)).collect()
    }

    fn of_standby(vitals: Vitals, replay: Replay, needs: Vec<Need>) -> Facts {
        Facts { vitals: Some(Vitals { replay: Some(replay), ..vitals }), needs, ..Facts::default() }
    }

    #[test]
    fn a_paused_replay_is_resumed_unless_a_setting_paused_it() {
        let replay = Replay { paused: true, ..Replay::default() };
        let need = |least| vec![Need { setting: "max_connections", least }];
        let of = |least| {
            let facts = of_standby(vitals(&[("max_connections", "100")]), replay.clone(), need(least));
            outcomes(&of_target(&region(), &facts, Mode::Failover))
        };
        assert_eq!(of(100), [(Kind::Paused, Outcome::Mended)]);
        assert_eq!(of(150), [(Kind::Settings, Outcome::Mended)]);
    }

    #[test]
    fn sessions_that_replay_waits_for_are_named() {
        let holders =
            vec![Holder { pid: 7, seconds: 60, role: "app".into(), statement: "SELECT 1".into() }; 2];
        let facts = of_standby(vitals(&[]), Replay { held: true, holders, ..Replay::default() }, vec![]);
        let found = of_target(&region(), &facts, Mode::Switchover);
        assert_eq!(outcomes(&found), [(Kind::Held, Outcome::Mended)]);
        assert!(found[0].fact.contains("process 7 of app, for 60 s") && found[0].fact.contains("1 more"));
    }

    #[test]
    fn what_does_not_answer_refuses_whatever_is_ordered() {
        let stopped = vec![Stopped { pid: 9, title: "postgres: startup".into() }];
        let facts = Facts { stopped, silent: "no answer".into(), ..Facts::default() };
        let refused = [(Kind::Frozen, Outcome::Refused), (Kind::Silent, Outcome::Refused)];
        assert_eq!(outcomes(&of_target(&region(), &facts, Mode::Failover)), refused);
        assert_eq!(outcomes(&of_primary(&region(), &facts)), refused);
        let reported = Some(Duration::from_secs(9));
        let facts = Facts { reported, ..of_standby(vitals(&[]), Replay::default(), vec![]) };
        let found = of_target(&region(), &facts, Mode::Switchover);
        assert_eq!(outcomes(&found), [(Kind::Receiver, Outcome::Refused)]);
    }

    #[test]
    fn an_archive_queue_that_does_not_move_refuses_and_one_that_moves_is_told() {
        let of = |waiting, oldest_seconds, failing| {
            let archive = Some(Archive { waiting, oldest_seconds, failing });
            let facts = Facts { vitals: Some(Vitals { archive, ..vitals(&[]) }), ..Facts::default() };
            outcomes(&of_primary(&region(), &facts))
        };
        assert_eq!(of(0, 0, true), []);
        assert_eq!(of(1, 1, false), [(Kind::Archive, Outcome::Told)]);
        for stuck in [of(1, 1, true), of(1, 20, false), of(100, 1, false)] {
            assert_eq!(stuck, [(Kind::Archive, Outcome::Refused)]);
        }
    }

    #[test]
    fn a_disk_is_low_by_its_size() {
        let low = |free_bytes, total_bytes| {
            !low_disks(&[Disk { place: "/data".into(), free_bytes, total_bytes }]).is_empty()
        };
        let (mib, gib) = (1 << 20, 1 << 30);
        assert_eq!((low(95 * mib, gib), low(97 * mib, gib)), (true, false), "a small one");
        assert_eq!((low(400 * mib, 10 * gib), low(600 * mib, 10 * gib)), (true, false), "a twentieth");
        assert_eq!((low(gib - 1, 500 * gib), low(gib, 500 * gib)), (true, false), "a large one");
    }

    #[test]
    fn a_full_disk_refuses_a_switchover_and_is_told_in_a_failover() {
        let disks = vec![Disk { place: "/data".into(), free_bytes: 1 << 20, total_bytes: 1 << 30 }];
        let facts = Facts { disks, ..Facts::default() };
        assert_eq!(
            outcomes(&of_target(&region(), &facts, Mode::Switchover)),
            [(Kind::Room, Outcome::Refused)]
        );
        assert_eq!(outcomes(&of_target(&region(), &facts, Mode::Failover)), [(Kind::Room, Outcome::Told)]);
        assert_eq!(outcomes(&of_primary(&region(), &facts)), [(Kind::Room, Outcome::Told)]);
    }

    #[test]
    fn what_undoes_durability_is_a_note() {
        let good =
            [("synchronous_standby_names", "\"replicator\""), ("synchronous_commit", "on"), ("fsync", "on")];
        assert_eq!(notes(&vitals(&good), &[], true), Vec::<String>::new());
        let bad = notes(&vitals(&[("synchronous_standby_names", ""), ("fsync", "off")]), &[], true);
        assert!(bad[0].starts_with("commits do not wait") && bad[1].contains("fsync is off"), "{bad:?}");
        let of_roles = [
            ("app", "synchronous_commit", "off"),
            ("app", "work_mem", "1"),
            ("b", "synchronous_commit", "on"),
        ];
        let of_roles = of_roles.map(|(role, name, value)| OfRole {
            role: role.into(),
            name: name.into(),
            value: value.into(),
            ..OfRole::default()
        });
        let notes = notes(&Vitals { of_roles: of_roles.to_vec(), ..vitals(&good) }, &[], true);
        assert_eq!(notes.len(), 1);
        assert!(notes[0].contains("role app: synchronous_commit is off"), "{notes:?}");
        let standby =
            Vitals { replay: Some(Replay::default()), of_roles: of_roles.to_vec(), ..vitals(&good) };
        assert_eq!(super::notes(&standby, &[], true), Vec::<String>::new());
    }

    #[test]
    fn slots_of_others_are_named_with_what_they_hold_back() {
        let slot = |name: &str, active, held_bytes| Slot {
            name: name.into(),
            kind: "physical".into(),
            active,
            lost: false,
            held_bytes,
            decodes: None,
        };
        let slots = vec![slot("replicator", false, 9), slot("backup", false, 5 << 20), slot("fine", true, 5)];
        let notes = notes(&Vitals { slots, ..vitals(&[]) }, &[], false);
        assert_eq!(notes.len(), 1);
        assert!(notes[0].contains("slot backup") && notes[0].contains("5.0 MiB"), "{notes:?}");
    }

    #[test]
    fn logical_slots_are_told_with_their_consumers_and_what_becomes_of_them() {
        let decodes =
            Some(Decodes { plugin: "pgoutput".into(), database: "shop".into(), confirmed_lsn: Lsn(0x500) });
        let slot =
            Slot { name: "cdc".into(), kind: "logical".into(), active: true, decodes, ..Slot::default() };
        let with = |lost, major, replay| {
            let slots = vec![Slot { lost, ..slot.clone() }];
            let vitals = Some(Vitals { slots, replay, ..vitals(&[]) });
            Facts { vitals, major: Major(major), ..Facts::default() }
        };
        for (major, wanted) in
            [(15, "begins anew there: a new slot"), (16, "goes on with"), (17, "goes on with")]
        {
            let found = of_primary(&region(), &with(false, major, None));
            assert_eq!(outcomes(&found), [(Kind::Slot, Outcome::Told)]);
            let Finding { fact, action, .. } = &found[0];
            assert!(fact.contains("slot cdc (pgoutput of database shop, read now)"), "{fact}");
            assert!(
                fact.ends_with("confirmed redo up to 0/500") && action.contains(wanted),
                "{fact}; {action}"
            );
        }
        for (lost, carried, wanted) in [
            (false, None, "goes on from there"),
            (false, Some(Carried::Ready), "goes on from there"),
            (false, Some(Carried::Ahead), "drops it"),
            (false, Some(Carried::Another), "drop it here"),
            (true, Some(Carried::Lost), "made anew"),
        ] {
            let carried = carried.map(|carried| ("cdc".to_owned(), carried)).into_iter().collect();
            let facts = Facts { carried, ..with(lost, 16, Some(Replay::default())) };
            let found = of_target(&region(), &facts, Mode::Failover);
            assert!(found[0].fact.contains("0/500") && found[0].action.contains(wanted), "{found:?}");
            assert_eq!(found.len(), 1);
        }
        let carried = [("other".to_owned(), Carried::Missing)].into();
        let facts = Facts { carried, ..with(false, 16, Some(Replay::default())) };
        let found = of_target(&region(), &facts, Mode::Failover);
        assert!(
            found.len() == 2 && found[1].fact.contains("other of the primary is not there yet"),
            "{found:?}"
        );
    }

    #[test]
    fn a_finding_is_told_whole() {
        let facts = Facts { silent: "no".into(), ..Facts::default() };
        let told = of_target(&region(), &facts, Mode::Failover)[0].told();
        assert_eq!((told.kind.as_str(), told.region.as_str()), ("postgresql_silent", "b"));
        assert_eq!(Outcome::try_from(told.outcome), Ok(Outcome::Refused));
    }
}
