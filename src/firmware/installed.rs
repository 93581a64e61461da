//! Where the version of a component that a node has now is read: by the engine, or from the inventory.
//!
//! It is what every outcome is judged by, before and after, so what cannot be told is said, never assumed.

use std::cmp::Ordering;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::fwupd;
use super::package_tool::PackageTool;
use super::rules::PciId;
use super::version::VersionFormat;
use crate::wire::inventory::{Dmi, Inventory};
use crate::wire::message::ReadBack;

/// Where a version stands on a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum VersionSource {
    /// The first line of a file, without white space at its ends.
    File(String),
    /// The first line of a program's standard output: program and arguments, no shell. Nothing printed means nothing
    /// installed; a program that fails means that it is not known.
    Command(Vec<String>),
    /// An installed package of the node's package tool, as `[epoch:]version-release`.
    Package(String),
    /// The system ROM, by DMI.
    Bios,
    /// The management controller.
    Bmc,
    /// The processors' microcode.
    Microcode,
    /// Disks of this model.
    Disk(String),
    /// Network cards with this PCI id.
    Network(PciId),
    /// Storage controllers with this PCI id.
    Storage(PciId),
    /// An entry of UEFI's table of firmware, by its GUID.
    Uefi(String),
    /// Devices that fwupd lists under one of these GUIDs.
    Fwupd(Vec<String>),
    /// Nowhere that the engine can look, and why: its installer decides whether it is needed, and nothing proves that it
    /// took.
    None(String),
}

/// What is known of a version: none when nothing is installed, an error in words when that cannot be told.
pub type Known = Result<Option<String>, String>;

/// How a version is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// The engine reads it.
    Engine(ReadBack),
    /// It stands in the inventory.
    Inventory,
}

impl VersionSource {
    /// How it is asked for on this node.
    ///
    /// # Errors
    /// Why it cannot be, in words.
    pub fn asked(&self, node: &Inventory) -> Result<Asked, String> {
        Ok(Asked::Engine(match self {
            Self::File(path) => ReadBack::File(path.clone()),
            Self::Command(command) => ReadBack::Command(command.clone()),
            Self::Package(name) => ReadBack::Command(package_query(name, node)?),
            Self::None(why) => return Err(why.clone()),
            _ => return Ok(Asked::Inventory),
        }))
    }

    /// Whether it is a device's: without the device there is nothing to be installed.
    pub fn is_device(&self) -> bool {
        !matches!(self, Self::File(_) | Self::Command(_) | Self::Package(_) | Self::None(_))
    }

    /// Whether no version can be read at all.
    pub fn is_none(&self) -> bool {
        matches!(self, Self::None(_))
    }

    /// Whether it is fwupd on the node that tells it.
    pub fn is_fwupd(&self) -> bool {
        matches!(self, Self::Fwupd(_))
    }

    /// Whether it is found in the inventory, or asked for as the inventory says.
    pub fn needs_inventory(&self) -> bool {
        self.is_device() || matches!(self, Self::Package(_))
    }

    /// The version in an inventory; of several devices, the oldest one. None when there is no such device.
    ///
    /// # Errors
    /// Why it is not known, in words: two versions that cannot be compared, a device that tells none.
    pub fn find(&self, node: &Inventory, format: VersionFormat) -> Known {
        let function = |bus: &Option<String>, id: &PciId| {
            let bus = bus.as_deref();
            node.pci.iter().any(|function| bus == Some(function.address.as_str()) && id.is(function))
        };
        let versions: Vec<(&str, Option<String>)> = match self {
            // Asked of the engine.
            Self::File(_) | Self::Command(_) | Self::Package(_) => Vec::new(),
            Self::None(why) => return Err(why.clone()),
            Self::Bios => vec![("the system ROM", system_rom(&node.dmi))],
            Self::Bmc => node.bmc.iter().map(|bmc| ("the BMC", bmc.firmware_version.clone())).collect(),
            Self::Microcode => vec![("the processor", node.microcode.clone())],
            Self::Disk(model) => {
                let disks = node.disks.iter().filter(|disk| disk.model.as_ref() == Some(model));
                disks.map(|disk| (disk.name.as_str(), disk.firmware_version.clone())).collect()
            }
            Self::Network(id) => {
                let cards = node.network.iter().filter(|card| function(&card.bus, id));
                cards.map(|card| (card.name.as_str(), card.firmware_version.clone())).collect()
            }
            Self::Storage(id) => {
                let controllers = node.storage.iter().filter(|controller| function(&controller.bus, id));
                controllers.map(|one| (one.name.as_str(), one.firmware_version.clone())).collect()
            }
            Self::Uefi(guid) => {
                let entries = node.esrt.iter().filter(|entry| entry.guid.eq_ignore_ascii_case(guid));
                entries.map(|entry| ("UEFI", Some(entry.version.to_string()))).collect()
            }
            Self::Fwupd(guids) => fwupd::versions(guids, node)?,
        };
        oldest(&versions, format)
    }
}

/// HPE's system ROMs tell only their family as their version: number and date stand beside it.
fn system_rom(dmi: &Dmi) -> Option<String> {
    let version = dmi.bios_version.clone()?;
    match (dmi.bios_vendor.as_deref(), &dmi.bios_release, &dmi.bios_date) {
        (Some("HPE" | "HP"), Some(release), Some(date)) if !version.contains(' ') => {
            Some(format!("{version} v{release} ({date})"))
        }
        _ => Some(version),
    }
}

fn oldest(versions: &[(&str, Option<String>)], format: VersionFormat) -> Known {
    let mut oldest: Option<&String> = None;
    for (device, version) in versions {
        let version = version.as_ref().ok_or_else(|| format!("{device} tells no version"))?;
        let order = oldest.map(|oldest| {
            let order = format.compare(version, oldest);
            order.ok_or_else(|| format!("{version} and {oldest} cannot be compared as {format} versions"))
        });
        if order.transpose()?.is_none_or(Ordering::is_lt) {
            oldest = Some(version);
        }
    }
    Ok(oldest.cloned())
}

/// Asks dpkg; a package that was removed may still be known to it. It ends with 1 when it knows of none.
const DPKG: &str = r#"told=$(dpkg-query -W -f '${db:Status-Status} ${Version}' "$1") || case $? in 1) exit 0;; *) exit 1;; esac
case $told in "installed "*) printf '%s\n' "${told#installed }";; esac"#;

/// Asks rpm, which tells on its standard output that there is none.
const RPM: &str = r#"told=$(rpm -q --qf '%|EPOCH?{%{EPOCH}:}|%{VERSION}-%{RELEASE}\n' "$1") ||
case $told in *"is not installed"*) exit 0;; *) exit 1;; esac
printf '%s\n' "$told""#;

/// The node's own package tool, by its distribution's family.
fn package_query(name: &str, node: &Inventory) -> Result<Vec<String>, String> {
    let script = match PackageTool::of(&node.os)? {
        PackageTool::Dpkg => DPKG,
        PackageTool::Rpm => RPM,
    };
    Ok(["/bin/sh", "-c", script, "sh", name].map(str::to_owned).to_vec())
}

impl fmt::Display for VersionSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "the version in {path}"),
            Self::Command(command) => write!(f, "the version told by {}", command.join(" ")),
            Self::Package(name) => write!(f, "package {name}"),
            Self::Bios => f.write_str("the system ROM"),
            Self::Bmc => f.write_str("the BMC's firmware"),
            Self::Microcode => f.write_str("the microcode"),
            Self::Disk(model) => write!(f, "the firmware of disks {model}"),
            Self::Network(id) => write!(f, "the firmware of network card {id}"),
            Self::Storage(id) => write!(f, "the firmware of storage controller {id}"),
            Self::Uefi(guid) => write!(f, "UEFI firmware {guid}"),
            Self::Fwupd(guids) => write!(f, "fwupd device {}", fwupd::words(guids)),
            Self::None(_) => f.write_str("no place of its version that is known"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::inventory::{Disk, NetworkInterface, Os, PciFunction};

    fn source(text: &str) -> VersionSource {
        #[derive(Deserialize)]
        struct Manifest {
            read_back: VersionSource,
        }
        toml::from_str::<Manifest>(&format!("read_back = {text}")).unwrap().read_back
    }

    #[test]
    fn of_several_devices_the_oldest_counts() {
        let disk = |name: &str, version: Option<&str>| Disk {
            name: name.into(),
            model: Some("M".into()),
            firmware_version: version.map(str::to_owned),
            ..Disk::default()
        };
        let mut node = Inventory {
            disks: vec![disk("sda", Some("HPDA")), disk("sdb", Some("HPD9"))],
            pci: vec![PciFunction {
                address: "0000:01:00.0".into(),
                vendor: "8086".into(),
                device: "1572".into(),
                ..PciFunction::default()
            }],
            network: vec![NetworkInterface {
                bus: Some("0000:01:00.0".into()),
                firmware_version: Some("8.50".into()),
                ..NetworkInterface::default()
            }],
            ..Inventory::default()
        };
        let find = |node: &Inventory, text| source(text).find(node, VersionFormat::Hpe);
        assert_eq!(find(&node, "{ disk = \"M\" }"), Ok(Some("HPD9".into())));
        assert_eq!(find(&node, "{ disk = \"other\" }"), Ok(None));
        assert_eq!(find(&node, "{ network = \"8086:1572\" }"), Ok(Some("8.50".into())));
        assert_eq!(find(&node, "{ network = \"8086:1521\" }"), Ok(None));
        assert_eq!(find(&node, "\"bios\"").unwrap_err(), "the system ROM tells no version");
        let rom = |release: Option<&str>| Dmi {
            bios_vendor: Some("HPE".into()),
            bios_version: Some("U30".into()),
            bios_release: release.map(str::to_owned),
            bios_date: Some("09/29/2022".into()),
            ..Dmi::default()
        };
        node.dmi = rom(Some("2.72"));
        let told = find(&node, "\"bios\"").unwrap().unwrap();
        assert_eq!(VersionFormat::Hpe.compare(&told, "U30 v2.72 (09/29/2022)"), Some(Ordering::Equal));
        node.dmi = rom(None);
        assert_eq!(find(&node, "\"bios\""), Ok(Some("U30".into())));
        node.disks.push(disk("sdc", Some("HPG1")));
        assert!(find(&node, "{ disk = \"M\" }").unwrap_err().contains("cannot be compared as hpe versions"));
        node.disks.push(disk("sdd", None));
        node.disks.swap(2, 3);
        assert_eq!(find(&node, "{ disk = \"M\" }").unwrap_err(), "sdd tells no version");
    }

    #[test]
    fn a_package_is_asked_of_the_nodes_own_tool() {
        let node = |id: &str| Inventory { os: Os { id: id.into(), ..Os::default() }, ..Inventory::default() };
        let asked = |id| source("{ package = \"base-files\" }").asked(&node(id));
        let says = |id| {
            let Ok(Asked::Engine(ReadBack::Command(command))) = asked(id) else { panic!("{id}") };
            let mut program = std::process::Command::new(&command[0]);
            #[expect(clippy::disallowed_methods, reason = "the node's own tool, here as there")]
            let output = program.args(&command[1..]).stderr(std::process::Stdio::null()).output().unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        let installed = says("debian");
        assert!(VersionFormat::Deb.accepts(installed.trim()) && !installed.contains(' '), "{installed}");
        // Debian's rpm has no package of its own in its database, and must not be heard saying so.
        assert_eq!(says("rocky"), "");
        assert!(asked("plan9").unwrap_err().contains("plan9"));
        assert_eq!(source("\"bmc\"").asked(&node("debian")), Ok(Asked::Inventory));
    }
}
