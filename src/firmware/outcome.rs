//! How a component ended on a node, and the exit codes that follow from it.

use serde::{Deserialize, Serialize};

/// How a component ended on a node. Success is the version read back, nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", content = "why", rename_all = "kebab-case")]
pub enum Outcome {
    /// Installed, and the new version was read back.
    Updated,
    /// Installed; active after a reboot, which was not made.
    UpdatedRebootNeeded,
    /// The version was there already.
    Current,
    /// A newer version is there, and the mode does not ask for a downgrade.
    NewerInstalled,
    /// Not for this node.
    NotApplicable(String),
    /// Not begun.
    Skipped(String),
    /// A dry run's word: it would be installed, and why.
    WouldUpdate(String),
    /// Failed.
    Failed(String),
    /// The installer reports success, but the version could not be read back or is another one.
    Unverified(String),
}

/// Exit codes of the command line, those of HP SUM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// Done, and a reboot is needed.
    RebootNeeded = 1,
    /// Nothing was needed.
    NothingNeeded = 3,
    /// A component or a node failed.
    Failed = 253,
    /// Bad input: arguments, fleet file, baseline.
    BadInput = 254,
    /// Anything else.
    Other = 255,
}
