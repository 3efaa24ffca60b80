//! The certificate by which clients know the server, and whether it has one; and the authorities by which the
//! server knows clients, where they show certificates.
//!
//! The daemon's directory holds it, where PostgreSQL's account need not reach; each start and reload puts
//! a copy beside the server's sockets, which is its account's. It is in no data directory: those are
//! copied from region to region. Only a certificate with its own key is put there: a server that is
//! started with another does not come up.

use std::path::Path;
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use runtime::task::blocking;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::{AUTO, Instance, InstanceError, Own, at};
use crate::below::Below;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(2);

/// The server's certificate, with those that lead to the authority.
const CERTIFICATE: &str = "server.crt";

/// Its key.
const KEY: &str = "server.key";

/// Those whose certificates clients may show.
const AUTHORITIES: &str = "clients.crt";

/// What of all this a server has read: its certificate, and the authorities.
pub(super) type Read = (Vec<u8>, Option<Vec<u8>>);

/// What the user sets where the server's encryption is the user's own: then it is left alone.
pub const OWN_ENCRYPTION: [&str; 3] = ["ssl", "ssl_cert_file", "ssl_key_file"];

/// A certificate and its key, as PEM.
#[derive(PartialEq, Eq)]
struct Pair {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl Pair {
    /// What `directory` holds, if it is a pair.
    fn given(directory: &Path) -> Option<Pair> {
        let read = |name: &str| std::fs::read(directory.join(name)).ok();
        Pair { certificate: read("cert.pem")?, key: read("key.pem")? }.if_whole()
    }

    fn placed(sockets: &Below) -> Option<Pair> {
        let read = |name: &str| sockets.read_to_string(name).ok().map(String::into_bytes);
        Pair { certificate: read(CERTIFICATE)?, key: read(KEY)? }.if_whole()
    }

    fn if_whole(self) -> Option<Pair> {
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&self.certificate).collect();
        let key = PrivateKeyDer::from_pem_slice(&self.key).ok()?;
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        CertifiedKey::from_der(chain.ok()?, key, &provider).ok().map(|_| self)
    }
}

/// Whether `directory` holds a certificate with its own key.
#[must_use]
pub fn is_pair(directory: &Path) -> bool {
    Pair::given(directory).is_some()
}

impl Instance {
    /// Whether clients over the network are encrypted, by the certificate of the daemon's.
    #[must_use]
    pub fn encrypts(&self) -> bool {
        self.encrypts_with(&self.own())
    }

    pub(super) fn encrypts_with(&self, own: &Own) -> bool {
        !self.is_theirs(own) && self.pair().is_some() && self.installation().encrypts()
    }

    /// The authorities in PEM that the server is to know clients by: those that are given, or while that are
    /// none, those that it was given before. A server that finds none there does not start.
    fn clients_authorities(&self, own: &Own) -> Option<Vec<u8>> {
        let given =
            self.options().authorities.as_ref().filter(|_| self.encrypts_with(own) && own.asks_clients())?;
        let are_some = |pem: &Vec<u8>| {
            let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
            found.is_ok_and(|found| !found.is_empty())
        };
        std::fs::read(given).ok().filter(are_some).or_else(|| self.placed_authorities().filter(are_some))
    }

    fn placed_authorities(&self) -> Option<Vec<u8>> {
        self.sockets().ok()?.read_to_string(AUTHORITIES).ok().map(String::into_bytes)
    }

    /// Whether the user looks after the server's encryption, by `regions.toml` or by `ALTER SYSTEM`.
    fn is_theirs(&self, own: &Own) -> bool {
        let theirs = |key: &str| OWN_ENCRYPTION.iter().any(|known| known.eq_ignore_ascii_case(key.trim()));
        let altered = self.read_if_any(AUTO).ok().flatten().unwrap_or_default();
        own.settings.keys().any(|key| theirs(key))
            || altered.lines().filter_map(|line| line.split_once('=')).any(|(key, _)| theirs(key))
    }

    /// The pair that the server is to have: the one that is given, or while that is none, what it was given
    /// before.
    fn pair(&self) -> Option<Pair> {
        let given = self.options().certificate.as_ref()?;
        Pair::given(given).or_else(|| self.sockets().ok().and_then(|sockets| Pair::placed(&sockets)))
    }

    /// The settings that the server finds its certificate by; none where it has none, or the user has set
    /// them.
    pub(super) fn tls_settings(&self, own: &Own) -> Vec<(&'static str, String)> {
        if !self.encrypts_with(own) {
            return Vec::new();
        }
        let sockets = &self.options().socket_dir;
        let file = |name: &str| sockets.join(name).display().to_string();
        let mut settings =
            vec![("ssl", "on".into()), ("ssl_cert_file", file(CERTIFICATE)), ("ssl_key_file", file(KEY))];
        if self.clients_authorities(own).is_some() {
            settings.push(("ssl_ca_file", file(AUTHORITIES)));
        }
        settings
    }

    /// Whether the running server is not known to have read the certificate that it is to have, or the
    /// authorities: a reload gives it them.
    #[must_use]
    pub fn has_another_certificate(&self) -> bool {
        let own = self.own().clone();
        let wanted = || self.pair().map(|pair| (pair.certificate, self.clients_authorities(&own)));
        self.encrypts_with(&own) && *self.loaded() != wanted()
    }

    /// Returns when the running server is to have another certificate. One that does not run is given it
    /// when it starts.
    pub async fn until_another_certificate(&self) {
        loop {
            tokio::time::sleep(LOOK).await;
            let instance = self.clone();
            let another = move || instance.has_another_certificate() && instance.process().is_some();
            if blocking("look at PostgreSQL's certificate", another).await.unwrap_or(false) {
                return;
            }
        }
    }

    /// The server reads its files now: it has the certificate that lies there.
    pub(super) fn note_certificate_read(&self) {
        let placed = self.sockets().ok().and_then(|sockets| Pair::placed(&sockets));
        let asks = self.own().asks_clients();
        let authorities = self.placed_authorities().filter(|_| asks);
        *self.loaded() = placed.map(|pair| (pair.certificate, authorities));
    }

    fn loaded(&self) -> MutexGuard<'_, Option<Read>> {
        // It is replaced whole.
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts the certificate where the server reads it.
    pub(super) fn place_certificate(&self, own: &Own) -> Result<(), InstanceError> {
        let Some(pair) = self.pair().filter(|_| self.encrypts_with(own)) else { return Ok(()) };
        let (sockets, owner) = (self.sockets()?, self.options().account.owner());
        let authorities = self.clients_authorities(own);
        if let Some(authorities) =
            authorities.filter(|given| self.placed_authorities().as_ref() != Some(given))
        {
            let replaced = sockets.replace(Path::new(AUTHORITIES), &authorities, owner);
            replaced.map_err(at(&sockets.path().join(AUTHORITIES)))?;
        }
        if Pair::placed(&sockets).is_some_and(|placed| placed == pair) {
            return Ok(());
        }
        for (name, content) in [(KEY, &pair.key), (CERTIFICATE, &pair.certificate)] {
            sockets.replace(Path::new(name), content, owner).map_err(at(&sockets.path().join(name)))?;
        }
        Ok(())
    }
}
