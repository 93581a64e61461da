//! What a path that is to be imported holds: a baseline, several of them on a stick or in an ISO image, or a payload.
//!
//! It is recognised by content. On a stick only folders and the first bytes of files are looked at, within limits.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::ImportError;
use super::container::{BLOCK, is_container};
use super::tree::Tree;
use crate::firmware::baseline::MANIFEST;
use crate::firmware::formats::folder;

/// Folders below the named one that are looked into.
const DEPTH_MAX: usize = 3;

/// Something that can be imported.
#[derive(Debug)]
pub enum Found {
    /// A baseline in a directory or in an image.
    Baseline(Tree),
    /// A baseline in one file.
    Container(PathBuf),
    /// Anything else.
    Payload(PathBuf),
    /// A file or a folder beside the others that cannot be read, and why.
    Unreadable(PathBuf, io::Error),
}

/// What is at a path.
///
/// # Errors
/// [`ImportError`]; a directory without a baseline is one.
pub fn recognise(path: &Path) -> Result<Vec<Found>, ImportError> {
    let unreadable = |source| ImportError::Source { path: path.to_owned(), source };
    let metadata = std::fs::metadata(path).map_err(unreadable)?;
    if metadata.is_dir() {
        let mut found = Vec::new();
        directory(path, 0, &mut found);
        if found.iter().any(|one| !matches!(one, Found::Unreadable(..))) {
            return Ok(found);
        }
        return Err(match found.into_iter().next() {
            Some(Found::Unreadable(path, source)) => ImportError::Source { path, source },
            _ => ImportError::NoBaseline { path: path.to_owned() },
        });
    }
    // A pipe can be read only once.
    if !metadata.is_file() {
        return Ok(vec![Found::Payload(path.to_owned())]);
    }
    if begins_as_container(path).map_err(unreadable)? {
        return Ok(vec![Found::Container(path.to_owned())]);
    }
    let mut file = File::open(path).map_err(unreadable)?;
    let Some(folders) =
        folder::baselines(&path.display().to_string(), &mut file).map_err(ImportError::Image)?
    else {
        return Ok(vec![Found::Payload(path.to_owned())]);
    };
    if folders.is_empty() {
        return Err(ImportError::NoBaseline { path: path.to_owned() });
    }
    let file = Arc::new(file);
    let tree = |folder: folder::Folder| {
        Found::Baseline(Tree::Image {
            file: file.clone(),
            path: path.join(folder.path),
            files: folder.files.into(),
        })
    };
    Ok(folders.into_iter().map(tree).collect())
}

/// What cannot be read is found too: one bad sector must not keep the rest of a stick away.
fn directory(path: &Path, depth: usize, found: &mut Vec<Found>) {
    if path.join(MANIFEST).is_file() {
        found.push(Found::Baseline(Tree::Directory(path.to_owned())));
        return;
    }
    let entries = std::fs::read_dir(path).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    let mut entries = match entries {
        Ok(entries) => entries,
        Err(error) => return found.push(Found::Unreadable(path.to_owned(), error)),
    };
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        // Links are not followed: they may lead anywhere, and in circles.
        let is_container = match entry.file_type() {
            Ok(kind) if kind.is_dir() && depth < DEPTH_MAX => {
                directory(&path, depth + 1, found);
                continue;
            }
            Ok(kind) => {
                if kind.is_file() {
                    begins_as_container(&path)
                } else {
                    Ok(false)
                }
            }
            Err(error) => Err(error),
        };
        match is_container {
            Ok(true) => found.push(Found::Container(path)),
            Ok(false) => {}
            Err(error) => found.push(Found::Unreadable(path, error)),
        }
    }
}

fn begins_as_container(path: &Path) -> io::Result<bool> {
    let mut first = Vec::with_capacity(BLOCK);
    File::open(path)?.take(BLOCK as u64).read_to_end(&mut first)?;
    Ok(is_container(&first))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn what_cannot_be_read_is_named_and_keeps_nothing_else_away() {
        let stick = tempfile::tempdir().unwrap();
        let mode = |path: &Path, mode: u32| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        mode(stick.path(), 0o755);
        let bad = stick.path().join("bad");
        crate::durable::write(&bad, b"x", 0o600).unwrap();
        mode(&bad, 0);
        // This thread is nobody for the file system: root reads everything.
        let recognise = || {
            std::thread::scope(|scope| {
                let path = stick.path();
                let as_nobody = scope.spawn(move || {
                    nix::unistd::setfsuid(nix::unistd::Uid::from_raw(65534));
                    recognise(path)
                });
                as_nobody.join().unwrap()
            })
        };
        let alone = recognise().unwrap_err();
        assert!(matches!(&alone, ImportError::Source { path, .. } if *path == bad), "{alone}");
        let good = stick.path().join("good");
        crate::durable::create_directory(&good).unwrap();
        crate::durable::write(&good.join(MANIFEST), b"", 0o644).unwrap();
        mode(&good, 0o755);
        let found = recognise().unwrap();
        assert!(matches!(&found[0], Found::Unreadable(path, _) if *path == bad), "{found:?}");
        assert!(matches!(&found[1], Found::Baseline(tree) if tree.root() == good), "{found:?}");
    }
}
