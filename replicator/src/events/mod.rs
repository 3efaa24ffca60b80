//! What happened: each daemon keeps a journal of events, bounded and on disk.
//!
//! - [`Journal`] is the one way to note an event. It never waits: a thread writes, and what it cannot keep up
//!   with is counted.
//! - [`file`] is the journal on disk: lines of JSON in two files that take turns.
//! - [`limit`] is how many events of one kind are kept, so that one kind never pushes out the others.
//! - [`notice`] finds events by comparing what the daemon is from one moment to the next. It is pure.
//!
//! The text of an event is "object: fact; what happens next".

pub mod file;
pub mod limit;
pub mod notice;

use std::collections::VecDeque;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use chrono::{DateTime, SecondsFormat, Utc};
use proto::messages as m;
use runtime::clock::wall_us;
use runtime::task::Thread;
use serde::{Deserialize, Serialize};

use file::{Files, Kept};
use limit::Limit;

/// The events that wait to be written, at most.
const QUEUE_MAX: usize = 256;

/// The newest events, kept in memory for those who follow, at most.
const RECENT_MAX: usize = 512;

/// The longest text of an event, characters. What is beyond is cut off.
const TEXT_CHARS_MAX: usize = 1_000;

/// The most bytes of texts in one answer: with the rest it stays below the largest control message.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// The most events in one answer.
const ANSWER_EVENTS_MAX: usize = 400;

/// Declares [`Kind`] with the name and the weight of each.
macro_rules! kinds {
    ($($(#[$about:meta])* $name:ident = $text:literal, $weight:ident;)*) => {
        /// What kind of event it is.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum Kind {
            $($(#[$about])* #[serde(rename = $text)] $name,)*
        }

        impl Kind {
            /// All that there are.
            pub const ALL: &[Kind] = &[$(Kind::$name,)*];

            /// Its name, as `replicator events` prints it.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Kind::$name => $text,)*
                }
            }

            /// How much it weighs.
            #[must_use]
            pub fn weight(self) -> Weight {
                match self {
                    $(Kind::$name => Weight::$weight,)*
                }
            }
        }
    };
}

/// How much an event weighs for whoever watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Weight {
    /// It is as it should be.
    Good,
    /// To know.
    Plain,
    /// Something is less than it should be.
    Warning,
    /// Clients feel it.
    Grave,
}

impl Weight {
    /// Its name, as `replicator events --json` prints it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Weight::Good => "good",
            Weight::Plain => "plain",
            Weight::Warning => "warning",
            Weight::Grave => "grave",
        }
    }
}

kinds! {
    /// A daemon was started.
    DaemonStarted = "daemon-started", Plain;
    /// A daemon was told to stop, and has.
    DaemonStopped = "daemon-stopped", Plain;
    /// This host has become its region's head: it took over from another one.
    HeadTaken = "head-taken", Warning;
    /// This host is its region's head no more.
    HeadLeft = "head-left", Warning;
    /// This host has become its region's head, to which that was moved on an operator's word.
    HeadMoved = "head-moved", Good;
    /// The region's head does not move, though an operator has ordered it.
    HeadStays = "head-stays", Warning;
    /// The file says something else than at the last start, or was read again.
    ConfigurationChanged = "configuration-changed", Plain;
    /// A region plays another part.
    RoleChanged = "role-changed", Plain;
    /// The primary's region is gone, and this one leads without being asked to.
    FailoverOrdered = "failover-ordered", Warning;
    /// The primary's region is gone, and an operator is needed.
    OperatorNeeded = "operator-needed", Grave;
    /// A promotion has begun.
    PromotionBegun = "promotion-begun", Warning;
    /// Another voter goes on with a promotion.
    PromotionTakenOver = "promotion-taken-over", Warning;
    /// A promotion is over, and another region leads.
    PromotionOver = "promotion-over", Good;
    /// A promotion was given up.
    PromotionUndone = "promotion-undone", Warning;
    /// Commits do not return.
    CommitsHeld = "commits-held", Grave;
    /// Commits returned before they were durable, as their clients cancelled the wait.
    CommitsCancelled = "commits-cancelled", Grave;
    /// A page of the data is damaged.
    PageDamaged = "page-damaged", Grave;
    /// Commits return again.
    CommitsReturn = "commits-return", Good;
    /// A copy of the volume does not take redo.
    CopyLost = "copy-lost", Warning;
    /// A copy of the volume has everything again.
    CopyRepaired = "copy-repaired", Good;
    /// Redo that nobody needs went earlier than it is to be kept: a disk is nearly full.
    RedoGaveWay = "redo-gave-way", Warning;
    /// A secondary does not stream.
    SecondaryAway = "secondary-away", Warning;
    /// A secondary streams again.
    SecondaryStreams = "secondary-streams", Good;
    /// A seed is being received.
    SeedBegun = "seed-begun", Plain;
    /// A seed is in place.
    SeedOver = "seed-over", Good;
    /// A seed did not arrive, or cannot be used.
    SeedFailed = "seed-failed", Warning;
    /// The region's data are being rewound.
    RewindBegun = "rewind-begun", Plain;
    /// The region's data are rewound.
    RewindOver = "rewind-over", Good;
    /// The region's data could not be rewound.
    RewindFailed = "rewind-failed", Warning;
    /// The superuser, and the role that applications use, have other passwords.
    PasswordRotated = "password-rotated", Plain;
    /// Somebody asked for what it may not have.
    PeerRefused = "peer-refused", Warning;
    /// PostgreSQL ended without being told to.
    PostgresEnded = "postgresql-ended", Grave;
    /// PostgreSQL accepts connections.
    PostgresStarted = "postgresql-started", Good;
    /// PostgreSQL does not start.
    PostgresFailed = "postgresql-failed", Grave;
    /// The region cannot do what the record of who leads calls for.
    Hindered = "hindered", Warning;
    /// Now it can.
    Unhindered = "unhindered", Good;
    /// Events that were not kept.
    NotKept = "events-not-kept", Warning;
}

/// An event, as one daemon noted it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Counts up in its journal, from 1.
    #[serde(rename = "n")]
    pub number: u64,
    /// Microseconds since 1970, by the daemon's clock.
    pub at_us: i64,
    /// What kind.
    pub kind: Kind,
    /// "object: fact; what happens next".
    pub text: String,
    /// What several daemons know of the same event has the same key; empty when only one knows.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub key: String,
}

impl From<Event> for m::Event {
    fn from(event: Event) -> m::Event {
        let Event { number, at_us, kind, text, key } = event;
        m::Event { number, at_us, kind: kind.name().into(), text, key }
    }
}

/// A moment as people read it: UTC, to the millisecond.
#[must_use]
pub fn show_time(at_us: i64) -> String {
    DateTime::<Utc>::from_timestamp_micros(at_us)
        .unwrap_or_default()
        .to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// An event that is to be noted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// What kind.
    pub kind: Kind,
    /// "object: fact; what happens next".
    pub text: String,
    /// See [`Event::key`].
    pub key: String,
}

impl Note {
    /// Of this kind, known to this daemon alone.
    #[must_use]
    pub fn new(kind: Kind, text: impl Into<String>) -> Note {
        Note { kind, text: text.into(), key: String::new() }
    }
}

#[derive(Debug, Default)]
struct Recent {
    /// Oldest first, without a gap in the numbers.
    events: VecDeque<Event>,
    /// The queue was full for so many.
    dropped: u64,
}

/// A daemon's journal. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Journal(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    recent: Arc<Mutex<Recent>>,
    /// None in a journal that keeps nothing.
    queue: Option<SyncSender<(i64, Note)>>,
    files: Option<Arc<Mutex<Files>>>,
}

impl Journal {
    /// The journal at `path`, which goes on where it was. What is older lies beside it.
    ///
    /// # Errors
    /// When it cannot be opened, or there is no thread to write it.
    pub fn open(path: &Path) -> std::io::Result<Journal> {
        let files = Files::open(path)?;
        let recent = Arc::new(Mutex::new(Recent::default()));
        lock(&recent).events.extend(files.newest(RECENT_MAX)?);
        let files = Arc::new(Mutex::new(files));
        let (queue, notes) = sync_channel(QUEUE_MAX);
        let (writes, keeps) = (files.clone(), recent.clone());
        // It ends when the last handle to this journal is gone.
        let _ends_with_its_queue = Thread::spawn("journal", move || write(&notes, &writes, &keeps))?;
        Ok(Journal(Arc::new(Inner { recent, queue: Some(queue), files: Some(files) })))
    }

    /// A journal that keeps nothing.
    #[must_use]
    pub fn none() -> Journal {
        Journal(Arc::new(Inner { recent: Arc::default(), queue: None, files: None }))
    }

    /// Notes that something happened now. Never waits.
    pub fn note(&self, kind: Kind, text: impl Into<String>) {
        self.keep(Note::new(kind, text));
    }

    /// Notes what happened now. Never waits.
    pub fn keep(&self, mut note: Note) {
        let Some(queue) = &self.0.queue else { return };
        if let Some((at, _)) = note.text.char_indices().nth(TEXT_CHARS_MAX) {
            note.text.truncate(at);
            note.text.push('…');
        }
        if let Err(TrySendError::Full(_)) = queue.try_send((wall_us(), note)) {
            lock(&self.0.recent).dropped += 1;
        }
    }

    /// The newest events, oldest first, at most `count`.
    #[must_use]
    pub fn newest(&self, count: usize) -> Vec<Event> {
        let recent = lock(&self.0.recent);
        recent.events.iter().skip(recent.events.len().saturating_sub(count)).cloned().collect()
    }

    /// What is asked for, oldest first. This reads files unless the newest events are enough: it may block.
    ///
    /// # Errors
    /// When the files cannot be read.
    pub fn answer(&self, request: m::EventsRequest) -> std::io::Result<m::Events> {
        let wanted = |event: &Event| event.number > request.after && event.at_us >= request.since_us;
        let recent: Vec<Event> = lock(&self.0.recent).events.iter().cloned().collect();
        let enough = recent
            .first()
            .is_none_or(|oldest| oldest.number <= request.after + 1 || oldest.at_us < request.since_us);
        let all = match &self.0.files {
            Some(files) if !enough => lock(files).read()?,
            _ => recent,
        };
        let (mut answer, mut bytes) = (m::Events::default(), 0);
        for event in all.into_iter().filter(wanted) {
            bytes += event.text.len() + event.key.len() + 64;
            if bytes > ANSWER_BYTES_MAX || answer.events.len() == ANSWER_EVENTS_MAX {
                answer.more = true;
                break;
            }
            answer.events.push(event.into());
        }
        Ok(answer)
    }
}

/// Writes what is noted, until nobody can note any more.
fn write(notes: &Receiver<(i64, Note)>, files: &Mutex<Files>, recent: &Mutex<Recent>) {
    let mut limit = Limit::default();
    let mut failing = false;
    while let Ok((at_us, note)) = notes.recv() {
        let mut kept = Vec::new();
        let dropped = std::mem::take(&mut lock(recent).dropped);
        if dropped > 0 {
            let text =
                format!("journal: {dropped} events came faster than they can be written; they are gone");
            kept.push(Note::new(Kind::NotKept, text));
        }
        kept.extend(limit.admit(at_us, note));
        for note in kept {
            let Kept { event, written } = lock(files).append(at_us, note);
            if let Err(e) = &written
                && !failing
            {
                tracing::warn!(
                    "the journal of events: {e}; events are kept in memory only until it can be written"
                );
            }
            failing = written.is_err();
            let mut recent = lock(recent);
            recent.events.push_back(event);
            if recent.events.len() > RECENT_MAX {
                recent.events.pop_front();
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Nothing here is left half changed by a panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Events of several daemons in the order of their times. What several noted of the same event is there once,
/// as the first to note it did.
#[must_use]
pub fn merge(journals: Vec<(String, Vec<m::Event>)>) -> Vec<(String, m::Event)> {
    let mut all: Vec<(String, m::Event)> = journals
        .into_iter()
        .flat_map(|(region, events)| events.into_iter().map(move |event| (region.clone(), event)))
        .collect();
    all.sort_by(|a, b| (a.1.at_us, &a.0, a.1.number).cmp(&(b.1.at_us, &b.0, b.1.number)));
    let mut seen = std::collections::BTreeSet::new();
    all.retain(|(_, event)| event.key.is_empty() || seen.insert(event.key.clone()));
    all
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use runtime::clock::now;

    use super::*;

    fn event(number: u64, at_us: i64, text: &str, key: &str) -> m::Event {
        m::Event { number, at_us, kind: "role-changed".into(), text: text.into(), key: key.into() }
    }

    #[test]
    fn every_kind_is_read_back_by_its_name() {
        for kind in Kind::ALL.iter().copied() {
            let json = serde_json::to_string(&kind).unwrap();
            assert_eq!(json, format!("\"{}\"", kind.name()));
            assert_eq!(serde_json::from_str::<Kind>(&json).unwrap(), kind);
        }
    }

    #[test]
    fn times_are_utc() {
        assert_eq!(show_time(1_700_000_000_123_456), "2023-11-14T22:13:20.123Z");
        assert_eq!(show_time(i64::MAX), "1970-01-01T00:00:00.000Z", "no clock says so");
    }

    #[test]
    fn journals_are_merged_by_time_and_each_event_is_there_once() {
        let merged = merge(vec![
            ("a".into(), vec![event(1, 10, "own a", ""), event(2, 30, "begun, says a", "begun-7")]),
            ("b".into(), vec![event(9, 20, "begun, says b", "begun-7"), event(10, 20, "own b", "")]),
        ]);
        let texts: Vec<&str> = merged.iter().map(|(_, event)| event.text.as_str()).collect();
        assert_eq!(texts, ["own a", "begun, says b", "own b"]);
    }

    /// What was noted is there for whoever asks, page by page, also after a restart.
    #[test]
    fn what_was_noted_is_answered_also_by_the_next_daemon() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events.jsonl");
        let noted = |journal: &Journal, count: usize| {
            let deadline = now() + Duration::from_secs(20);
            while journal.newest(usize::MAX).len() < count {
                assert!(now() < deadline, "{:?}", journal.newest(usize::MAX));
                std::thread::yield_now();
            }
        };
        let journal = Journal::open(&path).unwrap();
        journal.note(Kind::DaemonStarted, "a: started");
        journal.note(Kind::CopyLost, "x".repeat(5_000));
        noted(&journal, 2);
        drop(journal);
        let journal = Journal::open(&path).unwrap();
        journal.note(Kind::CopyRepaired, "copy b1: whole again");
        noted(&journal, 3);
        let all = journal.answer(m::EventsRequest::default()).unwrap();
        assert_eq!(all.events.iter().map(|event| event.number).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(all.events[1].text.chars().count(), TEXT_CHARS_MAX + 1);
        assert!(!all.more);
        let rest = journal.answer(m::EventsRequest { after: 2, since_us: 0 }).unwrap();
        assert_eq!(rest.events.len(), 1);
        let none = journal.answer(m::EventsRequest { after: 0, since_us: i64::MAX }).unwrap();
        assert!(none.events.is_empty());
    }

    /// An answer fits into a control message, whatever was noted.
    #[test]
    fn an_answer_is_bounded_and_says_that_there_is_more() {
        let directory = tempfile::tempdir().unwrap();
        let mut files = Files::open(&directory.path().join("events.jsonl")).unwrap();
        for _ in 0..300 {
            let note = Note::new(Kind::PeerRefused, "é".repeat(TEXT_CHARS_MAX));
            files.append(1, note).written.unwrap();
        }
        drop(files);
        let journal = Journal::open(&directory.path().join("events.jsonl")).unwrap();
        let (mut after, mut count) = (0, 0);
        loop {
            let answer = journal.answer(m::EventsRequest { after, since_us: 0 }).unwrap();
            let body = m::ControlResponse { body: Some(m::control_response::Body::Events(answer.clone())) };
            assert!(prost::Message::encoded_len(&body) < m::MAX_CONTROL_MESSAGE_BYTES);
            count += answer.events.len();
            after = answer.events.last().unwrap().number;
            if !answer.more {
                break;
            }
        }
        assert_eq!((count, after), (300, 300));
    }
}
