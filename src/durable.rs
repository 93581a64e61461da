//! Files that are either the old or the new whole, also after a power cut.
//!
//! The only place that writes and renames files which must survive: temporary file beside the target, flush to
//! the disk, rename, flush the directory. It must never leave a half-written target.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

/// Replaces `path` by a file with these bytes and this mode.
///
/// # Errors
/// Those of the file system; the old file is then untouched.
pub fn write(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    put(path, bytes, mode, File::sync_all)?;
    File::open(parent(path))?.sync_all()
}

/// The same for what means nothing after a restart of the machine: either the old or the new whole, and no waiting for a disk.
///
/// # Errors
/// Those of the file system; the old file is then untouched.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    put(path, bytes, mode, |_| Ok(()))
}

fn put(path: &Path, bytes: &[u8], mode: u32, flush: impl FnOnce(&File) -> io::Result<()>) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.new", std::process::id()));
    let temporary = Path::new(&temporary);
    let written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(temporary)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| flush(&file)));
    #[expect(clippy::disallowed_methods, reason = "this is the durable rename")]
    let renamed = written.and_then(|()| std::fs::rename(temporary, path));
    if renamed.is_err() {
        let _ = std::fs::remove_file(temporary);
    }
    renamed
}

/// Gives a finished file, written under `from` in the same file system, its name: whole, or not at all.
///
/// # Errors
/// Those of the file system; what was at `to` is then untouched.
pub fn publish(file: &File, from: &Path, to: &Path) -> io::Result<()> {
    file.sync_all()?;
    move_file(from, to)
}

/// Moves a file within its file system, so that it is at one of the two places after a power cut.
///
/// # Errors
/// Those of the file system.
pub fn move_file(from: &Path, to: &Path) -> io::Result<()> {
    #[expect(clippy::disallowed_methods, reason = "this is the durable rename")]
    std::fs::rename(from, to)?;
    File::open(parent(to))?.sync_all()
}

/// Removes a file for good; that it is gone already is no error.
///
/// # Errors
/// Those of the file system.
pub fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(()) => File::open(parent(path))?.sync_all(),
    }
}

/// Makes a directory, for its owner only, and those above it; each is there after a power cut.
///
/// # Errors
/// Those of the file system.
pub fn create_directory(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    create_directory(parent(path))?;
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        // Another process was quicker.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(error),
        Ok(()) => File::open(parent(path))?.sync_all(),
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        write(&path, b"old", 0o600).unwrap();
        assert!(write(&directory.path().join("no/such/dir"), b"new", 0o600).is_err());
        write(&path, b"new", 0o600).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
