//! SHA-256, the one digest of the product: payload identity, certificate fingerprints, verification.
//!
//! [`Verified`] can be made in this module only, by hashing; what must not be trusted unhashed takes it as its
//! argument type. This module must never offer a way to make one without reading the bytes.

use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A SHA-256 digest, written as 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sha256([u8; 32]);

impl Sha256 {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        let mut hasher = Hasher::new();
        hasher.update(bytes);
        hasher.finish()
    }

    /// The digest of everything `reader` yields, and how many bytes that was. Memory does not grow with it.
    ///
    /// # Errors
    /// Those of the reader.
    pub fn of_reader(mut reader: impl Read) -> io::Result<(Self, u64)> {
        let mut hasher = Hasher::new();
        let mut chunk = vec![0_u8; 128 * 1024];
        let mut total = 0;
        loop {
            let n = reader.read(&mut chunk)?;
            if n == 0 {
                return Ok((hasher.finish(), total));
            }
            hasher.update(chunk.get(..n).unwrap_or_default());
            total += n as u64;
        }
    }

    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<[u8; 32]> for Sha256 {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not 64 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a SHA-256 is 64 hexadecimal digits")]
pub struct NotSha256;

impl FromStr for Sha256 {
    type Err = NotSha256;

    fn from_str(text: &str) -> Result<Self, NotSha256> {
        if text.len() != 64 || !text.is_ascii() {
            return Err(NotSha256);
        }
        let mut bytes = [0_u8; 32];
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| NotSha256)?;
            if pair.starts_with('+') {
                return Err(NotSha256);
            }
            *byte = u8::from_str_radix(pair, 16).map_err(|_| NotSha256)?;
        }
        Ok(Self(bytes))
    }
}

impl Serialize for Sha256 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Sha256 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// SHA-256 over bytes as they come.
pub struct Hasher(ring::digest::Context);

impl Hasher {
    /// Nothing hashed yet.
    pub fn new() -> Self {
        Self(ring::digest::Context::new(&ring::digest::SHA256))
    }

    /// Takes the next bytes in.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of all bytes taken in.
    pub fn finish(self) -> Sha256 {
        let mut bytes = [0_u8; 32];
        for (to, from) in bytes.iter_mut().zip(self.0.finish().as_ref()) {
            *to = *from;
        }
        Sha256(bytes)
    }
}

impl Default for Hasher {
    fn default() -> Self {
        Self::new()
    }
}

/// A value whose bytes were hashed and found to be what was announced.
#[derive(Debug)]
pub struct Verified<T> {
    value: T,
    digest: Sha256,
}

/// The bytes are not the announced ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("SHA-256 is {found}, expected {expected}")]
pub struct Mismatch {
    /// What was announced.
    pub expected: Sha256,
    /// What the bytes hash to.
    pub found: Sha256,
}

impl<T> Verified<T> {
    /// Vouches for `value` whose bytes went through `hasher`.
    ///
    /// # Errors
    /// [`Mismatch`] when they are not the `expected` ones.
    pub fn check(value: T, hasher: Hasher, expected: Sha256) -> Result<Self, Mismatch> {
        let found = hasher.finish();
        if found == expected { Ok(Self { value, digest: found }) } else { Err(Mismatch { expected, found }) }
    }

    /// The vouched-for value.
    pub fn get(&self) -> &T {
        &self.value
    }

    /// Its digest.
    pub fn digest(&self) -> Sha256 {
        self.digest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_is_the_standards_one_and_round_trips() {
        // FIPS 180-4, the message "abc".
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(Sha256::of(b"abc").to_string(), abc);
        assert_eq!(abc.parse::<Sha256>().unwrap(), Sha256::of(b"abc"));
        assert_eq!(Sha256::of_reader(&b"abc"[..]).unwrap(), (Sha256::of(b"abc"), 3));
    }

    #[test]
    fn malformed_digests_are_refused() {
        for bad in ["", "ba78", &"g".repeat(64), &"+1".repeat(32), &"é".repeat(32)] {
            assert_eq!(bad.parse::<Sha256>(), Err(NotSha256), "{bad}");
        }
    }

    #[test]
    fn only_matching_bytes_are_vouched_for() {
        let hash = |bytes: &[u8]| {
            let mut hasher = Hasher::new();
            hasher.update(bytes);
            hasher
        };
        assert!(Verified::check((), hash(b"abc"), Sha256::of(b"abc")).is_ok());
        assert!(Verified::check((), hash(b"abd"), Sha256::of(b"abc")).is_err());
    }
}
