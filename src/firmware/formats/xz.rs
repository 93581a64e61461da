//! One small .xz file unpacked in memory, as the control part of a Debian package is.
//!
//! The container is read here, the LZMA2 data by the `lzma-rust2` crate: so the window that a file may ask for is bounded
//! before it is allocated. One block with LZMA2 only, which is what dpkg-deb writes; its check is verified.

use lzma_rust2::Lzma2Reader;

use super::error::Fault;
use super::source::{Fields, read_bounded};

/// What an .xz file begins with.
pub const SIGNATURE: &[u8] = b"\xfd7zXZ\0";

/// xz -9 uses 64 MiB; what is unpacked here is smaller than a window of this size.
const WINDOW_BYTES_MAX: u32 = 64 * 1024 * 1024;
const LZMA2: u8 = 0x21;

/// Unpacks all of `bytes`, to at most `limit` bytes.
///
/// # Errors
/// When it is malformed, uses what is not read here, or is too large.
pub fn unpack(bytes: &[u8], limit: u64) -> Result<Vec<u8>, Fault> {
    let mut fields = Fields::new("", bytes, 0);
    let (check, window) = header(&mut fields).map_err(|error| error.fault)?;
    // A window larger than all that may come out of it is of no use.
    let window = window.min(limit.min(u64::from(WINDOW_BYTES_MAX)) as u32);
    let mut packed = bytes.get(fields.position() as usize..).unwrap_or_default();
    let begun = packed.len();
    let unpacked = read_bounded(Lzma2Reader::new(&mut packed, window, None), limit, "the unpacked .xz data")?;
    let used = fields.position() as usize + begun - packed.len();
    // The block is padded to four bytes from its own beginning, which is at a multiple of four.
    let at = used.next_multiple_of(4);
    let verdict = match check {
        0x01 => bytes.get(at..at + 4).map(|crc| crc == crc32(&unpacked).to_le_bytes()),
        0x04 => bytes.get(at..at + 8).map(|crc| crc == crc64(&unpacked).to_le_bytes()),
        0x00 => Some(true),
        other => return Err(Fault::Unsupported(format!(".xz check {other}"))),
    };
    if verdict != Some(true) {
        return Err(Fault::Malformed("the .xz data are damaged: their checksum is wrong".into()));
    }
    Ok(unpacked)
}

/// The stream header and the only block's header (sections 2.1.1 and 3.1 of the .xz file format): the kind of check,
/// and the size of the window.
fn header(fields: &mut Fields<'_>) -> Result<(u8, u32), super::error::FormatError> {
    if fields.take(6, "the .xz header")? != SIGNATURE {
        return Err(fields.error(Fault::Malformed("these are no .xz data".into())));
    }
    fields.u8("the .xz flags")?;
    let check = fields.u8("the .xz flags")? & 0xf;
    fields.take(4, "a checksum")?;
    let size = usize::from(fields.u8("a block header's size")?);
    if size == 0 {
        return Err(fields.error(Fault::Missing("a block of data".into())));
    }
    let mut block = fields.inner(size * 4 + 3, "a block header")?;
    let flags = block.u8("block flags")?;
    for bit in [0x40, 0x80] {
        if flags & bit != 0 {
            skip_number(&mut block)?;
        }
    }
    if flags & 3 != 0 || block.u8("a filter")? != LZMA2 || block.u8("the size of its properties")? != 1 {
        return Err(block.error(Fault::Unsupported(".xz filters other than LZMA2".into())));
    }
    // Section 5.3.1: 2 or 3, shifted.
    let properties = block.u8("the window's size")?;
    let window = u64::from(2 | (properties & 1)) << (properties / 2 + 11).min(40);
    let limit = u64::from(WINDOW_BYTES_MAX);
    if window > limit {
        return Err(block.error(Fault::Limit { what: "the window of the .xz data", found: window, limit }));
    }
    Ok((check, window as u32))
}

fn skip_number(fields: &mut Fields<'_>) -> Result<(), super::error::FormatError> {
    for _ in 0..9 {
        if fields.u8("a size")? & 0x80 == 0 {
            return Ok(());
        }
    }
    Err(fields.error(Fault::Malformed("a size has more than nine bytes".into())))
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

/// ECMA-182, reflected.
fn crc64(bytes: &[u8]) -> u64 {
    const POLYNOMIAL: u64 = 0xc96c_5795_d787_0f42;
    let step = |crc: u64, _| if crc & 1 == 1 { (crc >> 1) ^ POLYNOMIAL } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u64::from(*byte), step))
}
