//! The thread that writes: takes everything queued, writes it in one go, makes it durable once, and says so.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use proto::{Lsn, Redo, Timeline, TimelineHistory};
use tokio::sync::{mpsc, oneshot};

use crate::copy::{Copy, SegmentEntry, at};
use crate::retention::{Held, Policy, droppable};
use crate::{Shared, VolumeError};

/// What the writer is asked to do.
pub(crate) enum Task {
    Append(Redo),
    Settle(oneshot::Sender<Result<(), VolumeError>>),
    Reset { begin_lsn: Lsn, timeline: Timeline, done: oneshot::Sender<Result<(), VolumeError>> },
    History { history: TimelineHistory, done: oneshot::Sender<Result<(), VolumeError>> },
}

impl std::fmt::Debug for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Task")
    }
}

/// Starts the writer. It ends when the last handle on the volume is gone.
pub(crate) fn spawn(copy: Copy, shared: Arc<Shared>, queue: mpsc::Receiver<Task>) -> Result<(), VolumeError> {
    let directory = shared.options.directory.clone();
    let segments = shared.lock().segments.clone();
    let writer = Writer { copy, shared, segments };
    let thread = std::thread::Builder::new().name("volume-writer".into());
    thread.spawn(move || writer.run(queue)).map(drop).map_err(at(&directory))
}

struct Writer {
    copy: Copy,
    shared: Arc<Shared>,
    /// The writer's own list; published under the lock once what it says is durable.
    segments: Vec<SegmentEntry>,
}

impl Writer {
    fn run(mut self, mut queue: mpsc::Receiver<Task>) {
        let mut group = Vec::new();
        while let Some(first) = queue.blocking_recv() {
            let mut next = Some(first);
            while let Some(task) = next.take() {
                match task {
                    Task::Append(redo) => group.push(redo),
                    other => {
                        self.append(&mut group);
                        self.carry_out(other);
                    }
                }
                next = queue.try_recv().ok();
            }
            self.append(&mut group);
        }
    }

    fn append(&mut self, group: &mut Vec<Redo>) {
        if group.is_empty() || self.shared.lock().read_only.is_some() {
            group.clear();
            return;
        }
        match self.copy.append(group, &mut self.segments) {
            Ok(durable) => {
                self.retain();
                let mut state = self.shared.lock();
                for redo in group.drain(..) {
                    state.tail.push(Arc::new(redo));
                }
                state.segments.clone_from(&self.segments);
                drop(state);
                self.shared.durable.send_replace(durable);
            }
            // What a failed write or fdatasync left on disk is unknown, and asking again would not tell: nothing more is
            // written, so nothing more is ever called durable.
            Err(e) => {
                tracing::error!("the volume takes no more redo: {e}");
                group.clear();
                self.shared.lock().read_only = Some(e.to_string());
            }
        }
    }

    fn carry_out(&mut self, task: Task) {
        // Whoever asked and went away needs no answer.
        let _ = match task {
            Task::Append(_) => Ok(()),
            Task::Settle(done) => done.send(match &self.shared.lock().read_only {
                Some(why) => Err(VolumeError::ReadOnly(why.clone())),
                None => Ok(()),
            }),
            Task::Reset { begin_lsn, timeline, done } => done.send(self.reset(begin_lsn, timeline)),
            Task::History { history, done } => done.send(self.history(history)),
        };
    }

    fn reset(&mut self, begin_lsn: Lsn, timeline: Timeline) -> Result<(), VolumeError> {
        let durable = self.copy.reset(begin_lsn, timeline)?;
        self.segments.clear();
        let mut state = self.shared.lock();
        state.segments.clear();
        state.tail.clear();
        state.histories.clear();
        state.needs.clear();
        state.queued = durable;
        drop(state);
        self.shared.durable.send_replace(durable);
        Ok(())
    }

    fn history(&mut self, history: TimelineHistory) -> Result<(), VolumeError> {
        self.copy.put_history(&history)?;
        self.shared.lock().histories.insert(history.timeline, history);
        Ok(())
    }

    /// Drops the oldest segments that need not be kept. A cursor that reads one holds its file open until it moves on.
    fn retain(&mut self) {
        let options = &self.shared.options;
        // The spare file takes its place too.
        let max_size_bytes = options.max_size_bytes.saturating_sub(options.segment_bytes);
        let retain_us = i64::try_from(options.retain.as_micros()).unwrap_or(i64::MAX);
        let held: Vec<Held> = self.segments.iter().map(SegmentEntry::held).collect();
        let needs: Vec<Lsn> = self.shared.lock().needs.values().copied().collect();
        let count = droppable(&held, needs, Policy { retain_us, max_size_bytes }, now_us());
        for segment in self.segments.drain(..count) {
            if let Err(e) = std::fs::remove_file(&segment.path) {
                tracing::warn!("{}: {e}", segment.path.display());
            }
        }
    }
}

impl SegmentEntry {
    fn held(&self) -> Held {
        Held {
            end_lsn: self.end_lsn,
            stored_bytes: self.stored_bytes,
            newest_commit_us: self.newest_commit_us,
        }
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "retention's driver; the decision takes the time as an argument"
)]
fn now_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}
