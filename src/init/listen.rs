//! What `serve` says to init: its reports, and what it prints.
//!
//! Both are read without ever waiting, in bounded pieces. The token goes to the machine's consoles only: a report
//! that cannot be read is never shown, because it may hold it.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;

use heapless::HistoryBuf;

use super::report::{REPORT_BYTES_MAX, Ready, Report, Stopping};
use super::screen;
use super::supervise::Child;

/// How many of its last lines are shown when `serve` dies.
const LAST_LINES: usize = 16;
/// Columns of a text screen that a certificate's fingerprint is broken for: 16 bytes of it.
const FINGERPRINT_LINE: usize = 16 * 3;

/// Both ends that `serve` speaks into, and what it has said and not yet finished saying.
#[derive(Default)]
pub struct Serve {
    reports: Stream,
    output: Stream,
    last: HistoryBuf<String, LAST_LINES>,
}

#[derive(Default)]
struct Stream {
    from: Option<File>,
    unread: Vec<u8>,
}

impl Serve {
    /// Listens to a process that was just started.
    pub fn new(child: Child) -> Self {
        let stream = |from: OwnedFd| Stream { from: Some(from.into()), unread: Vec::new() };
        Self { reports: stream(child.report), output: stream(child.output), last: HistoryBuf::new() }
    }

    /// What to wait on.
    pub fn files(&self) -> impl Iterator<Item = &File> {
        self.reports.from.iter().chain(&self.output.from)
    }

    /// Takes in what has arrived; returns the reports.
    pub fn listen(&mut self) -> Vec<Report> {
        self.reports.read_available();
        self.output.read_available();
        while let Some(line) = self.output.take_line() {
            let line = String::from_utf8_lossy(&line).into_owned();
            screen::note(&format!("serve: {line}"));
            self.last.write(line);
        }
        let mut reports = Vec::new();
        while let Some(line) = self.reports.take_line() {
            match Report::parse(&line) {
                Ok(report) => reports.push(report),
                Err(_) => screen::say("serve sent a report that cannot be read"),
            }
        }
        reports
    }

    /// Its last words.
    pub fn last_lines(&self) -> impl Iterator<Item = &String> {
        self.last.oldest_ordered()
    }
}

impl Stream {
    /// Closed at its end. What is longer than a line may be is dropped.
    fn read_available(&mut self) {
        let Some(file) = &mut self.from else { return };
        let mut buffer = [0_u8; 4096];
        // Bounded, so that a chatty `serve` does not keep signals waiting.
        for _ in 0..16 {
            match file.read(&mut buffer) {
                Ok(length) if length > 0 => {
                    self.unread.extend_from_slice(buffer.get(..length).unwrap_or_default());
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                Ok(_) | Err(_) => {
                    self.from = None;
                    return;
                }
            }
            if self.unread.len() > REPORT_BYTES_MAX && !self.unread.contains(&b'\n') {
                self.unread.clear();
            }
        }
    }

    fn take_line(&mut self) -> Option<Vec<u8>> {
        let end = self.unread.iter().position(|&byte| byte == b'\n')?;
        let mut line: Vec<u8> = self.unread.drain(..=end).collect();
        line.pop();
        Some(line)
    }
}

/// What the person at the machine needs, as the consoles show it.
pub fn ready_text(ready: &Ready) -> String {
    let mut text = String::from("\n  Carena\n");
    for url in &ready.urls {
        text.push_str(&format!("  console      {url}\n"));
    }
    if ready.urls.is_empty() {
        text.push_str("  console      no address yet\n");
    }
    let mut label = "  certificate  sha256";
    let mut rest = ready.fingerprint.as_str();
    while !rest.is_empty() {
        let (line, more) = rest.split_at_checked(FINGERPRINT_LINE).unwrap_or((rest, ""));
        text.push_str(&format!("{label:<21} {line}\n"));
        (label, rest) = ("", more);
    }
    text.push_str(&format!("  token        {}\n\n", ready.token));
    text
}

/// What the machine still waits for before it goes down.
pub fn stopping_text(stopping: &Stopping) -> String {
    let more = if stopping.nodes > stopping.first.len() { ", …" } else { "" };
    format!(
        "waiting for {} node{} to be as found: {}{more}",
        stopping.nodes,
        if stopping.nodes == 1 { "" } else { "s" },
        stopping.first.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_taken_one_by_one_and_the_rest_waits() {
        let mut stream = Stream { from: None, unread: b"one\ntwo\nthr".to_vec() };
        assert_eq!(stream.take_line().unwrap(), b"one");
        assert_eq!(stream.take_line().unwrap(), b"two");
        assert_eq!(stream.take_line(), None);
        assert_eq!(stream.unread, b"thr");
    }

    #[test]
    fn what_is_shown_fits_a_text_screen() {
        let ready = Ready {
            urls: vec!["https://[fd00:ca::5]:63002".into()],
            fingerprint: ["AB"; 32].join(":"),
            token: "t".into(),
        };
        let text = ready_text(&ready);
        assert!(text.lines().all(|line| line.len() < 80), "{text}");
        let shown: String = text.lines().map(|line| line.rsplit(' ').next().unwrap()).collect();
        assert!(shown.contains(&ready.fingerprint), "{text}");
    }

    #[test]
    fn a_long_wait_names_the_first_nodes() {
        let one = Stopping { nodes: 1, first: vec!["a".into()] };
        assert_eq!(stopping_text(&one), "waiting for 1 node to be as found: a");
        let many = Stopping { nodes: 3, first: vec!["a".into(), "b".into()] };
        assert_eq!(stopping_text(&many), "waiting for 3 nodes to be as found: a, b, …");
    }
}
