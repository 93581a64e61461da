//! One installable item: what it is for, what it needs, how it is installed and how its version is read back.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::digest::Sha256;
use crate::wire::id::ComponentId;
use crate::wire::inventory::Inventory;
use crate::wire::message::ReadBack;

/// A component, as its baseline's manifest describes it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Component {
    /// Unique in its baseline.
    pub id: ComponentId,
    /// For people.
    pub title: String,
    /// The version it brings.
    pub version: String,
    /// What the payload is.
    pub format: Format,
    /// The payload's file name, beside the manifest.
    pub payload: String,
    /// The payload's digest: its identity.
    pub sha256: Sha256,
    /// The payload's size in bytes.
    pub size: u64,
    /// Which nodes it is for; everything named must fit.
    #[serde(default, rename = "match")]
    pub rules: Rules,
    /// Lower ones are installed first.
    #[serde(default)]
    pub order: u32,
    /// Components that must be in place before.
    #[serde(default)]
    pub requires: Vec<ComponentId>,
    /// Seconds an installation takes on slow hardware.
    pub expected_s: u32,
    /// How it is installed.
    pub install: InstallCommand,
    /// How its installed version is found out.
    pub read_back: ReadBack,
}

/// What a payload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// Bytes that the manifest's command knows what to do with.
    Plain,
}

/// Which nodes a component is for.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rules {
    /// `ID` of os-release.
    pub os: Option<String>,
    /// Machine, as "x86_64".
    pub arch: Option<String>,
    /// DMI product name.
    pub dmi_product: Option<String>,
}

/// How a plain payload is installed.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstallCommand {
    /// Program and arguments, no shell; `{payload}` stands for the payload's path.
    pub command: Vec<String>,
    /// What its exit codes mean; without this table, 0 is done and any other a failure.
    #[serde(default)]
    pub exit: BTreeMap<String, ExitMeaning>,
}

/// What an installer says with its exit code. A code without a meaning is a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExitMeaning {
    /// Installed.
    Done,
    /// Installed, active after a reboot.
    RebootNeeded,
    /// Was there already.
    Current,
    /// Not for this machine.
    NotApplicable,
}

impl InstallCommand {
    /// What `code` means; none for a failure.
    pub fn meaning(&self, code: i32) -> Option<ExitMeaning> {
        if self.exit.is_empty() {
            return (code == 0).then_some(ExitMeaning::Done);
        }
        self.exit.get(&code.to_string()).copied()
    }

    /// Whether what is installed may be active only after a restart of the node, which the installer's exit code says.
    pub fn may_need_restart(&self) -> bool {
        self.exit.values().any(|meaning| *meaning == ExitMeaning::RebootNeeded)
    }
}

impl Component {
    /// Whether the component is for this node.
    ///
    /// # Errors
    /// Why not, in words.
    pub fn matches(&self, node: &Inventory) -> Result<(), String> {
        let fits = |what: &str, wanted: &Option<String>, found: Option<&str>| match wanted {
            Some(wanted) if found != Some(wanted.as_str()) => {
                Err(format!("for {what} {wanted}, the node has {}", found.unwrap_or("none that is known")))
            }
            _ => Ok(()),
        };
        fits("operating system", &self.rules.os, Some(&node.os.id))?;
        fits("architecture", &self.rules.arch, Some(&node.os.arch))?;
        fits("product", &self.rules.dmi_product, node.dmi.product.as_deref())
    }
}
