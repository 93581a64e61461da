//! Components from packages of a distribution's kind: the node's own tool installs them and tells their versions.

use super::{Made, NotAComponent, PackageFile, base};
use crate::firmware::component::Format;
use crate::firmware::formats::metadata::{Metadata, Requirement};
use crate::firmware::installed::VersionSource;
use crate::firmware::package_tool::PackageTool;
use crate::firmware::rules::Rules;

/// The component of an rpm or a deb.
///
/// # Errors
/// [`NotAComponent`].
pub fn component(metadata: &Metadata, file: &PackageFile, format: Format) -> Result<Made, NotAComponent> {
    let name = metadata.id.clone();
    let mut component = base(metadata, file, format, VersionSource::Package(name.clone()))?;
    let tool = if format == Format::Deb { PackageTool::Dpkg } else { PackageTool::Rpm };
    component.rules = Rules {
        package_tool: Some(tool),
        arch: metadata.arch.as_deref().and_then(machine).map(str::to_owned),
        ..Rules::default()
    };
    let of_packages = |all: &[Requirement]| -> Vec<Requirement> {
        let packages = all.iter().filter(|one| one.kind == "package");
        let named = packages.map(|one| Requirement {
            subject: one.subject.as_deref().map(|name| offer(name.trim())),
            ..one.clone()
        });
        named.collect()
    };
    let (asks, avoids) = (of_packages(&metadata.requires), of_packages(&metadata.conflicts));
    Ok(Made { component, offers: vec![offer(&name)], asks, avoids })
}

fn offer(name: &str) -> String {
    format!("package {name}")
}

/// The machine as `uname` tells it; none for what runs on several.
fn machine(arch: &str) -> Option<&'static str> {
    match arch {
        "x86_64" | "amd64" => Some("x86_64"),
        "aarch64" | "arm64" => Some("aarch64"),
        // "noarch" and "all"; 32-bit packages are the tool's to judge.
        _ => None,
    }
}
