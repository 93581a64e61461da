//! ZIP archives by the `zip` crate, behind limits: how much is read to open one, how many members, how they unpack.
//!
//! Also those that follow a program, as HPE's self-extracting .exe files. Only small members are ever unpacked here.

use std::cell::Cell;
use std::io::{self, Read, Seek, SeekFrom};
use std::rc::Rc;

use zip::ZipArchive;
use zip::result::ZipError;

use super::error::{Fault, FormatError, plain_path};
use super::source::{Limited, ReadSeek, Source, read_bounded};

/// What a ZIP file begins with, if nothing precedes it.
pub const SIGNATURE: &[u8] = b"PK\x03\x04";

const MEMBERS_MAX: usize = 4096;
/// Bytes read until the directory is known: the directory of 4096 members with the longest names and comments there
/// are, several times over.
const DIRECTORY_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Deflate cannot do better than 1032:1; what claims to is made to exhaust whoever unpacks it.
const RATIO_MAX: u64 = 1032;

/// An open archive.
pub struct Archive<'r> {
    zip: ZipArchive<Metered<'r>>,
    file: String,
    left: Rc<Cell<u64>>,
    /// The files in it; directories are left out.
    pub members: Vec<Member>,
}

/// A file in an archive.
#[derive(Clone)]
pub struct Member {
    /// Its relative path.
    pub name: String,
    /// Its size, unpacked.
    pub size: u64,
    /// Where its bytes are in the archive file, when they are not packed.
    pub offset: Option<u64>,
    index: usize,
}

/// A reader that stops after so many bytes.
struct Metered<'r> {
    inner: &'r mut dyn ReadSeek,
    left: Rc<Cell<u64>>,
}

impl Read for Metered<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        match self.left.get().checked_sub(read as u64) {
            Some(left) => self.left.set(left),
            None => return Err(io::Error::other("its directory is too large")),
        }
        Ok(read)
    }
}

impl Seek for Metered<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.inner.seek(to)
    }
}

impl<'r> Archive<'r> {
    /// Reads the directory.
    ///
    /// # Errors
    /// When it is malformed, encrypted, too large, or has names that lead out of it.
    pub fn open(source: &'r mut Source<'_>) -> Result<Self, FormatError> {
        let file = source.name().to_owned();
        let left = Rc::new(Cell::new(DIRECTORY_BYTES_MAX));
        let (size, metered) = (source.size(), Rc::clone(&left));
        let error = |fault| FormatError { file: file.clone(), offset: None, fault };
        let mut zip = ZipArchive::new(Metered { inner: source.reader(), left: metered })
            .map_err(|e| error(fault(e)))?;
        let (found, limit) = (zip.len() as u64, MEMBERS_MAX as u64);
        if zip.len() > MEMBERS_MAX {
            return Err(error(Fault::Limit { what: "the number of members", found, limit }));
        }
        if zip.has_duplicate_names() {
            return Err(error(Fault::Malformed("a name stands in it twice".into())));
        }
        let mut members = Vec::new();
        for index in 0..zip.len() {
            let member = zip.by_index_raw(index).map_err(|e| error(fault(e)))?;
            let name = member.name().map_err(|e| error(fault(e)))?.into_owned();
            plain_path(&name).map_err(error)?;
            let entry = member.entry();
            if entry.encrypted() {
                return Err(error(Fault::Unsupported(format!("{name} is encrypted"))));
            }
            let (unpacked, packed) = (entry.size(), entry.compressed_size());
            if packed > size || unpacked / RATIO_MAX > packed {
                let (what, limit) =
                    ("the unpacked size of a member", packed.min(size).saturating_mul(RATIO_MAX));
                return Err(error(Fault::Limit { what, found: unpacked, limit }));
            }
            let stored = entry.compression() == zip::CompressionMethod::Stored;
            if !entry.is_dir() {
                let offset = member.data_start().filter(|_| stored);
                members.push(Member { name, size: unpacked, offset, index });
            }
        }
        Ok(Self { zip, file, left, members })
    }

    /// The first member whose path ends so, without regard to case.
    pub fn find(&self, is: impl Fn(&str) -> bool) -> Option<&Member> {
        self.members.iter().find(|member| is(&member.name.to_ascii_lowercase()))
    }

    /// A small member, unpacked; its CRC is checked.
    ///
    /// # Errors
    /// When it is larger than `limit`, or damaged.
    pub fn read(&mut self, member: &Member, limit: u64) -> Result<Vec<u8>, FormatError> {
        let place = format!("{}: {}", self.file, member.name);
        let error = |fault| FormatError { file: place.clone(), offset: None, fault };
        let what = "the size of a file that describes others";
        if member.size > limit {
            return Err(error(Fault::Limit { what, found: member.size, limit }));
        }
        self.left.set(limit.saturating_add(DIRECTORY_BYTES_MAX));
        let reader = self.zip.by_index(member.index).map_err(|e| error(fault(e)))?;
        read_bounded(reader, limit, what).map_err(error)
    }

    /// Hands a reader of a member of any size to `take`. It yields no more bytes than were announced, and ends with an
    /// error where they are others.
    ///
    /// # Errors
    /// When it cannot be read at all.
    pub fn with<T>(
        &mut self,
        member: &Member,
        take: impl FnOnce(&mut dyn Read) -> T,
    ) -> Result<T, FormatError> {
        let place = format!("{}: {}", self.file, member.name);
        // What is read of it is bounded by its own size.
        self.left.set(u64::MAX);
        let reader = self.zip.by_index(member.index).map_err(|e| FormatError {
            file: place,
            offset: None,
            fault: fault(e),
        })?;
        Ok(take(&mut Limited::new(reader, member.size)))
    }
}

fn fault(error: ZipError) -> Fault {
    match error {
        ZipError::Io(source) => Fault::Read { what: "the ZIP archive", source },
        ZipError::UnsupportedArchive(what) => Fault::Unsupported(what.to_owned()),
        other => Fault::Malformed(other.to_string()),
    }
}
