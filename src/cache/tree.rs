//! Where a baseline's files lie: in a directory, or in a folder of an ISO image, which is read in place.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::firmware::formats::folder::Place;

/// A directory, or a folder of an image.
#[derive(Debug, Clone)]
pub enum Tree {
    /// A directory.
    Directory(PathBuf),
    /// A folder of an ISO image.
    Image {
        /// The image, open.
        file: Arc<File>,
        /// The image, and the folder in it: for errors.
        path: PathBuf,
        /// The files of the folder.
        files: Arc<[Place]>,
    },
}

impl Tree {
    /// How a file of it is called.
    pub fn path(&self, name: &str) -> PathBuf {
        match self {
            Self::Directory(path) | Self::Image { path, .. } => path.join(name),
        }
    }

    /// Where it is.
    pub fn root(&self) -> &Path {
        match self {
            Self::Directory(path) | Self::Image { path, .. } => path,
        }
    }

    /// A file's bytes.
    ///
    /// # Errors
    /// Those of the file system; "not found" too.
    pub fn size(&self, name: &str) -> io::Result<u64> {
        match self {
            Self::Directory(path) => Ok(std::fs::metadata(path.join(name))?.len()),
            Self::Image { files, .. } => Ok(find(files, name).ok_or(io::ErrorKind::NotFound)?.size),
        }
    }

    /// A file's content and size; none when it is not there.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn open(&self, name: &str) -> io::Result<Option<(Box<dyn Read>, u64)>> {
        match self {
            Self::Directory(path) => match File::open(path.join(name)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                file => {
                    let file = file?;
                    let size = file.metadata()?.len();
                    Ok(Some((Box::new(file), size)))
                }
            },
            Self::Image { file, files, .. } => Ok(find(files, name).map(|place| {
                let section = Section { file: file.clone(), at: place.offset, left: place.size };
                (Box::new(section) as Box<dyn Read>, place.size)
            })),
        }
    }
}

fn find<'a>(files: &'a [Place], name: &str) -> Option<&'a Place> {
    files.iter().find(|place| place.name == name)
}

/// A part of a file.
struct Section {
    file: Arc<File>,
    at: u64,
    left: u64,
}

impl Read for Section {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(into.len());
        let Some(into) = into.get_mut(..most).filter(|into| !into.is_empty()) else { return Ok(0) };
        let read = self.file.read_at(into, self.at)?;
        if read == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the image ends before"));
        }
        self.at += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}
