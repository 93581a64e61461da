//! A payload on its way into the store: frames as they come, and those of an import that was cut before.
//!
//! Its file is named by the first frame's content, so the next try with the same source finds it, wherever the stick is
//! mounted then. Of an old file only frames count that unpack to exactly what the source gives now; the rest is cut
//! off. One process at a time works on it. It must never be read by anyone else: only [`Partial::publish`] makes a payload.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek as _, SeekFrom};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::fcntl::FlockArg;
use zstd::bulk::Decompressor;
use zstd::zstd_safe::find_frame_compressed_size;

use super::seek_table::{FRAME_BYTES, FRAME_PACKED_BYTES_MAX, SeekTable, Tag};
use super::store::{Lock, is_at, lock};
use crate::durable;

/// Given back to the file system when it is full: the box's journal needs room too.
const GIVEN_BACK_BYTES: u64 = 16 * 1024 * 1024;

/// So much at most is lost by a power cut.
const SYNC_EVERY_BYTES: u64 = 256 * 1024 * 1024;

/// A payload that is not whole yet.
pub struct Partial {
    path: PathBuf,
    file: Lock,
    table: SeekTable,
    synced: u64,
}

impl Partial {
    /// The one at `path`, made if there is none. Waits while another process works on it.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn open(path: PathBuf) -> io::Result<Self> {
        loop {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false).mode(0o600);
            let file = lock(options.open(&path)?, FlockArg::LockExclusive)?;
            // Who had it before may have made a payload of it, or removed it.
            if is_at(&file, &path)? {
                return Ok(Self { path, file, table: SeekTable::new(), synced: 0 });
            }
        }
    }

    /// Takes old frames up for as long as they are the source's content, which `next` gives frame by frame (empty at
    /// its end) and `same` hears of. Returns the first content that is not there, and cuts the rest off.
    ///
    /// # Errors
    /// Those of `next` and of the file system.
    pub fn take_up(
        &mut self,
        first: Vec<u8>,
        mut next: impl FnMut(&mut Vec<u8>) -> io::Result<()>,
        mut same: impl FnMut(&[u8]),
    ) -> io::Result<Vec<u8>> {
        let mut content = first;
        let mut unpacker = Decompressor::new()?;
        let (mut window, mut unpacked) = (vec![0; FRAME_PACKED_BYTES_MAX], Vec::with_capacity(FRAME_BYTES));
        while !content.is_empty() {
            let read = read_up_to(&self.file, self.table.packed(), &mut window)?;
            let found = window.get(..read).unwrap_or_default();
            let Some(frame) = find_frame_compressed_size(found).ok().and_then(|length| found.get(..length))
            else {
                break;
            };
            unpacked.clear();
            if unpacker.decompress_to_buffer(frame, &mut unpacked).is_err() || unpacked != content {
                break;
            }
            same(&content);
            self.table.push(frame.len(), content.len());
            next(&mut content)?;
        }
        self.file.set_len(self.table.packed())?;
        self.file.seek(SeekFrom::Start(self.table.packed()))?;
        self.synced = self.table.packed();
        Ok(content)
    }

    /// The next frame, and the length of its content.
    ///
    /// # Errors
    /// Those of the file system; what was written before stays.
    pub fn push(&mut self, frame: &[u8], content: usize) -> io::Result<()> {
        self.file.write_all_at(frame, self.table.packed())?;
        self.table.push(frame.len(), content);
        if self.table.packed() - self.synced >= SYNC_EVERY_BYTES {
            self.file.sync_data()?;
            self.synced = self.table.packed();
        }
        Ok(())
    }

    /// Makes a payload of it, at `to`, with the packing's name if it has one already. Returns the bytes it takes.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn publish(self, to: &Path, tag: Option<Tag>) -> io::Result<u64> {
        let tail = self.table.tail(tag.map_or_else(new_tag, Ok)?);
        self.file.write_all_at(&tail, self.table.packed())?;
        if let Some(folder) = to.parent() {
            durable::create_directory(folder)?;
        }
        durable::publish(&self.file, &self.path, to)?;
        Ok(self.table.packed() + tail.len() as u64)
    }

    /// Removes it: it is of no use to a next try.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn discard(self) -> io::Result<()> {
        durable::remove(&self.path)
    }

    /// What may be done where nothing can be written any more: the frames before stay for the next try.
    pub fn give_back(self) {
        let _ = self.file.set_len(self.table.packed().saturating_sub(GIVEN_BACK_BYTES));
    }

    /// The frames are on the disk after this.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn keep(self) -> io::Result<()> {
        self.file.sync_data()
    }
}

fn new_tag() -> io::Result<Tag> {
    let mut tag = Tag::default();
    ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut tag)
        .map_err(|_| io::Error::other("no random bytes"))?;
    Ok(tag)
}

fn read_up_to(file: &File, at: u64, into: &mut [u8]) -> io::Result<usize> {
    let mut read = 0;
    while let Some(rest) = into.get_mut(read..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, at + read as u64) {
            Ok(0) => break,
            Ok(n) => read += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(read)
}
