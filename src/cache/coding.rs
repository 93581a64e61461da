//! Which of a payload's representations a client gets, and what its conditions mean (RFC 9110, sections 8.8.3, 12.5.3, 13).
//!
//! A packed payload has two: its content, and its zstd frames as they are stored (RFC 8878, RFC 9659: each frame's window
//! is a mebibyte). They have different entity tags, and a range is of the one that was chosen.

use axum::http::{HeaderMap, HeaderName, header};

/// How the bytes of a representation are coded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coding {
    /// Not at all.
    Identity,
    /// Frames of zstd.
    Zstd,
}

/// What the client prefers; none when it takes neither. Without the header it gets the content as it is.
pub fn preferred(headers: &HeaderMap, packed: bool) -> Option<Coding> {
    let lines = headers.get_all(header::ACCEPT_ENCODING);
    let lines: Vec<_> = lines.iter().filter_map(|line| line.to_str().ok()).collect();
    let (mut zstd, mut identity, mut other) = (None, None, None);
    for member in lines.iter().flat_map(|line| line.split(',')) {
        let (name, weight) = member.split_once(';').unwrap_or((member, ""));
        let weight = weigh(weight);
        let name = name.trim();
        if name.eq_ignore_ascii_case("zstd") {
            zstd = Some(weight);
        } else if name.eq_ignore_ascii_case("identity") {
            identity = Some(weight);
        } else if name == "*" {
            other = Some(weight);
        }
    }
    // `*` stands for each that is not named, identity too. Without it, identity is acceptable, but whoever names another
    // coding prefers that.
    let (zstd, identity) = (zstd.or(other).unwrap_or(0), identity.or(other));
    let refused = identity == Some(0);
    match (packed && zstd > 0, refused) {
        (true, _) if zstd >= identity.unwrap_or(0) => Some(Coding::Zstd),
        (_, false) => Some(Coding::Identity),
        (true, true) => Some(Coding::Zstd),
        (false, true) => None,
    }
}

/// `q=0.5` in thousandths; what is no weight counts as the most.
fn weigh(parameters: &str) -> u16 {
    let value = parameters.split(';').find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        name.trim().eq_ignore_ascii_case("q").then(|| value.trim().parse::<f32>().ok())?
    });
    // At most 1000: no float of this range is lost.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
    value.map_or(1000, |value| (value.clamp(0.0, 1.0) * 1000.0) as u16)
}

/// Whether the client has this representation already (section 13.1.2: weak comparison).
pub fn is_known(headers: &HeaderMap, tag: &str) -> bool {
    any(headers, header::IF_NONE_MATCH, |given| given == "*" || given.trim_start_matches("W/") == tag)
}

/// Whether the client wants another representation, or none (section 13.1.1: strong comparison).
pub fn is_another(headers: &HeaderMap, tag: &str) -> bool {
    headers.contains_key(header::IF_MATCH)
        && !any(headers, header::IF_MATCH, |given| given == "*" || given == tag)
}

/// Whether a range is of this representation (section 13.1.5: strong comparison; we give no dates).
pub fn is_range_of(headers: &HeaderMap, tag: &str) -> bool {
    headers.get(header::IF_RANGE).is_none_or(|given| given.to_str().is_ok_and(|given| given.trim() == tag))
}

/// No entity tag of ours has a comma.
fn any(headers: &HeaderMap, name: HeaderName, fits: impl Fn(&str) -> bool) -> bool {
    let lines = headers.get_all(name);
    lines
        .iter()
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','))
        .any(|tag| fits(tag.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, value.parse().unwrap())])
    }

    #[test]
    fn the_coding_is_the_one_the_client_prefers() {
        use Coding::{Identity, Zstd};
        assert_eq!(preferred(&HeaderMap::new(), true), Some(Identity));
        for (value, packed, plain) in [
            ("zstd", Some(Zstd), Some(Identity)),
            ("gzip, ZSTD;q=0.5", Some(Zstd), Some(Identity)),
            ("deflate, gzip, br, zstd", Some(Zstd), Some(Identity)),
            ("zstd;q=0", Some(Identity), Some(Identity)),
            ("zstd;q=0.2, identity;q=0.8", Some(Identity), Some(Identity)),
            ("zstd;q=0.2, *;q=0.8", Some(Identity), Some(Identity)),
            ("zstd;q=0.8, *;q=0.2", Some(Zstd), Some(Identity)),
            ("*", Some(Zstd), Some(Identity)),
            ("*;q=0", None, None),
            ("zstd, *;q=0", Some(Zstd), None),
            ("identity;q=0, zstd;q=0.001", Some(Zstd), None),
            ("gzip", Some(Identity), Some(Identity)),
            ("", Some(Identity), Some(Identity)),
            ("identity", Some(Identity), Some(Identity)),
        ] {
            let headers = headers(header::ACCEPT_ENCODING, value);
            assert_eq!(preferred(&headers, true), packed, "{value}");
            assert_eq!(preferred(&headers, false), plain, "{value}");
        }
    }

    #[test]
    fn conditions_compare_as_the_standard_says() {
        for (value, known, another) in [
            ("\"a\"", true, false),
            ("\"b\", \"a\"", true, false),
            ("W/\"a\"", true, true),
            ("\"b\"", false, true),
            ("*", true, false),
        ] {
            assert_eq!(is_known(&headers(header::IF_NONE_MATCH, value), "\"a\""), known, "{value}");
            assert_eq!(is_another(&headers(header::IF_MATCH, value), "\"a\""), another, "{value}");
        }
        assert!(is_range_of(&HeaderMap::new(), "\"a\""));
        for (value, same) in [("\"a\"", true), ("W/\"a\"", false), ("Sat, 29 Oct 1994 19:43:31 GMT", false)] {
            assert_eq!(is_range_of(&headers(header::IF_RANGE, value), "\"a\""), same, "{value}");
        }
    }
}
