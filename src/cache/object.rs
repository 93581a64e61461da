//! One packed payload, stored or embedded: any frame of it, any range of its packed bytes.
//!
//! It reads only what is asked for: opening reads the seek table, nothing else; an embedded payload stays where the
//! kernel maps it. A frame that does not unpack to what it should is an error, never bytes: each has its checksum.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use zstd::bulk::Decompressor;

use super::seek_table::{FRAME_BYTES, SeekTable, Tag};
use crate::digest::{Hasher, Mismatch, Sha256, Verified};

/// Where the packed bytes are.
#[derive(Debug)]
pub enum Packed {
    /// In the binary.
    Embedded(&'static [u8]),
    /// In the store.
    Stored(Arc<File>),
}

impl Packed {
    pub(super) fn size(&self) -> io::Result<u64> {
        match self {
            Self::Embedded(bytes) => Ok(bytes.len() as u64),
            Self::Stored(file) => Ok(file.metadata()?.len()),
        }
    }

    pub(super) fn read_exact_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        match self {
            Self::Embedded(bytes) => {
                let from = usize::try_from(offset).unwrap_or(usize::MAX);
                let part = from.checked_add(into.len()).and_then(|to| bytes.get(from..to));
                into.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
                Ok(())
            }
            Self::Stored(file) => file.read_exact_at(into, offset),
        }
    }
}

/// A packed payload, open.
#[derive(Debug)]
pub struct Object {
    packed: Packed,
    table: SeekTable,
}

/// Why a payload is not what its name says.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// It cannot be read or unpacked.
    #[error("at byte {at} of its content")]
    Unreadable {
        /// Where its frame begins.
        at: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is another content.
    #[error(transparent)]
    Mismatch(#[from] Mismatch),
}

impl Object {
    /// Opens a stored one.
    ///
    /// # Errors
    /// Those of the file system; invalid data when it is no packed payload.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::new(Packed::Stored(Arc::new(File::open(path)?)))
    }

    /// Opens one from its packed bytes.
    ///
    /// # Errors
    /// As [`Object::open`].
    pub fn new(packed: Packed) -> io::Result<Self> {
        let table = SeekTable::read(packed.size()?, |offset, into| packed.read_exact_at(offset, into))?;
        Ok(Self { packed, table })
    }

    /// Bytes of its content.
    pub fn size(&self) -> u64 {
        self.table.content()
    }

    /// Bytes of its frames, which are what a client that understands zstd gets.
    pub fn packed_size(&self) -> u64 {
        self.table.packed()
    }

    /// The packing's name.
    pub fn tag(&self) -> Tag {
        self.table.tag()
    }

    /// Where the packed bytes are.
    pub fn packed(&self) -> &Packed {
        &self.packed
    }

    /// How many frames it has.
    pub fn frames(&self) -> usize {
        self.table.frames()
    }

    /// Reads all of it and compares; `seen` hears how many bytes of content each step was.
    ///
    /// # Errors
    /// [`Broken`].
    pub fn verify(&self, expected: Sha256, mut seen: impl FnMut(usize)) -> Result<Verified<()>, Broken> {
        let unreadable = |index| {
            let at = index as u64 * FRAME_BYTES as u64;
            move |source| Broken::Unreadable { at, source }
        };
        let mut unpacker = Unpacker::new().map_err(unreadable(0))?;
        let (mut hasher, mut content) = (Hasher::new(), Vec::new());
        for index in 0..self.frames() {
            unpacker.frame(self, index, &mut content).map_err(unreadable(index))?;
            hasher.update(&content);
            seen(content.len());
        }
        Ok(Verified::check((), hasher, expected)?)
    }
}

/// What unpacks one frame after another, with one set of buffers.
pub struct Unpacker {
    context: Decompressor<'static>,
    packed: Vec<u8>,
}

impl Unpacker {
    /// # Errors
    /// Out of memory.
    pub fn new() -> io::Result<Self> {
        Ok(Self { context: Decompressor::new()?, packed: Vec::new() })
    }

    /// Unpacks frame number `index` of `object` into `content`.
    ///
    /// # Errors
    /// Those of the file system; invalid data when it is damaged.
    pub fn frame(&mut self, object: &Object, index: usize, content: &mut Vec<u8>) -> io::Result<()> {
        let (from, to) = object.table.frame(index).ok_or(io::ErrorKind::UnexpectedEof)?;
        let expected = object.table.frame_content(index);
        content.clear();
        content.reserve_exact(expected);
        let length = usize::try_from(to - from).map_err(io::Error::other)?;
        let packed = match &object.packed {
            Packed::Embedded(bytes) => {
                let from = usize::try_from(from).map_err(io::Error::other)?;
                bytes.get(from..from + length).ok_or(io::ErrorKind::UnexpectedEof)?
            }
            Packed::Stored(file) => {
                self.packed.resize(length, 0);
                file.read_exact_at(&mut self.packed, from)?;
                &self.packed
            }
        };
        let damaged = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
        let done = self.context.decompress_to_buffer(packed, content);
        let done = done.map_err(|error| damaged(format!("a frame does not unpack: {error}")))?;
        if done != expected {
            return Err(damaged(format!("a frame has {done} bytes of content instead of {expected}")));
        }
        Ok(())
    }
}
