//! Jcat files: the checksums and detached signatures that LVFS puts beside a payload (gzip over JSON).
//!
//! Every checksum is compared. Signatures are checked by [`super::pkcs7`] when certificates were given; OpenPGP ones are
//! listed, never trusted: no vendor signs with them alone.

use flate2::read::GzDecoder;
use serde::Deserialize;

use super::digests::{Algorithm, Digests};
use super::error::{Fault, FormatError};
use super::metadata::{Signature, SignatureState};
use super::pkcs7::{Trust, verify};
use super::source::read_bounded;

/// A jcat file, packed.
pub const PACKED_BYTES_MAX: u64 = 4 * 1024 * 1024;
const JSON_BYTES_MAX: u64 = 16 * 1024 * 1024;
const ITEMS_MAX: usize = 1024;
const BLOBS_MAX: usize = 64;

/// A jcat file.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Jcat {
    jcat_version_major: u32,
    #[serde(default)]
    items: Vec<Item>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Item {
    id: String,
    #[serde(default)]
    alias_ids: Vec<String>,
    #[serde(default)]
    blobs: Vec<Blob>,
}

/// `Kind` and `Target` are numbers of libjcat's JcatBlobKind.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Blob {
    kind: u32,
    #[serde(default)]
    flags: u64,
    #[serde(default)]
    target: u32,
    data: String,
}

const SHA256: u32 = 1;
const GPG: u32 = 2;
const PKCS7: u32 = 3;
const SHA1: u32 = 4;
const SHA512: u32 = 8;
/// Set when `Data` is text; otherwise it is base64.
const FLAG_UTF8: u64 = 1;

impl Jcat {
    /// Reads a jcat file; `file` stands for it in errors.
    ///
    /// # Errors
    /// When it is malformed or too large.
    pub fn parse(file: &str, bytes: &[u8]) -> Result<Self, FormatError> {
        let error = |fault| FormatError { file: file.to_owned(), offset: None, fault };
        let unpacked;
        let json = if bytes.starts_with(&[0x1f, 0x8b]) {
            unpacked = read_bounded(GzDecoder::new(bytes), JSON_BYTES_MAX, "the unpacked jcat file")
                .map_err(error)?;
            unpacked.as_slice()
        } else {
            bytes
        };
        let jcat: Self = serde_json::from_slice(json).map_err(|e| error(Fault::Malformed(e.to_string())))?;
        if jcat.jcat_version_major != 0 {
            return Err(error(Fault::Unsupported(format!("jcat version {}", jcat.jcat_version_major))));
        }
        let blobs = jcat.items.iter().map(|item| item.blobs.len()).max().unwrap_or(0);
        for (what, found, limit) in
            [("the number of items", jcat.items.len(), ITEMS_MAX), ("the number of blobs", blobs, BLOBS_MAX)]
        {
            if found > limit {
                return Err(error(Fault::Limit { what, found: found as u64, limit: limit as u64 }));
            }
        }
        Ok(jcat)
    }

    /// Whether it says anything about a file.
    pub fn names(&self, name: &str) -> bool {
        self.blobs(name).next().is_some()
    }

    fn blobs<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Blob> {
        let is = |id: &str| base(id) == base(name);
        let items = self
            .items
            .iter()
            .filter(move |item| is(&item.id) || item.alias_ids.iter().any(|alias| is(alias)));
        items.flat_map(|item| &item.blobs)
    }

    /// Checks all it says about the file of this name: every checksum, and its signatures.
    ///
    /// # Errors
    /// A checksum that is wrong. Signatures are told of in the result.
    pub fn check(&self, name: &str, digests: &Digests, trust: &Trust) -> Result<Vec<Signature>, Fault> {
        let mut found = Vec::new();
        for blob in self.blobs(name) {
            if let Some(algorithm) = checksum(blob.kind) {
                digests.check(name, algorithm, &blob.data)?;
                continue;
            }
            let (kind, state) = match blob.kind {
                PKCS7 => ("pkcs7", self.signature(blob, name, digests, trust)),
                GPG => {
                    ("gpg", SignatureState::NotTrusted { why: "OpenPGP signatures are not checked".into() })
                }
                other => {
                    let why = format!("signatures of kind {other} are not checked");
                    ("other", SignatureState::NotTrusted { why })
                }
            };
            found.push(Signature { of: name.to_owned(), kind: kind.into(), state });
        }
        Ok(found)
    }

    fn signature(&self, blob: &Blob, name: &str, digests: &Digests, trust: &Trust) -> SignatureState {
        if trust.is_empty() {
            return SignatureState::NotTrusted { why: "no certificate was given to check it by".into() };
        }
        let decoded;
        let bytes = if blob.flags & FLAG_UTF8 != 0 {
            blob.data.as_bytes()
        } else {
            decoded = base64(&blob.data).unwrap_or_default();
            &decoded
        };
        let verdict = match blob.target {
            0 => verify(bytes, digests, trust),
            // Signed is the text of a checksum, which was compared itself.
            target => match self.blobs(name).find(|other| other.kind == target && checksum(target).is_some())
            {
                Some(other) => verify(bytes, &Digests::of(other.data.as_bytes()), trust),
                None => Err("it signs a checksum that is not there".into()),
            },
        };
        match verdict {
            Ok(by) => SignatureState::Trusted { by },
            Err(why) => SignatureState::NotTrusted { why },
        }
    }
}

fn checksum(kind: u32) -> Option<Algorithm> {
    match kind {
        SHA1 => Some(Algorithm::Sha1),
        SHA256 => Some(Algorithm::Sha256),
        SHA512 => Some(Algorithm::Sha512),
        _ => None,
    }
}

/// Names are compared without their directory, as fwupd does.
fn base(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

/// Base64 with or without line breaks.
pub(in crate::firmware) fn base64(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut held) = (0_u32, 0);
    for character in text.bytes().filter(|c| !c.is_ascii_whitespace() && *c != b'=') {
        let value = match character {
            b'A'..=b'Z' => character - b'A',
            b'a'..=b'z' => character - b'a' + 26,
            b'0'..=b'9' => character - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6) | u32::from(value);
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held) as u8);
        }
    }
    Some(bytes)
}
