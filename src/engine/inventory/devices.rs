//! PCI functions, network interfaces and disks, as sysfs shows them.

use std::path::{Path, PathBuf};

use super::super::nvme;
use super::{attribute, ethtool};
use crate::wire::inventory::{Disk, NetworkInterface, PciFunction, Unknown};

/// Entries of a directory, sorted by name; nothing when it is not there.
pub(super) fn entries(path: &Path) -> Vec<(String, PathBuf)> {
    let listed = std::fs::read_dir(path).into_iter().flatten().flatten();
    let mut listed: Vec<_> =
        listed.map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path())).collect();
    listed.sort();
    listed
}

/// The last part of where a link points.
pub(super) fn target(path: &Path) -> Option<String> {
    Some(std::fs::read_link(path).ok()?.file_name()?.to_string_lossy().into_owned())
}

/// All PCI functions.
pub fn pci(root: &Path) -> Vec<PciFunction> {
    let function = |(address, path): (String, PathBuf)| {
        let id = |name: &str| {
            let text = attribute(&path.join(name)).unwrap_or_default();
            text.strip_prefix("0x").unwrap_or(&text).to_owned()
        };
        PciFunction {
            address,
            vendor: id("vendor"),
            device: id("device"),
            subsystem_vendor: id("subsystem_vendor"),
            subsystem_device: id("subsystem_device"),
            class: id("class"),
            driver: target(&path.join("driver")),
        }
    };
    entries(&root.join("sys/bus/pci/devices")).into_iter().map(function).collect()
}

/// Interfaces that a driver told the kernel of.
pub fn network(root: &Path, unknown: &mut Vec<Unknown>) -> Vec<NetworkInterface> {
    let mut interfaces = Vec::new();
    for (name, path) in entries(&root.join("sys/class/net")) {
        // A loopback has no device and no firmware.
        if attribute(&path.join("type")).as_deref() == Some("772") {
            continue;
        }
        let mut interface = NetworkInterface {
            mac: attribute(&path.join("address")).unwrap_or_default(),
            driver: target(&path.join("device/driver")),
            bus: target(&path.join("device")),
            name,
            ..NetworkInterface::default()
        };
        match ethtool::driver(&interface.name) {
            Ok(info) => {
                interface.driver = info.driver.or(interface.driver);
                interface.driver_version = info.version;
                interface.firmware_version = info.firmware;
                interface.bus = info.bus.or(interface.bus);
            }
            Err(error) => unknown.push(Unknown {
                what: format!("network.{}.firmware_version", interface.name),
                why: error.to_string(),
            }),
        }
        interfaces.push(interface);
    }
    interfaces
}

/// NVMe, SCSI and SATA disks.
pub fn disks(root: &Path, unknown: &mut Vec<Unknown>) -> Vec<Disk> {
    let mut disks = Vec::new();
    for (name, path) in entries(&root.join("sys/block")) {
        let device = path.join("device");
        let nvme = name.starts_with("nvme");
        if !nvme && !name.starts_with("sd") {
            continue;
        }
        // An NVMe namespace's device is its controller, whose firmware_rev is Identify Controller, bytes 64 to 71; a
        // SCSI disk's rev is the product revision of its INQUIRY, for SATA the ATA firmware revision's end.
        let disk = Disk {
            kind: if nvme { "nvme".into() } else { "scsi".into() },
            model: attribute(&device.join("model")),
            serial: attribute(&device.join("serial")).or_else(|| unit_serial(&device)),
            firmware_version: nvme
                .then(|| revision(root, &device))
                .flatten()
                .or_else(|| attribute(&device.join(if nvme { "firmware_rev" } else { "rev" }))),
            bytes: attribute(&path.join("size"))
                .and_then(|sectors| sectors.parse::<u64>().ok())
                .map(|n| n * 512),
            name,
        };
        if disk.firmware_version.is_none() {
            let why = "the kernel shows no revision for it".to_owned();
            unknown.push(Unknown { what: format!("disk.{}.firmware_version", disk.name), why });
        }
        disks.push(disk);
    }
    disks
}

/// What an NVMe namespace's controller tells now: older kernels keep in sysfs what it told when they found it. With native
/// multipath the namespace's device is the subsystem, and its controllers are below.
fn revision(root: &Path, device: &Path) -> Option<String> {
    let real = std::fs::canonicalize(device).ok()?;
    let name = |path: &Path| path.file_name()?.to_str().map(str::to_owned);
    let is_controller = |name: &String| {
        name.strip_prefix("nvme").is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_digit()))
    };
    let below = || entries(&real).into_iter().map(|(name, _)| name).find(is_controller);
    let controller = name(&real).filter(is_controller).or_else(below)?;
    (root == Path::new("/")).then(|| nvme::revision(&controller)).flatten()
}

/// SCSI vital product data page 80h: four bytes of header, then the unit serial number (SPC-5, section 7.7.20).
fn unit_serial(device: &Path) -> Option<String> {
    let page = std::fs::read(device.join("vpd_pg80")).ok()?;
    let text = String::from_utf8_lossy(page.get(4..)?).trim().to_owned();
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fixture_of_sysfs_is_read_as_it_is() {
        let root = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            crate::durable::write(&path, text.as_bytes(), 0o644).unwrap();
        };
        put("sys/block/nvme0n1/device/firmware_rev", "2B2QEXM7  \n");
        put("sys/block/nvme0n1/size", "2048\n");
        put("sys/block/sda/device/model", "DISK\n");
        put("sys/block/sda/device/vpd_pg80", "\0\u{1}\0\u{4} S12");
        put("sys/bus/pci/devices/0000:00:1f.2/vendor", "0x8086\n");
        let mut unknown = Vec::new();
        let disks = disks(root.path(), &mut unknown);
        assert_eq!(disks[0].firmware_version.as_deref(), Some("2B2QEXM7"));
        assert_eq!(disks[0].bytes, Some(1_048_576));
        assert_eq!(disks[1].serial.as_deref(), Some("S12"));
        assert_eq!(unknown[0].what, "disk.sda.firmware_version");
        assert_eq!(pci(root.path())[0].vendor, "8086");
    }
}
