//! An installer's output in bounds: its beginning, which says what it was about to do, and its end, which says why not.

use std::collections::VecDeque;
use std::time::Instant;

use crate::wire::message::{LOG_HEAD_BYTES, LOG_TAIL_BYTES};

/// What is kept of an output.
pub struct Log {
    head: Vec<u8>,
    tail: VecDeque<u8>,
    left_out: u64,
    said_at: Instant,
}

impl Log {
    /// Nothing was said yet.
    pub fn new() -> Self {
        Self { head: Vec::new(), tail: VecDeque::new(), left_out: 0, said_at: Instant::now() }
    }

    /// Takes the next bytes in.
    pub fn take(&mut self, bytes: &[u8]) {
        self.said_at = Instant::now();
        let room = LOG_HEAD_BYTES.saturating_sub(self.head.len()).min(bytes.len());
        let (head, tail) = bytes.split_at(room);
        self.head.extend_from_slice(head);
        self.tail.extend(tail);
        let surplus = self.tail.len().saturating_sub(LOG_TAIL_BYTES);
        self.tail.drain(..surplus);
        self.left_out += surplus as u64;
    }

    /// When something was said last.
    pub fn said_at(&self) -> Instant {
        self.said_at
    }

    /// What there is, in order.
    pub fn text(&self) -> String {
        let mut text = String::from_utf8_lossy(&self.head).into_owned();
        if self.left_out > 0 {
            text.push_str(&format!("\n[{} bytes left out]\n", self.left_out));
        }
        let tail: Vec<u8> = self.tail.iter().copied().collect();
        text.push_str(&String::from_utf8_lossy(&tail));
        text
    }

    /// The last line that is not empty, shortened.
    pub fn last_line(&self) -> heapless::String<200> {
        let last = self.tail.iter().rev().chain(self.head.iter().rev()).take(400);
        let mut bytes: Vec<u8> = last.copied().collect();
        bytes.reverse();
        let text = String::from_utf8_lossy(&bytes);
        let line = text.split(['\n', '\r']).rev().find(|line| !line.trim().is_empty()).unwrap_or("").trim();
        let mut short = heapless::String::new();
        for character in line.chars().filter(|character| !character.is_control()) {
            if short.push(character).is_err() {
                break;
            }
        }
        short
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_beginning_and_the_end_of_a_long_output_are_kept_within_bounds() {
        let mut log = Log::new();
        log.take(b"short\n");
        assert_eq!(log.text(), "short\n");
        for line in 0..100_000 {
            log.take(format!("line {line}\n").as_bytes());
        }
        let text = log.text();
        assert!(text.starts_with("short\nline 0\n") && text.ends_with("line 99999\n"));
        assert!(text.contains(" bytes left out]") && text.len() < LOG_HEAD_BYTES + LOG_TAIL_BYTES + 64);
        assert_eq!(log.last_line(), "line 99999");
        // The worst that JSON can make of it still is one frame.
        let mut worst = Log::new();
        worst.take(&vec![1; 1_000_000]);
        assert!(crate::wire::frame::encode(&worst.text()).is_ok());
    }
}
