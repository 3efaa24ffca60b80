//! What must hold, whatever happens: the simulation sees all disks and both daemons at once.

use std::collections::BTreeMap;

use proto::{Lsn, Timeline};
use volume::ballot::Ballot;
use volume::copy::keeper::Store;
use volume::quorum::{CopyId, CopyState, WRITE_QUORUM};

use super::World;

/// Everything that ever was durable.
#[derive(Debug, Default)]
pub struct Ledger {
    /// The redo of each of the volume's logs.
    logs: BTreeMap<u64, BTreeMap<u64, u32>>,
}

impl Ledger {
    /// The newest log that was ever durable.
    fn newest(&self) -> u64 {
        self.logs.keys().next_back().copied().unwrap_or(0)
    }
}

impl World {
    /// The heart of it: what a daemon calls durable lies on a write quorum, and is what ever was durable.
    pub fn check_durable(&mut self, index: usize) -> Result<(), String> {
        let head = &self.heads[index];
        let durable = head.log.durable();
        if durable == head.checked || !head.log.quorum().is_open() {
            return Ok(());
        }
        let opens = head.checked.lsn == Lsn::ZERO;
        let generation = head.log.quorum().generation();
        let end = durable.lsn.0;
        let begin = head.log.bounds().horizon_lsn.0.max(head.checked.lsn.0);
        let fenced = self.fenced(index);
        let newest = self.ledger.newest();
        if generation < newest && !fenced {
            return Err(format!("daemon {index} opened with log {generation}, and log {newest} was durable"));
        }
        let known = self.ledger.logs.entry(generation).or_default();
        // A copy whose disk was lost since it flushed is no fault of the quorum's.
        let needed = WRITE_QUORUM.saturating_sub(self.hurt.len());
        for at in begin..end {
            let was = known.get(&at);
            let Some(redo) = head.content.get(&at) else {
                if was.is_some() {
                    return Err(format!(
                        "daemon {index} calls {end} durable and does not know what is at {at}"
                    ));
                }
                continue;
            };
            if let Some(was) = was.filter(|was| *was != redo) {
                return Err(format!("at {at} {was} was durable, and daemon {index} says {redo}"));
            }
            let holds = |disk: &super::Disk| {
                // Redo that was durable may have been dropped, and so may all of a log after which another
                // began.
                let gone = was.is_some() && disk.begin_lsn().0 > at || disk.meta().generation > generation;
                disk.redo(at) == Some(*redo) || gone
            };
            let holders = self.copies.iter().filter(|copy| holds(copy.disk())).count();
            if holders < needed {
                return Err(format!(
                    "daemon {index} calls {redo} at {at} durable, and {holders} disks have it"
                ));
            }
        }
        if begin > end {
            return Err(format!("daemon {index} keeps redo from {begin} on, and {end} is durable"));
        }
        for (at, redo) in head.content.range(begin..end) {
            if known.insert(*at, *redo).is_none() {
                self.report.durable += 1;
            }
        }
        if let Some((last, _)) = known.iter().next_back()
            && opens
            && *last >= end
            && !fenced
        {
            return Err(format!("daemon {index} opened with {end}, and {last} was durable"));
        }
        if durable.timeline == Timeline(0) && durable.lsn > Lsn::ZERO {
            return Err(format!("daemon {index} is at {end}, and does not know on which timeline"));
        }
        let history = head.log.history(durable.timeline);
        if durable.timeline.0 > 1 && history.is_none_or(|history| history.begin_lsn() > durable.lsn) {
            return Err(format!("daemon {index} is at {end} on timeline {}: {history:?}", durable.timeline));
        }
        self.heads[index].checked = durable;
        Ok(())
    }

    /// A log is chosen once a write quorum of disks has the promise. One that was lost since has forgotten
    /// it.
    pub fn check_choice(&self, index: usize, ballot: Ballot) -> Result<(), String> {
        let promised = self.copies.iter().filter(|copy| copy.disk().meta().promised >= ballot).count();
        match promised + self.hurt.len() < WRITE_QUORUM {
            true => Err(format!("daemon {index} chooses under ballot {ballot}, which {promised} disks have")),
            false => Ok(()),
        }
    }

    /// A copy that said it has promised a ballot is never below it.
    pub fn check_promises(&self, copy: usize) -> Result<(), String> {
        let (promised, said) = (self.copies[copy].disk().meta().promised, self.copies[copy].said_promise);
        match promised < said {
            true => Err(format!("copy {copy} said that it promised {said}, and its disk says {promised}")),
            false => Ok(()),
        }
    }

    /// Whether another daemon has a write quorum's promises above this one's ballot: it may hear late what
    /// was.
    fn fenced(&self, index: usize) -> bool {
        let ballot = self.heads[index].log.quorum().ballot();
        self.copies.iter().filter(|copy| copy.disk().meta().promised > ballot).count() >= 3
    }

    /// How many copies other than `except` have everything that is durable.
    pub fn intact_without(&self, except: usize) -> usize {
        let newest = self.ledger.newest();
        let Some(known) = self.ledger.logs.get(&newest) else { return 0 };
        let intact = |copy: &usize| {
            let disk = self.copies[*copy].disk();
            // Dropped redo is on none.
            let has = |(at, redo): (&u64, &u32)| *at < disk.begin_lsn().0 || disk.redo(*at) == Some(*redo);
            *copy != except
                && !self.hurt.contains(copy)
                && disk.meta().generation == newest
                && known.iter().rev().take(60).all(has)
        };
        (0..6).filter(intact).count()
    }

    /// How many copies other than `except` know whether they have promised anything: one whose disk is new
    /// does not.
    pub fn remembering_without(&self, except: usize) -> usize {
        let remembers = |copy: &usize| *copy != except && self.copies[*copy].disk().meta().generation > 0;
        (0..6).filter(remembers).count()
    }

    /// Whether the surviving daemon has everything, everywhere.
    pub fn is_whole(&self) -> Result<bool, String> {
        let head = &self.heads[0];
        let quorum = head.log.quorum();
        let ballot = quorum.ballot();
        // A daemon that does not know yet that it is fenced may believe all is well.
        let whole = head.alive
            && quorum.is_open()
            && head.reset.is_none()
            && self.copies.iter().all(|copy| copy.disk().meta().promised == ballot)
            && CopyId::all().all(|copy| *quorum.state(copy) == CopyState::Live)
            // What rots is found by a reading back, sooner or later.
            && self.copies.iter().all(|copy| copy.disk().rotten().is_none())
            && CopyId::all().all(|copy| quorum.flushed_lsn(copy) == head.log.queued().lsn);
        if !whole {
            return Ok(false);
        }
        let first = self.copies[0].disk();
        for index in 0..6 {
            let other = self.copies[index].disk();
            if let Some(seals) = &self.seals {
                other.records().try_for_each(|stored| seals.check_opens(stored))?;
            }
            let from = first.begin_lsn().max(other.begin_lsn()).0;
            for at in from..first.vote().end.lsn.max(other.vote().end.lsn).0 {
                let (here, there) = (first.redo(at), other.redo(at));
                if here != there {
                    return Err(format!(
                        "at {at} copy 0 has {here:?} and copy {index} {there:?}, in the end"
                    ));
                }
            }
            let timeline = head.log.durable().timeline;
            if timeline.0 > 1 && other.history(timeline).is_none() {
                return Err(format!("copy {index} has no history of timeline {timeline}, in the end"));
            }
        }
        Ok(true)
    }
}
