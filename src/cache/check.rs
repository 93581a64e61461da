//! What keeps the store right: everything re-hashed, what is broken taken out of use, what nothing needs removed.
//!
//! Collecting is explicit and goes by roots: the manifests in the store. It does nothing at all while one of them
//! cannot be read: what that one needs is not known. It must never remove a payload of a baseline that is in use; who
//! uses a baseline holds its manifest, and a held manifest cannot be removed.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use nix::fcntl::FlockArg;

use super::embedded;
use super::object::{Broken, Object, Packed};
use super::store::{Imported, Lock, Store, lock};
use crate::digest::Sha256;
use crate::durable;
use crate::error::{Hinted, chain};
use crate::firmware::version;
use crate::wire::id::BaselineId;

/// Why nothing was removed.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The file system.
    #[error("the cache in {}", path.display())]
    Store {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Manifests that cannot be read.
    #[error("nothing was removed: {}", what.join("; "))]
    Malformed {
        /// Each, and why.
        what: Vec<String>,
    },
    /// Something is imported or removed.
    #[error("the cache is in use: an import is under way, or something else removes from it")]
    Busy,
    /// There is no such baseline in the store.
    #[error("there is no imported baseline \"{name}\"")]
    Unknown {
        /// As asked for.
        name: String,
    },
    /// A deployment needs it.
    #[error("baseline {name} is in use by a deployment that runs")]
    InUse {
        /// Its id and version.
        name: String,
    },
}

impl Hinted for CheckError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Store { .. } => "check the file system and its owner".into(),
            Self::Malformed { .. } => "correct or delete these files, then try again".into(),
            Self::Busy => "try again when it is done".into(),
            Self::Unknown { .. } => "carena cache list shows what there is".into(),
            Self::InUse { .. } => "wait for its end, or cancel it".into(),
        })
    }
}

/// What was removed.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Collected {
    /// Payloads of no baseline.
    pub objects: usize,
    /// Imports that were cut.
    pub partials: usize,
    /// Payloads that had been found broken.
    pub broken: usize,
    /// Bytes that are free now.
    pub bytes: u64,
}

/// What was found to be wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// A payload's name, or a manifest's file.
    pub what: String,
    /// Why, in words, and what was done.
    pub why: String,
}

/// What a verification looked at.
#[derive(Debug, Default)]
pub struct Verification {
    /// Payloads, embedded ones too.
    pub objects: usize,
    /// Imported baselines.
    pub baselines: usize,
    /// Bytes of content.
    pub bytes: u64,
    /// All that is wrong.
    pub faults: Vec<Fault>,
}

impl Store {
    /// Removes what no baseline needs.
    ///
    /// # Errors
    /// [`CheckError`]; nothing was removed then, unless the file system failed half-way.
    pub fn collect(&self) -> Result<Collected, CheckError> {
        let _alone = self.alone()?;
        let baselines = self.baselines().map_err(|source| self.failed(source))?;
        let what: Vec<String> = baselines.iter().filter_map(malformed).map(|fault| fault.why).collect();
        if !what.is_empty() {
            return Err(CheckError::Malformed { what });
        }
        let needed: HashSet<Sha256> = baselines
            .iter()
            .filter_map(|imported| imported.baseline.as_ref().ok())
            .flat_map(|baseline| baseline.components.iter().map(|component| component.sha256))
            .collect();
        let mut collected = Collected::default();
        self.remove_all(&needed, &mut collected).map_err(|source| self.failed(source))?;
        Ok(collected)
    }

    fn remove_all(&self, needed: &HashSet<Sha256>, collected: &mut Collected) -> io::Result<()> {
        for object in self.objects()?.iter().filter(|object| !needed.contains(&object.sha256)) {
            durable::remove(&self.object_path(object.sha256))?;
            collected.objects += 1;
            collected.bytes += object.bytes;
        }
        for (path, bytes) in self.partials()? {
            durable::remove(&path)?;
            collected.partials += 1;
            collected.bytes += bytes;
        }
        for (path, bytes) in self.quarantined()? {
            durable::remove(&path)?;
            collected.broken += 1;
            collected.bytes += bytes;
        }
        Ok(())
    }

    /// Removes a baseline, by `ID@VERSION`, or by `ID` its newest; its payloads stay until they are collected. Returns its
    /// id and version.
    ///
    /// # Errors
    /// [`CheckError`].
    pub fn remove(&self, name: &str) -> Result<(String, String), CheckError> {
        let _alone = self.alone()?;
        let (id, wanted) = super::split_name(name);
        let found = self.baselines().map_err(|source| self.failed(source))?.into_iter();
        let mut found: Vec<_> = found
            .filter_map(|imported| Some((place(&imported.path)?, imported.path)))
            .filter(|((of, version), _)| of == id && wanted.is_none_or(|wanted| wanted == version))
            .collect();
        found.sort_by(|((_, a), _), ((_, b), _)| version::compare(a, b));
        let Some((place, path)) = found.pop() else {
            return Err(CheckError::Unknown { name: name.to_owned() });
        };
        // Until it is gone: who asks for it meanwhile is refused.
        let held = File::open(&path).and_then(|file| lock(file, FlockArg::LockExclusiveNonblock));
        let _held = match held {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(CheckError::InUse { name: format!("{}@{}", place.0, place.1) });
            }
            held => held.map_err(|source| self.failed(source))?,
        };
        durable::remove(&path).map_err(|source| self.failed(source))?;
        // Empty ones are no baselines; of those with other versions or files in them the system says no.
        let _ = path.parent().map(std::fs::remove_dir);
        let _ = path.parent().and_then(Path::parent).map(std::fs::remove_dir);
        Ok(place)
    }

    /// Re-hashes every payload and reads every manifest. What is broken is taken out of use. `seen` hears of bytes of
    /// content as they are done.
    ///
    /// # Errors
    /// [`CheckError::Store`] when the store cannot be listed.
    pub fn verify(&self, mut seen: impl FnMut(u64)) -> Result<Verification, CheckError> {
        let failed = |source| self.failed(source);
        let mut verification = Verification::default();
        for (name, packed) in embedded::objects() {
            let verified = || {
                let expected = name.parse().map_err(|_| "its name is no SHA-256".to_owned())?;
                let object = Object::new(Packed::Embedded(packed)).map_err(|error| error.to_string())?;
                let verified = object.verify(expected, |bytes| seen(bytes as u64));
                verified.map(|_| object.size()).map_err(|error| chain(&error))
            };
            match { verified }() {
                Ok(size) => verification.bytes += size,
                Err(why) => verification.faults.push(Fault {
                    what: (*name).to_owned(),
                    why: format!("BUG: an embedded payload is broken: {why}"),
                }),
            }
            verification.objects += 1;
        }
        if !self.root().exists() {
            return Ok(verification);
        }
        let _shared = self.lock_shared().map_err(failed)?;
        for object in self.objects().map_err(failed)? {
            self.verify_object(object.sha256, &mut seen, &mut verification);
        }
        for imported in self.baselines().map_err(failed)? {
            verification.faults.extend(malformed(&imported));
            let components = imported.baseline.iter().flat_map(|baseline| &baseline.components);
            for component in components.filter(|component| !self.contains(component.sha256)) {
                verification.faults.push(Fault {
                    what: imported.path.display().to_string(),
                    why: format!(
                        "the payload {} of its component {} is not there: import it again",
                        component.sha256, component.id
                    ),
                });
            }
            verification.baselines += 1;
        }
        Ok(verification)
    }

    fn verify_object(&self, sha256: Sha256, seen: &mut impl FnMut(u64), verification: &mut Verification) {
        verification.objects += 1;
        let verified = self
            .object(sha256)
            .map_err(|source| Broken::Unreadable { at: 0, source })
            .and_then(|object| object.verify(sha256, |bytes| seen(bytes as u64)).map(|_| object.size()));
        match verified {
            Ok(size) => verification.bytes += size,
            Err(error) => {
                let done = match self.quarantine(sha256) {
                    Ok(()) => "it is out of use now".to_owned(),
                    Err(error) => format!("and it cannot be taken out of use: {error}"),
                };
                let why = format!("broken {}: {done}", chain(&error));
                verification.faults.push(Fault { what: sha256.to_string(), why });
            }
        }
    }

    fn alone(&self) -> Result<Lock, CheckError> {
        match self.lock_alone() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(CheckError::Busy),
            locked => locked.map_err(|source| self.failed(source)),
        }
    }

    fn failed(&self, source: io::Error) -> CheckError {
        CheckError::Store { path: self.root().to_owned(), source }
    }
}

/// The id and version in a manifest's path.
fn place(manifest: &Path) -> Option<(String, String)> {
    let version = manifest.parent()?;
    let name = |path: &Path| Some(path.file_name()?.to_str()?.to_owned());
    Some((name(version.parent()?)?, name(version)?))
}

/// Why a manifest cannot be believed; one in another's place neither.
fn malformed(imported: &Imported) -> Option<Fault> {
    let why = match &imported.baseline {
        Err(error) => chain(error),
        Ok(baseline) => {
            let says = (BaselineId::to_string(&baseline.id), baseline.version.clone());
            if place(&imported.path).as_ref() == Some(&says) {
                return None;
            }
            format!("{}: it says it is {}@{}", imported.path.display(), says.0, says.1)
        }
    };
    Some(Fault { what: imported.path.display().to_string(), why })
}
