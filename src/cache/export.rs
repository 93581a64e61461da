//! A baseline out of the cache as one file ([`super::container`]), to be carried to another box.
//!
//! Every payload is verified before the first byte is written, and the file appears whole or not at all. Whether it is
//! signed is not asked here: whoever imports it asks.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use super::container::{BLOCK, SUMS, header, object_name, padding};
use super::object::{Broken, Object, Packed};
use super::{Cache, CacheError, Manifest, Place};
use crate::digest::{Hasher, Sha256};
use crate::durable;
use crate::error::Hinted;
use crate::firmware::baseline::MANIFEST;
use crate::firmware::signature::SIGNATURE;

/// Bytes that are copied at once.
const CHUNK_BYTES: usize = 256 * 1024;

/// Why a baseline was not exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// It cannot be had.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// It is a directory.
    #[error("{} is a directory, not a baseline in the cache", path.display())]
    Directory {
        /// Which.
        path: PathBuf,
    },
    /// A payload is damaged.
    #[error("payload {sha256} of component {component}")]
    Broken {
        /// The payload.
        sha256: Sha256,
        /// The component.
        component: String,
        /// Why.
        #[source]
        source: Box<Broken>,
    },
    /// The file cannot be written.
    #[error("writing {}", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Hinted for ExportError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Cache(error) => error.hint(),
            Self::Directory { .. } => {
                Some("carena cache import it first, or copy the directory itself".into())
            }
            Self::Broken { .. } => Some("carena cache verify, then import the baseline again".into()),
            Self::Write { .. } => Some("check the place and its room; nothing is there now".into()),
        }
    }
}

/// What was exported.
#[derive(Debug)]
pub struct Exported {
    /// The baseline.
    pub manifest: Manifest,
    /// Where it is in the cache.
    pub place: Place,
    /// Bytes of the file.
    pub bytes: u64,
    /// How many payloads are in it.
    pub payloads: usize,
}

/// A payload to be written: its name, its packed bytes, how many there are.
struct Member {
    sha256: Sha256,
    packed: Object,
    bytes: u64,
    sum: Sha256,
}

impl Cache {
    /// Writes the baseline called `name` to the file `to`, in place of what is there. `told` hears of bytes as they are
    /// done: of content when it is verified.
    ///
    /// # Errors
    /// [`ExportError`]; at `to` is then what was there before.
    pub fn export(&self, name: &str, to: &Path, mut told: impl FnMut(u64)) -> Result<Exported, ExportError> {
        let (manifest, place) = self.find(name)?;
        // Not removed as long as it is read.
        let _held = match (&place, &self.store) {
            (Place::Stored(path), Some(store)) => {
                let failed = |source| CacheError::File { path: path.clone(), source };
                Some(store.hold(path).map_err(failed)?)
            }
            (Place::Directory(path), _) => return Err(ExportError::Directory { path: path.clone() }),
            _ => None,
        };
        let members = self.members(&manifest, &mut told)?;
        let failed = |source| ExportError::Write { path: to.to_owned(), source };
        let mut temporary = to.as_os_str().to_owned();
        temporary.push(format!(".{}.new", std::process::id()));
        let temporary = Path::new(&temporary);
        // What is there under this name, a link perhaps, is not ours: it is neither followed nor removed.
        let file = OpenOptions::new().write(true).create_new(true).open(temporary);
        let file = file.map_err(|source| ExportError::Write { path: temporary.to_owned(), source })?;
        let written = write(file, &manifest, &members);
        let published = written.and_then(|(file, bytes)| {
            durable::publish(&file, temporary, to)?;
            Ok(bytes)
        });
        if published.is_err() {
            let _ = std::fs::remove_file(temporary);
        }
        let bytes = published.map_err(failed)?;
        Ok(Exported { manifest, place, bytes, payloads: members.len() })
    }

    /// Every payload once, verified.
    fn members(&self, manifest: &Manifest, told: &mut impl FnMut(u64)) -> Result<Vec<Member>, ExportError> {
        let (mut members, mut names) = (Vec::new(), BTreeSet::new());
        for component in manifest.baseline.components.iter().filter(|one| names.insert(one.sha256)) {
            let sha256 = component.sha256;
            let broken = |source: Broken| ExportError::Broken {
                sha256,
                component: component.id.to_string(),
                source: Box::new(source),
            };
            let unreadable = |source| broken(Broken::Unreadable { at: 0, source });
            let packed = self.object(sha256).map_err(unreadable)?;
            packed.verify(sha256, |bytes| told(bytes as u64)).map_err(broken)?;
            let mut hasher = Hasher::new();
            let bytes = packed.packed().copy(|chunk| {
                hasher.update(chunk);
                Ok(())
            });
            let bytes = bytes.map_err(unreadable)?;
            members.push(Member { sha256, packed, bytes, sum: hasher.finish() });
        }
        Ok(members)
    }
}

fn write(file: File, manifest: &Manifest, members: &[Member]) -> io::Result<(File, u64)> {
    let mut archive = Archive { file, bytes: 0 };
    let small = [(MANIFEST, Some(manifest.text.as_bytes())), (SIGNATURE, manifest.signature.as_deref())];
    let mut sums = String::new();
    for (name, bytes) in small {
        let Some(bytes) = bytes else { continue };
        archive.member(name, bytes)?;
        sums.push_str(&format!("{}  {name}\n", Sha256::of(bytes)));
    }
    members.iter().for_each(|one| sums.push_str(&format!("{}  {}\n", one.sum, object_name(one.sha256))));
    archive.member(SUMS, sums.as_bytes())?;
    for member in members {
        archive.push(&header(&object_name(member.sha256), member.bytes))?;
        let mut hasher = Hasher::new();
        let bytes = member.packed.packed().copy(|chunk| {
            hasher.update(chunk);
            archive.push(chunk)
        })?;
        // Changed while it was copied: what the digests say is what was verified.
        if bytes != member.bytes || hasher.finish() != member.sum {
            return Err(io::Error::other(format!("payload {} has changed meanwhile", member.sha256)));
        }
        archive.zeros(padding(bytes))?;
    }
    archive.zeros(2 * BLOCK as u64)?;
    Ok((archive.file, archive.bytes))
}

struct Archive {
    file: File,
    bytes: u64,
}

impl Archive {
    fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.bytes += bytes.len() as u64;
        self.file.write_all(bytes)
    }

    fn zeros(&mut self, count: u64) -> io::Result<()> {
        self.push(&vec![0; usize::try_from(count).unwrap_or_default()])
    }

    fn member(&mut self, name: &str, content: &[u8]) -> io::Result<()> {
        let size = content.len() as u64;
        self.push(&header(name, size))?;
        self.push(content)?;
        self.zeros(padding(size))
    }
}

impl Packed {
    /// Gives out all packed bytes, the seek table too, piece by piece. How many there were.
    fn copy(&self, mut push: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<u64> {
        let all = self.size()?;
        let (mut at, mut chunk) = (0, vec![0; CHUNK_BYTES]);
        while at < all {
            let length = usize::try_from(all - at).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
            let into = chunk.get_mut(..length).unwrap_or_default();
            self.read_exact_at(at, into)?;
            push(into)?;
            at += length as u64;
        }
        Ok(all)
    }
}
