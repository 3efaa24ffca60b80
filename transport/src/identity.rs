//! Who is who: the cluster's certificate authority, and the certificates of its regions and operators.
//!
//! A region's certificate has the region's name as its only DNS name; an operator's has `operator`. A
//! server's, by which PostgreSQL's clients know it, has the names and addresses they connect to, and makes
//! nobody a peer.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use proto::{ClusterId, RegionName};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use runtime::private;
use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use time::{Duration, OffsetDateTime};

/// The name in an operator's certificate; no region may have it.
pub const OPERATOR: &str = "operator";

/// How long certificates are valid.
const AUTHORITY_DAYS: i64 = 3650;
/// See [`AUTHORITY_DAYS`]. `replicator certs --renew` makes new ones.
pub const CERTIFICATE_DAYS: i64 = 825;

/// The other side of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Peer {
    /// Another region's daemon.
    Region(RegionName),
    /// An operator's command.
    Operator,
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.dns_name())
    }
}

impl Peer {
    /// The DNS name in its certificate.
    #[must_use]
    pub fn dns_name(&self) -> &str {
        match self {
            Peer::Region(name) => name.as_str(),
            Peer::Operator => OPERATOR,
        }
    }

    /// Who a verified certificate belongs to; `None` when its names are not exactly one peer's, or it may not
    /// ask for anything: a server's key lies where the database's account reads it.
    #[must_use]
    pub fn of_certificate(certificate: &CertificateDer<'_>) -> Option<Peer> {
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
        let usage = parsed.extended_key_usage().ok()??;
        if !(usage.value.client_auth && usage.value.server_auth) {
            return None;
        }
        let certificate = webpki::EndEntityCert::try_from(certificate).ok()?;
        let mut names = certificate.valid_dns_names();
        match (names.next(), names.next()) {
            (Some(OPERATOR), None) => Some(Peer::Operator),
            (Some(name), None) => name.parse().ok().map(Peer::Region),
            _ => None,
        }
    }
}

/// Why certificates cannot be made or used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file cannot be used.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// No certificate is here.
    #[error("there is no certificate in {0}; make them with `replicator certs`, and copy this region's here")]
    Missing(String),
    /// A key that others may read.
    #[error("{0} may be read by others than its owner; `chmod 600` it")]
    Exposed(String),
    /// A file is not what it should be.
    #[error("{path} is not usable: {what}. Make new certificates with `replicator certs --renew`")]
    Unusable {
        /// The file.
        path: String,
        /// What is wrong with it.
        what: String,
    },
    /// Making a certificate failed.
    #[error("making a certificate: {0}")]
    Make(#[from] rcgen::Error),
}

/// The cluster's certificate authority.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
    cluster_id: ClusterId,
}

impl Authority {
    /// Makes a new authority in `directory` for the cluster named `cluster`, with a new cluster id.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn create(
        directory: &Path,
        cluster: &str,
        cluster_id: ClusterId,
        now: OffsetDateTime,
    ) -> Result<Authority, IdentityError> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, format!("Replicator cluster {cluster}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        // Clocks of other machines may be a little behind.
        params.not_before = now - Duration::hours(1);
        params.not_after = now + Duration::days(AUTHORITY_DAYS);
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?.pem();
        make_directory(directory)?;
        write_private(&directory.join("cluster.id"), &cluster_id.to_string())?;
        write_private(&directory.join("ca.pem"), &certificate)?;
        write_private(&directory.join("ca.key"), &key.serialize_pem())?;
        Authority::open(directory)
    }

    /// Opens the authority in `directory`.
    ///
    /// # Errors
    /// When there is none, or its files are unusable.
    pub fn open(directory: &Path) -> Result<Authority, IdentityError> {
        let path = directory.join("ca.key");
        if !path.exists() {
            return Err(IdentityError::Missing(directory.display().to_string()));
        }
        let certificate = read(&directory.join("ca.pem"))?;
        let key = KeyPair::from_pem(&read_private(&path)?)?;
        let issuer = Issuer::from_ca_cert_pem(&certificate, key)?;
        Ok(Authority { issuer, certificate, cluster_id: read_cluster_id(directory)? })
    }

    /// Makes a certificate for `peer` in `directory`, with all that an [`Identity`] needs.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn issue(
        &self,
        directory: &Path,
        peer: &Peer,
        now: OffsetDateTime,
        validity: Duration,
    ) -> Result<(), IdentityError> {
        let mut params = CertificateParams::new(vec![peer.dns_name().to_owned()])?;
        params.distinguished_name.push(DnType::CommonName, peer.dns_name());
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = now - Duration::hours(1);
        params.not_after = now + validity;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        make_directory(directory)?;
        write_private(&directory.join("cluster.id"), &self.cluster_id.to_string())?;
        write_private(&directory.join("ca.pem"), &self.certificate)?;
        write_private(&directory.join("cert.pem"), &certificate)?;
        write_private(&directory.join("key.pem"), &key.serialize_pem())
    }

    /// Makes a certificate for a server that clients reach under `names`, host names or addresses: `cert.pem`
    /// and `key.pem` in `directory`.
    ///
    /// # Errors
    /// When a name is none, or a file cannot be written.
    pub fn issue_server(
        &self,
        directory: &Path,
        called: &str,
        names: &[String],
        now: OffsetDateTime,
        validity: Duration,
    ) -> Result<(), IdentityError> {
        let mut params = CertificateParams::new(names.to_vec())?;
        params.distinguished_name.push(DnType::CommonName, called);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.not_before = now - Duration::hours(1);
        params.not_after = now + validity;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        make_directory(directory)?;
        write_private(&directory.join("key.pem"), &key.serialize_pem())?;
        write_private(&directory.join("cert.pem"), &certificate)
    }

    /// The cluster.
    #[must_use]
    pub fn cluster_id(&self) -> ClusterId {
        self.cluster_id
    }
}

/// The names and addresses of the certificate in `file`, in order, and when it ends, seconds since 1970. None
/// where there is no certificate.
#[must_use]
pub fn names_in(file: &Path) -> Option<(Vec<String>, i64)> {
    let pem = std::fs::read(file).ok()?;
    let certificate = CertificateDer::from_pem_slice(&pem).ok()?;
    let (_, parsed) = x509_parser::parse_x509_certificate(&certificate).ok()?;
    let alternatives = parsed.subject_alternative_name().ok()??;
    let address = |bytes: &[u8]| match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(|four| std::net::IpAddr::from(four).to_string()),
        _ => <[u8; 16]>::try_from(bytes).ok().map(|sixteen| std::net::IpAddr::from(sixteen).to_string()),
    };
    let names = alternatives.value.general_names.iter().filter_map(|name| match name {
        x509_parser::extensions::GeneralName::DNSName(name) => Some((*name).to_owned()),
        x509_parser::extensions::GeneralName::IPAddress(bytes) => address(bytes),
        _ => None,
    });
    Some((names.collect(), parsed.validity().not_after.timestamp()))
}

/// A certificate with its key and the authority it is verified by.
#[derive(Debug)]
pub struct Identity {
    /// Whose it is.
    pub peer: Peer,
    /// The cluster it belongs to.
    pub cluster_id: ClusterId,
    /// When its certificate ends, seconds since 1970.
    pub ends_s: i64,
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
    pub(crate) roots: Arc<RootCertStore>,
}

impl Clone for Identity {
    fn clone(&self) -> Identity {
        Identity {
            peer: self.peer.clone(),
            cluster_id: self.cluster_id,
            ends_s: self.ends_s,
            chain: self.chain.clone(),
            key: self.key.clone_key(),
            roots: self.roots.clone(),
        }
    }
}

impl Identity {
    /// Loads the identity in `directory`.
    ///
    /// # Errors
    /// When a file is missing, unusable, or a key that others may read.
    pub fn load(directory: &Path) -> Result<Identity, IdentityError> {
        let path = directory.join("cert.pem");
        if !path.exists() {
            return Err(IdentityError::Missing(directory.display().to_string()));
        }
        let unusable =
            |path: &PathBuf, what: String| IdentityError::Unusable { path: path.display().to_string(), what };
        let certificate = CertificateDer::from_pem_slice(read(&path)?.as_bytes());
        let certificate = certificate.map_err(|e| unusable(&path, e.to_string()))?;
        let peer = Peer::of_certificate(&certificate)
            .ok_or_else(|| unusable(&path, "it names neither one region nor an operator".into()))?;
        let (_, parsed) =
            x509_parser::parse_x509_certificate(&certificate).map_err(|e| unusable(&path, e.to_string()))?;
        let ends_s = parsed.validity().not_after.timestamp();
        let key_path = directory.join("key.pem");
        let key = PrivateKeyDer::from_pem_slice(read_private(&key_path)?.as_bytes());
        let key = key.map_err(|e| unusable(&key_path, e.to_string()))?;
        let ca_path = directory.join("ca.pem");
        let mut roots = RootCertStore::empty();
        let root = CertificateDer::from_pem_slice(read(&ca_path)?.as_bytes());
        root.map_err(|e| e.to_string())
            .and_then(|root| roots.add(root).map_err(|e| e.to_string()))
            .map_err(|what| unusable(&ca_path, what))?;
        let cluster_id = read_cluster_id(directory)?;
        Ok(Identity { peer, cluster_id, ends_s, chain: vec![certificate], key, roots: Arc::new(roots) })
    }
}

fn read_cluster_id(directory: &Path) -> Result<ClusterId, IdentityError> {
    let path = directory.join("cluster.id");
    let text = read(&path)?;
    let unusable = |e: proto::ids::ParseIdError| IdentityError::Unusable {
        path: path.display().to_string(),
        what: e.to_string(),
    };
    text.trim().parse().map_err(unusable)
}

fn read(path: &Path) -> Result<String, IdentityError> {
    std::fs::read_to_string(path).map_err(at(path))
}

fn read_private(path: &Path) -> Result<String, IdentityError> {
    let mode = std::fs::metadata(path).map_err(at(path))?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(IdentityError::Exposed(path.display().to_string()));
    }
    read(path)
}

fn make_directory(directory: &Path) -> Result<(), IdentityError> {
    private::make_directory(directory).map_err(at(directory))
}

/// Writes a file of mode 0600, whole or not at all.
fn write_private(path: &Path, content: &str) -> Result<(), IdentityError> {
    private::replace(path, content.as_bytes()).map_err(at(path))
}

fn at(path: &Path) -> impl Fn(std::io::Error) -> IdentityError + use<> {
    let path = path.display().to_string();
    move |source| IdentityError::Io { path: path.clone(), source }
}
