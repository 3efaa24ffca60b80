//! Who is who: the cluster's certificate authority, and the certificates of its regions, witnesses, nodes,
//! operators and monitors.
//!
//! Whose a certificate is says its URI, see [`crate::peer`]. A region's and a witness' also have their name
//! as their only DNS name, by which whoever connects knows them. A server's, by which PostgreSQL's clients
//! know it, has the names and addresses they connect to, and makes nobody a peer.

use std::hash::{Hash, Hasher};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use proto::ClusterId;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use runtime::clock::wall_us;
use runtime::private;
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use time::{Duration, OffsetDateTime};

use crate::peer::{Certificate, OF_ORDERS, OF_ROLES, wants_orders};
pub use crate::peer::{Holder, OPERATOR, Peer};

/// By so much a certificate begins before it is made: clocks of other machines may be a little behind.
const BEHIND: Duration = Duration::hours(1);

/// How long certificates are valid.
const AUTHORITY_DAYS: i64 = 3650;
/// See [`AUTHORITY_DAYS`]. `replicator certs --renew` makes new ones.
pub const CERTIFICATE_DAYS: i64 = 825;

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
    /// A request or a certificate is not what it should be.
    #[error("not taken: {what}")]
    Refused {
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
        params.distinguished_name.push(DnType::OrganizationalUnitName, OF_ROLES);
        params.distinguished_name.push(DnType::OrganizationName, OF_ORDERS);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.not_before = now - BEHIND;
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
        let params = params_of(peer, self.cluster_id)?;
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
        make_directory(directory)?;
        self.sign(directory, params_of_server(called, names)?, now, validity)
    }

    /// Signs what `params` say for a new key, and keeps both in `directory`.
    fn sign(
        &self,
        directory: &Path,
        params: CertificateParams,
        now: OffsetDateTime,
        validity: Duration,
    ) -> Result<(), IdentityError> {
        let key = KeyPair::generate()?;
        let certificate = self.certify(params, &key, now, validity)?;
        // Whoever reads both meanwhile sees that they are not a pair, and reads again.
        write_private(&directory.join("key.pem"), &key.serialize_pem())?;
        write_private(&directory.join("cert.pem"), &certificate)
    }

    /// A certificate that says what `params` say of the holder of `key`.
    pub(crate) fn certify(
        &self,
        mut params: CertificateParams,
        key: &impl PublicKeyData,
        now: OffsetDateTime,
        validity: Duration,
    ) -> Result<String, IdentityError> {
        params.use_authority_key_identifier_extension = true;
        // It is one of its own, also where a key is certified again. It is no negative number.
        let mut serial: [u8; 16] = runtime::random::draw();
        serial[0] = (serial[0] & 0x7f) | 0x40;
        params.serial_number.get_or_insert_with(|| SerialNumber::from_slice(&serial));
        params.not_before = now - BEHIND;
        params.not_after = now + validity;
        Ok(params.signed_by(key, &self.issuer)?.pem())
    }

    /// The certificates of those that are trusted, in PEM.
    pub(crate) fn trusted(&self) -> &str {
        &self.trusted
    }

    /// The cluster.
    #[must_use]
    pub fn cluster_id(&self) -> ClusterId {
        self.cluster_id
    }
}

/// What the certificate of `peer` says.
pub(crate) fn params_of(peer: &Peer, cluster: ClusterId) -> Result<CertificateParams, IdentityError> {
    // By this name whoever connects to a daemon knows that it is the right one. Others are not connected to;
    // an operator of before there were roles is known by it.
    let old_operator = matches!(peer, Peer::Operator(holder) if *holder == Holder::operator());
    let dns = peer.voter().map(ToString::to_string).or(old_operator.then(|| OPERATOR.to_owned()));
    let mut params = CertificateParams::new(dns.into_iter().collect::<Vec<_>>())?;
    if let Some(uri) = peer.uri(cluster) {
        params.subject_alt_names.push(SanType::URI(uri.try_into()?));
    }
    let called = match peer.uri(cluster) {
        Some(_) => format!("{} {}", peer.role(), peer.name()),
        None => peer.to_string(),
    };
    params.distinguished_name.push(DnType::CommonName, called);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    if peer.voter().is_some() {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
    }
    Ok(params)
}

/// What the certificate of a server says that clients reach under `names`.
pub(crate) fn params_of_server(called: &str, names: &[String]) -> Result<CertificateParams, IdentityError> {
    let mut params = CertificateParams::new(names.to_vec())?;
    params.distinguished_name.push(DnType::CommonName, called);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    Ok(params)
}

/// Whether `key` is that of the certificate.
pub(crate) fn is_pair(certificate: &str, key: &KeyPair) -> bool {
    let Ok(certificate) = CertificateDer::from_pem_slice(certificate.as_bytes()) else { return false };
    let parsed = x509_parser::parse_x509_certificate(&certificate);
    parsed.is_ok_and(|(_, parsed)| parsed.public_key().raw == key.subject_public_key_info())
}

/// When the certificate in `file` ends, and how long it was made for. None where there is no certificate.
#[must_use]
pub fn life_of(file: &Path) -> Option<(OffsetDateTime, Duration)> {
    let certificate = CertificateDer::from_pem_slice(&std::fs::read(file).ok()?).ok()?;
    let (_, parsed) = x509_parser::parse_x509_certificate(&certificate).ok()?;
    let validity = parsed.validity();
    let (begins, ends) = (validity.not_before.to_datetime(), validity.not_after.to_datetime());
    Some((ends, ends - begins - BEHIND))
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
    /// What its certificate says.
    pub certificate: Certificate,
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
    /// One of the authorities that it trusts wants operators' orders signed.
    pub(crate) knows_orders: bool,
}

impl Clone for Identity {
    fn clone(&self) -> Identity {
        Identity {
            peer: self.peer.clone(),
            certificate: self.certificate.clone(),
            cluster_id: self.cluster_id,
            ends_s: self.ends_s,
            read: self.read,
            chain: self.chain.clone(),
            key: self.key.clone_key(),
            roots: self.roots.clone(),
            knows_orders: self.knows_orders,
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
        let (own, trusted) = (read(&path)?, read(ca_path)?);
        let key = read_private(&directory.join("key.pem"))?;
        Identity::of(&own, &key, &trusted, read_cluster_id(directory)?, directory)
    }

    /// The identity that these are, in PEM, and `directory` has: its certificate with those that lead to the
    /// authority, its key, and who is trusted.
    pub(crate) fn of(
        own: &str,
        key_text: &str,
        trusted: &str,
        cluster_id: ClusterId,
        directory: &Path,
    ) -> Result<Identity, IdentityError> {
        let [path, key_path, ca_path] = ["cert.pem", "key.pem", "ca.pem"].map(|file| directory.join(file));
        let unusable =
            |path: &PathBuf, what: String| IdentityError::Unusable { path: path.display().to_string(), what };
        let chain = certificates_in(&path, own)?;
        let first = chain.first().ok_or_else(|| unusable(&path, "it holds no certificate".into()))?;
        let certificate = Certificate::of(first).ok_or_else(|| unusable(&path, NOBODY.into()))?;
        let (peer, ends_s) = (certificate.peer.clone(), certificate.ends_s);
        let key = PrivateKeyDer::from_pem_slice(key_text.as_bytes());
        let key = key.map_err(|e| unusable(&key_path, e.to_string()))?;
        let (mut roots, mut knows_orders) = (RootCertStore::empty(), false);
        for root in certificates_in(&ca_path, trusted)? {
            knows_orders |= wants_orders(&root);
            roots.add(root).map_err(|e| unusable(&ca_path, e.to_string()))?;
        }
        if let Some(other) = certificate.cluster.filter(|its| *its != cluster_id) {
            let what = format!("it is of cluster {other}, and cluster.id beside it says {cluster_id}");
            return Err(unusable(&path, what));
        }
        let read = [own, key_text, trusted].map(|text| digest(text.as_bytes()));
        Ok(Identity {
            peer,
            certificate,
            cluster_id,
            ends_s,
            read,
            chain,
            key,
            roots: Arc::new(roots),
            knows_orders,
        })
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

/// What is said of a certificate that is no peer's.
const NOBODY: &str =
    "it names neither one region nor an operator, nor any other role, or is a server's alone";

/// The certificate in `file`, if it is a peer's.
#[must_use]
pub fn certificate_in(file: &Path) -> Option<Certificate> {
    Certificate::of(&CertificateDer::from_pem_slice(&std::fs::read(file).ok()?).ok()?)
}

/// The certificates in `pem`, the content of a file; at least one.
pub(crate) fn certificates_in(path: &Path, pem: &str) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
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

/// The id of the cluster to which the identity or authority in `directory` belongs.
///
/// # Errors
/// When it is not there, or is none.
pub fn read_cluster_id(directory: &Path) -> Result<ClusterId, IdentityError> {
    let path = directory.join("cluster.id");
    let text = read(&path)?;
    let unusable = |e: proto::ids::ParseIdError| IdentityError::Unusable {
        path: path.display().to_string(),
        what: e.to_string(),
    };
    text.trim().parse().map_err(unusable)
}

pub(crate) fn read(path: &Path) -> Result<String, IdentityError> {
    std::fs::read_to_string(path).map_err(at(path))
}

pub(crate) fn read_private(path: &Path) -> Result<String, IdentityError> {
    let mode = std::fs::metadata(path).map_err(at(path))?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(IdentityError::Exposed(path.display().to_string()));
    }
    read(path)
}

pub(crate) fn make_directory(directory: &Path) -> Result<(), IdentityError> {
    private::make_directory(directory).map_err(at(directory))
}

/// Writes a file of mode 0600, whole or not at all.
pub(crate) fn write_private(path: &Path, content: &str) -> Result<(), IdentityError> {
    private::replace(path, content.as_bytes()).map_err(at(path))
}

fn at(path: &Path) -> impl Fn(std::io::Error) -> IdentityError + use<> {
    let path = path.display().to_string();
    move |source| IdentityError::Io { path: path.clone(), source }
}
