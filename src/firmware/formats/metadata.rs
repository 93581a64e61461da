//! What a firmware file says about itself, in one shape for all formats.
//!
//! Plain data: whoever imports, matches or installs needs nothing else of a format. Nothing here is guessed; what a
//! format does not say is absent. It must never hold payload bytes.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::firmware::version::VersionFormat;

/// A firmware file as it was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Package {
    /// What the file is.
    pub format: Format,
    /// Name and version of a collection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// Its size in bytes; none for a directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// What it brings. A catalogue lists many, most files one.
    pub components: Vec<Metadata>,
    /// The files inside it that matter, or beside it for a catalogue.
    pub payloads: Vec<Payload>,
    /// Signatures that were found, and whether they were checked.
    pub signatures: Vec<Signature>,
}

impl Package {
    /// A file of one format, with no payload or signature yet.
    pub fn new(format: Format, size: u64, components: Vec<Metadata>) -> Self {
        Self {
            format,
            title: None,
            size: Some(size),
            components,
            payloads: Vec::new(),
            signatures: Vec::new(),
        }
    }
}

/// The formats that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// Cabinet of the Linux Vendor Firmware Service.
    LvfsCab,
    /// HPE firmware package, for controllers and UEFI.
    HpeFwpkg,
    /// HPE smart component as ZIP or self-extracting .exe.
    HpeSmart,
    /// HPE smart component as self-extracting shell script.
    HpeScexe,
    /// RPM package.
    Rpm,
    /// Debian package.
    Deb,
    /// Dell Update Package for Linux.
    DellDup,
    /// PLDM firmware update package, DMTF DSP0267.
    Pldm,
    /// HPE Service Pack for ProLiant, a directory or an ISO image.
    Spp,
    /// A baseline of our own: plain payloads with a manifest.
    Baseline,
}

impl Format {
    /// For people.
    pub fn title(self) -> &'static str {
        match self {
            Self::LvfsCab => "LVFS cabinet",
            Self::HpeFwpkg => "HPE firmware package",
            Self::HpeSmart => "HPE smart component (archive)",
            Self::HpeScexe => "HPE smart component (shell script)",
            Self::Rpm => "RPM package",
            Self::Deb => "Debian package",
            Self::DellDup => "Dell Update Package for Linux",
            Self::Pldm => "PLDM firmware package",
            Self::Spp => "HPE Service Pack for ProLiant",
            Self::Baseline => "baseline",
        }
    }
}

/// One component.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Metadata {
    /// The format's own name for it: an AppStream id, a product id, a package name.
    pub id: String,
    /// For people.
    pub name: String,
    /// One line more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub summary: Option<String>,
    /// Who made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vendor: Option<String>,
    /// The version it brings.
    pub version: String,
    /// How versions of it compare; [`VersionFormat::Mixed`] where the format does not say, or says one that is not known.
    pub version_format: VersionFormat,
    /// When it was released, as the format writes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub released: Option<String>,
    /// How urgent its maker thinks it is, in the maker's word.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub severity: Option<String>,
    /// Release notes as plain text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub notes: Option<String>,
    /// Devices or packages it is for; any one of them is enough.
    pub targets: Vec<Target>,
    /// Machines it is for; where there are any, one of them must fit too.
    pub platforms: Vec<Target>,
    /// What must hold before it is installed.
    pub requires: Vec<Requirement>,
    /// What must not hold.
    pub conflicts: Vec<Requirement>,
    /// Whether a reboot makes it active.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reboot: Option<Reboot>,
    /// Seconds an installation takes, as its maker says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected_s: Option<u32>,
    /// Operating systems it is for, in the maker's words; empty where it does not matter or is not said.
    pub os: Vec<String>,
    /// Machine of the operating system, as the format writes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arch: Option<String>,
    /// Who can install it: `fwupd`, `bmc`, `uefi`, `runtime-agent`, `rpm`, `dpkg`, `shell`, `pldm`, `command`.
    pub installers: Vec<String>,
    /// Further facts that an installer may need, by the format's own key.
    pub hints: BTreeMap<String, String>,
    /// Names in [`Package::payloads`] of what belongs to it.
    pub payloads: Vec<String>,
}

/// What a component is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Target {
    /// How it is matched.
    #[serde(flatten)]
    pub rule: Rule,
    /// The device's name, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// The version for this target, where it has one of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
}

impl Target {
    /// A target that has nothing but its rule.
    pub fn of(rule: Rule) -> Self {
        Self { rule, device: None, version: None }
    }
}

/// How a target is matched against a node's inventory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "match", rename_all = "kebab-case")]
pub enum Rule {
    /// A device that fwupd lists under this GUID.
    FwupdGuid {
        /// Lower case, with hyphens.
        guid: String,
    },
    /// A device that HPE's management controller lists under this target GUID.
    HpeTarget {
        /// Lower case, with hyphens.
        guid: String,
    },
    /// An HPE machine by its ROM family, as "U32".
    HpeRomFamily {
        /// As HPE writes it.
        family: String,
    },
    /// A PCI function; what is absent matches any.
    Pci {
        /// Vendor id.
        vendor: u16,
        /// Device id.
        #[serde(skip_serializing_if = "Option::is_none")]
        device: Option<u16>,
        /// Subsystem vendor id.
        #[serde(skip_serializing_if = "Option::is_none")]
        subvendor: Option<u16>,
        /// Subsystem id.
        #[serde(skip_serializing_if = "Option::is_none")]
        subdevice: Option<u16>,
    },
    /// A Dell component id.
    DellComponent {
        /// As Dell writes it, decimal.
        component: String,
    },
    /// A Dell machine by its system id.
    DellSystem {
        /// Four hexadecimal digits.
        system: String,
    },
    /// A package of the node's own package tool.
    Package {
        /// Its name.
        package: String,
    },
    /// A firmware device by its PLDM descriptors; all of them must fit.
    Pldm {
        /// By the descriptor's name in DSP0267 table 8, the value in hexadecimal as it stands in the package.
        descriptors: Vec<(String, String)>,
    },
    /// A machine by its DMI product name.
    DmiProduct {
        /// As the firmware reports it.
        product: String,
    },
}

/// Something that must hold, or must not.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Requirement {
    /// What is looked at, in the format's word: `firmware`, `id`, `hardware`, `package`, `text`, …
    pub kind: String,
    /// Which one of it: a GUID, a package name; none means the component's own device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// How versions are compared: `lt`, `le`, `eq`, `ge`, `gt`, `ne`, `glob`, `regex`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compare: Option<String>,
    /// Against which version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// fwupd's: 1 for the device's parent, 2 for its grandparent, -1 for a sibling.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub depth: Option<i32>,
}

/// Whether a reboot makes a component active.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reboot {
    /// Active at once.
    NotNeeded,
    /// A reboot is needed.
    Needed,
    /// The power must go off.
    PowerOff,
}

/// A file inside a package, or beside a catalogue.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Payload {
    /// Its relative path.
    pub name: String,
    /// Its size in bytes, unpacked.
    pub size: u64,
    /// Where it stands in the file, where it stands there in one piece and as it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// Digests that the package announces, by algorithm, lower-case hexadecimal.
    pub checksums: BTreeMap<String, String>,
    /// Whether the bytes were hashed and found to be the announced ones.
    pub checked: bool,
}

/// A signature that a package carries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Signature {
    /// What it signs.
    pub of: String,
    /// `pkcs7`, `gpg`, …
    pub kind: String,
    /// What became of it.
    #[serde(flatten)]
    pub state: SignatureState,
}

/// What became of a signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum SignatureState {
    /// It is good, and leads to a certificate that was given.
    Trusted {
        /// The signer's name.
        by: String,
    },
    /// It was not checked, or leads to no certificate that was given.
    NotTrusted {
        /// In words.
        why: String,
    },
}
