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
mod content;
mod embedded;
pub mod foreign;
mod frames;
pub mod import;
mod import_error;
pub mod object;
pub mod pace;
mod pack;
mod partial;
pub mod range;
mod reader;
mod room;
mod seek_table;
pub mod serve;
pub mod store;

use std::cmp::Ordering;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::digest::Sha256;
use crate::error::Hinted;
use crate::firmware::baseline::{Baseline, BaselineError, MANIFEST};
use crate::firmware::version;

pub use pace::Pace;
pub use serve::Payloads;
pub use store::Store;

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
    /// The manifest.
    #[error(transparent)]
    Manifest(#[from] BaselineError),
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
            Self::File { .. } | Self::Size { .. } => {
                Some("put the missing or changed file back; no node was touched".into())
            }
            Self::Missing { .. } => Some(
                "import the baseline again: what is there is not copied again; no node was touched".into(),
            ),
            Self::Manifest(error) => error.hint(),
            Self::Embedded { .. } => None,
        }
    }
}

/// A baseline that can be installed.
pub struct OpenBaseline {
    /// What.
    pub baseline: Arc<Baseline>,
    /// Its bytes.
    pub payloads: Payloads,
}

/// Where a baseline is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In the binary.
    Embedded,
    /// In the store, with this manifest.
    Stored(PathBuf),
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

    /// Embedded and imported baselines, each in its newest version; their payloads stay packed. Manifests that cannot be
    /// read are left out.
    pub fn baselines(&self) -> Vec<Baseline> {
        let mut newest: Vec<Baseline> = Vec::new();
        for (baseline, _) in self.all() {
            match newest.iter_mut().find(|other| other.id == baseline.id) {
                Some(other) if version::compare(&baseline.version, &other.version) == Ordering::Greater => {
                    *other = baseline;
                }
                Some(_) => {}
                None => newest.push(baseline),
            }
        }
        newest
    }

    /// Every version of every baseline, embedded ones first; manifests that cannot be read are left out.
    pub fn all(&self) -> Vec<(Baseline, Place)> {
        let parse =
            |(folder, text): &(&str, &str)| Baseline::parse(text, &format!("{folder}/{MANIFEST}")).ok();
        let embedded =
            embedded::manifests().iter().filter_map(parse).map(|baseline| (baseline, Place::Embedded));
        let stored = self.store.iter().filter_map(|store| store.baselines().ok()).flatten();
        let stored =
            stored.filter_map(|imported| Some((imported.baseline.ok()?, Place::Stored(imported.path))));
        embedded.chain(stored).collect()
    }

    /// A baseline by `ID` (its newest version; of two equal ones the embedded), by `ID@VERSION`, or in a directory by its
    /// path.
    ///
    /// # Errors
    /// [`CacheError`].
    pub fn open(&self, name: &str) -> Result<OpenBaseline, CacheError> {
        let (id, wanted) = split_name(name);
        let fits = |baseline: &Baseline| {
            baseline.id.as_str() == id && wanted.is_none_or(|wanted| wanted == baseline.version)
        };
        let mut found: Vec<_> = self.all().into_iter().filter(|(baseline, _)| fits(baseline)).collect();
        // Stable: of equal ones the embedded stays first.
        found.sort_by(|(a, _), (b, _)| version::compare(&b.version, &a.version));
        match (found.into_iter().next(), &self.store) {
            (Some((baseline, Place::Embedded)), _) => open_embedded(baseline),
            (Some((baseline, Place::Stored(manifest))), Some(store)) => {
                open_stored(store, baseline, &manifest)
            }
            _ => self.open_other(name),
        }
    }

    /// What [`Cache::open`] found under a name when it was this version; newer ones do not count.
    ///
    /// # Errors
    /// [`CacheError`].
    pub fn reopen(&self, name: &str, version: &str) -> Result<OpenBaseline, CacheError> {
        let (id, _) = split_name(name);
        if self.all().iter().any(|(baseline, _)| baseline.id.as_str() == id) {
            return self.open(&format!("{id}@{version}"));
        }
        self.open(name)
    }

    fn open_other(&self, name: &str) -> Result<OpenBaseline, CacheError> {
        // One that is there but cannot be read says why.
        let (id, wanted) = split_name(name);
        let unreadable = self.store.iter().filter_map(|store| store.baselines().ok()).flatten();
        for imported in unreadable {
            let mut folders =
                imported.path.ancestors().skip(1).filter_map(|folder| folder.file_name()?.to_str());
            let (version, of) = (folders.next(), folders.next());
            if let (true, Err(error)) =
                (of == Some(id) && wanted.is_none_or(|w| Some(w) == version), imported.baseline)
            {
                return Err(error);
            }
        }
        let directory = Path::new(name);
        if directory.is_dir() {
            return open_directory(directory);
        }
        let known = self.baselines().iter().map(|baseline| baseline.id.to_string()).collect();
        Err(CacheError::Unknown { name: name.to_owned(), known })
    }
}

/// `ID` or `ID@VERSION`.
fn split_name(name: &str) -> (&str, Option<&str>) {
    name.split_once('@').map_or((name, None), |(id, version)| (id, Some(version)))
}

fn open_embedded(baseline: Baseline) -> Result<OpenBaseline, CacheError> {
    let mut payloads = Payloads::default();
    for component in &baseline.components {
        let broken = || CacheError::Embedded { name: component.sha256.to_string() };
        payloads.add_embedded(component.sha256, embedded::object(component.sha256).ok_or_else(broken)?);
    }
    Ok(OpenBaseline { baseline: Arc::new(baseline), payloads })
}

/// It cannot be removed as long as its payloads are in use.
fn open_stored(store: &Store, baseline: Baseline, manifest: &Path) -> Result<OpenBaseline, CacheError> {
    let failed = |source| CacheError::File { path: manifest.to_owned(), source };
    let mut payloads = Payloads::default();
    payloads.keep(store.hold(manifest).map_err(failed)?);
    for component in &baseline.components {
        let missing = |source| CacheError::Missing {
            baseline: baseline.id.to_string(),
            component: component.id.to_string(),
            sha256: component.sha256,
            source,
        };
        let path = store.object_path(component.sha256);
        let found = store.object(component.sha256).map_err(missing)?.size();
        if found != component.size {
            return Err(CacheError::Size { path, found, expected: component.size });
        }
        payloads.add_stored(component.sha256, path);
    }
    Ok(OpenBaseline { baseline: Arc::new(baseline), payloads })
}

/// Presence and sizes are checked here, before any node is touched; the bytes by each engine before use.
fn open_directory(directory: &Path) -> Result<OpenBaseline, CacheError> {
    let (baseline, _) = store::read_manifest(&directory.join(MANIFEST))?;
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| CacheError::File { path, source }
    };
    let mut payloads = Payloads::default();
    for component in &baseline.components {
        let path = directory.join(&component.payload);
        let found = std::fs::metadata(&path).map_err(failed(&path))?.len();
        if found != component.size {
            return Err(CacheError::Size { path, found, expected: component.size });
        }
        payloads.add_file(component.sha256, path, component.size);
    }
    Ok(OpenBaseline { baseline: Arc::new(baseline), payloads })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_demonstration_opens_and_an_unknown_name_says_what_there_is() {
        assert_eq!(Cache::embedded().open("demo").unwrap().baseline.id.as_str(), "demo");
        let Err(error) = Cache::embedded().open("nope") else { panic!("opened") };
        assert!(crate::error::explain(&error).contains("demo"));
    }

    #[test]
    fn a_missing_or_cut_payload_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("firmware-cache/demo");
        std::fs::copy(demo.join(MANIFEST), directory.path().join(MANIFEST)).unwrap();
        let name = directory.path().to_str().unwrap();
        let fault = || match Cache::embedded().open(name) {
            Err(error) => crate::error::explain(&error),
            Ok(_) => panic!("opened"),
        };
        assert!(fault().contains("carena-demo-1.2.0.sh"), "{}", fault());
        crate::durable::write(&directory.path().join("carena-demo-1.2.0.sh"), b"cut", 0o600).unwrap();
        assert!(fault().contains("3 bytes"), "{}", fault());
    }
}
