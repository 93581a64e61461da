//! The box's own certificate: made once, kept in the state directory, known to people by its fingerprint.
//!
//! It is self-signed: an isolated network has no authority to ask, so trust is the fingerprint that the machine's own
//! console shows. The key is a file that only the box's user can read; it must never leave the state directory.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::digest::Sha256;
use crate::error::Hinted;
use crate::paths::{CERTIFICATE_FILE, CERTIFICATE_KEY_FILE};

/// Why the box has no certificate.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file of the state directory.
    #[error("{}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It cannot be made.
    #[error("making the box's certificate")]
    Make(#[from] rcgen::Error),
    /// What is kept is no certificate with its key.
    #[error("the box's certificate in {} cannot be used", path.display())]
    Unusable {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Hinted for IdentityError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::File { .. } => "check the state directory's free space and owner".into(),
            Self::Make(_) => return None,
            Self::Unusable { .. } => {
                "remove both certificate files to have new ones made; the fingerprint changes with them"
                    .into()
            }
        })
    }
}

/// The certificate, ready to serve with.
pub struct Identity {
    /// SHA-256 of the certificate, as `openssl x509 -fingerprint -sha256` shows it.
    pub fingerprint: String,
    /// TLS 1.3 only; clients prove themselves by other means.
    pub server: Arc<ServerConfig>,
}

impl Identity {
    /// The one kept in `directory`; made at the first call.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub fn open(directory: &Path) -> Result<Self, IdentityError> {
        let (certificate_path, key_path) =
            (directory.join(CERTIFICATE_FILE), directory.join(CERTIFICATE_KEY_FILE));
        if !certificate_path.exists() {
            make(&certificate_path, &key_path)?;
        }
        let read = |path: &Path| {
            let failed = |source| IdentityError::File { path: path.to_owned(), source };
            std::fs::read(path).map(zeroize::Zeroizing::new).map_err(failed)
        };
        let (certificate, key) = (read(&certificate_path)?, read(&key_path)?);
        let unusable = |source: Box<dyn std::error::Error + Send + Sync>| IdentityError::Unusable {
            path: directory.to_owned(),
            source,
        };
        let certificate = CertificateDer::from_pem_slice(&certificate).map_err(|e| unusable(e.into()))?;
        let key = PrivateKeyDer::from_pem_slice(&key).map_err(|e| unusable(e.into()))?;
        let fingerprint = fingerprint(&certificate);
        let mut server = ServerConfig::builder_with_provider(super::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(vec![certificate], key))
            .map_err(|e| unusable(e.into()))?;
        server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self { fingerprint, server: Arc::new(server) })
    }
}

/// The key first: a certificate that is there has its key.
fn make(certificate_path: &Path, key_path: &Path) -> Result<(), IdentityError> {
    let key = KeyPair::generate()?;
    let mut parameters = CertificateParams::new(vec!["carena".to_owned(), "localhost".to_owned()])?;
    // Through any clock: a box that boots with a wrong one must still be reachable.
    parameters.not_before = rcgen::date_time_ymd(1975, 1, 1);
    parameters.not_after = rcgen::date_time_ymd(4096, 1, 1);
    parameters.distinguished_name = DistinguishedName::new();
    parameters.distinguished_name.push(DnType::CommonName, "carena");
    parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let certificate = parameters.self_signed(&key)?;
    let pem = zeroize::Zeroizing::new(key.serialize_pem());
    for (path, text, mode) in
        [(key_path, pem.as_str(), 0o600), (certificate_path, certificate.pem().as_str(), 0o644)]
    {
        crate::durable::write(path, text.as_bytes(), mode)
            .map_err(|source| IdentityError::File { path: path.to_owned(), source })?;
    }
    Ok(())
}

/// `AB:CD:…`, the notation of browsers and of openssl.
fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    let pairs: Vec<String> =
        Sha256::of(certificate).as_bytes().iter().map(|byte| format!("{byte:02X}")).collect();
    pairs.join(":")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn the_fingerprint_stays_and_only_the_owner_reads_the_key() {
        let directory = tempfile::tempdir().unwrap();
        let first = Identity::open(directory.path()).unwrap().fingerprint;
        assert_eq!(Identity::open(directory.path()).unwrap().fingerprint, first);
        let mode = std::fs::metadata(directory.path().join(CERTIFICATE_KEY_FILE)).unwrap().permissions();
        assert_eq!(mode.mode() & 0o777, 0o600);
    }

    #[test]
    fn a_broken_certificate_is_an_error_that_says_what_to_do() {
        let directory = tempfile::tempdir().unwrap();
        Identity::open(directory.path()).unwrap();
        crate::durable::write(&directory.path().join(CERTIFICATE_FILE), b"rubbish", 0o644).unwrap();
        let Err(error) = Identity::open(directory.path()) else { panic!("opened") };
        assert!(crate::error::explain(&error).contains("remove both"), "{}", crate::error::explain(&error));
    }
}
