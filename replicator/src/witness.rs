//! A witness: a daemon without data that votes on who leads, so that two regions and it have a majority when
//! one is lost.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use proto::RegionName;
use proto::messages::refusal::Kind;
use proto::messages::reloaded_key::Outcome;
use proto::messages::{
    ControlRequest, ControlResponse, Refusal, Reloaded, ReloadedKey, control_request, control_response, open,
};
use runtime::clock::steady_us;
use runtime::task::{Tasks, blocking};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use transport::{Connection, Endpoint, Peer, Stream, TransportError};

use crate::audit::chain::Deed;
use crate::audit::{self, Audit};
use crate::config::{Config, WitnessConfig};
use crate::daemon::authority::{Asked, Condition, Names};
use crate::daemon::enter::enter;
use crate::daemon::serve::{Daemon, Door, accept};
use crate::daemon::{manager, renewal};
use crate::events::notice::{Notice, Seen};
use crate::events::{Journal, Kind as EventKind};
use crate::layout::Layout;
use crate::node::Source;
use crate::orders::SignedOrders;
use crate::region::{RegionError, load_state};
use crate::region_file::RegionFile;
use crate::voter::{Seat, Voter, of_a_voter, wire};

/// How often the witness is compared with what it was.
const LOOK: Duration = Duration::from_millis(250);

type Ask = control_request::Body;
type Answer = control_response::Body;

#[derive(Debug)]
struct Witness {
    door: Door,
    voter: Arc<Voter>,
    journal: Journal,
    audit: Audit,
    endpoint: Endpoint,
    orders: Arc<SignedOrders>,
    file: PathBuf,
    /// What is in force.
    config: Mutex<Config>,
}

/// Runs witness `own` until `stop`.
///
/// # Errors
/// When it cannot start; what to do is in the error's words.
pub async fn run(
    config: Config,
    source: Source,
    layout: Layout,
    own: WitnessConfig,
    stop: CancellationToken,
) -> Result<(), RegionError> {
    let places = layout.region(&own.name);
    let (_lock, identity) = enter(&places, &places.lock(), &own.name)?;
    let state = load_state(&places, &identity, &config, &own.name)?;
    let journal = Journal::open(&places.events())?;
    let audit = Audit::new(places.directory());
    let endpoint = Endpoint::bind(Some(own.listen), &identity)?;
    config.restrict(&endpoint);
    let kept = Arc::new(RegionFile::new(places.state(), state));
    source.log.tell_epoch(kept.epoch());
    let orders = Arc::new(SignedOrders::new(endpoint.clone(), identity.cluster_id, &config));
    let (judging, cluster_id) = (orders.clone(), identity.cluster_id);
    let voter = Voter::new(own.name.clone(), &config, kept, judging, endpoint.clone(), cluster_id);
    let door =
        Door { asked: Asked::Witness, cluster_id: identity.cluster_id, names: Names::of(&config, &own.name) };
    let (file, config) = (source.file, Mutex::new(config));
    let endpoint_of = endpoint.clone();
    let witness =
        Arc::new(Witness { door, voter, journal, audit, endpoint: endpoint_of, orders, file, config });
    let seat: Arc<dyn Seat> = witness.clone();
    witness.voter.sit(Arc::downgrade(&seat));
    tracing::info!("witness {}: votes, and holds no data", own.name);
    let started = format!("witness {}: the daemon has started; it votes on who leads", own.name);
    witness.journal.note(EventKind::DaemonStarted, started);
    let serving = Tasks::new();
    let renewing = Box::pin(renewal::watch(&endpoint, places.identity(), &identity, |_| {}));
    tokio::select! {
        () = stop.cancelled() => {}
        () = accept(&witness, &endpoint, &serving) => {}
        () = witness.voter.clone().watch_only() => {}
        () = witness.note_events(&own.name) => {}
        () = witness.note_refused() => {}
        () = witness.reload_when_told(&source.again) => {}
        never = renewing => match never {},
        // In one task with the voter: where that does not go on, no sign of life comes.
        never = manager::tell(|| witness.in_words(&own.name)) => match never {},
    }
    manager::stopping("the witness stops");
    witness.voter.stop();
    endpoint.close().await;
    serving.ended().await;
    witness.journal.note(
        EventKind::DaemonStopped,
        format!("witness {}: the daemon has stopped; it has no vote now", own.name),
    );
    tracing::info!("witness {} has stopped", own.name);
    Ok(())
}

impl Daemon for Witness {
    fn door(&self) -> &Door {
        &self.door
    }

    async fn refused(&self, connection: &Connection, asked: &str, refusal: &Refusal) {
        if matches!(refusal.kind(), Kind::NotAllowed | Kind::Protocol | Kind::OtherCluster) {
            let peer = connection.peer();
            let text = format!(
                "'{peer}': refused by {}, {}; nothing was done for it",
                self.door.names.own, refusal.reason
            );
            self.journal.note(EventKind::PeerRefused, text);
            let outcome = format!("refused: {}", refusal.reason);
            let deed = Deed { what: asked.into(), outcome, ..audit::by(connection) };
            self.audit.keep_refused(deed).await;
        }
    }

    async fn holds(&self, condition: Condition, _: &Peer, purpose: &open::Purpose) -> Result<(), Refusal> {
        match (condition, purpose) {
            // Looked at where nothing can be voted meanwhile: see `support`.
            (Condition::LeadsEpoch, _) => Ok(()),
            (Condition::SameRecord, open::Purpose::Control(request)) => {
                wire::same_record(request, &self.voter.accepted())
            }
            (Condition::SameRecord | Condition::ShallLead | Condition::Coordinates, _)
            | (Condition::Itself, _) => Err(not_here()),
        }
    }

    async fn serve(
        &self,
        connection: &Connection,
        purpose: open::Purpose,
        mut stream: Stream,
    ) -> Result<(), TransportError> {
        let deed = audit::kept(&purpose).map(|(what, detail)| {
            let what = what.to_owned();
            Deed { what, detail, ..audit::by(connection) }
        });
        let body = match (purpose, connection.peer().voter()) {
            (open::Purpose::Control(ControlRequest { body: Some(body) }), Some(name))
                if of_a_voter(&body) =>
            {
                self.voter.answer(name, body).unwrap_or_else(Answer::Refusal)
            }
            (open::Purpose::Control(ControlRequest { body: Some(Ask::Revote(_)) }), _) => {
                self.voter.answer_revote().await.unwrap_or_else(Answer::Refusal)
            }
            (open::Purpose::Control(ControlRequest { body: Some(Ask::Audit(request)) }), _) => {
                let failed = |why| Refusal::new(Kind::Failed, format!("the audit: {why}"));
                self.audit
                    .page(request.skip)
                    .await
                    .map_or_else(|why| Answer::Refusal(failed(why)), Answer::Audit)
            }
            (open::Purpose::Control(ControlRequest { body: Some(Ask::Reload(_)) }), _) => {
                Answer::Reloaded(self.reload().await)
            }
            (open::Purpose::Control(ControlRequest { body: Some(Ask::Events(request)) }), _) => {
                let journal = self.journal.clone();
                match blocking("read the journal", move || journal.answer(request)).await {
                    Ok(Ok(events)) => Answer::Events(events),
                    Ok(Err(e)) => {
                        Answer::Refusal(Refusal::new(Kind::Failed, format!("the journal of events: {e}")))
                    }
                    Err(e) => Answer::Refusal(Refusal::new(Kind::Failed, e.to_string())),
                }
            }
            (open::Purpose::Control(ControlRequest { body: Some(body) }), _) => self.answer(body),
            _ => Answer::Refusal(not_here()),
        };
        if let Some(deed) = deed {
            self.audit.keep(Deed { outcome: audit::outcome(&body), ..deed }).await;
        }
        stream.send(&ControlResponse { body: Some(body) }).await?;
        stream.finish().await;
        Ok(())
    }
}

impl Witness {
    /// How the witness is, for whoever has started it.
    fn in_words(&self, name: &RegionName) -> String {
        let record = self.voter.accepted();
        match self.voter.remembers() {
            true => format!("witness {name}: votes; {} leads, epoch {}", record.primary, record.epoch),
            false => format!("witness {name}: asks the other voters what it has promised"),
        }
    }

    /// Notes whom the endpoint does not let in, or not any more, for ever.
    async fn note_refused(&self) {
        loop {
            let refused = self.endpoint.refused().await;
            self.journal.note(EventKind::PeerRefused, renewal::told(&self.door.names.own, &refused));
            self.audit.keep_not_let_in(&refused).await;
        }
    }

    /// Reads the file again each time that is asked for by a signal, for ever.
    async fn reload_when_told(&self, again: &Notify) {
        loop {
            again.notified().await;
            manager::reloading();
            let reloaded = self.reload().await;
            manager::serving();
            let deed = audit::local("reload", "by a signal".into(), audit::told_reload(&reloaded));
            self.audit.keep(deed).await;
        }
    }

    /// Reads the file again: a witness takes from it whom it does not let in, and nothing else.
    async fn reload(&self) -> Reloaded {
        let file = self.file.clone();
        let read = blocking("read regions.toml", move || Config::load(&file).map_err(|e| e.to_string()));
        let read = read.await.map_err(|e| e.to_string()).and_then(|read| read);
        let told = |key: &str, outcome: Outcome, detail: &str| {
            let (key, detail) = (key.to_owned(), detail.to_owned());
            ReloadedKey { key, outcome: outcome.into(), detail }
        };
        let new = match read {
            Ok(new) => new,
            Err(refused) => {
                tracing::warn!(
                    "regions.toml was read again and is not taken, nothing was changed: {refused}"
                );
                return Reloaded { refused, ..Reloaded::default() };
            }
        };
        let mut now = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        if new.cluster != now.cluster {
            let refused = format!("it is the file of cluster {}, and this is {}", new.cluster, now.cluster);
            return Reloaded { refused, ..Reloaded::default() };
        }
        let shown = |config: &Config| {
            [
                ("denied", format!("{:?}", config.denied)),
                ("require_roles", format!("{:?}", config.require_roles)),
                ("require_signed_orders", format!("{:?}", config.require_signed_orders)),
                ("failover", format!("{:?}", config.failover)),
            ]
        };
        let mut keys = Vec::new();
        for ((key, was), (_, is)) in shown(&now).into_iter().zip(shown(&new)) {
            let changed = was != is;
            if changed {
                let own = &self.door.names.own;
                let text =
                    format!("configuration of {own}: {key} was {was}, and is {is}; it holds from now on");
                tracing::info!("{text}");
                self.journal.note(EventKind::ConfigurationChanged, text);
            }
            keys.push(told(key, if changed { Outcome::Applied } else { Outcome::Unchanged }, ""));
        }
        new.restrict(&self.endpoint);
        self.orders.take(&new);
        (now.denied, now.require_roles) = (new.denied.clone(), new.require_roles);
        (now.require_signed_orders, now.failover) = (new.require_signed_orders, new.failover);
        if new.agreement() != now.agreement() {
            let detail = "restart the witness, and every daemon whose file says something else";
            keys.push(told("what voters agree on", Outcome::NeedsRestart, detail));
        }
        Reloaded { keys, ..Reloaded::default() }
    }

    /// Notes events, for ever.
    async fn note_events(&self, me: &RegionName) {
        let mut notice = Notice::default();
        loop {
            let changed = self.voter.changed();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let seen = Seen {
                me: me.clone(),
                part: None,
                record: self.voter.accepted(),
                held: None,
                copies: Vec::new(),
                gave_way_us: None,
                secondaries: Vec::new(),
                trouble: String::new(),
            };
            for note in notice.look(steady_us(), &seen) {
                self.journal.keep(note);
            }
            self.audit.keep_record(&self.voter.accepted()).await;
            tokio::select! {
                () = changed => {}
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    /// Answers what was let in (see [`crate::daemon::authority`]), or what this witness asks itself.
    fn answer(&self, body: Ask) -> Answer {
        match body {
            Ask::Record(request) => Answer::Record(self.voter.record_json(request).into()),
            Ask::Prepare(number) => self.voter.answer_prepare(number).unwrap_or_else(Answer::Refusal),
            Ask::Accept(accept) => {
                self.voter.witness_vote(accept).map_or_else(Answer::Refusal, Answer::Voted)
            }
            Ask::Survey(_) => Answer::Granted(self.voter.witness_survey()),
            _ => Answer::Refusal(not_here()),
        }
    }
}

impl Seat for Witness {
    fn answer(&self, _: RegionName, body: Ask) -> Pin<Box<dyn Future<Output = Answer> + Send + '_>> {
        Box::pin(async move { self.answer(body) })
    }
}

fn not_here() -> Refusal {
    Refusal::new(Kind::NotAllowed, "a witness has no data: ask a region")
}
