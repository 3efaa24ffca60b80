//! Tokens: client certificates for PostgreSQL that live for minutes, by which one logs in as one role.
//!
//! A token says so in its subject, which no other certificate of the authority's has: an organizational unit
//! of its own, the cluster, the role, and its serial number. PostgreSQL compares that
//! (`clientname=DN`, [`subject_pattern`]). It has no name that makes a peer of its holder, see
//! [`crate::peer::Certificate::of`].

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use proto::ClusterId;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    SerialNumber,
};
use time::{Duration, OffsetDateTime};

use crate::identity::{Authority, IdentityError, make_directory, write_private};
use crate::peer::hex;

/// The organizational unit in a token's subject.
pub const UNIT: &str = "replicator-token";

/// A token's serial number, bytes: other certificates' are longer, so that a number tells what it is of.
const SERIAL_BYTES: usize = 12;

/// The attribute of a subject that X.520 calls serialNumber.
const SERIAL_NUMBER: [u64; 4] = [2, 5, 4, 5];

/// The most tokens that PostgreSQL is told not to let in: up to 15 it reads no word of more than 10240 bytes
/// in its files.
pub const DENIED_MAX: usize = 300;

/// A token that is made, and nowhere yet.
#[derive(Debug)]
pub struct Token {
    /// Its serial number, in hexadecimal digits.
    pub serial: String,
    /// When it ends, seconds since 1970.
    pub ends_s: i64,
    certificate: String,
    key: KeyPair,
    trusted: String,
}

/// Where a token lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// Its certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The authorities by which servers are known.
    pub authorities: PathBuf,
}

impl Authority {
    /// Makes a token by which its holder logs in as `role` until `validity` from `now` on.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn grant_token(
        &self,
        role: &str,
        now: OffsetDateTime,
        validity: Duration,
    ) -> Result<Token, IdentityError> {
        let mut serial: [u8; SERIAL_BYTES] = runtime::random::draw();
        // No negative number, and none that is shorter.
        serial[0] = (serial[0] & 0x7f) | 0x40;
        let mut params = CertificateParams::default();
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        // In this order. PostgreSQL shows the first 63 bytes of it in pg_stat_ssl.
        let mut name = DistinguishedName::new();
        name.push(DnType::CustomDnType(SERIAL_NUMBER.to_vec()), hex(&serial));
        name.push(DnType::CommonName, role);
        name.push(DnType::OrganizationalUnitName, UNIT);
        name.push(DnType::OrganizationName, self.cluster_id().to_string());
        params.distinguished_name = name;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        let certificate = self.certify(params, &key, now, validity)?;
        let ends_s = (now + validity).unix_timestamp();
        Ok(Token { serial: hex(&serial), ends_s, certificate, key, trusted: self.trusted().to_owned() })
    }
}

impl Token {
    /// Writes it into `directory`, which is made where it is not there: files of mode 0600, in the place of
    /// another token's.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write(&self, directory: &Path) -> Result<Placed, IdentityError> {
        make_directory(directory)?;
        let [certificate, key, authorities] =
            ["token.crt", "token.key", "root.crt"].map(|name| directory.join(name));
        write_private(&authorities, &self.trusted)?;
        // Whoever connects between the two is not let in, and tries again.
        write_private(&key, &self.key.serialize_pem())?;
        write_private(&certificate, &self.certificate)?;
        Ok(Placed { certificate, key, authorities })
    }
}

/// Whether a serial number, as [`crate::peer::mark`] has it, is a token's.
#[must_use]
pub fn is_serial(mark: &str) -> bool {
    mark.len() == 2 * SERIAL_BYTES && mark.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The subjects of the tokens of `cluster` for `role`, but for those that are `denied`: an advanced regular
/// expression of PostgreSQL's over a subject as RFC 2253 writes it, the last part first. None where more than
/// [`DENIED_MAX`] are denied: then no token is to be let in.
#[must_use]
pub fn subject_pattern(cluster: ClusterId, role: &str, denied: &BTreeSet<String>) -> Option<String> {
    let denied: Vec<&str> = denied.iter().map(String::as_str).filter(|mark| is_serial(mark)).collect();
    if denied.len() > DENIED_MAX {
        return None;
    }
    let but = if denied.is_empty() { String::new() } else { format!("(?!({})$)", denied.join("|")) };
    let digits = 2 * SERIAL_BYTES;
    Some(format!("^O={cluster},OU={UNIT},CN={role},serialNumber={but}[0-9a-f]{{{digits}}}$"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_names_the_cluster_the_role_and_tokens_that_are_denied() {
        let cluster = ClusterId([0xab; 16]);
        let marks = |count: usize| (0..count).map(|n| format!("{n:024x}").replacen('0', "4", 1)).collect();
        let pattern = |denied: &BTreeSet<String>| subject_pattern(cluster, "app", denied);
        let begin = format!("^O={cluster},OU=replicator-token,CN=app,serialNumber=");
        assert_eq!(pattern(&BTreeSet::new()), Some(format!("{begin}[0-9a-f]{{24}}$")));
        let mut denied: BTreeSet<String> = marks(2);
        // A peer's serial number and a fingerprint are nothing to PostgreSQL.
        denied.extend(["a".repeat(32), "b".repeat(64)]);
        let but = "(?!(400000000000000000000000|400000000000000000000001)$)";
        assert_eq!(pattern(&denied), Some(format!("{begin}{but}[0-9a-f]{{24}}$")));
        assert!(pattern(&marks(DENIED_MAX)).is_some_and(|pattern| pattern.len() < 10_000));
        assert_eq!(pattern(&marks(DENIED_MAX + 1)), None);
    }
}
