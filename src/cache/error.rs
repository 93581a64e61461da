//! Why a baseline cannot be had, and what to do about it.

use std::path::PathBuf;

use super::certificates::CertificateError;
use super::trust::TrustError;
use crate::digest::Sha256;
use crate::error::Hinted;
use crate::firmware::baseline::{BaselineError, MANIFEST};
use crate::firmware::formats::FormatError;
use crate::firmware::signature::Distrust;

/// Why a baseline cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// Neither embedded nor imported, and no directory.
    #[error("there is no baseline \"{name}\"")]
    Unknown {
        /// As asked for.
        name: String,
        /// Those there are.
        known: Vec<String>,
    },
    /// A file cannot be read.
    #[error("{}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A payload's size is another one.
    #[error("payload {} has {found} bytes, its manifest says {expected}", path.display())]
    Size {
        /// The file.
        path: PathBuf,
        /// Bytes it has.
        found: u64,
        /// Bytes it should have.
        expected: u64,
    },
    /// A manifest or a signature is larger than any may be.
    #[error("{} has {found} bytes, it may have {max}", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Bytes it has.
        found: u64,
        /// Bytes it may have.
        max: u64,
    },
    /// The manifest.
    #[error(transparent)]
    Manifest(#[from] BaselineError),
    /// Nobody who is trusted has signed it.
    #[error("baseline {name} is refused")]
    Untrusted {
        /// Its id and version, or where it is.
        name: String,
        /// Why.
        #[source]
        source: Distrust,
    },
    /// Whose signatures count is not known.
    #[error("which keys are trusted is not known")]
    Trust(#[from] TrustError),
    /// It is not the one any more that the deployment began with.
    #[error(
        "baseline {name} is another one than the deployment began with: its manifest has SHA-256 {found}, it was {expected}"
    )]
    Changed {
        /// Its id and version, or where it is.
        name: String,
        /// The manifest's digest when it began.
        expected: Sha256,
        /// The manifest's digest now.
        found: Sha256,
    },
    /// A payload of an imported baseline is not in the store.
    #[error("baseline {baseline}: the payload {sha256} of {component} is not in the cache")]
    Missing {
        /// The baseline.
        baseline: String,
        /// The component.
        component: String,
        /// The payload.
        sha256: Sha256,
        /// Why it cannot be opened.
        #[source]
        source: std::io::Error,
    },
    /// A cabinet is damaged, or not signed as the kept certificates ask.
    #[error(transparent)]
    Package(#[from] FormatError),
    /// Which certificates cabinets must lead to is not known.
    #[error("which certificates are kept is not known")]
    Certificates(#[from] CertificateError),
    /// What read the cache panicked.
    #[error("BUG: reading the cache ended early")]
    Broken,
    /// The binary's own cache is broken.
    #[error("BUG: the embedded payload {name} is broken")]
    Embedded {
        /// Its name.
        name: String,
    },
}

impl Hinted for CacheError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Unknown { known, .. } => {
                Some(format!("name one of {} or a directory with a {MANIFEST}", known.join(", ")))
            }
            Self::File { .. } | Self::Size { .. } | Self::TooLarge { .. } => {
                Some("put the missing or changed file back; no node was touched".into())
            }
            Self::Missing { .. } => Some(
                "import the baseline again: what is there is not copied again; no node was touched".into(),
            ),
            Self::Manifest(error) => error.hint(),
            Self::Untrusted { source, .. } => Some(source.hint()),
            Self::Trust(error) => error.hint(),
            Self::Package(error) => error.hint(),
            Self::Certificates(error) => error.hint(),
            Self::Changed { .. } => Some(
                "put the one back that it began with, or start a new deployment; nothing more is installed"
                    .into(),
            ),
            Self::Broken | Self::Embedded { .. } => None,
        }
    }
}
