//! The volume: log, quorum and copies, which are the daemon's own lines, over modelled disks and links. Power
//! goes in the middle of a write, flushes fail, disks vanish and rot, zones are away for long, links break,
//! messages come late and twice, the log begins anew, timelines fork, two daemons write at once, and the copy
//! whose log was just chosen is hit.
//!
//! The redo of the simulation is a row of batches of one byte each; a batch has a number that no other has.
//! Checked:
//! - what becomes durable lies on a write quorum of disks, and so does everything before it;
//! - what was durable once stays, at the same LSN, in every later opening, until a reset; no two writers make
//!   different redo durable, and the log before a reset never comes back once the reset is done;
//! - a copy takes nothing from a ballot below the one it has promised;
//! - where redo is sealed, as it is in every second seed: no nonce is used for two records, and every record
//!   of every disk opens in its place, whoever sealed it, also after the region's key has turned over;
//! - in every third seed the two daemons are on hosts that follow each other as the region's head: one votes
//!   by what it remembers, once the copies have said that it still is the head, only as long as no other one
//!   has asked what the region has promised;
//! - a volume that is open knows the history of its redo's timeline;
//! - and whenever faults stop, between bouts of them and in the end, the volume comes to be open, and all
//!   six copies to hold the same.

mod checks;
mod copies;
mod daemons;
mod disk;
mod faults;
mod seals;
mod tenures;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use proto::{Epoch, Lsn, Timeline, TimelineHistory};
use tokio::sync::oneshot;
use volume::ballot::Ballot;
use volume::copy::keeper::{Keeper, Task};
use volume::copy::{Contents, Event as Said, Order, Put, Stored};
use volume::log::{Log, LogOptions, Tenure};
pub use volume::planted::Bug;
use volume::quorum::{CopyId, Writer};
use volume::retention::Policy;
use volume::seal::Sealer;
use volume::{Durable, VolumeError};

use self::checks::Ledger;
use self::disk::Disk;
use self::seals::Seals;
use self::tenures::{Record, Vote};
use super::{Agenda, Dice};

/// How long faults go on, microseconds of virtual time, all bouts of them together.
const FAULTS_US: u64 = 20_000_000;

/// Into how many bouts the faults of a seed are divided at most, with calm after each.
const BOUTS_MAX: u64 = 4;

/// How long the volume may take to be whole after a bout of faults.
const CALM_US: u64 = 60_000_000;

/// For how long of that appends go on.
const CALM_APPENDS_US: u64 = 2_000_000;

/// How a run went.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Report {
    /// Batches made durable.
    pub durable: u64,
    /// Openings of the volume.
    pub openings: u64,
    /// Resets begun.
    pub resets: u64,
    /// Timelines begun.
    pub timelines: u64,
    /// Votes that a head gave.
    pub votes: u64,
    /// Faults of all kinds.
    pub faults: u64,
}

impl Report {
    /// Adds another run's.
    pub fn add(&mut self, other: &Report) {
        self.durable += other.durable;
        self.openings += other.openings;
        self.resets += other.resets;
        self.timelines += other.timelines;
        self.votes += other.votes;
        self.faults += other.faults;
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Report { durable, openings, resets, timelines, votes, faults } = self;
        write!(
            f,
            "{durable} batches durable, {openings} openings, {resets} resets, {timelines} timelines, {votes} votes, {faults} faults; nothing lost"
        )
    }
}

/// What copies said and the world has not taken up: to which daemon, over which link, which copy, what.
#[derive(Debug, Clone, Default)]
struct Spoken(Arc<Mutex<SpokenState>>);

#[derive(Debug, Default)]
struct SpokenState {
    said: Vec<(usize, u64, usize, Said)>,
    /// The copy that works has no power: nothing that it says now leaves it.
    silent: bool,
}

impl Spoken {
    fn with<T>(&self, of: impl FnOnce(&mut SpokenState) -> T) -> T {
        of(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn silence(&self) {
        self.with(|state| state.silent = true);
    }
}

#[derive(Debug)]
enum Event {
    /// The next order of this link arrives at the copy.
    Order {
        way: Way,
        order: Order,
    },
    /// The copy does what is queued.
    Work {
        copy: usize,
        life: u64,
    },
    /// What a copy said arrives at the daemon.
    Said {
        way: Way,
        said: Said,
    },
    /// The daemon notices that the link is gone.
    Lost {
        way: Way,
    },
    /// The daemon makes a way to the copy.
    Reach {
        head: usize,
        life: u64,
        copy: usize,
    },
    /// The copy is asked what it holds.
    Inspect {
        way: Way,
        ballot: Ballot,
    },
    /// What the copy holds, and what of its redo: the checks want to know.
    Inspected {
        head: usize,
        life: u64,
        copy: usize,
        ballot: Ballot,
        found: Option<(Contents, BTreeMap<u64, u32>)>,
    },
    /// A copy's filling goes on.
    Fill {
        fill: Fill,
        until: Option<Lsn>,
    },
    /// What a copy lacks is read from a peer.
    Bring {
        fill: Fill,
        writer: Writer,
        from_lsn: Lsn,
        source: Way,
        history: Timeline,
    },
    /// A peer's segment arrives at the copy.
    Put {
        fill: Fill,
        way: Way,
        segments: VecDeque<(Put, Vec<Stored>)>,
        end_lsn: Lsn,
    },
    /// A copy is read back by the daemon.
    Scrub {
        way: Way,
    },
    Append {
        head: usize,
        life: u64,
    },
    Tick {
        head: usize,
        life: u64,
    },
    /// The copy is asked what it has promised, for a vote.
    Ask {
        vote: u64,
        way: Way,
    },
    /// A vote is given, or is not.
    Voted {
        vote: u64,
    },
    StartHead(usize),
    StartCopy(usize),
    /// A zone has been away for a while.
    WorstHour(usize),
    /// A log was chosen a moment ago, that of this copy.
    HitDonor(usize),
    Fault,
}

/// One link of a daemon to a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Way {
    head: usize,
    copy: usize,
    link: u64,
}

/// One filling of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Fill {
    head: usize,
    copy: usize,
    number: u64,
}

/// A segment on its way into a copy, and what comes after it.
struct Putting {
    fill: Fill,
    way: Way,
    rest: VecDeque<(Put, Vec<Stored>)>,
    end_lsn: Lsn,
    done: oneshot::Receiver<Result<(), VolumeError>>,
}

/// A copy's process and its disk.
struct Copy {
    alive: bool,
    life: u64,
    /// None only while it is being opened again.
    keeper: Option<Keeper<Disk>>,
    queue: Vec<Task<Vec<Stored>>>,
    putting: Vec<Putting>,
    /// Until then it is slow.
    slow_until_us: u64,
    /// Its disk does not answer before this.
    hung_until_us: u64,
    /// The highest ballot that it said it has promised.
    said_promise: Ballot,
}

impl Copy {
    fn new(seed: u64, spoken: &Spoken) -> Copy {
        Copy {
            alive: true,
            life: 0,
            keeper: Some(Keeper::new(CopyId(0), Disk::new(seed, spoken.clone()))),
            queue: Vec::new(),
            putting: Vec::new(),
            slow_until_us: 0,
            hung_until_us: 0,
            said_promise: Ballot::default(),
        }
    }

    fn keeper(&mut self) -> &mut Keeper<Disk> {
        self.keeper.as_mut().unwrap_or_else(|| unreachable!("a copy has a keeper"))
    }

    fn disk(&self) -> &Disk {
        self.keeper.as_ref().map_or_else(|| unreachable!("a copy has a keeper"), Keeper::store)
    }

    fn has_failed(&self) -> bool {
        self.keeper.as_ref().is_some_and(Keeper::has_failed)
    }

    /// The process ends, and begins when it is started.
    fn close(&mut self, power: bool) {
        if let Some(keeper) = self.keeper.take() {
            let mut disk = keeper.into_store();
            disk.close(power);
            self.keeper = Some(Keeper::new(CopyId(0), disk));
        }
        self.queue.clear();
        self.putting.clear();
        self.life += 1;
    }
}

/// A daemon that opens the volume.
struct Head {
    alive: bool,
    life: u64,
    log: Log,
    /// The way to each copy, while there is one.
    links: [Option<u64>; 6],
    /// The filling of each copy that is not over.
    fills: [Option<u64>; 6],
    /// What the log holds, for the checks: what was found, and what was appended.
    content: BTreeMap<u64, u32>,
    /// How far it was checked.
    checked: Durable,
    /// The reset that is not done, as the volume repeats it.
    reset: Option<(u64, Durable)>,
    /// What its host keeps on disk of being the region's head.
    record: Record,
}

struct World {
    agenda: Agenda<Event>,
    dice: Dice,
    spoken: Spoken,
    copies: Vec<Copy>,
    heads: Vec<Head>,
    next_number: u64,
    next_redo: u32,
    /// When the last message on each link arrives: links keep their order.
    arrivals: BTreeMap<(u64, bool), u64>,
    /// The life of the copy that a link leads to.
    lives: BTreeMap<u64, u64>,
    ledger: Ledger,
    /// What is sealed, and by whom; in every second seed.
    seals: Option<Seals>,
    /// Copies whose disk was lost or damaged and that are not whole again.
    hurt: BTreeSet<usize>,
    /// Faults pause, or are over.
    calm: bool,
    /// When the bout of faults began, or the calm.
    turned_us: u64,
    /// How many bouts of faults there are.
    bouts: u64,
    /// How many of them are over.
    bouts_over: u64,
    /// The daemons are on hosts that follow each other as the region's head.
    tenures: bool,
    /// How often a head that had just become that has asked what the region has promised.
    memories: u64,
    votes: BTreeMap<u64, Vote>,
    report: Report,
    trace: VecDeque<String>,
    verbose: bool,
}

/// Runs one seed, with a bug planted in the daemon's own lines.
///
/// # Errors
/// What was violated, with the last things that happened.
pub fn run(seed: u64, bug: Bug, verbose: bool) -> Result<Report, String> {
    let _planted = volume::planted::plant(bug);
    let mut world = World::new(seed, verbose);
    world.run().map_err(|what| {
        let trace: Vec<String> = world.trace.iter().cloned().collect();
        format!("seed {seed}: {what}\n{}", trace.join("\n"))
    })
}

fn log_of(writer: u64, sealer: Option<Arc<Sealer>>, tenure: Option<Tenure>) -> Log {
    // A sealed record is longer, and as many are to fit.
    let scale = if sealer.is_some() { 2 } else { 1 };
    Log::new(LogOptions {
        epoch: Epoch(1),
        writer,
        segment_bytes: 600 * scale,
        policy: Policy { retain_us: 1_500_000, max_size_bytes: 2_000 * scale },
        tail_bytes: 10_000,
        own: CopyId::all().collect(),
        sealer,
        tenure,
    })
}

impl World {
    fn new(seed: u64, verbose: bool) -> World {
        let head = || Head {
            alive: false,
            life: 0,
            log: log_of(0, None, None),
            links: [None; 6],
            fills: [None; 6],
            content: BTreeMap::new(),
            checked: Durable::default(),
            reset: None,
            record: Record::default(),
        };
        let mut dice = Dice::new(seed);
        let spoken = Spoken::default();
        let bouts = 1 + dice.below(BOUTS_MAX);
        World {
            agenda: Agenda::new(),
            copies: (0..6).map(|_| Copy::new(dice.below(u64::MAX), &spoken)).collect(),
            dice,
            spoken,
            heads: vec![head(), head()],
            next_number: 1,
            next_redo: 1,
            arrivals: BTreeMap::new(),
            lives: BTreeMap::new(),
            ledger: Ledger::default(),
            seals: (seed % 2 == 1).then(Seals::default),
            hurt: BTreeSet::new(),
            calm: false,
            turned_us: 0,
            bouts,
            bouts_over: 0,
            tenures: seed % 3 == 2,
            memories: 0,
            votes: BTreeMap::new(),
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
            if !self.calm && self.since_turned_us() > FAULTS_US / self.bouts {
                self.calm_down();
            }
            if self.calm && self.since_turned_us() > CALM_US {
                return Err(format!(
                    "not whole {} s after the last fault: {}",
                    CALM_US / 1_000_000,
                    self.state()
                ));
            }
            let looks = self.calm && matches!(event, Event::Tick { .. });
            self.happen(event)?;
            if looks && self.is_whole()? {
                if self.bouts_over == self.bouts {
                    return Ok(self.report.clone());
                }
                self.go_on();
            }
        }
        Err("nothing is left to happen".into())
    }

    /// For how long faults have gone on, or calm has lasted.
    fn since_turned_us(&self) -> u64 {
        self.agenda.now_us - self.turned_us
    }

    /// The next bout of faults begins.
    fn go_on(&mut self) {
        self.note(|| "the volume is whole, and faults go on".into());
        (self.calm, self.turned_us) = (false, self.agenda.now_us);
        // The calm has ended the other daemon. It is back soon, for two that write at once.
        let after = self.dice.below(1_000_000);
        self.agenda.after(after, Event::StartHead(1));
    }

    /// No more faults: every copy runs, and one daemon.
    fn calm_down(&mut self) {
        self.note(|| "faults end".into());
        (self.calm, self.turned_us) = (true, self.agenda.now_us);
        self.bouts_over += 1;
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

    fn state(&self) -> String {
        let log = &self.heads[0].log;
        let states: Vec<String> = CopyId::all()
            .map(|copy| format!("{:?} {}", log.quorum().state(copy), log.quorum().flushed_lsn(copy).0))
            .collect();
        let votes: Vec<_> =
            self.copies.iter().map(|copy| (copy.disk().rotten(), copy.disk().infos())).collect();
        format!(
            "alive {}, {:?}, queued {}, {states:?}, {votes:?}",
            self.heads[0].alive,
            log.phase(),
            log.queued().lsn.0
        )
    }

    fn happen(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Fault => self.fault(),
            Event::Ask { vote, way } => self.ask(vote, way),
            Event::Voted { vote } => return self.voted(vote),
            Event::StartHead(head) => self.start_head(head),
            Event::StartCopy(copy) => self.start_copy(copy),
            Event::WorstHour(zone) => self.worst_hour(zone),
            Event::HitDonor(copy) => self.hit_donor(copy),
            Event::Reach { head, life, copy } => return self.reach(head, life, copy),
            Event::Order { way, order } => self.order(way, order),
            Event::Work { copy, life } => return self.work(copy, life),
            Event::Said { way, said } => return self.said(way, said),
            Event::Lost { way } => return self.lost(way),
            Event::Inspect { way, ballot } => self.inspect(way, ballot),
            Event::Inspected { head, life, copy, ballot, found } => {
                return self.inspected(head, life, copy, ballot, found);
            }
            Event::Fill { fill, until } => return self.fill(fill, until),
            Event::Bring { fill, writer, from_lsn, source, history } => {
                self.bring(fill, writer, from_lsn, source, history);
            }
            Event::Put { fill, way, segments, end_lsn } => self.put(fill, way, segments, end_lsn),
            Event::Scrub { way } => return self.scrub(way),
            Event::Append { head, life } => return self.append(head, life),
            Event::Tick { head, life } => return self.tick(head, life),
        }
        Ok(())
    }

    fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }
}

/// The history of the next timeline, which forks off `timeline` at `fork_lsn`.
fn forked(
    before: Option<&TimelineHistory>,
    timeline: Timeline,
    fork_lsn: Lsn,
) -> Result<TimelineHistory, String> {
    let mut content = before.map(|history| history.content.clone()).unwrap_or_default();
    content.extend_from_slice(format!("{}\t{fork_lsn}\tx\n", timeline.0).as_bytes());
    TimelineHistory::parse(Timeline(timeline.0 + 1), &content).map_err(|e| e.to_string())
}

fn id(copy: usize) -> CopyId {
    CopyId(u8::try_from(copy).unwrap_or(0))
}

fn place(copy: CopyId) -> usize {
    usize::from(copy.0)
}
