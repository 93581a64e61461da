//! Makers' packages into the store as a baseline, with no manifest written by hand.
//!
//! Files, directories of files, and service packs as directories or ISO images, of which only the chosen packages are copied.
//! Each is read, then streamed in; the manifest comes last. What is damaged ends the import; what is no firmware, or
//! makes no component, is left out and said. Such a baseline is signed by nobody.

use std::path::{Path, PathBuf};

use super::Manifest;
use super::import::{Expected, ImportError, ImportedBaseline, Importer, Payload, Told};
use crate::clock;
use crate::error::{Hinted, chain};
use crate::firmware::baseline::{Baseline, BaselineError};
use crate::firmware::formats::metadata::{Format, Metadata};
use crate::firmware::formats::{self, Fault, FormatError, Package, Trust};
use crate::firmware::from_package::{self, PackageFile};
use crate::firmware::manifest;
use crate::wire::id::BaselineId;

/// Files of one directory; a service pack with all that belongs to it has 4,000.
const FILES_MAX: usize = 20_000;

/// Directories within directories.
const DEPTH_MAX: usize = 8;

/// Versions of one name that are tried before an import is refused.
const VERSIONS_MAX: u32 = 1000;

/// What is to be made of the sources.
#[derive(Debug, Default)]
pub struct Choice {
    /// The baseline's id; else it follows from the source.
    pub id: Option<BaselineId>,
    /// Its version; else that of the service pack, or today's date.
    pub version: Option<String>,
    /// Packages of a service pack, by name of file, product id or name without ending; `*` for all.
    pub only: Vec<String>,
}

/// A baseline that was made.
#[derive(Debug)]
pub struct Made {
    /// As every other that is imported.
    pub imported: ImportedBaseline,
    /// What is not in it, and why.
    pub left_out: Vec<String>,
}

/// Why nobody vouches for it but whoever has it made.
const UNSIGNED: &str = "made on this box of makers' packages";

/// Why no baseline was made.
#[derive(Debug, thiserror::Error)]
pub enum ForeignError {
    /// Bringing a package in.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// Reading one.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// What the packages say makes no baseline.
    #[error("{} makes no baseline: {source}", path.display())]
    Baseline {
        /// The first source.
        path: PathBuf,
        /// Why.
        source: BaselineError,
    },
    /// The source's name cannot be a baseline's id.
    #[error("the baseline of {} needs an id of its own", path.display())]
    Nameless {
        /// The source.
        path: PathBuf,
    },
    /// Makers sign packages their own ways, if at all, and a baseline of them has no signature.
    #[error("{} is a package of a maker: nobody has signed what a baseline of it says", path.display())]
    Unsigned {
        /// The package.
        path: PathBuf,
    },
    /// There is no package.
    #[error("{} has no firmware package in it", path.display())]
    Nothing {
        /// The source.
        path: PathBuf,
    },
    /// A service pack is not copied whole unless it is asked for.
    #[error("{} has {count} packages of {bytes} bytes, and none is chosen", path.display())]
    Choose {
        /// The source.
        path: PathBuf,
        /// How many.
        count: usize,
        /// Bytes of all.
        bytes: u64,
    },
    /// A package that was chosen is not there.
    #[error("{} has no package \"{name}\"", path.display())]
    NotThere {
        /// The source.
        path: PathBuf,
        /// As asked for.
        name: String,
    },
}

impl Hinted for ForeignError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Import(error) => error.hint(),
            Self::Format(error) => error.hint(),
            Self::Baseline { source, .. } => source.hint(),
            Self::Nameless { .. } => Some("give it one with --id".into()),
            Self::Unsigned { .. } => Some(
                "if you trust where it comes from, say so with --unsigned-ok; the baseline is shown as unsigned".into(),
            ),
            Self::Nothing { .. } => {
                Some("name a directory, a file or an image with firmware packages".into())
            }
            Self::Choose { path, .. } | Self::NotThere { path, .. } => Some(format!(
                "carena firmware show {} lists them; choose with --only NAME,… or take all with --only '*'",
                path.display()
            )),
        }
    }
}

/// A package, and where it stands.
struct Found {
    path: PathBuf,
    /// Its path within a service pack.
    member: Option<String>,
    /// The digest that a catalogue announces.
    expected: Expected,
    /// As it was read, where it was.
    package: Option<Package>,
}

impl Found {
    fn file(path: PathBuf, package: Option<Package>) -> Self {
        Self { path, member: None, expected: Expected::default(), package }
    }
}

/// What the sources hold.
#[derive(Default)]
struct Survey {
    found: Vec<Found>,
    /// A service pack's name and version.
    title: Option<String>,
    left_out: Vec<String>,
}

/// Whether a file is a firmware package, or a collection of them, that makes a baseline.
///
/// # Errors
/// [`FormatError`] when it is one, and damaged.
pub fn is_package(path: &Path) -> Result<bool, FormatError> {
    match formats::read(path, &Trust::default()) {
        Ok(_) => Ok(true),
        Err(FormatError { fault: Fault::Unknown, .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

impl Importer {
    /// Makers' packages, as one baseline.
    ///
    /// # Errors
    /// [`ForeignError`]; payloads that were whole stay.
    pub fn foreign(
        &self,
        sources: &[PathBuf],
        choice: &Choice,
        told: &mut Told<'_>,
    ) -> Result<Made, ForeignError> {
        let first = sources.first().cloned().unwrap_or_default();
        let mut survey = Survey::default();
        for source in sources {
            survey.look(source, choice, self.trust())?;
        }
        let (mut made, mut payloads, mut left_out) = (Vec::new(), Vec::new(), survey.left_out);
        for found in survey.found {
            match self.package(found, told)? {
                Ok((components, payload)) => {
                    made.extend(components);
                    payloads.push(payload);
                }
                Err(why) => left_out.push(why),
            }
        }
        if made.is_empty() {
            return Err(ForeignError::Nothing { path: first });
        }
        let named = named(&first, survey.title.as_deref(), choice);
        let (id, version, title) = named.ok_or_else(|| ForeignError::Nameless { path: first.clone() })?;
        let built = from_package::baseline(&id, &version, &title, made);
        let (built, superseded) =
            built.map_err(|source| ForeignError::Baseline { path: first.clone(), source })?;
        left_out.extend(superseded.into_iter().map(|one| format!("{}: {}", one.id, one.why)));
        // A version that was asked for is there afterwards, whatever else is.
        let there = if choice.version.is_some() { None } else { self.already(&built)? };
        let imported = self.keep(there.unwrap_or(built), &payloads, &first, choice.version.is_some())?;
        Ok(Made { imported, left_out })
    }

    /// One package: its components, and its bytes in the store.
    fn package(
        &self,
        found: Found,
        told: &mut Told<'_>,
    ) -> Result<Result<(Vec<from_package::Made>, Payload), String>, ForeignError> {
        let package = match (found.package, &found.member) {
            (Some(package), _) => Ok(package),
            (None, Some(member)) => formats::read_member(&found.path, member, self.trust()),
            (None, None) => formats::read(&found.path, self.trust()),
        };
        let package = match package {
            Ok(package) => package,
            // Beside packages there are notes and lists.
            Err(error @ FormatError { fault: Fault::Unknown, .. }) => return Ok(Err(chain(&error))),
            Err(error) => return Err(error.into()),
        };
        if !self.takes_unsigned() {
            return Err(ForeignError::Unsigned { path: found.path });
        }
        // An archive that stands alone, or in a directory: what is in it for Linux is what travels.
        let plain =
            found.member.as_ref().map_or_else(|| found.path.clone(), |member| found.path.join(member));
        let inner = from_package::inner(&package).map(str::to_owned);
        if inner.is_some() && !plain.is_file() {
            let name = found.member.unwrap_or_default();
            return Ok(Err(format!(
                "{name}: what is in an archive cannot be taken out of it within an image: copy the archive out of the image \
                 and import that"
            )));
        }
        let name = inner.clone().unwrap_or_else(|| plain.to_string_lossy().into_owned());
        let name = name.rsplit('/').next().unwrap_or_default().trim_start_matches('.').to_owned();
        let payload = match (&inner, &found.member) {
            (Some(inner), _) => self.part(&plain, inner, Expected::default(), told)?,
            (None, Some(member)) => self.part(&found.path, member, found.expected, told)?,
            (None, None) => self.file(&found.path, Expected::default(), told)?,
        };
        // What came, not what was looked at before: a stick's content need not be the same twice.
        let package = if inner.is_some() { package } else { self.stored_package(&name, payload.sha256)? };
        let file = PackageFile { name, sha256: payload.sha256, size: payload.size };
        let made = from_package::components(&package, &file);
        Ok(made.map(|made| (made, payload)).map_err(|why| why.to_string()))
    }

    fn part(
        &self,
        path: &Path,
        member: &str,
        expected: Expected,
        told: &mut Told<'_>,
    ) -> Result<Payload, ForeignError> {
        let name = path.join(member);
        let streamed = formats::with_member(path, member, |reader, size| {
            self.stream(&name, reader, Expected { size: Some(size), ..expected }, told)
        })?;
        Ok(streamed?)
    }

    /// The same baseline under whatever version, imported before.
    fn already(&self, built: &Baseline) -> Result<Option<Baseline>, ForeignError> {
        let store = self.store();
        let all =
            store.baselines().map_err(|source| ImportError::Store { path: store.root().into(), source })?;
        let same = |there: &Baseline| *there == Baseline { version: there.version.clone(), ..built.clone() };
        Ok(all.into_iter().filter_map(|imported| Some(imported.manifest.ok()?.baseline)).find(same))
    }

    /// Keeps it under the first version that is free; only under its own where that was asked for.
    fn keep(
        &self,
        mut built: Baseline,
        payloads: &[Payload],
        source: &Path,
        is_asked_for: bool,
    ) -> Result<ImportedBaseline, ForeignError> {
        let (id, first) = (built.id.to_string(), built.version.clone());
        for number in 2..VERSIONS_MAX {
            let manifest =
                Manifest { text: manifest::write(&built), signature: None, baseline: built.clone() };
            match self.made(manifest, payloads.to_vec(), source, UNSIGNED) {
                Err(ImportError::Conflict { .. }) if !is_asked_for => {
                    built.version = format!("{first}.{number}");
                }
                kept => return Ok(kept?),
            }
        }
        Err(ImportError::Conflict { id, version: first }.into())
    }
}

impl Survey {
    fn look(&mut self, source: &Path, choice: &Choice, trust: &Trust) -> Result<(), ForeignError> {
        match formats::read(source, trust) {
            Ok(package) if package.format == Format::Spp => self.choose(source, &package, choice),
            Ok(package) => {
                self.found.push(Found::file(source.to_owned(), Some(package)));
                Ok(())
            }
            Err(FormatError { fault: Fault::Unknown, .. }) if source.is_dir() => {
                let mut files = Vec::new();
                list(source, 0, &mut files, &mut self.left_out)?;
                self.found.extend(files.into_iter().map(|path| Found::file(path, None)));
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The chosen packages of a service pack.
    fn choose(&mut self, path: &Path, package: &Package, choice: &Choice) -> Result<(), ForeignError> {
        self.title = self.title.take().or_else(|| package.title.clone());
        if choice.only.is_empty() {
            let (count, bytes) =
                (package.components.len(), package.payloads.iter().map(|one| one.size).sum());
            return Err(ForeignError::Choose { path: path.to_owned(), count, bytes });
        }
        for name in &choice.only {
            let before = self.found.len();
            for component in package.components.iter().filter(|component| is_named(component, name)) {
                self.member_of(path, package, component);
            }
            if self.found.len() == before && name != ALL {
                return Err(ForeignError::NotThere { path: path.to_owned(), name: name.clone() });
            }
        }
        Ok(())
    }

    /// A component's first file is the package; what is beside it are its signatures.
    fn member_of(&mut self, path: &Path, package: &Package, component: &Metadata) {
        let Some(member) = component.payloads.first() else {
            let problem = component.hints.get("file-problem").map_or("it has no file", String::as_str);
            self.left_out.push(format!("{}: {problem}", component.name));
            return;
        };
        let listed = package.payloads.iter().find(|payload| payload.name == *member);
        let sha256 = listed.and_then(|payload| payload.checksums.get("sha256")?.parse().ok());
        if !self.found.iter().any(|found| found.member.as_ref() == Some(member)) {
            let expected = Expected { sha256, size: None };
            let (path, member) = (path.to_owned(), Some(member.clone()));
            self.found.push(Found { path, member, expected, package: None });
        }
    }
}

/// Everything of a service pack.
const ALL: &str = "*";

/// By product id, file, or file without its ending; without regard to case.
fn is_named(component: &Metadata, name: &str) -> bool {
    let is = |text: &str| text.eq_ignore_ascii_case(name);
    let files = component.payloads.iter().map(|path| path.rsplit('/').next().unwrap_or_default());
    let mut names =
        files.flat_map(|file| [Some(file), file.rsplit_once('.').map(|(stem, _)| stem)]).flatten();
    name == ALL || is(&component.id) || names.any(is)
}

/// Regular files below a directory, sorted. Links are not followed: they may lead anywhere.
fn list(
    directory: &Path,
    depth: usize,
    into: &mut Vec<PathBuf>,
    left_out: &mut Vec<String>,
) -> Result<(), ImportError> {
    let unreadable = |source| ImportError::Source { path: directory.to_owned(), source };
    let entries = std::fs::read_dir(directory).map_err(unreadable)?;
    let mut entries = entries.collect::<Result<Vec<_>, _>>().map_err(unreadable)?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let kind = entry.file_type().map_err(unreadable)?;
        let path = entry.path();
        if kind.is_dir() && depth < DEPTH_MAX {
            list(&path, depth + 1, into, left_out)?;
        } else if kind.is_dir() {
            left_out.push(format!("{}: more than {DEPTH_MAX} directories deep", path.display()));
        } else if kind.is_file() && into.len() < FILES_MAX {
            into.push(path);
        } else if kind.is_file() {
            left_out.push(format!("{}: and what follows, more than {FILES_MAX} files", path.display()));
            return Ok(());
        }
    }
    Ok(())
}

/// Id, version and title: what was asked for, else as a service pack calls itself, else the source's name and today.
fn named(source: &Path, title: Option<&str>, choice: &Choice) -> Option<(BaselineId, String, String)> {
    let stem = source.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
    let is_version = |word: &&str| word.starts_with(|c: char| c.is_ascii_digit());
    let (name, told) = match title.and_then(|title| title.rsplit_once(' ')) {
        Some((name, version)) if is_version(&version) => (name, Some(version)),
        _ => (title.unwrap_or(&stem), None),
    };
    let id = choice.id.clone().or_else(|| id_of(name)).or_else(|| id_of(&stem));
    let today = || clock::now_rfc3339().get(..10).unwrap_or("1").replace('-', ".");
    let version = choice.version.clone().or_else(|| told.map(str::to_owned)).unwrap_or_else(today);
    let title = title.unwrap_or(&stem).to_owned();
    Some((id?, version, title))
}

/// A name as an id: in lower case, what may not stand there as a hyphen.
fn id_of(name: &str) -> Option<BaselineId> {
    let harmless = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_') { c } else { '-' };
    let name: String = name.to_ascii_lowercase().chars().map(harmless).take(64).collect();
    name.trim_matches(|c: char| !c.is_ascii_alphanumeric()).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_baseline_is_called_as_its_service_pack_calls_itself_else_as_its_source() {
        let name = |source: &str, title, choice: &Choice| {
            let (id, version, title) = named(Path::new(source), title, choice).unwrap();
            (id.to_string(), version, title)
        };
        let told = name("/media/cd", Some("Gen10 SPP 2026.07.00.00"), &Choice::default());
        assert_eq!(told, ("gen10-spp".into(), "2026.07.00.00".into(), "Gen10 SPP 2026.07.00.00".into()));
        let (id, version, _) = name("/srv/Rack 7 (new).d", None, &Choice::default());
        assert_eq!(id, "rack-7--new");
        assert_eq!((version.len(), version.matches('.').count()), (10, 2), "{version}");
        let choice =
            Choice { id: Some("x".parse().unwrap()), version: Some("7".into()), ..Choice::default() };
        assert_eq!(name("/srv/…", None, &choice), ("x".into(), "7".into(), "…".into()));
        assert!(named(Path::new("/srv/…"), None, &Choice::default()).is_none());
    }
}
