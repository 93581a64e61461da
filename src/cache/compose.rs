//! A new baseline's directory, made of components of other baselines: for a person to read, correct and sign.
//!
//! Payloads are verified as they are taken; the manifest comes last, so a directory with one is complete. What it is made
//! of need not be signed: whoever signs the new one vouches for it. It must never replace anything that is there.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use super::object::{Broken, Object, Unpacker};
use super::{Cache, CacheError, Manifest, Place};
use crate::digest::{Hasher, Mismatch, Sha256, Verified};
use crate::durable;
use crate::error::Hinted;
use crate::firmware::baseline::{Baseline, MANIFEST};
use crate::firmware::component::Component;
use crate::firmware::manifest;

/// Why a baseline was not made.
#[derive(Debug, thiserror::Error)]
pub enum ComposeError {
    /// What it is to be made of cannot be had.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// A file or a name that gives no component.
    #[error(
        "{what} is neither a directory with a {MANIFEST} nor a baseline in the cache, nor BASELINE/COMPONENT"
    )]
    NoComponent {
        /// As named.
        what: String,
    },
    /// A baseline without that component.
    #[error("baseline {baseline} has no component {component}")]
    Unknown {
        /// The baseline.
        baseline: String,
        /// The component.
        component: String,
    },
    /// A payload is another one than its manifest says.
    #[error("the payload of {component}")]
    Content {
        /// The component.
        component: String,
        /// Both digests.
        #[source]
        source: Mismatch,
    },
    /// A payload in the cache is damaged.
    #[error("the payload of {component}")]
    Broken {
        /// The component.
        component: String,
        /// Why.
        #[source]
        source: Box<Broken>,
    },
    /// A file cannot be read or written.
    #[error("{}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Hinted for ComposeError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Cache(error) => return error.hint(),
            Self::NoComponent { .. } => {
                "carena cache list shows what there is; a maker's package is imported first: carena cache import".into()
            }
            Self::Unknown { .. } => "carena cache list shows what there is".into(),
            Self::Content { .. } => "the file was changed; get the baseline again".into(),
            Self::Broken { .. } => "carena cache verify, then import the baseline again".into(),
            Self::File { source, .. } if source.kind() == io::ErrorKind::AlreadyExists => {
                "name another directory with --into; nothing is replaced".into()
            }
            Self::File { .. } => {
                "check the file and its owner, remove the new directory, then try again".into()
            }
        })
    }
}

/// A component, and where its payload is.
struct Taken {
    component: Component,
    bytes: Bytes,
}

enum Bytes {
    File(PathBuf),
    Packed(Object),
}

/// What the new one is called.
#[derive(Debug)]
pub struct Name {
    /// Its id.
    pub id: crate::wire::id::BaselineId,
    /// Its version.
    pub version: String,
    /// For people.
    pub title: String,
}

impl Cache {
    /// Makes a baseline in the new directory `into`, of all that `parts` name: directories, baselines in the cache, or
    /// single components of those as `BASELINE/COMPONENT`.
    ///
    /// # Errors
    /// [`ComposeError`]; a directory without a manifest may be left.
    pub fn compose(&self, name: Name, parts: &[String], into: &Path) -> Result<Baseline, ComposeError> {
        let mut taken = Vec::new();
        for part in parts {
            taken.extend(self.take(part)?);
        }
        name_payloads(&mut taken);
        let components = taken.iter().map(|taken| taken.component.clone()).collect();
        let text =
            manifest::write(&Baseline { id: name.id, version: name.version, title: name.title, components });
        // What makes no sense together is told before anything is written.
        let path = into.join(MANIFEST);
        let baseline = Baseline::parse(&text, &path.display().to_string()).map_err(CacheError::from)?;
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| ComposeError::File { path, source }
        };
        std::fs::create_dir(into).map_err(failed(into))?;
        for taken in &taken {
            let payload = into.join(&taken.component.payload);
            if !payload.exists() {
                write(taken, &payload)?;
            }
        }
        durable::write(&path, text.as_bytes(), 0o644).map_err(failed(&path))?;
        Ok(baseline)
    }

    fn take(&self, part: &str) -> Result<Vec<Taken>, ComposeError> {
        let path = Path::new(part);
        if path.join(MANIFEST).is_file() {
            let manifest = Manifest::in_directory(path)?;
            return self.components(manifest, &Place::Directory(path.to_owned()), None);
        }
        if path.exists() {
            return Err(ComposeError::NoComponent { what: part.to_owned() });
        }
        let (baseline, component) = part.split_once('/').map_or((part, None), |(a, b)| (a, Some(b)));
        let (manifest, place) = self.find(baseline)?;
        self.components(manifest, &place, component)
    }

    fn components(
        &self,
        manifest: Manifest,
        place: &Place,
        only: Option<&str>,
    ) -> Result<Vec<Taken>, ComposeError> {
        let name = manifest.name();
        let mut taken = Vec::new();
        for component in manifest.baseline.components {
            if only.is_some_and(|only| only != component.id.as_str()) {
                continue;
            }
            let bytes = match place {
                Place::Directory(path) => Bytes::File(path.join(&component.payload)),
                Place::Embedded | Place::Stored(_) => Bytes::Packed(self.packed(&name, &component)?),
            };
            taken.push(Taken { component, bytes });
        }
        match only {
            Some(component) if taken.is_empty() => {
                Err(ComposeError::Unknown { baseline: name, component: component.to_owned() })
            }
            _ => Ok(taken),
        }
    }

    fn packed(&self, baseline: &str, component: &Component) -> Result<Object, CacheError> {
        let sha256 = component.sha256;
        let (baseline, component) = (baseline.to_owned(), component.id.to_string());
        self.object(sha256).map_err(|source| CacheError::Missing { baseline, component, sha256, source })
    }
}

/// Two files of one name are told apart by their components' ids.
fn name_payloads(taken: &mut [Taken]) {
    let mut names: Vec<(String, Sha256)> = Vec::new();
    for Taken { component, .. } in taken {
        let differs =
            |(name, sha256): &(String, Sha256)| *name == component.payload && *sha256 != component.sha256;
        if names.iter().any(differs) || component.payload == MANIFEST {
            component.payload = format!("{}-{}", component.id, component.payload);
        }
        names.push((component.payload.clone(), component.sha256));
    }
}

/// A file is linked where that is possible, else copied; what is packed is unpacked.
fn write(taken: &Taken, to: &Path) -> Result<(), ComposeError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| ComposeError::File { path, source }
    };
    let component = taken.component.id.to_string();
    match &taken.bytes {
        Bytes::File(from) => {
            if std::fs::hard_link(from, to).is_err() {
                std::fs::copy(from, to).map_err(failed(to))?;
            }
            let (found, _) = std::fs::File::open(to).and_then(Sha256::of_reader).map_err(failed(to))?;
            let expected = taken.component.sha256;
            if found != expected {
                let source = Mismatch { expected, found };
                return Err(ComposeError::Content { component, source });
            }
            Ok(())
        }
        Bytes::Packed(object) => {
            let mut file = OpenOptions::new().write(true).create_new(true).open(to).map_err(failed(to))?;
            let mut unpacker = Unpacker::new().map_err(failed(to))?;
            let (mut hasher, mut content) = (Hasher::new(), Vec::new());
            for index in 0..object.frames() {
                unpacker.frame(object, index, &mut content).map_err(failed(to))?;
                hasher.update(&content);
                file.write_all(&content).map_err(failed(to))?;
            }
            file.sync_all().map_err(failed(to))?;
            let verified = Verified::check((), hasher, taken.component.sha256);
            verified
                .map(|_| ())
                .map_err(|source| ComposeError::Broken { component, source: Box::new(source.into()) })
        }
    }
}
