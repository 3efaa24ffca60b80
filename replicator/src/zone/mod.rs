//! A zone of a region as a process of its own: `replicator run --region R --az b`.
//!
//! It holds the zone's two copies, goes to the region's daemon over QUIC with the region's own certificate,
//! and offers them. The daemon then opens streams on that connection: one of orders for each copy, and one
//! for each question.

pub mod hearing;
pub mod link;
pub mod wire;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use proto::frame;
use proto::messages as m;
use proto::messages::{
    CopyOpen, MAX_CONTROL_MESSAGE_BYTES, Open, PROTOCOL_VERSION, ZoneCopy, ZoneOpen, ZoneReady, copy_open,
    open,
};
use proto::{ClusterId, NodeName, RegionName};
use runtime::task::Tasks;
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio_util::sync::CancellationToken;
use transport::stream::{Receiver, Sender};
use transport::{Connection, Endpoint, Peer, Stream, TransportError};
use volume::copy::{Event, Lane, Link, LocalCopy, LocalLink, directory_of};
use volume::quorum::CopyId;
use volume::segment::SEGMENT_BYTES_MAX;
use volume::{Volume, VolumeError};

use crate::client;
use crate::config::{Config, RegionConfig};
use crate::daemon::authority::{Asked, Names};
use crate::daemon::enter::{EnterError, enter, enter_node};
use crate::daemon::serve::{Door, first_message};
use crate::daemon::{manager, renewal};
use crate::layout::Layout;
use hearing::{ANOTHER, Hearing};
use wire::MAX_ANSWER_BYTES;

/// The wait before going to the region's daemon again.
const AGAIN: Duration = Duration::from_millis(200);

/// How long the daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// How often a copy that failed is opened again.
const REOPEN: Duration = Duration::from_secs(2);

/// The most events of one copy that wait to be sent: about one for each order that is on its way.
const EVENTS_MAX: usize = 1 << 16;

/// Why a zone's process cannot run.
#[derive(Debug, thiserror::Error)]
pub enum ZoneError {
    /// `regions.toml` has no such region.
    #[error("there is no region '{name}' in regions.toml; there are: {known}")]
    Unknown {
        /// The name asked for.
        name: RegionName,
        /// The regions there are.
        known: String,
    },
    /// See [`EnterError`].
    #[error(transparent)]
    Enter(#[from] EnterError),
    /// See [`TransportError`].
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// A copy's directory is another's.
    #[error("the volume: {0}")]
    Volume(#[from] VolumeError),
}

/// Who holds a zone's copies.
#[derive(Debug)]
pub struct Holder {
    /// The zone.
    pub zone: char,
    /// The node, where it is one: it shows its own certificate.
    pub node: Option<NodeName>,
}

/// A zone's process at work.
struct Zone {
    own: RegionConfig,
    zone: char,
    volume_directory: PathBuf,
    cluster_id: ClusterId,
    door: Arc<Door>,
    endpoint: Endpoint,
    copies: Mutex<Vec<(CopyId, Arc<LocalCopy>)>>,
    /// Appends to both.
    lane: Arc<Lane>,
    hearing: Option<Arc<Hearing>>,
    /// The region's daemon has taken the copies.
    joined: AtomicBool,
}

/// Holds the copies of a zone of region `name` until `stop`. `hearing`: what its host has heard of the
/// region's head, where another host may take over.
///
/// # Errors
/// When it cannot start; what to do is in the error's words.
pub async fn run(
    config: Config,
    layout: Layout,
    name: RegionName,
    Holder { zone, node }: Holder,
    hearing: Option<Arc<Hearing>>,
    stop: CancellationToken,
) -> Result<(), ZoneError> {
    let own = config
        .region(&name)
        .cloned()
        .ok_or_else(|| ZoneError::Unknown { name: name.clone(), known: config.region_names() })?;
    let places = layout.region(&name);
    let lock = places.zone_lock(zone);
    let (_lock, identity, shown) = match &node {
        Some(node) => enter_node(&places, &lock, &name, node)?,
        None => {
            let (lock, identity) = enter(&places, &lock, &name)?;
            (lock, identity, places.identity())
        }
    };
    let names = Names::of(&config, &name);
    let endpoint = Endpoint::bind(None, &identity)?;
    config.restrict(&endpoint);
    let zone = Zone {
        door: Arc::new(Door { asked: Asked::Zone, cluster_id: identity.cluster_id, names }),
        own,
        zone,
        volume_directory: places.volume(),
        cluster_id: identity.cluster_id,
        endpoint,
        copies: Mutex::new(Vec::new()),
        lane: Lane::start(),
        hearing,
        joined: AtomicBool::new(false),
    };
    let telling = async {
        match &node {
            // It tells of itself.
            Some(_) => std::future::pending().await,
            None => manager::tell(|| zone.in_words()).await,
        }
    };
    let renewing = Box::pin(renewal::watch(&zone.endpoint, shown, &identity, |_| {}));
    tokio::select! {
        () = stop.cancelled() => {}
        ended = zone.serve() => ended?,
        never = renewing => match never {},
        never = telling => match never {},
    }
    if node.is_none() {
        manager::stopping("the copies are closed");
    }
    zone.endpoint.close().await;
    tracing::info!("zone {} of region {name} has stopped", zone.zone);
    Ok(())
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl Zone {
    /// How the zone is, for whoever has started its process.
    fn in_words(&self) -> String {
        let (zone, region) = (self.zone, &self.own.name);
        match self.joined.load(Ordering::Relaxed) {
            true => format!("zone {zone} of {region}: its copies have joined the region's volume"),
            false => format!("zone {zone} of {region}: the region's daemon is not reached"),
        }
    }

    /// Offers the copies again and again.
    async fn serve(&self) -> Result<(), ZoneError> {
        let mut last = String::new();
        loop {
            self.open_copies()?;
            let offered = self.offer().await;
            self.joined.store(false, Ordering::Relaxed);
            let ended = match offered {
                Ok(()) => "the region's daemon closed the connection".to_owned(),
                Err(e) => e.to_string(),
            };
            if ended != last {
                tracing::warn!("{ended}; trying again");
                last = ended;
            }
            let pause = self.hearing.as_ref().map_or(AGAIN, |hearing| hearing.pause(AGAIN));
            tokio::time::sleep(pause).await;
        }
    }

    /// Opens the copies that are not open.
    fn open_copies(&self) -> Result<(), ZoneError> {
        let mut copies = self.copies.lock().unwrap_or_else(PoisonError::into_inner);
        for copy in CopyId::all().filter(|copy| copy.zone() == self.zone) {
            if copies.iter().any(|(open, _)| *open == copy) {
                continue;
            }
            let (directory, lane) = (directory_of(&self.volume_directory, copy), self.lane.clone());
            match LocalCopy::start_in(directory, self.cluster_id, copy, Some(lane)) {
                Ok(opened) => copies.push((copy, opened)),
                Err(
                    e @ (VolumeError::OtherCluster { .. }
                    | VolumeError::OtherCopy { .. }
                    | VolumeError::LaterVersion { .. }),
                ) => {
                    return Err(e.into());
                }
                Err(e) => tracing::error!("copy {copy}: {e}"),
            }
        }
        Ok(())
    }

    /// Offers the copies to the region's daemon, and serves it until the connection ends.
    async fn offer(&self) -> Result<(), TransportError> {
        let patience = self.hearing.as_ref().map_or(PATIENCE, |_| ANOTHER);
        let connection = client::connect(&self.endpoint, &self.own.place(), patience).await?;
        let copies: Vec<ZoneCopy> = {
            let copies = self.copies.lock().unwrap_or_else(PoisonError::into_inner);
            let offered = |(id, copy): &(CopyId, Arc<LocalCopy>)| ZoneCopy {
                name: id.to_string(),
                promised: Some(wire::ballot(copy.promised())),
                place: directory_of(&self.volume_directory, *id).display().to_string(),
            };
            copies.iter().map(offered).collect()
        };
        let missing = copies.len() < usize::from(volume::quorum::COPIES_PER_ZONE);
        let heard = self.hearing.as_ref();
        let last = heard.and_then(|heard| heard.last()).unwrap_or_default();
        let offer = ZoneOpen {
            zone: self.zone.to_string(),
            copies,
            silent_ms: heard.map_or(0, |heard| millis(heard.silent())),
            origin: last.origin,
            handed_over_to: last.handed_over_to,
        };
        let open = Open {
            protocol: PROTOCOL_VERSION,
            cluster_id: self.cluster_id.0.to_vec().into(),
            purpose: Some(open::Purpose::Zone(offer)),
        };
        let mut stream = connection.open_stream(&open).await?;
        let answer =
            tokio::time::timeout(PATIENCE, stream.receive::<ZoneReady>(MAX_CONTROL_MESSAGE_BYTES)).await;
        let answer = answer.unwrap_or(Err(TransportError::Lost("no answer in time".into())))?;
        if let Some(refusal) = answer.ok_or(TransportError::Finished)?.refusal {
            self.endpoint.avoid(&self.own.place().advertise, connection.remote_address());
            return Err(TransportError::Lost(refusal.reason));
        }
        self.joined.store(true, Ordering::Relaxed);
        tracing::info!("zone {} serves the daemon of region {}", self.zone, self.own.name);
        let failed = CancellationToken::new();
        let serving = async {
            let tasks = Tasks::new();
            while let Some(stream) = connection.accept_stream().await {
                self.spawn_answer(&tasks, connection.peer(), stream, &failed);
            }
        };
        let reopen = async {
            failed.cancelled().await;
            tokio::time::sleep(REOPEN).await;
        };
        // A head that is gone is known to be by its silence sooner than by the connection.
        let silent = async {
            match &self.hearing {
                Some(hearing) => hearing.until_silent().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = serving => {}
            () = silent => {
                tracing::warn!(
                    "zone {}: the region's head is silent, or hands over; looking for it, or another",
                    self.zone
                );
                let (place, left) = (self.own.place().advertise, connection.remote_address());
                match self.hearing.as_ref().is_some_and(|hearing| hearing.handed_over().is_some()) {
                    true => self.endpoint.await_another(&place, left),
                    false => self.endpoint.avoid(&place, left),
                }
                connection.close("the region's head is silent");
            }
            () = reopen => {
                // Both are opened again: which one failed is said in the log.
                self.copies.lock().unwrap_or_else(PoisonError::into_inner).clear();
                connection.close("a copy is opened again");
            }
            () = tokio::time::sleep(REOPEN), if missing => connection.close("a copy is opened again"),
        }
        Ok(())
    }

    fn spawn_answer(&self, tasks: &Tasks, peer: &Peer, mut stream: Stream, failed: &CancellationToken) {
        // The stream says at once what it wants, and the copies are here.
        let (copies, failed) =
            (self.copies.lock().unwrap_or_else(PoisonError::into_inner).clone(), failed.clone());
        let (door, peer) = (self.door.clone(), peer.clone());
        tasks.spawn(async move {
            let Ok(Some(first)) = first_message(&mut stream).await else { return };
            if let Err(refusal) = door.admit(&peer, &first) {
                return tracing::warn!("refused {peer}: {}", refusal.reason);
            }
            let Some(open::Purpose::Copy(open)) = first.purpose else { return };
            let found = copies.iter().find(|(copy, _)| copy.to_string() == open.copy);
            if let Some((_, copy)) = found
                && let Err(e) = answer(copy, open, stream, &failed).await
            {
                tracing::debug!("a stream of the region's daemon ended: {e}");
            }
        });
    }
}

async fn answer(
    copy: &Arc<LocalCopy>,
    open: CopyOpen,
    mut stream: Stream,
    failed: &CancellationToken,
) -> Result<(), TransportError> {
    let link = copy.link(Arc::new(|_| {}));
    match open.body.ok_or(TransportError::Finished)? {
        copy_open::Body::Orders(_) => return obey(copy, stream, failed).await,
        copy_open::Body::Promised(_) => {
            stream.send(&m::CopyPromised { ballot: Some(wire::ballot(copy.promised())) }).await?;
        }
        copy_open::Body::Contents(_) => stream.send(&wire::contents(link.contents().await)).await?,
        copy_open::Body::Read(lsn) => stream.send(&wire::records(link.read(proto::Lsn(lsn)).await)).await?,
        copy_open::Body::Fetch(segment) => match link.fetch(wire::to_segment(segment)).await {
            Ok(bytes) => {
                for chunk in wire::chunks(&bytes) {
                    stream.send(&chunk).await?;
                }
            }
            Err(e) => {
                stream
                    .send(&m::CopyChunk { error: Some(wire::error(&e)), ..m::CopyChunk::default() })
                    .await?;
            }
        },
        copy_open::Body::Put(put) => {
            let put = wire::to_put(put).map_err(TransportError::Lost)?;
            let mut bytes = BytesMut::new();
            loop {
                let chunk: Option<m::CopyChunk> = stream.receive(MAX_ANSWER_BYTES).await?;
                let chunk = chunk.ok_or(TransportError::Finished)?;
                if bytes.len() + chunk.data.len() > SEGMENT_BYTES_MAX {
                    return Err(TransportError::Lost("a segment longer than any is".into()));
                }
                bytes.extend_from_slice(&chunk.data);
                if chunk.last {
                    break;
                }
            }
            let put = link.put(put, bytes.freeze()).await;
            stream.send(&m::CopyDone { error: put.err().map(|e| wire::error(&e)) }).await?;
        }
        copy_open::Body::Scrub(_) => stream.send(&wire::scrubbed(link.scrub().await)).await?,
    }
    stream.finish().await;
    Ok(())
}

/// Carries out orders and sends what comes of them, until the daemon goes.
async fn obey(
    copy: &Arc<LocalCopy>,
    stream: Stream,
    failed: &CancellationToken,
) -> Result<(), TransportError> {
    let (sender, receiver) = stream.split();
    let (events, queue) = mpsc::channel(EVENTS_MAX);
    let full = CancellationToken::new();
    let overflow = full.clone();
    let link = copy.link(Arc::new(move |event| {
        if let Err(TrySendError::Full(_)) = events.try_send(event) {
            overflow.cancel();
        }
    }));
    tokio::select! {
        // The daemon must not miss one: with a new stream it hears of everything again.
        () = full.cancelled() => Err(TransportError::Lost("the daemon does not take what the copies say".into())),
        ended = send_events(sender, queue, failed) => ended,
        ended = receive_orders(receiver, &link) => ended,
    }
}

async fn receive_orders(mut receiver: Receiver, link: &LocalLink) -> Result<(), TransportError> {
    while let Some(message) = receiver.receive::<m::CopyOrder>(MAX_ANSWER_BYTES).await? {
        link.order(wire::to_order(message).map_err(TransportError::Lost)?);
    }
    Ok(())
}

async fn send_events(
    mut sender: Sender,
    mut events: mpsc::Receiver<Event>,
    failed: &CancellationToken,
) -> Result<(), TransportError> {
    let mut frames = BytesMut::new();
    while let Some(event) = events.recv().await {
        let broken = matches!(event, Event::Failed(_));
        frame::encode(&wire::event(event), &mut frames);
        while let Ok(next) = events.try_recv() {
            frame::encode(&wire::event(next), &mut frames);
        }
        sender.write_frames(frames.split().freeze()).await?;
        if broken {
            failed.cancel();
        }
    }
    Ok(())
}

/// Takes a zone's copies into the region's volume, for as long as its connection holds.
///
/// # Errors
/// When the connection is lost.
pub async fn join(
    volume: &Volume,
    local: &[CopyId],
    cluster_id: ClusterId,
    connection: &Connection,
    open: ZoneOpen,
    mut stream: Stream,
) -> Result<(), TransportError> {
    let mut offered = Vec::new();
    for copy in open.copies {
        let parsed =
            wire::to_copy(&copy.name).and_then(|id| Ok((id, wire::to_ballot(copy.promised)?, copy.place)));
        match parsed {
            Ok((id, ..)) if local.contains(&id) => {
                let reason = format!(
                    "copy {id} is held by the region's daemon itself; name zone '{}' in `own_process` of its region, or as the `zone` of a node",
                    id.zone()
                );
                let refusal = m::Refusal::new(m::refusal::Kind::NotAllowed, reason);
                stream.send(&ZoneReady { refusal: Some(refusal) }).await?;
                stream.finish().await;
                return Ok(());
            }
            Ok(parsed) => offered.push(parsed),
            Err(e) => return Err(TransportError::Lost(e)),
        }
    }
    stream.send(&ZoneReady::default()).await?;
    let joined: Vec<_> = offered
        .into_iter()
        .map(|(id, promised, place)| {
            volume.join(id, promised, |listener| {
                link::RemoteLink::start(id, place, connection.clone(), cluster_id, listener)
            })
        })
        .collect();
    tracing::info!("zone {} has joined", open.zone);
    // The zone says nothing more on this stream; it ends when the zone does.
    let ended = stream.receive::<ZoneReady>(MAX_CONTROL_MESSAGE_BYTES).await;
    drop(joined);
    tracing::warn!("zone {} is gone", open.zone);
    ended.map(drop)
}
