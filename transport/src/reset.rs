//! How a daemon that was killed and started again tells its peers at once that it knows their connections
//! no more: by stateless resets (RFC 9000, section 10.3), whose tokens it can make again from its own
//! key. Without them a peer waits for the connection's end, and whatever it asks meanwhile is not
//! answered.

use std::net::SocketAddr;
use std::sync::Arc;

use aws_lc_rs::hmac;
use quinn::crypto::{CryptoError, HmacKey};
use quinn_proto::HashedConnectionIdGenerator;

use crate::identity::Identity;

/// An endpoint at `address` that knows, also in its next life, which connections it has had. Another
/// endpoint of the same certificate, at another address, cannot end them.
pub(crate) fn config(identity: &Identity, address: SocketAddr) -> quinn::EndpointConfig {
    let own = hmac::Key::new(hmac::HMAC_SHA256, identity.key.secret_der());
    let derived = |what: &str| hmac::sign(&own, format!("replicator {what} at {address}").as_bytes());
    let resets = hmac::Key::new(hmac::HMAC_SHA256, derived("stateless resets").as_ref());
    let ids = derived("connection ids").as_ref().first_chunk().copied().map_or(0, u64::from_le_bytes);
    let mut config = quinn::EndpointConfig::new(Arc::new(Resets(resets)));
    config.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(ids)));
    config
}

/// The key of the tokens.
struct Resets(hmac::Key);

impl HmacKey for Resets {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        signature_out.copy_from_slice(hmac::sign(&self.0, data).as_ref());
    }

    fn signature_len(&self) -> usize {
        aws_lc_rs::digest::SHA256_OUTPUT_LEN
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        hmac::verify(&self.0, data, signature).map_err(|_| CryptoError)
    }
}
