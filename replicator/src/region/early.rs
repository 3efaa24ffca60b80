//! A replica to which the head has handed over becomes the writer beside all else that its host does to
//! become the head: it has all that the last writer had, and to stop and start it takes as long as that.
//!
//! What runs then is what an earlier daemon of a region that led may have left running, and
//! `coordination::region` says what becomes of it. Nobody reads its redo before this region is known to lead,
//! so nothing that is written to it is acknowledged; and where the host does not become the head its data are
//! copied anew, as it may have written what nobody else has.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use postgres::instance::{Instance, Part, Stop};
use proto::{ClusterId, Lsn, RegionName, Timeline};
use runtime::clock::now;
use runtime::task::{Task, blocking};

use super::head::{Heading, disown_replica};
use crate::engine::Engine;
use crate::events::Journal;

/// How long a replica may take to stop cleanly.
const STOPS: Duration = Duration::from_secs(10);

/// Such a writer, as far as it is.
#[derive(Debug, Default)]
pub(super) struct Early(Mutex<State>);

#[derive(Debug, Default)]
enum State {
    /// There is none.
    #[default]
    None,
    /// It is being started.
    Begun(Task<Result<Started, String>>),
    /// It was.
    Started(Box<Started>),
}

/// A writer that was started.
#[derive(Debug)]
pub(super) struct Started {
    /// Where its redo ended by then, and on which timeline.
    pub(super) end_lsn: Lsn,
    pub(super) timeline: Timeline,
    pub(super) engine: Engine,
}

/// What a replica is made the writer of.
pub(super) struct Replica<'a> {
    pub(super) instance: &'a Instance,
    pub(super) journal: &'a Journal,
    /// Its node's record.
    pub(super) record: &'a Path,
    pub(super) cluster_id: ClusterId,
    pub(super) region: &'a RegionName,
}

impl Early {
    /// Begins to make the replica the writer, where the head has handed over to this host with a writer that
    /// has stopped.
    pub(super) fn begin(heading: Option<&Heading>, replica: &Replica<'_>) -> Early {
        let Some((heading, end_lsn)) =
            heading.and_then(|heading| heading.began.ended_lsn.map(|lsn| (heading, lsn)))
        else {
            return Early::default();
        };
        let Replica { instance, journal, record, cluster_id, region } = *replica;
        let disown = disown_replica(record, cluster_id, region, &heading.host);
        let begun = start(instance.clone(), journal.clone(), end_lsn, disown);
        Early(Mutex::new(State::Begun(Task::spawn("make the replica the writer", begun))))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was started, once it is; none where nothing was.
    pub(super) async fn started(&self) -> Option<Started> {
        let state = std::mem::take(&mut *self.state());
        match state {
            State::None => None,
            State::Started(started) => Some(*started),
            State::Begun(begun) => match begun.await.map_err(|e| e.to_string()).flatten() {
                Ok(started) => Some(started),
                Err(why) => {
                    tracing::warn!("the replica is not the writer yet: {why}");
                    None
                }
            },
        }
    }

    /// It is to be had again.
    pub(super) fn keep(&self, started: Started) {
        *self.state() = State::Started(Box::new(started));
    }

    /// It is not kept running any more; a server that runs goes on.
    pub(super) fn let_go(&self) {
        *self.state() = State::None;
    }
}

/// Stops the replica, which its node may have told to stop already, and starts it as the writer where it has
/// all redo up to `end_lsn`, and no more.
async fn start(
    instance: Instance,
    journal: Journal,
    end_lsn: Lsn,
    disown: impl FnOnce() -> Result<(), String> + Send + 'static,
) -> Result<Started, String> {
    let begin = now();
    // From here on the data may have what nobody else has.
    let disowning = blocking("disown a replica", disown);
    let (stopped, disowned) = tokio::join!(instance.stop(Stop::Fast, STOPS), disowning);
    stopped.map_err(|e| e.to_string())?;
    disowned.map_err(|e| e.to_string()).flatten()?;
    let stopped = begin.elapsed();
    let (looked, part) = (instance.clone(), Part::Writer { synchronous: true });
    let prepare = move || {
        let control = looked.control_data().map_err(|e| e.to_string())?;
        if !looked.is_standby() || !control.has_all(end_lsn) {
            return Err(format!("it is given first what it lacks of all up to {end_lsn}"));
        }
        looked.note_all_durable();
        looked.configure(part).map_err(|e| e.to_string())?;
        Ok(control.timeline())
    };
    let timeline =
        blocking("make a replica the writer", prepare).await.map_err(|e| e.to_string()).flatten()?;
    tracing::info!(
        "the replica has all redo up to {end_lsn}, and becomes the writer after {} ms, {} of them for its end",
        begin.elapsed().as_millis(),
        stopped.as_millis()
    );
    Ok(Started { end_lsn, timeline, engine: Engine::start(instance, journal) })
}
