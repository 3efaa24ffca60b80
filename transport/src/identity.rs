//! Who is who: the cluster's certificate authority, and the certificates of its regions and operators.
//!
//! A region's certificate has the region's name as its only DNS name; an operator's has `operator`. A
//! server's, by which PostgreSQL's clients know it, has the names and addresses they connect to, and makes
//! nobody a peer.

use std::hash::{Hash, Hasher};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use proto::{ClusterId, RegionName};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData,
};
use runtime::clock::wall_us;
use runtime::private;
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
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
    /// The certificates of those that are trusted: its own, and for a while that of the one before it, or
    /// after.
    trusted: String,
    cluster_id: ClusterId,
}

/// The certificates that are trusted, where they are more than the authority's own.
const TRUSTED: &str = "trusted.pem";

/// The authority that is to follow, below the directory of the one before.
const NEXT: &str = "next";

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
        // The one that follows has another name: some look for who has issued a certificate by that alone.
        let id: u32 = runtime::random::draw();
        params.distinguished_name.push(DnType::CommonName, format!("Replicator cluster {cluster} {id:08x}"));
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
        if !is_pair(&certificate, &key) {
            let what = "it is not the key of ca.pem: a change of the authority was interrupted".into();
            return Err(IdentityError::Unusable { path: path.display().to_string(), what });
        }
        let issuer = Issuer::from_ca_cert_pem(&certificate, key)?;
        let trusted = match directory.join(TRUSTED) {
            several if several.exists() => read(&several)?,
            _ => certificate,
        };
        Ok(Authority { issuer, trusted, cluster_id: read_cluster_id(directory)? })
    }

    /// Makes the authority that is to follow the one in `directory`, for the same cluster: it is trusted
    /// beside that from now on, and issues nothing before [`Authority::succeed`]. Where there is one
    /// already it is left as it is.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn prepare_next(directory: &Path, cluster: &str, now: OffsetDateTime) -> Result<(), IdentityError> {
        let (now_used, next) = (Authority::open(directory)?, directory.join(NEXT));
        if !next.join("ca.key").exists() {
            Authority::create(&next, cluster, now_used.cluster_id, now)?;
        }
        let new = read(&next.join("ca.pem"))?;
        if !now_used.trusted.contains(&new) {
            write_private(&directory.join(TRUSTED), &(now_used.trusted + &new))?;
        }
        Ok(())
    }

    /// The authority that was to follow takes the place of the one in `directory`, which stays trusted.
    /// Nothing where none was to.
    ///
    /// # Errors
    /// When a file cannot be written. It can be done again.
    pub fn succeed(directory: &Path) -> Result<(), IdentityError> {
        let next = directory.join(NEXT);
        if !next.join("ca.key").exists() {
            return Ok(());
        }
        let new = read(&next.join("ca.pem"))?;
        if !read(&directory.join(TRUSTED)).is_ok_and(|trusted| trusted.contains(&new)) {
            let what = "nobody trusts this authority yet: replicator certs --new-authority first".into();
            return Err(IdentityError::Unusable { path: next.display().to_string(), what });
        }
        write_private(&directory.join("ca.key"), &read_private(&next.join("ca.key"))?)?;
        write_private(&directory.join("ca.pem"), &new)?;
        // By its key it is known that it is still to be done.
        std::fs::remove_file(next.join("ca.key")).map_err(at(&next))?;
        std::fs::remove_dir_all(&next).map_err(at(&next))
    }

    /// Only the authority in `directory` is trusted from now on.
    ///
    /// # Errors
    /// When another one was prepared, whose turn it has not been yet, or a file cannot be removed.
    pub fn trust_no_other(directory: &Path) -> Result<(), IdentityError> {
        if directory.join(NEXT).join("ca.key").exists() {
            let what = "the new authority has issued nothing yet: replicator certs --renew first".into();
            return Err(IdentityError::Unusable { path: directory.join(NEXT).display().to_string(), what });
        }
        let several = directory.join(TRUSTED);
        match std::fs::remove_file(&several) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(at(&several)(e)),
            _ => Ok(()),
        }
    }

    /// Writes who is trusted into `directory`, an identity's.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn tell_trusted(&self, directory: &Path) -> Result<(), IdentityError> {
        write_private(&directory.join("ca.pem"), &self.trusted)
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
        make_directory(directory)?;
        write_private(&directory.join("cluster.id"), &self.cluster_id.to_string())?;
        self.tell_trusted(directory)?;
        self.sign(directory, params, now, validity)
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
        make_directory(directory)?;
        self.sign(directory, params, now, validity)
    }

    /// Signs what `params` say for a new key, and keeps both in `directory`.
    fn sign(
        &self,
        directory: &Path,
        mut params: CertificateParams,
        now: OffsetDateTime,
        validity: Duration,
    ) -> Result<(), IdentityError> {
        params.use_authority_key_identifier_extension = true;
        // Clocks of other machines may be a little behind.
        params.not_before = now - Duration::hours(1);
        params.not_after = now + validity;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        // Whoever reads both meanwhile sees that they are not a pair, and reads again.
        write_private(&directory.join("key.pem"), &key.serialize_pem())?;
        write_private(&directory.join("cert.pem"), &certificate)
    }

    /// The cluster.
    #[must_use]
    pub fn cluster_id(&self) -> ClusterId {
        self.cluster_id
    }
}

/// Whether `key` is that of the certificate.
fn is_pair(certificate: &str, key: &KeyPair) -> bool {
    let Ok(certificate) = CertificateDer::from_pem_slice(certificate.as_bytes()) else { return false };
    let parsed = x509_parser::parse_x509_certificate(&certificate);
    parsed.is_ok_and(|(_, parsed)| parsed.public_key().raw == key.subject_public_key_info())
}

/// Whether the certificate in `file` says that it was issued by the one in `authority`.
#[must_use]
pub fn is_issued_by(file: &Path, authority: &Path) -> bool {
    let parse = |file: &Path| CertificateDer::from_pem_slice(&std::fs::read(file).ok()?).ok();
    let (Some(certificate), Some(authority)) = (parse(file), parse(authority)) else { return false };
    let parsed = x509_parser::parse_x509_certificate(&certificate);
    let issuer = x509_parser::parse_x509_certificate(&authority);
    parsed.is_ok_and(|(_, parsed)| {
        issuer.is_ok_and(|(_, issuer)| parsed.issuer().as_raw() == issuer.subject().as_raw())
    })
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
    /// Of the files that it was read from, certificate, key, and who is trusted: what tells their contents
    /// from others.
    pub read: [u64; 3],
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
            read: self.read,
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
        Identity::load_trusting(directory, &directory.join("ca.pem"))
    }

    /// The same, which trusts the authorities in the file `ca_path` instead of those beside it.
    ///
    /// # Errors
    /// As [`Identity::load`].
    pub fn load_trusting(directory: &Path, ca_path: &Path) -> Result<Identity, IdentityError> {
        let path = directory.join("cert.pem");
        if !path.exists() {
            return Err(IdentityError::Missing(directory.display().to_string()));
        }
        let unusable =
            |path: &PathBuf, what: String| IdentityError::Unusable { path: path.display().to_string(), what };
        // The first is its own; those that lead to the authority follow.
        let (own, trusted, key_path) = (read(&path)?, read(ca_path)?, directory.join("key.pem"));
        let key_text = read_private(&key_path)?;
        let chain = certificates_in(&path, &own)?;
        let certificate = chain.first().ok_or_else(|| unusable(&path, "it holds no certificate".into()))?;
        let peer = Peer::of_certificate(certificate)
            .ok_or_else(|| unusable(&path, "it names neither one region nor an operator".into()))?;
        let (_, parsed) =
            x509_parser::parse_x509_certificate(certificate).map_err(|e| unusable(&path, e.to_string()))?;
        let ends_s = parsed.validity().not_after.timestamp();
        let key = PrivateKeyDer::from_pem_slice(key_text.as_bytes());
        let key = key.map_err(|e| unusable(&key_path, e.to_string()))?;
        let mut roots = RootCertStore::empty();
        for root in certificates_in(ca_path, &trusted)? {
            roots.add(root).map_err(|e| unusable(&ca_path.to_owned(), e.to_string()))?;
        }
        let cluster_id = read_cluster_id(directory)?;
        let read = [own, key_text, trusted].map(|text| digest(text.as_bytes()));
        Ok(Identity { peer, cluster_id, ends_s, read, chain, key, roots: Arc::new(roots) })
    }

    /// Whether one who trusts its authorities would let it in now.
    ///
    /// # Errors
    /// Why not.
    pub fn verify(&self) -> Result<(), String> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(self.roots.clone(), provider);
        let verifier = verifier.build().map_err(|e| e.to_string())?;
        let (own, leading) = self.chain.split_first().ok_or("there is no certificate")?;
        let now_us = u64::try_from(wall_us()).unwrap_or(0);
        let now = UnixTime::since_unix_epoch(std::time::Duration::from_micros(now_us));
        verifier.verify_client_cert(own, leading, now).map(drop).map_err(|e| e.to_string())
    }
}

/// The certificates in `pem`, the content of a file; at least one.
fn certificates_in(path: &Path, pem: &str) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let unusable = |what: String| IdentityError::Unusable { path: path.display().to_string(), what };
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let found = found.map_err(|e| unusable(e.to_string()))?;
    if found.is_empty() { Err(unusable("it holds no certificate".into())) } else { Ok(found) }
}

/// What tells the content of a file from others, within this process.
#[must_use]
pub fn digest(content: &[u8]) -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    content.hash(&mut hasher);
    hasher.finish()
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
