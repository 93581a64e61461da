//! The order of versions: each format has its own, and a version that is not of its format has none.
//!
//! "1.10" after "1.9", "HPDA" after "HPD9", "A12" before "1.2.0": a wrong order flashes the wrong way round. So a
//! version that does not parse is never given a place by guessing: [`VersionFormat::compare`] answers none, and
//! whoever plans says so in words.

mod dotted;
mod mixed;
mod package;
mod vendor;

use std::cmp::Ordering;
use std::fmt;

use serde::{Deserialize, Serialize};

pub use mixed::compare;

/// How the versions of a component are written. The names of the first seven are those of LVFS metadata
/// (`LVFS::VersionFormat`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VersionFormat {
    /// Nothing is known: digits count as numbers, the rest as text. Every two versions have an order.
    #[default]
    Mixed,
    /// Text, in the order of its bytes.
    Plain,
    /// One number, decimal or hexadecimal with `0x`.
    Number,
    /// One hexadecimal number, `0x` allowed.
    Hex,
    /// `A.B`.
    Pair,
    /// `A.B.C`.
    Triplet,
    /// `A.B.C.D`.
    Quad,
    /// Semantic Versioning 2.0.0, section 11.
    Semver,
    /// HPE: `2.72`, `1.34(B)`, `U30 v2.72 (09/29/2022)`, `HPDA`. Two families (U30, U32; HPD, HPG) have no order.
    Hpe,
    /// Dell: `2.10.2`, and before those `A07`.
    Dell,
    /// `[epoch:]version[-release]` as rpm orders it.
    Rpm,
    /// `[epoch:]version[-revision]` as Debian Policy, section 5.6.12, orders it.
    Deb,
}

impl VersionFormat {
    /// The order of two versions; none when one of them is not of this format, or they cannot be compared.
    pub fn compare(self, a: &str, b: &str) -> Option<Ordering> {
        let (a, b) = (a.trim(), b.trim());
        match self {
            Self::Mixed => Some(mixed::compare(a, b)),
            Self::Plain => Some(a.cmp(b)),
            Self::Number => Some(dotted::number(a)?.cmp(&dotted::number(b)?)),
            Self::Hex => Some(dotted::hex(a)?.cmp(&dotted::hex(b)?)),
            Self::Pair => Some(dotted::sections::<2>(a)?.cmp(&dotted::sections::<2>(b)?)),
            Self::Triplet => Some(dotted::sections::<3>(a)?.cmp(&dotted::sections::<3>(b)?)),
            Self::Quad => Some(dotted::sections::<4>(a)?.cmp(&dotted::sections::<4>(b)?)),
            Self::Semver => {
                let (a, b) = (semver::Version::parse(a).ok()?, semver::Version::parse(b).ok()?);
                Some(a.cmp_precedence(&b))
            }
            Self::Hpe => vendor::hpe(a)?.compare(&vendor::hpe(b)?),
            Self::Dell => Some(vendor::dell(a)?.cmp(&vendor::dell(b)?)),
            Self::Rpm => Some(package::rpm(a, b)),
            Self::Deb => Some(package::deb(a, b)),
        }
    }

    /// Whether a version is of this format.
    pub fn accepts(self, version: &str) -> bool {
        !version.trim().is_empty() && self.compare(version, version).is_some()
    }
}

impl fmt::Display for VersionFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mixed => "mixed",
            Self::Plain => "plain",
            Self::Number => "number",
            Self::Hex => "hex",
            Self::Pair => "pair",
            Self::Triplet => "triplet",
            Self::Quad => "quad",
            Self::Semver => "semver",
            Self::Hpe => "hpe",
            Self::Dell => "dell",
            Self::Rpm => "rpm",
            Self::Deb => "deb",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: [VersionFormat; 12] = [
        VersionFormat::Mixed,
        VersionFormat::Plain,
        VersionFormat::Number,
        VersionFormat::Hex,
        VersionFormat::Pair,
        VersionFormat::Triplet,
        VersionFormat::Quad,
        VersionFormat::Semver,
        VersionFormat::Hpe,
        VersionFormat::Dell,
        VersionFormat::Rpm,
        VersionFormat::Deb,
    ];

    /// Each row: ascending versions of one format.
    const ASCENDING: [(VersionFormat, &[&str]); 15] = [
        (VersionFormat::Mixed, &["1.9-rc1", "1.9.1", "1.10", "2"]),
        (VersionFormat::Plain, &["A", "AB", "b"]),
        (VersionFormat::Number, &["7", "0x0a", "11", "100000000000000000000"]),
        (VersionFormat::Hex, &["9", "0x0A", "ff", "100"]),
        (VersionFormat::Pair, &["1.9", "1.10", "2.0"]),
        (VersionFormat::Triplet, &["0.9.99", "1.2.3", "1.2.10", "1.10.0"]),
        (VersionFormat::Quad, &["1.2.3.4", "1.2.3.10", "18446744073709551616.0.0.0"]),
        (VersionFormat::Semver, &["1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-beta", "1.0.0", "1.0.1", "1.10.0"]),
        (VersionFormat::Hpe, &["1.34", "1.34(A)", "1.34(B)", "1.40", "2.72"]),
        (VersionFormat::Hpe, &["U30 v2.72 (09/29/2021)", "U30 v2.72 (09/29/2022)", "U30 v2.80 (01/01/2021)"]),
        (VersionFormat::Hpe, &["HPD2", "HPD9", "HPDA", "HPDB"]),
        (VersionFormat::Hpe, &["2.72_08-20-2020", "2.72_09-01-2020", "2.74"]),
        (VersionFormat::Dell, &["A01", "A12", "1.2.9", "1.2.10", "2.0.0"]),
        (VersionFormat::Rpm, &["1.0~rc1-1", "1.0-1", "1.0^git1-1", "1.0.1-1", "1.10-1", "1:0.1-1"]),
        (VersionFormat::Deb, &["1.0~rc1-1", "1.0-1", "1.0-1+b1", "1.0.1-1", "1.10-1", "1:0.1-1"]),
    ];

    #[test]
    fn each_format_has_its_order() {
        for (format, versions) in ASCENDING {
            for (i, a) in versions.iter().enumerate() {
                for (j, b) in versions.iter().enumerate() {
                    assert_eq!(format.compare(a, b), Some(i.cmp(&j)), "{format}: {a} and {b}");
                }
            }
        }
    }

    #[test]
    fn what_is_not_of_the_format_has_no_place() {
        for (format, a, b) in [
            (VersionFormat::Triplet, "1.2.3", "1.2"),
            (VersionFormat::Triplet, "1.2.3", "1.2.x"),
            (VersionFormat::Pair, "1.2", "1.2.3"),
            (VersionFormat::Number, "12", "1.2"),
            (VersionFormat::Hex, "0x12", "xyz"),
            (VersionFormat::Semver, "1.2.3", "1.2"),
            (VersionFormat::Hpe, "U30 v2.72", "U32 v2.72"),
            (VersionFormat::Hpe, "HPD2", "HPG2"),
            (VersionFormat::Hpe, "HPD2", "2.72"),
            (VersionFormat::Dell, "A01", "current"),
        ] {
            assert_eq!(format.compare(a, b), None, "{format}: {a} and {b}");
        }
        for (format, same) in [
            (VersionFormat::Pair, ("1.02", "1.2")),
            (VersionFormat::Number, ("0x10", "16")),
            (VersionFormat::Hex, ("0x00ff", "FF")),
            (VersionFormat::Hpe, ("U30 v2.72 (09/29/2022)", "I.U30 2.72 (09/29/2022)")),
            (VersionFormat::Semver, ("1.0.0+one", "1.0.0+two")),
        ] {
            assert_eq!(format.compare(same.0, same.1), Some(Ordering::Equal), "{format}: {same:?}");
        }
    }

    #[test]
    fn a_format_is_written_in_a_manifest_as_it_is_shown() {
        for format in ALL {
            assert_eq!(serde_json::to_string(&format).unwrap(), format!("\"{format}\""));
        }
    }

    /// A version of any format, or nearly.
    fn version() -> impl Strategy<Value = String> {
        prop_oneof![
            "[0-2]{1,2}(\\.[0-2]{1,2}){0,3}",
            "[0-9a-c.~^+:-]{0,6}",
            "U3[0-1] v[0-2]\\.[0-2]( \\(0[1-2]/0[1-2]/202[0-1]\\))?",
            "HP[DG][0-9A-B]",
            "A0[0-3]",
            "1\\.[0-1]\\([A-B]\\)",
            "1\\.0\\.0(-[a-b0-1]{1,2})?",
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn every_order_is_total_on_what_it_compares(a in version(), b in version(), c in version()) {
            for format in ALL {
                let compare = |a: &str, b: &str| format.compare(a, b);
                prop_assert_eq!(compare(&a, &b), compare(&b, &a).map(Ordering::reverse), "{}", format);
                if format.accepts(&a) {
                    prop_assert_eq!(compare(&a, &a), Some(Ordering::Equal), "{}", format);
                }
                if let (Some(ab), Some(bc)) = (compare(&a, &b), compare(&b, &c)) && ab.is_le() && bc.is_le() {
                    let ac = compare(&a, &c);
                    prop_assert!(ac.is_some_and(Ordering::is_le), "{format}: {a} <= {b} <= {c}, but {ac:?}");
                }
            }
        }
    }
}
