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
    /// Installed; active only once the machine has been without power, which no restart does: a person's to do.
    UpdatedPowerCycleNeeded(String),
    /// The installer says that it is installed, and its maker gives no way to read its version on the node: no failure,
    /// and no proof.
    UpdatedUnverified(String),
    /// The version was there already.
    Current,
    /// The installer says that this version or a newer one was there already, and its maker gives no way to read it.
    CurrentUnverified(String),
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
    /// The installer reports success, but the version that can be read back was not, or is another one: a failure.
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
