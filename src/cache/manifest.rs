//! A baseline's manifest as its bytes were read, and what lies beside it to vouch for it.
//!
//! The bytes that are parsed are the bytes that are judged and hashed: nothing is read twice.

use std::io::{self, Read as _};
use std::path::Path;

use super::CacheError;
use super::tree::Tree;
use crate::digest::Sha256;
use crate::firmware::baseline::{Baseline, MANIFEST, MANIFEST_BYTES_MAX};
use crate::firmware::signature::{self, Anchor, Distrust, SIGNATURE, SIGNATURE_BYTES_MAX, Standing};

/// A manifest.
#[derive(Debug)]
pub struct Manifest {
    /// What it says.
    pub baseline: Baseline,
    /// Its bytes.
    pub text: String,
    /// The signature's file, where there is one.
    pub signature: Option<Vec<u8>>,
}

impl Manifest {
    /// That of a directory.
    ///
    /// # Errors
    /// [`CacheError`].
    pub fn in_directory(directory: &Path) -> Result<Self, CacheError> {
        Self::of(&Tree::Directory(directory.to_owned()))
    }

    /// That of a directory or of an image's folder.
    ///
    /// # Errors
    /// [`CacheError`].
    pub fn of(tree: &Tree) -> Result<Self, CacheError> {
        let path = tree.path(MANIFEST);
        let missing = || CacheError::File { path: path.clone(), source: io::ErrorKind::NotFound.into() };
        let text = bounded(tree, MANIFEST, MANIFEST_BYTES_MAX)?.ok_or_else(missing)?;
        Self::parse(text, bounded(tree, SIGNATURE, SIGNATURE_BYTES_MAX)?, &path)
    }

    /// From its bytes; `path` stands for the file in errors.
    ///
    /// # Errors
    /// [`CacheError`].
    pub fn parse(bytes: Vec<u8>, signature: Option<Vec<u8>>, path: &Path) -> Result<Self, CacheError> {
        let text = String::from_utf8(bytes).map_err(|error| {
            let source = io::Error::new(io::ErrorKind::InvalidData, error.utf8_error());
            CacheError::File { path: path.to_owned(), source }
        })?;
        let baseline = Baseline::parse(&text, &path.display().to_string())?;
        Ok(Self { baseline, text, signature })
    }

    /// The digest of its bytes.
    pub fn sha256(&self) -> Sha256 {
        Sha256::of(self.text.as_bytes())
    }

    /// `ID@VERSION`.
    pub fn name(&self) -> String {
        format!("{}@{}", self.baseline.id, self.baseline.version)
    }

    /// Who signed it, if one of `anchors` did.
    ///
    /// # Errors
    /// [`Distrust`].
    pub fn judge(&self, anchors: &[Anchor]) -> Result<Standing, Distrust> {
        signature::judge(anchors, self.text.as_bytes(), self.signature.as_deref())
    }
}

/// A small file, whole; none when it is not there.
fn bounded(tree: &Tree, name: &str, max: u64) -> Result<Option<Vec<u8>>, CacheError> {
    let path = tree.path(name);
    let failed = |source| CacheError::File { path: path.clone(), source };
    let Some((mut source, size)) = tree.open(name).map_err(failed)? else { return Ok(None) };
    if size > max {
        return Err(CacheError::TooLarge { path: path.clone(), found: size, max });
    }
    let mut bytes = Vec::new();
    source.by_ref().take(max).read_to_end(&mut bytes).map_err(failed)?;
    Ok(Some(bytes))
}
