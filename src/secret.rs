//! Passwords, tokens and private keys in memory: never printed, wiped when dropped.
//!
//! A [`Secret`] has no `Display` and no `Serialize`, and its `Debug` shows nothing, so that it cannot reach a
//! log, an event, an error, the store or another process's arguments by accident. The one way out is
//! [`Secret::reveal`], which a reader can search for.

use std::fmt;

use serde::{Deserialize, Deserializer};
use zeroize::Zeroizing;

/// A text that must not be shown.
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes the text in.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The text, for the one place that sends it to its owner.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Whether `other` is the same text; takes the same time wherever they differ.
    pub fn matches(&self, other: &str) -> bool {
        // Hashing first hides the length as well.
        let (a, b) =
            (crate::digest::Sha256::of(self.0.as_bytes()), crate::digest::Sha256::of(other.as_bytes()));
        let different = a.as_bytes().iter().zip(b.as_bytes()).fold(0_u8, |acc, (x, y)| acc | (x ^ y));
        std::hint::black_box(different) == 0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // What stands in the secret's place may be the secret: the deserializer's own complaint would show it.
        String::deserialize(deserializer)
            .map(Self::new)
            .map_err(|_| serde::de::Error::custom("a password is text between quotes"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_never_shown_and_compares_whole() {
        let secret = Secret::new("hunter2".into());
        assert!(!format!("{secret:?}").contains("hunter2"));
        assert!(secret.matches("hunter2"));
        assert!(!serde_json::from_str::<Secret>("271828").unwrap_err().to_string().contains("271828"));
        assert!(!secret.matches("hunter") && !secret.matches("hunter3") && !secret.matches(""));
    }
}
