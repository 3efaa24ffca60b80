//! The quorum over a region's copies: who may write, what is durable, which copy needs what. Pure: no files, sockets,
//! threads or clocks; the same machine runs in the daemon and, under a seeded scheduler, in the simulation.
//!
//! An opening of the volume goes through three steps.
//! 1. **Promise.** Every copy is asked to take nothing below this opening's ballot. Once a write quorum has promised, no
//!    older writer can make anything durable any more.
//! 2. **Choose.** Among the logs of those that promised, the one written under the highest ballot, and of these the longest,
//!    holds everything that may have been acknowledged: each acknowledged LSN lies on a write quorum, and any read quorum
//!    meets it.
//! 3. **Adopt.** Each copy cuts off what the chosen log does not have, notes the ballot, and is filled with what it lacks. Once
//!    a write quorum holds all of the chosen log, that log is durable and appends go on from its end.
//!
//! A copy that comes later, or comes back, takes the same steps while the others go on.

use std::fmt;

use proto::Lsn;

use crate::Durable;
use crate::ballot::{Ballot, Ballots};

/// One of a region's copies, by its place: two in each zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CopyId(pub u8);

/// The copies of a region.
pub const COPIES: u8 = 6;

/// How many copies lie in one zone.
pub const COPIES_PER_ZONE: u8 = 2;

/// How many copies make redo durable.
pub const WRITE_QUORUM: usize = 4;

/// How many copies are enough to find everything that was made durable.
pub const READ_QUORUM: usize = 3;

impl CopyId {
    /// All copies of a region.
    pub fn all() -> impl Iterator<Item = CopyId> {
        (0..COPIES).map(CopyId)
    }

    /// The letter of the copy's zone.
    #[must_use]
    pub fn zone(self) -> char {
        char::from(b'a' + self.0 / COPIES_PER_ZONE)
    }

    fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl fmt::Display for CopyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.zone(), self.0 % COPIES_PER_ZONE + 1)
    }
}

impl std::str::FromStr for CopyId {
    type Err = String;

    fn from_str(text: &str) -> Result<CopyId, String> {
        CopyId::all()
            .find(|id| id.to_string() == text)
            .ok_or_else(|| format!("'{text}' is no copy; there are a1, a2, b1, b2, c1 and c2"))
    }
}

/// What a copy says of itself when it promises.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Vote {
    /// Which of the volume's logs it holds; each reset begins the next. Zero in a copy that was never part of a volume.
    pub generation: u64,
    /// Under which ballots its redo was written.
    pub ballots: Ballots,
    /// Where its redo begins, and what is known of that place.
    pub begin: Durable,
    /// Where its redo ends, on its disk.
    pub end: Durable,
    /// How far the volume was durable when its newest record was written.
    pub proven_lsn: Lsn,
}

impl Vote {
    /// Whether nothing was ever kept here: then losing it lost nothing.
    fn is_blank(&self) -> bool {
        self.end.lsn == Lsn::ZERO
    }

    fn rank(&self) -> (u64, Ballot, Lsn) {
        (self.generation, self.ballots.last_at(self.end.lsn), self.end.lsn)
    }
}

/// Where a copy stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Not reached.
    Absent,
    /// Asked for its promise.
    Asked,
    /// It promised, and waits for what becomes of its log.
    Promised,
    /// It was told which log to adopt.
    Adopting,
    /// It holds a part of the log and is being filled.
    Filling,
    /// It is sent every append.
    Live,
    /// It takes nothing: its disk failed, or it has promised a higher ballot.
    Failed(String),
}

/// What of a copy's own log stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Everything before this LSN.
    Before(Lsn),
    /// Nothing: the copy begins anew at this position.
    Nothing(Durable),
}

/// What a copy is told when its promise was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adoption {
    /// The ballot that writes.
    pub ballot: Ballot,
    /// The volume's log.
    pub generation: u64,
    /// Under which ballots the chosen log was written, this one included.
    pub ballots: Ballots,
    /// What stays of the copy's own log.
    pub keep: Keep,
}

/// What happened.
#[derive(Debug, Clone)]
pub enum Input {
    /// A copy can be reached.
    Reached(CopyId),
    /// A copy cannot be reached any more.
    Lost(CopyId),
    /// A copy promised this ballot. An answer to an earlier opening's question may come late, and is none to this one's.
    Promised(CopyId, Ballot, Vote),
    /// A copy has promised a higher ballot.
    Refused(CopyId, Ballot),
    /// A copy adopted the log of this ballot and generation, and holds it up to here.
    Adopted(CopyId, Ballot, u64, Lsn),
    /// A copy holds everything up to here on its disk.
    Flushed(CopyId, Lsn),
    /// A copy's disk failed.
    Failed(CopyId, String),
}

/// What to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Ask the copy to promise the ballot.
    Ask(CopyId, Ballot),
    /// The log was chosen: it is that of the copy, up to here. Appends wait until all of it is durable.
    Chosen(CopyId, Durable),
    /// Tell the copy what to adopt.
    Adopt(CopyId, Adoption),
    /// Fill the copy from here on.
    Fill(CopyId, Lsn),
    /// All redo up to here is durable.
    Durable(Lsn),
    /// A copy has promised this higher ballot to an earlier opening, or to one at the same time: open anew, above it.
    Outbid(Ballot),
    /// Another writer has taken over with this ballot; nothing of ours becomes durable any more.
    Deposed(Ballot),
}

/// The state of one opening of a volume.
#[derive(Debug, Clone)]
pub struct Quorum {
    ballot: Ballot,
    members: Vec<Member>,
    /// The chosen log, once there is one.
    chosen: Option<Chosen>,
    durable_lsn: Option<Lsn>,
    deposed: Option<Ballot>,
    /// The highest ballot that a copy has promised to somebody who did not take over.
    outbid: Option<Ballot>,
}

#[derive(Debug, Clone)]
struct Member {
    standing: Standing,
    vote: Option<Vote>,
    flushed_lsn: Lsn,
}

#[derive(Debug, Clone)]
struct Chosen {
    generation: u64,
    ballots: Ballots,
    /// Where a copy that has nothing begins.
    begin: Durable,
    /// Where this opening's own redo begins.
    own_lsn: Lsn,
    /// The end of everything appended so far.
    end_lsn: Lsn,
}

impl Quorum {
    /// A new opening under `ballot`.
    #[must_use]
    pub fn new(ballot: Ballot) -> Quorum {
        let member = Member { standing: Standing::Absent, vote: None, flushed_lsn: Lsn::ZERO };
        let members = vec![member; usize::from(COPIES)];
        Quorum { ballot, members, chosen: None, durable_lsn: None, deposed: None, outbid: None }
    }

    /// The ballot of this opening.
    #[must_use]
    pub fn ballot(&self) -> Ballot {
        self.ballot
    }

    /// How far all redo is durable.
    #[must_use]
    pub fn durable_lsn(&self) -> Lsn {
        self.durable_lsn.unwrap_or_default()
    }

    /// Where a copy stands.
    #[must_use]
    pub fn standing(&self, copy: CopyId) -> &Standing {
        &self.members[copy.index()].standing
    }

    /// How far a copy holds the log on its disk, as it said last.
    #[must_use]
    pub fn flushed_lsn(&self, copy: CopyId) -> Lsn {
        self.members[copy.index()].flushed_lsn
    }

    /// Whether the chosen log is durable, so that appends may go on from its end.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.deposed.is_none() && self.durable_lsn.is_some()
    }

    /// Whether enough copies are reached for appends to become durable.
    #[must_use]
    pub fn is_quorate(&self) -> bool {
        CopyId::all().filter(|copy| self.is_adopted(*copy)).count() >= WRITE_QUORUM
    }

    /// Who has taken over, if somebody has.
    #[must_use]
    pub fn deposed(&self) -> Option<Ballot> {
        self.deposed
    }

    /// A ballot above this one's that some copies have promised, and too few to depose it: whoever asked for it may be gone.
    /// Those copies are had back by opening anew above it.
    #[must_use]
    pub fn outbid(&self) -> Option<Ballot> {
        self.outbid.filter(|_| self.deposed.is_none())
    }

    /// The volume's log: how many times it began anew.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.chosen.as_ref().map_or(0, |chosen| chosen.generation)
    }

    /// Copies that hold, or are being given, the chosen log.
    #[must_use]
    pub fn is_adopted(&self, copy: CopyId) -> bool {
        matches!(self.standing(copy), Standing::Filling | Standing::Live)
    }

    /// The log grew: its end is `end_lsn` now. Live copies are sent what was appended.
    pub fn append(&mut self, end_lsn: Lsn) {
        if let Some(chosen) = &mut self.chosen {
            chosen.end_lsn = end_lsn;
        }
    }

    /// The copy's redo up to `sent_lsn` is on its way to it. When that is everything, it is sent every append from now
    /// on, and true is returned.
    pub fn attach(&mut self, copy: CopyId, sent_lsn: Lsn) -> bool {
        let member = &mut self.members[copy.index()];
        let all = self.chosen.as_ref().is_some_and(|chosen| chosen.end_lsn == sent_lsn);
        if member.standing == Standing::Filling && all {
            member.standing = Standing::Live;
        }
        member.standing == Standing::Live
    }

    /// A live copy that cannot keep up is filled from its peers instead of being waited for.
    pub fn detach(&mut self, copy: CopyId) -> Vec<Output> {
        let member = &mut self.members[copy.index()];
        if member.standing != Standing::Live {
            return Vec::new();
        }
        member.standing = Standing::Filling;
        vec![Output::Fill(copy, member.flushed_lsn)]
    }

    /// Takes in what happened; returns what to do.
    pub fn handle(&mut self, input: Input) -> Vec<Output> {
        let mut out = Vec::new();
        match input {
            Input::Reached(copy) => {
                self.stand(copy, Standing::Asked);
                out.push(Output::Ask(copy, self.ballot));
            }
            Input::Lost(copy) => self.stand(copy, Standing::Absent),
            Input::Promised(copy, ballot, vote) => {
                if ballot == self.ballot && self.members[copy.index()].standing == Standing::Asked {
                    self.members[copy.index()].vote = Some(vote);
                    self.stand(copy, Standing::Promised);
                    match self.chosen.is_some() {
                        true => self.adopt(copy, &mut out),
                        false => self.choose(&mut out),
                    }
                }
            }
            Input::Refused(copy, higher) => {
                if self.chosen.is_none() {
                    out.push(Output::Outbid(higher));
                    return out;
                }
                self.stand(
                    copy,
                    Standing::Failed(format!("it has promised ballot {higher} to another writer")),
                );
                self.outbid = self.outbid.max(Some(higher));
                let failed = |copy: &CopyId| matches!(self.standing(*copy), Standing::Failed(_));
                // With a read quorum lost to another, no write quorum is left.
                if self.deposed.is_none() && CopyId::all().filter(failed).count() >= READ_QUORUM {
                    self.deposed = Some(higher);
                    out.push(Output::Deposed(higher));
                }
            }
            Input::Adopted(copy, ballot, generation, end_lsn) => {
                let current = ballot == self.ballot && generation == self.generation();
                if current && self.members[copy.index()].standing == Standing::Adopting {
                    self.stand(copy, Standing::Filling);
                    self.members[copy.index()].flushed_lsn = end_lsn;
                    out.push(Output::Fill(copy, end_lsn));
                    self.count(&mut out);
                }
            }
            Input::Flushed(copy, lsn) => {
                if self.is_adopted(copy) {
                    let flushed = &mut self.members[copy.index()].flushed_lsn;
                    *flushed = (*flushed).max(lsn);
                    self.count(&mut out);
                }
            }
            Input::Failed(copy, why) => self.stand(copy, Standing::Failed(why)),
        }
        out
    }

    fn stand(&mut self, copy: CopyId, standing: Standing) {
        self.members[copy.index()].standing = standing;
    }

    /// Chooses the log, once enough copies have promised.
    fn choose(&mut self, out: &mut Vec<Output>) {
        let votes = || {
            let promised = |copy: &CopyId| *self.standing(*copy) == Standing::Promised;
            CopyId::all()
                .filter(promised)
                .filter_map(|copy| Some((copy, self.members[copy.index()].vote.as_ref()?)))
        };
        // A copy that was never part of the volume has forgotten what it promised, if it ever did: its promise is no
        // promise, unless nothing was ever kept anywhere.
        let members = votes().filter(|(_, vote)| vote.generation > 0).count();
        let all_blank = votes().count() == usize::from(COPIES) && votes().all(|(_, vote)| vote.is_blank());
        if members < WRITE_QUORUM && !all_blank {
            return;
        }
        let Some((donor, vote)) = votes().max_by_key(|(copy, vote)| (vote.rank(), std::cmp::Reverse(*copy)))
        else {
            return;
        };
        let (end, generation) = (vote.end, vote.generation);
        // When a copy proves that more was durable than any of these has, more copies must be heard first.
        if votes().any(|(_, other)| other.generation == generation && other.proven_lsn > end.lsn) {
            return;
        }
        let mut ballots = vote.ballots.clone();
        ballots.begin(self.ballot, end.lsn);
        let (begin, generation) = (vote.begin, generation.max(1));
        self.chosen = Some(Chosen { generation, ballots, begin, own_lsn: end.lsn, end_lsn: end.lsn });
        out.push(Output::Chosen(donor, end));
        for copy in
            CopyId::all().filter(|copy| *self.standing(*copy) == Standing::Promised).collect::<Vec<_>>()
        {
            self.adopt(copy, out);
        }
    }

    fn adopt(&mut self, copy: CopyId, out: &mut Vec<Output>) {
        let (Some(chosen), Some(vote)) = (&self.chosen, &self.members[copy.index()].vote) else { return };
        let common = vote.ballots.common(vote.end.lsn, &chosen.ballots, chosen.end_lsn);
        let usable =
            vote.generation == chosen.generation && common >= vote.begin.lsn && common >= chosen.begin.lsn;
        let keep = if usable { Keep::Before(common) } else { Keep::Nothing(chosen.begin) };
        let (generation, ballots) = (chosen.generation, chosen.ballots.clone());
        self.stand(copy, Standing::Adopting);
        out.push(Output::Adopt(copy, Adoption { ballot: self.ballot, generation, ballots, keep }));
    }

    /// The volume's log begins anew at `begin`: the next generation. Every copy is told; what is durable is counted anew.
    pub fn reset(&mut self, begin: Durable) -> Vec<Output> {
        let Some(chosen) = &mut self.chosen else { return Vec::new() };
        let mut ballots = Ballots::default();
        ballots.begin(self.ballot, begin.lsn);
        let generation = chosen.generation + 1;
        *chosen = Chosen { generation, ballots, begin, own_lsn: begin.lsn, end_lsn: begin.lsn };
        self.durable_lsn = None;
        let mut out = Vec::new();
        for copy in CopyId::all() {
            let member = &mut self.members[copy.index()];
            if matches!(member.standing, Standing::Adopting | Standing::Filling | Standing::Live) {
                member.vote = Some(Vote::default());
                member.flushed_lsn = Lsn::ZERO;
                self.adopt(copy, &mut out);
            }
        }
        out
    }

    /// The oldest redo that is kept begins at `begin` now: a copy that has nothing starts there.
    pub fn retain(&mut self, begin_lsn: Lsn) {
        if let Some(chosen) = &mut self.chosen
            && begin_lsn > chosen.begin.lsn
        {
            chosen.begin = Durable { lsn: begin_lsn, ..Durable::default() };
            chosen.ballots.forget_before(begin_lsn);
        }
    }

    /// An LSN is durable when a write quorum holds everything up to it, and all that this opening found.
    fn count(&mut self, out: &mut Vec<Output>) {
        let Some(chosen) = &self.chosen else { return };
        let mut flushed: Vec<Lsn> =
            CopyId::all().filter(|copy| self.is_adopted(*copy)).map(|copy| self.flushed_lsn(copy)).collect();
        flushed.sort_unstable_by(|a, b| b.cmp(a));
        let Some(lsn) = flushed.get(WRITE_QUORUM - 1).copied() else { return };
        if lsn >= chosen.own_lsn && self.durable_lsn.is_none_or(|durable| lsn > durable) {
            self.durable_lsn = Some(lsn);
            out.push(Output::Durable(lsn));
        }
    }
}
