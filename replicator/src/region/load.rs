//! Looks each second at what the region's PostgreSQL is busy with, keeps it, and answers whoever asks for it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use proto::messages::refusal::Kind;
use proto::messages::{LoadRequest, Refusal};
use runtime::clock::{micros, now, steady_us, wall_us};
use runtime::task::blocking;
use tokio::time::Instant;

use super::Region;
use crate::load::Look;
use crate::load::ask::Asker;
use crate::load::machine::{self, Reading};
use crate::load::series::{Called, Cut, Load, Question, Series};
use crate::load::store::{self, Store};
use crate::load::told::Told;

/// How often it is looked.
const LOOK: Duration = Duration::from_secs(1);

/// How often pg_stat_statements is asked, in looks: it reads a file of texts for that.
const CALLED_EVERY: u32 = 30;

/// How many looks are not kept after one that could not be, before the directory is opened anew.
const AGAIN: u32 = 10;

/// How far back is told when nobody says.
const SINCE_S: i64 = 3_600;

/// What is known of the load besides what is on the disk.
#[derive(Debug)]
pub(super) struct Known {
    told: Mutex<Told>,
    called: Mutex<Vec<Called>>,
    /// What is on the disk is read by one at a time: memory is bounded.
    reading: Arc<Mutex<()>>,
}

impl Default for Known {
    fn default() -> Known {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let told = Told::new(u32::try_from(cores).unwrap_or(u32::MAX));
        Known { told: Mutex::new(told), called: Mutex::default(), reading: Arc::default() }
    }
}

impl Known {
    /// What monitoring is told.
    pub(super) fn told(&self) -> Told {
        lock(&self.told).clone()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Plain values, each assigned whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is kept from look to look, by the thread that reads `/proc` and writes.
#[derive(Debug, Default)]
struct Keeping {
    store: Option<Store>,
    before: Option<(Reading, Instant)>,
    failing: bool,
    /// So many looks are not kept before it is tried again.
    wait: u32,
}

impl Keeping {
    /// Adds how busy the machine is to `look`, and keeps it.
    fn keep(&mut self, directory: &std::path::Path, mut look: Look) {
        let (reading, at) = (machine::read(), now());
        if let Some((before, then)) = &self.before {
            let elapsed_ms = micros(at.duration_since(*then)) / 1000;
            look.machine = Some(reading.since(before, elapsed_ms));
        }
        self.before = Some((reading, at));
        if self.wait > 0 {
            self.wait -= 1;
            return;
        }
        let kept = match &mut self.store {
            Some(store) => store.note(&look),
            None => Store::open(directory).and_then(|store| self.store.insert(store).note(&look)),
        };
        match (&kept, self.failing) {
            (Err(e), false) => {
                tracing::warn!(
                    "load: {}: {e}; looks are not kept until it can be written",
                    directory.display()
                );
            }
            (Ok(()), true) => tracing::info!("load: looks are kept again"),
            _ => {}
        }
        self.failing = kept.is_err();
        if self.failing {
            // The next one reads what is there, and sums up what this one had not.
            (self.store, self.wait) = (None, AGAIN);
        }
    }
}

impl Region {
    /// Looks again and again, for ever.
    pub(super) async fn watch_load(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(LOOK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        let (mut asker, mut keeping, mut looked) = (Asker::default(), Keeping::default(), 0_u32);
        loop {
            ticks.tick().await;
            let at_s = wall_us().div_euclid(1_000_000);
            let groups = self.look_at_load(&mut asker).await;
            if groups.is_some() && looked.is_multiple_of(CALLED_EVERY) {
                *lock(&self.load.called) = asker.called().await;
            }
            looked = looked.wrapping_add(1);
            let look = Look {
                at_s,
                looks: u32::from(groups.is_some()),
                cores: self.load.told().cores,
                groups: groups.unwrap_or_default(),
                machine: None,
            };
            let directory = self.layout.load();
            let kept = blocking("keep the load", move || {
                keeping.keep(&directory, look);
                keeping
            });
            keeping = kept.await.unwrap_or_default();
        }
    }

    async fn look_at_load(&self, asker: &mut Asker) -> Option<Vec<crate::load::Group>> {
        if self.instance.process().is_none() {
            asker.forget();
            return None;
        }
        let begin = now();
        match asker.look(&self.instance, steady_us()).await {
            Ok(Some(groups)) => {
                lock(&self.load.told).answered(&groups, micros(begin.elapsed()));
                Some(groups)
            }
            Ok(None) => {
                lock(&self.load.told).missed();
                None
            }
            Err(e) => {
                tracing::debug!("load: {e}");
                lock(&self.load.told).missed();
                None
            }
        }
    }

    /// The load of the last so many seconds, as JSON.
    pub(super) async fn answer_load(&self, request: LoadRequest) -> Result<Vec<u8>, Refusal> {
        let since_s = match i64::try_from(request.since_s) {
            Ok(0) => SINCE_S,
            Ok(since_s) => since_s,
            Err(_) => i64::MAX,
        };
        let to_s = wall_us().div_euclid(1_000_000).saturating_add(1);
        let by = Cut::named(&request.by).unwrap_or_default();
        let load = self.load_of(Question { from_s: to_s.saturating_sub(since_s), to_s, by }).await?;
        serde_json::to_vec(&load).map_err(|e| Refusal::new(Kind::Failed, e.to_string()))
    }

    /// The answer to `question`.
    pub(super) async fn load_of(&self, question: Question) -> Result<Load, Refusal> {
        if !self.in_force().telemetry.load {
            let words = "its load is not looked at: its regions.toml has `load = false` in [telemetry]";
            return Err(Refusal::new(Kind::Failed, words));
        }
        let (directory, reading) = (self.layout.load(), self.load.reading.clone());
        let (region, called) = (self.own.name.to_string(), lock(&self.load.called).clone());
        let read = blocking("read the load", move || {
            let _one = lock(&reading);
            let mut series = Series::new(question, store::looks_from(&directory)?);
            let (from_s, to_s) = series.range();
            store::read(&directory, from_s, to_s, |look| series.add(&look))?;
            Ok::<Load, std::io::Error>(series.load(&region, called))
        });
        let failed = |e: String| Refusal::new(Kind::Failed, format!("what is kept of the load: {e}"));
        read.await.map_err(|e| failed(e.to_string()))?.map_err(|e| failed(e.to_string()))
    }
}
