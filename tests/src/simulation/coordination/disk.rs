//! What a crash of a daemon leaves: what its voter remembers, and the redo, a row of numbers.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use coordination::{Acceptor, Electorate, Leadership, Lineage, Redo as Reach};
use proto::{BatchId, ClusterId, Epoch, Lsn, RegionName, Timeline, TimelineHistory};
use replicator::config::{Place, Role};
use replicator::region_file::{RegionFile, RegionState};

use super::lock;

/// One commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) id: u64,
    pub(super) epoch: Epoch,
}

/// What a crash leaves.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) kept: Arc<RegionFile>,
    pub(super) redo: Mutex<Redo>,
    /// A writer goes on running that the daemon before left behind.
    pub(super) writer_left: AtomicBool,
    /// The data directory is a writer's, and no standby's.
    pub(super) promoted: AtomicBool,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Redo {
    pub(super) log: Vec<Row>,
    /// Timelines before the newest, each with where it ends.
    pub(super) forks: Vec<(u32, usize)>,
    pub(super) timeline: u32,
    /// What was cut off, kept aside.
    pub(super) aside: Vec<Row>,
}

impl Redo {
    pub(super) fn history(&self) -> TimelineHistory {
        let lines = self.forks.iter().map(|(timeline, end)| format!("{timeline}\t{}\tx\n", Lsn(*end as u64)));
        let content: String = lines.collect();
        let parsed = TimelineHistory::parse(Timeline(self.timeline), content.as_bytes());
        parsed.unwrap_or_else(|e| unreachable!("timeline {} of {content}: {e}", self.timeline))
    }

    /// Its first `len` rows.
    pub(super) fn up_to(mut self, len: usize) -> Redo {
        if len < self.log.len() {
            self.timeline = self.timeline_at(len.saturating_sub(1));
            self.forks.retain(|(timeline, _)| *timeline < self.timeline);
            self.log.truncate(len);
        }
        self
    }

    /// What tells the row at this place from every other that was ever written.
    pub(super) fn batch_id(&self, at: usize) -> Option<BatchId> {
        let row = self.log.get(at)?;
        Some(BatchId {
            epoch: row.epoch,
            timeline: Timeline(self.timeline_at(at)),
            begin_lsn: Lsn(at as u64),
            end_lsn: Lsn(at as u64 + 1),
            newest_commit_us: i64::from_le_bytes(row.id.to_le_bytes()),
            redo_crc32c: 0,
        })
    }

    pub(super) fn timeline_at(&self, at: usize) -> u32 {
        self.forks.iter().find(|(_, end)| at < *end).map_or(self.timeline, |(timeline, _)| *timeline)
    }
}

/// What a directory that was just made says.
fn fresh(places: &[Place], index: usize, id: u64, voters: Option<Electorate>) -> RegionState {
    let role = if index == 0 { Role::Primary } else { Role::Secondary };
    let first = Leadership { voters, ..Leadership::first(Epoch(1), places[0].name.clone()) };
    RegionState::new(ClusterId([1; 16]), places[index].name.clone(), role, first, id)
}

impl Disk {
    pub(super) fn new(places: &[Place], index: usize, id: u64, voters: Option<Electorate>) -> Disk {
        let state = fresh(places, index, id, voters);
        Disk {
            kept: Arc::new(RegionFile::in_memory(state)),
            redo: Mutex::default(),
            writer_left: AtomicBool::new(false),
            promoted: AtomicBool::new(false),
        }
    }

    /// Everything on it is gone; the directory that is made anew has `id`.
    pub(super) fn lose(&self, places: &[Place], index: usize, id: u64, voters: Option<Electorate>) {
        let _ = self.kept.change(|state| *state = fresh(places, index, id, voters));
        *lock(&self.redo) = Redo::default();
        self.writer_left.store(false, Ordering::Relaxed);
        self.promoted.store(false, Ordering::Relaxed);
    }

    /// Whether its voter remembers what it has promised.
    pub(super) fn remembers(&self) -> bool {
        self.kept.get().memory.remembers
    }

    pub(super) fn has_data(&self) -> bool {
        let state = self.kept.get();
        state.system_id.is_some() && !state.rejoining
    }

    /// The bug of a voter that has not written down what it promised.
    pub(super) fn forget(&self, primary: RegionName) {
        let forgotten = Acceptor::new(Leadership::first(Epoch(1), primary));
        let _ = self.kept.change(|state| state.acceptor = forgotten);
    }

    /// It has data on the line of `record`, and did not lead last.
    pub(super) fn can_lead(&self, record: &Leadership) -> bool {
        let redo = {
            let redo = lock(&self.redo);
            Reach::new(Timeline(redo.timeline), Lsn(redo.log.len() as u64))
        };
        let follows = self.has_data() && self.kept.get().role == Role::Secondary;
        follows && Lineage::of(record).on_line(redo).is_some()
    }

    pub(super) fn len(&self) -> usize {
        lock(&self.redo).log.len()
    }

    /// The log, and what was kept aside.
    pub(super) fn contents(&self) -> (Vec<Row>, Vec<Row>) {
        let redo = lock(&self.redo);
        (redo.log.clone(), redo.aside.clone())
    }
}
