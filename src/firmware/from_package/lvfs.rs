//! Components from an LVFS cabinet: one for each metainfo file, all with the cabinet as payload.
//!
//! fwupd installs everything in a cabinet that fits a device, in one go; so whatever one of its components brings, the
//! others find there. Requirements on firmware versions become needs, so that a plan says them. Everything else that a
//! cabinet requires (a version of fwupd, a machine by its hardware ids, parents and siblings of a device) only
//! fwupd on the node can judge; its refusal comes before it writes anything, and is told in its words.

use super::{NotAComponent, PackageFile, component_id};
use crate::firmware::component::{Component, Format};
use crate::firmware::formats::metadata::{Metadata, Package, Requirement, Rule};
use crate::firmware::fwupd;
use crate::firmware::installed::VersionSource;
use crate::firmware::rules::{Need, Rules};
use crate::firmware::version::VersionFormat;

/// Seconds an update is expected to take where its maker does not say.
const EXPECTED_S: u32 = 300;

/// The components of a cabinet that was read as `package`.
///
/// # Errors
/// [`NotAComponent`].
pub fn components(package: &Package, file: &PackageFile) -> Result<Vec<Component>, NotAComponent> {
    package.components.iter().map(|metadata| component(metadata, file)).collect()
}

fn component(metadata: &Metadata, file: &PackageFile) -> Result<Component, NotAComponent> {
    let (package, component) = (file.name.clone(), metadata.id.clone());
    let guid = |rule: &Rule| match rule {
        Rule::FwupdGuid { guid } => Some(guid.clone()),
        _ => None,
    };
    let guids: Vec<String> = metadata.targets.iter().filter_map(|target| guid(&target.rule)).collect();
    if guids.is_empty() {
        return Err(NotAComponent::NoDevice { package, component });
    }
    let format = metadata.version_format;
    let Some(version) = fwupd::version(&metadata.version, format) else {
        let version = metadata.version.clone();
        return Err(NotAComponent::Version { package, component, version, format });
    };
    let Some(id) = component_id(&metadata.id) else { return Err(NotAComponent::Name { package, component }) };
    let needs = metadata.requires.iter().filter_map(|required| need(required, &guids, format));
    Ok(Component {
        id,
        title: metadata.name.clone(),
        version,
        version_format: format,
        format: Format::LvfsCab,
        payload: file.name.clone(),
        sha256: file.sha256,
        size: file.size,
        needs: needs.collect(),
        rules: Rules { fwupd_guid: guids.clone(), ..Rules::default() },
        order: 0,
        requires: Vec::new(),
        conflicts: Vec::new(),
        only_if_installed: false,
        expected_s: metadata.expected_s.unwrap_or(EXPECTED_S).max(1),
        install: None,
        read_back: VersionSource::Fwupd(guids),
    })
}

/// `<firmware compare="ge" version="1.2.3"/>`, of the device itself or of another one by its GUID.
fn need(required: &Requirement, own: &[String], format: VersionFormat) -> Option<Need> {
    let (compare, version) = (required.compare.as_deref()?, required.version.clone()?);
    if required.kind != "firmware" || required.depth.is_some() {
        return None;
    }
    let (of, version_format) = match required.subject.as_deref() {
        None => (own.to_vec(), format),
        Some(guid) if is_guid(guid) => (vec![guid.to_ascii_lowercase()], VersionFormat::Mixed),
        // "bootloader", "vendor-id", "not-child".
        Some(_) => return None,
    };
    let mut need = Need::of(VersionSource::Fwupd(of), version_format);
    // Only the device says how a large bare number is written, and so only fwupd can compare it.
    let is_number = version.strip_prefix("0x").unwrap_or(&version).bytes().all(|b| b.is_ascii_hexdigit());
    if version_format == VersionFormat::Mixed && is_number && version.len() > 4 {
        return None;
    }
    let version = fwupd::version(&version, version_format)?;
    match compare {
        "ge" => need.at_least = Some(version),
        "gt" => need.after = Some(version),
        "le" => need.at_most = Some(version),
        "lt" => need.before = Some(version),
        "eq" => need.exactly = Some(version),
        "ne" => need.not.push(version),
        // "glob" and "regex".
        _ => return None,
    }
    Some(need)
}

fn is_guid(text: &str) -> bool {
    let lengths = text.split('-').map(str::len);
    lengths.eq([8, 4, 4, 4, 12]) && text.chars().all(|c| c == '-' || c.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Sha256;
    use crate::firmware::baseline::Baseline;
    use crate::firmware::formats::metadata::{Format as PackageFormat, Target};
    use crate::firmware::manifest;

    const GUID: &str = "b585990a-003e-5270-89d5-3705a17f9a43";

    fn file() -> PackageFile {
        PackageFile { name: "a.cab".into(), sha256: Sha256::of(b"x"), size: 1 }
    }

    fn metadata() -> Metadata {
        Metadata {
            id: "com.vendor.Device firmware".into(),
            name: "Device".into(),
            version: "16909060".into(),
            version_format: VersionFormat::Quad,
            targets: vec![Target::of(Rule::FwupdGuid { guid: GUID.into() })],
            ..Metadata::default()
        }
    }

    fn made(metadata: Metadata) -> Result<Component, NotAComponent> {
        let package = Package::new(PackageFormat::LvfsCab, 1, vec![metadata]);
        Ok(components(&package, &file())?.remove(0))
    }

    #[test]
    fn what_a_plan_can_judge_becomes_a_need_and_the_rest_is_fwupds() {
        let required = |kind: &str, subject: Option<&str>, compare: &str, version: &str, depth| Requirement {
            kind: kind.into(),
            subject: subject.map(str::to_owned),
            compare: Some(compare.into()),
            version: Some(version.into()),
            depth,
        };
        let other = "DDC0EE61-E7F0-4E7D-ACC5-C070A398838E";
        let requires = vec![
            required("firmware", None, "ge", "0x01000000", None),
            required("firmware", Some(other), "lt", "7", None),
            required("firmware", Some(other), "ge", "16909060", None),
            required("firmware", None, "ge", "1.0.0.0", Some(1)),
            required("firmware", Some("bootloader"), "ge", "1", None),
            required("firmware", None, "regex", "1.*", None),
            required("id", Some("org.freedesktop.fwupd"), "ge", "1.9", None),
            required("hardware", Some(GUID), "eq", "1", None),
        ];
        let component = made(Metadata { requires, ..metadata() }).unwrap();
        assert_eq!(component.version, "1.2.3.4");
        assert_eq!(component.id.as_str(), "com.vendor.Device-firmware");
        let [own, others] = component.needs.as_slice() else { panic!("{:?}", component.needs) };
        assert_eq!((&own.version_of, own.at_least.as_deref()), (&component.read_back, Some("1.0.0.0")));
        assert_eq!(others.version_of, VersionSource::Fwupd(vec![other.to_ascii_lowercase()]));
        assert_eq!(others.before.as_deref(), Some("7"));
        // As a manifest it says the same.
        let made = Baseline {
            id: "b".parse().unwrap(),
            version: "1".into(),
            title: "t".into(),
            components: vec![component.clone()],
        };
        let read = Baseline::parse(&manifest::write(&made), "b").unwrap();
        assert_eq!(format!("{:?}", read.components), format!("{:?}", [component]));
    }

    #[test]
    fn what_names_no_device_or_has_no_version_is_no_component() {
        let refuse = |metadata| made(metadata).unwrap_err().to_string();
        let nothing = Metadata { targets: Vec::new(), ..metadata() };
        assert_eq!(
            refuse(nothing),
            "a.cab: com.vendor.Device firmware names no machine and no device, so it could be installed on the wrong one"
        );
        let odd = Metadata { version: "one".into(), ..metadata() };
        assert!(refuse(odd).ends_with("\"one\" is not a quad version"));
        let nameless = Metadata { id: "…".into(), ..metadata() };
        assert!(refuse(nameless).ends_with("\"…\" cannot be a component's name"));
    }
}
