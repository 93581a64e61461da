//! A baseline as one file, for carrying it on a stick: a plain tar archive that any `tar` unpacks.
//!
//! Its members, in this order: `baseline.toml`; `baseline.toml.minisig`, where there is a signature; `SHA256SUMS` with the
//! digests of all others, as `sha256sum -c` reads them; `objects/SHA256.zst` for each payload once, packed as it is
//! stored ([`super::seek_table`]), in the order of its component. So an import can refuse before it has read a payload, and
//! stores what it reads as it is. Headers say nothing but name and size (POSIX.1-1988 ustar; a size from 8 GiB on in GNU's
//! binary form), so the same baseline gives the same bytes. Reading is as strict: a byte that would not have been written
//! is damage. It must never be unpacked by name: a member is what is expected next, or an error.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::ImportError;
use crate::digest::{Hasher, Sha256};

/// The digests' file name.
pub const SUMS: &str = "SHA256SUMS";

/// Most bytes of it: 4 MiB of manifest hold no more components than that.
pub const SUMS_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// The unit of a tar archive.
pub const BLOCK: usize = 512;

/// Sizes from here on do not fit into eleven octal digits.
const OCTAL_MAX: u64 = 1 << 33;

/// What a payload's member is called.
pub fn object_name(sha256: Sha256) -> String {
    format!("objects/{sha256}.zst")
}

/// A member's header.
pub fn header(name: &str, size: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| {
        block.iter_mut().skip(at).zip(bytes).for_each(|(to, from)| *to = *from);
    };
    put(0, name.as_bytes());
    put(100, b"0000644\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    if size < OCTAL_MAX {
        put(124, format!("{size:011o}\0").as_bytes());
    } else {
        put(124, &[0x80, 0, 0, 0]);
        put(128, &size.to_be_bytes());
    }
    put(136, b"00000000000\0");
    put(148, b"        0ustar\0");
    put(263, b"00");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    let sum = format!("{sum:06o}\0 ");
    block.iter_mut().skip(148).zip(sum.as_bytes()).for_each(|(to, from)| *to = *from);
    block
}

/// Zeros after a member of this size.
pub fn padding(size: u64) -> u64 {
    size.next_multiple_of(BLOCK as u64) - size
}

/// Name and size in a header, if we could have written it.
fn parse(block: &[u8; BLOCK]) -> Option<(String, u64)> {
    let name = block.get(..100)?;
    let name = std::str::from_utf8(name.get(..name.iter().position(|byte| *byte == 0)?)?).ok()?;
    let field = block.get(124..136)?;
    let size = match field.split_at_checked(4)? {
        ([0x80, 0, 0, 0], rest) => u64::from_be_bytes(rest.try_into().ok()?),
        _ => u64::from_str_radix(std::str::from_utf8(field.get(..11)?).ok()?, 8).ok()?,
    };
    (size < 1 << 62 && header(name, size) == *block).then(|| (name.to_owned(), size))
}

/// Whether something that begins so is a baseline in one file.
pub fn is_container(first: &[u8]) -> bool {
    let block = first.get(..BLOCK).and_then(|block| block.try_into().ok());
    block.and_then(parse).is_some_and(|(name, _)| name == crate::firmware::baseline::MANIFEST)
}

/// Reads member after member.
pub struct Reader<R> {
    source: R,
    path: PathBuf,
    at: u64,
    /// A header that was read and is not used yet.
    next: Option<(String, u64)>,
}

impl<R: Read> Reader<R> {
    /// Of a source; `path` stands for it in errors.
    pub fn new(path: &Path, source: R) -> Self {
        Self { source, path: path.to_owned(), at: 0, next: None }
    }

    /// An error at the byte that is read next.
    pub fn damaged(&self, why: impl Into<String>) -> ImportError {
        ImportError::Damaged { path: self.path.clone(), at: self.at, why: why.into() }
    }

    /// The next member's size, if it is called so.
    ///
    /// # Errors
    /// [`ImportError`], when there is no header.
    pub fn begins(&mut self, name: &str) -> Result<Option<u64>, ImportError> {
        if self.next.is_none() {
            let mut block = [0; BLOCK];
            self.exactly(&mut block)?;
            let parsed = parse(&block);
            self.next = Some(parsed.ok_or_else(|| self.damaged("this is no header of a member"))?);
        }
        let found = self.next.take_if(|(found, _)| found == name);
        Ok(found.map(|(_, size)| size))
    }

    /// A member that must be the next one.
    ///
    /// # Errors
    /// [`ImportError`].
    pub fn expect(&mut self, name: &str) -> Result<u64, ImportError> {
        match self.begins(name)? {
            Some(size) => Ok(size),
            None => {
                let found = self.next.as_ref().map_or("", |(found, _)| found);
                Err(self.damaged(format!("{name} is expected here, not {found:?}")))
            }
        }
    }

    /// A small member's content, of `size` bytes.
    ///
    /// # Errors
    /// [`ImportError`].
    pub fn whole(&mut self, size: u64, max: u64) -> Result<Vec<u8>, ImportError> {
        if size > max {
            return Err(self.damaged(format!("the member has {size} bytes, it may have {max}")));
        }
        let mut bytes = vec![0; usize::try_from(size).unwrap_or_default()];
        self.exactly(&mut bytes)?;
        self.pad(size)?;
        Ok(bytes)
    }

    /// A large member's content, to be read to its end, after which [`Reader::pad`] is called.
    pub fn content(&mut self, size: u64) -> Content<'_, R> {
        self.at += size;
        Content { source: self.source.by_ref().take(size), hasher: Hasher::new() }
    }

    /// The zeros after a member.
    ///
    /// # Errors
    /// [`ImportError`].
    pub fn pad(&mut self, size: u64) -> Result<(), ImportError> {
        let mut zeros = vec![0; usize::try_from(padding(size)).unwrap_or_default()];
        self.exactly(&mut zeros)?;
        if zeros.iter().any(|byte| *byte != 0) {
            return Err(self.damaged("the bytes before are not zero, as they must be after a member"));
        }
        Ok(())
    }

    /// Two blocks of zeros, and nothing after them.
    ///
    /// # Errors
    /// [`ImportError`].
    pub fn end(mut self) -> Result<(), ImportError> {
        if self.next.is_some() {
            return Err(self.damaged("a member is here that the manifest does not name"));
        }
        let mut zeros = [0; 2 * BLOCK];
        self.exactly(&mut zeros)?;
        let mut more = [0];
        let after = self.source.read(&mut more).map_err(|source| self.unreadable(source))?;
        if zeros.iter().any(|byte| *byte != 0) || after > 0 {
            return Err(self.damaged("the archive does not end as it must"));
        }
        Ok(())
    }

    fn unreadable(&self, source: io::Error) -> ImportError {
        ImportError::Source { path: self.path.clone(), source }
    }

    fn exactly(&mut self, into: &mut [u8]) -> Result<(), ImportError> {
        match self.source.read_exact(into) {
            Ok(()) => {
                self.at += into.len() as u64;
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(self.damaged("the file ends within the next bytes: it was cut"))
            }
            Err(error) => Err(self.unreadable(error)),
        }
    }
}

/// A large member's content, hashed as it is read.
pub struct Content<'a, R> {
    source: io::Take<&'a mut R>,
    hasher: Hasher,
}

impl<R> Content<'_, R> {
    /// The digest of what was read, and the bytes that were not there any more.
    pub fn finish(self) -> (Sha256, u64) {
        (self.hasher.finish(), self.source.limit())
    }
}

impl<R: Read> Read for Content<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.source.read(into)?;
        self.hasher.update(into.get(..read).unwrap_or_default());
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_read_back_and_any_damage_to_it_is_found() {
        for size in [0, 1, 512, OCTAL_MAX - 1, OCTAL_MAX, 1 << 40] {
            let block = header("objects/x.zst", size);
            assert_eq!(parse(&block), Some(("objects/x.zst".into(), size)));
            for at in 0..BLOCK {
                for bit in 0..8 {
                    let mut damaged = block;
                    damaged[at] ^= 1 << bit;
                    assert_eq!(parse(&damaged), None, "byte {at} of a header for {size}");
                }
            }
        }
    }

    #[test]
    fn what_does_not_end_as_it_must_is_refused() {
        let mut bytes = header("a", 3).to_vec();
        bytes.extend(*b"abc");
        bytes.resize(4 * BLOCK, 0);
        let read = |bytes: &[u8]| {
            let mut reader = Reader::new(Path::new("x"), bytes);
            let size = reader.expect("a")?;
            let content = reader.whole(size, 10)?;
            reader.end().map(|()| content)
        };
        assert_eq!(read(&bytes).unwrap(), b"abc");
        for cut in 0..bytes.len() {
            assert!(read(&bytes[..cut]).is_err(), "cut to {cut}");
        }
        for at in (0..bytes.len()).filter(|at| !(BLOCK..BLOCK + 3).contains(at)) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert!(read(&damaged).is_err(), "byte {at}");
        }
        bytes.push(0);
        assert!(read(&bytes).unwrap_err().to_string().contains("byte 2048"));
    }
}
