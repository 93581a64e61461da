//! Where payloads come from: embedded in the binary, imported into the store, or files in a directory; one view, served
//! over HTTPS with ranges. A payload is named by the SHA-256 of its content; the engine checks it before use, so
//! nothing here has to be trusted.
//!
//! Embedded and stored payloads are packed alike ([`seek_table`]): zstd frames that can be unpacked alone. [`store`] is the
//! layout on disk, [`import`] brings in, [`check`] verifies and removes, [`serve`] gives out. This module must never make
//! start-up wait: nothing is read before a baseline is asked for.

pub mod certificates;
pub mod check;
mod coding;
pub mod compose;
pub mod container;
mod content;
mod embedded;
mod error;
pub mod export;
pub mod foreign;
mod frames;
pub mod import;
mod import_container;
mod import_error;
pub mod manifest;
pub mod object;
mod open;
pub mod pace;
mod pack;
mod packed;
mod partial;
pub mod range;
mod reader;
mod room;
mod seek_table;
pub mod serve;
pub mod sources;
pub mod store;
pub mod tree;
pub mod trust;

use std::io;
use std::path::{Path, PathBuf};

use crate::digest::Sha256;
use crate::error::explain;
use crate::firmware::baseline::MANIFEST;
use crate::firmware::signature::{Standing, Unsigned};
use crate::firmware::version;

use object::{Object, Packed};

pub use error::CacheError;
pub use import_error::ImportError;
pub use manifest::Manifest;
pub use open::OpenBaseline;
pub use pace::Pace;
pub use serve::Payloads;
pub use store::Store;
pub use trust::Trust;

/// Where a baseline is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In the binary.
    Embedded,
    /// In the store, with this manifest.
    Stored(PathBuf),
    /// In a directory.
    Directory(PathBuf),
}

/// All baselines.
#[derive(Debug, Clone, Default)]
pub struct Cache {
    store: Option<Store>,
}

impl Cache {
    /// What the binary carries, and directories; nothing is imported.
    pub fn embedded() -> Self {
        Self { store: None }
    }

    /// What the binary carries, what is imported into a state directory, and directories.
    pub fn at(state: &Path) -> Self {
        Self { store: Some(Store::at(state)) }
    }

    /// The keys whose signatures count; none where nothing can be imported.
    pub fn trust(&self) -> Option<Trust> {
        self.store.as_ref().map(Store::trust)
    }

    /// Every version of every baseline, embedded ones first, then by id, newest first; manifests that cannot be read are
    /// left out.
    pub fn all(&self) -> Vec<(Manifest, Place)> {
        let parse = |(folder, text): &(&str, &str)| {
            let path = Path::new(folder).join(MANIFEST);
            Manifest::parse(text.as_bytes().to_vec(), None, &path).ok()
        };
        let embedded =
            embedded::manifests().iter().filter_map(parse).map(|manifest| (manifest, Place::Embedded));
        let stored = self.store.iter().filter_map(|store| store.baselines().ok()).flatten();
        let stored =
            stored.filter_map(|imported| Some((imported.manifest.ok()?, Place::Stored(imported.path))));
        let mut stored: Vec<_> = stored.collect();
        stored.sort_by(|(a, _), (b, _)| {
            let (a, b) = (&a.baseline, &b.baseline);
            a.id.cmp(&b.id).then_with(|| version::compare(&b.version, &a.version))
        });
        embedded.chain(stored).collect()
    }

    /// A payload as it is packed: the binary's own, or the store's.
    fn object(&self, sha256: Sha256) -> io::Result<Object> {
        match (embedded::object(sha256), &self.store) {
            (Some(bytes), _) => Object::new(Packed::Embedded(bytes)),
            (None, Some(store)) => store.object(sha256),
            (None, None) => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// Whether a baseline may be used, and why.
    ///
    /// # Errors
    /// [`CacheError::Untrusted`], [`CacheError::Trust`].
    pub fn standing(
        &self,
        manifest: &Manifest,
        place: &Place,
        unsigned: Unsigned,
    ) -> Result<Standing, CacheError> {
        if *place == Place::Embedded {
            return Ok(Standing::BuiltIn);
        }
        let anchors = self.store.as_ref().map_or(Ok(Vec::new()), |store| store.trust().anchors())?;
        let accepted = || match (place, &self.store) {
            (Place::Stored(path), Some(store)) => store.accepts(path, manifest.sha256()),
            _ => false,
        };
        match manifest.judge(&anchors) {
            Ok(standing) => Ok(standing),
            Err(why) if unsigned == Unsigned::Accept || accepted() => {
                Ok(Standing::Unsigned { why: why.to_string() })
            }
            Err(source) => {
                let name = match place {
                    Place::Directory(path) => format!("{} in {}", manifest.name(), path.display()),
                    _ => manifest.name(),
                };
                Err(CacheError::Untrusted { name, source })
            }
        }
    }

    /// A baseline by `ID` (its newest version; of two equal ones the embedded), by `ID@VERSION`, or in a directory by its
    /// path.
    ///
    /// # Errors
    /// [`CacheError`].
    pub fn find(&self, name: &str) -> Result<(Manifest, Place), CacheError> {
        let (id, wanted) = split_name(name);
        let fits = |manifest: &Manifest| {
            let baseline = &manifest.baseline;
            baseline.id.as_str() == id && wanted.is_none_or(|wanted| wanted == baseline.version)
        };
        let mut found: Vec<_> = self.all().into_iter().filter(|(manifest, _)| fits(manifest)).collect();
        // Stable: of equal ones the embedded stays first.
        found.sort_by(|(a, _), (b, _)| version::compare(&b.baseline.version, &a.baseline.version));
        match found.into_iter().next() {
            Some(found) => Ok(found),
            None => self.find_other(name),
        }
    }

    /// Opens what [`Cache::find`] finds, for a deployment.
    ///
    /// # Errors
    /// [`CacheError`].
    pub fn open(&self, name: &str, unsigned: Unsigned) -> Result<OpenBaseline, CacheError> {
        let (manifest, place) = self.find(name)?;
        let standing = self.standing(&manifest, &place, unsigned)?;
        if let Some(store) = &self.store {
            open::check_cabinets(store, &manifest.baseline, &place)?;
        }
        open::open(self.store.as_ref(), manifest, &place, standing)
    }

    /// What [`Cache::open`] found under a name when it was this version with this manifest; newer ones do not count, and
    /// another manifest under that name is refused. The same one was let in when its deployment began, and that stands,
    /// whatever became of the keys since: nodes whose installers run are not left alone for it. Where `began` is not
    /// known, it is judged anew.
    ///
    /// # Errors
    /// [`CacheError`].
    pub fn reopen(
        &self,
        name: &str,
        version: &str,
        began: Option<(Sha256, Option<Standing>)>,
        unsigned: Unsigned,
    ) -> Result<OpenBaseline, CacheError> {
        let (id, _) = split_name(name);
        let is_known = self.all().iter().any(|(manifest, _)| manifest.baseline.id.as_str() == id);
        let exact = format!("{id}@{version}");
        let (manifest, place) = self.find(if is_known { &exact } else { name })?;
        let judged = self.standing(&manifest, &place, unsigned);
        let standing = match began {
            None => judged?,
            Some((expected, standing)) => {
                let found = manifest.sha256();
                if expected != found {
                    return Err(CacheError::Changed { name: name.to_owned(), expected, found });
                }
                judged.unwrap_or_else(|error| {
                    let why = explain(&error);
                    tracing::warn!(
                        baseline = name,
                        "it was let in when its deployment began, now it would not be: {why}"
                    );
                    standing.unwrap_or(Standing::Unsigned { why })
                })
            }
        };
        open::open(self.store.as_ref(), manifest, &place, standing)
    }

    fn find_other(&self, name: &str) -> Result<(Manifest, Place), CacheError> {
        // One that is there but cannot be read says why.
        let (id, wanted) = split_name(name);
        let unreadable = self.store.iter().filter_map(|store| store.baselines().ok()).flatten();
        for imported in unreadable {
            let mut folders =
                imported.path.ancestors().skip(1).filter_map(|folder| folder.file_name()?.to_str());
            let (version, of) = (folders.next(), folders.next());
            if let (true, Err(error)) =
                (of == Some(id) && wanted.is_none_or(|w| Some(w) == version), imported.manifest)
            {
                return Err(error);
            }
        }
        let directory = Path::new(name);
        if directory.is_dir() {
            return Ok((Manifest::in_directory(directory)?, Place::Directory(directory.to_owned())));
        }
        let known = self.all().iter().map(|(manifest, _)| manifest.name()).collect();
        Err(CacheError::Unknown { name: name.to_owned(), known })
    }
}

/// `ID` or `ID@VERSION`.
fn split_name(name: &str) -> (&str, Option<&str>) {
    name.split_once('@').map_or((name, None), |(id, version)| (id, Some(version)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_demonstration_opens_and_an_unknown_name_says_what_there_is() {
        assert_eq!(Cache::embedded().open("demo", Unsigned::Refuse).unwrap().baseline.id.as_str(), "demo");
        let Err(error) = Cache::embedded().open("nope", Unsigned::Refuse) else { panic!("opened") };
        assert!(crate::error::explain(&error).contains("demo"));
    }

    #[test]
    fn a_missing_or_cut_payload_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("firmware-cache/demo");
        std::fs::copy(demo.join(MANIFEST), directory.path().join(MANIFEST)).unwrap();
        let name = directory.path().to_str().unwrap();
        let fault = || match Cache::embedded().open(name, Unsigned::Accept) {
            Err(error) => crate::error::explain(&error),
            Ok(_) => panic!("opened"),
        };
        assert!(fault().contains("carena-demo-1.2.0.sh"), "{}", fault());
        crate::durable::write(&directory.path().join("carena-demo-1.2.0.sh"), b"cut", 0o600).unwrap();
        assert!(fault().contains("3 bytes"), "{}", fault());
    }
}
