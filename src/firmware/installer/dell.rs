//! Dell Update Packages for Linux.
//!
//! Exit codes: Dell Update Packages User's Guide, "Exit codes". `-q` is without questions, `-f` writes an older version or
//! the same again. It is never given `-r`: restarts are the deployment's.

use super::{Installer, Said};
use crate::firmware::component::ExitMeaning;

/// What no restart of the node does.
const CONTAINER: &str =
    "active once the machine, or the enclosure it is in, has been switched off and on, which is yours to do";
const AC: &str =
    "active once the machine has been without AC power, or after a virtual AC cycle, which is yours to do";

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
        // DEP_HARD_ERROR has both meanings, and only its log tells them apart.
        (4, Said::Skips("a prerequisite is not met, or no device that it is for was found; see its log")),
        // QUAL_HARD_ERROR: not for this system.
        (5, Said::Means(ExitMeaning::NotApplicable)),
        // It restarts the machine itself: not asked for, but what it says is that it was written.
        (6, Said::Means(ExitMeaning::RebootNeeded)),
        (7, Said::Fails("the BIOS password was refused or not given")),
        (8, Said::Fails("a downgrade is not allowed by this machine's settings")),
        (9, Said::Fails("the packages that it needs could not be verified")),
        // Soft dependencies: it was written, some of what it brings works only with a newer version of something else.
        (13, Said::Means(ExitMeaning::Done)),
        (14, Said::Means(ExitMeaning::RebootNeeded)),
        (15, Said::PowerCycle(CONTAINER)),
        (16, Said::PowerCycle(CONTAINER)),
        (18, Said::PowerCycle(AC)),
        (19, Said::PowerCycle(AC)),
    ],
    logs: &["/var/log/dell/updatepackage/log/support/Updatepackage.log"],
};
