//! The certificates of one node's conversation in a deployment: a CA in memory, the engine's certificate and the box's.
//!
//! Every node of a deployment has a CA of its own, so an engine's certificate opens nothing on any other node: a
//! node that was taken over cannot speak to its neighbours' engines. Keys live in memory and, for the engine,
//! travel over the SSH channel's standard input. TLS 1.3 only, ring only.

use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ED25519,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig, server::WebPkiClientVerifier};

use serde::{Deserialize, Serialize};
use zeroize::ZeroizeOnDrop;

use crate::access::control::Identity;
use crate::wire::id::DeploymentId;

/// Certificates could not be made.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// By the certificate library.
    #[error("making the deployment's certificates")]
    Certificate(#[from] rcgen::Error),
    /// By the TLS library.
    #[error("configuring the deployment's TLS")]
    Tls(#[from] rustls::Error),
    /// What was kept is no PEM.
    #[error("reading the deployment's certificates")]
    Pem(#[from] rustls::pki_types::pem::Error),
    /// By the TLS library's verifier.
    #[error("configuring the deployment's TLS")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// Certificates and keys as text, wiped when dropped: in memory, and sealed in the store while an engine runs.
#[derive(Clone, Serialize, Deserialize, ZeroizeOnDrop)]
pub struct Kept {
    /// The CA's certificate, PEM.
    pub ca_pem: String,
    /// The engine's certificate, PEM.
    pub engine_certificate_pem: String,
    /// The engine's key, PEM. For the SSH channel only.
    pub engine_key_pem: String,
    /// The name in the engine's certificate.
    pub engine_name: String,
    /// The box's certificate, PEM.
    pub box_certificate_pem: String,
    /// The box's key, PEM.
    pub box_key_pem: String,
    /// The name in the box's certificate; the payload server is chosen by it (SNI).
    pub box_name: String,
}

/// What one node's engine and the box prove themselves with.
pub struct Authority {
    /// As text.
    pub kept: Kept,
    /// The box as client of the engine.
    pub client: Arc<ClientConfig>,
    /// The box as server of payloads, for this engine only.
    pub server: Arc<ServerConfig>,
}

impl Authority {
    /// Makes all keys and certificates for node number `node` of a deployment.
    ///
    /// # Errors
    /// [`AuthorityError`].
    pub fn new(deployment: &DeploymentId, node: usize) -> Result<Self, AuthorityError> {
        let engine_name = format!("engine-{node}.{deployment}.carena");
        let box_name = format!("box-{node}.{deployment}.carena");

        let ca_key = KeyPair::generate_for(&PKCS_ED25519)?;
        let mut ca = parameters(&[])?;
        ca.distinguished_name.push(DnType::CommonName, format!("carena {deployment} {node}"));
        ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let ca_certificate = ca.self_signed(&ca_key)?;
        let issuer = Issuer::from_params(&ca, &ca_key);

        let engine_key = KeyPair::generate_for(&PKCS_ED25519)?;
        let engine = leaf(&engine_name)?.signed_by(&engine_key, &issuer)?;
        let box_key = KeyPair::generate_for(&PKCS_ED25519)?;
        let own = leaf(&box_name)?.signed_by(&box_key, &issuer)?;

        Self::from_kept(Kept {
            ca_pem: ca_certificate.pem(),
            engine_certificate_pem: engine.pem(),
            engine_key_pem: engine_key.serialize_pem(),
            engine_name,
            box_certificate_pem: own.pem(),
            box_key_pem: box_key.serialize_pem(),
            box_name,
        })
    }

    /// From what was kept of an engine that still runs.
    ///
    /// # Errors
    /// [`AuthorityError`].
    pub fn from_kept(kept: Kept) -> Result<Self, AuthorityError> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(kept.ca_pem.as_bytes())?)?;
        let roots = Arc::new(roots);
        let chain = vec![CertificateDer::from_pem_slice(kept.box_certificate_pem.as_bytes())?];
        let key = PrivateKeyDer::from_pem_slice(kept.box_key_pem.as_bytes())?;
        let tls13 = &[&rustls::version::TLS13];

        let client = ClientConfig::builder_with_provider(crate::https::provider())
            .with_protocol_versions(tls13)?
            .with_root_certificates(roots.clone())
            .with_client_auth_cert(chain.clone(), key.clone_key())?;
        let verifier =
            WebPkiClientVerifier::builder_with_provider(roots, crate::https::provider()).build()?;
        let server = ServerConfig::builder_with_provider(crate::https::provider())
            .with_protocol_versions(tls13)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)?;
        Ok(Self { kept, client: Arc::new(client), server: Arc::new(server) })
    }
}

impl Authority {
    /// What the engine must prove, and the box to it.
    pub fn identity<'a>(&'a self, deployment: &'a DeploymentId, lease_s: u32) -> Identity<'a> {
        Identity { tls: self.client.clone(), server_name: &self.kept.engine_name, deployment, lease_s }
    }
}

/// Valid through any clock a node may have: the deployment's end, not a date, is what ends these certificates.
fn parameters(names: &[String]) -> Result<CertificateParams, rcgen::Error> {
    let mut parameters = CertificateParams::new(names.to_vec())?;
    parameters.not_before = rcgen::date_time_ymd(1975, 1, 1);
    parameters.not_after = rcgen::date_time_ymd(4096, 1, 1);
    parameters.distinguished_name = rcgen::DistinguishedName::new();
    Ok(parameters)
}

fn leaf(name: &str) -> Result<CertificateParams, rcgen::Error> {
    let mut parameters = parameters(&[name.to_owned()])?;
    parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    parameters.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    Ok(parameters)
}
