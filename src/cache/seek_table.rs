//! Where the frames of a packed payload begin: the seek table of zstd's seekable format.
//!
//! A packed payload is a row of zstd frames, each of which holds [`FRAME_BYTES`] of content (the last one fewer) and can
//! be unpacked alone; then a skippable frame with the packing's tag, then one with the seek table
//! (`contrib/seekable_format/zstd_seekable_compression_format.md` of zstd, version 0.1.1, without checksums: each frame
//! has its own). So any zstd tool reads the whole, and we read any range. build.rs uses this file too: it imports
//! nothing of ours. It must never believe a table that does not fit its file.

use std::io;

/// Content of one frame, in bytes. Larger ones pack better, smaller ones cost less for a short range.
pub const FRAME_BYTES: usize = 1024 * 1024;

/// Most bytes of a packed frame: content that does not shrink is stored as it is, in blocks of 128 KiB with 3 bytes each.
pub const FRAME_PACKED_BYTES_MAX: usize = FRAME_BYTES + 4 * 1024;

/// Most frames, with the tag's: a tebibyte of content, 8 MiB of table.
const FRAMES_MAX: usize = 1024 * 1024;

/// Most bytes of content of one payload.
pub const CONTENT_BYTES_MAX: u64 = (FRAMES_MAX as u64 - 1) * FRAME_BYTES as u64;

/// A tag names one packing of a content: packed again, with other bytes, it has another.
pub type Tag = [u8; 16];

/// A skippable frame (RFC 8878, section 3.1.2): the seekable format's.
const TABLE_MAGIC: u32 = 0x184D_2A5E;
/// Ours for the tag.
pub const TAG_MAGIC: u32 = 0x184D_2A5C;
/// Ends the seek table.
const SEEKABLE_MAGIC: u32 = 0x8F92_EAB1;

const TAG_FRAME_BYTES: u64 = 8 + 16;
const ENTRY_BYTES: usize = 8;
/// Number of frames, descriptor, magic.
const FOOTER_BYTES: usize = 9;

/// Where each frame begins.
#[derive(Debug, Clone)]
pub struct SeekTable {
    /// Of each frame, and where the last one ends.
    offsets: Vec<u64>,
    /// Bytes of content of them all.
    content: u64,
    tag: Tag,
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

fn number(bytes: &[u8], at: usize) -> u32 {
    let four = bytes.get(at..at + 4).and_then(|four| four.try_into().ok());
    four.map_or(0, u32::from_le_bytes)
}

impl SeekTable {
    /// No frame yet.
    pub fn new() -> Self {
        Self { offsets: vec![0], content: 0, tag: Tag::default() }
    }

    /// The next frame, by its packed length and that of its content.
    pub fn push(&mut self, packed: usize, content: usize) {
        self.offsets.push(self.packed() + packed as u64);
        self.content += content as u64;
    }

    /// Reads it from the end of something of `size` bytes, which `read` fills from an offset on.
    ///
    /// # Errors
    /// Those of `read`; invalid data when there is no table that fits.
    pub fn read(size: u64, read: impl Fn(u64, &mut [u8]) -> io::Result<()>) -> io::Result<Self> {
        let mut footer = [0; FOOTER_BYTES];
        let footer_at = size.checked_sub(FOOTER_BYTES as u64).ok_or_else(|| broken("it is cut"))?;
        read(footer_at, &mut footer)?;
        if number(&footer, 5) != SEEKABLE_MAGIC || footer.get(4) != Some(&0) {
            return Err(broken("it has no seek table at its end"));
        }
        let count = usize::try_from(number(&footer, 0)).unwrap_or(usize::MAX);
        if count == 0 || count > FRAMES_MAX {
            return Err(broken("its seek table has an impossible length"));
        }
        let length = 8 + count * ENTRY_BYTES + FOOTER_BYTES;
        let fixed = length as u64 + TAG_FRAME_BYTES;
        let tail_at = size.checked_sub(fixed).ok_or_else(|| broken("it is cut"))?;
        let mut tail = vec![0; usize::try_from(fixed).map_err(|_| broken("its seek table is too long"))?];
        read(tail_at, &mut tail)?;
        Self::parse(&tail, count, tail_at)
    }

    fn parse(tail: &[u8], count: usize, tail_at: u64) -> io::Result<Self> {
        let mut table = Self::new();
        let (tag_frame, seek_frame) = tail.split_at_checked(24).ok_or_else(|| broken("it is cut"))?;
        let payload = count * ENTRY_BYTES + FOOTER_BYTES;
        let headed = number(tag_frame, 0) == TAG_MAGIC
            && number(tag_frame, 4) == 16
            && number(seek_frame, 0) == TABLE_MAGIC
            && number(seek_frame, 4) as usize == payload;
        if !headed {
            return Err(broken("its seek table is damaged"));
        }
        table.tag = tag_frame.get(8..).and_then(|tag| tag.try_into().ok()).unwrap_or_default();
        for index in 0..count {
            let at = 8 + index * ENTRY_BYTES;
            let (packed, content) = (number(seek_frame, at) as usize, number(seek_frame, at + 4) as usize);
            let last = index + 1 == count;
            let whole = index + 2 < count;
            let fits = match (last, whole) {
                // The tag's frame has no content.
                (true, _) => content == 0 && packed as u64 == TAG_FRAME_BYTES,
                (false, true) => content == FRAME_BYTES,
                (false, false) => (1..=FRAME_BYTES).contains(&content),
            };
            if !fits || packed == 0 || packed > FRAME_PACKED_BYTES_MAX {
                return Err(broken("its seek table is damaged"));
            }
            if !last {
                table.push(packed, content);
            }
        }
        if table.packed() != tail_at {
            return Err(broken("its seek table does not fit its length"));
        }
        Ok(table)
    }

    /// What follows the last frame: the tag and this table.
    pub fn tail(&self, tag: Tag) -> Vec<u8> {
        let entries = self.frames() + 1;
        let mut tail = Vec::with_capacity(48 + entries * ENTRY_BYTES);
        let word = |tail: &mut Vec<u8>, value: u64| {
            tail.extend_from_slice(&u32::try_from(value).unwrap_or(u32::MAX).to_le_bytes());
        };
        word(&mut tail, TAG_MAGIC.into());
        word(&mut tail, 16);
        tail.extend_from_slice(&tag);
        word(&mut tail, TABLE_MAGIC.into());
        word(&mut tail, (entries * ENTRY_BYTES + FOOTER_BYTES) as u64);
        for index in 0..self.frames() {
            let (from, to) = self.frame(index).unwrap_or_default();
            word(&mut tail, to - from);
            word(&mut tail, self.frame_content(index) as u64);
        }
        word(&mut tail, TAG_FRAME_BYTES);
        word(&mut tail, 0);
        word(&mut tail, entries as u64);
        tail.push(0);
        word(&mut tail, SEEKABLE_MAGIC.into());
        tail
    }

    /// How many frames there are.
    pub fn frames(&self) -> usize {
        self.offsets.len() - 1
    }

    /// From where to where a frame goes.
    pub fn frame(&self, index: usize) -> Option<(u64, u64)> {
        Some((*self.offsets.get(index)?, *self.offsets.get(index + 1)?))
    }

    /// Bytes of content of a frame.
    pub fn frame_content(&self, index: usize) -> usize {
        let before = index as u64 * FRAME_BYTES as u64;
        usize::try_from(self.content.saturating_sub(before)).unwrap_or(FRAME_BYTES).min(FRAME_BYTES)
    }

    /// Bytes of content.
    pub fn content(&self) -> u64 {
        self.content
    }

    /// Bytes of all frames, without what follows them.
    pub fn packed(&self) -> u64 {
        self.offsets.last().copied().unwrap_or_default()
    }

    /// This packing's name.
    pub fn tag(&self) -> Tag {
        self.tag
    }
}

impl Default for SeekTable {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// One frame of 100 bytes with a content of 5.
    fn table() -> (SeekTable, Vec<u8>) {
        let mut table = SeekTable::new();
        table.push(100, 5);
        let mut bytes = vec![0; 100];
        bytes.extend(table.tail([7; 16]));
        (table, bytes)
    }

    fn read(bytes: &[u8]) -> io::Result<SeekTable> {
        SeekTable::read(bytes.len() as u64, |at, into| {
            let at = usize::try_from(at).unwrap();
            into.copy_from_slice(&bytes[at..at + into.len()]);
            Ok(())
        })
    }

    #[test]
    fn a_table_is_read_back_and_any_damage_to_it_is_found() {
        let (written, bytes) = table();
        let back = read(&bytes).unwrap();
        assert_eq!((back.frames(), back.content(), back.tag()), (1, 5, [7; 16]));
        assert_eq!(back.frame(0), written.frame(0));
        for cut in 0..bytes.len() {
            assert!(read(&bytes[..cut]).is_err(), "cut to {cut}");
        }
        for at in 100..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x40;
            let tag = (108..124).contains(&at);
            // The content of the last frame is judged by that frame.
            let content = (136..140).contains(&at) && read(&damaged).is_ok_and(|t| t.content() != 5);
            assert_eq!(read(&damaged).is_ok(), tag || content, "byte {at}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange(bytes in proptest::collection::vec(any::<u8>(), 0..200), seekable: bool) {
            let mut bytes = bytes;
            if seekable {
                bytes.extend([2, 0, 0, 0, 0]);
                bytes.extend(SEEKABLE_MAGIC.to_le_bytes());
            }
            let _ = read(&bytes);
        }
    }
}
