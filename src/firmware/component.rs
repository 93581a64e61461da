//! One installable item: what it is for, what it needs, how it is installed and how its version is read back.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::fwupd;
use super::installed::VersionSource;
use super::outcome::Outcome;
use super::rules::{Need, Rules};
use super::version::VersionFormat;
use crate::digest::Sha256;
use crate::wire::id::ComponentId;
use crate::wire::message::{FwupdAllows, How, Installed, Nvme};

/// A component, as its baseline's manifest describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Component {
    /// Unique in its baseline.
    pub id: ComponentId,
    /// For people.
    pub title: String,
    /// The version it brings.
    pub version: String,
    /// How its versions are written, and so ordered.
    #[serde(default)]
    pub version_format: VersionFormat,
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
    /// Components that must not be in place.
    #[serde(default)]
    pub conflicts: Vec<ComponentId>,
    /// Versions that must be in place before, of what this baseline does not bring.
    #[serde(default)]
    pub needs: Vec<Need>,
    /// Not for nodes on which no version of it is found.
    #[serde(default)]
    pub only_if_installed: bool,
    /// Seconds an installation takes on slow hardware.
    pub expected_s: u32,
    /// How it is installed; needed where the format does not say.
    pub install: Option<InstallCommand>,
    /// How its installed version is found out.
    pub read_back: VersionSource,
}

/// What a payload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// Bytes that the manifest's command knows what to do with.
    Plain,
    /// A cabinet of the Linux Vendor Firmware Service, which the node's fwupd installs.
    LvfsCab,
    /// A firmware image of NVMe disks, as the disk takes it.
    Nvme,
}

/// How a plain payload is installed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstallCommand {
    /// Program and arguments, no shell; `{payload}` stands for the payload's path.
    pub command: Vec<String>,
    /// What its exit codes mean; without this table, 0 is done and any other a failure.
    #[serde(default)]
    pub exit: BTreeMap<String, ExitMeaning>,
}

/// What an installer says with its exit code. A code without a meaning is a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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
    fn meaning(&self, code: i32) -> Option<ExitMeaning> {
        if self.exit.is_empty() {
            return (code == 0).then_some(ExitMeaning::Done);
        }
        self.exit.get(&code.to_string()).copied()
    }
}

impl Component {
    /// What the engine is asked for; `installed` is the version there is.
    pub fn how(&self, installed: Option<&str>) -> How {
        let order = installed.and_then(|installed| self.order_of(installed));
        match self.format {
            Format::LvfsCab => How::Fwupd(FwupdAllows {
                older: order == Some(Ordering::Greater),
                reinstall: order == Some(Ordering::Equal),
            }),
            Format::Nvme => How::Nvme(Nvme {
                // A manifest that reads back anything else was refused when it was read.
                model: match &self.read_back {
                    VersionSource::Disk(model) => model.clone(),
                    _ => String::new(),
                },
                version: self.version.clone(),
                rewrite: order == Some(Ordering::Equal),
            }),
            // A manifest without a command was refused when it was read.
            Format::Plain => {
                How::Command(self.install.as_ref().map_or_else(Vec::new, |install| install.command.clone()))
            }
        }
    }

    /// What its installer's end means.
    ///
    /// # Errors
    /// The outcome it has then: a failure, in words, or why fwupd refused it.
    pub fn meaning(&self, installed: &Installed) -> Result<ExitMeaning, Outcome> {
        let known = match (self.format, installed.code) {
            (Format::LvfsCab, _) => return fwupd::ended(self, installed),
            (Format::Nvme, code) => match code {
                Some(Nvme::DONE) => Some(ExitMeaning::Done),
                Some(Nvme::AFTER_RESTART) => Some(ExitMeaning::RebootNeeded),
                Some(Nvme::CURRENT) => Some(ExitMeaning::Current),
                Some(Nvme::NONE) => Some(ExitMeaning::NotApplicable),
                _ => None,
            },
            (Format::Plain, code) => {
                code.and_then(|code| self.install.as_ref().and_then(|install| install.meaning(code)))
            }
        };
        if let Some(meaning) = known {
            return Ok(meaning);
        }
        if self.format == Format::Nvme {
            let why = installed.log.lines().next_back().unwrap_or("the engine does not say why");
            return Err(Outcome::Failed(why.to_owned()));
        }
        let ended = match (installed.code, installed.signal) {
            (Some(code), _) => format!("the installer ended with exit code {code}"),
            (None, Some(signal)) => format!("the installer was ended by signal {signal}"),
            (None, None) => "the installer ended without an exit code".to_owned(),
        };
        let last = installed.log.lines().rev().find(|line| !line.trim().is_empty());
        Err(Outcome::Failed(last.map_or(ended.clone(), |line| format!("{ended}: {}", line.trim()))))
    }

    /// Whether fwupd on the node is to be asked for it.
    pub fn asks_fwupd(&self) -> bool {
        let needs = self.needs.iter().any(|need| need.version_of.is_fwupd());
        needs || self.read_back.is_fwupd() || !self.rules.fwupd_guid.is_empty()
    }

    /// Whether it may be active only after a restart of the node, which its installer says when it has run.
    pub fn may_need_restart(&self) -> bool {
        if matches!(self.format, Format::LvfsCab | Format::Nvme) {
            return true;
        }
        let says = |meaning: &ExitMeaning| *meaning == ExitMeaning::RebootNeeded;
        self.install.as_ref().is_some_and(|install| install.exit.values().any(says))
    }

    /// How an installed version stands to the one this brings; none when they have no order.
    pub fn order_of(&self, installed: &str) -> Option<Ordering> {
        self.version_format.compare(installed, &self.version)
    }
}
