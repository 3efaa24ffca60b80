//! Looks at the region's PostgreSQL: the facts that [`crate::preflight`] judges, and the mends that it names.

use std::collections::HashSet;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use coordination::Mode;
use postgres::instance::{Instance, TrialError};
use postgres::inventory::{self, OfDatabase};
use postgres::protocol::client::ClientError;
use postgres::protocol::session::SessionError;
use postgres::sockets::SUPERUSER;
use postgres::tablespaces::{Place, lost_in, places_in};
use postgres::vitals::{Replay, Vitals};
use proto::messages::finding::Outcome;
use runtime::clock::now;
use runtime::task::{Ended, blocking};
use tokio::time::{Instant, sleep, timeout};

use super::Region;
use super::follower::Follower;
use crate::part::Trouble;
use crate::pooler;
use crate::preflight::{self, Disk, Facts, Finding};
use crate::region_file::RegionFile;

/// How long PostgreSQL may take to let us in, and for each answer.
pub(super) const ANSWER: Duration = Duration::from_secs(5);

/// How long a PostgreSQL that is starting is waited for.
const STARTING: Duration = Duration::from_secs(10);

/// How long what was mended may take to be seen so.
const MENDED: Duration = Duration::from_secs(30);

/// How long a look into all databases may take.
const INVENTORY: Duration = Duration::from_secs(10);

/// How long disks may take to say how much room they have.
const DISKS: Duration = Duration::from_secs(3);

/// The wait before it is looked again.
const AGAIN: Duration = Duration::from_millis(200);

/// PostgreSQL's word that it is starting or stopping.
const CANNOT_CONNECT_NOW: &str = "57P03";

/// Whether PostgreSQL has answered that it lets nobody in just now.
pub(super) fn is_starting(error: &SessionError) -> bool {
    match error {
        SessionError::Client(ClientError::Server(error)) => error.code == CANNOT_CONNECT_NOW,
        SessionError::Client(ClientError::Connect { .. }) => true,
        _ => false,
    }
}

/// PostgreSQL's word that it lets a role not in.
const NOT_LET_IN: &str = "28000";

/// Why PostgreSQL does not answer, in words; with what to do where it lets us not in.
pub(super) fn silence(error: &SessionError) -> String {
    let said = error.to_string();
    if error.code() != Some(NOT_LET_IN) {
        return said;
    }
    let remedy = match said.contains("does not exist") {
        true => format!("ALTER ROLE … RENAME TO {SUPERUSER}"),
        false => format!("ALTER ROLE {SUPERUSER} LOGIN"),
    };
    // The commit would wait for the reader, which that role lets in.
    format!(
        "{said}. This service looks after it by that role; as another superuser: SET synchronous_commit = local; {remedy}"
    )
}

/// How `instance` is, as it says itself.
///
/// # Errors
/// When it does not.
pub(super) async fn vitals(instance: &Instance) -> Result<Vitals, SessionError> {
    Vitals::ask(&mut instance.session(ANSWER).await?, ANSWER).await
}

/// What the databases of `instance` need of this machine.
///
/// # Errors
/// When it does not say so in time.
pub(super) async fn inventory(instance: &Instance) -> Result<Vec<OfDatabase>, SessionError> {
    let connection = instance.watching_connection();
    let looking = inventory::look(&connection, ANSWER);
    timeout(INVENTORY, looking).await.unwrap_or(Err(SessionError::Late(INVENTORY)))
}

/// Why `instance` could not start again with what its files set by now; none where it can.
///
/// # Errors
/// When that is not known.
pub(super) async fn cannot_start(instance: &Instance, vitals: &Vitals) -> Result<Option<String>, Ended> {
    if let Some(unreadable) = &vitals.unreadable {
        return Ok(Some(unreadable.clone()));
    }
    if vitals.not_taken.is_empty() {
        return Ok(None);
    }
    let (looking, settings) = (instance.clone(), vitals.not_taken.clone());
    let tried = blocking("try to start PostgreSQL", move || {
        looking.installation().check_start(&looking.options().account, &settings)
    });
    match tried.await? {
        Ok(()) => Ok(None),
        Err(TrialError::Mistake(why)) => {
            let names: Vec<&str> = vitals.not_taken.keys().map(String::as_str).collect();
            Ok(Some(format!("{} set: {why}", names.join(", "))))
        }
        Err(TrialError::NotAsked(why)) => Err(Ended { name: "try to start PostgreSQL", why }),
    }
}

/// The tablespaces of which the database of `vitals` knows, and whose files are not there; in words.
pub(super) fn lost_tablespaces(vitals: &Vitals, lost: &[Place]) -> Vec<String> {
    let known = lost.iter().filter(|place| vitals.tablespaces.contains(&place.oid));
    known.map(place_words).collect()
}

/// A tablespace, for people.
pub(super) fn place_words(place: &Place) -> String {
    format!("{} in {}", place.oid, place.path.display())
}

/// What is known of `instance`, which is a standby's when `follower` is there.
pub(super) async fn facts(
    instance: &Instance,
    file: &Arc<RegionFile>,
    follower: Option<&Follower>,
    commits_wait: bool,
    mode: Mode,
    begin: &impl Fn() -> bool,
) -> Facts {
    let mut facts = Facts { commits_wait, major: instance.installation().major, ..Facts::default() };
    let since = now();
    loop {
        match vitals(instance).await {
            Ok(vitals) => facts.vitals = Some(vitals),
            Err(e) if is_starting(&e) && since.elapsed() < STARTING && begin() => {
                sleep(AGAIN).await;
                continue;
            }
            Err(e) => facts.silent = silence(&e),
        }
        break;
    }
    let (looking, standby, file) = (instance.clone(), follower.is_some(), Arc::clone(file));
    let looked = blocking("look at PostgreSQL's processes and disks", move || {
        let needs = if standby { looking.needs().unwrap_or_default() } else { Vec::new() };
        let overrides = looking.overrides().unwrap_or_default();
        let not_writable = file.rewrite().err().map(|e| e.to_string());
        (looking.stopped_processes(), needs, overrides, not_writable.or_else(|| looking.not_writable()))
    });
    match timeout(DISKS, looked).await {
        Ok(Ok((stopped, needs, overrides, not_writable))) => {
            (facts.stopped, facts.needs, facts.overrides) = (stopped, needs, overrides);
            facts.not_writable = not_writable;
        }
        Ok(Err(e)) => tracing::warn!("{e}"),
        Err(_) => {
            let seconds = DISKS.as_secs();
            facts.not_writable =
                Some(format!("its files are not looked at within {seconds} s; see what its disks do"));
        }
    }
    if let Some(vitals) = &facts.vitals {
        let data_dir = instance.options().data_dir.clone();
        let lost = timeout(DISKS, blocking("look at tablespaces", move || lost_in(&data_dir))).await;
        facts.lost_tablespaces =
            lost_tablespaces(vitals, &lost.ok().and_then(Result::ok).unwrap_or_default());
    }
    match DiskLook::default().at(written_by(instance).into()).await {
        Ok(disks) => facts.disks = disks,
        Err(hang) if facts.silent.is_empty() => facts.silent = hang,
        Err(_) => {}
    }
    // A failover stops nothing here, and does not wait for a trial.
    if let Some(vitals) = facts.vitals.as_ref().filter(|_| mode == Mode::Switchover) {
        facts.cannot_start = cannot_start(instance, vitals).await.unwrap_or_default();
    }
    facts.reported = follower.and_then(Follower::reported);
    if follower.is_some() && facts.vitals.is_some() {
        // What is not known hinders nobody.
        facts.databases = inventory(instance).await.unwrap_or_default();
    }
    facts.waits = follower.and_then(Follower::waits).unwrap_or_default();
    facts
}

/// Where PostgreSQL writes.
pub(super) fn written_by(instance: &Instance) -> [PathBuf; 2] {
    let data = &instance.options().data_dir;
    [data.clone(), data.join("pg_wal")]
}

/// Looks at files, one look at a time: one that hangs, as that of a network file system that is gone, holds
/// up nothing else.
pub(super) struct OneLook<T>(Option<(Instant, Looking<T>)>);

/// A look that is under way.
type Looking<T> = Pin<Box<dyn Future<Output = Result<T, Ended>> + Send>>;

impl<T> Default for OneLook<T> {
    fn default() -> OneLook<T> {
        OneLook(None)
    }
}

impl<T: Send + 'static> OneLook<T> {
    /// What `look` finds, or the look that is under way.
    ///
    /// # Errors
    /// For how long it has not found anything, when it takes longer than files may.
    pub(super) async fn at(
        &mut self,
        look: impl FnOnce() -> T + Send + 'static,
    ) -> Result<Result<T, Ended>, Duration> {
        let begin = || -> (Instant, Looking<T>) { (now(), Box::pin(blocking("look at files", look))) };
        let (since, looking) = self.0.get_or_insert_with(begin);
        match timeout(DISKS, looking).await {
            Ok(looked) => {
                self.0 = None;
                Ok(looked)
            }
            Err(_) => Err(since.elapsed()),
        }
    }
}

/// Looks at disks.
#[derive(Default)]
pub(super) struct DiskLook(OneLook<Vec<Disk>>);

impl DiskLook {
    /// The disks on which `places` are.
    ///
    /// # Errors
    /// When they do not answer, in words.
    pub(super) async fn at(&mut self, places: Vec<PathBuf>) -> Result<Vec<Disk>, String> {
        match self.0.at(move || disks_of(places)).await {
            Ok(looked) => looked.map_err(|e| e.to_string()),
            Err(silent) => Err(format!(
                "a disk of this region has not said for {} s how much room it has; see what its file systems do",
                silent.as_secs()
            )),
        }
    }
}

/// The disks on which these places are, each once.
fn disks_of(places: impl IntoIterator<Item = PathBuf>) -> Vec<Disk> {
    let disk = |place: PathBuf| {
        let room = rustix::fs::statvfs(&place).ok()?;
        let bytes = |blocks: u64| blocks.saturating_mul(room.f_frsize);
        let place = place.display().to_string();
        Some(Disk { place, free_bytes: bytes(room.f_bavail), total_bytes: bytes(room.f_blocks) })
    };
    let places: Vec<PathBuf> = places.into_iter().collect();
    let of_tablespaces = places.iter().flat_map(|place| places_in(place).unwrap_or_default());
    let of_tablespaces: Vec<PathBuf> = of_tablespaces.map(|place| place.path).collect();
    // Mostly they are one.
    let mut seen = HashSet::new();
    let disks = places.into_iter().chain(of_tablespaces).filter_map(disk);
    disks.filter(|disk| seen.insert((disk.free_bytes, disk.total_bytes))).collect()
}

impl Follower {
    /// Mends what hinders replay, as far as that can be: a pause, sessions that it waits for, settings that
    /// are too low.
    ///
    /// # Errors
    /// When PostgreSQL does not answer, or cannot be started again.
    pub(super) async fn mend_replay(&self) -> Result<(), Trouble> {
        let looking = self.instance.clone();
        let needs = blocking("pg_controldata", move || looking.needs()).await;
        let needs = needs.map_err(Trouble::new)?.map_err(Trouble::new)?;
        let mut session = self.instance.session(ANSWER).await.map_err(Trouble::new)?;
        let vitals = Vitals::ask(&mut session, ANSWER).await.map_err(Trouble::new)?;
        let Some(replay) = &vitals.replay else { return Ok(()) };
        let low = preflight::low_settings(&vitals, &needs);
        if !low.is_empty() {
            tracing::warn!("{}: the standby is started again with that", low.join("; "));
            drop(session);
            return self.restart_standby().await.map_err(Trouble::new);
        }
        if replay.paused {
            tracing::warn!(lsn = %replay.applied_lsn, "replay is paused at {}: it is resumed", replay.applied_lsn);
            Replay::resume(&mut session, ANSWER).await.map_err(Trouble::new)?;
        }
        if replay.held {
            for holder in &replay.holders {
                tracing::warn!("replay waits for process {} of {}: it is ended", holder.pid, holder.role);
            }
            replay.end_holders(&mut session, ANSWER).await.map_err(Trouble::new)?;
        }
        Ok(())
    }
}

impl Region {
    /// What is found in this region, which shall lead. What can be mended is, unless it is only to be told:
    /// and when that does not help, it refuses.
    pub(super) async fn prepare(&self, mode: Mode, only_tell: bool) -> Vec<Finding> {
        let cluster = self.owner.cluster();
        let Some(follower) = cluster.follower() else { return Vec::new() };
        let look = || async {
            let mut facts =
                facts(&self.instance, &self.file, Some(&follower), self.config.commit.waits(), mode, &|| {
                    true
                })
                .await;
            facts.carried = self.slots.carried();
            let mut findings = preflight::of_target(&self.own.name, &facts, mode);
            if mode == Mode::Switchover {
                // Whoever leads has the PgBouncers go on.
                findings.extend(pooler::findings(&self.in_force().poolers, &self.own.name).await);
            }
            findings
        };
        let mut findings = look().await;
        let mends = |findings: &[Finding]| findings.iter().any(|found| found.outcome == Outcome::Mended);
        if only_tell || !mends(&findings) {
            return findings;
        }
        let since = now();
        loop {
            if let Err(e) = follower.mend_replay().await {
                tracing::warn!("not mended yet: {e}");
            }
            sleep(AGAIN).await;
            findings = look().await;
            if !mends(&findings) {
                return findings;
            }
            if since.elapsed() >= MENDED {
                break;
            }
        }
        for found in findings.iter_mut().filter(|found| found.outcome == Outcome::Mended) {
            found.outcome = Outcome::Refused;
            found.action = "it could not be mended; see this region's daemon.log and postgresql.log".into();
        }
        findings
    }
}
