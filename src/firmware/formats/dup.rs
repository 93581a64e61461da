//! Dell's `package.xml`: the description inside a Dell Update Package, one `SoftwareComponent` of Dell's catalogue.

use super::error::{Fault, FormatError};
use super::json::yes;
use super::metadata::{Metadata, Reboot, Requirement, Rule, Target};
use super::xml::{self, Element};
use crate::firmware::version::VersionFormat;

/// Devices, systems and dependencies of one package.
const ENTRIES_MAX: usize = 4096;

/// Reads a description that stands at offset `at` of `place`.
///
/// # Errors
/// When it is malformed, or has no version or id.
pub fn component(place: &str, at: u64, bytes: &[u8]) -> Result<Metadata, FormatError> {
    let error = |fault| FormatError { file: place.to_owned(), offset: Some(at), fault };
    let decoded;
    let bytes = match bytes.strip_prefix(b"\xff\xfe") {
        Some(utf16) => {
            decoded = utf16_le(utf16);
            decoded.as_bytes()
        }
        None => bytes.trim_ascii(),
    };
    let root = xml::parse(place, bytes)
        .map_err(|error| FormatError { offset: error.offset.map(|offset| at + offset), ..error })?;
    let software =
        if root.name == "SoftwareComponent" { Some(&root) } else { root.child("SoftwareComponent") };
    let software = software.ok_or_else(|| error(Fault::Missing("<SoftwareComponent>".into())))?;
    let must = |name: &str| {
        let found = software.attribute(name).map(str::to_owned);
        found.ok_or_else(|| error(Fault::Missing(format!("the attribute {name}"))))
    };
    let id = must("packageID")?;
    let mut metadata = Metadata {
        name: display(software, "Name").unwrap_or_else(|| id.clone()),
        id,
        summary: display(software, "Description"),
        vendor: Some("Dell".into()),
        version: must("vendorVersion")?,
        version_format: VersionFormat::Dell,
        released: software
            .attribute("releaseDate")
            .or_else(|| software.attribute("dateTime"))
            .map(str::to_owned),
        severity: display(software, "Criticality"),
        notes: display(software, "RevisionHistory"),
        reboot: software
            .attribute("rebootRequired")
            .map(|word| if yes(word) { Reboot::Needed } else { Reboot::NotNeeded }),
        os: vec!["linux".into()],
        installers: vec!["shell".into()],
        ..Metadata::default()
    };
    for device in
        software.at(&["SupportedDevices"]).into_iter().flat_map(|all| all.all("Device")).take(ENTRIES_MAX)
    {
        targets(device, &mut metadata.targets);
    }
    let brands = software.child("SupportedSystems").into_iter().flat_map(|all| all.all("Brand"));
    for model in brands.flat_map(|brand| brand.all("Model")).take(ENTRIES_MAX) {
        let rule = model.attribute("systemID").map(|id| Rule::DellSystem { system: id.to_ascii_uppercase() });
        let device = text(model);
        metadata.platforms.extend(rule.map(|rule| Target { rule, device, version: None }));
    }
    let dependencies =
        software.child("Dependencies").into_iter().flat_map(|all| &all.children).take(ENTRIES_MAX);
    metadata.requires = dependencies
        .map(|one| Requirement {
            kind: "component".into(),
            subject: one.attribute("componentID").map(str::to_owned).or_else(|| text(one)),
            compare: one.attribute("version").map(|_| "ge".into()),
            version: one.attribute("version").map(str::to_owned),
            depth: None,
        })
        .collect();
    for (key, value) in [
        ("component-type", software.child("ComponentType").and_then(|kind| kind.attribute("value"))),
        ("dell-version", software.attribute("dellVersion")),
        ("release-id", software.attribute("releaseID")),
        ("package-type", software.attribute("packageType")),
    ] {
        metadata.hints.extend(value.map(|value| (key.to_owned(), value.to_owned())));
    }
    Ok(metadata)
}

/// A device by its component id, and by each PCI function it may be.
fn targets(device: &Element, into: &mut Vec<Target>) {
    let name = text(device);
    let rule = device.attribute("componentID").map(|id| Rule::DellComponent { component: id.to_owned() });
    into.extend(rule.map(|rule| Target { rule, device: name.clone(), version: None }));
    for pci in device.all("PCIInfo").take(ENTRIES_MAX) {
        let id = |name| pci.attribute(name).and_then(|id| u16::from_str_radix(id, 16).ok());
        if let Some(vendor) = id("vendorID") {
            let rule = Rule::Pci {
                vendor,
                device: id("deviceID"),
                subvendor: id("subVendorID"),
                subdevice: id("subDeviceID"),
            };
            into.push(Target { rule, device: name.clone(), version: None });
        }
    }
}

/// The English `<Display>` of an element, else its first.
fn text(element: &Element) -> Option<String> {
    let english = element.all("Display").find(|display| display.attribute("lang") == Some("en"));
    english.or_else(|| element.child("Display")).and_then(Element::prose)
}

fn display(software: &Element, name: &str) -> Option<String> {
    software.child(name).and_then(text)
}

fn utf16_le(bytes: &[u8]) -> String {
    let units = bytes
        .chunks_exact(2)
        .map(|pair| pair.iter().rev().fold(0, |unit, byte| (unit << 8) | u16::from(*byte)));
    char::decode_utf16(units).map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
}
