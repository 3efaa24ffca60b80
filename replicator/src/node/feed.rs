//! The way of the redo to a node's standby: it finds its walsender at a socket beside it, and what it says
//! there goes to the region's daemon as it is, a stream for each connection.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use postgres::instance::Instance;
use postgres::sockets::WALSENDER_PORT;
use proto::messages::{FeedOpen, FeedReady, MAX_CONTROL_MESSAGE_BYTES, open};
use runtime::task::{Task, Tasks};
use secondary::feed::{bind, may_connect};
use tokio::net::{UnixListener, UnixStream};
use transport::TransportError;

use super::link::Link;
use super::plan::Data;
use super::said::Said;
use crate::endpoint::relay::{down, up};

/// How long the region's daemon may take to begin to feed a standby.
const PATIENCE: Duration = Duration::from_secs(3);

/// The wait after a connection could not be taken.
const AGAIN: Duration = Duration::from_millis(100);

/// What feeds a node's standby.
pub(super) struct Feed {
    pub(super) link: Arc<Link>,
    /// What the standby runs on.
    pub(super) data: Data,
    /// Who alone may connect.
    pub(super) user_id: u32,
    pub(super) said: Arc<Said>,
}

impl Feed {
    /// Serves the standby of `instance` at its socket for as long as the task lives.
    pub(super) fn listen(self, instance: &Instance) -> std::io::Result<Task<()>> {
        let listener = bind(&instance.options().socket_dir, WALSENDER_PORT)?;
        instance.give_socket(WALSENDER_PORT).map_err(std::io::Error::other)?;
        Ok(Task::spawn("feed the node's standby", self.serve(listener)))
    }

    async fn serve(self, listener: UnixListener) {
        let feed = Arc::new(self);
        // A standby has one connection, and perhaps one that it has given up.
        let fed = Tasks::new();
        // It comes again ten times a second: the same refusal is said once.
        let refused = Arc::new(Mutex::new(String::new()));
        loop {
            match listener.accept().await {
                Ok((standby, _)) if may_connect(&standby, feed.user_id) => {
                    let (feed, refused) = (feed.clone(), refused.clone());
                    fed.spawn(async move {
                        let ended = feed.carry(standby).await.err().map(|e| e.to_string());
                        let ended = ended.unwrap_or_default();
                        let mut last = refused.lock().unwrap_or_else(PoisonError::into_inner);
                        if *last != ended && !ended.is_empty() {
                            tracing::warn!("the standby is not fed: {ended}; it tries again");
                        }
                        *last = ended;
                    });
                }
                Ok(_) => {}
                Err(e) => {
                    tracing::warn!("accepting the standby's connection: {e}");
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }

    async fn carry(&self, standby: UnixStream) -> Result<(), TransportError> {
        // Closed at once while there is no way: the standby comes again.
        let no_way = || TransportError::Lost("the region's daemon is not reached".into());
        let connection = self.link.way.borrow().clone().ok_or_else(no_way)?;
        let (node, Data { id, origin }) = (self.link.node.to_string(), self.data.clone());
        let feed = FeedOpen { node, data: id, origin: origin.0, carries_tablespaces: true };
        let open = self.link.open(open::Purpose::Feed(feed));
        let mut stream = connection.open_stream(&open).await?;
        let ready = tokio::time::timeout(PATIENCE, stream.receive::<FeedReady>(MAX_CONTROL_MESSAGE_BYTES));
        let ready = ready.await.unwrap_or_else(|_| Err(TransportError::Lost("no answer in time".into())))?;
        if let Some(refusal) = ready.ok_or(TransportError::Finished)?.refusal {
            return Err(TransportError::Lost(refusal.reason));
        }
        let (mut sender, mut receiver) = stream.split();
        let _counted = Counted::new(&self.said);
        let (from, to) = standby.into_split();
        // Whichever end ended it, the standby comes again: one that is frozen is not waited for.
        tokio::select! {
            _ = up(from, &mut sender) => {}
            _ = down(&mut receiver, to) => {}
        }
        Ok(())
    }
}

/// A connection that is fed, while it is.
struct Counted<'a>(&'a Said);

impl Counted<'_> {
    fn new(said: &Said) -> Counted<'_> {
        said.fed.fetch_add(1, Ordering::Relaxed);
        Counted(said)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fed.fetch_sub(1, Ordering::Relaxed);
    }
}
