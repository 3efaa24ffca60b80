//! Asks daemons: one request, one answer.

use std::time::Duration;

use proto::ClusterId;
use proto::messages::refusal::Kind;
use proto::messages::{
    ControlRequest, ControlResponse, MAX_CONTROL_MESSAGE_BYTES, Open, PROTOCOL_VERSION, control_request,
    control_response, open,
};
use transport::{Connection, Endpoint, Traffic, TransportError};

use crate::config::Place;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The region cannot be reached.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The region said no.
    #[error("{0}")]
    Refused(String),
    /// It is a host that is not its region's head, or may not be; another one may answer.
    #[error("{0}")]
    NotHead(String),
    /// The region did not answer in time.
    #[error("no answer within {0} ms")]
    Slow(u128),
}

/// Asks the daemon at `place`.
///
/// # Errors
/// When it cannot be reached, refuses, or is too slow.
pub async fn request(
    endpoint: &Endpoint,
    cluster_id: ClusterId,
    place: &Place,
    body: control_request::Body,
    patience: Duration,
) -> Result<control_response::Body, AskError> {
    let asking = async {
        let connection = connect(endpoint, place, patience).await?;
        let answer = request_on(&connection, cluster_id, body).await;
        connection.close_and_tell("answered").await;
        answer
    };
    tokio::time::timeout(patience, asking).await.unwrap_or(Err(AskError::Slow(patience.as_millis())))
}

/// Connects to the daemon at `place`.
///
/// # Errors
/// When it cannot be reached.
pub async fn connect(
    endpoint: &Endpoint,
    place: &Place,
    patience: Duration,
) -> Result<Connection, TransportError> {
    connect_for(Traffic::Redo, endpoint, place, patience).await
}

/// Connects to the daemon at `place`, for what the connection is to carry.
///
/// # Errors
/// When it cannot be reached.
pub async fn connect_for(
    traffic: Traffic,
    endpoint: &Endpoint,
    place: &Place,
    patience: Duration,
) -> Result<Connection, TransportError> {
    endpoint.connect_to(traffic, &place.advertise, &place.name, patience).await
}

/// Asks the daemon at the other end of `connection`.
///
/// # Errors
/// When the connection is lost, or it refuses.
pub async fn request_on(
    connection: &Connection,
    cluster_id: ClusterId,
    body: control_request::Body,
) -> Result<control_response::Body, AskError> {
    let purpose = Some(open::Purpose::Control(ControlRequest { body: Some(body) }));
    let open = Open { protocol: PROTOCOL_VERSION, cluster_id: cluster_id.0.to_vec().into(), purpose };
    let mut stream = connection.open_stream(&open).await?;
    let answer: Option<ControlResponse> = stream.receive(MAX_CONTROL_MESSAGE_BYTES).await?;
    match answer.and_then(|a| a.body).ok_or(TransportError::Finished)? {
        control_response::Body::Refusal(refusal) if refusal.kind() == Kind::NotHead => {
            Err(AskError::NotHead(refusal.reason))
        }
        control_response::Body::Refusal(refusal) => Err(AskError::Refused(refusal.reason)),
        answer => Ok(answer),
    }
}
