//! The copies: orders come to them, their disks do the work, and they start and die.

use std::sync::Arc;

use tokio::sync::oneshot;
use volume::copy::keeper::{Store, Task, Work};
use volume::copy::{Event as Said, Order};

use super::disk::Fuse;
use super::{Event, Putting, Way, World, id};

impl World {
    pub fn order(&mut self, way: Way, order: Order) {
        if !self.leads(way) {
            return;
        }
        let hurried = !matches!(order, Order::Append { hurried: false, .. } | Order::Check(_));
        let (spoken, Way { head, copy, link }) = (self.spoken.clone(), way);
        let listener = Arc::new(move |said: Said| {
            spoken.with(|state| {
                if !state.silent {
                    state.said.push((head, link, copy, said));
                }
            });
        });
        self.copies[copy].queue.push(Task { work: Work::Order(order), listener });
        self.wake(copy, hurried);
    }

    /// The copy's thread wakes after a while.
    pub fn wake(&mut self, copy: usize, hurried: bool) {
        let slow = if self.agenda.now_us < self.copies[copy].slow_until_us { 300_000 } else { 3_000 };
        let hung = self.copies[copy].hung_until_us.saturating_sub(self.agenda.now_us);
        let after = hung + 50 + self.dice.below(slow) + if hurried { 0 } else { 20_000 };
        let life = self.copies[copy].life;
        self.agenda.after(after, Event::Work { copy, life });
    }

    pub fn work(&mut self, index: usize, life: u64) -> Result<(), String> {
        let copy = &mut self.copies[index];
        if copy.life != life || !copy.alive || copy.queue.is_empty() {
            return Ok(());
        }
        let tasks = std::mem::take(&mut copy.queue);
        if !self.calm && self.dice.one_in(1500) {
            let fuse = if self.dice.one_in(2) { Fuse::Power } else { Fuse::Fails };
            self.report.faults += 1;
            copy.keeper().store_mut().fuse = Some((self.dice.below(3), fuse));
            self.note(|| format!("copy {index}: {fuse:?} while it writes"));
        }
        let copy = &mut self.copies[index];
        let had_failed = copy.has_failed();
        copy.keeper().work(tasks.into_iter());
        if copy.has_failed() && !had_failed {
            let after = 100_000 + self.dice.below(100_000);
            self.agenda.after(after, Event::StartCopy(index));
        }
        let dead = copy.disk().dead;
        copy.keeper().store_mut().fuse = None;
        let said = self.spoken.with(|state| {
            state.silent = false;
            std::mem::take(&mut state.said)
        });
        for (head, link, copy, said) in said {
            let way = Way { head, copy, link };
            if let Said::Promised(ballot, _) = &said {
                let promise = &mut self.copies[copy].said_promise;
                *promise = (*promise).max(*ballot);
            }
            let at = self.arrival(link, false);
            if self.dice.one_in(50) {
                self.agenda.at(at, Event::Said { way, said: said.clone() });
            }
            self.agenda.at(at, Event::Said { way, said });
        }
        self.check_promises(index)?;
        if dead {
            self.kill_copy(index, true);
            let back = 50_000 + self.dice.below(2_000_000);
            self.agenda.after(back, Event::StartCopy(index));
            return Ok(());
        }
        self.see_puts(index)
    }

    /// What became of the segments that were to be put in place.
    pub fn see_puts(&mut self, index: usize) -> Result<(), String> {
        for mut putting in std::mem::take(&mut self.copies[index].putting) {
            let Putting { fill, way, end_lsn, .. } = putting;
            match putting.done.try_recv() {
                Err(oneshot::error::TryRecvError::Empty) => self.copies[index].putting.push(putting),
                Ok(Ok(())) => {
                    let segments = putting.rest;
                    let after = 100 + self.dice.below(2_000);
                    self.agenda.after(after, Event::Put { fill, way, segments, end_lsn });
                }
                _ if self.is_current(fill) => {
                    // Where it stands may be another place than was thought: it is asked.
                    self.heads[fill.head].log.again(id(fill.copy));
                    self.agenda.after(50_000, Event::Fill { fill, until: None });
                    self.carry_out(fill.head)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    pub fn start_copy(&mut self, index: usize) {
        let copy = &self.copies[index];
        if copy.alive && !copy.has_failed() {
            return;
        }
        if copy.alive {
            // A zone whose copy failed opens it again and connects anew: whoever had a way to it has to make
            // another.
            self.kill_copy(index, false);
        }
        let copy = &mut self.copies[index];
        copy.alive = true;
        copy.keeper().store_mut().open();
        let end = copy.disk().vote().end.lsn.0;
        self.note(|| format!("copy {index} starts, up to {end}"));
    }

    pub fn kill_copy(&mut self, copy: usize, power: bool) {
        self.copies[copy].close(power);
        self.copies[copy].alive = false;
        for head in 0..2 {
            self.break_link(head, copy);
        }
    }
}
