//! A stored payload's content, to be read and sought in: what a parser of packages takes.
//!
//! One frame is held at a time, so memory does not grow with the payload.

use std::io::{self, Read, Seek, SeekFrom};

use super::object::{Object, Unpacker};
use super::seek_table::FRAME_BYTES;

/// The content of a payload.
pub struct Content {
    object: Object,
    unpacker: Unpacker,
    frame: Vec<u8>,
    /// Which frame that is.
    index: Option<u64>,
    at: u64,
}

impl Content {
    /// Of `object`, from its beginning.
    ///
    /// # Errors
    /// Those of the decompressor.
    pub fn new(object: Object) -> io::Result<Self> {
        Ok(Self { object, unpacker: Unpacker::new()?, frame: Vec::new(), index: None, at: 0 })
    }
}

impl Read for Content {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.at >= self.object.size() {
            return Ok(0);
        }
        let index = self.at / FRAME_BYTES as u64;
        if self.index != Some(index) {
            self.index = None;
            let number = usize::try_from(index).map_err(io::Error::other)?;
            self.unpacker.frame(&self.object, number, &mut self.frame)?;
            self.index = Some(index);
        }
        let within = usize::try_from(self.at % FRAME_BYTES as u64).map_err(io::Error::other)?;
        let n = self.frame.get(within..).unwrap_or_default().read(into)?;
        self.at += n as u64;
        Ok(n)
    }
}

impl Seek for Content {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.object.size().checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}
