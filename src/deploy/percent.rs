//! How far an installer is, read from what it prints. Only told to people: nothing is decided by it.

/// How far an installer says it is: the last number of a line, up to 100, that "%" or "</" follows, as in "45 %", rpm's
/// "%% 45.2" and the `<Progress>45</Progress>` of Dell's packages.
pub fn percent(line: &str) -> Option<u8> {
    if let Some(of_rpm) = line.trim_start().strip_prefix("%% ") {
        return whole(of_rpm.split('.').next()?);
    }
    let before = |end: usize| {
        let text = line.get(..end)?.trim_end();
        let number = text.rsplit(|c: char| !c.is_ascii_digit() && c != '.').next()?;
        whole(number.split('.').next()?)
    };
    let sign = line.rmatch_indices('%').find_map(|(at, _)| before(at));
    sign.or_else(|| line.to_ascii_lowercase().rfind("</progress>").and_then(before))
}

fn whole(number: &str) -> Option<u8> {
    number.parse().ok().filter(|percent| *percent <= 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_are_found_as_installers_write_them() {
        for (line, expected) in [
            ("45%", Some(45)),
            ("Progress: 45 % done", Some(45)),
            ("10%20%45%", Some(45)),
            ("%% 45.230000", Some(45)),
            ("flashing 99.9%", Some(99)),
            ("<Progress>7</Progress>", Some(7)),
            ("100%", Some(100)),
            ("erasing sector 45", None),
            ("400%", None),
            ("%", None),
            ("", None),
            ("été 5 %", Some(5)),
        ] {
            assert_eq!(percent(line), expected, "{line}");
        }
    }
}
