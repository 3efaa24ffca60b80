//! A witness: a daemon without data that votes on who leads, so that two regions and it have a majority when one is lost.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use coordination::promotion::Grant;
use proto::messages::refusal::Kind;
use proto::messages::{
    self as m, ControlResponse, MAX_CONTROL_MESSAGE_BYTES, Open, PROTOCOL_VERSION, Refusal, control_request,
    control_response, open,
};
use proto::{ClusterId, Epoch, RegionName};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use transport::{Connection, Endpoint, Peer, Stream, TransportError};

use crate::config::{Config, WitnessConfig};
use crate::layout::Layout;
use crate::region::state::Record;
use crate::region::{RegionError, enter, load_state};
use crate::voter::{Seat, Voter, wire};

type Ask = control_request::Body;
type Answer = control_response::Body;

/// How long a peer may take to say what it wants on a stream.
const OPEN_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);

#[derive(Debug)]
struct Witness {
    cluster_id: ClusterId,
    endpoint: Endpoint,
    voter: Arc<Voter>,
    /// When it last answered a primary, or was started.
    answered: Mutex<Instant>,
}

/// Runs witness `own` until `stop`.
///
/// # Errors
/// When it cannot start; what to do is in the error's words.
pub async fn run(
    config: Config,
    layout: Layout,
    own: WitnessConfig,
    stop: CancellationToken,
) -> Result<(), RegionError> {
    let places = layout.region(&own.name);
    let (_lock, identity) = enter(&places, &places.lock(), &own.name)?;
    let state = load_state(&places, &identity, &config, &own.name)?;
    let endpoint = Endpoint::bind(Some(own.listen), &identity)?;
    let kept = Arc::new(Record::new(places.state(), state));
    let voter = Voter::new(own.name.clone(), &config, kept, endpoint.clone(), identity.cluster_id);
    let witness =
        Arc::new(Witness { cluster_id: identity.cluster_id, endpoint, voter, answered: Mutex::new(now()) });
    let seat: Arc<dyn Seat> = witness.clone();
    witness.voter.sit(Arc::downgrade(&seat));
    tracing::info!("witness {}: votes, and holds no data", own.name);
    tokio::select! {
        () = stop.cancelled() => {}
        () = witness.clone().serve() => {}
        () = witness.voter.clone().watch() => {}
    }
    witness.voter.stop();
    witness.endpoint.close().await;
    tracing::info!("witness {} has stopped", own.name);
    Ok(())
}

impl Witness {
    async fn serve(self: Arc<Self>) {
        while let Some(connection) = self.endpoint.accept().await {
            tokio::spawn(self.clone().serve_connection(connection));
        }
    }

    async fn serve_connection(self: Arc<Self>, connection: Connection) {
        let tasks = TaskTracker::new();
        while let Some(stream) = connection.accept_stream().await {
            let (witness, peer) = (self.clone(), connection.peer().clone());
            tasks.spawn(async move {
                if let Err(e) = witness.serve_stream(&peer, stream).await {
                    tracing::debug!("a stream of {peer} ended: {e}");
                }
            });
        }
    }

    async fn serve_stream(&self, peer: &Peer, mut stream: Stream) -> Result<(), TransportError> {
        let first =
            tokio::time::timeout(OPEN_TIMEOUT, stream.receive::<Open>(MAX_CONTROL_MESSAGE_BYTES)).await;
        let first = first.unwrap_or(Err(TransportError::Lost("it never said what it wants".into())))?;
        let Some(open) = first else { return Ok(()) };
        let known = match peer {
            Peer::Region(name) => self.voter.knows(name),
            Peer::Operator => true,
        };
        let ours = known && open.protocol == PROTOCOL_VERSION && open.cluster_id[..] == self.cluster_id.0;
        let body = match open.purpose {
            Some(open::Purpose::Control(request)) if ours => match request.body {
                Some(body) => self.answer(peer, body).await,
                None => refuse("this witness does not know that request"),
            },
            _ => refuse("a witness of another cluster or version, or not something that a witness does"),
        };
        stream.send(&ControlResponse { body: Some(body) }).await?;
        stream.finish().await;
        Ok(())
    }

    async fn answer(&self, peer: &Peer, body: Ask) -> Answer {
        match (body, peer) {
            (Ask::Record(_), _) => Answer::Record(self.voter.record_json().into()),
            (_, Peer::Operator) => refuse("a witness has no data: ask a region"),
            (Ask::Prepare(number), _) => self.voter.answer_prepare(number).unwrap_or_else(Answer::Refusal),
            (Ask::Learn(agreed), _) => self.voter.answer_learn(&agreed).unwrap_or_else(Answer::Refusal),
            (Ask::Accept(accept), _) => self.vote(accept).map_or_else(Answer::Refusal, Answer::Voted),
            (Ask::Survey(_), _) => Answer::Granted(m::Granted {
                coordinates: self.voter.coordinates(),
                agreed: self.voter.agreed().as_ref().map(wire::accepted),
                ..wire::grant(&self.grant())
            }),
            (Ask::Support(request), Peer::Region(name)) => self.support(name, Epoch(request.epoch)),
            _ => refuse("a witness has no data"),
        }
    }

    fn vote(&self, accept: m::Accept) -> Result<m::Voted, Refusal> {
        let failed = |e: String| Refusal::new(Kind::Failed, e);
        let proposal = wire::to_accepted(&accept.proposal.unwrap_or_default()).map_err(failed)?;
        let next = wire::to_number(accept.next.unwrap_or_default());
        // While this is held no primary is answered.
        let answered = self.answered.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = self.voter.accept(&proposal, next).map_err(|e| failed(e.to_string()))?;
        drop(answered);
        Ok(wire::answer(&answer, wire::grant(&self.grant())))
    }

    fn grant(&self) -> Grant {
        let answered = *self.answered.lock().unwrap_or_else(PoisonError::into_inner);
        let silent_us = u64::try_from(answered.elapsed().as_micros()).unwrap_or(u64::MAX);
        Grant { silent_us, ..Grant::default() }
    }

    fn support(&self, name: &RegionName, epoch: Epoch) -> Answer {
        let mut answered = self.answered.lock().unwrap_or_else(PoisonError::into_inner);
        if self.voter.accepted().supports(name, epoch) {
            *answered = now();
            return Answer::Done(true);
        }
        drop(answered);
        if epoch > self.voter.accepted().epoch {
            // It was agreed on without this one: the next time it is known.
            let voter = self.voter.clone();
            tokio::spawn(async move { voter.change(&coordination::record::Change::Read).await });
        }
        Answer::Refusal(Refusal::new(Kind::StaleEpoch, format!("{name} is not known to lead epoch {epoch}")))
    }
}

impl Seat for Witness {
    fn answer(&self, from: RegionName, body: Ask) -> Pin<Box<dyn Future<Output = Answer> + Send + '_>> {
        Box::pin(async move { self.answer(&Peer::Region(from), body).await })
    }
}

fn refuse(reason: &str) -> Answer {
    Answer::Refusal(Refusal::new(Kind::NotAllowed, reason))
}

#[allow(clippy::disallowed_methods, reason = "a daemon knows how long ago it answered")]
fn now() -> Instant {
    Instant::now()
}
