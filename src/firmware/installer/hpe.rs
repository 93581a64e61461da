//! HPE's smart components for Linux: `.scexe`, and firmware `.rpm` whose `hpsetup` flashes.
//!
//! Exit codes: HP Smart Update Manager User Guide, "Linux smart-component return codes", which has two tables, for one node
//! and for several; nothing tells which one a component follows. Where they differ the worse meaning counts. `-s` is
//! silent, `-f` writes an older version or the same again. All of them log to `/var/cpq/Component.log`.

use super::{Installer, Said};
use crate::firmware::component::ExitMeaning;

const LOGS: &[&str] = &["/var/cpq/Component.log"];

const EXIT: &[(i32, Said)] = &[
    (0, Said::Means(ExitMeaning::Done)),
    (1, Said::Means(ExitMeaning::RebootNeeded)),
    (2, Said::Means(ExitMeaning::Current)),
    // Never "not for this machine" from this alone: a flash that failed would pass for one that was not needed.
    (
        3,
        Said::Fails(
            "which means that it failed, or that it is older than what is there or not for this machine; see its log",
        ),
    ),
    (4, Said::Fails("its target was not found")),
    (5, Said::Fails("it was cancelled on the node before anything was written")),
    (6, Said::Fails("a dependency or a tool that it needs is missing; nothing was written")),
    (7, Said::Fails("the installation itself failed")),
    (UNPACK_FAILED, Said::Fails("the package could not be unpacked on the node, nothing was written")),
];

/// Exit code of the script below where it did not come to HPE's own program; not one of HPE's.
const UNPACK_FAILED: i32 = 70;

/// A self-extracting script: run as the program it is, so that its own first line chooses the shell.
pub const SCEXE: Installer =
    Installer { command: &["{payload}", "-s"], force: &["-f"], exit: EXIT, logs: LOGS };

/// HPE's way is to install the package, which flashes nothing, and to run the `hpsetup` in it. Unpacked into the working
/// directory instead, it leaves no package on the node.
const UNPACK_AND_RUN: &str = r#"package=$1; shift
rpm2cpio "$package" | cpio -id --quiet --no-absolute-filenames || exit 70
setup=$(find . -type f \( -name hpsetup -o -name .hpsetup \) | head -n 1)
[ -n "$setup" ] && cd "${setup%/*}" || exit 70
exec "./${setup##*/}" "$@""#;

/// A firmware package whose program flashes.
pub const RPM: Installer = Installer {
    command: &["/bin/sh", "-c", UNPACK_AND_RUN, "sh", "{payload}", "-s"],
    force: &["-f"],
    exit: EXIT,
    logs: LOGS,
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_ends_with_the_code_that_the_table_has() {
        assert_eq!(UNPACK_AND_RUN.matches(&format!("exit {UNPACK_FAILED}")).count(), 2);
    }
}
