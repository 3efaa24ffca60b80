//! Daemons on hosts that follow each other as the region's head: what each keeps on disk of that, and how it
//! votes in the region's name.
//!
//! What the region has promised is one number here: how often a new head has asked the other voters for it. A
//! head that votes by an older one may take back what a newer one was told.

use std::collections::BTreeSet;

use volume::ballot::Ballot;
use volume::copy::keeper::Store;
use volume::log::{Phase, Tenure};
use volume::quorum::{WRITE_QUORUM, still_writes};

use super::{Event, Way, World};

/// What is remembered by whoever opened the volume when another had opened it since.
const LATE: u64 = 0;

/// How long the copies may take to say what they have promised, microseconds.
const ASKED_US: u64 = 30_000;

/// What a host keeps on disk of being the region's head.
#[derive(Debug, Clone, Default)]
pub struct Record {
    writers: BTreeSet<u64>,
    headed: Option<Ballot>,
    /// What it was told when it became the head; none before that.
    memory: Option<u64>,
}

impl Record {
    /// It is about to open the volume; as the daemon notes it.
    pub fn begin(&mut self, writer: u64) -> Tenure {
        let earlier = if self.headed.is_some() { self.writers.clone() } else { BTreeSet::new() };
        self.writers.insert(writer);
        Tenure { earlier, since: self.headed }
    }
}

/// A vote that is on its head's disk, and not given yet.
#[derive(Debug)]
pub struct Vote {
    head: usize,
    ballot: Ballot,
    /// By the newest that there was when it was decided.
    newest: bool,
    promised: Vec<Ballot>,
}

impl World {
    /// The volume is open: what the region has promised is asked, unless it is remembered.
    pub fn become_head(&mut self, index: usize, ballot: Ballot) {
        if !self.tenures {
            return;
        }
        let record = &mut self.heads[index].record;
        record.headed.get_or_insert(ballot);
        if record.memory.is_some() {
            return;
        }
        // It may hear late of its promises: whoever has had four others since is the head, and goes on with
        // what it remembers. This one is told what it is told in vain, and must never vote.
        let shut_out = self.copies.iter().filter(|copy| copy.disk().meta().promised > ballot).count();
        let is_late = shut_out > self.copies.len() - WRITE_QUORUM;
        if !is_late {
            self.memories += 1;
        }
        self.heads[index].record.memory = Some(if is_late { LATE } else { self.memories });
    }

    /// Whether a head takes a copy: one that has forgotten what it had promised only where four others hold
    /// its ballot.
    pub fn admits_new(&self, index: usize, copy: usize) -> bool {
        let log = &self.heads[index].log;
        if log.phase() != Phase::Open || self.copies[copy].disk().meta().promised != Ballot::default() {
            return true;
        }
        let ways =
            (0..6).filter_map(|copy| Some(Way { head: index, copy, link: self.heads[index].links[copy]? }));
        let led = ways.filter(|way| self.leads(*way));
        let promised: Vec<Ballot> = led.map(|way| self.copies[way.copy].disk().meta().promised).collect();
        still_writes(log.quorum().ballot(), &promised)
    }

    /// A head decides a vote, and asks the copies whether it still is the head.
    pub fn begin_vote(&mut self, index: usize) {
        let Some(memory) = self.heads[index].record.memory.filter(|_| self.tenures) else { return };
        if self.heads[index].log.phase() != Phase::Open {
            return;
        }
        let (number, ballot) = (self.number(), self.heads[index].log.quorum().ballot());
        let newest = memory == self.memories;
        self.votes.insert(number, Vote { head: index, ballot, newest, promised: Vec::new() });
        for copy in 0..6 {
            if let Some(link) = self.heads[index].links[copy] {
                let after = self.dice.below(ASKED_US);
                self.agenda.after(after, Event::Ask { vote: number, way: Way { head: index, copy, link } });
            }
        }
        self.agenda.after(ASKED_US, Event::Voted { vote: number });
    }

    /// The copy says what it has promised.
    pub fn ask(&mut self, vote: u64, way: Way) {
        let promised = self.leads(way).then(|| self.copies[way.copy].disk().meta().promised);
        if let (Some(vote), Some(promised)) = (self.votes.get_mut(&vote), promised) {
            vote.promised.push(promised);
        }
    }

    /// The vote is given, if so many copies have said that its head still is that.
    pub fn voted(&mut self, vote: u64) -> Result<(), String> {
        let Some(vote) = self.votes.remove(&vote) else { return Ok(()) };
        if !still_writes(vote.ballot, &vote.promised) {
            return Ok(());
        }
        self.report.votes += 1;
        match vote.newest {
            true => Ok(()),
            false => Err(format!(
                "daemon {} votes by what the region had promised before another one was its head, with ballot {}",
                vote.head, vote.ballot
            )),
        }
    }
}
