//! How each vendor's installer is called in silence, and what its exit codes mean: data, a table for each format.
//!
//! The tables are the vendors' own, as their manuals give them. A code that is in no table is a failure; an installer's
//! word for success is still only its word, the version read back decides. Nothing here runs anything.

mod dell;
mod hpe;
mod packages;

use super::component::{ExitMeaning, Format};

/// A vendor's installer.
#[derive(Debug, PartialEq, Eq)]
pub struct Installer {
    /// Program and arguments; `{payload}` stands for the payload's path.
    pub command: &'static [&'static str],
    /// Arguments more where an older version, or the same one again, is to be written.
    pub force: &'static [&'static str],
    /// What its exit codes say.
    pub exit: &'static [(i32, Said)],
    /// Where it keeps a log of its own.
    pub logs: &'static [&'static str],
}

/// What an exit code says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said {
    /// How it went.
    Means(ExitMeaning),
    /// It failed, and why, in the vendor's sense.
    Fails(&'static str),
    /// It wrote nothing, because something else must come first or it is for other machines; why, in the vendor's sense.
    Skips(&'static str),
    /// It was written and becomes active only when the machine loses power, and how.
    PowerCycle(&'static str),
}

impl Installer {
    /// What an exit code says; none where the vendor gives it no meaning.
    pub fn said(&self, code: i32) -> Option<Said> {
        self.exit.iter().find(|(listed, _)| *listed == code).map(|(_, said)| *said)
    }

    /// Whether it may ask for a restart.
    pub fn may_need_restart(&self) -> bool {
        self.exit.iter().any(|(_, said)| *said == Said::Means(ExitMeaning::RebootNeeded))
    }
}

/// Who installs a format on a node.
#[derive(Debug, Clone, Copy)]
pub enum By {
    /// The component's own command, from its manifest.
    Command,
    /// The node's fwupd.
    Fwupd,
    /// The engine itself.
    Engine,
    /// The vendor's installer, or the node's package tool.
    Installer(&'static Installer),
    /// Nobody on a Linux node, and why, in words.
    Nobody(&'static str),
}

/// Who installs a format on a node.
pub fn of(format: Format) -> By {
    match format {
        Format::Plain => By::Command,
        Format::LvfsCab => By::Fwupd,
        Format::Nvme => By::Engine,
        Format::HpeScexe => By::Installer(&hpe::SCEXE),
        Format::HpeRpm => By::Installer(&hpe::RPM),
        Format::Rpm => By::Installer(&packages::RPM),
        Format::Deb => By::Installer(&packages::DEB),
        Format::DellDup => By::Installer(&dell::DUP),
        Format::HpeSmart => By::Nobody("it holds nothing that runs on Linux"),
        Format::HpeFwpkg => By::Nobody(
            "installed by the management controller, or by the UEFI from its repository: needs a Redfish node",
        ),
        Format::Pldm => By::Nobody("installed by the management controller: needs a Redfish node"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_knows_success_and_gives_each_code_one_meaning() {
        for installer in [&hpe::SCEXE, &hpe::RPM, &packages::RPM, &packages::DEB, &dell::DUP] {
            assert_eq!(installer.said(0), Some(Said::Means(ExitMeaning::Done)), "{installer:?}");
            let mut codes: Vec<i32> = installer.exit.iter().map(|(code, _)| *code).collect();
            codes.dedup();
            assert!(codes.is_sorted() && codes.len() == installer.exit.len(), "{installer:?}");
            assert!(installer.command.iter().any(|word| word.contains("{payload}")), "{installer:?}");
        }
    }
}
