//! A file inside another one, as a stream: of a directory, an ISO image or a ZIP archive. Nothing is unpacked to disk.

use std::io::Read;
use std::path::Path;

use super::archive::{self, Archive};
use super::error::{Fault, FormatError};
use super::source::Source;
use super::spp::{Window, member_of_directory};
use super::{WINDOWS_PROGRAM, open};

/// Hands a reader of the member, and its size, to `take`.
///
/// # Errors
/// When it is not there, or cannot be read.
pub fn with_member<T>(
    path: &Path,
    member: &str,
    take: impl FnOnce(&mut dyn Read, u64) -> T,
) -> Result<T, FormatError> {
    if path.is_dir() {
        let (name, mut file) = open(&member_of_directory(path, member)?)?;
        let size = Source::new(&name, &mut file)?.size();
        std::io::Seek::rewind(&mut file).map_err(|source| FormatError {
            file: name,
            offset: None,
            fault: Fault::Read { what: "the file", source },
        })?;
        return Ok(take(&mut file, size));
    }
    let (name, mut file) = open(path)?;
    let mut source = Source::new(&name, &mut file)?;
    let start = source.start(WINDOWS_PROGRAM.len().max(archive::SIGNATURE.len()))?;
    if start.starts_with(archive::SIGNATURE) || start.starts_with(WINDOWS_PROGRAM) {
        let mut archive = Archive::open(&mut source)?;
        let missing =
            || FormatError { file: name.clone(), offset: None, fault: Fault::Missing(member.into()) };
        let found = archive.members.iter().find(|one| one.name == member).cloned().ok_or_else(missing)?;
        return archive.with(&found, |reader| take(reader, found.size));
    }
    let mut window = Window::open(&mut source, member)?;
    let size = window.size();
    Ok(take(&mut window, size))
}
