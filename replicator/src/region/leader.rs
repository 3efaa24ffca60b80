//! The part of a primary: its writer, and what reads and ships the writer's redo.

use std::time::Duration;

use postgres::instance::{Instance, InstanceError, Part, READER};
use primary::{Primary, PrimaryOptions, Target};
use proto::messages::RegionStatus;
use proto::{Epoch, SystemId};
use transport::Endpoint;
use volume::Volume;

use super::engine::Engine;
use super::secrets;
use super::state::{RegionState, StateError};
use crate::config::{Config, RegionConfig, Role};
use crate::layout::RegionLayout;

/// How long after the writer was told to stop none of its clients waits for a commit any more.
const CLIENTS_GONE: Duration = Duration::from_millis(300);

/// How long streaming secondaries are given to take the last redo when the primary stops.
const LAST_REDO: Duration = Duration::from_secs(3);

/// A primary region at work.
#[derive(Debug)]
pub struct Leader {
    engine: Option<Engine>,
    primary: Option<Primary>,
    epoch: Epoch,
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
    pub async fn start(
        config: &Config,
        own: &RegionConfig,
        layout: &RegionLayout,
        instance: Instance,
        volume: Volume,
        endpoint: Endpoint,
        mut state: RegionState,
    ) -> Result<Leader, LeaderError> {
        let system_id = match (state.system_id, instance.exists()) {
            (Some(expected), true) => {
                let found = instance.system_id()?;
                if found != expected {
                    return Err(LeaderError::OtherSystem { found, expected });
                }
                found
            }
            (Some(expected), false) => return Err(LeaderError::DataGone(expected)),
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
                state.system_id = Some(system_id);
                state.save(&layout.state())?;
                system_id
            }
        };
        instance.configure(Part::Writer { synchronous: config.commit.waits() })?;
        let targets = config.regions.iter().filter(|r| r.role == Role::Secondary).map(|r| Target {
            name: r.name.clone(),
            address: r.advertise.clone(),
            bandwidth_bits_per_second: r.bandwidth_bits_per_second,
            url: secrets::url(r.postgres, None),
        });
        let primary = Primary::start(PrimaryOptions {
            cluster_id: state.cluster_id,
            epoch: state.epoch,
            system_id,
            writer: instance.local_connection(),
            slot: READER.into(),
            volume,
            endpoint,
            commit: config.commit,
            targets: targets.collect(),
            superuser_password: secrets::load(layout).map_err(LeaderError::Secret)?,
        });
        Ok(Leader { engine: Some(Engine::start(instance)), primary: Some(primary), epoch: state.epoch })
    }

    /// Stops the writer first: it ends once its last redo is durable here, and the secondaries are given it.
    pub async fn stop(&mut self) {
        if let Some(engine) = self.engine.take() {
            let stopping = async {
                tokio::time::sleep(CLIENTS_GONE).await;
                if let Some(primary) = &self.primary {
                    primary.drain();
                }
                std::future::pending().await
            };
            tokio::select! {
                stopped = engine.stop() => if let Err(e) = stopped {
                    tracing::error!("{e}");
                },
                () = stopping => {}
            }
        }
        let Some(mut primary) = self.primary.take() else { return };
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
        let reader = self.primary.as_ref().map(Primary::reader).unwrap_or_default();
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
        (own, self.primary.as_ref().map(Primary::secondaries).unwrap_or_default())
    }
}
