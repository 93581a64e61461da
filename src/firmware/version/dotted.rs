//! Numbers, and numbers with dots between them, of any length.

use std::cmp::Ordering;

/// Digits without leading zeros: more of them is the larger number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Digits(String);

impl Digits {
    fn new(text: &str, radix: u32) -> Option<Self> {
        let valid = !text.is_empty() && text.chars().all(|c| c.is_digit(radix));
        valid.then(|| Self(text.trim_start_matches('0').to_ascii_lowercase()))
    }

    /// A decimal number.
    pub fn decimal(text: &str) -> Option<Self> {
        Self::new(text, 10)
    }
}

impl Ord for Digits {
    fn cmp(&self, other: &Self) -> Ordering {
        // In ASCII, digits come before letters: as hexadecimal wants it.
        self.0.len().cmp(&other.0.len()).then_with(|| self.0.cmp(&other.0))
    }
}

impl PartialOrd for Digits {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

fn without_prefix(text: &str) -> Option<&str> {
    text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"))
}

/// One number in hexadecimal.
pub fn hex(text: &str) -> Option<Digits> {
    Digits::new(without_prefix(text).unwrap_or(text), 16)
}

/// One number, decimal or hexadecimal, as decimal digits: `0x10` is 16.
pub fn number(text: &str) -> Option<Digits> {
    match without_prefix(text) {
        None => Digits::decimal(text),
        Some(digits) => Digits::decimal(&u128::from_str_radix(digits, 16).ok()?.to_string()),
    }
}

/// Exactly `N` numbers.
pub fn sections<const N: usize>(text: &str) -> Option<[Digits; N]> {
    let sections: Option<Vec<_>> = text.split('.').map(Digits::decimal).collect();
    sections?.try_into().ok()
}

/// One or more numbers.
pub fn any(text: &str) -> Option<Vec<Digits>> {
    text.split('.').map(Digits::decimal).collect()
}
