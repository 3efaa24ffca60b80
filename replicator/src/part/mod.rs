//! The part that a region plays, and the one task that owns it.
//!
//! `coordination::region` decides; [`Owner`] carries out. Only [`Owner::run`] starts, stops or promotes
//! anything, one deed at a time. Whoever asks (a coordinator, a vote) is answered beside it: reading what the
//! region is never waits for a deed. While a deed goes on, the owner watches the record. A deed that the
//! record does not call for any more is given up where it waits, and what it began is stopped by the next
//! one. Before a step that cannot be undone the record is read again.
//!
//! The daemon and the simulation run this file; they differ in the [`Cluster`].

mod answers;
pub mod cluster;
mod deeds;
pub mod lease;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use coordination::Redo;
use coordination::leadership::Change;
use coordination::region::{self, Database, Deed, Facts, Part};
use proto::messages::{HandedOver, Refusal};
use proto::{Epoch, Lsn, RegionName};
use runtime::clock::now;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant;

use crate::config::Role;
use crate::region_file::RegionFile;
use crate::voter::{ChangeError, Voter};
pub use cluster::{Cluster, Observed, Trouble};

/// How often an owner with nothing to do looks whether its region was refused as the primary.
const LOOK: Duration = Duration::from_millis(50);

/// The wait before something that failed is tried again.
const AGAIN: Duration = Duration::from_millis(200);

/// How long a region may ask who leads before that is an error: at a start the other voters come up, too.
const ASKS_QUIETLY: Duration = Duration::from_secs(10);

/// How long naming the database in the record may keep the owner from other deeds.
const NAME: Duration = Duration::from_secs(1);

/// The wait before the record is asked again to name the database.
const NAME_AGAIN: Duration = Duration::from_secs(3);

/// The orders of coordinators that may wait. A coordinator gives one at a time; a second is there when
/// another took over.
const ORDERS_MAX: usize = 16;

/// What a coordinator orders, with the way to answer it.
#[derive(Debug)]
pub(crate) enum Order {
    /// Stop the writer for `to`.
    HandOver { to: RegionName, next_epoch: Epoch, answer: oneshot::Sender<Result<(), Refusal>> },
    /// Stop the writer, as another host of the region is to be its head.
    HandOverToHost(HandOverToHost),
    /// Gather what `from` has, if it is given, and apply everything.
    GetReady { epoch: Epoch, from: Option<(RegionName, Lsn)>, answer: oneshot::Sender<Result<Lsn, Refusal>> },
}

/// An order to stop the writer for another host of the region. Where it comes to nothing the writer runs
/// again.
#[derive(Debug)]
pub(crate) struct HandOverToHost {
    /// Told, once the writer has stopped, where its redo ends, which is durable in the volume, and from when
    /// on it took no writes.
    pub(crate) stopped: oneshot::Sender<(Redo, Instant)>,
    /// Tells whether the other host has all of that; or why it does not come to be the head.
    pub(crate) ready: oneshot::Receiver<Result<(), String>>,
    /// Told what came of it. Where it was handed over nothing else is done here any more.
    pub(crate) answer: oneshot::Sender<Result<(), Refusal>>,
}

/// A switchover for which the writer has stopped.
#[derive(Debug, Clone)]
struct Stopped {
    at: Instant,
    told: HandedOver,
}

#[derive(Debug)]
struct State {
    part: Part,
    stopped: Option<Stopped>,
    /// Why the owner cannot do what the record calls for; empty while it can.
    trouble: String,
    /// The trouble that the log was last told.
    logged: String,
    /// When the record was last asked to name the database.
    named_at: Option<Instant>,
    /// Since when the region asks who leads, without an answer.
    asks_since: Option<Instant>,
}

/// The owner of a region's part, and the handle to it.
#[derive(Debug)]
pub struct Owner<C> {
    me: RegionName,
    voter: Arc<Voter>,
    file: Arc<RegionFile>,
    cluster: C,
    state: Mutex<State>,
    orders: mpsc::Sender<Order>,
    queue: tokio::sync::Mutex<mpsc::Receiver<Order>>,
    /// Held while commits are allowed or held, with what that is decided by.
    holding: Mutex<()>,
    /// Told whenever the part has changed.
    changed: Notify,
}

impl<C: Cluster> Owner<C> {
    /// The owner of the part of region `me`, which plays none yet.
    #[must_use]
    pub fn new(me: RegionName, voter: Arc<Voter>, file: Arc<RegionFile>, cluster: C) -> Arc<Owner<C>> {
        let (orders, queue) = mpsc::channel(ORDERS_MAX);
        let state = State {
            part: Part::Starting,
            stopped: None,
            trouble: String::new(),
            logged: String::new(),
            named_at: None,
            asks_since: None,
        };
        Arc::new(Owner {
            me,
            voter,
            file,
            cluster,
            state: Mutex::new(state),
            orders,
            queue: tokio::sync::Mutex::new(queue),
            holding: Mutex::new(()),
            changed: Notify::new(),
        })
    }

    /// What the owner works with.
    pub fn cluster(&self) -> &C {
        &self.cluster
    }

    /// The part that the region plays.
    #[must_use]
    pub fn part(&self) -> Part {
        self.lock().part.clone()
    }

    /// Told when the part has changed.
    pub(crate) fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.changed.notified()
    }

    /// Why the region cannot do what the record calls for, in words; empty while it can.
    #[must_use]
    pub fn trouble(&self) -> String {
        self.lock().trouble.clone()
    }

    /// What the region is, but for its data directory, which takes time to look at.
    #[must_use]
    pub fn facts(&self, database: Database) -> Facts {
        let (state, observed) = (self.file.get(), self.cluster.observe());
        Facts {
            part: self.part(),
            led: state.role == Role::Primary && self.may_have_written(),
            rejoining: state.rejoining,
            has_data: state.system_id.is_some(),
            forgot: state.forgot,
            may_create: state.memory.may_create,
            unnamed: state.unnamed,
            database,
            writer_runs: observed.writer_runs,
            open: observed.open,
            durable: observed.durable,
            has_redo: observed.has_redo,
        }
    }

    /// Whether the region's writer may have taken writes, where its file says that it leads. That is said
    /// before a standby is promoted: a daemon that is started looks whether it was.
    fn may_have_written(&self) -> bool {
        self.part() != Part::Starting || self.cluster.was_promoted()
    }

    /// Does what the record calls for, and what coordinators order, for ever.
    pub async fn run(self: Arc<Self>) {
        let mut queue = self.queue.lock().await;
        loop {
            let changed = self.voter.changed();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let deed = self.next().await;
            match deed {
                Deed::Rest | Deed::Acknowledge(_) | Deed::Refuse(_) => {
                    if let Deed::Acknowledge(_) = deed {
                        self.acknowledge();
                    }
                    self.note(if let Deed::Refuse(why) = &deed { why.to_string() } else { String::new() });
                    // Both ask the other voters. A primary that is replaced meanwhile does not wait for them.
                    let asking = async {
                        self.look_into_refusal().await;
                        self.name_database().await;
                    };
                    tokio::select! {
                        biased;
                        () = asking => {}
                        () = self.over(&deed) => continue,
                    }
                    tokio::select! {
                        biased;
                        order = queue.recv() => if let Some(order) = order { self.obey(order).await },
                        () = &mut changed => {}
                        () = tokio::time::sleep(LOOK) => {}
                    }
                }
                Deed::AskWhoLeads => {
                    let asked = self.voter.change(&Change::Read).await;
                    self.note_silence(asked.as_ref().err());
                    match asked {
                        Ok(_) => {}
                        // It asks again as soon as it has come to have a memory.
                        Err(ChangeError::Forgot(_)) => {
                            let _ = tokio::time::timeout(AGAIN, &mut changed).await;
                        }
                        Err(_) => tokio::time::sleep(AGAIN).await,
                    }
                }
                deed => {
                    let failed = self.carry_out(&deed).await.err();
                    self.note(failed.as_ref().map(ToString::to_string).unwrap_or_default());
                    if failed.is_some() {
                        tokio::time::sleep(AGAIN).await;
                    }
                }
            }
        }
    }

    /// Lets commits return, or not, by what is known at this moment. A vote that forbids them is pending
    /// before it holds them ([`Owner::hold`]): either it is seen here, or the hold comes after this.
    fn acknowledge(&self) {
        let _holding = self.holding.lock().unwrap_or_else(PoisonError::into_inner);
        let deed = region::next(&self.me, &self.voter.view(), &self.facts(Database::Unknown));
        if let Deed::Acknowledge(allowed) = deed {
            self.cluster.acknowledge(allowed);
        }
    }

    /// Holds commits, from its return on until the record is known to allow them again.
    fn hold(&self) {
        let _holding = self.holding.lock().unwrap_or_else(PoisonError::into_inner);
        self.cluster.hold();
    }

    /// What the region does next, by what is known at this moment.
    async fn next(&self) -> Deed {
        let view = self.voter.view();
        // The data directory decides only how a region begins to lead.
        let begins = match self.part() {
            // What its data are is settled by what the volume has: it may be opened just now.
            Part::Starting => self.cluster.observe().open,
            Part::Following => true,
            _ => false,
        };
        let allowed = view.standing(&self.me).is_some_and(|standing| !standing.forbids());
        let database = match begins && allowed {
            true => match self.cluster.database(region::timeline_asked(&view)).await {
                Ok(database) => database,
                Err(e) => {
                    self.note(e.to_string());
                    return Deed::Rest;
                }
            },
            // The record may change before it is read again below: then this is not what decides.
            false => Database::Unknown,
        };
        // What was known before may have changed while that was looked at.
        let now_known = self.voter.view();
        if region::timeline_asked(&now_known) != region::timeline_asked(&view) {
            return Deed::Rest;
        }
        region::next(&self.me, &now_known, &self.facts(database))
    }

    /// A region that said that this one's epoch is over may know more.
    async fn look_into_refusal(&self) {
        if matches!(self.part(), Part::Leading { .. }) && self.cluster.observe().refused {
            let _ = self.voter.change(&Change::Read).await;
            self.cluster.forget_refusal();
        }
    }

    /// A primary whose database the record does not name yet has it named.
    async fn name_database(&self) {
        let state = self.file.get();
        let (Part::Leading { .. }, Some(system_id)) = (self.part(), state.system_id) else { return };
        if self.voter.view().named().is_some() {
            if state.unnamed
                && let Err(e) = self.keep(|state| state.unnamed = false)
            {
                tracing::error!("{e}");
            }
            return;
        }
        let waits = |at: Instant| at.elapsed() < NAME_AGAIN;
        if self.lock().named_at.is_some_and(waits) {
            return;
        }
        let change = Change::Name(system_id);
        let named = tokio::time::timeout(NAME, self.voter.change(&change)).await;
        let first = self.lock().named_at.replace(now()).is_none();
        if let (Ok(Err(e)), true) = (named, first) {
            tracing::warn!("the record of who leads does not name the database yet: {e}");
        }
    }

    fn note(&self, trouble: String) {
        let mut state = self.lock();
        if state.logged != trouble {
            if !trouble.is_empty() {
                tracing::error!("region {}: {trouble}", self.me);
            }
            state.logged.clone_from(&trouble);
        }
        state.trouble = trouble;
    }

    /// Keeps why nobody could tell who leads: at once for `status`, in the log only when it lasts.
    fn note_silence(&self, silence: Option<&ChangeError>) {
        let Some(silence) = silence else {
            self.lock().asks_since = None;
            return;
        };
        let trouble = format!("waiting to hear who leads: {silence}");
        let since = *self.lock().asks_since.get_or_insert_with(now);
        // What a voter without a memory waits for it says itself.
        match self.voter.remembers() && since.elapsed() >= ASKS_QUIETLY {
            true => self.note(trouble),
            false => self.lock().trouble = trouble,
        }
    }

    fn set(&self, part: Part) {
        let mut state = self.lock();
        if !matches!(part, Part::HandedOver { .. }) {
            state.stopped = None;
        }
        state.asks_since = None;
        state.part = part;
        drop(state);
        self.changed.notify_waiters();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // Nothing here is left half changed by a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `condition` holds of the region, as it may after each change of its part.
    async fn until(&self, condition: impl Fn(&Self) -> bool) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if condition(self) {
                return;
            }
            // What the cluster observes has no one to tell of it.
            tokio::select! {
                biased;
                () = &mut changed => {}
                () = tokio::time::sleep(Duration::from_millis(5)) => {}
            }
        }
    }

    fn stopped(&self) -> Option<HandedOver> {
        let state = self.lock();
        let Stopped { at, told } = state.stopped.as_ref()?;
        Some(HandedOver { stopped_us: runtime::clock::micros(now() - *at), ..told.clone() })
    }
}
