//! The part of a primary: its writer, and what reads and ships the writer's redo.

use std::sync::Arc;
use std::time::Duration;

use postgres::instance::{Instance, InstanceError, Part, READER};
use primary::{Primary, PrimaryOptions, Target};
use proto::messages::{HandedOver, RegionStatus};
use proto::messages::{SupportRequest, control_request};
use proto::{Epoch, RegionName, SystemId};
use tokio_util::sync::CancellationToken;
use volume::Volume;

use super::Region;
use super::engine::Engine;
use super::promotion::{Steps, promote, timeline_of};
use super::secrets;
use super::state::StateError;
use crate::units::show_bytes;
use crate::voter::Voter;

/// How long after the writer was told to stop none of its clients waits for a commit any more.
const CLIENTS_GONE: Duration = Duration::from_millis(300);

/// How long streaming secondaries are given to take the last redo when the primary stops.
const LAST_REDO: Duration = Duration::from_secs(3);

/// How far a region may be behind when the writer is stopped for it.
const HAND_OVER_BEHIND_BYTES: u64 = 16 << 20;

/// How long the writer may take to stop, and its last record to be applied, before the old primary goes on.
const HAND_OVER: Duration = Duration::from_secs(10);

/// A primary region at work.
#[derive(Debug)]
pub struct Leader {
    instance: Instance,
    engine: Option<Engine>,
    primary: Option<Arc<Primary>>,
    epoch: Epoch,
    handed_over: Option<(tokio::time::Instant, HandedOver)>,
    witnesses: CancellationToken,
}

/// Why a region cannot lead.
#[derive(Debug, thiserror::Error)]
pub enum LeaderError {
    /// PostgreSQL cannot be managed.
    #[error(transparent)]
    Instance(#[from] InstanceError),
    /// The region's record cannot be written.
    #[error(transparent)]
    State(#[from] StateError),
    /// The password cannot be kept or read.
    #[error("the superuser's password: {0}")]
    Secret(std::io::Error),
    /// The data directory is another PostgreSQL's.
    #[error(
        "the data directory has system identifier {found}, and this region's record says {expected}: it is another PostgreSQL's. Put the right one back"
    )]
    OtherSystem {
        /// The data directory's.
        found: SystemId,
        /// The record's.
        expected: SystemId,
    },
    /// It was being seeded or rewound.
    #[error(
        "this region's data were being replaced, and it has none to lead with: order a failover to another region"
    )]
    NoData,
    /// The data directory is gone.
    #[error(
        "this region's PostgreSQL data directory is gone, and its record says that it had one (system identifier {0}). A new one would be empty: restore it, or promote a secondary"
    )]
    DataGone(SystemId),
}

impl Leader {
    /// Starts the region's writer, which is made at the first start, and what reads and ships its redo.
    ///
    /// # Errors
    /// When the data is another PostgreSQL's, or cannot be made or configured.
    pub(crate) async fn start(region: &Region, running: Option<Engine>) -> Result<Leader, LeaderError> {
        let Region { config, own, layout, record, .. } = region;
        let (instance, volume, endpoint) =
            (region.instance.clone(), region.volume.clone(), region.endpoint.clone());
        let state = record.get();
        let system_id = match (state.system_id, instance.exists()) {
            (Some(expected), true) => {
                let found = instance.system_id()?;
                if found != expected {
                    return Err(LeaderError::OtherSystem { found, expected });
                }
                found
            }
            (Some(expected), false) => return Err(LeaderError::DataGone(expected)),
            // Its data were being replaced when the record came to say that it leads.
            (None, _) if state.epoch() > Epoch(1) => return Err(LeaderError::NoData),
            (None, exists) => {
                if !exists {
                    tracing::info!("making the writer's data directory");
                    let password = secrets::draw();
                    secrets::keep(layout, &password, own.postgres).map_err(LeaderError::Secret)?;
                    let making = instance.clone();
                    let made = tokio::task::spawn_blocking(move || making.create(&password)).await;
                    made.map_err(|e| LeaderError::Secret(std::io::Error::other(e)))??;
                }
                let system_id = instance.system_id()?;
                record.change(|state| state.system_id = Some(system_id))?;
                system_id
            }
        };
        let part = Part::Writer { synchronous: config.commit.waits() };
        let engine = match running {
            Some(engine) => engine,
            None if instance.is_standby() && !instance.has_begun(timeline_of(state.epoch())) => {
                // A promotion was interrupted here: it goes on.
                instance.configure(Part::Standby)?;
                let engine = Engine::start(instance.clone());
                engine.accepts().await;
                promote(&instance, state.epoch()).await?;
                engine
            }
            None => {
                instance.configure(part)?;
                Engine::start(instance.clone())
            }
        };
        // For its next start; the settings of a standby serve a writer as well.
        instance.configure(part)?;
        let targets = config.regions.iter().filter(|r| r.name != own.name).map(|r| Target {
            name: r.name.clone(),
            address: r.advertise.clone(),
            bandwidth_bits_per_second: r.bandwidth_bits_per_second,
            url: secrets::url(r.postgres, None),
        });
        let primary = Primary::start(PrimaryOptions {
            cluster_id: state.cluster_id,
            epoch: state.epoch(),
            system_id,
            writer: instance.clone(),
            slot: READER.into(),
            volume,
            endpoint,
            commit: config.commit,
            lease: config.lease,
            targets: targets.collect(),
            witnesses: config.witnesses.iter().map(|witness| witness.name.clone()).collect(),
            superuser_password: secrets::load(layout).map_err(LeaderError::Secret)?,
        });
        let primary = Arc::new(primary);
        let witnesses = CancellationToken::new();
        for witness in &config.witnesses {
            let (voter, primary, name) = (region.voter.clone(), primary.clone(), witness.name.clone());
            let asking = ask_witness(voter, primary, name, state.epoch(), config.lease);
            tokio::spawn(witnesses.clone().run_until_cancelled_owned(asking));
        }
        let (engine, primary, epoch) = (Some(engine), Some(primary), state.epoch());
        Ok(Leader { instance, engine, primary, epoch, handed_over: None, witnesses })
    }

    /// Whether commits may return at all: not before the promotion that made this the primary is over.
    pub fn acknowledge(&self, allowed: bool) {
        if let Some(primary) = &self.primary {
            primary.acknowledge(allowed);
        }
    }

    /// Whether the writer's redo is being read: then commits can return.
    #[must_use]
    pub fn reads(&self) -> bool {
        self.primary.as_ref().is_some_and(|primary| primary.reader().streaming)
    }

    /// Whether the writer was stopped for a switchover.
    #[must_use]
    pub fn has_handed_over(&self) -> bool {
        self.handed_over.is_some()
    }

    /// How the writer was stopped for a switchover, if it was.
    #[must_use]
    pub fn handed_over(&self) -> Option<HandedOver> {
        let (stopped, handed_over) = self.handed_over.as_ref()?;
        let stopped_us = u64::try_from(stopped.elapsed().as_micros()).unwrap_or(u64::MAX);
        Some(HandedOver { stopped_us, ..handed_over.clone() })
    }

    /// Whether a region has said that this primary's epoch is over.
    #[must_use]
    pub fn is_fenced(&self) -> bool {
        self.primary.as_ref().is_some_and(|primary| primary.is_fenced())
    }

    /// That was looked into: it leads on, or stops.
    pub fn forget_fenced(&self) {
        if let Some(primary) = &self.primary {
            primary.forget_fenced();
        }
    }

    /// Stops at once: nothing more is acknowledged, and nobody is waited for.
    pub async fn stop_now(&mut self) {
        if let Some(engine) = self.engine.take()
            && let Err(e) = engine.stop_now().await
        {
            tracing::error!("{e}");
        }
        self.witnesses.cancel();
        if let Some(primary) = self.primary.take() {
            primary.stop().await;
        }
    }

    /// Why `region` cannot take over now; none when it can.
    #[must_use]
    pub fn hinders(&self, region: &RegionName) -> Option<String> {
        let (own, rows) = self.rows("", String::new());
        if own.state != "streaming" {
            return Some(format!("this primary does not read its writer: {}", own.detail));
        }
        let Some(row) = rows.iter().find(|row| row.name == region.as_str()) else {
            return Some(format!("{region} is no region of this primary's file"));
        };
        match (row.state.as_str(), row.behind_bytes) {
            ("streaming", Some(behind)) if behind <= HAND_OVER_BEHIND_BYTES => None,
            ("streaming", behind) => Some(format!(
                "{region} is {} behind; writes would be held until it has applied that. Try again when it is nearer",
                behind.map_or_else(|| "an unknown amount".into(), show_bytes)
            )),
            (state, _) => Some(format!("{region} is '{state}' to this primary: {}", row.detail)),
        }
    }

    /// Stops the writer cleanly and waits until `region` has applied its last record.
    ///
    /// # Errors
    /// What hindered it, or took too long; the writer may have stopped.
    pub async fn hand_over(&mut self, region: &RegionName, volume: &Volume) -> Result<(), String> {
        let mut steps = Steps::start();
        let checkpointing = self.instance.clone();
        let done = tokio::task::spawn_blocking(move || checkpointing.checkpoint()).await;
        done.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
        steps.done("checkpoint");
        let stopped_at = now();
        let stopped = tokio::time::timeout(HAND_OVER, self.stop_writer()).await;
        steps.done("stop the writer");
        let caught_up = async {
            let Some(primary) = &self.primary else { return false };
            primary.stop_reading().await;
            let end_lsn = volume.bounds().durable_lsn;
            while !primary.has_applied(region, end_lsn) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            true
        };
        let why = match stopped {
            Err(_) => format!("the writer did not stop within {} s", HAND_OVER.as_secs()),
            Ok(Err(e)) => e.to_string(),
            Ok(Ok(())) => match tokio::time::timeout(HAND_OVER, caught_up).await {
                Ok(true) => {
                    steps.done("ship and apply the last record");
                    let bounds = volume.bounds();
                    let handed_over = HandedOver {
                        end_lsn: bounds.durable_lsn.0,
                        timeline: bounds.timeline.0,
                        stopped_us: 0,
                        steps: steps.into_messages(),
                    };
                    self.handed_over = Some((stopped_at, handed_over));
                    return Ok(());
                }
                _ => format!("{region} did not apply the last record within {} s", HAND_OVER.as_secs()),
            },
        };
        Err(why)
    }

    async fn stop_writer(&mut self) -> Result<(), InstanceError> {
        let Some(engine) = self.engine.take() else { return Ok(()) };
        let draining = async {
            tokio::time::sleep(CLIENTS_GONE).await;
            if let Some(primary) = &self.primary {
                primary.drain();
            }
            std::future::pending().await
        };
        tokio::select! {
            stopped = engine.stop() => stopped,
            never = draining => never,
        }
    }

    /// Stops the writer first: it ends once its last redo is durable here, and the secondaries are given it.
    pub async fn stop(&mut self) {
        if let Err(e) = self.stop_writer().await {
            tracing::error!("{e}");
        }
        self.witnesses.cancel();
        let Some(primary) = self.primary.take() else { return };
        primary.stop_reading().await;
        let shipped = tokio::time::timeout(LAST_REDO, async {
            while !primary.all_shipped() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        if shipped.await.is_err() {
            tracing::warn!("a secondary did not take the last redo in time; it will when both run again");
        }
        primary.stop().await;
    }

    /// The epoch it leads.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The region's own row, and one for each secondary.
    #[must_use]
    pub fn rows(&self, name: &str, url: String) -> (RegionStatus, Vec<RegionStatus>) {
        let reader = self.primary.as_ref().map(|primary| primary.reader()).unwrap_or_default();
        let trouble = self.engine.as_ref().and_then(Engine::trouble);
        let (state, detail) = match trouble {
            None if reader.streaming => ("streaming", String::new()),
            None => ("starting", reader.detail),
            Some(trouble) => ("starting", trouble),
        };
        let detail = if detail.is_empty() { reader.held } else { detail };
        let lsn = (reader.timeline.0 > 0).then_some(reader.durable_lsn.0);
        let own = RegionStatus {
            name: name.to_owned(),
            role: "primary".into(),
            state: state.into(),
            timeline: reader.timeline.0,
            durable_lsn: lsn,
            applied_lsn: lsn,
            behind_bytes: lsn.map(|_| 0),
            durability_lag_ms: lsn.map(|_| 0),
            visibility_lag_ms: lsn.map(|_| 0),
            redo_bytes: reader.redo_bytes,
            url,
            detail,
            ..RegionStatus::default()
        };
        (own, self.primary.as_ref().map(|primary| primary.secondaries()).unwrap_or_default())
    }
}

/// Has a witness say again and again that it knows no other primary: that keeps the lease as a secondary's answers do.
async fn ask_witness(
    voter: Arc<Voter>,
    primary: Arc<Primary>,
    name: RegionName,
    epoch: Epoch,
    lease: Duration,
) {
    loop {
        let left_us = Primary::steady_us();
        let body = control_request::Body::Support(SupportRequest { epoch: epoch.0 });
        if voter.ask(&name, body, lease / 5).await.is_ok() {
            primary.witness_answered(&name, left_us);
        }
        tokio::time::sleep(lease / 20).await;
    }
}

#[allow(clippy::disallowed_methods, reason = "a driver that times what it does")]
fn now() -> tokio::time::Instant {
    tokio::time::Instant::now()
}
