//! A payload's bytes from one offset to another, chunk by chunk, whatever they come from.
//!
//! What the kernel has in memory is read at once, without waiting and without another thread; the rest by a blocking
//! thread. Memory does not grow with the payload. After an error nothing follows: the client sees by the length that
//! the body was cut.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use axum::body::Bytes;
use nix::libc;

use super::frames::Frames;
use super::object::{Object, Packed};
use super::seek_table::FRAME_BYTES;
use crate::digest::Sha256;

/// Bytes read from a file at once.
const CHUNK_BYTES: usize = 64 * 1024;

/// Reads a part.
pub struct Reader {
    source: Source,
    from: u64,
    to: u64,
}

enum Source {
    Memory(Bytes),
    File(Arc<File>),
    /// The content of a packed payload; the frame that `from` is in, once it is unpacked.
    Unpacked {
        object: Arc<Object>,
        name: Sha256,
        frames: Arc<Frames>,
        current: Option<Bytes>,
    },
}

impl Reader {
    /// Of bytes in memory.
    pub fn of_memory(bytes: Bytes, from: u64, to: u64) -> Self {
        Self { source: Source::Memory(bytes), from, to }
    }

    /// Of a file as it is.
    pub fn of_file(file: Arc<File>, from: u64, to: u64) -> Self {
        Self { source: Source::File(file), from, to }
    }

    /// Of a payload's frames as they are packed.
    pub fn of_packed(object: &Object, from: u64, to: u64) -> Self {
        match object.packed() {
            Packed::Embedded(bytes) => Self::of_memory(Bytes::from_static(bytes), from, to),
            Packed::Stored(file) => Self::of_file(file.clone(), from, to),
        }
    }

    /// Of a packed payload's content.
    pub fn of_content(object: Arc<Object>, name: Sha256, frames: Arc<Frames>, from: u64, to: u64) -> Self {
        Self { source: Source::Unpacked { object, name, frames, current: None }, from, to }
    }

    /// The next bytes, `most` at most; none at the end, and after an error.
    pub async fn next(&mut self, most: usize) -> Option<io::Result<Bytes>> {
        let left = usize::try_from(self.to.checked_sub(self.from)?).unwrap_or(most).min(most);
        if left == 0 {
            return None;
        }
        let read = match &mut self.source {
            Source::Memory(bytes) => part(bytes, self.from, left),
            Source::File(file) => read_file(file, self.from, left.min(CHUNK_BYTES)).await,
            Source::Unpacked { object, name, frames, current } => {
                unpacked(object, *name, frames, current, self.from, left).await
            }
        };
        match &read {
            Ok(bytes) => self.from += bytes.len() as u64,
            Err(_) => self.to = self.from,
        }
        Some(read)
    }
}

/// Up to `most` bytes from `from` on; never none.
fn part(bytes: &Bytes, from: u64, most: usize) -> io::Result<Bytes> {
    let from = usize::try_from(from).unwrap_or(usize::MAX).min(bytes.len());
    let to = from.saturating_add(most).min(bytes.len());
    if from == to { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(bytes.slice(from..to)) }
}

async fn unpacked(
    object: &Arc<Object>,
    name: Sha256,
    frames: &Arc<Frames>,
    current: &mut Option<Bytes>,
    from: u64,
    most: usize,
) -> io::Result<Bytes> {
    let at = from % FRAME_BYTES as u64;
    let frame = match current.take().filter(|_| at > 0) {
        Some(frame) => frame,
        None => {
            frames.get(object, name, usize::try_from(from / FRAME_BYTES as u64).unwrap_or(usize::MAX)).await?
        }
    };
    let bytes = part(&frame, at, most)?;
    // Given back with its last byte.
    *current = Some(frame).filter(|frame| at + (bytes.len() as u64) < frame.len() as u64);
    Ok(bytes)
}

async fn read_file(file: &Arc<File>, from: u64, length: usize) -> io::Result<Bytes> {
    if let Some(bytes) = read_cached(file, from, length) {
        return Ok(bytes);
    }
    let file = file.clone();
    let read = tokio::task::spawn_blocking(move || {
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, from).map(|()| bytes.into())
    });
    read.await.map_err(io::Error::other)?
}

/// What the page cache has of a file, without ever waiting for a disk; none where it has nothing, or the file system
/// cannot tell.
fn read_cached(file: &File, from: u64, length: usize) -> Option<Bytes> {
    let mut bytes: Vec<u8> = Vec::with_capacity(length);
    let part = libc::iovec { iov_base: bytes.spare_capacity_mut().as_mut_ptr().cast(), iov_len: length };
    let offset = libc::off_t::try_from(from).ok()?;
    // SAFETY: the one part is the vector's spare capacity, of at least `length` bytes, and lives through the call; no
    // safe wrapper has the flag.
    let read = unsafe { libc::preadv2(file.as_raw_fd(), &raw const part, 1, offset, libc::RWF_NOWAIT) };
    let read = usize::try_from(read).ok().filter(|read| *read > 0)?;
    // SAFETY: the kernel has written that many bytes at the vector's beginning.
    unsafe { bytes.set_len(read.min(length)) };
    Some(bytes.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn all(mut reader: Reader, most: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while let Some(chunk) = reader.next(most).await {
            let chunk = chunk.unwrap();
            assert!((1..=most).contains(&chunk.len()));
            bytes.extend_from_slice(&chunk);
        }
        bytes
    }

    #[tokio::test]
    async fn any_part_of_a_file_and_of_memory_is_read() {
        let content: Vec<u8> = (0..500_000_u32).flat_map(u32::to_le_bytes).collect();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x");
        crate::durable::write(&path, &content, 0o600).unwrap();
        let file = Arc::new(File::open(&path).unwrap());
        for (from, to) in [(0, 2_000_000), (1, 131_073), (1_999_999, 2_000_000), (5, 5)] {
            let expected = &content[usize::try_from(from).unwrap()..usize::try_from(to).unwrap()];
            assert_eq!(all(Reader::of_file(file.clone(), from, to), 1 << 20).await, expected);
            let memory = Reader::of_memory(Bytes::from(content.clone()), from, to);
            assert_eq!(all(memory, 16 * 1024).await, expected);
        }
    }

    #[tokio::test]
    async fn a_file_that_became_shorter_is_an_error_and_then_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x");
        crate::durable::write(&path, &[1; 10], 0o600).unwrap();
        let mut reader = Reader::of_file(Arc::new(File::open(&path).unwrap()), 0, 20);
        assert_eq!(reader.next(100).await.unwrap().unwrap().len(), 10);
        assert!(reader.next(100).await.unwrap().is_err());
        assert!(reader.next(100).await.is_none());
    }
}
