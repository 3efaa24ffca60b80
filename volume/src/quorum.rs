//! The quorum over a region's copies: who may write, what is durable, which copy needs what. Pure: no files,
//! sockets, threads or clocks; the same machine runs in the daemon and, under a seeded scheduler, in the
//! simulation.
//!
//! An opening of the volume goes through three steps.
//! 1. **Promise.** Every copy is asked to take nothing below this opening's ballot. Once a write quorum has
//!    promised, no older writer can make anything durable any more.
//! 2. **Choose.** Among the logs of those that promised, the one written under the highest ballot, and of
//!    these the longest, holds everything that may have been acknowledged: each acknowledged LSN lies on a
//!    write quorum, and any read quorum meets it.
//! 3. **Adopt.** Each copy cuts off what the chosen log does not have, notes the ballot, and is filled with
//!    what it lacks. Once a write quorum holds all of the chosen log, that log is durable and appends go on
//!    from its end.
//!
//! A copy that comes later, or comes back, takes the same steps while the others go on. Not so the *donor*,
//! whose log was chosen, as long as that log is not durable: what it alone may have is gone where it is lost
//! or fails, and may be gone where it is asked anew, as it has given up damaged redo. Then a log is chosen
//! again.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::fmt;

use proto::Lsn;

use crate::Durable;
use crate::ballot::{Ballot, Ballots};
use crate::planted::{self, Bug};

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

    pub(crate) fn index(self) -> usize {
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

/// Whether whoever has opened a volume with `ballot` could still write to it: of the copies that were asked
/// just now a write quorum has promised that ballot, and no higher one.
#[must_use]
pub fn still_writes(ballot: Ballot, promised: &[Ballot]) -> bool {
    let holds = promised.iter().filter(|promised| **promised == ballot).count();
    holds >= WRITE_QUORUM || planted::is(Bug::VotesUnasked)
}

/// What a copy says of itself when it promises.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Vote {
    /// Which of the volume's logs it holds; each reset begins the next. Zero in a copy that was never part of
    /// a volume.
    pub generation: u64,
    /// Under which ballots its redo was written.
    pub ballots: Ballots,
    /// Where its redo begins, and what is known of that place.
    pub begin: Durable,
    /// Where its redo ends, on its disk.
    pub end: Durable,
    /// How far the volume was durable for certain, as the copy's redo said that damage has cost it; zero
    /// where it has lost none.
    pub proven_lsn: Lsn,
    /// How far its log went before damage was cut off; nothing where none was.
    pub held: Held,
}

/// How far the log went of a copy that has lost its end to damage, or all of it and is being filled: what is
/// gone may have been durable. The ballot is the one under which that end was written, so the greater of two
/// is the later log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Held {
    /// Under which ballot.
    pub ballot: Ballot,
    /// Where it ended.
    pub lsn: Lsn,
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
pub enum CopyState {
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
    /// It has promised this higher ballot to another writer.
    PromisedElsewhere(Ballot),
    /// It takes nothing: its disk failed.
    Failed(String),
}

/// What of a copy's own log stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Everything before this LSN.
    Before(Lsn),
    /// Nothing: the copy begins anew.
    Nothing {
        /// Where.
        begin: Durable,
        /// How far the log goes, where the copy has forgotten: it may have had all of that. Nothing where it
        /// has not.
        held: Held,
    },
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

/// In whose name an order is given, and for which of the volume's logs. A copy that has promised another
/// ballot, or holds another log, does not carry it out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Writer {
    /// The ballot of the opening that gives the order.
    pub ballot: Ballot,
    /// The log it is about.
    pub generation: u64,
}

/// What happened.
#[derive(Debug, Clone)]
pub enum Input {
    /// A copy can be reached.
    Reached(CopyId),
    /// A copy cannot be reached any more.
    Lost(CopyId),
    /// A copy promised this ballot. An answer to an earlier opening's question may come late, and is none to
    /// this one's.
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
    /// A copy has promised this higher ballot to an earlier opening, or to one at the same time: open anew,
    /// above it.
    Outbid(Ballot),
    /// The copy whose log was chosen may not have it any more, and nobody else need have all of it: open
    /// anew.
    LostDonor(CopyId),
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
    /// On the operator's word, that the copies which are missing are lost for good.
    word: bool,
    /// Copies that did not say what they hold when their log was chosen: of logs that end alike another one's
    /// is.
    avoided: BTreeSet<CopyId>,
}

#[derive(Debug, Clone)]
struct Member {
    state: CopyState,
    vote: Option<Vote>,
    flushed_lsn: Lsn,
    /// Where its redo begins, as far as it was told to keep it: another copy may have more.
    begin_lsn: Lsn,
    /// The higher ballot it has promised. That stays so while it is not reached or its disk fails.
    elsewhere: Option<Ballot>,
}

#[derive(Debug, Clone)]
struct Chosen {
    /// Whose log it was.
    donor: CopyId,
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
        let (flushed_lsn, begin_lsn) = (Lsn::ZERO, Lsn::ZERO);
        let member = Member { state: CopyState::Absent, vote: None, flushed_lsn, begin_lsn, elsewhere: None };
        let members = vec![member; usize::from(COPIES)];
        let (chosen, durable_lsn, deposed, outbid, word) = (None, None, None, None, false);
        Quorum { ballot, members, chosen, durable_lsn, deposed, outbid, word, avoided: BTreeSet::new() }
    }

    /// Of logs that end alike the log of one that is not among `avoided` is chosen.
    pub fn avoid(&mut self, avoided: BTreeSet<CopyId>) {
        self.avoided = avoided;
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
    pub fn state(&self, copy: CopyId) -> &CopyState {
        &self.members[copy.index()].state
    }

    /// How far a copy holds the log on its disk, as it said last.
    #[must_use]
    pub fn flushed_lsn(&self, copy: CopyId) -> Lsn {
        self.members[copy.index()].flushed_lsn
    }

    /// Whether a copy has the redo at `lsn`, as far as is known: not before what it dropped under an earlier
    /// writer, nor beyond what it said.
    #[must_use]
    pub fn holds(&self, copy: CopyId, lsn: Lsn) -> bool {
        let member = &self.members[copy.index()];
        self.is_adopted(copy) && member.begin_lsn <= lsn && member.flushed_lsn > lsn
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

    /// A ballot above this one's that some copies have promised, and too few to depose it: whoever asked for
    /// it may be gone. Those copies are had back by opening anew above it.
    #[must_use]
    pub fn outbid(&self) -> Option<Ballot> {
        self.outbid.filter(|_| self.deposed.is_none())
    }

    /// The volume's log: how many times it began anew.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.chosen.as_ref().map_or(0, |chosen| chosen.generation)
    }

    /// In whose name orders about the chosen log are given.
    #[must_use]
    pub fn writer(&self) -> Writer {
        Writer { ballot: self.ballot, generation: self.generation() }
    }

    /// How many copies have promised that remember what they promised before: one whose disk is new does not.
    #[must_use]
    pub fn members(&self) -> usize {
        let promised = |copy: &CopyId| *self.state(*copy) == CopyState::Promised;
        let vote = |copy: CopyId| self.members[copy.index()].vote.as_ref();
        CopyId::all().filter(promised).filter_map(vote).filter(|vote| remembers(vote)).count()
    }

    /// An operator's word, that the copies which have not promised, or have forgotten all, are lost for good:
    /// a read quorum chooses the log. Whatever was durable is on one of these, and no older writer makes
    /// anything durable any more, as each write quorum of its needs one. What the word adds is that no more
    /// copies were lost than that: of those that are left, one may be the only one.
    pub fn recover(&mut self) -> Vec<Output> {
        let mut out = Vec::new();
        self.word = true;
        if self.chosen.is_none() {
            self.choose(&mut out);
        }
        out
    }

    /// Copies that hold, or are being given, the chosen log.
    #[must_use]
    pub fn is_adopted(&self, copy: CopyId) -> bool {
        matches!(self.state(copy), CopyState::Filling | CopyState::Live)
    }

    /// The copy whose log was chosen; none while none is.
    #[must_use]
    pub fn donor(&self) -> Option<CopyId> {
        self.chosen.as_ref().map(|chosen| chosen.donor)
    }

    /// Whether the copy is about to hold the chosen log: it is asked, has promised, or is told what to adopt.
    #[must_use]
    pub fn is_joining(&self, copy: CopyId) -> bool {
        matches!(self.state(copy), CopyState::Asked | CopyState::Promised | CopyState::Adopting)
    }

    /// The log grew: its end is `end_lsn` now. Live copies are sent what was appended.
    pub fn append(&mut self, end_lsn: Lsn) {
        if let Some(chosen) = &mut self.chosen {
            chosen.end_lsn = end_lsn;
        }
    }

    /// The copy's redo up to `sent_lsn` is on its way to it. When that is everything, it is sent every append
    /// from now on, and true is returned.
    pub fn attach(&mut self, copy: CopyId, sent_lsn: Lsn) -> bool {
        let member = &mut self.members[copy.index()];
        let all = self.chosen.as_ref().is_some_and(|chosen| chosen.end_lsn == sent_lsn);
        if member.state == CopyState::Filling && all {
            member.state = CopyState::Live;
        }
        member.state == CopyState::Live
    }

    /// A live copy that cannot keep up is filled from its peers instead of being waited for.
    pub fn detach(&mut self, copy: CopyId) -> Vec<Output> {
        let member = &mut self.members[copy.index()];
        if member.state != CopyState::Live {
            return Vec::new();
        }
        member.state = CopyState::Filling;
        vec![Output::Fill(copy, member.flushed_lsn)]
    }

    /// Takes in what happened; returns what to do.
    pub fn handle(&mut self, input: Input) -> Vec<Output> {
        let mut out = Vec::new();
        match input {
            Input::Reached(copy) => {
                self.stand(copy, CopyState::Asked);
                out.push(match self.hangs_on(copy) {
                    true => Output::LostDonor(copy),
                    false => Output::Ask(copy, self.ballot),
                });
            }
            Input::Lost(copy) => {
                self.stand(copy, CopyState::Absent);
                out.extend(self.hangs_on(copy).then_some(Output::LostDonor(copy)));
            }
            Input::Promised(copy, ballot, vote) => {
                let ours = ballot == self.ballot || planted::is(Bug::CountsLatePromises);
                if ours && self.members[copy.index()].state == CopyState::Asked {
                    let member = &mut self.members[copy.index()];
                    (member.vote, member.elsewhere) = (Some(vote), None);
                    self.stand(copy, CopyState::Promised);
                    match self.chosen.is_some() {
                        true => self.adopt(copy, &mut out),
                        false => self.choose(&mut out),
                    }
                }
            }
            Input::Refused(copy, higher) => {
                if higher <= self.ballot {
                    // An order of an earlier opening was refused, because of the promise to this one.
                    return out;
                }
                if self.chosen.is_none() {
                    out.push(Output::Outbid(higher));
                    return out;
                }
                self.stand(copy, CopyState::PromisedElsewhere(higher));
                self.members[copy.index()].elsewhere = Some(higher);
                self.outbid = self.outbid.max(Some(higher));
                // With a read quorum promised to another, no write quorum is left. A broken disk promises
                // nothing to anybody.
                let elsewhere = self.members.iter().filter(|member| member.elsewhere.is_some()).count();
                if self.deposed.is_none() && elsewhere >= READ_QUORUM {
                    self.deposed = Some(higher);
                    out.push(Output::Deposed(higher));
                }
            }
            Input::Adopted(copy, ballot, generation, end_lsn) => {
                let current = ballot == self.ballot && generation == self.generation();
                if current && self.members[copy.index()].state == CopyState::Adopting {
                    self.stand(copy, CopyState::Filling);
                    self.members[copy.index()].flushed_lsn = end_lsn;
                    if self.hangs_on(copy) && self.chosen.as_ref().is_some_and(|c| end_lsn < c.own_lsn) {
                        out.push(Output::LostDonor(copy));
                        return out;
                    }
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
            Input::Failed(copy, why) => {
                self.stand(copy, CopyState::Failed(why));
                out.extend(self.hangs_on(copy).then_some(Output::LostDonor(copy)));
            }
        }
        out
    }

    /// Whether the copy is the one whose log was chosen, and that log is not durable yet.
    fn hangs_on(&self, copy: CopyId) -> bool {
        self.donor() == Some(copy) && self.durable_lsn.is_none() && !planted::is(Bug::ForgetsDonor)
    }

    fn stand(&mut self, copy: CopyId, state: CopyState) {
        self.members[copy.index()].state = state;
    }

    /// Chooses the log, once enough copies have promised.
    fn choose(&mut self, out: &mut Vec<Output>) {
        let votes = || {
            let promised = |copy: &CopyId| *self.state(*copy) == CopyState::Promised;
            CopyId::all()
                .filter(promised)
                .filter_map(|copy| Some((copy, self.members[copy.index()].vote.as_ref()?)))
        };
        // The promise of one that does not remember is no promise, unless nothing was ever kept anywhere.
        let all_blank = votes().count() == usize::from(COPIES) && votes().all(|(_, vote)| vote.is_blank());
        let needed = if self.word { READ_QUORUM } else { WRITE_QUORUM };
        if self.members() < needed && !all_blank {
            return;
        }
        let rank = |vote: &Vote| match planted::is(Bug::ChoosesLongest) {
            true => (vote.generation, Ballot::default(), vote.end.lsn),
            false => vote.rank(),
        };
        // Of two that end alike, one may hold nothing and not know on which timeline.
        let best = |(copy, vote): &(CopyId, &Vote)| {
            (rank(vote), vote.end.timeline, !self.avoided.contains(copy), Reverse(*copy))
        };
        let Some((donor, vote)) = votes().max_by_key(best) else { return };
        let (end, generation) = (vote.end, vote.generation);
        // What a copy has lost to damage was durable as far as it proves, and beyond that it may have been:
        // no write quorum had it once a read quorum never did. Until one or the other is settled, more copies
        // must be heard.
        let chosen = Held { ballot: vote.ballots.last_at(end.lsn), lsn: end.lsn };
        let lost = |other: &Vote| other.generation == generation && other.held > chosen;
        let never = votes().filter(|(_, other)| remembers(other) && !lost(other)).count();
        let unsure = votes().any(|(_, other)| lost(other)) && never < READ_QUORUM;
        let proves = |other: &Vote| other.generation == generation && other.proven_lsn > end.lsn;
        let proven = votes().any(|(_, other)| proves(other));
        if (proven || unsure) && !planted::is(Bug::IgnoresLost) {
            return;
        }
        let mut ballots = vote.ballots.clone();
        ballots.begin(self.ballot, end.lsn);
        let (begin, generation) = (vote.begin, generation.max(1));
        out.push(Output::Chosen(donor, end));
        let (own_lsn, end_lsn) = (end.lsn, end.lsn);
        self.chosen = Some(Chosen { donor, generation, ballots, begin, own_lsn, end_lsn });
        for copy in CopyId::all().filter(|copy| *self.state(*copy) == CopyState::Promised).collect::<Vec<_>>()
        {
            self.adopt(copy, out);
        }
    }

    fn adopt(&mut self, copy: CopyId, out: &mut Vec<Output>) {
        let (Some(chosen), Some(vote)) = (&self.chosen, &self.members[copy.index()].vote) else { return };
        let common = vote.ballots.common(vote.end.lsn, &chosen.ballots, chosen.end_lsn);
        let usable =
            vote.generation == chosen.generation && common >= vote.begin.lsn && common >= chosen.begin.lsn;
        let (begin, end_lsn) = (chosen.begin, chosen.end_lsn);
        // One that is far behind knows that it never had the rest.
        let all = Held { ballot: chosen.ballots.written_at(end_lsn), lsn: end_lsn };
        let held = if remembers(vote) { Held::default() } else { all };
        let keep = if usable { Keep::Before(common) } else { Keep::Nothing { begin, held } };
        let begin_lsn = if usable { vote.begin.lsn } else { chosen.begin.lsn };
        let (generation, ballots) = (chosen.generation, chosen.ballots.clone());
        self.members[copy.index()].begin_lsn = begin_lsn;
        self.stand(copy, CopyState::Adopting);
        out.push(Output::Adopt(copy, Adoption { ballot: self.ballot, generation, ballots, keep }));
    }

    /// The volume's log begins anew at `begin`: the next generation. Every copy is told; what is durable is
    /// counted anew.
    pub fn reset(&mut self, begin: Durable) -> Vec<Output> {
        let Some(chosen) = &mut self.chosen else { return Vec::new() };
        let mut ballots = Ballots::default();
        ballots.begin(self.ballot, begin.lsn);
        let generation = chosen.generation + u64::from(!planted::is(Bug::ResetKeepsNumber));
        let (donor, own_lsn, end_lsn) = (chosen.donor, begin.lsn, begin.lsn);
        *chosen = Chosen { donor, generation, ballots, begin, own_lsn, end_lsn };
        self.durable_lsn = None;
        let mut out = Vec::new();
        for copy in CopyId::all() {
            let member = &mut self.members[copy.index()];
            if matches!(member.state, CopyState::Adopting | CopyState::Filling | CopyState::Live) {
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
        let needed = WRITE_QUORUM - usize::from(planted::is(Bug::SmallQuorum));
        let Some(lsn) = flushed.get(needed - 1).copied() else { return };
        let whole = lsn >= chosen.own_lsn || planted::is(Bug::OpensEarly);
        if whole && self.durable_lsn.is_none_or(|durable| lsn > durable) {
            self.durable_lsn = Some(lsn);
            out.push(Output::Durable(lsn));
        }
    }
}

/// A copy that was never part of the volume has forgotten what it promised, if it ever did.
fn remembers(vote: &Vote) -> bool {
    vote.generation > 0 || planted::is(Bug::CountsForgotten)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::{Epoch, Timeline};

    fn ballot(opening: u64) -> Ballot {
        Ballot { epoch: Epoch(1), opening, writer: 1 }
    }

    /// An opening of a blank volume whose six copies have adopted its log.
    fn open() -> Quorum {
        let mut quorum = Quorum::new(ballot(5));
        for copy in CopyId::all() {
            quorum.handle(Input::Reached(copy));
            quorum.handle(Input::Promised(copy, ballot(5), Vote::default()));
        }
        for copy in CopyId::all() {
            quorum.handle(Input::Adopted(copy, ballot(5), 1, Lsn::ZERO));
        }
        assert!(quorum.is_open());
        quorum
    }

    #[test]
    fn broken_disks_do_not_depose_and_three_promises_to_another_do() {
        let mut quorum = open();
        quorum.handle(Input::Failed(CopyId(0), "full".into()));
        quorum.handle(Input::Failed(CopyId(1), "full".into()));
        assert_eq!(quorum.handle(Input::Refused(CopyId(2), ballot(6))), []);
        assert_eq!(quorum.deposed(), None, "one promise, and two disks that are full");
        assert_eq!(quorum.outbid(), Some(ballot(6)));
        quorum.handle(Input::Lost(CopyId(2)));
        quorum.handle(Input::Refused(CopyId(3), ballot(6)));
        let third = quorum.handle(Input::Refused(CopyId(4), ballot(6)));
        assert_eq!(
            third,
            [Output::Deposed(ballot(6))],
            "the one that is not reached has promised all the same"
        );
    }

    #[test]
    fn what_was_refused_because_of_our_own_promise_is_nothing() {
        let mut quorum = open();
        assert_eq!(quorum.handle(Input::Refused(CopyId(0), ballot(5))), []);
        assert!(quorum.is_adopted(CopyId(0)));
        let mut opening = Quorum::new(ballot(5));
        assert_eq!(opening.handle(Input::Refused(CopyId(0), ballot(4))), []);
    }

    #[test]
    fn a_copy_that_dropped_redo_under_an_earlier_writer_is_not_asked_for_it() {
        let mut quorum = Quorum::new(ballot(5));
        let vote = |begin: u64| {
            let mut ballots = Ballots::default();
            ballots.begin(ballot(4), Lsn(100));
            let at = |lsn| Durable { lsn: Lsn(lsn), ..Durable::default() };
            Vote {
                generation: 1,
                ballots,
                begin: at(begin),
                end: at(500),
                proven_lsn: Lsn::ZERO,
                held: Held::default(),
            }
        };
        // The first one was away when the others were told to drop.
        for (copy, begin) in [(0, 100), (1, 300), (2, 300), (3, 300)] {
            quorum.handle(Input::Reached(CopyId(copy)));
            quorum.handle(Input::Promised(CopyId(copy), ballot(5), vote(begin)));
        }
        for copy in 0..4 {
            quorum.handle(Input::Adopted(CopyId(copy), ballot(5), 1, Lsn(500)));
        }
        let holders = |lsn| (0..4).filter(|copy| quorum.holds(CopyId(*copy), Lsn(lsn))).collect::<Vec<_>>();
        assert_eq!((holders(200), holders(300), holders(500)), (vec![0], vec![0, 1, 2, 3], vec![]));
    }

    #[test]
    fn of_logs_that_end_alike_one_that_knows_its_timeline_is_chosen() {
        let mut quorum = Quorum::new(ballot(5));
        let mut ballots = Ballots::default();
        ballots.begin(ballot(4), Lsn(100));
        let mut chosen = Vec::new();
        for copy in 0..4 {
            // The first one began anew where redo was dropped up to, and was given nothing yet.
            let timeline = Timeline(u32::from(copy > 0));
            let end = Durable { lsn: Lsn(500), timeline, epoch: Epoch(1) };
            let begin = Durable { lsn: Lsn(if copy > 0 { 100 } else { 500 }), ..Durable::default() };
            let vote = Vote { generation: 1, ballots: ballots.clone(), begin, end, ..Vote::default() };
            quorum.handle(Input::Reached(CopyId(copy)));
            chosen.extend(quorum.handle(Input::Promised(CopyId(copy), ballot(5), vote)));
        }
        let end = Durable { lsn: Lsn(500), timeline: Timeline(1), epoch: Epoch(1) };
        assert_eq!(chosen[0], Output::Chosen(CopyId(1), end));
    }
}
