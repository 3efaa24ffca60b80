//! Signing requests: a key is made on the machine that uses it, the cluster's authority or another one signs,
//! and the certificate comes back.

use std::path::{Path, PathBuf};

use proto::ClusterId;
use transport::identity::{CERTIFICATE_DAYS, read_cluster_id};
use transport::signing::{self, Request, Whose};
use transport::{Authority, IdentityError, Peer};

use super::certificates::{directory_of, names_of_servers, now, server_of};
use crate::config::Config;
use crate::layout::{Layout, make_passable};

fn refused(what: String) -> IdentityError {
    IdentityError::Refused { what }
}

/// Makes a key for `peer` here, and one for its PostgreSQL where it has one; the requests for their
/// certificates, in PEM.
///
/// # Errors
/// When the file does not have the peer, the cluster's id is not known, or a file cannot be written.
pub fn make(
    config: &Config,
    layout: &Layout,
    peer: &Peer,
    cluster: Option<ClusterId>,
) -> Result<String, IdentityError> {
    is_in_the_file(config, peer)?;
    let directory = directory_of(layout, peer);
    let known = [directory.clone(), layout.authority(), layout.operator()];
    let known = known.iter().find_map(|place| read_cluster_id(place).ok());
    let cluster = match (cluster, known) {
        (Some(said), Some(known)) if said != known => {
            return Err(refused(format!("this is a machine of cluster {known}")));
        }
        (Some(cluster), _) | (None, Some(cluster)) => cluster,
        (None, None) => {
            let place = directory.join("cluster.id").display().to_string();
            return Err(refused(format!(
                "the cluster's id is not known here: copy the authority's cluster.id to {place}, or say it with --cluster-id; for a \
                 new cluster draw one: openssl rand -hex 16"
            )));
        }
    };
    if let Some(parent) = directory.parent() {
        let io = |source| IdentityError::Io { path: parent.display().to_string(), source };
        make_passable(parent).map_err(io)?;
    }
    let own = signing::request(&directory, peer, cluster)?;
    let server = match server_of(config, layout, peer) {
        Some((called, place)) => signing::request_server(&place, &called, &names_of_servers(config))?,
        None => String::new(),
    };
    Ok(own + &server)
}

/// A certificate that was signed.
#[derive(Debug)]
pub struct Signed {
    /// Whose it is, in words.
    pub whose: String,
    /// The certificate, in PEM.
    pub certificate: String,
}

/// Signs the requests in `pem` with the cluster's authority. What they may ask for is what the file has:
/// regions, witnesses and nodes by name, and servers' names that clients use.
///
/// # Errors
/// When one asks for something else, or the authority's key is not here; then none is signed.
pub fn sign(config: &Config, layout: &Layout, pem: &str) -> Result<Vec<Signed>, IdentityError> {
    let authority = Authority::open(&layout.authority())?;
    let names = names_of_servers(config);
    let mut signed = Vec::new();
    for request in Request::read_all(pem)? {
        let whose = match &request.whose {
            Whose::Peer(_, peer) => {
                is_in_the_file(config, peer)?;
                format!("{} {}", peer.role(), peer.name())
            }
            Whose::Server(asked) => {
                if let Some(odd) = asked.iter().find(|name| !names.contains(name)) {
                    let what =
                        format!("'{odd}' is no name under which clients reach a PostgreSQL of this file");
                    return Err(refused(what));
                }
                "PostgreSQL's server".into()
            }
        };
        let validity = time::Duration::days(CERTIFICATE_DAYS);
        let certificate = authority.sign_request(&request, "PostgreSQL", now(), validity)?;
        signed.push(Signed { whose, certificate });
    }
    Ok(signed)
}

/// Takes what was signed for the keys that wait here for `peer`; returns where they are.
///
/// # Errors
/// When nothing waits, or the certificates are not what is wanted. Nothing has changed then.
pub fn install(
    layout: &Layout,
    peer: &Peer,
    pem: &str,
    trusted: Option<&str>,
) -> Result<PathBuf, IdentityError> {
    let directory = directory_of(layout, peer);
    // The server's lies below it, whatever the file has now.
    let server = directory.join("postgresql");
    let waits = |place: &Path| place.join("request.key").exists();
    if !waits(&directory) && !waits(&server) {
        let what = format!("no key waits for a certificate in {}: --request makes one", directory.display());
        return Err(refused(what));
    }
    let own = signing::install(&directory, peer, pem, trusted)?;
    // The one of the server may come later.
    match signing::install_server(&server, pem) {
        Err(e) if own.is_none() => Err(e),
        Err(e) => {
            eprintln!("PostgreSQL's certificate: {e}");
            Ok(directory)
        }
        Ok(_) => Ok(directory),
    }
}

/// Sees that the file has the region, witness or node; operators and monitors are in no file.
fn is_in_the_file(config: &Config, peer: &Peer) -> Result<(), IdentityError> {
    let has = match peer {
        Peer::Region(name) => config.region(name).is_some(),
        Peer::Witness(name) => config.witnesses.iter().any(|witness| witness.name == *name),
        Peer::Node(region, node) => config.region(region).is_some_and(|own| own.node(node).is_some()),
        Peer::Operator(_) | Peer::Monitor(_) => true,
        Peer::Voter(_) => false,
    };
    if has { Ok(()) } else { Err(refused(format!("regions.toml has no {} {}", peer.role(), peer.name()))) }
}
