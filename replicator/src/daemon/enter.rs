//! What every daemon begins with: its directory, alone in it, and with the right certificate.

use std::path::{Path, PathBuf};

use proto::{NodeName, RegionName};
use transport::{Identity, IdentityError, Peer};

use super::lock::{DaemonLock, LockError};
use super::tree::{self, ExposedError};
use crate::config::HOME;
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
        expected: String,
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
    let lock = take(places, lock)?;
    Ok((lock, identity_of(places.identity(), name, |peer| peer.voter() == Some(name))?))
}

/// The same for node `node` of region `name`; also where its certificate is.
///
/// A node that has none of its own goes on with its region's, as all did before nodes had any. The host
/// of the region's daemon is a node while another host is the region's head: it has its region's.
///
/// # Errors
/// As [`enter`].
pub fn enter_node(
    places: &RegionLayout,
    lock: &Path,
    name: &RegionName,
    node: &NodeName,
) -> Result<(DaemonLock, Identity, PathBuf), EnterError> {
    let lock = take(places, lock)?;
    if node.as_str() == HOME {
        let identity = identity_of(places.identity(), name, |peer| peer.voter() == Some(name))?;
        return Ok((lock, identity, places.identity()));
    }
    let own = places.node(node).identity();
    if own.join("cert.pem").exists() || !places.identity().join("cert.pem").exists() {
        let expected = Peer::Node(name.clone(), node.clone());
        let identity = identity_of(own.clone(), &expected, |peer| *peer == expected)?;
        return Ok((lock, identity, own));
    }
    tracing::warn!(
        "node {node} has no certificate of its own and speaks as region {name}, with its key: make one with `replicator certs`, copy \
         it to {}, and take the region's away from this host",
        own.display()
    );
    let identity = identity_of(places.identity(), name, |peer| peer.voter() == Some(name))?;
    Ok((lock, identity, places.identity()))
}

fn take(places: &RegionLayout, lock: &Path) -> Result<DaemonLock, EnterError> {
    make_passable(places.directory())
        .map_err(|source| EnterError::Io { path: places.directory().to_owned(), source })?;
    tree::check(places)?;
    Ok(DaemonLock::take(lock)?)
}

fn identity_of(
    path: PathBuf,
    expected: &impl ToString,
    is: impl FnOnce(&Peer) -> bool,
) -> Result<Identity, EnterError> {
    let identity = Identity::load(&path)?;
    if !is(&identity.peer) {
        let (found, expected) = (identity.peer, expected.to_string());
        return Err(EnterError::OtherCertificate { path, found, expected });
    }
    if !identity.certificate.has_role() {
        tracing::warn!(
            "{}: this certificate is of before there were roles, and is let in as what its name says where no role is required \
             (`require_roles`); it goes on until it ends: replicator certs --renew gives it a role",
            path.display()
        );
    }
    Ok(identity)
}
