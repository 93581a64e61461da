//! What a node is: the engine reads it from sysfs, procfs and by ioctl, without an external tool.
//!
//! A value that could not be read is absent here and its reason is in [`Inventory::unknown`]: "not known: why"
//! instead of nothing.

use serde::{Deserialize, Serialize};

/// The node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Inventory {
    /// Operating system.
    pub os: Os,
    /// Machine and its firmware, from DMI (`/sys/class/dmi/id`).
    pub dmi: Dmi,
    /// PCI functions, in the order of their addresses.
    pub pci: Vec<PciFunction>,
    /// Network interfaces with a driver.
    pub network: Vec<NetworkInterface>,
    /// NVMe, SCSI, SATA disks.
    pub disks: Vec<Disk>,
    /// Controllers of disks and of Fibre Channel that have firmware of their own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub storage: Vec<StorageController>,
    /// UEFI's table of firmware that capsules update.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub esrt: Vec<EsrtEntry>,
    /// Microcode revision of the first processor, as "0x2006e05".
    #[serde(skip_serializing_if = "Option::is_none")]
    pub microcode: Option<String>,
    /// The management controller, if the node's kernel talks to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bmc: Option<Bmc>,
    /// What fwupd on the node lists, when it was asked: only where a component needs it, or a person looks.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fwupd: Vec<FwupdDevice>,
    /// What could not be read, and why.
    pub unknown: Vec<Unknown>,
}

/// The operating system, from `/etc/os-release` and `uname`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Os {
    /// `ID`, as "debian".
    pub id: String,
    /// `VERSION_ID`.
    pub version: String,
    /// `PRETTY_NAME`.
    pub name: String,
    /// Kernel release.
    pub kernel: String,
    /// Machine, as "x86_64".
    pub arch: String,
    /// Host name.
    pub host: String,
}

/// DMI identification; empty fields are absent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dmi {
    /// System vendor.
    pub vendor: Option<String>,
    /// Product name.
    pub product: Option<String>,
    /// Product SKU.
    pub sku: Option<String>,
    /// Serial number (readable by root only).
    pub serial: Option<String>,
    /// Board name.
    pub board: Option<String>,
    /// BIOS vendor.
    pub bios_vendor: Option<String>,
    /// BIOS version.
    pub bios_version: Option<String>,
    /// BIOS date.
    pub bios_date: Option<String>,
    /// System BIOS release, as "2.72" (SMBIOS, type 0, offsets 14h and 15h).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bios_release: Option<String>,
}

/// A PCI function. Ids are four hexadecimal digits without a prefix.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PciFunction {
    /// `DDDD:BB:DD.F`.
    pub address: String,
    /// Vendor id.
    pub vendor: String,
    /// Device id.
    pub device: String,
    /// Subsystem vendor id.
    pub subsystem_vendor: String,
    /// Subsystem device id.
    pub subsystem_device: String,
    /// Class, six hexadecimal digits.
    pub class: String,
    /// Driver bound to it.
    pub driver: Option<String>,
}

/// A network interface, from sysfs and `ETHTOOL_GDRVINFO`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkInterface {
    /// Name.
    pub name: String,
    /// Hardware address.
    pub mac: String,
    /// Driver.
    pub driver: Option<String>,
    /// Driver's version.
    pub driver_version: Option<String>,
    /// Firmware version as the driver tells it.
    pub firmware_version: Option<String>,
    /// Bus address, as a PCI function's.
    pub bus: Option<String>,
}

/// A disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Disk {
    /// Kernel name, as "nvme0n1" or "sda".
    pub name: String,
    /// "nvme", "scsi" (SATA included).
    pub kind: String,
    /// Model.
    pub model: Option<String>,
    /// Serial number.
    pub serial: Option<String>,
    /// Firmware revision: NVMe Identify Controller bytes 64-71, or SCSI INQUIRY / ATA IDENTIFY.
    pub firmware_version: Option<String>,
    /// Capacity, bytes.
    pub bytes: Option<u64>,
}

/// A controller of disks or of Fibre Channel, as its driver tells it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StorageController {
    /// Kernel name, as "host0".
    pub name: String,
    /// Driver.
    pub driver: Option<String>,
    /// Address of its PCI function.
    pub bus: Option<String>,
    /// Model.
    pub model: Option<String>,
    /// Firmware version.
    pub firmware_version: Option<String>,
}

/// An entry of the EFI System Resource Table (UEFI specification, section 23.4).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EsrtEntry {
    /// The firmware's class, a GUID in lower case: what a capsule is matched by.
    pub guid: String,
    /// 0 unknown, 1 system firmware, 2 device firmware, 3 UEFI driver.
    pub kind: u32,
    /// Version that is active.
    pub version: u32,
    /// The oldest version that may be written.
    pub lowest_supported: Option<u32>,
    /// Version that was tried last.
    pub last_attempt_version: Option<u32>,
    /// What became of it; 0 is success.
    pub last_attempt_status: Option<u32>,
}

/// A management controller, as it answered Get Device ID (IPMI 2.0, section 20.1).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Bmc {
    /// Firmware version, as "2.72".
    pub firmware_version: Option<String>,
    /// The vendor's further digits.
    pub aux_version: Option<String>,
    /// IANA enterprise number, hexadecimal with `0x`.
    pub manufacturer: Option<String>,
    /// Product id, hexadecimal with `0x`.
    pub product: Option<String>,
    /// Version of IPMI it speaks.
    pub ipmi_version: Option<String>,
}

/// A device as fwupd on the node lists it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FwupdDevice {
    /// fwupd's id of it, 40 hexadecimal digits.
    pub id: String,
    /// The device it is part of, by id.
    pub parent: Option<String>,
    /// Name.
    pub name: Option<String>,
    /// Vendor.
    pub vendor: Option<String>,
    /// The plugin that updates it.
    pub plugin: Option<String>,
    /// What firmware is matched by, in lower case.
    pub guids: Vec<String>,
    /// Update protocols, as "org.uefi.capsule".
    pub protocols: Vec<String>,
    /// fwupd's flags, as "updatable", "needs-reboot".
    pub flags: Vec<String>,
    /// Firmware version.
    pub version: Option<String>,
    /// How it is written, as "triplet".
    pub version_format: Option<String>,
    /// The bootloader's version.
    pub bootloader_version: Option<String>,
    /// Why it cannot be updated now.
    pub update_error: Option<String>,
}

/// A value that is not known.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unknown {
    /// What, as "dmi.serial" or "disk.sda.firmware_version".
    pub what: String,
    /// Why, as "permission denied".
    pub why: String,
}
