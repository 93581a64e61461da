//! The token: made at every start, shown on the machine's own console, asked of every request but `/healthz`.
//!
//! It lives in memory only. Comparing it takes the same time wherever it differs.

use ring::rand::{SecureRandom as _, SystemRandom};

use crate::secret::Secret;

/// Crockford's base 32: no letter that looks like a digit.
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// Characters of a token, five bits each: 125 bits.
const CHARACTERS: usize = 25;

/// Characters between two dashes, for the person who types it.
const GROUP: usize = 5;

/// The system gave no random numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the system gives no random numbers")]
pub struct NoRandomness;

/// What opens the console and the API.
#[derive(Debug, Clone)]
pub struct Token(Secret);

impl Token {
    /// A new one.
    ///
    /// # Errors
    /// [`NoRandomness`].
    pub fn generate() -> Result<Self, NoRandomness> {
        let mut bytes = zeroize::Zeroizing::new([0_u8; CHARACTERS]);
        SystemRandom::new().fill(bytes.as_mut_slice()).map_err(|_| NoRandomness)?;
        let mut text = String::with_capacity(CHARACTERS + CHARACTERS / GROUP);
        for (index, byte) in bytes.iter().enumerate() {
            if index > 0 && index % GROUP == 0 {
                text.push('-');
            }
            // 256 is a multiple of 32: every character is equally likely.
            text.extend(ALPHABET.get(usize::from(byte % 32)).map(|&letter| char::from(letter)));
        }
        Ok(Self(Secret::new(text)))
    }

    /// For the machine's own console.
    pub fn reveal(&self) -> &str {
        self.0.reveal()
    }

    /// Whether `given` is the token.
    pub fn matches(&self, given: &str) -> bool {
        self.0.matches(given)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_differ_and_are_made_of_groups() {
        let (a, b) = (Token::generate().unwrap(), Token::generate().unwrap());
        assert!(a.matches(a.reveal()) && !a.matches(b.reveal()));
        assert!(a.reveal().split('-').all(|group| group.len() == GROUP));
        assert!(!format!("{a:?}").contains(a.reveal()));
    }
}
