//! Plain payloads: a directory with our own `baseline.toml`, each payload hashed.

use std::fs::File;
use std::path::Path;

use super::error::{Fault, FormatError};
use super::metadata::{Format, Metadata, Package, Payload, Requirement, Rule, Target};
use super::source::read_bounded;
use crate::digest::Sha256;
use crate::error::chain;
use crate::firmware::baseline::{Baseline, MANIFEST, MANIFEST_BYTES_MAX};
use crate::firmware::component::Component;

/// Reads the manifest and hashes the payloads.
///
/// # Errors
/// When the manifest is malformed, or a payload is missing or not the announced one.
pub fn read(directory: &Path) -> Result<Package, FormatError> {
    let place = directory.join(MANIFEST).display().to_string();
    let error = |fault| FormatError { file: place.clone(), offset: None, fault };
    let what = "the manifest";
    let manifest =
        File::open(directory.join(MANIFEST)).map_err(|source| error(Fault::Read { what, source }))?;
    let manifest = read_bounded(manifest, MANIFEST_BYTES_MAX, "the size of the manifest").map_err(error)?;
    let text =
        std::str::from_utf8(&manifest).map_err(|_| error(Fault::Malformed("it is not UTF-8".into())))?;
    let baseline =
        Baseline::parse(text, MANIFEST).map_err(|refused| error(Fault::Malformed(chain(&refused))))?;
    let payloads = baseline.components.iter().map(|component| payload(directory, component));
    let payloads = payloads.collect::<Result<Vec<_>, _>>()?;
    let title = Some(format!("{} {}: {}", baseline.id, baseline.version, baseline.title));
    let components = baseline.components.into_iter().map(metadata).collect();
    Ok(Package { size: None, title, payloads, ..Package::new(Format::Baseline, 0, components) })
}

fn payload(directory: &Path, component: &Component) -> Result<Payload, FormatError> {
    let path = directory.join(&component.payload);
    let error = |fault| FormatError { file: path.display().to_string(), offset: None, fault };
    let what = "the payload";
    let hashed = File::open(&path).and_then(Sha256::of_reader);
    let (found, size) = hashed.map_err(|source| error(Fault::Read { what, source }))?;
    if found != component.sha256 {
        let (expected, found) = (component.sha256.to_string().into(), found.to_string().into());
        let what = component.payload.as_str().into();
        return Err(error(Fault::Checksum { what, algorithm: "sha256", expected, found }));
    }
    if size != component.size {
        return Err(error(Fault::Malformed(format!(
            "it has {size} bytes, announced are {}",
            component.size
        ))));
    }
    let checksums = [("sha256".to_owned(), found.to_string())].into();
    Ok(Payload { name: component.payload.clone(), size, offset: None, checksums, checked: true })
}

fn metadata(component: Component) -> Metadata {
    let requires = component.requires.iter().map(|id| Requirement {
        kind: "component".into(),
        subject: Some(id.to_string()),
        ..Requirement::default()
    });
    let product = component.rules.dmi_product.into_iter();
    Metadata {
        id: component.id.to_string(),
        name: component.title,
        version: component.version,
        requires: requires.collect(),
        platforms: product.map(|product| Target::of(Rule::DmiProduct { product })).collect(),
        expected_s: Some(component.expected_s),
        os: component.rules.os.into_iter().collect(),
        arch: component.rules.arch,
        installers: vec!["command".into()],
        hints: component
            .install
            .map(|install| ("command".to_owned(), install.command.join(" ")))
            .into_iter()
            .collect(),
        payloads: vec![component.payload],
        ..Metadata::default()
    }
}
