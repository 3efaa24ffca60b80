//! The head of the region moves to another of its hosts, on an operator's word. Whether it may is decided in
//! `coordination/src/succession.rs`; the writer is stopped by the owner of the region's part.
//!
//! The head tells its nodes where it goes, waits until that host is near and prepared, stops its writer
//! cleanly, sees its last record applied over there, and says its last word: that host stands at once, and
//! the zones' hosts give it their copies at once. Up to that word everything can be taken back. After it the
//! head steps down, whatever becomes of the other one: where that does not take over within the usual time,
//! another host does. Nothing that was said is relied on: what shuts the old head out is the volume.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use coordination::Redo;
use coordination::region::Part;
use coordination::succession::{self, Hindrance, Move, NEAR_BYTES, Target};
use postgres::instance::Part as PartOfPostgres;
use postgres::instance::control::ClusterState;
use proto::messages::finding::Outcome;
use proto::messages::refusal::Kind;
use proto::messages::{Finding, HeadMove, MoveHeadRequest, PromotionStep, Refusal};
use proto::{Lsn, NodeName, RegionState as State};
use runtime::clock::{boottime_us, micros, now};
use runtime::task::blocking;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use volume::quorum::CopyState;

use super::Region;
use crate::config::NodeConfig;
use crate::events::Kind as EventKind;
use crate::node::file::NodeFile;
use crate::node::plan::{Data, Origin};
use crate::part::{Cluster, HandOverToHost};
use crate::units::show_bytes;
use crate::zone::hearing::LastHead;

/// How long the checkpoint may take that is made while the writer goes on.
const CHECKPOINT: Duration = Duration::from_secs(30);

/// How long the other host may take to be near and prepared, while the writer goes on.
const PREPARES: Duration = Duration::from_secs(20);

/// How long the writer's last record may take to be applied by the other host.
const APPLIES: Duration = Duration::from_secs(3);

/// How long nodes may take to confirm the last word.
const LAST_WORD: Duration = Duration::from_millis(200);

/// How long the answer to the operator may take to leave, once the head has handed over.
const ANSWER: Duration = Duration::from_millis(100);

/// How long a head that has handed over may take to end, at most.
pub(super) const ENDS: Duration = Duration::from_secs(1);

/// How often it is looked how far the other host is.
const LOOK: Duration = Duration::from_millis(5);

/// For how long a host to which the head has moved looks when it takes writes, to tell how long nobody did.
const TAKES_WRITES: Duration = Duration::from_secs(120);

/// What the nodes are told of a move.
#[derive(Debug, Clone, Default)]
pub(super) struct Told {
    /// Where the head goes; empty while it stays.
    pub(super) to: String,
    /// When the writer was stopped: it is the last word.
    pub(super) stopped_at: Option<Instant>,
    /// Where its redo ends; none where there was none.
    pub(super) ended_lsn: Option<Lsn>,
}

/// An order, with the way to answer it.
type Ordered = (NodeName, oneshot::Sender<Result<HeadMove, Refusal>>);

/// The region's head on its way to another host.
#[derive(Debug)]
pub(crate) struct Moving {
    orders: mpsc::Sender<Ordered>,
    queue: tokio::sync::Mutex<mpsc::Receiver<Ordered>>,
    /// What the nodes are told.
    told: watch::Sender<Told>,
    /// Which of them have the last word, or are gone since it was said.
    heard: Mutex<BTreeSet<NodeName>>,
    /// A move is under way.
    busy: AtomicBool,
    /// The move that was ordered last, as far as it is; or the one that brought the head here.
    last: Mutex<HeadMove>,
    /// Where the redo of the writer ended that was stopped.
    stopped: Mutex<Option<Redo>>,
    /// The head has handed over, and this process is to end.
    over: CancellationToken,
}

impl Default for Moving {
    fn default() -> Moving {
        // One at a time.
        let (orders, queue) = mpsc::channel(1);
        Moving {
            orders,
            queue: tokio::sync::Mutex::new(queue),
            told: watch::Sender::default(),
            heard: Mutex::default(),
            busy: AtomicBool::new(false),
            last: Mutex::default(),
            stopped: Mutex::default(),
            over: CancellationToken::new(),
        }
    }
}

/// The steps of a move, and their times.
struct Steps<'a> {
    moving: &'a Moving,
    since: Instant,
}

impl Steps<'_> {
    fn done(&mut self, name: String) {
        let at = now();
        tracing::info!("the head moves: {name}, {} ms", (at - self.since).as_millis());
        self.moving.last().steps.push(PromotionStep { name, us: micros(at - self.since) });
        self.since = at;
    }
}

impl Moving {
    fn last(&self) -> MutexGuard<'_, HeadMove> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stopped(&self) -> MutexGuard<'_, Option<Redo>> {
        self.stopped.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the nodes are told, as it comes to be known.
    pub(super) fn watch_told(&self) -> watch::Receiver<Told> {
        self.told.subscribe()
    }

    /// This node has the last word, or is gone.
    pub(super) fn note_heard(&self, node: NodeName) {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).insert(node);
    }

    fn have_heard(&self, nodes: &BTreeSet<NodeName>) -> bool {
        nodes.is_subset(&self.heard.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns once the head has handed over, and whoever ordered it was told.
    pub(super) async fn over(&self) {
        self.over.cancelled().await;
    }

    /// Whether its last word was said.
    pub(super) fn is_said(&self) -> bool {
        self.told.borrow().stopped_at.is_some()
    }
}

fn busy(reason: impl Into<String>) -> Refusal {
    Refusal::new(Kind::Busy, reason)
}

impl Region {
    /// Answers an operator who has the head move, or looks how that goes.
    ///
    /// # Errors
    /// Why it does not move. It leads on then.
    pub(super) async fn answer_move(&self, request: MoveHeadRequest) -> Result<HeadMove, Refusal> {
        let to: NodeName = request.node.parse().map_err(|_| busy("that is no name of a node"))?;
        self.has_headed()?;
        if request.watch {
            let last = self.moving.last().clone();
            return Ok(HeadMove { head: self.host(), serves: self.serves_now().await, ..last });
        }
        let whole = self.may_move(&to);
        if request.dry_run || whole == Ok(false) {
            let findings = whole.err().unwrap_or_default();
            let findings = findings.iter().map(|why| self.finding(*why, &to)).collect();
            return Ok(HeadMove {
                head: self.host(),
                to: to.to_string(),
                dry_run: request.dry_run,
                findings,
                serves: self.serves_now().await,
                ..HeadMove::default()
            });
        }
        let (answer, answered) = oneshot::channel();
        let under_way = || busy("the head is on its way already: see `replicator events`");
        if self.moving.busy.swap(true, Ordering::Relaxed) {
            return Err(under_way());
        }
        self.moving.orders.try_send((to, answer)).map_err(|_| under_way())?;
        answered.await.unwrap_or_else(|_| Err(busy("this daemon is stopping")))
    }

    fn host(&self) -> String {
        let heading = self.heading.as_ref();
        heading.map_or_else(|| crate::config::HOME.to_owned(), |heading| heading.host.to_string())
    }

    /// Whether this host plays the region's part now: its writer takes writes, or the volume takes redo and
    /// the standby accepts connections.
    async fn serves_now(&self) -> bool {
        match self.owner.cluster().leader() {
            Some(leader) => {
                let facts = leader.facts();
                facts.state() == State::Streaming && facts.leads_surely()
            }
            None => match self.owner.cluster().follower() {
                Some(follower) => {
                    let follows = self.owner.part() == Part::Following && self.volume.status().writable;
                    follows && follower.facts().await.postgres_trouble.is_none()
                }
                None => false,
            },
        }
    }

    /// Whether the head may move to `to`, and has to, by what is known now.
    fn may_move(&self, to: &NodeName) -> Result<bool, Vec<Hindrance>> {
        let target = match self.its_node(to.as_str()) {
            _ if self.host() == to.as_str() => Target::Itself,
            Err(_) => Target::Unknown,
            Ok(own) => self.target(&own),
        };
        let local = self.own.local_copies();
        let copies = self.volume.status().copies;
        let elsewhere = copies.iter().filter(|copy| !local.contains(&copy.id));
        let state = self.state();
        let serves = match self.owner.cluster().leader() {
            Some(leader) => {
                matches!(self.owner.part(), Part::Leading { .. })
                    && leader.facts().leads_surely()
                    && leader.reads()
            }
            None => self.owner.part() == Part::Following && state.system_id.is_some() && !state.rejoining,
        };
        succession::moves(&Move {
            may_move: self.heading.is_some(),
            target,
            serves: serves && self.serves().is_ok(),
            promoting: self.voter.accepted().promotion.is_some(),
            copies_elsewhere: elsewhere.filter(|copy| copy.state == CopyState::Live).count(),
        })
    }

    fn target(&self, own: &NodeConfig) -> Target {
        let (report, applied) = self.known_of(&own.name);
        let origin = self.origin().map(|(origin, _)| origin.0);
        let follows = report.as_ref().is_some_and(|report| {
            report.state == State::Streaming.as_str() && Some(&report.origin) == origin.as_ref()
        });
        let durable_lsn = self.volume.bounds().durable_lsn;
        Target::Other {
            may_lead: own.may_lead(),
            connected: report.is_some(),
            follows,
            behind_bytes: applied.map(|lsn| durable_lsn.0.saturating_sub(lsn.0)),
        }
    }

    /// What hinders a move to `to`, for an operator.
    fn finding(&self, why: Hindrance, to: &NodeName) -> Finding {
        let region = &self.own.name;
        let (fact, action) = match why {
            Hindrance::Fixed => (
                "only the host of its daemon may be its head, as it has no `take_over_after`".to_owned(),
                "give it three hosts, each with a zone, and take_over_after = \"3s\": see docs/NODES.md"
                    .into(),
            ),
            Hindrance::Unknown => {
                let known: Vec<String> =
                    self.its_nodes().into_iter().map(|node| node.name.to_string()).collect();
                (format!("it has no host '{to}'; there are: {}, {}", self.host(), known.join(", ")), {
                    "name one of them".into()
                })
            }
            Hindrance::Unable => (
                format!("{to} may not be its head"),
                format!("it needs `zone`, `postgres` and `listen` in [region.{region}.node.{to}]"),
            ),
            Hindrance::Away => {
                (format!("{to} is not connected"), format!("start it: replicator run --node {region}.{to}"))
            }
            Hindrance::Apart => {
                let (report, _) = self.known_of(to);
                let report = report.unwrap_or_default();
                let detail =
                    if report.detail.is_empty() { String::new() } else { format!(": {}", report.detail) };
                (
                    format!("the replica of {to} does not follow: it is '{}'{detail}", report.state),
                    "wait until `replicator status` shows that it streams".into(),
                )
            }
            Hindrance::Behind(behind) => (
                format!(
                    "the replica of {to} is {} behind, and {} at most are waited for",
                    behind.map_or_else(|| "an unknown amount".into(), show_bytes),
                    show_bytes(NEAR_BYTES)
                ),
                "wait until `replicator status` shows that it is nearer".into(),
            ),
            Hindrance::TooFewCopies(live) => (
                format!(
                    "{live} of the copies that other hosts hold are live, and four are needed without this one"
                ),
                "wait until `replicator volume status` shows that they are".into(),
            ),
            Hindrance::Promoting => (
                "a promotion of a region goes on".into(),
                "wait until `replicator history` shows that it is over".into(),
            ),
            Hindrance::Idle => (
                format!("its head, {}, does not serve: see `replicator status`", self.host()),
                "where it cannot, stop its process: another host takes over by itself".into(),
            ),
        };
        Finding {
            kind: "head".into(),
            region: region.to_string(),
            fact,
            action,
            outcome: Outcome::Refused.into(),
        }
    }

    fn refusal(&self, found: &[Hindrance], to: &NodeName) -> Refusal {
        let words = found.iter().map(|why| self.finding(*why, to));
        let words: Vec<String> =
            words.map(|found| format!("{}: {}; {}", found.region, found.fact, found.action)).collect();
        busy(words.join(". "))
    }

    /// Moves the head each time that is ordered. Whoever has ordered it may be gone by then: it goes on, or
    /// is taken back, all the same.
    pub(super) async fn move_when_ordered(self: Arc<Self>) {
        let mut queue = self.moving.queue.lock().await;
        while let Some((to, answer)) = queue.recv().await {
            *self.moving.last() = HeadMove { head: self.host(), to: to.to_string(), ..HeadMove::default() };
            let moved = self.move_head(&to).await;
            let (name, host) = (&self.own.name, self.host());
            match &moved {
                Ok(()) => tracing::warn!("the head has handed over to {to}, on an operator's word"),
                Err(why) => {
                    self.moving.told.send_replace(Told::default());
                    *self.moving.stopped() = None;
                    let text = format!(
                        "{name}: its head stays on {host}, and does not move to {to}: {}",
                        why.reason
                    );
                    self.journal.note(EventKind::HeadStays, text);
                }
            }
            let is_over = moved.is_ok();
            self.moving.busy.store(is_over, Ordering::Relaxed);
            let _ = answer.send(moved.map(|()| self.moving.last().clone()));
            if is_over {
                tokio::time::sleep(ANSWER).await;
                self.moving.over.cancel();
                return;
            }
        }
    }

    /// Moves the head to `to`. When this returns without an error it has handed over.
    async fn move_head(&self, to: &NodeName) -> Result<(), Refusal> {
        let nothing = |refusal: Refusal| busy(format!("{}. Nothing was changed", refusal.reason));
        match self.may_move(to) {
            Ok(true) => {}
            Ok(false) => return Err(busy(format!("{to} is the head already. Nothing was changed"))),
            Err(found) => return Err(nothing(self.refusal(&found, to))),
        }
        let mut steps = Steps { moving: &self.moving, since: now() };
        let leads = self.owner.cluster().leader().is_some();
        if leads {
            let checkpoint = tokio::time::timeout(CHECKPOINT, self.owner.cluster().checkpoint()).await;
            let late =
                |_| busy(format!("no checkpoint within {} s. Nothing was changed", CHECKPOINT.as_secs()));
            checkpoint.map_err(late)?.map_err(|e| nothing(busy(e.0)))?;
            steps.done("write a checkpoint".into());
        }
        self.moving.told.send_replace(Told { to: to.to_string(), ..Told::default() });
        self.until_prepared(to).await.map_err(nothing)?;
        steps.done(format!("prepare {to}"));
        // It took a moment.
        if let Err(found) = self.may_move(to) {
            return Err(nothing(self.refusal(&found, to)));
        }
        if self.owner.cluster().leader().is_some() != leads {
            return Err(nothing(busy("the region plays another part than when it was asked")));
        }
        // That host starts itself again at once, without a word. The others may need it to be said twice.
        let others: BTreeSet<NodeName> = self.attended().into_iter().filter(|name| name != to).collect();
        match leads {
            true => self.hand_writer_over(to, &mut steps).await?,
            false => self.say_last_word(to, now(), None),
        }
        let all = async {
            while !self.moving.have_heard(&others) {
                tokio::time::sleep(LOOK).await;
            }
        };
        let _ = tokio::time::timeout(LAST_WORD, all).await;
        steps.done(format!("hand over to {to}"));
        Ok(())
    }

    /// From here on the head steps down.
    fn say_last_word(&self, to: &NodeName, stopped_at: Instant, ended_lsn: Option<Lsn>) {
        self.moving.last().handed_over = true;
        let stopped_at = Some(stopped_at);
        self.moving.told.send_replace(Told { to: to.to_string(), stopped_at, ended_lsn });
    }

    /// Waits until `to` has heard where the head goes, is prepared, and is near.
    async fn until_prepared(&self, to: &NodeName) -> Result<(), Refusal> {
        let own = self.its_node(to.as_str())?;
        let since = now();
        let is_near = |target| match target {
            Target::Other { connected, follows, behind_bytes, .. } => {
                connected && follows && behind_bytes.is_some_and(|bytes| bytes <= NEAR_BYTES)
            }
            Target::Unknown | Target::Itself => false,
        };
        loop {
            let (report, _) = self.known_of(to);
            let Some(report) = report else {
                return Err(busy(format!("{to} was lost before the writer was touched")));
            };
            let heard = report.moves_to == to.as_str();
            if heard && is_near(self.target(&own)) {
                return Ok(());
            }
            if since.elapsed() >= PREPARES {
                let why = match heard {
                    true => "its replica is not near",
                    false => {
                        "it does not answer that it has heard of the move: run the same version on all hosts"
                    }
                };
                return Err(busy(format!("{to} is not prepared within {} s: {why}", PREPARES.as_secs())));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Has the writer stopped, and waits until `to` has applied its last record; says the last word then.
    async fn hand_writer_over(&self, to: &NodeName, steps: &mut Steps<'_>) -> Result<(), Refusal> {
        let (stopped, has_stopped) = oneshot::channel();
        let (ready, is_ready) = oneshot::channel();
        let (answer, mut answered) = oneshot::channel();
        self.owner.order_to_hand_over_to_host(HandOverToHost { stopped, ready: is_ready, answer })?;
        let lost = || busy("this daemon is stopping");
        let Ok((end, stopped_at)) = has_stopped.await else {
            return (&mut answered).await.map_err(|_| lost())?.and_then(|()| Err(lost()));
        };
        *self.moving.stopped() = Some(end);
        steps.done("stop the writer".into());
        let applied = self.until_applied(to, end.end_lsn).await;
        let is_applied = applied.is_ok();
        let _ = ready.send(applied);
        (&mut answered).await.map_err(|_| lost())??;
        if is_applied {
            steps.done(format!("apply its last record on {to}"));
            self.say_last_word(to, stopped_at, Some(end.end_lsn));
        }
        Ok(())
    }

    async fn until_applied(&self, to: &NodeName, lsn: Lsn) -> Result<(), String> {
        let since = now();
        loop {
            let (report, applied) = self.known_of(to);
            if applied.is_some_and(|applied| applied >= lsn) {
                return Ok(());
            }
            if report.is_none() {
                return Err(format!("{to} was lost before it had the writer's last record"));
            }
            if since.elapsed() >= APPLIES {
                return Err(format!(
                    "{to} has not applied the writer's last record within {} s",
                    APPLIES.as_secs()
                ));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Lets go of what the head had that has handed over. What it remembers it keeps, for when nobody takes
    /// over, where `keeps`.
    pub(super) async fn leave(&self, keeps: bool) {
        let Some(heading) = &self.heading else { return };
        let (name, to) = (&self.own.name, self.moving.told.borrow().to.clone());
        if let Err(e) = self.owner.cluster().stop_at_once().await {
            tracing::error!("{e}");
        }
        match self.keep_as_replica().await {
            Ok(()) => tracing::info!("its data are a replica's from now on"),
            Err(why) => tracing::warn!("its data are copied anew from the next head: {why}"),
        }
        // So its zone's copies go to the next head at once.
        let origin = self.state().data_number;
        let last = LastHead {
            name: heading.host.to_string(),
            origin: Origin::new(origin).0,
            may_be_followed: true,
            handed_over_to: to.clone(),
        };
        if let Err(e) = last.keep(&self.layout.node(&heading.host).heard()) {
            tracing::warn!("what the last head was is not kept: {e}");
        }
        if !keeps {
            super::head::remove(&self.layout.state());
        }
        let text = format!(
            "{name}: host {} is the region's head no more; it has handed over to {to}, on an operator's word",
            heading.host
        );
        self.journal.note(EventKind::HeadLeft, text);
    }

    /// What this host has goes on as a replica's, where that can be shown: it has no redo but such as is
    /// durable in the volume, which whoever opens that has as well.
    ///
    /// A standby was given nothing else. A writer that was shut down cleanly has, by its control file, ended
    /// with a checkpoint, which is durable: nothing was written after it.
    ///
    /// # Errors
    /// In words, where that cannot be shown, or not be kept.
    async fn keep_as_replica(&self) -> Result<(), String> {
        let (heading, state) = (self.heading.as_ref().ok_or("it has no other host")?, self.state());
        let (Some(system_id), false, None) = (state.system_id, state.rejoining, &state.aside) else {
            return Err("they are being replaced".into());
        };
        if state.data_number == 0 {
            return Err("no node has asked for them yet".into());
        }
        let (instance, stopped) = (self.instance.clone(), *self.moving.stopped());
        let look = move || {
            let words = |e: postgres::instance::InstanceError| e.to_string();
            if !instance.tablespaces().map_err(words)?.is_empty() {
                return Err("they have tablespaces outside of the data directory".to_owned());
            }
            if instance.promoting().map_err(words)?.is_some() {
                return Err("they were to be a writer's".into());
            }
            if instance.is_standby() {
                return Ok(());
            }
            if instance.process().is_some() {
                return Err("its PostgreSQL has not ended".into());
            }
            let control = instance.control_data().map_err(words)?;
            let Some(end) = stopped else { return Err("its writer was not stopped cleanly".into()) };
            let is_whole = control.state == ClusterState::ShutDown
                && control.system_id == system_id
                && control.checkpoint_timeline == end.timeline
                && control.checkpoint_lsn < end.end_lsn;
            match is_whole {
                true => {
                    // A copy would have no slots either: nobody on a node looks after them.
                    instance.drop_slots().map_err(words)?;
                    instance.configure(PartOfPostgres::Standby).map_err(words)
                }
                false => Err(format!(
                    "its control file says {:?} with a checkpoint at {}, and the volume ended at {}",
                    control.state, control.checkpoint_lsn, end.end_lsn
                )),
            }
        };
        blocking("make the data a replica's", look).await.map_err(|e| e.to_string())??;
        let path = self.layout.node(&heading.host).state();
        let file = NodeFile::open(&path, self.cluster_id, &self.own.name, &heading.host);
        let id = runtime::random::draw::<u64>().max(1);
        let data = Data { id, origin: Origin::new(state.data_number) };
        file.and_then(|file| file.set(Some(data))).map_err(|e| e.to_string())
    }

    /// Notes when this host, to which the head has moved, takes writes, and for how long nobody did.
    pub(super) async fn note_move(self: Arc<Self>) {
        let Some(stopped_at_us) = self.heading.as_ref().and_then(|heading| heading.began.stopped_at_us)
        else {
            return;
        };
        let serving = async {
            while self.has_headed().is_err() || !self.serves_now().await {
                tokio::time::sleep(LOOK).await;
            }
        };
        if tokio::time::timeout(TAKES_WRITES, serving).await.is_err() {
            return;
        }
        let gap_us = boottime_us().saturating_sub(stopped_at_us).max(1);
        let (name, host) = (&self.own.name, self.host());
        {
            let mut last = self.moving.last();
            (last.to, last.gap_us) = (host.clone(), gap_us);
        }
        let what = match self.owner.cluster().leader() {
            Some(_) => "no writes were taken",
            None => "no redo was taken",
        };
        let text = format!(
            "{name}: its head has moved to {host}, on an operator's word; {what} for {} ms",
            gap_us / 1000
        );
        tracing::info!("{text}");
        self.journal.note(EventKind::HeadMoved, text);
    }
}
