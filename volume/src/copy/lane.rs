//! The thread that appends to all copies of this process: it begins the writes of all of them with one system
//! call, and waits for all with one more. Without it each copy's own thread is woken for each batch, and
//! waits for its own disk.
//!
//! A copy is with the lane while there is nothing but appends to do, and for anything else, or a write that
//! makes a file longer, it goes to its own thread and comes back. One writer at a time has it: it is handed
//! over as a value. A write that takes long holds up no other copy. Where the kernel has no [`Ring`] for this
//! process, copies stay with their threads.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use ring::{Ring, Waker};
use runtime::task::Thread;
use tokio::time::Instant;

use super::keeper::{Group, Keeper};
use super::{Files, Queue, Task, guard};
use crate::quorum::{COPIES, COPIES_PER_ZONE};

/// A write that takes longer than this is waited for by nobody but its own copy.
const SLOW: Duration = Duration::from_millis(5);

/// The lane of a process's copies. It ends with its last owner, and when the copies are closed.
pub struct Lane {
    shared: Arc<Shared>,
    _thread: Option<Thread>,
}

/// What the lane's thread shares with those who have something for it.
pub(super) struct Shared {
    waker: OnceLock<Waker>,
    /// It was woken, and has not looked since.
    woken: AtomicBool,
    inbox: Mutex<Inbox>,
}

#[derive(Default)]
struct Inbox {
    seats: Vec<Seat>,
    /// Nobody gives it copies any more.
    closed: bool,
    /// It takes none: the kernel has no ring, or it has ended.
    ended: bool,
}

/// A copy that is with the lane.
struct Seat {
    keeper: Keeper<Files>,
    queue: Arc<Queue>,
    tasks: VecDeque<Task>,
    flight: Option<(Group, Instant)>,
}

/// A copy on its way from the lane to its own thread.
pub(super) struct Handed {
    pub(super) keeper: Keeper<Files>,
    /// What is to be written first.
    pub(super) group: Option<Group>,
    /// What is to be done after it.
    pub(super) tasks: VecDeque<Task>,
}

impl Lane {
    /// A lane, with its thread.
    #[must_use]
    pub fn start() -> Arc<Lane> {
        let shared = Arc::new(Shared {
            waker: OnceLock::new(),
            woken: AtomicBool::new(false),
            inbox: Mutex::default(),
        });
        let lane = shared.clone();
        let thread = Thread::spawn("copies", move || run(&lane));
        if thread.is_err() {
            guard(&shared.inbox).ended = true;
        }
        Arc::new(Lane { shared, _thread: thread.ok() })
    }

    pub(super) fn shared(&self) -> Arc<Shared> {
        self.shared.clone()
    }
}

impl fmt::Debug for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lane").finish_non_exhaustive()
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        guard(&self.shared.inbox).closed = true;
        self.shared.wake();
    }
}

impl Shared {
    /// There is something to do.
    pub(super) fn wake(&self) {
        if !self.woken.swap(true, Ordering::SeqCst)
            && let Some(waker) = self.waker.get()
        {
            waker.wake();
        }
    }

    /// Gives a copy to the lane; back, where it takes none.
    pub(super) fn give(&self, keeper: Keeper<Files>, queue: &Arc<Queue>) -> Option<Keeper<Files>> {
        let mut inbox = guard(&self.inbox);
        if inbox.ended {
            return Some(keeper);
        }
        queue.go_to_lane();
        inbox.seats.push(Seat { keeper, queue: queue.clone(), tasks: VecDeque::new(), flight: None });
        drop(inbox);
        self.wake();
        None
    }
}

/// Appends until nobody has the lane any more.
fn run(shared: &Shared) {
    let ring = Ring::new(u32::from(COPIES));
    let mut ring = match ring {
        Ok(ring) => ring,
        Err(e) => {
            tracing::info!("no io_uring ({e}): each copy is written by its own thread, which costs more");
            let mut inbox = guard(&shared.inbox);
            inbox.ended = true;
            return drop(inbox.seats.drain(..).map(|seat| seat.leave(None)).collect::<Vec<()>>());
        }
    };
    let _ = shared.waker.set(ring.waker());
    let mut seats: Vec<Option<Seat>> = Vec::new();
    let mut done = Vec::new();
    loop {
        // Whoever comes with something after this wakes the ring.
        shared.woken.store(false, Ordering::SeqCst);
        {
            let mut inbox = guard(&shared.inbox);
            for seat in inbox.seats.drain(..) {
                match seats.iter().position(Option::is_none) {
                    Some(free) => seats[free] = Some(seat),
                    None => seats.push(Some(seat)),
                }
            }
            if inbox.closed && seats.iter().all(Option::is_none) {
                inbox.ended = true;
                return;
            }
        }
        let now = runtime::clock::now();
        let (mut wanted, mut due) = (0, None);
        for (token, place) in seats.iter_mut().enumerate() {
            if let Some(at) = go_on(place, token, &mut ring, now) {
                due = Some(due.map_or(at, |due: Instant| due.min(at)));
            }
            let flight = place.as_ref().and_then(|seat| seat.flight.as_ref());
            wanted += usize::from(flight.is_some_and(|(_, begun)| now.duration_since(*begun) < SLOW));
        }
        // One is not waited for with another that nobody hurries for.
        let wanted = if wanted > usize::from(COPIES_PER_ZONE) { wanted } else { 1 };
        let patience = due.map(|due| due.duration_since(now));
        if let Err(e) = ring.wait(wanted, patience, &mut done) {
            // What is under way is never heard of, and may still be written: these copies say nothing any
            // more, and nobody else may have their directories.
            std::mem::forget(seats);
            return tracing::error!("io_uring: {e}; the copies of this process take no more redo");
        }
        for done in done.drain(..) {
            let place = usize::try_from(done.token).ok().and_then(|token| seats.get_mut(token));
            let Some(Some(seat)) = place else { continue };
            let Some((group, _)) = seat.flight.take() else { continue };
            let ended = seat.keeper.store_mut().disk.ended(&group.records, done.write, done.result);
            seat.keeper.written(&group, ended);
        }
    }
}

/// Begins what there is to do for a copy; returns when there will be something.
fn go_on(place: &mut Option<Seat>, token: usize, ring: &mut Ring, now: Instant) -> Option<Instant> {
    let seat = place.as_mut().filter(|seat| seat.flight.is_none())?;
    let closed = match seat.queue.take_now(&mut seat.tasks, now) {
        Ok(()) => false,
        Err(Later::At(at)) if seat.tasks.is_empty() => return Some(at),
        Err(Later::Closed) if seat.tasks.is_empty() => true,
        Err(Later::Idle) if seat.tasks.is_empty() => return None,
        Err(_) => false,
    };
    let mut left = closed.then_some(None);
    while left.is_none() && !seat.tasks.is_empty() {
        let Some(group) = seat.keeper.next_group(&mut seat.tasks, false) else {
            left = Some(None);
            break;
        };
        if group.records.is_empty() {
            seat.keeper.written(&group, Ok(()));
            continue;
        }
        let write = seat.keeper.store_mut().disk.begin(&group.records);
        match write.map(|write| ring.begin(token as u64, write)) {
            Some(Ok(())) => {
                seat.flight = Some((group, now));
                return None;
            }
            Some(Err(_)) | None => left = Some(Some(group)),
        }
    }
    if let Some(group) = left
        && let Some(seat) = place.take()
    {
        seat.leave(group);
    }
    None
}

impl Seat {
    fn leave(self, group: Option<Group>) {
        self.queue.hand(Handed { keeper: self.keeper, group, tasks: self.tasks });
    }
}

/// Why there is nothing to be taken.
pub(super) enum Later {
    /// There is nothing.
    Idle,
    /// What is there gathers until then.
    At(Instant),
    /// The copy is closed, and everything is done.
    Closed,
}
