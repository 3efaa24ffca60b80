//! Whose a certificate is: a role and a name.
//!
//! A certificate says it in one URI, `replicator://<cluster id>/<role>/<name>`; a node's name is that of its
//! region, a slash, and its own. SPIFFE's `spiffe://<trust domain>/replicator/<cluster id>/<role>/<name>`
//! says the same. Where there is such a URI no other name decides anything. One without is of a version that
//! knew no roles: its only DNS name says who it is, a region or a witness, or `operator`.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use proto::{ClusterId, NodeName, RegionName};
use rustls_pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::x509::X509Name;

/// The name in an operator's certificate of before there were roles, and of the operator that `certs` makes
/// without being asked; no region may have it.
pub const OPERATOR: &str = "operator";

/// The organizational unit of an authority that has issued no certificate without a role, and never does:
/// those of earlier versions do not have it.
pub(crate) const OF_ROLES: &str = "replicator-roles";

/// The organization of an authority whose operators sign their orders: those of earlier versions do not have
/// it.
pub(crate) const OF_ORDERS: &str = "replicator-signed-orders";

/// The longest name of a person or a machine, bytes.
const HOLDER_BYTES_MAX: usize = 64;

/// What roles' URIs begin with.
const SCHEME: &str = "replicator://";

/// A person's or a machine's name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Holder(Arc<str>);

impl Holder {
    /// The operator that `certs` makes without being asked.
    #[must_use]
    pub fn operator() -> Holder {
        Holder(OPERATOR.into())
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A text is no name of a person or a machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("1 to 64 of a-z, A-Z, 0-9, '.', '-', '_' and '@', starting with a letter or digit")]
pub struct HolderError;

impl FromStr for Holder {
    type Err = HolderError;

    fn from_str(text: &str) -> Result<Holder, HolderError> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_@".contains(&byte);
        let begins = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        match begins && text.len() <= HOLDER_BYTES_MAX && text.bytes().all(plain) {
            true => Ok(Holder(text.into())),
            false => Err(HolderError),
        }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// The other side of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Peer {
    /// A region's daemon, or a zone's process of it.
    Region(RegionName),
    /// A witness.
    Witness(RegionName),
    /// A region or a witness, as the file says: its certificate is of before there were roles.
    Voter(RegionName),
    /// A node of a region.
    Node(RegionName, NodeName),
    /// An operator: a person, or a machine that orders things.
    Operator(Holder),
    /// What looks on, and orders nothing.
    Monitor(Holder),
}

impl fmt::Display for Peer {
    /// The name, and the role where the name alone could be another's.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::Region(name) | Peer::Witness(name) | Peer::Voter(name) => f.write_str(name.as_str()),
            Peer::Node(region, node) => write!(f, "node {node} of {region}"),
            Peer::Operator(holder) if *holder == Holder::operator() => f.write_str(OPERATOR),
            Peer::Operator(holder) => write!(f, "operator {holder}"),
            Peer::Monitor(holder) => write!(f, "monitor {holder}"),
        }
    }
}

impl Peer {
    /// Its role, in a word; that of a certificate of before there were roles is not known to it.
    #[must_use]
    pub fn role(&self) -> &'static str {
        match self {
            Peer::Region(_) => "region",
            Peer::Witness(_) => "witness",
            Peer::Voter(_) => "voter",
            Peer::Node(..) => "node",
            Peer::Operator(_) => "operator",
            Peer::Monitor(_) => "monitor",
        }
    }

    /// Its name within its role.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Peer::Region(name) | Peer::Witness(name) | Peer::Voter(name) => name.to_string(),
            Peer::Node(region, node) => format!("{region}/{node}"),
            Peer::Operator(holder) | Peer::Monitor(holder) => holder.to_string(),
        }
    }

    /// The name of a region or a witness that speaks for itself; none of others.
    #[must_use]
    pub fn voter(&self) -> Option<&RegionName> {
        match self {
            Peer::Region(name) | Peer::Witness(name) | Peer::Voter(name) => Some(name),
            Peer::Node(..) | Peer::Operator(_) | Peer::Monitor(_) => None,
        }
    }

    /// Whether a certificate of this peer may take the place of one of `before`: the same, with a role that
    /// it did not have.
    #[must_use]
    pub fn succeeds(&self, before: &Peer) -> bool {
        self == before || (matches!(before, Peer::Voter(_)) && self.voter() == before.voter())
    }

    /// What says it in a certificate of cluster `cluster`; none of before there were roles.
    #[must_use]
    pub fn uri(&self, cluster: ClusterId) -> Option<String> {
        let has_role = !matches!(self, Peer::Voter(_));
        has_role.then(|| format!("{SCHEME}{cluster}/{}/{}", self.role(), self.name()))
    }

    /// The role and the name in a URI of a certificate, and of which cluster. None where it says nothing of
    /// this kind.
    ///
    /// # Errors
    /// When it should, and is malformed.
    pub fn of_uri(uri: &str) -> Result<Option<(ClusterId, Peer)>, MalformedUri> {
        let path = match (uri.strip_prefix(SCHEME), uri.strip_prefix("spiffe://")) {
            (Some(path), _) => path,
            (None, Some(spiffe)) => match spiffe.split_once("/replicator/") {
                Some((_, path)) => path,
                None => return Ok(None),
            },
            (None, None) => return Ok(None),
        };
        let mut parts = path.splitn(3, '/');
        let (Some(cluster), Some(role), Some(name)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(MalformedUri);
        };
        let cluster = cluster.parse().map_err(|_| MalformedUri)?;
        let region = |text: &str| text.parse::<RegionName>().map_err(|_| MalformedUri);
        let holder = || name.parse::<Holder>().map_err(|_| MalformedUri);
        let peer = match role {
            "region" => Peer::Region(region(name)?),
            "witness" => Peer::Witness(region(name)?),
            "node" => {
                let (own, node) = name.split_once('/').ok_or(MalformedUri)?;
                Peer::Node(region(own)?, node.parse().map_err(|_| MalformedUri)?)
            }
            "operator" => Peer::Operator(holder()?),
            "monitor" => Peer::Monitor(holder()?),
            _ => return Err(MalformedUri),
        };
        Ok(Some((cluster, peer)))
    }
}

/// A URI in a certificate that should name a role, and does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it names no role: replicator://<cluster id>/<region, witness, node, operator or monitor>/<name>")]
pub struct MalformedUri;

/// What is known of a peer by its certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// Whose it is.
    pub peer: Peer,
    /// Of which cluster; none in one of before there were roles.
    pub cluster: Option<ClusterId>,
    /// Its number with whoever has issued it, in hexadecimal digits without zeroes before them.
    pub serial: String,
    /// The SHA-256 of all of it, in 64 hexadecimal digits.
    pub fingerprint: String,
    /// When it ends, seconds since 1970.
    pub ends_s: i64,
    /// Whether its authority issues none without a role.
    pub of_roles: bool,
    /// Whether operators sign their orders where its authority is.
    pub of_orders: bool,
}

impl Certificate {
    /// What a verified certificate says; none when its names are not exactly one peer's, or it may not ask
    /// for anything: a server's key lies where the database's account reads it.
    #[must_use]
    pub fn of(der: &CertificateDer<'_>) -> Option<Certificate> {
        let (_, parsed) = x509_parser::parse_x509_certificate(der).ok()?;
        let usage = parsed.extended_key_usage().ok()??;
        let (asks, serves) = (usage.value.client_auth, usage.value.server_auth);
        let alternatives = parsed.subject_alternative_name().ok()??;
        let (mut said, mut dns) = (Vec::new(), Vec::new());
        for name in &alternatives.value.general_names {
            match name {
                GeneralName::URI(uri) => said.extend(Peer::of_uri(uri).ok()?),
                GeneralName::DNSName(name) => dns.push(*name),
                _ => {}
            }
        }
        let (cluster, peer) = match (said.pop(), said.pop()) {
            (Some((cluster, peer)), None) => (Some(cluster), peer),
            (None, _) => (None, by_name(&dns)?),
            (Some(_), Some(_)) => return None,
        };
        // Daemons are asked as well; an operator or a node never is.
        let is_asked = cluster.is_none() || peer.voter().is_some();
        let usable = asks && (serves || !is_asked);
        usable.then(|| Certificate {
            peer,
            cluster,
            serial: hex(parsed.raw_serial()).trim_start_matches('0').to_owned(),
            fingerprint: fingerprint(der),
            ends_s: parsed.validity().not_after.timestamp(),
            of_roles: parsed.issuer().iter_organizational_unit().any(|unit| unit.as_str() == Ok(OF_ROLES)),
            of_orders: has_orders(parsed.issuer()),
        })
    }

    /// Whether it has a role: one without is of before there were such.
    #[must_use]
    pub fn has_role(&self) -> bool {
        self.cluster.is_some()
    }
}

fn has_orders(name: &X509Name<'_>) -> bool {
    name.iter_organization().any(|unit| unit.as_str() == Ok(OF_ORDERS))
}

/// Whether operators sign their orders where the authority of this certificate is.
pub(crate) fn wants_orders(authority: &CertificateDer<'_>) -> bool {
    let parsed = x509_parser::parse_x509_certificate(authority);
    parsed.is_ok_and(|(_, parsed)| has_orders(parsed.subject()))
}

/// Who it is by its DNS names alone.
fn by_name(dns: &[&str]) -> Option<Peer> {
    match dns {
        [OPERATOR] => Some(Peer::Operator(Holder::operator())),
        [name] => name.parse().ok().map(Peer::Voter),
        _ => None,
    }
}

/// The SHA-256 of a certificate, in hexadecimal digits.
#[must_use]
pub fn fingerprint(der: &CertificateDer<'_>) -> String {
    hex(digest(&SHA256, der).as_ref())
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A serial number or a fingerprint as it is compared, of one as people and programs write it: with colons
/// and capitals. None where it is neither.
#[must_use]
pub fn mark(text: &str) -> Option<String> {
    let digits: String = text.chars().filter(|c| *c != ':').collect::<String>().to_ascii_lowercase();
    let digits = digits.strip_prefix("0x").unwrap_or(&digits).trim_start_matches('0');
    let is_one = !digits.is_empty() && digits.len() <= 64 && digits.bytes().all(|b| b.is_ascii_hexdigit());
    is_one.then(|| digits.to_owned())
}

impl Certificate {
    /// Whether one of these, each as [`mark`] has it, is its serial number or its fingerprint.
    #[must_use]
    pub fn is_among(&self, marks: &std::collections::BTreeSet<String>) -> bool {
        marks.contains(&self.serial) || marks.contains(self.fingerprint.trim_start_matches('0'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: ClusterId = ClusterId([0xab; 16]);

    #[test]
    fn a_uri_says_a_role_and_a_name_and_is_read_as_it_was_written() {
        let region = |text: &str| text.parse::<RegionName>().unwrap();
        let holder: Holder = "ann.lee@example".parse().unwrap();
        for peer in [
            Peer::Region(region("us-east")),
            Peer::Witness(region("third-site")),
            Peer::Node(region("us-east"), "n1".parse().unwrap()),
            Peer::Operator(holder.clone()),
            Peer::Monitor(holder),
        ] {
            let uri = peer.uri(CLUSTER).unwrap();
            assert_eq!(Peer::of_uri(&uri), Ok(Some((CLUSTER, peer.clone()))), "{uri}");
            let spiffe = uri.replace("replicator://", "spiffe://prod.example/replicator/");
            assert_eq!(Peer::of_uri(&spiffe), Ok(Some((CLUSTER, peer))), "{spiffe}");
        }
        assert_eq!(Peer::Voter(region("a")).uri(CLUSTER), None);
        for other in ["https://example.com/", "spiffe://prod.example/ns/default", "urn:x"] {
            assert_eq!(Peer::of_uri(other), Ok(None), "{other}");
        }
        for wrong in [
            "replicator://",
            "replicator://ab/region/a",
            &format!("replicator://{CLUSTER}/region"),
            &format!("replicator://{CLUSTER}/region/A"),
            &format!("replicator://{CLUSTER}/region/a/b"),
            &format!("replicator://{CLUSTER}/node/a"),
            &format!("replicator://{CLUSTER}/root/a"),
            &format!("replicator://{CLUSTER}/operator/"),
            &format!("replicator://{CLUSTER}/operator/-ann"),
            &format!("replicator://{CLUSTER}/operator/ann/lee"),
        ] {
            assert_eq!(Peer::of_uri(wrong), Err(MalformedUri), "{wrong}");
        }
    }

    #[test]
    fn a_role_may_follow_a_certificate_without_one_and_no_other() {
        let [a, b] = ["a", "b"].map(|name| name.parse::<RegionName>().unwrap());
        let old = Peer::Voter(a.clone());
        assert!(Peer::Region(a.clone()).succeeds(&old) && Peer::Witness(a.clone()).succeeds(&old));
        assert!(!Peer::Region(b).succeeds(&old) && !old.succeeds(&Peer::Region(a.clone())));
        assert!(!Peer::Witness(a.clone()).succeeds(&Peer::Region(a)));
    }

    #[test]
    fn serials_and_fingerprints_are_taken_as_programs_print_them() {
        assert_eq!(mark("0A:0b:FF").as_deref(), Some("a0bff"));
        assert_eq!(mark("0x00AB").as_deref(), Some("ab"));
        for wrong in ["", "0", "xyz", "ab cd", &"a".repeat(65)] {
            assert_eq!(mark(wrong), None, "{wrong}");
        }
    }
}
