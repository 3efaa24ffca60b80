//! A witness: a daemon without data that votes on who leads, so that two regions and it have a majority when
//! one is lost.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use proto::RegionName;
use proto::messages::refusal::Kind;
use proto::messages::{ControlRequest, ControlResponse, Refusal, control_request, control_response, open};
use runtime::clock::steady_us;
use runtime::task::{Tasks, blocking};
use tokio_util::sync::CancellationToken;
use transport::{Connection, Endpoint, Peer, Stream, TransportError};

use crate::config::{Config, WitnessConfig};
use crate::daemon::authority::{Asked, Condition, Names};
use crate::daemon::enter::enter;
use crate::daemon::renewal;
use crate::daemon::serve::{Daemon, Door, accept};
use crate::events::notice::{Notice, Seen};
use crate::events::{Journal, Kind as EventKind};
use crate::layout::Layout;
use crate::logs::DaemonLog;
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
}

/// Runs witness `own` until `stop`.
///
/// # Errors
/// When it cannot start; what to do is in the error's words.
pub async fn run(
    config: Config,
    log: DaemonLog,
    layout: Layout,
    own: WitnessConfig,
    stop: CancellationToken,
) -> Result<(), RegionError> {
    let places = layout.region(&own.name);
    let (_lock, identity) = enter(&places, &places.lock(), &own.name)?;
    let state = load_state(&places, &identity, &config, &own.name)?;
    let journal = Journal::open(&places.events())?;
    let endpoint = Endpoint::bind(Some(own.listen), &identity)?;
    let kept = Arc::new(RegionFile::new(places.state(), state));
    log.tell_epoch(kept.epoch());
    let voter = Voter::new(own.name.clone(), &config, kept, endpoint.clone(), identity.cluster_id);
    let door =
        Door { asked: Asked::Witness, cluster_id: identity.cluster_id, names: Names::of(&config, &own.name) };
    let witness = Arc::new(Witness { door, voter, journal });
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
        never = renewing => match never {},
    }
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

    fn refused(&self, peer: &Peer, refusal: &Refusal) {
        if matches!(refusal.kind(), Kind::NotAllowed | Kind::Protocol | Kind::OtherCluster) {
            let text = format!(
                "'{peer}': refused by {}, {}; nothing was done for it",
                self.door.names.own, refusal.reason
            );
            self.journal.note(EventKind::PeerRefused, text);
        }
    }

    async fn holds(
        &self,
        condition: Condition,
        _: &RegionName,
        purpose: &open::Purpose,
    ) -> Result<(), Refusal> {
        match (condition, purpose) {
            // Looked at where nothing can be voted meanwhile: see `support`.
            (Condition::LeadsEpoch, _) => Ok(()),
            (Condition::SameRecord, open::Purpose::Control(request)) => {
                wire::same_record(request, &self.voter.accepted())
            }
            (Condition::SameRecord | Condition::ShallLead | Condition::Coordinates, _) => Err(not_here()),
        }
    }

    async fn serve(
        &self,
        connection: &Connection,
        purpose: open::Purpose,
        mut stream: Stream,
    ) -> Result<(), TransportError> {
        let body = match (purpose, connection.peer()) {
            (open::Purpose::Control(ControlRequest { body: Some(body) }), Peer::Region(name))
                if of_a_voter(&body) =>
            {
                self.voter.answer(name, body).unwrap_or_else(Answer::Refusal)
            }
            (open::Purpose::Control(ControlRequest { body: Some(Ask::Revote(_)) }), _) => {
                self.voter.answer_revote().await.unwrap_or_else(Answer::Refusal)
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
        stream.send(&ControlResponse { body: Some(body) }).await?;
        stream.finish().await;
        Ok(())
    }
}

impl Witness {
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
            tokio::select! {
                () = changed => {}
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    /// Answers what was let in (see [`crate::daemon::authority`]), or what this witness asks itself.
    fn answer(&self, body: Ask) -> Answer {
        match body {
            Ask::Record(_) => Answer::Record(self.voter.record_json().into()),
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
