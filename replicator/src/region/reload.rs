//! Reads regions.toml again while everything goes on, by an operator's command or a signal. What becomes of
//! each key is decided in [`crate::config::reload`]; PostgreSQL is asked first, as it alone may say no.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use postgres::instance::{Own, ReloadError, Took};
use proto::messages::reloaded_key::Outcome;
use proto::messages::{Reloaded, ReloadedKey};
use proto::{ClusterId, NodeName, RegionName};
use runtime::task::{Task, blocking};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use volume::Tuning;

use super::{Parts, Region, chronicle};
use crate::audit;
use crate::config::Config;
use crate::config::reload::{self, Fate, Key};
use crate::daemon::manager;
use crate::node::Stands;
use crate::observe;

/// Where a daemon's configuration is from, to be read again.
#[derive(Debug, Clone)]
pub struct Source {
    /// The file.
    pub file: PathBuf,
    /// Zones of the region that run by themselves, besides those of the file.
    pub own_process: Vec<char>,
    /// Told when the file is to be read again.
    pub again: Arc<Notify>,
    /// Which host of the region this is.
    pub host: NodeName,
    /// It takes over from another host, or goes on as the head.
    pub stands: bool,
    /// What it knew of the last head when the process began.
    pub began: Stands,
}

impl Source {
    /// Adds to `config` what was typed.
    pub fn complete(&self, mut config: Config, own: &RegionName) -> Config {
        for own in config.regions.iter_mut().filter(|region| region.name == *own) {
            own.own_process.extend(&self.own_process);
            if let Some(headed) = own.headed_by(&self.host) {
                *own = headed;
            }
        }
        config
    }
}

/// The configuration that is in force.
#[derive(Debug)]
pub(crate) struct InForce {
    source: Source,
    config: Mutex<Arc<Config>>,
    /// Counts what monitoring and the look at the load are to begin anew with.
    observing: watch::Sender<u64>,
    /// One at a time.
    reloading: tokio::sync::Mutex<()>,
}

impl InForce {
    pub(super) fn new(source: Source, config: Config) -> InForce {
        InForce {
            source,
            config: Mutex::new(Arc::new(config)),
            observing: watch::Sender::new(0),
            reloading: tokio::sync::Mutex::new(()),
        }
    }

    /// The configuration: that of the start, but for what was taken since.
    pub(crate) fn get(&self) -> Arc<Config> {
        // It is replaced whole.
        self.config.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn replace(&self, config: Config) {
        *self.config.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
    }
}

/// The user's part of PostgreSQL's configuration in a region.
fn own_of(config: &Config, name: &RegionName, cluster: ClusterId) -> Own {
    let settings = config.region(name).map(|own| config.settings_of(own)).unwrap_or_default();
    Own { settings, hba: config.rules(), ident: config.map_lines(cluster) }
}

/// What became of another certificate of PostgreSQL's.
fn certificate_row(outcome: Outcome, why: &str) -> ReloadedKey {
    ReloadedKey {
        key: "the certificate of PostgreSQL".into(),
        outcome: outcome.into(),
        detail: why.to_owned(),
    }
}

impl Region {
    /// Reads the file again each time that is asked for by a signal, for ever.
    pub(super) async fn reload_when_told(self: Arc<Self>) {
        loop {
            self.in_force.source.again.notified().await;
            manager::reloading();
            let reloaded = self.reload().await;
            manager::serving();
            let deed = audit::local("reload", "by a signal".into(), audit::told_reload(&reloaded));
            self.audit.keep(deed).await;
        }
    }

    /// Reads the file again, and takes what can be taken now; says what became of each key.
    pub(super) async fn reload(&self) -> Reloaded {
        let _one = self.in_force.reloading.lock().await;
        let taken = match self.read_again().await {
            Ok(new) => self.try_to_take(new).await,
            Err(refused) => Err(refused),
        };
        self.told(taken)
    }

    /// Has PostgreSQL take the certificate that lies there now; what is configured stays as it is, whatever
    /// the file says by now: nobody has asked for that.
    pub(super) async fn take_servers_certificate(&self) -> Reloaded {
        let _one = self.in_force.reloading.lock().await;
        let in_force = (*self.in_force.get()).clone();
        let taken = self.try_to_take(in_force).await;
        self.told(taken)
    }

    /// What was `taken`, said in the log.
    fn told(&self, taken: Result<Vec<ReloadedKey>, String>) -> Reloaded {
        let reloaded = match taken {
            Ok(keys) => Reloaded { keys, ..Reloaded::default() },
            Err(refused) => Reloaded { refused, ..Reloaded::default() },
        };
        let name = &self.own.name;
        if !reloaded.refused.is_empty() {
            tracing::warn!(
                "regions.toml was read again and is not taken, nothing was changed: {}",
                reloaded.refused
            );
        }
        for key in &reloaded.keys {
            match key.outcome() {
                Outcome::Unchanged | Outcome::Unspecified => {}
                Outcome::Applied => tracing::info!("{name}: {} is another, and holds from now on", key.key),
                Outcome::NeedsRestart => tracing::warn!("{name}: {} is another, and {}", key.key, key.detail),
                Outcome::Refused => tracing::warn!("{name}: {} is refused: {}", key.key, key.detail),
            }
        }
        reloaded
    }

    async fn read_again(&self) -> Result<Config, String> {
        let (source, name) = (self.in_force.source.clone(), self.own.name.clone());
        let read = blocking("read regions.toml", move || {
            let config = Config::load(&source.file).map_err(|e| e.to_string())?;
            Ok::<Config, String>(source.complete(config, &name))
        });
        read.await.map_err(|e| e.to_string())?
    }

    async fn try_to_take(&self, new: Config) -> Result<Vec<ReloadedKey>, String> {
        let (old, name) = (self.in_force.get(), &self.own.name);
        let keys = reload::decide(name, &old, &new);
        if keys.iter().any(|key| matches!(key.fate, Fate::Refused(_))) {
            return Ok(keys.into_iter().map(refuse).collect());
        }
        let instance = self.instance.clone();
        let another =
            blocking("look at PostgreSQL's certificate", move || instance.has_another_certificate());
        let certificate = another.await.map_err(|e| e.to_string())?;
        if certificate {
            // Taken or not, somebody is to hear in time when it ends.
            self.server_certificate.look(&self.layout.server_identity());
        }
        let took = match self.reload_postgres(&old, &new, certificate).await {
            Ok(took) => took,
            Err(why) => {
                let of_certificate = certificate.then(|| certificate_row(Outcome::Refused, &why));
                let keys = keys.into_iter().map(|key| refuse_postgres(key, &why));
                return Ok(keys.chain(of_certificate).collect());
            }
        };
        self.take(&old, &new).await;
        let mut answer = answer(&keys, &own_of(&new, name, self.cluster_id), took);
        if certificate {
            answer.push(certificate_row(Outcome::Applied, ""));
        }
        Ok(answer)
    }

    /// Gives PostgreSQL its part of the configuration, if that or its `certificate` is another; of each
    /// setting that is, and of those that wait for a start, when it holds.
    async fn reload_postgres(
        &self,
        old: &Config,
        new: &Config,
        certificate: bool,
    ) -> Result<BTreeMap<String, Took>, String> {
        let [before, after] = [old, new].map(|config| own_of(config, &self.own.name, self.cluster_id));
        let looking = self.instance.clone();
        let another = blocking("look at pg_hba.conf", move || looking.rules_are_anothers());
        let another = another.await.map_err(|e| e.to_string())?;
        if another {
            tracing::warn!("{}: pg_hba.conf was changed by hand: it is written anew", self.own.name);
        }
        if before == after && !certificate && !another {
            return Ok(self.instance.waiting().await);
        }
        let (installation, settings) = (self.instance.installation().clone(), after.settings.clone());
        let checked = blocking("check settings", move || match settings.is_empty() {
            true => Ok(()),
            false => installation.check_settings(&settings),
        });
        checked.await.map_err(|e| e.to_string())??;
        self.instance.reload(after).await.map_err(|e| match e {
            ReloadError::Session(_) => format!("{e}: reload again once it is"),
            other => other.to_string(),
        })
    }

    /// Takes what this daemon can take while it works. None of it can fail.
    async fn take(&self, old: &Config, new: &Config) {
        let force = reload::taken(&self.own.name, old, new);
        let Config { retain, max_size_bytes, repair_bytes_per_second, scrub_every, .. } = force;
        self.log.limit(force.logs);
        self.doors.limit(force.endpoints);
        force.restrict(&self.endpoint);
        self.orders.take(&force);
        self.volume.tune(Tuning { retain, max_size_bytes, repair_bytes_per_second, scrub_every });
        let http = |config: &Config| config.region(&self.own.name).and_then(|own| own.http);
        let observes = old.telemetry != force.telemetry || http(old) != http(&force);
        chronicle::note_reload(self, old, &force).await;
        self.in_force.replace(force);
        if let Some(leader) = self.owner.cluster().leader() {
            leader.limit(self);
        }
        if observes {
            self.in_force.observing.send_modify(|count| *count += 1);
        }
    }

    /// Tells monitoring of the region what the configuration in force asks for, until `stop`.
    pub(super) async fn tell_monitoring(self: Arc<Self>, stop: CancellationToken) {
        let mut changed = self.in_force.observing.subscribe();
        while !stop.is_cancelled() {
            changed.borrow_and_update();
            let force = self.in_force.get();
            let own = force.region(&self.own.name).unwrap_or(&self.own);
            let round = stop.child_token();
            let telling = observe::watch::run(
                self.clone(),
                &force.cluster,
                own,
                &force.telemetry,
                self.instance.clone(),
                &self.layout,
                round.clone(),
            );
            let again = async {
                // The sender is this region's.
                let _ = changed.changed().await;
                round.cancel();
            };
            let asked_for = async {
                telling.await;
                // Nothing may be asked for.
                round.cancelled().await;
            };
            tokio::join!(asked_for, async {
                tokio::select! {
                    () = again => {}
                    () = stop.cancelled() => {}
                }
            });
        }
    }

    /// Looks at the load while the configuration in force asks for it, for ever.
    pub(super) async fn watch_load_if_asked(self: Arc<Self>) {
        let mut changed = self.in_force.observing.subscribe();
        loop {
            let looks = self.in_force.get().telemetry.load;
            let _looking = looks.then(|| Task::spawn("look at the load", self.clone().watch_load()));
            // The look goes on while something else is changed.
            while self.in_force.get().telemetry.load == looks {
                if changed.changed().await.is_err() {
                    return;
                }
            }
        }
    }
}

impl Parts {
    /// The configuration in force.
    pub(crate) fn in_force(&self) -> Arc<Config> {
        self.in_force.get()
    }
}

fn told(key: String, outcome: Outcome, detail: &str) -> ReloadedKey {
    ReloadedKey { key, outcome: outcome.into(), detail: detail.to_owned() }
}

const NOT_TAKEN: &str = "not taken, as the file is refused";

/// What is said of a key where another one, or it, cannot be taken.
fn refuse(key: Key) -> ReloadedKey {
    match key.fate {
        Fate::Same | Fate::Elsewhere => told(key.name, Outcome::Unchanged, ""),
        Fate::Refused(why) => told(key.name, Outcome::Refused, why),
        Fate::Now | Fate::Postgres | Fate::Needs(_) => told(key.name, Outcome::Refused, NOT_TAKEN),
    }
}

/// What is said of a key where PostgreSQL does not take its part.
fn refuse_postgres(key: Key, why: &str) -> ReloadedKey {
    match key.fate {
        Fate::Postgres => told(key.name, Outcome::Refused, why),
        _ => refuse(key),
    }
}

/// What became of each key, once everything was taken that can be.
fn answer(keys: &[Key], own: &Own, mut took: BTreeMap<String, Took>) -> Vec<ReloadedKey> {
    let setting = |name: &str| name.split_once(".settings.").map(|(_, setting)| setting.to_owned());
    let by_postgres = |name: String, setting: &str, took: Option<Took>| match took {
        Some(Took::AtStart { running }) => {
            let need = reload::start_need(setting, &running, own.settings.get(setting));
            told(name, Outcome::NeedsRestart, need.words())
        }
        Some(Took::Overridden) => told(
            name,
            Outcome::Refused,
            "another file of PostgreSQL's sets it, and comes before: see ALTER SYSTEM RESET",
        ),
        Some(Took::NewSessions) => told(name, Outcome::Applied, "in sessions that begin from now on"),
        Some(Took::Now) | None => told(name, Outcome::Applied, ""),
    };
    let mut told_keys: Vec<ReloadedKey> = keys
        .iter()
        .map(|key| {
            let name = key.name.clone();
            let setting = setting(&name);
            let waits = setting.as_ref().and_then(|setting| took.remove(setting));
            match (key.fate, setting) {
                (Fate::Same, Some(setting)) if waits.is_some() => by_postgres(name, &setting, waits),
                (Fate::Postgres, Some(setting)) => by_postgres(name, &setting, waits),
                (Fate::Same, _) => told(name, Outcome::Unchanged, ""),
                (Fate::Elsewhere, _) => {
                    told(name, Outcome::Unchanged, "it is another, and nothing to this daemon")
                }
                (Fate::Now | Fate::Postgres, _) => told(name, Outcome::Applied, ""),
                (Fate::Needs(need), _) => told(name, Outcome::NeedsRestart, need.words()),
                (Fate::Refused(why), _) => told(name, Outcome::Refused, why),
            }
        })
        .collect();
    // A setting that was taken out of the file before waits as well.
    for (setting, waits) in took {
        told_keys.push(by_postgres(format!("postgresql.settings.{setting}"), &setting, Some(waits)));
    }
    told_keys
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::reload::Need;

    fn outcomes(keys: Vec<ReloadedKey>) -> Vec<(String, Outcome)> {
        keys.into_iter().map(|key| (key.key.clone(), key.outcome())).collect()
    }

    fn key(name: &str, fate: Fate) -> Key {
        Key { name: name.into(), fate }
    }

    #[test]
    fn postgresql_says_which_setting_waits_for_its_start() {
        let own =
            Own { settings: BTreeMap::from([("max_connections".into(), "150".into())]), ..Own::default() };
        let keys = [
            key("volume.retain", Fate::Now),
            key("postgresql.settings.work_mem", Fate::Postgres),
            key("postgresql.settings.max_connections", Fate::Postgres),
            key("region.a.settings.jit", Fate::Same),
            key("region.b.http", Fate::Elsewhere),
            key("lease", Fate::Needs(Need::EveryDaemon)),
        ];
        let waits = |running: &str| Took::AtStart { running: running.into() };
        let took = BTreeMap::from([
            ("max_connections".to_owned(), waits("100")),
            ("work_mem".to_owned(), Took::Now),
            ("shared_buffers".to_owned(), waits("1")),
        ]);
        let answered = answer(&keys, &own, took);
        assert!(answered[2].detail.contains("secondaries' daemons first"), "{}", answered[2].detail);
        let told = outcomes(answered);
        let expected = [
            ("volume.retain", Outcome::Applied),
            ("postgresql.settings.work_mem", Outcome::Applied),
            ("postgresql.settings.max_connections", Outcome::NeedsRestart),
            ("region.a.settings.jit", Outcome::Unchanged),
            ("region.b.http", Outcome::Unchanged),
            ("lease", Outcome::NeedsRestart),
            ("postgresql.settings.shared_buffers", Outcome::NeedsRestart),
        ];
        assert_eq!(told, expected.map(|(name, outcome)| (name.to_owned(), outcome)));
    }

    #[test]
    fn where_one_key_is_refused_no_other_is_taken() {
        let keys = [
            key("cluster", Fate::Refused("why")),
            key("lease", Fate::Needs(Need::EveryDaemon)),
            key("commit", Fate::Same),
            key("postgresql.hba", Fate::Postgres),
        ];
        let told = outcomes(keys.iter().cloned().map(refuse).collect());
        let of = [Outcome::Refused, Outcome::Refused, Outcome::Unchanged, Outcome::Refused];
        assert_eq!(told.into_iter().map(|(_, outcome)| outcome).collect::<Vec<_>>(), of);
        let hba = refuse_postgres(keys[3].clone(), "line 4");
        assert_eq!((hba.outcome(), hba.detail.as_str()), (Outcome::Refused, "line 4"));
    }
}
