//! Where payloads come from: what is embedded in the binary, and baselines in directories; one view, served over
//! HTTPS with ranges. A payload is named by the SHA-256 of its bytes; the engine checks it before use, so nothing
//! here has to be trusted.

pub mod pace;
pub mod range;
pub mod serve;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::body::Bytes;
use rust_embed::RustEmbed;

use crate::digest::Sha256;
use crate::error::Hinted;
use crate::firmware::baseline::{Baseline, BaselineError, MANIFEST, MANIFEST_BYTES_MAX};

pub use pace::Pace;
pub use serve::Payloads;

/// What build.rs packed: `baselines/ID/baseline.toml` and `objects/SHA256.zst`.
#[derive(RustEmbed)]
#[folder = "$OUT_DIR/firmware-cache"]
struct Embedded;

/// Most bytes of an embedded payload in memory; larger ones do not belong into the binary.
const EMBEDDED_BYTES_MAX: usize = 256 * 1024 * 1024;

/// Why a baseline cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// Neither an embedded baseline nor a directory.
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

/// All baselines.
#[derive(Debug, Clone, Copy)]
pub struct Cache;

impl Cache {
    /// What the binary carries, and directories.
    pub fn embedded() -> Self {
        Self
    }

    /// Ids of the embedded baselines.
    pub fn ids(&self) -> Vec<String> {
        let id = |path: std::borrow::Cow<'static, str>| {
            Some(path.strip_prefix("baselines/")?.strip_suffix("/baseline.toml")?.to_owned())
        };
        Embedded::iter().filter_map(id).collect()
    }

    /// What the embedded baselines say of themselves; their payloads stay packed.
    pub fn baselines(&self) -> Vec<Baseline> {
        let manifest = |id: &String| Embedded::get(&format!("baselines/{id}/{MANIFEST}"));
        let parse = |(id, file): (String, rust_embed::EmbeddedFile)| {
            Baseline::parse(&String::from_utf8_lossy(&file.data), &id).ok()
        };
        self.ids()
            .into_iter()
            .filter_map(|id| manifest(&id).map(|file| (id, file)))
            .filter_map(parse)
            .collect()
    }

    /// An embedded baseline by its id, or one in a directory by its path.
    ///
    /// # Errors
    /// [`CacheError`].
    pub fn open(&self, name: &str) -> Result<OpenBaseline, CacheError> {
        if let Some(manifest) = Embedded::get(&format!("baselines/{name}/{MANIFEST}")) {
            return open_embedded(name, &String::from_utf8_lossy(&manifest.data));
        }
        let directory = Path::new(name);
        if directory.is_dir() {
            open_directory(directory)
        } else {
            Err(CacheError::Unknown { name: name.to_owned(), known: self.ids() })
        }
    }
}

fn open_embedded(name: &str, manifest: &str) -> Result<OpenBaseline, CacheError> {
    let baseline = Baseline::parse(manifest, &format!("{name}/{MANIFEST}"))?;
    let mut payloads = Payloads::default();
    for component in &baseline.components {
        let broken = || CacheError::Embedded { name: component.sha256.to_string() };
        let packed = Embedded::get(&format!("objects/{}.zst", component.sha256)).ok_or_else(broken)?;
        let size = usize::try_from(component.size).ok().filter(|size| *size <= EMBEDDED_BYTES_MAX);
        let bytes = zstd::bulk::decompress(&packed.data, size.ok_or_else(broken)?).map_err(|_| broken())?;
        if Sha256::of(&bytes) != component.sha256 {
            return Err(broken());
        }
        payloads.add_memory(component.sha256, Bytes::from(bytes));
    }
    Ok(OpenBaseline { baseline: Arc::new(baseline), payloads })
}

/// Presence and sizes are checked here, before any node is touched; the bytes by each engine before use.
fn open_directory(directory: &Path) -> Result<OpenBaseline, CacheError> {
    let path = directory.join(MANIFEST);
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| CacheError::File { path, source }
    };
    let metadata = std::fs::metadata(&path).map_err(failed(&path))?;
    if metadata.len() > MANIFEST_BYTES_MAX {
        return Err(CacheError::Size { path, found: metadata.len(), expected: MANIFEST_BYTES_MAX });
    }
    let text = std::fs::read_to_string(&path).map_err(failed(&path))?;
    let baseline = Baseline::parse(&text, &path.display().to_string())?;
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
