//! A daemon's certificate is replaced while it works: by `replicator certs`, by hand, or by whatever renews
//! certificates on its machine. The files are looked at again and again, and what is whole is taken.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proto::RegionName;
use runtime::task::blocking;
use transport::identity::digest;
use transport::{Endpoint, Identity, Refused};

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(2);

/// What an identity is read from.
const FILES: [&str; 3] = ["cert.pem", "key.pem", "ca.pem"];

/// What tells the contents of an identity's files from others.
type Contents = [u64; 3];

/// What was found at one look.
enum Found {
    /// Nothing new, or nothing whole.
    Nothing,
    /// Another identity.
    Another(Box<Identity>, Contents),
    /// Files that cannot be used, and why.
    Unusable(Contents, String),
}

/// Has `endpoint` use the identity in `directory` whenever that is another than `now`, and tells `taken`
/// of it. Connections that there are go on. One that cannot be used is told once, and the daemon goes on
/// with what it has.
pub async fn watch(
    endpoint: &Endpoint,
    directory: PathBuf,
    now: &Identity,
    taken: impl Fn(&Identity),
) -> Infallible {
    let mut used = now.read;
    let (mut peer, cluster_id) = (now.peer.clone(), now.cluster_id);
    // What did not do at the last look: files are written one after the other.
    let (mut doubtful, mut told) = (Contents::default(), Contents::default());
    loop {
        tokio::time::sleep(LOOK).await;
        let (place, known) = (directory.clone(), used);
        let looked = blocking("look at the certificate", move || look(&place, known)).await;
        let found = match looked.unwrap_or(Found::Nothing) {
            Found::Another(identity, contents)
                if !identity.peer.succeeds(&peer) || identity.cluster_id != cluster_id =>
            {
                Found::Unusable(
                    contents,
                    format!("it is that of '{}', of another cluster or name", identity.peer),
                )
            }
            Found::Another(identity, contents) => match endpoint.renew(&identity) {
                Ok(()) => {
                    tracing::info!("the certificate is another, and is used for connections from now on");
                    taken(&identity);
                    peer = identity.peer.clone();
                    used = contents;
                    Found::Nothing
                }
                Err(why) => Found::Unusable(contents, why),
            },
            found => found,
        };
        let Found::Unusable(contents, why) = found else { continue };
        if contents == doubtful && contents != told {
            tracing::error!(
                "{}: {why}; this daemon goes on with the certificate that it has",
                directory.display()
            );
            told = contents;
        }
        doubtful = contents;
    }
}

/// What is told of somebody whom the endpoint of `name` does not let in.
#[must_use]
pub fn told(name: &RegionName, refused: &Refused) -> String {
    let Refused { address, certificate, why } = refused;
    let who = certificate.as_ref().map_or_else(|| "somebody".to_owned(), |its| format!("'{}'", its.peer));
    format!("{who} from {address}: not let in by {name}, {why}; nothing is done for it")
}

fn contents(directory: &Path) -> Contents {
    // What is not there is empty.
    FILES.map(|file| digest(&std::fs::read(directory.join(file)).unwrap_or_default()))
}

fn look(directory: &Path, used: Contents) -> Found {
    let found = contents(directory);
    if found == used {
        return Found::Nothing;
    }
    match Identity::load(directory) {
        Ok(identity) => {
            let read = identity.read;
            Found::Another(Box::new(identity), read)
        }
        Err(e) => Found::Unusable(found, e.to_string()),
    }
}
