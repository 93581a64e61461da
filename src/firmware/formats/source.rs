//! Bounded access to a foreign file: every read says where, how much and what for, and is checked against the size.
//!
//! Parsers never hold a payload: they read headers whole, within limits of their own, and stream the rest.

use std::io::{self, Read, Seek, SeekFrom};

use super::error::{Fault, FormatError};

/// What a package is read from.
pub trait ReadSeek: Read + Seek {}

impl<T: Read + Seek + ?Sized> ReadSeek for T {}

/// A file with its name and size.
pub struct Source<'a> {
    name: String,
    size: u64,
    reader: &'a mut dyn ReadSeek,
}

impl<'a> Source<'a> {
    /// Takes the size by seeking; `name` stands for the file in errors.
    ///
    /// # Errors
    /// Those of seeking.
    pub fn new(name: &str, reader: &'a mut dyn ReadSeek) -> Result<Self, FormatError> {
        let size = reader.seek(SeekFrom::End(0));
        let fault = |source| FormatError {
            file: name.to_owned(),
            offset: None,
            fault: Fault::Read { what: "its size", source },
        };
        Ok(Self { name: name.to_owned(), size: size.map_err(fault)?, reader })
    }

    /// The file's name, for errors.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file's size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// An error about this file.
    pub fn error(&self, offset: impl Into<Option<u64>>, fault: Fault) -> FormatError {
        FormatError { file: self.name.clone(), offset: offset.into(), fault }
    }

    /// Exactly `length` bytes at `offset`; the caller has checked `length` against a limit.
    ///
    /// # Errors
    /// When the file is shorter, or cannot be read.
    pub fn bytes(&mut self, offset: u64, length: usize, what: &'static str) -> Result<Vec<u8>, FormatError> {
        let mut bytes = vec![0; length];
        let read = self.stream(offset, length as u64, what)?.read_exact(&mut bytes);
        read.map_err(|source| self.error(offset, Fault::Read { what, source }))?;
        Ok(bytes)
    }

    /// As [`Source::bytes`], but fewer where the file ends.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn start(&mut self, length: usize) -> Result<Vec<u8>, FormatError> {
        let length = self.size.min(length as u64) as usize;
        self.bytes(0, length, "its first bytes")
    }

    /// The reader itself, for those that seek on their own.
    pub fn reader(&mut self) -> &mut dyn ReadSeek {
        &mut *self.reader
    }

    /// A reader of `length` bytes from `offset` on.
    ///
    /// # Errors
    /// When the file is shorter.
    pub fn stream(
        &mut self,
        offset: u64,
        length: u64,
        what: &'static str,
    ) -> Result<io::Take<&mut dyn ReadSeek>, FormatError> {
        if offset.checked_add(length).is_none_or(|end| end > self.size) {
            return Err(self.error(offset, Fault::Truncated(what)));
        }
        if let Err(source) = self.reader.seek(SeekFrom::Start(offset)) {
            return Err(self.error(offset, Fault::Read { what, source }));
        }
        Ok(self.reader().take(length))
    }
}

/// What is unpacked from a stream, until there is too much of it: then it is an error, not an end.
pub struct Limited<R> {
    inner: R,
    limit: u64,
    read: u64,
}

impl<R: Read> Limited<R> {
    /// Lets `limit` bytes through.
    pub fn new(inner: R, limit: u64) -> Self {
        Self { inner, limit, read: 0 }
    }
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.read += read as u64;
        if self.read > self.limit {
            return Err(io::Error::other(format!("it unpacks to more than {} bytes", self.limit)));
        }
        Ok(read)
    }
}

/// Reads to the end of `reader`, but no more than `limit` bytes.
///
/// # Errors
/// [`Fault::Limit`] when there is more, [`Fault::Read`].
pub fn read_bounded(reader: impl Read, limit: u64, what: &'static str) -> Result<Vec<u8>, Fault> {
    let mut bytes = Vec::new();
    reader.take(limit + 1).read_to_end(&mut bytes).map_err(|source| Fault::Read { what, source })?;
    match bytes.len() as u64 {
        found if found > limit => Err(Fault::Limit { what, found, limit }),
        _ => Ok(bytes),
    }
}

/// Fields of a binary structure, one after another.
pub struct Fields<'a> {
    file: &'a str,
    bytes: &'a [u8],
    base: u64,
    at: usize,
}

impl<'a> Fields<'a> {
    /// `bytes` stand at offset `base` of `file`.
    pub fn new(file: &'a str, bytes: &'a [u8], base: u64) -> Self {
        Self { file, bytes, base, at: 0 }
    }

    /// Offset of the next field in the file.
    pub fn position(&self) -> u64 {
        self.base + self.at as u64
    }

    /// Bytes that are left.
    pub fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// An error at the next field.
    pub fn error(&self, fault: Fault) -> FormatError {
        FormatError { file: self.file.to_owned(), offset: Some(self.position()), fault }
    }

    /// The next `length` bytes.
    ///
    /// # Errors
    /// When there are fewer.
    pub fn take(&mut self, length: usize, what: &'static str) -> Result<&'a [u8], FormatError> {
        let taken = self.at.checked_add(length).and_then(|end| self.bytes.get(self.at..end));
        let taken = taken.ok_or_else(|| self.error(Fault::Truncated(what)))?;
        self.at += length;
        Ok(taken)
    }

    /// The next `length` bytes as fields of their own.
    ///
    /// # Errors
    /// When there are fewer.
    pub fn inner(&mut self, length: usize, what: &'static str) -> Result<Self, FormatError> {
        let base = self.position();
        Ok(Self { file: self.file, bytes: self.take(length, what)?, base, at: 0 })
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], FormatError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N, what)?);
        Ok(array)
    }

    /// An unsigned byte.
    ///
    /// # Errors
    /// When there is none, as for all of these.
    pub fn u8(&mut self, what: &'static str) -> Result<u8, FormatError> {
        self.array(what).map(|[byte]| byte)
    }

    /// 16 bits, little-endian.
    ///
    /// # Errors
    /// When there are fewer bytes.
    pub fn u16(&mut self, what: &'static str) -> Result<u16, FormatError> {
        self.array(what).map(u16::from_le_bytes)
    }

    /// 32 bits, little-endian.
    ///
    /// # Errors
    /// When there are fewer bytes.
    pub fn u32(&mut self, what: &'static str) -> Result<u32, FormatError> {
        self.array(what).map(u32::from_le_bytes)
    }

    /// 32 bits, big-endian.
    ///
    /// # Errors
    /// When there are fewer bytes.
    pub fn u32_be(&mut self, what: &'static str) -> Result<u32, FormatError> {
        self.array(what).map(u32::from_be_bytes)
    }

    /// Bytes up to a NUL, which is skipped; at most `limit` of them.
    ///
    /// # Errors
    /// When no NUL comes in time.
    pub fn until_nul(&mut self, limit: usize, what: &'static str) -> Result<&'a [u8], FormatError> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let length = rest.iter().take(limit + 1).position(|byte| *byte == 0);
        let Some(length) = length else {
            let limited = Fault::Limit { what, found: limit as u64 + 1, limit: limit as u64 };
            return Err(self.error(if rest.len() > limit { limited } else { Fault::Truncated(what) }));
        };
        let taken = self.take(length, what)?;
        self.at += 1;
        Ok(taken)
    }
}
