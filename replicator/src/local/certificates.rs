//! The certificates of a cluster's regions, witnesses and operator, and the authority that issues them.

use proto::ClusterId;
use time::OffsetDateTime;
use transport::identity::CERTIFICATE_DAYS;
use transport::{Authority, IdentityError, Peer};

use crate::config::Config;
use crate::layout::{Layout, make_passable};

/// Makes the authority and the certificates that are missing; with `renew`, all certificates anew.
///
/// # Errors
/// When a file cannot be written, or the authority's key is elsewhere.
pub fn make(config: &Config, layout: &Layout, renew: bool) -> Result<(), IdentityError> {
    let io = |source| IdentityError::Io { path: layout.data().display().to_string(), source };
    make_passable(layout.data()).map_err(io)?;
    let now = OffsetDateTime::from_unix_timestamp_nanos(i128::from(runtime::clock::wall_us()) * 1000)
        .unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let directories = config.voters().into_iter().map(|voter| {
        let identity = layout.region(&voter.name).identity();
        (Peer::Region(voter.name), identity)
    });
    let wanted: Vec<_> = directories
        .chain([(Peer::Operator, layout.operator())])
        .filter(|(_, directory)| renew || !directory.join("cert.pem").exists())
        .collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let authority = if layout.authority().join("ca.key").exists() {
        Authority::open(&layout.authority())?
    } else {
        Authority::create(&layout.authority(), &config.cluster, ClusterId(runtime::random::draw()), now)?
    };
    for (peer, directory) in wanted {
        if let Some(parent) = directory.parent() {
            make_passable(parent).map_err(io)?;
        }
        authority.issue(&directory, &peer, now, time::Duration::days(CERTIFICATE_DAYS))?;
    }
    Ok(())
}
