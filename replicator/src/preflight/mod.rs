//! What could hinder a promotion, judged before anything is touched: the target and the old primary are
//! looked at, what can be mended is, and what cannot refuses the promotion before the record says anything of
//! it. The same facts, looked at all the time, are notes in `status`.
//!
//! Nothing here asks anybody: [`Facts`] come in, [`Finding`]s go out.

use std::collections::BTreeMap;
use std::time::Duration;

use coordination::Mode;
use postgres::instance::{Need, Stopped};
use postgres::inventory::OfDatabase;
use postgres::major::{LogicalSlots, Major};
use postgres::slots::Carried;
use postgres::vitals::{Decodes, OfRole, Slot, Vitals};
use proto::RegionName;
use proto::limits::MAX_TABLESPACES;
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
    /// Why it could not start again with what its files set by now.
    pub cannot_start: Option<String>,
    /// What could not be written by whoever is to write it, in words.
    pub not_writable: Option<String>,
    /// Tablespaces whose files are not there, each with its place.
    pub lost_tablespaces: Vec<String>,
    /// How long ago a standby said last how far it is; none when it does not run yet, or is none.
    pub reported: Option<Duration>,
    /// Why a standby is not given the next redo; empty while it is.
    pub waits: String,
    /// What a standby's databases need of its machine, and lose by a promotion.
    pub databases: Vec<OfDatabase>,
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
    /// It could not start again.
    Start,
    /// Files that a promotion writes cannot be written.
    Files,
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
    /// A library of functions is not on the machine.
    Library,
    /// A collation orders otherwise on the machine than where indexes were made.
    Collation,
    /// Unlogged tables.
    Unlogged,
    /// The files of two daemons differ in what must be the same everywhere.
    Configuration,
    /// A PgBouncer that is not told to pause.
    Pooler,
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
            Kind::Start => "start_fails",
            Kind::Files => "not_writable",
            Kind::Room => "disk_room",
            Kind::Archive => "archive_queue",
            Kind::ReadOnly => "read_only",
            Kind::Connections => "connections",
            Kind::Durability => "durability",
            Kind::Slot => "slot",
            Kind::Tablespace => "tablespace",
            Kind::Library => "library",
            Kind::Collation => "collation",
            Kind::Unlogged => "unlogged",
            Kind::Configuration => "configuration",
            Kind::Pooler => "pgbouncer",
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

    /// What is looked at in both regions. `grave` is what comes of a disk without room.
    fn common(&mut self, facts: &Facts, mode: Mode, grave: Outcome) {
        let switches = mode == Mode::Switchover;
        // A failover stops nothing here, and may be all that is left.
        let unless_lost = if switches { Outcome::Refused } else { Outcome::Told };
        // One that applies redo can be promoted, also where nobody can log in: that may be by a lock that a
        // transaction of the lost primary holds on a catalog, and goes with it.
        let applies = facts.stopped.is_empty() && facts.reported.is_some_and(|ago| ago <= REPORTS);
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
            let (outcome, action) = match !switches && applies {
                true => (
                    Outcome::Told,
                    "it applies redo all the same, and is promoted: a lock of the old primary's goes with that. What a standby could have \
                     said of itself was not looked at",
                ),
                false => (Outcome::Refused, "see postgresql.log there, and what its disks do"),
            };
            self.add(Kind::Silent, outcome, format!("PostgreSQL does not answer: {}", facts.silent), action);
        }
        if !facts.overrides.is_empty() {
            let fact = format!(
                "ALTER SYSTEM has set {}, which must be this service's own",
                facts.overrides.join(", ")
            );
            self.add(Kind::Settings, Outcome::Told, fact, "it is taken out when PostgreSQL starts next");
        }
        if let Some(why) = &facts.cannot_start {
            self.add(Kind::Start, unless_lost, start_fails(why), TAKE_BACK);
        }
        if let Some(why) = &facts.not_writable {
            let is_full = facts.disks.iter().any(|disk| disk.free_bytes < ROOM_NEEDED_BYTES);
            let action = match is_full {
                true => "make room first; --mode failover does not ask the old primary",
                false => "give it back to its account, and see what its file system allows",
            };
            self.add(Kind::Files, Outcome::Refused, why.clone(), action);
        }
        if !facts.lost_tablespaces.is_empty() {
            let fact = lost_tablespaces(&facts.lost_tablespaces);
            self.add(Kind::Tablespace, unless_lost, fact, BRING_BACK);
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
        if !facts.waits.is_empty() {
            let action = "until then it applies nothing more, and cannot lead";
            self.add(Kind::Tablespace, Outcome::Refused, facts.waits.clone(), action);
        }
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

    /// What the databases of the region that shall lead need of its machine.
    fn databases(&mut self, databases: &[OfDatabase], refuses: bool) {
        for of in databases {
            for (kind, names) in [
                (Kind::Library, &of.libraries),
                (Kind::Collation, &of.collations),
                (Kind::Unlogged, &of.unlogged),
            ] {
                let Some((fact, action)) = needed(kind, &of.name, names) else { continue };
                let grave = refuses && kind == Kind::Library;
                self.add(kind, if grave { Outcome::Refused } else { Outcome::Told }, fact, action);
            }
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
        for Undone { fact, action, .. } in undone(vitals, facts.commits_wait && writes) {
            self.add(Kind::Durability, Outcome::Told, fact, action);
        }
        if let Some(fact) = too_many_tablespaces(vitals) {
            self.add(
                Kind::Tablespace,
                Outcome::Told,
                fact,
                "drop some: a region that needs either gets none",
            );
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
    findings.common(facts, mode, if mode == Mode::Switchover { Outcome::Refused } else { Outcome::Told });
    if let Some(vitals) = &facts.vitals {
        findings.standby(vitals, facts);
        findings.both(vitals, facts, false);
    }
    findings.databases(&facts.databases, mode == Mode::Switchover);
    findings.found
}

/// What `names` of a database are, and what to do; none where there are none.
fn needed(kind: Kind, database: &str, names: &[String]) -> Option<(String, &'static str)> {
    const TOLD_MAX: usize = 5;
    if names.is_empty() {
        return None;
    }
    let more = names.len().saturating_sub(TOLD_MAX);
    let more = if more > 0 { format!(", and {more} more") } else { String::new() };
    let list = names.iter().take(TOLD_MAX).cloned().collect::<Vec<_>>().join(", ") + &more;
    Some(match kind {
        Kind::Library => (
            format!("database {database} has functions of libraries that this machine does not have: {list}"),
            "install them here: until then what uses them fails once this region leads",
        ),
        Kind::Collation => (
            format!(
                "collations of indexes of database {database} order otherwise on this machine than where they were made: {list}"
            ),
            "give every region the same libc and ICU; REINDEX after a promotion, or rows are not found",
        ),
        _ => (
            format!("database {database} has unlogged tables: {list}"),
            "they are empty after a promotion: their rows are in the region that wrote them, and nowhere else",
        ),
    })
}

/// What an operator should know at any time of what a standby's databases need of its machine, in words.
#[must_use]
pub fn machine_lacks(databases: &[OfDatabase]) -> Vec<String> {
    let of = |of: &OfDatabase| {
        [needed(Kind::Library, &of.name, &of.libraries), needed(Kind::Collation, &of.name, &of.collations)]
    };
    let found = databases.iter().flat_map(of).flatten();
    found.map(|(fact, action)| format!("{fact}; {action}")).collect()
}

/// What is found in `region`, which leads and shall hand over.
#[must_use]
pub fn of_primary(region: &RegionName, facts: &Facts) -> Vec<Finding> {
    let mut findings = Findings { region, found: Vec::new() };
    // Its disk may well be why another shall lead.
    findings.common(facts, Mode::Switchover, Outcome::Told);
    if let Some(vitals) = &facts.vitals {
        findings.writer(vitals, facts);
        findings.both(vitals, facts, true);
    }
    findings.found
}

/// What is found of the PgBouncer at `console`, which `region` cannot tell anything.
#[must_use]
pub fn of_pooler(region: &RegionName, console: &str, why: &str) -> Finding {
    Finding {
        kind: Kind::Pooler,
        region: region.clone(),
        fact: format!("PgBouncer {console} cannot be told to pause: {why}"),
        action: "its clients see errors when the writer stops; see `consoles`, `user` and `password_file` of [pgbouncer], and its \
                 admin_users"
            .into(),
        outcome: Outcome::Told,
    }
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
    let undone = undone(vitals, commits_wait && vitals.replay.is_none()).into_iter();
    notes.extend(undone.filter(|undone| !undone.for_all).map(|undone| undone.words()));
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
    notes.extend(too_many_tablespaces(vitals).map(|fact| format!("{fact}; drop some")));
    notes
}

/// What of a region's PostgreSQL needs somebody, though it serves, in words: what is promised of commits is
/// taken away from all of them, or nobody is let in.
#[must_use]
pub fn alarms(vitals: &Vitals, commits_wait: bool) -> Vec<String> {
    let undone = undone(vitals, commits_wait && vitals.replay.is_none()).into_iter();
    undone.filter(|undone| undone.for_all).map(|undone| undone.words()).collect()
}

/// More tablespaces than a region can be sent, in words.
fn too_many_tablespaces(vitals: &Vitals) -> Option<String> {
    (vitals.tablespaces.len() > MAX_TABLESPACES).then(|| {
        format!(
            "there are {} tablespaces, and seeds and rewinds carry {MAX_TABLESPACES} at most",
            vitals.tablespaces.len()
        )
    })
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

/// What to do about tablespaces whose files are not there.
const BRING_BACK: &str = "mount what holds them, or have the region seeded anew: replicator reseed --region";

fn lost_tablespaces(lost: &[String]) -> String {
    format!("the files of tablespaces are not there: {}", lost.join(", "))
}

/// What an operator should know of tablespaces whose files are not there; none where all are.
#[must_use]
pub fn told_of_tablespaces(lost: &[String]) -> Option<String> {
    (!lost.is_empty()).then(|| format!("{}; {BRING_BACK}", lost_tablespaces(lost)))
}

/// What to do about settings with which PostgreSQL cannot start.
const TAKE_BACK: &str =
    "ALTER SYSTEM RESET takes a setting back, or mend what it needs: stopped now, PostgreSQL would stay down";

fn start_fails(why: &str) -> String {
    format!("PostgreSQL could not start again with what its files say now: {why}")
}

/// What an operator should know of a PostgreSQL that could not start again, in words.
#[must_use]
pub fn told_of_start(why: &str) -> String {
    format!("{}; {TAKE_BACK}", start_fails(why))
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

/// What takes away what is promised of commits, or keeps clients out.
struct Undone {
    fact: String,
    action: String,
    /// It concerns all commits, or all clients; else those of one role or database.
    for_all: bool,
}

impl Undone {
    fn words(&self) -> String {
        format!("{}; {}", self.fact, self.action)
    }
}

/// What of that is so. On a writer whose `commits_wait` they must.
fn undone(vitals: &Vitals, commits_wait: bool) -> Vec<Undone> {
    let mut undone = Vec::new();
    let mut for_all = |fact: String, setting: &str| {
        let action = format!("ALTER SYSTEM RESET {setting}, and reload");
        undone.push(Undone { fact, action, for_all: true });
    };
    if vitals.turns_away {
        let fact = "nobody is let in over the network: ssl is off, and pg_hba.conf asks for it";
        for_all(fact.to_owned(), "ssl");
    }
    let reader = format!("\"{}\"", postgres::sockets::READER);
    let names = vitals.setting("synchronous_standby_names");
    if commits_wait && !vitals.settings.is_empty() && names != reader {
        let fact = format!("commits do not wait: synchronous_standby_names is '{names}'");
        for_all(fact, "synchronous_standby_names");
    }
    for setting in ["fsync", "full_page_writes"].into_iter().filter(|name| vitals.setting(name) == "off") {
        for_all(format!("a crash damages the data: {setting} is off"), setting);
    }
    let weak = |value: &str| matches!(value.to_lowercase().as_str(), "off" | "local" | "false" | "no" | "0");
    let server = vitals.settings.get("synchronous_commit");
    if let Some((value, source)) = server
        && weak(value)
        && !matches!(source.as_str(), "user" | "database" | "database user" | "global")
        && commits_wait
    {
        for_all(format!("commits do not wait: synchronous_commit is {value}"), "synchronous_commit");
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
        undone.push(Undone {
            fact: format!("{what} for {}: {name} is {value}", set.whose()),
            action: format!("ALTER … RESET {name}, if that is not meant"),
            for_all: set.role.is_empty() && set.database.is_empty(),
        });
    }
    undone
}

#[cfg(test)]
mod tests;
