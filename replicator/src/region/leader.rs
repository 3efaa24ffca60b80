//! The part of a primary: its writer, and what reads and ships the writer's redo.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use postgres::backup::remains;
use postgres::instance::{Instance, InstanceError, Part, Stop};
use postgres::sockets::READER;
use primary::{Primary, PrimaryOptions, Target};
use proto::{Epoch, RegionName, SystemId};
use runtime::clock::{boottime_us, now};
use runtime::task::{Task, Tasks, blocking};
use tokio::time::Instant;

use super::Parts;
use crate::engine::Engine;
use crate::facts::LeaderFacts;
use crate::part::lease;
use crate::region_file::StateError;
use crate::secrets;

/// How long commits must have been held back for a stopping writer not to be waited for.
const HELD_BACK: Duration = Duration::from_secs(1);

/// How long PostgreSQL may take to stop at once.
const STOP_NOW: Duration = Duration::from_secs(30);

/// How long streaming secondaries are given to take the last redo when the primary stops.
const LAST_REDO: Duration = Duration::from_secs(3);

/// A primary region at work.
#[derive(Debug)]
pub struct Leader {
    instance: Instance,
    /// None once it was told to stop.
    engine: Mutex<Option<Engine>>,
    primary: Primary,
    epoch: Epoch,
    begun: Instant,
    /// What asks the other voters to keep the lease.
    lease: Tasks,
    /// Drops what an interrupted seed left: a region that leads takes none.
    _tidy: Task<()>,
}

/// How a region's writer is when the region begins to lead.
#[derive(Debug)]
pub(super) enum Begins {
    /// It does not run, or an earlier daemon has left it running.
    Stopped,
    /// It is a standby that was promoted.
    Promoted(Engine),
    /// It was started as the writer just now.
    Started(Engine),
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
    /// The data directory is another PostgreSQL's.
    #[error(
        "the data directory has system identifier {found}, and this region's database is {expected}: it is another \
         PostgreSQL's, and is not started. Move it away and put the right one back; or order a failover to another region, and then have this one \
         seeded anew: replicator reseed --region R"
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
        "this region's PostgreSQL data directory is gone, and its record says that it had one (system identifier {0}). A new one \
         would be empty: restore it, or order a failover to a region that has the data: replicator promote --region R --mode failover"
    )]
    DataGone(SystemId),
}

impl Leader {
    /// Starts the region's writer, unless it runs already, and what reads and ships its redo.
    ///
    /// # Errors
    /// When the data is another PostgreSQL's, or cannot be made or configured.
    pub(crate) async fn start(parts: &Parts, epoch: Epoch, writer: Begins) -> Result<Leader, LeaderError> {
        let Parts { config, own, layout, file: record, .. } = parts;
        let (instance, volume, endpoint) =
            (parts.instance.clone(), parts.volume.clone(), parts.endpoint.clone());
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
            (None, _) if epoch > Epoch(1) => return Err(LeaderError::NoData),
            (None, false) => return Err(LeaderError::NoData),
            // Made, and not noted before the daemon was killed; or `region.json` alone was lost.
            (None, true) => {
                let found = instance.system_id()?;
                if let Some(expected) = parts.voter.view().named().filter(|expected| *expected != found) {
                    return Err(LeaderError::OtherSystem { found, expected });
                }
                record.change(|state| (state.system_id, state.unnamed) = (Some(found), true))?;
                found
            }
        };
        let part = Part::Writer { synchronous: config.commit.waits() };
        // One that was promoted has no redo of this epoch yet. Any other may have lost some.
        let led = !matches!(writer, Begins::Promoted(_));
        let engine = match writer {
            Begins::Started(engine) => engine,
            Begins::Promoted(engine) => {
                // For its next start: the settings of a standby serve a writer as well.
                instance.configure(part)?;
                engine
            }
            Begins::Stopped => {
                instance.configure(part)?;
                Engine::start(instance.clone(), parts.journal.clone())
            }
        };
        let force = parts.in_force();
        let targets = force.regions.iter().filter(|r| r.name != own.name).map(|r| Target {
            name: r.name.clone(),
            address: r.place().advertise,
            bandwidth_bits_per_second: r.bandwidth_bits_per_second,
            url: secrets::url(r.postgres, &config.owner, None),
        });
        let primary = Primary::start(PrimaryOptions {
            cluster_id: state.cluster_id,
            epoch,
            led,
            system_id,
            writer: instance.clone(),
            slot: READER.into(),
            volume,
            endpoint,
            commit: config.commit,
            lease: config.lease,
            targets: targets.collect(),
            own: own.name.clone(),
            voters: parts.voter.counted(),
            superuser_password: layout.password(),
            tracer: parts.tracer.clone(),
        });
        let lease = Tasks::new();
        let (engine, primary) = (Mutex::new(Some(engine)), primary);
        let (data_dir, account) = (instance.options().data_dir.clone(), instance.options().account.clone());
        let _tidy = Task::spawn("drop what a seed left", async move {
            let drop = move || remains::drop_remains(&data_dir, &account);
            let dropped = blocking("drop what a seed left", drop).await;
            if let Ok(Err(e)) = dropped {
                tracing::warn!("{e}");
            }
        });
        Ok(Leader { instance, engine, primary, epoch, begun: now(), lease, _tidy })
    }

    /// Asks every other voter again and again whether this region is the primary of its epoch, as long as
    /// this leads: the answers keep its lease.
    pub(super) fn keep_lease(self: &Arc<Self>, parts: &Parts) {
        for voter in parts.config.voters().into_iter().filter(|voter| voter.name != parts.own.name) {
            let leader = Arc::downgrade(self);
            let answered = move |name: &RegionName, asked_at_us: u64| {
                let leader = leader.upgrade();
                leader.map(|leader| leader.primary.supported(name, asked_at_us)).is_some()
            };
            let (asker, lease) = (parts.voter.clone(), parts.config.lease);
            self.lease.spawn(lease::ask(asker, voter.name, self.epoch, lease, boottime_us, answered));
        }
    }

    /// Sends no more to each secondary than the configuration in force says.
    pub(super) fn limit(&self, parts: &Parts) {
        for region in &parts.in_force().regions {
            self.primary.limit(&region.name, region.bandwidth_bits_per_second);
        }
    }

    pub(super) fn primary(&self) -> &Primary {
        &self.primary
    }

    /// Whether the writer's redo is being read: then commits can return.
    #[must_use]
    pub fn reads(&self) -> bool {
        self.primary.reader().streaming
    }

    fn take_engine(&self) -> Option<Engine> {
        self.engine.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Whether the writer is kept running.
    pub(super) fn runs(&self) -> bool {
        self.engine.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Stops at once: nothing more is acknowledged, and nobody is waited for.
    ///
    /// # Errors
    /// When PostgreSQL cannot be stopped.
    pub async fn stop_now(&self) -> Result<(), InstanceError> {
        self.lease.stop();
        let stopped = match self.take_engine() {
            Some(engine) => engine.stop_now().await,
            // An earlier stop may have been given up.
            None => self.instance.stop(Stop::Immediate, STOP_NOW).await,
        };
        self.primary.stop().await;
        stopped
    }

    /// Stops the writer cleanly, while its redo goes on being read.
    ///
    /// # Errors
    /// When PostgreSQL cannot be stopped.
    pub async fn stop_writer(&self) -> Result<(), InstanceError> {
        match self.take_engine() {
            Some(engine) => engine.stop().await,
            None => Ok(()),
        }
    }

    /// Returns when commits were held back for a while.
    async fn held_back(&self) {
        let mut since = None;
        loop {
            since = self.primary.holds_back().then(|| since.unwrap_or_else(now));
            if since.is_some_and(|since| since.elapsed() >= HELD_BACK) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Stops the writer first: it ends once its last redo is durable here, and the secondaries are given it.
    pub async fn stop(&self) {
        let stopped = tokio::select! {
            biased;
            stopped = self.stop_writer() => stopped,
            // A clean stop waits for commits that may not return, or would let them.
            () = self.held_back() => {
                tracing::warn!("commits are held: the writer is stopped at once");
                self.instance.stop(Stop::Immediate, STOP_NOW).await
            }
        };
        if let Err(e) = stopped {
            tracing::error!("{e}");
        }
        self.lease.stop();
        self.primary.stop_reading().await;
        let shipped = tokio::time::timeout(LAST_REDO, async {
            while !self.primary.all_shipped() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        if shipped.await.is_err() {
            tracing::warn!("a secondary did not take the last redo in time; it will when both run again");
        }
        self.primary.stop().await;
    }

    /// The epoch it leads.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// For how long this daemon has led.
    pub fn leads_for(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Has the writer keep what its catalogs had when transaction `xid` began; see
    /// [`Primary::hold_catalogs`].
    pub fn hold_catalogs(&self, xid: Option<u64>) {
        self.primary.hold_catalogs(xid);
    }

    /// What is known of it and its secondaries.
    #[must_use]
    pub fn facts(&self) -> LeaderFacts {
        let engine = self.engine.lock().unwrap_or_else(PoisonError::into_inner);
        let (runs, postgres_trouble) = (engine.is_some(), engine.as_ref().and_then(Engine::trouble));
        let shut_until = engine.as_ref().and_then(Engine::shut_until);
        drop(engine);
        LeaderFacts {
            epoch: self.epoch,
            runs,
            postgres_trouble,
            shut_until,
            reader: self.primary.reader(),
            lease_left_us: self.primary.lease_left_us(),
            secondaries: self.primary.secondaries(),
        }
    }
}
