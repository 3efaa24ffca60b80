//! Looks at the region once a second, and answers whoever asks between.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use postgres::instance::Instance;
use runtime::task::Task;
use telemetry::Snapshot;
use telemetry::otlp::Destination;
use telemetry::trace::Tracer;
use tokio_util::sync::CancellationToken;

use super::facts::{Facts, Source};
use super::metrics::{self, Lags};
use super::vitals::{self, Newest};
use super::{export, http};
use crate::config::{RegionConfig, TelemetryConfig};
use crate::layout::RegionLayout;
use crate::page;

/// How often lags are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Whoever tells monitoring of a region.
pub struct Observer {
    source: Arc<dyn Source>,
    newest: Newest,
    lags: Mutex<Lags>,
}

impl std::fmt::Debug for Observer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Observer").finish_non_exhaustive()
    }
}

/// Batches are sampled and followed as long as this is there.
struct Sampling {
    tracer: Tracer,
    _permitting: Task<()>,
}

impl Sampling {
    /// At most `per_second` batches are sampled, none where that is 0.
    fn begin(tracer: Tracer, per_second: u32) -> Option<Sampling> {
        let every = Duration::from_secs(1).checked_div(per_second)?;
        tracer.switch(true);
        let permits = tracer.clone();
        let _permitting = Task::spawn("let batches be sampled", async move {
            let mut ticks = tokio::time::interval(every);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                permits.permit();
            }
        });
        Some(Sampling { tracer, _permitting })
    }
}

impl Drop for Sampling {
    fn drop(&mut self) {
        self.tracer.switch(false);
    }
}

impl Observer {
    /// An observer of what `source` knows.
    #[must_use]
    pub fn new(source: Arc<dyn Source>) -> Arc<Observer> {
        Arc::new(Observer { source, newest: Newest::default(), lags: Mutex::default() })
    }

    /// What is known now.
    pub async fn facts(&self) -> Facts {
        self.source.facts(self.newest.get()).await
    }

    /// All metrics now.
    pub async fn snapshot(&self) -> Snapshot {
        self.metrics_of(&self.facts().await)
    }

    /// All metrics of `facts`.
    #[must_use]
    pub fn metrics_of(&self, facts: &Facts) -> Snapshot {
        metrics::of(facts, &self.lags.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn look(&self) {
        let facts = self.facts().await;
        self.lags.lock().unwrap_or_else(PoisonError::into_inner).note(&facts);
    }

    /// Looks again and again.
    async fn watch(&self) {
        let mut ticks = tokio::time::interval(LOOK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        loop {
            ticks.tick().await;
            self.look().await;
        }
    }
}

/// Tells monitoring of the region what the file asks for, until `stop`. Without anything asked for, nothing
/// runs.
pub async fn run<S: Source + page::Source>(
    source: Arc<S>,
    cluster: &str,
    own: &RegionConfig,
    telemetry: &TelemetryConfig,
    instance: Instance,
    layout: &RegionLayout,
    stop: CancellationToken,
) {
    let variable = |name: &str| std::env::var(name).ok();
    let otlp = Destination::find(variable, telemetry.otlp.as_deref(), cluster, own.name.as_str());
    if own.http.is_none() && otlp.is_none() {
        return;
    }
    let (tracer, page) = (source.tracer(), source.clone());
    let traced = otlp.as_ref().is_some_and(|destination| destination.traces);
    let per_second = if traced { telemetry.traces_per_second } else { 0 };
    let _sampling = Sampling::begin(tracer.clone(), per_second);
    let observer = Observer::new(source);
    let _asking =
        Task::spawn("ask PostgreSQL for its vital signs", vitals::ask(instance, observer.newest.clone()));
    let watching = observer.clone();
    let _watching = Task::spawn("look at lags", async move { watching.watch().await });
    let _sending = otlp.map(|destination| {
        Task::spawn("send metrics and traces", export::run(destination, observer.clone(), tracer))
    });
    match own.http {
        Some(address) => http::serve(address, observer, page, layout, stop).await,
        None => stop.cancelled().await,
    }
}
