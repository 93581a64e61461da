//! What firmware the machine itself has: UEFI's own table, processor microcode, the BMC, storage controllers.
//!
//! All of it as the kernel's drivers tell it in sysfs; a driver that is not loaded is not loaded for this.

use std::path::{Path, PathBuf};

use super::attribute;
use super::devices::{entries, target};
use crate::wire::inventory::{Bmc, EsrtEntry, StorageController, Unknown};

/// Attributes in which drivers tell a controller's firmware: smartpqi and bfa, hpsa, mpt3sas, lpfc, qla2xxx.
const CONTROLLER_FIRMWARE: [&str; 5] =
    ["firmware_version", "firmware_revision", "version_fw", "fwrev", "fw_version"];

/// PCI classes of controllers with firmware of their own: RAID, SAS, Fibre Channel (PCI Code and ID
/// Assignment, sections 1.2 and 1.13).
const CONTROLLER_CLASSES: [&str; 3] = ["0x0104", "0x0107", "0x0c04"];

/// The EFI System Resource Table (UEFI specification, section 23.4).
pub fn esrt(root: &Path, unknown: &mut Vec<Unknown>) -> Vec<EsrtEntry> {
    let directory = root.join("sys/firmware/efi/esrt/entries");
    if !directory.is_dir() {
        let why = if root.join("sys/firmware/efi").is_dir() {
            "this machine's UEFI has no ESRT"
        } else {
            "the system was not started by UEFI"
        };
        unknown.push(Unknown { what: "esrt".into(), why: why.into() });
    }
    let entry = |(_, path): (String, PathBuf)| {
        let number = |name: &str| attribute(&path.join(name)).and_then(|text| text.parse().ok());
        Some(EsrtEntry {
            guid: attribute(&path.join("fw_class"))?,
            kind: number("fw_type").unwrap_or_default(),
            version: number("fw_version")?,
            lowest_supported: number("lowest_supported_fw_version"),
            last_attempt_version: number("last_attempt_version"),
            last_attempt_status: number("last_attempt_status"),
        })
    };
    entries(&directory).into_iter().filter_map(entry).collect()
}

/// The microcode revision of the first processor, as "0x2006e05".
pub fn microcode(root: &Path, unknown: &mut Vec<Unknown>) -> Option<String> {
    let told = attribute(&root.join("sys/devices/system/cpu/cpu0/microcode/version")).or_else(|| {
        let text = std::fs::read_to_string(root.join("proc/cpuinfo")).ok()?;
        let line = text.lines().find(|line| line.starts_with("microcode"))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    });
    if told.is_none() {
        let why = "the kernel tells no revision for this processor".into();
        unknown.push(Unknown { what: "microcode".into(), why });
    }
    told
}

/// The BMC, as the kernel's IPMI driver found it by Get Device ID (IPMI 2.0, section 20.1).
pub fn bmc(root: &Path, unknown: &mut Vec<Unknown>) -> Option<Bmc> {
    let devices = entries(&root.join("sys/bus/platform/devices"));
    let Some((_, path)) = devices.into_iter().find(|(name, _)| name.starts_with("ipmi_bmc")) else {
        // SMBIOS type 38 is the IPMI device information.
        let why = if root.join("sys/firmware/dmi/entries/38-0").is_dir() {
            "the machine has one, but the IPMI driver is not loaded (modprobe ipmi_si ipmi_devintf)"
        } else {
            "SMBIOS names none"
        };
        unknown.push(Unknown { what: "bmc".into(), why: why.into() });
        return None;
    };
    let value = |name: &str| attribute(&path.join(name));
    Some(Bmc {
        firmware_version: value("firmware_revision"),
        aux_version: value("aux_firmware_revision"),
        manufacturer: value("manufacturer_id"),
        product: value("product_id"),
        ipmi_version: value("ipmi_version"),
    })
}

/// Controllers of disks and of Fibre Channel with firmware of their own.
pub fn storage(root: &Path, unknown: &mut Vec<Unknown>) -> Vec<StorageController> {
    let mut controllers = Vec::new();
    for (name, path) in entries(&root.join("sys/class/scsi_host")) {
        let told = |names: &[&str]| names.iter().find_map(|name| attribute(&path.join(name)));
        let firmware_version = told(&CONTROLLER_FIRMWARE);
        let function = function_of(&path);
        let class = function.as_ref().and_then(|function| attribute(&function.join("class")));
        let is_controller = CONTROLLER_CLASSES
            .iter()
            .any(|wanted| class.as_deref().is_some_and(|class| class.starts_with(wanted)));
        if firmware_version.is_none() && !is_controller {
            continue;
        }
        let bus = function.as_ref().and_then(|function| Some(function.file_name()?.to_str()?.to_owned()));
        let driver = told(&["proc_name"]).or_else(|| target(&function?.join("driver")));
        if firmware_version.is_none() {
            let driver = driver.as_deref().unwrap_or("the driver");
            let why = format!("{driver} shows no revision for it");
            unknown.push(Unknown { what: format!("storage.{name}.firmware_version"), why });
        }
        let model = told(&["model", "board_name", "modelname"]);
        controllers.push(StorageController { name, driver, bus, model, firmware_version });
    }
    controllers
}

/// The PCI function a SCSI host hangs off.
fn function_of(host: &Path) -> Option<PathBuf> {
    let real = std::fs::canonicalize(host).ok()?;
    real.ancestors().find(|path| path.join("class").is_file()).map(Path::to_path_buf)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            crate::durable::write(&path, text.as_bytes(), 0o644).unwrap();
        }
        root
    }

    #[test]
    fn the_firmware_of_a_server_is_read_from_its_sysfs() {
        let pci = "sys/devices/pci0000:00/0000:5c:00.0";
        let root = fixture(&[
            ("sys/firmware/efi/esrt/entries/entry0/fw_class", "ddc0ee61-e7f0-4e7d-acc5-c070a398838e\n"),
            ("sys/firmware/efi/esrt/entries/entry0/fw_type", "1\n"),
            ("sys/firmware/efi/esrt/entries/entry0/fw_version", "131089\n"),
            ("sys/firmware/efi/esrt/entries/entry0/last_attempt_status", "0\n"),
            ("proc/cpuinfo", "processor\t: 0\nmicrocode\t: 0x2006e05\n"),
            ("sys/bus/platform/devices/ipmi_bmc.0/firmware_revision", "2.72\n"),
            ("sys/bus/platform/devices/ipmi_bmc.0/manufacturer_id", "0x00000b\n"),
            (&format!("{pci}/class"), "0x010700\n"),
            (&format!("{pci}/host0/scsi_host/host0/proc_name"), "smartpqi\n"),
            (&format!("{pci}/host0/scsi_host/host0/firmware_version"), "5.00-0\n"),
            (&format!("{pci}/host1/scsi_host/host1/proc_name"), "megaraid_sas\n"),
            ("sys/class/scsi_host/host9/proc_name", "usb-storage\n"),
        ]);
        for host in ["host0", "host1"] {
            let link = root.path().join("sys/class/scsi_host").join(host);
            std::os::unix::fs::symlink(root.path().join(format!("{pci}/{host}/scsi_host/{host}")), link)
                .unwrap();
        }
        let mut unknown = Vec::new();
        let esrt = esrt(root.path(), &mut unknown);
        assert_eq!((esrt[0].kind, esrt[0].version, esrt[0].last_attempt_status), (1, 131_089, Some(0)));
        assert_eq!(microcode(root.path(), &mut unknown).as_deref(), Some("0x2006e05"));
        let bmc = bmc(root.path(), &mut unknown).unwrap();
        assert_eq!(bmc.firmware_version.as_deref(), Some("2.72"));
        assert!(unknown.is_empty(), "{unknown:?}");
        let controllers = storage(root.path(), &mut unknown);
        assert_eq!(controllers.len(), 2);
        assert_eq!(controllers[0].firmware_version.as_deref(), Some("5.00-0"));
        assert_eq!(controllers[0].bus.as_deref(), Some("0000:5c:00.0"));
        assert_eq!(unknown[0].what, "storage.host1.firmware_version");
        assert!(unknown[0].why.starts_with("megaraid_sas shows no"), "{unknown:?}");
    }

    #[test]
    fn what_is_not_there_says_why() {
        let root = fixture(&[("sys/firmware/dmi/entries/38-0/raw", "")]);
        let mut unknown = Vec::new();
        assert!(esrt(root.path(), &mut unknown).is_empty());
        assert_eq!(microcode(root.path(), &mut unknown), None);
        assert_eq!(bmc(root.path(), &mut unknown), None);
        let why: Vec<_> =
            unknown.iter().map(|unknown| format!("{}: {}", unknown.what, unknown.why)).collect();
        assert_eq!(why[0], "esrt: the system was not started by UEFI");
        assert!(why[2].contains("the IPMI driver is not loaded"), "{why:?}");
    }
}
