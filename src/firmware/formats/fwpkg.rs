//! HPE firmware packages: a ZIP archive with `payload.json` and the images it names.

use super::archive::Archive;
use super::error::{Fault, FormatError};
use super::hpe;
use super::metadata::{Format, Package, Payload};
use super::smart;

/// The file that describes the package.
pub const DESCRIPTION: &str = "payload.json";

const DESCRIPTION_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// The newer packages carry the same description as XML too, with the texts that the JSON lacks.
const XML_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Reads the package.
///
/// # Errors
/// When `payload.json` is malformed, or an image that it names is missing.
pub fn read(archive: &mut Archive<'_>, file: &str, size: u64) -> Result<Package, FormatError> {
    let error = |fault| FormatError { file: file.to_owned(), offset: None, fault };
    let description = archive.find(is_description).cloned();
    let description = description.ok_or_else(|| error(Fault::Missing(DESCRIPTION.into())))?;
    let bytes = archive.read(&description, DESCRIPTION_BYTES_MAX)?;
    let place = |fault| FormatError { file: format!("{file}: {}", description.name), offset: None, fault };
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    let value: serde_json::Value =
        serde_json::from_slice(bytes).map_err(|e| place(Fault::Malformed(e.to_string())))?;
    let stem = file.rsplit_once('.').map_or(file, |(stem, _)| stem);
    let mut component = hpe::component(&value, stem);
    if component.targets.is_empty() {
        return Err(place(Fault::Missing("Devices.Device with a Target".into())));
    }
    let xml = archive.find(|name| name.ends_with(".xml")).cloned();
    if let Some(xml) = xml {
        let bytes = archive.read(&xml, XML_BYTES_MAX)?;
        if smart::is_description(&bytes) {
            smart::complete(&mut component, smart::component(&format!("{file}: {}", xml.name), &bytes)?);
        }
    }
    if component.version.is_empty() {
        return Err(place(Fault::Missing("the version".into())));
    }
    let mut payloads = Vec::new();
    for name in &component.payloads {
        let member = archive.members.iter().find(|member| member.name == *name);
        let member = member.ok_or_else(|| error(Fault::Missing(name.clone())))?;
        payloads.push(Payload {
            name: name.clone(),
            size: member.size,
            offset: member.offset,
            ..Payload::default()
        });
    }
    Ok(Package { payloads, ..Package::new(Format::HpeFwpkg, size, vec![component]) })
}

/// Whether a member's path, in lower case, is that of the description.
pub fn is_description(name: &str) -> bool {
    name == DESCRIPTION
}
