//! What the store must not hold in the clear, sealed: AES-256-GCM, the key outside the database.
//!
//! On a box with a disk the key is a file of mode 0600 beside the database, so a copy of the database alone opens
//! nothing; whoever boots the box may hand another key over. A sealed value is bound to its place: moved to another
//! deployment or node it does not open. It must never say why a value does not open.

use std::io;
use std::path::Path;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom as _, SystemRandom};
use zeroize::Zeroizing;

/// The key's file in the state directory.
pub const KEY_FILE: &str = "vault.key";

/// Bytes of a key.
pub const KEY_BYTES: usize = 32;

/// A value that was not sealed by this key for this place, or a system without random numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a sealed value does not open with this box's key")]
pub struct Unopened;

/// Seals and opens.
pub struct Vault(LessSafeKey);

impl Vault {
    /// With a key that the caller keeps.
    ///
    /// # Errors
    /// [`Unopened`] never, with a key of this length.
    pub fn new(key: &[u8; KEY_BYTES]) -> Result<Self, Unopened> {
        UnboundKey::new(&AES_256_GCM, key).map(LessSafeKey::new).map(Self).map_err(|_| Unopened)
    }

    /// With the key in `directory`, which is made at the first time.
    ///
    /// # Errors
    /// Those of the file system; a key file of another length is refused, not replaced.
    pub fn in_directory(directory: &Path) -> io::Result<Self> {
        let path = directory.join(KEY_FILE);
        let kept = match std::fs::read(&path) {
            Ok(kept) => Zeroizing::new(kept),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let mut fresh = Zeroizing::new(vec![0; KEY_BYTES]);
                SystemRandom::new().fill(&mut fresh).map_err(|_| io::Error::other("no random numbers"))?;
                crate::durable::write(&path, &fresh, 0o600)?;
                fresh
            }
            Err(error) => return Err(error),
        };
        let key = kept.as_slice().try_into().map_err(|_| io::Error::other("it is no key"))?;
        Self::new(key).map_err(io::Error::other)
    }

    /// Seals `plain` for `place`; a fresh nonce is in front.
    ///
    /// # Errors
    /// [`Unopened`] when the system has no random numbers.
    pub fn seal(&self, place: &str, plain: &[u8]) -> Result<Vec<u8>, Unopened> {
        let mut nonce = [0; NONCE_LEN];
        SystemRandom::new().fill(&mut nonce).map_err(|_| Unopened)?;
        let mut text = plain.to_vec();
        let bound = Aad::from(place.as_bytes());
        self.0
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), bound, &mut text)
            .map_err(|_| Unopened)?;
        Ok([&nonce[..], &text].concat())
    }

    /// Opens what was sealed for `place`.
    ///
    /// # Errors
    /// [`Unopened`].
    pub fn open(&self, place: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, Unopened> {
        let (nonce, text) = sealed.split_first_chunk::<NONCE_LEN>().ok_or(Unopened)?;
        let mut text = Zeroizing::new(text.to_vec());
        let bound = Aad::from(place.as_bytes());
        let length = self
            .0
            .open_in_place(Nonce::assume_unique_for_key(*nonce), bound, &mut text)
            .map_err(|_| Unopened)?
            .len();
        text.truncate(length);
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_opens_with_its_key_at_its_place_and_nowhere_else() {
        let directory = tempfile::tempdir().unwrap();
        let vault = Vault::in_directory(directory.path()).unwrap();
        let sealed = vault.seal("x/1", b"secret").unwrap();
        assert!(!sealed.windows(6).any(|window| window == b"secret"));
        assert_eq!(vault.open("x/1", &sealed).unwrap().as_slice(), b"secret");
        assert_eq!(
            Vault::in_directory(directory.path()).unwrap().open("x/1", &sealed).unwrap().as_slice(),
            b"secret"
        );
        assert_eq!(vault.open("x/2", &sealed), Err(Unopened));
        assert_eq!(Vault::new(&[0; KEY_BYTES]).unwrap().open("x/1", &sealed), Err(Unopened));
        for index in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[index] ^= 1;
            assert_eq!(vault.open("x/1", &changed), Err(Unopened));
        }
        assert_eq!(vault.open("x/1", b"short"), Err(Unopened));
        use std::os::unix::fs::PermissionsExt as _;
        let mode = std::fs::metadata(directory.path().join(KEY_FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
