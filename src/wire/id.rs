//! Short names that travel: ids of deployments and components, names that a node gave something.
//!
//! Bounded and of a harmless alphabet, so that they can stand in a path, a rule's comment, a URL or a log line
//! without quoting. Longer or other text fails at decoding, without an allocation.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The text is empty, too long or has a character outside `A-Z a-z 0-9 . _ -`, or begins with `.` or `-`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an id has 1 to {max} characters of A-Z a-z 0-9 . _ - and begins with a letter or digit")]
pub struct NotAnId {
    /// The most characters this kind of id may have.
    pub max: usize,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $max:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(heapless::String<$max>);

        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NotAnId;

            fn from_str(text: &str) -> Result<Self, NotAnId> {
                let harmless = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
                if !text.starts_with(|c: char| c.is_ascii_alphanumeric()) || !text.chars().all(harmless) {
                    return Err(NotAnId { max: $max });
                }
                heapless::String::try_from(text).map(Self).map_err(|_| NotAnId { max: $max })
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

id!(
    /// A deployment: a UUID (version 7), so that it is unique among all boxes.
    DeploymentId,
    36
);
id!(
    /// A component of a baseline.
    ComponentId,
    64
);
id!(
    /// A baseline.
    BaselineId,
    64
);
id!(
    /// What something is called on a node: a firewall's table, chain or zone, a program.
    NodeName,
    64
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_could_need_quoting_are_refused() {
        for bad in ["", " a", "a b", "a/b", "-a", ".a", "a'b", "a\n", "ñ", &"a".repeat(65)] {
            assert!(bad.parse::<ComponentId>().is_err(), "{bad:?}");
        }
        assert_eq!("bios-2.14_a".parse::<ComponentId>().unwrap().as_str(), "bios-2.14_a");
        assert!(serde_json::from_str::<ComponentId>("\"a b\"").is_err());
    }
}
