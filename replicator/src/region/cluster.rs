//! The region's real PostgreSQL, volume and streams, as the owner of its part works with them.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use coordination::lineage::timeline_of;
use coordination::region::Database;
use coordination::{Mode, Redo};
use postgres::instance::control::ControlData;
use postgres::instance::{Part, Stop};
use postgres::protocol::client::ReplicationClient;
use proto::messages::{Finding, GatherOpen, Open, PROTOCOL_VERSION, open};
use proto::{Epoch, Lsn, RegionName, SystemId, Timeline};
use runtime::clock::now;
use runtime::task::blocking;

use super::Parts;
use super::early::Early;
use super::follower::{Follower, Hold};
use super::leader::{Begins, Leader};
use super::{look, slots};
use crate::client;
use crate::config::Role;
use crate::engine::Engine;
use crate::part::{Cluster, Observed, Trouble};
use crate::pooler::{self, Poolers};
use crate::preflight;
use crate::region_file::RegionState;
use crate::secrets::{self, Clients};

/// How long another region may take to take a connection.
const CONNECT: Duration = Duration::from_millis(900);

/// How long PostgreSQL may take to stop at once.
const STOP_NOW: Duration = Duration::from_secs(30);

/// How long is waited for what the volume was given to be durable.
const SETTLE: Duration = Duration::from_secs(1);

/// How long the replica of a host that takes over may take to apply what the volume has, before that is said.
const SUCCEED: Duration = Duration::from_secs(20);

/// How often PostgreSQL is asked whether it takes writes, while that is waited for.
const TRY: Duration = Duration::from_millis(2);

/// How often it is asked after [`SOON`].
const LATER: Duration = Duration::from_millis(100);

/// How long it is asked often.
const SOON: Duration = Duration::from_secs(5);

/// How long a writer that was told to stop is given before it is asked whether only its last processes
/// linger.
const LINGERS: Duration = Duration::from_millis(1500);

/// How long replay may stand still, with redo to apply, before what hinders it is mended.
const STANDS_STILL: Duration = Duration::from_millis(400);

/// What plays the region's part at the moment.
#[derive(Debug, Default)]
struct Playing {
    leader: Option<Arc<Leader>>,
    follower: Option<Arc<Follower>>,
}

/// The region's cluster.
#[derive(Debug)]
pub(crate) struct RegionalCluster {
    parts: Arc<Parts>,
    playing: Mutex<Playing>,
    hold: Hold,
    poolers: Poolers,
    /// The writer that was started before this host was the head.
    early: Early,
}

impl RegionalCluster {
    pub(super) fn new(parts: Arc<Parts>, hold: Hold, early: Early) -> RegionalCluster {
        RegionalCluster { parts, playing: Mutex::default(), hold, poolers: Poolers::default(), early }
    }

    fn playing(&self) -> std::sync::MutexGuard<'_, Playing> {
        // Two optional handles, each set whole.
        self.playing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What leads, if the region does.
    pub(super) fn leader(&self) -> Option<Arc<Leader>> {
        self.playing().leader.clone()
    }

    /// What follows, if the region does.
    pub(super) fn follower(&self) -> Option<Arc<Follower>> {
        self.playing().follower.clone()
    }

    fn leads(&self) -> Result<Arc<Leader>, Trouble> {
        self.leader().ok_or_else(|| Trouble::new("this region does not lead"))
    }

    /// What follows; made if nothing does.
    async fn following(&self) -> Result<Arc<Follower>, Trouble> {
        if let Some(follower) = self.follower() {
            return Ok(follower);
        }
        let follower = Follower::start(&self.parts, self.hold.clone()).await.map_err(Trouble::new)?;
        self.playing().follower = Some(follower.clone());
        Ok(follower)
    }

    /// Stops everything in order, at the daemon's end.
    pub(super) async fn stop(&self) {
        if let Err(e) = self.early.end().await {
            tracing::error!("{e}");
        }
        if let Some(leader) = self.leader() {
            leader.stop().await;
        }
        if let Some(follower) = self.follower() {
            follower.stop().await;
        }
        // A writer that was in nobody's hands just now: with this process nobody looks after it.
        let instance = &self.parts.instance;
        if !instance.is_standby()
            && instance.process().is_some()
            && let Err(e) = instance.stop(Stop::Immediate, STOP_NOW).await
        {
            tracing::error!("{e}");
        }
    }

    /// Returns once a writer that was told to stop has written its last record, and that is durable here,
    /// while it does not end.
    async fn only_lingers(&self) {
        loop {
            tokio::time::sleep(LINGERS).await;
            let instance = self.parts.instance.clone();
            let asked = blocking("pg_controldata", move || instance.shutdown_checkpoint_lsn()).await;
            if let Ok(Ok(Some(last_lsn))) = asked
                && last_lsn < self.parts.volume.bounds().durable_lsn
            {
                return;
            }
        }
    }

    /// Makes the replica of a host that has taken over as its region's head the writer that the last head
    /// had, where that has begun `timeline`: it is given all that the volume has, and is stopped. Started
    /// without its `standby.signal` it is a writer that has crashed, and goes on where that one would have.
    async fn succeed(&self, timeline: Timeline) -> Result<(), Trouble> {
        let Parts { instance, volume, heading, .. } = &*self.parts;
        if let Some(at) = self.early.ended_at().await {
            return self.judge_early(at).await;
        }
        let (state, bounds) = (self.parts.state(), volume.bounds());
        let has_data = state.system_id.is_some() && !state.rejoining && instance.is_standby();
        // The first epoch goes on on whatever timeline its data are on.
        let begun = bounds.timeline == timeline || timeline == Timeline(1);
        let has_redo = volume.is_open() && !volume.is_empty() && begun;
        if heading.is_none() || !has_data || !has_redo || self.leader().is_some() {
            return Ok(());
        }
        let begin = now();
        let mut control = self.control_data().await?;
        if !control.has_all(bounds.durable_lsn) {
            let follower = self.following().await?;
            let given = tokio::time::timeout(SUCCEED, follower.until_applied(bounds.durable_lsn)).await;
            given.map_err(|_| {
                Trouble::new("the replica has not applied yet what the volume has; it goes on")
            })?;
            if let Some(engine) = self.take_over_engine().await {
                // A clean stop: what it has applied, and on which timeline, is in its control file then.
                engine.stop().await.map_err(Trouble::new)?;
            }
            control = self.control_data().await?;
        }
        let found = control.timeline();
        if !control.could_write_on(bounds.durable_lsn) {
            return Err(Trouble::new(format!(
                "the replica is not one that could go on at {}, where the volume's redo ends: its control file says {:?}, backup from \
                 {}, consistent from {}",
                bounds.durable_lsn, control.state, control.backup_start_lsn, control.recovery_lsn
            )));
        }
        if found != bounds.timeline {
            return Err(Trouble::new(format!(
                "the replica is on timeline {} after it has applied all redo, and the writer was on {}",
                found.0, bounds.timeline.0
            )));
        }
        let part = Part::Writer { synchronous: self.parts.config.commit.waits() };
        instance.configure(part).map_err(Trouble::new)?;
        tracing::info!(
            "the replica has all redo up to {}, after {} ms: it becomes the writer",
            bounds.durable_lsn,
            begin.elapsed().as_millis()
        );
        Ok(())
    }

    /// Sees that the writer which was started before this host was the head, and whose redo ended `at` by
    /// then, has all that the volume has, and no more.
    async fn judge_early(&self, at: (Lsn, Timeline)) -> Result<(), Trouble> {
        if !self.parts.volume.is_open() {
            return Ok(());
        }
        let bounds = self.parts.volume.bounds();
        if at == (bounds.durable_lsn, bounds.timeline) {
            return Ok(());
        }
        // On disk first: whatever becomes of this process, nobody goes on with these data.
        self.parts.file.change(RegionState::has_no_data).map_err(Trouble::new)?;
        self.early.end().await.map_err(Trouble::new)?;
        self.parts.instance.configure(Part::Standby).map_err(Trouble::new)?;
        Err(Trouble::new(format!(
            "the replica was made the writer at {} on timeline {}, and the volume's redo ends at {} on {}",
            at.0, at.1, bounds.durable_lsn, bounds.timeline
        )))
    }

    /// What is here has what the volume has not: this host gives up, and its data are copied anew. Nobody
    /// takes them for a writer's until then.
    fn disown_data(&self) -> Result<(), Trouble> {
        self.parts.file.change(RegionState::has_no_data).map_err(Trouble::new)?;
        self.parts.instance.configure(Part::Standby).map_err(Trouble::new)
    }

    async fn control_data(&self) -> Result<ControlData, Trouble> {
        let instance = self.parts.instance.clone();
        let looked = blocking("pg_controldata", move || instance.control_data()).await;
        looked.map_err(Trouble::new)?.map_err(Trouble::new)
    }

    /// Stops at once what takes writes: nobody gets an answer any more.
    pub(super) async fn stop_at_once(&self) -> Result<(), Trouble> {
        self.early.end().await.map_err(Trouble::new)?;
        let leader = self.playing().leader.take();
        match leader {
            Some(leader) => leader.stop_now().await.map_err(Trouble::new),
            None if self.parts.instance.is_standby() => Ok(()),
            None => self.parts.instance.stop(Stop::Immediate, STOP_NOW).await.map_err(Trouble::new),
        }
    }

    /// Clients of the PgBouncers go on once `leader` takes writes.
    fn resume_clients_of(&self, leader: &Arc<Leader>) {
        let config = self.parts.in_force().poolers.clone();
        if config.consoles.is_empty() {
            return;
        }
        let (leader, since) = (Arc::downgrade(leader), now());
        self.poolers.resume_when(&config, async move {
            loop {
                match leader.upgrade() {
                    None => return false,
                    Some(leader) if leader.facts().takes_writes() => return true,
                    Some(_) => tokio::time::sleep(if since.elapsed() < SOON { TRY } else { LATER }).await,
                }
            }
        });
    }

    /// The engine of the standby that was promoted, and nothing follows any more.
    async fn take_over_engine(&self) -> Option<Engine> {
        let follower = self.follower()?;
        let engine = follower.give_engine().await;
        follower.stop().await;
        self.playing().follower = None;
        engine
    }
}

impl Cluster for RegionalCluster {
    fn observe(&self) -> Observed {
        let Parts { volume, instance, file, .. } = &*self.parts;
        let bounds = volume.bounds();
        let leader = self.leader();
        // Where the data were moved away from a PostgreSQL that runs, only the record says what it is.
        let led = file.get().role == Role::Primary;
        Observed {
            open: volume.is_open(),
            durable: Redo::new(bounds.timeline, bounds.durable_lsn),
            has_redo: !volume.is_empty(),
            writer_runs: (instance.process().is_some() && !instance.is_standby())
                || (led && instance.moved_process().is_some()),
            primary_lsn: self.follower().map_or(Lsn::ZERO, |follower| follower.heard()),
            refused: leader.is_some_and(|leader| leader.primary().is_fenced()),
        }
    }

    async fn database(&self, timeline: Timeline) -> Result<Database, Trouble> {
        self.succeed(timeline).await?;
        let instance = self.parts.instance.clone();
        let look = move || match instance.exists() {
            false => Ok(Database::Absent),
            true => instance.has_begun(timeline).map(|begun| match begun {
                true => Database::Begun,
                false => Database::Standby,
            }),
        };
        blocking("look at the data directory", look).await.map_err(Trouble::new)?.map_err(Trouble::new)
    }

    fn was_promoted(&self) -> bool {
        !self.parts.instance.is_standby()
    }

    async fn create(&self) -> Result<SystemId, Trouble> {
        let Parts { layout, own, config, instance, .. } = &*self.parts;
        tracing::info!("making the writer's data directory");
        let password = secrets::draw();
        let cannot = |e: std::io::Error| Trouble::new(format!("the superuser's password: {e}"));
        let clients = Clients { owner: &config.owner, listen: own.postgres };
        secrets::keep(layout, &password, clients).map_err(cannot)?;
        let making = instance.clone();
        let owner = secrets::owner(&config.owner, &password);
        let making = move || making.create(&password, owner.as_ref()).and_then(|()| making.system_id());
        let made = blocking("initdb", making).await;
        made.map_err(Trouble::new)?.map_err(Trouble::new)
    }

    fn hold(&self) {
        if let Some(leader) = self.leader() {
            leader.primary().hold();
        }
    }

    fn acknowledge(&self, allowed: bool) {
        if let Some(leader) = self.leader() {
            leader.primary().acknowledge(allowed);
        }
    }

    fn forget_refusal(&self) {
        if let Some(leader) = self.leader() {
            leader.primary().forget_fenced();
        }
    }

    fn shut_out(&self) {
        if let Some(follower) = self.follower() {
            follower.shut_out();
        }
    }

    async fn settle(&self) {
        self.parts.volume.settle_within(SETTLE).await;
    }

    async fn follow(&self) -> Result<(), Trouble> {
        if self.early.end().await.map_err(Trouble::new)? {
            tracing::warn!(
                "the replica was made the writer, and this region follows: its data are copied anew"
            );
            self.disown_data()?;
        }
        let leader = self.playing().leader.take();
        if let Some(leader) = leader {
            leader.stop_now().await.map_err(Trouble::new)?;
        }
        self.following().await.map(drop)
    }

    async fn apply(&self, lsn: Lsn) -> Result<(), Trouble> {
        let follower = self.following().await?;
        let mending = Box::pin(async {
            loop {
                let before = follower.applied();
                tokio::time::sleep(STANDS_STILL).await;
                if follower.applied() == before
                    && let Err(e) = follower.mend_replay().await
                {
                    tracing::warn!("replay is not mended yet: {e}");
                }
            }
        });
        tokio::select! {
            biased;
            () = follower.until_applied(lsn) => Ok(()),
            () = mending => Ok(()),
        }
    }

    async fn promote(&self, epoch: Epoch) -> Result<(), Trouble> {
        let (instance, timeline) = (self.parts.instance.clone(), timeline_of(epoch));
        slots::drop_those_that_skip(&instance, &self.parts.state().carried).await;
        let connection = instance.local_connection();
        let telling = instance.clone();
        let told = blocking("pg_ctl promote", move || telling.promote(timeline)).await;
        told.map_err(Trouble::new)?.map_err(Trouble::new)?;
        // As long as it is a standby it says the timeline that it follows.
        loop {
            let asked = async { ReplicationClient::connect(&connection).await?.identify_system().await };
            if asked.await.is_ok_and(|identity| identity.timeline == timeline) {
                return instance.promoted().map_err(Trouble::new);
            }
            if instance.promoting().map_err(Trouble::new)?.is_none() {
                return Err(Trouble::new("PostgreSQL ended while it was promoted, and is a standby again"));
            }
            tokio::time::sleep(TRY).await;
        }
    }

    async fn lead(&self, epoch: Epoch) -> Result<(), Trouble> {
        if let Some(leader) = self.leader().filter(|leader| leader.epoch() == epoch && leader.runs()) {
            self.resume_clients_of(&leader);
            return Ok(());
        }
        let leader = self.playing().leader.take();
        if let Some(leader) = leader {
            leader.stop_now().await.map_err(Trouble::new)?;
        }
        let writer = match (self.take_over_engine().await, self.early.take().await) {
            (Some(promoted), _) => Begins::Promoted(promoted),
            (None, Some(started)) => Begins::Started(started),
            (None, None) => Begins::Stopped,
        };
        let leader = Leader::start(&self.parts, epoch, writer).await.map_err(Trouble::new)?;
        let leader = Arc::new(leader);
        leader.keep_lease(&self.parts);
        self.hold.release();
        self.playing().leader = Some(leader.clone());
        // The configuration may have been read again meanwhile.
        leader.limit(&self.parts);
        self.resume_clients_of(&leader);
        Ok(())
    }

    fn reads(&self) -> bool {
        self.leader().is_some_and(|leader| leader.reads())
    }

    async fn stop_leading(&self) -> Result<(), Trouble> {
        self.early.end().await.map_err(Trouble::new)?;
        let leader = self.playing().leader.take();
        if let Some(leader) = leader {
            return leader.stop_now().await.map_err(Trouble::new);
        }
        // A standby that was promoted and does not lead yet, or what an earlier daemon left running.
        if let Some(engine) = self.take_over_engine().await {
            return engine.stop_now().await.map_err(Trouble::new);
        }
        self.parts.instance.stop(Stop::Immediate, STOP_NOW).await.map_err(Trouble::new)
    }

    async fn preflight(&self) -> Vec<Finding> {
        let Parts { own, instance, config, file, .. } = &*self.parts;
        // One that leads and does not answer is not waited for.
        let facts =
            look::facts(instance, file, None, config.commit.waits(), Mode::Switchover, &|| false).await;
        let mut findings = preflight::of_primary(&own.name, &facts);
        findings.extend(pooler::findings(&self.parts.in_force().poolers, &own.name).await);
        findings.iter().map(preflight::Finding::told).collect()
    }

    fn hinders(&self, to: &RegionName) -> Option<String> {
        match self.leader() {
            Some(leader) => leader.facts().hinders(to),
            None => Some("this region does not lead".into()),
        }
    }

    async fn checkpoint(&self) -> Result<(), Trouble> {
        Box::pin(self.parts.instance.checkpoint()).await.map_err(Trouble::new)
    }

    async fn pause_clients(&self) -> bool {
        let config = self.parts.in_force().poolers.clone();
        if config.consoles.is_empty() {
            return false;
        }
        self.poolers.pause(&config).await;
        true
    }

    fn resume_clients(&self) {
        if let Some(leader) = self.leader() {
            self.resume_clients_of(&leader);
        }
    }

    async fn stop_writer(&self) -> Result<Redo, Trouble> {
        let leader = self.leads()?;
        tokio::select! {
            biased;
            stopped = leader.stop_writer() => stopped.map_err(Trouble::new)?,
            () = self.only_lingers() => {
                tracing::warn!("the writer has shut down, and processes of it linger: an archiver that hangs, a walsender that nobody reads; \
                    they are ended");
                self.parts.instance.stop(Stop::Immediate, STOP_NOW).await.map_err(Trouble::new)?;
            }
        }
        leader.primary().stop_reading().await;
        let bounds = self.parts.volume.bounds();
        let instance = self.parts.instance.clone();
        let ended = blocking("pg_controldata", move || instance.shutdown_checkpoint_lsn()).await;
        match ended.map_err(Trouble::new)?.map_err(Trouble::new)? {
            Some(last_lsn) if last_lsn < bounds.durable_lsn => {
                Ok(Redo::new(bounds.timeline, bounds.durable_lsn))
            }
            Some(last_lsn) => Err(Trouble::new(format!(
                "the writer's last record at {last_lsn} did not reach this region's volume, which ends at {}",
                bounds.durable_lsn
            ))),
            None => Err(Trouble::new("the writer did not shut down cleanly")),
        }
    }

    async fn applied_by(&self, to: &RegionName, lsn: Lsn) -> Result<(), Trouble> {
        let leader = self.leads()?;
        while !leader.primary().has_applied(to, lsn) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }

    async fn gather(
        &self,
        from: &RegionName,
        epoch: Epoch,
        to_lsn: Lsn,
        wanted: impl Fn() -> bool + Send + Sync,
    ) -> Result<(), Trouble> {
        let Parts { config, endpoint, volume, cluster_id, .. } = &*self.parts;
        let follower = self.follower().ok_or_else(|| Trouble::new("this region does not follow"))?;
        let place =
            config.region(from).ok_or_else(|| Trouble::new(format!("no region '{from}' in the file")))?;
        let connection = client::connect(endpoint, &place.place(), CONNECT).await.map_err(Trouble::new)?;
        // What the old primary's stream brought last may still be on its way to the disk.
        volume.settle_within(SETTLE).await;
        let newest = volume.newest_batch().await.map_err(Trouble::new)?.map(|batch| batch.id().to_message());
        let from_lsn = newest.as_ref().map_or_else(|| volume.bounds().durable_lsn.0, |newest| newest.end_lsn);
        let gather = GatherOpen { epoch: epoch.0, from_lsn, to_lsn: to_lsn.0, newest };
        let purpose = Some(open::Purpose::Gather(gather));
        let open = Open { protocol: PROTOCOL_VERSION, cluster_id: cluster_id.0.to_vec().into(), purpose };
        let stream = connection.open_stream(&open).await.map_err(Trouble::new)?;
        follower.gather(stream, wanted).await.map_err(Trouble::new)
    }
}
