//! The orders of HPE's and Dell's versions, as their components and machines write them.

use std::cmp::Ordering;

use super::dotted::{self, Digits};

/// An HPE version, taken apart.
#[derive(Debug, PartialEq, Eq)]
pub enum Hpe {
    /// `[FAMILY] [v]2.72[(B)] [date]`: system ROM, iLO, controllers, network cards.
    Numbered {
        /// A system ROM's family, as "U30".
        family: String,
        /// The numbers.
        numbers: Vec<Digits>,
        /// The revision of the package, as "B" of `1.34(B)`; empty for the first.
        revision: String,
        /// Year, month, day, where it is told.
        date: Option<(u16, u8, u8)>,
    },
    /// `HPD2`: a disk's. The last character counts, digits before letters.
    Disk {
        /// All but the last character.
        series: String,
        /// The last.
        step: char,
    },
}

impl Hpe {
    /// Their order; none for two families.
    pub fn compare(&self, other: &Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Disk { series: a, step }, Self::Disk { series: b, step: other }) => {
                (a == b).then(|| step.cmp(other))
            }
            (
                Self::Numbered { family: a, numbers, revision, date },
                Self::Numbered { family: b, numbers: n, revision: r, date: d },
            ) => {
                // The date decides between two builds of one number; where one does not tell it, it is first.
                (a == b).then(|| numbers.cmp(n).then_with(|| revision.cmp(r)).then_with(|| date.cmp(d)))
            }
            _ => None,
        }
    }
}

/// Takes an HPE version apart.
pub fn hpe(text: &str) -> Option<Hpe> {
    disk(text).or_else(|| numbered(text))
}

fn disk(text: &str) -> Option<Hpe> {
    let upper = |c: char| c.is_ascii_digit() || c.is_ascii_uppercase();
    let shaped = text.len() == 4 && text.chars().all(upper) && text.starts_with("HP");
    let step = text.chars().next_back().filter(|_| shaped)?;
    Some(Hpe::Disk { series: text.get(..3)?.to_owned(), step })
}

fn numbered(text: &str) -> Option<Hpe> {
    let mut words = text.split_whitespace().peekable();
    let is_family = |word: &&str| {
        let word = word.strip_prefix("I.").unwrap_or(word);
        word.len() == 3 && word.starts_with(|c: char| c.is_ascii_uppercase()) && digits(word.get(1..))
    };
    let family = words.next_if(is_family).map_or("", |word| word.strip_prefix("I.").unwrap_or(word));
    let mut version = words.next()?;
    let mut dated = words.next();
    if words.next().is_some() {
        return None;
    }
    if let Some((before, after)) = version.split_once('_') {
        (version, dated) = (before, dated.xor(Some(after)));
        dated?;
    }
    let date = match dated {
        None => None,
        Some(text) => Some(date(text.trim_start_matches('(').trim_end_matches(')'))?),
    };
    let version = version.strip_prefix('v').unwrap_or(version);
    let (numbers, revision) = match version.strip_suffix(')') {
        Some(rest) => rest.split_once('(')?,
        None => (version, ""),
    };
    let letters = revision.chars().all(|c| c.is_ascii_uppercase());
    let revision = letters.then(|| revision.to_owned())?;
    Some(Hpe::Numbered { family: family.to_owned(), numbers: dotted::any(numbers)?, revision, date })
}

fn digits(text: Option<&str>) -> bool {
    text.is_some_and(|text| !text.is_empty() && text.chars().all(|c| c.is_ascii_digit()))
}

/// Month, day, year, as the vendor writes them, as year, month, day.
fn date(text: &str) -> Option<(u16, u8, u8)> {
    let mut parts = text.split(['/', '-']);
    let (month, day, year) = (parts.next()?, parts.next()?, parts.next()?);
    let whole = parts.next().is_none() && year.len() == 4;
    let date = (year.parse().ok()?, month.parse().ok()?, day.parse().ok()?);
    (whole && (1..=12).contains(&date.1) && (1..=31).contains(&date.2)).then_some(date)
}

/// A Dell version. The letters came first: every `A..` is before every number.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dell {
    /// `A07`.
    Lettered(char, Digits),
    /// `2.10.2`.
    Numbered(Vec<Digits>),
}

/// Takes a Dell version apart.
pub fn dell(text: &str) -> Option<Dell> {
    let first = text.chars().next()?;
    if first.is_ascii_uppercase() {
        let number = text.get(1..).filter(|rest| rest.len() == 2)?;
        return Some(Dell::Lettered(first, Digits::decimal(number)?));
    }
    dotted::any(text).map(Dell::Numbered)
}
