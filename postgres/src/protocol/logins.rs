//! Logins that a server has not answered. A lock on a catalog holds each login up, and a client that leaves
//! does not end it: the server sees that only when it answers. So a login that is given up keeps its place
//! here until the server says something, and while all places are taken, the next login waits for one: it
//! would take one more of the server's connections.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};

/// So many logins of a kind may be unanswered at a time. The server's connections for replication are for the
/// region's standby and reader as well.
pub const LOGINS_MAX: usize = 3;

/// How often it is looked for a place.
const LOOK: Duration = Duration::from_millis(50);

/// The logins to one server that are not answered yet. Those to a database wait for more locks than others.
#[derive(Debug, Clone, Default)]
pub struct Logins {
    to_databases: Kind,
    others: Kind,
}

/// Those of one kind.
#[derive(Debug, Clone, Default)]
struct Kind(Arc<Mutex<Unanswered>>);

#[derive(Debug, Default)]
struct Unanswered {
    under_way: usize,
    /// Those that nobody waits for any more, but the server.
    given_up: Vec<OwnedFd>,
}

/// A login that is under way.
#[derive(Debug)]
#[must_use]
pub(super) struct Login {
    kind: Kind,
    socket: Option<OwnedFd>,
}

impl Logins {
    /// Waits for a place. It has no deadline.
    pub(super) async fn begin(&self, to_database: bool) -> Login {
        let kind = if to_database { &self.to_databases } else { &self.others };
        while !kind.take_place() {
            tokio::time::sleep(LOOK).await;
        }
        Login { kind: kind.clone(), socket: None }
    }
}

impl Kind {
    fn take_place(&self) -> bool {
        let mut unanswered = self.lock();
        unanswered.given_up.retain(|socket| !is_answered(socket));
        let is_free = unanswered.under_way + unanswered.given_up.len() < LOGINS_MAX;
        unanswered.under_way += usize::from(is_free);
        is_free
    }

    fn lock(&self) -> MutexGuard<'_, Unanswered> {
        // Each change is one step.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the server has answered, or closed the connection.
fn is_answered(socket: &OwnedFd) -> bool {
    let looks = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    recv(socket.as_raw_fd(), &mut [0], looks) != Err(Errno::EAGAIN)
}

impl Login {
    /// The server is asked over `socket`: from here on only its answer gives the place back.
    ///
    /// # Errors
    /// What the system says when there are too many files.
    pub(super) fn asks(&mut self, socket: BorrowedFd<'_>) -> std::io::Result<()> {
        self.socket = Some(socket.try_clone_to_owned()?);
        Ok(())
    }

    /// The server has said yes or no.
    pub(super) fn end(mut self) {
        self.socket = None;
    }
}

impl Drop for Login {
    fn drop(&mut self) {
        let mut unanswered = self.kind.lock();
        unanswered.under_way -= 1;
        unanswered.given_up.extend(self.socket.take());
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    /// A login that is given up; the server's end of it.
    async fn given_up(logins: &Logins) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        logins.begin(true).await.asks(ours.as_fd()).unwrap();
        theirs
    }

    #[tokio::test]
    async fn no_login_is_begun_while_as_many_as_may_be_wait_for_their_answer() {
        let logins = Logins::default();
        logins.begin(true).await.end();
        drop(logins.begin(true).await);
        let mut servers: Vec<UnixStream> = Vec::new();
        for _ in 1..LOGINS_MAX {
            servers.push(given_up(&logins).await);
        }
        // The last place: one that is under way.
        let last = logins.begin(true).await;
        assert!(!logins.to_databases.take_place());
        // Others have places of their own.
        logins.begin(false).await.end();
        last.end();
        servers.push(given_up(&logins).await);
        assert!(!logins.to_databases.take_place());
        // One is answered, or ends.
        servers[1].write_all(b"R").unwrap();
        servers.push(given_up(&logins).await);
        assert!(!logins.to_databases.take_place());
        servers.clear();
        logins.begin(true).await.end();
        assert_eq!(logins.to_databases.lock().under_way, 0);
    }
}
