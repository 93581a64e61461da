//! Baselines in an ISO image: the folders that hold a manifest, and where their files' bytes are in the image.
//!
//! Nothing is copied here and no payload is read: whoever imports reads the bytes in place. The walk is bounded in depth
//! and in folders, since the image is a stranger's.

use std::fs::File;

use super::super::baseline::MANIFEST;
use super::error::{Fault, FormatError};
use super::iso::{self, Entry, Iso};
use super::source::Source;

/// Folders below the root that are looked into.
const DEPTH_MAX: usize = 3;
/// Folders in all.
const FOLDERS_MAX: usize = 4_096;

/// A file's place in an image.
#[derive(Debug, Clone)]
pub struct Place {
    /// Its name in its folder.
    pub name: String,
    /// Where its bytes begin.
    pub offset: u64,
    /// How many there are.
    pub size: u64,
}

/// A folder with a manifest.
#[derive(Debug)]
pub struct Folder {
    /// Its path in the image; empty for the root.
    pub path: String,
    /// Its files.
    pub files: Vec<Place>,
}

/// The folders of an image that hold a manifest; none when the file is no ISO image.
///
/// # Errors
/// When the image is malformed, or has more folders than are looked into.
pub fn baselines(name: &str, file: &mut File) -> Result<Option<Vec<Folder>>, FormatError> {
    let mut source = Source::new(name, file)?;
    if !iso::is_image(&mut source)? {
        return Ok(None);
    }
    let image = Iso::open(&mut source)?;
    let Some(root) = image.find(&mut source, "")? else { return Ok(Some(Vec::new())) };
    let (mut found, mut seen) = (Vec::new(), 0);
    let mut open = vec![(String::new(), root, 0)];
    while let Some((path, here, depth)) = open.pop() {
        seen += 1;
        if seen > FOLDERS_MAX {
            let (what, found, limit) = ("the number of folders", seen as u64, FOLDERS_MAX as u64);
            return Err(source.error(None, Fault::Limit { what, found, limit }));
        }
        let (folders, files): (Vec<Entry>, Vec<Entry>) =
            image.list(&mut source, &here)?.into_iter().partition(|entry| entry.directory);
        if files.iter().any(|entry| entry.name == MANIFEST) {
            if let Some(scattered) = files.iter().find(|entry| entry.scattered) {
                let fault = Fault::Unsupported("a file whose parts do not follow each other".into());
                return Err(source.error(scattered.offset, fault));
            }
            let place = |entry: Entry| Place { name: entry.name, offset: entry.offset, size: entry.size };
            found.push(Folder { path, files: files.into_iter().map(place).collect() });
        } else if depth < DEPTH_MAX {
            let below = |entry: Entry| {
                let path =
                    if path.is_empty() { entry.name.clone() } else { format!("{path}/{}", entry.name) };
                (path, entry, depth + 1)
            };
            open.extend(folders.into_iter().map(below));
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(Some(found))
}
