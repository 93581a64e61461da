//! Tar streams, read once from front to back: ustar, with GNU's and pax's long names.
//!
//! Made for archives that are compressed and hostile: nothing is kept but what the caller asks for, names and extensions
//! are bounded, and so is the number of members.

use std::io::{self, Read};

use super::error::{Fault, plain_path};
use super::source::read_bounded;

const BLOCK: usize = 512;
const MEMBERS_MAX: u64 = 20_000;
/// GNU long names and pax headers.
const EXTENSION_BYTES_MAX: u64 = 64 * 1024;
const NAME_BYTES_MAX: u64 = 4096;

/// A regular file in the stream.
pub struct Member {
    /// Its relative path, without a leading "./".
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
}

/// Calls `visit` for each regular file, with a reader of its bytes; what it leaves unread is skipped.
///
/// # Errors
/// When the stream is malformed or a limit is met, and those of `visit`.
pub fn walk(
    mut reader: impl Read,
    mut visit: impl FnMut(&Member, &mut dyn Read) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let mut long_name = None;
    for _ in 0..=MEMBERS_MAX {
        let mut block = [0; BLOCK];
        match fill(&mut reader, &mut block)? {
            0 => return Ok(()),
            BLOCK => {}
            _ => return Err(Fault::Truncated("a tar header")),
        }
        if block.iter().all(|byte| *byte == 0) {
            // The rest must be read all the same: a checksum of the compression may stand at its end.
            io::copy(&mut reader, &mut io::sink()).map_err(read)?;
            return Ok(());
        }
        let header = Header::parse(&block)?;
        let mut content = (&mut reader).take(header.size);
        match header.kind {
            b'L' => {
                let bytes = read_bounded(&mut content, NAME_BYTES_MAX, "the length of a name")?;
                long_name = Some(text(&bytes));
            }
            b'x' => {
                let bytes = read_bounded(&mut content, EXTENSION_BYTES_MAX, "the size of a pax header")?;
                long_name = pax_path(&bytes).or(long_name);
            }
            b'0' | 0 => {
                let name = long_name.take().unwrap_or(header.name);
                let name = name.trim_start_matches("./").to_owned();
                plain_path(&name)?;
                visit(&Member { name, size: header.size }, &mut content)?;
            }
            // Directories, links and what else there may be: of no interest here.
            _ => long_name = None,
        }
        io::copy(&mut content, &mut io::sink()).map_err(read)?;
        if content.limit() > 0 {
            return Err(Fault::Truncated("a member of a tar archive"));
        }
        let padding = header.size.next_multiple_of(BLOCK as u64) - header.size;
        io::copy(&mut (&mut reader).take(padding), &mut io::sink()).map_err(read)?;
    }
    Err(Fault::Limit { what: "the number of members", found: MEMBERS_MAX + 1, limit: MEMBERS_MAX })
}

fn read(source: io::Error) -> Fault {
    Fault::Read { what: "a tar archive", source }
}

/// Reads until the buffer is full or the stream ends.
fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> Result<usize, Fault> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match reader.read(rest).map_err(read)? {
            0 => break,
            more => filled += more,
        }
    }
    Ok(filled)
}

struct Header {
    name: String,
    size: u64,
    kind: u8,
}

impl Header {
    /// POSIX.1-1988 ustar; GNU's binary sizes too.
    fn parse(block: &[u8; BLOCK]) -> Result<Self, Fault> {
        let field = |at: usize, length: usize| block.get(at..at + length).unwrap_or_default();
        let announced =
            octal(field(148, 8)).ok_or_else(|| Fault::Malformed("a tar header has no checksum".into()))?;
        let blanks =
            block.iter().enumerate().map(|(at, byte)| if (148..156).contains(&at) { b' ' } else { *byte });
        if blanks.map(u64::from).sum::<u64>() != announced {
            return Err(Fault::Malformed("a tar header's checksum is wrong".into()));
        }
        let size =
            number(field(124, 12)).ok_or_else(|| Fault::Malformed("a tar header has no size".into()))?;
        let (name, prefix) = (text(field(0, 100)), text(field(345, 155)));
        let ustar = field(257, 6) == b"ustar\0" && !prefix.is_empty();
        let name = if ustar { format!("{prefix}/{name}") } else { name };
        Ok(Self { name, size, kind: block.get(156).copied().unwrap_or_default() })
    }
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned()
}

fn octal(field: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(field).ok()?.trim_matches(['\0', ' ']);
    u64::from_str_radix(text, 8).ok()
}

/// Octal, or big-endian after a byte with its top bit set.
fn number(field: &[u8]) -> Option<u64> {
    match field.split_first()? {
        (0x80, rest) => {
            let (high, low) = rest.split_at_checked(rest.len().checked_sub(8)?)?;
            let low = low.iter().fold(0, |number, byte| (number << 8) | u64::from(*byte));
            high.iter().all(|byte| *byte == 0).then_some(low).filter(|size| *size < 1 << 62)
        }
        _ => octal(field),
    }
}

/// "LENGTH path=VALUE\n" among other records.
fn pax_path(bytes: &[u8]) -> Option<String> {
    let mut rest = bytes;
    while let Some(blank) = rest.iter().position(|byte| *byte == b' ') {
        let length: usize = std::str::from_utf8(rest.get(..blank)?).ok()?.parse().ok()?;
        let record = rest.get(blank + 1..length.checked_sub(1)?)?;
        if let Some(path) = record.strip_prefix(b"path=") {
            return Some(text(path));
        }
        rest = rest.get(length..)?;
    }
    None
}
