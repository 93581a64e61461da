//! Which nodes a component is for, and what must be in place there first; a refusal is a sentence for a person.
//!
//! Everything is judged by what the node's inventory says. What is not known never fits: firmware for another
//! machine is worse than none.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::fwupd;
use super::installed::VersionSource;
use super::package_tool::PackageTool;
use super::version::VersionFormat;
use crate::wire::inventory::{Dmi, Inventory, PciFunction};

/// A PCI id, `vendor:device` or `vendor:device:subsystem-vendor:subsystem-device`, four hexadecimal digits each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PciId {
    device: (String, String),
    subsystem: Option<(String, String)>,
}

impl PciId {
    /// Whether a function has this id.
    pub fn is(&self, function: &PciFunction) -> bool {
        let same = |wanted: &(String, String), vendor: &str, device: &str| {
            wanted.0.eq_ignore_ascii_case(vendor) && wanted.1.eq_ignore_ascii_case(device)
        };
        let of_subsystem = |wanted| same(wanted, &function.subsystem_vendor, &function.subsystem_device);
        same(&self.device, &function.vendor, &function.device)
            && self.subsystem.as_ref().is_none_or(of_subsystem)
    }
}

impl FromStr for PciId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<_> = text.split(':').map(str::to_ascii_lowercase).collect();
        let valid = parts.iter().all(|part| part.len() == 4 && part.chars().all(|c| c.is_ascii_hexdigit()));
        match <[String; 4]>::try_from(parts.clone()) {
            Ok([vendor, device, of, subsystem]) if valid => {
                return Ok(Self { device: (vendor, device), subsystem: Some((of, subsystem)) });
            }
            _ => {}
        }
        match <[String; 2]>::try_from(parts) {
            Ok([vendor, device]) if valid => Ok(Self { device: (vendor, device), subsystem: None }),
            _ => Err(format!("\"{text}\" is no PCI id: write 8086:1572 or 8086:1572:103c:22fd")),
        }
    }
}

impl fmt::Display for PciId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.device.0, self.device.1)?;
        match &self.subsystem {
            Some((vendor, device)) => write!(f, ":{vendor}:{device}"),
            None => Ok(()),
        }
    }
}

impl Serialize for PciId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PciId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Which nodes a component is for: everything that is named must fit; of a list, one of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rules {
    /// `ID` of os-release.
    pub os: Option<String>,
    /// Machine, as "x86_64".
    pub arch: Option<String>,
    /// DMI system vendor.
    pub dmi_vendor: Option<String>,
    /// DMI product name.
    pub dmi_product: Option<String>,
    /// PCI functions.
    pub pci: Vec<PciId>,
    /// Disk models, NVMe ones included.
    pub disk_model: Vec<String>,
    /// GUIDs of UEFI's table of firmware (ESRT).
    pub guid: Vec<String>,
    /// GUIDs of devices that fwupd lists and updates.
    pub fwupd_guid: Vec<String>,
    /// Who made the machine.
    pub maker: Option<Maker>,
    /// The package tool that the node's distribution has.
    pub package_tool: Option<PackageTool>,
    /// HPE machines by the family of their system ROM, as "U30".
    pub rom_family: Vec<String>,
    /// Dell machines.
    pub dell_system: Vec<DellSystem>,
}

/// A maker of machines, under all of its names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Maker {
    /// Dell.
    Dell,
    /// Hewlett Packard Enterprise, and what was HP.
    Hpe,
}

impl Maker {
    fn made(self, dmi: &Dmi) -> bool {
        let vendor = dmi.vendor.as_deref().unwrap_or_default();
        match self {
            Self::Dell => vendor.starts_with("Dell"),
            Self::Hpe => matches!(vendor, "HP" | "HPE") || vendor.starts_with("Hewlett"),
        }
    }
}

impl fmt::Display for Maker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dell => "Dell",
            Self::Hpe => "HPE",
        })
    }
}

/// A Dell machine: `ID`, its system id of four hexadecimal digits, or `ID MODEL`, as "0627 R730". Machines of some
/// generations tell their id in DMI, all of them their model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DellSystem(String);

impl DellSystem {
    /// By its id, and the model's name where it is known.
    pub fn new(id: &str, model: Option<&str>) -> Self {
        Self(model.map_or_else(|| id.to_owned(), |model| format!("{id} {}", model.trim())))
    }

    /// Whether it is this machine, as its DMI tells: "SKU=0627;ModelName=PowerEdge R730", "PowerEdge R730".
    fn is(&self, dmi: &Dmi) -> bool {
        let (id, model) = self.0.split_once(' ').unwrap_or((&self.0, ""));
        let sku = dmi.sku.as_deref().unwrap_or_default();
        let told = sku.split(';').next().unwrap_or_default();
        let is_id = told.strip_prefix("SKU=").unwrap_or(told).eq_ignore_ascii_case(id);
        let product = dmi.product.as_deref().unwrap_or_default().split_whitespace();
        let wanted: Vec<&str> = model.split_whitespace().collect();
        let words: Vec<&str> = product.collect();
        let is_model = !wanted.is_empty() && words.ends_with(&wanted);
        Maker::Dell.made(dmi) && (is_id || is_model)
    }
}

impl fmt::Display for DellSystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether an HPE machine's system ROM is of a family: its DMI tells "U30", or "U30 v2.72 (09/29/2022)".
fn is_of_family(family: &str, dmi: &Dmi) -> bool {
    let is_hpe = matches!(dmi.bios_vendor.as_deref(), Some("HPE" | "HP"));
    let told = dmi.bios_version.as_deref().and_then(|version| version.split_whitespace().next());
    is_hpe && told.is_some_and(|told| told.eq_ignore_ascii_case(family))
}

impl Rules {
    /// Whether they name a model of a machine or of a device, not only whose it is.
    pub fn names_a_machine(&self) -> bool {
        self.dmi_product.is_some()
            || !(self.pci.is_empty()
                && self.disk_model.is_empty()
                && self.guid.is_empty()
                && self.fwupd_guid.is_empty()
                && self.rom_family.is_empty()
                && self.dell_system.is_empty())
    }

    /// Whether they fit a node.
    ///
    /// # Errors
    /// Why not, in words.
    pub fn fit(&self, node: &Inventory) -> Result<(), String> {
        let one = |what: &str, wanted: &Option<String>, found: Option<&str>| match wanted {
            Some(wanted) if found != Some(wanted.as_str()) => {
                Err(format!("for {what} {wanted}, the node has {}", found.unwrap_or("none that is known")))
            }
            _ => Ok(()),
        };
        one("operating system", &self.os, Some(&node.os.id))?;
        one("architecture", &self.arch, Some(&node.os.arch))?;
        one("vendor", &self.dmi_vendor, node.dmi.vendor.as_deref())?;
        one("product", &self.dmi_product, node.dmi.product.as_deref())?;
        any("PCI device", &self.pci, |id| node.pci.iter().any(|function| id.is(function)))?;
        any("disk model", &self.disk_model, |model| {
            node.disks.iter().any(|disk| disk.model.as_deref() == Some(model.as_str()))
        })?;
        any("UEFI firmware", &self.guid, |guid| {
            node.esrt.iter().any(|entry| entry.guid.eq_ignore_ascii_case(guid))
        })?;
        if let Some(maker) = self.maker.filter(|maker| !maker.made(&node.dmi)) {
            let vendor = node.dmi.vendor.as_deref().unwrap_or("nobody that is known");
            return Err(format!("for machines of {maker}, this one is of {vendor}"));
        }
        if let Some(wanted) = self.package_tool {
            let found = PackageTool::of(&node.os)?;
            if found != wanted {
                return Err(format!("for package tool {wanted}, the node has {found}"));
            }
        }
        any("HPE ROM family", &self.rom_family, |family| is_of_family(family, &node.dmi))?;
        any("Dell system", &self.dell_system, |system| system.is(&node.dmi))?;
        fwupd::fit(&self.fwupd_guid, node)
    }
}

/// One of a list, unless nothing is listed.
fn any<T: fmt::Display>(what: &str, wanted: &[T], is_there: impl Fn(&T) -> bool) -> Result<(), String> {
    if wanted.is_empty() || wanted.iter().any(is_there) {
        return Ok(());
    }
    let listed: Vec<_> = wanted.iter().take(4).map(T::to_string).collect();
    let more = if wanted.len() > listed.len() { " or others" } else { "" };
    Err(format!("for {what} {}{more}, the node has none of it", listed.join(" or ")))
}

/// A version that must be in place on the node before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Need {
    /// Of what.
    pub version_of: VersionSource,
    /// Its format.
    #[serde(default)]
    pub version_format: VersionFormat,
    /// This one or a newer one.
    pub at_least: Option<String>,
    /// A newer one than this.
    pub after: Option<String>,
    /// This one or an older one.
    pub at_most: Option<String>,
    /// An older one than this.
    pub before: Option<String>,
    /// This one and no other.
    pub exactly: Option<String>,
    /// Any but these.
    #[serde(default)]
    pub not: Vec<String>,
}

impl Need {
    /// Any version of it.
    pub fn of(version_of: VersionSource, version_format: VersionFormat) -> Self {
        Self {
            version_of,
            version_format,
            at_least: None,
            after: None,
            at_most: None,
            before: None,
            exactly: None,
            not: Vec::new(),
        }
    }

    /// Whether `installed` is what is needed.
    ///
    /// # Errors
    /// What is needed and what there is, in words.
    pub fn met(&self, installed: Option<&str>) -> Result<(), String> {
        let of = &self.version_of;
        let Some(installed) = installed else {
            return Err(format!("needs {of}{}, and its version is not known", self.words()));
        };
        let order = |wanted: &str| {
            let order = self.version_format.compare(installed, wanted);
            order.ok_or_else(|| {
                let format = self.version_format;
                format!("needs {of}{}, and {installed} is not a {format} version like it", self.words())
            })
        };
        let holds = |bound: &Option<String>, holds: fn(Ordering) -> bool| match bound {
            Some(bound) => order(bound).map(holds),
            None => Ok(true),
        };
        let is_within = holds(&self.at_least, Ordering::is_ge)?
            && holds(&self.after, Ordering::is_gt)?
            && holds(&self.at_most, Ordering::is_le)?
            && holds(&self.before, Ordering::is_lt)?
            && holds(&self.exactly, Ordering::is_eq)?;
        if is_within && !self.not.iter().any(|version| version == installed) {
            return Ok(());
        }
        Err(format!("needs {of}{}, and {installed} is there", self.words()))
    }

    fn words(&self) -> String {
        let one = |before: &str, bound: &Option<String>, after: &str| {
            bound.as_ref().map(|version| format!(" {before}{version}{after}"))
        };
        let bounds = [
            one("", &self.exactly, ""),
            one("", &self.at_least, " or newer"),
            one("after ", &self.after, ""),
            one("", &self.at_most, " or older"),
            one("before ", &self.before, ""),
        ];
        let not = self.not.iter().map(|version| format!(" other than {version}"));
        bounds.into_iter().flatten().chain(not).collect::<Vec<_>>().join(",")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::inventory::{Disk, EsrtEntry, Os};

    fn node() -> Inventory {
        let function = |device: &str| PciFunction {
            vendor: "8086".into(),
            device: device.into(),
            subsystem_vendor: "103c".into(),
            subsystem_device: "22fd".into(),
            ..PciFunction::default()
        };
        Inventory {
            dmi: Dmi { product: Some("ProLiant DL380 Gen10".into()), ..Dmi::default() },
            pci: vec![function("1521"), function("1572")],
            disks: vec![Disk { model: Some("MO000400JWDKU".into()), ..Disk::default() }],
            esrt: vec![EsrtEntry {
                guid: "ddc0ee61-e7f0-4e7d-acc5-c070a398838e".into(),
                ..EsrtEntry::default()
            }],
            ..Inventory::default()
        }
    }

    #[test]
    fn makers_machines_are_known_by_what_their_dmi_tells() {
        let dmi = |vendor: &str, product: &str, sku: &str, bios: (&str, &str)| Inventory {
            dmi: Dmi {
                vendor: Some(vendor.into()),
                product: Some(product.into()),
                sku: Some(sku.into()),
                bios_vendor: Some(bios.0.into()),
                bios_version: Some(bios.1.into()),
                ..Dmi::default()
            },
            os: Os { id: "rhel".into(), ..Os::default() },
            ..Inventory::default()
        };
        let fits = |text: &str, node: &Inventory| toml::from_str::<Rules>(text).unwrap().fit(node);
        let hpe = dmi("HPE", "ProLiant DL380 Gen10", "868703-B21", ("HPE", "U30"));
        assert_eq!(fits("rom_family = [\"U32\", \"u30\"]\npackage_tool = \"rpm\"", &hpe), Ok(()));
        let why = fits("rom_family = [\"U32\"]", &hpe).unwrap_err();
        assert_eq!(why, "for HPE ROM family U32, the node has none of it");
        assert_eq!(fits("maker = \"hpe\"", &hpe), Ok(()));
        let why = fits("maker = \"dell\"", &hpe).unwrap_err();
        assert_eq!(why, "for machines of Dell, this one is of HPE");
        let why = fits("package_tool = \"dpkg\"", &hpe).unwrap_err();
        assert_eq!(why, "for package tool dpkg, the node has rpm");
        for (product, sku) in
            [("x", "SKU=0627;ModelName=PowerEdge R730"), ("PowerEdge R730", "SKU=NotProvided;")]
        {
            let dell = dmi("Dell Inc.", product, sku, ("Dell Inc.", "2.1"));
            assert_eq!(fits("dell_system = [\"0627 R730\"]", &dell), Ok(()), "{product}");
        }
        for (vendor, product) in [("Dell Inc.", "PowerEdge R730xd"), ("Other", "PowerEdge R730")] {
            let other = dmi(vendor, product, "SKU=NotProvided;", ("x", "2.1"));
            assert!(fits("dell_system = [\"0627 R730\"]", &other).is_err(), "{vendor} {product}");
        }
    }

    #[test]
    fn everything_named_must_fit_and_one_of_each_list() {
        let fit = |text: &str| toml::from_str::<Rules>(text).unwrap().fit(&node());
        for fits in [
            "",
            "pci = [\"8086:ffff\", \"8086:1572\"]",
            "pci = [\"8086:1572:103C:22FD\"]",
            "disk_model = [\"MO000400JWDKU\"]\ndmi_product = \"ProLiant DL380 Gen10\"",
            "guid = [\"DDC0EE61-E7F0-4E7D-ACC5-C070A398838E\"]",
        ] {
            assert_eq!(fit(fits), Ok(()), "{fits}");
        }
        for (rules, why) in [
            (
                "pci = [\"8086:1572:103c:0000\"]",
                "for PCI device 8086:1572:103c:0000, the node has none of it",
            ),
            ("disk_model = [\"X\"]\npci = [\"8086:1572\"]", "for disk model X, the node has none of it"),
            ("dmi_vendor = \"HPE\"", "for vendor HPE, the node has none that is known"),
            (
                "guid = [\"a\", \"b\", \"c\", \"d\", \"e\"]",
                "for UEFI firmware a or b or c or d or others, the node",
            ),
        ] {
            assert!(fit(rules).unwrap_err().starts_with(why), "{:?}", fit(rules));
        }
        for wrong in ["8086", "8086:157", "8086:1572:103c", "8086:15g2", "8086:1572:103c:22fd:0"] {
            assert!(wrong.parse::<PciId>().unwrap_err().contains("no PCI id"), "{wrong}");
        }
    }

    #[test]
    fn a_need_says_what_is_needed_and_what_there_is() {
        let need = |text: &str| toml::from_str::<Need>(text).unwrap();
        let bmc =
            need("version_of = \"bmc\"\nversion_format = \"pair\"\nat_least = \"2.10\"\nnot = [\"2.55\"]");
        assert_eq!(bmc.met(Some("2.72")), Ok(()));
        assert_eq!(
            bmc.met(Some("2.9")).unwrap_err(),
            "needs the BMC's firmware 2.10 or newer, other than 2.55, and 2.9 is there"
        );
        assert!(bmc.met(Some("2.55")).unwrap_err().ends_with("2.55 is there"));
        assert!(bmc.met(None).unwrap_err().ends_with("its version is not known"));
        assert!(bmc.met(Some("two")).unwrap_err().ends_with("two is not a pair version like it"));
        let fwupd = |bound: &str| need(&format!("version_of = {{ fwupd = [\"x\"] }}\n{bound}"));
        assert_eq!(fwupd("after = \"2\"").met(Some("2.1")), Ok(()));
        assert!(fwupd("after = \"2\"").met(Some("2")).unwrap_err().contains(" after 2, and 2 is there"));
        assert_eq!(fwupd("at_most = \"2\"").met(Some("2")), Ok(()));
        assert!(fwupd("at_most = \"2\"").met(Some("3")).unwrap_err().contains(" 2 or older, and 3 is"));
        assert!(fwupd("exactly = \"2\"").met(Some("3")).unwrap_err().contains(" 2, and 3 is there"));
        let older = need("version_of = { package = \"x\" }\nbefore = \"3\"");
        assert_eq!(older.met(Some("2.9")), Ok(()));
        assert!(older.met(Some("3.0")).is_err());
    }
}
