//! The certificate by which connections begin, out and in. It is replaced while others go on.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, ServerConfig};
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;

use crate::identity::Identity;

/// What both sides must agree to speak.
const ALPN: &[u8] = b"replicator/1";

/// Connections that wait for their handshakes, and what those may have sent meanwhile: for all together.
const INCOMING_MAX: usize = 1024;
const INCOMING_BYTES_MAX: u64 = 4 << 20;

/// What connections begin with from now on; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Credentials(Arc<Mutex<Used>>);

#[derive(Debug)]
struct Used {
    client: ClientConfig,
    server: ServerConfig,
    roots: Arc<RootCertStore>,
    signs: Signs,
}

/// What the authorities of a certificate say of operators' orders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signs {
    /// The authority that issued it takes signed ones alone.
    pub required: bool,
    /// One of those that are trusted does.
    pub known: bool,
}

impl Credentials {
    pub(crate) fn of(identity: &Identity) -> Result<Credentials, String> {
        Ok(Credentials(Arc::new(Mutex::new(configs(identity)?))))
    }

    pub(crate) fn replace(&self, identity: &Identity) -> Result<(), String> {
        let used = configs(identity)?;
        *self.lock() = used;
        Ok(())
    }

    pub(crate) fn client(&self) -> ClientConfig {
        self.lock().client.clone()
    }

    pub(crate) fn server(&self) -> ServerConfig {
        self.lock().server.clone()
    }

    pub(crate) fn roots(&self) -> Arc<RootCertStore> {
        self.lock().roots.clone()
    }

    pub(crate) fn signs(&self) -> Signs {
        self.lock().signs
    }

    fn lock(&self) -> MutexGuard<'_, Used> {
        // It is replaced whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn configs(identity: &Identity) -> Result<Used, String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let text = |e: rustls::Error| e.to_string();
    let mut client = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(text)?
        .with_root_certificates(identity.roots.clone())
        .with_client_auth_cert(identity.chain.clone(), identity.key.clone_key())
        .map_err(text)?;
    client.alpn_protocols = vec![ALPN.to_vec()];
    let verifier = WebPkiClientVerifier::builder_with_provider(identity.roots.clone(), provider.clone());
    let mut server = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(text)?
        .with_client_cert_verifier(verifier.build().map_err(|e| e.to_string())?)
        .with_single_cert(identity.chain.clone(), identity.key.clone_key())
        .map_err(text)?;
    server.alpn_protocols = vec![ALPN.to_vec()];
    let client = QuicClientConfig::try_from(client).map_err(|e| e.to_string())?;
    let client = ClientConfig::new(Arc::new(client));
    let server = QuicServerConfig::try_from(server).map_err(|e| e.to_string())?;
    let mut server = ServerConfig::with_crypto(Arc::new(server));
    server.max_incoming(INCOMING_MAX).incoming_buffer_size_total(INCOMING_BYTES_MAX);
    let signs = Signs { required: identity.certificate.of_orders, known: identity.knows_orders };
    Ok(Used { client, server, roots: identity.roots.clone(), signs })
}
