//! What takes longer than giving an order: opens copies again, asks what a copy holds, fills, reads back,
//! looks at the time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use runtime::task::{Task, Tasks};
use tokio::sync::mpsc;

use crate::VolumeError;
use crate::copy::Event;
use crate::head::{Head, Jobs};
use crate::quorum::{CopyId, CopyState};
use crate::repair;

/// How often copies are looked at, and retention by age is.
const TICK: Duration = Duration::from_secs(1);

/// How long after a copy failed it is opened again.
const REOPEN_AFTER: Duration = Duration::from_secs(2);

/// How long a copy may take to say what it holds before the log of another one is chosen.
const INSPECT: Duration = Duration::from_secs(10);

/// Does what the head asks for, for as long as the volume lives.
pub(crate) async fn supervise(head: Arc<Head>) {
    let mut fills: BTreeMap<CopyId, Task<()>> = BTreeMap::new();
    let mut inspection = None;
    // Readings back and openings anew: they end with the supervisor.
    let others = Tasks::new();
    // One at a time: a disk may hang.
    let mut looking: Option<Task<()>> = None;
    let mut tick = tokio::time::interval(TICK);
    let mut tuning = head.tuning.subscribe();
    let mut scrub_every = tuning.borrow_and_update().scrub_every;
    let mut scrub = tokio::time::interval(scrub_every);
    // The first tick is now.
    scrub.tick().await;
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        let Jobs { inspect, fills: changed, damaged, reopen: failed, forged } = tokio::select! {
            jobs = head.jobs() => jobs,
            _ = tick.tick() => {
                head.change(|log| log.tick(runtime::clock::wall_us()));
                if looking.as_ref().is_none_or(Task::has_ended) {
                    looking = Some(Task::spawn("look at the room", look_at_room(head.clone())));
                }
                continue;
            }
            // The sender is the head's.
            _ = tuning.changed() => {
                let every = tuning.borrow_and_update().scrub_every;
                if every != scrub_every {
                    scrub_every = every;
                    scrub = tokio::time::interval(every);
                    scrub.reset();
                }
                continue;
            }
            _ = scrub.tick() => {
                others.spawn(repair::scrub_all(head.clone()));
                continue;
            }
        };
        if let Some((copy, ballot)) = inspect {
            let asked = head.clone();
            let inspecting = async move {
                let found = match asked.link(copy) {
                    Some(link) => tokio::time::timeout(INSPECT, link.contents())
                        .await
                        .unwrap_or_else(|_| Err(VolumeError::Hung { copy, seconds: INSPECT.as_secs() })),
                    None => Err(VolumeError::Closed),
                };
                asked.change(|log| log.inspected(copy, ballot, found));
            };
            // Of an earlier opening nothing is to be known any more.
            inspection = Some(Task::spawn("asking what a copy holds", inspecting));
        }
        for (copy, from_lsn) in changed {
            fills.remove(&copy);
            if let Some(from_lsn) = from_lsn {
                let fill = repair::fill(head.clone(), copy, from_lsn);
                fills.insert(copy, Task::spawn("filling a copy", fill));
            }
        }
        for copy in damaged {
            others.spawn(repair::scrub_one(head.clone(), copy));
        }
        for (copy, begin_lsn) in forged {
            others.spawn(repair::replace(head.clone(), copy, begin_lsn));
        }
        for copy in failed {
            // A copy may say more than once that it failed.
            if head.set_reopening(copy, true) {
                continue;
            }
            let head = head.clone();
            others.spawn(async move {
                tokio::time::sleep(REOPEN_AFTER).await;
                let failed_again = reopen(&head, copy).await;
                head.set_reopening(copy, false);
                if failed_again {
                    head.ask_reopen(copy);
                }
            });
        }
        // Kept until the next one begins.
        let _ = &inspection;
    }
}

/// Tells the log how much room there is for the copies of this process.
async fn look_at_room(head: Arc<Head>) {
    let looking = head.clone();
    let room = runtime::task::blocking("look at the room", move || looking.look_at_room()).await;
    head.change(|log| log.set_room(room.ok().flatten()));
}

/// Opens a copy of this process for the first time, on a disk that may not answer: it joins when it does.
/// Passes on to `refuse` what must not be opened at all.
pub(crate) async fn open_first(head: Arc<Head>, copy: CopyId, refuse: mpsc::Sender<VolumeError>) {
    head.set_reopening(copy, true);
    let opening = head.clone();
    let opened = runtime::task::blocking("opening a copy", move || opening.open_local(copy)).await;
    head.set_reopening(copy, false);
    let Ok(Err(e)) = opened else { return };
    let foreign = matches!(
        e,
        VolumeError::OtherCluster { .. } | VolumeError::OtherCopy { .. } | VolumeError::LaterVersion { .. }
    );
    // Whoever starts the volume has gone on without this copy when it does not listen any more.
    if !foreign || refuse.try_send(e.clone()).is_err() {
        tracing::error!("copy {copy} is gone without: {e}");
        head.change(|log| log.hear(copy, Event::Failed(e.to_string())));
    }
}

/// Opens a copy of this process again; true when that failed.
async fn reopen(head: &Arc<Head>, copy: CopyId) -> bool {
    // One that failed under an earlier opening is not known to have failed under this one: but there is no
    // way to it.
    let failed = |head: &Head| {
        head.link(copy).is_none() || head.look(|log| matches!(log.quorum().state(copy), CopyState::Failed(_)))
    };
    let closed = head.look(|log| log.closed().is_some());
    if !head.options.copies.contains(&copy) || closed || !failed(head) {
        return false;
    }
    let opening = head.clone();
    match runtime::task::blocking("opening a copy", move || opening.open_local(copy)).await {
        Ok(Err(e)) => {
            head.change(|log| log.hear(copy, Event::Failed(e.to_string())));
            true
        }
        // A copy that failed anew while it was opened has said so.
        Ok(Ok(())) => failed(head),
        Err(_) => false,
    }
}
