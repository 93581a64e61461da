//! The keys that the operator trusts: public keys of minisign in the state directory, a file each.
//!
//! A file is what `minisign -V -p` reads, named by its key's number. Here they are only added, listed and removed; what
//! they are worth is `firmware::signature`'s. A store with a file that cannot be read is an error: it must never look like
//! one that trusts nobody, or somebody else.

use std::io;
use std::path::{Path, PathBuf};

use crate::durable;
use crate::error::Hinted;
use crate::firmware::signature::{Anchor, NotAKey};
use crate::paths::TRUST_DIRECTORY;

/// Most bytes of a key's file: minisign's comments have 1 KiB at most.
const KEY_FILE_BYTES_MAX: u64 = 4096;

/// Why keys cannot be read, added or removed.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// A file or the directory.
    #[error("{}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It holds no key.
    #[error("{name}")]
    NotAKey {
        /// The file, or the text that was given.
        name: String,
        /// What a key looks like.
        #[source]
        source: NotAKey,
    },
    /// Two keys with one number.
    #[error("another key with the number {number} is trusted already")]
    Another {
        /// The number of both.
        number: String,
    },
    /// There is none of this number.
    #[error("no key {number} is trusted")]
    Unknown {
        /// As asked for.
        number: String,
    },
}

impl Hinted for TrustError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::File { .. } => "check the file and its owner".into(),
            Self::NotAKey { .. } => "name the minisign.pub of whoever signs baselines".into(),
            Self::Another { .. } => {
                "minisign's numbers are random: ask its owner before you remove one for the other".into()
            }
            Self::Unknown { .. } => "carena baseline trust list shows what there is".into(),
        })
    }
}

/// The trusted keys of a state directory. It need not be there yet.
#[derive(Debug, Clone)]
pub struct Trust {
    directory: PathBuf,
}

impl Trust {
    /// Those of a state directory.
    pub fn at(state: &Path) -> Self {
        Self { directory: state.join(TRUST_DIRECTORY) }
    }

    /// All of them, by number.
    ///
    /// # Errors
    /// [`TrustError`]; one that cannot be read hides no other.
    pub fn anchors(&self) -> Result<Vec<Anchor>, TrustError> {
        let failed = |source| TrustError::File { path: self.directory.clone(), source };
        let entries = match std::fs::read_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed)?,
        };
        let mut anchors = Vec::new();
        for entry in entries {
            let path = entry.map_err(failed)?.path();
            if path.extension().is_some_and(|extension| extension == "pub") {
                anchors.push(read(&path)?);
            }
        }
        anchors.sort_by(|a, b| a.number().cmp(b.number()));
        Ok(anchors)
    }

    /// Trusts a key from now on. Whether it is a new one.
    ///
    /// # Errors
    /// [`TrustError`].
    pub fn add(&self, anchor: Anchor) -> Result<(Anchor, bool), TrustError> {
        let number = anchor.number();
        if let Some(there) = self.anchors()?.into_iter().find(|there| there.number() == number) {
            let same = there.key() == anchor.key();
            return if same {
                Ok((there, false))
            } else {
                Err(TrustError::Another { number: number.into() })
            };
        }
        let path = self.path(number);
        let comment = if anchor.comment().is_empty() { number } else { anchor.comment() };
        let text = format!("untrusted comment: {comment}\n{}\n", anchor.key());
        durable::create_directory(&self.directory)
            .and_then(|()| durable::write(&path, text.as_bytes(), 0o644))
            .map_err(|source| TrustError::File { path, source })?;
        Ok((anchor, true))
    }

    /// Trusts a key no more.
    ///
    /// # Errors
    /// [`TrustError`].
    pub fn remove(&self, number: &str) -> Result<Anchor, TrustError> {
        let wanted = number.to_ascii_uppercase();
        let found = self.anchors()?.into_iter().find(|anchor| anchor.number() == wanted);
        let anchor = found.ok_or_else(|| TrustError::Unknown { number: number.to_owned() })?;
        let path = self.path(anchor.number());
        durable::remove(&path).map_err(|source| TrustError::File { path, source })?;
        Ok(anchor)
    }

    fn path(&self, number: &str) -> PathBuf {
        self.directory.join(format!("{number}.pub"))
    }
}

/// The key in a file.
///
/// # Errors
/// [`TrustError`].
pub fn read(path: &Path) -> Result<Anchor, TrustError> {
    let failed = |source| TrustError::File { path: path.to_owned(), source };
    let name = path.display().to_string();
    if std::fs::metadata(path).map_err(failed)?.len() > KEY_FILE_BYTES_MAX {
        return Err(TrustError::NotAKey { name, source: NotAKey });
    }
    let text = String::from_utf8_lossy(&std::fs::read(path).map_err(failed)?).into_owned();
    Anchor::parse(&text).map_err(|source| TrustError::NotAKey { name, source })
}
