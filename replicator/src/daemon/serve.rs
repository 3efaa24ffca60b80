//! Serves peers: connections, their streams, and the first message of each. What is not let in is refused, in
//! the message that the peer waits for. What a daemon does with a stream that is let in is its own.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use proto::ClusterId;
use proto::messages::refusal::Kind;
use proto::messages::{
    BackupReady, ControlResponse, FeedReady, MAX_CONTROL_MESSAGE_BYTES, NodeWord, Open, Refusal,
    ReplicateReady, Rewind, SeedAnswer, SessionReady, ZoneReady, control_response, open, rewind,
};
use runtime::task::Tasks;
use transport::{Connection, Endpoint, Peer, Stream, TransportError};

use super::authority::{Asked, Condition, Names, Request, Rule, rule};
use super::message;

/// How long a peer may take to say what it wants on a stream.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);

/// How much of the reason is said why a message is none, characters.
const WHY_CHARS_MAX: usize = 300;

/// By what a daemon lets in.
#[derive(Debug)]
pub struct Door {
    /// What the daemon is.
    pub asked: Asked,
    /// Its cluster.
    pub cluster_id: ClusterId,
    /// Who is who.
    pub names: Names,
}

impl Door {
    /// What `peer` asks with its first message, as far as the table decides: its purpose, and what must hold
    /// besides.
    ///
    /// # Errors
    /// A refusal, for the peer.
    pub fn admit(&self, peer: &Peer, open: &Open) -> Result<Option<Condition>, Refusal> {
        message::check_envelope(open, self.cluster_id)?;
        let unknown = || Refusal::new(Kind::Protocol, format!("{} does not know that request", self.asked));
        let purpose = open.purpose.as_ref().ok_or_else(unknown)?;
        let request = Request::of(purpose).ok_or_else(unknown)?;
        let condition = match rule(self.names.who(peer), request, self.asked) {
            Rule::Allowed => None,
            Rule::OnlyIf(condition) => Some(condition),
            Rule::Refused => {
                let reason = format!(
                    "'{peer}' may not ask '{}' of {} ({})",
                    request.name(),
                    self.names.own,
                    self.asked
                );
                return Err(Refusal::new(Kind::NotAllowed, reason));
            }
        };
        message::check(purpose, &self.names).map_err(|why| {
            // What the peer wrote may be in it, and long.
            let why: String = why.chars().take(WHY_CHARS_MAX).collect();
            Refusal::new(Kind::Protocol, format!("no correct daemon asks this '{}': {why}", request.name()))
        })?;
        Ok(condition)
    }
}

/// A daemon that answers peers.
pub trait Daemon: Send + Sync + 'static {
    /// By what it lets in.
    fn door(&self) -> &Door;

    /// Told of each refusal at the door, and of what was asked as far as that is known.
    fn refused(
        &self,
        connection: &Connection,
        asked: &str,
        refusal: &Refusal,
    ) -> impl Future<Output = ()> + Send;

    /// Whether `condition` holds for what `peer` asks.
    ///
    /// # Errors
    /// A refusal that says why not.
    fn holds(
        &self,
        condition: Condition,
        peer: &Peer,
        purpose: &open::Purpose,
    ) -> impl Future<Output = Result<(), Refusal>> + Send;

    /// Does what was let in, to the end of the stream.
    ///
    /// # Errors
    /// When the connection is lost.
    fn serve(
        &self,
        connection: &Connection,
        purpose: open::Purpose,
        stream: Stream,
    ) -> impl Future<Output = Result<(), TransportError>> + Send;
}

/// Takes connections until the endpoint is closed. What serves them is in `tasks`, which the caller owns: it
/// ends with them, or when their connections do.
pub async fn accept<D: Daemon>(daemon: &Arc<D>, endpoint: &Endpoint, tasks: &Tasks) {
    while let Some(connection) = endpoint.accept().await {
        tasks.spawn(serve_connection(daemon.clone(), connection));
    }
}

async fn serve_connection<D: Daemon>(daemon: Arc<D>, connection: Connection) {
    // Bounded by the streams that a connection may have open.
    let tasks = Tasks::new();
    while let Some(stream) = connection.accept_stream().await {
        let (daemon, connection) = (daemon.clone(), connection.clone());
        tasks.spawn(async move {
            let peer = connection.peer();
            match (serve_stream(&*daemon, &connection, stream).await, peer) {
                (Ok(()), _) => {}
                // An operator's command goes as soon as it has an answer, be it another region's.
                (Err(e), Peer::Operator(_) | Peer::Monitor(_)) => {
                    tracing::debug!("a stream of {peer} ended: {e}");
                }
                (Err(e), _) => tracing::warn!("a stream of {peer} ended: {e}"),
            }
        });
    }
    tasks.ended().await;
}

async fn serve_stream<D: Daemon>(
    daemon: &D,
    connection: &Connection,
    mut stream: Stream,
) -> Result<(), TransportError> {
    let peer = connection.peer();
    let Some(open) = first_message(&mut stream).await? else { return Ok(()) };
    let admitted = match daemon.door().admit(peer, &open) {
        Ok(condition) => match (condition, &open.purpose) {
            (Some(condition), Some(purpose)) => daemon.holds(condition, peer, purpose).await,
            (None, _) | (_, None) => Ok(()),
        },
        Err(refusal) => Err(refusal),
    };
    match (open.purpose, admitted) {
        (Some(purpose), Ok(())) => daemon.serve(connection, purpose, stream).await,
        (purpose, Err(refusal)) => {
            tracing::warn!("refused {peer}: {}", refusal.reason);
            let asked = purpose.as_ref().and_then(Request::of).map_or("nothing known", Request::name);
            daemon.refused(connection, asked, &refusal).await;
            answer_refusal(purpose.as_ref(), refusal, &mut stream).await
        }
        (None, Ok(())) => Ok(()),
    }
}

/// The first message of a stream; none when the peer finished it without one.
///
/// # Errors
/// When the connection is lost, or nothing came in time.
pub async fn first_message(stream: &mut Stream) -> Result<Option<Open>, TransportError> {
    let first = tokio::time::timeout(OPEN_TIMEOUT, stream.receive::<Open>(MAX_CONTROL_MESSAGE_BYTES)).await;
    first.unwrap_or(Err(TransportError::Lost("it never said what it wants".into())))
}

/// Says no in the message that the peer waits for.
async fn answer_refusal(
    purpose: Option<&open::Purpose>,
    refusal: Refusal,
    stream: &mut Stream,
) -> Result<(), TransportError> {
    match purpose {
        Some(open::Purpose::Replicate(_)) => {
            stream.send(&ReplicateReady { refusal: Some(refusal), ..ReplicateReady::default() }).await?;
        }
        Some(open::Purpose::Seed(_)) => {
            stream.send(&SeedAnswer { refusal: Some(refusal), ..SeedAnswer::default() }).await?;
        }
        Some(open::Purpose::Rewind(_)) => {
            stream.send(&Rewind { body: Some(rewind::Body::Refusal(refusal)) }).await?;
        }
        Some(open::Purpose::Session(_) | open::Purpose::Client(_) | open::Purpose::Rehearse(_)) => {
            stream.send(&SessionReady { refusal: Some(refusal), ..SessionReady::default() }).await?;
        }
        Some(open::Purpose::Zone(_)) => stream.send(&ZoneReady { refusal: Some(refusal) }).await?,
        Some(open::Purpose::Node(_)) => {
            stream.send(&NodeWord { refusal: Some(refusal), ..NodeWord::default() }).await?;
        }
        Some(open::Purpose::Feed(_)) => stream.send(&FeedReady { refusal: Some(refusal) }).await?,
        Some(open::Purpose::Backup(_)) => {
            stream.send(&BackupReady { refusal: Some(refusal), ..BackupReady::default() }).await?;
        }
        // Their answers have no place for a refusal: the stream just ends.
        Some(open::Purpose::Copy(_) | open::Purpose::Gather(_)) | None => {}
        Some(open::Purpose::Control(_)) => {
            stream.send(&ControlResponse { body: Some(control_response::Body::Refusal(refusal)) }).await?;
        }
    }
    stream.finish().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::RegionName;
    use proto::messages::{ControlRequest, PROTOCOL_VERSION, control_request};
    use transport::Holder;

    fn operator() -> Peer {
        Peer::Operator(Holder::operator())
    }

    fn name(text: &str) -> RegionName {
        text.parse().unwrap()
    }

    fn door() -> Door {
        let names = Names { own: name("a"), regions: vec![name("a"), name("b")], witnesses: Vec::new() };
        Door { asked: Asked::Region, cluster_id: ClusterId([7; 16]), names }
    }

    fn url(region: &str) -> Open {
        let body = control_request::Body::Url(proto::messages::UrlRequest { region: region.into() });
        Open {
            protocol: PROTOCOL_VERSION,
            cluster_id: vec![7; 16].into(),
            purpose: Some(open::Purpose::Control(ControlRequest { body: Some(body) })),
        }
    }

    fn refused(peer: &Peer, open: &Open) -> Kind {
        door().admit(peer, open).unwrap_err().kind()
    }

    #[test]
    fn each_refusal_says_its_kind() {
        assert_eq!(door().admit(&operator(), &url("b")), Ok(None));
        assert_eq!(refused(&Peer::Region(name("b")), &url("b")), Kind::NotAllowed);
        assert_eq!(refused(&Peer::Region(name("x")), &url("b")), Kind::NotAllowed);
        assert_eq!(refused(&operator(), &url("x")), Kind::Protocol);
        assert_eq!(refused(&operator(), &Open { protocol: 99, ..url("b") }), Kind::Protocol);
        let other = Open { cluster_id: vec![8; 16].into(), ..url("b") };
        assert_eq!(refused(&operator(), &other), Kind::OtherCluster);
        assert_eq!(refused(&operator(), &Open { purpose: None, ..url("b") }), Kind::Protocol);
    }

    #[test]
    fn a_condition_is_handed_to_the_daemon() {
        let open = Open {
            purpose: Some(open::Purpose::Gather(proto::messages::GatherOpen {
                epoch: 2,
                from_lsn: 1,
                to_lsn: 2,
                newest: None,
            })),
            ..url("b")
        };
        assert_eq!(door().admit(&Peer::Region(name("b")), &open), Ok(Some(Condition::ShallLead)));
    }
}
