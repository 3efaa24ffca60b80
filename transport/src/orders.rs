//! An operator's order: signed with the key of the operator's certificate, and verified by whoever trusts
//! the authority of that, wherever the order comes from.

use std::sync::Arc;

use proto::messages::SignedOrder;
use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;

use crate::identity::Identity;
use crate::peer::{Certificate, Peer};
use crate::signature::Signature;

/// What is signed begins with this.
const WORDS: &[u8] = b"replicator: an operator's order, version 1\0";

impl Identity {
    /// Signs `content` as an order.
    ///
    /// # Errors
    /// When the key cannot sign, in words.
    pub fn sign_order(&self, content: Vec<u8>) -> Result<SignedOrder, String> {
        let Signature { chain, scheme, bytes } = self.sign_as(WORDS, &content)?;
        Ok(SignedOrder { content: content.into(), chain, scheme, signature: bytes })
    }
}

/// Whose certificate an order has beside it; whether it is that one's nobody has looked at.
#[must_use]
pub fn signer_of(order: &SignedOrder) -> Option<Certificate> {
    Certificate::of(&CertificateDer::from(order.chain.first()?.to_vec()))
}

/// Verifies that `order` was signed by an operator whose certificate the authorities in `roots` had let in at
/// `at_us`, microseconds since 1970.
///
/// # Errors
/// What is wrong with it, in words.
pub(crate) fn verify(
    roots: &Arc<RootCertStore>,
    order: &SignedOrder,
    at_us: i64,
) -> Result<Certificate, String> {
    let SignedOrder { content, chain, scheme, signature } = order;
    let signature = Signature { chain: chain.clone(), scheme: *scheme, bytes: signature.clone() };
    let certificate = signature.verify(roots, (WORDS, content), at_us.div_euclid(1_000_000))?;
    match certificate.peer {
        Peer::Operator(_) => Ok(certificate),
        other => Err(format!("it is signed by {}, {other}", other.role())),
    }
}
