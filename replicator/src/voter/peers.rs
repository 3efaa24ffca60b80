//! Connections to the other voters, kept: a round costs a round trip, and no handshake.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use proto::messages::{control_request, control_response};
use proto::{ClusterId, RegionName};
use transport::{Connection, Endpoint};

use super::Network;
use crate::client::{self, AskError};
use crate::config::Place;

/// The other voters, as far as they are connected.
#[derive(Debug)]
pub(crate) struct Peers {
    endpoint: Endpoint,
    cluster_id: ClusterId,
    connections: Mutex<BTreeMap<RegionName, Connection>>,
}

impl Peers {
    pub(crate) fn new(endpoint: Endpoint, cluster_id: ClusterId) -> Peers {
        Peers { endpoint, cluster_id, connections: Mutex::default() }
    }

    /// Asks over the connection that there is, or a new one.
    ///
    /// # Errors
    /// When it cannot be reached, refuses, or is too slow.
    pub(crate) async fn ask(
        &self,
        place: &Place,
        body: control_request::Body,
        patience: Duration,
    ) -> Result<control_response::Body, AskError> {
        let asking = async {
            let kept = self.lock().get(&place.name).cloned();
            if let Some(connection) = kept {
                match client::request_on(&connection, self.cluster_id, body.clone()).await {
                    // It may have been restarted, and then it did not hear this.
                    Err(AskError::Transport(_)) => drop(self.lock().remove(&place.name)),
                    Err(AskError::NotHead(_)) => self.avoid(place, &connection),
                    answer => return answer,
                }
            }
            let connection = client::connect(&self.endpoint, place, patience).await?;
            self.lock().insert(place.name.clone(), connection.clone());
            let answer = client::request_on(&connection, self.cluster_id, body).await;
            if let Err(AskError::NotHead(_)) = answer {
                self.avoid(place, &connection);
            }
            answer
        };
        let answer = tokio::time::timeout(patience, asking).await;
        if answer.is_err() {
            // A dead connection is not waited for again.
            self.lock().remove(&place.name);
        }
        answer.unwrap_or(Err(AskError::Slow(patience.as_millis())))
    }

    /// Asks another host of the region the next time.
    fn avoid(&self, place: &Place, connection: &Connection) {
        self.endpoint.avoid(&place.advertise, connection.remote_address());
        drop(self.lock().remove(&place.name));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<RegionName, Connection>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Network for Peers {
    /// Asks over the connection that there is, or a new one.
    fn ask<'a>(
        &'a self,
        place: &'a Place,
        body: control_request::Body,
        patience: Duration,
    ) -> Pin<Box<dyn Future<Output = Result<control_response::Body, AskError>> + Send + 'a>> {
        Box::pin(self.ask(place, body, patience))
    }
}
