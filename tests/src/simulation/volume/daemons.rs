//! The daemons that write the volume: the log is theirs, and so are the ways to the copies.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use proto::{Batch, Epoch, Lsn, Redo, Timeline};
use tokio::sync::oneshot;
use volume::ballot::Ballot;
use volume::copy::keeper::{Store, Task, Work};
use volume::copy::{Contents, Event as Said, Order, Put, Stored};
use volume::log::{Appended, Effect, FillStep, Phase, Told, sealed_from};
use volume::quorum::{CopyId, CopyState, Writer};
use volume::{Durable, VolumeError};

use super::tenures::Record;
use super::{CALM_APPENDS_US, Event, Fill, Putting, Seals, Way, World, forked, id, log_of, place};

impl World {
    pub fn is_alive(&self, head: usize, life: u64) -> bool {
        self.heads[head].alive && self.heads[head].life == life
    }

    /// Whether the daemon has this way to the copy.
    pub fn has_way(&self, way: Way) -> bool {
        self.heads[way.head].alive && self.heads[way.head].links[way.copy] == Some(way.link)
    }

    /// Whether the way leads to the copy as it runs now.
    pub fn leads(&self, way: Way) -> bool {
        let copy = &self.copies[way.copy];
        copy.alive && self.lives.get(&way.link) == Some(&copy.life)
    }

    pub fn start_head(&mut self, index: usize) {
        if self.heads[index].alive || self.calm && index != 0 {
            return;
        }
        self.note(|| format!("daemon {index} starts"));
        let writer = self.dice.below(u64::MAX);
        let sealer = self.seals.as_ref().map(|_| Seals::sealer(writer));
        let head = &mut self.heads[index];
        head.alive = true;
        head.life += 1;
        let tenure = self.tenures.then(|| head.record.begin(writer));
        head.log = log_of(writer, sealer, tenure);
        (head.links, head.fills) = ([None; 6], [None; 6]);
        head.content.clear();
        (head.checked, head.reset) = (Durable::default(), None);
        let life = head.life;
        for copy in 0..6 {
            let after = self.dice.below(20_000);
            self.agenda.after(after, Event::Reach { head: index, life, copy });
        }
        self.agenda.after(1000, Event::Append { head: index, life });
        self.agenda.after(1_000_000, Event::Tick { head: index, life });
    }

    pub fn kill_head(&mut self, index: usize) {
        let head = &mut self.heads[index];
        head.alive = false;
        head.links = [None; 6];
    }

    pub fn tick(&mut self, index: usize, life: u64) -> Result<(), String> {
        if !self.is_alive(index, life) {
            return Ok(());
        }
        let after = 500_000 + self.dice.below(1_000_000);
        self.agenda.after(after, Event::Tick { head: index, life });
        let now_us = self.wall_us();
        self.heads[index].log.tick(now_us);
        self.begin_vote(index);
        for copy in 0..6 {
            if let Some(way) = self.way(index, id(copy))
                && self.dice.one_in(3)
            {
                self.agenda.after(1_000, Event::Scrub { way });
            }
            if self.copies[copy].disk().rotten().is_none() && self.is_live_somewhere(copy) {
                self.hurt.remove(&copy);
            }
        }
        self.carry_out(index)
    }

    /// Whether a daemon that has the volume counts the copy as whole.
    pub fn is_live_somewhere(&self, copy: usize) -> bool {
        self.heads.iter().enumerate().any(|(index, head)| {
            let live = *head.log.quorum().state(id(copy)) == CopyState::Live;
            head.alive
                && live
                && self.copies[copy].disk().meta().promised == self.heads[index].log.quorum().ballot()
        })
    }

    pub fn wall_us(&self) -> i64 {
        i64::try_from(self.agenda.now_us).unwrap_or(i64::MAX)
    }

    /// A way to a copy is made, or tried again later.
    pub fn reach(&mut self, index: usize, life: u64, copy: usize) -> Result<(), String> {
        if !self.is_alive(index, life) || self.heads[index].links[copy].is_some() {
            return Ok(());
        }
        if !self.copies[copy].alive || self.copies[copy].has_failed() {
            let after = 10_000 + self.dice.below(50_000);
            self.agenda.after(after, Event::Reach { head: index, life, copy });
            return Ok(());
        }
        if self.tenures && !self.admits_new(index, copy) {
            let after = 10_000 + self.dice.below(50_000);
            self.agenda.after(after, Event::Reach { head: index, life, copy });
            return Ok(());
        }
        let link = self.number();
        self.lives.insert(link, self.copies[copy].life);
        self.heads[index].links[copy] = Some(link);
        // A copy tells what it had promised when it was opened; that may be long ago.
        let promised = match self.dice.one_in(3) {
            true => Ballot::default(),
            false => self.copies[copy].disk().meta().promised,
        };
        let promised = if self.tenures { self.copies[copy].disk().meta().promised } else { promised };
        self.heads[index].log.let_go(id(copy));
        self.heads[index].log.reached(id(copy), promised);
        self.carry_out(index)
    }

    /// A link breaks; the daemon notices once what was on its way has arrived.
    pub fn break_link(&mut self, index: usize, copy: usize) {
        if let Some(link) = self.heads[index].links[copy] {
            self.lives.remove(&link);
            let at = self.arrival(link, false);
            self.agenda.at(at, Event::Lost { way: Way { head: index, copy, link } });
        }
    }

    pub fn lost(&mut self, way: Way) -> Result<(), String> {
        if !self.has_way(way) {
            return Ok(());
        }
        let Way { head, copy, .. } = way;
        self.heads[head].links[copy] = None;
        self.heads[head].log.lost(id(copy));
        let (life, after) = (self.heads[head].life, 10_000 + self.dice.below(100_000));
        self.agenda.after(after, Event::Reach { head, life, copy });
        self.carry_out(head)
    }

    /// When the next message on a link arrives: after a while, and after the one before it.
    pub fn arrival(&mut self, link: u64, to_copy: bool) -> u64 {
        // Some links are slow all the time.
        let slow = if link.is_multiple_of(12) {
            300_000
        } else if self.dice.one_in(40) {
            200_000
        } else {
            2_000
        };
        let at = self.agenda.now_us + 50 + self.dice.below(slow);
        let last = self.arrivals.entry((link, to_copy)).or_default();
        *last = at.max(*last);
        *last
    }

    pub fn way(&self, head: usize, copy: CopyId) -> Option<Way> {
        let copy = place(copy);
        self.heads[head].links[copy].map(|link| Way { head, copy, link })
    }

    pub fn send(&mut self, way: Way, order: Order) {
        let at = self.arrival(way.link, true);
        if self.dice.one_in(50) {
            self.agenda.at(at, Event::Order { way, order: order.clone() });
        }
        self.agenda.at(at, Event::Order { way, order });
    }

    /// As the head does what the log says.
    pub fn carry_out(&mut self, index: usize) -> Result<(), String> {
        loop {
            let effects: Vec<Effect> = self.heads[index].log.effects().collect();
            if effects.is_empty() {
                break;
            }
            for effect in effects {
                if let Effect::Inspect(_, ballot) = effect {
                    self.check_choice(index, ballot)?;
                }
                if let (Effect::Order(_, Order::Append { stored, .. }), Some(seals)) =
                    (&effect, &mut self.seals)
                {
                    seals.check_nonce(stored)?;
                }
                self.do_one(index, effect);
            }
        }
        self.check_durable(index)
    }

    pub fn do_one(&mut self, index: usize, effect: Effect) {
        match effect {
            Effect::Order(copy, order) => {
                if let Some(way) = self.way(index, copy) {
                    self.send(way, order);
                }
            }
            Effect::Inspect(copy, ballot) => {
                if !self.calm && self.dice.one_in(12) {
                    // While it is inspected, or while the copies adopt its log and are filled.
                    let within = if self.dice.one_in(2) { 5_000 } else { 30_000 };
                    let after = self.dice.below(within);
                    self.agenda.after(after, Event::HitDonor(place(copy)));
                }
                let after = 100 + self.dice.below(3_000);
                let (life, found) = (self.heads[index].life, None);
                match self.way(index, copy) {
                    Some(way) => self.agenda.after(after, Event::Inspect { way, ballot }),
                    None => self.agenda.after(
                        after,
                        Event::Inspected { head: index, life, copy: place(copy), ballot, found },
                    ),
                }
            }
            Effect::Fill(copy, _) => {
                let number = self.number();
                self.heads[index].fills[place(copy)] = Some(number);
                let fill = Fill { head: index, copy: place(copy), number };
                self.agenda.after(100, Event::Fill { fill, until: None });
            }
            Effect::EndFill(copy) => self.heads[index].fills[place(copy)] = None,
            // A zone opens its failed copies again by itself; to one that hangs another way is made.
            Effect::Reopen(copy) => {
                if !self.copies[place(copy)].has_failed() {
                    self.break_link(index, place(copy));
                }
            }
            Effect::Tell(Told::Deposed(why)) => {
                self.note(|| format!("daemon {index}: {why}"));
                self.heads[index].record = Record::default();
                self.kill_head(index);
                self.agenda.after(500_000, Event::StartHead(index));
            }
            Effect::Tell(Told::Open(lsn, ballot)) => {
                self.note(|| format!("daemon {index} is open: redo up to {}, ballot {ballot}", lsn.0));
                self.report.openings += 1;
                self.become_head(index, ballot);
            }
            Effect::Tell(told) => self.note(|| format!("daemon {index}: {told:?}")),
        }
    }

    pub fn inspect(&mut self, way: Way, ballot: Ballot) {
        let found = self.leads(way).then(|| {
            let disk = self.copies[way.copy].disk();
            (Contents { segments: disk.infos(), histories: disk.histories() }, disk.content())
        });
        let (life, after) = (self.heads[way.head].life, 100 + self.dice.below(3_000));
        let Way { head, copy, .. } = way;
        self.agenda.after(after, Event::Inspected { head, life, copy, ballot, found });
    }

    pub fn inspected(
        &mut self,
        index: usize,
        life: u64,
        copy: usize,
        ballot: Ballot,
        found: Option<(Contents, BTreeMap<u64, u32>)>,
    ) -> Result<(), String> {
        if !self.is_alive(index, life) {
            return Ok(());
        }
        let head = &mut self.heads[index];
        if ballot == head.log.quorum().ballot()
            && let Some((_, content)) = &found
        {
            head.content.clone_from(content);
            head.checked = Durable::default();
        }
        let found = found.map(|(contents, _)| contents).ok_or(VolumeError::Closed);
        head.log.inspected(id(copy), ballot, found);
        self.carry_out(index)
    }

    pub fn append(&mut self, index: usize, life: u64) -> Result<(), String> {
        if !self.is_alive(index, life) {
            return Ok(());
        }
        let after = 2_000 + self.dice.below(20_000);
        self.agenda.after(after, Event::Append { head: index, life });
        if self.heads[index].log.phase() != Phase::Open {
            return Ok(());
        }
        if let Some((generation, begin)) = self.heads[index].reset {
            // As `Volume::reset`: opened anew in between, it may have the old log again.
            match self.heads[index].log.quorum().generation() >= generation {
                true => self.heads[index].reset = None,
                false => return self.reset(index, begin),
            }
        }
        if self.calm && self.since_turned_us() > CALM_APPENDS_US {
            return Ok(());
        }
        let empty = self.heads[index].log.durable().lsn == Lsn::ZERO;
        if empty || !self.calm && self.dice.one_in(300) {
            let lsn = Lsn(100 + self.dice.below(300));
            return self.reset(index, Durable { lsn, timeline: Timeline(1), epoch: Epoch(0) });
        }
        let mut timeline = self.heads[index].log.queued().timeline;
        if self.dice.one_in(100) {
            let fork_lsn = self.heads[index].log.queued().lsn;
            let history = forked(self.heads[index].log.history(timeline), timeline, fork_lsn)?;
            let kept = self.heads[index].log.keep_history(&history);
            if kept.map_err(|e| e.to_string())? {
                timeline = history.timeline;
                self.report.timelines += 1;
            }
            self.carry_out(index)?;
        }
        self.append_on(index, timeline)?;
        if self.dice.one_in(50) {
            let need = self.heads[index].log.durable().lsn.0.saturating_sub(self.dice.below(60));
            self.heads[index].log.needs_mut().set("a region", Some(Lsn(need)));
        }
        if self.dice.one_in(200) {
            let copy = CopyId(u8::try_from(self.dice.below(6)).unwrap_or(0));
            self.heads[index].log.detach(copy);
            self.carry_out(index)?;
        }
        Ok(())
    }

    pub fn append_on(&mut self, index: usize, timeline: Timeline) -> Result<(), String> {
        let begin_lsn = self.heads[index].log.queued().lsn;
        let batch = Batch {
            epoch: Epoch(1),
            timeline,
            begin_lsn,
            end_lsn: begin_lsn + 1,
            context_lsn: begin_lsn,
            newest_commit_us: self.wall_us(),
            redo_crc32c: self.next_redo,
            payload: Bytes::from_static(b"redo"),
            ends_in_record: false,
        };
        let head = &mut self.heads[index];
        match head.log.append(Redo { batch, bytes: Bytes::from_static(b"r") }) {
            Ok(Appended::NoRoom(_)) => return Ok(()),
            Ok(Appended::Queued { begins_segment }) => {
                head.content.insert(begin_lsn.0, self.next_redo);
                self.next_redo += 1;
                self.carry_out(index)?;
                if begins_segment {
                    let now_us = self.wall_us();
                    self.heads[index].log.retain(now_us);
                }
            }
            Err(e) => return Err(format!("daemon {index}: {e}")),
        }
        self.carry_out(index)
    }

    pub fn reset(&mut self, index: usize, begin: Durable) -> Result<(), String> {
        let head = &mut self.heads[index];
        let begun = head.log.reset(begin).map_err(|e| e.to_string())?;
        if let Some(generation) = begun {
            // No copy has anything of it yet.
            if head.log.phase() == Phase::Open || head.log.durable() != Durable::default() {
                return Err(format!("daemon {index} calls log {generation} open, and has only begun it"));
            }
            head.reset = Some((generation, begin));
            head.content.clear();
            head.checked = Durable::default();
            self.report.resets += 1;
            self.note(|| format!("daemon {index} begins log {generation} at {}", begin.lsn.0));
        }
        self.carry_out(index)
    }

    // Repair, as the daemon's: what is brought, and from where, the log says.

    pub fn is_current(&self, fill: Fill) -> bool {
        self.heads[fill.head].alive && self.heads[fill.head].fills[fill.copy] == Some(fill.number)
    }

    pub fn fill(&mut self, fill: Fill, until: Option<Lsn>) -> Result<(), String> {
        if !self.is_current(fill) {
            return Ok(());
        }
        let Fill { head: index, copy, .. } = fill;
        if let Some(end_lsn) = until {
            match self.heads[index].log.is_filled(id(copy), end_lsn) {
                Some(true) => {}
                Some(false) => {
                    self.agenda.after(3_000, Event::Fill { fill, until });
                    return Ok(());
                }
                None => {
                    self.heads[index].fills[copy] = None;
                    return Ok(());
                }
            }
        }
        let step = self.heads[index].log.fill(id(copy));
        match step {
            FillStep::Live => {
                self.heads[index].fills[copy] = None;
            }
            FillStep::Over => self.heads[index].fills[copy] = None,
            FillStep::NoSource(_) => self.agenda.after(50_000, Event::Fill { fill, until: None }),
            FillStep::Bring { writer, from_lsn, source, history } => match self.way(index, source) {
                Some(source) => {
                    let after = 200 + self.dice.below(5_000);
                    self.agenda.after(after, Event::Bring { fill, writer, from_lsn, source, history });
                }
                None => self.agenda.after(50_000, Event::Fill { fill, until: None }),
            },
        }
        self.carry_out(index)
    }

    pub fn bring(&mut self, fill: Fill, writer: Writer, from_lsn: Lsn, source: Way, history: Timeline) {
        if !self.is_current(fill) {
            return;
        }
        let again = Event::Fill { fill, until: None };
        let (Some(way), true) = (self.way(fill.head, id(fill.copy)), self.leads(source)) else {
            return self.agenda.after(50_000, again);
        };
        let disk = self.copies[source.copy].disk();
        let sealed = sealed_from(&disk.infos(), from_lsn);
        let unreadable = |world: &mut World| {
            // As a reader that finds damage: the copy is suspected, and read back.
            world.heads[fill.head].log.tally_mut(id(source.copy)).damage = vec!["rot".into()];
            world.agenda.after(1_000, Event::Scrub { way: source });
            world.agenda.after(50_000, Event::Fill { fill, until: None });
        };
        if let Some(last) = sealed.last() {
            let end_lsn = last.end_lsn;
            let fetched: Option<VecDeque<_>> = sealed
                .iter()
                .map(|info| Some((Put { writer, segment: *info, history }, disk.fetch(*info)?)))
                .collect();
            let Some(segments) = fetched else { return unreadable(self) };
            let after = 500 + self.dice.below(5_000);
            return self.agenda.after(after, Event::Put { fill, way, segments, end_lsn });
        }
        let count = 1 + usize::try_from(self.dice.below(8)).unwrap_or(0);
        let Some(records) = disk.read(from_lsn, count) else { return unreadable(self) };
        let mut end_lsn = from_lsn;
        for stored in records {
            end_lsn = stored.batch.end_lsn;
            self.send(way, Order::Append { writer, stored, hurried: true });
        }
        self.agenda.after(1_000, Event::Fill { fill, until: Some(end_lsn) });
    }

    /// A segment comes by another way than the orders do.
    pub fn put(&mut self, fill: Fill, way: Way, mut segments: VecDeque<(Put, Vec<Stored>)>, end_lsn: Lsn) {
        let Some((put, prepared)) = segments.pop_front() else {
            return self.agenda.after(1_000, Event::Fill { fill, until: Some(end_lsn) });
        };
        if !self.leads(way) {
            return self.agenda.after(50_000, Event::Fill { fill, until: None });
        }
        let (done, installed) = oneshot::channel();
        let work = Work::Install { put, prepared, done };
        let copy = &mut self.copies[way.copy];
        copy.queue.push(Task { work, listener: Arc::new(|_| {}) });
        copy.putting.push(Putting { fill, way, rest: segments, end_lsn, done: installed });
        self.wake(way.copy, true);
    }

    /// As a reading back that finds damage: the newest segment is given up, another is put in place anew from
    /// a peer.
    pub fn scrub(&mut self, way: Way) -> Result<(), String> {
        if !self.has_way(way) || !self.leads(way) {
            return Ok(());
        }
        let Way { head: index, copy, .. } = way;
        let log = &mut self.heads[index].log;
        log.tally_mut(id(copy)).damage.clear();
        if !log.quorum().is_adopted(id(copy)) {
            return Ok(());
        }
        match self.copies[copy].disk().rotten() {
            Some((_, true)) => {
                let _ = log.distrust(id(copy));
                self.note(|| format!("daemon {index} distrusts the newest segment of copy {copy}"));
            }
            Some((info, false)) => {
                let put = Put { writer: log.quorum().writer(), segment: info, history: log.newest_history() };
                let peers = log.holders(info.begin_lsn);
                let same = |peer: &usize| self.copies[*peer].disk().infos().contains(&info);
                let peers: Vec<usize> = peers.map(place).filter(|peer| *peer != copy).filter(same).collect();
                let fetched = peers.iter().find_map(|peer| self.copies[*peer].disk().fetch(info));
                let hangs = self.heads[index].log.hangs_on(id(copy));
                if let Some(prepared) = fetched {
                    let (done, _) = oneshot::channel();
                    let work = Work::Install { put, prepared, done };
                    self.copies[copy].queue.push(Task { work, listener: Arc::new(|_| {}) });
                    self.wake(copy, true);
                } else if hangs.is_some_and(|lsn| self.copies[copy].disk().read(lsn, 8).is_none()) {
                    let _ = self.heads[index].log.distrust(id(copy));
                    self.note(|| format!("daemon {index}: nobody else has what rotted in copy {copy}"));
                }
            }
            None => {}
        }
        self.carry_out(index)
    }

    pub fn said(&mut self, way: Way, said: Said) -> Result<(), String> {
        if !self.has_way(way) {
            return Ok(());
        }
        let Way { head: index, copy, .. } = way;
        self.heads[index].log.hear(id(copy), said);
        self.carry_out(index)
    }
}
