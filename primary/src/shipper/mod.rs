//! Ships redo to one secondary: probe, stream, catch up, seed, rewind. The decisions are in [`machine`]; this file carries them out.
//!
//! A shipper reads the volume at its own pace and holds no redo of its own, so a slow or absent region costs the writer
//! and the other regions nothing.

pub mod machine;

mod rewinder;
mod seeder;
mod stream;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use proto::messages::{Open, PROTOCOL_VERSION, ReplicateOpen, ReplicateReady, open, refusal};
use proto::{Lsn, Timeline, TimelineHistory};
use tokio_util::sync::CancellationToken;
use transport::{Connection, EgressCap, Stream, TransportError};

use crate::view::Views;
use crate::{PrimaryOptions, Target, clock, resolve};
use machine::{Command, Input, Log, Position, Shipper, State};

/// How long a region may take to answer a probe.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// What one shipper works with.
struct Shipping {
    options: Arc<PrimaryOptions>,
    views: Arc<Views>,
    target: Target,
    egress: EgressCap,
    machine: Shipper,
    link: Option<(Connection, Stream)>,
    /// Bytes of the present seed or rewind.
    brought_bytes: AtomicU64,
}

/// Ships until `stop`.
pub(crate) async fn run(
    options: Arc<PrimaryOptions>,
    views: Arc<Views>,
    target: Target,
    egress: EgressCap,
    stop: CancellationToken,
) {
    let (machine, first) = Shipper::start();
    let mut shipping =
        Shipping { options, views, target, egress, machine, link: None, brought_bytes: AtomicU64::new(0) };
    tokio::select! {
        () = stop.cancelled() => {}
        () = shipping.drive(first) => {}
    }
    if let Some((connection, _)) = shipping.link.take() {
        connection.close("the primary is stopping");
    }
}

impl Shipping {
    /// Carries out commands, and gives back to the machine what came of them.
    async fn drive(&mut self, first: Vec<Command>) {
        let mut commands = VecDeque::from(first);
        while let Some(command) = commands.pop_front() {
            let input = match command {
                Command::Probe => Some(self.probe().await),
                Command::Stream { from_lsn } => Some(self.stream(from_lsn).await),
                Command::Seed => Some(self.seed().await),
                Command::Rewind => Some(self.rewind().await),
                Command::Disconnect => {
                    if let Some((connection, _)) = self.link.take() {
                        connection.close("the shipper starts over");
                    }
                    None
                }
                Command::WakeAt(at_us) => {
                    let wait_us = at_us.saturating_sub(clock::now_us()).max(0).unsigned_abs();
                    tokio::time::sleep(Duration::from_micros(wait_us)).await;
                    Some(Input::Timer)
                }
            };
            if let Some(input) = input {
                commands.extend(self.decide(input));
            }
        }
    }

    /// Asks the machine, and makes its answer known.
    fn decide(&mut self, input: Input) -> Vec<Command> {
        let (was, said) = (self.machine.state().clone(), self.machine.detail().to_owned());
        if matches!(input, Input::Refused(refusal::Kind::StaleEpoch, _)) {
            self.views.fence(true);
        }
        let commands = self.machine.handle(clock::now_us(), input);
        let (state, detail, name) = (self.machine.state(), self.machine.detail(), &self.target.name);
        match state {
            State::Waiting { .. } if detail != said => {
                tracing::warn!(region = %name, "not shipping: {detail}")
            }
            State::Streaming { .. } if !matches!(was, State::Streaming { .. }) => {
                tracing::info!(region = %name, "streaming")
            }
            State::Seeding if was != State::Seeding => {
                tracing::info!(region = %name, "bringing its data up: {detail}");
            }
            _ => {}
        }
        self.views.update_region(name, |region, _| {
            region.state = state.clone();
            region.detail = detail.to_owned();
        });
        commands
    }

    async fn connect(&self) -> Result<Connection, TransportError> {
        let address = resolve(&self.target.address).await.map_err(|e| TransportError::Unreachable {
            address: self.target.address.clone(),
            reason: e.to_string(),
        })?;
        self.options.endpoint.connect(address, &self.target.name, PROBE_TIMEOUT).await
    }

    fn open(&self, purpose: open::Purpose) -> Open {
        let cluster_id = self.options.cluster_id.0.to_vec().into();
        Open { protocol: PROTOCOL_VERSION, cluster_id, purpose: Some(purpose) }
    }

    /// Connects and asks how far the region is.
    async fn probe(&mut self) -> Input {
        match tokio::time::timeout(PROBE_TIMEOUT, self.ask_position()).await {
            Ok(Ok(ready)) => self.answered(ready),
            Ok(Err(e)) => Input::Lost(e.to_string()),
            Err(_) => Input::Lost(format!("no answer within {} s", PROBE_TIMEOUT.as_secs())),
        }
    }

    async fn ask_position(&mut self) -> Result<ReplicateReady, TransportError> {
        let connection = self.connect().await?;
        let bounds = self.options.volume.bounds();
        let ask = ReplicateOpen {
            system_id: self.options.system_id.0,
            epoch: self.options.epoch.0,
            timeline: bounds.timeline.0,
            horizon_lsn: bounds.horizon_lsn.0,
            durable_lsn: bounds.durable_lsn.0,
        };
        let mut stream = connection.open_stream(&self.open(open::Purpose::Replicate(ask))).await?;
        let ready = stream.receive(proto::messages::MAX_CONTROL_MESSAGE_BYTES).await?;
        self.link = Some((connection, stream));
        ready.ok_or(TransportError::Finished)
    }

    fn answered(&self, ready: ReplicateReady) -> Input {
        if let Some(refusal) = ready.refusal {
            return refused(&refusal);
        }
        if self.options.volume.is_empty() {
            return Input::Lost("this region has no redo yet: its writer is not being read".into());
        }
        let bounds = self.options.volume.bounds();
        let history = match self.options.volume.history(bounds.timeline) {
            Some(history) => history,
            None => TimelineHistory { timeline: bounds.timeline, ..TimelineHistory::first() },
        };
        let log = Log { horizon_lsn: bounds.horizon_lsn, durable_lsn: bounds.durable_lsn, history };
        let position = Position {
            needs_seed: ready.needs_seed,
            can_rewind: ready.can_rewind,
            timeline: Timeline(ready.timeline),
            durable_lsn: Lsn(ready.durable_lsn),
        };
        Input::Answered(log, position)
    }
}

fn refused(refusal: &proto::messages::Refusal) -> Input {
    let kind = refusal::Kind::try_from(refusal.kind).unwrap_or_default();
    Input::Refused(kind, format!("the region refuses: {}", refusal.reason))
}
