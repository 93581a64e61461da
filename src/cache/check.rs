//! What keeps the store right: everything re-hashed, what is broken taken out of use, what nothing needs removed.
//!
//! Collecting is explicit and goes by roots: the manifests in the store. It does nothing at all while one of them
//! cannot be read: what that one needs is not known. It must never remove a payload of a baseline that is in use: who
//! uses a baseline holds its manifest, a deployment whose process died claims it, and neither can be removed.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::FlockArg;
use nix::libc;

use super::embedded;
use super::object::{Broken, Object, Packed};
use super::store::{Imported, Lock, Store, lock, sizes};
use crate::digest::Sha256;
use crate::durable;
use crate::error::{Hinted, chain};
use crate::firmware::baseline::MANIFEST;
use crate::firmware::signature::SIGNATURE;
use crate::firmware::version;
use crate::paths::CACHE_ACCEPTED;
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
    /// A deployment that was cut goes on with it.
    #[error("baseline {name} is needed by deployment {deployment}, which has not ended")]
    Claimed {
        /// Its id and version.
        name: String,
        /// Which.
        deployment: String,
    },
    /// Which deployments have not ended is not known.
    #[error("nothing was removed: whether a deployment needs it is not known: {why}")]
    Unknowable {
        /// Why.
        why: String,
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
            Self::Claimed { .. } => {
                "start carena serve or the same carena deploy again: it goes on, or is closed, then try again"
                    .into()
            }
            Self::Unknowable { .. } => "check the store in the state directory".into(),
        })
    }
}

/// A baseline that a deployment goes on with, which has not ended though its process may be dead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The deployment.
    pub deployment: String,
    /// The baseline's id.
    pub id: String,
    /// Its version.
    pub version: String,
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
            .filter_map(|imported| imported.manifest.as_ref().ok())
            .flat_map(|manifest| manifest.baseline.components.iter().map(|component| component.sha256))
            .collect();
        let mut collected = Collected::default();
        let removed = self.remove_all(&needed, &mut collected);
        removed.and_then(|()| self.clear_folders(&mut collected)).map_err(|source| self.failed(source))?;
        Ok(collected)
    }

    /// Manifests whose writing was cut, and what has become empty.
    fn clear_folders(&self, collected: &mut Collected) -> io::Result<()> {
        for folder in self.baseline_folders()? {
            for (_, bytes) in clear(&folder)? {
                collected.partials += 1;
                collected.bytes += bytes;
            }
            remove_if_empty(&folder);
        }
        Ok(())
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

    /// Removes a baseline, by `ID@VERSION`, or by `ID` its newest, unless `claims` names it; its payloads stay until they
    /// are collected. Returns its id and version.
    ///
    /// # Errors
    /// [`CheckError`].
    pub fn remove(
        &self,
        name: &str,
        claims: impl FnOnce() -> Result<Vec<Claim>, String>,
    ) -> Result<(String, String), CheckError> {
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
        // Asked under the lock: whose process died before it was taken has written its claim.
        let claims = claims().map_err(|why| CheckError::Unknowable { why })?;
        let claim = claims.into_iter().find(|claim| (&claim.id, &claim.version) == (&place.0, &place.1));
        if let Some(Claim { deployment, id, version }) = claim {
            return Err(CheckError::Claimed { name: format!("{id}@{version}"), deployment });
        }
        durable::remove(&path).map_err(|source| self.failed(source))?;
        if let Some(folder) = path.parent() {
            clear(folder).map_err(|source| self.failed(source))?;
            remove_if_empty(folder);
        }
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
            let components = imported.manifest.iter().flat_map(|manifest| &manifest.baseline.components);
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
        let file = match File::open(self.object_path(sha256)) {
            // Another verification has taken it out of use.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => {
                let why = format!("it cannot be opened, and was not looked at: {error}");
                verification.faults.push(Fault { what: sha256.to_string(), why });
                return;
            }
            Ok(file) => Arc::new(file),
        };
        let mut verified = rehash(&file, sha256, seen);
        // A disk may fail once; twice, it does not give this payload out any more.
        if matches!(&verified, Err(error) if is_of_disk(error)) {
            verified = rehash(&file, sha256, seen);
        }
        match verified {
            Ok(size) => verification.bytes += size,
            Err(error) => {
                let why = self.judge(sha256, &file, &error);
                verification.faults.push(Fault { what: sha256.to_string(), why });
            }
        }
    }

    /// Takes a payload out of use if it is what is wrong, not this process or its box. In words.
    fn judge(&self, sha256: Sha256, file: &File, error: &Broken) -> String {
        let words = chain(error);
        if !is_damage(error) && !is_of_disk(error) {
            return format!("it cannot be read, and stays in use: {words}");
        }
        match self.quarantine(sha256, file) {
            Ok(true) => format!("broken {words}: it is out of use now"),
            Ok(false) => format!("broken {words}: another is in its place by now"),
            Err(error) => format!("broken {words}: and it cannot be taken out of use: {error}"),
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

/// Reads all of a payload; the bytes of its content.
fn rehash(file: &Arc<File>, sha256: Sha256, seen: &mut impl FnMut(u64)) -> Result<u64, Broken> {
    let object = Object::new(Packed::Stored(file.clone()));
    let object = object.map_err(|source| Broken::Unreadable { at: 0, source })?;
    object.verify(sha256, |bytes| seen(bytes as u64))?;
    Ok(object.size())
}

/// Its bytes are wrong or missing.
fn is_damage(error: &Broken) -> bool {
    match error {
        Broken::Mismatch(_) => true,
        Broken::Unreadable { source, .. } => {
            matches!(source.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
        }
    }
}

/// The disk does not give its bytes out.
fn is_of_disk(error: &Broken) -> bool {
    matches!(error, Broken::Unreadable { source, .. } if source.raw_os_error() == Some(libc::EIO))
}

/// Removes what a crash leaves of a manifest that is being written ([`durable::write`]), and what vouches for one that is
/// not there. Nobody may be importing.
fn clear(folder: &Path) -> io::Result<Vec<(PathBuf, u64)>> {
    let alone = !folder.join(MANIFEST).exists();
    let cut = |path: &Path| {
        let name = path.file_name().and_then(|name| name.to_str());
        let rest = name.and_then(|name| name.strip_prefix(MANIFEST)?.strip_prefix('.'));
        rest.is_some_and(|rest| rest.ends_with(".new"))
            || alone && name.is_some_and(|name| [SIGNATURE, CACHE_ACCEPTED].contains(&name))
    };
    let left: Vec<_> = sizes(folder)?.into_iter().filter(|(path, _)| cut(path)).collect();
    left.iter().try_for_each(|(path, _)| durable::remove(path))?;
    Ok(left)
}

/// A version's folder, and its baseline's. Empty ones are no baselines; of others the system says no.
fn remove_if_empty(folder: &Path) {
    let _ = std::fs::remove_dir(folder);
    let _ = folder.parent().map(std::fs::remove_dir);
}

/// The id and version in a manifest's path.
fn place(manifest: &Path) -> Option<(String, String)> {
    let version = manifest.parent()?;
    let name = |path: &Path| Some(path.file_name()?.to_str()?.to_owned());
    Some((name(version.parent()?)?, name(version)?))
}

/// Why a manifest cannot be believed; one in another's place neither.
fn malformed(imported: &Imported) -> Option<Fault> {
    let why = match &imported.manifest {
        Err(error) => chain(error),
        Ok(manifest) => {
            let baseline = &manifest.baseline;
            let says = (BaselineId::to_string(&baseline.id), baseline.version.clone());
            if place(&imported.path).as_ref() == Some(&says) {
                return None;
            }
            format!("{}: it says it is {}@{}", imported.path.display(), says.0, says.1)
        }
    };
    Some(Fault { what: imported.path.display().to_string(), why })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unreadable(source: io::Error) -> Broken {
        Broken::Unreadable { at: 0, source }
    }

    #[test]
    fn what_is_wrong_with_the_box_takes_nothing_out_of_use() {
        for kind in [io::ErrorKind::InvalidData, io::ErrorKind::UnexpectedEof] {
            assert!(is_damage(&unreadable(kind.into())), "{kind}");
        }
        for number in [libc::EMFILE, libc::ENOMEM, libc::EACCES] {
            let error = unreadable(io::Error::from_raw_os_error(number));
            assert!(!is_damage(&error) && !is_of_disk(&error), "{error}");
        }
        assert!(is_of_disk(&unreadable(io::Error::from_raw_os_error(libc::EIO))));
        let state = tempfile::tempdir().unwrap();
        let store = Store::at(state.path());
        let sha256 = Sha256::of(b"x");
        let path = store.object_path(sha256);
        durable::create_directory(path.parent().unwrap()).unwrap();
        durable::write(&path, b"x", 0o600).unwrap();
        let (file, many) = (File::open(&path).unwrap(), io::Error::from_raw_os_error(libc::EMFILE));
        let said = store.judge(sha256, &file, &unreadable(many));
        assert!(said.contains("stays in use") && path.exists(), "{said}");
        let said = store.judge(sha256, &file, &unreadable(io::Error::from_raw_os_error(libc::EIO)));
        assert!(said.contains("out of use now") && !path.exists(), "{said}");
    }

    #[test]
    fn a_manifest_whose_writing_was_cut_does_not_keep_its_folder() {
        let state = tempfile::tempdir().unwrap();
        let store = Store::at(state.path());
        let leave = |id: &str| {
            let manifest = store.manifest_path(id, "1");
            let mut cut = manifest.clone().into_os_string();
            cut.push(".4711.new");
            durable::create_directory(manifest.parent().unwrap()).unwrap();
            durable::write(Path::new(&cut), b"id = ", 0o600).unwrap();
            manifest
        };
        leave("cut");
        let collected = store.collect().unwrap();
        assert_eq!((collected.partials, collected.bytes), (1, 5));
        let manifest = leave("whole");
        durable::write(&manifest, b"id = \"whole\"", 0o600).unwrap();
        store.remove("whole@1", || Ok(Vec::new())).unwrap();
        assert!(store.baseline_folders().unwrap().is_empty());
        assert!(!manifest.parent().unwrap().parent().unwrap().exists());
    }

    #[test]
    fn a_baseline_that_is_claimed_or_may_be_stays() {
        let state = tempfile::tempdir().unwrap();
        let store = Store::at(state.path());
        let manifest = store.manifest_path("vendor", "1");
        durable::create_directory(manifest.parent().unwrap()).unwrap();
        durable::write(&manifest, b"id = \"vendor\"", 0o600).unwrap();
        let claim =
            |version: &str| Claim { deployment: "d".into(), id: "vendor".into(), version: version.into() };
        let refused = store.remove("vendor", || Ok(vec![claim("2"), claim("1")])).unwrap_err();
        assert!(matches!(refused, CheckError::Claimed { deployment, .. } if deployment == "d"));
        let refused = store.remove("vendor", || Err("no".into())).unwrap_err();
        assert!(matches!(refused, CheckError::Unknowable { .. }));
        assert!(manifest.exists());
        store.remove("vendor", || Ok(vec![claim("2")])).unwrap();
        assert!(!manifest.exists());
    }
}
