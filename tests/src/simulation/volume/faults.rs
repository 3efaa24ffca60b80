//! What goes wrong: links, processes, power, zones and disks.

use proto::Lsn;
use volume::copy::Stored;
use volume::quorum::WRITE_QUORUM;

use super::{Copy, Event, World, id};

impl World {
    pub fn fault(&mut self) {
        if self.calm {
            // The next bout, if there is one, begins with it.
            return self.agenda.after(300_000, Event::Fault);
        }
        self.report.faults += 1;
        let copy = usize::try_from(self.dice.below(6)).unwrap_or(0);
        let head = usize::try_from(self.dice.below(2)).unwrap_or(0);
        let long = if self.dice.one_in(8) { 8_000_000 } else { 2_000_000 };
        let back = 50_000 + self.dice.below(long);
        match self.dice.below(21) {
            0..=2 if self.copies[copy].alive => {
                self.note(|| format!("copy {copy} is killed"));
                let power = self.dice.one_in(2);
                self.kill_copy(copy, power);
                self.agenda.after(back, Event::StartCopy(copy));
            }
            3 | 4 => {
                self.note(|| format!("the zone of copy {copy} goes away"));
                self.kill_copies(copy / 2 * 2..copy / 2 * 2 + 2, back);
            }
            5 if self.dice.one_in(3) => {
                self.note(|| "the power goes everywhere".into());
                self.kill_copies(0..6, back / 4);
                for head in 0..2 {
                    if self.heads[head].alive {
                        self.kill_head(head);
                        let back = self.dice.below(500_000);
                        self.agenda.after(back, Event::StartHead(head));
                    }
                }
            }
            6 | 7 if self.heads[head].alive => {
                self.note(|| format!("daemon {head} is killed"));
                self.kill_head(head);
                self.agenda.after(back / 4, Event::StartHead(head));
            }
            // The other daemon starts while the first one runs.
            8 => self.agenda.after(0, Event::StartHead(head)),
            9 | 10 => {
                self.note(|| format!("the link of daemon {head} to copy {copy} breaks"));
                self.break_link(head, copy);
            }
            11 if self.dice.one_in(4) => {
                self.note(|| format!("the disk of copy {copy} hangs"));
                self.copies[copy].hung_until_us = self.agenda.now_us + back + 20_000_000;
            }
            11 => {
                self.note(|| format!("copy {copy} is slow"));
                self.copies[copy].slow_until_us = self.agenda.now_us + back;
            }
            12 | 13 => self.lose_disk(copy, back),
            14..=16 => self.rot(copy, back),
            17 | 20 if self.hurt.is_empty() => {
                self.note(|| format!("the zone of copy {copy} goes away, and worse follows"));
                self.kill_copies(copy / 2 * 2..copy / 2 * 2 + 2, 900_000);
                self.agenda.after(700_000, Event::WorstHour(copy / 2));
            }
            // Two at once.
            18 | 19 => self.agenda.after(0, Event::StartHead(1)),
            _ => {}
        }
        let after = 20_000 + self.dice.below(600_000);
        self.agenda.after(after, Event::Fault);
    }

    /// While a zone is behind, everything goes, and two copies that have everything rot, where that can be
    /// proved, or their disks are lost. The other two are back last: what was durable must be waited for.
    pub fn worst_hour(&mut self, zone: usize) {
        let others: Vec<usize> = (0..6).filter(|copy| copy / 2 != zone).collect();
        let alive = others.iter().all(|copy| self.copies[*copy].alive);
        if self.calm || !alive || !self.hurt.is_empty() || self.intact_without(zone * 2) < 4 {
            return;
        }
        self.report.faults += 1;
        self.note(|| format!("the power goes everywhere while zone {zone} is behind"));
        let spared = others.iter().position(|copy| copy / 2 != others[0] / 2).unwrap_or(0);
        let disks = self.dice.one_in(2);
        for (index, copy) in others.iter().enumerate() {
            let back = if index >= spared { 2_000_000 } else { 50_000 };
            if index < spared && disks {
                self.lose_disk(*copy, back);
            } else if index < spared {
                let keeper = self.copies[*copy].keeper.as_mut();
                let may = |stored: &Stored, proof: Lsn| stored.batch.end_lsn <= proof;
                if keeper.is_some_and(|keeper| keeper.store_mut().rot(&mut self.dice, may)) {
                    self.hurt.insert(*copy);
                }
            }
            // One whose disk is lost does not run any more.
            if self.copies[*copy].alive {
                self.kill_copy(*copy, true);
                self.agenda.after(back, Event::StartCopy(*copy));
            }
        }
        for head in 0..2 {
            self.kill_head(head);
        }
        self.agenda.after(100_000, Event::StartHead(0));
    }

    /// Something happens to the copy whose log was just chosen, which may be the only one that has its end.
    pub fn hit_donor(&mut self, copy: usize) {
        if self.calm || !self.copies[copy].alive {
            return;
        }
        self.report.faults += 1;
        self.note(|| format!("copy {copy}, whose log was chosen, is hit"));
        let back = 50_000 + self.dice.below(2_000_000);
        match self.dice.below(4) {
            0 => (0..2).for_each(|head| self.break_link(head, copy)),
            1 => self.lose_disk(copy, back),
            2 => self.rot(copy, back),
            _ => {
                self.kill_copy(copy, true);
                self.agenda.after(back, Event::StartCopy(copy));
            }
        }
    }

    pub fn kill_copies(&mut self, copies: std::ops::Range<usize>, back: u64) {
        for copy in copies {
            if self.copies[copy].alive {
                self.kill_copy(copy, true);
                let later = self.dice.below(50_000);
                self.agenda.after(back + later, Event::StartCopy(copy));
            }
        }
    }

    /// Disks are lost, with a daemon or without one, while two others have everything: two at once, as
    /// Aurora's promise says, not three. A copy that never came to be a part of the volume counts as one.
    pub fn lose_disk(&mut self, copy: usize, back: u64) {
        let enough = self.intact_without(copy) >= 2 && self.remembering_without(copy) >= WRITE_QUORUM;
        if self.hurt.contains(&copy) || self.hurt.len() >= 2 || !enough {
            return;
        }
        self.note(|| format!("the disk of copy {copy} is lost"));
        self.hurt.insert(copy);
        self.kill_copy(copy, true);
        let (life, seed) = (self.copies[copy].life, self.dice.below(u64::MAX));
        self.copies[copy] = Copy { life, alive: false, ..Copy::new(seed, &self.spoken) };
        self.agenda.after(back, Event::StartCopy(copy));
    }

    /// A record of the newest segment rots. While four others have everything, any; otherwise one that a
    /// later record proves to have been durable, as long as two others have everything.
    pub fn rot(&mut self, copy: usize, back: u64) {
        let intact = self.intact_without(copy);
        if self.hurt.contains(&copy) || self.hurt.len() >= 2 || intact < 2 {
            return;
        }
        let any = intact >= 4;
        let may = |stored: &Stored, proof: Lsn| any || stored.batch.end_lsn <= proof;
        let running = self.copies[copy].alive && self.dice.one_in(2);
        let Copy { keeper, .. } = &mut self.copies[copy];
        let Some(keeper) = keeper else { return };
        if !keeper.store_mut().rot(&mut self.dice, may) {
            return;
        }
        self.hurt.insert(copy);
        self.note(|| format!("the newest redo of copy {copy} rots"));
        if running {
            for head in 0..2 {
                if let Some(way) = self.way(head, id(copy)) {
                    self.agenda.after(back / 10, Event::Scrub { way });
                }
            }
        } else {
            self.kill_copy(copy, true);
            self.agenda.after(back, Event::StartCopy(copy));
        }
    }
}
