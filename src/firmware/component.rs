//! One installable item: what it is for, what it needs, how it is installed and how its version is read back.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::fwupd;
use super::installed::VersionSource;
use super::installer::{self, By, Said};
use super::outcome::Outcome;
use super::rules::{Need, Rules};
use super::version::VersionFormat;
use crate::digest::Sha256;
use crate::wire::id::ComponentId;
use crate::wire::inventory::Inventory;
use crate::wire::message::{FwupdAllows, How, Installed, Nvme, NvmeDisk};

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
    /// HPE smart component, a self-extracting script that installs itself.
    HpeScexe,
    /// RPM package of HPE's that flashes by a program in it.
    HpeRpm,
    /// HPE smart component as archive, with nothing in it that runs on Linux.
    HpeSmart,
    /// HPE firmware package, for controllers and UEFI.
    HpeFwpkg,
    /// RPM package, by the node's rpm.
    Rpm,
    /// Debian package, by the node's dpkg.
    Deb,
    /// Dell Update Package, a self-extracting script that installs itself.
    DellDup,
    /// PLDM firmware package, for controllers.
    Pldm,
}

/// How a payload is installed, where its format does not say, or not rightly.
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

/// How an installer ended, with what it said last.
fn with_last_line(ended: String, log: &str) -> String {
    match log.lines().rev().find(|line| !line.trim().is_empty()) {
        Some(line) => format!("{ended}: {}", line.trim()),
        None => ended,
    }
}

/// The engine's own words for what became of NVMe disks.
fn nvme_ended(installed: &Installed) -> Result<ExitMeaning, Outcome> {
    match installed.code {
        Some(Nvme::AFTER_RESTART) => Ok(ExitMeaning::RebootNeeded),
        Some(Nvme::CURRENT) => Ok(ExitMeaning::Current),
        Some(Nvme::NONE) => Ok(ExitMeaning::NotApplicable),
        _ => {
            let why = installed.log.lines().next_back().unwrap_or("the engine does not say why");
            Err(Outcome::Failed(why.to_owned()))
        }
    }
}

impl Component {
    /// What the engine is asked for; `installed` is the version there is, `disks` those that may be written, where it is
    /// NVMe firmware.
    pub fn how(&self, installed: Option<&str>, disks: Vec<NvmeDisk>) -> How {
        let order = installed.and_then(|installed| self.order_of(installed));
        if let Some(install) = &self.install {
            return How::Command(install.command.clone());
        }
        match installer::of(self.format) {
            By::Fwupd => How::Fwupd(FwupdAllows {
                older: order == Some(Ordering::Greater),
                reinstall: order == Some(Ordering::Equal),
            }),
            By::Engine => How::Nvme(Nvme {
                // A manifest that reads back anything else was refused when it was read.
                model: match &self.read_back {
                    VersionSource::Disk(model) => model.clone(),
                    _ => String::new(),
                },
                version: self.version.clone(),
                disks,
            }),
            By::Installer(installer) => {
                // A maker's installer is never told to overrule its own judgement where nothing else has judged.
                let by_tool = matches!(self.format, Format::Rpm | Format::Deb);
                let is_judged = by_tool || self.rules.names_a_machine();
                let force =
                    if is_judged && order.is_some_and(Ordering::is_ge) { installer.force } else { &[] };
                How::Command(installer.command.iter().chain(force).map(|word| (*word).to_owned()).collect())
            }
            // A manifest without a command was refused when it was read, and the rest is never sent.
            By::Command | By::Nobody(_) => How::Command(Vec::new()),
        }
    }

    /// Whether one run of the installer does the work of both: it takes whatever it finds its package to be for.
    pub fn is_installed_with(&self, other: &Self) -> bool {
        // An NVMe image is written to the disks of one model only.
        let same_disks = self.format != Format::Nvme || self.read_back == other.read_back;
        self.sha256 == other.sha256
            && self.format == other.format
            && self.install == other.install
            && same_disks
    }

    /// Where its installer keeps a log of its own.
    pub fn logs(&self) -> Vec<String> {
        match installer::of(self.format) {
            By::Installer(installer) => installer.logs.iter().map(|path| (*path).to_owned()).collect(),
            By::Command | By::Fwupd | By::Engine | By::Nobody(_) => Vec::new(),
        }
    }

    /// Why no engine on a Linux node can install it, in words; none where one can.
    pub fn needs_another(&self) -> Option<&'static str> {
        match installer::of(self.format) {
            By::Nobody(why) if self.install.is_none() => Some(why),
            _ => None,
        }
    }

    fn said(&self, code: i32) -> Option<Said> {
        match (&self.install, installer::of(self.format)) {
            (Some(install), By::Installer(installer)) if install.exit.is_empty() => installer.said(code),
            (Some(install), _) => install.meaning(code).map(Said::Means),
            (None, By::Installer(installer)) => installer.said(code),
            (None, _) => None,
        }
    }

    /// What its installer's end means, on a node that was found so before it ran.
    ///
    /// # Errors
    /// The outcome it has then: a failure, in words, or why fwupd refused it.
    pub fn meaning(&self, installed: &Installed, node: Option<&Inventory>) -> Result<ExitMeaning, Outcome> {
        match self.format {
            Format::LvfsCab => return fwupd::ended(self, installed, node),
            Format::Nvme => return nvme_ended(installed),
            _ => {}
        }
        let said = installed.code.and_then(|code| self.said(code));
        let ended = match (installed.code, installed.signal) {
            (Some(code), _) => match said {
                Some(Said::Means(meaning)) => return Ok(meaning),
                Some(Said::Fails(why)) => format!("the installer ended with exit code {code}, {why}"),
                Some(Said::Skips(why)) => {
                    let why = format!("the installer ended with exit code {code}, {why}");
                    return Err(Outcome::Skipped(with_last_line(why, &installed.log)));
                }
                Some(Said::PowerCycle(why)) => return Err(Outcome::UpdatedPowerCycleNeeded(why.into())),
                None => format!("the installer ended with exit code {code}"),
            },
            (None, Some(signal)) => format!("the installer was ended by signal {signal}"),
            (None, None) => "the installer ended without an exit code".to_owned(),
        };
        Err(Outcome::Failed(with_last_line(ended, &installed.log)))
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
        match (&self.install, installer::of(self.format)) {
            (Some(install), _) if !install.exit.is_empty() => install.exit.values().any(says),
            (_, By::Installer(installer)) => installer.may_need_restart(),
            _ => false,
        }
    }

    /// How an installed version stands to the one this brings; none when they have no order.
    pub fn order_of(&self, installed: &str) -> Option<Ordering> {
        self.version_format.compare(installed, &self.version)
    }
}
