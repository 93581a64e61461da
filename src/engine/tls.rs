//! The engine's TLS: its one certificate, its deployment's CA and nothing else; TLS 1.3 only.

use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use super::provider::provider;
use crate::wire::message::StartConfig;

/// Why the certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Not PEM.
    #[error("they are not PEM")]
    Pem(#[from] rustls::pki_types::pem::Error),
    /// Refused by the TLS library.
    #[error(transparent)]
    Refused(#[from] rustls::Error),
    /// The CA is none.
    #[error(transparent)]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// Both directions.
#[derive(Clone)]
pub struct Tls {
    /// Towards the box that connects.
    pub server: Arc<ServerConfig>,
    /// Towards the box's payload server.
    pub client: Arc<ClientConfig>,
}

impl Tls {
    /// From what the box sent.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn new(config: &StartConfig) -> Result<Self, TlsError> {
        let provider = Arc::new(provider());
        let chain = vec![CertificateDer::from_pem_slice(config.certificate_pem.as_bytes())?];
        let key = PrivateKeyDer::from_pem_slice(config.key_pem.as_bytes())?;
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(config.ca_pem.as_bytes())?)?;
        let roots = Arc::new(roots);
        let versions = &[&rustls::version::TLS13];
        let verifier =
            WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone()).build()?;
        let server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(versions)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), key.clone_key())?;
        let client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)?;
        Ok(Self { server: Arc::new(server), client: Arc::new(client) })
    }
}
