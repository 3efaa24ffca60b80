//! Ships redo to one secondary: probe, stream, catch up, seed, rewind. The decisions are in [`machine`]; this
//! file carries them out.
//!
//! [`Driver`] alone feeds the machine, and makes known what it says. [`Shipping`] does what is to be done,
//! and says what came of it.
//!
//! A shipper reads the volume at its own pace and holds no redo of its own, so a slow or absent region costs
//! the writer and the other regions nothing.

pub mod machine;

mod bring;
mod rewinder;
mod seeder;
mod stream;

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use proto::messages::{Open, PROTOCOL_VERSION, ReplicateOpen, ReplicateReady, open, refusal};
use proto::{BatchId, Epoch, Lsn, RegionName, Timeline, TimelineHistory};
use runtime::task::blocking;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use transport::{Connection, EgressCap, Stream, Traffic, TransportError};

use crate::view::{Standing, Views};
use crate::{PrimaryOptions, Target, clock};
use machine::{Command, Input, Log, Position, Redo, Shipper, State, Wait};

/// How long a region may take to answer a probe.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// What one shipper works with.
struct Shipping {
    options: Arc<PrimaryOptions>,
    views: Arc<Views>,
    target: Target,
    egress: Arc<EgressCap>,
    link: Option<(Connection, Stream)>,
    /// Bytes of the present seed or rewind.
    brought_bytes: AtomicU64,
}

/// Asks the machine, has done what it says, and gives back to it what came of that.
struct Driver {
    machine: Shipper,
    known: Known,
}

/// Makes known how one region is served.
struct Known {
    views: Arc<Views>,
    name: RegionName,
    epoch: Epoch,
}

/// How long the copies may take to say whether this host still has the volume.
const STILL: Duration = Duration::from_millis(500);

/// Ships until `stop`.
pub(crate) async fn run(
    options: Arc<PrimaryOptions>,
    views: Arc<Views>,
    target: Target,
    egress: Arc<EgressCap>,
    stop: CancellationToken,
) {
    let (machine, first) = Shipper::start();
    let known = Known { views: views.clone(), name: target.name.clone(), epoch: options.epoch };
    let mut driver = Driver { machine, known };
    let mut shipping =
        Shipping { options, views, target, egress, link: None, brought_bytes: AtomicU64::new(0) };
    tokio::select! {
        () = stop.cancelled() => {}
        () = driver.drive(&mut shipping, first) => {}
    }
    if let Some((connection, _)) = shipping.link.take() {
        connection.close("the primary is stopping");
    }
}

impl Driver {
    async fn drive(&mut self, shipping: &mut Shipping, first: Vec<Command>) {
        let mut commands = VecDeque::from(first);
        while let Some(command) = commands.pop_front() {
            let input = match command {
                Command::Probe => Some(shipping.probe().await),
                Command::Stream { from_lsn } => Some(self.stream(shipping, from_lsn).await),
                Command::Seed => Some(shipping.seed().await),
                Command::Rewind => Some(shipping.rewind().await),
                Command::Disconnect => {
                    if let Some((connection, _)) = shipping.link.take() {
                        connection.close("the shipper starts over");
                    }
                    None
                }
                Command::WakeAt(at_us) => {
                    let wait_us = at_us.saturating_sub(clock::steady_us());
                    tokio::time::sleep(Duration::from_micros(wait_us)).await;
                    Some(Input::Timer)
                }
            };
            if let Some(input) = input {
                commands.extend(self.decide(input));
            }
        }
    }

    /// Streams until something ends it; says what. Meanwhile the machine hears how far the region's standby
    /// is.
    async fn stream(&mut self, shipping: &mut Shipping, from_lsn: Lsn) -> Input {
        let (note, mut applied) = watch::channel(Lsn::ZERO);
        let mut streaming = pin!(shipping.stream(from_lsn, note));
        loop {
            let lsn = tokio::select! {
                ended = &mut streaming => return ended,
                Ok(()) = applied.changed() => *applied.borrow_and_update(),
            };
            let commands = self.decide(Input::Applied(lsn));
            debug_assert!(commands.is_empty(), "nothing ends a stream but its own end: {commands:?}");
        }
    }

    /// Asks the machine, and makes its answer known.
    fn decide(&mut self, input: Input) -> Vec<Command> {
        let (was, said) = (self.machine.state().clone(), self.machine.detail().to_owned());
        let commands = self.machine.handle(clock::steady_us(), input.clone());
        self.known.after(&input, &was, &said, &self.machine);
        commands
    }
}

impl Known {
    /// The machine came from a state and its words to another by `input`.
    fn after(&self, input: &Input, was: &State, said: &str, machine: &Shipper) {
        if matches!(input, Input::Refused(refusal::Kind::StaleEpoch, _)) {
            self.views.fence(true);
        }
        let (state, detail, name) = (machine.state(), machine.detail(), &self.name);
        match state {
            State::Waiting { reason: Wait::Diverged, .. } if detail != said => {
                tracing::error!(peer = %name, "nothing is sent: {detail}; an operator decides which of the two is right");
            }
            State::Waiting { .. } if detail != said => {
                tracing::warn!(peer = %name, "not shipping: {detail}")
            }
            State::Streaming { .. } if !matches!(was, State::Streaming { .. }) => {
                tracing::info!(peer = %name, "streaming")
            }
            State::Seeding | State::Rewinding if was != state => {
                tracing::info!(peer = %name, "bringing its data up: {detail}");
            }
            _ => {}
        }
        if was == state && detail == said {
            return;
        }
        self.views.update_region(name, |region, _| {
            region.standing = standing(state, detail);
            region.contradicts = machine.contradicts(self.epoch);
            region.detail = words(name, state, detail);
            if region.standing == Standing::Diverged {
                // What it has does not count for any commit.
                region.durable_lsn = None;
                region.applied_lsn = None;
            }
        });
        // Commits may wait for what this region says.
        self.views.reported.notify_one();
    }
}

/// How a region stands, for those who look.
fn standing(state: &State, detail: &str) -> Standing {
    match state {
        State::Probing if detail.is_empty() => Standing::Connecting,
        State::Probing | State::Waiting { reason: Wait::Failed, .. } => Standing::Unreachable,
        State::Streaming { caught_up, .. } => Standing::Streaming { caught_up: *caught_up },
        State::Seeding => Standing::Seeding,
        State::Rewinding => Standing::Rewinding,
        State::Waiting { reason: Wait::Refused, .. } => Standing::Refused,
        State::Waiting { reason: Wait::Diverged, .. } => Standing::Diverged,
    }
}

/// What an operator is told of that.
fn words(name: &RegionName, state: &State, detail: &str) -> String {
    match state {
        State::Waiting { reason: Wait::Diverged, .. } => format!(
            "{detail}. Nothing is sent to it, so that both stay as they are. If this primary has what is right, have the region \
             seeded anew: `replicator reseed --region {name}`; if {name} has, fail over to it"
        ),
        _ => detail.to_owned(),
    }
}

impl Shipping {
    async fn connect(&self) -> Result<Connection, TransportError> {
        let (endpoint, target) = (&self.options.endpoint, &self.target);
        endpoint.connect_to(Traffic::Redo, &target.address, &target.name, PROBE_TIMEOUT).await
    }

    fn open(&self, purpose: open::Purpose) -> Open {
        let cluster_id = self.options.cluster_id.0.to_vec().into();
        Open { protocol: PROTOCOL_VERSION, cluster_id, purpose: Some(purpose) }
    }

    /// Connects and asks how far the region is. A host that may not be its region's head any more does not
    /// even ask: it would end what another one sends.
    async fn probe(&mut self) -> Input {
        let volume = &self.options.volume;
        if volume.may_move() && !volume.still_writes(STILL).await {
            return Input::Lost("another host of this region may be its head".into());
        }
        match tokio::time::timeout(PROBE_TIMEOUT, self.ask_position()).await {
            Ok(Ok((history, ready))) => self.answered(history, ready).await,
            Ok(Err(e)) => Input::Lost(e.to_string()),
            Err(_) => Input::Lost(format!("no answer within {} s", PROBE_TIMEOUT.as_secs())),
        }
    }

    /// Asks, and returns the history of this log with what was answered to it.
    async fn ask_position(&mut self) -> Result<(TimelineHistory, ReplicateReady), TransportError> {
        let connection = self.connect().await?;
        let volume = &self.options.volume;
        self.epoch_has_begun().await;
        let bounds = volume.bounds();
        let history = match volume.history(bounds.timeline) {
            Some(history) => history,
            None => TimelineHistory { timeline: bounds.timeline, ..TimelineHistory::first() },
        };
        let ask = ReplicateOpen {
            system_id: self.options.system_id.0,
            epoch: self.options.epoch.0,
            timeline: bounds.timeline.0,
            horizon_lsn: bounds.horizon_lsn.0,
            durable_lsn: bounds.durable_lsn.0,
            history: history.content.clone().into(),
            major: self.options.writer.installation().major.0,
            repairs: transport::redundancy::is_offered(),
        };
        let mut stream = connection.open_stream(&self.open(open::Purpose::Replicate(ask))).await?;
        let ready = stream.receive(proto::messages::MAX_CONTROL_MESSAGE_BYTES).await?;
        if ready.as_ref().is_some_and(|ready: &ReplicateReady| ready.repairs) {
            stream.begin_repairs();
        }
        self.link = Some((connection, stream));
        Ok((history, ready.ok_or(TransportError::Finished)?))
    }

    /// Waits for redo of the epoch's own timeline. Before there is some, what other regions have beyond the
    /// fork cannot be told from redo that this one lost.
    async fn epoch_has_begun(&self) {
        let epoch = self.options.epoch.0;
        if epoch > 1 {
            let mut durable = self.options.volume.watch_durable();
            // The volume lives as long as this.
            let _ = durable.wait_for(|durable| u64::from(durable.timeline.0) >= epoch).await;
        }
    }

    /// Whether the writer has tablespaces besides the default ones, as far as that is known.
    async fn has_tablespaces(&self) -> bool {
        let writer = self.options.writer.clone();
        let looked = blocking("look at the writer's tablespaces", move || writer.tablespaces_in_use()).await;
        looked
            .map_or(true, |looked| looked.map_or(true, |(places, own)| !places.is_empty() || !own.is_empty()))
    }

    async fn answered(&self, history: TimelineHistory, ready: ReplicateReady) -> Input {
        if let Some(refusal) = ready.refusal {
            if let Some((connection, _)) =
                self.link.as_ref().filter(|_| refusal.kind() == refusal::Kind::NotHead)
            {
                self.options.endpoint.avoid(&self.target.address, connection.remote_address());
                return Input::Lost(refusal.reason);
            }
            return refused(&refusal);
        }
        let volume = &self.options.volume;
        if volume.is_empty() {
            return Input::Lost("this region has no redo yet: its writer is not being read".into());
        }
        let common = ready.common.as_ref().map(BatchId::from_message);
        if common.is_some_and(|common| common.end_lsn.0 > ready.durable_lsn) {
            let why = "the region's newest batch ends beyond where it says that its redo ends";
            return Input::Refused(refusal::Kind::Failed, why.into());
        }
        let there = match common {
            None => None,
            Some(common) => match volume.batch_at(common.begin_lsn).await {
                Ok(batch) => batch.map(|batch| batch.id()),
                Err(e) => return Input::Lost(format!("reading redo to compare with the region's: {e}")),
            },
        };
        // Looked at last: what was there to compare may have gone meanwhile, and is then known to be.
        let bounds = volume.bounds();
        let (horizon_lsn, durable_lsn) = (bounds.horizon_lsn, bounds.durable_lsn);
        let position = match (ready.needs_seed, ready.why.is_empty()) {
            (true, true) => Position::NoData { why: "it has no data that it could go on with".into() },
            (true, false) => Position::NoData { why: ready.why },
            (false, _) => {
                let (timeline, durable_lsn) = (Timeline(ready.timeline), Lsn(ready.durable_lsn));
                let redo = Redo { timeline, durable_lsn, common };
                // One of an earlier version would let pg_rewind make the very links that the writer has.
                let carries = ready.carries_tablespaces || !self.has_tablespaces().await;
                Position::Data { led: ready.led, can_rewind: ready.can_rewind && carries, redo }
            }
        };
        Input::Answered(Log { horizon_lsn, durable_lsn, history, there }, position)
    }
}

fn refused(refusal: &proto::messages::Refusal) -> Input {
    let kind = refusal::Kind::try_from(refusal.kind).unwrap_or_default();
    Input::Refused(kind, format!("the region refuses: {}", refusal.reason))
}
