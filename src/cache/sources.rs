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
        directory(path, 0, &mut found).map_err(unreadable)?;
        return if found.is_empty() {
            Err(ImportError::NoBaseline { path: path.to_owned() })
        } else {
            Ok(found)
        };
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

fn directory(path: &Path, depth: usize, found: &mut Vec<Found>) -> io::Result<()> {
    if path.join(MANIFEST).is_file() {
        found.push(Found::Baseline(Tree::Directory(path.to_owned())));
        return Ok(());
    }
    let mut entries = std::fs::read_dir(path)?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        // Links are not followed: they may lead anywhere, and in circles.
        let kind = entry.file_type()?;
        if kind.is_dir() && depth < DEPTH_MAX {
            directory(&entry.path(), depth + 1, found)?;
        } else if kind.is_file() && begins_as_container(&entry.path())? {
            found.push(Found::Container(entry.path()));
        }
    }
    Ok(())
}

fn begins_as_container(path: &Path) -> io::Result<bool> {
    let mut first = Vec::with_capacity(BLOCK);
    File::open(path)?.take(BLOCK as u64).read_to_end(&mut first)?;
    Ok(is_container(&first))
}
