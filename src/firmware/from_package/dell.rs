//! Components from Dell Update Packages.
//!
//! A package names the systems and the PCI functions it is for, and the component ids it needs at which version: of those
//! a chain is made. Only the BIOS tells its version on the node as the package does; everything else Dell's own
//! installer compares (exit code 3), and nothing proves that it took.

use super::kind::Kind;
use super::{Made, NotAComponent, PackageFile, base};
use crate::firmware::component::Format;
use crate::firmware::formats::metadata::{Metadata, Requirement, Rule, Target};
use crate::firmware::installed::VersionSource;
use crate::firmware::rules::{DellSystem, Maker, PciId, Rules};

/// The component of a package.
///
/// # Errors
/// [`NotAComponent`].
pub fn component(metadata: &Metadata, file: &PackageFile) -> Result<Made, NotAComponent> {
    let read_back = match Kind::of(metadata) {
        Kind::Bios => VersionSource::Bios,
        Kind::Bmc => {
            VersionSource::None("IPMI tells only the first two numbers of the iDRAC's version".into())
        }
        Kind::Software => VersionSource::None("Dell's packages for software name no package".into()),
        _ => VersionSource::None("the device's driver tells another version than Dell's package does".into()),
    };
    let mut component = base(metadata, file, Format::DellDup, read_back)?;
    let systems = metadata.platforms.iter().filter_map(system).collect();
    let pci = metadata.targets.iter().filter_map(pci).collect();
    component.rules = Rules { maker: Some(Maker::Dell), dell_system: systems, pci, ..Rules::default() };
    let offers = metadata.targets.iter().filter_map(|target| match &target.rule {
        Rule::DellComponent { component } => Some(offer(component)),
        _ => None,
    });
    let asks = metadata.requires.iter().filter(|one| one.kind == "component" && one.version.is_some());
    let asks = asks.map(|one| Requirement { subject: one.subject.as_deref().map(offer), ..one.clone() });
    Ok(Made { component, offers: offers.collect(), asks: asks.collect(), avoids: Vec::new() })
}

fn offer(component: &str) -> String {
    format!("Dell component {component}")
}

fn system(target: &Target) -> Option<DellSystem> {
    match &target.rule {
        Rule::DellSystem { system } => Some(DellSystem::new(system, target.device.as_deref())),
        _ => None,
    }
}

/// What names a vendor alone would fit too much, so it names nothing.
fn pci(target: &Target) -> Option<PciId> {
    let Rule::Pci { vendor, device: Some(device), subvendor, subdevice } = &target.rule else { return None };
    let subsystem = subvendor.zip(*subdevice).map(|(vendor, device)| format!(":{vendor:04x}:{device:04x}"));
    format!("{vendor:04x}:{device:04x}{}", subsystem.unwrap_or_default()).parse().ok()
}
