//! The cryptography of the engine's TLS, and no more of it: one key exchange, one kind of certificate, two ciphers.
//!
//! Both sides are ours and of one deployment, so there is nothing to negotiate; what is left out does not travel to every
//! node. The second cipher is for processors without AES instructions. All of it is ring's.

use std::sync::Arc;

use ring::rand::SecureRandom as _;
use rustls::SignatureScheme;
use rustls::crypto::ring::{cipher_suite, kx_group, sign};
use rustls::crypto::{CryptoProvider, GetRandomFailed, KeyProvider, SecureRandom, WebPkiSupportedAlgorithms};
use rustls::pki_types::{PrivateKeyDer, SignatureVerificationAlgorithm};
use rustls::sign::SigningKey;

/// Certificates and handshakes are signed with Ed25519, RFC 8410.
const SIGNED_BY: &[&dyn SignatureVerificationAlgorithm] = &[webpki::ring::ED25519];

/// What the engine's TLS is made of.
pub fn provider() -> CryptoProvider {
    CryptoProvider {
        cipher_suites: vec![
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        kx_groups: vec![kx_group::X25519],
        signature_verification_algorithms: WebPkiSupportedAlgorithms {
            all: SIGNED_BY,
            mapping: &[(SignatureScheme::ED25519, SIGNED_BY)],
        },
        secure_random: &Ring,
        key_provider: &Ring,
    }
}

#[derive(Debug)]
struct Ring;

impl SecureRandom for Ring {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), GetRandomFailed> {
        ring::rand::SystemRandom::new().fill(bytes).map_err(|_| GetRandomFailed)
    }
}

impl KeyProvider for Ring {
    fn load_private_key(&self, key: PrivateKeyDer<'static>) -> Result<Arc<dyn SigningKey>, rustls::Error> {
        match key {
            PrivateKeyDer::Pkcs8(key) => sign::any_eddsa_type(&key),
            _ => Err(rustls::Error::General("the engine's key is not PKCS #8".into())),
        }
    }
}
