//! The formats firmware comes in: recognised by content, read within limits, and told in one shape.
//!
//! Nothing here trusts a name, a count or a length that a file gives. Parsers read from a bounded, seekable reader, never
//! hold a payload, refuse member names that would leave their directory, and never panic: what is malformed is a
//! [`FormatError`]. Nothing here installs, imports or decides whether a component fits a node.

mod archive;
mod cab;
mod deb;
mod digests;
mod dup;
mod error;
pub mod folder;
mod fwpkg;
mod hpe;
mod iso;
mod jcat;
mod json;
mod lvfs;
mod member;
pub mod metadata;
mod pkcs7;
mod plain;
mod pldm;
mod rpm;
mod script;
mod smart;
mod source;
mod spp;
mod tar;
mod xml;
mod xz;

use std::fs::File;
use std::path::Path;

use archive::Archive;
pub use error::{Fault, FormatError};
use iso::Iso;
pub(in crate::firmware) use jcat::base64;
pub use member::with_member;
pub use metadata::{Metadata, Package};
pub use pkcs7::Trust;
pub use source::ReadSeek;
use source::Source;
use spp::{Tree, Window};

use super::baseline::MANIFEST;

/// How much of a file is looked at to recognise it.
const RECOGNISED_BYTES: usize = 64;
/// What a program for Windows begins with.
const WINDOWS_PROGRAM: &[u8] = b"MZ";

/// Whether something that begins with these bytes is an LVFS cabinet, or a damaged one.
pub fn is_cabinet(start: &[u8]) -> bool {
    start.starts_with(cab::SIGNATURE)
}

/// Reads a firmware file, or a directory that is a baseline or an SPP. Signatures, where the format has them, are
/// checked when certificates are given.
///
/// # Errors
/// When it cannot be read, is none of the formats, is malformed, or is not what its checksums and signatures say.
pub fn read(path: &Path, trust: &Trust) -> Result<Package, FormatError> {
    if path.join(MANIFEST).is_file() {
        return plain::read(path);
    }
    if spp::is_directory(path) {
        return spp::read(&mut Tree::Directory(path));
    }
    let (name, mut file) = open(path)?;
    read_from(&name, &mut file, trust)
}

/// As [`read`], a member of a directory or of an ISO image, in place.
///
/// # Errors
/// As [`read`], and when there is no such member.
pub fn read_member(path: &Path, member: &str, trust: &Trust) -> Result<Package, FormatError> {
    if path.is_dir() {
        return read(&spp::member_of_directory(path, member)?, trust);
    }
    let (name, mut file) = open(path)?;
    let mut source = Source::new(&name, &mut file)?;
    if !iso::is_image(&mut source)? {
        return Err(source.error(None, Fault::Unsupported("members of a file that is no ISO image".into())));
    }
    let mut window = Window::open(&mut source, member)?;
    read_from(member.rsplit('/').next().unwrap_or(member), &mut window, trust)
}

fn open(path: &Path) -> Result<(String, File), FormatError> {
    let error = |fault| FormatError { file: path.display().to_string(), offset: None, fault };
    let what = "the file";
    let file = File::open(path).map_err(|source| error(Fault::Read { what, source }))?;
    if file.metadata().map_err(|source| error(Fault::Read { what, source }))?.is_dir() {
        return Err(error(Fault::Unknown));
    }
    let name = path.file_name().map_or_else(|| path.to_string_lossy(), |name| name.to_string_lossy());
    Ok((name.into_owned(), file))
}

/// As [`read`], from anything that can be read and sought in; `name` stands for it in errors.
///
/// # Errors
/// As [`read`].
pub fn read_from(name: &str, reader: &mut dyn ReadSeek, trust: &Trust) -> Result<Package, FormatError> {
    let mut source = Source::new(name, reader)?;
    let source = &mut source;
    let start = source.start(RECOGNISED_BYTES)?;
    if start.starts_with(cab::SIGNATURE) {
        lvfs::read(source, trust)
    } else if start.starts_with(rpm::SIGNATURE) {
        rpm::read(source)
    } else if start.starts_with(deb::SIGNATURE) {
        deb::read(source)
    } else if start.starts_with(script::SIGNATURE) {
        script::read(source)
    } else if pldm::is_package(&start) {
        pldm::read(source)
    } else if start.starts_with(archive::SIGNATURE) || start.starts_with(WINDOWS_PROGRAM) {
        zipped(source)
    } else if iso::is_image(source)? {
        let iso = Iso::open(source)?;
        spp::read(&mut Tree::Image(source, iso))
    } else {
        Err(source.error(None, Fault::Unknown))
    }
}

/// A ZIP archive, also behind a program that unpacks it.
fn zipped(source: &mut Source<'_>) -> Result<Package, FormatError> {
    let (file, size) = (source.name().to_owned(), source.size());
    let mut archive = Archive::open(source)?;
    if archive.find(fwpkg::is_description).is_some() {
        return fwpkg::read(&mut archive, &file, size);
    }
    let smart = smart::read(&mut archive, &file, size)?;
    smart.ok_or(FormatError { file, offset: None, fault: Fault::Unknown })
}
