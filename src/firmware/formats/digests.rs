//! The digests of a payload in one pass: whatever checksums and signatures of foreign formats ask for.
//!
//! SHA-1 is here to find damage where a format has nothing better. It must never be what trust rests on.

use std::collections::BTreeMap;
use std::io::{self, Read};

use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256, SHA384, SHA512};

use super::error::Fault;

/// An algorithm that formats use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Algorithm {
    /// For damage only.
    Sha1,
    /// The usual one.
    Sha256,
    /// In signatures.
    Sha384,
    /// In newer signatures and checksums.
    Sha512,
}

impl Algorithm {
    const ALL: [Self; 4] = [Self::Sha1, Self::Sha256, Self::Sha384, Self::Sha512];

    /// As metadata writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha1 => "sha1",
            Self::Sha256 => "sha256",
            Self::Sha384 => "sha384",
            Self::Sha512 => "sha512",
        }
    }

    /// By the name metadata uses.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| name.eq_ignore_ascii_case(algorithm.name()))
    }
}

/// Hashes what is fed to it.
pub struct Digester(Vec<(Algorithm, Context)>);

impl Digester {
    /// Nothing hashed yet.
    pub fn new() -> Self {
        let context = |algorithm| {
            Context::new(match algorithm {
                Algorithm::Sha1 => &SHA1_FOR_LEGACY_USE_ONLY,
                Algorithm::Sha256 => &SHA256,
                Algorithm::Sha384 => &SHA384,
                Algorithm::Sha512 => &SHA512,
            })
        };
        Self(Algorithm::ALL.map(|algorithm| (algorithm, context(algorithm))).into())
    }

    /// Takes the next bytes in.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.iter_mut().for_each(|(_, context)| context.update(bytes));
    }

    /// Takes all of a reader in; how many bytes that was.
    ///
    /// # Errors
    /// Those of the reader.
    pub fn read(&mut self, mut reader: impl Read) -> io::Result<u64> {
        let mut chunk = vec![0; 128 * 1024];
        let mut total = 0;
        loop {
            let read = reader.read(&mut chunk)?;
            if read == 0 {
                return Ok(total);
            }
            self.update(chunk.get(..read).unwrap_or_default());
            total += read as u64;
        }
    }

    /// The digests of all bytes taken in.
    pub fn finish(self) -> Digests {
        Digests(
            self.0.into_iter().map(|(name, context)| (name, context.finish().as_ref().to_vec())).collect(),
        )
    }
}

/// Digests of one file.
pub struct Digests(BTreeMap<Algorithm, Vec<u8>>);

impl Digests {
    /// Of bytes in memory.
    pub fn of(bytes: &[u8]) -> Self {
        let mut digester = Digester::new();
        digester.update(bytes);
        digester.finish()
    }

    /// The digest's bytes.
    pub fn get(&self, algorithm: Algorithm) -> &[u8] {
        self.0.get(&algorithm).map_or(&[], Vec::as_slice)
    }

    /// Compares with an announced hexadecimal digest.
    ///
    /// # Errors
    /// [`Fault::Checksum`].
    pub fn check(&self, what: &str, algorithm: Algorithm, expected: &str) -> Result<(), Fault> {
        let found = hex(self.get(algorithm));
        let expected = expected.trim().to_ascii_lowercase();
        if found == expected {
            return Ok(());
        }
        let (what, expected, found) = (what.into(), expected.into(), found.into());
        Err(Fault::Checksum { what, algorithm: algorithm.name(), expected, found })
    }
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
