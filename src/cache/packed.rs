//! A packed payload as it comes in a stream: frame by frame, each unpacked and shown before it counts.
//!
//! The seek table stands at its end, so the frames are found by their own lengths, and the table is compared with what
//! was found. Memory is two frames', and the table's. It must never let a frame through that the store could not serve, nor
//! more content than was announced: zeros unpack to a thousand times what they take.

use std::io::{self, Read};

use zstd::bulk::Decompressor;
use zstd::zstd_safe::find_frame_compressed_size;

use super::seek_table::{FRAME_BYTES, FRAME_PACKED_BYTES_MAX, SeekTable, TAG_MAGIC, Tag};

/// The frames of a packed payload.
pub struct PackedFrames<R> {
    source: R,
    unpacker: Decompressor<'static>,
    window: Vec<u8>,
    /// Bytes of the current frame, at the window's beginning.
    frame: usize,
    table: SeekTable,
    /// Most bytes of content.
    max: u64,
    /// A frame came that was not full: there may be no other.
    last: bool,
    failed: bool,
}

impl<R: Read> PackedFrames<R> {
    /// Of a source that has `max` bytes of content at most. Each frame but the last is full, so that bounds their number
    /// too.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(source: R, max: u64) -> io::Result<Self> {
        let window = Vec::with_capacity(FRAME_PACKED_BYTES_MAX);
        let (unpacker, table) = (Decompressor::new()?, SeekTable::new());
        Ok(Self { source, unpacker, window, frame: 0, table, max, last: false, failed: false })
    }

    /// The content of the next frame; empty when there is none any more.
    ///
    /// # Errors
    /// Those of the source; invalid data when it is damaged.
    pub fn next(&mut self, content: &mut Vec<u8>) -> io::Result<()> {
        let done = self.advance(content);
        self.failed |= done.is_err();
        done
    }

    /// The packed bytes of the frame whose content came last.
    pub fn frame(&self) -> &[u8] {
        self.window.get(..self.frame).unwrap_or_default()
    }

    /// Whether an error came from here.
    pub fn has_failed(&self) -> bool {
        self.failed
    }

    /// What follows the last frame, which must be this payload's tag and seek table.
    ///
    /// # Errors
    /// Those of the source; invalid data when it is another one.
    pub fn tail(&mut self) -> io::Result<Tag> {
        let read = self.read_tail();
        self.failed |= read.is_err();
        read
    }

    fn read_tail(&mut self) -> io::Result<Tag> {
        let expected = self.table.tail(Tag::default()).len();
        let mut tail = std::mem::take(&mut self.window);
        let more = (expected + 1).saturating_sub(tail.len());
        self.source.by_ref().take(more as u64).read_to_end(&mut tail)?;
        let tag: Tag = tail.get(8..24).and_then(|tag| tag.try_into().ok()).unwrap_or_default();
        if tail != self.table.tail(tag) {
            return Err(damaged("its seek table is another one"));
        }
        Ok(tag)
    }

    fn advance(&mut self, content: &mut Vec<u8>) -> io::Result<()> {
        content.clear();
        self.window.drain(..self.frame);
        self.frame = 0;
        let more = FRAME_PACKED_BYTES_MAX.saturating_sub(self.window.len());
        self.source.by_ref().take(more as u64).read_to_end(&mut self.window)?;
        if self.window.starts_with(&TAG_MAGIC.to_le_bytes()) {
            return Ok(());
        }
        if self.last {
            return Err(damaged("a frame follows one that is not full"));
        }
        let length = find_frame_compressed_size(&self.window);
        let length = length.map_err(|_| damaged("there is no frame, or it is cut or too long"))?;
        let frame = self.window.get(..length).ok_or_else(|| damaged("a frame is cut"))?;
        content.reserve_exact(FRAME_BYTES);
        let done = self.unpacker.decompress_to_buffer(frame, content);
        done.map_err(|error| damaged(&format!("a frame does not unpack: {error}")))?;
        if content.is_empty() || content.len() > FRAME_BYTES {
            return Err(damaged("a frame has an impossible content"));
        }
        if self.table.content() + content.len() as u64 > self.max {
            return Err(damaged(&format!(
                "it unpacks to more than the {} bytes its manifest says",
                self.max
            )));
        }
        self.last = content.len() < FRAME_BYTES;
        self.frame = length;
        self.table.push(length, content.len());
        Ok(())
    }
}

fn damaged(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::pack::{Packing, pack};

    fn packed(content: &[u8]) -> Vec<u8> {
        let (mut bytes, mut table) = (Vec::new(), SeekTable::new());
        pack(
            content,
            Packing { level: 1, threads: 1 },
            |_| (),
            |frame, length| {
                bytes.extend_from_slice(frame);
                table.push(frame.len(), length);
                Ok(())
            },
        )
        .unwrap();
        bytes.extend(table.tail([7; 16]));
        bytes
    }

    fn read(bytes: &[u8], max: u64) -> io::Result<(Vec<u8>, Tag)> {
        let mut frames = PackedFrames::new(bytes, max)?;
        let (mut content, mut all) = (Vec::new(), Vec::new());
        loop {
            frames.next(&mut content)?;
            if content.is_empty() {
                return Ok((all, frames.tail()?));
            }
            all.extend_from_slice(&content);
        }
    }

    #[test]
    fn what_was_packed_comes_out_and_cut_or_damaged_it_does_not() {
        for length in [1, FRAME_BYTES, 2 * FRAME_BYTES + 5] {
            let content: Vec<u8> = (0..length).map(|i| (i / 3 % 251) as u8).collect();
            let bytes = packed(&content);
            let max = length as u64;
            assert!(read(&bytes, max).unwrap() == (content, [7; 16]));
            assert!(read(&bytes, max - 1).unwrap_err().to_string().contains("unpacks to more"));
            let frames = bytes.len() - 48;
            for at in (0..bytes.len()).step_by(1 + frames / 100) {
                assert!(read(&bytes[..at], max).is_err(), "cut to {at} of {}", bytes.len());
            }
            let again = [&bytes[..], &[0]].concat();
            assert!(read(&again, max).is_err());
            for at in (0..bytes.len()).rev().take(24) {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1;
                assert!(read(&damaged, max).is_err(), "byte {at}");
            }
        }
    }
}
