//! What the node is, from sysfs, procfs and one ioctl; no external tool. Nothing here changes anything.

mod devices;
mod ethtool;
mod firmware;

use std::path::Path;

use crate::wire::inventory::{Dmi, Inventory, Os, Unknown};

/// Reads everything; what cannot be read is listed with why.
pub fn read() -> Inventory {
    read_at(Path::new("/"))
}

fn read_at(root: &Path) -> Inventory {
    let mut unknown = Vec::new();
    Inventory {
        os: os(root),
        dmi: dmi(root, &mut unknown),
        pci: devices::pci(root),
        network: devices::network(root, &mut unknown),
        disks: devices::disks(root, &mut unknown),
        storage: firmware::storage(root, &mut unknown),
        esrt: firmware::esrt(root, &mut unknown),
        microcode: firmware::microcode(root, &mut unknown),
        bmc: firmware::bmc(root, &mut unknown),
        // Asked for by itself, and read by the box.
        fwupd: Vec::new(),
        unknown,
    }
}

/// A sysfs attribute without white space at its ends; none when empty or absent.
fn attribute(path: &Path) -> Option<String> {
    let text = std::fs::read(path).ok()?;
    let text =
        String::from_utf8_lossy(&text).trim_matches(|c: char| c.is_whitespace() || c == '\0').to_owned();
    (!text.is_empty()).then_some(text)
}

fn os(root: &Path) -> Os {
    let release = std::fs::read_to_string(root.join("etc/os-release"))
        .or_else(|_| std::fs::read_to_string(root.join("usr/lib/os-release")))
        .unwrap_or_default();
    let value = |key: &str| {
        let line = release.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.map(|value| value.trim_matches(['"', '\'']).to_owned()).unwrap_or_default()
    };
    let mut os =
        Os { id: value("ID"), version: value("VERSION_ID"), name: value("PRETTY_NAME"), ..Os::default() };
    if let Ok(system) = nix::sys::utsname::uname() {
        os.kernel = system.release().to_string_lossy().into_owned();
        os.arch = system.machine().to_string_lossy().into_owned();
        os.host = system.nodename().to_string_lossy().into_owned();
    }
    os
}

fn dmi(root: &Path, unknown: &mut Vec<Unknown>) -> Dmi {
    let directory = root.join("sys/class/dmi/id");
    if !directory.is_dir() {
        unknown.push(Unknown { what: "dmi".into(), why: "the kernel shows no DMI table".into() });
        return Dmi::default();
    }
    let value = |name: &str| attribute(&directory.join(name));
    Dmi {
        vendor: value("sys_vendor"),
        product: value("product_name"),
        sku: value("product_sku"),
        serial: value("product_serial"),
        board: value("board_name"),
        bios_vendor: value("bios_vendor"),
        bios_version: value("bios_version"),
        bios_date: value("bios_date"),
        bios_release: value("bios_release"),
    }
}
