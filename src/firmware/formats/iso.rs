//! ISO 9660 images, read in place: names by Rock Ridge, else Joliet, else as they are (ECMA-119, IEEE P1282, Joliet 1.0).
//!
//! For the catalogues of vendors: directories are looked up one at a time, files are located and never copied here. A loop
//! of directories cannot be followed, since only a path that was asked for is.

use super::error::{Fault, FormatError};
use super::source::{Fields, Source};

const SECTOR: u64 = 2048;
const FIRST_DESCRIPTOR: u64 = 16;
/// ECMA-119 sets no limit; real images have two or three.
const DESCRIPTORS_MAX: u64 = 32;
const DIRECTORY_BYTES_MAX: u64 = 16 * 1024 * 1024;
const DEPTH_MAX: usize = 16;

const DESCRIPTOR_PRIMARY: u8 = 1;
const DESCRIPTOR_SUPPLEMENTARY: u8 = 2;
const DESCRIPTOR_END: u8 = 255;
const FLAG_DIRECTORY: u8 = 2;
const FLAG_MORE: u8 = 0x80;
/// A root directory's record in a volume descriptor.
const ROOT_AT: usize = 156;
const ROOT_BYTES: usize = 34;
const RECORD_BYTES_MIN: usize = 33;

/// Whether a file is such an image: the first volume descriptor stands at a fixed place.
///
/// # Errors
/// When the file cannot be read.
pub fn is_image(source: &mut Source<'_>) -> Result<bool, FormatError> {
    let at = FIRST_DESCRIPTOR * SECTOR;
    if source.size() < at + SECTOR {
        return Ok(false);
    }
    Ok(source.bytes(at, 6, "a volume descriptor")?.get(1..) == Some(b"CD001"))
}

/// An image's root, and how names in it are read.
pub struct Iso {
    root: Entry,
    naming: Naming,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Naming {
    /// `skip` bytes precede the fields of the system use area.
    RockRidge {
        skip: u8,
    },
    Joliet,
    Plain,
}

/// A file or directory.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its name in its directory.
    pub name: String,
    /// Where its bytes begin in the image.
    pub offset: u64,
    /// How many there are.
    pub size: u64,
    /// Whether it is a directory.
    pub directory: bool,
    /// Set when its parts do not follow each other.
    pub scattered: bool,
}

impl Iso {
    /// Reads the volume descriptors.
    ///
    /// # Errors
    /// When there is no volume that can be read.
    pub fn open(source: &mut Source<'_>) -> Result<Self, FormatError> {
        let file = source.name().to_owned();
        let (mut primary, mut joliet) = (None, None);
        for sector in FIRST_DESCRIPTOR..FIRST_DESCRIPTOR + DESCRIPTORS_MAX {
            let at = sector * SECTOR;
            let bytes = source.bytes(at, SECTOR as usize, "a volume descriptor")?;
            if bytes.get(1..6) != Some(b"CD001") {
                return Err(source.error(at, Fault::Malformed("this is no volume descriptor".into())));
            }
            let root = || {
                let bytes = bytes.get(ROOT_AT..ROOT_AT + ROOT_BYTES).unwrap_or_default();
                record(&file, bytes, at + ROOT_AT as u64).map(|root| root.map(|root| root.entry()))
            };
            match bytes.first() {
                Some(&DESCRIPTOR_PRIMARY) if primary.is_none() => primary = root()?,
                Some(&DESCRIPTOR_SUPPLEMENTARY) if is_joliet(&bytes) => joliet = root()?,
                Some(&DESCRIPTOR_END) => break,
                _ => {}
            }
        }
        let primary =
            primary.ok_or_else(|| source.error(None, Fault::Missing("the primary volume".into())))?;
        if let Some(skip) = rock_ridge(source, &primary)? {
            return Ok(Self { root: primary, naming: Naming::RockRidge { skip } });
        }
        Ok(match joliet {
            Some(joliet) => Self { root: joliet, naming: Naming::Joliet },
            None => Self { root: primary, naming: Naming::Plain },
        })
    }

    /// What is at a path, names compared without regard to case.
    ///
    /// # Errors
    /// When a directory on the way is malformed.
    pub fn find(&self, source: &mut Source<'_>, path: &str) -> Result<Option<Entry>, FormatError> {
        let mut here = self.root.clone();
        for name in path.split('/').filter(|name| !name.is_empty()).take(DEPTH_MAX) {
            if !here.directory {
                return Ok(None);
            }
            let entries = self.list(source, &here)?;
            let Some(found) = entries.into_iter().find(|entry| entry.name.eq_ignore_ascii_case(name)) else {
                return Ok(None);
            };
            here = found;
        }
        Ok(Some(here))
    }

    /// What is in a directory.
    ///
    /// # Errors
    /// When it is malformed or too large.
    pub fn list(&self, source: &mut Source<'_>, directory: &Entry) -> Result<Vec<Entry>, FormatError> {
        if directory.size > DIRECTORY_BYTES_MAX {
            let (what, found, limit) = ("the size of a directory", directory.size, DIRECTORY_BYTES_MAX);
            return Err(source.error(directory.offset, Fault::Limit { what, found, limit }));
        }
        let bytes = source.bytes(directory.offset, directory.size as usize, "a directory")?;
        let file = source.name().to_owned();
        let mut entries: Vec<Entry> = Vec::new();
        let mut more = false;
        let mut at = 0;
        while let Some(length) = bytes.get(at).map(|length| usize::from(*length)) {
            if length == 0 {
                // Records do not cross sectors; the rest of this one is empty.
                at = (at + 1).next_multiple_of(SECTOR as usize);
                continue;
            }
            let place = directory.offset + at as u64;
            let bytes = bytes
                .get(at..at + length)
                .ok_or_else(|| source.error(place, Fault::Truncated("a directory")))?;
            at += length;
            let found = record(&file, bytes, place)?;
            let Some(found) = found else {
                return Err(source.error(place, Fault::Malformed("this is no directory record".into())));
            };
            if matches!(found.name, [0] | [1]) {
                continue;
            }
            let mut entry = found.entry();
            entry.name = self.name(source, &found)?;
            match entries.last_mut().filter(|_| more) {
                // A part of the file before: a file of more than 4 GiB has several.
                Some(last) => {
                    last.scattered |= last.offset + last.size != entry.offset;
                    last.size += entry.size;
                }
                None => entries.push(entry),
            }
            more = found.flags & FLAG_MORE != 0;
        }
        Ok(entries)
    }

    fn name(&self, source: &mut Source<'_>, record: &Record<'_>) -> Result<String, FormatError> {
        let plain = || {
            let name = String::from_utf8_lossy(record.name);
            let name = name.split(';').next().unwrap_or_default();
            name.strip_suffix('.').unwrap_or(name).to_owned()
        };
        Ok(match self.naming {
            Naming::Plain => plain(),
            Naming::Joliet => {
                let units = record.name.chunks_exact(2);
                let units = units.filter_map(|pair| <[u8; 2]>::try_from(pair).ok()).map(u16::from_be_bytes);
                let name = char::decode_utf16(units).map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER));
                name.collect::<String>().split(';').next().unwrap_or_default().to_owned()
            }
            Naming::RockRidge { skip } => {
                let system_use = record.system_use.get(usize::from(skip)..).unwrap_or_default();
                alternate_name(source, system_use)?.unwrap_or_else(plain)
            }
        })
    }
}

/// The escape sequences of UCS-2 levels 1 to 3.
fn is_joliet(descriptor: &[u8]) -> bool {
    let escape = descriptor.get(88..91).unwrap_or_default();
    [b"%/@", b"%/C", b"%/E"].iter().any(|level| level.as_slice() == escape)
}

/// A directory record, ECMA-119 9.1.
struct Record<'a> {
    offset: u64,
    size: u64,
    flags: u8,
    name: &'a [u8],
    system_use: &'a [u8],
}

impl Record<'_> {
    fn entry(&self) -> Entry {
        let directory = self.flags & FLAG_DIRECTORY != 0;
        Entry { name: String::new(), offset: self.offset, size: self.size, directory, scattered: false }
    }
}

fn record<'a>(file: &'a str, bytes: &'a [u8], at: u64) -> Result<Option<Record<'a>>, FormatError> {
    if bytes.len() < RECORD_BYTES_MIN {
        return Ok(None);
    }
    let mut fields = Fields::new(file, bytes, at);
    fields.take(1, "a record's length")?;
    let attributes = u64::from(fields.u8("the length of extended attributes")?);
    let sector = u64::from(fields.u32("a record's location")?) + attributes;
    fields.take(4, "a record's location")?;
    let size = u64::from(fields.u32("a record's size")?);
    fields.take(4 + 7, "a record's date")?;
    let flags = fields.u8("a record's flags")?;
    fields.take(2 + 4, "a record's volume")?;
    let length = usize::from(fields.u8("the length of a name")?);
    let name = fields.take(length, "a name")?;
    if length % 2 == 0 && fields.left() > 0 {
        fields.take(1, "padding")?;
    }
    let system_use = fields.take(fields.left(), "the system use area")?;
    Ok(Some(Record { offset: sector * SECTOR, size, flags, name, system_use }))
}

/// SUSP 5.3: the root's own record begins with an SP field where Rock Ridge is used; bytes to skip in every other.
fn rock_ridge(source: &mut Source<'_>, root: &Entry) -> Result<Option<u8>, FormatError> {
    let bytes = source.bytes(root.offset, SECTOR as usize, "the root directory")?;
    let length = usize::from(bytes.first().copied().unwrap_or_default());
    let file = source.name().to_owned();
    let own = record(&file, bytes.get(..length).unwrap_or_default(), root.offset)?;
    Ok(own.and_then(|own| match own.system_use {
        [b'S', b'P', 7, 1, 0xbe, 0xef, skip, ..] => Some(*skip),
        _ => None,
    }))
}

/// The NM fields of a system use area, and of the one it goes on in (SUSP 5.1 CE, IEEE P1282 4.1.4 NM).
fn alternate_name(source: &mut Source<'_>, system_use: &[u8]) -> Result<Option<String>, FormatError> {
    let mut name = Vec::new();
    let goes_on = gather(system_use, &mut name);
    if let Some((offset, length)) = goes_on {
        let more = source.bytes(offset, length, "a continuation area")?;
        gather(&more, &mut name);
    }
    Ok(Some(String::from_utf8_lossy(&name).into_owned()).filter(|name| !name.is_empty()))
}

/// Appends the names found; where the area goes on, if it does.
fn gather(area: &[u8], name: &mut Vec<u8>) -> Option<(u64, usize)> {
    let (mut rest, mut goes_on) = (area, None);
    while let [a, b, length, _version, ..] = rest {
        let field = rest.get(..usize::from(*length).max(4))?;
        match ([*a, *b], field) {
            // Flags 2 and 4 stand for "." and "..".
            ([b'N', b'M'], [_, _, _, _, flags, text @ ..]) if flags & 6 == 0 => name.extend_from_slice(text),
            ([b'C', b'E'], _) => {
                let word = |at: usize| {
                    field.get(at..at + 4).and_then(|w| <[u8; 4]>::try_from(w).ok()).map(u32::from_le_bytes)
                };
                let (sector, within, length) = (word(4)?, word(12)?, word(20)?);
                let length = length.min(SECTOR as u32) as usize;
                goes_on = Some((u64::from(sector) * SECTOR + u64::from(within), length));
            }
            _ => {}
        }
        rest = rest.get(field.len()..)?;
    }
    goes_on
}
