//! HPE smart components: the `CPnnnnnn.xml` that describes them, and the ZIP and self-extracting .exe form.
//!
//! The root is `cpq_package`; texts stand in languages as `name_xlate lang="en"` and so on. What its `installation`
//! says beyond the reboot is kept word for word as hints.

use super::archive::Archive;
use super::error::{Fault, FormatError};
use super::json::yes;
use super::metadata::{Format, Metadata, Package, Payload, Reboot, Requirement, Rule, Target};
use super::xml::{self, Element};
use crate::firmware::version::VersionFormat;

/// The largest `CPnnnnnn.xml` that is read.
pub const XML_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// Descriptions tried in one archive, and entries of each list in one.
const DESCRIPTIONS_MAX: usize = 8;
const ENTRIES_MAX: usize = 1024;
/// How far into a document its root must be.
const ROOT_WITHIN: usize = 1024;
const ROOT: &[u8] = b"<cpq_package";

/// Whether an XML file is such a description.
pub fn is_description(bytes: &[u8]) -> bool {
    let start = bytes.get(..ROOT_WITHIN.min(bytes.len())).unwrap_or_default();
    start.windows(ROOT.len()).any(|window| window == ROOT)
}

/// Reads the archive form; nothing when it holds no description.
///
/// # Errors
/// When the description is malformed.
pub fn read(archive: &mut Archive<'_>, file: &str, size: u64) -> Result<Option<Package>, FormatError> {
    let described =
        archive.members.iter().filter(|member| member.name.to_ascii_lowercase().ends_with(".xml"));
    let described: Vec<_> = described.take(DESCRIPTIONS_MAX).cloned().collect();
    for xml in described {
        let bytes = archive.read(&xml, XML_BYTES_MAX)?;
        if !is_description(&bytes) {
            continue;
        }
        let mut component = component(&format!("{file}: {}", xml.name), &bytes)?;
        let payloads = archive.members.iter().map(|member| Payload {
            name: member.name.clone(),
            size: member.size,
            offset: member.offset,
            ..Payload::default()
        });
        let payloads: Vec<Payload> = payloads.collect();
        component.payloads = payloads.iter().map(|payload| payload.name.clone()).collect();
        return Ok(Some(Package { payloads, ..Package::new(Format::HpeSmart, size, vec![component]) }));
    }
    Ok(None)
}

/// Reads a description; `place` stands for it in errors.
///
/// # Errors
/// When it is malformed, or has no name or version.
pub fn component(place: &str, bytes: &[u8]) -> Result<Metadata, FormatError> {
    let root = xml::parse(place, bytes)?;
    let error = |fault| FormatError { file: place.to_owned(), offset: None, fault };
    if root.name != "cpq_package" {
        return Err(error(Fault::Malformed(format!("the root is <{}>, not <cpq_package>", root.name))));
    }
    let missing = |what: &str| error(Fault::Missing(what.to_owned()));
    let name = localized(&root, "name").ok_or_else(|| missing("<name>"))?;
    let id = root.child("id");
    let id = id.and_then(|id| id.attribute("product").or_else(|| id.words())).map(str::to_owned);
    let mut metadata = Metadata {
        id: id.or_else(|| root.text_of("filename")).unwrap_or_else(|| name.clone()),
        name,
        summary: localized(&root, "description"),
        vendor: localized(&root, "manufacturer_name"),
        version: version(&root).ok_or_else(|| missing("<version>"))?,
        version_format: VersionFormat::Hpe,
        released: root.child("release_date").and_then(date),
        notes: notes(&root),
        os: systems(&root),
        reboot: root.child("installation").and_then(reboot),
        installers: vec!["shell".into()],
        ..Metadata::default()
    };
    let products = root.child("products").into_iter().flat_map(|products| products.all("product"));
    let families = products.filter_map(|product| product.attribute("rom")).take(ENTRIES_MAX);
    metadata.platforms =
        families.map(|family| Target::of(Rule::HpeRomFamily { family: family.to_owned() })).collect();
    metadata.requires.extend(localized(&root, "prerequisite_notes").map(|words| Requirement {
        kind: "text".into(),
        subject: Some(words),
        ..Requirement::default()
    }));
    let change = root.child("version").and_then(|version| version.attribute("type_of_change"));
    metadata.hints.extend(change.map(|change| ("type-of-change".to_owned(), change.to_owned())));
    metadata.hints.extend(root.text_of("filename").map(|name| ("filename".to_owned(), name)));
    if let Some(installation) = root.child("installation") {
        for leaf in installation.children.iter().filter(|leaf| leaf.children.is_empty()).take(ENTRIES_MAX) {
            let value = leaf.attribute("value").or_else(|| leaf.words());
            metadata
                .hints
                .extend(value.map(|value| (format!("installation-{}", leaf.name), value.to_owned())));
        }
    }
    devices(&root, &mut metadata);
    Ok(metadata)
}

/// Fills in what the JSON description of the same package does not say.
pub fn complete(component: &mut Metadata, xml: Metadata) {
    component.vendor = component.vendor.take().or(xml.vendor);
    component.released = component.released.take().or(xml.released);
    component.notes = component.notes.take().or(xml.notes);
    component.summary = component.summary.take().or(xml.summary);
    if component.version.is_empty() {
        component.version = xml.version;
    }
    if component.platforms.is_empty() {
        component.platforms = xml.platforms;
    }
    if component.requires.is_empty() {
        component.requires = xml.requires;
    }
    for (key, value) in xml.hints {
        component.hints.entry(key).or_insert(value);
    }
}

/// English first, else the first language there is.
fn localized(root: &Element, name: &str) -> Option<String> {
    let element = root.child(name)?;
    let texts = || element.children.iter().filter(|child| child.name.ends_with("_xlate"));
    let english = texts().find(|text| text.attribute("lang") == Some("en"));
    let chosen = english.or_else(|| texts().next()).unwrap_or(element);
    chosen.prose()
}

fn version(root: &Element) -> Option<String> {
    let version = root.child("version")?;
    let value = version.attribute("value").or_else(|| version.words())?;
    Some(match version.attribute("revision") {
        Some(revision) => format!("{value}({revision})"),
        None => value.to_owned(),
    })
}

fn date(element: &Element) -> Option<String> {
    let part = |name| element.attribute(name).and_then(|part| part.parse::<u32>().ok());
    Some(format!("{:04}-{:02}-{:02}", part("year")?, part("month")?, part("day")?))
}

fn reboot(installation: &Element) -> Option<Reboot> {
    let said = installation.child("reboot_required")?;
    let word = said.attribute("value").or_else(|| said.words())?;
    Some(if yes(word) { Reboot::Needed } else { Reboot::NotNeeded })
}

fn systems(root: &Element) -> Vec<String> {
    let all = root.child("operating_systems").into_iter().flat_map(|all| all.all("operating_system"));
    all.take(ENTRIES_MAX).filter_map(|system| system.text_of("operating_system_xlate")).collect()
}

/// The newest revision's fixes and enhancements.
fn notes(root: &Element) -> Option<String> {
    let revision = root.child("revision_history")?.child("revision")?;
    let of = |name: &str| {
        let english = revision.all(name).find(|text| text.attribute("lang") == Some("en"));
        english.or_else(|| revision.child(name)).and_then(Element::prose)
    };
    let parts = [of("revision_fixes_xlate"), of("revision_enhancements_xlate")];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    Some(parts.join("\n")).filter(|text| !text.is_empty())
}

/// `payload/Devices/Device`, as in `payload.json`.
fn devices(root: &Element, metadata: &mut Metadata) {
    let devices = root.at(&["payload", "Devices"]).into_iter().flat_map(|devices| devices.all("Device"));
    for device in devices.take(ENTRIES_MAX) {
        let Some(guid) = device.text_of("Target") else { continue };
        metadata.targets.push(Target {
            rule: Rule::HpeTarget { guid: guid.to_ascii_lowercase() },
            device: device.text_of("DeviceName"),
            version: device.text_of("Version"),
        });
        for image in device.all("FirmwareImages") {
            let seconds = image.text_of("InstallDurationSec").and_then(|seconds| seconds.parse().ok());
            metadata.expected_s = metadata.expected_s.max(seconds);
            let needed = image
                .text_of("ResetRequired")
                .map(|word| if yes(&word) { Reboot::Needed } else { Reboot::NotNeeded });
            metadata.reboot = metadata.reboot.max(needed);
        }
    }
}
