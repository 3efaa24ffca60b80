//! The way of a session to another region: a stream of the daemons' QUIC, on a connection for sessions.

use std::collections::BTreeMap;
use std::time::Duration;

use proto::messages::refusal::Kind;
use proto::messages::{
    MAX_CONTROL_MESSAGE_BYTES, Open, PROTOCOL_VERSION, SessionOpen, SessionReady, open, session_open,
};
use proto::{ClusterId, Epoch, RegionName};
use tokio::sync::Mutex;
use transport::{Connection, Endpoint, Receiver, Sender, Stream, Traffic, TransportError};

use super::way::Wanted;
use crate::client;
use crate::config::Place;

/// How long another region may take to bring a client to its PostgreSQL.
const PATIENCE: Duration = Duration::from_secs(3);

/// The ways to the other regions: one connection for each, made when it is wanted first.
#[derive(Debug)]
pub struct Tunnels {
    endpoint: Endpoint,
    cluster_id: ClusterId,
    ways: BTreeMap<RegionName, (Place, Mutex<Option<Connection>>)>,
}

impl Tunnels {
    /// Ways to the daemons at `places`; none of them is connected yet.
    #[must_use]
    pub fn new(endpoint: Endpoint, cluster_id: ClusterId, places: impl Iterator<Item = Place>) -> Tunnels {
        let ways = places.map(|place| (place.name.clone(), (place, Mutex::default()))).collect();
        Tunnels { endpoint, cluster_id, ways }
    }

    /// Opens a session at `region`.
    ///
    /// # Errors
    /// Why not, in words.
    pub async fn open(&self, region: &RegionName, wanted: &Wanted) -> Result<(Sender, Receiver), String> {
        self.open_for(region, open::Purpose::Session(asked(wanted))).await
    }

    /// Opens a stream at `region` for a purpose that is answered as a session is.
    ///
    /// # Errors
    /// Why not, in words.
    pub async fn open_for(
        &self,
        region: &RegionName,
        purpose: open::Purpose,
    ) -> Result<(Sender, Receiver), String> {
        let (place, way) = self.ways.get(region).ok_or("it is not in this daemon's regions.toml")?;
        let opening = tokio::time::timeout(PATIENCE, self.ask(place, way, purpose)).await;
        if opening.is_err() {
            // The next one makes a connection of its own; sessions on this one go on.
            *way.lock().await = None;
        }
        opening.unwrap_or_else(|_| Err(format!("no answer within {} s", PATIENCE.as_secs())))
    }

    async fn ask(
        &self,
        place: &Place,
        way: &Mutex<Option<Connection>>,
        purpose: open::Purpose,
    ) -> Result<(Sender, Receiver), String> {
        let words = |e: TransportError| e.to_string();
        // Those who come while it is being made wait for it.
        let connection = {
            let mut kept = way.lock().await;
            match kept.as_ref().filter(|connection| !connection.is_over()) {
                Some(connection) => connection.clone(),
                None => {
                    let made = client::connect_for(Traffic::Sessions, &self.endpoint, place, PATIENCE).await;
                    kept.insert(made.map_err(words)?).clone()
                }
            }
        };
        let open = Open {
            protocol: PROTOCOL_VERSION,
            cluster_id: self.cluster_id.0.to_vec().into(),
            purpose: Some(purpose),
        };
        let mut stream = connection.open_stream(&open).await.map_err(words)?;
        let ready: Option<SessionReady> = stream.receive(MAX_CONTROL_MESSAGE_BYTES).await.map_err(words)?;
        match ready {
            Some(SessionReady { refusal: Some(refusal) }) => {
                if refusal.kind() == Kind::NotHead {
                    // The next one goes to another host of the region; sessions on this connection go on.
                    self.endpoint.avoid(&place.advertise, connection.remote_address());
                    *way.lock().await = None;
                }
                Err(refusal.reason)
            }
            Some(SessionReady { refusal: None }) => Ok(stream.split()),
            None => Err("it ended the session before it began".into()),
        }
    }
}

fn asked(wanted: &Wanted) -> SessionOpen {
    let of = match wanted {
        Wanted::Writer(epoch) => session_open::Of::WriterEpoch(epoch.0),
        Wanted::Reader(lag_max) => {
            session_open::Of::ReaderLagMs(u64::try_from(lag_max.as_millis()).unwrap_or(u64::MAX))
        }
    };
    SessionOpen { of: Some(of) }
}

/// What another region's daemon wants for its client.
#[must_use]
pub fn wanted(open: &SessionOpen) -> Option<Wanted> {
    Some(match open.of.as_ref()? {
        session_open::Of::WriterEpoch(epoch) => Wanted::Writer(Epoch(*epoch)),
        session_open::Of::ReaderLagMs(lag_ms) => Wanted::Reader(Duration::from_millis(*lag_ms)),
    })
}

/// Says that the session begins; what follows on the stream is PostgreSQL's, and the client's.
///
/// # Errors
/// When the connection is lost.
pub async fn begin(mut stream: Stream) -> Result<(Sender, Receiver), TransportError> {
    stream.send(&SessionReady { refusal: None }).await?;
    Ok(stream.split())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wanted_is_what_is_asked() {
        for what in [Wanted::Writer(Epoch(7)), Wanted::Reader(Duration::from_millis(1500))] {
            assert_eq!(wanted(&asked(&what)), Some(what));
        }
        assert_eq!(wanted(&SessionOpen { of: None }), None);
    }
}
