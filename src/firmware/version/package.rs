//! The orders of package versions: rpm's and Debian's. Every two versions have one.

use std::cmp::Ordering;

/// The order of two rpm versions, `[epoch:]version[-release]`.
pub fn rpm(a: &str, b: &str) -> Ordering {
    let ((epoch_a, a), (epoch_b, b)) = (epoch(a), epoch(b));
    let ((version_a, release_a), (version_b, release_b)) = (release(a), release(b));
    number(epoch_a, epoch_b)
        .then_with(|| segments(version_a, version_b))
        .then_with(|| segments(release_a.unwrap_or(""), release_b.unwrap_or("")))
}

/// The order of two Debian versions, `[epoch:]version[-revision]`.
pub fn deb(a: &str, b: &str) -> Ordering {
    let ((epoch_a, a), (epoch_b, b)) = (epoch(a), epoch(b));
    let ((upstream_a, revision_a), (upstream_b, revision_b)) = (release(a), release(b));
    number(epoch_a, epoch_b)
        .then_with(|| alternate(upstream_a, upstream_b))
        .then_with(|| alternate(revision_a.unwrap_or(""), revision_b.unwrap_or("")))
}

/// The epoch, empty for none, and the rest.
fn epoch(text: &str) -> (&str, &str) {
    match text.split_once(':') {
        Some((epoch, rest)) if epoch.chars().all(|c| c.is_ascii_digit()) => (epoch, rest),
        _ => ("", text),
    }
}

/// What stands before the last hyphen, and after it.
fn release(text: &str) -> (&str, Option<&str>) {
    match text.rsplit_once('-') {
        Some((version, release)) => (version, Some(release)),
        None => (text, None),
    }
}

fn number(a: &str, b: &str) -> Ordering {
    let (a, b) = (a.trim_start_matches('0'), b.trim_start_matches('0'));
    a.len().cmp(&b.len()).then_with(|| a.cmp(b))
}

/// The part of `text` whose characters fit, and the rest.
fn take(text: &str, fits: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(|c| !fits(c)).unwrap_or(text.len()))
}

/// rpm's: segments of digits or of letters, all else between them counts for nothing, but `~` is before the end of
/// the text and `^` just after it.
fn segments(mut a: &str, mut b: &str) -> Ordering {
    let between = |c: char| !c.is_ascii_alphanumeric() && c != '~' && c != '^';
    loop {
        (a, b) = (a.trim_start_matches(between), b.trim_start_matches(between));
        match (a.strip_prefix('~'), b.strip_prefix('~')) {
            (Some(rest_a), Some(rest_b)) => {
                (a, b) = (rest_a, rest_b);
                continue;
            }
            (Some(_), None) => return Ordering::Less,
            (None, Some(_)) => return Ordering::Greater,
            (None, None) => {}
        }
        match (a.strip_prefix('^'), b.strip_prefix('^')) {
            (Some(rest_a), Some(rest_b)) => {
                (a, b) = (rest_a, rest_b);
                continue;
            }
            (Some(_), None) => return if b.is_empty() { Ordering::Greater } else { Ordering::Less },
            (None, Some(_)) => return if a.is_empty() { Ordering::Less } else { Ordering::Greater },
            (None, None) => {}
        }
        if a.is_empty() || b.is_empty() {
            return a.len().cmp(&b.len());
        }
        let is_number = a.starts_with(|c: char| c.is_ascii_digit());
        let fits = |c: char| if is_number { c.is_ascii_digit() } else { c.is_ascii_alphabetic() };
        let ((segment_a, rest_a), (segment_b, rest_b)) = (take(a, fits), take(b, fits));
        let order = match (segment_b.is_empty(), is_number) {
            // A number is after letters.
            (true, true) => Ordering::Greater,
            (true, false) => Ordering::Less,
            (false, true) => number(segment_a, segment_b),
            (false, false) => segment_a.cmp(segment_b),
        };
        if order != Ordering::Equal {
            return order;
        }
        (a, b) = (rest_a, rest_b);
    }
}

/// Debian's: text and numbers by turns; in text `~` is before the end, letters before all else.
fn alternate(mut a: &str, mut b: &str) -> Ordering {
    let weight = |c: Option<char>| match c {
        Some('~') => (0, '~'),
        None => (1, ' '),
        Some(c) if c.is_ascii_alphabetic() => (2, c),
        Some(c) => (3, c),
    };
    while !a.is_empty() || !b.is_empty() {
        let ((text_a, rest_a), (text_b, rest_b)) =
            (take(a, |c| !c.is_ascii_digit()), take(b, |c| !c.is_ascii_digit()));
        let (mut chars_a, mut chars_b) = (text_a.chars(), text_b.chars());
        loop {
            let (next_a, next_b) = (chars_a.next(), chars_b.next());
            if next_a.is_none() && next_b.is_none() {
                break;
            }
            match weight(next_a).cmp(&weight(next_b)) {
                Ordering::Equal => {}
                order => return order,
            }
        }
        let ((digits_a, after_a), (digits_b, after_b)) =
            (take(rest_a, |c| c.is_ascii_digit()), take(rest_b, |c| c.is_ascii_digit()));
        match number(digits_a, digits_b) {
            Ordering::Equal => (a, b) = (after_a, after_b),
            order => return order,
        }
    }
    Ordering::Equal
}
