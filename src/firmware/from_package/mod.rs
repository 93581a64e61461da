//! Components from firmware packages as their makers ship them: no manifest is written by hand.
//!
//! What a package says becomes rules, needs and a source of the version; what it does not say is asked of the node's own
//! installer. A package is read and verified before by [`super::formats`]. It must never guess which machine something
//! is for: what names no device becomes no component.

mod lvfs;

use crate::digest::Sha256;
use crate::wire::id::ComponentId;

pub use lvfs::components as lvfs;

/// The package itself: what travels to a node.
#[derive(Debug, Clone)]
pub struct PackageFile {
    /// Its name in the baseline.
    pub name: String,
    /// Its digest.
    pub sha256: Sha256,
    /// Its size in bytes.
    pub size: u64,
}

/// Why a package makes no component.
#[derive(Debug, thiserror::Error)]
pub enum NotAComponent {
    /// Nothing says what it is for.
    #[error("{package}: {component} names no device")]
    NoDevice {
        /// The file.
        package: String,
        /// Its component.
        component: String,
    },
    /// Its version could not be compared with what a node has.
    #[error("{package}: {component}: \"{version}\" is not a {format} version")]
    Version {
        /// The file.
        package: String,
        /// Its component.
        component: String,
        /// What stands there.
        version: String,
        /// What it should be.
        format: crate::firmware::version::VersionFormat,
    },
    /// Its name has nothing that could stand in an id.
    #[error("{package}: \"{component}\" cannot be a component's name")]
    Name {
        /// The file.
        package: String,
        /// Its component.
        component: String,
    },
}

/// A maker's name for something as a component's id: what may not stand there becomes a hyphen.
fn component_id(name: &str) -> Option<ComponentId> {
    let harmless = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '-' };
    let name: String = name.chars().map(harmless).collect();
    let name = name.trim_start_matches(|c: char| !c.is_ascii_alphanumeric());
    // The end tells more than the beginning: com.vendor.family.device.firmware.
    let from = name.len().saturating_sub(ID_BYTES_MAX);
    let end = name.get(from..)?.trim_start_matches(|c: char| !c.is_ascii_alphanumeric());
    end.parse().ok()
}

/// Most bytes of a component's id.
const ID_BYTES_MAX: usize = 64;
