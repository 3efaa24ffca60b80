//! The way to the primary's PostgreSQL: through the primary's daemon, encrypted, to its writer's own socket.
//!
//! Here it is a socket in a directory that nobody else can enter; each connection to it is a stream of the
//! operator's QUIC. So a rehearsal needs no superuser's password, and none that is let in over the network.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use postgres::below::{Below, Owner};
use postgres::protocol::wire::error_response;
use postgres::sockets::{socket_dir_for, socket_path};
use proto::RegionName;
use proto::messages::{RehearseOpen, open};
use runtime::private;
use runtime::task::{Task, Tasks};
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};

use super::DrillError;
use crate::endpoint::relay;
use crate::endpoint::tunnel::Tunnels;

/// The port in the socket's name.
pub const PORT: u16 = 5435;

/// What a session hears that cannot be brought to the primary: PostgreSQL's "cannot connect now".
const CANNOT_CONNECT_NOW: &str = "57P03";

/// The way, as long as this lives.
#[derive(Debug)]
pub struct Tunnel {
    directory: PathBuf,
    _listening: Task<()>,
}

impl Tunnel {
    /// Opens the way to `primary`, with its socket below `directory`, which is made.
    ///
    /// # Errors
    /// When there can be no socket.
    pub fn open(tunnels: Tunnels, primary: RegionName, directory: &Path) -> Result<Tunnel, DrillError> {
        private::make_directory(directory).map_err(DrillError::at(directory))?;
        let directory = socket_dir_for(directory);
        let ours = Owner {
            user_id: nix::unistd::Uid::effective().as_raw(),
            group_id: nix::unistd::Gid::effective().as_raw(),
            given: false,
        };
        Below::make(&directory, ours).map_err(DrillError::at(&directory))?;
        let path = socket_path(&directory, PORT);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(DrillError::at(&path)(e)),
            _ => {}
        }
        let listener = UnixListener::bind(&path).map_err(DrillError::at(&path))?;
        let listening = Task::spawn("bring a rehearsal to the primary", listen(listener, tunnels, primary));
        Ok(Tunnel { directory, _listening: listening })
    }

    /// Where the socket lies.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        // Where the path is long the socket lies elsewhere than all else of the rehearsal.
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

async fn listen(listener: UnixListener, tunnels: Tunnels, primary: RegionName) {
    let (tunnels, tasks) = (Arc::new(tunnels), Tasks::new());
    // What fails is this process's own, such as too many open files: the session that waits goes on waiting.
    while let Ok((session, _)) = listener.accept().await {
        let (tunnels, primary) = (tunnels.clone(), primary.clone());
        tasks.spawn(async move { bring(session, &tunnels, &primary).await });
    }
}

async fn bring(mut session: UnixStream, tunnels: &Tunnels, primary: &RegionName) {
    let (mut sender, mut receiver) =
        match tunnels.open_for(primary, open::Purpose::Rehearse(RehearseOpen {})).await {
            Ok(opened) => opened,
            Err(why) => {
                let words = format!("no session with the primary, {primary}: {why}");
                // It may have gone.
                let _ = session.write_all(&error_response("FATAL", CANNOT_CONNECT_NOW, &words)).await;
                return;
            }
        };
    let (from, to) = session.into_split();
    // However it ends, both ends know what that means.
    let _ = tokio::try_join!(relay::up(from, &mut sender), relay::down(&mut receiver, to));
}
