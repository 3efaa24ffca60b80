//! A certificate that was renewed, shown on a connection that there is.
//!
//! TLS 1.3 in QUIC has no way to show another certificate, and a connection must not outlive the one that it
//! began with for long. So whoever has a newer one sends it on a stream of its own, with a signature of what
//! both sides alone know of this connection: keying material that TLS exports for this (RFC 8446, 7.5), for
//! the side that signs. Nothing that streams is touched.

use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use proto::messages::CertificateProof;
use quinn::Side;
use rustls::RootCertStore;

use crate::identity::Identity;
use crate::peer::Certificate;
use crate::signature::Signature;

/// What is signed begins with this.
const WORDS: &[u8] = b"replicator: a renewed certificate, version 1\0";

/// What the keying material is for.
const LABEL: &[u8] = b"EXPORTER-replicator-renewed-certificate";

/// The longest proof, bytes.
const BYTES_MAX: usize = 32 << 10;

/// How long the other side may take to let a proof be sent: an earlier version lets none.
const SHOWN_WITHIN: Duration = Duration::from_secs(5);

/// What the side `by` of this connection signs.
fn material(connection: &quinn::Connection, by: Side) -> Result<[u8; 32], String> {
    let mut material = [0; 32];
    let side: &[u8] = match by {
        Side::Client => b"client",
        Side::Server => b"server",
    };
    let exported = connection.export_keying_material(&mut material, LABEL, side);
    exported.map_err(|_| "TLS gives no keying material")?;
    Ok(material)
}

/// Shows the other side of `connection` the certificate of `identity`.
///
/// # Errors
/// Why it could not be shown, in words.
pub(crate) async fn show(connection: &quinn::Connection, identity: &Identity) -> Result<(), String> {
    let Signature { chain, scheme, bytes } =
        identity.sign_as(WORDS, &material(connection, connection.side())?)?;
    let proof = CertificateProof { chain, scheme, signature: bytes }.encode_to_vec();
    let showing = async {
        let mut stream = connection.open_uni().await.map_err(|e| e.to_string())?;
        stream.write_all(&proof).await.map_err(|e| e.to_string())?;
        stream.finish().map_err(|e| e.to_string())
    };
    let shown = tokio::time::timeout(SHOWN_WITHIN, showing).await;
    shown.map_err(|_| "the other side takes none".to_owned())?
}

/// A certificate that the other side of a connection shows, not verified yet.
#[derive(Debug)]
pub(crate) struct Shown(Vec<u8>);

/// The next one that the other side shows; none once the connection is over.
pub(crate) async fn next(connection: &quinn::Connection) -> Option<Shown> {
    loop {
        let mut stream = connection.accept_uni().await.ok()?;
        // What is too long is none.
        if let Ok(proof) = stream.read_to_end(BYTES_MAX).await {
            return Some(Shown(proof));
        }
    }
}

impl Shown {
    /// Whose it is, if the authorities in `roots` let it in at `now_s`, seconds since 1970, and it was signed
    /// for this connection, by its other side.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub(crate) fn verify(
        &self,
        connection: &quinn::Connection,
        roots: &Arc<RootCertStore>,
        now_s: i64,
    ) -> Result<Certificate, String> {
        let CertificateProof { chain, scheme, signature } =
            CertificateProof::decode(&*self.0).map_err(|e| e.to_string())?;
        let signature = Signature { chain, scheme, bytes: signature };
        let other = match connection.side() {
            Side::Client => Side::Server,
            Side::Server => Side::Client,
        };
        signature.verify(roots, (WORDS, &material(connection, other)?), now_s)
    }
}
