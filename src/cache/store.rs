//! The cache's part of the state directory: packed payloads by their content's SHA-256, and imported baselines.
//!
//! A payload or a manifest appears under its name whole and durable, or not at all; what is not whole yet is elsewhere.
//! Locks belong to the kernel and end with their process: imports share one, removing takes it alone, and who uses
//! a baseline holds its manifest. Nothing is made before the first import. It must never serve what `verify` found broken.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::{Flock, FlockArg};

use super::CacheError;
use super::certificates::Certificates;
use super::manifest::Manifest;
use super::object::Object;
use super::trust::Trust;
use crate::digest::Sha256;
use crate::durable;
use crate::firmware::baseline::MANIFEST;
use crate::paths::{
    CACHE_ACCEPTED, CACHE_BASELINES, CACHE_DIRECTORY, CACHE_LOCK, CACHE_OBJECTS, CACHE_PARTIAL,
    CACHE_QUARANTINE,
};

/// A lock on a file, until it is dropped or its process ends.
pub type Lock = Flock<File>;

/// A packed payload in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// Its name.
    pub sha256: Sha256,
    /// Bytes it takes.
    pub bytes: u64,
}

/// An imported baseline.
#[derive(Debug)]
pub struct Imported {
    /// Its manifest's file.
    pub path: PathBuf,
    /// What it says and who vouches for it, or why it cannot be used.
    pub manifest: Result<Manifest, CacheError>,
}

/// The store in a state directory. It need not be there yet.
#[derive(Debug, Clone)]
pub struct Store {
    root: Arc<Path>,
}

impl Store {
    /// That of a state directory.
    pub fn at(state: &Path) -> Self {
        Self { root: state.join(CACHE_DIRECTORY).into() }
    }

    /// Its directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The keys that the operator of this state directory trusts.
    pub fn trust(&self) -> Trust {
        Trust::at(self.root.parent().unwrap_or(Path::new("")))
    }

    /// The certificates that cabinets must lead to.
    pub fn certificates(&self) -> Certificates {
        Certificates::at(self.root.parent().unwrap_or(Path::new("")))
    }

    /// Whether the operator has accepted the manifest at `path`, with this digest, without a signature.
    pub fn accepts(&self, path: &Path, sha256: Sha256) -> bool {
        let word = std::fs::read_to_string(path.with_file_name(CACHE_ACCEPTED));
        word.is_ok_and(|word| word.trim_end() == sha256.to_string())
    }

    /// Where a payload is, or would be.
    pub fn object_path(&self, sha256: Sha256) -> PathBuf {
        let name = sha256.to_string();
        let (folder, rest) = name.split_at(2);
        self.root.join(CACHE_OBJECTS).join(folder).join(format!("{rest}.zst"))
    }

    /// Whether a payload is there.
    pub fn contains(&self, sha256: Sha256) -> bool {
        self.object_path(sha256).exists()
    }

    /// Opens a payload.
    ///
    /// # Errors
    /// As [`Object::open`].
    pub fn object(&self, sha256: Sha256) -> io::Result<Object> {
        Object::open(&self.object_path(sha256))
    }

    /// All payloads, by name.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn objects(&self) -> io::Result<Vec<Stored>> {
        let mut objects = Vec::new();
        for folder in list(&self.root.join(CACHE_OBJECTS))? {
            for path in list(&folder)? {
                let name = |path: &Path| path.file_name().and_then(|name| name.to_str()).map(str::to_owned);
                let (Some(first), Some(rest)) = (name(&folder), name(&path)) else { continue };
                let Some(Ok(sha256)) = rest.strip_suffix(".zst").map(|rest| format!("{first}{rest}").parse())
                else {
                    continue;
                };
                let Some(bytes) = size(&path)? else { continue };
                objects.push(Stored { sha256, bytes });
            }
        }
        Ok(objects)
    }

    /// What is not whole yet: files and their bytes.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn partials(&self) -> io::Result<Vec<(PathBuf, u64)>> {
        sizes(&self.root.join(CACHE_PARTIAL))
    }

    /// What was found to be broken: files and their bytes.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn quarantined(&self) -> io::Result<Vec<(PathBuf, u64)>> {
        sizes(&self.root.join(CACHE_QUARANTINE))
    }

    /// Bytes that payloads take, whole or not.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn used(&self) -> io::Result<u64> {
        let objects: u64 = self.objects()?.iter().map(|object| object.bytes).sum();
        let others = self.partials()?.into_iter().chain(self.quarantined()?);
        Ok(objects + others.map(|(_, bytes)| bytes).sum::<u64>())
    }

    /// All imported baselines.
    ///
    /// # Errors
    /// Those of the file system; a manifest that cannot be used is in the list.
    pub fn baselines(&self) -> io::Result<Vec<Imported>> {
        let mut baselines = Vec::new();
        for folder in self.baseline_folders()? {
            let path = folder.join(MANIFEST);
            // A baseline that is being imported or removed is none.
            if path.exists() {
                baselines.push(Imported { manifest: Manifest::in_directory(&folder), path });
            }
        }
        Ok(baselines)
    }

    /// The folder of each version of each baseline, those without a manifest too.
    pub(super) fn baseline_folders(&self) -> io::Result<Vec<PathBuf>> {
        let versions = list(&self.root.join(CACHE_BASELINES))?.into_iter().map(|id| list(&id));
        Ok(versions.collect::<io::Result<Vec<_>>>()?.into_iter().flatten().collect())
    }

    /// Where a baseline's manifest is, or would be.
    pub fn manifest_path(&self, id: &str, version: &str) -> PathBuf {
        self.root.join(CACHE_BASELINES).join(id).join(version).join(MANIFEST)
    }

    /// Keeps a baseline from being removed, for as long as the lock lives.
    ///
    /// # Errors
    /// Those of the file system; "would block" while it is being removed.
    pub fn hold(&self, manifest: &Path) -> io::Result<Lock> {
        loop {
            let held = lock(File::open(manifest)?, FlockArg::LockSharedNonblock)?;
            // Between the two it may have been removed, and another imported.
            if is_at(&held, manifest)? {
                return Ok(held);
            }
        }
    }

    /// Shared with other imports; waits for who removes.
    ///
    /// # Errors
    /// Those of the file system.
    pub(super) fn lock_shared(&self) -> io::Result<Lock> {
        lock(self.lock_file()?, FlockArg::LockShared)
    }

    /// Alone.
    ///
    /// # Errors
    /// "Would block" while anything is imported or removed.
    pub(super) fn lock_alone(&self) -> io::Result<Lock> {
        lock(self.lock_file()?, FlockArg::LockExclusiveNonblock)
    }

    fn lock_file(&self) -> io::Result<File> {
        durable::create_directory(&self.root)?;
        let path = self.root.join(CACHE_LOCK);
        OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)
    }

    /// Takes the broken payload out of use that was read from `file`, unless another is in its place by now. Whether it
    /// did.
    ///
    /// # Errors
    /// Those of the file system.
    pub(super) fn quarantine(&self, sha256: Sha256, file: &File) -> io::Result<bool> {
        let folder = self.root.join(CACHE_QUARANTINE);
        durable::create_directory(&folder)?;
        let path = self.object_path(sha256);
        let same = is_at(file, &path)?;
        if same {
            durable::move_file(&path, &folder.join(format!("{sha256}.zst")))?;
        }
        Ok(same)
    }
}

/// Locks an open file.
pub(super) fn lock(file: File, how: FlockArg) -> io::Result<Lock> {
    Flock::lock(file, how).map_err(|(_, error)| error.into())
}

/// Whether an open file is the one that has this name now.
pub(super) fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        there => there.map(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino())),
    }
}

/// What is in a directory, sorted; nothing when there is none.
fn list(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

/// The files of a directory, and their bytes.
pub(super) fn sizes(directory: &Path) -> io::Result<Vec<(PathBuf, u64)>> {
    let sized = |path: PathBuf| Ok(size(&path)?.map(|bytes| (path, bytes)));
    list(directory)?.into_iter().filter_map(|path| sized(path).transpose()).collect()
}

/// A file's bytes; none of one that another import has published or removed since it was listed.
fn size(path: &Path) -> io::Result<Option<u64>> {
    match path.metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        metadata => Ok(Some(metadata?.len())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_vanish_while_they_are_listed_are_no_error() {
        let state = tempfile::tempdir().unwrap();
        let store = Store::at(state.path());
        let sha256 = Sha256::of(b"x");
        let path = store.object_path(sha256);
        // A name in the list whose file is gone when it is looked at.
        for gone in [path.clone(), store.root.join(CACHE_PARTIAL).join("x")] {
            std::fs::create_dir_all(gone.parent().unwrap()).unwrap();
            std::os::unix::fs::symlink("gone", &gone).unwrap();
        }
        assert_eq!(
            (store.objects().unwrap(), store.partials().unwrap(), store.used().unwrap()),
            (vec![], vec![], 0)
        );
        std::fs::remove_file(&path).unwrap();
        durable::write(&path, b"seven b", 0o600).unwrap();
        assert_eq!(store.used().unwrap(), 7);
    }

    #[test]
    fn only_the_file_that_was_read_is_taken_out_of_use() {
        let state = tempfile::tempdir().unwrap();
        let store = Store::at(state.path());
        let sha256 = Sha256::of(b"x");
        let path = store.object_path(sha256);
        durable::create_directory(path.parent().unwrap()).unwrap();
        durable::write(&path, b"broken", 0o600).unwrap();
        let read = File::open(&path).unwrap();
        // Meanwhile it was imported again.
        durable::write(&path, b"right", 0o600).unwrap();
        assert!(!store.quarantine(sha256, &read).unwrap());
        assert_eq!(std::fs::read(&path).unwrap(), b"right");
        assert!(store.quarantine(sha256, &File::open(&path).unwrap()).unwrap());
        assert!(!path.exists() && store.quarantined().unwrap().len() == 1);
        assert!(!store.quarantine(sha256, &read).unwrap());
    }
}
