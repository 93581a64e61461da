//! One byte range of a request (RFC 9110, section 14.1.2). Several ranges are answered with the whole.

/// What part is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Everything.
    Whole,
    /// From the first byte up to, without, the second.
    Bytes(u64, u64),
    /// Nothing of what there is: 416.
    Unsatisfiable,
}

/// Reads the `Range` header's value for something of `size` bytes. What is not understood means the whole.
pub fn parse(value: Option<&str>, size: u64) -> Part {
    let Some((first, last)) =
        value.and_then(|value| value.strip_prefix("bytes=")).and_then(|range| range.trim().split_once('-'))
    else {
        return Part::Whole;
    };
    match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), _) if first >= size && (last.is_empty() || last.parse::<u64>().is_ok()) => {
            Part::Unsatisfiable
        }
        (Ok(first), Ok(last)) if last >= first => Part::Bytes(first, last.saturating_add(1).min(size)),
        (Ok(first), Err(_)) if last.is_empty() => Part::Bytes(first, size),
        (Err(_), Ok(length)) if first.is_empty() && (length == 0 || size == 0) => Part::Unsatisfiable,
        (Err(_), Ok(length)) if first.is_empty() => Part::Bytes(size.saturating_sub(length), size),
        _ => Part::Whole,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ranges_are_read_as_the_standard_says() {
        for (value, part) in [
            ("bytes=0-0", Part::Bytes(0, 1)),
            ("bytes=5-", Part::Bytes(5, 10)),
            ("bytes=5-99", Part::Bytes(5, 10)),
            ("bytes=-3", Part::Bytes(7, 10)),
            ("bytes=10-", Part::Unsatisfiable),
            ("bytes=-0", Part::Unsatisfiable),
            ("bytes=3-2", Part::Whole),
            ("bytes=0-1,4-5", Part::Whole),
            ("lines=0-1", Part::Whole),
        ] {
            assert_eq!(parse(Some(value), 10), part, "{value}");
        }
        assert_eq!(parse(None, 10), Part::Whole);
        // Of nothing there is no part.
        for value in ["bytes=0-", "bytes=0-0", "bytes=-5", "bytes=-0"] {
            assert_eq!(parse(Some(value), 0), Part::Unsatisfiable, "{value}");
        }
    }

    proptest! {
        #[test]
        fn no_value_reaches_outside(value in "bytes=[0-9]{0,21}-[0-9]{0,21}", size in 0_u64..) {
            if let Part::Bytes(from, to) = parse(Some(&value), size) {
                prop_assert!(from < to && to <= size);
            }
        }
    }
}
