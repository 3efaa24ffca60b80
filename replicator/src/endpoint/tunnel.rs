//! The way of a session to another region: a stream of the daemons' QUIC, on a connection for sessions.

use std::collections::BTreeMap;
use std::time::Duration;

use proto::messages::refusal::Kind;
use proto::messages::{
    MAX_CONTROL_MESSAGE_BYTES, Open, PROTOCOL_VERSION, Refusal, SessionOpen, SessionReady, open, session_open,
};
use proto::{ClusterId, Epoch, Lsn, RegionName};
use tokio::sync::Mutex;
use transport::{Connection, Endpoint, Receiver, Sender, Stream, Traffic, TransportError};

use super::way::{Freshness, Wanted};
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
        self.open_as(region, open::Purpose::Session(asked(wanted)), wanted.at_least()).await
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
        self.open_as(region, purpose, Lsn::ZERO).await
    }

    async fn open_as(
        &self,
        region: &RegionName,
        purpose: open::Purpose,
        at_least: Lsn,
    ) -> Result<(Sender, Receiver), String> {
        let (place, way) = self.ways.get(region).ok_or("it is not in this daemon's regions.toml")?;
        let opening = tokio::time::timeout(PATIENCE, self.ask(place, way, purpose, at_least)).await;
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
        at_least: Lsn,
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
            Some(SessionReady { refusal: Some(refusal), .. }) => {
                if refusal.kind() == Kind::NotHead {
                    // The next one goes to another host of the region; sessions on this connection go on.
                    self.endpoint.avoid(&place.advertise, connection.remote_address());
                    *way.lock().await = None;
                }
                Err(refusal.reason)
            }
            Some(ready) => shows(&ready, at_least).map(|()| stream.split()),
            None => Err("it ended the session before it began".into()),
        }
    }
}

fn asked(wanted: &Wanted) -> SessionOpen {
    let of = match wanted {
        Wanted::Writer(epoch) => session_open::Of::WriterEpoch(epoch.0),
        Wanted::Reader(Freshness { lag_max, .. }) => {
            session_open::Of::ReaderLagMs(u64::try_from(lag_max.as_millis()).unwrap_or(u64::MAX))
        }
    };
    SessionOpen { of: Some(of), at_least_lsn: wanted.at_least().0 }
}

/// What another region's daemon wants for its client.
#[must_use]
pub fn wanted(open: &SessionOpen) -> Option<Wanted> {
    Some(match open.of.as_ref()? {
        session_open::Of::WriterEpoch(epoch) => Wanted::Writer(Epoch(*epoch)),
        session_open::Of::ReaderLagMs(lag_ms) => Wanted::Reader(Freshness {
            lag_max: Duration::from_millis(*lag_ms),
            at_least: Lsn(open.at_least_lsn),
        }),
    })
}

/// Takes a session that is `ready`, if it shows redo up to where it was asked for; a daemon of an earlier
/// version does not know what that is.
///
/// # Errors
/// Why not, in words.
pub fn shows(ready: &SessionReady, at_least: Lsn) -> Result<(), String> {
    match Lsn(ready.at_least_lsn) {
        lsn if lsn >= at_least => Ok(()),
        _ => Err("its version knows no sessions from a position on".into()),
    }
}

/// Says that the session begins, which shows redo up to `at_least`; what follows on the stream is
/// PostgreSQL's, and the client's.
///
/// # Errors
/// When the connection is lost.
pub async fn begin(mut stream: Stream, at_least: Lsn) -> Result<(Sender, Receiver), TransportError> {
    stream.send(&SessionReady { refusal: None, at_least_lsn: at_least.0 }).await?;
    Ok(stream.split())
}

/// Says why no session begins.
///
/// # Errors
/// When the connection is lost.
pub async fn refuse(mut stream: Stream, why: String) -> Result<(), TransportError> {
    let refusal = Some(Refusal::new(Kind::Busy, why));
    stream.send(&SessionReady { refusal, ..SessionReady::default() }).await?;
    stream.finish().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wanted_is_what_is_asked() {
        let fresh = Freshness { lag_max: Duration::from_millis(1500), at_least: Lsn(77) };
        for what in [Wanted::Writer(Epoch(7)), Wanted::Reader(fresh)] {
            assert_eq!(wanted(&asked(&what)), Some(what));
        }
        assert_eq!(wanted(&SessionOpen::default()), None);
    }

    #[test]
    fn a_daemon_that_knows_no_positions_is_not_taken_for_one_that_is_fresh() {
        let ready = |lsn| SessionReady { refusal: None, at_least_lsn: lsn };
        assert!(shows(&ready(0), Lsn::ZERO).is_ok() && shows(&ready(77), Lsn(77)).is_ok());
        assert!(shows(&ready(0), Lsn(77)).is_err());
    }
}
