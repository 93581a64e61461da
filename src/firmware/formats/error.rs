//! Why a firmware file cannot be used, told with the file's name, the byte where it was seen, and the reason.
//!
//! The bytes come from strangers: every refusal of a parser is one of these values, never a panic.

use std::fmt;
use std::io;

use crate::error::Hinted;

/// What is wrong, and where.
#[derive(Debug, thiserror::Error)]
pub struct FormatError {
    /// The file, and the member inside it where there is one: "a.cab: a.metainfo.xml".
    pub file: String,
    /// Offset in that file or member, in bytes, where one is known.
    pub offset: Option<u64>,
    /// What was seen there.
    #[source]
    pub fault: Fault,
}

impl fmt::Display for FormatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.offset {
            Some(offset) => write!(f, "{}, byte {offset}", self.file),
            None => f.write_str(&self.file),
        }
    }
}

/// What a parser found wrong.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The file system or a decoder reported an error.
    #[error("reading {what}")]
    Read {
        /// What was being read.
        what: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The file is too short for what it announces.
    #[error("the file ends within {0}")]
    Truncated(&'static str),
    /// A count, length, depth or ratio is beyond what is read.
    #[error("{what} is {found}, the limit is {limit}")]
    Limit {
        /// What is too large.
        what: &'static str,
        /// How large it is, or how much of it was seen until it was refused.
        found: u64,
        /// The most that is read.
        limit: u64,
    },
    /// It contradicts its format.
    #[error("{0}")]
    Malformed(String),
    /// The format allows it, we do not read it.
    #[error("{0}: not supported")]
    Unsupported(String),
    /// A member's name would leave the directory it is unpacked to.
    #[error("\"{0}\" is not a relative path without \"..\"")]
    Path(String),
    /// Something that must be there is not.
    #[error("{0} is missing")]
    Missing(String),
    /// The bytes are not the announced ones.
    #[error("{what}: {algorithm} is {found}, expected {expected}")]
    Checksum {
        /// What was hashed.
        what: Box<str>,
        /// Name of the algorithm.
        algorithm: &'static str,
        /// The announced digest.
        expected: Box<str>,
        /// The digest of the bytes.
        found: Box<str>,
    },
    /// Certificates were given, and no signature leads to one of them.
    #[error("no signature of {what} can be trusted: {why}")]
    Untrusted {
        /// What is not signed well.
        what: String,
        /// What was tried.
        why: String,
    },
    /// None of the formats that are known.
    #[error("this is no firmware format that is known")]
    Unknown,
}

impl Hinted for FormatError {
    fn hint(&self) -> Option<String> {
        Some(
            match &self.fault {
                Fault::Read { .. } => return None,
                Fault::Unsupported(_) => "install it by the maker's own means",
                Fault::Checksum { .. } | Fault::Untrusted { .. } => "do not install it; get it again from its maker",
                Fault::Unknown => {
                    "known are LVFS .cab, HPE .fwpkg, .scexe, .zip and .exe, .rpm, .deb, Dell .BIN, PLDM packages, \
                     SPP directories and ISO images, and directories with a baseline.toml"
                }
                _ => "the file is damaged or not what its name says; get it again from its maker",
            }
            .into(),
        )
    }
}

/// Refuses a member's name that could leave the directory it is unpacked to, on any operating system.
pub fn plain_path(name: &str) -> Result<(), Fault> {
    let parts = || name.split(['/', '\\']);
    let drive = name.get(1..2) == Some(":");
    if name.is_empty()
        || name.starts_with(['/', '\\'])
        || drive
        || name.contains('\0')
        || parts().any(|p| p == "..")
    {
        return Err(Fault::Path(name.chars().take(200).collect()));
    }
    Ok(())
}
