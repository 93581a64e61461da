//! Packages of the node's own package tool: firmware blobs that a driver loads, and tools.
//!
//! The tool alone judges dependencies and signatures, by the node's own settings. Neither asks questions: there is nobody
//! to answer, so changed configuration files stay as they are.

use super::{Installer, Said};
use crate::firmware::component::ExitMeaning;

/// rpm, which tells percentages so that programs can read them.
pub const RPM: Installer = Installer {
    command: &["rpm", "-U", "--percent", "{payload}"],
    force: &["--oldpackage", "--replacepkgs"],
    exit: &[(0, Said::Means(ExitMeaning::Done))],
    logs: &[],
};

/// dpkg, which takes an older version as it takes a newer one.
pub const DEB: Installer = Installer {
    command: &[
        "/usr/bin/env",
        "DEBIAN_FRONTEND=noninteractive",
        "dpkg",
        "--force-confdef",
        "--force-confold",
        "-i",
        "{payload}",
    ],
    force: &[],
    exit: &[(0, Said::Means(ExitMeaning::Done))],
    logs: &["/var/log/dpkg.log"],
};
