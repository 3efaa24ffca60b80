//! Asks the region's PostgreSQL every second as a client would: a process that exists may answer nobody. What
//! is wrong is shown in `status`, and the primary is told of a standby.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use postgres::instance::Instance;
use postgres::protocol::client::ReplicationClient;
use postgres::protocol::session::SessionError;
use postgres::tablespaces::{Place, lost_in};
use postgres::vitals::Vitals;
use proto::{Lsn, RegionName};
use runtime::clock::now;
use runtime::task::blocking;
use secondary::StandbyHealth;
use tokio::time::{Instant, sleep, timeout};

use super::Region;
use super::follower::Follower;
use super::look::{
    DiskLook, OneLook, cannot_start, inventory, is_starting, lost_tablespaces, place_words, silence, vitals,
    written_by,
};
use crate::preflight;

/// How often it is asked.
const ASK: Duration = Duration::from_secs(1);

/// The same while this region is to take over: replay must not stand still then.
const ASK_TARGET: Duration = Duration::from_millis(250);

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(2);

/// A new connection is made for every so many questions: an old one is answered by a process that is there
/// already.
const CONNECT_EVERY: u32 = 4;

/// How often everything is looked at.
const LOOK: Duration = Duration::from_secs(5);

/// How long it does not answer, or replay stands still, before that is told.
const TOLD: Duration = Duration::from_secs(3);

/// The wait before a standby is mended again.
const MEND_AGAIN: Duration = Duration::from_secs(30);

/// How often a standby's databases are looked into.
const LOOK_INSIDE: Duration = Duration::from_secs(300);

/// What an operator should know of a `pg_hba.conf` that is another than the one that was written.
const RULES_ARE_ANOTHERS: &str = "pg_hba.conf was changed by hand, and may let in whom regions.toml does not: replicator reload writes it anew, \
     as the next start does; lines of your own belong in `hba`";

/// What is kept from one look to the next.
#[derive(Default)]
struct Looks {
    disks: DiskLook,
    /// Where tablespaces' files are not, and what is wrong with others.
    files: OneLook<(Vec<Place>, [Option<String>; 2])>,
    /// When the databases were looked into.
    inside: Option<Instant>,
    /// What the machine lacks for them, in words.
    machine_lacks: Vec<String>,
    /// What it said itself, and needs somebody.
    alarms: Vec<String>,
    /// The settings that a start was tried with, and why it failed.
    tried: Option<(NotTaken, Option<String>)>,
}

/// Settings that PostgreSQL has not taken, and why it cannot read the others.
type NotTaken = (BTreeMap<String, String>, Option<String>);

impl Looks {
    /// Why `instance` could not start again. That is tried once for the same settings.
    async fn cannot_start(&mut self, instance: &Instance, vitals: &Vitals) -> Option<String> {
        let settings = (vitals.not_taken.clone(), vitals.unreadable.clone());
        if self.tried.as_ref().is_none_or(|(tried, _)| *tried != settings) {
            let tried = cannot_start(instance, vitals).await;
            // One that could not be tried is tried again.
            self.tried = tried.ok().map(|why| (settings, why));
        }
        self.tried.as_ref().and_then(|(_, why)| why.clone())
    }
}

/// How the region's PostgreSQL is, for `status`.
#[derive(Debug, Default)]
pub(super) struct Health(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Since when it does not answer, and what came instead.
    silent: Option<(Instant, String)>,
    /// Since when a standby has applied nothing, though there is something, and how far it is.
    stalled: Option<(Instant, Lsn)>,
    /// What was seen when everything was looked at, the gravest first.
    notes: Vec<String>,
    /// What of that needs somebody, though the region serves.
    alarms: Vec<String>,
    /// Processes that are stopped by a signal.
    stopped: Vec<String>,
    /// Disks that have little room, in words.
    low_disks: Vec<String>,
}

impl Health {
    /// Whether it has not answered for so long that it counts as frozen.
    pub(super) fn is_silent(&self) -> bool {
        self.lock().is_silent()
    }

    /// What is wrong, in words; empty when nothing is.
    pub(super) fn words(&self) -> String {
        self.lock().words()
    }

    /// What needs somebody, though the region serves, each in words.
    pub(super) fn alarms(&self) -> Vec<String> {
        let state = self.lock();
        let stopped = &state.stopped;
        let stopped = (!stopped.is_empty()).then(|| format!("stopped by a signal: {}", stopped.join(", ")));
        state.low_disks.iter().cloned().chain(stopped).chain(state.alarms.iter().cloned()).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // Plain values, each assigned whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn is_silent(&self) -> bool {
        self.silent.as_ref().is_some_and(|(since, _)| since.elapsed() >= TOLD)
    }

    fn words(&self) -> String {
        let mut words = String::new();
        let mut add = |what: &str| {
            let _ = write!(words, "{}{what}", if words.is_empty() { "" } else { "; " });
        };
        if let Some((since, why)) = &self.silent
            && since.elapsed() >= TOLD
        {
            add(&format!("PostgreSQL does not answer for {} s: {why}", since.elapsed().as_secs()));
        }
        if let Some((since, at_lsn)) = &self.stalled
            && since.elapsed() >= TOLD
        {
            add(&format!(
                "the standby has applied nothing for {} s, and stands at {at_lsn}",
                since.elapsed().as_secs()
            ));
        }
        self.notes.iter().for_each(|note| add(note));
        words
    }
}

/// How a question was answered.
enum Said {
    Answered,
    Starting,
    Nothing(String),
}

/// Asks, over the connection that there is or a new one.
async fn ask(instance: &Instance, connection: &mut Option<ReplicationClient>) -> Said {
    let asking = timeout(ANSWER, async {
        let mut client = match connection.take() {
            Some(client) => client,
            None => ReplicationClient::connect(&instance.watching_connection()).await?,
        };
        client.show("server_version").await?;
        Ok(client)
    });
    match asking.await.unwrap_or(Err(SessionError::Late(ANSWER))) {
        Ok(client) => {
            *connection = Some(client);
            Said::Answered
        }
        Err(e) if is_starting(&e) => Said::Starting,
        Err(e) => Said::Nothing(silence(&e)),
    }
}

impl Region {
    /// Whether this region is to lead by a promotion in progress.
    fn is_target(&self) -> bool {
        let me: &RegionName = &self.own.name;
        self.voter.accepted().promotion.is_some_and(|promotion| promotion.to == *me)
    }

    /// Asks again and again, for ever.
    pub(super) async fn watch_postgresql(self: Arc<Self>) {
        let (mut connection, mut asked, mut looked, mut mended) =
            (None, 0_u32, None::<Instant>, None::<Instant>);
        let mut looks = Looks::default();
        loop {
            sleep(if self.is_target() { ASK_TARGET } else { ASK }).await;
            let follower = self.owner.cluster().follower();
            if self.instance.process().is_none() {
                (connection, looked) = (None, None);
                let left = match &follower {
                    Some(follower) => follower.not_started().await,
                    None => None,
                };
                let data_dir = self.instance.options().data_dir.clone();
                let lost = blocking("look at tablespaces", move || lost_in(&data_dir)).await;
                let lost: Vec<String> = lost.unwrap_or_default().iter().map(place_words).collect();
                let lost = preflight::told_of_tablespaces(&lost);
                let (notes, alarms) = (left.into_iter().collect(), lost.into_iter().collect());
                *self.health.lock() = State { notes, alarms, ..State::default() };
                self.tell(follower.as_deref());
                continue;
            }
            asked = asked.wrapping_add(1);
            if asked.is_multiple_of(CONNECT_EVERY) {
                connection = None;
            }
            let begin = now();
            let said = ask(&self.instance, &mut connection).await;
            self.note_answer(begin, &said);
            let stalled = self.note_replay(follower.as_deref());
            let due = looked.is_none_or(|looked| looked.elapsed() >= LOOK);
            if due && !matches!(said, Said::Starting) {
                looked = Some(now());
                let answers = matches!(said, Said::Answered);
                self.look_inside(follower.is_some() && answers, &mut looks).await;
                self.look_closely(follower.as_deref(), answers, &mut looks).await;
            }
            self.tell(follower.as_deref());
            // A standby below the writer's settings is mended at any time; what a user may have wanted, only
            // when it is to lead.
            let low =
                self.health.lock().notes.first().is_some_and(|note| note.ends_with(preflight::RESTARTS));
            let wait = if self.is_target() { ASK_TARGET } else { MEND_AGAIN };
            if let Some(follower) = &follower
                && (low || (stalled && self.is_target()))
                && mended.is_none_or(|mended| mended.elapsed() >= wait)
            {
                mended = Some(now());
                if let Err(e) = follower.mend_replay().await {
                    tracing::warn!("replay is not mended yet: {e}");
                }
                looked = None;
            }
        }
    }

    fn note_answer(&self, begin: Instant, said: &Said) {
        let mut state = self.health.lock();
        let was = state.is_silent();
        match said {
            Said::Nothing(why) => {
                let since = state.silent.as_ref().map_or(begin, |(since, _)| *since);
                state.silent = Some((since, why.clone()));
            }
            Said::Answered | Said::Starting => state.silent = None,
        }
        match (was, state.is_silent()) {
            (false, true) => tracing::warn!("{}", state.words()),
            (true, false) => tracing::info!("PostgreSQL answers again"),
            _ => {}
        }
    }

    /// Notes whether a standby applies what there is; says whether it stands still.
    fn note_replay(&self, follower: Option<&Follower>) -> bool {
        let applied_lsn = follower.and_then(Follower::applied);
        let durable_lsn = self.volume.bounds().durable_lsn;
        let mut state = self.health.lock();
        state.stalled = match (applied_lsn, state.stalled) {
            (Some(at_lsn), Some((since, before))) if at_lsn < durable_lsn && at_lsn == before => {
                Some((since, at_lsn))
            }
            (Some(at_lsn), _) if at_lsn < durable_lsn => Some((now(), at_lsn)),
            _ => None,
        };
        state.stalled.is_some_and(|(since, _)| since.elapsed() >= ASK_TARGET)
    }

    /// Looks into a standby's databases, seldom: what its machine lacks is told before it is to lead.
    async fn look_inside(&self, answers: bool, looks: &mut Looks) {
        let due = looks.inside.is_none_or(|looked| looked.elapsed() >= LOOK_INSIDE);
        if !answers || !due {
            return;
        }
        looks.inside = Some(now());
        if let Ok(databases) = inventory(&self.instance).await {
            looks.machine_lacks = preflight::machine_lacks(&databases);
        }
    }

    async fn look_closely(&self, follower: Option<&Follower>, answers: bool, looks: &mut Looks) {
        let (looking, standby) = (self.instance.clone(), follower.is_some());
        let (volume, copies) = (self.layout.volume(), self.own.local_copies());
        let copies = copies.into_iter().map(|copy| volume::copy::directory_of(&volume, copy));
        let places: Vec<PathBuf> = written_by(&looking).into_iter().chain(copies).collect();
        let looked = blocking("look at PostgreSQL's processes and disks", move || {
            let needs = if standby { looking.needs().unwrap_or_default() } else { Vec::new() };
            (looking.stopped_processes(), needs, looking.overrides().unwrap_or_default())
        });
        let (stopped, needs, overrides) = looked.await.unwrap_or_default();
        let looking = self.instance.clone();
        let looked = looks.files.at(move || {
            let rules = looking.rules_are_anothers().then(|| RULES_ARE_ANOTHERS.to_owned());
            (lost_in(&looking.options().data_dir), [rules, looking.not_writable()])
        });
        // Files that hang are on a disk that does.
        let (lost, of_files) = looked.await.map(Result::unwrap_or_default).unwrap_or_default();
        let low_disks = match looks.disks.at(places).await {
            Ok(disks) => preflight::low_disks(&disks),
            Err(hang) => vec![hang],
        };
        let seen = if answers { vitals(&self.instance).await.ok() } else { None };
        let cannot_start = match &seen {
            Some(vitals) => looks.cannot_start(&self.instance, vitals).await,
            None => None,
        };
        let waits = self.config.commit.waits();
        let start = cannot_start.as_deref().map(preflight::told_of_start);
        if let Some(vitals) = &seen {
            let lost = preflight::told_of_tablespaces(&lost_tablespaces(vitals, &lost));
            looks.alarms = preflight::alarms(vitals, waits).into_iter().chain(start).chain(lost).collect();
        }
        let of_files = of_files.into_iter().flatten();
        let alarms: Vec<String> = of_files.chain(looks.alarms.iter().cloned()).collect();
        let notes = seen.map(|vitals| {
            let notes = preflight::notes(&vitals, &needs, waits);
            let (waits, lacks) = (follower.and_then(Follower::waits), looks.machine_lacks.iter().cloned());
            let notes = preflight::overridden(&overrides).into_iter().chain(notes);
            notes.chain(waits).chain(lacks).collect::<Vec<String>>()
        });
        let mut state = self.health.lock();
        state.low_disks = low_disks;
        state.stopped = stopped.iter().map(|found| format!("{} ({})", found.title, found.pid)).collect();
        for alarm in alarms.iter().filter(|alarm| !state.alarms.contains(*alarm)) {
            tracing::warn!("{alarm}");
        }
        state.alarms = alarms;
        if let Some(notes) = notes {
            for note in notes.iter().filter(|note| !state.notes.contains(*note)) {
                tracing::warn!("{note}");
            }
            state.notes = notes;
        }
    }

    /// The primary is told of a standby.
    fn tell(&self, follower: Option<&Follower>) {
        if let Some(follower) = follower {
            let (trouble, silent) = (self.health.words(), self.health.is_silent());
            follower.inbound.note_standby(StandbyHealth { trouble, silent });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lasts_is_told_and_what_passes_is_not() {
        let health = Health::default();
        health.lock().silent = Some((now(), "no answer".into()));
        assert!(!health.is_silent() && health.words().is_empty());
        let since = now().checked_sub(TOLD * 3).unwrap();
        health.lock().silent = Some((since, "no answer".into()));
        assert!(health.is_silent());
        assert_eq!(health.words(), "PostgreSQL does not answer for 9 s: no answer");
        health.lock().notes = vec!["a".into(), "b".into()];
        health.lock().silent = None;
        assert_eq!(health.words(), "a; b");
    }
}
