//! What a copy does with its orders: what it promises, adopts, appends and refuses, and when it says so. Pure
//! but for what a [`Store`] does: a directory in the daemon, a modelled disk in the simulation, under the
//! same lines.

use std::collections::VecDeque;

use tokio::sync::oneshot;

use super::meta::Meta;
use super::{Event, Listener, Order, Put, SegmentInfo, Stored};
use crate::ballot::Ballot;
use crate::planted::{self, Bug};
use crate::quorum::{Adoption, CopyId, Keep, Vote, Writer};
use crate::{Durable, VolumeError};
use proto::{Lsn, Timeline, TimelineHistory};

/// Where a copy keeps its promises, its redo and its timelines' histories. What is changed is on disk when a
/// call returns; an error means that the disk failed, and leaves open how much of the change is there.
pub trait Store {
    /// A peer's segment, written beside the log and checked.
    type Prepared;

    /// What the copy has promised, and what its log was written under.
    fn meta(&self) -> &Meta;

    /// The copy's description of itself.
    fn vote(&self) -> Vote;

    /// Where the redo ends.
    fn end(&self) -> Durable;

    /// Whether the log has no segment yet.
    fn is_empty(&self) -> bool;

    /// Replaces the meta.
    ///
    /// # Errors
    /// When the disk fails.
    fn write_meta(&mut self, meta: Meta) -> Result<(), VolumeError>;

    /// Cuts the log at `lsn`, which is where a record ends; what is behind it goes.
    ///
    /// # Errors
    /// When the disk fails.
    fn cut(&mut self, lsn: Lsn) -> Result<(), VolumeError>;

    /// Begins the log anew as `meta` says, with nothing in it.
    ///
    /// # Errors
    /// When the disk fails.
    fn begin_anew(&mut self, meta: Meta) -> Result<(), VolumeError>;

    /// Seals the newest segment and begins the one whose first record is `first`.
    ///
    /// # Errors
    /// When the disk fails.
    fn roll(&mut self, first: &Stored) -> Result<(), VolumeError>;

    /// Writes records that follow each other at the end of the newest segment, and flushes them.
    ///
    /// # Errors
    /// When the disk fails.
    fn write(&mut self, records: &[Stored]) -> Result<(), VolumeError>;

    /// Puts a whole segment of a peer in place: the next one of this log, or in the place of a damaged one.
    ///
    /// # Errors
    /// When it fits neither way, or the disk fails.
    fn install(&mut self, info: SegmentInfo, prepared: Self::Prepared) -> Result<Durable, VolumeError>;

    /// Whether it has a timeline's history; the first timeline needs none.
    fn has_history(&self, timeline: Timeline) -> bool;

    /// Keeps a timeline's history.
    ///
    /// # Errors
    /// When the disk fails.
    fn put_history(&mut self, history: &TimelineHistory) -> Result<(), VolumeError>;

    /// Drops segments that end at or before `lsn`.
    fn drop_before(&mut self, lsn: Lsn);

    /// Cuts the log where the newest segment begins: what is in it cannot be trusted.
    ///
    /// # Errors
    /// When the disk fails.
    fn distrust_newest(&mut self) -> Result<(), VolumeError>;

    /// Sees whether the files are still there.
    ///
    /// # Errors
    /// When they are not.
    fn check(&self) -> Result<(), VolumeError>;
}

/// Something for a copy to do.
#[derive(Debug)]
pub enum Work<P> {
    /// An order.
    Order(Order),
    /// A peer's segment is to be put in place.
    Install {
        /// Which one, and in whose name.
        put: Put,
        /// Its bytes, written beside the log and checked.
        prepared: P,
        /// Who waits for it.
        done: oneshot::Sender<Result<(), VolumeError>>,
    },
}

/// Something for a copy to do, and who hears what comes of it.
pub struct Task<P> {
    /// What.
    pub work: Work<P>,
    /// Who hears.
    pub listener: Listener,
}

/// Appends that are written as one, and who hears what comes of it.
pub struct Group {
    /// What is written; nothing where all of it is here already.
    pub records: Vec<Stored>,
    listener: Listener,
}

/// A copy, as far as it decides.
pub struct Keeper<S: Store> {
    id: CopyId,
    store: S,
    /// Hears what comes of a peer's segments: whoever was given the promise. A segment comes by another way
    /// than the orders.
    owner: Option<Listener>,
    /// A write failed: what is on disk behind the last flush is unknown, and asking again would not tell.
    /// Nothing more is written, so nothing more is called durable, until the copy is opened again.
    failed: Option<String>,
}

impl<S: Store> Keeper<S> {
    /// The keeper of what is in `store`.
    pub fn new(id: CopyId, store: S) -> Keeper<S> {
        Keeper { id, store, owner: None, failed: None }
    }

    /// What it keeps.
    pub fn store(&self) -> &S {
        &self.store
    }

    /// What it keeps, for the simulation to hurt.
    pub fn store_mut(&mut self) -> &mut S {
        &mut self.store
    }

    /// Ends it: what it kept is left.
    pub fn into_store(self) -> S {
        self.store
    }

    /// Whether its disk failed.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.failed.is_some()
    }

    /// Whose orders are carried out, and about which log.
    fn writer(&self) -> Writer {
        let Meta { promised, generation, .. } = *self.store.meta();
        Writer { ballot: promised, generation }
    }

    /// Whether an append of `by` is taken.
    fn takes(&self, by: Writer) -> bool {
        let own = self.writer();
        by == own || by.generation == own.generation && planted::is(Bug::TakesAnyBallot)
    }

    /// Does what was queued, in order. Appends that follow each other are written with one flush.
    pub fn work(&mut self, tasks: impl Iterator<Item = Task<S::Prepared>>) {
        let mut tasks: VecDeque<Task<S::Prepared>> = tasks.collect();
        let mut rolled = false;
        loop {
            if let Some(group) = self.next_group(&mut tasks, std::mem::take(&mut rolled)) {
                self.write(group);
                continue;
            }
            match tasks.pop_front() {
                Some(Task { work: Work::Order(Order::Append { writer, stored, hurried }), listener })
                    if self.takes(writer) =>
                {
                    match self.begin_segment(&stored) {
                        Ok(()) => {
                            rolled = true;
                            let work = Work::Order(Order::Append { writer, stored, hurried });
                            tasks.push_front(Task { work, listener });
                        }
                        Err(why) => self.fail(why, &listener),
                    }
                }
                Some(Task { work, listener }) => self.carry_out(work, &listener),
                None => return,
            }
        }
    }

    /// Takes the appends off the front of `tasks` that can be written as one behind what is here, which may
    /// be none that is not here already. None where something else is to be done first. When a segment was
    /// just `begun`, it is that of the first.
    pub fn next_group(&mut self, tasks: &mut VecDeque<Task<S::Prepared>>, begun: bool) -> Option<Group> {
        if self.failed.is_some() {
            return None;
        }
        let mut group: Option<Group> = None;
        let mut end_lsn = self.store.end().lsn;
        while let Some(Task { work: Work::Order(Order::Append { writer, stored, .. }), listener }) =
            tasks.front()
        {
            if !self.takes(*writer) {
                break;
            }
            let (begin_lsn, next_lsn) = (stored.batch.begin_lsn, stored.batch.end_lsn);
            // Filling may have brought what is on its way already.
            let known = next_lsn <= end_lsn;
            let first = group.as_ref().is_none_or(|group| group.records.is_empty());
            let begins = (stored.begins_segment || first && self.store.is_empty()) && !(begun && first);
            if !known && (begin_lsn != end_lsn || begins) {
                break;
            }
            let group =
                group.get_or_insert_with(|| Group { records: Vec::new(), listener: listener.clone() });
            group.listener = listener.clone();
            if !known {
                group.records.push(stored.clone());
                end_lsn = next_lsn;
            }
            tasks.pop_front();
        }
        group
    }

    /// Writes a group, and says what came of it.
    pub fn write(&mut self, group: Group) {
        if let Some(last) = group.records.last()
            && planted::is(Bug::FlushedEarly)
        {
            (group.listener)(Event::Flushed(last.batch.end_lsn));
        }
        let written = match group.records.is_empty() {
            true => Ok(()),
            false => self.store.write(&group.records),
        };
        self.written(&group, written);
    }

    /// A group was written, or not: says so.
    pub fn written(&mut self, group: &Group, written: Result<(), VolumeError>) {
        match written {
            Ok(()) => (group.listener)(Event::Flushed(self.store.end().lsn)),
            Err(e) => self.fail(e.to_string(), &group.listener),
        }
    }

    /// Begins the segment whose first record is `first`, which is to follow what is here.
    fn begin_segment(&mut self, first: &Stored) -> Result<(), String> {
        if let Some(why) = &self.failed {
            return Err(why.clone());
        }
        let end_lsn = self.store.end().lsn;
        if first.batch.begin_lsn == end_lsn {
            return self.store.roll(first).map_err(|e| e.to_string());
        }
        let missing = VolumeError::Discontinuous {
            begin_lsn: first.batch.begin_lsn,
            timeline: first.batch.timeline,
            epoch: first.batch.epoch,
            end_lsn,
            why: "redo before it is missing in this copy",
        };
        Err(missing.to_string())
    }

    fn carry_out(&mut self, work: Work<S::Prepared>, listener: &Listener) {
        if let Some(why) = &self.failed {
            return listener(Event::Failed(why.clone()));
        }
        let result = match work {
            Work::Install { put, prepared, done } => {
                let installed = self.may_put(&put).and_then(|()| self.store.install(put.segment, prepared));
                if let (Ok(end), Some(owner)) = (&installed, &self.owner) {
                    owner(Event::Flushed(end.lsn));
                }
                // Whoever asked and went away needs no answer.
                let _ = done.send(installed.map(drop));
                Ok(None)
            }
            Work::Order(order) => self.obey(order, listener),
        };
        match result {
            Ok(Some(event)) => listener(event),
            Ok(None) => {}
            Err(e) => self.fail(e.to_string(), listener),
        }
    }

    /// Whether a peer's segment may be put in place now.
    fn may_put(&self, put: &Put) -> Result<(), VolumeError> {
        let begin_lsn = put.segment.begin_lsn;
        if put.writer != self.writer() {
            return Err(VolumeError::OtherWriter { begin_lsn });
        }
        if !self.store.has_history(put.history) {
            return Err(VolumeError::NoHistory { begin_lsn, timeline: put.history });
        }
        Ok(())
    }

    fn obey(&mut self, order: Order, listener: &Listener) -> Result<Option<Event>, VolumeError> {
        match order {
            Order::Promise(ballot) => return self.promise(ballot, listener).map(Some),
            Order::Adopt(adoption) => return self.adopt(&adoption).map(Some),
            Order::Append { writer, .. }
            | Order::History(writer, _)
            | Order::DropBefore(writer, _)
            | Order::DistrustNewest(writer)
                if writer != self.writer() =>
            {
                let promised = self.store.meta().promised;
                // What the same writer says of its log before the last reset is about nothing that is left.
                return Ok((writer.ballot != promised).then_some(Event::Refused(promised)));
            }
            // The writer's appends were taken before they came here.
            Order::Append { .. } => {}
            Order::History(_, history) => self.store.put_history(&history)?,
            Order::DropBefore(_, lsn) => self.store.drop_before(lsn),
            Order::DistrustNewest(_) => self.store.distrust_newest()?,
            Order::Check(by) => {
                self.store.check()?;
                let promised = self.store.meta().promised;
                return Ok(by.filter(|by| by.ballot < promised).map(|_| Event::Refused(promised)));
            }
        }
        Ok(None)
    }

    /// Promises to take nothing below `ballot`; on disk before that is said.
    fn promise(&mut self, ballot: Ballot, listener: &Listener) -> Result<Event, VolumeError> {
        let meta = match self.store.meta().promise(ballot) {
            Ok(meta) => meta,
            Err(higher) => return Ok(Event::Refused(higher)),
        };
        self.owner = Some(listener.clone());
        if planted::is(Bug::PromisesUnwritten) {
            listener(Event::Promised(ballot, self.store.vote()));
        }
        if meta != *self.store.meta() {
            self.store.write_meta(meta)?;
        }
        Ok(Event::Promised(ballot, self.store.vote()))
    }

    /// Adopts the chosen log: cuts off what it does not have.
    fn adopt(&mut self, adoption: &Adoption) -> Result<Event, VolumeError> {
        let meta = match self.store.meta().adopt(adoption) {
            Ok(meta) => meta,
            Err(promised) => return Ok(Event::Refused(promised)),
        };
        match adoption.keep {
            Keep::Before(lsn) => {
                // Cut first: the ballots of the chosen log speak of what is left.
                if !planted::is(Bug::KeepsCut) {
                    self.store.cut(lsn)?;
                }
                self.store.write_meta(meta)?;
            }
            Keep::Nothing { .. } => self.store.begin_anew(meta)?,
        }
        Ok(Event::Adopted(adoption.ballot, adoption.generation, self.store.end().lsn))
    }

    fn fail(&mut self, why: String, listener: &Listener) {
        if self.failed.is_none() {
            tracing::error!("copy {} takes no more redo: {why}", self.id);
            self.failed = Some(why.clone());
        }
        listener(Event::Failed(why));
    }
}
