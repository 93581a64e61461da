//! The package tool of a node, by its distribution's family.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::wire::inventory::Os;

/// A package tool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PackageTool {
    /// Debian's.
    Dpkg,
    /// Red Hat's and SUSE's.
    Rpm,
}

impl PackageTool {
    /// The one a distribution has.
    ///
    /// # Errors
    /// That it is not known, in words.
    pub fn of(os: &Os) -> Result<Self, String> {
        match os.id.as_str() {
            "debian" | "ubuntu" => Ok(Self::Dpkg),
            "rhel" | "centos" | "rocky" | "almalinux" | "ol" | "fedora" | "sles" | "opensuse-leap"
            | "amzn" => Ok(Self::Rpm),
            other => Err(format!("no package tool is known for operating system \"{other}\"")),
        }
    }
}

impl fmt::Display for PackageTool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dpkg => "dpkg",
            Self::Rpm => "rpm",
        })
    }
}
