//! A replica to which the head has handed over becomes the writer beside all else that its host does to
//! become the head: it has all that the last writer had, and to stop and start it takes as long as that.
//!
//! What runs then is what an earlier daemon of a region that led may have left running, and
//! `coordination::region` says what becomes of it. Nobody reads its redo before this region is known to lead,
//! so nothing that is written to it is acknowledged; and where the host does not become the head its data are
//! copied anew, as it may have written what nobody else has.
//!
//! It has an owner from its beginning on: whatever else becomes of the host, it is [ended](Early::end).

use std::path::Path;
use std::time::Duration;

use postgres::instance::{Instance, Part, Stop};
use proto::{ClusterId, Lsn, RegionName, Timeline};
use runtime::clock::now;
use runtime::task::{Task, blocking};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::head::{Heading, disown_replica};
use crate::config::Config;
use crate::engine::Engine;
use crate::events::Journal;

/// How long a replica may take to stop cleanly.
const STOPS: Duration = Duration::from_secs(10);

/// Such a writer, as far as it is.
#[derive(Debug, Default)]
pub(super) struct Early {
    state: Mutex<State>,
    /// It is not to be started any more.
    given_up: CancellationToken,
}

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

impl State {
    /// Waits until what was begun has come to its end. Whoever does not wait so long leaves it to the next.
    async fn settle(&mut self) {
        if let State::Begun(begun) = self {
            *self = match begun.await.map_err(|e| e.to_string()).flatten() {
                Ok(started) => State::Started(Box::new(started)),
                Err(why) => {
                    tracing::warn!("the replica is not the writer yet: {why}");
                    State::None
                }
            };
        }
    }
}

/// A writer that was started.
#[derive(Debug)]
struct Started {
    /// Where its redo ended by then, and on which timeline.
    end_lsn: Lsn,
    timeline: Timeline,
    engine: Engine,
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
    pub(super) fn begin(heading: Option<&Heading>, config: &Config, replica: &Replica<'_>) -> Early {
        let Some((heading, end_lsn)) =
            heading.and_then(|heading| Some((heading, heading.was_handed(config)?)))
        else {
            return Early::default();
        };
        let Replica { instance, journal, record, cluster_id, region } = *replica;
        // Its redo is all that is asked of commits before they are seen: no other region has to have it.
        let opens = !config.commit.asks_secondaries();
        let disown = disown_replica(record, cluster_id, region, &heading.host);
        let given_up = CancellationToken::new();
        let making = Making {
            instance: instance.clone(),
            journal: journal.clone(),
            end_lsn,
            opens,
            given_up: given_up.clone(),
        };
        let begun = Task::spawn("make the replica the writer", making.start(disown));
        Early { state: Mutex::new(State::Begun(begun)), given_up }
    }

    /// Where the redo of what was started ended by then, and on which timeline, once it is started; none
    /// where nothing was, or is to be.
    pub(super) async fn ended_at(&self) -> Option<(Lsn, Timeline)> {
        let mut state = self.state.lock().await;
        state.settle().await;
        match &*state {
            State::Started(started) => Some((started.end_lsn, started.timeline)),
            State::None | State::Begun(_) => None,
        }
    }

    /// What was started, to be kept by whoever takes it.
    pub(super) async fn take(&self) -> Option<Engine> {
        let mut state = self.state.lock().await;
        state.settle().await;
        match std::mem::take(&mut *state) {
            State::Started(started) => Some(started.engine),
            State::None | State::Begun(_) => None,
        }
    }

    /// Ends it at once, as far as it is: nothing of it runs afterwards, or begins to. Returns whether it was
    /// started: its data may have what nobody else has.
    ///
    /// # Errors
    /// When it cannot be stopped.
    pub(super) async fn end(&self) -> Result<bool, String> {
        self.given_up.cancel();
        match self.take().await {
            // With an archive a clean end would put a segment there that the next writer writes anew.
            Some(engine) => engine.stop_now().await.map(|()| true).map_err(|e| e.to_string()),
            None => Ok(false),
        }
    }
}

/// What is done to make a replica the writer.
struct Making {
    instance: Instance,
    journal: Journal,
    end_lsn: Lsn,
    opens: bool,
    given_up: CancellationToken,
}

impl Making {
    /// Stops the replica, which its node may have told to stop already, and starts it as the writer where it
    /// has all redo up to where that ends, and no more.
    async fn start(
        self,
        disown: impl FnOnce() -> Result<(), String> + Send + 'static,
    ) -> Result<Started, String> {
        let Making { instance, journal, end_lsn, opens, given_up } = self;
        let begin = now();
        // From here on the data may have what nobody else has.
        let disowning = blocking("disown a replica", disown);
        let (stopped, disowned) = tokio::join!(instance.stop(Stop::Fast, STOPS), disowning);
        stopped.map_err(|e| e.to_string())?;
        disowned.map_err(|e| e.to_string()).flatten()?;
        let stopped = begin.elapsed();
        let (looked, part) = (instance.clone(), Part::Writer { synchronous: true });
        let gave_up = given_up.clone();
        let prepare = move || {
            let control = looked.control_data().map_err(|e| e.to_string())?;
            if !looked.is_standby() || looked.process().is_some() || !control.has_all(end_lsn) {
                return Err(format!("it is given first what it lacks of all up to {end_lsn}"));
            }
            if gave_up.is_cancelled() {
                return Err("it is not to be that any more".into());
            }
            if opens {
                looked.note_all_durable();
            }
            if let Err(e) = looked.configure(part) {
                // It stays what it is, or the host gives up with it.
                looked.configure(Part::Standby).map_err(|e| e.to_string())?;
                return Err(e.to_string());
            }
            Ok(control.timeline())
        };
        let timeline =
            blocking("make a replica the writer", prepare).await.map_err(|e| e.to_string()).flatten()?;
        if given_up.is_cancelled() {
            // Nothing was written to it: it goes on as the standby that it is.
            instance.configure(Part::Standby).map_err(|e| e.to_string())?;
            return Err("it is not to be that any more".into());
        }
        tracing::info!(
            "the replica has all redo up to {end_lsn}, and becomes the writer after {} ms, {} of them for its end",
            begin.elapsed().as_millis(),
            stopped.as_millis()
        );
        Ok(Started { end_lsn, timeline, engine: Engine::start(instance, journal) })
    }
}
