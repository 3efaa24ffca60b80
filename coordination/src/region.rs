//! What a region does: facts in, deeds out.
//!
//! [`View`] is what the region knows of the record, [`Facts`] is what the region is. [`next`] says what to do
//! about both; [`obey`] what must have stopped before a proposal is accepted; [`grant`] what the region tells
//! whoever shuts the old primary out. The daemon and the simulation call these same functions;
//! `replicator/src/part/` carries the deeds out.
//!
//! Two rules tie a region to the record. What a record forbids is obeyed *before* it is accepted: a proposal
//! that is being voted on counts already (`View::pending`). What a record allows counts only once it is known
//! to be agreed.

use std::collections::BTreeSet;

use proto::{Epoch, Lsn, RegionName, SystemId, Timeline};

use crate::leadership::{Leadership, Standing, Step};
use crate::lineage::{Redo, timeline_of};
use crate::planted::{self, Bug};
use crate::promotion::Grant;
use crate::register::Accepted;
use crate::voters::Electorate;

/// What a region knows of the record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// What this voter has accepted.
    pub accepted: Accepted,
    /// The newest record that is known to be agreed; none where this life of the daemon has not heard of one.
    pub agreed: Option<Accepted>,
    /// Proposals that this voter is about to accept.
    pub pending: Vec<Leadership>,
    /// This voter remembers what it has promised and accepted; without that it knows nothing, and supports
    /// nobody.
    pub remembers: bool,
}

impl View {
    /// What `region` may do: what is forbidden counts at once, what is allowed once it is agreed. None while
    /// that is not known.
    #[must_use]
    pub fn standing(&self, region: &RegionName) -> Option<Standing> {
        if !self.remembers {
            return None;
        }
        let mut binding = self.pending.iter().chain([&self.accepted.record]);
        if let Some(forbidden) =
            binding.by_ref().map(|record| record.standing(region)).find(|standing| standing.forbids())
        {
            return Some(forbidden);
        }
        if planted::is(Bug::LeadsUnagreed) {
            return Some(self.accepted.record.standing(region));
        }
        let newest = self.agreed.as_ref().filter(|agreed| agreed.number >= self.accepted.number);
        newest.map(|agreed| agreed.record.standing(region))
    }

    /// Whether this voter answers `region` as the primary of `epoch`: takes its redo, and keeps its lease.
    #[must_use]
    pub fn supports(&self, region: &RegionName, epoch: Epoch) -> bool {
        let mut binding = self.pending.iter().chain([&self.accepted.record]);
        self.remembers && binding.all(|record| record.supports(region, epoch))
    }

    /// Whether the primary is to stop its writer for `to`, which shall lead `epoch`.
    #[must_use]
    pub fn hands_over(&self, to: &RegionName, epoch: Epoch) -> bool {
        self.accepted.record.hands_over(to, epoch)
    }

    /// The epoch of the newest record known, agreed or accepted.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.accepted.record.epoch
    }

    /// The database's system identifier, if the record is known to name it.
    #[must_use]
    pub fn named(&self) -> Option<SystemId> {
        self.agreed.as_ref().and_then(|agreed| agreed.record.system_id)
    }

    /// The sets of voters of each of which a majority keeps the lease: by every record that this voter knows
    /// to be agreed, has accepted, or is about to.
    #[must_use]
    pub fn counted(&self, file: &Electorate) -> Vec<BTreeSet<RegionName>> {
        let binding = self.pending.iter().chain([&self.accepted.record]);
        let known = binding.chain(self.agreed.as_ref().map(|agreed| &agreed.record));
        let mut counted: Vec<BTreeSet<RegionName>> = Vec::new();
        for record in known {
            let electorate = if planted::is(Bug::LeasesByFile) { file } else { record.electorate(file) };
            for set in electorate.sets() {
                let names: BTreeSet<RegionName> = set.names().cloned().collect();
                if !counted.contains(&names) {
                    counted.push(names);
                }
            }
        }
        counted
    }

    fn is_handing_over(&self) -> bool {
        self.accepted.record.promotion.as_ref().is_some_and(|promotion| promotion.step == Step::HandOver)
    }

    /// Where the timeline of `epoch` leaves its parent, if the promotion that begins it is in progress.
    fn fork_lsn(&self, epoch: Epoch) -> Option<Lsn> {
        let record = self.agreed.as_ref().map(|agreed| &agreed.record)?;
        let begins = |step: Step| step == Step::Promote;
        record.promotion.as_ref().filter(|p| begins(p.step) && p.epoch == epoch).map(|p| p.fork_lsn)
    }
}

/// The part that a region plays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// None yet.
    Starting,
    /// It takes redo, if it has data to go on with.
    Following,
    /// Its writer runs, for this epoch.
    Leading {
        /// The epoch.
        epoch: Epoch,
    },
    /// Its writer was told to stop for a switchover, and it is not known yet that everything was handed over.
    Stopping {
        /// The epoch that it led.
        epoch: Epoch,
    },
    /// Its writer has stopped, and `to` has everything.
    HandedOver {
        /// The epoch that it led.
        epoch: Epoch,
        /// The region that shall lead.
        to: RegionName,
        /// The epoch that `to` shall lead.
        next_epoch: Epoch,
    },
}

/// What a region's data directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Database {
    /// It was not looked at: nothing begins on it.
    Unknown,
    /// There is none.
    Absent,
    /// It can be promoted to the asked timeline, as a standby that has everything its volume has.
    Standby,
    /// A writer has begun the asked timeline in it.
    Begun,
}

/// What a region is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The part that it plays.
    pub part: Part,
    /// Kept on disk: its writer may have taken writes since it last had what the primary had. One that was to
    /// be promoted, and is the standby still that it was, has taken none.
    pub led: bool,
    /// Kept on disk: it led an epoch that is over, and is to be brought back to the line first.
    pub rejoining: bool,
    /// Kept on disk: its data are whole.
    pub has_data: bool,
    /// Kept on disk: its directory was lost or set aside, and it was not seeded since. What redo it had,
    /// nobody knows.
    pub forgot: bool,
    /// Kept on disk: no database was ever made, as far as its voter's memory goes.
    pub may_create: bool,
    /// Kept on disk: it has made the cluster's database, and the record is not known to name that yet.
    pub unnamed: bool,
    /// Its data directory, asked for the timeline of the epoch of [`View::epoch`].
    pub database: Database,
    /// A PostgreSQL that takes writes runs, whoever started it.
    pub writer_runs: bool,
    /// Its volume is open: what is durable in it is known.
    pub open: bool,
    /// What is durable in its volume.
    pub durable: Redo,
    /// Its volume holds redo.
    pub has_redo: bool,
}

/// Why a region does nothing although it should lead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Hindrance {
    /// It has no data, or they are being replaced.
    #[error("this region has no data to lead with: order a failover to another region")]
    NoData,
    /// Its data directory is gone, and the cluster has a database.
    #[error(
        "this region's PostgreSQL data directory is gone, and the cluster has a database (system identifier {0}): no empty one is made in its \
         place. It waits: order a failover to a region that has the data (replicator promote --region R --mode failover), which has this one \
         seeded; or stop this daemon and restore the directory"
    )]
    DataGone(SystemId),
    /// It has no data directory, and cannot know that there never was a database.
    #[error(
        "this region has no PostgreSQL data directory, and was not there at the cluster's first start, or another region has data: it makes no \
         empty database. It waits: order a failover to a region that has the data (replicator promote --region R --mode failover), or stop this \
         daemon and restore the directory"
    )]
    MayNotCreate,
    /// Its redo ends elsewhere than the record says.
    #[error(
        "this region's redo ends at {durable_lsn}, and the record says that the new timeline begins at {fork_lsn}"
    )]
    OtherFork {
        /// Where its redo ends.
        durable_lsn: Lsn,
        /// Where the new timeline begins.
        fork_lsn: Lsn,
    },
}

/// What a region does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deed {
    /// Nothing, until something changes.
    Rest,
    /// Ask the other voters who leads.
    AskWhoLeads,
    /// It leads; its commits may return once the promotion is over.
    Acknowledge(bool),
    /// Make the cluster's database, which there never was: its first primary does.
    Create {
        /// The epoch, the first.
        epoch: Epoch,
    },
    /// Start the writer of `epoch`, whose timeline has begun here.
    Lead {
        /// The epoch.
        epoch: Epoch,
    },
    /// Promote the standby, which has everything up to `fork_lsn`, and lead `epoch`.
    TakeOver {
        /// The epoch.
        epoch: Epoch,
        /// Where its timeline begins.
        fork_lsn: Lsn,
    },
    /// The switchover for which the writer was stopped is over without a successor: start it again.
    LeadOn {
        /// The epoch.
        epoch: Epoch,
    },
    /// Stop the writer at once. What it has and nobody else has is kept aside when the region is brought
    /// back.
    StepDown,
    /// Follow. `rejoin`: it led, and its data are to be brought back to the line first.
    Follow {
        /// See above.
        rejoin: bool,
    },
    /// It should lead and cannot.
    Refuse(Hindrance),
}

/// What the region `me` does next.
#[must_use]
pub fn next(me: &RegionName, view: &View, facts: &Facts) -> Deed {
    let Some(standing) = view.standing(me) else {
        // A region that plays a part hears soon what became of a record that it has just accepted.
        return if facts.part == Part::Starting { Deed::AskWhoLeads } else { Deed::Rest };
    };
    let epoch = view.epoch();
    match standing {
        Standing::Leads | Standing::TakesOver => leads(standing, epoch, view, facts),
        Standing::Follows | Standing::Fenced => follows(facts),
    }
}

fn leads(standing: Standing, epoch: Epoch, view: &View, facts: &Facts) -> Deed {
    match &facts.part {
        Part::Leading { epoch: led } if *led == epoch => {
            // Before the record names the database, a primary that loses all it has could make another.
            let named = view.named().is_some() || !facts.unnamed;
            Deed::Acknowledge(named && standing == Standing::Leads || planted::is(Bug::AcknowledgesEarly))
        }
        // It has slept through the end of the epoch that it led.
        Part::Leading { .. } | Part::Stopping { .. } | Part::HandedOver { .. } if led(facts) != epoch => {
            Deed::StepDown
        }
        Part::HandedOver { to, next_epoch, .. } if view.hands_over(to, *next_epoch) => Deed::Rest,
        Part::Leading { .. } | Part::Stopping { .. } | Part::HandedOver { .. } => Deed::LeadOn { epoch },
        // A writer that was stopped for a switchover stays so until that is decided.
        Part::Following if standing == Standing::Leads && view.is_handing_over() => Deed::Rest,
        Part::Starting if !facts.open => Deed::Rest,
        Part::Starting if view.is_handing_over() && !facts.led && facts.has_data => Deed::Rest,
        Part::Following | Part::Starting => begin(epoch, view, facts),
    }
}

/// The epoch that the region led last, as it knows itself.
fn led(facts: &Facts) -> Epoch {
    match facts.part {
        Part::Leading { epoch } | Part::Stopping { epoch } | Part::HandedOver { epoch, .. } => epoch,
        Part::Starting | Part::Following => Epoch(0),
    }
}

/// How a region begins to lead `epoch`: with data on which its timeline has begun, or by promoting a standby
/// that ends at the fork.
fn begin(epoch: Epoch, view: &View, facts: &Facts) -> Deed {
    match (facts.database, view.fork_lsn(epoch)) {
        (Database::Unknown, _) => Deed::Rest,
        (Database::Begun, _) => Deed::Lead { epoch },
        (Database::Absent, _) if planted::is(Bug::MakesEmpty) => Deed::Create { epoch },
        (Database::Absent, _) => absent(epoch, view, facts),
        (Database::Standby, _) if !facts.has_data || facts.rejoining => Deed::Refuse(Hindrance::NoData),
        (Database::Standby, Some(fork_lsn)) if facts.durable.end_lsn != fork_lsn => {
            let durable_lsn = facts.durable.end_lsn;
            Deed::Refuse(Hindrance::OtherFork { durable_lsn, fork_lsn })
        }
        (Database::Standby, Some(fork_lsn)) => Deed::TakeOver { epoch, fork_lsn },
        // The promotion is over, so this region has begun the timeline once: these are other data.
        (Database::Standby, None) => Deed::Refuse(Hindrance::NoData),
    }
}

/// What the primary of `epoch` does that finds no data directory. An empty database in place of one that was
/// lost looks like success, and is none.
fn absent(epoch: Epoch, view: &View, facts: &Facts) -> Deed {
    let first = epoch == Epoch(1) && !facts.has_data;
    match view.named() {
        None if first && facts.may_create => Deed::Create { epoch },
        None if first => Deed::Refuse(Hindrance::MayNotCreate),
        Some(system_id) => Deed::Refuse(Hindrance::DataGone(system_id)),
        None => Deed::Refuse(Hindrance::NoData),
    }
}

fn follows(facts: &Facts) -> Deed {
    match &facts.part {
        Part::Leading { .. } | Part::Stopping { .. } => Deed::StepDown,
        Part::HandedOver { .. } => Deed::Follow { rejoin: false },
        // An earlier daemon's writer, whatever the volume is at.
        Part::Starting if facts.writer_runs => Deed::StepDown,
        Part::Starting if !facts.open => Deed::Rest,
        Part::Starting => Deed::Follow { rejoin: facts.led && facts.has_data },
        // A standby that was promoted just before the record changed.
        Part::Following if facts.writer_runs => Deed::StepDown,
        Part::Following => Deed::Rest,
    }
}

/// What must have stopped before a proposal is accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Obey {
    /// The old primary is not answered any more, nor is its redo taken.
    pub shut_out: bool,
    /// This region's own writer has stopped.
    pub stop_writer: bool,
}

/// What `proposal` forbids that `accepted` allowed.
#[must_use]
pub fn obey(me: &RegionName, accepted: &Leadership, proposal: &Leadership, facts: &Facts) -> Obey {
    if proposal.supports(&accepted.primary, accepted.epoch) {
        return Obey::default();
    }
    let forbidden = proposal.standing(me).forbids();
    let runs = matches!(facts.part, Part::Leading { .. } | Part::Stopping { .. }) || facts.writer_runs;
    Obey { shut_out: true, stop_writer: forbidden && runs }
}

/// What a region has heard of the primary, and how it has answered it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heard {
    /// How long ago it last answered a primary, or was started, microseconds.
    pub silent_us: u64,
    /// How far the primary was durable, as the primary said last; zero where it said nothing.
    pub primary_lsn: Lsn,
}

/// What the region `me` grants whoever has `record` agreed on.
#[must_use]
pub fn grant(me: &RegionName, record: &Leadership, facts: &Facts, heard: Heard) -> Grant {
    let leads = matches!(facts.part, Part::Leading { .. } | Part::Stopping { .. });
    let replaced = record.promotion.as_ref().is_some_and(|promotion| promotion.from == *me);
    let open = facts.open && !facts.forgot || planted::is(Bug::GrantsUnopened);
    Grant {
        has_data: open && facts.has_data && !facts.rejoining,
        // What it cannot lead with it can still give.
        has_redo: open && facts.has_redo,
        open,
        timeline: facts.durable.timeline,
        durable_lsn: facts.durable.end_lsn,
        silent_us: if planted::is(Bug::ForgetsAnswers) { u64::MAX / 2 } else { heard.silent_us },
        primary_lsn: heard.primary_lsn.max(facts.durable.end_lsn),
        // What it has is known only when its volume is open; until then it is not known either where its
        // writer ended.
        stopped: replaced && open && !leads && !facts.writer_runs,
    }
}

/// Why a primary does not stop its writer for a switchover.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotHandedOver {
    /// The region does not lead.
    #[error("this region does not lead")]
    DoesNotLead,
    /// Another switchover, or none, is recorded.
    #[error("no switchover to {0} is recorded")]
    NotRecorded(RegionName),
}

/// Whether the writer may be stopped for `to`, which shall lead `next_epoch`. To be asked again before each
/// step.
///
/// # Errors
/// Why not.
pub fn may_hand_over(
    me: &RegionName,
    view: &View,
    facts: &Facts,
    to: &RegionName,
    next_epoch: Epoch,
) -> Result<(), NotHandedOver> {
    // The record of the switchover may be accepted here and not known to be agreed yet: whoever asks has had
    // it agreed on.
    let allowed = matches!(view.standing(me), None | Some(Standing::Leads));
    let leads = allowed && led(facts) == view.epoch();
    if !leads {
        return Err(NotHandedOver::DoesNotLead);
    }
    if !view.hands_over(to, next_epoch) {
        return Err(NotHandedOver::NotRecorded(to.clone()));
    }
    Ok(())
}

/// The timeline of the epoch in `view`: what [`Facts::database`] is asked for.
#[must_use]
pub fn timeline_asked(view: &View) -> Timeline {
    timeline_of(view.epoch())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::leadership::{Change, Loss, Mode, Next, Order};
    use crate::register::Number;

    fn name(text: &str) -> RegionName {
        text.parse().unwrap()
    }

    fn first() -> Leadership {
        Leadership::first(Epoch(1), name("a"))
    }

    fn begun(mode: Mode) -> Leadership {
        let order = Order::new(1, Epoch(1), mode, &name("b"));
        first().apply(&Change::Begin(order)).unwrap()
    }

    fn promoting(mode: Mode) -> Leadership {
        let next = Next::Promote { fork_lsn: Lsn(50), parent: Timeline(1), loss: Loss::default() };
        begun(mode).apply(&Change::Advance { id: 1, attempt: 0, next, done: vec![] }).unwrap()
    }

    fn over() -> Leadership {
        let next = Next::Finish { at_us: 0, write_gap_us: 0 };
        let change = Change::Advance { id: 1, attempt: 0, next, done: vec![] };
        promoting(Mode::Failover).apply(&change).unwrap()
    }

    fn view(record: &Leadership) -> View {
        let accepted = Accepted { number: Number { round: 1, proposer: 1 }, record: record.clone() };
        View { agreed: Some(accepted.clone()), accepted, pending: Vec::new(), remembers: true }
    }

    fn facts(part: Part, database: Database) -> Facts {
        Facts {
            part,
            led: false,
            rejoining: false,
            has_data: database != Database::Absent,
            forgot: false,
            may_create: false,
            unnamed: false,
            database,
            writer_runs: false,
            open: true,
            durable: Redo::new(Timeline(1), Lsn(50)),
            has_redo: true,
        }
    }

    /// Every standing with every part.
    #[test]
    fn each_standing_and_part_leads_to_a_deed() {
        use Database::{Absent, Begun, Standby, Unknown};
        let (me, epoch) = (name("b"), Epoch(2));
        let handed = |next_epoch| Part::HandedOver { epoch, to: name("c"), next_epoch };
        let no_data = Deed::Refuse(Hindrance::NoData);
        let handing = {
            let order = Order::new(2, Epoch(2), Mode::Switchover, &name("c"));
            over().apply(&Change::Begin(order)).unwrap()
        };
        let (takes_over, leads, follows) = (promoting(Mode::Failover), over(), first());
        let take_over = Deed::TakeOver { epoch, fork_lsn: Lsn(50) };
        let leading = |epoch| Part::Leading { epoch };
        let table = [
            (&takes_over, Part::Starting, Standby, take_over.clone()),
            (&takes_over, Part::Following, Standby, take_over),
            (&takes_over, Part::Following, Begun, Deed::Lead { epoch }),
            (&takes_over, Part::Following, Unknown, Deed::Rest),
            (&leads, Part::Starting, Unknown, Deed::Rest),
            (&takes_over, Part::Following, Absent, no_data.clone()),
            (&takes_over, leading(epoch), Begun, Deed::Acknowledge(false)),
            (&leads, leading(epoch), Begun, Deed::Acknowledge(true)),
            (&leads, leading(Epoch(1)), Begun, Deed::StepDown),
            (&leads, Part::Starting, Begun, Deed::Lead { epoch }),
            (&leads, Part::Starting, Standby, no_data),
            (&leads, Part::Following, Begun, Deed::Lead { epoch }),
            (&leads, Part::Stopping { epoch }, Begun, Deed::LeadOn { epoch }),
            (&leads, handed(Epoch(3)), Begun, Deed::LeadOn { epoch }),
            (&handing, handed(Epoch(3)), Begun, Deed::Rest),
            (&handing, handed(Epoch(9)), Begun, Deed::LeadOn { epoch }),
            (&handing, leading(epoch), Begun, Deed::Acknowledge(true)),
            (&handing, Part::Following, Begun, Deed::Rest),
            (&handing, Part::Starting, Begun, Deed::Rest),
            (&follows, Part::Starting, Standby, Deed::Follow { rejoin: false }),
            (&follows, Part::Following, Standby, Deed::Rest),
            (&follows, leading(epoch), Begun, Deed::StepDown),
            (&follows, Part::Stopping { epoch }, Begun, Deed::StepDown),
            (&follows, handed(Epoch(3)), Begun, Deed::Follow { rejoin: false }),
        ];
        for (record, part, database, deed) in table {
            let found = next(&me, &view(record), &facts(part.clone(), database));
            assert_eq!(found, deed, "{:?}, {part:?}, {database:?}", record.standing(&me));
        }
    }

    /// Whoever finds itself without a data directory makes a database only where there never was one.
    #[test]
    fn an_empty_database_is_made_only_where_there_never_was_one() {
        let named = Leadership { system_id: Some(SystemId(4)), ..first() };
        let create = Deed::Create { epoch: Epoch(1) };
        let (gone, may_not, no_data) =
            (Hindrance::DataGone(SystemId(4)), Hindrance::MayNotCreate, Hindrance::NoData);
        let table = [
            // The record; the region; the voter was at the first start; the region's own record says that it
            // has data.
            (first(), "a", true, false, create),
            (first(), "a", false, false, Deed::Refuse(may_not)),
            (first(), "a", true, true, Deed::Refuse(no_data)),
            (named.clone(), "a", true, false, Deed::Refuse(gone)),
            (named.clone(), "a", false, false, Deed::Refuse(gone)),
            (named.clone(), "a", false, true, Deed::Refuse(gone)),
            (named, "b", true, false, Deed::Follow { rejoin: false }),
            (first(), "b", true, false, Deed::Follow { rejoin: false }),
            (over(), "b", true, false, Deed::Refuse(no_data)),
            (promoting(Mode::Failover), "b", true, false, Deed::Refuse(no_data)),
        ];
        for (record, me, may_create, has_data, deed) in table {
            let facts = Facts { has_data, may_create, ..facts(Part::Starting, Database::Absent) };
            let found = next(&name(me), &view(&record), &facts);
            assert_eq!(found, deed, "{me}, {record:?}, {may_create}, {has_data}");
        }
        let forgot = View { remembers: false, ..view(&first()) };
        let fresh = Facts { may_create: true, ..facts(Part::Starting, Database::Absent) };
        assert_eq!(next(&name("a"), &forgot, &fresh), Deed::AskWhoLeads);
        assert!(!forgot.supports(&name("a"), Epoch(1)));
    }

    #[test]
    fn nothing_is_acknowledged_before_the_record_names_the_database() {
        let made = Facts { unnamed: true, ..facts(Part::Leading { epoch: Epoch(1) }, Database::Begun) };
        assert_eq!(next(&name("a"), &view(&first()), &made), Deed::Acknowledge(false));
        let named = Leadership { system_id: Some(SystemId(4)), ..first() };
        assert_eq!(next(&name("a"), &view(&named), &made), Deed::Acknowledge(true));
        let older = Facts { unnamed: false, ..made };
        assert_eq!(
            next(&name("a"), &view(&first()), &older),
            Deed::Acknowledge(true),
            "an earlier version's"
        );
    }

    #[test]
    fn a_region_that_has_led_is_brought_back_first() {
        let led = |open, writer_runs| Facts {
            led: true,
            open,
            writer_runs,
            ..facts(Part::Starting, Database::Begun)
        };
        let deed = |facts: &Facts| next(&name("a"), &view(&over()), facts);
        assert_eq!(deed(&led(true, false)), Deed::Follow { rejoin: true });
        assert_eq!(deed(&led(false, false)), Deed::Rest, "its volume is not open");
        assert_eq!(deed(&led(false, true)), Deed::StepDown, "an earlier daemon's writer is stopped at once");
        let rejoining = Facts { rejoining: true, ..facts(Part::Following, Database::Standby) };
        let takes_over = next(&name("b"), &view(&promoting(Mode::Failover)), &rejoining);
        assert_eq!(takes_over, Deed::Refuse(Hindrance::NoData));
    }

    #[test]
    fn taking_over_begins_at_the_recorded_fork() {
        let mut behind = facts(Part::Following, Database::Standby);
        behind.durable.end_lsn = Lsn(40);
        let other = Hindrance::OtherFork { durable_lsn: Lsn(40), fork_lsn: Lsn(50) };
        assert_eq!(next(&name("b"), &view(&promoting(Mode::Failover)), &behind), Deed::Refuse(other));
    }

    #[test]
    fn what_is_allowed_counts_when_agreed_and_what_is_forbidden_at_once() {
        let (a, b) = (name("a"), name("b"));
        let mut known = view(&promoting(Mode::Failover));
        assert_eq!(known.standing(&b), Some(Standing::TakesOver));
        known.agreed = None;
        assert_eq!((known.standing(&a), known.standing(&b)), (Some(Standing::Follows), None));
        let mut leads = view(&first());
        assert!(leads.supports(&a, Epoch(1)));
        leads.pending.push(begun(Mode::Failover));
        assert_eq!(leads.standing(&a), Some(Standing::Fenced), "it is being voted on");
        assert!(!leads.supports(&a, Epoch(1)));
    }

    #[test]
    fn a_vote_stops_what_it_forbids() {
        let (a, c, fence) = (name("a"), name("c"), begun(Mode::Failover));
        let leading = facts(Part::Leading { epoch: Epoch(1) }, Database::Begun);
        let following = facts(Part::Following, Database::Standby);
        assert_eq!(obey(&a, &first(), &fence, &leading), Obey { shut_out: true, stop_writer: true });
        assert_eq!(obey(&c, &first(), &fence, &following), Obey { shut_out: true, stop_writer: false });
        let handing = begun(Mode::Switchover);
        assert_eq!(obey(&a, &first(), &handing, &leading), Obey::default(), "it is asked to hand over");
        let left = Facts { writer_runs: true, ..facts(Part::Starting, Database::Begun) };
        assert!(obey(&a, &first(), &fence, &left).stop_writer, "an earlier daemon's");
    }

    #[test]
    fn a_grant_is_no_better_than_the_truth() {
        let (a, fence) = (name("a"), begun(Mode::Failover));
        let heard = Heard { silent_us: 7, primary_lsn: Lsn(80) };
        let closed = Facts { open: false, ..facts(Part::Starting, Database::Begun) };
        let granted = grant(&a, &fence, &closed, heard);
        assert!(!(granted.open || granted.has_data || granted.has_redo || granted.stopped));
        let forgot = Facts { forgot: true, has_data: false, ..facts(Part::Following, Database::Absent) };
        let granted = grant(&a, &fence, &forgot, heard);
        assert!(!(granted.open || granted.stopped), "what it had is not known");
        let runs = Facts { writer_runs: true, ..facts(Part::Starting, Database::Begun) };
        assert!(!grant(&a, &fence, &runs, heard).stopped);
        let stopped = grant(&a, &fence, &facts(Part::Following, Database::Begun), heard);
        assert_eq!((stopped.stopped, stopped.primary_lsn, stopped.silent_us), (true, Lsn(80), 7));
        assert!(!grant(&name("b"), &fence, &facts(Part::Following, Database::Standby), heard).stopped);
    }

    #[test]
    fn a_hand_over_is_for_one_region_and_epoch() {
        let (a, b, c) = (name("a"), name("b"), name("c"));
        let handing = view(&begun(Mode::Switchover));
        let leading = facts(Part::Leading { epoch: Epoch(1) }, Database::Begun);
        assert_eq!(may_hand_over(&a, &handing, &leading, &b, Epoch(2)), Ok(()));
        let other = may_hand_over(&a, &handing, &leading, &c, Epoch(2));
        assert_eq!(other, Err(NotHandedOver::NotRecorded(c)));
        let follower = facts(Part::Following, Database::Standby);
        assert_eq!(may_hand_over(&a, &handing, &follower, &b, Epoch(2)), Err(NotHandedOver::DoesNotLead));
    }
}
