//! Logical slots that a standby carries: of each slot of the writer it has one of the same name, which is
//! advanced to what the consumer has confirmed. Then the consumer goes on with it after a promotion.
//!
//! [`steps`] decides what is done next; the rest are the statements for it. PostgreSQL 16 and newer: before,
//! a standby can have no logical slot.

use std::collections::BTreeSet;
use std::time::Duration;

use proto::Lsn;

use crate::protocol::client::{ConnectOptions, Row};
use crate::protocol::session::{Session, SessionError};

/// The longest name of a slot, bytes.
const NAME_BYTES_MAX: usize = 63;

/// The most slots that are looked at.
pub const SLOTS_MAX: usize = 200;

const LIST: &str = "SELECT slot_name, plugin, database, two_phase, confirmed_flush_lsn, active, wal_status = 'lost', \
     (SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() END), \
     catalog_xmin, pg_snapshot_xmax(pg_current_snapshot()) FROM pg_replication_slots \
     WHERE slot_type = 'logical' AND NOT temporary ORDER BY slot_name LIMIT 200";

/// A logical slot, of a writer or of a standby.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogicalSlot {
    /// Its name.
    pub name: String,
    /// The output plugin.
    pub plugin: String,
    /// The database that it decodes.
    pub database: String,
    /// It decodes prepared transactions when they are prepared.
    pub two_phase: bool,
    /// Up to where the consumer has confirmed; zero while it is being made.
    pub confirmed_lsn: Lsn,
    /// Somebody reads from it.
    pub active: bool,
    /// It has lost what it needs.
    pub lost: bool,
    /// The oldest transaction whose catalogs it decodes with, counted through all epochs; 0 of none.
    pub catalog_xmin: u64,
}

impl LogicalSlot {
    fn is_like(&self, other: &LogicalSlot) -> bool {
        let of = |slot: &LogicalSlot| (slot.plugin.clone(), slot.database.clone(), slot.two_phase);
        of(self) == of(other)
    }

    /// Whether PostgreSQL can have made it: what comes from another region is written into statements.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        let fits = |text: &str| !text.is_empty() && text.len() <= NAME_BYTES_MAX && !text.contains('\0');
        let letters = self.name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        fits(&self.name) && letters && fits(&self.plugin) && fits(&self.database)
    }
}

/// What a standby has of a slot of the writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carried {
    /// The consumer can go on with it.
    Ready,
    /// It begins after what the consumer has confirmed so far: what is between would be skipped.
    Ahead,
    /// It is not there, or not yet made.
    Missing,
    /// It has lost what it needs, as the writer has vacuumed its catalogs.
    Lost,
    /// There is another one of its name.
    Another,
}

/// What a standby that has `there` has of the writer's slot `wanted`.
#[must_use]
pub fn carried(wanted: &LogicalSlot, there: &[LogicalSlot]) -> Carried {
    match there.iter().find(|slot| slot.name == wanted.name) {
        None => Carried::Missing,
        Some(slot) if !slot.is_like(wanted) => Carried::Another,
        Some(slot) if slot.lost => Carried::Lost,
        Some(slot) if slot.confirmed_lsn == Lsn::ZERO => Carried::Missing,
        Some(slot) if slot.confirmed_lsn > wanted.confirmed_lsn => Carried::Ahead,
        Some(_) => Carried::Ready,
    }
}

/// Something to do for the slots of a standby.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Make one like the writer's.
    Make(LogicalSlot),
    /// Advance it to what the consumer has confirmed.
    Advance(LogicalSlot, Lsn),
    /// Drop it.
    Drop(LogicalSlot, &'static str),
}

/// What is done next on a standby that has `there` and has applied all redo up to `applied_lsn`, for the
/// writer's slots `wanted`. `ours`: the names of those that were carried before, which go when the writer's
/// go. One that somebody reads from is left alone.
#[must_use]
pub fn steps(
    wanted: &[LogicalSlot],
    there: &[LogicalSlot],
    ours: &BTreeSet<String>,
    applied_lsn: Lsn,
) -> Vec<Step> {
    let own = |name: &str| there.iter().find(|slot| slot.name == name);
    let mut steps = Vec::new();
    for slot in wanted {
        let there_is = own(&slot.name);
        match (carried(slot, there), there_is) {
            (Carried::Missing, None) => steps.push(Step::Make(slot.clone())),
            (Carried::Lost, Some(lost)) if !lost.active => {
                steps.push(Step::Drop(lost.clone(), "it has lost what it needs; it is made anew"));
            }
            (Carried::Ready, Some(ready)) if !ready.active => {
                let to_lsn = slot.confirmed_lsn.min(applied_lsn);
                if to_lsn > ready.confirmed_lsn {
                    steps.push(Step::Advance(ready.clone(), to_lsn));
                }
            }
            _ => {}
        }
    }
    // One that is still being made is ours, and waits for a list that may never come.
    let unused = |slot: &LogicalSlot| !slot.active || slot.confirmed_lsn == Lsn::ZERO;
    let gone = |slot: &&LogicalSlot| {
        ours.contains(&slot.name) && unused(slot) && !wanted.iter().any(|wanted| wanted.name == slot.name)
    };
    let drop = |slot: &LogicalSlot| Step::Drop(slot.clone(), "the primary has it no more");
    steps.extend(there.iter().filter(gone).map(drop));
    steps
}

/// The logical slots of the server of `session`, and up to where it has applied redo; zero of a writer, and
/// where there is no slot.
///
/// # Errors
/// When it does not answer.
pub async fn list(
    session: &mut Session,
    deadline: Duration,
) -> Result<(Vec<LogicalSlot>, Lsn), SessionError> {
    let rows = session.rows(LIST, deadline).await?;
    let applied_lsn = rows.first().map_or(Lsn::ZERO, |row| lsn(row, 7));
    Ok((rows.iter().map(slot_of).collect(), applied_lsn))
}

/// Has a writer log the transactions that run: a standby that makes a slot waits for such a list.
///
/// # Errors
/// When it does not answer, or is no writer.
pub async fn log_running(session: &mut Session, deadline: Duration) -> Result<(), SessionError> {
    session.rows("SELECT pg_log_standby_snapshot()", deadline).await.map(drop)
}

/// Makes a slot like `slot`. It waits for the next list of running transactions in the redo; where that takes
/// longer than `deadline`, the server goes on making it.
///
/// # Errors
/// When the server does not, or not in time.
pub async fn make(
    options: &ConnectOptions,
    slot: &LogicalSlot,
    deadline: Duration,
) -> Result<(), SessionError> {
    let statement = format!(
        "SELECT pg_create_logical_replication_slot({}, {}, false, {})",
        literal(&slot.name),
        literal(&slot.plugin),
        slot.two_phase
    );
    in_database(options, slot, &statement, deadline).await
}

/// Advances `slot` to `to_lsn`.
///
/// # Errors
/// When the server does not, or not in time.
pub async fn advance(
    options: &ConnectOptions,
    slot: &LogicalSlot,
    to_lsn: Lsn,
    deadline: Duration,
) -> Result<(), SessionError> {
    let statement = format!("SELECT pg_replication_slot_advance({}, '{to_lsn}')", literal(&slot.name));
    in_database(options, slot, &statement, deadline).await
}

/// Drops the slot of this `name`, whoever reads from it; it is well when there is none.
///
/// # Errors
/// When the server does not.
pub async fn drop_slot(session: &mut Session, name: &str, deadline: Duration) -> Result<(), SessionError> {
    let (name, there) =
        (literal(name), "FROM pg_replication_slots WHERE slot_type = 'logical' AND slot_name =");
    session.rows(&format!("SELECT pg_terminate_backend(active_pid, 5000) {there} {name}"), deadline).await?;
    session
        .rows(&format!("SELECT pg_drop_replication_slot(slot_name) {there} {name}"), deadline)
        .await
        .map(drop)
}

async fn in_database(
    options: &ConnectOptions,
    slot: &LogicalSlot,
    statement: &str,
    deadline: Duration,
) -> Result<(), SessionError> {
    let mut session = Session::open_database(options, &slot.database, deadline).await?;
    session.rows(statement, deadline).await.map(drop)
}

/// `text` as a literal of SQL.
fn literal(text: &str) -> String {
    format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

fn slot_of(row: &Row) -> LogicalSlot {
    let text = |index: usize| row.get(index).cloned().flatten().unwrap_or_default();
    let is = |index| text(index) == "t";
    LogicalSlot {
        name: text(0),
        plugin: text(1),
        database: text(2),
        two_phase: is(3),
        confirmed_lsn: lsn(row, 4),
        active: is(5),
        lost: is(6),
        catalog_xmin: full_xid(text(8).parse().unwrap_or(0), text(9).parse().unwrap_or(0)),
    }
}

/// A transaction's number counted through all epochs, where `next` is that of the next one to begin: a slot's
/// is at most half of all numbers before that.
fn full_xid(xid: u32, next: u64) -> u64 {
    if xid == 0 {
        return 0;
    }
    let same_epoch = next & !u64::from(u32::MAX) | u64::from(xid);
    if same_epoch > next { same_epoch.saturating_sub(1 << 32) } else { same_epoch }
}

/// How long the writer's catalogs are kept for a region that does not ask any more.
const KEPT_FOR: Duration = Duration::from_secs(600);

/// How long a writer that has just begun to lead waits for regions to ask, before it keeps nothing for them.
const ASK_FIRST: Duration = Duration::from_secs(60);

/// The oldest transaction whose catalogs a writer keeps for its secondaries' slots, 0 for none, where each
/// of `asked` has said which it needs and how long ago; none while that is not known, as it has led for only
/// `leads`.
#[must_use]
pub fn catalogs_to_hold(asked: &[(u64, Duration)], leads: Duration) -> Option<u64> {
    let needed = asked.iter().filter(|(xid, ago)| *xid != 0 && *ago < KEPT_FOR).map(|(xid, _)| *xid).min();
    if needed.is_none() && leads < ASK_FIRST {
        return None;
    }
    Some(needed.unwrap_or(0))
}

fn lsn(row: &Row, index: usize) -> Lsn {
    row.get(index).cloned().flatten().and_then(|text| text.parse().ok()).unwrap_or(Lsn::ZERO)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(name: &str, confirmed: u64) -> LogicalSlot {
        LogicalSlot {
            name: name.into(),
            plugin: "pgoutput".into(),
            database: "shop".into(),
            confirmed_lsn: Lsn(confirmed),
            ..LogicalSlot::default()
        }
    }

    fn next(wanted: &[LogicalSlot], there: &[LogicalSlot]) -> Vec<Step> {
        steps(wanted, there, &["a".to_owned(), "b".to_owned()].into(), Lsn(100))
    }

    #[test]
    fn what_the_writer_has_is_made_and_advanced_no_further_than_the_consumer_and_the_standby_are() {
        assert_eq!(next(&[slot("a", 50)], &[]), [Step::Make(slot("a", 50))]);
        assert_eq!(next(&[slot("a", 50)], &[slot("a", 40)]), [Step::Advance(slot("a", 40), Lsn(50))]);
        assert_eq!(next(&[slot("a", 500)], &[slot("a", 40)]), [Step::Advance(slot("a", 40), Lsn(100))]);
        assert_eq!(next(&[slot("a", 50)], &[slot("a", 50)]), []);
        assert_eq!(next(&[slot("a", 50)], &[slot("a", 60)]), [], "it would go back");
        let read = |slot: LogicalSlot| LogicalSlot { active: true, ..slot };
        assert_eq!(next(&[slot("a", 50)], &[read(slot("a", 40))]), [], "somebody reads from it");
        assert_eq!(next(&[read(slot("a", 50))], &[slot("a", 40)]).len(), 1, "it is read at the writer");
    }

    #[test]
    fn what_is_lost_or_gone_is_dropped_and_what_is_another_s_is_left() {
        let lost = LogicalSlot { lost: true, ..slot("a", 40) };
        assert!(matches!(&next(&[slot("a", 50)], &[lost])[..], [Step::Drop(..)]));
        assert!(matches!(&next(&[], &[slot("a", 40)])[..], [Step::Drop(..)]));
        assert_eq!(next(&[], &[slot("c", 40)]), [], "it was never carried");
        assert_eq!(next(&[], &[LogicalSlot { active: true, ..slot("a", 40) }]), [], "it is read");
        let being_made = LogicalSlot { active: true, ..slot("a", 0) };
        assert!(matches!(&next(&[], &[being_made])[..], [Step::Drop(..)]));
        let other = LogicalSlot { database: "bank".into(), ..slot("a", 40) };
        assert_eq!(next(&[slot("a", 50)], &[other]), []);
    }

    #[test]
    fn a_slot_that_would_skip_something_is_not_ready() {
        let has = |there: &[LogicalSlot]| carried(&slot("a", 50), there);
        assert_eq!(has(&[slot("a", 50)]), Carried::Ready);
        assert_eq!(has(&[slot("a", 20)]), Carried::Ready);
        assert_eq!(has(&[slot("a", 51)]), Carried::Ahead);
        assert_eq!(has(&[slot("a", 0)]), Carried::Missing, "it is being made");
        assert_eq!(has(&[slot("b", 50)]), Carried::Missing);
        assert_eq!(has(&[LogicalSlot { lost: true, ..slot("a", 50) }]), Carried::Lost);
        assert_eq!(has(&[LogicalSlot { plugin: "other".into(), ..slot("a", 50) }]), Carried::Another);
    }

    #[test]
    fn catalogs_are_kept_for_the_slowest_region_that_still_asks() {
        let s = Duration::from_secs;
        assert_eq!(catalogs_to_hold(&[], s(5)), None, "the regions have not asked yet");
        assert_eq!(catalogs_to_hold(&[], s(61)), Some(0));
        assert_eq!(catalogs_to_hold(&[(9, s(1)), (7, s(2)), (0, s(1))], s(5)), Some(7));
        assert_eq!(catalogs_to_hold(&[(9, s(1)), (7, s(700))], s(900)), Some(9), "one went away");
        assert_eq!(full_xid(0, 5), 0);
        assert_eq!(full_xid(700, 800), 700);
        assert_eq!(full_xid(700, (3 << 32) | 800), (3 << 32) | 700);
        assert_eq!(full_xid(u32::MAX, (3 << 32) | 5), (2 << 32) | u64::from(u32::MAX), "of the epoch before");
    }

    #[test]
    fn what_another_region_says_is_no_statement() {
        assert!(slot("cdc_1", 1).is_valid());
        for name in ["", "Cdc", "a'b", "a b", &"a".repeat(64)] {
            assert!(!slot(name, 1).is_valid(), "{name}");
        }
        assert!(!LogicalSlot { database: "a\0b".into(), ..slot("a", 1) }.is_valid());
        assert_eq!(literal(r"a'b\c"), r"E'a''b\\c'");
    }
}
