//! The certificate by which clients know the server, and whether it has one.
//!
//! The daemon's directory holds it, where PostgreSQL's account need not reach; each start and reload puts
//! a copy beside the server's sockets, which is its account's. It is in no data directory: those are
//! copied from region to region.

use std::path::Path;

use super::{Instance, InstanceError, Own, at};

/// The server's certificate, with those that lead to the authority.
const CERTIFICATE: &str = "server.crt";

/// Its key.
const KEY: &str = "server.key";

/// What the user sets where the server's encryption is the user's own: then it is left alone.
const THEIRS: [&str; 3] = ["ssl", "ssl_cert_file", "ssl_key_file"];

impl Instance {
    /// Whether clients over the network are encrypted, by the certificate of the daemon's.
    #[must_use]
    pub fn encrypts(&self) -> bool {
        self.encrypts_with(&self.own())
    }

    pub(super) fn encrypts_with(&self, own: &Own) -> bool {
        let certified = || self.options().certificate.as_ref().is_some_and(|at| at.join("cert.pem").exists());
        !THEIRS.iter().any(|key| own.settings.contains_key(*key))
            && certified()
            && self.installation().encrypts()
    }

    /// The settings that the server finds its certificate by; none where it has none, or the user has set
    /// them.
    pub(super) fn tls_settings(&self, own: &Own) -> Vec<(&'static str, String)> {
        if !self.encrypts_with(own) {
            return Vec::new();
        }
        let sockets = &self.options().socket_dir;
        let file = |name: &str| sockets.join(name).display().to_string();
        vec![("ssl", "on".into()), ("ssl_cert_file", file(CERTIFICATE)), ("ssl_key_file", file(KEY))]
    }

    /// Whether the daemon's certificate is another than the server has; a reload gives it that.
    #[must_use]
    pub fn has_another_certificate(&self) -> bool {
        let given =
            self.options().certificate.as_ref().and_then(|at| std::fs::read(at.join("cert.pem")).ok());
        let placed = self.sockets().ok().and_then(|sockets| sockets.read_to_string(CERTIFICATE).ok());
        self.encrypts() && given != placed.map(String::into_bytes)
    }

    /// Puts the certificate where the server reads it.
    pub(super) fn place_certificate(&self, own: &Own) -> Result<(), InstanceError> {
        let Some(from) = self.options().certificate.as_ref().filter(|_| self.encrypts_with(own)) else {
            return Ok(());
        };
        let (sockets, owner) = (self.sockets()?, self.options().account.owner());
        for (source, name) in [("key.pem", KEY), ("cert.pem", CERTIFICATE)] {
            let source = from.join(source);
            let content = std::fs::read(&source).map_err(at(&source))?;
            // The server may read it just now, and finds one or the other.
            if !sockets.read_to_string(name).is_ok_and(|there| there.as_bytes() == content) {
                sockets.replace(Path::new(name), &content, owner).map_err(at(&sockets.path().join(name)))?;
            }
        }
        Ok(())
    }
}
