//! The certificates that signed packages must lead to: given once, kept in the state directory, a PEM file each.
//!
//! As long as there is none, a package's checksums count, and its signatures are not asked for. Once there is one, an LVFS
//! cabinet without a signature that leads to it is not imported. A directory that cannot be read is an error: it must
//! never look like one that trusts nobody.

use std::io;
use std::path::{Path, PathBuf};

use crate::digest::Sha256;
use crate::durable;
use crate::error::Hinted;
use crate::firmware::formats::Trust;
use crate::paths::CERTIFICATES_DIRECTORY;

/// Why certificates cannot be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file or the directory.
    #[error("{}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is no certificate; the text names the file.
    #[error("{0}")]
    NotOne(String),
}

impl Hinted for CertificateError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::File { .. } => "check the file and its owner".into(),
            Self::NotOne(_) => "give certificates in PEM form, as LVFS publishes them".into(),
        })
    }
}

/// The kept certificates of a state directory. It need not be there yet.
#[derive(Debug, Clone)]
pub struct Certificates {
    directory: PathBuf,
}

impl Certificates {
    /// Those of a state directory.
    pub fn at(state: &Path) -> Self {
        Self { directory: state.join(CERTIFICATES_DIRECTORY) }
    }

    /// Keeps these files' certificates from now on. None of them when one is no certificate.
    ///
    /// # Errors
    /// [`CertificateError`].
    pub fn add(&self, files: &[PathBuf]) -> Result<(), CertificateError> {
        Trust::read(files).map_err(CertificateError::NotOne)?;
        for path in files {
            let failed = |path: &Path| {
                let path = path.to_owned();
                |source| CertificateError::File { path, source }
            };
            let text = std::fs::read(path).map_err(failed(path))?;
            durable::create_directory(&self.directory).map_err(failed(&self.directory))?;
            let kept = self.directory.join(format!("{}.pem", Sha256::of(&text)));
            durable::write(&kept, &text, 0o600).map_err(failed(&kept))?;
        }
        Ok(())
    }

    /// All of them.
    ///
    /// # Errors
    /// [`CertificateError`].
    pub fn trust(&self) -> Result<Trust, CertificateError> {
        let failed = |source| CertificateError::File { path: self.directory.clone(), source };
        let listed = match std::fs::read_dir(&self.directory) {
            Ok(listed) => listed,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Trust::default()),
            Err(error) => return Err(failed(error)),
        };
        let mut files = Vec::new();
        for entry in listed {
            let path = entry.map_err(failed)?.path();
            if path.extension().is_some_and(|end| end == "pem") {
                files.push(path);
            }
        }
        files.sort();
        Trust::read(&files).map_err(CertificateError::NotOne)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_certificate_is_not_kept_and_what_was_broken_is_an_error() {
        let state = tempfile::tempdir().unwrap();
        let certificates = Certificates::at(state.path());
        assert!(certificates.trust().unwrap().is_empty());
        let file = state.path().join("x.pem");
        durable::write(&file, b"no certificate", 0o600).unwrap();
        let why = certificates.add(std::slice::from_ref(&file)).unwrap_err().to_string();
        assert!(why.contains("x.pem"), "{why}");
        assert!(certificates.trust().unwrap().is_empty());
        let kept = state.path().join(CERTIFICATES_DIRECTORY);
        durable::create_directory(&kept).unwrap();
        durable::write(&kept.join("0.pem"), b"broken since", 0o600).unwrap();
        assert!(certificates.trust().is_err());
    }
}
