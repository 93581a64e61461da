//! How much an import may still write: what is left of the cache's limit, and what must stay free for the box's journal.
//!
//! It is asked before each frame, since nobody knows a stream's size, and others write to the same file system meanwhile.
//! An import must never be what fills that file system: the journal on it could not be written any more.

use std::io;
use std::path::{Path, PathBuf};

use super::seek_table::FRAME_BYTES;
use super::store::Store;

/// Bytes that must stay free: the box's journal needs them.
pub const SPARE_BYTES: u64 = 16 * 1024 * 1024;

/// What may still be written.
pub struct Room {
    directory: PathBuf,
    /// Bytes left of the cache's limit, if it has one.
    left: Option<u64>,
}

impl Room {
    /// That of a store whose payloads may take `max` bytes.
    ///
    /// # Errors
    /// Those of the file system: what is not known is not nothing.
    pub fn of(store: &Store, max: Option<u64>) -> io::Result<Self> {
        let left = max.map(|max| Ok::<_, io::Error>(max.saturating_sub(store.used()?))).transpose()?;
        Ok(Self { directory: store.root().to_owned(), left })
    }

    /// Asks for `bytes` more.
    ///
    /// # Errors
    /// "File too large" beyond the cache's limit, "storage full" where too little would stay free; those of the file
    /// system have its number too.
    pub fn take(&mut self, bytes: u64) -> io::Result<()> {
        if let Some(left) = &mut self.left {
            *left = left.checked_sub(bytes).ok_or(io::ErrorKind::FileTooLarge)?;
        }
        let free = free_bytes(&self.directory)?;
        if free < bytes.saturating_add(SPARE_BYTES) {
            let why = format!("{free} bytes are free, and {SPARE_BYTES} must stay free for the box itself");
            return Err(io::Error::new(io::ErrorKind::StorageFull, why));
        }
        Ok(())
    }
}

/// Bytes that may be written to a directory's file system.
///
/// # Errors
/// Those of the file system.
pub fn free_bytes(directory: &Path) -> io::Result<u64> {
    let stat = nix::sys::statvfs::statvfs(directory)?;
    Ok(stat.blocks_available() * stat.fragment_size())
}

/// What content takes that does not shrink: blocks' and frames' heads, the seek table.
pub fn packed_bytes_max(size: u64) -> u64 {
    let frames = size / FRAME_BYTES as u64 + 1;
    size.saturating_add(frames.saturating_mul(64)).saturating_add(4096)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_counts_what_is_there_and_one_that_cannot_be_read_is_an_error() {
        let state = tempfile::tempdir().unwrap();
        let store = Store::at(state.path());
        let partial = store.root().join(crate::paths::CACHE_PARTIAL);
        std::fs::create_dir_all(&partial).unwrap();
        crate::durable::write(&partial.join("x"), &[1; 100], 0o600).unwrap();
        let mut room = Room::of(&store, Some(110)).unwrap();
        room.take(6).unwrap();
        assert_eq!(room.take(5).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        let full = Room::of(&store, None).unwrap().take(u64::MAX).unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        // What cannot be listed is not nothing.
        std::fs::remove_dir_all(&partial).unwrap();
        crate::durable::write(&partial, b"no directory", 0o600).unwrap();
        assert!(Room::of(&store, Some(110)).is_err());
    }
}
