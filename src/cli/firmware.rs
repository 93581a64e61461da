//! `carena firmware show`: what a firmware file is, for people and for programs.

use std::path::{Path, PathBuf};

use crate::error::explain;
use crate::firmware::formats::metadata::{
    Package, Payload, Reboot, Requirement, Rule, SignatureState, Target,
};
use crate::firmware::formats::{Metadata, Trust, read, read_member};
use crate::firmware::outcome::Exit;

use super::setup::Ended;
use super::terminal::say;

/// Longer lists are cut for people; `--json` has them whole.
const LISTED_MAX: usize = 12;
/// A file with more components is a catalogue: a line each.
const DESCRIBED_MAX: usize = 8;

/// Reads the file and prints what it says about itself.
pub fn show(file: &Path, member: Option<&str>, trust: &[PathBuf], json: bool) -> Result<Exit, Ended> {
    let trust = Trust::read(trust).map_err(|message| Ended { exit: Exit::BadInput, message })?;
    let package = match member {
        Some(member) => read_member(file, member, &trust),
        None => read(file, &trust),
    };
    let package =
        package.map_err(|error| Ended { exit: Exit::BadInput, message: printable(&explain(&error)) })?;
    if json {
        say(&serde_json::to_string(&package).unwrap_or_default());
    } else {
        text(&file.display().to_string(), &package).iter().for_each(|line| say(&printable(line)));
    }
    Ok(Exit::Done)
}

/// Text of a stranger's file must not steer the terminal.
fn printable(line: &str) -> String {
    line.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

fn text(file: &str, package: &Package) -> Vec<String> {
    let size = package.size.map_or_else(String::new, |size| format!(", {size} bytes"));
    let mut lines = vec![format!("{file}: {}{size}", package.format.title())];
    lines.extend(package.title.iter().map(|title| format!("  {title}")));
    if package.components.len() > DESCRIBED_MAX {
        lines.push(format!("{} components, a line each; --json has everything", package.components.len()));
        lines.extend(package.components.iter().map(brief));
        return lines;
    }
    for component in &package.components {
        lines.push(String::new());
        lines.extend(describe(component));
    }
    section(&mut lines, "files", package.payloads.iter().map(payload));
    section(
        &mut lines,
        "signatures",
        package.signatures.iter().map(|signature| match &signature.state {
            SignatureState::Trusted { by } => format!("{}: {} by {by}: good", signature.of, signature.kind),
            SignatureState::NotTrusted { why } => format!("{}: {}: {why}", signature.of, signature.kind),
        }),
    );
    lines
}

/// One line of a catalogue.
fn brief(component: &Metadata) -> String {
    let file = component.payloads.first().map_or("-", String::as_str);
    let problem =
        component.hints.get("file-problem").map_or_else(String::new, |problem| format!("  {problem}"));
    format!("{:<16} {:<48} {}{problem}", component.version, file, component.name)
}

fn describe(component: &Metadata) -> Vec<String> {
    let mut lines = vec![format!("{} {}", component.name, component.version)];
    let mut field = |name: &str, value: Option<String>| {
        lines.extend(value.map(|value| format!("  {name:<12} {}", value.replace('\n', " "))));
    };
    let list = |all: &[String]| Some(all.join(", ")).filter(|text| !text.is_empty());
    field("id", Some(component.id.clone()));
    field("summary", component.summary.clone());
    field("vendor", component.vendor.clone());
    field("released", component.released.clone());
    field("severity", component.severity.clone());
    field("takes", component.expected_s.map(|seconds| format!("{seconds} s")));
    field("reboot", component.reboot.map(|reboot| reboot_word(reboot).into()));
    field("system", list(&component.os));
    field("machine", component.arch.clone());
    field("installed by", list(&component.installers));
    for (key, value) in &component.hints {
        field(key, Some(value.clone()));
    }
    section(&mut lines, "  for", component.targets.iter().map(target));
    section(&mut lines, "  on", component.platforms.iter().map(target));
    section(&mut lines, "  requires", component.requires.iter().map(requirement));
    section(&mut lines, "  conflicts with", component.conflicts.iter().map(requirement));
    section(&mut lines, "  notes", component.notes.iter().flat_map(|notes| notes.lines().map(str::to_owned)));
    lines
}

/// A heading with its lines, cut where it gets long; nothing when there are none.
fn section(lines: &mut Vec<String>, title: &str, entries: impl Iterator<Item = String>) {
    let indent = " ".repeat(2 + title.len() - title.trim_start().len());
    let all: Vec<String> = entries.collect();
    if all.is_empty() {
        return;
    }
    lines.push(title.to_owned());
    lines.extend(all.iter().take(LISTED_MAX).map(|entry| format!("{indent}{entry}")));
    if all.len() > LISTED_MAX {
        lines.push(format!("{indent}and {} more: see --json", all.len() - LISTED_MAX));
    }
}

fn target(target: &Target) -> String {
    let rule = match &target.rule {
        Rule::FwupdGuid { guid } => format!("fwupd device {guid}"),
        Rule::HpeTarget { guid } => format!("HPE target {guid}"),
        Rule::HpeRomFamily { family } => format!("HPE ROM family {family}"),
        Rule::Pci { vendor, device, subvendor, subdevice } => {
            let id = |id: &Option<u16>| id.map_or_else(|| "*".to_owned(), |id| format!("{id:04x}"));
            format!("PCI {vendor:04x}:{} {}:{}", id(device), id(subvendor), id(subdevice))
        }
        Rule::DellComponent { component } => format!("Dell component {component}"),
        Rule::DellSystem { system } => format!("Dell system {system}"),
        Rule::Package { package } => format!("package {package}"),
        Rule::Pldm { descriptors } => {
            let all: Vec<_> = descriptors.iter().map(|(name, value)| format!("{name} {value}")).collect();
            format!("PLDM {}", all.join(", "))
        }
        Rule::DmiProduct { product } => format!("product {product}"),
    };
    let device = target.device.as_ref().map_or_else(String::new, |device| format!("  {device}"));
    let version = target.version.as_ref().map_or_else(String::new, |version| format!("  {version}"));
    format!("{rule}{device}{version}")
}

fn requirement(requirement: &Requirement) -> String {
    let parts = [&requirement.subject, &requirement.compare, &requirement.version]
        .into_iter()
        .flatten()
        .map(String::as_str);
    let parts: Vec<&str> = std::iter::once(requirement.kind.as_str()).chain(parts).collect();
    parts.join(" ")
}

fn reboot_word(reboot: Reboot) -> &'static str {
    match reboot {
        Reboot::NotNeeded => "not needed",
        Reboot::Needed => "needed",
        Reboot::PowerOff => "needed, with power off",
    }
}

fn payload(payload: &Payload) -> String {
    let checked = match (payload.checksums.is_empty(), payload.checked) {
        (_, true) => ", checksum good",
        (false, false) => ", checksum announced",
        (true, false) => "",
    };
    format!("{:<40} {} bytes{checked}", payload.name, payload.size)
}
