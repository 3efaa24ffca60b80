//! What every daemon begins with: its directory, alone in it, and with the right certificate.

use std::path::{Path, PathBuf};

use proto::RegionName;
use transport::{Identity, IdentityError, Peer};

use super::lock::{DaemonLock, LockError};
use super::tree::{self, ExposedError};
use crate::layout::{RegionLayout, make_passable};

/// Why a daemon cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum EnterError {
    /// The certificate is another's.
    #[error(
        "the certificate in {path} is that of '{found}', not of {expected}; copy the directory that \
         `replicator certs` made for {expected} there"
    )]
    OtherCertificate {
        /// Where it is.
        path: PathBuf,
        /// Whose it is.
        found: Peer,
        /// Whose it should be.
        expected: RegionName,
    },
    /// The directory cannot be made.
    #[error("{path}: {source}")]
    Io {
        /// The directory.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// See [`ExposedError`].
    #[error(transparent)]
    Exposed(#[from] ExposedError),
    /// See [`LockError`].
    #[error(transparent)]
    Lock(#[from] LockError),
    /// See [`IdentityError`].
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// Takes the directory of `name`: makes it, sees that it is ours alone, locks `lock` in it, and loads the
/// certificate.
///
/// # Errors
/// When other accounts could read or write there, another process holds the lock, or the certificate is
/// missing or another's.
pub fn enter(
    places: &RegionLayout,
    lock: &Path,
    name: &RegionName,
) -> Result<(DaemonLock, Identity), EnterError> {
    make_passable(places.directory())
        .map_err(|source| EnterError::Io { path: places.directory().to_owned(), source })?;
    tree::check(places)?;
    let lock = DaemonLock::take(lock)?;
    let identity = Identity::load(&places.identity())?;
    if identity.peer != Peer::Region(name.clone()) {
        let (path, found, expected) = (places.identity(), identity.peer, name.clone());
        return Err(EnterError::OtherCertificate { path, found, expected });
    }
    Ok((lock, identity))
}
