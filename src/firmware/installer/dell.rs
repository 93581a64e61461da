//! Dell Update Packages for Linux.
//!
//! Exit codes: Dell Update Packages User's Guide, "Exit codes". `-q` is without questions, `-f` writes an older version or
//! the same again. It is never given `-r`: restarts are the deployment's.

use super::{Installer, Said};
use crate::firmware::component::ExitMeaning;

/// A self-extracting script.
pub const DUP: Installer = Installer {
    command: &["{payload}", "-q"],
    force: &["-f"],
    exit: &[
        (0, Said::Means(ExitMeaning::Done)),
        (1, Said::Fails("an error occurred during the update")),
        (2, Said::Means(ExitMeaning::RebootNeeded)),
        // DEP_SOFT_ERROR: this version is installed, or a newer one.
        (3, Said::Means(ExitMeaning::Current)),
        (4, Said::Fails("a prerequisite is not met (hard dependency)")),
        // QUAL_HARD_ERROR: not for this system.
        (5, Said::Means(ExitMeaning::NotApplicable)),
        // It restarts the machine itself: not asked for, but what it says is that it was written.
        (6, Said::Means(ExitMeaning::RebootNeeded)),
        (7, Said::Fails("the BIOS password was refused or not given")),
        (8, Said::Fails("a downgrade is not allowed by this machine's settings")),
        (9, Said::Fails("the packages that it needs could not be verified")),
    ],
    logs: &["/var/log/dell/updatepackage/log/support/Updatepackage.log"],
};
