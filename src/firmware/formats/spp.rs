//! HPE's Service Pack for ProLiant: its catalogue, from a directory or an ISO image, without copying it.
//!
//! `manifest/metadata.json` (or the older `manifest/manifest.json`) is read as a stream, one component in memory at a time, so
//! that a catalogue of any size is listed in flat memory. The packages themselves stay where they are; a member of an
//! image is read in place.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::error::{Fault, FormatError, plain_path};
use super::hpe;
use super::iso::{Entry, Iso};
use super::json::{at, get, list, number, plain, text};
use super::metadata::{Format, Metadata, Package, Payload};
use super::source::{ReadSeek, Source};

/// Catalogues, the better one first.
const CATALOGUES: [&str; 2] = ["manifest/metadata.json", "manifest/manifest.json"];
/// Where the packages are.
const PACKAGES: &str = "packages";
/// A full catalogue of 803 components in nine languages has 20 MB.
const CATALOGUE_BYTES_MAX: u64 = 256 * 1024 * 1024;
const COMPONENTS_MAX: usize = 20_000;
/// Files of one component.
const FILES_MAX: usize = 64;

/// A directory, or an ISO image with its opened file.
pub enum Tree<'a, 's> {
    /// A directory of the file system.
    Directory(&'a Path),
    /// An image.
    Image(&'a mut Source<'s>, Iso),
}

/// A file in a tree.
struct Found {
    size: u64,
    offset: Option<u64>,
}

impl Tree<'_, '_> {
    fn error(&self, fault: Fault) -> FormatError {
        let file = match self {
            Self::Directory(path) => path.display().to_string(),
            Self::Image(source, _) => source.name().to_owned(),
        };
        FormatError { file, offset: None, fault }
    }

    /// The files of a directory by their names in lower case; empty when there is none.
    fn files(&mut self, directory: &str) -> Result<BTreeMap<String, Found>, FormatError> {
        let mut files = BTreeMap::new();
        match self {
            Self::Directory(path) => {
                // What cannot be listed has no files: each component then says that its own is missing.
                for entry in std::fs::read_dir(path.join(directory)).into_iter().flatten().flatten() {
                    let name = entry.file_name().to_string_lossy().to_ascii_lowercase();
                    if let Some(size) = entry.metadata().ok().filter(|m| m.is_file()).map(|m| m.len()) {
                        files.insert(name, Found { size, offset: None });
                    }
                }
            }
            Self::Image(source, iso) => {
                let found = iso.find(source, directory)?.filter(|entry| entry.directory);
                let entries = found.map(|entry| iso.list(source, &entry)).transpose()?.unwrap_or_default();
                for entry in entries.into_iter().filter(|entry| !entry.directory) {
                    let offset = Some(entry.offset).filter(|_| !entry.scattered);
                    files.insert(entry.name.to_ascii_lowercase(), Found { size: entry.size, offset });
                }
            }
        }
        Ok(files)
    }

    /// Hands a reader of a file to `take`; nothing when there is no such file.
    fn stream<T>(
        &mut self,
        path: &str,
        take: impl FnOnce(&mut dyn Read) -> T,
    ) -> Result<Option<T>, FormatError> {
        match self {
            Self::Directory(directory) => match std::fs::File::open(directory.join(path)) {
                Ok(mut file) => Ok(Some(take(&mut file))),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(source) => Err(self.error(Fault::Read { what: "the catalogue", source })),
            },
            Self::Image(source, iso) => match iso.find(source, path)? {
                Some(entry) => {
                    let mut stream = located(source, &entry)?;
                    Ok(Some(take(&mut stream)))
                }
                None => Ok(None),
            },
        }
    }
}

fn located<'a>(
    source: &'a mut Source<'_>,
    entry: &Entry,
) -> Result<io::Take<&'a mut dyn ReadSeek>, FormatError> {
    if entry.directory || entry.scattered {
        let why = format!("{} is not a file in one piece", entry.name);
        return Err(source.error(entry.offset, Fault::Unsupported(why)));
    }
    source.stream(entry.offset, entry.size, "a file of the image")
}

/// Lists the catalogue.
///
/// # Errors
/// When there is none, or it is malformed.
pub fn read(tree: &mut Tree<'_, '_>) -> Result<Package, FormatError> {
    let mut files = tree.files(PACKAGES)?;
    for catalogue in CATALOGUES {
        let mut listing = Listing { files: std::mem::take(&mut files), ..Listing::default() };
        let parsed = tree.stream(catalogue, |reader| {
            let limited = io::BufReader::with_capacity(64 * 1024, reader.take(CATALOGUE_BYTES_MAX));
            Root(&mut listing).deserialize(&mut serde_json::Deserializer::from_reader(limited))
        })?;
        match parsed {
            Some(Ok(())) => {
                let size = match tree {
                    Tree::Directory(_) => None,
                    Tree::Image(source, _) => Some(source.size()),
                };
                let Listing { title, components, payloads, .. } = listing;
                return Ok(Package { size, title, payloads, ..Package::new(Format::Spp, 0, components) });
            }
            Some(Err(error)) => {
                let mut fault = tree.error(Fault::Malformed(error.to_string()));
                fault.file = format!("{}: {catalogue}", fault.file);
                return Err(fault);
            }
            None => files = listing.files,
        }
    }
    Err(tree.error(Fault::Missing(CATALOGUES.join(" or "))))
}

/// Whether a directory has a catalogue.
pub fn is_directory(path: &Path) -> bool {
    CATALOGUES.iter().any(|catalogue| path.join(catalogue).is_file())
}

/// The path of a member of a directory.
///
/// # Errors
/// When it would leave the directory.
pub fn member_of_directory(directory: &Path, member: &str) -> Result<PathBuf, FormatError> {
    let error = |fault| FormatError { file: directory.display().to_string(), offset: None, fault };
    plain_path(member).map_err(error)?;
    Ok(directory.join(member))
}

/// A member of an image as a file of its own, in place.
pub struct Window<'a> {
    inner: &'a mut dyn ReadSeek,
    offset: u64,
    size: u64,
    at: u64,
}

impl<'a> Window<'a> {
    /// The file at `path` of the image.
    ///
    /// # Errors
    /// When it is not there, or not in one piece.
    pub fn open(source: &'a mut Source<'_>, path: &str) -> Result<Self, FormatError> {
        let iso = Iso::open(source)?;
        let entry = iso.find(source, path)?;
        let entry = entry.ok_or_else(|| source.error(None, Fault::Missing(path.to_owned())))?;
        located(source, &entry)?;
        Ok(Self { inner: source.reader(), offset: entry.offset, size: entry.size, at: 0 })
    }

    /// The file's size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }
}

impl Read for Window<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.size.saturating_sub(self.at).min(buffer.len() as u64) as usize;
        self.inner.seek(SeekFrom::Start(self.offset.saturating_add(self.at)))?;
        let read = self.inner.read(buffer.get_mut(..left).unwrap_or_default())?;
        self.at += read as u64;
        Ok(read)
    }
}

impl Seek for Window<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.size.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = target.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.at)
    }
}

/// What was read of a catalogue so far.
#[derive(Default)]
struct Listing {
    title: Option<String>,
    components: Vec<Metadata>,
    payloads: Vec<Payload>,
    files: BTreeMap<String, Found>,
}

impl Listing {
    fn add(&mut self, value: &Value) {
        let package = get(value, "package").unwrap_or(value);
        let announced: Vec<(String, &Value)> = files(package).collect();
        let first = announced.first().map_or("", |(name, _)| name.as_str());
        let stem = first.rsplit_once('.').map_or(first, |(stem, _)| stem);
        let mut component = hpe::component(value, stem);
        // The images are inside the package; here the package itself is the payload.
        component.payloads.clear();
        for (name, about) in announced {
            let Some(found) = self.files.get(&name.to_ascii_lowercase()) else {
                component.hints.insert("file-problem".into(), format!("{name} is missing"));
                continue;
            };
            if let Some(bytes) = number(about, "Bytes").filter(|bytes| *bytes != found.size) {
                let problem = format!("{name} has {} bytes, announced are {bytes}", found.size);
                component.hints.insert("file-problem".into(), problem);
            }
            let mut payload = Payload {
                name: format!("{PACKAGES}/{name}"),
                size: found.size,
                offset: found.offset,
                ..Payload::default()
            };
            for (algorithm, keys) in [("md5", ["MD5Sum", "md5"]), ("sha256", ["SHA256Sum", "sha256"])] {
                let digest = keys.iter().find_map(|key| text(about, key));
                payload
                    .checksums
                    .extend(digest.map(|digest| (algorithm.into(), digest.to_ascii_lowercase())));
            }
            component.payloads.push(payload.name.clone());
            self.payloads.push(payload);
        }
        self.components.push(component);
    }

    fn bundle(&mut self, bundle: &Value) {
        let described = hpe::component(bundle, "");
        let words: Vec<String> =
            [described.name, described.version].into_iter().filter(|w| !w.is_empty()).collect();
        self.title = self.title.take().or(Some(words.join(" ")).filter(|title| !title.is_empty()));
    }
}

/// Files of a package in both generations of the catalogue.
fn files(package: &Value) -> impl Iterator<Item = (String, &Value)> {
    let old = at(package, &["files", "file"])
        .map_or(&[][..], |_| get(package, "files").map_or(&[][..], |files| list(files, "file")));
    let new = if old.is_empty() { list(package, "Files") } else { &[] };
    let all = new.iter().chain(old).take(FILES_MAX);
    let named = all.filter_map(|file| text(file, "Name").or_else(|| plain(file)).map(|name| (name, file)));
    let single = get(package, "filename").filter(|_| old.is_empty() && new.is_empty());
    named.chain(single.and_then(plain).map(|name| (name, package)))
}

/// The top of a catalogue: its keys are few, its components are taken one by one.
struct Root<'l>(&'l mut Listing);

impl<'de> DeserializeSeed<'de> for Root<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Root<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a catalogue of components")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen = false;
        while let Some(key) = map.next_key::<String>()? {
            match key.to_ascii_lowercase().as_str() {
                "components" | "manifest" => {
                    seen = true;
                    map.next_value_seed(Each(|value: &Value| self.0.add(value)))?;
                }
                "bundles" => map.next_value_seed(Each(|value: &Value| self.0.bundle(value)))?,
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        if seen { Ok(()) } else { Err(serde::de::Error::custom("it has no \"Components\"")) }
    }
}

/// A list whose elements are seen one at a time.
struct Each<F>(F);

impl<'de, F: FnMut(&Value)> DeserializeSeed<'de> for Each<F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de, F: FnMut(&Value)> Visitor<'de> for Each<F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<(), A::Error> {
        let mut count = 0;
        while let Some(value) = list.next_element::<Value>()? {
            count += 1;
            if count > COMPONENTS_MAX {
                return Err(serde::de::Error::custom(format!("more than {COMPONENTS_MAX} components")));
            }
            (self.0)(&value);
        }
        Ok(())
    }
}
