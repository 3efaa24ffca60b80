//! The volume: quorum, ballots, recovery, repair and retention, with copies that crash at any write or flush, disks that
//! fail, vanish or rot, links that break, and two writers at once.
//!
//! The redo of the simulation is a row of batches of one byte each; a batch is a number that no other batch has. Checked at
//! every step:
//! - what becomes durable lies on a write quorum of disks, and so does everything before it;
//! - what was durable once stays, at the same LSN, in every later opening; no two writers make different redo durable;
//! - a copy takes nothing from a ballot below the one it has promised;
//! - and in the end, when faults stop, the volume is open and all six copies hold the same.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proto::{Epoch, Lsn, Timeline};
use volume::Durable;
use volume::ballot::Ballot;
use volume::copy::meta::Meta;
use volume::quorum::{Adoption, CopyId, Input, Keep, Output, Quorum, Standing, Vote, WRITE_QUORUM};

use super::{Agenda, Dice};

/// How long faults go on, microseconds of virtual time.
const FAULTS_US: u64 = 20_000_000;

/// How long the volume may take to be whole after them.
const CALM_US: u64 = 60_000_000;

/// Batches that may wait for a quorum.
const IN_FLIGHT: u64 = 4;

/// How a run went.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Report {
    /// Batches made durable.
    pub durable: u64,
    /// Openings of the volume.
    pub openings: u64,
    /// Faults of all kinds.
    pub faults: u64,
}

impl Report {
    /// Adds another run's.
    pub fn add(&mut self, other: &Report) {
        self.durable += other.durable;
        self.openings += other.openings;
        self.faults += other.faults;
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Report { durable, openings, faults } = self;
        write!(f, "{durable} batches durable, {openings} openings, {faults} faults; nothing lost")
    }
}

/// Errors put in on purpose, to show that they are caught.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Bug {
    /// None.
    #[default]
    None,
    /// A copy keeps what the chosen log does not have.
    IgnoresCut,
    /// A copy says flushed before it has flushed.
    FlushedEarly,
    /// A copy takes appends of any ballot.
    TakesAnyBallot,
}

type Redo = u64;

#[derive(Debug, Clone)]
enum Order {
    Promise(Ballot),
    Adopt(Adoption),
    Append { ballot: Ballot, at: u64, redo: Redo },
    DropBefore(u64),
}

#[derive(Debug, Clone)]
enum Said {
    Promised(Ballot, Vote),
    Refused(Ballot),
    Adopted(Ballot, u64, u64),
    Flushed(u64),
    Failed,
}

#[derive(Debug)]
enum Event {
    /// The next order of this link arrives at the copy.
    Order {
        head: usize,
        link: u64,
        copy: usize,
        order: Order,
    },
    /// The copy flushes what it has written.
    Flush {
        copy: usize,
        life: u64,
    },
    Said {
        head: usize,
        link: u64,
        copy: usize,
        said: Said,
    },
    Reach {
        head: usize,
        life: u64,
        copy: usize,
    },
    Fill {
        head: usize,
        link: u64,
        copy: usize,
    },
    Append {
        head: usize,
        life: u64,
    },
    Tick {
        head: usize,
        life: u64,
    },
    StartHead(usize),
    StartCopy(usize),
    Fault,
}

/// A copy's process and its disk.
#[derive(Debug, Default)]
struct Copy {
    alive: bool,
    life: u64,
    meta: Meta,
    /// What is on disk for certain, from `begin` on.
    disk: BTreeMap<u64, Redo>,
    begin: u64,
    /// Written and not flushed, with who waits for the flush.
    written: Vec<(u64, Redo)>,
    asker: Option<(usize, u64)>,
    failed: bool,
}

impl Copy {
    fn end(&self) -> u64 {
        self.disk.keys().next_back().map_or(self.begin, |last| last + 1)
    }

    fn written_end(&self) -> u64 {
        self.written.last().map_or(self.end(), |(at, _)| at + 1)
    }

    fn vote(&self) -> Vote {
        let at = |lsn: u64| Durable { lsn: Lsn(lsn), timeline: Timeline(1), epoch: Epoch(1) };
        Vote {
            generation: self.meta.generation,
            ballots: self.meta.ballots.clone(),
            begin: at(self.begin),
            end: at(self.end()),
            proven_lsn: Lsn::ZERO,
        }
    }
}

/// A daemon that opens the volume.
#[derive(Debug)]
struct Head {
    alive: bool,
    life: u64,
    quorum: Quorum,
    chosen: bool,
    donor: Option<usize>,
    /// The way to each copy, while there is one.
    links: [Option<u64>; 6],
    /// What was appended in this opening and found by it.
    log: BTreeMap<u64, Redo>,
    end: u64,
    begin: u64,
    filling: BTreeSet<usize>,
}

struct World {
    agenda: Agenda<Event>,
    dice: Dice,
    bug: Bug,
    copies: Vec<Copy>,
    heads: Vec<Head>,
    next_link: u64,
    next_redo: Redo,
    /// When the last message on each link arrives: links keep their order.
    arrivals: BTreeMap<(u64, bool), u64>,
    /// Everything that ever was durable.
    durable: BTreeMap<u64, Redo>,
    /// Copies whose disk was lost or damaged and that are not whole again.
    hurt: BTreeSet<usize>,
    calm: bool,
    report: Report,
    trace: VecDeque<String>,
    verbose: bool,
}

/// Runs one seed.
///
/// # Errors
/// What was violated, with the last things that happened.
pub fn run(seed: u64, bug: Bug, verbose: bool) -> Result<Report, String> {
    let mut world = World::new(seed, bug, verbose);
    world.run().map_err(|what| {
        let trace: Vec<String> = world.trace.iter().cloned().collect();
        format!("seed {seed}: {what}\n{}", trace.join("\n"))
    })
}

impl World {
    fn new(seed: u64, bug: Bug, verbose: bool) -> World {
        let head = || Head {
            alive: false,
            life: 0,
            quorum: Quorum::new(Ballot::default()),
            chosen: false,
            donor: None,
            links: [None; 6],
            log: BTreeMap::new(),
            end: 0,
            begin: 0,
            filling: BTreeSet::new(),
        };
        World {
            agenda: Agenda::new(),
            dice: Dice::new(seed),
            bug,
            copies: (0..6).map(|_| Copy { alive: true, ..Copy::default() }).collect(),
            heads: vec![head(), head()],
            next_link: 1,
            next_redo: 1,
            arrivals: BTreeMap::new(),
            durable: BTreeMap::new(),
            hurt: BTreeSet::new(),
            calm: false,
            report: Report::default(),
            trace: VecDeque::new(),
            verbose,
        }
    }

    fn note(&mut self, what: impl FnOnce() -> String) {
        let line = format!("{:>10} us  {}", self.agenda.now_us, what());
        if self.verbose {
            println!("{line}");
        }
        self.trace.push_back(line);
        if self.trace.len() > 60 {
            self.trace.pop_front();
        }
    }

    fn run(&mut self) -> Result<Report, String> {
        self.agenda.after(0, Event::StartHead(0));
        self.agenda.after(300_000, Event::Fault);
        while let Some(event) = self.agenda.next() {
            if !self.calm && self.agenda.now_us > FAULTS_US {
                self.calm_down();
            }
            if self.agenda.now_us > FAULTS_US + CALM_US {
                return Err(format!(
                    "not whole {} s after the last fault: {}",
                    CALM_US / 1_000_000,
                    self.state()
                ));
            }
            self.happen(event)?;
            if self.calm && self.is_whole()? {
                return Ok(self.report.clone());
            }
        }
        Err("nothing is left to happen".into())
    }

    /// No more faults: every copy runs, and one daemon.
    fn calm_down(&mut self) {
        self.note(|| "faults end".into());
        self.calm = true;
        self.kill_head(1);
        for copy in 0..6 {
            if !self.copies[copy].alive {
                self.agenda.after(1000, Event::StartCopy(copy));
            }
        }
        if !self.heads[0].alive {
            self.agenda.after(1000, Event::StartHead(0));
        }
    }

    /// Whether the surviving daemon has everything, everywhere.
    fn is_whole(&mut self) -> Result<bool, String> {
        let head = &self.heads[0];
        let ballot = head.quorum.ballot();
        // A daemon that does not know yet that it is fenced may believe all is well.
        let whole = head.alive
            && (0..6).all(|copy| self.promised(copy) == ballot)
            && head.quorum.is_open()
            && CopyId::all().all(|copy| *head.quorum.standing(copy) == Standing::Live)
            && CopyId::all().all(|copy| head.quorum.flushed_lsn(copy) == Lsn(head.end));
        if !whole {
            return Ok(false);
        }
        for copy in 1..6 {
            let (first, other) = (&self.copies[0], &self.copies[copy]);
            let from = first.begin.max(other.begin);
            if first.disk.range(from..).ne(other.disk.range(from..)) {
                let differs = |at: &u64| first.disk.get(at) != other.disk.get(at);
                let at = (from..first.end().max(other.end())).find(differs).unwrap_or(0);
                let (here, there) = (first.disk.get(&at), other.disk.get(&at));
                return Err(format!(
                    "at {at}, of {from} to {} and {}, copy 0 has {here:?} and copy {copy} {there:?}, in the end",
                    first.end(),
                    other.end()
                ));
            }
        }
        Ok(true)
    }

    fn state(&self) -> String {
        let head = &self.heads[0];
        let standings: Vec<String> = CopyId::all()
            .map(|copy| format!("{:?} {}", head.quorum.standing(copy), head.quorum.flushed_lsn(copy).0))
            .collect();
        format!("alive {}, open {}, end {}, {standings:?}", head.alive, head.quorum.is_open(), head.end)
    }

    fn happen(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Fault => self.fault(),
            Event::StartHead(head) => self.start_head(head),
            Event::StartCopy(copy) => self.start_copy(copy),
            Event::Reach { head, life, copy } => self.reach(head, life, copy)?,
            Event::Order { head, link, copy, order } => self.order(head, link, copy, order)?,
            Event::Flush { copy, life } => self.flush(copy, life),
            Event::Said { head, link, copy, said } => self.said(head, link, copy, said)?,
            Event::Fill { head, link, copy } => self.fill(head, link, copy),
            Event::Append { head, life } => self.append(head, life),
            Event::Tick { head, life } => self.tick(head, life)?,
        }
        Ok(())
    }

    // The daemons.

    fn start_head(&mut self, index: usize) {
        if self.heads[index].alive || self.calm && index != 0 {
            return;
        }
        self.note(|| format!("daemon {index} starts"));
        let writer = self.dice.below(u64::MAX);
        let head = &mut self.heads[index];
        head.alive = true;
        head.life += 1;
        head.quorum = Quorum::new(Ballot::default().next(Epoch(1), writer));
        (head.chosen, head.donor, head.links) = (false, None, [None; 6]);
        head.log.clear();
        head.filling.clear();
        let life = head.life;
        for copy in 0..6 {
            let after = self.dice.below(20_000);
            self.agenda.after(after, Event::Reach { head: index, life, copy });
        }
        self.agenda.after(1000, Event::Append { head: index, life });
        self.agenda.after(1_000_000, Event::Tick { head: index, life });
    }

    /// A copy that was promised to a writer who did not take over is had back.
    fn tick(&mut self, index: usize, life: u64) -> Result<(), String> {
        if !self.heads[index].alive || self.heads[index].life != life {
            return Ok(());
        }
        let after = 500_000 + self.dice.below(1_000_000);
        self.agenda.after(after, Event::Tick { head: index, life });
        match self.heads[index].quorum.outbid() {
            Some(higher) => self.open_anew(index, higher),
            None => Ok(()),
        }
    }

    fn kill_head(&mut self, index: usize) {
        let head = &mut self.heads[index];
        head.alive = false;
        head.links = [None; 6];
    }

    /// A way to a copy is made, or tried again later.
    fn reach(&mut self, index: usize, life: u64, copy: usize) -> Result<(), String> {
        if !self.heads[index].alive
            || self.heads[index].life != life
            || self.heads[index].links[copy].is_some()
        {
            return Ok(());
        }
        if !self.copies[copy].alive || self.copies[copy].failed {
            let after = 10_000 + self.dice.below(50_000);
            self.agenda.after(after, Event::Reach { head: index, life, copy });
            return Ok(());
        }
        self.next_link += 1;
        self.heads[index].links[copy] = Some(self.next_link);
        let promised = self.promised(copy);
        let head = &mut self.heads[index];
        if promised >= head.quorum.ballot() && !head.chosen {
            self.open_anew(index, promised)
        } else {
            let outputs = head.quorum.handle(Input::Reached(id(copy)));
            self.carry_out(index, outputs)
        }
    }

    fn promised(&self, copy: usize) -> Ballot {
        self.copies[copy].meta.promised
    }

    fn open_anew(&mut self, index: usize, above: Ballot) -> Result<(), String> {
        let writer = self.heads[index].quorum.ballot().writer;
        let head = &mut self.heads[index];
        head.quorum = Quorum::new(above.next(Epoch(1), writer));
        (head.chosen, head.donor) = (false, None);
        head.log.clear();
        let reached: Vec<usize> = (0..6).filter(|copy| head.links[*copy].is_some()).collect();
        for copy in reached {
            let outputs = self.heads[index].quorum.handle(Input::Reached(id(copy)));
            self.carry_out(index, outputs)?;
        }
        Ok(())
    }

    fn lose(&mut self, index: usize, copy: usize) -> Result<(), String> {
        let head = &mut self.heads[index];
        if head.links[copy].take().is_none() {
            return Ok(());
        }
        head.filling.remove(&copy);
        let outputs = head.quorum.handle(Input::Lost(id(copy)));
        let life = head.life;
        self.carry_out(index, outputs)?;
        let after = 10_000 + self.dice.below(100_000);
        self.agenda.after(after, Event::Reach { head: index, life, copy });
        let head = &self.heads[index];
        if head.donor == Some(copy) && !head.quorum.is_open() {
            let ballot = head.quorum.ballot();
            return self.open_anew(index, ballot);
        }
        Ok(())
    }

    fn send(&mut self, index: usize, copy: usize, order: Order) {
        let Some(link) = self.heads[index].links[copy] else { return };
        let at = self.arrival(link, true);
        if self.dice.one_in(50) {
            self.agenda.at(at, Event::Order { head: index, link, copy, order: order.clone() });
        }
        self.agenda.at(at, Event::Order { head: index, link, copy, order });
    }

    /// When the next message on a link arrives: after a while, and after the one before it.
    fn arrival(&mut self, link: u64, to_copy: bool) -> u64 {
        let slow = if self.dice.one_in(40) { 200_000 } else { 2_000 };
        let at = self.agenda.now_us + 50 + self.dice.below(slow);
        let last = self.arrivals.entry((link, to_copy)).or_default();
        *last = at.max(*last);
        *last
    }

    fn carry_out(&mut self, index: usize, outputs: Vec<Output>) -> Result<(), String> {
        for output in outputs {
            match output {
                Output::Ask(copy, ballot) => self.send(index, place(copy), Order::Promise(ballot)),
                Output::Chosen(donor, end) => {
                    self.note(|| format!("daemon {index} chose the log of {donor} up to {}", end.lsn.0));
                    let donor = place(donor);
                    let log = self.copies[donor].disk.clone();
                    let begin = self.copies[donor].begin;
                    let head = &mut self.heads[index];
                    (head.chosen, head.donor, head.end, head.begin) = (true, Some(donor), end.lsn.0, begin);
                    head.log = log;
                    self.report.openings += 1;
                }
                Output::Adopt(copy, adoption) => self.send(index, place(copy), Order::Adopt(adoption)),
                Output::Fill(copy, _) => {
                    let copy = place(copy);
                    if let Some(link) = self.heads[index].links[copy]
                        && self.heads[index].filling.insert(copy)
                    {
                        self.agenda.after(100, Event::Fill { head: index, link, copy });
                    }
                }
                Output::Durable(lsn) => self.check_durable(index, lsn.0)?,
                Output::Outbid(higher) => {
                    if higher >= self.heads[index].quorum.ballot() {
                        return self.open_anew(index, higher);
                    }
                }
                Output::Deposed(ballot) => {
                    self.note(|| format!("daemon {index} is deposed by {ballot}"));
                    self.kill_head(index);
                    self.agenda.after(500_000, Event::StartHead(index));
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// The heart of it: what a daemon calls durable lies on a write quorum, and is what ever was durable.
    fn check_durable(&mut self, index: usize, end: u64) -> Result<(), String> {
        let head = &self.heads[index];
        // A copy whose disk was lost since it flushed is no fault of the quorum's.
        let needed = WRITE_QUORUM.saturating_sub(self.hurt.len());
        for at in head.begin..end {
            let Some(redo) = head.log.get(&at) else {
                if self.durable.contains_key(&at) {
                    return Err(format!(
                        "daemon {index} calls {end} durable and does not know what is at {at}"
                    ));
                }
                continue;
            };
            if let Some(was) = self.durable.get(&at)
                && was != redo
            {
                return Err(format!("at {at} {was} was durable, and daemon {index} says {redo}"));
            }
            let holders =
                self.copies.iter().filter(|copy| copy.begin > at || copy.disk.get(&at) == Some(redo)).count();
            if holders < needed {
                return Err(format!(
                    "daemon {index} calls {redo} at {at} durable, and {holders} disks have it"
                ));
            }
        }
        let new: Vec<(u64, Redo)> = head.log.range(head.begin..end).map(|(at, redo)| (*at, *redo)).collect();
        for (at, redo) in new {
            if self.durable.insert(at, redo).is_none() {
                self.report.durable += 1;
            }
        }
        if let Some((last, _)) = self.durable.iter().next_back()
            && *last >= end
            && self.heads[index].quorum.durable_lsn() == Lsn(end)
            && !self.fenced(index)
        {
            return Err(format!("daemon {index} opened with {end}, and {last} was durable"));
        }
        Ok(())
    }

    /// Whether another daemon has a write quorum's promises above this one's ballot: it may hear late what was.
    fn fenced(&self, index: usize) -> bool {
        let ballot = self.heads[index].quorum.ballot();
        (0..6).filter(|copy| self.promised(*copy) > ballot).count() >= 3
    }

    fn append(&mut self, index: usize, life: u64) {
        if !self.heads[index].alive || self.heads[index].life != life {
            return;
        }
        let head = &mut self.heads[index];
        let room = head.end - head.quorum.durable_lsn().0.min(head.end) < IN_FLIGHT;
        if head.quorum.is_open() && room {
            let redo = self.next_redo;
            self.next_redo += 1;
            let at = head.end;
            head.log.insert(at, redo);
            head.end += 1;
            head.quorum.append(Lsn(head.end));
            let ballot = head.quorum.ballot();
            let live: Vec<usize> =
                (0..6).filter(|copy| *head.quorum.standing(id(*copy)) == Standing::Live).collect();
            for copy in live {
                self.send(index, copy, Order::Append { ballot, at, redo });
            }
            if self.dice.one_in(100) {
                self.retain(index);
            }
            if self.dice.one_in(200) {
                let copy = place(CopyId(u8::try_from(self.dice.below(6)).unwrap_or(0)));
                let outputs = self.heads[index].quorum.detach(id(copy));
                // The result is only ever a fill.
                let _ = self.carry_out(index, outputs);
            }
        }
        let after = 2_000 + self.dice.below(20_000);
        if !self.calm || self.agenda.now_us < FAULTS_US + CALM_US / 4 {
            self.agenda.after(after, Event::Append { head: index, life });
        }
    }

    fn retain(&mut self, index: usize) {
        let head = &mut self.heads[index];
        let horizon = head.quorum.durable_lsn().0.saturating_sub(20);
        if horizon <= head.begin {
            return;
        }
        head.begin = horizon;
        head.quorum.retain(Lsn(horizon));
        for copy in 0..6 {
            self.send(index, copy, Order::DropBefore(horizon));
        }
    }

    /// As the daemon fills a copy: from a peer's disk, a few batches at a time, and from memory at the end.
    fn fill(&mut self, index: usize, link: u64, copy: usize) {
        let head = &mut self.heads[index];
        if !head.alive || head.links[copy] != Some(link) {
            return;
        }
        if *head.quorum.standing(id(copy)) != Standing::Filling {
            head.filling.remove(&copy);
            return;
        }
        let (from, ballot) = (head.quorum.flushed_lsn(id(copy)).0, head.quorum.ballot());
        if from < head.begin {
            head.filling.remove(&copy);
            let outputs = head.quorum.handle(Input::Reached(id(copy)));
            let _ = self.carry_out(index, outputs);
            return;
        }
        if from + IN_FLIGHT >= head.end && head.log.range(from..).count() as u64 == head.end - from {
            let missing: Vec<(u64, Redo)> = head.log.range(from..).map(|(at, redo)| (*at, *redo)).collect();
            if head.quorum.attach(id(copy), Lsn(head.end)) {
                head.filling.remove(&copy);
                self.hurt.remove(&copy);
                for (at, redo) in missing {
                    self.send(index, copy, Order::Append { ballot, at, redo });
                }
                return;
            }
        }
        let source = (0..6).find(|peer| {
            *peer != copy
                && head.quorum.is_adopted(id(*peer))
                && head.quorum.flushed_lsn(id(*peer)).0 > from
                && self.copies[*peer].disk.contains_key(&from)
        });
        if let Some(source) = source {
            // A read sees what the copy said it has flushed, which is the chosen log.
            let until = head.quorum.flushed_lsn(id(source)).0.min(from + 8);
            let read: Vec<(u64, Redo)> =
                self.copies[source].disk.range(from..until).map(|(at, redo)| (*at, *redo)).collect();
            for (at, redo) in read {
                self.send(index, copy, Order::Append { ballot, at, redo });
            }
        }
        self.agenda.after(5_000, Event::Fill { head: index, link, copy });
    }

    fn said(&mut self, index: usize, link: u64, copy: usize, said: Said) -> Result<(), String> {
        if !self.heads[index].alive || self.heads[index].links[copy] != Some(link) {
            return Ok(());
        }
        let from = id(copy);
        let failed = matches!(said, Said::Failed);
        let input = match said {
            Said::Promised(ballot, vote) => Input::Promised(from, ballot, vote),
            Said::Refused(ballot) => Input::Refused(from, ballot),
            Said::Adopted(ballot, generation, lsn) => Input::Adopted(from, ballot, generation, Lsn(lsn)),
            Said::Flushed(lsn) => Input::Flushed(from, Lsn(lsn)),
            Said::Failed => Input::Failed(from, "simulated".into()),
        };
        let outputs = self.heads[index].quorum.handle(input);
        self.carry_out(index, outputs)?;
        if failed { self.lose(index, copy) } else { Ok(()) }
    }

    // The copies.

    fn say(&mut self, head: usize, link: u64, copy: usize, said: Said) {
        let at = self.arrival(link, false);
        if self.dice.one_in(50) {
            self.agenda.at(at, Event::Said { head, link, copy, said: said.clone() });
        }
        self.agenda.at(at, Event::Said { head, link, copy, said });
    }

    fn order(&mut self, head: usize, link: u64, copy: usize, order: Order) -> Result<(), String> {
        let on = &mut self.copies[copy];
        if !on.alive || on.failed || self.heads[head].links[copy] != Some(link) {
            return Ok(());
        }
        let said = match order {
            Order::Promise(ballot) => {
                // What is queued before is flushed before: one thread does both.
                self.flush_now(copy);
                let on = &mut self.copies[copy];
                match on.meta.promise(ballot) {
                    Ok(meta) => {
                        on.meta = meta;
                        Said::Promised(ballot, on.vote())
                    }
                    Err(higher) => Said::Refused(higher),
                }
            }
            Order::Adopt(adoption) => {
                self.flush_now(copy);
                let on = &mut self.copies[copy];
                match on.meta.adopt(&adoption) {
                    Err(higher) => Said::Refused(higher),
                    Ok(meta) => {
                        match adoption.keep {
                            Keep::Before(_) if self.bug == Bug::IgnoresCut => {}
                            Keep::Before(lsn) => drop(on.disk.split_off(&lsn.0)),
                            Keep::Nothing(begin) => {
                                on.disk.clear();
                                on.begin = begin.lsn.0;
                            }
                        }
                        on.meta = meta;
                        Said::Adopted(adoption.ballot, adoption.generation, on.end())
                    }
                }
            }
            Order::Append { ballot, at, redo } => {
                let promised = on.meta.promised;
                if ballot != promised && self.bug != Bug::TakesAnyBallot {
                    self.say(head, link, copy, Said::Refused(promised));
                    return Ok(());
                }
                if at < on.written_end() {
                    return Ok(());
                }
                if at > on.written_end() {
                    on.failed = true;
                    self.note(|| format!("copy {copy}: {at} comes, and something before it is missing"));
                    let after = 100_000 + self.dice.below(100_000);
                    self.agenda.after(after, Event::StartCopy(copy));
                    Said::Failed
                } else {
                    on.written.push((at, redo));
                    on.asker = Some((head, link));
                    let (life, early) = (on.life, self.bug == Bug::FlushedEarly);
                    let after = 100 + self.dice.below(3_000);
                    self.agenda.after(after, Event::Flush { copy, life });
                    if !early {
                        return Ok(());
                    }
                    Said::Flushed(at + 1)
                }
            }
            Order::DropBefore(lsn) => {
                if lsn > on.begin && lsn <= on.end() {
                    on.disk = on.disk.split_off(&lsn);
                    on.begin = lsn;
                }
                return Ok(());
            }
        };
        self.say(head, link, copy, said);
        Ok(())
    }

    fn flush(&mut self, copy: usize, life: u64) {
        if self.copies[copy].life != life || !self.copies[copy].alive || self.copies[copy].failed {
            return;
        }
        if !self.calm && self.dice.one_in(3000) {
            // The flush fails: nothing of it counts, and a part of it may be on disk.
            self.note(|| format!("copy {copy}: a flush fails"));
            self.report.faults += 1;
            self.tear(copy);
            self.copies[copy].failed = true;
            if let Some((head, link)) = self.copies[copy].asker {
                self.say(head, link, copy, Said::Failed);
            }
            let after = 100_000 + self.dice.below(100_000);
            self.agenda.after(after, Event::StartCopy(copy));
            return;
        }
        self.flush_now(copy);
    }

    fn flush_now(&mut self, copy: usize) {
        let on = &mut self.copies[copy];
        if on.written.is_empty() {
            return;
        }
        let written = std::mem::take(&mut on.written);
        on.disk.extend(written);
        let end = on.end();
        if let Some((head, link)) = on.asker {
            self.say(head, link, copy, Said::Flushed(end));
        }
    }

    /// A crash in the middle of a write leaves a part of it.
    fn tear(&mut self, copy: usize) {
        let on = &mut self.copies[copy];
        let kept = self.dice.below(on.written.len() as u64 + 1);
        let written = std::mem::take(&mut on.written);
        on.disk.extend(written.into_iter().take(usize::try_from(kept).unwrap_or(0)));
    }

    fn start_copy(&mut self, copy: usize) {
        let on = &mut self.copies[copy];
        if on.alive && !on.failed {
            return;
        }
        let failed = on.failed;
        (on.alive, on.failed) = (true, false);
        on.life += 1;
        on.written.clear();
        if failed {
            // A zone whose copy failed opens it again and connects anew: whoever had a way to it has to make another.
            for head in 0..2 {
                let _ = self.lose(head, copy);
            }
        }
        self.note(|| format!("copy {copy} starts"));
    }

    fn kill_copy(&mut self, copy: usize) {
        self.tear(copy);
        let on = &mut self.copies[copy];
        on.alive = false;
        on.life += 1;
        for head in 0..2 {
            // Both ends notice, sooner or later; here at once. A violation here would have shown before.
            let _ = self.lose(head, copy);
        }
    }

    // Faults.

    fn fault(&mut self) {
        if self.calm {
            return;
        }
        self.report.faults += 1;
        let copy = usize::try_from(self.dice.below(6)).unwrap_or(0);
        let back = 50_000 + self.dice.below(2_000_000);
        match self.dice.below(12) {
            0..=2 if self.copies[copy].alive => {
                self.note(|| format!("copy {copy} is killed"));
                self.kill_copy(copy);
                self.agenda.after(back, Event::StartCopy(copy));
            }
            3 => {
                let zone = copy / 2 * 2;
                self.note(|| format!("the zone of copy {copy} is killed"));
                for copy in [zone, zone + 1] {
                    if self.copies[copy].alive {
                        self.kill_copy(copy);
                        self.agenda.after(back, Event::StartCopy(copy));
                    }
                }
            }
            4 | 5 => {
                let head = usize::try_from(self.dice.below(2)).unwrap_or(0);
                if self.heads[head].alive {
                    self.note(|| format!("daemon {head} is killed"));
                    self.kill_head(head);
                    self.agenda.after(back / 4, Event::StartHead(head));
                }
            }
            6 => {
                // The other daemon starts while the first one runs.
                let head = usize::try_from(self.dice.below(2)).unwrap_or(0);
                self.agenda.after(0, Event::StartHead(head));
            }
            7 | 8 => {
                let head = usize::try_from(self.dice.below(2)).unwrap_or(0);
                self.note(|| format!("the link of daemon {head} to copy {copy} breaks"));
                let _ = self.lose(head, copy);
            }
            9 if self.hurt.len() < 2 && self.all_settled() => {
                self.note(|| format!("the disk of copy {copy} is lost"));
                self.hurt.insert(copy);
                self.kill_copy(copy);
                let life = self.copies[copy].life;
                self.copies[copy] = Copy { life, ..Copy::default() };
                self.agenda.after(back, Event::StartCopy(copy));
            }
            10 if self.hurt.is_empty() && self.all_settled() => {
                // What rotted is cut off when the copy is opened again.
                self.note(|| format!("the newest redo of copy {copy} rots"));
                self.hurt.insert(copy);
                self.kill_copy(copy);
                let on = &mut self.copies[copy];
                let keep = on.end().saturating_sub(1 + self.dice.below(10)).max(on.begin);
                drop(on.disk.split_off(&keep));
                self.agenda.after(back, Event::StartCopy(copy));
            }
            _ => {}
        }
        let after = 20_000 + self.dice.below(600_000);
        self.agenda.after(after, Event::Fault);
    }

    /// Disks are lost only while everything else is well: two at once, as Aurora's promise says, not three.
    fn all_settled(&self) -> bool {
        self.heads.iter().any(|head| {
            head.alive
                && head.quorum.is_open()
                && CopyId::all().filter(|copy| *head.quorum.standing(*copy) == Standing::Live).count()
                    + self.hurt.len()
                    >= 6
        })
    }
}

fn id(copy: usize) -> CopyId {
    CopyId(u8::try_from(copy).unwrap_or(0))
}

fn place(copy: CopyId) -> usize {
    usize::from(copy.0)
}
