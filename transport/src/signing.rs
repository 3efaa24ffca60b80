//! Signing requests: a key is made where it is used and stays there; what travels is a request for its
//! certificate, and the certificate. Any authority can sign it.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use proto::ClusterId;
use rcgen::{CertificateParams, CertificateSigningRequestParams, KeyPair, PublicKeyData, SanType};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer};
use time::{Duration, OffsetDateTime};

use crate::identity::{
    Authority, Identity, IdentityError, certificates_in, make_directory, params_of, params_of_server, read,
    read_private, write_private,
};
use crate::peer::{Certificate, Peer};

/// The key whose certificate is asked for, beside the one that is used.
const KEY: &str = "request.key";

/// The request itself.
const REQUEST: &str = "request.pem";

/// Makes a key for `peer` in `directory`, and a request for its certificate; returns the request, in PEM. A
/// key that waits for its certificate already is kept.
///
/// # Errors
/// When a file cannot be written.
pub fn request(directory: &Path, peer: &Peer, cluster: ClusterId) -> Result<String, IdentityError> {
    ask(directory, params_of(peer, cluster)?)
}

/// The same for a server that clients reach under `names`.
///
/// # Errors
/// When a name is none, or a file cannot be written.
pub fn request_server(directory: &Path, called: &str, names: &[String]) -> Result<String, IdentityError> {
    ask(directory, params_of_server(called, names)?)
}

fn ask(directory: &Path, params: CertificateParams) -> Result<String, IdentityError> {
    make_directory(directory)?;
    let path = directory.join(KEY);
    let key = if path.exists() {
        KeyPair::from_pem(&read_private(&path)?)?
    } else {
        let key = KeyPair::generate()?;
        write_private(&path, &key.serialize_pem())?;
        key
    };
    let request = params.serialize_request(&key)?.pem()?;
    write_private(&directory.join(REQUEST), &request)?;
    Ok(request)
}

/// Whose certificate a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Whose {
    /// A peer's, of this cluster.
    Peer(ClusterId, Peer),
    /// A server's, with these names and addresses.
    Server(Vec<String>),
}

/// A request whose holder has shown that the key is its own.
#[derive(Debug)]
pub struct Request {
    params: CertificateSigningRequestParams,
    /// What it asks for. Nothing else of it is signed.
    pub whose: Whose,
}

impl Request {
    /// The requests in `pem`, in order; at least one.
    ///
    /// # Errors
    /// When there is none, one is malformed, or not signed by its own key.
    pub fn read_all(pem: &str) -> Result<Vec<Request>, IdentityError> {
        let found: Result<Vec<_>, _> = CertificateSigningRequestDer::pem_slice_iter(pem.as_bytes()).collect();
        let found = found.map_err(|e| unusable(e.to_string()))?;
        if found.is_empty() {
            return Err(unusable("it holds no signing request".into()));
        }
        found.iter().map(Request::of).collect()
    }

    fn of(der: &CertificateSigningRequestDer<'_>) -> Result<Request, IdentityError> {
        let params = CertificateSigningRequestParams::from_der(der)?;
        let (mut peers, mut names) = (Vec::new(), Vec::new());
        for name in &params.params.subject_alt_names {
            match name {
                SanType::URI(uri) => {
                    peers.extend(Peer::of_uri(uri.as_str()).map_err(|e| unusable(e.to_string()))?);
                }
                SanType::DnsName(name) => names.push(name.as_str().to_owned()),
                SanType::IpAddress(address) => names.push(address.to_string()),
                _ => return Err(unusable("it asks for a name of another kind than daemons have".into())),
            }
        }
        let whose = match (peers.pop(), peers.pop()) {
            (Some((cluster, peer)), None) => Whose::Peer(cluster, peer),
            (None, _) if !names.is_empty() => Whose::Server(names),
            _ => return Err(unusable("it asks for no one role, and for no server's names".into())),
        };
        Ok(Request { params, whose })
    }
}

impl Authority {
    /// The certificate that `request` asks for, in PEM. Of the request only the key is taken, and whose it
    /// is: what a certificate of that peer says is said here. `called` is the name of a server.
    ///
    /// # Errors
    /// When it is for another cluster.
    pub fn sign_request(
        &self,
        request: &Request,
        called: &str,
        now: OffsetDateTime,
        validity: Duration,
    ) -> Result<String, IdentityError> {
        let params = match &request.whose {
            Whose::Peer(cluster, _) if *cluster != self.cluster_id() => {
                let own = self.cluster_id();
                return Err(unusable(format!("it is for cluster {cluster}, and this is {own}")));
            }
            Whose::Peer(cluster, peer) => params_of(peer, *cluster)?,
            Whose::Server(names) => params_of_server(called, names)?,
        };
        self.certify(params, &request.params.public_key, now, validity)
    }
}

/// Puts the certificate for the key that waits in `directory` in its place, with the key: the one in `pem`
/// that is that key's, with those that lead to its authority. The authorities in `trusted` are trusted from
/// then on, or else those that are already. None where no key waits there.
///
/// # Errors
/// When none in `pem` is that key's, it is not `peer`'s, or those who trust the authorities would not let it
/// in; nothing has changed then.
pub fn install(
    directory: &Path,
    peer: &Peer,
    pem: &str,
    trusted: Option<&str>,
) -> Result<Option<Certificate>, IdentityError> {
    let Some((key, chain)) = waiting(directory, pem)? else { return Ok(None) };
    let ca_path = directory.join("ca.pem");
    let trusted = match trusted {
        Some(trusted) => trusted.to_owned(),
        None if ca_path.exists() => read(&ca_path)?,
        None => return Err(unusable("it is not known which authorities to trust: --trust ca.pem".into())),
    };
    let cluster = chain_cluster(&chain)?;
    let identity = Identity::of(&chain, &key, &trusted, cluster, directory)?;
    if identity.peer != *peer {
        let (role, name) = (peer.role(), peer.name());
        let found = format!("{} {}", identity.peer.role(), identity.peer.name());
        return Err(unusable(format!("it is that of {found}, and of {role} {name} is wanted")));
    }
    identity.verify().map_err(|why| unusable(format!("nobody would let it in: {why}")))?;
    write_private(&directory.join("cluster.id"), &cluster.to_string())?;
    write_private(&ca_path, &trusted)?;
    place(directory, &key, &chain)?;
    Ok(Some(identity.certificate))
}

/// The same for a server's key in `directory`. Whether one waited.
///
/// # Errors
/// When none in `pem` is that key's, or a file cannot be written.
pub fn install_server(directory: &Path, pem: &str) -> Result<bool, IdentityError> {
    let Some((key, chain)) = waiting(directory, pem)? else { return Ok(false) };
    place(directory, &key, &chain)?;
    Ok(true)
}

/// The key that waits in `directory`, and its chain out of `pem`, both in PEM. None where none waits.
fn waiting(directory: &Path, pem: &str) -> Result<Option<(String, String)>, IdentityError> {
    let path = directory.join(KEY);
    if !path.exists() {
        return Ok(None);
    }
    let key = read_private(&path)?;
    let public = KeyPair::from_pem(&key)?.subject_public_key_info();
    let (mut own, mut leading) = (None, Vec::new());
    for der in certificates_in(Path::new("the certificates"), pem)? {
        let (_, parsed) = x509_parser::parse_x509_certificate(&der).map_err(|e| unusable(e.to_string()))?;
        if parsed.public_key().raw == public {
            own = Some(as_pem(&der));
        } else if parsed.is_ca() {
            leading.push(as_pem(&der));
        }
    }
    let own = own.ok_or_else(|| {
        let key = path.display();
        unusable(format!("none of the certificates is that of the key that waits in {key}"))
    })?;
    Ok(Some((key, own + &leading.concat())))
}

fn as_pem(der: &CertificateDer<'_>) -> String {
    let encoded = BASE64.encode(der);
    let lines: Vec<&str> =
        encoded.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

fn place(directory: &Path, key: &str, chain: &str) -> Result<(), IdentityError> {
    // Whoever reads both meanwhile sees that they are not a pair, and reads again.
    write_private(&directory.join("key.pem"), key)?;
    write_private(&directory.join("cert.pem"), chain)?;
    for done in [KEY, REQUEST] {
        let path = directory.join(done);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(IdentityError::Io { path: path.display().to_string(), source: e });
            }
            _ => {}
        }
    }
    Ok(())
}

fn chain_cluster(chain: &str) -> Result<ClusterId, IdentityError> {
    let der = CertificateDer::from_pem_slice(chain.as_bytes()).map_err(|e| unusable(e.to_string()))?;
    let certificate = Certificate::of(&der);
    let cluster = certificate.and_then(|certificate| certificate.cluster);
    cluster.ok_or_else(|| {
        let wanted = "it names no role in a URI, or may not be used by a client: the authority has to copy the request's names \
                      and extended key usage";
        unusable(wanted.into())
    })
}

fn unusable(what: String) -> IdentityError {
    IdentityError::Refused { what }
}
