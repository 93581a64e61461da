//! What HPE says of a component in JSON: `payload.json` of a .fwpkg, and the entries of an SPP's catalogue.
//!
//! Two generations of the same tree differ in the case of their keys and in how they give texts in languages
//! (`{"lang","x_late"}` and `{"Lang","Value"}`); both are read by the same code.

use serde_json::Value;

use super::json::{at, flag, get, list, number, plain, text};
use super::metadata::{Metadata, Reboot, Requirement, Rule, Target};
use crate::firmware::version::VersionFormat;

/// Devices of one package, images of one device.
const ENTRIES_MAX: usize = 1024;

/// The component; `stem` names it where the file does not.
pub fn component(value: &Value, stem: &str) -> Metadata {
    let package = get(value, "package").unwrap_or(value);
    let devices =
        at(value, &["Devices", "Device"]).or_else(|| at(package, &["payload", "Devices", "Device"]));
    let devices: &[Value] = match devices {
        Some(Value::Array(devices)) => devices.get(..ENTRIES_MAX).unwrap_or(devices),
        Some(Value::Object(_)) => devices.map_or(&[], std::slice::from_ref),
        _ => &[],
    };
    let images = || devices.iter().flat_map(|device| list(device, "FirmwareImages").iter().take(ENTRIES_MAX));
    let description = localized(package, "Description");
    let mut metadata = Metadata {
        id: id(package).unwrap_or_else(|| stem.to_owned()),
        name: localized(package, "Name")
            .or_else(|| localized(package, "AltName"))
            .or_else(|| localized(package, "alt_name"))
            .or_else(|| devices.first().and_then(|device| text(device, "DeviceName")))
            .unwrap_or_else(|| stem.to_owned()),
        summary: description,
        vendor: localized(package, "ManufacturerName").or_else(|| localized(package, "manufacturer_name")),
        version: version(package)
            .or_else(|| devices.iter().find_map(|device| text(device, "Version")))
            .unwrap_or_default(),
        version_format: VersionFormat::Hpe,
        released: date(package),
        notes: localized(package, "InstallationNotes").or_else(|| localized(package, "installation_notes")),
        targets: devices.iter().filter_map(target).collect(),
        reboot: reboot(images()),
        expected_s: devices.iter().map(duration).max().filter(|seconds| *seconds > 0),
        os: systems(package),
        installers: list(value, "UpdatableBy").iter().filter_map(plain).map(|word| kebab(&word)).collect(),
        ..Metadata::default()
    };
    let products = get(package, "products").map_or(&[][..], |products| list(products, "product"));
    let products = list(package, "Products").iter().chain(products);
    let families = products.filter_map(|product| text(product, "rom")).take(ENTRIES_MAX);
    metadata.platforms = families.map(|family| Target::of(Rule::HpeRomFamily { family })).collect();
    if let Some(version) = text(value, "MinimumActiveVersion") {
        metadata.requires.push(Requirement {
            kind: "installed-version".into(),
            compare: Some("ge".into()),
            version: Some(version),
            ..Requirement::default()
        });
    }
    let prerequisite =
        localized(package, "PrerequisiteNotes").or_else(|| localized(package, "prerequisite_notes"));
    metadata.requires.extend(prerequisite.map(|words| Requirement {
        kind: "text".into(),
        subject: Some(words),
        ..Requirement::default()
    }));
    for key in ["DeviceClass", "PackageFormat", "Type"] {
        metadata.hints.extend(text(value, key).map(|found| (kebab(key), found)));
    }
    for key in ["DirectFlashOk", "UefiFlashable", "PLDMImage"] {
        // Said of every image; true only when it is true of all of them.
        let said: Vec<bool> = images().filter_map(|image| flag(image, key)).collect();
        if !said.is_empty() {
            metadata.hints.insert(kebab(key), said.iter().all(|flag| *flag).to_string());
        }
    }
    for name in images().filter_map(|image| text(image, "FileName")) {
        if !metadata.payloads.contains(&name) {
            metadata.payloads.push(name);
        }
    }
    metadata
}

fn id(package: &Value) -> Option<String> {
    let id = get(package, "id")?;
    text(id, "product").or_else(|| plain(id))
}

/// "5.61", with the revision in brackets where there is one.
fn version(package: &Value) -> Option<String> {
    let version = get(package, "Version")?;
    let value = text(version, "value").or_else(|| plain(version))?;
    Some(match text(version, "revision") {
        Some(revision) => format!("{value}({revision})"),
        None => value,
    })
}

/// English first, else the first language there is.
fn localized(package: &Value, key: &str) -> Option<String> {
    let value = get(package, key)?;
    if let Some(text) = plain(value) {
        return Some(text);
    }
    let value = get(value, "languages").or_else(|| get(value, "xlate")).unwrap_or(value);
    let entries = match value {
        Value::Array(entries) => entries.as_slice(),
        other => std::slice::from_ref(other),
    };
    let words = |entry: &Value| text(entry, "Value").or_else(|| text(entry, "x_late"));
    let english = entries.iter().find(|entry| text(entry, "lang").is_some_and(|lang| lang == "en"));
    english.and_then(words).or_else(|| entries.iter().find_map(words))
}

fn date(package: &Value) -> Option<String> {
    let date = get(package, "ReleaseDate").or_else(|| get(package, "release_date"))?;
    if let Some(text) = plain(date) {
        return Some(text);
    }
    let part = |key| number(date, key);
    Some(format!("{:04}-{:02}-{:02}", part("year")?, part("month")?, part("day")?))
}

fn target(device: &Value) -> Option<Target> {
    let guid = text(device, "Target")?.to_ascii_lowercase();
    let rule = Rule::HpeTarget { guid };
    Some(Target { rule, device: text(device, "DeviceName"), version: text(device, "Version") })
}

fn reboot<'a>(images: impl Iterator<Item = &'a Value>) -> Option<Reboot> {
    let one = |image: &Value| {
        if flag(image, "ServerPowerOff") == Some(true) {
            return Some(Reboot::PowerOff);
        }
        flag(image, "ResetRequired").map(|needed| if needed { Reboot::Needed } else { Reboot::NotNeeded })
    };
    images.filter_map(one).max()
}

/// Seconds for all images of a device, one after another.
fn duration(device: &Value) -> u32 {
    let seconds = |image: &Value| {
        let of = |key| number(image, key).unwrap_or(0).min(u64::from(u32::MAX)) as u32;
        of("InstallDurationSec").saturating_add(of("DelayAfterInstallSec"))
    };
    let images = list(device, "FirmwareImages").iter().take(ENTRIES_MAX);
    images.map(seconds).fold(0, u32::saturating_add)
}

fn systems(package: &Value) -> Vec<String> {
    let old = get(package, "operating_systems").map_or(&[][..], |all| list(all, "operating_system"));
    let all = list(package, "OperatingSystems").iter().chain(old).take(ENTRIES_MAX);
    let name = |system: &Value| {
        plain(system)
            .or_else(|| text(system, "Value"))
            .or_else(|| text(system, "Name"))
            .or_else(|| localized(system, "operating_system_xlate"))
    };
    all.filter_map(name).collect()
}

/// "RuntimeAgent" as "runtime-agent".
fn kebab(word: &str) -> String {
    let mut out = String::new();
    let mut lower_before = false;
    for c in word.chars() {
        if c.is_ascii_uppercase() && lower_before {
            out.push('-');
        }
        lower_before = c.is_ascii_lowercase();
        out.push(c.to_ascii_lowercase());
    }
    out
}
