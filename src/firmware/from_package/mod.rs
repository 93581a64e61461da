//! Components from firmware packages as their makers ship them: no manifest is written by hand.
//!
//! What a package says becomes rules, needs and a source of the version; what it does not say is asked of the node's own
//! installer. A package is read and verified before by [`super::formats`]. It must never guess which machine something
//! is for: what names no device becomes no component.

mod coverage;
mod dell;
mod hpe;
mod kind;
mod link;
mod lvfs;
mod packages;

use super::baseline::{Baseline, BaselineError, MANIFEST};
use super::component::{Component, Format};
use super::formats::metadata::{Format as PackageFormat, Metadata, Package, Requirement};
use super::installed::VersionSource;
use super::manifest;
use super::rules::Rules;
use super::version::VersionFormat;
use crate::digest::Sha256;
use crate::wire::id::{BaselineId, ComponentId};

pub use hpe::inner;
pub use link::LeftOut;

/// A component, with what its maker says of other packages.
#[derive(Debug, Clone)]
pub struct Made {
    /// The component, alone.
    pub component: Component,
    /// Names by which other packages ask for it. Two packages with a name in common are versions of one thing.
    offers: Vec<String>,
    /// What must be there before; the subject is a name as in `offers`.
    asks: Vec<Requirement>,
    /// What must not be there.
    avoids: Vec<Requirement>,
}

impl Made {
    fn alone(component: Component) -> Self {
        Self { component, offers: Vec::new(), asks: Vec::new(), avoids: Vec::new() }
    }
}

/// The components of a package.
///
/// # Errors
/// [`NotAComponent`].
pub fn components(package: &Package, file: &PackageFile) -> Result<Vec<Made>, NotAComponent> {
    let collection = || NotAComponent::Collection { package: file.name.clone() };
    if package.format == PackageFormat::LvfsCab {
        return Ok(lvfs::components(package, file)?.into_iter().map(Made::alone).collect());
    }
    let metadata = package.components.first().ok_or_else(collection)?;
    match package.format {
        PackageFormat::LvfsCab | PackageFormat::Spp | PackageFormat::Baseline => Err(collection()),
        PackageFormat::HpeScexe => {
            for_somebody(hpe::component(metadata, file, Format::HpeScexe)?, metadata, file)
        }
        PackageFormat::HpeSmart => {
            for_somebody(hpe::component(metadata, file, hpe::inner_format(&file.name))?, metadata, file)
        }
        PackageFormat::HpeFwpkg => hpe::component(metadata, file, Format::HpeFwpkg),
        PackageFormat::Rpm if metadata.hints.contains_key("hpe-setup") => {
            for_somebody(hpe::rpm(metadata, file)?, metadata, file)
        }
        PackageFormat::Rpm => Ok(vec![packages::component(metadata, file, Format::Rpm)?]),
        PackageFormat::Deb => Ok(vec![packages::component(metadata, file, Format::Deb)?]),
        PackageFormat::DellDup => for_somebody(vec![dell::component(metadata, file)?], metadata, file),
        PackageFormat::Pldm => {
            let why = "the management controller tells it";
            let made = base(metadata, file, Format::Pldm, VersionSource::None(why.into()))?;
            Ok(vec![Made::alone(made)])
        }
    }
}

/// A baseline of packages, as its manifest says it, and the packages that are not in it, with why.
///
/// # Errors
/// [`BaselineError`] when what the packages say makes no baseline, as when there is none.
pub fn baseline(
    id: &BaselineId,
    version: &str,
    title: &str,
    made: Vec<Made>,
) -> Result<(Baseline, Vec<LeftOut>), BaselineError> {
    let (components, left_out) = link::link(made);
    let (version, title) = (version.to_owned(), title.to_owned());
    let made = Baseline { id: id.clone(), version, title, components };
    // As it is read where it is deployed: checked, and in its order.
    Ok((Baseline::parse(&manifest::write(&made), MANIFEST)?, left_out))
}

/// What all formats have in common; the version stays as the package tells it.
fn base(
    metadata: &Metadata,
    file: &PackageFile,
    format: Format,
    read_back: VersionSource,
) -> Result<Component, NotAComponent> {
    let (package, component) = (file.name.clone(), metadata.name.clone());
    let version = metadata.version.trim().to_owned();
    let mut version_format = metadata.version_format;
    if !version_format.accepts(&version) {
        version_format = VersionFormat::Mixed;
    }
    if version.is_empty() {
        return Err(NotAComponent::Version { package, component, version, format: metadata.version_format });
    }
    let id = component_id(&stem(&file.name).to_ascii_lowercase());
    let Some(id) = id else { return Err(NotAComponent::Name { package, component }) };
    let kind = kind::Kind::of(metadata);
    Ok(Component {
        id,
        title: metadata.name.clone(),
        version,
        version_format,
        format,
        payload: file.name.clone(),
        sha256: file.sha256,
        size: file.size,
        rules: Rules::default(),
        order: kind.order(),
        requires: Vec::new(),
        conflicts: Vec::new(),
        needs: Vec::new(),
        only_if_installed: false,
        expected_s: metadata.expected_s.unwrap_or(kind.expected_s()).max(1),
        install: None,
        read_back,
    })
}

/// A file's name without what tells its format: a version's dots are none of it.
fn stem(name: &str) -> &str {
    match name.rsplit_once('.') {
        Some((stem, ending)) if !stem.is_empty() && ending.len() <= 6 => {
            stem.strip_suffix(".pldm").unwrap_or(stem)
        }
        _ => name,
    }
}

/// Not for every machine of a maker: what names neither machine nor device has nobody who judges but its own installer.
/// Software is for what runs on the node, and what another way installs is never sent to one.
fn for_somebody(
    made: Vec<Made>,
    metadata: &Metadata,
    file: &PackageFile,
) -> Result<Vec<Made>, NotAComponent> {
    let is_software = kind::Kind::of(metadata) == kind::Kind::Software;
    let is_for = |one: &Made| {
        let component = &one.component;
        is_software || component.needs_another().is_some() || component.rules.names_a_machine()
    };
    if made.iter().all(is_for) {
        return Ok(made);
    }
    Err(NotAComponent::NoDevice { package: file.name.clone(), component: metadata.name.clone() })
}

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
    /// It brings other packages, and is none itself.
    #[error("{package} is a collection of packages, or holds none")]
    Collection {
        /// The file.
        package: String,
    },
    /// Nothing says what it is for.
    #[error(
        "{package}: {component} names no machine and no device, so it could be installed on the wrong one"
    )]
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
        format: VersionFormat,
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
