//! Why something was not imported, and what to do about it.

use std::io;
use std::path::PathBuf;

use super::CacheError;
use super::seek_table::CONTENT_BYTES_MAX;
use super::store::Store;
use crate::digest::Mismatch;
use crate::error::Hinted;
use crate::firmware::baseline::MANIFEST;
use crate::firmware::formats::FormatError;

/// Why something was not imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The source cannot be read, or not any more.
    #[error("reading {}", path.display())]
    Source {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The cache cannot be written.
    #[error("writing the cache in {}", path.display())]
    Store {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The source is empty, or is no file.
    #[error("{} is no file with content", path.display())]
    Nothing {
        /// Which.
        path: PathBuf,
    },
    /// The source is shorter or longer than its manifest says.
    #[error("{} has {found} bytes, its manifest says {expected}", path.display())]
    Length {
        /// Which.
        path: PathBuf,
        /// Bytes that were read.
        found: u64,
        /// Bytes there should be.
        expected: u64,
    },
    /// The source is another content than its manifest says.
    #[error("{}", path.display())]
    Content {
        /// Which.
        path: PathBuf,
        /// Both digests.
        #[source]
        source: Mismatch,
    },
    /// The source is larger than any payload may be.
    #[error("{} has more than {CONTENT_BYTES_MAX} bytes", path.display())]
    TooLarge {
        /// Which.
        path: PathBuf,
    },
    /// The file system has no room.
    #[error("{needed} bytes are needed in {}, {free} are free", path.display())]
    Space {
        /// The store's directory.
        path: PathBuf,
        /// Bytes that may be needed, with what must stay free.
        needed: u64,
        /// Bytes there are.
        free: u64,
    },
    /// The cache may not grow so far.
    #[error("{needed} bytes are needed, the cache has {used} of the {max} it may have")]
    Limit {
        /// Bytes that may be needed.
        needed: u64,
        /// Bytes in use.
        used: u64,
        /// The limit.
        max: u64,
    },
    /// A baseline in one file is not as it was written.
    #[error("{}, byte {at}: {why}", path.display())]
    Damaged {
        /// The file, or the member in it.
        path: PathBuf,
        /// Where.
        at: u64,
        /// What is wrong.
        why: String,
    },
    /// A directory or image without a baseline.
    #[error("{} holds no baseline: no {MANIFEST} in it, nor in a folder below, nor a baseline in one file", path.display())]
    NoBaseline {
        /// Which.
        path: PathBuf,
    },
    /// An image that cannot be read.
    #[error(transparent)]
    Image(FormatError),
    /// The baseline's manifest.
    #[error(transparent)]
    Manifest(#[from] CacheError),
    /// A package that is not what its checksums and signatures say.
    #[error(transparent)]
    Package(#[from] FormatError),
    /// A version that cannot be a directory's name.
    #[error(
        "baseline {id}: version \"{version}\" cannot be kept: letters, digits and . _ + - only, 64 at most"
    )]
    Version {
        /// The baseline.
        id: String,
        /// Its version.
        version: String,
    },
    /// The same id and version with another manifest is there.
    #[error("baseline {id}@{version} is in the cache with another manifest")]
    Conflict {
        /// The baseline.
        id: String,
        /// Its version.
        version: String,
    },
}

impl Hinted for ImportError {
    fn hint(&self) -> Option<String> {
        let again = "nothing of it is in the cache; the next import goes on where this one stopped";
        Some(match self {
            Self::Source { .. } => again.into(),
            Self::Store { source, .. } if is_full(source) => {
                format!("make room, with carena cache gc or elsewhere, and import again; {again}")
            }
            Self::Store { .. } => format!("check the file system and its owner; {again}"),
            Self::Damaged { .. } => {
                "the file is damaged; copy it again from where it was exported, nothing of its baseline is in the cache"
                    .into()
            }
            Self::NoBaseline { .. } => format!(
                "name a directory with a {MANIFEST}, a file of carena baseline export, an ISO image with one of them, or \
                 firmware files one by one"
            ),
            Self::Image(_) => "get the image again, or mount it and name the directory".into(),
            Self::Nothing { .. } => {
                format!("name a directory with a {MANIFEST}, a file, or - for standard input")
            }
            Self::TooLarge { .. } => "import its parts one by one".into(),
            Self::Length { .. } => format!("get the whole file and import again; {again}"),
            Self::Content { .. } => {
                "the file is damaged or another one; get it again, nothing of it is in the cache".into()
            }
            Self::Space { .. } => "make room, with carena cache gc or elsewhere; nothing was written".into(),
            Self::Limit { .. } => {
                "remove what is not needed with carena cache remove and gc, or raise --cache-max; nothing was \
                 written"
                    .into()
            }
            Self::Manifest(error) => return error.hint(),
            Self::Package(error) => return error.hint(),
            Self::Version { .. } => "correct the version in its manifest".into(),
            Self::Conflict { id, version } => {
                format!("give the new one another version, or first: carena cache remove {id}@{version}")
            }
        })
    }
}

/// Whether there is too little room, or none.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// The cache cannot be written.
pub fn unwritable(store: &Store, source: io::Error) -> ImportError {
    ImportError::Store { path: store.root().to_owned(), source }
}
