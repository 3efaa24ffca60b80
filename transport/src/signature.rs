//! Signatures with the key of a certificate of the cluster, of other things than TLS' own handshakes: each
//! kind begins with words of its own, so that none is taken for another.

use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::EndEntityCert;

use crate::identity::Identity;
use crate::peer::Certificate;

/// The most certificates that lead to the authority, the signer's included.
const CHAIN_MAX: usize = 8;

/// The signatures that are made, the first that the key can make.
const SCHEMES: [SignatureScheme; 6] = [
    SignatureScheme::ED25519,
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::ECDSA_NISTP521_SHA512,
    SignatureScheme::RSA_PSS_SHA512,
    SignatureScheme::RSA_PSS_SHA256,
];

/// A signature and what it is verified by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Signature {
    /// The signer's certificate and those that lead to the authority, DER.
    pub(crate) chain: Vec<bytes::Bytes>,
    /// TLS' number of the kind of signature.
    pub(crate) scheme: u32,
    /// The signature itself.
    pub(crate) bytes: bytes::Bytes,
}

fn provider() -> CryptoProvider {
    rustls::crypto::aws_lc_rs::default_provider()
}

impl Identity {
    /// Signs `content` as something that begins with `words`.
    pub(crate) fn sign_as(&self, words: &[u8], content: &[u8]) -> Result<Signature, String> {
        let key =
            provider().key_provider.load_private_key(self.key.clone_key()).map_err(|e| e.to_string())?;
        let signer =
            key.choose_scheme(&SCHEMES).ok_or("the key makes none of the signatures that are taken")?;
        let signature = signer.sign(&[words, content].concat()).map_err(|e| e.to_string())?;
        Ok(Signature {
            scheme: u32::from(u16::from(signer.scheme())),
            chain: self.chain.iter().map(|certificate| certificate.to_vec().into()).collect(),
            bytes: signature.into(),
        })
    }
}

impl Signature {
    /// Whose it is, if the authorities in `roots` had let the certificate in at `at_s`, seconds since 1970.
    pub(crate) fn verify(
        &self,
        roots: &Arc<RootCertStore>,
        (words, content): (&[u8], &[u8]),
        at_s: i64,
    ) -> Result<Certificate, String> {
        if self.chain.len() > CHAIN_MAX {
            return Err(format!("{} certificates lead to it", self.chain.len()));
        }
        let chain: Vec<CertificateDer<'_>> =
            self.chain.iter().map(|der| CertificateDer::from(der.to_vec())).collect();
        let (own, leading) = chain.split_first().ok_or("it has no certificate")?;
        let at_s = u64::try_from(at_s).map_err(|_| "it was signed before 1970")?;
        let provider = Arc::new(provider());
        let algorithms = provider.signature_verification_algorithms;
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider);
        let verifier = verifier.build().map_err(|e| e.to_string())?;
        let at = UnixTime::since_unix_epoch(std::time::Duration::from_secs(at_s));
        verifier.verify_client_cert(own, leading, at).map_err(|e| format!("its certificate: {e}"))?;
        let certificate = Certificate::of(own).ok_or("its certificate is no peer's")?;
        let taken = SCHEMES.into_iter().find(|scheme| u32::from(u16::from(*scheme)) == self.scheme);
        let taken = taken.ok_or("its signature is of a kind that is not taken")?;
        let end_entity = EndEntityCert::try_from(own).map_err(|e| e.to_string())?;
        let of_scheme = algorithms.mapping.iter().filter(|(scheme, _)| *scheme == taken);
        let mut fitting = of_scheme.flat_map(|(_, algorithms)| algorithms.iter());
        let message = [words, content].concat();
        match fitting.any(|one| end_entity.verify_signature(*one, &message, &self.bytes).is_ok()) {
            true => Ok(certificate),
            false => Err(format!("the signature is not {}'s", certificate.peer)),
        }
    }
}
