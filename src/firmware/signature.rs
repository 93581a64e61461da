//! Who vouches for a baseline: a detached minisign signature over its manifest, by a key that the operator trusts.
//!
//! Both forms of minisign (<https://jedisct1.github.io/minisign/>) are read: prehashed (`ED`) and legacy (`Ed`). The
//! manifest names every payload by its SHA-256, so the signature covers all of them. Nothing is ever signed here: private
//! keys stay with whoever makes a baseline. It must never take a baseline for signed that `minisign -V` would refuse.

use std::fmt;

use minisign_verify::{PublicKey, Signature};
use serde::{Deserialize, Serialize};

use super::formats::base64;

/// The signature's file name, beside the manifest.
pub const SIGNATURE: &str = "baseline.toml.minisig";

/// Most bytes of a signature's file: two comments of 8 KiB, as minisign writes at most.
pub const SIGNATURE_BYTES_MAX: u64 = 20 * 1024;

const UNTRUSTED: &str = "untrusted comment: ";
const TRUSTED: &str = "trusted comment: ";
/// Algorithm, key number, Ed25519 signature.
const SIGNATURE_BYTES: usize = 2 + 8 + 64;
/// Algorithm, key number, Ed25519 key.
const KEY_BYTES: usize = 2 + 8 + 32;

/// What the operator says of a baseline that nobody trusted has signed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unsigned {
    /// It is refused.
    #[default]
    Refuse,
    /// It is used all the same, and shown as what it is wherever it is shown.
    Accept,
}

/// Why a baseline may be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum Standing {
    /// It is part of the program.
    BuiltIn,
    /// A key that the operator trusts has signed it.
    Signed {
        /// The key's number, as minisign shows it.
        key: String,
        /// The trusted comment, which is signed too.
        comment: String,
    },
    /// Nobody who is trusted has signed it; the operator has said to use it all the same.
    Unsigned {
        /// What is wrong with its signature.
        why: String,
    },
}

impl Standing {
    /// What has to be told wherever the baseline is used; none when it is signed.
    pub fn warning(&self) -> Option<String> {
        matches!(self, Self::Unsigned { .. }).then(|| self.to_string())
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BuiltIn => f.write_str("part of the program"),
            Self::Signed { key, comment } => write!(f, "signed by {key}: {comment}"),
            Self::Unsigned { why } => write!(f, "NOT SIGNED, accepted by the operator: {why}"),
        }
    }
}

/// Why nobody vouches for a baseline.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Distrust {
    /// There is no signature.
    #[error("it has no signature")]
    Missing,
    /// The signature's file is no signature.
    #[error("{SIGNATURE}:{line}: {what}")]
    Malformed {
        /// The line of the signature's file.
        line: usize,
        /// What is wrong there.
        what: &'static str,
    },
    /// Another key has signed it.
    #[error("it is signed by key {key}, which is none of the {anchors} trusted ones")]
    UnknownKey {
        /// The key's number.
        key: String,
        /// How many keys are trusted.
        anchors: usize,
    },
    /// The manifest or the signature is not what was signed.
    #[error("its signature by key {key} is wrong: manifest or signature were changed after signing")]
    Wrong {
        /// The key's number.
        key: String,
    },
}

impl Distrust {
    /// What to do about it.
    pub fn hint(&self) -> String {
        let otherwise = "to use it all the same, say so for this very baseline: --unsigned-ok at its import, or in the \
                         fleet file [options] unsigned = \"accept\"";
        match self {
            Self::Wrong { .. } => format!("get it again from its maker; {otherwise}"),
            Self::Malformed { .. } => format!("sign it again with minisign -Sm baseline.toml; {otherwise}"),
            Self::Missing => format!(
                "have its maker sign it with minisign -Sm baseline.toml, and trust their key with carena baseline \
                 trust add minisign.pub; {otherwise}"
            ),
            Self::UnknownKey { .. } => format!(
                "if that key is its maker's, trust it with carena baseline trust add minisign.pub; {otherwise}"
            ),
        }
    }
}

/// A text that is no public key of minisign's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is no public key of minisign: a file minisign.pub, or its second line, which begins with RW")]
pub struct NotAKey;

/// A key whose signatures count.
#[derive(Clone)]
pub struct Anchor {
    key: PublicKey,
    number: String,
    comment: String,
    text: String,
}

impl Anchor {
    /// Reads a `minisign.pub`, or the key alone.
    ///
    /// # Errors
    /// [`NotAKey`].
    pub fn parse(text: &str) -> Result<Self, NotAKey> {
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let (comment, key) = match (lines.next(), lines.next()) {
            (Some(first), key) if first.starts_with(UNTRUSTED) => (first, key.ok_or(NotAKey)?),
            (Some(key), None) => ("", key),
            _ => return Err(NotAKey),
        };
        if lines.next().is_some() {
            return Err(NotAKey);
        }
        let bytes = base64(key).filter(|bytes| bytes.len() == KEY_BYTES).ok_or(NotAKey)?;
        let public = PublicKey::from_base64(key).map_err(|_| NotAKey)?;
        Ok(Self {
            key: public,
            number: number(&bytes).ok_or(NotAKey)?,
            comment: printable(comment.trim_start_matches(UNTRUSTED)),
            text: key.to_owned(),
        })
    }

    /// Its number, as minisign shows it: 16 hexadecimal digits.
    pub fn number(&self) -> &str {
        &self.number
    }

    /// What its file says of it. Nobody vouches for that.
    pub fn comment(&self) -> &str {
        &self.comment
    }

    /// The key, as minisign writes it.
    pub fn key(&self) -> &str {
        &self.text
    }
}

impl fmt::Debug for Anchor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "key {}", self.number)
    }
}

/// Who signed `manifest`, if one of `anchors` did.
///
/// # Errors
/// [`Distrust`].
pub fn judge(anchors: &[Anchor], manifest: &[u8], signature: Option<&[u8]>) -> Result<Standing, Distrust> {
    let (key, signature) = read(signature.ok_or(Distrust::Missing)?)?;
    let Some(anchor) = anchors.iter().find(|anchor| anchor.number == key) else {
        return Err(Distrust::UnknownKey { key, anchors: anchors.len() });
    };
    match anchor.key.verify(manifest, &signature, true) {
        Ok(()) => Ok(Standing::Signed { key, comment: printable(signature.trusted_comment()) }),
        Err(_) => Err(Distrust::Wrong { key }),
    }
}

/// A signature, and the number of the key that made it.
fn read(bytes: &[u8]) -> Result<(String, Signature), Distrust> {
    let malformed = |line, what| Distrust::Malformed { line, what };
    let text = std::str::from_utf8(bytes).map_err(|_| malformed(1, "this is no text"))?;
    let lines: Vec<&str> = text.lines().collect();
    let line = |number: usize| lines.get(number - 1).copied().unwrap_or_default();
    if !line(1).starts_with(UNTRUSTED) {
        return Err(malformed(1, "a signature of minisign begins with \"untrusted comment: \""));
    }
    let decoded = base64(line(2)).filter(|bytes| bytes.len() == SIGNATURE_BYTES);
    let decoded = decoded.ok_or_else(|| malformed(2, "this is no signature in base64"))?;
    if !line(3).starts_with(TRUSTED) {
        return Err(malformed(3, "here \"trusted comment: \" is missing"));
    }
    if lines.len() > 4 {
        return Err(malformed(5, "nothing may follow the fourth line"));
    }
    let signature = Signature::decode(text).map_err(|error| match error {
        minisign_verify::Error::UnsupportedAlgorithm => malformed(2, "its algorithm is not Ed25519"),
        _ => malformed(4, "this is no signature in base64"),
    })?;
    let key = number(&decoded).ok_or_else(|| malformed(2, "this is no signature in base64"))?;
    Ok((key, signature))
}

/// A key's number stands after the algorithm, least significant byte first.
fn number(bytes: &[u8]) -> Option<String> {
    let number = <[u8; 8]>::try_from(bytes.get(2..10)?).ok()?;
    Some(format!("{:016X}", u64::from_le_bytes(number)))
}

/// A stranger's text must not steer a terminal; the default comment has tabs in it.
fn printable(text: &str) -> String {
    text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    // A key pair of minisign's that was made for this test and thrown away; what it signed is "test\n".
    const KEY: &str = "\
        untrusted comment: minisign public key 51A37B5A3D09EFD7\n\
        RWTX7wk9WnujUTl4hBXqfIBkFM1Hg3APt967aNjufhmzz8MxV0orQI5i\n\
        ";
    const PREHASHED: &str = "\
        untrusted comment: signature from minisign secret key\n\
        RUTX7wk9WnujUXZmh+GDpFIZRqE0t3vcQMC5jGbZX12PjB+aZfh22xqrtCY/Z4daWnnHlVhMRrDtVFgZ8AuPRwN2BzTGUB7//wI=\n\
        trusted comment: carena 1\n\
        9Y39Y9YTVDONN0mAAFnNgTZIcmv1sxdikO2CI+8vsiAaRgxGjdo8fllJcAXDGPOwTO+4hwVtdn5JRjsnI1tkCQ==\n\
        ";
    const LEGACY: &str = "\
        untrusted comment: signature from minisign secret key\n\
        RWTX7wk9WnujUdgXbPT6VvBCG+62RWJFJnmOJtIydzTaY1eVu6SKQEwNZVx8q8278+aut4JIpNwqnh3MBSyDIRmNhdHQJTME7QY=\n\
        trusted comment: carena 1\n\
        Rr7r9BjU00/D++a+oC5r4WFg7p1x1XAkk7SL9H6Lt6RLxvWBtmXNSOxziaPVVtE/AHi3GPLvRiJMbziaPIdIBA==\n\
        ";

    fn anchors() -> Vec<Anchor> {
        vec![Anchor::parse(KEY).unwrap()]
    }

    fn say(manifest: &str, signature: &str) -> Result<Standing, Distrust> {
        judge(&anchors(), manifest.as_bytes(), Some(signature.as_bytes()))
    }

    #[test]
    fn both_forms_are_verified_and_the_trusted_comment_is_told() {
        for signature in [PREHASHED, LEGACY] {
            let Ok(Standing::Signed { key, comment }) = say("test\n", signature) else { panic!("refused") };
            assert_eq!((key.as_str(), comment.as_str()), ("51A37B5A3D09EFD7", "carena 1"));
            assert_eq!(say("tesT\n", signature), Err(Distrust::Wrong { key: key.clone() }));
            let other = signature.replace("carena 1", "carena 2");
            assert_eq!(say("test\n", &other), Err(Distrust::Wrong { key }));
        }
        let none = judge(&[], b"test\n", Some(PREHASHED.as_bytes())).unwrap_err();
        assert!(none.to_string().contains("none of the 0 trusted") && none.hint().contains("trust add"));
        assert_eq!(judge(&anchors(), b"test\n", None), Err(Distrust::Missing));
    }

    #[test]
    fn what_is_no_signature_is_refused_with_its_line() {
        let lines: Vec<&str> = PREHASHED.lines().collect();
        for (line, text) in [(1, "comment"), (2, "RUQ"), (2, "!"), (3, "comment: x"), (4, "x"), (4, "")] {
            let mut changed = lines.clone();
            changed[line - 1] = text;
            let why = say("test\n", &changed.join("\n")).unwrap_err();
            assert!(why.to_string().starts_with(&format!("{SIGNATURE}:{line}: ")), "{why}");
        }
        assert!(say("test\n", &format!("{PREHASHED}more\n")).unwrap_err().to_string().contains(":5:"));
        assert!(say("test\n", "").is_err());
    }

    #[test]
    fn keys_are_read_as_minisign_writes_them() {
        let alone = KEY.lines().nth(1).unwrap();
        for text in [KEY, alone, &format!("\n{alone}\n")] {
            let anchor = Anchor::parse(text).unwrap();
            assert_eq!((anchor.number(), anchor.key()), ("51A37B5A3D09EFD7", alone));
        }
        for wrong in ["", "RW", alone.get(1..).unwrap(), &format!("{KEY}{KEY}"), PREHASHED, LEGACY] {
            assert_eq!(Anchor::parse(wrong).unwrap_err(), NotAKey, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn no_signature_is_too_strange(text in "(untrusted comment: )?[ -~\n]{0,200}", bytes: Vec<u8>) {
            prop_assert!(say("test\n", &text).is_err());
            prop_assert!(judge(&anchors(), b"test\n", Some(&bytes)).is_err());
            let _ = Anchor::parse(&text);
        }
    }
}
