//! The order of versions whose format is not known: digits count as numbers, the rest as text.

use std::cmp::Ordering;

/// Compares two versions part by part; "1.10" is after "1.9", "2.0" equals "2.00".
pub fn compare(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (parts(a), parts(b));
    loop {
        let order = match (a.next(), b.next()) {
            (None, None) => return Ordering::Equal,
            (None, Some(_)) => return Ordering::Less,
            (Some(_), None) => return Ordering::Greater,
            (Some(Part::Number(a)), Some(Part::Number(b))) => a.len().cmp(&b.len()).then_with(|| a.cmp(b)),
            (Some(Part::Text(a)), Some(Part::Text(b))) => a.cmp(b),
            (Some(Part::Number(_)), Some(Part::Text(_))) => Ordering::Greater,
            (Some(Part::Text(_)), Some(Part::Number(_))) => Ordering::Less,
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

enum Part<'a> {
    /// Digits without leading zeros.
    Number(&'a str),
    Text(&'a str),
}

fn parts(version: &str) -> impl Iterator<Item = Part<'_>> {
    let mut rest = version.trim();
    std::iter::from_fn(move || {
        rest = rest.trim_start_matches(|c: char| !c.is_ascii_alphanumeric());
        let digits = rest.starts_with(|c: char| c.is_ascii_digit());
        let end = rest.find(|c: char| c.is_ascii_digit() != digits || !c.is_ascii_alphanumeric());
        let (part, after) = rest.split_at(end.unwrap_or(rest.len()));
        rest = after;
        match (part, digits) {
            ("", _) => None,
            (part, true) => Some(Part::Number(part.trim_start_matches('0'))),
            (part, false) => Some(Part::Text(part)),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_count_as_numbers() {
        for (less, more) in
            [("1.9", "1.10"), ("1.9", "1.9.1"), ("1.9-rc1", "1.10"), ("U30", "U32"), ("2.0a", "2.0b")]
        {
            assert_eq!(compare(less, more), Ordering::Less, "{less} {more}");
        }
        assert_eq!(compare("2.0", "02.00"), Ordering::Equal);
    }

    proptest! {
        #[test]
        fn the_order_is_total(a in "[0-9a-c.]{0,6}", b in "[0-9a-c.]{0,6}", c in "[0-9a-c.]{0,6}") {
            prop_assert_eq!(compare(&a, &b), compare(&b, &a).reverse());
            prop_assert_eq!(compare(&a, &a), Ordering::Equal);
            if compare(&a, &b).is_le() && compare(&b, &c).is_le() {
                prop_assert!(compare(&a, &c).is_le());
            }
        }
    }
}
