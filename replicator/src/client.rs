//! Asks daemons: one request, one answer.

use std::time::Duration;

use proto::ClusterId;
use proto::messages::{
    ControlRequest, ControlResponse, MAX_CONTROL_MESSAGE_BYTES, Open, PROTOCOL_VERSION, control_request,
    control_response, open,
};
use transport::{Endpoint, TransportError};

use crate::config::RegionConfig;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The region cannot be reached.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The region said no.
    #[error("{0}")]
    Refused(String),
    /// The region did not answer in time.
    #[error("no answer within {0} ms")]
    Slow(u128),
}

/// Asks `region`'s daemon.
///
/// # Errors
/// When it cannot be reached, refuses, or is too slow.
pub async fn request(
    endpoint: &Endpoint,
    cluster_id: ClusterId,
    region: &RegionConfig,
    body: control_request::Body,
    patience: Duration,
) -> Result<control_response::Body, AskError> {
    let asking = async {
        let mut addresses =
            tokio::net::lookup_host(&region.advertise).await.map_err(|e| unreachable(region, &e))?;
        let address = addresses.next().ok_or_else(|| unreachable(region, &"no address"))?;
        let connection = endpoint.connect(address, &region.name, patience).await?;
        let purpose = Some(open::Purpose::Control(ControlRequest { body: Some(body) }));
        let open = Open { protocol: PROTOCOL_VERSION, cluster_id: cluster_id.0.to_vec().into(), purpose };
        let mut stream = connection.open_stream(&open).await?;
        let answer: Option<ControlResponse> = stream.receive(MAX_CONTROL_MESSAGE_BYTES).await?;
        connection.close("answered");
        match answer.and_then(|a| a.body).ok_or(TransportError::Finished)? {
            control_response::Body::Refusal(refusal) => Err(AskError::Refused(refusal.reason)),
            answer => Ok(answer),
        }
    };
    tokio::time::timeout(patience, asking).await.unwrap_or(Err(AskError::Slow(patience.as_millis())))
}

fn unreachable(region: &RegionConfig, reason: &dyn std::fmt::Display) -> TransportError {
    TransportError::Unreachable { address: region.advertise.clone(), reason: reason.to_string() }
}
