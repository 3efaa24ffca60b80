//! Feeds the region's own standbys from its volume, as their walsender. A standby never talks to the primary
//! region.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use postgres::protocol::client::SystemIdentity;
use postgres::protocol::walsender::{
    RedoCursor, RedoPiece, RedoSource, StandbyProgress, WalsenderError, serve,
};
use postgres::sockets::socket_path;
use postgres::wal::tablespaces::{Created, created, without_paths};
use proto::{Lsn, Redo, SystemId, Timeline, TimelineHistory};
use runtime::task::blocking;
use telemetry::trace::{Step, Tracer};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use transport::Stream;
use volume::{Cursor, Start, Volume};

/// Connections served at a time: fifteen standbys, and room for those that reconnect.
const CONNECTIONS_MAX: usize = 32;

/// How often it is looked whether a tablespace can have its place.
const AGAIN: Duration = Duration::from_secs(1);

/// The region's volume as a walsender's source.
#[derive(Debug)]
pub struct VolumeSource {
    volume: Volume,
    system_id: SystemId,
    heard: Heard,
}

/// A place in the volume.
#[derive(Debug)]
pub struct VolumeCursor {
    cursor: Cursor,
    from_lsn: Lsn,
    heard: Heard,
    /// Redo that was read, and is not given before the tablespaces that it makes have their places.
    held: Option<(Redo, Vec<Created>)>,
}

/// Sees to it that a tablespace has its place before a standby is given the redo that makes it. That names no
/// path then: the standby uses what is below its `pg_tblspc`.
pub trait Places: std::fmt::Debug + Send + Sync {
    /// Makes the place of `tablespace` where it is not there; blocks.
    ///
    /// # Errors
    /// Why the standby cannot have it, and what to do.
    fn make(&self, tablespace: &Created) -> Result<(), String>;
}

impl RedoSource for VolumeSource {
    type Cursor = VolumeCursor;

    fn identity(&self) -> SystemIdentity {
        let bounds = self.volume.bounds();
        SystemIdentity { system_id: self.system_id, timeline: bounds.timeline, flush_lsn: bounds.durable_lsn }
    }

    fn horizon_lsn(&self) -> Lsn {
        self.volume.bounds().horizon_lsn
    }

    fn history(&self, timeline: Timeline) -> Option<TimelineHistory> {
        self.volume.history(timeline)
    }

    fn missing(&self, from_lsn: Lsn) {
        // While the volume is being opened it is not known what it has.
        if self.volume.is_open() && from_lsn < self.volume.bounds().horizon_lsn {
            self.heard.missing.send_replace(Some(from_lsn));
        }
    }

    fn open(&self, from_lsn: Lsn) -> Result<VolumeCursor, String> {
        let cursor = self.volume.cursor(from_lsn, Start::Batch).map_err(|e| e.to_string())?;
        Ok(VolumeCursor { cursor, from_lsn, heard: self.heard.clone(), held: None })
    }
}

impl RedoCursor for VolumeCursor {
    async fn next(&mut self) -> Result<RedoPiece, String> {
        if self.held.is_none() {
            let redo = self.cursor.next().await.map_err(|e| e.to_string())?;
            if let Some(redo) = self.hold(redo) {
                return Ok(self.piece(redo));
            }
        }
        // What is held stays so where this is given up in the middle.
        while !self.have_places().await {
            tokio::time::sleep(AGAIN).await;
        }
        let (mut redo, _) = self.held.take().ok_or("the redo that was held is gone")?;
        if let Some(given) = without_paths(redo.batch.begin_lsn, &redo.bytes) {
            redo.bytes = given.into();
        }
        Ok(self.piece(redo))
    }

    fn try_next(&mut self) -> Result<Option<RedoPiece>, String> {
        if self.held.is_some() {
            return Ok(None);
        }
        let redo = self.cursor.try_next().map_err(|e| e.to_string())?;
        Ok(redo.and_then(|redo| self.hold(redo)).map(|redo| self.piece(redo)))
    }
}

impl VolumeCursor {
    /// Gives the redo back, or holds it, as it makes tablespaces.
    fn hold(&mut self, redo: Redo) -> Option<Redo> {
        let made = match self.heard.places {
            Some(_) => created(redo.batch.begin_lsn, &redo.bytes),
            None => Vec::new(),
        };
        if made.is_empty() {
            return Some(redo);
        }
        self.held = Some((redo, made));
        None
    }

    /// Whether the tablespaces of the redo that is held have their places now.
    async fn have_places(&self) -> bool {
        let (Some(places), Some((_, made))) = (self.heard.places.clone(), &self.held) else { return true };
        let made = made.clone();
        let make = move || made.iter().try_for_each(|tablespace| places.make(tablespace));
        let why =
            blocking("make the places of tablespaces", make).await.map_err(|e| e.to_string()).flatten().err();
        self.heard.waits.send_if_modified(|waits| {
            let changed = *waits != why;
            if let Some(why) = why.as_ref().filter(|_| changed) {
                tracing::error!("the standby waits: {why}");
            }
            waits.clone_from(&why);
            changed
        });
        why.is_none()
    }

    fn piece(&self, redo: Redo) -> RedoPiece {
        self.heard.tracer.reached(Step::Feed, redo.batch.end_lsn.0, runtime::clock::wall_us);
        // The first batch may begin before the LSN that was asked for.
        let skip = usize::try_from(self.from_lsn.bytes_since(redo.batch.begin_lsn)).unwrap_or(usize::MAX);
        RedoPiece {
            begin_lsn: redo.batch.begin_lsn.max(self.from_lsn),
            timeline: redo.batch.timeline,
            bytes: redo.bytes.slice(skip.min(redo.bytes.len())..),
        }
    }
}

/// What the region learns of its standbys while they are fed.
#[derive(Debug, Clone, Default)]
pub struct Heard {
    /// How far the standby has come.
    pub progress: watch::Sender<StandbyProgress>,
    /// The redo that the standby needs and the volume does not keep any more.
    pub missing: watch::Sender<Option<Lsn>>,
    /// Is told when the standby was given a sampled batch.
    pub tracer: Tracer,
    /// Sees to it that tablespaces have their places; without it nobody does.
    pub places: Option<Arc<dyn Places>>,
    /// Why the standby is not given the next redo; none while it is.
    pub waits: watch::Sender<Option<String>>,
}

/// Serves standbys on `listener` until `stop`. Only processes of `user_id`, and of root, may connect: the
/// kernel says who they are.
pub async fn serve_standbys(
    listener: UnixListener,
    volume: Volume,
    system_id: SystemId,
    user_id: u32,
    server_version: String,
    heard: Heard,
    stop: CancellationToken,
) {
    let progress = heard.progress.clone();
    let source = Arc::new(VolumeSource { volume, system_id, heard });
    let mut serving = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = serving.join_next() => continue,
            accepted = listener.accept(), if serving.len() < CONNECTIONS_MAX => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) if may_connect(&stream, user_id) => stream,
            Ok(_) => continue,
            Err(e) => {
                tracing::warn!("accepting a standby's connection: {e}");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        let (source, version, progress) = (source.clone(), server_version.clone(), progress.clone());
        serving.spawn(async move {
            match serve(stream, source, &version, progress).await {
                Ok(()) => tracing::info!("a standby closed its connection"),
                Err(e) => tracing::warn!("a standby's connection ended: {e}"),
            }
        });
    }
    serving.shutdown().await;
}

/// Serves one standby at the other end of `stream`, whose place is elsewhere, until it goes.
///
/// # Errors
/// Why the connection ended, if the standby did not end it.
pub async fn serve_standby(
    stream: Stream,
    volume: Volume,
    system_id: SystemId,
    server_version: &str,
    heard: Heard,
) -> Result<(), WalsenderError> {
    let progress = heard.progress.clone();
    let source = Arc::new(VolumeSource { volume, system_id, heard });
    serve(stream.into_bytes(), source, server_version, progress).await
}

/// Makes the socket in `directory` that a standby's `primary_conninfo` names by its `port`.
///
/// # Errors
/// When the socket cannot be made.
pub fn bind(directory: &Path, port: u16) -> std::io::Result<UnixListener> {
    let path = socket_path(directory, port);
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
        _ => UnixListener::bind(path),
    }
}

/// Whether the process at the other end is `user_id`'s or root's, as the kernel says.
#[must_use]
pub fn may_connect(stream: &UnixStream, user_id: u32) -> bool {
    match stream.peer_cred() {
        Ok(peer) if peer.uid() == user_id || peer.uid() == 0 => true,
        Ok(peer) => {
            tracing::warn!("refused a connection to the walsender from user id {}", peer.uid());
            false
        }
        Err(e) => {
            tracing::warn!("refused a connection to the walsender from an unknown user: {e}");
            false
        }
    }
}
