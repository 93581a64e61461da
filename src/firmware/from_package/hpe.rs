//! Components from HPE's packages: smart components, firmware RPMs, firmware packages for controllers.
//!
//! A system ROM is a component for each family it is for, since only within a family versions have an order; firmware of
//! disks one for each model. The revision of a package, as the "B" of `1.34(B)`, is not on the node: it is left out where
//! the version is read back from there.

use super::kind::Kind;
use super::{Made, NotAComponent, PackageFile, base, component_id};
use crate::firmware::component::{Component, Format};
use crate::firmware::formats::metadata::{Format as PackageFormat, Metadata, Package, Rule};
use crate::firmware::installed::VersionSource;
use crate::firmware::package_tool::PackageTool;
use crate::firmware::rules::{Maker, Rules};
use crate::firmware::version::VersionFormat;

/// Why the version of other devices is not compared.
const NOT_TOLD: &str = "the device's driver tells another version than HPE's package does";

/// The components of a smart component or a firmware package.
///
/// # Errors
/// [`NotAComponent`].
pub fn component(
    metadata: &Metadata,
    file: &PackageFile,
    format: Format,
) -> Result<Vec<Made>, NotAComponent> {
    let families: Vec<String> = metadata.platforms.iter().filter_map(|target| family(&target.rule)).collect();
    let mut component = base(metadata, file, format, VersionSource::None(NOT_TOLD.into()))?;
    component.rules = Rules {
        maker: Some(Maker::Hpe),
        // Unpacked on the node, by its tools.
        package_tool: (format == Format::HpeRpm).then_some(PackageTool::Rpm),
        rom_family: families.clone(),
        ..Rules::default()
    };
    let product = format!("HPE product {}", metadata.id);
    if component.needs_another().is_some() {
        component.read_back = VersionSource::None("the management controller tells it".into());
        return Ok(vec![offering(component, product)]);
    }
    Ok(by_device(component, Kind::of(metadata), &families, &metadata.name)
        .into_iter()
        .map(|(component, device)| offering(component, format!("{product}{device}")))
        .collect())
}

/// The components of a firmware package of rpm's: its name says what it is for.
///
/// # Errors
/// [`NotAComponent`].
pub fn rpm(metadata: &Metadata, file: &PackageFile) -> Result<Vec<Made>, NotAComponent> {
    let mut component = base(metadata, file, Format::HpeRpm, VersionSource::None(NOT_TOLD.into()))?;
    let family = metadata.id.rsplit_once("system-").map(|(_, family)| family.to_ascii_uppercase());
    let families: Vec<String> = family.into_iter().collect();
    component.rules = Rules {
        maker: Some(Maker::Hpe),
        package_tool: Some(PackageTool::Rpm),
        rom_family: families.clone(),
        ..Rules::default()
    };
    // The package's release is not on the node.
    let version = component.version.split_once(':').map_or(component.version.as_str(), |(_, rest)| rest);
    component.version = version.split('-').next().unwrap_or_default().to_owned();
    component.version_format =
        Some(VersionFormat::Hpe).filter(|hpe| hpe.accepts(&component.version)).unwrap_or_default();
    let product = format!("package {}", metadata.id);
    Ok(by_device(component, Kind::of(metadata), &families, &metadata.name)
        .into_iter()
        .map(|(component, device)| offering(component, format!("{product}{device}")))
        .collect())
}

/// The file in an archive of HPE's that installs on Linux, and so is what travels to a node; none where the archive is for
/// other systems.
pub fn inner(package: &Package) -> Option<&str> {
    let names = package.payloads.iter().map(|payload| payload.name.as_str());
    let is_smart = package.format == PackageFormat::HpeSmart;
    names.filter(|_| is_smart).find(|name| inner_format(name) != Format::HpeSmart)
}

/// What a file in such an archive is, by its name: what it is for the archive's description says.
pub fn inner_format(name: &str) -> Format {
    match name.to_ascii_lowercase().rsplit_once('.') {
        Some((_, "scexe")) => Format::HpeScexe,
        Some((stem, "rpm")) if stem.contains("firmware") => Format::HpeRpm,
        _ => Format::HpeSmart,
    }
}

fn offering(component: Component, offer: String) -> Made {
    Made { offers: vec![offer], ..Made::alone(component) }
}

fn family(rule: &Rule) -> Option<String> {
    match rule {
        Rule::HpeRomFamily { family } => Some(family.to_ascii_uppercase()),
        _ => None,
    }
}

/// Where its version stands on the node, one component for each place; beside it what tells them apart.
fn by_device(component: Component, kind: Kind, families: &[String], name: &str) -> Vec<(Component, String)> {
    let told = without_revision(&component.version).to_owned();
    let made: Vec<_> = match kind {
        Kind::Bios => families.iter().filter_map(|family| of_rom(&component, &told, family)).collect(),
        Kind::Bmc => placed(&component, &told, VersionSource::Bmc, None).into_iter().collect(),
        Kind::Disk => disk_models(name)
            .into_iter()
            .filter_map(|model| {
                let source = VersionSource::Disk(model.clone());
                let (mut component, device) = placed(&component, &told, source, Some(&model))?;
                component.rules.disk_model = vec![model];
                Some((component, device))
            })
            .collect(),
        _ => Vec::new(),
    };
    if made.is_empty() { vec![(component, String::new())] } else { made }
}

fn of_rom(component: &Component, told: &str, family: &str) -> Option<(Component, String)> {
    let (number, date) = told.split_once('_').unwrap_or((told, ""));
    let date = date_of_rom(date).map_or_else(String::new, |date| format!(" ({date})"));
    let version = format!("{family} v{number}{date}");
    let (mut component, device) = placed(component, &version, VersionSource::Bios, Some(family))?;
    component.rules.rom_family = vec![family.to_owned()];
    Some((component, device))
}

/// "09-21-2023" and "2023_09_21" as the ROM itself writes it: month, day, year.
fn date_of_rom(date: &str) -> Option<String> {
    let parts: Vec<&str> = date.split(['-', '_']).collect();
    match parts.as_slice() {
        [year, month, day] if year.len() == 4 => Some(format!("{month}/{day}/{year}")),
        [month, day, year] if year.len() == 4 => Some(format!("{month}/{day}/{year}")),
        _ => None,
    }
}

/// Nothing where the version has no order among HPE's: then it is not read back at all.
fn placed(
    component: &Component,
    version: &str,
    read_back: VersionSource,
    device: Option<&str>,
) -> Option<(Component, String)> {
    let device = device.map_or_else(String::new, |device| format!("-{}", device.to_ascii_lowercase()));
    let id = component_id(&format!("{}{device}", component.id))?;
    let version_format = Some(VersionFormat::Hpe).filter(|hpe| hpe.accepts(version))?;
    let version = version.to_owned();
    Some((Component { id, version, version_format, read_back, ..component.clone() }, device))
}

fn without_revision(version: &str) -> &str {
    match version.strip_suffix(')').and_then(|rest| rest.rsplit_once('(')) {
        Some((version, revision)) if revision.chars().all(|c| c.is_ascii_uppercase()) => version.trim_end(),
        _ => version,
    }
}

/// HPE's models of disks in a package's name, as "MO000400JWDKU": two letters, four to six digits, four or five letters.
fn disk_models(name: &str) -> Vec<String> {
    let is_model = |word: &&str| {
        let digits = word.trim_start_matches(|c: char| c.is_ascii_uppercase());
        let letters = digits.trim_start_matches(|c: char| c.is_ascii_digit());
        word.len() - digits.len() == 2
            && (4..=6).contains(&(digits.len() - letters.len()))
            && (4..=5).contains(&letters.len())
            && letters.chars().all(|c| c.is_ascii_uppercase())
    };
    let words = name.split(|c: char| !c.is_ascii_alphanumeric());
    words.filter(is_model).map(str::to_owned).collect()
}
