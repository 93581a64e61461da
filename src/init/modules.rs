//! Kernel modules, without kmod: reads `modules.dep` and `modules.alias` and hands files to the kernel.
//!
//! The image holds only the modules it names (image/modules) and their dependencies, uncompressed; an alias that
//! leads to none of them is no error. Must never wait for a device: what appears later comes as a uevent.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};

use super::{InitError, screen};

/// The index of the running kernel's modules.
#[derive(Default)]
pub struct Modules {
    root: PathBuf,
    /// Module name -> its file and those it needs, in the order to load.
    files: HashMap<String, Vec<String>>,
    /// Bus ("pci", "virtio") -> patterns and the module each leads to.
    aliases: HashMap<String, Vec<(String, String)>>,
    tried: HashSet<String>,
}

/// Probing disks takes longer than all the rest, and the box is reachable without them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Stage {
    /// Before `serve`: everything but disk controllers.
    #[default]
    WithoutDisks,
    /// Once `serve` is reachable.
    Everything,
}

/// PCI base class 01, mass storage.
fn is_disk_controller(modalias: &str) -> bool {
    modalias.starts_with("pci:") && modalias.contains("bc01")
}

impl Modules {
    /// Reads the index of the running kernel.
    pub fn read() -> Result<Self, InitError> {
        let name = nix::sys::utsname::uname().map_err(InitError::call("asking for the kernel's release"))?;
        let root = Path::new("/lib/modules").join(name.release());
        let text = |file: &str| {
            let path = root.join(file);
            fs::read_to_string(&path).map_err(InitError::file(&path.to_string_lossy()))
        };
        let (files, aliases) = (parse_dep(&text("modules.dep")?), parse_alias(&text("modules.alias")?));
        Ok(Self { root, files, aliases, tried: HashSet::new() })
    }

    /// Loads what the devices that are there now ask for, as far as the stage goes.
    pub fn load_for_present_devices(&mut self, stage: Stage) {
        for bus in names_in(Path::new("/sys/bus")) {
            for device in names_in(&bus.join("devices")) {
                if let Ok(modalias) = fs::read_to_string(device.join("modalias"))
                    && (stage == Stage::Everything || !is_disk_controller(&modalias))
                {
                    self.load_for(modalias.trim_end());
                }
            }
        }
    }

    /// Loads what a device's `modalias` asks for.
    pub fn load_for(&mut self, modalias: &str) {
        let Some((bus, _)) = modalias.split_once(':') else { return };
        let wanted: Vec<String> = self
            .aliases
            .get(bus)
            .into_iter()
            .flatten()
            .filter(|(pattern, _)| glob(pattern.as_bytes(), modalias.as_bytes()))
            .map(|(_, module)| module.clone())
            .collect();
        for module in wanted {
            self.load(&module);
        }
    }

    /// Loads a module and what it needs; each file is tried once.
    pub fn load(&mut self, module: &str) {
        for file in self.files.get(module).cloned().unwrap_or_default() {
            if self.tried.insert(file.clone()) {
                match load_file(&self.root.join(&file)) {
                    Ok(()) => screen::note(&format!("module {file}")),
                    Err(error) => screen::note(&format!("module {}", crate::error::chain(&error))),
                }
            }
        }
    }
}

fn load_file(path: &Path) -> Result<(), InitError> {
    let file = File::open(path).map_err(InitError::file(&path.to_string_lossy()))?;
    match finit_module(&file, c"", ModuleInitFlags::empty()) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(cause) => Err(InitError::File { path: path.display().to_string(), cause: cause.into() }),
    }
}

fn names_in(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// `kernel/a.ko: kernel/b.ko kernel/c.ko`: a needs b, b needs c; so they are loaded from the right.
fn parse_dep(text: &str) -> HashMap<String, Vec<String>> {
    let line = |line: &str| {
        let (file, needs) = line.split_once(':')?;
        let order = needs.split_whitespace().rev().chain([file]).map(str::to_owned).collect();
        let stem = Path::new(file).file_stem()?.to_str()?;
        Some((stem.replace('-', "_"), order))
    };
    text.lines().filter_map(line).collect()
}

/// `alias PATTERN MODULE`, sorted by the bus before the first colon.
fn parse_alias(text: &str) -> HashMap<String, Vec<(String, String)>> {
    let mut buses: HashMap<String, Vec<(String, String)>> = HashMap::new();
    for line in text.lines() {
        let mut words = line.split(' ');
        let (Some("alias"), Some(pattern), Some(module)) = (words.next(), words.next(), words.next()) else {
            continue;
        };
        // ACPI aliases are written "acpi*:PNP0C0C:*".
        if let Some((bus, _)) = pattern.split_once(':') {
            let bus = bus.trim_end_matches('*').to_owned();
            buses.entry(bus).or_default().push((pattern.to_owned(), module.to_owned()));
        }
    }
    buses
}

/// fnmatch(3) with `*`, `?` and `[a-z0]`, as depmod writes them.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let Some((&first, pattern)) = pattern.split_first() else { return text.is_empty() };
    if first == b'*' {
        return (0..=text.len()).any(|skip| text.get(skip..).is_some_and(|text| glob(pattern, text)));
    }
    let Some((&byte, text)) = text.split_first() else { return false };
    match first {
        b'?' => glob(pattern, text),
        b'[' => {
            let Some(end) = pattern.iter().position(|&b| b == b']') else { return false };
            let (class, rest) = pattern.split_at(end);
            in_class(class, byte) && glob(rest.get(1..).unwrap_or_default(), text)
        }
        literal => literal == byte && glob(pattern, text),
    }
}

fn in_class(class: &[u8], byte: u8) -> bool {
    match class {
        [from, b'-', to, rest @ ..] => (*from..=*to).contains(&byte) || in_class(rest, byte),
        [one, rest @ ..] => *one == byte || in_class(rest, byte),
        [] => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_come_before_the_module_that_needs_them() {
        let files =
            parse_dep("kernel/drivers/net/virtio_net.ko: kernel/net_failover.ko kernel/failover.ko\n");
        assert_eq!(
            files["virtio_net"],
            ["kernel/failover.ko", "kernel/net_failover.ko", "kernel/drivers/net/virtio_net.ko"]
        );
    }

    #[test]
    fn a_dash_in_a_file_name_is_an_underscore_in_the_module_name() {
        assert!(parse_dep("kernel/virtio-rng.ko:\n").contains_key("virtio_rng"));
    }

    #[test]
    fn patterns_match_as_depmod_means_them() {
        let pci = b"pci:v00008086d000010D3sv00001AF4sd00000000bc02sc00i00";
        assert!(glob(b"pci:v00008086d000010D3sv*sd*bc*sc*i*", pci));
        assert!(!glob(b"pci:v00008086d000010D4sv*sd*bc*sc*i*", pci));
        assert!(glob(b"usb:v05ACp12[9A]?d*", b"usb:v05ACp129Ad0100"));
        assert!(glob(b"x[0-3]", b"x2") && !glob(b"x[0-3]", b"x4") && !glob(b"x[0", b"x0"));
        assert!(glob(b"", b"") && !glob(b"", b"a") && glob(b"*", b""));
    }

    #[test]
    fn acpi_aliases_are_found_by_their_bus() {
        let mut modules =
            Modules { aliases: parse_alias("alias acpi*:PNP0C0C:* button\n"), ..Modules::default() };
        modules.load_for("acpi:PNP0C0C:");
        assert!(glob(b"acpi*:PNP0C0C:*", b"acpi:PNP0C0C:"));
        assert!(modules.aliases.contains_key("acpi"));
    }
}
