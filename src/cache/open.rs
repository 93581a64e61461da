//! A baseline made ready for a deployment: every payload is there and has its size before any node is touched.
//!
//! The bytes are checked by each engine before use. What is in use must never be removed: the manifest is held.

use std::path::Path;
use std::sync::Arc;

use super::content::Content;
use super::{CacheError, Manifest, Payloads, Place, Store, embedded};
use crate::digest::Sha256;
use crate::firmware::baseline::Baseline;
use crate::firmware::component::Format;
use crate::firmware::formats;
use crate::firmware::signature::Standing;

/// A baseline that can be installed.
pub struct OpenBaseline {
    /// What.
    pub baseline: Arc<Baseline>,
    /// Its bytes.
    pub payloads: Payloads,
    /// The digest of its manifest.
    pub manifest: Sha256,
    /// Why it may be used.
    pub standing: Standing,
}

/// Opens it where it is.
pub(super) fn open(
    store: Option<&Store>,
    manifest: Manifest,
    place: &Place,
    standing: Standing,
) -> Result<OpenBaseline, CacheError> {
    let (sha256, baseline) = (manifest.sha256(), manifest.baseline);
    let payloads = match (place, store) {
        (Place::Embedded, _) => of_binary(&baseline),
        (Place::Stored(path), Some(store)) => of_store(store, &baseline, path),
        (Place::Stored(path), None) => of_directory(&baseline, path.parent().unwrap_or(path)),
        (Place::Directory(path), _) => of_directory(&baseline, path),
    }?;
    Ok(OpenBaseline { baseline: Arc::new(baseline), payloads, manifest: sha256, standing })
}

/// Cabinets must lead to the kept certificates, where there are some. Asked at each deployment: a directory has seen no
/// import, and an import before the first certificate asked for no signature.
pub(super) fn check_cabinets(store: &Store, baseline: &Baseline, place: &Place) -> Result<(), CacheError> {
    let trust = store.certificates().trust()?;
    if trust.is_empty() {
        return Ok(());
    }
    for component in baseline.components.iter().filter(|one| one.format == Format::LvfsCab) {
        let name = &component.payload;
        match place {
            // It is the program's own.
            Place::Embedded => {}
            Place::Directory(directory) => {
                let path = directory.join(name);
                let file = std::fs::File::open(&path);
                let mut file = file.map_err(|source| CacheError::File { path: path.clone(), source })?;
                formats::read_from(&path.display().to_string(), &mut file, &trust)?;
            }
            Place::Stored(_) => {
                let missing = |source| CacheError::Missing {
                    baseline: baseline.id.to_string(),
                    component: component.id.to_string(),
                    sha256: component.sha256,
                    source,
                };
                let content = store.object(component.sha256).and_then(Content::new);
                formats::read_from(name, &mut content.map_err(missing)?, &trust)?;
            }
        }
    }
    Ok(())
}

fn of_binary(baseline: &Baseline) -> Result<Payloads, CacheError> {
    let mut payloads = Payloads::default();
    for component in &baseline.components {
        let broken = || CacheError::Embedded { name: component.sha256.to_string() };
        payloads.add_embedded(component.sha256, embedded::object(component.sha256).ok_or_else(broken)?);
    }
    Ok(payloads)
}

/// It cannot be removed as long as its payloads are in use.
fn of_store(store: &Store, baseline: &Baseline, manifest: &Path) -> Result<Payloads, CacheError> {
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
    Ok(payloads)
}

fn of_directory(baseline: &Baseline, directory: &Path) -> Result<Payloads, CacheError> {
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
    Ok(payloads)
}
